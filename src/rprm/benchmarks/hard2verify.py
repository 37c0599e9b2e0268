"""Hard2Verify (arXiv 2510.13744): proofs by frontier models, each step labelled; one that rests on an error is wrong.

Three tasks, as in the benchmark's `utils.py`: `step`, is each step called as it is labelled, over all steps at once;
`response`, is a solution called right (no step wrong); `error_id`, is the first wrong step named, -1 for none. Of each
`tpr` is the share of right ones that are called so, `tnr` that of wrong ones (in `error_id`: whose first wrong step is
named exactly), `balanced_acc` their mean and `balanced_f1` their harmonic mean. What rests on no item is undefined.
A step without a score is called wrongly; so is, other than there, a solution with one and no step that is called wrong.
"""

from __future__ import annotations

import json
from base64 import b64decode
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from itertools import cycle
from operator import xor
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from rprm.benchmarks.benchmark import Benchmark, Measurement
from rprm.benchmarks.items import ANY, BenchmarkItems, StoredSolution, Texts, open_sources, read_items
from rprm.benchmarks.scores import Scores
from rprm.benchmarks.tally import Coverage, Floats, ResultTable, TableLine, Tally, accuracies
from rprm.errors import InputError
from rprm.reading import MAX_COMMAS, AnyText, Identifier, RowModel, StepLabel, Text, checked, json_object
from rprm.records import Solution

HARD2VERIFY_HUB = "Salesforce/Hard2Verify"  #: the data set of the benchmark's authors

#: The tasks, and the figures of each, with their titles.
_TASKS = {"step": "step level", "response": "response level", "error_id": "error id"}
_FIGURES = {"tpr": "TPR", "tnr": "TNR", "balanced_acc": "balanced acc", "balanced_f1": "balanced F1"}


@dataclass(frozen=True, slots=True)
class Hard2VerifyItem:
    """A solution; whether each of its steps is right; the first wrong one (-1: none)."""

    solution: Solution | StoredSolution
    labels: tuple[bool, ...]
    label: int

    @property
    def id(self) -> str:
        return self.solution.id


Items = BenchmarkItems[Hard2VerifyItem]


class _Row(RowModel):
    unique_id: Identifier
    question: Text
    model_response_by_step: Annotated[list[AnyText], Field(min_length=1)]
    human_labels: list[StepLabel]
    human_labels_first_error_idx: int | None = None


def read_hard2verify(data: str | Path = HARD2VERIFY_HUB, *, revision: str | None = None) -> Items:
    """Read Hard2Verify, encrypted as on the hub or decrypted: a file; a folder with `.jsonl` or `.json` files; or a hub
    data set with a split `test`. An `InputError` where nothing can be read."""
    sources = open_sources(data, {ANY: {"split": "test"}}, revision)
    item = partial(_item, Texts())
    return read_items((source, item) for _, source in sources)


def _item(texts: Texts, value: Any, _: int) -> Hard2VerifyItem:
    row = checked(_Row, decrypted(json_object(value)))
    steps, labels, index = row.model_response_by_step, row.human_labels, row.human_labels_first_error_idx
    if len(labels) != len(steps):
        raise InputError(f"'human_labels' must be a label for each of {len(steps)} steps; there are {len(labels)}")
    first = -1 if all(labels) else labels.index(False)
    if index not in (None, first):
        wanted = f"the 0-based index of the first step that 'human_labels' calls wrong, {first} (-1: none)"
        raise InputError(f"'human_labels_first_error_idx' must be {wanted}; not {index}")
    solution = Solution(id=row.unique_id, problem=row.question, steps=tuple(steps), label=first)
    return Hard2VerifyItem(texts.put(solution), tuple(labels), first)


