"""Best-of-N: of a problem's candidates the one with the highest reward (R-PRM, arXiv 2503.21295, section 4)."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from rprm.jobs import Callbacks, Job, all_or_none, run_job
from rprm.ledger import Ledger
from rprm.records import StepReward
from rprm.rewarders.base import AnalysisSampler, StepRewarder, reward_settings
from rprm.search.aggregation import Aggregation
from rprm.search.candidates import CandidateReward, Candidates, JudgedCandidates
from rprm.search.contenders import StepScores
from rprm.search.racing import WAVE, is_settled, race
from rprm.search.sampling import CandidateRows

#: The stage's name in manifests.
STAGE = "search-best-of-n"

#: "exact": judge until the choice is certain. "none": judge every step of every candidate in full.
ChoiceStopping = Literal["exact", "none"]


@dataclass
class BestOfNTotals:
    """What a run of Best-of-N came to. Equal steps after equal steps of a problem are one.

    Attributes:
        num_analyses_per_step: K; 0 where the rewarder writes no analyses.
        num_without_candidates: problems in which there was nothing to choose.
        num_fallbacks: choices for want of a candidate that has a reward.
        num_without_reward: candidates that are known to have none.
        num_steps: of all candidates.
        num_steps_judged: in full or in part.
        num_steps_unscored: judged, and without a reward.
        num_steps_refused: of these, those without an analysis, mostly for their length.
        num_analyses_full: analyses that judging every step in full takes.
        failure: why the first unscored step has no reward.
    """

    num_analyses_per_step: int = 0
    num_problems: int = 0
    num_rejected: int = 0
    num_candidates: int = 0
    num_without_candidates: int = 0
    num_fallbacks: int = 0
    num_without_reward: int = 0
    num_steps: int = 0
    num_steps_judged: int = 0
    num_steps_unscored: int = 0
    num_steps_refused: int = 0
    num_analyses: int = 0
    num_analyses_full: int = 0
    num_analyses_without_verdict: int = 0
    num_generated_tokens: int = 0
    num_prompt_tokens: int = 0
    failure: str | None = None

    @property
    def nothing_judged(self) -> bool:
        """Whether steps were judged, and none of them has a reward."""
        return 0 < self.num_steps_judged == self.num_steps_unscored

    def add(self, row: JudgedCandidates) -> None:
        self.num_problems += 1
        self.num_candidates += len(row.candidates)
        self.num_without_candidates += row.chosen is None
        self.num_fallbacks += row.fell_back
        self.num_without_reward += sum(reward.high is None for reward in row.rewards)
        steps: dict[tuple[str, ...], StepReward | None] = {}
        for candidate, reward in zip(row.candidates, row.rewards, strict=True):
            for length in range(1, len(candidate.steps) + 1):
                steps.setdefault(candidate.steps[:length], None)
            for step in reward.steps:
                steps[candidate.steps[: step.step_index + 1]] = step
        self.num_steps += len(steps)
        for judged in steps.values():
            refused = judged is not None and judged.failure is not None and not judged.analyses
            self.num_steps_refused += refused
            self.num_analyses_full += 0 if refused else self.num_analyses_per_step
            if judged is not None:
                self.num_steps_judged += 1
                self.num_steps_unscored += judged.failure is not None
                self.failure = self.failure or judged.failure
                self.num_analyses += len(judged.analyses)
                self.num_analyses_without_verdict += judged.num_without_verdict
                self.num_generated_tokens += sum(analysis.num_tokens for analysis in judged.analyses)
                self.num_prompt_tokens += sum(analysis.num_prompt_tokens or 0 for analysis in judged.analyses)

    def as_dict(self) -> dict[str, int]:
        return {name: value for name, value in asdict(self).items() if name != "failure"}


async def choose_among(
    rewarder: StepRewarder,
    candidates: CandidateRows,
    *,
    output: str | Path,
    aggregation: Aggregation = "min",
    stopping: ChoiceStopping = "exact",
    wave: int = WAVE,
    settings: dict[str, Any] | None = None,
    strict: bool = False,
    callbacks: Callbacks | None = None,
) -> BestOfNTotals:
    """Choose among the candidates of many problems, in a run folder; begun again, it goes on where it was.

    Args:
        rewarder: what rewards steps. Its threshold and its own stopping play no part.
        candidates: the problems with their candidates.
        output: the run folder. `results.jsonl` holds `JudgedCandidates` in the order of the candidates' file.
        aggregation: how step rewards become the reward of a candidate.
        stopping: "exact" chooses what "none" does, and judges no further than that takes.
        wave: most analyses of a problem at once, for "exact"; see `race`.
        settings: further settings that the results depend on.
        strict: stop at the first rejected row.
        callbacks: told of each result, in order.

    Returns:
        Totals over all sessions.

    Raises:
        RunError, InputError, EngineUnavailable: as for `judge_source`.
    """
    described = await rewarder.start()
    totals = BestOfNTotals(rewarder.rule.num_analyses if isinstance(rewarder, AnalysisSampler) else 0)

    async def choose(row: Candidates, ledger: Ledger | None) -> JudgedCandidates:
        return await choose_best(rewarder, row, aggregation=aggregation, stopping=stopping, wave=wave, ledger=ledger)

    stage = Job(
        name=STAGE,
        work=choose,
        parse=JudgedCandidates.model_validate,
        totals=totals,
        width=rewarder.concurrency,
        noun="problem",
    )
    resolved = {
        **(settings or {}),
        **candidates.settings,
        **reward_settings(described),
        "aggregation": aggregation,
        "choice_stopping": stopping,
        **({"wave": wave} if stopping == "exact" else {}),
    }
    await run_job(
        stage, [*candidates.rejected, *candidates.rows], source=candidates.source, output=output, settings=resolved,
        strict=strict, callbacks=callbacks,
    )  # fmt: skip
    return totals


async def choose_best(
    rewarder: StepRewarder,
    row: Candidates,
    *,
    aggregation: Aggregation = "min",
    stopping: ChoiceStopping = "exact",
    wave: int = WAVE,
    ledger: Ledger | None = None,
) -> JudgedCandidates:
    """Choose among the candidates of one problem; see `choose_among`.

    Raises:
        EngineUnavailable: the engine stopped answering.
    """
    scores = StepScores(rewarder, row.problem.problem, ledger)
    contenders = [scores.solution(candidate.steps, aggregation) for candidate in row.candidates]
    if stopping == "none":
        await all_or_none(scores.judge_in_full(candidate.steps) for candidate in row.candidates)
    chosen = next(iter(await race(contenders, wave=wave)), None)
    return JudgedCandidates(
        problem=row.problem,
        candidates=row.candidates,
        rewards=tuple(
            CandidateReward(
                low=contender.bounds[0],
                high=contender.bounds[1],
                settled=is_settled(contender),
                steps=scores.rewards(candidate.steps),
            )
            for candidate, contender in zip(row.candidates, contenders, strict=True)
        ),
        chosen=chosen,
        fell_back=chosen is not None and all(contender.bounds[1] is None for contender in contenders),
        failure=row.failure,
    )
