"""inspect_ai: a scorer of solutions by their steps."""

from __future__ import annotations

from typing import Any

from inspect_ai.scorer import Score, Scorer, Target, mean, scorer, stderr
from inspect_ai.solver import TaskState

from rprm.integrations.answers import RewardForm, checked_form, judged, loaded, value_of
from rprm.records import SolutionReward


def _step_rewards(model: str, form: RewardForm = "min", problem: str | None = None, **options: Any) -> Scorer:
    """A scorer whose value is the reward of the completion, from 0 to 1; the target is not looked at.

    A completion without a reward is unscored (`Score.unscored`): metrics leave it out. The explanation has the reward
    of every step and an analysis of the first one called wrong, the metadata the rewards and the index of that step.

    Args:
        model: the rewarder's spec, a text, so that the log says it and can be scored again.
        form: how step rewards become the reward of a completion.
        problem: the field of the sample's metadata that holds the problem; its input by default.
        options: those of `RPRM`.
    """
    checked_form(form)
    prm = loaded(model, **options)

    async def score(state: TaskState, target: Target) -> Score:
        text = state.input_text if problem is None else str(state.metadata[problem])
        (reward,) = await judged(prm, [(text, state.output.completion)])
        if reward is None:
            return Score.unscored(reason="no_response", explanation="The completion has no steps.")
        known: dict[str, Any] = {
            "explanation": _explanation(reward),
            "metadata": {"step_rewards": reward.rewards, "first_error": reward.first_error},
        }
        value = value_of(reward, form)
        return Score.unscored(reason="grader_failed", **known) if value is None else Score(value=value, **known)

    return score


def _explanation(reward: SolutionReward) -> str:
    lines = []
    for step in reward.steps:
        said = f"no reward, {step.failure}" if step.reward is None else f"{step.reward:.2f}"
        lines.append(f"Step {step.step_index + 1}: {said}")
    if reward.first_error is not None and reward.first_error >= 0:
        lines.append(f"First error: step {reward.first_error + 1}.")
        wrong = [one.text for one in reward.steps[reward.first_error].analyses if one.verdict is False]
        lines += ["", *wrong[:1]]
    return "\n".join(lines)


step_rewards = scorer(metrics=[mean(), stderr()], name="step_rewards")(_step_rewards)
