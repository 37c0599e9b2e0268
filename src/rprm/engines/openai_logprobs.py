"""Log-probabilities as OpenAI-compatible servers list them: the choice between Yes and No, and where it stands.

Nothing here trusts the server: what cannot be a probability of one choice is none.
"""

from __future__ import annotations

import codecs
import functools
import itertools
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from rprm.verdict import VerdictChoice, VerdictFormat, logsumexp

#: Servers write -9999 for a log-probability of -inf, which JSON does not have, or for one that they do not know.
_LOGPROB_FLOOR = -9000.0
#: A probability, or the sum of some that exclude each other, can be above 1 by rounding: by that much as a logarithm.
_ROUNDING = 0.01
#: An answer that is not listed counts only where its bound lies that far below the other one: odds of 1,000 to 1.
_FAR_BELOW = math.log(1000.0)
#: What rounding leaves of a list that has all of the probability.
_LEAST_LEFT = 1e-9


class Token:
    """A generated token: its bytes, and the entries of its log-probabilities as they came.

    `spelled`: the bytes of an entry that does not give them.
    """

    __slots__ = ("_own", "_top", "bytes_of", "content")

    def __init__(self, own: Mapping[str, Any], top: Any, spelled: Callable[[str], bytes]) -> None:
        self.bytes_of = functools.partial(_content, spelled=spelled)
        self.content = self.bytes_of(own)
        self._own = own
        self._top = _entries(top)

    def alternatives(self) -> tuple[list[tuple[bytes, float]], float]:
        """Bytes and log-probability of every alternative, and the most that a token has which is not among them.

        Nothing where the numbers cannot be probabilities of one choice. The token itself is added where the list lacks
        it and it can be less likely than all of them.
        """
        listed = [(self.bytes_of(entry), _logprob(entry)) for entry in self._top]
        found = [(content, logprob) for content, logprob in listed if logprob is not None]
        bound = min((logprob for _, logprob in found), default=0.0)
        own = _logprob(self._own)
        if found and own is not None and own <= bound and all(content != self.content for content, _ in listed):
            found.append((self.content, own))
        total = logsumexp(logprob for _, logprob in found)
        if total > _ROUNDING:
            return [], 0.0
        # Of a list that is cut or filtered, what is missing may have all that the list leaves.
        left = math.log(max(-math.expm1(total), _LEAST_LEFT))
        return found, max(bound, left) if len(found) >= len(listed) else 0.0

    def is_one_of(self, num_ids: int) -> bool:
        """Whether the list is `num_ids` tokens asked for by their ids, and the token itself is one of them.

        vLLM lists a token that was not asked for besides those that were.
        """
        listed = [(self.bytes_of(entry), _logprob(entry)) for entry in self._top]
        return len(listed) == num_ids and (self.content, _logprob(self._own)) in listed

    def unusable(self) -> list[bytes]:
        """Bytes of the alternatives whose log-probability is none."""
        return [self.bytes_of(entry) for entry in self._top if _logprob(entry) is None]


def read_tokens(choice: Mapping[str, Any]) -> list[Token] | None:
    """The tokens of a choice, in either layout of log-probabilities; None where there are none.

    Chat: `{"content": [{"token", "bytes", "logprob", "top_logprobs": [...]}]}`. Completions: `{"tokens": [...],
    "token_logprobs": [...], "top_logprobs": [{token: logprob}]}`; llama.cpp uses the former for both.
    """
    logprobs = choice.get("logprobs")
    if not isinstance(logprobs, dict):
        return None
    content = logprobs.get("content")
    if isinstance(content, list):
        pairs = [(entry, entry.get("top_logprobs")) for entry in content if isinstance(entry, dict)]
    else:
        columns = [logprobs.get(name) for name in ("tokens", "token_logprobs", "top_logprobs")]
        texts, own, tops = (column if isinstance(column, list) else [] for column in columns)
        pairs = [
            ({"token": text, "logprob": logprob}, top)
            for text, logprob, top in itertools.zip_longest(texts, own[: len(texts)], tops[: len(texts)])
        ]
    spelled = _spelling(entry for own, top in pairs for entry in (own, *_entries(top)))
    return [Token(own, top, spelled) for own, top in pairs]


def _entries(top: Any) -> list[dict[str, Any]]:
    if isinstance(top, dict):
        return [{"token": token, "logprob": logprob} for token, logprob in top.items()]
    return [entry for entry in top if isinstance(entry, dict)] if isinstance(top, list) else []


def _spelling(entries: Iterable[Mapping[str, Any]]) -> Callable[[str], bytes]:
    """How the tokens of an answer are spelled: as text, or as they stand in the vocabulary, where no token has a space.

    Vocabularies spell every byte as a letter (GPT-2's kind: `\u0120Yes`) or the space as `\u2581` (sentencepiece's).
    """
    written = "".join(str(entry.get("token")) for entry in entries)
    if not re.search(r"\s", written):
        if "\u0120" in written or "\u010a" in written:
            return lambda text: b"".join(_LETTER_BYTES.get(letter, letter.encode()) for letter in text)
        if "\u2581" in written:
            return lambda text: text.replace("\u2581", " ").encode()
    return str.encode


