"""Bootstrap resampling by item (Efron and Tibshirani 1993, chapters 6 and 13), vectorised over sums of counts.

To resample N items with replacement and sum their counts, it is enough to know how often each distinct row of counts is
drawn. These numbers are multinomial, so that whole resamples cost one matrix product, and equal items cost nothing.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from rprm.errors import BenchmarkError

DEFAULT_RESAMPLES = 2_000

#: Numbers held at once: memory stays flat however many resamples or items.
MAX_CHUNK = 4_000_000


def resampled_sums(
    counts: NDArray[np.float64], strata: NDArray[np.str_], *, num_resamples: int, seed: int
) -> Iterator[NDArray[np.float64]]:
    """Sums of counts over resampled items, in chunks.

    Items are drawn within each stratum, independently of the others, as many as it has. The result depends on the seed
    and the items, not on their order.

    Args:
        counts: (N, C).
        strata: (N,).
        num_resamples: R.
        seed: of the random numbers.

    Yields:
        (r, C), R rows in all.

    Raises:
        BenchmarkError: no resamples are asked for.
    """
    if num_resamples < 1:
        raise BenchmarkError(f"num_resamples is {num_resamples}; at least 1 is needed")
    groups = []
    for stratum, stream in zip(names := np.unique(strata), np.random.SeedSequence(seed).spawn(len(names)), strict=True):
        members = counts[strata == stratum]
        rows, multiplicity = np.unique(members, axis=0, return_counts=True)
        active = np.flatnonzero(rows.any(axis=0))
        groups.append(
            (np.random.default_rng(stream), len(members), multiplicity / len(members), rows[:, active], active)
        )
    largest = max((len(share) for _, _, share, _, _ in groups), default=1)
    chunk = max(1, MAX_CHUNK // (largest + counts.shape[1]))
    for start in range(0, num_resamples, chunk):
        size = min(chunk, num_resamples - start)
        sums = np.zeros((size, counts.shape[1]))
        for random, num_members, share, rows, active in groups:
            drawn = random.multinomial(num_members, share, size=size)
            sums[:, active] += drawn.astype(np.float64) @ rows
        yield sums


def percentile_intervals(
    resampled: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    """95% percentile intervals of figures.

    Args:
        resampled: (R, F), NaN where a resample leaves the figure undefined; such resamples are left out.

    Returns:
        low (F,), high (F,), NaN where no resample is defined; and the number of resamples left out (F,).
    """
    num_figures = resampled.shape[1]
    low, high = np.full(num_figures, np.nan), np.full(num_figures, np.nan)
    undefined = np.isnan(resampled)
    for index in range(num_figures):
        defined = resampled[~undefined[:, index], index]
        if defined.size:
            low[index], high[index] = np.percentile(defined, (2.5, 97.5))
    return low, high, undefined.sum(axis=0)
