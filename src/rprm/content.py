"""The content of a file of rows, a block at a time: unzipped, and cut into lines, elements of an array or rows of CSV.

Memory holds one row of at most `max_row_bytes()` and one block, whatever a file holds or unzips to.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import re
import tempfile
import weakref
import zlib
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any, Literal, cast

from rprm.errors import InputError
from rprm.showing import without_credentials

Form = Literal["lines", "array", "object"]

BOM = b"\xef\xbb\xbf"
ROW_VARIABLE = "RPRM_MAX_ROW_MIB"  #: the environment variable that raises the bound of a row
_MAX_BLANK_BYTES = 32 << 20  # of blank lines in a row: what has more is no file of rows
_MAX_PIPE_BYTES = 16 << 30
_BLOCK_BYTES = 1 << 18
_GZIP = b"\x1f\x8b"
#: How files begin that hold no UTF-8 text, and what to do.
_FOREIGN = {
    _GZIP: "it is gzipped twice: unzip it once", b"PK\x03\x04": "a zip archive: unpack it",
    b"\x28\xb5\x2f\xfd": "zstd: unpack it, or use gzip", b"\xfd7zXZ\0": "xz: unpack it, or use gzip",
    b"BZh": "bzip2: unpack it, or use gzip", b"PAR1": "parquet: give it a name that ends in .parquet",
    **dict.fromkeys((b"\xff\xfe", b"\xfe\xff"), "UTF-16 text: save it as UTF-8 (iconv -f UTF-16 -t UTF-8)"),
    b"\0": "it begins with a NUL byte: no text, or UTF-32 or UTF-16; save it as UTF-8",
}  # fmt: skip
_SIGN = re.compile(rb'[\[{]++|[\]},"]')
_STRING = rb'[^"\\]*+(?:\\.[^"\\]*+)*+'  # without its quotation marks
_REST_OF_STRING = re.compile(_STRING, re.DOTALL)
_NESTED = rb'[\[{](?:[^\[\]{}"]++|"%b")*+[\]}]' % _STRING
for _ in range(4):
    _NESTED = rb'[\[{](?:[^\[\]{}"]++|"%b"|%b)*+[\]}]' % (_STRING, _NESTED)
#: What leaves the depth of brackets as it is, in an element and at its level (there up to the next comma): most of a
#: file, at the speed of a regular expression.
_BALANCED = re.compile(rb'(?:[^\[\]{}"]++|"%b"|%b)*+' % (_STRING, _NESTED), re.DOTALL)
_WHOLE = re.compile(rb'(?:[^\[\]{}",]++|"%b"|%b)*+' % (_STRING, _NESTED), re.DOTALL)


def max_row_bytes() -> int:
    """The bound of a row: 32 MiB, or as many as the environment says. A longer one is rejected unread."""
    text = os.environ.get(ROW_VARIABLE) or "32"
    if not (text.isascii() and text.isdigit() and 1 <= int(text[:9]) <= 1 << 20):
        raise InputError(f"{ROW_VARIABLE} is {text!r:.40}; give a whole number of MiB, from 1 to 1,048,576")
    return int(text) << 20


def copied(stream: IO[bytes] | None, name: str, owner: object) -> Path:
    """A copy of what comes through a pipe, since rows are read twice; it goes with its owner."""
    if stream is None:
        raise InputError(f"{name}: standard input is closed")
    handle, copy = tempfile.mkstemp(prefix="rprm-")
    weakref.finalize(owner, Path(copy).unlink, missing_ok=True)
    try:
        with open(handle, "wb") as file:
            while block := stream.read(_BLOCK_BYTES):
                if file.tell() > _MAX_PIPE_BYTES:
                    raise InputError(f"{name}: more than 16 GiB; write them to a file, and name that")
                file.write(block)
    except OSError as error:
        raise InputError(f"{name}: cannot be copied to {copy}: {error.strerror} (TMPDIR names a folder)") from None
    return Path(copy)


def fetched(address: str, owner: object) -> Path:
    """A copy of what stands at an address that fsspec reads (`s3://`, `gs://`, `file://`, ...), as of a pipe."""
    if without_credentials(address) != address:
        raise InputError(f"{address}: no password or key may stand there, where it would be recorded")
    try:
        import fsspec

        with fsspec.open(address, "rb") as stream:
            return copied(stream, address, owner)
    except InputError:
        raise
    except ImportError as error:  # of a package that reads such addresses: fsspec names it
        what = error.msg if error.name != "fsspec" else 'needs fsspec: pip install ".[ray]"'
        raise InputError(f"{address}: {what}") from None
    except Exception as error:
        what = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{address}: cannot be read: {what}") from error


def blocks_of(path: Path, name: str, *, is_text: bool = True) -> Iterator[bytes]:
    """A file's content; an `InputError` with its name where it cannot be read, is damaged, or holds no text."""
    num_blank, is_first = 0, is_text
    try:
        with path.open("rb") as raw:
            stream = gzip.GzipFile(fileobj=raw) if is_text and raw.peek(2)[:2] == _GZIP else raw
            while block := cast(IO[bytes], stream).read(_BLOCK_BYTES):
                if is_first and (
                    what := next((what for start, what in _FOREIGN.items() if block.startswith(start)), "")
                ):
                    raise InputError(f"{name}: {what}")
                is_first, num_blank = False, num_blank + len(block) if block.isspace() else 0
                if is_text and num_blank > _MAX_BLANK_BYTES:
                    raise InputError(f"{name}: more than 32 MiB of blank lines; leave them out")
                yield block
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise InputError(f"{name}: the file is damaged or cut short: {error}") from error
    except OSError as error:
        raise InputError(f"{name}: cannot be read: {error.strerror or error}") from error


