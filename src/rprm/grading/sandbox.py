r"""The program that compares answers by computer algebra: math-verify's grammar and sympy, under limits.

A *keeper* loads math-verify once and never computes. Its *child*, a fork, answers under limits that the kernel
enforces, also inside one long multiplication that no Python code could interrupt. When it is gone, the keeper answers
in its place and forks another. No text is ever evaluated as Python.
"""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import subprocess
import sys
from functools import lru_cache
from itertools import count
from multiprocessing import get_context
from multiprocessing.connection import wait
from typing import Any

import sympy
from latex2sympy2_extended.latex2sympy2 import ConversionConfig, _Latex2Sympy
from math_verify import verify
from sympy.core.relational import Relational
from sympy.parsing import sympy_parser

from rprm.grading.forms import Form, P, rewritten
from rprm.grading.grader import AnswerComparison, Outcome
from rprm.grading.rules import AnswerRule

#: RLIMIT_AS cannot be set on macOS: there the keeper looks at its child's memory, every so many seconds.
_WATCHES_MEMORY, _LOOK_S = sys.platform == "darwin", 0.2
#: What the keeper has compared once, so that its children start with warm caches.
_WARM_UP = [(r"\frac{\sqrt{3}}{2}", r"\sqrt{3}/2"), ("x^2+2x+1", "(x+1)^2"), (r"2\pi", "6.2832"), ("y=2x", "2y=4x")]
_NAMED_SETS = {"ℝ": sympy.S.Reals, "ℤ": sympy.S.Integers, "ℕ": sympy.S.Naturals, "∅": sympy.S.EmptySet}
#: Where expressions are tried out: values for their variables in the order of their names, going round.
_POINTS = ("7/5", "-3/7", "13/11", "29/8", "-17/6", "2/9", "41/10")
_WHOLE = ("2", "5", "3", "8", "4", "7", "6")
_UNDONE = (sympy.Sum, sympy.Product, sympy.Integral, sympy.Limit, sympy.Derivative)


class _LatexReader(_Latex2Sympy):  # type: ignore[misc]
    def parse_number(self, text: str) -> Any:
        return sympy.Rational(text.replace(",", ""))


sys.setrecursionlimit(1_000)
del sympy_parser.eval_expr  # The one function that evaluates text: `sympify` of a string, which got there, now fails.


def main() -> None:
    """The keeper: questions by line in, outcomes out. Arguments: seconds of processor time, bytes of memory."""
    limit_s, limit_bytes, replies = float(sys.argv[1]), int(sys.argv[2]), os.dup(1)
    child: Any = None
    os.dup2(2, 1)  # Whatever a library prints is no reply.
    logging.disable(logging.CRITICAL)
    for pair in _WARM_UP:
        _outcome(*pair, {"name": "mathematics"})
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
            outcome = {-signal.SIGPROF: b"timeout", -signal.SIGUSR1: b"out of memory"}.get(child.exitcode, b"crashed")
        os.write(replies, outcome + b"\n")


def _serve(pipe: Any, far: Any, limit_s: float, limit_bytes: int) -> None:
    import resource  # Windows has none, and imports this module too.

    far.close()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if not _WATCHES_MEMORY:
        resource.setrlimit(resource.RLIMIT_AS, (limit_bytes, limit_bytes))
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    while True:
        question = json.loads(pipe.recv_bytes())  # Its end ends this process.
        signal.setitimer(signal.ITIMER_PROF, limit_s)
        outcome = _outcome(*question)
        signal.setitimer(signal.ITIMER_PROF, 0)
        pipe.send_bytes(outcome.encode())


def _outcome(gold: str, answer: str | None, fields: dict[str, Any]) -> Outcome:
    """Compare two answers by the rule of these fields; of a gold answer alone say whether it is recognised."""
    return AnswerComparison(AnswerRule(**fields), _same).of_texts(gold, answer)


@lru_cache(maxsize=2_000)
def _expression(text: str) -> Any:
    """What a text in normal form says; decimals are exact rationals, names keep their capitals (else an error)."""
    if re.search(r"\d \d|\d'|[\d)]_|[@#&…]|\\\\", text):
        raise ValueError(text)
    differentials = {*re.findall(r"d ?([a-z])(?![a-z])", text), "d"} if r"\int" in text else set()
    imaginary = {r"\imath", "i"} if not re.search(r"\\(?:sum|prod)_\{i=", text) else {r"\imath"}

    def name(match: re.Match[str]) -> str:
        word = match[0]
        if word == "e" or P.command.fullmatch(word) or word in differentials:
            return word + (" " if word[0] == "\\" else "")
        letters = "".join(character if character.isalnum() else str(ord(character)) for character in word)
        return "(I)" if word in imaginary else rf"\variable{{{letters}}} "

    latex = rewritten("latex", P.symbol.sub(name, text))
    return _LatexReader(config=ConversionConfig(lowercase_symbols=False)).parse(latex)


