"""PRM800K in the shape that OpenAI publishes it: rows made by hand after the repository's README."""

from __future__ import annotations

from typing import Any

import pytest

from rprm.data.stage_options import Neutral, StepOptions
from rprm.data.steps import Origin, prm800k_steps
from rprm.errors import InputError


def completion(text: str, rating: int | None, flagged: bool | None = None) -> dict[str, Any]:
    return {"text": text, "rating": rating, "flagged": flagged}


def place(
    *completions: dict[str, Any], chosen: int | None = None, human: dict[str, Any] | None = None
) -> dict[str, Any]:
    return {"completions": list(completions), "human_completion": human, "chosen_completion": chosen}


def record(*places: dict[str, Any], finish_reason: str = "solution", **changes: Any) -> dict[str, Any]:
    return {
        "labeler": "340d89bc-f5b7-45e9-b272-909ba68ee363",
        "timestamp": "2023-01-22T04:34:27.052924",
        "generation": 9,
        "is_quality_control_question": False,
        "is_initial_screening_question": False,
        "question": {
            "problem": "What is 2 + 2?",
            "ground_truth_solution": "$2 + 2 = \\boxed{4}$.",
            "ground_truth_answer": "4",
            "pre_generated_steps": ["I add.", "2 + 2 = 5."],
            "pre_generated_answer": "5",
            "pre_generated_verifier_score": 0.01,
        },
        "label": {"steps": list(places), "total_time": 278270, "finish_reason": finish_reason},
        **changes,
    }


def human(text: str, rating: int | None = None, flagged: bool | None = False) -> dict[str, Any]:
    """As phase 1 has them."""
    return {"text": text, "rating": rating, "source": "human", "flagged": flagged, "corrected_rating": None}


Found = list[tuple[str, tuple[str, ...], str, bool]]


def expand(row: dict[str, Any], **options: Any) -> tuple[Found, dict[str, int]]:
    origin = Origin("phase2_train-7", "phase2_train")
    steps = list(prm800k_steps(row, origin, StepOptions(**options)))
    assert all(step.problem == "What is 2 + 2?" for step in steps)
    return [(step.id, step.previous_steps, step.step, step.label) for step in steps], dict(origin.skipped)


def test_phase_2_a_solution_up_to_its_first_error_with_alternatives() -> None:
    found, skipped = expand(
        record(
            place(completion("I add.", 0), chosen=0),
            place(completion("2 + 2 is even.", 1), chosen=0),
            place(completion("So it is 5.", -1), completion("So it is 4.", 1), completion("Hm.", 0)),
            finish_reason="found_error",
        )
    )
    before = ("I add.", "2 + 2 is even.")
    assert found == [
        ("phase2_train-7-0-0", (), "I add.", True),
        ("phase2_train-7-1-0", ("I add.",), "2 + 2 is even.", True),
        ("phase2_train-7-2-0", before, "So it is 5.", False),
        ("phase2_train-7-2-1", before, "So it is 4.", True),
        ("phase2_train-7-2-2", before, "Hm.", True),
    ]
    assert skipped == {}


def test_phase_1_goes_on_with_what_was_chosen_or_written() -> None:
    row = record(
        place(completion("Multiply.", -1), completion("Add.", 1), chosen=1),
        place(completion("It is 5.", -1), completion("It is 6.", -1), human=human("It is 4.")),
        place(completion("# Answer\n\n4", 1), chosen=0),
        generation=None,
    )
    found, skipped = expand(row)
    assert found == [
        ("phase2_train-7-0-0", (), "Multiply.", False),
        ("phase2_train-7-0-1", (), "Add.", True),
        ("phase2_train-7-1-0", ("Add.",), "It is 5.", False),
        ("phase2_train-7-1-1", ("Add.",), "It is 6.", False),
        # Labelers wrote a step where every completion was wrong; it counts as correct, and its source tells.
        ("phase2_train-7-1-human", ("Add.",), "It is 4.", True),
        ("phase2_train-7-2-0", ("Add.", "It is 4."), "# Answer\n\n4", True),
    ]
    assert skipped == {}
    sources = [step.source for step in prm800k_steps(row, Origin("x", "phase1_train"), StepOptions())]
    assert sources == ["phase1_train"] * 4 + ["phase1_train:human", "phase1_train"]


def test_what_was_chosen_goes_before_what_was_written() -> None:
    found, _ = expand(
        record(
            place(completion("Add.", 1), chosen=0, human=human("Sum up.")),
            place(completion("It is 4.", 1), chosen=0),
        )
    )
    assert found[-1][1] == ("Add.",)
    assert [step for _, _, step, _ in found] == ["Add.", "It is 4."]


