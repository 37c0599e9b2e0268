"""The server under load, and what it costs over calling the rewarder directly. All on loopback; it ends by itself.

    python perf/serve.py load [--seconds 60] [--clients 64]   # a third of the clients hostile
    python perf/serve.py overhead [--pairs 3] [--model embedded]

`load` says how each kind of client was answered, whether any answer was lost, wrong or of another client, the memory of
the server, p50 and p99 of the good ones; then SIGTERM in the middle of requests. `overhead` judges the same solutions,
32 at once, directly in a process of its own and through the server, by turns.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx2

HEADERS = {"content-type": "application/json"}
EXAMPLES = Path(__file__).parents[1] / "src" / "rprm" / "examples" / "word_problems.jsonl"
HOSTILE = ("malformed", "slow", "oversized", "gone")


def start(*arguments: str) -> tuple[subprocess.Popen[str], str]:
    """A server process and its URL."""
    command = [sys.executable, "-m", "rprm", "serve", "--port", "0", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


def memory_mb(pid: int) -> float:
    """Resident memory of a process."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


def body_of(number: int) -> dict[str, Any]:
    """A request of a client, unlike any other."""
    steps = [f"Step {index} of {number}." for index in range(1 + number % 4)]
    return {"solutions": [{"id": f"mine-{number}", "problem": f"Problem {number}.", "steps": steps}], "analyses": True}


