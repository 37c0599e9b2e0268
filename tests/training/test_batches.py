"""Batches of rows of like length."""

from __future__ import annotations

import random

import pytest

torch = pytest.importorskip("torch")
datasets = pytest.importorskip("datasets")

from rprm.training.batches import LengthBatches, row_lengths  # noqa: E402


def padded(lengths: list[int], order: list[int], batch_size: int) -> int:
    """Tokens of all batches, padding included."""
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    return sum(len(batch) * max(lengths[row] for row in batch) for batch in batches)


def test_every_row_comes_once_with_rows_of_its_length() -> None:
    rng = random.Random(0)
    lengths = [rng.randint(50, 500) for _ in range(1_003)]
    sampler = LengthBatches(lengths, 8, seed=3)
    order = list(sampler)
    assert sorted(order) == list(range(1_003))
    assert len(sampler) == 1_003
    # Of random batches of 8, the longest row has about 450 tokens, and so each row 450 instead of 275.
    shuffled = rng.sample(order, len(order))
    assert padded(lengths, shuffled, 8) > 1.5 * sum(lengths)
    assert padded(lengths, order, 8) < 1.05 * sum(lengths)


def test_short_and_long_batches_come_in_random_order() -> None:
    lengths = list(range(1, 801))
    order = list(LengthBatches(lengths, 8, seed=0))
    firsts = [lengths[row] for row in order[::8]]
    assert firsts not in (sorted(firsts), sorted(firsts, reverse=True))
    # In either half of the epoch rows are as long, near enough: 400 on average, 23 the standard error of 100 batches.
    halves = [sum(lengths[row] for row in half) / 400 for half in (order[:400], order[400:])]
    assert all(abs(half - 400.5) < 150 for half in halves)


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    lengths = [random.Random(1).randint(1, 99) for _ in range(200)]
    sampler = LengthBatches(lengths, 4, seed=0)
    first = list(sampler)
    assert list(sampler) == first
    assert list(LengthBatches(lengths, 4, seed=0)) == first
    assert list(LengthBatches(lengths, 4, seed=1)) != first
    sampler.set_epoch(1)
    second = list(sampler)
    assert second != first
    assert sorted(second) == sorted(first)


@pytest.mark.parametrize("count", [1, 3, 4, 5])
def test_fewer_rows_than_a_batch_and_what_is_left_over(count: int) -> None:
    order = list(LengthBatches(list(range(count)), 4, seed=0))
    assert sorted(order) == list(range(count))


def test_the_length_of_a_row_is_that_of_its_longest_sequence() -> None:
    rows = datasets.Dataset.from_dict({"input_ids": [[1, 2, 3], [1]], "labels": [[-100, 2, 3], [1]]})
    assert row_lengths(rows, "sft").tolist() == [3, 1]
    pairs = datasets.Dataset.from_dict(
        {"prompt_ids": [[1, 2], [1]], "chosen_ids": [[3], [2, 2, 2]], "rejected_ids": [[4, 4, 4], [5]]}
    )
    assert row_lengths(pairs, "dpo").tolist() == [5, 4]
    # A selection has rows of its own.
    assert row_lengths(pairs.select([1]), "dpo").tolist() == [4]
