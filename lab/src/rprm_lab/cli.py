"""`rprm lab`: a small world with true labels, to study process reward models in on a laptop."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rprm_lab.base_model import BaseCallbacks
    from rprm_lab.plan import Plan

app = typer.Typer(
    rich_markup_mode=None, no_args_is_help=True, help="The lab: a small world of word problems with true step labels."
)

Output = Annotated[Path, typer.Option("--output", "-o", help="Folder to write.")]
Json = Annotated[bool, typer.Option("--json", help="The counts as one JSON object on standard output.")]


@app.command()
def world(
    output: Output,
    num_train: Annotated[int, typer.Option("--steps", min=2, help="Labelled steps to train on.")] = 40_000,
    num_test: Annotated[
        int, typer.Option("--test", min=2, help="Solutions to measure on, in distribution and out of it each.")
    ] = 500,
    seed: Annotated[int, typer.Option(help="Of everything.")] = 0,
    wide: Annotated[
        bool,
        typer.Option("--wide", help="Train split with longer chains, larger numbers, more wordings; tests the same."),
    ] = False,
    json: Json = False,
) -> None:
    """Write the world: problems, solutions, labelled steps, and the truth that its teacher writes from.

    The files are in the formats of real sets: steps for `rprm data`, solutions for `rprm bench processbench`, problems
    for `rprm search --problems`.
    """
    from rprm_lab.world import WorldSettings, write_world

    _show(write_world(output, WorldSettings(num_train, num_test, seed, wide)), output, json)


@app.command()
def base(
    source: Annotated[Path, typer.Argument(metavar="WORLD", help="A folder of `rprm lab world`.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Run folder; a killed run resumes there. model/ is the result.")
    ],
    start: Annotated[
        Path | None, typer.Option("--from", help="Start from this base model's folder; its size stays.")
    ] = None,
    hidden_size: Annotated[int, typer.Option(min=32, help="Of the model.")] = 192,
    num_layers: Annotated[int, typer.Option("--layers", min=1, help="Of the model.")] = 4,
    max_steps: Annotated[int, typer.Option(min=1, help="Optimizer steps.")] = 3_000,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows of 512 tokens of each.")] = 16,
    learning_rate: Annotated[float, typer.Option(help="Peak learning rate, of Muon.")] = 8e-3,
    seed: Annotated[int, typer.Option(help="Of texts and first weights.")] = 0,
    compiled: Annotated[
        bool, typer.Option("--compile", help="Compile the model first: a quarter faster, takes a C++ compiler.")
    ] = False,
    workers: Annotated[int, typer.Option(min=0, help="Processes that write the texts: a GPU waits for one.")] = 0,
) -> None:
    """Pretrain the base model on the world's texts: worked arithmetic, solutions, solutions explained.

    It writes solutions, and so is the policy; judges are trained from it. The problems of the world's test splits are
    kept out of its texts.
    """
    from rprm.showing import one_line
    from rprm_lab.base_model import BaseSettings, train_base
    from rprm_lab.world import read_card

    settings = BaseSettings(
        hidden_size=hidden_size,
        num_layers=num_layers,
        num_heads=hidden_size // 32,
        intermediate_size=8 * hidden_size // 3 // 32 * 32,
        num_steps=max_steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        seed=seed,
    )
    with _training_progress() as callbacks:
        model = train_base(
            output,
            world=read_card(source),
            settings=settings,
            start=start,
            compiled=compiled,
            num_workers=workers,
            callbacks=callbacks,
        )
    print(one_line(str(model)))


@app.command()
def steps(
    source: Annotated[Path, typer.Argument(metavar="WORLD", help="A folder of `rprm lab world`.")],
    output: Output,
    count: Annotated[int, typer.Option(min=1, help="Labelled steps to take.")],
    skip: Annotated[int, typer.Option(min=0, help="Labelled steps to leave out first.")] = 0,
) -> None:
    """Some of a world's labelled steps for training, as a file of their own: OUTPUT/steps.jsonl."""
    from rprm.showing import one_line
    from rprm_lab.world import take_steps

    print(one_line(str(take_steps(source, output, skip=skip, count=count))))


