r"""Where a solution says its final answer.

Looked for in this order: the last `\boxed{...}` (or `\fbox`, `\framebox`); the last announcement ("The answer is 18",
a heading "Final answer", GSM8K's `#### 18`, and the rule's own markers); a last line that is a choice and nothing else,
`(B)`. Nothing else is an answer: a solution that announces none has none, unless its rule takes the last number.

Every search is linear in the length of the text. math-verify's extractor takes any formula where nothing is announced.
"""

from __future__ import annotations

import re

from rprm.grading.rules import MATHEMATICS, AnswerRule
from rprm.thinking import without_thinking

_BOX = re.compile(r"\\(?:boxed|fbox|framebox)(?![a-zA-Z])|\x08oxed(?=\{)")
#: What may stand between boxes that give one answer together.
_BETWEEN_BOXES = re.compile(
    r"(?:[\s$,;.]|\\[()\[\],;! ]|\\q?quad|\\text\s?\{\s*(?:and|or)\s*\}|\b(?:and|or)\b|\*\*|\((?:[a-e]|i{1,3}|\d)\))*"
)
_MAX_BETWEEN_BOXES = 40
_MAX_BOXES = 50
_BRACES = re.compile(r"\\.|[{}]", re.DOTALL)
_TOKEN = re.compile(r"[^\s$,]*")
#: "Answer" and "is" in the languages in which solutions are written; Chinese, Japanese and Korean need no space.
_WORDS = (
    r"\b(?:(?:final|correct|right)[ \t]{1,3})?(?:answers?|r[ée]ponse|respuesta|resposta|risposta|antwort|antwoord|"
    r"ответ|svar|odpowied[źz]|cevap|đáp án|jawaban|उत्तर|الجواب|(?<=correct[ \t])(?:option|choice))\b"
)
_IS = r"(?:is|are|est|es|é|è|ist|lautet|равен|это|är|jest|là|adalah|है|هو|=)(?![\w])"
_ANNOUNCED = [
    re.compile(
        rf"(?i)(?:{_WORDS}(?:\*\*)?(?:[ \t](?:to|for)[ \t][^\n.:$]{{1,60}}?)?\s{{0,3}}(?:{_IS}|[:：])|"
        r"(?:答案|答え|정답|답)\s?(?:[是为為はは은는]|[:：]|is)+)(?:\*\*)?[:：\s]{0,3}"
    ),
    # A line that is nothing but "Final answer", as a heading or in bold.
    re.compile(rf"(?im)^[ \t]{{0,8}}(?:\#{{1,6}}|\*\*)[ \t*]{{0,4}}(?:the )?{_WORDS}[ \t]?:?[ \t*]{{0,4}}$\s{{0,9}}"),
    re.compile(r"(?m)^[ \t*]{0,8}####[ \t]{0,8}(?=[-+−$\\(.\d])"),
]
#: What is said of an answer rather than being one: "the answer is right", "not in simplest terms".
_REMARK = re.compile(
    r"(?i)not |\W*\b(?:in)?(?:correct|right|wrong|reasonable|consistent|valid|verified|indeed|clear|obvious|below|"
    r"above|found|given|unique|in|obtained|confirmed)\b(?=[\s.,!;]|$)"
    r"(?!(?: by| to be)?\W*\$|[^\n]{0,20}\d\s?\.?\s?$| \w*angle)"
)
#: Before an answer and after it, no part of it.
_AROUND = re.compile(
    r"(?i)^(?:(?:therefore|thus|hence|then|so|simply|just|exactly|approximately|about|roughly|indeed|option|choice|"
    r"equal to|given by|the|number|set|interval|value|ordered pair|pair|point(?= *[$(\\\d]))\b[\s,:]*)+|"
    r"(?:,?\s{1,3}(?:as|which|since|because|so|where|when|if|by|that is|i\.e\.|for a total)\b.*|"
    r",?\s{0,3}\((?!\s?(?:mod|base|approx)\b)[a-z]{2,}[^()$\\]*\))$"
)
_QUESTION = re.compile(r"(?<=\S)[ \t]{0,8}\n\s{0,8}(?:\*\*)?(?:Q|Question|Problem|问题)(?: \d+)?\s*[:：]")
_LONE_CHOICE = re.compile(r"(?:\*\*)?\(([A-Z])\)(?:\*\*)?\.?")
_LAST_NUMBER = re.compile(r"-?\$?\d[\d,]*(?:\.\d+)?|-?\$?\.\d+")
#: An announced answer ends with its line or its sentence: a full stop that no digit or letter follows and that does not
#: end an abbreviation.
_END = re.compile(
    r"\n|(?<!\b[Dd]r)(?<!\bM[rs])(?<!\bMrs)(?<!\bSt)(?<!\bsq)(?<!\bcu)(?<!\b[ap]\.m)(?<!\bProf)[.!?](?=\s|$|\*\*|\"|')|"
    r"(?<=\b[ap]\.m)\.(?=\s+[A-Z]|$)|。|です|입니다"
)
#: How far past its announcement an answer may reach, in characters; a longer one is cut and then found too long.
_MAX_REACH = 4_000


