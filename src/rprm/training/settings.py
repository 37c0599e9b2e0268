"""Settings of every training, and the presets with their sources.

A field is an option of `rprm train`, with its default; the text beside it is the option's help. A text that begins with
dashes is the option's name, where that is not the field's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

from rprm.data.splits import is_held_out
from rprm.errors import InputError

Precision = Literal["auto", "bf16", "fp32"]

#: Checkpoints kept at once, at least: a kill can tear the newest, so that the one before must still be there.
MIN_KEPT = 2


@dataclass(frozen=True)
class TrainingSettings:
    """What the result of every kind of training depends on.

    Raises:
        InputError: a value makes no sense.
    """

    learning_rate: Annotated[float, "Peak learning rate."] = 5e-6
    num_epochs: Annotated[float, "--epochs", "Passes over the rows; a fraction is allowed."] = 1.0
    max_steps: Annotated[int | None, "Optimizer steps, instead of epochs."] = None
    batch_size: Annotated[int, "Rows of one optimizer step over all devices; accumulation follows."] = 128
    device_batch_size: Annotated[int, "Rows a device holds at once."] = 4
    warmup_ratio: Annotated[float, "Share of the steps in which the rate rises from 0."] = 0.03
    scheduler: Annotated[str, "How it falls afterwards: cosine, linear, constant_with_warmup, ..."] = "cosine"
    weight_decay: Annotated[float, "Of AdamW."] = 0.0
    max_grad_norm: Annotated[float, "Gradients are clipped to it."] = 1.0
    max_length: Annotated[
        int, "Most tokens of prompt and reply. Longer rows are left out and counted, never cut; above 5% is an error."
    ] = 4096
    precision: Annotated[Precision, "bf16 computes in bfloat16 over float32 weights; auto: where the device can."] = (
        "auto"
    )
    gradient_checkpointing: Annotated[bool, "Compute activations again instead of keeping them."] = True
    attention: Annotated[str | None, "sdpa, flash_attention_2, eager, ...; the model's own by default."] = None
    group_by_length: Annotated[bool, "Batches of rows of like length: less padding, less random company."] = False
    lora_rank: Annotated[int | None, "Train an adapter of this rank; without, every weight; 0 the same."] = None
    lora_alpha: Annotated[int | None, "Scale of the adapter; twice the rank by default."] = None
    lora_dropout: Annotated[float, "Of the adapter's input."] = 0.0
    lora_targets: Annotated[str, "all-linear (without the output head), or layer names with commas."] = "all-linear"
    merge: Annotated[bool, "Hand over the merged model, which every engine loads; the adapter is kept beside it."] = (
        True
    )
    eval_steps: Annotated[int, "Steps between evaluations."] = 200
    save_steps: Annotated[int, "Steps between checkpoints."] = 200
    logging_steps: Annotated[int, "Steps between rows of metrics.jsonl."] = 10
    keep_best: Annotated[
        bool,
        "--keep-best/--keep-last",
        "Hand over the checkpoint with the lowest validation loss, where there are validation rows.",
    ] = True
    patience: Annotated[int | None, "Stop early, after so many evaluations without a new best."] = None
    seed: Annotated[int, "Seed of the whole run."] = 0

    def __post_init__(self) -> None:
        if self.lora_rank == 0:
            object.__setattr__(self, "lora_rank", None)
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

    @property
    def lora(self) -> dict[str, Any]:
        """Keywords of peft's `LoraConfig`."""
        targets = self.lora_targets
        return {
            "r": self.lora_rank,
            "lora_alpha": self.lora_alpha or 2 * (self.lora_rank or 0),
            "lora_dropout": self.lora_dropout,
            "target_modules": targets if targets == "all-linear" else [name.strip() for name in targets.split(",")],
        }

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


@dataclass(frozen=True)
class SFTSettings(TrainingSettings):
    """How a model learns to write analyses. The defaults are the paper's where it states them; see the presets.

    Packs count as rows of a batch; a padded and a packed batch of the same rows have the same loss.
    """

    packing: Annotated[bool, "Several rows in one sequence; a batch then counts sequences."] = False
    padding_free: Annotated[bool, "A batch as one sequence without padding."] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.packing and self.padding_free:
            raise InputError("packing is free of padding already; leave padding_free out")


