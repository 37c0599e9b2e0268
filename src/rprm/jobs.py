"""The loop that every stage shares: rows of a source through a model, results in input order, resumed after a kill.

What is finished is in `results.jsonl`, in input order; the pieces of rows that are not finished yet, or whose turn has
not come, are in the journal. A killed run is resumed by the same command: finished rows are skipped, journalled pieces
are not paid for again, and the files end up byte for byte as those of an undisturbed run.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterable, Iterator
from contextlib import aclosing, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, Protocol, Required, TypedDict, TypeVar

from rprm.cluster import Cluster
from rprm.errors import CorruptRun, InputError
from rprm.ledger import Ledger
from rprm.reading import Rejected, SourceInfo
from rprm.runs import Journal, LineWriter, Run, read_json_lines, versions

Item = TypeVar("Item")
Result = TypeVar("Result")
#: What a job works on, and what it makes of it: one row each, with the same id.
Row = TypeVar("Row", bound="Identified")
Outcome = TypeVar("Outcome", bound="Identified")
T = TypeVar("T")
Counted = TypeVar("Counted", contravariant=True)


class Identified(Protocol):
    """A row: an id, unique in its source, and one JSON line on disk."""

    @property
    def id(self) -> str: ...

    def model_dump_json(self) -> str: ...


class Counts(Protocol[Counted]):
    """The totals of a run, counted row by row."""

    num_rejected: int

    def add(self, result: Counted, /) -> None: ...

    def as_dict(self) -> dict[str, int]: ...


@dataclass
class Callbacks:
    """Progress callbacks of a run. Every function is called in the event loop's thread."""

    on_result: Callable[[Any, Any], None] = lambda item, result: None
    on_rejected: Callable[[Rejected], None] = lambda rejected: None
    #: A piece of a row, with its key, as it is paid for: an analysis, a solution, a step (not of an earlier session).
    on_piece: Callable[[str, Any], None] = lambda key, piece: None
    #: Number of rows that earlier sessions finished, and of pieces of others that they paid for.
    on_resumed: Callable[[int, int], None] = lambda num_rows, num_pieces: None


@dataclass(frozen=True)
class Job(Generic[Row, Outcome]):
    """A stage that asks a model about each row of a source: judging solutions, analysing labelled steps."""

    name: str  #: in the manifest
    #: Makes the outcome of a row; the ledger holds what an earlier session paid for, and takes what this one does.
    work: Callable[[Row, Ledger | None], Awaitable[Outcome]]
    parse: Callable[[Any], Outcome]  #: reads an outcome back from its JSON value
    totals: Counts[Outcome]  #: of earlier sessions too
    width: int  #: rows under way at once
    noun: str = "solution"  #: what a row is called in messages


async def started(
    job: Job[Row, Outcome], start: Callable[[], Awaitable[dict[str, Any]]], cluster: Cluster | None
) -> tuple[Job[Row, Outcome], dict[str, Any]]:
    """A job whose model is started, and what `start` says of that; with a cluster its replicas start it and do the
    work, each as many rows at once as this process would."""
    if cluster is None:
        return job, await start()
    described = await cluster.start(start, job.work, job.width)
    return replace(job, work=cluster.work, width=job.width * cluster.most), described


class JobOptions(TypedDict, total=False):
    """Where and how a job runs, whatever it does; see `run_job`."""

    output: Required[str | Path]
    strict: bool
    callbacks: Callbacks | None


async def run_job(
    job: Job[Row, Outcome],
    rows: Iterable[Row | Rejected],
    *,
    source: SourceInfo | None,
    output: str | Path | None,
    settings: dict[str, Any],
    strict: bool = False,
    callbacks: Callbacks | None = None,
) -> None:
    """Work through the rows of a source, in its order.

    Args:
        rows: in order; a `Rejected` one is written to `rejected.jsonl` and counted.
        source: what is read, by its digest; needed with `output`.
        output: the run folder; None keeps nothing.
        settings: everything that the results depend on.
        strict: raise an `InputError` at the first rejected row.

    Errors of the folder are those of `Run`; after `EngineUnavailable` the same call resumes the run.
    """
    callbacks = callbacks or Callbacks()
    if output is None:
        ledger = Ledger(callbacks.on_piece)
        items = _accepted(rows, job, callbacks, None, strict)
        async with _outcomes(job, items, lambda index: ledger) as outcomes:
            async for (_, row), outcome in outcomes:
                job.totals.add(outcome)
                callbacks.on_result(row, outcome)
        return
    if source is None:
        raise ValueError("a run folder needs to know its source")
    # A file may be moved or renamed between sessions: its content is what counts.
    resolved = {"input": source.digest, **settings}
    session = {"input": source.name, "num_rows": source.num_rows, "versions": versions()}
    with Run(output, stage=job.name, settings=resolved, session=session) as run:
        started = time.monotonic()
        num_tokens = await _run_in_folder(run, job, rows, strict, callbacks)
        seconds = round(time.monotonic() - started, 3)
        run.complete(job.totals.as_dict(), {"seconds": seconds, "num_generated_tokens": num_tokens})


