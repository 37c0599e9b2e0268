"""Exact values of small calculations, as GSM8K annotates them: digits, + - * / ( ) . and a percent sign."""

from __future__ import annotations

import re
from fractions import Fraction

#: A longer expression is no annotation of a calculation; it also bounds how deep brackets nest.
MAX_EXPRESSION = 200

_TOKEN = re.compile(r"\s*(\d+\.?\d*|\.\d+|[-+*/()%])")


def evaluate(expression: str) -> Fraction:
    """The value of an expression, exact.

    `*` and `/` bind before `+` and `-`; both go from left to right; a percent sign after a number or bracket divides
    it by 100. Nothing else is understood: no names, no powers, no juxtaposition (`2(3)`), so nothing can be run or
    blown up.

    Raises:
        ValueError: it is no such expression, or divides by zero.
    """
    if len(expression) > MAX_EXPRESSION:
        raise ValueError(f"the expression is longer than {MAX_EXPRESSION} characters")
    if not expression.isascii():
        raise ValueError("the expression has characters that no calculation has")
    found: list[str] = []
    place = 0
    text = expression.rstrip()
    while place < len(text):
        match = _TOKEN.match(text, place)
        if match is None:
            raise ValueError(f"{text[place]!r} is no part of a calculation")
        found.append(match[1])
        place = match.end()
    value, rest = _sum(found, 0)
    if rest != len(found):
        raise ValueError(f"{found[rest]!r} stands where no calculation has it")
    return value


def _sum(found: list[str], place: int) -> tuple[Fraction, int]:
    value, place = _product(found, place)
    while place < len(found) and found[place] in "+-":
        other, after = _product(found, place + 1)
        value = value + other if found[place] == "+" else value - other
        place = after
    return value, place


def _product(found: list[str], place: int) -> tuple[Fraction, int]:
    value, place = _factor(found, place)
    while place < len(found) and found[place] in "*/":
        other, after = _factor(found, place + 1)
        if found[place] == "*":
            value *= other
        elif other == 0:
            raise ValueError("division by zero")
        else:
            value /= other
        place = after
    return value, place


def _factor(found: list[str], place: int) -> tuple[Fraction, int]:
    if place == len(found):
        raise ValueError("the expression breaks off")
    part = found[place]
    if part in "+-":
        value, place = _factor(found, place + 1)
        return (-value if part == "-" else value), place
    if part == "(":
        value, place = _sum(found, place + 1)
        if place == len(found) or found[place] != ")":
            raise ValueError("a bracket is not closed")
        place += 1
    elif part[0].isdigit() or part[0] == ".":
        value, place = Fraction(part), place + 1
    else:
        raise ValueError(f"{part!r} stands where no calculation has it")
    while place < len(found) and found[place] == "%":
        value, place = value / 100, place + 1
    return value, place
