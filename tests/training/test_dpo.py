"""DPO: tokens, the loss's two parts, LoRA, the precomputed reference, and going on after a kill."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from rprm.engines.tokens import encode_prompt
from rprm.errors import InputError, PromptError
from rprm.prompts.library import MODEL_TEMPLATE, load_template
from rprm.training.dpo import DPOSettings, train_dpo
from rprm.training.rows import check_batch
from rprm.training.sft import train_sft
from tests.training.conftest import RAW_TEMPLATE, TEMPLATE, make_row
from tests.training.test_sft import QUICK as QUICK_SFT
from tests.training.test_sft import chatml_model, die_at, figures, prompt_of, trainer_of, weights

__all__ = ["chatml_model"]

QUICK = DPOSettings(
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


@pytest.mark.parametrize("case", ["tiny", "chatml", "raw"])
def test_the_trainer_reads_what_the_engine_reads(
    case: str,
    tiny_model: Path,
    chatml_model: Path,
    make_data: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from transformers import AutoTokenizer

    template = RAW_TEMPLATE if case == "raw" else TEMPLATE
    model = chatml_model if case == "chatml" else tiny_model
    data = make_data("dpo", num_train=8, template=template)
    trainer, rows = trainer_of(
        monkeypatch,
        lambda: train_dpo(data, model=str(model), output=tmp_path / "run", settings=QUICK),
        "language.check_batch",
    )
    check_batch(trainer, rows)
    tokenizer = AutoTokenizer.from_pretrained(model)
    wanted = {}
    for number in range(8):
        row = make_row(number, "dpo", template)
        for side in ("chosen", "rejected"):
            prompt, analysis = prompt_of({**row, "completion": row[side]})
            ids = (*encode_prompt(tokenizer, prompt, analysis), tokenizer.eos_token_id)
            wanted[ids] = (side, len(encode_prompt(tokenizer, prompt)))
    for batch in trainer.get_train_dataloader():
        num_pairs = len(batch["input_ids"]) // 2
        for place, (ids, mask, loss) in enumerate(
            zip(batch["input_ids"], batch["attention_mask"], batch["completion_mask"], strict=True)
        ):
            length = int(mask.sum())
            side, num_prompt = wanted.pop(tuple(ids.tolist()[:length]))
            assert side == ("chosen" if place < num_pairs else "rejected")
            assert loss.tolist()[:length] == [0] * num_prompt + [1] * (length - num_prompt)
    assert wanted == {}
    trainer.train_dataset = trainer.train_dataset.map(lambda row: {"chosen_ids": row["chosen_ids"][:-1]})
    with pytest.raises(InputError, match="tokens are not those of the rows"):
        check_batch(trainer, rows)


def test_the_loss_and_its_sft_term(tiny_model: Path, make_data: Callable[..., Path], tmp_path: Path) -> None:
    """At the first step the model is its reference: -log sigmoid(0) = log 2, and the SFT term is the chosen's NLL."""
    data = make_data("dpo", num_train=8)
    settings = replace(QUICK, max_steps=1, batch_size=8, device_batch_size=8)
    alone = train_dpo(data, model=str(tiny_model), output=tmp_path / "alone", settings=settings)
    assert alone.summary["loss"] == pytest.approx(math.log(2), rel=1e-6)

    weighted = replace(settings, sft_weight=0.5)
    both = train_dpo(data, model=str(tiny_model), output=tmp_path / "both", settings=weighted)
    sft_data = make_data("sft", num_train=8)
    sft = train_sft(
        sft_data,
        model=str(tiny_model),
        output=tmp_path / "sft",
        settings=replace(QUICK_SFT, max_steps=1, batch_size=8, device_batch_size=8),
    )
    assert both.summary["loss"] == pytest.approx(math.log(2) + 0.5 * sft.summary["loss"], rel=1e-4)


