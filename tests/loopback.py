"""A server on loopback that plays what it is told, and the engine against it."""

from __future__ import annotations

import asyncio
import json
import math
import queue
import threading
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from rprm.engines import Completion, Sampling
from rprm.engines.openai import OpenAIEngine
from rprm.prompts.template import Message, Prompt
from rprm.verdict import VerdictFormat

T = TypeVar("T")
VERDICT = VerdictFormat()
PROMPT = Prompt((Message("system", "Judge."), Message("user", "Is it right?")))
RAW = Prompt((Message("user", "1 + 1 ="),), chat=False)
SAMPLING = Sampling(temperature=0.95, top_p=0.9, max_tokens=64, seed=7, verdict=VERDICT)
ANSWER = f"It adds up.\n{VERDICT.marker} Yes"


@dataclass
class Request:
    method: str
    path: str
    headers: dict[str, str]
    body: dict[str, Any]


@dataclass
class Reply:
    """`body` is sent as JSON, or as it is where it is bytes. `length` can lie about how much there is; `raw` is all
    that is sent, head and body, and leaves the connection open."""

    body: Any = None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    length: int | None = None
    raw: bytes | None = None


#: Answers a request; for a reply that is no plain answer it writes to the stream itself and returns None.
Play = Callable[[Request, asyncio.StreamWriter], Awaitable[Reply | None]]


