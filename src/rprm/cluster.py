"""Replicas of a model on a Ray cluster, each an actor that loads it once and has many rows under way at a time.

Ray places the replicas on nodes that have room for them, and tells which are lost. Everything else stays with the loop
of `rprm.jobs` in this process: it reads and numbers rows, keeps what is paid for, and writes the results in order. The
pieces of a row come as they are made, a tenth of a second later at most, so that the loss of a replica, of a node or of
this process costs no more than the requests that were under way.
"""

from __future__ import annotations

import asyncio
import os
import pickle
import socket
import textwrap
import traceback
from collections.abc import Awaitable, Callable, Mapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from rprm import __version__
from rprm.errors import EngineError, EngineUnavailable, RprmError
from rprm.ledger import Ledger

LOCAL = "local"  #: the address of a cluster on this machine that begins and ends with the command

_PERIOD_S = 0.1  # what a replica has to tell is gathered for so long
_PATIENCE_S = 30.0  # after so long without room for a replica, that is told
_IDLE_S = 60.0  # a replica without a row for so long is given up, beyond the fewest
_MAX_LOST = 4  # replicas that may die under one row; after two it is under way with no other such row
_MAX_UNLOADED = 3  # replicas that may die one after the other while they load the model


class ModelActor:
    """What runs on a node, in a process of its own: one model, and the work that asks it."""

    def __init__(self, version: str, folder: str, pickled: bytes) -> None:
        self._refusal: RprmError | None = None
        if version != __version__:
            self._refusal = EngineError(f"it has rprm {__version__}, and the command is of {version}: install that")
            return
        with suppress(OSError):
            os.chdir(folder)  # relative paths are the command's, where this node has its folder
        self._start, self._work = pickle.loads(pickled)  # noqa: S301  # our own, by way of Ray
        self._news: list[tuple[int, list[tuple[str, Any]], Any]] = []
        self._is_told = asyncio.Event()
        self._under_way: set[asyncio.Task[None]] = set()

    async def node(self) -> str:
        """Where it runs: known once Ray has found room for it."""
        import ray

        return str(ray.util.get_node_ip_address())

    async def start(self) -> Any:
        """Load the model; returns its description, or the `RprmError` that says why it cannot be loaded."""
        try:
            return self._refusal or await self._start()
        except RprmError as error:
            return error

    async def begin(self, number: int, row: Any, paid: Mapping[str, Any], places: Mapping[str, str]) -> None:
        """Begin with a row, whose pieces and outcome are told under a number. `paid` are its pieces of before, `places`
        where they stand."""
        task = asyncio.create_task(self._do(number, row, Ledger(self._recorder(number), paid, places.__getitem__)))
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)

    async def news(self) -> list[tuple[int, list[tuple[str, Any]], Any]]:
        """What is new, as soon as there is something: numbers of rows, with their pieces and outcomes (or None)."""
        await self._is_told.wait()
        await asyncio.sleep(_PERIOD_S)
        self._is_told.clear()
        news, self._news = self._news, []
        return news

    async def _do(self, number: int, row: Any, ledger: Ledger) -> None:
        try:
            outcome = await self._work(row, ledger)
        except RprmError as error:
            outcome = error
        except Exception:  # a fault of ours: told whole, in the command's process
            outcome = RuntimeError(f"in a replica:\n{traceback.format_exc()}")
        self._tell(number, [], outcome)

    def _recorder(self, number: int) -> Callable[[str, Any], None]:
        return lambda key, piece: self._tell(number, [(key, piece)], None)

    def _tell(self, number: int, pieces: list[tuple[str, Any]], outcome: Any) -> None:
        self._news.append((number, pieces, outcome))
        self._is_told.set()


class _Lost(Exception):
    """The replica that had a row is gone."""


@dataclass(eq=False)
class _Asked:
    """A row that a replica has."""

    ledger: Ledger | None
    paid: dict[str, Any]
    outcome: asyncio.Future[Any]


