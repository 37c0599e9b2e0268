"""Labelled steps from solutions with labels: TRL's rows, earliest errors, Math-Shepherd."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rprm.data import steps as formats
from rprm.data.stage_options import StepOptions
from rprm.data.steps import Expanded, Origin, read_steps
from rprm.errors import InputError
from rprm.reading import Source
from rprm.records import LabelledStep

LATER = "steps after the first wrong one"


def origin() -> Origin:
    return Origin("set-3", "set")


def stepwise_steps(row: dict[str, Any], origin: Origin, **options: Any) -> list[LabelledStep]:
    return list(formats.stepwise_steps(row, origin, StepOptions(**options)))


def solution_steps(row: dict[str, Any], origin: Origin) -> list[LabelledStep]:
    return list(formats.solution_steps(row, origin, StepOptions()))


def math_shepherd_steps(row: dict[str, Any], origin: Origin, **options: Any) -> list[LabelledStep]:
    return list(formats.math_shepherd_steps(row, origin, StepOptions(**options)))


def short(steps: list[LabelledStep]) -> list[tuple[tuple[str, ...], str, bool]]:
    return [(step.previous_steps, step.step, step.label) for step in steps]


class TestStepwise:
    def test_up_to_the_first_wrong_step(self) -> None:
        row = {"prompt": "p", "completions": ["a", "b", "c", "d"], "labels": [True, False, True, False]}
        taken = origin()
        steps = stepwise_steps(row, taken)
        assert short(steps) == [((), "a", True), (("a",), "b", False)]
        assert [step.id for step in steps] == ["set-3-0", "set-3-1"]
        assert taken.skipped == {LATER: 2}

    @pytest.mark.parametrize("name", ["problem", "question"])
    def test_sets_that_call_it_a_problem_with_steps(self, name: str) -> None:
        row = {name: "p", "steps": ["a", "b", "c"], "labels": [1, 0, 1]}
        assert formats.format_of(row) == "stepwise"
        assert short(stepwise_steps(row, origin())) == [((), "a", True), (("a",), "b", False)]
        assert stepwise_steps(row, origin())[0].problem == "p"
        with pytest.raises(InputError, match="a list of 3 labels, one for each completion, not 2"):
            stepwise_steps(row | {"labels": [1, 0]}, origin())

    def test_after_it_where_asked(self) -> None:
        row = {"prompt": "p", "completions": ["a", "b", "c"], "labels": [0, 1, 0.0]}
        assert short(stepwise_steps(row, origin(), after_error=True)) == [
            ((), "a", False), (("a",), "b", True), (("a", "b"), "c", False)
        ]  # fmt: skip

    def test_steps_that_carry_their_number_lose_it(self) -> None:
        row = {"prompt": "p", "completions": ["Step 1: a", "step 2 : b"], "labels": [True, True]}
        assert [step.step for step in stepwise_steps(row, origin())] == ["a", "b"]
        # No numbering: the second is called 3.
        row = {"prompt": "p", "completions": ["Step 1: a", "Step 3: b"], "labels": [True, True]}
        assert [step.step for step in stepwise_steps(row, origin())] == ["Step 1: a", "Step 3: b"]
        # A number and nothing else is what the step says.
        row = {"prompt": "p", "completions": ["Step 1:", "Step 2: b"], "labels": [True, True]}
        assert [step.step for step in stepwise_steps(row, origin())] == ["Step 1:", "Step 2: b"]

    @pytest.mark.parametrize(
        ("change", "reason"),
        [
            ({"labels": [True]}, "a list of 2 labels, one for each completion, not 1"),
            ({"labels": None}, "'labels' must be a list"),
            ({"labels": [True, None]}, r"labels\[1\]\' \(number 2\) must be true or false"),
            ({"labels": [True, 0.5]}, r"labels\[1\]\' \(number 2\) must be true or false"),
            ({"labels": [float("nan"), True]}, r"labels\[0\]\' \(number 1\) must be true or false"),
            ({"labels": ["True", True]}, r"labels\[0\]\' \(number 1\) must be true or false"),
            ({"completions": []}, "'completions' must be a list of at least one"),
            ({"completions": ["a", " "]}, r"completions\[1\]' \(number 2\) must be a text that is not empty"),
            ({"prompt": [{"role": "user", "content": "p"}]}, "'prompt' must be a text"),
        ],
    )
    def test_what_is_wrong_is_said(self, change: dict[str, Any], reason: str) -> None:
        with pytest.raises(InputError, match=reason):
            stepwise_steps({"prompt": "p", "completions": ["a", "b"], "labels": [True, False], **change}, origin())

    @given(st.lists(st.booleans(), min_size=1, max_size=8))
    def test_one_wrong_step_at_most_and_it_is_the_last(self, labels: list[bool]) -> None:
        row = {"prompt": "p", "completions": [f"s{index}" for index in range(len(labels))], "labels": labels}
        steps = stepwise_steps(row, taken := origin())
        assert [step.label for step in steps[:-1]] == [True] * (len(steps) - 1)
        assert steps[-1].label is all(labels)
        assert len(steps) + taken.skipped[LATER] == len(labels)
        assert [step.step_index for step in steps] == list(range(len(steps)))


class TestSolutions:
    def test_the_labels_step_is_wrong_and_those_before_it_are_right(self) -> None:
        row = {"id": "gsm8k-40", "problem": "p", "steps": ["a", "b", "c", "d"], "label": 2}
        taken = origin()
        steps = solution_steps(row, taken)
        assert short(steps) == [((), "a", True), (("a",), "b", True), (("a", "b"), "c", False)]
        assert [step.id for step in steps] == ["gsm8k-40-0", "gsm8k-40-1", "gsm8k-40-2"]
        assert taken.skipped == {LATER: 1}

    def test_all_right(self) -> None:
        row = {"problem": "p", "steps": ["a", "b"], "label": -1}
        assert short(solution_steps(row, origin())) == [((), "a", True), (("a",), "b", True)]

    @pytest.mark.parametrize(
        ("label", "reason"),
        [(None, "'label' is missing"), (2, "'label' must be the 0-based index"), ("1", "'label' must be")],
    )
    def test_a_label_is_needed(self, label: Any, reason: str) -> None:
        with pytest.raises(InputError, match=reason):
            solution_steps({"problem": "p", "steps": ["a", "b"], "label": label}, origin())

    def test_real_processbench_items(self, real_data: Path) -> None:
        source = Source(str(real_data / "processbench" / "gsm8k.jsonl"))
        solutions = [row.value for row in source.rows()]  # type: ignore[union-attr]
        rows = [row for row in read_steps(source) if isinstance(row, Expanded)]
        assert len(rows) == len(solutions)
        for row, solution in zip(rows, solutions, strict=True):
            assert row.format == "solutions"
            # Steps up to the label, or all of them; the wrong one is the labelled one.
            assert len(row.steps) == (len(solution["steps"]) if solution["label"] == -1 else solution["label"] + 1)
            assert row.steps[-1].label is (solution["label"] == -1)


class TestMathShepherd:
    INPUT = (
        "Janet has 3 ducks. How many legs? Step 1: A duck has 2 legs. ки\nStep 2: 3 ducks have 3*2 = 5 legs. ки\n"
        "Step 3: The answer is: 5 ки"
    )

    def row(self, marks: str) -> dict[str, Any]:
        label = self.INPUT
        for mark in marks:
            label = label.replace("ки", mark, 1)
        return {"input": self.INPUT, "label": label, "task": "GSM8K"}

    def test_problem_and_steps_are_taken_apart(self) -> None:
        steps = math_shepherd_steps(self.row("+++"), origin())
        assert {step.problem for step in steps} == {"Janet has 3 ducks. How many legs?"}
        assert {step.source for step in steps} == {"set:GSM8K"}
        first, second, third = "A duck has 2 legs.", "3 ducks have 3*2 = 5 legs.", "The answer is: 5"
        assert short(steps) == [((), first, True), ((first,), second, True), ((first, second), third, True)]

    def test_up_to_the_first_minus(self) -> None:
        taken = origin()
        assert [step.label for step in math_shepherd_steps(self.row("+-+"), taken)] == [True, False]
        assert taken.skipped == {LATER: 1}
        labels = [step.label for step in math_shepherd_steps(self.row("+-+"), origin(), after_error=True)]
        assert labels == [True, False, True]

    def test_signs_and_numbers_in_the_text_are_no_marks(self) -> None:
        text = "Compute 5 - 3 + 1. Step 1: 5 - 3 = 2 ки\nStep 2: 2 + 1 = 3, as Step 1: says ки"
        row = {"input": text, "label": text.replace("ки", "+", 1).replace("ки", "-", 1), "task": "MATH"}
        steps = math_shepherd_steps(row, origin())
        assert steps[0].problem == "Compute 5 - 3 + 1."
        assert [(step.step, step.label) for step in steps] == [
            ("5 - 3 = 2", True), ("2 + 1 = 3, as Step 1: says", False)
        ]  # fmt: skip

    def test_annotations_of_calculations_are_no_part_of_a_step(self) -> None:
        text = "How many? Step 1: She spends 40 * 3 = <<40*3=120>>120. ки\nStep 2: The answer is: 120 ки"
        steps = math_shepherd_steps({"input": text, "label": text.replace("ки", "+"), "task": "GSM8K"}, origin())
        assert steps[0].step == "She spends 40 * 3 = 120."
        row = {"prompt": "p", "completions": ["Step 1: 40 * 3 = <<40*3=120>>120.", "Step 2: Done."], "labels": [1, 1]}
        assert [step.step for step in stepwise_steps(row, origin())] == ["40 * 3 = 120.", "Done."]

    def test_an_untagged_end_has_no_label(self) -> None:
        row = self.row("+++")
        taken = origin()
        steps = math_shepherd_steps(
            {**row, "input": row["input"] + "\nStep 4: Done", "label": row["label"] + "\nStep 4: Done"}, taken
        )
        assert len(steps) == 3
        assert taken.skipped == {"steps without a tag": 1}

    @pytest.mark.parametrize(
        ("text", "label", "reason"),
        [
            ("p Step 1: a ки", "p Step 1: a ки", "it differs at step 1"),
            ("p Step 1: a ки", "p Step 1: b +", "it differs at step 1"),
            ("p Step 1: a ки\nStep 2: b ки", "p Step 1: a +\nStep 2: b", "it differs at step 2"),
            ("p Step 1: a ки", "p Step 1: a + and more", "'label' must end as 'input' does"),
            ("p Step 1: a", "p Step 1: a", "no step tag"),
            ("p a ки", "p a +", "one 'Step 1:' in the first step; found 0"),
            # A tag within the problem, as a few dozen published rows have it.
            ("p ки? Step 1: a ки", "p +? Step 1: a +", "found 0"),
            ("Step 1: a ки", "Step 1: a +", "no problem before"),
            ("p Step 1: ки\nStep 2: b ки", "p Step 1: +\nStep 2: b +", "step 1 is empty"),
            ("", "", "'input' must be a text"),
        ],
    )
    def test_what_is_wrong_is_said(self, text: str, label: str, reason: str) -> None:
        with pytest.raises(InputError, match=reason):
            math_shepherd_steps({"input": text, "label": label}, origin())
