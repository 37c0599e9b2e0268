"""`rprm bench mathematics`, as a person runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from rprm.runs import read_measurement
from tests.warm import warm_cli

pytest.importorskip("math_verify")


def rprm(*arguments: object, columns: int = 160) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "rprm", *map(str, arguments)]
    return warm_cli().run(command, env={**os.environ, "COLUMNS": str(columns)})


def json_lines(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sets of three and two problems; one gold answer is a sentence."""
    folder = tmp_path_factory.mktemp("sets")
    json_lines(folder / "amc23.jsonl", [{"id": n, "problem": f"What is {n} + 5?", "answer": n + 5} for n in range(3)])
    json_lines(
        folder / "college_math.jsonl",
        [
            {"problem": "What is half of it?", "answer": r"\frac{1}{"},
            {"problem": "Half of 1?", "answer": r"\frac{1}{2}"},
        ],
    )
    return folder


@pytest.fixture(scope="module")
def solutions(data: Path) -> Path:
    """Two of amc23's problems solved by half, one not at all; college_math's second always."""
    return json_lines(
        data / "solutions.jsonl",
        [
            {"id": "amc23/0", "solutions": [r"\boxed{5}", r"\boxed{6}"]},
            {"id": 1, "problem": "What is 1 + 5?", "solutions": [["First.", r"\boxed{7}"], ["First.", r"\boxed{6}"]]},
            {"problem": "What is 2 + 5?", "solution": "I do not know."},
            {"problem": "What is 2 + 5?", "solution": r"\boxed{1}"},
            {"id": "college_math/1", "solutions": ["The answer is 0.5", r"\boxed{1/2}"]},
            {"id": "nowhere", "solution": "?"},
        ],
    )


def test_solutions_made_elsewhere(data: Path, solutions: Path, tmp_path: Path) -> None:
    command = ("bench", "mathematics", "--set", "amc23,college_math", "--data", data, "--candidates", solutions)
    done = rprm(*command, "--json", "--curve", "--resamples", 50, "--grades", tmp_path / "new" / "grades.jsonl")
    # One row is of no problem: exit code 3.
    assert done.returncode == 3, done.stderr
    measured = json.loads(done.stdout)
    assert {name: told["problems"] for name, told in measured["sets"].items()} == {"amc23": 3, "college_math": 1}
    accuracy = {
        row["method"]: {name: figure["value"] for name, figure in row["accuracy"].items()} for row in measured["rows"]
    }
    # amc23: pass@1 (1/2 + 1/2 + 0) / 3; the vote is a tie, for the first: right once; pass@2 twice of three.
    for method, amc, college in ("pass@1", 1 / 3, 1.0), ("majority@2", 1 / 3, 1.0), ("pass@2", 2 / 3, 1.0):
        expected = {"amc23": 100 * amc, "college_math": 100 * college, "average": 50 * (amc + college)}
        assert accuracy[method] == pytest.approx(expected)
    assert {row["method"] for row in measured["curve"]} == {"majority@1", "pass@1", "majority@2", "pass@2"}
    assert measured["notes"] == [
        f"{solutions}: 1 problems have no solutions in it, and are not measured",
        f"{solutions}: 1 rows could not be used; the first, line 6: no problem has id 'nowhere'",
        f"{solutions}: 1 of 8 solutions give no answer",
    ]
    grades = [json.loads(line) for line in (tmp_path / "new" / "grades.jsonl").read_text().splitlines()]
    assert len(grades) == 8
    assert grades[0] == {
        "run": str(solutions), "id": "amc23/0", "candidate": 0, "answer": "5", "outcome": "equal", "correct": True,
        "group": 0,
    }  # fmt: skip
    assert [(row["outcome"], row["correct"], row["group"]) for row in grades if row["id"] == "amc23/2"] == [
        ("no answer", False, -1), ("different", False, 0),
    ]  # fmt: skip


def test_the_tables(data: Path, solutions: Path) -> None:
    command = ("bench", "mathematics", "--set", "amc23,college_math", "--data", data, "--candidates", solutions)
    done = rprm(*command, "--curve", "--resamples", 50)
    assert done.returncode == 3, done.stderr
    lines = done.stdout.splitlines()
    row = next(line.split() for line in lines if line.strip().startswith("pass@2"))
    # The sets, their average, the differences to the majority and to pass@1; how many tokens it took is not known.
    assert row == ["pass@2", "66.7", "100.0", "83.3", "+16.7", "+16.7"]
    assert "4 problems; below each figure its 95% interval, from 50 bootstrap resamples" in done.stdout
    assert "By number of candidates N, the mean over the sets" in " ".join(done.stdout.split())
    # Nothing is cut off where there is little room: the table goes on below.
    narrow = rprm(*command, "--resamples", 50, columns=60).stdout
    assert sum(line.split()[:1] == ["majority@2"] for line in narrow.splitlines()) >= 2
    assert max(map(len, narrow.splitlines())) <= 60
    assert "…" not in narrow


