"""Solutions in: JSON Lines or JSON, plain or gzipped, standard input, or a hub data set.

Rows stream one at a time, so memory stays flat however long the file. A row that cannot be used is yielded as a
`Rejected` with its place and the reason; the rows after it go on.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, BinaryIO, TypeVar, cast
from urllib.parse import parse_qsl

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from rprm.errors import InputError
from rprm.records import Record, Solution
from rprm.splitting import split_steps

T = TypeVar("T")

#: A longer line is rejected unread: no solution is this long, and memory must stay flat.
MAX_LINE_BYTES = 32 * 1024 * 1024

#: How much of a rejected row is kept in the report.
MAX_REJECTED_TEXT = 100_000

#: `datasets` reads the hub and parquet files.
_NO_HUB = 'reading from the hub, or a parquet file, needs the extra: pip install ".[hub]"'


class Rejected(Record):
    """A row that cannot be used: where it stands, why, and its text (the first 100,000 characters)."""

    file: str
    line: int
    reason: str
    text: str


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a source: `line` is its 1-based line, or its 1-based place in a JSON array or hub data set."""

    line: int
    value: Any
    text: str

    def rejected(self, file: str, reason: str) -> Rejected:
        return Rejected(file=file, line=self.line, reason=reason, text=self.text[:MAX_REJECTED_TEXT])


@dataclass(frozen=True)
class SourceInfo:
    """What identifies a source: its name, a hash of its content (or the hub's revision), and its number of rows."""

    name: str
    digest: str
    num_rows: int | None


class Source:
    """A named place that rows are read from.

    Args:
        name: a path (JSON Lines or JSON, also .gz; parquet); or `hub:OWNER/NAME?option=value` (a bare `OWNER/NAME` that
            is no file means the same) with the options split, revision, config and data_dir.
        split: of a hub data set, where the name has none.

    Raises:
        InputError: there is no such file.
    """

    def __init__(self, name: str, *, split: str = "test") -> None:
        self.name = name
        self.hub: dict[str, str] | None = None
        self.path = Path(name)
        if name.startswith("hub:") or (not self.path.exists() and re.fullmatch(r"[\w.-]+/[\w.-]+(\?.*)?", name)):
            target, _, query = name.removeprefix("hub:").partition("?")
            self.hub = {"path": target, "split": split} | dict(parse_qsl(query))
            if unknown := set(self.hub) - {"path", "split", "revision", "config", "data_dir"}:
                raise InputError(
                    f"{name}: unknown option {min(unknown)!r}; options are split, revision, config, data_dir"
                )
        elif not self.path.is_file():
            hint = "it is a folder; name a file in it" if self.path.is_dir() else "no such file"
            raise InputError(f"{name}: {hint}")

    def pinned(self) -> Source:
        """The same source; a hub data set at the revision that its name stands for now."""
        if self.hub is not None:
            self.hub["revision"] = self._hub_revision()
        return self

    def inspect(self) -> SourceInfo:
        """Hash and count the rows, in one pass over the source (a hub data set is asked for its revision)."""
        if self.hub is not None:
            return SourceInfo(self.name, f"revision:{self._hub_revision()}", None)
        digest = hashlib.sha256()
        num_lines = 0
        last = b"\n"
        with _opened(self.path) as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
                num_lines += block.count(b"\n")
                last = block[-1:]
        num_lines += last != b"\n"
        counted = self.path.suffix != ".parquet" and not _is_one_value(self.path)
        return SourceInfo(self.name, f"sha256:{digest.hexdigest()}", num_lines if counted else None)

    def rows(self) -> Iterator[Row | Rejected]:
        """Every row in order; a row that is no JSON comes as `Rejected`.

        Raises:
            InputError: a JSON array (or single JSON object) is malformed as a whole, or the hub cannot be reached.
        """
        if self.hub is not None:
            options = {key: self.hub[key] for key in ("split", "data_dir") if key in self.hub}
            yield from self._streamed(
                self.hub["path"], self.hub.get("config"), revision=self._hub_revision(), **options
            )
            return
        if self.path.suffix == ".parquet":
            yield from self._streamed("parquet", data_files=str(self.path), split="train")
            return
        one_value = _is_one_value(self.path)
        with _opened(self.path) as stream:
            yield from self._array_rows(stream) if one_value else self._lines(stream)

    def _lines(self, stream: BinaryIO) -> Iterator[Row | Rejected]:
        number = 0
        while line := stream.readline(MAX_LINE_BYTES + 1):
            number += 1
            if len(line) > MAX_LINE_BYTES:
                head = line[:MAX_REJECTED_TEXT].decode(errors="replace")
                while line and not line.endswith(b"\n"):
                    line = stream.readline(MAX_LINE_BYTES)
                yield Rejected(file=self.name, line=number, reason="the line is longer than 32 MiB", text=head)
                continue
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if not line.strip():
                continue
            text = line.decode(errors="replace").rstrip("\r\n")
            try:
                yield Row(number, _parse(line), text)
            except ValueError as error:
                yield Rejected(file=self.name, line=number, reason=str(error), text=text[:MAX_REJECTED_TEXT])

    def _array_rows(self, stream: BinaryIO) -> Iterator[Row]:
        try:
            values = _parse(stream.read().removeprefix(b"\xef\xbb\xbf"))
        except ValueError as error:
            raise InputError(
                f"{self.name}: {error}; write one array of records, or JSON Lines (one record a line)"
            ) from None
        for number, value in enumerate(values if isinstance(values, list) else [values], 1):
            yield Row(number, value, json.dumps(value)[:MAX_REJECTED_TEXT])

    def _hub_revision(self) -> str:
        assert self.hub is not None
        try:
            from huggingface_hub import HfApi

            return str(HfApi().dataset_info(self.hub["path"], revision=self.hub.get("revision")).sha)
        except ImportError:
            raise InputError(_NO_HUB) from None
        except Exception as error:
            raise InputError(
                f"{self.name.removeprefix('hub:').removesuffix('?')}: no such file, and not to be had from the hub "
                f"({type(error).__name__}: {error}); check the name and the network, or give a file"
            ) from error

    def _streamed(self, *names: str | None, **options: str) -> Iterator[Row]:
        try:
            from datasets import load_dataset
        except ImportError:
            raise InputError(_NO_HUB) from None
        try:
            for number, value in enumerate(load_dataset(*names, streaming=True, **options), 1):
                yield Row(number, dict(value), json.dumps(value, default=str)[:MAX_REJECTED_TEXT])
        except (OSError, ValueError) as error:
            raise InputError(f"{self.name}: cannot be read: {error}") from error


