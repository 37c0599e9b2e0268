"""Worker processes for computer algebra: few, started when first needed, replaced when they fail, never left behind."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import select
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from rprm.errors import RprmError
from rprm.grading import worker as worker_program
from rprm.grading.comparing import Outcome, Question

#: How long a keeper, which computes nothing, may be silent beyond its child's limits before it is taken for dead.
_GRACE_S = 60.0


class Workers:
    """A pool of worker processes that any thread may ask.

    Args:
        num_workers: the most processes that compute at once.
        limit_s: processor time of one comparison, in seconds.
        limit_bytes: address space of one process.
    """

    def __init__(self, num_workers: int, limit_s: float, limit_bytes: int) -> None:
        self.num_workers = num_workers
        self._limit_s = limit_s
        self._limit_bytes = limit_bytes
        self._lock = threading.Lock()
        self._owner = os.getpid()
        self._renew()

    def _renew(self) -> None:
        self._idle: queue.LifoQueue[_Worker | None] = queue.LifoQueue()
        for _ in range(self.num_workers):
            self._idle.put(None)
        self._started: list[_Worker] = []
        self._finalizer = weakref.finalize(self, _stop_all, self._started, os.getpid())

    @contextlib.contextmanager
    def borrowed(self) -> Iterator[_Worker]:
        """One worker, waited for where all are busy.

        Raises:
            RprmError: math-verify is not installed, this is Windows, or no worker can be started.
        """
        with self._lock:
            if os.getpid() != self._owner:
                # A fork of the process that began: its workers answer that one.
                self._owner = os.getpid()
                self._renew()
        idle = self._idle
        worker = idle.get()
        try:
            if worker is None or not worker.is_alive:
                worker = _Worker(self._limit_s, self._limit_bytes)
                with self._lock:
                    self._started[:] = [other for other in self._started if other.is_alive]
                    self._started.append(worker)
            yield worker
        finally:
            idle.put(worker)

    def close(self) -> None:
        """End every worker. The pool can be used again: new ones start."""
        self._finalizer()
        with self._lock:
            self._renew()


def _stop_all(workers: list[_Worker], owner: int) -> None:
    if os.getpid() == owner:
        for worker in workers:
            worker.stop()


class _Worker:
    """One keeper process; see `rprm.grading.worker`."""

    def __init__(self, limit_s: float, limit_bytes: int) -> None:
        if sys.platform == "win32":
            raise RprmError("comparing mathematical answers needs Linux or macOS; on Windows, run this command in WSL")
        self._silence_s = limit_s * worker_program.WALL_FACTOR + _GRACE_S
        self.is_alive = True
        # Not -I: math-verify may be installed for the user alone. Hash seed and threads: the same outcome every time.
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(Path(worker_program.__file__)), repr(limit_s), str(limit_bytes)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1"},
        )
        if self._read_line() != b"ready\n":
            self.stop()
            if self._process.returncode == worker_program.NOT_INSTALLED:
                raise RprmError('comparing mathematical answers needs the extra: pip install ".[math]"')
            raise RprmError(
                f"the process that compares answers ended at its start (code {self._process.returncode}); run "
                f"{sys.executable} {worker_program.__file__} 5 4000000000 to see why"
            )

    def ask(self, question: Question) -> Outcome:
        """What computer algebra says."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(asdict(question)).encode() + b"\n")
            self._process.stdin.flush()
            outcome: Outcome = json.loads(self._read_line())["outcome"]
        except (OSError, ValueError):
            # The keeper itself is gone (killed from outside): this question has no outcome, the next a new keeper.
            self.stop()
            return "crashed"
        except BaseException:
            # Interrupted: its reply would be taken for that of the next question.
            self.stop()
            raise
        return outcome

    def _read_line(self) -> bytes:
        assert self._process.stdout is not None
        silent = select.poll()  # Not select.select: that knows no descriptor above 1023.
        silent.register(self._process.stdout, select.POLLIN)
        return self._process.stdout.readline() if silent.poll(1000 * self._silence_s) else b""

    def stop(self) -> None:
        """End the process; its child, where it has one, ends with it."""
        self.is_alive = False
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        try:
            self._process.wait(timeout=5.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
