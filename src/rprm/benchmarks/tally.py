"""What every benchmark is measured from: per-item counts, and the figures that their sums give.

A benchmark makes a row of counts of each item, such that every figure is a function of the rows' sum. Figures,
bootstrap intervals and paired tests then need nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

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
    """How much of what was to be predicted was.

    Attributes:
        num_missing: items without any score, which count as wrong; for PRMBench also those with a step without one.
        steps_needed: ProcessBench: steps up to the predicted first error, all where none is predicted. PRMBench: all.
        steps_scored: how many of these have a score.
        num_unjudged: ProcessBench: items whose first error is not known, since a step up to there has no score.
    """

    num_items: int = 0
    num_missing: int = 0
    steps_needed: int = 0
    steps_scored: int = 0
    num_unjudged: int = 0

    @property
    def percent(self) -> float:
        return 100.0 * self.steps_scored / self.steps_needed

    def __add__(self, other: Coverage) -> Coverage:
        return Coverage(
            self.num_items + other.num_items,
            self.num_missing + other.num_missing,
            self.steps_needed + other.steps_needed,
            self.steps_scored + other.steps_scored,
            self.num_unjudged + other.num_unjudged,
        )

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
    """A run's predictions on a benchmark, counted item by item.

    Attributes:
        benchmark: its name.
        threshold: below it a step is called wrong.
        ids: the items, N of them.
        strata: (N,) the subset or class of each item. Resampling is done within each.
        counts: (N, C) counts of each item.
        outcomes: (N, D) what the headline figure reads of each item; two runs are discordant where it differs.
        figure_names: F names. A dot nests: `math.f1` is the F1 of `math`.
        figures_of: sums of counts (..., C) -> figures in percent (..., F), NaN where undefined.
        headline: the name of the figure that runs are compared by.
        coverage: by stratum.
        layout: the table of a measurement.
        missing: ids of the items that are counted as wrong for want of a prediction.
        notes: what a reader of the figures must know, in sentences.
        tests_items: outcomes say of each item whether it is predicted right, and runs are compared by McNemar's test.
    """

    benchmark: str
    threshold: float
    ids: tuple[str, ...]
    strata: NDArray[np.str_]
    counts: Floats
    outcomes: NDArray[np.int64]
    figure_names: tuple[str, ...]
    figures_of: Callable[[Floats], Floats]
    headline: str
    coverage: Mapping[str, Coverage]
    layout: Callable[[Measurement], ResultTable]
    missing: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    tests_items: bool = False

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
    low, high, num_undefined = percentile_intervals(resampled)
    figures = {}
    undefined = {}
    for index, name in enumerate(names):
        if np.isnan(values[index]):
            figures[name] = Figure(None)
            continue
        figures[name] = Figure(float(values[index]), optional(low[index]), optional(high[index]))
        if num_undefined[index]:
            undefined[name] = int(num_undefined[index])
    return figures, undefined


def optional(value: np.float64 | float) -> float | None:
    """NaN as None."""
    return None if np.isnan(value) else float(value)


@dataclass(frozen=True, eq=False, kw_only=True)
class Measurement(Tally):
    """A tally with its figures: one run on one benchmark.

    Attributes:
        figures: by name, in percent, under the benchmark's own names; a dot nests (`math.f1`, `clean.overall`).
        num_rejected: rows of the benchmark that could not be used.
        num_unused: scored items that are not among the benchmark's items.
        undefined_resamples: figure -> number of resamples in which it was undefined; they are left out of its interval.
        sources: where the items came from: (name, hash of the file or revision on the hub).
        usage: what judging cost, None where scores came from a file.
        repeated: ids that were scored twice, of which the first was taken (PRMBench).
    """

    figures: Mapping[str, Figure]
    num_rejected: int
    num_unused: int
    num_resamples: int
    seed: int
    undefined_resamples: Mapping[str, int]
    sources: tuple[tuple[str, str], ...]
    usage: Totals | None
    repeated: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """One JSON object."""
        return {
            "benchmark": self.benchmark,
            "threshold": self.threshold,
            "figures": nested({name: figure.as_dict() for name, figure in self.figures.items()}),
            **self.total_coverage.as_dict(),
            "by": {name: coverage.as_dict() for name, coverage in self.coverage.items()},
            "missing_items": list(self.missing),
            "rejected_rows": self.num_rejected,
            "unused_scores": self.num_unused,
            "repeated_scores": list(self.repeated),
            "resamples": self.num_resamples,
            "undefined_resamples": dict(self.undefined_resamples),
            "seed": self.seed,
            "usage": None if self.usage is None else usage_as_dict(self.usage),
            "data": [{"name": name, "digest": digest} for name, digest in self.sources],
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
    """Measure a run: the figures of a benchmark's tally, with intervals.

    Args:
        tally: of the benchmark; it says what the figures are, and what it raises.
        items, scores, options: its arguments.
        num_resamples: for the intervals. Items are drawn within each subset or class.
        seed: of the resamples.
    """
    counted = tally(items, scores, **options)
    figures, undefined = counted.with_intervals(num_resamples, seed)
    known = {item.id for item in items.items}
    return Measurement(
        **vars(counted),
        figures=figures,
        num_rejected=len(items.rejected),
        num_unused=sum(identifier not in known for identifier in scores.p_yes),
        num_resamples=num_resamples,
        seed=seed,
        undefined_resamples=undefined,
        sources=tuple((source.name, source.digest) for source in items.sources),
        usage=scores.usage,
        repeated=scores.repeated,
    )


def nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """{"math.f1": x, "overall": y} -> {"math": {"f1": x}, "overall": y}."""
    tree: dict[str, Any] = {}
    for name, value in flat.items():
        group, dot, leaf = name.rpartition(".")
        if dot:
            tree.setdefault(group, {})[leaf] = value
        else:
            tree[name] = value
    return tree


def refuse_missing(
    missing: Collection[str], ids: Collection[str], what: str, scores: Scores, *, allow_missing: bool
) -> None:
    """
    Args:
        missing: those of the items that lack a prediction.
        ids: of all items that need one.
        what: they have in its place.
        scores: of these items.
        allow_missing: refuse only where no item has a score: then there is nothing to measure.

    Raises:
        MissingPredictions: there are any; the message names up to ten, and the cause.
    """
    nothing = all(score is None for identifier in ids for score in scores.p_yes.get(identifier, ()))
    if not missing or (allow_missing and not nothing):
        return
    message = f"{len(missing)} of {len(ids)} items have {what}: {named(missing)}"
    failed = [identifier for identifier in missing if identifier in scores.failures]
    if failed:
        message += f"; {failed[0]} could not be judged: {scores.failures[failed[0]]}"
    if not nothing:
        message += f"; {'mend that' if failed else 'judge them'}, or count them as wrong with --allow-missing"
    elif not failed:
        message += "; there is no score of any item: nothing to measure"
        if scores.p_yes and not scores.p_yes.keys() & set(ids):
            message += f"; the scores are of others ({named(scores.p_yes)}): are they from the same data?"
    raise MissingPredictions(message)


def refuse_lengths(wrong: Collection[str], why: str) -> None:
    """
    Raises:
        InputError: there are any; the message names up to ten.
    """
    if wrong:
        raise InputError(
            f"{len(wrong)} items do not have one score for each step: {named(wrong)}{why}; are the scores from the "
            "same data?"
        )


def named(ids: Collection[str]) -> str:
    """Up to ten of them, and how many more there are."""
    first = list(ids)[:MAX_NAMED]
    rest = len(ids) - len(first)
    return ", ".join(first) + (f" and {rest} more" if rest else "")