@pytest.mark.slow
def test_what_the_sets_hold(data: Path) -> None:
    done = rprm("bench", "mathematics", "--set", "college_math", "--data", data, "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)["sets"]["college_math"]
    assert told["problems"] == 2
    # It is cut short: no other way of writing it would be recognised.
    assert told["unrecognised"] == {"college_math/0": r"\frac{1}{"}
    assert told["data"]["name"] == str(data / "college_math.jsonl")
    assert told["data"]["digest"].startswith("sha256:")
    shown = rprm("bench", "mathematics", "--set", "college_math,amc23", "--data", data).stdout
    assert [line.split()[:4] for line in shown.splitlines() if "sha256" in line] == [
        ["college_math", "2", "1", "0"], ["amc23", "3", "3", "0"],
    ]  # fmt: skip


def test_sampled_first_then_judged_then_measured(data: Path, tmp_path: Path) -> None:
    done = rprm(
        "bench", "mathematics", "--set", "amc23", "--data", data, "--policy", "scripted:", "-n", 4, "--json",
        "--output", tmp_path / "samples", "--resamples", 50,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    first = json.loads(done.stdout)
    assert [row["method"] for row in first["rows"]] == ["pass@1", "majority@4", "pass@4"]
    assert {row["model"] for row in first["rows"]} == {"scripted:pseudo-random"}
    (time,) = first.pop("time").values()
    assert (time["seconds"] > 0, time["sessions"], time["untimed_sessions"]) == (True, 1, 0)
    kept = read_measurement(tmp_path / "samples")
    assert {name: value for name, value in kept.items() if name not in ("crc", "of_rows")} == first
    assert first["rows"][1]["policy_tokens"] == pytest.approx(4 * first["rows"][0]["policy_tokens"])

    done = rprm(
        "search", "best-of-n", "--candidates", tmp_path / "samples", "--model", "scripted:", "-k", 2, "--stopping",
        "none", "--output", tmp_path / "judged", "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    done = rprm(
        "bench", "mathematics", tmp_path / "samples", tmp_path / "judged", "--json", "--resamples", 50, "--grades",
        tmp_path / "grades.jsonl", "--baseline", "Best-of-4 (min)",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    both = json.loads(done.stdout)
    # The candidates are the same: their rows stand there once, and are those of before.
    accuracy = {row["method"]: row["accuracy"] for row in both["rows"]}
    assert len(accuracy) == len(both["rows"]) == 3 + 8
    assert {row["method"]: row["accuracy"] for row in first["rows"]} == {
        method: accuracy[method] for method in ("pass@1", "majority@4", "pass@4")
    }
    # The same from the grades of each solution.
    right = defaultdict(list)
    for line in (tmp_path / "grades.jsonl").read_text().splitlines():
        row = json.loads(line)
        right[row["id"]].append(row["correct"])
    chosen = {
        row["problem"]["id"]: row["chosen"]
        for row in map(json.loads, (tmp_path / "judged" / "results.jsonl").read_text().splitlines())
    }
    assert accuracy["Best-of-4 (min)"]["amc23"]["value"] == pytest.approx(
        100 * sum(right[name][index] for name, index in chosen.items()) / 3
    )
    assert set(both["rows"][0]["differences"]) == {"Best-of-4 (min)", "majority@4"}


def test_a_guided_search_beside_best_of_n(data: Path, tmp_path: Path) -> None:
    models = ("--policy", "scripted:", "--model", "scripted:", "-k", 2, "--set", "amc23", "--data", data)
    assert rprm("search", "guided", *models, "--output", tmp_path / "guided").returncode == 0
    assert rprm("search", "best-of-n", *models, "-n", 3, "--output", tmp_path / "best").returncode == 0
    done = rprm("bench", "mathematics", tmp_path / "best", tmp_path / "guided", "--json", "--resamples", 50)
    assert done.returncode == 0, done.stderr
    rows = {row["method"]: row for row in json.loads(done.stdout)["rows"]}
    # Judged as far as the choice needs: one choice, no other aggregation.
    assert list(rows) == [
        "pass@1", "majority@3", "pass@3", "Best-of-3 (min)", "guided search (8 steps a round, last)",
    ]  # fmt: skip
    # What the three problems cost is what the runs themselves counted.
    best, guided = (json.loads((tmp_path / run / "summary.json").read_text()) for run in ("best", "guided"))
    for row, paid in (
        (rows["Best-of-3 (min)"], best["num_generated_tokens"]),
        (rows["guided search (8 steps a round, last)"], guided["num_judge_tokens"]),
    ):
        assert row["judge_tokens"] == pytest.approx(paid / 3)
        assert set(row["differences"]) == {"pass@1", "majority@3"}
    assert rows["guided search (8 steps a round, last)"]["policy_tokens"] == guided["num_policy_tokens"] / 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "say what to measure: run folders, or --set LIST with --policy SPEC or --candidates FILE"),
        (["--candidates", "file.jsonl"], "say which problems the solutions are of: --set LIST"),
        (["--policy", "scripted:"], "say which problems the solutions are of: --set LIST"),
        (["--set", "amc23", "--policy", "scripted:", "--candidates", "f"], "two sources of solutions: give one"),
        (["run", "--set", "amc23", "--data", "DATA"], "runs have their problems with them: leave out --set, --data"),
        (["run"], "run is not a run folder: it has no manifest.json"),
        (["--set", "amc24"], "'amc24' is no mathematics set"),
    ],
)
def test_mistakes(arguments: list[str], message: str) -> None:
    done = rprm("bench", "mathematics", *arguments)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr
