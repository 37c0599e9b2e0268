"""`rprm runs list`, `rprm show`, `rprm export`: runs read without their models; the progress line."""

from __future__ import annotations

import asyncio
import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from rich.console import Console

import rprm as face
from rprm.engines.scripted import ScriptedEngine
from rprm.jobs import Callbacks
from rprm.progress import ProgressLine
from rprm.prompts import PromptTemplate
from rprm.reading import Source, read_solutions
from rprm.records import SolutionReward, StepReward
from rprm.rewarders import load_judge
from rprm.rewarders.base import judge_source, read_rewards
from tests.faults.folder_damages import as_older
from tests.warm import warm_cli

EXAMPLES = Path(__file__).parents[1] / "src" / "rprm" / "examples" / "word_problems.jsonl"
PROCESSBENCH = Path(__file__).parent / "excerpts" / "processbench" / "gsm8k.jsonl"


def rprm(*arguments: object, code: int = 0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "rprm", *map(str, arguments)]
    done = warm_cli().run(command, env={**os.environ, "COLUMNS": "120"})
    assert done.returncode == code, done.stdout + done.stderr
    return done


def words(text: str) -> str:
    """A text without frames and line ends."""
    return " ".join(re.sub(r"[│╭╮╰╯─]", " ", text).split())


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of judge, on a table under other names; one of bench; one of search; a damaged one."""
    folder = tmp_path_factory.mktemp("runs")
    rows = [json.loads(line) for line in EXAMPLES.read_text().splitlines()]
    frame = pd.DataFrame([row | {"question": row["problem"], "steps": json.dumps(row["steps"])} for row in rows])
    frame.drop(columns="problem").to_csv(folder / "solutions.csv", index=False)
    rprm("judge", folder / "solutions.csv", "--map", "problem=question", "-m", "scripted:", "-o", folder / "a")
    bench = ("bench", "processbench", "--data", PROCESSBENCH, "-m", "scripted:?noise=0&yes_rate=0", "--limit", 3)
    rprm(*bench, "-o", folder / "in" / "b")
    (folder / "problems.jsonl").write_text(json.dumps({"problem": "1 + 1 = ?"}))
    rprm("search", "sample", "--problems", folder / "problems.jsonl", "-p", "scripted:", "-n", 2, "-o", folder / "s")
    (folder / "damaged").mkdir()
    (folder / "damaged" / "manifest.json").write_text("{}")
    return folder


def test_the_runs_of_a_folder(runs: Path) -> None:
    lines = [line.split() for line in rprm("runs", "list", runs).stdout.splitlines()]
    assert lines[0] == ["run", "stage", "model", "rows", "status", "started"]
    told = {line[0]: line[1:] for line in lines[1:]}
    assert told["a"][:4] == ["judge", "scripted:pseudo-random", "4", "complete"]
    assert told["in/b"][:5] == ["judge", "processbench", "scripted:pseudo-random", "3", "complete"]
    assert told["s"][:4] == ["search-sample", "scripted:pseudo-random", "1", "complete"]
    assert "damaged" in told
    assert "no such folder" in rprm("runs", "list", runs / "none", code=1).stderr
    assert "holds no run" in rprm("runs", "list", EXAMPLES.parent, code=1).stderr


def test_a_run_without_its_model(runs: Path) -> None:
    text = words(rprm("show", runs / "a").stdout)
    for part in ("stage judge status complete", "rows finished 4", "num analyses 10", "threshold 0.5", "4 solutions:"):
        assert part in text
    found = json.loads(rprm("show", runs / "a", "--json").stdout)
    summary = json.loads((runs / "a" / "summary.json").read_text())
    assert found["totals"] == summary
    assert (found["num_rows"], found["num_pieces"], found["settings"]["seed"]) == (4, 0, 0)
    assert json.loads(rprm("show", runs / "s", "--json").stdout)["totals"]["num_candidates"] == 2
    assert "num_candidates: 2" in rprm("show", runs / "s").stdout
    assert "is damaged" in rprm("show", runs / "damaged", code=1).stderr
    assert "is not a run folder" in rprm("show", runs, code=1).stderr


def test_totals_are_those_of_the_rows_with_and_without_an_index(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "in" / "b", run := tmp_path / "b")
    by_index = rprm("show", run, "--json").stdout
    (run / "index.json").write_text((run / "index.json").read_text().replace('"num_wrong": 3', '"num_wrong": 2'))
    assert rprm("show", run, "--json").stdout == by_index
    (run / "index.json").unlink()
    assert rprm("show", run, "--json").stdout == by_index
    shutil.copytree(runs / "in" / "b", edited := tmp_path / "edited")
    text = (edited / "results.jsonl").read_text()
    (edited / "results.jsonl").write_text(text.replace('"first_error":0', '"first_error":1', 1))
    assert "line 1 is damaged" in rprm("show", edited, code=1).stderr


def test_a_solution_is_shown_as_judge_shows_it(runs: Path) -> None:
    shown = rprm("judge", EXAMPLES, "-m", "scripted:", "--analyses").stdout
    for name in ("coins", "eggs"):
        panel = rprm("show", runs / "a", name, "--analyses").stdout
        assert panel
        assert panel in shown
    assert "analysis 1" not in rprm("show", runs / "a", "coins").stdout
    reward = SolutionReward.model_validate_json(rprm("show", runs / "a", "coins", "--json").stdout)
    assert reward == next(read_rewards(runs / "a"))
    first = json.loads(PROCESSBENCH.read_text().splitlines()[0])
    text = words(rprm("show", runs / "in" / "b", first["id"]).stdout)
    assert words(first["steps"][0])[:60] in text
    assert "first error: step 1" in text
    assert "no finished solution 'none'; its first ids: coins, pens" in rprm("show", runs / "a", "none", code=1).stderr
    assert "judged solutions are in runs of" in rprm("show", runs / "s", "0", code=1).stderr


def test_solutions_that_share_an_id_are_all_shown(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id,problem,solution\n1,p,This is one.\n2,p,s\n1,p,This is two.\n")
    rprm("judge", tmp_path / "a.csv", "-m", "scripted:", "-k", 2, "-o", tmp_path / "run")
    text = words(rprm("show", tmp_path / "run", "1").stdout)
    assert "This is one." in text.partition("This is two.")[0]
    assert "This is two." in text
    rows = [json.loads(line) for line in rprm("show", tmp_path / "run", "1", "--json").stdout.splitlines()]
    assert rows == [json.loads(one.model_dump_json()) for one in read_rewards(tmp_path / "run") if one.id == "1"]


def test_texts_that_are_not_at_hand(runs: Path, tmp_path: Path) -> None:
    """Gone, or no longer what was judged: the rewards are shown, and why there is no text."""
    where, moved = runs / "solutions.csv", tmp_path / "moved.csv"
    before = rprm("show", runs / "a", "coins").stdout
    content = where.read_bytes()
    try:
        where.rename(moved)
        text = words(rprm("show", runs / "a", "coins").stdout)
        assert "not at hand" in text
        assert "no such file" in text
        assert "(its text is not at hand)" in text
        for place in (moved, f"{moved}?problem=question"):
            assert rprm("show", runs / "a", "coins", "--data", place).stdout == before
        where.write_bytes(content.replace(b"95 coins", b"96 coins"))
        text = words(rprm("show", runs / "a", "coins").stdout)
        assert "its hash differs" in text
        assert "96 coins" not in text
    finally:
        where.write_bytes(content)


def test_export_is_the_table_of_the_rewards(runs: Path, tmp_path: Path) -> None:
    expected = face.to_pandas(read_rewards(runs / "a"))
    done = rprm("export", runs / "a", "--to", tmp_path / "t.csv")
    assert f"t.csv: {len(expected)} steps" in done.stdout
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "t.csv").astype(expected.dtypes), expected)
    rprm("export", runs / "in" / "b", "--to", tmp_path / "b.jsonl")
    assert [json.loads(line)["step_index"] for line in (tmp_path / "b.jsonl").read_text().splitlines()] == [0, 0, 0]
    assert "name a file that ends in" in rprm("export", runs / "a", "--to", tmp_path / "t.xls", code=1).stderr
    assert "judged solutions are in runs of" in rprm("export", runs / "s", "--to", tmp_path / "t.csv", code=1).stderr


def test_other_columns_are_other_settings(runs: Path) -> None:
    done = rprm("judge", runs / "solutions.csv", "--map", "problem=id", "-m", "scripted:", "-o", runs / "a", code=1)
    assert "other settings" in done.stderr
    assert "problem=question" in done.stderr
    assert "give FIELD=COLUMN" in rprm("judge", EXAMPLES, "--map", "probelm=x", code=1).stderr


def test_labelled_steps_under_other_names(tmp_path: Path) -> None:
    rows = [{"question": f"{n}", "previous_steps": '["a"]', "text": f"step {n}", "ok": n > 1} for n in range(4)]
    pd.DataFrame(rows).to_csv(tmp_path / "a.csv", index=False)
    names = ("--map", "problem=question", "--map", "step=text", "--map", "label=ok")
    rprm("data", "steps", tmp_path / "a.csv", *names, "-o", tmp_path / "steps")
    kept = [json.loads(line) for line in (tmp_path / "steps" / "results.jsonl").read_text().splitlines()]
    assert sorted((row["problem"], row["previous_steps"], row["label"]) for row in kept) == [
        (str(n), ["a"], n > 1) for n in range(4)
    ]
    done = rprm("bench", "steps", tmp_path / "a.csv", *names, "-m", "scripted:", "--json", "-o", tmp_path / "run")
    assert json.loads(done.stdout)["usage"]["steps"] == 4
    # Its data are found again by the run alone.
    assert json.loads(rprm("bench", "steps", tmp_path / "a.csv", *names, "--scores", tmp_path / "run", "--json").stdout)


def test_every_row_is_refused(tmp_path: Path) -> None:
    """Nothing judged is no success: exit code 1, with the cause."""
    (tmp_path / "a.csv").write_text("question,solution\np,s\n")
    done = rprm("judge", tmp_path / "a.csv", "-m", "scripted:", "-o", tmp_path / "run", code=1)
    assert "holds no solution: all 1 rows were rejected" in done.stderr
    assert "'problem' is missing; the record's fields are: question, solution" in words(done.stderr)
    listed = words(rprm("runs", "list", tmp_path).stdout)
    assert re.search(r"run judge scripted:pseudo-random 0, 1 rejected complete \d{4}-\d\d-\d\d \d\d:\d\d$", listed)
    done = rprm("judge", EXAMPLES, "-m", "scripted:?lost=1", "-k", 2, "-q", code=1)
    assert "no step of any solution could be judged; the first: none of 2 analyses reached a verdict" in done.stderr
    done = rprm("data", "steps", tmp_path / "a.csv", "-o", tmp_path / "steps", code=1)
    assert "all 1 rows were rejected" in done.stderr


class Dying(ScriptedEngine):
    """It stops answering after so many completions."""

    async def generate(self, *arguments: Any, **options: Any) -> Any:
        if self.num_requests >= 50:
            raise KeyboardInterrupt
        return await super().generate(*arguments, **options)


def test_a_run_that_is_not_complete(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    rows = [{"id": f"s{n}", "problem": f"p{n}", "steps": ["a", "b", "c"]} for n in range(30)]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))

    def run(engine: ScriptedEngine, callbacks: Callbacks | None = None) -> None:
        judge = load_judge(engine, num_analyses=4, prompt=PromptTemplate("t", "{{problem}}{{previous_steps}}{{step}}"))
        source = Source(str(path))
        asyncio.run(
            judge_source(
                judge, read_solutions(source), source=source.inspect(), output=tmp_path / "run", callbacks=callbacks
            )
        )

    with pytest.raises(KeyboardInterrupt):
        run(Dying(concurrency=8, delay=0.001))
    found = json.loads(rprm("show", tmp_path / "run", "--json").stdout)
    assert found["status"] == "stopped by interruption"
    assert found["num_expected"] == 30
    assert found["num_rows"] + found["num_pieces"] > 0
    assert found["totals"]["num_solutions"] == found["num_rows"]
    assert f"{found['num_rows']} of 30" in words(rprm("show", tmp_path / "run").stdout)
    assert "not complete" in rprm("export", tmp_path / "run", "--to", tmp_path / "t.csv").stdout
    # What a resumed run says that it begins with.
    told: list[tuple[int, int]] = []
    run(ScriptedEngine(), Callbacks(on_resumed=lambda *counts: told.append(counts)))
    ((num_rows, num_pieces),) = told
    # The journal may hold pieces of rows that are finished, too.
    assert num_rows == found["num_rows"]
    assert 0 < num_pieces <= found["num_pieces"]
    assert json.loads(rprm("show", tmp_path / "run", "--json").stdout)["status"] == "complete"


def test_a_run_of_an_earlier_format(runs: Path, tmp_path: Path) -> None:
    rprm("judge", EXAMPLES, "-m", "scripted:?lost=1", "-k", 1, "-q", "-o", tmp_path / "run", code=1)
    results, manifest = tmp_path / "run" / "results.jsonl", tmp_path / "run" / "manifest.json"
    as_older(tmp_path / "run")
    found = json.loads(manifest.read_text())
    del found["settings"]["row_format"]
    manifest.write_text(json.dumps(found))
    results.write_text(results.read_text().replace('"first_error":null', '"first_error":-1'))
    assert [reward.first_error for reward in read_rewards(tmp_path / "run")] == [None] * 4


# The progress line.


def line_of(**options: Any) -> tuple[ProgressLine, io.StringIO]:
    out = io.StringIO()
    console = Console(file=out, width=120)
    return ProgressLine(console, 3, noun=options.pop("noun", "solutions"), **options), out


def counts(line: ProgressLine) -> str:
    return re.sub(r"\s+\S+ tokens/s", "", line.tasks[0].fields["counts"])


def analyses(line: ProgressLine, step: int, samples: Sequence[int], **more: Any) -> None:
    for sample in samples:
        line.paid(f"{step}.{sample}", {"verdict": True, "num_tokens": 5, **more})


def reward(*num_analyses: int) -> SolutionReward:
    steps = tuple(StepReward(step_index=at, reward=1.0, vote=1.0) for at, _ in enumerate(num_analyses))
    return SolutionReward(id="a", num_steps=len(steps), first_error=-1, steps=steps)


def test_steps_and_analyses_are_counted_as_they_come() -> None:
    line, _ = line_of()
    analyses(line, 0, (0, 1, 2))
    assert (counts(line), line.tasks[0].completed) == ("1 steps  3 analyses", 0)
    analyses(line, 1, (1, 0))
    # Two steps have begun, none of the solutions is finished.
    assert counts(line) == "2 steps  5 analyses"
    line.judged(reward(3, 2))
    assert (counts(line), line.tasks[0].completed) == ("2 steps  5 analyses", 1)


def test_what_was_finished_before_is_counted_too() -> None:
    line, out = line_of()
    line.judged(reward(0, 0))
    line.resumed(1, 7)
    assert (
        "resumed: 1 solutions were finished before; the journal holds 7 analyses or other pieces of more"
        in out.getvalue()
    )
    analyses(line, 0, (0,))
    assert (counts(line), line.tasks[0].completed) == ("3 steps  1 analyses", 1)
    line, out = line_of()
    line.resumed(0, 0)
    assert out.getvalue() == ""


def test_the_time_left_is_seen_in_80_columns() -> None:
    line, out = line_of()
    line.update(line.tasks[0].id, description="judging", counts="1,234 steps  12,340 analyses  999 tokens/s")
    line.console.width = 80
    line.console.print(line.get_renderable())
    (shown,) = out.getvalue().splitlines()
    assert shown.split()[-8:] == ["solutions", "1,234", "steps", "12,340", "analyses", "999", "tokens/s", "-:--:--"]


def test_other_judges() -> None:
    """A classifier has no analyses; a critique is of all steps; labelled steps are rows themselves."""
    line, _ = line_of()
    line.paid("steps.3", [0.1, 0.2, 0.3])
    line.judged(reward(0, 0, 0))
    assert counts(line) == "3 steps"
    line, _ = line_of()
    analyses(line, 2, (0, 1), first_error=-1)
    assert counts(line) == "3 steps  2 analyses"
    line, _ = line_of(noun="steps")
    analyses(line, 2, (0, 1))
    assert counts(line) == "2 analyses"
