"""`--estimate`: weights and tokens exactly, operations and bytes by hand, by other people's figures and by torch."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, AutoModel, LlamaConfig
from typer.testing import CliRunner

from rprm.cli.train import app
from rprm.errors import InputError
from rprm.training import estimate
from rprm.training.dpo import DPORun
from rprm.training.estimate import (
    GPUS,
    SETUPS,
    Hardware,
    Memory,
    Network,
    Part,
    Row,
    Workload,
    compute,
    estimate_training,
    memory,
    read_network,
    read_part,
)
from rprm.training.rows import encode_data
from rprm.training.settings import ClassifierTraining, DPOSettings, SFTSettings
from rprm.training.sft import SFTRun

GB = 1e9
QWEN_7B = {
    "model_type": "qwen2", "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
    "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152064, "tie_word_embeddings": False,
}  # fmt: skip
#: What each repository's page on the hub gives, of the checkpoint's own headers.
PUBLISHED = {
    "Qwen2.5-7B": (7_615_616_512, QWEN_7B),
    "Qwen2.5-0.5B": (
        494_032_768,
        {
            "model_type": "qwen2", "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
            "num_attention_heads": 14, "num_key_value_heads": 2, "vocab_size": 151936, "tie_word_embeddings": True,
        },
    ),
    "Qwen3-4B": (
        4_022_468_096,
        {
            "model_type": "qwen3", "hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36,
            "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936,
            "tie_word_embeddings": True,
        },
    ),
    "Llama-3-8B": (
        8_030_261_248,
        {
            "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
            "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": False,
        },
    ),
    "Mistral-7B-v0.1": (
        7_241_732_096,
        {
            "model_type": "mistral", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
            "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 32000, "tie_word_embeddings": False,
        },
    ),
}  # fmt: skip
#: 10 weights that every token is multiplied with, an output layer of 100 words and as many embeddings, all 2 wide.
TINY = Network(410, 410, 10, 200, 400, 1, 2, 2, 1, 3)


def described(folder: Path, config: dict[str, Any]) -> str:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


def workload(*lengths: int, scored: int = 1, **more: Any) -> Workload:
    rows = [Row((length,), scored) for length in lengths]
    return Workload({"train": Part(len(rows), rows, 0, max(lengths))}, **more)


@pytest.mark.parametrize("name", PUBLISHED)
def test_weights_are_counted_exactly(name: str, tmp_path: Path) -> None:
    number, config = PUBLISHED[name]
    found = read_network(described(tmp_path / "model", config), None, SFTSettings(), scores_words=True)
    assert (found.num_weights, found.num_trained, found.note) == (number, number, None)
    head = config["vocab_size"] * config["hidden_size"]
    assert found.num_head == head
    # Tied, the output layer is the embeddings.
    assert found.num_multiplied == number - (head if config["tie_word_embeddings"] else 2 * head)


def test_an_adapter_and_a_head(tmp_path: Path) -> None:
    """Rank 16 on a layer from m to n: 16 (m + n) weights; 3,584 wide, keys and values 512, gates 18,944; 28 layers."""
    folder = described(tmp_path / "model", QWEN_7B)
    wide, narrow, gates = 3584, 512, 18_944
    adapter = 28 * 16 * (2 * (wide + wide) + 2 * (wide + narrow) + 3 * (wide + gates))
    found = read_network(folder, None, SFTSettings(lora_rank=16), scores_words=True)
    assert (found.num_trained, found.num_weights) == (adapter, 7_615_616_512 + adapter)
    head = wide * wide + wide + 2 * wide + 2
    found = read_network(folder, None, ClassifierTraining(lora_rank=16), scores_words=False)
    assert found.num_trained == adapter + head
    # The output layer is gone.
    assert found.num_weights == 7_615_616_512 - 152_064 * wide + head + adapter
    with pytest.raises(InputError, match="nothing_so"):
        read_network(folder, None, SFTSettings(lora_rank=1, lora_targets="nothing_so"), scores_words=True)


def test_files_that_hold_another_number_of_weights_are_told(tiny_model: Path, tmp_path: Path) -> None:
    import shutil

    folder = shutil.copytree(tiny_model, tmp_path / "model")
    assert read_network(str(folder), None, SFTSettings(), scores_words=True).note is None
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    note = read_network(str(folder), None, SFTSettings(), scores_words=True).note
    assert note is not None
    assert "its files hold" in note


def test_operations_by_hand() -> None:
    """Rows of 3 and 5 tokens in one batch: both computed as 5. A token takes 2 x 10 operations forward, and 4 x 1 x 2
    for each of 5 others; a scored one 2 x 200. Backward twice as much, of the output layer three times."""
    settings = SFTSettings(batch_size=2, device_batch_size=2, gradient_checkpointing=False)
    found = compute(TINY, workload(3, 5), settings)
    layers, head = 2 * 5 * (20 + 8 * 5), 2 * 400
    assert (found.num_steps, found.num_rows, found.num_tokens, found.num_computed) == (1, 2, 8, 10)
    assert found.training == 3 * layers + 4 * head
    assert found.evaluation == found.sampling == 0
    again = replace(settings, gradient_checkpointing=True)
    assert compute(TINY, workload(3, 5), again).training == 4 * layers + 4 * head
    adapter = replace(TINY, num_weights=420, num_trained=10)
    assert compute(adapter, workload(3, 5), settings).training == 2 * layers + 3 * head
    assert compute(adapter, workload(3, 5), again).training == 3 * layers + 3 * head
    # Without padding each row is as long as it is.
    free = compute(TINY, workload(3, 5), replace(settings, padding_free=True))
    assert free.num_computed == 8
    assert free.training == 3 * (3 * (20 + 8 * 3) + 5 * (20 + 8 * 5)) + 4 * head


def test_operations_of_references_evaluations_and_samples() -> None:
    settings = DPOSettings(batch_size=2, device_batch_size=2, num_epochs=3.0, eval_steps=2)
    layers, head = 2 * 5 * (20 + 8 * 5), 2 * 400
    own = 3 * (4 * layers + 4 * head)
    assert compute(TINY, workload(5, 5), settings).training == own
    assert compute(TINY, workload(5, 5, num_passes=1), settings).training == own + 3 * (layers + head)
    assert compute(TINY, workload(5, 5, num_passes=1, are_once=True), settings).training == own + layers + head
    # Three steps: evaluated after the second and at the end, a row of 4 tokens, by model and reference.
    work = workload(5, 5, num_passes=1)
    work = replace(work, parts={**work.parts, "validation": Part(1, [Row((4,), 2)], 0, 4)})
    once = 4 * (20 + 8 * 4) + 2 * 400
    assert compute(TINY, work, settings).evaluation == 2 * 2 * once
    # Completions of 7 tokens are sampled: 2 x (10 + 200) operations each.
    rows = [Row((9, 9), 14, 14)]
    work = Workload({"train": Part(1, rows, 0, 9)})
    found = compute(TINY, work, replace(settings, num_epochs=1.0))
    assert found.sampling == 14 * 2 * 210
    # A tenth of a second of training at 50%; sampling reaches a twentieth of the peak.
    found = replace(found, training=1e13, evaluation=0.0, sampling=1e13)
    one = replace(GPUS["h100"], bf16=200.0)
    assert found.hours(one, 1, 0.5, bf16=True) * 3600 == pytest.approx(0.1 + 1.0)


@pytest.mark.parametrize(
    ("rows", "options", "steps"),
    [
        # 100 batches of 4 on one GPU, 32 added up: 3 steps and a part.
        (400, {}, {1: 4, 4: 4, 8: 4}),
        # 4 batches of 4 on each of 8 GPUs are one step.
        (128, {}, {1: 1, 8: 1}),
        (129, {}, {1: 2, 8: 2}),
        (400, {"num_epochs": 2.5}, {1: 10}),
        (400, {"max_steps": 7}, {1: 7}),
        # 400 rows of 10 tokens in packs of 100.
        (400, {"packing": True, "max_length": 100, "batch_size": 8}, {1: 5}),
    ],
)
def test_steps(rows: int, options: dict[str, Any], steps: dict[int, int]) -> None:
    settings = SFTSettings(**{"batch_size": 128, "device_batch_size": 4, **options})
    for num_gpus, number in steps.items():
        assert compute(TINY, workload(*[10] * rows), settings, num_gpus).num_steps == number


def test_operations_and_peaks_are_those_of_trl(tmp_path: Path) -> None:
    """TRL counts three forward passes, as for a training that computes nothing twice; norms and biases not."""
    from trl.trainer.utils import compute_flops_per_token, get_peak_flops

    for name in ("Qwen2.5-0.5B", "Qwen2.5-7B", "Qwen3-4B"):
        folder = described(tmp_path / name, PUBLISHED[name][1])
        network = read_network(folder, None, SFTSettings(), scores_words=True)
        settings = SFTSettings(batch_size=1, device_batch_size=1, gradient_checkpointing=False)
        found = compute(network, workload(1000, scored=1000), settings).training - 2 * 1000 * network.num_head
        wanted = compute_flops_per_token(AutoConfig.from_pretrained(folder), 1000) * 1000
        assert found == pytest.approx(wanted, rel=1e-3)
    for name in ("a100", "h100", "h200", "l4"):
        assert get_peak_flops(f"NVIDIA {name}", "bfloat16") == GPUS[name].bf16 * 1e12


@pytest.mark.parametrize("is_lora", [False, True])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_operations_are_those_that_torch_counts(is_lora: bool, checkpointing: bool) -> None:
    """Of the layers, forward and backward, by torch's own counter. Norms are not counted there, an adapter's own
    gradients not here; computing again, torch stops before a layer's last projection, whose output nothing reads."""
    import torch
    from peft import LoraConfig, get_peft_model
    from torch.utils.flop_counter import FlopCounterMode

    config = LlamaConfig(
        hidden_size=64, intermediate_size=160, num_attention_heads=4, num_key_value_heads=2, num_hidden_layers=12,
        vocab_size=100, attn_implementation="eager",
    )  # fmt: skip
    model = AutoModel.from_config(config).train()
    embeddings = model.get_input_embeddings().weight.numel()
    num_weights = num_trained = sum(weight.numel() for weight in model.parameters())
    if checkpointing:
        model.activation_checkpointing_enable()
        model.enable_input_require_grads()
    if is_lora:
        model = get_peft_model(model, LoraConfig(r=1, target_modules="all-linear"))
        num_trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
        num_weights += num_trained
    with FlopCounterMode(display=False) as counter:
        model(input_ids=torch.zeros(2, 40, dtype=torch.long), use_cache=False).last_hidden_state.sum().backward()
    network = Network(num_weights, num_trained, num_weights - embeddings, 0, embeddings, 12, 64, 64, 4, 160)
    settings = SFTSettings(batch_size=2, device_batch_size=2, gradient_checkpointing=checkpointing)
    told = compute(network, workload(40, 40), settings).training
    assert counter.get_total_flops() == pytest.approx(told, rel=0.07 if is_lora or checkpointing else 0.01)


