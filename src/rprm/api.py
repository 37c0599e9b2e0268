"""The library's face: `RPRM("vllm:MODEL").score(solutions)`, in scripts and in notebooks."""

from __future__ import annotations

import asyncio
import os
import threading
import warnings
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, Future
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    aclosing,
    contextmanager,
    nullcontext,
    suppress,
)
from queue import SimpleQueue
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
Work = Callable[["_Home"], Coroutine[Any, Any, T]]

_CLOSED = "this RPRM was closed while it was at work"


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
        self._homes = {os.getpid(): _Home(self._made())}

    @property
    def _home(self) -> _Home:
        """Where the model lives in this process: a fork has none of its threads and shares its connections."""
        process = os.getpid()
        if (home := self._homes.get(process)) is not None:
            return home
        if not isinstance(self._model, str):
            raise RprmError(f"this RPRM was made from {self._origin} before a fork: make it in the new process")
        # Of threads that come here at once, all get the one that was kept first: no lock, which a fork may inherit.
        return self._homes.setdefault(process, _Home(self._made()))

    @property
    def rewarder(self) -> StepRewarder:
        """Answers `first_errors`; all else is answered by the same model in full."""
        return self._home.rewarder

    def _made(self) -> StepRewarder:
        if isinstance(self._model, str) or not hasattr(self._model, "in_full"):
            return load_rewarder(self._model, **self._options)
        defaults = RPRM.__init__.__kwdefaults__ or {}
        if given := ", ".join(name for name, value in self._options.items() if value != defaults[name]):
            raise RprmError(f"a rewarder has its options already: leave out {given}, or give its spec")
        return cast(StepRewarder, self._model)

    @property
    def _origin(self) -> str:
        kind = "a rewarder" if hasattr(self._model, "in_full") else "an engine"
        return f"{kind} ({spec_of(next(iter(self._homes.values())).rewarder)})"

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
            on_result: called with each result in order, as soon as it stands, in the caller's thread. What it raises
                ends the work.
            progress: show a progress line, in a terminal or a notebook.

        Raises:
            InputError: a record cannot be used; the message has its place in the list.
            EngineError: the model cannot be loaded, or stopped answering.
            RprmError: `close` was called meanwhile.
        """
        return self._judged(solutions, on_result, progress, in_full=True)

    def first_errors(
        self, solutions: Solutions, *, on_result: OnResult = None, progress: bool = False
    ) -> list[SolutionReward]:
        """As `score`, but with no more analyses than the first errors need (see `StepReward.settled_early`)."""
        return self._judged(solutions, on_result, progress, in_full=False)

    def score_step(self, problem: str, steps: Sequence[str], step_index: int = -1) -> StepReward:
        """The reward of one step, given the problem and the steps before it; of the last one, where no other is named.

        Raises:
            InputError: there is no such step.
            EngineError: as `score`.
        """
        solution, place = self._step(problem, steps, step_index)
        return self._wait(lambda home: _judged_step(home.in_full, solution, place))

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
            InputError: a solution cannot be used (the message has its place in the list), none has a step, or an
                aggregation or stopping is unknown.
            EngineError: as `score`.
        """
        row = self._candidates(problem, texts, aggregation, stopping)
        return self._wait(lambda home: _best_of(home.in_full, row, aggregation, stopping))

    async def score_async(self, solutions: Solutions, *, progress: bool = False) -> list[SolutionReward]:
        """`score` from an event loop. Cancelling it ends the model's work for it; so with the others."""
        rows = self._checked(solutions)
        return await self._awaited(lambda home: _judged(home.in_full, rows, progress))

    async def first_errors_async(self, solutions: Solutions, *, progress: bool = False) -> list[SolutionReward]:
        rows = self._checked(solutions)
        return await self._awaited(lambda home: _judged(home.rewarder, rows, progress))

    async def score_step_async(self, problem: str, steps: Sequence[str], step_index: int = -1) -> StepReward:
        solution, place = self._step(problem, steps, step_index)
        return await self._awaited(lambda home: _judged_step(home.in_full, solution, place))

    async def best_of_async(
        self, problem: str, texts: Iterable[str | Sequence[str]], *, aggregation: Aggregation = "min",
        stopping: ChoiceStopping = "exact",
    ) -> JudgedCandidates:  # fmt: skip
        row = self._candidates(problem, texts, aggregation, stopping)
        return await self._awaited(lambda home: _best_of(home.in_full, row, aggregation, stopping))

    def close(self) -> None:
        """Release the model; who still waits for it gets an `RprmError`. Safe to call twice; used again, it is loaded
        again."""
        if (home := self._homes.get(os.getpid())) is not None:
            home.close()

    def __del__(self) -> None:
        home = getattr(self, "_homes", {}).get(os.getpid())
        if home is not None and home.thread is not None:
            home.thread.stop()

    async def aclose(self) -> None:
        await asyncio.to_thread(self.close)

    def __exit__(self, *error: object) -> None:
        self.close()

    async def __aexit__(self, *error: object) -> None:
        await self.aclose()

    def _judged(self, values: Solutions, on_result: OnResult, progress: bool, *, in_full: bool) -> list[SolutionReward]:
        solutions = self._checked(values)  # In this thread: a generator may ask the model, and so may `on_result`.
        results: SimpleQueue[SolutionReward | None] = SimpleQueue()
        put = results.put if on_result else None
        future = self._home.submit(
            lambda home: _judged(home.in_full if in_full else home.rewarder, solutions, progress, put)
        )
        future.add_done_callback(lambda _: results.put(None))
        with _waiting(future):
            while (result := results.get()) is not None:
                if on_result is not None:
                    on_result(result)
            return future.result()

    def _checked(self, values: Solutions) -> list[Solution]:
        solutions = _solutions(values)
        self._warn(solutions)
        return solutions

    def _step(self, problem: str, steps: Sequence[str], step_index: int) -> tuple[Solution, int]:
        solution = solution_of(*rows_of([{"problem": problem, "steps": steps}]), default_id="0")
        place = solution.place(step_index)
        self._warn([solution])
        return solution, place

    def _candidates(
        self, problem: str, texts: Iterable[str | Sequence[str]], aggregation: Aggregation, stopping: ChoiceStopping
    ) -> Candidates:
        row = _candidates(problem, texts, aggregation, stopping)
        self._warn([Solution(id="0", problem=problem, steps=one.steps) for one in row.candidates])
        return row

    def _warn(self, solutions: Sequence[Solution]) -> None:
        """Warn of solutions whose rewards will mean nothing."""
        if num_outside := sum(note(spec_of(self.rewarder), one) is not None for one in solutions):
            warnings.warn(notice(num_outside, len(solutions)), stacklevel=4)

    def _wait(self, work: Work[T]) -> T:
        future = self._home.submit(work)
        with _waiting(future):
            return future.result()

    async def _awaited(self, work: Work[T]) -> T:
        try:
            return await asyncio.wrap_future(self._home.submit(work))
        except asyncio.CancelledError:
            if (task := asyncio.current_task()) is not None and not task.cancelling():
                raise RprmError(_CLOSED) from None  # It was not the caller who cancelled it.
            raise


