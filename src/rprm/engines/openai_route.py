"""What an OpenAI-compatible server takes: said in the spec, or learned from short requests of our own."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from rprm.engines.base import Completion, Sampling
from rprm.engines.endpoint import Endpoint, Refusal
from rprm.engines.openai_answers import Stream, ends_thinking_alone, has_alternatives, lists_answers, read_completions
from rprm.errors import EngineError, Unsupported
from rprm.prompts.template import Message, Prompt
from rprm.verdict import VerdictFormat

T = TypeVar("T")

_DEFAULT_URL = "https://api.openai.com/v1"
#: Tokens of the first answer, and for servers that take no fewer, or whose models think first.
_PROBE_TOKENS, _MORE_PROBE_TOKENS = 4, 1024
#: The request from which a server's abilities are learned: a few tokens, all features at once, no value the default.
_PROBE = Prompt((Message("user", "Reply with one word: Yes"),))
_PROBE_VERDICT = VerdictFormat()
_PROBE_SAMPLING = Sampling(temperature=0.9, top_p=0.9, seed=1, verdict=_PROBE_VERDICT)
#: Answers without log-probabilities, or refusals that name nothing, after which that is how the server is.
_PROBE_TRIES = 3
#: A beginning of the reply that one token cannot repeat: tells whether answers begin with the reply that was given.
_PROBE_REPLY = "The one word that was asked for, and nothing else, is this:"
#: A text that begins with the spelled begin-of-text token: Llama's, Mistral's, Gemma's, DeepSeek's.
_BOS = re.compile(r"<s>|<bos>|<\|begin_of_text\|>|<\uff5cbegin\u2581of\u2581sentence\uff5c>")
#: Numbers of alternatives per token to try, from the most that vLLM and OpenAI give to the most some others do.
_TOP_LOGPROBS_STEPS = (20, 5, 0)
#: Request fields that a server may not take; it then does as it does without them.
_OPTIONAL = ("seed", "stream_options", "top_p", "temperature", "add_special_tokens")
#: Request fields that the engine sets: none of them may come from `extra`, where it would belie the manifest.
_OUR_FIELDS = re.compile(
    "model|messages|prompt|temperature|top_p|max_tokens|max_completion_tokens|seed|stop|logprobs|top_logprobs|n|"
    "logprob_token_ids|stream|stream_options|add_special_tokens|add_generation_prompt|continue_final_message|echo"
)
#: The first character of a spelled control token: ChatML, Llama, DeepSeek, Mistral, Gemma, T5's kind.
_CONTROL_TOKEN = re.compile(
    r"<(?=\|[^<>|]{1,64}\|>|\|[a-z_]{1,32}>|[a-z_]{1,32}\|>|\uff5c[^<>\uff5c]{1,64}\uff5c>|/?s>|<?/?SYS>"
    r"|(?:bos|eos|pad|unk|mask|sep|cls)>|(?:start|end)_of_(?:turn|image|text)>|extra_(?:id_)?\d+>|unused\d+>)"
    r"|\[(?=\|[^\[\]|]{1,64}\|\]|[gs]MASK\]|/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_RESULTS)\]"
    r"|(?:TOOL_CALLS|IMG|PREFIX|SUFFIX|MIDDLE)\])"
)


@dataclass
class Route:
    """One of the two ways to ask for completions, and what has been learned about it."""

    endpoint: Endpoint
    model: str
    path: str
    top_logprobs: int
    #: Whether tokens are read as they come.
    stream: bool = False
    #: Further request fields.
    extra: Mapping[str, Any] = field(default_factory=dict)
    #: How the request calls `max_tokens`; None where no name is taken.
    length_field: str | None = "max_tokens"
    #: Fields that the server does not take.
    left_out: set[str] = field(default_factory=set)
    #: Whether answers begin with thinking that the chat template opened: a lone </think> was seen.
    opens_thinking: bool = False
    #: Whether the answers' tokens are asked for by their ids (vLLM).
    takes_ids: bool = False
    #: Those ids, by the words of the answers; none where the server told no token of one of them.
    ids: dict[tuple[str, str], list[int]] = field(default_factory=dict)
    probe_tokens: int = _PROBE_TOKENS
    num_bad: int = 0
    learned: bool = False
    #: Whether answers begin with the reply that was given; None until it is learned.
    echoes: bool | None = None
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def where(self) -> str:
        return self.endpoint.where(self.path)

    def ids_of(self, verdict: VerdictFormat | None) -> list[int]:
        """The ids to ask for; none where the likeliest tokens are asked for."""
        return self.ids.get((verdict.yes, verdict.no), []) if self.takes_ids and verdict is not None else []

    async def ask(
        self,
        prompt: Prompt,
        sampling: Sampling,
        read: Callable[[dict[str, Any]], T],
        n: int = 1,
        *,
        stream: bool | None = None,
    ) -> T:
        """What `read` makes of the answer to one request for `n` completions; raises what `Endpoint.post` does.

        Args:
            stream: otherwise than by default.
        """
        body = self._body(prompt, sampling, n, stream=self.stream if stream is None else stream)
        # No verdict is final while the thinking that the template opened may go on.
        verdict = sampling.verdict if prompt.reply or not self.opens_thinking else None
        return await self.endpoint.post(self.path, body, read, self._limit(sampling, n), lambda: Stream(verdict, n))

    def _body(self, prompt: Prompt, sampling: Sampling, n: int, *, stream: bool) -> dict[str, Any]:
        body: dict[str, Any] = {"model": self.model}
        if prompt.chat:
            begun = (Message("assistant", prompt.reply),) if prompt.reply else ()
            messages = (*prompt.messages, *begun)
            body["messages"] = [{"role": message.role, "content": harmless(message.content)} for message in messages]
            if begun:
                body |= {"add_generation_prompt": False, "continue_final_message": True}
        else:
            contents = [harmless(message.content, message.records) for message in prompt.messages]
            body["prompt"] = "\n\n".join(contents) + harmless(prompt.reply)
            if prompt == replace(_PROBE, chat=False) or _BOS.match(prompt.text):
                # The server would put another one before it.
                body["add_special_tokens"] = False
        body |= {"temperature": sampling.temperature, "top_p": sampling.top_p}
        if self.length_field is not None:
            body[self.length_field] = sampling.max_tokens
        if sampling.seed is not None:
            body["seed"] = sampling.seed
        if sampling.stop:
            body["stop"] = list(sampling.stop)
        if sampling.verdict is not None and self.top_logprobs:
            asked = {"logprobs": True, "top_logprobs": self.top_logprobs}
            body |= asked if prompt.chat else {"logprobs": self.top_logprobs}
            if ids := self.ids_of(sampling.verdict):
                # A server that does not know the field lists the likeliest tokens.
                body["logprob_token_ids"] = ids
        if n > 1:
            body["n"] = n
        if stream:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        return {name: value for name, value in body.items() if name not in self.left_out} | dict(self.extra)

    def _limit(self, sampling: Sampling, n: int) -> int:
        """Bytes that an honest answer stays below: so many for a token, as streamed, and for each alternative."""
        top_logprobs = self.top_logprobs if sampling.verdict is not None else 0
        max_tokens = sampling.max_tokens if self.length_field else 1 << 17
        return (1 << 20) + n * max_tokens * (1024 + 256 * top_logprobs)

    def details(self) -> dict[str, Any]:
        """What a manifest says of it."""
        details: dict[str, Any] = {"api": self.path[1:], "top_logprobs": self.top_logprobs}
        if not_sent := sorted(self.left_out - {"stream_options", "add_special_tokens"}):
            details["not_sent"] = not_sent
        if self.length_field != "max_tokens":
            details["length_field"] = self.length_field
        return details

    async def learn(self, verdict: VerdictFormat | None = None) -> None:
        """Learn what the server takes, once, and the ids of the answers' tokens.

        Raises:
            EngineError: it refuses all.
        """
        async with self.lock:
            while not self.learned:
                await self._probe()
            await self.learn_ids(verdict)

    async def _probe(self) -> None:
        """One short request. Where the server refuses a feature, that is given up for the next one.

        One answer without log-probabilities, or one refusal that names nothing, decides nothing.
        """
        ids = await self.learn_ids(_PROBE_VERDICT)
        self.takes_ids = bool(ids)

        def read(data: dict[str, Any]) -> tuple[bool, Completion]:
            # Read as a whole, so that garbled answers are tried again.
            (completion, *_) = read_completions(data, _PROBE_SAMPLING, 1)
            self.opens_thinking |= ends_thinking_alone(data)
            self.takes_ids = self.takes_ids and lists_answers(data, _PROBE_VERDICT, len(ids))
            return has_alternatives(data), completion

        prompt = replace(_PROBE, chat=self.path.startswith("/chat"))
        sampling = replace(_PROBE_SAMPLING, max_tokens=self.probe_tokens)
        try:
            has_logprobs, completion = await self.ask(prompt, sampling, read)
        except Refusal as refusal:
            if self._give_up(refusal.said):
                return
            self.num_bad += 1
            if self.num_bad == _PROBE_TRIES:
                self.num_bad = 0
                raise EngineError(f"{self.where} refuses even a short request: {refusal.said}") from None
        else:
            # Cut off before the word that was asked for: more of it tells how thinking ends.
            may_think = completion.finish_reason == "length" and "yes" not in completion.text.lower()
            if prompt.chat and may_think and self.probe_tokens < _MORE_PROBE_TOKENS:
                self.probe_tokens = _MORE_PROBE_TOKENS
                return
            self.num_bad += not has_logprobs
            self.learned = has_logprobs or not self.top_logprobs or self.num_bad == _PROBE_TRIES
            if self.learned:
                self.top_logprobs *= has_logprobs

    def _give_up(self, said: str) -> bool:
        """Stop using the feature that the server's refusal of the probe names; False where it names none."""
        if self.takes_ids and "logprob" in said.lower():
            self.takes_ids = False
        elif self.top_logprobs and "logprob" in said.lower():
            self.top_logprobs = next(step for step in _TOP_LOGPROBS_STEPS if step < self.top_logprobs)
        elif self.probe_tokens < _MORE_PROBE_TOKENS and re.search(
            r"output limit|(higher|minimum).*tokens|tokens.*>=", said
        ):
            self.probe_tokens = _MORE_PROBE_TOKENS
        elif self.length_field and re.search(r"max_(completion_)?tokens", said):
            self.length_field = "max_completion_tokens" if self.length_field == "max_tokens" else None
        else:
            named = (name for name in _OPTIONAL if re.search(rf"\b{name}\b", said, re.IGNORECASE))
            refused = next((name for name in named if name not in self.left_out), None)
            if refused is None:
                return False
            self.left_out.add(refused)
        return True

    async def learn_ids(self, verdict: VerdictFormat | None) -> list[int]:
        """Learn all forms of the answers from one text, so that either all are known or none (vLLM's `/tokenize`).

        A tokenizer that puts a space before every text (sentencepiece) has its tokens without one only after a line end
        or a sign.
        """
        if not self.takes_ids or verdict is None or (key := (verdict.yes, verdict.no)) in self.ids:
            return self.ids_of(verdict)
        answers = [dict.fromkeys(map(str.strip, VerdictFormat.forms(verdict, answer))) for answer in key]
        text = "".join(f"\n{word} {word} *{word}" for words in answers for word in words)
        body = {"model": self.model, "prompt": text, "add_special_tokens": False, "return_token_strs": True}
        # It stands beside `/v1`.
        data = await self.endpoint.ask("/../tokenize", 1 << 16, body) or {}
        columns = [data.get(name) for name in ("tokens", "token_strs")]
        ids, texts = (column if isinstance(column, list) else [] for column in columns)
        spelled = [(id_, str(text).strip("\u0120\u2581 ")) for id_, text in zip(ids, texts, strict=False)]
        found = [{id_ for id_, word in spelled if word in words and isinstance(id_, int)} for words in answers]
        self.ids[key] = sorted(set().union(*found)) if all(found) else []
        return self.ids[key]

    async def echo(self, prompt: Prompt) -> str:
        """What the text of every answer begins with: the given reply, where the server repeats it (llama.cpp does)."""
        if not (prompt.chat and prompt.reply):
            return ""
        async with self.lock:
            if self.echoes is None:
                sampling = Sampling(temperature=0.0, max_tokens=1)
                prompt_of_ours = replace(_PROBE, reply=_PROBE_REPLY)
                try:
                    (answer,) = await self.ask(
                        prompt_of_ours, sampling, lambda data: read_completions(data, sampling, 1)
                    )
                except Refusal as refusal:
                    raise Unsupported(f"{self.where} does not continue a given reply: {refusal.said}") from None
                self.echoes = answer.text.startswith(_PROBE_REPLY)
        return harmless(prompt.reply) if self.echoes else ""


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


