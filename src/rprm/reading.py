"""Rows in, one at a time: JSON Lines, JSON, CSV, also zipped; Parquet; a hub data set. Bad rows are `Rejected`."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import stat
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Annotated, Any, Generic, NamedTuple, TypeVar
from urllib.parse import parse_qsl, urlencode

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, ValidationError

from rprm.content import ROW_VARIABLE, Form, blocks_of, copied, fetched, formed, max_row_bytes, pieces, table_rows
from rprm.errors import InputError
from rprm.files import encoded
from rprm.records import Record, Solution
from rprm.splitting import split_steps

T = TypeVar("T")
M = TypeVar("M", bound=BaseModel)

#: How much of a rejected row is kept in a run folder, and how many rows; further ones are counted.
MAX_REJECTED_TEXT = 10_000
MAX_REJECTED_ROWS = 10_000

#: Of a row: a list of empty lists would take 30 times its size in memory.
MAX_COMMAS = 2_000_000

#: A source whose first rows are rejected, so many, is given up: it holds something else.
MAX_REJECTED_FIRST = 100_000

_ADDRESS = re.compile(r"\w+://")  # that fsspec reads
#: Fields of rows that another column may stand for (`Source`), and those of them and others that are no texts: in CSV
#: they are JSON.
FIELDS = (
    "id", "problem", "steps", "solution", "label", "messages", "previous_steps", "step", "labels", "answer", "set",
)  # fmt: skip
_JSON_FIELDS = {"steps", "label", "messages", "previous_steps", "labels", "solutions", "p_yes"}

_NO_FILES = {0: "no such file", stat.S_IFDIR: "it is a folder; name a file in it", stat.S_IFSOCK: "it is a socket"}


_Escaped = Annotated[str, PlainSerializer(lambda text: encoded(text).decode())]


class Rejected(Record):
    """A row that cannot be used: where it stands, why, and its text (the first 10,000 characters)."""

    file: _Escaped
    line: int
    reason: _Escaped
    text: _Escaped

    def listed(self, num_before: int) -> list[str]:
        """Its line of `rejected.jsonl`; none after so many rows, the last of which says so."""
        more = f"more rows are rejected, which are counted alone (summary.json); this one: {self.reason}"
        row = self.model_copy(update={"reason": more}) if num_before == MAX_REJECTED_ROWS else self
        return [row.model_dump_json()] if num_before <= MAX_REJECTED_ROWS else []


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
    """A file (JSON Lines or JSON; .csv; these also .gz; .parquet), also at an address (`s3://BUCKET/NAME`), or a hub
    data set, `hub:OWNER/NAME?option=value` (a bare `OWNER/NAME` that is no file means the same) with the options split,
    revision, config, data_dir.

    After any of them, `?FIELD=COLUMN&...` says which column stands for a field (one of `FIELDS`): `rows.csv?problem=q`.
    """

    def __init__(self, name: str, *, split: str = "test") -> None:
        #: Of a name that is no UTF-8, its bytes spelled out.
        self.name = os.fsencode(name).decode(errors="backslashreplace")
        name, self.columns = _without_columns(name)
        self.path = Path(name)
        #: By the name of a table, its kind.
        self.table = next((end for end in (".csv", ".parquet") if name.lower().removesuffix(".gz").endswith(end)), None)
        self.hub: dict[str, str] | None = None
        self._inspected: tuple[str, int] | None = None  # the digest, and of how many bytes
        if name == "-":
            self.path = copied(sys.stdin.buffer if sys.stdin else None, name, self)
            return
        if _ADDRESS.match(name) and not os.path.lexists(name):
            self.path = fetched(name, self)
            return
        try:
            kind = stat.S_IFMT(os.stat(name).st_mode)
        except (FileNotFoundError, NotADirectoryError):
            kind = 0
        except (OSError, ValueError) as error:  # ValueError: a NUL in the name
            raise InputError(f"{self.name}: {getattr(error, 'strerror', error)}") from None
        if name.startswith("hub:") or (not kind and re.fullmatch(r"[\w.-]+/[\w.-]+(\?.*)?", name)):
            target, options = hub_options(name, ("split", "revision", "config", "data_dir"))
            self.hub = {"path": target, "split": split} | options
        elif kind == stat.S_IFIFO:
            with self.path.open("rb") as stream:
                self.path = copied(stream, name, self)
        elif kind != stat.S_IFREG:
            raise InputError(f"{self.name}: {_NO_FILES.get(kind, 'it is a device; name a file')}")

    def pinned(self) -> Source:
        """The same source; a hub data set at the revision that its name stands for now."""
        if self.hub is not None:
            self.hub["revision"] = self._revision(self.hub)
        return self

    def inspect(self) -> SourceInfo:
        """Hash and count the rows, in one pass over the source (a hub data set is asked for its revision)."""
        columns = f"?{urlencode(sorted(self.columns.items()))}" if self.columns else ""
        if self.hub is not None:
            return SourceInfo(self.name, f"revision:{self._revision(self.hub)}{columns}", None)
        digest, num_bytes, num_lines, end = hashlib.sha256(), 0, 0, b"\n"
        form, blocks = formed(blocks_of(self.path, self.name, is_text=self.table != ".parquet"), self.path)
        form = "lines" if self.table else form
        for block in blocks:
            digest.update(block)
            num_bytes, num_lines, end = num_bytes + len(block), num_lines + block.count(b"\n"), (end + block)[-80:]
        if form == "array" and not end.rstrip().endswith(b"]"):
            # Before anything is paid for.
            raise InputError(f"{self.name}: not JSON: its array has no end; is it cut short?")
        self._inspected = f"sha256:{digest.hexdigest()}", num_bytes
        num_rows = num_lines + (not end.endswith(b"\n")) if form == "lines" and not self.table else None
        return SourceInfo(self.name, self._inspected[0] + columns, num_rows)

    def rows(self, after: int = 0) -> Iterator[Row | Rejected]:
        """The rows in order, without the first `after` ones, which are not parsed; an InputError where the whole is no
        JSON, damaged, or the hub cannot be reached."""
        for row in self._rows(after):
            if isinstance(row, Row) and isinstance(row.value, dict):
                named = {field: row.value[column] for field, column in self.columns.items() if column in row.value}
                # A field whose column is not there is missing, also where it has another of its own name.
                named |= {name: value for name, value in row.value.items() if name not in self.columns}
                value = {field: cell(field, one) for field, one in named.items()} if self.table else named
                row = row._replace(value=value)
            yield row

    def _rows(self, after: int) -> Iterator[Row | Rejected]:
        if self.hub is not None:
            options = {key: self.hub[key] for key in ("split", "data_dir", "features") if key in self.hub}
            revision = self._revision(self.hub)
            yield from self._streamed(after, self.hub["path"], self.hub.get("config"), revision=revision, **options)
        elif self.table == ".parquet":
            yield from self._parquet(after)
        elif self.table == ".csv":
            yield from self._csv(after)
        else:
            form, blocks = formed(self._unchanged(), self.path)
            longest = max_row_bytes()
            for number, text in islice(pieces(form, blocks, self.name), after, None):
                yield self._row(number, text, form, longest)

    def _unchanged(self) -> Iterator[bytes]:
        """The content as it was inspected, if it was: what was appended since is left out, another change an error."""
        blocks = blocks_of(self.path, self.name, is_text=self.table != ".parquet")
        if self._inspected is None:
            yield from blocks
            return
        (wanted, left), digest = self._inspected, hashlib.sha256()
        for block in blocks:
            digest.update(block := block[:left])
            yield block
            if not (left := left - len(block)):
                break
        if f"sha256:{digest.hexdigest()}" != wanted:
            raise InputError(f"{self.name}: it changed while it was read; run again, with a new --output")

    def _row(self, number: int, line: bytes, form: Form, longest: int) -> Row | Rejected:
        try:
            if len(line) > longest:
                raise ValueError(f"the row is longer than {longest >> 20} MiB ({ROW_VARIABLE} sets the limit)")
            if line.count(b",") > MAX_COMMAS:
                raise ValueError(f"the row has more than {MAX_COMMAS:,} commas")
            text = line.decode()
            return Row(number, _parse(text), text)
        except ValueError as error:
            reason = str(error)
            if isinstance(error, UnicodeDecodeError):
                reason = f"not UTF-8 text: byte {error.start} cannot be decoded; save the file as UTF-8"
            elif form == "lines" and b"\r" in line.strip():
                reason += "; its lines end in carriage returns alone: save it with line feeds"
            elif form == "object":
                reason += "; write one array of records, or one record a line"
            shown = line[: 4 * MAX_REJECTED_TEXT].decode(errors="replace").rstrip("\r\n")
            return Row(number, None, shown).rejected(self.name, reason)

    def _csv(self, after: int) -> Iterator[Row | Rejected]:
        rows = table_rows(self._unchanged(), self.name, MAX_COMMAS)
        _, header = next(rows, (1, []))
        if len(header) == 1 and any(sign in header[0] for sign in ";\t"):
            raise InputError(f"{self.name}: its first line has no comma: save it with commas between the columns")
        if len(set(header)) < len(header):
            (repeated, _), *_ = Counter(header).most_common(1)
            raise InputError(f"{self.name}: its first line must name the columns; {repeated!r:.80} stands there twice")
        for number, cells in islice(rows, after, None):
            row = Row(number, dict(zip(header, cells, strict=False)), json.dumps(cells, ensure_ascii=False))
            if len(cells) != len(header):
                what = f"{len(cells)} cells, and the first line names {len(header)} columns"
                yield row.rejected(self.name, f"it has {what}; quote cells with commas or line ends in them")
            elif not row.text.isascii() and encoded(row.text).decode() != row.text:
                yield row.rejected(self.name, "not UTF-8 text; save the file as UTF-8")
            else:
                yield row

    def _parquet(self, after: int) -> Iterator[Row | Rejected]:
        with hub_errors(f"{self.name}: cannot be read"):
            from pyarrow.parquet import ParquetFile

            if self._inspected is not None:
                for _ in self._unchanged():
                    pass
            with ParquetFile(self.path) as file:
                batches = (batch.to_pylist() for batch in file.iter_batches(batch_size=64))
                yield from self._numbered(chain.from_iterable(batches), after)

    def _numbered(self, values: Iterable[Any], after: int) -> Iterator[Row | Rejected]:
        """Rows of a table or data set."""
        longest = max_row_bytes()
        for number, value in islice(enumerate(values, 1), after, None):
            row = Row(number, dict(value), json.dumps(value, default=str))
            too_long = f"the row is longer than {longest >> 20} MiB ({ROW_VARIABLE} sets the limit)"
            yield row if len(row.text) <= longest else row.rejected(self.name, too_long)

    def _revision(self, hub: Mapping[str, str]) -> str:
        name = self.name.removeprefix("hub:").removesuffix("?")
        with hub_errors(f"{name}: no such file, and not to be had from the hub (check the name and the network)"):
            from huggingface_hub import HfApi

            return str(HfApi().dataset_info(hub["path"], revision=hub.get("revision")).sha)

    def _streamed(self, after: int, *names: str | None, **options: str) -> Iterator[Row | Rejected]:
        with hub_errors(f"{self.name}: cannot be read"):
            from datasets import load_dataset

            yield from self._numbered(load_dataset(*names, streaming=True, **options), after)


def _without_columns(name: str) -> tuple[str, dict[str, str]]:
    """A source's name, and which columns stand for fields by what follows its question mark; of an address that is its
    own, but for what `with_columns` put behind a `#`."""
    target, _, query = name.rpartition("#" if _ADDRESS.match(name) else "?")
    if not target or os.path.lexists(name):
        return name, {}
    options = dict(parse_qsl(query))
    columns = {field: column for field, column in options.items() if field in FIELDS}
    others = {option: value for option, value in options.items() if option not in FIELDS}
    if not columns or (others and _ADDRESS.match(name)):
        return name, {}
    return f"{target}?{urlencode(others)}" if others else target, columns


def with_columns(name: str, columns: Iterable[str] | None) -> str:
    """The name of a source some of whose columns stand for fields, each given as `FIELD=COLUMN`."""
    pairs = [text.partition("=")[::2] for text in columns or ()]
    for field, column in pairs:
        if field not in FIELDS or not column:
            raise InputError(f"--map {field}={column}: give FIELD=COLUMN; fields are {', '.join(FIELDS)}")
    query = urlencode(pairs)
    is_hub = "?" in name and not os.path.lexists(name)
    mark = "#" if _ADDRESS.match(name) else "&" if is_hub else "?"
    return f"{name}{mark}{query}" if pairs else name


def cell(field: str, value: Any) -> Any:
    """What a cell of a table holds: where the field is no text, JSON. A number without a fraction is whole: in a column
    with gaps (NaN) pandas keeps 1 as 1.0, and it writes True and False."""
    if field in _JSON_FIELDS and isinstance(value, str):
        with suppress(ValueError, RecursionError):
            value = {"True": True, "False": False}[value] if value in ("True", "False") else json.loads(value)
    if isinstance(value, float):
        return None if math.isnan(value) else int(value) if value.is_integer() else value
    return None if value == "" else value


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
        raise InputError('reading from the hub, or a Parquet file, needs the extra: pip install ".[hub]"') from None
    except InputError:
        raise
    except Exception as error:
        # The library stops with an empty StopIteration at a file without rows.
        raise InputError(f"{what}: {' '.join(str(error).split()) or 'there are no rows'}") from error


def stem(path: Path) -> str:
    """A file's name without its endings."""
    return encoded(path.name.split(".")[0] or path.name).decode()


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


