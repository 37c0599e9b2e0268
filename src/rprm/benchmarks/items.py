"""Items of a benchmark, from files or from the hub. A row that cannot be used becomes a `Rejected`.

Memory holds what items are counted by, about 300 bytes of each. Their texts are read again where they are asked for.
"""

from __future__ import annotations

import json
import re
import tempfile
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain, count, islice
from pathlib import Path
from typing import Any, Generic, Protocol, Self, TypeVar
from urllib.parse import urlencode

from rprm.errors import InputError
from rprm.reading import Rejected, Row, Source, SourceInfo, read_rows
from rprm.records import Solution

SUFFIXES = (".jsonl", ".json", ".jsonl.gz", ".json.gz")
ANY = "*"  #: a split whose files may have any name
_MAX_TEXT_BYTES = 1 << 24


class Texts:
    """The texts of solutions: 16 MiB of them in memory, and more in a temporary file (TMPDIR names its folder)."""

    def __init__(self) -> None:
        self._file = tempfile.SpooledTemporaryFile(_MAX_TEXT_BYTES)  # noqa: SIM115
        self._end = 0
        weakref.finalize(self, self._file.close)

    def put(self, solution: Solution) -> StoredSolution:
        """An `InputError` where the disk is full."""
        texts, place = json.dumps([solution.problem, *solution.steps]).encode(), self._end
        try:
            self._file.seek(place)
            self._end += self._file.write(texts + b"\n")
        except OSError as error:
            where = tempfile.gettempdir()
            raise InputError(f"texts cannot be kept in {where}: {error.strerror} (TMPDIR names a folder)") from None
        return StoredSolution(solution.id, len(solution.steps), solution.label, self, place)

    def get(self, place: int) -> tuple[str, ...]:
        """The problem and the steps of the solution that was put there."""
        self._file.seek(place)
        return tuple(json.loads(self._file.readline()))


@dataclass(frozen=True, slots=True)
class StoredSolution:
    """A `Solution` whose texts are elsewhere."""

    id: str
    num_steps: int
    label: int | None
    _texts: Texts = field(repr=False, compare=False)
    _place: int = field(repr=False, compare=False)

    @property
    def loaded(self) -> Solution:
        problem, *steps = self._texts.get(self._place)
        return Solution(id=self.id, problem=problem, steps=tuple(steps), label=self.label)

    @property
    def problem(self) -> str:
        return self.loaded.problem

    @property
    def steps(self) -> tuple[str, ...]:
        return self.loaded.steps


class BenchmarkItem(Protocol):
    """What is measured: a solution, of which something is known."""

    @property
    def id(self) -> str: ...

    @property
    def solution(self) -> Solution | StoredSolution: ...


Item = TypeVar("Item", bound=BenchmarkItem)


@dataclass(frozen=True)
class BenchmarkItems(Generic[Item]):
    """The items of a benchmark, and what became of the other rows."""

    items: tuple[Item, ...]  #: in the order of the data
    rejected: tuple[Rejected, ...] = ()
    repeated: tuple[str, ...] = ()  #: keys of several rows, of which the first was taken (PRMBench; its data has five)
    sources: tuple[SourceInfo, ...] = ()  #: each with a hash of the file or the revision on the hub

    @property
    def solutions(self) -> list[Solution]:
        """What to judge, in order, with its texts."""
        return [*map(loaded, self.items)]

    def __iter__(self) -> Iterator[Solution | Rejected]:
        """The rows of a run on these items: those that are rejected, then `solutions`, one at a time."""
        return self.after(0)

    def after(self, num_rows: int) -> Iterator[Solution | Rejected]:
        """Those after the first so many."""
        rows: Iterator[Any] = islice(chain(self.rejected, self.items), num_rows, None)
        return (row if isinstance(row, Rejected) else loaded(row) for row in rows)

    def limited(self, limit: int | None, group: str | None) -> Self:
        """The first `limit` items of each value of the attribute `group` (None: of all)."""
        if limit is None:
            return self
        groups: defaultdict[str, list[str]] = defaultdict(list)
        for item in self.items:
            groups[getattr(item, group) if group else ""].append(item.id)
        kept = {name for names in groups.values() for name in names[:limit]}
        return replace(self, items=tuple(item for item in self.items if item.id in kept))


def loaded(item: BenchmarkItem) -> Solution:
    solution = item.solution
    return solution.loaded if isinstance(solution, StoredSolution) else solution


def open_sources(
    data: str | Path, splits: Mapping[str, Mapping[str, str]], revision: str | None
) -> list[tuple[str | None, Source]]:
    """The sources of a benchmark, each with the split that it is.

    `data` is a file or a pipe (its split is None), a folder with files named after splits (or of `ANY` name), or a hub
    data set. `splits` are of the last, each with its options; all are read from the commit that `revision` means now.

    `InputError` where there is no such thing, a split has two files, or the hub cannot be reached.
    """
    path, name = Path(data), str(data).removeprefix("hub:")
    if path.exists() and revision is not None:
        raise InputError(f"{path}: a revision ({revision}) belongs to a hub data set, and this is a file or folder")
    if path.exists() and not path.is_dir():
        return [(None, Source(str(path)))]
    if path.is_dir():
        found: list[tuple[str | None, Source]] = []
        for split in splits:
            files = sorted(file for end in SUFFIXES for file in path.glob(f"{split}{end}"))
            if len(files) > 1 and split != ANY:
                raise InputError(f"{path}: both {files[0].name} and {files[1].name} hold {split}; keep one")
            found += [(split, Source(str(file))) for file in files]
        if not found:
            raise InputError(f"{path}: no {', '.join(f'{split}.jsonl' for split in splits)} in this folder")
        return found
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise InputError(f"{data}: no such file or folder, and no name of a hub data set (OWNER/NAME)")
    asked = Source(f"hub:{name}?{urlencode({'revision': revision} if revision else {})}")
    pinned = asked.inspect().digest.replace(":", "=")  # "revision=COMMIT"
    return [(split, Source(f"hub:{name}?{urlencode(options)}&{pinned}")) for split, options in splits.items()]


def read_items(
    sources: Iterable[tuple[Source, Callable[[Any, int], Any]]], *, first_wins: bool = False
) -> BenchmarkItems[Any]:
    """The items of sources, each with what makes an item of a row and its 0-based place; an `InputError` where none is.

    A row whose id an earlier one has is rejected, or `repeated` with `first_wins`.
    """
    items: dict[str, Any] = {}
    rejected: list[Rejected] = []
    repeated: list[str] = []

    def read_item(read: Callable[[Any, int], Any], places: Iterator[int], row: Row) -> Any:
        item = read(row.value, next(places))
        if item.id in items and not first_wins:
            raise InputError(f"id {item.id!r} stands in an earlier row already; ids must be unique")
        return item

    opened = list(sources)
    for source, read in opened:
        for found in read_rows(source, partial(read_item, read, count())):
            if isinstance(found, Rejected):
                rejected.append(found)
            elif items.setdefault(found.id, found) is not found:
                repeated.append(found.id)
    if not items:
        names = ", ".join(source.name for source, _ in opened)
        first = "".join(f"; the first, {row.file} line {row.line}: {row.reason}" for row in rejected[:1])
        raise InputError(f"{names}: {f'none of {len(rejected)} rows can be used' if rejected else 'no rows'}{first}")
    infos = tuple(source.inspect() for source, _ in opened)
    return BenchmarkItems(tuple(items.values()), tuple(rejected), tuple(repeated), infos)