@dataclass(frozen=True, slots=True)
class Instruction:
    """What a model was trained to answer: the user message, with its system message and the output, where there are."""

    line: int
    text: str
    system: str
    output: str | None

    def rejected(self, reason: str) -> Rejected:
        return Rejected(file="", line=self.line, reason=reason, text=self.text[:MAX_REJECTED_TEXT])


def read_instructions(
    rows: Iterable[Mapping[str, Any] | Row | Rejected], column: str | None = None, output_column: str | None = None
) -> Iterator[Instruction | Rejected]:
    """Training rows for a language model, each as an `Instruction`, or as `Rejected` with the reason.

    The instruction is a text, or a list of chat messages: one of the user, an optional one of the system. A column
    `system` is the system message too. The output is a text or a list of messages.

    Args:
        rows: those of a source keep the lines that they stand in.
        column, output_column: by default `instruction`, else `prompt`; and `output`, `completion`, `response`, else
            `chosen`.
    """
    columns = (column,) if column else ("instruction", "prompt")
    output_columns = (output_column,) if output_column else ("output", "completion", "response", "chosen")
    for number, row in enumerate(rows, 1):
        line, value = (number, row) if isinstance(row, Mapping) else (row.line, getattr(row, "value", None))
        try:
            yield Instruction(line, *_instruction(value, columns, output_columns))
        except InputError as error:
            yield Rejected(file="", line=line, reason=str(error), text="")


def _instruction(row: Any, columns: Sequence[str], output_columns: Sequence[str]) -> tuple[str, str, str | None]:
    if not isinstance(row, Mapping):
        raise InputError("it is no JSON object")
    instruction = next((row[column] for column in columns if row.get(column)), None)
    if instruction is None:
        wanted, present = " or ".join(map(repr, columns)), ", ".join(map(str, row)) or "none"
        raise InputError(f"nothing stands in column {wanted}; its columns are {present}")
    if row.get("input"):
        raise InputError("it has an 'input' beside its instruction; join the two into one column")
    messages = [{"role": "user", "content": instruction}] if isinstance(instruction, str) else instruction
    try:
        asked = [(message["role"], message["content"]) for message in messages if message["role"] != "assistant"]
    except (KeyError, TypeError):
        raise InputError("its instruction is neither a text nor a list of messages") from None
    if [role for role, _ in asked] not in (["user"], ["system", "user"]):
        raise InputError("its instruction is not one user message, with a system message before it or none")
    system = asked[0][1] if len(asked) == 2 else row.get("system") or ""
    if not isinstance(asked[-1][1], str) or not isinstance(system, str):
        raise InputError("its instruction or system message is no text")
    output = next((row[column] for column in output_columns if row.get(column)), None)
    output = output[-1] if isinstance(output, list) else output
    output = output.get("content") if isinstance(output, Mapping) else output
    return asked[-1][1], system, output if isinstance(output, str) else None


def read_solutions(source: Source, *, name: str | None = None) -> Iterator[Solution | Rejected]:
    """Every row of a source as a `Solution`, or as `Rejected` with the reason (`name` stands in for the file's own).

    A row is `{id?, problem, steps[] | solution, label?}`; other fields are ignored, so that ProcessBench's own records
    are read as they are. Without an id the row is `line-N`; a `solution` is cut by `split_steps`.
    """
    return read_rows(source, lambda row: solution_of(row.value, default_id=f"line-{row.line}"), name=name)


