"""An evaluation of inspect_ai with its mock model (opt-in: `make test-integrations`)."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

import rprm
from rprm.errors import InputError

inspect_ai = pytest.importorskip("inspect_ai")

from inspect_ai import Task  # noqa: E402
from inspect_ai.dataset import Sample  # noqa: E402
from inspect_ai.log import read_eval_log  # noqa: E402
from inspect_ai.model import (  # noqa: E402
    ChatMessageAssistant,
    ChatMessageSystem,
    ChatMessageUser,
    ContentReasoning,
    ContentText,
    ModelOutput,
    ModelUsage,
    get_model,
)

from rprm.integrations.inspect_ai import step_rewards  # noqa: E402

ANSWER = "2 + 2 = 4.\n\n4 + 1 = 6.\n\nThe answer is 6."


def evaluated(folder: Path, scorer: Any, samples: list[Sample], outputs: list[Any]) -> Any:
    model = get_model("mockllm/model", custom_outputs=outputs)
    (log,) = inspect_ai.eval(
        Task(dataset=samples, scorer=scorer), model=model, log_dir=str(folder), display="none", max_samples=1
    )
    assert log.status == "success", log.error
    return log


def output(content: Any) -> ModelOutput:
    found = ModelOutput.from_message(ChatMessageAssistant(content=content))
    # Otherwise the mock model counts tokens, with a vocabulary from the network.
    found.usage = ModelUsage(input_tokens=1, output_tokens=1, total_tokens=2)
    return found


def test_an_evaluation(tmp_path: Path) -> None:
    problems = ["What is 2 + 2 + 1?", "What is 3 + 3?", "What is 1 + 1?"]
    chat = [ChatMessageSystem(content="Be brief."), ChatMessageUser(content=problems[1])]
    samples = [Sample(input=problems[0]), Sample(input=chat), Sample(input=problems[2])]
    thought = [ContentReasoning(reasoning="Hm.\n\nHm."), ContentText(text="3 + 3 = 6.")]
    scorer = step_rewards("scripted:", form="mean", num_analyses=2)
    log = evaluated(tmp_path, scorer, samples, [output(ANSWER), output(thought), output("")])
    with rprm.RPRM("scripted:", num_analyses=2) as prm:
        rewards = prm.score([
            {"problem": problems[0], "steps": ANSWER.split("\n\n")},
            {"problem": problems[1], "steps": ["3 + 3 = 6."]},
        ])  # fmt: skip
    expected = [reward.aggregate("mean") for reward in rewards]
    scores = [sample.scores["step_rewards"] for sample in log.samples]
    assert [score.value for score in scores[:2]] == expected
    assert [score.metadata["step_rewards"] for score in scores[:2]] == [reward.rewards for reward in rewards]
    assert scores[0].explanation.startswith("Step 1: ")
    # Nothing was answered: unscored, and left out of the mean.
    assert math.isnan(scores[2].value)
    assert scores[2].reason == "no_response"
    assert log.results.scores[0].metrics["mean"].value == pytest.approx(sum(expected) / 2)
    assert log.results.scores[0].unscored_samples == 1
    # The log names the judge, and is scored again from it alone.
    again = inspect_ai.score(read_eval_log(log.location), scorer, action="overwrite", display="none")
    assert [sample.scores["step_rewards"].value for sample in again.samples][:2] == expected
    assert log.eval.scorers[0].options["model"] == "scripted:"


@pytest.mark.slow
def test_the_embedded_judge(tmp_path: Path) -> None:
    """Of two solutions of a word problem, the one with a wrong third step."""
    row = json.loads((Path(rprm.__file__).with_name("examples") / "word_problems.jsonl").read_text().splitlines()[0])
    wrong = "\n\n".join(row["steps"])
    scorer = step_rewards("embedded", form="progress", num_analyses=2)
    samples = [Sample(input=row["problem"]), Sample(input=row["problem"])]
    log = evaluated(tmp_path, scorer, samples, [output(wrong), output(wrong.replace("229", "219"))])
    scores = [sample.scores["step_rewards"] for sample in log.samples]
    assert [score.value for score in scores] == [0.5, 1.0]  # 2 of 4 steps; all
    assert "First error: step 3." in scores[0].explanation


def test_a_lost_judge_is_unscored(tmp_path: Path) -> None:
    scorer = step_rewards("scripted:?lost=1.0", problem="question", num_analyses=1)
    sample = Sample(input="Solve: 1 + 1", metadata={"question": "1 + 1"})
    log = evaluated(tmp_path, scorer, [sample], [output("1 + 1 = 2.")])
    score = log.samples[0].scores["step_rewards"]
    assert math.isnan(score.value)
    assert score.reason == "grader_failed"
    assert "no reward" in score.explanation


def test_the_first_error_is_explained(tmp_path: Path) -> None:
    scorer = step_rewards("scripted:?yes_rate=0.0&noise=0.0", form="progress", num_analyses=1)
    log = evaluated(tmp_path, scorer, [Sample(input="1 + 1")], [output(ANSWER)])
    score = log.samples[0].scores["step_rewards"]
    assert score.value == 0.0
    assert "First error: step 1.\n\nAnalysis " in score.explanation
    with pytest.raises(InputError, match="forms are"):
        step_rewards("scripted:", form="median")
