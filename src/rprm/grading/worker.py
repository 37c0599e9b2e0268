r"""The program that compares two expressions by computer algebra (math-verify), a process of its own.

It is run as a file and reads one JSON line a request, the fields of `rprm.grading.comparing.Question`. It writes one
JSON line a reply: `{"outcome"}`, one of equal, different, unreadable, timeout, out of memory, crashed.

Two processes stand behind it. The *keeper* (this one) loads math-verify once, never computes, and so always answers.
Its *child*, a fork, does the work under limits that the kernel enforces: processor time (a signal that ends it, also
inside one long multiplication that no Python code could interrupt) and address space; macOS limits no address space,
and there the keeper looks at the child's memory a few times a second. A child that breaks a limit is gone, and the next
fork takes milliseconds. When the process that started the keeper ends, however it ends, the keeper's
input closes: it kills its child and ends too.

No text is ever evaluated as Python. Texts go to math-verify's LaTeX grammar alone, never to its reader of plain
expressions, which calls sympy's `parse_expr`, an `eval`. But the LaTeX grammar gets there too (math-verify 0.9,
latex2sympy2-extended 1.11, sympy 1.14): each token of digits becomes a number through `sympify` and `parse_expr`. So
the one function of sympy that evaluates, `eval_expr`, is replaced before any text is read: what stands in its place
makes an integer or a decimal of a literal and refuses everything else.
"""

from __future__ import annotations

import cmath
import contextlib
import json
import logging
import os
import re
import select
import signal
import subprocess
import sys
import time
from typing import Any

#: Exit code where math-verify is not installed.
NOT_INSTALLED = 3
#: Wall time after which a child is taken for hung, in multiples of its limit of processor time: a busy machine gives it
#: less than a whole processor, and that changes no outcome.
WALL_FACTOR = 20
#: Whether the keeper watches its child's memory, which the kernel does not limit: RLIMIT_AS cannot be set on macOS.
_WATCHES_MEMORY = sys.platform == "darwin"
#: Seconds between two looks at the child: whether the parent is still there, and at its memory where that is watched.
_LOOK_S = 0.2 if _WATCHES_MEMORY else 1.0
#: What the child has read once, so that its successors start with warm caches.
_WARM_UP = [(r"\frac{\sqrt{3}}{2}", r"\sqrt{3}/2"), (r"x^2+2x+1", r"(x+1)^2"), (r"2\pi", r"6.2832"), (r"x<2", r"2>x")]


def main() -> None:
    """Arguments: limit of processor time in seconds, limit of address space in bytes."""
    limit_s, limit_bytes = float(sys.argv[1]), int(sys.argv[2])
    requests, replies = 0, os.dup(1)
    os.dup2(2, 1)  # Whatever a library prints is no reply.
    try:
        _load()
    except ImportError:
        sys.exit(NOT_INSTALLED)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Control-C is for the parent, and its end is ours.
    os.write(replies, b"ready\n")
    _keep(requests, replies, limit_s, limit_bytes)


def _load() -> None:
    import math_verify
    import sympy.parsing.sympy_parser

    sympy.parsing.sympy_parser.eval_expr = _number
    logging.disable(logging.CRITICAL)
    sys.setrecursionlimit(1_000)
    assert math_verify
    for gold, answer in _WARM_UP:
        compare(gold, answer)


def _number(code: str, *_: Any, **__: Any) -> Any:
    """The number that sympy's tokenizer wrote as `Integer (12 )` or `Float ('1.5')`, made without evaluation."""
    from sympy import Float, Integer

    if match := re.fullmatch(r"\s*Integer ?\( ?([0-9]{1,4000}) ?\)\s*", code):
        return Integer(int(match[1]))
    if match := re.fullmatch(r"\s*Float ?\( ?'([0-9]*\.?[0-9]*)' ?\)\s*", code):
        return Float(match[1])
    raise ValueError("text is never evaluated")


def _keep(requests: int, replies: int, limit_s: float, limit_bytes: int) -> None:
    """Pass requests to the child and its replies back, and replace it when it is gone."""
    parent = os.getppid()
    child: _Child | None = None
    pending = b""
    try:
        while True:
            while b"\n" not in pending:
                block = _read(requests, parent)
                if not block:
                    return
                pending += block
            line, _, pending = pending.partition(b"\n")
            if child is None or not child.takes(line):
                child = _Child(requests, replies, limit_s, limit_bytes)
                child.takes(line)
            reply = child.reply(requests, parent)
            if reply is None:
                return
            if not child.is_alive:
                child = None
            os.write(replies, json.dumps({"outcome": reply}).encode() + b"\n")
    finally:
        if child is not None:
            child.kill()