@dataclass(frozen=True)
class DPOSettings(TrainingSettings):
    """How a model learns which analyses to prefer. Defaults as for `SFTSettings`, but for the learning rate."""

    learning_rate: Annotated[float, "Peak learning rate."] = 5e-7
    device_batch_size: Annotated[int, "Pairs a device holds at once."] = 2
    beta: Annotated[float, "How strongly the reference holds the model."] = 0.1
    sft_weight: Annotated[float, "Weight of an SFT loss on the chosen replies; 0 for none."] = 0.0
    precompute_reference: Annotated[
        bool, "Compute the reference's log-probabilities once, before training: no second model in memory."
    ] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.beta > 0 or self.sft_weight < 0:
            raise InputError(f"beta {self.beta} must be above 0 and sft_weight {self.sft_weight} at least 0")


@dataclass(frozen=True)
class ClassifierTraining(TrainingSettings):
    """How a classifier is trained. The defaults are ours. A batch counts sequences; an adapter is always merged."""

    learning_rate: Annotated[float, "Peak learning rate."] = 1e-5
    max_length: Annotated[
        int, "Most tokens up to a step. Steps beyond are left out and counted; above 5% is an error."
    ] = 2048
    merge: bool = True
    balance: Annotated[bool, "Weight both classes alike, whatever their numbers."] = False
    validation_share: Annotated[float, "Share of the problems held out, where no validation steps are given."] = 0.05
    split_seed: Annotated[int, "Holds out other problems; 0 those that the other stages hold out."] = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.merge:
            raise InputError("a classifier's adapter is always merged: leave merge=False out")
        is_held_out("", self.validation_share)


@dataclass(frozen=True)
class RunOptions:
    """What no result depends on."""

    report_to: Annotated[str, "Where the trainer reports to besides: wandb, tensorboard, ..."] = "none"
    num_checkpoints: Annotated[int, "Checkpoints kept at once; at least 2, of which the newest may be torn."] = MIN_KEPT
    keep_checkpoints: Annotated[bool, "Keep them when the run is complete."] = False
    push_to_hub: Annotated[str | None, "Upload the model to this repository (OWNER/NAME) at the end."] = None
    private: Annotated[bool, "--private/--public", "Whether a repository made for that is private."] = True

    def __post_init__(self) -> None:
        if self.num_checkpoints < MIN_KEPT:
            raise InputError(
                f"num_checkpoints is {self.num_checkpoints}; at least {MIN_KEPT} are kept: a kill can tear the newest"
            )


