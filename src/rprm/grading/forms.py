r"""An answer's form: what its text is made of, as far as that can be told without computer algebra.

A text becomes a tree: a list of several answers, a tuple or interval with its brackets, a union, a matrix; at its
leaves stand single values: a number (an exact rational), a word, or an expression that only computer algebra can
compare.

LaTeX is normalised on the way: `\dfrac` is `\frac`, `\left(` is `(`, `10,\!080` is 10080, units after a number go.
Everything here is pure string work on texts of at most `MAX_CHARACTERS`; nothing is ever evaluated.
"""

from __future__ import annotations

import re
from collections.abc import Set
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Literal

from rprm.grading.rules import AnswerRule

#: A longer answer is not read. The longest gold answer of the seven sets has 517 characters.
MAX_CHARACTERS = 2_000

#: Brackets within brackets; what lies deeper stays one expression.
_MAX_DEPTH = 6
#: Digits of a number that is read as an exact rational, and the largest power of ten that it may be multiplied by.
_MAX_DIGITS = 400
_MAX_EXPONENT = 400


@dataclass(frozen=True, slots=True)
class Leaf:
    """A single value.

    Attributes:
        text: the value in normal form, for a LaTeX parser; of an equation its last side.
        number: the exact value, where the text is a plain number.
        is_decimal: whether it is written with a decimal point or a power of ten.
        is_percent: whether a percent sign followed; `number` is what stood before it.
        words: words rather than mathematics, in lower case; None for mathematics.
        is_prose: whether the words are sentences, which only the very same sentences can equal.
        choice: the letter, where the text is a choice such as `(B)`.
        name: what the value is assigned to: `x` in `x = 5`.
        relation: the whole text of an equation or inequality, where it is one.
    """

    text: str
    number: Fraction | None = None
    is_decimal: bool = False
    is_percent: bool = False
    words: str | None = None
    is_prose: bool = False
    choice: str | None = None
    name: str | None = None
    relation: str | None = None


@dataclass(frozen=True, slots=True)
class Group:
    """Several values.

    Attributes:
        kind: how they belong together: a `list` of several answers, whose order does not matter; a `tuple` in round or
            square brackets, that is a point or an interval; a `union` of sets; a `matrix`, row by row.
        items: the values.
        text: the whole in normal form.
        brackets: of a tuple, its two; of a list, `{}` or nothing.
        num_columns: of a matrix.
    """

    kind: Literal["list", "tuple", "union", "matrix"]
    items: tuple[Form, ...]
    text: str
    brackets: str = ""
    num_columns: int = 0


Form = Leaf | Group


def is_clean(text: str) -> bool:
    """Whether a text has no control characters and no lone surrogates, with which no answer can be meant."""
    return not _UNCLEAN.search(text)


def form_of(text: str, rule: AnswerRule) -> Form:
    """The form of an answer.

    Args:
        text: as it was found in a solution or a data set, at most `MAX_CHARACTERS` long.
        rule: how lists and units are read.
    """
    return _form(normal_text(text), rule, 0)


def normal_text(text: str) -> str:
    """One of the many LaTeX texts that look the same, and always the same one of them."""
    text = text.translate(_CHARACTERS)
    for pattern, replacement in _REWRITES:
        text = pattern.sub(replacement, text)
    text = re.sub(r"\s+", " ", text).strip()
    while text and text[-1] in ".,;:":
        text = text[:-1].rstrip()
    return text


_UNCLEAN = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")

_CHARACTERS = str.maketrans(
    {
        "−": "-",
        "–": "-",
        "—": "-",
        "×": r"\times ",
        "⋅": r"\cdot ",
        "·": r"\cdot ",
        "÷": "/",
        "π": r"\pi ",
        "√": r"\sqrt ",
        "∞": r"\infty ",
        "°": r"^\circ ",
        "≤": r"\leq ",
        "≥": r"\geq ",
        "≈": r"\approx ",
        "∈": r"\in ",
        "∪": r"\cup ",
        "±": r"\pm ",
        "²": "^2",
        "³": "^3",
        "½": r"\frac{1}{2}",
        "\u00a0": " ",
        "\u202f": " ",
        "\u2009": " ",
        "，": ",",
        "€": r"\$",
        "£": r"\$",
    }
)

