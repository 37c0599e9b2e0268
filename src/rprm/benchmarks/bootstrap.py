"""Bootstrap resampling by item (Efron and Tibshirani 1993, chapters 6 and 13), vectorised over sums of counts.

How often each distinct row of counts is drawn is multinomial: resamples cost one matrix product.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from rprm.errors import BenchmarkError

DEFAULT_RESAMPLES = 2_000

#: Numbers held at once: memory stays flat however many resamples or items.
MAX_CHUNK = 4_000_000

Floats = NDArray[np.float64]


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
