"""Run folders on the server: lists, filters, two runs side by side, a solution in full."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from serving import Serve, scripted_policy

from rprm.cli.runs import ShownRuns
from rprm.engines.scripted import ScriptedEngine, ScriptedReply
from rprm.errors import InputError
from rprm.reading import Source, read_solutions
from rprm.rewarders import load_rewarder
from rprm.rewarders.base import judge_source
from tests.faults.folder_damages import as_older
from tests.warm import warm_cli

HOSTILE = "<b>bold</b><script>document.title='owned'</script>"


def judge_into(folder: Path, data: Path, p_yes: Callable[[str, int], float | None]) -> None:
    """A run whose analyses of a step have these P(Yes), by its text and the number of the sample."""
    seen: dict[str, int] = {}

    def reply(prompt: Any, sampling: Any) -> ScriptedReply:
        content = prompt.messages[-1].content
        step = "two" if "two" in content else content
        seen[step] = seen.get(step, -1) + 1
        return ScriptedReply(f"Analysis {HOSTILE}", p_yes(step, seen[step]), 5)

    rewarder = load_rewarder(ScriptedEngine(reply=reply), num_analyses=4, stopping="none", first_error_exit=False)
    source = Source(str(data))
    asyncio.run(judge_source(rewarder, read_solutions(source), source=source.inspect(), output=folder))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs `a` and `deep/b` on four solutions: `b` calls every step correct; `a` finds the steps that say bad, reaches
    no verdict where they say lost, and is torn where they say maybe. And a folder that is no run, and a broken one."""
    made = tmp_path_factory.mktemp("runs")
    rows = [
        {"id": "fine", "problem": HOSTILE, "steps": [f"one {HOSTILE}", "two"], "label": -1},
        {"id": "wrong", "problem": "p", "steps": ["bad", "two"], "label": 0},
        {"id": "lost", "problem": "p", "steps": ["lost", "two"], "label": 1},
        {"id": "torn", "problem": "p", "steps": ["maybe", "two"], "label": -1},
    ]
    data = made / "data.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)))

    def of_a(step: str, number: int) -> float | None:
        return None if "lost" in step else 0.0 if "bad" in step else number % 2 if "maybe" in step else 1.0

    judge_into(made / "a", data, of_a)
    judge_into(made / "deep" / "b", data, lambda step, number: 1.0)
    (made / "broken").mkdir()
    (made / "broken" / "manifest.json").write_text("{")
    return made


def ids(answer: Any) -> list[str]:
    return [one["id"] for one in answer.json()["data"]]


def test_lists_and_filters(serve: Serve, folder: Path) -> None:
    client = serve(runs=ShownRuns(folder))
    found = client.get("/v1/runs").json()["data"]
    assert [(one["name"], one["num_rows"]) for one in found] == [("a", 4), ("broken", 0), ("deep/b", 4)]
    assert "manifest.json" in found[1]["status"]

    def listed(**words: Any) -> Any:
        return client.get("/v1/runs/solutions", params={"run": "a"} | words)

    assert ids(listed()) == ["fine", "wrong", "lost", "torn"]
    lines = {one["id"]: one for one in listed().json()["data"]}
    assert lines["wrong"]["first_error"] == 0
    assert lines["wrong"]["rewards"] == [0.0, 1.0]
    # Two of four say Yes.
    assert (lines["torn"]["agreement"], lines["fine"]["agreement"]) == (0.5, 1.0)
    assert ids(listed(kind="missed")) == ["lost"]
    assert ids(listed(kind="unscored")) == ["lost"]
    assert ids(listed(kind="torn")) == ["torn"]
    assert ids(listed(kind="differ", beside="deep/b")) == ["wrong", "lost"]
    beside = listed(beside="deep/b").json()["data"]
    assert [one["beside"]["first_error"] for one in beside] == [-1] * 4
    page = listed(offset=1, limit=2)
    assert (ids(page), page.json()["has_more"]) == (["wrong", "lost"], True)
    assert (ids(listed(offset=3)), listed(offset=3).json()["has_more"]) == (["torn"], False)


def test_a_solution_in_full(serve: Serve, folder: Path) -> None:
    client = serve(runs=ShownRuns(folder))
    found = client.get("/v1/runs/solution", params={"run": "a", "id": "fine"}).json()
    assert found["problem"] == HOSTILE
    assert found["texts"] == [f"one {HOSTILE}", "two"]
    assert [step["num_analyses"] for step in found["steps"]] == [4, 4]
    assert HOSTILE in found["steps"][0]["analyses"][0]["text"]
    assert (found["first_error"], found["label"]) == (-1, -1)


