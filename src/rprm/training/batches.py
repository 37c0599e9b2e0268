"""Batches of rows of like length: little padding, in an order that is random all the same."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Sampler

#: Batches whose rows are sorted together. The fewer, the more padding; the more, the fewer rows of other lengths a row
#: ever meets.
_WINDOW = 50
#: Columns of the rows that TRL trains on: those of a sequence, of each sequence that a row makes.
_COLUMNS = {
    "sft": (("input_ids",),),
    "dpo": (("prompt_ids", "chosen_ids"), ("prompt_ids", "rejected_ids")),
}


class LengthBatches(Sampler[int]):
    """Indices of rows such that every `batch_size` in a row have about the same length; all that are left come last.

    Rows are shuffled, sorted within windows of some batches, and the batches shuffled: an epoch's order depends on
    the seed and the epoch alone.

    Args:
        lengths: tokens of each row.
        batch_size: rows that are padded to one length.
        seed: of the order.
    """

    def __init__(self, lengths: Sequence[int] | torch.Tensor, batch_size: int, seed: int) -> None:
        self.lengths = torch.as_tensor(lengths)
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(1_000_003 * self.seed + self.epoch)
        order = torch.randperm(len(self.lengths), generator=generator)
        num_batches = len(order) // self.batch_size
        whole, rest = order[: num_batches * self.batch_size], order[num_batches * self.batch_size :]
        batches = [
            batch
            for window in torch.split(whole, _WINDOW * self.batch_size)
            for batch in torch.split(window[self.lengths[window].argsort(stable=True)], self.batch_size)
        ]
        for place in torch.randperm(len(batches), generator=generator).tolist():
            yield from batches[place].tolist()
        yield from rest.tolist()


def row_lengths(rows: Any, kind: str) -> torch.Tensor:
    """Tokens of the longest sequence of each row of a data set of TRL's columns; `kind` is sft or dpo."""
    import pyarrow.compute as pc

    found = []
    for part in rows.with_format("arrow").iter(batch_size=10_000):
        sums = [sum(pc.list_value_length(part[name]).to_numpy() for name in names) for names in _COLUMNS[kind]]
        found.append(np.max(sums, axis=0))
    return torch.from_numpy(np.concatenate(found))


def in_length_batches(trainer: Any, lengths: Sequence[int] | torch.Tensor) -> None:
    """Let a trainer of transformers take its training rows in batches of like length."""
    sampler = LengthBatches(lengths, trainer.args.per_device_train_batch_size, trainer.args.seed)
    trainer._get_train_sampler = lambda rows=None: sampler
