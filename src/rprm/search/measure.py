"""Runs of the search commands on the mathematics sets, measured beside each other: accuracy, its uncertainty, its cost.

Intervals are 95% percentile intervals of a bootstrap in two stages (Davison and Hinkley 1997, section 3.8). In each
resample every set's problems are drawn with replacement, and of each drawn problem one replicate of its accuracy: what
the strategy reaches on n candidates drawn with replacement from its n. A candidate that comes twice makes pass@N
smaller and votes less varied, so that replicates are shifted to have the problem's own accuracy as their mean; an
interval that this moves beyond 0 or 100% ends there. The accuracies of a set's problems already vary by what its
candidates happened to be, so that this part counts twice, and intervals are on the wide side (docs/search.md).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import compress, islice
from pathlib import Path
from typing import Any

import numpy as np

from rprm.benchmarks.bootstrap import DEFAULT_RESAMPLES
from rprm.benchmarks.mathematics import (
    AVERAGE,
    GradedAnswer,
    MeasuredRow,
    Problem,
    SearchMeasurement,
    numbered,
)
from rprm.benchmarks.tally import Figure, Floats, named, named_figures
from rprm.errors import BenchmarkError, RunError
from rprm.grading import AnswerPair, Grade, Grader, final_answer
from rprm.runs import RESULTS, read_manifest
from rprm.search.candidates import BEST_OF_N, SAMPLE, Candidates, JudgedCandidates, read_rows
from rprm.search.choosing import NUM_REPLICATES, Pool, accuracies, powers_up_to, resampled_means
from rprm.search.guided import GUIDED
from rprm.search.racing import AGGREGATIONS, Aggregation, aggregate, digest_of
from rprm.search.trees import SearchTree

ONE = "pass@1"
#: What candidates reach without rewards, in the order of `Accuracy.of`.
POOL_STRATEGIES = (ONE, "majority@N", "pass@N")

#: By job, the rows of the runs that can be measured.
_ROWS: dict[str, type[Any]] = {SAMPLE: Candidates, BEST_OF_N: JudgedCandidates, GUIDED: SearchTree}


@dataclass(frozen=True)
class Attempts:
    """The solutions of one problem in one run, n of them.

    Attributes:
        answers: the final answer of each, None where it gives none.
        rewards: by aggregation, of each; empty where they were not judged in full.
        chosen: the index of the one that the run chose, None where it chose none.
        fell_back: it chose without a reward to go by.
        failure: why there are no solutions.
        policy_tokens, judge_tokens: None where they were not counted, or nothing was judged.
        digest: of the solutions' texts.
        grades, groups: of the answers, once they are graded.
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
    grades: tuple[Grade, ...] = ()
    groups: tuple[int, ...] = ()

    @classmethod
    def of(cls, row: Candidates | JudgedCandidates | SearchTree, *, in_full: bool = False) -> Attempts:
        """What a run's row comes to. `in_full`: its candidates were judged in full."""
        texts = [row.text] if isinstance(row, SearchTree) else [candidate.text for candidate in row.candidates]
        rewards: dict[Aggregation, tuple[float | None, ...]] = {}
        chosen: int | None = None
        judge_tokens: int | None = None
        if isinstance(row, SearchTree):
            chosen, judge_tokens = 0, row.num_judge_tokens
            tokens = [row.num_policy_tokens]
        else:
            tokens = [candidate.num_tokens for candidate in row.candidates if candidate.num_tokens is not None]
        if isinstance(row, JudgedCandidates):
            chosen = row.chosen
            judge_tokens = sum(one.num_tokens for step in row.judged_steps().values() for one in step.analyses)
            if in_full:
                by_step = []
                for candidate, reward in zip(row.candidates, row.rewards, strict=True):
                    known = {step.step_index: step.reward for step in reward.steps}
                    by_step.append([known.get(index) for index in range(len(candidate.steps))])
                rewards = {how: tuple(aggregate(steps, how) for steps in by_step) for how in AGGREGATIONS}
        return cls(
            problem=row.problem,
            answers=tuple(final_answer(text, row.problem.rule) for text in texts),
            rewards=rewards,
            chosen=chosen,
            fell_back=not isinstance(row, Candidates) and row.fell_back,
            failure=None if isinstance(row, SearchTree) else row.failure,
            policy_tokens=sum(tokens) if len(tokens) == len(texts) else None,
            judge_tokens=judge_tokens,
            digest=digest_of(texts),
        )


