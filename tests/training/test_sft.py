"""SFT: what is trained on is what an engine reads and writes; a killed run ends as an undisturbed one."""

from __future__ import annotations

import json
import shutil
import signal
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from rprm import RPRM
from rprm.engines.tokens import encode_prompt
from rprm.errors import EngineError, InputError, RunError, SettingsChanged
from rprm.prompts.library import load_template
from rprm.prompts.template import Message, Prompt, PromptTemplate
from rprm.runs import read_json_lines, read_manifest
from rprm.training.handover import find_model
from rprm.training.lifecycle import TrainingCallbacks
from rprm.training.rows import check_batch, encode_row, end_token, training_rows
from rprm.training.settings import RunOptions
from rprm.training.sft import SFTSettings, train_sft
from tests.training.conftest import RAW_TEMPLATE, TEMPLATE, make_row, write_rows
from tests.warm import warm_torch

#: Three steps of four rows, a checkpoint after each.
QUICK = SFTSettings(
    learning_rate=1e-3,
    max_steps=3,
    batch_size=4,
    device_batch_size=2,
    max_length=512,
    # Exact, whatever the processor could compute in.
    precision="fp32",
    gradient_checkpointing=False,
    eval_steps=1,
    save_steps=1,
    logging_steps=1,
)

CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}<|im_start|>system\n"
    "You are a helpful assistant.<|im_end|>\n{% endif %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
#: Renders a finished turn in another way than an open one, and drops spaces, as some released templates do.
ODD = (
    "{% for m in messages %}[{{ m['role'] }}]{% if m['role'] == 'assistant' %}<think></think>{% endif %}"
    "{{ m['content'] | trim }}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)


@pytest.fixture
def chatml_model(tiny_model: Path, tmp_path: Path) -> Path:
    """The tiny model with SmolLM2's kind of chat: `<|im_end|>` ends a turn and is the EOS."""
    return with_chat(tiny_model, tmp_path / "chatml", CHATML, eos="<|im_end|>", extra=["<|im_start|>"])


def with_chat(source: Path, folder: Path, chat_template: str, *, eos: str | None = None, extra: Any = ()) -> Path:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source)
    model = AutoModelForCausalLM.from_pretrained(source)
    if eos is not None:
        tokenizer.add_special_tokens({"additional_special_tokens": list(extra), "eos_token": eos})
        model.resize_token_embeddings(len(tokenizer))
        model.config.eos_token_id = model.generation_config.eos_token_id = tokenizer.eos_token_id
    tokenizer.chat_template = chat_template
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


class Captured(Exception):
    """Carries the trainer out of a training that has not begun."""

    def __init__(self, trainer: Any, rows: Any) -> None:
        self.trainer = trainer
        self.rows = rows


def trainer_of(monkeypatch: pytest.MonkeyPatch, train: Callable[[], Any], check: str) -> tuple[Any, Any]:
    """The trainer, ready to train, and the rows it was given."""

    def capture(trainer: Any, rows: Any) -> None:
        raise Captured(trainer, rows)

    with monkeypatch.context() as patch:
        patch.setattr(f"rprm.training.{check}", capture)
        with pytest.raises(Captured) as caught:
            train()
    return caught.value.trainer, caught.value.rows


def prompt_of(row: dict[str, Any]) -> tuple[Prompt, str]:
    if isinstance(row["prompt"], str):
        return Prompt((Message("user", row["prompt"]),), chat=False), row["completion"]
    return Prompt(tuple(Message(**m) for m in row["prompt"])), row["completion"][0]["content"]