_REWRITES: list[tuple[re.Pattern[str], str]] = [
    (re.compile(pattern), replacement)
    for pattern, replacement in [
        # Thousands that only LaTeX separates: 10,\!080 and 1{,}000 and 1\,000.
        (r"(?<=\d),\s*\\!\s*(?=\d{3})", ""),
        (r"(?<=\d)\{,\}\s*(?=\d{3})", ""),
        (r"(?<=\d)\\[,;: ]\s*(?=\d{3}(?!\d))", ""),
        (r"\\\$", ""),
        (r"\$", " "),
        (r"\\[()]", " "),
        (r"(?<!\\)\\\[|(?<!\\)\\\]", " "),
        (r"\\(?:displaystyle|textstyle|limits|nolimits)(?![a-zA-Z])", " "),
        (r"\\(?:left|right)\s*\.", " "),
        (r"\\(?:left|right|[bB]igg?[lr]?)(?![a-zA-Z])\s*", ""),
        (r"\\l(?:brace)(?![a-zA-Z])", r"\\{"),
        (r"\\r(?:brace)(?![a-zA-Z])", r"\\}"),
        (r"(?<!\\)\\(?:[,;:! ]|quad(?![a-zA-Z])|qquad(?![a-zA-Z]))|~", " "),
        (r"\\[dtc]frac(?![a-zA-Z])", r"\\frac"),
        (r"\\geqslant(?![a-zA-Z])|\\ge(?![a-zA-Z])", r"\\geq"),
        (r"\\leqslant(?![a-zA-Z])|\\le(?![a-zA-Z])", r"\\leq"),
        (r"\^\s*\{\s*(?:\\circ|\\degree)\s*\}|\{\s*\}\s*\^\s*\{?\\circ\}?|\\degree(?![a-zA-Z])", r"^\\circ "),
        (r"\^\s*\\circ(?![a-zA-Z])", r"^\\circ "),
        (r"\\(?:mathbf|boldsymbol|mathit|textbf|textit|bm|pmb)\s*\{([^{}]*)\}", r" \1"),
        (r"\\(?:text|mbox|textrm|textsf|mathrm|mathsf|hbox|operatorname\*?)\s*\{([^{}]*)\}", r"\\text{\1}"),
        (r"\{\s*\\rm\s+([^{}]*)\}", r"\\text{\1}"),
        (r"\{\s*,\s*\}", ","),
        (
            r"\\infin(?:ty)?(?![a-zA-Z])|(?<![a-zA-Z\\])infty(?![a-zA-Z])|(?<![a-zA-Z\\])infinity(?![a-zA-Z])",
            r"\\infty ",
        ),
        (r"(?<![a-zA-Z\\])(pi|sqrt|frac)(?=[\s{(/*+-]|$)", r"\\\1"),
        (r"\\sqrt\s*\(([^()]*)\)", r"\\sqrt{\1}"),
        (r"\*\*", "^"),
        # Two ways of some gold answers alone.
        (r"^\s*(?:The )?[sS]olution is:\s*", ""),
        (r"(?<![a-zA-Z\\])np\.(?=[a-z])", r"\\"),
        (r"\\text\s*\{\s*(?:,?\s*and|,?\s*or|,|;)\s*\}", ","),
        (r"(?<=[\d)}\]a-zA-Z])\s*,?\s+(?:and|or)\s+(?=[-\d(\\\[a-zA-Z])", ", "),
        # What looks the same with and without braces.
        (r"([\^_])\s*\{\s*([a-zA-Z0-9])\s*\}", r"\1\2"),
        (r"\s*([\^_{}()\[\],;=+/<>-])\s*", r"\1"),
        (r"(\\[a-zA-Z]+)\s+(?=[^a-zA-Z])", r"\1"),
        (r"\\frac(\d)(\d)(?!\d)", r"\\frac{\1}{\2}"),
        (r"\\frac(\d)\{", r"\\frac{\1}{"),
        (r"\\frac\{([^{}]*)\}(\d)(?!\d)", r"\\frac{\1}{\2}"),
        (r"\\sqrt(\d)", r"\\sqrt{\1}"),
    ]
]

