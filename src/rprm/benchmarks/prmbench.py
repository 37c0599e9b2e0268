"""PRMBench (arXiv 2501.03124; ssmisya/PRMBench at a1ae4ea, `mr_eval/tasks/prmtest_classified/task.py`).

The positive class is a correct step; a step is called correct where its score is at least the threshold. Figures are
PRMScores: of each class the mean of F1 and negative F1 over all its steps (of `multi_solutions`, which has no wrong
steps, F1 alone); of the groups `simplicity`, `soundness`, `sensitivity` the mean of their classes'; and `overall` over
all steps of all classes at once. The same stands under `clean.` over the items whose problem is not one of PRM800K's
training problems. As in the benchmark an undefined precision, recall or F1 counts as -1 (that is -100), which makes
PRMScores of little sense where no step, or every step, is called wrong. A class without items is undefined here (None),
and so is its group.

`similarity` is 100 less the mean difference between the share of steps called correct in a modified solution and in the
same solution before it was modified (the `correct` items), in points, as the benchmark's tables print it. Pairs whose
original has no step called correct are left out, as in the benchmark. It is None where the scores hold no `correct`
item.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from rprm.benchmarks.benchmark import Benchmark, Flag
from rprm.benchmarks.items import (
    SUFFIXES,
    BenchmarkItems,
    checked_solution,
    collected,
    json_object,
    open_sources,
    parsed_rows,
    text_of,
    texts_of,
)
from rprm.benchmarks.scores import Scores, StepScores
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
from rprm.errors import BenchmarkError, InputError
from rprm.reading import MAX_REJECTED_TEXT, Rejected, Row, Source
from rprm.records import Solution

#: The hub data set of the benchmark's authors.
PRMBENCH_HUB = "hitsmy/PRMBench_Preview"

#: The groups and their classes, spelled as in the data (arXiv 2501.03124, table 3).
PRMBENCH_GROUPS = {
    "simplicity": ("redundency", "circular"),
    "soundness": ("counterfactual", "step_contradiction", "domain_inconsistency", "confidence"),
    "sensitivity": ("missing_condition", "deception", "multi_solutions"),
}
PRMBENCH_CLASSES = tuple(name for names in PRMBENCH_GROUPS.values() for name in names)

#: The classification of the unmodified solutions; they serve the similarity measure alone.
CORRECT = "correct"


@dataclass(frozen=True, slots=True)
class PRMBenchItem:
    """A modified solution with its wrong steps.

    `error_steps` is 1-based, as in the data. About a hundred rows of the benchmark name steps past the end of the
    solution; its evaluation never meets them, so that `wrong_steps` leaves them out.
    """

    classification: str
    idx: str
    solution: Solution
    error_steps: tuple[int, ...]

    @property
    def id(self) -> str:
        """The benchmark's key, `{classification}_{idx}`."""
        return self.solution.id

    @property
    def wrong_steps(self) -> frozenset[int]:
        """0-based indices of the wrong steps."""
        return frozenset(step - 1 for step in self.error_steps if step <= len(self.solution.steps))

    @property
    def is_clean(self) -> bool:
        """Whether the problem is not one of PRM800K's training problems, on which PRMs are commonly trained."""
        return not self.idx.startswith("prm_train_")


def read_prmbench(data: str | Path = PRMBENCH_HUB, *, revision: str | None = None) -> BenchmarkItems[PRMBenchItem]:
    """Read PRMBench.

    Where a key stands in several rows the first is taken. Each `redundency` row also gives a `correct` item, the
    solution before it was modified.

    Args:
        data: a file; or a folder, whose `.jsonl` and `.json` files are read in the order of their names; or a hub data
            set with a split `train`.
        revision: of the hub data set; the one that was read is recorded in `sources`.

    Raises:
        InputError: nothing can be read at all.
    """

    def in_folder(folder: Path) -> dict[str, Path]:
        files = {file.name: file for file in sorted(folder.iterdir()) if file.name.endswith(SUFFIXES)}
        if not files:
            raise InputError(f"{folder}: no .jsonl or .json file in this folder")
        return files

    sources = [source for _, source in open_sources(data, ("train",), revision, in_folder)]
    items: dict[str, PRMBenchItem] = {}
    repeated: list[str] = []
    rejected: list[Rejected] = []
    for source in sources:
        rows = source.rows() if source.hub is None else _hub_rows(source, source.hub)
        for row_items in parsed_rows(source.name, rows, _items, rejected):
            if row_items[0].id in items:
                repeated.append(row_items[0].id)
            for item in row_items:
                items.setdefault(item.id, item)
    return collected(list(items.values()), rejected, sources, repeated)


