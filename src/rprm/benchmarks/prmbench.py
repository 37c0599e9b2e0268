"""PRMBench (arXiv 2501.03124; ssmisya/PRMBench at a1ae4ea, `mr_eval/tasks/prmtest_classified/task.py`).

The positive class is a correct step; a step is called correct where its score is at least the threshold. Figures are
PRMScores: of each class the mean of F1 and negative F1 over all its steps (of `multi_solutions`, which has no wrong
steps, F1 alone); of the groups `simplicity`, `soundness`, `sensitivity` the mean of their classes'; and `overall` over
all steps of all classes at once. The same stands under `clean.` over the items whose problem is not one of PRM800K's
training problems. As in the benchmark an undefined precision, recall or F1 counts as -1 (that is -100); a class without
items is undefined (None), and so is its group.

`similarity` is 100 less the mean difference, in points, between the share of steps called correct in a modified
solution and in its original (a `correct` item); originals without a step called correct are left out.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from rprm.benchmarks.benchmark import Benchmark, Flag, Measurement
from rprm.benchmarks.items import ANY, BenchmarkItems, StoredSolution, Texts, loaded, open_sources, read_items
from rprm.benchmarks.scores import Scores
from rprm.benchmarks.tally import Coverage, Floats, ResultTable, TableLine, Tally
from rprm.errors import BenchmarkError, InputError
from rprm.reading import AnyText, RowModel, Text, checked, hub_errors
from rprm.records import Solution

PRMBENCH_HUB = "hitsmy/PRMBench_Preview"  #: the data set of the benchmark's authors

#: The groups and their classes, spelled as in the data (arXiv 2501.03124, table 3).
PRMBENCH_GROUPS = {
    "simplicity": ("redundency", "circular"),
    "soundness": ("counterfactual", "step_contradiction", "domain_inconsistency", "confidence"),
    "sensitivity": ("missing_condition", "deception", "multi_solutions"),
}
PRMBENCH_CLASSES = tuple(name for names in PRMBENCH_GROUPS.values() for name in names)

CORRECT = "correct"  #: the classification of the unmodified solutions; they serve the similarity measure alone


@dataclass(frozen=True, slots=True)
class PRMBenchItem:
    """A modified solution with its wrong steps: `error_steps`, 1-based as in the data, where about a hundred rows name
    steps past the end of the solution; those are not in `wrong_steps`. The id is `{classification}_{idx}`."""

    classification: str
    idx: str
    solution: Solution | StoredSolution
    error_steps: tuple[int, ...]

    @property
    def id(self) -> str:
        return self.solution.id

    @property
    def wrong_steps(self) -> frozenset[int]:
        """0-based indices of the wrong steps."""
        return frozenset(step - 1 for step in self.error_steps if step <= self.solution.num_steps)

    @property
    def is_clean(self) -> bool:
        """Whether the problem is not one of PRM800K's training problems, on which PRMs are commonly trained."""
        return not self.idx.startswith("prm_train_")


#: A text may be empty: three steps of PRMBench are, and they count.
_Steps = Annotated[list[AnyText], Field(min_length=1)]


class _PRMBenchRow(RowModel):
    classification: Text
    idx: Text
    modified_question: Text
    modified_process: _Steps
    error_steps: list[Annotated[int, Field(ge=1)]]


class _Original(RowModel):
    original_question: Text
    original_process: _Steps


def read_prmbench(data: str | Path = PRMBENCH_HUB, *, revision: str | None = None) -> BenchmarkItems[PRMBenchItem]:
    """Read PRMBench: a file; a folder, whose `.jsonl` and `.json` files are read in the order of their names; or a hub
    data set with a split `train`. An `InputError` where nothing can be read at all.

    Where a key stands in several rows the first is taken. Each `redundency` row also gives a `correct` item, the
    solution before it was modified.
    """
    originals: dict[str, PRMBenchItem] = {}
    texts = Texts()

    def item(value: Any, _: int) -> PRMBenchItem:
        row = checked(_PRMBenchRow, value)
        name = row.classification
        if name not in PRMBENCH_CLASSES:
            raise InputError(f"'classification' is {name!r}; known are {', '.join(PRMBENCH_CLASSES)}")
        # The benchmark's docs/data_format.md shows the class in front of idx; its data do not.
        idx = row.idx.removeprefix(f"{name}_")
        if name == "redundency":
            old = checked(_Original, value)
            original = _item(texts, CORRECT, idx, old.original_question, old.original_process, [])
            originals.setdefault(f"{name}_{idx}", original)
        return _item(texts, name, idx, row.modified_question, row.modified_process, row.error_steps)

    sources = open_sources(data, {ANY: {"split": "train"}}, revision)
    for _, source in sources:
        if source.hub:
            source.hub["features"] = _features()
    found = read_items([(source, item) for _, source in sources], first_wins=True)
    return replace(found, items=tuple(one for item in found.items for one in (item, originals.get(item.id)) if one))


