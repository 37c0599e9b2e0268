"""Labelled steps as a benchmark: is each step called as it is labelled?

Figures: `wrong_acc` and `correct_acc` (share of the steps labelled so that are called so), `f1` (their harmonic mean,
as in ProcessBench), `accuracy` (of all steps), `wellformed` (share of the analyses that reached a verdict unasked; of a
rewarder that writes none, undefined), and `SOURCE.accuracy` for each source of steps.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from rprm.benchmarks.benchmark import Measurement
from rprm.benchmarks.items import BenchmarkItems
from rprm.benchmarks.scores import Scores, refuse_lengths, scores_of
from rprm.benchmarks.tally import Coverage, Floats, ResultTable, TableLine, Tally, accuracies
from rprm.errors import BenchmarkError
from rprm.records import LabelledStep

#: Labelled steps to measure on. What is judged is each step, as the last of its solution.
StepItems = BenchmarkItems[LabelledStep]

#: The scores of steps that were judged alone.
step_scores = partial(scores_of, last_step=True)


def tally_steps(items: StepItems, scores: Scores, *, threshold: float = 0.5, allow_missing: bool = False) -> Tally:
    """Count a run step by step: one with a score below the threshold is called wrong.

    With `allow_missing` steps without a score count as called wrongly.

    Raises:
        InputError: a step has several scores.
        MissingPredictions: steps have no score and `allow_missing` is not set.
        BenchmarkError: there is nothing to measure, or the scores cannot be measured at this threshold.
    """
    if not items.items:
        raise BenchmarkError("there are no labelled steps to measure")
    scores.check_threshold(threshold)
    ids = [item.id for item in items.items]
    refuse_lengths([name for name in ids if len(scores.p_yes.get(name, (None,))) != 1], "(a labelled step has one)")
    p_yes = [scores.p_yes.get(name, (None,))[0] for name in ids]
    missing = [name for name, score in zip(ids, p_yes, strict=True) if score is None]
    scores.refuse_missing(missing, ids, "no score", allow_missing=allow_missing)
    strata = [item.source or "steps" for item in items.items]
    sources = sorted(set(strata))
    # (right, all) of the steps labelled wrong, of those labelled correct, then of each source's; between them verdicts
    # reached unasked, and analyses.
    counts = np.zeros((len(ids), 3 + len(sources), 2))
    right = np.zeros(len(ids), dtype=np.int64)
    coverage = dict.fromkeys(sources, Coverage())
    for row, (item, score, source) in enumerate(zip(items.items, p_yes, strata, strict=True)):
        right[row] = score is not None and (score >= threshold) is item.label
        counts[row, [int(item.label), 3 + sources.index(source)]] = right[row], 1
        counts[row, 2] = scores.form.get(item.id, (0, 0))
        coverage[source] += Coverage(1, int(score is None), 1, int(score is not None))
    return Tally(
        benchmark="steps", threshold=threshold, ids=tuple(ids), strata=np.array(strata),
        counts=counts.reshape(len(ids), -1), outcomes=right[:, None], coverage=coverage,
        figure_names=("wrong_acc", "correct_acc", "f1", "accuracy", "wellformed", *(f"{s}.accuracy" for s in sources)),
        figures_of=_figures_of, headline="f1", layout=_table, missing=tuple(missing),
    )  # fmt: skip


def _figures_of(sums: Floats) -> Floats:
    """(..., C) -> (..., 5 + sources)."""
    pairs = sums.reshape(*sums.shape[:-1], -1, 2)
    shares = accuracies(pairs)
    overall = pairs[..., :2, :].sum(axis=-2)
    accuracy = overall[..., 0] / overall[..., 1]
    figures = [shares[..., 0], shares[..., 1], shares[..., -1], accuracy, shares[..., 2]]
    return np.asarray(100.0 * np.concatenate([np.stack(figures, axis=-1), shares[..., 3:-1]], axis=-1))


def _table(measured: Measurement) -> ResultTable:
    def line(label: str, name: str, num_steps: str = "") -> TableLine:
        return TableLine(label, (num_steps, measured.figures[name]), "bold" if name == "f1" else "")

    sources = measured.coverage.items() if len(measured.coverage) > 1 else ()
    lines = [
        line("accuracy on wrong steps", "wrong_acc"),
        line("accuracy on correct steps", "correct_acc"),
        line("F1", "f1"),
        line("accuracy", "accuracy", f"{measured.total_coverage.num_items:,}"),
        *(line(f"  of {name}", f"{name}.accuracy", f"{coverage.num_items:,}") for name, coverage in sources),
        line("well-formed analyses", "wellformed"),
    ]
    return ResultTable(f"Labelled steps at threshold {measured.threshold:g}", ("figure", "steps", "percent"), lines)