@dataclass(frozen=True)
class RoundSettings:
    """What the rounds of `rprm evolve` depend on, besides the steps and the first model.

    Attributes:
        pair_options: further options of `rprm data pairs`.
        train_options: further options of `rprm train dpo`.

    Raises:
        InputError: a value makes no sense.
    """

    num_rounds: Annotated[int, "--rounds", "Rounds of sampling and training."] = 1
    engine: Annotated[str, "Engine that samples and measures: transformers or vllm."] = "transformers"
    engine_options: Annotated[str, "Its options: name=value&name=value."] = ""
    num_analyses: Annotated[int, "-n", "--num-analyses", "Sampled of each step."] = 8
    temperature: Annotated[float, "Of the analyses."] = 0.95
    top_p: Annotated[float, "Of the analyses."] = 0.95
    max_tokens: Annotated[int, "Longest analysis, in tokens."] = 2048
    judge_analyses: Annotated[int, "-k", "K of the measurement."] = 4
    num_sampled_steps: Annotated[
        int | None, "--sampled-steps", "Training steps a round samples, others in each round.  [default: all]"
    ] = None
    validation_share: Annotated[
        float, "--validation", "Share of the problems to measure on; as in `rprm data cold-start`, with the same seed."
    ] = 0.05
    pair_options: tuple[str, ...] = ()
    train_options: tuple[str, ...] = ()
    seed: Annotated[int, "Of the split; round r samples with seed + r."] = 0

    def __post_init__(self) -> None:
        for name, least in (("num_rounds", 1), ("num_analyses", 2), ("judge_analyses", 1), ("num_sampled_steps", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise InputError(f"{name} is {value}; it must be at least {least}")
        is_held_out("", self.validation_share)


# --- presets ------------------------------------------------------------------------------------------------------
# The paper is R-PRM, arXiv 2503.21295; its code is NJUNLP/R-PRM. "Ours" marks what neither states.

#: The paper's base model (section 4.1).
PAPER_BASE = "Qwen/Qwen2.5-Math-7B-Instruct"

#: The cold start of the paper and its preference optimisation (section 4.1): 1 epoch, batch 128, all weights, learning
#: rates 5e-6 and 5e-7; the preference optimisation begins from the SFT model. The paper keeps the checkpoint with the
#: lowest validation loss, without stopping early. Warm-up ratio 0.03: its src/scripts/train.sh, of the cold start.
#: Ours: the cosine schedule, no weight decay, clipping at 1, 4,096 tokens (the base model's whole context), bf16
#: computation over float32 weights, 2 rows or 1 pair a device; of about 2,260 steps (289K rows / 128) an evaluation and
#: a checkpoint every 250 (an evaluation over 20K validation rows costs as much as some 50 steps); beta 0.1 (TRL's
#: default), no SFT term.
_PAPER: dict[str, Any] = {
    "num_epochs": 1.0,
    "batch_size": 128,
    "warmup_ratio": 0.03,
    "max_length": 4096,
    "precision": "bf16",
    "eval_steps": 250,
    "save_steps": 250,
    "keep_best": True,
    "patience": None,
}
PAPER_7B_SFT = SFTSettings(learning_rate=5e-6, device_batch_size=2, **_PAPER)
PAPER_7B_DPO = DPOSettings(learning_rate=5e-7, device_batch_size=1, beta=0.1, **_PAPER)

#: One GPU, models up to about 8B. All ours. An adapter wants a learning rate about 20 times that of full training.
_LORA: dict[str, Any] = {"batch_size": 32, "lora_rank": 16, "eval_steps": 100, "save_steps": 100}
SMALL_LORA_SFT = SFTSettings(learning_rate=1e-4, device_batch_size=2, **_LORA)
SMALL_LORA_DPO = DPOSettings(learning_rate=1e-5, device_batch_size=1, **_LORA)

#: A laptop, models up to a few hundred million weights. All ours: float32, activations kept (computing them again made
#: a step 3.5 times slower), small batches.
_CPU: dict[str, Any] = {
    "batch_size": 8,
    "precision": "fp32",
    "gradient_checkpointing": False,
    "group_by_length": True,
    "max_length": 1024,
    "eval_steps": 50,
    "save_steps": 50,
    "logging_steps": 5,
}
CPU_SFT = SFTSettings(learning_rate=2e-5, device_batch_size=4, **_CPU)
CPU_DPO = DPOSettings(learning_rate=5e-6, device_batch_size=2, **_CPU)

SFT_PRESETS: Mapping[str, SFTSettings] = {
    "paper-7b-sft": PAPER_7B_SFT,
    "small-lora": SMALL_LORA_SFT,
    "cpu": CPU_SFT,
}
DPO_PRESETS: Mapping[str, DPOSettings] = {
    "paper-7b-dpo": PAPER_7B_DPO,
    "small-lora": SMALL_LORA_DPO,
    "cpu": CPU_DPO,
}

#: Presets that are for one model.
PRESET_MODELS = {"paper-7b-sft": PAPER_BASE}

Settings = TypeVar("Settings", bound=TrainingSettings)


def find_preset(presets: Mapping[str, Settings], name: str) -> Settings:
    """A preset by its name.

    Raises:
        InputError: there is none of that name.
    """
    if name not in presets:
        raise InputError(f"no preset {name!r}; there are {', '.join(presets)}")
    return presets[name]
