r"""Where a solution says its final answer.

Looked for in this order: the last `\boxed{...}` (or `\fbox`, `\framebox`); the last announcement ("The answer is 18",
"Final answer: 18", GSM8K's `#### 18`, and the rule's own markers); a last line that is a choice and nothing else,
`(B)`. Nothing else is an answer: a solution that announces none has none, unless its rule takes the last number.

Thinking is no part of a solution (`rprm.thinking`): all of this is looked for after it. Every search is linear in the
length of the text.
"""

from __future__ import annotations

import re

from rprm.grading.rules import MATHEMATICS, AnswerRule
from rprm.thinking import without_thinking

_BOX = re.compile(r"\\(?:boxed|fbox|framebox)(?![a-zA-Z])")
#: What may stand between boxes that give one answer together.
_BETWEEN_BOXES = re.compile(r"(?:[\s$,;.]|\\[()\[\],;! ]|\\q?quad|\\text\s?\{\s*(?:and|or)\s*\}|\b(?:and|or)\b)*")
_MAX_BETWEEN_BOXES = 40
_MAX_BOXES = 50
_ANNOUNCED = re.compile(
    r"(?i)\banswers?\b(?:\*\*)?(?:\s(?:to|for)\s[^\n.:$]{1,60}?)?\s{0,3}(?:(?:is|are)\b|=|:)(?:\*\*)?[:\s]{0,3}"
)
_HASHES = re.compile(r"(?m)^[ \t]{0,8}####[ \t]")
_LONE_CHOICE = re.compile(r"(?:\*\*)?\(([A-Z])\)(?:\*\*)?\.?")
_LAST_NUMBER = re.compile(r"-?\$?\d[\d,]*(?:\.\d+)?|-?\$?\.\d+")
#: An announced answer ends with its line or its sentence: a full stop that no digit or letter follows.
_END = re.compile(r"\n|[.!?](?=\s|$|\*\*|\"|')")
#: How far past its announcement an answer may reach, in characters; a longer one is cut and then found too long.
_MAX_REACH = 4_000


def final_answer(text: str, rule: AnswerRule = MATHEMATICS) -> str | None:
    r"""The final answer of a solution as it is written there, or None where it announces none.

    The last box decides. Where its brace is never closed the answer was never finished, and there is none: earlier
    boxes are intermediate. Boxes that follow each other with nothing but a comma, "and" or "or" between them are one
    answer, joined by commas.

    Args:
        text: the whole solution. Thinking at its beginning is passed over; where it was never finished, there is no
            answer.
        rule: its markers and whether the last number is taken where nothing is announced.
    """
    text = without_thinking(text)
    boxes = list(_BOX.finditer(text))
    if boxes:
        return _boxed(text, boxes)
    if found := _announced(text, rule) or _lone_choice(text):
        return found
    if rule.last_number and (numbers := _LAST_NUMBER.findall(text)):
        return str(numbers[-1]).rstrip(",")
    return None


def _boxed(text: str, boxes: list[re.Match[str]]) -> str | None:
    found: list[str] = []
    begin = len(text)
    for box in reversed(boxes[-_MAX_BOXES:]):
        content, end = _content(text, box.end())
        if found:
            # A box inside the one taken, or one that something other than a separator follows.
            if not 0 <= begin - end <= _MAX_BETWEEN_BOXES or not _BETWEEN_BOXES.fullmatch(text, end, begin):
                break
            if content is None or content in found:
                break
        if content is None:
            # A box may hold a smaller box; the brace that is missing then is the outer one's.
            return None
        found.insert(0, content)
        begin = box.start()
    answer = ", ".join(found).strip()
    return _BOX.sub("", answer) or None


def _content(text: str, place: int) -> tuple[str | None, int]:
    """What a box holds and where it ends; None where its brace is never closed. `\\boxed 7` holds what follows."""
    while place < len(text) and text[place].isspace():
        place += 1
    if not text.startswith("{", place):
        end = place
        while end < len(text) and not text[end].isspace() and text[end] not in "$,":
            end += 1
        return text[place:end].rstrip(".") or None, end
    depth = 0
    for token in _BRACES.finditer(text, place):
        if token[0] == "{":
            depth += 1
        elif token[0] == "}":
            depth -= 1
            if depth == 0:
                return text[place + 1 : token.start()].strip(), token.end()
    return None, len(text)


_BRACES = re.compile(r"\\.|[{}]", re.DOTALL)


def _announced(text: str, rule: AnswerRule) -> str | None:
    begin = max((match.end() for pattern in (_ANNOUNCED, _HASHES) for match in pattern.finditer(text)), default=-1)
    for marker in rule.markers:
        pattern = re.compile(rf"(?m)^[ \t]{{0,8}}{re.escape(marker)}[ \t]{{0,8}}:[ \t]*")
        begin = max([begin, *(match.end() for match in pattern.finditer(text))])
    if begin < 0:
        return None
    rest = text[begin : begin + _MAX_REACH].lstrip()
    if rest.startswith(("$$", "\\[")):
        close = rest.find("$$" if rest.startswith("$$") else "\\]", 2)
        return rest[2:close].strip() if close > 0 else None
    end = _END.search(rest)
    answer = rest[: end.start()] if end else rest
    return answer.strip().strip("*").strip() or None


def _lone_choice(text: str) -> str | None:
    last = text.rstrip().rpartition("\n")[2].strip()
    match = _LONE_CHOICE.fullmatch(last) if len(last) < 20 else None
    return f"({match[1]})" if match else None
