"""Whole solutions with their labels, and solutions of problems whose answers are known: what labels are made of."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

from pydantic import AliasChoices, BeforeValidator, Field

from rprm import reading
from rprm.benchmarks.mathematics import OWN, Problem, ProblemRow, as_text
from rprm.errors import InputError, RunError
from rprm.files import disk
from rprm.grading import MATHEMATICS, RULES
from rprm.reading import AnyText, Rejected, Row, RowModel, Source, SourceInfo, StepLabel, Text, checked, json_object
from rprm.records import Probability, Record, ResultRow, Solution, StepOrNone
from rprm.runs import RESULTS, LineWriter, finished_manifest, read_manifest, read_results
from rprm.search.candidates import SAMPLE, Candidates

#: What the stages that label solutions write: rows of `LabelledSolution`, or of `LabelledStep`.
SOLUTIONS, STEPS = "solutions.jsonl", "steps.jsonl"
LABELLING = ROLLOUTS, AGREE, INJECT = "rollouts", "agree", "inject"


class LabelledSolution(ResultRow):
    """A solution and what is known of it: `label`, the 0-based index of its first wrong step (-1: none, None: not
    known); whether its final answer is right; of each step the share that its label was made of."""

    id: str
    problem: str
    steps: tuple[str, ...]
    label: StepOrNone | None = None
    final_answer_correct: bool | None = None
    soft: Annotated[tuple[Probability | None, ...] | None, Field(exclude_if=lambda shares: shares is None)] = None
    source: str | None = None

    @property
    def solution(self) -> Solution:
        return Solution(id=self.id, problem=self.problem, steps=self.steps, label=self.label)


class _Labels(RowModel):
    outcome: Annotated[
        StepLabel | None, Field(validation_alias=AliasChoices("final_answer_correct", "outcome", "is_correct"))
    ] = None
    soft: list[Probability | None] | None = None
    source: AnyText | None = None


def labelled_solution_of(value: Any, *, default_id: str) -> LabelledSolution:
    """Check one row, `{id?, problem, steps[] | solution, label?, final_answer_correct?, soft?, source?}`. A label that
    is true or false is of the final answer, and so are `outcome` and `is_correct`. `InputError`: what is wrong."""
    if isinstance(is_right := json_object(value).get("label"), bool):
        value = value | {"label": None, "final_answer_correct": is_right}
    solution, labels = reading.solution_of(value, default_id=default_id), checked(_Labels, value)
    if labels.soft is not None and len(labels.soft) != solution.num_steps:
        raise InputError(f"'soft' must have one share for each of {solution.num_steps} steps, not {len(labels.soft)}")
    soft = None if labels.soft is None else tuple(labels.soft)
    return LabelledSolution(**dict(solution), final_answer_correct=labels.outcome, soft=soft, source=labels.source)


def labels_source(name: str | Path) -> Source:
    """A source of solutions or steps with labels: a finished run of a stage that labels them, a file, or a hub data
    set. `RunError` where it is a run of another stage, or not complete."""
    folder = Path(name)
    with disk(folder):
        if not folder.is_dir():
            return Source(str(name), split="train")
    if (stage := read_manifest(folder)["stage"]) not in LABELLING:
        raise RunError(f"{folder} is a run of {stage!r}; solutions with labels are in runs of `rprm data rollouts`")
    finished_manifest(folder, stage=stage, command=f"rprm data {stage}")
    made = [folder / name for name in (SOLUTIONS, STEPS) if (folder / name).is_file()]
    if not made:
        raise RunError(f"{folder} has no {SOLUTIONS}: begin `rprm data {stage}` again to complete it")
    return Source(str(made[0]))


class SolvedProblem(ProblemRow):
    """A problem whose answer is known (or, where a label says which of its solutions are right, need not be), and
    solutions of it."""

    solutions: tuple[LabelledSolution, ...]


class _Answer(RowModel):
    answer: Annotated[Text | None, BeforeValidator(as_text)] = None
    set: AnyText = OWN


def read_solved(name: str, *, limit: int | None = None) -> tuple[Iterable[SolvedProblem | Rejected], SourceInfo]:
    """Solutions by problem, of the first `limit` problems: of a run of `rprm search sample` or of a stage that labels,
    or of rows `{id?, problem, steps[] | solution, answer?, set?}` with what else `labelled_solution_of` takes. Rows of
    one problem that follow each other are one `SolvedProblem`. Errors are those of the sources."""
    folder, stage = Path(name), None
    with disk(folder):
        if folder.is_dir():
            stage = read_manifest(folder)["stage"]
    rows: Iterator[SolvedProblem | Rejected]
    if stage in (SAMPLE, ROLLOUTS):
        finished_manifest(
            folder, stage=stage, command=f"rprm {'search sample' if stage == SAMPLE else 'data rollouts'}"
        )
        source = Source(str(folder / RESULTS))
        rows = map(_of_candidates, read_results(folder, Candidates.model_validate))
        if stage == ROLLOUTS:
            rows = read_results(folder, _rolled_out)
    else:
        source = labels_source(name)
        rows = _together(reading.read_rows(source, _solved))
    return islice(rows, limit), source.inspect()


def _rolled_out(row: Any) -> SolvedProblem:
    """The problem of a row of rollouts, with its answer, and the solutions."""
    return SolvedProblem.model_validate({name: row.get(name) for name in ("problem", "solutions")})


def _of_candidates(row: Candidates) -> SolvedProblem:
    solutions = tuple(
        LabelledSolution(id=f"{row.id}#{number}", problem=row.problem.problem, steps=candidate.steps)
        for number, candidate in enumerate(row.candidates)
        if candidate.steps
    )
    return SolvedProblem(problem=row.problem, solutions=solutions)


def _solved(row: Row) -> SolvedProblem:
    solution, more = labelled_solution_of(row.value, default_id=f"line-{row.line}"), checked(_Answer, row.value)
    rule = RULES.get(more.set, MATHEMATICS)
    problem = Problem(id=solution.id, problem=solution.problem, set=more.set, answer=more.answer, rule=rule)
    return SolvedProblem(problem=problem, solutions=(solution,))


def _together(rows: Iterable[SolvedProblem | Rejected]) -> Iterator[SolvedProblem | Rejected]:
    """Neighbours of one problem as one; rejected rows come at once."""
    last: SolvedProblem | None = None
    for row in rows:
        if isinstance(row, Rejected):
            yield row
        elif last is not None and row.problem == last.problem.model_copy(update={"id": row.id}):
            last = last.model_copy(update={"solutions": last.solutions + row.solutions})
        else:
            if last is not None:
                yield last
            last = row
    if last is not None:
        yield last


def write_labels(path: Path, rows: Iterable[Record]) -> None:
    """Put a file of labelled solutions or steps in place, whole."""
    with closing(LineWriter(path.with_name(f"{path.name}.partial"), fresh=True)) as writer:
        for row in rows:
            writer.write(row.model_dump_json())
    os.replace(writer.path, path)