async def good(client: httpx2.AsyncClient, number: int, counts: Counter[str], seconds: list[float]) -> None:
    """Ask, streamed or not, and check that the answer is this client's own and whole."""
    body, begun = body_of(number), time.monotonic()
    is_stream = number % 3 == 0
    answer = await client.post("/v1/rewards", json=body | {"stream": is_stream})
    status, found = answer.status_code, []
    if status == 200 and is_stream:
        blocks = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: {")]
        found = [one for one in blocks if one["object"] == "solution.rewards"]
    elif status == 200:
        found = answer.json()["data"]
    if status in (429, 503):
        counts[f"good: {status}"] += 1
        await asyncio.sleep(0.2)
        return
    wanted = body["solutions"][0]
    is_own = len(found) == 1 and found[0]["id"] == wanted["id"] and len(found[0]["steps"]) == len(wanted["steps"])
    is_whole = is_own and all(0 <= reward <= 1 for reward in found[0]["rewards"])
    counts[f"good: {status if is_whole else f'WRONG ({status})'}"] += 1
    seconds.append(time.monotonic() - begun)


async def hostile(client: httpx2.AsyncClient, kind: str, number: int, counts: Counter[str]) -> None:
    """Ask badly."""
    if kind == "gone":
        with suppress(httpx2.TimeoutException):
            await client.post("/v1/rewards", json=body_of(number), timeout=0.05)
        counts[kind] += 1
    elif kind == "slow":
        # A body that comes byte by byte, and a connection that says nothing.
        address = str(client.base_url.host), client.base_url.port or 80
        _, writer = await asyncio.open_connection(*address)
        head = "POST /v1/rewards HTTP/1.1", "host: localhost", "content-type: application/json", "content-length: 99"
        writer.write("\r\n".join((*head, "", "")).encode())
        for _ in range(5):
            writer.write(b"{")
            await writer.drain()
            await asyncio.sleep(0.2)
        writer.close()
        counts[kind] += 1
    else:
        large = b'{"solutions": [{"problem": "' + b"x" * (5 << 20) + b'", "steps": ["a"]}]}'
        bodies = [b"{", b"[]", b'{"solutions": [{}]}', b"\xff\xfe", b'{"solutions": ' + b"[" * 50_000]
        content = random.choice(bodies) if kind == "malformed" else large
        try:
            answer = await client.post("/v1/rewards", content=content, headers=HEADERS)
            counts[f"{kind}: {answer.status_code}"] += 1
        except httpx2.TransportError as error:
            counts[f"{kind}: {type(error).__name__}"] += 1


async def load(url: str, pid: int, num_clients: int, seconds: float) -> dict[str, Any]:
    """Let clients ask for some seconds, a third of them badly."""
    counts: Counter[str] = Counter()
    times: list[float] = []
    memory: list[float] = []
    ends_at = time.monotonic() + seconds
    numbers = iter(range(1_000_000))

    async def act(place: int) -> None:
        kind = HOSTILE[place // 3 % 4] if place % 3 == 0 else None
        async with httpx2.AsyncClient(base_url=url, timeout=60) as client:
            while time.monotonic() < ends_at:
                number = next(numbers)
                await (good(client, number, counts, times) if kind is None else hostile(client, kind, number, counts))

    async def watch() -> None:
        while time.monotonic() < ends_at:
            memory.append(memory_mb(pid))
            await asyncio.sleep(0.5)

    await asyncio.gather(watch(), *map(act, range(num_clients)))
    third = max(1, len(memory) // 3)
    cuts = statistics.quantiles(times, n=100) if len(times) > 1 else [0.0] * 99
    return {
        "answers": dict(sorted(counts.items())), "p50_s": round(cuts[49], 3), "p99_s": round(cuts[98], 3),
        "memory_mb": {"first third": round(max(memory[:third])), "last third": round(max(memory[-third:]))},
    }  # fmt: skip


async def stop_under_load(process: subprocess.Popen[str], url: str) -> dict[str, Any]:
    """SIGTERM while 32 requests are under way: how they end."""

    async def ask(client: httpx2.AsyncClient, number: int) -> str:
        try:
            return str((await client.post("/v1/rewards", json=body_of(10_000_000 + number))).status_code)
        except httpx2.TransportError as error:
            return type(error).__name__

    async with httpx2.AsyncClient(base_url=url, timeout=60) as client:
        asking = [asyncio.create_task(ask(client, number)) for number in range(32)]
        await asyncio.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        ends = Counter(await asyncio.gather(*asking))
    code = await asyncio.to_thread(process.wait, 60)
    return {"ends": dict(ends), "exit code": code}


def measure_load(num_clients: int, seconds: float) -> dict[str, Any]:
    """The whole of `load`, against a server of scripted analyses that take 50 ms each."""
    process, url = start("--model", "scripted:?delay=0.05", "-k", "4", "--max-requests", "128", "--cache", "4")
    try:
        found = asyncio.run(load(url, process.pid, num_clients, seconds))
        found |= asyncio.run(stop_under_load(process, url))
        return found | {"stderr": process.communicate()[1].splitlines()}
    finally:
        process.kill()
        process.communicate()


def solutions(number: int) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in EXAMPLES.read_text(encoding="utf-8").splitlines()]
    found = [{"problem": row["problem"], "steps": row["steps"]} for row in rows]
    return [{**found[index % len(found)], "id": str(index)} for index in range(number)]


async def directly(model: str, number: int) -> float:
    """Seconds to judge with 32 at once, without a server."""
    from rprm.jobs import in_order
    from rprm.records import Solution
    from rprm.rewarders import load_rewarder

    rewarder = load_rewarder(model, num_analyses=4).in_full()
    await rewarder.start()
    rows = [Solution(id=one["id"], problem=one["problem"], steps=tuple(one["steps"])) for one in solutions(number)]
    await rewarder.judge(rows[0])
    begun = time.monotonic()
    async for _ in in_order(iter(rows), rewarder.judge, width=32):
        pass
    elapsed = time.monotonic() - begun
    await rewarder.aclose()
    return elapsed


async def through(url: str, number: int) -> float:
    """Seconds to judge with 32 clients."""
    places = asyncio.Semaphore(32)
    async with httpx2.AsyncClient(base_url=url, timeout=600) as client:

        async def ask(one: dict[str, Any]) -> None:
            async with places:
                (await client.post("/v1/rewards", json={"solutions": [one]})).raise_for_status()

        await ask(solutions(1)[0])
        begun = time.monotonic()
        await asyncio.gather(*map(ask, solutions(number)))
        return time.monotonic() - begun


def measure_overhead(model: str, pairs: int, number: int) -> list[tuple[float, float]]:
    """Pairs of seconds: directly, through a server."""
    found = []
    for _ in range(pairs):
        direct = [sys.executable, __file__, "direct", "--model", model, "--solutions", str(number)]
        one = float(subprocess.run(direct, capture_output=True, text=True, check=True).stdout.split()[-1])
        process, url = start("--model", model, "-k", "4", "--cache", "0")
        try:
            other = asyncio.run(through(url, number))
        finally:
            process.kill()
            process.communicate()
        found.append((one, other))
        print(f"directly {one:.2f} s, through the server {other:.2f} s: {other / one:.3f}", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["load", "overhead", "direct"])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--solutions", type=int, default=64)
    parser.add_argument("--model", default="embedded")
    arguments = parser.parse_args()
    if arguments.what == "load":
        print(json.dumps(measure_load(arguments.clients, arguments.seconds), indent=1))
    elif arguments.what == "direct":
        print(asyncio.run(directly(arguments.model, arguments.solutions)))
    else:
        pairs = measure_overhead(arguments.model, arguments.pairs, arguments.solutions)
        ratios = [other / one for one, other in pairs]
        print(f"median ratio {statistics.median(ratios):.3f} [{min(ratios):.3f}, {max(ratios):.3f}]")


if __name__ == "__main__":
    main()
