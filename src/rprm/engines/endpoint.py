"""JSON over HTTP with the official `openai` client: the key, what is worth another try, and whose fault a failure is.

The client retries; answers are read within its attempts, so that one of no use is asked for again as a lost one is.
"""

from __future__ import annotations

import asyncio
import codecs
import json
import logging
import os
import re
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from http.cookiejar import DefaultCookiePolicy
from typing import TYPE_CHECKING, Annotated, Any, TypeVar
from urllib.parse import urlsplit

from pydantic import Field
from pydantic_core import from_json

from rprm.errors import EngineError, EngineUnavailable, RequestRefused
from rprm.showing import KEYS, without_keys

if TYPE_CHECKING:
    import httpx2
    import openai

logger = logging.getLogger(__name__)
T = TypeVar("T")
Json = dict[str, Any]
Timeout = Annotated[float, Field(ge=0.001, le=1e6)]  # seconds that a whole answer may take
_Lengths = tuple[int | None, int | None]  # of a prompt and of the context, as far as told
#: Path, body (None: GET), bytes of an answer that are read at most, and what makes the reader of its events.
_Request = tuple[str, Json | None, int, Callable[[], Any] | None]

_ERROR_BYTES, _ERROR_CHARACTERS = 1 << 16, 400  # of an error body, those read and those shown
_GARBLED = 3  # answers that are `Garbled`: then they are like that
_MOST = 1 << 31  # things that a server can count; a larger number is none
_ERROR_EVENT = re.compile(rb"event: ?error\s*\Z")
_AGAIN = "run the same command again"
_DOWN = f"check that the server runs, then {_AGAIN}"
_BUSY = (408, 409, 425, 429, 503, 529)  # statuses that say nothing against the request
_LOOPBACK = re.compile(r"(.+\.)?localhost|127(\.\d{1,3}){3}|::1")
#: The lengths of context and prompt in a refusal of vLLM, OpenAI, SGLang, llama.cpp or TGI. Where vLLM stopped counting
#: the prompt, it says "at least".
_CONTEXT = re.compile(
    r"(?:context (?:length|size|window)|max_model_len)\D{0,40}?(\d+)|max_new_tokens\W+must be <= (\d+)"
)
_PROMPT = re.compile(
    r"(?<!at least )(?<!\d)(\d+) (?:tokens )?(?:in the (?:messages|prompt)|in your prompt|input tokens|from the input|"
    r"`inputs` tokens)"
)
_CONTEXT_CODES = ("context_length_exceeded", "exceed_context_size_error")
#: The first character of a spelled control token: ChatML, Llama, DeepSeek, Mistral, Gemma, T5's kind.
_CONTROL_TOKEN = re.compile(
    r"<(?=\|[^<>|]{1,64}\|>|\|[a-z_]{1,32}>|[a-z_]{1,32}\|>|\uff5c[^<>\uff5c]{1,64}\uff5c>|/?s>|<?/?SYS>"
    r"|(?:bos|eos|pad|unk|mask|sep|cls)>|(?:start|end)_of_(?:turn|image|text)>|extra_(?:id_)?\d+>|unused\d+>)"
    r"|\[(?=\|[^\[\]|]{1,64}\|\]|[gs]MASK\]|/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_RESULTS)\]"
    r"|(?:TOOL_CALLS|IMG|PREFIX|SUFFIX|MIDDLE)\])"
)
#: Reads the answer that begins in this task.
_receive: ContextVar[Callable[[httpx2.Response], Awaitable[None]]] = ContextVar("receive")


class Transient(Exception):
    """A failure that may pass."""


class Garbled(Transient):
    """An answer that may well be like that each time: it is asked for three times, whatever `max_retries` says."""


class _Busy(Transient):
    """The server has too much to do, whatever is asked of it."""


class Refusal(RequestRefused):
    """The server refuses a request: what it `said`, its error `code`, and the lengths of a context too short."""

    said: str
    code: str | None
    context: _Lengths | None


