"""A disk that fails: a stand-in for the system calls on the files of one folder, of which the N-th does not succeed."""

from __future__ import annotations

import errno
import io
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

WRITES = {"open", "write", "fsync", "replace", "unlink", "mkdir"}
READS = {"look", "read"}


class FailingDisk:
    """Counts the calls on files in a folder, and fails from number `first` on, or (`once`) that one alone.

    Args:
        folder: every path in it, and itself; other files are left alone.
        kinds: the calls that count: `WRITES`, `READS`.
        code: the error. A write that a full disk cuts short writes its first half before.
    """

    def __init__(
        self, folder: Path, kinds: set[str], *, first: int | None = None, code: int = errno.ENOSPC, once: bool = False
    ) -> None:
        self.folder, self.kinds, self.first, self.code, self.once = str(folder), kinds, first, code, once
        self.num_calls = 0
        self.counts: Counter[str] = Counter()

    def has(self, path: Any) -> bool:
        """Whether a path, or an open file, is in the folder."""
        name = os.readlink(f"/proc/self/fd/{path}") if isinstance(path, int) else os.path.abspath(os.fsdecode(path))
        return name == self.folder or name.startswith(self.folder + os.sep)

    def call(self, kind: str, path: Any) -> bool:
        """Count a call; whether it is to fail."""
        if kind not in self.kinds or not self.has(path):
            return False
        self.num_calls += 1
        self.counts[kind] += 1
        return self.first is not None and (self.num_calls == self.first if self.once else self.num_calls >= self.first)

    def error(self, path: Any = None) -> OSError:
        names = () if path is None or isinstance(path, int) else (os.fsdecode(path),)
        return OSError(self.code, os.strerror(self.code), *names)

    @contextmanager
    def mounted(self) -> Iterator[FailingDisk]:
        disk = self

        class Raw(io.FileIO):
            def write(self, data: Any) -> int:
                if disk.call("write", self.fileno()):
                    if disk.code == errno.ENOSPC and len(data) > 1 and not disk.once:
                        super().write(bytes(data[: len(data) // 2]))
                    raise disk.error()
                return super().write(data)

            def readinto(self, buffer: Any) -> int:
                if disk.call("read", self.fileno()):
                    raise disk.error()
                return super().readinto(buffer)

            def readall(self) -> bytes:
                if disk.call("read", self.fileno()):
                    raise disk.error()
                return super().readall()

        real_open = io.open

        def opened(file: Any, mode: str = "r", buffering: int = -1, *rest: Any, **more: Any) -> Any:
            kind = "read" if set(mode) <= set("rbt") else "open"
            if isinstance(file, int) or not disk.has(file):
                return real_open(file, mode, buffering, *rest, **more)
            if disk.call(kind, os.fspath(file)):
                raise disk.error(os.fspath(file))
            raw = Raw(file, mode.replace("b", "").replace("t", ""))
            if buffering == 0:
                return raw
            kinds: dict[str, Any] = {"r": io.BufferedReader, "+": io.BufferedRandom}
            made = kinds["+" if "+" in mode else "r"](raw) if set(mode) & set("r+") else io.BufferedWriter(raw)
            return made if "b" in mode else io.TextIOWrapper(made, *rest, **more)

        def failing(kind: str, real: Any) -> Any:
            def call(path: Any, *rest: Any, **more: Any) -> Any:
                if disk.call(kind, path):
                    raise disk.error(path)
                return real(path, *rest, **more)

            return call

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(io, "open", opened)
            for name, kind in (
                ("fsync", "fsync"), ("replace", "replace"), ("unlink", "unlink"), ("mkdir", "mkdir"), ("stat", "look")
            ):  # fmt: skip
                patch.setattr(os, name, failing(kind, getattr(os, name)))
            yield self
