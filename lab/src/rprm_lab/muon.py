"""Muon and AdamW as one optimizer: of a small model from nothing it makes the most of few tokens.

On the lab's texts 300 steps with it reach the loss of 490 with AdamW alone (docs/log.md).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

_WEIGHT_DECAY = 0.1


class MuonAdamW(torch.optim.Optimizer):
    """Muon for the matrices of the layers, AdamW for embeddings and norms.

    Args:
        model: a causal language model.
        learning_rate: of Muon, on AdamW's scale.
        adam_learning_rate: of AdamW.
    """

    def __init__(self, model: Any, learning_rate: float, adam_learning_rate: float) -> None:
        embeddings = {id(parameter) for parameter in model.get_input_embeddings().parameters()}
        named = [parameter for parameter in model.parameters() if parameter.requires_grad]
        matrices = [parameter for parameter in named if parameter.ndim == 2 and id(parameter) not in embeddings]
        tables = [parameter for parameter in named if id(parameter) in embeddings]
        vectors = [parameter for parameter in named if parameter.ndim != 2]
        self.parts = [
            torch.optim.Muon(matrices, lr=learning_rate, weight_decay=_WEIGHT_DECAY, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(
                [{"params": tables, "weight_decay": _WEIGHT_DECAY}, {"params": vectors, "weight_decay": 0.0}],
                lr=adam_learning_rate,
                betas=(0.9, 0.98),
            ),
        ]
        super().__init__(self._groups(), {})

    def _groups(self) -> list[dict[str, Any]]:
        return [group for part in self.parts for group in part.param_groups]

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        if closure is not None:
            raise ValueError("closures are not taken")
        for part in self.parts:
            part.step()

    def state_dict(self) -> dict[str, Any]:
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        # Loading makes new groups; what sets a learning rate here must reach them.
        self.param_groups = self._groups()