@pytest.mark.parametrize(
    ("path", "words", "said"),
    [
        ("solutions", {"run": "../a"}, "no run '../a' here"),
        ("solutions", {"run": "/etc"}, "no run '/etc' here"),
        ("solutions", {"run": "broken"}, "manifest.json"),
        ("solutions", {"run": "a", "beside": "none"}, "no run 'none' here"),
        ("solutions", {"run": "a", "kind": "bad"}, "kind"),
        ("solutions", {"run": "a", "limit": "1000000"}, "limit"),
        ("solutions", {"run": "a", "offset": "9223372036854775807"}, "offset"),
        ("solution", {"run": "a", "id": "nobody"}, "no finished solution 'nobody'"),
        ("solution", {"run": "a"}, "id"),
    ],
)
def test_what_is_not_there(serve: Serve, folder: Path, path: str, words: dict[str, str], said: str) -> None:
    client = serve(runs=ShownRuns(folder))
    answer = client.get(f"/v1/runs/{path}", params=words)
    assert answer.status_code == 422
    assert said in answer.json()["error"]["message"]


def test_without_runs(serve: Serve, tmp_path: Path) -> None:
    client = serve()
    assert client.get("/v1/runs").json()["data"] == []
    assert "--runs FOLDER" in client.get("/v1/runs/solutions", params={"run": "a"}).json()["error"]["message"]
    with pytest.raises(InputError, match="no such folder"):
        ShownRuns(tmp_path / "none")


