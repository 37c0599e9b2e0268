"""What every benchmark is measured from: counts of each item, such that every figure is a function of their sum.

Intervals are of a bootstrap by item (Efron and Tibshirani 1993, chapters 6 and 13). How often each distinct row of
counts is drawn is multinomial, so that resamples cost one matrix product.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rprm.errors import BenchmarkError

Floats = NDArray[np.float64]
DEFAULT_RESAMPLES = 2_000
MAX_CHUNK = 4_000_000  #: numbers held at once: memory stays flat however many resamples or items


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure in percent with its 95% bootstrap interval; None where undefined."""

    value: float | None
    low: float | None = None
    high: float | None = None

    def as_dict(self) -> dict[str, float | None]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Coverage:
    """How much of what was to be predicted was."""

    num_items: int = 0
    num_missing: int = 0  #: without any score, which count as wrong; for PRMBench also with a step without one
    steps_needed: int = 0  #: all; for ProcessBench those up to the predicted first error
    steps_scored: int = 0
    num_unjudged: int = 0  #: ProcessBench: items whose first error is not known, as a step up to there has no score

    @property
    def percent(self) -> float:
        return 100.0 * self.steps_scored / self.steps_needed

    def __add__(self, other: Coverage) -> Coverage:
        return Coverage(
            self.num_items + other.num_items, self.num_missing + other.num_missing,
            self.steps_needed + other.steps_needed, self.steps_scored + other.steps_scored,
            self.num_unjudged + other.num_unjudged,
        )  # fmt: skip

    def as_dict(self) -> dict[str, Any]:
        return {
            "items": self.num_items, "missing": self.num_missing, "unjudged": self.num_unjudged,
            "steps_needed": self.steps_needed, "steps_scored": self.steps_scored, "coverage": self.percent,
        }  # fmt: skip


@dataclass(frozen=True)
class TableLine:
    """A line of a table: its name and cells, and rich's style."""

    name: str
    cells: Sequence[str | Figure]
    style: str = ""


@dataclass(frozen=True)
class ResultTable:
    """A table to show; a line that is None ends a section, `notes` are the sentences below the table."""

    title: str
    columns: Sequence[str]
    lines: Sequence[TableLine | None]
    notes: Sequence[str] = ()


@dataclass(frozen=True, eq=False, kw_only=True)
class Tally:
    """A run's predictions on a benchmark, counted item by item."""

    benchmark: str
    threshold: float  #: below it a step is called wrong
    ids: tuple[str, ...]  #: the items, N of them
    strata: NDArray[np.str_]  #: (N,) the subset or class of each, within which resampling is done
    counts: Floats  #: (N, C)
    outcomes: NDArray[np.int64]  #: (N, D) what the headline reads of each; two runs are discordant where it differs
    figure_names: tuple[str, ...]  #: F of them; a dot nests: `math.f1` is the F1 of `math`
    figures_of: Callable[[Floats], Floats]  #: sums of counts (..., C) -> percent (..., F), NaN where undefined
    headline: str  #: the figure that runs are compared by
    coverage: Mapping[str, Coverage]  #: by stratum
    layout: Callable[[Any], ResultTable]  #: of a `Measurement`
    missing: tuple[str, ...] = ()  #: ids that are counted as wrong for want of a prediction
    notes: tuple[str, ...] = ()  #: what a reader of the figures must know, in sentences
    tests_items: bool = False  #: outcomes say whether an item is predicted right: runs take McNemar's test
    least: float | None = None  #: the lowest score of a step that is called right, where that is not the threshold
    counted_with: Mapping[str, str] = field(default_factory=dict)  #: ids of items without a row -> whose row they share
    false_alarms: Mapping[str, int] = field(default_factory=dict)  #: see `scores.with_false_alarms`

    @property
    def total_coverage(self) -> Coverage:
        return sum(self.coverage.values(), Coverage())

    @property
    def values(self) -> Floats:
        """(F,) the figures themselves."""
        return self.figures_of(self.counts.sum(axis=0))

    @property
    def by_name(self) -> dict[str, float | None]:
        """The figures; None where undefined."""
        return dict(zip(self.figure_names, map(optional, self.values), strict=True))

    def with_intervals(self, num_resamples: int, seed: int) -> tuple[dict[str, Figure], dict[str, int]]:
        """Figures by name with their intervals, and how many resamples left a figure undefined (0 not listed)."""
        sums = resampled_sums(self.counts, self.strata, num_resamples=num_resamples, seed=seed)
        resampled = np.concatenate([self.figures_of(chunk) for chunk in sums])
        return named_figures(self.figure_names, self.values, resampled)


def resampled_sums(counts: Floats, strata: NDArray[np.str_], *, num_resamples: int, seed: int) -> Iterator[Floats]:
    """Sums of counts (N, C) over items drawn within each stratum (N,), as many as it has: chunks (r, C), R rows in all.

    The result depends on the seed and the items, not on their order. `BenchmarkError` where no resamples are asked for.
    """
    if num_resamples < 1:
        raise BenchmarkError(f"num_resamples is {num_resamples}; at least 1 is needed")
    groups = []
    for stratum, stream in zip(names := np.unique(strata), np.random.SeedSequence(seed).spawn(len(names)), strict=True):
        members = counts[strata == stratum]
        rows, multiplicity = np.unique(members, axis=0, return_counts=True)
        active = np.flatnonzero(rows.any(axis=0))
        random = np.random.default_rng(stream)
        groups.append((random, len(members), multiplicity / len(members), rows[:, active], active))
    largest = max((len(share) for _, _, share, _, _ in groups), default=1)
    chunk = max(1, MAX_CHUNK // (largest + counts.shape[1]))
    for start in range(0, num_resamples, chunk):
        size = min(chunk, num_resamples - start)
        sums = np.zeros((size, counts.shape[1]))
        for random, num_members, share, rows, active in groups:
            sums[:, active] += random.multinomial(num_members, share, size=size).astype(np.float64) @ rows
        yield sums


def named_figures(names: Sequence[str], values: Floats, resampled: Floats) -> tuple[dict[str, Figure], dict[str, int]]:
    """Figures from their values (F,) and their values in resamples (R, F), which are left out where undefined (NaN);
    and how many of a figure were, unless all of it is undefined."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of a figure without a defined resample
        intervals = np.nanpercentile(resampled, (2.5, 97.5), axis=0)
    figures = {name: Figure(*map(optional, row)) for name, *row in zip(names, values, *intervals, strict=True)}
    undefined = zip(names, np.isnan(resampled).sum(axis=0).tolist(), strict=True)
    return figures, {name: number for name, number in undefined if number and figures[name].value is not None}


def optional(value: np.float64 | float) -> float | None:
    """NaN as None."""
    return None if np.isnan(value) else float(value)


def accuracies(counts: Floats) -> Floats:
    """Of counts (..., K, [right, all]) the K shares of right ones, and then the harmonic mean (F1) of the first two.

    A share of none is NaN, and so is the F1 that rests on it; that of two zeros is 0.
    """
    with np.errstate(invalid="ignore"):
        shares = counts[..., 0] / counts[..., 1]
        first, second = shares[..., 0], shares[..., 1]
        f1 = np.where(first + second == 0.0, 0.0, 2 * first * second / (first + second))
    return np.concatenate([shares, f1[..., None]], axis=-1)
