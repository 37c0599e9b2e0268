"""Files that survive kills and power failures, and notice edits: lines appended whole, each with a checksum."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar, overload
from zlib import crc32

from rprm.errors import CorruptRun, RunError

_HALF_PAIR = re.compile(rb"\\u[dD][89a-fA-F]")
#: What reading a damaged line or file raises.
DAMAGE = (KeyError, ValueError, TypeError, AttributeError, RecursionError)

T = TypeVar("T")

_BLOCK_BYTES = 1 << 20


@contextmanager
def disk(path: Path) -> Iterator[None]:
    """What the system denies of a file as a `RunError`: a full or failing disk, permissions, an impossible name."""
    try:
        yield
    except OSError as error:
        hint = "mend that and give the same command again, which resumes what was begun, or name another folder"
        raise RunError(f"{error.filename or path}: {error.strerror or error}; {hint}") from error


class Checksums:
    """The running CRC-32 of a file's rows, in which each of them ends: `{..., "crc":"1c9a03f7"}`.

    It starts from a number of the run (of its settings), and goes on from row to row: a row that was edited, removed,
    repeated, moved or taken from another run does not fit. `value` is None where rows have no checksum; of a file that
    `is_whole` the last row cannot be torn.
    """

    def __init__(self, value: int | None, *, is_whole: bool = False) -> None:
        self.value, self.is_whole = value, is_whole

    def seal(self, row: bytes) -> bytes:
        """A row, which is a JSON object that is not empty, with its checksum."""
        if self.value is None:
            return row
        self.value = crc32(row, self.value)
        return b'%b,"crc":"%08x"}' % (row[:-1], self.value)

    def check(self, line: bytes) -> None:
        """Raise a `ValueError` where the next line does not fit."""
        row, end = line[:-19], line[-19:]
        if self.value is None:
            if end.startswith(b',"crc":"'):
                raise ValueError("it has a checksum, and the manifest says that it has none")
            return
        self.value = crc32(b"}", crc32(row, self.value))
        if end != b',"crc":"%08x"}\n' % self.value:
            raise ValueError("its checksum does not fit: it, a row before it or the settings were changed")


class LineWriter:
    """Appends whole lines: each is with the operating system when `write` returns, which no kill undoes.

    They are on the disk, which no power failure undoes, when `sync` or `close` returns. `write` syncs by itself, once a
    second, or less often where the disk takes over 10 ms: a hundredth of the time goes into that at most. `fresh`
    replaces the file; each row ends in its checksum, where there are some.
    """

    def __init__(self, path: Path, *, fresh: bool = False, checksums: Checksums | None = None) -> None:
        self.path, self.synced = path, False
        self._checksums = checksums or Checksums(None)
        self._failed: BaseException | None = None
        with disk(path):
            if fresh:
                path.unlink(missing_ok=True)
            self._stream = path.open("xb" if fresh else "ab", buffering=0)
            sync_folder(path.parent)
        self._due = time.monotonic() + 1.0

    def write(self, line: str) -> None:
        self.write_bytes(self._checksums.seal(line.encode()) + b"\n")

    def write_bytes(self, content: bytes) -> None:
        num_written = 0
        try:
            if self._failed is not None:
                raise self._failed
            while num_written < len(content):
                num_written += self._stream.write(memoryview(content)[num_written:])
        except BaseException as error:
            self._stream.close()  # Nothing may follow a torn line.
            self._failed = error
            with disk(self.path):
                raise
        self.synced = False
        if time.monotonic() >= self._due:
            self.sync()

    def sync(self) -> None:
        started = time.monotonic()
        with disk(self.path):
            os.fsync(self._stream.fileno())
        now = time.monotonic()
        self.synced, self._due = True, now + max(1.0, 100 * (now - started))

    def close(self) -> None:
        if not self._stream.closed:
            with self._stream:
                self.sync()


def repair_tail(path: Path) -> int:
    """Cut off a last line that was torn by a kill. Returns the number of bytes cut (0: nothing to repair)."""
    with disk(path):
        if not path.exists():
            return 0
        with path.open("r+b") as stream:
            keep = size = stream.seek(0, os.SEEK_END)
            while keep:
                start = stream.seek(max(0, keep - _BLOCK_BYTES))
                if end := stream.read(keep - start).rfind(b"\n") + 1:
                    keep = start + end
                    break
                keep = start
            if keep < size:
                stream.truncate(keep)
                os.fsync(stream.fileno())
    return size - keep


def check_is_file(path: Path) -> None:
    """Raise `CorruptRun` where a folder, a pipe, a device or a link to nothing stands in a file's place."""
    if not path.is_file() and (path.exists() or path.is_symlink()):
        what = "a folder" if path.is_dir() else "a pipe, a device or a link to nothing"
        raise CorruptRun.at(str(path), f"it is {what}, and a file belongs there")


