"""Stand-ins for the released models: published configuration, tensor names and files, at a width of 32 and two layers.

Each is made in memory and written out by hand. What the classifier gives is held against the published procedure on the
model in memory. Once with a small tokenizer, and once with the real one (`released_tokenizers`).
"""

from __future__ import annotations

import asyncio
import functools
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import released_tokenizers
import torch
from references import REFERENCES, Network, by_trl
from safetensors.torch import load_file, save_file
from small_tokenizers import CHATML, LLAMA3, byte_level_tokenizer, sentencepiece_tokenizer
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, LlamaTokenizer

from rprm.errors import EngineError
from rprm.records import Solution
from rprm.rewarders.classifier import Classifier

HIDDEN = 32
SOLUTIONS = [
    Solution(
        id="a",
        problem="Janet's ducks lay 16 eggs per day. She eats 3 and sells the rest for $2 each. How much does she make?",
        steps=(
            "She sells 16 - 3 = 13 eggs.",
            "That makes 13 * $2 = $26 a day,\nevery day.",
            "The answer is \\boxed{26}.",
        ),
    ),
    Solution(id="b", problem="Sei $x^2 \\ge 0$. Wahr?", steps=("Für alle reellen $x$ gilt $x^2 ≥ 0$.", "是的。")),
]

#: What differs between the stand-ins and the published configurations.
SMALL = {
    "hidden_size": HIDDEN,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.3,
    "torch_dtype": "float32",
}

QWEN = {
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "hidden_act": "silu",
    "max_position_embeddings": 4096,
    "max_window_layers": 28,
    "model_type": "qwen2",
    "rms_norm_eps": 1e-06,
    "rope_theta": 10000.0,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": 152064,
}
QWEN_PRM = QWEN | {
    "architectures": ["Qwen2ForProcessRewardModel"],
    "auto_map": {
        "AutoConfig": "configuration_qwen2_rm.Qwen2RMConfig",
        "AutoModel": "modeling_qwen2_rm.Qwen2ForProcessRewardModel",
    },
}
MISTRAL = {
    "architectures": ["MistralForCausalLM"],
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "max_position_embeddings": 32768,
    "model_type": "mistral",
    "rms_norm_eps": 1e-05,
    "rope_theta": 10000.0,
    "sliding_window": 4096,
    "tie_word_embeddings": False,
    "use_cache": False,
    "vocab_size": 32000,
}
LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "bos_token_id": 128000,
    "eos_token_id": [128001, 128008, 128009],
    "hidden_act": "silu",
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "model_type": "llama",
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 8.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
    "vocab_size": 128256,
}


def linear(name: str, width: int) -> dict[str, torch.Tensor]:
    return {f"{name}.weight": torch.randn(width, HIDDEN) * 0.3, f"{name}.bias": torch.randn(width) * 0.3}


@dataclass(frozen=True)
class Release:
    """A released model.

    Attributes:
        config: the published configuration, sizes aside.
        layout: what it must be recognised as.
        tokenizer: family.
        head: makes the tensors of the head.
        files: pattern of the names of its two shards.
        code: files of its repository that transformers would run if it were let.
    """

    config: dict[str, Any]
    layout: str
    tokenizer: str
    head: Callable[[], dict[str, torch.Tensor]] = dict
    files: str = "model-{:05}-of-00002.safetensors"
    code: tuple[str, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)


def two_way() -> dict[str, torch.Tensor]:
    return linear("score.0", HIDDEN) | linear("score.2", 2)