@dataclass(frozen=True, eq=False)
class SearchRun:
    """A run of a search command, with P problems.

    Attributes:
        name: of its folder or file.
        method: how it chose a solution, N standing for the number of candidates (`Best-of-N (min)`); None where it only
            sampled.
        policy: the model that wrote the solutions, as tables print it.
        judge: the model that rewarded them.
        attempts: (P,) in the run's order.
        is_search: it is guided step by step, so that a problem has the one solution it arrived at.
        notes: what a reader of its figures must know beforehand, in sentences.
    """

    name: str
    method: str | None
    policy: str
    judge: str | None
    attempts: tuple[Attempts, ...]
    is_search: bool = False
    notes: tuple[str, ...] = ()

    @cached_property
    def digest(self) -> str:
        """The same for runs that chose among the same solutions."""
        kind = "search" if self.is_search else "candidates"
        return " ".join([kind, *(one.digest for one in self.attempts)])

    @cached_property
    def num_candidates(self) -> int:
        """N: the most solutions that a problem has, at least 1."""
        return max(1, *(len(one.answers) for one in self.attempts))

    @cached_property
    def aggregations(self) -> list[Aggregation]:
        """Those under which the solutions are rewarded: all, or none where they were not judged in full."""
        return [how for how in AGGREGATIONS if all(how in one.rewards for one in self.attempts)]


def read_search_run(folder: str | Path, attempts: Iterable[Attempts] | None = None) -> SearchRun:
    """Read a run folder of `rprm search`.

    Args:
        attempts: where they are known already, so that the rows need not be read.

    Raises:
        RunError: it is no run folder, or one of another job.
        CorruptRun: one of its files is damaged.
    """
    manifest = read_manifest(folder)
    job, settings = manifest["stage"], manifest["settings"]
    if job not in _ROWS:
        raise RunError(f"{folder} is a run of stage {job!r}; what can be measured here is {', '.join(_ROWS)}")
    method = None
    if job == BEST_OF_N:
        method = f"Best-of-N ({settings['aggregation']})"
    elif job == GUIDED:
        strategy = settings["strategy"]
        names = {"guided": "guided search", "beam": "beam search", "dvts": "DVTS"}
        width = strategy["num_trees"] * strategy["beam_size"] * strategy["width"]
        method = f"{names.get(strategy['name'], strategy['name'])} ({width} steps a round, {strategy['aggregation']})"
    if attempts is None:
        in_full = settings.get("choice_stopping") == "none"
        attempts = (Attempts.of(row, in_full=in_full) for row in read_rows(Path(folder) / RESULTS, _ROWS[job]))
    return SearchRun(
        name=str(folder),
        method=method,
        # Candidates that were brought from elsewhere have no policy, but a file.
        policy=_model(settings.get("policy", {})) or manifest["sessions"][-1]["input"],
        judge=_model(settings),
        attempts=tuple(attempts),
        is_search=job == GUIDED,
        notes=() if manifest.get("status") == "complete" else (f"{folder} is not finished",),
    )


def _model(described: Mapping[str, Any]) -> str | None:
    """The model that a manifest describes, as one names it on the command line."""
    engine = described.get("engine")
    return f"{engine['kind']}:{engine['model']}" if engine else None


def sampled_run(name: str, policy: str, rows: Iterable[Candidates], notes: Iterable[str] = ()) -> SearchRun:
    """Candidates that are in no run folder."""
    return SearchRun(name, None, policy, None, tuple(map(Attempts.of, rows)), notes=tuple(notes))