_TOKEN = re.compile(r"\\begin\{[a-zA-Z]+\*?\}|\\end\{[a-zA-Z]+\*?\}|\\[a-zA-Z]+|\\.|.", re.DOTALL)
_OPENING = frozenset(["(", "[", "{", r"\{"])
_CLOSING = frozenset([")", "]", "}", r"\}"])
_MATRIX = re.compile(
    r"[(\[]?\\begin\{((?:[pbB]|small)?matrix|array)\}(?:\{[lcr| ]*\})?(.*)\\end\{\1\}[)\]]?", re.DOTALL
)

_NUMBER = r"(?:\d+(?:\.\d*)?|\.\d+)"
_FRACTION = rf"\\frac\{{(-?{_NUMBER})\}}\{{(-?{_NUMBER})\}}"
_PLAIN = re.compile(
    rf"([-+]*)(?:({_NUMBER}) ?{_FRACTION}|{_FRACTION}|({_NUMBER})/({_NUMBER})|"
    rf"({_NUMBER})(?:(?: ?\\times ?| ?\\cdot ?| ?\* ?)10\^\{{?([-+]?\d+)\}}?|[eE]([-+]?\d+))?)"
)
_POWER_OF_TEN = re.compile(r"([-+]*)10\^\{?([-+]?\d+)\}?")

#: A unit after a value: texts and what joins them.
_TEXT = r"\\text\{[^{}]*\}(?:\^\{?-?\d+\}?)?"
_TEXT_UNIT = re.compile(rf"(?:[ /]|\\cdot|\\mu)*(?:{_TEXT}|\\AA)(?:[ /]|\\cdot|{_TEXT})*$")
_DEGREES = re.compile(r"\^\\circ ?(?:\\text\{ ?[CF]? ?\}|[CF])?$")
_PERCENT = re.compile(r" ?(?:\\?%|\\text\{ ?(?:%|\\%|percent) ?\}|percent)$")
_SCALED = rf"{_NUMBER}(?:(?:\\times|\\cdot)10\^(?:\d|\{{-?\d+\}})|e-?\d+)?"
_VALUE = rf"[-+]?(?:{_NUMBER} ?{_FRACTION}|{_FRACTION}|{_NUMBER}/{_NUMBER}|{_SCALED})"
_WORD_UNIT = re.compile(rf"({_VALUE}) ?[a-zA-Z]{{2,}}[a-zA-Z ^/.\d{{}}-]*$")
_LETTER_UNIT = re.compile(rf"({_VALUE}) ?[a-zA-Z](?:\^\{{?-?\d\}}?)?(?:[ /][a-zA-Z]{{1,4}}(?:\^\{{?-?\d\}}?)?)*$")

_NAME = re.compile(
    r"(?:\\?[a-zA-Z]+|\\text\{[^{}]*\})(?:_(?:\w|\{[\w,]+\}))?'*(?:\((?:\\?[a-zA-Z]+|\d+)(?:,\\?[a-zA-Z]+)*\))?"
    r" ?(?:=|\\in(?![a-zA-Z])|\\approx(?![a-zA-Z]))"
)
_INEQUALITY = re.compile(r"[<>]|\\(?:leq|geq|neq|ne|lt|gt|in|equiv)(?![a-zA-Z])")
#: Signs of order: `<` and `>` exclude their bound, `]` (at most) and `[` (at least) include it.
_SIGNS = {"<": "<", r"\lt": "<", r"\leq": "]", ">": ">", r"\gt": ">", r"\geq": "["}
_FLIPPED = {"<": ">", r"\lt": ">", r"\leq": r"\geq", ">": "<", r"\gt": "<", r"\geq": r"\leq"}
_SIGN = re.compile(r"[<>]|\\(?:lt|gt|leq|geq)(?![a-zA-Z])")
_VARIABLE = re.compile(r"\\?[a-zA-Z]+(?:_\w)?")
_THOUSANDS = re.compile(r"[-+]?\d{1,3}(?:,\d{3})+(?![\d,])(?:\.\d+)?(?!,)")
_CHOICE = re.compile(r"\(([A-J])\)(?:[ .:\w$\\].*)?|([A-J])(?:[.:].*)?", re.DOTALL)
_PHRASE = re.compile(r"[^\W\d_]+(?:[ '-][^\W\d_]+){0,3}")
_PROSE_WORD = re.compile(r"(?<![\\_^{a-zA-Z])[a-zA-Z]{3,}(?![a-zA-Z(])")
_FUNCTIONS = frozenset(
    [
        *("sin", "cos", "tan", "cot", "sec", "csc", "arcsin", "arccos", "arctan", "sinh", "cosh", "tanh"),
        *("log", "exp", "sqrt", "max", "min", "gcd", "lcm", "det", "mod"),
    ]
)
_BASE = re.compile(r"\(?([0-9A-F]+)\)?_(?:\{(\d{1,2})\}|(\d))")


