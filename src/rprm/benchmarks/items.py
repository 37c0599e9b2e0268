"""Items of a benchmark, from files or from the hub. A row that cannot be used becomes a `Rejected`."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import count, pairwise
from pathlib import Path
from typing import Any, Generic, Protocol, Self, TypeVar
from urllib.parse import urlencode

from rprm.errors import InputError
from rprm.reading import Rejected, Row, Source, SourceInfo
from rprm.records import Solution

SUFFIXES = (".jsonl", ".json", ".jsonl.gz", ".json.gz")


class BenchmarkItem(Protocol):
    """What is measured: a solution, of which something is known."""

    @property
    def id(self) -> str: ...

    @property
    def solution(self) -> Solution: ...


Parsed = TypeVar("Parsed")
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
        """What to judge, in order."""
        return [item.solution for item in self.items]

    def limited(self, limit: int | None, group: str | None) -> Self:
        """The first `limit` items of each value of the attribute `group` (None: of all)."""
        groups: defaultdict[str, list[str]] = defaultdict(list)
        for item in self.items:
            groups[getattr(item, group) if group else ""].append(item.id)
        kept = {name for names in groups.values() for name in names[:limit]}
        return replace(self, items=tuple(item for item in self.items if item.id in kept))


def open_sources(
    data: str | Path, splits: Mapping[str, Mapping[str, str]], revision: str | None, *, any_name: bool = False
) -> list[tuple[str | None, Source]]:
    """The sources of a benchmark, each with the split that it is.

    `data` is a file (its split is None), a folder with files named after splits (or of `any_name`), or a hub data set.
    `splits` are of the last, each with its options; all are read from the commit that `revision` means now.

    `InputError` where there is no such thing, a split has two files, or the hub cannot be reached.
    """
    path, name = Path(data), str(data).removeprefix("hub:")
    if path.exists() and revision is not None:
        raise InputError(f"{path}: a revision ({revision}) belongs to a hub data set, and this is a file or folder")
    if path.is_file():
        return [(None, Source(str(path)))]
    if path.is_dir():
        files = [file for file in sorted(path.iterdir()) if file.name.endswith(SUFFIXES)]
        found = [
            (split, Source(str(file)))
            for split in splits
            for file in files
            if any_name or file.name in [f"{split}{end}" for end in SUFFIXES]
        ]
        if not found:
            raise InputError(f"{path}: no {', '.join(f'{split}.jsonl' for split in splits)} in this folder")
        for (split, one), (other, two) in pairwise(found):
            if split == other and not any_name:
                raise InputError(f"{path}: both {one.path.name} and {two.path.name} hold {split}; keep one")
        return [*found]
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise InputError(f"{data}: no such file or folder, and no name of a hub data set (OWNER/NAME)")

    def on_hub(options: Mapping[str, str], revision: str | None) -> Source:
        return Source(f"hub:{name}?{urlencode({**options, **({'revision': revision} if revision else {})})}")

    pinned = on_hub(next(iter(splits.values())), revision).inspect().digest.removeprefix("revision:")
    return [(split, on_hub(options, pinned)) for split, options in splits.items()]


def read_items(
    sources: Iterable[tuple[Source, Callable[[Any, int], Any]]],
    *,
    first_wins: bool = False,
    rows: Callable[[Source], Iterable[Row | Rejected]] | None = None,
) -> BenchmarkItems[Any]:
    """The items of sources, each with what makes an item of a row and its 0-based place; an `InputError` where none is.

    A row whose id an earlier one has is rejected, or `repeated` with `first_wins`. `rows` of a source stands in for its
    own way to read them.
    """
    items: dict[str, Any] = {}
    rejected: list[Rejected] = []
    repeated: list[str] = []

    def take(read: Callable[[Any, int], Any], places: Iterator[int], value: Any) -> None:
        item = read(value, next(places))
        if items.setdefault(item.id, item) is not item:
            if not first_wins:
                raise InputError(f"id {item.id!r} stands in an earlier row already; ids must be unique")
            repeated.append(item.id)

    opened = list(sources)
    for source, read in opened:
        for _ in parsed_rows(source.name, (rows or Source.rows)(source), partial(take, read, count()), rejected):
            pass
    if not items:
        names = ", ".join(source.name for source, _ in opened)
        first = "".join(f"; the first, {row.file} line {row.line}: {row.reason}" for row in rejected[:1])
        raise InputError(f"{names}: {f'none of {len(rejected)} rows can be used' if rejected else 'no rows'}{first}")
    infos = tuple(source.inspect() for source, _ in opened)
    return BenchmarkItems(tuple(items.values()), tuple(rejected), tuple(repeated), infos)


def parsed_rows(
    name: str, rows: Iterable[Row | Rejected], parse: Callable[[Any], Parsed], rejected: list[Rejected]
) -> Iterator[Parsed]:
    """What `parse` makes of each row; the rows it refuses go to `rejected`."""
    for row in rows:
        if isinstance(row, Rejected):
            rejected.append(row)
            continue
        try:
            yield parse(row.value)
        except InputError as error:
            rejected.append(row.rejected(name, str(error)))
