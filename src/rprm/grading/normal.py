r"""One of the many LaTeX and Unicode texts that look the same, and always the same one of them.

Brackets, signs of order and of sets become one character each (`\{` is `⦃`, `\leq` is `≤`, `\begin{pmatrix}` is `⟦`),
so that structure is told by characters. signs.txt and rewrites.txt say what becomes what.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from functools import partial
from pathlib import Path

_HERE = Path(__file__).parent
_LINES = [line.split() for line in (_HERE / "signs.txt").read_text("utf-8").splitlines() if line[0] != "#"]
#: Characters, and commands such as `\le`, with what stands for them; a command that is not there stays as it is.
_SIGNS = {name: {"nothing": "", "space": " "}.get(line[0], line[0]) for line in _LINES for name in line[1:]}
_CHARACTERS = str.maketrans(
    {name: f"{sign} " if sign[:1] == "\\" else sign for name, sign in _SIGNS.items() if name[0] != "\\"}
)
#: What a backslash and a character that is no letter stand for; the thin space of `\,` may separate thousands.
_ESCAPES = {"{": "⦃", "}": "⦄", "!": "", "$": "", "\\": "\\\\", "|": "‖"}
_ESCAPES |= dict.fromkeys(",;: ", "\u2009") | {sign: sign for sign in "%&#_"}
_SCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ₀₁₂₃₄₅₆₇₈₉", "0123456789+-n0123456789")
_THIN = re.compile(r"[\u2009~\s]+")
#: Braces around the whole that are taken away.
_MAX_WRAPPED = 4
_OPENING, _CLOSING = "([{⦃⟦", ")]}⦄⟧"

_nfkc = partial(unicodedata.normalize, "NFKC")
_Rule = tuple[str, re.Pattern[str], str | Callable[[re.Match[str]], str]]


def _without(characters: str) -> Callable[[re.Match[str]], str]:
    return lambda found: re.sub(f"[{characters}]", "", found[0])


def _rules() -> tuple[list[_Rule], list[_Rule]]:
    """rewrites.txt: the rules before commands are replaced, and those after."""
    stages: list[list[_Rule]] = [[], []]
    for line in (_HERE / "rewrites.txt").read_text("utf-8").splitlines():
        if line[0] == "#":
            stage = stages[line == "# After it."]
            continue
        needed, pattern, replacement = line.replace("␣", " ").split("\t")
        by = _without(replacement[8:]) if replacement.startswith("without ") else replacement.replace("nothing", "")
        stage.append(("" if needed == "-" else needed, re.compile(pattern), by))
    return stages[0], stages[1]


_BEFORE, _AFTER = _rules()
#: With commas that separate, `1,100` is two numbers: without the rule for thousands.
_AFTER_SPLIT = [rule for rule in _AFTER if r"\d{1,3}(?:,\d{3})+" not in rule[1].pattern]


def normal_text(text: str, split_numbers: bool = False) -> str:
    """The text in normal form; `split_numbers` leaves the comma in `1,100`."""
    if not text.isascii():
        for sign, scripts in (("^", "[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ]+"), ("_", "[₀₁₂₃₄₅₆₇₈₉]+")):
            text = re.sub(scripts, lambda found, sign=sign: f"{sign}{{{found[0].translate(_SCRIPTS)}}}", text)
        text = re.sub("[¼-¾⅐-⅞]", lambda found: rf"\frac{{{_nfkc(found[0])}}}".replace("⁄", "}{"), text)
        text = _nfkc(text.translate(_CHARACTERS)).translate(_CHARACTERS)
        text = "".join(character for character in text if unicodedata.category(character) != "Cf")
    if r"\begin" not in text:
        text = re.sub(r"\\\\(?=[a-zA-Z])", r"\\", text).removesuffix("\\\\")
    text = _rewritten(text, _BEFORE)
    text = re.sub(r"\\([a-zA-Z]+|.)", _command, text, flags=re.DOTALL).replace("$", "")
    text = _THIN.sub(" ", _rewritten(text, _AFTER_SPLIT if split_numbers else _AFTER)).strip()
    for _ in range(_MAX_WRAPPED):
        text = text.rstrip(".,;:= ")
        text = text if (inner := enclosed(text, "{", "}")) is None else inner
    # ISO's open brackets: ]2,5[ is (2,5).
    text = re.sub(r"^\](?=.*[\[\]]$)", "(", text)
    return re.sub(r"^([\[(].*)\[$", r"\1)", text)


def _rewritten(text: str, rules: list[_Rule]) -> str:
    for needed, pattern, replacement in rules:
        if needed in text:
            text = pattern.sub(replacement, text)
    return text


def _command(found: re.Match[str]) -> str:
    return _SIGNS.get(found[0], found[0]) if found[1].isalpha() else _ESCAPES.get(found[1], " ")


def split(text: str, separators: str) -> list[str]:
    """The parts of a text between separators that no bracket encloses, without spaces around and without empty ones."""
    parts, depth, begin = [], 0, 0
    for place, character in enumerate(text):
        if character in _OPENING:
            depth += 1
        elif character in _CLOSING:
            depth = max(depth - 1, 0)
        elif depth == 0 and character in separators:
            parts.append(text[begin:place].strip())
            begin = place + 1
    parts.append(text[begin:].strip())
    return parts if len(parts) == 1 else [part for part in parts if part] or [text]


def enclosed(text: str, opening: str, closing: str) -> str | None:
    """What stands between two brackets that enclose the whole text, None where they do not."""
    if len(text) < 3 or text[0] != opening or text[-1] != closing:
        return None
    depth = 0
    for place, character in enumerate(text):
        depth += (character in _OPENING) - (character in _CLOSING)
        if depth == 0 and place < len(text) - 1:
            return None
    return text[1:-1].strip() if depth == 0 else None
