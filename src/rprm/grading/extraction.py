r"""Where a solution says its final answer.

Looked for in this order: the last `\boxed{...}` (or `\fbox`, `\framebox`); the last announcement ("The answer is 18",
a heading "Final answer", GSM8K's `#### 18`, and the rule's own markers); a last line that is a choice and nothing else,
`(B)`. Nothing else is an answer: a solution that announces none has none, unless its rule takes the last number.

Thinking is no part of a solution (`rprm.thinking`), and neither is a further question after it. Every search is linear
in the length of the text. math-verify's extractor, which takes any formula where nothing is announced, is not used.
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
#: "Answer" and "is" in the languages in which solutions are written; Chinese, Japanese and Korean need no space.
_WORDS = (
    r"\b(?:(?:final|correct|right)[ \t]{1,3})?(?:answers?|r[ée]ponse|respuesta|resposta|risposta|antwort|antwoord|"
    r"ответ|svar|odpowied[źz]|cevap|đáp án|jawaban|उत्तर|الجواب|(?<=correct[ \t])(?:option|choice))\b"
)
_IS = r"(?:is|are|est|es|é|è|ist|lautet|равен|это|är|jest|là|adalah|है|هو|=)(?![\w])"
_ANNOUNCED = re.compile(
    rf"(?i)(?:{_WORDS}(?:\*\*)?(?:[ \t](?:to|for)[ \t][^\n.:$]{{1,60}}?)?\s{{0,3}}(?:{_IS}|[:：])|"
    r"(?:答案|答え|정답|답)\s?(?:[是为為はは은는]|[:：]|is)+)(?:\*\*)?[:：\s]{0,3}"
)
#: A line that is nothing but "Final answer", as a heading or in bold.
_HEADING = re.compile(
    rf"(?im)^[ \t]{{0,8}}(?:\#{{1,6}}|\*\*)[ \t*]{{0,4}}(?:the )?{_WORDS}[ \t]?:?[ \t*]{{0,4}}$\s{{0,9}}"
)
_HASHES = re.compile(r"(?m)^[ \t*]{0,8}####[ \t]{0,8}(?=[-+−$\\(.\d])")
#: What is said of an answer rather than being one: "the answer is right", "not in simplest terms".
_REMARK = re.compile(
    r"(?i)\W*\b(?:in)?(?:correct|right|wrong|reasonable|consistent|valid|verified|indeed|clear|obvious|below|above|found|"
    r"given|unique|in|obtained|confirmed)\b(?=[\s.,!;]|$)(?!(?: by| to be)?\W*\$|[^\n]{0,20}\d\s?\.?\s?$| \w*angle)"
)
#: Before an answer and after it, no part of it.
_LEAD = re.compile(
    r"(?i)^(?:(?:therefore|thus|hence|then|so|simply|just|exactly|approximately|about|roughly|indeed|option|choice|"
    r"equal to|given by|the|number|set|interval|value|ordered pair|pair|point(?= *[$(\\\d]))\b[\s,:]*)+"
)
_TRAIL = re.compile(
    r"(?i)(?:,?\s{1,3}(?:as|which|since|because|so|where|when|if|by|that is|i\.e\.|for a total)\b.*|"
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
            answer.
        rule: its markers and whether the last number is taken where nothing is announced.
    """
    text = without_thinking(text)
    if question := _QUESTION.search(text):
        text = text[: question.start()]
    boxes = [(box, *_content(text, box.end())) for box in list(_BOX.finditer(text))[-_MAX_BOXES:]]
    if boxes := [box for box in boxes if box[1] != ""]:
        return _boxed(text, boxes)
    if found := _announced(text, rule):
        return found
    last = text.rstrip().rpartition("\n")[2].strip()
    if len(last) < 20 and (choice := _LONE_CHOICE.fullmatch(last)):
        return f"({choice[1]})"
    if rule.last_number and (numbers := _LAST_NUMBER.findall(text)):
        return str(numbers[-1]).rstrip(",")
    return None


def _boxed(text: str, boxes: list[tuple[re.Match[str], str | None, int]]) -> str | None:
    found: list[str] = []
    begin = len(text)
    for box, content, end in reversed(boxes):
        if found:
            # A box inside the one taken, or one that something other than a separator follows.
            if not 0 <= begin - end <= _MAX_BETWEEN_BOXES or not _BETWEEN_BOXES.fullmatch(text, end, begin):
                break
            if content is None or content in found:
                break
        elif content is None or re.search(r"\bnot\s*\$?$", text[max(0, box.start() - 10) : box.start()]):
            # A box may hold a smaller box; the brace that is missing then is the outer one's.
            return None
        found.insert(0, content)
        begin = box.start()
    return _BOX.sub("", ", ".join(found).strip()) or None


def _content(text: str, place: int) -> tuple[str | None, int]:
    r"""What a box holds and where it ends: None where its brace is never closed, "" where it holds nothing.

    `\boxed 7` holds what follows, `\boxed` in the midst of prose nothing.
    """
    while place < len(text) and text[place].isspace():
        place += 1
    if not text.startswith("{", place):
        token = re.compile(r"[^\s$,]*").match(text, place)
        assert token is not None
        content = token[0].rstrip(".")
        return (content if re.search(r"[\d\\]|^[a-zA-Z]$", content) else ""), token.end()
    depth = 0
    for token in _BRACES.finditer(text, place):
        depth += {"{": 1, "}": -1}.get(token[0], 0)
        if depth == 0:
            return text[place + 1 : token.start()].strip(), token.end()
    return None, len(text)


def _announced(text: str, rule: AnswerRule) -> str | None:
    markers = [re.compile(rf"(?m)^[ \t]{{0,8}}{re.escape(marker)}[ \t]{{0,8}}:[ \t]*") for marker in rule.markers]
    patterns = [_ANNOUNCED, _HEADING, _HASHES, *markers]
    ends = sorted({found.end() for pattern in patterns for found in pattern.finditer(text)}, reverse=True)
    for begin in ends[:_MAX_BOXES]:
        if answer := _sentence(text[begin : begin + _MAX_REACH].lstrip()):
            return answer
    return None


def _sentence(rest: str) -> str | None:
    """The answer at the beginning of a text; None where that is a remark about an answer."""
    for opening, closing in (("$$", "$$"), ("\\[", "\\]")):
        if rest.startswith(opening):
            close = rest.find(closing, 2)
            return rest[2:close].strip() or None if close > 0 else None
    if rest.lower().startswith("not ") or _REMARK.match(rest):
        return None
    end = _END.search(rest)
    answer = (rest[: end.start()] if end else rest).replace("**", "").strip()
    answer = _TRAIL.sub("", _LEAD.sub("", answer))
    return answer.strip().strip("*").rstrip(",;:").strip() or None
