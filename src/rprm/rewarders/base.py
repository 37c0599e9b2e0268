"""A reward is a reward: the one protocol of everything that rewards steps.

R-PRM, discriminative PRMs and prompted critics all stand behind it, so that every benchmark and search runs with each.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from rprm.ledger import Ledger
from rprm.records import Analysis, Solution, SolutionReward, StepReward
from rprm.stopping import StoppingRule

#: What a rewarder's settings say of how it decides whether a step is wrong: its full rewards do not depend on it.
_OF_DECISIONS = ("threshold", "stopping", "confidence", "first_error_exit")


def reward_settings(described: dict[str, Any]) -> dict[str, Any]:
    """Of a rewarder's settings those that its rewards in full depend on."""
    return {name: value for name, value in described.items() if name not in _OF_DECISIONS}


def first_error(rewards: Sequence[float | None], threshold: float) -> int | None:
    """The index of the first step whose reward is below `threshold`.

    Args:
        rewards: of the steps of a solution, from the first; None where a step has no reward.
        threshold: a step with a lower reward is called wrong.

    Returns:
        -1 where every step has a reward and none is called wrong; None where a step up to there has no reward, so that
        the first error is not known.
    """
    for index, reward in enumerate(rewards):
        if reward is None:
            return None
        if reward < threshold:
            return index
    return -1


class StepRewarder(Protocol):
    """Rewards the steps of solutions.

    Attributes:
        threshold: a step whose reward is below it is called wrong.
        concurrency: how many solutions to keep under way.
    """

    @property
    def threshold(self) -> float: ...

    @property
    def concurrency(self) -> int: ...

    def in_full(self) -> StepRewarder:
        """What rewards every step in full, with the same model: for ranking and reinforcement learning."""
        ...

    def is_wrong(self, step: StepReward) -> bool:
        """Whether the step is called wrong. A step without a reward is not: nothing is known of it."""
        ...

    async def start(self) -> dict[str, Any]:
        """Make ready; returns the settings that the rewards depend on, for the manifest. Safe to call again."""
        ...

    async def judge(self, solution: Solution, ledger: Ledger | None = None) -> SolutionReward:
        """Reward one solution. Thousands of calls may be awaited at once; none affects another's result."""
        ...

    async def judge_step(
        self, problem: str, steps: Sequence[str], step_index: int, ledger: Ledger | None = None
    ) -> StepReward:
        """Reward the step `steps[step_index]` alone, given the problem and the steps before it."""
        ...

    async def aclose(self) -> None: ...


@runtime_checkable
class AnalysisSampler(StepRewarder, Protocol):
    """A rewarder whose reward of a step is made from analyses that can be drawn one by one: an optional capability.

    A race between candidates draws no more of them than its decision needs; see `rprm.search.racing`.
    """

    @property
    def rule(self) -> StoppingRule: ...

    async def analyse(
        self, problem: str, steps: Sequence[str], step_index: int, samples: range, ledger: Ledger | None = None
    ) -> list[Analysis]:
        """Draw some of a step's analyses, by their sample numbers.

        Raises:
            RequestRefused: every one of them is refused.
            EngineUnavailable: the engine stopped answering.
        """
        ...

    def reward(self, step_index: int, analyses: Sequence[Analysis]) -> StepReward:
        """The reward that a step has from its analyses."""
        ...

    def unscored(self, step_index: int, failure: str) -> StepReward:
        """A step that cannot be judged, and why."""
        ...
