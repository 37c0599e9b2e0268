r"""Final answers: where a solution says them, and which of them are the same."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rprm.errors import RprmError
from rprm.grading import (
    GSM8K_FLEXIBLE,
    MATHEMATICS,
    RULES,
    AnswerPair,
    AnswerRule,
    Grader,
    final_answer,
    olympiadbench_rule,
)
from rprm.grading.forms import plain_number, read
from rprm.grading.grader import AnswerComparison

pytest.importorskip("math_verify")

SEVERAL = olympiadbench_rule(multiple=True, unit=None, error=None)


@pytest.fixture(scope="module")
def grader() -> Iterator[Grader]:
    with Grader(num_workers=1) as grader:
        yield grader


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"so $\boxed{18}$.", "18"),
        (r"first \boxed{3}, and then, after more work, \boxed{18}", "18"),
        (r"\boxed{\frac{1}{\sqrt{2}}}", r"\frac{1}{\sqrt{2}}"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{\boxed{4}}", "4"),
        (r"\fbox{2}", "2"),
        (r"\framebox{204}", "204"),
        (r"\boxed 7.", "7"),
        (r"either \boxed{1} or \boxed{2}", "1, 2"),
        (r"\(\boxed{1}\), \(\boxed{2}\) and \(\boxed{3}\)", "1, 2, 3"),
        # The brace of the last box is never closed: the answer was never finished, and 3 is not it.
        (r"we find \boxed{3}. Hence \boxed{5", None),
        (r"\boxed{\frac{1}{2}", None),
        (r"\boxed{}", None),
        ("The answer is 5.", "5"),
        ("The answer is 3.5 m.", "3.5 m"),
        ("The answer to the problem is **7**.", "7"),
        ("**Final Answer:** $x=3$. I hope it is correct.", "$x=3$"),
        ("The final answer is: $$\\frac12$$ as claimed", r"\frac12"),
        ("answer:\n\n12\nThat is all.", "12"),
        ("The answer is 4.\nNo: the answer is 5.", "5"),
        ("The answer is (C) 5 apples.", "(C) 5 apples"),
        ("9 * 2 = 18\n#### 18", "18"),
        ("#### 1,234", "1,234"),
        # GSM8K has a solution that says "answer:" before its end.
        ("### Final Answer\nThe probability that the sum is 12 is:\n\\[ \\frac{3}{256} \\]", r"\frac{3}{256}"),
        # Cut off in its formula: "probability that the sum is 12 is" is no answer.
        ("### Final Answer\nThe probability that the sum is 12 is:\n\\[ \\frac{3}{2", None),
        ("To find the answer: 28 / 7 = 4 weeks\n#### 4", "4"),
        ("Let me think.\n(B)", "(B)"),
        ("9 * 2 = 18, hence 18.", None),
        ("I do not know.", None),
        ("", None),
        # Thinking says none: neither one that is finished nor one that is cut off.
        (r"<think>\boxed{3}? No.</think>" "\n\n" r"It is \boxed{4}.", "4"),
        (r"\boxed{3}? No.</think>" "\n\nThe answer is 4.", "4"),
        (r"<think>\boxed{3}</think>" "\n\nI cannot say.", None),
        (r"<think>So \boxed{3}. Wait", None),
    ],
)
def test_where_an_answer_is_said(text: str, answer: str | None) -> None:
    assert final_answer(text) == answer


def test_markers_and_last_numbers_are_the_rules_own() -> None:
    text = "1 + 1 = 2\nA: 2"
    assert final_answer(text) is None
    assert final_answer(text, RULES["gsm8k"]) == "2"
    told = "She makes $1,200.50, as we saw."
    assert final_answer(told, RULES["gsm8k"]) is None
    assert final_answer(told, GSM8K_FLEXIBLE) == "$1,200.50"


@given(
    st.text(max_size=300)
    | st.lists(st.sampled_from(["\\boxed{", "}", "{", "answer is ", "\n", "5", "\\"])).map("".join)
)
def test_extraction_and_forms_take_any_text(text: str) -> None:
    answer = final_answer(text)
    assert answer is None or answer.strip()
    read(text, MATHEMATICS)


PARTS = [
    *(r"\frac", "{", "}", "(", ")", "[", "]", "1", "23", "x", "y", "=", ",", "<", r"\le ", r"\text{", "cm", " "),
    r"\pm",
    *(r"\cup", "^", "_", "°", r"\%", ".", "0.", "/", ":", "-", "+", r"\{", r"\}", "|", "or ", "and ", "&", r"\\", "≈"),
    *("to ", "∈", "²", "½", "million", "$", r"\overline{", "for all ", "(B)", "base 8", "'", "...", r"\begin{pmatrix}"),
]  # fmt: skip


@given(*[st.lists(st.sampled_from(PARTS), max_size=14).map("".join)] * 2, st.sampled_from([*RULES.values()]))
def test_any_two_texts_are_compared_by_strings_and_numbers(gold: str, answer: str, rule: AnswerRule) -> None:
    compare = AnswerComparison(rule, lambda *_: "different").of_texts
    outcomes = {compare(gold, answer) for _ in range(2)}
    assert outcomes <= {"equal", "different", "unreadable"}
    assert len(outcomes) == 1
    assert compare(gold, gold) == "equal"


#: Gold, answer, and whether they are the same: every decision of docs/grading.md.
DECISIONS = [
    # Numbers are exact rationals, however they are written.
    (r"\frac{1}{2}", "0.5", True),
    (r"\dfrac12", "1/2", True),
    (r"3\frac12", "3.5", True),
    ("1,000", "1000", True),
    (r"10,\!080", "10080", True),
    (r"10\,080", "10080", True),
    ("1000", "1000.00", True),
    ("0", "-0", True),
    ("-1", "1", False),
    ("12", "1 2", False),
    ("4", r"\sqrt{16}", True),
    ("256", "2^8", True),
    # Decimals within one part in ten thousand; whole numbers only exactly.
    (r"\frac13", "0.3333", True),
    (r"\frac13", "0.333", False),
    (r"\sqrt2", "1.4142", True),
    (r"\sqrt2", "1.41", False),
    ("204", "204.01", False),
    # Percent: the sign may be left out, or the value worked out; without a sign 50 is not 0.5.
    (r"50\%", "0.5", True),
    (r"50\%", "50", True),
    ("0.5", r"50\%", True),
    ("0.5", "50", False),
    # Units are left out of the comparison where one side has none; a known one is never another.
    (r"5.4 \text{ cents}", "5.4", True),
    ("10", r"10\text{ miles per hour}", True),
    ("10", "10 miles per hour", True),
    (r"864 \mbox{ inches}^2", "864", True),
    (r"90^\circ", "90", True),
    ("55", "055", True),
    (r"\$18.90", "18.9", True),
    (r"1.5\text{ km}", r"1.5\text{ m}", False),
    (r"1.5\text{ km}", r"1500\text{ m}", False),
    # Numerals of another base: the base may be left out, not changed; they are not converted.
    ("1011_2", "1011", True),
    (r"4210_{5}", "4210_5", True),
    ("1011_2", "11", False),
    ("52_8", "52_9", False),
    ("3:4", r"\frac34", True),
    ("1:2:3", "2:4:6", True),
    ("1:2:3", "(1,2,3)", False),
    ("0:1:2", "0:3:5", False),
    ("1:0:5", "1:0:7", False),
    ("2:30", "1:15", False),
    # A name before an equals sign.
    ("x=3", "3", True),
    ("3", "x=3", True),
    ("5", "2+3=5", True),
    ("x=3", "y=3", False),
    (r"f(x)=\frac1x", r"\frac1x", True),
    ("y=2x+3", "2x-y+3=0", True),
    ("5x-7y+11z+4=0", "-5x+7y-11z-4=0", True),
    ("k=n+1", "n=k-1", True),
    ("x+y=5", "5", False),
    ("5x-7y+11z+4=0", "0", False),
    (r"P(\{2\})=1/6", r"\frac{1}{6}", True),
    # Several answers: in any order. A point: in order; its brackets may be left out.
    ("1,2", "2,1", True),
    ("1,2", "2 and 1", True),
    ("1,2", r"2 \text{ or } 1", True),
    (r"\{1,2\}", "2,1", True),
    ("1,2", "(2,1)", True),
    ("1,2,2", "1,1,2", False),
    ("1,2", "1", False),
    (r"1\pm\sqrt{19}", r"1+\sqrt{19},1-\sqrt{19}", True),
    ("a=2, a=-6", "-6, 2", True),
    ("(1,2)", "1,2", True),
    ("(1,2)", "2,1", False),
    ("(1,2)", "(2,1)", False),
    ("(1,2),(3,4)", r"(3,4) \text{ and } (1,2)", True),
    (r"\begin{pmatrix}1\\2\\3\end{pmatrix}", "(1,2,3)", True),
    (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\begin{bmatrix}1&2\\3&4\end{bmatrix}", True),
    (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\begin{pmatrix}1&3\\2&4\end{pmatrix}", False),
    # Intervals: their brackets count.
    ("[1,2)", "(1,2)", False),
    ("[1,2)", r"1\leq x<2", True),
    ("[1,2)", r"2>x\ge 1", True),
    (r"(2,\infty)", "x>2", True),
    (r"(2,\infty)", "x<2", False),
    (r"x\in[-2,7]", r"-2\le x\le 7", True),
    (r"(-\infty,2)\cup(3,\infty)", r"(3,\infty)\cup(-\infty,2)", True),
    # Words and choices are compared as they are spelled.
    (r"\text{Evelyn}", "Evelyn", True),
    (r"\text{east}", "seat", False),
    ("5", "no solution", False),
    (r"\text{(C)}", "C", True),
    ("(C)", r"\text{(C) 5}", True),
    ("(C)", "B", False),
    # Expressions, by computer algebra.
    ("2k+2", "2(k+1)", True),
    (r"2^{k-n}", r"\frac{2^k}{2^n}", True),
    (r"\frac{\sqrt3}{3}", r"\frac{1}{\sqrt3}", True),
    ("6-5i", "-5i+6", True),
    (r"\frac{100!}{2^{50}}", r"\frac{99!\cdot 100}{2^{50}}", True),
    (r"\sin t", r"\sin t+0", True),
    ("x", "y", False),
    ("x^2", "x^3", False),
    # Capitals are told apart (math-verify folds them), but a letter alone is itself.
    ("2n", "2N", False),
    ("n", "N", True),
]


def test_every_decision(grader: Grader) -> None:
    grades = grader.grade_all(AnswerPair(gold, answer) for gold, answer, _ in DECISIONS)
    wrong = [
        (decision, grade.outcome)
        for decision, grade in zip(DECISIONS, grades, strict=True)
        if grade.correct is not decision[2]
    ]
    assert not wrong


@pytest.mark.parametrize(
    ("rule", "gold", "answer", "same"),
    [
        (RULES["aime24"], "025", "25", True),
        (RULES["aime24"], "204", r"204^\circ", True),
        (RULES["aime24"], "204", "204.0", True),
        (RULES["aime24"], "204", "204.01", False),
        (RULES["gsm8k"], "1,450,000", "$1450000", True),
        (RULES["gsm8k"], "18", "18 dollars", True),
        (RULES["gsm8k"], "18", "18.00", True),
        # Minerva: measured quantities, whole ones too; small numbers are not all zero.
        (RULES["minerva_math"], "4.5e33", r"4.5\times 10^{33} \text{ erg/s}", True),
        (RULES["minerva_math"], "4.5e33", r"4.5 \cdot 10^{33}", True),
        (RULES["minerva_math"], "4.5e33", "4.49e33", False),
        (RULES["minerva_math"], "1.24e-8", r"1.3\times10^{-8}", False),
        (RULES["minerva_math"], "41585", "41585.3", True),
        (RULES["minerva_math"], "1.6", r"1.6 \mathrm{~cm}", True),
        (RULES["minerva_math"], "2.78", "2.78 m", True),
        (RULES["minerva_math"], "E_{1},E_{2}", "E_2, E_1", True),
        (RULES["minerva_math"], r"\frac{1}{3} E_{1}+\frac{2}{3} E_{2}", r"\frac{E_1+2E_2}{3}", True),
        (RULES["minerva_math"], "np.arcsin(10/13)", r"\arcsin(\frac{10}{13})", True),
        # 1,100 of an item with several answers is two of them.
        (SEVERAL, "1,100", "100, 1", True),
        (MATHEMATICS, "1,100", "100, 1", False),
        (olympiadbench_rule(multiple=False, unit="km", error=None), "5", "5 m", True),
        (olympiadbench_rule(multiple=False, unit=None, error=Fraction(1, 10)), "1.5", "1.58", True),
        (olympiadbench_rule(multiple=False, unit=None, error=Fraction(1, 10)), "1.5", r"\frac{\pi}{2}", True),
        (olympiadbench_rule(multiple=False, unit=None, error=Fraction(1, 10)), "1.5", "1.7", False),
    ],
)
def test_rules_of_the_sets(grader: Grader, rule: AnswerRule, gold: str, answer: str, same: bool) -> None:
    (grade,) = grader.grade_all([AnswerPair(gold, answer, rule)])
    assert grade.correct is same


def test_what_comes_to_no_conclusion_is_neither_right_nor_wrong(grader: Grader) -> None:
    pairs = [
        AnswerPair("5", None),
        AnswerPair("5", "  "),
        AnswerPair("5", "x" * 3_000),
        AnswerPair("5", "5\x00"),
        AnswerPair("5", "\ud800"),
        AnswerPair("Yes, this is a subspace.", "It is a subspace"),
        AnswerPair("Yes, this is a subspace.", "Yes, this is a subspace"),
    ]
    outcomes = [grade.outcome for grade in grader.grade_all(pairs)]
    assert outcomes == ["no answer", "no answer", "too long", "unreadable", "unreadable", "unreadable", "equal"]
    corrects = [grade.correct for grade in grader.grade_all(pairs)]
    assert corrects == [False, False, None, None, None, None, True]


CASES = r"""$C(m)=\left\{\begin{array}{rll}
10 & \text { if } & 0 \leq m \leq 500 \\ 10+0.15(m-500) & \text { if } & m>500\end{array}\right.$"""
SYSTEM = r"\begin{align*} x^{\prime}&=x+y \\ y^{\prime}&=2z \end{align*}"
VECTORS = r"""a e^{t}\left[\begin{array}{c}\cos t \\ 1\end{array}\right]
+b e^{t}\left[\begin{array}{c}\sin t \\ -1\end{array}\right]"""
CONCAVE, RATIO = "concave up on $(-\\infty,-1)$ and $(0, \\infty)$", r"If $k \leq 2 / \pi$ the ratio is $(2-k \pi) / 4$"
MIGHT = "There might be a solution. If so, there are many."
FAMILY = r"$\bigcup_{k=-\infty}^{\infty}(2 k \pi,(2 k+2) \pi)$"
#: Sentences, cases, systems, sums of vectors and families of sets, after gold answers of College Math.
SENTENCES = [
    ("Yes, this is a subspace.", r"\text{Yes}", "equal"),
    ("Yes, this is a subspace.", "yes, this is a subspace", "equal"),
    ("Yes, this is a subspace.", "No", "different"),
    ("Yes, this is a subspace.", "No, this is a subspace", "different"),
    ("Yes, this is a subspace.", "Yes, it is closed", "unreadable"),
    ("Yes, this is a subspace.", "5", "unreadable"),
    ("Yes, 5", "Yes, 5.0", "unreadable"),
    ("Yes, 5", "Yes, 6", "unreadable"),
    ("No. Consider $x+y+z=2$ and $x+y+z=1$.", "no.", "equal"),
    ("No. Consider $x+y+z=2$ and $x+y+z=1$.", "Yes", "different"),
    ("no solution", "No", "different"),
    (MIGHT, r"\text{There might be a solution; if so, there are many}", "equal"),
    (MIGHT, "There might not be a solution. If so, there are many.", "unreadable"),
    (MIGHT, "many", "unreadable"),
    ("There are three solutions to it.", "there are three solutions to it", "equal"),
    ("There are three solutions to it.", "there are 4 solutions to it", "unreadable"),
    (CONCAVE, r"Concave up on $(-\infty, -1)$ and $(0,\infty)$", "equal"),
    (CONCAVE, r"concave up on $(-\infty,-1)$ and $(1,\infty)$", "unreadable"),
    (CONCAVE, r"concave down on $(-\infty,-1) \cup (0,\infty)$", "unreadable"),
    (RATIO, r"if $k\le 2/\pi$, the ratio is $(2-k\pi)/4$", "equal"),
    (RATIO, r"If $k\le\frac{2}{\pi}$ the ratio is $\frac13-\frac{k\pi}{4}$", "unreadable"),
    (r"$5 e^{-t} \neq 0$ and so it is invertible.", r"$5e^{-t} \ne 0$ and so it is invertible", "equal"),
    (CASES, r"\begin{cases}10, & \text{if } 0\le m\le 500,\\ 0.15m-65, & \text{if } m>500\end{cases}", "equal"),
    (CASES, r"C(m)=\begin{cases}0.15m-65 & \text{for } m>500\\ 10 & m\in[0,500]\end{cases}", "equal"),
    (CASES, r"\begin{cases}10 & 0\le m\le 500\\ 0.15m-60 & m>500\end{cases}", "different"),
    (CASES, r"\begin{cases}10 & 0\le m<500\\ 0.15m-65 & m>500\end{cases}", "different"),
    (CASES, r"\begin{cases}10 & 0\le m\le 500\\ 0.15m-65 & \text{otherwise}\end{cases}", "unreadable"),
    (CASES, "10", "different"),
    (SYSTEM, r"\begin{cases}y'=2z\\ x'-x=y\end{cases}", "equal"),
    (SYSTEM, r"x'=x+y, y'=2z", "equal"),
    (SYSTEM, r"\begin{cases}y'=3z\\ x'-x=y\end{cases}", "different"),
    ("3", r"\begin{aligned}x&=1+2\\&=3\end{aligned}", "equal"),
    ("4", r"\begin{aligned}x&=1+2\\&=3\end{aligned}", "different"),
    (VECTORS, r"e^t\begin{pmatrix}a\cos t+b\sin t\\ a-b\end{pmatrix}", "equal"),
    (VECTORS, r"x=ae^t\begin{pmatrix}\cos t\\1\end{pmatrix}+be^t\begin{pmatrix}\sin t\\-1\end{pmatrix}", "equal"),
    (VECTORS, r"ae^t\begin{pmatrix}\cos t\\1\end{pmatrix}-be^t\begin{pmatrix}\sin t\\-1\end{pmatrix}", "different"),
    (FAMILY, r"\bigcup_{k=-\infty}^{\infty} (2k\pi, (2k+2)\pi)", "equal"),
    (FAMILY, r"\bigcup_{k=-\infty}^{\infty}(2k\pi,(2k+1)\pi)", "unreadable"),
    (FAMILY, r"(0,2\pi)", "unreadable"),
    ("t(0,4]", r"0<t\le 4", "equal"),
    ("t(0,4]", "$ $t(0,4]$. $", "equal"),
    ("t(0,4]", "(0,4)", "different"),
    ("t(0,4]", "6", "different"),
]  # fmt: skip


def test_sentences_and_systems_are_read(grader: Grader) -> None:
    pairs = [AnswerPair(gold, answer) for gold, answer, _ in SENTENCES]
    turned = [AnswerPair(answer, gold) for gold, answer, _ in SENTENCES]
    expected = [outcome for *_, outcome in SENTENCES]
    assert [grade.outcome for grade in grader.grade_all(pairs)] == expected
    assert [grade.outcome for grade in grader.grade_all(turned)] == expected
    assert {grader.check_gold(gold).outcome for gold, *_ in SENTENCES} == {"equal"}


def test_groups_for_a_vote(grader: Grader) -> None:
    answers = ["1/2", "0.5", "x", None, r"\frac{2}{4}", r"\sqrt{x^2}", "|x|", "9" * 3_000, "X"]
    # 1/2, 0.5 and 2/4 are one; x and X (capitals are not told apart); sqrt(x^2) is |x|; what is too long stays alone.
    assert grader.group_equivalent(answers) == [0, 0, 1, -1, 0, 2, 2, 3, 1]
    # No gold answer says how precise: decimals are as they are written.
    assert grader.group_equivalent(["1/3", "0.3333", "0.33330"]) == [0, 1, 1]


@given(st.fractions(), st.integers(min_value=-20, max_value=20))
def test_numbers_are_read_exactly(value: Fraction, exponent: int) -> None:
    sign = "-" if value < 0 else ""
    text = rf"{sign}\frac{{{abs(value.numerator)}}}{{{value.denominator}}}"
    assert plain_number(text) == (value, None)
    scaled = rf"{value.numerator}\times10^{{{exponent}}}"
    assert plain_number(scaled) == (value.numerator * Fraction(10) ** exponent, Fraction(10) ** exponent)


def test_a_rule_has_no_unknown_field() -> None:
    with pytest.raises(ValueError, match="nonsense"):
        AnswerRule("own", nonsense=True)  # type: ignore[call-arg]
    assert AnswerRule("own", relative_tolerance="1/3").relative_tolerance == Fraction(1, 3)  # type: ignore[arg-type]


def test_limits_out_of_range() -> None:
    with pytest.raises(RprmError, match="num_workers is 0"):
        Grader(num_workers=0)
    with pytest.raises(RprmError, match="limit_s is 0"):
        Grader(limit_s=0.0)
    with pytest.raises(RprmError, match="limit_bytes is 5"):
        Grader(limit_bytes=5)


def test_a_choice_is_no_number(grader: Grader) -> None:
    for answer in ("5", "1.23", "yes"):
        grades = grader.grade_all([AnswerPair("(A)", answer), AnswerPair(answer, "(A)")])
        assert [grade.outcome for grade in grades] == ["different"] * 2
