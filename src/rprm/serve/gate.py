"""What every request passes before it reaches a route: the key, the host, the limits on bodies, numbers and time.

Pure ASGI, so that a client that goes away is noticed by the routes."""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import json
import re
import time
from base64 import b64decode
from collections.abc import Awaitable, Callable, MutableMapping, Sized
from dataclasses import dataclass
from typing import Any

from rprm import ranges
from rprm.errors import RprmError
from rprm.files import check_unicode
from rprm.serve.metrics import Metrics

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

#: How long a body may take to come, in seconds, and how long a client is asked to wait before it tries again.
_BODY_S, RETRY_AFTER_S = 30.0, 2


@dataclass(frozen=True)
class Limits:
    """What one client may cost. More is refused: 413 (body), 422 (solutions, steps), 429 (requests), 503 (time)."""

    body_mb: ranges.Megabytes = 4
    solutions: ranges.Rows = 256  # of a request
    steps: ranges.Rows = 1_000  # of a solution
    samples: ranges.Draws = 64  # of a problem, in a chat completion
    requests: ranges.Width = 256  # under way at once
    seconds: ranges.Seconds = 600.0  # for a request
    cache_mb: ranges.Count = 64  # of rewards that are kept for equal requests; 0 for none

    def __post_init__(self) -> None:
        ranges.check(self, RprmError)


