"""A benchmark is one record. `rprm bench NAME`, comparisons and tables are made from it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from rprm.benchmarks.items import BenchmarkItems
from rprm.benchmarks.tally import ResultTable, Tally


class FurtherResult(Protocol):
    """What is measured besides the figures."""

    def as_dict(self) -> dict[str, Any]: ...

    def table(self) -> ResultTable: ...


@dataclass(frozen=True)
class Flag:
    """An option of a benchmark's command, off by default. One with neither function is passed to the tally by its name.

    Attributes:
        help: what it does.
        items: changes the items before they are judged.
        further: `(items, scores, allow_missing=, num_resamples=, seed=)` -> a further result, from rewards that hold at
            every threshold: with it every step is judged in full.
    """

    help: str
    items: Callable[[BenchmarkItems[Any]], BenchmarkItems[Any]] | None = None
    further: Callable[..., FurtherResult] | None = None


@dataclass(frozen=True)
class Benchmark:
    """A benchmark.

    Attributes:
        name: of its command, and in manifests.
        help: of its command.
        read: `(data, revision=)` -> its items.
        tally: `(items, scores, threshold=, allow_missing=, **flags)` -> their counts, with figures and table.
        hub: its data set on the hub; None where the data must be named.
        group: the attribute of an item within whose values `--limit` counts.
        judged: of each solution, every step; or the steps up to the first one called wrong; or its last step alone.
        flags: further options of its command.
    """

    name: str
    help: str
    read: Callable[..., BenchmarkItems[Any]]
    tally: Callable[..., Tally]
    hub: str | None = None
    group: str | None = None
    judged: Literal["every step", "first error", "last step"] = "every step"
    flags: Mapping[str, Flag] = field(default_factory=dict)
