"""Searches on the mathematics sets as tables for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rprm.report.measures import UNDEFINED, _plain, _table

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
    from rich.table import Table
    from rich.text import Text

    from rprm.benchmarks.tally import Figure
    from rprm.search.checks import SetCheck
    from rprm.search.measure import MeasuredRow, SearchMeasurement

#: How many gradings without a conclusion are named.
_MAX_NAMED = 10


def search_table(measurement: SearchMeasurement) -> RenderableType:
    """Accuracy by set and in the mean, each with its interval below; differences; tokens generated for a problem."""
    from rprm.search.measure import AVERAGE

    rows = measurement.rows
    sets = [*measurement.sets, AVERAGE] if len(measurement.sets) > 1 else list(measurement.sets)
    # A baseline's own row lacks the difference to it.
    by_number = sorted(rows, key=lambda row: -len(row.differences))
    baselines = dict.fromkeys(name for row in by_number for name in row.differences)
    against = f"{AVERAGE} against" if len(sets) > 1 else "against"
    columns = [
        *(_Column(_heading(measurement, name), [_figure(row.figures[name]) for row in rows]) for name in sets),
        *(_Column(_two_lines(against, name), [_difference(row, name, sets[-1]) for row in rows]) for name in baselines),
    ]
    for model, tokens in (
        ("policy", [row.policy_tokens for row in rows]),
        ("judge", [row.judge_tokens for row in rows]),
    ):
        if any(tokens):
            columns.append(_Column(_two_lines(model, "tokens"), [_tokens(number) for number in tokens]))
    methods = [_two_lines(row.method, row.model) for row in rows]
    return _WideTable("Problems solved, in percent", methods, columns, _basis(measurement))


def search_curve_table(measurement: SearchMeasurement) -> RenderableType:
    """The mean over the sets (or the one set) by number of candidates N."""
    from rprm.search.measure import AVERAGE

    sizes = sorted({row.num_candidates for row in measurement.curve if row.num_candidates is not None})
    lines: dict[tuple[str, str, str], dict[int | None, Figure]] = {}
    for row in measurement.curve:
        lines.setdefault((row.strategy, row.model, row.run), {})[row.num_candidates] = row.figures[AVERAGE]
    columns = [
        _Column(
            _plain(f"N = {size}"),
            [_figure(figures[size]) if size in figures else _plain("") for figures in lines.values()],
        )
        for size in sizes
    ]
    what = "the mean over the sets" if len(measurement.sets) > 1 else "".join(measurement.names.values())
    methods = [_two_lines(strategy, model) for strategy, model, _ in lines]
    caption = ["the mean over all choices of N of the candidates; below it the 95% interval"]
    return _WideTable(f"By number of candidates N, {what}", methods, columns, caption)


@dataclass(frozen=True)
class _Column:
    heading: Text
    cells: Sequence[Text]


@dataclass(frozen=True)
class _WideTable:
    """A table that goes on below itself where a terminal is too narrow for all its columns."""

    title: str
    methods: Sequence[Text]
    columns: Sequence[_Column]
    caption: Sequence[str]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.measure import Measurement
        from rich.text import Text

        unlimited = options.update(max_width=1_000_000)
        start = 0
        while start < len(self.columns):
            end = len(self.columns)
            while (
                end > start + 1
                and Measurement.get(console, unlimited, self._part(start, end)).maximum > options.max_width
            ):
                end -= 1
            yield self._part(start, end)
            start = end
        yield Text("\n".join(self.caption), style="dim italic")

    def _part(self, start: int, end: int) -> Table:
        columns = self.columns[start:end]
        headings = [_plain("method"), *(column.heading for column in columns)]
        table = _table(self.title if start == 0 else "", headings, caption=[])
        for place, method in enumerate(self.methods):
            table.add_row(method, *(column.cells[place] for column in columns))
        return table


def unsettled_table(measurement: SearchMeasurement) -> Table:
    """Solutions whose grading came to no conclusion: the first few."""
    unsettled = measurement.unsettled
    rest = len(unsettled) - _MAX_NAMED
    caption = [f"and {rest:,} more: --grades FILE writes all of them"] if rest > 0 else []
    table = _table("Gradings without a conclusion, counted as wrong", (), caption=caption)
    for name in ("problem", "candidate", "answer", "outcome"):
        table.add_column(name, justify="right" if name == "candidate" else "left")
    for graded in unsettled[:_MAX_NAMED]:
        answer = " ".join((graded.answer or "").split())
        shown = answer if len(answer) <= 60 else f"{answer[:59]}…"
        table.add_row(_plain(graded.id), str(graded.index), _plain(shown), graded.grade.outcome)
    return table


def sets_table(checks: Sequence[SetCheck]) -> Table:
    """What the sets hold."""
    table = _table(
        "Mathematics sets",
        (),
        caption=[
            "Recognised: another way of writing the gold answer would be; of the others only the same text is right"
        ],
    )
    for name in ("set", "problems", "recognised", "rejected", "source", "digest"):
        is_number = name in ("problems", "recognised", "rejected")
        table.add_column(name, justify="right" if is_number else "left", overflow="fold")
    for check in checks:
        table.add_row(
            _plain(check.name),
            f"{check.num_problems:,}",
            f"{check.num_problems - len(check.unrecognised):,}",
            f"{check.num_rejected:,}",
            _plain(check.source.name),
            _plain(check.source.digest[:19]),
        )
    return table


def _basis(measurement: SearchMeasurement) -> list[str]:
    total = sum(measurement.sets.values())
    lines = [
        f"{total:,} problems; below each figure its 95% interval, from {measurement.num_resamples:,} bootstrap "
        "resamples of the problems and of their candidates"
    ]
    if len(measurement.sets) > 1:
        lines.append("the average is the unweighted mean over the sets")
    if any(row.policy_tokens or row.judge_tokens for row in measurement.rows):
        lines.append("tokens are generated for one problem, in the mean")
    return lines + list(measurement.notes)


def _heading(measurement: SearchMeasurement, name: str) -> Text:
    if name not in measurement.sets:
        return _two_lines(name, "of the sets")
    subset = measurement.names[name].removeprefix(name).strip()
    return _two_lines(name, subset or f"{measurement.sets[name]:,} problems")


def _two_lines(first: str, second: str) -> Text:
    text = _plain(first)
    return text.append(f"\n{second}", style="dim")


def _figure(figure: Figure, *, sign: bool = False, style: str = "") -> Text:
    if figure.value is None or figure.low is None or figure.high is None:
        return _plain(UNDEFINED)
    plus = "+" if sign else ""
    text = _two_lines(f"{figure.value:{plus}.1f}", f"{figure.low:{plus}.1f}, {figure.high:{plus}.1f}")
    if style:
        text.stylize(style, 0, text.plain.index("\n"))
    return text


def _difference(row: MeasuredRow, baseline: str, column: str) -> Text:
    figures = row.differences.get(baseline)
    if figures is None:
        return _plain("")
    figure = figures[column]
    style = ""
    if figure.low is not None and figure.high is not None and figure.low * figure.high > 0:
        style = "green" if figure.low > 0 else "red"
    return _figure(figure, sign=True, style=style)


def _tokens(number: float | None) -> Text:
    return _plain("unknown" if number is None else f"{number:,.0f}")