def measure_runs(
    runs: Sequence[SearchRun],
    *,
    grader: Grader | None = None,
    baseline: str | None = None,
    curve: bool = False,
    num_resamples: int = DEFAULT_RESAMPLES,
    seed: int = 0,
) -> SearchMeasurement:
    """Measure runs on the problems that all of them have, and that have a gold answer.

    Args:
        runs: of any search commands.
        grader: None for one of its own.
        baseline: the row that others are compared with, besides the majority: `pass@1` (the default), `majority@8`,
            `Best-of-N (min)`, ... A row is compared with that of its own candidates, or the first where it has none.
        curve: also with fewer candidates.
        num_resamples: of the bootstrap.
        seed: of the resamples, and of random subsets of candidates.

    Raises:
        BenchmarkError: there are no runs, or no problem to measure; runs differ in a problem of one id; there is no
            such baseline.
    """
    if not runs:
        raise BenchmarkError("no run to measure")
    if num_resamples < 1:
        raise BenchmarkError(f"num_resamples is {num_resamples}; at least 1 is needed")
    problems, notes = _common_problems(runs)
    with nullcontext(grader) if grader else Grader() as opened:
        graded = _graded(runs, problems, opened)
    strata = np.array([problem.set for problem in problems])
    sets = dict(Counter(problem.set for problem in problems))
    lines: list[_Line] = []
    values, resampled_values = [], []
    pools: set[str] = set()
    answers: list[GradedAnswer] = []
    for run in graded:
        is_new = run.digest not in pools
        for found, accuracy, replicates in _evaluate(run, curve=curve, with_pool=is_new, seed=seed):
            lines += found
            values.append(_with_average([accuracy[strata == name].mean(axis=0) for name in sets]))
            means = resampled_means(replicates, strata, tuple(sets), num_resamples, seed)
            resampled_values.append(_with_average(means))
        notes += _notes(run, with_pool=is_new)
        if is_new:
            pools.add(run.digest)
            answers += [
                GradedAnswer(run.name, one.problem.id, index, *answer)
                for one in run.attempts
                for index, answer in enumerate(zip(one.answers, one.grades, one.groups, strict=True))
            ]
    rows = _rows(lines, (*sets, AVERAGE), np.hstack(values), np.concatenate(resampled_values, axis=2), baseline)
    on_curve = [curve and line.size is not None and line.strategy != ONE for line in lines]
    return SearchMeasurement(
        sets=sets,
        rows=tuple(row for row, line in zip(rows, lines, strict=True) if line.is_whole),
        curve=tuple(compress(rows, on_curve)),
        answers=tuple(answers),
        num_resamples=num_resamples,
        seed=seed,
        notes=tuple(notes),
    )


def _common_problems(runs: Sequence[SearchRun]) -> tuple[list[Problem], list[str]]:
    """The problems to measure, in the first run's order, and what is to be said of the others."""
    by_id = [{one.problem.id: one.problem for one in run.attempts} for run in runs]
    common = [identifier for identifier in by_id[0] if all(identifier in other for other in by_id)]
    for run, known in zip(runs[1:], by_id[1:], strict=True):
        if different := [identifier for identifier in common if known[identifier] != by_id[0][identifier]]:
            raise BenchmarkError(
                f"{runs[0].name} and {run.name} differ in the text, the gold answer or the grading rule of "
                f"{len(different)} problems with the same id: {named(different)}; measure runs on the same data"
            )
    notes = [note for run in runs for note in run.notes]
    for run, known in zip(runs, by_id, strict=True):
        if others := len(known) - len(common):
            of = f"{others:,} of its {len(known):,} problems"
            notes.append(f"{run.name}: {of} are not in all runs, and not measured")
    problems = [by_id[0][identifier] for identifier in common if by_id[0][identifier].answer is not None]
    if not problems:
        what = "has a gold answer" if common else "is in all of the runs" if len(runs) > 1 else "is in the run"
        raise BenchmarkError(f"no problem {what}: there is nothing to measure")
    if len(problems) < len(common):
        notes.append(f"{len(common) - len(problems):,} problems have no gold answer, and are not measured")
    return problems, notes


