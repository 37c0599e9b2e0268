"""JSON over HTTP with the official `openai` client: the key, what is worth another try, and whose fault a failure is.

The client retries what fails before an answer begins (statuses, Retry-After, lost connections, timeouts). Answers that
are no use are asked for again here.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import json
import logging
import os
import random
import re
from collections.abc import AsyncIterator, Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from rprm.errors import EngineError, EngineUnavailable, RequestRefused

if TYPE_CHECKING:
    import httpx2
    import openai
    from pydantic import SecretStr

logger = logging.getLogger(__name__)
T = TypeVar("T")

#: Bytes of an error body that are read, and characters of it that are shown.
_ERROR_BYTES, _ERROR_CHARACTERS = 1 << 16, 400
#: Statuses that say nothing against the request: the server is busy.
_BUSY = (408, 409, 429, 503, 529)
_LOOPBACK = re.compile(r"(.+\.)?localhost|127(\.\d{1,3}){3}|::1")
#: The length of the context in a refusal of vLLM, OpenAI, SGLang, llama.cpp or TGI, and that of the prompt. vLLM stops
#: counting a prompt where it is too long, and then says "at least".
_CONTEXT = re.compile(
    r"(?:context (?:length|size|window)|max_model_len)\D{0,40}?(\d+)|max_new_tokens\W+must be <= (\d+)"
)
_PROMPT = re.compile(
    r"(?<!at least )(?<!\d)(\d+) (?:tokens )?(?:in the (?:messages|prompt)|in your prompt|input tokens|from the input|"
    r"`inputs` tokens)"
)


class Transient(Exception):
    """A failure that may pass.

    `is_busy`: the server has too much to do, whatever was asked; `is_slow`: the answer took too long.
    """

    def __init__(self, reason: str, *, is_busy: bool = False, is_slow: bool = False) -> None:
        super().__init__(reason)
        self.is_busy, self.is_slow = is_busy, is_slow


class Refusal(RequestRefused):
    """The server refuses a request.

    `said`: its own words, cleaned; `code`: its error code, if it gave one; `context`: where it says that the context is
    too short, the lengths of the prompt and of the context, as far as it tells them.
    """

    said = ""
    code: str | None = None
    context: tuple[int | None, int | None] | None = None


class Endpoint:
    """An HTTP endpoint that answers JSON.

    Args:
        url: what every path is appended to.
        subject: what is asked for, to begin messages with.
        timeout: seconds for an answer to begin, and as many for the rest of it.
        max_retries: further attempts after a failure that may pass.
        key_env: name of the environment variable that holds the key.
        send_key_over_http: send the key even unencrypted to another machine.
    """

    #: Seconds before an answer of no use is asked for again, doubled each time up to the cap.
    backoff_base, backoff_cap = 0.5, 30.0

    def __init__(
        self, url: str, subject: str, *, timeout: float, max_retries: int, key_env: str, send_key_over_http: bool
    ) -> None:
        self.url = url
        self.subject = subject
        self.timeout = timeout
        self.max_retries = max_retries
        self.key_env = key_env
        self.send_key_over_http = send_key_over_http
        self._client: openai.AsyncOpenAI | None = None
        self._key: SecretStr | None = None
        self._key_withheld = False
        self._reached = False
        #: The first request that was answered, and the number of all.
        self._answered: tuple[str, bytes, int, Callable[[], Any] | None] | None = None
        self._num_answers = 0

    def open(self) -> None:
        """Read the key and make the client.

        Raises:
            EngineError: the environment variable holds something that is no key.
        """
        import httpx2
        import openai
        from pydantic import SecretStr

        key = os.environ.get(self.key_env, "").strip()
        if not (key.isascii() and key.isprintable()) or " " in key:
            raise EngineError(
                f"the environment variable {self.key_env} does not hold a key: it has spaces or odd characters"
            )
        url = httpx2.URL(self.url)
        is_local = _LOOPBACK.fullmatch(url.host) is not None
        self._key_withheld = bool(key) and url.scheme == "http" and not (is_local or self.send_key_over_http)
        if self._key_withheld:
            logger.warning("%s: the key in %s is not sent over unencrypted http", self.url, self.key_env)
            key = ""
        self._key = SecretStr(key) if key else None
        http_client = httpx2.AsyncClient(
            # Servers close idle connections after 5 s (uvicorn): give them up before.
            limits=httpx2.Limits(keepalive_expiry=4.0),
            # A proxy has no part in loopback.
            trust_env=not is_local,
            event_hooks={"response": [self._on_response]},
        )
        self._client = openai.AsyncOpenAI(api_key=key or "-", base_url=self.url, http_client=http_client)

    async def aclose(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    async def ask(self, path: str, limit: int, body: dict[str, Any] | None = None) -> dict[str, Any] | None:
        """What stands at `path`, or is answered to `body` there, retried as in `post`; None where it cannot be had.

        Raises:
            EngineUnavailable: no request has ever reached the server.
        """
        content = None if body is None else json.dumps(body).encode()
        try:
            return await self._tried(path, content, dict, limit, seconds=min(20.0, self.timeout))
        except Transient as failure:
            if not self._reached:
                raise self._unavailable(path, failure) from None
        except EngineError:
            if not self._reached:
                raise
        return None

    async def post(
        self,
        path: str,
        body: dict[str, Any],
        read: Callable[[dict[str, Any]], T],
        limit: int,
        events: Callable[[], Any] | None = None,
    ) -> T:
        """What `read` makes of the answer to `body`, retrying what may pass.

        Args:
            read: raises `Transient` for an answer that it cannot use.
            limit: bytes of an answer that are read at most.
            events: makes what puts a streamed answer together (`openai_answers.Stream`).

        Raises:
            Refusal: the server refuses this request, whatever else it does.
            RequestRefused: the retries are used up, but the server answers another request.
            EngineUnavailable: the retries are used up, and the server answers nothing, or is busy.
            EngineError: the server refuses every such request.
        """
        content = json.dumps(body).encode()
        num_before = self._num_answers
        try:
            result = await self._tried(path, content, read, limit, events)
        except Transient as failure:
            # Too slow for all is not the fault of this request.
            is_busy = failure.is_busy or (failure.is_slow and self._num_answers == num_before)
            if is_busy or not await self._is_up():
                raise self._unavailable(path, failure) from None
            try:
                # It may have come up again just now: once more.
                result = await self._tried(path, content, read, limit, events, retries=0)
            except Transient as last:
                said = self.clean(str(last))
                raise RequestRefused(
                    f"{self.where(path)}: {said}, each time, while the server answers other requests"
                ) from None
        self._num_answers += 1
        self._answered = self._answered or (path, content, limit, events)
        return result

    async def _is_up(self) -> bool:
        """Whether the server answers the first request again that it answered; at the start, that is ours."""
        if self._answered is None:
            return False
        path, content, limit, events = self._answered
        try:
            return await self._tried(path, content, lambda data: "choices" in data, limit, events, retries=2)
        except (Transient, EngineError):
            return False

    async def _tried(
        self,
        path: str,
        content: bytes | None,
        read: Callable[[dict[str, Any]], T],
        limit: int,
        events: Callable[[], Any] | None = None,
        *,
        retries: int | None = None,
        seconds: float | None = None,
    ) -> T:
        """What `read` makes of the answer to `content` (None: of what stands at `path`).

        Raises:
            Transient: the retries are used up.
        """
        import anyio
        import httpx2
        import openai

        if self._client is None:
            raise EngineError(f"{self.subject}: the engine is not started, or closed already")
        retries = self.max_retries if retries is None else retries
        seconds = self.timeout if seconds is None else seconds
        send: Any = self._client.get if content is None else functools.partial(self._client.post, content=content)
        options = {
            "headers": {} if self._key else {"Authorization": openai.Omit()},
            "timeout": httpx2.Timeout(seconds, connect=min(20.0, seconds)),
            # A server never reached is a wrong URL more often than one that is about to come up.
            "max_retries": retries if self._reached else min(retries, 2),
        }
        for attempt in itertools.count():
            stream = None
            try:
                stream = await send(
                    path, cast_to=object, stream=True, stream_cls=openai.AsyncStream[object], options=options
                )
                async with asyncio.timeout(seconds), stream:
                    return read(await _answer(stream.response, limit, events))
            except openai.APIStatusError as error:
                raise self._failure(error.response) from None
            except Transient as error:
                failure = error
            except (openai.APIConnectionError, httpx2.RequestError, OSError, anyio.EndOfStream) as error:
                # The client names as the cause what it ran into.
                cause = (error.__cause__ if isinstance(error, openai.APIConnectionError) else None) or error
                is_slow = isinstance(cause, TimeoutError | httpx2.ReadTimeout | httpx2.WriteTimeout)
                lost = f"{type(cause).__name__}: {cause}".rstrip(": ")
                failure = Transient(
                    f"no full answer within timeout={seconds:g} s" if is_slow else lost, is_slow=is_slow
                )
            if stream is None or attempt >= retries:
                raise failure from None
            wait = self._backoff(attempt)
            logger.info("%s: %s; trying again in %.1f s", self.where(path), self.clean(str(failure)), wait)
            await asyncio.sleep(wait)
        raise AssertionError("endless")

    def _backoff(self, attempt: int) -> float:
        return min(self.backoff_cap, self.backoff_base * 2.0 ** min(attempt, 60)) * random.uniform(0.5, 1.0)

    async def _on_response(self, response: httpx2.Response) -> None:
        """Read a failure, and tell the client whether to try again."""
        self._reached = True
        if not response.is_success:
            _cut(response, _ERROR_BYTES)
            await response.aread()
            await response.aclose()
            response.headers["x-should-retry"] = str(isinstance(self._failure(response), Transient)).lower()

    def _failure(self, response: httpx2.Response) -> Exception:
        """What a status means that is no success."""
        status = response.status_code
        try:
            data = _parse_json(response.content)
        except Transient:
            data = {"error": response.text}
        said, code = error_of(data)
        context = context_of(data)
        said = self.clean(said) or response.reason_phrase
        where = f"{self.subject} at {response.request.url}"
        what = f"{where} answered {status}: {said}"
        # OpenAI forbids log-probabilities, not the model, with a 403: the request is at fault.
        if status == 401 or (status == 403 and "logprobs" not in said):
            return EngineError(f"{what}; {self._key_advice()}")
        if status == 402 or code == "insufficient_quota":
            return EngineUnavailable(f"{what}; mend the account, then run the same command again to go on")
        if status == 404:
            return EngineError(f"{what}; check the model's name and that the URL ends where /chat/completions begins")
        # llama.cpp had it a 500 once.
        is_context = context is not None and status in (400, 413, 422, 500)
        if status in _BUSY or (status >= 500 and status != 501 and not is_context):
            return Transient(f"{status} {said}", is_busy=status in _BUSY)
        if 400 <= status < 500 or is_context:
            refusal = Refusal(f"the server refused the request ({status}): {said}")
            refusal.said, refusal.code, refusal.context = said, code, context
            return refusal
        if 300 <= status < 400:
            location = self.clean(response.headers.get("location", "elsewhere"))
            return EngineError(f"{where} redirects to {location}; write the final URL")
        return EngineError(what)

    def _unavailable(self, path: str, failure: Transient) -> EngineUnavailable:
        return EngineUnavailable(
            f"{self.where(path)}: {self.clean(str(failure))}; check that the server runs, then run the same command "
            "again to go on"
        )

    def _key_advice(self) -> str:
        if self._key_withheld:
            return (
                f"the key in {self.key_env} was not sent because the URL is unencrypted: use https, or a tunnel to "
                "localhost, or send_key_over_http=true on a network you trust"
            )
        if self._key:
            return f"check the key in the environment variable {self.key_env}"
        return f"put the key into the environment variable {self.key_env}, or name another with key_env=NAME"

    def where(self, path: str) -> str:
        return f"{self.subject} at {self.url}{path}"

    def clean(self, text: str) -> str:
        """What a server said, fit to be shown: without the key, without control characters, short."""
        if self._key:
            text = text.replace(self._key.get_secret_value(), "***")
        text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
        return text if len(text) <= _ERROR_CHARACTERS else text[:_ERROR_CHARACTERS] + "..."


def _cut(response: Any, limit: int) -> None:
    """Let about `limit` bytes of the body be read, after decompression."""
    read = response.aiter_bytes

    async def beginning() -> AsyncIterator[bytes]:
        size = 0
        async with contextlib.aclosing(read()) as chunks:
            async for chunk in chunks:
                yield chunk
                size += len(chunk)
                if size > limit:
                    return

    response.aiter_bytes = beginning


async def _answer(response: httpx2.Response, limit: int, events: Callable[[], Any] | None) -> dict[str, Any]:
    """The JSON object that was answered, in one piece or as server-sent events.

    The client's own decoder of events takes twice the time of this one, which is most of a streamed answer's.
    """
    is_stream = response.headers.get("content-type", "").startswith("text/event-stream")
    found = events() if is_stream and events is not None else None
    rest, size = [b""], 0
    async with contextlib.aclosing(response.aiter_bytes()) as chunks:
        async for chunk in chunks:
            size += len(chunk)
            if size > limit:
                raise Transient(f"an answer of over {limit} bytes, far more than was asked for")
            rest.append(chunk)
            if found is None or b"\n" not in chunk:
                continue
            *lines, last = b"".join(rest).split(b"\n")
            rest = [last]
            payloads = (line[5:].strip() for line in lines if line.startswith(b"data:"))
            if any(payload == b"[DONE]" or found.add(_parse_json(payload)) for payload in payloads if payload):
                break
    data = _parse_json(b"".join(rest)) if found is None else found.whole()
    # Gateways report a failure upstream with status 200.
    if data.get("error") and not data.get("choices"):
        said, code = error_of(data)
        raise Transient(f"an error inside the answer: {said}" + (f" ({code})" if code else ""))
    return data


def _parse_json(body: bytes) -> dict[str, Any]:
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
    said, code = error_of(data)
    error = data.get("error", data)
    fields = error if isinstance(error, dict) else {}
    lengths, prompt = _CONTEXT.search(said), _PROMPT.search(said)
    if lengths is None and not {code, str(fields.get("type"))} & {
        "context_length_exceeded",
        "exceed_context_size_error",
    }:
        return None
    num_prompt_tokens = count(fields.get("n_prompt_tokens")) or (int(prompt[1]) if prompt else None)
    context_length = count(fields.get("n_ctx")) or (int(lengths[1] or lengths[2]) if lengths else None)
    return num_prompt_tokens, context_length


def count(value: Any) -> int | None:
    """A number of things that a server told; None where it is none."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None