QWEN_CODE = ("configuration_qwen2_rm.py", "modeling_qwen2_rm.py")
RELEASES = {
    "Qwen/Qwen2.5-Math-PRM-7B": Release(QWEN_PRM, "qwen", "qwen-prm", two_way, code=QWEN_CODE),
    "Qwen/Qwen2.5-Math-PRM-72B": Release(
        QWEN_PRM | {"max_window_layers": 80}, "qwen", "qwen-prm", two_way, code=QWEN_CODE
    ),
    "Qwen/Qwen2.5-Math-7B-PRM800K": Release(QWEN_PRM, "qwen", "qwen-prm", two_way, code=QWEN_CODE),
    "peiyi9979/math-shepherd-mistral-7b-prm": Release(
        MISTRAL, "math-shepherd", "mistral", files="pytorch_model-{:05}-of-00002.bin"
    ),
    "Skywork/Skywork-o1-Open-PRM-Qwen-2.5-1.5B": Release(
        QWEN | {"architectures": ["Qwen2ForPrmModel"], "tie_word_embeddings": True, "vocab_size": 151936},
        "skywork", "qwen-bos", lambda: linear("v_head.summary", 1),
    ),
    "Skywork/Skywork-o1-Open-PRM-Qwen-2.5-7B": Release(
        QWEN | {"architectures": ["Qwen2ForPrmModel"]}, "skywork", "qwen-bos", lambda: linear("v_head.summary", 1)
    ),
    "RLHFlow/Llama3.1-8B-PRM-Mistral-Data": Release(LLAMA, "rlhflow", "llama"),
    "RLHFlow/Llama3.1-8B-PRM-Deepseek-Data": Release(LLAMA, "rlhflow", "llama"),
    "infly/Universal-PRM-7B": Release(
        QWEN | {"auto_map": {"AutoModel": "modeling_qwen2_rm.Qwen2ForRewardModel"}},
        "universal", "qwen", lambda: linear("score.0", HIDDEN) | linear("score.2", 1), code=QWEN_CODE,
    ),
    "jinachris/PURE-PRM-7B": Release(
        QWEN | {"architectures": ["Qwen2ForTokenClassification"]}, "trl", "qwen", lambda: linear("score", 2)
    ),
    "GAIR/ReasonEval-7B": Release(
        MISTRAL | {"architectures": ["ReasonEval_7B"], "score_dimension": 3, "use_bias": True},
        "reasoneval", "mistral-pad", lambda: linear("score_head", 3),
    ),
    "GAIR/ReasonEval-34B": Release(
        MISTRAL | {"architectures": ["ReasonEval_34B"], "model_type": "llama", "score_dim": 3, "bias": False},
        "reasoneval", "mistral-unk", lambda: {"score_head.weight": torch.randn(3, HIDDEN) * 0.3},
    ),
    "ScalableMath/llemma-7b-prm-prm800k-level-1to3-hf": Release(
        MISTRAL | {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}, "llemma", "mistral"
    ),
}  # fmt: skip


def small_tokenizer(family: str) -> Any:
    if family.startswith("mistral"):
        pad = {"mistral-pad": "<s>", "mistral-unk": "<unk>"}.get(family)
        return sentencepiece_tokenizer(**({} if pad is None else {"pad_token": pad}))
    if family == "llama":
        tokenizer = byte_level_tokenizer(["<|begin|>", "<|start|>", "<|end|>", "<|eot|>"], bos_token="<|begin|>")
        tokenizer.chat_template = LLAMA3
        return tokenizer
    named = {"bos_token": "<|endoftext|>"} if family == "qwen-bos" else {}
    tokenizer = byte_level_tokenizer(
        ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<extra_0>"], eos_token="<|im_end|>", **named
    )
    tokenizer.chat_template = CHATML
    return tokenizer


@functools.cache
def real_tokenizer(family: str) -> Any:
    if family.startswith("mistral"):
        # As a folder with the sentencepiece model alone, which is how Math-Shepherd is published.
        pad = {"mistral-pad": "<s>", "mistral-unk": "<unk>"}.get(family)
        folder = released_tokenizers.mistral_model()
        return LlamaTokenizer.from_pretrained(folder, add_bos_token=True, **({} if pad is None else {"pad_token": pad}))
    if family == "llama":
        tokenizer = released_tokenizers.llama3(eos_token="<|eot_id|>")
        tokenizer.chat_template = LLAMA31
        return tokenizer
    special = {151651: "<extra_0>" if family == "qwen-prm" else "<|quad_end|>"}
    named = {"bos_token": "<|endoftext|>"} if family == "qwen-bos" else {}
    tokenizer = released_tokenizers.qwen(special, eos_token="<|im_end|>", **named)
    tokenizer.chat_template = CHATML
    return tokenizer


LLAMA31 = (
    "{{ bos_token }}<|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\n"
    "Today Date: 26 Jul 2024\n\n<|eot_id|>{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>"
    "\n\n{{ m['content'] | trim }}<|eot_id|>{% endfor %}"
)


def write(folder: Path, release: Release, tokenizer: Any, *, real: bool) -> Network:
    """The files of a release, and the model that they hold."""
    published = release.config if real else release.config | {"vocab_size": len(tokenizer)}
    config = published | SMALL
    plain = {key: value for key, value in config.items() if key not in ("auto_map", "architectures", "model_type")}
    torch.manual_seed(len(folder.name))
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(config["model_type"], **plain)).eval()
    head = release.head()
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()} | head
    if config["tie_word_embeddings"]:
        del tensors["lm_head.weight"]
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    for name in release.code:
        (folder / name).write_text("raise SystemExit('code of the checkpoint was run')\n")
    weight_map = {}
    for number in (1, 2):
        file = release.files.format(number)
        shard = dict(list(tensors.items())[number - 1 :: 2])
        weight_map |= dict.fromkeys(shard, file)
        if file.endswith(".bin"):
            torch.save(shard, folder / file)
        else:
            save_file(shard, folder / file, metadata={"format": "pt"})
    index = "pytorch_model.bin.index.json" if release.files.endswith(".bin") else "model.safetensors.index.json"
    (folder / index).write_text(json.dumps({"metadata": {"total_size": 0}, "weight_map": weight_map}))
    if real and release.tokenizer == "mistral":
        shutil.copy(released_tokenizers.mistral_model() / "tokenizer.model", folder)
        (folder / "tokenizer_config.json").write_text(json.dumps(SHEPHERD_TOKENIZER))
    else:
        tokenizer.save_pretrained(folder)
    # transformers reads a saved tokenizer with the rules of the model's family: those of the real ones are at hand, but
    # for ReasonEval's, whose pad token is ours.
    as_made = real and release.layout != "reasoneval"
    return Network(tokenizer if as_made else AutoTokenizer.from_pretrained(folder), model, head)


