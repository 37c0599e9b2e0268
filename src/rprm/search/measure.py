"""Runs of the search commands on the mathematics sets, measured beside each other: accuracy, its uncertainty, its cost.

Intervals are 95% percentile intervals of a bootstrap in two stages (Davison and Hinkley 1997, section 3.8): problems,
and for each the accuracy on candidates drawn with replacement (docs/search.md)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel

from rprm.aggregation import AGGREGATIONS, Aggregation, aggregate
from rprm.benchmarks.cost import Cost, cost_of
from rprm.benchmarks.mathematics import AVERAGE, GradedAnswer, MeasuredRow, Problem, SearchMeasurement, numbered
from rprm.benchmarks.scores import named
from rprm.benchmarks.tally import DEFAULT_RESAMPLES, Figure, Floats, named_figures
from rprm.errors import BenchmarkError, RunError
from rprm.grading import AnswerPair, Grade, Grader, final_answer
from rprm.runs import read_manifest, read_results
from rprm.search.candidates import BEST_OF_N, SAMPLE, Candidates, JudgedCandidates
from rprm.search.choosing import NUM_REPLICATES, Pool, accuracies, resampled_means
from rprm.search.guided import GUIDED, SearchTree
from rprm.search.racing import all_rewards, digest_of

ONE = "pass@1"
#: What candidates reach without rewards, in the order of `Accuracy.of`.
POOL_STRATEGIES = (ONE, "majority@N", "pass@N")

#: By job, the rows of the runs that can be measured.
_ROWS: dict[str, type[Any]] = {SAMPLE: Candidates, BEST_OF_N: JudgedCandidates, GUIDED: SearchTree}


class _Engine(BaseModel):
    """Who wrote, or judged, in a manifest's settings."""

    kind: str
    model: str


class _Policy(BaseModel):
    engine: _Engine


class _Strategy(BaseModel):
    """How a search spent its samples, in settings that may be older than `guided.Strategy` is now."""

    name: str
    num_trees: int
    beam_size: int
    width: int
    aggregation: str


@dataclass(frozen=True)
class Attempts:
    """The n solutions of one problem in one run, and the index of the one that it chose."""

    problem: Problem
    digest: str  #: of the solutions' texts
    answers: tuple[str | None, ...]  #: the final answer of each, None where it gives none
    policy_tokens: int | None  #: None where they were not counted
    judge_tokens: int | None = None  #: None where nothing was judged
    chosen: int | None = None
    fell_back: bool = False  #: it chose without a reward to go by
    failure: str | None = None
    rewards: dict[Aggregation, tuple[float | None, ...]] = field(default_factory=dict)  #: empty unless judged in full
    grades: tuple[Grade, ...] = ()  #: of the answers, once they are graded; their groups likewise
    groups: tuple[int, ...] = ()

    @classmethod
    def of(cls, row: Candidates | JudgedCandidates | SearchTree, *, in_full: bool = False) -> Attempts:
        """What a run's row comes to. `in_full`: its candidates were judged in full."""
        texts = [row.text] if isinstance(row, SearchTree) else [candidate.text for candidate in row.candidates]
        known = row.problem, digest_of(texts), tuple(final_answer(text, row.problem.rule) for text in texts)
        if isinstance(row, SearchTree):
            return cls(*known, row.num_policy_tokens, row.num_judge_tokens, 0, row.fell_back)
        counts = [candidate.num_tokens for candidate in row.candidates if candidate.num_tokens is not None]
        found = cls(*known, sum(counts) if len(counts) == len(texts) else None, failure=row.failure)
        if isinstance(row, Candidates):
            return found
        judged = zip(row.candidates, row.rewards, strict=True)
        by_step = [all_rewards(one.steps, reward.steps) for one, reward in judged] if in_full else []
        return replace(
            found, chosen=row.chosen, fell_back=row.fell_back,
            judge_tokens=sum(one.num_tokens for step in row.judged_steps().values() for one in step.analyses),
            rewards={how: tuple(aggregate(steps, how) for steps in by_step) for how in AGGREGATIONS if in_full},
        )  # fmt: skip


