"""What `rprm.cluster` needs of Ray, in this process: actors whose methods run in the event loop, and die when told."""

from __future__ import annotations

import asyncio
import pickle
import sys
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest


class RayActorError(Exception):
    pass


class Actor:
    """An actor, which its methods' `remote` reaches until it is dead."""

    def __init__(self, made: Any) -> None:
        self._made, self._dead = made, asyncio.get_running_loop().create_future()
        self._dead.add_done_callback(lambda dead: dead.exception())

    def die(self, reason: str) -> None:
        if not self._dead.done():
            self._dead.set_exception(RayActorError(reason))
            for task in list(getattr(self._made, "_under_way", ())):
                task.cancel()

    def __getattr__(self, name: str) -> Any:
        return SimpleNamespace(remote=lambda *arguments: asyncio.ensure_future(self._call(name, arguments)))

    async def _call(self, name: str, arguments: tuple[Any, ...]) -> Any:
        task = asyncio.ensure_future(getattr(self._made, name)(*arguments))
        await asyncio.wait({task, self._dead}, return_when=asyncio.FIRST_COMPLETED)
        if self._dead.done():
            task.cancel()
            return self._dead.result()
        return task.result()


class StandIn(ModuleType):
    """The module `ray`."""

    def __init__(self, room: dict[str, float]) -> None:
        super().__init__("ray")
        self.actors: list[Actor] = []  #: all that were made
        self.room, self.is_up = room, False
        self._kept: list[Any] = []
        self.exceptions = SimpleNamespace(
            RayActorError=RayActorError, **dict.fromkeys(("ObjectLostError", "WorkerCrashedError"), RayActorError),
            OutOfMemoryError=RayActorError,
        )  # fmt: skip
        self.cloudpickle = ModuleType("ray.cloudpickle")
        self.cloudpickle.dumps = self._dumps  # type: ignore[attr-defined]
        self.util = ModuleType("ray.util")
        self.util.get_node_ip_address = lambda: "10.0.0.1"  # type: ignore[attr-defined]

    def init(self, address: str, **how: Any) -> None:
        if address not in ("local", "auto"):
            raise ConnectionError(f"nothing answers at {address}")
        self.is_up = True

    def is_initialized(self) -> bool:
        return self.is_up

    def shutdown(self) -> None:
        self.is_up = False
        for actor in self.actors:
            actor.die("shut down")

    def cluster_resources(self) -> dict[str, float]:
        return self.room

    def remote(self, kind: Callable[..., Any]) -> Any:
        def make(*arguments: Any) -> Actor:
            self.actors.append(Actor(kind(*arguments)))
            return self.actors[-1]

        return SimpleNamespace(options=lambda **resources: SimpleNamespace(remote=make))

    def kill(self, actor: Actor) -> None:
        actor.die("killed")

    def _dumps(self, value: Any) -> bytes:
        self._kept.append(value)
        return pickle.dumps(_Kept(len(self._kept) - 1))


class _Kept:
    """Pickled, it is the value of that number, which need not be fit for that."""

    def __init__(self, number: int) -> None:
        self._number = number

    def __reduce__(self) -> tuple[Any, ...]:
        return _kept, (self._number,)


def _kept(number: int) -> Any:
    return sys.modules["ray"]._kept[number]


def install(monkeypatch: pytest.MonkeyPatch, **room: float) -> StandIn:
    ray = StandIn({"CPU": 8.0, **room})
    for name, module in {"ray": ray, "ray.cloudpickle": ray.cloudpickle, "ray.util": ray.util}.items():
        monkeypatch.setitem(sys.modules, name, module)
    return ray
