"""What is said of an OpenAI-compatible server in a spec, and what is learned of it."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx

from rprm.engines.base import Sampling
from rprm.engines.endpoint import Endpoint
from rprm.errors import EngineError
from rprm.verdict import VerdictFormat

_DEFAULT_URL = "https://api.openai.com/v1"
#: Tokens of the first answer, and for servers that take no fewer, or whose models think first.
PROBE_TOKENS, MORE_PROBE_TOKENS = 4, 1024
#: Numbers of alternatives per token to try, from the most that vLLM and OpenAI give to the most some others do.
_TOP_LOGPROBS_STEPS = (20, 5, 0)
#: Request fields that a server may not take; it then does as it does without them.
_OPTIONAL = ("seed", "stream_options", "top_p", "temperature", "add_special_tokens")
#: Request fields that the engine sets: none of them may come from `extra`, where it would belie the manifest.
_OUR_FIELDS = re.compile(
    "model|messages|prompt|temperature|top_p|max_tokens|max_completion_tokens|seed|stop|logprobs|top_logprobs|n|"
    "logprob_token_ids|stream|stream_options|add_special_tokens|add_generation_prompt|continue_final_message|echo"
)


@dataclass
class Route:
    """One of the two ways to ask, and what has been learned about it."""

    path: str
    top_logprobs: int
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
    probe_tokens: int = PROBE_TOKENS
    num_bad: int = 0
    learned: bool = False
    #: Whether answers begin with the reply that was given; None until it is learned.
    echoes: bool | None = None
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    def ids_of(self, verdict: VerdictFormat | None) -> list[int]:
        """The ids to ask for; none where the likeliest tokens are asked for."""
        return self.ids.get((verdict.yes, verdict.no), []) if self.takes_ids and verdict is not None else []

    async def learn_ids(self, endpoint: Endpoint, model: str, verdict: VerdictFormat | None) -> list[int]:
        """Learn all forms of the answers from one text, so that either all are known or none (vLLM's `/tokenize`).

        A tokenizer that puts a space before every text (sentencepiece) has its tokens without one only after a line end
        or a sign.
        """
        if not self.takes_ids or verdict is None or (key := (verdict.yes, verdict.no)) in self.ids:
            return self.ids_of(verdict)
        answers = [dict.fromkeys(map(str.strip, VerdictFormat.forms(verdict, answer))) for answer in key]
        text = "".join(f"\n{word} {word} *{word}" for words in answers for word in words)
        body = {"model": model, "prompt": text, "add_special_tokens": False, "return_token_strs": True}
        # It stands beside `/v1`.
        data = await endpoint.ask("/../tokenize", 1 << 16, body) or {}
        columns = [data.get(name) for name in ("tokens", "token_strs")]
        ids, texts = (column if isinstance(column, list) else [] for column in columns)
        spelled = [(id_, str(text).strip("\u0120\u2581 ")) for id_, text in zip(ids, texts, strict=False)]
        found = [{id_ for id_, word in spelled if word in words and isinstance(id_, int)} for words in answers]
        self.ids[key] = sorted(set().union(*found)) if all(found) else []
        return self.ids[key]

    def give_up(self, said: str) -> bool:
        """Stop using the feature that the server's refusal of the probe names; False where it names none."""
        if self.takes_ids and "logprob" in said.lower():
            self.takes_ids = False
        elif self.top_logprobs and "logprob" in said.lower():
            self.top_logprobs = next(step for step in _TOP_LOGPROBS_STEPS if step < self.top_logprobs)
        elif self.probe_tokens < MORE_PROBE_TOKENS and re.search(
            r"output limit|(higher|minimum).*tokens|tokens.*>=", said
        ):
            self.probe_tokens = MORE_PROBE_TOKENS
        elif self.length_field and re.search(r"max_(completion_)?tokens", said):
            self.length_field = "max_completion_tokens" if self.length_field == "max_tokens" else None
        else:
            named = (name for name in _OPTIONAL if re.search(rf"\b{name}\b", said, re.IGNORECASE))
            refused = next((name for name in named if name not in self.left_out), None)
            if refused is None:
                return False
            self.left_out.add(refused)
        return True

    def details(self) -> dict[str, Any]:
        """What a manifest says of it."""
        details: dict[str, Any] = {"api": self.path[1:], "top_logprobs": self.top_logprobs}
        if not_sent := sorted(self.left_out - {"stream_options", "add_special_tokens"}):
            details["not_sent"] = not_sent
        if self.length_field != "max_tokens":
            details["length_field"] = self.length_field
        return details

    def limit(self, sampling: Sampling, n: int) -> int:
        """Bytes that an honest answer stays below: so many for a token, as streamed, and for each alternative."""
        top_logprobs = self.top_logprobs if sampling.verdict is not None else 0
        max_tokens = sampling.max_tokens if self.length_field else 1 << 17
        return (1 << 20) + n * max_tokens * (1024 + 256 * top_logprobs)


def parse_target(target: str) -> tuple[str, str]:
    match = re.fullmatch(r"(?P<model>.*)@(?P<url>https?://.*)", target, re.DOTALL)
    model, url = (match["model"], match["url"]) if match else (target, _DEFAULT_URL)
    if match is None and ("@" in target or "://" in target):
        raise EngineError(
            "openai: the URL of the server begins with http:// or https://, as in MODEL@http://HOST:8000/v1"
        )
    if not model:
        raise EngineError("openai: say which model, as in MODEL@http://HOST:8000/v1")
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise EngineError(f"openai: the URL of the server is malformed: {error}") from None
    if parsed.userinfo:
        raise EngineError("openai: no user name or password in a URL, it would be recorded; use key_env")
    if not parsed.host or parsed.query or parsed.fragment:
        raise EngineError(f"openai: {url!r} is not the URL of a server; give one like http://HOST:8000/v1")
    return model, url.rstrip("/")


def parse_extra(spec: str, extra: str) -> dict[str, Any]:
    if not extra:
        return {}
    try:
        fields = json.loads(extra)
    except (ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict):
        raise EngineError(f'{spec}: extra is not a JSON object; write it as in extra={{"top_k": 0}}')
    if taken := sorted(filter(_OUR_FIELDS.fullmatch, fields)):
        raise EngineError(f"{spec}: extra may not set {', '.join(taken)}: the engine sets them itself")
    return fields


def model_card(model: str, served: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """What the server says of the model. A server of one model (llama.cpp) takes any name for it."""
    return served.get(model) or (next(iter(served.values())) if len(served) == 1 else {})


def context_length_of(card: Mapping[str, Any]) -> int | None:
    """The context of one sequence, under the name that vLLM, llama.cpp, Groq or OpenRouter give it."""
    meta = card.get("meta")
    lengths = [card.get(name) for name in ("max_model_len", "context_window", "context_length")]
    lengths.append(meta.get("n_ctx") if isinstance(meta, dict) else None)
    return next((length for length in lengths if isinstance(length, int) and length > 0), None)
