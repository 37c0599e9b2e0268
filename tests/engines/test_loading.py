"""Weights are the checkpoint's, no code of a repository is run, and a fingerprint is of the model."""

from __future__ import annotations

import asyncio
import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import released_tokenizers
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from rprm.engines import EngineInfo
from rprm.engines.loading import _work_offline_without_hub, load_model, load_weights
from rprm.engines.transformers import TransformersEngine
from rprm.engines.vllm import VLLMEngine
from rprm.errors import EngineError
from rprm.folders import fingerprint


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model, to be damaged."""
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


def start(target: Path | str, **options: Any) -> EngineInfo:
    async def work() -> EngineInfo:
        engine = TransformersEngine(str(target), **options)
        try:
            return await engine.start()
        finally:
            await engine.aclose()

    return asyncio.run(work())


def rewrite(folder: Path, change: Any) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


@pytest.mark.parametrize("proxies", [{}, {"https": "http://proxy:3128"}])
def test_a_hub_that_does_not_answer_is_left_alone(proxies: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind a proxy it is not asked first: one that is slow is no hub that is down."""

    def no_session() -> None:
        raise OSError("down")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "https://hub")
    monkeypatch.setattr("huggingface_hub.get_session", no_session)
    monkeypatch.setattr("rprm.engines.loading.getproxies", lambda: proxies)
    _work_offline_without_hub.__wrapped__()
    assert constants.HF_HUB_OFFLINE is not bool(proxies)


UP = "model.layers.1.mlp.up_proj.weight"


def test_a_checkpoint_with_missing_tensors_is_refused(folder: Path) -> None:
    rewrite(folder, lambda tensors: tensors.pop(UP))
    with pytest.raises(EngineError, match=f"the configuration of its LlamaForCausalLM: {UP} is missing; "):
        start(folder)

    def lose_a_layer(tensors: dict[str, torch.Tensor]) -> None:
        for name in [name for name in tensors if name.startswith("model.layers.0.")]:
            del tensors[name]

    rewrite(folder, lose_a_layer)
    # Nine tensors of layer 0 and one of layer 1, three of them named.
    with pytest.raises(EngineError, match=r"model.layers.0.input_layernorm.weight is missing, .* and 7 more"):
        start(folder)


def test_a_checkpoint_with_misshapen_tensors_is_refused(folder: Path) -> None:
    rewrite(folder, lambda tensors: tensors.update({UP: tensors[UP][:100].clone()}))
    with pytest.raises(EngineError, match=rf"{UP} is of shape \[100, 64\], not \[128, 64\]"):
        start(folder)


