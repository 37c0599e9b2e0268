"""Choosing the best of several contenders with few draws: the choice is the one that full evaluation makes.

Each contender's final value is known to lie in an interval that a draw narrows. Once the intervals tell the best apart
from all the others, what is not drawn yet can change nothing. Where a value comes from floating-point operations that
are monotone in every input, the same operations on bounds of the inputs give bounds that its last bit cannot
contradict.

Drawn from is the one of the best that is the least sure of its place; for a single best that is the contender with the
highest upper bound, which has to be confirmed or ruled out whatever the others come to. A wave of several draws is
planned as if each of them said what is expected of it, so that it spreads as one draw after the other would have.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Coroutine, Iterator, Sequence
from typing import Any, Protocol

from rprm.jobs import all_or_none

#: The lowest and the highest that a final value can be. None stands below every number: no value.
Bounds = tuple[float | None, float | None]

#: Draws at once where nothing else is said. Against one after the other, that is a third of the waves or less for 1% to
#: 21% more draws; 8 at once are a sixth of the waves for 3% to 44% more (`perf/best_of_n.py`).
WAVE = 4


class Contender(Protocol):
    """One of several things of which the best is wanted."""

    @property
    def bounds(self) -> Bounds:
        """Of its final value."""
        ...

    def outlook(self) -> Iterator[Bounds]:
        """The bounds after one more draw, after two, ..., where each says what is expected of it.

        It ends where nothing is left to draw; both bounds are the final value then.
        """
        ...

    def draw(self, num_draws: int) -> Coroutine[Any, Any, None]:
        """Make the next so many draws. What is drawn is decided at the call, before anything is awaited."""
        ...


async def race(contenders: Sequence[Contender], num_wanted: int = 1, *, wave: int = WAVE) -> list[int]:
    """Draw until the best are certain.

    The order is that of the final values, of equal ones that of the places. What is drawn does not depend on how long
    draws take.

    Args:
        contenders: the same one may stand at several places.
        num_wanted: how many.
        wave: most draws to make at once; more of them are fewer waves, and more draws in all.

    Returns:
        Indices of the best, ascending; all of them where there are not more than wanted.
    """
    while draws := _next_wave(contenders, num_wanted, wave):
        await all_or_none(contenders[index].draw(num_draws) for index, num_draws in sorted(draws.items()))
    return sorted(_ranked([contender.bounds for contender in contenders])[:num_wanted])


def is_settled(contender: Contender) -> bool:
    """Whether nothing is left to draw: its bounds are its final value."""
    return next(contender.outlook(), None) is None


async def settle(contender: Contender) -> None:
    """Draw all that is left of one contender."""
    await contender.draw(sum(1 for _ in contender.outlook()))


def _next_wave(contenders: Sequence[Contender], num_wanted: int, wave: int) -> Counter[int]:
    """How often to draw from which contender; nothing once the best are certain."""
    first_place = {id(contender): place for place, contender in reversed(list(enumerate(contenders)))}
    same = [first_place[id(contender)] for contender in contenders]
    known = [contender.bounds for contender in contenders]
    outlooks = [contender.outlook() for contender in contenders]
    draws: Counter[int] = Counter()
    while draws.total() < wave:
        bounds = [known[place] for place in same]
        ranked = _ranked(bounds)
        best, others = ranked[:num_wanted], ranked[num_wanted:]
        unsure = [
            (one, other)
            for one in best
            for other in others
            if not _is_above(one, other, bounds) and not (same[one] == same[other] and one < other)
        ]
        if not unsure:
            break
        leader, challenger = min(unsure, key=lambda pair: (_key(bounds[pair[0]][0]), -pair[0]))
        place = same[leader]
        expected = next(outlooks[place], None)
        if expected is None:
            # The leader's value is known: what it is not above yet has something left to draw.
            place = same[challenger]
            expected = next(outlooks[place])
        known[place] = expected
        draws[place] += 1
    return draws


def _ranked(bounds: Sequence[Bounds]) -> list[int]:
    """Places by upper bound. Those that are surely the best stand first."""
    return sorted(range(len(bounds)), key=lambda index: (-_key(bounds[index][1]), index))


def _is_above(one: int, other: int, bounds: Sequence[Bounds]) -> bool:
    """Whether `one` ends above `other` whatever is still to be drawn."""
    low, high = _key(bounds[one][0]), _key(bounds[other][1])
    return low > high or (low == high and one < other)


def _key(value: float | None) -> float:
    return -math.inf if value is None else value
