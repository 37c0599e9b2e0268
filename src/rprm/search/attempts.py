"""What runs of the search stages made of their problems, as far as measuring needs it: answers, rewards, cost."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from rprm.errors import CorruptRun, RunError
from rprm.grading import final_answer
from rprm.runs import RESULTS, read_json_lines, read_manifest
from rprm.search.aggregation import AGGREGATIONS, Aggregation, aggregate
from rprm.search.best_of_n import STAGE as BEST_OF_N
from rprm.search.candidates import Candidate, Candidates, JudgedCandidates, digest_of
from rprm.search.guided import STAGE as GUIDED
from rprm.search.problems import Problem
from rprm.search.sampling import STAGE as SAMPLE
from rprm.search.trees import SearchTree

#: Stages of runs that can be measured.
STAGES = (SAMPLE, BEST_OF_N, GUIDED)


@dataclass(frozen=True)
class Attempts:
    """The solutions of one problem in one run, n of them.

    Attributes:
        answers: the final answer of each, None where it gives none.
        rewards: by aggregation, of each; empty where they were not judged in full.
        chosen: the index of the one that the run chose, None where it chose none.
        fell_back: it chose without a reward to go by.
        failure: why there are no solutions.
        policy_tokens: None where they were not counted.
        judge_tokens: None where nothing was judged.
        digest: of the solutions' texts.
    """

    problem: Problem
    answers: tuple[str | None, ...]
    rewards: dict[Aggregation, tuple[float | None, ...]]
    chosen: int | None
    fell_back: bool
    failure: str | None
    policy_tokens: int | None
    judge_tokens: int | None
    digest: str

    @property
    def id(self) -> str:
        return self.problem.id


@dataclass(frozen=True)
class SearchRun:
    """A run of a search stage.

    Attributes:
        name: of its folder or file.
        method: how it chose a solution, N standing for the number of candidates (`Best-of-N (min)`); None where it only
            sampled.
        policy: the model that wrote the solutions, as tables print it.
        judge: the model that rewarded them.
        is_search: it is guided step by step, so that a problem has the one solution it arrived at.
        attempts: by problem, in the run's order.
        notes: what a reader of its figures must know beforehand, in sentences.
    """

    name: str
    method: str | None
    policy: str
    judge: str | None
    attempts: tuple[Attempts, ...]
    is_search: bool = False
    notes: tuple[str, ...] = ()


def read_search_run(folder: str | Path) -> SearchRun:
    """Read a run folder of `rprm search`.

    Raises:
        RunError: it is no run folder, or one of another stage.
        CorruptRun: one of its files is damaged.
    """
    manifest = read_manifest(folder)
    stage, settings = manifest["stage"], manifest["settings"]
    if stage not in STAGES:
        raise RunError(f"{folder} is a run of stage {stage!r}; what can be measured here is {', '.join(STAGES)}")
    parse = _parser(stage, settings)
    path = Path(folder) / RESULTS
    attempts = []
    for number, row in enumerate(read_json_lines(path), 1):
        try:
            attempts.append(parse(row))
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"]))
            raise CorruptRun(
                f"{path}, line {number} is not a row of stage {stage} ({place}: {first['msg']}); restore the file, or "
                "begin a new run folder"
            ) from None
    return SearchRun(
        name=str(folder),
        method=_method(stage, settings),
        # Candidates that were brought from elsewhere have no policy, but a file.
        policy=_engine(settings.get("policy", {})) or manifest["sessions"][-1]["input"],
        judge=_engine(settings),
        attempts=tuple(attempts),
        is_search=stage == GUIDED,
        notes=() if manifest.get("status") == "complete" else (f"{folder} is not finished",),
    )


def sampled_run(name: str, policy: str, rows: Iterable[Candidates], notes: Iterable[str] = ()) -> SearchRun:
    """Candidates that are in no run folder."""
    return SearchRun(name, None, policy, None, tuple(map(_of_candidates, rows)), notes=tuple(notes))


def _parser(stage: str, settings: Mapping[str, Any]) -> Callable[[Any], Attempts]:
    if stage == SAMPLE:
        return lambda value: _of_candidates(Candidates.model_validate(value))
    if stage == BEST_OF_N:
        in_full = settings["choice_stopping"] == "none"
        return lambda value: _of_judged(JudgedCandidates.model_validate(value), in_full)
    return lambda value: _of_tree(SearchTree.model_validate(value))


def _method(stage: str, settings: Mapping[str, Any]) -> str | None:
    if stage == SAMPLE:
        return None
    if stage == BEST_OF_N:
        return f"Best-of-N ({settings['aggregation']})"
    strategy = settings["strategy"]
    names = {"guided": "guided search", "beam": "beam search", "dvts": "DVTS"}
    width = strategy["num_trees"] * strategy["beam_size"] * strategy["width"]
    return f"{names.get(strategy['name'], strategy['name'])} ({width} steps a round, {strategy['aggregation']})"


def _engine(described: Mapping[str, Any]) -> str | None:
    """The model that a manifest describes, as one names it on the command line."""
    engine = described.get("engine")
    return f"{engine['kind']}:{engine['model']}" if engine else None


def _of_candidates(row: Candidates) -> Attempts:
    return _attempts(row.problem, row.candidates, failure=row.failure)


def _of_judged(row: JudgedCandidates, in_full: bool) -> Attempts:
    # Equal steps after equal steps are judged once.
    analyses = {
        (candidate.steps[: step.step_index + 1], sample): analysis.num_tokens
        for candidate, reward in zip(row.candidates, row.rewards, strict=True)
        for step in reward.steps
        for sample, analysis in enumerate(step.analyses)
    }
    return _attempts(
        row.problem,
        row.candidates,
        rewards=_rewards(row) if in_full else {},
        chosen=row.chosen,
        fell_back=row.fell_back,
        failure=row.failure,
        judge_tokens=sum(analyses.values()),
    )


def _of_tree(row: SearchTree) -> Attempts:
    return Attempts(
        problem=row.problem,
        answers=(final_answer(row.text, row.problem.rule),),
        rewards={},
        chosen=0,
        fell_back=row.fell_back,
        failure=None,
        policy_tokens=row.num_policy_tokens,
        judge_tokens=row.num_judge_tokens,
        digest=digest_of([row.text]),
    )


def _attempts(
    problem: Problem,
    candidates: tuple[Candidate, ...],
    *,
    failure: str | None,
    rewards: dict[Aggregation, tuple[float | None, ...]] | None = None,
    chosen: int | None = None,
    fell_back: bool = False,
    judge_tokens: int | None = None,
) -> Attempts:
    tokens = [candidate.num_tokens for candidate in candidates if candidate.num_tokens is not None]
    return Attempts(
        problem=problem,
        answers=tuple(final_answer(candidate.text, problem.rule) for candidate in candidates),
        rewards=rewards or {},
        chosen=chosen,
        fell_back=fell_back,
        failure=failure,
        policy_tokens=sum(tokens) if len(tokens) == len(candidates) else None,
        judge_tokens=judge_tokens,
        digest=digest_of(candidate.text for candidate in candidates),
    )


def _rewards(row: JudgedCandidates) -> dict[Aggregation, tuple[float | None, ...]]:
    """Of candidates that were judged in full, under every aggregation."""
    rewards = [{step.step_index: step.reward for step in reward.steps} for reward in row.rewards]
    by_step = [
        [known.get(index) for index in range(len(candidate.steps))]
        for candidate, known in zip(row.candidates, rewards, strict=True)
    ]
    return {how: tuple(aggregate(steps, how) for steps in by_step) for how in AGGREGATIONS}
