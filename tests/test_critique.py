"""What critiques say (`rprm.critique`): the index that each format names, their majority, and when it stands."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rprm.critique import FORMATS, FormatName, is_settled, majority, num_more_votes
from rprm.stopping import StoppingRule

NO_ANSWER = None
YES, NO = r"\boxed{correct}", r"\boxed{incorrect}"


@pytest.mark.parametrize(
    ("critique", "index"),
    [
        (r"Paragraph 2 is wrong. \boxed{2}", 2),
        (r"All is well: \boxed{-1}", -1),
        (r"First I thought \boxed{0}. No: \boxed{1}", 1),  # the last box counts
        (r"**\boxed{ 3 }**.", 3),
        (r"\boxed{\text{-1}}", -1),
        (r"\boxed{paragraph_1}", 1),
        (r"\boxed{\text{paragraph 1}}", 1),
        (r"\boxed{−1}", -1),  # U+2212
        (r"\boxed{$0$}", 0),
        (r"<think>\boxed{3}</think> \boxed{0}", 0),
        (r"\boxed{4}", NO_ANSWER),  # of four paragraphs the last is 3
        (r"\boxed{-2}", NO_ANSWER),
        (r"\boxed{12}", NO_ANSWER),
        (r"\boxed{}", NO_ANSWER),
        (r"\boxed{1, 2}", NO_ANSWER),
        (r"\boxed{1.5}", NO_ANSWER),
        (r"\boxed{2} since they wrote \boxed{\frac{1}{2}}", NO_ANSWER),  # the last box is no index
        (r"\boxed{99999999999999999999}", NO_ANSWER),
        (r"The first error is in paragraph 2.", NO_ANSWER),
        (r"<think>It is paragraph \boxed{2}", NO_ANSWER),  # thinking that never ended
        (r"\boxed{2", NO_ANSWER),
        ("", NO_ANSWER),
    ],
)
def test_the_index_in_the_last_box(critique: str, index: int | None) -> None:
    assert FORMATS["boxed"].find(critique, 4) == index


@pytest.mark.parametrize(
    ("critique", "index"),
    [
        ('{"step_labels": {"0": 1, "1": 1, "2": 0, "3": 0}, "final_label": 0}', 2),
        ('So:\n```json\n{"step_labels": {"0": 1, "1": 1, "2": 1, "3": 1}, "final_label": 1}\n```', -1),
        ('{"step_labels": {"0": 1, "1": 0, "2": 1, "3": 1}, "final_label": 1}', 1),  # made good later: still an error
        ('{"step_labels": {"0": 1, "1": 1, "2": 1, "3": 1}, "final_label": 0}', -1),  # of the steps none is wrong
        ('{"step_labels": {"0": true, "1": "1", "2": -1, "3": "false"}, "final_label": "-1"}', 2),
        ('{"step_labels": {"3": 0, "2": 1, "1": 1.0, "0": 1}, "final_label": true}', 3),
        ('{"step_labels": [1, 0, 0, 0], "final_label": 0}', 1),
        ('{"step_labels": {"0": 0, "1": 0, "2": 0, "3": 0, "4": 0}, "final_label": 0}', 0),  # a fifth is not asked for
        ('{"final_label": 0} {"step_labels": [1, 1, 1, 1], "final_label": 1}', -1),  # the last one counts
        ('{"step_labels": [1, 0, 0, 0], "final_label": 0} So: {"final_label": 0}', 1),  # the last one with both keys
        ('{"step_labels": [1, 0, 0, 0], "final_label": 0} {"step_labels": [0]}', 1),
        ('{"step_labels": {"0": 1, "1": 0}, "final_label": 0}', NO_ANSWER),  # two of four steps have no label
        ('{"step_labels": {"1": 1, "2": 0, "3": 0, "4": 0}, "final_label": 0}', NO_ANSWER),  # counted from 1
        ('{"step_labels": {"0": 1, "1": 0.5, "2": 0, "3": 0}, "final_label": 0}', NO_ANSWER),
        ('{"step_labels": {"0": 1, "1": null, "2": 0, "3": 0}, "final_label": 0}', NO_ANSWER),
        ('{"step_labels": {"0": 1, "1": [0], "2": {}, "3": 0}, "final_label": 0}', NO_ANSWER),
        ('{"step_labels": {"0": 1, "1": 0, "2": 0, "3": 0}}', NO_ANSWER),
        ('{"step_labels": {"0": 1, "1": 0, "2": 0, "3": 0}, "final_label": 2}', NO_ANSWER),
        ('{"final_label": 3}', NO_ANSWER),
        ('{"step_labels": "1101", "final_label": 0}', NO_ANSWER),
        ('{"step_labels": [1, 1, 1, 1], "final_label": 1', NO_ANSWER),
        ("{" * 5000, NO_ANSWER),
    ],
)
def test_the_labels_of_a_json_object(critique: str, index: int | None) -> None:
    """As the reward and the evaluation of TIPS read them (RUCBM/TIPS, verl/utils/reward_score/math_process_judge.py):
    binary labels, -1 as 0, one for each step by its index from 0; both keys; the first 0 is the first error."""
    assert FORMATS["json"].find(critique, 4) == index


@pytest.mark.parametrize(
    ("critique", "index"),
    [
        (r"Step 1: fine. The step is \boxed{correct} Step 2: no. The step is \boxed{incorrect}", 1),
        (r"\boxed{correct} \boxed{correct} \boxed{Correct}", -1),
        (r"\boxed{\text{incorrect}}", 0),
        (r"\boxed{correct} \boxed{correct}", NO_ANSWER),  # of three steps
        (r"\boxed{correct} \boxed{correct} \boxed{correct} \boxed{incorrect}", NO_ANSWER),  # a fourth step of three
        (
            r"\boxed{correct.} \boxed{\textbf{correct}} \boxed{\textcolor{green}{\textbf{Correct}}}",
            -1,
        ),  # in other dress
        (r"\boxed{**correct**} \boxed{$\text{incorrect}$}", 1),
        (r"\boxed{this step is correct} \boxed{incorrect}", NO_ANSWER),  # prose: the second label may be of step 1 or 2
        (r"\boxed{\checkmark} \boxed{incorrect}", NO_ANSWER),
        (r"\boxed{not correct} \boxed{incorrect}", NO_ANSWER),
        (r"\boxed{Step 1 is right} \boxed{incorrect}", NO_ANSWER),
        (r"It is \boxed{\frac{1}{2}}. \boxed{correct} \boxed{incorrect}", 1),  # a result, too
        (r"\boxed{correct} \boxed{incorrect", NO_ANSWER),  # cut off
        (r"\boxed{correct} \boxed{incorrect} \boxed{hard to say}", 1),  # after the first wrong one nothing counts
        ("<think>\\boxed{correct} \\boxed{correct} \\boxed{incorrect}</think>\nIs all correct? \\boxed{incorrect}", 2),
        ("<think>\\boxed{correct} \\boxed{correct} \\boxed{correct}</think>\nIs all correct? \\boxed{correct}", -1),
        ("<think>\\boxed{correct} \\boxed{correct} \\boxed{correct}</think>\n\\boxed{incorrect}", NO_ANSWER),
        ("<think>\\boxed{correct} \\boxed{incorrect}</think>\n\\boxed{correct}", NO_ANSWER),
        ("<think>\\boxed{correct} \\boxed{correct}</think>\n\\boxed{incorrect}", NO_ANSWER),  # of what?
        ("<think>So it is.</think>\n\\boxed{incorrect}", 0),
        ("<think>\\boxed{incorrect}?</think>\n\\boxed{correct} \\boxed{incorrect}", 1),  # labels after the thinking
        (r"\boxed{correct} \boxed{correct} \boxed{incorrect} In all: \boxed{incorrect}", 2),
        (f"I will write {YES} or {NO} after each step. {YES} {YES} {YES}", -1),
        (f"I write {YES} where it is, {NO} where not. {YES} {YES} {YES}", NO_ANSWER),
        (r"\boxed{5} \boxed{correct} \boxed{incorrect}", 1),  # a result is no label
        ("", NO_ANSWER),
    ],
)
def test_a_label_for_each_step(critique: str, index: int | None) -> None:
    assert FORMATS["labels"].find(critique, 3) == index


@pytest.mark.parametrize("name", FORMATS)
def test_hostile_critiques_are_read_in_linear_time(name: FormatName) -> None:
    for text in (r"\boxed{" * 20_000, r"\boxed{{" * 10_000 + "}" * 10_000, "{" * 100_000, '{"final_label":' * 5_000):
        assert FORMATS[name].find(text, 3) is None


@pytest.mark.parametrize(
    ("votes", "index"),
    [
        ([1, 1, 2], 1),
        ([-1, 0, 0, -1], -1),  # a tie: the first that was voted for
        ([3, -1, -1, 3, 3], 3),
        ([None, None, 2], 2),  # no vote is none
        ([None, None], None),
        ([], None),
    ],
)
def test_the_majority_is_that_of_processbenchs_script(votes: list[int | None], index: int | None) -> None:
    """`Counter(preds).most_common(1)[0][0]` of those that are there (QwenLM/ProcessBench, code/run_eval.py)."""
    assert majority(votes) == index
    found = [vote for vote in votes if vote is not None]
    assert majority(votes) == (Counter(found).most_common(1)[0][0] if found else None)


def outcomes(votes: list[int | None], remaining: int) -> set[int | None]:
    """The majorities that the votes may come to: each of the rest is for one that has votes, a new one, or none."""
    choices = [*dict.fromkeys(votes), 90, 91, None]
    return {majority([*votes, *rest]) for rest in itertools.product(choices, repeat=remaining)}


@settings(deadline=None, max_examples=150)
@given(st.lists(st.sampled_from([-1, 0, 1, 2, None]), max_size=5), st.integers(1, 4))
def test_exact_stopping_never_changes_a_majority_and_never_waits(votes: list[int | None], further: int) -> None:
    number = len(votes) + further
    rule = StoppingRule(number, stopping="exact")
    may_be = outcomes(votes, further)
    # Settled as soon as every outcome agrees; where nobody voted, nothing is.
    assert is_settled(votes, rule) == (len(may_be) == 1)
    more = num_more_votes(votes, rule)
    assert (more == 0) == is_settled(votes, rule)
    choices = [*dict.fromkeys(votes), 90, None]
    if more > 1:
        # No outcome of fewer settles it: nothing that is drawn is needless.
        drawn = itertools.product(choices, repeat=more - 1)
        assert not any(is_settled([*votes, *some], rule) for some in drawn)


def test_none_stops_nothing() -> None:
    rule = StoppingRule(8, stopping="none")
    assert num_more_votes([], rule) == 8
    assert num_more_votes([2] * 7, rule) == 1
    assert num_more_votes([2] * 8, rule) == 0


def test_four_of_eight_alike_settle_the_majority() -> None:
    """After 2, 2, 2, 2 the four that remain cannot pass it: a tie goes to the first that was voted for."""
    rule = StoppingRule(8, stopping="exact")
    assert num_more_votes([], rule) == 4
    assert num_more_votes([2, 2, 2, 2], rule) == 0
    assert num_more_votes([1, 2, 2, 2, 2], rule) == 1  # 1 may still reach four, and was there first


def test_confident_stops_where_the_rest_will_hardly_change_it() -> None:
    """Three of three for 2, five remain: with 1 + 3 and 1 + 0 for the prior, X of 5 for it; it stands where
    5 - X < 4 + X, X >= 1. P(X = 0) = B(4, 6) / B(4, 1) = (3! 5! / 9!) / (1 / 4) = 0.0079."""
    votes: list[int | None] = [2, 2, 2]
    assert is_settled(votes, StoppingRule(8, stopping="confident", confidence=0.99))
    assert not is_settled(votes, StoppingRule(8, stopping="confident", confidence=0.993))
    assert not is_settled(votes, StoppingRule(8, stopping="exact"))


@pytest.mark.parametrize(
    ("name", "critique", "index"),
    [
        ("boxed", r"\boxed{<paragraph_2>}", 2),  # the tag of the prompt
        ("boxed", r"\boxed{- 1}", -1),
        ("boxed", r"\boxed{\mathbf{2}}", 2),
        ("json", '{"final_label": 0, "step_labels": [1, 0, 0], "evidence": [{"final_label": 1}]}', 1),
        ("labels", "\\boxed{correct} \\boxed{incorrect}\n</think>\nIs the solution correct? No", 1),  # in the thinking
    ],
)
def test_forms_of_an_answer(name: FormatName, critique: str, index: int) -> None:
    assert FORMATS[name].find(critique, 3) == index


def test_blanks_in_a_box_cost_nothing() -> None:
    for text in ("\\boxed{" + " " * 50_000 + "x}", "\\boxed{1" + " " * 50_000 + "x}", "\\boxed{" + "$" * 50_000 + "}"):
        assert FORMATS["boxed"].find(text, 3) is None