def _graded(runs: Sequence[SearchRun], problems: Sequence[Problem], grader: Grader) -> list[SearchRun]:
    """Runs on these problems alone, every solution graded, the answers of each problem grouped."""
    found = [{one.problem.id: one for one in run.attempts} for run in runs]
    attempts = [[known[problem.id] for problem in problems] for known in found]
    # One batch: all that strings and numbers do not decide is shared among the grader's workers.
    pairs = [
        AnswerPair(one.problem.answer or "", answer, one.problem.rule)
        for few in attempts
        for one in few
        for answer in one.answers
    ]
    grades = iter(grader.grade_all(pairs))

    def with_grades(one: Attempts) -> Attempts:
        groups = tuple(grader.group_equivalent(one.answers))
        return replace(one, grades=tuple(islice(grades, len(one.answers))), groups=groups)

    return [replace(run, attempts=tuple(map(with_grades, few))) for run, few in zip(runs, attempts, strict=True)]


def _notes(run: SearchRun, *, with_pool: bool) -> Iterator[str]:
    """What a reader of a run's figures must know of its choices and, `with_pool`, of its solutions."""
    name, number = run.name, run.num_candidates
    if fell_back := sum(one.fell_back for one in run.attempts):
        lacking = "a finished solution with a reward" if run.is_search else "any reward"
        yield f"{name}: {fell_back:,} choices fell back, for want of {lacking}"
    if run.method is not None and not run.is_search and not run.aggregations:
        yield f"{name}: judged as far as its own choice needs; other choices need every reward in full"
    if not with_pool:
        return
    if failures := [one.failure for one in run.attempts if not one.answers]:
        reason = next((f" ({failure:.120})" for failure in failures if failure), "")
        yield f"{name}: {len(failures):,} problems have no solution{reason}, and count as wrong"
    if fewer := sum(0 < len(one.answers) < number for one in run.attempts):
        yield f"{name}: {fewer:,} problems have fewer than {number} solutions, and are measured on those they have"
    outcomes = Counter(grade.outcome for one in run.attempts for grade in one.grades)
    if unanswered := outcomes["no answer"]:
        yield f"{name}: {unanswered:,} of {outcomes.total():,} solutions give no answer"
    if unsettled := sorted((outcome, n) for outcome, n in outcomes.items() if Grade(outcome).correct is None):
        listed = ", ".join(f"{outcome} ({count:,})" for outcome, count in unsettled)
        total = sum(count for _, count in unsettled)
        yield f"{name}: {total:,} gradings came to no conclusion, and count as wrong: {listed}"


@dataclass(frozen=True)
class _Line:
    """A row before its figures; `size` is its number of candidates."""

    strategy: str
    run: SearchRun
    size: int | None

    @property
    def names(self) -> tuple[str, str]:
        return self.strategy, numbered(self.strategy, self.size)

    @property
    def is_whole(self) -> bool:
        """Whether it belongs in the table: it takes all the candidates there are, or their mean."""
        return self.size in (None, self.run.num_candidates) or self.strategy == ONE

    def tokens(self, counts: Sequence[int | None]) -> float | None:
        """Generated for a problem, in the mean: with fewer candidates, so much less."""
        known = [count for count in counts if count is not None]
        share = 1.0 if self.size is None else self.size / self.run.num_candidates
        return share * sum(known) / len(known) if len(known) == len(counts) else None


