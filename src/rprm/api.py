"""The library's face: `RPRM("vllm:MODEL").score(solutions)`, in scripts and in notebooks."""

from __future__ import annotations

import asyncio
import os
import threading
import warnings
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager, AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, TypeVar, cast, get_args

from rprm.aggregation import Aggregation, checked_aggregation
from rprm.benchmarks.mathematics import Problem
from rprm.embedded import note, notice
from rprm.engines import Engine
from rprm.errors import InputError, RprmError
from rprm.jobs import in_order
from rprm.ledger import Ledger
from rprm.prompts import PromptTemplate
from rprm.reading import solution_of
from rprm.records import Solution, SolutionReward, StepReward
from rprm.rewarders import DEFAULT_CONFIDENCE, load_rewarder
from rprm.rewarders.base import StepRewarder, spec_of
from rprm.search.candidates import Candidate, Candidates, ChoiceStopping, JudgedCandidates, choose_one
from rprm.splitting import split_steps
from rprm.stopping import Stopping
from rprm.tables import Frame, rows_of

if TYPE_CHECKING:
    from rprm.progress import ProgressLine

T = TypeVar("T")
Solutions = Iterable[Solution | Mapping[str, Any]] | Frame
OnResult = Callable[[SolutionReward], None] | None
Work = Callable[[], Coroutine[Any, Any, T]]


