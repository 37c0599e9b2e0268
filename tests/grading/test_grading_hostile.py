r"""Ten thousand answers, of which every twentieth is made to harm."""

from __future__ import annotations

import random
import time
from collections import Counter

import pytest

from rprm.grading import MATHEMATICS, AnswerPair, Grader, final_answer
from rprm.grading.forms import read

pytest.importorskip("math_verify")

#: Each of these is turned away before any worker sees it, or stopped there.
HOSTILE = [
    "9^{9^9}",
    "2^{2^{2^{2^{2^{2}}}}}",
    "10^{999999999}",
    "10000000!",
    r"\prod_{k=1}^{1000000} k",
    r"\int_0^{100} e^{-x^2}\sin(x^{x})dx",
    "(" * 990 + "1" + ")" * 990,
    r"\sin(" * 100 + "x" + ")" * 100,
    r"\frac{1}{" * 300 + "2" + "}" * 300,
    "-" * 1_900 + "1",
    "x" * 1_000_000,
    r"\text{" * 100 + "a" + "}" * 100,
    "1," * 900 + "1",
    "__import__('os').system('x')",
    "exec(compile('1', '', 'exec'))",
    "5\x00",
    "\ud800",
    "9" * 1_900,
]


@pytest.mark.slow
def test_ten_thousand_answers_come_back() -> None:
    rng = random.Random(0)
    pairs: list[AnswerPair] = []
    expected: list[str | None] = []
    for number in range(10_000):
        if number % 20 == 0:
            pairs.append(AnswerPair("5", HOSTILE[number // 20 % len(HOSTILE)]))
            expected.append(None)
            continue
        a, b = rng.randint(2, 40), rng.randint(2, 40)
        gold, right, wrong = rng.choice(
            [
                (f"{a}", f"{a}.0", f"{a + 1}"),
                (rf"\frac{{{a}}}{{{b}}}", f"{2 * a}/{2 * b}", f"{a}/{b + 1}"),
                (rf"{a}\sqrt{{{b}}}", rf"\sqrt{{{a * a * b}}}", rf"{a + 1}\sqrt{{{b}}}"),
                (f"({a},{b})", rf"\left({a}, {b}\right)", f"({b + 50},{a})"),
            ]
        )
        is_right = rng.random() < 0.5
        pairs.append(AnswerPair(gold, right if is_right else wrong))
        expected.append("equal" if is_right else "different")
    with Grader(num_workers=2, limit_s=0.5) as grader:
        grades = grader.grade_all(pairs)
    assert len(grades) == len(pairs)
    mistaken = [
        (pair, grade.outcome)
        for pair, grade, outcome in zip(pairs, grades, expected, strict=True)
        if outcome is not None and grade.outcome != outcome
    ]
    assert not mistaken
    hostile = Counter(grade.outcome for grade, outcome in zip(grades, expected, strict=True) if outcome is None)
    assert sum(hostile.values()) == 500
    assert hostile["equal"] == 0
    assert hostile["timeout"] > 0
    assert hostile["too long"] > 0


@pytest.mark.parametrize(
    "text",
    [
        *(r"5\text{m" + join * 24 + "!}" for join in (". ", r"\cdot ", "per ", r"\cdot per ", "-./ ")),
        *("5 m" + ". " * 900 + "!", "5 per" + " per" * 400 + "!", "5 cm " * 350, "a-" * 900, "1," * 900 + "1"),
        *("0." + "12" * 196 + "…", "9" * 1_900 + "…", "{" * 900 + "1" + "}" * 900, r"\frac{1" * 250, " " * 1_900 + "x"),
        *(
            "x" + " for all" * 200,
            r"\text{" + "a " * 900 + "!",
            r"\vec{x}" * 250 + "=",
            "1:" * 900,
            "and " * 400,
            "**" * 900,
            "ab:" * 600 + "1",
            "(A)" * 650,
            "about " * 300,
            "5 percent " * 190,
            "1 to " * 390,
            "x for every " * 150,
            r"\begin{cases}" + "& " * 900,
            r"\begin{cases}" + r"1 & if \\" * 150 + r"\end{cases}",
            "it is a set of " * 130,
            "Yes, " * 390,
            r"\bigcup_{k=" * 180,
            "⟦1⟧+" * 480,
        ),
    ],
)
def test_no_text_makes_reading_long(text: str) -> None:
    # In the caller's process, where no limit holds: some of these ran for minutes with the first patterns.
    begin = time.process_time()
    read(text, MATHEMATICS)
    assert time.process_time() - begin < 2.0


@pytest.mark.parametrize(
    "text",
    ["answer" + " " * 100_000, "\n" * 100_000 + "x", "x\n \n" * 20_000, "\\boxed{" * 10_000, "answer to x " * 10_000]
    + ["the answer is " + word * 30_000 for word in ("the ", "(", "not ", "a ", "is:\n", "by ")],
)
def test_no_solution_makes_the_search_for_its_answer_long(text: str) -> None:
    begin = time.process_time()
    final_answer(text)
    assert time.process_time() - begin < 5.0
