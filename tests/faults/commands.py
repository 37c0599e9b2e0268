"""Commands of `rprm` as forks of this process, which has imported what they need: a hundred take seconds."""

from __future__ import annotations

import logging
import os
import pkgutil
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import typer


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str
    seconds: float = 0.0  #: of processor time
    megabytes: float = 0.0  #: beyond those of the process that it was forked from


def warm() -> None:
    """Import what most commands need."""
    for module in pkgutil.iter_modules(import_module("rprm.cli").__path__):
        import_module(f"rprm.cli.{module.name}")
    for name in ("openai", "rprm.engines.openai", "rprm.report.searches", "rprm.search.guided", "rprm.data.analyses"):
        import_module(name)


def rprm(
    *arguments: object, folder: Path | None = None, before: Callable[[], object] = lambda: None,
    patience_s: float = 600.0, **environment: str,
) -> Done:  # fmt: skip
    """Run a command in a folder to its end, as `rprm.cli.main` does it in a process of its own; `before` is called in
    that process first. One that takes longer is killed."""

    def command() -> None:
        from rprm.cli import main

        before()
        sys.argv = ["rprm", *map(str, arguments)]
        main()

    return forked(command, folder=folder, patience_s=patience_s, **environment)


def forked(
    call: Callable[[], object], *, folder: Path | None = None, patience_s: float = 600.0, **environment: str
) -> Done:
    """Call in a process of its own what ends as a program of Python does: its exit code, or a traceback."""
    with TemporaryDirectory() as kept:
        paths = [Path(kept, name) for name in ("out", "err")]
        if (pid := os.fork()) == 0:
            code = 70
            try:
                code = _run(call, paths, folder, environment)
            finally:
                os._exit(code)
        deadline = time.monotonic() + patience_s
        while not (ended := os.wait4(pid, os.WNOHANG))[0]:
            if time.monotonic() > deadline:
                os.kill(pid, signal.SIGKILL)
            time.sleep(0.002)
        _, status, usage = ended
        own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        used = usage.ru_utime + usage.ru_stime, max(0, usage.ru_maxrss - own) / 1024
        # What is no UTF-8 fails the test.
        return Done(os.waitstatus_to_exitcode(status), *(path.read_bytes().decode("utf-8") for path in paths), *used)


def _run(call: Callable[[], object], paths: list[Path], folder: Path | None, environment: dict[str, str]) -> int:
    for number, path in enumerate(paths, 1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.stdin, sys.stdout, sys.stderr = (
        open(number, mode, encoding="utf-8", closefd=False)  # noqa: SIM115
        for number, mode in enumerate("rww")
    )
    # What the test runner put there.
    logging.getLogger().handlers.clear()
    os.environ.update({"COLUMNS": "100", **environment})
    if folder is not None:
        os.chdir(folder)
    code: Any = 0
    try:
        call()
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        traceback.print_exc()
        code = 1
    if not isinstance(code, int):
        print(code, file=sys.stderr)
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return code


def leaves() -> dict[str, Any]:
    """Every command that there is, by its words: those of installed distributions too."""
    from rprm.cli.app import app

    def below(command: Any, words: str) -> Iterator[tuple[str, Any]]:
        if not hasattr(command, "list_commands"):
            yield words, command
            return
        context = typer.Context(command)
        for name in command.list_commands(context):
            yield from below(command.get_command(context, name), f"{words} {name}".strip())

    return dict(below(typer.main.get_command(app), ""))
