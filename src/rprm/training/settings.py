"""Settings of every training, and the presets with their sources. A field is an option of `rprm train`; the text beside
it is the option's help, or, with dashes, its name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal, get_args

from rprm.data.stage_options import PairOptions
from rprm.errors import InputError
from rprm.ranges import (
    Checkpoints,
    Draws,
    HeldOut,
    Rank,
    Rate,
    Rows,
    Seed,
    Several,
    ShareBelow1,
    Temperature,
    Tokens,
    TopP,
    Weight,
    Width,
    check,
)

Precision = Literal["auto", "bf16", "fp32"]


@dataclass(frozen=True)
class TrainingSettings:
    """What the result of every kind of training depends on; an `InputError` where a value makes no sense."""

    learning_rate: Annotated[Rate, "Peak learning rate."] = 5e-6
    num_epochs: Annotated[Rate, "--epochs", "Passes over the rows; a fraction is allowed."] = 1.0
    max_steps: Annotated[Rows | None, "Optimizer steps, instead of epochs."] = None
    batch_size: Annotated[Rows, "Rows of one optimizer step over all devices; accumulation follows."] = 128
    device_batch_size: Annotated[Width, "Rows a device holds at once."] = 4
    warmup_ratio: Annotated[ShareBelow1, "Share of the steps in which the rate rises from 0."] = 0.03
    scheduler: Annotated[str, "Learning rate after warm-up: cosine, linear, constant_with_warmup, ..."] = "cosine"
    weight_decay: Annotated[Weight, "Weight decay of AdamW."] = 0.0
    max_grad_norm: Annotated[Weight, "Gradients are clipped to it."] = 1.0
    max_length: Annotated[Tokens, "Tokens of a row. Longer ones are left out, never cut; above 5%, an error."] = 4096
    precision: Annotated[Precision, "bf16: bfloat16 over float32 weights; auto: where the device can."] = "auto"
    gradient_checkpointing: Annotated[bool, "Compute activations again instead of keeping them."] = True
    attention: Annotated[str | None, "sdpa, flash_attention_2, eager, ...; the model's own by default."] = None
    group_by_length: Annotated[bool, "Batch rows of similar length: less padding, less shuffling."] = False
    lora_rank: Annotated[Rank | None, "LoRA of this rank; without, or 0: train every weight."] = None
    lora_alpha: Annotated[Rows | None, "Scale of the adapter; twice the rank by default."] = None
    lora_dropout: Annotated[ShareBelow1, "Of the adapter's input."] = 0.0
    lora_targets: Annotated[str, "all-linear (without the output head), or layer names with commas."] = "all-linear"
    merge: Annotated[bool, "Hand over the merged model, which every engine loads, and the adapter beside."] = True
    eval_steps: Annotated[Rows, "Steps between evaluations."] = 200
    save_steps: Annotated[Rows, "Steps between checkpoints."] = 200
    logging_steps: Annotated[Rows, "Steps between rows of metrics.jsonl."] = 10
    keep_best: Annotated[bool, "--keep-best/--keep-last", "Checkpoint with the lowest validation loss, or last."] = True
    patience: Annotated[Rows | None, "Stop early, after so many evaluations without a new best."] = None
    seed: Annotated[Seed, "Seed of the whole run."] = 0

    def __post_init__(self) -> None:
        if self.lora_rank == 0:
            object.__setattr__(self, "lora_rank", None)
        check(self, InputError)
        if self.precision not in get_args(Precision):
            raise InputError(f"precision is {self.precision!r}; it must be one of {', '.join(get_args(Precision))}")
        if self.patience is not None and not self.keep_best:
            raise InputError("patience hands over a model from before the last step: keep the best")
        if "lm_head" in self.lora_targets:
            raise InputError("lora_targets: TRL trains no adapter on lm_head; leave it out")

    @property
    def lora(self) -> dict[str, Any]:
        """Keywords of peft's `LoraConfig`."""
        targets = self.lora_targets
        modules = targets if targets == "all-linear" else [name.strip() for name in targets.split(",")]
        alpha = self.lora_alpha or 2 * (self.lora_rank or 0)
        return {"r": self.lora_rank, "lora_alpha": alpha, "lora_dropout": self.lora_dropout, "target_modules": modules}

    def accumulation(self, num_processes: int) -> int:
        """Batches that each device adds up to one optimizer step."""
        at_once = self.device_batch_size * num_processes
        if self.batch_size % at_once:
            parts = f"device_batch_size {self.device_batch_size}, processes: {num_processes}"
            raise InputError(f"batch_size {self.batch_size} is no multiple of {at_once} ({parts}); change one of them")
        return self.batch_size // at_once


