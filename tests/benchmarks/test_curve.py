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
from rprm.errors import BenchmarkError, MissingPredictions
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
    does not. b is right and always found so. K = 1: F1 is 100 and 0, in the mean 50 (and not that of the mean accuracy,
    2 * 0.5 / 1.5); K = 2: 100."""
    items = BenchmarkItems((item("a", 1), item("b", -1)))
    rewards = [judged("a", [0.9, 0.9], [0.2, 0.6]), judged("b", [0.9, 0.9], [0.8, 0.7])]
    found = k_curve(PROCESSBENCH, items, rewards, is_critic=False, num_resamples=10)
    assert [(k, figure.value, tokens, lacking) for k, figure, tokens, lacking in found.points] == [
        (1, pytest.approx(50), 20, 0), (2, pytest.approx(100), 40, 0)
    ]  # fmt: skip


def test_of_a_critic_the_subsets_vote() -> None:
    """Of 1, 0, 1 each alone: two of three are right, F1 100, 0 and 100; the pair 1, 0 (the third is alone) ties for 1,
    which came first; all three say 1."""
    items = BenchmarkItems((item("a", 1), item("b", -1)))
    rewards = [critiqued("a", [1, 0, 1]), critiqued("b", [-1, -1, -1])]
    found = k_curve(PROCESSBENCH, items, rewards, is_critic=True, num_resamples=10)
    shares = {point.k: point.figure.value for point in found.points}
    assert shares == {1: pytest.approx(200 / 3), 2: pytest.approx(100), 3: pytest.approx(100)}


def test_the_interval_is_of_the_mean_in_each_resample() -> None:
    """The first subset finds the errors of a and c, the second that of c alone. Resamples of the three: of errors a
    alone gives F1 100 and 0, c alone 100 and 100, both 100 and 200/3; without b, or without both, F1 is undefined."""
    items = BenchmarkItems((item("a", 1), item("c", 1), item("b", -1)))
    rewards = [
        judged("a", [0.9, 0.9], [0.2, 0.6]), judged("c", [0.9, 0.9], [0.2, 0.2]), judged("b", [0.9, 0.9], [0.8, 0.7])
    ]  # fmt: skip
    figure = k_curve(PROCESSBENCH, items, rewards, is_critic=False, num_resamples=400).points[0].figure
    assert figure.value == pytest.approx((100 + 200 / 3) / 2)
    assert figure.low == pytest.approx(50)
    assert figure.high == pytest.approx(100)


def test_a_subset_without_a_vote_counts_as_wrong_and_is_counted() -> None:
    """Of a's critiques the second names no index: alone it finds nothing. K = 1: F1 100 and 0, one of two subsets lacks
    one item."""
    items = BenchmarkItems((item("a", 1), item("b", -1)))
    rewards = [critiqued("a", [1, None]), critiqued("b", [-1, -1])]
    found = k_curve(PROCESSBENCH, items, rewards, is_critic=True, num_resamples=10)
    assert [(point.figure.value, point.lacking) for point in found.points] == [(50, 0.5), (100, 0)]
    assert "0.5" in found.table().lines[0].cells  # type: ignore[union-attr]


@pytest.mark.parametrize("is_critic", [True, False])
def test_an_item_that_could_not_be_judged_is_named_or_counts_as_wrong(is_critic: bool) -> None:
    """Of a and c, both with an error at 1, c was refused: half of the errors are found, F1 = 2 * 0.5 / 1.5."""
    items = BenchmarkItems((item("a", 1), item("b", -1), item("c", 1)))
    rewards = [critiqued("a", [1, 1]), critiqued("b", [-1, -1])]
    if not is_critic:
        rewards = [judged("a", [0.9, 0.9], [0.2, 0.2]), judged("b", [0.9, 0.9], [0.9, 0.9])]
    lost = [StepReward(step_index=at, reward=None, vote=None, failure="the prompt is too long") for at in range(2)]
    rewards.append(SolutionReward(id="c", num_steps=2, first_error=None, steps=tuple(lost)))
    with pytest.raises(MissingPredictions, match="c could not be judged: the prompt is too long"):
        k_curve(PROCESSBENCH, items, rewards, is_critic=is_critic, num_resamples=10)
    found = k_curve(PROCESSBENCH, items, rewards, is_critic=is_critic, num_resamples=10, allow_missing=True)
    assert [(point.k, point.lacking) for point in found.points] == [(1, 1), (2, 1)]
    assert [point.figure.value for point in found.points] == pytest.approx([200 / 3, 200 / 3])


def test_a_critics_curve_on_labelled_steps(tmp_path: Path) -> None:
    """Each step is judged alone, as the last of its solution."""
    rows = [
        {"id": f"s{n}", "problem": f"p{n}", "previous_steps": ["a"] * (n % 3), "step": "b", "label": n % 2 == 0}
        for n in range(6)
    ]
    (tmp_path / "steps.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    drawn = ["-k", "3", "--stopping", "none", "-o", str(tmp_path / "run")]
    measured = bench("steps", str(tmp_path / "steps.jsonl"), "--model", "critic:scripted:?noise=0.3", *drawn)
    points = bench("curve", str(tmp_path / "run"))["points"]
    assert [point["k"] for point in points] == [1, 2, 3]
    assert points[-1]["value"] == pytest.approx(measured["figures"]["f1"]["value"])


def test_a_curve_and_a_comparison_have_the_flags_of_the_run(excerpts: Path, tmp_path: Path) -> None:
    """Votes of 0 or 1 of four analyses: a mean of 0.5 is a step that `--strictly-above` calls wrong. The steps without
    their numbers are other data, which only the flag makes."""
    data, run = ["--data", str(excerpts / "prmbench" / "sample.jsonl"), "--limit", "2"], str(tmp_path / "run")
    drawn = ["-k", "4", "--stopping", "none", "--strictly-above", "--strip-step-numbers", "-o", run]
    measured = bench("prmbench", "--model", "scripted:?noise=0.4&logprobs=false", *data, *drawn)
    overall = measured["figures"]["overall"]["value"]
    plain = bench("prmbench", "--scores", run)["figures"]["overall"]["value"]  # its data are known, no flag is given
    assert plain != pytest.approx(overall)
    assert bench("curve", run)["points"][-1]["value"] == pytest.approx(overall)
    other = str(tmp_path / "other")
    bench("prmbench", "--model", "scripted:?noise=0.4&logprobs=false", *data, "-k", "4", "-o", other)
    compared = bench("compare", run, other)
    assert compared["first"]["overall"] == pytest.approx(overall)


def critiqued(name: str, votes: list[int | None]) -> SolutionReward:
    analyses = tuple(analysis(None if vote is None else float(vote == -1), vote) for vote in votes)
    steps = [StepReward(step_index=index, reward=0.5, vote=0.5) for index in range(2)]
    steps[1] = steps[1].model_copy(update={"analyses": analyses})
    return SolutionReward(id=name, num_steps=2, first_error=None, steps=tuple(steps))


def bench(*arguments: str) -> Any:
    result = CliRunner().invoke(app, ["bench", *arguments, "--json", "--resamples", "20"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_steps_with_fewer_analyses_are_refused() -> None:
    items = BenchmarkItems((item("a", 1),))
    with pytest.raises(BenchmarkError, match="stopping none"):
        k_curve(PROCESSBENCH, items, [judged("a", [0.9, 0.9], [0.2])], is_critic=False)


@pytest.mark.parametrize("model", ["scripted:?noise=0.3", "critic:scripted:?noise=0.3"])
def test_the_last_point_is_the_runs_own_figure(model: str, excerpts: Path, tmp_path: Path) -> None:
    drawn = ["--stopping", "none", "--all-steps", "-k", "3", "--limit", "6", "-o", str(tmp_path / "run")]
    measured = bench("processbench", "--model", model, "--data", str(excerpts / "processbench"), *drawn)
    points = bench("curve", str(tmp_path / "run"))["points"]
    assert [point["k"] for point in points] == [1, 2, 3]
    assert points[-1]["value"] == pytest.approx(measured["figures"]["average"]["f1"]["value"])
    other = bench("processbench", "--scores", str(tmp_path / "run"), "--threshold", "0.9")
    points = bench("curve", str(tmp_path / "run"), "--threshold", "0.9")["points"]
    assert points[-1]["value"] == pytest.approx(other["figures"]["average"]["f1"]["value"])