@dataclass(frozen=True, eq=False)
class SearchRun:
    """A run of a search command; `policy` and `judge` as tables print them."""

    name: str
    method: str | None  #: how it chose a solution (`Best-of-N (min)`); None where it only sampled
    policy: str
    judge: str | None
    attempts: tuple[Attempts, ...]
    is_search: bool = False  #: guided step by step, so that a problem has the one solution it arrived at
    notes: tuple[str, ...] = ()  #: what a reader of its figures must know, in sentences
    cost: Cost = field(default_factory=Cost)

    @cached_property
    def digest(self) -> str:
        """The same for runs that chose among the same solutions."""
        return " ".join([str(self.is_search), *(one.digest for one in self.attempts)])

    @cached_property
    def num_candidates(self) -> int:
        """N: the most solutions that a problem has, at least 1."""
        return max(1, *(len(one.answers) for one in self.attempts))

    @cached_property
    def aggregations(self) -> list[Aggregation]:
        """Those under which the solutions are rewarded: all, or none where they were not judged in full."""
        return [how for how in AGGREGATIONS if all(how in one.rewards for one in self.attempts)]


def read_search_run(folder: str | Path, attempts: Iterable[Attempts] | None = None) -> SearchRun:
    """Read a run folder of `rprm search`; where its attempts are known already, its rows are not. `RunError` where it
    is none, or of another job, or (`CorruptRun`) damaged."""
    manifest = read_manifest(folder)
    job, settings = manifest["stage"], manifest["settings"]
    if job not in _ROWS:
        raise RunError(f"{folder} is a run of stage {job!r}; what can be measured here is {', '.join(_ROWS)}")
    method = None
    if job == BEST_OF_N:
        method = f"Best-of-N ({settings.of('aggregation', str)})"
    elif job == GUIDED:
        how = settings.of("strategy", _Strategy)
        title = "DVTS" if how.name == "dvts" else f"{how.name} search"
        method = f"{title} ({how.num_trees * how.beam_size * how.width} steps a round, {how.aggregation})"
    if attempts is None:
        in_full = settings.get("choice_stopping") == "none"
        rows = read_results(folder, _ROWS[job].model_validate)
        attempts = (Attempts.of(row, in_full=in_full) for row in rows)
    asked = settings.of("policy", _Policy | None)
    engines = asked and asked.engine, settings.of("engine", _Engine | None)
    policy, judge = (engine and f"{engine.kind}:{engine.model}" for engine in engines)
    # Candidates that were brought from elsewhere have no policy, but a file.
    policy = policy or str(manifest["sessions"][-1].get("input"))
    notes = () if manifest.get("status") == "complete" else (f"{folder} is not finished",)
    return SearchRun(str(folder), method, policy, judge, tuple(attempts), job == GUIDED, notes, cost_of(folder))


def sampled_run(name: str, policy: str, rows: Iterable[Candidates], notes: Iterable[str] = ()) -> SearchRun:
    """Candidates that are in no run folder."""
    return SearchRun(name, None, policy, None, tuple(map(Attempts.of, rows)), notes=tuple(notes))


