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
from dataclasses import asdict, dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any, ClassVar, Generic, NamedTuple, Protocol, Required, TypedDict, TypeVar, runtime_checkable
from zlib import crc32

from rprm.cluster import Cluster
from rprm.errors import CorruptRun, InputError
from rprm.files import Checksums
from rprm.ledger import Ledger
from rprm.reading import Rejected, SourceInfo
from rprm.runs import Index, Journal, LineWriter, Run, read_index, read_json_lines, versions

Item = TypeVar("Item")
Result = TypeVar("Result")
#: What a job works on, and what it makes of it: one row each, with the same id.
Row = TypeVar("Row", bound="Identified")
Outcome = TypeVar("Outcome", bound="Identified")
T = TypeVar("T")
RowT = TypeVar("RowT", covariant=True)
Counted = TypeVar("Counted", contravariant=True)


class Identified(Protocol):
    """A row: an id, unique in its source, and one JSON line on disk."""

    @property
    def id(self) -> str: ...

    def model_dump_json(self) -> str: ...


@runtime_checkable
class Skippable(Protocol[RowT]):
    """Rows of which the first ones need not be parsed to come to those after them."""

    def after(self, num_rows: int) -> Iterator[RowT]: ...


class Counts(Protocol[Counted]):
    """The totals of a run, counted row by row: a dataclass of what JSON can hold."""

    __dataclass_fields__: ClassVar[dict[str, Any]]
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
    #: `on_result` gets the rows of earlier sessions too; if not, those that the run's index counts are not parsed.
    replay: bool = True


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
    size: Callable[[Row], int] = lambda row: 0  #: how long it takes, beside others


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
    callbacks = callbacks or Callbacks(replay=False)
    if output is None:
        ledger = Ledger(callbacks.on_piece)
        items = _accepted(iter(rows), job, callbacks, None, strict)
        async with _outcomes(job, items, lambda index: ledger) as outcomes:
            async for place, outcome in outcomes:
                job.totals.add(outcome)
                callbacks.on_result(place.row, outcome)
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
    known, finished = _finished(run, job, callbacks.replay, strict)
    with (
        closing(LineWriter(run.rejected_path, fresh=not known.num_rows)) as rejected,
        closing(LineWriter(run.results_path, checksums=run.checksums)) as results,
        closing(Journal(run.folder, run.seed)) as journal,
    ):
        items = _accepted(_from(rows, known), job, callbacks, rejected, strict, known)
        num_finished, place = max(0, known.num_rows - 1), None
        for outcome in finished:
            place = next(items, None)
            if place is None or place.row.id != outcome.id:
                found = "the input ends there" if place is None else f"the input has {place.row.id!r} there"
                raise CorruptRun(
                    f"{run.results_path}, line {num_finished + 1} holds {job.noun} {outcome.id!r}, but {found}; "
                    "begin a new run folder"
                )
            num_finished += 1
            if num_finished > known.num_rows:
                job.totals.add(outcome)
                callbacks.on_result(place.row, outcome)
        tokens_before = job.totals.as_dict()["num_generated_tokens"]
        results.sync()
        pieces = journal.load(num_finished)
        callbacks.on_resumed(num_finished, sum(map(len, pieces.values())))

        def ledger_of(index: int) -> Ledger:
            def record(key: str, piece: Any) -> None:
                journal.append(index, key, piece)
                callbacks.on_piece(key, piece)

            return Ledger(record, pieces.pop(index, {}), lambda key: journal.where(index, key))

        due = _next_index(time.monotonic())
        async with _outcomes(job, items, ledger_of) as outcomes:
            async for place, outcome in outcomes:
                results.write(outcome.model_dump_json())
                job.totals.add(outcome)
                num_finished += 1
                if results.synced:
                    journal.finish(num_finished)
                if (now := time.monotonic()) >= due:
                    run.write_index(_index(run, job, place))
                    due = _next_index(now)
                callbacks.on_result(place.row, outcome)
        if place is not None:
            run.write_index(_index(run, job, place))
    return job.totals.as_dict()["num_generated_tokens"] - tokens_before


def _finished(run: Run, job: Job[Row, Outcome], replay: bool, strict: bool) -> tuple[Index, Iterator[Outcome]]:
    """How far the run is by its index, whose totals are the job's now, and the outcomes from that row on; all of them
    where there is no index that fits, or it counts a rejected row, at which a `strict` job stops. Rows before it are
    checked, and not parsed."""
    index = None if replay else read_index(run.folder, run.seed)
    if index is not None and strict and index.num_rejected_bytes:
        index = None
    if index is not None and index.totals.keys() == asdict(job.totals).keys():
        checksums = Checksums(run.checksums.value)
        outcomes = read_json_lines(run.results_path, job.parse, checksums, unread=index.num_rows - 1)
        last = next(outcomes, None)
        if last is not None and checksums.value == index.checksum and run.keep_rejected(index):
            run.checksums = checksums
            for name, value in index.totals.items():
                setattr(job.totals, name, value)
            return index, chain((last,), outcomes)
    return Index(), read_json_lines(run.results_path, job.parse, run.checksums)


