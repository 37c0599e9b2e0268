"""`rprm data steps`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from rprm.data.gathering import GatheredSteps


class Format(StrEnum):
    auto = "auto"
    prm800k = "prm800k"
    stepwise = "stepwise"
    solutions = "solutions"
    math_shepherd = "math-shepherd"
    gsm8k = "gsm8k"
    steps = "steps"


class NeutralName(StrEnum):
    correct = "correct"
    wrong = "wrong"
    drop = "drop"


def steps(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE...", help="Files (.jsonl, .json, .gz), runs of this command, or hub data sets (OWNER/NAME)."
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Run folder; written anew by the same command.")],
    format: Annotated[
        Format, typer.Option("--format", help="Of the sources; auto tells each row's by its fields.")
    ] = Format.auto,
    neutral: Annotated[
        NeutralName, typer.Option("--neutral", help="PRM800K: what a rating of 0 counts as.")
    ] = NeutralName.correct,
    keep_quality_control: Annotated[
        bool, typer.Option("--keep-quality-control", help="PRM800K: use solutions that checked or screened labelers.")
    ] = False,
    keep_unfinished: Annotated[
        bool, typer.Option("--keep-unfinished", help="PRM800K: use solutions given up, or of a broken problem.")
    ] = False,
    after_error: Annotated[
        bool, typer.Option("--after-error", help="stepwise, math-shepherd: go on after the first wrong step.")
    ] = False,
    wrong_share: Annotated[
        float, typer.Option("--wrong-share", min=0.0, max=1.0, help="gsm8k: share of wrong steps to aim at.")
    ] = 0.5,
    seed: Annotated[int, typer.Option("--seed", help="gsm8k: of the edits that make steps wrong.")] = 0,
    exclude_benchmark: Annotated[
        list[str] | None,
        typer.Option(
            "--exclude-benchmark",
            "-x",
            metavar="NAME|PATH|NAME=PATH",
            help="Leave out its problems: processbench, prmbench, math500, ...; a file; a folder of files. Repeatable.",
        ),
    ] = None,
    ngram: Annotated[int, typer.Option("--ngram", min=1, help="Tokens in an n-gram that two problems share.")] = 13,
    overlap: Annotated[
        float, typer.Option("--overlap", min=0.01, max=1.0, help="Share of shared n-grams that leaves a problem out.")
    ] = 0.5,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="Read the first N steps alone, before any is left out.")
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Stop at the first record that cannot be used.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the summary as one JSON object.")] = False,
) -> None:
    """Gather labelled steps: one row for each step, without repetitions and without problems of benchmarks.

    FOLDER gets results.jsonl (the steps), removed.jsonl (problems left out, with the benchmark's item), rejected.jsonl
    and summary.json. Exit code 3 says that some rows were rejected.
    """
    from json import dumps

    from rich.console import Console

    from rprm.cli import EXIT_REJECTED
    from rprm.data.contamination import read_benchmarks
    from rprm.data.gathering import gather_steps
    from rprm.data.steps import StepOptions, steps_source

    progress = Console(stderr=True, highlight=False)
    with progress.status("reading the benchmarks") as status:
        found = [steps_source(source) for source in sources]
        benchmarks = [part for name in exclude_benchmark or [] for part in read_benchmarks(name)]
        status.update("reading labelled steps")
        gathered = gather_steps(
            found,
            output,
            format=format.value,
            options=StepOptions(
                neutral=neutral.value,
                keep_quality_control=keep_quality_control,
                keep_unfinished=keep_unfinished,
                after_error=after_error,
                wrong_share=wrong_share,
                seed=seed,
            ),
            benchmarks=benchmarks,
            ngram=ngram,
            overlap=overlap,
            limit=limit,
            strict=strict,
            on_row=lambda num_rows, num_steps: status.update(f"{num_rows:,} rows, {num_steps:,} labelled steps"),
        )
    if json:
        print(dumps(gathered.as_dict(), ensure_ascii=False))
    else:
        console = Console(highlight=False)
        for table in _tables(gathered):
            console.print(table)
        formats = ", ".join(f"{count:,} {name}" for name, count in gathered.formats.items()) or "none"
        console.print(f"rows read: {formats}", soft_wrap=True)
        console.print(
            f"{gathered.num_steps:,} labelled steps of {gathered.num_problems:,} problems ({gathered.num_solutions:,} "
            f"paths of steps) in {output / 'results.jsonl'}",
            soft_wrap=True,
        )
    if gathered.num_rejected:
        raise typer.Exit(EXIT_REJECTED)


def _tables(gathered: GatheredSteps) -> list[Table]:
    """What was kept, by place in the solution; what was left out, and why."""
    kept = _table("Labelled steps", ("place", "correct", "wrong", "wrong share"))
    for place, counts in gathered.positions.items():
        kept.add_row(f"step {place + 1}", *_counts(counts["correct"], counts["wrong"]))
    kept.add_section()
    kept.add_row("all", *_counts(gathered.num_correct, gathered.num_wrong), style="bold")
    left_out = _table("Left out", ("why", "number", "problems"))
    left_out.add_row("the same step stood before", f"{gathered.num_duplicates:,}", "")
    left_out.add_row("the same step is called correct and wrong", f"{gathered.num_conflicting:,}", "")
    for name, counts in gathered.removed.items():
        if counts["problems"]:
            left_out.add_row(f"its problem is in {name}", f"{counts['steps']:,}", f"{counts['problems']:,}")
    clean = [name for name, counts in gathered.removed.items() if not counts["problems"]]
    if clean:
        left_out.caption = f"no problem is in {', '.join(clean)}"
    left_out.add_section()
    for reason, count in gathered.skipped.items():
        left_out.add_row(reason, f"{count:,}", "")
    if gathered.num_rejected:
        left_out.add_row("rows rejected (rejected.jsonl)", f"{gathered.num_rejected:,}", "", style="yellow")
    return [kept, left_out]


def _counts(correct: int, wrong: int) -> tuple[str, str, str]:
    return f"{correct:,}", f"{wrong:,}", f"{wrong / (correct + wrong):.1%}" if correct + wrong else "-"


def _table(title: str, columns: tuple[str, ...]) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(title=title, title_justify="left", caption_justify="left", box=box.SIMPLE_HEAD)
    for name in columns:
        table.add_column(name, justify="left" if name == columns[0] else "right")
    return table
