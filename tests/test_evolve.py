"""Preference optimisation in rounds: the stages are real commands, the training is real, the verdicts are scripted."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from rprm.data.stage_options import is_held_out
from rprm.errors import InputError, PromptError, RunError, SettingsChanged
from rprm.evolve import RoundResult, RoundSettings, evolve
from rprm.prompts import PromptTemplate
from rprm.records import LabelledStep
from rprm.runs import read_manifest
from tests.warm import warm_torch

TEMPLATE = PromptTemplate(name="short", user="{{problem}}\n{{steps}}\nCheck step {{step_number}}.")
ENGINE = "yes_rate=0.5&noise=0.3&concurrency=8"
TRAIN = (
    "--preset",
    "cpu",
    "--max-steps",
    "3",
    "--batch-size",
    "2",
    "--learning-rate",
    "1e-4",
    "--lora-rank",
    "2",
    "--max-length",
    "512",
)


@pytest.fixture
def start(tiny_model: Path, tmp_path: Path) -> Path:
    """The tiny model with a template that leaves room in its context."""
    folder = tmp_path / "start"
    shutil.copytree(tiny_model, folder)
    (folder / "rprm_prompt.toml").write_text(TEMPLATE.to_toml())
    return folder


@pytest.fixture
def steps(tmp_path: Path) -> Path:
    path = tmp_path / "steps.jsonl"
    with path.open("w") as stream:
        for number in range(80):
            step = LabelledStep(
                id=f"s{number}", problem=f"P {number // 2}?", step=f"It is {number}.", label=number % 2 == 0
            )
            stream.write(step.model_dump_json() + "\n")
    return path


def settings(**more: Any) -> RoundSettings:
    return RoundSettings(
        **{
            "engine": "scripted",
            "engine_options": ENGINE,
            "num_analyses": 4,
            "judge_analyses": 3,
            "validation_share": 0.3,
            "train_options": TRAIN,
            **more,
        }
    )


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.mark.slow
def test_a_round_samples_pairs_trains_and_measures(
    start: Path, steps: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    warm_torch().take_stages(monkeypatch)
    stages: list[tuple[int, str]] = []
    folder = tmp_path / "rounds"
    first, second = evolve(
        str(steps), str(start), folder, settings(), on_stage=lambda number, stage: stages.append((number, stage))
    )
    assert stages == [(0, "measure"), (1, "analyses"), (1, "pairs"), (1, "dpo"), (1, "measure")]
    assert (first.model, first.best, first.kept, first.num_pairs) == (str(start), str(start), True, None)

    # Problems to measure on are no problems to train on, and the ones that the cold start holds out.
    train, validation = (rows(folder / "steps" / f"{part}.jsonl") for part in ("train", "validation"))
    assert len(train) + len(validation) == 80
    assert {is_held_out(row["problem"], 0.3) for row in validation} == {True}
    assert {is_held_out(row["problem"], 0.3) for row in train} == {False}
    sampled = {row["step"]["id"] for row in rows(folder / "round-1" / "analyses" / "results.jsonl")}
    assert sampled == {row["id"] for row in train}

    # The pairs are of those analyses, and as many are counted as were trained on.
    pairs = rows(folder / "round-1" / "pairs" / "train.jsonl")
    assert second.num_pairs == len(pairs) > 0
    assert {pair["id"].partition("#")[0] for pair in pairs} <= sampled
    assert pairs[0]["prompt"][0]["content"].startswith("P ")
    trained = folder / "round-1" / "dpo" / "model"
    assert second.model == str(trained)
    assert (trained / "model.safetensors").is_file()
    assert (trained / "rprm_prompt.toml").read_text() == TEMPLATE.to_toml()

    # The scripted engine says the same of either model: nothing is won, and the first one goes on.
    assert second.difference == 0.0
    assert (second.kept, second.best) == (False, str(start))
    assert (folder / "model").resolve() == start.resolve()
    assert second.f1 == first.f1
    assert read_manifest(folder)["status"] == "complete"
    # All analyses of the measurement count: 3 of each step.
    measured = json.loads((folder / "round-1" / "measure" / "measurement.json").read_text())
    assert measured["usage"]["analyses"] == 3 * len(validation)

    # Begun again it is through at once; more rounds are another run.
    stages.clear()
    (folder / "model").unlink()
    again = evolve(
        str(steps), str(start), folder, settings(), on_stage=lambda number, stage: stages.append((number, stage))
    )
    assert again == [first, second]
    assert stages == []
    assert (folder / "model").resolve() == start.resolve()
    with pytest.raises(SettingsChanged, match="num_rounds: 1 -> 2"):
        evolve(str(steps), str(start), folder, settings(num_rounds=2))


def test_a_round_samples_as_many_steps_as_it_is_told_and_goes_on_from_there(tmp_path: Path) -> None:
    from rprm.evolve import _Rounds

    folder = tmp_path / "rounds"
    (folder / "steps").mkdir(parents=True)
    # U+2028 and U+0085 end a line for Unicode, and none of JSON Lines.
    (folder / "steps" / "train.jsonl").write_bytes(
        "".join(f"step\u2028\x85 {number}\n" for number in range(5)).encode()
    )
    rounds = _Rounds(folder, "m", settings(num_sampled_steps=2), (), lambda number, stage: None)
    sampled = []
    for number in (1, 2, 3):
        lines = rounds.sampled(number).read_bytes().decode().split("\n")[:-1]
        sampled.append([int(line.removeprefix("step\u2028\x85 ")) for line in lines])
    assert sampled == [[0, 1], [2, 3], [4, 0]]


@pytest.mark.slow
def test_a_round_of_rewards(start: Path, steps: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It trains on the steps themselves, and validates on those that it is measured on."""
    warm_torch().take_stages(monkeypatch)
    stages: list[tuple[int, str]] = []
    trained = ("--preset", "cpu", "--max-steps", "1", "--batch-size", "2", "-n", "2", "--device-batch-size", "4")
    trained += ("--max-tokens", "8", "--max-length", "512")
    told = settings(method="grpo", train_options=trained, num_sampled_steps=10, seed=3)
    folder = tmp_path / "rounds"
    first, second = evolve(
        str(steps), str(start), folder, told, on_stage=lambda number, stage: stages.append((number, stage))
    )
    assert stages == [(0, "measure"), (1, "grpo"), (1, "measure")]
    assert (second.num_pairs, second.model) == (None, str(folder / "round-1" / "grpo" / "model"))
    summary = json.loads((folder / "round-1" / "grpo" / "summary.json").read_text())
    assert summary["rows"]["train"]["num_rows"] == 10
    assert summary["rows"]["validation"]["num_rows"] == len(rows(folder / "steps" / "validation.jsonl"))
    made = read_manifest(folder / "round-1" / "grpo")["settings"]
    assert (made["judge"], made["seed"], made["prompt"]["name"]) == ("step", 4, "short")
    assert read_manifest(folder)["settings"]["method"] == "grpo"
    assert "method" not in settings().resolved(), "as in folders that are older than the choice"
    # The scripted engine says the same of either model.
    assert (second.kept, second.best, first.best) == (False, str(start), str(start))


