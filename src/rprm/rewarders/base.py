"""The protocol of everything that rewards steps: R-PRM, discriminative PRMs, prompted critics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from rprm.ledger import Ledger
from rprm.records import Analysis, Solution, SolutionReward, StepReward
from rprm.stopping import StoppingRule


def reward_settings(described: dict[str, Any]) -> dict[str, Any]:
    """The settings of a rewarder that its rewards in full depend on: not those of its decisions."""
    of_decisions = ("threshold", "stopping", "confidence", "first_error_exit")
    return {name: value for name, value in described.items() if name not in of_decisions}


def first_error(rewards: Sequence[float | None], threshold: float) -> int | None:
    """The index of the first step whose reward is below `threshold`; -1 where every step has a reward and none is; None
    where a step up to there has no reward, so that it is not known."""
    for index, reward in enumerate(rewards):
        if reward is None or reward < threshold:
            return None if reward is None else index
    return -1


def solution_reward(solution: Solution, steps: Sequence[StepReward], threshold: float) -> SolutionReward:
    """The rewards of some of a solution's steps, and the first error that they tell."""
    index = first_error([step.reward for step in steps], threshold)
    found = steps[index].step_index if index is not None and index >= 0 else index
    return SolutionReward(
        id=solution.id, num_steps=len(solution.steps), first_error=found, steps=tuple(steps), label=solution.label
    )


class StepRewarder(Protocol):
    """Rewards the steps of solutions, `concurrency` of them at once. A reward below `threshold` calls a step wrong."""

    @property
    def threshold(self) -> float: ...

    @property
    def concurrency(self) -> int: ...

    def in_full(self) -> StepRewarder:
        """What rewards every step in full, with the same model: for ranking and reinforcement learning."""

    async def start(self) -> dict[str, Any]:
        """Make ready; returns the settings that the rewards depend on. Safe to call again."""

    async def judge(self, solution: Solution, ledger: Ledger | None = None) -> SolutionReward:
        """Reward one solution. Thousands of calls may be awaited at once; none affects another's result."""

    async def judge_step(
        self, problem: str, steps: Sequence[str], step_index: int, ledger: Ledger | None = None
    ) -> StepReward:
        """Reward the step `steps[step_index]` alone, given the problem and the steps before it."""

    async def aclose(self) -> None: ...


@runtime_checkable
class AnalysisSampler(StepRewarder, Protocol):
    """An optional capability: analyses of a step can be drawn one by one, no more than a race needs."""

    @property
    def rule(self) -> StoppingRule: ...

    async def analyse(
        self, problem: str, steps: Sequence[str], step_index: int, samples: range, ledger: Ledger | None = None
    ) -> list[Analysis]:
        """Draw some of a step's analyses, by their sample numbers; `RequestRefused` where every one is refused."""

    def reward(self, step_index: int, analyses: Sequence[Analysis]) -> StepReward:
        """The reward that a step has from its analyses."""

    def unscored(self, step_index: int, failure: str) -> StepReward:
        """A step that cannot be judged, and why."""
