"""Small random models of each layout, saved as their authors save theirs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from references import FOLDERS
from safetensors.torch import load_file, save_file
from small_tokenizers import CHATML, LLAMA3, byte_level_tokenizer, sentencepiece_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

HIDDEN = 32


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def sizes(tokenizer: Any) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": HIDDEN,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 1024,
        "tie_word_embeddings": False,
        # Larger than usual, so that the random model has opinions: flat scores would hide errors.
        "initializer_range": 0.3,
    }


def save(folder: Path, model: Any, tokenizer: Any, head: dict[str, torch.Tensor]) -> Path:
    """Model, head and tokenizer as one checkpoint."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    weights = folder / "model.safetensors"
    save_file({**load_file(weights), **head}, weights, metadata={"format": "pt"})
    return folder


def two_way_tensors() -> dict[str, torch.Tensor]:
    return {
        "score.0.weight": torch.randn(HIDDEN, HIDDEN) * 0.3,
        "score.0.bias": torch.randn(HIDDEN) * 0.3,
        "score.2.weight": torch.randn(2, HIDDEN) * 0.3,
        "score.2.bias": torch.randn(2) * 0.3,
    }


@pytest.fixture(scope="session")
def qwen_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = byte_level_tokenizer(
        ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<extra_0>"], pad_token="<|endoftext|>"
    )
    tokenizer.chat_template = CHATML
    torch.manual_seed(1)
    model = Qwen2ForCausalLM(Qwen2Config(**sizes(tokenizer)))
    return save(tmp_path_factory.mktemp("qwen") / "prm", model, tokenizer, two_way_tensors())


@pytest.fixture(scope="session")
def skywork_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = byte_level_tokenizer(["<|endoftext|>", "<|im_end|>"], bos_token="<|endoftext|>")
    torch.manual_seed(2)
    model = Qwen2ForCausalLM(Qwen2Config(**sizes(tokenizer)))
    head = {"v_head.summary.weight": torch.randn(1, HIDDEN) * 0.3, "v_head.summary.bias": torch.randn(1) * 0.3}
    return save(tmp_path_factory.mktemp("skywork") / "prm", model, tokenizer, head)


@pytest.fixture(scope="session")
def shepherd_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = sentencepiece_tokenizer()
    torch.manual_seed(3)
    model = LlamaForCausalLM(LlamaConfig(**sizes(tokenizer)))
    return save(tmp_path_factory.mktemp("shepherd") / "math-shepherd-tiny", model, tokenizer, {})


@pytest.fixture(scope="session")
def rlhflow_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = byte_level_tokenizer(["<|begin|>", "<|start|>", "<|end|>", "<|eot|>"], bos_token="<|begin|>")
    tokenizer.chat_template = LLAMA3
    torch.manual_seed(4)
    model = LlamaForCausalLM(LlamaConfig(**sizes(tokenizer)))
    return save(tmp_path_factory.mktemp("rlhflow") / "RLHFlow-tiny", model, tokenizer, {})


@pytest.fixture(scope="session")
def trl_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = byte_level_tokenizer(["<|endoftext|>", "<|im_end|>"], eos_token="<|endoftext|>")
    torch.manual_seed(5)
    model = Qwen2ForCausalLM(Qwen2Config(**sizes(tokenizer), architectures=["Qwen2ForTokenClassification"]))
    head = {"score.weight": torch.randn(2, HIDDEN) * 0.3, "score.bias": torch.randn(2) * 0.3}
    folder = save(tmp_path_factory.mktemp("trl") / "prm", model, tokenizer, head)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"architectures": ["Qwen2ForTokenClassification"]}))
    return folder


@pytest.fixture(scope="session")
def universal_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = byte_level_tokenizer(["<|endoftext|>", "<|im_start|>", "<|im_end|>"], eos_token="<|im_end|>")
    tokenizer.chat_template = CHATML
    torch.manual_seed(6)
    model = Qwen2ForCausalLM(Qwen2Config(**sizes(tokenizer)))
    head = two_way_tensors() | {"score.2.weight": torch.randn(1, HIDDEN) * 0.3, "score.2.bias": torch.randn(1) * 0.3}
    return save(tmp_path_factory.mktemp("universal") / "Universal-PRM-tiny", model, tokenizer, head)


@pytest.fixture(scope="session")
def llemma_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = sentencepiece_tokenizer()
    torch.manual_seed(7)
    model = LlamaForCausalLM(LlamaConfig(**sizes(tokenizer)))
    return save(tmp_path_factory.mktemp("llemma") / "llemma-prm-tiny", model, tokenizer, {})


@pytest.fixture(scope="session")
def reasoneval_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = sentencepiece_tokenizer(pad_token="<s>")
    torch.manual_seed(8)
    model = LlamaForCausalLM(LlamaConfig(**sizes(tokenizer)))
    head = {"score_head.weight": torch.randn(3, HIDDEN) * 0.3}
    return save(tmp_path_factory.mktemp("reasoneval") / "prm", model, tokenizer, head)


@pytest.fixture(scope="session")
def psa_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = byte_level_tokenizer(["<|endoftext|>", "<|im_end|>"], eos_token="<|endoftext|>")
    torch.manual_seed(9)
    model = Qwen2ForCausalLM(Qwen2Config(**sizes(tokenizer)))
    return save(tmp_path_factory.mktemp("psa") / "math-psa-tiny", model, tokenizer, {})


@pytest.fixture(params=FOLDERS)
def any_folder(request: pytest.FixtureRequest) -> Path:
    folder: Path = request.getfixturevalue(FOLDERS[request.param])
    return folder


@pytest.fixture(params=["prepend", "metaspace"])
def shepherd_tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerFast:
    """Both ways in which such tokenizers put a space before a text."""
    return sentencepiece_tokenizer(request.param)
