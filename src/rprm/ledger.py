"""What is already paid for of a row that is not finished: analyses, next steps, a classifier's scores."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from rprm.errors import CorruptRun
from rprm.records import Record

Piece = TypeVar("Piece", bound=Record)
T = TypeVar("T")


@dataclass(frozen=True)
class Ledger:
    """The pieces of one row. Keys are the worker's own."""

    record: Callable[[str, Any], None]  #: keeps a piece under its key: once it returns, a kill does not lose the piece
    paid: Mapping[str, Any] = field(default_factory=dict)  #: the pieces of earlier sessions, by key
    where: Callable[[str], str] = str  #: where such a piece stands, for messages
    scope: str = ""  #: stands before every key

    def scoped(self, name: str) -> Ledger:
        """A part under a name of its own: for one of several solutions that are under way together."""
        return replace(self, scope=f"{self.scope}{name}/")

    def put(self, key: str, piece: Any) -> None:
        self.record(self.scope + key, piece)


def paid_for(ledger: Ledger | None, key: str, parse: Callable[[Any], T]) -> T | None:
    """What `parse` reads in the piece that the ledger holds under `key`; None where it holds none. `CorruptRun` where
    it raises a `ValueError` (pydantic's are such) or `TypeError`."""
    if ledger is None or (piece := ledger.paid.get(ledger.scope + key)) is None:
        return None
    try:
        return parse(piece)
    except (ValueError, TypeError) as error:
        raise CorruptRun.at(ledger.where(ledger.scope + key), error) from None


async def paid_once(ledger: Ledger | None, key: str, kind: type[Piece], make: Callable[[], Awaitable[Piece]]) -> Piece:
    """A piece that the ledger holds already, or else one that is made now and recorded."""
    if (paid := paid_for(ledger, key, kind.model_validate)) is not None:
        return paid
    made = await make()
    if ledger is not None:
        ledger.put(key, made.model_dump(mode="json"))
    return made