@dataclass(eq=False)
class _Replica:
    actor: Any
    is_ready: bool = False
    rows: dict[int, _Asked] = field(default_factory=dict)
    num_rows: int = 0  #: so far


class Cluster:
    """Replicas of one model on a Ray cluster.

    Args:
        address: of the cluster, "auto" for the one that this machine belongs to, or `LOCAL`.
        fewest, most: replicas; between the two there are as many as the rows under way fill.
        num_gpus: that Ray reserves for each replica, beside one CPU.
    """

    def __init__(self, address: str = LOCAL, fewest: int = 1, most: int = 1, *, num_gpus: float = 0.0) -> None:
        self.address, self.fewest, self.most, self.num_gpus = address, fewest, most, num_gpus
        #: Called with each event that whoever waits should know of, in a line.
        self.tell: Callable[[str], None] = lambda text: None
        #: Called with the number of replicas that are ready.
        self.on_replicas: Callable[[int], None] = lambda num_ready: None
        self._replicas: list[_Replica] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._numbers = count()
        self._num_waiting = self._num_unloaded = 0
        self._described: dict[str, Any] | None = None
        self._failure: Exception | None = None
        self._is_ours = False  # the connection to the cluster

    async def start(
        self, start: Callable[[], Awaitable[dict[str, Any]]], work: Callable[[Any, Ledger | None], Awaitable[Any]],
        width: int,
    ) -> dict[str, Any]:  # fmt: skip
        """Bring replicas up, each of which calls `start` and has `width` rows under way; returns what `start` did.
        `EngineError`: there is no such cluster or no room on it, or the model cannot be loaded."""
        self._ray, self._width = _import_ray(), width
        await self._connect()
        # By value what no other process can import; one pickle, so that both are of one model.
        pickled = self._ray.cloudpickle.dumps((start, work))
        resources = {"num_cpus": 1, "num_gpus": self.num_gpus, "max_restarts": 0, "max_concurrency": width + 8}
        made = self._ray.remote(ModelActor).options(**resources)
        self._make: Callable[[], Any] = lambda: made.remote(__version__, os.getcwd(), pickled)
        self._changed, self._alone = asyncio.Condition(), asyncio.Lock()
        while len(self._replicas) < self.fewest:
            self._add()
        async with self._changed:
            await self._changed.wait_for(lambda: self._described is not None or self._failure is not None)
        if self._failure is not None:
            raise self._failure
        assert self._described is not None
        return self._described

    async def work(self, row: Any, ledger: Ledger | None) -> Any:
        """The outcome of a row, made by a replica. One whose replica is lost goes to another, with all that was paid
        for. `EngineUnavailable` where too many are lost under it, or a second engine stops answering."""
        paid = dict(ledger.paid) if ledger is not None else {}
        places = {key: ledger.where(key) for key in paid} if ledger is not None else {}
        unavailable: EngineUnavailable | None = None
        losses: tuple[type[Exception], ...] = (_Lost, *self._losses)
        for num_lost in range(_MAX_LOST):
            # What may be the cause stands alone, so that it is known.
            async with self._alone if num_lost > 1 else nullcontext():
                replica = await self._place()
                number, outcome = next(self._numbers), asyncio.get_running_loop().create_future()
                outcome.add_done_callback(lambda done: done.cancelled() or done.exception())  # also if nobody asks
                replica.rows[number] = _Asked(ledger, paid, outcome)
                replica.num_rows += 1
                try:
                    await replica.actor.begin.remote(number, row, dict(paid), places)
                    return await outcome
                except EngineUnavailable as error:
                    if unavailable is not None:
                        raise
                    unavailable = error
                    self._lose(replica, str(error))
                except losses as error:
                    self._lose(replica, _reason(error))
                finally:
                    del replica.rows[number]
                    await self._left(replica)
            places = dict.fromkeys(paid, "") | places
        raise EngineUnavailable(
            f"{_MAX_LOST} replicas died while they had {row.id!r}, the last without another suspect: leave that row "
            "out, or give replicas more memory (fewer of them on a node)"
        )

    async def aclose(self) -> None:
        """Give all replicas up, and end a cluster of our own. Safe to call again."""
        for task in self._tasks:
            task.cancel()
        replicas, self._replicas = self._replicas, []
        if replicas and not self._is_ours:
            for replica in replicas:
                self._ray.kill(replica.actor)
        if self._is_ours:
            self._is_ours = False
            self._ray.shutdown()  # it ends what this process has on the cluster

    async def _connect(self) -> None:
        """Join the cluster, or begin one. In a thread: there Ray leaves this process its handlers of signals."""
        if self._ray.is_initialized():
            return
        how: dict[str, Any] = {"include_dashboard": False} if self.address == LOCAL else {}
        self._is_ours = True
        with suppress(AttributeError):
            # What a node says of a worker that died, Ray would print on standard output, among the results.
            self._ray._private.worker.print_to_stdstream = lambda *data, **how: None
        try:
            await asyncio.to_thread(self._reach)
            await asyncio.to_thread(
                self._ray.init, self.address, log_to_driver=False, configure_logging=False, **how,
            )  # fmt: skip
        except Exception as error:  # Ray has no type for those of a node that does not begin in time
            self._is_ours = self._ray.is_initialized()
            what = "no such Ray cluster, or one that wants a token (RAY_AUTH_MODE=token; docs/cluster.md)"
            if self.address == LOCAL:
                what = "Ray could not begin here (a busy machine may take longer than it waits: try again)"
            raise EngineError(f"--ray {self.address}: {what}: {_reason(error)}") from error
        room = self._ray.cluster_resources()
        if self.address == LOCAL and (self.fewest > room.get("CPU", 0) or self.fewest * self.num_gpus > _gpus(room)):
            raise EngineError(
                f"{self.fewest} replicas, each with one CPU and {self.num_gpus:g} GPUs, do not fit on this machine, "
                f"which has {room.get('CPU', 0):g} and {_gpus(room):g}: give fewer --replicas or --replica-gpus"
            )

    def _reach(self) -> None:
        """An `OSError` where nothing listens at the address: Ray would try that for minutes."""
        host, _, port = self.address.rpartition(":")
        if host and port.isdecimal():
            socket.create_connection((host.strip("[]"), int(port)), timeout=10.0).close()

    @property
    def _losses(self) -> tuple[type[Exception], ...]:
        """How Ray says that an actor, its node or what it returned is gone."""
        known = self._ray.exceptions
        return known.RayActorError, known.ObjectLostError, known.WorkerCrashedError, known.OutOfMemoryError

    def _add(self) -> None:
        replica = _Replica(self._make())
        self._replicas.append(replica)
        task = asyncio.create_task(self._follow(replica))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _follow(self, replica: _Replica) -> None:
        """The life of a replica: it is placed, loads the model, and tells of its rows until it is lost."""
        try:
            node = await self._placed(replica)
            described = await replica.actor.start.remote()
            if isinstance(described, RprmError):
                raise type(described)(f"a replica on {node}: {described}") if self.address != LOCAL else described
            if described != (self._described or described):
                found = ", ".join(key for key in described if described[key] != (self._described or {}).get(key))
                raise EngineError(f"a replica on {node} has another model or settings ({found}): mend that node")
            self._described, replica.is_ready, self._num_unloaded = described, True, 0
            await self._wake()
            while True:
                for number, pieces, outcome in await replica.actor.news.remote():
                    if (asked := replica.rows.get(number)) is not None:
                        _take(asked, pieces, outcome)
        except self._losses as error:
            self._num_unloaded += not replica.is_ready
            if self._num_unloaded == _MAX_UNLOADED:
                self._failure = EngineError(
                    f"{_MAX_UNLOADED} replicas died while they loaded the model, the last so: {_reason(error)}"
                )
            self._lose(replica, _reason(error))
        except Exception as error:
            self._failure = error
            self._lose(replica, _reason(error))
        await self._wake()

    async def _placed(self, replica: _Replica) -> str:
        reference = asyncio.ensure_future(replica.actor.node.remote())
        if not (await asyncio.wait({reference}, timeout=_PATIENCE_S))[0]:
            room = self._ray.cluster_resources()
            self.tell(
                f"no node has room for one more replica (one CPU, {self.num_gpus:g} GPUs); the cluster has "
                f"{room.get('CPU', 0):g} and {_gpus(room):g} in all"
            )
        return str(await reference)

    async def _place(self) -> _Replica:
        """The replica with the fewest rows, once one has room; more are brought up for those that wait."""
        async with self._changed:
            self._num_waiting += 1
            try:
                while True:
                    if self._failure is not None:
                        raise self._failure
                    if free := [one for one in self._replicas if one.is_ready and len(one.rows) < self._width]:
                        return min(free, key=lambda one: len(one.rows))
                    num_rows = self._num_waiting + sum(len(one.rows) for one in self._replicas)
                    while len(self._replicas) < min(self.most, max(self.fewest, -(-num_rows // self._width))):
                        self._add()
                    await self._changed.wait()
            finally:
                self._num_waiting -= 1

    async def _left(self, replica: _Replica) -> None:
        """A row has left a replica."""
        async with self._changed:
            self._changed.notify()
        if not replica.rows and len(self._replicas) > self.fewest:
            asyncio.get_running_loop().call_later(_IDLE_S, self._give_up, replica, replica.num_rows)

    def _give_up(self, replica: _Replica, num_rows: int) -> None:
        """Free what a replica has if no row has come since there were so many."""
        if replica in self._replicas and replica.num_rows == num_rows and len(self._replicas) > self.fewest:
            self._replicas.remove(replica)
            self._ray.kill(replica.actor)
            self.on_replicas(sum(one.is_ready for one in self._replicas))

    def _lose(self, replica: _Replica, reason: str) -> None:
        """A replica is gone: its rows are to be asked of others."""
        if replica not in self._replicas:
            return
        self._replicas.remove(replica)
        self._ray.kill(replica.actor)
        if self._failure is None:
            self.tell(f"a replica is lost, and its {len(replica.rows)} rows go to others: {reason}")
        for asked in replica.rows.values():
            if not asked.outcome.done():
                asked.outcome.set_exception(_Lost(reason))
        while self._failure is None and len(self._replicas) < self.fewest:
            self._add()

    async def _wake(self) -> None:
        self.on_replicas(sum(one.is_ready for one in self._replicas))
        async with self._changed:
            self._changed.notify_all()


def _take(asked: _Asked, pieces: list[tuple[str, Any]], outcome: Any) -> None:
    for key, piece in pieces:
        asked.paid[key] = piece
        if asked.ledger is not None:
            asked.ledger.put(key, piece)
    if outcome is None or asked.outcome.done():
        return
    if isinstance(outcome, Exception):
        asked.outcome.set_exception(outcome)
    else:
        asked.outcome.set_result(outcome)


def _import_ray() -> Any:
    # Nothing is reported to Ray's makers.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
        import ray.cloudpickle
        import ray.util
    except ImportError:
        raise EngineError('--ray needs the extra: pip install ".[ray]"') from None
    import logging

    logging.getLogger("ray").setLevel(logging.ERROR)
    return ray


def _gpus(room: Mapping[str, float]) -> float:
    return room.get("GPU", 0.0)


def _reason(error: BaseException) -> str:
    """What an error says, in one line; of an actor's death why it died."""
    text = " ".join(str(error).split())
    text = text.partition("The actor is dead because ")[2] or text
    return textwrap.shorten(text, 300, placeholder=" ...") or type(error).__name__