# --- tokens -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["tiny", "chatml", "odd", "raw", "no chat template"])
def test_the_trainer_reads_what_the_engine_reads(
    case: str,
    tiny_model: Path,
    chatml_model: Path,
    make_data: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Out of the trainer's own loader: the engine's prompt, the analysis, an end token; loss on the latter two."""
    from transformers import AutoTokenizer

    template = RAW_TEMPLATE if case == "raw" else TEMPLATE
    model = {
        "chatml": lambda: chatml_model,
        "odd": lambda: with_chat(tiny_model, tmp_path / "odd", ODD),
        "no chat template": lambda: with_chat(tiny_model, tmp_path / "none", ""),
    }.get(case, lambda: tiny_model)()
    data = make_data(num_train=8, template=template)
    trainer, _ = trainer_of(
        monkeypatch,
        lambda: train_sft(data, model=str(model), output=tmp_path / "run", settings=QUICK),
        "language.check_batch",
    )
    tokenizer = AutoTokenizer.from_pretrained(model)
    wanted = {}
    for number in range(8):
        prompt, analysis = prompt_of(make_row(number, template=template))
        ids = encode_prompt(tokenizer, prompt, analysis)
        wanted[(*ids, tokenizer.eos_token_id)] = (len(encode_prompt(tokenizer, prompt)), analysis)
    seen = 0
    for batch in trainer.get_train_dataloader():
        for ids, labels, mask in zip(batch["input_ids"], batch["labels"], batch["attention_mask"], strict=True):
            length = int(mask.sum())
            ids, labels = ids.tolist()[:length], labels.tolist()[:length]
            num_prompt, analysis = wanted.pop(tuple(ids))
            assert labels == [-100] * num_prompt + ids[num_prompt:]
            trained = tokenizer.decode(labels[num_prompt:-1])
            assert trained == analysis
            # The verdict is one token with loss on it, right before the end token.
            assert tokenizer.decode(labels[-2:]) in (f" Yes{tokenizer.eos_token}", f" No{tokenizer.eos_token}")
            seen += 1
    assert (seen, wanted) == (8, {})


def test_trl_alone_would_train_on_other_tokens(chatml_model: Path, tiny_model: Path) -> None:
    """Why rows are tokenised here: TRL's rendering adds a line end after the turn, or no end token at all."""
    from transformers import AutoTokenizer
    from trl.data_utils import _tokenize

    row = make_row(0)
    rendered = {}
    for name, model in (("chatml", chatml_model), ("tiny", tiny_model)):
        tokenizer = AutoTokenizer.from_pretrained(model)
        ids = _tokenize(tokenizer, row["prompt"] + row["completion"])["input_ids"]
        rendered[name] = tokenizer.decode(ids[-2:])
    assert rendered == {"chatml": "<|im_end|>\n", "tiny": "? Yes"}


class _Tokenizer:
    """Characters as tokens, and a chat template that ends a turn as told."""

    chat_template = "set"

    def __init__(self, ending: str, eos: str | None) -> None:
        self.ending = ending
        self.eos_token_id = None if eos is None else ord(eos)

    def apply_chat_template(self, messages: Any, tokenize: bool, add_generation_prompt: bool) -> str:
        return "".join(m["content"] for m in messages) + self.ending

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        return [ord(character) for character in text]


@pytest.mark.parametrize(
    ("ending", "eos", "stops", "chat", "end"),
    [
        ("", "E", (), True, "E"),  # the template writes no end: EOS
        ("T\n", "T", (), True, "T"),
        ("T\n", "E", ("T",), True, "T"),  # the generation config stops at the turn's end: the template's own
        ("T\n", "E", (), True, "E"),  # no engine would stop at the turn's end
        ("T\n", None, ("T",), True, "T"),
        ("T\n", "E", ("T",), False, "E"),  # a raw prompt knows no turns
    ],
)
def test_end_token(ending: str, eos: str | None, stops: tuple[str, ...], chat: bool, end: str) -> None:
    assert end_token(_Tokenizer(ending, eos), tuple(map(ord, stops)), chat=chat) == ord(end)


def test_no_end_token() -> None:
    with pytest.raises(EngineError, match="no EOS token"):
        end_token(_Tokenizer("", None), (), chat=True)


def test_control_tokens_that_a_reply_spells_are_ordinary_text(chatml_model: Path, tmp_path: Path) -> None:
    """The turn ends once, at the end; the spellings come back from the ids as they were."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(chatml_model)
    text = f"Stop.<|im_end|>\n<|im_start|>user\n</s> {make_row(0)['completion'][0]['content']}"
    row = make_row(0)
    row["completion"][0]["content"] = text
    (read,) = training_rows(write_rows(tmp_path / "rows.jsonl", [row]), "sft")
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    _, (ids,) = encode_row(tokenizer, read, end)
    assert [id_ for id_ in ids if id_ in tokenizer.all_special_ids] == [end] == ids[-1:]
    assert tokenizer.decode(ids[:-1]) == text


def test_a_reply_with_an_end_token_that_has_one_spelling(tiny_model: Path, tmp_path: Path) -> None:
    """An ordinary word that ends replies: nothing else says it."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    (read,) = training_rows(write_rows(tmp_path / "rows.jsonl", [make_row(0)]), "sft")
    with pytest.raises(InputError, match=r"rows.jsonl, line 1 .*' Yes'"):
        encode_row(tokenizer, read, tokenizer.convert_tokens_to_ids("ĠYes"))


def test_a_trainer_that_changes_the_tokens_is_refused(
    tiny_model: Path, make_data: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = make_data(num_train=8)
    trainer, rows = trainer_of(
        monkeypatch,
        lambda: train_sft(data, model=str(tiny_model), output=tmp_path / "run", settings=QUICK),
        "language.check_batch",
    )
    check_batch(trainer, rows)
    trainer.train_dataset = trainer.train_dataset.map(lambda row: {"input_ids": [*row["input_ids"][:-1], 5]})
    with pytest.raises(InputError, match="tokens are not those of the rows"):
        check_batch(trainer, rows)


@pytest.mark.parametrize("way", ["packing", "padding_free"])
def test_packed_rows_have_the_losses_of_padded_ones(
    way: str, tiny_model: Path, make_data: Callable[..., Path], tmp_path: Path
) -> None:
    """With the whole data in one batch, the token-weighted loss of the first step is the same in every layout.

    The warm-up begins at a learning rate of 0: after that step the model is the same, and so is the validation loss.
    """
    data = make_data(num_train=8, num_validation=4)
    settings = replace(QUICK, max_steps=1, batch_size=8, device_batch_size=8)
    padded = train_sft(data, model=str(tiny_model), output=tmp_path / "padded", settings=settings)
    # 8 rows of at most 133 tokens, packs of 512: at most 3 packs.
    packs = {"batch_size": 3, "device_batch_size": 3} if way == "packing" else {}
    changed = replace(settings, **{way: True, **packs})
    other = train_sft(data, model=str(tiny_model), output=tmp_path / way, settings=changed)
    assert other.summary["loss"] == pytest.approx(padded.summary["loss"], rel=1e-4)
    assert other.summary["eval_loss"] == pytest.approx(padded.summary["eval_loss"], rel=1e-4)


# --- kill and resume ----------------------------------------------------------------------------------------------


def die_at(step: int, kind: str, data: Path, model: Path, output: Path, settings: dict[str, Any]) -> None:
    """Train in a process of its own (a fork of the warm one) that kills itself with SIGKILL at a step."""
    script = Path(__file__).with_name("train_and_die.py")
    arguments = [kind, str(data), str(model), str(output), json.dumps(settings), str(step)]
    done = warm_torch().run([sys.executable, str(script), *arguments])
    assert done.returncode == -signal.SIGKILL, done.stderr


def figures(folder: Path) -> list[dict[str, Any]]:
    """The logged rows without the clock's."""
    clocks = ("runtime", "per_second")
    return [
        {name: value for name, value in row.items() if not any(clock in name for clock in clocks)}
        for row in read_json_lines(folder / "metrics.jsonl")
    ]


def weights(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.safetensors"))}


@pytest.mark.slow
@pytest.mark.parametrize(("group_by_length", "last", "is_torn"), [(False, 5, True), (True, 5, True), (True, 7, False)])
def test_killed_and_resumed(
    tiny_model: Path,
    make_data: Callable[..., Path],
    tmp_path: Path,
    group_by_length: bool,
    last: int,
    is_torn: bool,
) -> None:
    """Checkpoints at every second step; killed; the last one torn, it resumes from the one before, and ends the same.

    An epoch has 4 steps: where batches are of like length, the order of the second one is that of the undisturbed run.
    """
    data = make_data(num_train=16, num_validation=4)
    values = {
        "learning_rate": 1e-3,
        "max_steps": 7,
        "batch_size": 4,
        "device_batch_size": 2,
        "max_length": 512,
        "gradient_checkpointing": False,
        "eval_steps": 2,
        "save_steps": 2,
        "logging_steps": 3,
        "group_by_length": group_by_length,
    }
    settings = SFTSettings(**values)
    whole = train_sft(data, model=str(tiny_model), output=tmp_path / "whole", settings=settings)
    assert whole.num_steps == 7

    killed = tmp_path / "killed"
    die_at(last, "sft", data, tiny_model, killed, values)
    assert not (killed / "model").exists()
    assert [row["step"] for row in figures(killed)] == [2, 2, 3, 4, 4, 6, 6][: 5 if last < 6 else 7]
    if is_torn:
        optimizer = killed / "checkpoints" / "checkpoint-4" / "optimizer.pt"
        optimizer.write_bytes(optimizer.read_bytes()[:1000])
    notes: list[str] = []
    resumed = train_sft(
        data, model=str(tiny_model), output=killed, settings=settings, callbacks=TrainingCallbacks(on_note=notes.append)
    )
    assert resumed.resumed_from == (2 if is_torn else 6)
    assert any("torn-checkpoint-4" in note for note in notes) == is_torn
    assert resumed.summary == whole.summary
    assert figures(killed) == figures(tmp_path / "whole")
    assert weights(killed / "model") == weights(tmp_path / "whole" / "model")
    assert [session.get("ended_at") is None for session in read_manifest(killed)["sessions"]] == [True, False]

    again = train_sft(data, model=str(tiny_model), output=killed, settings=settings)
    assert again.was_complete
    assert again.summary == whole.summary
    with pytest.raises(SettingsChanged, match=r"learning_rate: 0.001 -> 0.002"):
        train_sft(data, model=str(tiny_model), output=killed, settings=replace(settings, learning_rate=2e-3))
    assert read_manifest(killed)["status"] == "complete"


def test_killed_while_handing_over(
    tiny_model: Path, make_data: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every step is done: the next session trains nothing, not even one step too many, and hands over."""
    data = make_data(num_train=16)
    settings = replace(QUICK, save_steps=2)
    whole = train_sft(data, model=str(tiny_model), output=tmp_path / "whole", settings=settings)

    def fail(*args: Any, **kwargs: Any) -> None:
        raise RunError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr("rprm.training.sft.SFTRun.hand_over", fail)
        with pytest.raises(RunError, match="disk is full"):
            train_sft(data, model=str(tiny_model), output=tmp_path / "run", settings=settings)
    assert read_manifest(tmp_path / "run")["sessions"][-1]["stopped_by"] == "RunError"
    monkeypatch.setattr("rprm.training.lifecycle.TrainingRun._fit", fail)
    resumed = train_sft(data, model=str(tiny_model), output=tmp_path / "run", settings=settings)
    assert (resumed.resumed_from, resumed.num_steps) == (3, 3)
    assert weights(resumed.model) == weights(whole.model)


#: Eight rows learnt by heart: the validation loss falls until step 8 and rises from then on. An evaluation every 4
#: steps, a checkpoint of its own every 12.
BY_HEART: dict[str, Any] = {
    **asdict(QUICK),
    "learning_rate": 1e-2,
    "max_steps": 24,
    "warmup_ratio": 0.0,
    "scheduler": "constant",
    "batch_size": 8,
    "device_batch_size": 8,
    "eval_steps": 4,
    "save_steps": 12,
    "logging_steps": 4,
}


@pytest.mark.slow
def test_the_lowest_validation_loss_is_handed_over(
    tiny_model: Path, make_data: Callable[..., Path], tmp_path: Path
) -> None:
    """Every step is trained; the model is that of the middle. Killed at step 18, that of step 16 torn: the same."""
    data = make_data(num_train=8, num_validation=8)
    settings = SFTSettings(**BY_HEART)
    whole = train_sft(
        data,
        model=str(tiny_model),
        output=tmp_path / "whole",
        settings=settings,
        options=RunOptions(keep_checkpoints=True),
    )
    losses = {row["step"]: row["eval_loss"] for row in figures(tmp_path / "whole") if "eval_loss" in row}
    assert list(losses) == [4, 8, 12, 16, 20, 24]
    best = min(losses, key=losses.__getitem__)
    assert (losses[4], losses[24]) > (losses[best], losses[best])
    assert best in (8, 12, 16, 20)
    assert (whole.num_steps, whole.summary["stopped_early"]) == (24, False)
    assert (whole.summary["handed_over_step"], whole.summary["eval_loss"]) == (best, losses[best])
    assert weights(whole.model) == weights(tmp_path / "whole" / "checkpoints" / f"checkpoint-{best}")

    killed = tmp_path / "killed"
    die_at(18, "sft", data, tiny_model, killed, BY_HEART)
    optimizer = killed / "checkpoints" / "checkpoint-16" / "optimizer.pt"
    optimizer.write_bytes(optimizer.read_bytes()[:1000])
    resumed = train_sft(data, model=str(tiny_model), output=killed, settings=settings)
    assert resumed.resumed_from == best
    assert resumed.summary == whole.summary
    assert figures(killed) == figures(tmp_path / "whole")
    assert weights(resumed.model) == weights(whole.model)

    last = train_sft(data, model=str(tiny_model), output=tmp_path / "last", settings=replace(settings, keep_best=False))
    assert last.summary["handed_over_step"] == 24
    assert weights(last.model) == weights(tmp_path / "whole" / "checkpoints" / "checkpoint-24")


def test_patience_restores_the_best(tiny_model: Path, make_data: Callable[..., Path], tmp_path: Path) -> None:
    """At a ruinous learning rate the first evaluation is the best; two worse ones stop the run at step 3."""
    data = make_data(num_train=16, num_validation=4)
    settings = replace(
        QUICK, learning_rate=3.0, max_steps=20, warmup_ratio=0.0, scheduler="constant", patience=2, weight_decay=0.0
    )
    result = train_sft(
        data,
        model=str(tiny_model),
        output=tmp_path / "run",
        settings=settings,
        options=RunOptions(keep_checkpoints=True),
    )
    evaluated = {row["step"]: row["eval_loss"] for row in figures(tmp_path / "run") if "eval_loss" in row}
    best = min(evaluated, key=lambda step: (evaluated[step], step))
    assert result.num_steps == best + 2 < 20
    assert result.summary["stopped_early"]
    assert result.summary["handed_over_step"] == best
    assert result.summary["eval_loss"] == evaluated[best]
    assert weights(result.model) == weights(tmp_path / "run" / "checkpoints" / f"checkpoint-{best}")

    # Stopped in its last step: the evaluations without a new best are still counted when it goes on.
    class Stopped(Exception):
        pass

    def stop(step: int, num_steps: int) -> None:
        if step == best + 2:
            raise Stopped

    arguments: dict[str, Any] = {"model": str(tiny_model), "output": tmp_path / "stopped", "settings": settings}
    with pytest.raises(Stopped):
        train_sft(data, callbacks=TrainingCallbacks(on_step=stop), **arguments)
    resumed = train_sft(data, **arguments)
    assert resumed.resumed_from == best + 1
    assert resumed.summary == result.summary
    assert weights(resumed.model) == weights(result.model)


# --- LoRA ---------------------------------------------------------------------------------------------------------


def test_lora_is_merged_and_the_adapter_kept(tiny_model: Path, make_data: Callable[..., Path], tmp_path: Path) -> None:
    """Merged weights = base + alpha / rank * B A, here 16 / 4 = 4; the output head is left alone."""
    import torch
    from safetensors.torch import load_file

    data = make_data(num_train=16)
    settings = replace(QUICK, lora_rank=4, lora_alpha=16, learning_rate=1e-2)
    result = train_sft(data, model=str(tiny_model), output=tmp_path / "run", settings=settings)
    base = load_file(tiny_model / "model.safetensors")
    merged = load_file(result.model / "model.safetensors")
    adapter = load_file(tmp_path / "run" / "adapter" / "adapter_model.safetensors")
    assert merged.keys() == base.keys()
    name = "model.layers.0.mlp.up_proj"
    low, high = (adapter[f"base_model.model.{name}.lora_{side}.weight"] for side in "AB")
    torch.testing.assert_close(merged[f"{name}.weight"], base[f"{name}.weight"] + 4 * high @ low)
    assert float((merged[f"{name}.weight"] - base[f"{name}.weight"]).abs().max()) > 1e-3
    assert torch.equal(merged["lm_head.weight"], base["lm_head.weight"])
    assert not any("lm_head" in key for key in adapter)


def test_lora_unmerged_is_an_adapter_that_the_engine_loads(
    tiny_model: Path, make_data: Callable[..., Path], tmp_path: Path
) -> None:
    data = make_data(num_train=16)
    settings = replace(QUICK, lora_rank=4, merge=False)
    result = train_sft(data, model=str(tiny_model), output=tmp_path / "run", settings=settings)
    config = json.loads((result.model / "adapter_config.json").read_text())
    base = find_model(str(tiny_model))
    assert (config["base_model_name_or_path"], config["revision"]) == (str(tiny_model), None)
    assert read_manifest(tmp_path / "run")["settings"]["model"] == base.identity
    assert f"Trained from `{tiny_model}` ({base.identity})." in (result.model / "README.md").read_text()
    assert not (result.model / "model.safetensors").exists()
    with RPRM(
        f"transformers:{result.model}", prompt=str(result.model), num_analyses=1, max_tokens=8, force_verdict=True
    ) as prm:
        (reward,) = prm.score([{"problem": "What is 2 + 2?", "steps": ["2 + 2 = 4."]}])
    assert reward.rewards[0] is not None


def test_bfloat16_and_checkpointed_activations(
    tiny_model: Path, make_data: Callable[..., Path], tmp_path: Path
) -> None:
    """Mixed precision on the CPU, with and without an adapter: losses near float32's, weights stored in 16 bits."""
    from safetensors.torch import load_file

    data = make_data(num_train=16)
    exact = train_sft(data, model=str(tiny_model), output=tmp_path / "exact", settings=QUICK)
    for lora_rank in (None, 4):
        settings = replace(QUICK, precision="bf16", gradient_checkpointing=True, lora_rank=lora_rank)
        result = train_sft(data, model=str(tiny_model), output=tmp_path / f"run-{lora_rank}", settings=settings)
        first, wanted = (figures(run.output)[0]["loss"] for run in (result, exact))
        assert first == pytest.approx(wanted, rel=0.03)
        assert {str(tensor.dtype) for tensor in load_file(result.model / "model.safetensors").values()} == {
            "torch.bfloat16"
        }


# --- the whole way ------------------------------------------------------------------------------------------------


def test_a_trained_model_judges_with_its_own_prompt(
    tiny_model: Path, make_data: Callable[..., Path], tmp_path: Path
) -> None:
    """Taught two steps by heart, one right and one wrong, the engine finds their verdicts where they were trained."""
    from transformers import AutoTokenizer

    data = make_data(num_train=2)
    settings = replace(
        QUICK, learning_rate=3e-3, max_steps=120, batch_size=2, save_steps=120, logging_steps=10, scheduler="constant"
    )
    result = train_sft(data, model=str(tiny_model), output=tmp_path / "run", settings=settings)
    assert result.summary["loss"] < 0.2
    assert load_template(result.model).digest == TEMPLATE.digest
    assert AutoTokenizer.from_pretrained(result.model).pad_token is None, "the base model's tokenizer, unchanged"
    with RPRM(
        f"transformers:{result.model}", prompt=str(result.model), num_analyses=2, temperature=0.3, max_tokens=100
    ) as prm:
        solutions = [make_row(number) for number in range(2)]
        rewards = prm.score(
            [{"problem": f"What is {number} + {number}?", "steps": steps_of(solutions[number])} for number in range(2)]
        )
    right, wrong = (reward.steps[-1] for reward in rewards)
    assert right.reward is not None
    assert wrong.reward is not None
    assert right.reward > 0.9
    assert wrong.reward < 0.1
    assert right.analyses[0].finish_reason in ("stop", "verdict")


def steps_of(row: dict[str, Any]) -> list[str]:
    listed = row["prompt"][0]["content"].partition("Steps:\n")[2].rpartition("\nIs Step")[0]
    return [line.partition(": ")[2] for line in listed.split("\n")]


# --- refusals -----------------------------------------------------------------------------------------------------


def test_settings_that_make_no_sense(tiny_model: Path, make_data: Callable[..., Path], tmp_path: Path) -> None:
    data = make_data(num_train=8)

    def attempt(settings: SFTSettings) -> None:
        train_sft(data, model=str(tiny_model), output=tmp_path / "run", settings=settings)

    with pytest.raises(InputError, match="batch_size 4 is no multiple of 3"):
        attempt(replace(QUICK, device_batch_size=3))
    with pytest.raises(InputError, match=r"context length of .*, 512 tokens; lower --max-length"):
        attempt(replace(QUICK, max_length=513))
    with pytest.raises(InputError, match="patience needs validation rows"):
        attempt(replace(QUICK, patience=1))
    with pytest.raises(InputError, match="foo is not supported"):
        train_sft(
            data,
            model=str(tiny_model),
            output=tmp_path / "run",
            settings=QUICK,
            options=RunOptions(report_to="foo"),
        )
    with pytest.raises(InputError, match="trainer refuses these settings: foo is not a valid SchedulerType"):
        attempt(replace(QUICK, scheduler="foo"))
    with pytest.raises(InputError, match=r"cannot be trained so: .*attn_implementation=.foo."):
        attempt(replace(QUICK, attention="foo"))
    with pytest.raises(InputError, match=r"cannot be trained so: Target modules .'foo'. not found"):
        attempt(replace(QUICK, lora_rank=2, lora_targets="foo"))
    with pytest.raises(InputError, match="keep the best"):
        replace(QUICK, patience=1, keep_best=False)
    with pytest.raises(InputError, match="lm_head"):
        replace(QUICK, lora_targets="q_proj,lm_head")
    with pytest.raises(InputError, match="num_checkpoints is 1; give a whole number from 2"):
        RunOptions(num_checkpoints=1)
    # What failed before its first checkpoint left nothing behind that would hold the folder to its settings.
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["lock"]
    attempt(QUICK)


def test_what_fails_early_takes_no_file_that_is_not_its_own(
    tiny_model: Path, make_data: Callable[..., Path], tmp_path: Path
) -> None:
    folder, data = tmp_path / "run", make_data(num_train=8)

    def note(text: str) -> None:
        if (folder / "manifest.json").exists():
            (folder / "notes").mkdir(exist_ok=True)
            (folder / "notes" / "mine.md").write_text("mine")

    with pytest.raises(InputError, match="attn_implementation"):
        train_sft(
            data, model=str(tiny_model), output=folder, settings=replace(QUICK, attention="foo"),
            callbacks=TrainingCallbacks(on_stage=note),
        )  # fmt: skip
    assert sorted(path.name for path in folder.iterdir()) == ["lock", "notes"]
    assert (folder / "notes" / "mine.md").read_text() == "mine"


def broken(model: Path, folder: Path) -> Path:
    """A copy without one tensor, and with another cut to five rows."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(model, folder)
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    name = "model.layers.0.mlp.up_proj.weight"
    tensors[name] = tensors[name][:5].clone()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_a_checkpoint_with_gaps_is_refused_by_name(
    tiny_model: Path, make_data: Callable[..., Path], tmp_path: Path
) -> None:
    folder = broken(tiny_model, tmp_path / "broken")
    with pytest.raises(EngineError) as caught:
        train_sft(make_data(num_train=8), model=str(folder), output=tmp_path / "run", settings=QUICK)
    assert "model.layers.1.mlp.up_proj.weight is missing" in str(caught.value)
    assert "model.layers.0.mlp.up_proj.weight is of shape [5, 64], not [128, 64]" in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_code_of_a_repository_is_never_run(tiny_model: Path, make_data: Callable[..., Path], tmp_path: Path) -> None:
    """A model with code beside it: of a kind that transformers knows, it is trained without; otherwise refused."""
    folder, ran = tmp_path / "with-code", tmp_path / "ran"
    shutil.copytree(tiny_model, folder)
    (folder / "code.py").write_text(f"open({str(ran)!r}, 'w').close()\nclass Config: pass\nclass Model: pass\n")
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}
    (folder / "config.json").write_text(json.dumps(config))
    settings = replace(QUICK, max_steps=1)
    train_sft(make_data(num_train=8), model=str(folder), output=tmp_path / "run", settings=settings)
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "unheard-of"}))
    with pytest.raises(EngineError, match="needs code of its repository, which is never run"):
        find_model(str(folder))
    assert not ran.exists()


def test_too_long_rows_cost_no_folder(tiny_model: Path, make_data: Callable[..., Path], tmp_path: Path) -> None:
    data = make_data(num_train=8)
    with pytest.raises(InputError, match=r"8 of 8 rows are longer than max_length 50, more than 5%; the first: line 1"):
        train_sft(data, model=str(tiny_model), output=tmp_path / "run", settings=replace(QUICK, max_length=50))
    result = train_sft(data, model=str(tiny_model), output=tmp_path / "run", settings=QUICK)
    assert result.num_steps == 3


def test_models_that_cannot_be_trained(tiny_model: Path, make_data: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="GGUF file cannot be trained"):
        find_model("model.gguf")
    data = make_data(num_train=4)
    for name in (str(tmp_path / "missing"), "missing"):
        with pytest.raises(EngineError, match="there is no such folder"):
            train_sft(data, model=name, output=tmp_path / "run", settings=QUICK)
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    with pytest.raises(EngineError, match="is a LoRA adapter"):
        find_model(str(adapter))


def test_a_folder_of_something_else(tiny_model: Path, make_data: Callable[..., Path], tmp_path: Path) -> None:
    data = make_data(num_train=8)
    folder = tmp_path / "run"
    shutil.copytree(data, folder)
    with pytest.raises(RunError, match="not empty"):
        train_sft(data, model=str(tiny_model), output=folder, settings=QUICK)


def test_template_class_is_kept(tiny_model: Path, make_data: Callable[..., Path], tmp_path: Path) -> None:
    """A system message reaches the trained prompt as the engine writes it."""
    template = PromptTemplate(name="system", system="Be brief.", user=TEMPLATE.user, step_separator="\n")
    data = make_data(num_train=4, template=template)
    result = train_sft(data, model=str(tiny_model), output=tmp_path / "run", settings=replace(QUICK, max_steps=1))
    assert load_template(result.model).system == "Be brief."