@pytest.mark.parametrize("lora_rank", [None, 4])
def test_a_precomputed_reference_changes_nothing(
    lora_rank: int | None, tiny_model: Path, make_data: Callable[..., Path], tmp_path: Path
) -> None:
    data = make_data("dpo", num_train=8, num_validation=4)
    settings = replace(QUICK, lora_rank=lora_rank)
    live = train_dpo(data, model=str(tiny_model), output=tmp_path / "live", settings=settings)
    before = train_dpo(
        data, model=str(tiny_model), output=tmp_path / "before", settings=replace(settings, precompute_reference=True)
    )
    assert before.summary["loss"] == pytest.approx(live.summary["loss"], rel=1e-4)
    assert before.summary["eval_loss"] == pytest.approx(live.summary["eval_loss"], rel=1e-4)
    preferred = [row["rewards/accuracies"] for row in figures(tmp_path / "live") if "rewards/accuracies" in row]
    assert len(preferred) == 3


@pytest.mark.slow
def test_killed_and_resumed(tiny_model: Path, make_data: Callable[..., Path], tmp_path: Path) -> None:
    """LoRA, checkpoints after steps 2 and 4, killed at 5, resumed from 4."""
    data = make_data("dpo", num_train=16, num_validation=4)
    settings = replace(QUICK, max_steps=7, save_steps=2, eval_steps=2, lora_rank=4, lora_dropout=0.1)
    whole = train_dpo(data, model=str(tiny_model), output=tmp_path / "whole", settings=settings)
    killed = tmp_path / "killed"
    die_at(5, "dpo", data, tiny_model, killed, asdict(settings))
    resumed = train_dpo(data, model=str(tiny_model), output=killed, settings=settings)
    assert (resumed.resumed_from, resumed.num_steps) == (4, 7)
    assert resumed.summary == whole.summary
    assert figures(killed) == figures(tmp_path / "whole")
    assert weights(killed / "model") == weights(tmp_path / "whole" / "model")
    assert weights(killed / "adapter") == weights(tmp_path / "whole" / "adapter")


def test_a_second_round(tiny_model: Path, make_data: Callable[..., Path], tmp_path: Path) -> None:
    """SFT, then DPO on its model: the template goes along, and another one must be meant."""
    first = train_sft(make_data("sft", num_train=8), model=str(tiny_model), output=tmp_path / "sft", settings=QUICK_SFT)
    second = train_dpo(make_data("dpo", num_train=8), model=str(first.model), output=tmp_path / "dpo", settings=QUICK)
    assert load_template(second.model).digest == TEMPLATE.digest

    other = make_data("dpo", num_train=8, template=RAW_TEMPLATE)
    arguments: dict[str, Any] = {"model": str(second.model), "output": tmp_path / "other", "settings": QUICK}
    with pytest.raises(PromptError, match=r"trained with template 'tiny' .* name the data's template with --prompt"):
        train_dpo(other, **arguments)
    third = train_dpo(other, prompt=other / MODEL_TEMPLATE, **arguments)
    assert load_template(third.model).digest == RAW_TEMPLATE.digest


def test_the_reference_is_loaded_without_code_and_at_the_revision(
    tiny_model: Path, make_data: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Policy and reference: each load of weights says so itself."""
    from transformers import LlamaForCausalLM

    loads: list[dict[str, Any]] = []
    load = LlamaForCausalLM.from_pretrained.__func__

    def note(cls: Any, *args: Any, **kwargs: Any) -> Any:
        loads.append(kwargs)
        return load(cls, *args, **kwargs)

    monkeypatch.setattr(LlamaForCausalLM, "from_pretrained", classmethod(note))
    train_dpo(
        make_data("dpo", num_train=8),
        model=str(tiny_model),
        output=tmp_path / "run",
        settings=replace(QUICK, max_steps=1),
        revision="abc",
    )
    # The check of the checkpoint, the policy, the reference, the trained model.
    assert [kwargs.get("trust_remote_code") for kwargs in loads] == [False] * 4, loads


def test_settings_that_make_no_sense() -> None:
    with pytest.raises(InputError, match="beta"):
        replace(QUICK, beta=0.0)
    with pytest.raises(InputError, match="sft_weight"):
        replace(QUICK, sft_weight=-1.0)
