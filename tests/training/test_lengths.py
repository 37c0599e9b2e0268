"""Batches of rows of like length."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("torch")
datasets = pytest.importorskip("datasets")

from rprm.training.lifecycle import group_by_length  # noqa: E402
from rprm.training.rows import row_lengths  # noqa: E402


def order_of(lengths: list[int], batch_size: int, *, seed: int = 0, epoch: float = 0.0) -> list[int]:
    """The rows as a trainer would take them."""
    trainer: Any = SimpleNamespace(args=SimpleNamespace(seed=seed), state=SimpleNamespace(epoch=epoch))
    group_by_length(trainer, lengths, batch_size)
    return list(trainer._get_train_sampler())


def padded(lengths: list[int], order: list[int], batch_size: int) -> int:
    """Tokens of all batches, padding included."""
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    return sum(len(batch) * max(lengths[row] for row in batch) for batch in batches)


def test_every_row_comes_once_with_rows_of_its_length() -> None:
    rng = random.Random(0)
    lengths = [rng.randint(50, 500) for _ in range(1_003)]
    order = order_of(lengths, 8, seed=3)
    assert sorted(order) == list(range(1_003))
    # Of random batches of 8, the longest row has about 450 tokens, and so each row 450 instead of 275.
    shuffled = rng.sample(order, len(order))
    assert padded(lengths, shuffled, 8) > 1.5 * sum(lengths)
    assert padded(lengths, order, 8) < 1.1 * sum(lengths)


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    """A run that is resumed within an epoch finds it as it was."""
    lengths = [random.Random(1).randint(1, 99) for _ in range(200)]
    first = order_of(lengths, 4)
    assert order_of(lengths, 4, epoch=0.37) == first
    assert order_of(lengths, 4, seed=1) != first
    second = order_of(lengths, 4, epoch=1.0)
    assert second != first
    assert sorted(second) == sorted(first)


@pytest.mark.parametrize("count", [1, 3, 4, 5])
def test_fewer_rows_than_a_batch_and_what_is_left_over(count: int) -> None:
    assert sorted(order_of(list(range(count)), 4)) == list(range(count))


def test_the_length_of_a_row_is_that_of_its_longest_sequence() -> None:
    rows = datasets.Dataset.from_dict({"input_ids": [[1, 2, 3], [1]], "labels": [[-100, 2, 3], [1]]})
    assert row_lengths(rows) == [3, 1]
    pairs = datasets.Dataset.from_dict(
        {"prompt_ids": [[1, 2], [1]], "chosen_ids": [[3], [2, 2, 2]], "rejected_ids": [[4, 4, 4], [5]]}
    )
    assert row_lengths(pairs) == [5, 4]
    # A selection has rows of its own.
    assert row_lengths(pairs.select([1])) == [4]