@pytest.mark.parametrize(
    ("neutral", "labels", "last_before"),
    [
        # 0 correct: all three; wrong: the solution has its first error there, and ends; dropped: it goes on after it.
        ("correct", {"Hm.": True, "It is 4.": True}, ("Hm.",)),
        ("wrong", {"Hm.": False}, ()),
        ("drop", {"It is 4.": True}, ("Hm.",)),
    ],
)
def test_neutral_steps(neutral: Neutral, labels: dict[str, bool], last_before: tuple[str, ...]) -> None:
    found, skipped = expand(
        record(place(completion("Hm.", 0), chosen=0), place(completion("It is 4.", 1), chosen=0)), neutral=neutral
    )
    assert {step: label for _, _, step, label in found} == labels
    assert found[-1][1] == last_before
    assert (
        skipped
        == {
            "correct": {},
            "wrong": {"steps after a wrong, flagged or unrated one": 1},
            "drop": {"steps rated neutral": 1},
        }[neutral]
    )


def test_nothing_after_a_wrong_step_that_was_chosen() -> None:
    found, skipped = expand(
        record(
            place(completion("It is 5.", -1), completion("It is 4.", 1), chosen=0),
            place(completion("Done.", 1), completion("Over.", 1), chosen=0),
            place(completion("Really.", 1), chosen=0),
        )
    )
    assert [step for _, _, step, _ in found] == ["It is 5.", "It is 4."]
    assert skipped == {"steps after a wrong, flagged or unrated one": 3}


@pytest.mark.parametrize(
    ("odd", "why"),
    [
        (completion("Hm.", None), "steps not rated"),
        (completion("Hm.", 1, flagged=True), "steps flagged"),
        (completion("", 1), "steps without text"),
        ({"text": None, "rating": 1}, "steps without text"),
    ],
)
def test_a_solution_ends_where_it_goes_on_with_a_step_that_nobody_vouches_for(odd: dict[str, Any], why: str) -> None:
    found, skipped = expand(
        record(place(odd, completion("Add.", 1), chosen=0), place(completion("It is 4.", 1), chosen=0))
    )
    assert [step for _, _, step, _ in found] == ["Add."]
    assert skipped == {why: 1, "steps after a wrong, flagged or unrated one": 1}
    # Beside the chosen one it costs itself alone.
    found, skipped = expand(
        record(place(odd, completion("Add.", 1), chosen=1), place(completion("It is 4.", 1), chosen=0))
    )
    assert [step for _, _, step, _ in found] == ["Add.", "It is 4."]
    assert skipped == {why: 1}


@pytest.mark.parametrize(
    ("change", "option"),
    [
        ({"is_quality_control_question": True}, "keep_quality_control"),
        ({"is_initial_screening_question": True}, "keep_quality_control"),
        ({"finish_reason": "give_up"}, "keep_unfinished"),
        ({"finish_reason": "bad_problem"}, "keep_unfinished"),
    ],
)
def test_solutions_that_openai_trained_without(change: dict[str, Any], option: str) -> None:
    row = record(place(completion("Add.", 1), chosen=0), **change)
    found, skipped = expand(row)
    assert found == []
    assert list(skipped.values()) == [1]
    found, skipped = expand(row, **{option: True})
    assert [step for _, _, step, _ in found] == ["Add."]
    assert skipped == {}


def test_a_labeler_who_left_at_once() -> None:
    gone = {"completions": None, "human_completion": None, "chosen_completion": None}
    assert expand(record(gone, finish_reason="give_up"), keep_unfinished=True) == ([], {})
    assert expand(record()) == ([], {})


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (place(completion("Add.", 2), chosen=0), "rating' must be less than or equal to 1, not 2"),
        (place(completion("Add.", True), chosen=0), "rating' must be a whole number, not True"),
        (place({"text": 4, "rating": 1}, chosen=0), "text' must be a text, not 4"),
        (place(completion("Add.", 1), chosen=1), "'chosen_completion' must name one of 1 completions"),
        (place(completion("Add.", 1), chosen=-1), "'chosen_completion' must name"),
        ({**place(), "completions": ["Add."]}, "completions[0]' (number 1) must be an object"),
        ({**place(), "completions": "Add."}, "completions' must be a list"),
        ({**place(), "human_completion": "Add."}, "human_completion' must be an object"),
        ("Add.", "must be an object"),
    ],
)
def test_rows_of_another_shape_are_refused_with_the_place(broken: Any, reason: str) -> None:
    with pytest.raises(InputError, match=r"steps\[1\]") as caught:
        expand(record(place(completion("Add.", 1), chosen=0), broken))
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"question": "What?"}, "'question' must be an object"),
        ({"question": {}}, "'question.problem' is missing"),
        ({"label": None}, "'label' must be an object"),
        ({"label": {"steps": None}}, "'label.steps' must be a list"),
    ],
)
def test_what_is_missing_is_said(change: dict[str, Any], reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        expand(record(**change))
