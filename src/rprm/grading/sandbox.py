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
import time
from functools import lru_cache
from itertools import count, product
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
#: Where expressions are tried out: numbers for their variables in the order of their names, going round.
_POINTS = ("7/5", "-3/7", "13/11", "29/8", "-17/6", "2/9", "41/10")
_WHOLE = ("2", "5", "3", "8", "4", "7", "6")
#: Digits that are worked out before two values are taken for the same: of numbers, and of expressions at a point.
_DIGITS, _DIGITS_AT_A_POINT = 1_000, 300
_UNDONE = (sympy.Sum, sympy.Product, sympy.Integral, sympy.Limit, sympy.Derivative)


class _LatexReader(_Latex2Sympy):  # type: ignore[misc]
    def parse_number(self, text: str) -> Any:
        return sympy.Rational(text.replace(",", ""))


sys.setrecursionlimit(1_000)
del sympy_parser.eval_expr  # The one function that evaluates text: `sympify` of a string, which got there, now fails.


def main() -> None:
    """The keeper: questions by line in, outcomes and their seconds out. Argument: bytes of memory."""
    limit_bytes, replies = int(sys.argv[1]), os.dup(1)
    child: Any = None
    os.dup2(2, 1)  # Whatever a library prints is no reply.
    logging.disable(logging.CRITICAL)
    for pair in _WARM_UP:
        _outcome(*pair, {"name": "mathematics"})
    os.write(replies, b"ready\n")
    for question in sys.stdin.buffer:
        if child is None or not child.is_alive():
            pipe, far = get_context("fork").Pipe()
            child = get_context("fork").Process(target=_serve, args=(far, pipe, limit_bytes), daemon=True)
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


def _serve(pipe: Any, far: Any, limit_bytes: int) -> None:
    import resource  # Windows has none, and imports this module too.

    far.close()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if not _WATCHES_MEMORY:
        resource.setrlimit(resource.RLIMIT_AS, (limit_bytes, limit_bytes))
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    while True:
        limit_s, *question = json.loads(pipe.recv_bytes())  # Its end ends this process.
        begin = time.process_time()
        signal.setitimer(signal.ITIMER_PROF, limit_s)
        outcome = _outcome(*question)
        signal.setitimer(signal.ITIMER_PROF, 0)
        pipe.send_bytes(f"{outcome}\t{time.process_time() - begin}".encode())


def _outcome(gold: str, answer: str | None, fields: dict[str, Any]) -> Outcome:
    """Compare two answers by the rule of these fields; of a gold answer alone say whether it is recognised."""
    return AnswerComparison(AnswerRule(**fields), _same).of_texts(gold, answer)


@lru_cache(maxsize=2_000)
def _expression(text: str) -> Any:
    """What a text in normal form says; decimals are exact rationals, names keep their capitals (else an error)."""
    if re.search(r"\d \d|\d'|[\d)]_|[@#…]" + r"|&|\\\\" * ("⟦" not in text), text):
        raise ValueError(text)
    differentials = {*re.findall(r"d ?([a-z])(?![a-z])", text), "d"} if r"\int" in text else set()
    imaginary = {r"\imath", "i"} if not re.search(r"\\(?:sum|prod)_\{i=", text) else {r"\imath"}

    def name(match: re.Match[str]) -> str:
        word = match[0]
        if word == "e" or P.command.fullmatch(word) or word in differentials:
            return word + (" " if word[0] == "\\" else "")
        letters = "".join(character if character.isalnum() else str(ord(character)) for character in word)
        return "(I)" if word in imaginary else rf"\variable{{{letters}}} "

    latex = rewritten("latex", P.symbol.sub(name, text.replace("\\\\", "\\\\ ")))
    value = _LatexReader(config=ConversionConfig(lowercase_symbols=False)).parse(latex)
    value = value.as_explicit() if isinstance(value, sympy.MatrixExpr) else value
    return value.doit() if isinstance(value, sympy.Set) else value


