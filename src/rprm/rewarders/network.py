"""The network of a discriminative PRM: a backbone, and a head that is read at chosen positions, from tensors by name.

Every head gives two logits, wrong and correct; the reward is `softmax(logits)[1]`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModel, AutoModelForCausalLM

from rprm.engines.loading import find_file, load_weights, merge_adapter, no_weights, stored_tensors
from rprm.engines.worker import ModelWorker, Request
from rprm.errors import EngineError
from rprm.folders import read_object
from rprm.rewarders.layouts import HeadKind, Layout, Rendered

# Heads with tensors of their own: the published names of their linear layers (a ReLU between two), whether these must
# have a bias, and the width of the last: 1 a value, 2 wrong and correct, 3 negative, neutral and positive.
HEAD_LAYERS: dict[HeadKind, tuple[tuple[str, ...], bool, int]] = {
    "two-way": (("score.0", "score.2"), True, 2),
    "one-way": (("score.0", "score.2"), True, 1),
    "value": (("v_head.summary",), True, 1),
    "labels": (("score",), False, 2),
    "validity": (("score_head",), False, 3),
}


class StepNetwork(nn.Module):
    """A backbone without output layer, and a head from hidden states [n, hidden] to logits [n, ...], in float32. With
    `plus_ids` those of a whole output layer, which calls correct where the likeliest token is one of them."""

    def __init__(self, backbone: Any, score: nn.Module, plus_ids: list[int] | None = None) -> None:
        super().__init__()
        self.backbone, self.score, self.plus_ids = backbone, score.float(), plus_ids

    def forward(self, input_ids: Tensor, attention_mask: Tensor, wanted: Tensor, **_: Any) -> Tensor:
        """Logits [n, 2] (wrong, correct) at the n positions where `wanted` is True, row by row. Arguments are [rows,
        tokens]; rows may be padded on either side."""
        # Counted from a row's first token: padding on the left would move them otherwise.
        positions = (attention_mask.cumsum(-1) - 1).clamp(min=0)
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "position_ids": positions}
        hidden = self.backbone(**inputs, use_cache=False).last_hidden_state  # [rows, tokens, hidden]
        # Of a backbone over several devices, the last hidden states can lie on another one than the head.
        chosen = hidden[wanted.to(hidden.device)].float().to(next(self.score.parameters()).device)
        with torch.autocast(chosen.device.type, enabled=False):
            logits: Tensor = self.score(chosen)
            if self.plus_ids is not None:
                is_plus = torch.isin(logits.argmax(-1), torch.tensor(self.plus_ids, device=logits.device))
                decision = torch.stack([~is_plus, is_plus], dim=-1).float().log()
                return decision.where(logits.isfinite().all(-1, keepdim=True), torch.nan)  # NaN decides nothing
            if logits.shape[-1] == 1:  # its sigmoid is the softmax of 0 and it
                return torch.cat([torch.zeros_like(logits), logits], dim=-1)
            if logits.shape[-1] == 3:  # neutral and positive count together
                return torch.cat([logits[:, :1], logits[:, 1:].logsumexp(-1, keepdim=True)], dim=-1)
            return logits


@dataclass(eq=False)
class _Scoring(Request):
    rendered: Rendered


class Scorer(ModelWorker[_Scoring]):
    """Owns the network: one thread, one batch after the other."""

    def __init__(self, network: StepNetwork, max_batch_tokens: int) -> None:
        super().__init__("rprm-classifier", hint="lower max_batch_tokens")
        self.network, self.max_batch_tokens = network, max_batch_tokens
        self.start()

    async def score(self, rendered: Rendered) -> list[float]:
        """Rewards at the positions of a sequence."""
        rewards: list[float] = await self.submit(_Scoring(rendered))
        return rewards

    def work(self) -> None:
        """Reward the job that waits longest and those closest to it in length, as many as the budget allows."""
        if not self.waiting:
            return
        oldest, longest = len(self.waiting[0].rendered.ids), 0
        batch: list[_Scoring] = []
        # Sorting is stable: of equal lengths the oldest comes first, and the oldest of all is always taken.
        for job in sorted(self.waiting, key=lambda job: abs(len(job.rendered.ids) - oldest)):
            longest = max(longest, len(job.rendered.ids))
            if batch and longest * (len(batch) + 1) > self.max_batch_tokens:
                break
            batch.append(job)
        self.waiting = [job for job in self.waiting if job not in batch]
        solutions = [job.rendered for job in batch]
        ids = [torch.tensor(one.ids) for one in solutions]
        wanted = [torch.isin(torch.arange(len(one.ids)), torch.tensor(one.positions)) for one in solutions]
        # Offloaded by accelerate, whose hooks bring the inputs to where they are needed, it is on "meta".
        device = self.network.backbone.device if self.network.backbone.device.type != "meta" else "cpu"
        inputs = (ids, [torch.ones_like(row) for row in ids], wanted)
        logits = self.network(*(pad_sequence(rows, batch_first=True).to(device) for rows in inputs))  # [steps, 2]
        rewards = iter(logits.double().softmax(-1)[:, 1].tolist())
        for job in batch:
            job.answer([next(rewards) for _ in job.rendered.positions])


def load_network(target: str, layout: Layout, *, adapter: str | None = None, **weights: Any) -> StepNetwork:
    """Backbone (by `load_weights`) and head of a classifier, a LoRA adapter merged; `EngineError`: one does not fit."""
    has_head = layout.head in HEAD_LAYERS
    model = load_weights(AutoModel if has_head else AutoModelForCausalLM, target, **weights)
    if adapter is not None:
        model = merge_adapter(model, adapter)
    config = model.config.get_text_config()
    if has_head:
        return StepNetwork(model, _load_head(target, layout.head, weights.get("revision"), config.hidden_size))
    # What scales or bends the logits in some model families.
    for name in ("final_logit_softcapping", "logits_scaling", "logit_scale"):
        if getattr(config, name, None) not in (None, 1, 1.0):
            raise EngineError(f"{target}: the model's {name} is not supported in the {layout.name} layout")
    output_layer = model.get_output_embeddings()
    if output_layer.weight.device.type == "meta":
        raise EngineError("device_map leaves no room for the output layer, which this layout reads: it was offloaded")
    weight, bias = (getattr(output_layer, name, None) for name in ("weight", "bias"))
    if layout.head == "top-token":
        texts = layout.tokenizer.batch_decode([[id_] for id_ in range(len(layout.tokenizer))])
        plus_ids = [id_ for id_, text in enumerate(texts) if text.strip().startswith("+")]
        return StepNetwork(model.base_model, _linear(weight, bias), plus_ids)

    def reduced(rows: Any) -> Any:
        return rows.float().mean(0, keepdim=True) if layout.head == "mean-logit" else rows[layout.sign_ids[::-1]]

    return StepNetwork(model.base_model, _linear(reduced(weight), None if bias is None else reduced(bias)))


def _linear(weight: Any, bias: Tensor | None) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    tensors = {"weight": weight, "bias": bias}
    layer.load_state_dict({name: tensor.detach().float() for name, tensor in tensors.items() if tensor is not None})
    return layer.requires_grad_(False)


def base_network(
    target: str, kind: HeadKind, *, dtype: torch.dtype, revision: str | None = None, attention: str | None = None
) -> StepNetwork:
    """A network to train: any base model's backbone with a fresh two-way head, or, of a classifier, with its own."""
    backbone = load_weights(AutoModel, target, revision=revision, dtype=dtype, attn_implementation=attention)
    size = backbone.config.get_text_config().hidden_size
    if kind in recognised_heads(target, revision=revision):
        head = _load_head(target, kind, revision, size).requires_grad_(True)
    else:
        head = nn.Sequential(nn.Linear(size, size), nn.ReLU(), nn.Linear(size, 2))
    return StepNetwork(backbone, head)