#: The status of an answer whose client has gone.
_GONE = 499
#: The paths of GET requests that read files; what any other one asks for is at hand.
_RUNS = "/v1/runs"
#: An address in brackets, or a name, and a port.
_HOST = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([^\s\[\]/:@?#\\]+))(?::\d{0,5})?")


def is_loopback(host: str) -> bool:
    """Whether an address, or a name, is of this machine alone."""
    if host.lower().removesuffix(".") == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Gate:
    """Lets requests through to an ASGI application.

    With a key, every path asks for it: `Authorization: Bearer KEY`, or Basic with any user (browsers ask for it).
    Without one, requests must name this machine as their host: pages of other sites cannot reach the server through
    a name of their own.
    """

    def __init__(self, app: Any, limits: Limits, metrics: Metrics, key: str | None) -> None:
        self.app, self.limits, self.metrics = app, limits, metrics
        #: The server's open connections, and how many there may be.
        self.connections: Sized = ()
        self.max_connections = 4 * limits.requests + 64
        self._key = None if key is None else key.encode()
        self.num_under_way = 0
        #: Requests that were under way when the server was to stop, and got no whole answer.
        self.num_broken_off = 0
        #: Set once the server is to stop: what is under way ends, nothing begins.
        self.is_stopping = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status, has_begun, is_answered = time.monotonic(), 500, False, False

        async def observed(message: Message) -> None:
            nonlocal status, has_begun, is_answered
            if message["type"] == "http.response.start":
                status, has_begun = message["status"], True
                if status == _GONE and self.is_stopping:
                    message["status"] = 503  # It is the server that goes.
                message["headers"] = [*message["headers"], (b"x-content-type-options", b"nosniff")]
            await send(message)
            is_answered = message["type"] == "http.response.body" and not message.get("more_body") and status != _GONE

        try:
            await self._pass(scope, receive, observed)
        except asyncio.CancelledError:
            # The server waits no longer.
            if not self.is_stopping or has_begun:
                raise
            await refuse(send, 503, "the server has stopped", _later())
        except Exception:
            if not is_answered:  # A fault that was told, and is in the log, costs no connection.
                raise
        finally:
            self.num_broken_off += self.is_stopping and not is_answered
            self.metrics.answered(scope, status, time.monotonic() - started)

    async def _pass(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = {name.lower(): value for name, value in scope["headers"]}
        host = _host_of(headers.get(b"host", b""))
        if self._key is not None and not self._is_known(headers.get(b"authorization", b"")):
            more = [(b"www-authenticate", b'Basic realm="rprm"')]
            await refuse(send, 401, "the key is missing or wrong: send Authorization: Bearer KEY", more)
        elif self._key is None and not is_loopback(host):
            await refuse(send, 421, "this server answers requests to localhost alone")
        elif (origin := headers.get(b"origin")) and _host_of(origin.partition(b"://")[2]) != host:
            await refuse(send, 403, "requests from pages of other sites are refused")
        elif len(self.connections) > self.max_connections:
            more = [*_later(), (b"connection", b"close")]
            await refuse(send, 503, f"{self.max_connections} connections are open, the most at once", more)
        elif (is_get := scope["method"] != "POST") and not scope["path"].startswith(_RUNS):
            await self.app(scope, receive, send)
        elif self.is_stopping:
            await refuse(send, 503, "the server is stopping", _later())
        elif self.num_under_way >= self.limits.requests:
            await refuse(send, 429, f"{self.num_under_way} requests are under way, the most at once", _later())
        else:
            self.num_under_way += 1
            self.metrics.under_way.set(self.num_under_way)
            try:
                # A client that does not read its answer holds no place for ever.
                async with asyncio.timeout(self.limits.seconds + 2 * _BODY_S):
                    await (self.app(scope, receive, send) if is_get else self._work(scope, headers, receive, send))
            except TimeoutError:
                return
            finally:
                self.num_under_way -= 1
                self.metrics.under_way.set(self.num_under_way)

    async def _work(self, scope: Scope, headers: dict[bytes, bytes], receive: Receive, send: Send) -> None:
        most = self.limits.body_mb << 20
        if headers.get(b"content-type", b"").partition(b";")[0].strip().lower() != b"application/json":
            # A form of another site's page could send a text without being asked for leave.
            await refuse(send, 415, "send Content-Type: application/json")
            return
        pieces: list[bytes] = []
        size, more = 0, True
        try:
            async with asyncio.timeout(_BODY_S):
                # What is too large is read a while and dropped: a client that is still sending hears no answer.
                while more and size <= 8 * most:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return
                    size, more = size + len(piece := message.get("body", b"")), message.get("more_body", False)
                    pieces.append(piece if size <= most else b"")
        except TimeoutError:
            await refuse(send, 408, f"the body did not come within {_BODY_S:.0f} s", [(b"connection", b"close")])
            return
        if size > most:
            reason = f"the body has over {self.limits.body_mb} MB; send fewer solutions at once"
            await refuse(send, 413, reason, [(b"connection", b"close")])
            return
        if _has_lone_surrogate(body := b"".join(pieces)):
            await refuse(send, 422, "the body has text that is not Unicode: a lone surrogate")
            return
        whole: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive_whole() -> Message:
            return whole.pop() if whole else await receive()

        await self.app(scope, receive_whole, send)

    def _is_known(self, header: bytes) -> bool:
        kind, _, value = header.partition(b" ")
        value = value.strip()
        if kind.lower() == b"basic":
            try:
                value = b64decode(value, validate=True).partition(b":")[2]
            except ValueError:
                return False
        return hmac.compare_digest(value, self._key or b"")


def _host_of(header: bytes) -> str:
    """The host that a header names, in small letters, without its port; "" of one that is malformed."""
    found = _HOST.fullmatch(header.decode("latin-1").strip())
    return (found[1] or found[2]).lower() if found else ""


def _has_lone_surrogate(body: bytes) -> bool:
    """Whether some text of a body of JSON is no Unicode, so that no model could read it, and no client its answer."""
    try:
        check_unicode(body)
    except UnicodeEncodeError:
        return True
    except (ValueError, RecursionError):
        pass  # The route says what is wrong with it.
    return False


def _later() -> list[tuple[bytes, bytes]]:
    return [(b"retry-after", str(RETRY_AFTER_S).encode())]


def error_body(status: int, message: str) -> dict[str, Any]:
    """An error as OpenAI's clients read it."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    return {"error": {"message": message, "type": kind, "param": None, "code": status}}


async def refuse(send: Send, status: int, message: str, headers: list[tuple[bytes, bytes]] | None = None) -> None:
    """Answer with an error."""
    body = json.dumps(error_body(status, message)).encode()
    fields = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), *(headers or [])]
    await send({"type": "http.response.start", "status": status, "headers": fields})
    await send({"type": "http.response.body", "body": body})
