r"""One of the many LaTeX and Unicode texts that look the same, and always the same one of them.

Brackets, signs of order and of sets become one character each (`\{` is `⦃`, `\leq` is `≤`, `\begin{pmatrix}` is `⟦`),
so that structure can be told by looking at characters; algebra.py turns them back for math-verify's grammar.
"""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path
from typing import Any

_LINES = [
    line.split() for line in (Path(__file__).parent / "signs.txt").read_text("utf-8").splitlines() if line[0] != "#"
]
_SIGNS = {name: {"nothing": "", "space": " "}.get(line[0], line[0]) for line in _LINES for name in line[1:]}
_CHARACTERS = str.maketrans(
    {name: f"{sign} " if sign[:1] == "\\" else sign for name, sign in _SIGNS.items() if name[0] != "\\"}
)
#: Commands and what stands for them; one that is not there stays as it is.
_COMMANDS = {name: sign for name, sign in _SIGNS.items() if name[0] == "\\"}
_SCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ₀₁₂₃₄₅₆₇₈₉", "0123456789+-n0123456789")
#: What a backslash and a character that is no letter stand for; the space of `\,` may separate thousands.
_ESCAPES = (
    {"{": "⦃", "}": "⦄", "!": "", "$": "", "\\": "\\\\", "|": "‖"}
    | dict.fromkeys(",;: ", "\u2009")
    | {c: c for c in "%&#_"}
)
_BRACED = r"\{(?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*\}"
_ITEM = r"(\\[a-zA-Z]+|[a-zA-Z0-9])"
#: Groups of three digits throughout and no space after a comma, and nothing but that between the nearest brackets.
_THOUSANDS = r"(?<![\d.,])(?<![(\[⦃]-)(?<![(\[⦃])\d{1,3}(?:,\d{3})+(?!\d|,\d|\)|\]|⦄)"

#: What a text must have, a pattern, and what stands for it: before commands get their characters, and after.
_BEFORE = [
    ("*", r"^\W{0,3}\*\*|\*\*\W{0,3}$", ""), ("`", "`", ""), ("=", r"^[\s$]*=(?!=)", ""),
    ("", r"^\s*(\"|'|_{1,2}|\*|“)([^\"'_*“”]*)[\"'*_”]+\s*$", r"\2"),
    ("m", r"(?<=\d)\s*(?:\\text\s*\{\s*)?([apAP])\.\s?[mM]\b\.?\s*\}?", lambda found: f" {found[1].lower()}m "),
    (":", r"(?<=:\d\d)\s*(?:\\text\s*\{\s*)?([apAP])[mM]\b\s*\}?", lambda found: f" {found[1].lower()}m "),
    ("\\", r"\\(?:[hv]space\*?|color|phantom|label|tag|textcolor)\s*\{[^{}]*\}", ""),
    (r"\math", r"\\math(?:bb|bf)\s*\{?\s*([RZNQC])(?![a-zA-Z])\s*\}?", lambda found: "ℝℤℕℚℂ"["RZNQC".index(found[1])]),
    ("\\", r"\\(?:left|right)\s*\.", ""),
    (r"\operatorname", r"\\operatorname\*?\s*\{\s*([a-zA-Z]+)\s*\}", r"\\\1 "),
]  # fmt: skip
_FUNCTIONS = "exp|sin|cos|tan|cot|sec|csc|log|ln|arcsin|arccos|arctan"
_AFTER = [
    (r"\text", r"\\text\s*\{([^{}]*[^\s,{}]),? and\s*\}", r"\\text{\1}⋏"),
    (r"\text", r"\\text\s*\{([^{}]*[^\s,{}]),? or\s*\}", r"\\text{\1}⋎"),
    ("and", r"\\text\s*\{\s*,?\s*and\s*\}|(?<=[\s\d)\]}⦄,])(?<!\\)and(?=[\s\d(\\-])", "⋏"),
    ("or", r"\\text\s*\{\s*,?\s*or\s*\}|(?<=[\s\d)\]}⦄,])(?<!\\)or(?=[\s\d(\\-])", "⋎"),
    (r"\text", r"\\text\s*\{\s*([⋏⋎ei]|[^{}a-zA-Z]*)\s*\}", r"\1"),
    (r"\text", r"\\text\s+([a-zA-Z]+)", r"\\text{\1}"),
    (r"\text", r"^\s*\\text\{\s*([a-zA-Z])\s*\}\s*$", r"\1"),
    (r"\text", r"^\s*\\text\{[^{}]*[aA]nswers?(?: is)?\s*:?\s*\}", ""),
    ("is:", r"^\s*(?:The )?[sS]olution is:\s*", ""),
    ("np.", r"(?<![a-zA-Z\\])np\.(?=[a-z])", r"\\"),
    ("...", r"\.\.\.+", "…"), ("<=", "<=", "≤"), (">=", ">=", "≥"), ("!=", "!=", "≠"),
    ("^", r"\{\s*\}\s*\^\s*∘|\^\s*\{\s*[∘°]\s*\}|\^\s*[∘°]", "°"), ("∘", r"∘(?=\s*[CF]?$)", "°"),
    ("{,}", r"\{,\}", ","), ("\u2009", r"(?<=\d)\u2009(?=\d{3}(?!\d))", ""),
    (",", r"^([-+]?\d{1,3})\.(\d{3}),(\d+)$", r"\1\2.\3"),
    (",", r"^[-+]?\d{1,2}(?:,\d{2})+,\d{3}$", lambda found: found[0].replace(",", "")),
    (" ", r"^[-+]?\d{1,3}(?: \d{3})+$", lambda found: found[0].replace(" ", "")),
    (r"\begin", r"[\[(]?\s*\\begin\s*\{(?:[pbB]|small)?(?:matrix|array)\*?\}(?:\{[lcr| ]*\})?", "⟦"),
    (r"\end", r"(?:\\\\\s*)*\\end\s*\{(?:[pbB]|small)?(?:matrix|array)\*?\}\s*[\])]?", "⟧"), ("⦃", r"⦃\s*⦄", "∅"),
    ("", rf"(?<![a-zA-Z\\])(pi|sqrt|frac|theta|infty|infinity|{_FUNCTIONS})(?=[\s{{(/*+\-\d^_,)]|$)", r"\\\1"),
    (r"\inf", r"\\inf(?:ty|inity)(?![a-zA-Z])", "∞"),
    ("*", r"\*\*(?=\s*[-\d({a-zA-Z])", "^"), ("*", r"\*\*", ""), ("*", r"\*", r"\\cdot "),
    (".", r"(?<![\d.])\.(?=\d)", "0."), ("-", r"\+\s*-", "-"), ("-", r"-\s*-", "+"),
    (r"\sqrt", r"\\sqrt\s*(\d+(?:\.\d+)?|\\?[a-zA-Z]+(?=\s|[^a-zA-Z(\[{]|$))", r"\\sqrt{\1}"),
    (r"\sqrt", r"\\sqrt\s*(\[[^\[\]]*\])\s*(\d+|[a-zA-Z])", r"\\sqrt\1{\2}"),
    (r"\sqrt", r"\\sqrt\s*\(([^()]*)\)", r"\\sqrt{\1}"),
    ("^", r"\^\s*(-?\d+|-?[a-zA-Z](?![a-zA-Z]))", r"^{\1}"), ("^", r"\^\s*([a-zA-Z])", r"^{\1}"),
    ("^", r"\^\s*\{\s*('[' ]*)\}", lambda found: found[1].replace(" ", "")),
    ("^", r"\^\s*\(([^()]*)\)", r"^{\1}"), ("_", r"_\s*([a-zA-Z0-9])", r"_{\1}"),
    ("{", r"(?<![a-zA-Z^_}\]*])\{([a-zA-Z])\}", r"\1"),
    (r"\frac", rf"\\frac\s*{_ITEM}", r"\\frac{\1}"),
    ("\\", rf"(\\(?:frac|binom)\s*{_BRACED})\s*{_ITEM}", r"\1{\2}"),
    (r"\choose", r"\{([^{}]*)\\choose(?![a-zA-Z])([^{}]*)\}", r"\\binom{\1}{\2}"),
    ("/", r"(?<![\d.}])(\d+)\s+(\d+)/(\d+)(?![\d.])", r"\1\\frac{\2}{\3}"),
    ("thousands", _THOUSANDS, lambda found: found[0].replace(",", "")),
    ("", r"\s*([\^_{}()\[\]⦃⦄⟦⟧,;=+/<>≤≥≠≈∈∪∩∖±∓⋏⋎|-])\s*", r"\1"),
    ("\\", r"(\\[a-zA-Z]+)\s+(?=[^a-zA-Z])", r"\1"), ("\\", r"(?<=[\d})])\s+(?=\\)", ""), ("", r"[,;]?([⋏⋎])", r"\1"),
]  # fmt: skip
_BEFORE_RULES, _AFTER_RULES = (
    [(needed, re.compile(pattern), replacement) for needed, pattern, replacement in rules]
    for rules in (_BEFORE, _AFTER)
)
_THIN = re.compile(r"[\u2009~\s]+")
#: Braces around the whole that are taken away.
_MAX_WRAPPED = 4
_OPENING, _CLOSING = "([{⦃⟦", ")]}⦄⟧"