def _item(texts: Texts, name: str, idx: str, problem: str, steps: Sequence[str], errors: Sequence[int]) -> PRMBenchItem:
    # Where errors all lie past the end there is no earliest wrong step to name.
    label = min((step - 1 for step in errors if step <= len(steps)), default=None if errors else -1)
    solution = Solution(id=f"{name}_{idx}", problem=problem, steps=tuple(steps), label=label)
    return PRMBenchItem(name, idx, texts.put(solution), tuple(errors))


def _features() -> Any:
    """The columns of the hub data set: two first appear near the end of its file."""
    with hub_errors(PRMBENCH_HUB):
        from datasets import Features, Value

    texts = "original_question modified_question question reason idx classification ground_truth original_response"
    columns: dict[str, Any] = dict.fromkeys(texts.split(), Value("string"))
    columns |= {name: [Value("string")] for name in ("original_process", "modified_process")}
    columns |= {name: [Value("int64")] for name in ("modified_steps", "error_steps")}
    return Features(columns)


def tally_prmbench(
    items: BenchmarkItems[PRMBenchItem], scores: Scores, *, threshold: float = 0.5, strictly_above: bool = False,
    allow_missing: bool = False,
) -> Tally:  # fmt: skip
    """Count a run item by item: a step with at least the threshold's score is called correct; or `strictly_above` it,
    as in the benchmark's own scripts for released PRMs.

    `MissingPredictions` where steps have no score (with `allow_missing` they count as called wrongly), `InputError`
    where the scores do not fit the items' steps, `BenchmarkError` where they do not hold at the threshold.
    """
    scores.check_threshold(threshold)
    # Above the threshold is at least the next larger number.
    least = math.nextafter(threshold, math.inf) if strictly_above else threshold
    modified = [item for item in items.items if item.classification != CORRECT]
    originals = [item for item in items.items if item.classification == CORRECT]
    if not modified:
        raise BenchmarkError("there are no items to measure")
    num_steps = {item.id: item.solution.num_steps for item in items.items}
    p_yes = scores.of_items(num_steps, "PRMBench needs every step judged: no exit at the first error")
    called = {name: [None if score is None else score >= least for score in found] for name, found in p_yes.items()}
    has_originals = any(item.id in scores.p_yes for item in originals)
    needed = [item.id for item in modified + originals * has_originals]
    lacking = [name for name in needed if None in called[name]]
    scores.refuse_missing(lacking, needed, "no prediction, or a step without a score", allow_missing=allow_missing)
    # Of steps called correct; None where a step has no score.
    shares = {name: None if None in found else sum(map(bool, found)) / len(found) for name, found in called.items()}
    share_of_original = {item.idx: shares[item.id] for item in originals}
    # Of each item TP, FP, TN, FN of its class; the same once more if it is of the clean subset.
    calls = np.zeros((len(modified), 2, len(PRMBENCH_CLASSES), 4))
    # The difference of its similarity pair, and the number of these (0 or 1).
    pairs = np.zeros((len(modified), 2))
    strata = [item.classification for item in modified]
    coverage = dict.fromkeys(sorted(set(strata), key=PRMBENCH_CLASSES.index), Coverage())
    for row, item in enumerate(modified):
        steps, are_wrong = called[item.id], item.wrong_steps
        # A step without a score is called wrongly.
        tp = sum(call is True for index, call in enumerate(steps) if index not in are_wrong)
        tn = sum(call is False for index, call in enumerate(steps) if index in are_wrong)
        fp, fn = len(are_wrong) - tn, len(steps) - len(are_wrong) - tp
        calls[row, : 1 + item.is_clean, PRMBENCH_CLASSES.index(item.classification)] = tp, fp, tn, fn
        share, original = shares[item.id], share_of_original.get(item.idx)
        if share is not None and original:
            pairs[row] = abs(share - original), 1
        num_scored = len(steps) - steps.count(None)
        coverage[item.classification] += Coverage(1, int(None in steps), len(steps), num_scored)
    note = f"similarity is over {int(pairs[:, 1].sum())} pairs of a modified and an original solution"
    if not originals:
        note = "similarity is not measured: there are no `correct` items"
    elif not has_originals:
        such = f"none of the {len(originals)} `correct` items (such as {originals[0].id}) has scores"
        note = f"similarity is not measured: {such}"
    names = (*PRMBENCH_CLASSES, "overall", *PRMBENCH_GROUPS)
    return Tally(
        benchmark="prmbench", threshold=threshold, ids=tuple(item.id for item in modified),
        strata=np.array(strata), counts=np.concatenate([calls.reshape(len(modified), -1), pairs], axis=1),
        outcomes=calls[:, 0].sum(axis=1).astype(np.int64), coverage=coverage,
        figure_names=(*names, *(f"clean.{name}" for name in names), "similarity"),
        figures_of=_figures_of, headline="overall", layout=_table, notes=(note,),
        missing=tuple(name for name in lacking if not name.startswith(f"{CORRECT}_")), least=least,
        counted_with={item.id: f"redundency_{item.idx}" for item in originals},
    )  # fmt: skip


