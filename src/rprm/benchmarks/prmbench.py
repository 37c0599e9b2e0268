"""PRMBench (arXiv 2501.03124; ssmisya/PRMBench at a1ae4ea, `mr_eval/tasks/prmtest_classified/task.py`).

The positive class is a correct step; a step is called correct where its score is at least the threshold. The PRMScore
of a class is the mean of F1 and negative F1 over all its steps; of `multi_solutions`, which has no wrong steps, F1
alone. A group's is the mean of its classes', and `overall` is taken over all steps of all classes at once.
"""

from __future__ import annotations

import math
import re
from dataclasses import replace

import numpy as np

from rprm.benchmarks.bootstrap import DEFAULT_RESAMPLES
from rprm.benchmarks.items import CORRECT, PRMBENCH_CLASSES, PRMBENCH_GROUPS, BenchmarkItems, PRMBenchItem
from rprm.benchmarks.processbench import DEFAULT_THRESHOLD
from rprm.benchmarks.scores import Scores, StepScores
from rprm.benchmarks.tally import (
    Coverage,
    Floats,
    Measurement,
    Tally,
    measurement,
    named,
    refuse_lengths,
    refuse_missing,
)
from rprm.errors import BenchmarkError

_SCORE_NAMES = (*PRMBENCH_CLASSES, "overall", *PRMBENCH_GROUPS)
_GROUP_INDICES = [[PRMBENCH_CLASSES.index(name) for name in names] for names in PRMBENCH_GROUPS.values()]
_MULTI_SOLUTIONS = PRMBENCH_CLASSES.index("multi_solutions")

# Counts of an item: for its class TP, FP, TN, FN; the same once more if it is of the clean subset; then the difference
# of its similarity pair, and the number of these (0 or 1).
_NUM_CALLS = 4
_CALLS = len(PRMBENCH_CLASSES) * _NUM_CALLS
_PAIRS = 2 * _CALLS


def measure_prmbench(
    items: BenchmarkItems[PRMBenchItem],
    scores: Scores,
    *,
    threshold: float = DEFAULT_THRESHOLD,
    strictly_above: bool = False,
    allow_missing: bool = False,
    num_resamples: int = DEFAULT_RESAMPLES,
    seed: int = 0,
) -> Measurement:
    """Measure a run on PRMBench.

    Figures are PRMScores: each class, `overall`, and the groups `simplicity`, `soundness`, `sensitivity`; the same
    under `clean.` over the items whose problem is not one of PRM800K's training problems; and `similarity`. As in the
    benchmark an undefined precision, recall or F1 counts as -1 (that is -100), which makes PRMScores of little sense
    where no step, or every step, is called wrong. A class without items is undefined here (None), and so is its group.

    `similarity` is 100 less the mean difference between the share of steps called correct in a modified solution and in
    the same solution before it was modified (the `correct` items), in points, as the benchmark's tables print it. Pairs
    whose original has no step called correct are left out, as in the benchmark. It is None where the scores hold no
    `correct` item.

    Args:
        items: the benchmark.
        scores: one score for every step, without exit at the first error.
        threshold: a step with at least this score is called correct.
        strictly_above: a step must score above the threshold instead, as the benchmark's own scripts for released PRMs
            have it. It matters where scores are shares of votes, which meet the threshold exactly.
        allow_missing: count steps without a score as called wrongly, whatever their label, instead of refusing.
        num_resamples: for the intervals. Items are drawn within each class.
        seed: of the resamples.

    Raises:
        MissingPredictions: items have steps without a score and `allow_missing` is not set.
        InputError: the scores do not fit the items' steps.
        BenchmarkError: the scores cannot be measured at this threshold.
    """
    tally = tally_prmbench(
        items, scores, threshold=threshold, strictly_above=strictly_above, allow_missing=allow_missing
    )
    return measurement(tally, items, scores, num_resamples=num_resamples, seed=seed)


