"""From labelled steps to sequences: every labelled step once, prefixes merged, positions exact."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rprm.records import LabelledStep
from rprm.rewarders.layouts import Layout
from rprm.training.baseline import (
    IGNORED,
    MergeCounts,
    StepSequence,
    TokenSequence,
    accuracies,
    best_threshold,
    collate,
    encode_sequences,
    merge_steps,
)


def step(problem: str, steps: str, label: bool, number: int = 0) -> LabelledStep:
    """`steps` one letter each; the last is the labelled one."""
    return LabelledStep(
        id=f"{problem}-{steps}-{number}", problem=problem, previous_steps=tuple(steps[:-1]), step=steps[-1], label=label
    )


def test_shared_beginnings_are_merged() -> None:
    rows = [
        step("p", "a", True),
        step("p", "ab", True),
        step("p", "abc", False),
        step("p", "abd", True),
        # Its beginning `x` is labelled by no row.
        step("p", "xy", False),
        # The same steps of another problem are other steps.
        step("q", "a", False),
    ]
    sequences, counts = merge_steps(rows)
    assert sequences == [
        StepSequence("p", ("a", "b", "c"), (True, True, False)),
        # a and b have given their labels already.
        StepSequence("p", ("a", "b", "d"), (None, None, True)),
        StepSequence("p", ("x", "y"), (None, False)),
        StepSequence("q", ("a",), (False,)),
    ]
    assert (counts.num_rows, counts.num_repeated, counts.num_contradictory) == (6, 0, 0)


def test_repeated_and_contradictory_rows() -> None:
    rows = [
        step("p", "a", True),
        step("p", "a", True, 1),
        step("p", "ab", True),
        step("p", "ab", False),
        step("p", "c", True),
        step("p", "c", False),
    ]
    sequences, counts = merge_steps(rows)
    # b is called both: its sequence keeps a. c is alone, so that nothing is left of its sequence.
    assert sequences == [StepSequence("p", ("a", "b"), (True, None))]
    assert (counts.num_rows, counts.num_repeated, counts.num_contradictory) == (6, 1, 2)


paths = st.lists(st.tuples(st.sampled_from("pq"), st.text("ab", min_size=1, max_size=5), st.booleans()), max_size=30)


@settings(max_examples=200, deadline=None)
@given(paths)
def test_every_labelled_step_is_trained_on_once(rows: list[tuple[str, str, bool]]) -> None:
    wanted: dict[tuple[str, str], set[bool]] = {}
    for problem, steps, label in rows:
        wanted.setdefault((problem, steps), set()).add(label)
    sequences, counts = merge_steps(step(*row) for row in rows)
    found = [
        ((sequence.problem, "".join(sequence.steps[: index + 1])), label)
        for sequence in sequences
        for index, label in enumerate(sequence.labels)
        if label is not None
    ]
    # Once each, with its label, and no other: but for those that contradict each other.
    assert len(found) == len(dict(found))
    assert dict(found) == {path: next(iter(labels)) for path, labels in wanted.items() if len(labels) == 1}
    assert counts.num_contradictory == sum(len(labels) == 2 for labels in wanted.values())
    assert counts.num_repeated == len(rows) - sum(map(len, wanted.values()))
    # No sequence is the beginning of another.
    keys = [(sequence.problem, sequence.steps) for sequence in sequences]
    assert not any(
        one[0] == other[0] and one[1] == other[1][: len(one[1])] for one in keys for other in keys if one != other
    )


def tagged_tokenizer(folder: Path) -> object:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<extra_0>"], special_tokens=True)
    return tokenizer


def test_exact_positions_are_trained(tiny_model: Path) -> None:
    layout = Layout("qwen", tagged_tokenizer(tiny_model), system="S")
    counts = MergeCounts()
    sequences = [
        StepSequence("p?", ("one", "two", "three"), (None, True, None)),
        StepSequence("q", ("x", "y"), (False, True)),
    ]
    encoded = encode_sequences(sequences, layout, counts, max_length=512)
    batch = collate(encoded)
    for row, (sequence, text) in enumerate(
        zip(sequences, ("one<extra_0>two<extra_0>", "x<extra_0>y<extra_0>"), strict=True)
    ):
        length = int(batch["attention_mask"][row].sum())
        ids = batch["input_ids"][row, :length].tolist()
        # Nothing after the last labelled step.
        assert layout.tokenizer.decode(ids).endswith(text)
        trained = [place for place in range(length) if batch["labels"][row, place] != IGNORED]
        assert all(ids[place] == layout.token("<extra_0>") for place in trained)
        tags = [place for place in range(length) if ids[place] == layout.token("<extra_0>")]
        classes = {place: int(batch["labels"][row, place]) for place in trained}
        labels = sequence.labels[: len(tags)]
        assert classes == {place: int(label) for place, label in zip(tags, labels, strict=True) if label is not None}
        # Right padding carries neither attention nor loss.
        assert batch["attention_mask"][row, :length].all()
        assert (batch["labels"][row, length:] == IGNORED).all()
    assert (counts.num_correct, counts.num_wrong, counts.num_sequences) == (2, 1, 2)
    assert counts.num_tokens == int(batch["attention_mask"].sum())


def test_steps_beyond_the_length_are_left_out_and_those_before_kept(tiny_model: Path) -> None:
    layout = Layout("qwen", tagged_tokenizer(tiny_model), system="S")
    sequence = StepSequence("p", ("a" * 10, "b" * 10, "c" * 10), (True, True, False))
    places = layout.render("p", sequence.steps).positions
    for max_length, kept in ((places[2] + 1, 3), (places[2], 2), (places[1] + 1, 2), (places[0] + 1, 1), (3, 0)):
        counts = MergeCounts()
        encoded = encode_sequences([sequence], layout, counts, max_length=max_length)
        assert counts.num_too_long == 3 - kept
        assert [len(one.ids) for one in encoded] == ([places[kept - 1] + 1] if kept else [])


def test_collate_pads_on_the_right() -> None:
    one = TokenSequence(np.array([5, 6, 7], dtype=np.int32), (2,), (1,))
    other = TokenSequence(np.array([8], dtype=np.int32), (0,), (0,))
    batch = collate([one, other])
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["labels"].tolist() == [[-100, -100, 1], [0, -100, -100]]


def test_accuracies_and_their_harmonic_mean() -> None:
    rewards, labels = [0.9, 0.6, 0.3, 0.2, 0.7], [True, True, True, False, False]
    found = accuracies(rewards, labels, 0.5)
    # Wrong steps below 0.5: 0.2 of (0.2, 0.7), 1/2. Correct ones at or above: 0.9 and 0.6 of three, 2/3.
    assert (found["wrong"], found["correct"]) == (0.5, pytest.approx(2 / 3))
    assert found["f1"] == pytest.approx(2 * 0.5 * (2 / 3) / (0.5 + 2 / 3))
    assert accuracies([0.9], [True], 0.5)["f1"] is None
    assert accuracies([0.1, 0.9], [True, False], 0.5)["f1"] == 0.0


def test_the_best_threshold() -> None:
    # Between 0.2 and 0.3 all are right.
    assert best_threshold([0.1, 0.2, 0.3, 0.4], [False, False, True, True]) == pytest.approx(0.25)
    # 0.5 where it is as good as any; where there is nothing to choose from.
    assert best_threshold([0.1, 0.45, 0.9], [False, False, True]) == 0.5
    assert best_threshold([0.3, 0.4], [True, True]) == 0.5
    assert best_threshold([], []) == 0.5
    assert best_threshold([0.2, 0.2], [True, False]) == 0.5


def test_no_threshold_is_better() -> None:
    draw = random.Random(0)
    for _ in range(30):
        labels = [draw.random() < 0.6 for _ in range(40)]
        rewards = [round(min(1.0, max(0.0, draw.gauss(0.8 if label else 0.6, 0.2))), 2) for label in labels]
        chosen = best_threshold(rewards, labels)
        best = max(accuracies(rewards, labels, value / 1000)["f1"] or 0.0 for value in range(1, 1000))
        assert accuracies(rewards, labels, chosen)["f1"] == pytest.approx(best)
