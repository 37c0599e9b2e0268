"""Rows in, one at a time: JSON Lines or JSON, plain or gzipped, parquet, or a hub data set. Bad rows are `Rejected`."""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, BinaryIO, NamedTuple, TypeVar, cast
from urllib.parse import parse_qsl

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, ValidationError

from rprm.errors import InputError
from rprm.records import Record, Solution
from rprm.splitting import split_steps

T = TypeVar("T")
M = TypeVar("M", bound=BaseModel)

#: A longer line is rejected unread: no solution is this long, and memory must stay flat.
MAX_LINE_BYTES = 32 * 1024 * 1024

#: How much of a rejected row is kept in the report.
MAX_REJECTED_TEXT = 100_000

_BOM = b"\xef\xbb\xbf"


def escaped(text: str) -> str:
    """A text that may be no Unicode, such as the name of a file: its lone surrogates are escaped."""
    return text.encode(errors="backslashreplace").decode()


_Escaped = Annotated[str, PlainSerializer(escaped)]


class Rejected(Record):
    """A row that cannot be used: where it stands, why, and its text (the first 100,000 characters)."""

    file: _Escaped
    line: int
    reason: _Escaped
    text: _Escaped


class Row(NamedTuple):
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
    """A file (JSON Lines or JSON, also .gz; parquet), or a hub data set, `hub:OWNER/NAME?option=value` (a bare
    `OWNER/NAME` that is no file means the same) with the options split, revision, config, data_dir."""

    def __init__(self, name: str, *, split: str = "test") -> None:
        self.name, self.path = name, Path(name)
        self.hub: dict[str, str] | None = None
        if name.startswith("hub:") or (not self.path.exists() and re.fullmatch(r"[\w.-]+/[\w.-]+(\?.*)?", name)):
            target, options = hub_options(name, ("split", "revision", "config", "data_dir"))
            self.hub = {"path": target, "split": split} | options
        elif not self.path.is_file():
            hint = "it is a folder; name a file in it" if self.path.is_dir() else "no such file"
            raise InputError(f"{name}: {hint}")

    def pinned(self) -> Source:
        """The same source; a hub data set at the revision that its name stands for now."""
        if self.hub is not None:
            self.hub["revision"] = self._revision(self.hub)
        return self

    def inspect(self) -> SourceInfo:
        """Hash and count the rows, in one pass over the source (a hub data set is asked for its revision)."""
        if self.hub is not None:
            return SourceInfo(self.name, f"revision:{self._revision(self.hub)}", None)
        digest, num_lines, last = hashlib.sha256(), 0, b"\n"
        with _opened(self.path) as (stream, is_one_value):
            while block := stream.read(1 << 20):
                digest.update(block)
                num_lines += block.count(b"\n")
                last = block[-1:]
        num_rows = None if is_one_value or self.path.suffix == ".parquet" else num_lines + (last != b"\n")
        return SourceInfo(self.name, f"sha256:{digest.hexdigest()}", num_rows)

    def rows(self) -> Iterator[Row | Rejected]:
        """Every row in order; an InputError where the whole is no JSON, damaged, or the hub cannot be reached."""
        if self.hub is not None:
            options = {key: self.hub[key] for key in ("split", "data_dir", "features") if key in self.hub}
            revision = self._revision(self.hub)
            yield from self._streamed(self.hub["path"], self.hub.get("config"), revision=revision, **options)
        elif self.path.suffix == ".parquet":
            yield from self._streamed("parquet", data_files=str(self.path), split="train")
        else:
            with _opened(self.path) as (stream, is_one_value):
                yield from self._array_rows(stream) if is_one_value else self._lines(stream)

    def _lines(self, stream: BinaryIO) -> Iterator[Row | Rejected]:
        number = 0
        while line := stream.readline(MAX_LINE_BYTES + 1):
            number, is_long = number + 1, len(line) > MAX_LINE_BYTES
            line = line.removeprefix(_BOM if number == 1 else b"")
            text = line.decode(errors="replace").rstrip("\r\n")
            try:
                if is_long:
                    while line and not line.endswith(b"\n"):
                        line = stream.readline(MAX_LINE_BYTES)
                    raise ValueError("the line is longer than 32 MiB")
                if line.strip():
                    yield Row(number, _parse(line), text)
            except ValueError as error:
                yield Row(number, None, text).rejected(self.name, str(error))

    def _array_rows(self, stream: BinaryIO) -> Iterator[Row]:
        try:
            values = _parse(stream.read().removeprefix(_BOM))
        except ValueError as error:
            raise InputError(f"{self.name}: {error}; write one array of records, or one record a line") from None
        for number, value in enumerate(values if isinstance(values, list) else [values], 1):
            yield Row(number, value, json.dumps(value)[:MAX_REJECTED_TEXT])

    def _revision(self, hub: Mapping[str, str]) -> str:
        name = self.name.removeprefix("hub:").removesuffix("?")
        with hub_errors(f"{name}: no such file, and not to be had from the hub (check the name and the network)"):
            from huggingface_hub import HfApi

            return str(HfApi().dataset_info(hub["path"], revision=hub.get("revision")).sha)

    def _streamed(self, *names: str | None, **options: str) -> Iterator[Row]:
        with hub_errors(f"{self.name}: cannot be read"):
            from datasets import load_dataset

            for number, value in enumerate(load_dataset(*names, streaming=True, **options), 1):
                yield Row(number, dict(value), json.dumps(value, default=str)[:MAX_REJECTED_TEXT])