def tally_prmbench(
    items: BenchmarkItems[PRMBenchItem],
    scores: Scores,
    *,
    threshold: float = DEFAULT_THRESHOLD,
    strictly_above: bool = False,
    allow_missing: bool = False,
) -> Tally:
    """Count a run item by item, as `measure_prmbench` does; `compare` takes two of these."""
    scores.check_threshold(threshold)
    # Above the threshold is at least the next larger number.
    least = math.nextafter(threshold, math.inf) if strictly_above else threshold
    modified = [item for item in items.items if item.classification != CORRECT]
    originals = [item for item in items.items if item.classification == CORRECT]
    if not modified:
        raise BenchmarkError("there are no items to measure")
    _check(modified, originals, scores, allow_missing=allow_missing)
    share_of_original = {
        item.idx: share for item in originals if (share := _share_correct(scores.p_yes.get(item.id), least))
    }
    counts = np.zeros((len(modified), _PAIRS + 2))
    outcomes = np.zeros((len(modified), _NUM_CALLS), dtype=np.int64)
    coverage = {
        name: Coverage(0, 0, 0, 0) for name in PRMBENCH_CLASSES if any(item.classification == name for item in modified)
    }
    missing = []
    for row, item in enumerate(modified):
        p_yes = scores.p_yes.get(item.id)
        calls = _calls(item, p_yes, least)
        outcomes[row] = calls
        column = PRMBENCH_CLASSES.index(item.classification) * _NUM_CALLS
        counts[row, column : column + _NUM_CALLS] = calls
        if item.is_clean:
            counts[row, _CALLS + column : _CALLS + column + _NUM_CALLS] = calls
        share = _share_correct(p_yes, least)
        if share is not None and item.idx in share_of_original:
            counts[row, _PAIRS:] = abs(share - share_of_original[item.idx]), 1
        num_steps = len(item.solution.steps)
        num_scored = sum(score is not None for score in p_yes or ())
        coverage[item.classification] += Coverage(1, int(num_scored < num_steps), num_steps, num_scored)
        if num_scored < num_steps:
            missing.append(item.id)
    return Tally(
        benchmark="prmbench",
        threshold=threshold,
        ids=tuple(item.id for item in modified),
        strata=np.array([item.classification for item in modified]),
        counts=counts,
        outcomes=outcomes,
        figure_names=(*_SCORE_NAMES, *(f"clean.{name}" for name in _SCORE_NAMES), "similarity"),
        figures_of=_figures_of,
        headline="overall",
        coverage=coverage,
        missing=tuple(missing),
        notes=_notes(originals, scores, int(counts[:, -1].sum())),
    )


def without_step_numbers(items: BenchmarkItems[PRMBenchItem]) -> BenchmarkItems[PRMBenchItem]:
    """The items with `Step 1. ` or `1. ` at the head of their steps taken off, and the space around the steps.

    As the benchmark's scripts for ReasonEval, Qwen, Skywork and RLHFlow do before they judge
    (`mr_eval/utils/model_utils.py`, `remove_step_prefix`); those for Math-Shepherd, Llemma and PURE do not. The sources
    say so, so that a run of such items is told from one of the items as they are.
    """
    return replace(
        items,
        items=tuple(
            replace(
                item, solution=item.solution.model_copy(update={"steps": tuple(map(_unnumbered, item.solution.steps))})
            )
            for item in items.items
        ),
        sources=tuple(replace(source, digest=f"{source.digest} without step numbers") for source in items.sources),
    )


def _unnumbered(step: str) -> str:
    return re.sub(r"^(step\s*\d+\.\s*|\d+\.\s*)", "", step.strip(), flags=re.IGNORECASE)


def _check(modified: list[PRMBenchItem], originals: list[PRMBenchItem], scores: Scores, *, allow_missing: bool) -> None:
    wrong = [
        f"{item.id} ({len(p_yes)} scores, {len(item.solution.steps)} steps)"
        for item in (*modified, *originals)
        if (p_yes := scores.p_yes.get(item.id)) is not None and len(p_yes) != len(item.solution.steps)
    ]
    refuse_lengths(wrong, " (PRMBench needs every step judged: no exit at the first error)" if wrong else "")
    needed = modified + (originals if _scores_originals(originals, scores) else [])
    incomplete = [item.id for item in needed if None in scores.p_yes.get(item.id, (None,))]
    what = "no prediction, or a step without a score"
    refuse_missing(incomplete, [item.id for item in needed], what, scores, allow_missing=allow_missing)