def test_hours_of_a_published_training(tmp_path: Path) -> None:
    """alignment-handbook/zephyr-7b-sft-full, by its card and `train_results.json`: 8 GPUs, 1,090 steps of 128 packs of
    2,048 tokens, in 5,608 s. It names no GPU: on an A100 that would be more than its peak."""
    network = read_network(
        described(tmp_path / "model", PUBLISHED["Mistral-7B-v0.1"][1]), None, SFTSettings(), scores_words=True
    )
    settings = SFTSettings(batch_size=128, device_batch_size=16, max_steps=1090, packing=True, max_length=2048)
    found = compute(network, workload(*[2048] * 128, scored=2048), settings, 8)
    assert found.num_tokens == 1090 * 128 * 2048
    assert found.hours(GPUS["h100"], 8, Hardware().utilization, bf16=True) == pytest.approx(5608 / 3600, rel=0.15)
    assert found.hours(GPUS["a100"], 8, 1.0, bf16=True) > 5608 / 3600


def states(found: Memory) -> float:
    return found.weights + found.gradients + found.optimizer


def test_memory_of_the_zero_paper() -> None:
    """arXiv 1910.02054, figure 1: 7.5B weights on 64 GPUs take 120 GB each, 16.6 by stage 2, 1.9 by stage 3; buffers
    are not in it."""
    network = Network(7_500_000_000, 7_500_000_000, 7_000_000_000, 1, 2, 1000, 1, 1, 1, 1)
    settings, work = SFTSettings(precision="bf16"), workload(1)
    assert states(memory(network, work, settings)) / GB == pytest.approx(120)
    bucket = 2 * 5e8
    assert (states(memory(network, work, settings, "zero2", 64)) - bucket) / GB == pytest.approx(16.6, abs=0.05)
    assert (states(memory(network, work, settings, "zero3", 64)) - 2 * bucket) / GB == pytest.approx(1.9, abs=0.05)
    sharded = memory(network, work, settings, "fsdp", 64)
    assert (sharded.weights + sharded.optimizer) / GB == pytest.approx(12 * 7.5 / 64)
    # In float32 there is no other copy, whoever splits it.
    single = replace(settings, precision="fp32")
    assert memory(network, work, single).copies == 0
    assert (states(memory(network, work, single, "zero2", 64)) - 2 * bucket) / GB == pytest.approx(30 + 90 / 64)


