"""Reading what an OpenAI-compatible server answers: streams, completions, and the choice between Yes and No.

Nothing here trusts the server: what is missing is None or nothing, what is garbled is `Transient`, and numbers that
cannot be log-probabilities of one choice tell nothing.
"""

from __future__ import annotations

import codecs
import functools
import itertools
import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rprm.engines.base import WITHHELD, Completion, Sampling
from rprm.engines.endpoint import Transient, count, error_of
from rprm.verdict import Transcript, VerdictChoice, VerdictFormat, logsumexp

#: Finish reasons that say what "stop" leaves open: whether the model ended the text itself.
_ENDED = {"eos": True, "eos_token": True} | dict.fromkeys(("stop_sequence", "length", "max_tokens", "verdict"), False)
_FINISH_REASONS = {"eos": "stop", "eos_token": "stop", "stop_sequence": "stop", "max_tokens": "length"}
#: What opens and ends thinking in a text, and the kinds of parts of a content that are its text.
_THINK_OPEN, _THINK_END = "<think>\n", "</think>"
_TEXT_PARTS = (None, "text", "output_text")

#: Servers write -9999 for a log-probability of -inf, which JSON does not have, or for one that they do not know.
_LOGPROB_FLOOR = -9000.0
#: A probability, or the sum of some that exclude each other, can be above 1 by rounding: by that much as a logarithm.
_ROUNDING = 0.01
#: An answer that is not listed counts only where its bound lies that far below the other one: odds of 1,000 to 1.
_FAR_BELOW = math.log(1000.0)
#: What rounding leaves of a list that has all of the probability.
_LEAST_LEFT = 1e-9


class Stream:
    """The events of a stream put together to the answer that would have come without streaming.

    Args:
        verdict: what ends the stream early, once it is final in each of its texts.
        n: how many texts there are.
    """

    def __init__(self, verdict: VerdictFormat | None = None, n: int = 1) -> None:
        self._n = n
        self._usage: Any = None
        self._choices: dict[int, dict[str, Any]] = {}
        self._transcripts: defaultdict[int, Transcript] = defaultdict(lambda: Transcript(verdict))

    def add(self, event: dict[str, Any]) -> bool:
        """Take in one event. True: nothing that follows is needed."""
        if event.get("error"):
            raise Transient(f"an error inside the stream: {error_of(event)[0]}")
        self._usage = event.get("usage") or self._usage
        deltas = event.get("choices")
        for delta in deltas if isinstance(deltas, list) else ():
            if isinstance(delta, dict):
                self._add_choice(delta)
        return sum(transcript.finish_reason is not None for transcript in self._transcripts.values()) == self._n

    def _add_choice(self, delta: dict[str, Any]) -> None:
        index = count(delta.get("index")) or 0
        choice = self._choices.setdefault(
            index, {"index": index, "reasoning": "", "finish_reason": None, "logprobs": {}, "num_tokens": 0}
        )
        transcript = self._transcripts[index]
        message = delta.get("delta")
        piece = _joined(message.get("content") if isinstance(message, dict) else delta.get("text"))
        thought = _thoughts(message)
        choice["reasoning"] += thought
        choice["num_tokens"] += bool(piece or thought)
        if refusal := _field(message, "refusal"):
            choice["refusal"] = refusal
        if delta.get("finish_reason"):
            choice["finish_reason"] = delta["finish_reason"]
            choice |= {name: delta[name] for name in ("stop_reason", "matched_stop") if name in delta}
        logprobs = delta.get("logprobs")
        for name, values in logprobs.items() if isinstance(logprobs, dict) else ():
            if isinstance(values, list):
                choice["logprobs"].setdefault(name, []).extend(values)
        if piece and transcript.finish_reason is None:
            transcript.add(piece)

    def whole(self) -> dict[str, Any]:
        """The answer.

        Raises:
            Transient: it broke off.
        """
        for index, choice in self._choices.items():
            choice["text"] = self._transcripts[index].text
            choice["finish_reason"] = self._transcripts[index].finish_reason or choice["finish_reason"]
            if choice["finish_reason"] is None:
                raise Transient("a stream that broke off")
        return {"choices": list(self._choices.values()), "usage": self._usage}