def _hub_rows(source: Source, hub: dict[str, str]) -> Iterator[Row]:
    """Rows of the hub set under an explicit schema: two of its columns first appear near the end of the file."""
    try:
        from datasets import Features, Value, load_dataset
    except ImportError:
        raise InputError('reading from the hub needs the extra: pip install ".[hub]"') from None

    text, number = Value("string"), Value("int64")
    texts = ("original_question", "modified_question", "question", "reason", "idx", "classification")
    features = Features(
        {
            **dict.fromkeys((*texts, "ground_truth", "original_response"), text),
            **{name: [text] for name in ("original_process", "modified_process")},
            **{name: [number] for name in ("modified_steps", "error_steps")},
        }
    )
    try:
        dataset = load_dataset(hub["path"], split="train", revision=hub["revision"], features=features, streaming=True)
        for place, value in enumerate(dataset, 1):
            yield Row(place, dict(value), json.dumps(value, ensure_ascii=False)[:MAX_REJECTED_TEXT])
    except (OSError, ValueError) as error:
        raise InputError(f"{source.name}: cannot be read from the hub: {error}") from error


def _items(value: Any) -> list[PRMBenchItem]:
    """The modified item of a row and, from a `redundency` row, the `correct` one."""
    record = json_object(value)
    classification = text_of(record, "classification")
    if classification not in PRMBENCH_CLASSES:
        raise InputError(f"'classification' is {classification!r}; known are {', '.join(PRMBENCH_CLASSES)}")
    # The benchmark's description of its format (docs/data_format.md) shows the class in front of idx; its data do not.
    idx = text_of(record, "idx").removeprefix(f"{classification}_")
    steps = texts_of(record, "modified_process")
    errors = record.get("error_steps")
    if not isinstance(errors, list) or not all(type(step) is int and step >= 1 for step in errors):
        raise InputError(f"'error_steps' must be a list of step numbers counted from 1, not {errors!r:.80}")
    wrong = [step - 1 for step in errors if step <= len(steps)]
    # A row whose errors all lie past its end has no earliest wrong step to name.
    label = min(wrong) if wrong else None if errors else -1
    key = f"{classification}_{idx}"
    solution = checked_solution(key, text_of(record, "modified_question"), steps, label)
    items = [PRMBenchItem(classification, idx, solution, tuple(errors))]
    if classification == "redundency":
        original = checked_solution(
            f"{CORRECT}_{idx}", text_of(record, "original_question"), texts_of(record, "original_process"), -1
        )
        items.append(PRMBenchItem(CORRECT, idx, original, ()))
    return items


_SCORE_NAMES = (*PRMBENCH_CLASSES, "overall", *PRMBENCH_GROUPS)
_GROUP_INDICES = [[PRMBENCH_CLASSES.index(name) for name in names] for names in PRMBENCH_GROUPS.values()]
_MULTI_SOLUTIONS = PRMBENCH_CLASSES.index("multi_solutions")

# Counts of an item: for its class TP, FP, TN, FN; the same once more if it is of the clean subset; then the difference
# of its similarity pair, and the number of these (0 or 1).
_NUM_CALLS = 4
_CALLS = len(PRMBENCH_CLASSES) * _NUM_CALLS
_PAIRS = 2 * _CALLS


def tally_prmbench(
    items: BenchmarkItems[PRMBenchItem],
    scores: Scores,
    *,
    threshold: float = 0.5,
    strictly_above: bool = False,
    allow_missing: bool = False,
) -> Tally:
    """Count a run item by item.

    Args:
        items: the benchmark.
        scores: one score for every step, without exit at the first error.
        threshold: a step with at least this score is called correct.
        strictly_above: a step must score above the threshold instead, as the benchmark's own scripts for released PRMs
            have it. It matters where scores are shares of votes, which meet the threshold exactly.
        allow_missing: count steps without a score as called wrongly, whatever their label, instead of refusing.

    Raises:
        MissingPredictions: items have steps without a score and `allow_missing` is not set.
        InputError: the scores do not fit the items' steps.
        BenchmarkError: the scores cannot be measured at this threshold.
    """
    scores.check_threshold(threshold)
    # Above the threshold is at least the next larger number.
    least = math.nextafter(threshold, math.inf) if strictly_above else threshold
    modified = [item for item in items.items if item.classification != CORRECT]
    originals = [item for item in items.items if item.classification == CORRECT]
    if not modified:
        raise BenchmarkError("there are no items to measure")
    wrong = [
        f"{item.id} ({len(p_yes)} scores, {len(item.solution.steps)} steps)"
        for item in (*modified, *originals)
        if (p_yes := scores.p_yes.get(item.id)) is not None and len(p_yes) != len(item.solution.steps)
    ]
    refuse_lengths(wrong, " (PRMBench needs every step judged: no exit at the first error)" if wrong else "")
    has_originals = any(item.id in scores.p_yes for item in originals)
    needed = modified + originals * has_originals
    incomplete = [item.id for item in needed if None in scores.p_yes.get(item.id, (None,))]
    what = "no prediction, or a step without a score"
    refuse_missing(incomplete, [item.id for item in needed], what, scores, allow_missing=allow_missing)
    share_of_original = {
        item.idx: share for item in originals if (share := _share_correct(scores.p_yes.get(item.id), least))
    }
    counts = np.zeros((len(modified), _PAIRS + 2))
    outcomes = np.zeros((len(modified), _NUM_CALLS), dtype=np.int64)
    at_hand = {item.classification for item in modified}
    coverage = {name: Coverage() for name in PRMBENCH_CLASSES if name in at_hand}
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
    note = f"similarity is over {int(counts[:, -1].sum())} pairs of a modified and an original solution"
    if not has_originals:
        such = (
            f"none of the {len(originals)} `correct` items (such as {originals[0].id}) has scores" if originals else ""
        )
        note = f"similarity is not measured: {such or 'there are no `correct` items'}"
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
        layout=_table,
        missing=tuple(identifier for identifier in incomplete if not identifier.startswith(f"{CORRECT}_")),
        notes=(note,),
    )


