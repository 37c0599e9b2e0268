r"""One of the many LaTeX and Unicode texts that look the same, and always the same one of them.

Brackets, signs of order and of sets become one character each (`\{` is `⦃`, `\leq` is `≤`, `\begin{pmatrix}` is `⟦`),
so that structure is told by characters. signs.txt and rewrites.txt say what becomes what.
"""

from __future__ import annotations

import re
from functools import partial
from itertools import accumulate
from unicodedata import category, normalize

from rprm.grading.tables import REWRITES, SIGNS

_CHARACTERS = str.maketrans({name: re.sub(r"^\\.*", r"\g<0> ", sign) for name, sign in SIGNS.items() if len(name) == 1})
_SCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ₀₁₂₃₄₅₆₇₈₉", "0123456789+-n0123456789")
#: Braces around the whole that are taken away.
_MAX_WRAPPED = 4
_nfkc = partial(normalize, "NFKC")


def normal_text(text: str, split_numbers: bool = False) -> str:
    """The text in normal form; `split_numbers` leaves the comma in `1,100`."""
    if not text.isascii():
        text = re.sub("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ]+", lambda found: f"^{{{found[0].translate(_SCRIPTS)}}}", text)
        text = re.sub("[₀₁₂₃₄₅₆₇₈₉]+", lambda found: f"_{{{found[0].translate(_SCRIPTS)}}}", text)
        text = re.sub("[¼-¾⅐-⅞]", lambda found: rf"\frac{{{_nfkc(found[0])}}}".replace("⁄", "}{"), text)
        text = _nfkc(text.translate(_CHARACTERS)).translate(_CHARACTERS)
        text = "".join(character for character in text if category(character) != "Cf")
    if r"\begin" not in text:
        text = re.sub(r"\\\\(?=[a-zA-Z])", r"\\", text).removesuffix("\\\\")
    for needed, pattern, replacement in REWRITES:
        if needed in text or (needed == "thousands" and not split_numbers and "," in text):
            text = pattern.sub(replacement, text)
    text = text.strip()
    for _ in range(_MAX_WRAPPED):
        text = text.rstrip(".,;:= ")
        text = text if (inner := enclosed(text, "{", "}")) is None else inner
    # ISO's open brackets: ]2,5[ is (2,5).
    text = re.sub(r"^\](?=.*[\[\]]$)", "(", text)
    return re.sub(r"^([\[(].*)\[$", r"\1)", text)


def _depths(text: str) -> list[int]:
    """How many brackets are open after each character."""
    steps = ((character in "([{⦃⟦") - (character in ")]}⦄⟧") for character in text)
    return list(accumulate(steps, lambda depth, step: max(depth + step, 0)))


def split(text: str, separators: str) -> list[str]:
    """The parts of a text between separators that no bracket encloses, without spaces around and without empty ones."""
    places = [place for place, character in enumerate(text) if character in separators]
    depths = _depths(text) if places else []
    cuts = [place for place in places if depths[place] == 0]
    parts = [text[begin + 1 : end].strip() for begin, end in zip([-1, *cuts], [*cuts, len(text)], strict=True)]
    return [part for part in parts if part] or [text]


def enclosed(text: str, opening: str, closing: str) -> str | None:
    """What stands between two brackets that enclose the whole text, None where they do not."""
    if len(text) < 3 or text[0] != opening or text[-1] != closing:
        return None
    *inside, last = _depths(text)
    return text[1:-1].strip() if all(inside) and last == 0 else None