def _same(gold: Form, answer: Form, *tolerances: float) -> Outcome:
    """Compare two values, two relations (their `whole`), or two sets of which one is a union or difference."""
    try:
        if gold.items or answer.items:
            return "equal" if _set(gold) == _set(answer) else "different"
        is_whole = gold.kind == answer.kind == "relation"
        one, other = (_expression(form.whole if is_whole else form.text) for form in (gold, answer))
        is_same = one == other or (_same_relation(one, other) if is_whole else _same_value(one, other, *tolerances))
        is_same = verify(one, other, timeout_seconds=None) if is_same is None else is_same
        return "equal" if is_same else "different"
    except MemoryError:
        os.kill(os.getpid(), signal.SIGUSR1)  # What is left of this process is not to be trusted.
        raise
    except Exception:  # Not in the grammar, or beyond sympy.
        return "unreadable"


def _set(form: Form) -> Any:
    parts = [_set(item) for item in form.items]
    if form.kind == "list":
        return sympy.FiniteSet(*parts)
    if form.kind == "tuple":
        is_open = [bracket in "()" for bracket in form.brackets]
        return sympy.Interval(*parts, *is_open) if len(parts) == 2 else sympy.Tuple(*parts)
    sets = [part if isinstance(part, sympy.Set) else sympy.FiniteSet(part) for part in parts]
    if form.kind == "intersection":
        both = sympy.Intersection(*sets)
        # "x < 2 and x > 5" is a loose way to say "or".
        return sympy.Union(*sets) if both is sympy.S.EmptySet and "∩" not in form.text else both
    if form.kind in ("union", "difference"):
        return sympy.Union(*sets) if form.kind == "union" else sympy.Complement(sets[0], sympy.Union(*sets[1:]))
    if form.kind != "value":
        raise ValueError(form.text)
    return _NAMED_SETS[form.text] if form.text in _NAMED_SETS else _expression(form.text).doit()


def _points(symbols: list[Any], values: tuple[str, ...] = _POINTS) -> list[dict[Any, Any]]:
    """Points to try; of more variables than values no two have the same one."""
    places = [dict(zip(symbols, count(start, 2), strict=False)) for start in range(6 if symbols else 1)]
    return [{name: sympy.Rational(values[at % 7]) + 6 * (at // 14) for name, at in point.items()} for point in places]


def _numeric(value: Any, point: dict[Any, Any]) -> Any:
    """A finite number of 30 digits, or None."""
    try:
        value = value.subs(point) if point else value
        limits = (end for part in value.atoms(sympy.Sum, sympy.Product) for _, *ends in part.limits for end in ends)
        if any(end.is_Rational and not end.is_Integer for end in limits):
            return None
        value = value.doit() if value.has(*_UNDONE) else value
        value = value if value.is_Rational else value.evalf(30, maxn=300)
        return value if value.is_number and value.is_finite and value.as_real_imag()[1].is_number else None
    except (TypeError, ValueError, ArithmeticError, AttributeError):
        return None


def _same_value(gold: Any, answer: Any, tolerance: float = 0.0, absolute: float = 0.0) -> bool | None:
    """Whether two numbers are the same, or two expressions at three points of six; None where there are no such."""
    if not (isinstance(gold, sympy.Expr) and isinstance(answer, sympy.Expr)):
        return None
    symbols = sorted(gold.free_symbols | answer.free_symbols, key=str)
    gold, answer = (one if symbols and not one.has(*_UNDONE) else one.doit() for one in (gold, answer))
    is_complex = not symbols or gold.has(sympy.I) or answer.has(sympy.I)
    for values in (_POINTS, _WHOLE):
        num_agreed = 0
        for point in _points(symbols, values):
            numbers = [_numeric(one, point) for one in (gold, answer, gold - answer)]
            if None in numbers or not (is_complex or all(number.is_real for number in numbers[:2])):
                continue
            difference, size = abs(numbers[2]), max(map(abs, numbers[:2]))
            allowed = tolerance * size if symbols else min(tolerance * size, absolute) if tolerance else absolute
            # No difference: exactly, or where 150 digits cannot tell it from none.
            is_zero = difference == 0 or (not numbers[2].is_Rational and difference <= sympy.Float("1e-150", 30) * size)
            if not is_zero and not difference <= allowed:
                return False
            num_agreed += 1
        if num_agreed >= (3 if symbols else 1):
            return True
    return None if symbols else False


def _same_relation(gold: Any, answer: Any) -> bool | None:
    """Whether one is a constant multiple of the other (of inequalities a positive one); None where none can be told."""
    if not all(isinstance(one, Relational) for one in (gold, answer)):
        return None
    both = [one.reversed if isinstance(one, (sympy.Gt, sympy.Ge)) else one for one in (gold, answer)]
    kind, other_kind = map(type, both)
    left, right = (one.lhs - one.rhs for one in both)
    if kind is sympy.Eq:
        left, right = (sympy.fraction(sympy.together(side))[0] for side in (left, right))
    symbols = sorted(left.free_symbols, key=str)
    if kind is not other_kind or not symbols or left.free_symbols != right.free_symbols:
        return False
    for point in reversed(_points(symbols)):
        one, other = _numeric(left, point), _numeric(right, point)
        if one and other:
            is_turned = kind not in (sympy.Eq, sympy.Ne) and one / other < 0
            left, right = left * right.subs(point), right * left.subs(point)
            return not is_turned and (left == right or _same_value(left, right))
    return None


if __name__ == "__main__":
    main()
