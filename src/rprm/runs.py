"""Run folders: what a stage writes, so that a kill at any moment loses nothing and pays for nothing twice.

A run folder holds

- `manifest.json`: the stage, its resolved settings, and a line for each session that worked on it;
- `results.jsonl`: finished rows in input order, each written once and whole, with a checksum;
- `rejected.jsonl`: rejected input rows, with file, line and reason;
- `journal-NNNNNN.jsonl`: pieces of work that are paid for but whose row is not finished; gone when the run is complete;
- `index.json`: how far the run is, replaced now and then: rows that it counts are checked at a resume, and not parsed;
- `summary.json`: totals, written at the end;
- `lock`: held by the one process that writes.

Every line is handed to the operating system whole before the work it records is considered done. A line torn by a kill
can only be the last of its file, and is cut off when the folder is opened again. Pieces are dropped when the rows that
they serve are on the disk (`rprm.files`).
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Self, TypeVar
from zlib import crc32

from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from rprm import __version__
from rprm.errors import CorruptRun, RunError, RunLocked, SettingsChanged
from rprm.files import (
    DAMAGE,
    Checksums,
    LineWriter,
    check_is_file,
    disk,
    encoded,
    read_json,
    read_json_lines,
    repair_tail,
    write_atomically,
)

__all__ = ["DAMAGE", "Journal", "LineWriter", "Run", "read_json_lines", "repair_tail", "write_atomically"]

MANIFEST = "manifest.json"
RESULTS = "results.jsonl"
REJECTED = "rejected.jsonl"
SUMMARY = "summary.json"
INDEX = "index.json"
MEASUREMENT = "measurement.json"

#: The setting that says what the fields of a run's rows mean, where that has changed since the first version.
FORMAT = "row_format"

#: Runs within a run folder, and finished before it: the candidates that a Best-of-N chooses from; the second opinion
#: of labels.
CANDIDATES, JUDGED = "candidates", "judged"

#: What a run that is killed before its manifest is written leaves behind.
_FIRST = {"lock", f"{MANIFEST}.partial", CANDIDATES, JUDGED}

#: Packages whose versions can change a result.
_PACKAGES = ("rprm", "torch", "transformers", "vllm", "peft", "openai", "numpy")

T = TypeVar("T")

_encoded = json.JSONEncoder(ensure_ascii=False).encode


@dataclass(frozen=True)
class Index:
    """How far a run is: what a session that resumes it need not read again."""

    num_rows: int = 0  #: finished: the first of `results.jsonl`
    checksum: int | None = None  #: the running one at the last of them
    num_read: int = 0  #: rows of the source up to that one, rejected ones too
    num_rejected_bytes: int = 0  #: of what `rejected.jsonl` holds of these, and its CRC-32
    rejected_checksum: int = 0
    totals: dict[str, Any] = field(default_factory=dict)  #: of these
    version: str = __version__  #: another one may count or reject otherwise


class _Manifest(BaseModel):
    stage: str
    settings: dict[str, Any]
    sessions: list[dict[str, Any]] = Field(min_length=1)
    files: dict[str, str] = Field(default_factory=dict)  # as a run was complete last


class _Settings(dict[str, Any]):
    """The settings of a manifest, read back."""

    def __init__(self, values: Mapping[str, Any], place: Path) -> None:
        super().__init__(values)
        self._place = str(place)

    def __missing__(self, name: str) -> Any:
        raise CorruptRun.at(self._place, f"its setting {name!r} is missing")

    def of(self, name: str, kind: Any) -> Any:
        """A setting, or None where it is not there; `CorruptRun` where that is not of the type `kind`."""
        try:
            return TypeAdapter(kind).validate_python(self.get(name), strict=True)
        except ValidationError:
            raise CorruptRun.at(self._place, f"its setting {name!r} is {self.get(name)!r:.80}") from None


class Run:
    """A run folder opened for writing. Use as a context manager.

    Args:
        folder: made if missing. `RunError` where it holds something else or cannot be written, `RunLocked` where
            another process writes to it, `CorruptRun` where its manifest was changed, or a file's place is taken.
        stage: what wrote it (`judge`, ...).
        settings: everything that the results depend on; `SettingsChanged` names those that the folder has others of.
        session: what may differ between sessions (versions, machine), recorded for each.
    """

    #: The one that this process opened last: a command that is stopped says where its work is kept.
    last: ClassVar[Run | None] = None
    seed: int | None  #: from which the run's checksums start; None: it is older than they are
    checksums: Checksums  #: of the rows of `results.jsonl`, as far as they have been read or written

    def __init__(
        self, folder: str | Path, *, stage: str, settings: Mapping[str, Any], session: Mapping[str, Any] | None = None
    ) -> None:
        self.folder = Path(folder)
        self.stage = stage
        # Compared as they will be read back.
        self.settings: dict[str, Any] = json.loads(json.dumps(settings))
        self.session = dict(session or {})
        self._manifest: dict[str, Any] = {}
        self._started, self._is_open = time.monotonic(), False

    def __enter__(self) -> Self:
        with disk(self.folder):
            self._hold()
        try:
            with disk(self.folder):
                self._begin()
        except BaseException as error:
            self.__exit__(type(error), error, None)
            raise
        return self

    def _hold(self) -> None:
        """Make the folder, and hold its lock."""
        from filelock import FileLock, Timeout

        if re.match(r"\w\w+:/", str(self.folder)) and not self.folder.exists():
            fix = "name a folder, and copy it there with the store's own tool (docs/cluster.md)"
            raise RunError(f"{self.folder}: a run cannot be written to an address; {fix}")
        if self.folder.exists() and not self.folder.is_dir():
            raise RunError(f"{self.folder} is a file; name a folder for the run")
        names = {path.name for path in self.folder.iterdir()} if self.folder.exists() else set()
        if MANIFEST not in names and names - _FIRST:
            raise RunError(f"{self.folder} is not empty and has no {MANIFEST}; name a new folder for the run")
        self.folder.mkdir(parents=True, exist_ok=True)
        for path in (
            *(self.folder / name for name in (MANIFEST, RESULTS, REJECTED, SUMMARY, INDEX, "lock")),
            *self._journals,
        ):
            check_is_file(path)
        self._lock = FileLock(self.folder / "lock")
        try:
            self._lock.acquire(blocking=False)
        except Timeout:
            raise RunLocked(f"{self.folder} is in use: another process is writing to it; wait for it to end") from None
        Run.last = self

    def _begin(self) -> None:
        """Check the settings against those that the folder was started with, and begin a session."""
        self._manifest = {"stage": self.stage, "settings": self.settings, "sessions": [], "crc": ""}
        if (self.folder / MANIFEST).exists():
            self._manifest = read_manifest(self.folder)
            self._check_settings()
            if not self.results_path.exists() and not self._journals:
                self._manifest["crc"] = ""  # What is older has no row yet that lacks a checksum.
        self._manifest["status"] = "running"
        self.checksums = checksums_of(self._manifest)
        self.seed = self.checksums.value
        self._manifest["sessions"].append({"started_at": _now(), **self.session})
        self._is_open = True
        self._write_manifest()
        for path in (self.results_path, *self._journals):
            repair_tail(path)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Record how this session ended where nothing else has: by an error, or an interruption (a signal)."""
        try:
            with suppress(OSError):  # The error that ended the session is the one to tell.
                if kind and self._is_open and (self.folder / MANIFEST).exists():
                    by = kind.__name__ if issubclass(kind, Exception) else "interruption"
                    self.note({"seconds": round(time.monotonic() - self._started, 3), "stopped_by": by})
        finally:
            self._lock.release()
        name = getattr(error, "filename", None)
        if isinstance(error, OSError) and name and Path(os.fsdecode(name)).is_relative_to(self.folder):
            with disk(self.folder):
                raise error

    @property
    def results_path(self) -> Path:
        return self.folder / RESULTS

    @property
    def rejected_path(self) -> Path:
        return self.folder / REJECTED

    def keep_rejected(self, index: Index) -> bool:
        """Cut `rejected.jsonl` to the rows that an index counts; whether they are as they were written."""
        with disk(self.rejected_path):
            if not self.rejected_path.exists():
                return False
            with self.rejected_path.open("r+b") as stream:
                kept = stream.read(index.num_rejected_bytes)
                stream.truncate(index.num_rejected_bytes)
        return (len(kept), crc32(kept)) == (index.num_rejected_bytes, index.rejected_checksum)

    def write_index(self, index: Index) -> None:
        """Keep how far the run is; a run that is older than checksums has no index."""
        if self.seed is not None:
            line = Checksums(self.seed).seal(json.dumps(asdict(index)).encode())
            write_atomically(self.folder / INDEX, f"{line.decode()}\n")

    def complete(self, summary: Mapping[str, Any], session: Mapping[str, Any]) -> None:
        """Mark the run complete: totals to `summary.json`, what this session did to the manifest, no journal left."""
        write_atomically(self.folder / SUMMARY, text := _text(summary))
        if (value := self.checksums.value) is not None:
            # Of the last row too: none is missing at the end.
            rows = {RESULTS: f"{value:08x}"} if self.results_path.exists() else {}
            self._manifest["files"] = {SUMMARY: _crc(encoded(text)), **rows}
        self.note(session, status="complete")
        for path in self._journals:
            path.unlink()

    def note(self, session: Mapping[str, Any], *, status: str = "stopped") -> None:
        """Record how this session ended. Where that fails as what stopped it did, that is the error to tell."""
        self._manifest["status"] = status
        self._manifest["sessions"][-1].update({"ended_at": _now(), **session})
        with suppress(*(() if status == "complete" else (RunError,))):
            self._write_manifest()
        self._is_open = False  # Not before: a signal may break into the writing.

    @property
    def _journals(self) -> list[Path]:
        return Journal.paths(self.folder)

    def _write_manifest(self) -> None:
        if "crc" in self._manifest:
            self._manifest["crc"] = _manifest_crc(self._manifest)
        write_atomically(self.folder / MANIFEST, _text(self._manifest))

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
                "  (name a new folder, or go back to the first settings)"
            )


