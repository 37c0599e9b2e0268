"""A task of lm-evaluation-harness whose metric is the reward (opt-in: `make test-integrations`)."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from stated_judge import Judge, rounded

import rprm
from rprm.integrations.lm_eval import RewardMetric

ANSWERS = ["2 + 2 = 4.\n\nThe answer is 4.", "<think>\nHm.\n</think>\n\n3 + 3 = 7.", ""]
QUESTIONS = ["What is 2 + 2?", "What is 3 + 3?", "What is 1 + 1?"]

TASK = """
task: steps
dataset_path: json
dataset_kwargs:
  data_files: {{test: {data}}}
test_split: test
output_type: generate_until
doc_to_text: "Question: {{{{question}}}}"
doc_to_target: ""
generation_kwargs: {{until: ["Question:"]}}
process_results: !function rewards.process_results
metric_list:
  - metric: rprm
    aggregation: !function rewards.aggregate
    higher_is_better: true
"""
REWARDS = """
from rprm import RPRM
from rprm.integrations.lm_eval import RewardMetric

metric = RewardMetric(RPRM("scripted:", num_analyses=2))
process_results, aggregate = metric.process_results, metric.aggregate
"""


def test_the_mean_of_what_has_a_reward(judge: Judge, caplog: pytest.LogCaptureFixture) -> None:
    metric = RewardMetric(judge, "last", problem=lambda doc: doc["q"])
    noted = [metric.process_results({"q": "p"}, [text])["rprm"] for text in ("a 0.5\n\nb 0.25", "c 0.75", "lost")]
    assert judge.num_judged == 0
    assert rounded(metric.aggregate(noted)) == 0.5  # (0.25 + 0.75) / 2
    assert "1 of 3 answers have no reward" in caplog.text
    repeats = metric.process_results({"q": "p"}, [["a 0.5", "a 1.0"]])["rprm"]
    assert rounded(metric.aggregate([repeats])) == 0.75
    assert math.isnan(metric.aggregate([]))


def test_a_task(tmp_path: Path) -> None:
    lm_eval = pytest.importorskip("lm_eval")
    from lm_eval.api.model import LM
    from lm_eval.tasks import TaskManager

    class Model(LM):
        def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
            return [ANSWERS[QUESTIONS.index(one.args[0].removeprefix("Question: "))] for one in requests]

        def loglikelihood(self, requests: list[Any]) -> Any:
            raise NotImplementedError

        loglikelihood_rolling = loglikelihood

    data = tmp_path / "questions.jsonl"
    data.write_text("".join(json.dumps({"question": question}) + "\n" for question in QUESTIONS))
    (tmp_path / "steps.yaml").write_text(TASK.format(data=data))
    (tmp_path / "rewards.py").write_text(REWARDS)
    manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
    found = lm_eval.simple_evaluate(Model(), tasks=["steps"], task_manager=manager, bootstrap_iters=0)
    with rprm.RPRM("scripted:", num_analyses=2) as prm:
        right, wrong = prm.score([
            {"problem": QUESTIONS[0], "steps": ANSWERS[0].split("\n\n")},
            {"problem": QUESTIONS[1], "steps": ["3 + 3 = 7."]},
        ])  # fmt: skip
    values = [right.aggregate("min"), wrong.aggregate("min")]
    assert found["results"]["steps"]["rprm,none"] == pytest.approx(sum(values) / 2)
    assert len(found["samples"]["steps"]) == 3
