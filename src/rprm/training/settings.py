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
    ClipRange,
    Count,
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
from rprm.training.rewards import REWARDS, RewardName

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
class GRPOSettings(TrainingSettings):
    """How a judge or a critic learns from rewards of its own replies (GRPO, arXiv 2402.03300). Ours where the presets
    say nothing else: clipping, loss over tokens and no KL as in DAPO (arXiv 2503.14476), the group TRL's default.

    Replies are sampled at top-p 1: the log-probabilities that are trained on are those of all tokens."""

    learning_rate: Annotated[Rate, "Peak learning rate."] = 1e-6
    batch_size: Annotated[Rows, "Questions of one optimizer step over all devices; accumulation follows."] = 32
    device_batch_size: Annotated[Width, "Replies a device trains on at once."] = 8
    scheduler: Annotated[str, "Learning rate after warm-up: constant_with_warmup, cosine, ..."] = "constant_with_warmup"
    max_length: Annotated[Tokens, "Tokens of a question and the longest reply. Longer questions are left out."] = 4096
    group_by_length: bool = False  # there are no rows of replies to group
    num_samples: Annotated[Several, "-n", "--num-samples", "Replies to a question: the group."] = 8
    updates_per_sampling: Annotated[Rows, "Optimizer steps on what is sampled at once; 1: always the newest model."] = 1
    temperature: Annotated[Rate, "Of the replies."] = 1.0
    max_tokens: Annotated[Tokens, "Longest reply, in tokens."] = 2048
    max_rows: Annotated[Width, "Replies that the model decodes at once."] = 64
    reward: Annotated[
        RewardName | None,
        "Of a reply: verdict, right or wrong; distance, of a critic: how near to the first error (FAPO); outcome: "
        "right or wrong about the whole solution alone (TIPS).  [default: verdict; of a critic distance]",
    ] = None
    form_weight: Annotated[Weight, "Taken off where a reply does not end in its only verdict."] = 0.5
    overlong_tokens: Annotated[Count, "Last tokens of the longest reply that cost up to 1 (DAPO); 0: none."] = 0
    epsilon: Annotated[ClipRange, "How far below 1 a token's probability ratio is clipped."] = 0.2
    epsilon_high: Annotated[ClipRange, "How far above 1 it is clipped (DAPO)."] = 0.28
    beta: Annotated[Weight, "Weight of the KL divergence from the first model; 0 for none."] = 0.0
    scale_rewards: Annotated[
        Literal["group", "batch", "none"], "Advantages are divided by the deviation within group, batch, or not."
    ] = "group"
    vllm: Annotated[
        Literal["server", "colocate"] | None, "Sample with vLLM: a server (`trl vllm-serve`), or on the training GPUs."
    ] = None
    vllm_url: Annotated[str, "Of --vllm server."] = "http://127.0.0.1:8000"
    validation_share: Annotated[HeldOut, "Share of the problems held out, where no validation data is given."] = 0.05
    split_seed: Annotated[Seed, "Holds out other problems; 0 those that the other stages hold out."] = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, known in {"reward": (None, *REWARDS), "scale_rewards": ("group", "batch", "none")}.items():
            if getattr(self, name) not in known:
                raise InputError(f"{name} is {getattr(self, name)!r}; it must be one of {', '.join(map(str, known))}")
        if self.max_tokens >= self.max_length:
            raise InputError(f"max_tokens {self.max_tokens:,} leaves no token of max_length {self.max_length:,}")
        if self.overlong_tokens > self.max_tokens:
            raise InputError(f"overlong_tokens {self.overlong_tokens:,} are more than max_tokens {self.max_tokens:,}")
        for name in ("eval_steps", "save_steps"):
            # What is sampled is in no checkpoint.
            if getattr(self, name) % self.updates_per_sampling:
                steps = f"{name} {getattr(self, name)} is no multiple of updates_per_sampling"
                raise InputError(f"{steps} {self.updates_per_sampling}: a resumed run would train on other replies")

    def accumulation(self, num_processes: int) -> int:
        at_once, replies = self.device_batch_size * num_processes, self.batch_size * self.num_samples
        if replies % at_once:
            parts = f"device_batch_size {self.device_batch_size}, processes: {num_processes}"
            wanted = f"batch_size {self.batch_size} by num_samples {self.num_samples} is {replies}"
            raise InputError(f"{wanted}, no multiple of {at_once} ({parts}); change one of them")
        return replies // at_once


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
    method: Annotated[
        Literal["dpo", "grpo"], "dpo: pairs of sampled analyses; grpo: rewards of what is sampled in training."
    ] = "dpo"
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
    #: Further options of `rprm train dpo`, or grpo.
    train_options: tuple[str, ...] = ()
    seed: Annotated[Seed, "Of the split; round r samples with seed + r."] = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.method not in ("dpo", "grpo"):
            raise InputError(f"method is {self.method!r}; it must be dpo or grpo")

    def resolved(self) -> dict[str, Any]:
        """As manifests have it: `pair_options` are those of `rprm data pairs`, but for the split."""
        found, options = asdict(self), list[str]()
        for name in ("per_step", "min_accuracy", "max_accuracy", "min_repeats"):
            options += [f"--{name.replace('_', '-')}", str(found.pop(name))]
        options += [] if found.pop("balance") else ["--no-balance"]
        ratio = found.pop("max_length_ratio")
        if found["method"] == "dpo":
            del found["method"]  # as in folders that are older than the choice
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
#: FAPO-GenRM-4B (arXiv 2510.22543; verl, recipe/fapo/run_fapo_genrm_train.sh) and its reward: 512 questions sampled at
#: once, 32 a step, 16 replies of up to 8,192 tokens at T = 1.2, questions of up to 5,120, the last 4,096 tokens
#: punished, clipping 0.2 and 0.28, no KL, rate 1e-6 after 10 of 500 samplings (of 16 steps each), weight decay 0.1, an
#: evaluation every 10. Left out: its second clip, of ratios above 10.
#: TIPS (RUCBM/TIPS, PRM_from_ORM/run_math_process_judge_grpo.sh): the outcome alone, 32 questions a step, 8 replies of
#: up to 32,000 tokens, questions of up to 6,000, rate 1e-6, no KL, advantages not divided by their deviation, 10
#: epochs, an evaluation every 10 steps; clipping 0.2 on both sides and weight decay 0.01 are verl's defaults. In
#: neither is form punished, an invalid reply being worth a wrong one. Ours: batches, and bf16 over float32 weights.
GRPO_PRESETS: Mapping[str, GRPOSettings] = {
    "fapo-4b": GRPOSettings(
        learning_rate=1e-6, batch_size=32, updates_per_sampling=16, num_samples=16, device_batch_size=4, max_steps=8000,
        num_epochs=10.0, warmup_ratio=0.02, weight_decay=0.1, temperature=1.2, max_tokens=8192, max_length=13312,
        reward="distance", overlong_tokens=4096, form_weight=0.0, precision="bf16", eval_steps=160, save_steps=160,
    ),
    "tips-4b": GRPOSettings(
        learning_rate=1e-6, batch_size=32, num_samples=8, device_batch_size=1, num_epochs=10.0, warmup_ratio=0.0,
        weight_decay=0.01, max_tokens=32000, max_length=38000, reward="outcome", form_weight=0.0, epsilon_high=0.2,
        scale_rewards="none", precision="bf16", eval_steps=10, save_steps=10,
    ),
    "small-lora": GRPOSettings(learning_rate=1e-5, lora_rank=16, eval_steps=20, save_steps=20),
    "cpu": GRPOSettings(
        learning_rate=5e-6, batch_size=8, device_batch_size=16, max_tokens=512, max_length=1024, precision="fp32",
        gradient_checkpointing=False, eval_steps=20, save_steps=20, logging_steps=5,
    ),
}  # fmt: skip
PRESETS: Mapping[type, Mapping[str, Any]] = {
    SFTSettings: SFT_PRESETS, DPOSettings: DPO_PRESETS, GRPOSettings: GRPO_PRESETS,
}  # fmt: skip
#: The paper's base model (section 4.1), and those of FAPO and TIPS.
PRESET_MODELS = {
    "paper-7b-sft": "Qwen/Qwen2.5-Math-7B-Instruct", "fapo-4b": "Qwen/Qwen3-4B-Instruct-2507",
    "tips-4b": "Qwen/Qwen3-4B-Thinking-2507",
}  # fmt: skip
