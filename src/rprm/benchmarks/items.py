"""Items of a benchmark, from files or from the hub.

A row that cannot be used becomes a `Rejected`, with its file, line and reason; the rows after it are read. An item
carries the `Solution` to judge, so that judging needs to know nothing about benchmarks.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, Protocol, Self, TypeVar
from urllib.parse import urlencode

from rprm.errors import InputError
from rprm.reading import MAX_REJECTED_TEXT, Rejected, Row, Source, SourceInfo
from rprm.records import Solution

SUFFIXES = (".jsonl", ".json", ".jsonl.gz", ".json.gz")

Parsed = TypeVar("Parsed")


class BenchmarkItem(Protocol):
    """What is measured: a solution, of which something is known."""

    @property
    def id(self) -> str: ...

    @property
    def solution(self) -> Solution: ...


Item = TypeVar("Item", bound=BenchmarkItem)


@dataclass(frozen=True)
class BenchmarkItems(Generic[Item]):
    """The items of a benchmark, and what became of the other rows.

    Attributes:
        items: in the order of the data.
        rejected: rows that cannot be used.
        repeated: keys that stood in several rows, of which the first was taken (PRMBench; its data has five).
        sources: where the rows came from, each with a hash of the file or the revision on the hub.
    """

    items: tuple[Item, ...]
    rejected: tuple[Rejected, ...] = ()
    repeated: tuple[str, ...] = ()
    sources: tuple[SourceInfo, ...] = ()

    @property
    def solutions(self) -> list[Solution]:
        """What to judge, in order."""
        return [item.solution for item in self.items]

    def limited(self, limit: int | None, group: str | None) -> Self:
        """The first `limit` items of each value of the attribute `group` (None: of all)."""
        if limit is None:
            return self
        kept, counts = [], dict[str, int]()
        for item in self.items:
            name = getattr(item, group) if group else ""
            counts[name] = counts.get(name, 0) + 1
            if counts[name] <= limit:
                kept.append(item)
        return replace(self, items=tuple(kept))


def collected(
    items: Sequence[Item], rejected: list[Rejected], sources: Iterable[Source], repeated: Iterable[str] = ()
) -> BenchmarkItems[Item]:
    """What was read.

    Raises:
        InputError: no item was.
    """
    sources = list(sources)
    if not items:
        names = ", ".join(source.name for source in sources)
        if not rejected:
            raise InputError(f"{names}: no rows")
        first = rejected[0]
        raise InputError(
            f"{names}: none of {len(rejected)} rows is an item; the first, {first.file} line {first.line}: "
            f"{first.reason}"
        )
    infos = tuple(source.inspect() for source in sources)
    return BenchmarkItems(tuple(items), tuple(rejected), tuple(repeated), infos)


def open_sources(
    data: str | Path, splits: Sequence[str], revision: str | None, in_folder: Callable[[Path], dict[str, Path]]
) -> list[tuple[str | None, Source]]:
    """The sources of a benchmark, each with the split that it is.

    Args:
        data: a file (its split is None), a folder, or a hub data set.
        splits: of the hub data set. All are read from the commit that its name means now.
        revision: of the hub data set.
        in_folder: the files of a folder, by split.

    Raises:
        InputError: there is no such thing, or the hub cannot be reached.
    """
    path = Path(data)
    refuse_revision(path, revision)
    if path.is_dir():
        return [(split, Source(str(file))) for split, file in in_folder(path).items()]
    if path.is_file():
        return [(None, Source(str(path)))]
    name = str(data).removeprefix("hub:")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise InputError(f"{data}: no such file or folder, and no name of a hub data set (OWNER/NAME)")

    def on_hub(split: str, revision: str | None) -> Source:
        options = {"split": split} | ({"revision": revision} if revision else {})
        return Source(f"hub:{name}?{urlencode(options)}")

    pinned = on_hub(splits[0], revision).inspect().digest.removeprefix("revision:")
    return [(split, on_hub(split, pinned)) for split in splits]


def subset_file(folder: Path, subset: str) -> Path | None:
    files = [folder / f"{subset}{suffix}" for suffix in SUFFIXES if (folder / f"{subset}{suffix}").is_file()]
    if len(files) > 1:
        raise InputError(f"{folder}: both {files[0].name} and {files[1].name} hold the subset {subset}; keep one")
    return files[0] if files else None


def refuse_revision(path: Path, revision: str | None) -> None:
    if revision is not None and path.exists():
        raise InputError(f"{path}: a revision ({revision}) belongs to a hub data set, and this is a file or folder")


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
            rejected.append(Rejected(file=name, line=row.line, reason=str(error), text=row.text[:MAX_REJECTED_TEXT]))


def json_object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InputError(f"a record must be a JSON object, not {type(value).__name__}")
    return value


def text_of(record: dict[str, Any], field: str) -> str:
    value = record.get(field)
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"{field!r} must be a text that is not empty, not {value!r:.80}")
    return value


def texts_of(record: dict[str, Any], field: str) -> tuple[str, ...]:
    """A list of texts. A text may be empty: three steps of PRMBench are, and they count."""
    value = record.get(field)
    if not isinstance(value, list) or not value or not all(isinstance(text, str) for text in value):
        raise InputError(f"{field!r} must be a list of texts, at least one; not {value!r:.80}")
    return tuple(value)


def checked_solution(identifier: str, problem: str, steps: tuple[str, ...], label: int | None) -> Solution:
    try:
        "".join((identifier, problem, *steps)).encode()
    except UnicodeEncodeError as error:
        raise InputError(f"text that is not Unicode: a lone surrogate {error.object[error.start]!r}") from None
    return Solution(id=identifier, problem=problem, steps=steps, label=label)
