"""`rprm data`: labelled steps in, training rows out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rprm.cli.judge import Seed, Strict, refuse_nothing_judged
from rprm.cli.steps import steps

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from rprm.jobs import Callbacks
    from rprm.prompts import PromptTemplate

app = typer.Typer(
    rich_markup_mode=None,
    no_args_is_help=True,
    help="Training data: labelled steps, analyses, cold-start rows, pairs; published rows.",
)
app.command()(steps)

Steps = Annotated[
    str, typer.Argument(metavar="STEPS", help="A run folder of `rprm data steps`, or a file of labelled steps.")
]
Analyses = Annotated[
    Path, typer.Argument(metavar="ANALYSES", help="A run folder of `rprm data analyses`, or a file of its rows.")
]
Output = Annotated[Path, typer.Option("--output", "-o", help="Folder to write.")]
TrainedPrompt = Annotated[
    str | None,
    typer.Option(
        "--prompt",
        help="The template that the student reads: a file, a built-in name, or a model folder.  "
        "[default: the one that the analyses were written with]",
    ),
]
ValidationShare = Annotated[
    float, typer.Option("--validation", min=0.0, max=0.99, help="Share of the problems to hold out for validation.")
]
Balance = Annotated[bool, typer.Option("--balance/--no-balance", help="As many Yes as No, by thinning out.")]
DataSeed = Annotated[int, typer.Option("--seed", help="Of the split and of what is thinned out.")]
Json = Annotated[bool, typer.Option("--json", help="The counts as one JSON object on standard output.")]


@app.command()
def analyses(
    source: Steps,
    output: Output,
    model: Annotated[str, typer.Option("--model", "-m", help="Teacher or student, as for `rprm judge`.")],
    preset: Annotated[str | None, typer.Option(help="paper: 4 analyses of up to 8,192 tokens.")] = None,
    num_analyses: Annotated[
        int | None, typer.Option("-n", "--num-analyses", min=1, help="Analyses of each step.", show_default="3")
    ] = None,
    prompt: Annotated[
        str | None,
        typer.Option("--prompt", help="Template: a file or a built-in name.  [default: the model's own, else teacher]"),
    ] = None,
    temperature: Annotated[float | None, typer.Option(help="Of the analyses.", show_default="0.4")] = None,
    top_p: Annotated[float | None, typer.Option(help="Of the analyses.", show_default="0.95")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Longest analysis, in tokens.", show_default="2048")] = None,
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

    from rprm.cli import EXIT_REJECTED
    from rprm.cli.progress import run_behind_progress
    from rprm.data.analyses import AnalysisTotals, sample_analyses
    from rprm.data.presets import ANALYSES, preset_options
    from rprm.data.steps import read_labelled_steps, steps_source
    from rprm.models import template_for
    from rprm.prompts import load_template
    from rprm.rewarders import load_judge

    given = {"num_analyses": num_analyses, "temperature": temperature, "top_p": top_p, "max_tokens": max_tokens}
    judge = load_judge(
        model,
        **preset_options(ANALYSES, preset, given),
        stopping="none",
        prompt=load_template(prompt) if prompt else template_for(model, "teacher"),
        seed=seed,
        force_verdict=False,
    )
    opened = steps_source(source)
    info = opened.inspect()
    rows = read_labelled_steps(opened)

    def work(callbacks: Callbacks) -> Awaitable[AnalysisTotals]:
        return sample_analyses(
            judge,
            rows if limit is None else islice(rows, limit),
            source=info,
            output=output,
            settings={} if limit is None else {"limit": limit},
            strict=strict,
            callbacks=callbacks,
        )

    num_rows = limit if limit is not None else info.num_rows
    totals = run_behind_progress(work, judge.aclose, num_rows, noun="steps")
    _show(totals.as_dict(), output, json)
    refuse_nothing_judged(totals)
    if totals.num_rejected:
        raise typer.Exit(EXIT_REJECTED)


@app.command()
def cold_start(
    source: Analyses,
    output: Output,
    prompt: TrainedPrompt = None,
    per_step: Annotated[int, typer.Option(min=1, help="Most analyses kept of one step.")] = 1,
    balance: Balance = True,
    validation_share: ValidationShare = 0.05,
    seed: DataSeed = 0,
    json: Json = False,
) -> None:
    """Rows for `rprm train sft`: the analyses whose verdict agrees with the label and stands once, at the end."""
    from rprm.data.analyses import open_analyses
    from rprm.data.cold_start import write_cold_start

    opened = open_analyses(source)
    summary = write_cold_start(
        opened,
        output,
        template=_trained_template(prompt, opened.template),
        per_step=per_step,
        balance=balance,
        validation_share=validation_share,
        seed=seed,
    )
    _show_dataset(summary, output, json)


@app.command()
def pairs(
    source: Analyses,
    output: Output,
    prompt: TrainedPrompt = None,
    preset: Annotated[
        str | None,
        typer.Option(help="published: two pairs a step, of steps of which more than a third of the analyses agree."),
    ] = None,
    per_step: Annotated[int | None, typer.Option(min=1, help="Most pairs of one step.", show_default="1")] = None,
    min_accuracy: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            max=1.0,
            help="Leave out steps of which fewer analyses agree with the label.",
            show_default="0",
        ),
    ] = None,
    max_accuracy: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Leave out steps of which more analyses agree with the label.")
    ] = 1.0,
    max_length_ratio: Annotated[
        float | None, typer.Option(min=1.0, help="Most times that one analysis of a pair is as long as the other.")
    ] = None,
    min_repeats: Annotated[
        int, typer.Option(min=1, help="Choose an analysis when so many samples of the step read like it.")
    ] = 1,
    balance: Balance = True,
    validation_share: ValidationShare = 0.05,
    seed: DataSeed = 0,
    json: Json = False,
) -> None:
    """Rows for `rprm train dpo`: of one step, an analysis that agrees with the label against one that does not."""
    from rprm.data.analyses import open_analyses
    from rprm.data.preferences import write_pairs
    from rprm.data.presets import PAIRS, preset_options

    opened = open_analyses(source)
    summary = write_pairs(
        opened,
        output,
        template=_trained_template(prompt, opened.template),
        **preset_options(PAIRS, preset, {"per_step": per_step, "min_accuracy": min_accuracy}),
        max_accuracy=max_accuracy,
        max_length_ratio=max_length_ratio,
        min_repeats=min_repeats,
        balance=balance,
        validation_share=validation_share,
        seed=seed,
    )
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
            "--prompt",
            help="The template that every row must follow: a file or a model folder.",
            show_default="derived from the rows",
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Rows for `rprm train` out of published ones: labels from their verdicts, the template from the rows themselves.

    The parts train and validation stay as they were published. Rows that do not fit are rejected, each with its reason.
    """
    from rprm.cli import EXIT_REJECTED
    from rprm.data.published import open_published, write_published
    from rprm.prompts import load_template

    template = load_template(prompt) if prompt is not None else None
    summary = write_published(open_published(source), output, template=template)
    _show_dataset(summary, output, json)
    if summary["rejected"]:
        raise typer.Exit(EXIT_REJECTED)


