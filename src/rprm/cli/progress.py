"""The progress line of a run, on standard error."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from rprm.jobs import Callbacks
from rprm.reading import Rejected
from rprm.records import SolutionReward

T = TypeVar("T")


def run_behind_progress(
    work: Callable[[Callbacks], Awaitable[T]], close: Callable[[], Awaitable[None]], num_rows: int | None,
    on_result: Callable[[Any, Any], object] = lambda row, result: None, *, noun: str, activity: str = "judging",
) -> T:  # fmt: skip
    """Do some work behind a line of rows (`num_rows` in all), steps, tokens a second and time left, and `close` what
    was used. What `on_result` prints of each row and its result stands above the line. `noun` and `activity` say what
    the rows are, and what is done with them."""
    console = Console(stderr=True, highlight=False)
    line = Progress(
        TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn(),
        TextColumn(f"{noun}  {{task.fields[steps]}}  {{task.fields[speed]}}"), TimeRemainingColumn(),
        console=console, transient=True, disable=not console.is_terminal,
        # Results go to standard output: through the line when that is this terminal too, past it otherwise.
        redirect_stdout=sys.stdout.isatty(),
    )  # fmt: skip
    task = line.add_task("loading the model", total=num_rows, steps="", speed="")
    counts = dict.fromkeys(("pieces", "tokens", "steps", "before"), 0)

    def paid(piece: Any) -> None:
        if not counts["pieces"]:
            # Time begins with the first piece: loading the model says nothing about the pace.
            line.reset(task, description=activity, completed=counts["before"])
        counts["pieces"] += 1
        counts["tokens"] += piece["num_tokens"] if isinstance(piece, dict) else 0  # A classifier's scores have none.
        elapsed = line.tasks[0].elapsed or 0.0
        line.update(task, speed=f"{counts['tokens'] / elapsed:,.0f} tokens/s" if elapsed and counts["tokens"] else "")

    def finished(row: Any, result: Any) -> None:
        if isinstance(result, SolutionReward):
            counts["steps"] += len(result.steps)
            line.update(task, steps=f"{counts['steps']} steps")
        line.update(task, advance=1)
        on_result(row, result)

    def rejected(row: Rejected) -> None:
        console.print(f"rejected: {row.file}, line {row.line}: {row.reason}", style="yellow", markup=False)

    def resumed(num_finished: int) -> None:
        counts["before"] = num_finished
        if num_finished:
            console.print(f"resumed: {num_finished} {noun} were finished before", style="dim")

    async def main() -> T:
        with line:
            try:
                return await work(Callbacks(finished, rejected, paid, resumed))
            finally:
                await close()

    return asyncio.run(main())
