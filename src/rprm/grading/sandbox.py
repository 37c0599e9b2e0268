r"""The program that compares answers by computer algebra: requests `[gold, answer or null, rule]` and outcomes by line.

The *keeper* loads math-verify once and never computes. Its *child*, a fork, answers under limits of processor time and
address space that the kernel enforces, also inside one long multiplication that no Python code could interrupt. When
it is gone, the keeper answers in its place and forks another. Both end with the process that started the keeper.
"""

from __future__ import annotations

import json
import logging
import mmap
import os
import signal
import subprocess
import sys
import time
from fractions import Fraction
from typing import Any

#: Exit codes: of a keeper without math-verify, and of a child out of memory, whose state is not to be trusted.
NOT_INSTALLED, _OUT_OF_MEMORY = 3, 4
#: RLIMIT_AS cannot be set on macOS: there the keeper looks at its child's memory.
_WATCHES_MEMORY = sys.platform == "darwin"
#: Seconds between two looks at the child and the parent.
_LOOK_S = 0.2 if _WATCHES_MEMORY else 0.02
#: What the keeper has compared once, so that its children start with warm caches.
_WARM_UP = [(r"\frac{\sqrt{3}}{2}", r"\sqrt{3}/2"), ("x^2+2x+1", "(x+1)^2"), (r"2\pi", "6.2832"), ("y=2x", "2y=4x")]


def main() -> None:
    """Arguments: limit of processor time in seconds, limit of memory in bytes."""
    limit_s, limit_bytes, parent = float(sys.argv[1]), int(sys.argv[2]), os.getppid()
    replies, is_busy = os.dup(1), mmap.mmap(-1, 1)
    os.dup2(2, 1)  # Whatever a library prints is no reply.
    logging.disable(logging.CRITICAL)
    try:
        from rprm.grading import algebra
    except ImportError:
        sys.exit(NOT_INSTALLED)
    algebra.refuse_evaluation()
    for gold, answer in _WARM_UP:
        _outcome(gold, answer, {"name": "warm-up"})
    os.write(replies, b"ready\n")
    while True:
        child = os.fork()
        if child == 0:
            try:
                _serve(replies, is_busy, limit_s, limit_bytes)
                os._exit(0)
            finally:
                os._exit(1)
        while not (ended := os.waitpid(child, os.WNOHANG))[0]:
            if os.getppid() != parent:
                os.kill(child, signal.SIGKILL)
                os._exit(0)
            if _WATCHES_MEMORY and is_busy[0] and _resident_bytes(child) > limit_bytes:
                os.kill(child, signal.SIGUSR1)
            time.sleep(_LOOK_S)
        code = os.waitstatus_to_exitcode(ended[1])
        if is_busy[0]:
            is_busy[0] = 0
            no_memory = (_OUT_OF_MEMORY, -signal.SIGUSR1)
            outcome = "timeout" if code == -signal.SIGPROF else "out of memory" if code in no_memory else "crashed"
            os.write(replies, f"{outcome}\n".encode())
        elif code >= 0:
            return  # The input has ended, or no child can be set up.


def _resident_bytes(pid: int) -> int:
    """Memory of a process; 0 once it is gone. `ps` of any POSIX system tells it, in KiB."""
    told = subprocess.run(["ps", "-o", "rss=", "-p", str(pid)], capture_output=True, text=True).stdout
    return 1024 * int(told.strip() or 0)


def _serve(replies: int, is_busy: mmap.mmap, limit_s: float, limit_bytes: int) -> None:
    import resource  # Windows has none, and imports this module too.

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if not _WATCHES_MEMORY:
        resource.setrlimit(resource.RLIMIT_AS, (limit_bytes, limit_bytes))
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    with os.fdopen(0, closefd=False) as requests:
        while line := requests.readline():
            is_busy[0] = 1
            signal.setitimer(signal.ITIMER_PROF, limit_s)
            try:
                outcome = _outcome(*json.loads(line))
            except MemoryError:
                os._exit(_OUT_OF_MEMORY)
            except RecursionError:
                outcome = "unreadable"
            signal.setitimer(signal.ITIMER_PROF, 0)
            is_busy[0] = 0
            os.write(replies, f"{outcome}\n".encode())


def _outcome(gold: str, answer: str | None, fields: dict[str, Any]) -> str:
    from rprm.grading import algebra, comparing
    from rprm.grading.parsing import read
    from rprm.grading.rules import AnswerRule

    tolerances = {name: Fraction(value) for name, value in fields.items() if value and name.endswith("tolerance")}
    rule = AnswerRule(**(fields | {"markers": ()} | tolerances))
    form = read(gold, rule)
    if answer is None:
        return comparing.compare_with_itself(form, algebra.same)
    return comparing.compare(form, read(answer, rule), rule, algebra.same)


if __name__ == "__main__":
    main()
