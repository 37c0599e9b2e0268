"""Where a reply stops thinking. What a model thinks to itself is no part of its answer: no verdict, step or result."""

from __future__ import annotations

import re
from collections.abc import Iterator

#: Delimiters as the chat templates of released models write them: Qwen3, DeepSeek-R1 and most others; prompts that ask
#: for thinking; Magistral; Seed-OSS; Sky-T1 and OpenThinker; Command A Reasoning; Kimi-VL.
_DELIMITERS = (
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("[THINK]", "[/THINK]"),
    ("<seed:think>", "</seed:think>"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("◁think▷", "◁/think▷"),
)
_TAG = re.compile(
    "(?P<open>{})|(?P<close>{})".format(*("|".join(map(re.escape, side)) for side in zip(*_DELIMITERS, strict=True))),
    re.IGNORECASE,
)
#: Characters before an opening tag among which its line must begin.
_INDENT = 16


def after_thinking(text: str) -> int | None:
    """The offset at which the answer proper begins.

    Returns:
        0 where the text has no thinking, None where its thinking was never finished.
    """
    begin = 0
    for _, end in _blocks(text):
        if end is None:
            return None
        begin = end
    return begin


def without_thinking(text: str) -> str:
    """The answer proper; empty where the thinking was never finished."""
    begin = after_thinking(text)
    return "" if begin is None else text[begin:]


def answer_parts(text: str) -> Iterator[tuple[int, int]]:
    """The characters [start, end) of each part of the text that is no thinking, in order."""
    start = 0
    for begin, end in _blocks(text):
        if begin > start:
            yield start, begin
        if end is None:
            return
        start = end
    yield start, len(text)


def _blocks(text: str) -> Iterator[tuple[int, int | None]]:
    """The blocks of thinking, tags included; the end of one that is never closed is None.

    A block opens at the beginning of a line: within one, a tag is only mentioned. A first tag that closes ends thinking
    that the prompt opened.
    """
    begin: int | None = None
    seen = False
    for tag in _TAG.finditer(text):
        if tag["open"]:
            before = text[max(0, tag.start() - _INDENT) : tag.start()]
            at_line_start = "\n" in before or tag.start() <= _INDENT
            if begin is None and at_line_start and not before.rpartition("\n")[2].strip():
                begin = tag.start()
        elif begin is not None or not seen:
            yield begin or 0, tag.end()
            begin, seen = None, True
    if begin is not None:
        yield begin, None