def read_completions(
    data: Mapping[str, Any],
    sampling: Sampling,
    n: int,
    echo: str = "",
    *,
    opens_thinking: bool = False,
    num_ids: int = 0,
) -> list[Completion]:
    """The completions of an answer; some servers give fewer than the `n` asked for.

    Thinking that came apart stands in front of the text, between `<think>` and `</think>`.

    Args:
        echo: what every text begins with, and is no part of the completion.
        opens_thinking: the chat template opens the thinking: a text that was cut off before its end is all thinking.
        num_ids: tokens whose log-probabilities were asked for by their ids.
    """
    choices = _choices(data)[:n]
    texts = [_text(choice) for choice in choices]
    if not all(text.startswith(echo) for text in texts):
        raise Transient("an answer that does not begin with the given reply, as the server's other answers do")
    texts = [text.removeprefix(echo) for text in texts]
    usage = data.get("usage")
    num_prompt_tokens = prompt_length(data)
    num_cached = count(_field(_field(usage, "prompt_tokens_details"), "cached_tokens"))
    completions = []
    for index, (choice, text, share) in enumerate(zip(choices, texts, _shares(usage, texts), strict=True)):
        thoughts = _thoughts(choice.get("message")) or _field(choice, "reasoning") or ""
        tokens = _tokens(choice)
        # `usage` is exact for one completion. For several it is their sum, or, from llama.cpp, the first one's.
        num_tokens = share if len(choices) == 1 else None
        if num_tokens is None:
            num_tokens = len(tokens) or count(choice.get("num_tokens"))
        refuses = choice.get("refusal") or _field(choice.get("message"), "refusal")
        finish_reason = "refusal" if refuses else str(choice.get("finish_reason") or "unknown")
        finish_reason = _FINISH_REASONS.get(finish_reason, finish_reason)
        if finish_reason in WITHHELD:
            # What came before is no answer either, and is never read for a verdict.
            text, thoughts, tokens = "", "", []
        if finish_reason == "error":
            raise Transient("a completion that ended in an error")
        if num_tokens is None:
            num_tokens = share if share is not None else -(-len((thoughts + text).encode()) // 4)
        before = ""
        if thoughts:
            before = f"{_THINK_OPEN}{thoughts}\n{_THINK_END}\n\n" if text else f"{_THINK_OPEN}{thoughts}"
        elif opens_thinking and finish_reason == "length" and _THINK_END not in text:
            before = _THINK_OPEN
        found = _verdict_choices(text, tokens, sampling.verdict, bool(thoughts), num_ids)
        completions.append(
            Completion(
                text=before + text,
                num_tokens=num_tokens,
                finish_reason=finish_reason,
                num_prompt_tokens=num_prompt_tokens,
                # The second and further completions of one request read its prompt for nothing.
                num_cached_prompt_tokens=num_cached if index == 0 else num_prompt_tokens,
                choices=tuple(replace(at, start=at.start + len(before)) for at in found),
                ended=_ended(choice, has_stops=bool(sampling.stop)),
            )
        )
    return completions


def first_choice(data: Mapping[str, Any], start: int, verdict: VerdictFormat, num_ids: int) -> VerdictChoice | None:
    """The choice at the first token of the answer, said to stand at `start`; None where it cannot be told."""
    tokens = _tokens(_choices(data)[0])
    return _verdict_choice(tokens[0], start, verdict, num_ids) if tokens else None


def prompt_length(data: Mapping[str, Any]) -> int | None:
    """How many tokens the server counts in the prompt."""
    return count(_field(data.get("usage"), "prompt_tokens"))


def has_alternatives(data: Mapping[str, Any]) -> bool:
    """Whether the answer lists alternatives to its tokens. A token's own log-probability alone is no choice."""
    return any(len(token.alternatives()[0]) > 1 for token in _tokens(_choices(data)[0]))


def lists_answers(data: Mapping[str, Any], verdict: VerdictFormat, num: int) -> bool:
    """Whether every token of the answer lists `num` forms of Yes and No, as where they are asked for by their ids."""
    listed = [token.alternatives()[0] for token in _tokens(_choices(data)[0])]
    return bool(listed) and all(
        sum(_answer_of(verdict, content) is not None for content, _ in found) >= num for found in listed
    )


def ends_thinking_alone(data: Mapping[str, Any]) -> bool:
    """Whether a text ends thinking that it does not open: the chat template does."""
    return any(_THINK_END in text and "<think>" not in text.split(_THINK_END)[0] for text in map(_text, _choices(data)))


def _choices(data: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The choices of an answer, in the order of their index; at least one, none twice."""
    choices = data.get("choices")
    choices = [choice for choice in choices if isinstance(choice, dict)] if isinstance(choices, list) else []
    if not choices:
        raise Transient("an answer without choices")
    indices = [index for choice in choices if (index := count(choice.get("index"))) is not None]
    if len(set(indices)) < len(indices):
        raise Transient("an answer with two choices of the same index")
    return sorted(choices, key=lambda choice: count(choice.get("index")) or 0)


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


def _shares(usage: Any, texts: Sequence[str]) -> list[int | None]:
    """The completion's tokens divided in proportion to the texts' lengths; the shares add up to them."""
    total = count(_field(usage, "completion_tokens"))
    if total is None:
        return [None] * len(texts)
    ends = list(itertools.accumulate(len(text.encode()) + 1 for text in texts))
    bounds = [0, *(round(total * end / ends[-1]) for end in ends)]
    return [after - before for before, after in itertools.pairwise(bounds)]


def _text(choice: Mapping[str, Any]) -> str:
    """The text of a choice, without thinking that came apart; empty where the model refused or only thought."""
    message = choice.get("message")
    return _clean(_joined(message.get("content") if isinstance(message, dict) else choice.get("text")))


def _thoughts(message: Any) -> str:
    """Thinking that came apart from the text, under the names of vLLM, SGLang, llama.cpp, DeepSeek and OpenRouter.

    Mistral has it among the parts of the content: `{"type": "thinking", "thinking": [...]}`.
    """
    for name in ("reasoning_content", "reasoning"):
        if isinstance(text := _field(message, name), str) and text:
            return _clean(text)
    content = _field(message, "content")
    thoughts = (_field(part, "thinking") for part in content) if isinstance(content, list) else ()
    return _clean("".join(_joined(thought) for thought in thoughts if isinstance(thought, str | list)))


def _clean(text: str) -> str:
    """Without halves of surrogate pairs, which JSON can spell, but which could not be written to any file."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _joined(content: Any) -> str:
    """A content as one text: it may come as a list of parts, `{"type": "text", "text": ...}`."""
    if isinstance(content, list):
        texts = (
            part if isinstance(part, str) else _field(part, "text") if _field(part, "type") in _TEXT_PARTS else None
            for part in content
        )
        return "".join(text for text in texts if isinstance(text, str))
    if content is not None and not isinstance(content, str):
        raise Transient("an answer whose text is not a text")
    return content or ""


def _field(value: Any, name: str) -> Any:
    return value.get(name) if isinstance(value, dict) else None


# --- log-probabilities ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Token:
    """A generated token: its bytes, its log-probability, and the entries of its alternatives as they came."""

    content: bytes
    logprob: float | None
    top: Sequence[Mapping[str, Any]]
    bytes_of: Callable[[Mapping[str, Any]], bytes]

    def listed(self) -> list[tuple[bytes, float | None]]:
        return [(self.bytes_of(entry), _logprob(entry)) for entry in self.top]

    def alternatives(self) -> tuple[list[tuple[bytes, float]], float]:
        """Bytes and log-probability of every alternative, and the most that a token has which is not among them.

        Nothing where the numbers cannot be probabilities of one choice. The token itself is added where the list lacks
        it and it can be less likely than all of them.
        """
        listed = self.listed()
        found = [(content, logprob) for content, logprob in listed if logprob is not None]
        bound = min((logprob for _, logprob in found), default=0.0)
        own = self.logprob
        if found and own is not None and own <= bound and all(content != self.content for content, _ in listed):
            found.append((self.content, own))
        total = logsumexp(logprob for _, logprob in found)
        if total > _ROUNDING:
            return [], 0.0
        # Of a list that is cut or filtered, what is missing may have all that the list leaves.
        left = math.log(max(-math.expm1(total), _LEAST_LEFT))
        return found, max(bound, left) if len(found) >= len(listed) else 0.0


def _tokens(choice: Mapping[str, Any]) -> list[_Token]:
    """The tokens of a choice, in either layout of log-probabilities; none where there are none.

    Chat: `{"content": [{"token", "bytes", "logprob", "top_logprobs": [...]}]}`. Completions: `{"tokens": [...],
    "token_logprobs": [...], "top_logprobs": [{token: logprob}]}`; llama.cpp uses the former for both.
    """
    logprobs = choice.get("logprobs")
    content = _field(logprobs, "content")
    if isinstance(content, list):
        pairs = [(entry, _entries(entry.get("top_logprobs"))) for entry in content if isinstance(entry, dict)]
    else:
        columns = [_field(logprobs, name) for name in ("tokens", "token_logprobs", "top_logprobs")]
        texts, own, tops = (column if isinstance(column, list) else [] for column in columns)
        rows = itertools.zip_longest(texts, own[: len(texts)], tops[: len(texts)])
        pairs = [({"token": text, "logprob": logprob}, _entries(top)) for text, logprob, top in rows]
    spelled = _spelling(entry for own, top in pairs for entry in (own, *top))
    bytes_of = functools.partial(_content, spelled=spelled)
    return [_Token(bytes_of(own), _logprob(own), top, bytes_of) for own, top in pairs]


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
            return lambda text: b"".join(_letter_bytes().get(letter, letter.encode()) for letter in text)
        if "\u2581" in written:
            return lambda text: text.replace("\u2581", " ").encode()
    return str.encode


@functools.cache
def _letter_bytes() -> dict[str, bytes]:
    """GPT-2's letter of every byte: printable ones their own, the others from U+0100 on."""
    own = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in own]
    letters = [*((chr(byte), byte) for byte in own), *((chr(0x100 + at), byte) for at, byte in enumerate(others))]
    return {letter: bytes([byte]) for letter, byte in letters}


def _content(entry: Mapping[str, Any], spelled: Callable[[str], bytes]) -> bytes:
    raw = entry.get("bytes")
    if isinstance(raw, list) and all(isinstance(byte, int) and 0 <= byte < 256 for byte in raw):
        return bytes(raw)
    return spelled(_clean(str(entry.get("token") or "")))


def _logprob(entry: Mapping[str, Any]) -> float | None:
    """The log-probability of an entry; None where it is none: no number, above 0, or so low that it stands for one."""
    value = entry.get("logprob")
    if isinstance(value, bool) or not isinstance(value, int | float) or not _LOGPROB_FLOOR < value <= _ROUNDING:
        return None
    return min(float(value), 0.0)


def _answer_of(verdict: VerdictFormat, content: bytes) -> bool | None:
    return verdict.answer_of(content.decode("utf-8", "replace"))


def _verdict_choice(token: _Token, start: int, verdict: VerdictFormat, num_ids: int) -> VerdictChoice | None:
    """The choice at a token that stands at `start`: each answer summed over its variants; None where it cannot be told.

    It can where both answers are listed, or where one is and the other must be far less likely: no alternative outside
    the list is more likely than the last one in it and what the list leaves. The other then counts with this bound,
    never as impossible. An answer listed with a number that is no log-probability tells nothing of either. Nor does a
    generated answer that is none of the `num_ids` tokens which were asked for by their ids: they are not all forms.
    """
    listed = token.listed()
    # vLLM lists a token that was not asked for besides those that were.
    is_one_of_ids = len(listed) == num_ids and (token.content, token.logprob) in listed
    if num_ids and not is_one_of_ids and _answer_of(verdict, token.content) is not None:
        return None
    if any(logprob is None and _answer_of(verdict, content) is not None for content, logprob in listed):
        return None
    found, bound = token.alternatives()
    logprobs = {
        answer: min(logsumexp(logprob for content, logprob in found if _answer_of(verdict, content) is answer), 0.0)
        for answer in (True, False)
    }
    for answer, other in ((True, False), (False, True)):
        if logprobs[answer] == -math.inf:
            if bound > logprobs[other] - _FAR_BELOW:
                return None
            logprobs[answer] = bound
    return VerdictChoice(start, logprobs[True], logprobs[False])


def _verdict_choices(
    text: str, tokens: Sequence[_Token], verdict: VerdictFormat | None, after_reasoning: bool, num_ids: int
) -> list[VerdictChoice]:
    """The choices at every token that reads as an answer, at their characters in `text`."""
    written, starts = _layout(tokens)
    # The two differ: the text lacks the reasoning, the end-of-turn token, what follows a stop string, or spaces at its
    # ends. Only what stands in their longest common beginning, or their longest common end, has a certain place.
    prefix = 0 if after_reasoning else _common(written, text)
    end, suffix = len(written), 0
    if prefix < len(text):
        # End-of-turn tokens stand after the text: look for its last characters.
        tail = text[-32:]
        end = max(0, written.rfind(tail)) + len(tail)
        suffix = _common(written[:end][::-1], text[::-1])
    choices = []
    for token, start in zip(tokens, starts, strict=True):
        word = token.content.decode("utf-8", "replace")
        if verdict is None or verdict.answer_of(word) is None:
            continue
        start += len(word) - len(word.lstrip())
        stop = start + len(word.strip())
        if stop > prefix:
            if start < end - suffix or stop > end:
                continue
            start += len(text) - end
        if choice := _verdict_choice(token, start, verdict, num_ids):
            choices.append(choice)
    return choices


def _layout(tokens: Sequence[_Token]) -> tuple[str, list[int]]:
    """The text that the tokens spell and the character at which each begins. A character may span tokens."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    written, starts = "", []
    for token in tokens:
        # Bytes left over from before become one replacement character unless this token completes them.
        broken = decoder.getstate()[0] and not (token.content and 0x80 <= token.content[0] < 0xC0)
        starts.append(len(written) + bool(broken))
        written += decoder.decode(token.content)
    return written + decoder.decode(b"", final=True), starts


def _common(first: str, second: str) -> int:
    """How many characters two texts have in common at their beginning."""
    shorter = min(len(first), len(second))
    if first[:shorter] == second[:shorter]:
        return shorter
    return next(index for index in range(shorter) if first[index] != second[index])
