"""Searches in a terminal: tables of what they solved, and their trees."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.measure import Measurement
from rich.table import Column, Table
from rich.text import Text

from rprm.benchmarks.mathematics import AVERAGE, SearchMeasurement
from rprm.benchmarks.scores import MAX_NAMED
from rprm.benchmarks.tally import Figure
from rprm.report.measures import figure_text, framed
from rprm.report.solutions import panel
from rprm.search.guided import ROOT, SearchNode, SearchTree
from rprm.showing import one_line, shown

#: By what became of a node, its mark and style.
_MARKS = {"kept": ("●", "bold"), "finished": ("■", "bold green"), "pruned": ("○", "dim"), "dropped": ("·", "dim")}

_figure = partial(figure_text, below=True)


def search_tables(measurement: SearchMeasurement) -> list[RenderableType]:
    """All that there is to show of a measurement."""
    curve = [search_curve_table(measurement)] if measurement.curve else []
    unsettled = [unsettled_table(measurement)] if measurement.unsettled else []
    return [search_table(measurement), *curve, *unsettled]


def search_table(measurement: SearchMeasurement) -> RenderableType:
    """Accuracy by set and in the mean, each with its interval below; differences; tokens generated for a problem."""
    rows, sets = measurement.rows, measurement.sets
    has_average = len(sets) > 1
    columns = {}
    for name, title in measurement.names.items():
        below = title.removeprefix(name).strip() or f"{sets[name]:,} problems"
        columns[name, below] = [_figure(row.figures[name]) for row in rows]
    if has_average:
        columns[AVERAGE, "of the sets"] = [_figure(row.figures[AVERAGE]) for row in rows]
    last, against = (AVERAGE, f"{AVERAGE} against") if has_average else (next(iter(sets)), "against")
    # A baseline's own row lacks the difference to it.
    by_number = sorted(rows, key=lambda row: -len(row.differences))
    for name in dict.fromkeys(name for row in by_number for name in row.differences):
        found = [row.differences.get(name) for row in rows]
        columns[against, name] = [_figure(figures[last], sign="+") if figures else Text("") for figures in found]
    tokens = {"policy": [row.policy_tokens for row in rows], "judge": [row.judge_tokens for row in rows]}
    for model, numbers in tokens.items():
        if any(numbers):
            columns[model, "tokens"] = [Text("unknown" if one is None else f"{one:,.0f}") for one in numbers]
    caption = [
        f"{sum(sets.values()):,} problems; below each figure its 95% interval, from {measurement.num_resamples:,} "
        "bootstrap resamples of the problems and of their candidates",
        *["the average is the unweighted mean over the sets"] * has_average,
        *["tokens are generated for one problem, in the mean"] * any(map(any, tokens.values())),
        *(f"{name}: {cost.time}" for name, cost in measurement.costs.items() if cost.sessions),
        *measurement.notes,
    ]
    return _WideTable("Problems solved, in percent", [(row.method, row.model) for row in rows], columns, caption)


def search_curve_table(measurement: SearchMeasurement) -> RenderableType:
    """The mean over the sets (or the one set) by number of candidates N."""
    lines: dict[tuple[str, str, str], dict[int, Figure]] = {}
    for row in measurement.curve:
        lines.setdefault((row.strategy, row.model, row.run), {})[row.num_candidates or 0] = row.figures[AVERAGE]
    columns = {
        (f"N = {size}", ""): [_figure(line[size]) if size in line else Text("") for line in lines.values()]
        for size in sorted({size for line in lines.values() for size in line})
    }
    what = "the mean over the sets" if len(measurement.sets) > 1 else "".join(measurement.names.values())
    note = "the mean over all choices of N of the candidates; below it the 95% interval"
    return _WideTable(f"By number of candidates N, {what}", [line[:2] for line in lines], columns, [note])


@dataclass(frozen=True)
class _WideTable:
    """A table that goes on below itself where a terminal is too narrow; headings are in two lines."""

    title: str
    methods: Sequence[tuple[str, str]]
    columns: Mapping[tuple[str, str], Sequence[Text]]
    caption: Sequence[str]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        def part(number: int) -> Table:
            table = framed(title, ["method", *(_two_lines(*heading) for heading, _ in columns[:number])])
            for place, method in enumerate(self.methods):
                table.add_row(_two_lines(*method), *(cells[place] for _, cells in columns[:number]))
            return table

        unlimited = options.update(max_width=1_000_000)
        columns, title = list(self.columns.items()), self.title
        while columns:
            number = len(columns)
            while number > 1 and Measurement.get(console, unlimited, part(number)).maximum > options.max_width:
                number -= 1
            yield part(number)
            columns, title = columns[number:], ""
        yield Text("\n".join(map(one_line, self.caption)), style="dim italic")


def unsettled_table(measurement: SearchMeasurement) -> Table:
    """Solutions whose grading came to no conclusion: the first few."""
    unsettled = measurement.unsettled
    rest = len(unsettled) - MAX_NAMED
    caption = [f"and {rest:,} more: --grades FILE writes all of them"] if rest > 0 else []
    columns = ("problem", "candidate", "answer", "outcome")
    table = framed("Gradings without a conclusion, counted as wrong", columns, caption, numbers=("candidate",))
    for graded in unsettled[:MAX_NAMED]:
        answer = shown(" ".join((graded.answer or "").split()))
        answer = answer if len(answer) <= 60 else f"{answer[:59]}…"
        table.add_row(Text(one_line(graded.id)), str(graded.index), Text(answer), graded.grade.outcome)
    return table


def sets_table(checks: Mapping[str, Mapping[str, Any]]) -> Table:
    """What the sets hold; see `check_sets`."""
    note = "Recognised: another way of writing the gold answer would be; of the others only the same text is right"
    counts = ("problems", "recognised", "rejected")
    table = framed("Mathematics sets", ("set", *counts, "source", "digest"), [note], numbers=counts)
    for check in checks.values():
        number, data = check["problems"], check["data"]
        numbers = (number, number - len(check["unrecognised"]), check["rejected_rows"])
        table.add_row(*map(one_line, (check["name"], *map("{:,}".format, numbers), data["name"], data["digest"][:19])))
    return table


def _two_lines(first: str, second: str) -> Text:
    return Text(one_line(first)).append(f"\n{one_line(second)}" if second else "", style="dim")


def render_tree(tree: SearchTree, *, max_characters: int | None = None) -> RenderableType:
    """A problem's trees round by round: what was proposed (cut to `max_characters`), what it was worth, what was kept.

    Model and input text is shown as it is: no markup in it is interpreted, and control characters are escaped.
    """
    chosen = {node.id for node in tree.path(tree.chosen)} if tree.chosen is not None else set()
    parts: list[RenderableType] = [Text(shown(tree.problem.problem), style="italic"), Text("")]
    for number, end in enumerate(tree.ends):
        if len(tree.ends) > 1:
            parts.append(Text(f"tree {number + 1}", style="bold"))
        nodes = [node for node in tree.nodes if node.tree == number]
        parts.append(_rounds(nodes, chosen, tree.strategy.beam_size > 1, max_characters))
        why = [shown(refusal.reason) for refusal in tree.refusals if refusal.tree == number]
        parts.append(Text("\n".join([f"ended: {end}", *why]), style="dim"))
    conclusion = "no solution: not one step could be kept"
    if tree.chosen is not None:
        what = "chosen" if tree.nodes[tree.chosen].fate == "finished" else "unfinished, chosen"
        score = _range(*tree.score(tree.chosen))
        conclusion = f"{what}: score ({tree.strategy.aggregation}) {score}; {tree.num_rounds} rounds"
    return panel(tree.id, parts, conclusion, "green" if tree.chosen is not None and not tree.fell_back else "yellow")


def _rounds(nodes: Sequence[SearchNode], chosen: set[int], is_beam: bool, max_characters: int | None) -> Table:
    number = partial(Column, justify="right", no_wrap=True)
    table = Table(
        number("round", style="dim"), Column(no_wrap=True), *[number("after", style="dim")] * is_beam,
        number("reward"), number("drawn", style="dim"), Column("step", ratio=1),
        box=None, padding=(0, 1), header_style="dim", expand=True,
    )  # fmt: skip
    above = None
    for node in nodes:
        mark, style = _MARKS[node.fate]
        place = str(node.round + 1) if node.round != above else ""
        name = Text(f"{mark}{node.id}" if is_beam else mark, style=style)
        parent = ["" if node.parent == ROOT else str(node.parent)] * is_beam
        step = _step(node, node.id in chosen, max_characters)
        table.add_row(place, name, *parent, _reward(node), f"×{len(node.samples)}", step)
        above = node.round
    return table


def _step(node: SearchNode, is_chosen: bool, max_characters: int | None) -> Text:
    text = shown(node.step)
    text = text if max_characters is None or len(text) <= max_characters else f"{text[:max_characters]}…"
    style = "" if is_chosen else "dim" if node.fate in ("pruned", "dropped") else "cyan"
    step = Text(text or ("(the solution ends)" if node.fate != "dropped" else "(nothing)"), style=style)
    notes = {
        "ends the solution": node.fate == "finished" and node.step,
        "cut": node.finish_reason == "length",
        "dropped: said before": node.fate == "dropped" and node.step,
        "kept without a reward": node.fell_back,
        node.failure or "": node.failure,
    }
    told = "; ".join(note for note, holds in notes.items() if holds)
    return step.append(f"\n{shown(told)}", style="yellow") if told else step


def _reward(node: SearchNode) -> Text:
    if not node.step or node.fate == "dropped":
        return Text("")
    if not node.is_settled and not node.p_yes:
        return Text("not judged", style="dim")
    known = (node.low, node.low) if node.is_settled else (node.low, node.high or 0.0)
    return Text(_range(*known), style="yellow" if node.is_settled and node.low is None else "")


def _range(low: float | None, high: float | None) -> str:
    """A value that lies between two, or is none."""
    return "none" if high is None else f"{low:.2f}" if low == high else f"{low or 0.0:.2f}–{high:.2f}"
