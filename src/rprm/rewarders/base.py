"""The protocol of everything that rewards steps; judging a whole source of solutions with one, and its totals."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from rprm.cluster import Cluster
from rprm.engines.base import WITHHELD, EngineInfo, Sampling
from rprm.errors import RequestRefused, RunError
from rprm.jobs import Job, all_or_none, run_job, started
from rprm.ledger import Ledger, paid_once
from rprm.prompts.template import Prompt, Template
from rprm.reading import Rejected
from rprm.records import REWARD_FORMAT, Analysis, Solution, SolutionReward, StepReward
from rprm.runs import FORMAT, read_manifest, read_results
from rprm.stopping import StoppingRule

Steps = Sequence[str]  # of a solution

#: Characters of a prompt from which on its seeds are made in a thread: some tenth of a millisecond each.
_LONG = 100_000

# Stands for a sample that the engine refused, while others of its prompt were drawn.
_REFUSED = Analysis(text="", verdict=None, p_yes=None, p_yes_source=None, num_tokens=0, finish_reason="refused")


def reward_settings(described: dict[str, Any]) -> dict[str, Any]:
    """The settings of a rewarder that its rewards in full depend on: not those of its decisions."""
    of_decisions = ("threshold", "stopping", "confidence", "first_error_exit")
    return {name: value for name, value in described.items() if name not in of_decisions}


def described(
    kind: str, info: EngineInfo, template: Template, rule: StoppingRule, sampling: Sampling, **flags: Any
) -> dict[str, Any]:
    """The settings that the rewards of one who asks a language model depend on; `flags` are its own."""
    return {
        "rewarder": kind,
        "engine": {"kind": info.kind, "model": info.model, "revision": info.revision, **info.details},
        "prompt": {"name": template.name, "digest": template.digest},
        **{name: getattr(rule, name) for name in ("num_analyses", "threshold", "stopping")},
        **({"confidence": rule.confidence} if rule.stopping == "confident" else {}),
        **flags,
        **{name: getattr(sampling, name) for name in ("temperature", "top_p", "max_tokens", "seed")},
    }


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


async def draw_in_waves(
    num_more: Callable[[Sequence[Analysis]], int], analyse: Callable[[range], Awaitable[list[Analysis]]]
) -> tuple[tuple[Analysis, ...], str | None]:
    """Analyses, by their sample numbers, until no more are needed, and why there is none where all were refused. Each
    wave is needed whatever it says: nothing is drawn in vain."""
    analyses: tuple[Analysis, ...] = ()
    while count := num_more(analyses):
        try:
            analyses += tuple(await analyse(range(len(analyses), len(analyses) + count)))
        except RequestRefused as error:
            if not analyses:
                return (), str(error)
            analyses += (_REFUSED,) * count
    return analyses, None


async def draw(
    write: Callable[[Sampling], Awaitable[Analysis]], prompt: Prompt, sampling: Sampling, samples: range,
    ledger: Ledger | None, scope: str,
) -> list[Analysis]:  # fmt: skip
    """Some analyses of a prompt, by their sample numbers, each paid for once; one that is refused has no verdict, and
    where every one is, that is a `RequestRefused`."""
    make_seeds = partial(sample_seeds, sampling.seed or 0, text := prompt.text, samples)
    # Those of a long prompt take a while: in a thread, other work goes on.
    seeds = make_seeds() if len(text) < _LONG else await asyncio.to_thread(make_seeds)

    async def drawn(sample: int) -> Analysis | RequestRefused:
        seeded = replace(sampling, seed=seeds[sample])
        try:
            return await paid_once(ledger, f"{scope}{sample}", Analysis, lambda: write(seeded))
        except RequestRefused as error:
            return error

    found = await all_or_none(drawn(sample) for sample in samples)
    refusals = [one for one in found if isinstance(one, RequestRefused)]
    if refusals and len(refusals) == len(found):
        raise refusals[0]
    return [_REFUSED if isinstance(one, RequestRefused) else one for one in found]


def sample_seed(seed: int, prompt: Prompt, sample: int) -> int:
    """The seed of one sample: 31 bits that depend on the run's seed, the prompt and the sample's number alone."""
    return sample_seeds(seed, prompt.text, (sample,))[sample]


def sample_seeds(seed: int, text: str, samples: Iterable[int]) -> dict[int, int]:
    """The seeds of some samples of a prompt, by their numbers."""
    read, found = text.encode(), {}
    for sample in samples:
        key = hashlib.blake2b(f"{seed}\0{sample}\0".encode(), digest_size=4)
        key.update(read)
        found[sample] = int.from_bytes(key.digest()) & 0x7FFF_FFFF
    return found


def why_without_verdict(analyses: Sequence[Analysis], max_tokens: int, *, can_ask: bool) -> str:
    """Why none of the analyses, of at most so many tokens, reached a verdict, and whether one can be asked for yet."""
    num_cut = sum(analysis.finish_reason == "length" for analysis in analyses)
    by_context = sum(analysis.is_cut_by_context(max_tokens) for analysis in analyses)
    withheld = [analysis.finish_reason for analysis in analyses if analysis.finish_reason in WITHHELD]
    counts = {
        "ran into the end of the model's context: give it a longer one (context_length)": by_context,
        f"ran into max_tokens={max_tokens}: raise --max-tokens": num_cut - by_context,
        f"were withheld by the server ({''.join(withheld[:1])})": len(withheld),
    }
    reasons = "; ".join(f"{count} {reason}" for reason, count in counts.items() if count)
    reasons = reasons or "ask for it with --force-verdict, or " * can_ask + "use a prompt that the model follows"
    return f"none of {len(analyses)} analyses reached a verdict; {reasons}"


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


@runtime_checkable
class StepStreamer(StepRewarder, Protocol):
    """An optional capability: the steps of a solution are rewarded one by one."""

    def judge_steps(self, solution: Solution, ledger: Ledger | None = None) -> AsyncGenerator[StepReward, None]:
        """The steps that `judge` rewards, in order, each as soon as it stands."""


def spec_of(rewarder: StepRewarder) -> str:
    """The spec of its model, as far as it tells one; else ""."""
    return str(getattr(getattr(rewarder, "engine", rewarder), "spec", ""))


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
    settings: dict[str, Any] | None = None, last_step: bool = False, cluster: Cluster | None = None, **options: Any,
) -> Totals:  # fmt: skip
    """Judge every solution of a source, in its order, or the last step of each alone; the totals are over all sessions.
    The results depend on `settings` too. `options` and errors are those of `run_job`; without `output` nothing is kept.
    With a cluster, its replicas of the rewarder judge.
    """
    totals = Totals()

    async def judge_last(solution: Solution, ledger: Ledger | None) -> SolutionReward:
        step = await rewarder.judge_step(solution.problem, solution.steps, len(solution.steps) - 1, ledger)
        return solution_reward(solution, [step], rewarder.threshold)

    work = judge_last if last_step else rewarder.judge
    job = Job(
        name="judge", work=work, parse=SolutionReward.read_back, totals=totals, width=rewarder.concurrency,
        size=lambda solution: len(solution.steps),
    )  # fmt: skip
    job, described = await started(job, rewarder.start, cluster)
    totals.max_tokens = described.get("max_tokens")
    settings = {FORMAT: REWARD_FORMAT, **(settings or {}), **described}
    await run_job(job, rows, settings=settings, **{"source": None, "output": None} | options)
    return totals


def read_rewards(folder: str | Path) -> Iterator[SolutionReward]:
    """The rewards in a run of judged solutions, of an earlier format too; `RunError` where it is a run of something
    else, `CorruptRun` where it is damaged."""
    manifest = read_manifest(folder)
    if (stage := manifest["stage"]) != "judge":
        raise RunError(f"{folder} is a run of {stage!r}; judged solutions are in runs of `rprm judge` and `rprm bench`")
    for reward in read_results(folder, SolutionReward.read_back):
        if (manifest["settings"].of(FORMAT, int | None) or 1) < 2 and reward.uncovered and reward.first_error == -1:
            # -1 was written also where it was not known.
            reward = reward.model_copy(update={"first_error": None})
        yield reward
