"""`rprm train`: fine-tune a model on analyses, and on preferences between them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

if TYPE_CHECKING:
    from rprm.training.metrics import TrainingCallbacks
    from rprm.training.presets import Preset
    from rprm.training.settings import TrainingSettings
    from rprm.training.stage import RunOptions, TrainingResult

    Settings = TypeVar("Settings", bound=TrainingSettings)

app = typer.Typer(
    rich_markup_mode=None, no_args_is_help=True, help="Train: cold start (sft), preference optimisation (dpo)."
)


@app.callback()
def train() -> None:
    """Train: cold start (sft), preference optimisation (dpo)."""


class PrecisionName(StrEnum):
    auto = "auto"
    bf16 = "bf16"
    fp32 = "fp32"


Data = Annotated[
    str, typer.Argument(metavar="DATA", help="Folder as `rprm data` writes it, or a JSON Lines file (with --prompt).")
]
Model = Annotated[str | None, typer.Option("--model", "-m", help="Folder or hub id of the model to train.")]
Output = Annotated[
    Path, typer.Option("--output", "-o", help="Run folder; a killed run goes on from there. model/ is the result.")
]
PromptOption = Annotated[
    str | None,
    typer.Option("--prompt", help="Template that the rows were rendered with.", show_default="the data's own"),
]
Revision = Annotated[str | None, typer.Option(help="Revision of a hub model.")]

LearningRate = Annotated[float | None, typer.Option(help="Peak learning rate.")]
Epochs = Annotated[float | None, typer.Option("--epochs", help="Passes over the rows.")]
MaxSteps = Annotated[int | None, typer.Option(help="Optimizer steps, instead of epochs.")]
BatchSize = Annotated[
    int | None,
    typer.Option(help="Rows of one optimizer step over all devices; accumulation follows."),
]
DeviceBatchSize = Annotated[int | None, typer.Option(help="Rows a device holds at once.")]
WarmupRatio = Annotated[float | None, typer.Option(help="Share of the steps in which the rate rises.")]
Scheduler = Annotated[str | None, typer.Option(help="cosine, linear, constant_with_warmup, ...")]
WeightDecay = Annotated[float | None, typer.Option(help="Of AdamW.")]
MaxGradNorm = Annotated[float | None, typer.Option(help="Gradients are clipped to it.")]
Seed = Annotated[int | None, typer.Option(help="Seed of the whole run.")]

MaxLength = Annotated[
    int | None,
    typer.Option(
        help="Most tokens of prompt and reply. Longer rows are left out and counted, never cut; above 5% is an error."
    ),
]
PrecisionOption = Annotated[PrecisionName | None, typer.Option("--precision", help="auto: bf16 where the device can.")]
Checkpointing = Annotated[
    bool | None,
    typer.Option(
        "--gradient-checkpointing/--no-gradient-checkpointing",
        help="Compute activations again instead of keeping them.",
    ),
]
Attention = Annotated[str | None, typer.Option(help="sdpa, flash_attention_2, eager, ...")]

GroupByLength = Annotated[
    bool | None,
    typer.Option("--group-by-length/--no-group-by-length", help="Batches of rows of like length: less padding."),
]

LoraRank = Annotated[
    int | None,
    typer.Option(help="Train an adapter of this rank; without, every weight; 0 the same."),
]
LoraAlpha = Annotated[int | None, typer.Option(help="Scale of the adapter.", show_default="twice the rank")]
LoraDropout = Annotated[float | None, typer.Option(help="Of the adapter's input.")]
LoraTargets = Annotated[
    str | None,
    typer.Option(help="all-linear (without the output head), or layer names with commas."),
]
Merge = Annotated[
    bool | None,
    typer.Option(
        "--merge/--no-merge",
        help="Hand over the merged model, which every engine loads; the adapter is kept beside it.",
    ),
]

EvalSteps = Annotated[int | None, typer.Option(help="Steps between evaluations.")]
SaveSteps = Annotated[int | None, typer.Option(help="Steps between checkpoints.")]
LoggingSteps = Annotated[int | None, typer.Option(help="Steps between rows of metrics.jsonl.")]
KeepBest = Annotated[
    bool | None,
    typer.Option(
        "--keep-best/--keep-last",
        help="Hand over the checkpoint with the lowest validation loss, where there are validation rows.",
    ),
]
Patience = Annotated[
    int | None,
    typer.Option(help="Stop early, after so many evaluations without a new best."),
]
NumCheckpoints = Annotated[int, typer.Option(min=2, help="Checkpoints kept at once.")]
KeepCheckpoints = Annotated[bool, typer.Option("--keep-checkpoints", help="Keep them when the run is complete.")]
ReportTo = Annotated[str, typer.Option(help="Where the trainer reports to besides: wandb, tensorboard, ...")]
PushToHub = Annotated[str | None, typer.Option(metavar="OWNER/NAME", help="Upload the model at the end.")]
Public = Annotated[bool, typer.Option("--public", help="A repository made for that is public.")]


@app.command()
def sft(
    data: Data,
    output: Output,
    model: Model = None,
    preset: Annotated[
        str | None, typer.Option(help="paper-7b-sft, small-lora, cpu.", show_default="the paper's values")
    ] = None,
    prompt: PromptOption = None,
    revision: Revision = None,
    learning_rate: LearningRate = None,
    epochs: Epochs = None,
    max_steps: MaxSteps = None,
    batch_size: BatchSize = None,
    device_batch_size: DeviceBatchSize = None,
    warmup_ratio: WarmupRatio = None,
    scheduler: Scheduler = None,
    weight_decay: WeightDecay = None,
    max_grad_norm: MaxGradNorm = None,
    seed: Seed = None,
    max_length: MaxLength = None,
    precision: PrecisionOption = None,
    gradient_checkpointing: Checkpointing = None,
    attention: Attention = None,
    group_by_length: GroupByLength = None,
    packing: Annotated[
        bool | None,
        typer.Option("--packing/--no-packing", help="Several rows in one sequence; a batch then counts sequences."),
    ] = None,
    padding_free: Annotated[
        bool | None,
        typer.Option("--padding-free/--no-padding-free", help="A batch as one sequence without padding."),
    ] = None,
    lora_rank: LoraRank = None,
    lora_alpha: LoraAlpha = None,
    lora_dropout: LoraDropout = None,
    lora_targets: LoraTargets = None,
    merge: Merge = None,
    eval_steps: EvalSteps = None,
    save_steps: SaveSteps = None,
    logging_steps: LoggingSteps = None,
    keep_best: KeepBest = None,
    patience: Patience = None,
    num_checkpoints: NumCheckpoints = 2,
    keep_checkpoints: KeepCheckpoints = False,
    report_to: ReportTo = "none",
    push_to_hub: PushToHub = None,
    public: Public = False,
) -> None:
    """Fine-tune a model on analyses (the cold start): loss on the analysis alone, its verdict and end included."""
    from rprm.training.presets import SFT_PRESETS, find_preset
    from rprm.training.sft import SFTSettings, train_sft

    chosen = find_preset(SFT_PRESETS, preset) if preset is not None else None
    settings = _settings(chosen.settings if chosen is not None else SFTSettings(), locals())
    with training_progress() as callbacks:
        result = train_sft(
            data,
            model=_model(model, chosen),
            output=output,
            settings=settings,
            prompt=prompt,
            revision=revision,
            options=_options(report_to, num_checkpoints, keep_checkpoints, push_to_hub, public),
            callbacks=callbacks,
        )
    _report(result)


@app.command()
def dpo(
    data: Data,
    output: Output,
    model: Model = None,
    preset: Annotated[
        str | None, typer.Option(help="paper-7b-dpo, small-lora, cpu.", show_default="the paper's values")
    ] = None,
    prompt: PromptOption = None,
    revision: Revision = None,
    beta: Annotated[float | None, typer.Option(help="How strongly the reference holds the model.")] = None,
    sft_weight: Annotated[
        float | None, typer.Option(help="Weight of an SFT loss on the chosen replies.  [default: 0]")
    ] = None,
    precompute_reference: Annotated[
        bool | None,
        typer.Option(
            "--precompute-reference/--no-precompute-reference",
            help="Compute the reference's log-probabilities once, before training: no second model in memory.",
        ),
    ] = None,
    learning_rate: LearningRate = None,
    epochs: Epochs = None,
    max_steps: MaxSteps = None,
    batch_size: BatchSize = None,
    device_batch_size: DeviceBatchSize = None,
    warmup_ratio: WarmupRatio = None,
    scheduler: Scheduler = None,
    weight_decay: WeightDecay = None,
    max_grad_norm: MaxGradNorm = None,
    seed: Seed = None,
    max_length: MaxLength = None,
    precision: PrecisionOption = None,
    gradient_checkpointing: Checkpointing = None,
    attention: Attention = None,
    group_by_length: GroupByLength = None,
    lora_rank: LoraRank = None,
    lora_alpha: LoraAlpha = None,
    lora_dropout: LoraDropout = None,
    lora_targets: LoraTargets = None,
    merge: Merge = None,
    eval_steps: EvalSteps = None,
    save_steps: SaveSteps = None,
    logging_steps: LoggingSteps = None,
    keep_best: KeepBest = None,
    patience: Patience = None,
    num_checkpoints: NumCheckpoints = 2,
    keep_checkpoints: KeepCheckpoints = False,
    report_to: ReportTo = "none",
    push_to_hub: PushToHub = None,
    public: Public = False,
) -> None:
    """Optimise a model on preference pairs: of two analyses of a step, the one whose verdict is right."""
    from rprm.training.dpo import DPOSettings, train_dpo
    from rprm.training.presets import DPO_PRESETS, find_preset

    chosen = find_preset(DPO_PRESETS, preset) if preset is not None else None
    settings = _settings(chosen.settings if chosen is not None else DPOSettings(), locals())
    with training_progress() as callbacks:
        result = train_dpo(
            data,
            model=_model(model, chosen),
            output=output,
            settings=settings,
            prompt=prompt,
            revision=revision,
            options=_options(report_to, num_checkpoints, keep_checkpoints, push_to_hub, public),
            callbacks=callbacks,
        )
    _report(result)


def _settings(settings: Settings, given: Mapping[str, Any]) -> Settings:
    """The settings of a preset, with the options that were given in their place."""
    from dataclasses import fields

    named = {field.name for field in fields(settings)}
    values = {"num_epochs" if name == "epochs" else name: value for name, value in given.items()}
    changed = {name: value for name, value in values.items() if name in named and value is not None}
    if "precision" in changed:
        changed["precision"] = changed["precision"].value
    if changed.get("lora_rank") == 0:
        changed["lora_rank"] = None
    return replace(settings, **changed)


def _model(model: str | None, preset: Preset[Any] | None) -> str:
    if model is not None:
        return model
    if preset is None or preset.model is None:
        raise typer.BadParameter("name the model to train with --model")
    return preset.model


def _options(
    report_to: str, num_checkpoints: int, keep_checkpoints: bool, push_to_hub: str | None, public: bool
) -> RunOptions:
    from rprm.training.stage import RunOptions

    return RunOptions(
        report_to=report_to,
        num_checkpoints=num_checkpoints,
        keep_checkpoints=keep_checkpoints,
        push_to_hub=push_to_hub,
        private=not public,
    )


@contextmanager
def training_progress() -> Iterator[TrainingCallbacks]:
    """Progress on standard error: a line that moves on a terminal, and the logged figures above it."""
    import os
    import sys
    import warnings

    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from rprm.training.metrics import TrainingCallbacks
    from rprm.training.processes import MainProcessFailed

    is_main = os.environ.get("RANK", "0") == "0"
    _quiet_libraries()
    console = Console(stderr=True, highlight=False, quiet=not is_main)
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("steps  {task.fields[figures]}"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not (is_main and console.is_terminal),
    )
    task = progress.add_task("starting", total=None, figures="")

    def stage(text: str) -> None:
        progress.update(task, description=text)
        if not console.is_terminal:
            console.print(text, style="dim", markup=False, soft_wrap=True)

    def step(done: int, total: int) -> None:
        progress.update(task, completed=done, total=total)

    def metrics(row: Mapping[str, Any]) -> None:
        shown = _shown(row)
        progress.update(task, figures=shown)
        if "eval_loss" in row or not console.is_terminal:
            console.print(f"step {row['step']}  {shown}", markup=False, soft_wrap=True)

    callbacks = TrainingCallbacks(
        on_stage=stage,
        on_note=lambda text: console.print(text, style="yellow", markup=False, soft_wrap=True),
        on_step=step,
        on_metrics=metrics,
    )
    try:
        with progress, warnings.catch_warnings():
            # What libraries say about one another's deprecations is nothing to act on here.
            warnings.simplefilter("ignore", FutureWarning)
            yield callbacks
    except MainProcessFailed:
        # The main process tells it.
        sys.exit(1)


#: Figures shown while training, in this order, and what they are called.
_FIGURES = {
    "loss": "loss",
    "eval_loss": "validation loss",
    "mean_token_accuracy": "token accuracy",
    "rewards/accuracies": "preferred",
    "eval_rewards/accuracies": "preferred",
    "learning_rate": "rate",
}


def _shown(row: Mapping[str, Any]) -> str:
    return "  ".join(
        f"{label} {row[name]:.3g}" for name, label in _FIGURES.items() if isinstance(row.get(name), int | float)
    )


def _quiet_libraries() -> None:
    """Loading bars and remarks of the libraries would stand in the middle of our own line."""
    try:
        import datasets
        import transformers
    except ImportError:
        # What is missing is told when training begins.
        return
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()


def _report(result: TrainingResult) -> None:
    """The result on standard output, from the main process."""
    import os

    if os.environ.get("RANK", "0") != "0":
        return
    summary = result.summary
    figures = [f"{summary['num_steps']:,} steps"]
    for name, label in (("loss", "loss"), ("eval_loss", "validation loss")):
        if summary.get(name) is not None:
            figures.append(f"{label} {summary[name]:.4g}")
    typer.echo(f"{result.model}: {', '.join(figures)}")
