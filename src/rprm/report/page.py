"""One HTML page of any runs: tables beside published figures, charts, solutions with their analyses.

The page has all it needs in it and runs no script. Every text in it passes through `showing` and is escaped, by the
template's environment and not by each place that prints one.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

from rprm.benchmarks import Figure, ResultTable, TableLine
from rprm.benchmarks.cost import cost_of
from rprm.benchmarks.mathematics import AVERAGE, SearchMeasurement
from rprm.errors import EngineError
from rprm.report.charts import STYLE, Chart, Line
from rprm.report.measures import measured_result
from rprm.report.reported import KINDS, Reported, cut
from rprm.report.solutions import analysis_title
from rprm.reproduce import published_rows
from rprm.runs import read_summary
from rprm.showing import shown

#: Totals that say too little by their names.
_COUNTS = {
    "num_wrong": "with an error found", "num_unjudged": "that could not be judged", "num_rejected": "rejected rows",
    "num_steps_uncovered": "steps without a reward", "num_steps_cut": "steps cut short by the model's context",
}  # fmt: skip
_TOP = 8  #: published rows that stand beside runs at once
_FALSE_ALARMS = "false_alarm_rate"  # a figure that benchmarks may have beside their own


class Published(NamedTuple):
    """A published row: figures in percent, by the names of a benchmark's; its table, and where it stands."""

    label: str
    figures: Mapping[str, float]
    about: str
    source: str = ""


def published(benchmark: str) -> Iterator[Published]:
    """The published rows of a benchmark; of search (`mathematics`) each method's."""
    for row in published_rows().values():
        table, _, name = row.name.partition("/")
        by_method: defaultdict[str, dict[str, float]] = defaultdict(dict)
        for figure, value in row.published.items():
            method, _, column = figure.rpartition("/")
            by_method[method][column] = value
        for method, figures in by_method.items():
            if benchmark == ("mathematics" if method else table):
                yield Published(f"{method} {name}".strip(), figures, row.table.about, row.table.source)


@dataclass
class Part:
    """A benchmark's part of a page."""

    heading: str
    runs: Sequence[Reported]
    results: ResultTable
    costs: ResultTable
    charts: Sequence[Chart]
    published: ResultTable | None = None  #: all rows, where the results have the highest alone


def judged_part(runs: Sequence[Reported]) -> Part:
    """Runs on one benchmark."""
    measured = [run.measured for run in runs if run.measured]
    headline = measured[0].headline if measured else ""
    columns = list(dict.fromkeys(name for one in measured for name in _columns(one.headline, one.figure_names)))
    lines: list[TableLine | None] = []
    notes = [f"{run.name} has no figures: {run.why_not}" for run in runs if run.why_not]
    for run in runs:
        figures = run.measured.figures if run.measured else {}
        detail = f"{_model(run.settings)}; {run.usage.num_solutions:,} solutions"
        cells = [figures.get(name, Figure(None)) for name in columns]
        lines.append(TableLine(f"{run.name}\n{detail}", cells, "bold"))
    for ids, one in {one.ids: one for one in measured}.items():
        cells = [Figure(one.position.get(name)) for name in columns]
        lines.append(TableLine(f"position only\nthe index of a step, of {len(ids):,} items", cells))
        if not one.position:
            notes.append("position only is not known: too few items, or steps that are known right or wrong")
    if len({one.ids for one in measured}) > 1:
        notes.append("the runs are of different items, on which their figures rest")
    published = _published(runs[0].benchmark, columns, list(map(_words, columns)), by=columns[:1])
    lines, is_folded = _beside(lines, published, notes)
    notes += [f"95% intervals are of {one.num_resamples:,} bootstrap resamples of the items" for one in measured[:1]]
    results = ResultTable(f"{runs[0].heading}: figures in percent", ("", *map(_words, columns)), lines, notes)
    charts = list(_curves(runs, _words(headline)))
    return Part(runs[0].heading, runs, results, _costs(runs), charts, published if is_folded else None)


