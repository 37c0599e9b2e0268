"""ProcessBench (arXiv 2412.06559; QwenLM/ProcessBench, `code/run_eval.py`): find the earliest wrong step.

The prediction for a solution is the index of the first step whose score is below the threshold, -1 where none is; of a
critic, what most of its critiques name.
Figures of each subset at hand: `error_acc`, the share of solutions with a wrong step whose prediction is exactly the
label; `correct_acc`, of those without one that are predicted -1; `f1`, their harmonic mean, not the F1 of precision and
recall. `average.f1` is the unweighted mean over the subsets. What rests on no item of a kind is undefined.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from sys import intern
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from rprm.benchmarks.benchmark import Benchmark, Flag, Measurement, nested
from rprm.benchmarks.items import BenchmarkItems, StoredSolution, Texts, open_sources, read_items
from rprm.benchmarks.position import half_of
from rprm.benchmarks.scores import Scores, named
from rprm.benchmarks.tally import DEFAULT_RESAMPLES, Coverage, Figure, Floats, ResultTable, TableLine, Tally, accuracies
from rprm.errors import BenchmarkError, InputError
from rprm.reading import AnyText, RowModel, Text, checked
from rprm.records import Solution
from rprm.rewarders.base import first_error

PROCESSBENCH_HUB = "Qwen/ProcessBench"  #: the data set of the benchmark's authors

#: The subsets, in the order of the tables (arXiv 2412.06559, table 3). On the hub each is a split.
PROCESSBENCH_SUBSETS = ("gsm8k", "math", "olympiadbench", "omnimath")

CURVE_THRESHOLDS = tuple(percent / 100 for percent in range(1, 100))  #: 0.01, 0.02, ..., 0.99


@dataclass(frozen=True, slots=True)
class ProcessBenchItem:
    """A solution with its earliest wrong step (`label`, 0-based; -1: every step is right)."""

    subset: str
    solution: Solution | StoredSolution
    label: int
    generator: Any = None
    final_answer_correct: Any = None

    @property
    def id(self) -> str:
        return self.solution.id


class _ProcessBenchRow(RowModel):
    id: Text
    problem: Text
    steps: Annotated[list[AnyText], Field(min_length=1)]
    label: int


def read_processbench(
    data: str | Path = PROCESSBENCH_HUB, *, revision: str | None = None
) -> BenchmarkItems[ProcessBenchItem]:
    """Read ProcessBench; an `InputError` where nothing can be read at all.

    `data` is a folder with `gsm8k.jsonl`, `math.jsonl`, ... (or `.json`, `.jsonl.gz`, `.json.gz`), some of them; or one
    file, whose items belong to the subset of their id (`math-12`) or else of the file's name; or a hub data set whose
    splits are the subsets.
    """
    splits = {subset: {"split": subset} for subset in PROCESSBENCH_SUBSETS}
    sources = open_sources(data, splits, revision)
    texts = Texts()
    return read_items((source, partial(_item, texts, subset, source.path)) for subset, source in sources)


def _item(texts: Texts, subset: str | None, path: Path, value: Any, _: int) -> ProcessBenchItem:
    row = checked(_ProcessBenchRow, value)
    if not -1 <= row.label < len(row.steps):
        wanted = f"the 0-based index of the earliest wrong step (0 to {len(row.steps) - 1}), or -1 for none"
        raise InputError(f"'label' must be {wanted}; not {row.label}")
    if subset is None:
        prefix = re.match(rf"({'|'.join(PROCESSBENCH_SUBSETS)})[-_]\d+$", row.id)
        subset = prefix[1] if prefix else path.name.split(".")[0]
    solution = Solution(id=row.id, problem=row.problem, steps=tuple(row.steps), label=row.label)
    generator, is_right = value.get("generator"), value.get("final_answer_correct")
    return ProcessBenchItem(intern(subset), texts.put(solution), row.label, generator, is_right)


def tally_processbench(
    items: BenchmarkItems[ProcessBenchItem], scores: Scores, *, threshold: float | Sequence[float] = 0.5,
    allow_missing: bool = False,
) -> Tally:  # fmt: skip
    """Count a run item by item: a step with a score below the threshold is called wrong (0.5 in R-PRM, section 4.1).

    An item with a step without a score up to its first error is `unjudged`, and counts as predicted wrong. Scores may
    end before the solution does if the last one is below the threshold (exit at the first error). Of T thresholds,
    for which every step must be judged in full, `outcomes` (N, T) are at each, and all else is at the first.

    `MissingPredictions` where items have no score at all (with `allow_missing` they count as wrong), `InputError` where
    scores do not fit the items' steps, `BenchmarkError` where they do not hold at the thresholds.
    """
    is_several = np.ndim(threshold) > 0
    thresholds: NDArray[np.float64] = np.atleast_1d(threshold)
    num_steps = {item.id: item.solution.num_steps for item in items.items}
    if is_several and scores.first_errors:
        raise BenchmarkError(
            "a critic names first errors itself, no threshold decides them: leave out what tries others"
        )
    if is_several and scores.settled_at is not None:
        what = f"early stopping settled these rewards at {scores.settled_at}; others need the mean of all analyses"
        raise BenchmarkError(f"{what}: judge without early stopping")
    cut = [name for name, number in num_steps.items() if len(scores.p_yes.get(name, range(number))) < number]
    if is_several and cut:
        ended = f"the scores of {len(cut)} items end at the first error ({named(cut)})"
        raise BenchmarkError(f"{ended}; other thresholds need a score for each step: judge without first-error exit")
    for each in () if scores.first_errors else thresholds.tolist():
        scores.check_threshold(each)
    if not items.items or not len(thresholds):
        raise BenchmarkError("there are no items to measure, or no thresholds to measure at")
    first = float(thresholds[0])
    if scores.repeated:
        raise InputError(f"these items are scored twice: {named(scores.repeated)}")
    # An exit at the first error ends with a step that is called wrong; any other ending lost scores.
    why = f"scores may end early only at a predicted first error, below the threshold {first}"
    p_yes = scores.of_items(num_steps, why, lambda found: first_error(found[-1:], first) == 0)
    missing = tuple(name for name, found in p_yes.items() if set(found) == {None})
    scores.refuse_missing(missing, num_steps, "no prediction", allow_missing=allow_missing)
    strata = [item.subset for item in items.items]
    subsets = sorted(set(strata), key=lambda name: ((*PROCESSBENCH_SUBSETS, name).index(name), name))
    coverage = dict.fromkeys(subsets, Coverage())
    # The thresholds that predict an item right are one interval, (score of the label, lowest score before it], for an
    # item without a wrong step (-inf, lowest score]; where a step up to there has no score there are none.
    intervals = np.full((len(strata), 2), (np.inf, -np.inf))
    for place, item in enumerate(items.items):
        found, label = p_yes[item.id], item.label
        errors = (index for index, score in enumerate(found) if score is not None and score < first)
        needed = found[: next(errors, len(found)) + 1]
        lost = needed.count(None)
        coverage[item.subset] += Coverage(1, int(lost == len(found)), len(needed), len(needed) - lost, int(lost > 0))
        known = [score for score in found[: label + 1 or None] if score is not None]
        if len(known) == (label + 1 or len(found)):
            intervals[place] = -np.inf if label == -1 else known.pop(), min(known, default=np.inf)
    right = (intervals[:, :1] < thresholds) & (thresholds <= intervals[:, 1:])
    if scores.first_errors:
        right = np.array([[scores.first_errors.get(item.id) == item.label] for item in items.items])
    # Of each subset (right, all) among the items with a wrong step, then among those without.
    counts = np.zeros((len(strata), len(subsets), 2, 2))
    cells = range(len(strata)), [*map(subsets.index, strata)], [int(item.label == -1) for item in items.items]
    counts[cells] = np.stack([right[:, 0], np.ones(len(strata))], axis=1)
    return Tally(
        benchmark="processbench", threshold=first, ids=tuple(num_steps), strata=np.array(strata),
        counts=counts.reshape(len(strata), -1), outcomes=right.astype(np.int64),
        figure_names=(*(f"{subset}.{name}" for subset in subsets for name in _NAMES), "average.f1"),
        figures_of=_figures_of, headline="average.f1", coverage=coverage, layout=_measured, tests_items=True,
        missing=missing,
    )  # fmt: skip


#: The figures of a subset.
_NAMES = ("error_acc", "correct_acc", "f1")


def _figures_of(sums: Floats) -> Floats:
    """(..., 4 for each subset) -> (..., 3 for each subset, and the average)."""
    figures = accuracies(sums.reshape(*sums.shape[:-1], -1, 2, 2))
    average = figures[..., 2].mean(axis=-1, keepdims=True)
    return np.asarray(100.0 * np.concatenate([figures.reshape(*sums.shape[:-1], -1), average], axis=-1))


@dataclass(frozen=True)
class ThresholdCurve:
    """F1 in percent at each threshold, by subset and `average`; None where undefined."""

    thresholds: tuple[float, ...]
    f1: dict[str, tuple[float | None, ...]]

    def as_dict(self) -> dict[str, Any]:
        return {"threshold": list(self.thresholds), "f1": {name: list(values) for name, values in self.f1.items()}}

    def table(self) -> ResultTable:
        """The thresholds that are multiples of 0.05, and that with the highest average, which is marked."""
        rows = list(zip(self.thresholds, *self.f1.values(), strict=True))
        averages = {row[0]: row[-1] for row in rows if row[-1] is not None}
        best = max(averages, key=lambda threshold: (averages[threshold], -abs(threshold - 0.5)), default=None)
        lines = [
            TableLine(f"{threshold:g}", [*map(Figure, values)], "bold green" if threshold == best else "")
            for threshold, *values in rows
            if threshold == best or abs(threshold / 0.05 - round(threshold / 0.05)) <= 1e-6
        ]
        notes = ["The marked threshold was chosen on the items it is measured on, which flatters it"] * bool(averages)
        return ResultTable("F1 by threshold", ("threshold", *self.f1), lines, notes)


def threshold_curve(
    items: BenchmarkItems[ProcessBenchItem], scores: Scores, *, thresholds: Sequence[float] = CURVE_THRESHOLDS,
    allow_missing: bool = False, **_: Any,
) -> ThresholdCurve:  # fmt: skip
    """F1 of each subset, and their average, at many thresholds; errors as for `tally_processbench`."""
    tally = tally_processbench(items, scores, threshold=thresholds, allow_missing=allow_missing)
    curves = zip(tally.figure_names, _figures_at(tally).T.tolist(), strict=True)
    known = {name: tuple(None if math.isnan(value) else value for value in values) for name, values in curves}
    f1 = {name.removesuffix(".f1"): values for name, values in known.items() if name.endswith(".f1")}
    return ThresholdCurve(tuple(thresholds), f1)


@dataclass(frozen=True)
class HeldOut:
    """Figures of all items at the threshold of their half, of so many items, which was chosen on the other half."""

    thresholds: tuple[float, float]
    sizes: tuple[int, int]
    figures: Mapping[str, Figure]
    undefined_resamples: dict[str, int]

    def as_dict(self) -> dict[str, Any]:
        halves = zip(self.thresholds, self.sizes, strict=True)
        return {
            "halves": [{"threshold": threshold, "items": size} for threshold, size in halves],
            "figures": nested(self.figures), "undefined_resamples": self.undefined_resamples,
        }  # fmt: skip

    def table(self) -> ResultTable:
        (first, second), (first_size, second_size) = self.thresholds, self.sizes
        note = (
            f"{first_size:,} items predicted at {first:g} and {second_size:,} at {second:g}, each threshold chosen on "
            "the other items; intervals take the thresholds as given"
        )
        return _table("ProcessBench, threshold chosen on the held-out half", self.figures, note)


def measure_held_out(
    items: BenchmarkItems[ProcessBenchItem], scores: Scores, *, allow_missing: bool = False,
    num_resamples: int = DEFAULT_RESAMPLES, seed: int = 0,
) -> HeldOut:  # fmt: skip
    """Measure with the threshold chosen on a held-out half, both ways round.

    Items fall into two halves by a hash of their id. On each half the threshold with the highest average F1 is chosen
    (of equal ones the nearest to 0.5, then the lower) and the other half is predicted with it. Errors are those of
    `threshold_curve`, and a `BenchmarkError` where a half has too few items for its average F1 to be defined.
    """
    tally = tally_processbench(items, scores, threshold=CURVE_THRESHOLDS, allow_missing=allow_missing)
    halves = np.array([half_of(item.id) for item in items.items])
    chosen = []
    for half in (0, 1):
        others = halves != half
        f1 = _figures_at(replace(tally, counts=tally.counts[others], outcomes=tally.outcomes[others]))[:, -1]
        if np.isnan(f1).any():
            what = "each half needs, in each subset, solutions with and without a wrong step"
            raise BenchmarkError(f"too few items to choose a threshold on one half: {what}")
        best = np.flatnonzero(f1 >= f1.max() - 1e-9).tolist()
        chosen.append(min(best, key=lambda index: (abs(CURVE_THRESHOLDS[index] - 0.5), index)))
    counts = tally.counts.copy()
    hits = tally.outcomes[np.arange(len(halves)), np.take(chosen, halves)]
    counts[:, 0::2] = counts[:, 1::2] * hits[:, None]
    figures, undefined = replace(tally, counts=counts).with_intervals(num_resamples, seed)
    first, second = (CURVE_THRESHOLDS[index] for index in chosen)
    num_second = int(halves.sum())
    return HeldOut((first, second), (len(halves) - num_second, num_second), figures, undefined)


def _figures_at(tally: Tally) -> Floats:
    """(T, F) figures at each of the tally's thresholds."""
    # The odd columns say of which kind an item is; the even ones count it if it is predicted right.
    kinds = tally.counts[:, 1::2]
    hits = tally.outcomes.T.astype(np.float64) @ kinds
    pairs = np.stack([hits, np.broadcast_to(kinds.sum(axis=0), hits.shape)], axis=-1)
    return tally.figures_of(pairs.reshape(len(hits), -1))


