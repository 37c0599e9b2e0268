"""Where a solution says its final answer: a box, an announcement, or a last line that is nothing but a choice."""

from __future__ import annotations

import re

from rprm.grading.rules import MATHEMATICS, AnswerRule
from rprm.grading.normal import P
from rprm.thinking import without_thinking

_MAX_BETWEEN_BOXES = 40
_MAX_BOXES = 50
#: How far past its announcement an answer may reach, in characters; a longer one is cut and then found too long.
_MAX_REACH = 4_000


def final_answer(text: str, rule: AnswerRule = MATHEMATICS) -> str | None:
    r"""The final answer of a solution as it is written there, or None where it announces none.

    Looked for in this order: the last `\boxed{...}` (joined by commas with those that only a comma, "and" or "or" parts
    from it; none where its brace is never closed); the last announcement ("The answer is 18", a heading "Final answer",
    `#### 18`, the rule's own markers); a last line `(B)`; the last number, where the rule takes it. Thinking at the
    beginning is passed over, and so is a further question after the solution.
    """
    text = P.further_question.split(without_thinking(text), 1)[0]
    boxes = [(box.start(), *_content(text, box.end())) for box in list(P.box.finditer(text))[-_MAX_BOXES:]]
    if boxes := [box for box in boxes if box[1] != ""]:
        return _boxed(text, boxes)
    markers = [re.compile(rf"(?m)^[ \t]{{0,8}}{re.escape(marker)}[ \t]{{0,8}}:[ \t]*") for marker in rule.markers]
    patterns = [P.announced, P.heading, P.hashes, *markers]
    ends = {found.end() for pattern in patterns for found in pattern.finditer(text)}
    for begin in sorted(ends, reverse=True)[:_MAX_BOXES]:
        if answer := _sentence(text[begin : begin + _MAX_REACH].lstrip()):
            return answer
    last = text.rstrip().rpartition("\n")[2].strip()
    if len(last) < 20 and (choice := P.lone_choice.fullmatch(last)):
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
        is_near = 0 <= start - end <= _MAX_BETWEEN_BOXES and P.between_boxes.fullmatch(text, end, start)
        if not is_near or content is None or content in found:
            break
        found.insert(0, content)
        start = begin
    return P.box.sub("", ", ".join(found).strip()) or None


def _content(text: str, place: int) -> tuple[str | None, int]:
    r"""What a box holds and where it ends: None where its brace is never closed, "" where it holds nothing.

    `\boxed 7` holds what follows, `\boxed` in the midst of prose nothing.
    """
    while place < len(text) and text[place].isspace():
        place += 1
    if not text.startswith("{", place):
        content = next(P.box_token.finditer(text, place))[0].rstrip(".")
        return (content if re.search(r"[\d\\]|^[a-zA-Z]$", content) else ""), place + len(content)
    depth = 0
    for brace in P.brace.finditer(text, place):
        depth += {"{": 1, "}": -1}.get(brace[0], 0)
        if depth == 0:
            return text[place + 1 : brace.start()].strip(), brace.end()
    return None, len(text)


def _sentence(rest: str) -> str | None:
    """The answer at the beginning of a text; None where that is a remark about an answer."""
    rest = rest[found.end() :] if (found := P.leads_up.match(rest)) else rest
    for opening, closing in (("$$", "$$"), ("\\[", "\\]")):
        if rest.startswith(opening):
            return rest[2 : max(rest.find(closing, 2), 2)].strip() or None
    if P.remark.match(rest):
        return None
    answer = P.end.split(rest, 1)[0].replace("**", "").strip()
    return P.around.sub("", answer).strip().strip("*").rstrip(",;:").strip() or None
