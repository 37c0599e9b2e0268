"""Settings of whole trainings, with their sources. The paper is R-PRM, arXiv 2503.21295; its code is NJUNLP/R-PRM.

"Ours" marks what neither states. Every value can be overridden.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from rprm.errors import InputError
from rprm.training.dpo import DPOSettings
from rprm.training.settings import TrainingSettings
from rprm.training.sft import SFTSettings

Settings = TypeVar("Settings", bound=TrainingSettings, covariant=True)


@dataclass(frozen=True)
class Preset(Generic[Settings]):
    """Settings under a name, and the model they are for where there is one."""

    settings: Settings
    about: str
    model: str | None = None


#: The paper's base model (section 4.1).
PAPER_BASE = "Qwen/Qwen2.5-Math-7B-Instruct"

#: The cold start of the paper (section 4.1): 1 epoch, batch 128, learning rate 5e-6, all weights. The paper keeps the
#: checkpoint with the lowest validation loss, without stopping early. Warm-up ratio 0.03: its src/scripts/train.sh.
#: Ours: the cosine schedule, no weight decay, clipping at 1, 4,096 tokens (the base model's whole context), bf16
#: computation over float32 weights, 2 rows a device; of about 2,260 steps (289K rows / 128) an evaluation and a
#: checkpoint every 250 (an evaluation over 20K validation rows costs as much as some 50 steps).
PAPER_7B_SFT = SFTSettings(
    learning_rate=5e-6,
    num_epochs=1.0,
    batch_size=128,
    device_batch_size=2,
    warmup_ratio=0.03,
    scheduler="cosine",
    weight_decay=0.0,
    max_length=4096,
    precision="bf16",
    gradient_checkpointing=True,
    eval_steps=250,
    save_steps=250,
    keep_best=True,
    patience=None,
)

#: The preference optimisation of the paper (section 4.1): 1 epoch, batch 128, learning rate 5e-7, from the SFT model;
#: the checkpoint is chosen as in the cold start. Ours: beta 0.1 (TRL's default), no SFT term, the warm-up ratio of the
#: cold start's script, and what is ours in the cold start.
PAPER_7B_DPO = DPOSettings(
    learning_rate=5e-7,
    num_epochs=1.0,
    batch_size=128,
    device_batch_size=1,
    warmup_ratio=0.03,
    scheduler="cosine",
    weight_decay=0.0,
    max_length=4096,
    precision="bf16",
    gradient_checkpointing=True,
    beta=0.1,
    eval_steps=250,
    save_steps=250,
    keep_best=True,
    patience=None,
)

#: One GPU, models up to about 8B. All ours. An adapter wants a learning rate about 20 times that of full training.
SMALL_LORA_SFT = SFTSettings(
    learning_rate=1e-4,
    batch_size=32,
    device_batch_size=2,
    lora_rank=16,
    max_length=4096,
    eval_steps=100,
    save_steps=100,
)
SMALL_LORA_DPO = DPOSettings(
    learning_rate=1e-5,
    batch_size=32,
    device_batch_size=1,
    lora_rank=16,
    max_length=4096,
    eval_steps=100,
    save_steps=100,
)

#: A laptop, models up to a few hundred million weights. All ours: float32, activations kept (computing them again made
#: a step 3.5 times slower), small batches.
CPU_SFT = SFTSettings(
    learning_rate=2e-5,
    batch_size=8,
    device_batch_size=4,
    precision="fp32",
    gradient_checkpointing=False,
    group_by_length=True,
    max_length=1024,
    eval_steps=50,
    save_steps=50,
    logging_steps=5,
)
CPU_DPO = DPOSettings(
    learning_rate=5e-6,
    batch_size=8,
    device_batch_size=2,
    precision="fp32",
    gradient_checkpointing=False,
    group_by_length=True,
    max_length=1024,
    eval_steps=50,
    save_steps=50,
    logging_steps=5,
)

SFT_PRESETS: Mapping[str, Preset[SFTSettings]] = {
    "paper-7b-sft": Preset(
        PAPER_7B_SFT, "the paper's cold start: full training of a 7B model, several GPUs", PAPER_BASE
    ),
    "small-lora": Preset(SMALL_LORA_SFT, "a LoRA adapter on one GPU"),
    "cpu": Preset(CPU_SFT, "a small model on a CPU"),
}
DPO_PRESETS: Mapping[str, Preset[DPOSettings]] = {
    "paper-7b-dpo": Preset(PAPER_7B_DPO, "the paper's preference optimisation, from the cold start's model"),
    "small-lora": Preset(SMALL_LORA_DPO, "a LoRA adapter on one GPU"),
    "cpu": Preset(CPU_DPO, "a small model on a CPU"),
}


def find_preset(presets: Mapping[str, Preset[Settings]], name: str) -> Preset[Settings]:
    """A preset by its name.

    Raises:
        InputError: there is none of that name.
    """
    if name not in presets:
        raise InputError(f"no preset {name!r}; there are {', '.join(presets)}")
    return presets[name]
