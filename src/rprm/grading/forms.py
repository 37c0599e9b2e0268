r"""An answer's form: what its text is made of, as far as that can be told by string work alone.

Of the many LaTeX and Unicode texts that look the same one is the normal form, by the tables beside this file: brackets,
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


def rewritten(name: str, text: str, split_numbers: bool = False) -> str:
    """The text rewritten by a table; `split_numbers` leaves the comma in `1,100`."""
    for needed, pattern, replacement in _REWRITES[name]:
        if needed in text or (needed == "thousands" and not split_numbers and "," in text):
            text = pattern.sub(replacement, text)
    return text.strip()


_NOUNS = {word + end for line in _UNITS for word in line if len(word) > 1 and word != "per" for end in ("", "s", "es")}
_TEXTS = {"unit_word": "|".join(sorted(_NOUNS, reverse=True)), "number_word": "|".join(NUMBERS)}


def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(re.sub("<([a-z_]+)>", lambda found: _TEXTS[found[1]], pattern))


def _replacement(text: str) -> Any:
    if text == "signs":
        return lambda found: _SIGNS.get(found[0], found[0] if found[1].isalpha() else " ")
    return (lambda found: re.sub(f"[{text[8:]}]", "", found[0])) if text[:8] == "without " else _WORDS.get(text, text)


for _line in "\n".join(_lines("patterns.txt")).replace("\n\t", "").split("\n"):
    _TEXTS[_line.partition("\t")[0]] = _compiled(_line.partition("\t")[2]).pattern
#: patterns.txt: a compiled pattern a name.
P = SimpleNamespace(**{name: re.compile(pattern) for name, pattern in _TEXTS.items()})
#: What a text must hold, a pattern, and what stands for it, by table.
_REWRITES = {
    name: [
        (needed.removeprefix("any"), _compiled(pattern), _replacement(by))
        for needed, pattern, by in (line.replace("␣", " ").split("\t") for line in _lines(f"{name}.txt"))
    ]
    for name in ("unicode", "rewrites", "equations", "latex")
}


def normal_text(text: str, split_numbers: bool = False) -> str:
    """The text in normal form; `split_numbers` leaves the comma in `1,100`."""
    if not text.isascii():
        text = normalize("NFKC", rewritten("unicode", text).translate(_CHARACTERS))
        text = text.replace("⁄", "}{").translate(_CHARACTERS)
    text = rewritten("rewrites", text, split_numbers)
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


@dataclass(frozen=True, slots=True)
class Form:
    """An answer, or one of its parts."""

    #: `value`; `words`; `relation` (an equation or inequality that names no value); or several: a `list` of answers in
    #: any order, a `tuple` (a point, an interval, a matrix) in order, a `ratio`, a `union`, ... of sets; `prose`: the
    #: mathematics between the words of sentences, which are the text.
    kind: str
    text: str  # The normal form; of an equation that names a value, its last side.
    items: tuple[Form, ...] = ()
    brackets: str = ""  # Of a tuple, its two: `⟦⟧` of a vector, and of a matrix and its rows.
    name: str = ""  # What the value is assigned to: `x` in `x=5`, `f` in `f(x)=x`.
    argument: str = ""  # `x` in `f(x)=x`.
    whole: str = ""  # The whole equation, where it is one; a number with zeros before it.
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
        return (_named_number(_without_text(text).lower()) if re.search("[a-z]{2}", text) else None), None
    sign, whole, top, under, exponent = match.groups()
    shift = int((exponent or "0")[:7])
    if abs(shift) > _MAX_DIGITS or (under and not Fraction(under)):
        return None, None
    value = Fraction((whole or "").strip() or 0) + Fraction(top or 1) * Fraction(10) ** shift / Fraction(under or 1)
    places = 6 if under else len((top or "").partition(".")[2]) - shift
    is_decimal = "." in text or (top and exponent)
    return (-value if sign.count("-") % 2 else value), Fraction(10) ** -places if is_decimal else None


def _named_number(text: str) -> Fraction | None:
    """`fifteen`, `twenty-one`, `3 million`, `2.5 dozen`."""
    first, _, last = text.replace("-", " ").rpartition(" ")
    value, tens = NUMBERS.get(last, 0), NUMBERS.get(first, 0)
    if value > 99 or last == "dozen":
        count = Fraction(first or 1) if not first or P.digits.fullmatch(first) else _named_number(first)
        return None if count is None else count * value
    return Fraction(tens + value) if last in NUMBERS and (not first or value < 10 < tens < 100) else None


def _without_unit(text: str, letters: bool) -> tuple[str, str]:
    """The text without the unit at its end, and the unit in one spelling; `letters` after a space are units, too."""
    if letters and (match := P.letter_unit.fullmatch(text)):
        return match[1], match[2]
    match = P.unit.search(text, max(0, len(text) - _MAX_UNIT))
    before = text[: match.start()].rstrip() if match and match[0].strip() else ""
    if not P.measured.match(before) or before.count("{") != before.count("}"):
        return text, ""
    words = re.findall(r"[a-zA-Z]+|\^\{-?\d\}|/", re.sub(r"(?<=\w{3})s\b", "", _without_text(match[1])))
    return before, " ".join(SYNONYMS.get(word, word) for word in words)


def _without_text(text: str) -> str:
    r"""The words of a text, `\text{...}` or not, with single spaces."""
    return " ".join(re.sub(r"\\text\{([^{}]*)\}", r" \1 ", text).split()).strip(" .,;:")


@lru_cache(maxsize=20_000)
def read(text: str, rule: AnswerRule) -> Form:
    """The form of an answer as it was found in a solution or a data set, at most `MAX_CHARACTERS` long."""
    simple = text.strip("$ ") if P.simple.fullmatch(text) else normal_text(text, rule.lists_split_numbers)
    return _FormReader(rule).form(simple)


@dataclass(frozen=True, slots=True)
class _FormReader:
    """Reads a text in normal form from its outermost structure inwards, `depth` brackets or lists deep so far."""

    rule: AnswerRule
    depth: int = 0

    def form(self, text: str) -> Form:
        number, place = plain_number(text)
        if number is not None:
            whole = text if P.padded.fullmatch(text) else ""
            return Form("value", str(number), number=number, place=place, whole=whole)
        if self.depth > _MAX_DEPTH:
            return Form("value", text)
        if match := P.choice.fullmatch(text):
            choice = (match[1] or match[2]).strip(",").upper()
            content = self.forms([match[3]] if match[3].strip() else [])
            if content and len(choice) == 1:
                return replace(content[0], choice=choice)
            return Form("prose" if content else "words", choice, content, choice=choice)
        if form := self.words(text) or self.several(text):
            return form
        other = rewritten("equations", text)
        return self.form(other) if other != text else self.equation(text) or self.value(text)

    def forms(self, parts: list[str]) -> tuple[Form, ...]:
        inner = _FormReader(self.rule, self.depth + 1)
        return tuple(inner.form(part.strip()) for part in parts)

    def words(self, text: str) -> Form | None:
        """A few words, or the words and the mathematics of sentences."""
        if not P.some_word.search(text):
            return None
        whole = _without_text(text)
        least = 2 if r"\text{" in text else 3 if whole.istitle() else 4
        is_phrase = whole.lower() == "no" or len(re.findall("[a-zA-Z]", whole)) >= least
        is_words = (is_phrase and P.phrase.fullmatch(whole)) or re.fullmatch("[A-Z]{2,}", whole)
        if is_words and not re.search(r"=|\\(?!text)[a-zA-Z]", text) and not P.unit.fullmatch(text):
            return Form("words", whole.lower())
        if match := P.family.fullmatch(text):  # The union of (k, k+1) over all k, with its index renamed to one.
            index, parts = rf"(?<![\\a-zA-Z]){match[2]}(?![a-zA-Z])", match.groups()[2:]
            return Form("prose", match[1], self.forms([re.sub(index, r"\\iota ", part or "ℤ") for part in parts]))
        # Two words of three letters make a sentence, or three with one of them (before an equals sign stands a name).
        _, equals, told = _without_text(_without_unit(re.sub("⟪.*⟫", "", text), False)[0]).rpartition("=")
        counts = [(len(P.prose_word.findall(part)), len(P.word.findall(part))) for part in split(told, ",⋏⋎")]
        is_prose = any((long > 1 and not equals) or (long and words > 2) for long, words in counts)
        if not is_prose and whole.lower() not in ("otherwise", "else", "elsewhere"):
            return None
        parts = [part.strip(' .,;:⋏⋎$"') for part in P.word.split(whole)]
        words = ["#" * bool(part) if place % 2 == 0 else part.lower() for place, part in enumerate(parts)]
        return Form("prose", " ".join(filter(None, words)), self.forms([part for part in parts[::2] if part]))

    def several(self, text: str) -> Form | None:
        if len(text) < _MAX_UNIT and P.measures.fullmatch(text):  # 3 hours 5 minutes
            return Form("tuple", text, self.forms(re.findall(r"\d+ ?[^\d^]*(?:\^\{\d\})?", text)))
        if len(parts := split(text, " " if re.fullmatch(r"\d+(?: \d+)+", text) else ";,⋏⋎")) > 1:
            return self.listed(parts, text)
        for kind, sign in (("union", "∪"), ("difference", "∖"), ("intersection", "∩")):
            if len(parts := split(text, sign)) > 1:
                return Form(kind, text, self.forms(parts))
        terms: list[Any] = [P.matrix.fullmatch(term) for term in split(text.replace("⟧-", "⟧+-"), "+")]
        if all(terms):  # A sum of matrices, each with its factor, is worked out cell by cell.
            times = [match[1] if match[1] in ("", "-") else rf"({match[1]})\cdot" for match in terms]
            rows = [match[2].split("\\\\") for match in terms]
            grids = [
                [[f"{by}({cell})" for cell in row.split("&")] for row in few]
                for by, few in zip(times, rows, strict=True)
            ]
            if len({tuple(map(len, grid)) for grid in grids}) > 1:
                return None
            sums = [map("+".join, zip(*cells, strict=True)) for cells in zip(*grids, strict=True)]
            return self.matrix([self.forms([*row]) for row in sums], text)
        if (inner := enclosed(text, "⟪", "⟫")) is not None:
            pieces = [self.forms(split(P.condition.sub("⋏", row), "⋏")) for row in inner.split("\\\\")]
            items = tuple(piece[0] if len(piece) == 1 else Form("tuple", "", piece, brackets="()") for piece in pieces)
            return items[0] if len(items) == 1 else _named(Form("list", text, items))
        if (inner := enclosed(text, "⦃", "⦄")) is not None:
            items = self.forms(split(inner, ",;⋏"))
            return items[0] if len(items) == 1 else Form("list", text, items, brackets="{}")
        if enclosed(text.replace("[", "(").replace("]", ")"), "(", ")") is not None:
            items, brackets = self.forms(split(text[1:-1], ",;")), text[0] + text[-1]
            if len(items) == 1:
                return items[0] if brackets in ("()", "[]") else None
            if brackets == "[]" and all(item.brackets == "[]" for item in items):
                return self.matrix([item.items for item in items], text)
            return Form("tuple", text, items, brackets=brackets)
        return None

    def listed(self, parts: list[str], text: str) -> Form:
        if (match := re.fullmatch(r"([^=]+)=[^=]+", parts[0])) and not re.search("[=<>≤≥]", "".join(parts[1:])):
            parts[1:] = [f"{match[1]}={part}" for part in parts[1:]]  # x = 7, 100 names them all.
        items = self.forms(parts)
        are_open = [item.kind == "tuple" and "∞" in part for item, part in zip(items, parts, strict=True)]
        if all(is_open or re.search("[<>≤≥≠]", part) for is_open, part in zip(are_open, parts, strict=True)):
            return Form("union" if "⋎" in text else "intersection", text, items)
        flat = [item.items if item.kind == "list" and not item.brackets else (item,) for item in items]
        return _named(Form("list", text, tuple(inner for few in flat for inner in few)))

    def matrix(self, rows: list[tuple[Form, ...]], text: str) -> Form | None:
        """A vector, where there is one row or one column, is its cells."""
        if len({len(row) for row in rows}) > 1:
            return None
        cells = tuple(cell for row in rows for cell in row)
        is_vector = len(cells) in (len(rows), len(rows[0]))
        items = cells if is_vector else tuple(Form("tuple", "", row, brackets="⟦⟧") for row in rows)
        return Form("tuple", text, items, brackets="⟦⟧")

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
        is_told = match is None and len(split(first, "+-")) == 1 and bool(re.search(r"\\|[a-zA-Z]\(", first))
        if match is None and len(names) == 1 and has_letters and not (is_told or self.rule.whole_numbers):
            return Form("relation", text, whole=text)
        # Of a value and what it is about, the value: x = 1/3 = 0.333, and 1/3 ≈ 0.333.
        is_rounded = P.decimal.fullmatch(sides[-1]) and "." not in sides[-2]
        is_rounded = is_rounded and (len(sides) > 2 or not re.search("[+*]", first))
        is_about = (is_rounded or "≈" in text) and (len(sides) > 2 or match is None)
        (form,) = self.forms([sides[-2] if is_about else sides[-1]])
        if len(names) > 1 and form.kind == "tuple" and len(form.items) == len(names):
            items = [replace(item, name=name) for item, name in zip(form.items, names, strict=True)]
            return _named(replace(form, items=tuple(items)))
        if is_told and has_letters and form.kind == "value":
            return replace(form, name=first, whole=text)
        if match is None:
            return form
        if form.kind == "list":
            return replace(form, items=tuple(replace(item, name=item.name or match[1]) for item in form.items))
        argument = (match[2] or "") if re.fullmatch(r"\\?[a-zA-Z]*", match[2] or "") else None
        name = _without_text(first if argument is None else match[1])
        name = name.lower() if len(name) > 2 and "\\" not in name else name
        return replace(form, name=name, argument=argument or "", whole=text)

    def value(self, text: str) -> Form:
        whole, unit = "", {"%": "%", "°": "degree"}.get(text[-1:], "")
        if match := P.numeral.fullmatch(text):
            return Form("value", match[1], unit=f"_{match[2]}")
        if match := P.time.fullmatch(text):  # A time of day is only itself; 3:4 is 3/4.
            return Form("words", match[1])
        if len(parts := split(text, ":")) > 1 and not re.search("[⟦∞]", text):
            pairs = zip(parts, [*parts[1:], parts[0]], strict=True)
            quotients = self.forms([rf"\frac{{{one}}}{{{other}}}" for one, other in pairs])
            return quotients[0] if len(parts) == 2 else Form("ratio", text, quotients)
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


def _named(form: Form) -> Form:
    """`y=4, x=1` and `(y,x)=(4,1)` are the point (1,4) of x and y: in the order of the names."""
    names = sorted(item.name for item in form.items)
    if not names[0] or len(set(names)) < len(names) or len(names) < 2 or any(item.items for item in form.items):
        return form
    items = tuple(sorted(form.items, key=lambda item: item.name))
    return replace(form, kind="tuple", brackets="()", items=items, name=",".join(names))
