r"""An answer's form: what its text is made of, as far as string work alone can tell.

Many LaTeX and Unicode texts look the same; one of them is the normal form, by the tables beside this file. Brackets,
signs of order and of sets are one character each there (`\{` is `⦃`, `\leq` is `≤`, `\begin{pmatrix}` is `⟦`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from unicodedata import normalize

if TYPE_CHECKING:
    from rprm.grading.rules import AnswerRule

#: A longer answer is not read. The longest gold answer of the seven sets has 517 characters.
MAX_CHARACTERS = 2_000
#: Digits of a number that is read; characters of a unit; brackets within brackets that are told apart.
_MAX_DIGITS, _MAX_UNIT, _MAX_DEPTH = 400, 80, 6


def _rows(table: str) -> list[str]:
    lines = (Path(__file__).parent / f"{table}.txt").read_text("utf-8").replace("\n\t", "").splitlines()
    return [line for line in lines if line and line[:2] != "//"]


_UNITS = [line.split() for line in _rows("units")]
#: Units, each with its one spelling. One of these is never another; other nouns (`apples`, `fruits`) may be.
SYNONYMS = {other: line[1] for line in _UNITS if line[0] == "=" for other in line[1:]}
_NOUNS = {word + end for line in _UNITS for word in line if len(word) > 1 and word != "per" for end in ("", "s", "es")}
#: Number words and their values.
_NUMBERS = {word: Fraction(value) for value, word in map(str.split, _rows("numbers"))}
_WORDS = {"nothing": "", "space": " ", "thin": "\u2009"}
#: Characters, and commands such as `\le`, with what stands for them in normal form.
_SIGNS = {name: _WORDS.get(sign, sign) for sign, *names in map(str.split, _rows("signs")) for name in names}
_CHARACTERS = str.maketrans({name: sign + " " * (sign[:1] == "\\") for name, sign in _SIGNS.items() if len(name) == 1})
_PATTERNS = {"unit_word": "|".join(sorted(_NOUNS, reverse=True)), "number_word": "|".join(_NUMBERS)}


def _whole(pattern: str) -> str:
    return re.sub("<([a-z_]+)>", lambda found: _PATTERNS[found[1]], pattern)


for _name, _pattern in (line.split("\t", 1) for line in _rows("patterns")):
    _PATTERNS[_name] = _whole(_pattern)
#: patterns.txt: a compiled pattern a name.
P = SimpleNamespace(**{name: re.compile(pattern) for name, pattern in _PATTERNS.items()})


def _replacement(text: str) -> Any:
    if text == "signs":
        return lambda found: _SIGNS.get(found[0], found[0] if found[1].isalpha() else " ")
    return (lambda found: re.sub(f"[{text[8:]}]", "", found[0])) if text[:8] == "without " else _WORDS.get(text, text)


#: What a text must hold, a pattern, and what stands for it, by table.
_REWRITES = {
    table: [
        (needed.removeprefix("any"), re.compile(_whole(pattern)), _replacement(by))
        for needed, pattern, by in (line.replace("␣", " ").split("\t") for line in _rows(table))
    ]
    for table in ("unicode", "rewrites", "equations", "latex")
}


def rewritten(table: str, text: str) -> str:
    """The text rewritten by a table."""
    for needed, pattern, by in _REWRITES[table]:
        if needed in text:
            text = pattern.sub(by, text)
    return text.strip()


def normal_text(text: str) -> str:
    """The text in normal form."""
    if not text.isascii():
        text = normalize("NFKC", rewritten("unicode", text).translate(_CHARACTERS))
        text = text.replace("⁄", "}{").translate(_CHARACTERS)
    text = rewritten("rewrites", text)
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
    if len(text) < 3 or text[0] not in opening or text[-1] not in closing:
        return None
    *inside, last = _depths(text)
    return text[1:-1].strip() if all(inside) and last == 0 else None


@dataclass(frozen=True, slots=True)
class Form:
    """An answer, or one of its parts."""

    #: `value`; `words`, and `prose` where they are sentences; `relation` (an equation or inequality that names no
    #: value); `set` (a union, difference or intersection); or several values: a `list` of answers in any order, a
    #: `tuple` (a point, an interval, a vector, a matrix by rows, a ratio of three) in order.
    kind: str
    text: str  # The normal form; of an equation that names a value, its last side.
    items: tuple[Form, ...] = ()
    brackets: str = ""  # Of a tuple, its two: `⟦⟧` of a vector, and of a matrix and its rows; `::` of a ratio.
    name: str = ""  # What the value is assigned to: `x` in `x=5`, `f` in `f(x)=x`.
    whole: str = ""  # The whole equation, where it is one; a number with its letters.
    number: Fraction | None = None  # The exact value, where the text is a plain number.
    place: Fraction | None = None  # One unit in the last place of a number that is written as a decimal.
    unit: str = ""  # That followed, in one spelling; `%` of a percentage, `_2` of a numeral of base 2.
    choice: str = ""  # The letter, where the text is a choice such as `(B)` or `(B) 5`; `YES` or `NO` before a stop.


def plain_number(text: str) -> tuple[Fraction | None, Fraction | None]:
    """The exact value of a number in normal form or in words, and one unit in its last place where it is a decimal."""
    if len(text) > _MAX_DIGITS:
        return None, None
    if match := P.repeating.fullmatch(text):
        whole, fixed, block = match.groups()
        repeated = Fraction(int(block), (10 ** len(block) - 1) * 10 ** len(fixed))
        return Fraction(f"{whole or 0}.{fixed or 0}") + (-repeated if whole[:1] == "-" else repeated), None
    plain = P.power_of_ten.sub(r"e\1", P.fraction.sub(r" \1/\2", text)) if text[-1:] == "}" else text
    match = P.number.fullmatch(plain)
    if match is None or not (match[3] or "10^" in text):
        return _NUMBERS.get(without_text(text).lower()), None
    sign, whole, top, under, exponent = match.groups()
    shift = int((exponent or "0")[:7])
    if abs(shift) > _MAX_DIGITS or (under and not Fraction(under)):
        return None, None
    value = Fraction((whole or "").strip() or 0) + Fraction(top or 1) * Fraction(10) ** shift / Fraction(under or 1)
    places = 6 if under else len((top or "").partition(".")[2]) - shift
    is_decimal = "." in text or (top and exponent)
    return (-value if sign.count("-") % 2 else value), Fraction(10) ** -places if is_decimal else None


def _without_unit(text: str, letters: bool) -> tuple[str, str]:
    """The text without the unit at its end, and the unit in one spelling; `letters` after a space are units, too."""
    if letters and (match := P.letter_unit.fullmatch(text)):
        return match[1], match[2]
    match = P.unit.search(text, max(0, len(text) - _MAX_UNIT))
    before = text[: match.start()].rstrip() if match and match[0].strip() else ""
    if not P.measured.match(before) or before.count("{") != before.count("}"):
        return text, ""
    words = re.findall(r"[a-zA-Z]+|\^\{-?\d\}|/", re.sub(r"(?<=\w{3})s\b", "", without_text(match[1])))
    return before, " ".join(SYNONYMS.get(word, word) for word in words)


def without_text(text: str) -> str:
    r"""The words of a text, `\text{...}` or not, with single spaces."""
    return " ".join(re.sub(r"\\text\{([^{}]*)\}", r" \1 ", text).split()).strip(" .,;:")


@lru_cache(maxsize=20_000)
def read(text: str, rule: AnswerRule) -> Form:
    """The form of an answer as it was found in a solution or a data set, at most `MAX_CHARACTERS` long."""
    text = text.replace(",", ", ") if rule.lists_split_numbers else text
    return _FormReader(rule).form(text.strip("$ ") if P.simple.fullmatch(text) else normal_text(text))


@dataclass(frozen=True, slots=True)
class _FormReader:
    """Reads a text in normal form from its outermost structure inwards, `depth` brackets or lists deep so far."""

    rule: AnswerRule
    depth: int = 0

    def form(self, text: str) -> Form:
        number, place = plain_number(text)
        if number is not None:
            return Form("value", str(number), number=number, place=place)
        if self.depth > _MAX_DEPTH:
            return Form("value", text)
        if match := P.choice.fullmatch(text):
            choice, content = (match[1] or match[2]).strip(",").upper(), match[3].strip()
            if content and len(choice) == 1:
                return replace(self.forms([content])[0], choice=choice)
            return Form("prose" if content else "words", _sentence(content) or choice, choice=choice)
        if form := self.words(text) or self.several(text):
            return form
        other = rewritten("equations", text)
        return self.form(other) if other != text else self.equation(text) or self.value(text)

    def forms(self, parts: list[str]) -> tuple[Form, ...]:
        inner = _FormReader(self.rule, self.depth + 1)
        return tuple(inner.form(part.strip()) for part in parts)

    def words(self, text: str) -> Form | None:
        """A few words, or sentences."""
        if not P.some_word.search(text):
            return None
        whole = without_text(text)
        least = 2 if r"\text{" in text else 3 if whole.istitle() else 4
        is_phrase = whole.lower() == "no" or len(re.findall("[a-zA-Z]", whole)) >= least
        is_words = (is_phrase and P.phrase.fullmatch(whole)) or re.fullmatch("[A-Z]{2,}", whole)
        if is_words and not re.search(r"=|\\(?!text)[a-zA-Z]", text) and not P.unit.fullmatch(text):
            return Form("words", whole.lower())
        # Two words, of which one has three letters, make a sentence (before an equals sign stands a name).
        told = without_text(_without_unit(re.sub("⟪.*⟫", "", text), False)[0]).rpartition("=")[2]
        is_prose = any(P.prose_word.search(part) and len(P.word.findall(part)) > 1 for part in split(told, ",⋏⋎"))
        is_prose = is_prose or whole.lower() in ("otherwise", "else", "elsewhere") or "\\big" in text
        return Form("prose", _sentence(text)) if is_prose else None

    def several(self, text: str) -> Form | None:
        if len(text) < _MAX_UNIT and P.measures.fullmatch(text):  # 3 hours 5 minutes
            return Form("tuple", text, self.forms(re.findall(r"\d+ ?[^\d^]*(?:\^\{\d\})?", text)))
        if len(parts := split(text, " " if re.fullmatch(r"\d+(?: \d+)+", text) else ";,⋏⋎")) > 1:
            return self.listed(parts, text)
        if len(split(text, "∪∖∩")) > 1:
            return Form("set", P.set_name.sub("", text))
        if (inner := enclosed(text, "⟦", "⟧")) is not None:
            rows = [row.split("&") for row in inner.split("\\\\")]
            is_vector = len(rows) == 1 or all(len(row) == 1 for row in rows)
            cells = [self.forms(row) for row in rows]
            items = sum(cells, ()) if is_vector else tuple(Form("tuple", "", row, brackets="⟦⟧") for row in cells)
            return Form("tuple", text, items, brackets="⟦⟧")
        if (inner := enclosed(text, "⟪", "⟫")) is not None:
            pieces = [self.forms(split(P.condition.sub("⋏", row), "⋏")) for row in inner.split("\\\\")]
            items = tuple(piece[0] if len(piece) == 1 else Form("tuple", "", piece, brackets="()") for piece in pieces)
            return items[0] if len(items) == 1 else _in_order_of_names(Form("list", text, items))
        if (inner := enclosed(text, "([⦃", ")]⦄")) is not None:
            items, brackets = self.forms(split(inner, ",;⋏" if text[0] == "⦃" else ",;")), text[0] + text[-1]
            if len(items) == 1:
                return items[0] if brackets in ("()", "[]", "⦃⦄") else None
            return Form("list" if brackets == "⦃⦄" else "tuple", text, items, brackets=brackets)
        return None

    def listed(self, parts: list[str], text: str) -> Form:
        items = self.forms(parts)
        are_open = [item.kind == "tuple" and "∞" in part for item, part in zip(items, parts, strict=True)]
        if all(is_open or re.search("[<>≤≥≠]", part) for is_open, part in zip(are_open, parts, strict=True)):
            return Form("set", ("∪" if "⋎" in text else "∩").join(f"({item.text})" for item in items), whole=text)
        flat = [item.items if item.kind == "list" and not item.brackets else (item,) for item in items]
        return _in_order_of_names(Form("list", text, sum(flat, ())))

    def equation(self, text: str) -> Form | None:
        """`x=5` is the value 5 with its name; `x+y=5` a relation; `30-1=29` the value 29."""
        if re.search("[<>≤≥≠]", re.sub("⟪.*⟫", "", text)):
            return Form("relation", text, whole=text)
        sides = split(text, "∈" if len(split(text, "∈")) > 1 else "=≈")
        if len(sides) == 1:
            return None
        first, match = sides[0], P.name.fullmatch(sides[0])
        names = split(first[1:-1], ",") if enclosed(first, "(", ")") is not None else [first]
        has_letters = bool(re.search("[a-zA-Z]", P.constant.sub("", first)))
        # A quotient or a function's value that is told; x+y=5 and 2x=y are equations to keep.
        is_told = len(split(first, "+-")) == 1 and bool(re.search(r"\\|[a-zA-Z]\(", first)) and has_letters
        if has_letters and len(names) == 1 and not (match or is_told or self.rule.whole_numbers):
            return Form("relation", text, whole=text)
        # Of a value and what it is about, the value: x = 1/3 = 0.333, and 1/3 ≈ 0.333.
        is_rounded = P.decimal.fullmatch(sides[-1]) and "." not in sides[-2]
        is_rounded = is_rounded and (len(sides) > 2 or not re.search("[+*]", first))
        is_about = (is_rounded or "≈" in text) and (len(sides) > 2 or match is None)
        (form,) = self.forms([sides[-2] if is_about else sides[-1]])
        if form.kind == "tuple" and 1 < len(names) == len(form.items):
            items = [replace(item, name=name) for item, name in zip(form.items, names, strict=True)]
            return _in_order_of_names(replace(form, items=tuple(items)))
        if not match:
            return replace(form, name=first, whole=text) if is_told and form.kind == "value" else form
        if form.kind == "list":
            return replace(form, items=tuple(replace(item, name=item.name or match[1]) for item in form.items))
        name = without_text(match[1] if re.fullmatch(r"\\?[a-zA-Z]*", match[2] or "") else first)
        return replace(form, name=name.lower() if len(name) > 2 and "\\" not in name else name, whole=text)

    def value(self, text: str) -> Form:
        whole, unit = "", {"%": "%", "°": "degree"}.get(text[-1:], "")
        if match := P.numeral.fullmatch(text):
            return Form("value", match[1], unit=f"_{match[2]}")
        if match := P.time.fullmatch(text):  # A time of day is only itself; 3:4 is 3/4.
            return Form("words", match[1])
        if len(parts := split(text, ":")) > 1 and not re.search("[⟦∞]", text):
            pairs = zip(parts, [*parts[1:], parts[0]], strict=True)
            quotients = self.forms([rf"\frac{{{one}}}{{{other}}}" for one, other in pairs])
            return quotients[0] if len(parts) == 2 else Form("tuple", text, quotients, brackets="::")
        if unit and not re.search(r"\\(?:sin|cos|tan|cot|sec|csc).*°", text):
            text = text[:-1]
        else:
            stripped, unit = _without_unit(text, self.rule.letter_units)
            # Letters may be variables after all.
            text, whole = stripped, text if unit and r"\text" not in text else ""
        number, place = plain_number(text)
        text = text if number is None else str(number)
        choice = text.upper() if re.fullmatch("[A-Za-z]", text) else ""
        return Form("value", text, number=number, place=place, unit=unit, choice=choice, whole=whole)


def _sentence(text: str) -> str:
    """The words and signs of a sentence, without case, punctuation and the spaces that mean nothing."""
    text = " ".join(re.sub(r"[;?\"]|[.,:](?!\d)", " ", without_text(text).lower()).split())
    return re.sub(r"(?<![a-z\d]) +| +(?![a-z\d])|(?<=\d) +(?=[a-z])|(?<=[a-z]) +(?=\d)", "", text)


def _in_order_of_names(form: Form) -> Form:
    """`y=4, x=1` and `(y,x)=(4,1)` are the point (1,4) of x and y: in the order of the names."""
    names = sorted(item.name for item in form.items)
    if not names[0] or len(set(names)) < len(names) or len(names) < 2 or any(item.items for item in form.items):
        return form
    items = tuple(sorted(form.items, key=lambda item: item.name))
    return replace(form, kind="tuple", brackets="()", items=items, name=",".join(names))
