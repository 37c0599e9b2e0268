"""Labelled steps as a benchmark: is each step called as it is labelled?

ProcessBench asks for the first error of whole solutions; this asks about single steps, so that a model can be measured
on the validation part of its own training data, round after round, and R-PRMs and classifiers on the same steps.

Figures: `wrong_acc` and `correct_acc` (share of the steps labelled so that are called so), `f1` (their harmonic mean,
as in ProcessBench), `accuracy` (of all steps), `wellformed` (share of the analyses that reached a verdict unasked; of a
rewarder that writes none, undefined), and `SOURCE.accuracy` for each source of steps.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from rprm.benchmarks.items import BenchmarkItems
from rprm.benchmarks.scores import Scores, scores_of
from rprm.benchmarks.tally import (
    Coverage,
    Floats,
    Measurement,
    ResultTable,
    TableLine,
    Tally,
    measure,
    refuse_lengths,
    refuse_missing,
)
from rprm.errors import BenchmarkError
from rprm.records import LabelledStep

#: The benchmark's name in manifests.
BENCHMARK = "steps"

#: Labelled steps to measure on. What is judged is each step, as the last of its solution.
StepItems = BenchmarkItems[LabelledStep]

_FIGURES = ("wrong_acc", "correct_acc", "f1", "accuracy", "wellformed")
#: Right and all, among steps labelled wrong and labelled correct; verdicts reached unasked, and analyses.
_NUM_COUNTS = 6


#: The scores of steps that were judged alone.
step_scores = partial(scores_of, last_step=True)


def tally_steps(items: StepItems, scores: Scores, *, threshold: float = 0.5, allow_missing: bool = False) -> Tally:
    """Count a run step by step.

    Args:
        items: the steps.
        scores: one for each.
        threshold: a step with a lower score is called wrong.
        allow_missing: count steps without a score as called wrongly, instead of refusing.

    Raises:
        InputError: a step has several scores.
        MissingPredictions: steps have no score and `allow_missing` is not set.
        BenchmarkError: there is nothing to measure, or the scores cannot be measured at this threshold.
    """
    if not items.items:
        raise BenchmarkError("there are no labelled steps to measure")
    scores.check_threshold(threshold)
    wrong = [item.id for item in items.items if len(scores.p_yes.get(item.id, (None,))) != 1]
    refuse_lengths(wrong, " (a labelled step has one)" if wrong else "")
    p_yes = [scores.p_yes.get(item.id, (None,))[0] for item in items.items]
    missing = [item.id for item, score in zip(items.items, p_yes, strict=True) if score is None]
    refuse_missing(missing, [item.id for item in items.items], "no score", scores, allow_missing=allow_missing)
    source_of = [item.source or "steps" for item in items.items]
    sources = sorted(set(source_of))
    counts = np.zeros((len(items.items), _NUM_COUNTS + 2 * len(sources)))
    right = np.zeros(len(items.items), dtype=np.int64)
    coverage = dict.fromkeys(sources, Coverage())
    for row, (item, score, source) in enumerate(zip(items.items, p_yes, source_of, strict=True)):
        right[row] = score is not None and (score >= threshold) is item.label
        for column in (2 if item.label else 0, _NUM_COUNTS + 2 * sources.index(source)):
            counts[row, column : column + 2] = right[row], 1
        counts[row, 4:6] = scores.form.get(item.id, (0, 0))
        coverage[source] += Coverage(1, int(score is None), 1, int(score is not None))
    return Tally(
        benchmark=BENCHMARK,
        threshold=threshold,
        ids=tuple(item.id for item in items.items),
        strata=np.array(source_of),
        counts=counts,
        outcomes=right[:, None],
        figure_names=(*_FIGURES, *(f"{source}.accuracy" for source in sources)),
        figures_of=_figures_of,
        headline="f1",
        coverage=coverage,
        layout=_table,
        missing=tuple(missing),
    )


measure_steps = partial(measure, tally_steps)


def _figures_of(sums: Floats) -> Floats:
    """(..., C) -> (..., 5 + sources)."""
    pairs = sums.reshape(*sums.shape[:-1], -1, 2)
    with np.errstate(invalid="ignore"):  # 0 / 0 is NaN: undefined
        shares = pairs[..., 0] / pairs[..., 1]
        wrong_acc, correct_acc, wellformed = (shares[..., index] for index in range(3))
        total = wrong_acc + correct_acc
        f1 = np.where(total == 0.0, 0.0, 2 * wrong_acc * correct_acc / total)
        accuracy = (pairs[..., 0, 0] + pairs[..., 1, 0]) / (pairs[..., 0, 1] + pairs[..., 1, 1])
    figures = np.stack([wrong_acc, correct_acc, f1, accuracy, wellformed], axis=-1)
    return np.asarray(100.0 * np.concatenate([figures, shares[..., 3:]], axis=-1))


def _table(measured: Measurement) -> ResultTable:
    def line(label: str, figure: str, num_steps: int | None = None, style: str = "") -> TableLine:
        cells = ("" if num_steps is None else f"{num_steps:,}", measured.figures[figure])
        return TableLine(label, cells, style)

    sources = measured.coverage if len(measured.coverage) > 1 else {}
    return ResultTable(
        f"Labelled steps at threshold {measured.threshold:g}",
        ("figure", "steps", "percent"),
        [
            line("accuracy on wrong steps", "wrong_acc"),
            line("accuracy on correct steps", "correct_acc"),
            line("F1", "f1", style="bold"),
            line("accuracy", "accuracy", measured.total_coverage.num_items),
            *(line(f"  of {name}", f"{name}.accuracy", one.num_items) for name, one in sources.items()),
            line("well-formed analyses", "wellformed"),
        ],
    )
