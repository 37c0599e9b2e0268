"""Final answers, set by set: where a solution says them, and how they are compared (docs/grading.md)."""

from __future__ import annotations

import re
import tomllib
from fractions import Fraction
from pathlib import Path

from pydantic.dataclasses import dataclass

from rprm.grading.forms import P
from rprm.thinking import without_thinking

#: Boxes and announcements that are looked at, and how far an answer may reach past its announcement, in characters (a
#: longer one is cut and then found too long).
_MAX_TRIED, _MAX_REACH = 50, 4_000


@dataclass(frozen=True, slots=True, config={"extra": "forbid"})
class AnswerRule:
    """How an answer is found in a solution and compared with the gold answer."""

    name: str
    markers: tuple[str, ...] = ()  #: announce an answer at the start of a line, before a colon (`A` for `A: 18`)
    last_number: bool = False  #: without any announced answer the last number of a text is taken: that invents answers
    lists_split_numbers: bool = False  #: `1,100` is the list of 1 and 100 (for answers known to be several)
    whole_numbers: bool = False  #: the gold answer is a whole number: `2x+1=5` is 5
    relative_tolerance: Fraction = Fraction(1, 10_000)  #: where one of two numbers is a rounded decimal; 0 for none
    tolerance_for_integers: bool = False  #: the relative tolerance holds where one of the numbers is whole, too
    absolute_tolerance: Fraction | None = None  #: of any two numbers, instead of the relative one
    letter_units: bool = False  #: a letter after a number and a space (`5 m`) is a unit rather than a variable
    is_vote: bool = False  #: there is no gold answer, and equality is transitive: `50%` is 50, but not 0.5 as well


_TABLE = tomllib.loads((Path(__file__).parent / "rules.toml").read_text("utf-8"))
#: By the name of the set.
RULES = {name: AnswerRule(name, **fields) for name, fields in _TABLE.items()}
MATHEMATICS, EXACT, GSM8K_FLEXIBLE = map(RULES.pop, ("mathematics", "exact", "gsm8k-flexible"))


def olympiadbench_rule(*, multiple: bool, unit: str | None, error: Fraction | None) -> AnswerRule:
    """The rule of one OlympiadBench item, of its fields `is_multiple_answer`, `unit` and `error`."""
    return AnswerRule(
        "olympiadbench", lists_split_numbers=multiple, letter_units=unit is not None, absolute_tolerance=error
    )


def final_answer(text: str, rule: AnswerRule = MATHEMATICS) -> str | None:
    r"""The final answer of a solution as it is written there, or None where it announces none.

    In this order: the last `\boxed{...}` with those beside it (none where its brace is never closed); the last
    announcement ("The answer is 18", `#### 18`, the rule's markers); a last line `(B)`; by some rules, the last number.
    """
    text = P.further_question.split(without_thinking(text), 1)[0]
    boxes = [(box.start(), *_content(text, box.end())) for box in list(P.box.finditer(text))[-_MAX_TRIED:]]
    if boxes := [box for box in boxes if box[1] != ""]:
        return _boxed(text, boxes)
    markers = [re.compile(rf"(?m)^[ \t]{{0,8}}{re.escape(marker)}[ \t]{{0,8}}:[ \t]*") for marker in rule.markers]
    ends = {found.end() for pattern in (P.announced, P.heading, P.hashes, *markers) for found in pattern.finditer(text)}
    for begin in sorted(ends, reverse=True)[:_MAX_TRIED]:
        if answer := _sentence(text[begin : begin + _MAX_REACH].lstrip()):
            return answer
    if choice := P.lone_choice.search(text.rstrip()):
        return f"({choice[1]})"
    numbers = P.last_number.findall(text) if rule.last_number else []
    return str(numbers[-1]).rstrip(",") if numbers else None


def _boxed(text: str, boxes: list[tuple[int, str | None, int]]) -> str | None:
    start, content, _ = boxes.pop()
    # A box may hold a smaller box; the brace that is missing then is the outer one's.
    if content is None or re.search(r"\bnot\s*\$?$", text[max(0, start - 10) : start]):
        return None
    found = [content]
    for begin, content, end in reversed(boxes):
        # Not a box inside the one taken, nor one that something other than a separator follows.
        is_near = 0 <= start - end <= 40 and P.between_boxes.fullmatch(text, end, start)
        if not is_near or content is None or content in found:
            break
        found.insert(0, content)
        start = begin
    return P.box.sub("", ", ".join(found).strip()) or None


def _content(text: str, place: int) -> tuple[str | None, int]:
    """What a box holds and where it ends: None where its brace is never closed, "" where it holds nothing."""
    if not text.startswith("{", place):  # `\boxed 7` holds what follows, `\boxed` in the midst of prose nothing.
        content = P.box_token.match(text, place)[0].rstrip(".")
        return (content if re.search(r"[\d\\]|^[a-zA-Z]$", content) else ""), place + len(content)
    depth = 0
    for brace in P.brace.finditer(text, place):
        depth += {"{": 1, "}": -1}.get(brace[0], 0)
        if depth == 0:
            return text[place + 1 : brace.start()].strip(), brace.end()
    return None, len(text)


def _sentence(rest: str) -> str | None:
    """The answer at the beginning of a text; None where that is a remark about an answer."""
    rest = P.leads_up.sub("", rest, 1)
    if rest.startswith(("$$", "\\[")):
        return rest[2 : max(rest.find("$$" if rest[0] == "$" else "\\]", 2), 2)].strip() or None
    if P.remark.match(rest):
        return None
    answer = P.end.split(rest, 1)[0].replace("**", "").strip()
    return P.around.sub("", answer).strip().strip("*").rstrip(",;:").strip() or None
