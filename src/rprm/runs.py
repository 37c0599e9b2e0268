"""Run folders: what a stage writes, so that a kill at any moment loses nothing and pays for nothing twice.

A run folder holds

- `manifest.json`: the stage, its resolved settings, and a line for each session that worked on it;
- `results.jsonl`: finished rows in input order, each written once and whole;
- `rejected.jsonl`: rejected input rows, with file, line and reason;
- `journal-NNNNNN.jsonl`: pieces of work that are paid for but whose row is not finished; gone when the run is complete;
- `summary.json`: totals, written at the end;
- `lock`: held by the one process that writes.

Every line is handed to the operating system whole before the work it records is considered done. A line torn by a kill
can only be the last of its file, and is cut off when the folder is opened again.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar, overload

from pydantic import BaseModel, Field

from rprm.errors import CorruptRun, RunError, RunLocked, SettingsChanged

MANIFEST = "manifest.json"
RESULTS = "results.jsonl"
REJECTED = "rejected.jsonl"
SUMMARY = "summary.json"

#: The setting that says what the fields of a run's rows mean, where that has changed since the first version.
FORMAT = "row_format"

#: A run within a run folder, and finished before it: the candidates that a Best-of-N chooses from.
CANDIDATES = "candidates"

#: What a run that is killed before its manifest is written leaves behind.
_FIRST = {"lock", f"{MANIFEST}.partial", CANDIDATES}

#: What reading a damaged line or file raises.
DAMAGE = (KeyError, ValueError, TypeError, RecursionError)

#: Packages whose versions can change a result.
_PACKAGES = ("rprm", "torch", "transformers", "vllm", "peft", "openai", "numpy")

T = TypeVar("T")


class _Manifest(BaseModel):
    stage: str
    settings: dict[str, Any]
    sessions: list[dict[str, Any]] = Field(min_length=1)


class Run:
    """A run folder opened for writing. Use as a context manager.

    Args:
        folder: made if missing. A folder that holds something else is refused.
        stage: what wrote it (`judge`, ...).
        settings: everything that the results depend on. A folder started with others is refused, the difference named.
        session: what may differ between sessions (versions, machine), recorded for each.

    Raises:
        RunLocked: another process writes to the folder.
        SettingsChanged: the folder was started with other settings.
        CorruptRun: its manifest cannot be read, or a folder stands in a file's place.
        RunError: it is not a run folder.
    """

    def __init__(
        self, folder: str | Path, *, stage: str, settings: Mapping[str, Any], session: Mapping[str, Any] | None = None
    ) -> None:
        self.folder = Path(folder)
        self.stage = stage
        # Compared as they will be read back.
        self.settings: dict[str, Any] = json.loads(json.dumps(settings))
        self.session = dict(session or {})
        self._manifest: dict[str, Any] = {}

    def __enter__(self) -> Self:
        from filelock import FileLock, Timeout

        manifest = self.folder / MANIFEST
        if self.folder.exists() and not self.folder.is_dir():
            raise RunError(f"{self.folder} is a file; name a folder for the run")
        if self.folder.is_dir() and not manifest.exists() and {path.name for path in self.folder.iterdir()} - _FIRST:
            raise RunError(f"{self.folder} is not empty and has no {MANIFEST}; name a new folder for the run")
        self.folder.mkdir(parents=True, exist_ok=True)
        for path in (*(self.folder / name for name in (MANIFEST, RESULTS, REJECTED, SUMMARY, "lock")), *self._journals):
            if path.is_dir():
                raise CorruptRun.at(str(path), "it is a folder, and a file belongs there")
        self._lock = FileLock(self.folder / "lock")
        try:
            self._lock.acquire(blocking=False)
        except Timeout:
            raise RunLocked(f"{self.folder} is in use: another process is writing to it; wait for it to end") from None
        try:
            if manifest.exists():
                self._manifest = read_manifest(self.folder)
                self._check_settings()
            else:
                self._manifest = {"stage": self.stage, "settings": self.settings, "status": "running", "sessions": []}
            self._manifest["status"] = "running"
            self._manifest["sessions"].append({"started_at": _now(), **self.session})
            self._write_manifest()
            for path in (self.folder / RESULTS, *self._journals):
                repair_tail(path)
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.release()

    @property
    def results_path(self) -> Path:
        return self.folder / RESULTS

    @property
    def rejected_path(self) -> Path:
        return self.folder / REJECTED

    def complete(self, summary: Mapping[str, Any], session: Mapping[str, Any]) -> None:
        """Mark the run complete: totals to `summary.json`, what this session did to the manifest, no journal left."""
        write_atomically(self.folder / SUMMARY, json.dumps(summary, indent=2, ensure_ascii=False) + "\n")
        self.note(session, status="complete")
        for path in self._journals:
            path.unlink()

    def note(self, session: Mapping[str, Any], *, status: str = "stopped") -> None:
        """Record how this session ended."""
        self._manifest["status"] = status
        self._manifest["sessions"][-1].update({"ended_at": _now(), **session})
        self._write_manifest()

    @property
    def _journals(self) -> list[Path]:
        return Journal.paths(self.folder)

    def _write_manifest(self) -> None:
        write_atomically(self.folder / MANIFEST, json.dumps(self._manifest, indent=2, ensure_ascii=False) + "\n")

    def _check_settings(self) -> None:
        started = {"stage": self._manifest["stage"], **self._manifest["settings"]}
        asked = {"stage": self.stage, **self.settings}
        old, new = started.get(FORMAT, 1), asked.get(FORMAT, 1)
        if started["stage"] == self.stage and old != new:
            raise SettingsChanged(
                f"{self.folder} was started by another version of rprm: its rows are of format {old}, here they are of "
                f"format {new} and mean something else (docs/architecture.md, Run folder); name another --output"
            )
        if differences := list(_differences(started, asked)):
            listed = "\n".join(f"  {name}: {old} -> {new}" for name, old, new in differences)
            raise SettingsChanged(
                f"{self.folder} was started with other settings:\n{listed}\n"
                "name a new folder, or go back to the first settings"
            )


class Journal:
    """Paid-for pieces of unfinished rows, in segments that are dropped once every row they serve is finished.

    A piece belongs to the row number `index` (its place in the input) and has a key within it.
    """

    SEGMENT_ROWS = 4096
    _NAME = re.compile(r"journal-(\d{6,})\.jsonl")

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # Segment -> highest row index in it.
        self._highest = dict.fromkeys(self.paths(folder), -1)
        # (Row, key) -> where its piece of an earlier session stands.
        self._places: dict[tuple[int, str], str] = {}
        self._current: LineWriter | None = None
        self._num_rows = 0
        self._number = max((int(path.stem.removeprefix("journal-")) for path in self._highest), default=0)

    @classmethod
    def paths(cls, folder: Path) -> list[Path]:
        return sorted(path for path in folder.glob("journal-*.jsonl") if cls._NAME.fullmatch(path.name))

    def load(self, first_index: int) -> dict[int, dict[str, Any]]:
        """Pieces of the rows from `first_index` on: row index -> key -> piece. Finished segments are dropped.

        Raises:
            CorruptRun: a line is damaged.
        """
        pieces: dict[int, dict[str, Any]] = {}
        for path in self._highest:
            for line, (index, key, piece) in enumerate(read_json_lines(path, _journal_row), 1):
                self._highest[path] = max(self._highest[path], index)
                if index >= first_index:
                    pieces.setdefault(index, {})[key] = piece
                    self._places[index, key] = f"{path}, line {line}"
        self.finish(first_index)
        return pieces

    def where(self, index: int, key: str) -> str:
        """The file and line of a piece of an earlier session."""
        return self._places[index, key]

    def append(self, index: int, key: str, piece: Any) -> None:
        if self._current is None or self._num_rows >= self.SEGMENT_ROWS:
            self.close()
            self._number += 1
            self._num_rows = 0
            self._current = LineWriter(self.folder / f"journal-{self._number:06d}.jsonl")
        self._current.write(json.dumps({"index": index, "key": key, "piece": piece}, ensure_ascii=False))
        self._num_rows += 1
        path = self._current.path
        self._highest[path] = max(self._highest.get(path, -1), index)

    def finish(self, first_index: int) -> None:
        """Rows below `first_index` are finished: drop the segments that serve no other row."""
        current = self._current and self._current.path
        for path in [path for path, highest in self._highest.items() if highest < first_index and path != current]:
            path.unlink()
            del self._highest[path]

    def close(self) -> None:
        if self._current is not None:
            self._current.close()
            self._current = None


def _journal_row(row: Any) -> tuple[int, str, Any]:
    index, key, piece = row["index"], row["key"], row["piece"]
    if type(index) is not int or index < 0 or not isinstance(key, str) or piece is None:
        raise ValueError("it needs an index from 0, a key and a piece")
    return index, key, piece


class LineWriter:
    """Appends whole lines: each is with the operating system when `write` returns, on the disk when `close` does."""

    def __init__(self, path: Path, *, fresh: bool = False) -> None:
        self.path = path
        self._stream = path.open("wb" if fresh else "ab", buffering=0)

    def write(self, line: str) -> None:
        data = memoryview(line.encode() + b"\n")
        while data:
            data = data[self._stream.write(data) :]

    def close(self) -> None:
        if not self._stream.closed:
            os.fsync(self._stream.fileno())
            self._stream.close()


def repair_tail(path: Path) -> int:
    """Cut off a last line that was torn by a kill. Returns the number of bytes cut (0: nothing to repair)."""
    if not path.exists():
        return 0
    with path.open("r+b") as stream:
        size = position = stream.seek(0, os.SEEK_END)
        keep = 0
        while position > 0:
            start = max(0, position - (1 << 16))
            stream.seek(start)
            newline = stream.read(position - start).rfind(b"\n")
            if newline >= 0:
                keep = start + newline + 1
                break
            position = start
        if keep < size:
            stream.truncate(keep)
            os.fsync(stream.fileno())
    return size - keep


@overload
def read_json_lines(path: Path) -> Iterator[Any]: ...
@overload
def read_json_lines(path: Path, parse: Callable[[Any], T]) -> Iterator[T]: ...
def read_json_lines(path: Path, parse: Callable[[Any], Any] = lambda value: value) -> Iterator[Any]:
    """What `parse` makes of each row of a file that this package wrote.

    Raises:
        CorruptRun: a line is not JSON, or `parse` cannot read it; the message has file and line.
    """
    if not path.exists():
        return
    with path.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            try:
                row = parse(json.loads(line))
            except DAMAGE as error:
                raise CorruptRun.at(f"{path}, line {number}", error) from None
            yield row


def write_atomically(path: Path, text: str) -> None:
    """Replace a file whole, or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as stream:
        stream.write(text.encode(errors="backslashreplace"))  # As JSON has the bytes of a name that are no text.
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(partial, path)