def base_numeral(text: str) -> tuple[str, int] | None:
    """The digits and the base of a numeral such as `52_8`, None of anything else."""
    match = _BASE.fullmatch(text)
    return (match[1], int(match[2] or match[3])) if match else None


def is_evaluation(relation: str) -> bool:
    r"""Whether an equation tells what something is, as `P(\{2\})=1/6` does, so that its right side alone is the answer.

    Its left side then is one thing, no sum, with a command or an argument; `x+y=5` and `2x=y` are equations to keep.
    """
    sides = _split(relation, {"="})
    return len(sides) > 1 and len(_split(sides[0], {"+", "-"})) == 1 and bool(re.search(r"\\|[a-zA-Z]\(", sides[0]))


def _form(text: str, rule: AnswerRule, depth: int) -> Form:
    if depth > _MAX_DEPTH:
        return Leaf(text)
    if matrix := _matrix(text, rule, depth):
        return matrix
    if depth == 0 and not rule.lists_split_numbers and (match := _THOUSANDS.match(text)):
        text = match[0].replace(",", "") + text[match.end() :]
    value = _without_unit(text, rule)
    if value == text and (words := _words(text)):
        return words
    if interval := _interval_of(text, rule, depth):
        return interval
    name, rest = _without_name(text)
    form = _value_form(rest, rule, depth)
    if name is None or not isinstance(form, Leaf) or form.words is not None:
        return form
    return replace(form, name=name, relation=text)


def _value_form(text: str, rule: AnswerRule, depth: int) -> Form:
    if len(parts := _split(text, {",", ";"})) > 1:
        return _list([_form(part, rule, depth + 1) for part in parts], text)
    if len(parts := _split(text, {r"\cup"})) > 1:
        return Group("union", tuple(_form(part, rule, depth + 1) for part in parts), text)
    if (inner := _enclosed(text, r"\{", r"\}")) is not None:
        return _list([_form(part, rule, depth + 1) for part in _split(inner, {",", ";"})], text, "{}")
    for brackets in ("()", "[]", "[)", "(]"):
        if (inner := _enclosed(text, brackets[0], brackets[1])) is not None:
            if len(parts := _split(inner, {",", ";"})) > 1:
                items = tuple(_form(part, rule, depth + 1) for part in parts)
                return Group("tuple", items, text, brackets=brackets)
            if brackets in ("()", "[]"):
                return _form(inner, rule, depth + 1)
    signs = re.findall(r"\\(?:pm|mp)(?![a-zA-Z])", text)
    if len(signs) == 1:
        before, _, after = text.partition(signs[0])
        plus = f"{before}+{after}" if before.strip() else after
        return _list([_leaf(plus.strip(), rule), _leaf(f"{before}-{after.strip()}", rule)], text)
    return _leaf(text, rule)


def _list(items: list[Form], text: str, brackets: str = "") -> Form:
    """Several answers as one list, lists in lists made flat; a list of one is that one."""
    flat: list[Form] = []
    for item in items:
        if isinstance(item, Group) and item.kind == "list":
            flat += item.items
        else:
            flat.append(item)
    return flat[0] if len(flat) == 1 else Group("list", tuple(flat), text, brackets=brackets)