def without_step_numbers(items: BenchmarkItems[PRMBenchItem]) -> BenchmarkItems[PRMBenchItem]:
    """The items with `Step 1. ` or `1. ` at the head of their steps taken off, and the space around the steps.

    As the benchmark's scripts for ReasonEval, Qwen, Skywork and RLHFlow do before they judge
    (`mr_eval/utils/model_utils.py`, `remove_step_prefix`); those for Math-Shepherd, Llemma and PURE do not. The sources
    say so, which keeps a run on such items apart from one on the items as they are.
    """

    def stripped(item: PRMBenchItem) -> PRMBenchItem:
        pattern = r"^(step\s*\d+\.\s*|\d+\.\s*)"
        steps = tuple(re.sub(pattern, "", step.strip(), flags=re.IGNORECASE) for step in item.solution.steps)
        return replace(item, solution=item.solution.model_copy(update={"steps": steps}))

    return replace(
        items,
        items=tuple(map(stripped, items.items)),
        sources=tuple(replace(source, digest=f"{source.digest} without step numbers") for source in items.sources),
    )


def _calls(item: PRMBenchItem, p_yes: StepScores | None, least: float) -> tuple[int, int, int, int]:
    """TP, FP, TN, FN of one item; a step without a score is called wrongly."""
    called = [None if score is None else score >= least for score in p_yes or (None,) * len(item.solution.steps)]
    wrong = item.wrong_steps
    tp = sum(call is True for index, call in enumerate(called) if index not in wrong)
    tn = sum(call is False for index, call in enumerate(called) if index in wrong)
    return tp, len(wrong) - tn, tn, len(called) - len(wrong) - tp


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


def _table(measured: Measurement) -> ResultTable:
    def line(name: str, classes: Iterable[str], label: str, style: str = "") -> TableLine:
        num_items = sum(measured.coverage[one].num_items for one in classes if one in measured.coverage)
        cells = (f"{num_items:,}", measured.figures[name], measured.figures[f"clean.{name}"])
        return TableLine(label, cells, style)

    lines: list[TableLine | None] = []
    for group, classes in PRMBENCH_GROUPS.items():
        lines.append(line(group, classes, group, "bold"))
        lines += [*(line(name, (name,), f"  {name}") for name in classes), None]
    lines.append(line("overall", measured.coverage, "overall", "bold"))
    if measured.figures["similarity"].value is not None:
        lines.append(TableLine("similarity", ("", measured.figures["similarity"], "")))
    title = f"PRMBench at threshold {measured.threshold:g}"
    return ResultTable(title, ("PRMScore", "items", "all items", "clean items"), lines)


measure_prmbench = partial(measure, tally_prmbench)

PRMBENCH = Benchmark(
    name="prmbench",
    help="""PRMBench: the PRMScore of nine classes, three groups and overall, and of the items clean of PRM800K.

    Every step is judged, also after the first error.
    """,
    read=read_prmbench,
    tally=tally_prmbench,
    hub=PRMBENCH_HUB,
    group="classification",
    flags={
        "strip_step_numbers": Flag(
            "Judge the steps without `Step 1. ` or `1. ` at their heads, as most published baselines do.",
            items=without_step_numbers,
        ),
        "strictly_above": Flag("Call a step correct above the threshold, not at it, as the published baselines do."),
    },
)
