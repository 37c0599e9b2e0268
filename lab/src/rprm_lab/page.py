"""The lab's findings as one page: each of the paper's effects beside ours, plotted like its figures."""

from __future__ import annotations

import html
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rprm.errors import EngineError
from rprm_lab.findings import CLASSIFIER, RPRM, Estimate, Findings

if TYPE_CHECKING:
    from rich.table import Table

    from rprm_lab.plan import LabSettings


@dataclass(frozen=True)
class Claim:
    """An effect of the paper, and where the lab has it.

    Attributes:
        name: in words.
        effect: its name among `Findings.effects`.
        paper: in points of F1, or of problems solved.
        goal: the least that the lab wants; 0 for an interval above it.
    """

    name: str
    effect: str
    paper: float
    goal: float


def claims(settings: LabSettings) -> list[Claim]:
    """The paper's effects (arXiv 2503.21295), by the names that this lab's settings give them."""
    majority = f"majority@{settings.num_candidates}"
    guided = f"guided search ({settings.num_candidates} steps a round, last), {RPRM}"
    most = settings.scaling_analyses
    teacher = f"student over teacher, K = {settings.num_analyses}"
    return [
        *(
            Claim(f"R-PRM over the classifier, {size:,} steps", f"R-PRM over classifier, {size:,} steps", 8.7, 8.7)
            for size in settings.sizes
        ),
        Claim("preference rounds over the cold start", "preference rounds over cold start", 5.2, 5.2),
        Claim(f"K = {most} over K = 1", f"K = {most} over 1", 10.4, 10.4),
        Claim("the student over its teacher, at the same K", teacher, 65.2 - 57.4, 0.0),
        Claim("guided search over pass@1", f"{guided} over pass@1", 8.4, 8.4),
        Claim(f"guided search over {majority}", f"{guided} over {majority}", 1.4, 0.0),
    ]


def claims_table(findings: Findings, settings: LabSettings) -> Table:
    """The effects for a terminal."""
    from rich.table import Table

    table = Table(box=None, padding=(0, 1))
    for name in ("effect", "paper", "goal", "lab", "95% interval", "reached"):
        table.add_column(name, justify="left" if name == "effect" else "right")
    for row in _claim_rows(findings, settings):
        table.add_row(*row)
    return table


def page(findings: Findings, settings: LabSettings) -> str:
    """One HTML page, its figures within it.

    Raises:
        EngineError: matplotlib is not installed.
    """
    parts = [
        "<h1>R-PRM in the lab</h1>",
        "<p>A small world of word problems in which the truth of every step is known. Judge and classifier start from "
        "one base model. Figures are means over seeds with 95% intervals, which cover the choice of the "
        "solutions judged and, with more seeds than one, what differs between seeds. R-PRM's threshold is 0.5; on "
        "ProcessBench's F1 the classifier has the one that is best on the solutions judged, which favours it.</p>",
        "<h2>The paper's effects</h2>",
        _html_table(("effect", "paper", "goal", "lab", "95% interval", "reached"), _claim_rows(findings, settings)),
        _label_share(findings),
    ]
    for experiment, title, axis, logarithmic in _FIGURES:
        if curves := findings.curves.get(experiment):  # type: ignore[call-overload]
            parts += [
                f"<h2>{title}</h2>",
                _svg(curves, axis, logarithmic),
                _html_table(*_curve_rows(curves, axis)),
                _seeds(findings, experiment),
            ]
    for experiment, title in _TABLES:
        if table := findings.tables.get(experiment):  # type: ignore[call-overload]
            columns = list(dict.fromkeys(column for row in table.values() for column in row))
            rows = [[name, *(_cell(row.get(column)) for column in columns)] for name, row in table.items()]
            parts += [f"<h2>{title}</h2>", _html_table(["", *columns], rows), _seeds(findings, experiment)]
    parts += [
        "<h2>Settings</h2>",
        _html_table(("setting", "value"), [[k, str(v)] for k, v in settings.as_dict().items()]),
    ]
    body = "\n".join(parts)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>R-PRM in the lab</title>{_STYLE}</head>'
        f"<body>{body}</body></html>\n"
    )


