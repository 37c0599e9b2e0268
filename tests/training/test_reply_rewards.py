"""What replies are worth, by hand."""

from __future__ import annotations

import pytest

from rprm.critique import FORMATS
from rprm.prompts.template import CriticTemplate, PromptTemplate
from rprm.training.questions import CriticAsker, Reading, StepAsker, judged_reward
from rprm.training.rewards import distance_reward, form_reward, outcome_reward, overlong_reward, verdict_reward
from rprm.verdict import VerdictFormat


@pytest.mark.parametrize(
    ("told", "label", "reward"),
    [
        (True, True, 1.0),
        (False, True, -1.0),
        (None, True, -1.0),
        (None, False, -1.0),
        (False, False, 1.0),
        (2, 2, 1.0),
        (1, 2, -1.0),
        (-1, -1, 1.0),
        (0, -1, -1.0),
        (None, -1, -1.0),
    ],
)
def test_a_right_verdict(told: int | None, label: int, reward: float) -> None:
    assert verdict_reward(told, label) == reward


@pytest.mark.parametrize(
    ("told", "label", "reward"),
    [
        (2, 2, 1.0),
        (4, 2, 1.0 - 2 / 5),
        (0, 2, 1.0 - 2 / 5),
        (0, 4, 1.0 - 4 / 5),
        (-1, 2, -1.0),  # there is an error, and it is missed
        (-1, -1, 1.0),
        (0, -1, -1.0),  # a false alarm, however near
        (None, -1, -1.0),
        (None, 2, -1.0),
    ],
)
def test_the_distance_to_the_first_error(told: int | None, label: int, reward: float) -> None:
    """Five steps. FAPO: 1 - |told - label| / steps where both name a step."""
    assert distance_reward(told, label, 5) == pytest.approx(reward)


def test_the_outcome_alone() -> None:
    assert [outcome_reward(said, True) for said in (True, False, None)] == [1.0, -1.0, -1.0]
    assert [outcome_reward(said, False) for said in (True, False, None)] == [-1.0, 1.0, -1.0]


def test_form() -> None:
    assert (form_reward(True), form_reward(False)) == (0.0, -1.0)


def test_overlong_replies() -> None:
    """Of at most 100 tokens the last 20 cost: half of them half."""
    assert [overlong_reward(number, 100, 20) for number in (1, 80, 90, 95, 100)] == [0.0, 0.0, -0.5, -0.75, -1.0]
    assert overlong_reward(100, 100, 0) == 0.0


def test_overlong_replies_are_punished_as_trl_does() -> None:
    from trl.rewards import get_soft_overlong_punishment

    theirs = get_soft_overlong_punishment(100, 20)([[0] * number for number in range(1, 130)])
    assert [overlong_reward(number, 100, 20) for number in range(1, 130)] == pytest.approx(theirs)


# --- replies ------------------------------------------------------------------------------------------------------

STEP = StepAsker(PromptTemplate(name="s", user="{{problem}}{{steps}}", verdict=VerdictFormat(marker="Right (Yes/No)?")))


@pytest.mark.parametrize(
    ("reply", "told", "is_wellformed"),
    [
        ("It adds up.\nRight (Yes/No)? Yes", True, True),
        ("It does not.\nRight (Yes/No)? No.", False, True),
        ("It adds up.", None, False),
        ("Right (Yes/No)? Yes\nThat is why.", True, False),
        ("Right (Yes/No)? No\nWait.\nRight (Yes/No)? Yes", False, False),  # a judge stops at the first
    ],
)
def test_reading_an_analysis(reply: str, told: bool | None, is_wellformed: bool) -> None:
    assert STEP.read(reply, 3, ended=True) == Reading(told, told, is_wellformed)
    assert not STEP.read(reply, 3, ended=False).is_wellformed


@pytest.mark.parametrize(
    ("reply", "told", "calls_right"),
    [
        (r"Step 1 is wrong: \boxed{1}", 1, False),
        (r"\boxed{-1}", -1, True),
        (r"\boxed{3}", None, None),  # there are three steps
        ("no box", None, None),
    ],
)
def test_reading_a_critique(reply: str, told: int | None, calls_right: bool | None) -> None:
    asker = CriticAsker(CriticTemplate(name="c", user="{{problem}}{{steps}}"))
    assert asker.read(reply, 3, ended=True) == Reading(told, calls_right, told is not None)
    assert not asker.read(reply, 3, ended=False).is_wellformed


def test_tips_rewards_the_final_label_and_not_those_of_the_steps() -> None:
    reply = '{"step_labels": {"0": 1, "1": 0}, "final_label": 1}'
    form = FORMATS["json"]
    assert form.find(reply, 2) == 1
    assert form.calls_right(reply, 2) is True
    assert form.calls_right(reply, 3) is None, "a step without a label"
    reading = CriticAsker(CriticTemplate(name="c", user="{{problem}}{{steps}}", format="json")).read(
        reply, 2, ended=True
    )
    assert judged_reward("outcome", reading, label=1, num_steps=2) == 1.0
    assert judged_reward("outcome", reading, label=0, num_steps=2) == -1.0
    assert judged_reward("distance", reading, label=0, num_steps=2) == 0.5
    assert judged_reward("verdict", reading, label=0, num_steps=2) == -1.0
