"""Line charts as SVG, by hand: their colours are variables of the page, so that one picture serves light and dark, and
its text is text. A plotting library writes colours and glyphs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from rprm.benchmarks import Figure, ResultTable, TableLine
from rprm.showing import one_line

#: Colours and strokes, of the page and of a picture alone; lines differ in their dashes too.
STYLE = """:root { color-scheme: light dark; --paper: #fdfcf9; --ink: #1d1c1a; --soft: #5c5952; --rule: #cbc6bb;
  --wash: #f2efe7; --s0: #0b5fa5; --s1: #b8440f; --s2: #1b7547; --s3: #86408c; --right: #1b7547; --wrong: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --paper: #16171a; --ink: #e8e5dd; --soft: #aaa69d; --rule: #46464c;
  --wash: #202226; --s0: #6cb4f2; --s1: #f0935c; --s2: #63c493; --s3: #d193d6; --right: #63c493; --wrong: #ff8a80; } }
.chart text { fill: var(--soft); font: 12px system-ui, sans-serif; } .chart path { fill: none; }
.chart .grid { stroke: var(--rule); stroke-width: .7; } .chart .even { stroke: var(--soft); stroke-dasharray: 1 4; }
.chart .share { fill: var(--rule); opacity: .55; } .chart .paper, .chart circle { fill: var(--paper); }
.s0 { --s: var(--s0); } .s1 { --s: var(--s1); } .s2 { --s: var(--s2); } .s3 { --s: var(--s3); }
.chart .line, .chart circle { stroke: var(--s); stroke-width: 1.7; } .chart .interval { stroke: var(--s); opacity: .5; }
.s1 .line { stroke-dasharray: 6 3; } .s2 .line { stroke-dasharray: 2 2.5; } .s3 .line { stroke-dasharray: 9 3 2 3; }
"""
_WIDTH, _LEFT, _RIGHT, _TOP, _BOTTOM = 460, 40, 448, 12, 232


@dataclass(frozen=True)
class Line:
    """Values in percent with their intervals; one that is None is a gap."""

    name: str
    points: Sequence[tuple[float, Figure]]


@dataclass(frozen=True)
class Chart:
    """Lines over one axis, from its first tick to its last."""

    name: str  #: of its file
    title: str
    x: str
    lines: Sequence[Line]
    ticks: Sequence[float]
    note: str = ""
    is_logarithmic: bool = False
    is_whole: bool = False  #: from 0 to 100, however small the values
    shares: Sequence[tuple[float, float, float]] = ()  #: bars from x to x, of shares of 1, below a diagonal

    def table(self) -> ResultTable:
        """The numbers, for those who do not see the lines."""
        points = [dict(line.points) for line in self.lines]
        xs = sorted({x for known in points for x in known})
        lines = [TableLine(f"{round(x, 2):g}", [known.get(x, Figure(None)) for known in points]) for x in xs]
        return ResultTable(self.title, (self.x, *(line.name for line in self.lines)), lines)

    def svg(self, style: str = "") -> str:
        """The picture; with a `style` one that stands alone."""
        low, high, step = self._levels()
        legend = self.lines if len(self.lines) > 1 else ()
        height = _BOTTOM + 44 + 18 * len(legend)

        def across(x: float) -> float:
            first, x, last = (
                math.log2(one) if self.is_logarithmic else one for one in (self.ticks[0], x, self.ticks[-1])
            )
            return _LEFT + 8 + (_RIGHT - _LEFT - 16) * ((x - first) / (last - first) if last > first else 0.5)

        def up(y: float) -> float:
            return _BOTTOM - (_BOTTOM - _TOP) * (y - low) / (high - low)

        parts = [f'<style>{style}</style><rect class="paper" width="{_WIDTH}" height="{height}"/>'] if style else []
        for y in range(low, high + 1, step):
            parts.append(
                f'<path class="grid" d="M{_LEFT} {up(y):.1f}H{_RIGHT}"/>{_label(_LEFT - 6, up(y) + 4, y, "end")}'
            )
        parts += [_label(across(x), _BOTTOM + 17, f"{x:g}") for x in self.ticks]
        parts.append(_label((_LEFT + _RIGHT) / 2, _BOTTOM + 36, self.x))
        for start, end, share in self.shares:
            box = f'x="{across(start) + 1:.1f}" width="{across(end) - across(start) - 2:.1f}"'
            parts.append(
                f'<rect class="share" {box} y="{up(100 * share):.1f}" height="{_BOTTOM - up(100 * share):.1f}"/>'
            )
        if self.shares:
            parts.append(f'<path class="even" d="M{across(0):.1f} {up(0):.1f}L{across(100):.1f} {up(100):.1f}"/>')
        for number, line in enumerate(self.lines):
            # Intervals at the same place stand side by side.
            drawn = _drawn(line, 4.0 * (number - (len(self.lines) - 1) / 2), across, up)
            parts.append(f'<g class="s{number % 4}">{drawn}</g>')
        for number, line in enumerate(legend):
            place, name = f"translate({_LEFT} {_BOTTOM + 56 + 18 * number})", _label(34, 0, f"{line.name:.60}", "start")
            parts.append(f'<g class="s{number % 4}" transform="{place}"><path class="line" d="M0 -4H26"/>{name}</g>')
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" class="chart" role="img" viewBox="0 0 {_WIDTH} {height}">'
            f"<title>{_text(self.title)}</title>{''.join(parts)}</svg>"
        )

    def _levels(self) -> tuple[int, int, int]:
        """The lowest and the highest value of the axis, and from tick to tick."""
        figures = [figure for line in self.lines for _, figure in line.points]
        found = [one for figure in figures for one in (figure.value, figure.low, figure.high) if one is not None]
        if self.is_whole or not found:
            return 0, 100, 20
        step = next(size for size in (2, 5, 10, 20, 50) if size == 50 or max(found) - min(found) <= 5 * size)
        low = step * math.floor(min(found) / step)
        return low, max(low + step, step * math.ceil(max(found) / step)), step


def _drawn(line: Line, shift: float, across: Callable[[float], float], up: Callable[[float], float]) -> str:
    path, pen, bars, marks = "", "M", "", ""
    for x, figure in line.points:
        if figure.value is None:
            pen = "M"
            continue
        path, pen = f"{path}{pen}{across(x):.1f} {up(figure.value):.1f}", "L"
        marks += f'<circle cx="{across(x):.1f}" cy="{up(figure.value):.1f}" r="3"/>'
        if figure.low is not None and figure.high is not None:
            bars += f"M{across(x) + shift:.1f} {up(figure.low):.1f}V{up(figure.high):.1f}"
    drawn = (("interval", bars), ("line", path))
    return "".join(f'<path class="{name}" d="{found}"/>' for name, found in drawn if found) + marks


def _label(x: float, y: float, text: object, anchor: str = "middle") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{_text(str(text))}</text>'


def _text(text: str) -> str:
    # XML has no place for the two characters that are none.
    return escape(one_line(text)).translate({0xFFFE: "\ufffd", 0xFFFF: "\ufffd"})
