"""verifiers: a reward of its tasks. Nothing of verifiers is imported."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from rprm.integrations.answers import AnyRewarder, RewardForm, checked_form, judged, problem_of, rewarder_of, value_of


def reward(
    prm: AnyRewarder, form: RewardForm = "min", *, problem: str | None = None
) -> Callable[[Any, Any], Coroutine[Any, Any, dict[str, float]]]:
    """An asynchronous function of a task's data and a trace, for `rewards` in a configuration (`fn = "FILE.py:NAME"`)
    and for methods under `@vf.reward`.

    It gives `{"rprm_FORM": reward}`, from 0 to 1, for the last reply of the trace; and {} where there is none, so that
    verifiers records none.

    Args:
        form: how step rewards become the reward of an answer.
        problem: the field of the task's data that holds the problem; its prompt, or the last user message, by default.

    Raises:
        InputError: an unknown form; called, a problem that is empty.
    """
    name, scorer = f"rprm_{checked_form(form)}", rewarder_of(prm)

    async def rprm_reward(task: Any, trace: Any) -> dict[str, float]:
        text = problem_of(task.prompt if problem is None else getattr(task, problem))
        (found,) = await judged(scorer, [(text, trace.last_reply)])
        value = value_of(found, form)
        return {} if value is None else {name: value}

    return rprm_reward