def hub_options(name: str, known: tuple[str, ...]) -> tuple[str, dict[str, str]]:
    """`hub:TARGET?option=value&...` taken apart; an InputError where an option is not known."""
    target, _, query = name.removeprefix("hub:").partition("?")
    options = dict(parse_qsl(query))
    if unknown := set(options) - set(known):
        raise InputError(f"{name}: unknown option {min(unknown)!r}; options are {', '.join(known)}")
    return target, options


@contextmanager
def hub_errors(what: str) -> Iterator[None]:
    """Whatever goes wrong with the hub, or in the library that reads it, as an InputError."""
    try:
        yield
    except ImportError:
        raise InputError('reading from the hub, or a parquet file, needs the extra: pip install ".[hub]"') from None
    except InputError:
        raise
    except Exception as error:
        # The library stops with an empty StopIteration at a file without rows.
        raise InputError(f"{what}: {' '.join(str(error).split()) or 'there are no rows'}") from error


def stem(path: Path) -> str:
    """A file's name without its endings."""
    return escaped(path.name.split(".")[0] or path.name)


class Instruction(NamedTuple):
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
    """Training rows for a language model: an instruction is a text, or chat messages, one of the user, before it maybe
    one of the system (also in a column `system`); the output a text or messages. Columns are by default the usual ones.
    """
    columns = (column,) if column else ("instruction", "prompt")
    output_columns = (output_column,) if output_column else ("output", "completion", "response", "chosen")
    for number, row in enumerate(rows, 1):
        line, value = (number, row) if isinstance(row, Mapping) else (row.line, getattr(row, "value", None))
        try:
            yield Instruction(line, *_instruction(value, columns, output_columns))
        except InputError as error:
            yield Rejected(file="", line=line, reason=str(error), text="")


def _instruction(row: Any, *columns: tuple[str, ...]) -> tuple[str, str, str | None]:
    if not isinstance(row, Mapping):
        raise InputError("it is no JSON object")
    instruction, output = (next((row[column] for column in names if row.get(column)), None) for names in columns)
    if instruction is None:
        wanted, present = " or ".join(map(repr, columns[0])), ", ".join(map(str, row)) or "none"
        raise InputError(f"nothing stands in column {wanted}; its columns are {present}")
    if row.get("input"):
        raise InputError("it has an 'input' beside its instruction; join the two into one column")
    messages = instruction if isinstance(instruction, list) else [{"role": "user", "content": instruction}]
    match [one for one in messages if not isinstance(one, dict) or one.get("role") != "assistant"]:
        case [{"role": "system", "content": str(system)}, {"role": "user", "content": str(text)}]:
            pass
        case [{"role": "user", "content": str(text)}] if isinstance(system := row.get("system") or "", str):
            pass
        case _:
            raise InputError("its instruction is neither a text nor one user message, alone or after a system message")
    output = output[-1] if isinstance(output, list) else output
    output = output.get("content") if isinstance(output, Mapping) else output
    return text, system, output if isinstance(output, str) else None


def read_rows(source: Source, read: Callable[[Row], T], *, name: str | None = None) -> Iterator[T | Rejected]:
    """What `read` makes of each row of a source (`name` stands in for its own); its `InputError` rejects the row."""
    for row in source.rows():
        if isinstance(row, Rejected):
            yield Rejected(**dict(row) | {"file": name or row.file})
            continue
        try:
            yield read(row)
        except InputError as error:
            yield row.rejected(name or source.name, str(error))


class RowModel(BaseModel):
    """The fields that a row must have, and their types; others are ignored. See `checked`."""

    model_config = ConfigDict(strict=True)


#: A text that is Unicode; one that is not empty; a name or number.
AnyText = Annotated[str, Field(min_length=0)]
Text = Annotated[str, Field(pattern=r"[^\s\x1c-\x1f]")]  # what Python does not count as blank
Identifier = Annotated[
    str, Field(min_length=1), BeforeValidator(lambda value: str(value) if type(value) is int else value)
]

#: How `checked` calls what is wanted, by pydantic's type of the error.
_WANTED = {
    "string_type": "a text", "string_too_short": "a text that is not empty", "list_type": "a list",
    "too_short": "a list of at least one", "model_type": "an object", "bool_type": "true or false",
    "int_type": "a whole number", "string_pattern_mismatch": "a text that is not empty",
}  # fmt: skip


