"""From labelled steps to the sequences that a classifier is trained on: those of one problem that share their beginning
are merged into a tree, and each leaf is one. And the threshold on its rewards.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
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
    """What became of the labelled steps of a part: `num_repeated` are the same step after the same steps with the same
    label as an earlier row (trained on once); those that one row calls right and another wrong, and those beyond the
    longest length, are not trained on."""

    num_rows: int = 0
    num_repeated: int = 0
    num_contradictory: int = 0
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

    children: dict[str, _Node] = field(default_factory=dict)
    labels: set[bool] = field(default_factory=set)


def merge_steps(rows: Iterable[LabelledStep]) -> tuple[list[StepSequence], MergeCounts]:
    """Merge labelled steps into sequences, in the order of their problems' first rows, each step labelled in one; and
    counts (those of tokens and lengths still 0)."""
    counts = MergeCounts()
    roots: dict[str, _Node] = {}
    for row in rows:
        counts.num_rows += 1
        node = roots.setdefault(row.problem, _Node())
        for step in row.steps:
            node = node.children.setdefault(step, _Node())
        counts.num_repeated += row.label in node.labels
        counts.num_contradictory += node.labels == {not row.label}
        node.labels.add(row.label)
    sequences = []
    pending = [(StepSequence(problem, (), ()), root) for problem, root in reversed(roots.items())]
    while pending:
        path, node = pending.pop()
        # Where rows contradict each other, a sequence can be left without a label.
        if not node.children and any(label is not None for label in path.labels):
            sequences.append(path)
        for place, (step, child) in reversed(list(enumerate(node.children.items()))):
            own = next(iter(child.labels)) if len(child.labels) == 1 else None
            # The first sequence through a step has its label.
            labels = path.labels if place == 0 else (None,) * len(path.labels)
            pending.append((StepSequence(path.problem, (*path.steps, step), (*labels, own)), child))
    return sequences, counts


@dataclass(frozen=True, slots=True)
class TokenSequence:
    """A sequence as the network reads it: `ids` [tokens], and the class (0 wrong, 1 correct) at `positions` [steps]."""

    ids: Any
    positions: tuple[int, ...]
    classes: tuple[int, ...]


def encode_sequences(
    sequences: Iterable[StepSequence], layout: Layout, counts: MergeCounts, *, max_length: int
) -> list[TokenSequence]:
    """Lay sequences out. Each ends at its last labelled step (a causal model reads no further); steps whose tag stands
    beyond `max_length` are left out."""
    import numpy as np

    encoded = []
    for sequence in sequences:
        labelled = [(index, label) for index, label in enumerate(sequence.labels) if label is not None]
        try:
            rendered = layout.render(sequence.problem, sequence.steps[: labelled[-1][0] + 1])
        except RequestRefused as error:
            raise InputError(f"problem {sequence.problem[:60]!r}: {error}; remove it from the text") from None
        places = [(rendered.positions[index], int(label)) for index, label in labelled]
        kept = [(place, label) for place, label in places if place < max_length]
        counts.num_too_long += len(labelled) - len(kept)
        if not kept:
            continue
        positions, classes = zip(*kept, strict=True)
        ids = np.array(rendered.ids[: positions[-1] + 1], dtype=np.int32)
        encoded.append(TokenSequence(ids, positions, classes))
        counts.num_correct += sum(classes)
        counts.num_wrong += len(classes) - sum(classes)
        counts.num_sequences += 1
        counts.num_tokens += len(ids)
    return encoded


def collate(sequences: Sequence[TokenSequence]) -> dict[str, torch.Tensor]:
    """A batch, padded on the right: `input_ids`, `attention_mask` and `labels` (-100 but at trained tags), each
    [sequences, tokens]."""
    import torch

    shape = len(sequences), max(len(sequence.ids) for sequence in sequences)
    ids, mask = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
    labels = torch.full(shape, IGNORED)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence.ids)] = torch.from_numpy(sequence.ids)
        mask[row, : len(sequence.ids)] = 1
        labels[row, list(sequence.positions)] = torch.tensor(sequence.classes)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def accuracies(rewards: Sequence[float], labels: Sequence[bool], threshold: float) -> dict[str, float | None]:
    """At a threshold, `wrong`, the share of the wrong steps with a reward below it; `correct`, the share of the correct
    ones at or above it; `f1`, their harmonic mean. None where there is no step of the kind."""
    sides: dict[bool, list[bool]] = {False: [], True: []}
    for reward, label in zip(rewards, labels, strict=True):
        sides[label].append((reward >= threshold) is label)
    wrong, correct = (sum(side) / len(side) if side else None for side in sides.values())
    f1 = None if wrong is None or correct is None else _f1(wrong, correct)
    return {"threshold": threshold, "wrong": wrong, "correct": correct, "f1": f1}


def _f1(wrong: float, correct: float) -> float:
    return 2 * wrong * correct / (wrong + correct) if wrong + correct else 0.0


def best_threshold(rewards: Sequence[float], labels: Sequence[bool]) -> float:
    """The threshold with the best f1, of equals the one closest to 0.5: among 0.5 and the middles between neighbouring
    rewards. Where a class has no step, 0.5."""
    num_correct, num_wrong = sum(labels), len(labels) - sum(labels)
    if not num_correct or not num_wrong:
        return 0.5
    ranked = sorted(zip(rewards, labels, strict=True))
    found = [(accuracies(rewards, labels, 0.5)["f1"] or 0.0, 0.0, 0.5)]
    below = 0
    for number, ((reward, label), (above, _)) in enumerate(pairwise(ranked), 1):
        below += label
        middle = (reward + above) / 2
        # Neighbours too close for a number between them are one reward.
        if reward < middle < 1.0:
            f1 = _f1((number - below) / num_wrong, 1 - below / num_correct)
            found.append((f1, -abs(middle - 0.5), middle))
    return max(found)[2]
