"""Commands of other distributions, by the entry point `rprm.commands`: a file and its metadata are enough."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

COMMAND = '''"""Counts the solutions of a run."""

import typer

app = typer.Typer(help="Count what a run judged.")


@app.callback()
def count() -> None:
    pass


@app.command()
def results(run: str) -> None:
    """The number of results."""
    from rprm.runs import RESULTS, read_json_lines
    from pathlib import Path

    print(sum(1 for _ in read_json_lines(Path(run) / RESULTS)), "results")
'''


def install(folder: Path, source: str, *names: str) -> None:
    """What a package manager leaves of a distribution with one module and entry points."""
    (folder / "their_command.py").write_text(source)
    metadata = folder / "their_command-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: their-command\nVersion: 1.0\n")
    points = "".join(f"{name} = their_command:app\n" for name in names)
    (metadata / "entry_points.txt").write_text(f"[rprm.commands]\n{points}")


def rprm(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.run(
        [sys.executable, "-m", "rprm", *arguments],
        env={**os.environ, "PYTHONPATH": path},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_a_command_of_one_file_runs_and_is_listed(tmp_path: Path) -> None:
    install(tmp_path, COMMAND, "count", "judge")
    run = tmp_path / "run"
    run.mkdir()
    (run / "results.jsonl").write_text("{}\n{}\n")
    done = rprm(tmp_path, "count", "results", "run")
    assert (done.returncode, done.stdout) == (0, "2 results\n"), done.stderr
    assert "Count what a run judged." in rprm(tmp_path, "--help").stdout
    # A name of this package stays its own.
    assert "Judge solutions step by step" in rprm(tmp_path, "judge", "--help").stdout


@pytest.mark.parametrize("source", ["import no_such_module", "app = 3"])
def test_a_broken_command_of_another_harms_no_other(tmp_path: Path, source: str) -> None:
    install(tmp_path, source, "count")
    listed = rprm(tmp_path, "--help")
    assert listed.returncode == 0
    assert "cannot be loaded" in listed.stdout
    done = rprm(tmp_path, "count", "results", "--run", "run")
    assert done.returncode == 1
    assert "their-command" in done.stderr
    assert "Traceback" not in done.stderr
