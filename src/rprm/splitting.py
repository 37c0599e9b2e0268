"""Solutions cut into steps. Every search is linear in the length of the text."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from itertools import pairwise

from rprm.thinking import without_thinking

_TAG = re.compile(r"(?<!\w)ки(?!\w)|<extra_0>")
_BLANK_LINES = re.compile(r"\n(?:[^\S\n]|[\u200b-\u200d\u2060\ufeff])*\n\s*")
_RULE = re.compile(r"\s*(?:-{3,}|\*{3,}|_{3,})\s*")
#: A line that is a Markdown heading or begins with the number of a step; with it, a rule on a line before.
_HEADING = re.compile(
    r"^(?:[^\S\n]*(?:-{3,}|\*{3,}|_{3,})[^\S\n]*\n\s*^)?"
    r"(?P<heading>(?P<lead>(?:[^\w\n]|_){0,12})Step[^\S\n]?#?(?P<number>\d{1,3})(?!\d)"
    r"(?P<end>(?:[^\S\n]?\([^()\n]{1,80}\))?[*_]{0,3}[^\S\n]?(?:[:：)\]]|[–—-](?!\d)|\.(?!\d)|$))?"
    r"|(?P<title>#{1,6})[^\S\n])",
    re.IGNORECASE | re.MULTILINE,
)
_HEADING_IN_LINE = re.compile(r"(?<!\S)Step[^\S\n]?(?P<number>\d{1,3})[^\S\n]?[:：]", re.IGNORECASE)
_MARKED = re.compile(r"#|\*\*|__")
_HEADING_ALONE = re.compile(r"\s*#{1,6}[^\S\n][^\n]*\s*")
_UNNUMBERED_HEADING = re.compile(r"\s*#{1,6}[^\S\n](?![^\w\n]{0,12}step[^\S\n]?\#?\d)[^\n]*\s*", re.IGNORECASE)
_MARK = re.compile(r"\\\\|\\[\[\]]|\$\$|\\begin\{(?P<name>\w+\*?)\}|\\end\{\w+\*?\}|\[/?asy\]|`{3,}|(?m:^)~{3,}")
_CLOSINGS = {"\\[": "\\]", "$$": "$$", "[asy]": "[/asy]"}
#: TeX's commands that begin with n, without it: no line ends spelled out.
_N_COMMANDS = (
    "abla|atural|cong|e|earrow|eg|eq|ewline|ewpage|exists|geq|geqq|geqslant|gtr|i|icefrac|leq|leqq|leqslant|less|mid|obreak"
    "|oindent|olimits|onumber|orm|ormalfont|ormalsize|ot|otin|parallel|prec|preceq|sim|subseteq|succ|succeq|supseteq|u|um"
    "|triangleleft|triangleright|warrow|[LR]ightarrow|[lr]eftarrow|[Ll]eft[Rr]ightarrow|[lr]ightarrow|[vV][dD]ash"
)
_SPELLED_LINE_END = re.compile(rf"(?P<before>(?<!\\)(?:\\\\)*)(?:\\r)?\\n(?!(?:{_N_COMMANDS})(?![a-zA-Z]))")
#: One that nothing else could be: no lower-case letter after it.
_SPELLED_OUT = re.compile(rf"{_SPELLED_LINE_END.pattern}(?![a-z])")


def split_steps(solution: str) -> list[str]:
    r"""Cut a solution into steps, by the first of these rules that finds more than one:

    1. after every tag of a process reward model (`ки`, `<extra_0>`); the tags are dropped;
    2. before every heading `Step 1:`, `## Step 2`, `**Step 3**`, where there are two or more, and before Markdown
       headings of their level; the text before the first is cut at its blank lines;
    3. at every blank line;
    4. at every line end.

    None cuts inside display mathematics, drawings (`[asy]...[/asy]`) and fenced blocks. A Markdown heading alone is of
    the step after it; a rule (`---`) of none. Thinking is no part of a solution. Line ends of a single line that spells
    them out, as `\n`, count. Steps are stripped of the space around them, and empty ones dropped.
    """
    text = re.sub(r"\r\n?|[\x85\u2028]", "\n", without_thinking(solution)).replace("\u2029", "\n\n").strip()
    if "\n" not in text and _SPELLED_OUT.search(text):
        text = _SPELLED_LINE_END.sub(r"\g<before>\n", text)
    steps = _cut_at(_TAG, text)
    if len(steps) > 1:
        return steps
    text = _TAG.sub("", text)
    if headings := _step_headings(text):
        first = headings[0][0]
        cuts = ((low - first, high - first) for low, high in headings)
        return _cut_at(_BLANK_LINES, text[:first]) + _cut(text[first:], cuts, _UNNUMBERED_HEADING)
    steps = _cut_at(_BLANK_LINES, text)
    return _cut_at(re.compile("\n"), text) if len(steps) == 1 else steps


def _cut_at(separator: re.Pattern[str], text: str) -> list[str]:
    return _cut(text, (match.span() for match in _outside(separator.finditer(text), text)))


def _cut(text: str, separators: Iterable[tuple[int, int]], joined: re.Pattern[str] = _HEADING_ALONE) -> list[str]:
    """The pieces between the separators (start and end of each, in order); `joined` are never pieces of their own."""
    pieces, start = [], 0
    for low, high in separators:
        if not joined.fullmatch(text, start, low):
            pieces.append(text[start:low])
            start = high
    pieces.append(text[start:])
    return [piece.strip() for piece in pieces if piece.strip() and not _RULE.fullmatch(piece)]


def _step_headings(text: str) -> list[tuple[int, int]]:
    """The cuts before the headings of two or more steps and those of their level, each with the rule before it."""
    if "\n" not in text:
        # Within a line a step may just be spoken of: only a text that counts its steps from its beginning is cut there.
        inline = list(_HEADING_IN_LINE.finditer(text))
        numbers = [int(match["number"]) for match in inline]
        counted = len(numbers) > 1 and all(later == number + 1 for number, later in pairwise(numbers))
        return [(match.start(), match.start()) for match in inline] if counted and not inline[0].start() else []
    headings = list(_outside(_HEADING.finditer(text), text))
    headings = [one for one in headings if one["title"] or one["end"] is not None or _MARKED.search(one["lead"])]
    steps = [one for one in headings if one["title"] is None]
    if len({one["number"] for one in steps}) < 2:
        return []
    level = max(one["lead"].count("#") for one in steps) or 6
    return [(one.start(), one.start("heading")) for one in headings if len(one["title"] or "") <= level]


def _outside(matches: Iterable[re.Match[str]], text: str) -> Iterator[re.Match[str]]:
    """The matches, in order, that do not begin inside of what is never cut."""
    spans = _unbroken(text)
    span = next(spans, None)
    for match in matches:
        while span is not None and span[1] <= match.start():
            span = next(spans, None)
        if span is None or match.start() <= span[0]:
            yield match


def _unbroken(text: str) -> Iterator[tuple[int, int]]:
    """The spans of display mathematics, environments, drawings and fenced blocks, from the left, none in another."""
    marks = list(_MARK.finditer(text))
    places: dict[str, list[int]] = {}
    for index, mark in enumerate(marks):
        places.setdefault(mark[0], []).append(index)
    index = 0
    while index < len(marks):
        opening, name, sign = marks[index], marks[index]["name"], marks[index][0]
        closing = f"\\end{{{name}}}" if name else _CLOSINGS.get(sign, sign if sign[0] in "`~" else "")
        closings = places.get(closing, [])
        place = bisect_right(closings, index)
        if place < len(closings):
            index = closings[place]
            yield opening.start(), marks[index].end()
        index += 1
