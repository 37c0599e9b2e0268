"""What the routes share: the models, the limits, and how a failure is answered."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncGenerator, Awaitable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, TypeVar

from fastapi import Request

from rprm.errors import EngineError, InputError, RequestRefused, RprmError
from rprm.records import Solution
from rprm.search.candidates import Policy
from rprm.serve.gate import Limits, error_body
from rprm.serve.judging import Judging
from rprm.serve.metrics import Metrics

T = TypeVar("T")

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Serving:
    """One server: its judge, its policy if it has one, and its limits."""

    name: str  #: of the judge's model, as `/v1/models` lists it
    judging: Judging
    policy: Policy | None
    limits: Limits
    metrics: Metrics

    def check_model(self, name: str | None) -> None:
        """An `InputError` where a request names a model that is not the judge."""
        if name not in (None, self.name):
            raise InputError(f"no model {name!r:.80} rewards here: leave it out, or name {self.name!r}")

    def checked(self, solution: Solution) -> Solution:
        """A solution within the limits, else an `InputError`."""
        if len(solution.steps) > self.limits.steps:
            raise InputError(f"it has {len(solution.steps):,} steps; at most {self.limits.steps:,} are judged")
        return solution

    async def within_time(self, work: Awaitable[T]) -> T:
        """Await some work; a TimeoutError, and the work cancelled, where it takes too long."""
        async with asyncio.timeout(self.limits.seconds):
            return await work

    async def in_time(self, stream: AsyncGenerator[T, None]) -> AsyncGenerator[T, None]:
        """What a stream yields, until it ends or its time is over."""
        ends_at = time.monotonic() + self.limits.seconds
        async with aclosing(stream):
            while True:
                try:
                    async with asyncio.timeout(ends_at - time.monotonic()):
                        found = await anext(stream)
                except StopAsyncIteration:
                    return
                yield found

    def error_of(self, error: Exception) -> tuple[int, dict[str, Any]]:
        """The status and the body that answer a failure. What the model's side, or this program, is at fault for is
        told to the server's own log: it names addresses, and says what to do on this side."""
        if isinstance(error, TimeoutError):
            reason = f"it took longer than {self.limits.seconds:g} s: send less at once, or raise --timeout"
            return 503, error_body(503, reason)
        if isinstance(error, EngineError) and not isinstance(error, RequestRefused):
            _LOG.error("rprm: the model does not answer: %s", error)
            return 503, error_body(503, "the model does not answer; the server's log says why")
        if isinstance(error, RprmError):
            return 422, error_body(422, str(error))
        _LOG.error("rprm: a fault of its own", exc_info=error)
        return 500, error_body(500, "the server failed at this request; its log says why")


def serving(request: Request) -> Serving:
    """The server that a request came to."""
    state: Serving = request.app.state.serving
    return state


def stamped(prefix: str) -> dict[str, Any]:
    """The id and the time of an answer."""
    return {"id": f"{prefix}-{uuid.uuid4().hex}", "created": int(time.time())}


async def merged(streams: Sequence[AsyncGenerator[T, None]]) -> AsyncGenerator[tuple[int, T], None]:
    """What several streams yield, each with its number, as it comes. The first failure is raised, and ends them all."""
    found: asyncio.Queue[tuple[int, T] | Exception | None] = asyncio.Queue(maxsize=64)

    async def drain(number: int, stream: AsyncGenerator[T, None]) -> None:
        try:
            async with aclosing(stream):
                async for one in stream:
                    await found.put((number, one))
            await found.put(None)
        except Exception as error:
            await found.put(error)

    tasks = [asyncio.create_task(drain(number, stream)) for number, stream in enumerate(streams)]
    try:
        num_left = len(tasks)
        while num_left:
            if (one := await found.get()) is None:
                num_left -= 1
            elif isinstance(one, Exception):
                raise one
            else:
                yield one
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
