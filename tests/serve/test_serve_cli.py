"""The process of `rprm serve`: how it begins, and how it ends under load."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import httpx2
import pytest

BODY = {"solutions": [{"problem": "What is 1 + 1?", "steps": ["It is 2."]}]}


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "rprm", "serve", *arguments]


@contextmanager
def running(*arguments: str, limit: int = 0, **environment: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server process that is ready, and its URL; `limit`: how many files it may have open."""
    limited = ["sh", "-c", f'ulimit -n {limit}; exec "$@"', "sh"] if limit else []
    process = subprocess.Popen(
        [*limited, *command("--port", "0", *arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | environment,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        # Whoever has read the address may connect at once.
        socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2]))).close()
        yield process, url
    finally:
        process.kill()
        process.communicate()


def wait_for(url: str, num_under_way: int) -> None:
    """Return once so many requests are under way."""
    deadline = time.monotonic() + 60
    with httpx2.Client() as client:
        while f"under_way {num_under_way}.0" not in client.get(f"{url}/metrics").text:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def wait_for_end(url: str) -> None:
    """Return once nothing listens; until then nobody new is let in."""
    deadline = time.monotonic() + 60
    with httpx2.Client(base_url=url) as client, suppress(httpx2.ConnectError):
        while True:
            with suppress(httpx2.RemoteProtocolError, httpx2.ReadError):
                assert client.post("/v1/rewards", json=BODY).status_code == 503
            assert time.monotonic() < deadline
            time.sleep(0.05)


def refused(*arguments: str, **environment: str) -> str:
    done = subprocess.run(command(*arguments), capture_output=True, text=True, env=os.environ | environment, timeout=60)
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert all(line.startswith("rprm: ") for line in lines)
    return lines[-1]


@pytest.mark.slow
def test_other_machines_need_a_key() -> None:
    assert "set a key in RPRM_API_KEY" in refused("--model", "scripted:", "--host", "0.0.0.0")
    environment = {"RPRM_API_KEY": "k" * 32}
    assert "set a key in MINE" in refused("--model", "scripted:", "--host", "::", "--key-env", "MINE", **environment)
    for key, why in (("short-key", "at least 16"), ("sesame-\udcff-0123456789", "no header carries")):
        said = refused("--model", "scripted:", "--host", "0.0.0.0", RPRM_API_KEY=key)
        assert why in said
        assert key[:6] not in said


@pytest.mark.slow
def test_a_port_in_use_and_a_model_that_is_none_cost_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert f"--port {port}" in refused("--model", "scripted:", "--port", port)
    assert "nowhere" in refused("--model", "transformers:./nowhere", "--port", "0")
    assert "nowhere" in refused("--model", "scripted:", "--policy", "transformers:./nowhere", "--port", "0")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP"])
def test_a_signal_lets_what_is_under_way_end(name: str) -> None:
    # One client for all: making one takes longer on a busy machine than these requests may be apart.
    with running("--model", "scripted:?delay=12") as (process, url), httpx2.Client(base_url=url, timeout=60) as client:
        answers: list[Any] = []

        def ask() -> None:
            answers.append(client.post("/v1/rewards", json=BODY))

        asking = [threading.Thread(target=ask) for _ in range(8)]
        for thread in asking:
            thread.start()
        wait_for(url, 8)
        process.send_signal(getattr(signal, name))
        wait_for_end(url)
        for thread in asking:
            thread.join()
        assert [answer.status_code for answer in answers] == [200] * 8
        assert process.wait(20) == 0
        assert process.stderr is not None
        said = process.stderr.read().splitlines()
    assert f"rprm: {name}: 8 requests are under way, which may take 30 s to end" in said
    assert said[-1] == f"rprm: stopped by {name}; 0 requests were broken off"


@pytest.mark.slow
def test_a_signal_at_the_moment_that_the_address_is_read_is_one_to_the_server() -> None:
    arguments = command("--port", "0", "--model", "scripted:")
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
        assert process.stderr is not None
        assert process.stderr.read().splitlines()[-1] == "rprm: stopped by SIGINT; 0 requests were broken off"