def test_memory_of_llama_factorys_table(tmp_path: Path) -> None:
    """Its README (hiyouga/LLaMA-Factory, "Hardware Requirement", estimated) gives 18 GB for each 1B weights of full
    training in bfloat16 or float16, and 2 of an adapter."""
    folder = described(tmp_path / "model", QWEN_7B)
    settings, work = SFTSettings(device_batch_size=1), workload(1)
    full = memory(read_network(folder, None, settings, scores_words=True), work, settings)
    assert (states(full) + full.copies) / 7.615e9 == pytest.approx(18, rel=0.01)
    settings = replace(settings, lora_rank=8)
    adapter = memory(read_network(folder, None, settings, scores_words=True), work, settings)
    assert (states(adapter) + adapter.copies) / 7.615e9 == pytest.approx(2, rel=0.05)
    # Data parallel GPUs hold gradients twice; a reference of full training is a model more.
    settings = SFTSettings()
    network = read_network(folder, None, settings, scores_words=True)
    assert memory(network, work, settings, "ddp", 8).gradients == 2 * full.gradients
    held = {setup: memory(network, replace(work, holds_reference=True), settings, setup, 8) for setup in SETUPS}
    bytes_each = {setup: found.reference / 7_615_616_512 for setup, found in held.items()}
    assert bytes_each == {"ddp": 4, "fsdp": 4 / 8, "zero2": 2, "zero3": 2 / 8}