def _read(requests: int, parent: int) -> bytes:
    """What comes next; nothing once the parent is gone (a fork of it may still hold the other end open)."""
    while not select.select([requests], [], [], 1.0)[0]:
        if os.getppid() != parent:
            return b""
    return os.read(requests, 1 << 16)


class _Child:
    """A fork that answers requests until it breaks a limit."""

    def __init__(self, requests: int, replies: int, limit_s: float, limit_bytes: int) -> None:
        to_child, self._to = os.pipe()
        self._from, from_child = os.pipe()
        self.is_alive = True
        self._limit_s = limit_s
        self._limit_bytes = limit_bytes
        self._pid = os.fork()
        if self._pid == 0:
            try:
                for unused in (self._to, self._from, requests, replies):
                    os.close(unused)
                _serve(to_child, from_child, limit_s, limit_bytes)
            finally:
                os._exit(1)
        os.close(to_child)
        os.close(from_child)

    def takes(self, line: bytes) -> bool:
        """Send it a request; False where it has gone since the last one."""
        try:
            os.write(self._to, line + b"\n")
        except BrokenPipeError:
            self._ended()
            return False
        return True

    def reply(self, requests: int, parent: int) -> str | None:
        """The outcome, None where the parent has gone meanwhile."""
        begin = time.monotonic()
        while True:
            if select.select([self._from], [], [], _LOOK_S)[0]:
                reply = os.read(self._from, 1 << 10).decode().strip()
                if not reply:
                    return self._ended()
                if reply == "out of memory":
                    self.kill()  # What it holds in memory is not to be trusted.
                return reply
            if os.getppid() != parent or (select.select([requests], [], [], 0)[0] and not _has_more(requests)):
                return None
            if _WATCHES_MEMORY and _resident_bytes(self._pid) > self._limit_bytes:
                self.kill()
                return "out of memory"
            if time.monotonic() - begin > WALL_FACTOR * self._limit_s:
                self.kill()
                return "timeout"

    def _ended(self) -> str:
        _, status = os.waitpid(self._pid, 0)
        self._close()
        return "timeout" if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGPROF else "crashed"

    def kill(self) -> None:
        """End it at once."""
        if self.is_alive:
            os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)
            self._close()

    def _close(self) -> None:
        self.is_alive = False
        os.close(self._to)
        os.close(self._from)


def _resident_bytes(pid: int) -> int:
    """Memory of a process; 0 once it is gone. `ps` of any POSIX system tells it, in KiB."""
    told = subprocess.run(["ps", "-o", "rss=", "-p", str(pid)], capture_output=True, text=True).stdout
    return 1024 * int(told.strip() or 0)


def _has_more(requests: int) -> bool:
    """Whether a readable input has anything but its end. Requests come one at a time, so that only an end is there."""
    with contextlib.suppress(OSError):
        return bool(os.read(requests, 1))
    return False


def _serve(requests: int, replies: int, limit_s: float, limit_bytes: int) -> None:
    import resource  # Windows has none, and imports this module too.

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if not _WATCHES_MEMORY:
        resource.setrlimit(resource.RLIMIT_AS, (limit_bytes, limit_bytes))
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    for line in os.fdopen(requests, "rb", buffering=0):
        signal.setitimer(signal.ITIMER_PROF, limit_s)
        try:
            request: dict[str, Any] = json.loads(line)
            outcome = compare(**request)
            if outcome == "different" and _MAY_GROW.search(request["gold"] + request["answer"]):
                outcome = _unless_swallowed(request)
        except MemoryError:
            outcome = "out of memory"
        except RecursionError:
            outcome = "unreadable"
        signal.setitimer(signal.ITIMER_PROF, 0)
        os.write(replies, outcome.encode() + b"\n")


#: What can make a number or an expression too large for the memory or the stack.
_MAY_GROW = re.compile(r"\^|!|\\(?:prod|sum|int|binom)|[({\[]{9}")


def _unless_swallowed(request: dict[str, Any]) -> str:
    """Compare again, watching for what math-verify and sympy take for a plain failure on their way to "different"."""
    seen: set[str] = set()

    def trace(frame: Any, event: str, argument: Any) -> Any:
        frame.f_trace_lines = False
        if event == "exception":
            if issubclass(argument[0], MemoryError):
                seen.add("out of memory")
            elif issubclass(argument[0], RecursionError):
                seen.add("unreadable")
        return trace

    sys.settrace(trace)
    try:
        outcome = compare(**request)
    finally:
        sys.settrace(None)
    return min(seen, default=outcome)


