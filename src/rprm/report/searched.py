"""Runs of the search commands, for a page: what they solved, and their solutions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from rprm.benchmarks.mathematics import SearchMeasurement
from rprm.errors import BenchmarkError
from rprm.grading import Grade, final_answer
from rprm.records import StepReward
from rprm.report.reported import Example, Reported
from rprm.runs import read_results
from rprm.search.candidates import BEST_OF_N, SAMPLE, Candidates, JudgedCandidates
from rprm.search.guided import GUIDED, SearchTree
from rprm.search.measure import measure_runs, read_search_run

_ROWS: dict[str, type[Any]] = {SAMPLE: Candidates, BEST_OF_N: JudgedCandidates, GUIDED: SearchTree}
STAGES = tuple(_ROWS)


def read_searches(runs: Sequence[Reported], *, num_resamples: int, seed: int) -> SearchMeasurement | str:
    """Read runs of the search commands; what they solved, measured together, or why that is not known."""
    found = [replace(read_search_run(run.folder), name=run.name) for run in runs]
    measured: SearchMeasurement | str
    grades: dict[tuple[str, str | None], Grade] = {}
    try:
        measured = measure_runs(found, num_resamples=num_resamples, seed=seed)
        grades = {(one.id, one.answer): one.grade for one in measured.answers}
    except BenchmarkError as error:
        measured = str(error)
    for run in runs:
        for row in read_results(run.folder, _ROWS[run.manifest["stage"]].model_validate):
            gold = f"gold answer {row.problem.answer or 'not known'!s:.200}"
            for text, said, steps, judged in _solutions(row):
                grade = grades.get((row.id, final_answer(text, row.problem.rule)))
                kind = {True: "solved", False: "unsolved", None: "ungraded"}[grade.correct if grade else None]
                run.add(Example(kind, row.id, f"{said}; {gold}", row.problem.problem, steps, judged))
    return measured


def _solutions(row: Any) -> Iterator[tuple[str, str, Sequence[str], dict[int, StepReward]]]:
    """The text of each solution of a problem, what is to be said of it, its steps, and their rewards by index."""
    if isinstance(row, SearchTree):
        path = row.path(row.chosen) if row.chosen is not None else []
        judged = {}
        for at, node in enumerate(path):
            why = node.failure or (None if node.is_settled else "its race ended before its reward was known")
            reward = node.low if node.is_settled else None
            judged[at] = StepReward(step_index=at, reward=reward, vote=None, analyses=node.analyses, failure=why)
        steps = [node.step or "(the solution ends)" for node in path]
        yield row.text, f"{row.num_rounds} rounds", steps, judged
        return
    for index, candidate in enumerate(row.candidates):
        said, judged = f"candidate {index + 1} of {len(row.candidates)}", {}
        if isinstance(row, JudgedCandidates):
            found = row.rewards[index]
            known = "none" if found.high is None else f"{'' if found.settled else 'at most '}{found.high:.2f}"
            said += f"{', chosen' * (index == row.chosen)}, reward {known}"
            judged = {step.step_index: step for step in found.steps}
        yield candidate.text, said, candidate.steps, judged