def test_a_checkpoint_with_further_layers_is_refused(folder: Path) -> None:
    """A configuration that says fewer layers than there are: the model would be another one."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 1}))
    # The nine tensors of layer 1, three of them named.
    with pytest.raises(EngineError, match=r"model.layers.1.input_layernorm.weight has no place in it, .* and 6 more"):
        start(folder)
    (folder / "config.json").write_text(json.dumps(config))
    bias = "model.layers.0.self_attn.q_proj.bias"
    rewrite(folder, lambda tensors: tensors.update({bias: torch.ones(64)}))
    with pytest.raises(EngineError, match=f"{bias} has no place in it"):
        start(folder)


def test_a_checkpoint_of_whole_numbers_is_refused(folder: Path) -> None:
    """Without the scales that its configuration would tell of, they are not the weights."""
    rewrite(folder, lambda tensors: tensors.update({UP: torch.ones(128, 64, dtype=torch.int8)}))
    with pytest.raises(EngineError, match=f"{UP} has whole numbers"):
        start(folder)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(EngineError, match=f"{UP} has whole numbers"):
        start(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_torn_file_of_weights_is_refused(folder: Path, name: str) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    content = (folder / name).read_bytes()
    for length in (0, 4, len(content) // 2):
        (folder / "model.safetensors").unlink(missing_ok=True)
        (folder / name).write_bytes(content[:length])
        with pytest.raises(EngineError, match="cannot load the model: "):
            start(folder)


def test_tied_weights_are_not_missing(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    rewrite(folder, lambda tensors: tensors.pop("lm_head.weight"))
    assert start(folder).context_length == 512


def test_what_a_checkpoint_has_beside_the_model_does_not_matter(folder: Path) -> None:
    """A value head, and the rotary frequencies that older checkpoints hold."""
    further = {"v_head.weight": torch.zeros(1, 64), "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}
    rewrite(folder, lambda tensors: tensors.update(further))
    assert start(folder).context_length == 512
    torch.save({**load_file(folder / "model.safetensors"), "step": 3}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    assert start(folder).context_length == 512


def test_buffers_of_old_are_no_weights(tmp_path: Path) -> None:
    """As GPT-J and Falcon were published. A bias, of one dimension, is one all the same."""
    from transformers import AutoModelForCausalLM, FalconConfig, GPTJConfig

    sizes = {"vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    gptj = GPTJConfig(vocab_size=32, n_embd=16, n_layer=1, n_head=2, n_positions=8, rotary_dim=4)
    mask = {"attn.bias": torch.ones(1, 1, 8, 8, dtype=torch.bool), "attn.masked_bias": torch.tensor(-1e9)}
    frequencies = {"self_attention.rotary.inv_freq": torch.ones(4)}
    for config, buffers in ((gptj, mask), (FalconConfig(**sizes, alibi=False), frequencies)):
        folder = tmp_path / config.model_type
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
        further = {f"transformer.h.0.{name}": tensor for name, tensor in buffers.items()}
        rewrite(folder, lambda tensors, further=further: tensors.update(further))
        load_weights(AutoModelForCausalLM, str(folder))
    rewrite(tmp_path / "gptj", lambda tensors: tensors.update({"transformer.h.0.attn.bias": torch.ones(8)}))
    with pytest.raises(EngineError, match=r"attn.bias has no place in it"):
        load_weights(AutoModelForCausalLM, str(tmp_path / "gptj"))


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("model.safetensors", POINTER, "is a Git LFS pointer, .*git lfs pull"),
        ("pytorch_model.bin", POINTER, "is a Git LFS pointer, .*git lfs pull"),
        ("tokenizer.json", POINTER, "is a Git LFS pointer, .*git lfs pull"),
        ("tokenizer.json", b"{", "malformed"),
        ("pytorch_model.bin", {"state_dict": {UP: torch.ones(2)}}, "lm_head.weight is missing"),
        ("pytorch_model.bin", [torch.ones(2)], "pytorch_model.bin is damaged"),
        ("pytorch_model.bin", {UP: Path("x")}, "pytorch_model.bin is damaged.*holds more"),
        ("model.safetensors.index.json", b'{"weight_map": []}', "has no weight_map"),
        ("model.safetensors.index.json", b"[]", "is no JSON object"),
        ("config.json", b"[]", "malformed"),
    ],
)
def test_a_malformed_file_is_told_in_one_line(folder: Path, name: str, content: Any, message: str) -> None:
    if name.startswith(("pytorch_model", "model.safetensors.")):
        (folder / "model.safetensors").unlink()
    if isinstance(content, bytes):
        (folder / name).write_bytes(content)
    else:
        torch.save(content, folder / name)
    with pytest.raises(EngineError, match=message) as told:
        start(folder)
    assert "\n" not in str(told.value)
    assert "weights_only" not in str(told.value)


def test_a_sentencepiece_model_alone_is_read_as_sentencepiece_reads_it(tmp_path: Path) -> None:
    """transformers' own choice for a Mistral leaves out the space that begins a text."""
    from sentencepiece import SentencePieceProcessor
    from transformers import MistralConfig, MistralForCausalLM

    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    MistralForCausalLM(MistralConfig(**sizes, num_key_value_heads=1, vocab_size=32000)).save_pretrained(tmp_path)
    shutil.copy(released_tokenizers.mistral_model() / "tokenizer.model", tmp_path)
    described = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(described))

    async def encoded(text: str) -> list[int]:
        engine = TransformersEngine(str(tmp_path))
        await engine.start()
        await engine.aclose()
        return list(engine.tokenizer.encode(text, add_special_tokens=False))

    pieces = SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    assert asyncio.run(encoded("Yes or no?")) == pieces.encode("Yes or no?")


