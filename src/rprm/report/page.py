"""One HTML page of any runs: tables beside published figures, charts, solutions with their analyses.

The page has all it needs in it and runs no script. Every text in it passes through `showing` and is escaped, by the
template's environment and not by each place that prints one.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

from rprm.benchmarks import Figure, ResultTable, TableLine
from rprm.benchmarks.mathematics import AVERAGE, SearchMeasurement
from rprm.errors import EngineError
from rprm.report.charts import STYLE, Chart, Line
from rprm.report.judged import KINDS, Judged, SolutionView
from rprm.report.measures import measured_result
from rprm.report.searched import Searched, curve_of
from rprm.runs import SUMMARY, read_summary
from rprm.showing import shown

_UNKNOWN = Figure(None)
#: A figure that benchmarks may have beside their own.
_FALSE_ALARMS = "false_alarm_rate"


class Published(NamedTuple):
    """A published row: its figures in percent, by the names of a benchmark's figures, and where they stand."""

    label: str
    figures: Mapping[str, float]
    source: str


#: By benchmark (`mathematics`: of search), the rows that stand beside runs on it.
PUBLISHED: Mapping[str, Sequence[Published]] = {}


@dataclass
class RunPart:
    """What a page has of one run."""

    name: str
    folder: str
    facts: list[tuple[str, str]]
    views: list[SolutionView]
    kinds: list[tuple[str, str, int, int]]  #: class, name, how many solutions there are of it, how many are shown
    notes: Sequence[str] = ()
    table: ResultTable | None = None
    charts: Sequence[Chart] = ()


@dataclass
class Part:
    """A benchmark's part of a page."""

    heading: str
    results: ResultTable
    costs: ResultTable
    charts: list[Chart] = field(default_factory=list)
    runs: list[RunPart] = field(default_factory=list)


def judged_part(runs: Sequence[Judged], published: Sequence[Published] = ()) -> Part:
    """Runs on one benchmark."""
    charts: list[Chart] = []
    notes: list[str] = []
    measured = [run.measured for run in runs if run.measured]
    columns = list(dict.fromkeys(name for one in measured for name in _columns(one.headline, one.figure_names)))
    lines: list[TableLine | None] = []
    for run in runs:
        figures = run.measured.figures if run.measured else {}
        detail = f"{_model(run.manifest['settings'])}; {run.usage.num_solutions:,} solutions"
        lines.append(TableLine(f"{run.name}\n{detail}", [figures.get(name, _UNKNOWN) for name in columns], "bold"))
        notes += [f"{run.name} has no figures: {run.why_not}"] * bool(run.why_not)
    for ids in dict.fromkeys(one.ids for one in measured):
        here = next(one for one in measured if one.ids == ids)
        cells = [Figure(here.position.get(name)) for name in columns]
        lines.append(TableLine(f"position only\nthe index of a step alone, of {len(ids):,} items", cells))
        if not here.position:
            notes.append(
                "position only: not known (too few items, or the benchmark does not say which steps are right)"
            )
    if rows := _published(published, columns):
        lines += [None, *rows]
        notes.append("below the line: published figures, of the whole benchmark, as their sources give them")
    if measured:
        notes.append(
            f"in percent, with 95% intervals from {measured[0].num_resamples:,} bootstrap resamples of the items"
        )
    headline = measured[0].headline if measured else "figure"
    group, dot, leaf = headline.rpartition(".")
    is_split = dot and headline in columns
    headings = [
        name.rpartition(".")[0] or _words(name) if is_split else _words(name.rpartition(".")[2]) for name in columns
    ]
    title = (
        f"{runs[0].heading}, {_words(leaf)} by {'subset' if group == AVERAGE else group}"
        if is_split
        else runs[0].heading
    )
    results = ResultTable(title, ("", *headings), lines, notes)
    known_curves = [run for run in runs if isinstance(run.thresholds, Line)]
    if thresholds := [run.thresholds for run in known_curves if isinstance(run.thresholds, Line)]:
        own = ", ".join(f"{run.name} {run.manifest['settings']['threshold']:g}" for run in known_curves)
        note = f"Thresholds of the runs: {own}. The best of a curve was chosen on the items it is measured on."
        ticks = [tenth / 10 for tenth in range(0, 11, 2)]
        charts.append(Chart("thresholds", f"{_words(headline)} by threshold", "threshold", thresholds, ticks, note))
    if curves := [(run, run.curve) for run in runs if not isinstance(run.curve, str)]:
        by_k = [Line(run.name, [(float(k), figure) for k, figure, _ in curve.points]) for run, curve in curves]
        ticks = sorted({k for line in by_k for k, _ in line.points})
        tokens = "; ".join(
            f"{run.name}: {', '.join(f'{one:,.0f} at K = {k}' for k, _, one in curve.points)}" for run, curve in curves
        )
        note = f"Each K is the mean over disjoint subsets of a run's analyses. Tokens an item, {tokens}."
        charts.append(Chart("k", f"{_words(headline)} by K", "K, analyses", by_k, ticks, note, is_logarithmic=True))
    part = Part(runs[0].heading, results, _costs(runs), charts)
    for run in runs:
        missing = {"F1 by threshold": run.thresholds, "A curve by K": run.curve}
        absent = [f"{what} is not to be had: {why}" for what, why in missing.items() if isinstance(why, str) and why]
        table = measured_result(run.measured) if run.measured else None
        part.runs.append(_run_part(run, [*run.notes, *absent], table, run.charts))
    return part


