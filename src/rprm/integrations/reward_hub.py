"""reward_hub: a process reward model that is called as its own are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rprm.aggregation import Aggregation, aggregate
from rprm.errors import InputError
from rprm.integrations.answers import AnyRewarder, answer_of, blocking, filled, problem_of, steps_of
from rprm.integrations.step_memory import StepMemory

#: Its names of aggregations.
_HOW: dict[str, Aggregation] = {"last": "last", "min": "min", "prod": "product", "model": "last"}


class ProcessRewardModel:
    """The `AbstractProcessRewardModel` of reward_hub, in both forms of its call: of conversations, as its models have
    it, and of a question with responses, as its base class has it.

    Args:
        unscored: stands for a missing reward of a step; 0 is the lowest.
    """

    def __init__(self, prm: AnyRewarder, *, unscored: float = 0.0) -> None:
        self.memory = StepMemory(prm)
        self.unscored = unscored

    def score(
        self, messages: Any, responses: Sequence[str] | None = None, *, step_sep: str = "\n\n",
        step_separator: str | None = None, aggregation_method: Any = "last", return_full_prm_result: bool = False,
        max_input_tokens: int | None = None, num_workers: int | None = None, use_tqdm: bool = False,
    ) -> list[Any]:  # fmt: skip
        """The rewards of answers, from 0 to 1, or `PRMResult`s.

        Args:
            messages: a conversation that ends in an answer, or several; or a question.
            responses: answers to the question.
            step_sep, step_separator: what separates steps; reward_hub has both names.
            aggregation_method: "last", "min", "prod", or "model", for which an answer is one step.
            max_input_tokens, num_workers, use_tqdm: not used; nothing is cut off.
        """
        method = getattr(aggregation_method, "value", aggregation_method) or "last"
        if method not in _HOW:
            raise InputError(f"there is no aggregation_method {method!r}; methods are last, min, prod, model")
        if responses is not None:
            answers = [(problem_of(messages), response) for response in responses]
        else:
            conversations = messages if isinstance(messages[0], list) else [messages]
            answers = [(problem_of(one[:-1]), answer_of(one[-1:])) for one in conversations]
        solutions = []
        for problem, answer in answers:
            steps = steps_of(answer, step_separator or step_sep)
            solutions.append((problem, ["\n\n".join(steps)] if method == "model" and steps else steps))
        rewards = blocking(self.memory.rewards(solutions))
        if not return_full_prm_result:
            return filled([aggregate(one, _HOW[method]) for one in rewards], self.unscored)
        from reward_hub.base import PRMResult

        return [PRMResult(filled(one or [None], self.unscored), method) for one in rewards]
