"""When the K analyses of a step have said enough. Pure functions.

A step is correct when the mean P(Yes) of its analyses with a verdict is at least the threshold t. After m of K, v of
them with a verdict and with sum S, the r = K - m that remain can only move the mean between S / (v + r) (all say 0) and
(S + r) / (v + r) (all say 1); one without a verdict moves it less. Once both lie on one side of t, *exact* stopping
changes no decision. Means are rational numbers rounded once, which is monotone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, get_args

from rprm import ranges
from rprm.errors import RprmError

Stopping = Literal["none", "exact", "confident"]


def mean_bounds(p_yes: Sequence[float | None], num_analyses: int) -> tuple[float | None, float | None]:
    """The lowest and highest final mean after some analyses (None: no verdict): None where there may, will be none."""
    total, num_values, remaining = _tally(p_yes, num_analyses)
    if not num_values:
        return None, (1.0 if remaining > 0 else None)
    return _bounds(total, num_values, remaining)


@dataclass(frozen=True)
class StoppingRule:
    """How many analyses a step needs: all K ("none"), until the decision of all K is certain ("exact"), or until it is
    as probable as `confidence` by the Beta-binomial posterior of a uniform prior ("confident")."""

    num_analyses: ranges.Draws  # K
    threshold: ranges.Threshold = 0.5  # t; a step with a reward of at least t is called correct
    stopping: Stopping = "exact"
    confidence: ranges.Confidence = 0.99

    def __post_init__(self) -> None:
        ranges.check(self, RprmError)
        if self.stopping not in get_args(Stopping):
            raise RprmError(f"stopping is {self.stopping!r}; choose none, exact or confident")

    def is_settled(self, p_yes: Sequence[float | None]) -> bool:
        """Whether the decision stands after these analyses (None: one that reached no verdict)."""
        return self._is_settled(*_tally(p_yes, self.num_analyses))

    def num_more(self, p_yes: Sequence[float | None]) -> int:
        """The fewest further analyses that can settle the decision (0: it is settled): drawn at once, none is needless.

        No outcome settles a decision sooner than all of them saying 1, or all saying 0.
        """
        total, num_values, remaining = _tally(p_yes, self.num_analyses)
        return next(
            count
            for count in range(remaining + 1)
            if self._is_settled(total + count, num_values + count, remaining - count)
            or self._is_settled(total, num_values + count, remaining - count)
        )

    def _is_settled(self, total: Fraction, num_values: int, remaining: int) -> bool:
        if remaining <= 0:
            return True
        if self.stopping == "none" or num_values == 0:
            return False
        lowest, highest = _bounds(total, num_values, remaining)
        if lowest >= self.threshold or highest < self.threshold:
            return True
        if self.stopping == "exact":
            return False
        # P(the full mean stays on this side), the future Yes count X ~ BetaBinomial(r, 1 + S, 1 + v - S).
        alpha, beta = 1.0 + float(total), 1.0 + num_values - float(total)
        probability_yes = math.fsum(
            beta_binomial(count, remaining, alpha, beta)
            for count in range(remaining + 1)
            if float((total + count) / (num_values + remaining)) >= self.threshold
        )
        return max(probability_yes, 1.0 - probability_yes) >= self.confidence


def _tally(p_yes: Sequence[float | None], num_analyses: int) -> tuple[Fraction, int, int]:
    """The sum of P(Yes), how many analyses have a verdict, and how many remain."""
    values = [Fraction(p) for p in p_yes if p is not None]
    return sum(values, Fraction(0)), len(values), num_analyses - len(p_yes)


def _bounds(total: Fraction, num_values: int, remaining: int) -> tuple[float, float]:
    """Of the final mean: all that remain say 0, or all say 1."""
    return float(total / (num_values + remaining)), float((total + remaining) / (num_values + remaining))


def beta_binomial(count: int, number: int, alpha: float, beta: float) -> float:
    """P(X = count) of X ~ BetaBinomial(number, alpha, beta)."""
    choices = math.log(math.comb(number, count))
    return math.exp(choices + _log_beta(count + alpha, number - count + beta) - _log_beta(alpha, beta))


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)
