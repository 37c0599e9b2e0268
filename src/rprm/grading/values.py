r"""Single values: numbers as exact rationals, number words, units (of a closed list, units.txt), and words."""

from __future__ import annotations

import re
from fractions import Fraction
from pathlib import Path

from rprm.grading.normal import split

_MAX_DIGITS = 400
#: How long a unit may be, and a text that is nothing but measures.
_MAX_UNIT = 80

_TABLE = [line.split() for line in (Path(__file__).parent / "units.txt").read_text().splitlines() if line[:1] != "#"]
#: Units of which one is never another; nouns (`apples`, `fruits`) may be.
MEASURES = frozenset(line[1] for line in _TABLE if line[0] == "=")
_SYNONYMS = {other: line[1] for line in _TABLE if line[0] == "=" for other in line[2:]}
_UNITS = {word for line in _TABLE for word in line if len(word) > 1 and word != "per"}
_WORD = "|".join(sorted({unit + ending for unit in _UNITS for ending in ("", "s", "es")}, reverse=True))
_LETTER = "[msghlLNJWVAKCFTGdcM]"
_POWER = r"(?:\^\{-?\d\})?"
#: Between units; each text matches in one way alone, so that nothing can make a search long.
_JOIN = r"[ /.-]*(?:(?:\\cdot|per\b)[ /.-]*)*"
_INSIDE = rf"\\text\{{ ?(?:(?:\\?mu)?(?:{_WORD}|{_LETTER})(?![a-zA-Z]){_POWER}{_JOIN})+\}}{_POWER}"
#: Without a space two letters may be variables: 2mg.
_BARE = rf"(?:(?<!\d)|(?=[a-zA-Z]{{3}}|[ckm]m|k?g|ft|lb|oz|m[lL]))(?:{_WORD}|(?<=/){_LETTER})(?![a-zA-Z]){_POWER}"
_REST = r"of (?:the|a|an|his|her|its|all)|in total|altogether|total|left|each|\(?approximately\)?"
_UNIT = re.compile(
    rf"(?P<unit>(?:{_JOIN}(?:{_INSIDE}|{_BARE}|\\AA))*)(?: ?(?:\\text\{{)? ?(?:{_REST})(?: [a-z]+){{0,3}}\}}?)?$"
)
_LETTER_UNIT = re.compile(rf"(?P<value>.*[\d}}]) (?P<unit>{_LETTER}{_POWER}(?:[ /]{_LETTER}{_POWER})*)")
#: What a unit may follow.
_MEASURED = re.compile(r"[\d})∞]$|\\pi$|(?:red|sand|illion|dozen)$")
_SEQUENCE = re.compile(rf"(?:\d+ ?{_INSIDE}|\d+ {_BARE})(?: *(?:\d+ ?{_INSIDE}|\d+ {_BARE}))+")

_NUMBER = r"(?:\d+(?:\.\d*)?|\.\d+)"
_FRACTION = rf"\\frac\{{(-?{_NUMBER})\}}\{{(-?{_NUMBER})\}}"
_PLAIN = re.compile(
    rf"([-+]*)(?:({_NUMBER}) ?{_FRACTION}|{_FRACTION}|({_NUMBER})/({_NUMBER})|"
    rf"({_NUMBER})(?: ?\\(?:times|cdot) ?10\^\{{?([-+]?\d+)\}}|[eE]([-+]?\d+))?|10\^\{{([-+]?\d+)\}})…?"
)
_REPEATING = re.compile(r"([-+]?)(\d*)\.(\d*)\\(?:overline|dot|bar)\{(\d+)\}(\d*)(?:\\dot\{(\d)\})?")
_ELLIPSIS = re.compile(r"([-+]?\d*)\.(\d*?)(\d+?)\3+…")
_SCALES = {"hundred": 100, "thousand": 1_000, "million": 10**6, "billion": 10**9, "trillion": 10**12, "dozen": 12}
_SMALL = (
    "zero|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|thirteen|fourteen|fifteen|sixteen|seventeen"
)
_SMALL_NUMBERS = {word: value for value, word in enumerate([*_SMALL.split("|"), "eighteen", "nineteen"])}
_ROUND = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_TENS = {word: 10 * value for value, word in enumerate(_ROUND, 2)}

_TEXT = re.compile(r"\\text\{([^{}]*)\}")
_PHRASE = re.compile(r"[^\W\d_]+(?:[ .'-]+[^\W\d_]+){0,3}")
_PROSE_WORD = re.compile(r"(?<![\\_^{a-zA-Z])(?!mod\b)[a-zA-Z]{3,}(?![a-zA-Z({])")


