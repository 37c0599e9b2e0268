"""Commands of `rprm` as the stages of something larger, each in a process of its own and a folder of its own: a GPU's
memory is free again when the next stage begins, training goes through any launcher, and a stage leaves in its folder
what anyone running it by hand would find there."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from rprm.errors import RunError
from rprm.runs import MANIFEST, read_manifest
from rprm.showing import message


def is_complete(folder: Path) -> bool:
    """Whether a stage has been run to its end in this folder."""
    return (folder / MANIFEST).exists() and read_manifest(folder).get("status") == "complete"


class Subcommand:
    """A command of `rprm` that runs, as `process`; `folder` is its --output. What it says goes to `FOLDER.log`; where
    `attached`, its progress line goes to the terminal, if there is one. `launcher` starts it in place of this Python,
    such as `accelerate launch --config_file F`; `environment` has variables set for it."""

    def __init__(
        self, folder: Path, arguments: Sequence[str], *, launcher: Sequence[str] = (),
        environment: Mapping[str, str] | None = None, attached: bool = False,
    ) -> None:  # fmt: skip
        self.folder = folder
        self.arguments = list(arguments)
        self.log = folder.with_name(f"{folder.name}.log")
        folder.parent.mkdir(parents=True, exist_ok=True)
        # What follows a "--" is for another command.
        end = [*self.arguments, "--"].index("--")
        own, other = self.arguments[:end], self.arguments[end:]
        command = [*(launcher or [sys.executable]), "-m", "rprm", *own, "--output", str(folder), *other]
        with self.log.open("ab") as stream:
            stream.write(f"$ {message(' '.join(command))}\n".encode())
            stream.flush()
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=stream, env=os.environ | (environment or {}),
                stderr=None if attached and sys.stderr.isatty() else subprocess.STDOUT,
                preexec_fn=_die_with_parent if sys.platform == "linux" else None,
            )  # fmt: skip

    def wait(self) -> None:
        """Wait for its end; a `RunError` with its last words where it failed."""
        try:
            code = self.process.wait()
        except BaseException:
            self.process.kill()
            self.process.wait()
            raise
        if code not in (0, 3):  # 3: some input rows were rejected, no failure
            lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
            last = "\n".join(f"  {line}" for line in lines[-8:])
            raise RunError(
                f"{self.folder}: `rprm {' '.join(self.arguments[:2])}` failed with exit code {code}; fix the cause and "
                f"run the same command again to resume; its log ends ({self.log}):\n{last}"
            )


def _die_with_parent() -> None:
    """On Linux: a stage ends when its parent is killed, and so lets go of its folder."""
    # prctl(PR_SET_PDEATHSIG, SIGKILL)
    ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)
