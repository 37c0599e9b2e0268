"""Commands of `rprm` in forks of a process that has imported what they need: a fraction of a second each, and each may
be killed, or sent signals, at a point that a number names.

Run as a program it is that process: requests come in on standard input and replies go out on standard output, a JSON
object each. `Warm` starts it and asks.
"""

from __future__ import annotations

import ctypes
import gc
import json
import mmap
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Self

#: What changes files, or begins to.
EVENTS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.symlink"}
#: Where lines are counted: this package, and what closes on its behalf.
TRACED = ("/rprm/", "/tempfile.py", "/shutil.py", "/contextlib.py")


@dataclass(frozen=True)
class Fault:
    """What befalls a command. Files are touched, and lines are run, in the same order every time: a number names a
    point of the run.

    Attributes:
        kill_at: killed at this touch of a file; within a line, where one is being written.
        kill_after_s: killed after so many seconds.
        signal_at: sent a signal at each of these lines.
        signal: which it is killed with, or sent.
        ignored: signals that it is started to ignore.
        setup: "module:function", called in the process first.
    """

    kill_at: int | None = None
    kill_after_s: float | None = None
    signal_at: tuple[int, ...] = ()
    signal: int = signal.SIGKILL
    ignored: tuple[int, ...] = ()
    setup: str = ""


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit code (negative: the signal that killed it), what it wrote, and how many touches of
    files and (where signals were to be sent) lines it came to. `left` are processes that it has left behind."""

    code: int
    out: str
    err: str
    num_touches: int
    num_lines: int
    seconds: float
    left: bool


class Warm:
    """The warm process, as a context manager: `warm(folder, "judge", ...)` runs a command in a folder."""

    def __enter__(self) -> Self:
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1", "COLUMNS": "100"}
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env=environment,
        )  # fmt: skip
        return self

    def __exit__(self, *error: object) -> None:
        with self._process as process:
            assert process.stdin is not None
            process.stdin.close()
            process.wait()

    def __call__(self, folder: Path, *arguments: object, fault: Fault | None = None) -> Ended:
        request = {"folder": str(folder), "arguments": [*map(str, arguments)], "fault": asdict(fault or Fault())}
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(json.dumps(request) + "\n")
        stdin.flush()
        ended: dict[str, Any] = json.loads(stdout.readline())
        return Ended(**ended)


def main() -> None:
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER: what a command leaves behind is a child of this.
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        replies.write(json.dumps(_run(**json.loads(line))) + "\n")
        replies.flush()


def _run(folder: str, arguments: list[str], fault: dict[str, Any]) -> dict[str, Any]:
    counts = mmap.mmap(-1, 16)  # Shared with the fork: touches, lines.
    streams = [os.memfd_create(name) for name in ("out", "err", "modules")]
    started = time.monotonic()
    if (child := os.fork()) == 0:
        os.setpgid(0, 0)
        for number, stream in enumerate(streams[:2], 1):
            os.dup2(stream, number)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.chdir(folder)
        os.environ["TMPDIR"] = os.path.join(folder, "tmp")
        sys.argv = ["rprm", *arguments]
        _befall(Fault(**fault), counts)
        _command(streams[2])
    if (delay := fault["kill_after_s"]) is not None:
        timer = threading.Timer(delay, os.kill, [child, fault["signal"]])
        timer.start()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if delay is not None:
        timer.cancel()
    seconds = time.monotonic() - started
    written = []
    for stream in streams:
        written.append(os.pread(stream, os.fstat(stream).st_size, 0).decode())
        os.close(stream)
    # What a command has imported is there for the next one.
    for name in written[2].split():
        with suppress(Exception):
            import_module(name)
    gc.freeze()
    touches, lines = (int.from_bytes(counts[place : place + 8], "little") for place in (0, 8))
    return {
        "code": code, "out": written[0], "err": written[1], "num_touches": touches, "num_lines": lines,
        "seconds": seconds, "left": _is_left(),
    }  # fmt: skip


def _is_left() -> bool:
    """Whether a command has left processes behind that live on for more than a moment; they are ended."""
    for _ in range(300):
        try:
            if os.waitpid(-1, os.WNOHANG)[0] == 0:
                time.sleep(0.01)
        except ChildProcessError:
            return False
    for child in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split():
        os.kill(int(child), signal.SIGKILL)
    return True


def _befall(fault: Fault, counts: mmap.mmap) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in fault.ignored:
        signal.signal(number, signal.SIG_IGN)
    if fault.setup:
        module, _, name = fault.setup.partition(":")
        getattr(import_module(module), name)()
    random.seed(fault.kill_at)
    total, top = ctypes.c_uint64.from_buffer(counts, 0), os.getpid()

    def touch(line: bytes = b"", write: Callable[[bytes], Any] = bytes) -> None:
        total.value += 1
        if total.value == fault.kill_at:
            if fault.signal == signal.SIGKILL:
                write(line[: random.randint(0, len(line))])
            os.kill(top, fault.signal)  # Of a command with stages (`fork_stages`) the first process; they follow it.
            if fault.signal == signal.SIGKILL:
                signal.pause()

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        # Of files opened, those to be written.
        if event in EVENTS and (event != "open" or arguments[2] & (os.O_WRONLY | os.O_RDWR)):
            touch()

    sys.addaudithook(audit)
    _before_each_line(lambda line, stream: touch(line, stream.write))
    if fault.signal_at:
        _trace(fault, ctypes.c_uint64.from_buffer(counts, 8))


def _before_each_line(tell: Callable[[bytes, Any], None]) -> None:
    from rprm.runs import LineWriter

    write = LineWriter.write

    def told(writer: LineWriter, line: str) -> None:
        tell(line.encode() + b"\n", writer._stream)
        write(writer, line)

    LineWriter.write = told  # type: ignore[method-assign]


def _trace(fault: Fault, total: ctypes.c_uint64) -> None:
    due = sorted(fault.signal_at, reverse=True)

    def local(frame: Any, event: str, argument: Any) -> Any:
        if event == "line":
            total.value += 1
            if due and total.value == due[-1]:
                due.pop()
                signal.raise_signal(fault.signal)
        return local

    def enter(frame: Any, event: str, argument: Any) -> Any:
        return local if any(part in frame.f_code.co_filename for part in TRACED) else None

    sys.settrace(enter)


def fork_stages() -> None:
    """Let the stages of a command be forks too, where each would load everything again."""
    import rprm.subcommands

    class Stage:
        returncode: int | None = None

        def __init__(self, command: list[str], *, stdout: Any, preexec_fn: Callable[[], None], **_: Any) -> None:
            sys.stdout.flush()
            if (child := os.fork()) == 0:
                os.setpgid(0, 0)
                preexec_fn()
                for number in (1, 2):
                    os.dup2(stdout.fileno(), number)
                sys.argv = ["rprm", *command[3:]]
                _command(None)
            self.pid = child

        def poll(self, flags: int = os.WNOHANG) -> int | None:
            if self.returncode is None and (found := os.waitpid(self.pid, flags))[0]:
                self.returncode = os.waitstatus_to_exitcode(found[1])
            return self.returncode

        def wait(self, timeout: float | None = None) -> int | None:
            return self.poll(0)

    rprm.subcommands.subprocess.Popen = Stage  # type: ignore[misc,assignment]


def loads_in_a_thread() -> None:
    """A model that takes a minute to load."""
    import asyncio

    from rprm.engines.scripted import ScriptedEngine

    async def start(engine: ScriptedEngine, *, chat: bool = True) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return await asyncio.to_thread(time.sleep, 60)

    ScriptedEngine.start = start  # type: ignore[method-assign]


def loads_in_the_loop() -> None:
    """As vLLM does, with a process of its own."""
    from multiprocessing import get_context

    from rprm.engines.scripted import ScriptedEngine

    async def start(engine: ScriptedEngine, *, chat: bool = True) -> Any:
        get_context("fork").Process(target=time.sleep, args=(60,), daemon=True).start()
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)

    ScriptedEngine.start = start  # type: ignore[method-assign]


def swallowed() -> None:
    """A signal that comes while an object is deleted, where Python drops exceptions."""
    from rprm.engines.scripted import ScriptedEngine

    class Deleted:
        def __del__(self) -> None:
            os.kill(os.getpid(), signal.SIGTERM)

    ScriptedEngine.__post_init__ = lambda engine: Deleted() and time.sleep(30)  # type: ignore[method-assign,func-returns-value]


def _command(modules: int | None) -> None:
    """Run the command of `sys.argv` as an interpreter does, say what it has imported, and end this process."""
    code = 1
    try:
        from rprm.cli import main

        main()
    except SystemExit as ended:
        sys.stdout.flush()
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        if isinstance(ended.code, str):
            print(ended.code, file=sys.stderr)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    if modules is not None:
        os.write(modules, "\n".join(sys.modules).encode())
    os._exit(code)


if __name__ == "__main__":
    main()