def _curves(runs: Sequence[Reported], headline: str) -> Iterator[Chart]:
    """The headline by threshold and by K, of the runs that know it; the others' notes say why not."""
    for run in runs:
        for what, why in (("The curve by threshold", run.thresholds), ("The curve by K", run.curve)):
            run.notes += [f"{what} is not known: {why}"] if isinstance(why, str) and why else []
    known = {run.name: run for run in runs if isinstance(run.thresholds, Line)}
    if lines := [run.thresholds for run in runs if isinstance(run.thresholds, Line)]:
        own = ", ".join(f"{name} {run.settings['threshold']:g}" for name, run in known.items())
        note = f"Thresholds of the runs: {own}. The best of a curve was chosen on the items it is measured on."
        ticks = [tenth / 10 for tenth in range(0, 11, 2)]
        yield Chart("thresholds", f"By threshold: {headline}", "threshold", lines, ticks, note)
    if curves := {run.name: run.curve for run in runs if not isinstance(run.curve, str)}:
        lines = [Line(name, [(one.k, one.figure) for one in curve.points]) for name, curve in curves.items()]
        tokens = {name: ", ".join(f"{one.tokens:,.0f}" for one in curve.points) for name, curve in curves.items()}
        note = "Each K is the mean of the figures of disjoint subsets of a run's analyses. Tokens an item, K by K: "
        note += "; ".join(f"{name} {listed}" for name, listed in tokens.items()) + "."
        lost = [f"{name} {one.lacking:,.1f} at K = {one.k}" for name, curve in curves.items() for one in curve.points
                if one.lacking]  # fmt: skip
        note += f" Items without a full prediction, which count as wrong: {'; '.join(lost)}." if lost else ""
        ticks = sorted({k for line in lines for k, _ in line.points})
        yield Chart("k", f"By K: {headline}", "K, analyses", lines, ticks, note, is_logarithmic=True)


def searched_part(runs: Sequence[Reported], measured: SearchMeasurement | str) -> Part:
    """Runs of the search commands."""
    columns, notes, all_published = [""], [f"not measured: {measured}"], None
    lines: list[TableLine | None] = []
    if isinstance(measured, SearchMeasurement):
        sets = [*measured.sets, *[AVERAGE] * (len(measured.sets) > 1)]
        columns += [*measured.names.values(), *sets[len(measured.sets) :], "policy tokens", "judge tokens"]
        for row in measured.rows:
            tokens = ["not known" if one is None else f"{one:,.0f}" for one in (row.policy_tokens, row.judge_tokens)]
            lines.append(TableLine(f"{row.method}\n{row.model}", [*map(row.figures.get, sets), *tokens], "bold"))  # type: ignore[list-item]
        published = _published("mathematics", sets, columns[1 : len(sets) + 1], by=sets[-1:])
        what = "problems and of their candidates; tokens are of a problem"
        notes = [f"95% intervals are of {measured.num_resamples:,} bootstrap resamples of the {what}"]
        notes += measured.notes
        lines, is_folded = _beside(lines, published, notes)
        all_published = published if is_folded else None
    results = ResultTable("Problems solved, in percent", columns, lines, notes)
    return Part("Search", runs, results, _costs(runs), [], all_published)


def page(parts: Sequence[Part]) -> str:
    """The page. `EngineError` where jinja2 is not installed."""
    try:
        from jinja2 import Environment, StrictUndefined
        from markupsafe import Markup
    except ImportError:
        raise EngineError('a page needs jinja2: pip install ".[report]"') from None
    own = resources.files("rprm.report")
    style = STYLE + own.joinpath("page.css").read_text(encoding="utf-8")
    environment = Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined,
        finalize=lambda value: shown(value) if isinstance(value, str) and not isinstance(value, Markup) else value,
    )  # fmt: skip
    # The style is ours, and a chart escapes its texts.
    return environment.from_string(own.joinpath("page.html").read_text(encoding="utf-8")).render(
        parts=parts, runs=[run for part in parts for run in part.runs], kinds=KINDS, cut=cut, dumps=json.dumps,
        analysis_title=analysis_title,
        figures_of=measured_result, picture=lambda chart: Markup(chart.svg()), style=Markup(style),  # noqa: S704
        digest=base64.b64encode(hashlib.sha256(style.encode()).digest()).decode(),
    )  # fmt: skip


def pictures(parts: Iterable[Part]) -> Iterator[tuple[str, str]]:
    """The charts of a page as files, in its order: their names and what they hold."""
    charts = [chart for part in parts for some in (part.charts, *(run.charts for run in part.runs)) for chart in some]
    for number, chart in enumerate(charts, 1):
        yield f"figure-{number:02d}-{chart.name}.svg", f"{chart.svg(STYLE)}\n"


