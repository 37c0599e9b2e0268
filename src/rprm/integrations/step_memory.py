"""Rewards of steps, each judged once: searches hand over the same growing answers again and again."""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence

from rprm.integrations.answers import AnyRewarder, rewarder_of

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

    async def rewards(
        self, solutions: Sequence[tuple[str, Sequence[str]]], *, last_only: bool = False
    ) -> list[list[float | None]]:
        """The rewards of the steps of solutions, each after its problem; of the last steps alone, where that is wanted.

        Raises:
            InputError, EngineError: as `RPRM.score_step`.
        """
        keys = [list(_keys(problem, steps))[-1 if last_only else 0 :] for problem, steps in solutions]
        found: dict[bytes, float | None] = {}
        tasks = {}
        for (problem, steps), of_steps in zip(solutions, keys, strict=True):
            for end, key in enumerate(of_steps, len(steps) - len(of_steps) + 1):
                try:
                    found[key] = self._rewards[key]
                    self._rewards.move_to_end(key)
                except KeyError:  # not known, or forgotten in another thread
                    if key in tasks or key in found:
                        continue
                    tasks[key] = asyncio.ensure_future(self.prm.score_step_async(problem, steps[:end]))
        try:
            judged = await asyncio.gather(*tasks.values())
        except BaseException:
            for task in tasks.values():
                task.cancel()
            raise
        new = {key: step.reward for key, step in zip(tasks, judged, strict=True)}
        self._rewards.update(new)
        while len(self._rewards) > self.capacity:
            self._rewards.popitem(last=False)
        found.update(new)
        return [[found[key] for key in of_steps] for of_steps in keys]


def _keys(problem: str, steps: Sequence[str]) -> Iterator[bytes]:
    """A digest for each step, of the problem and the steps up to it."""
    digest = hashlib.sha256()
    for index, text in enumerate([problem, *steps]):
        encoded = text.encode(errors="surrogatepass")
        digest.update(b"%d " % len(encoded) + encoded)
        if index:
            yield digest.copy().digest()
