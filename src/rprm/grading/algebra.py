r"""Whether two expressions, equations or sets are equal, by math-verify's grammar and sympy. Runs in workers alone.

Numbers are compared by their difference (sympy raises its precision until it has digits), expressions with variables at
several points, equations by the ratio of their sides' differences; math-verify's `verify` has the rest. No text is ever
evaluated as Python: texts go to the LaTeX grammar alone, and the one function of sympy that evaluates is replaced.
"""

from __future__ import annotations

import re
import sys
from fractions import Fraction
from functools import lru_cache
from typing import Any

import sympy
from latex2sympy2_extended.latex2sympy2 import ConversionConfig, _Latex2Sympy
from math_verify import verify
from sympy.core.relational import Relational
from sympy.parsing import sympy_parser

from rprm.grading.comparing import Comparison, Outcome
from rprm.grading.forms import Form
from rprm.grading.normal import P, rewritten
from rprm.grading.rules import AnswerRule

_NAMED_SETS = {"ℝ": sympy.S.Reals, "ℤ": sympy.S.Integers, "ℕ": sympy.S.Naturals, "∅": sympy.S.EmptySet}
#: Where expressions are tried out: values for their variables in the order of their names, going round.
_POINTS = ("7/5", "-3/7", "13/11", "29/8", "-17/6", "2/9", "41/10")
_WHOLE = ("2", "5", "3", "8", "4", "7", "6")
_UNDONE = (sympy.Sum, sympy.Product, sympy.Integral, sympy.Limit, sympy.Derivative)


class _Reader(_Latex2Sympy):  # type: ignore[misc]
    def parse_number(self, text: str) -> Any:
        return sympy.Rational(text.replace(",", ""))


def _number(code: str, *_: Any, **__: Any) -> Any:
    """The number that sympy's tokenizer wrote as `Integer (12 )` or `Float ('1.5')`, made without evaluation."""
    match = re.fullmatch(r"\s*(?:Integer ?\( ?([0-9]{1,4000}) ?|Float ?\( ?'([0-9]*\.?[0-9]*)' ?)\)\s*", code)
    if match is None:
        raise ValueError("text is never evaluated")
    return sympy.Integer(int(match[1])) if match[1] else sympy.Float(match[2])


sys.setrecursionlimit(1_000)
#: `sympify` of a string gets there.
sympy_parser.eval_expr = _number


def outcome(gold: str, answer: str | None, fields: dict[str, Any]) -> Outcome:
    """Compare two answers by the rule of these fields; of a gold answer alone say whether it is recognised."""
    tolerances = {name: Fraction(value) for name, value in fields.items() if value and name.endswith("tolerance")}
    return Comparison(AnswerRule(**fields | tolerances | {"markers": ()}), _same).of_texts(gold, answer)


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

    latex = rewritten("latex.txt", P.symbol.sub(name, text))
    return _Reader(config=ConversionConfig(lowercase_symbols=False)).parse(latex)


def _same(gold: Form, answer: Form, tolerance: float = 0.0, absolute: float = 0.0) -> Outcome:
    """Compare two values, two relations (their `whole`), or two sets of which one is a union or difference."""
    try:
        if gold.items or answer.items:
            is_same = _set(gold) == _set(answer)
        elif gold.kind == answer.kind == "relation":
            is_same = _same_relation(_expression(gold.whole), _expression(answer.whole))
        else:
            is_same = _same_value(_expression(gold.text), _expression(answer.text), tolerance, absolute)
        return "equal" if is_same else "different"
    except (MemoryError, RecursionError):
        raise
    except Exception:
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


def _points(symbols: list[Any], values: tuple[str, ...], number: int) -> list[dict[Any, Any]]:
    """Points to try; of more variables than values no two have the same one."""
    places = [[(symbol, start + 2 * index) for index, symbol in enumerate(symbols)] for start in range(number)]
    return [{symbol: sympy.Rational(values[at % 7]) + 6 * (at // 14) for symbol, at in point} for point in places]


def _numeric(value: Any, point: dict[Any, Any]) -> Any:
    """A finite number of 30 digits, or None."""
    try:
        value = value.subs(point) if point else value
        limits = (end for part in value.atoms(sympy.Sum, sympy.Product) for _, *ends in part.limits for end in ends)
        if any(end.is_Rational and not end.is_Integer for end in limits):
            return None
        value = value.doit() if value.has(*_UNDONE) else value
        value = value if value.is_Rational else value.evalf(30, maxn=300)
    except (TypeError, ValueError, ArithmeticError, AttributeError):
        return None
    return value if value.is_number and value.is_finite and value.as_real_imag()[1].is_number else None


def _verified(gold: Any, answer: Any) -> bool:
    return bool(verify(gold, answer, timeout_seconds=None))


def _same_value(gold: Any, answer: Any, tolerance: float = 0.0, absolute: float = 0.0) -> bool:
    """Whether two numbers are the same, or two expressions at three points of six."""
    if gold == answer:
        return True
    if not (isinstance(gold, sympy.Expr) and isinstance(answer, sympy.Expr)):
        return _verified(gold, answer)
    symbols = sorted(gold.free_symbols | answer.free_symbols, key=str)
    gold, answer = (one if symbols and not one.has(*_UNDONE) else one.doit() for one in (gold, answer))
    is_complex = not symbols or gold.has(sympy.I) or answer.has(sympy.I)
    for values in (_POINTS, _WHOLE):
        num_agreed = 0
        for point in _points(symbols, values, 6 if symbols else 1):
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
    return bool(symbols) and _verified(gold, answer)


def _same_relation(gold: Any, answer: Any) -> bool:
    """Whether one is a constant multiple of the other; of inequalities a positive one."""
    if not all(isinstance(one, Relational) for one in (gold, answer)):
        return _verified(gold, answer)
    both = [one.reversed if isinstance(one, (sympy.Gt, sympy.Ge)) else one for one in (gold, answer)]
    kind, other_kind = map(type, both)
    left, right = (one.lhs - one.rhs for one in both)
    if kind is sympy.Eq:
        left, right = (sympy.fraction(sympy.together(side))[0] for side in (left, right))
    symbols = sorted(left.free_symbols, key=str)
    if kind is not other_kind or not symbols or left.free_symbols != right.free_symbols:
        return False
    for point in reversed(_points(symbols, _POINTS, 7)):
        one, other = _numeric(left, point), _numeric(right, point)
        if one and other:
            is_turned = kind not in (sympy.Eq, sympy.Ne) and one / other < 0
            return not is_turned and _same_value(left * right.subs(point), right * left.subs(point))
    return _verified(gold, answer)
