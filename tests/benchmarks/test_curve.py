"""`rprm bench curve`: a figure by K from one run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from rprm.benchmarks import PROCESSBENCH, BenchmarkItems
from rprm.benchmarks.curve import k_curve
from rprm.benchmarks.processbench import ProcessBenchItem
from rprm.cli.app import app
from rprm.errors import BenchmarkError
from rprm.records import Analysis, Solution, SolutionReward, StepReward


def analysis(p_yes: float | None, index: int | None = None) -> Analysis:
    verdict = None if p_yes is None else p_yes >= 0.5
    return Analysis(
        text="", verdict=verdict, p_yes=p_yes, p_yes_source=None, num_tokens=10, finish_reason="stop", first_error=index
    )


def item(name: str, label: int) -> ProcessBenchItem:
    return ProcessBenchItem("math", Solution(id=name, problem="p", steps=("a", "b"), label=label), label)


def judged(name: str, *p_yes: list[float]) -> SolutionReward:
    steps = [
        StepReward(step_index=index, reward=sum(each) / len(each), vote=None, analyses=tuple(map(analysis, each)))
        for index, each in enumerate(p_yes)
    ]
    return SolutionReward(id=name, num_steps=2, first_error=None, steps=tuple(steps))


def test_a_point_is_the_mean_over_disjoint_subsets() -> None:
    """a errs at step 1: its analyses there say 0.2 0.6, whose mean of 0.4 finds it; alone the first does and the second
    does not. b is right and always found so. K = 1: error accuracy (1 + 0) / 2, F1 = 2 * 0.5 / 1.5; K = 2: 1."""
    items = BenchmarkItems((item("a", 1), item("b", -1)))
    rewards = [judged("a", [0.9, 0.9], [0.2, 0.6]), judged("b", [0.9, 0.9], [0.8, 0.7])]
    found = k_curve(PROCESSBENCH, items, rewards, is_critic=False, num_resamples=10)
    assert [(k, figure.value, tokens) for k, figure, tokens in found.points] == [
        (1, pytest.approx(100 * 2 * 0.5 / 1.5), 20), (2, pytest.approx(100), 40)
    ]  # fmt: skip


def test_of_a_critic_the_subsets_vote() -> None:
    """Of 1, 0, 1 each alone: two of three are right, error accuracy 2/3; the pair 1, 0 (the third is alone) ties for
    1, which came first; all three say 1."""
    items = BenchmarkItems((item("a", 1), item("b", -1)))

    def critiqued(name: str, votes: list[int]) -> SolutionReward:
        analyses = tuple(analysis(float(vote == -1), vote) for vote in votes)
        steps = [StepReward(step_index=index, reward=0.5, vote=0.5) for index in range(2)]
        steps[1] = steps[1].model_copy(update={"analyses": analyses})
        return SolutionReward(id=name, num_steps=2, first_error=None, steps=tuple(steps))

    rewards = [critiqued("a", [1, 0, 1]), critiqued("b", [-1, -1, -1])]
    found = k_curve(PROCESSBENCH, items, rewards, is_critic=True, num_resamples=10)
    shares = {k: figure.value for k, figure, _ in found.points}
    assert shares == {1: pytest.approx(100 * 2 * (2 / 3) / (5 / 3)), 2: pytest.approx(100), 3: pytest.approx(100)}


def test_steps_with_fewer_analyses_are_refused() -> None:
    items = BenchmarkItems((item("a", 1),))
    with pytest.raises(BenchmarkError, match="stopping none"):
        k_curve(PROCESSBENCH, items, [judged("a", [0.9, 0.9], [0.2])], is_critic=False)


@pytest.mark.parametrize("model", ["scripted:?noise=0.3", "critic:scripted:?noise=0.3"])
def test_the_last_point_is_the_runs_own_figure(model: str, excerpts: Path, tmp_path: Path) -> None:
    def run(*arguments: str) -> Any:
        result = CliRunner().invoke(app, ["bench", *arguments, "--json", "--resamples", "20"])
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)

    drawn = ["--stopping", "none", "--all-steps", "-k", "3", "--limit", "6", "-o", str(tmp_path / "run")]
    measured = run("processbench", "--model", model, "--data", str(excerpts / "processbench"), *drawn)
    points = run("curve", str(tmp_path / "run"))["points"]
    assert [point["k"] for point in points] == [1, 2, 3]
    assert points[-1]["value"] == pytest.approx(measured["figures"]["average"]["f1"]["value"])
