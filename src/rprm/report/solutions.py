"""Judged solutions in a terminal."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.panel import Panel
from rich.table import Column, Table
from rich.text import Text

from rprm.records import Analysis, Solution, SolutionReward
from rprm.rewarders.base import Totals
from rprm.showing import one_line, shown

_BAR_WIDTH = 10


def render_solution(
    solution: Solution, result: SolutionReward, *, threshold: float, analyses: bool = False, note: str | None = None,
    told: set[str] | None = None,
) -> RenderableType:  # fmt: skip
    """A solution's steps with reward and verdict, the first error marked.

    Model and input text is shown as it is: no markup in it is interpreted, and control characters are escaped.

    Args:
        threshold: rewards below it are those of wrong steps.
        note: why the rewards mean nothing. It is shown above them, and nothing is then green or red.
        told: reasons of unscored steps that the run's earlier solutions showed; each is shown once. Takes new ones.
    """
    told = set() if told is None else told
    wrong, right = ("red", "green") if note is None else ("yellow", "yellow")
    table = Table(
        Column(justify="right", style="dim", no_wrap=True), Column(no_wrap=True), Column(justify="right", no_wrap=True),
        Column(ratio=1), box=None, padding=(0, 1), show_header=False, expand=True,
    )  # fmt: skip
    judged = {step.step_index: step for step in result.steps}
    verdicts = dict(zip((step.step_index for step in result.steps), result.verdicts(threshold), strict=True))
    for index, text in enumerate(solution.steps):
        step = judged.get(index)
        if step is None:
            table.add_row(str(index + 1), Text("·" * _BAR_WIDTH, style="dim"), "", Text(shown(text), style="dim"))
            continue
        is_first_error = index == result.first_error
        parts: list[RenderableType] = [Text(shown(text), style=f"bold {wrong}" if is_first_error else "")]
        notes = ["✗ first error"] * is_first_error
        if step.failure:
            reason = re.sub(r"\d[\d,.]*", "0", step.failure)  # Prompts that are too long differ in their lengths alone.
            notes.append("unscored, as above" if reason in told else step.failure)
            told.add(reason)
        elif step.num_without_verdict:
            notes.append(f"{step.num_without_verdict} of {len(step.analyses)} analyses without verdict")
        if notes:
            parts.append(Text(shown("; ".join(notes)), style=wrong if is_first_error else "yellow"))
        for number, one in enumerate(step.analyses if analyses else (), 1):
            analysis = Group(Text(analysis_title(number, one), style="cyan"), Text(shown(one.text), style="dim"))
            parts.append(Padding(analysis, (0, 0, 0, 2)))
        reward, bar = "none", Text("?" * _BAR_WIDTH, style="yellow")
        if step.reward is not None:
            filled, colour = round(step.reward * _BAR_WIDTH), {True: right, False: wrong, None: "dim"}[verdicts[index]]
            reward, bar = f"{step.reward:.2f}", Text("█" * filled, style=colour)
            bar.append("░" * (_BAR_WIDTH - filled), style="dim")
        table.add_row(str(index + 1), bar, reward, Group(*parts))
    text, colour = conclusion(result)
    head = [] if note is None else [Text(shown(note), style="yellow")]
    parts = [Text(shown(solution.problem), style="italic"), *head, Text(""), table]
    return panel(result.id, parts, text, colour if note is None else "yellow")


def conclusion(result: SolutionReward) -> tuple[str, str]:
    """What was found in a solution, beside its label, and the colour of that."""
    text, colour = "no error found", "green"
    if result.first_error is None:
        text, colour = f"could not be judged: {len(result.uncovered)} of {result.num_steps} steps unscored", "yellow"
    elif result.first_error >= 0:
        text, colour = f"first error: step {result.first_error + 1}", "red"
    if result.label is not None:
        text += f"  (labelled: {f'step {result.label + 1}' if result.label >= 0 else 'none'})"
    return text, colour


def analysis_title(number: int, one: Analysis) -> str:
    """What an analysis says, in a line."""
    says = "no verdict" if one.p_yes is None else f"P(Yes) {one.p_yes:.2f}"
    if one.first_error is not None:
        says = f"first error: step {one.first_error + 1}" if one.first_error >= 0 else "no error"
    return f"analysis {number}: {says}{', asked for' if one.forced else ''}, {one.num_tokens} tokens"


def panel(title: str, parts: Sequence[RenderableType], conclusion: str, colour: str) -> Panel:
    """Parts in a frame, under a title, with a conclusion below."""
    return Panel(
        Group(*parts), title=Text(shown(title)), title_align="left", subtitle=Text(conclusion),
        subtitle_align="right", box=box.ROUNDED, border_style=colour,
    )  # fmt: skip


def render_totals(totals: Totals, output: Path | None) -> RenderableType:
    """The totals of a run: solutions, steps, tokens, and everything that is missing."""
    num_right = totals.num_solutions - totals.num_wrong - totals.num_unjudged
    unjudged = f", {totals.num_unjudged:,} could not be judged" if totals.num_unjudged else ""
    skipped = totals.num_steps - totals.num_steps_judged
    table = Table(Column(justify="right", style="bold"), Column(), box=None, padding=(0, 1), show_header=False)
    kinds = f"solutions: {totals.num_wrong:,} with an error, {num_right:,} without{unjudged}"
    table.add_row(f"{totals.num_solutions:,}", kinds)
    table.add_row(f"{totals.num_steps_judged:,}", f"steps judged; {skipped:,} after a first error skipped")
    if totals.num_analyses:
        table.add_row(f"{totals.num_generated_tokens:,}", f"tokens generated in {totals.num_analyses:,} analyses")
    for number, text in (
        (totals.num_analyses_without_verdict, "analyses without verdict (left out of the mean)"),
        (totals.num_analyses_forced, "verdicts that had to be asked for"),
        (totals.num_steps_uncovered, f"steps unscored; the first: {shown(totals.failure or '')}"),
        (totals.num_steps_cut, "steps with analyses cut short by the model's context (a longer one: context_length)"),
        (totals.num_rejected, "rejected rows"),
    ):
        if number:
            table.add_row(Text(f"{number:,}", style="yellow"), text)
    results = [] if output is None else [Text(one_line(f"results: {output / 'results.jsonl'}"), style="dim")]
    return Group(table, *results)
