"""Verdicts in text, and P(Yes) at them."""

from __future__ import annotations

import json
import math
import time
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
        # Dashes, arrows, emoji, boxes, other brackets and quotes, spaces that show nothing.
        (" — No", False),
        (" ⇒ **No**", False),
        (" => No", False),
        (" 🚫 No", False),
        ("✅Yes", True),
        (" 【No】", False),
        (" «No»", False),
        (" ‘No’", False),
        (" <No>", False),
        (" `No`", False),
        ("\u00a0\u200b\u2060No", False),
        # Headings, lists, tables, block quotes and fences that the answer alone stands in.
        ("\n\n# No", False),
        ("\n\n• No", False),
        ("\n\n2) No", False),
        ("\n(a) No", False),
        (" 1️⃣ No", False),
        (" | **No** |", False),
        ("\n\n> No", False),
        ("\n```text\nNo\n```", False),
        # Emphasis, LaTeX, HTML, line ends spelled out.
        (" __No__", False),
        (" ***No***", False),
        (" \\( \\boxed{\\mathrm{No}} \\)", False),
        (" $$\\textbf{No}$$", False),
        ("\\n\\nNo", False),
        (" <b>No</b>", False),
        (" <answer>No</answer>", False),
        ("&nbsp;No", False),
        # Announced.
        (" **Answer:** No", False),
        ("\n\n### Final answer\n\nNo", False),
        (" The answer is no", False),
        (" My verdict is: $\\boxed{No}$", False),
        (" Answer (Yes/No): No", False),
        (" 答案：No", False),
        # With more after it.
        (" No<|eot_id|>", False),
        (" No</s>", False),
        (" No [/INST]", False),
        (" No, wait: Yes", False),
        (" No because 2 + 2 is 4", False),
        (" No (2 + 2 is 4)", False),
        (" Yes, no errors were found", True),
        (" Yes and no mistake", True),
        (" Yes - no doubt", True),
        (" Yes\n\nor No", True),
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
        f"{MARKER} Maybe. Yes",
        "The step is correct: Yes",
        f"{MARKER} はい",
        # A choice left open.
        f"{MARKER} **Yes** or **No**",
        f"{MARKER} Yes, or No",
        f"{MARKER} Yes and/or No.",
        f"{MARKER} Yes and No",
        f"{MARKER} \\text{{Yes}}/\\text{{No}}",
        f"{MARKER} Yes／No",
        f"{MARKER} Yes | No",
        f"{MARKER} Yes-No",
        f"{MARKER} <Yes or No>",
        f"{MARKER} [Yes/No]",
        f"{MARKER} Neither Yes nor No",
        f"{MARKER} [ ] Yes [x] No",
        f"{MARKER} Yes or Is the step correct (Yes/No)? No",
        # Not an answer.
        f"{MARKER} Yes if the last line holds",
        f"{MARKER} ~~Yes~~",
        f"{MARKER} No errors were found",
        f"{MARKER} No arithmetic mistakes",
        f"{MARKER} No-one knows",
        f"{MARKER} It is not.",
        # Another turn.
        f"{MARKER}<|im_end|>\n<|im_start|>assistant\nYes",
        # Without its choice the marker must have the line to itself.
        "Is the step correct? Yes, so far.\nNext",
        "I ask myself: Is the step correct? Yes",
    ],
)
def test_no_verdict(text: str) -> None:
    assert FORMAT.find(text) is None
    assert read_verdict(text, FORMAT, ()) is None


@pytest.mark.parametrize(
    "marker",
    [
        "Is the step correct (Yes or No)?",
        "is the step correct (yes/no)?",
        "Is the step correct(Yes/No)?",
        "Is the step correct (Yes / No)?",
        "Is the step correct (No/Yes)?",
        "Is the step correct (Y/N)?",
        "Is the step correct [Yes|No]?",
        "Is the step correct （Yes/No）？",
        "Is the step correct? (Yes/No)",
        "Is the step correct (Yes/No):",
        "Is the step correct (Yes/No) ?",
        "Is the step correct, Yes or No?",
        'Is the step correct ("Yes"/"No")?',
        "**Is the step correct** (**Yes**/**No**)?",
        "Is\u00a0the\nstep correct (Yes/No)?",
        "Is the step correct?",
        "### Is the step correct:",
    ],
)
def test_ways_to_write_the_marker(marker: str) -> None:
    for text in (f"{marker} No", f"{marker}\n\n**No**\n", f"2 + 2 is 4.\n{marker} No"):
        verdict = FORMAT.find(text)
        assert verdict is not None
        assert (verdict.yes, text[verdict.start : verdict.end]) == (False, "No")
        assert FORMAT.marker_pattern.search(text)