def measure_runs(
    runs: Sequence[SearchRun], *, grader: Grader | None = None, baseline: str | None = None, curve: bool = False,
    num_resamples: int = DEFAULT_RESAMPLES, seed: int = 0,
) -> SearchMeasurement:  # fmt: skip
    """Measure runs on the problems that all have, and that have a gold answer; `curve`: with fewer candidates too.

    `baseline` is the row that others are compared with, besides the majority: `pass@1` (the default), `majority@8`,
    `Best-of-N (min)`, ... A row is compared with that of its own candidates, or the first where it has none.
    A `BenchmarkError` where there is no run, problem or such baseline, or runs differ in a problem of one id."""
    if not runs:
        raise BenchmarkError("no run to measure")
    if num_resamples < 1:
        raise BenchmarkError(f"num_resamples is {num_resamples}; at least 1 is needed")
    problems, notes = _common_problems(runs)
    with nullcontext(grader) if grader else Grader() as opened:
        graded = _graded(runs, problems, opened)
    sets = dict(Counter(problem.set for problem in problems))
    lines: list[_Line] = []
    answers: list[GradedAnswer] = []
    pools: set[str] = set()
    for run in graded:
        is_new = run.digest not in pools
        pools.add(run.digest)
        lines += _lines(run, list(sets), curve, is_new, num_resamples, seed)
        notes += _notes(run, with_pool=is_new)
        answers += [
            GradedAnswer(run.name, one.problem.id, index, *answer)
            for one in run.attempts
            for index, answer in enumerate(zip(one.answers, one.grades, one.groups, strict=True))
            if is_new
        ]
    rows = list(zip(_rows(lines, (*sets, AVERAGE), baseline), lines, strict=True))
    table = tuple(row for row, line in rows if line.is_whole)
    on_curve = tuple(row for row, line in rows if curve and line.size is not None and line.strategy != ONE)
    costs = {run.name: run.cost for run in runs}
    return SearchMeasurement(sets, table, on_curve, tuple(answers), num_resamples, seed, tuple(notes), costs)


def _common_problems(runs: Sequence[SearchRun]) -> tuple[list[Problem], list[str]]:
    """The problems to measure, in the first run's order, and what is to be said of the others."""
    by_id = [{one.problem.id: one.problem for one in run.attempts} for run in runs]
    common = [problem for problem in by_id[0].values() if all(problem.id in other for other in by_id)]
    notes = [note for run in runs for note in run.notes]
    for run, known in zip(runs, by_id, strict=True):
        if different := [problem.id for problem in common if known[problem.id] != problem]:
            raise BenchmarkError(
                f"{runs[0].name} and {run.name} differ in the text, the gold answer or the grading rule of "
                f"{len(different)} problems with the same id: {named(different)}; measure runs on the same data"
            )
        if others := len(known) - len(common):
            notes.append(f"{run.name}: {others:,} of its {len(known):,} problems are not in all runs, and not measured")
    problems = [problem for problem in common if problem.answer is not None]
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
    every = (one for few in attempts for one in few)
    pairs = [AnswerPair(one.problem.answer or "", answer, one.problem.rule) for one in every for answer in one.answers]
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
    if unsettled := sorted((outcome, count) for outcome, count in outcomes.items() if Grade(outcome).correct is None):
        listed = ", ".join(f"{outcome} ({count:,})" for outcome, count in unsettled)
        total = sum(count for _, count in unsettled)
        yield f"{name}: {total:,} gradings came to no conclusion, and count as wrong: {listed}"


@dataclass(frozen=True, eq=False)
class _Line:
    """A row in the making; `size` is its number of candidates, `values` (F,) are its accuracies on each set and in the
    mean, `resampled` (F, B) those in each resample."""

    strategy: str
    run: SearchRun
    size: int | None
    values: Floats
    resampled: Floats

    @property
    def names(self) -> tuple[str, str]:
        return self.strategy, numbered(self.strategy, self.size)

    @property
    def is_whole(self) -> bool:
        """Whether it belongs in the table: it takes all the candidates there are, or their mean."""
        return self.size in (None, self.run.num_candidates) or self.strategy == ONE

    def likeness(self, other: _Line) -> tuple[bool, bool, bool]:
        as_many = other.is_whole if self.is_whole else other.size == self.size
        return other.run.digest == self.run.digest, as_many, other.is_whole

    def tokens(self, counts: Sequence[int | None]) -> float | None:
        """Generated for a problem, in the mean: with fewer candidates, so much less."""
        known = [count for count in counts if count is not None]
        share = 1.0 if self.size is None else self.size / self.run.num_candidates
        return share * sum(known) / len(known) if len(known) == len(counts) else None

    def figures(self, names: Sequence[str], against: _Line | None = None) -> dict[str, Figure]:
        """Its accuracies in percent, or how far they are above those of another line."""
        value, resampled = self.values, self.resampled.clip(0.0, 1.0)
        if against is not None:
            value, resampled = value - against.values, self.resampled - against.resampled
        return named_figures(names, 100.0 * value, 100.0 * resampled.T)[0]


