"""A run folder that the disk or an editor damaged: `rprm judge` names the file and line, and goes no further."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from rprm.cli.app import app
from rprm.errors import CorruptRun
from rprm.runs import Journal, checksums_of, read_manifest
from tests.faults.folder_damages import as_older

MANIFEST, RESULTS, JOURNAL = "manifest.json", "results.jsonl", "journal-000001.jsonl"


def judge(folder: Path) -> Any:
    return CliRunner().invoke(
        app, ["judge", str(folder / "in.jsonl"), "--model", "scripted:", "-o", str(folder / "run"), "--quiet"]
    )


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four solutions that was killed after the second: the third's analyses are in the journal."""
    folder = tmp_path_factory.mktemp("killed")
    rows = [{"id": f"s{number}", "problem": f"p{number}", "steps": ["a", "b"]} for number in range(4)]
    (folder / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert judge(folder).exit_code == 0
    run = folder / "run"
    shutil.copytree(run, folder / "whole")
    results = (run / RESULTS).read_text().splitlines(keepends=True)
    (run / RESULTS).write_text("".join(results[:2]))
    journal = Journal(run, checksums_of(read_manifest(run)).value)
    for step in json.loads(results[2])["steps"]:
        for sample, analysis in enumerate(step["analyses"]):
            journal.append(2, f"{step['step_index']}.{sample}", analysis)
    journal.close()
    (run / "summary.json").unlink()
    return folder


@pytest.fixture(scope="module")
def older(killed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as a version without checksums wrote it."""
    folder = tmp_path_factory.mktemp("older")
    shutil.copytree(killed, folder, dirs_exist_ok=True)
    for run in (folder / "run", folder / "whole"):
        as_older(run)
    return folder


@pytest.mark.parametrize("kind", ["killed", "older"])
def test_undamaged_it_is_resumed(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    run = request.getfixturevalue(kind)
    shutil.copytree(run, tmp_path, dirs_exist_ok=True)
    assert judge(tmp_path).exit_code == 0
    assert (tmp_path / "run" / RESULTS).read_bytes() == (run / "whole" / RESULTS).read_bytes()
    assert ("crc" in read_manifest(tmp_path / "run")) is (kind == "killed")
    assert (b'"crc"' in (tmp_path / "run" / RESULTS).read_bytes()) is (kind == "killed")


def edited(name: str, line: int, change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    """One row (of the manifest: the whole file) with a change; what `change` returns takes its place."""

    def damage(run: Path) -> None:
        lines = [(run / name).read_text()] if name == MANIFEST else (run / name).read_text().splitlines()
        row = json.loads(lines[line - 1])
        made = change(row)
        lines[line - 1] = made if isinstance(made, str) else json.dumps(row)
        (run / name).write_text("\n".join(lines) + "\n")

    return damage


def renamed(old: str, new: str = "x") -> Callable[[dict[str, Any]], None]:
    def change(row: dict[str, Any]) -> None:
        row[new] = row.pop(old)

    return change


def is_folder(name: str) -> Callable[[Path], None]:
    def damage(run: Path) -> None:
        (run / name).unlink(missing_ok=True)
        (run / name).mkdir()

    return damage


def at(*path: str | int, value: Any) -> Callable[[dict[str, Any]], None]:
    """The value at a path of keys and places."""

    def change(row: Any) -> None:
        for name in path[:-1]:
            row = row[name]
        row[path[-1]] = value

    return change


DEEP = "[" * 100_000 + "]" * 100_000
NAN = float("nan")
ANALYSIS = ("steps", 0, "analyses", 0)

DAMAGES: dict[str, tuple[str, int | None, Callable[[Path], None]]] = {
    "manifest: a key renamed": (MANIFEST, None, edited(MANIFEST, 1, renamed("sessions"))),
    "manifest: NaN": (MANIFEST, None, edited(MANIFEST, 1, at("settings", "threshold", value=NAN))),
    "manifest: another type": (MANIFEST, None, edited(MANIFEST, 1, at("stage", value=7))),
    "manifest: no sessions": (MANIFEST, None, edited(MANIFEST, 1, at("sessions", value=[]))),
    "manifest: a session is a number": (MANIFEST, None, edited(MANIFEST, 1, at("sessions", 0, value=3))),
    "manifest: nested too deep to read": (MANIFEST, None, edited(MANIFEST, 1, lambda row: DEEP)),
    "manifest: no text": (MANIFEST, None, lambda run: (run / MANIFEST).write_bytes(b"\xff\xfe\x00")),
    "manifest: a folder": (MANIFEST, None, is_folder(MANIFEST)),
    "results: out of range": (RESULTS, 2, edited(RESULTS, 2, at("steps", 0, "reward", value=1.5))),
    "results: NaN": (RESULTS, 1, edited(RESULTS, 1, at("steps", 0, "reward", value=NAN))),
    "results: a key renamed": (RESULTS, 2, edited(RESULTS, 2, renamed("num_steps"))),
    "results: no object": (RESULTS, 1, edited(RESULTS, 1, lambda row: "null")),
    "results: nested too deep": (RESULTS, 2, edited(RESULTS, 2, lambda row: DEEP)),
    "results: no such step": (RESULTS, 1, edited(RESULTS, 1, at("first_error", value=2))),
    "results: a negative step": (RESULTS, 1, edited(RESULTS, 1, at("steps", 0, "step_index", value=-1))),
    "results: negative tokens": (RESULTS, 1, edited(RESULTS, 1, at(*ANALYSIS, "num_tokens", value=-5))),
    "results: another id": (RESULTS, 2, edited(RESULTS, 2, at("id", value="s7"))),
    "results: a folder": (RESULTS, None, is_folder(RESULTS)),
    "journal: a key renamed": (JOURNAL, 2, edited(JOURNAL, 2, renamed("index"))),
    "journal: NaN": (JOURNAL, 1, edited(JOURNAL, 1, at("index", value=NAN))),
    "journal: a negative row": (JOURNAL, 1, edited(JOURNAL, 1, at("index", value=-1))),
    "journal: a key that is a list": (JOURNAL, 3, edited(JOURNAL, 3, at("key", value=["0.0"]))),
    "journal: no piece": (JOURNAL, 1, edited(JOURNAL, 1, at("piece", value=None))),
    "journal: nested too deep": (JOURNAL, 2, edited(JOURNAL, 2, lambda row: DEEP)),
    "journal: a piece out of range": (JOURNAL, 2, edited(JOURNAL, 2, at("piece", "p_yes", value=2))),
    "journal: a piece's key renamed": (JOURNAL, 1, edited(JOURNAL, 1, lambda row: renamed("text")(row["piece"]))),
    "journal: a piece that is a list": (JOURNAL, 1, edited(JOURNAL, 1, at("piece", value=[0.5]))),
    "journal: a folder": (JOURNAL, None, is_folder(JOURNAL)),
    "lock: a folder": ("lock", None, is_folder("lock")),
    "rejected: a folder": ("rejected.jsonl", None, is_folder("rejected.jsonl")),
    "summary: a folder": ("summary.json", None, is_folder("summary.json")),
}  # fmt: skip


@pytest.mark.parametrize("kind", ["killed", "older"])
@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_named_with_file_and_line(
    name: str, kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    file, line, damage = DAMAGES[name]
    shutil.copytree(request.getfixturevalue(kind), tmp_path, dirs_exist_ok=True)
    run = tmp_path / "run"
    damage(run)
    done = judge(tmp_path)
    assert isinstance(done.exception, CorruptRun), done.exception
    message = str(done.exception)
    assert message.startswith(str(run / file))
    assert line is None or f"line {line} " in message
    assert "new run folder" in message
    assert len(message) < 600


def test_what_a_damaged_run_tells_of_its_benchmark_is_not_believed(older: Path, tmp_path: Path) -> None:
    shutil.copytree(older, tmp_path, dirs_exist_ok=True)
    items = ("--data", str(tmp_path / "items.jsonl"))
    rows = [{"id": f"s{number}", "problem": "p", "steps": ["a", "b"], "label": -1} for number in range(4)]
    (tmp_path / "items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, value in (("threshold", None), ("limit", "all"), ("benchmark", ["x"])):
        shutil.copy(older / "run" / MANIFEST, tmp_path / "run" / MANIFEST)
        edited(MANIFEST, 1, at("settings", name, value=value))(tmp_path / "run")
        done = CliRunner().invoke(app, ["bench", "processbench", *items, "--scores", str(tmp_path / "run")])
        assert isinstance(done.exception, CorruptRun), done.exception
        assert f"'{name}'" in str(done.exception)