def read_rows(source: Source, read: Callable[[Row], T], after: int = 0) -> Iterator[T | Rejected]:
    """What `read` makes of each row of a source `after` the first ones; its `InputError` rejects the row. It is an
    `InputError` of all where the first 100,000 are rejected."""
    rejected: list[Rejected] | None = []  # the first of those before a row that can be used, and None after it
    for number, row in enumerate(source.rows(after), 1):
        found: T | Rejected = row if isinstance(row, Rejected) else _read(row, read, source.name)
        if not isinstance(found, Rejected):
            rejected = None
        elif rejected is not None:
            first = (rejected := rejected or [found])[0]
            if number > MAX_REJECTED_FIRST:
                what = f"none of its first {MAX_REJECTED_FIRST:,} rows can be used"
                raise InputError(f"{source.name}: {what}; the first, line {first.line}: {first.reason}")
        yield found


@dataclass(frozen=True)
class Rows(Generic[T]):
    """What `read` makes of the rows of a source, the first `limit` of them; see `read_rows`."""

    source: Source
    read: Callable[[Row], T]
    limit: int | None = None

    def __iter__(self) -> Iterator[T | Rejected]:
        return self.after(0)

    def after(self, num_rows: int) -> Iterator[T | Rejected]:
        """Those after the first so many, which are not parsed."""
        rows = read_rows(self.source, self.read, num_rows)
        return islice(rows, None if self.limit is None else max(0, self.limit - num_rows))


