"""Reading what an OpenAI-compatible server answers: streams, completions, and the choice between Yes and No.

Nothing here trusts the server: what is missing is None or nothing, what is garbled is `Transient`, and numbers that
cannot be log-probabilities of one choice tell nothing.
"""

from __future__ import annotations

import itertools
import math
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from rprm.engines.base import WITHHELD, Completion, Sampling, num_alike
from rprm.engines.endpoint import Garbled, Json, Transient, count, entries, find, listed, read_error
from rprm.showing import without_keys
from rprm.verdict import Transcript, VerdictChoice, VerdictFormat, logsumexp

#: Finish reasons in the words of others, and those that say what "stop" leaves open: whether the model ended the text.
_FINISH_REASONS = {"eos": "stop", "eos_token": "stop", "stop_sequence": "stop", "max_tokens": "length"}
_ENDED = {"eos": True, "eos_token": True} | dict.fromkeys(("stop_sequence", "length", "max_tokens", "verdict"), False)
_REASONS = ("finish_reason", "stop_reason", "matched_stop")
_THINK_OPEN, _THINK_END = "<think>\n", "</think>"
_LOGPROB_FLOOR = -9000.0  # servers write -9999 for -inf, which JSON does not have, or for what they do not know
_UNREADABLE = "a verdict whose log-probabilities are missing or garbled (top_logprobs=0: count verdicts as votes)"
_ROUNDING = 0.01  # by that much the logarithm of a probability, or of the sum of some, may be above 0
_FAR_BELOW = math.log(1000.0)  # an answer that is not listed counts where its bound lies that far below the other one
_LEAST_LEFT = 1e-9  # what rounding leaves of a list that has all of the probability
#: GPT-2's letters of the bytes that are no printable letters themselves.
_BYTE_LETTERS = {0x100 + at: byte for at, byte in enumerate((*range(0x21), *range(0x7F, 0xA1), 0xAD))}


class Stream:
    """Puts the events of a stream together; `verdict` ends it early, once it is final in each of its `n` texts."""

    def __init__(self, verdict: VerdictFormat | None = None, n: int = 1) -> None:
        self._n = n
        self._usage: Any = None
        self._model: Any = None
        self._choices: defaultdict[int, Json] = defaultdict(lambda: {"reasoning": "", "num_tokens": 0, "logprobs": {}})
        self._transcripts: defaultdict[int, Transcript] = defaultdict(lambda: Transcript(verdict))

    def add(self, event: Json) -> bool:
        """Take in one event. True: nothing that follows is needed."""
        if event.get("error"):
            raise Transient(f"an error inside the stream: {read_error(event)[0]}")
        self._usage, self._model = event.get("usage") or self._usage, event.get("model") or self._model
        for delta in entries(event, "choices"):
            index = count(delta, "index") or 0
            choice, transcript = self._choices[index], self._transcripts[index]
            piece, thought, refusal = _said(delta, "delta")
            choice["reasoning"] += thought
            choice["num_tokens"] += bool(piece or thought)
            choice["refusal"] = refusal or choice.get("refusal")
            if delta.get("finish_reason"):
                choice |= {name: delta[name] for name in _REASONS if name in delta}
            logprobs = delta.get("logprobs")
            for name in logprobs if isinstance(logprobs, dict) else ():
                choice["logprobs"].setdefault(name, []).extend(listed(logprobs, name))
            if piece and transcript.finish_reason is None:
                transcript.add(piece)
        return sum(transcript.finish_reason is not None for transcript in self._transcripts.values()) == self._n

    def whole(self) -> Json:
        """The answer; `Transient` where it broke off."""
        for index, choice in self._choices.items():
            transcript = self._transcripts[index]
            choice |= {"index": index, "text": transcript.text}
            choice["finish_reason"] = transcript.finish_reason or choice.get("finish_reason")
            if choice["finish_reason"] is None:
                raise Transient("a stream that broke off")
        return {"choices": list(self._choices.values()), "usage": self._usage, "model": self._model}


