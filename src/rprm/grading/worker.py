r"""The program that compares two answers by computer algebra (math-verify), a process of its own.

It reads one JSON line a request, `[gold, answer or null, rule]`, and writes the outcome as a line.

Two processes stand behind it. The *keeper* loads math-verify once and never computes. Its *child*, a fork, reads the
requests and answers them under limits that the kernel enforces: processor time (a signal that ends it, also inside one
long multiplication that no Python code could interrupt) and address space; macOS limits no address space, and there the
keeper looks at the child's memory a few times a second. When a child is gone the keeper answers in its place, and the
next fork takes milliseconds. When the process that started the keeper ends, however it ends, the keeper's input is hung
up: it kills its child and ends too.

No text is ever evaluated as Python. Texts go to math-verify's LaTeX grammar alone, never to its reader of plain
expressions, which calls sympy's `parse_expr`, an `eval`; and the one function of sympy that evaluates is replaced.
"""

from __future__ import annotations

import json
import logging
import mmap
import os
import re
import select
import signal
import subprocess
import sys
from fractions import Fraction
from typing import Any

#: Exit code where math-verify is not installed.
NOT_INSTALLED = 3
#: Exit code of a child that answered and is to be replaced.
_RENEWED = 4
#: Wall time after which a child is taken for hung, in multiples of its limit of processor time: a busy machine gives it
#: less than a whole processor, and that changes no outcome.
WALL_FACTOR = 20
#: Whether the keeper watches its child's memory, which the kernel does not limit: RLIMIT_AS cannot be set on macOS.
_WATCHES_MEMORY = sys.platform == "darwin"
#: Seconds between two looks at the child: whether the parent is still there, and at its memory where that is watched.
_LOOK_S = 0.2 if _WATCHES_MEMORY else 1.0
#: What the keeper has compared once, so that its children start with warm caches.
_WARM_UP = [(r"\frac{\sqrt{3}}{2}", r"\sqrt{3}/2"), ("x^2+2x+1", "(x+1)^2"), (r"2\pi", "6.2832"), ("y=2x", "2y=4x")]


def main() -> None:
    """Arguments: limit of processor time in seconds, limit of memory in bytes."""
    limit_s, limit_bytes = float(sys.argv[1]), int(sys.argv[2])
    replies = os.dup(1)
    os.dup2(2, 1)  # Whatever a library prints is no reply.
    logging.disable(logging.CRITICAL)
    try:
        from rprm.grading import algebra
    except ImportError:
        sys.exit(NOT_INSTALLED)
    algebra.refuse_evaluation()
    from rprm.grading.rules import MATHEMATICS

    for gold, answer in _WARM_UP:
        _compare(gold, answer, MATHEMATICS)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Control-C is for the parent, and its end is ours.
    os.write(replies, b"ready\n")
    _keep(replies, limit_s, limit_bytes)


def _keep(replies: int, limit_s: float, limit_bytes: int) -> None:
    """Have a child answer the requests; answer for one that broke a limit, and replace it."""
    parent, is_busy = os.getppid(), mmap.mmap(-1, 1)
    while True:
        alive, held_by_child = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                os.close(alive)
                _serve(replies, is_busy, limit_s, limit_bytes)
                os._exit(0)
            finally:
                os._exit(1)
        os.close(held_by_child)
        outcome = ""
        watched = select.poll()
        watched.register(0, 0)  # Hung up when the parent is gone.
        watched.register(alive, select.POLLIN)  # At its end when the child is gone.
        while not (ended := os.waitpid(child, os.WNOHANG))[0]:
            if not outcome and _WATCHES_MEMORY and is_busy[0] and _resident_bytes(child) > limit_bytes:
                outcome = "out of memory"
                os.kill(child, signal.SIGKILL)
            events = dict(watched.poll(1000 * _LOOK_S))
            # A child that waits for a request sees the end of the input itself.
            if os.getppid() != parent or (events.get(0, 0) & select.POLLHUP and is_busy[0] and alive not in events):
                os.kill(child, signal.SIGKILL)
                os._exit(0)
        os.close(alive)
        if os.WIFEXITED(ended[1]) and os.WEXITSTATUS(ended[1]) != _RENEWED and not is_busy[0]:
            return  # The input has ended, or no child can be set up.
        if is_busy[0]:
            by = os.WTERMSIG(ended[1]) if os.WIFSIGNALED(ended[1]) else 0
            outcome = outcome or ("timeout" if by in (signal.SIGPROF, signal.SIGALRM) else "crashed")
            is_busy[0] = 0
            os.write(replies, outcome.encode() + b"\n")


def _resident_bytes(pid: int) -> int:
    """Memory of a process; 0 once it is gone. `ps` of any POSIX system tells it, in KiB."""
    told = subprocess.run(["ps", "-o", "rss=", "-p", str(pid)], capture_output=True, text=True).stdout
    return 1024 * int(told.strip() or 0)


def _serve(replies: int, is_busy: mmap.mmap, limit_s: float, limit_bytes: int) -> None:
    import resource  # Windows has none, and imports this module too.

    from rprm.grading.rules import AnswerRule

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if not _WATCHES_MEMORY:
        resource.setrlimit(resource.RLIMIT_AS, (limit_bytes, limit_bytes))
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    line = b""
    while block := os.read(0, 1 << 16):
        line += block  # One request at a time: a line ends where the input does for now.
        if not line.endswith(b"\n"):
            continue
        is_busy[0] = 1
        signal.setitimer(signal.ITIMER_PROF, limit_s)
        signal.setitimer(signal.ITIMER_REAL, limit_s * WALL_FACTOR)
        try:
            gold, answer, fields = json.loads(line)
            line = b""
            rule = AnswerRule(**{name: _field(value) for name, value in fields.items()})
            outcome = _compare(gold, answer, rule)
        except MemoryError:
            outcome = "out of memory"
        except RecursionError:
            outcome = "unreadable"
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        is_busy[0] = 0
        os.write(replies, outcome.encode() + b"\n")
        if outcome == "out of memory":
            os._exit(_RENEWED)  # What it holds in memory is not to be trusted.


def _field(value: Any) -> Any:
    """A field of a rule from JSON: fractions are strings of two numbers, tuples lists."""
    if isinstance(value, str) and re.fullmatch(r"-?\d+/\d+", value):
        return Fraction(value)
    return tuple(value) if isinstance(value, list) else value


def _compare(gold: str, answer: str | None, rule: Any) -> str:
    from rprm.grading import algebra
    from rprm.grading.comparing import compare, compare_with_itself
    from rprm.grading.reading import read

    if answer is None:
        return compare_with_itself(read(gold, rule), algebra.same)
    return compare(read(gold, rule), read(answer, rule), rule, algebra.same)


if __name__ == "__main__":
    main()
