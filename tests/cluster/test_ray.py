"""On real Ray clusters of several nodes on this machine (`make test-cluster`): nodes, replicas and drivers are lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ray", reason="needs ray (make test-cluster)")
pytestmark = pytest.mark.slow

NUM_SOLUTIONS = 2_000
FILES = ("results.jsonl", "rejected.jsonl", "summary.json")


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "rprm", *map(str, arguments)]


def rprm(*arguments: object, code: int = 0, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command(*arguments), capture_output=True, text=True, input=stdin, timeout=600, check=False)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    return done


def write_solutions(path: Path, number: int) -> Path:
    """Solutions of two to four steps; one row in a hundred cannot be used, and an id stands twice."""
    rows: list[Any] = []
    for n in range(number):
        steps = [f"Step {n}.{k} adds {k}." for k in range(2 + n % 3)]
        rows.append({"id": f"s{n if n != 7 else 6}", "problem": f"Problem {n}?", "steps": steps})
        if n % 100 == 50:
            rows.append({"problem": "no steps"})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def contents(folder: Path) -> list[bytes]:
    return [(folder / name).read_bytes() for name in FILES]


def requests(log: Path) -> Counter[str]:
    return Counter(log.read_text().split())


def wait_for(condition: Callable[[], bool], running: subprocess.Popen[str], what: str) -> None:
    deadline = time.monotonic() + 240
    while not condition():
        assert running.poll() is None, running.communicate()
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


def num_rows(run: Path) -> int:
    path = run / "results.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


@pytest.fixture(scope="module")
def nodes() -> Iterator[Any]:
    """A head without a processor, and three nodes of one each."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    for _ in range(3):
        cluster.add_node(num_cpus=1)
    yield cluster
    cluster.shutdown()


def test_nothing_is_lost_with_a_node_and_a_driver(tmp_path: Path, nodes: Any) -> None:
    rows = write_solutions(tmp_path / "in.jsonl", NUM_SOLUTIONS)
    width, k = 16, 4
    engine = f"scripted:?delay=0.05&concurrency={width}&log={tmp_path}"
    judge = ("judge", rows, "-k", k, "-q")
    rprm(*judge, "-m", f"scripted:?log={tmp_path}/alone.log", "-o", tmp_path / "alone", code=3)
    on_ray = (*judge, "-m", f"{engine}/ray.log", "-o", tmp_path / "run", "--ray", nodes.address, "--replicas", 3)

    driver = subprocess.Popen(command(*on_ray), stderr=subprocess.PIPE, text=True)
    wait_for(lambda: num_rows(tmp_path / "run") > NUM_SOLUTIONS / 4, driver, "the first quarter")
    node = next(one for one in nodes.worker_nodes)
    nodes.remove_node(node, allow_graceful=False)
    before = num_rows(tmp_path / "run")
    wait_for(lambda: num_rows(tmp_path / "run") > max(before + 200, NUM_SOLUTIONS / 2), driver, "the second quarter")
    driver.send_signal(signal.SIGKILL)
    told = driver.communicate()[1]
    assert "a replica is lost" in told
    nodes.add_node(num_cpus=1)
    assert 0 < num_rows(tmp_path / "run") < NUM_SOLUTIONS

    rprm(*on_ray, code=3)
    assert contents(tmp_path / "run") == contents(tmp_path / "alone")
    once, asked = requests(tmp_path / "alone.log"), requests(tmp_path / "ray.log")
    assert not once - asked
    num_again = (asked - once).total()
    # Of each row that was under way: a wave of at most K analyses, or what came in the last tenth of a second. On the
    # node, then on all three.
    assert num_again <= 4 * width * 2 * k, num_again
    print(f"\n{once.total():,} requests alone, {num_again:,} made again for a node and a driver that were killed")
