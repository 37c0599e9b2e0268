"""The process of a command: its standard streams, its signals, and how it ends.

SIGINT (Control-C), SIGTERM and SIGHUP stop a command: on the way out everything open is closed (a run's manifest, the
model, temporary folders), one line says what is kept, and the exit code is 128 and the number of the signal. A signal
that the process was started to ignore stays ignored (SIGHUP, by `nohup`).
"""

from __future__ import annotations

import errno
import io
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, NoReturn, TypeVar

from rprm.cli import EXIT_REJECTED
from rprm.errors import RprmError

T = TypeVar("T")

#: A reader of standard output that has gone (`| head`); as the shell reports a tool that SIGPIPE has ended.
EXIT_BROKEN_PIPE = 141
#: Signals so soon after the first, in seconds, add nothing to it. A later one breaks off what is still waited for.
_GRACE_S = 5.0
#: Seconds until an event loop that stands still (vLLM loads in it) is broken into.
_PATIENCE_S = 2.0


class OutputLost(RprmError):
    """Standard output cannot be written."""

    def __init__(self, error: OSError) -> None:
        super().__init__(f"standard output: {error.strerror}")
        self.exit_code = EXIT_BROKEN_PIPE if error.errno == errno.EPIPE else 1


class _Stream(io.RawIOBase):
    """Standard output, of which the first failure is an `OutputLost` and nothing is written after; or standard error,
    whose failures are nobody's concern: progress that cannot be shown stops no run."""

    def __init__(self, stream: Any, *, is_output: bool) -> None:
        self._stream = stream  # Closed where nobody holds it.
        self._raw = getattr(stream.buffer, "raw", stream.buffer)
        self._is_output, self._is_lost = is_output, False

    def write(self, data: Any) -> int:
        try:
            return len(data) if self._is_lost else int(self._raw.write(data) or 0)
        except OSError as error:
            self._is_lost = self._is_output
            if self._is_output:
                raise OutputLost(error) from None
            return len(data)

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return int(self._raw.fileno())

    def isatty(self) -> bool:
        return bool(self._raw.isatty())


def open_streams() -> None:
    """Make the standard streams fit to use. One that is closed (`>&-`) is nobody's: it reads and writes nothing, and no
    file of a run gets its descriptor."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # The lowest that is free: this one.
    sys.stdin = sys.stdin or open(0, closefd=False)  # noqa: SIM115
    for number, name in ((1, "stdout"), (2, "stderr")):
        stream: Any = getattr(sys, name) or open(number, "w", closefd=False)  # noqa: SIM115
        raw = io.BufferedWriter(_Stream(stream, is_output=number == 1))
        # On Windows a pipe or a file would take the code page of the country, which has no bars and no mathematics.
        encoding = "utf-8" if sys.platform == "win32" else stream.encoding
        is_direct = number == 2 or stream.isatty()
        setattr(sys, name, io.TextIOWrapper(raw, encoding, stream.errors, line_buffering=is_direct))


class _Signals:
    """The signals of this process, and what has come of them."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None  #: the first
        self.is_over = False  #: the command has ended: nothing is left to stop
        self.cancel: Callable[[], object] | None = None  #: stops the event loop's work; otherwise an exception does
        self._deaf_until, self._installed = 0.0, list[int]()

    def install(self) -> None:
        for name in ("SIGINT", "SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)  # Windows has no SIGHUP.
            if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._stop)
                self._installed.append(number)

    def ignore(self) -> None:
        """Let no signal disturb the end of the interpreter."""
        for number in self._installed:
            signal.signal(number, signal.SIG_IGN)

    def _stop(self, number: int, frame: object) -> None:
        if self.is_over or time.monotonic() < self._deaf_until:
            return
        self.received = self.received or signal.Signals(number)
        self._deaf_until = time.monotonic() + _GRACE_S
        # What is broken off in the middle has nothing to say: no logs, no warnings, no exceptions of other threads.
        warnings.simplefilter("ignore")
        getattr(sys.modules.get("logging"), "disable", abs)(50)
        threading.excepthook = lambda arguments: None
        sys.unraisablehook = self._ignored
        cancel, self.cancel = self.cancel, None
        if cancel is None:
            raise KeyboardInterrupt
        cancel()

    def _ignored(self, unraisable: sys.UnraisableHookArgs) -> None:
        """The exception was raised where Python drops it, such as in `__del__`: raise it again a little later."""
        if isinstance(unraisable.exc_value, KeyboardInterrupt):
            threading.Timer(0.01, self.again).start()

    def again(self) -> None:
        """Let the exception be raised where the main thread is now."""
        self._deaf_until, self.cancel = 0.0, None
        os.kill(os.getpid(), self.received or signal.SIGINT)


