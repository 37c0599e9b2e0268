"""`rprm train`: options override presets, figures go to standard error, the result to standard output."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from rprm.cli.train import app
from rprm.errors import InputError
from rprm.training.baseline import ClassifierTraining
from rprm.training.settings import DPO_PRESETS, SFT_PRESETS, DPOSettings, SFTSettings


@pytest.fixture(autouse=True)
def _loud_libraries() -> Iterator[None]:
    """The command quiets the libraries for its process; the other tests keep theirs as they are."""
    import datasets
    import transformers

    verbosity = transformers.utils.logging.get_verbosity()
    yield
    transformers.utils.logging.set_verbosity(verbosity)
    transformers.utils.logging.enable_progress_bar()
    datasets.enable_progress_bars()


def test_train_and_train_again(tiny_model: Path, make_data: Callable[..., Path], tmp_path: Path) -> None:
    data = make_data(num_train=16, num_validation=4)
    command = ["sft", str(data), "--model", str(tiny_model), "-o", str(tmp_path / "run"), "--preset", "cpu"]
    command += ["--max-length", "512", "--max-steps", "2", "--learning-rate", "0.001", "--logging-steps", "1"]
    done = CliRunner().invoke(app, command, catch_exceptions=False)
    assert done.exit_code == 0
    assert done.stdout.startswith(f"{tmp_path / 'run' / 'model'}: 2 steps, loss ")
    assert "step 1  loss" in done.stderr
    assert "step 2  validation loss" in done.stderr
    settings = json.loads((tmp_path / "run" / "manifest.json").read_text())["settings"]
    assert (settings["batch_size"], settings["learning_rate"], settings["precision"]) == (8, 0.001, "fp32")
    again = CliRunner().invoke(app, command, catch_exceptions=False)
    assert "is complete already; nothing is trained again" in again.stderr
    assert again.stdout == done.stdout


class _Called(Exception):
    pass


def settings_of(monkeypatch: pytest.MonkeyPatch, kind: str, *arguments: str) -> tuple[Any, dict[str, Any]]:
    """The settings that a command line comes to."""
    given: dict[str, Any] = {}

    def capture(data: str, **rest: Any) -> None:
        given.update(rest)
        raise _Called

    monkeypatch.setattr(f"rprm.training.{kind}.train_{kind}", capture)
    with pytest.raises(_Called):
        CliRunner().invoke(app, [kind, "data", "-o", "run", *arguments], catch_exceptions=False)
    return given["settings"], given


def test_presets_and_options(monkeypatch: pytest.MonkeyPatch) -> None:
    settings, given = settings_of(monkeypatch, "sft", "--preset", "paper-7b-sft")
    assert settings == SFT_PRESETS["paper-7b-sft"]
    assert given["model"] == "Qwen/Qwen2.5-Math-7B-Instruct"
    settings, _ = settings_of(monkeypatch, "sft", "--model", "m")
    assert settings == SFTSettings()
    settings, _ = settings_of(
        monkeypatch, "sft", "-m", "m", "--preset", "small-lora", "--lora-rank", "0", "--epochs", "2", "--packing",
        "--no-gradient-checkpointing", "--precision", "fp32", "--keep-last",
    )  # fmt: skip
    assert settings == replace(
        SFT_PRESETS["small-lora"],
        lora_rank=None,
        num_epochs=2.0,
        packing=True,
        gradient_checkpointing=False,
        precision="fp32",
        keep_best=False,
    )
    settings, given = settings_of(
        monkeypatch, "dpo", "-m", "m", "--preset", "paper-7b-dpo", "--beta", "0.2", "--sft-weight", "0.5",
        "--precompute-reference", "--patience", "2", "--eval-steps", "50", "--push-to-hub", "a/b", "--public",
    )  # fmt: skip
    assert settings == replace(
        DPO_PRESETS["paper-7b-dpo"], beta=0.2, sft_weight=0.5, precompute_reference=True, patience=2, eval_steps=50
    )
    assert (given["options"].push_to_hub, given["options"].private) == ("a/b", False)


def test_every_setting_has_an_option() -> None:
    """What the library can do, the command can."""
    for command, settings in (("sft", SFTSettings()), ("dpo", DPOSettings()), ("classifier", ClassifierTraining())):
        text = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "200", "NO_COLOR": "1"}).stdout
        # A classifier's adapter is always merged.
        for name in asdict(settings).keys() - ({"merge"} if command == "classifier" else set()):
            option = "--" + {"num_epochs": "epochs"}.get(name, name).replace("_", "-")
            assert option in text, (command, option)


def test_the_papers_values() -> None:
    """R-PRM, section 4.1: 1 epoch, batch 128, learning rates 5e-6 and 5e-7, warm-up ratio 0.03."""
    for settings, rate in ((SFT_PRESETS["paper-7b-sft"], 5e-6), (DPO_PRESETS["paper-7b-dpo"], 5e-7)):
        # The lowest validation loss is kept, and nothing stops early.
        assert (settings.keep_best, settings.patience) == (True, None)
        assert (settings.num_epochs, settings.batch_size, settings.warmup_ratio) == (1.0, 128, 0.03)
        assert settings.learning_rate == rate
    assert SFTSettings().learning_rate == 5e-6
    assert DPOSettings().learning_rate == 5e-7
    for count in (1, 2, 4, 8):
        for preset in (*SFT_PRESETS.values(), *DPO_PRESETS.values()):
            preset.accumulation(count if preset.batch_size > 8 else 1)
    with pytest.raises(InputError, match="no preset 'big'; there are paper-7b-sft, small-lora, cpu"):
        CliRunner().invoke(app, ["sft", "d", "-m", "m", "-o", "r", "--preset", "big"], catch_exceptions=False)


def test_a_model_is_needed() -> None:
    done = CliRunner().invoke(app, ["dpo", "data", "-o", "run", "--preset", "paper-7b-dpo"])
    assert done.exit_code == 2
    assert "--model" in done.stderr