class Journal:
    """Paid-for pieces of unfinished rows, in segments that are dropped once every row they serve is finished.

    A piece belongs to the row number `index` (its place in the input) and has a key within it. The checksums of every
    segment start from `checksum`.
    """

    SEGMENT_ROWS = 4096
    _NAME = re.compile(r"journal-(\d{6,})\.jsonl")

    def __init__(self, folder: Path, checksum: int | None = None) -> None:
        self.folder, self._checksum = folder, checksum
        # Segment -> highest row index in it.
        self._highest = dict.fromkeys(self.paths(folder), -1)
        # (Row, key) -> where its piece of an earlier session stands.
        self._places: dict[tuple[int, str], str] = {}
        self._current: LineWriter | None = None
        self._num_rows = 0
        self._number = max((int(path.stem.removeprefix("journal-")) for path in self._highest), default=0)

    @classmethod
    def paths(cls, folder: Path) -> list[Path]:
        with disk(folder):
            return sorted(path for path in folder.iterdir() if cls._NAME.fullmatch(path.name))

    def load(self, first_index: int) -> dict[int, dict[str, Any]]:
        """Pieces of the rows from `first_index` on: row index -> key -> piece; `CorruptRun` where a line is damaged.
        Finished segments are dropped."""
        pieces: dict[int, dict[str, Any]] = {}
        for path in self._highest:
            rows = read_json_lines(path, _journal_row, Checksums(self._checksum))
            for line, (index, key, piece) in enumerate(rows, 1):
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
            path = self.folder / f"journal-{self._number:06d}.jsonl"
            self._current = LineWriter(path, checksums=Checksums(self._checksum))
        self._current.write(_encoded({"index": index, "key": key, "piece": piece}))
        self._num_rows += 1
        path = self._current.path
        self._highest[path] = max(self._highest.get(path, -1), index)

    def finish(self, first_index: int) -> None:
        """Rows below `first_index` are finished and on the disk: drop the segments that serve no other row."""
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


