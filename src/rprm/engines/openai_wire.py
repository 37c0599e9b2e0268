"""Reading what an OpenAI-compatible server answers: bodies, event streams, completions.

Nothing here trusts the server: what is missing is None or nothing, what is garbled is `Transient`, what is too much is
refused.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import httpx

from rprm.engines.base import WITHHELD, Completion, Sampling
from rprm.engines.openai_logprobs import read_tokens, verdict_choice, verdict_choices
from rprm.verdict import VerdictChoice, VerdictFormat

#: Characters after a streamed verdict from which on it may settle: `Yes` could still become `Yes/No` or `Yesterday`.
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
_FINISH_REASONS = {"eos": "stop", "eos_token": "stop", "stop_sequence": "stop", "max_tokens": "length"}


#: What opens and ends thinking in a text, and the kinds of parts of a content that are its text.
_THINK_OPEN, _THINK_END = "<think>\n", "</think>"
_TEXT_PARTS = (None, "text", "output_text")


#: The first character of a spelled control token: ChatML, Llama, DeepSeek, Mistral, Gemma, T5's kind.
_CONTROL_TOKEN = re.compile(
    r"<(?=\|[^<>|]{1,64}\|>|\|[a-z_]{1,32}>|[a-z_]{1,32}\|>|\uff5c[^<>\uff5c]{1,64}\uff5c>|/?s>|<?/?SYS>"
    r"|(?:bos|eos|pad|unk|mask|sep|cls)>|(?:start|end)_of_(?:turn|image|text)>|extra_(?:id_)?\d+>|unused\d+>)"
    r"|\[(?=\|[^\[\]|]{1,64}\|\]|[gs]MASK\]|/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_RESULTS)\]"
    r"|(?:TOOL_CALLS|IMG|PREFIX|SUFFIX|MIDDLE)\])"
)


class Transient(Exception):
    """A failure that may pass.

    `retry_after`: seconds that the server asks to wait; `is_busy`: it has too much to do, whatever was asked.
    """

    def __init__(self, reason: str, retry_after: float = 0.0, *, is_busy: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.retry_after = retry_after
        self.is_busy = is_busy


def harmless(text: str, parts: Iterable[tuple[int, int]] | None = None) -> str:
    """The text with its spelled control tokens broken up: servers would read them as the tokens themselves.

    A zero-width space stands after the first character of each, so that `<|im_end|>` in a solution ends no turn.

    Args:
        text: a message's content, or a text that is continued as it stands.
        parts: the parts [start, end) that are meant, in order; None for all of the text.
    """
    pieces, place = [], 0
    for start, end in ((0, len(text)),) if parts is None else parts:
        pieces += [text[place:start], _CONTROL_TOKEN.sub(lambda match: f"{match[0]}\u200b", text[start:end])]
        place = end
    return "".join(pieces) + text[place:]


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
    """What ends a stream early: a verdict in each of its `n` texts.

    `opens_thinking`: the chat template opens the thinking, so that a text begins with it.
    """

    verdict: VerdictFormat | None
    n: int
    opens_thinking: bool = False


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
            index,
            {"index": index, "text": "", "reasoning": "", "finish_reason": None, "logprobs": {}, "num_tokens": 0},
        )
        message = delta.get("delta")
        piece = _joined(message.get("content") if isinstance(message, dict) else delta.get("text"))
        thought = _thoughts(message)
        choice["text"] += piece
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
        if self.watch is not None and self.watch.verdict is not None and index not in self.settled:
            self._look_for(self.watch.verdict, index, choice, piece)

    def _look_for(self, verdict: VerdictFormat, index: int, choice: dict[str, Any], piece: str) -> None:
        """Settle the choice once its verdict stands however the text goes on. Searches few events."""
        text = choice["text"]
        if self.watch is not None and self.watch.opens_thinking and _THINK_END not in text:
            return
        answers = verdict.yes.casefold(), verdict.no.casefold()
        recent = text[-len(piece) - max(map(len, answers)) :].casefold()
        if index not in self.ends and any(answer in recent for answer in answers):
            found = verdict.find(text, self._looked_from(text, len(text) - len(piece)))
            if found is not None:
                self.ends[index] = found.end
        if index in self.ends and len(text) - self.ends[index] >= _SETTLED_AFTER:
            end = self.ends.pop(index)
            found = verdict.find(text, self._looked_from(text, end))
            if found is None or len(text) - end > _LOOKED_BACK:
                return
            self.ends[index] = found.end
            if verdict.is_final(text, found):
                self.settled.add(index)
                choice["finish_reason"] = choice["finish_reason"] or "verdict"

    def _looked_from(self, text: str, end: int) -> int:
        """Where a verdict is looked for that ends at `end` or later."""
        thinking = text.find(_THINK_END) if self.watch is not None and self.watch.opens_thinking else 0
        return max(0, thinking, end - _LOOKED_BACK)

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
    return any(len(token.alternatives()[0]) > 1 for token in read_tokens(_choices(data)[0]) or ())


def lists_answers(data: Mapping[str, Any], verdict: VerdictFormat, num: int) -> bool:
    """Whether every token of the answer lists `num` forms of Yes and No, as where they are asked for by their ids."""
    listed = [token.alternatives()[0] for token in read_tokens(_choices(data)[0]) or ()]
    texts = [[content.decode("utf-8", "replace") for content, _ in found] for found in listed]
    return bool(texts) and all(sum(verdict.answer_of(text) is not None for text in some) >= num for some in texts)


def first_choice(data: Mapping[str, Any], start: int, verdict: VerdictFormat, num_ids: int) -> VerdictChoice | None:
    """The choice at the first token of the answer, said to stand at `start`; None where it cannot be told."""
    tokens = read_tokens(_choices(data)[0])
    return verdict_choice(tokens[0], start, verdict, num_ids) if tokens else None


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
    usage = usage if isinstance(usage, dict) else {}
    num_prompt_tokens = _count(usage.get("prompt_tokens"))
    cached = usage.get("prompt_tokens_details")
    num_cached = _count(cached.get("cached_tokens")) if isinstance(cached, dict) else None
    total = _count(usage.get("completion_tokens"))
    completions = []
    for index, (choice, text, share) in enumerate(zip(choices, texts, _shares(total, texts), strict=True)):
        thoughts = _thoughts(choice.get("message")) or _field(choice, "reasoning") or ""
        tokens = read_tokens(choice) or []
        # `usage` is exact for one completion. For several it is their sum, or, from llama.cpp, the first one's.
        counted = len(tokens) or _count(choice.get("num_tokens"))
        num_tokens = share if len(choices) == 1 and share is not None else counted
        finish_reason = "refusal" if _refuses(choice) else str(choice.get("finish_reason") or "unknown")
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
        found = verdict_choices(text, tokens, sampling.verdict, bool(thoughts), num_ids)
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


def ends_thinking_alone(data: Mapping[str, Any]) -> bool:
    """Whether a text ends thinking that it does not open: the chat template does."""
    return any(_THINK_END in text and "<think>" not in text.split(_THINK_END)[0] for text in map(_text, _choices(data)))


def _refuses(choice: Mapping[str, Any]) -> bool:
    """Whether the model refused in a field of its own (OpenAI)."""
    return bool(choice.get("refusal") or _field(choice.get("message"), "refusal"))


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


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None