def _matrix(text: str, rule: AnswerRule, depth: int) -> Group | None:
    match = _MATRIX.fullmatch(text)
    if match is None or r"\begin" in match[2]:
        return None
    rows = [[cell.strip() for cell in _split(row, {"&"})] for row in _split(match[2].strip(), {r"\\"})]
    rows = [row for row in rows if row != [""]]
    if not rows or len({len(row) for row in rows}) > 1:
        return None
    items = tuple(_form(cell, rule, depth + 1) for row in rows for cell in row)
    return Group("matrix", items, text, num_columns=len(rows[0]))


def _interval_of(text: str, rule: AnswerRule, depth: int) -> Group | None:
    r"""The interval that an inequality of one variable says: `1<x\leq2` is `(1,2]`, `x>3` is `(3,\infty)`."""
    signs = _SIGN.findall(text)
    sides = _split(text, frozenset(_SIGNS))
    if not 0 < len(signs) == len(sides) - 1 <= 2:
        return None
    if len(sides) == 2:
        if not _VARIABLE.fullmatch(sides[0]):
            sides, signs = sides[::-1], [_FLIPPED[signs[0]]]
        if not _VARIABLE.fullmatch(sides[0]) or _VARIABLE.fullmatch(sides[1]):
            return None
        below = _SIGNS[signs[0]] in "<]"
        low, high = (r"-\infty", sides[1]) if below else (sides[1], r"\infty")
        closed = _SIGNS[signs[0]] in "[]"
        brackets = ("(" if below or not closed else "[") + (")" if not below or not closed else "]")
    else:
        kinds = [_SIGNS[sign] for sign in signs]
        if not _VARIABLE.fullmatch(sides[1]) or (kinds[0] in "<]") != (kinds[1] in "<]"):
            return None
        if kinds[0] in ">[":
            sides, kinds = sides[::-1], kinds[::-1]
        low, high = sides[0], sides[2]
        brackets = ("[" if kinds[0] in "[]" else "(") + ("]" if kinds[1] in "[]" else ")")
    if len(_split(low, {",", ";"})) + len(_split(high, {",", ";"})) > 2:
        return None
    return Group("tuple", (_form(low, rule, depth + 1), _form(high, rule, depth + 1)), text, brackets=brackets)


def _leaf(text: str, rule: AnswerRule) -> Leaf:
    relation = None
    if text.startswith(r"\approx"):
        text = text.removeprefix(r"\approx").strip()
    sides = _split(text, {"="})
    if len(sides) > 1:
        relation, text = text, sides[-1]
    elif _INEQUALITY.search(text):
        return Leaf(text, relation=text)
    # Of a value and its approximation, the value.
    text = _split(text, {r"\approx"})[0] or text
    choice = _CHOICE.fullmatch(text)
    is_percent = bool(_PERCENT.search(text))
    text = _without_unit(text, rule)
    while (inner := _enclosed(text, "(", ")")) is not None and not _split(inner, {","})[1:]:
        text = inner
    number, is_decimal = plain_number(text)
    if number is not None and not is_decimal:
        text = f"{number}" if number.denominator == 1 else rf"\frac{{{number.numerator}}}{{{number.denominator}}}"
    return Leaf(
        text=text,
        number=number,
        is_decimal=is_decimal or bool(re.search(r"\d\.\d", text)),
        is_percent=is_percent,
        choice=(choice[1] or choice[2]) if choice else None,
        relation=relation,
    )


def plain_number(text: str) -> tuple[Fraction | None, bool]:
    """The exact value of a number in normal form, and whether it is written as a decimal; (None, False) of others."""
    if len(text) > 2 * _MAX_DIGITS:
        return None, False
    if match := _POWER_OF_TEN.fullmatch(text):
        return _scaled(Fraction(1), match[2], match[1]), True
    match = _PLAIN.fullmatch(text)
    if match is None:
        return None, False
    sign, whole, over, under, top, bottom, left, right, single, power, exponent = match.groups()
    if whole is not None:
        if "." in whole or Fraction(under) == 0:
            return None, False
        value = Fraction(whole) + Fraction(over) / Fraction(under)
    elif top is not None or left is not None:
        above, below = Fraction(top or left), Fraction(bottom or right)
        if below == 0:
            return None, False
        value = above / below
    else:
        scaled = _scaled(Fraction(single), power or exponent or "0", sign)
        return scaled, "." in single or bool(power or exponent)
    return (-value if sign.count("-") % 2 else value), "." in text