def _lines(
    run: SearchRun, sets: Sequence[str], curve: bool, with_pool: bool, num_resamples: int, seed: int
) -> Iterator[_Line]:
    """The lines of a run; those that depend on the candidates alone `with_pool`."""
    strata = np.array([one.problem.set for one in run.attempts])
    right = [[grade.correct is True for grade in one.grades] for one in run.attempts]

    def lines(names: Sequence[str], size: int | None, accuracy: Floats, replicates: Floats) -> Iterator[_Line]:
        """C lines, by their accuracy on each problem, (P, C), and replicates of it, (P, R, C)."""
        by_set = [accuracy[strata == name].mean(axis=0) for name in sets]
        resampled = resampled_means(replicates, strata, sets, num_resamples, seed)
        # And then the unweighted mean of the sets.
        values, means = (np.stack([*few, np.mean(few, axis=0)]) for few in (by_set, resampled))
        for place, name in enumerate(names):
            yield _Line(name, run, 1 if name == ONE else size, values[:, place], means[:, :, place])

    if not run.is_search:
        pools = [
            Pool(correct, one.groups, [one.rewards[how] for how in run.aggregations])
            for correct, one in zip(right, run.attempts, strict=True)
        ]
        by_reward = [f"{way} ({how})" for way in ("Best-of-N", "weighted vote of N") for how in run.aggregations]
        strategies = [*POOL_STRATEGIES, *by_reward]
        most = run.num_candidates
        for size in [2**power for power in range(most.bit_length()) if 2**power < most and curve] + [most]:
            # pass@1, the first, is the same for every N.
            first = len(POOL_STRATEGIES) if not with_pool else int(size < most)
            if names := strategies[first:]:
                accuracy, replicates = accuracies(pools, size, len(strategies), seed)
                yield from lines(names, size, accuracy[:, first:], replicates[:, :, first:])
    if run.method is not None and not run.aggregations:
        # Its own choice is all that is known: there is nothing to draw of it.
        pairs = zip(run.attempts, right, strict=True)
        chosen = [one.chosen is not None and correct[one.chosen] for one, correct in pairs]
        chose_right = np.array(chosen, dtype=np.float64)[:, None]
        size_of = None if run.is_search else run.num_candidates
        yield from lines([run.method], size_of, chose_right, np.repeat(chose_right[:, None], NUM_REPLICATES, axis=1))


def _rows(lines: Sequence[_Line], names: Sequence[str], baseline: str | None) -> Iterator[MeasuredRow]:
    """Lines with their figures, of these `names`, and differences."""
    if baseline is not None and not any(baseline in line.names for line in lines):
        known = ", ".join(dict.fromkeys(line.names[1] for line in lines))
        raise BenchmarkError(f"no row is called {baseline!r}, which was to be the baseline; there are {known}")
    for line in lines:
        # To the baselines of that name: of the same candidates and as many of them, if there is one.
        called = [
            [other for other in lines if name in other.names] for name in dict.fromkeys((baseline or ONE, "majority@N"))
        ]
        others = [max(few, key=line.likeness) for few in called if few]
        differences = {one.names[1]: line.figures(names, one) for one in others if one is not line}
        run, is_judged = line.run, line.strategy not in POOL_STRATEGIES
        yield MeasuredRow(
            line.strategy, run.judge if is_judged and run.judge else run.policy, run.name, line.size,
            line.figures(names), differences, line.tokens([one.policy_tokens for one in run.attempts]),
            line.tokens([one.judge_tokens for one in run.attempts]) if is_judged else 0.0,
        )  # fmt: skip
