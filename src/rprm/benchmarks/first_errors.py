"""How ProcessBench measures (arXiv 2412.06559; QwenLM/ProcessBench, `code/run_eval.py`): find the earliest wrong step.

The prediction for a solution is the index of the first step whose score is below the threshold, -1 where none is.
*Error accuracy* is the share of solutions with a wrong step whose prediction is exactly the label; *correct accuracy*
the share of solutions without one that are predicted -1. **F1 is the harmonic mean of these two accuracies**, not the
F1 of precision and recall; it is 0 where both are. The headline is the unweighted mean of the subsets' F1.

Figures: `SUBSET.error_acc`, `SUBSET.correct_acc`, `SUBSET.f1` for each subset at hand, and `average.f1` over them. In a
subset without a single item of one kind that accuracy is undefined, and so are the subset's F1 and the average.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rprm.benchmarks.bootstrap import DEFAULT_RESAMPLES
from rprm.benchmarks.items import BenchmarkItems
from rprm.benchmarks.scores import Scores, StepScores
from rprm.benchmarks.tally import (
    Coverage,
    Figure,
    Floats,
    Measurement,
    ResultTable,
    TableLine,
    Tally,
    named,
    nested,
    optional,
    refuse_lengths,
    refuse_missing,
)
from rprm.errors import BenchmarkError, InputError
from rprm.records import Solution
from rprm.rewarders.base import first_error

#: The subsets, in the order of the tables (arXiv 2412.06559, table 3). On the hub each is a split.
PROCESSBENCH_SUBSETS = ("gsm8k", "math", "olympiadbench", "omnimath")

#: The published threshold (R-PRM, section 4.1).
DEFAULT_THRESHOLD = 0.5

#: Thresholds of a curve: 0.01, 0.02, ..., 0.99.
CURVE_THRESHOLDS = tuple(percent / 100 for percent in range(1, 100))

#: The figures of a subset, and what is counted for them: right and all, among items with and without a wrong step.
_SUBSET_FIGURES = ("error_acc", "correct_acc", "f1")
_NUM_COUNTS = 4


@dataclass(frozen=True, slots=True)
class ProcessBenchItem:
    """A solution with its earliest wrong step (`solution.label`, 0-based; -1: every step is right)."""

    subset: str
    solution: Solution
    label: int
    generator: str | None = None
    final_answer_correct: bool | None = None

    @property
    def id(self) -> str:
        return self.solution.id


def tally_processbench(
    items: BenchmarkItems[ProcessBenchItem],
    scores: Scores,
    *,
    threshold: float = DEFAULT_THRESHOLD,
    allow_missing: bool = False,
) -> Tally:
    """Count a run item by item.

    Args:
        items: the benchmark.
        scores: an item with a step without a score up to its first error has no known first error: it is `unjudged`,
            and counts as predicted wrong. Scores may end before the solution does if the last one is below the
            threshold (the judge's exit at the first error).
        threshold: a step with a lower score is called wrong.
        allow_missing: count items without any score as wrong, whatever their label, instead of refusing.

    Raises:
        MissingPredictions: items have no score at all and `allow_missing` is not set.
        InputError: the scores do not fit the items' steps.
        BenchmarkError: the scores cannot be measured at this threshold.
    """
    scores.check_threshold(threshold)
    predicted = _predictions(items, scores, threshold=threshold, allow_missing=allow_missing)
    right = np.array(
        [
            p_yes is not None and first_error(p_yes, threshold) == item.label
            for item, p_yes in zip(items.items, predicted, strict=True)
        ]
    )
    return _tally(items, predicted, right, threshold)


def _predictions(
    items: BenchmarkItems[ProcessBenchItem], scores: Scores, *, threshold: float | None, allow_missing: bool
) -> list[StepScores | None]:
    """Scores by item, None where it has none at all, checked against it. With `threshold` None they must be whole."""
    if not items.items:
        raise BenchmarkError("there are no items to measure")
    if scores.repeated:
        raise InputError(f"these items are scored twice: {named(scores.repeated)}")
    predicted: list[StepScores | None] = []
    wrong, cut = [], []
    for item in items.items:
        p_yes, num_steps = scores.p_yes.get(item.id), len(item.solution.steps)
        predicted.append(None if p_yes is None or all(score is None for score in p_yes) else p_yes)
        if p_yes is None or len(p_yes) == num_steps:
            continue
        is_cut = len(p_yes) < num_steps
        # An exit at the first error ends with a step that is called wrong; any other ending lost scores.
        if is_cut and threshold is not None and first_error(p_yes[-1:], threshold) == 0:
            continue
        wrong.append(f"{item.id} ({len(p_yes)} scores, {num_steps} steps)")
        cut += [item.id] * is_cut
    if threshold is None and len(cut) == len(wrong) > 0:
        raise BenchmarkError(
            f"the scores of {len(cut)} items end at the first error ({named(cut)}); other thresholds need a score for "
            "each step: judge without first-error exit"
        )
    why = ""
    if cut and threshold is not None:
        why = f" (scores may end early only with one below the threshold {threshold}, at a predicted first error)"
    refuse_lengths(wrong, why)
    missing = [item.id for item, p_yes in zip(items.items, predicted, strict=True) if p_yes is None]
    refuse_missing(missing, [item.id for item in items.items], "no prediction", scores, allow_missing=allow_missing)
    return predicted


def _tally(
    items: BenchmarkItems[ProcessBenchItem],
    predicted: Sequence[StepScores | None],
    right: NDArray[np.bool_],
    threshold: float,
) -> Tally:
    """`right`: (N,) whether each item is predicted right at `threshold`."""
    at_hand = {item.subset for item in items.items}
    subsets = [name for name in PROCESSBENCH_SUBSETS if name in at_hand]
    subsets += sorted(at_hand.difference(subsets))
    has_error = np.array([item.label != -1 for item in items.items])
    counts = np.zeros((len(items.items), len(subsets), _NUM_COUNTS))
    rows = np.arange(len(items.items))
    columns = np.array([subsets.index(item.subset) for item in items.items])
    counts[rows, columns, np.where(has_error, 0, 2)] = right
    counts[rows, columns, np.where(has_error, 1, 3)] = 1
    coverage = dict.fromkeys(subsets, Coverage())
    for item, p_yes in zip(items.items, predicted, strict=True):
        coverage[item.subset] += _coverage(item, p_yes, threshold)
    return Tally(
        benchmark="processbench",
        threshold=threshold,
        ids=tuple(item.id for item in items.items),
        strata=np.array([item.subset for item in items.items]),
        counts=counts.reshape(len(counts), -1),
        outcomes=right.astype(np.int64)[:, None],
        figure_names=(*(f"{subset}.{figure}" for subset in subsets for figure in _SUBSET_FIGURES), "average.f1"),
        figures_of=_figures_of(len(subsets)),
        headline="average.f1",
        coverage=coverage,
        layout=_table,
        tests_items=True,
        missing=tuple(item.id for item, p_yes in zip(items.items, predicted, strict=True) if p_yes is None),
    )


def _coverage(item: ProcessBenchItem, p_yes: StepScores | None, threshold: float) -> Coverage:
    if p_yes is None:
        return Coverage(1, 1, len(item.solution.steps), 0, 1)
    wrong = (index for index, score in enumerate(p_yes) if score is not None and score < threshold)
    needed = p_yes[: next(wrong, len(p_yes)) + 1]
    is_unjudged = first_error(p_yes, threshold) is None
    return Coverage(1, 0, len(needed), sum(score is not None for score in needed), int(is_unjudged))


def _figures_of(num_subsets: int) -> Callable[[Floats], Floats]:
    def figures_of(sums: Floats) -> Floats:
        by_subset = sums.reshape(*sums.shape[:-1], num_subsets, _NUM_COUNTS)
        with np.errstate(invalid="ignore"):  # 0 / 0 is NaN: undefined
            error_acc = by_subset[..., 0] / by_subset[..., 1]
            correct_acc = by_subset[..., 2] / by_subset[..., 3]
            total = error_acc + correct_acc
            f1 = np.where(total == 0.0, 0.0, 2 * error_acc * correct_acc / total)
        figures = np.stack([error_acc, correct_acc, f1], axis=-1).reshape(*sums.shape[:-1], -1)
        return np.asarray(100.0 * np.concatenate([figures, f1.mean(axis=-1, keepdims=True)], axis=-1))

    return figures_of


@dataclass(frozen=True)
class ThresholdCurve:
    """F1 by threshold, in percent.

    Attributes:
        thresholds: T of them.
        f1: subset -> F1 at each, and `average`; None where undefined.
    """

    thresholds: tuple[float, ...]
    f1: dict[str, tuple[float | None, ...]]

    def as_dict(self) -> dict[str, Any]:
        return {"threshold": list(self.thresholds), "f1": {name: list(values) for name, values in self.f1.items()}}

    def table(self) -> ResultTable:
        """The thresholds that are multiples of 0.05, and that with the highest average, which is marked."""
        defined = [(value, index) for index, value in enumerate(self.f1["average"]) if value is not None]
        best = max(defined, key=lambda pair: (pair[0], -abs(self.thresholds[pair[1]] - 0.5)))[1] if defined else None
        lines = []
        for index, threshold in enumerate(self.thresholds):
            if index == best or abs(threshold / 0.05 - round(threshold / 0.05)) <= 1e-6:
                cells = [Figure(values[index]) for values in self.f1.values()]
                lines.append(TableLine(f"{threshold:g}", cells, "bold green" if index == best else ""))
        notes = ["The marked threshold was chosen on the items it is measured on, which flatters it"] if defined else []
        return ResultTable("F1 by threshold", ("threshold", *self.f1), lines, notes)


def threshold_curve(
    items: BenchmarkItems[ProcessBenchItem],
    scores: Scores,
    *,
    thresholds: Sequence[float] = CURVE_THRESHOLDS,
    allow_missing: bool = False,
    **_: Any,
) -> ThresholdCurve:
    """F1 of each subset, and their average, at many thresholds.

    Raises:
        BenchmarkError: rewards depend on the threshold they were judged at: analyses were stopped early, or steps after
            the first error were not judged.
        MissingPredictions: as for `tally_processbench`.
    """
    right, tally = _right_by_threshold(items, scores, thresholds, allow_missing)
    values = _figures_at(tally, right)
    return ThresholdCurve(
        thresholds=tuple(thresholds),
        f1={
            name.removesuffix(".f1"): tuple(optional(value) for value in values[:, index])
            for index, name in enumerate(tally.figure_names)
            if name.endswith(".f1")
        },
    )


@dataclass(frozen=True)
class HeldOut:
    """Figures at thresholds that were chosen on other items.

    Attributes:
        thresholds: the one each half was predicted with; it was chosen on the other half.
        sizes: number of items in each half.
        figures: over all items, each predicted with the threshold of its half. Intervals take the thresholds as given.
    """

    thresholds: tuple[float, float]
    sizes: tuple[int, int]
    figures: Mapping[str, Figure]
    undefined_resamples: dict[str, int]

    def as_dict(self) -> dict[str, Any]:
        halves = zip(self.thresholds, self.sizes, strict=True)
        return {
            "halves": [{"threshold": threshold, "items": size} for threshold, size in halves],
            "figures": nested({name: figure.as_dict() for name, figure in self.figures.items()}),
            "undefined_resamples": self.undefined_resamples,
        }

    def table(self) -> ResultTable:
        subsets = [name.removesuffix(".f1") for name in self.figures if name.endswith(".f1") and name != "average.f1"]
        (first, second), (first_size, second_size) = self.thresholds, self.sizes
        return ResultTable(
            "ProcessBench, threshold chosen on the held-out half",
            ("subset", "error acc", "correct acc", "F1"),
            _lines(self.figures, dict.fromkeys(subsets, ()), ()),
            [
                f"{first_size:,} items predicted at {first:g} and {second_size:,} at {second:g}, each threshold chosen "
                "on the other items; intervals take the thresholds as given"
            ],
        )


def measure_held_out(
    items: BenchmarkItems[ProcessBenchItem],
    scores: Scores,
    *,
    thresholds: Sequence[float] = CURVE_THRESHOLDS,
    allow_missing: bool = False,
    num_resamples: int = DEFAULT_RESAMPLES,
    seed: int = 0,
) -> HeldOut:
    """Measure with the threshold chosen on a held-out half, both ways round.

    Items fall into two halves by a hash of their id, so that an item's half depends on nothing else. On each half the
    threshold with the highest average F1 is chosen (of equal ones the nearest to 0.5, then the lower) and the other
    half is predicted with it: every item is measured, none with a threshold that its label helped to choose.

    Raises:
        BenchmarkError: as for `threshold_curve`; or a half has too few items for its average F1 to be defined.
        MissingPredictions: as for `tally_processbench`.
    """
    right, tally = _right_by_threshold(items, scores, thresholds, allow_missing)
    halves = np.array([hashlib.blake2b(item.id.encode(), digest_size=1).digest()[0] & 1 for item in items.items])
    average = tally.figure_names.index(tally.headline)
    chosen = []
    for half in (0, 1):
        f1 = _figures_at(tally, right, halves != half)[:, average]
        if np.isnan(f1).any():
            raise BenchmarkError(
                "too few items to choose a threshold on one half: each half needs, in each subset, solutions with and "
                "without a wrong step"
            )
        best = np.flatnonzero(f1 >= f1.max() - 1e-9).tolist()
        chosen.append(min(best, key=lambda index: (abs(thresholds[index] - 0.5), thresholds[index])))
    of_item = np.where(halves == 0, *chosen)
    counts = tally.counts.copy()
    counts[:, 0::2] = counts[:, 1::2] * right[np.arange(len(of_item)), of_item][:, None]
    figures, undefined = replace(tally, counts=counts).with_intervals(num_resamples, seed)
    return HeldOut(
        thresholds=(thresholds[chosen[0]], thresholds[chosen[1]]),
        sizes=(int((halves == 0).sum()), int((halves == 1).sum())),
        figures=figures,
        undefined_resamples=undefined,
    )


def _right_by_threshold(
    items: BenchmarkItems[ProcessBenchItem], scores: Scores, thresholds: Sequence[float], allow_missing: bool
) -> tuple[NDArray[np.bool_], Tally]:
    """(N, T) whether each item is predicted right at each threshold; and a tally for its figures.

    The first step below t is the label exactly if the label's score is below t and none before it is: the thresholds
    that predict an item right are one interval, (score of the label, lowest score before it], and for an item without a
    wrong step (-inf, lowest score]. An item with a step without a score up to there is predicted right at none.
    """
    if scores.settled_at is not None:
        raise BenchmarkError(
            f"early stopping settled these rewards at the threshold {scores.settled_at}; other thresholds need the "
            "mean of all analyses: judge without early stopping"
        )
    if not thresholds:
        raise BenchmarkError("give at least one threshold")
    for threshold in thresholds:
        scores.check_threshold(threshold)
    predicted = _predictions(items, scores, threshold=None, allow_missing=allow_missing)
    above = np.full(len(predicted), np.inf)
    up_to = np.full(len(predicted), -np.inf)
    for row, (item, p_yes) in enumerate(zip(items.items, predicted, strict=True)):
        if p_yes is None:
            continue
        read = p_yes if item.label == -1 else p_yes[: item.label + 1]
        known = [score for score in read if score is not None]
        if len(known) < len(read):
            continue
        above[row] = -np.inf if item.label == -1 else known.pop()
        up_to[row] = min(known, default=np.inf)
    grid = np.array(thresholds)
    right = (above[:, None] < grid) & (grid <= up_to[:, None])
    return right, _tally(items, predicted, right[:, 0], thresholds[0])


def _figures_at(tally: Tally, right: NDArray[np.bool_], among: NDArray[np.bool_] | None = None) -> Floats:
    """(T, F) figures for each column of `right` (N, T), over the items `among` (all)."""
    chosen = slice(None) if among is None else among
    counts, right = tally.counts[chosen], right[chosen]
    # The odd columns say of which kind an item is; the even ones count it if it is predicted right.
    kinds = counts[:, 1::2]
    sums = np.empty((right.shape[1], counts.shape[1]))
    sums[:, 1::2] = kinds.sum(axis=0)
    sums[:, 0::2] = right.T.astype(np.float64) @ kinds
    return tally.figures_of(sums)


def _table(measured: Measurement) -> ResultTable:
    sizes = {subset: (f"{coverage.num_items:,}",) for subset, coverage in measured.coverage.items()}
    return ResultTable(
        f"ProcessBench at threshold {measured.threshold:g}",
        ("subset", "items", "error acc", "correct acc", "F1"),
        _lines(measured.figures, sizes, (f"{measured.total_coverage.num_items:,}",)),
        ["F1 is the harmonic mean of the two accuracies; the average is over the subsets shown"],
    )


def _lines(
    figures: Mapping[str, Figure], sizes: Mapping[str, tuple[str, ...]], total: tuple[str, ...]
) -> list[TableLine | None]:
    """A line a subset, with what stands before its figures; then the average."""
    return [
        *(
            TableLine(name, [*size, *(figures[f"{name}.{figure}"] for figure in _SUBSET_FIGURES)])
            for name, size in sizes.items()
        ),
        None,
        TableLine("average", (*total, "", "", figures["average.f1"]), "bold"),
    ]
