"""The command's side of a cluster, on a stand-in for Ray: what is lost is asked for again, and nothing else."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from rprm import cluster as clusters
from rprm.api import RPRM
from rprm.cli.app import app
from rprm.cli.options import ClusterOptions
from rprm.cluster import Cluster
from rprm.engines.base import Completion, EngineInfo, Sampling
from rprm.engines.scripted import ScriptedEngine
from rprm.errors import EngineError, EngineUnavailable, InputError
from rprm.jobs import Callbacks
from rprm.prompts.template import Prompt
from rprm.reading import Source, read_solutions
from rprm.rewarders.base import Totals, judge_source
from tests.cluster.stand_in import StandIn, install
from tests.test_help import COMMANDS
from tests.test_jobs import files, write_solutions


class Scripted(ScriptedEngine):
    """One that a test may disturb: `on_request` is called with the number of each request and its prompt."""

    on_request: Callable[[int, Prompt], Any] = staticmethod(lambda number, prompt: None)
    on_start: Callable[[], Any] = staticmethod(lambda: None)

    async def start(self, *, chat: bool = True) -> EngineInfo:
        self.on_start()
        return await super().start(chat=chat)

    async def generate(self, prompt: Prompt, sampling: Sampling) -> Completion:
        self.on_request(self.num_requests + 1, prompt)
        return await super().generate(prompt, sampling)


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    monkeypatch.setattr(clusters, "_PERIOD_S", 0.001)
    return install(monkeypatch)


def judge(
    path: Path, output: Path, engine: ScriptedEngine, cluster: Cluster | None = None, callbacks: Callbacks | None = None
) -> Totals:
    source = Source(str(path))

    async def run() -> Totals:
        rewarder = RPRM(engine, num_analyses=4).rewarder
        how: dict[str, Any] = {"source": source.inspect(), "output": output, "callbacks": callbacks}
        try:
            return await judge_source(rewarder, read_solutions(source), cluster=cluster, **how)
        finally:
            if cluster is not None:
                await cluster.aclose()

    return asyncio.run(run())


def test_the_same_bytes_and_only_what_was_under_way_is_asked_for_again(tmp_path: Path, ray: StandIn) -> None:
    path = write_solutions(tmp_path / "in.jsonl", 60, broken=(3, 17))
    alone, engine = Scripted(), Scripted(concurrency=2)
    judge(path, tmp_path / "alone", alone)
    told: list[str] = []
    num_ready: list[int] = []
    keys: list[str] = []
    cluster = Cluster(fewest=3, most=3)
    cluster.tell, cluster.on_replicas = told.append, num_ready.append
    engine.on_request = lambda number, prompt: ray.actors[1].die("its node has died") if number == 200 else None
    judge(path, tmp_path / "run", engine, cluster, Callbacks(on_piece=lambda key, piece: keys.append(key)))
    assert files(tmp_path / "run") == files(tmp_path / "alone")
    # Two rows on the node that died, of each a wave of four analyses at most, and what came within the last period.
    assert alone.num_requests <= engine.num_requests <= alone.num_requests + 2 * 2 * 4
    assert len(keys) == alone.num_requests  # Each piece is told once.
    assert told == ["a replica is lost, and its 2 rows go to others: its node has died"]
    assert len(ray.actors) == 4
    assert max(num_ready) == 3
    assert not ray.is_up


def test_a_run_moves_between_one_machine_and_a_cluster(tmp_path: Path, ray: StandIn) -> None:
    path = write_solutions(tmp_path / "in.jsonl", 40)
    alone = Scripted()
    judge(path, tmp_path / "alone", alone)
    num_made = 0
    for number, cluster in enumerate([None, Cluster(fewest=2, most=2), None, Cluster(most=3), None, Cluster()]):
        engine = Scripted(concurrency=5)

        def fail(made: int, prompt: Prompt, limit: int = 60) -> None:
            if made > limit:
                raise EngineUnavailable("enough")

        if number < 5:
            engine.on_request = fail
            with pytest.raises(EngineUnavailable, match="enough"):
                judge(path, tmp_path / "run", engine, cluster)
        else:
            judge(path, tmp_path / "run", engine, cluster)
        num_made += engine.num_requests
    assert files(tmp_path / "run") == files(tmp_path / "alone")
    # A session on a cluster that ends loses what was told in its last period: of 60 requests fewer than half.
    assert alone.num_requests <= num_made < alone.num_requests + 2 * 30


def test_a_row_that_kills_each_replica_is_named(tmp_path: Path, ray: StandIn) -> None:
    path = write_solutions(tmp_path / "in.jsonl", 30)
    engine = Scripted(concurrency=4)

    def die(number: int, prompt: Prompt) -> None:
        if "Problem 11\n" in f"{prompt.text}\n" or "Problem 11 " in prompt.text:
            # Where it is under way: the actor with that row.
            for actor in ray.actors:
                actor.die("out of memory")
            raise asyncio.CancelledError

    engine.on_request = die
    with pytest.raises(EngineUnavailable, match=r"4 replicas died while they had 's11'"):
        judge(path, tmp_path / "run", engine, Cluster())
    assert len(ray.actors) == 5  # The last is for other rows.
    rows = (tmp_path / "run" / "results.jsonl").read_text().splitlines()
    assert len(rows) == 11


@pytest.mark.parametrize("fewest", [1, 3])
def test_a_model_that_cannot_be_loaded_ends_the_run(fewest: int, tmp_path: Path, ray: StandIn) -> None:
    path = write_solutions(tmp_path / "in.jsonl", 3)

    def refuse() -> None:
        raise EngineError("no such model")

    engine = Scripted()
    engine.on_start = refuse
    with pytest.raises(EngineError, match="no such model"):
        judge(path, tmp_path / "run", engine, Cluster(fewest=fewest, most=fewest))
    assert len(ray.actors) == fewest
    ray.actors.clear()

    def die() -> None:
        for actor in ray.actors:
            actor.die("out of memory")

    engine.on_start = die
    with pytest.raises(EngineError, match="3 replicas died while they loaded the model, the last so: out of memory"):
        judge(path, tmp_path / "run", engine, Cluster())
    assert len(ray.actors) == 3
    assert not (tmp_path / "run").exists()


def test_replicas_of_different_models_are_refused(tmp_path: Path, ray: StandIn) -> None:
    path = write_solutions(tmp_path / "in.jsonl", 200)
    engine = Scripted(concurrency=2)

    def change() -> None:
        engine.noise += 0.01

    engine.on_start = change
    with pytest.raises(EngineError, match=r"a replica on 10\.0\.0\.1 has another model or settings \(engine\)"):
        judge(path, tmp_path / "run", engine, Cluster(fewest=2, most=2))


def test_an_engine_that_stops_answering_is_replaced_once(tmp_path: Path, ray: StandIn) -> None:
    path = write_solutions(tmp_path / "in.jsonl", 20)
    engine = Scripted(concurrency=4)

    def fail(number: int, prompt: Prompt) -> None:
        if len(ray.actors) == 1 and number > 20:
            raise EngineUnavailable("its process ended")

    engine.on_request = fail
    assert judge(path, tmp_path / "run", engine, Cluster()).num_solutions == 20
    assert len(ray.actors) == 2


def test_there_are_as_many_replicas_as_the_rows_fill(
    tmp_path: Path, ray: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clusters, "_IDLE_S", 0.02)
    few = write_solutions(tmp_path / "few.jsonl", 3)
    judge(few, tmp_path / "few", Scripted(concurrency=4), Cluster(most=3))
    assert len(ray.actors) == 1
    ray.actors.clear()

    # Eleven rows are three times four places; the last of them takes longest, and the other two replicas are freed.
    rows = write_solutions(tmp_path / "in.jsonl", 11)
    engine, num_ready = Scripted(concurrency=4), list[int]()
    cluster = Cluster(most=3)
    cluster.on_replicas = num_ready.append
    generate = engine.generate

    async def slow(prompt: Prompt, sampling: Sampling) -> Completion:
        await asyncio.sleep(0.05 * ("Problem 0" in prompt.text))
        return await generate(prompt, sampling)

    engine.generate = slow  # type: ignore[method-assign]
    judge(rows, tmp_path / "run", engine, cluster)
    assert len(ray.actors) == max(num_ready) == 3
    assert num_ready[-1] == 1


def test_a_fault_of_ours_is_told_whole(tmp_path: Path, ray: StandIn) -> None:
    path = write_solutions(tmp_path / "in.jsonl", 3)
    engine = Scripted()

    def fault(number: int, prompt: Prompt) -> None:
        raise ZeroDivisionError("a fault")

    engine.on_request = fault
    with pytest.raises(RuntimeError, match=r"(?s)in a replica:.*ZeroDivisionError: a fault"):
        judge(path, tmp_path / "run", engine, Cluster())


def test_a_cluster_that_cannot_be_had(tmp_path: Path, ray: StandIn) -> None:
    path = write_solutions(tmp_path / "in.jsonl", 3)
    with pytest.raises(EngineError, match=r"--ray elsewhere: no such Ray cluster.*: nothing answers"):
        judge(path, tmp_path / "run", Scripted(), Cluster("elsewhere"))
    with pytest.raises(EngineError, match=r"--ray 127\.0\.0\.1:1: no such Ray cluster.*refused"):
        judge(path, tmp_path / "run", Scripted(), Cluster("127.0.0.1:1"))
    for cluster in (Cluster(fewest=9, most=9), Cluster(num_gpus=1)):
        with pytest.raises(EngineError, match="do not fit on this machine"):
            judge(path, tmp_path / "run", Scripted(), cluster)
    assert not ray.actors


def test_a_replica_of_another_version_is_refused(ray: StandIn) -> None:
    async def start() -> Any:
        return await clusters.ModelActor("0.0.0", "/", b"").start()

    assert "the command is of 0.0.0: install that" in str(asyncio.run(start()))


def test_options(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = ClusterOptions("auto", "2-8").cluster(RPRM("scripted:").rewarder)
    assert found is not None
    assert (found.address, found.fewest, found.most, found.num_gpus) == ("auto", 2, 8, 0)
    # Those of vLLM run on GPUs, unless it is said otherwise.
    model = RPRM("vllm:org/model?tensor_parallel_size=2").rewarder
    assert [ClusterOptions("auto", None, gpus).cluster(model).num_gpus for gpus in (None, 0.0)] == [2, 0]  # type: ignore[union-attr]
    for replicas in ("0", "3-2", "two", "2-", "-2", "1-99999"):
        with pytest.raises(InputError, match="give how many"):
            ClusterOptions("auto", replicas).cluster()
    with pytest.raises(InputError, match="are of --ray"):
        ClusterOptions(None, "2").cluster()

    monkeypatch.setitem(sys.modules, "ray", None)
    path = write_solutions(tmp_path / "in.jsonl", 1)
    for options in (["--ray"], ["--ray", "-q"], ["--ray", "auto"]):
        done = CliRunner().invoke(app, ["judge", str(path), "-m", "scripted:", *options])
        assert 'pip install ".[ray]"' in str(done.exception)


def test_the_recipes_are_well_formed() -> None:
    """A shell reads the one, and both give options that there are."""
    yaml = pytest.importorskip("yaml")
    folder = Path(__file__).parents[2] / "recipes" / "ray"
    subprocess.run(["bash", "-n", folder / "judge.slurm"], check=True)
    script = (folder / "judge.slurm").read_text().split(" -- \\\n")[1]
    job = yaml.safe_load((folder / "judge.yaml").read_text())
    assert job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["template"]["spec"]["volumes"]
    known = {name for one in COMMANDS["judge"].params for name in one.opts}
    for command in (script, job["spec"]["entrypoint"]):
        assert set(re.findall(r"(?<= )--[a-z-]+", command)) - known == set()
        assert "--ray auto --replicas" in command
