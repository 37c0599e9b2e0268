"""What every benchmark is measured from: counts of each item, such that every figure is a function of their sum.

Figures, bootstrap intervals and paired tests need nothing else. `Benchmark` is the record that a command is made from.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from rprm.benchmarks.bootstrap import DEFAULT_RESAMPLES, percentile_intervals, resampled_sums
from rprm.benchmarks.items import BenchmarkItems
from rprm.benchmarks.scores import Scores
from rprm.errors import InputError, MissingPredictions
from rprm.rewarders.batch import Totals

Floats = NDArray[np.float64]

#: How many items an error message names.
MAX_NAMED = 10


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
        return Coverage(*(one + more for one, more in zip(astuple(self), astuple(other), strict=True)))

    def as_dict(self) -> dict[str, Any]:
        return {
            "items": self.num_items,
            "missing": self.num_missing,
            "unjudged": self.num_unjudged,
            "steps_needed": self.steps_needed,
            "steps_scored": self.steps_scored,
            "coverage": self.percent,
        }


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
    layout: Callable[[Measurement], ResultTable]
    missing: tuple[str, ...] = ()  #: ids that are counted as wrong for want of a prediction
    notes: tuple[str, ...] = ()  #: what a reader of the figures must know, in sentences
    tests_items: bool = False  #: outcomes say whether an item is predicted right: runs take McNemar's test

    @property
    def total_coverage(self) -> Coverage:
        return sum(self.coverage.values(), Coverage())

    @property
    def values(self) -> Floats:
        """(F,) the figures themselves."""
        return self.figures_of(self.counts.sum(axis=0))

    def with_intervals(self, num_resamples: int, seed: int) -> tuple[dict[str, Figure], dict[str, int]]:
        """Figures by name with their intervals, and how many resamples left a figure undefined (0 not listed)."""
        sums = resampled_sums(self.counts, self.strata, num_resamples=num_resamples, seed=seed)
        resampled = np.concatenate([self.figures_of(chunk) for chunk in sums])
        return named_figures(self.figure_names, self.values, resampled)


def named_figures(names: Sequence[str], values: Floats, resampled: Floats) -> tuple[dict[str, Figure], dict[str, int]]:
    """Figures from their values (F,) and their values in resamples (R, F)."""
    figures: dict[str, Figure] = {}
    undefined: dict[str, int] = {}
    for name, value, *interval, number in zip(names, values, *percentile_intervals(resampled), strict=True):
        figures[name] = Figure(None) if np.isnan(value) else Figure(float(value), *map(optional, interval))
        if number and not np.isnan(value):
            undefined[name] = int(number)
    return figures, undefined


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
        total = first + second
        f1 = np.where(total == 0.0, 0.0, 2 * first * second / total)
    return np.concatenate([shares, f1[..., None]], axis=-1)


@dataclass(frozen=True, eq=False, kw_only=True)
class Measurement(Tally):
    """A tally with its figures: one run on one benchmark."""

    items: BenchmarkItems[Any]
    scores: Scores
    figures: Mapping[str, Figure]
    undefined_resamples: Mapping[str, int]  #: by figure, how many left it undefined, and are not in its interval
    num_resamples: int
    seed: int

    @property
    def num_unused(self) -> int:
        """Scored items that are not among the benchmark's."""
        return len(self.scores.p_yes.keys() - {item.id for item in self.items.items})

    def as_dict(self) -> dict[str, Any]:
        """One JSON object."""
        return {
            "benchmark": self.benchmark,
            "threshold": self.threshold,
            "figures": nested({name: figure.as_dict() for name, figure in self.figures.items()}),
            **self.total_coverage.as_dict(),
            "by": {name: coverage.as_dict() for name, coverage in self.coverage.items()},
            "missing_items": list(self.missing),
            "rejected_rows": len(self.items.rejected),
            "unused_scores": self.num_unused,
            "repeated_scores": list(self.scores.repeated),
            "resamples": self.num_resamples,
            "undefined_resamples": dict(self.undefined_resamples),
            "seed": self.seed,
            "usage": self.scores.usage and usage_as_dict(self.scores.usage),
            "data": [{"name": source.name, "digest": source.digest} for source in self.items.sources],
            "notes": list(self.notes),
        }