def test_a_method_that_is_none() -> None:
    with pytest.raises(InputError, match="method is 'ppo'"):
        settings(method="ppo")


def test_a_link_leads_to_the_best_model(tmp_path: Path) -> None:
    from rprm.evolve import link

    folder, first = tmp_path / "rounds", tmp_path / "sft"
    trained = folder / "round-1" / "dpo" / "model"
    for model in (trained, first):
        model.mkdir(parents=True)
    link(folder, str(first))
    assert (folder / "model").resolve() == first
    link(folder, str(trained))
    # A folder that is moved takes its models along.
    moved = folder.rename(tmp_path / "moved")
    assert (moved / "model").resolve() == moved / "round-1" / "dpo" / "model"
    # A model of the hub is no folder.
    link(moved, "owner/name")
    assert {path.name for path in moved.iterdir()} == {"round-1"}


def test_a_failing_stage_is_told_with_its_last_words(start: Path, steps: Path, tmp_path: Path) -> None:
    folder = tmp_path / "rounds"
    said = r"(?s)round-0/measure: `rprm bench steps` failed with exit code 1.*unknown option 'nonsense'"
    with pytest.raises(RunError, match=said) as told:
        evolve(str(steps), str(start), folder, settings(engine_options="nonsense=1"))
    assert "measure.log" in str(told.value)
    assert read_manifest(folder)["status"] == "stopped"


def test_a_model_without_a_template_needs_one(tiny_model: Path, steps: Path, tmp_path: Path) -> None:
    with pytest.raises(PromptError, match=r"carries no rprm_prompt\.toml"):
        evolve(str(steps), str(tiny_model), tmp_path / "rounds", settings())


def test_there_must_be_steps_on_both_sides(start: Path, steps: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="80 steps to train on and 0 to measure on"):
        evolve(str(steps), str(start), tmp_path / "a", settings(validation_share=0.0))
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"problem": 3}\n')
    with pytest.raises(InputError, match=r"broken\.jsonl, line 1"):
        evolve(str(broken), str(start), tmp_path / "b", settings())


def test_the_result_is_a_row() -> None:
    result = RoundResult(
        round=0, model="m", best="m", kept=True, num_pairs=None, f1=50.0, wrong_acc=50.0, correct_acc=50.0,
        wellformed=None, seconds=1.0,
    )  # fmt: skip
    assert RoundResult.model_validate_json(result.model_dump_json()) == result
    assert os.linesep not in result.model_dump_json()