def plain_number(text: str) -> tuple[Fraction | None, Fraction | None]:
    """The exact value of a number in normal form, and one unit in its last place where it is written as a decimal."""
    if len(text) > _MAX_DIGITS:
        return None, None
    if match := _REPEATING.fullmatch(text):
        sign, whole, fixed, block = match[1], match[2], match[3], match[4] + match[5] + (match[6] or "")
        value = Fraction(int(whole + fixed or 0)) + Fraction(int(block), 10 ** len(block) - 1)
        return (-value if sign == "-" else value) / 10 ** len(fixed), None
    if text.endswith("…") and len(text) < 60 and (match := _ELLIPSIS.fullmatch(text)):
        return plain_number(rf"{match[1]}.{match[2]}\overline{{{match[3]}}}")
    match = _PLAIN.fullmatch(text)
    if match is None or (text.endswith("…") and "." not in text):
        return None, None
    sign, whole, over, under, top, bottom, left, right, single, power, exponent, ten = match.groups()
    place = None
    if whole or top or left:
        above, below = Fraction(over or top or left), Fraction(under or bottom or right)
        if below == 0 or "." in (whole or ""):
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


def named_number(text: str) -> Fraction | None:
    """`fifteen`, `twenty-one`, `3 million`, `2.5 dozen`."""
    first, _, last = text.replace("-", " ").rpartition(" ")
    if last in _SCALES and text != "dozen":
        count = named_number(first) if first and not re.fullmatch(_NUMBER, first) else Fraction(first or 1)
        return None if count is None else count * _SCALES[last]
    if first in _TENS and last in _SMALL_NUMBERS:
        return Fraction(_TENS[first] + _SMALL_NUMBERS[last])
    value = None if first or not last else _SMALL_NUMBERS.get(last, _TENS.get(last))
    return None if value is None else Fraction(value)


def as_latex(number: Fraction) -> str:
    """A number in normal form."""
    return str(number) if number.denominator == 1 else rf"\frac{{{number.numerator}}}{{{number.denominator}}}"


def without_unit(text: str, letters: bool) -> tuple[str, str]:
    """The text without the unit at its end, and the unit in one spelling; `letters` after a space are units, too."""
    if letters and (match := _LETTER_UNIT.fullmatch(text)):
        return match["value"], match["unit"]
    if match := re.fullmatch(r"\\text\{ ?(\d+) ([^{}]*)\}", text):
        text = rf"{match[1]} \text{{{match[2]}}}"
    match = _UNIT.search(text, max(0, len(text) - _MAX_UNIT))
    before = text[: match.start()].rstrip() if match and match[0].strip() else ""
    if match is None or not (_MEASURED.search(before) and re.search(r"\d|\\pi|∞", before)):
        return text, ""
    if before.count("{") != before.count("}") or before.endswith(("^{", "_{")):
        return text, ""
    words = re.findall(r"[a-zA-Z]+|\^\{-?\d\}|/", re.sub(r"(?<=\w{3})s\b", "", without_text(match["unit"])))
    return before, " ".join(_SYNONYMS.get(word, word) for word in words)


def measures(text: str) -> list[str]:
    """The measures that make one together, as `3 hours 5 minutes` does; none in any other text."""
    is_sequence = len(text) < _MAX_UNIT and _SEQUENCE.fullmatch(text)
    return re.findall(r"\d+ ?[^\d^]*(?:\^\{\d\})?", text) if is_sequence else []


def without_text(text: str) -> str:
    r"""The words of a text, `\text{...}` or not, with single spaces."""
    return re.sub(r"\s+", " ", _TEXT.sub(r" \1 ", text)).strip(" .,;:")


def words(text: str) -> str | None:
    """The words in lower case where a text is words rather than mathematics, else None."""
    if "=" in text or re.search(r"\\(?!text)[a-zA-Z]", text) or (len(text) < _MAX_UNIT and _UNIT.fullmatch(text)):
        return None
    whole = without_text(text)
    letters = len(re.sub(r"[^a-zA-Z]", "", whole))
    if re.fullmatch("[A-Z]{2,}", whole) or whole.lower() == "no":
        return whole.lower()
    if is_phrase(whole) and (letters > 3 or (letters > 1 and r"\text{" in text) or (letters > 2 and whole.istitle())):
        return whole.lower()
    parts = split(without_text(without_unit(text, False)[0]), ",⋏⋎")
    return whole.lower() if letters and any(len(_PROSE_WORD.findall(part)) >= 2 for part in parts) else None


def is_phrase(text: str) -> bool:
    """Whether words are few enough to be compared; of sentences only the same ones are known to be equal."""
    return bool(_PHRASE.fullmatch(text))
