r"""Single values: numbers as exact rationals, number words, units (of a closed list, units.txt), and words."""

from __future__ import annotations

import re
from fractions import Fraction

from rprm.grading.normal import split
from rprm.grading.tables import SYNONYMS, P

_MAX_DIGITS = 400
#: How long a unit may be, and a text that is nothing but measures.
_MAX_UNIT = 80
_SCALES = {"hundred": 100, "thousand": 1_000, "million": 10**6, "billion": 10**9, "trillion": 10**12, "dozen": 12}
_NAMES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety"
)
_NAMED = dict(zip(_NAMES.split(), [*range(20), *range(20, 100, 10)], strict=True))


def plain_number(text: str) -> tuple[Fraction | None, Fraction | None]:
    """The exact value of a number in normal form or in words, and one unit in its last place where it is a decimal."""
    if len(text) > _MAX_DIGITS:
        return None, None
    if text.isascii() and text.isdigit():
        return Fraction(int(text)), None
    if match := P.repeating.fullmatch(text):
        shift, (whole, fixed, block) = len(match[2]), match.groups()
        repeated = Fraction(int(block), 10 ** len(block) - 1) / 10**shift
        return Fraction(f"{whole or 0}.{fixed or 0}") + (-repeated if whole[:1] == "-" else repeated), None
    plain = P.power_of_ten.sub(r"e\1", P.fraction.sub(r" \1/\2", text)) if text[-1:] == "}" else text
    match = P.number.fullmatch(plain)
    if match is None or not (match[3] or "10^" in text):
        return (_named_number(without_text(text).lower()) if re.search("[a-z]{2}", text) else None), None
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


def _named_number(text: str) -> Fraction | None:
    """`fifteen`, `twenty-one`, `3 million`, `2.5 dozen`."""
    first, _, last = text.replace("-", " ").rpartition(" ")
    if last in _SCALES and text != "dozen":
        count = Fraction(first or 1) if not first or P.digits.fullmatch(first) else _named_number(first)
        return None if count is None else count * _SCALES[last]
    tens, units = _NAMED.get(first, 0), _NAMED.get(last)
    return Fraction(tens + units) if units is not None and (not first or units < 20 <= tens) else None


def without_unit(text: str, letters: bool) -> tuple[str, str]:
    """The text without the unit at its end, and the unit in one spelling; `letters` after a space are units, too."""
    if letters and (match := P.letter_unit.fullmatch(text)):
        return match[1], match[2]
    text = re.sub(r"^\\text\{ ?(\d+) ([^{}]*)\}$", r"\1 \\text{\2}", text)
    match = P.unit.search(text, max(0, len(text) - _MAX_UNIT))
    before = text[: match.start()].rstrip() if match and match[0].strip() else ""
    is_measured = P.measured.search(before) and re.search(r"\d|\\pi|∞", before)
    if match is None or not is_measured or before.count("{") != before.count("}") or before.endswith(("^{", "_{")):
        return text, ""
    words = re.findall(r"[a-zA-Z]+|\^\{-?\d\}|/", re.sub(r"(?<=\w{3})s\b", "", without_text(match[1])))
    return before, " ".join(SYNONYMS.get(word, word) for word in words)


def measures(text: str) -> list[str]:
    """The measures that make one together, as `3 hours 5 minutes` does; none in any other text."""
    is_sequence = len(text) < _MAX_UNIT and P.measures.fullmatch(text)
    return re.findall(r"\d+ ?[^\d^]*(?:\^\{\d\})?", text) if is_sequence else []


def without_text(text: str) -> str:
    r"""The words of a text, `\text{...}` or not, with single spaces."""
    return re.sub(r"\s+", " ", re.sub(r"\\text\{([^{}]*)\}", r" \1 ", text)).strip(" .,;:")


def words(text: str) -> str | None:
    """The words in lower case where a text is words rather than mathematics, else None."""
    if "=" in text or re.search(r"\\(?!text)[a-zA-Z]", text) or (len(text) < _MAX_UNIT and P.unit.fullmatch(text)):
        return None
    whole = without_text(text)
    letters = len(re.findall("[a-zA-Z]", whole))
    least = 2 if r"\text{" in text else 3 if whole.istitle() else 4
    parts = split(without_text(without_unit(text, False)[0]), ",⋏⋎")
    is_words = (
        (P.phrase.fullmatch(whole) and (letters >= least or whole.lower() == "no"))
        or re.fullmatch("[A-Z]{2,}", whole)
        or (letters and any(len(P.prose_word.findall(part)) > 1 for part in parts))
    )
    return whole.lower() if is_words else None
