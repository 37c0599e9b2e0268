"""Labelled steps as a benchmark: is each step called as it is labelled?

ProcessBench asks for the first error of whole solutions; this asks about single steps, so that a model can be measured
on the validation part of its own training data, round after round, and R-PRMs and classifiers on the same steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rprm.benchmarks.bootstrap import DEFAULT_RESAMPLES
from rprm.benchmarks.scores import Scores, Usage
from rprm.benchmarks.tally import Coverage, Floats, Measurement, Tally, measurement, refuse_missing
from rprm.errors import BenchmarkError
from rprm.ledger import Ledger
from rprm.reading import Rejected, SourceInfo
from rprm.records import LabelledStep, Solution, SolutionReward, StepReward
from rprm.rewarders.base import StepRewarder, first_error

#: The benchmark's name in manifests.
BENCHMARK = "steps"

_FIGURES = ("wrong_acc", "correct_acc", "f1", "accuracy", "wellformed")
#: Right and all, among steps labelled wrong and labelled correct; verdicts reached unasked, and analyses.
_NUM_COUNTS = 6


@dataclass(frozen=True)
class StepItems:
    """Labelled steps to measure on; `sources` says where they came from."""

    items: tuple[LabelledStep, ...]
    rejected: tuple[Rejected, ...] = ()
    sources: tuple[SourceInfo, ...] = ()

    @property
    def solutions(self) -> list[Solution]:
        """What to judge, in order: each step as the last of its solution."""
        return [
            Solution(
                id=item.id,
                problem=item.problem,
                steps=item.steps,
                label=-1 if item.label else item.step_index,
            )
            for item in self.items
        ]


class LastStepRewarder(StepRewarder):
    """Rewards the last step of each solution alone; the steps before it are only read."""

    def __init__(self, rewarder: StepRewarder) -> None:
        self.rewarder = rewarder

    @property
    def threshold(self) -> float:
        return self.rewarder.threshold

    @property
    def concurrency(self) -> int:
        return self.rewarder.concurrency

    def in_full(self) -> LastStepRewarder:
        return LastStepRewarder(self.rewarder.in_full())

    def is_wrong(self, step: StepReward) -> bool:
        return self.rewarder.is_wrong(step)

    async def start(self) -> dict[str, Any]:
        return await self.rewarder.start()

    async def judge(self, solution: Solution, ledger: Ledger | None = None) -> SolutionReward:
        last = len(solution.steps) - 1
        step = await self.rewarder.judge_step(solution.problem, solution.steps, last, ledger)
        alone = first_error([step.reward], self.threshold)
        return SolutionReward(
            id=solution.id,
            num_steps=len(solution.steps),
            first_error=last if alone == 0 else alone,
            steps=(step,),
            label=solution.label,
        )

    async def judge_step(
        self, problem: str, steps: Sequence[str], step_index: int, ledger: Ledger | None = None
    ) -> StepReward:
        return await self.rewarder.judge_step(problem, steps, step_index, ledger)

    async def aclose(self) -> None:
        await self.rewarder.aclose()


@dataclass(frozen=True)
class StepScoresWithForm:
    """Scores of labelled steps, and how many of the analyses behind each reached a verdict unasked.

    Attributes:
        scores: one score a step.
        form: step id -> (analyses with a verdict of their own, analyses).
    """

    scores: Scores
    form: dict[str, tuple[int, int]]


def step_scores(rewards: Sequence[SolutionReward], *, settled_at: float | None = None) -> StepScoresWithForm:
    """The scores of steps that were judged alone (`LastStepRewarder`)."""
    p_yes, form, failures = {}, {}, {}
    tokens = uncovered = analyses = without_verdict = forced = 0
    for reward in rewards:
        (step,) = reward.steps
        p_yes[reward.id] = (step.reward,)
        if step.failure is not None:
            failures[reward.id] = step.failure
        num_forced = sum(analysis.forced for analysis in step.analyses)
        form[reward.id] = (len(step.analyses) - step.num_without_verdict - num_forced, len(step.analyses))
        tokens += sum(analysis.num_tokens for analysis in step.analyses)
        uncovered += step.reward is None
        analyses += len(step.analyses)
        without_verdict += step.num_without_verdict
        forced += num_forced
    usage = Usage(tokens, len(p_yes), uncovered, analyses, without_verdict, forced)
    return StepScoresWithForm(Scores(p_yes, settled_at=settled_at, usage=usage, failures=failures), form)


def measure_steps(
    items: StepItems,
    judged: StepScoresWithForm,
    *,
    threshold: float = 0.5,
    allow_missing: bool = False,
    num_resamples: int = DEFAULT_RESAMPLES,
    seed: int = 0,
) -> Measurement:
    """Measure a run on labelled steps.

    Figures: `wrong_acc` and `correct_acc` (share of the steps labelled so that are called so), `f1` (their harmonic
    mean, as in ProcessBench), `accuracy` (of all steps), `wellformed` (share of the analyses that reached a verdict
    unasked; of a rewarder that writes none, undefined), and `SOURCE.accuracy` for each source of steps.

    Args:
        items: the steps.
        judged: their scores.
        threshold: a step with a lower score is called wrong.
        allow_missing: count steps without a score as called wrongly, instead of refusing.
        num_resamples: for the intervals; steps are drawn within each source.
        seed: of the resamples.

    Raises:
        MissingPredictions: steps have no score and `allow_missing` is not set.
        BenchmarkError: there is nothing to measure, or the scores cannot be measured at this threshold.
    """
    tally = tally_steps(items, judged, threshold=threshold, allow_missing=allow_missing)
    return measurement(tally, items, judged.scores, num_resamples=num_resamples, seed=seed)


def tally_steps(
    items: StepItems, judged: StepScoresWithForm, *, threshold: float = 0.5, allow_missing: bool = False
) -> Tally:
    """Count a run step by step, as `measure_steps` does; `compare` takes two of these."""
    if not items.items:
        raise BenchmarkError("there are no labelled steps to measure")
    judged.scores.check_threshold(threshold)
    scores = [judged.scores.p_yes.get(item.id, (None,))[0] for item in items.items]
    missing = [item.id for item, score in zip(items.items, scores, strict=True) if score is None]
    refuse_missing(missing, [item.id for item in items.items], "no score", judged.scores, allow_missing=allow_missing)
    sources = sorted({item.source or "steps" for item in items.items})
    counts = np.zeros((len(items.items), _NUM_COUNTS + 2 * len(sources)))
    right = np.zeros(len(items.items), dtype=np.int64)
    coverage = {source: Coverage(0, 0, 0, 0) for source in sources}
    for row, (item, score) in enumerate(zip(items.items, scores, strict=True)):
        right[row] = score is not None and (score >= threshold) is item.label
        kind = 2 if item.label else 0
        counts[row, kind : kind + 2] = right[row], 1
        counts[row, 4:6] = judged.form.get(item.id, (0, 0))
        column = _NUM_COUNTS + 2 * sources.index(item.source or "steps")
        counts[row, column : column + 2] = right[row], 1
        coverage[item.source or "steps"] += Coverage(1, int(score is None), 1, int(score is not None))
    return Tally(
        benchmark=BENCHMARK,
        threshold=threshold,
        ids=tuple(item.id for item in items.items),
        strata=np.array([item.source or "steps" for item in items.items]),
        counts=counts,
        outcomes=right[:, None],
        figure_names=(*_FIGURES, *(f"{source}.accuracy" for source in sources)),
        figures_of=_figures_of,
        headline="f1",
        coverage=coverage,
        missing=tuple(missing),
    )


def _figures_of(sums: Floats) -> Floats:
    """(..., C) -> (..., 5 + sources)."""
    pairs = sums.reshape(*sums.shape[:-1], -1, 2)
    with np.errstate(invalid="ignore"):  # 0 / 0 is NaN: undefined
        shares = pairs[..., 0] / pairs[..., 1]
        wrong_acc, correct_acc, wellformed = (shares[..., index] for index in range(3))
        total = wrong_acc + correct_acc
        f1 = np.where(total == 0.0, 0.0, 2 * wrong_acc * correct_acc / total)
        accuracy = (pairs[..., 0, 0] + pairs[..., 1, 0]) / (pairs[..., 0, 1] + pairs[..., 1, 1])
    figures = np.stack([wrong_acc, correct_acc, f1, accuracy, wellformed], axis=-1)
    return np.asarray(100.0 * np.concatenate([figures, shares[..., 3:]], axis=-1))
