"""What stands in quotes: quotation marks, inline code, fenced blocks, block quotes.

Whether a place is quoted depends on the text before it alone, so that it is known as soon as the place is read. Double
quotation marks reach to the end of their paragraph where they are never closed, single ones and inline code to the end
of their line. An apostrophe, a prime and an inch mark open nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

#: The marks that open a quotation wherever they stand, each with those that close it.
_PAIRS = {"“": "”", "„": "“”", "‘": "’'", "«": "»", "‹": "›", "「": "」", "『": "』"}
#: Marks that open and close.
_DOUBLE = '"＂”'
_LINE_SCOPED = ("'", "’'", "`")
_TOKEN = re.compile(r"\n|`+|''?|[\"＂”“„‘’«»‹›「」『』]")
_LINE = re.compile(
    r"[^\S\n]*(?:(?:[-*+•]|\d{1,3}[.)])[^\S\n]+)?"
    r"(?:(?P<blank>\n|\Z)|(?P<fence>`{3,}|~{3,})(?P<info>[^`\n]*)(?=\n|\Z)|(?P<block>>))"
)
_SUFFIX = re.compile(r"(?:s|t|d|m|ll|re|ve)(?![^\W_])")


def unquoted(text: str, start: int, end: int, places: Iterable[re.Match[str]]) -> Iterator[re.Match[str]]:
    """Those of the places, in the order of the text, that do not begin in a quotation of text[start:end]."""
    quotes, tokens = _Quotes(text, start, end), _TOKEN.finditer(text, start, end)
    token = next(tokens, None)
    for place in places:
        while token is not None and token.start() < place.start():
            quotes.pass_over(token)
            token = next(tokens, None)
        if not quotes.is_open:
            yield place


class _Quotes:
    """Which quotation is open, at a place that moves on through a text."""

    def __init__(self, text: str, start: int, end: int) -> None:
        self.text = text
        self.start = start
        self.end = end
        self.closers = ""  # what closes the quotation that is open; empty where none is
        self.fence = ""
        self.in_block = False
        self._begin_line(start)

    @property
    def is_open(self) -> bool:
        return bool(self.closers or self.fence or self.in_block)

    def pass_over(self, token: re.Match[str]) -> None:
        """Read a line end or a mark."""
        mark = token[0]
        if mark == "\n":
            self._begin_line(token.end())
        elif self.fence:
            return
        elif self.closers:
            if self._closes(mark, token):
                self.closers = ""
        elif mark in _PAIRS:
            self.closers = _PAIRS[mark]
        elif mark[0] == "`":
            self.closers = mark
        elif (mark in _DOUBLE or mark == "'") and self._opens(mark, token):
            self.closers = '"”' if mark in '"”' else mark

    def _begin_line(self, place: int) -> None:
        if self.closers.startswith(_LINE_SCOPED):
            self.closers = ""
        self.in_block = False
        line = _LINE.match(self.text, place, self.end)
        if line is None:
            return
        if line["fence"]:
            if not self.fence:
                self.fence = line["fence"]
            elif line["fence"].startswith(self.fence) and not line["info"].strip():
                self.fence = ""
        elif line["blank"] is not None:
            self.closers = ""
        else:
            self.in_block = not self.fence

    def _closes(self, mark: str, token: re.Match[str]) -> bool:
        if self.closers[0] == "`":
            # ``In TeX's way'' too.
            return mark == self.closers or (self.closers == "``" and mark == "''")
        if mark[0] in "'’" and mark[0] in self.closers:
            # An apostrophe within the quotation does not.
            return not self._after(token).isalnum()
        return mark in self.closers

    def _opens(self, mark: str, token: re.Match[str]) -> bool:
        before = self.text[token.start() - 1] if token.start() > self.start else " "
        after = self._after(token)
        if not after or after.isspace() or after in ".,;:!?)]}":
            return False
        if mark == "'":
            return not before.isalnum() and before not in ")]}$\\" and not _SUFFIX.match(self.text, token.end())
        return not before.isdigit()

    def _after(self, token: re.Match[str]) -> str:
        return self.text[token.end() : token.end() + 1] if token.end() < self.end else ""