def compare(
    gold: str,
    answer: str,
    tolerance: float | None = None,
    absolute_tolerance: float | None = None,
    exact_integers: bool = True,
) -> str:
    """Whether two LaTeX expressions are equal: `equal`, `different` or `unreadable` (not both can be read)."""
    from math_verify import verify

    expressions = [_parsed(text) for text in (gold, answer)]
    if None in expressions:
        expressions = [_parsed(text) for text in _with_plain_names(gold, answer)]
        if None in expressions:
            return "unreadable"
    values = [_value(expression) for expression in expressions]
    if values[0] is not None and values[1] is not None and not (tolerance is None and absolute_tolerance is None):
        # Numbers are compared here: math-verify rounds decimals to six places, which makes all small numbers equal.
        allowed = absolute_tolerance
        if allowed is None:
            whole = exact_integers and any(getattr(expression, "is_integer", False) for expression in expressions)
            allowed = (1e-12 if whole or tolerance is None else tolerance) * abs(values[0])
        return "equal" if abs(values[0] - values[1]) <= allowed else "different"
    same = verify(*expressions, allow_set_relation_comp=True, timeout_seconds=None, raise_on_error=False)
    return "equal" if same or _agree_at_points(*expressions) else "different"


#: Where expressions are tried out: values for their variables in the order of their names, going round.
_POINTS = ("7/5", "-3/7", "13/11", "29/8", "-17/6", "2/9", "41/10")
_NUM_POINTS = 5


def _agree_at_points(gold: Any, answer: Any) -> bool:
    """Whether two expressions of the same variables have the same values wherever both have one, at several points.

    Simplification finds many equal expressions different: 2^(k-n) and 2^k/2^n.
    """
    from sympy import Expr, Rational

    if not (isinstance(gold, Expr) and isinstance(answer, Expr)):
        return False
    symbols = sorted(gold.free_symbols, key=str)
    if not symbols or gold.free_symbols != answer.free_symbols:
        return False
    num_agreed = 0
    for start in range(_NUM_POINTS):
        point = {symbol: Rational(_POINTS[(start + 2 * k) % len(_POINTS)]) for k, symbol in enumerate(symbols)}
        values = [_value(expression.subs(point)) for expression in (gold, answer)]
        if values[0] is None or values[1] is None:
            continue
        if not abs(values[0] - values[1]) <= 1e-9 * max(abs(values[0]), abs(values[1]), 1e-3):
            return False
        num_agreed += 1
    return num_agreed >= 3


_SUBSCRIPTED = re.compile(
    r"(?:\\hbar(?![a-zA-Z])|(?:\\(?!log|ln|sum|prod|int|lim|min|max|sup|inf|big)[a-zA-Z]+|[a-zA-Z])"
    r"_(?:\{(?:[^{}]|\{[^{}]*\})*\}|\\[a-zA-Z]+|\w))"
)


def _with_plain_names(gold: str, answer: str) -> list[str]:
    """Both texts with single letters for names such as `E_{1}` and `M_{\\odot}`, which the grammar cannot read."""
    names = sorted({_without_braces(name) for name in _SUBSCRIPTED.findall(gold + " " + answer)})
    free = [letter for letter in "abcfghjklmnopqrstuvwxyz" if letter not in (gold + answer).lower()]
    if not names or len(names) > len(free):
        return [gold, answer]
    letters = dict(zip(names, free, strict=False))
    return [_SUBSCRIPTED.sub(lambda name: f" {letters[_without_braces(name[0])]} ", text) for text in (gold, answer)]


def _without_braces(name: str) -> str:
    return re.sub(r"[\s{}]", "", name)


def _parsed(text: str) -> Any:
    from latex2sympy2_extended import NormalizationConfig
    from math_verify import LatexExtractionConfig, parse

    # Units are gone already, and math-verify's own search for them takes the t of \sin t for a ton.
    normalization = NormalizationConfig(
        basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="none", equations=False
    )
    found = parse(
        f"${text}$",
        extraction_config=[LatexExtractionConfig(boxed_match_priority=-1, normalization_config=normalization)],
        fallback_mode="no_fallback",
        parsing_timeout=None,
    )
    return found[0] if found else None


def _value(expression: Any) -> complex | None:
    """The value of an expression without variables, None of any other."""
    from sympy import Expr

    if not isinstance(expression, Expr) or expression.free_symbols:
        return None
    try:
        value = complex(expression.evalf(20))
    except (TypeError, ValueError, OverflowError, ArithmeticError, AttributeError):
        return None
    return value if cmath.isfinite(value) else None


if __name__ == "__main__":
    main()
