"""The stage: several sources into one run folder, without repetitions, contradictions and benchmark problems."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rprm.data.gathering import gather_steps, read_benchmarks
from rprm.data.stage_options import StepOptions
from rprm.data.steps import read_labelled_steps, steps_source
from rprm.errors import InputError, RunError, SettingsChanged
from rprm.reading import Source
from rprm.records import LabelledStep


def row(problem: str, step: str, label: bool = True, *previous: str, **changes: Any) -> dict[str, Any]:
    return {"problem": problem, "previous_steps": list(previous), "step": step, "label": label, **changes}


def write(path: Path, *rows: Any) -> Source:
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    return Source(str(path))


def gather(folder: Path, *sources: Source, **options: Any) -> tuple[SimpleNamespace, list[LabelledStep]]:
    result = SimpleNamespace(**gather_steps(sources, folder, **options))
    steps = list(read_labelled_steps(steps_source(folder)))
    assert all(isinstance(step, LabelledStep) for step in steps)
    return result, steps  # type: ignore[return-value]


def counts(**some: Any) -> SimpleNamespace:
    """What `gather` gives: these counts, and nothing of the others."""
    numbers = ("rows", "rejected", "steps", "correct", "wrong", "problems", "solutions", "duplicates", "conflicting")
    empty = {f"num_{name}": 0 for name in numbers}
    tables = {name: {} for name in ("formats", "positions", "sources", "skipped", "removed")}
    return SimpleNamespace(**{**empty, **tables, **some})


def lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_steps_in_the_order_of_the_sources(tmp_path: Path) -> None:
    first = write(tmp_path / "a.jsonl", row("p", "one"), row("p", "two", False, "one"))
    second = write(tmp_path / "b.jsonl", {"prompt": "q", "completions": ["x", "y"], "labels": [True, True]})
    result, steps = gather(tmp_path / "run", first, second)
    assert [(step.id, step.step, step.source) for step in steps] == [
        ("a-1", "one", "a"), ("a-2", "two", "a"), ("b-1-0", "x", "b"), ("b-1-1", "y", "b")
    ]  # fmt: skip
    # Two problems; one path each: (one, two) and (x, y).
    assert result == counts(
        num_rows=3,
        formats={"steps": 2, "stepwise": 1},
        num_steps=4,
        num_correct=3,
        num_wrong=1,
        num_problems=2,
        num_solutions=2,
        positions={0: {"correct": 2, "wrong": 0}, 1: {"correct": 1, "wrong": 1}},
        sources={"a": 2, "b": 2},
    )
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["num_steps"] == 4
    assert summary["positions"]["1"] == {"correct": 1, "wrong": 1}


def test_the_same_step_twice_is_kept_once(tmp_path: Path) -> None:
    source = write(
        tmp_path / "a.jsonl",
        row("p", "one"),
        row("p", "two", False, "one"),
        row("p", "one"),
        # The same but for white space; then another problem, another step before it, another step.
        row("p ", " one\n"),
        row("q", "one"),
        row("p", "two", False, "uno"),
        row("p", "one two"),
        row("p", "onetwo"),
    )
    result, steps = gather(tmp_path / "run", source)
    assert [step.id for step in steps] == ["a-1", "a-2", "a-5", "a-6", "a-7", "a-8"]
    assert (result.num_steps, result.num_duplicates, result.num_conflicting) == (6, 2, 0)
    # Paths: (one, two), q: (one), (uno, two), (one two), (onetwo).
    assert result.num_solutions == 5


def test_a_step_called_correct_and_wrong_is_left_out_wherever_it_stands(tmp_path: Path) -> None:
    source = write(
        tmp_path / "a.jsonl", row("p", "one"), row("p", "two", True, "one"), row("p", "two", False, "one"),
        row("q", "one", False), row("p", "two", True, "one"),
    )  # fmt: skip
    result, steps = gather(tmp_path / "run", source)
    assert [step.id for step in steps] == ["a-1", "a-4"]
    assert (result.num_duplicates, result.num_conflicting) == (0, 3)
    assert (result.num_steps, result.num_correct, result.num_wrong, result.num_solutions) == (2, 1, 1, 2)


def test_steps_and_previous_steps_do_not_run_into_each_other(tmp_path: Path) -> None:
    # ("a", then "b c") and ("a b", then "c") are different paths, as are (p, "a") and problem "p a" with no text apart.
    source = write(tmp_path / "a.jsonl", row("p", "b c", True, "a"), row("p", "c", False, "a b"), row("p a", "b c"))
    result, steps = gather(tmp_path / "run", source)
    assert len(steps) == 3
    assert result.num_conflicting == 0


def test_ids_are_unique_in_the_file(tmp_path: Path) -> None:
    first = write(tmp_path / "a.jsonl", row("p", "1", id="x"), row("p", "2", id="x"), row("p", "3", id="x~2"))
    (tmp_path / "other").mkdir()
    second = write(tmp_path / "other" / "a.jsonl", row("p", "4"), row("p", "5", id="x"))
    third = write(tmp_path / "b.jsonl", row("p", "6", id="a-1"))
    _, steps = gather(tmp_path / "run", first, second, third)
    assert [(step.step, step.id) for step in steps] == [
        ("1", "x"), ("2", "x~3"), ("3", "x~2"), ("4", "a-1"), ("5", "x~4"), ("6", "a-1~2")
    ]  # fmt: skip


def test_runs_are_sources_too(tmp_path: Path) -> None:
    _, steps = gather(tmp_path / "first", write(tmp_path / "a.jsonl", row("p", "1"), row("p", "2")))
    again, merged = gather(
        tmp_path / "second", steps_source(tmp_path / "first"), write(tmp_path / "b.jsonl", row("p", "1"), row("p", "3"))
    )
    assert [step.id for step in merged] == ["a-1", "a-2", "b-2"]
    assert merged[:2] == steps
    assert again.num_duplicates == 1


def test_problems_of_benchmarks_are_left_out_and_listed_once(tmp_path: Path) -> None:
    words = " ".join(f"w{chr(97 + number)}" for number in range(20))
    bench = write(tmp_path / "bench.jsonl", {"id": "i1", "problem": "What is $2+2$?"}, {"id": 2, "problem": words})
    source = write(
        tmp_path / "a.jsonl",
        row("what is 2 + 2", "4"),
        row("What is 2 + 3?", "5"),
        row("what is 2 + 2", "is", False, "4"),
        # 20 words have 8 n-grams of 13; with another last word 7 of them stay.
        row(f"{words[:-2]}zz", "so"),
        row("what is  2 + 2", "4"),
    )
    result, steps = gather(tmp_path / "run", source, benchmarks=read_benchmarks(f"mine={bench.name}"))
    assert [step.problem for step in steps] == ["What is 2 + 3?"]
    assert result.removed == {"mine": {"problems": 2, "steps": 4}}
    assert lines(tmp_path / "run" / "removed.jsonl") == [
        {"problem": "what is 2 + 2", "benchmark": "mine", "item": "i1", "kind": "exact", "share": 1.0, "num_steps": 3},
        {"problem": f"{words[:-2]}zz", "benchmark": "mine", "item": "2", "kind": "overlap", "share": 0.875,
         "num_steps": 1},
    ]  # fmt: skip
    assert result.num_duplicates == 0


def test_bad_rows_are_set_aside(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", "{torn", row("p", "1"), {"size": 3}, row("p", " "), row("p", "\udc00"))
    result, steps = gather(tmp_path / "run", source)
    assert [step.step for step in steps] == ["1"]
    assert (result.num_rows, result.num_rejected) == (5, 4)
    assert [(one["line"], one["reason"].split(":")[0][:40]) for one in lines(tmp_path / "run" / "rejected.jsonl")] == [
        (1, "not JSON"),
        (3, "no format of labelled steps has these fi"),
        (4, "'step' must be a text that is not empty,"),
        (5, "text that is not Unicode"),
    ]
    with pytest.raises(InputError, match=r"a\.jsonl, line 1: not JSON"):
        gather_steps([source], tmp_path / "strict", strict=True)
    assert json.loads((tmp_path / "strict" / "manifest.json").read_text())["status"] == "stopped"


def test_nothing_in_nothing_out(tmp_path: Path) -> None:
    result, steps = gather(tmp_path / "run", write(tmp_path / "a.jsonl"))
    assert steps == []
    assert result == counts()
    with pytest.raises(ValueError, match="no sources"):
        gather_steps([], tmp_path / "other")


def test_the_first_steps_alone(tmp_path: Path) -> None:
    rows = [{"prompt": f"p{number}", "completions": ["a", "b", "c"], "labels": [1, 1, 1]} for number in range(5)]
    source = write(tmp_path / "a.jsonl", *rows)
    result, steps = gather(tmp_path / "run", source, limit=5)
    assert [step.id for step in steps] == ["a-1-0", "a-1-1", "a-1-2", "a-2-0", "a-2-1"]
    assert result.num_rows == 2


def test_the_same_command_ends_with_the_same_bytes_and_another_is_refused(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", *(row("p", str(number % 7), id=str(number % 5)) for number in range(50)))
    gather_steps([source], tmp_path / "run")
    names = ("results.jsonl", "rejected.jsonl", "removed.jsonl", "summary.json")
    before = {name: (tmp_path / "run" / name).read_bytes() for name in names}
    gather_steps([source], tmp_path / "run")
    assert {name: (tmp_path / "run" / name).read_bytes() for name in names} == before
    assert not list((tmp_path / "run").glob("*.partial"))
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert (manifest["stage"], manifest["status"], len(manifest["sessions"])) == ("steps", "complete", 2)
    with pytest.raises(SettingsChanged, match='neutral: "correct" -> "wrong"'):
        gather_steps([source], tmp_path / "run", options=StepOptions(neutral="wrong"))
    with pytest.raises(SettingsChanged, match="limit: null -> 3"):
        gather_steps([source], tmp_path / "run", limit=3)
    write(tmp_path / "a.jsonl", row("p", "new"))
    with pytest.raises(SettingsChanged, match="inputs"):
        gather_steps([source], tmp_path / "run")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(RunError, match="not empty"):
        gather_steps([source], tmp_path / "mine")


_KILLED = """
import sys
from rprm.data.gathering import gather_steps
from rprm.reading import Source
def slowly(num_rows, num_steps):
    print(num_rows, flush=True)
    import time
    time.sleep(0.2 if num_rows >= 2000 else 0)
