"""Worked arithmetic: a calculation digit by digit, as a text whose every move is a fact of one-digit arithmetic.

    386 * 7: 6*7=42, 8*7+4=60, 3*7+6=27, 2702

Digits are worked from the right, in division from the left. The moves are what a small language model can learn by
heart; the whole calculations are far too many for that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal, cast, get_args

Operation = Literal["+", "-", "*", "/"]
OPERATIONS: tuple[Operation, ...] = get_args(Operation)

#: Given the text of a move up to its "=" and the right value, the value to write: where a slip of the pen can happen.
Pen = Callable[[str, int], int]


def parsed(calculation: str) -> tuple[int, Operation, int]:
    """The sides and the operation of `72 + 15`."""
    left, operation, right = calculation.split(" ")
    return int(left), cast(Operation, operation), int(right)


def result(left: int, operation: Operation, right: int) -> int | None:
    """The value of a calculation on whole numbers, None where it is no natural number."""
    if operation == "+":
        return left + right
    if operation == "-":
        return left - right if left >= right else None
    if operation == "*":
        return left * right
    return left // right if right and left % right == 0 else None


def worked(left: int, operation: Operation, right: int, *, pen: Pen = lambda move, value: value) -> tuple[str, int]:
    """A calculation worked digit by digit, and the value it arrives at.

    Args:
        left: the first number, natural.
        operation: `*` and `/` take one digit on the right; with more, the left side may be the digit of a product.
        right: the second number, natural.
        pen: writes the value of each move; the default writes what is right.

    Raises:
        ValueError: the calculation has no natural result, or two factors of several digits.
    """
    if result(left, operation, right) is None:
        raise ValueError(f"{left} {operation} {right} is no natural number")
    if operation == "*" and right > 9:
        left, right = right, left
    if operation in "*/" and right > 9:
        raise ValueError(f"{left} {operation} {right}: one side must be a single digit")
    moves, value = _MOVES[operation](left, right, pen)
    return ", ".join([*moves, str(value)]), value


def _digits(number: int) -> list[int]:
    """Digits from the right."""
    return [int(digit) for digit in reversed(str(number))]


def _pairs(left: int, right: int) -> Iterator[tuple[int, int]]:
    first, second = _digits(left), _digits(right)
    width = max(len(first), len(second))
    yield from zip(first + [0] * (width - len(first)), second + [0] * (width - len(second)), strict=True)


def _number(digits: list[int], carry: int = 0) -> int:
    """From its digits, the last first, and what is carried past the first."""
    return int(str(carry) + "".join(map(str, reversed(digits))))


def _add(left: int, right: int, pen: Pen) -> tuple[list[str], int]:
    moves, digits, carry = [], list[int](), 0
    for first, second in _pairs(left, right):
        move = f"{first}+{second}" + ("+1" if carry else "")
        value = pen(move, first + second + carry)
        moves.append(f"{move}={value}")
        digits.append(value % 10)
        carry = value // 10
    return moves, _number(digits, carry)


def _subtract(left: int, right: int, pen: Pen) -> tuple[list[str], int]:
    moves, digits, borrow = [], list[int](), 0
    for first, second in _pairs(left, right):
        lends = first - second - borrow < 0
        move = ("1" if lends else "") + f"{first}-{second}" + ("-1" if borrow else "")
        value = pen(move, first - second - borrow + (10 if lends else 0))
        moves.append(f"{move}={value}")
        digits.append(value % 10)
        borrow = int(lends)
    return moves, _number(digits)


def _multiply(left: int, right: int, pen: Pen) -> tuple[list[str], int]:
    moves, digits, carry = [], list[int](), 0
    for first in _digits(left):
        move = f"{first}*{right}" + (f"+{carry}" if carry else "")
        value = pen(move, first * right + carry)
        moves.append(f"{move}={value}")
        digits.append(value % 10)
        carry = value // 10
    return moves, _number(digits, carry)


def _divide(left: int, right: int, pen: Pen) -> tuple[list[str], int]:
    moves, quotient, rest = [], "", 0
    for digit in reversed(_digits(left)):
        piece = 10 * rest + digit
        rest = piece % right
        if piece < right and not quotient:
            continue
        value = pen(f"{piece}/{right}", piece // right)
        moves.append(f"{piece}/{right}={value}" + (f" r{rest}" if rest else ""))
        quotient += str(value % 10)
    return moves, int(quotient or "0")


_MOVES = {"+": _add, "-": _subtract, "*": _multiply, "/": _divide}
