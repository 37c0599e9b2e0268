"""Candidates: sampled in a run folder that survives kills, or read from files made elsewhere."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rprm.benchmarks.mathematics import Problems, read_mathematics, read_problem_file
from rprm.engines import Sampling
from rprm.engines.scripted import ScriptedEngine, ScriptedReply
from rprm.errors import CorruptRun, EngineUnavailable, InputError, RunError, SettingsChanged
from rprm.jobs import Callbacks
from rprm.prompts import load_policy_template
from rprm.prompts.template import Prompt
from rprm.runs import read_manifest
from rprm.search.candidates import (
    Candidates,
    Policy,
    SampleTotals,
    read_candidate_file,
    read_candidate_run,
    sample_candidates,
)
from tests.faults.folder_damages import as_older


def write_rows(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows))
    return path


def problems_of(tmp_path: Path, count: int, *, broken: bool = False) -> Problems:
    rows: list[Any] = [{"id": f"p{number}", "problem": f"What is {number} + é?"} for number in range(count)]
    return read_problem_file(write_rows(tmp_path / "problems.jsonl", [*rows, *(["{broken\n"] if broken else [])]))


def sample(
    engine: ScriptedEngine, problems: Problems, output: Path, n: int = 4, callbacks: Callbacks | None = None
) -> SampleTotals:
    policy = Policy(engine, load_policy_template(), Sampling(0.7, 0.95, 64, seed=3))
    return asyncio.run(sample_candidates(policy, problems, n, output=output, callbacks=callbacks))


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name not in ("manifest.json", "lock")}


def results(folder: Path) -> list[Candidates]:
    return [Candidates.model_validate_json(line) for line in (folder / "results.jsonl").read_text().splitlines()]


def test_candidates_of_every_problem(tmp_path: Path) -> None:
    problems = problems_of(tmp_path, 5, broken=True)
    totals = sample(ScriptedEngine(concurrency=2), problems, tmp_path / "run")
    rows = results(tmp_path / "run")
    assert [row.id for row in rows] == ["p0", "p1", "p2", "p3", "p4"]
    assert [len(row.candidates) for row in rows] == [4] * 5
    for row in rows:
        assert row.problem.problem == f"What is {row.id[1:]} + é?"
        # Samples of their own: the seed of each is its number's.
        assert len({candidate.text for candidate in row.candidates}) > 1
        for candidate in row.candidates:
            assert "\n\n".join(candidate.steps) == candidate.text.strip()
    tokens = sum(candidate.num_tokens or 0 for row in rows for candidate in row.candidates)
    assert (totals.num_problems, totals.num_candidates, totals.num_rejected) == (5, 20, 1)
    assert totals.num_generated_tokens == tokens > 0
    settings = read_manifest(tmp_path / "run")["settings"]
    assert settings["num_candidates"] == 4
    assert settings["policy"]["temperature"] == 0.7
    assert json.loads((tmp_path / "run" / "rejected.jsonl").read_text())["line"] == 6


def test_more_candidates_begin_with_the_fewer(tmp_path: Path) -> None:
    problems = problems_of(tmp_path, 3)
    sample(ScriptedEngine(concurrency=1), problems, tmp_path / "two", n=2)
    sample(ScriptedEngine(concurrency=9), problems, tmp_path / "five", n=5)
    for few, many in zip(results(tmp_path / "two"), results(tmp_path / "five"), strict=True):
        assert many.candidates[:2] == few.candidates
    with pytest.raises(SettingsChanged, match="num_candidates: 2 -> 3"):
        sample(ScriptedEngine(), problems, tmp_path / "two", n=3)


def test_an_engine_that_dies_costs_only_what_was_in_flight(tmp_path: Path) -> None:
    problems = problems_of(tmp_path, 12)
    whole = ScriptedEngine()
    sample(whole, problems, tmp_path / "undisturbed")

    class Dying(ScriptedEngine):
        async def generate(self, *arguments: Any) -> Any:
            if self.num_requests >= 23:
                raise EngineUnavailable("the server is gone")
            return await super().generate(*arguments)

    dying, after = Dying(concurrency=3), ScriptedEngine(concurrency=3)
    with pytest.raises(EngineUnavailable, match="the server is gone"):
        sample(dying, problems, tmp_path / "run")
    sample(after, problems, tmp_path / "run")
    assert files(tmp_path / "run") == files(tmp_path / "undisturbed")
    # In flight were at most 3 problems with 4 candidates.
    assert whole.num_requests == 12 * 4 <= dying.num_requests + after.num_requests <= 12 * 4 + 3 * 4


def test_a_refused_problem_costs_itself(tmp_path: Path) -> None:
    rows = [{"id": "long", "problem": "word " * 300}, {"id": "short", "problem": "1 + 1?"}]
    problems = read_problem_file(write_rows(tmp_path / "problems.jsonl", rows))
    totals = sample(ScriptedEngine(context_length=200), problems, tmp_path / "run")
    long, short = results(tmp_path / "run")
    assert long.candidates == ()
    assert long.failure is not None
    assert "context length of 200" in long.failure
    assert len(short.candidates) == 4
    assert totals.num_refused == 1


def test_empty_and_cut_candidates_are_counted(tmp_path: Path) -> None:
    def reply(prompt: Prompt, sampling: Sampling) -> ScriptedReply:
        return ScriptedReply("" if (sampling.seed or 0) % 2 else "One.\n\nTwo.", None, 2)

    engine = ScriptedEngine(reply=reply)
    totals = sample(engine, problems_of(tmp_path, 8), tmp_path / "run", n=4)
    texts = [candidate.text for row in results(tmp_path / "run") for candidate in row.candidates]
    assert 0 < totals.num_empty == texts.count("") < 32


def test_a_run_of_candidates_is_read_back(tmp_path: Path) -> None:
    problems = problems_of(tmp_path, 3)
    sample(ScriptedEngine(), problems, tmp_path / "run")
    read = read_candidate_run(tmp_path / "run")
    assert list(read.rows) == results(tmp_path / "run")
    assert read.settings == {
        name: read_manifest(tmp_path / "run")["settings"][name] for name in ("policy", "num_candidates")
    }
    assert [row.id for row in read_candidate_run(tmp_path / "run", limit=2).rows] == ["p0", "p1"]


def test_runs_that_cannot_be_chosen_from(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="is not a run folder"):
        read_candidate_run(tmp_path)
    problems = problems_of(tmp_path, 2)
    run = tmp_path / "run"
    sample(ScriptedEngine(), problems, run)
    as_older(run)
    manifest = json.loads((run / "manifest.json").read_text())
    for change, message in (({"stage": "judge"}, "a run of 'judge'"), ({"status": "running"}, "is not complete")):
        (run / "manifest.json").write_text(json.dumps(manifest | change))
        with pytest.raises(RunError, match=message):
            read_candidate_run(run)
    (run / "manifest.json").write_text(json.dumps(manifest))
    (run / "results.jsonl").write_text('{"other": 1}\n')
    with pytest.raises(CorruptRun, match="line 1 is damaged"):
        read_candidate_run(run)


def test_every_form_of_row(tmp_path: Path) -> None:
    problems = problems_of(tmp_path, 5)
    rows = [
        {"id": "p3", "solutions": ["First.\n\nSecond.", ["a", "", "b"]]},
        {"problem": "What is  1 + é? ", "solution": "Line one.\nLine two."},
        {"id": "p1", "steps": ["by hand"]},
        {"question": "What is 0 + é?", "steps": [["x", "y"], ["z"]], "labels": [True, False]},
        {"id": "p2", "solution": ""},
    ]
    read = read_candidate_file(write_rows(tmp_path / "c.jsonl", rows), problems)
    found = {row.id: [candidate.steps for candidate in row.candidates] for row in read.rows}
    assert found == {
        "p0": [("x", "y"), ("z",)],
        "p1": [("Line one.", "Line two."), ("by hand",)],
        # No step to judge; still a sample.
        "p2": [()],
        # Steps that are given stay as they are.
        "p3": [("First.", "Second."), ("a", "", "b")],
    }
    assert read.rows[3].candidates[1].text == "a\n\n\n\nb"
    assert (read.missing, read.rejected) == (("p4",), ())


def test_ids_with_and_without_their_set(tmp_path: Path) -> None:
    write_rows(tmp_path / "aime24.jsonl", [{"id": 1, "problem": "A?", "answer": "7"}])
    write_rows(
        tmp_path / "amc23.jsonl",
        [{"id": 1, "question": "B?", "answer": "7"}, {"id": 2, "question": "C?", "answer": "8"}],
    )
    problems = read_mathematics(["aime24", "amc23"], tmp_path)
    rows = [
        {"id": "amc23/1", "solution": "b"},
        {"id": 1, "solution": "whose?"},
        {"id": 1, "question": "A?", "solution": "a"},
        {"id": "2", "solution": "c"},
        {"id": 2, "problem": "D?", "solution": "d"},
    ]
    read = read_candidate_file(write_rows(tmp_path / "c.jsonl", rows), problems)
    assert [(row.id, row.candidates[0].text) for row in read.rows] == [
        ("aime24/1", "a"),
        ("amc23/1", "b"),
        ("amc23/2", "c"),
    ]
    assert [(rejected.line, rejected.reason) for rejected in read.rejected] == [
        (2, "several problems have id '1' (aime24/1, amc23/1): write SET/ID"),
        (5, "the problem with id '2' has another text than this row"),
    ]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"id": "p9", "solution": "x"}, "no problem has id 'p9'"),
        ({"problem": "Another?", "solution": "x"}, "no problem has the text 'Another?'"),
        ({"solution": "x"}, "no problem has id None"),
        ({"id": True, "solution": "x"}, "no problem has id True"),
        ({"id": "p0"}, "must be there, not none of them"),
        ({"id": "p0", "solution": "x", "steps": ["x"]}, "must be there, not solution and steps"),
        ({"id": "p0", "solutions": "x"}, "'solutions' must be a list"),
        ({"id": "p0", "solutions": [3]}, "a solution must be a text or a list of steps, in Unicode, not 3"),
        ({"id": "p0", "steps": []}, "a solution must be a text or a list of steps"),
        ({"id": "p0", "steps": [["a"], "b"]}, "a solution must be a text or a list of steps"),
        ({"id": "p0", "solution": None}, "a solution must be a text or a list of steps, in Unicode, not None"),
        ({"id": "p0", "solution": "\ud800"}, "in Unicode"),
        (7, "a record must be a JSON object"),
        ("{broken\n", "not JSON"),
    ],
)
def test_rows_that_cannot_be_used_are_set_aside(tmp_path: Path, row: Any, reason: str) -> None:
    problems = problems_of(tmp_path, 1)
    path = write_rows(tmp_path / "c.jsonl", [row, {"id": "p0", "solution": "fine"}])
    read = read_candidate_file(path, problems)
    (rejected,) = read.rejected
    assert (rejected.file, rejected.line) == (str(path), 1)
    assert reason in rejected.reason
    assert [candidate.text for candidate in read.rows[0].candidates] == ["fine"]
    with pytest.raises(InputError, match="no candidates of these problems; the first, line 1"):
        read_candidate_file(write_rows(path, [row]), problems)


@settings(max_examples=40, deadline=None)
@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner, max_size=3)))
def test_any_value_is_a_candidate_or_set_aside(tmp_path_factory: pytest.TempPathFactory, value: Any) -> None:
    folder = tmp_path_factory.mktemp("any")
    rows = [{"id": "p0", name: value} for name in ("solutions", "solution", "steps")]
    path = write_rows(folder / "c.jsonl", [*rows, {"id": "p0", "solution": "fine"}])
    read = read_candidate_file(path, problems_of(folder, 1))
    assert read.rows[0].candidates[-1].text == "fine"
    for candidate in read.rows[0].candidates:
        assert Candidates.model_validate_json(read.rows[0].model_dump_json()) == read.rows[0]
        assert all(isinstance(step, str) for step in candidate.steps)


def test_what_identifies_candidates(tmp_path: Path) -> None:
    """Both the file and the problems: another gold answer is another input."""
    path = write_rows(tmp_path / "c.jsonl", [{"id": "p0", "solution": "x"}])
    first = read_candidate_file(path, problems_of(tmp_path, 1)).source
    assert read_candidate_file(path, problems_of(tmp_path, 2)).source.digest != first.digest
    write_rows(path, [{"id": "p0", "solution": "y"}])
    assert read_candidate_file(path, problems_of(tmp_path, 1)).source.digest != first.digest


def test_real_samples_are_read_as_they_are(real_data: Path) -> None:
    path = real_data / "policy_samples" / "olympiadbench_qwen2.5-7b_n8.jsonl"
    problems = read_mathematics(["olympiadbench"], real_data / "math")
    read = read_candidate_file(path, problems)
    assert read.rejected == ()
    num_rows, num_problems = {"excerpts": (8, 20), "data": (80, 200)}[real_data.name]
    assert len(read.rows) == num_rows
    assert len(read.missing) == num_problems - num_rows
    assert {len(row.candidates) for row in read.rows} == {8}
    records = {str(record["id"]): record for record in map(json.loads, path.read_text().splitlines())}
    for row in read.rows:
        assert [list(candidate.steps) for candidate in row.candidates] == records[row.id.split("/")[1]]["steps"]