def read_rows(source: Source, read: Callable[[Row], T], *, name: str | None = None) -> Iterator[T | Rejected]:
    """What `read` makes of every row of a source; a row of which it raises an `InputError` is rejected with the reason.

    Args:
        source: the rows.
        read: reads one.
        name: stands in for the source's own in rejected rows.
    """
    for row in source.rows():
        try:
            yield row.model_copy(update={"file": name or row.file}) if isinstance(row, Rejected) else read(row)
        except InputError as error:
            assert isinstance(row, Row)
            yield row.rejected(name or source.name, str(error))


class RowModel(BaseModel):
    """The fields that a row must have, and their types; others are ignored. See `checked`."""

    model_config = ConfigDict(strict=True)


#: A text that is Unicode; one that is not empty; a name or number.
AnyText = Annotated[str, Field(min_length=0)]
Text = Annotated[str, Field(pattern=r"\S")]
Identifier = Annotated[Text, BeforeValidator(lambda value: str(value) if type(value) is int else value)]

M = TypeVar("M", bound=BaseModel)

#: How `checked` calls what is wanted, by pydantic's type of the error.
_WANTED = {
    "string_type": "a text",
    "string_pattern_mismatch": "a text that is not empty",
    "list_type": "a list",
    "too_short": "a list of at least one",
    "model_type": "an object",
    "bool_type": "true or false",
    "int_type": "a whole number",
}


def checked(model: type[M], value: Any) -> M:
    """A row as a model.

    Raises:
        InputError: what is wrong with the row, without its place.
    """
    if not isinstance(value, dict):
        raise InputError(f"a record must be a JSON object, not {type(value).__name__}")
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise InputError(explained(error)) from None


def explained(error: ValidationError) -> str:
    """The first thing that is wrong with a row: which field, what it must be, and what it is."""
    first = error.errors(include_url=False)[0]
    kind, found = first["type"], first["input"]
    place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"]).removeprefix(".")
    if kind == "value_error":
        return f"{place!r}: {first['ctx']['error']}" if place else str(first["ctx"]["error"])
    if kind == "missing":
        return f"{place!r} is missing; the record's fields are: {', '.join(sorted(map(str, found))[:12]) or 'none'}"
    if kind == "string_unicode":
        return f"text that is not Unicode: a lone surrogate in {place!r}"
    wanted = _WANTED.get(kind) or first["msg"].removeprefix("Input should be ")
    last = first["loc"][-1] if place else None
    number = f" (number {last + 1})" if isinstance(last, int) else ""
    return f"{place!r}{number} must be {wanted}, not {found!r:.80}"


class _SolutionRow(RowModel):
    id: Identifier | None = None
    problem: Text
    steps: Annotated[list[Text], Field(min_length=1)] | None = None
    solution: AnyText | None = None
    label: int | None = None


def solution_of(value: Any, *, default_id: str) -> Solution:
    """Check one row and make a `Solution` of it.

    Raises:
        InputError: what is wrong with the row, without its place.
    """
    row = checked(_SolutionRow, value)
    if row.steps is None and row.solution is None:
        raise InputError("'steps' is missing: it must be a list of texts, at least one (or give 'solution')")
    steps = split_steps(row.solution or "") if row.steps is None else row.steps
    if not steps:
        raise InputError("'solution' is empty, or nothing but thinking")
    if row.label is not None and not -1 <= row.label < len(steps):
        raise InputError(
            f"'label' must be the 0-based index of the earliest wrong step (0 to {len(steps) - 1}), -1 for none, or "
            f"null; not {row.label}"
        )
    return Solution(id=row.id or default_id, problem=row.problem, steps=tuple(steps), label=row.label)


def _parse(data: bytes) -> Any:
    """json.loads with every failure a ValueError that says what and where."""
    try:
        return json.loads(data)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg} at column {error.colno}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 text: byte {error.start} cannot be decoded") from None
    except RecursionError:
        raise ValueError("not a record: nested too deep") from None
    except ValueError as error:  # an integer of thousands of digits
        raise ValueError(f"not a record: {error}") from None


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """The content of a file, unzipped where it is zipped; damage is an InputError."""
    try:
        with path.open("rb") as raw:
            if raw.peek(2)[:2] == b"\x1f\x8b":
                with gzip.open(raw) as stream:
                    yield cast(BinaryIO, stream)
            else:
                yield raw
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise InputError(f"{path}: the file is damaged or cut short: {error}") from error


def _is_one_value(path: Path) -> bool:
    """Whether the file is one JSON value: an array, or an object over several lines in a file named .json."""
    with _opened(path) as stream:
        line = stream.readline(MAX_LINE_BYTES).removeprefix(b"\xef\xbb\xbf")
        while line.isspace():
            line = stream.readline(MAX_LINE_BYTES)
    if line.lstrip()[:1] == b"[":
        return True
    if line.lstrip()[:1] == b"{" and ".json" in path.suffixes:
        try:
            _parse(line)
        except ValueError:
            return True
    return False