def checked(model: type[M], value: Any) -> M:
    """A row as a model; an InputError says the first thing that is wrong with it."""
    try:
        return model.model_validate(json_object(value))
    except ValidationError as error:
        raise InputError(explained(error, model)) from None


def explained(error: ValidationError, model: type[BaseModel] | None = None) -> str:
    """The first thing that is wrong with a row: which field, what it must be (by its description), and what it is."""
    first = error.errors(include_url=False)[0]
    kind, found = first["type"], first["input"]
    place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"]).removeprefix(".")
    if kind == "value_error":
        return f"{place!r}: {first['ctx']['error']}" if place else str(first["ctx"]["error"])
    if kind == "missing":
        return f"{place!r} is missing; the record's fields are: {field_names(found)}"
    if kind == "unexpected_keyword_argument":
        return f"unknown key {place!r}"
    if kind == "string_unicode":
        return f"text that is not Unicode: a lone surrogate in {place!r}"
    field = model.model_fields.get(str(first["loc"][0])) if model and len(first["loc"]) == 1 else None
    wanted = (field and field.description) or _WANTED.get(kind) or first["msg"].removeprefix("Input should be ")
    last = first["loc"][-1] if place else None
    number = f" (number {last + 1})" if isinstance(last, int) else ""
    return f"{place!r}{number} must be {wanted}, not {found!r:.80}"


def json_object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InputError(f"a record must be a JSON object, not {type(value).__name__}")
    return value


def field_names(record: Mapping[str, Any]) -> str:
    return ", ".join(sorted(map(str, record))[:12]) or "none"


_STEPS = "a list of texts, at least one"


class _SolutionRow(RowModel):
    id: Identifier | None = Field(None, description="a text or a whole number")
    problem: Text
    steps: Annotated[list[Text], Field(min_length=1)] | None = Field(None, description=f"{_STEPS} (or give 'solution')")
    solution: AnyText | None = None
    label: Any = None  # how many steps there are is its limit


def read_solutions(source: Source, *, name: str | None = None) -> Iterator[Solution | Rejected]:
    """Every row of a source, `{id?, problem, steps[] | solution, label?}`, as a `Solution`; without an id, `line-N`."""
    return read_rows(source, lambda row: solution_of(row.value, default_id=f"line-{row.line}"), name=name)


def solution_of(value: Any, *, default_id: str) -> Solution:
    """Check one row and make a `Solution` of it; an InputError says what is wrong with it, without its place."""
    unread = "solution" if json_object(value).get("steps") is not None else None  # beside the steps
    row = checked(_SolutionRow, {key: given for key, given in value.items() if key != unread})
    if row.steps is None and row.solution is None:
        hint = f"(or give 'solution'); the record's fields are: {field_names(value)}"
        raise InputError(f"'steps' is missing: it must be {_STEPS} {hint}")
    steps = row.steps if row.solution is None else split_steps(row.solution)
    if not steps:
        raise InputError("'solution' is empty, or nothing but thinking")
    if row.label is not None and not (type(row.label) is int and -1 <= row.label < len(steps)):
        wanted = f"the 0-based index of the earliest wrong step (0 to {len(steps) - 1}), -1 for none, or null"
        raise InputError(f"'label' must be {wanted}; not {row.label!r:.80}")
    return Solution(id=row.id or default_id, problem=row.problem, steps=tuple(steps), label=row.label)


def _parse(data: bytes) -> Any:
    """json.loads with every failure a ValueError that says what and where."""
    try:
        return json.loads(data)
    except json.JSONDecodeError as error:
        reason = f"not JSON: {error.msg} at column {error.colno}"
    except UnicodeDecodeError as error:
        reason = f"not UTF-8 text: byte {error.start} cannot be decoded"
    except RecursionError:
        reason = "not a record: nested too deep"
    except ValueError as error:  # an integer of thousands of digits
        reason = f"not a record: {error}"
    raise ValueError(reason)


@contextmanager
def _opened(path: Path) -> Iterator[tuple[BinaryIO, bool]]:
    """The content of a file, unzipped where it is zipped, and whether it is one JSON value: an array, or an object over
    several lines in a file named .json. Damage is an InputError."""
    try:
        with path.open("rb") as raw:
            zipped = raw.peek(2)[:2] == b"\x1f\x8b"
            stream = cast(BinaryIO, gzip.GzipFile(fileobj=raw) if zipped else raw)
            line = stream.readline(MAX_LINE_BYTES).removeprefix(_BOM)
            while line.isspace():
                line = stream.readline(MAX_LINE_BYTES)
            is_one_value = line.lstrip()[:1] == b"["
            if line.lstrip()[:1] == b"{" and ".json" in path.suffixes:
                try:
                    _parse(line)
                except ValueError:
                    is_one_value = True
            stream.seek(0)
            yield stream, is_one_value
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise InputError(f"{path}: the file is damaged or cut short: {error}") from error
