"""Keys and values of a batch whose rows come and go.

A row of n tokens stands in a slot, in the last n columns in use; the attention mask hides what is left of it. So
decoding writes in place, and a row that comes or goes moves no other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicLayer

KeyValues = tuple[torch.Tensor, torch.Tensor]  # of one layer, each [rows, heads, columns, size]
_HEADROOM = 256  # columns allocated beyond those of the longest row, so that decoding seldom copies


class BatchCache(Cache):  # type: ignore[misc]  # transformers is untyped
    """A transformers cache for decoding one token a row at a time; rows join and leave it."""

    layers: list[_Layer]

    def __init__(self) -> None:
        super().__init__(layers=[])
        self.lengths: list[int] = []  # tokens of the row in each slot, 0 where it is free

    def add_rows(self, layers: Sequence[KeyValues], repeats: int) -> list[int]:
        """Add `repeats` equal rows, given as keys and values [1, heads, tokens, size] of each layer; their slots."""
        if not self.layers:
            self.layers = [_Layer(keys, values) for keys, values in layers]
        length, end = layers[0][0].shape[-2], self.layers[0].end
        num_slots = len(self.lengths)
        slots = [slot for slot, taken in enumerate(self.lengths) if not taken][:repeats]
        slots += range(num_slots, num_slots + repeats - len(slots))
        if slots[-1] >= num_slots or length > end:
            self._move(range(num_slots), max(num_slots, slots[-1] + 1), max(length, end))
        self.lengths += [0] * (slots[-1] + 1 - num_slots)
        for slot in slots:
            self.lengths[slot] = length
        for layer, states in zip(self.layers, layers, strict=True):
            layer.write(states, slots, layer.end - length)
        return slots

    def free(self, slots: Sequence[int]) -> None:
        for slot in slots:
            self.lengths[slot] = 0

    def compact(self) -> list[int] | None:
        """Close up the free slots where they are a quarter or more; the old slot of each new one, None: all stayed."""
        taken = [slot for slot, length in enumerate(self.lengths) if length]
        if 4 * len(taken) > 3 * len(self.lengths):
            return None
        self.lengths = [self.lengths[slot] for slot in taken]
        self._move(taken, len(taken), max(self.lengths, default=0))
        return taken

    def open_column(self) -> torch.Tensor:
        """Count one more token in every slot; the attention mask [slots, columns] for it (in a free slot, itself)."""
        longest = max(self.lengths)
        if self.layers[0].end == self.layers[0].buffers[0].shape[-2]:
            self._move(range(len(self.lengths)), len(self.lengths), longest)
        for layer in self.layers:
            layer.show(longest)
        starts = torch.tensor([[longest - length] for length in self.lengths])
        self.lengths = [length + 1 if length else 0 for length in self.lengths]
        return (torch.arange(longest + 1) >= starts).long().to(self.layers[0].device)

    def _move(self, kept: Sequence[int], num_slots: int, end: int) -> None:
        for layer in self.layers:
            layer.move(kept, num_slots, max(self.lengths, default=0), end)


class _Layer(DynamicLayer):  # type: ignore[misc]
    """`keys` and `values` are the columns shown to the model, views of buffers [slots, heads, capacity, size]."""

    keys: torch.Tensor
    values: torch.Tensor

    def __init__(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        """No row yet; keys and values of a row, [1, heads, tokens, size], give the shapes."""
        super().__init__()
        self.lazy_initialization(keys, values)
        self.buffers = keys[:0, :, :0], values[:0, :, :0]
        self.end = 0  # columns used

    def update(self, key_states: Any, value_states: Any, *args: Any, **kwargs: Any) -> KeyValues:
        """Write a token of every slot, [slots, heads, 1, size], at the next column."""
        self.end += 1
        self.write((key_states, value_states), slice(None), self.end - 1)
        self.show(self.keys.shape[-2] + 1)
        return self.keys, self.values

    def show(self, num_columns: int) -> None:
        """Let the model see the last columns."""
        self.keys, self.values = (buffer[:, :, self.end - num_columns : self.end] for buffer in self.buffers)

    def write(self, states: KeyValues, slots: Any, start: int) -> None:
        """Write keys and values to the slots, from column `start` to the end."""
        for buffer, new in zip(self.buffers, states, strict=True):
            buffer[slots, :, start : self.end] = new

    def move(self, kept: Sequence[int], num_slots: int, num_columns: int, end: int) -> None:
        """New buffers: the kept slots first, their last `num_columns` columns ending at `end`, and room after it."""
        shown = slice(self.end - num_columns, self.end)
        moved = []
        for buffer in self.buffers:
            moved.append(buffer.new_zeros(num_slots, buffer.shape[1], end + _HEADROOM, buffer.shape[3]))
            moved[-1][: len(kept), :, end - num_columns : end] = buffer[list(kept), :, shown]
        self.buffers, self.end = (moved[0], moved[1]), end
        self.show(num_columns)