def _scores_originals(originals: list[PRMBenchItem], scores: Scores) -> bool:
    return any(item.id in scores.p_yes for item in originals)


def _notes(originals: list[PRMBenchItem], scores: Scores, num_pairs: int) -> tuple[str, ...]:
    if not originals:
        return ("similarity is not measured: there are no `correct` items",)
    if not _scores_originals(originals, scores):
        first = named([originals[0].id])
        return (
            f"similarity is not measured: none of the {len(originals)} `correct` items (such as {first}) has scores",
        )
    return (f"similarity is over {num_pairs} pairs of a modified and an original solution",)


def _calls(item: PRMBenchItem, p_yes: StepScores | None, threshold: float) -> tuple[int, int, int, int]:
    """TP, FP, TN, FN of one item; a step without a score is called wrongly."""
    tp = fp = tn = fn = 0
    wrong_steps = item.wrong_steps
    for index in range(len(item.solution.steps)):
        score = None if p_yes is None else p_yes[index]
        called_correct = None if score is None else score >= threshold
        if index in wrong_steps:
            tn += called_correct is False
            fp += called_correct is not False
        else:
            tp += called_correct is True
            fn += called_correct is not True
    return tp, fp, tn, fn


def _share_correct(p_yes: StepScores | None, threshold: float) -> float | None:
    """The share of steps called correct; None where a step has no score."""
    if p_yes is None:
        return None
    called = [score >= threshold for score in p_yes if score is not None]
    return sum(called) / len(p_yes) if len(called) == len(p_yes) else None


def _figures_of(sums: Floats) -> Floats:
    shape = (*sums.shape[:-1], len(PRMBENCH_CLASSES), _NUM_CALLS)
    standard = _prm_scores(sums[..., :_CALLS].reshape(shape))
    clean = _prm_scores(sums[..., _CALLS:_PAIRS].reshape(shape))
    similarity = 1.0 - _over(sums[..., _PAIRS], sums[..., _PAIRS + 1], np.nan)
    return 100.0 * np.concatenate([standard, clean, similarity[..., None]], axis=-1)


def _prm_scores(calls: Floats) -> Floats:
    """(..., 9, TP FP TN FN) -> (..., 13): the classes, overall, the groups."""
    f1, negative_f1 = _f1s(calls)
    classes = (f1 + negative_f1) / 2
    classes[..., _MULTI_SOLUTIONS] = f1[..., _MULTI_SOLUTIONS]
    groups = np.stack([classes[..., indices].mean(axis=-1) for indices in _GROUP_INDICES], axis=-1)
    f1, negative_f1 = _f1s(calls.sum(axis=-2))
    overall = (f1 + negative_f1) / 2
    return np.concatenate([classes, overall[..., None], groups], axis=-1)


def _f1s(calls: Floats) -> tuple[Floats, Floats]:
    """F1 and negative F1, each undefined ratio on the way -1 as in the benchmark; NaN where there are no steps."""
    tp, fp, tn, fn = np.moveaxis(calls, -1, 0)
    f1 = _harmonic(_over(tp, tp + fp, -1.0), _over(tp, tp + fn, -1.0))
    negative_f1 = _harmonic(_over(tn, tn + fn, -1.0), _over(tn, tn + fp, -1.0))
    empty = calls.sum(axis=-1) == 0
    return np.where(empty, np.nan, f1), np.where(empty, np.nan, negative_f1)


def _harmonic(precision: Floats, recall: Floats) -> Floats:
    return _over(2 * precision * recall, precision + recall, -1.0)


def _over(numerator: Floats, denominator: Floats, undefined: float) -> Floats:
    """numerator / denominator, `undefined` where the denominator is 0."""
    result = np.full(denominator.shape, undefined)
    np.divide(numerator, denominator, out=result, where=denominator != 0)
    return result