def _beside(
    lines: Sequence[TableLine | None], published: ResultTable, notes: list[str]
) -> tuple[list[TableLine | None], bool]:
    """Lines of results with the highest published ones below them, and whether there are more; a note says so."""
    is_folded = len(published.lines) > _TOP
    if published.lines:
        which = f"the highest {_TOP} of {len(published.lines)} published rows" if is_folded else "published figures"
        notes.append(f"below the line: {which}, of the whole benchmark, as their sources give them")
        notes += [] if is_folded else published.notes
    return [*lines, *[None] * bool(published.lines), *published.lines[:_TOP]], is_folded


def _published(benchmark: str, columns: Sequence[str], words: Sequence[str], *, by: Sequence[str]) -> ResultTable:
    """Rows that have one of the figures, the highest of `by` first; below them their sources."""
    rows = [row for row in published(benchmark) if row.figures.keys() & set(columns)]
    rows.sort(key=lambda row: [-row.figures.get(name, 0.0) for name in by])
    lines = [
        TableLine(f"{row.label}\n{row.about}", [Figure(row.figures.get(name)) for name in columns]) for row in rows
    ]
    sources = dict.fromkeys(f"{row.about}: {row.source}" for row in rows if row.source)
    return ResultTable("Published figures in percent", ("", *words), lines, list(sources))


def _words(name: str) -> str:
    """The name of a figure as people read it: "average F1"."""
    return name.replace(".", " ").replace("_", " ").replace("f1", "F1")


def _columns(headline: str, names: Sequence[str]) -> list[str]:
    """The headline and its like: `average.f1` and the F1 of each subset (of one subset all figures); false alarms. What
    counts most comes first: a phone shows three columns at once."""
    group, dot, leaf = headline.rpartition(".")
    like = [name for name in names if ("." in name) == bool(dot) and (not dot or name.endswith(f".{leaf}"))]
    if len(groups := {name.rpartition(".")[0] for name in like} - {group}) == 1:
        like = [name for name in names if name.rpartition(".")[0] in groups]
    more = [name for name in names if name == _FALSE_ALARMS and name not in like]
    # Of one subset its own F1 is the headline.
    return [*sorted(like, key=lambda name: (name != headline, not name.endswith(f".{leaf}"))), *more]


def _costs(runs: Sequence[Reported]) -> ResultTable:
    """What is covered, and what it took."""
    counts: dict[str, dict[str, str]] = {}
    for run in runs:
        is_whole = run.manifest.get("status") == "complete"
        found = read_summary(run.folder) if is_whole else run.usage.as_dict() if run.usage.num_solutions else {}
        named = {_COUNTS.get(name, name.removeprefix("num_").replace("_", " ")): value for name, value in found.items()}
        if run.measured and named:
            # Each prompt once, as engines compute it.
            named["prompt tokens"] = run.measured.scores.num_prompt_tokens or "not known"
        counts[run.name] = {name: f"{one:,}" if isinstance(one, int) else f"{one!s:.40}" for name, one in named.items()}
        if run.usage.num_solutions:
            a_solution = run.usage.num_generated_tokens / run.usage.num_solutions
            counts[run.name]["generated tokens a solution"] = f"{a_solution:,.0f}"
        cost = cost_of(run.folder)
        # A session that does not say was killed, or goes on.
        counts[run.name]["seconds"] = f"{'at least ' * bool(cost.untimed_sessions)}{cost.seconds or 0.0:,.1f}"
    names = [*dict.fromkeys(name for found in counts.values() for name in found if name != "seconds"), "seconds"]
    lines = [TableLine(name, [found.get(name, "–") for found in counts.values()]) for name in names]
    return ResultTable("Coverage, tokens and seconds", ("", *counts), lines)


def _model(settings: Any) -> str:
    """What judged, in a line, by the settings of its manifest."""
    engine = settings.of("engine", dict[str, Any] | None) or {}
    # Of a model on the machine that judged, its folder's name.
    model = Path(str(engine.get("model"))).name if str(engine.get("model")).startswith("/") else engine.get("model")
    count = f", K = {settings['num_analyses']}" if "num_analyses" in settings else ""
    return f"{settings.get('rewarder')} {engine.get('kind', 'model')}:{model or 'not known'}{count}"
