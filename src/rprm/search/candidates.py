"""The policy, the language model that writes solutions; candidates, whole solutions of a problem, sampled from it or
brought from elsewhere; the best of them chosen (Best-of-N; R-PRM, arXiv 2503.21295, section 4)."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Unpack

from pydantic import Field, TypeAdapter, ValidationError

from rprm.aggregation import Aggregation
from rprm.benchmarks.mathematics import Problem, ProblemRow, Problems
from rprm.cluster import Cluster
from rprm.engines import Engine, Sampling
from rprm.engines.base import Completion
from rprm.errors import InputError, RequestRefused, Unsupported
from rprm.jobs import Job, JobOptions, all_or_none, run_job, started
from rprm.ledger import Ledger, paid_once
from rprm.prompts import PolicyTemplate
from rprm.reading import AnyText, Rejected, Row, Source, SourceInfo, json_object, read_rows
from rprm.records import Record, StepReward
from rprm.rewarders.base import AnalysisSampler, StepRewarder, reward_settings, sample_seed
from rprm.runs import RESULTS, finished_manifest, read_results
from rprm.search import RunTotals, counted
from rprm.search.racing import WAVE, Steps, StepScores, race
from rprm.splitting import split_steps
from rprm.thinking import after_thinking, without_thinking

#: The jobs' names in manifests.
SAMPLE = "search-sample"
BEST_OF_N = "search-best-of-n"

#: "exact": judge until the choice is certain. "none": judge every step of every candidate in full.
ChoiceStopping = Literal["exact", "none"]

_SOLUTIONS: TypeAdapter[Any] = TypeAdapter(
    Annotated[list[AnyText | Annotated[list[AnyText], Field(min_length=1, fail_fast=True)]], Field(fail_fast=True)]
)


class Candidate(Record):
    """A solution that a policy wrote. `num_tokens` and `finish_reason` are None where it was brought from elsewhere."""

    text: str = Field(repr=False)  # its steps are shown
    steps: tuple[str, ...]
    num_tokens: int | None = None
    finish_reason: str | None = None


class Continuation(Record):
    """A next step, or none (`text` is empty). `ended`: the model ended its solution; None: the engine cannot tell."""

    text: str
    num_tokens: int
    ended: bool | None
    finish_reason: str


class Begun(NamedTuple):
    """The first steps of a solution; or `is_whole`: all of them."""

    steps: Steps = ()
    is_whole: bool = False


@dataclass(frozen=True)
class Policy:
    """A language model that solves problems. Sample j of a prompt depends on the prompt, the seed and j alone. A prompt
    that is too long raises `RequestRefused`, an engine that stopped answering `EngineUnavailable`."""

    engine: Engine
    template: PolicyTemplate
    sampling: Sampling  #: of a whole solution
    step_tokens: int = 512  #: the longest step
    thinking_steps: bool = False  #: steps are those of its thinking too

    async def start(self, *, stepwise: bool = False) -> dict[str, Any]:
        """Load the model, to write step by step or whole; returns what its solutions depend on, for the manifest.
        `EngineError` where it cannot be loaded, or (`Unsupported`) cannot continue a solution that is begun."""
        info, sampling = await self.engine.start(chat=self.template.chat), self.sampling
        if stepwise and self.template.chat and not info.continues_replies:
            raise Unsupported(
                f"{self.engine.spec}: this engine cannot continue a given reply, which a search step by step "
                "needs; if the server can (vLLM, SGLang, llama.cpp), add continue_final_message=true to its options"
            )
        return {
            "engine": {"kind": info.kind, "model": info.model, "revision": info.revision, **info.details},
            "prompt": {"name": self.template.name, "digest": self.template.digest},
            **{name: getattr(sampling, name) for name in ("temperature", "top_p", "max_tokens")},
            **({"step_tokens": self.step_tokens} if stepwise else {}),
            **({"thinking_steps": True} if self.thinking_steps else {}),
            "seed": sampling.seed,
        }

    async def solve(self, problem: str, sample: int, ledger: Ledger | None = None, *, begun: Steps = ()) -> Candidate:
        """Write a whole solution, or the rest of one that is begun, whose tokens alone are counted."""

        async def write() -> Candidate:
            made = await self._generate(problem, begun, sample, "", self.sampling.max_tokens)
            text = self.template.step_separator.join((*begun, made.text))
            steps = tuple(split_steps(text))
            return Candidate(text=text, steps=steps, num_tokens=made.num_tokens, finish_reason=made.finish_reason)

        return await paid_once(ledger, f"solution.{sample}", Candidate, write)

    async def next_step(self, problem: str, steps: Steps, sample: int, ledger: Ledger | None = None) -> Continuation:
        """Write the step that follows `steps`, without what the model thinks. The ledger is that of these steps."""

        async def write() -> Continuation:
            made = await self._generate(problem, steps, sample, self.template.step_separator, self.step_tokens)
            ended = made.ended
            if not made.text.strip() and self.template.stop and made.finish_reason == "stop":
                # Nothing before the text that ends a base model's solutions: that is its end.
                ended = True
            elif after_thinking(made.text) is None:
                # Cut off in its thinking, it ended no solution, and wrote no step unless those of its thinking count.
                ended = False
            text = (made.text if self.thinking_steps else without_thinking(made.text)).strip()
            return Continuation(text=text, num_tokens=made.num_tokens, ended=ended, finish_reason=made.finish_reason)

        return await paid_once(ledger, f"step.{sample}", Continuation, write)

    async def _generate(self, problem: str, steps: Steps, sample: int, stop: str, max_tokens: int) -> Completion:
        prompt = self.template.render(problem, steps)
        stops = tuple(filter(None, (stop, self.template.stop)))
        seed = sample_seed(self.sampling.seed or 0, prompt, sample)
        return await self.engine.generate(prompt, replace(self.sampling, stop=stops, max_tokens=max_tokens, seed=seed))


class Candidates(ProblemRow):
    """The candidates of one problem, in the order of their sample numbers. `failure` says why there are none."""

    candidates: tuple[Candidate, ...]
    failure: str | None = None


class CandidateReward(Record):
    """A candidate's reward lies from `low` to `high`, and is `low` where it was judged in full (`settled`); None stands
    below every number. `steps` are those that were judged, each as far as it was."""

    low: float | None
    high: float | None
    settled: bool
    steps: tuple[StepReward, ...]


class JudgedCandidates(ProblemRow):
    """Candidates of one problem with their rewards. `chosen` is the index of the one with the highest reward, of equal
    ones the first; None where there are no candidates. `fell_back`: none has a reward, so that the first was taken."""

    candidates: tuple[Candidate, ...]
    rewards: tuple[CandidateReward, ...]
    chosen: int | None
    fell_back: bool = False
    failure: str | None = None

    def judged_steps(self) -> dict[Steps, StepReward]:
        """Steps by all steps up to them, as far as they were judged: equal steps after equal steps are one."""
        return {
            candidate.steps[: step.step_index + 1]: step
            for candidate, reward in zip(self.candidates, self.rewards, strict=True)
            for step in reward.steps
        }


@dataclass
class SampleTotals(RunTotals):
    """What a run of sampling came to."""

    num_problems: int = counted("problems")
    num_rejected: int = counted("rows rejected")
    num_refused: int = counted("problems refused, mostly for their length")
    num_candidates: int = counted("candidates")
    num_cut: int = counted("candidates cut at the longest length: raise --policy-max-tokens")
    num_empty: int = counted("candidates without a word")
    num_generated_tokens: int = counted("tokens")
    failure: str | None = None

    def add(self, row: Candidates) -> None:
        self.num_problems += 1
        self.failure = self.failure or row.failure
        self.num_refused += row.failure is not None
        self.num_candidates += len(row.candidates)
        for candidate in row.candidates:
            self.num_cut += candidate.finish_reason == "length"
            self.num_empty += not candidate.steps
            self.num_generated_tokens += candidate.num_tokens or 0


async def sample_candidates(
    policy: Policy, problems: Problems, num_candidates: int, *, begun: Mapping[str, Begun] | None = None,
    settings: dict[str, Any] | None = None, cluster: Cluster | None = None, **run: Unpack[JobOptions],
) -> SampleTotals:  # fmt: skip
    """Write N candidates of every problem into a run folder: rows of `Candidates`. Equal ones stay: they are samples.
    `begun` says by a problem's id how all its candidates begin. Started again it resumes. `settings`, `run`, totals and
    errors are as for `run_job`."""
    totals = SampleTotals()

    async def sample(problem: Problem, ledger: Ledger | None) -> Candidates:
        steps, is_whole = (begun or {}).get(problem.id, Begun())
        if is_whole:
            text = policy.template.step_separator.join(steps)
            whole = Candidate(text=text, steps=tuple(split_steps(text)), num_tokens=0)
            return Candidates(problem=problem, candidates=(whole,) * num_candidates)
        writing = (policy.solve(problem.problem, number, ledger, begun=steps) for number in range(num_candidates))
        try:
            return Candidates(problem=problem, candidates=tuple(await all_or_none(writing)))
        except RequestRefused as error:
            return Candidates(problem=problem, candidates=(), failure=str(error))

    job = Job(SAMPLE, sample, Candidates.model_validate, totals, policy.engine.concurrency, noun="problem")
    job, described = await started(job, partial(policy.start, stepwise=begun is not None), cluster)
    settings = {**(settings or {}), "num_candidates": num_candidates, "policy": described}
    await run_job(job, [*problems.rejected, *problems.problems], source=problems.source, settings=settings, **run)
    return totals


@dataclass
class BestOfNTotals(RunTotals):
    """What a run of Best-of-N came to. Equal steps after equal steps of a problem are one."""

    num_analyses_per_step: int = 0  #: K; 0 where the rewarder writes no analyses
    num_problems: int = counted("problems")
    num_rejected: int = counted("rows rejected")
    num_candidates: int = counted("candidates")
    num_without_candidates: int = counted("problems without a candidate to choose")
    num_fallbacks: int = counted("problems in which no candidate has a reward: the first is taken")
    num_without_reward: int = counted("candidates without a reward")
    num_steps: int = counted("steps")
    num_steps_judged: int = counted("steps judged, in full or in part")
    num_steps_unscored: int = counted("steps that could not be judged")
    num_steps_refused: int = 0
    num_analyses: int = counted("analyses")
    num_analyses_full: int = counted("judging every step in full")
    num_analyses_without_verdict: int = counted("analyses without a verdict")
    num_generated_tokens: int = counted("tokens")
    num_prompt_tokens: int = 0
    failure: str | None = None

    def add(self, row: JudgedCandidates) -> None:
        self.num_problems += 1
        self.num_candidates += len(row.candidates)
        self.num_without_candidates += row.chosen is None
        self.num_fallbacks += row.fell_back
        self.num_without_reward += sum(reward.high is None for reward in row.rewards)
        num_steps = len({one.steps[: end + 1] for one in row.candidates for end in range(len(one.steps))})
        judged = row.judged_steps().values()
        p_yes = ((step.failure, [analysis.p_yes for analysis in step.analyses]) for step in judged)
        self.add_steps(num_steps, self.num_analyses_per_step, p_yes)
        analyses = [analysis for step in judged for analysis in step.analyses]
        self.num_generated_tokens += sum(analysis.num_tokens for analysis in analyses)
        self.num_prompt_tokens += sum(analysis.num_prompt_tokens or 0 for analysis in analyses)


@dataclass(frozen=True)
class CandidateRows:
    """Candidates at hand: a row a problem."""

    rows: tuple[Candidates, ...]
    rejected: tuple[Rejected, ...]
    missing: tuple[str, ...]  #: the ids of problems without any
    source: SourceInfo  #: identifies candidates and problems together
    settings: dict[str, Any] = field(default_factory=dict)  #: of the run that wrote the candidates


async def choose_one(
    rewarder: StepRewarder, row: Candidates, ledger: Ledger | None = None, *, aggregation: Aggregation = "min",
    stopping: ChoiceStopping = "exact", wave: int = WAVE,
) -> JudgedCandidates:  # fmt: skip
    """Choose among the candidates of one problem, with a rewarder that is started; see `choose_among`."""
    scores = StepScores(rewarder, row.problem.problem, ledger)
    solutions = [candidate.steps for candidate in row.candidates]
    contenders = [scores.solution(steps, aggregation) for steps in solutions]
    if stopping == "none":
        await all_or_none(map(scores.judge_in_full, dict.fromkeys(solutions)))
    chosen = next(iter(await race(contenders, wave=wave)), None)
    rewards = []
    for steps, contender in zip(solutions, contenders, strict=True):
        low, high = contender.bounds
        settled = next(contender.outlook(), None) is None  # Nothing is left to draw.
        rewards.append(CandidateReward(low=low, high=high, settled=settled, steps=scores.rewards(steps)))
    fell_back = chosen is not None and all(reward.high is None for reward in rewards)
    return JudgedCandidates(**dict(row), rewards=tuple(rewards), chosen=chosen, fell_back=fell_back)


async def choose_among(
    rewarder: StepRewarder, candidates: CandidateRows, *, aggregation: Aggregation = "min",
    stopping: ChoiceStopping = "exact", wave: int = WAVE, settings: dict[str, Any] | None = None,
    cluster: Cluster | None = None, **run: Unpack[JobOptions],
) -> BestOfNTotals:  # fmt: skip
    """Choose among the candidates of many problems, in a run folder: rows of `JudgedCandidates`. Started again it
    resumes. `settings`, `run`, totals and errors are as for `run_job`. The rewarder's threshold and its own
    stopping play no part. `wave` is for "exact"; see `race`."""
    totals = BestOfNTotals(rewarder.rule.num_analyses if isinstance(rewarder, AnalysisSampler) else 0)

    async def choose(row: Candidates, ledger: Ledger | None) -> JudgedCandidates:
        return await choose_one(rewarder, row, ledger, aggregation=aggregation, stopping=stopping, wave=wave)

    job = Job(BEST_OF_N, choose, JudgedCandidates.model_validate, totals, rewarder.concurrency, noun="problem")
    job, described = await started(job, rewarder.start, cluster)
    settings = (settings or {}) | candidates.settings | reward_settings(described)
    settings |= {"aggregation": aggregation, "choice_stopping": stopping}
    settings |= {"wave": wave} if stopping == "exact" else {}
    await run_job(job, [*candidates.rejected, *candidates.rows], source=candidates.source, settings=settings, **run)
    return totals


def read_candidate_run(folder: str | Path, *, limit: int | None = None) -> CandidateRows:
    """Candidates of a run of `rprm search sample`, of the first `limit` problems. `RunError` where it is no such run,
    not complete, or (`CorruptRun`) damaged."""
    manifest = finished_manifest(folder, stage=SAMPLE, command="rprm search sample")
    rows = tuple(read_results(folder, Candidates.model_validate))
    settings = {name: manifest["settings"][name] for name in ("policy", "num_candidates")}
    return CandidateRows(rows[:limit], (), (), Source(str(Path(folder) / RESULTS)).inspect(), settings)


def read_candidate_file(path: str | Path, problems: Problems) -> CandidateRows:
    """Candidates that were written elsewhere; docs/search.md has the forms of a row. `InputError` where there is no
    such file, or no row can be used."""
    source = Source(str(path))
    named: dict[tuple[str, str], list[Problem]] = defaultdict(list)
    for problem in problems.problems:
        named["text", _spaced(problem.problem)].append(problem)
        for identifier in {problem.id, problem.id.removeprefix(f"{problem.set}/")}:
            named["id", identifier].append(problem)
    found: dict[str, list[Candidate]] = {problem.id: [] for problem in problems.problems}

    def take(row: Row) -> None:
        found[_problem_of(value := json_object(row.value), named).id].extend(_candidates_of(value))

    rejected = [row for row in read_rows(source, take) if isinstance(row, Rejected)]
    every = [Candidates(problem=problem, candidates=tuple(found[problem.id])) for problem in problems.problems]
    rows = tuple(one for one in every if one.candidates)
    missing = tuple(one.id for one in every if not one.candidates)
    if not rows:
        reason = f"the first, line {rejected[0].line}: {rejected[0].reason}" if rejected else "it has no rows"
        raise InputError(f"{path}: no candidates of these problems; {reason}")
    digest = hashlib.sha256(f"{source.inspect().digest}\n{problems.source.digest}".encode()).hexdigest()
    info = SourceInfo(source.name, f"sha256:{digest}", len(rows))
    return CandidateRows(rows, (*problems.rejected, *rejected), missing, info)


def _problem_of(row: dict[str, Any], named: dict[tuple[str, str], list[Problem]]) -> Problem:
    """The problem that a row names."""
    identifier, text = row.get("id"), row.get("problem", row.get("question"))
    identifier = str(identifier) if type(identifier) is int else identifier
    name = f"id {identifier!r:.80}"
    found = named.get(("id", identifier), []) if isinstance(identifier, str) else []
    if isinstance(text, str) and found:
        found = [problem for problem in found if _spaced(text) in _spaced(problem.problem)]
        if not found:
            raise InputError(f"the problem with {name} has another text than this row")
    elif isinstance(text, str):
        name, found = f"the text {text!r:.80}", named.get(("text", _spaced(text)), [])
    if len(found) != 1:
        listed = ", ".join(problem.id for problem in found[:3])
        raise InputError(
            f"several problems have {name} ({listed}): write SET/ID" if found else f"no problem has {name}"
        )
    return found[0]


def _spaced(text: str) -> str:
    return " ".join(text.split())


def _candidates_of(row: dict[str, Any]) -> list[Candidate]:
    given = [name for name in ("solutions", "solution", "steps") if name in row]
    if len(given) != 1:
        found = " and ".join(given) or "none of them"
        raise InputError(f"one of 'solutions', 'solution' and 'steps' must be there, not {found}")
    value = row[given[0]]
    is_several = isinstance(value, list) and bool(value) and all(isinstance(one, list) for one in value)
    if given[0] == "solution" or (given[0] == "steps" and not is_several):
        value = [value]
    if not isinstance(value, list):
        raise InputError(f"'solutions' must be a list, not {value!r:.80}")
    try:
        solutions = _SOLUTIONS.validate_python(value, strict=True)
    except ValidationError as error:
        found = error.errors()[0]["input"]
        raise InputError(f"a solution must be a text or a list of steps, in Unicode, not {found!r:.80}") from None
    texts = [one if isinstance(one, str) else "\n\n".join(one) for one in solutions]
    steps = [tuple(split_steps(one) if isinstance(one, str) else one) for one in solutions]
    return [Candidate(text=text, steps=its_steps) for text, its_steps in zip(texts, steps, strict=True)]
