"""Benchmark results as tables for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

    from rprm.benchmarks import Comparison, Coverage, Figure, HeldOut, Measurement, ThresholdCurve, Usage

#: What stands where there is no figure.
UNDEFINED = "undefined"


def measurement_table(measurement: Measurement) -> Table:
    """The figures of a run, with 95% intervals, and below them what they rest on."""
    if measurement.benchmark == "prmbench":
        return _prmbench_table(measurement)
    if measurement.benchmark == "steps":
        return _steps_table(measurement)
    table = _table(
        f"ProcessBench at threshold {measurement.threshold:g}",
        ("subset", "items", "error acc", "correct acc", "F1"),
        caption=_basis(measurement),
    )
    for subset, coverage in measurement.coverage.items():
        figures = (measurement.figures[f"{subset}.{figure}"] for figure in ("error_acc", "correct_acc", "f1"))
        table.add_row(subset, f"{coverage.num_items:,}", *map(_figure, figures))
    table.add_section()
    average = _figure(measurement.figures["average.f1"])
    table.add_row("average", f"{measurement.total_coverage.num_items:,}", "", "", average, style="bold")
    return table


def _steps_table(measurement: Measurement) -> Table:
    table = _table(
        f"Labelled steps at threshold {measurement.threshold:g}",
        ("figure", "steps", "percent"),
        caption=_basis(measurement),
    )
    figures = measurement.figures
    table.add_row("accuracy on wrong steps", "", _figure(figures["wrong_acc"]))
    table.add_row("accuracy on correct steps", "", _figure(figures["correct_acc"]))
    table.add_row("F1", "", _figure(figures["f1"]), style="bold")
    table.add_row("accuracy", f"{measurement.total_coverage.num_items:,}", _figure(figures["accuracy"]))
    if len(measurement.coverage) > 1:
        for source, coverage in measurement.coverage.items():
            accuracy = _figure(figures[f"{source}.accuracy"])
            table.add_row(_plain(f"  of {source}"), f"{coverage.num_items:,}", accuracy)
    table.add_row("well-formed analyses", "", _figure(figures["wellformed"]))
    return table


def _prmbench_table(measurement: Measurement) -> Table:
    from rprm.benchmarks.items import PRMBENCH_GROUPS

    table = _table(
        f"PRMBench at threshold {measurement.threshold:g}",
        ("PRMScore", "items", "all items", "clean items"),
        caption=_basis(measurement),
    )

    def row(name: str, classes: Sequence[str], label: str, style: str = "") -> None:
        num_items = sum(measurement.coverage[one].num_items for one in classes if one in measurement.coverage)
        figures = (measurement.figures[name], measurement.figures[f"clean.{name}"])
        table.add_row(label, f"{num_items:,}", *map(_figure, figures), style=style)

    for group, classes in PRMBENCH_GROUPS.items():
        row(group, classes, group, "bold")
        for name in classes:
            row(name, (name,), f"  {name}")
        table.add_section()
    row("overall", tuple(measurement.coverage), "overall", "bold")
    similarity = measurement.figures["similarity"]
    if similarity.value is not None:
        table.add_row("similarity", "", _figure(similarity), "")
    return table


def curve_table(curve: ThresholdCurve, *, every: float = 0.05) -> Table:
    """F1 by threshold: those that are multiples of `every`, and the one with the highest average, which is marked."""
    thresholds = curve.thresholds
    defined = [(value, index) for index, value in enumerate(curve.f1["average"]) if value is not None]
    best = max(defined, key=lambda pair: (pair[0], -abs(thresholds[pair[1]] - 0.5)))[1] if defined else None
    table = _table(
        "F1 by threshold",
        ("threshold", *curve.f1),
        caption=["The marked threshold was chosen on the items it is measured on, which flatters it"]
        if defined
        else [],
    )
    for index, threshold in enumerate(thresholds):
        steps = threshold / every
        if index != best and abs(steps - round(steps)) > 1e-6:
            continue
        values = (UNDEFINED if value is None else f"{value:.1f}" for value in (f1[index] for f1 in curve.f1.values()))
        table.add_row(f"{threshold:g}", *values, style="bold green" if index == best else "")
    return table


def held_out_table(held_out: HeldOut) -> Table:
    """The figures at thresholds chosen on the other half of the items."""
    (first, second), (first_size, second_size) = held_out.thresholds, held_out.sizes
    table = _table(
        "ProcessBench, threshold chosen on the held-out half",
        ("subset", "error acc", "correct acc", "F1"),
        caption=[
            f"{first_size:,} items predicted at {first:g} and {second_size:,} at {second:g}, each threshold chosen on "
            "the other items; intervals take the thresholds as given"
        ],
    )
    for name in held_out.figures:
        subset, _, figure = name.rpartition(".")
        if figure == "f1" and subset != "average":
            row = (held_out.figures[f"{subset}.{one}"] for one in ("error_acc", "correct_acc", "f1"))
            table.add_row(subset, *map(_figure, row))
    table.add_section()
    table.add_row("average", "", "", _figure(held_out.figures["average.f1"]), style="bold")
    return table


def comparison_table(comparison: Comparison, *, names: tuple[str, str] = ("first", "second")) -> Table:
    """Two runs beside each other, with the difference of each figure and the paired tests."""
    table = _table(
        f"B, {names[1]}, against A, {names[0]}", ("figure", "A", "B", "difference"), caption=_tests(comparison)
    )
    for name, difference in comparison.differences.items():
        values = (comparison.first[name], comparison.second[name])
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
    lines = [
        f"{comparison.num_items:,} items, the runs differ on {comparison.num_discordant:,}; 95% intervals of the "
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
    for name, missing, num_unjudged in zip("AB", comparison.missing, comparison.num_unjudged, strict=True):
        if missing:
            lines.append(f"{name}: {_missing(len(missing))}")
        if partly := max(0, num_unjudged - len(missing)):
            lines.append(f"{name}: {_unjudged(partly)}")
    if len(set(comparison.thresholds)) > 1:
        lines.append("thresholds: A {:g}, B {:g}".format(*comparison.thresholds))
    return lines


def _unjudged(number: int) -> str:
    return f"{number:,} items could not be judged: a step has no score; they count as predicted wrong"


def _basis(measurement: Measurement) -> list[str]:
    """What the figures of a run rest on, a sentence each; what is in order is said once, in the first."""
    total = measurement.total_coverage
    lines = [
        f"{total.num_items:,} items, {len(measurement.missing):,} missing; [95% intervals] from "
        f"{measurement.num_resamples:,} bootstrap resamples of the items"
    ]
    if measurement.benchmark == "processbench":
        lines.append("F1 is the harmonic mean of the two accuracies; the average is over the subsets shown")
        if partly := total.num_unjudged - total.num_missing:
            lines.append(_unjudged(partly))
    if measurement.missing:
        lines.append(_missing(len(measurement.missing)))
    unscored = total.steps_needed - total.steps_scored
    if unscored:
        covered = ", ".join(
            f"{name} {_percent(coverage)}%"
            for name, coverage in measurement.coverage.items()
            if coverage.steps_scored < coverage.steps_needed
        )
        lines.append(f"{unscored:,} of {total.steps_needed:,} steps needed have no score; coverage: {covered}")
    if measurement.num_rejected:
        lines.append(f"{measurement.num_rejected:,} rows of the data could not be used and are not among the items")
    if measurement.num_unused:
        lines.append(f"{measurement.num_unused:,} scored items are not in the data and were not used")
    if measurement.repeated:
        lines.append(f"{len(measurement.repeated):,} repeated scores were not used, the first of each was")
    if measurement.undefined_resamples:
        listed = ", ".join(f"{name} ({number:,})" for name, number in measurement.undefined_resamples.items())
        lines.append(f"resamples that leave a figure undefined are not in its interval: {listed}")
    if measurement.usage is not None:
        lines.append(_usage(measurement.usage))
    return lines + list(measurement.notes)


def _missing(number: int) -> str:
    return f"{number:,} items without a full prediction: what is missing counts as wrong"


def _usage(usage: Usage) -> str:
    per_step = "" if usage.tokens_per_step is None else f" ({usage.tokens_per_step:,.0f} a step)"
    return (
        f"{usage.num_tokens:,} tokens generated{per_step}; {usage.num_without_verdict:,} of {usage.num_analyses:,} "
        f"analyses without verdict; {usage.num_uncovered:,} of {usage.num_steps:,} judged steps unscored"
    )


def _table(title: str, columns: Sequence[str | Text], *, caption: Sequence[str]) -> Table:
    """A table of names, in the first column, and figures; narrow, so that 80 columns hold it, and never cut."""
    from rich import box
    from rich.table import Table

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
    from rich.text import Text

    return Text(text)


def _figure(figure: Figure, *, sign: bool = False, style: str = "") -> Text:
    from rich.text import Text

    if figure.value is None:
        return Text(UNDEFINED, style="dim")
    plus = "+" if sign else ""
    text = Text(f"{figure.value:{plus}.1f}", style=style)
    if figure.low is not None and figure.high is not None:
        text.append(f" [{figure.low:{plus}.1f}, {figure.high:{plus}.1f}]", style="dim")
    return text


def _percent(coverage: Coverage) -> str:
    # Rounded down: 100.0 means that nothing is missing.
    return f"{int(coverage.percent * 10) / 10:.1f}"


def _p(p_value: float) -> str:
    return "p < 0.001" if p_value < 0.001 else f"p = {p_value:.3f}"
