"""Keys and values of a batch whose rows come and go.

Rows of different lengths end at one column: a row of n tokens fills the last n columns, and what stands left of it is
padding that the attention mask hides. Decoding writes new columns in place; rows are added and dropped by copying.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicLayer

#: Keys and values of one layer, each [rows, heads, columns, size].
KeyValues = tuple[torch.Tensor, torch.Tensor]

#: Columns allocated beyond those in use, so that decoding need not copy at every token.
_HEADROOM = 256


class BatchCache(Cache):  # type: ignore[misc]  # transformers is untyped
    """A transformers cache that rows can be added to and dropped from."""

    layers: list[_Layer]

    def __init__(self) -> None:
        super().__init__(layer_class_to_replicate=_Layer)

    @property
    def num_columns(self) -> int:
        return int(self.layers[0].get_seq_length()) if self.layers else 0

    def add_rows(self, layers: Sequence[KeyValues], repeats: int) -> None:
        """Add `repeats` equal rows, given as keys and values [1, heads, tokens, size] of each layer."""
        if not self.layers:
            self.layers = [_Layer() for _ in layers]
        for layer, (keys, values) in zip(self.layers, layers, strict=True):
            layer.add_rows(keys.expand(repeats, -1, -1, -1), values.expand(repeats, -1, -1, -1))

    def keep_rows(self, indices: list[int], num_columns: int) -> None:
        """Keep these rows, in this order, and the last `num_columns` columns; none at all empties the cache."""
        if not indices:
            self.layers = []
            return
        for layer in self.layers:
            layer.keep_rows(indices, num_columns)

    def export_row(self) -> list[KeyValues]:
        """Keys and values of each layer, without the headroom."""
        return [(layer.keys.clone(), layer.values.clone()) for layer in self.layers]


class _Layer(DynamicLayer):  # type: ignore[misc]
    """`keys` and `values` are the part in use of buffers with room for more columns."""

    keys: torch.Tensor
    values: torch.Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._buffers: KeyValues | None = None

    def update(self, key_states: Any, value_states: Any, *args: Any, **kwargs: Any) -> KeyValues:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self._adopt(key_states, value_states)
            return self.keys, self.values
        assert self._buffers is not None
        used = self.keys.shape[-2]
        needed = used + key_states.shape[-2]
        if needed > self._buffers[0].shape[-2]:
            self._adopt(self.keys, self.values, room=key_states.shape[-2])
        keys, values = self._buffers
        keys[:, :, used:needed] = key_states
        values[:, :, used:needed] = value_states
        self.keys, self.values = keys[:, :, :needed], values[:, :, :needed]
        return self.keys, self.values

    def add_rows(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        if not self.is_initialized:
            self.lazy_initialization(keys, values)
            self._adopt(keys, values)
            return
        self._adopt(_stack(self.keys, keys), _stack(self.values, values), copied=True)

    def keep_rows(self, indices: list[int], num_columns: int) -> None:
        rows = torch.tensor(indices, device=self.keys.device)
        start = self.keys.shape[-2] - num_columns
        self._adopt(self.keys[rows, :, start:], self.values[rows, :, start:], copied=True)

    def _adopt(self, keys: torch.Tensor, values: torch.Tensor, *, room: int = 0, copied: bool = False) -> None:
        """Use these, in buffers with headroom (in their own storage when `copied`; the next token makes room)."""
        used = keys.shape[-2]
        if copied:
            self._buffers = keys, values
        else:
            shape = (*keys.shape[:-2], used + room + _HEADROOM, keys.shape[-1])
            new_keys, new_values = keys.new_zeros(shape), values.new_zeros((*shape[:-1], values.shape[-1]))
            new_keys[:, :, :used] = keys
            new_values[:, :, :used] = values
            self._buffers = new_keys, new_values
        self.keys, self.values = self._buffers[0][:, :, :used], self._buffers[1][:, :, :used]


def _stack(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Rows of both, padded on the left with zeros to the longer."""
    columns = max(first.shape[-2], second.shape[-2])
    padded = [torch.nn.functional.pad(rows, (0, 0, columns - rows.shape[-2], 0)) for rows in (first, second)]
    return torch.cat(padded)