def write_gguf(path: Path, folder: Path, left_out: str | None) -> None:
    """The tiny model as a GGUF file, without one of its tensors."""
    import gguf

    config = json.loads((folder / "config.json").read_text())
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    tokenizer = json.loads((folder / "tokenizer.json").read_text())["model"]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(sorted(tokenizer["vocab"], key=tokenizer["vocab"].get))
    writer.add_token_merges([" ".join(pair) for pair in tokenizer["merges"]])
    writer.add_eos_token_id(0)
    names = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    layer = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v"}
    layer |= {"self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up"}
    layer |= {"mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
    for number in range(config["num_hidden_layers"]):
        names |= {f"model.layers.{number}.{name}": f"blk.{number}.{short}" for name, short in layer.items()}
    for name, tensor in load_file(folder / "model.safetensors").items():
        if name != left_out:
            writer.add_tensor(names[name.removesuffix(".weight")] + ".weight", tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_gguf_file_with_missing_tensors_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    for left_out in (None, UP):
        write_gguf(tmp_path / "model.gguf", tiny_model, left_out)
        if left_out is None:
            assert start(tmp_path / "model.gguf").context_length == 512
        else:
            with pytest.raises(EngineError, match=f"the configuration of its LlamaForCausalLM: {UP} is missing; "):
                start(tmp_path / "model.gguf")


@pytest.mark.parametrize("names", [("AutoConfig", "AutoModelForCausalLM"), ("AutoTokenizer",)])
def test_no_code_of_a_repository_is_run(folder: Path, names: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is it offered: where nothing is said, transformers asks on the terminal."""
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    (folder / "code.py").write_text("raise SystemExit('run')\n")
    for name, key in (("config.json", "architecture"), ("tokenizer_config.json", "tokenizer_class")):
        content = json.loads((folder / name).read_text())
        auto_map = {auto: f"code.{auto}" if auto != "AutoTokenizer" else ["code.A", None] for auto in names}
        changes = {"auto_map": auto_map, **({"model_type": "unheard"} if name == "config.json" else {key: "Unheard"})}
        if (name == "tokenizer_config.json") == ("AutoTokenizer" in names):
            (folder / name).write_text(json.dumps(content | changes))
    with pytest.raises(EngineError, match="needs code of its repository, which is never run"):
        start(folder)


def test_training_runs_no_code_of_a_repository_either(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rprm.training.handover import find_model

    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    (folder / "code.py").write_text("raise SystemExit('run')\n")
    config = json.loads((folder / "config.json").read_text())
    changes = {"model_type": "unheard", "auto_map": {"AutoConfig": "code.Config"}}
    (folder / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(EngineError, match="cannot load the model"):
        find_model(str(folder))


@pytest.fixture
def adapter(tiny_model: Path, tmp_path: Path) -> Path:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    config = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    get_peft_model(base, config).save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def test_the_manifest_names_an_adapter_and_its_base(tiny_model: Path, adapter: Path) -> None:
    for info in (start(tiny_model, adapter=str(adapter)), start(adapter)):
        assert info.details["adapter"] == str(adapter)
        assert info.details["adapter_revision"] == fingerprint(adapter)
        assert info.details["base"] == str(tiny_model)
        assert info.details["base_revision"] == fingerprint(tiny_model)


def test_a_base_that_changes_changes_the_manifest(folder: Path, adapter: Path) -> None:
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": str(folder)}))
    before = start(adapter)
    rewrite(folder, lambda tensors: tensors[UP].mul_(2))
    after = start(adapter)
    assert before.revision == after.revision
    assert before.details["base_revision"] != after.details["base_revision"]


def test_an_adapter_that_is_not_whole_is_refused(tiny_model: Path, adapter: Path) -> None:
    path = adapter / "adapter_model.safetensors"
    tensors = load_file(path)
    name = next(iter(tensors))
    save_file({key: tensor for key, tensor in tensors.items() if key != name}, path)
    with pytest.raises(EngineError, match=r"adapter: .*lora_A.default.weight is missing"):
        start(adapter)
    further = {name.replace("layers.0", "layers.2"): tensors[name].clone()}
    save_file(tensors | further, path)
    with pytest.raises(EngineError, match=r"layers.2.*lora_A.weight has no place in it"):
        start(adapter)
    save_file(tensors | {name: tensors[name].to(torch.int8)}, path)
    with pytest.raises(EngineError, match=r"lora_A.weight has whole numbers"):
        start(adapter)
    save_file({key: tensor[:, :3].clone() for key, tensor in tensors.items()}, path)
    with pytest.raises(EngineError, match=r"size mismatch for .*lora_A"):
        start(tiny_model, adapter=str(adapter))
    (adapter / "adapter_config.json").write_text("{}")
    with pytest.raises(EngineError, match="names no base model"):
        start(adapter)


def test_an_adapter_without_its_weights_is_told_without_the_network(
    tiny_model: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("socket.create_connection", lambda *_, **__: pytest.fail("asked the network"))
    (adapter / "adapter_model.safetensors").unlink()
    for target, options in ((adapter, {}), (tiny_model, {"adapter": str(adapter)})):
        with pytest.raises(EngineError, match=r"neither adapter_model.safetensors nor adapter_model.bin"):
            start(target, **options)


IDS = torch.tensor([[5, 6, 7, 8]])
EMBEDDINGS, HEAD = "embed_tokens", "lm_head"


@pytest.mark.parametrize(
    ("is_tied", "more_rows", "options"),
    [
        (True, 0, {"target_modules": ["q_proj", EMBEDDINGS]}),
        (True, 0, {"target_modules": ["q_proj", HEAD]}),
        (True, 0, {"target_modules": [EMBEDDINGS, HEAD]}),
        (True, 0, {"target_modules": ["q_proj"], "modules_to_save": [HEAD]}),
        (True, 4, {"target_modules": ["q_proj", EMBEDDINGS]}),
        (True, 4, {"target_modules": ["q_proj"], "modules_to_save": [EMBEDDINGS]}),
        (False, 4, {"target_modules": ["q_proj"], "modules_to_save": [EMBEDDINGS, HEAD]}),
        (False, 4, {"target_modules": [EMBEDDINGS, HEAD]}),
        (False, -4, {"target_modules": [EMBEDDINGS]}),
    ],
)
def test_an_adapter_of_embeddings_gives_the_logits_that_it_was_trained_with(
    folder: Path, tmp_path: Path, is_tied: bool, more_rows: int, options: dict[str, Any]
) -> None:
    """A tied matrix takes a change on one side only, and tokens that were added or left out count."""
    trained, path = train_adapter(folder, tmp_path / "adapter", is_tied, more_rows, options)
    merged = load_model(str(path), spec="adapter", dtype=torch.float32)[0]
    with torch.no_grad():
        torch.testing.assert_close(merged(IDS).logits, trained, rtol=1e-4, atol=1e-4)
    # As a trained model is kept.
    merged.save_pretrained(tmp_path / "merged")
    with torch.no_grad():
        torch.testing.assert_close(type(merged).from_pretrained(tmp_path / "merged")(IDS).logits, merged(IDS).logits)


def test_rows_that_an_adapter_does_not_hold_are_not_made_up(folder: Path, tmp_path: Path) -> None:
    """The output layer has its own rows, and those of the new tokens were not saved."""
    _, path = train_adapter(folder, tmp_path / "adapter", False, 4, {"target_modules": [EMBEDDINGS]})
    with pytest.raises(EngineError, match=r"size mismatch for .*embed_tokens"):
        load_model(str(path), spec="adapter", dtype=torch.float32)


def train_adapter(
    base: Path, folder: Path, is_tied: bool, more_rows: int, options: dict[str, Any]
) -> tuple[torch.Tensor, Path]:
    """Saves an adapter with random weights; its logits before it is merged, and its folder."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    if is_tied:
        config = json.loads((base / "config.json").read_text())
        (base / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
        rewrite(base, lambda tensors: tensors.pop("lm_head.weight"))
    model = AutoModelForCausalLM.from_pretrained(base)
    if more_rows:
        model.resize_token_embeddings(model.config.vocab_size + more_rows, mean_resizing=False)
    with warnings.catch_warnings(action="ignore", category=UserWarning):
        adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=4, **options)).eval()
        torch.manual_seed(0)
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter, std=0.3)
        adapted.save_pretrained(folder)
    shutil.copy(base / "tokenizer.json", folder)
    shutil.copy(base / "tokenizer_config.json", folder)
    with torch.no_grad():
        return adapted(IDS).logits, folder


def test_vllm_serves_the_base_that_an_adapters_folder_names(tiny_model: Path, adapter: Path) -> None:
    engine = VLLMEngine(str(adapter))
    assert (engine.target, engine.base, engine.adapter) == (str(adapter), str(tiny_model), str(adapter))
    assert engine.arguments["model"] == str(tiny_model)
    assert engine.identity()[0] == f"{fingerprint(tiny_model)}+{fingerprint(adapter)}"
    assert engine.identity() == VLLMEngine(str(tiny_model), adapter=str(adapter)).identity()
    assert VLLMEngine(str(tiny_model)).identity() == (fingerprint(tiny_model), {"adapter": None})


def test_vllm_takes_the_context_by_either_name() -> None:
    for options in ({"context_length": 8192}, {"max_model_len": 8192}, {"context_length": 8192, "max_model_len": 8192}):
        engine = VLLMEngine("model", **options)
        assert engine.arguments["max_model_len"] == 8192
        assert engine.arguments["trust_remote_code"] is False
    assert "max_model_len" not in VLLMEngine("model").arguments
    with pytest.raises(EngineError, match="one of them"):
        VLLMEngine("model", context_length=8192, max_model_len=4096)


STRAYS = (
    *("README.md", ".DS_Store", ".gitattributes", ".git/config.json", ".cache/huggingface/x.json", "train.log"),
    *("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin", "trainer_state.json", "optimizer.bin"),
    *("checkpoint-5/model.safetensors", "runs/events.out", "modeling_custom.py", "config.json.orig", "._config.json"),
)
PARTS = (
    *("model-00001-of-00002.safetensors", "pytorch_model.bin", "model.safetensors.index.json", "adapter_model.bin"),
    *("tokenizer.model", "merges.txt", "chat_template.jinja", "additional_chat_templates/tool.jinja", "vocab.json"),
    *("rprm_prompt.toml", "rprm_classifier.json", "adapter_config.json", "model.gguf", "special_tokens_map.json"),
)


def test_a_stray_file_changes_no_fingerprint(folder: Path) -> None:
    before = fingerprint(folder)
    for name in STRAYS:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")
        assert fingerprint(folder) == before, name


def test_every_part_of_a_model_counts(folder: Path) -> None:
    found = [fingerprint(folder)]
    for name in PARTS:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("{}")
        found.append(fingerprint(folder))
        (folder / name).write_text("{ }")
        found.append(fingerprint(folder))
    for name in (
        "model.safetensors",
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ):
        with (folder / name).open("ab") as stream:
            stream.write(b" ")
        found.append(fingerprint(folder))
    assert len(set(found)) == len(found)


def test_a_file_by_itself_counts_whatever_its_name(tmp_path: Path) -> None:
    path = tmp_path / "CARD.json"
    path.write_text("1")
    before = fingerprint(path)
    path.write_text("2")
    assert fingerprint(path) != before
