"""Classifiers wherever a judge can stand: `load_rewarder`, `rprm judge`, `rprm bench`, `rprm train classifier`."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from rprm.errors import EngineError, RprmError
from rprm.files import read_json
from rprm.reproduce import Reproduction, published_rows
from rprm.rewarders import load_rewarder
from rprm.rewarders.classifier import Classifier
from rprm.rewarders.rprm import Judge
from tests.warm import Warm, warm_torch


def rprm(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command; one with variables of its own, which are read at an import, in an interpreter of its own."""
    command = [sys.executable, "-m", "rprm", *map(str, arguments)]
    python = Warm(None) if environment else warm_torch()
    return python.run(command, env={**os.environ, "COLUMNS": "100", "OMP_NUM_THREADS": "1", **environment})


def test_load_rewarder() -> None:
    judge = load_rewarder("scripted:", num_analyses=3, threshold=0.6)
    assert isinstance(judge, Judge)
    assert (judge.rule.num_analyses, judge.threshold) == (3, 0.6)
    classifier = load_rewarder("classifier:a/b?layout=qwen&threshold=0.3")
    assert isinstance(classifier, Classifier)
    assert classifier.threshold == 0.3
    # What was asked for wins; options that say nothing are none.
    given = load_rewarder(
        "classifier:a/b?layout=qwen&threshold=0.3", threshold=0.6, stopping="none", first_error_exit=False,
        confidence=0.99, num_analyses=None, seed=7,
    )  # fmt: skip
    assert given.threshold == 0.6
    with pytest.raises(EngineError, match="unknown engine 'gpt'"):
        load_rewarder("gpt")


@pytest.mark.parametrize(
    "option",
    [
        {"num_analyses": 4},
        {"prompt": "critique"},
        {"temperature": 0.0},
        {"top_p": 0.9},
        {"max_tokens": 100},
        {"force_verdict": False},
        {"stopping": "exact"},
        {"confidence": 0.9},
        {"first_error_exit": True},
    ],
)
def test_options_of_analyses_are_refused_by_name(option: dict[str, Any]) -> None:
    with pytest.raises(RprmError, match=f"leave out {next(iter(option))}"):
        load_rewarder("classifier:a/b", **option)


