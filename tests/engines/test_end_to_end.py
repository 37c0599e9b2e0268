"""Real ProcessBench items, judged by a real language model through real engines, from the command line to the figures.

SmolLM2-135M is no judge worth its figures; what is checked is that every part of the path works on real text: records,
prompts, sampling, verdicts in the generation, rewards, run folder, measures.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from rprm import load_template
from rprm.records import SolutionReward
from rprm.verdict import VerdictFormat
from tests.warm import warm_torch

NUM_ITEMS = 4
#: Short, since most of the time goes into reading prompts; after three such checks even this model writes the verdict
#: line nearly always.
WORKED = """Problem: Tom has 3 bags of 4 apples. How many apples has he?
Solution so far:
Step 1: The bags hold 3 * 4 = 12 apples.
Check of Step 1: Done.
Is the step correct (Yes/No)? Yes

Problem: What do 5 pens at 3 dollars cost?
Solution so far:
Step 1: They cost 5 * 3 = 18 dollars.
Check of Step 1: Done.
Is the step correct (Yes/No)? No

Problem: Mia reads 10 pages on Monday and twice as many on Tuesday. How many in all?
Solution so far:
Step 1: On Tuesday she reads 2 * 10 = 20 pages.
Step 2: In all that is 10 + 20 = 30 pages.
Check of Step 2: Done.
Is the step correct (Yes/No)? Yes

Problem: {{problem}}
Solution so far:
{{steps}}
Check of Step {{step_number}}:"""


def bench(data: Path, model: str, output: Path) -> tuple[dict, list[SolutionReward]]:
    prompt = output.with_name("prompt.toml")
    prompt.write_text(replace(load_template("few-shot"), name="short", user=WORKED).to_toml())
    done = warm_torch().run(
        [
            sys.executable, "-m", "rprm", "bench", "processbench", "--data", str(data), "--model", model,
            "--prompt", str(prompt), "-k", "1", "--max-tokens", "24", "--temperature", "0.7", "--no-force-verdict",
            "--output", str(output), "--allow-missing", "--json",
        ],
        env={**os.environ, "OPENAI_API_KEY": ""},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = (output / "results.jsonl").read_text().splitlines()
    return json.loads(done.stdout), [SolutionReward.model_validate_json(row) for row in rows]


@pytest.fixture(scope="session")
def cheap_items(excerpts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The items that cost least to judge: one core generates some forty tokens a second."""
    path = tmp_path_factory.mktemp("items") / "gsm8k.jsonl"
    rows = (excerpts / "processbench" / "gsm8k.jsonl").read_text().splitlines()

    def cost(row: str) -> int:
        item = json.loads(row)
        return len(item["steps"]) * (len(item["problem"]) + 200) + len("".join(item["steps"]))

    path.write_text("\n".join(sorted(rows, key=cost)[:NUM_ITEMS]) + "\n")
    return path


def check(report: dict, rewards: list[SolutionReward], data: Path) -> None:
    items = [json.loads(line) for line in data.read_text().splitlines()]
    assert [reward.id for reward in rewards] == [item["id"] for item in items]
    assert [reward.label for reward in rewards] == [item["label"] for item in items]
    analyses = [analysis for reward in rewards for step in reward.steps for analysis in step.analyses]
    with_verdict = [analysis for analysis in analyses if analysis.verdict is not None]
    assert len(with_verdict) >= 5
    # Read from the generation's own log-probabilities, strictly between the hard votes.
    assert {analysis.p_yes_source for analysis in with_verdict} == {"logprobs"}
    assert all(analysis.p_yes is not None and 0.0 < analysis.p_yes < 1.0 for analysis in with_verdict)
    assert len({analysis.p_yes for analysis in with_verdict}) >= 4
    for analysis in with_verdict:
        verdict = VerdictFormat().find(analysis.text)
        assert verdict is not None
        assert verdict.yes is analysis.verdict
    for reward in rewards:
        for step in reward.steps:
            found = [analysis.p_yes for analysis in step.analyses if analysis.p_yes is not None]
            if found:
                assert step.reward == pytest.approx(sum(found) / len(found))
            else:
                assert step.reward is None
                assert step.failure is not None
    assert report["usage"]["tokens"] == sum(analysis.num_tokens for analysis in analyses)
    assert report["usage"]["analyses_without_verdict"] == len(analyses) - len(with_verdict)
    assert set(report["figures"]["gsm8k"]) == {"error_acc", "correct_acc", "f1"}


@pytest.mark.slow
def test_through_transformers(cheap_items: Path, smollm2_folder: Path, tmp_path: Path) -> None:
    report, rewards = bench(cheap_items, f"transformers:{smollm2_folder}?dtype=float32", tmp_path / "run")
    check(report, rewards, cheap_items)


@pytest.mark.slow
def test_through_a_llamacpp_server(cheap_items: Path, llamacpp_url: str, tmp_path: Path) -> None:
    report, rewards = bench(cheap_items, f"openai:smollm2@{llamacpp_url}", tmp_path / "run")
    check(report, rewards, cheap_items)
