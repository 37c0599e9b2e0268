"""Sampling analyses of labelled steps."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from rprm.api import RPRM
from rprm.data.analyses import AnalysisTotals, open_analyses, sample_analyses
from rprm.data.steps import read_labelled_steps, steps_source
from rprm.engines.scripted import ScriptedEngine
from rprm.errors import InputError, RunError, SettingsChanged
from rprm.prompts import load_template
from rprm.records import LabelledStep, StepAnalyses
from rprm.runs import read_manifest


def write_steps(path: Path, count: int) -> Path:
    with path.open("w") as stream:
        for number in range(count):
            step = LabelledStep(
                id=f"s{number}",
                problem=f"Problem {number // 3}?",
                previous_steps=("One.", "Two.")[: number % 3],
                step=f"Then {number}, é.",
                label=number % 2 == 0,
            )
            stream.write(step.model_dump_json() + "\n")
    return path


def sample(path: Path, output: Path, engine: ScriptedEngine, **options: Any) -> AnalysisTotals:
    judge = RPRM(engine, **{"num_analyses": 3, "temperature": 0.4, "prompt": "teacher", **options}).rewarder
    source = steps_source(path)
    return asyncio.run(sample_analyses(judge, read_labelled_steps(source), source=source.inspect(), output=output))


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines()


def test_every_step_gets_all_its_analyses_in_order(tmp_path: Path) -> None:
    path = write_steps(tmp_path / "steps.jsonl", 12)
    engine = ScriptedEngine(yes_rate=0.7, noise=0.3, lost=0.1)
    totals = sample(path, tmp_path / "run", engine)
    rows = [StepAnalyses.model_validate_json(line) for line in lines(tmp_path / "run" / "results.jsonl")]
    assert [row.id for row in rows] == [f"s{number}" for number in range(12)]
    # No early stopping: a judge with K = 3 would often be settled after 2.
    assert [len(row.analyses) for row in rows] == [3] * 12
    said = [(analysis.verdict, row.step.label) for row in rows for analysis in row.analyses]
    assert totals.num_analyses == 36 == engine.num_requests
    assert totals.num_agreeing == sum(verdict is label for verdict, label in said)
    assert totals.num_disagreeing == sum(verdict is (not label) for verdict, label in said)
    assert totals.num_without_verdict == sum(verdict is None for verdict, _ in said)
    assert totals.num_agreeing + totals.num_disagreeing + totals.num_without_verdict == 36
    assert totals.num_steps_labelled_correct == 6
    assert json.loads((tmp_path / "run" / "summary.json").read_text()) == totals.as_dict()
    # What comes after reads the template from the run.
    opened = open_analyses(tmp_path / "run")
    assert opened.template is not None
    assert opened.template.digest == load_template("teacher").digest
    assert [row for row in opened.rows() if isinstance(row, StepAnalyses)] == rows
    assert opened.provenance["manifest.json"]["temperature"] == 0.4
    # How a reward would be decided has no part in sampling.
    assert {"threshold", "stopping", "first_error_exit"} & set(read_manifest(tmp_path / "run")["settings"]) == set()


def test_a_step_is_asked_about_with_what_stands_before_it_alone(tmp_path: Path) -> None:
    asked = []

    def reply(prompt: Any, sampling: Any) -> Any:
        from rprm.engines.scripted import ScriptedReply

        asked.append(prompt.text)
        return ScriptedReply("Fine.", 0.9, 5)

    sample(write_steps(tmp_path / "steps.jsonl", 3), tmp_path / "run", ScriptedEngine(reply=reply), num_analyses=1)
    template = load_template("teacher")
    assert sorted(asked) == sorted(
        template.render("Problem 0?", [*["One.", "Two."][:number], f"Then {number}, é."], number).text
        for number in range(3)
    )


def test_a_step_too_long_for_the_model_costs_itself(tmp_path: Path) -> None:
    path = write_steps(tmp_path / "steps.jsonl", 4)
    long = LabelledStep(id="long", problem="word " * 3000, step="x", label=True)
    path.write_text(path.read_text() + long.model_dump_json() + "\n")
    totals = sample(path, tmp_path / "run", ScriptedEngine(context_length=3000), max_tokens=4096)
    assert (totals.num_steps, totals.num_steps_refused) == (5, 1)
    last = list(open_analyses(tmp_path / "run").rows())[-1]
    assert isinstance(last, StepAnalyses)
    assert last.analyses == ()
    assert last.failure is not None
    assert "context" in last.failure


def test_damaged_rows_are_set_aside_and_changed_settings_refused(tmp_path: Path) -> None:
    path = write_steps(tmp_path / "steps.jsonl", 4)
    path.write_text(path.read_text() + "{broken\n")
    assert sample(path, tmp_path / "run", ScriptedEngine()).num_rejected == 1
    assert json.loads((tmp_path / "run" / "rejected.jsonl").read_text())["line"] == 5
    with pytest.raises(SettingsChanged, match=r"temperature: 0\.4 -> 0\.9"):
        sample(path, tmp_path / "run", ScriptedEngine(), temperature=0.9)


def test_what_is_not_a_finished_run_of_analyses_is_refused(tmp_path: Path) -> None:
    path = write_steps(tmp_path / "steps.jsonl", 4)

    class Dying(ScriptedEngine):
        async def generate(self, *arguments: Any) -> Any:
            from rprm.errors import EngineUnavailable

            raise EngineUnavailable("gone")

    with pytest.raises(Exception, match="gone"):
        sample(path, tmp_path / "run", Dying())
    with pytest.raises(RunError, match="is not complete"):
        open_analyses(tmp_path / "run")
    with pytest.raises(InputError, match="no such file"):
        open_analyses(tmp_path / "nothing.jsonl")