def normal_text(text: str, split_numbers: bool = False) -> str:
    """The text in normal form; `split_numbers` leaves the comma in `1,100`."""
    if not text.isascii():
        text = re.sub("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ]+", lambda found: f"^{{{found[0].translate(_SCRIPTS)}}}", text)
        text = re.sub("[₀₁₂₃₄₅₆₇₈₉]+", lambda found: f"_{{{found[0].translate(_SCRIPTS)}}}", text)
        text = re.sub(
            "[¼-¾⅐-⅞]", lambda found: rf"\frac{{{unicodedata.normalize('NFKC', found[0])}}}".replace("⁄", "}{"), text
        )
        text = unicodedata.normalize("NFKC", text.translate(_CHARACTERS)).translate(_CHARACTERS)
        text = "".join(character for character in text if unicodedata.category(character) != "Cf")
    if r"\begin" not in text:
        text = re.sub(r"\\\\(?=[a-zA-Z])", r"\\", text).removesuffix("\\\\")
    text = _rewritten(text, _BEFORE_RULES)
    text = re.sub(r"\\([a-zA-Z]+|.)", _command, text, flags=re.DOTALL).replace("$", "")
    text = _rewritten(text, _AFTER_RULES, "" if split_numbers else ",")
    text = _THIN.sub(" ", text).strip()
    for _ in range(_MAX_WRAPPED):
        text = text.rstrip(".,;:= ")
        text = text if (inner := enclosed(text, "{", "}")) is None else inner
    # ISO's open brackets: ]2,5[ is (2,5).
    text = re.sub(r"^\](?=.*[\[\]]$)", "(", text)
    return re.sub(r"^([\[(].*)\[$", r"\1)", text)


def _rewritten(text: str, rules: list[tuple[str, re.Pattern[str], Any]], thousands: str = "") -> str:
    for needed, pattern, replacement in rules:
        if needed in text or (needed == "thousands" and thousands and thousands in text):
            text = pattern.sub(replacement, text)
    return text


def _command(found: re.Match[str]) -> str:
    name = found[1]
    return _COMMANDS.get(found[0], found[0]) if name.isalpha() else _ESCAPES.get(name, " ")


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
