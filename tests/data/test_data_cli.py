"""The data commands one after the other, as a person runs them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.warm import warm_cli

SOLUTIONS = [
    {
        "id": f"p{number}",
        "problem": f"Problem {number}: add.",
        "steps": ["One.", f"Two is {number}."],
        "label": number % 2,
    }
    for number in range(-1, 39)
]


def rprm(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "rprm", *map(str, arguments)]
    return warm_cli().run(command, env={**os.environ, "COLUMNS": "120"})


@pytest.mark.slow
def test_from_solutions_to_training_rows(tmp_path: Path) -> None:
    source = tmp_path / "solutions.jsonl"
    # Labels 1, 0, 1, ...: the first error is the second step or the first; one row is broken.
    source.write_text("".join(json.dumps(row) + "\n" for row in SOLUTIONS) + "{broken\n")
    done = rprm("data", "steps", source, "--output", tmp_path / "steps", "--json")
    assert done.returncode == 3, done.stderr
    # 20 solutions with label 1 give a right and a wrong step, 20 with label 0 a wrong one.
    steps = (tmp_path / "steps" / "results.jsonl").read_text().splitlines()
    assert len(steps) == 60
    assert sum(json.loads(row)["label"] for row in steps) == 20

    model = "scripted:?yes_rate=0.5&noise=0.4&lost=0.05"
    done = rprm(
        "data", "analyses", tmp_path / "steps", "--model", model, "-n", 6, "--output", tmp_path / "analyses", "--json"
    )
    assert done.returncode == 0, done.stderr
    totals = json.loads(done.stdout)
    assert (totals["num_steps"], totals["num_analyses"]) == (60, 360)

    done = rprm(
        "data", "cold-start", tmp_path / "analyses", "--prompt", "critique", "--validation", 0.2, "--output",
        tmp_path / "cold",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "dropped: verdict disagrees with the label" in done.stdout
    rows = [json.loads(line) for line in (tmp_path / "cold" / "train.jsonl").read_text().splitlines()]
    assert len(rows) == 2 * sum(row["label"] for row in rows) > 10
    assert all(row["completion"][0]["content"].endswith(("Yes", "No")) for row in rows)

    done = rprm("data", "pairs", tmp_path / "analyses", "--output", tmp_path / "pairs", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["counts"]["steps"] == 60
    assert (tmp_path / "pairs" / "rprm_prompt.toml").exists()

    # Labelled steps are a benchmark too, and two runs of it can be compared.
    for name, seed in (("a", 0), ("b", 1)):
        done = rprm(
            "bench", "steps", tmp_path / "steps", "--model", model, "-k", 3, "--seed", seed, "--allow-missing",
            "--output", tmp_path / name,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert "Labelled steps at threshold 0.5" in done.stdout
    again = rprm("bench", "steps", tmp_path / "steps", "--scores", tmp_path / "a", "--json", "--allow-missing")
    stored = json.loads((tmp_path / "a" / "measurement.json").read_text())
    assert json.loads(again.stdout)["figures"] == stored["figures"]
    done = rprm("bench", "compare", tmp_path / "a", tmp_path / "b", "--allow-missing", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["items"] == 60


def test_what_a_person_did_wrong_is_one_message(tmp_path: Path) -> None:
    plain = tmp_path / "rows.jsonl"
    plain.write_text("")
    done = rprm("data", "cold-start", plain, "--output", tmp_path / "out")
    assert done.returncode == 1
    assert done.stderr == "rprm: a plain file of analyses does not tell its template: give --prompt\n"
    done = rprm("data", "analyses", tmp_path / "none", "--model", "scripted:", "--output", tmp_path / "out")
    assert done.returncode == 1
    assert "no such file" in done.stderr
    assert "Traceback" not in done.stderr