@pytest.mark.parametrize("mode", ["fp32", "bf16", "mixed"])
def test_activations_are_what_torch_keeps(mode: str) -> None:
    """Bytes that the backward pass of two more layers reads, weights and their copies aside, of rows with padding."""
    import torch

    hidden, gates, heads, length, num_rows = 64, 160, 4, 40, 2

    def kept(num_layers: int) -> int:
        config = LlamaConfig(
            hidden_size=hidden, intermediate_size=gates, num_attention_heads=heads, num_key_value_heads=2,
            num_hidden_layers=num_layers, vocab_size=100,
        )  # fmt: skip
        model = AutoModel.from_config(config, dtype=torch.bfloat16 if mode == "bf16" else torch.float32).train()
        weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
        shapes = {
            shape for weight in model.parameters() if weight.dim() == 2 for shape in (weight.shape, weight.T.shape)
        }
        found: dict[int, tuple[int, Any]] = {}

        def pack(tensor: Any) -> Any:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights and tensor.shape not in shapes:
                found[storage.data_ptr()] = storage.nbytes(), tensor
            return tensor

        mask = torch.ones(num_rows, length, dtype=torch.long)
        mask[0, -3:] = 0
        cast = torch.autocast("cpu", torch.bfloat16) if mode == "mixed" else nullcontext()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), cast:
            model(input_ids=torch.zeros(num_rows, length, dtype=torch.long), attention_mask=mask, use_cache=False)
        return sum(size for size, _ in found.values())

    network = Network(1, 1, 1, 1, 1, 1, hidden, hidden, heads, gates)
    told = estimate._layer_bytes(network, length, bf16=mode != "fp32", is_mixed=mode == "mixed")
    assert (kept(3) - kept(1)) / 2 / (num_rows * length) == told


