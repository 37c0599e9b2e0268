"""The judge that ships with this package (`--model embedded`), made in the lab, and what it knows."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rprm.records import Solution

JUDGE = Path(__file__).with_name("judge")  #: folder of weights, tokenizer, template and card
WORDS = Path(__file__).with_name("words.txt")  #: that it knows, in lower case
_KNOWN = frozenset(WORDS.read_text(encoding="ascii").split())
_TOKEN = re.compile(r"[^\W\d_]+|\d[\d,.]*\d|\d|\S")


def outside_world(solution: Solution) -> str | None:
    """The first word, number or sign of a solution that is not of the lab's world (all its splits'); else None, which
    does not mean that the judge understands it."""
    if not re.search(r"[^\W\d_]", solution.problem):
        return "a problem without words"
    for word in (word for text in (solution.problem, *solution.steps) for word in _TOKEN.findall(text)):
        if word[0].isalpha():
            if word.lower() not in _KNOWN:
                return f"the word {word!r:.60}"
        elif word[0].isdecimal():
            # The largest of the lab's world is 9,999.
            if not re.fullmatch(r"[0-9]{1,4}", word):
                return f"the number {word:.60}"
        elif word not in ".,:;?+-*/=":
            return f"the sign {word!r}"
    return None
