"""What the index of a step alone tells of it: a row to set beside the figures of a judge.

Items fall into two halves by a hash of their id. In each half the share of right steps is counted at each index, and
the share below which a step is called wrong is chosen for the highest headline; the other half is predicted so.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from rprm.benchmarks.items import BenchmarkItems
from rprm.benchmarks.scores import Scores, with_false_alarms
from rprm.benchmarks.tally import Tally

_MAX_INDEX = 40  # later steps are counted together
_NUM_SHARES = 12  # that are tried, evenly spaced among those of the indices


def half_of(identifier: str) -> int:
    """The half, 0 or 1, that an item belongs to: choices for one half are made on the other."""
    return hashlib.blake2b(identifier.encode(), digest_size=1).digest()[0] & 1


def position_only(
    tally: Callable[..., Tally], items: BenchmarkItems[Any], right: Callable[[Any], Sequence[bool]]
) -> dict[str, float | None]:
    """The figures, in percent, of judging each step by its index; `right` says which steps of an item are known to be
    right or wrong, from the first on. Both halves need items for anything to be predicted: else there are none."""
    halves = [replace(items, items=tuple(one for one in items.items if half_of(one.id) == half)) for half in (0, 1)]
    if not all(half.items for half in halves):
        return {}
    scores: dict[str, tuple[float | None, ...]] = {}
    for chosen_on, predicted in (halves, halves[::-1]):
        shares = _shares(chosen_on, right)
        distinct = sorted(set(shares.values()))
        tried = [-1.0, *distinct[:: max(1, len(distinct) // _NUM_SHARES)]]

        def headline(least: float, on: BenchmarkItems[Any] = chosen_on, shares: Any = shares) -> float:
            counted = tally(on, Scores(_called(on, shares, least)))
            value = counted.by_name[counted.headline]
            return -1.0 if value is None else value

        scores |= _called(predicted, shares, max(tried, key=headline))
    return with_false_alarms(tally(items, found := Scores(scores)), items, found).by_name


def _shares(items: BenchmarkItems[Any], right: Callable[[Any], Sequence[bool]]) -> dict[int, float]:
    counts: defaultdict[int, list[bool]] = defaultdict(list)
    for item in items.items:
        for index, is_right in enumerate(right(item)):
            counts[min(index, _MAX_INDEX)].append(is_right)
    return {index: sum(found) / len(found) for index, found in counts.items()}


def _called(items: BenchmarkItems[Any], shares: dict[int, float], least: float) -> dict[str, tuple[float | None, ...]]:
    """A score below a half for each step at whose index at most `least` of the steps are right."""
    by_index = [0.25 if shares.get(index, 1.0) <= least else 0.75 for index in range(_MAX_INDEX + 1)]
    by_length: dict[int, tuple[float, ...]] = {}
    for number in {item.solution.num_steps for item in items.items}:
        by_length[number] = tuple(by_index[min(index, _MAX_INDEX)] for index in range(number))
    return {item.id: by_length[item.solution.num_steps] for item in items.items}
