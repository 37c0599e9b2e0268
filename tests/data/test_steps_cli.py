"""`rprm data steps` as a command."""

from __future__ import annotations

import inspect
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

import pytest
import typer
from typer.testing import CliRunner, Result

from rprm.cli.data import steps
from rprm.data.stage_options import NGRAM, OVERLAP, Format, StepOptions
from rprm.data.steps import FORMATS
from rprm.errors import InputError, SettingsChanged


def run(*arguments: Any) -> Result:
    app = typer.Typer()
    app.command()(steps)
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    return path


STEPWISE = {"prompt": "What is 2 + 2?", "completions": ["Add.", "It is 5."], "labels": [True, False]}


def test_table(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", STEPWISE, {**STEPWISE, "labels": [True, True]})
    result = run(source, "-o", tmp_path / "run", "-x", f"x={write(tmp_path / 'x.jsonl', {'problem': 'other'})}")
    assert result.exit_code == 0, result.output
    text = " ".join(result.stdout.split())
    # "Add." stands twice with one label, "It is 5." with both.
    assert "2 rows read as stepwise" in text
    assert "1 labelled steps (0 wrong) 1 at step 1 (0 wrong) 1 problems 1 paths of steps" in text
    assert "1 left out: repeated steps" in text
    assert "2 left out: the same step is called correct and wrong" in text
    assert "0 left out: of 0 problems that stand in x" in text


def test_json_and_exit_code_3(tmp_path: Path) -> None:
    bench = write(tmp_path / "bench.jsonl", {"problem": "What is $2 + 2$?"})
    source = write(tmp_path / "a.jsonl", STEPWISE, "{torn", {**STEPWISE, "prompt": "q"})
    result = run(source, "--output", tmp_path / "run", "--exclude-benchmark", bench, "--json")
    assert result.exit_code == 3
    summary = json.loads(result.stdout)
    assert summary["num_rejected"] == 1
    assert (summary["num_correct"], summary["num_wrong"]) == (1, 1)
    assert summary["removed"] == {"bench": {"problems": 1, "steps": 2}}
    assert summary == json.loads((tmp_path / "run" / "summary.json").read_text())


def test_options_reach_the_formats(tmp_path: Path) -> None:
    rated = [{"text": text, "rating": rating} for text, rating in (("a", 0), ("b", 1))]
    prm800k = {
        "question": {"problem": "p"},
        "is_quality_control_question": True,
        "label": {"steps": [{"completions": rated, "chosen_completion": 1}], "finish_reason": "give_up"},
    }
    source = write(tmp_path / "a.jsonl", prm800k, {**STEPWISE, "labels": [False, True]})
    result = run(
        source, "-o", tmp_path / "run", "--neutral", "wrong", "--keep-quality-control", "--keep-unfinished",
        "--after-error", "--json",
    )  # fmt: skip
    assert json.loads(result.stdout)["positions"] == {
        "0": {"correct": 1, "wrong": 2}, "1": {"correct": 1, "wrong": 0}
    }  # fmt: skip
    settings = json.loads((tmp_path / "run" / "manifest.json").read_text())["settings"]
    assert settings["neutral"] == "wrong"
    assert settings["keep_quality_control"] is settings["keep_unfinished"] is settings["after_error"] is True
    refused = run(source, "-o", tmp_path / "run", "--neutral", "drop")
    assert isinstance(refused.exception, SettingsChanged)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["missing.jsonl"], "missing.jsonl: no such file"),
        (["a.jsonl", "-x", "aime25"], "aime25: no such benchmark"),
        (["a.jsonl", "--strict"], "a.jsonl, line 1: no format of labelled steps"),
    ],
)
def test_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], reason: str) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a.jsonl", {"size": 1})
    result = run(*arguments, "-o", "run")
    assert isinstance(result.exception, InputError)
    assert reason in str(result.exception)


def test_defaults_are_the_librarys() -> None:
    defaults = {name: parameter.default for name, parameter in inspect.signature(steps).parameters.items()}
    assert {name: defaults[name] for name in asdict(StepOptions())} == asdict(StepOptions())
    assert (defaults["ngram"], defaults["overlap"]) == (NGRAM, OVERLAP)
    assert set(get_args(Format)) == {"auto", *FORMATS}


def test_every_format_can_be_named(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl")
    for name in ("auto", *FORMATS):
        result = run(source, "-o", tmp_path / name, "--format", name)
        assert result.exit_code == 1
        assert "holds no labelled step" in str(result.exception)
    assert run(source, "-o", tmp_path / "x", "--format", "csv").exit_code == 2


def test_real_gsm8k_against_real_benchmarks(real_data: Path, tmp_path: Path) -> None:
    source = real_data / "gsm8k_train" / "train.jsonl"
    # Twenty problems have some 80 steps.
    limit, slack = {"excerpts": (60, 0.1), "data": (2000, 0.02)}[real_data.name]
    result = run(
        source, "-o", tmp_path / "run", "--limit", limit, "--json", "-x", f"math={real_data / 'math'}",
        "-x", f"processbench={real_data / 'processbench'}",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    summary = json.loads(result.stdout)
    assert summary["num_steps"] + sum(counts["steps"] for counts in summary["removed"].values()) == limit
    assert summary["num_wrong"] / summary["num_steps"] == pytest.approx(0.5, abs=slack)
    assert summary["num_duplicates"] == summary["num_conflicting"] == summary["num_rejected"] == 0
    # Every benchmark is named, those without a common problem too.
    assert {"math/gsm8k", "math/college_math", "processbench/omnimath"} <= set(summary["removed"])
