"""Benchmark results as tables for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from rich import box
from rich.table import Table
from rich.text import Text

from rprm.benchmarks import Figure, Measurement, ResultTable, Scores, Tally
from rprm.benchmarks.comparison import Comparison
from rprm.benchmarks.cost import OPERATIONS_PER_WEIGHT
from rprm.benchmarks.scores import FALSE_ALARM_RATE
from rprm.showing import one_line, shown


def measurement_table(measured: Measurement) -> Table:
    """The figures of a run in a terminal."""
    return result_table(measured_result(measured))


def measured_result(measured: Measurement) -> ResultTable:
    """The figures of a run, with 95% intervals, and below them what they rest on: what is in order in one sentence."""
    table, total, usage = measured.layout(measured), measured.total_coverage, measured.scores.usage
    # Rounded down: 100.0 means that nothing is missing.
    covered = ", ".join(
        f"{name} {int(coverage.percent * 10) / 10:.1f}%"
        for name, coverage in measured.coverage.items()
        if coverage.steps_scored < coverage.steps_needed
    )
    counts = {
        f"of {total.steps_needed:,} steps needed have no score; coverage: {covered}":
            total.steps_needed - total.steps_scored,
        "rows of the data could not be used and are not among the items": len(measured.items.rejected),
        "scored items are not in the data and were not used": measured.num_unused,
        "repeated scores were not used, the first of each was": len(measured.scores.repeated),
    }  # fmt: skip
    notes = [
        f"{total.num_items:,} items, {len(measured.missing):,} missing; [95% intervals] from "
        f"{measured.num_resamples:,} bootstrap resamples of the items",
        *table.notes, *_lost(measured), *(f"{number:,} {sentence}" for sentence, number in counts.items() if number),
    ]  # fmt: skip
    if measured.undefined_resamples:
        listed = ", ".join(f"{name} ({number:,})" for name, number in measured.undefined_resamples.items())
        notes.append(f"resamples that leave a figure undefined are not in its interval: {listed}")
    if (alone := measured.position.get(measured.headline)) is not None:
        notes.append(f"position only, the index of a step and nothing else: {measured.headline} {alone:.1f}")
    if (found := measured.figures.get(FALSE_ALARM_RATE)) is not None:
        named, judged, right = measured.false_alarms.values()
        unknown = f"; {right - judged:,} more are not judged" * (judged < right)
        low, high = found.low or 0.0, found.high or 0.0
        share = "undefined" if found.value is None else f"{found.value:.1f}% ({low:.1f} to {high:.1f})"
        notes.append(f"false alarms: an error named in {named:,} of {judged:,} right solutions, {share}{unknown}")
    if usage is not None:
        steps, tokens = usage.num_steps_judged, usage.num_generated_tokens
        shares = {"a step": steps, "a solution": usage.num_solutions}
        each = ", ".join(f"{tokens / number:,.0f} {name}" for name, number in shares.items() if number)
        notes.append(
            f"{tokens:,} tokens generated{f' ({each})' * bool(each)}; {usage.num_analyses_without_verdict:,} of "
            f"{usage.num_analyses:,} analyses without verdict; {usage.num_steps_uncovered:,} of {steps:,} judged "
            "steps unscored"
        )
        notes.append(f"{measured.scores.cost.time}; {_flops(measured.scores)}")
    return replace(table, notes=[*notes, *measured.notes])


def result_table(table: ResultTable) -> Table:
    """A benchmark's table."""
    made = framed(table.title, table.columns, table.notes)
    for line in table.lines:
        if line is None:
            made.add_section()
        else:
            cells = (cell if isinstance(cell, str) else figure_text(cell) for cell in line.cells)
            made.add_row(Text(shown(line.name)), *cells, style=line.style)
    return made