def _from(rows: Iterable[T], index: Index) -> Iterator[T]:
    """The rows of the source from the last one on that an index counts."""
    if not (number := max(0, index.num_read - 1)):
        return iter(rows)
    return rows.after(number) if isinstance(rows, Skippable) else islice(rows, number, None)


def _next_index(began: float) -> float:
    """When the index is due again, by the time when it was last: writing it takes a hundredth of the time at most."""
    return (now := time.monotonic()) + max(5.0, 100 * (now - began))


def _index(run: Run, job: Job[Row, Outcome], place: _Place[Row]) -> Index:
    """After the row at a place, which is finished."""
    totals = asdict(job.totals) | {"num_rejected": place.num_rejected}
    return Index(place.number + 1, run.checksums.value, place.num_read, *place.rejected, totals)


def _outcomes(
    job: Job[Row, Outcome], items: Iterator[_Place[Row]], ledger_of: Callable[[int], Ledger]
) -> aclosing[AsyncGenerator[tuple[_Place[Row], Outcome], None]]:
    """The outcomes in order; nothing is under way any more when the context is left, however that is."""

    async def work(place: _Place[Row]) -> Outcome:
        return await job.work(place.row, ledger_of(place.number))

    return aclosing(in_order(items, work, width=job.width, size=lambda place: job.size(place.row)))


class _Place(NamedTuple, Generic[Row]):
    """A row that can be used, its place among these, and what was read of the source up to it."""

    number: int  # from 0
    row: Row
    num_read: int
    num_rejected: int
    rejected: tuple[int, int]  # bytes of `rejected.jsonl`, and their CRC-32


def _accepted(
    rows: Iterator[Row | Rejected],
    job: Job[Row, Outcome],
    callbacks: Callbacks,
    writer: LineWriter | None,
    strict: bool,
    known: Index = Index(),  # noqa: B008  # it is frozen
) -> Iterator[_Place[Row]]:
    """Place the rows that can be used, from the last that is `known` on; the rejected ones are written and counted."""
    number, rejected = max(0, known.num_rows - 1), (known.num_rejected_bytes, known.rejected_checksum)
    for num_read, row in enumerate(rows, max(1, known.num_read)):
        if not isinstance(row, Rejected):
            yield _Place(number, row, num_read, job.totals.num_rejected, rejected)
            number += 1
            continue
        if writer is not None:
            for line in row.listed(job.totals.num_rejected):
                writer.write(line)
                content = f"{line}\n".encode()
                rejected = rejected[0] + len(content), crc32(content, rejected[1])
        if strict:
            raise InputError(f"{row.file}, line {row.line}: {row.reason}")
        job.totals.num_rejected += 1
        callbacks.on_rejected(row)


async def in_order(
    items: Iterator[Item],
    work: Callable[[Item], Awaitable[Result]],
    *,
    width: int,
    window: int | None = None,
    size: Callable[[Item], int] = lambda item: 0,
) -> AsyncGenerator[tuple[Item, Result], None]:
    """Work on `width` items at a time and yield results in the order of the items.

    At most `window` items (default 4 * width + 64, of more than 1,024 at once width + 3,136) are read before the oldest
    unfinished one: memory stays flat. They are begun in their order, but of the last 4 * width the largest (by `size`)
    first, so that no long one is begun when the others end. The first failure is raised as soon as it happens, wherever
    it stands; everything else is cancelled.
    """
    window = window or width + 3 * min(width, 1024) + 64
    places, loop = asyncio.Semaphore(width), asyncio.get_running_loop()
    failed: asyncio.Future[None] = loop.create_future()
    under_way, waiting = deque[tuple[Item, asyncio.Future[Result]]](), deque[tuple[Item, asyncio.Future[Result]]]()
    tasks = set[asyncio.Task[None]]()

    async def run() -> None:
        async with places:
            if failed.done():
                return  # After a failure nothing more is started.
            item, found = waiting.popleft()
            try:
                found.set_result(await work(item))
            except asyncio.CancelledError:
                found.cancel()
                raise
            except Exception as error:
                if not failed.done():
                    failed.set_exception(error)

    try:
        exhausted = False
        while True:
            while not exhausted and len(under_way) < window:
                try:
                    item = next(items)
                except StopIteration:
                    exhausted = True
                    last = [waiting.pop() for _ in range(min(4 * width, len(waiting)))][::-1]
                    waiting.extend(sorted(last, key=lambda one: size(one[0]), reverse=True))
                    break
                under_way.append((item, loop.create_future()))
                waiting.append(under_way[-1])
                tasks.add(task := asyncio.create_task(run()))
                task.add_done_callback(tasks.discard)
            if not under_way:
                return
            item, found = under_way[0]
            watched: set[asyncio.Future[Any]] = {found, failed}
            await asyncio.wait(watched, return_when=asyncio.FIRST_COMPLETED)
            if failed.done():
                failed.result()
            under_way.popleft()
            yield item, found.result()
    finally:
        for task in (ended := list(tasks)):
            task.cancel()
        await asyncio.gather(*ended, return_exceptions=True)
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
