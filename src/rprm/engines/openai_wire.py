"""Reading what an OpenAI-compatible server answers: bodies, event streams, completions, log-probabilities.

Nothing here trusts the server: what is missing is None or nothing, what is garbled is `Transient`, what is too much is
refused.
"""

from __future__ import annotations

import codecs
import functools
import itertools
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from rprm.engines.base import Completion, Sampling
from rprm.verdict import VerdictChoice, VerdictFormat, logsumexp

#: Servers write -9999 for a log-probability of -inf, which JSON does not have, or for one that they do not know.
_LOGPROB_FLOOR = -9000.0
#: A probability, or the sum of some that exclude each other, can be above 1 by rounding: by that much as a logarithm.
_ROUNDING = 0.01
#: An answer that is not listed counts only where its bound lies that far below the other one: odds of 1,000 to 1.
_FAR_BELOW = math.log(1000.0)
#: Characters after a streamed verdict that settle it: `Yes` could still become `Yes/No` or `Yesterday`.
_SETTLED_AFTER = 8
#: Characters before a streamed answer among which its marker is looked for.
_LOOKED_BACK = 400
#: The length of the context in a refusal of vLLM, OpenAI, SGLang, llama.cpp or TGI, and that of the prompt. vLLM stops
#: counting a prompt where it is too long, and then says "at least".
_CONTEXT = re.compile(
    r"(?:context (?:length|size|window)|max_model_len)\D{0,40}?(\d+)|max_new_tokens\W+must be <= (\d+)"
)
_PROMPT = re.compile(
    r"(?<!at least )(?<!\d)(\d+) (?:tokens )?(?:in the (?:messages|prompt)|in your prompt|input tokens|from the input|"
    r"`inputs` tokens)"
)
#: Finish reasons that say what "stop" leaves open: whether the model ended the text itself.
_ENDED = {
    "eos": True,
    "eos_token": True,
    "stop_sequence": False,
    "length": False,
    "max_tokens": False,
    "verdict": False,
}
#: Finish reasons of answers that the server or the model withheld.
_WITHHELD = ("content_filter", "refusal")
_FINISH_REASONS = {"eos": "stop", "eos_token": "stop", "stop_sequence": "stop", "max_tokens": "length"}


