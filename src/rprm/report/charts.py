"""Line charts as SVG. They are written by hand because the colours then are variables of the page: one picture serves
light and dark, its text is text, and a page takes no plotting library."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import TypeGuard

from rprm.benchmarks import Figure, ResultTable, TableLine
from rprm.showing import one_line

#: Colours and strokes, of the page and of a picture alone; lines differ in their dashes and marks too.
STYLE = """
:root { color-scheme: light dark; --paper: #fdfcf9; --ink: #1d1c1a; --soft: #5c5952; --rule: #cbc6bb; --wash: #f2efe7;
  --s0: #0b5fa5; --s1: #b8440f; --s2: #1b7547; --s3: #86408c; --s4: #756000; --s5: #ad2757;
  --right: #1b7547; --wrong: #b3261e; --open: #805800; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #16171a; --ink: #e8e5dd; --soft: #aaa69d; --rule: #46464c; --wash: #202226;
    --s0: #6cb4f2; --s1: #f0935c; --s2: #63c493; --s3: #d193d6; --s4: #d9bd4f; --s5: #f28bb0;
    --right: #63c493; --wrong: #ff8a80; --open: #e0b454; } }
.chart text { fill: var(--soft); font: 12px system-ui, sans-serif; }
.chart .grid, .chart .even { fill: none; stroke: var(--rule); stroke-width: .7; }
.chart .even { stroke: var(--soft); stroke-dasharray: 1 4; stroke-width: 1.2; }
.chart .share { fill: var(--rule); opacity: .55; }
.chart .paper { fill: var(--paper); }
.s0 { --s: var(--s0); } .s1 { --s: var(--s1); } .s2 { --s: var(--s2); } .s3 { --s: var(--s3); } .s4 { --s: var(--s4); }
.s5 { --s: var(--s5); }
.chart .line { fill: none; stroke: var(--s); stroke-width: 1.8; stroke-linejoin: round; }
.chart .interval { fill: none; stroke: var(--s); stroke-width: 1; opacity: .5; }
.chart .mark { fill: var(--paper); stroke: var(--s); stroke-width: 1.6; }
.s1 .line, .s4 .line { stroke-dasharray: 6 3; } .s2 .line, .s5 .line { stroke-dasharray: 2 2.5; }
"""
_COLOURS, _MARKED = 6, 24  # so many colours; so many points at most have marks
_MARKS = ("M-3 -3h6v6h-6z", "M0 -4l4 4l-4 4l-4 -4z", "M0 -4l4 7h-8z", "M0 4l4 -7h-8z")
_WIDTH, _LEFT, _RIGHT, _TOP, _HEIGHT = 460.0, 40.0, 12.0, 12.0, 220.0


@dataclass(frozen=True)
class Line:
    """Points with their intervals; a value that is None (or no number) is a gap."""

    name: str
    points: Sequence[tuple[float, Figure]]


@dataclass(frozen=True)
class Chart:
    """Lines in percent over one axis, from its first tick to its last."""

    name: str  #: of its file
    title: str
    x: str
    lines: Sequence[Line]
    ticks: Sequence[float]
    note: str = ""
    is_logarithmic: bool = False
    is_whole: bool = False  #: from 0 to 100, however small the values
    has_diagonal: bool = False
    shares: Sequence[tuple[float, float, float]] = ()  #: bars from x to x, whose heights are shares of 1

    def table(self) -> ResultTable:
        """The numbers, for those who do not see the lines."""
        by_x = {x: [dict(line.points).get(x, Figure(None)) for line in self.lines] for x in self._xs}
        lines = [TableLine(f"{x:g}", cells) for x, cells in by_x.items()]
        return ResultTable(self.title, (self.x, *(line.name for line in self.lines)), lines)

    @property
    def _xs(self) -> list[float]:
        return sorted({x for line in self.lines for x, _ in line.points})

    def svg(self, style: str = "") -> str:
        """The picture; with a `style` one that stands alone."""
        low, high, step = self._range()
        bottom = _TOP + _HEIGHT
        legend = [line.name for line in self.lines] if len(self.lines) > 1 else []
        height = bottom + 44 + 18 * len(legend)

        def across(x: float) -> float:
            first, x, last = (
                math.log2(one) if self.is_logarithmic else one for one in (self.ticks[0], x, self.ticks[-1])
            )
            return _LEFT + 8 + (_WIDTH - _LEFT - _RIGHT - 16) * ((x - first) / (last - first) if last > first else 0.5)

        def up(y: float) -> float:
            return bottom - _HEIGHT * (y - low) / (high - low)

        parts = [f'<rect class="paper" width="{_WIDTH:g}" height="{height:g}"/>'] if style else []
        for y in range(low, high + 1, step):
            parts.append(f'<path class="grid" d="M{_LEFT:g} {up(y):.1f}H{_WIDTH - _RIGHT:g}"/>')
            parts.append(f'<text x="{_LEFT - 6:g}" y="{up(y) + 4:.1f}" text-anchor="end">{y}</text>')
        for x in self.ticks:
            parts.append(f'<text x="{across(x):.1f}" y="{bottom + 17:g}" text-anchor="middle">{x:g}</text>')
        middle = (_LEFT + _WIDTH - _RIGHT) / 2
        parts.append(f'<text x="{middle:g}" y="{bottom + 36:g}" text-anchor="middle">{_text(self.x)}</text>')
        for start, end, share in self.shares:
            box = f'x="{across(start) + 1:.1f}" width="{max(0.0, across(end) - across(start) - 2):.1f}"'
            size = _HEIGHT * share
            parts.append(f'<rect class="share" {box} y="{bottom - size:.1f}" height="{size:.1f}"/>')
        if self.has_diagonal:
            ends = self.ticks[0], self.ticks[-1]
            parts.append(
                f'<path class="even" d="M{across(ends[0]):.1f} {up(low):.1f}L{across(ends[1]):.1f} {up(high):.1f}"/>'
            )
        for number, line in enumerate(self.lines):
            # Intervals at the same place stand side by side.
            shift = 4.0 * (number - (len(self.lines) - 1) / 2)
            parts.append(f'<g class="s{number % _COLOURS}">{_drawn(line, number, shift, across, up)}</g>')
        for number, name in enumerate(legend):
            place = f"translate({_LEFT:g} {bottom + 56 + 18 * number:g})"
            sample = f'<path class="line" d="M0 -4H26"/>{_mark(number, 13, -4)}'
            label = f'<text x="34">{_text(name if len(name) <= 56 else f"{name[:55]}…")}</text>'
            parts.append(f'<g class="s{number % _COLOURS}" transform="{place}">{sample}{label}</g>')
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" class="chart" role="img" viewBox="0 0 {_WIDTH:g} {height:g}">'
            f"<title>{_text(self.title)}</title>{f'<style>{style}</style>' if style else ''}{''.join(parts)}</svg>"
        )

    def _range(self) -> tuple[int, int, int]:
        """The lowest and the highest value of the axis, and from tick to tick."""
        figures = [figure for line in self.lines for _, figure in line.points]
        found = [one for figure in figures for one in (figure.value, figure.low, figure.high) if _is_number(one)]
        if self.is_whole or not found:
            return 0, 100, 20
        least, most = min(found), max(found)
        step = next(size for size in (2, 5, 10, 20) if size == 20 or most - least <= 5 * size)
        low = step * math.floor(least / step)
        return low, max(low + step, step * math.ceil(most / step)), step


def _drawn(
    line: Line, number: int, shift: float, across: Callable[[float], float], up: Callable[[float], float]
) -> str:
    path, pen, bars, marks = "", "M", "", ""
    for x, figure in line.points:
        if not _is_number(figure.value):
            pen = "M"
            continue
        path, pen = f"{path}{pen}{across(x):.1f} {up(figure.value):.1f}", "L"
        if _is_number(figure.low) and _is_number(figure.high):
            bars += f"M{across(x) + shift:.1f} {up(figure.low):.1f}V{up(figure.high):.1f}"
        if len(line.points) <= _MARKED:
            marks += _mark(number, across(x), up(figure.value))
    interval = f'<path class="interval" d="{bars}"/>' if bars else ""
    return (f'{interval}<path class="line" d="{path}"/>' if path else "") + marks


def _mark(number: int, x: float, y: float) -> str:
    if number % 5 == 0:
        return f'<circle class="mark" cx="{x:.1f}" cy="{y:.1f}" r="3.2"/>'
    return f'<path class="mark" transform="translate({x:.1f} {y:.1f})" d="{_MARKS[number % 5 - 1]}"/>'


def _is_number(value: float | None) -> TypeGuard[float]:
    return value is not None and math.isfinite(value)


def _text(text: str) -> str:
    # XML has no place for the two characters that are none.
    return escape(one_line(text)).translate({0xFFFE: "\ufffd", 0xFFFF: "\ufffd"})
