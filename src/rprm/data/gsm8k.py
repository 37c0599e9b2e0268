r"""Labelled steps out of GSM8K's human solutions (arXiv 2110.14168), whose calculations are annotated: `<<48/2=24>>24`.

A wrong step is made of a line by one edit: of its result (*calculation*), or of an *operand* wherever it is named, with
the result worked out anew. Edits are timid, so that labels are true: the annotation must be right, a new number stands
nowhere in problem or solution, and a new result is further off than rounding could bring it.
"""

from __future__ import annotations

import ast
import operator
import random
import re
from collections.abc import Callable, Iterator
from decimal import Decimal
from fractions import Fraction
from typing import NamedTuple

#: Longer expressions (and lines) are no calculations; it also bounds how deep brackets nest.
MAX_EXPRESSION, _MAX_LINE = 200, 2000

_ANNOTATION = re.compile(r"<<([^<>]*)>>")
#: A number as a solution writes it, of at most 24 digits before the point; not a part of a longer one.
_NUMBER = re.compile(
    r"(?<![\d.,])(?:\d{1,3}(?:,\d{3}){1,7}|\d{1,24})?(?:\.\d{1,12})?(?<=\d)(?!\d|[.,]\d)", flags=re.ASCII
)
_ANNOTATED = re.compile(rf"(.*)<<([^<>=]+)=([^<>=]*)>>({_NUMBER.pattern})(.*)", flags=re.ASCII | re.DOTALL)
#: Operands and operators of an expression, and how a line shows an operator.
_PART = re.compile(r"\d+\.?\d*|\.\d+|[-+*/]")
_SHOWN = {"*": " ?[*xX×·] ?", "/": " ?[/÷] ?", "+": r" ?\+ ?", "-": " ?[-−–] ?"}

#: Words of a problem that stand for a number.
_WORDS = {
    word: Fraction(number)
    for number, words in re.findall(
        "([0-9/]+)([a-z ]+)",
        "0 zero 1 one once single 2 two twice double pair couple both 3 three thrice triple 4 four 5 five 6 six "
        "7 seven week 8 eight 9 nine 10 ten decade 11 eleven 12 twelve dozen year 13 thirteen 14 fourteen 15 fifteen "
        "16 sixteen 17 seventeen 18 eighteen 19 nineteen 20 twenty score 24 day 30 thirty month 40 forty 50 fifty "
        "60 sixty hour minute 70 seventy 80 eighty 90 ninety 100 hundred century percent 1000 thousand "
        "1/4 quarter 1/3 third 1/2 half",
    )
    for word in words.split()
}

#: A percent sign is read as a power, which binds as it does.
_OPERATIONS: dict[type, Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.Pow: lambda percent, _: percent / 100,
}  # fmt: skip


def without_annotations(text: str) -> str:
    """The text without GSM8K's annotations of calculations, `<<48/2=24>>` and its like."""
    return _ANNOTATION.sub(lambda match: "" if "=" in match[0] else match[0], text)


class WrongStep(NamedTuple):
    """A step made wrong, and how: by its calculation or by an operand."""

    text: str
    kind: str


def wrong_step(line: str, taken: frozenset[Fraction], drawn: random.Random) -> WrongStep | None:
    """A wrong version of an annotated line, or None where no edit is safe; no edit brings in a number of `taken`."""
    found = _ANNOTATED.fullmatch(line) if len(line) <= _MAX_LINE and len(_ANNOTATION.findall(line)) == 1 else None
    if found is None:
        return None
    before, expression, result, shown, after = found.groups()
    try:
        exact, annotated = evaluate(expression), evaluate(result)
    except ValueError:
        return None
    number, unit = _value(shown), Fraction(1, 10 ** _decimals(shown))
    # The result shown may be rounded or cut. A line that names it elsewhere too would, edited, contradict itself.
    elsewhere = numbers(after) | (numbers(before) - numbers(expression))
    if number != annotated or abs(exact - number) >= unit or number in elsewhere:
        return None
    results = ((before, text, _value(text)) for text in _others(shown, drawn))
    edits = [("calculation", results), ("operand", _other_operands(before, expression, shown, after, taken, drawn))]
    drawn.shuffle(edits)
    for kind, edited in edits:
        for beginning, text, value in edited:
            if _value(text) not in taken and abs(value - exact) > 2 * unit:
                return WrongStep(beginning + text + after, kind)
    return None


