"""A server on loopback in a thread, for commands in processes of their own: what it answers is a function's affair."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any


@dataclass
class Reply:
    body: Any = None  # bytes as they are, or JSON
    status: int = 200
    reason: str = "X"
    headers: dict[str, str] = field(default_factory=dict)


#: Answers a request: its path, its headers by name in lower case, its body.
Answer = Callable[[str, dict[str, str], dict[str, Any]], Reply]


@contextmanager
def serving(answer: Answer) -> Iterator[str]:
    """The server's URL up to /v1. Bodies go out in chunks of a few bytes."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            headers = {name.lower(): value for name, value in self.headers.items()}
            body = self.rfile.read(int(headers.get("content-length", 0)))
            reply = answer(self.path, headers, json.loads(body) if body else {})
            self.send_response_only(reply.status, reply.reason)
            for name, value in (
                {"content-type": "application/json", "transfer-encoding": "chunked"} | reply.headers
            ).items():
                self.send_header(name, value)
            self.end_headers()
            content = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
            for start in range(0, len(content), size := max(7, len(content) // 50)):
                piece = content[start : start + size]
                self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            self.wfile.write(b"0\r\n\r\n")

        do_POST = do_GET

        def log_message(self, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        server.shutdown()
        server.server_close()


def completion(text: str, request: dict[str, Any], **more: Any) -> dict[str, Any]:
    """An answer of chat completions, or of plain ones, with this text; no log-probabilities."""
    where = {"message": {"role": "assistant", "content": text}} if "messages" in request else {"text": text}
    choices = [{"index": index, "finish_reason": "stop"} | where | more for index in range(request.get("n") or 1)]
    return {"choices": choices, "usage": {"prompt_tokens": 20, "completion_tokens": 9}}
