"""What stands in quotes: quotation marks, inline code, fenced blocks, block quotes, HTML that quotes.

Each kind is looked for by itself, whatever the others hold: what any of them may quote is no text of its own. A mark
quotes up to the mark that closes it, over lines and paragraphs. One that is never closed quotes the rest of its line
(single marks and inline code), of its paragraph (the others) or of the text (fences); it may be closed yet, so that
what follows is in doubt. An apostrophe, a prime and an inch mark open nothing.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from functools import cached_property
from itertools import accumulate

#: All marks that open or close a quotation.
MARKS = "\"＂“”„'‘’«»‹›「」『』《》`"

#: What closes each mark, kind by kind.
_KINDS: tuple[dict[str, str], ...] = (
    {'"': '"”＂', "＂": '"”＂', "“": "”", "„": "“”", "”": "”"},
    {"'": "'’", "‘": "’'"},
    {"«": "»", "»": "«", "‹": "›", "›": "‹"},
    {"「": "」", "『": "』", "《": "》"},
)
_BLANK_LINE = re.compile(r"\n[^\S\n]*(?:\n|\Z)")
_SUFFIX = re.compile(r"(?:s|t|d|m|ll|re|ve)(?![^\W_])")
_ENTITY = "&(?:quot|#34);"
_LIST = r"(?:(?:[-*+•]|\d{1,3}[.)])[^\S\n]+)?"
_CODE = re.compile(r"(?<!`)``?(?!`)|''")
_FENCE = re.compile(rf"(?P<line>^[^\S\n]*{_LIST})?(?P<fence>`{{3,}}|~{{3,}})(?P<info>[^`\n]*)", re.MULTILINE)
#: A block quote goes on to a blank line, with or without more of its signs.
_BLOCK = re.compile(rf"^[^\S\n]*{_LIST}>[^\n]*(?:\n[^\S\n]*\S[^\n]*)*", re.MULTILINE)
_ELEMENT = re.compile(
    r"[<\[](?P<end>/?)(?P<name>blockquote|quote|q|cite|pre|code|samp)\b[^<>\[\]]{0,80}[>\]]", re.IGNORECASE
)

#: The characters [start, end) that a mark quotes, and whether something closes it.
_Span = tuple[int, int, bool]


class Quotations:
    """What stands in quotes in text[start:end], found when it is first asked for."""

    def __init__(self, text: str, start: int, end: int) -> None:
        self.start = start
        self._text = text
        self._end = end

    def holds(self, place: int) -> bool:
        """Whether a place stands in quotes."""
        begins, reaches, _ = self._found
        before = bisect_left(begins, place - self.start)
        return bool(before) and reaches[before - 1] > place - self.start

    def may_hold(self, place: int) -> bool:
        """Whether a place stands in quotes, or may turn out to: a quotation before it is still open."""
        return self.holds(place) or place - self.start > self._found[2]

    @cached_property
    def _found(self) -> tuple[list[int], list[int], int]:
        """Where quotations begin, how far all up to each reach, and where the first begins that nothing closes."""
        spans = sorted(_spans(self._text[self.start : self._end]))
        reaches = list(accumulate((span[1] for span in spans), max))
        return [span[0] for span in spans], reaches, min((span[0] for span in spans if not span[2]), default=self._end)


def _spans(text: str) -> Iterator[_Span]:
    for kind in _KINDS:
        yield from _quotations(text, kind)
    yield from _code(text)
    yield from _fences(text)
    yield from ((match.start() - 1, match.end(), True) for match in _BLOCK.finditer(text))  # a whole line
    yield from _elements(text)


def _quotations(text: str, kind: dict[str, str]) -> Iterator[_Span]:
    marks = "".join({*kind, *"".join(kind.values())})
    entity = f"|{_ENTITY}" if '"' in kind else ""
    if not any(mark in text for mark in marks) and not (entity and "&" in text):
        return
    # With what begins a paragraph before it: a mark there opens its quotation anew.
    tokens = re.finditer(rf"(?P<paragraph>\n[^\S\n]*\n[^\S\n]*)?(?P<mark>[{marks}]{entity})", text)
    openers: list[tuple[int, int, str]] = []
    closers: dict[str, list[int]] = {}
    for token in tokens:
        mark, begin, end = token["mark"], token.start("mark"), token.end()
        mark = '"' if mark[0] == "&" else mark
        before, after = text[begin - 1] if begin else " ", text[end : end + 1]
        opens = mark in kind and _opens(mark, before, after, text, end)
        if opens:
            openers.append((begin, end, mark))
        if not (opens and token["paragraph"] and after.strip()) and not (mark in "'’" and after.isalnum()):
            closers.setdefault(mark, []).append(end)
    scope = re.compile(r"\n") if "'" in kind else _BLANK_LINE
    yield from _paired(text, openers, {mark: [closers.get(one, []) for one in kind[mark]] for mark in kind}, scope)


def _opens(mark: str, before: str, after: str, text: str, end: int) -> bool:
    if mark == "'":
        if before.isalnum() or before in ")]}$\\" or _SUFFIX.match(text, end):
            return False
        return after == "\n" or (bool(after.strip()) and after not in ".,;:!?)]}")
    if mark in '"＂”':
        # After a word or a number, and before no word, it closes or means inches.
        return before.isspace() or before in "([{<>:,;=|/*_—–-" or after.isalnum()
    return mark not in "»›" or not after.isspace()


def _paired(
    text: str, openers: list[tuple[int, int, str]], closers: dict[str, list[list[int]]], scope: re.Pattern[str]
) -> Iterator[_Span]:
    """Each mark up to the first that closes it.

    Args:
        openers: start, end and name of the marks that open.
        closers: for each name the ends of the marks that close it, sorted, in any number of lists.
        scope: what ends the quotation of a mark that is never closed.
    """
    reached = 0
    for begin, end, name in openers:
        if begin < reached:
            continue
        ends = [places[index] for places in closers[name] if (index := bisect_right(places, end)) < len(places)]
        if ends:
            reached = min(ends)
        else:
            limit = scope.search(text, end)
            reached = limit.start() if limit else len(text)
        yield begin, reached, bool(ends)


def _code(text: str) -> Iterator[_Span]:
    tokens = list(_CODE.finditer(text)) if "`" in text else []
    openers = [(token.start(), token.end(), token[0]) for token in tokens if token[0] != "''"]
    ends = {mark: [token.end() for token in tokens if token[0] == mark] for mark in ("`", "``", "''")}
    # ``In TeX's way'' too.
    yield from _paired(text, openers, {"`": [ends["`"]], "``": [ends["``"], ends["''"]]}, re.compile(r"\n"))


def _fences(text: str) -> Iterator[_Span]:
    begin, fence = 0, ""
    for token in _FENCE.finditer(text) if "```" in text or "~~~" in text else ():
        at_line_start = token["line"] is not None
        if not fence:
            if at_line_start or token["fence"][0] == "`":
                begin, fence = token.start(), token["fence"]
        elif token["fence"].startswith(fence) and not (at_line_start and token["info"].strip()):
            yield begin, token.end("fence"), True
            fence = ""
    if fence:
        yield begin, len(text), False


def _elements(text: str) -> Iterator[_Span]:
    tokens = list(_ELEMENT.finditer(text))
    openers = [(token.start(), token.end(), token["name"].casefold()) for token in tokens if not token["end"]]
    ends: dict[str, list[list[int]]] = {name: [[]] for _, _, name in openers}
    for token in tokens:
        if token["end"] and token["name"].casefold() in ends:
            ends[token["name"].casefold()][0].append(token.end())
    # One that is never closed may be a variable in brackets: it quotes nothing yet.
    yield from _paired(text, openers, ends, re.compile(""))