gather_steps([Source(sys.argv[1])], sys.argv[2], on_row=slowly)
"""


def test_killed_and_begun_again(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", *(row(f"p{number % 900}", str(number % 7)) for number in range(5000)))
    whole = tmp_path / "whole"
    gather_steps([source], whole)
    killed = tmp_path / "killed"
    with subprocess.Popen(
        [sys.executable, "-c", _KILLED, source.name, str(killed)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        while int(process.stdout.readline()) < 2000:
            time.sleep(0)
        os.kill(process.pid, signal.SIGKILL)
    # Nothing that looks finished is left behind.
    assert not (killed / "results.jsonl").exists()
    with pytest.raises(RunError, match="is not complete"):
        steps_source(killed)
    gather_steps([source], killed)
    for name in ("results.jsonl", "rejected.jsonl", "removed.jsonl", "summary.json"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes()


_MEMORY = """
import resource, sys
from rprm.data.gathering import gather_steps
from rprm.reading import Source
import numpy
early = [0]
def seen(num_rows, num_steps):
    if num_rows == 10_000:
        early[0] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
result = gather_steps([Source(sys.argv[1])], sys.argv[2], on_row=seen)
print(result["num_steps"], result["num_duplicates"], resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - early[0])
"""


@pytest.mark.slow
def test_memory_is_a_few_bytes_a_step(tmp_path: Path) -> None:
    source = tmp_path / "many.jsonl"
    with source.open("w") as stream:
        for number in range(50_000):
            stream.write(json.dumps(row(f"p{number % 100}" + "x" * 200, f"{number % 45_000}" + "y" * 300)) + "\n")
    output = subprocess.run(
        [sys.executable, "-c", _MEMORY, str(source), str(tmp_path / "run")], check=True, capture_output=True, text=True
    ).stdout
    num_steps, num_duplicates, growth_kib = map(int, output.split())
    # Numbers n and n + 45,000 have the same remainders.
    assert (num_steps, num_duplicates) == (45_000, 5_000)
    # 33 bytes a step and the sorting of them: 25 MB of text would be far more.
    assert growth_kib < 12_000
