"""`rprm data`: labelled steps in, training rows out."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rprm.cli.judge import refuse_nothing_judged
from rprm.cli.options import Seed, Strict, given, with_options
from rprm.data.options import (
    NGRAM,
    OVERLAP,
    PAIR_PRESETS,
    SAMPLING_PRESETS,
    ColdStartOptions,
    Format,
    PairOptions,
    SamplingOptions,
    StepOptions,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Mapping

    from rprm.data.gathering import GatheredSteps
    from rprm.jobs import Callbacks
    from rprm.prompts import PromptTemplate

app = typer.Typer(
    rich_markup_mode=None,
    no_args_is_help=True,
    help="Training data: labelled steps, analyses, cold-start rows, pairs; published rows.",
)

Analyses = Annotated[
    Path, typer.Argument(metavar="ANALYSES", help="A run folder of `rprm data analyses`, or a file of its rows.")
]
Output = Annotated[Path, typer.Option("--output", "-o", help="Folder to write; written anew by the same command.")]
TrainedPrompt = Annotated[
    str | None,
    typer.Option(
        "--prompt",
        help="The template that the student reads: a file, a built-in name, or a model folder.  "
        "[default: the one that the analyses were written with]",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="The counts as one JSON object on standard output.")]


@app.command()
@with_options
def steps(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE...", help="Files (.jsonl, .json, .gz), runs of this command, or hub data sets (OWNER/NAME)."
        ),
    ],
    output: Output,
    *,
    format: Annotated[
        Format, typer.Option("--format", help="Of the sources; auto tells each row's by its fields.")
    ] = Format.auto,
    options: StepOptions,
    exclude_benchmark: Annotated[
        list[str] | None,
        typer.Option(
            "--exclude-benchmark",
            "-x",
            metavar="NAME|PATH|NAME=PATH",
            help="Leave out its problems: processbench, prmbench, math500, ...; a file; a folder of files. Repeatable.",
        ),
    ] = None,
    ngram: Annotated[int, typer.Option(min=1, help="Tokens in an n-gram that two problems share.")] = NGRAM,
    overlap: Annotated[
        float, typer.Option(min=0.01, max=1.0, help="Share of shared n-grams that leaves a problem out.")
    ] = OVERLAP,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Read the first N steps alone, before any is left out.")
    ] = None,
    strict: Strict = False,
    json: Json = False,
) -> None:
    """Gather labelled steps: one row for each step, without repetitions and without problems of benchmarks.

    FOLDER gets results.jsonl (the steps), removed.jsonl (problems left out, with the benchmark's item), rejected.jsonl
    and summary.json. Exit code 3 says that some rows were rejected.
    """
    from rich.console import Console

    from rprm.data.contamination import read_benchmarks
    from rprm.data.gathering import gather_steps
    from rprm.data.steps import steps_source

    with Console(stderr=True, highlight=False).status("reading the benchmarks") as status:
        found = [steps_source(source) for source in sources]
        benchmarks = [part for name in exclude_benchmark or [] for part in read_benchmarks(name)]
        status.update("reading labelled steps")
        gathered = gather_steps(
            found,
            output,
            format=format.value,
            options=options,
            benchmarks=benchmarks,
            ngram=ngram,
            overlap=overlap,
            limit=limit,
            strict=strict,
            on_row=lambda num_rows, num_steps: status.update(f"{num_rows:,} rows, {num_steps:,} labelled steps"),
        )
    if json:
        _print_json(gathered.as_dict())
    else:
        _show_steps(gathered, output)
    _exit(gathered.num_rejected)


@app.command()
@with_options
def analyses(
    context: typer.Context,
    source: Annotated[
        str, typer.Argument(metavar="STEPS", help="A run folder of `rprm data steps`, or a file of labelled steps.")
    ],
    output: Output,
    model: Annotated[str, typer.Option("--model", "-m", help="Teacher or student, as for `rprm judge`.")],
    *,
    preset: Annotated[str | None, typer.Option(help="paper: 4 analyses of up to 8,192 tokens.")] = None,
    options: SamplingOptions,
    prompt: Annotated[
        str | None, typer.Option(help="Template: a file or a built-in name.  [default: the model's own, else teacher]")
    ] = None,
    seed: Seed = 0,
    limit: Annotated[int | None, typer.Option(min=1, help="The first N steps alone.")] = None,
    strict: Strict = False,
    json: Json = False,
) -> None:
    """Let a model write analyses of labelled steps. Killed, it goes on from where it was.

    --preset paper has the paper's settings for the teacher. For preference pairs, let the student write more of them at
    the temperature of judging: -n 8 --temperature 0.95.
    """
    from itertools import islice

    from rprm.cli.progress import run_behind_progress
    from rprm.data.analyses import AnalysisTotals, sample_analyses
    from rprm.data.steps import read_labelled_steps, steps_source
    from rprm.models import template_for
    from rprm.prompts import load_template
    from rprm.rewarders import load_judge

    judge = load_judge(
        model,
        **asdict(_preset(SAMPLING_PRESETS, preset, given(context, options))),
        stopping="none",
        prompt=load_template(prompt) if prompt else template_for(model, "teacher"),
        seed=seed,
        force_verdict=False,
    )
    opened = steps_source(source)
    info = opened.inspect()

    def work(callbacks: Callbacks) -> Awaitable[AnalysisTotals]:
        return sample_analyses(
            judge,
            islice(read_labelled_steps(opened), limit),
            source=info,
            output=output,
            settings={} if limit is None else {"limit": limit},
            strict=strict,
            callbacks=callbacks,
        )

    totals = run_behind_progress(work, judge.aclose, limit if limit is not None else info.num_rows, noun="steps")
    _show(totals.as_dict(), output, json)
    refuse_nothing_judged(totals)
    _exit(totals.num_rejected)


@app.command()
@with_options
def cold_start(
    source: Analyses, output: Output, *, prompt: TrainedPrompt = None, options: ColdStartOptions, json: Json = False
) -> None:
    """Rows for `rprm train sft`: the analyses whose verdict agrees with the label and stands once, at the end."""
    from rprm.data.analyses import open_analyses
    from rprm.data.cold_start import write_cold_start

    opened = open_analyses(source)
    summary = write_cold_start(opened, output, _trained_template(prompt, opened.template), options)
    _show_dataset(summary, output, json)


@app.command()
@with_options
def pairs(
    context: typer.Context,
    source: Analyses,
    output: Output,
    *,
    prompt: TrainedPrompt = None,
    preset: Annotated[
        str | None,
        typer.Option(help="published: two pairs a step, of steps of which more than a third of the analyses agree."),
    ] = None,
    options: PairOptions,
    json: Json = False,
) -> None:
    """Rows for `rprm train dpo`: of one step, an analysis that agrees with the label against one that does not."""
    from rprm.data.analyses import open_analyses
    from rprm.data.preferences import write_pairs

    opened = open_analyses(source)
    options = _preset(PAIR_PRESETS, preset, given(context, options))
    summary = write_pairs(opened, output, _trained_template(prompt, opened.template), options)
    _show_dataset(summary, output, json)


@app.command("import")
def import_(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="Hub data set (kevinpro/R-PRM?data_dir=sft, or =dpo), a folder in the same layout, or a file of rows.",
        ),
    ],
    output: Output,
    prompt: Annotated[
        str | None,
        typer.Option(
            help="The template that every row must follow: a file or a model folder.",
            show_default="derived from the rows",
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Rows for `rprm train` out of published ones: labels from their verdicts, the template from the rows themselves.

    The parts train and validation stay as they were published. Rows that do not fit are rejected, each with its reason.
    """
    from rprm.data.published import open_published, write_published
    from rprm.prompts import load_template

    template = load_template(prompt) if prompt is not None else None
    summary = write_published(open_published(source), output, template=template)
    _show_dataset(summary, output, json)
    _exit(summary["rejected"])


def _preset(presets: Mapping[str, Any], name: str | None, named: Mapping[str, Any]) -> Any:
    """The options of a preset, with those that were named on the command line in their place."""
    from rprm.errors import InputError

    if name is not None and name not in presets:
        raise InputError(f"no preset {name!r}; there are {', '.join(presets)}")
    return replace(presets[name or "default"], **named)


def _trained_template(prompt: str | None, written: PromptTemplate | None) -> PromptTemplate:
    from rprm.errors import PromptError
    from rprm.prompts import load_template

    if prompt is not None:
        return load_template(prompt)
    if written is None:
        raise PromptError("a plain file of analyses does not tell its template: give --prompt")
    return written


def _exit(num_rejected: int) -> None:
    from rprm.cli import EXIT_REJECTED

    if num_rejected:
        raise typer.Exit(EXIT_REJECTED)


def _print_json(counts: Mapping[str, Any]) -> None:
    from json import dumps

    print(dumps(counts, ensure_ascii=False))


def _show(counts: Mapping[str, Any], output: Path, json: bool) -> None:
    from rich.console import Console
    from rich.table import Table

    if json:
        _print_json(counts)
        return
    table = Table(box=None, padding=(0, 1), show_header=False)
    table.add_column(justify="right", style="bold")
    table.add_column()
    for name, count in counts.items():
        table.add_row(f"{count:,}", name.removeprefix("num_").replace("_", " "))
    console = Console(highlight=False)
    console.print(table)
    console.print(f"written to {output}", style="dim", markup=False)


def _show_dataset(summary: Mapping[str, Any], output: Path, json: bool) -> None:
    if json:
        _print_json(summary)
        return
    flat: dict[str, Any] = {}
    for part, counts in summary["parts"].items():
        has = f"{counts['yes']:,} Yes, {counts['no']:,} No; {counts['problems']:,} problems"
        flat[f"{part} rows ({has})"] = counts["rows"]
    flat |= summary["counts"]
    flat |= {f"dropped: {reason}": count for reason, count in summary["dropped"].items() if count}
    if summary["rejected"]:
        flat["input rows rejected"] = summary["rejected"]
    _show(flat, output, False)


def _show_steps(gathered: GatheredSteps, output: Path) -> None:
    """What was kept, by place in the solution; what was left out, and why."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    def table(title: str, first: str, *numbers: str) -> Table:
        made = Table(title=title, title_justify="left", caption_justify="left", box=box.SIMPLE_HEAD)
        made.add_column(first)
        for name in numbers:
            made.add_column(name, justify="right")
        return made

    def counts(correct: int, wrong: int) -> tuple[str, str, str]:
        return f"{correct:,}", f"{wrong:,}", f"{wrong / (correct + wrong):.1%}" if correct + wrong else "-"

    kept = table("Labelled steps", "place", "correct", "wrong", "wrong share")
    for place, labels in gathered.positions.items():
        kept.add_row(f"step {place + 1}", *counts(labels["correct"], labels["wrong"]))
    kept.add_section()
    kept.add_row("all", *counts(gathered.num_correct, gathered.num_wrong), style="bold")
    left_out = table("Left out", "why", "number", "problems")
    left_out.add_row("the same step stood before", f"{gathered.num_duplicates:,}", "")
    left_out.add_row("the same step is called correct and wrong", f"{gathered.num_conflicting:,}", "")
    for name, removed in gathered.removed.items():
        if removed["problems"]:
            left_out.add_row(f"its problem is in {name}", f"{removed['steps']:,}", f"{removed['problems']:,}")
    if clean := [name for name, removed in gathered.removed.items() if not removed["problems"]]:
        left_out.caption = f"no problem is in {', '.join(clean)}"
    left_out.add_section()
    for reason, count in gathered.skipped.items():
        left_out.add_row(reason, f"{count:,}", "")
    if gathered.num_rejected:
        left_out.add_row("rows rejected (rejected.jsonl)", f"{gathered.num_rejected:,}", "", style="yellow")
    console = Console(highlight=False)
    console.print(kept, left_out, sep="")
    formats = ", ".join(f"{count:,} {name}" for name, count in gathered.formats.items()) or "none"
    console.print(f"rows read: {formats}", soft_wrap=True)
    console.print(
        f"{gathered.num_steps:,} labelled steps of {gathered.num_problems:,} problems ({gathered.num_solutions:,} "
        f"paths of steps) in {output / 'results.jsonl'}",
        soft_wrap=True,
    )
