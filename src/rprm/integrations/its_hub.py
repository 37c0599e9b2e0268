"""its_hub: the process and the outcome reward model of its algorithms. Nothing of its_hub is imported."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rprm.aggregation import Aggregation, aggregate, checked_aggregation
from rprm.integrations.answers import (
    AnyRewarder,
    RewardForm,
    answer_of,
    blocking,
    checked_form,
    filled,
    judged,
    problem_of,
    rewarder_of,
    steps_of,
    value_of,
)
from rprm.integrations.step_memory import CAPACITY, StepMemory


class ProcessReward:
    """The `AbstractProcessRewardModel` of `BeamSearch`, `ParticleFiltering` and their kind.

    They hand over partial answers and want one number for each. A step is judged once, when it is new.

    Args:
        aggregation: how step rewards become that number. "last", the default, rewards the newest step alone, as guided
            search does; the others the answer so far.
        step_token: what ends a step, as in the search's `StepGeneration`; by default steps are found as anywhere else
            in rprm.
        unscored: stands for a missing reward; 0 is the lowest, so that such an answer is ranked last.
        capacity: rewards of steps that are remembered.

    Raises:
        InputError: there is no such aggregation; called, a problem that is empty.
        EngineError: called, as `RPRM.score_step`.
    """

    def __init__(
        self, prm: AnyRewarder, *, aggregation: Aggregation = "last", step_token: str | None = None,
        unscored: float = 0.0, capacity: int = CAPACITY,
    ) -> None:  # fmt: skip
        self.memory = StepMemory(prm, capacity)
        self.aggregation = checked_aggregation(aggregation)
        self.step_token = step_token
        self.unscored = unscored

    async def ascore(self, prompt_or_messages: Any, steps: Sequence[str]) -> list[float]:
        """The rewards of partial answers (that is what `steps` holds), from 0 to 1."""
        problem = problem_of(_messages(prompt_or_messages))
        answers = [(problem, steps_of(answer, self.step_token)) for answer in steps]
        rewards = await self.memory.rewards(answers, last_only=self.aggregation == "last")
        return filled([aggregate(one, self.aggregation) for one in rewards], self.unscored)

    def score(self, prompt_or_messages: Any, steps: Sequence[str]) -> list[float]:
        return blocking(self.ascore(prompt_or_messages, steps))


class OutcomeReward:
    """The `AbstractOutcomeRewardModel` of `BestOfN`.

    Args:
        form: how step rewards become the reward of an answer.
        unscored: stands for a missing reward; 0 is the lowest, so that such an answer is ranked last.
    """

    def __init__(self, prm: AnyRewarder, form: RewardForm = "min", *, unscored: float = 0.0) -> None:
        self.prm = rewarder_of(prm)
        self.form = checked_form(form)
        self.unscored = unscored

    async def ascore(self, messages: Any, orchestrator: Any = None, **kwargs: Any) -> list[float] | float:
        """The reward of a conversation, or those of several, whose last messages are the answers; from 0 to 1."""
        given = _messages(messages)
        several = isinstance(given[0], Sequence)
        conversations = given if several else [given]
        answers = [(problem_of(one[:-1]), answer_of(one[-1:])) for one in conversations]
        values = [value_of(reward, self.form) for reward in await judged(self.prm, answers)]
        rewards = filled(values, self.unscored)
        return rewards if several else rewards[0]

    def score(self, messages: Any, **kwargs: Any) -> list[float] | float:
        return blocking(self.ascore(messages, **kwargs))


def _messages(given: Any) -> Any:
    """A text or a list of messages, also out of its_hub's `ChatMessages`."""
    if not hasattr(given, "to_chat_messages"):
        return given
    return given.to_prompt() if given.is_string else given.to_chat_messages()