def without_step_numbers(items: BenchmarkItems[PRMBenchItem]) -> BenchmarkItems[PRMBenchItem]:
    """The items with `Step 1. ` or `1. ` at the head of their steps taken off, and the space around the steps.

    As the benchmark's scripts for ReasonEval, Qwen, Skywork and RLHFlow do (`mr_eval/utils/model_utils.py`,
    `remove_step_prefix`). The sources say so, which keeps a run on such items apart from one on the items as they are.
    """
    number = re.compile(r"^(step\s*\d+\.\s*|\d+\.\s*)", flags=re.IGNORECASE)
    stripped, texts = [], Texts()
    for item, solution in zip(items.items, map(loaded, items.items), strict=True):
        steps = tuple(number.sub("", step.strip()) for step in solution.steps)
        stripped.append(replace(item, solution=texts.put(solution.model_copy(update={"steps": steps}))))
    sources = (replace(source, digest=f"{source.digest} without step numbers") for source in items.sources)
    return replace(items, items=tuple(stripped), sources=tuple(sources))


def _figures_of(sums: Floats) -> Floats:
    """(..., 2 * 9 * 4 calls, pairs) -> (..., 2 * 13 PRMScores, similarity)."""
    calls = sums[..., :-2].reshape(*sums.shape[:-1], 2, len(PRMBENCH_CLASSES), 4)
    calls = np.concatenate([calls, calls.sum(axis=-2, keepdims=True)], axis=-2)
    f1 = _f1(calls)
    # With the classes exchanged, true negatives are true positives.
    scores = (f1 + _f1(calls[..., [2, 3, 0, 1]])) / 2
    only_correct = PRMBENCH_CLASSES.index("multi_solutions")
    scores[..., only_correct] = f1[..., only_correct]
    members = [[PRMBENCH_CLASSES.index(name) for name in names] for names in PRMBENCH_GROUPS.values()]
    groups = np.stack([scores[..., indices].mean(axis=-1) for indices in members], axis=-1)
    similarity = 1.0 - _over(sums[..., -2], sums[..., -1], np.nan)
    scores = np.concatenate([scores, groups], axis=-1).reshape(*sums.shape[:-1], -1)
    return np.asarray(100.0 * np.concatenate([scores, similarity[..., None]], axis=-1))


def _f1(calls: Floats) -> Floats:
    """F1 (...) of TP, FP, TN, FN (..., 4), each undefined ratio on the way -1 as in the benchmark; NaN of no steps."""
    tp, fp, _, fn = np.moveaxis(calls, -1, 0)
    precision, recall = _over(tp, tp + fp, -1.0), _over(tp, tp + fn, -1.0)
    return np.where(calls.sum(axis=-1) == 0, np.nan, _over(2 * precision * recall, precision + recall, -1.0))


def _over(numerator: Floats, denominator: Floats, undefined: float) -> Floats:
    """numerator / denominator, `undefined` where the denominator is 0."""
    result = np.full(denominator.shape, undefined)
    np.divide(numerator, denominator, out=result, where=denominator != 0)
    return result


def _table(measured: Measurement) -> ResultTable:
    def line(name: str, classes: Iterable[str], label: str, style: str = "") -> TableLine:
        num_items = sum(measured.coverage[one].num_items for one in classes if one in measured.coverage)
        return TableLine(label, (f"{num_items:,}", measured.figures[name], measured.figures[f"clean.{name}"]), style)

    lines: list[TableLine | None] = []
    for group, classes in PRMBENCH_GROUPS.items():
        lines += [line(group, classes, group, "bold"), *(line(name, (name,), f"  {name}") for name in classes), None]
    lines.append(line("overall", measured.coverage, "overall", "bold"))
    if (similarity := measured.figures["similarity"]).value is not None:
        lines.append(TableLine("similarity", ("", similarity, "")))
    title = f"PRMBench at threshold {measured.threshold:g}"
    below = "below zero: an undefined precision or recall counts as -1, as in the benchmark's own code"
    notes = [below] * any((figure.value or 0) < 0 for figure in measured.figures.values())
    return ResultTable(title, ("PRMScore", "items", "all items", "clean items"), lines, notes)


PRMBENCH = Benchmark(
    name="prmbench",
    help="""PRMBench: the PRMScore of nine classes, three groups and overall, and of the items clean of PRM800K.

    Every step is judged, also after the first error.
    """,
    read=read_prmbench,
    tally=tally_prmbench,
    hub=PRMBENCH_HUB,
    group="classification",
    right=lambda item: [index not in item.wrong_steps for index in range(item.solution.num_steps)],
    flags={
        "strip_step_numbers": Flag(
            "Judge the steps without `Step 1. ` or `1. ` at their heads, as most published baselines do.",
            items=without_step_numbers,
        ),
        "strictly_above": Flag("Call a step correct above the threshold, not at it, as the published baselines do."),
    },
)