@pytest.mark.slow
def test_a_second_signal_waits_for_nothing() -> None:
    with running("--model", "scripted:?delay=60") as (process, url):

        def ask() -> None:
            with suppress(httpx2.HTTPError):
                answers.append(httpx2.post(f"{url}/v1/rewards", json=BODY, timeout=60))

        answers: list[httpx2.Response] = []
        asking = threading.Thread(target=ask)
        asking.start()
        wait_for(url, 1)
        process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        process.send_signal(signal.SIGTERM)
        assert process.wait(15) == 0
        asking.join()
        assert [answer.status_code for answer in answers] in ([], [503])
        assert process.stderr is not None
        assert process.stderr.read().splitlines() == [
            "rprm: loading the model",
            *["rprm: SIGTERM: 1 requests are under way, which may take 30 s to end"] * 2,
            "rprm: stopped by SIGTERM; 1 requests were broken off",
        ]


def test_the_key_is_in_nothing_that_is_printed() -> None:
    key = "sesame-0123456789abcdef"
    with running("--model", "scripted:", RPRM_API_KEY=key) as (process, url):
        assert httpx2.get(f"{url}/health").status_code == 401
        found = httpx2.post(f"{url}/v1/rewards", json=BODY, headers={"authorization": f"Bearer {key}"})
        assert found.status_code == 200
        wrong = {"authorization": f"Bearer {key}"}
        bad = httpx2.post(f"{url}/v1/rewards", json={"solutions": [{"problem": key}]}, headers=wrong)
        assert key not in bad.text
        assert key not in httpx2.get(f"{url}/metrics", headers=wrong).text
        process.send_signal(signal.SIGTERM)
        process.wait(15)
        assert process.stderr is not None
        assert key not in process.stderr.read()


@pytest.mark.slow
@pytest.mark.parametrize("limit", [0, 64])
def test_connections_that_send_no_request_are_closed(limit: int) -> None:
    """75 where 4 + 64 are the most; or 90 where the system lets the process have 64 files."""
    with running("--model", "scripted:", "--max-requests", "1", limit=limit) as (process, url), ExitStack() as stack:
        address = ("127.0.0.1", int(url.rpartition(":")[2]))
        silent = [stack.enter_context(socket.create_connection(address)) for _ in range(90 if limit else 75)]
        if not limit:
            time.sleep(0.5)
            for answer in (httpx2.get(f"{url}/health"), httpx2.post(f"{url}/v1/rewards", json=BODY)):
                assert (answer.status_code, answer.headers["retry-after"]) == (503, "2")
                assert "connections are open" in answer.json()["error"]["message"]
        for _ in range(20):  # One that sends its head letter by letter is no better.
            with suppress(OSError):
                silent[0].sendall(b"G")
            time.sleep(1)
        silent[0].settimeout(5)
        with suppress(ConnectionError):
            while silent[0].recv(100):
                pass
        assert httpx2.get(f"{url}/health", timeout=20).status_code == 200
        assert httpx2.post(f"{url}/v1/rewards", json=BODY, timeout=20).status_code == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
        assert process.stderr is not None
        said = process.stderr.read().splitlines()
    assert len(said) <= 4
    assert any("ulimit" in line for line in said) == bool(limit)
    assert all(line.startswith("rprm: ") for line in said)


@pytest.mark.slow
def test_a_thread_that_does_not_end_holds_no_process_up() -> None:
    """A second signal ends the process at once, however much is under way."""
    many = {"solutions": [{"problem": f"What is {number} + 1?", "steps": ["Add."] * 3} for number in range(250)]}
    with running("-k", "2") as (process, url):

        def ask() -> None:
            with suppress(httpx2.HTTPError):
                httpx2.post(f"{url}/v1/rewards", json=many, timeout=60)

        asking = threading.Thread(target=ask)
        asking.start()
        wait_for(url, 1)
        process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        started = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
        assert time.monotonic() - started < 5
        asking.join()
