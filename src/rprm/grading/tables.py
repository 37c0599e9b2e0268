"""The tables beside this file: how texts are rewritten, what they look like, units."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace


def _lines(name: str) -> list[str]:
    lines = (Path(__file__).parent / name).read_text("utf-8").splitlines()
    return [line for line in lines if line and line[:2] != "//"]


_UNITS = [line.split() for line in _lines("units.txt")]
#: Units, each with its one spelling.
SYNONYMS = {other: line[1] for line in _UNITS if line[0] == "=" for other in line[1:]}
#: Units of which one is never another; nouns (`apples`, `fruits`) may be.
MEASURES = frozenset(SYNONYMS.values())

_WORDS = {"nothing": "", "space": " ", "thin": "\u2009"}
#: Characters, and commands such as `\le`, with what stands for them in normal form.
SIGNS = {name: _WORDS.get(sign, sign) for sign, *names in map(str.split, _lines("signs.txt")) for name in names}


def _replacement(text: str) -> str | Callable[[re.Match[str]], str]:
    if text == "signs":
        return lambda found: SIGNS.get(found[0], found[0] if found[1].isalpha() else " ")
    if text.startswith("without "):
        return lambda found: re.sub(f"[{text[8:]}]", "", found[0])
    return _WORDS.get(text, text)


_ROWS = (line.replace("␣", " ").split("\t") for line in _lines("rewrites.txt"))
#: What a text must hold, a pattern, and what stands for it in normal form.
REWRITES = [(needed.removeprefix("any"), re.compile(pattern), _replacement(by)) for needed, pattern, by in _ROWS]


class _Table(SimpleNamespace):
    def __getattr__(self, name: str) -> re.Pattern[str]:
        raise AttributeError(f"patterns.txt has no {name}")


def _patterns() -> _Table:
    units = {word for line in _UNITS for word in line if len(word) > 1 and word != "per"}
    texts = {"unit_word": "|".join(sorted((unit + end for unit in units for end in ("", "s", "es")), reverse=True))}
    for line in "\n".join(_lines("patterns.txt")).replace("\n\t", "").split("\n"):
        name, _, pattern = line.partition("\t")
        texts[name] = re.sub("<([a-z_]+)>", lambda found: texts[found[1]], pattern)
    return _Table(**{name: re.compile(pattern) for name, pattern in texts.items()})


#: patterns.txt: a compiled pattern a name.
P = _patterns()