@dataclass(frozen=True)
class SFTSettings(TrainingSettings):
    """How a model learns to write analyses. The defaults are the paper's where it states them; see the presets."""

    packing: Annotated[bool, "Several rows in one sequence; a batch then counts sequences."] = False
    padding_free: Annotated[bool, "A batch as one sequence without padding."] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.packing and self.padding_free:
            raise InputError("packing is free of padding already; leave padding_free out")


@dataclass(frozen=True)
class DPOSettings(TrainingSettings):
    """How a model learns which analyses to prefer. Defaults as for `SFTSettings`, but for the learning rate."""

    learning_rate: Annotated[Rate, "Peak learning rate."] = 5e-7
    device_batch_size: Annotated[Width, "Pairs a device holds at once."] = 2
    beta: Annotated[Rate, "DPO beta: larger keeps the model closer to its reference."] = 0.1
    sft_weight: Annotated[Weight, "Weight of an SFT loss on the chosen replies; 0 for none."] = 0.0
    precompute_reference: Annotated[bool, "Compute the reference's log-probabilities beforehand."] = False


@dataclass(frozen=True)
class ClassifierTraining(TrainingSettings):
    """How a classifier is trained. The defaults are ours. A batch counts sequences; an adapter is always merged."""

    learning_rate: Annotated[Rate, "Peak learning rate."] = 1e-5
    max_length: Annotated[Tokens, "Most tokens up to a step. Steps beyond are left out; above 5% is an error."] = 2048
    merge: bool = True
    balance: Annotated[bool, "Weight both classes alike, whatever their numbers."] = False
    validation_share: Annotated[HeldOut, "Share of the problems held out, where no validation steps are given."] = 0.05
    split_seed: Annotated[Seed, "Holds out other problems; 0 those that the other stages hold out."] = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.merge:
            raise InputError("a classifier's adapter is always merged: leave merge=False out")


@dataclass(frozen=True)
class RunOptions:
    """What no result depends on."""

    report_to: Annotated[str, "Also report to: wandb, tensorboard, ..."] = "none"
    num_checkpoints: Annotated[
        Checkpoints, "Checkpoints kept at once; at least 2, of which the newest may be torn."
    ] = 2
    keep_checkpoints: Annotated[bool, "Keep them when the run is complete."] = False
    push_to_hub: Annotated[str | None, "Upload the model to this repository (OWNER/NAME) at the end."] = None
    private: Annotated[bool, "--private/--public", "Visibility of a new repository on the hub."] = True

    def __post_init__(self) -> None:
        check(self, InputError)