@pytest.mark.slow
def test_judge_and_bench_take_a_classifier(qwen_folder: Path, tmp_path: Path) -> None:
    data = tmp_path / "gsm8k.jsonl"
    rows = [
        {"id": f"gsm8k-{number}", "generator": "g", "problem": f"Problem {number}", "final_answer_correct": True,
         "steps": [f"Step {number}.{index}" for index in range(3)], "label": number % 4 - 1}
        for number in range(12)
    ]  # fmt: skip
    rows[5]["steps"][1] = "long " * 300
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    model = f"classifier:{qwen_folder}"
    bench = ("bench", "processbench", "--data", data, "--allow-missing", "--json")
    done = rprm(*bench, "--model", model, "--output", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    report = json.loads(done.stdout)
    results = [json.loads(line) for line in (tmp_path / "run" / "results.jsonl").read_text().splitlines()]
    rewards = [[step["reward"] for step in row["steps"]] for row in results]
    # Every step is there; the one that is too long has none, and says why.
    assert [len(row) for row in rewards] == [3] * 12
    assert [index for index, row in enumerate(rewards) if None in row] == [5]
    assert "context length is 1024" in results[5]["steps"][0]["failure"]
    settings = json.loads((tmp_path / "run" / "manifest.json").read_text())["settings"]
    assert (settings["rewarder"], settings["layout"]) == ("classifier", "qwen")
    assert settings["engine"]["revision"].startswith("sha256:")

    # The curve needs full rewards, which a classifier always gives; at another threshold the run measures otherwise.
    again = rprm(*bench, "--scores", tmp_path / "run", "--threshold", "0.4", "--curve")
    assert again.returncode == 0, again.stderr
    assert "curve" in json.loads(again.stdout)
    same = rprm(*bench, "--scores", tmp_path / "run")
    assert json.loads(same.stdout)["figures"] == report["figures"]

    # A threshold of its own is known once it is loaded.
    own = Path(shutil.copytree(qwen_folder, tmp_path / "own"))
    (own / "rprm_classifier.json").write_text('{"layout": "qwen", "threshold": 0.25}')
    measured = rprm(*bench, "--model", f"classifier:{own}", "--limit", "2")
    assert json.loads(measured.stdout)["threshold"] == 0.25

    judged = rprm("judge", data, "--model", model, "--json", "--output", tmp_path / "judged")
    assert judged.returncode == 0, judged.stderr
    for line, row in zip(judged.stdout.splitlines(), rewards, strict=True):
        assert [step["reward"] for step in json.loads(line)["steps"]] == pytest.approx(row, abs=1e-5)
    shown = rprm("judge", data, "--model", model, "--limit", 1)
    assert shown.returncode == 0, shown.stderr
    refused = rprm("judge", data, "--model", model, "-k", 3)
    assert refused.returncode == 1
    assert "leave out num_analyses" in refused.stderr


@pytest.mark.slow
def test_a_published_row_of_a_classifier(qwen_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its one run is measured at the threshold with the highest F1 on GSM8K."""
    warm_torch().take_stages(monkeypatch)
    items = [
        {"id": f"gsm8k-{n}", "problem": f"{n} + 1?", "steps": [f"It is {n}.", f"So {n + n}."], "label": n % 3 - 1}
        for n in range(12)
    ]
    data = tmp_path / "items.jsonl"
    data.write_text("".join(json.dumps(item) + "\n" for item in items))
    row = published_rows()["processbench/skywork-prm-7b"]
    found = Reproduction(row, tmp_path, model=f"classifier:{qwen_folder}", data=str(data)).run()
    curve = read_json(tmp_path / row.name / "judge" / "measurement.json")["curve"]["f1"]["gsm8k"]
    assert found["figures"]["gsm8k.f1"]["ours"]["value"] == max(value for value in curve if value is not None)


@pytest.mark.slow
def test_a_released_model_from_the_local_cache_of_the_hub(rlhflow_folder: Path, tmp_path: Path) -> None:
    """Offline, with the files of a release alone: none of ours, no index of shards."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "hub" / "models--RLHFlow--Tiny-PRM"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    shutil.copytree(rlhflow_folder, repository / "snapshots" / commit)
    data = tmp_path / "solutions.jsonl"
    data.write_text(json.dumps({"id": "s", "problem": "1 + 1?", "steps": ["It is 2.", "Yes."]}) + "\n")
    here = rprm("judge", data, "--model", f"classifier:{rlhflow_folder}", "--json")
    cached = rprm(
        "judge", data, "--model", "classifier:RLHFlow/Tiny-PRM", "--json", "--output", tmp_path / "run",
        HF_HUB_CACHE=str(tmp_path / "hub"), HF_HUB_OFFLINE="1",
    )  # fmt: skip
    assert cached.returncode == 0, cached.stderr
    assert cached.stdout == here.stdout != ""
    settings = json.loads((tmp_path / "run" / "manifest.json").read_text())["settings"]
    assert settings["layout"] == "rlhflow"
    assert settings["engine"]["revision"] == commit
    absent = rprm("judge", data, "--model", "classifier:nobody/nothing")
    assert absent.returncode == 1
    assert "nobody/nothing: cannot load the" in absent.stderr
    assert "Traceback" not in absent.stderr


def test_train_classifier_as_a_command(tiny_model: Path, tmp_path: Path) -> None:
    from rprm.cli.train import app

    steps = tmp_path / "steps.jsonl"
    rows = [
        {"problem": f"P{number}", "step": word, "label": word == "good"}
        for number in range(12)
        for word in ("good", "bad")
    ]
    steps.write_text("".join(json.dumps(row) + "\n" for row in rows) + "{torn\n")
    done = CliRunner().invoke(
        app,
        [
            "classifier", str(steps), "--model", str(tiny_model), "--output", str(tmp_path / "run"), "--max-steps", "2",
            "--batch-size", "4", "--device-batch-size", "2", "--max-length", "256", "--validation-share", "0.3",
            "--balance", "--no-gradient-checkpointing",
        ],
    )  # fmt: skip
    # 3: a row was set aside.
    assert done.exit_code == 3, done.output
    assert "2 steps" in done.output
    assert "validation steps at" in done.output
    assert (tmp_path / "run" / "model" / "rprm_classifier.json").is_file()
    settings = json.loads((tmp_path / "run" / "manifest.json").read_text())["settings"]
    assert (settings["balance"], settings["validation_share"], settings["max_length"]) == (True, 0.3, 256)
