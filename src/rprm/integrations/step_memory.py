"""Rewards of steps, each judged once: searches hand over the same growing answers again and again."""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any
from weakref import WeakValueDictionary

from rprm.integrations.answers import AnyRewarder, rewarder_of
from rprm.jobs import all_or_none

#: Rewards remembered, some 200 bytes each.
CAPACITY = 100_000


class StepMemory:
    """The rewards in full of steps after the steps before them. The least recently used are forgotten first.

    Args:
        capacity: how many are remembered.
    """

    def __init__(self, prm: AnyRewarder, capacity: int = CAPACITY) -> None:
        self.prm = rewarder_of(prm)
        self.capacity = capacity
        self._rewards: OrderedDict[bytes, float | None] = OrderedDict()
        #: Held while a step is judged, by whoever asks first in an event loop: others wait, and find its reward.
        self._locks: WeakValueDictionary[tuple[Any, bytes], asyncio.Lock] = WeakValueDictionary()

    async def rewards(
        self, solutions: Sequence[tuple[str, Sequence[str]]], *, last_only: bool = False
    ) -> list[list[float | None]]:
        """The rewards of the steps of solutions, each after its problem; of the last steps alone, where that is wanted.

        Raises:
            InputError, EngineError: as `RPRM.score_step`.
        """
        keys = [list(_keys(problem, steps))[-1 if last_only else 0 :] for problem, steps in solutions]
        wanted = {
            key: (problem, steps[:end])
            for (problem, steps), of_steps in zip(solutions, keys, strict=True)
            for end, key in enumerate(of_steps, len(steps) - len(of_steps) + 1)
        }
        rewards = await all_or_none(self._reward(key, *step) for key, step in wanted.items())
        found = dict(zip(wanted, rewards, strict=True))
        return [[found[key] for key in of_steps] for of_steps in keys]

    async def _reward(self, key: bytes, problem: str, steps: Sequence[str]) -> float | None:
        async with self._locks.setdefault((asyncio.get_running_loop(), key), asyncio.Lock()):
            try:
                reward = self._rewards[key]
                self._rewards.move_to_end(key)
            except KeyError:  # not known, or forgotten in another thread
                reward = self._rewards[key] = (await self.prm.score_step_async(problem, steps)).reward
                while len(self._rewards) > self.capacity:
                    self._rewards.popitem(last=False)
            return reward


def _keys(problem: str, steps: Sequence[str]) -> Iterator[bytes]:
    """A digest for each step, of the problem and the steps up to it."""
    digest = hashlib.sha256()
    for index, text in enumerate([problem, *steps]):
        encoded = text.encode(errors="surrogatepass")
        digest.update(b"%d " % len(encoded) + encoded)
        if index:
            yield digest.copy().digest()
