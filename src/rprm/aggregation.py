"""How the rewards of steps become one number. Pure functions, exact to the last bit in any order of evaluation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Literal, get_args

from rprm.errors import InputError

#: How step rewards become the reward of a solution.
Aggregation = Literal["min", "last", "product", "mean"]
AGGREGATIONS: tuple[Aggregation, ...] = get_args(Aggregation)


def mean(values: Sequence[float]) -> float | None:
    """The correctly rounded mean, None of no values."""
    return float(sum(map(Fraction, values), Fraction(0)) / len(values)) if values else None


def checked_aggregation(how: str) -> Aggregation:
    """The aggregation of a name; an `InputError` where there is none."""
    if how not in AGGREGATIONS:
        raise InputError(f"there is no aggregation {how!r:.80}; they are {', '.join(AGGREGATIONS)}")
    return how


def aggregate(rewards: Sequence[float | None], how: Aggregation) -> float | None:
    """The reward of a solution, or None where it has none: no steps, or one that it depends on is unscored ("last"
    depends on the last step alone, the others on all). A product is a chain of multiplications in the steps' order.
    An `InputError` where there is no such aggregation."""
    how = checked_aggregation(how)
    scored = [reward for reward in (rewards[-1:] if how == "last" else rewards) if reward is not None]
    if not scored or (how != "last" and len(scored) < len(rewards)):
        return None
    if how == "mean":
        return mean(scored)
    return math.prod(scored) if how == "product" else min(scored)
