"""Searches on the mathematics sets as tables for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rprm.benchmarks.mathematics import AVERAGE
from rprm.report.measures import UNDEFINED, _plain, _table

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
    from rich.table import Table
    from rich.text import Text

    from rprm.benchmarks.mathematics import SearchMeasurement
    from rprm.benchmarks.tally import Figure

#: How many gradings without a conclusion are named.
_MAX_NAMED = 10

#: A heading and its cells.
_Column = tuple["Text", Sequence["Text"]]


def search_table(measurement: SearchMeasurement) -> RenderableType:
    """Accuracy by set and in the mean, each with its interval below; differences; tokens generated for a problem."""
    rows, sets = measurement.rows, measurement.sets
    columns: list[_Column] = []
    for name, title in measurement.names.items():
        heading = _two_lines(name, title.removeprefix(name).strip() or f"{sets[name]:,} problems")
        columns.append((heading, [_figure(row.figures[name]) for row in rows]))
    if len(sets) > 1:
        columns.append((_two_lines(AVERAGE, "of the sets"), [_figure(row.figures[AVERAGE]) for row in rows]))
    last, against = (AVERAGE, f"{AVERAGE} against") if len(sets) > 1 else (next(iter(sets)), "against")
    # A baseline's own row lacks the difference to it.
    by_number = sorted(rows, key=lambda row: -len(row.differences))
    for name in dict.fromkeys(name for row in by_number for name in row.differences):
        found = [row.differences.get(name) for row in rows]
        cells = [_plain("") if figures is None else _difference(figures[last]) for figures in found]
        columns.append((_two_lines(against, name), cells))
    policy, judge = [row.policy_tokens for row in rows], [row.judge_tokens for row in rows]
    for model, tokens in (("policy", policy), ("judge", judge)):
        if any(tokens):
            cells = [_plain("unknown" if number is None else f"{number:,.0f}") for number in tokens]
            columns.append((_two_lines(model, "tokens"), cells))
    caption = [
        f"{sum(sets.values()):,} problems; below each figure its 95% interval, from {measurement.num_resamples:,} "
        "bootstrap resamples of the problems and of their candidates",
        *(["the average is the unweighted mean over the sets"] if len(sets) > 1 else []),
        *(["tokens are generated for one problem, in the mean"] if any(policy) or any(judge) else []),
        *measurement.notes,
    ]
    methods = [_two_lines(row.method, row.model) for row in rows]
    return _WideTable("Problems solved, in percent", methods, columns, caption)


def search_curve_table(measurement: SearchMeasurement) -> RenderableType:
    """The mean over the sets (or the one set) by number of candidates N."""
    sizes = sorted({row.num_candidates for row in measurement.curve if row.num_candidates is not None})
    lines: dict[tuple[str, str, str], dict[int | None, Figure]] = {}
    for row in measurement.curve:
        lines.setdefault((row.strategy, row.model, row.run), {})[row.num_candidates] = row.figures[AVERAGE]
    columns: list[_Column] = [
        (
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
        headings = [_plain("method"), *(heading for heading, _ in columns)]
        table = _table(self.title if start == 0 else "", headings, caption=[])
        for place, method in enumerate(self.methods):
            table.add_row(method, *(cells[place] for _, cells in columns))
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


def sets_table(checks: Mapping[str, Mapping[str, Any]]) -> Table:
    """What the sets hold; see `check_sets`."""
    note = "Recognised: another way of writing the gold answer would be; of the others only the same text is right"
    table = _table("Mathematics sets", (), caption=[note])
    for name in ("set", "problems", "recognised", "rejected", "source", "digest"):
        is_number = name in ("problems", "recognised", "rejected")
        table.add_column(name, justify="right" if is_number else "left", overflow="fold")
    for check in checks.values():
        number, data = check["problems"], check["data"]
        counts = (number, number - len(check["unrecognised"]), check["rejected_rows"])
        texts = (check["name"], *(f"{count:,}" for count in counts), data["name"], data["digest"][:19])
        table.add_row(*map(_plain, texts))
    return table


def _two_lines(first: str, second: str) -> Text:
    return _plain(first).append(f"\n{second}", style="dim")


def _figure(figure: Figure, *, sign: str = "", style: str = "") -> Text:
    if figure.value is None or figure.low is None or figure.high is None:
        return _plain(UNDEFINED)
    text = _two_lines(f"{figure.value:{sign}.1f}", f"{figure.low:{sign}.1f}, {figure.high:{sign}.1f}")
    if style:
        text.stylize(style, 0, text.plain.index("\n"))
    return text


def _difference(figure: Figure) -> Text:
    is_sure = figure.low is not None and figure.high is not None and figure.low * figure.high > 0
    style = "" if not is_sure else "green" if figure.low is not None and figure.low > 0 else "red"
    return _figure(figure, sign="+", style=style)
