"""What is already paid for of a row that is not finished: analyses, next steps, a classifier's scores."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Protocol, TypeVar

from rprm.errors import CorruptRun
from rprm.records import Record

Piece = TypeVar("Piece", bound=Record)
T = TypeVar("T")


class Ledger(Protocol):
    """The pieces of one row. Keys are the worker's own."""

    def get(self, key: str) -> Any | None:
        """The piece recorded under `key` in an earlier session, or None."""
        ...

    def put(self, key: str, piece: Any) -> None:
        """Record a piece: once this returns, a kill does not lose it."""
        ...

    def where(self, key: str) -> str:
        """Where the piece of an earlier session stands, for messages."""
        ...


def paid_for(ledger: Ledger | None, key: str, parse: Callable[[Any], T]) -> T | None:
    """What `parse` reads in the piece that the ledger holds under `key`; None where it holds none.

    Raises:
        CorruptRun: the piece is damaged: `parse` raised a `ValueError` (pydantic's are such) or `TypeError`.
    """
    if ledger is None or (piece := ledger.get(key)) is None:
        return None
    try:
        return parse(piece)
    except (ValueError, TypeError) as error:
        raise CorruptRun.at(ledger.where(key), error) from None


async def paid_once(ledger: Ledger | None, key: str, kind: type[Piece], make: Callable[[], Awaitable[Piece]]) -> Piece:
    """A piece that the ledger holds already, or else one that is made now and recorded."""
    if (paid := paid_for(ledger, key, kind.model_validate)) is not None:
        return paid
    made = await make()
    if ledger is not None:
        ledger.put(key, made.model_dump(mode="json"))
    return made


class ScopedLedger(Ledger):
    """A part of a ledger under a name of its own: for one of several solutions that are under way together."""

    def __init__(self, ledger: Ledger, scope: str) -> None:
        self._ledger = ledger
        self._scope = scope

    def get(self, key: str) -> Any | None:
        return self._ledger.get(f"{self._scope}/{key}")

    def put(self, key: str, piece: Any) -> None:
        self._ledger.put(f"{self._scope}/{key}", piece)

    def where(self, key: str) -> str:
        return self._ledger.where(f"{self._scope}/{key}")
