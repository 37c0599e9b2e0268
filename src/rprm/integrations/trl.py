"""TRL: a reward function of `GRPOTrainer` and `RLOOTrainer`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from rprm.errors import InputError
from rprm.integrations.answers import (
    AnyRewarder,
    RewardForm,
    answer_of,
    checked_form,
    judged,
    problem_of,
    rewarder_of,
    value_of,
)


class RewardFunction:
    """An asynchronous reward function; completions are judged while other reward functions run.

    A completion without a reward gets None, which TRL leaves out. The trainer logs `rewards/NAME/mean`, the share of
    completions without a reward (`NAME/unscored`), and, in the table of completions, their step rewards (`NAME_steps`).

    Args:
        form: "min", "last", "product" or "mean" of the step rewards; or "progress", the share of the steps before the
            first that is called wrong: a denser signal, to add to a reward of the outcome with a small weight.
        problem: the column of the data set that holds the problem; the prompt, or its last user message, by default.
        name: what the trainer calls it, `rprm_FORM` by default.

    Raises:
        InputError: an unknown form; called, a problem that is empty or a column that the data set lacks.
    """

    def __init__(
        self, prm: AnyRewarder, form: RewardForm = "min", *, problem: str | None = None, name: str | None = None
    ) -> None:
        self.prm = rewarder_of(prm)
        self.form = checked_form(form)
        self.problem = problem
        self.__name__ = name or f"rprm_{form}"

    async def __call__(
        self, prompts: Sequence[Any], completions: Sequence[Any], completion_ids: Sequence[Any] | None = None, *,
        log_extra: Callable[[str, list[Any]], None] | None = None,
        log_metric: Callable[[str, float], None] | None = None, **columns: Any,
    ) -> list[float | None]:  # fmt: skip
        if self.problem is not None and self.problem not in columns:
            raise InputError(f"the data set has no column {self.problem!r}: set problem to that of the problems")
        problems = prompts if self.problem is None else columns[self.problem]
        pairs = zip(problems, completions, strict=True)
        rewards = await judged(self.prm, [(problem_of(prompt), answer_of(reply)) for prompt, reply in pairs])
        values = [value_of(reward, self.form) for reward in rewards]
        if log_extra is not None:
            log_extra(f"{self.__name__}_steps", [str(reward.rewards) if reward else "" for reward in rewards])
        if log_metric is not None and values:
            log_metric(f"{self.__name__}/unscored", values.count(None) / len(values))
        return values
