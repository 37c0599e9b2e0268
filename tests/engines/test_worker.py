"""The batch's keys and values: rows that come and go leave the others' untouched."""

from __future__ import annotations

import random

import torch

from rprm.engines.worker import BatchCache, KeyValues

HEADS, SIZE = 2, 3


def layers_of(tokens: list[int]) -> list[KeyValues]:
    """Two layers in which a token's keys and values tell which one it is."""
    ids = torch.tensor(tokens, dtype=torch.float32)[None, None, :, None].expand(1, HEADS, -1, SIZE)
    return [(ids + 0.25 * layer, -ids - 0.25 * layer) for layer in range(2)]


def decode(cache: BatchCache, tokens: dict[int, int]) -> torch.Tensor:
    """One token a slot, as a model writes them; returns the mask."""
    mask = cache.open_column()
    column = [tokens.get(slot, 999_999) for slot in range(len(cache.lengths))]
    for place in range(2):
        states = torch.cat([layers_of([token])[place][0] for token in column])
        keys, values = cache.update(states, -states, place)
        assert keys.shape == values.shape == (len(column), HEADS, mask.shape[1], SIZE)
    return mask


def test_rows_that_come_and_go_against_lists() -> None:
    """A random history of rows joining, growing and leaving: what the mask shows of a row is its own tokens."""
    rng = random.Random(0)
    cache = BatchCache()
    rows: dict[int, list[int]] = {}
    token = 0
    for _ in range(900):
        if len(rows) < 12 and rng.random() < 0.2:
            length = rng.choice((1, 3, 40, 300))
            tokens = list(range(token, token + length))
            token += length
            slots = cache.add_rows(layers_of(tokens), rng.randint(1, 4))
            assert not set(slots) & set(rows)
            rows |= {slot: list(tokens) for slot in slots}
        if not rows:
            continue
        if (moved := cache.compact()) is not None:
            rows = {new: rows[old] for new, old in enumerate(moved)}
        new = {slot: token + place for place, slot in enumerate(rows)}
        token += len(rows)
        mask = decode(cache, new).bool()
        for slot, tokens in rows.items():
            tokens.append(new[slot])
            assert cache.lengths[slot] == len(tokens)
            for place, layer in enumerate(cache.layers):
                for seen, expected in zip((layer.keys, layer.values), layers_of(tokens)[place], strict=True):
                    assert torch.equal(seen[slot][:, mask[slot]], expected[0])
        for slot in range(len(cache.lengths)):
            if slot not in rows:
                # A free slot attends to something, or its numbers would be undefined.
                assert mask[slot].sum() == 1
        leaving = [slot for slot in rows if rng.random() < 0.05]
        cache.free(leaving)
        rows = {slot: tokens for slot, tokens in rows.items() if slot not in leaving}
    assert token > 1_000


def test_free_slots_are_taken_first_and_closed_up_when_many() -> None:
    cache = BatchCache()
    assert cache.add_rows(layers_of([1, 2]), 4) == [0, 1, 2, 3]
    cache.free([1])
    # 3 of 4 are taken: more than a quarter would have to be free.
    cache.free([])
    assert cache.add_rows(layers_of([3]), 2) == [1, 4]
    assert cache.compact() is None
    cache.free([0, 3])
    assert cache.compact() == [1, 2, 4]
    assert cache.lengths == [1, 2, 1]
    cache.free([0, 1, 2])
    assert cache.compact() == []
    assert cache.add_rows(layers_of([4, 5, 6]), 1) == [0]
