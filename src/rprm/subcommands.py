"""Commands of `rprm` as the stages of something larger, each in a process of its own and a folder of its own: a GPU's
memory is free again when the next stage begins, training goes through any launcher, and a stage leaves in its folder
what anyone running it by hand would find there."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from rprm.errors import RunError
from rprm.files import check_is_file, disk
from rprm.runs import MANIFEST, MEASUREMENT, read_manifest
from rprm.showing import message

#: Seconds that a stage has to stop before it is killed.
_PATIENCE_S = 30.0


def is_complete(folder: Path) -> bool:
    """Whether a stage has been run to its end in this folder."""
    return (folder / MANIFEST).exists() and read_manifest(folder).get("status") == "complete"


def is_done(folder: Path, words: Sequence[str]) -> bool:
    """Whether a command has nothing left to do in its folder: the figures of `rprm bench` come after its rows."""
    return (folder / MEASUREMENT).exists() if words[0] == "bench" else is_complete(folder)


class Subcommand:
    """A command of `rprm` that runs, as `process`; `folder` is its --output. What it says goes to `FOLDER.log`
    (`RunError`: that cannot be written); where `attached`, its progress line goes to the terminal, if there is one.
    `launcher` starts it in place of this Python, such as `accelerate launch --config_file F`; `environment` has
    variables set for it."""

    def __init__(
        self, folder: Path, arguments: Sequence[str], *, launcher: Sequence[str] = (),
        environment: Mapping[str, str] | None = None, attached: bool = False,
    ) -> None:  # fmt: skip
        self.folder = folder
        self.arguments = list(arguments)
        self.log = folder.with_name(f"{folder.name}.log")
        # What follows a "--" is for another command.
        end = [*self.arguments, "--"].index("--")
        own, other = self.arguments[:end], self.arguments[end:]
        command = [*(launcher or [sys.executable]), "-m", "rprm", *own, "--output", str(folder), *other]
        with disk(self.log):
            folder.parent.mkdir(parents=True, exist_ok=True)
            check_is_file(self.log)
            stream = self.log.open("ab", buffering=0)
        with stream:
            with disk(self.log):
                stream.write(f"$ {message(' '.join(command))}\n".encode())
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=stream, env=os.environ | (environment or {}),
                stderr=None if attached and sys.stderr.isatty() else subprocess.STDOUT,
                # A launcher may die without a word to what it has started: a group of their own is stopped whole.
                process_group=0, preexec_fn=None if sys.platform == "win32" else _begin,
            )  # fmt: skip

    def stop(self, number: int = signal.SIGTERM) -> None:
        """Ask it to stop, as Control-C would, with what a launcher has started for it; on Windows it is ended."""
        with suppress(ProcessLookupError, PermissionError):
            self.process.terminate() if sys.platform == "win32" else os.killpg(self.process.pid, number)

    def wait(self) -> None:
        """Wait for its end; a `RunError` with its last words where it failed. Where the wait is broken off, it ends."""
        try:
            code = self.process.wait()
        except BaseException:
            self.stop()
            self.end()
            raise
        if code not in (0, 3):  # 3: some input rows were rejected, no failure
            lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
            last = "\n".join(f"  {line}" for line in lines[-8:])
            raise RunError(
                f"{self.folder}: `rprm {' '.join(self.arguments[:2])}` failed with exit code {code}; fix the cause and "
                f"run the same command again to resume; its log ends ({self.log}):\n{last}"
            )

    def end(self) -> None:
        """Wait until all of it has stopped; what takes too long is killed."""
        deadline = time.monotonic() + _PATIENCE_S
        with suppress(ProcessLookupError, PermissionError):
            while time.monotonic() < deadline:
                if self.process.poll() is not None:
                    if sys.platform == "win32":
                        break
                    os.killpg(self.process.pid, 0)  # An error where nobody is left.
                time.sleep(0.02)
        self.stop(9)
        self.process.wait()


def _begin() -> None:
    """A stage heeds its parent, whatever signals that was itself started to ignore; on Linux it ends when its parent is
    killed, and so lets go of its folder."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if sys.platform == "linux":
        # prctl(PR_SET_PDEATHSIG, SIGKILL)
        ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)
