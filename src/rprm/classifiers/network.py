"""The network of a discriminative PRM: a backbone, and a head that is read at chosen positions.

Every head answers with two logits, wrong and correct, so that the reward is `softmax(logits)[1]` in each layout: the
classes of a two-way head as they are; (0, v) for a value head v, as sigmoid(v) is the softmax over them; the rows of
`-` and `+` of a language model's output layer. Heads are read from the checkpoint's tensors by name: no code of a
checkpoint is run.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn

from rprm.classifiers.layouts import HeadKind, Layout, MathShepherdLayout, RLHFlowLayout
from rprm.engines.files import find_file
from rprm.errors import EngineError

#: The tensors of a head by their published names.
HEAD_TENSORS: dict[HeadKind, tuple[str, ...]] = {
    "two-way": ("score.0.weight", "score.0.bias", "score.2.weight", "score.2.bias"),
    "value": ("v_head.summary.weight", "v_head.summary.bias"),
    "tokens": (),
}

#: Where weights can lie, in the order they are looked for: an index of shards, or one file.
_WEIGHT_FILES = (
    "model.safetensors.index.json",
    "model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
)

#: What scales or bends the logits of an output layer in some model families.
_LOGIT_SETTINGS = ("final_logit_softcapping", "logits_scaling", "logit_scale")


class StepNetwork(nn.Module):
    """Backbone and head.

    Args:
        backbone: a transformers model that gives last hidden states (no output layer).
        score: from hidden states [n, hidden] to logits [n, 2]; computed in float32 whatever the backbone's dtype.
    """

    def __init__(self, backbone: Any, score: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.score = score.float()

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, wanted: torch.Tensor, **_: Any
    ) -> torch.Tensor:
        """Logits [n, 2] (wrong, correct) at the n wanted positions, row by row.

        Args:
            input_ids: [rows, tokens], padded on either side.
            attention_mask: [rows, tokens], 0 on padding.
            wanted: [rows, tokens], True where a step is scored.
        """
        hidden = self.backbone(
            input_ids=input_ids,
            attention_mask=attention_mask,
            # Counted from a row's first token: padding on the left would move them otherwise.
            position_ids=(attention_mask.cumsum(-1) - 1).clamp(min=0),
            use_cache=False,
        ).last_hidden_state  # [rows, tokens, hidden]
        with torch.autocast(hidden.device.type, enabled=False):
            logits: torch.Tensor = self.score(hidden[wanted].float())
        return logits


def two_way_head(hidden_size: int) -> nn.Module:
    """Linear, ReLU, Linear to two classes: the head of Qwen2.5-Math-PRM; its tensors are `0.*` and `2.*`."""
    return nn.Sequential(nn.Linear(hidden_size, hidden_size), nn.ReLU(), nn.Linear(hidden_size, 2))


class _ValueHead(nn.Module):
    def __init__(self, weight: torch.Tensor, bias: torch.Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = nn.Parameter(bias, requires_grad=False)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        value = nn.functional.linear(hidden, self.weight, self.bias)  # [n, 1]
        return torch.cat([torch.zeros_like(value), value], dim=-1)


class _TokenHead(nn.Module):
    """The rows [2, hidden] of `-` and `+` of an output layer."""

    def __init__(self, output_layer: Any, minus_id: int, plus_id: int) -> None:
        super().__init__()
        rows = [minus_id, plus_id]
        bias = getattr(output_layer, "bias", None)
        self.weight = nn.Parameter(output_layer.weight[rows].detach().clone(), requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias[rows].detach().clone(), requires_grad=False)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(hidden, self.weight, self.bias)


def load_network(target: str, layout: Layout, *, dtype: torch.dtype, revision: str | None = None) -> StepNetwork:
    """Load backbone and head of a released or trained classifier, on the CPU.

    Args:
        target: a folder or a hub id.
        layout: says which head to look for.
        dtype: of the backbone.

    Raises:
        EngineError: a tensor of backbone or head is missing or of the wrong shape.
        OSError, ValueError, KeyError: from transformers, where it cannot load the model.
    """
    model = _load_backbone(target, causal=layout.head == "tokens", dtype=dtype, revision=revision)
    if not isinstance(layout, MathShepherdLayout | RLHFlowLayout):
        return StepNetwork(model, _load_head(target, layout.head, revision))
    text_config = model.config.get_text_config()
    for name in _LOGIT_SETTINGS:
        if getattr(text_config, name, None) not in (None, 1, 1.0):
            raise EngineError(f"{target}: the model's {name} is not supported in the {layout.name} layout")
    head = _TokenHead(model.get_output_embeddings(), layout.minus_id, layout.plus_id)
    return StepNetwork(model.base_model, head)


def base_network(
    target: str, kind: HeadKind, *, dtype: torch.dtype, revision: str | None = None, attention: str | None = None
) -> StepNetwork:
    """A network to train: any base model's backbone with a fresh head, or, of a classifier, with the head it has.

    Args:
        target: a folder or a hub id.
        kind: two-way.
        dtype: of the backbone.
        attention: transformers' attention implementation; its own choice by default.

    Raises:
        EngineError: a tensor of the backbone is missing.
    """
    further = {} if attention is None else {"attn_implementation": attention}
    backbone = _load_backbone(target, causal=False, dtype=dtype, revision=revision, **further)
    if tensor_names(target, revision=revision).issuperset(HEAD_TENSORS[kind]):
        return StepNetwork(backbone, _load_head(target, kind, revision))
    return StepNetwork(backbone, two_way_head(backbone.config.get_text_config().hidden_size))


def _load_backbone(target: str, *, causal: bool, dtype: torch.dtype, revision: str | None, **further: Any) -> Any:
    from transformers import AutoModel, AutoModelForCausalLM
    from transformers.utils import logging

    # The head's tensors are none of the backbone's: a report of them would only alarm. What is missing is told below.
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        model, loading = (AutoModelForCausalLM if causal else AutoModel).from_pretrained(
            target, revision=revision, dtype=dtype, trust_remote_code=False, output_loading_info=True, **further
        )
    finally:
        logging.set_verbosity(verbosity)
    if missing := sorted(loading["missing_keys"]):
        raise EngineError(
            f"{target}: {len(missing)} tensors of the model are missing, {missing[0]} the first: the checkpoint is not "
            f"one of a {type(model).__name__}"
        )
    return model


def _load_head(target: str, kind: HeadKind, revision: str | None) -> nn.Module:
    tensors = read_tensors(target, HEAD_TENSORS[kind], revision=revision)
    if kind == "value":
        return _ValueHead(*(tensors[name] for name in HEAD_TENSORS[kind]))
    hidden_size = tensors["score.0.weight"].shape[1]
    head = two_way_head(hidden_size)
    try:
        head.load_state_dict({name.removeprefix("score."): tensor for name, tensor in tensors.items()})
    except RuntimeError:
        shapes = ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in tensors.items())
        raise EngineError(
            f"{target}: the head is not two-way ({shapes}); a model that rewards whole answers is no step classifier"
        ) from None
    return head


def tensor_names(target: str, *, revision: str | None = None) -> set[str]:
    """Names of the tensors of a checkpoint; none where it has no weights in a file that is known."""
    return set(_locate(target, revision))


def read_tensors(target: str, names: Sequence[str], *, revision: str | None = None) -> dict[str, torch.Tensor]:
    """Tensors of a checkpoint by name, in float32.

    Raises:
        EngineError: one of them is not in the checkpoint.
    """
    files = _locate(target, revision)
    if missing := [name for name in names if name not in files]:
        raise EngineError(f"{target}: the checkpoint has no tensor {missing[0]!r}; is it of another layout?")
    found = {}
    for name in names:
        path = find_file(target, files[name], revision)
        assert path is not None
        found[name] = _read(path, name).float()
    return found


def _locate(target: str, revision: str | None) -> dict[str, str]:
    """Tensor -> the file that holds it."""
    for name in _WEIGHT_FILES:
        path = find_file(target, name, revision)
        if path is None:
            continue
        if name.endswith(".json"):
            weight_map: dict[str, str] = json.loads(path.read_bytes())["weight_map"]
            return weight_map
        if name.endswith(".safetensors"):
            with safe_open(path, "pt") as stream:
                return dict.fromkeys(stream.keys(), name)
        return dict.fromkeys(torch.load(path, map_location="cpu", weights_only=True, mmap=True), name)
    return {}


def _read(path: Path, name: str) -> torch.Tensor:
    if path.suffix == ".safetensors":
        with safe_open(path, "pt") as stream:
            tensor: torch.Tensor = stream.get_tensor(name)
        return tensor
    loaded: torch.Tensor = torch.load(path, map_location="cpu", weights_only=True, mmap=True)[name]
    return loaded
