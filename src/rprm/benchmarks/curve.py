"""How a figure grows with K, from one run that drew all its analyses: subsets of the same samples (R-PRM, figure 3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from rprm.aggregation import mean
from rprm.benchmarks.benchmark import Benchmark
from rprm.benchmarks.items import BenchmarkItems
from rprm.benchmarks.scores import scores_of
from rprm.benchmarks.tally import DEFAULT_RESAMPLES, Figure, ResultTable, TableLine
from rprm.errors import BenchmarkError
from rprm.records import SolutionReward
from rprm.rewarders.critic import reward_of


@dataclass(frozen=True)
class Curve:
    """The headline of a benchmark by K, with its interval and the tokens generated for an item."""

    headline: str
    points: tuple[tuple[int, Figure, float], ...]

    def as_dict(self) -> dict[str, Any]:
        points = [{"k": k, **figure.as_dict(), "tokens": tokens} for k, figure, tokens in self.points]
        return {"headline": self.headline, "points": points}

    def table(self) -> ResultTable:
        lines = [TableLine(str(k), (figure, f"{tokens:,.0f}")) for k, figure, tokens in self.points]
        note = (
            "each K is the mean over disjoint subsets of the run's analyses; intervals are of a bootstrap of the items"
        )
        return ResultTable(f"{self.headline} by K", ("K", self.headline, "tokens an item"), lines, [note])


def k_curve(
    benchmark: Benchmark, items: BenchmarkItems[Any], rewards: Sequence[SolutionReward], *, is_critic: bool,
    threshold: float = 0.5, num_resamples: int = DEFAULT_RESAMPLES, seed: int = 0, **options: Any,
) -> Curve:  # fmt: skip
    """The headline at K = 1, 2, 4, ... and the run's own; `options` are those of the benchmark's tally.

    Of K analyses the first k are one subset, the next k another: as many as there are. A `BenchmarkError` where the
    rewards hold no analyses, or not as many of each step.
    """
    counts = {len(step.analyses) for reward in rewards for step in reward.steps[-1:] * is_critic or reward.steps}
    if len(counts) != 1 or counts == {0}:
        held = ", ".join(map(str, sorted(counts))) or "none"
        what = f"a curve needs as many analyses of each step; the run's steps have {held}"
        raise BenchmarkError(f"{what}: judge with --stopping none --all-steps (and without first-error exit)")
    (number,) = counts
    points = []
    for k in [*(2**power for power in range(number.bit_length()) if 2**power < number), number]:
        tallies = []
        for start in range(0, number - k + 1, k):
            some = [_subset(reward, slice(start, start + k), is_critic) for reward in rewards]
            scores = scores_of(some, last_step=benchmark.judged == "last step")
            tallies.append(benchmark.tally(items, scores, threshold=threshold, **options))
        counted = replace(tallies[0], counts=np.mean([tally.counts for tally in tallies], axis=0))
        figures, _ = counted.with_intervals(num_resamples, seed)
        tokens = sum(one.num_tokens for reward in rewards for step in reward.steps for one in step.analyses)
        points.append((k, figures[counted.headline], tokens / len(rewards) * k / number))
    return Curve(tallies[0].headline, tuple(points))


def _subset(reward: SolutionReward, samples: slice, is_critic: bool) -> SolutionReward:
    """A reward as some of its analyses give it."""
    if is_critic:
        last = reward.steps[-1]
        return reward_of(
            last.analyses[samples], reward.num_steps, last.num_requested, id=reward.id, label=reward.label,
            failure=last.failure,
        )  # fmt: skip
    steps = []
    for step in reward.steps:
        some = step.analyses[samples]
        value = mean([one.p_yes for one in some if one.p_yes is not None])
        failure = None if value is not None else step.failure or "none of these analyses reached a verdict"
        steps.append(step.model_copy(update={"reward": value, "analyses": some, "failure": failure}))
    return reward.model_copy(update={"steps": tuple(steps)})