_FIGURES = (
    ("data", "By labelled steps: R-PRM's cold start and the classifier", "labelled steps", True),
    ("rounds", "Preference rounds, with the K of the other experiments and with K = 1", "round (0: cold start)", False),
    ("scaling", "Inference-time scaling", "K, analyses of a step", True),
)
_TABLES = (
    ("teacher", "Student and teacher: F1"),
    ("types", "By type of the error: labelled steps called rightly, in percent"),
    ("guidance", "Guiding the policy: problems solved, in percent, and differences in points"),
    ("critic", "One pass of a critic, or K analyses of every step: F1 and generated tokens"),
    ("ood", "Out of distribution: longer chains, larger numbers, unseen wordings"),
)
_STYLE = (
    "<style>:root{color-scheme:light dark}body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;"
    "padding:0 1rem}table{border-collapse:collapse;margin:1rem 0;font-variant-numeric:tabular-nums}"
    "th,td{padding:.2rem .8rem;text-align:right;border-bottom:1px solid #8884}th:first-child,td:first-child"
    "{text-align:left}svg{max-width:100%;height:auto;background:#fff}p.seeds{color:#777;font-size:.9rem}</style>"
)


def _claim_rows(findings: Findings, settings: LabSettings) -> list[list[str]]:
    rows = []
    for claim in claims(settings):
        found = findings.effects.get(claim.effect)
        paper = f"{claim.paper:+.1f}"
        goal = f"≥ {claim.goal:+.1f}" if claim.goal else "> 0"
        if found is None:
            rows.append([claim.name, paper, goal, "not run", "", ""])
            continue
        reached = found.value >= claim.goal if claim.goal else found.low > 0.0
        interval = f"[{found.low:+.1f}, {found.high:+.1f}]"
        rows.append([claim.name, paper, goal, f"{found.value:+.1f}", interval, "yes" if reached else "no"])
    return rows


def _label_share(findings: Findings) -> str:
    if "data" not in findings.curves:
        return ""
    share = findings.label_share
    said = "no size suffices" if share is None else f"{share:.0f}% of the labelled steps (goal and paper: 15%)"
    return f"<p>To reach the classifier's best F1, R-PRM needs: {said}.</p>"


def _curve_rows(curves: Mapping[str, Mapping[int, Estimate]], axis: str) -> tuple[list[str], list[list[str]]]:
    places = sorted({place for line in curves.values() for place in line})
    rows = [[f"{place:,}", *(_cell(line.get(place)) for line in curves.values())] for place in places]
    return [axis, *(f"F1 of {name}" for name in curves)], rows


def _cell(found: Estimate | None) -> str:
    return "" if found is None else f"{found.value:.1f} [{found.low:.1f}, {found.high:.1f}]"


def _seeds(findings: Findings, experiment: Any) -> str:
    number = findings.num_seeds.get(experiment, 0)
    return f'<p class="seeds">{number} seed{"s" * (number != 1)}.</p>'


def _html_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{html.escape(heading)}</th>" for heading in headings)
    body = "".join(f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _svg(curves: Mapping[str, Mapping[int, Estimate]], axis: str, logarithmic: bool) -> str:
    """Lines with their intervals, and each seed as a dot."""
    try:
        from matplotlib.figure import Figure
        from matplotlib.ticker import NullLocator, ScalarFormatter
    except ImportError:
        raise EngineError('the lab\'s page needs matplotlib: pip install ".[report]"') from None
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    colours = {RPRM: "#1f77b4", CLASSIFIER: "#d62728"}
    for name, line in curves.items():
        places = sorted(line)
        found = [line[place] for place in places]
        errors = [[one.value - one.low for one in found], [one.high - one.value for one in found]]
        colour = colours.get(name)
        axes.errorbar(
            places, [one.value for one in found], yerr=errors, marker="o", capsize=3, label=name, color=colour
        )
        for place, one in zip(places, found, strict=True):
            axes.plot([place] * len(one.by_seed), one.by_seed, ".", markersize=4, color=colour, alpha=0.5)
    ticks = sorted({place for line in curves.values() for place in line})
    if logarithmic:
        axes.set_xscale("log", base=2)
    axes.set_xticks(ticks)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.set_xlabel(axis)
    axes.set_ylabel("F1")
    axes.grid(alpha=0.3)
    axes.legend()
    stream = io.StringIO()
    figure.savefig(stream, format="svg", metadata={"Date": None})
    text = stream.getvalue()
    return text[text.index("<svg") :]
