"""The judge that ships with this package (`--model embedded`), made in the lab, and what it knows."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rprm.records import Solution

#: What it knows, and what to do about everything else.
KNOWS = "the embedded model knows the lab's word problems only, with whole numbers up to 9,999"
OUTSIDE = "outside what the embedded model knows"
FIX = "choose another model, such as r-prm-7b on a GPU"

JUDGE = Path(__file__).with_name("judge")  #: folder of weights, tokenizer, template and card
WORDS = Path(__file__).with_name("words.txt")  #: that it knows, in lower case
_KNOWN = frozenset(WORDS.read_text(encoding="ascii").split())
_TOKEN = re.compile(r"[^\W\d_]+|\d[\d,.]*\d|\d|\S")


def is_embedded(model: str) -> bool:
    """Whether a model, by its spec or as a run names it, is the embedded judge, wherever the package lies."""
    return model.partition("?")[0] == "embedded" or Path(model).parts[-3:] == JUDGE.parts[-3:]


def note(model: str, solution: Solution) -> str | None:
    """Why a model's rewards of a solution mean nothing; None where nothing is known against them."""
    if not is_embedded(model) or (reason := outside_world(solution)) is None:
        return None
    return f"{OUTSIDE}: {reason}; {FIX}"


def notice(num_outside: int, num_solutions: int) -> str:
    """What is said where so many solutions lie outside."""
    counts = f"{num_outside:,} of {num_solutions:,} solutions lie {OUTSIDE}"
    return f"{counts}: their rewards mean nothing; {FIX}"


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
            return f"the sign '{word}'"
    return None
