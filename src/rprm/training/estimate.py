"""What a training would cost, told before anything is loaded or written: tokens, memory of each GPU, hours.

Weights are counted in the model that the configuration describes, made without memory; tokens by the model's own
tokenizer. Memory is what PyTorch, accelerate and DeepSpeed hold by their own code; docs/training.md says how near both
come to what was measured.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import ceil, sqrt
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, TypeVar

from rprm.engines.loading import find_file, plain_errors, stored_tensors
from rprm.errors import InputError
from rprm.folders import read_object
from rprm.ranges import Devices, Utilization, Weight, check
from rprm.training.rows import MAX_SHARE_TOO_LONG
from rprm.training.settings import ClassifierTraining, DPOSettings, TrainingSettings

if TYPE_CHECKING:
    from rprm.training.lifecycle import RunArguments, TrainingRun

T = TypeVar("T")

GIB = 1 << 30
#: Rows of a part that are tokenised; of more, a sample. 4,096 rows whose lengths vary by a third tell the mean to 1%.
MAX_ROWS_READ = 4096
#: GiB beside what is counted: the CUDA context, libraries' workspaces, memory that the allocator cannot use. Ours.
RESERVE = 2.0
#: Of the peak, where completions are sampled: each token reads all weights for a batch of some hundred. Ours.
SAMPLING_UTILIZATION = 0.05
#: Positions and words of the tile in which TRL computes logits (`trl.kernels.chunked_logprob`, 1.16).
_TILE = 4096, 32_768


@dataclass(frozen=True)
class Gpu:
    """GiB of memory that the driver leaves, and peaks in TFLOPS, dense, bfloat16 and float32 (not TF32)."""

    memory: float
    bf16: float
    fp32: float


#: NVIDIA's data sheets, where sparse peaks are halved: A100 80GB SXM, H100 SXM, H200 SXM, L4; of the RTX 4090 the Ada
#: whitepaper, appendix A (bfloat16 with float32 sums).
GPUS: Mapping[str, Gpu] = {
    "a100": Gpu(79.0, 312.0, 19.5),
    "h100": Gpu(79.0, 989.0, 67.0),
    "h200": Gpu(139.0, 989.0, 67.0),
    "rtx4090": Gpu(23.5, 165.2, 82.6),
    "l4": Gpu(22.0, 121.0, 30.3),
}


@dataclass(frozen=True)
class Hardware:
    """What a training would run on; an `InputError` where a value makes no sense."""

    num_gpus: Annotated[Devices, "--gpus", "With --estimate: how many GPUs."] = 1
    gpu: Annotated[str | None, "With --estimate: a100, h100, h200, rtx4090 or l4.  [default: each of them]"] = None
    utilization: Annotated[Utilization, "With --estimate: share of the GPUs' peak that training reaches."] = 0.35
    price: Annotated[Weight | None, "With --estimate: price of a GPU hour."] = None

    def __post_init__(self) -> None:
        check(self, InputError)
        if self.gpu is not None and self.gpu not in GPUS:
            raise InputError(f"gpu is {self.gpu!r}; it must be one of {', '.join(GPUS)}")


# What is trained on


class Row(NamedTuple):
    """Tokens of each sequence of a row; how many of them are scored by the output layer, and sampled beforehand."""

    sequences: tuple[int, ...]
    num_scored: int
    num_sampled: int = 0


@dataclass(frozen=True)
class Part:
    """Rows of the training or validation data: those read, without the too long ones, of `num_rows` that there are;
    and the tokens of the longest sequence, of rows that were not read too."""

    num_rows: int
    rows: Sequence[Row]
    num_too_long: int
    longest: int

    @property
    def num_kept(self) -> int:
        """Rows trained on; estimated from those that were read."""
        num_read = len(self.rows) + self.num_too_long
        return round(self.num_rows * len(self.rows) / num_read) if num_read else 0

    @property
    def is_exact(self) -> bool:
        return len(self.rows) + self.num_too_long == self.num_rows

    def total(self, numbers: Iterable[float]) -> float:
        """A sum over all rows, from numbers of those read."""
        found = list(numbers)
        return self.num_kept * fmean(found) if found else 0.0

    @property
    def tokens_error(self) -> float:
        """Half of the 95% interval of the number of tokens, relative to it; 0 of an exact one."""
        found = [float(sum(row.sequences)) for row in self.rows]
        if self.is_exact or len(found) < 2:
            return 0.0
        unread = 1 - len(found) / max(len(found), self.num_kept)
        return 1.96 * stdev(found) / sqrt(len(found)) * sqrt(unread) / fmean(found)


@dataclass(frozen=True)
class Workload:
    """What a kind of training does: `parts` are the rows of `train` and maybe `validation`; `num_passes` the forward
    passes over each batch beside the training's own, as of a reference; `are_once` says that they are made once, before
    training, `holds_reference` that a model of its own makes them; `scores_words`, that the output layer is used."""

    parts: Mapping[str, Part]
    num_passes: int = 0
    are_once: bool = False
    holds_reference: bool = False
    scores_words: bool = True

    @property
    def sequences_per_row(self) -> int:
        return max((len(row.sequences) for row in self.parts["train"].rows), default=1)


def read_part(rows: Iterable[T], size: Callable[[T], int], tokens: Callable[[T], Row], max_length: int) -> Part:
    """Tokenise rows, or a sample of them, each as likely as any other (Vitter's algorithm R); and the largest one, by
    a `size` that is quick to tell, such as its characters."""
    chosen, largest, number, draw = list[T](), list[T](), 0, random.Random(0)
    for number, row in enumerate(rows, 1):
        if not largest or size(row) > size(largest[0]):
            largest = [row]
        if number <= MAX_ROWS_READ:
            chosen.append(row)
        elif (place := draw.randrange(number)) < MAX_ROWS_READ:
            chosen[place] = row
    found = [tokens(row) for row in chosen]
    longest = max((max(row.sequences) for row in [*found, *map(tokens, largest)]), default=0)
    kept = [row for row in found if max(row.sequences) <= max_length]
    return Part(number, kept, len(found) - len(kept), longest)


# The model


@dataclass(frozen=True)
class Network:
    """Sizes of a model. `num_multiplied` are the weights that every token is multiplied with, `num_head` those of the
    output layer (0 where it is not used), `num_apart` those of embeddings and output layer, tied ones once."""

    num_weights: int
    num_trained: int
    num_multiplied: int
    num_head: int
    num_apart: int
    num_layers: int
    hidden: int
    attention: int  #: heads times their size
    num_heads: int
    intermediate: int
    note: str | None = None

    @property
    def is_lora(self) -> bool:
        return self.num_trained < self.num_weights


def read_network(target: str, revision: str | None, settings: TrainingSettings, *, scores_words: bool) -> Network:
    """The model that a configuration describes, and the adapter that the settings ask for, made without memory."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

    auto = AutoModelForCausalLM if scores_words else AutoModel
    with plain_errors(target, "a causal language model"), torch.device("meta"):
        config = AutoConfig.from_pretrained(target, revision=revision, trust_remote_code=False)
        model = auto.from_config(config, trust_remote_code=False)
    config, layers = config.get_text_config(), (model.get_input_embeddings(), model.get_output_embeddings())
    words = [layer.weight for layer in layers if layer is not None]
    hidden, num_apart = words[0].shape[1], sum({id(weight): weight.numel() for weight in words}.values())
    num_weights = num_trained = sum(weight.numel() for weight in model.parameters())
    note = None
    if stored := _num_stored(target, revision, config) if scores_words else 0:
        # Tied layers may be stored twice.
        most = num_weights + (num_apart if config.tie_word_embeddings else 0)
        if not 0.99 * num_weights <= stored <= 1.01 * most:
            note = f"{target}: its files hold {stored:,} weights, its configuration describes {num_weights:,}"
    if settings.lora_rank:
        try:
            lora = LoraConfig(**settings.lora, task_type="CAUSAL_LM" if scores_words else None)
            adapted = get_peft_model(model, lora, low_cpu_mem_usage=True)
        except ValueError as error:
            raise InputError(f"{target} cannot be trained so: {next(iter(str(error).splitlines()), '')}") from error
        num_trained = sum(one.numel() for one in adapted.parameters() if one.requires_grad)
        num_weights += num_trained
    # Of a classifier, a head of two layers (`rewarders.network`), trained whole.
    num_new = 0 if scores_words else hidden * hidden + 3 * hidden + 2
    heads = config.num_attention_heads
    return Network(
        num_weights=num_weights + num_new,
        num_trained=num_trained + num_new,
        num_multiplied=num_weights - num_apart,
        num_head=words[-1].numel() if scores_words else 0,
        num_apart=num_apart,
        num_layers=config.num_hidden_layers,
        hidden=hidden,
        attention=heads * (getattr(config, "head_dim", None) or hidden // heads),
        num_heads=heads,
        intermediate=getattr(config, "intermediate_size", 4 * hidden),
        note=note,
    )


def _num_stored(target: str, revision: str | None, config: Any) -> int:
    """Weights in a model's files, by their headers or their index; 0 where that cannot be told without the weights."""
    if Path(target).is_dir():
        return sum(tensor.numel() for tensor in stored_tensors(target, revision).values())
    index = find_file(target, "model.safetensors.index.json", revision)
    metadata = read_object(index).get("metadata") if index else None
    size = metadata.get("total_size") if isinstance(metadata, dict) else None
    return size // getattr(config.dtype, "itemsize", 2) if isinstance(size, int) else 0


# Memory

Setup = Literal["single", "ddp", "fsdp", "zero2", "zero3"]
#: Of several GPUs, as they are preferred: what exchanges least first; FSDP before DeepSpeed, which has to be installed
#: and sums gradients in bfloat16. recipes/accelerate has a configuration of each name.
SETUPS: tuple[Setup, ...] = ("ddp", "fsdp", "zero2", "zero3")


@dataclass(frozen=True)
class Memory:
    """Bytes on each GPU at the fullest moment."""

    weights: float
    copies: float  #: of weights: in bfloat16, or gathered from the other GPUs
    gradients: float  #: with the buffers in which they are exchanged
    optimizer: float  #: AdamW's two means; of DeepSpeed the float32 weights too
    reference: float
    activations: float
    output_layer: float  #: a tile of logits; gradients of the layer's weights and of its input

    @property
    def total(self) -> float:
        return float(sum(vars(self).values()))


def memory(
    network: Network, workload: Workload, settings: TrainingSettings, setup: Setup = "single", num_gpus: int = 1
) -> Memory:
    """What each GPU holds in training.

    Full training by PyTorch keeps float32 weights (4 bytes each), gradients (4) and AdamW's means (8), and autocast
    bfloat16 copies (2); DDP holds gradients once more, in its buckets (4). FSDP divides 16 by the number of GPUs, and
    gathers a layer in bfloat16 while it computes another. DeepSpeed has bfloat16 weights (2) and gradients (2), float32
    weights and means (12): ZeRO-2 divides the last two, ZeRO-3 all (arXiv 1910.02054, figure 1). Under an adapter the
    base model is bfloat16, and only the adapter has gradients.
    """
    bf16, is_zero = settings.precision != "fp32", setup in ("zero2", "zero3")
    half = 2 if bf16 else 4
    own = half if is_zero else 4
    trained, layer = network.num_trained, network.num_multiplied / network.num_layers
    frozen = network.num_weights - trained
    copies, exchanged = {
        "single": (2 * trained if bf16 else 0, 0),
        "ddp": (2 * trained if bf16 else 0, 4 * trained),
        "fsdp": (half * (network.num_apart + 2 * layer), half * min(trained, network.num_apart + layer)),
        # DeepSpeed's defaults: a bucket of 5e8 gradients, at stage 3 two (overlap_comm); up to 1e9 gathered weights.
        "zero2": (0, half * min(trained, 5e8)),
        "zero3": (half * min(network.num_weights, 1e9), 2 * half * min(trained, 5e8)),
    }[setup]
    sharing = num_gpus if setup in ("fsdp", "zero2", "zero3") else 1
    sharing_weights = num_gpus if setup in ("fsdp", "zero3") else 1
    longest = min(settings.max_length, workload.parts["train"].longest)
    if getattr(settings, "packing", False):
        longest = settings.max_length
    tokens = settings.device_batch_size * workload.sequences_per_row * longest
    # Weights in float32 leave what goes from layer to layer in float32, autocast or not.
    is_mixed = bf16 and not network.is_lora and setup in ("single", "ddp")
    of_layer = tokens * _layer_bytes(network, longest, bf16=bf16, is_mixed=is_mixed)
    between = tokens * network.hidden * (4 if is_mixed else half)
    output_layer = 0
    if workload.scores_words:
        tile = min(tokens, _TILE[0]) * min(network.num_head // network.hidden, _TILE[1])
        output_layer = half * tile + 4 * tokens * network.hidden + (0 if network.is_lora else 4 * network.num_head)
    return Memory(
        weights=(own * trained + half * frozen) / sharing_weights,
        copies=copies,
        gradients=own * trained / sharing + exchanged,
        optimizer=(12 if is_zero and bf16 else 8) * trained / sharing,
        reference=own * network.num_weights / sharing_weights if workload.holds_reference else 0,
        activations=of_layer + network.num_layers * between
        if settings.gradient_checkpointing
        else network.num_layers * of_layer,
        output_layer=output_layer,
    )


def _layer_bytes(network: Network, length: int, *, bf16: bool, is_mixed: bool) -> float:
    """What the backward pass of a decoder layer (Llama's, Qwen's, Mistral's) reads of each token: the input of each
    norm before and after scaling, the inputs of the seven projections, queries, keys, values (repeated for every head),
    two gates; of attention the logarithm of each head's sum, and the mask's row."""
    hidden, attention, gates = network.hidden, network.attention, network.intermediate
    wide = 4 * (attention + gates)
    found = 4 * (6 * hidden + wide)
    if bf16:
        # Autocast makes a bfloat16 copy of the input for each projection.
        found = 2 * (5 * hidden + wide) + 16 * hidden if is_mixed else 2 * (4 * hidden + wide) + 8 * hidden
    return found + 8 + 4 * network.num_heads + (2 if bf16 else 4) * length


# Time


@dataclass(frozen=True)
class Compute:
    """Optimizer steps, and over all of them: rows, their tokens, those computed with padding, and operations."""

    num_steps: int
    num_rows: float
    num_tokens: float
    num_computed: float
    training: float
    evaluation: float
    sampling: float

    def hours(self, gpu: Gpu, num_gpus: int, utilization: float, *, bf16: bool) -> float:
        each = num_gpus * 1e12 * (gpu.bf16 if bf16 else gpu.fp32) * 3600
        return (self.training + self.evaluation) / (each * utilization) + self.sampling / (each * SAMPLING_UTILIZATION)


def compute(network: Network, workload: Workload, settings: TrainingSettings, num_gpus: int = 1) -> Compute:
    """The operations of a training: 2 for each weight and token forward, with attention's 4 for each pair of tokens,
    layer and width; backward twice that, under an adapter once (only activations have gradients); computed again,
    once. The output layer is computed where a token is scored, and again in its backward pass."""
    train = workload.parts["train"]
    is_free = getattr(settings, "packing", False) or getattr(settings, "padding_free", False)
    each = partial(_forward, network, settings, is_free=is_free)
    rows, num_tokens = train.num_kept, train.total(sum(row.sequences) for row in train.rows)
    units = ceil(num_tokens / settings.max_length) if getattr(settings, "packing", False) else rows
    accumulation = settings.accumulation(num_gpus)
    batches = ceil(units / (settings.device_batch_size * num_gpus))
    num_steps = settings.max_steps or ceil(settings.num_epochs * ceil(batches / accumulation))
    epochs = settings.num_epochs if settings.max_steps is None else num_steps * settings.batch_size / max(1, units)

    backward = (1 if network.is_lora else 2) + (1 if settings.gradient_checkpointing else 0)
    backward_head = 2 if network.is_lora else 3
    forward = each(train.rows, is_shuffled=True)
    layers, head = (train.total(column) for column in ([f.layers for f in forward], [f.head for f in forward]))
    training = epochs * (layers * (1 + backward) + head * (1 + backward_head))
    training += (1 if workload.are_once else epochs) * workload.num_passes * (layers + head)
    evaluation, part = 0.0, workload.parts.get("validation")
    if part is not None:
        number = ceil(num_steps / settings.eval_steps)
        passes = number + (1 if workload.are_once else number) * workload.num_passes
        evaluation = passes * part.total(f.layers + f.head for f in each(part.rows, is_shuffled=False))
    per_sampled = 2 * (network.num_multiplied + network.num_head)
    return Compute(
        num_steps=num_steps,
        num_rows=epochs * rows,
        num_tokens=epochs * num_tokens,
        num_computed=epochs * train.total(f.num_computed for f in forward),
        training=training,
        evaluation=evaluation,
        sampling=epochs * per_sampled * train.total(row.num_sampled for row in train.rows),
    )


class _Forward(NamedTuple):
    """Of a row in its batch: tokens with padding, operations of the layers and of the output layer."""

    num_computed: int
    layers: float
    head: float


def _forward(
    network: Network, settings: TrainingSettings, rows: Sequence[Row], *, is_free: bool, is_shuffled: bool
) -> list[_Forward]:
    """The forward pass over rows, each as long as the longest of its batch (or as it is, without padding)."""
    order: Sequence[int] = range(len(rows))
    if is_shuffled and settings.group_by_length and not is_free:
        import torch
        from transformers.trainer_pt_utils import get_length_grouped_indices

        sizes = [max(row.sequences) for row in rows]
        generator = torch.Generator().manual_seed(settings.seed)
        order = get_length_grouped_indices(sizes, settings.batch_size, generator=generator)
    elif is_shuffled:
        order = random.Random(settings.seed).sample(order, len(order))
    found = []
    for start in range(0, len(order), settings.device_batch_size):
        batch = [rows[index] for index in order[start : start + settings.device_batch_size]]
        longest = max(max(row.sequences) for row in batch)
        for row in batch:
            lengths = row.sequences if is_free else (longest,) * len(row.sequences)
            per_pair = 4 * network.num_layers * network.attention
            layers = sum(length * (2 * network.num_multiplied + per_pair * length) for length in lengths)
            found.append(_Forward(sum(lengths), layers, 2 * network.num_head * row.num_scored))
    return found


# Together


@dataclass(frozen=True)
class Choice:
    """A GPU, the first setup in which the training fits it (None: none does; the memory is the least), and its hours
    and cost."""

    gpu: str
    setup: Setup | None
    gib: float
    hours: float
    cost: float | None


@dataclass(frozen=True)
class Estimate:
    """What a training would cost: `memory` of each setup, `choices` of each GPU, and remarks on the data and model."""

    model: str
    kind: str
    num_gpus: int
    utilization: float
    network: Network
    num_rows: Mapping[str, int]
    tokens_error: float
    longest: int
    compute: Compute
    memory: Mapping[Setup, Memory]
    choices: Sequence[Choice]
    notes: Sequence[str]


def estimate_training(
    data: str | Path,
    hardware: Hardware,
    settings: TrainingSettings,
    *,
    model: str,
    revision: str | None = None,
    prompt: str | Path | None = None,
    validation: str | Path | None = None,
) -> Estimate:
    """What `train_sft`, `train_dpo` or `train_classifier` would cost with these arguments; the errors are theirs, as
    far as they concern settings, the model's configuration and the form of the rows."""
    settings.accumulation(hardware.num_gpus)
    arguments: RunArguments = {"model": model, "revision": revision, "settings": settings, "output": ""}
    run = _run(data, prompt, validation, arguments)
    if run.one_device and hardware.num_gpus > 1:
        raise InputError(f"a {run.kind} trains on one GPU; leave --gpus {hardware.num_gpus} out")
    base, workload = run.base, run.workload()
    if not (train := workload.parts["train"]).rows:
        raise InputError(f"{data}: no row of at most {settings.max_length:,} tokens; raise --max-length")
    network = read_network(base.target, base.revision, settings, scores_words=workload.scores_words)
    found = compute(network, workload, settings, hardware.num_gpus)
    setups: tuple[Setup, ...] = SETUPS if hardware.num_gpus > 1 else ("single",)
    held = {setup: memory(network, workload, settings, setup, hardware.num_gpus) for setup in setups}
    choices = []
    for name in [hardware.gpu] if hardware.gpu else GPUS:
        gpu = GPUS[name]
        needed = {setup: one.total / GIB + RESERVE for setup, one in held.items()}
        setup = next((setup for setup in setups if needed[setup] <= gpu.memory), None)
        gib = min(needed.values()) if setup is None else needed[setup]
        hours = found.hours(gpu, hardware.num_gpus, hardware.utilization, bf16=settings.precision != "fp32")
        cost = None if hardware.price is None else hours * hardware.num_gpus * hardware.price
        choices.append(Choice(name, setup, gib, hours, cost))
    notes = [network.note] if network.note else []
    if (most := base.context_length) and settings.max_length > most:
        notes.append(f"max_length {settings.max_length:,} exceeds the model's context, {most:,}: training refuses it")
    for name, part in workload.parts.items():
        if part.num_too_long:
            share = part.num_too_long / (part.num_too_long + len(part.rows))
            fate = "training refuses it" if share > MAX_SHARE_TOO_LONG else "they are left out"
            notes.append(f"{name}: {share:.2%} of the rows are longer than {settings.max_length:,} tokens: {fate}")
    return Estimate(
        model=base.target,
        kind=run.kind,
        num_gpus=hardware.num_gpus,
        utilization=hardware.utilization,
        network=network,
        num_rows={name: part.num_kept for name, part in workload.parts.items()},
        tokens_error=train.tokens_error,
        longest=min(settings.max_length, train.longest),
        compute=found,
        memory=held,
        choices=choices,
        notes=notes,
    )


def _run(
    data: str | Path, prompt: str | Path | None, validation: str | Path | None, arguments: RunArguments
) -> TrainingRun:
    match arguments["settings"]:
        case ClassifierTraining():
            from rprm.training.baseline import ClassifierRun

            return ClassifierRun(data, validation, **arguments)
        case DPOSettings():
            from rprm.training.dpo import DPORun

            return DPORun(data, prompt, **arguments)
        case _:
            from rprm.training.sft import SFTRun

            return SFTRun(data, prompt, **arguments)