def test_solutions_that_share_an_id_and_problems_that_the_judge_does_not_know(serve: Serve, tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text(
        "\n".join(json.dumps({"id": "x", "problem": "Solve.", "steps": [one]}) for one in ("first", "second"))
    )
    judge_into(tmp_path / "run", data, lambda step, number: 1.0)
    as_older(tmp_path / "run")
    path = tmp_path / "run" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["settings"]["engine"] |= {"kind": "transformers", "model": "/elsewhere/rprm/embedded/judge"}
    path.write_text(json.dumps(manifest))
    client = serve(runs=ShownRuns(tmp_path))
    assert client.get("/v1/runs").json()["data"][0]["model"] == "embedded"
    found = client.get("/v1/runs/solution", params={"run": "run", "id": "x"}).json()
    assert found["texts"] == ["first"]
    assert "outside what the embedded model knows: the word 'Solve'" in found["notes"][0]
    assert found["notes"][1] == "the first of 2 solutions with this id: make ids unique"


def test_texts_that_are_gone(serve: Serve, tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text(json.dumps({"id": "x", "problem": "p", "steps": ["a"]}))
    judge_into(tmp_path / "run", data, lambda step, number: 1.0)
    data.unlink()
    client = serve(runs=ShownRuns(tmp_path))
    found = client.get("/v1/runs/solution", params={"run": "run", "id": "x"}).json()
    assert found["rewards"] == [1.0]
    assert "not at hand" in found["texts"][0]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A folder with the run `run`, of one solution."""
    (tmp_path / "data.jsonl").write_text(json.dumps({"id": "x", "problem": "p", "steps": ["a"]}))
    judge_into(tmp_path / "run", tmp_path / "data.jsonl", lambda step, number: 1.0)
    return tmp_path / "run"


def edit(run: Path, change: Callable[[Any], object]) -> None:
    """Change a manifest as a run without checksums would have it."""
    manifest = json.loads((run / "manifest.json").read_text())
    del manifest["crc"], manifest["files"]
    change(manifest)
    (run / "manifest.json").write_text(json.dumps(manifest))
    row = json.loads((run / "results.jsonl").read_text())
    (run / "results.jsonl").write_text(json.dumps({name: it for name, it in row.items() if name != "crc"}) + "\n")


HARMS: dict[str, Callable[[Any], object]] = {
    "limit": lambda manifest: manifest["settings"].update(limit="3"),
    "limits": lambda manifest: manifest["settings"].update(limit=[1]),
    "rows": lambda manifest: manifest["sessions"][-1].update(num_rows="x"),
    "input": lambda manifest: manifest["sessions"][-1].update(input="a\ud800"),
    "no text": lambda manifest: manifest["sessions"][-1].update(input={"a": [1]}),
    "model": lambda manifest: manifest["settings"]["engine"].update(model="\udcff"),
    "threshold": lambda manifest: manifest["settings"].update(threshold="x"),
    "tokens": lambda manifest: manifest["settings"].update(max_tokens="x"),
    "benchmark": lambda manifest: manifest["settings"].update(benchmark=["\ud800"]),
    "status": lambda manifest: manifest.update(status=None),
}


@pytest.mark.parametrize("harm", HARMS)
def test_a_harmed_manifest_costs_its_run(serve: Serve, run: Path, harm: str) -> None:
    judge_into(run.with_name("whole"), run.with_name("data.jsonl"), lambda step, number: 1.0)
    edit(run, lambda manifest: (HARMS[harm](manifest), manifest.update(status="running")))
    client = serve(runs=ShownRuns(run.parent))
    listed = client.get("/v1/runs")
    assert listed.status_code == 200
    assert [one["name"] for one in listed.json()["data"]] == ["run", "whole"]
    for path, words in (("solutions", {}), ("solution", {"id": "x"})):
        assert client.get(f"/v1/runs/{path}", params={"run": "run"} | words).status_code in (200, 422)
    commands = (
        ["runs", "list", str(run.parent)],
        ["show", str(run)],
        ["show", str(run), "--json"],
        ["show", str(run), "x"],
    )
    for command in commands:
        done = warm_cli().run([sys.executable, "-m", "rprm", *command])
        assert "Traceback" not in done.stderr
        assert len(done.stderr.splitlines()) <= 1


@pytest.mark.skipif(sys.platform != "linux", reason="names of bytes")
def test_a_folder_whose_name_is_no_unicode(serve: Serve, run: Path) -> None:
    os.rename(run, os.fsencode(run.parent) + b"/r\xffn")
    client = serve(runs=ShownRuns(run.parent))
    assert [one["name"] for one in client.get("/v1/runs").json()["data"]] == ["r\\xffn"]
    assert ids(client.get("/v1/runs/solutions", params={"run": "r\\xffn"})) == ["x"]


@pytest.mark.parametrize("place", ["id", "text"])
def test_a_row_that_is_no_unicode_is_damaged(serve: Serve, run: Path, place: str) -> None:
    """No run of ours has one: what is written is Unicode."""
    edit(run, lambda manifest: None)
    row = json.loads((run / "results.jsonl").read_text())
    if place == "id":
        row["id"] = "\ud800"
    else:
        row["steps"][0]["analyses"][0]["text"] = "\ud800"
    (run / "results.jsonl").write_text(json.dumps(row) + "\n")
    client = serve(runs=ShownRuns(run.parent))
    answer = client.get("/v1/runs/solutions", params={"run": "run"})
    assert (answer.status_code, "results.jsonl, line 1" in answer.text) == (422, True)
    for command in (["show", str(run), "x", "--json"], ["export", str(run), "--to", str(run.with_name("t.parquet"))]):
        done = warm_cli().run([sys.executable, "-m", "rprm", *command])
        assert (done.returncode, "results.jsonl, line 1" in done.stderr) == (1, True)
        assert "Traceback" not in done.stderr


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names")
def test_what_was_read_from_a_pipe_is_not_waited_for(serve: Serve, run: Path) -> None:
    data = run.with_name("data.jsonl")
    data.unlink()
    os.mkfifo(data)
    client = serve(runs=ShownRuns(run.parent))
    found = client.get("/v1/runs/solution", params={"run": "run", "id": "x"}).json()
    assert (found["rewards"], "read from a pipe" in found["problem"]) == ([1.0], True)


def test_reading_runs_has_a_time_and_a_number(serve: Serve) -> None:
    """A disk that does not answer holds up those who ask for its runs, nobody else."""
    goes_on = threading.Event()

    class Stuck(ShownRuns):
        def listed(self) -> list[dict[str, Any]]:
            goes_on.wait(30)
            return []

    client = serve(runs=Stuck(Path.cwd()), limits={"seconds": 0.5, "requests": 4}, policy=scripted_policy())
    try:
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda _: client.get("/v1/runs"), range(8)))
        assert sorted({one.status_code for one in answers} | {503}) in ([429, 503], [503])
        assert all("retry-after" in one.headers for one in answers)
        body = {"model": "majority-2", "messages": [{"role": "user", "content": "q"}]}
        assert client.post("/v1/chat/completions", json=body, timeout=20).status_code in (200, 503)
        assert client.get("/health").status_code == 200
    finally:
        goes_on.set()