def formed(blocks: Iterator[bytes], path: Path) -> tuple[Form, Iterator[bytes]]:
    """What the blocks of a file hold, and all of them: lines, an array, or one object over several lines."""
    seen: list[bytes] = []
    for block in blocks:
        seen.append(block)
        if not block.isspace():
            break
    start = b"".join(seen[-1:]).removeprefix(BOM).lstrip()
    line = start.partition(b"\n")[0].rstrip()
    form: Form = "array" if start[:1] == b"[" else "lines"
    # A row of JSON Lines that is cut short is no beginning of an object over several lines.
    if start[:1] == b"{" and len(line) < len(start) and ".jsonl" not in path.suffixes:
        try:
            json.loads(text := line.decode(errors="replace"))
        except json.JSONDecodeError as error:
            form = "object" if error.pos >= len(text) else "lines"
        except (ValueError, RecursionError):
            pass
    return form, chain(seen, blocks)


def pieces(form: Form, blocks: Iterator[bytes], name: str) -> Iterator[tuple[int, bytes]]:
    """The rows as they are written, with their lines or places; of one that is too long a beginning, too long too."""
    blocks = chain((next(blocks, b"").removeprefix(BOM),), blocks)
    if form == "lines":
        return lines(blocks)
    if form == "array":
        return elements(blocks, name)
    return iter([(1, b"".join(islice(blocks, max_row_bytes() // _BLOCK_BYTES + 2)))])


def lines(blocks: Iterable[bytes]) -> Iterator[tuple[int, bytes]]:
    """The lines that are not blank, with their numbers.

    Blank blocks are counted whole: a gigabyte of line ends takes a second.
    """
    number, size, longest, parts = 1, 0, max_row_bytes(), list[bytes]()
    for block in blocks:
        if not size and block.isspace():
            number += block.count(b"\n")
            continue
        first, *others = block.split(b"\n")
        if size <= longest:
            parts.append(first)
        size += len(first)
        if others:
            for line in (b"".join(parts), *others[:-1]):
                if line and not line.isspace():
                    yield number, line
                number += 1
            parts, size = others[-1:], len(others[-1])
    if (line := b"".join(parts)).strip():
        yield number, line


def elements(blocks: Iterable[bytes], name: str) -> Iterator[tuple[int, bytes]]:
    """The elements of a JSON array, with their places from 1; an `InputError`: it has no end, or text follows it."""
    number, size, longest, parts, tail = 1, 0, max_row_bytes(), list[bytes](), b""
    depth, is_open, is_string = 0, False, False  # depth: of brackets in the element; -1 after the array
    for block in blocks:
        if not is_open and (block := block.lstrip()):
            block, is_open = block[1:], True
        block, tail, start, place = tail + block, b"", 0, 0
        while place < len(block) and depth >= 0:
            if is_string:
                place = cast(re.Match[bytes], _REST_OF_STRING.match(block, place)).end()
                if block[place:] == b"\\":
                    block, tail = block[:-1], b"\\"  # what it escapes comes with the next block
                is_string, place = place >= len(block), place + 1
                continue
            place = cast(re.Match[bytes], (_BALANCED if depth else _WHOLE).match(block, place)).end()
            if (found := _SIGN.search(block, place)) is None:
                break
            sign, place = found[0], found.end()
            is_string, depth = sign == b'"', depth + len(sign) * (sign[:1] in b"[{") - (sign in b"]}")
            if depth < 0 or (depth == 0 and sign == b","):
                element = b"".join((*parts, block[start : place - 1]))
                if depth == 0 or number > 1 or element.strip():
                    yield number, element
                number, size, parts, start = number + 1, 0, [], place
        if depth < 0 and block[start:].strip():
            raise InputError(f"{name}: not JSON: text after its array; write one array of records, or one a line")
        if size <= longest:
            parts.append(block[start:])
        size += len(block) - start
    if depth >= 0:
        raise InputError(f"{name}: not JSON: no end of its array after element {number - 1}; is it cut short?")


def table_rows(blocks: Iterator[bytes], name: str, max_commas: int) -> Iterator[tuple[int, list[str]]]:
    """The rows of comma-separated values (RFC 4180) with the lines where they begin, blank ones left out. Bytes that
    are no UTF-8 are lone surrogates. An `InputError`: a row is out of bounds, or its quotation marks are wrong."""
    text = io.TextIOWrapper(io.BufferedReader(_Blocks(blocks)), "utf-8-sig", "surrogateescape", newline="")
    longest, size, commas, number = max_row_bytes(), 0, 0, 1
    csv.field_size_limit(longest)

    def lines() -> Iterator[str]:
        nonlocal size, commas
        while line := text.readline(longest + 1):
            size, commas = size + len(line), commas + line.count(",")
            if size > longest or commas > max_commas:
                what = f"is longer than {longest >> 20} MiB ({ROW_VARIABLE} sets the limit)"
                what = what if size > longest else f"has more than {max_commas:,} commas"
                raise InputError(f"{name}: the row at line {number} {what}; is a quotation mark not closed?")
            yield line

    reader = csv.reader(lines(), strict=True)
    try:
        for row in reader:
            if row:
                yield number, row
            size, commas, number = 0, 0, reader.line_num + 1
    except csv.Error as error:
        raise InputError(f"{name}: the row at line {number} is no CSV: {error}") from None


class _Blocks(io.RawIOBase):
    """Blocks as a stream."""

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self._blocks, self._rest = blocks, b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        block = self._rest or next(self._blocks, b"")
        part, self._rest = block[: len(buffer)], block[len(buffer) :]
        buffer[: len(part)] = part
        return len(part)
