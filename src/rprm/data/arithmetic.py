"""Exact values of small calculations, as GSM8K annotates them: digits, + - * / ( ) . and a percent sign."""

from __future__ import annotations

import ast
import re
from fractions import Fraction

#: A longer expression is no annotation of a calculation; it also bounds how deep brackets nest.
MAX_EXPRESSION = 200


def evaluate(expression: str) -> Fraction:
    """The value of an expression, exact.

    `*` and `/` bind before `+` and `-`; both go from left to right; a percent sign after a number or bracket divides
    it by 100. Nothing else is understood: no names, no powers, no juxtaposition (`2(3)`). Python's parser reads it, and
    nothing is run.

    Raises:
        ValueError: it is no such expression, or divides by zero.
    """
    if len(expression) > MAX_EXPRESSION:
        raise ValueError(f"the expression is longer than {MAX_EXPRESSION} characters")
    if not re.fullmatch(r"[0-9.+*/()% -]+", expression) or "**" in expression:
        raise ValueError("the expression has characters that no calculation has")
    # A percent sign is written as a power, which binds as it does.
    text = re.sub(r"(?<![\d.])0+(?=\d)", "", expression).replace("%", "**(1)").strip()
    try:
        return _value(ast.parse(text, mode="eval").body, text)
    except SyntaxError as error:
        raise ValueError(f"no calculation: {error.msg}") from None
    except ZeroDivisionError:
        raise ValueError("division by zero") from None


def _value(node: ast.expr, text: str) -> Fraction:
    if isinstance(node, ast.Constant):
        return Fraction(text[node.col_offset : node.end_col_offset])
    if isinstance(node, ast.UnaryOp):
        value = _value(node.operand, text)
        return -value if isinstance(node.op, ast.USub) else value
    if isinstance(node, ast.BinOp):
        left, right = _value(node.left, text), _value(node.right, text)
        match node.op:
            case ast.Add():
                return left + right
            case ast.Sub():
                return left - right
            case ast.Mult():
                return left * right
            case ast.Div():
                return left / right
            case ast.Pow():
                return left / 100
    raise ValueError("the expression is no calculation")