def parse_target(target: str) -> tuple[str, str]:
    """The model and the URL of `MODEL@URL`."""
    import httpx2

    match = re.fullmatch(r"(?P<model>.*)@(?P<url>https?://.*)", target, re.DOTALL)
    model, url = (match["model"], match["url"]) if match else (target, _DEFAULT_URL)
    if match is None and ("@" in target or "://" in target):
        raise EngineError(
            "openai: the URL of the server begins with http:// or https://, as in MODEL@http://HOST:8000/v1"
        )
    if not model:
        raise EngineError("openai: say which model, as in MODEL@http://HOST:8000/v1")
    try:
        parsed = httpx2.URL(url)
    except httpx2.InvalidURL as error:
        raise EngineError(f"openai: the URL of the server is malformed: {error}") from None
    if parsed.userinfo:
        raise EngineError("openai: no user name or password in a URL, it would be recorded; use key_env")
    if not parsed.host or parsed.query or parsed.fragment:
        raise EngineError(f"openai: {url!r} is not the URL of a server; give one like http://HOST:8000/v1")
    return model, url.rstrip("/")


def parse_extra(spec: str, extra: str) -> dict[str, Any]:
    """The request fields of `extra`."""
    try:
        fields = json.loads(extra or "{}")
    except (ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict):
        raise EngineError(f'{spec}: extra is not a JSON object; write it as in extra={{"top_k": 0}}')
    if taken := sorted(filter(_OUR_FIELDS.fullmatch, fields)):
        raise EngineError(f"{spec}: extra may not set {', '.join(taken)}: the engine sets them itself")
    return fields


def served_models(data: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The entries of a list of models, by name."""
    models = data.get("data")
    entries = [model for model in models if isinstance(model, dict)] if isinstance(models, list) else []
    return {model["id"]: model for model in entries if isinstance(model.get("id"), str)}


def context_length_of(card: Mapping[str, Any]) -> int | None:
    """The context of one sequence, under the name that vLLM, llama.cpp, Groq or OpenRouter give it."""
    meta = card.get("meta")
    lengths = [card.get(name) for name in ("max_model_len", "context_window", "context_length")]
    lengths.append(meta.get("n_ctx") if isinstance(meta, dict) else None)
    return next((length for length in lengths if isinstance(length, int) and length > 0), None)
