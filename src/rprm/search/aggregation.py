"""From the rewards of its steps to the reward of a solution."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

from rprm.stopping import mean

#: How step rewards become the reward of a solution.
Aggregation = Literal["min", "last", "product", "mean"]
AGGREGATIONS: tuple[Aggregation, ...] = get_args(Aggregation)


def aggregate(rewards: Sequence[float | None], how: Aggregation) -> float | None:
    """The reward of a solution, or None where it has none: no steps, or one that it depends on is uncovered.

    "last" depends on the last step alone, the others on all. Each is monotone in every step's reward.
    """
    if not rewards:
        return None
    if how == "last":
        return rewards[-1]
    covered = [reward for reward in rewards if reward is not None]
    if len(covered) < len(rewards):
        return None
    if how == "min":
        return min(covered)
    return math.prod(covered) if how == "product" else mean(covered)