def _scaled(value: Fraction, exponent: str, sign: str) -> Fraction | None:
    if len(exponent) > 6 or abs(int(exponent)) > _MAX_EXPONENT:
        return None
    scaled: Fraction = value * Fraction(10) ** int(exponent)
    return -scaled if sign.count("-") % 2 else scaled


def _without_unit(text: str, rule: AnswerRule) -> str:
    """The text without degrees, percent sign or unit at its end; unchanged where nothing would be left."""
    for _ in range(3):
        before = text
        for pattern in (_PERCENT, _DEGREES):
            text = pattern.sub("", text).strip() or text
        if (match := _TEXT_UNIT.search(text)) and re.search(r"\d|\\pi", text[: match.start()]):
            text = text[: match.start()].strip()
        if (match := _WORD_UNIT.fullmatch(text)) or (rule.letter_units and (match := _LETTER_UNIT.fullmatch(text))):
            text = match[1]
        if text == before:
            break
    return text


def _without_name(text: str) -> tuple[str | None, str]:
    match = _NAME.match(text)
    if match is None or match[0].startswith(("\\frac", "\\sqrt", "\\begin")):
        return None, text
    name = re.sub(r" ?(=|\\in|\\approx)$", "", match[0])
    return name, text[match.end() :].strip()


def _words(text: str) -> Leaf | None:
    """The text as words, None where it is mathematics."""
    whole = re.sub(r"\\text\{([^{}]*)\}", r" \1 ", text)
    whole = re.sub(r"\s+", " ", whole).strip(" .,").lower()
    letters = re.sub(r"[ '-]", "", whole)
    if (
        (r"\text{" in text or len(letters) > 2 or whole == "no")
        and _PHRASE.fullmatch(whole)
        and whole not in _FUNCTIONS
        and letters
    ):
        choice = _CHOICE.fullmatch(whole.upper())
        if len(letters) == 1:
            return None if choice is None else Leaf(whole.upper(), choice=choice[1] or choice[2])
        return Leaf(whole, words=whole)
    if r"\text{" in text and (choice := _CHOICE.fullmatch(re.sub(r"\\text\{([^{}]*)\}", r"\1", text).strip())):
        return Leaf(whole, choice=choice[1] or choice[2])
    plain = re.sub(r"\\text\{([^{}]*)\}", r" \1 ", text)
    prose = [word for word in _PROSE_WORD.findall(plain) if word.lower() not in _FUNCTIONS]
    return Leaf(whole, words=whole, is_prose=True) if len(prose) >= 2 else None


def _split(text: str, separators: Set[str]) -> list[str]:
    """The parts of a text between separators that no bracket encloses, each without spaces around."""
    parts: list[str] = []
    depth, begin = 0, 0
    for token in _TOKEN.finditer(text):
        if token[0] in _OPENING or token[0].startswith(r"\begin"):
            depth += 1
        elif token[0] in _CLOSING or token[0].startswith(r"\end"):
            depth = max(depth - 1, 0)
        elif depth == 0 and token[0] in separators:
            parts.append(text[begin : token.start()].strip())
            begin = token.end()
    parts.append(text[begin:].strip())
    return parts if len(parts) == 1 else [part for part in parts if part] or [text]


def _enclosed(text: str, opening: str, closing: str) -> str | None:
    """What stands between two brackets that enclose the whole text, None where they do not."""
    if not (text.startswith(opening) and text.endswith(closing)) or len(text) <= len(opening) + len(closing):
        return None
    depth = 0
    for token in _TOKEN.finditer(text):
        if token[0] in _OPENING or token[0].startswith(r"\begin"):
            depth += 1
        elif token[0] in _CLOSING or token[0].startswith(r"\end"):
            depth -= 1
            if depth == 0 and token.end() < len(text):
                return None
    return text[len(opening) : -len(closing)].strip() if depth == 0 else None
