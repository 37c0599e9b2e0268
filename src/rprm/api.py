"""The library's face: `RPRM("vllm:MODEL").score(solutions)`, in scripts and in notebooks."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterable
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import Any, TypeVar

from rprm.engines import Engine
from rprm.errors import InputError
from rprm.jobs import in_order
from rprm.prompts import PromptTemplate
from rprm.reading import solution_of
from rprm.records import Solution, SolutionReward
from rprm.rewarders import DEFAULT_CONFIDENCE, load_rewarder
from rprm.rewarders.base import StepRewarder
from rprm.stopping import Stopping

T = TypeVar("T")
Solutions = Iterable[Solution | dict[str, Any]]
OnResult = Callable[[SolutionReward], None] | None


class RPRM(AbstractContextManager["RPRM"], AbstractAsyncContextManager["RPRM"]):
    """A process reward model: a reasoning judge, or a classifier.

    `score` gives *rewards* by the paper's full procedure, for ranking, reinforcement learning and thresholds.
    `first_errors` gives the same predictions for about a third of the tokens: analyses end once the decision is
    certain, judging at the first step called wrong. None takes the paper's value (`rprm.presets.PAPER`) or the model's.

    Args:
        model: a known model's name ("r-prm-7b"), a spec ("vllm:MODEL", "openai:MODEL@URL", ...), or an engine.
        num_analyses: K, the most analyses a step gets.
        threshold: a step whose reward is below it is called wrong.
        stopping, confidence: within a step, for `first_errors`; see `StoppingRule`.
        first_error_exit: for `first_errors`: stop at the first step called wrong.
        force_verdict: where an analysis ends without a verdict, ask for one; a text is asked in place of the marker.
        prompt: a template, its built-in name, or its file; the model's own by default, where it is known.
        temperature, top_p, max_tokens, seed: how analyses are sampled.

    Raises:
        RprmError: an unknown kind or option of the spec, or an option that makes no sense; the message names it.
    """

    def __init__(
        self, model: str | Engine = "embedded", *,
        num_analyses: int | None = None, threshold: float | None = None,
        stopping: Stopping | None = None, confidence: float = DEFAULT_CONFIDENCE, first_error_exit: bool | None = None,
        force_verdict: bool | str | None = None, prompt: str | PromptTemplate | None = None,
        temperature: float | None = None, top_p: float | None = None, max_tokens: int | None = None, seed: int = 0,
    ) -> None:  # fmt: skip
        options = {name: value for name, value in locals().items() if name not in ("self", "model")}
        #: Answers `first_errors`; `score` is answered by the same model.
        self.rewarder = load_rewarder(model, **options)
        self._in_full = self.rewarder.in_full()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def score(self, solutions: Solutions, *, on_result: OnResult = None) -> list[SolutionReward]:
        """The rewards of solutions, in their order: every step, all K analyses.

        Args:
            solutions: records, or dicts `{problem, steps[] | solution, id?, label?}`.
            on_result: called with each result in order, as soon as it stands (from another thread).

        Raises:
            InputError: a record cannot be used; the message has its place in the list.
            EngineError: the model cannot be loaded, or stopped answering.
        """
        return self._run(_judged(self._in_full, solutions, on_result))

    def first_errors(self, solutions: Solutions, *, on_result: OnResult = None) -> list[SolutionReward]:
        """As `score`, but with no more analyses than the first errors need (see `StepReward.settled_early`)."""
        return self._run(_judged(self.rewarder, solutions, on_result))

    async def score_async(self, solutions: Solutions) -> list[SolutionReward]:
        """`score` in the caller's event loop, where an engine then lives: do not mix with the synchronous methods."""
        return await _judged(self._in_full, solutions, None)

    async def first_errors_async(self, solutions: Solutions) -> list[SolutionReward]:
        return await _judged(self.rewarder, solutions, None)

    def close(self) -> None:
        """Release the model. Safe to call twice."""
        if self._loop is not None and self._thread is not None:
            self._run(self.rewarder.aclose())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()
            self._loop = None

    async def aclose(self) -> None:
        await self.rewarder.aclose()

    def __exit__(self, *error: object) -> None:
        self.close()

    async def __aexit__(self, *error: object) -> None:
        await self.aclose()

    def _run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        # A notebook's loop is already running, and an engine must find the same loop at every call.
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            self._thread = threading.Thread(target=self._loop.run_forever, name="rprm-loop", daemon=True)
            self._thread.start()
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result()
        except BaseException:
            # Ctrl-C in the caller's thread: the work in the loop's must end too.
            future.cancel()
            raise


async def _judged(rewarder: StepRewarder, values: Solutions, on_result: OnResult) -> list[SolutionReward]:
    solutions = []
    for index, value in enumerate(values):
        try:
            solutions.append(value if isinstance(value, Solution) else solution_of(value, default_id=str(index)))
        except InputError as error:
            raise InputError(f"solution {index}: {error}") from None
    await rewarder.start()
    results = []
    async for _, result in in_order(iter(solutions), rewarder.judge, width=rewarder.concurrency):
        results.append(result)
        if on_result is not None:
            on_result(result)
    return results
