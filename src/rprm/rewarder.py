"""A reward is a reward: the one protocol of everything that rewards steps.

R-PRM, discriminative PRMs and prompted critics all stand behind it, so that every benchmark and search runs with each.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol, TypeVar

from rprm.records import Record, Solution, SolutionReward, StepReward

Piece = TypeVar("Piece", bound=Record)


class Ledger(Protocol):
    """What is already paid for of one solution. Keys are the rewarder's own."""

    def get(self, key: str) -> Any | None:
        """The piece recorded under `key` in an earlier session, or None."""
        ...

    def put(self, key: str, piece: Any) -> None:
        """Record a piece: once this returns, a kill does not lose it."""
        ...


async def paid_once(ledger: Ledger | None, key: str, kind: type[Piece], make: Callable[[], Awaitable[Piece]]) -> Piece:
    """A piece that the ledger holds already, or else one that is made now and recorded."""
    if ledger is not None and (paid := ledger.get(key)) is not None:
        return kind.model_validate(paid)
    made = await make()
    if ledger is not None:
        ledger.put(key, made.model_dump(mode="json"))
    return made


class ScopedLedger:
    """A part of a ledger under a name of its own: for one of several solutions that are under way together."""

    def __init__(self, ledger: Ledger, scope: str) -> None:
        self._ledger = ledger
        self._scope = scope

    def get(self, key: str) -> Any | None:
        return self._ledger.get(f"{self._scope}/{key}")

    def put(self, key: str, piece: Any) -> None:
        self._ledger.put(f"{self._scope}/{key}", piece)


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
