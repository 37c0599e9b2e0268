"""`rprm judge`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from enum import StrEnum
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol

import typer

from rprm.cli.options import FirstErrorOptions, Output, with_options

if TYPE_CHECKING:
    from rprm.jobs import Callbacks
    from rprm.reading import Rejected, Source, SourceInfo
    from rprm.records import Solution, SolutionReward
    from rprm.rewarders.base import StepRewarder
    from rprm.rewarders.batch import Totals


class RewardsName(StrEnum):
    lean = "lean"
    full = "full"


Model = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        help="A known model (`rprm models`), embedded, smollm2, transformers:PATH_OR_ID, vllm:PATH_OR_ID, "
        "openai:MODEL@URL, scripted:; or a discriminative PRM, classifier:PATH_OR_ID; options as ?name=value.",
    ),
]
# Until every command takes the dataclasses of `options`.
NumAnalyses = Annotated[
    int | None, typer.Option("-k", "--num-analyses", help="Most analyses a step gets (the paper's K).  [default: 10]")
]
ForceVerdict = Annotated[
    bool | None,
    typer.Option(
        "--force-verdict/--no-force-verdict",
        help="Where an analysis ends without a verdict, ask for one.  [default: no]",
    ),
]
PromptOption = Annotated[
    str | None, typer.Option("--prompt", help="Prompt template: a file, or a built-in name (`rprm prompts list`).")
]
Temperature = Annotated[float | None, typer.Option(help="Of the analyses.  [default: 0.95]")]
TopP = Annotated[float | None, typer.Option(help="Of the analyses.  [default: 0.95]")]
MaxTokens = Annotated[int | None, typer.Option(help="Longest analysis, in tokens.  [default: 4096]")]
Seed = Annotated[int, typer.Option(help="Seed of the whole run.")]
Strict = Annotated[bool, typer.Option("--strict", help="Stop at the first row that cannot be used.")]
Limit = Annotated[int | None, typer.Option(min=1, help="Judge the first N rows alone.")]


@with_options
def judge(
    input: Annotated[
        str,
        typer.Argument(
            metavar="INPUT",
            help="JSON Lines or JSON (also .gz) with {id?, problem, steps[] | solution, label?}; - for standard input; "
            "or a hub data set, OWNER/NAME?split=SPLIT.",
        ),
    ],
    model: Model = "embedded",
    output: Output = None,
    *,
    options: FirstErrorOptions,
    rewards: Annotated[
        RewardsName,
        typer.Option(
            "--rewards",
            help="lean: what the first error needs, and no more. full: all analyses of every step, for ranking, "
            "reinforcement learning and other thresholds.",
        ),
    ] = RewardsName.lean,
    limit: Limit = None,
    strict: Strict = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON object a solution, on standard output.")] = False,
    analyses: Annotated[bool, typer.Option("--analyses", help="Show the analyses too.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print the summary alone.")] = False,
) -> None:
    """Judge solutions step by step: a reward for each step, and the first wrong step.

    The defaults are the paper's and its scripts'; two models have lighter ones of their own: embedded (400 tokens), and
    smollm2 (-k 4, 128 tokens, a verdict is asked for where it reaches none). Exit code 3: some rows were rejected.
    """
    from rich.console import Console

    from rprm.cli import EXIT_REJECTED
    from rprm.cli.embedded import EmbeddedScope
    from rprm.errors import InputError
    from rprm.reading import read_solutions
    from rprm.report.solutions import render_solution, render_totals

    rewarder = options.rewarder(model, in_full=rewards == RewardsName.full)
    console = Console(highlight=False)
    scope = EmbeddedScope(model)
    told: set[str] = set()

    def show(solution: Solution, result: SolutionReward) -> None:
        note = scope.note(solution)
        if json:
            print(result.model_dump_json(), flush=True)
        elif not quiet:
            console.print(
                render_solution(solution, result, threshold=rewarder.threshold, analyses=analyses, note=note, told=told)
            )

    with opened_source(input) as (source, info):
        rows = read_solutions(source, name=input)
        totals = run_judge(
            rewarder,
            rows if limit is None else islice(rows, limit),
            info.num_rows if limit is None else limit,
            show,
            source=info,
            output=output,
            settings={} if limit is None else {"limit": limit},
            strict=strict,
        )
    if not json:
        console.print(render_totals(totals, output))
    scope.tell()
    refuse_nothing_judged(totals)
    if totals.num_rejected:
        raise typer.Exit(EXIT_REJECTED)
    if not totals.num_solutions:
        raise InputError(f"{input}: holds no solution")


class Judged(Protocol):
    """The totals of a run that judges steps."""

    @property
    def nothing_judged(self) -> bool: ...

    @property
    def failure(self) -> str | None: ...


def refuse_nothing_judged(totals: Judged) -> None:
    """A run that gave no step a reward has failed.

    Raises:
        RunError: none has; the message has the reason of the first.
    """
    from rprm.errors import RunError

    if totals.nothing_judged:
        raise RunError(f"no step of any solution could be judged; the first: {totals.failure}")


@contextmanager
def opened_source(name: str) -> Iterator[tuple[Source, SourceInfo]]:
    """A source and what identifies it. Standard input is kept in a file meanwhile: it is read twice."""
    import shutil
    import sys
    import tempfile

    from rprm.reading import Source

    if name != "-":
        source = Source(name)
        yield source, source.inspect()
        return
    with tempfile.TemporaryDirectory(prefix="rprm-") as folder:
        path = Path(folder) / "standard-input"
        with path.open("wb") as copy:
            shutil.copyfileobj(sys.stdin.buffer, copy)
        source = Source(str(path))
        yield source, replace(source.inspect(), name=name)


def run_judge(
    rewarder: StepRewarder,
    rows: Iterable[Solution | Rejected],
    num_rows: int | None,
    on_result: Callable[[Solution, SolutionReward], object],
    *,
    noun: str = "solutions",
    **options: Any,
) -> Totals:
    """Judge rows behind a progress line on standard error, with the options of `judge_source`."""
    from rprm.cli.progress import run_behind_progress
    from rprm.rewarders.batch import judge_source

    def work(callbacks: Callbacks) -> Awaitable[Totals]:
        return judge_source(rewarder, rows, callbacks=callbacks, **options)

    return run_behind_progress(work, rewarder.aclose, num_rows, on_result, noun=noun)
