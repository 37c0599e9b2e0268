"""Labelled steps as a benchmark: is each step called as it is labelled?

Figures: `wrong_acc` and `correct_acc` (share of the steps labelled so that are called so), `f1` (their harmonic mean,
as in ProcessBench), `accuracy` (of all steps), `wellformed` (share of the analyses that reached a verdict unasked; of a
rewarder that writes none, undefined), and `SOURCE.accuracy` for each source of steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np

from rprm.benchmarks.benchmark import Measurement
from rprm.benchmarks.items import BenchmarkItems, StoredSolution
from rprm.benchmarks.scores import Scores, scores_of
from rprm.benchmarks.tally import Coverage, Floats, ResultTable, TableLine, Tally, accuracies
from rprm.errors import BenchmarkError
from rprm.records import LabelledStep, Solution


@dataclass(frozen=True, slots=True)
class StepItem:
    """A labelled step to measure on: the last of the solution that is judged."""

    solution: Solution | StoredSolution
    label: bool
    source: str | None = None

    @property
    def id(self) -> str:
        return self.solution.id


StepItems = BenchmarkItems[StepItem | LabelledStep]

#: The scores of steps that were judged alone.
step_scores = partial(scores_of, last_step=True)


def tally_steps(items: StepItems, scores: Scores, *, threshold: float = 0.5, allow_missing: bool = False) -> Tally:
    """Count a run step by step: one with a score below the threshold is called wrong.

    With `allow_missing` steps without a score count as called wrongly; else they are a `MissingPredictions`. Also an
    `InputError` where a step has several scores, a `BenchmarkError` where nothing can be measured at this threshold.
    """
    if not items.items:
        raise BenchmarkError("there are no labelled steps to measure")
    scores.check_threshold(threshold)
    ids = tuple(item.id for item in items.items)
    p_yes = scores.of_items(dict.fromkeys(ids, 1), "a labelled step has one")
    missing = tuple(name for name in ids if p_yes[name] == (None,))
    scores.refuse_missing(missing, ids, "no score", allow_missing=allow_missing)
    strata = [item.source or "steps" for item in items.items]
    sources = sorted(set(strata))
    # (right, all) of the steps labelled wrong, of those labelled correct, and of all; verdicts reached unasked, and
    # analyses; (right, all) of each source's steps.
    counts = np.zeros((len(ids), 4 + len(sources), 2))
    coverage = dict.fromkeys(sources, Coverage())
    for row, (item, source) in enumerate(zip(items.items, strata, strict=True)):
        (score,) = p_yes[item.id]
        right = score is not None and (score >= threshold) is item.label
        counts[row, [int(item.label), 2, 4 + sources.index(source)]] = right, 1
        counts[row, 3] = scores.form.get(item.id, (0, 0))
        coverage[source] += Coverage(1, int(score is None), 1, int(score is not None))
    return Tally(
        benchmark="steps", threshold=threshold, ids=ids, strata=np.array(strata), counts=counts.reshape(len(ids), -1),
        outcomes=counts[:, 2, :1].astype(np.int64), coverage=coverage, missing=missing,
        figure_names=("wrong_acc", "correct_acc", "f1", "accuracy", "wellformed", *(f"{s}.accuracy" for s in sources)),
        figures_of=_figures_of, headline="f1", layout=_table,
    )  # fmt: skip


def _figures_of(sums: Floats) -> Floats:
    """(..., 2 * (4 + sources)) -> (..., 5 + sources)."""
    shares = accuracies(sums.reshape(*sums.shape[:-1], -1, 2))
    return 100.0 * shares[..., [0, 1, -1, *range(2, shares.shape[-1] - 1)]]


def _table(measured: Measurement) -> ResultTable:
    sources = measured.coverage.items() if len(measured.coverage) > 1 else ()
    rows = [
        ("accuracy on wrong steps", "", "wrong_acc"),
        ("accuracy on correct steps", "", "correct_acc"),
        ("F1", "", "f1"),
        ("accuracy", f"{measured.total_coverage.num_items:,}", "accuracy"),
        *((f"  of {name}", f"{coverage.num_items:,}", f"{name}.accuracy") for name, coverage in sources),
        ("well-formed analyses", "", "wellformed"),
    ]
    lines = [
        TableLine(label, (number, measured.figures[name]), "bold" if name == "f1" else "")
        for label, number, name in rows
    ]
    return ResultTable(f"Labelled steps at threshold {measured.threshold:g}", ("figure", "steps", "percent"), lines)
