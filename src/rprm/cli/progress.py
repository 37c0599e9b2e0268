"""The progress line of a run, on standard error."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from rprm.jobs import Callbacks
from rprm.records import SolutionReward

if TYPE_CHECKING:
    from rprm.reading import Rejected

T = TypeVar("T")


class ProgressLine(Callbacks):
    """Rows, steps, tokens a second and time left, on a terminal; nothing where standard error is none.

    Args:
        num_rows: total, None where it is not known.
        show: called for each result; what it prints stands above the line.
        noun: what the rows are.
        activity: what is done with them.
    """

    def __init__(self, num_rows: int | None, show: Callable[[Any, Any], object], noun: str, activity: str) -> None:
        super().__init__(self._finished, self._rejected, self._paid, self._resumed)
        self._show, self._noun, self._activity = show, noun, activity
        self._console = Console(stderr=True, highlight=False)
        self.line = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn(f"{noun}  {{task.fields[steps]}}  {{task.fields[speed]}}"),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
            # Results go to standard output: through the line when that is this terminal too, past it otherwise.
            redirect_stdout=sys.stdout.isatty(),
        )
        self._task = self.line.add_task("loading the model", total=num_rows, steps="", speed="")
        self._num_steps = self._num_tokens = self._num_before = 0
        self._is_timed = False

    def _paid(self, piece: Any) -> None:
        if not self._is_timed:
            # Time begins with the first piece: loading the model says nothing about the pace.
            self.line.reset(self._task, description=self._activity, completed=self._num_before)
            self._is_timed = True
        # A classifier's scores have none.
        self._num_tokens += piece["num_tokens"] if isinstance(piece, dict) else 0
        elapsed = self.line.tasks[0].elapsed or 0.0
        speed = f"{self._num_tokens / elapsed:,.0f} tokens/s" if elapsed > 0 and self._num_tokens else ""
        self.line.update(self._task, speed=speed)

    def _finished(self, row: Any, result: Any) -> None:
        if isinstance(result, SolutionReward):
            self._num_steps += len(result.steps)
            self.line.update(self._task, steps=f"{self._num_steps} steps")
        self.line.update(self._task, advance=1)
        self._show(row, result)

    def _rejected(self, row: Rejected) -> None:
        self._console.print(f"rejected: {row.file}, line {row.line}: {row.reason}", style="yellow", markup=False)

    def _resumed(self, num_finished: int) -> None:
        self._num_before = num_finished
        if num_finished:
            self._console.print(f"resumed: {num_finished} {self._noun} were finished before", style="dim")


def run_behind_progress(
    work: Callable[[Callbacks], Awaitable[T]],
    close: Callable[[], Awaitable[None]],
    num_rows: int | None,
    on_result: Callable[[Any, Any], object] = lambda row, result: None,
    *,
    noun: str,
    activity: str = "judging",
) -> T:
    """Do some work behind a `ProgressLine`, which it calls back, and close what was used."""

    async def main() -> T:
        callbacks = ProgressLine(num_rows, on_result, noun, activity)
        with callbacks.line:
            try:
                return await work(callbacks)
            finally:
                await close()

    return asyncio.run(main())
