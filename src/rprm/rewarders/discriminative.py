"""What every discriminative PRM is to its callers: a `StepRewarder`, wherever its network runs."""

from __future__ import annotations

import asyncio
import inspect
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Self

from rprm.engines.base import check_least
from rprm.errors import EngineError, RequestRefused
from rprm.ledger import Ledger, paid_for
from rprm.records import Solution, SolutionReward, StepReward
from rprm.rewarders.base import first_error
from rprm.rewarders.layouts import LAYOUTS, Layout, LayoutName
from rprm.rewarders.rendering import Rendered

#: Layouts of released models by a part of their names.
_NAMES: dict[str, LayoutName] = {
    "qwen2.5-math-prm": "qwen",
    "qwen2.5-math-7b-prm800k": "qwen",
    "math-shepherd": "math-shepherd",
    "skywork-o1-open-prm": "skywork",
    "rlhflow": "rlhflow",
    "llama3.1-8b-prm": "rlhflow",
    "pure-prm": "trl",
    "universal-prm": "universal",
    "llemma": "llemma",
    "reasoneval": "reasoneval",
    "math-psa": "math-psa",
}


class StepClassifier(ABC):
    """A discriminative PRM.

    Attributes:
        layout: how solutions are laid out; there once it is started.

    Args:
        target: a folder, a hub id, or the name that a server has for the model.
        spec: what it was made from, for messages.
        threshold: a step whose reward is below it is called wrong; 0.5 where nothing says another.
        context_length: a longer solution is refused.
        concurrency: solutions to keep under way.
        options: of the layout, by name: `lines`, `separator`, `decision`; see there.

    Raises:
        EngineError: an option has no sensible value.
    """

    layout: Layout

    def __init__(
        self,
        target: str,
        spec: str,
        *,
        threshold: float | None,
        context_length: int | None,
        concurrency: int,
        options: dict[str, Any],
    ) -> None:
        check_least(spec, concurrency=concurrency, context_length=context_length)
        if threshold is not None:
            check_threshold(threshold, spec)
        self.target = target
        self.spec = spec
        self.concurrency = concurrency
        self._threshold = threshold
        self._context_length = context_length
        self._layout_options = {name: value for name, value in options.items() if value is not None}
        self._described: dict[str, Any] | None = None
        self._starting = asyncio.Lock()

    @property
    def threshold(self) -> float:
        """What was given, else the classifier's own (of a hub model: once it is started), else 0.5."""
        return 0.5 if self._threshold is None else self._threshold

    def in_full(self) -> Self:
        """Itself: one pass rewards every step."""
        return self

    async def start(self) -> dict[str, Any]:
        """Make ready; returns the settings that rewards depend on.

        Raises:
            EngineError: the model or its tokenizer cannot be loaded, or its layout is not recognised.
        """
        async with self._starting:
            if self._described is None:
                engine = await self._open()
                self._described = {
                    "rewarder": "classifier",
                    "layout": self.layout.name,
                    **({"layout_options": dict(self.layout.options)} if self.layout.options else {}),
                    "engine": {"kind": "classifier", "model": self.target, **engine},
                    "threshold": self.threshold,
                    "context_length": self._context_length,
                }
        return self._described

    async def judge(self, solution: Solution, ledger: Ledger | None = None) -> SolutionReward:
        """Reward every step of one solution.

        Raises:
            EngineUnavailable: the model failed.
        """
        steps = await self._reward(solution.problem, solution.steps, ledger) if solution.steps else []
        return SolutionReward(
            id=solution.id,
            num_steps=len(solution.steps),
            first_error=first_error([step.reward for step in steps], self.threshold),
            steps=tuple(steps),
            label=solution.label,
        )

    async def judge_step(
        self, problem: str, steps: Sequence[str], step_index: int, ledger: Ledger | None = None
    ) -> StepReward:
        """Reward the step `steps[step_index]`; what comes after it is not read."""
        return (await self._reward(problem, steps[: step_index + 1], ledger))[step_index]

    def is_wrong(self, step: StepReward) -> bool:
        """Whether the step is called wrong. A step without a reward is not: it is unscored."""
        return step.reward is not None and step.reward < self.threshold

    async def aclose(self) -> None:
        self._described = None

    @abstractmethod
    async def _open(self) -> dict[str, Any]:
        """Load what is needed and set `layout`; returns what the manifest says of the model."""

    @abstractmethod
    async def _score(self, rendered: Rendered) -> list[float]:
        """Rewards at the positions of one sequence."""

    async def _reward(self, problem: str, steps: Sequence[str], ledger: Ledger | None) -> list[StepReward]:
        key = f"steps.{len(steps)}"

        def rewards_of(scores: list[float]) -> list[StepReward]:
            if len(scores) != len(steps):
                raise ValueError(f"it has {len(scores)} rewards for {len(steps)} steps")
            return [StepReward(step_index=index, reward=score, vote=None) for index, score in enumerate(scores)]

        if (paid := paid_for(ledger, key, rewards_of)) is not None:
            return paid
        try:
            scores = await self._compute(problem, steps)
        except RequestRefused as error:
            return [
                StepReward(step_index=index, reward=None, vote=None, failure=str(error)) for index in range(len(steps))
            ]
        if ledger is not None:
            ledger.put(key, scores)
        return rewards_of(scores)

    async def _compute(self, problem: str, steps: Sequence[str]) -> list[float]:
        if self._described is None:
            raise EngineError(f"{self.spec}: the classifier is not started")
        ends = [len(steps)] if self.layout.one_pass else range(1, len(steps) + 1)
        sequences = [self.layout.render(problem, steps[:end]) for end in ends]
        longest, limit = max(len(sequence.ids) for sequence in sequences), self._context_length
        if limit is not None and longest > limit:
            raise RequestRefused(f"the solution has {longest} tokens with its problem; the context length is {limit}")
        rewards = [reward for scored in await asyncio.gather(*map(self._score, sequences)) for reward in scored]
        if any(reward != reward for reward in rewards):
            raise RequestRefused("the model's scores are no numbers (NaN); load it with dtype=float32")
        return rewards


def check_threshold(threshold: Any, name: str) -> None:
    """
    Raises:
        EngineError: it decides nothing.
    """
    if not isinstance(threshold, (int, float)) or not 0.0 < threshold < 1.0:
        raise EngineError(f"{name}: threshold is {threshold}; give a number between 0 and 1")


def layout_by_name(model: str) -> LayoutName | None:
    """The layout of a released model by its name; None where the name says nothing."""
    return next((layout for part, layout in _NAMES.items() if part in model.lower()), None)


def construct_layout(name: LayoutName, tokenizer: Any, spec: str, **options: Any) -> Layout:
    """A layout over a tokenizer.

    Raises:
        EngineError: the tokenizer does not fit, or the layout has no such option.
    """
    known = inspect.signature(LAYOUTS[name]).parameters
    if unknown := [option for option in options if option not in known]:
        raise EngineError(f"{spec}: the {name} layout has no option {unknown[0]}; leave it out")
    try:
        return LAYOUTS[name](tokenizer, **options)
    except EngineError as error:
        raise EngineError(f"{spec}: {error}") from None
