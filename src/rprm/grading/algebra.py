r"""Whether two expressions, equations or sets are equal, by math-verify's grammar and sympy. Runs in workers alone.

math-verify's `verify` rounds to 6 decimals or 15 digits, and takes what `simplify` cannot decide for different. So
numbers are compared here by their difference (sympy raises its precision until it has digits), expressions with
variables at several points, equations by the ratio of their sides' differences; `verify` has the rest.
"""

from __future__ import annotations

import re
import sys
from functools import lru_cache
from typing import Any

import sympy
from latex2sympy2_extended.latex2sympy2 import ConversionConfig, _Latex2Sympy
from math_verify import verify
from sympy.parsing import sympy_parser

from rprm.grading.comparing import Outcome
from rprm.grading.reading import Form

#: Commands of the grammar; any other is a name.
_COMMANDS = re.compile(
    r"\\(?:frac|sqrt|binom|sin|cos|tan|cot|sec|csc|arcsin|arccos|arctan|sinh|cosh|tanh|log|ln|exp|lim|sum|prod|int|pi|"
    r"cdot|times|lfloor|rfloor|lceil|rceil|gcd|lcm|max|min|det|bmod|mod|text|variable|overline|to|infty)"
)
_SUBSCRIPT = r"(?:_\{(?:[^{}]|\{[^{}]*\})*\})?'*"
_NAME = re.compile(
    rf"\\(?:vec|bar|hat|tilde|dot|ddot|mathcal|mathscr|overrightarrow)\{{[^{{}}]*\}}{_SUBSCRIPT}|\\text\{{[^{{}}]*\}}|"
    rf"\\(?:log|sum|prod|int|lim|max|min)|\\[a-zA-Z]+{_SUBSCRIPT}|[a-zA-Zℝ]{_SUBSCRIPT}"
)
_SIGNS = str.maketrans(
    {"≤": r"\leq ", "≥": r"\geq ", "≠": r"\neq ", "∞": r"\infty ", "⦃": r"\{", "⦄": r"\}", "…": r"\ldots "}
)


class _Reader(_Latex2Sympy):  # type: ignore[misc]
    def parse_number(self, text: str) -> Any:
        return sympy.Integer(int(text.replace(",", "")))


class Unreadable(Exception):
    """The text is not in the grammar."""


def refuse_evaluation() -> None:
    """Replace the one function of sympy that evaluates text; `sympify` of a string gets there."""
    sympy_parser.eval_expr = _number


def _number(code: str, *_: Any, **__: Any) -> Any:
    """The number that sympy's tokenizer wrote as `Integer (12 )` or `Float ('1.5')`, made without evaluation."""
    if match := re.fullmatch(r"\s*Integer ?\( ?([0-9]{1,4000}) ?\)\s*", code):
        return sympy.Integer(int(match[1]))
    if match := re.fullmatch(r"\s*Float ?\( ?'([0-9]*\.?[0-9]*)' ?\)\s*", code):
        return sympy.Float(match[1])
    raise ValueError("text is never evaluated")