def _load_head(target: str, kind: HeadKind, revision: str | None, hidden_size: int) -> nn.Module:
    layers, has_bias, width = HEAD_LAYERS[kind]
    head, stored = nn.Sequential(), stored_tensors(target, revision)
    for layer in layers:
        rows = width if layer == layers[-1] else hidden_size
        for name, shape in ((f"{layer}.weight", [rows, hidden_size]), (f"{layer}.bias", [rows])):
            found = list(stored[name].shape) if name in stored else "missing"
            if found != shape and (name in stored or has_bias or len(shape) == 2):
                fault = f"{name} {found} instead of {shape}"
                raise EngineError(f"{target}: the head is not {kind}, of a step classifier: {fault}")
        for name, fault in no_weights({name: stored[name] for name in stored if name.startswith(f"{layer}.")}).items():
            raise EngineError(f"{target}: {name} {fault}; download it again")
        linear = _linear(stored[f"{layer}.weight"], stored.get(f"{layer}.bias"))
        head.extend([nn.ReLU(), linear] if len(head) else [linear])
    return head


def recognised_heads(target: str, *, revision: str | None = None) -> list[HeadKind]:
    """Kinds of head whose tensors the checkpoint has, shapes aside; none where it rewards with its output layer."""
    stored = stored_tensors(target, revision)
    found = [
        kind
        for kind, (layers, has_bias, _) in HEAD_LAYERS.items()
        if all(f"{one}.weight" in stored and (not has_bias or f"{one}.bias" in stored) for one in layers)
    ]
    # A classifier of whole texts has "labels" too: the configuration tells.
    config = find_file(target, "config.json", revision) if "labels" in found else None
    if config and not any("TokenClassification" in name for name in read_object(config).get("architectures") or ()):
        found.remove("labels")
    return found