def _read(row: Row, read: Callable[[Row], T], file: str) -> T | Rejected:
    try:
        return read(row)
    except InputError as error:
        return row.rejected(file, str(error))


def _failing_fast(schema: Any) -> Any:
    """A schema whose lists end at their first error: two million of them would take gigabytes."""
    if isinstance(schema, dict):
        more = {"fail_fast": True} if schema.get("type") in ("list", "tuple") else {}
        return {name: _failing_fast(value) for name, value in schema.items()} | more
    return [_failing_fast(one) for one in schema] if isinstance(schema, list) else schema


class RowModel(BaseModel):
    """The fields that a row must have, and their types; others are ignored. See `checked`."""

    model_config = ConfigDict(strict=True)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        return _failing_fast(handler(source))


#: A text that is Unicode; one that is not empty; a name or number; whether a step is right, or 1 and 0.
AnyText = Annotated[str, Field(min_length=0)]
Text = Annotated[str, Field(pattern=r"[^\s\x1c-\x1f]")]  # what Python does not count as blank
Identifier = Annotated[
    str, Field(min_length=1), BeforeValidator(lambda value: str(value) if type(value) is int else value)
]
StepLabel = Annotated[bool, BeforeValidator(lambda label: bool(label) if label in (0, 1) else label)]

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
        hint = f" (a chat: {_CHAT})" if isinstance(value, list) else ""
        raise InputError(f"a record must be a JSON object, not {type(value).__name__}{hint}")
    return value