@pytest.mark.parametrize(
    "quoted",
    [
        f'I end with "{MARKER}" Yes or No.',
        f'I end with "{MARKER} Yes".',
        f"The last line is '{MARKER} Yes' or '{MARKER} No', they say.",
        f"I end with “{MARKER} Yes”.",
        f"Ich ende mit „{MARKER} Yes“.",
        f"Je finis par «{MARKER} Yes».",
        f"「{MARKER} Yes」",
        f"`{MARKER} Yes` is the form.",
        f"``{MARKER} Yes'' is the form.",
        f'"{MARKER}" Yes, they want to hear.',
        f'To "{MARKER}" Yes',
        '"Is the step correct? Yes"',
        f'"Write your analysis.\nThen: {MARKER} Yes"',
        f"> {MARKER} Yes",
        f"- > {MARKER} Yes",
        f"```\n{MARKER} Yes\n```",
        f"~~~text\n```\n{MARKER} Yes\n~~~",
        f"<think>\n{MARKER} Yes\n</think>",
        f"{MARKER} Yes\n</think>",
        f"[THINK]{MARKER} Yes[/THINK]",
        f"<|begin_of_thought|>{MARKER} Yes<|end_of_thought|>",
        f"Let me see.\n<think>\n{MARKER} Yes</think>",
        # Echoed without an answer.
        MARKER,
        f"The question is: {MARKER}",
    ],
)
def test_a_quoted_marker_is_none_and_the_real_one_after_it_counts(quoted: str) -> None:
    assert FORMAT.find(quoted) is None
    text = f"{quoted}\n{MARKER} No"
    assert FORMAT.find_all(text) == [Verdict(False, len(text) - 2, len(text))]


@pytest.mark.parametrize(
    "before",
    [
        "It's the students' f'(x), 5' by 6\" wide. ",
        "The \"last\" step and 'x'. ",
        "$f$'s root and **x**'s. ",
        "`x` and ``y'' and “z”. ",
        '"This quotation is never closed.\n\n',
        "'Nor is this.\n",
        "> This is quoted.\n",
        "```\ncode\n```\n",
        "| ",
        "1. **",
        "So: ",
        "It is written <think>, mind.\n",
        "<think>hm</think>",
    ],
)
def test_what_stands_before_the_marker_and_quotes_nothing(before: str) -> None:
    text = f"{before}{MARKER} No"
    assert FORMAT.find(text) == Verdict(False, len(text) - 2, len(text))


@pytest.mark.parametrize(
    "cut", ["<think>\n{} Yes", "[THINK] {} Yes", "Hm.\n<think>\n{} Yes.\n", "```\n{} Yes", '"{} Yes']
)
def test_thinking_and_quotes_that_are_cut_off_hold_no_verdict(cut: str) -> None:
    assert FORMAT.find(cut.format(MARKER)) is None


@pytest.mark.parametrize(
    "weak", ["Is the step correct? Yes", f'"{MARKER}" Yes', f"**“{MARKER}”** Yes.", f"`{MARKER}` Yes"]
)
def test_a_weaker_form_counts_only_where_there_is_no_other(weak: str) -> None:
    text = f"2 + 2 is 4.\n{weak}\nOr so it seems.\n"
    verdict = FORMAT.find(text)
    assert verdict is not None
    assert (verdict.yes, text[verdict.start : verdict.end]) == (True, "Yes")
    assert not FORMAT.is_final(text, verdict)
    text += f"{MARKER} No"
    assert FORMAT.find_all(text) == [Verdict(False, len(text) - 2, len(text))]
    # On a line with other words it does not count.
    assert FORMAT.find(f"So: {weak}") is None
    assert FORMAT.find(f"{weak}, they say") is None


def test_a_marker_of_ones_own_has_no_choice_to_leave_out() -> None:
    assert VerdictFormat(marker="Verdict:").find("Verdict\nYes") is None


def test_a_start_passes_over_earlier_markers_but_not_over_quotes() -> None:
    text = f"{MARKER} Yes. '{MARKER} Yes', {MARKER} No"
    assert FORMAT.find(text, 1) == Verdict(False, len(text) - 2, len(text))


def test_cases_from_public_reports(real_cases: Path) -> None:
    cases = real_cases / "verdicts.jsonl"
    rows = [json.loads(line) for line in cases.read_text().splitlines()]
    assert len(rows) >= 34
    names = {True: "yes", False: "no"}
    found = {row["id"]: FORMAT.find(row["text"]) for row in rows}
    wrong = [row["id"] for row in rows if names.get(getattr(found[row["id"]], "yes", None)) != row["expected"]]
    assert wrong == []


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
        ("\n", True),
        ("\nSo", True),
        # "**Yes** or **No**" may follow.
        ("*", False),
        ("**\n", True),
        (",", False),
        (", it", False),
        (", it ", True),
        (" or", False),
        (" or so ", True),
        (" and", False),
        ("}$", False),
        ("<|im_end|>", True),
        (" (", False),
        ("!", True),
    ],
)
def test_a_verdict_is_final_once_nothing_can_undo_it(rest: str, final: bool) -> None:
    text = f"{MARKER} Yes"
    verdict = FORMAT.find(text)
    assert verdict is not None
    assert FORMAT.is_final(text + rest, verdict) is final


