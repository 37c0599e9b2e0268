"""Where a reply stops thinking. What a model thinks to itself is no part of its answer: no verdict, step or result."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise

#: As released models write them: Qwen3, DeepSeek-R1 and most others; prompts that ask for thinking; Seed-OSS;
#: Magistral; Sky-T1 and OpenThinker; Command A Reasoning; Kimi-VL.
DELIMITERS = (
    *((f"<{tag}>", f"</{tag}>") for tag in ("think", "thinking", "thought", "seed:think")),
    ("[THINK]", "[/THINK]"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("◁think▷", "◁/think▷"),
)
_OPEN, _CLOSE = ("|".join(map(re.escape, side)) for side in zip(*DELIMITERS, strict=True))
_TAG = re.compile(f"(?P<open>{_OPEN})|(?P<close>{_CLOSE})", re.IGNORECASE)
_INDENT = 16  # characters before an opening tag among which its line must begin


def after_thinking(text: str) -> int | None:
    """The offset at which the answer proper begins: 0 without any thinking, None where it was never finished."""
    return [(0, 0), *_blocks(text)][-1][1]


def without_thinking(text: str) -> str:
    """The answer proper; empty where the thinking was never finished."""
    begin = after_thinking(text)
    return "" if begin is None else text[begin:]


def with_thinking_closed(text: str) -> str:
    """The text as it is answered after: thinking that was cut off is closed, since nothing in it is an answer."""
    return text.rstrip() if after_thinking(text) is not None else f"{text.rstrip()}\n</think>"


def answer_parts(text: str) -> Iterator[tuple[int, int]]:
    """The characters [start, end) of each part of the text that is no thinking, in order."""
    for (_, start), (end, _) in pairwise([(0, 0), *_blocks(text), (len(text), None)]):
        if start is not None and (start < end or end == len(text)):
            yield start, end


def _blocks(text: str) -> Iterator[tuple[int, int | None]]:
    """Begin and end of each block of thinking, tags included; the end is None where no tag closes it.

    A block opens at the beginning of a line: elsewhere, and within one, the tag is only mentioned. It reaches to the
    last tag that closes it before the next block. A tag that closes what is mentioned on its line closes nothing; any
    other without a block ends thinking that the prompt opened.
    """
    begin = end = None
    mentioned = -1
    for tag in _TAG.finditer(text):
        if tag["close"]:
            if (begin is not None and end is None) or mentioned < 0 or "\n" in text[mentioned : tag.start()]:
                begin, end = begin or 0, tag.end()
            mentioned = -1
            continue
        before = text[max(0, tag.start() - _INDENT) : tag.start()]
        at_line_start = "\n" in before or tag.start() <= _INDENT
        if not at_line_start or before.rpartition("\n")[2].strip():
            mentioned = tag.end()
        elif begin is None or end is not None:
            if begin is not None:
                yield begin, end
            begin, end, mentioned = tag.start(), None, -1
    if begin is not None:
        yield begin, end
