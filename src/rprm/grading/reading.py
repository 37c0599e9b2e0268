r"""An answer's form: what its text is made of, as far as that can be told without computer algebra.

A text becomes a tree: a list of several answers, a tuple or interval with its brackets, a union, a matrix; at its
leaves stand single values: a number (an exact rational), words, or an expression that only computer algebra can
compare. Pure string work on texts of at most `MAX_CHARACTERS`; nothing is ever evaluated.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache
from itertools import product
from pathlib import Path

from rprm.grading.normal import enclosed, normal_text, split
from rprm.grading.rules import AnswerRule

#: A longer answer is not read. The longest gold answer of the seven sets has 517 characters.
MAX_CHARACTERS = 2_000
#: Brackets within brackets; what lies deeper stays one expression.
_MAX_DEPTH = 6
_MAX_DIGITS = 400


@dataclass(frozen=True, slots=True)
class Form:
    """An answer, or one of its parts.

    Attributes:
        kind: `value`; `words`; `relation` (an equation or inequality that names no value); or several: a `list` of
            answers in any order, a `tuple` (a point or an interval), a `union` or `difference` of sets, a `matrix`.
        text: the normal form; of an equation that names a value, its last side.
        items: the several values; of a matrix row by row.
        brackets: of a tuple, its two.
        columns: of a matrix.
        name: what the value is assigned to: `x` in `x=5`, `f` in `f(x)=x`.
        argument: `x` in `f(x)=x`.
        whole: the whole equation, where it is one.
        number: the exact value, where the text is a plain number.
        place: one unit in the last place of a number that is written as a decimal.
        is_percent: a percent sign followed; `number` is what stood before it.
        unit: that followed, in one spelling.
        choice: the letter, where the text is a choice such as `(B)` or `(B) 5`.
    """

    kind: str
    text: str
    items: tuple[Form, ...] = ()
    brackets: str = ""
    columns: int = 0
    name: str = ""
    argument: str = ""
    whole: str = ""
    number: Fraction | None = None
    place: Fraction | None = None
    is_percent: bool = False
    unit: str = ""
    choice: str = ""

    @property
    def has_decimals(self) -> bool:
        """Whether any number in it is written as a decimal."""
        return self.place is not None or bool(re.search(r"\d\.\d", self.text))

    @property
    def is_prose(self) -> bool:
        """Whether it is words of which only the same ones can be known to be equal."""
        return self.kind == "words" and not _PHRASE.fullmatch(self.text)


_TABLE = [line.split() for line in (Path(__file__).parent / "units.txt").read_text().splitlines() if line[:1] != "#"]
#: Units of which one is never another; nouns (`apples`, `fruits`) may be.
MEASURES = frozenset(line[1] for line in _TABLE if line[0] == "=")
_SYNONYMS = {other: line[1] for line in _TABLE if line[0] == "=" for other in line[2:]}
_UNITS = {word for line in _TABLE for word in line if len(word) > 1 and word != "per"} | {"per"}
_WORD = "|".join(sorted({*_UNITS, *(f"{unit}s" for unit in _UNITS), *(f"{unit}es" for unit in _UNITS)}, reverse=True))
_LETTER = "m|s|g|h|l|L|N|J|W|V|A|K|C|F|T|G|d|c|M"
_POWER = r"(?:\^\{-?\d\})?"
_JOIN = r"(?:[ /]|\\cdot ?|-|\. ?|\bper ?)*"
#: What stands inside `\text{}` and is units alone.
_INSIDE = rf"\\text\{{ ?(?:(?:\\?mu)?(?:{_WORD}|{_LETTER})(?![a-zA-Z]){_POWER}{_JOIN})+\}}{_POWER}"
_BARE = rf"(?:(?:{_WORD})|(?<=/)(?:{_LETTER}))(?![a-zA-Z]){_POWER}"
_MEASURED = re.compile(rf"(?:\d+ ?{_INSIDE}|\d+ {_BARE})(?: *(?:\d+ ?{_INSIDE}|\d+ {_BARE}))+")
_REST = r"(?: ?(?:\\text\{)? ?(?:of (?:the|a|an|his|her|its|all)|in total|altogether|total|left|each|\(?approximately\)?)(?: [a-z]+){0,3}\}?)"
_UNIT = re.compile(rf"(?P<unit>(?:{_JOIN}(?:{_INSIDE}|{_BARE}|\\AA))*)(?P<rest>{_REST}?)$")
_LETTER_UNIT = re.compile(rf"(?P<value>.*[\d}}]) (?P<unit>(?:{_LETTER}){_POWER}(?:[ /](?:{_LETTER}){_POWER})*)")
_BEFORE = re.compile(r"^(?:\\text\{ ?)?(?:USD|EUR|Rs\.?|about|approximately|exactly|roughly|around|only|≈|~)\b ?\}?|^≈")
_PERCENT = re.compile(r" ?(?:%|\\text\{ ?(?:%|percent|pct) ?\}|percent|pct)$")
_DEGREES = re.compile(r"° ?(?:\\text\{ ?[CF]? ?\}|[CF])?$")
_CLOCK = re.compile(r"(\d+)° ?(\d+(?:\.\d+)?)'(?: ?(\d+(?:\.\d+)?)(?:''|\"))?")

_NUMBER = r"(?:\d+(?:\.\d*)?|\.\d+)"
_SIMPLE = re.compile(r" *\$?-?\d{1,400}(?:\.\d{1,400})?\$? *")
_FRACTION = rf"\\frac\{{(-?{_NUMBER})\}}\{{(-?{_NUMBER})\}}"
_PLAIN = re.compile(
    rf"([-+]*)(?:({_NUMBER}) ?{_FRACTION}|{_FRACTION}|({_NUMBER})/({_NUMBER})|"
    rf"({_NUMBER})(?: ?\\(?:times|cdot) ?10\^\{{?([-+]?\d+)\}}|[eE]([-+]?\d+))?|10\^\{{([-+]?\d+)\}})"
)
_REPEATING = re.compile(r"([-+]?)(\d*)\.(\d*)\\(?:overline|dot|bar)\{(\d+)\}(?:(\d)?\\dot\{(\d)\})?")
_ELLIPSIS = re.compile(r"([-+]?\d*)\.(\d*?)(\d+?)\3+…")
_SCALES = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
_SMALL = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
).split()
_TENS = dict(zip("twenty thirty forty fifty sixty seventy eighty ninety".split(), range(20, 100, 10), strict=True))
_NUMBERS = {word: value for value, word in enumerate(_SMALL)} | _TENS | {"dozen": 12, "hundred": 100}

_NAME = re.compile(
    r"(?P<name>(?:\\(?!frac|sqrt|begin|sum|int|log|ln|sin|cos|tan|binom|overline)[a-zA-Z]+(?:\{\\?\w+\}| ?[A-Z]{1,4})?|"
    r"[a-zA-Z]|[A-Z]{2,4}|[a-zA-Z][a-z]{2,}|\|[A-Z]{2}\||\\text\{[^{}]*\})(?:_\{[^{}]*\})?'*(?:\^\{-1\})?)(?:\((?P<argument>\\?[a-zA-Z]+|[^()]*)\))?"
)
_LABEL = re.compile(r"\\text\{ ?([a-zA-Z ]+): ?\} ?(.+)|([A-Za-z]{2,}): ?(.+)")
_VARIABLE = re.compile(r"\\?[a-zA-Z]+(?:_\{\w\})?")
_BUILDER = re.compile(r"⦃ ?[a-zA-Z](?:∈ℝ)?[:|](.*)⦄")
_CONDITION = re.compile(r",? ?(?:\\text\{ ?)?(?:for (?:all|every|any|each)(?: real)?(?: numbers?)?\}?.*|\\forall.*)$")
_CHOICE = re.compile(
    r"(?:\\text\{)?(?:[Oo]ption|[Cc]hoice|[Aa]nswer)? ?(?:\(([A-J])\)|([A-J])(?=[.:)}]|$))[.:)]?\}? ?(.*)"
)
_PHRASE = re.compile(r"[^\W\d_]+(?:[ .'-]+[^\W\d_]+){0,3}")
_PROSE_WORD = re.compile(r"(?<![\\_^{a-zA-Z])[a-zA-Z]{3,}(?![a-zA-Z({])")
_TEXT = re.compile(r"\\text\{([^{}]*)\}")
_FLIPPED = {"<": ">", "≤": "≥", ">": "<", "≥": "≤"}


@lru_cache(maxsize=20_000)
def read(text: str, rule: AnswerRule) -> Form:
    """The form of an answer as it was found in a solution or a data set, at most `MAX_CHARACTERS` long."""
    if _SIMPLE.fullmatch(text):
        return _number(text.strip("$ "), text.strip("$ "))
    return _read(normal_text(text, rule.lists_split_numbers), rule, 0)


def _number(text: str, original: str) -> Form:
    number, place = plain_number(text)
    if number is None:
        return Form("value", original)
    fraction = str(number) if number.denominator == 1 else rf"\frac{{{number.numerator}}}{{{number.denominator}}}"
    return Form("value", fraction, number=number, place=place)


def _read(text: str, rule: AnswerRule, depth: int) -> Form:
    text = _CONDITION.sub("", text).strip() or text
    if text[-1:] in "0123456789}" and (form := _number(text, "")).text:
        return form
    text = re.sub(r"(?<=[\])⟧])\^\{(?:T|\\top|\\intercal)\}$", "", text)
    if depth > _MAX_DEPTH:
        return Form("value", text)
    if (match := _CHOICE.fullmatch(text)) and not (
        match[2] and match[3] and text[0] == match[2] and not re.match(r"[A-Ja-j][.:] ", text)
    ):
        content = _read(match[3].strip(), rule, depth + 1) if match[3].strip() else Form("words", text)
        return replace(content, choice=match[1] or match[2])
    if words := _words(text):
        return words
    if match := _BUILDER.fullmatch(text):
        return _read(match[1].strip(), rule, depth + 1)
    if form := _several(text, rule, depth):
        return form
    if interval := _interval(text, rule, depth):
        return interval
    sides = split(text, "=≈") if "≠" not in text else [text]
    if len(sides) > 1 or len(sides := split(text, "∈")) > 1:
        return _equation(text, sides, rule, depth)
    if match := _LABEL.fullmatch(text):
        return replace(_read(match[2] or match[4], rule, depth + 1), name=(match[1] or match[3]).strip().lower())
    if re.search("[<>≤≥≠]", text):
        if (match := re.fullmatch(rf"{_VARIABLE.pattern}≠(.+)", text)) and "≠" not in match[1]:
            left_out = Form("list", match[1], tuple(_read(part, rule, depth + 1) for part in split(match[1], ",")))
            return Form("difference", text, (Form("value", "ℝ"), left_out))
        return Form("relation", text, whole=text)
    return _value(text, rule)


def _several(text: str, rule: AnswerRule, depth: int) -> Form | None:
    def forms(parts: list[str]) -> tuple[Form, ...]:
        return tuple(_read(part, rule, depth + 1) for part in parts)

    if "," not in text and "⋏" not in text and _MEASURED.fullmatch(text):
        return Form("tuple", text, forms([part.strip() for part in re.findall(r"\d+\D*(?:\^\{\d\})?", text)]))
    separators = " " if re.fullmatch(r"\d+(?: \d+)+", text) else ";,⋏⋎"
    if len(parts := split(text, separators)) > 1:
        if (match := re.fullmatch(r"([^=]+)=([^=]+)", parts[0])) and not any(
            re.search("[=<>≤≥]", part) for part in parts[1:]
        ):
            # x = 7, 100 names them all.
            parts[1:] = [f"{match[1]}={part}" for part in parts[1:]]
        items = forms(parts)
        if all(item.kind in ("tuple", "union", "difference") and "∞" in item.text or re.search("[<>≤≥≠]", part) for item, part in zip(items, parts, strict=True)):  # fmt: skip
            return Form("union" if "⋎" in text else "intersection", text, items)
        flat = [
            inner for item in items for inner in (item.items if item.kind == "list" and not item.brackets else (item,))
        ]
        return Form("list", text, tuple(flat))
    for kind, sign in (("union", "∪"), ("difference", "∖"), ("intersection", "∩")):
        if len(parts := split(text, sign)) > 1:
            return Form(kind, text, forms(parts))
    if match := re.fullmatch(r"([^⟦⟧]*)⟦([^⟦⟧]*)⟧", text):
        factor, rows = match[1].strip(), [row.split("&") for row in re.split(r"\\\\", match[2])]
        if len({len(row) for row in rows}) == 1 and (not factor or not re.search("[=+]", factor)):
            cells = [cell.strip() for row in rows for cell in row]
            cells = [rf"({factor})\cdot({cell})" for cell in cells] if factor else cells
            return Form("matrix", text, forms(cells), columns=len(rows[0]))
    if text == "ℝ":
        return Form("tuple", text, forms(["-∞", "∞"]), brackets="()")
    if (inner := enclosed(text, "⦃", "⦄")) is not None:
        items = forms(split(inner, ",;⋏"))
        return items[0] if len(items) == 1 else Form("list", text, items, brackets="{}")
    for brackets in ("()", "[]", "[)", "(]"):
        if (inner := enclosed(text.replace("[", "(").replace("]", ")"), "(", ")")) is not None and text[0] + text[-1] == brackets:  # fmt: skip
            parts = split(text[1:-1], ",;")
            if len(parts) > 1:
                items = forms(parts)
                if brackets == "[]" and len({(item.kind, item.brackets, len(item.items)) for item in items}) == 1 and items[0].brackets == "[]":  # fmt: skip
                    cells = tuple(cell for item in items for cell in item.items)
                    return Form("matrix", text, cells, columns=len(items[0].items))
                return Form("tuple", text, items, brackets=brackets)
            return _read(text[1:-1].strip(), rule, depth + 1) if brackets in ("()", "[]") else None
    signs = [place for place, sign in enumerate(text) if sign in "±∓"]
    if 0 < len(signs) <= 3 and not split(text, "=")[1:]:
        values = []
        for choices in product("+-", repeat=1 if len(set(signs)) == 1 or "∓" in text else len(signs)):
            places = choices * len(signs) if len(choices) == 1 else choices
            value = list(text)
            for place, chosen in zip(signs, places, strict=True):
                value[place] = chosen if text[place] == "±" else "-+"["+-".index(chosen)]
            values.append("".join(value).removeprefix("+"))
        return Form("list", text, forms(values))
    return None


def _interval(text: str, rule: AnswerRule, depth: int) -> Form | None:
    """The interval that an inequality of one variable says: `1<x≤2` is `(1,2]`, `x>3` is `(3,∞)`."""
    signs, sides = re.findall("[<>≤≥]", text), split(text, "<>≤≥")
    if not 0 < len(signs) == len(sides) - 1 <= 2 or "≠" in text or "=" in text:
        return None
    if signs[0] in ">≥":
        sides, signs = sides[::-1], [_FLIPPED[sign] for sign in signs[::-1]]
    if signs[-1] in ">≥":
        return None
    if len(sides) == 2:
        is_first = bool(_VARIABLE.fullmatch(sides[0]))
        if is_first == bool(_VARIABLE.fullmatch(sides[1])):
            return None
        sides, signs = (["-∞", *sides], ["<", *signs]) if is_first else ([*sides, "∞"], [*signs, "<"])
    if not _VARIABLE.fullmatch(sides[1]):
        return None
    ends = tuple(_read(side, rule, depth + 1) for side in (sides[0], sides[2]))
    return Form(
        "tuple",
        text,
        ends,
        brackets=("[" if signs[0] == "≤" else "(") + ("]" if signs[1] == "≤" else ")"),
        name=sides[1],
    )


def _equation(text: str, sides: list[str], rule: AnswerRule, depth: int) -> Form:
    """`x=5` is the value 5 with its name; `x+y=5` a relation; `30-1=29` the value 29."""
    first, last = sides[0], sides[-1]
    if not _NAME.fullmatch(first) and _NAME.fullmatch(last) and len(sides) == 2 and not re.search("[a-zA-Z]", first):
        first, last = last, first
    names = split(inner, ",") if (inner := enclosed(first, "(", ")")) is not None else [first]
    match = _NAME.fullmatch(first)
    if (match is None and len(names) < 2) and re.search(
        r"[a-zA-Z]", re.sub(r"\\(?:frac|sqrt|times|cdot|pi|binom|ln|log|sin|cos|tan)|e(?=\^)", "", first)
    ):
        if not rule.whole_numbers:
            return Form("relation", text, whole=text)
    if "≈" in text and split(text, "=≈")[-2:-1] != [first] or (
        len(sides) > 2 and re.fullmatch(r"-?\d*\.\d+", last) and "." not in sides[-2]
    ) or (match is None and len(sides) == 2 and re.fullmatch(r"-?\d*\.\d+", last) and "." not in first and not re.search("[+*]", first)):  # fmt: skip
        last = sides[-2]
    form = _read(last, rule, depth + 1)
    if len(names) > 1:
        items = form.items if form.kind == "tuple" else ()
        if len(items) != len(names):
            return form
        return replace(form, kind="list", brackets="", items=tuple(replace(item, name=name) for item, name in zip(items, names, strict=True)))  # fmt: skip
    if match is None:
        return form
    if form.kind == "list":
        return replace(form, items=tuple(replace(item, name=item.name or match["name"]) for item in form.items))
    argument = match["argument"] or ""
    is_variable = bool(re.fullmatch(r"\\?[a-zA-Z]+", argument))
    name = match["name"] if is_variable or not argument else first
    return replace(form, name=_plain(name), argument=argument if is_variable else "", whole=text)


def _plain(text: str) -> str:
    """Words without `\\text`, in lower case where they are words."""
    text = re.sub(r"\s+", " ", _TEXT.sub(r" \1 ", text)).strip(" .,:")
    return text.lower() if len(text) > 2 and "\\" not in text else text


def _words(text: str) -> Form | None:
    """The text as words, None where it is mathematics."""
    if "=" in text or re.search(r"\\(?!text)[a-zA-Z]", text):
        return None
    whole = re.sub(r"\s+", " ", _TEXT.sub(r" \1 ", text)).strip(" .,;:")
    if (value := _named_number(whole.lower())) is not None:
        return Form("value", str(value), number=value)
    letters = re.sub(r"[^a-zA-Z]", "", whole)
    if re.fullmatch("[A-Z]{2,}", whole):
        return Form("words", whole.lower())
    if _UNIT.fullmatch(text) or not letters:
        return None
    if _PHRASE.fullmatch(whole) and (r"\text{" in text and len(letters) > 1 or len(letters) > 3 or len(letters) > 2 and whole.istitle() or whole.lower() == "no"):  # fmt: skip
        return Form("words", whole.lower())
    stripped = _strip_unit(text, False)[0]
    if (
        len([word for word in _PROSE_WORD.findall(_TEXT.sub(r" \1 ", stripped)) if word != "mod"]) >= 2
        and len(split(text, ",⋏⋎")) == 1
    ):
        return Form("words", whole.lower())
    return None


def _named_number(text: str) -> Fraction | None:
    """`fifteen`, `twenty-one`, `3 million`, `2.5 dozen`."""
    *first, last = re.split("[ -]", text) if text else [""]
    if last in _SCALES or last == "dozen":
        count = _named_number(" ".join(first)) if first else Fraction(1)
        if count is None and re.fullmatch(_NUMBER, first[0]) and len(first) == 1:
            count = Fraction(first[0])
        return None if count is None or text == "dozen" else count * (12 if last == "dozen" else 10 ** _SCALES[last])
    if len(first) == 1 and first[0] in _TENS and 0 < _NUMBERS.get(last, 0) < 10:
        return Fraction(_TENS[first[0]] + _NUMBERS[last])
    return Fraction(_NUMBERS[last]) if not first and last in _NUMBERS else None


def _value(text: str, rule: AnswerRule) -> Form:
    text = _BEFORE.sub("", text).strip() or text
    choice = text if re.fullmatch("[A-Za-z]", text) else ""
    is_percent = bool(_PERCENT.search(text))
    text = _PERCENT.sub("", text)
    unit = ""
    if match := _CLOCK.fullmatch(text):
        text, unit = str(Fraction(match[1]) + Fraction(match[2]) / 60 + Fraction(match[3] or 0) / 3600), "degree"
    elif _DEGREES.search(text) and not re.search(r"\\(?:sin|cos|tan|cot|sec|csc)", text):
        text, unit = _DEGREES.sub("", text), "degree"
    else:
        text, unit = _strip_unit(text, rule.letter_units)
    while (inner := enclosed(text, "(", ")") or enclosed(text, "{", "}")) is not None and not split(inner, ",")[1:]:
        text = inner
    text = re.sub(r"^(-?\d+)(?:st|nd|rd|th|\^\{?\\text\{(?:st|nd|rd|th)\}\}?|\\text\{(?:st|nd|rd|th)\})$", r"\1", text)
    number, place = plain_number(text)
    if number is None and (number := _named_number(text.lower())) is None:
        return Form("value", text, is_percent=is_percent, unit=unit, choice=choice.upper())
    return Form("value", _fraction(number), number=number, place=place, is_percent=is_percent, unit=unit)


def _fraction(number: Fraction) -> str:
    return str(number) if number.denominator == 1 else rf"\frac{{{number.numerator}}}{{{number.denominator}}}"


def _strip_unit(text: str, letters: bool) -> tuple[str, str]:
    """The text without the unit at its end, and the unit in one spelling."""
    if letters and (match := _LETTER_UNIT.fullmatch(text)):
        return match["value"], match["unit"]
    if match := re.fullmatch(r"\\text\{ ?(\d+) ([^{}]*)\}", text):
        text = rf"{match[1]} \text{{{match[2]}}}"
    match = _UNIT.search(text)
    if (
        match is None
        or not match[0].strip()
        or not re.search(r"[\d})∞]$|\\pi$|(?:red|sand|illion|dozen)$", before := text[: match.start()].rstrip())
    ):
        return text, ""
    if not re.search(r"\d|\\pi|∞", before) or before.count("{") != before.count("}") or before.endswith(("^{", "_{")):
        return text, ""
    unit = re.sub(r"\s+", " ", _TEXT.sub(r" \1 ", match["unit"])).strip()
    return before, " ".join(
        _SYNONYMS.get(word, word) for word in re.findall(r"[a-zA-Z]+|\^\{-?\d\}|/", re.sub(r"(?<=\w{3})s\b", "", unit))
    )


def plain_number(text: str) -> tuple[Fraction | None, Fraction | None]:
    """The exact value of a number in normal form, and one unit in its last place where it is written as a decimal."""
    if len(text) > _MAX_DIGITS:
        return None, None
    if match := _REPEATING.fullmatch(text):
        sign, whole, fixed, block = match[1], match[2], match[3], match[4] + (match[5] or "") + (match[6] or "")
        value = Fraction(int(whole + fixed or 0)) + Fraction(int(block), 10 ** len(block) - 1)
        value /= 10 ** len(fixed)
        return (-value if sign == "-" else value), None
    if match := _ELLIPSIS.fullmatch(text):
        return plain_number(rf"{match[1]}.{match[2]}\overline{{{match[3]}}}")
    match = _PLAIN.fullmatch(text.removesuffix("…") if re.search(r"\.\d+…$", text) else text)
    if match is None:
        return None, None
    sign, whole, over, under, top, bottom, left, right, single, power, exponent, ten = match.groups()
    place = None
    if whole is not None or top is not None or left is not None:
        above, below = Fraction(over or top or left), Fraction(under or bottom or right)
        if below == 0 or (whole and "." in whole):
            return None, None
        value = Fraction(whole or 0) + above / below
        place = Fraction(1, 1_000_000) if "." in text else None
    else:
        shift = int((power or exponent or ten or "0")[:7])
        if abs(shift) > _MAX_DIGITS:
            return None, None
        value = Fraction(single or 1) * Fraction(10) ** shift
        if "." in text or power or exponent:
            place = Fraction(10) ** (shift - len((single or "").partition(".")[2]))
    return (-value if sign.count("-") % 2 else value), place
