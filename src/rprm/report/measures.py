"""Benchmark results as tables for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from rprm.benchmarks import Comparison, Figure, Measurement, ResultTable, Tally

#: What stands where there is no figure.
UNDEFINED = "undefined"


def measurement_table(measured: Measurement) -> Table:
    """The figures of a run, with 95% intervals, and below them what they rest on."""
    table = measured.layout(measured)
    return result_table(table, notes=_basis(measured, table.notes))


def result_table(table: ResultTable, *, notes: Sequence[str] | None = None) -> Table:
    """A benchmark's table; `notes` stand in for its own."""
    made = _table(table.title, table.columns, caption=table.notes if notes is None else notes)
    for line in table.lines:
        if line is None:
            made.add_section()
        else:
            cells = (cell if isinstance(cell, str) else _figure(cell) for cell in line.cells)
            made.add_row(Text(line.name), *cells, style=line.style)
    return made


def comparison_table(comparison: Comparison, *, names: tuple[str, str] = ("first", "second")) -> Table:
    """Two runs beside each other, with the difference of each figure and the paired tests."""
    table = _table(
        f"B, {names[1]}, against A, {names[0]}", ("figure", "A", "B", "difference"), caption=_tests(comparison)
    )
    first, second = comparison.first, comparison.second
    for name, difference in comparison.differences.items():
        values = (first[name], second[name])
        shown = (UNDEFINED if value is None else f"{value:.1f}" for value in values)
        clear = difference.low is not None and difference.high is not None and difference.low * difference.high > 0
        table.add_row(
            name,
            *shown,
            _figure(difference, sign=True, style=("green" if (difference.value or 0) > 0 else "red") if clear else ""),
            style="bold" if name == comparison.headline else "",
        )
    return table


def _tests(comparison: Comparison) -> list[str]:
    first, second = comparison.tallies
    lines = [
        f"{len(first.ids):,} items, the runs differ on {comparison.num_discordant:,}; 95% intervals of the "
        f"difference from {comparison.num_resamples:,} paired bootstrap resamples"
    ]
    if comparison.p_value is None:
        lines.append(f"{comparison.headline} is undefined for a run: no test")
    else:
        tried = (
            f"all {comparison.num_permutations:,}" if comparison.exact else f"{comparison.num_permutations:,} random"
        )
        lines.append(f"{comparison.headline}: {_p(comparison.p_value)}, paired permutation test over {tried} swaps")
    if comparison.mcnemar_p is not None:
        lines.append(
            f"{comparison.only_first_right:,} items only A predicts right, "
            f"{comparison.only_second_right:,} only B: {_p(comparison.mcnemar_p)}, exact McNemar test"
        )
    lines += [
        f"{name}: {sentence}" for name, tally in zip("AB", (first, second), strict=True) for sentence in _lost(tally)
    ]
    if first.threshold != second.threshold:
        lines.append(f"thresholds: A {first.threshold:g}, B {second.threshold:g}")
    return lines


def _lost(tally: Tally) -> list[str]:
    """Items that could not be judged or have no prediction."""
    lines = []
    if (partly := tally.total_coverage.num_unjudged - len(tally.missing)) > 0:
        lines.append(f"{partly:,} items could not be judged: a step has no score; they count as predicted wrong")
    if tally.missing:
        lines.append(f"{len(tally.missing):,} items without a full prediction: what is missing counts as wrong")
    return lines


def _basis(measured: Measurement, notes: Sequence[str]) -> list[str]:
    """What the figures of a run rest on, a sentence each; what is in order is said once, in the first."""
    total = measured.total_coverage
    lines = [
        f"{total.num_items:,} items, {len(measured.missing):,} missing; [95% intervals] from "
        f"{measured.num_resamples:,} bootstrap resamples of the items",
        *notes,
        *_lost(measured),
    ]
    unscored = total.steps_needed - total.steps_scored
    if unscored:
        # Rounded down: 100.0 means that nothing is missing.
        covered = ", ".join(
            f"{name} {int(coverage.percent * 10) / 10:.1f}%"
            for name, coverage in measured.coverage.items()
            if coverage.steps_scored < coverage.steps_needed
        )
        lines.append(f"{unscored:,} of {total.steps_needed:,} steps needed have no score; coverage: {covered}")
    if measured.num_rejected:
        lines.append(f"{measured.num_rejected:,} rows of the data could not be used and are not among the items")
    if measured.num_unused:
        lines.append(f"{measured.num_unused:,} scored items are not in the data and were not used")
    if measured.repeated:
        lines.append(f"{len(measured.repeated):,} repeated scores were not used, the first of each was")
    if measured.undefined_resamples:
        listed = ", ".join(f"{name} ({number:,})" for name, number in measured.undefined_resamples.items())
        lines.append(f"resamples that leave a figure undefined are not in its interval: {listed}")
    if (usage := measured.usage) is not None:
        steps = usage.num_steps_judged
        per_step = f" ({usage.num_generated_tokens / steps:,.0f} a step)" if steps else ""
        lines.append(
            f"{usage.num_generated_tokens:,} tokens generated{per_step}; {usage.num_analyses_without_verdict:,} of "
            f"{usage.num_analyses:,} analyses without verdict; {usage.num_steps_uncovered:,} of {steps:,} judged "
            "steps unscored"
        )
    return lines + list(measured.notes)


def _table(title: str, columns: Sequence[str | Text], *, caption: Sequence[str]) -> Table:
    """A table of names, in the first column, and figures; narrow, so that 80 columns hold it, and never cut."""
    table = Table(
        title=_plain(title),
        title_justify="left",
        title_style="bold",
        caption=_plain("\n".join(caption)) if caption else None,
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    for place, name in enumerate(columns):
        table.add_column(name, justify="right" if place else "left", overflow="fold")
    return table


def _plain(text: str) -> Text:
    """Text in which brackets are no markup."""
    return Text(text)


def _figure(figure: Figure, *, sign: bool = False, style: str = "") -> Text:
    if figure.value is None:
        return Text(UNDEFINED, style="dim")
    plus = "+" if sign else ""
    text = Text(f"{figure.value:{plus}.1f}", style=style)
    if figure.low is not None and figure.high is not None:
        text.append(f" [{figure.low:{plus}.1f}, {figure.high:{plus}.1f}]", style="dim")
    return text


def _p(p_value: float) -> str:
    return "p < 0.001" if p_value < 0.001 else f"p = {p_value:.3f}"