class RPRM(AbstractContextManager["RPRM"], AbstractAsyncContextManager["RPRM"]):
    """A process reward model: a reasoning judge, or a classifier.

    `score` gives *rewards* by the paper's full procedure, for ranking, reinforcement learning and thresholds.
    `first_errors` gives the same predictions for about a third of the tokens: analyses end once the decision is
    certain, judging at the first step called wrong. None takes the paper's value (`rprm.presets.PAPER`) or the model's.

    The model lives in a thread of its own, so that scripts, notebooks and any event loop may call it, several at once.
    After a fork, and where it was pickled, it is made anew from its spec.

    Args:
        model: a known model's name ("r-prm-7b"), a spec ("vllm:MODEL", "openai:MODEL@URL", ...), an engine, or a
            rewarder that `load_rewarder` made, which has its options already.
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
        self, model: str | Engine | StepRewarder = "embedded", *,
        num_analyses: int | None = None, threshold: float | None = None,
        stopping: Stopping | None = None, confidence: float = DEFAULT_CONFIDENCE, first_error_exit: bool | None = None,
        force_verdict: bool | str | None = None, prompt: str | PromptTemplate | None = None,
        temperature: float | None = None, top_p: float | None = None, max_tokens: int | None = None, seed: int = 0,
    ) -> None:  # fmt: skip
        self._options = {name: value for name, value in locals().items() if name not in ("self", "model")}
        self._model = model
        self._make()

    def _make(self) -> None:
        #: Answers `first_errors`; all else is answered by the same model in full.
        self.rewarder = self._made()
        self._in_full = self.rewarder.in_full()
        self._process = os.getpid()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    def _made(self) -> StepRewarder:
        if isinstance(self._model, str) or not hasattr(self._model, "in_full"):
            return load_rewarder(self._model, **self._options)
        defaults = RPRM.__init__.__kwdefaults__ or {}
        if given := ", ".join(name for name, value in self._options.items() if value != defaults[name]):
            raise RprmError(f"a rewarder has its options already: leave out {given}, or give its spec")
        return cast(StepRewarder, self._model)

    @property
    def _origin(self) -> str:
        kind = "a rewarder" if self._model is self.rewarder else "an engine"
        return f"{kind} ({spec_of(self.rewarder)})"

    def __reduce__(self) -> tuple[Any, ...]:
        if not isinstance(self._model, str):
            raise TypeError(f"an RPRM made from {self._origin} cannot be pickled: make it from a spec")
        return _from_spec, (self._model, self._options)

    def score(
        self, solutions: Solutions, *, on_result: OnResult = None, progress: bool = False
    ) -> list[SolutionReward]:
        """The rewards of solutions, in their order: every step, all K analyses.

        Args:
            solutions: records, dicts `{problem, steps[] | solution, id?, label?}` or `{messages}` (a chat), a DataFrame
                of pandas or a data set of `datasets` with such columns; steps may be a numpy array of texts.
            on_result: called with each result in order, as soon as it stands (from another thread).
            progress: show a progress line, in a terminal or a notebook.

        Raises:
            InputError: a record cannot be used; the message has its place in the list.
            EngineError: the model cannot be loaded, or stopped answering.
        """
        return self._wait(lambda: _judged(self._in_full, solutions, on_result, progress))

    def first_errors(
        self, solutions: Solutions, *, on_result: OnResult = None, progress: bool = False
    ) -> list[SolutionReward]:
        """As `score`, but with no more analyses than the first errors need (see `StepReward.settled_early`)."""
        return self._wait(lambda: _judged(self.rewarder, solutions, on_result, progress))

    def score_step(self, problem: str, steps: Sequence[str], step_index: int = -1) -> StepReward:
        """The reward of one step, given the problem and the steps before it; of the last one, where no other is named.

        Raises:
            InputError: there is no such step.
            EngineError: as `score`.
        """
        return self._wait(lambda: _judged_step(self._in_full, problem, steps, step_index))

    def best_of(
        self, problem: str, texts: Iterable[str | Sequence[str]], *, aggregation: Aggregation = "min",
        stopping: ChoiceStopping = "exact",
    ) -> JudgedCandidates:  # fmt: skip
        """The best of several solutions of a problem (`chosen`, its index), as `rprm search best-of-n` chooses.

        Args:
            texts: whole solutions, which are cut into steps, or lists of steps.
            aggregation: how the rewards of steps become that of a solution.
            stopping: "exact" stops judging once the choice is certain, "none" rewards every solution in full.

        Returns:
            `rewards[i]` has the bounds between which the reward of solution i lies, `low` and `high`: they meet where
            it was judged in full, and what the choice did not need is left open.

        Raises:
            InputError: no list of texts, or an unknown aggregation or stopping.
            EngineError: as `score`.
        """
        return self._wait(lambda: _best_of(self._in_full, problem, texts, aggregation, stopping))

    async def score_async(self, solutions: Solutions, *, progress: bool = False) -> list[SolutionReward]:
        """`score` from an event loop. Cancelling it ends the model's work for it; so with the others."""
        return await self._awaited(lambda: _judged(self._in_full, solutions, None, progress))

    async def first_errors_async(self, solutions: Solutions, *, progress: bool = False) -> list[SolutionReward]:
        return await self._awaited(lambda: _judged(self.rewarder, solutions, None, progress))

    async def score_step_async(self, problem: str, steps: Sequence[str], step_index: int = -1) -> StepReward:
        return await self._awaited(lambda: _judged_step(self._in_full, problem, steps, step_index))

    async def best_of_async(
        self, problem: str, texts: Iterable[str | Sequence[str]], *, aggregation: Aggregation = "min",
        stopping: ChoiceStopping = "exact",
    ) -> JudgedCandidates:  # fmt: skip
        return await self._awaited(lambda: _best_of(self._in_full, problem, texts, aggregation, stopping))

    def close(self) -> None:
        """Release the model. Safe to call twice; used again, it is loaded again."""
        with self._lock:
            if self._loop is None or self._thread is None or self._process != os.getpid():
                return
            asyncio.run_coroutine_threadsafe(self.rewarder.aclose(), self._loop).result()
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()
            self._loop = None

    async def aclose(self) -> None:
        await asyncio.to_thread(self.close)

    def __exit__(self, *error: object) -> None:
        self.close()

    async def __aexit__(self, *error: object) -> None:
        await self.aclose()

    def _submitted(self, work: Work[T]) -> Future[T]:
        """Work on the model, in the loop where it lives."""
        if self._process != os.getpid():
            # A fork has none of the model's threads and shares its connections.
            if not isinstance(self._model, str):
                raise RprmError(f"this RPRM was made from {self._origin} before a fork: make it in the new process")
            self._make()
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(target=self._loop.run_forever, name="rprm-loop", daemon=True)
                self._thread.start()
            return asyncio.run_coroutine_threadsafe(work(), self._loop)

    def _wait(self, work: Work[T]) -> T:
        future = self._submitted(work)
        try:
            return future.result()
        except BaseException:
            # Ctrl-C in the caller's thread: the work in the loop's must end too.
            future.cancel()
            raise

    async def _awaited(self, work: Work[T]) -> T:
        return await asyncio.wrap_future(self._submitted(work))