@app.command()
def critiques(
    labelled: Annotated[Path, typer.Argument(metavar="STEPS", help="Labelled steps of a world's split train.")],
    output: Output,
    teacher: Annotated[str, typer.Option("--model", "-m", help="The teacher, lab:WORLD, and how it errs.")],
    number: Annotated[int, typer.Option("--num-critiques", "-n", min=1, help="Critiques of each label.")] = 6,
    seed: Annotated[int, typer.Option(min=0, help="Of the critiques.")] = 0,
) -> None:
    """The teacher's critiques of whole solutions, those that agree with the labels, for `rprm data cold-start`.

    OUTPUT has critiques.jsonl, prompt.toml to train with, and critic.toml for the critic trained on them (--prompt).
    """
    from rprm.engines import load_engine
    from rprm.errors import InputError
    from rprm.showing import one_line
    from rprm_lab.critiques import CRITIQUES, write_critiques
    from rprm_lab.engine import TeacherEngine

    if not isinstance(engine := load_engine(teacher), TeacherEngine):
        raise InputError(f"{teacher}: no teacher of a world; give lab:WORLD")
    agreeing = write_critiques(labelled, output, engine, num_critiques=number, seed=seed)
    print(one_line(f"{output / CRITIQUES}: {agreeing:,} critiques agree with their labels"))


@app.command()
def run(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the lab; a killed run resumes there.")],
    experiment: Annotated[
        list[str] | None,
        typer.Option("--experiment", "-e", help="data, rounds, scaling, teacher, types, guidance, ood, critic."),
    ] = None,
    size: Annotated[
        str,
        typer.Option(
            help="laptop; small: one seed of less of everything; tiny: everything once, for a look at how it goes."
        ),
    ] = "laptop",
    seeds: Annotated[int | None, typer.Option(min=1, help="Repetitions.")] = None,
    from_scratch: Annotated[
        bool, typer.Option("--from-scratch", help="Train base model and policy too, instead of taking the lab's.")
    ] = False,
    rows: Annotated[int | None, typer.Option(min=1, help="Rows that an engine decodes at once.")] = None,
    jobs: Annotated[int | None, typer.Option("--jobs", "-j", min=1, help="Stages at a time; one a core.")] = None,
    dry: Annotated[bool, typer.Option("--dry-run", help="Print the commands, and run nothing.")] = False,
) -> None:
    """Run R-PRM's experiments in a small world, stage by stage; then `rprm lab report`.

    Every stage is a command of `rprm` in a folder of its own: `--dry-run` prints them. --seeds and --experiment
    can be widened later: what is there is not run again.
    """
    from dataclasses import replace
    from typing import cast, get_args

    from rprm.errors import InputError
    from rprm_lab.plan import EXPERIMENTS, SIZES, Experiment, make_plan

    if size not in SIZES:
        raise InputError(f"no size {size!r}; there are {', '.join(SIZES)}")
    if unknown := set(experiment or ()) - set(EXPERIMENTS):
        raise InputError(f"no experiment {', '.join(sorted(unknown))}; there are {', '.join(get_args(Experiment))}")
    settings = replace(SIZES[size], from_scratch=from_scratch)
    if seeds is not None:
        settings = replace(settings, num_seeds=seeds)
    if rows is not None:
        settings = replace(settings, max_rows=rows)
    plan = make_plan(output, settings, cast("list[Experiment] | None", experiment) or EXPERIMENTS)
    if dry:
        import shlex

        from rprm.showing import message

        for task in plan.tasks.values():
            print(message(shlex.join(["rprm", *task.arguments, "-o", plan.path(task.folder)])))
        return
    _run(plan, jobs)


