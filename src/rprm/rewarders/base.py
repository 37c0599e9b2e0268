"""The protocol of everything that rewards steps; judging a whole source of solutions with one, and its totals."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol, runtime_checkable

from rprm.jobs import Job, run_job
from rprm.ledger import Ledger
from rprm.reading import Rejected
from rprm.records import REWARD_FORMAT, Analysis, Solution, SolutionReward, StepReward
from rprm.runs import FORMAT
from rprm.stopping import StoppingRule

Steps = Sequence[str]  # of a solution


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

    threshold: float
    concurrency: int

    def in_full(self) -> StepRewarder:
        """What rewards every step in full, with the same model: for ranking and reinforcement learning."""

    async def start(self) -> dict[str, Any]:
        """Make ready; returns the settings that the rewards depend on. Safe to call again."""

    async def judge(self, solution: Solution, ledger: Ledger | None = None) -> SolutionReward:
        """Reward one solution. Thousands of calls may be awaited at once; none affects another's result."""

    async def judge_step(self, problem: str, steps: Steps, step_index: int, ledger: Ledger | None = None) -> StepReward:
        """Reward the step `steps[step_index]` alone, given the problem and the steps before it."""

    async def aclose(self) -> None: ...


@runtime_checkable
class AnalysisSampler(StepRewarder, Protocol):
    """An optional capability: analyses of a step can be drawn one by one, no more than a race needs."""

    rule: StoppingRule

    async def analyse(
        self, problem: str, steps: Steps, step_index: int, samples: range, ledger: Ledger | None = None
    ) -> list[Analysis]:
        """Draw some of a step's analyses, by their sample numbers; `RequestRefused` where every one is refused."""

    def reward(self, step_index: int, analyses: Sequence[Analysis], failure: str | None = None) -> StepReward:
        """The reward that a step has from its analyses; without one, why (`failure`: it cannot be judged)."""


@dataclass
class Totals:
    """The totals of a run. Steps after a first-error exit are in `num_steps` alone."""

    num_solutions: int = 0
    num_rejected: int = 0
    num_wrong: int = 0
    num_unjudged: int = 0  #: solutions of which it is not known whether they have an error
    num_steps: int = 0
    num_steps_judged: int = 0
    num_steps_uncovered: int = 0
    num_steps_cut: int = 0  #: steps of which the model's context cut an analysis short
    num_analyses: int = 0
    num_analyses_without_verdict: int = 0
    num_analyses_forced: int = 0
    num_generated_tokens: int = 0
    num_prompt_tokens: int = 0
    max_tokens: int | None = None  #: of an analysis; None for rewarders that write none
    failure: str | None = None  #: why the first step without a reward has none

    @property
    def nothing_judged(self) -> bool:
        """Whether there were steps to judge, and none of them has a reward."""
        return 0 < self.num_steps_judged == self.num_steps_uncovered

    def add(self, result: SolutionReward) -> None:
        self.num_solutions += 1
        self.num_unjudged += result.first_error is None
        self.num_wrong += result.first_error is not None and result.first_error >= 0
        self.num_steps += result.num_steps
        self.num_steps_judged += len(result.steps)
        self.num_steps_uncovered += len(result.uncovered)
        for step in result.steps:
            self.failure = self.failure or step.failure
            self.num_steps_cut += any(one.is_cut_by_context(self.max_tokens or 0) for one in step.analyses)
            for analysis in step.analyses:
                self.num_analyses += 1
                self.num_analyses_without_verdict += analysis.verdict is None
                self.num_analyses_forced += analysis.forced
                self.num_generated_tokens += analysis.num_tokens
                self.num_prompt_tokens += analysis.num_prompt_tokens or 0

    def as_dict(self) -> dict[str, int]:
        return {name: value for name, value in asdict(self).items() if name.startswith("num_")}


async def judge_source(
    rewarder: StepRewarder, rows: Iterable[Solution | Rejected], *,
    settings: dict[str, Any] | None = None, last_step: bool = False, **options: Any,
) -> Totals:  # fmt: skip
    """Judge every solution of a source, in its order, or the last step of each alone; the totals are over all sessions.
    The results depend on `settings` too. `options` and errors are those of `run_job`; without `output` nothing is kept.
    """
    described = await rewarder.start()
    totals = Totals(max_tokens=described.get("max_tokens"))

    async def judge_last(solution: Solution, ledger: Ledger | None) -> SolutionReward:
        step = await rewarder.judge_step(solution.problem, solution.steps, len(solution.steps) - 1, ledger)
        return solution_reward(solution, [step], rewarder.threshold)

    work = judge_last if last_step else rewarder.judge
    job = Job(name="judge", work=work, parse=SolutionReward.read_back, totals=totals, width=rewarder.concurrency)
    settings = {FORMAT: REWARD_FORMAT, **(settings or {}), **described}
    await run_job(job, rows, settings=settings, **{"source": None, "output": None} | options)
    return totals
