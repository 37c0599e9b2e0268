"""The progress line of whatever judges: rows, their steps and analyses as they come, tokens a second, time left."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column

from rprm.records import SolutionReward


class ProgressLine(Progress):
    """A line for `num_rows` rows (None: not known how many). `noun` and `activity` say what they are, and what is done
    with them. Its methods may be called from any thread."""

    def __init__(
        self, console: Console, num_rows: int | None, *, noun: str, activity: str = "judging", **options: Any
    ) -> None:
        super().__init__(
            TextColumn("{task.description}", markup=False), BarColumn(bar_width=None),  # It gives way to the others.
            MofNCompleteColumn(table_column=Column(no_wrap=True)), TextColumn(f"{noun}  {{task.fields[counts]}}"),
            TimeRemainingColumn(table_column=Column(no_wrap=True)),
            console=console, transient=True, **options,
        )  # fmt: skip
        self._noun, self._activity = noun, activity
        self._task = self.add_task("loading the model", total=num_rows, counts="")
        self._num_steps = self._num_analyses = self._num_tokens = self._num_before = 0
        self._has_pieces = False  # of this session
        self._by_analyses = False  # steps and analyses are counted as they come, not with their rows

    def replicas(self, num_ready: int) -> None:
        """So many replicas of the model are at work."""
        self._activity = f"{self._activity.partition(' on ')[0]} on {num_ready:,} replicas"
        self.update(self._task, description=self._activity)

    def resumed(self, num_rows: int, num_pieces: int) -> None:
        """So many rows are finished already, and so many pieces of others are paid for."""
        self._num_before = num_rows
        self.update(self._task, completed=num_rows)
        found = [f"{num_rows:,} {self._noun} were finished before"] if num_rows else []
        found += [f"the journal holds {num_pieces:,} analyses or other pieces of more"] if num_pieces else []
        if found:
            self.console.print(f"resumed: {'; '.join(found)}", style="dim")

    def paid(self, key: str, piece: Any) -> None:
        """A piece of a row came: an analysis, by its step and sample number, or another (`rprm.ledger`)."""
        if not self._has_pieces:
            # Time begins with the first piece: loading the model says nothing about the pace.
            self.reset(self._task, description=self._activity, completed=self._num_before)
            self._has_pieces = True
        if isinstance(piece, dict):  # A classifier's scores are none, and have no tokens.
            self._num_tokens += piece["num_tokens"]
            self._by_analyses = self._by_analyses or "verdict" in piece
            self._num_analyses += "verdict" in piece
            step, _, sample = key.rpartition(".")
            if sample == "0" and step.isdigit():
                self._num_steps += int(step) + 1 if "first_error" in piece else 1  # A critique is of all steps.
        self._show()

    def judged(self, result: Any) -> None:
        """A row is finished, with this result."""
        if isinstance(result, SolutionReward) and not self._by_analyses:
            self._num_steps += len(result.steps)
            self._num_analyses += sum(len(step.analyses) for step in result.steps)
        self.advance(self._task)
        self._show()

    def _show(self) -> None:
        if self.disable:
            return
        elapsed = (self.tasks[0].elapsed or 0.0) if self._has_pieces else 0.0
        counts = {"steps": self._num_steps, "analyses": self._num_analyses}
        counts |= {"tokens/s": round(self._num_tokens / elapsed)} if elapsed else {}
        shown = (f"{number:,} {noun}" for noun, number in counts.items() if number and noun != self._noun)
        self.update(self._task, counts="  ".join(shown))