def _same(gold: Form, answer: Form, *tolerances: float) -> Outcome:
    """Compare two values, two sets or two relations (their `whole`); of one and itself say whether it can be read."""
    is_read = False
    try:
        is_whole = gold.kind == answer.kind == "relation"
        one, other = (_expression(form.whole if is_whole else form.text) for form in (gold, answer))
        if one == other and gold is not answer:
            return "equal"
        is_read = gold is answer  # It is worked out all the same: a group asks what that takes.
        is_same = _same_relation(one, other) if is_whole else _same_value(one, other, *tolerances)
        is_same = verify(one, other, timeout_seconds=None) if is_same is None else is_same
        return "equal" if is_same or is_read else "different"
    except MemoryError:
        os.kill(os.getpid(), signal.SIGUSR1)  # What is left of this process is not to be trusted.
        raise
    except Exception:  # Not in the grammar, or beyond sympy.
        return "equal" if is_read else "unreadable"


def _same_value(gold: Any, answer: Any, relative: float = 0.0, absolute: float = 0.0) -> bool | None:
    """Whether two numbers, sets or matrices are the same, or two expressions at six points; None where few say."""
    if isinstance(gold, sympy.Set) and isinstance(answer, sympy.Set):
        return bool(gold.is_subset(answer) and answer.is_subset(gold))
    if isinstance(gold, sympy.MatrixBase) and isinstance(answer, sympy.MatrixBase):
        is_alike = gold.shape == answer.shape or (1 in gold.shape and 1 in answer.shape and len(gold) == len(answer))
        cells = zip(gold.flat(), answer.flat(), strict=is_alike)
        return is_alike and all(_same_value(*two, relative, absolute) for two in cells)
    if not (isinstance(gold, sympy.Expr) and isinstance(answer, sympy.Expr)):
        return None
    symbols = sorted(gold.free_symbols | answer.free_symbols, key=str)
    gold, answer = (one if symbols and not one.has(*_UNDONE) else one.doit() for one in (gold, answer))
    is_complex, num_agreed = not symbols or gold.has(sympy.I) or answer.has(sympy.I), 0
    for numbers, start in product((_POINTS, _WHOLE), range(6 if symbols else 1)):
        # Of more variables than numbers no two have the same value.
        places = zip(symbols, count(start, 2), strict=False)
        point = {name: sympy.Rational(numbers[at % 7]) + 6 * (at // 14) for name, at in places}
        values = [_number(one, point) for one in (gold, answer, gold - answer)]
        if None in values or not (is_complex or (values[0].is_real and values[1].is_real)):
            continue
        difference, size = abs(values[2]), max(map(abs, values[:2]))
        allowed = relative * size if symbols else min(relative * size, absolute) if relative else absolute
        # Without one digit that is certain the difference is none; there is no smallest one that counts.
        if not (difference == 0 or difference._prec == 1 or difference <= allowed):
            return False
        num_agreed += 1
        if num_agreed == 6 or not symbols:
            return True
    return (True if num_agreed >= 3 else None) if symbols else False


def _number(value: Any, point: dict[Any, Any]) -> Any:
    """An expression's finite value at a point: exact, or to 30 digits; None where it has none."""
    try:
        value = value.subs(point)
        value = value.doit() if value.has(*_UNDONE) else value
        value = value if value.is_Rational else value.evalf(30, maxn=_DIGITS_AT_A_POINT if point else _DIGITS)
        return value if value.is_number and value.is_finite and value.as_real_imag()[1].is_number else None
    except (TypeError, ValueError, ArithmeticError, AttributeError):
        return None


def _same_relation(gold: Any, answer: Any) -> bool | None:
    """Whether one is a constant multiple of the other (of inequalities a positive one); None of what is no relation."""
    if not all(isinstance(one, Relational) for one in (gold, answer)):
        return None
    gold, answer = (one.reversed if isinstance(one, sympy.Gt | sympy.Ge) else one for one in (gold, answer))
    left, right = (one.lhs - one.rhs for one in (gold, answer))
    if isinstance(gold, sympy.Eq):
        left, right = (sympy.fraction(sympy.together(side))[0] for side in (left, right))
    if type(gold) is not type(answer) or 0 in (left, right):
        return False
    factor = sympy.cancel(left / right)
    return bool(factor.is_number and (factor.is_positive or isinstance(gold, sympy.Eq | sympy.Ne)))


if __name__ == "__main__":
    main()
