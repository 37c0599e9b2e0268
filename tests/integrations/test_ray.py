"""Real Ray clusters, of several nodes on this machine (opt-in: `make test-integrations`): nodes, replicas and the
command itself are lost."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ray", reason="needs ray (make test-integrations)")
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
    deadline = time.monotonic() + 600
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


def processes() -> set[int]:
    """Those of Ray, of whatever cluster."""
    import psutil

    known = ("raylet", "gcs_server", "ray::", "ray/_private", "ray/dashboard", "default_worker.py")
    found = set()
    for process in psutil.process_iter(["pid", "cmdline"]):
        line = " ".join(process.info["cmdline"] or ())
        if any(part in line for part in known) and "pytest" not in line:
            found.add(process.info["pid"])
    return found


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGKILL"])
def test_a_signal_leaves_no_process_of_ray(name: str, tmp_path: Path) -> None:
    rows, before = write_solutions(tmp_path / "in.jsonl", 400), processes()
    on_ray = ("judge", rows, "-m", "scripted:?delay=0.3&concurrency=8", "-o", tmp_path / "run", "-q", "--ray")
    driver = subprocess.Popen(command(*on_ray), stderr=subprocess.PIPE, text=True)
    wait_for(lambda: num_rows(tmp_path / "run") > 0, driver, "the first row")
    assert processes() - before
    driver.send_signal(getattr(signal, name))
    told = driver.communicate(timeout=60)[1]
    assert driver.returncode == {"SIGINT": 130, "SIGTERM": 143, "SIGKILL": -signal.SIGKILL}[name]
    if name != "SIGKILL":
        assert told.splitlines()[-1].startswith(f"rprm: stopped by {name}; what is finished is kept in")
        assert "Traceback" not in told
    # After a SIGKILL two small agents of Ray look for its head for a minute before they give up.
    deadline = time.monotonic() + 180
    while processes() - before and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not processes() - before


def test_every_command_writes_what_it_writes_alone(tmp_path: Path, nodes: Any) -> None:
    rows = write_solutions(tmp_path / "in.jsonl", 12)
    steps = tmp_path / "steps.jsonl"
    labelled = ({"id": f"t{n}", "problem": f"P{n}?", "step": f"It is {n}.", "label": n % 2 == 0} for n in range(8))
    steps.write_text("".join(json.dumps(row) + "\n" for row in labelled))
    problems = tmp_path / "problems.jsonl"
    problems.write_text("".join(json.dumps({"problem": f"Problem {n}?", "answer": "7"}) + "\n" for n in range(4)))
    judge = ("-m", "scripted:", "-k", 2)
    policy = ("--problems", problems, "-p", "scripted:")
    for name, words in {
        "judged": ("judge", rows, *judge, "-q", "--limit", 7),
        "critic": ("judge", rows, "-m", "critic:scripted:", "-q"),
        "benched": ("bench", "steps", steps, *judge),
        "analysed": ("data", "analyses", steps, "-m", "scripted:", "-n", 2),
        "sampled": ("search", "sample", *policy, "-n", 2),
        "chosen": ("search", "best-of-n", *policy, "-n", 2, *judge),
        "guided": ("search", "guided", *policy, *judge),
    }.items():
        rprm(*words, "-o", tmp_path / name)
        done = rprm(*words, "-o", tmp_path / f"{name}-ray", "--ray", nodes.address, "--replicas", "1-2")
        assert contents(tmp_path / f"{name}-ray") == contents(tmp_path / name), name
        assert "lost" not in done.stderr
    # Standard input is read once, here.
    rprm("judge", "-", *judge, "-q", "--limit", 7, "-o", tmp_path / "piped", "--ray", nodes.address,
         stdin=rows.read_text())  # fmt: skip
    assert contents(tmp_path / "piped") == contents(tmp_path / "judged")
    empty = tmp_path / "empty.jsonl"
    empty.touch()
    assert "holds no solution" in rprm("judge", empty, *judge, "--ray", nodes.address, code=1).stderr


def test_the_embedded_model(tmp_path: Path, nodes: Any) -> None:
    lines = (Path(__file__).parents[1] / "lab_solutions.jsonl").read_text().splitlines()[:12]
    rows = tmp_path / "in.jsonl"
    rows.write_text("\n".join(lines) + "\n")
    judge = ("judge", rows, "-m", "embedded:?concurrency=4", "-k", 2, "--all-steps", "-q")
    rprm(*judge, "-o", tmp_path / "alone")
    on_ray = (*judge, "-o", tmp_path / "run", "--ray", nodes.address, "--replicas", 3)
    driver = subprocess.Popen(command(*on_ray), stderr=subprocess.PIPE, text=True)
    wait_for(lambda: num_rows(tmp_path / "run") > 0, driver, "the first row")
    driver.send_signal(signal.SIGKILL)
    driver.communicate()
    rprm(*on_ray)
    # Batches are others, which may change the last bits of P(Yes): the texts and verdicts are the same.
    alone, run = (
        [json.loads(line) for line in (tmp_path / name / "results.jsonl").read_text().splitlines()]
        for name in ("alone", "run")
    )
    for one, other in zip(alone, run, strict=True):
        assert one["first_error"] == other["first_error"]
        for step, same in zip(one["steps"], other["steps"], strict=True):
            assert [a["text"] for a in step["analyses"]] == [a["text"] for a in same["analyses"]]
            assert step["reward"] == pytest.approx(same["reward"], abs=1e-5)


def test_a_model_that_cannot_be_loaded_is_one_line(nodes: Any, tmp_path: Path) -> None:
    rows = write_solutions(tmp_path / "in.jsonl", 3)
    model = "openai:m@http://127.0.0.1:9/v1?max_retries=0"
    done = rprm("judge", rows, "-m", model, "--prompt", "critique", "--ray", nodes.address, "--replicas", 2, code=1)
    assert done.stderr.splitlines()[-1].startswith("rprm: a replica on ")
    assert "http://127.0.0.1:9" in done.stderr
    assert "no such Ray cluster" in rprm("judge", rows, "-m", "scripted:", "--ray", "127.0.0.1:9", code=1).stderr


def test_a_row_that_kills_its_replica_ends_the_run_by_name(nodes: Any, tmp_path: Path) -> None:
    rows = write_solutions(tmp_path / "in.jsonl", 30)
    program = f"""
