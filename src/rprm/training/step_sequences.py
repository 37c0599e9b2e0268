"""From labelled steps to the sequences that a classifier is trained on.

Labelled steps of one problem that share their beginning are merged: a tree of steps for each problem, and each of its
leaves is one sequence. A labelled step is trained on once, at its tag in the first sequence that it stands in; every
other token carries no loss.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from rprm.errors import InputError, RequestRefused
from rprm.records import LabelledStep
from rprm.rewarders.layouts import Layout

if TYPE_CHECKING:
    import torch

#: Marks a token that carries no loss.
IGNORED = -100


@dataclass(frozen=True, slots=True)
class StepSequence:
    """Steps of one problem in their order; `labels` has None where a step is not trained on here."""

    problem: str
    steps: tuple[str, ...]
    labels: tuple[bool | None, ...]


@dataclass
class MergeCounts:
    """What became of the labelled steps of a part."""

    num_rows: int = 0
    #: The same step after the same steps with the same label as an earlier row: trained on once.
    num_repeated: int = 0
    #: Steps that one row calls right and another wrong: not trained on.
    num_contradictory: int = 0
    #: Steps that stand beyond the longest length: not trained on.
    num_too_long: int = 0
    num_correct: int = 0
    num_wrong: int = 0
    num_sequences: int = 0
    num_tokens: int = 0

    @property
    def num_trained(self) -> int:
        return self.num_correct + self.num_wrong


@dataclass(slots=True)
class _Node:
    """A step after the steps above it. Children stand in the order of their first rows."""

    step: str
    children: dict[str, _Node] = field(default_factory=dict)
    labels: set[bool] = field(default_factory=set)


def merge_steps(rows: Iterable[LabelledStep]) -> tuple[list[StepSequence], MergeCounts]:
    """Merge labelled steps into sequences, each step labelled in exactly one of them.

    Returns:
        Sequences in the order of their problems' first rows, and counts (those of tokens and lengths still 0).
    """
    counts = MergeCounts()
    roots: dict[str, _Node] = {}
    for row in rows:
        counts.num_rows += 1
        node = roots.setdefault(row.problem, _Node(""))
        for step in row.steps:
            if step not in node.children:
                node.children[step] = _Node(step)
            node = node.children[step]
        counts.num_repeated += row.label in node.labels
        node.labels.add(row.label)
    sequences = [sequence for problem, root in roots.items() for sequence in _leaves(problem, root, counts)]
    # Where rows contradict each other, a sequence can be left without a label.
    return [sequence for sequence in sequences if any(label is not None for label in sequence.labels)], counts


def _leaves(problem: str, root: _Node, counts: MergeCounts) -> Iterator[StepSequence]:
    """One sequence for each leaf, depth first. A step gives its label to the first sequence through it."""
    pending = [(child, [child]) for child in reversed(root.children.values())]
    met: set[int] = set()
    while pending:
        node, path = pending.pop()
        if node.children:
            pending += [(child, [*path, child]) for child in reversed(node.children.values())]
            continue
        labels: list[bool | None] = []
        for step in path:
            is_new = id(step) not in met
            met.add(id(step))
            counts.num_contradictory += is_new and len(step.labels) > 1
            labels.append(next(iter(step.labels)) if is_new and len(step.labels) == 1 else None)
        yield StepSequence(problem, tuple(step.step for step in path), tuple(labels))


@dataclass(frozen=True, slots=True)
class TokenSequence:
    """A sequence as the network reads it: `ids` [tokens], and the class (0 wrong, 1 correct) at `positions` [steps]."""

    ids: Any
    positions: tuple[int, ...]
    classes: tuple[int, ...]


def encode_sequences(
    sequences: Iterable[StepSequence], layout: Layout, counts: MergeCounts, *, max_length: int
) -> list[TokenSequence]:
    """Lay sequences out. Each ends at its last labelled step; steps whose tag stands beyond `max_length` are left out.

    Ending earlier is no cut: the tokens up to a step's tag are those of the steps up to it, and a causal model reads no
    further.
    """
    import numpy as np

    encoded = []
    for sequence in sequences:
        labelled = [(index, label) for index, label in enumerate(sequence.labels) if label is not None]
        try:
            rendered = layout.render(sequence.problem, sequence.steps[: labelled[-1][0] + 1])
        except RequestRefused as error:
            raise InputError(f"problem {sequence.problem[:60]!r}: {error}; remove it from the text") from None
        kept = [
            (rendered.positions[index], int(label))
            for index, label in labelled
            if rendered.positions[index] < max_length
        ]
        counts.num_too_long += len(labelled) - len(kept)
        if not kept:
            continue
        ids = np.array(rendered.ids[: kept[-1][0] + 1], dtype=np.int32)
        encoded.append(TokenSequence(ids, tuple(place for place, _ in kept), tuple(label for _, label in kept)))
        counts.num_correct += sum(label for _, label in kept)
        counts.num_wrong += sum(1 - label for _, label in kept)
        counts.num_sequences += 1
        counts.num_tokens += len(ids)
    return encoded


def collate(sequences: Sequence[TokenSequence]) -> dict[str, torch.Tensor]:
    """A batch, padded on the right: `input_ids`, `attention_mask` and `labels` (-100 but at trained tags), each
    [sequences, tokens]."""
    import torch

    shape = len(sequences), max(len(sequence.ids) for sequence in sequences)
    batch = {
        "input_ids": torch.zeros(shape, dtype=torch.long),
        "attention_mask": torch.zeros(shape, dtype=torch.long),
        "labels": torch.full(shape, IGNORED),
    }
    for row, sequence in enumerate(sequences):
        length = len(sequence.ids)
        batch["input_ids"][row, :length] = torch.from_numpy(sequence.ids)
        batch["attention_mask"][row, :length] = 1
        batch["labels"][row, list(sequence.positions)] = torch.tensor(sequence.classes)
    return batch


# --- threshold ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StepAccuracies:
    """How a classifier does on labelled steps at a threshold; None where there is no step of the kind.

    Attributes:
        wrong: share of the wrong steps with a reward below the threshold.
        correct: share of the correct steps with one at or above it.
    """

    threshold: float
    wrong: float | None
    correct: float | None

    @property
    def f1(self) -> float | None:
        """Harmonic mean of the two, as ProcessBench combines its accuracies."""
        if self.wrong is None or self.correct is None:
            return None
        return 2 * self.wrong * self.correct / (self.wrong + self.correct) if self.wrong + self.correct else 0.0


def accuracies(rewards: Sequence[float], labels: Sequence[bool], threshold: float) -> StepAccuracies:
    """Accuracies of rewards on labelled steps, both in the same order."""
    sides: dict[bool, list[bool]] = {False: [], True: []}
    for reward, label in zip(rewards, labels, strict=True):
        sides[label].append((reward >= threshold) is label)
    wrong, correct = (sum(side) / len(side) if side else None for side in (sides[False], sides[True]))
    return StepAccuracies(threshold, wrong, correct)


def best_threshold(rewards: Sequence[float], labels: Sequence[bool]) -> float:
    """The threshold with the best harmonic mean of both accuracies, of equals the one closest to 0.5.

    Candidates are 0.5 and the middles between neighbouring rewards. Where a class has no step, 0.5.
    """
    num_correct = sum(labels)
    num_wrong = len(labels) - num_correct
    if not num_correct or not num_wrong:
        return 0.5
    ranked = sorted(zip(rewards, labels, strict=True))
    found = [(accuracies(rewards, labels, 0.5).f1 or 0.0, 0.0, 0.5)]
    wrong_below = correct_below = 0
    for (reward, label), (above, _) in pairwise(ranked):
        wrong_below += not label
        correct_below += label
        middle = (reward + above) / 2
        # Neighbours too close for a number between them are one reward.
        if reward < middle < 1.0:
            wrong, correct = wrong_below / num_wrong, 1 - correct_below / num_correct
            f1 = 2 * wrong * correct / (wrong + correct) if wrong + correct else 0.0
            found.append((f1, -abs(middle - 0.5), middle))
    return max(found)[2]
