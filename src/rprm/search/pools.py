"""Runs on the problems they have in common, graded, their answers grouped for votes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any

from rprm.benchmarks.tally import named
from rprm.errors import BenchmarkError
from rprm.grading import AnswerPair, Grade, Grader
from rprm.search.aggregation import AGGREGATIONS, Aggregation
from rprm.search.attempts import Attempts, SearchRun
from rprm.search.choosing import Pool
from rprm.search.problems import Problem


@dataclass(frozen=True)
class GradedAnswer:
    """A solution's answer, what its grading came to, and the number of its group among the problem's answers."""

    run: str
    id: str
    index: int
    answer: str | None
    grade: Grade
    group: int

    def as_dict(self) -> dict[str, Any]:
        return {
            "run": self.run,
            "id": self.id,
            "candidate": self.index,
            "answer": self.answer,
            "outcome": self.grade.outcome,
            "correct": self.grade.correct,
            "group": self.group,
        }


@dataclass(frozen=True, eq=False)
class GradedRun:
    """A run on P problems.

    Attributes:
        attempts: (P,) at each problem.
        grades: (P,) of its solutions.
        groups: (P,) of its answers.
    """

    run: SearchRun
    attempts: tuple[Attempts, ...]
    grades: tuple[tuple[Grade, ...], ...]
    groups: tuple[tuple[int, ...], ...]

    @cached_property
    def digest(self) -> str:
        """The same for runs that chose among the same solutions."""
        kind = "search" if self.run.is_search else "candidates"
        return " ".join([kind, *(attempts.digest for attempts in self.attempts)])

    @property
    def num_candidates(self) -> int:
        """N: the most solutions that a problem has, at least 1."""
        return max(1, *(len(attempts.answers) for attempts in self.attempts))

    @property
    def aggregations(self) -> list[Aggregation]:
        """Those under which the solutions are rewarded: all, or none where they were not judged in full."""
        return [how for how in AGGREGATIONS if all(how in attempts.rewards for attempts in self.attempts)]

    @property
    def chose_right(self) -> list[bool]:
        """(P,) whether the run's own choice is right."""
        return [
            attempts.chosen is not None and grades[attempts.chosen].correct is True
            for attempts, grades in zip(self.attempts, self.grades, strict=True)
        ]

    def pools(self) -> list[Pool]:
        """(P,) the solutions as candidates, rewarded under `aggregations`."""
        return [
            Pool.of(
                [grade.correct is True for grade in grades],
                groups,
                [attempts.rewards[how] for how in self.aggregations],
            )
            for attempts, grades, groups in zip(self.attempts, self.grades, self.groups, strict=True)
        ]

    def answers(self) -> Iterator[GradedAnswer]:
        """Every solution's answer."""
        for attempts, grades, groups in zip(self.attempts, self.grades, self.groups, strict=True):
            for index, (answer, grade, group) in enumerate(zip(attempts.answers, grades, groups, strict=True)):
                yield GradedAnswer(self.run.name, attempts.id, index, answer, grade, group)

    def notes(self) -> Iterator[str]:
        """What a reader of its figures must know of its choices."""
        name = self.run.name
        if fell_back := sum(attempts.fell_back for attempts in self.attempts):
            lacking = "a finished solution with a reward" if self.run.is_search else "any reward"
            yield f"{name}: {fell_back:,} choices fell back, for want of {lacking}"
        if self.run.method is not None and not self.run.is_search and not self.aggregations:
            yield f"{name}: judged as far as its own choice needs; other choices need every reward in full"

    def pool_notes(self) -> Iterator[str]:
        """What a reader of its figures must know of its solutions."""
        name = self.run.name
        if failures := [attempts.failure for attempts in self.attempts if not attempts.answers]:
            reason = next((f" ({failure:.120})" for failure in failures if failure), "")
            yield f"{name}: {len(failures):,} problems have no solution{reason}, and count as wrong"
        number = self.num_candidates
        if fewer := sum(0 < len(attempts.answers) < number for attempts in self.attempts):
            yield f"{name}: {fewer:,} problems have fewer than {number} solutions, and are measured on those they have"
        outcomes = Counter(grade.outcome for grades in self.grades for grade in grades)
        if unanswered := outcomes["no answer"]:
            yield f"{name}: {unanswered:,} of {outcomes.total():,} solutions give no answer"
        unsettled = {outcome: count for outcome, count in outcomes.items() if Grade(outcome).correct is None}
        if unsettled:
            listed = ", ".join(f"{outcome} ({count:,})" for outcome, count in sorted(unsettled.items()))
            yield f"{name}: {sum(unsettled.values()):,} gradings came to no conclusion, and count as wrong: {listed}"


def grade_runs(runs: Sequence[SearchRun], problems: Sequence[Problem], grader: Grader) -> list[GradedRun]:
    """Grade every solution of these problems and group the answers of each, run by run."""
    found = [{attempts.id: attempts for attempts in run.attempts} for run in runs]
    attempts = [[known[problem.id] for problem in problems] for known in found]
    # One batch: all that strings and numbers do not decide is shared among the grader's workers.
    pairs = (
        AnswerPair(one.problem.answer or "", answer, one.problem.rule)
        for few in attempts
        for one in few
        for answer in one.answers
    )
    grades = iter(grader.grade_all(pairs))
    return [
        GradedRun(
            run=run,
            attempts=tuple(few),
            grades=tuple(tuple(islice(grades, len(one.answers))) for one in few),
            groups=tuple(tuple(grader.group_equivalent(one.answers)) for one in few),
        )
        for run, few in zip(runs, attempts, strict=True)
    ]


def common_problems(runs: Sequence[SearchRun]) -> tuple[list[Problem], list[str]]:
    """The problems to measure, in the first run's order, and what is to be said of the others.

    Raises:
        BenchmarkError: there are none, or runs differ in one.
    """
    by_id = [{attempts.id: attempts.problem for attempts in run.attempts} for run in runs]
    common = [identifier for identifier in by_id[0] if all(identifier in other for other in by_id)]
    for run, known in zip(runs[1:], by_id[1:], strict=True):
        if different := [identifier for identifier in common if known[identifier] != by_id[0][identifier]]:
            raise BenchmarkError(
                f"{runs[0].name} and {run.name} differ in the text, the gold answer or the grading rule of "
                f"{len(different)} problems with the same id: {named(different)}; measure runs on the same data"
            )
    notes = [note for run in runs for note in run.notes]
    notes += [
        f"{run.name}: {len(known) - len(common):,} of its {len(known):,} problems are not in all runs, and not measured"
        for run, known in zip(runs, by_id, strict=True)
        if len(known) > len(common)
    ]
    problems = [by_id[0][identifier] for identifier in common if by_id[0][identifier].answer is not None]
    if not problems:
        what = "has a gold answer" if common else "is in all of the runs" if len(runs) > 1 else "is in the run"
        raise BenchmarkError(f"no problem {what}: there is nothing to measure")
    if len(problems) < len(common):
        notes.append(f"{len(common) - len(problems):,} problems have no gold answer, and are not measured")
    return problems, notes