def _trained_template(prompt: str | None, written: PromptTemplate | None) -> PromptTemplate:
    from rprm.errors import PromptError
    from rprm.prompts import load_template

    if prompt is not None:
        return load_template(prompt)
    if written is None:
        raise PromptError("a plain file of analyses does not tell its template: give --prompt")
    return written


def _show(counts: dict[str, Any], output: Path, json: bool) -> None:
    from rich.console import Console

    if json:
        import json as json_module

        print(json_module.dumps(counts, ensure_ascii=False))
        return
    console = Console(highlight=False)
    console.print(_table(counts))
    console.print(f"written to {output}", style="dim", markup=False)


def _show_dataset(summary: dict[str, Any], output: Path, json: bool) -> None:
    if json:
        _show(summary, output, True)
        return
    flat: dict[str, Any] = {}
    for part, counts in summary["parts"].items():
        flat[f"{part} rows ({counts['yes']:,} Yes, {counts['no']:,} No; {counts['problems']:,} problems)"] = counts[
            "rows"
        ]
    flat |= summary["counts"]
    flat |= {f"dropped: {reason}": count for reason, count in summary["dropped"].items() if count}
    if summary["rejected"]:
        flat["input rows rejected"] = summary["rejected"]
    _show(flat, output, False)


def _table(counts: dict[str, Any]) -> Any:
    from rich.table import Table

    table = Table(box=None, padding=(0, 1), show_header=False)
    table.add_column(justify="right", style="bold")
    table.add_column()
    for name, count in counts.items():
        table.add_row(f"{count:,}", name.removeprefix("num_").replace("_", " "))
    return table
