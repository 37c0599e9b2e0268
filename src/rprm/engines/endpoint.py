"""Exchanging JSON with an HTTP endpoint: its key, its failures, and which of them pass."""

from __future__ import annotations

import asyncio
import email.utils
import ipaddress
import json
import logging
import math
import os
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

import httpx

from rprm.engines.openai_wire import Transient, Watch, context_of, error_of, parse_json, read_body, read_events
from rprm.errors import EngineError, EngineUnavailable, RequestRefused

logger = logging.getLogger(__name__)
T = TypeVar("T")

#: Bytes of an error body that are looked at, and characters of it that are shown.
_ERROR_BYTES, _ERROR_CHARACTERS = 1 << 16, 400


#: Statuses that say nothing against the request: the server is busy.
_BUSY = (408, 409, 425, 429, 503, 529)


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
        connections: at most that many at once.
        timeout: seconds for one exchange, from its first byte sent to its last byte received.
        max_retries: further attempts after a failure that may pass.
        key_env: name of the environment variable that holds the key.
        send_key_over_http: send the key even unencrypted to another machine.
    """

    #: Seconds before the first retry, doubled at each further one up to the cap; Retry-After can ask for more.
    backoff_base = 0.5
    backoff_cap = 30.0
    retry_after_cap = 120.0

    def __init__(
        self,
        url: str,
        subject: str,
        *,
        connections: int,
        timeout: float,
        max_retries: int,
        key_env: str,
        send_key_over_http: bool,
    ) -> None:
        self.url = url
        self.subject = subject
        self.connections = connections
        self.timeout = timeout
        self.max_retries = max_retries
        self.key_env = key_env
        self.send_key_over_http = send_key_over_http
        self.sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
        self._client: httpx.AsyncClient | None = None
        self._key = _Key("")
        self._key_withheld = False
        self._reached = False
        self._answered: tuple[str, bytes, int] | None = None
        #: Requests answered so far.
        self._num_answers = 0

    def open(self) -> None:
        """Read the key and make the connection pool.

        Raises:
            EngineError: the environment variable holds something that is no key.
        """
        key = _Key.from_environment(self.key_env)
        url = httpx.URL(self.url)
        local = _is_loopback(url.host)
        self._key_withheld = bool(key) and url.scheme == "http" and not (local or self.send_key_over_http)
        if self._key_withheld:
            logger.warning("%s: the key in %s is not sent over unencrypted http", self.url, self.key_env)
        self._key = _Key("") if self._key_withheld else key
        # Servers close idle connections after 5 s (uvicorn): give them up before. A proxy has no part in loopback.
        limits = httpx.Limits(max_connections=self.connections, keepalive_expiry=4.0)
        timeout = httpx.Timeout(None, connect=min(20.0, self.timeout))
        self._client = httpx.AsyncClient(limits=limits, timeout=timeout, trust_env=not local)

    async def aclose(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    async def ask(self, path: str, limit: int, body: dict[str, Any] | None = None) -> dict[str, Any] | None:
        """What stands at `path`, or is answered to `body` there, retried as in `post`; None where it cannot be had.

        Raises:
            EngineUnavailable: no request has ever reached the server.
        """
        method, content = ("GET", None) if body is None else ("POST", json.dumps(body).encode())
        try:
            return await self._retried(method, path, content, dict, limit, None, min(20.0, self.timeout))
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
        watch: Watch | None = None,
    ) -> T:
        """What `read` makes of the answer to `body`, retrying what may pass.

        Args:
            read: raises `Transient` for an answer that it cannot use.
            limit: bytes of an answer that are read at most.
            watch: what ends an event stream early.

        Raises:
            Refusal: the server refuses this request, whatever else it does.
            RequestRefused: the retries are used up, but the server answers another request.
            EngineUnavailable: the retries are used up, and the server answers nothing, or is busy.
            EngineError: the server refuses every such request.
        """
        content = json.dumps(body).encode()
        result = await self._retried("POST", path, content, read, limit, watch, self.timeout)
        self._answered = self._answered or (path, content, limit)
        return result

    async def _retried(
        self,
        method: str,
        path: str,
        content: bytes | None,
        read: Callable[[dict[str, Any]], T],
        limit: int,
        watch: Watch | None,
        seconds: float,
    ) -> T:
        attempt, retries, num_before = 0, self.max_retries, self._num_answers
        is_up = False
        while True:
            wait, is_busy = 0.0, False
            try:
                async with asyncio.timeout(seconds):
                    result = read(await self._exchange(method, path, content, limit, watch))
                self._num_answers += 1
                return result
            except Transient as failure:
                reason, wait, is_busy = self.clean(failure.reason), failure.retry_after, failure.is_busy
            except TimeoutError:
                reason = f"no full answer within timeout={seconds:g} s"
                # Too slow for all is not the fault of this request.
                is_busy = self._num_answers == num_before
            except httpx.RequestError as error:
                reason = self.clean(f"{type(error).__name__}: {error}".rstrip(": "))
                # A server never reached is a wrong URL more often than one that is about to come up.
                if not self._reached:
                    retries = min(retries, 2)
            if attempt >= retries and is_up:
                raise RequestRefused(
                    f"{self.where(path)}: {reason} ({attempt + 1} attempts), while the server answers other requests"
                )
            if attempt >= retries and not is_busy and await self._is_up():
                # It may have come up again just now: once more.
                is_up, retries = True, attempt + 1
            if attempt >= retries:
                raise EngineUnavailable(
                    f"{self.where(path)}: {reason} ({attempt + 1} attempts); check that the server runs, then run "
                    "the same command again to go on"
                ) from None
            wait = max(self._backoff(attempt), min(wait, self.retry_after_cap))
            logger.info("%s: %s; trying again in %.1f s", self.where(path), reason, wait)
            await self.sleep(wait)
            attempt += 1

    async def _is_up(self) -> bool:
        """Whether the server answers the first request again that it answered; at the start, that is ours."""
        if self._answered is None:
            return False
        path, content, limit = self._answered
        for attempt in range(3):
            if attempt:
                await self.sleep(self._backoff(attempt))
            try:
                async with asyncio.timeout(self.timeout):
                    return "choices" in await self._exchange("POST", path, content, limit, None)
            except (Transient, TimeoutError, httpx.RequestError, EngineError):
                continue
        return False

    def _backoff(self, attempt: int) -> float:
        return min(self.backoff_cap, self.backoff_base * 2.0 ** min(attempt, 60)) * random.uniform(0.5, 1.0)

    async def _exchange(
        self, method: str, path: str, content: bytes | None, limit: int, watch: Watch | None
    ) -> dict[str, Any]:
        if self._client is None:
            raise EngineError(f"{self.subject}: the engine is not started, or closed already")
        headers = {"Content-Type": "application/json", **self._key.header()}
        async with self._client.stream(method, self.url + path, content=content, headers=headers) as response:
            self._reached = True
            if not response.is_success:
                self._raise_for(response, path, await read_body(response, _ERROR_BYTES, cut=True))
            if response.headers.get("content-type", "").startswith("text/event-stream"):
                data = await read_events(response, limit, watch)
            else:
                data = parse_json(await read_body(response, limit))
        # Gateways report a failure upstream with status 200.
        if data.get("error") and not data.get("choices"):
            said, code = error_of(data)
            raise Transient(f"an error inside the answer: {said}" + (f" ({code})" if code else ""))
        return data

    def _raise_for(self, response: httpx.Response, path: str, body: bytes) -> None:
        status = response.status_code
        try:
            data = parse_json(body)
        except Transient:
            data = {"error": body.decode("utf-8", "replace")}
        said, code = error_of(data)
        context = context_of(data)
        said = self.clean(said) or response.reason_phrase
        what = f"{self.where(path)} answered {status}: {said}"
        # OpenAI forbids log-probabilities, not the model, with a 403: the request is at fault.
        if status == 401 or (status == 403 and "logprobs" not in said):
            raise EngineError(f"{what}; {self._key_advice()}")
        if status == 402 or code == "insufficient_quota":
            raise EngineUnavailable(f"{what}; mend the account, then run the same command again to go on")
        if status == 404:
            raise EngineError(f"{what}; check the model's name and that the URL ends where /chat/completions begins")
        # llama.cpp had it a 500 once.
        is_context = context is not None and status in (400, 413, 422, 500)
        if status in _BUSY or (status >= 500 and status != 501 and not is_context):
            raise Transient(f"{status} {said}", _retry_after(response.headers), is_busy=status in _BUSY)
        if 400 <= status < 500 or is_context:
            refusal = Refusal(f"the server refused the request ({status}): {said}")
            refusal.said, refusal.code, refusal.context = said, code, context
            raise refusal
        if 300 <= status < 400:
            location = self.clean(response.headers.get("location", "elsewhere"))
            raise EngineError(f"{self.where(path)} redirects to {location}; write the final URL")
        raise EngineError(what)

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
        text = "".join(c if c.isprintable() else " " for c in self._key.redact(text))
        text = " ".join(text.split())
        return text if len(text) <= _ERROR_CHARACTERS else text[:_ERROR_CHARACTERS] + "..."


class _Key:
    """The API key. It leaves this object as a header only."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    @classmethod
    def from_environment(cls, name: str) -> _Key:
        value = os.environ.get(name, "").strip()
        if not (value.isascii() and value.isprintable()) or " " in value:
            raise EngineError(f"the environment variable {name} does not hold a key: it has spaces or odd characters")
        return cls(value)

    def __bool__(self) -> bool:
        return bool(self._value)

    def __repr__(self) -> str:
        return "_Key(***)"

    def header(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self._value}"} if self._value else {}

    def redact(self, text: str) -> str:
        return text.replace(self._value, "***") if self._value else text


def _is_loopback(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _retry_after(headers: Mapping[str, str]) -> float:
    """Seconds that the server asks to wait.

    `retry-after-ms` (OpenAI, Azure) comes first; Retry-After is a number of seconds or an HTTP date (RFC 9110, section
    10.2.3).
    """
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        header = headers.get(name, "")
        try:
            seconds = float(header) * unit
        except ValueError:
            try:
                seconds = email.utils.parsedate_to_datetime(header).timestamp() - time.time()
            except (ValueError, OverflowError):
                continue
        if 0.0 < seconds < math.inf:
            return seconds
    return 0.0
