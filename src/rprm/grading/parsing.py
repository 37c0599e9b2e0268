r"""An answer's form: what its text is made of, as far as that can be told without computer algebra.

A text becomes a tree: a list of several answers, a tuple (a point, an interval, a matrix), a union of sets; its leaves
are single values: a number (an exact rational), words, or an expression that only computer algebra can compare. Pure
string work on texts of at most `MAX_CHARACTERS`; nothing is ever evaluated.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache
from itertools import product
from operator import add

from rprm.grading.normal import enclosed, normal_text, split
from rprm.grading.rules import AnswerRule
from rprm.grading.tables import P
from rprm.grading.values import measures, plain_number, without_text, without_unit, words

#: A longer answer is not read. The longest gold answer of the seven sets has 517 characters.
MAX_CHARACTERS = 2_000
#: Brackets within brackets; what lies deeper stays one expression.
_MAX_DEPTH = 6


@dataclass(frozen=True, slots=True)
class Form:
    """An answer, or one of its parts.

    Its kind is `value`; `words`; `relation` (an equation or inequality that names no value); or several: a `list` of
    answers in any order, a `tuple` in order, a `union`, `intersection` or `difference` of sets.
    """

    kind: str
    text: str  # The normal form; of an equation that names a value, its last side.
    items: tuple[Form, ...] = ()
    brackets: str = ""  # Of a tuple, its two: `⟦⟧` of a vector, and of a matrix and its rows.
    name: str = ""  # What the value is assigned to: `x` in `x=5`, `f` in `f(x)=x`.
    argument: str = ""  # `x` in `f(x)=x`.
    whole: str = ""  # The whole equation, where it is one.
    number: Fraction | None = None  # The exact value, where the text is a plain number.
    place: Fraction | None = None  # One unit in the last place of a number that is written as a decimal.
    unit: str = ""  # That followed, in one spelling; `%` where `number` stood before a percent sign.
    choice: str = ""  # The letter, where the text is a choice such as `(B)` or `(B) 5`.


_FLIPPED = str.maketrans("<≤>≥", ">≥<≤")


@lru_cache(maxsize=20_000)
def read(text: str, rule: AnswerRule) -> Form:
    """The form of an answer as it was found in a solution or a data set, at most `MAX_CHARACTERS` long."""
    simple = text.strip("$ ") if P.simple.fullmatch(text) else normal_text(text, rule.lists_split_numbers)
    return _Reading(rule).form(simple)


class _Reading:
    """Reads a text from its outermost structure inwards, `depth` brackets or lists deep so far."""

    def __init__(self, rule: AnswerRule, depth: int = 0) -> None:
        self.rule, self.depth = rule, depth

    def form(self, text: str) -> Form:
        """The form of a text in normal form."""
        number, place = plain_number(text)
        if number is not None:
            return Form("value", str(number), number=number, place=place)
        if self.depth > _MAX_DEPTH:
            return Form("value", text)
        if match := P.choice.fullmatch(text):
            (content,) = self.forms([match[3]]) if match[3].strip() else (Form("words", text),)
            return replace(content, choice=match[1] or match[2])
        if (found := words(text)) is not None:
            return Form("words", found)
        return self.several(text) or self.interval(text) or self.equation(text) or self.value(text)

    def forms(self, parts: list[str]) -> tuple[Form, ...]:
        inner = _Reading(self.rule, self.depth + 1)
        return tuple(inner.form(part.strip()) for part in parts)

    def several(self, text: str) -> Form | None:
        if text == "ℝ":
            return Form("tuple", text, self.forms(["-∞", "∞"]), brackets="()")
        if parts := measures(text):
            return Form("tuple", text, self.forms(parts))
        if len(parts := split(text, " " if re.fullmatch(r"\d+(?: \d+)+", text) else ";,⋏⋎")) > 1:
            return self.listed(parts, text)
        for kind, sign in (("union", "∪"), ("difference", "∖"), ("intersection", "∩")):
            if len(parts := split(text, sign)) > 1:
                return Form(kind, text, self.forms(parts))
        if match := P.matrix.fullmatch(text):
            times = rf"({match[1].strip()})\cdot" if match[1].strip() else ""
            rows = [
                [f"{times}({cell})" if times else cell for cell in row.split("&")] for row in match[2].split("\\\\")
            ]
            return self.matrix([self.forms(row) for row in rows], text)
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
        if "±" in text and text.count("±") + text.count("∓") <= 3 and "=" not in text:
            return Form("list", text, self.forms(_both_signs(text)))
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

    def interval(self, text: str) -> Form | None:
        """The interval that an inequality of one variable says: `1<x≤2` is `(1,2]`, `x>3` is `(3,∞)`."""
        signs, sides = "".join(re.findall("[<>≤≥≠=]", text)), split(text, "<>≤≥≠")
        if signs == "≠" and len(sides) == 2 and P.variable.fullmatch(sides[0]):
            left_out = Form("list", sides[1], self.forms(split(sides[1], ",")))
            return Form("difference", text, (*self.forms(["ℝ"]), left_out))
        if not 0 < len(signs) == len(sides) - 1 <= 2 or set(signs) & {"≠", "="}:
            return None
        if signs[0] in ">≥":
            sides, signs = sides[::-1], signs[::-1].translate(_FLIPPED)
        is_first = bool(P.variable.fullmatch(sides[0]))
        if len(sides) == 2 and is_first is not bool(P.variable.fullmatch(sides[1])):
            sides, signs = (["-∞", *sides], "<" + signs) if is_first else ([*sides, "∞"], signs + "<")
        if len(sides) < 3 or signs[-1] in ">≥" or not P.variable.fullmatch(sides[1]):
            return None
        brackets = ("[" if signs[0] == "≤" else "(") + ("]" if signs[1] == "≤" else ")")
        return Form("tuple", text, self.forms([sides[0], sides[2]]), brackets=brackets, name=sides[1])

    def equation(self, text: str) -> Form | None:
        """`x=5` is the value 5 with its name; `x+y=5` a relation; `30-1=29` the value 29."""
        if match := P.label.fullmatch(text):
            return replace(self.forms([match[3]])[0], name=(match[1] or match[2]).strip().lower())
        if re.search("[<>≤≥≠]", text):
            return Form("relation", text, whole=text)
        sides = split(text, "=≈" if "∈" not in text else "∈")
        if len(sides) == 1:
            return None
        if len(sides) == 2 and not re.search("[a-zA-Z]", sides[0]) and P.name.fullmatch(sides[1]):
            sides.reverse()  # 5 = A
        first, match = sides[0], P.name.fullmatch(sides[0])
        names = split(first[1:-1], ",") if enclosed(first, "(", ")") is not None else [first]
        has_letters = bool(re.search("[a-zA-Z]", P.constant.sub("", first)))
        # A quotient or a function's value that is told; x+y=5 and 2x=y are equations to keep.
        is_told = match is None and len(split(first, "+-")) == 1 and bool(re.search(r"\\|[a-zA-Z]\(", first))
        if match is None and len(names) == 1 and has_letters and not (is_told or self.rule.whole_numbers):
            return Form("relation", text, whole=text)
        # Of a value and what it is about, the value: x = 1/3 = 0.333, and 1/3 ≈ 0.333.
        is_about = len(sides) > 2 or match is None
        is_rounded = P.decimal.fullmatch(sides[-1]) and "." not in sides[-2]
        is_rounded = is_rounded and (len(sides) > 2 or not re.search("[+*]", first))
        form = self.form(sides[-2] if is_about and (is_rounded or "≈" in text) else sides[-1])
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
        name = without_text(first if argument is None else match[1])
        name = name.lower() if len(name) > 2 and "\\" not in name else name
        return replace(form, name=name, argument=argument or "", whole=text)

    def value(self, text: str) -> Form:
        whole, unit = "", {"%": "%", "°": "degree"}.get(text[-1:], "")
        if unit and not re.search(r"\\(?:sin|cos|tan|cot|sec|csc).*°", text):
            text = text[:-1]
        else:
            stripped, unit = without_unit(text, self.rule.letter_units)
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


def _both_signs(text: str) -> list[str]:
    """What `±` says: two values, four where it stands twice; `∓` is its opposite."""
    parts = text.split("±")
    if "∓" in text:
        values = [text.translate(str.maketrans("±∓", signs)) for signs in ("+-", "-+")]
    else:
        values = [parts[0] + "".join(map(add, signs, parts[1:])) for signs in product("+-", repeat=len(parts) - 1)]
    return [value.removeprefix("+") for value in values]
