"""The progress line of a judge, on standard error."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from rprm.jobs import Callbacks
from rprm.records import SolutionReward

if TYPE_CHECKING:
    from rprm.reading import Rejected

T = TypeVar("T")


@contextmanager
def progress_line(
    num_rows: int | None,
    on_result: Callable[[Any, Any], object],
    *,
    noun: str = "solutions",
    activity: str = "judging",
) -> Iterator[Callbacks]:
    """Rows, steps, tokens a second and time left, on a terminal; nothing where standard error is none.

    Args:
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
    begun = False

    def paid(piece: Any) -> None:
        nonlocal num_tokens, begun
        if not begun:
            # Time begins with the first piece: loading the model says nothing about the pace.
            progress.reset(task, description=activity, completed=num_before)
            begun = True
        # A classifier's scores have none.
        num_tokens += piece["num_tokens"] if isinstance(piece, dict) else 0
        elapsed = progress.tasks[0].elapsed or 0.0
        progress.update(task, speed=f"{num_tokens / elapsed:,.0f} tokens/s" if elapsed > 0 and num_tokens else "")

    def finished(row: Any, result: Any) -> None:
        nonlocal num_steps
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

    with progress:
        yield Callbacks(on_result=finished, on_rejected=rejected, on_piece=paid, on_resumed=resumed)


def run_behind_progress(
    work: Callable[[Callbacks], Awaitable[T]],
    close: Callable[[], Awaitable[None]],
    num_rows: int | None,
    on_result: Callable[[Any, Any], object] = lambda row, result: None,
    *,
    noun: str,
    activity: str = "judging",
) -> T:
    """Do what a callbacks is told of, behind a progress line on standard error, and close what was used.

    Args:
        work: is told whom to tell.
        close: what was used.
        num_rows, on_result, noun, activity: as for `progress_line`.
    """

    async def main() -> T:
        with progress_line(num_rows, on_result, noun=noun, activity=activity) as callbacks:
            try:
                return await work(callbacks)
            finally:
                await close()

    return asyncio.run(main())
