"""`rprm train classifier`: the rival, a discriminative PRM trained on the same labelled steps."""

from __future__ import annotations

from typing import Annotated

import typer

from rprm.cli.train import (
    Attention,
    BatchSize,
    Checkpointing,
    DeviceBatchSize,
    Epochs,
    EvalSteps,
    GroupByLength,
    KeepBest,
    KeepCheckpoints,
    LearningRate,
    LoggingSteps,
    LoraAlpha,
    LoraDropout,
    LoraRank,
    LoraTargets,
    MaxGradNorm,
    MaxSteps,
    NumCheckpoints,
    Output,
    Patience,
    PrecisionOption,
    Public,
    PushToHub,
    ReportTo,
    Revision,
    SaveSteps,
    Scheduler,
    Seed,
    WarmupRatio,
    WeightDecay,
    _options,
    _report,
    _settings,
    training_progress,
)


def classifier(
    steps: Annotated[
        str,
        typer.Argument(
            metavar="STEPS",
            help="Labelled steps: run folder of `rprm data steps`, a JSON Lines file, or a hub set.",
        ),
    ],
    output: Output,
    model: Annotated[
        str,
        typer.Option("--model", "-m", help="Folder or hub id of any causal language model, or of a qwen classifier."),
    ],
    validation: Annotated[
        str | None,
        typer.Option(
            metavar="STEPS",
            help="Labelled steps to evaluate and to choose the threshold on; their problems are not trained on.",
            show_default="a share of the problems",
        ),
    ] = None,
    validation_share: Annotated[
        float | None,
        typer.Option(help="Share of the problems that is held out.  [default: 0.05]"),
    ] = None,
    split_seed: Annotated[int | None, typer.Option(help="Holds out other problems.", show_default="0")] = None,
    balance: Annotated[
        bool | None, typer.Option("--balance/--no-balance", help="Weight both classes alike, whatever their numbers.")
    ] = None,
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
    max_length: Annotated[
        int | None,
        typer.Option(
            help="Most tokens up to a step. Steps beyond are left out and counted; above 5% is an error.",
            show_default="2048",
        ),
    ] = None,
    precision: PrecisionOption = None,
    gradient_checkpointing: Checkpointing = None,
    attention: Attention = None,
    group_by_length: GroupByLength = None,
    lora_rank: LoraRank = None,
    lora_alpha: LoraAlpha = None,
    lora_dropout: LoraDropout = None,
    lora_targets: LoraTargets = None,
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
    """Train a discriminative PRM on labelled steps: a two-way head at the end of each step, as in Qwen2.5-Math-PRM.

    OUTPUT/model is loaded by `--model classifier:OUTPUT/model`. Exit code 3 says that some rows were rejected.
    """
    from rprm.cli import EXIT_REJECTED
    from rprm.training.classifier import ClassifierTraining, train_classifier

    settings = _settings(ClassifierTraining(), locals())
    with training_progress() as callbacks:
        result = train_classifier(
            steps,
            model=model,
            output=output,
            settings=settings,
            validation=validation,
            revision=revision,
            options=_options(report_to, num_checkpoints, keep_checkpoints, push_to_hub, public),
            callbacks=callbacks,
        )
    _report(result)
    for found in result.summary["validation"]:
        shown = [f"{name} {found[name]:.4f}" for name in ("wrong", "correct", "f1") if found[name] is not None]
        typer.echo(f"validation steps at threshold {found['threshold']:.4f}: {', '.join(shown)}")
    if result.summary["num_rejected"]:
        raise typer.Exit(EXIT_REJECTED)
