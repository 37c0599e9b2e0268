"""Judging a whole source of solutions, and its totals."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from rprm.jobs import Job, run_job
from rprm.ledger import Ledger
from rprm.reading import Rejected
from rprm.records import REWARD_FORMAT, Solution, SolutionReward
from rprm.rewarders.base import StepRewarder, solution_reward
from rprm.runs import FORMAT


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
    rewarder: StepRewarder,
    rows: Iterable[Solution | Rejected],
    *,
    settings: dict[str, Any] | None = None,
    last_step: bool = False,
    **options: Any,
) -> Totals:
    """Judge every solution of a source, in its order; the totals are over all sessions.

    Args:
        settings: further settings that the results depend on.
        last_step: reward the last step of each solution alone.
        options: of `run_job`, which says what is raised: source and output (none keeps nothing), strict, callbacks.
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