def field_names(record: Mapping[str, Any]) -> str:
    return ", ".join(sorted(map(str, record))[:12]) or "none"


_STEPS = "a list of texts, at least one"
_CHAT = '{"messages": [{"role": ..., "content": ...}, ...]}'


class _SolutionRow(RowModel):
    id: Identifier | None = Field(None, description="a text or a whole number")
    problem: Text
    steps: Annotated[list[Text], Field(min_length=1)] | None = Field(None, description=f"{_STEPS} (or give 'solution')")
    solution: AnyText | None = None
    label: Any = None  # how many steps there are is its limit


class _Message(RowModel):
    role: Text
    content: AnyText


class _Chat(RowModel):
    messages: list[_Message]


def read_solutions(source: Source, limit: int | None = None) -> Rows[Solution]:
    """The rows of a source, or its first `limit`, as `Solution`s (see `solution_of`); without an id, `line-N`."""
    return Rows(source, lambda row: solution_of(row.value, default_id=f"line-{row.line}"), limit)


def solution_of(value: Any, *, default_id: str) -> Solution:
    """Check one row, `{id?, problem, steps[] | solution, label?}`, and make a `Solution` of it; an InputError says what
    is wrong with it, without its place. A row without a problem may have it and the solution as a chat, `messages`."""
    if json_object(value).get("problem") is None and value.get("messages") is not None:
        value = value | _of_chat(checked(_Chat, value).messages)
    elif value.get("problem") is None and value.keys() & {"conversations", "role"}:
        raise InputError(f"a chat must be {_CHAT}; the record's fields are: {field_names(value)}")
    if isinstance(steps := value.get("steps"), str):
        raise InputError(f"'steps' must be {_STEPS}, in a table as json.dumps(steps) writes it, not {steps!r:.80}")
    unread = "solution" if value.get("steps") is not None else None  # beside the steps
    row = checked(_SolutionRow, {key: given for key, given in value.items() if key != unread})
    if row.steps is None and row.solution is None and "solution" in value:
        raise InputError("'solution' is empty")
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


def _of_chat(messages: list[_Message]) -> dict[str, str]:
    """The problem of a chat, its one user message, and the solution, its last message, which answers it."""
    users = [message.content for message in messages if message.role == "user"]
    if len(users) != 1 or messages[-1].role != "assistant":
        found = ", ".join(message.role for message in messages)
        raise InputError(
            "'messages' must hold one user message, the problem, and end in one of the assistant, the solution; "
            f"its roles are {found or 'none'}"
        )
    return {"problem": users[0], "solution": messages[-1].content}


def explained_json(reason: str) -> str:
    """What Python's parser says is wrong with JSON, with the fix where LaTeX stands in it."""
    return f"{reason} (write a backslash twice: \\\\frac)" if "escape" in reason else reason


def _parse(text: str) -> Any:
    """json.loads with every failure a ValueError that says what and where."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if error.lineno > 1 else ""
        reason = f"not JSON: {explained_json(error.msg)} at {line}column {error.colno}"
    except RecursionError:
        reason = "not a record: nested too deep"
    except ValueError as error:  # an integer of thousands of digits
        reason = f"not a record: {error}"
    raise ValueError(reason)
