"""`rprm serve`: rewards, and answers that they guide, over HTTP."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from rprm import ranges
from rprm.cli.judge import EmbeddedScope
from rprm.cli.options import JudgeOptions, Model, PolicyOptions, with_options
from rprm.cli.process import end, run_async
from rprm.cli.runs import ShownRuns
from rprm.errors import InputError, RprmError, RunError

if TYPE_CHECKING:
    import asyncio

    from rprm.rewarders.base import StepRewarder
    from rprm.search.candidates import Policy
    from rprm.serve.gate import Gate, Limits

#: Seconds that requests under way may take to end once the server is asked to stop, and that the head of one may take
#: to come.
_GRACE_S, _HEAD_S = 30, 15


@dataclass(frozen=True)
class ServedPolicyOptions(PolicyOptions):
    policy_max_tokens: Annotated[ranges.Tokens, "Longest solution, in tokens."] = 2048


@dataclass(frozen=True)
class LimitOptions:
    """What one client may cost."""

    max_body: Annotated[ranges.Megabytes, "Largest body of a request, in MB (else 413)."] = 4
    max_solutions: Annotated[ranges.Rows, "Most solutions of a request (else 422)."] = 256
    max_steps: Annotated[ranges.Rows, "Most steps of a solution (else 422)."] = 1_000
    max_samples: Annotated[ranges.Draws, "Most samples of a chat completion, or of a search's round (else 422)."] = 64
    max_requests: Annotated[ranges.Width, "Most requests under way at once (else 429)."] = 256
    timeout: Annotated[ranges.Seconds, "Longest request, in seconds (else 503)."] = 600.0
    cache: Annotated[ranges.Count, "MB of rewards kept for equal requests; 0: none."] = 64

    def limits(self) -> Limits:
        from rprm.serve.gate import Limits

        return Limits(
            self.max_body, self.max_solutions, self.max_steps, self.max_samples, self.max_requests, self.timeout,
            self.cache,
        )  # fmt: skip


@with_options
def serve(
    model: Model = "embedded",
    policy: Annotated[str | None, "Answer /v1/chat/completions with this model, guided by the rewards."] = None,
    *,
    runs: Annotated[
        Path | None, {"metavar": "FOLDER"}, "Show the runs in this folder on the page: whoever may ask may read them."
    ] = None,
    host: Annotated[str, "Address to listen on; any but loopback needs a key."] = "127.0.0.1",
    port: Annotated[ranges.Port, "Port to listen on; 0: any that is free."] = 8765,
    key_env: Annotated[
        str, {"metavar": "NAME"}, "The environment variable that holds the key which every request must carry."
    ] = "RPRM_API_KEY",
    options: JudgeOptions,
    policy_options: ServedPolicyOptions,
    limit_options: LimitOptions,
) -> None:
    """Serve step rewards, and a policy that they guide, over HTTP.

    POST /v1/rewards, /v1/score_step and /pooling; with --policy also /v1/chat/completions, where the model's name is
    the strategy (best-of-8, majority-8, weighted-8, guided, beam, dvts). GET /v1/models, /health, /metrics and
    /openapi.json. docs/serve.md has requests and answers.
    """
    try:
        from rprm.serve.app import create_app
        from rprm.serve.gate import is_loopback
    except ImportError as error:
        raise RprmError(f"rprm serve needs {error.name}: pip install '.[serve]'") from None
    from rprm.showing import KEYS

    key = os.environ.get(key_env, "").strip() or None
    if key is None and not is_loopback(host):
        raise InputError(
            f"--host {host}: other machines could use the models; set a key in {key_env} (such as the output of "
            "`openssl rand -hex 32`), or listen on 127.0.0.1"
        )
    if key is not None and not (key.isascii() and key.isprintable()):
        raise InputError(f"the key in {key_env} has characters that no header carries: use letters and digits")
    if key is not None and len(key) < 16:
        raise InputError(f"the key in {key_env} has {len(key)} characters; use at least 16")
    KEYS.update({key} if key else ())
    rewarder = options.rewarder(model)
    EmbeddedScope(model)  # It says what that model knows.
    writer = None if policy is None else policy_options.policy(policy, options.seed)
    shown = None if runs is None else ShownRuns(runs)
    gate = create_app(rewarder, name=model, policy=writer, limits=limit_options.limits(), key=key, runs=shown)
    run_async(_run(gate, rewarder, writer, host, port))
    end(0)  # Whatever a thread still reads or computes, its client has gone.


async def _run(gate: Gate, rewarder: StepRewarder, policy: Policy | None, host: str, port: int) -> None:
    """Serve until a signal; then let what is under way end."""
    import asyncio
    import socket

    import h11
    import uvicorn
    from uvicorn.protocols.http.h11_impl import H11Protocol

    received: list[str] = []
    name = f"[{host}]" if ":" in host else host

    class Connection(H11Protocol):
        """A connection is closed where the head of a request does not come in time, the first one's too."""

        _late: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._wait()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self._wait()

        def connection_lost(self, exc: Exception | None) -> None:
            if self._late is not None:
                self._late.cancel()
            super().connection_lost(exc)

        def _wait(self) -> None:
            if self._late is not None:
                self._late.cancel()
            self._late = self.loop.call_later(_HEAD_S, self._close)

        def _close(self) -> None:
            if self.conn.their_state is h11.IDLE:
                self.transport.close()

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            """The address is told once a signal is one to this server, and whoever reads it may connect at once."""
            await super().startup(sockets)
            print(f"http://{name}:{listener.getsockname()[1]}", flush=True)

        @contextmanager
        def capture_signals(self) -> Iterator[None]:
            """A first signal lets what is under way end, a second one does not wait for it."""
            found = (getattr(signal, name, None) for name in ("SIGINT", "SIGTERM", "SIGHUP"))
            before = {number: signal.getsignal(number) for number in found if number is not None}
            for number, handler in before.items():
                if handler is not signal.SIG_IGN:
                    signal.signal(number, self._stop)
            try:
                yield
            finally:
                for number, handler in before.items():
                    signal.signal(number, handler)

        def _stop(self, number: int, frame: object) -> None:
            name, is_second = signal.Signals(number).name, self.should_exit
            received.append(name)
            self.should_exit = gate.is_stopping = True
            logging.getLogger("uvicorn.error").disabled = True  # The last line says what was broken off.
            _say(f"{name}: {gate.num_under_way} requests are under way, which may take {_GRACE_S} s to end")
            if is_second:
                tell_end()
                end(0)

    def tell_end() -> None:
        _say(f"stopped by {received[0]}; {gate.num_broken_off + gate.num_under_way} requests were broken off")

    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        raise RunError(f"--host {host} --port {port}: {error.strerror or error}") from None
    config = uvicorn.Config(
        gate, log_config=None, access_log=False, lifespan="off", http=Connection, ws="none", proxy_headers=False,
        server_header=False, timeout_graceful_shutdown=_GRACE_S, backlog=2048,
    )  # fmt: skip
    server = Server(config)
    gate.connections = server.server_state.connections
    asyncio.get_running_loop().set_exception_handler(_Unhandled())
    try:
        _say("loading the model")
        await rewarder.start()
        if policy is not None:
            await policy.start()
        await server.serve([listener])
    finally:
        listener.close()
        if policy is not None:
            await policy.engine.aclose()
        await rewarder.aclose()
    tell_end()


class _Unhandled:
    """What an event loop cannot raise anywhere. That the system has no file left for a connection is told once."""

    is_told = False

    def __call__(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if "accept()" not in context["message"]:
            loop.default_exception_handler(context)
        elif not self.is_told:
            self.is_told = True
            _say(f"a connection has to wait: {context['exception']}; raise the limit (ulimit -n)")


def _say(text: str) -> None:
    print(f"rprm: {text}", file=sys.stderr, flush=True)
