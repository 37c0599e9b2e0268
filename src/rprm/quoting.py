"""What stands in quotes: quotation marks, inline code, fenced blocks, block quotes.

Whether a place is quoted depends on the text before it alone, so that it is known as soon as the place is read. Double
quotation marks reach to the end of their paragraph where they are never closed, single ones and inline code to the end
of their line. An apostrophe, a prime and an inch mark open nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import chain

#: The marks that open a quotation wherever they stand, each with those that close it.
_PAIRS = {"“": "”", "„": "“”", "‘": "’'", "«": "»", "‹": "›", "「": "」", "『": "』"}
#: Marks that open and close.
_OPENING = ('"', "＂", "”", "'")
_LINE_SCOPED = ("'", "’'", "`")
_TOKEN = re.compile(r"\n|`+|''?|[\"＂”“„‘’«»‹›「」『』]")
_LINE = re.compile(
    r"[^\S\n]*(?:(?:[-*+•]|\d{1,3}[.)])[^\S\n]+)?"
    r"(?:(?P<blank>\n|\Z)|(?P<fence>`{3,}|~{3,})(?P<info>[^`\n]*)(?=\n|\Z)|(?P<block>>))"
)
_SUFFIX = re.compile(r"(?:s|t|d|m|ll|re|ve)(?![^\W_])")


def unquoted(text: str, start: int, end: int, places: Iterable[re.Match[str]]) -> Iterator[re.Match[str]]:
    """Those of the places, in the order of the text, that do not begin in a quotation of text[start:end]."""
    marks, is_open = _marks(text, start, end), False
    mark = next(marks, None)
    for place in places:
        while mark is not None and mark[0] < place.start():
            is_open, mark = mark[1], next(marks, None)
        if not is_open:
            yield place


def _marks(text: str, start: int, end: int) -> Iterator[tuple[int, bool]]:
    """Where each mark and line end stands, and whether a quotation is open after it."""
    closers = fence = ""  # what closes the quotation and the block that are open
    in_block = False
    for token in chain((None,), _TOKEN.finditer(text, start, end)):
        mark, place = (token[0], token.end()) if token else ("\n", start)
        after = text[place : min(place + 1, end)]
        if mark == "\n":
            line = _LINE.match(text, place, end)
            if closers.startswith(_LINE_SCOPED) or (line and line["blank"] is not None):
                closers = ""
            if line and line["fence"]:
                if not fence:
                    fence = line["fence"]
                elif line["fence"].startswith(fence) and not line["info"].strip():
                    fence = ""
            in_block = bool(line and line["block"]) and not fence
        elif fence:
            pass
        elif closers:
            if closers[0] == "`":
                is_end = mark == closers or (closers == "``" and mark == "''")  # ``In TeX's way'' too.
            elif mark[0] in "'’" and mark[0] in closers:
                is_end = not after.isalnum()  # An apostrophe within the quotation does not end it.
            else:
                is_end = mark in closers
            closers = "" if is_end else closers
        elif mark in _PAIRS:
            closers = _PAIRS[mark]
        elif mark[0] == "`":
            closers = mark
        elif mark in _OPENING and after and not (after.isspace() or after in ".,;:!?)]}"):
            before = text[place - 2] if place - 1 > start else " "
            if mark != "'":
                closers = "" if before.isdigit() else '"”' if mark in '"”' else mark
            elif not (before.isalnum() or before in ")]}$\\" or _SUFFIX.match(text, place)):
                closers = mark
        yield token.start() if token else start - 1, bool(closers or fence or in_block)