def _from_spec(model: str, options: dict[str, Any]) -> RPRM:
    return RPRM(model, **options)


async def _judged(
    rewarder: StepRewarder, values: Solutions, on_result: OnResult, progress: bool
) -> list[SolutionReward]:
    solutions = []
    for index, value in enumerate(rows_of(values)):
        try:
            solutions.append(value if isinstance(value, Solution) else solution_of(value, default_id=str(index)))
        except InputError as error:
            raise InputError(f"solution {index}: {error}") from None
    _warn(rewarder, solutions)
    line = _progress_line(len(solutions)) if progress else None
    ledger = None if line is None else Ledger(line.paid)
    results = []
    with line or nullcontext():
        await rewarder.start()
        judged = in_order(iter(solutions), lambda one: rewarder.judge(one, ledger), width=rewarder.concurrency)
        async for _, result in judged:
            results.append(result)
            if line is not None:
                line.judged(result)
            if on_result is not None:
                on_result(result)
    return results


def _warn(rewarder: StepRewarder, solutions: Sequence[Solution]) -> None:
    """Warn of solutions whose rewards will mean nothing."""
    if num_outside := sum(note(spec_of(rewarder), one) is not None for one in solutions):
        warnings.warn(notice(num_outside, len(solutions)), stacklevel=2)


def _progress_line(num_solutions: int) -> ProgressLine:
    from rprm.progress import ProgressLine
    from rprm.terminal import Terminal

    console = Terminal(stderr=True)
    if is_notebook := console.is_jupyter:
        # Its output takes a terminal's control codes; rich's own way needs ipywidgets, and the main thread.
        console = Terminal(stderr=True, force_jupyter=False, force_terminal=True)
    is_seen = is_notebook or console.is_terminal
    return ProgressLine(console, num_solutions, noun="solutions", disable=not is_seen)


async def _judged_step(rewarder: StepRewarder, problem: str, steps: Sequence[str], step_index: int) -> StepReward:
    solution = solution_of(*rows_of([{"problem": problem, "steps": steps}]), default_id="0")
    place = solution.place(step_index)
    _warn(rewarder, [solution])
    await rewarder.start()
    return await rewarder.judge_step(problem, solution.steps, place)


async def _best_of(
    rewarder: StepRewarder, problem: str, texts: Iterable[str | Sequence[str]], aggregation: Aggregation,
    stopping: ChoiceStopping,
) -> JudgedCandidates:  # fmt: skip
    if isinstance(texts, str):
        raise InputError("the solutions must be a list of texts, not one text")
    aggregation = checked_aggregation(aggregation)
    if stopping not in get_args(ChoiceStopping):
        raise InputError(f"there is no stopping {stopping!r:.80}; they are {', '.join(get_args(ChoiceStopping))}")
    candidates = []
    for text in texts:
        steps = split_steps(text) if isinstance(text, str) else text
        candidates.append(Candidate(text=text if isinstance(text, str) else "\n\n".join(text), steps=tuple(steps)))
    _warn(rewarder, [Solution(id="0", problem=problem, steps=one.steps) for one in candidates])
    await rewarder.start()
    row = Candidates(problem=Problem(id="0", problem=problem), candidates=tuple(candidates))
    return await choose_one(rewarder, row, aggregation=aggregation, stopping=stopping)
