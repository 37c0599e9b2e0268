"""`rprm train`: fine-tune a model on analyses, on preferences between them, by rewards of its own, and a classifier on
labelled steps; and `rprm evolve`: rounds of the second or the third."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from rprm.cli.options import Json, given, with_options
from rprm.errors import InputError
from rprm.training.estimate import Hardware
from rprm.training.settings import (
    ClassifierTraining,
    DPOSettings,
    GRPOSettings,
    RoundSettings,
    RunOptions,
    SFTSettings,
)

if TYPE_CHECKING:
    from rprm.evolve import RoundResult
    from rprm.training.estimate import Estimate
    from rprm.training.lifecycle import TrainingResult

app = typer.Typer(
    rich_markup_mode=None,
    no_args_is_help=True,
    help="Train: cold start (sft), preference optimisation (dpo), rewards (grpo), a discriminative PRM (classifier).",
)


@dataclass(frozen=True, kw_only=True)
class _TrainedOptions:
    """What is trained, and where."""

    output: Annotated[
        Path | None, "--output", "-o", "Run folder; a killed run resumes there. model/ is the result."
    ] = None
    model: Annotated[str | None, "--model", "-m", "Model to train: folder or hub id; a preset may name one."] = None
    revision: Annotated[str | None, "Revision of a hub model."] = None
    estimate: Annotated[bool, "--estimate", "Tell tokens, memory and hours; nothing is trained or written."] = False


@dataclass(frozen=True, kw_only=True)
class PlaceOptions(Hardware, _TrainedOptions):
    """What is trained, and where; or what that would cost."""

    json: Annotated[bool, "--json", "With --estimate: one JSON object."] = False


@dataclass(frozen=True, kw_only=True)
class LanguageOptions(PlaceOptions):
    """What sft and dpo have in common."""

    data: Annotated[str, typer.Argument(metavar="DATA", help="Folder of `rprm data`, or JSON Lines (with --prompt).")]
    prompt: Annotated[str | None, "Template that the rows were rendered with.  [default: the data's own]"] = None
    preset: Annotated[str | None, "paper-7b-sft (-dpo), small-lora, cpu.  [default: the paper's values]"] = None

    def train(self, train: Callable[..., TrainingResult], context: typer.Context, settings: Any, options: Any) -> None:
        settings, place = _preset(self.preset, self, context, settings)
        _train(train, self.data, place, settings=settings, options=options, prompt=self.prompt)


def _preset(name: str | None, place: PlaceOptions, context: typer.Context, settings: Any) -> tuple[Any, PlaceOptions]:
    """The settings of a preset, with the options that were given in their place, and its model."""
    from rprm.training.settings import PRESET_MODELS, PRESETS

    if name is None:
        return settings, place
    if name not in (presets := PRESETS[type(settings)]):
        raise InputError(f"no preset {name!r}; there are {', '.join(presets)}")
    known = replace(place, model=place.model or PRESET_MODELS.get(name))
    return replace(presets[name], **given(context, settings)), known


@app.command()
@with_options
def sft(context: typer.Context, language: LanguageOptions, *, settings: SFTSettings, options: RunOptions) -> None:
    """Fine-tune a model on analyses (the cold start): loss on the analysis alone, its verdict and end included."""
    from rprm.training.sft import train_sft

    language.train(train_sft, context, settings, options)


@app.command()
@with_options
def dpo(context: typer.Context, language: LanguageOptions, *, settings: DPOSettings, options: RunOptions) -> None:
    """Optimise a model on preference pairs: of two analyses of a step, the one whose verdict is right."""
    from rprm.training.dpo import train_dpo

    language.train(train_dpo, context, settings, options)


@app.command()
@with_options
def grpo(
    context: typer.Context,
    data: Annotated[
        str, typer.Argument(metavar="DATA", help="Run folder of `rprm data steps`, or a file of steps or solutions.")
    ],
    place: PlaceOptions,
    validation: Annotated[
        str | None, "The same of other problems, by whose F1 the best is kept.  [default: a share of the problems]"
    ] = None,
    judge: Annotated[
        Literal["step", "critic"] | None, "What is trained: a judge of steps, or a critic.  [default: by the rows]"
    ] = None,
    prompt: Annotated[str | None, "Its template.  [default: the model's own; of a critic the built-in one]"] = None,
    preset: Annotated[str | None, "fapo-4b, tips-4b, small-lora, cpu."] = None,
    *,
    settings: GRPOSettings,
    options: RunOptions,
) -> None:
    """Train a judge of steps or a critic of whole solutions by rewards of its own replies (GRPO).

    Rows are labelled steps, or solutions with a label: the index of the first wrong step, -1 for none, or true or false
    for the whole. OUTPUT/curve.svg shows rewards and validation F1. Exit code 3 says that some rows were rejected.
    """
    from rprm.cli import EXIT_REJECTED
    from rprm.training.grpo import train_grpo

    settings, place = _preset(preset, place, context, settings)
    how: dict[str, Any] = {"validation": validation, "judge": judge, "prompt": prompt}
    summary = _train(
        train_grpo,
        data,
        place,
        settings=settings,
        options=options,
        on_row=partial(_draw, place.output or Path()),
        **how,
    ).summary
    skipped, total = (sum(summary[name] for name in names) for names in (_SKIPPED, ("num_groups",)))
    typer.echo(f"groups skipped, for all their replies were worth the same: {skipped:,} of {total:,}")
    if summary["num_rejected"]:
        raise typer.Exit(EXIT_REJECTED)


#: Groups that taught nothing.
_SKIPPED = ("num_all_right", "num_all_wrong", "num_all_equal")


def _draw(folder: Path, row: Mapping[str, Any]) -> None:
    """Draw the curves of a training anew, at each evaluation."""
    from rprm.files import read_json_lines, write_atomically
    from rprm.report.charts import STYLE
    from rprm.report.curves import training_chart

    if "eval_f1" in row:
        rows = list(read_json_lines(folder / "metrics.jsonl"))
        write_atomically(folder / "curve.svg", training_chart(rows).svg(STYLE))


@app.command()
@with_options
def classifier(
    steps: Annotated[str, typer.Argument(metavar="STEPS", help="Run folder of `rprm data steps`, file, or hub set.")],
    place: PlaceOptions,
    validation: Annotated[
        str | None, "Steps of other problems, to choose the threshold on.  [default: a share of the problems]"
    ] = None,
    *,
    settings: ClassifierTraining,
    options: RunOptions,
) -> None:
    """Train a discriminative PRM on labelled steps: a two-way head at the end of each step, as in Qwen2.5-Math-PRM.

    The model is any causal language model, or a classifier of the qwen layout; OUTPUT/model is loaded by
    `--model classifier:OUTPUT/model`. Exit code 3 says that some rows were rejected.
    """
    from rprm.cli import EXIT_REJECTED
    from rprm.training.baseline import train_classifier
    from rprm.training.handover import shown

    summary = _train(train_classifier, steps, place, settings=settings, options=options, validation=validation).summary
    for found in summary["validation"]:
        typer.echo(": ".join(shown(found)))
    if summary["num_rejected"]:
        raise typer.Exit(EXIT_REJECTED)


#: Figures shown while training, in this order, and what they are called.
_FIGURES = {
    "loss": "loss", "eval_loss": "validation loss", "eval_f1": "validation F1", "mean_token_accuracy": "token accuracy",
    "rewards/accuracies": "preferred", "eval_rewards/accuracies": "preferred", "reward": "reward", "right": "right",
    "learning_rate": "rate",
}  # fmt: skip


def _train(
    train: Callable[..., TrainingResult], data: str, place: PlaceOptions, *,
    on_row: Callable[[Mapping[str, Any]], None] = lambda row: None, **arguments: Any,
) -> TrainingResult:  # fmt: skip
    """Train behind a progress line, and report the result. Of several processes the main one alone speaks, and `on_row`
    is told each row of the metrics."""
    import warnings

    from rich.progress import MofNCompleteColumn, Progress, TextColumn

    from rprm.showing import one_line
    from rprm.terminal import Terminal
    from rprm.training.lifecycle import MainProcessFailed, TrainingCallbacks

    if place.model is None:
        raise typer.BadParameter("name the model to train with --model")
    if not place.estimate:
        if place.output is None:
            raise typer.BadParameter("name the run folder with --output")
        if place.json or any(getattr(place, one.name) != one.default for one in fields(Hardware)):
            raise typer.BadParameter(
                "--gpus, --gpu, --utilization, --price and --json are of --estimate: give that too"
            )
    # What is missing is told when training begins.
    with suppress(ImportError):
        import datasets
        import transformers

        # Loading bars and remarks of the libraries would stand in the middle of our own line.
        datasets.disable_progress_bars()
        transformers.utils.logging.disable_progress_bar()
        transformers.utils.logging.set_verbosity_error()
    if place.estimate:
        _estimate(data, place, **arguments)
        raise typer.Exit
    console = Terminal(stderr=True, quiet=os.environ.get("RANK", "0") != "0")
    is_terminal = console.is_terminal and not console.quiet
    _, *others = Progress.get_default_columns()
    columns = TextColumn("{task.description}", markup=False), *others, MofNCompleteColumn()
    progress = Progress(*columns, console=console, transient=True, disable=not is_terminal)
    task = progress.add_task("starting", total=None)
    say = partial(console.print, soft_wrap=True)

    def stage(text: str) -> None:
        progress.update(task, description=text)
        if not is_terminal:
            say(text, style="dim")

    def metrics(row: Mapping[str, Any]) -> None:
        named = ((label, row.get(name)) for name, label in _FIGURES.items())
        shown = "  ".join(f"{label} {value:.3g}" for label, value in named if isinstance(value, int | float))
        progress.update(task, description=f"training  {shown}")
        if {"eval_loss", "eval_f1"} & row.keys() or not is_terminal:
            say(f"step {row['step']}  {shown}")
        on_row(row)

    def step(done: int, total: int) -> None:
        progress.update(task, completed=done, total=total)

    callbacks = TrainingCallbacks(stage, lambda text: say(one_line(text), style="yellow"), step, metrics)
    arguments |= {"model": place.model, "output": place.output, "revision": place.revision, "callbacks": callbacks}
    try:
        # What libraries say about one another's deprecations is nothing to act on here.
        with progress, warnings.catch_warnings(action="ignore", category=FutureWarning):
            result = train(data, **arguments)
    except MainProcessFailed:
        # The main process tells it.
        sys.exit(1)
    if not console.quiet:
        found = {_FIGURES[name]: result.summary.get(name) for name in ("loss", "eval_loss", "reward", "eval_f1")}
        figures = (f", {label} {value:.4g}" for label, value in found.items() if value is not None)
        typer.echo(one_line(f"{result.model}: {result.num_steps:,} steps{''.join(figures)}"))
    return result


def _estimate(data: str, place: PlaceOptions, *, settings: Any, options: RunOptions, **arguments: Any) -> None:
    """Print what a training would cost."""
    import json
    import warnings
    from dataclasses import asdict

    from rprm.showing import one_line
    from rprm.terminal import Terminal
    from rprm.training.estimate import estimate_training

    with warnings.catch_warnings(action="ignore", category=FutureWarning):  # as in training
        found = estimate_training(data, place, settings, model=place.model or "", revision=place.revision, **arguments)
    if place.json:
        print(json.dumps(asdict(found), ensure_ascii=False))
        return
    console = Terminal()
    for line in _summary(found):
        console.print(one_line(line), soft_wrap=True)
    for table in _tables(found):
        console.print(table)
    if found.num_gpus > 1:
        launch = f"accelerate launch --config_file FILE --num_processes {found.num_gpus} -m rprm train {found.kind} ..."
        console.print(launch, soft_wrap=True)
    for note in found.notes:
        console.print(one_line(note), style="yellow", soft_wrap=True)


def _summary(found: Estimate) -> list[str]:
    network, work = found.network, found.compute
    trained = f", {network.num_trained:,} of them trained" if network.is_lora else ""
    around = f" (± {found.tokens_error:.1%}, from a sample)" if found.tokens_error else ""
    rows = ", ".join(f"{number:,} {part}" for part, number in found.num_rows.items())
    total = work.training + work.evaluation + work.sampling
    shares = {"evaluations": work.evaluation, "sampling": work.sampling}
    of_which = "".join(f", {value / total:.0%} in {name}" for name, value in shares.items() if value)
    padding = 1 - work.num_tokens / work.num_computed
    return [
        f"model  {found.model}: {network.num_weights:,} weights{trained}",
        f"rows   {rows}; the longest has {found.longest:,} tokens",
        f"work   {work.num_steps:,} steps, {work.num_tokens:,.0f} tokens{around}",
        f"       {total:.3g} operations{of_which}; {padding:.0%} of what is computed is padding",
    ]


def _tables(found: Estimate) -> Iterator[Any]:
    from rprm.report.measures import framed
    from rprm.training.estimate import GIB, GPUS, RESERVE

    number = f"{found.num_gpus} GPU{'s' if found.num_gpus > 1 else ''}"
    table = framed(f"GiB on each of {number}", ["", *found.memory])
    held = [vars(memory) for memory in found.memory.values()]
    for part in held[0]:
        if any(one[part] for one in held):
            table.add_row(part.replace("_", " "), *(f"{one[part] / GIB:.1f}" for one in held))
    table.add_row("reserve", *[f"{RESERVE:.1f}"] * len(held))
    table.add_row("total", *(f"{one.total / GIB + RESERVE:.1f}" for one in found.memory.values()), style="bold")
    yield table
    columns = ["GPU", "GiB", "needed", "time", *(["cost"] if found.choices[0].cost is not None else []), "fits with"]
    table = framed(f"{number} at {found.utilization:.0%} of the peak", columns, numbers=columns[1:-1])
    for choice in found.choices:
        cells = [choice.gpu, f"{GPUS[choice.gpu].memory:.0f}", f"{choice.gib:.1f}"]
        if choice.setup is None:
            table.add_row(*cells, *[""] * (len(columns) - 4), "nothing here", style="dim")
        else:
            file = "one process" if choice.setup == "single" else f"recipes/accelerate/{choice.setup}.yaml"
            cost = [] if choice.cost is None else [f"{choice.cost:,.2f}"]
            table.add_row(*cells, _time(choice.hours), *cost, file)
    yield table


def _time(hours: float) -> str:
    return f"{hours:,.1f} h" if hours >= 1 else f"{hours * 60:.0f} min" if hours >= 1 / 60 else f"{hours * 3600:.0f} s"


@with_options
def evolve(
    steps: Annotated[str, typer.Argument(metavar="STEPS", help="Run folder of `rprm data steps`, or labelled steps.")],
    model: Annotated[str, "--model", "-m", "Folder or hub id of the model to begin with."],
    output: Annotated[Path, "--output", "-o", "Folder of the rounds; a killed run resumes there."],
    *,
    settings: RoundSettings,
    launcher: Annotated[str, 'Starts the training processes, as in "accelerate launch --config_file FILE".'] = "",
    prompt: Annotated[str | None, "Template, where the model's folder carries none."] = None,
    train_options: Annotated[
        list[str] | None, typer.Argument(metavar="[-- TRAIN OPTIONS]", help="Passed to `rprm train dpo`, or grpo.")
    ] = None,
    json: Json = False,
) -> None:
    """Rounds of sample, pair, DPO, measure, or with --method grpo of GRPO, measure; keep the better model.

    The problems to measure on are the ones that `rprm data cold-start` holds out with the same share and seed. Options
    after -- go to `rprm train dpo`, or grpo, as in: rprm evolve STEPS -m MODEL -o DIR -- --preset small-lora --beta 0.1
    """
    import shlex

    from rprm.evolve import evolve as run_rounds
    from rprm.showing import one_line
    from rprm.terminal import Terminal

    console, errors = Terminal(), Terminal(stderr=True)
    results = run_rounds(
        steps, model, output, replace(settings, train_options=tuple(train_options or ())),
        launcher=shlex.split(launcher), prompt=prompt,
        on_stage=lambda number, stage: errors.print(f"round {number}: {stage}", style="dim"),
        on_round=lambda result: print(result.model_dump_json(), flush=True) if json else None,
    )  # fmt: skip
    if not json:
        console.print(_table(results))
        console.print(one_line(f"best model: {results[-1].best}"))


def _table(results: list[RoundResult]) -> Any:
    from rprm.benchmarks import Figure
    from rprm.report.measures import figure_text, framed

    columns = "round", "pairs", "wrong", "correct", "F1", "change", "formed", ""
    measured = "On the validation steps: accuracies on wrong and on correct ones, their harmonic mean (F1) and its"
    notes = [measured, "change against the best model before, share of well-formed analyses"]
    table = framed("Rounds", columns, notes, numbers=columns[:-1])
    for result in results:
        change = Figure(result.difference, result.difference_low, result.difference_high)
        figures = (f"{number:.1f}" for number in (result.wrong_acc, result.correct_acc, result.f1))
        pairs = "" if result.num_pairs is None else f"{result.num_pairs:,}"
        formed = "" if result.wellformed is None else f"{result.wellformed:.1f}"
        fate = "start" if result.round == 0 else "kept" if result.kept else "dropped"
        shown = figure_text(change, sign="+") if result.round else ""
        table.add_row(str(result.round), pairs, *figures, shown, formed, fate, style="" if result.kept else "dim")
    return table
