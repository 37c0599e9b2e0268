r"""Votes among hostile answers end in bounded time, and nothing is too small to be told apart."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator

import pytest

from rprm.grading import EXACT, MATHEMATICS, RULES, AnswerPair, AnswerRule, Grader

pytest.importorskip("math_verify")

#: Each would run for hours, or fill any memory, and no two are the same.
TOWERS = [rf"{base}^{{{base}^{{{base}^{{{top}}}}}}}" for base in range(2, 8) for top in range(10, 20)]
#: Read at once, and endless where they are worked out.
PRODUCTS = [rf"\prod_{{k=1}}^{{{10**7 + top}}} k" for top in range(4)]
#: What stands beside them, with its group.
SOUND = {"2x": 0, "x+x": 0, r"\sqrt{8}": 1, r"2\sqrt{2}": 1, "x^2-1": 2, "(x-1)(x+1)": 2, "0.5": 3, "1/2": 3, "7": 4}


@pytest.fixture
def grader() -> Iterator[Grader]:
    with Grader(num_workers=2, limit_s=1.0) as grader:
        assert grader.group_equivalent(["2x", "x+x"]) == [0, 0]  # The workers have started.
        yield grader


def in_groups(grader: Grader, answers: list[str]) -> set[frozenset[str]]:
    numbers = grader.group_equivalent(answers)
    return {
        frozenset(answer for answer, number in zip(answers, numbers, strict=True) if number == one) for one in numbers
    }


@pytest.mark.parametrize("num_towers", [8, pytest.param(60, marks=pytest.mark.slow)])
def test_a_group_has_one_limit_however_many_are_hostile(
    grader: Grader, figures: Callable[..., None], num_towers: int
) -> None:
    answers = [*TOWERS[:num_towers], *SOUND, *PRODUCTS]
    expected = {frozenset(text for text in SOUND if SOUND[text] == group) for group in set(SOUND.values())}
    seconds = []
    for seed in range(2):
        random.Random(seed).shuffle(answers)
        begin = time.monotonic()
        found = in_groups(grader, answers)
        seconds.append(time.monotonic() - begin)
        # What cannot be compared joins nothing, and nothing else is kept from its like.
        assert {group for group in found if len(group) > 1 or group <= {*SOUND}} == expected
    # Eight limits of 1 s of processor time, shared by two workers: 4 s, where nothing else runs beside. By a limit for
    # each pair it would be minutes.
    assert max(seconds) < 30.0
    figures(hostile_answers=num_towers + len(PRODUCTS), tenths_of_a_second_at_most=round(10 * max(seconds)))


@pytest.mark.slow
def test_what_a_group_has_no_time_for_is_not_remembered() -> None:
    with Grader(num_workers=1, limit_s=1.0) as grader:
        slow = r"\sum_{k=1}^{n} k^3", r"\frac{n^2(n+1)^2}{4}"
        assert grader.group_equivalent([*TOWERS[:4], *PRODUCTS[:2]]) == [*range(6)]
        # By its own limit it comes to a conclusion, whatever became of it in a group.
        grader.group_equivalent([*slow, *PRODUCTS])
        assert grader.grade_all([AnswerPair(*slow, EXACT)])[0].correct


MINERVA = RULES["minerva_math"]


@pytest.mark.parametrize(
    ("rule", "one", "other", "same"),
    [
        (MATHEMATICS, "6.63e-34 f", "9.11e-31 f", False),
        (MATHEMATICS, r"6.63\times10^{-34} f", r"9.11\times10^{-31} f", False),
        (MATHEMATICS, "6.63e-34 f", r"6.63\times10^{-34} f", True),
        (MINERVA, "6.63e-34", "9.11e-31", False),
        (MINERVA, r"6.63\times10^{-34} x", r"9.11\times10^{-31} x", False),
        (MINERVA, r"1.38\cdot10^{-23}\text{ J}", "1.6e-19", False),
        (EXACT, "10^{-160}", r"2\cdot10^{-160}", False),
        (EXACT, r"\sqrt{2}\cdot10^{-160}", r"\sqrt{3}\cdot10^{-160}", False),
        (EXACT, r"\sqrt{2}(1+10^{-160})", r"\sqrt{2}", False),
        (EXACT, r"\sqrt{2}(1+10^{-400})", r"\sqrt{2}", False),
        (EXACT, r"x(1+10^{-160})", "x", False),
        (EXACT, "1+e^{-900}", "1", False),
        (EXACT, r"\pi\cdot10^{-300}", "0", False),
        (EXACT, r"\sqrt{2}+\sqrt{3}", r"\sqrt{5+2\sqrt{6}}", True),
        (EXACT, r"10^{-200}(\sqrt{2}+\sqrt{3})", r"10^{-200}\sqrt{5+2\sqrt{6}}", True),
        (EXACT, r"\frac{1}{200!}", r"\frac{1}{201!}", False),
    ],
)
def test_no_value_is_too_small_to_count(rule: AnswerRule, one: str, other: str, same: bool) -> None:
    outcomes = GRADER.grade_all([AnswerPair(one, other, rule), AnswerPair(other, one, rule)])
    assert [outcome.correct for outcome in outcomes] == [same] * 2


#: One for all examples.
GRADER = Grader(num_workers=1)
