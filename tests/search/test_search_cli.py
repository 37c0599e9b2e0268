"""`rprm search sample` and `rprm search best-of-n`, each in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rprm.runs import read_manifest
from tests.warm import warm_cli


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "rprm", "search", *map(str, arguments)]


def rprm(*arguments: object) -> subprocess.CompletedProcess[str]:
    return warm_cli().run(command(*arguments), env={**os.environ, "COLUMNS": "100"})


def write_problems(path: Path, count: int, *, gold: bool = False, broken: bool = False) -> Path:
    answers = [{"answer": str(n + 1)} if gold else {} for n in range(count)]
    rows = [{"id": f"p{n}", "problem": f"What is {n} + 1?", **answer} for n, answer in enumerate(answers)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + ("{broken\n" if broken else ""))
    return path


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


def test_sample_then_choose(tmp_path: Path) -> None:
    problems = write_problems(tmp_path / "problems.jsonl", 6)
    done = rprm("sample", "--policy", "scripted:", "--problems", problems, "-n", 3, "-o", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    said = " ".join(done.stdout.split())
    assert "6 problems 18 candidates" in said
    assert "percent" not in said
    assert [len(row["candidates"]) for row in rows(tmp_path / "run")] == [3] * 6

    chosen = tmp_path / "chosen"
    done = rprm("best-of-n", "--candidates", tmp_path / "run", "--model", "scripted:", "-o", chosen, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["totals"]["num_candidates"] == 18
    assert found["totals"]["num_analyses"] < found["totals"]["num_analyses_full"]
    assert found["measurement"] is None
    assert read_manifest(chosen)["settings"]["policy"]["engine"]["kind"] == "scripted"
    # Begun again, it prints the same without judging.
    again = rprm("best-of-n", "--candidates", tmp_path / "run", "--model", "scripted:", "-o", chosen, "--json")
    assert again.stdout == done.stdout


def test_best_of_n_samples_first(tmp_path: Path) -> None:
    problems = write_problems(tmp_path / "problems.jsonl", 4, broken=True)
    arguments = ("--policy", "scripted:", "--problems", problems, "-n", 2, "--model", "scripted:", "--limit", 3)
    done = rprm("best-of-n", *arguments, "-o", tmp_path / "run", "--aggregate", "product", "--stopping", "none")
    assert done.returncode == 3, done.stderr
    assert "rejected: " in done.stderr
    assert [row["problem"]["id"] for row in rows(tmp_path / "run" / "candidates")] == ["p0", "p1", "p2"]
    judged = rows(tmp_path / "run")
    assert [row["chosen"] in (0, 1) for row in judged] == [True] * 3
    assert all(reward["settled"] for row in judged for reward in row["rewards"])
    # A folder of other things is none to choose in.
    other = tmp_path / "other"
    (other / "candidates").mkdir(parents=True)
    (other / "notes.txt").write_text("")
    done = rprm("best-of-n", "--candidates", tmp_path / "run" / "candidates", "--model", "scripted:", "-o", other)
    assert (done.returncode, "is not empty" in done.stderr) == (1, True)


def test_accuracy_where_there_are_gold_answers(tmp_path: Path) -> None:
    problems = write_problems(tmp_path / "problems.jsonl", 4, gold=True)
    lines = [
        {"id": f"p{n}", "solutions": [f"So it is \\boxed{{{n + 1}}}.", f"So it is \\boxed{{{n}}}."]} for n in range(3)
    ]
    path = tmp_path / "candidates.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    arguments = ("best-of-n", "--candidates", path, "--problems", problems, "--model", "scripted:?lost=1")
    done = rprm(*arguments, "-o", tmp_path / "run")
    # Nothing could be judged: that is said, with the reason, and no success.
    assert done.returncode == 1
    assert "no step of any solution could be judged; the first: none of 10 analyses" in done.stderr
    said = " ".join(done.stdout.split())
    # No candidate has a reward: the first is taken, and each first is right.
    assert "3 problems in which no candidate has a reward" in said
    assert "1 problems that the file has no candidates of" in said
    assert "Best-of-2" in said
    done = rprm(*arguments, "-o", tmp_path / "run", "--json")
    measured = json.loads(done.stdout)["measurement"]
    accuracy = {row["method"]: row["accuracy"]["problems"]["value"] for row in measured["rows"]}
    assert accuracy["pass@1"] == 50.0
    assert accuracy["Best-of-2 (min)"] == accuracy["pass@2"] == 100.0


def test_solutions_that_a_search_began_are_written_on(tmp_path: Path) -> None:
    problems, guided, written = write_problems(tmp_path / "problems.jsonl", 4), tmp_path / "guided", tmp_path / "run"
    options = "-p", "scripted:", "-m", "scripted:", "-k", 1, "--max-rounds", 1
    done = rprm("guided", "--problems", problems, *options, "-o", guided)
    assert done.returncode == 0, done.stderr
    done = rprm("sample", "--policy", "scripted:", "--after", guided, "-n", 3, "--limit", 2, "-o", written)
    assert done.returncode == 0, done.stderr
    for tree, row in zip(rows(guided)[:2], rows(written), strict=True):
        assert tree["problem"] == row["problem"]
        assert all(one["text"].startswith(f"{tree['text']}\n\nStep 2: ") for one in row["candidates"])
        assert all(one["steps"][0] == tree["text"] for one in row["candidates"])
    # The policy's own sample j after those steps, whatever else is sampled.
    more = rprm("sample", "--policy", "scripted:", "--after", guided, "-n", 4, "-o", tmp_path / "more")
    assert more.returncode == 0, more.stderr
    assert [row["candidates"][:3] for row in rows(tmp_path / "more")[:2]] == [
        row["candidates"] for row in rows(written)
    ]
    for arguments, message in (
        (("--after", guided, "--problems", problems), "leave out --set, --problems"),
        (("--after", guided, "--data", tmp_path), "leave out --set, --problems"),
        (("--after", written), "is a run of 'search-sample'; name one of `rprm search guided`"),
    ):
        refused = rprm("sample", "--policy", "scripted:", *arguments, "-o", tmp_path / "refused")
        assert refused.returncode == 1
        assert message in " ".join(refused.stderr.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("sample", "--policy", "scripted:"), "say which problems"),
        (("sample", "--policy", "scripted:", "--set", "aime24", "--problems", "x"), "say which problems"),
        (("sample", "--policy", "scripted:", "--set", "aime"), "'aime' is no mathematics set"),
        (("sample", "--policy", "scripted:", "--problems", "{problems}", "--data", "x"), "--data and --revision say"),
        (("sample", "--policy", "scripted:", "--problems", "missing.jsonl"), "no such file"),
        (
            ("sample", "--policy", "scripted:", "--problems", "{problems}", "--policy-temperature", "0"),
            "would be equal",
        ),
        (("sample", "--policy", "magic:", "--problems", "{problems}"), "unknown engine 'magic'"),
        (("best-of-n", "--model", "scripted:"), "say what to choose from"),
        (("best-of-n", "--model", "scripted:", "--candidates", "{problems}"), "say which problems"),
        (("best-of-n", "--model", "scripted:", "--candidates", "{folder}"), "is not a run folder"),
        (
            ("best-of-n", "--model", "scripted:", "--candidates", "{folder}", "--set", "aime24"),
            "has its problems with it",
        ),
    ],
)
def test_what_cannot_be_done_is_told_in_one_message(tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    names = {"problems": write_problems(tmp_path / "problems.jsonl", 1), "folder": tmp_path}
    done = rprm(*(argument.format_map(names) for argument in arguments), "-o", tmp_path / "run")
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()
