r"""The processes that compare answers by computer algebra.

A *keeper* loads math-verify once and never computes. Its *child*, a fork, answers under limits of processor time and
address space that the kernel enforces, also inside one long multiplication that no Python code could interrupt. When
it is gone, the keeper answers in its place and forks another. Both end with the process that started the keeper.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import weakref
from importlib.util import find_spec
from typing import Any

from rprm.errors import RprmError

#: RLIMIT_AS cannot be set on macOS: there the keeper looks at its child's memory, every so many seconds.
_WATCHES_MEMORY, _LOOK_S = sys.platform == "darwin", 0.2
#: What the keeper has compared once, so that its children start with warm caches.
_WARM_UP = [(r"\frac{\sqrt{3}}{2}", r"\sqrt{3}/2"), ("x^2+2x+1", "(x+1)^2"), (r"2\pi", "6.2832"), ("y=2x", "2y=4x")]
#: What became of a child that was ended by a signal.
_ENDED = {-signal.SIGPROF: "timeout", -signal.SIGUSR1: "out of memory"} if sys.platform != "win32" else {}


class Keeper:
    """A keeper process, started at its first question and ended with this object."""

    def __init__(self, *limits: float) -> None:
        self._limits = [*map(str, limits)]
        self._process: Any = None
        self._owner = 0  # The process that started it; a fork of that starts one of its own.

    def fileno(self) -> int:
        """Where its reply comes."""
        return int(self._process.stdout.fileno())

    def ask(self, *question: Any) -> None:
        """Ask for the outcome of a gold answer, an answer (None: is the gold answer recognised?) and a rule's fields."""
        if self._owner != os.getpid():
            self._start()
        with contextlib.suppress(OSError):  # It has been killed: its reply is the end of its output.
            self._process.stdin.write(json.dumps(question, default=str).encode() + b"\n")

    def reply(self) -> Any:
        """The outcome; where the keeper itself was killed, "crashed", and the next question has a new keeper."""
        outcome = self._process.stdout.readline().decode().strip()
        if not outcome:
            self.stop()
        return outcome or "crashed"

    def stop(self) -> None:
        """End the process, where there is one."""
        if self._owner == os.getpid():
            self._owner = 0
            self._finalizer()

    def _start(self) -> None:
        if sys.platform == "win32":
            raise RprmError("comparing mathematical answers needs Linux or macOS; on Windows, run this command in WSL")
        if find_spec("math_verify") is None:
            raise RprmError('comparing mathematical answers needs the extra: pip install ".[math]"')
        # It finds what this process finds. Hash seed and threads: the same outcome every time. A session of its own:
        # Control-C is not for it, and its child is stopped along with it.
        program = f"import sys; sys.path[:] = {sys.path!r}; from rprm.grading.sandbox import main; main()"
        self._process = subprocess.Popen(
            [sys.executable, "-c", program, *self._limits], bufsize=0, start_new_session=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        self._owner = os.getpid()
        self._finalizer = weakref.finalize(self, _end, self._process, self._owner)
        if self._process.stdout.readline() != b"ready\n":
            self.stop()
            raise RprmError(
                f"the process that compares answers ended at its start (code {self._process.returncode}); run "
                f"{sys.executable} -m rprm.grading.sandbox 5 4000000000 to see why"
            )


def _end(process: subprocess.Popen[bytes], owner: int) -> None:
    """End a keeper and its child; a fork of its owner leaves it alone."""
    if os.getpid() == owner:
        with process, contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)


def main() -> None:
    """The keeper: questions by line in, outcomes out. Arguments: seconds of processor time, bytes of memory."""
    from multiprocessing import get_context
    from multiprocessing.connection import wait

    from rprm.grading import algebra

    limit_s, limit_bytes, child = float(sys.argv[1]), int(sys.argv[2]), None
    replies = os.dup(1)
    os.dup2(2, 1)  # Whatever a library prints is no reply.
    logging.disable(logging.CRITICAL)
    for pair in _WARM_UP:
        algebra.outcome(*pair, {"name": "warm-up"})
    os.write(replies, b"ready\n")
    for question in sys.stdin.buffer:
        if child is None or not child.is_alive():
            pipe, far = get_context("fork").Pipe()
            child = get_context("fork").Process(target=_serve, args=(far, pipe, limit_s, limit_bytes), daemon=True)
            child.start()
            far.close()
        try:
            pipe.send_bytes(question)
            while not (ready := wait([pipe, 0], _LOOK_S if _WATCHES_MEMORY else None)):
                looked = subprocess.run(["ps", "-o", "rss=", "-p", str(child.pid)], capture_output=True).stdout
                if 1024 * int(looked.strip() or 0) > limit_bytes:
                    os.kill(child.pid, signal.SIGUSR1)
            if 0 in ready:
                return  # The process that asks has ended, and the child ends with this one.
            outcome = pipe.recv_bytes()
        except (OSError, EOFError):
            child.join()
            outcome = _ENDED.get(child.exitcode, "crashed").encode()
        os.write(replies, outcome + b"\n")


def _serve(pipe: Any, far: Any, limit_s: float, limit_bytes: int) -> None:
    import resource  # Windows has none, and imports this module too.

    from rprm.grading import algebra

    far.close()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if not _WATCHES_MEMORY:
        resource.setrlimit(resource.RLIMIT_AS, (limit_bytes, limit_bytes))
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    while True:
        question = json.loads(pipe.recv_bytes())  # Its end ends this process.
        signal.setitimer(signal.ITIMER_PROF, limit_s)
        try:
            outcome = algebra.outcome(*question)
        except MemoryError:
            os.kill(os.getpid(), signal.SIGUSR1)  # What is left of it is not to be trusted.
        except RecursionError:
            outcome = "unreadable"
        signal.setitimer(signal.ITIMER_PROF, 0)
        pipe.send_bytes(outcome.encode())


if __name__ == "__main__":
    main()
