"""Judging a whole source: many solutions at once, results in input order, nothing lost to a kill.

What is finished is in `results.jsonl`, in input order; analyses of solutions that are not finished yet, or whose turn
has not come, are in the journal. A killed run is begun again with the same command: finished solutions are skipped,
journalled analyses are not sampled again, and the files end up byte for byte as those of an undisturbed run.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import platform
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from rprm.artifacts import FORMAT, Journal, LineWriter, Run, read_json_lines
from rprm.errors import CorruptRun, InputError
from rprm.reading import Rejected, SourceInfo
from rprm.records import REWARD_FORMAT, Solution, SolutionReward
from rprm.rewarder import Ledger, StepRewarder

Item = TypeVar("Item")
Result = TypeVar("Result")
#: What a stage works on, and what it makes of it: one row each, with the same id.
Row = TypeVar("Row", bound="Named")
Outcome = TypeVar("Outcome", bound="Identified")
Counted = TypeVar("Counted", contravariant=True)

#: Packages whose versions can change a result.
_PACKAGES = ("rprm", "torch", "transformers", "vllm", "peft", "httpx", "numpy")


@dataclass
class Totals:
    """What a run came to. Steps after a first-error exit are in `num_steps` alone.

    Attributes:
        num_wrong: solutions with an error.
        num_unjudged: solutions of which it is not known whether they have one: `first_error` is None.
        num_steps_cut: steps of which the model's context cut an analysis short.
        max_tokens: of an analysis, None for rewarders that write none.
        failure: why the first step without a reward has none.
    """

    num_solutions: int = 0
    num_rejected: int = 0
    num_wrong: int = 0
    num_unjudged: int = 0
    num_steps: int = 0
    num_steps_judged: int = 0
    num_steps_uncovered: int = 0
    num_steps_cut: int = 0
    num_analyses: int = 0
    num_analyses_without_verdict: int = 0
    num_analyses_forced: int = 0
    num_generated_tokens: int = 0
    num_prompt_tokens: int = 0
    max_tokens: int | None = None
    failure: str | None = None

    @property
    def nothing_judged(self) -> bool:
        """Whether there were steps to judge, and none of them has a reward."""
        return 0 < self.num_steps_judged == self.num_steps_uncovered

    def add(self, result: SolutionReward) -> None:
        self.num_solutions += 1
        self.num_unjudged += result.first_error is None
        self.num_wrong += result.first_error is not None and result.first_error >= 0
        self.num_steps += result.num_steps
        self.num_steps_judged += len(result.steps)
        self.num_steps_uncovered += len(result.uncovered)
        for step in result.steps:
            self.failure = self.failure or step.failure
            if (limit := self.max_tokens) is not None:
                self.num_steps_cut += any(analysis.is_cut_by_context(limit) for analysis in step.analyses)
            self.num_analyses += len(step.analyses)
            self.num_analyses_without_verdict += step.num_without_verdict
            self.num_analyses_forced += sum(analysis.forced for analysis in step.analyses)
            self.num_generated_tokens += sum(analysis.num_tokens for analysis in step.analyses)
            self.num_prompt_tokens += sum(analysis.num_prompt_tokens or 0 for analysis in step.analyses)

    def as_dict(self) -> dict[str, int]:
        return {name: value for name, value in asdict(self).items() if name not in ("max_tokens", "failure")}


class Named(Protocol):
    """A row with an id, unique in its source."""

    @property
    def id(self) -> str: ...


class Identified(Named, Protocol):
    """A finished row: it carries the id of its item, and is one JSON line on disk."""

    def model_dump_json(self) -> str: ...


class Tally(Protocol[Counted]):
    """What a run came to, counted row by row."""

    num_rejected: int

    def add(self, result: Counted, /) -> None: ...

    def as_dict(self) -> dict[str, int]: ...


@dataclass
class Watcher:
    """What is told of a run while it goes on. Every function is called in the event loop's thread."""

    on_result: Callable[[Any, Any], None] = lambda item, result: None
    on_rejected: Callable[[Rejected], None] = lambda rejected: None
    #: Number of rows that earlier sessions finished.
    on_resumed: Callable[[int], None] = lambda num_rows: None