def test_a_sample_tells_its_error_and_the_longest_row(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = [10 + number * 7919 % 91 for number in range(20_000)]
    lengths[12_345] = 500

    def part() -> Part:
        return read_part(iter(lengths), lambda length: length, lambda length: Row((length,), 1), 90)

    found, total = part(), sum(length for length in lengths if length <= 90)
    assert (found.num_rows, len(found.rows) + found.num_too_long, found.longest) == (20_000, 4096, 500)
    tokens = found.total(sum(row.sequences) for row in found.rows)
    assert 0 < found.tokens_error < 0.02
    # Too long rows are estimated too.
    assert abs(tokens / total - 1) < 2 * found.tokens_error
    monkeypatch.setattr(estimate, "MAX_ROWS_READ", 50_000)
    found = part()
    assert (found.tokens_error, found.num_kept) == (0.0, sum(length <= 90 for length in lengths))
    assert found.total(sum(row.sequences) for row in found.rows) == pytest.approx(total)


@pytest.mark.parametrize("kind", ["sft", "dpo"])
def test_tokens_are_those_that_are_trained_on(
    kind: str, tiny_model: Path, make_data: Callable[..., Path], tmp_path: Path
) -> None:
    data = make_data(kind, num_train=20, num_validation=4)
    of: Any = {"sft": SFTRun, "dpo": DPORun}[kind]
    run = of(data, None, model=str(tiny_model), output=tmp_path / "run")
    counts = encode_data(run.data, kind, tmp_path / "rows", run.tokenizer, run.end, 4096, print)
    for name, part in run.workload().parts.items():
        assert part.num_kept == counts[name]["num_rows"]
        assert sum(sum(row.sequences) for row in part.rows) == counts[name]["num_tokens"]
        assert sum(row.num_scored for row in part.rows) == counts[name]["num_reply_tokens"]
        assert part.longest == counts[name]["longest"]


def test_the_reference_of_a_dpo(tiny_model: Path, make_data: Callable[..., Path], tmp_path: Path) -> None:
    data = make_data("dpo", num_train=4)
    for options, expected in (
        ({}, (1, False, True)),
        ({"lora_rank": 4}, (1, False, False)),
        ({"precompute_reference": True}, (1, True, False)),
    ):
        run = DPORun(data, None, model=str(tiny_model), output=tmp_path, settings=DPOSettings(**options))
        found = run.workload()
        assert (found.num_passes, found.are_once, found.holds_reference) == expected
        assert found.sequences_per_row == 2


@pytest.fixture
def bare_model(tiny_model: Path, tmp_path: Path) -> Path:
    """A model's folder without its weights."""
    import shutil

    return shutil.copytree(tiny_model, tmp_path / "bare", ignore=shutil.ignore_patterns("*.safetensors"))


@pytest.mark.parametrize("kind", ["sft", "dpo"])
def test_nothing_is_loaded_or_written(
    kind: str, bare_model: Path, make_data: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = make_data(kind, num_train=20, num_validation=4)
    # A machine of several GPUs may be asked too.
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    before = sorted(tmp_path.rglob("*"))
    command = [kind, str(data), "-m", str(bare_model), "--max-length", "512", "--estimate", "--gpus", "8"]
    done = CliRunner().invoke(app, [*command, "--price", "2"], catch_exceptions=False, env={"COLUMNS": "80"})
    assert done.exit_code == 0, done.output
    assert "20 train, 4 validation" in done.stdout
    assert done.stdout.count("recipes/accelerate/ddp.yaml") == len(GPUS)
    assert all(
        len(line) <= 80 for line in done.stdout.splitlines() if "bare" not in line and "accelerate launch" not in line
    )
    told = CliRunner().invoke(app, [*command, "--gpu", "h100", "--json"], catch_exceptions=False).stdout
    found = json.loads(told)
    assert (found["kind"], found["num_rows"]) == (kind, {"train": 20, "validation": 4})
    assert [(choice["gpu"], choice["setup"]) for choice in found["choices"]] == [("h100", "ddp")]
    assert set(found["memory"]) == {"ddp", "fsdp", "zero2", "zero3"}
    assert sorted(tmp_path.rglob("*")) == before


def test_a_classifier(bare_model: Path, tmp_path: Path) -> None:
    steps = tmp_path / "steps.jsonl"
    rows = [
        {
            "id": f"{number}-{wrong}",
            "problem": f"What is {number} + 1?",
            "previous_steps": [],
            "step": f"It is {number + 1 + wrong}.",
            "label": not wrong,
            "source": "test",
        }
        for number in range(40)
        for wrong in (0, 1)
    ]
    steps.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = ClassifierTraining(max_length=512, batch_size=8, device_batch_size=4, validation_share=0.25)
    found = estimate_training(str(steps), Hardware(), settings, model=str(bare_model))
    assert sum(found.num_rows.values()) == 80
    assert found.memory["single"].output_layer == 0
    assert found.compute.num_steps == -(-found.num_rows["train"] // 8)
    with pytest.raises(InputError, match="one GPU"):
        estimate_training(str(steps), Hardware(num_gpus=2), settings, model=str(bare_model))


def test_what_does_not_fit_is_told(bare_model: Path, make_data: Callable[..., Path]) -> None:
    """Full training of 7B weights: 16 bytes each, on one GPU too much for any of the table; split over 8 it fits."""
    described(
        bare_model,
        {**json.loads((bare_model / "config.json").read_text()), **QWEN_7B, "head_dim": 128, "model_type": "llama"},
    )
    data = make_data(num_train=20)
    settings = SFTSettings(max_length=512)
    found = estimate_training(str(data), Hardware(gpu="l4"), settings, model=str(bare_model))
    assert [(choice.setup, choice.gib > 120) for choice in found.choices] == [(None, True)]
    found = estimate_training(str(data), Hardware(num_gpus=8), settings, model=str(bare_model))
    setups = {choice.gpu: choice.setup for choice in found.choices}
    assert setups == {"a100": "fsdp", "h100": "fsdp", "h200": "fsdp", "rtx4090": "zero3", "l4": None}


def test_what_training_would_refuse_is_told(bare_model: Path, make_data: Callable[..., Path]) -> None:
    data, told = make_data(num_train=20), {"model": str(bare_model)}
    found = estimate_training(str(data), Hardware(), SFTSettings(max_length=4096), **told)
    assert any("exceeds the model's context, 512" in note for note in found.notes)
    lengths = sorted(row.sequences[0] for row in SFTRun(data, None, output="", **told).workload().parts["train"].rows)
    found = estimate_training(str(data), Hardware(), SFTSettings(max_length=lengths[9]), **told)
    assert any(re.search("train: .*% of the rows are longer.*training refuses", note) for note in found.notes)
    with pytest.raises(InputError, match="--max-length"):
        estimate_training(str(data), Hardware(), SFTSettings(max_length=3), **told)
    with pytest.raises(InputError, match="no multiple"):
        estimate_training(str(data), Hardware(num_gpus=3), SFTSettings(max_length=512), **told)


def test_hardware_that_makes_no_sense(make_data: Callable[..., Path], tiny_model: Path) -> None:
    command = ["sft", str(make_data(num_train=4)), "-m", str(tiny_model), "--estimate"]
    for option in (["--gpus", "0"], ["--utilization", "0"], ["--price", "-1"]):
        assert CliRunner().invoke(app, [*command, *option]).exit_code == 2
    with pytest.raises(InputError, match="one of a100, h100"):
        CliRunner().invoke(app, [*command, "--gpu", "abacus"], catch_exceptions=False)
    # Without it, a run folder is needed, and nothing is asked of hardware.
    for options, named in ((["--gpus", "8"], "--output"), (["-o", "run", "--gpus", "8"], "--estimate")):
        done = CliRunner().invoke(app, [*command[:-1], *options])
        assert done.exit_code == 2
        assert named in done.stderr
