"""The progress line of a judge, on standard error."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from rprm.judging import Watcher
from rprm.records import SolutionReward

if TYPE_CHECKING:
    from rprm.reading import Rejected
    from rprm.records import Analysis
    from rprm.rewarder import StepRewarder
    from rprm.search.policy import Policy

T = TypeVar("T")


@contextmanager
def progress_line(
    model: StepRewarder | Policy,
    num_rows: int | None,
    on_result: Callable[[Any, Any], object],
    *,
    noun: str = "solutions",
    activity: str = "judging",
) -> Iterator[Watcher]:
    """Rows, steps, tokens a second and time left, on a terminal; nothing where standard error is none.

    Args:
        model: its `on_analysis`, where it writes analyses, is taken for the count of tokens.
        num_rows: total, None where it is not known.
        on_result: called for each result; what it prints stands above the line.
        noun: what the rows are.
        activity: what is done with them.
    """
    console = Console(stderr=True, highlight=False)
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn(f"{noun}  {{task.fields[steps]}}  {{task.fields[speed]}}"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
        # Results go to standard output: through the line when that is this terminal too, past it when it is a file.
        redirect_stdout=sys.stdout.isatty(),
    )
    task = progress.add_task("loading the model", total=num_rows, steps="", speed="")
    num_steps = num_tokens = num_before = 0

    def analysed(analysis: Analysis) -> None:
        nonlocal num_tokens
        if num_tokens == 0:
            # Time begins with the first analysis: loading the model says nothing about the pace.
            progress.reset(task, description=activity, completed=num_before)
        num_tokens += analysis.num_tokens
        elapsed = progress.tasks[0].elapsed or 0.0
        progress.update(task, speed=f"{num_tokens / elapsed:,.0f} tokens/s" if elapsed > 0 else "")

    def finished(row: Any, result: Any) -> None:
        nonlocal num_steps
        if progress.tasks[0].completed == num_before and not hasattr(model, "on_analysis"):
            # Without analyses, time begins with the first result.
            progress.reset(task, description=activity, completed=num_before)
        if isinstance(result, SolutionReward):
            num_steps += len(result.steps)
            progress.update(task, steps=f"{num_steps} steps")
        progress.update(task, advance=1)
        on_result(row, result)

    def rejected(row: Rejected) -> None:
        console.print(f"rejected: {row.file}, line {row.line}: {row.reason}", style="yellow", markup=False)

    def resumed(num_finished: int) -> None:
        nonlocal num_before
        num_before = num_finished
        if num_finished:
            console.print(f"going on: {num_finished} {noun} were finished before", style="dim")

    if hasattr(model, "on_analysis"):
        model.on_analysis = analysed
    with progress:
        yield Watcher(on_result=finished, on_rejected=rejected, on_resumed=resumed)


def run_behind_progress(
    work: Callable[[Watcher], Awaitable[T]],
    model: StepRewarder | Policy,
    close: Callable[[], Awaitable[None]],
    num_rows: int | None,
    on_result: Callable[[Any, Any], object] = lambda row, result: None,
    *,
    noun: str,
    activity: str = "judging",
) -> T:
    """Do what a watcher is told of, behind a progress line on standard error, and close what was used.

    Args:
        work: is told whom to tell.
        close: what was used.
        model, num_rows, on_result, noun, activity: as for `progress_line`.
    """

    async def main() -> T:
        with progress_line(model, num_rows, on_result, noun=noun, activity=activity) as watcher:
            try:
                return await work(watcher)
            finally:
                await close()

    return asyncio.run(main())