@lru_cache(maxsize=2_000)
def expression(text: str) -> Any:
    """What a text in normal form says; decimals are exact rationals, names keep their capitals.

    Raises:
        Unreadable: the grammar does not know it.
    """
    if re.search(r"\d \d|\d'|[\d)]_|[@#&…]|\\\\", text):
        raise Unreadable(text)
    found = (match[1] for match in re.finditer(r"\\(?:sum|prod)_\{([a-zA-Z])=", text))
    differentials = set(re.findall(r"d ?([a-z])(?![a-z])", text)) | {"d"} if r"\int" in text else set()
    bound = {name: f"bound{place}" for place, name in enumerate(dict.fromkeys(found))}

    def name(match: re.Match[str]) -> str:
        word = match[0]
        if word in bound:
            return rf"\variable{{{bound[word]}}} "
        if word == "e" or _COMMANDS.fullmatch(word) or word in differentials:
            return word + (" " if word[0] == "\\" else "")
        if word in ("i", r"\imath"):
            return "(I)"
        return (
            rf"\variable{{{''.join(character if character.isalnum() else str(ord(character)) for character in word)}}} "
        )

    text = re.sub(r"(\d+(?:\.\d+)?)°", r"\\frac{\1\\pi}{180}", text)
    text = re.sub(r"(\d)%", r"\1\\cdot\\frac{1}{100}", text)
    text = re.sub(
        r"\d+\.\d+",
        lambda match: rf"\frac{{{match[0].replace('.', '')}}}{{1{'0' * len(match[0].partition('.')[2])}}}",
        text,
    )
    text = re.sub(r"(\d)\(", r"\1\\cdot(", _NAME.sub(name, text))
    text = re.sub(r"\)\(", r")\\cdot(", text).replace(r"\exp (", "e^(").replace("e^(", r"\exp(")
    try:
        return _Reader(config=ConversionConfig(lowercase_symbols=False)).parse(text.translate(_SIGNS))
    except (MemoryError, RecursionError):
        raise
    except Exception as error:
        raise Unreadable(text) from error


def same(gold: Form, answer: Form, tolerance: float = 0.0, absolute: float | None = None) -> Outcome:
    """Compare two values, two relations (their `whole`), or two sets of which one is a union or difference."""
    try:
        if gold.items or answer.items:
            is_same = _set(gold) == _set(answer)
        elif gold.kind == answer.kind == "relation":
            is_same = _same_relation(expression(gold.whole), expression(answer.whole))
        else:
            is_same = _same_value(expression(gold.text), expression(answer.text), tolerance, absolute)
        return "equal" if is_same else "different"
    except (MemoryError, RecursionError):
        raise
    except Exception:  # Not in the grammar, or beyond sympy.
        return "unreadable"


def _set(form: Form) -> Any:
    if form.kind == "list":
        return sympy.FiniteSet(*map(_set, form.items))
    if form.kind == "tuple" and len(form.items) == 2:
        low, high = map(_set, form.items)
        return sympy.Interval(low, high, form.brackets[:1] == "(", form.brackets[1:] == ")")
    if form.kind == "tuple":
        return sympy.Tuple(*map(_set, form.items))
    parts = [_set(item) for item in form.items]
    parts = [part if isinstance(part, sympy.Set) else sympy.FiniteSet(part) for part in parts]
    if form.kind == "union":
        return sympy.Union(*parts)
    if form.kind == "intersection":
        both = sympy.Intersection(*parts)
        # "x < 2 and x > 5" is a loose way to say "or".
        return sympy.Union(*parts) if both is sympy.S.EmptySet and "∩" not in form.text else both
    if form.kind == "difference" and len(parts) == 2:
        return parts[0] - parts[1]
    named = {"ℝ": sympy.S.Reals, "ℤ": sympy.S.Integers, "ℕ": sympy.S.Naturals, "∅": sympy.S.EmptySet}
    if form.text in named:
        return named[form.text]
    if form.kind != "value":
        raise Unreadable(form.text)
    return expression(form.text).doit() if form.number is None else sympy.Rational(str(form.number))


#: Where expressions are tried out: values for their variables in the order of their names, going round.
_POINTS = ("7/5", "-3/7", "13/11", "29/8", "-17/6", "2/9", "41/10")
_WHOLE = ("2", "5", "3", "8", "4", "7", "6")
_UNDONE = (sympy.Sum, sympy.Product, sympy.Integral, sympy.Limit, sympy.Derivative)


