"""Candidates: whole solutions of a problem, sampled from a policy or brought from elsewhere; the best of them chosen.

Best-of-N takes of a problem's candidates the one with the highest reward (R-PRM, arXiv 2503.21295, section 4).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar, Unpack

from pydantic import ValidationError

from rprm.benchmarks.items import json_object, parsed_rows
from rprm.benchmarks.mathematics import Problem, ProblemRow, Problems
from rprm.errors import CorruptRun, InputError, RequestRefused
from rprm.jobs import Job, JobOptions, all_or_none, run_job
from rprm.ledger import Ledger
from rprm.reading import Rejected, Source, SourceInfo
from rprm.records import Record, StepReward
from rprm.rewarders.base import AnalysisSampler, StepRewarder, reward_settings
from rprm.runs import RESULTS, finished_manifest, read_json_lines
from rprm.search.policy import Candidate, Policy
from rprm.search.racing import WAVE, Aggregation, StepScores, is_settled, race
from rprm.splitting import split_steps

#: The jobs' names in manifests.
SAMPLE = "search-sample"
BEST_OF_N = "search-best-of-n"

StoredRow = TypeVar("StoredRow", bound=Record)

#: "exact": judge until the choice is certain. "none": judge every step of every candidate in full.
ChoiceStopping = Literal["exact", "none"]


class Candidates(ProblemRow):
    """The candidates of one problem, in the order of their sample numbers. `failure` says why there are none."""

    candidates: tuple[Candidate, ...]
    failure: str | None = None


class CandidateReward(Record):
    """What is known of one candidate's reward under the run's aggregation.

    It lies from `low` to `high`, and is `low` where it was judged in full (`settled`). None stands below every number:
    a candidate that has, or may have, no reward at all. `steps` are the steps that were judged, each as far as it was.
    """

    low: float | None
    high: float | None
    settled: bool
    steps: tuple[StepReward, ...]


class JudgedCandidates(ProblemRow):
    """Candidates of one problem with their rewards, and the choice among them.

    `chosen` is the index of the candidate with the highest reward, of equal ones the first; None where there are no
    candidates. `fell_back`: none has a reward, so that the first was taken.
    """

    candidates: tuple[Candidate, ...]
    rewards: tuple[CandidateReward, ...]
    chosen: int | None
    fell_back: bool = False
    failure: str | None = None

    def judged_steps(self) -> dict[tuple[str, ...], StepReward]:
        """Steps by all steps up to them, as far as they were judged: equal steps after equal steps are one."""
        return {
            candidate.steps[: step.step_index + 1]: step
            for candidate, reward in zip(self.candidates, self.rewards, strict=True)
            for step in reward.steps
        }


@dataclass
class SampleTotals:
    """What a run of sampling came to.

    Attributes:
        num_refused: problems that the policy could not be asked, mostly for their length.
        num_cut: candidates that ran into the longest length.
        num_empty: candidates without a word.
    """

    num_problems: int = 0
    num_rejected: int = 0
    num_refused: int = 0
    num_candidates: int = 0
    num_cut: int = 0
    num_empty: int = 0
    num_generated_tokens: int = 0

    def add(self, row: Candidates) -> None:
        self.num_problems += 1
        self.num_refused += row.failure is not None
        self.num_candidates += len(row.candidates)
        for candidate in row.candidates:
            self.num_cut += candidate.finish_reason == "length"
            self.num_empty += not candidate.steps
            self.num_generated_tokens += candidate.num_tokens or 0

    def as_dict(self) -> dict[str, int]:
        return asdict(self)


async def sample_candidates(
    policy: Policy,
    problems: Problems,
    num_candidates: int,
    *,
    settings: dict[str, Any] | None = None,
    **run: Unpack[JobOptions],
) -> SampleTotals:
    """Write N candidates of every problem into a run folder: rows of `Candidates`. Equal ones stay: they are samples.

    Started again it resumes. `settings`, `run`, totals and errors are as for `judge_source`.
    """
    described = await policy.start()
    totals = SampleTotals()

    async def sample(problem: Problem, ledger: Ledger | None) -> Candidates:
        try:
            candidates = await all_or_none(
                policy.solve(problem.problem, number, ledger) for number in range(num_candidates)
            )
        except RequestRefused as error:
            return Candidates(problem=problem, candidates=(), failure=str(error))
        return Candidates(problem=problem, candidates=tuple(candidates))

    job = Job(SAMPLE, sample, Candidates.model_validate, totals, policy.concurrency, noun="problem")
    await run_job(
        job,
        [*problems.rejected, *problems.problems],
        source=problems.source,
        settings={**(settings or {}), "num_candidates": num_candidates, "policy": described},
        **run,
    )
    return totals


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
        ends = {one.steps[: end + 1] for one in row.candidates for end in range(len(one.steps))}
        judged = row.judged_steps().values()
        num_refused = sum(step.failure is not None and not step.analyses for step in judged)
        self.num_steps += len(ends)
        self.num_steps_judged += len(judged)
        self.num_steps_refused += num_refused
        self.num_analyses_full += (len(ends) - num_refused) * self.num_analyses_per_step
        for step in judged:
            self.num_steps_unscored += step.failure is not None
            self.failure = self.failure or step.failure
            self.num_analyses += len(step.analyses)
            self.num_analyses_without_verdict += step.num_without_verdict
            self.num_generated_tokens += sum(analysis.num_tokens for analysis in step.analyses)
            self.num_prompt_tokens += sum(analysis.num_prompt_tokens or 0 for analysis in step.analyses)

    def as_dict(self) -> dict[str, int]:
        return {name: value for name, value in asdict(self).items() if name != "failure"}


@dataclass(frozen=True)
class CandidateRows:
    """Candidates at hand.

    Attributes:
        rows: a row a problem.
        rejected: rows of the file that cannot be used, or belong to no problem.
        missing: ids of problems without candidates.
        source: what identifies candidates and problems together.
        settings: of the run that wrote the candidates, as far as it is known.
    """

    rows: tuple[Candidates, ...]
    rejected: tuple[Rejected, ...]
    missing: tuple[str, ...]
    source: SourceInfo
    settings: dict[str, Any] = field(default_factory=dict)


async def choose_among(
    rewarder: StepRewarder,
    candidates: CandidateRows,
    *,
    aggregation: Aggregation = "min",
    stopping: ChoiceStopping = "exact",
    wave: int = WAVE,
    settings: dict[str, Any] | None = None,
    **run: Unpack[JobOptions],
) -> BestOfNTotals:
    """Choose among the candidates of many problems, in a run folder: rows of `JudgedCandidates`.

    Started again it resumes. `settings`, `run`, totals and errors are as for `judge_source`.

    Args:
        rewarder: what rewards steps. Its threshold and its own stopping play no part.
        aggregation: how step rewards become the reward of a candidate.
        stopping: "exact" chooses what "none" does, and judges no further than that takes.
        wave: most analyses of a problem at once, for "exact"; see `race`.
    """
    described = await rewarder.start()
    totals = BestOfNTotals(rewarder.rule.num_analyses if isinstance(rewarder, AnalysisSampler) else 0)

    async def choose(row: Candidates, ledger: Ledger | None) -> JudgedCandidates:
        return await choose_best(rewarder, row, aggregation=aggregation, stopping=stopping, wave=wave, ledger=ledger)

    job = Job(BEST_OF_N, choose, JudgedCandidates.model_validate, totals, rewarder.concurrency, noun="problem")
    settings = {
        **(settings or {}),
        **candidates.settings,
        **reward_settings(described),
        "aggregation": aggregation,
        "choice_stopping": stopping,
        **({"wave": wave} if stopping == "exact" else {}),
    }
    rows: list[Candidates | Rejected] = [*candidates.rejected, *candidates.rows]
    await run_job(job, rows, source=candidates.source, settings=settings, **run)
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
    """Choose among the candidates of one problem; see `choose_among`."""
    scores = StepScores(rewarder, row.problem.problem, ledger)
    contenders = [scores.solution(candidate.steps, aggregation) for candidate in row.candidates]
    if stopping == "none":
        await all_or_none(map(scores.judge_in_full, dict.fromkeys(candidate.steps for candidate in row.candidates)))
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


def read_rows(path: Path, kind: type[StoredRow]) -> Iterator[StoredRow]:
    """Rows of a run's results.

    Raises:
        CorruptRun: one is damaged; the message has file and line.
    """
    for number, row in enumerate(read_json_lines(path), 1):
        try:
            yield kind.model_validate(row)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"]))
            raise CorruptRun(
                f"{path}, line {number} is not a row of {kind.__name__} ({place}: {first['msg']}); restore the file, "
                "or begin a new run folder"
            ) from None


def read_candidate_run(folder: str | Path, *, limit: int | None = None) -> CandidateRows:
    """Candidates of a run of `rprm search sample`, which must be complete; of the first `limit` problems.

    Raises:
        RunError: it is no such run, or is not complete.
        CorruptRun: one of its files is damaged.
    """
    manifest = finished_manifest(folder, stage=SAMPLE, command="rprm search sample")
    path = Path(folder) / RESULTS
    rows = tuple(read_rows(path, Candidates))
    settings = {name: manifest["settings"][name] for name in ("policy", "num_candidates")}
    return CandidateRows(rows[:limit], (), (), Source(str(path)).inspect(), settings)


def read_candidate_file(path: str | Path, problems: Problems) -> CandidateRows:
    """Candidates that were written elsewhere.

    A row has solutions of one problem: `solutions`, a list of texts or of lists of steps; or `solution`, one text; or
    `steps`, one list of steps or a list of such lists. A text is cut into steps as `split_steps` does. A problem may
    have several rows. It is named by `id`, that of its set or `SET/ID`; or by its text in `problem` or `question`.
    Where a row has both, they must name the same problem.

    Raises:
        InputError: there is no such file, or no row can be used.
    """
    source = Source(str(path))
    by_id: dict[str, list[Problem]] = {}
    by_text: dict[str, list[Problem]] = {}
    for problem in problems.problems:
        for identifier in {problem.id, problem.id.removeprefix(f"{problem.set}/")}:
            by_id.setdefault(identifier, []).append(problem)
        by_text.setdefault(_spaced(problem.problem), []).append(problem)

    def parse(value: Any) -> tuple[str, list[Candidate]]:
        row = json_object(value)
        return _problem_of(row, by_id, by_text).id, _candidates_of(row)

    rejected: list[Rejected] = []
    found: dict[str, list[Candidate]] = {problem.id: [] for problem in problems.problems}
    for identifier, candidates in parsed_rows(source.name, source.rows(), parse, rejected):
        found[identifier] += candidates
    rows = tuple(
        Candidates(problem=problem, candidates=tuple(found[problem.id]))
        for problem in problems.problems
        if found[problem.id]
    )
    if not rows:
        reason = f"the first, line {rejected[0].line}: {rejected[0].reason}" if rejected else "it has no rows"
        raise InputError(f"{path}: no candidates of these problems; {reason}")
    missing = tuple(identifier for identifier, candidates in found.items() if not candidates)
    digest = hashlib.sha256(f"{source.inspect().digest}\n{problems.source.digest}".encode()).hexdigest()
    return CandidateRows(
        rows, (*problems.rejected, *rejected), missing, SourceInfo(source.name, f"sha256:{digest}", len(rows))
    )


def _problem_of(row: dict[str, Any], by_id: dict[str, list[Problem]], by_text: dict[str, list[Problem]]) -> Problem:
    """The problem that a row names."""
    identifier, text = row.get("id"), row.get("problem", row.get("question"))
    if isinstance(identifier, int) and not isinstance(identifier, bool):
        identifier = str(identifier)
    name = f"id {identifier!r:.80}"
    found: list[Problem] = []
    if isinstance(identifier, str) and identifier in by_id:
        found = by_id[identifier]
        if isinstance(text, str):
            found = [problem for problem in found if _spaced(text) in _spaced(problem.problem)]
            if not found:
                raise InputError(f"the problem with id {identifier!r} has another text than this row")
    elif isinstance(text, str):
        name = f"the text {text!r:.80}"
        found = by_text.get(_spaced(text), [])
    if not found:
        raise InputError(f"no problem has {name}")
    if len(found) > 1:
        listed = ", ".join(problem.id for problem in found[:3])
        raise InputError(f"several problems have {name} ({listed}): write SET/ID")
    return found[0]


def _spaced(text: str) -> str:
    return " ".join(text.split())


def _candidates_of(row: dict[str, Any]) -> list[Candidate]:
    given = [name for name in ("solutions", "solution", "steps") if name in row]
    if len(given) != 1:
        raise InputError(
            f"one of 'solutions', 'solution' and 'steps' must be there, not {' and '.join(given) or 'none of them'}"
        )
    value = row[given[0]]
    if given[0] == "solutions" and not isinstance(value, list):
        raise InputError(f"'solutions' must be a list, not {value!r:.80}")
    is_several = given[0] == "solutions" or (given[0] == "steps" and _is_list_of(value, list))
    candidates = []
    for solution in value if is_several else [value]:
        if isinstance(solution, str):
            text, steps = solution, split_steps(solution)
        elif _is_list_of(solution, str):
            text, steps = "\n\n".join(solution), solution
        else:
            raise InputError(f"a solution must be a text or a list of steps, not {solution!r:.80}")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InputError(f"text that is not Unicode: a lone surrogate {error.object[error.start]!r}") from None
        candidates.append(Candidate(text=text, steps=tuple(steps)))
    return candidates


def _is_list_of(value: Any, kind: type) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, kind) for item in value)
