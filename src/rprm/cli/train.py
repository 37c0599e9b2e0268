"""`rprm train`: fine-tune a model on analyses, on preferences between them, and a classifier on labelled steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rprm.cli.options import given, with_options
from rprm.training.settings import (
    DPO_PRESETS,
    PRESET_MODELS,
    SFT_PRESETS,
    ClassifierTraining,
    DPOSettings,
    RunOptions,
    Settings,
    SFTSettings,
    find_preset,
)

if TYPE_CHECKING:
    from rprm.training.lifecycle import TrainingResult
    from rprm.training.metrics import TrainingCallbacks

app = typer.Typer(
    rich_markup_mode=None,
    no_args_is_help=True,
    help="Train: cold start (sft), preference optimisation (dpo), a discriminative PRM (classifier).",
)

Output = Annotated[
    Path, typer.Option("--output", "-o", help="Run folder; a killed run resumes there. model/ is the result.")
]
Revision = Annotated[str | None, typer.Option(help="Revision of a hub model.")]


@dataclass(frozen=True)
class LanguageOptions:
    """What sft and dpo train on, from what, and to where."""

    data: Annotated[
        str,
        typer.Argument(metavar="DATA", help="Folder as `rprm data` writes it, or a JSON Lines file (with --prompt)."),
    ]
    output: Output
    model: Annotated[str | None, typer.Option("--model", "-m", help="Folder or hub id of the model to train.")] = None
    prompt: Annotated[
        str | None, typer.Option(help="Template that the rows were rendered with.", show_default="the data's own")
    ] = None
    revision: Revision = None

    def train(
        self,
        train: Callable[..., TrainingResult],
        context: typer.Context,
        settings: Settings,
        presets: Mapping[str, Settings],
        preset: str | None,
        options: RunOptions,
    ) -> None:
        """Train by the settings of a preset, with the options that were given in their place, and report."""
        model = self.model or PRESET_MODELS.get(preset or "")
        if model is None:
            raise typer.BadParameter("name the model to train with --model")
        if preset is not None:
            settings = replace(find_preset(presets, preset), **given(context, settings))
        further = {"prompt": self.prompt, "revision": self.revision, "options": options}
        with training_progress() as callbacks:
            _report(
                train(self.data, model=model, output=self.output, settings=settings, callbacks=callbacks, **further)
            )


@app.command()
@with_options
def sft(
    context: typer.Context,
    language: LanguageOptions,
    preset: Annotated[
        str | None, typer.Option(help=f"{', '.join(SFT_PRESETS)}.", show_default="the paper's values")
    ] = None,
    *,
    settings: SFTSettings,
    options: RunOptions,
) -> None:
    """Fine-tune a model on analyses (the cold start): loss on the analysis alone, its verdict and end included."""
    from rprm.training.sft import train_sft

    language.train(train_sft, context, settings, SFT_PRESETS, preset, options)


@app.command()
@with_options
def dpo(
    context: typer.Context,
    language: LanguageOptions,
    preset: Annotated[
        str | None, typer.Option(help=f"{', '.join(DPO_PRESETS)}.", show_default="the paper's values")
    ] = None,
    *,
    settings: DPOSettings,
    options: RunOptions,
) -> None:
    """Optimise a model on preference pairs: of two analyses of a step, the one whose verdict is right."""
    from rprm.training.dpo import train_dpo

    language.train(train_dpo, context, settings, DPO_PRESETS, preset, options)


@app.command()
@with_options
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
    revision: Revision = None,
    *,
    settings: ClassifierTraining,
    options: RunOptions,
) -> None:
    """Train a discriminative PRM on labelled steps: a two-way head at the end of each step, as in Qwen2.5-Math-PRM.

    OUTPUT/model is loaded by `--model classifier:OUTPUT/model`. Exit code 3 says that some rows were rejected.
    """
    from rprm.cli import EXIT_REJECTED
    from rprm.training.classifier import train_classifier

    with training_progress() as callbacks:
        result = train_classifier(
            steps,
            model=model,
            output=output,
            settings=settings,
            validation=validation,
            revision=revision,
            options=options,
            callbacks=callbacks,
        )
    _report(result)
    for found in result.summary["validation"]:
        shown = [f"{name} {found[name]:.4f}" for name in ("wrong", "correct", "f1") if found[name] is not None]
        typer.echo(f"validation steps at threshold {found['threshold']:.4f}: {', '.join(shown)}")
    if result.summary["num_rejected"]:
        raise typer.Exit(EXIT_REJECTED)


def _report(result: TrainingResult) -> None:
    """The result on standard output, from the main process."""
    import os

    if os.environ.get("RANK", "0") != "0":
        return
    figures = [f"{result.num_steps:,} steps"]
    for name, label in (("loss", "loss"), ("eval_loss", "validation loss")):
        if result.summary.get(name) is not None:
            figures.append(f"{label} {result.summary[name]:.4g}")
    typer.echo(f"{result.model}: {', '.join(figures)}")


#: Figures shown while training, in this order, and what they are called.
_FIGURES = {
    "loss": "loss",
    "eval_loss": "validation loss",
    "mean_token_accuracy": "token accuracy",
    "rewards/accuracies": "preferred",
    "eval_rewards/accuracies": "preferred",
    "learning_rate": "rate",
}


@contextmanager
def training_progress() -> Iterator[TrainingCallbacks]:
    """Progress on standard error: a line that moves on a terminal, and the logged figures above it."""
    import os
    import sys
    import warnings

    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from rprm.training.devices import MainProcessFailed
    from rprm.training.metrics import TrainingCallbacks

    _quiet_libraries()
    console = Console(stderr=True, highlight=False, quiet=os.environ.get("RANK", "0") != "0")
    is_terminal = console.is_terminal and not console.quiet
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("steps  {task.fields[figures]}"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not is_terminal,
    )
    task = progress.add_task("starting", total=None, figures="")

    def say(text: str, style: str = "") -> None:
        console.print(text, style=style, markup=False, soft_wrap=True)

    def stage(text: str) -> None:
        progress.update(task, description=text)
        if not is_terminal:
            say(text, "dim")

    def metrics(row: Mapping[str, Any]) -> None:
        named = ((label, row.get(name)) for name, label in _FIGURES.items())
        shown = "  ".join(f"{label} {value:.3g}" for label, value in named if isinstance(value, int | float))
        progress.update(task, figures=shown)
        if "eval_loss" in row or not is_terminal:
            say(f"step {row['step']}  {shown}")

    callbacks = TrainingCallbacks(
        on_stage=stage,
        on_note=lambda text: say(text, "yellow"),
        on_step=lambda done, total: progress.update(task, completed=done, total=total),
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
