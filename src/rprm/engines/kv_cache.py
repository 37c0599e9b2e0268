"""Keys and values of a batch whose rows come and go.

A row stands in a slot; its slot is free when it ends, and the next row takes it. Rows of different lengths end at one
column: a row of n tokens fills the last n columns in use, and what stands left of it is padding that the attention mask
hides. So decoding writes in place, and a row that comes or goes moves no other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicLayer

#: Keys and values of one layer, each [rows, heads, columns, size].
KeyValues = tuple[torch.Tensor, torch.Tensor]

#: Columns allocated beyond those of the longest row, so that decoding seldom copies.
_HEADROOM = 256


class BatchCache(Cache):  # type: ignore[misc]  # transformers is untyped
    """A transformers cache for decoding one token a row at a time; rows join and leave it.

    Attributes:
        lengths: tokens of the row in each slot, 0 where it is free.
    """

    layers: list[_Layer]

    def __init__(self) -> None:
        super().__init__(layers=[])
        self.lengths: list[int] = []

    def add_rows(self, layers: Sequence[KeyValues], repeats: int) -> list[int]:
        """Add `repeats` equal rows, given as keys and values [1, heads, tokens, size] of each layer.

        Returns:
            Their slots.
        """
        if not self.layers:
            self.layers = [_Layer(keys, values) for keys, values in layers]
        num_slots, longest = len(self.lengths), max(self.lengths, default=0)
        length = layers[0][0].shape[-2]
        slots = [slot for slot, taken in enumerate(self.lengths) if not taken][:repeats]
        slots += range(num_slots, num_slots + repeats - len(slots))
        end = self.layers[0].end
        if slots[-1] >= num_slots or length > end:
            for layer in self.layers:
                layer.move(range(num_slots), max(num_slots, slots[-1] + 1), longest, max(length, end))
        self.lengths += [0] * (slots[-1] + 1 - num_slots)
        for slot in slots:
            self.lengths[slot] = length
        for layer, (keys, values) in zip(self.layers, layers, strict=True):
            layer.write(slots, keys, values)
        return slots

    def free(self, slots: Sequence[int]) -> None:
        """Give up the rows in these slots."""
        for slot in slots:
            self.lengths[slot] = 0

    def compact(self) -> list[int] | None:
        """Close up the free slots where they are a quarter or more of all.

        Returns:
            The old slot of each new one, or None where nothing moved.
        """
        taken = [slot for slot, length in enumerate(self.lengths) if length]
        if 4 * len(taken) > 3 * len(self.lengths):
            return None
        self.lengths = [self.lengths[slot] for slot in taken]
        if taken:
            longest = max(self.lengths)
            for layer in self.layers:
                layer.move(taken, len(taken), longest, longest)
        else:
            self.layers = []
        return taken

    def open_column(self) -> torch.Tensor:
        """Make ready for one more token in every slot, and count it.

        Returns:
            The attention mask [slots, columns], the new column included. The token of a free slot sees itself alone.
        """
        longest = max(self.lengths)
        for layer in self.layers:
            if layer.is_full:
                layer.move(range(len(self.lengths)), len(self.lengths), longest, longest)
            layer.show(longest)
        device = self.layers[0].device
        starts = longest - torch.tensor(self.lengths, device=device)
        self.lengths = [length + 1 if length else 0 for length in self.lengths]
        return (torch.arange(longest + 1, device=device)[None] >= starts[:, None]).long()


class _Layer(DynamicLayer):  # type: ignore[misc]
    """`keys` and `values` are the columns shown to the model, views of buffers [slots, heads, capacity, size].

    Attributes:
        end: columns used.
    """

    keys: torch.Tensor
    values: torch.Tensor

    def __init__(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        """No row yet; keys and values of a row, [1, heads, tokens, size], give the shapes."""
        super().__init__()
        self.lazy_initialization(keys, values)
        self._buffers = keys[:0, :, :0], values[:0, :, :0]
        self.end = 0

    @property
    def is_full(self) -> bool:
        return self.end == self._buffers[0].shape[-2]

    def update(self, key_states: Any, value_states: Any, *args: Any, **kwargs: Any) -> KeyValues:
        """Write a token of every slot, [slots, heads, 1, size], at the next column."""
        num_shown = self.keys.shape[-2]
        for buffer, states in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[:, :, self.end : self.end + 1] = states
        self.end += 1
        self.show(num_shown + 1)
        return self.keys, self.values

    def show(self, num_columns: int) -> None:
        """Let the model see the last columns."""
        self.keys, self.values = (buffer[:, :, self.end - num_columns : self.end] for buffer in self._buffers)

    def write(self, slots: Sequence[int], keys: torch.Tensor, values: torch.Tensor) -> None:
        """Write a row, [1, heads, tokens, size], to each of the slots."""
        start = self.end - keys.shape[-2]
        for buffer, states in zip(self._buffers, (keys, values), strict=True):
            buffer[list(slots), :, start : self.end] = states

    def move(self, kept: Sequence[int], num_slots: int, num_columns: int, end: int) -> None:
        """New buffers: the kept slots first, their last `num_columns` columns ending at `end`, and room after it."""
        keys, values = (
            buffer.new_zeros(num_slots, buffer.shape[1], end + _HEADROOM, buffer.shape[3]) for buffer in self._buffers
        )
        for new, old in zip((keys, values), self._buffers, strict=True):
            new[: len(kept), :, end - num_columns : end] = old[list(kept), :, self.end - num_columns : self.end]
        self._buffers = keys, values
        self.end = end