@app.command()
def report(
    source: Annotated[Path, typer.Argument(metavar="LAB", help="A folder of `rprm lab run`, finished or not.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The page to write.  [default: LAB/report.html]")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="All figures as one JSON object, and no page.")] = False,
) -> None:
    """What the experiments came to, the paper's numbers beside them: a table, and a page with the figures."""
    from rprm.runs import write_atomically
    from rprm.showing import one_line
    from rprm.terminal import Terminal
    from rprm_lab.findings import find
    from rprm_lab.page import claims_table, page
    from rprm_lab.running import read_settings

    settings = read_settings(source)
    findings = find(source, settings)
    if json:
        from json import dumps

        print(dumps(findings.as_dict()))
        return
    output = output or source / "report.html"
    write_atomically(output, page(findings, settings))
    console = Terminal()
    console.print(claims_table(findings, settings))
    console.print(one_line(f"written to {output}"))


@app.command()
def pack(
    source: Annotated[Path, typer.Argument(metavar="LAB", help="A folder of `rprm lab run`, finished or not.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The file to write, .tar.xz.")],
) -> None:
    """What a lab's report is made of in one small file: no models, no texts of analyses.

    Unpacked (`tar -xJf`), it can be reported and resumed.
    """
    from rprm.showing import one_line
    from rprm_lab.packing import pack as write

    print(one_line(f"{output}: {write(source, output):,} bytes"))


@contextmanager
def _training_progress() -> Iterator[BaseCallbacks]:
    """A line on standard error where that is a terminal; the logged losses where it is none."""
    import warnings

    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from rprm.terminal import Terminal
    from rprm_lab.base_model import BaseCallbacks

    console = Terminal(stderr=True)
    columns = (BarColumn(bar_width=24), MofNCompleteColumn(), TextColumn("steps  {task.description}", markup=False))
    progress = Progress(
        *columns, TimeRemainingColumn(), console=console, transient=True, disable=not console.is_terminal
    )
    task = progress.add_task("", total=None)

    def show(row: Mapping[str, Any]) -> None:
        loss = f"loss {row['loss']:.3g}" if "loss" in row else ""
        progress.update(task, description=loss)
        if not console.is_terminal:
            console.print(f"step {row['step']}  {loss}")

    with progress, warnings.catch_warnings():
        # What libraries say about one another's deprecations is nothing to act on here.
        warnings.simplefilter("ignore", FutureWarning)
        yield BaseCallbacks(
            on_note=lambda text: console.print(text, style="yellow", soft_wrap=True),
            on_step=lambda done, total: progress.update(task, completed=done, total=total),
            on_metrics=show,
        )


def _run(plan: Plan, jobs: int | None) -> None:
    import os

    from rprm.showing import one_line
    from rprm.terminal import Terminal
    from rprm_lab.running import Progress, run_plan

    console = Terminal(stderr=True)

    def tell(progress: Progress) -> None:
        if progress.seconds is not None:
            place = f"{progress.num_done}/{progress.num_tasks}"
            console.print(f"{place:>8}  {progress.seconds:7.0f} s  {progress.task.folder}")

    run_plan(plan, num_jobs=jobs or os.cpu_count() or 1, on_progress=tell)
    console.print(one_line(f"all {len(plan.tasks)} stages are done: rprm lab report {plan.lab}"))


def _show(card: dict[str, Any], output: Path, json: bool) -> None:
    if json:
        from json import dumps

        print(dumps(card))
        return
    from rich.table import Table

    from rprm.showing import one_line
    from rprm.terminal import Terminal

    table = Table(box=None, padding=(0, 1))
    for name in ("split", "problems", "labelled steps", "of them wrong"):
        table.add_column(name, justify="left" if name == "split" else "right")
    for split, counts in card["splits"].items():
        wrong = counts["steps"] - counts["errors"].get("none", 0)
        table.add_row(split, f"{counts['problems']:,}", f"{counts['steps']:,}", f"{wrong:,}")
    console = Terminal()
    console.print(table)
    console.print(one_line(f"written to {output}"))
