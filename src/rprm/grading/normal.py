r"""One of the many LaTeX and Unicode texts that look the same, by the tables beside this file.

Brackets, signs of order and of sets become one character each: `\{` is `⦃`, `\leq` is `≤`, `\begin{pmatrix}` is `⟦`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path
from types import SimpleNamespace
from unicodedata import normalize


def _lines(name: str) -> list[str]:
    lines = (Path(__file__).parent / name).read_text("utf-8").splitlines()
    return [line for line in lines if line and line[:2] != "//"]


_UNITS = [line.split() for line in _lines("units.txt")]
#: Units, each with its one spelling. One of these is never another; other nouns (`apples`, `fruits`) may be.
SYNONYMS = {other: line[1] for line in _UNITS if line[0] == "=" for other in line[1:]}
#: Number words and their values.
NUMBERS = {word: int(value) for value, word in map(str.split, _lines("numbers.txt"))}

_WORDS = {"nothing": "", "space": " ", "thin": "\u2009"}
#: Characters, and commands such as `\le`, with what stands for them in normal form.
_SIGNS = {name: _WORDS.get(sign, sign) for sign, *names in map(str.split, _lines("signs.txt")) for name in names}
_CHARACTERS = str.maketrans({name: sign + " " * (sign[:1] == "\\") for name, sign in _SIGNS.items() if len(name) == 1})


def _replacement(text: str) -> str | Callable[[re.Match[str]], str]:
    if text == "signs":
        return lambda found: _SIGNS.get(found[0], found[0] if found[1].isalpha() else " ")
    if text.startswith("without "):
        return lambda found: re.sub(f"[{text[8:]}]", "", found[0])
    return _WORDS.get(text, text)


def rewritten(name: str, text: str, split_numbers: bool = False) -> str:
    """The text rewritten by a table; `split_numbers` leaves the comma in `1,100`."""
    for needed, pattern, replacement in _REWRITES[name]:
        if needed in text or (needed == "thousands" and not split_numbers and "," in text):
            text = pattern.sub(replacement, text)
    return text.strip()


def _expanded(pattern: str) -> str:
    return re.sub("<([a-z_]+)>", lambda found: _TEXTS[found[1]], pattern)


_NOUNS = {word + end for line in _UNITS for word in line if len(word) > 1 and word != "per" for end in ("", "s", "es")}
_TEXTS = {"unit_word": "|".join(sorted(_NOUNS, reverse=True)), "number_word": "|".join(NUMBERS)}
for _line in "\n".join(_lines("patterns.txt")).replace("\n\t", "").split("\n"):
    _TEXTS[_line.partition("\t")[0]] = _expanded(_line.partition("\t")[2])
#: patterns.txt: a compiled pattern a name.
P = SimpleNamespace(**{name: re.compile(pattern) for name, pattern in _TEXTS.items()})

#: What a text must hold, a pattern, and what stands for it, by table.
_REWRITES = {
    name: [
        (needed.removeprefix("any"), re.compile(_expanded(pattern)), _replacement(by))
        for needed, pattern, by in (line.replace("␣", " ").split("\t") for line in _lines(name))
    ]
    for name in ("rewrites.txt", "equations.txt", "latex.txt")
}


def normal_text(text: str, split_numbers: bool = False) -> str:
    """The text in normal form; `split_numbers` leaves the comma in `1,100`."""
    if not text.isascii():
        for pattern, by in (("[⁰¹²³⁴-⁹⁺⁻ⁿ]+", r"^{\g<0>}"), ("[₀-₉]+", r"_{\g<0>}"), ("[¼-¾⅐-⅞]", r"\\frac{\g<0>}")):
            text = re.sub(pattern, by, text)
        text = normalize("NFKC", text.translate(_CHARACTERS)).replace("⁄", "}{").translate(_CHARACTERS)
    text = rewritten("rewrites.txt", text, split_numbers)
    for _ in range(4):
        text = text.rstrip(".,;:= ")
        text = text if (inner := enclosed(text, "{", "}")) is None else inner
    return text


def _depths(text: str) -> list[int]:
    """How many brackets are open after each character."""
    steps = ((character in "([{⦃⟦⟪") - (character in ")]}⦄⟧⟫") for character in text)
    return list(accumulate(steps, lambda depth, step: max(depth + step, 0)))


def split(text: str, separators: str) -> list[str]:
    """The parts of a text between separators that no bracket encloses, without spaces around and without empty ones."""
    depths = _depths(text) if any(sign in text for sign in separators) else []
    cuts = [place for place, depth in enumerate(depths) if depth == 0 and text[place] in separators]
    parts = [text[begin + 1 : end].strip() for begin, end in zip([-1, *cuts], [*cuts, len(text)], strict=True)]
    return [part for part in parts if part] or [text]


def enclosed(text: str, opening: str, closing: str) -> str | None:
    """What stands between two brackets that enclose the whole text, None where they do not."""
    if len(text) < 3 or text[0] != opening or text[-1] != closing:
        return None
    *inside, last = _depths(text)
    return text[1:-1].strip() if all(inside) and last == 0 else None