async def judge_source(
    rewarder: StepRewarder,
    rows: Iterable[Solution | Rejected],
    *,
    source: SourceInfo | None = None,
    output: str | Path | None = None,
    settings: dict[str, Any] | None = None,
    strict: bool = False,
    watcher: Watcher | None = None,
) -> Totals:
    """Judge every solution of a source, in its order.

    Args:
        rewarder: what rewards the steps.
        rows: the source's solutions, with rejected rows among them.
        source: what identifies the source in the manifest; needed with `output`.
        output: the run folder; None keeps nothing.
        settings: further settings that the results depend on.
        strict: stop at the first rejected row.
        watcher: told of each result, in order.

    Returns:
        Totals over all sessions.

    Raises:
        RunError: the folder cannot be used; see `Run`.
        InputError: a rejected row, when strict.
        EngineUnavailable: the engine stopped answering; the run can be resumed.
    """
    described = await rewarder.start()
    totals = Totals(max_tokens=described.get("max_tokens"))
    stage = Stage(
        name="judge",
        work=rewarder.judge,
        parse=SolutionReward.model_validate,
        totals=totals,
        width=rewarder.concurrency,
    )
    await run_stage(
        stage, rows, source=source, output=output,
        settings={FORMAT: REWARD_FORMAT, **(settings or {}), **described}, strict=strict, watcher=watcher,
    )  # fmt: skip
    return totals


@dataclass(frozen=True)
class Stage(Generic[Row, Outcome]):
    """A stage that asks a model about each row of a source: judging solutions, analysing labelled steps.

    Attributes:
        name: of the stage, in the manifest.
        work: makes the outcome of a row. The ledger holds what an earlier session paid for, and takes what this one
            pays for.
        parse: reads an outcome back from its JSON value.
        totals: counts outcomes, those of earlier sessions too.
        width: rows under way at once.
        noun: what a row is called in messages.
    """

    name: str
    work: Callable[[Row, Ledger | None], Awaitable[Outcome]]
    parse: Callable[[Any], Outcome]
    totals: Tally[Outcome]
    width: int
    noun: str = "solution"


async def run_stage(
    stage: Stage[Row, Outcome],
    rows: Iterable[Row | Rejected],
    *,
    source: SourceInfo | None,
    output: str | Path | None,
    settings: dict[str, Any],
    strict: bool = False,
    watcher: Watcher | None = None,
) -> None:
    """Work through the rows of a source, in its order; see `judge_source` for the arguments and what it raises."""
    watcher = watcher or Watcher()
    if output is None:
        items = _accepted(rows, stage, watcher, None, strict)

        async def work_alone(item: tuple[int, Row]) -> Outcome:
            return await stage.work(item[1], None)

        async for (_, row), outcome in in_order(items, work_alone, width=stage.width):
            stage.totals.add(outcome)
            watcher.on_result(row, outcome)
        return
    if source is None:
        raise ValueError("a run folder needs to know its source")
    # A file may be moved or renamed between sessions: its content is what counts.
    resolved = {"input": source.digest, **settings}
    session = {"input": source.name, "versions": versions()}
    with Run(output, stage=stage.name, settings=resolved, session=session) as run:
        await _run_in_folder(run, stage, rows, strict, watcher)