async def _run_in_folder(
    run: Run, job: Job[Row, Outcome], rows: Iterable[Row | Rejected], strict: bool, callbacks: Callbacks
) -> int:
    """Work through the rows that are not finished; returns the number of tokens that this session generated."""
    with (
        closing(LineWriter(run.rejected_path, fresh=True)) as rejected,
        closing(LineWriter(run.results_path, checksums=run.checksums)) as results,
        closing(Journal(run.folder, run.checksums.value)) as journal,
    ):
        items = _accepted(rows, job, callbacks, rejected, strict)
        num_finished = 0
        for outcome in read_json_lines(run.results_path, job.parse, run.checksums):
            item = next(items, None)
            if item is None or item[1].id != outcome.id:
                found = "the input ends there" if item is None else f"the input has {item[1].id!r} there"
                raise CorruptRun(
                    f"{run.results_path}, line {num_finished + 1} holds {job.noun} {outcome.id!r}, but {found}; "
                    "begin a new run folder"
                )
            num_finished += 1
            job.totals.add(outcome)
            callbacks.on_result(item[1], outcome)
        tokens_before = job.totals.as_dict()["num_generated_tokens"]
        results.sync()
        pieces = journal.load(num_finished)
        callbacks.on_resumed(num_finished, sum(map(len, pieces.values())))

        def ledger_of(index: int) -> Ledger:
            def record(key: str, piece: Any) -> None:
                journal.append(index, key, piece)
                callbacks.on_piece(key, piece)

            return Ledger(record, pieces.pop(index, {}), lambda key: journal.where(index, key))

        async with _outcomes(job, items, ledger_of) as outcomes:
            async for (_, row), outcome in outcomes:
                results.write(outcome.model_dump_json())
                num_finished += 1
                if results.synced:
                    journal.finish(num_finished)
                job.totals.add(outcome)
                callbacks.on_result(row, outcome)
    return job.totals.as_dict()["num_generated_tokens"] - tokens_before


def _outcomes(
    job: Job[Row, Outcome], items: Iterator[tuple[int, Row]], ledger_of: Callable[[int], Ledger]
) -> aclosing[AsyncGenerator[tuple[tuple[int, Row], Outcome], None]]:
    """The outcomes in order; nothing is under way any more when the context is left, however that is."""

    async def work(item: tuple[int, Row]) -> Outcome:
        return await job.work(item[1], ledger_of(item[0]))

    return aclosing(in_order(items, work, width=job.width))


def _accepted(
    rows: Iterable[Row | Rejected],
    job: Job[Row, Outcome],
    callbacks: Callbacks,
    writer: LineWriter | None,
    strict: bool,
) -> Iterator[tuple[int, Row]]:
    """Number the rows that can be used; the rejected ones are written and counted."""
    index = 0
    for row in rows:
        if not isinstance(row, Rejected):
            yield index, row
            index += 1
            continue
        if writer is not None:
            for line in row.listed(job.totals.num_rejected):
                writer.write(line)
        if strict:
            raise InputError(f"{row.file}, line {row.line}: {row.reason}")
        job.totals.num_rejected += 1
        callbacks.on_rejected(row)


async def in_order(
    items: Iterator[Item], work: Callable[[Item], Awaitable[Result]], *, width: int, window: int | None = None
) -> AsyncGenerator[tuple[Item, Result], None]:
    """Work on `width` items at a time and yield results in the order of the items.

    At most `window` items (default 4 * width + 64, of more than 1,024 at once width + 3,136) are started before the
    oldest unfinished one, so that memory stays flat. The first failure is raised as soon as it happens, wherever it
    stands; everything else is cancelled.
    """
    window = window or width + 3 * min(width, 1024) + 64
    places = asyncio.Semaphore(width)
    failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def run(item: Item) -> Result:
        async with places:
            if failed.done():
                # After a failure nothing more is started.
                raise asyncio.CancelledError
            try:
                return await work(item)
            except Exception as error:
                if not failed.done():
                    failed.set_exception(error)
                raise

    under_way: deque[tuple[Item, asyncio.Task[Result]]] = deque()
    try:
        exhausted = False
        while True:
            while not exhausted and len(under_way) < window:
                try:
                    item = next(items)
                except StopIteration:
                    exhausted = True
                    break
                under_way.append((item, asyncio.create_task(run(item))))
                if len(under_way) % width == 0:
                    await asyncio.sleep(0)
            if not under_way:
                return
            item, task = under_way[0]
            watched: set[asyncio.Future[Any]] = {task, failed}
            await asyncio.wait(watched, return_when=asyncio.FIRST_COMPLETED)
            if failed.done():
                failed.result()
            under_way.popleft()
            yield item, task.result()
    finally:
        for _, task in under_way:
            task.cancel()
        await asyncio.gather(*(task for _, task in under_way), return_exceptions=True)
        if failed.done():
            failed.exception()


async def all_or_none(coroutines: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Await all at once, in order. The first failure cancels the rest, waits for their end, and is raised as it is."""
    tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
    try:
        return list(await asyncio.gather(*tasks))
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise
