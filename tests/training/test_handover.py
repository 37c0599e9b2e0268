"""The model folder: weights in the wanted precision, generation that stops, the card, and the upload when asked for."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from rprm.errors import RunError
from rprm.training.handover import BaseModel, card_text, find_model, push, whole_folder
from rprm.training.settings import RunOptions, SFTSettings
from rprm.training.sft import SFTRun, train_sft
from tests.training.conftest import TEMPLATE
from tests.training.test_sft import QUICK


def make_folder(checkpoint: Path, output: Path, model: Path, **changes: Any) -> Path:
    from transformers import AutoTokenizer

    run = SFTRun.__new__(SFTRun)
    run.folder, run.base, run.tokenizer = output, find_model(str(model)), AutoTokenizer.from_pretrained(model)
    run.template, run.end, run.bf16, run.counts = TEMPLATE, 0, False, {}
    run.settings = SFTSettings(merge=changes.pop("merge", True))
    for name, value in changes.items():
        setattr(run, name, value)
    with whole_folder(output / "model") as folder:
        run.hand_over(checkpoint, folder)
    return output / "model"


def test_an_adapter_names_its_base_and_the_revision(tiny_model: Path, tmp_path: Path) -> None:
    """A hub model's adapter fits the commit that it was trained on, whatever the name stands for later."""
    checkpoint = tmp_path / "checkpoint-3"
    checkpoint.mkdir()
    config = {"base_model_name_or_path": "elsewhere", "revision": None, "peft_type": "LORA", "r": 4}
    config["target_modules"] = ["v_proj", "k_proj", "q_proj"]
    (checkpoint / "adapter_config.json").write_text(json.dumps(config))
    save_file({"lora_A": torch.zeros(1)}, checkpoint / "adapter_model.safetensors")
    base = BaseModel("owner/name", "5cc7683d", "owner/name@5cc7683d", 512, (0,))
    folder = make_folder(checkpoint, tmp_path / "run", tiny_model, base=base, merge=False)
    written = json.loads((folder / "adapter_config.json").read_text())
    named = {"base_model_name_or_path": "owner/name", "revision": "5cc7683d"}
    assert written == {**config, **named, "target_modules": ["k_proj", "q_proj", "v_proj"]}


def test_an_adapter_of_tied_embeddings_is_merged_as_it_was_trained(tiny_model: Path, tmp_path: Path) -> None:
    """`--lora-targets embed_tokens`: the output layer keeps the weights that it shared with the embeddings."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(tiny_model, tie_word_embeddings=True)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "base")
    lora = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["embed_tokens"], init_lora_weights=False)
    with warnings.catch_warnings(action="ignore", category=UserWarning):
        adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), lora).eval()
        adapted.save_pretrained(tmp_path / "checkpoint-3")
    folder = make_folder(tmp_path / "checkpoint-3", tmp_path / "run", tiny_model, base=find_model(f"{tmp_path}/base"))
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        merged = AutoModelForCausalLM.from_pretrained(folder)(ids).logits
        torch.testing.assert_close(merged, adapted(ids).logits, rtol=1e-4, atol=1e-4)


def test_weights_in_shards_are_stored_in_bfloat16(tiny_model: Path, tmp_path: Path) -> None:
    """Every tensor is rounded once."""
    from transformers import AutoModelForCausalLM

    tensors = load_file(tiny_model / "model.safetensors")
    names = sorted(tensors)
    checkpoint = tmp_path / "checkpoint-3"
    checkpoint.mkdir()
    shards = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, members in shards.items():
        save_file({name: tensors[name] for name in members}, checkpoint / file)
    weight_map = {name: file for file, members in shards.items() for name in members}
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps(index))
    config = json.loads((tiny_model / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps({**config, "use_cache": False}))

    folder = make_folder(checkpoint, tmp_path / "run", tiny_model, bf16=True)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.dtype == torch.bfloat16
    assert model.config.use_cache
    for name, value in model.state_dict().items():
        assert torch.equal(value, tensors[name].to(torch.bfloat16)), name


def test_generation_stops_at_the_trained_end(tiny_model: Path, tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint-1"
    checkpoint.mkdir()
    for name in ("model.safetensors", "config.json"):
        shutil.copy(tiny_model / name, checkpoint)
    base = find_model(str(tiny_model))
    folder = make_folder(checkpoint, tmp_path / "run", tiny_model, base=replace(base, stops=(0, 7)), end=2)
    assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == [2, 0, 7]
    folder = make_folder(checkpoint, tmp_path / "run", tiny_model, base=base, end=0)
    assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == 0


def test_a_checkpoint_without_whole_weights(tiny_model: Path, tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint-1"
    checkpoint.mkdir()
    with pytest.raises(RunError, match=r"no weights in one piece; .*recipes/accelerate"):
        make_folder(checkpoint, tmp_path / "run", tiny_model)
    assert not (tmp_path / "run" / "model").exists()


def test_the_card(tiny_model: Path, make_data: Callable[..., Path], tmp_path: Path) -> None:
    data = make_data(num_train=8, num_validation=2)
    result = train_sft(data, model=str(tiny_model), output=tmp_path / "run", settings=QUICK)
    card = (result.model / "README.md").read_text()
    base = find_model(str(tiny_model))
    digest = json.loads((tmp_path / "run" / "manifest.json").read_text())["settings"]["input"]["train"]
    for wanted in (
        f"Trained from `{tiny_model}` ({base.identity}).",
        "| train | 8 rows, 0 too long, 4 yes, 4 no, ",
        digest,
        TEMPLATE.digest,
        "| learning_rate | 0.001 |",
        f"| eval_loss | {result.summary['eval_loss']} |",
        "## What it is not for",
        "| trl | 1.",
    ):
        assert wanted in card
    assert "base_model:" not in card, "a folder is no hub id"
    hub = BaseModel("a/b", "abc", "a/b@abc", 10, (1,))
    run = SimpleNamespace(settings={}, session={"versions": {}})
    training = SimpleNamespace(base=hub, run=run, source={}, runs_as="transformers", title="T", about="It is.")
    text = card_text(training, {"rows": {}, "loss": 0.5})
    assert "base_model: a/b\n" in text
    assert "Trained from `a/b` (commit abc)." in text


class _Hub:
    def __init__(self, fails: bool = False) -> None:
        self.fails = fails
        self.calls: list[tuple[str, Any]] = []

    def create_repo(self, repository: str, *, private: bool, exist_ok: bool) -> None:
        if self.fails:
            raise OSError("no connection")
        self.calls.append(("create", (repository, private, exist_ok)))

    def upload_folder(self, *, repo_id: str, folder_path: str, commit_message: str) -> Any:
        names = {path.name for path in Path(folder_path).iterdir()}
        assert {"model.safetensors", "config.json", "rprm_prompt.toml", "README.md"} <= names
        self.calls.append(("upload", repo_id))
        return SimpleNamespace(commit_url="https://hub/commit")


def test_upload_only_when_asked(
    tiny_model: Path, make_data: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = _Hub()
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: hub)
    data = make_data(num_train=8)

    def run(**options: Any) -> None:
        train_sft(data, model=str(tiny_model), output=tmp_path / "run", settings=QUICK, options=RunOptions(**options))

    run()
    assert hub.calls == []
    # The run is complete: it is uploaded, and nothing else.
    run(push_to_hub="me/judge")
    assert hub.calls == [("create", ("me/judge", True, True)), ("upload", "me/judge")]


def test_an_upload_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: _Hub(fails=True))
    with pytest.raises(RunError, match=r"could not be uploaded to me/judge: OSError: no connection; log in"):
        push(tmp_path, "me/judge", on_note=lambda text: None)
