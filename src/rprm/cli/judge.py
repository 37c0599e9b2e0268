"""`rprm judge`."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from enum import StrEnum
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rprm.cli.options import FirstErrorOptions, Model, Output, Strict, with_options
from rprm.errors import InputError, RunError

if TYPE_CHECKING:
    from rprm.reading import Source, SourceInfo
    from rprm.records import Solution, SolutionReward


class RewardsName(StrEnum):
    lean = "lean"
    full = "full"


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
        "lean: what the first error needs, and no more. full: all analyses of every step, for ranking, "
        "reinforcement learning and other thresholds.",
    ] = RewardsName.lean,
    limit: Annotated[int | None, typer.Option(min=1, help="Judge the first N rows alone.")] = None,
    strict: Strict = False,
    json: Annotated[bool, "--json", "One JSON object a solution, on standard output."] = False,
    analyses: Annotated[bool, "--analyses", "Show the analyses too."] = False,
    quiet: Annotated[bool, "--quiet", "-q", "Print the summary alone."] = False,
) -> None:
    """Judge solutions step by step: a reward for each step, and the first wrong step.

    The defaults are the paper's and its scripts'; two models have lighter ones of their own: embedded (400 tokens), and
    smollm2 (-k 4, 128 tokens, a verdict is asked for where it reaches none). Exit code 3: some rows were rejected.
    """
    from rich.console import Console

    from rprm.cli import EXIT_REJECTED
    from rprm.cli.embedded import EmbeddedScope
    from rprm.cli.progress import run_behind_progress
    from rprm.reading import read_solutions
    from rprm.report.solutions import render_solution, render_totals
    from rprm.rewarders.base import judge_source

    rewarder = options.rewarder(model, in_full=rewards == RewardsName.full)
    console = Console(highlight=False)
    scope = EmbeddedScope(model)
    told: set[str] = set()

    def show(solution: Solution, result: SolutionReward) -> None:
        note = scope.note(solution)
        if json:
            print(result.model_dump_json(), flush=True)
        elif not quiet:
            threshold = rewarder.threshold
            console.print(
                render_solution(solution, result, threshold=threshold, analyses=analyses, note=note, told=told)
            )

    with opened_source(input) as (source, info):
        rows = islice(read_solutions(source, name=input), limit)
        settings = {} if limit is None else {"limit": limit}
        totals = run_behind_progress(
            lambda callbacks: judge_source(
                rewarder, rows, source=info, output=output, settings=settings, strict=strict, callbacks=callbacks
            ),
            rewarder.aclose, limit or info.num_rows, show, noun="solutions",
        )  # fmt: skip
    if not json:
        console.print(render_totals(totals, output))
    scope.tell()
    refuse_nothing_judged(totals)
    if totals.num_rejected:
        raise typer.Exit(EXIT_REJECTED)
    if not totals.num_solutions:
        raise InputError(f"{input}: holds no solution")


def refuse_nothing_judged(totals: Any) -> None:
    """
    Raises:
        RunError: by its totals a run gave no step a reward; the message has the reason of the first.
    """
    if totals.nothing_judged:
        raise RunError(f"no step of any solution could be judged; the first: {totals.failure}")


@contextmanager
def opened_source(name: str) -> Iterator[tuple[Source, SourceInfo]]:
    """A source and what identifies it. Standard input is kept in a file meanwhile: it is read twice."""
    from rprm.reading import Source

    with tempfile.TemporaryDirectory(prefix="rprm-") as folder:
        path = Path(folder) / "standard-input"
        if name == "-":
            with path.open("wb") as copy:
                shutil.copyfileobj(sys.stdin.buffer, copy)
        source = Source(str(path) if name == "-" else name)
        yield source, replace(source.inspect(), name=name)
