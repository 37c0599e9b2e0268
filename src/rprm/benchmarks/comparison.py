"""Two runs on the same items, compared in pairs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rprm.benchmarks.benchmark import nested
from rprm.benchmarks.tally import DEFAULT_RESAMPLES, MAX_CHUNK, Figure, Floats, Tally
from rprm.errors import BenchmarkError

DEFAULT_PERMUTATIONS = 10_000
MAX_ENUMERATED = 12  #: with at most so many discordant items every swap is tried (4,096 of them): the p-value is exact


@dataclass(frozen=True)
class Comparison:
    """The second run against the first."""

    tallies: tuple[Tally, Tally]
    differences: Mapping[str, Figure]  #: second minus first, in points, with 95% intervals by the paired bootstrap
    undefined_resamples: Mapping[str, int]
    p_value: float | None  #: two-sided, of the paired permutation test on the headline; None where that is undefined
    num_permutations: int  #: swaps tried; with `exact`, all there are
    exact: bool
    num_discordant: int  #: items on whose outcomes the runs differ
    only_first_right: int | None  #: items that one run alone predicts right (ProcessBench; else None)
    only_second_right: int | None
    mcnemar_p: float | None  #: two-sided exact McNemar test on these
    num_resamples: int
    seed: int

    def as_dict(self) -> dict[str, Any]:
        """One JSON object."""

        def of_each(read: Callable[[Tally], Any]) -> dict[str, Any]:
            return dict(zip(("first", "second"), map(read, self.tallies), strict=True))

        first = self.tallies[0]
        return {
            "benchmark": first.benchmark, "items": len(first.ids), "headline": first.headline,
            **of_each(lambda tally: nested(tally.by_name)), "difference": nested(self.differences),
            "p_value": self.p_value, "permutations": self.num_permutations, "exact": self.exact,
            "discordant_items": self.num_discordant, "only_first_right": self.only_first_right,
            "only_second_right": self.only_second_right, "mcnemar_p": self.mcnemar_p,
            "missing_items": of_each(lambda tally: list(tally.missing)),
            "unjudged": of_each(lambda tally: tally.total_coverage.num_unjudged),
            "thresholds": of_each(lambda tally: tally.threshold),
            "resamples": self.num_resamples, "undefined_resamples": dict(self.undefined_resamples), "seed": self.seed,
        }  # fmt: skip


def compare(
    first: Tally, second: Tally, *, num_resamples: int = DEFAULT_RESAMPLES,
    num_permutations: int = DEFAULT_PERMUTATIONS, seed: int = 0,
) -> Comparison:  # fmt: skip
    """Compare two runs on the same items; a `BenchmarkError` where they are of different benchmarks or items.

    The permutation test (Good 2005, chapter 3) swaps each item's pair of predictions with probability 1/2; the observed
    arrangement counts as one of those drawn. Up to twelve discordant items, all arrangements are tried.
    """
    if num_permutations < 1:
        raise BenchmarkError(f"num_permutations is {num_permutations}; at least 1 is needed")
    if first.benchmark != second.benchmark:
        raise BenchmarkError(f"a run on {first.benchmark} cannot be compared with one on {second.benchmark}")
    if first.ids != second.ids:
        raise BenchmarkError("the runs are not on the same items; read the items once, and tally both runs on them")
    width = first.counts.shape[1]

    def difference(sums: Floats) -> Floats:
        return second.figures_of(sums[..., width:]) - first.figures_of(sums[..., :width])

    paired = replace(first, counts=np.concatenate([first.counts, second.counts], axis=1), figures_of=difference)
    differences, undefined = paired.with_intervals(num_resamples, seed)
    swaps = paired.counts[(first.outcomes != second.outcomes).any(axis=1)]
    swaps = np.roll(swaps, width, axis=1) - swaps
    tested = _permutation_test(paired, swaps, num_permutations, seed)
    mcnemar: tuple[int | None, int | None, float | None] = None, None, None
    if first.tests_items:
        only = int((first.outcomes > second.outcomes).sum()), int((first.outcomes < second.outcomes).sum())
        mcnemar = (*only, exact_mcnemar(*only))
    return Comparison((first, second), differences, undefined, *tested, len(swaps), *mcnemar, num_resamples, seed)


def exact_mcnemar(only_first: int, only_second: int) -> float:
    """Two-sided exact p-value: twice the binomial(n, 1/2) tail at the smaller count, at most 1; 1 without any."""
    number = only_first + only_second
    tail = sum(math.comb(number, count) for count in range(min(only_first, only_second) + 1))
    return min(1.0, float(Fraction(2 * tail, 2**number)))


def _permutation_test(paired: Tally, swaps: Floats, num_permutations: int, seed: int) -> tuple[float | None, int, bool]:
    """p-value, arrangements tried, whether these are all. `swaps` are the changes of counts, item by item."""
    headline, total = paired.figure_names.index(paired.headline), paired.counts.sum(axis=0)
    least = abs(paired.values[headline]) - 1e-9  # Differences that close, in points, are equal.
    if math.isnan(least):
        return None, 0, False

    def as_large(changes: Floats) -> NDArray[np.bool_]:
        """(P,) after changes (P, C) of the counts."""
        return np.asarray(np.abs(paired.figures_of(total + changes)[..., headline]) >= least)

    if len(swaps) <= MAX_ENUMERATED:
        patterns = np.arange(2 ** len(swaps))[:, None] >> np.arange(len(swaps)) & 1
        return float(as_large(patterns.astype(np.float64) @ swaps).mean()), len(patterns), True
    # Of k items with the same effect, binomial(k, 1/2) are swapped.
    rows, multiplicity = np.unique(swaps, axis=0, return_counts=True)
    random = np.random.default_rng(seed)
    chunk = max(1, MAX_CHUNK // (len(rows) + swaps.shape[1]))
    num_as_large = 0
    for start in range(0, num_permutations, chunk):
        size = min(chunk, num_permutations - start)
        swapped = random.binomial(multiplicity, 0.5, size=(size, len(rows))).astype(np.float64)
        num_as_large += int(as_large(swapped @ rows).sum())
    return (1 + num_as_large) / (1 + num_permutations), num_permutations, False