_signals = _Signals()


def run_async(coroutine: Coroutine[Any, Any, T]) -> T:
    """`asyncio.run`, where a signal cancels the work, and a thread that goes on is not waited for then: loading a model
    may take minutes."""
    import asyncio
    from concurrent.futures import ThreadPoolExecutor

    class Threads(ThreadPoolExecutor):
        def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
            super().shutdown(wait and not _signals.received, cancel_futures=cancel_futures)

    async def work() -> T:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None
        loop.set_default_executor(Threads())

        def cancel() -> None:
            late = threading.Timer(_PATIENCE_S, _signals.again)
            late.daemon = True
            late.start()
            for done in (late.cancel, task.cancel):
                loop.call_soon_threadsafe(done)

        _signals.cancel = cancel
        try:
            return await coroutine
        finally:
            _signals.cancel = None

    try:
        result = asyncio.run(work())
    except asyncio.CancelledError:
        if not _signals.received:
            raise
    if _signals.received:
        raise KeyboardInterrupt
    return result


def run_command(command: Callable[[], object]) -> NoReturn:
    """Run a command, and end the process with its exit code."""
    code = 1
    try:
        _signals.install()
        open_streams()
        code = _exit_code(command)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            _signals.received = _signals.received or signal.SIGINT  # By Python's own handler, before there was ours.
        if not _signals.received:
            raise  # A fault of ours, and its traceback.
    finally:
        _signals.is_over = True
    if _signals.received and code not in (0, EXIT_REJECTED):
        _leave(_signals.received)
    _signals.ignore()
    sys.exit(code)


def _exit_code(command: Callable[[], object]) -> int:
    try:
        try:
            command()
            code: Any = 0
        except SystemExit as ended:
            code = ended.code or 0
        if isinstance(code, str):
            _say(code)
        sys.stdout.flush()
        return code if isinstance(code, int) else 1
    except OutputLost as error:
        if error.exit_code != EXIT_BROKEN_PIPE:
            _say(f"rprm: {error}")
        return error.exit_code
    except RprmError as error:
        _say(f"rprm: {error}")
    except (FileExistsError, NotADirectoryError, IsADirectoryError, PermissionError) as error:
        # Of a path that was given. Other errors of the system may be faults of ours.
        _say(f"rprm: {error.filename}: {error.strerror}")
    return 1


def _leave(number: signal.Signals) -> NoReturn:
    """Say what is kept, and end without waiting for threads."""
    run, kept = getattr(getattr(sys.modules.get("rprm.runs"), "Run", None), "last", None), "nothing was kept"
    if run is not None and (run.folder / "manifest.json").exists():
        run.__exit__(KeyboardInterrupt, None, None)  # Nothing to do, unless the signal came where nobody held the run.
        kept = f"what is finished is kept in {run.folder}, and the same command resumes it"
    if os.environ.get("RANK", "0") == "0":  # Of several processes that train, the main one speaks.
        print(f"rprm: stopped by {number.name}; {kept}", file=sys.stderr, flush=True)
    with suppress(OutputLost):
        sys.stdout.flush()
    for child in getattr(sys.modules.get("multiprocessing"), "active_children", list)():
        child.terminate()  # As the end of the interpreter would.
    os._exit(128 + number)


def _say(text: str) -> None:
    """Say what went wrong; after a signal that is the signal alone."""
    if not _signals.received:
        print(text, file=sys.stderr, flush=True)