def read_completions(
    data: Json, sampling: Sampling, n: int, echo: str = "", opens_thinking: bool = False, num_ids: int | None = None
) -> list[Completion]:
    """The completions of an answer, thinking that came apart in front of the text; some servers give fewer than `n`.

    Every text begins with `echo`, which is no part of the completion. Where the chat template `opens_thinking`, a text
    that was cut off before its end is all thinking. Of `num_ids` tokens the log-probabilities were asked for by id (0:
    of the likeliest); a verdict without them is `Garbled`. None: it is not known whether the server gives any.
    """
    choices = _choices(data)[:n]
    said = [_said(choice) for choice in choices]
    if not all(text.startswith(echo) for text, _, _ in said):
        raise Transient("an answer that does not begin with the given reply, as the server's other answers do")
    texts = [text.removeprefix(echo) for text, _, _ in said]
    usage, num_prompt_tokens = data.get("usage"), count(data, "usage", "prompt_tokens")
    total, ends = count(usage, "completion_tokens"), [0, *itertools.accumulate(len(t.encode()) + 1 for t in texts)]
    completions: list[Completion] = []
    for choice, text, (_, thoughts, refusal), (start, end) in zip(choices, texts, said, pairwise(ends), strict=True):
        finish_reason = (
            "refusal" if refusal else without_keys(str(choice.get("finish_reason") or "unknown")[:4096])[:64]
        )
        finish_reason = _FINISH_REASONS.get(finish_reason, finish_reason)
        if finish_reason == "error":
            raise Transient("a completion that ended in an error")
        tokens = _tokens(choice)
        num_tokens = len(tokens) or count(choice, "num_tokens")
        if finish_reason in WITHHELD:
            # What came before is no answer either, and is never read for a verdict.
            text, thoughts, tokens = "", "", []
        # `usage` is exact for one completion. For several it is their sum, divided here in proportion to the texts'
        # lengths, or, from llama.cpp, the first one's.
        if total is not None and (len(choices) == 1 or num_tokens is None):
            num_tokens = round(total * end / ends[-1]) - round(total * start / ends[-1])
        elif num_tokens is None:
            num_tokens = -(-len((thoughts + text).encode()) // 4)
        before = ""
        if thoughts:
            before = f"{_THINK_OPEN}{thoughts}" + (f"\n{_THINK_END}\n\n" if text else "")
        elif opens_thinking and finish_reason == "length" and _THINK_END not in text:
            before = _THINK_OPEN
        found: list[VerdictChoice] = []
        if (form := sampling.verdict) is not None:
            answers, certain = _answers_in(text, tokens, form, bool(thoughts), len(before))
            if num_ids is not None:
                _refuse_garbled(before + text, form, answers, certain)
            read = (token.choice(place, form, num_ids or 0) for place, token in answers)
            found = [one for one in read if one is not None]
        # The second and further completions of one request read its prompt for nothing.
        num_cached = num_prompt_tokens if completions else count(usage, "prompt_tokens_details", "cached_tokens")
        counts, ended = (num_prompt_tokens, num_cached), _ended(choice, has_stops=bool(sampling.stop))
        written = without_keys(before + text, same_length=True)  # It is recorded.
        completions.append(Completion(written, num_tokens, finish_reason, *counts, tuple(found), ended))
    return completions


def first_choice(data: Json, start: int, verdict: VerdictFormat, num_ids: int) -> VerdictChoice | None:
    """The choice at the first token of the answer, said to stand at `start`; None where it cannot be told."""
    if (token := next(iter(_tokens(_choices(data)[0])), None)) is None:
        return None
    if not token.is_sound(verdict):
        raise Garbled(_UNREADABLE)
    return token.choice(start, verdict, num_ids)


def first_tokens(data: Json) -> dict[str, float]:
    """The likeliest tokens at the first place of the answer, with their probabilities; nothing where those cannot be
    told."""
    (_, found, _) = next((token.alternatives() for token in _tokens(_choices(data)[0])), ([], [], 0.0))
    tokens: dict[str, float] = {}
    for text, logprob in found:
        tokens[text] = tokens.get(text, 0.0) + math.exp(logprob)
    return tokens


def probe_answer(data: Json, verdict: VerdictFormat, num_ids: int) -> tuple[bool, bool]:
    """Whether any token has alternatives, and whether each lists `num_ids` forms of Yes and No (asked for by ids)."""
    found = [token.alternatives()[1] for token in _tokens(_choices(data)[0])]
    forms = [sum(verdict.answer_of(text) is not None for text, _ in one) for one in found]
    # A token's own log-probability alone is no choice.
    return any(len(one) > 1 for one in found), bool(forms) and min(forms) >= num_ids


def ends_thinking_alone(completions: Sequence[Completion]) -> bool:
    """Whether a text ends thinking that it does not open: the chat template does."""
    return any("<think>" not in one.text.partition(_THINK_END)[0] for one in completions if _THINK_END in one.text)


def _choices(data: Json) -> list[Json]:
    """The choices of an answer, in the order of their index; at least one, none twice."""
    choices = entries(data, "choices")
    indices = [index for choice in choices if (index := count(choice, "index")) is not None]
    if not choices or len(set(indices)) < len(indices):
        raise Transient("an answer without choices, or with two of the same index")
    return sorted(choices, key=lambda choice: count(choice, "index") or 0)


def _ended(choice: Json, *, has_stops: bool) -> bool | None:
    """Whether the model ended the text itself, as far as the server tells.

    vLLM's `stop_reason` is a stop string, one of several end tokens' ids, or null for the end token; SGLang's
    `matched_stop` a stop string or the end token's id.
    """
    if choice.get("finish_reason") != "stop":
        return _ENDED.get(str(choice.get("finish_reason")))
    kinds = {type(choice.get(name)) for name in ("stop_reason", "matched_stop")}
    if str in kinds:
        return False
    return True if int in kinds or not has_stops or choice.get("stop_reason", "") is None else None


def _said(choice: Json, name: str = "message") -> tuple[str, str, Any]:
    """The text of a choice, thinking that came apart from it, and the model's refusal.

    Thinking has a name of its own, or is a part of the content (Mistral): `{"type": "thinking", "thinking": [...]}`.
    """
    message = choice.get(name)
    said, content = (message, message.get("content")) if isinstance(message, dict) else (choice, choice.get("text"))
    named = said.get("reasoning_content") or said.get("reasoning")
    parts = [named] if named and isinstance(named, str) else [part.get("thinking") for part in entries(content)]
    thoughts = "".join(_joined(part) for part in parts if isinstance(part, str | list))
    return _joined(content), thoughts, said.get("refusal")


def _joined(content: Any) -> str:
    """A content, which may be a list of parts, as one text; half a surrogate pair, which no file holds, is a ?."""
    if isinstance(content, list):
        parts = [part for part in content if find(part, "type") in (None, "text", "output_text")]
        texts = (part if isinstance(part, str) else find(part, "text") for part in parts)
        content = "".join(text for text in texts if isinstance(text, str))
    if content is not None and not isinstance(content, str):
        raise Transient("an answer whose text is not a text")
    return (content or "").encode("utf-8", "replace").decode("utf-8")


# Log-probabilities


@dataclass(frozen=True, slots=True)
class _Token:
    """A generated token as it came: its `entry` has the alternatives, of which most are never looked at."""

    text: str  # bytes that are no whole character, escaped as surrogates
    entry: Json
    text_of: Callable[[Json], str]

    def alternatives(self) -> tuple[list[tuple[str, float | None]], list[tuple[str, float]], float]:
        """What is listed; of that, what has a log-probability; and the most that a token has which is not listed.

        The token itself is added where the list lacks it and it can be less likely than all of them. Nothing has a
        log-probability where the numbers cannot be probabilities of one choice.
        """
        top = [(self.text_of(entry), _logprob(entry)) for entry in _top(self.entry)]
        found = [(text, logprob) for text, logprob in top if logprob is not None]
        bound, own = min((logprob for _, logprob in found), default=0.0), _logprob(self.entry)
        if found and own is not None and own <= bound and self.text not in dict(top):
            found.append((self.text, own))
        total = logsumexp(logprob for _, logprob in found)
        if total > _ROUNDING:
            return top, [], 0.0
        # Of a list that is cut or filtered, what is missing may have all that the list leaves.
        left = math.log(max(-math.expm1(total), _LEAST_LEFT))
        return top, found, max(bound, left) if len(found) >= len(top) else 0.0

    def is_sound(self, verdict: VerdictFormat) -> bool:
        """Whether it has alternatives, with numbers and bytes that they can have (-9999 is one: it is not known)."""
        top = _top(self.entry)
        for entry in (self.entry, *top):
            number: Any = entry.get("logprob")
            said = (self.text_of(one) for one in (entry, {"token": entry.get("token")}))
            if isinstance(number, bool) or not isinstance(number, int | float) or not -math.inf < number <= _ROUNDING:
                return False
            if {True, False} <= set(map(verdict.answer_of, said)):
                return False
        return len(top) > 1 and logsumexp(p for one in top if (p := _logprob(one)) is not None) <= _ROUNDING

    def choice(self, start: int, verdict: VerdictFormat, num_ids: int) -> VerdictChoice | None:
        """The choice at this token, said to stand at `start`; None where it cannot be told.

        An answer that is not listed counts with the bound where the other is far likelier. An answer without a
        log-probability tells nothing of either, nor does a generated one that is none of the `num_ids` asked for.
        """
        top, found, bound = self.alternatives()
        # vLLM lists a token that was not asked for besides those that were.
        is_unasked = num_ids and not (len(top) == num_ids and (self.text, _logprob(self.entry)) in top)
        unknown = [text for text, logprob in top if logprob is None] + [self.text] * bool(is_unasked)
        if any(verdict.answer_of(text) is not None for text in unknown):
            return None
        forms = ([p for text, p in found if verdict.answer_of(text) is answer] for answer in (True, False))
        answers = [min(logsumexp(logprobs), 0.0) for logprobs in forms]
        if min(answers) == -math.inf and bound > max(answers) - _FAR_BELOW:
            return None
        return VerdictChoice(start, *(bound if logprob == -math.inf else logprob for logprob in answers))


def _tokens(choice: Json) -> list[_Token]:
    """The tokens of a choice, in either layout of log-probabilities; none where there are none.

    Chat: `{"content": [{"token", "bytes", "logprob", "top_logprobs": [...]}]}`. Completions: `{"tokens": [...],
    "token_logprobs": [...], "top_logprobs": [{token: logprob}]}`; llama.cpp uses the former for both.
    """
    own = entries(choice, "logprobs", "content")
    texts, *columns = (listed(choice, "logprobs", name) for name in ("tokens", "token_logprobs", "top_logprobs"))
    if not own and texts:
        rows = itertools.zip_longest(texts, *(column[: len(texts)] for column in columns))
        own = [{"token": text, "logprob": logprob, "top_logprobs": top} for text, logprob, top in rows]

    def is_written(pattern: str) -> bool:
        everything = itertools.chain(own, itertools.chain.from_iterable(map(_top, own)))
        return any(re.search(pattern, str(entry.get("token"))) for entry in everything)

    # Tokens are spelled as text, or as they stand in the vocabulary, where none has a space: every byte as a letter
    # (GPT-2's kind: `\u0120Yes`), or the space as `\u2581` (sentencepiece's).
    letters, encoding = {0x2581: 0x20}, "utf-8"
    if is_written(r"\s"):
        letters = {}
    elif is_written("[\u0120\u010a]"):
        letters, encoding = _BYTE_LETTERS, "latin-1"

    def text_of(entry: Json) -> str:
        raw = entry.get("bytes")
        if not isinstance(raw, list) or not all(isinstance(byte, int) and 0 <= byte < 256 for byte in raw):
            raw = str(entry.get("token") or "").translate(letters).encode(encoding, "replace")
        return bytes(raw).decode("utf-8", "surrogateescape")

    return [_Token(text_of(entry), entry, text_of) for entry in own]


def _top(entry: Json) -> list[Json]:
    """The alternatives of a token."""
    if isinstance(top := entry.get("top_logprobs"), dict):
        return [{"token": token, "logprob": logprob} for token, logprob in top.items()]
    return entries(top)


def _logprob(entry: Json) -> float | None:
    """The log-probability of an entry; None where it is none: no number, above 0, or so low that it stands for one."""
    value = entry.get("logprob")
    if isinstance(value, bool) or not isinstance(value, int | float) or not _LOGPROB_FLOOR < value <= _ROUNDING:
        return None
    return min(float(value), 0.0)


def _answers_in(
    text: str, tokens: Sequence[_Token], verdict: VerdictFormat, after_reasoning: bool, start: int
) -> tuple[list[tuple[int, _Token]], tuple[range, range]]:
    """Every token that reads as an answer, with its place, if certain; and where places are. `text` is at `start`.

    The text and what the tokens spell differ: the text lacks the reasoning, the end-of-turn token, what follows a stop
    string, or spaces at its ends. Only what stands in their longest common beginning, or their longest common end, has
    a certain place.
    """

    def write(upto: int | None = None) -> str:
        """The first tokens; a character may span some."""
        raw = "".join(token.text for token in tokens[:upto]).encode("utf-8", "surrogateescape")
        return raw.decode("utf-8", "replace")

    written = write()
    prefix, suffix, end = len(text), 0, 0
    if after_reasoning or not written.startswith(text):
        prefix = 0 if after_reasoning else num_alike(written, text)
        # End-of-turn tokens stand after the text: look for its last characters.
        end = max(0, written.rfind(text[-32:])) + len(text[-32:])
        suffix = num_alike(written[:end][::-1], text[::-1])
    answers = []
    for index, token in enumerate(tokens):
        if verdict.answer_of(token.text) is None:
            continue
        place = len(write(index)) + len(token.text) - len(token.text.lstrip())
        stop = place + len(token.text.strip())
        if stop > prefix and end - suffix <= place and stop <= end:
            place += len(text) - end
        elif stop > prefix:
            continue
        answers.append((start + place, token))
    last = start + len(text)
    return answers, (range(start, start + prefix), range(last - suffix, last))


def _refuse_garbled(
    text: str, form: VerdictFormat, answers: Sequence[tuple[int, _Token]], certain: Sequence[range]
) -> None:
    """`Garbled` where no token is known to stand at the verdict, or its numbers can be none. A word may span tokens."""
    if (verdict := form.find(text)) is not None:
        token = next((token for place, token in answers if verdict.start <= place < verdict.end), None)
        is_spelled = any(verdict.start in places and verdict.end - 1 in places for places in certain)
        if not (is_spelled if token is None else token.is_sound(form)):
            raise Garbled(_UNREADABLE)
