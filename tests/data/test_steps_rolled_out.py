"""Labelled steps of sets whose labels are completions': ER-PRM, RLHFlow, MATH-APS; and labels of final answers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from rprm.data.stage_options import StepOptions
from rprm.data.steps import FORMATS, Origin
from rprm.errors import InputError
from rprm.records import LabelledStep

LATER = "steps after the first wrong one"


def read(name: str, row: dict[str, Any], **options: Any) -> tuple[list[LabelledStep], dict[str, int]]:
    origin = Origin("set-3", "set")
    steps: Iterator[LabelledStep] = FORMATS[name][1](row, origin, StepOptions(**options))
    return list(steps), dict(origin.skipped)


def short(steps: list[LabelledStep]) -> list[tuple[tuple[str, ...], str, bool, float | None]]:
    return [(step.previous_steps, step.step, step.label, step.soft) for step in steps]


class TestERPRM:
    #: The README's example, cut short (hanningzhang/ER-PRM): annotations, a tag after each step.
    TEXT = (
        "How much more does she spend? Step 1: 3 + 5 = <<3+5=8>>8 hours. ки\nStep 2: 40 * 3 = 120. ки\n"
        "Step 3: The answer is: 13 ки"
    )

    def test_soft_labels_are_kept_and_the_label_is_what_is_above(self) -> None:
        steps, skipped = read("er-prm", {"text": self.TEXT, "value": [1.0, 0.3, 0]})
        assert steps[0].problem == "How much more does she spend?"
        assert short(steps) == [
            ((), "3 + 5 = 8 hours.", True, 1.0),
            (("3 + 5 = 8 hours.",), "40 * 3 = 120.", True, 0.3),
            (("3 + 5 = 8 hours.", "40 * 3 = 120."), "The answer is: 13", False, 0.0),
        ]
        assert skipped == {}
        steps, skipped = read("er-prm", {"text": self.TEXT, "value": [1.0, 0.3, 0]}, above=0.3)
        assert [(step.label, step.soft) for step in steps] == [(True, 1.0), (False, 0.3)]
        assert skipped == {LATER: 1}
        # Its own script leaves the last tag off.
        steps, _ = read("er-prm", {"text": self.TEXT.removesuffix(" ки"), "value": [1, 1, 1]})
        assert [step.label for step in steps] == [True] * 3

    @pytest.mark.parametrize(
        ("change", "reason"),
        [
            ({"value": [1.0]}, "a list of 3 soft labels, one a step, not 1"),
            ({"value": [1.0, 1.0, 1.5]}, "less than or equal to 1"),
            ({"value": [1.0, 1.0, None]}, "value"),
            ({"text": "p ки"}, "a list of 1 soft labels"),
            ({"text": "Step 1: a ки Step 2: b ки Step 3: c ки"}, "no problem before 'Step 1:'"),
        ],
    )
    def test_what_is_wrong_is_said(self, change: dict[str, Any], reason: str) -> None:
        with pytest.raises(InputError, match=reason):
            read("er-prm", {"text": self.TEXT, "value": [1.0, 0.5, 0.0], **change})


def turns(*texts: str) -> dict[str, Any]:
    roles = ("user", "assistant")
    return {"conversations": [{"role": roles[at % 2], "content": text} for at, text in enumerate(texts)]}


class TestRLHFlow:
    def test_each_turn_is_a_step(self) -> None:
        row = turns("How many? Step 1: a", "+", "Step 2: b", "-", "Step 3: c", "-")
        steps, skipped = read("rlhflow", row)
        assert steps[0].problem == "How many?"
        assert short(steps) == [((), "a", True, None), (("a",), "b", False, None)]
        assert skipped == {LATER: 1}
        assert len(read("rlhflow", row, after_error=True)[0]) == 3

    def test_where_nothing_divides_the_problem_from_the_first_step_they_stay_together(self) -> None:
        steps, skipped = read("rlhflow", turns("How many? First, a.", "+", "Then b.", "+", "So c.", "-"))
        assert {step.problem for step in steps} == {"How many? First, a."}
        assert short(steps) == [((), "Then b.", True, None), (("Then b.",), "So c.", False, None)]
        assert skipped == {"first steps that nothing divides from the problem": 1}
        # What follows a wrong first step has no label to use.
        steps, skipped = read("rlhflow", turns("How many? First, a.", "-", "Then b.", "-"))
        assert (steps, skipped[LATER]) == ([], 1)

    @pytest.mark.parametrize(
        ("row", "reason"),
        [
            (turns("p Step 1: a", "+", "b"), "alternate"),
            (turns("p Step 1: a"), "at least one|at least 2"),
            ({"conversations": [{"role": "assistant", "content": "+"}, {"role": "user", "content": "a"}]}, "alternate"),
            (turns("p Step 1: a", "+", "b", "good"), "the answer to step 2 must be . or -, not 'good'"),
            (turns("p Step 1: a, as in Step 1: b", "+"), "found 2"),
            (turns("Step 1: a", "+"), "no problem"),
            (turns("p, a", "+", " ", "+"), "a turn is empty"),
        ],
    )
    def test_what_is_wrong_is_said(self, row: dict[str, Any], reason: str) -> None:
        with pytest.raises(InputError, match=reason):
            read("rlhflow", row)


class TestMathAPS:
    def test_a_beginning_with_one_label_is_one_step(self) -> None:
        # As the hub has them: no tag in `process`, one element in `label` (openreasoner/openr, issue 94).
        row = {"question": "How many?", "process": "First, a.\n\nThen b.", "label": ["-"]}
        assert short(read("math-aps", row)[0]) == [((), "First, a.\n\nThen b.", False, None)]

    def test_steps_that_tags_end(self) -> None:
        tagged = "a \n\n\n\n\n b \n\n\n\n\n c \n\n\n\n\n"
        steps, skipped = read("math-aps", {"question": "p", "process": tagged, "label": ["+", "-", "-"]})
        assert short(steps) == [((), "a", True, None), (("a",), "b", False, None)]
        assert skipped == {LATER: 1}
        row = {"question": "p", "process": "Step 1: a ки\nStep 2: b ки", "labels": [1, 0]}
        assert short(read("math-aps", row)[0]) == [((), "a", True, 1.0), (("a",), "b", False, 0.0)]
        # A word in Cyrillic is no tag.
        row = {"question": "p", "process": "рубашки ки", "label": [1]}
        assert short(read("math-aps", row)[0]) == [((), "рубашки", True, 1.0)]

    def test_shares_are_soft_labels(self) -> None:
        row = {"question": "p", "process": "a ки b ки", "label": [0.9, 0.5]}
        assert [(step.label, step.soft) for step in read("math-aps", row, above=0.5)[0]] == [(True, 0.9), (False, 0.5)]

    def test_the_root_of_a_tree_is_the_problem(self) -> None:
        row = {"question": "How many?", "process": "How many? \n\n\n\n\n a \n\n\n\n\n", "label": ["+", "-"]}
        assert short(read("math-aps", row)[0]) == [((), "a", False, None)]

    @pytest.mark.parametrize(
        ("change", "reason"),
        [
            ({"label": ["+", "-"]}, "a list of 1 labels, one for each step, not 2"),
            ({"label": ["good"]}, "label"),
            ({"label": []}, "at least one"),
            ({"process": " ки "}, "a list of 0 labels"),
        ],
    )
    def test_what_is_wrong_is_said(self, change: dict[str, Any], reason: str) -> None:
        with pytest.raises(InputError, match=reason):
            read("math-aps", {"question": "p", "process": "a", "label": ["+"], **change})


class TestOutcomes:
    @pytest.mark.parametrize("field", ["label", "final_answer_correct", "outcome", "is_correct"])
    def test_a_whole_solution_is_right_or_wrong(self, field: str) -> None:
        for is_right in (True, False):
            steps, _ = read("solutions", {"problem": "p", "steps": ["a", "b"], field: is_right})
            assert short(steps) == [((), "a\n\nb", is_right, None)]
            assert (steps[0].id, steps[0].source) == ("set-3-0-whole", "set:outcome")

    def test_steps_of_right_ones_are_right_and_of_wrong_ones_nothing_is_known(self) -> None:
        row = {"problem": "p", "steps": ["a", "b"], "final_answer_correct": True}
        assert short(read("solutions", row, outcomes="steps")[0]) == [((), "a", True, None), (("a",), "b", True, None)]
        steps, skipped = read("solutions", row | {"final_answer_correct": False}, outcomes="steps")
        assert steps == []
        assert skipped == {"solutions with a wrong final answer: no step of theirs is known to be wrong": 1}

    def test_the_first_error_is_more_than_the_outcome(self) -> None:
        row = {"problem": "p", "steps": ["a", "b"], "label": 1, "final_answer_correct": True, "soft": [0.5, 0.0]}
        assert short(read("solutions", row)[0]) == [((), "a", True, 0.5), (("a",), "b", False, 0.0)]

    def test_what_is_not_known_gives_nothing(self) -> None:
        row = {"problem": "p", "steps": ["a"], "label": None, "final_answer_correct": True, "soft": [None]}
        assert read("solutions", row) == ([], {"solutions whose first error is not known": 1})
        row = {"problem": "p", "steps": ["a"], "label": None, "final_answer_correct": None}
        assert read("solutions", row) == ([], {"solutions of which nothing is known": 1})
        with pytest.raises(InputError, match="'label' is missing"):
            read("solutions", {"problem": "p", "steps": ["a"]})