SHEPHERD_TOKENIZER = {
    "add_bos_token": True,
    "add_eos_token": False,
    "bos_token": "<s>",
    "clean_up_tokenization_spaces": False,
    "eos_token": "</s>",
    "legacy": True,
    "tokenizer_class": "LlamaTokenizer",
    "unk_token": "<unk>",
}


def rewards(folder: Path, **options: Any) -> tuple[str, list[list[float | None]]]:
    async def main() -> tuple[str, list[list[float | None]]]:
        classifier = Classifier(str(folder), dtype="float32", device="cpu", **options)
        layout = (await classifier.start())["layout"]
        found = [reward.rewards for reward in await asyncio.gather(*map(classifier.judge, SOLUTIONS))]
        await classifier.aclose()
        return layout, found

    return asyncio.run(main())


@pytest.mark.slow
@pytest.mark.parametrize("real", [False, True], ids=["small", "real"])
@pytest.mark.parametrize("name", RELEASES)
def test_a_stand_in_loads_and_rewards_as_published(name: str, real: bool, tmp_path: Path) -> None:
    release = RELEASES[name]
    tokenizer = (real_tokenizer if real else small_tokenizer)(release.tokenizer)
    folder = tmp_path / name.replace("/", "--")
    network = write(folder, release, tokenizer, real=real)
    layout, found = rewards(folder, **release.options)
    assert layout == release.layout
    for solution, of_solution in zip(SOLUTIONS, found, strict=True):
        expected = REFERENCES[layout](network, solution.problem, solution.steps)
        assert of_solution == pytest.approx(expected, abs=1e-5)
        # The random model tells steps apart: equal scores would prove nothing.
        assert len({round(reward or 0.0, 4) for reward in of_solution}) == len(solution.steps)


