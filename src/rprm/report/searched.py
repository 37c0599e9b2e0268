"""Runs of the search commands, for a page: what they solved, and some of their problems."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from rprm.benchmarks.mathematics import AVERAGE, Problem, SearchMeasurement
from rprm.errors import BenchmarkError
from rprm.grading import Grade, final_answer
from rprm.records import Analysis, StepReward
from rprm.report.charts import Chart, Line
from rprm.report.judged import MAX_STEPS, Sample, Shown, SolutionView, StepView, cut
from rprm.report.solutions import analysis_title
from rprm.runs import read_manifest, read_results
from rprm.search.candidates import BEST_OF_N, SAMPLE, Candidates, JudgedCandidates
from rprm.search.guided import GUIDED, SearchTree
from rprm.search.measure import measure_runs, read_search_run

_ROWS: dict[str, type[Any]] = {SAMPLE: Candidates, BEST_OF_N: JudgedCandidates, GUIDED: SearchTree}
STAGES = tuple(_ROWS)

_Grades = Mapping[tuple[str, str | None], Grade]


@dataclass
class Searched:
    """A run of a search command."""

    name: str
    folder: Path
    manifest: Mapping[str, Any]
    sample: Sample
    notes: Sequence[str]


def read_searches(
    folders: Mapping[str, Path], shown: Shown, *, num_resamples: int, seed: int
) -> tuple[SearchMeasurement | str, list[Searched]]:
    """What runs of the search commands solved, measured together, or why that is not known; and each of them."""
    found = [read_search_run(folder) for folder in folders.values()]
    names = {run.name: name for name, run in zip(folders, found, strict=True)}
    measured: SearchMeasurement | str
    try:
        measured = measure_runs(found, curve=True, num_resamples=num_resamples, seed=seed)
    except BenchmarkError as error:
        measured = str(error)
    grades = {} if isinstance(measured, str) else {(one.id, one.answer): one.grade for one in measured.answers}
    runs = []
    for run in found:
        sample, manifest = Sample(shown), read_manifest(run.name)
        for row in read_results(run.name, _ROWS[manifest["stage"]].model_validate):
            text = row.text if isinstance(row, SearchTree) else _chosen_text(row)
            kind = "ungraded"
            if (grade := grades.get((row.id, final_answer(text, row.problem.rule) if text else None))) is not None:
                kind = {True: "solved", False: "unsolved", None: "ungraded"}[grade.correct]
            sample.add(kind, lambda one=row, of=kind: _view(of, one, grades, shown))  # type: ignore[misc]
        runs.append(Searched(names[run.name], Path(run.name), manifest, sample, run.notes))
    return measured, runs


def curve_of(measured: SearchMeasurement) -> list[Chart]:
    """The mean over the sets by the number of candidates; no chart of fewer than two numbers."""
    rows = sorted(measured.curve, key=lambda row: (row.strategy, row.model, row.run))
    groups = [list(few) for _, few in groupby(rows, key=lambda row: (row.strategy, row.model, row.run))]
    lines = [
        Line(
            f"{few[0].strategy}, {few[0].model}",
            [(float(row.num_candidates or 1), row.figures[AVERAGE]) for row in few],
        )
        for few in (sorted(few, key=lambda row: row.num_candidates or 0) for few in groups)
    ]
    ticks = sorted({x for line in lines for x, _ in line.points})
    note = "The mean over all choices of N of the candidates, with its 95% interval."
    how = {"is_logarithmic": True}
    return [Chart("candidates", "Problems solved, by number of candidates N", "N", lines, ticks, note, **how)] * (
        len(ticks) > 1
    )


def _chosen_text(row: Candidates | JudgedCandidates) -> str | None:
    index = row.chosen if isinstance(row, JudgedCandidates) else 0
    return row.candidates[index].text if index is not None and row.candidates else None


def _view(kind: str, row: Any, grades: _Grades, shown: Shown) -> SolutionView:
    """The solution that was chosen (of candidates that were only sampled the first), step by step; then the others."""
    others = []
    if isinstance(row, SearchTree):
        score = row.score(row.chosen)[0] if row.chosen is not None else None
        steps = list(_tree_steps(row, shown))
        said = f"{row.num_rounds} rounds" + (f", score {score:.2f}" if score is not None else ", no score")
    else:
        judged = isinstance(row, JudgedCandidates)
        chosen = row.chosen if judged else 0 if row.candidates else None
        steps = [] if chosen is None else list(_steps(row, chosen, shown))
        said = "no candidate" if chosen is None else f"candidate {chosen + 1} of {len(row.candidates)}"
        for index, candidate in enumerate(row.candidates):
            high = row.rewards[index].high if judged else None
            grade = grades.get((row.id, final_answer(candidate.text, row.problem.rule)))
            title = f"candidate {index + 1}: {grade.outcome if grade else 'not graded'}"
            if index != chosen:
                others.append(
                    (title + (f", reward at most {high:.2f}" if high is not None else ""), cut(candidate.text))
                )
    gold = _gold(row.problem)
    hidden = max(0, len(steps) - MAX_STEPS)
    return SolutionView(kind, row.id, f"{said}; {gold}", cut(row.problem.problem), steps[:MAX_STEPS], hidden, others)


def _gold(problem: Problem) -> str:
    return "gold answer not known" if problem.answer is None else f"gold answer {problem.answer:.200}"


def _steps(row: Candidates | JudgedCandidates, chosen: int, shown: Shown) -> Iterator[StepView]:
    rewards = row.rewards[chosen].steps if isinstance(row, JudgedCandidates) else ()
    judged: dict[int, StepReward] = {step.step_index: step for step in rewards}
    for index, text in enumerate(row.candidates[chosen].steps):
        view = StepView(index + 1, cut(text))
        if (step := judged.get(index)) is not None:
            _fill(view, step.reward, step.failure, step.analyses, shown)
        yield view


def _tree_steps(tree: SearchTree, shown: Shown) -> Iterator[StepView]:
    for node in tree.path(tree.chosen) if tree.chosen is not None else ():
        view = StepView(node.round + 1, cut(node.step) or "(the solution ends)")
        _fill(view, node.low if node.is_settled else None, node.failure, node.analyses, shown)
        rivals = [one for one in tree.nodes if one.parent == node.parent and one.id != node.id]
        known = (
            "" if node.is_settled or node.high is None else f"reward from {node.low or 0.0:.2f} to {node.high:.2f}; "
        )
        view.notes = [f"{known}chosen among {len(rivals) + 1} next steps", *view.notes]
        yield view


def _fill(
    view: StepView, reward: float | None, failure: str | None, analyses: Sequence[Analysis], shown: Shown
) -> None:
    view.reward, view.state = reward, "open" if reward is None else "right"
    view.notes = [cut(failure)] if failure else []
    view.analyses = [
        (analysis_title(number, one), cut(one.text)) for number, one in enumerate(analyses[: shown.analyses], 1)
    ]
    view.num_hidden = len(analyses) - len(view.analyses)
