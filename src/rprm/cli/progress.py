"""The progress line of a judge, on standard error."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from rprm.judging import OnResult, Watcher

if TYPE_CHECKING:
    from rprm.judge import Judge
    from rprm.reading import Rejected
    from rprm.records import Analysis, Solution, SolutionReward


@contextmanager
def progress_line(judge: Judge, num_solutions: int | None, on_result: OnResult) -> Iterator[Watcher]:
    """Solutions, steps, tokens a second and time left, on a terminal; nothing where standard error is none.

    Args:
        judge: its `on_analysis` is taken for the count of tokens.
        num_solutions: total, None where it is not known.
        on_result: called for each result; what it prints stands above the line.
    """
    console = Console(stderr=True, highlight=False)
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("solutions  {task.fields[steps]} steps  {task.fields[speed]}"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
        # Results go to standard output: through the line when that is this terminal too, past it when it is a file.
        redirect_stdout=sys.stdout.isatty(),
    )
    task = progress.add_task("loading the model", total=num_solutions, steps=0, speed="")
    num_steps = num_tokens = num_before = 0

    def analysed(analysis: Analysis) -> None:
        nonlocal num_tokens
        if num_tokens == 0:
            # Time begins with the first analysis: loading the model says nothing about the pace.
            progress.reset(task, description="judging", completed=num_before)
        num_tokens += analysis.num_tokens
        elapsed = progress.tasks[0].elapsed or 0.0
        progress.update(task, speed=f"{num_tokens / elapsed:,.0f} tokens/s" if elapsed > 0 else "")

    def judged(solution: Solution, result: SolutionReward) -> None:
        nonlocal num_steps
        num_steps += len(result.steps)
        progress.update(task, advance=1, steps=num_steps)
        on_result(solution, result)

    def rejected(row: Rejected) -> None:
        console.print(f"set aside: {row.file}, line {row.line}: {row.reason}", style="yellow", markup=False)

    def resumed(num_solutions: int) -> None:
        nonlocal num_before
        num_before = num_solutions
        if num_solutions:
            console.print(f"going on: {num_solutions} solutions were judged before", style="dim")

    judge.on_analysis = analysed
    with progress:
        yield Watcher(on_result=judged, on_rejected=rejected, on_resumed=resumed)