def _points(symbols: list[Any], values: tuple[str, ...], number: int) -> list[dict[Any, Any]]:
    def value(place: int) -> Any:
        # Of more variables than values no two have the same one.
        return sympy.Rational(values[place % 7]) + 6 * (place // 14)

    return [{symbol: value(start + 2 * place) for place, symbol in enumerate(symbols)} for start in range(number)]


def _numeric(value: Any, point: dict[Any, Any] | None = None) -> Any:
    """A finite number of 30 digits, or None."""
    try:
        if point:
            value = value.subs(point)
        limits = [
            bound for part in value.atoms(sympy.Sum, sympy.Product) for _, *bounds in part.limits for bound in bounds
        ]
        if any(bound.is_Rational and not bound.is_Integer for bound in limits):
            return None
        if value.has(*_UNDONE):
            value = value.doit()
        value = value if value.is_Rational else value.evalf(30, maxn=300)
    except (TypeError, ValueError, ArithmeticError, AttributeError):
        return None
    return value if value.is_number and value.is_finite and value.as_real_imag()[1].is_number else None


def _is_zero(difference: Any, scale: Any) -> bool:
    """Whether a difference is none: exactly, or where 150 digits cannot tell it from none."""
    return bool(
        difference == 0 or (not difference.is_Rational and abs(difference) <= sympy.Float("1e-150", 30) * abs(scale))
    )


def _same_value(gold: Any, answer: Any, tolerance: float, absolute: float | None) -> bool:
    if gold == answer:
        return True
    if not (isinstance(gold, sympy.Expr) and isinstance(answer, sympy.Expr)):
        return bool(verify(gold, answer, timeout_seconds=None))
    gold, answer = (one.doit() if one.has(*_UNDONE) else one for one in (gold, answer))
    symbols = sorted(gold.free_symbols | answer.free_symbols, key=str)
    if not symbols:
        return _same_number(gold, answer, tolerance, absolute)
    is_complex = gold.has(sympy.I) or answer.has(sympy.I)
    for places in (_POINTS, _WHOLE):
        num_agreed = 0
        for point in _points(symbols, places, 6):
            values = [_numeric(one, point) for one in (gold, answer)]
            if None in values or not (is_complex or all(value.is_real for value in values)):
                continue
            difference = _numeric(gold - answer, point)
            if difference is None:
                continue
            if not _is_zero(difference, values[0]) and not abs(difference) <= tolerance * max(map(abs, values)):
                return False
            num_agreed += 1
        if num_agreed >= 3:
            return True
    return bool(verify(gold, answer, timeout_seconds=None))


def _same_number(gold: Any, answer: Any, tolerance: float, absolute: float | None) -> bool:
    values = [_numeric(gold), _numeric(answer)]
    if None in values:
        return bool(gold.doit() == answer.doit())
    difference = _numeric(gold.doit() - answer.doit())
    if difference is None:
        return False
    size = abs(difference)
    return _is_zero(difference, max(map(abs, values))) or bool(
        size <= (tolerance * max(map(abs, values)) if absolute is None else absolute)
    )


def _same_relation(gold: Any, answer: Any) -> bool:
    """Whether one is a constant multiple of the other; of inequalities a positive one."""
    relations = []
    for relation in (gold, answer):
        if not isinstance(relation, sympy.core.relational.Relational):
            return bool(verify(gold, answer, timeout_seconds=None))
        if isinstance(relation, (sympy.StrictGreaterThan, sympy.GreaterThan)):
            relation = relation.reversed
        difference = relation.lhs - relation.rhs
        if isinstance(relation, sympy.Eq):
            difference = sympy.fraction(sympy.together(difference))[0]
        relations.append((type(relation), difference))
    (kind, left), (other_kind, right) = relations
    symbols = sorted(left.free_symbols | right.free_symbols, key=str)
    if kind is not other_kind or left.free_symbols != right.free_symbols or not symbols:
        return False
    pairs = [(_numeric(left, point), _numeric(right, point)) for point in _points(symbols, _POINTS, 7)]
    pairs = [pair for pair in pairs if None not in pair and all(pair)]
    if len(pairs) < 3:
        return bool(verify(gold, answer, timeout_seconds=None))
    ratios = [one / other for one, other in pairs]
    if kind not in (sympy.Eq, sympy.Ne) and ratios[0] < 0:
        return False
    return all(abs(ratio - ratios[0]) <= sympy.Float("1e-20", 30) * abs(ratios[0]) for ratio in ratios)


sys.setrecursionlimit(1_000)