def searched_part(
    measured: SearchMeasurement | str, runs: Sequence[Searched], published: Sequence[Published] = ()
) -> Part:
    """Runs of the search commands."""
    notes = [measured] if isinstance(measured, str) else [*measured.notes, "accuracy in percent, with 95% intervals"]
    columns, headings, lines, charts = [], [], [], []  # type: ignore[var-annotated]
    if isinstance(measured, SearchMeasurement):
        columns = [*measured.sets, *[AVERAGE] * (len(measured.sets) > 1)]
        headings = [*measured.names.values(), *[AVERAGE] * (len(measured.sets) > 1), "policy tokens", "judge tokens"]
        for row in measured.rows:
            tokens = ["not known" if one is None else f"{one:,.0f}" for one in (row.policy_tokens, row.judge_tokens)]
            cells = [*(row.figures[name] for name in columns), *tokens]
            lines.append(TableLine(f"{row.method}\n{row.model}", cells, "bold"))
        rows = _published(published, columns)
        lines += [*[None] * bool(rows), *rows]
        charts = curve_of(measured)
    costs = {run.name: dict(_counts(run.folder)) for run in runs}
    names = list(dict.fromkeys(name for counts in costs.values() for name in counts))
    table = [TableLine(name, [counts.get(name, "–") for counts in costs.values()]) for name in names]
    seconds = TableLine("seconds", [_seconds(run.manifest) for run in runs])
    cost = ResultTable("Counts and time", ("", *costs), [*table, seconds])
    part = Part("Search", ResultTable("Problems solved", ("", *headings), lines, notes), cost, charts)
    part.runs = [_run_part(run, run.notes, None, ()) for run in runs]
    return part


def page(parts: Sequence[Part], names: Sequence[str]) -> str:
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
    return environment.from_string(own.joinpath("page.html").read_text(encoding="utf-8")).render(
        parts=parts, names=names, kinds=KINDS, style=Markup(style), # noqa: S704 (ours)
        digest=base64.b64encode(hashlib.sha256(style.encode()).digest()).decode(),
        picture=lambda chart: Markup(chart.svg()),  # noqa: S704 (escapes its texts)
    )  # fmt: skip


def pictures(parts: Iterable[Part]) -> Iterator[tuple[str, str]]:
    """The charts of a page as files: their names, in order, and what they hold."""
    charts = [chart for part in parts for chart in (*part.charts, *(one for run in part.runs for one in run.charts))]
    for number, chart in enumerate(charts, 1):
        yield f"figure-{number:02d}-{chart.name}.svg", f"{chart.svg(STYLE)}\n"


def _published(rows: Iterable[Published], columns: Sequence[str]) -> list[TableLine]:
    """Those that have one of the figures, the highest of the last first."""
    known = [row for row in rows if row.figures.keys() & set(columns)]
    known.sort(key=lambda row: -row.figures.get(columns[-1], 0.0))
    return [
        TableLine(f"{row.label}\n{row.source}", [Figure(row.figures.get(name)) for name in columns]) for row in known
    ]


