"""The judge that ships with this package (`--model embedded`), made in the lab, and what it knows."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rprm.records import Solution

#: Folder of weights, tokenizer, template and card.
JUDGE = Path(__file__).with_name("judge")
WORDS = Path(__file__).with_name("words.txt")  #: that it knows, in lower case
_KNOWN = frozenset(WORDS.read_text(encoding="ascii").split())
_MAX_DIGITS = 4  #: of the largest number of the lab's world, 9,999
_TOKEN = re.compile(r"[^\W\d_]+|\d[\d,.]*\d|\d|\S")
_SIGNS = frozenset(".,:;?+-*/=")


def outside_world(solution: Solution) -> str | None:
    """The first word, number or sign of a solution that is not of the lab's world (all its splits'); None inside.

    Inside does not mean that the judge understands it.
    """
    if not re.search(r"[^\W\d_]", solution.problem):
        return "a problem without words"
    for token in (token for text in (solution.problem, *solution.steps) for token in _TOKEN.findall(text)):
        if token[0].isalpha():
            if token.lower() not in _KNOWN:
                return f"the word {token!r:.60}"
        elif token[0].isdecimal():
            if len(token) > _MAX_DIGITS or not (token.isascii() and token.isdecimal()):
                return f"the number {token:.60}"
        elif token not in _SIGNS:
            return f"the sign {token!r}"
    return None