import asyncio, os
from rprm.api import RPRM
from rprm.cluster import Cluster
from rprm.errors import EngineUnavailable
from rprm.engines.scripted import ScriptedEngine, ScriptedReply
from rprm.reading import Source, read_solutions
from rprm.rewarders.base import judge_source

def reply(prompt, sampling):
    if "Problem 11?" in prompt.text:
        os._exit(9)
    return ScriptedReply("An analysis.", 0.9, 3)

async def main():
    source, cluster = Source({str(rows)!r}), Cluster({nodes.address!r})
    cluster.tell = print
    rewarder = RPRM(ScriptedEngine(reply=reply, concurrency=4), num_analyses=2).rewarder
    try:
        how = dict(source=source.inspect(), output={str(tmp_path / "run")!r})
        await judge_source(rewarder, read_solutions(source), cluster=cluster, **how)
    except EngineUnavailable as error:
        print(error)
    finally:
        await cluster.aclose()

asyncio.run(main())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    *lost, last = done.stdout.splitlines()
    assert len(lost) == 4
    assert all(line.startswith("a replica is lost, and its ") for line in lost)
    assert last.startswith("4 replicas died while they had 's11'")
    assert num_rows(tmp_path / "run") == 11


def test_two_replicas_take_half_the_time_of_one(tmp_path: Path, nodes: Any) -> None:
    """With an engine that waits, as for a GPU: what the processors here can show."""
    rows = write_solutions(tmp_path / "in.jsonl", 160)
    seconds = {}
    for number in (1, 2):
        model = "scripted:?delay=0.5&concurrency=8"
        run = tmp_path / str(number)
        rprm("judge", rows, "-m", model, "-q", "-o", run, "--ray", nodes.address, "--replicas", number, code=3)
        seconds[number] = json.loads((run / "manifest.json").read_text())["sessions"][0]["seconds"]
    print(f"\n160 solutions, one replica {seconds[1]:.1f} s, two {seconds[2]:.1f} s")
    assert seconds[2] < 0.75 * seconds[1]
