"""Rewards for a server: what was judged in full is kept for equal requests, and work ends when its client goes away."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncGenerator, Coroutine
from contextlib import aclosing
from typing import Any, TypeVar

from fastapi import Request

from rprm.embedded import note
from rprm.ledger import Ledger
from rprm.records import Solution, SolutionReward, StepReward
from rprm.rewarders.base import StepRewarder, StepStreamer, solution_reward, spec_of
from rprm.serve.metrics import Metrics

T = TypeVar("T")
Kept = SolutionReward | StepReward
JudgedStep = tuple[StepReward, bool | None]  #: with its verdict


class Gone(Exception):
    """The client went away: there is nobody to answer."""


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Await some work; `Gone`, and the work cancelled, where the client goes away before it ends."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise Gone
        return working.result()
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


class Judging:
    """A rewarder, its two questions, and the rewards that are kept. Equal requests are those of equal texts: `id` and
    `label` play no part. A reward is kept only where every step has one: what failed is tried again."""

    def __init__(self, rewarder: StepRewarder, metrics: Metrics, cache_mb: int) -> None:
        self.rewarders = {"full": rewarder.in_full(), "first-errors": rewarder}
        self.threshold = rewarder.threshold
        self.metrics = metrics
        self._ledger = Ledger(metrics.paid)
        self._kept: OrderedDict[tuple[str, ...], tuple[Kept, int]] = OrderedDict()
        self._most, self._size = cache_mb << 20, 0

    def notes(self, solution: Solution) -> list[str]:
        """What to know of a solution before its rewards are used."""
        found = note(spec_of(self.rewarders["full"]), solution)
        return [] if found is None else [found]

    async def solution(self, solution: Solution, question: str) -> SolutionReward:
        """The rewards of a solution."""
        key = (question, solution.problem, *solution.steps)
        if isinstance(kept := self._find(key), SolutionReward):
            return kept.model_copy(update={"id": solution.id, "label": solution.label})
        result = await self.rewarders[question].judge(solution, self._ledger)
        for step in result.steps:
            self.metrics.judged(step)
        self._keep(key, result, all(step.reward is not None for step in result.steps))
        return result

    async def in_steps(self, solution: Solution, question: str) -> AsyncGenerator[JudgedStep | SolutionReward, None]:
        """The rewards of a solution, step by step as they stand, and then all of it."""
        rewarder, key = self.rewarders[question], (question, solution.problem, *solution.steps)
        if not isinstance(rewarder, StepStreamer) or key in self._kept:
            result = await self.solution(solution, question)
            for judged in zip(result.steps, result.verdicts(self.threshold), strict=True):
                yield judged
        else:
            steps = []
            async with aclosing(rewarder.judge_steps(solution, self._ledger)) as stream:
                async for step in stream:
                    self.metrics.judged(step)
                    steps.append(step)
                    yield step, step.verdict(self.threshold)
            result = solution_reward(solution, steps, self.threshold)
            self._keep(key, result, all(step.reward is not None for step in steps))
        yield result

    async def step(self, problem: str, steps: tuple[str, ...], step_index: int) -> StepReward:
        """The reward of one step."""
        key = ("step", str(step_index), problem, *steps)
        if isinstance(kept := self._find(key), StepReward):
            return kept
        result = await self.rewarders["full"].judge_step(problem, steps, step_index, self._ledger)
        self.metrics.judged(result)
        self._keep(key, result, result.reward is not None)
        return result

    def _find(self, key: tuple[str, ...]) -> Kept | None:
        if key not in self._kept:
            return None
        self._kept.move_to_end(key)
        self.metrics.cached.inc()
        return self._kept[key][0]

    def _keep(self, key: tuple[str, ...], result: Kept, is_whole: bool) -> None:
        steps = result.steps if isinstance(result, SolutionReward) else (result,)
        # The texts are nearly all of it: a character is at most four bytes, a record some hundreds.
        texts = [*key, *(one.text for step in steps for one in step.analyses)]
        size = 1_000 + 500 * (len(steps) + len(texts)) + 4 * sum(map(len, texts))
        if not is_whole or size > self._most:
            return
        self._size += size - (self._kept.pop(key)[1] if key in self._kept else 0)
        self._kept[key] = result, size
        while self._size > self._most:
            self._size -= self._kept.popitem(last=False)[1][1]