@pytest.mark.parametrize("name", RELEASES)
def test_a_stand_in_with_another_configuration_is_refused(name: str, tmp_path: Path) -> None:
    """Fewer layers and more of them than the checkpoint has, and other sizes: each is refused with the tensors' names.

    Of a network whose head the checkpoint keeps for itself, the names lack what AutoModel leaves out.
    """
    release = RELEASES[name]
    folder = tmp_path / name.replace("/", "--")
    write(folder, release, small_tokenizer(release.tokenizer), real=False)
    config = json.loads((folder / "config.json").read_text())
    for change, fault in (
        ({"num_hidden_layers": 1}, r"model\.layers\.1\.\S+ has no place in it"),
        ({"num_hidden_layers": 3}, r"layers\.2\.\S+ is missing"),
        ({"hidden_size": 64}, r"layers\.0\.\S+ is of shape \[\S*32\S*\], not \[\S*64"),
        ({"intermediate_size": 96}, r"layers\.0\.mlp\.\S+ is of shape \[\d+, \d+\], not \["),
    ):
        (folder / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(EngineError, match=rf"does not fit the configuration of its \w+: .*{fault}"):
            rewards(folder, **release.options)
    # A head of another width is none of the layout's.
    (folder / "config.json").write_text(json.dumps(config))
    for head in release.head():
        file = next(iter(folder.glob("*.index.json")))
        shard = folder / json.loads(file.read_text())["weight_map"][head]
        tensors = load_file(shard)
        save_file(tensors | {head: torch.zeros([5, *tensors[head].shape[1:]])}, shard, metadata={"format": "pt"})
        with pytest.raises(EngineError, match=rf"the head is not .*{head} \[5"):
            rewards(folder, **release.options)
        save_file(tensors, shard, metadata={"format": "pt"})


def test_pure_as_prmbench_runs_it(tmp_path: Path) -> None:
    """Its script writes a blank line where PURE itself writes a line end."""
    network = write(tmp_path / "PURE-PRM-7B", RELEASES["jinachris/PURE-PRM-7B"], small_tokenizer("qwen"), real=False)
    _, found = rewards(tmp_path / "PURE-PRM-7B", separator="blank-line")
    for solution, of_solution in zip(SOLUTIONS, found, strict=True):
        assert of_solution == pytest.approx(by_trl(network, solution.problem, solution.steps, "\n\n"), abs=1e-5)


@pytest.mark.slow
def test_ids_of_the_real_tokenizers() -> None:
    """As the model cards and repositories give them."""
    from rprm.rewarders.layouts import Layout

    qwen = Layout("qwen", real_tokenizer("qwen-prm"))
    assert qwen.token("<extra_0>") == 151651
    psa = Layout("math-psa", real_tokenizer("qwen"))
    assert (psa.token(" \n\n\n\n\n"), *psa.sign_ids) == (76325, 488, 481)
    rlhflow = Layout("rlhflow", real_tokenizer("llama"))
    assert rlhflow.sign_ids == [10, 12]
    shepherd = Layout("math-shepherd", real_tokenizer("mistral"))
    assert (shepherd.token("ки"), *shepherd.sign_ids) == (12902, 648, 387)


@pytest.mark.long
@pytest.mark.slow
def test_real_items_have_the_ids_of_the_published_texts(real_data: Path) -> None:
    """Layout by layout on real ProcessBench items: pieces put together are the whole text, encoded at once."""
    from references import QWEN_SYSTEM

    from rprm.rewarders.layouts import Layout

    problems = []
    for file in sorted((real_data / "processbench").glob("*.jsonl")):
        problems += [json.loads(line) for line in file.read_text().splitlines()]
    qwen, psa = real_tokenizer("qwen-prm"), real_tokenizer("qwen")
    mistral = real_tokenizer("mistral")
    differing = dict.fromkeys(("qwen", "math-psa", "math-shepherd", "llemma"), 0)
    layouts = Layout("qwen", qwen), Layout("math-psa", psa), Layout("math-shepherd", mistral), Layout("llemma", mistral)
    for row in problems:
        problem, steps = row["problem"], row["steps"]
        numbered = [
            step.strip() if re.match(r"\s*Step \d+:", step) else f"Step {number}: {step.strip()}"
            for number, step in enumerate(steps, 1)
        ]
        chat = [{"role": "system", "content": QWEN_SYSTEM}, {"role": "user", "content": problem}]
        chat.append({"role": "assistant", "content": "".join(f"{step}<extra_0>" for step in steps)})
        whole = {
            "qwen": qwen.encode(qwen.apply_chat_template(chat, tokenize=False)),
            "math-psa": psa.encode(f"{problem} " + " ".join(f"{step} \n\n\n\n\n" for step in numbered)),
            "math-shepherd": mistral.encode(f"{problem} " + "\n".join(f"{step} ки" for step in numbered)),
            "llemma": mistral.encode(
                f"# Question\n\n{problem}\n\n# Solution\n\n" + "".join(f"{step.strip()}\n\n" for step in steps)
            ),
        }
        for layout in layouts:
            ids = layout.render(problem, steps).ids
            differing[layout.name] += ids != whole[layout.name][: len(ids)]
    assert differing == {"qwen": 0, "math-psa": 0, "math-shepherd": 0, "llemma": 0}
    assert len(problems) == {"excerpts": 80, "data": 660}[real_data.name]


def test_a_sentencepiece_model_is_read_as_sentencepiece_reads_it(tmp_path: Path) -> None:
    """transformers' own choice for a Mistral leaves out the space that begins a text: `+` would be another token."""
    from sentencepiece import SentencePieceProcessor

    from rprm.engines.loading import load_tokenizer

    pytest.importorskip("google.protobuf", reason='pip install ".[local]"')
    folder = tmp_path / "math-shepherd"
    folder.mkdir()
    shutil.copy(released_tokenizers.mistral_model() / "tokenizer.model", folder)
    (folder / "config.json").write_text(json.dumps(MISTRAL))
    (folder / "tokenizer_config.json").write_text(json.dumps(SHEPHERD_TOKENIZER))
    tokenizer = load_tokenizer(str(folder), None)
    assert tokenizer.encode("+ - ки", add_special_tokens=False) == [648, 387, 12902]
    assert tokenizer.encode("What?")[0] == tokenizer.bos_token_id == 1
    for solution in SOLUTIONS:
        text = solution.problem + "\n".join(solution.steps)
        expected = SentencePieceProcessor(model_file=str(folder / "tokenizer.model")).encode(text)
        assert tokenizer.encode(text, add_special_tokens=False) == expected

    (folder / "tokenizer.model").write_bytes(b"no model")
    with pytest.raises(EngineError, match="cannot load the"):
        asyncio.run(Classifier(str(folder)).start())
