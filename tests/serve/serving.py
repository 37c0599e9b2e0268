"""Servers of this process, on free loopback ports."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx2
import uvicorn

from rprm.engines import Sampling
from rprm.engines.scripted import ScriptedEngine
from rprm.prompts import load_policy_template
from rprm.rewarders import load_rewarder
from rprm.search.candidates import Policy
from rprm.serve.app import create_app
from rprm.serve.gate import Limits

Serve = Callable[..., httpx2.Client]


def scripted_policy(**options: Any) -> Policy:
    return Policy(ScriptedEngine(**options), load_policy_template("boxed"), Sampling(1.0, 0.95, 512, 0))


@contextmanager
def served(
    *, judge: Any = "scripted:?noise=0.3", policy: Policy | None = None, key: str | None = None,
    limits: dict[str, Any] | None = None, runs: Any = None, **options: Any,
) -> Iterator[httpx2.Client]:  # fmt: skip
    """A client of a server that runs until the block is left."""
    rewarder = load_rewarder(judge, **options)
    gate = create_app(rewarder, name="judge", policy=policy, key=key, runs=runs, limits=Limits(**(limits or {})))
    config = uvicorn.Config(gate, port=0, log_config=None, lifespan="off", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)

    async def run() -> None:
        await rewarder.start()
        if policy is not None:
            await policy.start()
        await server.serve()

    thread = threading.Thread(target=asyncio.run, args=[run()], daemon=True)
    thread.start()
    while not server.started:
        thread.join(0.01)
        assert thread.is_alive()
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        with httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
            yield client
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()