def comparison_table(comparison: Comparison, *, names: tuple[str, str] = ("first", "second")) -> Table:
    """Two runs beside each other, with the difference of each figure and the paired tests."""
    first, second = comparison.tallies
    lines = [
        f"{len(first.ids):,} items, the runs differ on {comparison.num_discordant:,}; 95% intervals of the "
        f"difference from {comparison.num_resamples:,} paired bootstrap resamples"
    ]
    if comparison.p_value is None:
        lines.append(f"{first.headline} is undefined for a run: no test")
    else:
        number = f"{comparison.num_permutations:,}"
        tried = f"all {number}" if comparison.exact else f"{number} random"
        lines.append(f"{first.headline}: {_p(comparison.p_value)}, paired permutation test over {tried} swaps")
    if comparison.mcnemar_p is not None:
        lines.append(
            f"{comparison.only_first_right:,} items only A predicts right, "
            f"{comparison.only_second_right:,} only B: {_p(comparison.mcnemar_p)}, exact McNemar test"
        )
    lines += [f"{name}: {text}" for name, tally in zip("AB", comparison.tallies, strict=True) for text in _lost(tally)]
    if first.threshold != second.threshold:
        lines.append(f"thresholds: A {first.threshold:g}, B {second.threshold:g}")
    table = framed(f"B, {names[1]}, against A, {names[0]}", ("figure", "A", "B", "difference"), lines)
    values = [[figure_text(Figure(value)) for value in tally.by_name.values()] for tally in comparison.tallies]
    for (name, difference), *pair in zip(comparison.differences.items(), *values, strict=True):
        style = "bold" if name == first.headline else ""
        cell = figure_text(difference, sign="+")  # In colour; more false alarms are no gain.
        table.add_row(name, *pair, Text(cell.plain) if name == FALSE_ALARM_RATE else cell, style=style)
    return table


def _flops(scores: Scores) -> str:
    """Floating-point operations, and what they are reckoned from."""
    weights, read = scores.cost.parameters, scores.num_prompt_tokens
    if scores.flops is None:
        lacking = "the model's size is not known" if weights is None else "its prompt tokens are not counted"
        return f"FLOPs not known: {lacking}"
    each = f"{OPERATIONS_PER_WEIGHT} x {weights:,.0f} weights for each token read ({read:,}) or generated"
    return f"about {scores.flops:.1e} FLOPs, {each}"


def _lost(tally: Tally) -> list[str]:
    """Items that could not be judged or have no prediction."""
    partly = tally.total_coverage.num_unjudged - len(tally.missing)
    unjudged = f"{partly:,} items could not be judged: a step has no score; they count as predicted wrong"
    missing = f"{len(tally.missing):,} items without a full prediction: what is missing counts as wrong"
    return [unjudged] * (partly > 0) + [missing] * bool(tally.missing)


def framed(
    title: str, columns: Sequence[str | Text], caption: Sequence[str] = (), numbers: Sequence[str] | None = None
) -> Table:
    """An empty table, narrow, so that 80 columns hold it, and never cut. Text in it is no markup.

    `numbers` are the columns that stand on the right; by default all but the first.
    """
    table = Table(
        title=Text(one_line(title)), title_justify="left", title_style="bold", caption_justify="left",
        caption=Text("\n".join(map(one_line, caption))) if caption else None,
        box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0),
    )  # fmt: skip
    for name in columns:
        is_number = name in (columns[1:] if numbers is None else numbers)
        table.add_column(name, justify="right" if is_number else "left", overflow="fold")
    return table


def figure_text(figure: Figure, *, sign: str = "", below: bool = False) -> Text:
    """A figure and its interval, beside or below it. A difference (`sign` "+") has the colour of what it surely is."""
    if figure.value is None:
        return Text("undefined", style="dim")
    text = Text(f"{figure.value:{sign}.1f}")
    if figure.low is not None and figure.high is not None:
        if sign and figure.low * figure.high > 0:
            text.stylize("green" if figure.low > 0 else "red")
        interval = f"{figure.low:{sign}.1f}, {figure.high:{sign}.1f}"
        text.append(f"\n{interval}" if below else f" [{interval}]", style="dim")
    return text


def _p(p_value: float) -> str:
    return "p < 0.001" if p_value < 0.001 else f"p = {p_value:.3f}"