def read_manifest(folder: str | Path) -> dict[str, Any]:
    """The manifest of a run folder; `RunError` where there is none, `CorruptRun` where it is damaged."""
    path = Path(folder) / MANIFEST
    with disk(path):
        if not path.exists():
            raise RunError(f"{folder} is not a run folder: it has no {MANIFEST}")

    def check(content: bytes, manifest: Any) -> None:
        _Manifest.model_validate(manifest, strict=True)
        # It is written again: what is nested too deep for that, or no number of JSON, is found now.
        json.dumps(manifest, indent=2, allow_nan=False)
        if manifest.keys() & {"crc", "files"} and manifest.get("crc") != _manifest_crc(manifest):
            raise ValueError("its checksum does not fit: it was changed")

    manifest = read_json(path, check)
    return {"stage": manifest["stage"], **manifest, "settings": _Settings(manifest["settings"], path)}


def read_index(folder: Path, seed: int | None) -> Index | None:
    """How far a run was whose checksums start there; None where it does not say so, or the file is damaged or of
    another run."""
    path = folder / INDEX
    with disk(path), suppress(*DAMAGE):
        if seed is not None and path.is_file():
            Checksums(seed).check(line := path.read_bytes())
            index = TypeAdapter(Index).validate_json(line, strict=True)
            return index if index.version == __version__ else None
    return None