def test_a_no_is_final_once_it_is_not_the_no_of_the_next_words() -> None:
    text = f"{MARKER} No"
    verdict = FORMAT.find(text)
    assert verdict is not None
    waiting = ["", " further", " arithmetic ", " arithmetic errors"]
    assert [FORMAT.is_final(text + rest, verdict) for rest in waiting] == [False] * 4
    assert FORMAT.find(f"{text} arithmetic errors") is None
    assert FORMAT.is_final(f"{text} because the ", verdict)
    assert FORMAT.is_final(f"{text}, the ", verdict)


#: Pieces of which verdicts, quotes, thinking and near misses arise.
FRAGMENTS = st.lists(
    st.sampled_from(
        [MARKER, f"{MARKER} Yes", f"{MARKER} No", f"{MARKER}\n**No**", "Is the step correct? ", "(Yes/No)?"]
    )
    | st.sampled_from(
        ["Yes", "No", "no", " or ", " and ", " / ", ", ", ".", "\n", "\n\n", " ", "thing", "error", "if", "s"]
    )
    | st.sampled_from(["'", '"', "“", "”", "‘", "’", "`", "```", "\n```\n", "\n> ", "**", "_", "-", "|", "~", "1. "])
    | st.sampled_from(["<", "</b>", "<|im_end|>", "\\text{", "}", "é", "\ufffd", "\u200b", "Answer: ", "[ ] ", "\r\n"])
    | st.sampled_from(["\n<think>\n", f"\n<think>\n{MARKER} Yes\n</think>\n"]),
    max_size=14,
).map("".join)


@given(FRAGMENTS)
def test_a_final_verdict_stands_whatever_follows_anywhere(text: str) -> None:
    found = [FORMAT.find(text[:length]) for length in range(len(text) + 1)]
    for length, verdict in enumerate(found):
        if verdict is not None and FORMAT.is_final(text[:length], verdict):
            assert set(found[length:]) == {verdict}
            break


@given(FRAGMENTS)
def test_every_verdict_is_an_answer_word_and_find_gives_the_first(text: str) -> None:
    every = FORMAT.find_all(text)
    assert all(text[verdict.start : verdict.end].casefold() == ("yes" if verdict.yes else "no") for verdict in every)
    assert FORMAT.find(text) == (every[0] if every else None)


@given(st.text(alphabet="Yes No/*\nthing.", max_size=8), st.text(alphabet="Yes No/*\nthing.", max_size=8))
def test_a_final_verdict_stands_whatever_follows(first: str, second: str) -> None:
    text = f"{MARKER} Yes{first}"
    verdict = FORMAT.find(text)
    if verdict is not None and FORMAT.is_final(text, verdict):
        assert FORMAT.find(text + second) == verdict


def test_a_record_is_disarmed() -> None:
    text = f"So 5.\n{MARKER} Yes\n**Is  the\nstep** correct? Yes\nIs the next step correct?"
    disarmed = FORMAT.disarmed(text)
    assert disarmed == (
        "So 5.\nIs-the-step-correct (Yes/No)? Yes\n**Is-the-step-correct? Yes\nIs the next step correct?"
    )
    assert FORMAT.find(disarmed) is None
    assert FORMAT.disarmed("It is the step.") == "It is the step."
    # "Answer: 4" is what solutions say.
    assert VerdictFormat(marker="Answer:").disarmed("Answer: 4") == "Answer: 4"


def test_a_record_without_an_answer_after_the_marker_stays() -> None:
    assert FORMAT.disarmed(f"{MARKER} I think so.") == f"{MARKER} I think so."
    ordinary = VerdictFormat(marker="The final answer is")
    assert ordinary.disarmed("The final answer is 42.") == "The final answer is 42."
    assert ordinary.disarmed("The final answer is No.") == "The-final-answer-is No."


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


@pytest.mark.parametrize(
    "text",
    [
        # Markers and fillers without end would be a regular expression's worst case.
        (MARKER + " *" * 1000) * 200,
        "Is the " * 100_000,
        MARKER * 15_000,
        f'"{MARKER}' * 15_000,
        f"{MARKER} Yes/No " * 12_000,
        MARKER + '"' * 400_000 + MARKER,
        MARKER + " '" * 200_000 + MARKER,
        MARKER + "[" * 400_000,
        MARKER + " " * 400_000 + "x",
        "```\n" * 100_000 + MARKER,
        "> \n" * 100_000 + MARKER,
        "<think>" * 60_000 + MARKER,
        "Is the step correct? " * 20_000,
        ("Is the step correct" + "_" * 12) * 12_000,
        f"{MARKER} the answer is" * 10_000,
        ('"' + MARKER + '"\n') * 10_000,
    ],
)
def test_hostile_text_takes_linear_time(text: str) -> None:
    start = time.perf_counter()
    assert FORMAT.find_all(text) == []
    # A second or two on a busy core; anything quadratic takes minutes.
    assert time.perf_counter() - start < 20


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
