"""The network of a discriminative PRM: a backbone, and a head that is read at chosen positions.

Every head answers with two logits, wrong and correct, so that the reward is `softmax(logits)[1]` in each layout: the
classes of a two-way head as they are; (0, v) for a value v, as sigmoid(v) is the softmax over them; of negative,
neutral and positive, the latter two together; the rows of `-` and `+` of a language model's output layer. Heads are
read from the checkpoint's tensors by name: no code of a checkpoint is run.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import nn

from rprm.engines.files import find_file, read_object
from rprm.engines.loading import load_weights, merge_adapter, read_tensors, stored_tensors
from rprm.errors import EngineError
from rprm.rewarders.layouts import HeadKind, Layout

#: Heads with tensors of their own: the published names of their linear layers (a ReLU between two), and the width of
#: the last: 1 a value, 2 wrong and correct, 3 negative, neutral and positive.
HEAD_LAYERS: dict[HeadKind, tuple[tuple[str, ...], int]] = {
    "two-way": (("score.0", "score.2"), 2),
    "one-way": (("score.0", "score.2"), 1),
    "value": (("v_head.summary",), 1),
    "labels": (("score",), 2),
    "validity": (("score_head",), 3),
}

#: Heads whose layers can do without a bias.
_BIAS_OPTIONAL: tuple[HeadKind, ...] = ("labels", "validity")

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
        chosen = hidden[wanted.to(hidden.device)].float()
        # Of a backbone over several devices, the last hidden states can lie on another one than the head.
        chosen = chosen.to(next(self.score.parameters()).device)
        with torch.autocast(chosen.device.type, enabled=False):
            logits: torch.Tensor = self.score(chosen)
        return logits


def two_way_head(hidden_size: int) -> nn.Module:
    """Linear, ReLU, Linear to two classes: the head of Qwen2.5-Math-PRM; its tensors are `0.*` and `2.*`."""
    return nn.Sequential(nn.Linear(hidden_size, hidden_size), nn.ReLU(), nn.Linear(hidden_size, 2))


class _AsTwo(nn.Module):
    """A value, or three classes, as the logits of wrong and correct."""

    def forward(self, logits: torch.Tensor) -> torch.Tensor:
        wrong, correct = logits[:, :1], logits[:, 1:]
        if logits.shape[-1] == 1:
            return torch.cat([torch.zeros_like(wrong), wrong], dim=-1)
        return torch.cat([wrong, correct.logsumexp(-1, keepdim=True)], dim=-1)


class _TopToken(nn.Module):
    """All logits of an output layer as a decision: (-inf, 0) where the likeliest token is one of `plus_ids`."""

    plus_ids: torch.Tensor

    def __init__(self, output: nn.Linear, plus_ids: Sequence[int]) -> None:
        super().__init__()
        self.output = output
        self.register_buffer("plus_ids", torch.tensor(plus_ids))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        logits = self.output(hidden)  # [n, vocabulary]
        is_plus = torch.isin(logits.argmax(-1), self.plus_ids)
        decision = torch.stack([~is_plus, is_plus], dim=-1).float().log()
        # Scores that are no numbers decide nothing.
        return decision.where(logits.isfinite().all(-1, keepdim=True), torch.nan)


def load_network(
    target: str,
    layout: Layout,
    *,
    dtype: torch.dtype,
    revision: str | None = None,
    device_map: str | None = None,
    adapter: str | None = None,
) -> StepNetwork:
    """Load backbone and head of a released or trained classifier.

    Args:
        target: a folder or a hub id.
        layout: says which head to look for.
        dtype: of the backbone.
        device_map: spreads the backbone over devices (accelerate's "auto", "balanced", ...); on the CPU by default.
        adapter: a LoRA adapter (folder or hub id), merged into the model before the head is read.

    Raises:
        EngineError: backbone, head or adapter are not what configuration and layout say.
        OSError, ValueError, ...: see `loading.plain_errors`.
    """
    from transformers import AutoModel, AutoModelForCausalLM

    of_output_layer = layout.head not in HEAD_LAYERS
    further = {} if device_map is None else {"device_map": device_map}
    auto = AutoModelForCausalLM if of_output_layer else AutoModel
    model = load_weights(auto, target, revision=revision, dtype=dtype, **further)
    if adapter is not None:
        model = merge_adapter(model, adapter)
    if not of_output_layer:
        return StepNetwork(model, _load_head(target, layout.head, revision, _hidden_size(model)))
    text_config = model.config.get_text_config()
    for name in _LOGIT_SETTINGS:
        if getattr(text_config, name, None) not in (None, 1, 1.0):
            raise EngineError(f"{target}: the model's {name} is not supported in the {layout.name} layout")
    return StepNetwork(model.base_model, _output_head(model.get_output_embeddings(), layout))


def _output_head(output_layer: Any, layout: Layout) -> nn.Module:
    """A head made of the output layer of a language model."""
    if output_layer.weight.device.type == "meta":
        raise EngineError("device_map leaves no room for the output layer, which this layout reads: it was offloaded")
    rows: Any = [layout.minus_id, layout.plus_id] if layout.head == "tokens" else slice(None)
    weight, bias = output_layer.weight.detach().float()[rows], getattr(output_layer, "bias", None)
    bias = None if bias is None else bias.detach().float()[rows]
    if layout.head == "mean-logit":
        weight, bias = weight.mean(0, keepdim=True), None if bias is None else bias.mean(0, keepdim=True)
        return nn.Sequential(_linear(weight, bias), _AsTwo())
    layer = _linear(weight, bias)
    return _TopToken(layer, layout.plus_ids) if layout.head == "top-token" else layer


def _linear(weight: torch.Tensor, bias: torch.Tensor | None) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    layer.weight = nn.Parameter(weight.clone(), requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias.clone(), requires_grad=False)
    return layer


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
        EngineError: the backbone is not what its configuration says.
    """
    from transformers import AutoModel

    further: dict[str, Any] = {} if attention is None else {"attn_implementation": attention}
    backbone = load_weights(AutoModel, target, revision=revision, dtype=dtype, **further)
    if has_head(target, kind, revision=revision):
        return StepNetwork(backbone, _load_head(target, kind, revision, _hidden_size(backbone), trainable=True))
    return StepNetwork(backbone, two_way_head(_hidden_size(backbone)))


def _hidden_size(backbone: Any) -> int:
    return int(backbone.config.get_text_config().hidden_size)


def _load_head(
    target: str, kind: HeadKind, revision: str | None, hidden_size: int, *, trainable: bool = False
) -> nn.Module:
    layers, width = HEAD_LAYERS[kind]
    present = stored_tensors(target, revision)
    names = [
        name
        for layer in layers
        for name in (f"{layer}.weight", f"{layer}.bias")
        if name in present or not (name.endswith(".bias") and kind in _BIAS_OPTIONAL)
    ]
    tensors = read_tensors(target, names, revision)
    widths = [hidden_size] * len(layers) + [width]
    expected = {f"{layer}.weight": [widths[i + 1], widths[i]] for i, layer in enumerate(layers)}
    expected |= {f"{layer}.bias": [widths[i + 1]] for i, layer in enumerate(layers)}
    if any(list(tensors[name].shape) != expected[name] for name in names):
        shapes = ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in tensors.items())
        wanted = ", ".join(f"{name} {expected[name]}" for name in names)
        raise EngineError(
            f"{target}: the head is not {kind} ({shapes} instead of {wanted}); a model that rewards whole answers is "
            "no step classifier"
        )
    modules: list[nn.Module] = []
    for layer in layers:
        modules += [nn.ReLU()] if modules else []
        modules.append(_linear(tensors[f"{layer}.weight"], tensors.get(f"{layer}.bias")))
    if width != 2:
        modules.append(_AsTwo())
    return nn.Sequential(*modules).requires_grad_(trainable)


def has_head(target: str, kind: HeadKind, *, revision: str | None = None) -> bool:
    """Whether the checkpoint has the tensors of this kind of head, its shapes aside."""
    return _has_head(stored_tensors(target, revision), kind)


def _has_head(names: Collection[str], kind: HeadKind) -> bool:
    layers, _ = HEAD_LAYERS[kind]
    biases = [] if kind in _BIAS_OPTIONAL else [f"{layer}.bias" for layer in layers]
    return set(names).issuperset([*(f"{layer}.weight" for layer in layers), *biases])


def recognised_heads(target: str, *, revision: str | None = None) -> list[HeadKind]:
    """Kinds of head whose tensors the checkpoint has, shapes aside; none where it rewards with its output layer.

    `score.weight` alone is also that of a classifier of whole texts: it counts where the configuration says that tokens
    are classified.
    """
    names = stored_tensors(target, revision)
    found: list[HeadKind] = [kind for kind in HEAD_LAYERS if _has_head(names, kind)]
    if "labels" in found:
        path = find_file(target, "config.json", revision)
        architectures = [] if path is None else read_object(path).get("architectures") or []
        if not any("TokenClassification" in name for name in architectures):
            found.remove("labels")
    return found