async def _run_in_folder(
    run: Run, stage: Stage[Row, Outcome], rows: Iterable[Row | Rejected], strict: bool, watcher: Watcher
) -> None:
    started = time.monotonic()
    journal = run.journal()
    rejected = LineWriter(run.rejected_path, fresh=True)
    items = _accepted(rows, stage, watcher, rejected, strict)
    before: dict[str, int] = {}
    try:
        num_finished = 0
        for value in read_json_lines(run.results_path):
            outcome = stage.parse(value)
            item = next(items, None)
            if item is None or item[1].id != outcome.id:
                found = "the input ends there" if item is None else f"the input has {item[1].id!r} there"
                raise CorruptRun(
                    f"{run.results_path}, line {num_finished + 1} holds {stage.noun} {outcome.id!r}, but {found}; "
                    "begin a new run folder"
                )
            num_finished += 1
            stage.totals.add(outcome)
            watcher.on_result(item[1], outcome)
        before = stage.totals.as_dict()
        watcher.on_resumed(num_finished)
        pieces = journal.load(num_finished)
        results = LineWriter(run.results_path)
        try:

            async def work(item: tuple[int, Row]) -> Outcome:
                index, row = item
                return await stage.work(row, _JournalLedger(journal, index, pieces.pop(index, {})))

            async for (index, row), outcome in in_order(items, work, width=stage.width):
                results.write(outcome.model_dump_json())
                journal.finish(index + 1)
                stage.totals.add(outcome)
                watcher.on_result(row, outcome)
        finally:
            results.close()
            journal.close()
    except BaseException as error:
        run.note({"seconds": round(time.monotonic() - started, 3), "stopped_by": type(error).__name__})
        raise
    finally:
        rejected.close()
    totals = stage.totals.as_dict()
    session = {
        "seconds": round(time.monotonic() - started, 3),
        "num_generated_tokens": totals["num_generated_tokens"] - before["num_generated_tokens"],
    }
    run.complete(totals, session)


class _JournalLedger(Ledger):
    def __init__(self, journal: Journal, index: int, pieces: dict[str, Any]) -> None:
        self._journal = journal
        self._index = index
        self._pieces = pieces

    def get(self, key: str) -> Any | None:
        return self._pieces.get(key)

    def put(self, key: str, piece: Any) -> None:
        self._journal.append(self._index, key, piece)


def _accepted(
    rows: Iterable[Row | Rejected],
    stage: Stage[Row, Outcome],
    watcher: Watcher,
    writer: LineWriter | None,
    strict: bool,
) -> Iterator[tuple[int, Row]]:
    """Number the rows, and set the rejected ones aside."""
    index = 0
    for row in rows:
        if not isinstance(row, Rejected):
            yield index, row
            index += 1
            continue
        if writer is not None:
            writer.write(row.model_dump_json())
        if strict:
            raise InputError(f"{row.file}, line {row.line}: {row.reason}")
        stage.totals.num_rejected += 1
        watcher.on_rejected(row)


class _Slot(Generic[Item, Result]):
    def __init__(self, item: Item, task: asyncio.Task[Result]) -> None:
        self.item = item
        self.task = task


async def in_order(
    items: Iterator[Item], work: Callable[[Item], Awaitable[Result]], *, width: int, window: int | None = None
) -> AsyncIterator[tuple[Item, Result]]:
    """Work on `width` items at a time and yield results in the order of the items.

    At most `window` items (default 4 * width + 64) are begun before the oldest unfinished one, so that memory stays
    flat. The first failure is raised as soon as it happens, wherever it stands; everything else is cancelled.
    """
    window = window or 4 * width + 64
    places = asyncio.Semaphore(width)
    failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def run(item: Item) -> Result:
        async with places:
            if failed.done():
                # Nothing more is begun once all is lost.
                raise asyncio.CancelledError
            try:
                return await work(item)
            except Exception as error:
                if not failed.done():
                    failed.set_exception(error)
                raise

    slots: deque[_Slot[Item, Result]] = deque()
    try:
        exhausted = False
        while True:
            while not exhausted and len(slots) < window:
                try:
                    item = next(items)
                except StopIteration:
                    exhausted = True
                    break
                slots.append(_Slot(item, asyncio.create_task(run(item))))
                if len(slots) % width == 0:
                    await asyncio.sleep(0)
            if not slots:
                return
            head = slots[0]
            watched: set[asyncio.Future[Any]] = {head.task, failed}
            await asyncio.wait(watched, return_when=asyncio.FIRST_COMPLETED)
            if failed.done():
                failed.result()
            slots.popleft()
            yield head.item, head.task.result()
    finally:
        for slot in slots:
            slot.task.cancel()
        await asyncio.gather(*(slot.task for slot in slots), return_exceptions=True)
        if failed.done():
            failed.exception()


def versions() -> dict[str, str]:
    """Versions of Python and of every installed package that a result can depend on."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
