"""Which analyses are fit to train on."""

from __future__ import annotations

import pytest

from rprm.data.datasets import (
    DISAGREES,
    EMPTY,
    FORCED,
    NO_VERDICT,
    NOT_LAST,
    REASONS,
    REPEATED,
    SEVERAL,
    wellformed,
)
from rprm.records import Analysis
from rprm.verdict import VerdictFormat

MARKER = "Is the step correct (Yes/No)?"
FORMAT = VerdictFormat()


def analysis(text: str, verdict: bool | None = True, **more: object) -> Analysis:
    p_yes = None if verdict is None else float(verdict)
    source = None if verdict is None else "vote"
    return Analysis(
        text=text, verdict=verdict, p_yes=p_yes, p_yes_source=source, num_tokens=9, finish_reason="stop", **more
    )


@pytest.mark.parametrize(
    ("text", "trained"),
    [
        (f"3 + 4 = 7.\n{MARKER} Yes", f"3 + 4 = 7.\n{MARKER} Yes"),
        # The verdict line is always written in one form; the Markdown that opens on it goes with it.
        (f"3 + 4 = 7.\n\n**{MARKER}** **Yes**.\n", f"3 + 4 = 7.\n{MARKER} Yes"),
        (f"3 + 4 = 7.\n### {MARKER} $\\boxed{{Yes}}$", f"3 + 4 = 7.\n{MARKER} Yes"),
        (f"3 + 4 = 7.\n{MARKER}\n\nYES!", f"3 + 4 = 7.\n{MARKER} Yes"),
        # Bold text of the body stays closed.
        (f"**Conclusion: right.**\n{MARKER} Yes", f"**Conclusion: right.**\n{MARKER} Yes"),
        # Text before the marker on its line belongs to the body.
        (f"It holds. So: {MARKER} Yes", f"It holds. So:\n{MARKER} Yes"),
        (f"  ∑ é 漢字\n{MARKER} Yes", f"∑ é 漢字\n{MARKER} Yes"),
        # Thinking is not learnt; the marker in another spelling is rewritten.
        (f"<think>\n{MARKER} No, hm.\n</think>\n\n3 + 4 = 7.\n{MARKER} Yes", f"3 + 4 = 7.\n{MARKER} Yes"),
        ("3 + 4 = 7.\n\n**Is the step correct?** Yes", f"3 + 4 = 7.\n{MARKER} Yes"),
    ],
)
def test_the_verdict_line_gets_one_form(text: str, trained: str) -> None:
    assert wellformed(analysis(text), FORMAT, FORMAT) == (trained, "")


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (analysis("It goes on and", None), NO_VERDICT),
        (analysis(f"And so.\n\n{MARKER} Yes", forced=True), FORCED),
        (analysis(f"{MARKER} Yes. Or rather:\n{MARKER} Yes"), SEVERAL),
        # Named once unanswered and once answered: a student would learn to write the question in the middle.
        (analysis(f"They ask: {MARKER}\nSo I check. 3 + 4 = 7.\n{MARKER} Yes"), SEVERAL),
        (analysis(f'They ask "{MARKER}".\n3 + 4 = 7.\nIs the step correct? Yes'), SEVERAL),
        (analysis(f"<think>3 + 4 = 7.\n{MARKER} Yes"), NO_VERDICT),
        (analysis(f"3 + 4 = 7.\n{MARKER} Yes, since 7 is 7."), NOT_LAST),
        (analysis(f"\n\n{MARKER} Yes"), EMPTY),
        (analysis(f"***\n{MARKER} Yes"), EMPTY),
    ],
)
def test_what_is_dropped_and_why(bad: Analysis, reason: str) -> None:
    assert wellformed(bad, FORMAT, FORMAT) == ("", reason)
    assert reason in REASONS


def test_every_reason_is_named_once() -> None:
    assert len(set(REASONS)) == len(REASONS)
    assert {DISAGREES, REPEATED} <= set(REASONS)


def test_a_students_template_may_ask_otherwise() -> None:
    other = VerdictFormat(marker="Verdict:", yes="right", no="wrong")
    assert wellformed(analysis(f"3 + 4 = 8?\n{MARKER} No", False), FORMAT, other) == (
        "3 + 4 = 8?\nVerdict: wrong",
        "",
    )
    # And back.
    assert wellformed(analysis("3 + 4 = 8?\nVerdict: wrong", False), other, FORMAT) == (
        f"3 + 4 = 8?\n{MARKER} No",
        "",
    )
