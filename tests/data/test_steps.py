"""Labelled steps in: our own rows, runs of the stage, and telling formats apart."""

from __future__ import annotations

import contextlib
import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from rprm.data.stage_options import StepOptions
from rprm.data.steps import (
    FORMATS,
    Expanded,
    expand_row,
    format_of,
    labelled_step_of,
    read_labelled_steps,
    read_steps,
    steps_source,
)
from rprm.errors import InputError, RunError
from rprm.reading import Rejected, Row, Source
from rprm.records import LabelledStep
from rprm.runs import LineWriter, Run

GOOD = {"id": "a-1", "problem": "2 + 3 = ?", "previous_steps": ["Add."], "step": "2 + 3 = 5.", "label": True}

#: One row of each format.
ROWS: dict[str, dict[str, Any]] = {
    "prm800k": {
        "question": {"problem": "p"},
        "label": {
            "steps": [{"completions": [{"text": "s", "rating": 1}], "human_completion": None, "chosen_completion": 0}]
        },
    },
    "steps": GOOD,
    "stepwise": {"prompt": "p", "completions": ["s"], "labels": [True]},
    "math-aps": {"question": "p", "process": "s", "label": ["+"]},
    "er-prm": {"text": "p Step 1: s ки", "value": [0.5]},
    "rlhflow": {
        "conversations": [{"role": "user", "content": "p Step 1: s"}, {"role": "assistant", "content": "+"}],
    },
    "math-shepherd": {"input": "p Step 1: s ки", "label": "p Step 1: s +", "task": "GSM8K"},
    "solutions": {"problem": "p", "steps": ["s"], "label": -1},
    "gsm8k": {"question": "There are 4 and 3.", "answer": "4+3 = <<4+3=7>>7.\n#### 7"},
}


def write(path: Path, *rows: Any) -> str:
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    return str(path)


def test_own_rows(tmp_path: Path) -> None:
    name = write(
        tmp_path / "steps.jsonl",
        {**GOOD, "source": "lab"},
        {"problem": "p", "step": "s", "label": False, "note": "ignored"},
        {**GOOD, "id": 7, "previous_steps": None},
    )
    assert list(read_labelled_steps(Source(name))) == [
        LabelledStep(
            id="a-1", problem="2 + 3 = ?", previous_steps=("Add.",), step="2 + 3 = 5.", label=True, source="lab"
        ),
        LabelledStep(id="line-2", problem="p", step="s", label=False),
        LabelledStep(id="7", problem="2 + 3 = ?", step="2 + 3 = 5.", label=True),
    ]


