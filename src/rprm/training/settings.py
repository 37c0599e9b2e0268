"""The settings that every kind of training here shares. Results depend on each of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rprm.errors import InputError

Precision = Literal["auto", "bf16", "fp32"]


@dataclass(frozen=True)
class TrainingSettings:
    """How a language model is trained on rows of a prompt and one reply or two.

    Attributes:
        learning_rate: at its peak, after the warm-up.
        num_epochs: passes over the rows; a fraction is allowed.
        max_steps: optimizer steps instead of epochs.
        batch_size: rows of one optimizer step, over all devices (packs of rows, with packing).
        device_batch_size: rows that one device works on at once. Gradient accumulation follows from the two.
        warmup_ratio: share of the steps in which the learning rate rises from 0.
        scheduler: how it falls afterwards, by transformers' name: cosine, linear, constant_with_warmup, ...
        weight_decay: of AdamW.
        max_grad_norm: to which gradients are clipped.
        max_length: tokens of prompt and reply together. Longer rows are left out, never cut.
        precision: bf16 keeps the trained weights in float32 and computes in bfloat16; auto takes it on a device that
            has instructions for it, and fp32 elsewhere.
        gradient_checkpointing: compute activations again in the backward pass instead of keeping them.
        attention: transformers' attention implementation; its own choice by default.
        group_by_length: batches of rows of like length: less padding, and so less time; which rows meet is less random.
        lora_rank: of a LoRA adapter; None trains every weight.
        lora_alpha: scale of the adapter; twice the rank by default.
        lora_dropout: of the adapter's input.
        lora_targets: all-linear (every linear layer but the output head), or names of layers, comma-separated.
        merge: hand over the base model with the adapter merged in, which every engine loads, instead of the adapter.
        eval_steps: optimizer steps between evaluations, where there are validation rows.
        save_steps: optimizer steps between checkpoints.
        logging_steps: optimizer steps between rows of `metrics.jsonl`.
        keep_best: hand over the checkpoint with the lowest validation loss, as the paper did; every evaluation leaves a
            checkpoint. False, or no validation rows: the last one.
        patience: stop early, after so many evaluations without a new best. None trains to the last step, as the paper
            did.
        seed: of the order of the rows, of the adapter's first weights, of dropout.
    """

    learning_rate: float = 5e-6
    num_epochs: float = 1.0
    max_steps: int | None = None
    batch_size: int = 128
    device_batch_size: int = 4
    warmup_ratio: float = 0.03
    scheduler: str = "cosine"
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    max_length: int = 4096
    precision: Precision = "auto"
    gradient_checkpointing: bool = True
    attention: str | None = None
    group_by_length: bool = False
    lora_rank: int | None = None
    lora_alpha: int | None = None
    lora_dropout: float = 0.0
    lora_targets: str = "all-linear"
    merge: bool = True
    eval_steps: int = 200
    save_steps: int = 200
    logging_steps: int = 10
    keep_best: bool = True
    patience: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("batch_size", "device_batch_size", "max_length", "eval_steps", "save_steps", "logging_steps"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("max_steps", "lora_rank", "lora_alpha", "patience"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} is {value}; it must be at least 1, or left out")
        if not self.learning_rate > 0 or not self.num_epochs > 0:
            raise InputError(f"learning_rate {self.learning_rate} and num_epochs {self.num_epochs} must be above 0")
        if not 0 <= self.warmup_ratio < 1:
            raise InputError(f"warmup_ratio is {self.warmup_ratio}; it is a share of the steps: 0 to below 1")
        if self.precision not in ("auto", "bf16", "fp32"):
            raise InputError(f"precision is {self.precision!r}; it must be auto, bf16 or fp32")
        if self.patience is not None and not self.keep_best:
            raise InputError("patience stops where a better model was left behind, and hands that over; keep the best")
        if "lm_head" in self.lora_targets:
            raise InputError("lora_targets: an adapter on lm_head is not trained by TRL; leave it out")

    def accumulation(self, num_processes: int) -> int:
        """Batches that each device adds up to one optimizer step.

        Raises:
            InputError: the batch cannot be divided so.
        """
        at_once = self.device_batch_size * num_processes
        if self.batch_size % at_once:
            raise InputError(
                f"batch_size {self.batch_size} is no multiple of {at_once} (device_batch_size "
                f"{self.device_batch_size} on {num_processes} device{'s' * (num_processes > 1)}); change one of them"
            )
        return self.batch_size // at_once