def _evaluate(
    run: SearchRun, *, curve: bool, with_pool: bool, seed: int
) -> Iterator[tuple[list[_Line], Floats, Floats]]:
    """The lines of a run, C at a time, with their accuracy on each problem, (P, C), and replicates of that, (P, R, C).

    Those that depend on the candidates alone are among them where `with_pool`.
    """
    if not run.is_search:
        pools = [
            Pool.of(
                [grade.correct is True for grade in one.grades],
                one.groups,
                [one.rewards[how] for how in run.aggregations],
            )
            for one in run.attempts
        ]
        best = [f"Best-of-N ({how})" for how in run.aggregations]
        strategies = [*POOL_STRATEGIES, *best, *(f"weighted vote of N ({how})" for how in run.aggregations)]
        for size in powers_up_to(run.num_candidates) if curve else [run.num_candidates]:
            # pass@1 is the same for every N.
            wanted = [
                index
                for index, strategy in enumerate(strategies)
                if (with_pool or strategy not in POOL_STRATEGIES) and (strategy != ONE or size == run.num_candidates)
            ]
            if wanted:
                accuracy, replicates = accuracies(pools, size, len(strategies), seed)
                lines = [_Line(strategies[index], run, 1 if index == 0 else size) for index in wanted]
                yield lines, accuracy[:, wanted], replicates[:, :, wanted]
    if run.method is not None and not run.aggregations:
        # Its own choice is all that is known: there is nothing to draw of it.
        is_right = [one.chosen is not None and one.grades[one.chosen].correct is True for one in run.attempts]
        chose_right = np.array(is_right, dtype=np.float64)[:, None]
        line = _Line(run.method, run, None if run.is_search else run.num_candidates)
        yield [line], chose_right, np.repeat(chose_right[:, None], NUM_REPLICATES, axis=1)


def _with_average(by_set: Sequence[Floats]) -> Floats:
    """The values of the sets, and then their unweighted mean."""
    return np.stack([*by_set, np.mean(by_set, axis=0)])


def _rows(
    lines: Sequence[_Line], names: Sequence[str], values: Floats, resampled_values: Floats, baseline: str | None
) -> list[MeasuredRow]:
    """Put figures on lines.

    Args:
        names: F of them, of the sets and the average.
        values: (F, C).
        resampled_values: (F, B, C).
    """
    baselines = list(dict.fromkeys([baseline or ONE, "majority@N"]))
    if baseline is not None and not any(baseline in line.names for line in lines):
        known = ", ".join(dict.fromkeys(line.names[1] for line in lines))
        raise BenchmarkError(f"no row is called {baseline!r}, which was to be the baseline; there are {known}")

    def figures(index: int, against: int | None = None) -> dict[str, Figure]:
        value, resampled_value = values[:, index], resampled_values[:, :, index].clip(0.0, 1.0)
        if against is not None:
            value = value - values[:, against]
            resampled_value = resampled_values[:, :, index] - resampled_values[:, :, against]
        return named_figures(names, 100.0 * value, 100.0 * resampled_value.T)[0]

    def baseline_of(line: _Line, name: str) -> int | None:
        """The line of that name: of the same candidates and as many of them, if there is one."""

        def likeness(index: int) -> tuple[bool, bool, bool, int]:
            other = lines[index]
            as_many = other.is_whole if line.is_whole else other.size == line.size
            return other.run.digest == line.run.digest, as_many, other.is_whole, -index

        called = (index for index, other in enumerate(lines) if name in other.names)
        return max(called, key=likeness, default=None)

    rows = []
    for index, line in enumerate(lines):
        run = line.run
        is_judged = line.strategy not in POOL_STRATEGIES
        against = [other for name in baselines if (other := baseline_of(line, name)) not in (None, index)]
        rows.append(
            MeasuredRow(
                strategy=line.strategy,
                model=run.judge if is_judged and run.judge else run.policy,
                run=run.name,
                num_candidates=line.size,
                figures=figures(index),
                differences={lines[other].names[1]: figures(index, other) for other in against if other is not None},
                policy_tokens=line.tokens([one.policy_tokens for one in run.attempts]),
                judge_tokens=line.tokens([one.judge_tokens for one in run.attempts]) if is_judged else 0.0,
            )
        )
    return rows