class _Home:
    """Where a model lives in one process: its rewarder, and a thread from the first work to `close`."""

    def __init__(self, rewarder: StepRewarder) -> None:
        self.rewarder, self.in_full = rewarder, rewarder.in_full()
        self.thread: _Thread | None = None
        self._lock = threading.Lock()

    def submit(self, work: Work[T]) -> Future[T]:
        """Work on the model, in its thread."""
        if threading.current_thread() is self.thread:
            raise RprmError("an engine cannot wait for the RPRM that it works for")
        with self._lock:
            if self.thread is None or not self.thread.is_alive():
                self.thread = _Thread(self.rewarder)
            return self.thread.submit(work(self))

    def close(self) -> None:
        if threading.current_thread() is self.thread:
            raise RprmError("an engine cannot close the RPRM that it works for")
        with self._lock:
            if (thread := self.thread) is None:
                return
            thread.stop()
            thread.join()
            self.thread = None
        if thread.failure is not None:
            raise thread.failure


class _Thread(threading.Thread):
    """An event loop for a model, until it is stopped: then what is under way is cancelled, and the model released.

    It holds no `RPRM`, so that one that is dropped is collected, and stops its thread.
    """

    def __init__(self, rewarder: StepRewarder) -> None:
        super().__init__(name="rprm-loop", daemon=True)
        self.failure: BaseException | None = None  # of the release
        self._rewarder, self._loop = rewarder, asyncio.new_event_loop()
        self._work: set[asyncio.Task[Any]] = set()
        self.start()

    def submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        async def noted() -> T:
            task = asyncio.current_task()
            assert task is not None
            self._work.add(task)
            try:
                return await work
            finally:
                self._work.discard(task)

        return asyncio.run_coroutine_threadsafe(noted(), self._loop)

    def stop(self) -> None:
        with suppress(RuntimeError):  # It has ended by itself.
            self._loop.call_soon_threadsafe(self._loop.stop)

    def run(self) -> None:
        try:
            try:
                self._loop.run_forever()
            finally:
                self._loop.run_until_complete(self._end())
        except BaseException as error:
            self.failure = error
        finally:
            self._loop.close()

    async def _end(self) -> None:
        await _cancelled(self._work)
        try:
            await self._rewarder.aclose()
        finally:
            await _cancelled(asyncio.all_tasks() - {asyncio.current_task()})