def final_answer(text: str, rule: AnswerRule = MATHEMATICS) -> str | None:
    r"""The final answer of a solution as it is written there, or None where it announces none.

    The last box decides. Where its brace is never closed the answer was never finished, and there is none: earlier
    boxes are intermediate. Boxes that follow each other with nothing but a comma, "and" or "or" between them are one
    answer, joined by commas.

    Args:
        text: the whole solution. Thinking at its beginning is passed over; where it was never finished, there is no
            answer. A further question after it is no part of it.
        rule: its markers and whether the last number is taken where nothing is announced.
    """
    text = _QUESTION.split(without_thinking(text), 1)[0]
    boxes = [(box.start(), *_content(text, box.end())) for box in list(_BOX.finditer(text))[-_MAX_BOXES:]]
    if boxes := [box for box in boxes if box[1] != ""]:
        return _boxed(text, boxes)
    markers = [re.compile(rf"(?m)^[ \t]{{0,8}}{re.escape(marker)}[ \t]{{0,8}}:[ \t]*") for marker in rule.markers]
    ends = {found.end() for pattern in [*_ANNOUNCED, *markers] for found in pattern.finditer(text)}
    for begin in sorted(ends, reverse=True)[:_MAX_BOXES]:
        if answer := _sentence(text[begin : begin + _MAX_REACH].lstrip()):
            return answer
    last = text.rstrip().rpartition("\n")[2].strip()
    if len(last) < 20 and (choice := _LONE_CHOICE.fullmatch(last)):
        return f"({choice[1]})"
    numbers = _LAST_NUMBER.findall(text) if rule.last_number else []
    return str(numbers[-1]).rstrip(",") if numbers else None


def _boxed(text: str, boxes: list[tuple[int, str | None, int]]) -> str | None:
    start, content, _ = boxes.pop()
    # A box may hold a smaller box; the brace that is missing then is the outer one's.
    if content is None or re.search(r"\bnot\s*\$?$", text[max(0, start - 10) : start]):
        return None
    found = [content]
    for begin, content, end in reversed(boxes):
        # Not a box inside the one taken, nor one that something other than a separator follows.
        is_near = 0 <= start - end <= _MAX_BETWEEN_BOXES and _BETWEEN_BOXES.fullmatch(text, end, start)
        if not is_near or content is None or content in found:
            break
        found.insert(0, content)
        start = begin
    return _BOX.sub("", ", ".join(found).strip()) or None


def _content(text: str, place: int) -> tuple[str | None, int]:
    r"""What a box holds and where it ends: None where its brace is never closed, "" where it holds nothing.

    `\boxed 7` holds what follows, `\boxed` in the midst of prose nothing.
    """
    while place < len(text) and text[place].isspace():
        place += 1
    if not text.startswith("{", place):
        token = _TOKEN.match(text, place)
        content = token[0].rstrip(".") if token else ""
        return (content if re.search(r"[\d\\]|^[a-zA-Z]$", content) else ""), place + len(content)
    depth = 0
    for brace in _BRACES.finditer(text, place):
        depth += {"{": 1, "}": -1}.get(brace[0], 0)
        if depth == 0:
            return text[place + 1 : brace.start()].strip(), brace.end()
    return None, len(text)


def _sentence(rest: str) -> str | None:
    """The answer at the beginning of a text; None where that is a remark about an answer."""
    for opening, closing in (("$$", "$$"), ("\\[", "\\]")):
        if rest.startswith(opening):
            return rest[2 : max(rest.find(closing, 2), 2)].strip() or None
    if _REMARK.match(rest):
        return None
    answer = _END.split(rest, 1)[0].replace("**", "").strip()
    return _AROUND.sub("", answer).strip().strip("*").rstrip(",;:").strip() or None
