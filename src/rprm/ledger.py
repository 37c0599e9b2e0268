"""What is already paid for of a row that is not finished: analyses, next steps, a classifier's scores."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Protocol, TypeVar

from rprm.records import Record

Piece = TypeVar("Piece", bound=Record)


class Ledger(Protocol):
    """The pieces of one row. Keys are the worker's own."""

    def get(self, key: str) -> Any | None:
        """The piece recorded under `key` in an earlier session, or None."""
        ...

    def put(self, key: str, piece: Any) -> None:
        """Record a piece: once this returns, a kill does not lose it."""
        ...


async def paid_once(ledger: Ledger | None, key: str, kind: type[Piece], make: Callable[[], Awaitable[Piece]]) -> Piece:
    """A piece that the ledger holds already, or else one that is made now and recorded."""
    if ledger is not None and (paid := ledger.get(key)) is not None:
        return kind.model_validate(paid)
    made = await make()
    if ledger is not None:
        ledger.put(key, made.model_dump(mode="json"))
    return made


class ScopedLedger:
    """A part of a ledger under a name of its own: for one of several solutions that are under way together."""

    def __init__(self, ledger: Ledger, scope: str) -> None:
        self._ledger = ledger
        self._scope = scope

    def get(self, key: str) -> Any | None:
        return self._ledger.get(f"{self._scope}/{key}")

    def put(self, key: str, piece: Any) -> None:
        self._ledger.put(f"{self._scope}/{key}", piece)