@overload
def read_json_lines(path: Path, *, checksums: Checksums | None = None) -> Iterator[Any]: ...
@overload
def read_json_lines(
    path: Path, parse: Callable[[Any], T], checksums: Checksums | None = None, *, unread: int = 0
) -> Iterator[T]: ...
def read_json_lines(
    path: Path, parse: Callable[[Any], Any] = lambda value: value, checksums: Checksums | None = None, *,
    unread: int = 0,
) -> Iterator[Any]:  # fmt: skip
    """What `parse` makes of each row of a file that this package wrote: without its checksum, where it must have one,
    and without a last row that is torn. `CorruptRun` names file and line of a row that is not JSON, or does not fit.
    The first `unread` rows are checked alone."""
    with disk(path):
        check_is_file(path)
        if not path.exists():
            return
        with path.open("rb", _BLOCK_BYTES) as stream:
            for number, line in enumerate(stream, 1):
                try:
                    if checksums is not None:
                        if not checksums.is_whole and not line.endswith(b"\n"):
                            return
                        checksums.check(line)
                    if number <= unread:
                        continue
                    row = json.loads(line)
                    check_unicode(line)  # Never written, and nothing that reads the row could print it.
                    if checksums is not None:
                        row.pop("crc", None)
                    row = parse(row)
                except DAMAGE as error:
                    hint = ", or cut it off before this line and give the run's command again" if checksums else ""
                    raise CorruptRun.at(f"{path}, line {number}", error, f"restore the file{hint}") from None
                yield row


def read_json(path: Path, check: Callable[[bytes, Any], None] = lambda content, value: None) -> dict[str, Any]:
    """A JSON object that this package wrote; `CorruptRun` where it is damaged, or `check` raises a `ValueError`."""
    with disk(path):
        check_is_file(path)
        content = path.read_bytes()
    try:
        value = json.loads(content)
        check(content, value)
        return {**value}
    except DAMAGE as error:
        raise CorruptRun.at(str(path), error) from None


def check_unicode(content: bytes) -> None:
    """A `UnicodeEncodeError` where some text of a JSON value is no Unicode: half a surrogate pair."""
    if _HALF_PAIR.search(content):
        json.dumps(json.loads(content), ensure_ascii=False).encode()


def encoded(text: str) -> bytes:
    """A text as it is written, in UTF-8: what is no Unicode in it, of a file's name, is escaped."""
    return text.encode(errors="backslashreplace")


def write_atomically(path: Path, text: str) -> None:
    """Replace a file whole, or not at all; when it returns, the file is on the disk."""
    partial = path.with_name(path.name + ".partial")
    with disk(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with closing(LineWriter(partial, fresh=True)) as writer:
            writer.write_bytes(encoded(text))
        os.replace(partial, path)
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Have the names in a folder on the disk, where the system can do that (Windows and some networks cannot)."""
    with suppress(OSError), ExitStack() as stack:
        stack.callback(os.close, descriptor := os.open(folder, os.O_RDONLY))
        os.fsync(descriptor)