def _other_operands(
    before: str, expression: str, shown: str, after: str, taken: frozenset[Fraction], drawn: random.Random
) -> Iterator[tuple[str, str, Fraction]]:
    """What stands before the result with another operand throughout, where the line shows the calculation as it is
    annotated; its result as shown, and exact."""
    pattern = ""
    for part in _PART.findall(expression):
        # With commas or without, `.5` or `0.5`; words may follow it (`5 boxes * 3`), brackets may stand elsewhere.
        whole, _, decimals = part.partition(".")
        number = (",?".join(whole) if whole.strip("0") else "0?") + (rf"\.{decimals}" if decimals else "")
        pattern += _SHOWN.get(part) or rf"\(? ?[$]? ?{number} ?%?[a-zA-Z ]{{0,24}}\)?"
    visible = re.search(rf"(?<![\d.,]){pattern} ?= ?[$]? ?$", " ".join(before.split()))
    if visible is None or before.count("=") > 1:
        return
    values = [_value(match[0]) for match in _NUMBER.finditer(expression)]
    operands = [value for value in values if values.count(value) == 1 and value != 0]
    drawn.shuffle(operands)
    for operand in operands:
        if operand == _value(shown) or operand in numbers(after):
            continue
        written = next(match[0] for match in _NUMBER.finditer(visible[0]) if _value(match[0]) == operand)
        for text in _others(written, drawn):
            if _value(text) in taken:
                continue
            try:
                value = evaluate(_replaced(expression, operand, text.replace(",", "")))
            except ValueError:
                continue
            if (result := _shown_like(value, shown)) is not None:
                yield _replaced(before, operand, text), result, value


def _replaced(text: str, value: Fraction, new: str) -> str:
    """The text with another number in place of every one that has this value."""
    return _NUMBER.sub(lambda match: new if _value(match[0]) == value else match[0], text)


def _others(shown: str, drawn: random.Random) -> Iterator[str]:
    """Other numbers of the same form, in a drawn order: near ones, two digits swapped, ten away, ten times as much."""
    number, unit = Decimal(shown.replace(",", "")), Decimal(1).scaleb(-_decimals(shown))
    candidates = {number + sign * step * unit for step in (1, 2, 3, 4, 5) for sign in (1, -1)}
    if number >= 20 * unit:
        candidates |= {number + 10 * unit, number - 10 * unit}
    digits = str(int(number / unit))
    for place in range(len(digits) - 1):
        swapped = digits[:place] + digits[place + 1] + digits[place] + digits[place + 2 :]
        if swapped[0] != "0":
            candidates.add(int(swapped) * unit)
    if number >= 2 * unit:
        candidates |= {number * 10, number + 100 * unit}
    kept = sorted(candidate for candidate in candidates if candidate > 0 and candidate != number)
    drawn.shuffle(kept)
    yield from (_formatted(candidate, shown) for candidate in kept)


def _formatted(number: Decimal, like: str) -> str:
    """The number with the decimals, the commas and the leading zero of another."""
    text = f"{number:,.{_decimals(like)}f}"
    if "," not in like and (len(like.partition(".")[0]) > 3 or abs(number) < 10_000):
        text = text.replace(",", "")
    return text.removeprefix("0") if like.startswith(".") else text


def _shown_like(value: Fraction, like: str) -> str | None:
    """A result as another one is written, with up to two decimals where it needs them; None where it has more."""
    for decimals in range(_decimals(like), max(2, _decimals(like)) + 1):
        scaled = value * 10**decimals
        if value > 0 and scaled.denominator == 1:
            form = f"{like.partition('.')[0]}.{'0' * decimals}" if decimals else like
            return _formatted(Decimal(scaled.numerator).scaleb(-decimals), form)
    return None


def numbers(text: str, *, words: bool = False) -> frozenset[Fraction]:
    """The numbers of a text, in digits and, where asked, in words."""
    named = re.findall("[a-z]+", text.casefold()) if words else []
    named += [word.removesuffix("s") for word in named]
    in_words = (_WORDS[word] for word in named if word in _WORDS)
    return frozenset([*in_words, *(_value(match[0]) for match in _NUMBER.finditer(text))])


def _value(number: str) -> Fraction:
    return Fraction(number.replace(",", ""))


def _decimals(number: str) -> int:
    return len(number.partition(".")[2])


def evaluate(expression: str) -> Fraction:
    """The exact value of an annotated calculation (digits, + - * / ( ) . %), else a ValueError; nothing is run."""
    if len(expression) > MAX_EXPRESSION or not re.fullmatch(r"[0-9.+*/()% -]+", expression) or "**" in expression:
        raise ValueError(f"no calculation of at most {MAX_EXPRESSION} characters")
    text = re.sub(r"(?<![\d.])0+(?=\d)", "", expression).replace("%", "**(1)").strip()

    def value(node: ast.expr) -> Fraction:
        match node:
            case ast.Constant():
                return Fraction(text[node.col_offset : node.end_col_offset])
            case ast.UnaryOp():
                return -value(node.operand) if isinstance(node.op, ast.USub) else value(node.operand)
            case ast.BinOp() if type(node.op) in _OPERATIONS:
                return _OPERATIONS[type(node.op)](value(node.left), value(node.right))
        raise ValueError("no calculation")

    try:
        return value(ast.parse(text, mode="eval").body)
    except (SyntaxError, ZeroDivisionError) as error:
        raise ValueError(str(error)) from None