@dataclass(frozen=True)
class RoundSettings(PairOptions):
    """What the rounds of `rprm evolve` depend on, besides the steps and the first model."""

    num_rounds: Annotated[Draws, "--rounds", "Rounds of sampling and training."] = 1
    engine: Annotated[str, "Engine that samples and measures: transformers or vllm."] = "transformers"
    engine_options: Annotated[str, "Its options: name=value&name=value."] = ""
    num_analyses: Annotated[Several, "-n", "--num-analyses", "Sampled of each step."] = 8
    temperature: Annotated[Temperature, "Sampling temperature of the analyses."] = 0.95
    top_p: Annotated[TopP, "Nucleus sampling of the analyses."] = 0.95
    max_tokens: Annotated[Tokens, "Longest analysis, in tokens."] = 2048
    judge_analyses: Annotated[Draws, "-k", "K of the measurement."] = 4
    num_sampled_steps: Annotated[Rows | None, "--sampled-steps", "Steps sampled in a round, new ones each; or all."] = (
        None
    )
    #: Further options of `rprm train dpo`.
    train_options: tuple[str, ...] = ()
    seed: Annotated[Seed, "Of the split; round r samples with seed + r."] = 0

    def __post_init__(self) -> None:
        super().__post_init__()

    def resolved(self) -> dict[str, Any]:
        """As manifests have it: `pair_options` are those of `rprm data pairs`, but for the split."""
        found, options = asdict(self), list[str]()
        for name in ("per_step", "min_accuracy", "max_accuracy", "min_repeats"):
            options += [f"--{name.replace('_', '-')}", str(found.pop(name))]
        options += [] if found.pop("balance") else ["--no-balance"]
        ratio = found.pop("max_length_ratio")
        return {**found, "pair_options": options + ([] if ratio is None else ["--max-length-ratio", str(ratio)])}


# Presets. The paper is R-PRM, arXiv 2503.21295; its code is NJUNLP/R-PRM. "Ours" marks what neither states.

#: The cold start of the paper and its preference optimisation (section 4.1): 1 epoch, batch 128, all weights, learning
#: rates 5e-6 and 5e-7, from the SFT model; the checkpoint with the lowest validation loss is kept, none stops early.
#: Warm-up ratio 0.03: its src/scripts/train.sh, of the cold start. Ours: the cosine schedule, no weight decay, clipping
#: at 1, 4,096 tokens (the base model's whole context), bf16 over float32 weights, 2 rows or 1 pair a device, beta 0.1
#: (TRL's default), no SFT term; of about 2,260 steps (289K rows / 128) an evaluation and a checkpoint every 250 (an
#: evaluation over 20K validation rows costs as much as some 50 steps).
_PAPER: dict[str, Any] = {
    "num_epochs": 1.0, "batch_size": 128, "warmup_ratio": 0.03, "max_length": 4096, "precision": "bf16",
    "eval_steps": 250, "save_steps": 250,
}  # fmt: skip
#: One GPU, models up to about 8B. All ours. An adapter wants a learning rate about 20 times that of full training.
_LORA: dict[str, Any] = {"batch_size": 32, "lora_rank": 16, "eval_steps": 100, "save_steps": 100}
#: A laptop, models up to a few hundred million weights. All ours. Computing activations again: 3.5 times slower.
_CPU: dict[str, Any] = {
    "batch_size": 8, "precision": "fp32", "gradient_checkpointing": False, "group_by_length": True, "max_length": 1024,
    "eval_steps": 50, "save_steps": 50, "logging_steps": 5,
}  # fmt: skip
SFT_PRESETS: Mapping[str, SFTSettings] = {
    "paper-7b-sft": SFTSettings(learning_rate=5e-6, device_batch_size=2, **_PAPER),
    "small-lora": SFTSettings(learning_rate=1e-4, device_batch_size=2, **_LORA),
    "cpu": SFTSettings(learning_rate=2e-5, device_batch_size=4, **_CPU),
}
DPO_PRESETS: Mapping[str, DPOSettings] = {
    "paper-7b-dpo": DPOSettings(learning_rate=5e-7, device_batch_size=1, beta=0.1, **_PAPER),
    "small-lora": DPOSettings(learning_rate=1e-5, device_batch_size=1, **_LORA),
    "cpu": DPOSettings(learning_rate=5e-6, device_batch_size=2, **_CPU),
}
PRESETS: Mapping[type, Mapping[str, Any]] = {SFTSettings: SFT_PRESETS, DPOSettings: DPO_PRESETS}
PRESET_MODELS = {"paper-7b-sft": "Qwen/Qwen2.5-Math-7B-Instruct"}  #: The paper's base model (section 4.1).
