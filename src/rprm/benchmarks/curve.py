"""How a figure grows with K, from one run that drew all its analyses: subsets of the same samples (R-PRM, figure 3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np

from rprm.aggregation import mean
from rprm.benchmarks.benchmark import Benchmark
from rprm.benchmarks.items import BenchmarkItems
from rprm.benchmarks.scores import scores_of
from rprm.benchmarks.tally import DEFAULT_RESAMPLES, Figure, Floats, ResultTable, TableLine, Tally
from rprm.errors import BenchmarkError
from rprm.records import SolutionReward
from rprm.rewarders.critic import reward_of


class Point(NamedTuple):
    """A figure at one K."""

    k: int
    figure: Figure
    tokens: float  #: generated for an item
    lacking: float  #: items of a subset without a full prediction, in the mean: they count as wrong


@dataclass(frozen=True)
class Curve:
    """The headline of a benchmark by K."""

    headline: str
    points: tuple[Point, ...]

    def as_dict(self) -> dict[str, Any]:
        points = [
            {"k": k, **figure.as_dict(), "tokens": tokens, "lacking": lacking}
            for k, figure, tokens, lacking in self.points
        ]
        return {"headline": self.headline, "points": points}

    def table(self) -> ResultTable:
        lines = [
            TableLine(str(k), (figure, f"{tokens:,.0f}", f"{lacking:,.1f}"))
            for k, figure, tokens, lacking in self.points
        ]
        notes = [
            "each K is the mean of the figures of disjoint subsets of the run's analyses; intervals are of a bootstrap "
            "of the items",
            "lacking: items without a full prediction, in the mean of the subsets; they count as wrong",
        ]
        return ResultTable(f"{self.headline} by K", ("K", self.headline, "tokens an item", "lacking"), lines, notes)


def k_curve(
    benchmark: Benchmark, items: BenchmarkItems[Any], rewards: Sequence[SolutionReward], *, is_critic: bool,
    threshold: float = 0.5, num_resamples: int = DEFAULT_RESAMPLES, seed: int = 0, allow_missing: bool = False,
    **options: Any,
) -> Curve:  # fmt: skip
    """The headline at K = 1, 2, 4, ... and the run's own; `options` are those of the benchmark's tally.

    Of K analyses the first k are one subset, the next k another: as many as there are. An item of which a subset has no
    prediction counts as wrong; what the whole run lacks is a `MissingPredictions`, but with `allow_missing`. A
    `BenchmarkError` where the rewards hold no analyses, or not as many of each step that could be judged.
    """
    drawn = (step for reward in rewards for step in (reward.steps[-1:] if is_critic else reward.steps))
    counts = {len(step.analyses) for step in drawn if step.analyses or step.failure is None}
    if len(counts) != 1 or counts == {0}:
        held = ", ".join(map(str, sorted(counts))) or "none"
        what = f"a curve needs as many analyses of each step; the run's steps have {held}"
        raise BenchmarkError(f"{what}: judge with --stopping none --all-steps (and without first-error exit)")
    (number,) = counts
    tokens = sum(one.num_tokens for reward in rewards for step in reward.steps for one in step.analyses)
    points = []
    for k in [number, *(2**power for power in range(number.bit_length()) if 2**power < number)]:
        tallies = []
        for start in range(0, number - k + 1, k):
            some = [_subset(reward, slice(start, start + k), is_critic) for reward in rewards]
            scores, missing = scores_of(some, last_step=benchmark.judged == "last step"), allow_missing or k < number
            tallies.append(benchmark.tally(items, scores, threshold=threshold, allow_missing=missing, **options))
        lacking = [max(one.total_coverage.num_missing, one.total_coverage.num_unjudged) for one in tallies]
        figures, _ = _mean_of(tallies).with_intervals(num_resamples, seed)
        points.append(Point(k, figures[tallies[0].headline], tokens / len(rewards) * k / number, fmean(lacking)))
    return Curve(tallies[0].headline, tuple(sorted(points)))


def _mean_of(tallies: Sequence[Tally]) -> Tally:
    """Tallies of the same items as one, whose figures are the means of theirs."""

    def figures_of(sums: Floats) -> Floats:
        each = tallies[0].figures_of(sums.reshape(*sums.shape[:-1], len(tallies), -1))
        return np.asarray(each.mean(axis=-2))

    return replace(tallies[0], counts=np.concatenate([one.counts for one in tallies], axis=1), figures_of=figures_of)


def _subset(reward: SolutionReward, samples: slice, is_critic: bool) -> SolutionReward:
    """A reward as some of its analyses give it."""
    if is_critic:
        last = reward.steps[-1]
        found = reward_of(
            last.analyses[samples], reward.num_steps, last.num_requested, id=reward.id, label=reward.label,
            failure=last.failure,
        )  # fmt: skip
        # Of a step that was judged alone there is the last one.
        return found.model_copy(update={"steps": found.steps[-len(reward.steps) :]})
    steps = []
    for step in reward.steps:
        some = step.analyses[samples]
        value = mean([one.p_yes for one in some if one.p_yes is not None])
        failure = None if value is not None else step.failure or "none of these analyses reached a verdict"
        steps.append(step.model_copy(update={"reward": value, "analyses": some, "failure": failure}))
    return reward.model_copy(update={"steps": tuple(steps)})
