"""Worked arithmetic: every move and the result, and what a slip of the pen does."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rprm_lab.worked import result, worked

NATURAL = st.integers(0, 99_999)
DIGIT = st.integers(1, 9)


def test_moves_are_written_from_the_right_with_carries_and_loans() -> None:
    assert worked(457, "+", 386) == ("7+6=13, 5+8+1=14, 4+3+1=8, 843", 843)
    assert worked(99, "+", 1) == ("9+1=10, 9+0+1=10, 100", 100)
    # 2 - 7 takes ten from the next place, which then has one less.
    assert worked(452, "-", 387) == ("12-7=5, 15-8-1=6, 4-3-1=0, 65", 65)
    assert worked(386, "*", 7) == ("6*7=42, 8*7+4=60, 3*7+6=27, 2702", 2702)
    assert worked(7, "*", 386) == worked(386, "*", 7)
    # From the left, with what is left over of each digit.
    assert worked(2702, "/", 7) == ("27/7=3 r6, 60/7=8 r4, 42/7=6, 386", 386)
    assert worked(700, "/", 5) == ("7/5=1 r2, 20/5=4, 0/5=0, 140", 140)


@given(NATURAL, NATURAL)
def test_sums_and_differences(left: int, right: int) -> None:
    assert worked(left, "+", right)[1] == left + right
    high, low = max(left, right), min(left, right)
    assert worked(high, "-", low)[1] == high - low


@given(NATURAL, DIGIT)
def test_products_and_quotients(left: int, right: int) -> None:
    assert worked(left, "*", right)[1] == left * right
    assert worked(left * right, "/", right)[1] == left


@given(NATURAL, st.sampled_from("+-*/"), DIGIT)
def test_every_move_is_true(left: int, operation: str, right: int) -> None:
    if result(left, operation, right) is None:  # type: ignore[arg-type]
        return
    *moves, last = worked(left, operation, right)[0].split(", ")  # type: ignore[arg-type]
    assert last.isdigit()
    for move in moves:
        calculation, _, value = move.partition("=")
        digit, _, rest = value.partition(" r")
        if "/" in calculation:
            dividend, divisor = map(int, calculation.split("/"))
            assert divmod(dividend, divisor) == (int(digit), int(rest or 0))
        else:
            # Digits, products and sums of digits: what Python makes of the same text.
            assert sum_of(calculation) == int(value)


def sum_of(calculation: str) -> int:
    """`8*7+4` and `15-8-1` by hand: a product or a difference, then one more number."""
    if "*" in calculation:
        product, _, carry = calculation.partition("+")
        first, second = product.split("*")
        return int(first) * int(second) + int(carry or 0)
    if "-" in calculation:
        first, *rest = map(int, calculation.split("-"))
        return first - sum(rest)
    return sum(map(int, calculation.split("+")))


def test_what_has_no_natural_result_is_refused() -> None:
    assert result(3, "-", 5) is None
    assert result(7, "/", 2) is None
    assert result(7, "/", 0) is None
    with pytest.raises(ValueError, match="3 - 5 is no natural number"):
        worked(3, "-", 5)
    with pytest.raises(ValueError, match="single digit"):
        worked(12, "*", 34)


def test_a_slip_is_carried_through() -> None:
    # 6*7 taken for 45: the digit 5 stands, and 4 is carried as before.
    assert worked(386, "*", 7, pen=lambda move, value: 45 if move == "6*7" else value) == (
        "6*7=45, 8*7+4=60, 3*7+6=27, 2705",
        2705,
    )