def checked_totals(folder: Path) -> dict[str, Any] | None:
    """The totals of a complete run by its index, after a look at the checksum of each row (`CorruptRun`: one does not
    fit); None where it has no index of all of them."""
    manifest = read_manifest(folder)
    index = read_index(folder, checksums_of(manifest).value)
    is_whole = index is not None and manifest.get("files", {}).get(RESULTS) == f"{index.checksum or 0:08x}"
    if index is None or not is_whole or manifest.get("status") != "complete":
        return None
    for _ in read_results(folder, bool, unread=index.num_rows):
        pass
    return index.totals


def read_results(folder: str | Path, parse: Callable[[Any], T], *, unread: int = 0) -> Iterator[T]:
    """What `parse` makes of each finished row of a run folder, the first `unread` of which are checked alone;
    `RunError` where it is none, `CorruptRun` where a row or the manifest is damaged, or rows of a complete run are
    missing."""
    manifest, path = read_manifest(folder), Path(folder) / RESULTS
    yield from read_json_lines(path, parse, checksums := checksums_of(manifest), unread=unread)
    last = manifest.get("files", {}).get(RESULTS) if checksums.is_whole else None
    if last not in (None, f"{checksums.value or 0:08x}"):
        raise CorruptRun.at(str(path), "rows are missing at its end")


def read_summary(folder: str | Path) -> dict[str, Any]:
    """The totals of a run folder, `CorruptRun` where they are damaged."""
    crc = read_manifest(folder).get("files", {}).get(SUMMARY)

    def check(content: bytes, summary: Any) -> None:
        if crc not in (None, _crc(content)):
            raise ValueError("its checksum does not fit: it was changed")

    return read_json(Path(folder) / SUMMARY, check)


def checksums_of(manifest: Mapping[str, Any]) -> Checksums:
    """Those of a run's rows, from the first; a run that is older than checksums has none."""
    settings = json.dumps([manifest["stage"], manifest["settings"]], sort_keys=True)
    value = crc32(settings.encode()) if "crc" in manifest else None
    return Checksums(value, is_whole=manifest.get("status") == "complete")


def _crc(content: bytes) -> str:
    return f"{crc32(content):08x}"


def _manifest_crc(manifest: Mapping[str, Any]) -> str:
    return _crc(encoded(_text({name: value for name, value in manifest.items() if name != "crc"})))


def _text(value: Any) -> str:
    return f"{json.dumps(value, indent=2, ensure_ascii=False)}\n"


def finished_manifest(folder: str | Path, *, stage: str, command: str) -> dict[str, Any]:
    """The manifest of a run of a stage that is complete; `command` runs that stage. `RunError` where it is no such run,
    or not complete, `CorruptRun` where it is damaged."""
    manifest = read_manifest(folder)
    if manifest["stage"] != stage:
        raise RunError(f"{folder} is a run of {manifest['stage']!r}; name one of `{command}`")
    if manifest.get("status") != "complete":
        raise RunError(f"{folder} is not complete: run `{command}` again with the same settings first")
    return manifest


def verified_results(folder: str | Path) -> Path:
    """The file of a run's rows, for what reads it as any other; `CorruptRun` where one is not as it was written."""
    for _ in read_results(folder, bool):
        pass
    return Path(folder) / RESULTS


def write_measurement(folder: Path, found: Mapping[str, Any]) -> None:
    """Keep figures in `measurement.json`, with a checksum of them and, in a run folder, that of the rows."""
    kept = {**found, "of_rows": _rows_of(folder)}
    write_atomically(folder / MEASUREMENT, _text(kept | {"crc": _manifest_crc(kept)}))


def read_measurement(folder: Path) -> dict[str, Any]:
    """The figures that a folder keeps; `CorruptRun` where they are not as they were written, or not of its rows."""

    def check(content: bytes, value: Any) -> None:
        if value.get("crc") != _manifest_crc(value):
            raise ValueError("its checksum does not fit: it was changed")
        if value["of_rows"] != _rows_of(folder):
            raise ValueError("it is of other rows")

    found = read_json(folder / MEASUREMENT, check)
    if found["of_rows"] is not None:
        verified_results(folder)
    return found


def _rows_of(folder: Path) -> str | None:
    """The checksum of the last row of a run that is complete; None of no such run."""
    manifest = read_manifest(folder) if (folder / MANIFEST).exists() else {}
    rows: str | None = (manifest.get("files") or {}).get(RESULTS)
    return rows


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
