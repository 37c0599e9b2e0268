"""The text of a completion while its tokens arrive: from tokens to text, and where the text ends."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

from rprm.verdict import Verdict, VerdictFormat

#: Characters of a marker, however it is spaced.
_LONGEST_MARKER = 1000


class Transcript:
    """The text of one completion while its tokens arrive, and where it ends.

    It ends at a stop string (which is cut off), or with the word of its first verdict, as soon as that verdict can no
    longer turn out to be something else: "No" may go on as "Nothing" or "No / Yes". Where it ends depends on the text
    alone, not on how the text is split into tokens.

    Args:
        verdict: the verdict that ends it.
        stop: texts that end it.
        opening: what its text begins with before any token; no stop string is looked for there.

    Attributes:
        text: the completion so far.
        num_tokens: tokens so far; once it has ended with a verdict, those that reach into the text.
        finish_reason: None while it may go on, then "stop" or "verdict" (or what the owner sets).
    """

    def __init__(self, verdict: VerdictFormat | None = None, stop: Sequence[str] = (), opening: str = "") -> None:
        self.text = opening
        self._begin = len(opening)
        self.num_tokens = 0
        self.finish_reason: str | None = None
        self._verdict = verdict
        self._stop = stop
        self._lengths: list[int] = []  # of the text after each token
        self._is_open = False  # a verdict stands, but more text may undo it
        self._num_unmarked = 0  # characters in which no marker ends
        if verdict is not None:
            self._longest_answer = max(len(verdict.yes), len(verdict.no))
            answers = f"{re.escape(verdict.yes)}|{re.escape(verdict.no)}"
            # As a word: "no" stands in "know" and "not".
            self._answer = re.compile(rf"(?<![A-Za-z])(?:{answers})(?![A-Za-z])", re.IGNORECASE)

    def add(self, piece: str) -> None:
        """Append the text of one token, which may be empty."""
        before = len(self.text)
        self.text += piece
        self.num_tokens += 1
        self._lengths.append(len(self.text))
        stop_end, stop_start = self._find_stop(before)
        # What ends first in the text counts, even where one token brings both.
        if (verdict := self._find_verdict(before, min(stop_end - 1, len(self.text)))) is not None:
            self.text = self.text[: verdict.end]
            self.num_tokens = 1 + next(i for i, length in enumerate(self._lengths) if length >= verdict.end)
            self.finish_reason = "verdict"
        elif stop_end < math.inf:
            self.text = self.text[: int(stop_start)]
            self.finish_reason = "stop"

    def _find_stop(self, before: int) -> tuple[float, float]:
        """End and start of the stop string that is complete first, of those that end after `before`."""
        found = [(math.inf, math.inf)]
        for string in self._stop:
            start = self.text.find(string, max(self._begin, before - len(string) + 1))
            if start >= 0:
                found.append((start + len(string), start))
        return min(found)

    def _find_verdict(self, before: int, end: float) -> Verdict | None:
        """The first verdict of the text up to `end`, if nothing that may follow can undo it."""
        if self._verdict is None:
            return None
        # Searching the whole text for every token would take quadratic time: only a new answer word is worth it.
        if not self._is_open and not self._answer.search(self.text, max(0, before - self._longest_answer + 1)):
            return None
        if not self._is_open and self._num_unmarked >= 0:
            found = self._verdict.marker_pattern.search(self.text, max(0, self._num_unmarked - _LONGEST_MARKER))
            self._num_unmarked = -1 if found else len(self.text)
            if not found:
                return None
        text = self.text[: int(end)]
        verdict = self._verdict.find(text)
        self._is_open = verdict is not None
        return verdict if verdict is not None and self._verdict.is_final(text, verdict) else None


def detokenizer(tokenizer: Any, prompt_ids: Sequence[int]) -> Callable[[int], str]:
    """A function from each generated token to the text that it completes.

    A character that several tokens share comes with the last of them; special tokens are left out. The prompt tells
    whether the first word keeps the space before it.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return _slow_detokenizer(tokenizer, prompt_ids)
    from tokenizers.decoders import DecodeStream

    stream = DecodeStream(ids=list(prompt_ids), skip_special_tokens=True)

    def step(token: int) -> str:
        nonlocal stream
        try:
            return stream.step(backend, token) or ""
        except Exception as error:
            if "Invalid prefix" not in str(error):
                raise
            # A tokenizer that rewrites what it has already decoded: go on from this token.
            stream = DecodeStream(skip_special_tokens=True)
            return stream.step(backend, token) or ""

    return step


def _slow_detokenizer(tokenizer: Any, prompt_ids: Sequence[int]) -> Callable[[int], str]:
    """The same for tokenizers that are not of the `tokenizers` library: decode the last few tokens twice."""
    ids = list(prompt_ids[-6:])
    num_read = len(ids)

    def step(token: int) -> str:
        nonlocal ids, num_read
        ids.append(token)
        before = tokenizer.decode(ids[:num_read], skip_special_tokens=True)
        after = tokenizer.decode(ids, skip_special_tokens=True)
        if len(after) <= len(before) or after.endswith("\N{REPLACEMENT CHARACTER}"):
            return ""
        ids = ids[num_read:]
        num_read = len(ids)
        return str(after[len(before) :])

    return step