@dataclass(eq=False, repr=False)
class Endpoint:
    """An HTTP endpoint that answers JSON: `url` comes before every path, `subject` names it (docs/endpoints.md)."""

    url: str
    subject: str
    timeout: float = 600.0
    max_retries: int = 6
    key_env: str = "OPENAI_API_KEY"
    send_key_over_http: bool = False

    def __post_init__(self) -> None:
        try:
            urlsplit(self.url).port  # noqa: B018  # it is checked where it is read
        except ValueError as error:
            raise EngineError(f"{self.subject}: the URL of the server is malformed: {error}") from None
        self._client: openai.AsyncOpenAI | None = None
        self._reached = False
        self._num_answers = 0
        self._answered: _Request | None = None  # the first one
        self._models: Json = {}  # by path, as the first answer called it

    def open(self) -> None:
        """Read the key and make the client; `EngineError` where the key or the URL is malformed."""
        import httpx2
        import openai

        key = os.environ.get(self.key_env, "").strip()
        if not (key.isascii() and key.isprintable()) or " " in key:
            raise EngineError(f"the environment variable {self.key_env} does not hold a key: it has odd characters")
        self.key_advice = f"put its key into the environment variable {self.key_env}, or name another: key_env=NAME"
        try:
            url = httpx2.URL(self.url)
        except httpx2.InvalidURL as error:
            raise EngineError(f"{self.subject}: the URL of the server is malformed: {error}") from None
        is_local = _LOOPBACK.fullmatch(url.host) is not None
        if key and url.scheme == "http" and not (is_local or self.send_key_over_http):
            key = ""
            self.key_advice = (
                f"the key in {self.key_env} is not sent over unencrypted http: use https, a tunnel to localhost, "
                "or send_key_over_http=true on a network you trust"
            )
            logger.warning("%s: %s", self.url, self.key_advice)
        headers = os.environ.get("OPENAI_CUSTOM_HEADERS", "").split()  # The client's own: names and values.
        KEYS.update([key, *(word for word in headers if not word.endswith(":"))])
        self._headers = {} if key else {"Authorization": openai.Omit()}
        # Servers close idle connections after 5 s (uvicorn): give them up before. A proxy has no part in loopback.
        try:
            http_client = _make_client()(limits=httpx2.Limits(keepalive_expiry=4.0), trust_env=not is_local)
        except (httpx2.InvalidURL, ImportError, ValueError) as error:
            raise EngineError(f"{self.subject}: HTTPS_PROXY or ALL_PROXY names no proxy to use: {error}") from None
        http_client.cookies.jar.set_policy(DefaultCookiePolicy(allowed_domains=()))  # a flood of them stays out
        self._client = openai.AsyncOpenAI(api_key=key or "-", base_url=self.url, http_client=http_client)

    async def aclose(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    async def ask(self, path: str, limit: int, body: Json | None = None) -> Json:
        """What stands at `path`, or is answered to `body`; nothing where a server that was reached has it not."""
        try:
            return await self._tried((path, body, limit, None), dict, self.max_retries, min(20.0, self.timeout))
        except (Transient, EngineError) as failure:
            if not self._reached:
                raise EngineUnavailable(f"{self.where(path)}: {failure}; {_DOWN}") from None
            return {}

    async def models(self, path: str) -> dict[str, Json]:
        """The entries of the list of models at `path`, by name."""
        found = entries(await self.ask(path, 1 << 24), "data")
        return {model["id"]: model for model in found if isinstance(model.get("id"), str)}

    async def post(
        self, path: str, body: Json, read: Callable[[Json], T], limit: int, events: Callable[[], Any] | None = None
    ) -> T:
        """What `read` makes of the answer to `body`, of at most `limit` bytes; `Transient` is tried again.

        `events` makes what puts a streamed answer together (`openai_answers.Stream`). Raises `RequestRefused` (this
        request is refused, a `Refusal`, or fails each time while others are answered), `EngineUnavailable` (nothing is
        answered, or the server is busy each time) or `EngineError` (every such request is refused).
        """
        request = path, body, limit, events
        try:
            result = await self._tried(request, read, self.max_retries, self.timeout)
        except Transient as failure:
            is_up = False
            with suppress(Transient, EngineError):
                if self._answered and not isinstance(failure, _Busy):
                    is_up = await self._tried(self._answered, bool, 2, self.timeout)
            if not is_up:
                raise EngineUnavailable(f"{self.where(path)}: {failure}; {_DOWN}") from None
            try:
                # It may have come up again just now.
                result = await self._tried(request, read, 0, self.timeout)
            except Transient:
                what = f"{self.where(path)}: {failure}, and once more while the server answers other requests"
                raise RequestRefused(what) from None
        self._num_answers += 1
        self._answered = self._answered or request
        return result

    async def _tried(self, request: _Request, read: Callable[[Json], T], retries: int, seconds: float) -> T:
        """What `read` makes of the answer; `Transient` once the retries are used up."""
        import httpx2
        import openai

        if self._client is None:
            raise EngineError(f"{self.subject}: the engine is not started, or closed already")
        (path, body, limit, events), num_before = request, self._num_answers
        result: list[T] = []
        failure, num_garbled = Transient(), 0

        async def receive(response: httpx2.Response) -> None:
            nonlocal failure, num_garbled
            self._reached = True
            try:
                if response.is_success:
                    data = await _answer(response, limit, events)
                    self._refuse_foreign(path, data)
                    result.append(read(data))
                else:
                    failure = await self._failure(response)
            except Transient as unusable:
                num_garbled += isinstance(unusable, Garbled)
                if num_garbled == _GARBLED:
                    raise RequestRefused(f"{self.where(path)}: {_GARBLED} times {unusable}") from None
                raise httpx2.RequestError(str(unusable)) from None

        _receive.set(receive)
        send: Any = self._client.get if body is None else partial(self._client.post, content=json.dumps(body).encode())
        # A server never reached is a wrong URL more often than one that is about to come up.
        options = {"headers": self._headers, "max_retries": retries if self._reached else min(retries, 2)}
        options["timeout"] = httpx2.Timeout(seconds, connect=min(20.0, seconds))
        try:
            await send(path, cast_to=httpx2.Response, stream=True, options=options)
        except (openai.APIConnectionError, openai.APIStatusError) as error:
            cause = error.__cause__
            if isinstance(cause, httpx2.ReadTimeout | httpx2.WriteTimeout):
                # Too slow for all is not the fault of this request.
                kind = Transient if self._num_answers > num_before else _Busy
                failure = kind(f"no full answer within timeout={seconds:g} s")
            elif cause is not None:
                name = "" if type(cause) is httpx2.RequestError else f"{type(cause).__name__}: "
                failure = Transient(self.clean(f"{name}{cause}"))
            attempts = 1 + int(error.request.headers["x-stainless-retry-count"])
            raise type(failure)(f"{failure} ({attempts} attempt{'s' * (attempts > 1)})") from None
        return result[0]

    async def _failure(self, response: httpx2.Response) -> Transient:
        """What a status means that is no success: a failure that may pass, or raised."""
        content = b""
        async for chunk in response.aiter_bytes():
            if len(content := content + chunk) > _ERROR_BYTES:
                break
        response._content = content  # As `aread` leaves it, but cut.
        response.encoding = "utf-8"  # whatever its header names: some codecs of Python are none of texts
        response.headers["x-should-retry"] = "true"
        try:
            said, code, context = read_error(_parse_json(content))
        except Transient:
            said, code, context = response.text, None, None
        status, said = response.status_code, self.clean(said) or self.clean(response.reason_phrase)
        key, account = self.key_advice, f"mend the account, then {_AGAIN}"
        model = "check the model's name and that the URL ends where /chat/completions begins"
        advice = {401: key, 402: account, 403: key, 404: model, 501: "the server cannot do it"}.get(status)
        if 300 <= status < 400:
            place = self.clean(response.headers.get("location", "")) or "elsewhere"
            advice = f"it redirects to {place}; write the final URL"
        elif code == "insufficient_quota":
            advice = account
        elif status == 403 and "logprobs" in said:
            advice = None  # OpenAI forbids log-probabilities, not the model: the request is at fault.
        if advice:
            if self._num_answers and advice is not account:
                advice = f"{advice}, then {_AGAIN}"
            kind = EngineUnavailable if advice is account else EngineError
            raise kind(f"{self.subject} at {response.request.url} answered {status}: {said}; {advice}")
        # llama.cpp had a context too short a 500 once.
        if status in _BUSY or status < 300 or (status >= 500 and not (status == 500 and context)):
            waits = "".join(f", {name}: {value}" for name, value in response.headers.items() if "retry-after" in name)
            return (_Busy if status in _BUSY else Transient)(f"{status} {said}{self.clean(waits)}")
        refusal = Refusal(f"the server refused the request ({status}): {said}")
        refusal.said, refusal.code, refusal.context = said, code, context
        raise refusal

    def where(self, path: str) -> str:
        return f"{self.subject} at {self.url}{path}"

    def _refuse_foreign(self, path: str, data: Json) -> None:
        """Refuse an answer of another model, which is not the one that is asked: a gateway fell back on it."""
        model = find(data, "model")
        if model and model != (known := self._models.setdefault(path, model)):
            raise Transient(f"an answer of the model {model}, where the first was of {known}")

    def clean(self, text: str) -> str:
        """What a server said, fit to be shown: without the key, without control characters, short."""
        text = without_keys(text)[: 10 * _ERROR_CHARACTERS]
        text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
        return text if len(text) <= _ERROR_CHARACTERS else text[:_ERROR_CHARACTERS] + "..."


def _make_client() -> type[httpx2.AsyncClient]:
    """A client that reads each answer where it is sent for, and bounds the time until it begins and until it ends."""
    import httpx2

    class Client(httpx2.AsyncClient):
        async def send(self, request: httpx2.Request, **options: Any) -> httpx2.Response:
            response: httpx2.Response | None = None
            seconds = request.extensions["timeout"]["read"]

            async def trace(event: str, _: Json) -> None:
                if event == "http11.response_closed.started" and response is not None and _has_more(response):
                    await response.extensions["network_stream"].aclose()

            request.extensions |= {"trace": trace}
            try:
                async with asyncio.timeout(seconds):
                    response = await super().send(request, **options)
                async with asyncio.timeout(seconds):
                    await _receive.get()(response)
            except TimeoutError:
                raise httpx2.ReadTimeout("", request=request) from None
            finally:
                if response is not None:
                    await response.aclose()
            return response

    return Client


def _has_more(response: httpx2.Response) -> bool:
    """Whether more than the response came with it, which its connection would take for the answer to another request.

    `httpcore2` does not look; nothing public leads to what its parser holds.
    """
    found: Any = response.stream
    for name in ("_stream", "_httpcore_stream", "_stream", "_connection", "_h11_state", "trailing_data"):
        found = getattr(found, name, None)
    return bool(found and found[0])


async def _answer(response: httpx2.Response, limit: int, events: Callable[[], Any] | None) -> Json:
    """The JSON object that was answered, in one piece or in events, which the client decodes half as fast."""
    is_stream = response.headers.get("content-type", "").lower().startswith("text/event-stream")
    found = events() if is_stream and events is not None else None
    rest, size = [b""], 0
    async for chunk in response.aiter_bytes():
        size += len(chunk)
        if size > limit:
            raise Transient(f"an answer of over {limit} bytes, far more than was asked for")
        rest.append(chunk)
        if found is not None and b"\n" in chunk:
            *lines, last = b"".join(rest).removeprefix(codecs.BOM_UTF8).split(b"\n")
            rest = [last]
            if any(map(_ERROR_EVENT.match, lines)):
                raise Transient(f"an error inside the stream: {b' '.join(lines).decode('utf-8', 'replace')}")
            payloads = (line[5:].strip() for line in lines if line.startswith(b"data:"))
            if any(payload == b"[DONE]" or found.add(_parse_json(payload)) for payload in payloads if payload):
                break
    data: Json = _parse_json(b"".join(rest)) if found is None else found.whole()
    # Gateways report a failure upstream with status 200.
    if data.get("error") and not data.get("choices"):
        said, code, _ = read_error(data)
        raise Transient(f"an error inside the answer: {said}" + (f" ({code})" if code else ""))
    return data


def _parse_json(body: bytes) -> Json:
    data = None
    try:
        data = from_json(body)
    except ValueError as error:
        # The slower parser takes a byte order mark and half a surrogate pair; nothing good is nested deeply.
        with suppress(ValueError, RecursionError):
            data = None if "recursion" in str(error) else json.loads(body)
    if not isinstance(data, dict):
        raise Transient("an answer that is not a JSON object")
    return data


def read_error(data: Json) -> tuple[str, str | None, _Lengths | None]:
    """Message, code and lengths in an error body of OpenAI, vLLM, llama.cpp or FastAPI."""
    error = data.get("error", data)
    said = next((found for name in ("message", "detail", "error") if (found := find(error, name))), error)
    said = said if isinstance(said, str) else json.dumps(said)
    code, prompt, context = find(error, "code"), _PROMPT.search(said), _CONTEXT.search(said)
    num_prompt_tokens = count(error, "n_prompt_tokens") or (int(prompt[1]) if prompt else None)
    length = count(error, "n_ctx") or (int(context[1] or context[2]) if context else None)
    is_context = context or code in _CONTEXT_CODES or find(error, "type") in _CONTEXT_CODES
    return said, None if code is None else str(code), (num_prompt_tokens, length) if is_context else None


def find(value: Any, *path: str) -> Any:
    """What stands at a path of names; None where nothing does."""
    for name in path:
        value = value.get(name) if isinstance(value, dict) else None
    return value


def count(value: Any, *path: str) -> int | None:
    """The number of things at a path; None where there is none."""
    number = find(value, *path)
    return number if type(number) is int and 0 <= number <= _MOST else None


def listed(value: Any, *path: str) -> list[Any]:
    """The list at a path; empty where there is none."""
    return found if isinstance(found := find(value, *path), list) else []


def entries(value: Any, *path: str) -> list[Json]:
    """The objects of the list at a path."""
    return [entry for entry in listed(value, *path) if isinstance(entry, dict)]


def context_length_of(card: Json) -> int | None:
    """The context of one sequence, under the name that vLLM, llama.cpp, Groq or OpenRouter give it."""
    paths = (("max_model_len",), ("context_window",), ("context_length",), ("meta", "n_ctx"))
    return next((length for path in paths if (length := count(card, *path))), None)


def harmless(text: str, parts: Iterable[tuple[int, int]] | None = None) -> str:
    """The text with a zero-width space in its spelled control tokens: `<|im_end|>` in a solution ends no turn.

    `parts` are the characters [start, end) that are meant, in order; None: all.
    """
    pieces, place = [], 0
    for start, end in ((0, len(text)),) if parts is None else parts:
        pieces += [text[place:start], _CONTROL_TOKEN.sub("\\g<0>\u200b", text[start:end])]
        place = end
    return "".join(pieces) + text[place:]