class Server:
    """Counts what is asked of it; `probes` and `models` are answered apart from `play`, which sees the rest."""

    def __init__(self, play: Play) -> None:
        self.play = play
        self.probe: Callable[[Request], Reply] = lambda request: Reply(chat_answer("Yes", n=1, logprobs=request.body))
        #: False: `play` sees the probes too, as when the server is down for all.
        self.apart = True
        self.models: Reply = Reply({"data": [{"id": "m", "max_model_len": 4096}]})
        #: How many requests of a path are answered with 503 first.
        self.busy: Counter[str] = Counter()
        self.requests: list[Request] = []
        self.probes: list[Request] = []
        self.active = self.most_active = 0
        self.disconnected = asyncio.Event()
        self.listener: asyncio.Server
        self.connections: dict[asyncio.Task[None], asyncio.StreamWriter] = {}

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.connections[task] = writer
        try:
            while request := await self._read(reader):
                reply = await self._reply(request, reader, writer)
                if reply is None:
                    break
                if reply.raw is not None:
                    writer.write(reply.raw)
                    await writer.drain()
                    continue
                body = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
                length = len(body) if reply.length is None else reply.length
                headers = {"content-type": "application/json", "content-length": str(length)} | reply.headers
                head = f"HTTP/1.1 {reply.status} X\r\n" + "".join(f"{k}: {v}\r\n" for k, v in headers.items())
                writer.write(head.encode() + b"\r\n" + body)
                await writer.drain()
                if reply.length is not None:
                    break
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            del self.connections[task]
            writer.close()

    async def end(self) -> None:
        for writer in self.connections.values():
            writer.transport.abort()
        await asyncio.gather(*self.connections)

    async def _read(self, reader: asyncio.StreamReader) -> Request | None:
        head = await reader.readuntil(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        method, path, _ = first.split(" ")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines if line)}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        return Request(method, path, headers, json.loads(body) if body else {})

    async def _reply(
        self, request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> Reply | None:
        if self.busy[request.path]:
            self.busy[request.path] -= 1
            return error(503, "busy")
        if request.path == "/v1/models":
            return self.models
        asked = request.body.get("messages", [{"content": request.body.get("prompt")}])[-1]["content"]
        if asked == "Reply with one word: Yes" and self.apart:
            self.probes.append(request)
            return self.probe(request)
        self.requests.append(request)
        self.active += 1
        self.most_active = max(self.most_active, self.active)
        playing = asyncio.ensure_future(self.play(request, writer))
        watching = asyncio.ensure_future(reader.read(1))
        try:
            await asyncio.wait({playing, watching}, return_when=asyncio.FIRST_COMPLETED)
            if not playing.done() and (watching.exception() is not None or watching.result() == b""):
                self.disconnected.set()
                playing.cancel()
                return None
            return await playing
        finally:
            self.active -= 1
            watching.cancel()
            await asyncio.gather(watching, playing, return_exceptions=True)


@asynccontextmanager
async def running(play: Play, port: int = 0) -> AsyncIterator[tuple[Server, str]]:
    server = Server(play)
    server.listener = await asyncio.start_server(server.serve, "127.0.0.1", port, limit=1 << 22)
    try:
        yield server, f"http://127.0.0.1:{server.listener.sockets[0].getsockname()[1]}/v1"
    finally:
        server.listener.close()
        await server.end()


@contextmanager
def serving(play: Play, port: int = 0) -> Iterator[tuple[Server, str]]:
    """The same in a thread of its own, for what runs an event loop itself: a command."""
    started: queue.Queue[tuple[Server, str, asyncio.AbstractEventLoop, asyncio.Event]] = queue.Queue()

    async def serve() -> None:
        async with running(play, port) as (server, url):
            ended = asyncio.Event()
            started.put((server, url, asyncio.get_running_loop(), ended))
            await ended.wait()

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    server, url, loop, ended = started.get(timeout=30)
    try:
        yield server, url
    finally:
        loop.call_soon_threadsafe(ended.set)
        thread.join(30)


def with_server(
    play: Play,
    use: Callable[[Server, OpenAIEngine], Awaitable[T]],
    *,
    setup: Callable[[Server], None] = lambda s: None,
    start: bool = True,
    **options: Any,
) -> T:
    """Run `use` with an engine whose waits are short. The key comes from a variable that no machine sets."""

    async def run() -> T:
        # A fault of the engine fails the test; it does not hang it.
        async with asyncio.timeout(60), running(play) as (server, url):
            setup(server)
            engine = OpenAIEngine(f"m@{url}", **({"key_env": "RPRM_TEST_KEY"} | options))
            try:
                if start:
                    await engine.start()
                return await use(server, engine)
            finally:
                await engine.aclose()

    return asyncio.run(run())


def tokens_of(text: str) -> list[str]:
    """Words with the space before them, as tokenizers cut."""
    return ["".join(piece) for piece in zip([""] + [" "] * 99, text.split(" "), strict=False)]


def chat_tokens(text: str, p_yes: float = 0.8, p_no: float = 0.15) -> list[dict[str, Any]]:
    """Every token with three alternatives; at Yes and No those are both answers and a comma."""
    content = []
    for token in tokens_of(text):
        space = " " if token.startswith(" ") else ""
        top = {f"{space}Yes": p_yes, f"{space}No": p_no, ",": 1.0 - p_yes - p_no}
        if token.strip() not in ("Yes", "No"):
            top = {token: 0.9, ".": 0.1}
        entries = [
            {"token": name, "bytes": list(name.encode()), "logprob": math.log(p) if p else -9999.0}
            for name, p in top.items()
        ]
        own = next(entry for entry in entries if entry["token"] == token)
        content.append(own | {"top_logprobs": entries})
    return content


def chat_answer(
    *texts: str, n: int = 1, logprobs: dict[str, Any] | None = None, finish_reason: str = "stop", **usage: Any
) -> dict[str, Any]:
    """An answer with these texts, the last one again up to `n`; with log-probabilities if the request, where it is
    given, asks for them."""
    texts += (texts[-1],) * (n - len(texts))
    choices = []
    for index, text in enumerate(texts):
        choice: dict[str, Any] = {"index": index, "finish_reason": finish_reason}
        choice["message"] = {"role": "assistant", "content": text}
        if logprobs is None or logprobs.get("logprobs"):
            choice["logprobs"] = {"content": chat_tokens(text)}
        choices.append(choice)
    total = sum(len(tokens_of(text)) for text in texts)
    return {"choices": choices, "usage": {"prompt_tokens": 20, "completion_tokens": total} | usage}


def playing(*replies: Reply) -> Play:
    """One reply after the other, the last one again and again."""
    left = list(replies)

    async def play(request: Request, writer: asyncio.StreamWriter) -> Reply | None:
        return left.pop(0) if len(left) > 1 else left[0]

    return play


async def answering(request: Request, writer: asyncio.StreamWriter) -> Reply | None:
    return Reply(chat_answer(ANSWER, n=request.body.get("n", 1), logprobs=request.body))


async def hanging(request: Request, writer: asyncio.StreamWriter) -> Reply | None:
    await asyncio.sleep(60)
    return None


def error(status: int, message: str, **more: Any) -> Reply:
    return Reply({"error": {"message": message, **more}}, status)


async def generate(server: Server, engine: OpenAIEngine) -> Completion:
    return await engine.generate(PROMPT, SAMPLING)


def events(*texts: str, logprobs: dict[str, Any], usage: bool = True, done: bool = True, finish: bool = True) -> bytes:
    """The answer with these texts, interleaved, a token an event."""
    streams = [chat_tokens(text) for text in texts]
    lines = [{"choices": [{"index": i, "delta": {"role": "assistant"}}]} for i in range(len(texts))]
    for position in range(max(len(tokens) for tokens in streams)):
        for index, tokens in enumerate(streams):
            if position < len(tokens):
                token = tokens[position]
                choice: dict[str, Any] = {"index": index, "delta": {"content": token["token"]}, "finish_reason": None}
                if logprobs.get("logprobs"):
                    choice["logprobs"] = {"content": [token]}
                lines.append({"choices": [choice]})
    if finish:
        lines += [{"choices": [{"index": i, "delta": {}, "finish_reason": "stop"}]} for i in range(len(texts))]
    if usage:
        lines.append({"choices": [], "usage": {"prompt_tokens": 20, "completion_tokens": sum(map(len, streams))}})
    body = b": a comment\n\n" + b"".join(b"data: " + json.dumps(line).encode() + b"\r\n\r\n" for line in lines)
    return body + (b"data: [DONE]\n\n" if done else b"")


def streaming(*texts: str, **options: Any) -> Play:
    async def play(request: Request, writer: asyncio.StreamWriter) -> Reply | None:
        body = events(*texts[: request.body.get("n", 1)], logprobs=request.body, **options)
        return Reply(body, headers={"content-type": "text/event-stream; charset=utf-8"})

    return play


def numbered(most: int = 99) -> Play:
    """Texts that tell the request's seed and the number of the choice; more than `most` at once are refused."""

    async def play(request: Request, writer: asyncio.StreamWriter) -> Reply | None:
        n = request.body.get("n", 1)
        if n > most:
            return error(400, f"Field 'n': Value must be between 1 <= value <= {most}, but got {n}")
        texts = [f"seed {request.body['seed']} choice {index}" + " more" * index for index in range(n)]
        return Reply(chat_answer(*texts, logprobs=request.body, prompt_tokens_details={"cached_tokens": 16}))

    return play


def samples(engine: OpenAIEngine, seeds: range, **changes: Any) -> list[asyncio.Task[Completion]]:
    return [asyncio.create_task(engine.generate(PROMPT, replace(SAMPLING, seed=seed, **changes))) for seed in seeds]


def completions_answer(text: str, tokens: list[str], tops: list[dict[str, float] | None]) -> dict[str, Any]:
    """The layout of /completions: parallel lists."""
    own = [None if top is None else top.get(token, -3.0) for token, top in zip(tokens, tops, strict=True)]
    logprobs = {"tokens": tokens, "token_logprobs": own, "top_logprobs": tops, "text_offset": [0] * len(tokens)}
    return {"choices": [{"index": 0, "text": text, "finish_reason": "stop", "logprobs": logprobs}]}


def continuing(text: str, *, echoes: bool) -> Play:
    """A server that continues the reply given to it, repeating it at the head of its texts or not."""

    async def play(request: Request, writer: asyncio.StreamWriter) -> Reply | None:
        given = request.body["messages"][-1]
        assert given["role"] == "assistant"
        answer = chat_answer(text, n=request.body.get("n", 1), logprobs=request.body)
        for choice in answer["choices"] if echoes else ():
            choice["message"]["content"] = given["content"] + choice["message"]["content"]
        return Reply(answer)

    return play


def token(text: str | bytes, logprob: Any = -0.1, top: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    raw = text.encode() if isinstance(text, str) else text
    entries = [{"token": name, "logprob": value, "bytes": None} for name, value in (top or {}).items()]
    entry = {"token": raw.decode("utf-8", "replace"), "bytes": list(raw), "logprob": logprob, "top_logprobs": entries}
    return entry | more