def _letter_bytes() -> dict[str, bytes]:
    """GPT-2's letter of every byte: printable ones their own, the others from U+0100 on."""
    own = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in own]
    letters = [*((chr(byte), byte) for byte in own), *((chr(0x100 + at), byte) for at, byte in enumerate(others))]
    return {letter: bytes([byte]) for letter, byte in letters}


_LETTER_BYTES = _letter_bytes()


def _content(entry: Mapping[str, Any], spelled: Callable[[str], bytes]) -> bytes:
    raw = entry.get("bytes")
    if isinstance(raw, list) and all(isinstance(byte, int) and 0 <= byte < 256 for byte in raw):
        return bytes(raw)
    return spelled(str(entry.get("token") or "").encode("utf-8", "replace").decode())


def _logprob(entry: Mapping[str, Any]) -> float | None:
    """The log-probability of an entry; None where it is none: no number, above 0, or so low that it stands for one."""
    value = entry.get("logprob")
    if isinstance(value, bool) or not isinstance(value, int | float) or not _LOGPROB_FLOOR < value <= _ROUNDING:
        return None
    return min(float(value), 0.0)


def verdict_choice(token: Token, start: int, verdict: VerdictFormat, num_ids: int = 0) -> VerdictChoice | None:
    """The choice at a token: each answer summed over its variants there; None where it cannot be told.

    It can where both answers are listed, or where one is and the other must be far less likely: no alternative outside
    the list is more likely than the last one in it and what the list leaves. The other then counts with this bound,
    never as impossible. An answer listed with a number that is no log-probability tells nothing of either.

    Args:
        token: it.
        start: its character.
        verdict: the two answers.
        num_ids: tokens that were asked for by their ids, 0 for the likeliest ones. An answer that is none of them tells
            that they are not all forms of the answers.
    """
    is_answer = verdict.answer_of(token.content.decode("utf-8", "replace")) is not None
    if num_ids and is_answer and not token.is_one_of(num_ids):
        return None
    if any(verdict.answer_of(content.decode("utf-8", "replace")) is not None for content in token.unusable()):
        return None
    found, bound = token.alternatives()
    by_answer: dict[bool | None, list[float]] = {True: [], False: [], None: []}
    for content, logprob in found:
        by_answer[verdict.answer_of(content.decode("utf-8", "replace"))].append(logprob)
    logprobs = {answer: min(logsumexp(by_answer[answer]), 0.0) for answer in (True, False)}
    for answer, other in ((True, False), (False, True)):
        if logprobs[answer] == -math.inf:
            if bound > logprobs[other] - _FAR_BELOW:
                return None
            logprobs[answer] = bound
    return VerdictChoice(start, logprobs[True], logprobs[False])


def verdict_choices(
    text: str, tokens: Sequence[Token], verdict: VerdictFormat | None, after_reasoning: bool = False, num_ids: int = 0
) -> tuple[VerdictChoice, ...]:
    """The choices at every token that reads as an answer, at their characters in `text`."""
    if verdict is None:
        return ()
    written, starts = _layout(tokens)
    place = _Alignment(written, text, after_reasoning)
    choices = []
    for token, start in zip(tokens, starts, strict=True):
        word = token.content.decode("utf-8", "replace")
        if verdict.answer_of(word) is None:
            continue
        start += len(word) - len(word.lstrip())
        at = place(start, start + len(word.strip()))
        choice = None if at is None else verdict_choice(token, at, verdict, num_ids)
        if choice is not None:
            choices.append(choice)
    return tuple(choices)


def _layout(tokens: Sequence[Token]) -> tuple[str, list[int]]:
    """The text that the tokens spell and the character at which each begins. A character may span tokens."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    pieces, starts, length = [], [], 0
    for token in tokens:
        # Bytes left over from before become one replacement character unless this token completes them.
        broken = decoder.getstate()[0] and not (token.content and 0x80 <= token.content[0] < 0xC0)
        starts.append(length + bool(broken))
        pieces.append(decoder.decode(token.content))
        length += len(pieces[-1])
    return "".join(pieces) + decoder.decode(b"", final=True), starts


class _Alignment:
    """Where the characters that the tokens spell stand in the text that the server returned.

    The two differ: the text lacks the reasoning, the end-of-turn token, what follows a stop string, or spaces at its
    ends. Characters within the longest common beginning, or the longest common end, have a certain place; others none.
    """

    def __init__(self, written: str, text: str, after_reasoning: bool) -> None:
        self.prefix = 0 if after_reasoning else _common(written, text)
        self.end = len(written)
        self.suffix = 0
        if self.prefix < len(text):
            # End-of-turn tokens stand after the text: look for its last characters.
            tail = text[-32:]
            self.end = max(0, written.rfind(tail)) + len(tail)
            self.suffix = _common(written[: self.end][::-1], text[::-1])
        self.shift = len(text) - self.end

    def __call__(self, start: int, end: int) -> int | None:
        if end <= self.prefix:
            return start
        if self.end - self.suffix <= start and end <= self.end:
            return start + self.shift
        return None


def _common(first: str, second: str) -> int:
    """How many characters two texts have in common at their beginning."""
    shorter = min(len(first), len(second))
    if first[:shorter] == second[:shorter]:
        return shorter
    return next(index for index in range(shorter) if first[index] != second[index])