def _table(
    title: str, figures: Mapping[str, Figure], note: str, coverage: Mapping[str, Coverage] | None = None
) -> ResultTable:
    """A line a subset, with its size before its figures where that is given; then the average."""
    sizes = {name: [f"{one.num_items:,}"] for name, one in coverage.items()} if coverage else {}
    total = [f"{sum(one.num_items for one in coverage.values()):,}"] if coverage else []
    *subsets, _ = [name.removesuffix(".f1") for name in figures if name.endswith(".f1")]
    lines = [TableLine(name, [*sizes.get(name, []), *(figures[f"{name}.{one}"] for one in _NAMES)]) for name in subsets]
    average = TableLine("average", (*total, "", "", figures["average.f1"]), "bold")
    columns = ("subset", *["items"] * bool(coverage), "error acc", "correct acc", "F1")
    return ResultTable(title, columns, [*lines, None, average], [note])


def _measured(measured: Measurement) -> ResultTable:
    note = "F1 is the harmonic mean of the two accuracies; the average is over the subsets shown"
    how = "by majority" if measured.scores.first_errors else f"at threshold {measured.threshold:g}"
    return _table(f"ProcessBench {how}", measured.figures, note, measured.coverage)


PROCESSBENCH = Benchmark(
    name="processbench",
    help="""ProcessBench: error accuracy, correct accuracy and their harmonic mean (F1) for each subset; the average F1.

    --curve and --held-out judge every step in full, as --stopping none --all-steps does.
    """,
    read=read_processbench,
    tally=tally_processbench,
    hub=PROCESSBENCH_HUB,
    group="subset",
    judged="first error",
    right=lambda item: (
        [True] * (item.solution.num_steps if item.label == -1 else item.label) + [False] * (item.label >= 0)
    ),
    flags={
        "held_out": Flag("Also with the threshold chosen on the other half of the items.", further=measure_held_out),
        "curve": Flag("F1 at every threshold too.", further=threshold_curve),
    },
)