async def _cancelled(tasks: Iterable[asyncio.Task[Any] | None]) -> None:
    found = [task for task in tasks if task is not None]
    for task in found:
        task.cancel()
    await asyncio.gather(*found, return_exceptions=True)


@contextmanager
def _waiting(future: Future[Any]) -> Iterator[None]:
    """Wait for work in a model's thread. Where that ends otherwise, by Ctrl-C too, the work ends."""
    try:
        yield
    except CancelledError:
        raise RprmError(_CLOSED) from None
    finally:
        future.cancel()


def _from_spec(model: str, options: dict[str, Any]) -> RPRM:
    return RPRM(model, **options)


def _solutions(values: Solutions) -> list[Solution]:
    """The solutions that are to be judged, each checked. One without an id gets its place, or a name like it that no
    other one has."""
    rows = [
        value.model_dump() | {"steps": [*value.steps]} if isinstance(value, Solution) else value
        for value in rows_of(values)
    ]
    given = {str(row["id"]) for row in rows if isinstance(row, Mapping) and row.get("id") is not None}
    solutions = []
    for index, row in enumerate(rows):
        default = str(index)
        while default in given:
            default += "'"
        try:
            solutions.append(solution_of(row, default_id=default))
        except InputError as error:
            raise InputError(f"solution {index}: {error}") from None
    return solutions


async def _judged(
    rewarder: StepRewarder, solutions: Sequence[Solution], progress: bool, put: OnResult = None
) -> list[SolutionReward]:
    line = _progress_line(len(solutions)) if progress else None
    ledger = None if line is None else Ledger(line.paid)
    results = []
    with line or nullcontext():
        await rewarder.start()
        working = in_order(iter(solutions), lambda one: rewarder.judge(one, ledger), width=rewarder.concurrency)
        async with aclosing(working) as judged:
            async for _, result in judged:
                results.append(result)
                if line is not None:
                    line.judged(result)
                if put is not None:
                    put(result)
    return results


def _progress_line(num_solutions: int) -> ProgressLine:
    from rprm.progress import ProgressLine
    from rprm.terminal import Terminal

    console = Terminal(stderr=True)
    if is_notebook := console.is_jupyter:
        # Its output takes a terminal's control codes; rich's own way needs ipywidgets, and the main thread.
        console = Terminal(stderr=True, force_jupyter=False, force_terminal=True)
    is_seen = is_notebook or console.is_terminal
    return ProgressLine(console, num_solutions, noun="solutions", disable=not is_seen)


async def _judged_step(rewarder: StepRewarder, solution: Solution, place: int) -> StepReward:
    await rewarder.start()
    return await rewarder.judge_step(solution.problem, solution.steps, place)


def _candidates(
    problem: str, texts: Iterable[str | Sequence[str]], aggregation: Aggregation, stopping: ChoiceStopping
) -> Candidates:
    if isinstance(texts, str):
        raise InputError("the solutions must be a list of texts, not one text")
    checked_aggregation(aggregation)
    if stopping not in get_args(ChoiceStopping):
        raise InputError(f"there is no stopping {stopping!r:.80}; they are {', '.join(get_args(ChoiceStopping))}")
    candidates = []
    for index, text in enumerate(texts):
        (row,) = rows_of([{"problem": problem, "steps": split_steps(text) if isinstance(text, str) else text}])
        is_empty = isinstance(text, str) and not row["steps"]  # A policy's answer may be, and is chosen last.
        try:
            steps = () if is_empty else solution_of(row, default_id="0").steps
        except InputError as error:
            raise InputError(f"solution {index}: {error}") from None
        candidates.append(Candidate(text=text if isinstance(text, str) else "\n\n".join(steps), steps=steps))
    if not any(candidate.steps for candidate in candidates):
        raise InputError("no solution has a step")
    return Candidates(problem=Problem(id="0", problem=problem), candidates=tuple(candidates))


async def _best_of(
    rewarder: StepRewarder, row: Candidates, aggregation: Aggregation, stopping: ChoiceStopping
) -> JudgedCandidates:
    await rewarder.start()
    return await choose_one(rewarder, row, aggregation=aggregation, stopping=stopping)
