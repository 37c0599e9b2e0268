"""What other distributions add by entry points, a command or a benchmark: one file and its metadata are enough."""

from __future__ import annotations

import json
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


BENCHMARK = '''"""Is the first step called as it is labelled?"""

import numpy as np

from rprm.benchmarks import Benchmark, BenchmarkItems, Coverage, Flag, ResultTable, TableLine, Tally
from rprm.reading import Source, read_solutions


class Item:
    def __init__(self, solution):
        self.id, self.solution = solution.id, solution


def read(data, *, revision=None):
    source = Source(data)
    return BenchmarkItems(tuple(map(Item, read_solutions(source))), sources=(source.inspect(),))


def tally(items, scores, *, threshold, allow_missing, turned=False):
    right = [
        ((scores.p_yes[item.id][0] < threshold) == (item.solution.label == 0)) != turned for item in items.items
    ]
    return Tally(
        benchmark="openings", threshold=threshold, ids=tuple(item.id for item in items.items),
        strata=np.array(["all"] * len(right)), counts=np.array([[hit, 1.0] for hit in right]),
        outcomes=np.array(right, dtype=int)[:, None], figure_names=("accuracy",),
        figures_of=lambda sums: 100.0 * sums[..., :1] / sums[..., 1:], headline="accuracy",
        coverage={"all": Coverage(len(right), 0, len(right), len(right))},
        layout=lambda m: ResultTable("Openings", ("figure", "percent"), [TableLine("right", [m.figures["accuracy"]])]),
    )


OPENINGS = Benchmark(
    name="openings", help="Openings: the first step alone.", read=read, tally=tally,
    flags={"turned": Flag("Right is wrong.")},
)
'''


def install(folder: Path, source: str, *names: str, group: str = "rprm.commands", value: str = "app") -> None:
    """What a package manager leaves of a distribution with one module and entry points."""
    (folder / "their_command.py").write_text(source)
    metadata = folder / "their_command-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: their-command\nVersion: 1.0\n")
    points = "".join(f"{name} = their_command:{value}\n" for name in names)
    (metadata / "entry_points.txt").write_text(f"[{group}]\n{points}")


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
    # Completion is of the whole program.
    assert "completion" not in rprm(tmp_path, "count", "--help").stdout
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


@pytest.mark.slow
def test_a_benchmark_of_one_file_is_judged_measured_and_compared(tmp_path: Path) -> None:
    install(tmp_path, BENCHMARK, "openings", group="rprm.benchmarks", value="OPENINGS")
    rows = [{"id": f"s{n}", "problem": f"p{n}", "steps": ["a", "b"], "label": (0, 1, -1)[n % 3]} for n in range(9)]
    (tmp_path / "items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert "Openings: the first step alone." in rprm(tmp_path, "bench", "--help").stdout
    for name in ("one", "two"):
        options = ("--model", f"scripted:?yes_rate=0.{len(name)}", "--output", name)
        done = rprm(tmp_path, "bench", "openings", "items.jsonl", *options, "--json")
        assert done.returncode == 0, done.stderr
    accuracy = json.loads(done.stdout)["figures"]["accuracy"]["value"]
    turned = rprm(tmp_path, "bench", "openings", "items.jsonl", "--scores", "two", "--turned", "--json")
    found = json.loads(turned.stdout)
    assert found["figures"]["accuracy"]["value"] == pytest.approx(100.0 - accuracy)
    assert found["turned"] is True
    assert "Openings" in rprm(tmp_path, "bench", "openings", "items.jsonl", "--scores", "two").stdout
    compared = rprm(tmp_path, "bench", "compare", "one", "two", "--json")
    assert json.loads(compared.stdout)["second"]["accuracy"] == accuracy
