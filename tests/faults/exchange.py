"""A request to an OpenAI-compatible server, and what an honest one answers.

That depends on the prompt and the seed alone, and each text names both: an answer that reaches another request is seen.
P(Yes) depends on the prompt alone: all analyses of a step have the same.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import re
from dataclasses import dataclass
from typing import Any

from loopback import Request

from rprm.verdict import DEFAULT_MARKER

Json = dict[str, Any]
KEY = "sk-live-4f1d0c9b7e"  # of the client
PROBE = "Reply with one word: Yes"
PIECE = re.compile(rf"{re.escape(DEFAULT_MARKER)}|\s?\w+|\s?[^\w\s]|\s+")  # a token


def share(*parts: object) -> float:
    """A number in [0, 1) that depends on the parts alone."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()) / 2**64


def p_yes(prompt: str) -> float:
    return 0.05 + 0.9 * share("p", prompt)


def answer_to(body: Json) -> Json:
    """The honest answer to a request."""
    prompt = body["messages"][-1]["content"]
    if prompt == PROBE:
        text, p = "Yes", 0.9
    else:
        p = p_yes(prompt)
        answer = "Yes" if share("says", prompt, body["seed"]) < p else "No"
        case = int(share("case", prompt, body["seed"]) * 10**9)
        text = f"Case {case}: été, it adds up.\n\n{DEFAULT_MARKER} {answer}."
    content = []
    for word in PIECE.findall(text):
        space = word[: -len(word.lstrip())]
        listed = {f"{space}Yes": p * 0.98, f"{space}No": (1 - p) * 0.98, ",": 0.01}
        listed = listed if word in listed else {word: 0.9, " a": 0.05}
        top = [{"token": name, "bytes": list(name.encode()), "logprob": math.log(q)} for name, q in listed.items()]
        content.append(next(one for one in top if one["token"] == word) | {"top_logprobs": top})
    choice = {
        "index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop",
        "logprobs": {"content": content} if body.get("logprobs") else None,
    }  # fmt: skip
    usage = {"prompt_tokens": 20, "completion_tokens": len(content), "total_tokens": 20 + len(content)}
    return {"id": f"chatcmpl-{int(share(text) * 10**9)}", "model": body["model"], "choices": [choice], "usage": usage}


def events_of(answer: Json) -> list[bytes]:
    """An answer as the events of a stream: a token each, as far as they spell the text."""
    head = {name: value for name, value in answer.items() if name not in ("choices", "usage")}
    choices = answer.get("choices")
    rows: list[Any] = []
    if not isinstance(choices, list) or not all(isinstance(one, dict) for one in choices):
        rows, choices = [choices], []
    for choice in choices:
        message, logprobs = choice.get("message"), choice.get("logprobs")
        common = {name: value for name, value in choice.items() if name == "index"}
        content = message.get("content") if isinstance(message, dict) else None
        tokens = logprobs.get("content") if isinstance(logprobs, dict) else None
        pieces = PIECE.findall(content) if isinstance(content, str) else []
        others = {name: value for name, value in (message or {}).items() if name != "content"}
        rows.append([common | {"delta": others if isinstance(message, dict) else message}])
        if message and not pieces:
            rows.append([common | {"delta": {"content": content}}])
        for at, piece in enumerate(pieces):
            entry = {"content": tokens[at : at + 1]} if isinstance(tokens, list) else logprobs
            rows.append([common | {"delta": {"content": piece}, "finish_reason": None, "logprobs": entry}])
        if isinstance(tokens, list) and tokens[len(pieces) :]:
            rows.append([common | {"delta": {}, "logprobs": {"content": tokens[len(pieces) :]}}])
        rows.append([common | {"delta": {}, "finish_reason": choice.get("finish_reason")}])
    lines = [json.dumps(head | {"choices": row}) for row in rows]
    if answer.get("usage") is not None:
        lines.append(json.dumps(head | {"choices": [], "usage": answer["usage"]}))
    return [f"data: {line}\n\n".encode() for line in [*lines, "[DONE]"]]


def http(body: bytes, status: str = "200 OK", kind: str = "application/json", **headers: object) -> bytes:
    """A response; a header of the value None is left out, `_` in its name stands for a hyphen."""
    named = {"content-type": kind, "content-length": len(body)}
    named |= {name.replace("_", "-"): value for name, value in headers.items()}
    lines = "".join(f"{name}: {value}\r\n" for name, value in named.items() if value is not None)
    return f"HTTP/1.1 {status}\r\n{lines}\r\n".encode("latin-1") + body


def chunked(*pieces: bytes) -> bytes:
    """The body in chunks, without the empty one at the end."""
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces if piece)


@dataclass
class Exchange:
    """A request, what an honest server answers, and the connection."""

    request: Request
    writer: asyncio.StreamWriter
    elsewhere: str  # the URL of another server

    def __post_init__(self) -> None:
        self.is_streamed = bool(self.request.body.get("stream"))
        self.answer = answer_to(self.request.body)
        self.kind = "text/event-stream" if self.is_streamed else "application/json"

    def body(self, answer: Any = None) -> bytes:
        answer = self.answer if answer is None else answer
        if self.is_streamed and isinstance(answer, dict):
            return b"".join(events_of(answer))
        return json.dumps(answer, ensure_ascii=False).encode()

    def honest(self, **headers: object) -> bytes:
        return http(self.body(), kind=self.kind, **headers)

    async def write(self, *pieces: bytes, every: float = 0.0) -> None:
        for piece in pieces:
            self.writer.write(piece)
            await self.writer.drain()
            if every:
                await asyncio.sleep(every)

    async def reset(self) -> None:
        self.writer.transport.abort()