def _words(name: str) -> str:
    """The name of a figure as people read it: "Average F1"."""
    text = name.replace(".", " ").replace("_", " ")
    return f"{text[:1].upper()}{text[1:]}".replace("f1", "F1")


def _columns(headline: str, names: Sequence[str]) -> list[str]:
    """The headline and its like: `average.f1` and the F1 of each subset (of one subset all figures); false alarms."""
    _, dot, leaf = headline.rpartition(".")
    like = [name for name in names if ("." in name) == bool(dot) and name.rpartition(".")[2] == (leaf if dot else name)]
    if len(groups := {name.rpartition(".")[0] for name in like} - {headline.rpartition(".")[0]}) == 1:
        like = [name for name in names if name.rpartition(".")[0] in groups]
    return [*like, *(name for name in names if name == _FALSE_ALARMS and name not in like)]


def _costs(runs: Sequence[Judged]) -> ResultTable:
    rows: dict[str, list[str]] = {}
    for run in runs:
        usage, solutions = run.usage, max(1, run.usage.num_solutions)
        for name, value in {
            "solutions": f"{usage.num_solutions:,}",
            "solutions that could not be judged": f"{usage.num_unjudged:,}",
            "steps judged": f"{usage.num_steps_judged:,} of {usage.num_steps:,}",
            "steps without a reward": f"{usage.num_steps_uncovered:,}",
            "analyses": f"{usage.num_analyses:,}",
            "analyses without a verdict": f"{usage.num_analyses_without_verdict:,}",
            "tokens generated": f"{usage.num_generated_tokens:,}",
            "tokens a solution": f"{usage.num_generated_tokens / solutions:,.0f}",
            "seconds": _seconds(run.manifest),
        }.items():
            rows.setdefault(name, []).append(value)
    lines = [TableLine(name, cells) for name, cells in rows.items()]
    return ResultTable("Coverage, tokens and seconds", ("", *(run.name for run in runs)), lines)


def _counts(folder: Path) -> Iterator[tuple[str, str]]:
    """The totals of a run of search; none of one that is not finished."""
    if (folder / SUMMARY).exists():
        for name, value in read_summary(folder).items():
            yield name.removeprefix("num_").replace("_", " "), f"{value:,}" if isinstance(value, int) else str(value)


def _seconds(manifest: Mapping[str, Any]) -> str:
    """Of all sessions, as far as each lived to say."""
    known = [session.get("seconds") for session in manifest["sessions"]]
    total = f"{sum(filter(None, known)):,.1f}"
    return total if None not in known else f"at least {total}: a session was killed, or goes on"


def _run_part(
    run: Judged | Searched, notes: Sequence[str], table: ResultTable | None, charts: Sequence[Chart]
) -> RunPart:
    views, counts = run.sample.views(), run.sample.counts
    kinds = [
        (kind, name, counts[kind], sum(view.kind == kind for view in views))
        for kind, name in KINDS.items()
        if counts.get(kind)
    ]
    facts = [*_flat(run.manifest["settings"]), *_flat({"sessions": len(run.manifest["sessions"])})]
    session = run.manifest["sessions"][-1]
    facts += [("begun", str(run.manifest["sessions"][0].get("started_at"))), *_flat(session.get("versions", {}))]
    return RunPart(run.name, str(run.folder), facts, views, kinds, notes, table, charts)


def _flat(settings: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{above}{name}.")
        else:
            # A place on the machine that judged is of no use to a reader of the page.
            text = str(value)
            yield f"{above}{name}", Path(text).name if text.startswith("/") else text


def _model(settings: Mapping[str, Any]) -> str:
    """What judged, in a line."""
    engine = settings.get("engine") or {}
    known = dict(_flat(engine if isinstance(engine, Mapping) else {}))
    model = ":".join(filter(None, (known.get("kind"), known.get("model")))) or "model not known"
    count = f", K = {settings['num_analyses']}" if "num_analyses" in settings else ""
    return f"{settings.get('rewarder') or 'judge'} {model}{count}"
