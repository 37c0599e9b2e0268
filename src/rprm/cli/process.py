"""The process of a command: its standard streams, its signals, and how it ends.

SIGINT (Control-C), SIGTERM and SIGHUP are a KeyboardInterrupt: everything open is closed on the way out (the manifest
of a run, the model, temporary folders), one line says what is kept, and the exit code is 128 and the number of the
signal. A signal that the process was started to ignore stays ignored (SIGHUP, by `nohup`).
"""

from __future__ import annotations

import io
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Coroutine
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from rprm.cli import EXIT_BROKEN_PIPE, EXIT_REJECTED
from rprm.errors import RprmError
from rprm.showing import guard, one_line

if TYPE_CHECKING:
    from tempfile import TemporaryDirectory

T = TypeVar("T")

#: Signals so soon after the first, in seconds, add nothing to it. A later one breaks off what is still waited for.
_GRACE_S = 5.0


class OutputLost(RprmError):
    """Standard output cannot be written; the cause is the system's error."""


class _Stream(io.FileIO):
    """Standard output, whose first failure is an `OutputLost` and which takes nothing after it; or standard error,
    whose failures are nobody's concern: progress that cannot be shown stops no run."""

    is_lost = False

    def write(self, data: Any) -> int:
        try:
            return len(data) if self.is_lost else super().write(data)
        except OSError as error:
            self.is_lost = self.fileno() == 1
            if self.is_lost:
                raise OutputLost(f"standard output: {error.strerror}") from error
            return len(data)


def _open_streams() -> None:
    """A standard stream that is closed (`>&-`) is nobody's: it is empty, and no file of a run gets its descriptor."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # The lowest that is free: this one.
    sys.stdin = sys.stdin or open(0, closefd=False)  # noqa: SIM115
    for number, name in ((1, "stdout"), (2, "stderr")):
        found: Any = getattr(sys, name) or open(number, "w", closefd=False)  # noqa: SIM115
        if sys.platform == "win32":
            # There a pipe or a file would take the code page of the country, which has no bars and no mathematics.
            found.reconfigure(encoding="utf-8")
        else:
            stream, is_direct = io.BufferedWriter(_Stream(number, "w", closefd=False)), number == 2 or found.isatty()
            found = io.TextIOWrapper(stream, found.encoding, found.errors, line_buffering=is_direct)
        setattr(sys, name, found)


class _Signals:
    """What has come of the signals of this process."""

    received: signal.Signals | None = None  #: the first
    is_over = False  #: the command has ended: nothing is left to stop
    _deaf_until = 0.0

    def handle(self, handler: Any) -> None:
        for name in ("SIGINT", "SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)  # Windows has no SIGHUP.
            if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, handler)

    def stop(self, number: int, frame: object) -> None:
        if self.is_over or time.monotonic() < self._deaf_until:
            return
        self.received = self.received or signal.Signals(number)
        self._deaf_until = time.monotonic() + _GRACE_S
        # What is broken off in the middle has nothing to say: no logs, no warnings, no exceptions of other threads.
        warnings.simplefilter("ignore")
        getattr(sys.modules.get("logging"), "disable", abs)(50)
        threading.excepthook = lambda arguments: None
        sys.unraisablehook = self._dropped
        raise KeyboardInterrupt

    def _dropped(self, unraisable: sys.UnraisableHookArgs) -> None:
        """The exception was raised where Python drops it, such as in `__del__`: raise it again a little later."""
        if isinstance(unraisable.exc_value, KeyboardInterrupt):
            self._deaf_until = 0.0
            threading.Timer(0.01, os.kill, [os.getpid(), self.received]).start()


_signals = _Signals()
_folders: list[TemporaryDirectory[str]] = []


def temporary_folder() -> TemporaryDirectory[str]:
    """A folder that is gone when the command ends, also where a signal breaks into its removal."""
    from tempfile import TemporaryDirectory

    _folders.append(TemporaryDirectory(prefix="rprm-"))
    return _folders[-1]


def run_async(coroutine: Coroutine[Any, Any, T]) -> T:
    """`asyncio.run`; but after a signal it waits for no thread: loading a model may take minutes."""
    import asyncio
    from concurrent.futures import ThreadPoolExecutor

    class Threads(ThreadPoolExecutor):
        def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
            super().shutdown(wait and not _signals.received, cancel_futures=cancel_futures)

    async def work() -> T:
        asyncio.get_running_loop().set_default_executor(Threads())
        return await coroutine

    return asyncio.run(work())


def run_command(command: Callable[[], object]) -> NoReturn:
    """Run a command, and end the process with its exit code."""
    code: Any = 1
    if sys.platform != "win32":
        os.register_at_fork(after_in_child=partial(_signals.handle, signal.SIG_DFL))  # A fork is not the command.
    try:
        _signals.handle(_signals.stop)
        _open_streams()
        guard()
        try:
            command()
            code = 0
        except SystemExit as ended:
            code = ended.code or 0
        sys.stdout.flush()
    except OutputLost as error:
        code = EXIT_BROKEN_PIPE if isinstance(error.__cause__, BrokenPipeError) else f"rprm: {error}"
    except RprmError as error:
        code = f"rprm: {error}"
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            _signals.received = _signals.received or signal.SIGINT  # By Python's own handler, before there was ours.
        is_ours = isinstance(error, FileNotFoundError | ConnectionError | TimeoutError | ChildProcessError)
        if isinstance(error, OSError) and not is_ours:
            # Of a path that was given, or of the disk. A file that is missing, or a connection, may be a fault of ours.
            code = one_line(f"rprm: {error.filename or 'a file'}: {error.strerror}")
        elif not _signals.received:
            raise
    finally:
        _signals.is_over = True
    if _signals.received and code not in (0, EXIT_REJECTED):
        _leave(_signals.received)
    _signals.handle(signal.SIG_IGN)  # Nothing disturbs the end of the interpreter.
    sys.exit(code)


def end(code: int) -> NoReturn:
    """End the process without waiting for threads."""
    import shutil

    for folder in _folders:
        shutil.rmtree(folder.name, ignore_errors=True)
    with suppress(OutputLost):
        sys.stdout.flush()
    for child in getattr(sys.modules.get("multiprocessing"), "active_children", list)():
        child.terminate()  # As the end of the interpreter would.
    os._exit(code)


def _leave(number: signal.Signals) -> NoReturn:
    """Say what is kept, and end."""
    run, kept = getattr(getattr(sys.modules.get("rprm.runs"), "Run", None), "last", None), "nothing was kept"
    if run is not None and (run.folder / "manifest.json").exists():
        run.__exit__(KeyboardInterrupt, None, None)  # Nothing to do, unless the signal came where nobody held the run.
        kept = one_line(f"what is finished is kept in {run.folder}, and the same command resumes it")
    if os.environ.get("RANK", "0") == "0":  # Of several processes that train, the main one speaks.
        print(f"rprm: stopped by {number.name}; {kept}", file=sys.stderr, flush=True)
    end(128 + number)