def decrypted(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row as its authors' `decrypt_sample` has it: an encrypted field is base64 of text or JSON, each byte XOR one of
    the SHA-256 of the row's `canary`, again and again. A row whose steps are a list is decrypted already."""
    found = dict(row)
    if not isinstance(row.get("model_response_by_step"), str):
        return found
    if not isinstance(canary := row.get("canary"), str):
        raise InputError("the row is encrypted, and has no 'canary' to decrypt it with: take the file from the hub")
    digest, plain = sha256(canary.encode(errors="surrogatepass")).digest(), dict[str, str]()
    for name in _Row.model_fields:
        if name != "unique_id" and isinstance(text := row.get(name), str):
            try:
                plain[name] = bytes(map(xor, b64decode(text), cycle(digest))).decode()
            except ValueError:
                raise InputError(f"{name!r} cannot be decrypted with the row's 'canary'") from None
    if sum(text.count(",") for text in plain.values()) > MAX_COMMAS:
        raise InputError(f"the decrypted row has more than {MAX_COMMAS:,} commas")
    for name, text in plain.items():
        found[name] = text
        with suppress(ValueError, RecursionError):
            value = json.loads(text)
            found[name] = value if name != "question" or isinstance(value, str) else text
    return found


def tally_hard2verify(items: Items, scores: Scores, *, threshold: float = 0.5, allow_missing: bool = False) -> Tally:
    """Count a run item by item: a step with a score below the threshold is called wrong. A critic's first error is what
    most of its critiques name. Errors are as for `tally_processbench`; every step must have been judged."""
    scores.check_threshold(threshold)
    num_steps = {item.id: item.solution.num_steps for item in items.items}
    p_yes = scores.of_items(num_steps, "Hard2Verify needs every step judged: no exit at the first error")
    missing = tuple(name for name, found in p_yes.items() if set(found) == {None})
    scores.refuse_missing(missing, num_steps, "no prediction", allow_missing=allow_missing)
    # Of each task and kind (right ones, wrong ones) how many are called so, and how many there are.
    counts = np.zeros((len(num_steps), len(_TASKS), 2, 2))
    coverage = Coverage()
    for place, item in enumerate(items.items):
        steps = [None if score is None else score >= threshold for score in p_yes[item.id]]
        for label, step in zip(item.labels, steps, strict=True):
            counts[place, 0, int(not label)] += step is label, 1
        is_right, first = all(item.labels), scores.named(item.id, threshold)
        response = False if False in steps else None if None in steps else True
        counts[place, 1, int(not is_right)] = response is is_right, 1
        counts[place, 2, int(item.label >= 0)] = first == item.label, 1
        lost = steps.count(None)
        coverage += Coverage(1, int(lost == len(steps)), len(steps), len(steps) - lost, int(first is None))
    return Tally(
        benchmark="hard2verify", threshold=threshold, ids=tuple(num_steps),
        strata=np.array(["hard2verify"] * len(num_steps)), counts=counts.reshape(len(num_steps), -1),
        outcomes=counts[:, 0, :, 0].astype(np.int64), coverage={"hard2verify": coverage}, missing=missing,
        figure_names=tuple(f"{task}.{name}" for task in _TASKS for name in _FIGURES), figures_of=_figures_of,
        headline="step.balanced_f1", layout=_table,
    )  # fmt: skip


def _figures_of(sums: Floats) -> Floats:
    """(..., 3 * 2 * 2 counts) -> (..., 3 * 4 figures)."""
    shares = accuracies(sums.reshape(*sums.shape[:-1], len(_TASKS), 2, 2))
    means = shares[..., :2].mean(axis=-1, keepdims=True)
    return 100.0 * np.concatenate([shares[..., :2], means, shares[..., 2:]], axis=-1).reshape(*sums.shape[:-1], -1)


def _table(measured: Measurement) -> ResultTable:
    totals = measured.counts.sum(axis=0)[: len(_TASKS) * 4].reshape(len(_TASKS), 2, 2)[..., 1]
    lines = [
        TableLine(label, [measured.figures[f"{task}.{name}"] for task in _TASKS], "bold" if "F1" in label else "")
        for name, label in _FIGURES.items()
    ]
    sizes = TableLine("right, wrong", [f"{right:,.0f}, {wrong:,.0f}" for right, wrong in totals])
    notes = ["TPR is the share of right ones called right, TNR of wrong ones called wrong; F1 is their harmonic mean"]
    columns = "percent", *_TASKS.values()
    return ResultTable(f"Hard2Verify at threshold {measured.threshold:g}", columns, [*lines, sizes], notes)


HARD2VERIFY = Benchmark(
    name="hard2verify",
    help="""Hard2Verify: steps, responses and first errors of olympiad proofs; balanced accuracy and balanced F1.

    Every step is judged, also after the first error. The rows of the hub are decrypted as they are read.
    """,
    read=read_hard2verify,
    tally=tally_hard2verify,
    hub=HARD2VERIFY_HUB,
    right=lambda item: item.labels,
)
