"""Verdicts in text, and P(Yes) at them."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rprm.verdict import TwoAnswers, Verdict, VerdictChoice, VerdictFormat, logsumexp, read_verdict, softmax_yes

FORMAT = VerdictFormat()
MARKER = "Is the step correct (Yes/No)?"


@pytest.mark.parametrize(
    ("ending", "yes"),
    [
        (" Yes", True),
        (" No", False),
        ("Yes", True),
        ("\nNo", False),
        (" **Yes**", True),
        (" *No*.", False),
        (": yes", True),
        (" NO!", False),
        (" $\\boxed{No}$", False),
        (" \\boxed{\\text{Yes}}", True),
        (' "Yes"', True),
        (" Yes, it is.", True),
        (" No/", False),
    ],
)
def test_ways_to_write_a_verdict(ending: str, yes: bool) -> None:
    text = f"Verification: {MARKER}{ending}"
    verdict = FORMAT.find(text)
    assert verdict is not None
    assert verdict.yes is yes
    assert text[verdict.start : verdict.end].casefold() == ("yes" if yes else "no")


@pytest.mark.parametrize(
    "text",
    [
        "",
        MARKER,
        f"{MARKER} Yes/No",
        f"{MARKER} Yes / No",
        f"{MARKER} Nothing is wrong",
        f"{MARKER} Not sure",
        f"{MARKER} Yesterday",
        f"{MARKER} The answer is Yes",
        f"{MARKER} Maybe. Yes",
        "The step is correct: Yes",
        "Is the step correct? Yes",
        f"{MARKER} はい",
    ],
)
def test_no_verdict(text: str) -> None:
    assert FORMAT.find(text) is None
    assert read_verdict(text, FORMAT, ()) is None


def test_the_question_repeated_is_not_an_answer() -> None:
    text = f"I must end with '{MARKER} Yes/No'. So: {MARKER} No"
    verdict = FORMAT.find(text)
    assert verdict is not None
    assert not verdict.yes
    assert verdict.end == len(text)


def test_the_first_verdict_counts_and_all_are_found() -> None:
    text = f"{MARKER} No. On reflection, {MARKER} Yes"
    assert [verdict.yes for verdict in FORMAT.find_all(text)] == [False, True]
    verdict = FORMAT.find(text)
    assert verdict is not None
    assert verdict.yes is False


@pytest.mark.parametrize(
    ("rest", "final"),
    [
        ("", False),
        (" ", False),
        ("/", False),
        (" / ", False),
        ("\ufffd", False),
        (".", True),
        ("\nSo", True),
        ("*", True),
    ],
)
def test_a_verdict_is_final_once_nothing_can_undo_it(rest: str, final: bool) -> None:
    text = f"{MARKER} Yes"
    verdict = FORMAT.find(text)
    assert verdict is not None
    assert FORMAT.is_final(text + rest, verdict) is final


@given(st.text(alphabet="Yes No/*\nthing.", max_size=8), st.text(alphabet="Yes No/*\nthing.", max_size=8))
def test_a_final_verdict_stands_whatever_follows(first: str, second: str) -> None:
    text = f"{MARKER} Yes{first}"
    verdict = FORMAT.find(text)
    if verdict is not None and FORMAT.is_final(text, verdict):
        assert FORMAT.find(text + second) == verdict


def test_marker_wrapped_over_lines() -> None:
    verdict = FORMAT.find("Is the step\n  correct (Yes/No)?\nYes")
    assert verdict is not None
    assert verdict.yes


def test_other_answer_words() -> None:
    chinese = VerdictFormat(marker="该步骤正确吗?", yes="是", no="否")
    verdict = chinese.find("分析……该步骤正确吗? 否")
    assert verdict == Verdict(False, 12, 13)
    assert VerdictFormat(marker="Verdict:", yes="+", no="-").find("Verdict: -") == Verdict(False, 9, 10)


def test_choice_is_taken_where_the_verdict_stands() -> None:
    text = f"Yes, I think. {MARKER} No"
    start = text.rindex("No")
    elsewhere, here = VerdictChoice(0, -0.1, -3.0), VerdictChoice(start, math.log(0.2), math.log(0.6))
    found = read_verdict(text, FORMAT, (elsewhere, here))
    assert found == (Verdict(False, start, start + 2), here)
    # softmax over (log 0.2, log 0.6) = 0.2 / (0.2 + 0.6).
    assert here.p_yes == pytest.approx(0.25)
    assert read_verdict(text, FORMAT, (elsewhere,)) == (Verdict(False, start, start + 2), None)


@given(st.floats(-700, 0), st.floats(-700, 0))
def test_softmax_is_a_probability_and_symmetric(yes: float, no: float) -> None:
    p = softmax_yes(yes, no)
    assert 0.0 <= p <= 1.0
    assert p + softmax_yes(no, yes) == pytest.approx(1.0)
    assert (p >= 0.5) == (yes >= no) or abs(yes - no) < 1e-15


def test_softmax_edges() -> None:
    assert softmax_yes(-1.0, -math.inf) == 1.0
    assert softmax_yes(-math.inf, -1.0) == 0.0
    with pytest.raises(ValueError, match="neither"):
        softmax_yes(-math.inf, -math.inf)


def test_logsumexp() -> None:
    # 0.1 + 0.2 + 0.3 = 0.6
    assert logsumexp(map(math.log, (0.1, 0.2, 0.3))) == pytest.approx(math.log(0.6))
    assert logsumexp([]) == -math.inf
    assert logsumexp([-math.inf, -2.0]) == -2.0
    assert logsumexp([-1e4, -1e4]) == pytest.approx(-1e4 + math.log(2))


@given(st.text(max_size=300))
def test_any_text_is_survived(text: str) -> None:
    for verdict in FORMAT.find_all(text + MARKER + text):
        assert (text + MARKER + text)[verdict.start : verdict.end].casefold() in ("yes", "no")


def test_hostile_text_takes_no_time() -> None:
    # Markers and fillers without end would be the regular expression's worst case.
    assert FORMAT.find((MARKER + " *" * 1000) * 200) is None
    assert FORMAT.find("Is the " * 100_000) is None


def test_two_answers_are_two_forms(tiny_model: Path) -> None:
    """As the published second pass reads them: ` Yes` and ` No`, nothing else."""
    from transformers import AutoTokenizer

    from rprm.engines.tokens import VerdictTokens

    two, any_form = TwoAnswers(), VerdictFormat()
    assert [two.answer_of(text) for text in (" Yes", " No", "Yes", " yes", "No", " YES")] == [True, False] + [None] * 4
    assert [any_form.answer_of(text) for text in (" Yes", " No", "Yes", " yes")] == [True, False, True, True]
    assert two != any_form
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokens = VerdictTokens.of(tokenizer, two)
    assert [tokenizer.convert_ids_to_tokens(list(side)) for side in (tokens.yes, tokens.no)] == [["ĠYes"], ["ĠNo"]]
    assert len(VerdictTokens.of(tokenizer, any_form).yes) > 1