def test_bad_rows_cost_themselves_alone(tmp_path: Path) -> None:
    path = tmp_path / "steps.jsonl.gz"
    lines = ["{torn", json.dumps(GOOD), json.dumps({**GOOD, "problem": "\ud800"}), "[1]", json.dumps(GOOD)]
    path.write_bytes(gzip.compress("\n".join(lines).encode()))
    rows = list(read_labelled_steps(Source(str(path))))
    assert [type(row) for row in rows] == [Rejected, LabelledStep, Rejected, Rejected, LabelledStep]
    assert [(row.line, row.file) for row in rows if isinstance(row, Rejected)] == [
        (1, str(path)), (3, str(path)), (4, str(path))
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"problem": None}, "'problem' must be a text"),
        ({"problem": " "}, "'problem' must be a text"),
        ({"problem": "\udfff"}, "a lone surrogate"),
        ({"step": 5}, "'step' must be a text"),
        ({"label": None}, "'label' must be true"),
        ({"label": 1}, "'label' must be true"),
        ({"label": "yes"}, "'label' must be true"),
        ({"previous_steps": "Add."}, "'previous_steps' must be a list"),
        ({"previous_steps": [None]}, r"'previous_steps\[0\]' \(number 1\) must be a text"),
        ({"id": ""}, "'id' must be"),
        ({"id": True}, "'id' must be"),
        ({"source": 3}, "'source' must be"),
    ],
)
def test_what_is_wrong_is_said(change: dict[str, Any], reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        labelled_step_of({**GOOD, **change}, default_id="x")


def test_a_source_is_a_run_a_file_or_the_hubs_split_train(tmp_path: Path) -> None:
    name = write(tmp_path / "steps.jsonl", GOOD)
    assert steps_source(name).path == tmp_path / "steps.jsonl"
    assert steps_source("trl-lib/prm800k").hub == {"path": "trl-lib/prm800k", "split": "train"}
    assert steps_source("hub:a/b?split=dev&config=c").hub == {"path": "a/b", "split": "dev", "config": "c"}
    hub = steps_source("a/b?config=c").hub
    assert hub == {"path": "a/b", "split": "train", "config": "c"}
    with pytest.raises(InputError, match="no such file"):
        steps_source(tmp_path / "missing.jsonl")


def test_a_run_must_be_of_this_stage_and_complete(tmp_path: Path) -> None:
    with Run(tmp_path / "steps", stage="steps", settings={}) as run:
        with contextlib.closing(LineWriter(run.results_path, checksums=run.checksums)) as writer:
            writer.write(json.dumps(GOOD))
        with pytest.raises(RunError, match="is not complete"):
            steps_source(run.folder)
        run.complete({}, {})
    assert list(read_labelled_steps(steps_source(tmp_path / "steps"))) == [labelled_step_of(GOOD, default_id="x")]
    with Run(tmp_path / "judged", stage="judge", settings={}) as run:
        run.complete({}, {})
    with pytest.raises(RunError, match="a run of 'judge'"):
        steps_source(tmp_path / "judged")
    (tmp_path / "folder").mkdir()
    with pytest.raises(RunError, match="not a run folder"):
        steps_source(tmp_path / "folder")


def test_each_format_is_told_by_its_fields(tmp_path: Path) -> None:
    assert set(ROWS) == set(FORMATS)
    assert {name: format_of(row) for name, row in ROWS.items()} == {name: name for name in ROWS}
    found = list(read_steps(Source(write(tmp_path / "mixed.jsonl", *ROWS.values()))))
    assert [row.format for row in found if isinstance(row, Expanded)] == list(ROWS)


def test_a_format_that_is_named_is_the_one_tried(tmp_path: Path) -> None:
    (row,) = read_steps(Source(write(tmp_path / "x.jsonl", ROWS["stepwise"])), format="gsm8k")
    assert isinstance(row, Rejected)
    assert row.reason.startswith("'question' is missing")


def test_unknown_fields_are_named() -> None:
    with pytest.raises(InputError, match=r"these fields: colour, size \(prm800k has question, label; steps has"):
        format_of({"size": 1, "colour": "red"})
    with pytest.raises(InputError, match="fields: none"):
        format_of({})


@pytest.mark.parametrize("value", [None, 3, "text", [1], []])
def test_no_object_no_steps(value: Any) -> None:
    with pytest.raises(InputError, match="must be a JSON object"):
        expand_row(Row(1, value, ""), "x", "auto", StepOptions())


def test_ids_and_sources_name_file_and_line(tmp_path: Path) -> None:
    rows = list(read_steps(Source(write(tmp_path / "part.one.jsonl", "", ROWS["stepwise"], ROWS["steps"]))))
    steps = [step for row in rows if isinstance(row, Expanded) for step in row.steps]
    assert [(step.id, step.source) for step in steps] == [("part-2-0", "part"), ("a-1", "part")]


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("broken", [None, 3, "", [], {}, "\ud800", [None], [[]], {"steps": [3]}, [1e999]])
def test_no_field_of_any_format_can_end_a_run(name: str, broken: Any) -> None:
    for field in ROWS[name]:
        value = {**ROWS[name], field: broken}
        with contextlib.suppress(InputError):
            expand_row(Row(1, value, ""), "x", format=name, options=StepOptions())