class Transient(Exception):
    """A failure that may pass.

    `retry_after`: seconds that the server asks to wait; `is_busy`: it has too much to do, whatever was asked.
    """

    def __init__(self, reason: str, retry_after: float = 0.0, *, is_busy: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.retry_after = retry_after
        self.is_busy = is_busy


async def read_body(response: httpx.Response, limit: int, cut: bool = False) -> bytes:
    chunks, size = [], 0
    async for chunk in response.aiter_bytes():
        chunks.append(chunk)
        size += len(chunk)
        if size > limit:
            if cut:
                break
            raise Transient(f"an answer of over {limit} bytes, far more than was asked for")
    return b"".join(chunks)


def parse_json(body: bytes) -> dict[str, Any]:
    try:
        data = json.loads(body)
    except (ValueError, RecursionError):
        raise Transient("an answer that is not JSON") from None
    if not isinstance(data, dict):
        raise Transient("an answer that is not a JSON object")
    return data


def error_of(data: Mapping[str, Any]) -> tuple[str, str | None]:
    """The message of an error body and its code, in the layouts of OpenAI, vLLM, llama.cpp and FastAPI."""
    error = data.get("error", data)
    if isinstance(error, dict):
        said = next((error[name] for name in ("message", "detail", "error") if error.get(name)), error)
        code = error.get("code")
    else:
        said, code = error, None
    return said if isinstance(said, str) else json.dumps(said), None if code is None else str(code)


def context_of(data: Mapping[str, Any]) -> tuple[int | None, int | None] | None:
    """The prompt's and the context's length, as far as an error body tells them; None if it is about another thing."""
    error = data.get("error", data)
    said, code = error_of(data)
    lengths = _CONTEXT.search(said)
    kinds = (code, _field(error, "type"))
    if lengths is None and not {"context_length_exceeded", "exceed_context_size_error"} & set(map(str, kinds)):
        return None
    prompt = _PROMPT.search(said)
    num_prompt_tokens = _count(_field(error, "n_prompt_tokens")) or (int(prompt[1]) if prompt else None)
    context_length = _count(_field(error, "n_ctx")) or (int(lengths[1] or lengths[2]) if lengths else None)
    return num_prompt_tokens, context_length


def prompt_length(data: Mapping[str, Any]) -> int | None:
    """How many tokens the server counts in the prompt."""
    return _count(_field(data.get("usage"), "prompt_tokens"))


@dataclass(frozen=True, slots=True)
class Watch:
    """What ends a stream early: a verdict in each of its `n` texts."""

    verdict: VerdictFormat | None
    n: int


class Stream:
    """The events of a stream put together to the answer that would have come without streaming."""

    def __init__(self, watch: Watch | None) -> None:
        self.watch = watch
        self.answer: dict[str, Any] = {}
        self.choices: dict[int, dict[str, Any]] = {}
        self.settled: set[int] = set()
        #: Where a verdict ends that may yet become none.
        self.ends: dict[int, int] = {}

    def add(self, event: dict[str, Any]) -> bool:
        """Take in one event. True: nothing that follows is needed."""
        if event.get("error"):
            raise Transient(f"an error inside the stream: {error_of(event)[0]}")
        if event.get("usage"):
            self.answer["usage"] = event["usage"]
        deltas = event.get("choices")
        for delta in deltas if isinstance(deltas, list) else ():
            if isinstance(delta, dict):
                self._add_choice(delta)
        return self.watch is not None and len(self.settled) == self.watch.n

    def _add_choice(self, delta: dict[str, Any]) -> None:
        index = delta.get("index")
        index = index if isinstance(index, int) else 0
        choice = self.choices.setdefault(
            index, {"index": index, "text": "", "finish_reason": None, "logprobs": {}, "num_tokens": 0}
        )
        message = delta.get("delta")
        piece = _joined(message.get("content") if isinstance(message, dict) else delta.get("text"))
        if piece:
            choice["text"] += piece
            choice["num_tokens"] += 1
        if refusal := _field(message, "refusal"):
            choice["refusal"] = refusal
        if delta.get("finish_reason"):
            choice["finish_reason"] = delta["finish_reason"]
            choice |= {name: delta[name] for name in ("stop_reason", "matched_stop") if name in delta}
        logprobs = delta.get("logprobs")
        for name, values in logprobs.items() if isinstance(logprobs, dict) else ():
            if isinstance(values, list):
                choice["logprobs"].setdefault(name, []).extend(values)
        if self.watch is not None and self.watch.verdict is not None and index not in self.settled:
            self._look_for(self.watch.verdict, index, choice, piece)

    def _look_for(self, verdict: VerdictFormat, index: int, choice: dict[str, Any], piece: str) -> None:
        """Settle the choice once its verdict stands, with enough text behind it to stay. Searches few events."""
        text = choice["text"]
        answers = verdict.yes.casefold(), verdict.no.casefold()
        recent = text[-len(piece) - max(map(len, answers)) :].casefold()
        if index not in self.ends and any(answer in recent for answer in answers):
            found = verdict.find(text, max(0, len(text) - len(piece) - _LOOKED_BACK))
            if found is not None:
                self.ends[index] = found.end
        if index in self.ends and len(text) - self.ends[index] >= _SETTLED_AFTER:
            end = self.ends.pop(index)
            if verdict.find(text, max(0, end - _LOOKED_BACK)) is not None:
                self.settled.add(index)
                choice["finish_reason"] = choice["finish_reason"] or "verdict"

    def ended(self) -> dict[str, Any]:
        """The answer of a stream that sends no more."""
        if any(choice["finish_reason"] is None for choice in self.choices.values()):
            raise Transient("a stream that broke off")
        return self.whole()

    def whole(self) -> dict[str, Any]:
        return self.answer | {"choices": list(self.choices.values())}


async def read_events(response: httpx.Response, limit: int, watch: Watch | None) -> dict[str, Any]:
    """Read server-sent events up to `[DONE]`, or until every text has its verdict."""
    stream, rest, size = Stream(watch), b"", 0
    async for chunk in response.aiter_bytes():
        size += len(chunk)
        if size > limit:
            raise Transient(f"a stream of over {limit} bytes, far more than was asked for")
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            payload = line.removeprefix(b"data:").strip()
            if not line.startswith(b"data:") or not payload:
                continue
            if payload == b"[DONE]":
                return stream.ended()
            if stream.add(parse_json(payload)):
                return stream.whole()
    return stream.ended()


def _choices(data: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The choices of an answer, in the order of their index; at least one, none twice."""
    choices = data.get("choices")
    choices = [choice for choice in choices if isinstance(choice, dict)] if isinstance(choices, list) else []
    if not choices:
        raise Transient("an answer without choices")
    indices = [index for choice in choices if (index := _count(choice.get("index"))) is not None]
    if len(set(indices)) < len(indices):
        raise Transient("an answer with two choices of the same index")
    return sorted(choices, key=lambda choice: _count(choice.get("index")) or 0)


def served_models(data: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The entries of a list of models, by name."""
    models = data.get("data")
    entries = [model for model in models if isinstance(model, dict)] if isinstance(models, list) else []
    return {model["id"]: model for model in entries if isinstance(model.get("id"), str)}


def has_alternatives(data: Mapping[str, Any]) -> bool:
    """Whether the answer lists alternatives to its tokens. A token's own log-probability alone is no choice."""
    return any(len(token.alternatives()[0]) > 1 for token in _tokens(_choices(data)[0]) or ())


def first_choice(data: Mapping[str, Any], start: int, verdict: VerdictFormat) -> VerdictChoice | None:
    """The choice at the first token of the answer, said to stand at `start`; None where it cannot be told."""
    tokens = _tokens(_choices(data)[0])
    return _verdict_choice(tokens[0], start, verdict) if tokens else None


def read_completions(data: Mapping[str, Any], sampling: Sampling, n: int, echo: str = "") -> list[Completion]:
    """The completions of an answer; some servers give fewer than the `n` asked for.

    Args:
        echo: what every text begins with, and is no part of the completion.
    """
    choices = _choices(data)[:n]
    texts = [_text(choice) for choice in choices]
    if not all(text.startswith(echo) for text in texts):
        raise Transient("an answer that does not begin with the given reply, as the server's other answers do")
    texts = [text.removeprefix(echo) for text in texts]
    usage = data.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    num_prompt_tokens = _count(usage.get("prompt_tokens"))
    cached = usage.get("prompt_tokens_details")
    num_cached = _count(cached.get("cached_tokens")) if isinstance(cached, dict) else None
    total = _count(usage.get("completion_tokens"))
    completions = []
    for index, (choice, text, share) in enumerate(zip(choices, texts, _shares(total, texts), strict=True)):
        tokens = _tokens(choice) or []
        # `usage` is exact for one completion. For several it is their sum, or, from llama.cpp, the first one's.
        counted = len(tokens) or _count(choice.get("num_tokens"))
        num_tokens = share if len(choices) == 1 and share is not None else counted
        finish_reason = "refusal" if _refuses(choice) else str(choice.get("finish_reason") or "unknown")
        finish_reason = _FINISH_REASONS.get(finish_reason, finish_reason)
        if finish_reason in _WITHHELD:
            # What came before is no answer either, and is never read for a verdict.
            text, tokens = "", []
        if finish_reason == "error":
            raise Transient("a completion that ended in an error")
        if num_tokens is None:
            num_tokens = share if share is not None else -(-len(text.encode()) // 4)
        completions.append(
            Completion(
                text=text,
                num_tokens=num_tokens,
                finish_reason=finish_reason,
                num_prompt_tokens=num_prompt_tokens,
                # The second and further completions of one request read its prompt for nothing.
                num_cached_prompt_tokens=num_cached if index == 0 else num_prompt_tokens,
                choices=_verdict_choices(text, tokens, sampling.verdict, _has_reasoning(choice)),
                ended=_ended(choice, has_stops=bool(sampling.stop)),
            )
        )
    return completions


def _ended(choice: Mapping[str, Any], *, has_stops: bool) -> bool | None:
    """Whether the model ended the text itself, as far as the server tells.

    vLLM names what it stopped at in `stop_reason`: a stop string, one of several end tokens by its id, or null for the
    end token. SGLang names it in `matched_stop`: a stop string, or the end token's id.
    """
    said = choice.get("finish_reason")
    if said != "stop":
        return _ENDED.get(said) if isinstance(said, str) else None
    stops = [choice[name] for name in ("stop_reason", "matched_stop") if name in choice]
    if any(isinstance(stop, str) for stop in stops):
        return False
    if any(isinstance(stop, int) for stop in stops) or choice.get("stop_reason", "") is None:
        return True
    return None if has_stops else True


def _shares(total: int | None, texts: Sequence[str]) -> list[int | None]:
    """`total` tokens divided in proportion to the texts' lengths; the shares add up to it."""
    if total is None:
        return [None] * len(texts)
    ends = list(itertools.accumulate(len(text.encode()) + 1 for text in texts))
    bounds = [0, *(round(total * end / ends[-1]) for end in ends)]
    return [after - before for before, after in itertools.pairwise(bounds)]


def _text(choice: Mapping[str, Any]) -> str:
    """The text of a choice; empty where the model refused or only reasoned."""
    message = choice.get("message")
    text = _joined(message.get("content") if isinstance(message, dict) else choice.get("text"))
    # Half a surrogate pair, which JSON can spell, could not be written to any file.
    return text.encode("utf-8", "replace").decode("utf-8")


def _refuses(choice: Mapping[str, Any]) -> bool:
    """Whether the model refused in a field of its own (OpenAI)."""
    return bool(choice.get("refusal") or _field(choice.get("message"), "refusal"))


def _joined(content: Any) -> str:
    """A content as one text: it may come as a list of parts, `{"type": "text", "text": ...}`."""
    if isinstance(content, list):
        parts = (part if isinstance(part, str) else _field(part, "text") for part in content)
        return "".join(part for part in parts if isinstance(part, str))
    if content is not None and not isinstance(content, str):
        raise Transient("an answer whose text is not a text")
    return content or ""


def _field(value: Any, name: str) -> Any:
    return value.get(name) if isinstance(value, dict) else None


def _has_reasoning(choice: Mapping[str, Any]) -> bool:
    """Whether the server split reasoning off the text; its tokens stand before the text's in the log-probabilities."""
    message = choice.get("message")
    return isinstance(message, dict) and bool(message.get("reasoning_content") or message.get("reasoning"))


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


class _Token:
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
        if logsumexp(logprob for _, logprob in found) > _ROUNDING:
            return [], 0.0
        return found, bound if len(found) >= len(listed) else 0.0


def _tokens(choice: Mapping[str, Any]) -> list[_Token] | None:
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
    return [_Token(own, top, spelled) for own, top in pairs]


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


def _verdict_choice(token: _Token, start: int, verdict: VerdictFormat) -> VerdictChoice | None:
    """The choice at a token: each answer summed over its variants there; None where it cannot be told.

    It can where both answers are listed, or where one is and the other must be far less likely, since no alternative
    outside the list is more likely than the last one in it; the other then counts with this bound, never as impossible.
    """
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


def _verdict_choices(
    text: str, tokens: Sequence[_Token], verdict: VerdictFormat | None, after_reasoning: bool = False
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
        choice = None if at is None else _verdict_choice(token, at, verdict)
        if choice is not None:
            choices.append(choice)
    return tuple(choices)


def _layout(tokens: Sequence[_Token]) -> tuple[str, list[int]]:
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
