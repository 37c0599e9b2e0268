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
_SYNONYMS = {other: line[1] for line in _TABLE if line[0] == "=" for other in line[1:]}
#: Units of which one is never another; nouns (`apples`, `fruits`) may be.
MEASURES = frozenset(_SYNONYMS.values())
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
_LETTER_UNIT = re.compile(rf"(.*[\d}}]) ({_LETTER}{_POWER}(?:[ /]{_LETTER}{_POWER})*)")
#: What a unit may follow.
_MEASURED = re.compile(r"[\d})∞]$|\\pi$|(?:red|sand|illion|dozen)$")
_SEQUENCE = re.compile(rf"(?:\d+ ?{_INSIDE}|\d+ {_BARE})(?: *(?:\d+ ?{_INSIDE}|\d+ {_BARE}))+")

_NUMBER = r"(?:\d+(?:\.\d*)?|\.\d+)"
_FRACTION = re.compile(rf" ?\\frac\{{(-?{_NUMBER})\}}\{{(-?{_NUMBER})\}}$")
_TIMES_TEN = re.compile(r"(?: ?\\(?:times|cdot) ?|(?<![\d.])(?=10\^))10\^\{([-+]?\d+)\}$")
_PLAIN = re.compile(rf"([-+]*)(\d* (?=.*/))?(-?{_NUMBER})?(?:/(-?{_NUMBER})|[eE]([-+]?\d+))?")
_REPEATING = re.compile(r"([-+]?\d*)\.(\d*)\\overline\{(\d+)\}")
_SCALES = {"hundred": 100, "thousand": 1_000, "million": 10**6, "billion": 10**9, "trillion": 10**12, "dozen": 12}
_NAMES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety"
)
_NAMED = dict(zip(_NAMES.split(), [*range(20), *range(20, 100, 10)], strict=True))

_TEXT = re.compile(r"\\text\{([^{}]*)\}")
_PHRASE = re.compile(r"[^\W\d_]+(?:[ .'-]+[^\W\d_]+){0,3}")
_PROSE_WORD = re.compile(r"(?<![\\_^{a-zA-Z])(?!mod\b)[a-zA-Z]{3,}(?![a-zA-Z({])")


def plain_number(text: str) -> tuple[Fraction | None, Fraction | None]:
    """The exact value of a number in normal form, and one unit in its last place where it is written as a decimal."""
    if len(text) > _MAX_DIGITS:
        return None, None
    if match := _REPEATING.fullmatch(text):
        shift, (whole, fixed, block) = len(match[2]), match.groups()
        repeated = Fraction(int(block), 10 ** len(block) - 1) / 10**shift
        return Fraction(f"{whole or 0}.{fixed or 0}") + (-repeated if whole[:1] == "-" else repeated), None
    match = _PLAIN.fullmatch(_TIMES_TEN.sub(r"e\1", _FRACTION.sub(r" \1/\2", text)))
    if match is None or not (match[3] or "10^" in text):
        return None, None
    sign, whole, top, under, exponent = match.groups()
    shift = int((exponent or "0")[:7])
    if abs(shift) > _MAX_DIGITS or (under and not Fraction(under)):
        return None, None
    value = Fraction((whole or "").strip() or 0) + Fraction(top or 1) * Fraction(10) ** shift / Fraction(under or 1)
    place = None
    if under:
        place = Fraction(1, 10**6) if "." in text else None
    elif top and (exponent or "." in top):
        place = Fraction(10) ** (shift - len(top.partition(".")[2]))
    return (-value if sign.count("-") % 2 else value), place


def named_number(text: str) -> Fraction | None:
    """`fifteen`, `twenty-one`, `3 million`, `2.5 dozen`."""
    first, _, last = text.replace("-", " ").rpartition(" ")
    if last in _SCALES and text != "dozen":
        count = Fraction(first or 1) if re.fullmatch(f"{_NUMBER}?", first) else named_number(first)
        return None if count is None else count * _SCALES[last]
    tens, units = _NAMED.get(first, 0), _NAMED.get(last)
    return Fraction(tens + units) if units is not None and (not first or units < 20 <= tens) else None


def as_latex(number: Fraction) -> str:
    """A number in normal form."""
    return str(number) if number.denominator == 1 else rf"\frac{{{number.numerator}}}{{{number.denominator}}}"


def without_unit(text: str, letters: bool) -> tuple[str, str]:
    """The text without the unit at its end, and the unit in one spelling; `letters` after a space are units, too."""
    if letters and (match := _LETTER_UNIT.fullmatch(text)):
        return match[1], match[2]
    text = re.sub(r"^\\text\{ ?(\d+) ([^{}]*)\}$", r"\1 \\text{\2}", text)
    match = _UNIT.search(text, max(0, len(text) - _MAX_UNIT))
    before = text[: match.start()].rstrip() if match and match[0].strip() else ""
    is_measured = _MEASURED.search(before) and re.search(r"\d|\\pi|∞", before)
    if match is None or not is_measured or before.count("{") != before.count("}") or before.endswith(("^{", "_{")):
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