def read_manifest(folder: str | Path) -> dict[str, Any]:
    """The manifest of a run folder.

    Raises:
        RunError: there is none.
        CorruptRun: it cannot be read.
    """
    path = Path(folder) / MANIFEST
    if not path.exists():
        raise RunError(f"{folder} is not a run folder: it has no {MANIFEST}")
    if path.is_dir():
        raise CorruptRun.at(str(path), "it is a folder, and a file belongs there")
    try:
        manifest = json.loads(path.read_bytes())
        _Manifest.model_validate(manifest, strict=True)
        # It is written again: what is nested too deep for that, or no number of JSON, is found now.
        json.dumps(manifest, indent=2, allow_nan=False)
        return {"stage": manifest["stage"], **manifest}
    except DAMAGE as error:
        raise CorruptRun.at(str(path), error) from None


def finished_manifest(folder: str | Path, *, stage: str, command: str) -> dict[str, Any]:
    """The manifest of a run of a stage that is complete; `command` runs that stage.

    Raises:
        RunError: it is no such run, or not complete.
        CorruptRun: it cannot be read.
    """
    manifest = read_manifest(folder)
    if manifest["stage"] != stage:
        raise RunError(f"{folder} is a run of {manifest['stage']!r}; name one of `{command}`")
    if manifest.get("status") != "complete":
        raise RunError(f"{folder} is not complete: run `{command}` again with the same settings first")
    return manifest


def _differences(old: Any, new: Any, name: str = "") -> Iterator[tuple[str, str, str]]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in dict.fromkeys([*old, *new]):
            yield from _differences(old.get(key), new.get(key), f"{name}.{key}" if name else key)
    elif old != new:
        yield name, json.dumps(old, ensure_ascii=False), json.dumps(new, ensure_ascii=False)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def versions() -> dict[str, str]:
    """Versions of Python and of every installed package that a result can depend on."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