def usage_as_dict(usage: Totals) -> dict[str, Any]:
    """What judging cost, and what it failed to reach; steps after an exit at the first error are not counted."""
    tokens, steps = usage.num_generated_tokens, usage.num_steps_judged
    return {
        "tokens": tokens,
        "tokens_per_step": tokens / steps if steps else None,
        "steps": steps,
        "uncovered_steps": usage.num_steps_uncovered,
        "analyses": usage.num_analyses,
        "analyses_without_verdict": usage.num_analyses_without_verdict,
        "analyses_forced": usage.num_analyses_forced,
    }


def measure(
    tally: Callable[..., Tally],
    items: BenchmarkItems[Any],
    scores: Scores,
    *,
    num_resamples: int = DEFAULT_RESAMPLES,
    seed: int = 0,
    **options: Any,
) -> Measurement:
    """Measure a run: the figures of a benchmark's `tally` of `items`, `scores` and `options`, with intervals."""
    counted = tally(items, scores, **options)
    figures, undefined = counted.with_intervals(num_resamples, seed)
    return Measurement(
        **vars(counted), items=items, scores=scores, figures=figures, undefined_resamples=undefined,
        num_resamples=num_resamples, seed=seed,
    )  # fmt: skip


@dataclass(frozen=True)
class Flag:
    """An option of a benchmark's command, off by default. With `help` alone it is passed to the tally by its name.

    `further(items, scores, allow_missing=, num_resamples=, seed=)` gives a result with `as_dict()` and `table()`, for
    which every step is judged in full.
    """

    help: str
    items: Callable[[BenchmarkItems[Any]], BenchmarkItems[Any]] | None = None  #: changes them before they are judged
    further: Callable[..., Any] | None = None


@dataclass(frozen=True)
class Benchmark:
    """A benchmark: `rprm bench NAME`, comparisons and tables are made from this."""

    name: str  #: of its command, and in manifests
    help: str
    read: Callable[..., BenchmarkItems[Any]]  #: `(data, revision=)`
    tally: Callable[..., Tally]  #: `(items, scores, threshold=, allow_missing=, **flags)`
    hub: str | None = None  #: its data set on the hub; None where the data must be named
    group: str | None = None  #: the attribute of an item within whose values `--limit` counts
    judged: Literal["every step", "first error", "last step"] = "every step"  #: of each solution
    flags: Mapping[str, Flag] = field(default_factory=dict)  #: further options of its command


def nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """{"math.f1": x, "overall": y} -> {"math": {"f1": x}, "overall": y}."""
    tree: dict[str, Any] = {}
    for name, value in flat.items():
        group, dot, leaf = name.rpartition(".")
        (tree.setdefault(group, {}) if dot else tree)[leaf] = value
    return tree


def refuse_missing(
    missing: Collection[str], ids: Collection[str], what: str, scores: Scores, *, allow_missing: bool
) -> None:
    """Refuse items that lack a prediction (`missing` of `ids`, which have `what` in its place).

    Raises:
        MissingPredictions: there are any; with `allow_missing`, only where no item has a score.
    """
    nothing = all(score is None for identifier in ids for score in scores.p_yes.get(identifier, ()))
    if not missing or (allow_missing and not nothing):
        return
    parts = [f"{len(missing)} of {len(ids)} items have {what}: {named(missing)}"]
    failed = next((identifier for identifier in missing if identifier in scores.failures), None)
    if failed:
        parts.append(f"{failed} could not be judged: {scores.failures[failed]}")
    if not nothing:
        parts.append(f"{'mend that' if failed else 'judge them'}, or count them as wrong with --allow-missing")
    elif not failed:
        parts.append("there is no score of any item: nothing to measure")
        if scores.p_yes and not scores.p_yes.keys() & set(ids):
            parts.append(f"the scores are of others ({named(scores.p_yes)}): are they from the same data?")
    raise MissingPredictions("; ".join(parts))


def refuse_lengths(wrong: Collection[str], why: str) -> None:
    if wrong:
        raise InputError(
            f"{len(wrong)} items do not have one score for each step: {named(wrong)} {why}; are the scores from the "
            "same data?"
        )


def named(ids: Collection[str]) -> str:
    """Up to ten of them, and how many more there are."""
    rest = len(ids) - MAX_NAMED
    return ", ".join(list(ids)[:MAX_NAMED]) + (f" and {rest} more" if rest > 0 else "")
