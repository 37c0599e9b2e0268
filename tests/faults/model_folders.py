"""Model folders, sound and damaged: `FAULTS` by name, each a function that damages a copy of the sound one."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

Fault = Callable[[Path], None]
FAULTS: dict[str, Fault] = {}
WEIGHTS, INDEX, CONFIG = "model.safetensors", "model.safetensors.index.json", "config.json"
TOKENIZER, TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"
TEMPLATE, GENERATION, ADAPTER = "chat_template.jinja", "generation_config.json", "adapter_config.json"
EMBEDDING, UP = "model.embed_tokens.weight", "model.layers.1.mlp.up_proj.weight"
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n"


def sound_folder(folder: Path) -> Path:
    """A random two-layer Llama that is a judge, a base to train, and a classifier with the head of Qwen2.5-Math-PRM."""
    import torch
    from safetensors.torch import load_file, save_file
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("Y", "e"), ("Ye", "s"), ("N", "o"), ("Ġ", "Yes"), ("Ġ", "No")]
    words = ["</s>", "<|user|>", "<|assistant|>", "<extra_0>", *alphabet, *("".join(pair) for pair in merges)]
    tokenizer = Tokenizer(models.BPE(vocab={word: index for index, word in enumerate(words)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="</s>", pad_token="</s>", additional_special_tokens=words[1:4]
    )
    fast.chat_template = (
        "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(
        **sizes, num_key_value_heads=2, vocab_size=len(words), max_position_embeddings=4096, eos_token_id=0,
        bos_token_id=None, pad_token_id=0, initializer_range=0.3,
    )  # fmt: skip
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    fast.save_pretrained(folder)
    shapes = {"score.0.weight": (32, 32), "score.0.bias": (32,), "score.2.weight": (2, 32), "score.2.bias": (2,)}
    head = {name: torch.randn(*shape) * 0.3 for name, shape in shapes.items()}
    save_file(load_file(folder / WEIGHTS) | head, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / "rprm_classifier.json").write_text('{"layout": "qwen"}')
    return folder


# --- How a folder is damaged ----------------------------------------------------------------------------------------


def write(folder: Path, name: str, content: bytes | str | Any) -> None:
    """Bytes and texts as they are, anything else as JSON."""
    text = content if isinstance(content, bytes | str) else json.dumps(content)
    (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())


def change(folder: Path, name: str, **values: Any) -> None:
    """Set values of a JSON file; ... leaves one out."""
    content = json.loads((folder / name).read_bytes()) if (folder / name).exists() else {}
    write(folder, name, {key: value for key, value in (content | values).items() if value is not ...})


def change_tokenizer(folder: Path, change: Callable[[Any], Any]) -> None:
    content = json.loads((folder / TOKENIZER).read_bytes())
    change(content)
    write(folder, TOKENIZER, content)


def change_tensors(folder: Path, change: Callable[[Any], Any]) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / WEIGHTS, {"format": "pt"})


def change_header(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    content = (folder / WEIGHTS).read_bytes()
    end = 8 + struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8:end])
    text = change(header)
    text = json.dumps(header).encode() if text is None else text
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", len(text)) + text + content[end:])


def cut(folder: Path, name: str, length: float) -> None:
    """Keep so many bytes, or that share of them."""
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: int(length if length >= 1 or not length else length * len(content))])


def shards(folder: Path, change: Callable[[dict[str, str]], Any] = lambda weight_map: None) -> None:
    """Two shards and their index, whose `weight_map` is changed."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    names, files = sorted(tensors), ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    parts = names[: len(names) // 2], names[len(names) // 2 :]
    for file, part in zip(files, parts, strict=True):
        save_file({name: tensors[name] for name in part}, folder / file, {"format": "pt"})
    weight_map = {name: file for file, part in zip(files, parts, strict=True) for name in part}
    changed = change(weight_map)
    write(folder, INDEX, {"metadata": {}, "weight_map": weight_map if changed is None else changed})


def elsewhere(folder: Path, name: str) -> Path:
    """A sound file outside the folder, taken out of it."""
    place = folder.parent / "elsewhere"
    place.mkdir(exist_ok=True)
    return (folder / name).rename(place / name)


def link(folder: Path, name: str) -> None:
    (folder / name).symlink_to(elsewhere(folder, name))


def pipe(folder: Path, name: str) -> None:
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)


def names_elsewhere(folder: Path, *, absolute: bool, how: str = "path") -> None:
    """The second shard lies outside the folder."""
    shards(folder)
    second = "model-00002-of-00002.safetensors"
    if how == "link":
        return link(folder, second)
    outside = elsewhere(folder, second)
    content = json.loads((folder / INDEX).read_bytes())
    name = str(outside) if absolute else os.path.relpath(outside, folder)
    content["weight_map"] = {k: name if v == second else v for k, v in content["weight_map"].items()}
    write(folder, INDEX, content)
    return None


def adapter(folder: Path, **values: Any) -> None:
    """A LoRA adapter in the folder, its base beside; values of its configuration are changed."""
    import shutil

    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = Path(shutil.copytree(folder, folder.parent / "base"))
    for file in folder.iterdir():
        file.unlink()
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj"])).save_pretrained(folder)
    change(folder, ADAPTER, base_model_name_or_path=str(base))
    change(folder, ADAPTER, **values)


def gguf(folder: Path, content: bytes) -> None:
    for file in folder.iterdir():
        file.unlink()
    write(folder, "model.gguf", content)


def pickled(folder: Path, content: Any) -> None:
    import torch

    (folder / WEIGHTS).unlink()
    torch.save(content, folder / "pytorch_model.bin")


class Runs:
    """What a pickle would run."""

    def __reduce__(self) -> Any:
        return os.system, (f"touch {os.environ['RPRM_TEST_RAN']}",)


def add(name: str, fault: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
    assert name not in FAULTS, name
    FAULTS[name] = lambda folder: fault(folder, *args, **kwargs)


# --- Weights ----------------------------------------------------------------------------------------------------

for place, length in {"nothing": 0, "half the length": 4, "the length": 8, "some of the header": 200, "half": 0.5,
                      "nearly all": 0.999}.items():  # fmt: skip
    add(f"weights cut after {place}", cut, WEIGHTS, length)
add("weights: header of 10^18 bytes", write, WEIGHTS, struct.pack("<Q", 10**18) + b"{}")
add("weights: header of 2^64-1 bytes", write, WEIGHTS, struct.pack("<Q", 2**64 - 1) + b"{}")
add("weights: header of zeros", write, WEIGHTS, bytes(1000))
add("weights: header is no JSON", change_header, lambda header: b"{nonsense")
add("weights: header is a list", change_header, lambda header: b"[]")
add("weights: header of nested lists", change_header, lambda header: b"[" * 100_000)
add("weights: header is empty", change_header, lambda header: b"{}")
add("weights: offsets out of range", change_header, lambda h: h[UP].update(data_offsets=[0, 10**15]))
add("weights: offsets overlap", change_header, lambda h: h[UP].update(data_offsets=h["lm_head.weight"]["data_offsets"]))
add("weights: offsets are negative", change_header, lambda h: h[UP].update(data_offsets=[-8, 0]))
add("weights: offsets are turned", change_header, lambda h: h[UP]["data_offsets"].reverse())
add("weights: no offsets", change_header, lambda h: h[UP].pop("data_offsets") and None)
add("weights: no such dtype", change_header, lambda h: h[UP].update(dtype="F99"))
add("weights: dtype is a number", change_header, lambda h: h[UP].update(dtype=7))
add("weights: shape larger than the data", change_header, lambda h: h[UP].update(shape=[10**9, 10**9]))
add("weights: shape overflows", change_header, lambda h: h[UP].update(shape=[2**63, 2**63]))
add("weights: shape is negative", change_header, lambda h: h[UP].update(shape=[-1, 32]))
add("weights: a pickle", write, WEIGHTS, b"\x80\x04c__builtin__\neval\n(S'1'\ntR.")
add("weights: HTML", write, WEIGHTS, "<!DOCTYPE html><html><body>404</body></html>")
add("weights: a Git LFS pointer", write, WEIGHTS, LFS)
add("weights: missing", lambda folder: (folder / WEIGHTS).unlink())
add("weights: a folder", lambda folder: [(folder / WEIGHTS).unlink(), (folder / WEIGHTS).mkdir()])
add("weights: a FIFO", pipe, WEIGHTS)
add("weights: a link out of the folder", link, WEIGHTS)
add("weights: a link to itself", lambda f: [(f / WEIGHTS).unlink(), (f / WEIGHTS).symlink_to(WEIGHTS)])
add("weights: a link to nothing", lambda f: [(f / WEIGHTS).unlink(), (f / WEIGHTS).symlink_to("nothing")])
add("weights: a link to /dev/zero", lambda f: [(f / WEIGHTS).unlink(), (f / WEIGHTS).symlink_to("/dev/zero")])
for kind in ("float8_e4m3fn", "float8_e5m2", "int8", "bool", "uint8"):
    add(f"weights: one of {kind}", change_tensors, lambda t, k=kind: t.update({UP: as_dtype(t[UP], k)}))
    if kind in ("float8_e4m3fn", "int8"):
        add(
            f"weights: all of {kind}",
            change_tensors,
            lambda t, k=kind: t.update({n: as_dtype(v, k) for n, v in t.items()}),
        )


def as_dtype(tensor: Any, name: str) -> Any:
    import torch

    return tensor.to(getattr(torch, name))


add("weights: a NaN", change_tensors, lambda t: t[UP].view(-1).__setitem__(5, float("nan")))
add("weights: an infinity", change_tensors, lambda t: t[UP].view(-1).__setitem__(5, float("inf")))
add("weights: all NaN", change_tensors, lambda t: [v.fill_(float("nan")) for v in t.values()] and None)
add("weights: NaN in the embedding of one token", change_tensors, lambda t: t[EMBEDDING][70].fill_(float("nan")))
add("weights: another shape", change_tensors, lambda t: t.update({UP: t[UP][:50]}))
add("weights: an axis more", change_tensors, lambda t: t.update({UP: t[UP][None]}))
add("weights: a scalar", change_tensors, lambda t: t.update({UP: t[UP].sum()}))
add("weights: an empty tensor", change_tensors, lambda t: t.update({UP: t[UP][:0]}))
add("weights: a tensor missing", change_tensors, lambda t: t.pop(UP) is None)
add("weights: the embedding missing", change_tensors, lambda t: t.pop(EMBEDDING) is None)
add("weights: a layer missing", change_tensors, lambda t: [t.pop(n) for n in [*t] if ".layers.0." in n] and None)
add("weights: a surplus layer", change_tensors,
    lambda t: t.update({n.replace(".1.", ".2."): v.clone() for n, v in t.items() if ".layers.1." in n}))  # fmt: skip
add("weights: a surplus bias", change_tensors, lambda t: t.update({UP.replace("weight", "bias"): t[UP][:, 0].clone()}))
add("weights: other names", change_tensors, lambda t: [t.update({f"x.{n}": t.pop(n)}) for n in [*t]] and None)

# --- The index -------------------------------------------------------------------------------------------------

add("index: a list", lambda f: [shards(f), write(f, INDEX, [])])
add("index: empty", lambda f: [shards(f), write(f, INDEX, "")])
add("index: an empty object", lambda f: [shards(f), write(f, INDEX, {})])
add("index: nested", lambda f: [shards(f), write(f, INDEX, '{"weight_map":' + "[" * 100_000)])
add("index: an empty map", shards, lambda found: {})
add("index: a map of numbers", shards, lambda found: dict.fromkeys(found, 3))
add("index: a map of lists", shards, lambda found: {name: ["a"] for name in found})
add("index: a map of nulls", shards, lambda found: dict.fromkeys(found))
add("index: shards that are missing", shards, lambda found: dict.fromkeys(found, "model-00009.safetensors"))
add("index: one shard is missing", lambda f: [shards(f), (f / "model-00002-of-00002.safetensors").unlink()])
add("index: a shard is the folder", shards, lambda found: dict.fromkeys(found, "."))
add("index: a shard without a name", shards, lambda found: dict.fromkeys(found, ""))
add("index: a shard of a name too long", shards, lambda found: dict.fromkeys(found, "x" * 5000))
add("index: a shard with a null byte", shards, lambda found: dict.fromkeys(found, "a\0b"))
add("index: a shard is a URL", shards, lambda found: dict.fromkeys(found, "https://example.com/x.safetensors"))
add("index: a shard is a FIFO", lambda f: [shards(f), pipe(f, "model-00002-of-00002.safetensors")])
add("index: a shard is /dev/zero", shards, lambda found: dict.fromkeys(found, "/dev/zero"))
add("index: a shard is a pickle", lambda f: [shards(f), write(f, "model-00002-of-00002.safetensors", b"\x80\x04N.")])
add("index: ../shard", names_elsewhere, absolute=False)
add("index: /absolute/shard", names_elsewhere, absolute=True)
add("index: a shard that is a link out of the folder", names_elsewhere, absolute=False, how="link")
add("index: a shard is cut", lambda f: [shards(f), cut(f, "model-00002-of-00002.safetensors", 0.5)])


def doubled(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    shards(folder)
    one, two = sorted(folder.glob("model-*.safetensors"))
    first, second = load_file(one), load_file(two)
    name = next(iter(first))
    save_file(second | {name: first[name] * -3}, two, {"format": "pt"})


add("index: a tensor in two shards", doubled)

# --- config.json -----------------------------------------------------------------------------------------------

add("config: missing", lambda folder: (folder / CONFIG).unlink())
for what, content in {"empty": "", "cut": '{"model_type": "lla', "a list": "[]", "a number": "3", "null": "null",
                      "an empty object": "{}", "UTF-16": "{}".encode("utf-16"), "nested": "[" * 100_000,
                      "a Git LFS pointer": LFS, "random bytes": bytes(range(128, 256))}.items():  # fmt: skip
    add(f"config: {what}", write, CONFIG, content)
add("config: a FIFO", pipe, CONFIG)
add("config: a link out of the folder", link, CONFIG)
add("config: 30 MB of text", lambda f: change(f, CONFIG, note="x" * 30_000_000))
for key, values in {
    "hidden_size": [0, -1, 10**9, 33, "32"],
    "intermediate_size": [-1, 10**9],
    "num_hidden_layers": [0, 10**6, 10**12, 1, 3, None],
    "vocab_size": [0, -1, 10**12, 100],
    "num_attention_heads": [0, 3, 10**9],
    "num_key_value_heads": [0, 10**9],
    "head_dim": [-1, 10**9],
    "max_position_embeddings": [-1, 10**15, "many"],
    "model_type": ["unheard", "", None, 3, "x" * 10**6, "gpt2", "bert", "t5", "whisper"],
    "architectures": ["LlamaForCausalLM", 3, ["T5ForConditionalGeneration"]],
    "hidden_act": ["unheard", None],
    "rms_norm_eps": [float("nan"), "small", -1],
    "rope_parameters": ["nonsense", 3, {"rope_type": "unheard"}, {"rope_type": "yarn", "factor": -1},
                        {"rope_type": "default", "rope_theta": 0}, {"rope_type": "default", "rope_theta": float("nan")},
                        {"rope_type": "longrope", "short_factor": [1] * 7, "long_factor": "x", "rope_theta": 1e4}],
    "dtype": ["unheard", 3, "float99", "Tensor", "int8"],
    "tie_word_embeddings": ["yes", [], 3],
    "quantization_config": [{"quant_method": "awq"}, {"quant_method": "unheard"}, {"quant_method": "bitsandbytes"}, 3,
                            {"quant_method": "compressed-tensors"}, {"quant_method": "fp8"}, {"quant_method": "mxfp4"}],
    "eos_token_id": [10**9, -5, "</s>", [[0]], 1.5],
    "pad_token_id": [10**9],
    "attn_implementation": ["unheard", "owner/kernels"],
    "_attn_implementation": ["owner/kernels"],
    "layer_types": [["unheard"] * 2, ["sliding_attention"], "full_attention"],
    "auto_map": [{"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}, "code.py"],
}.items():  # fmt: skip
    for value in values:
        add(f"config: {key} is {json.dumps(value)[:60]}", change, CONFIG, **{key: value})
add("config: auto_map of an unknown type", lambda f: [
    write(f, "code.py", "import os\nos.system('touch ' + os.environ['RPRM_TEST_RAN'])\n"),
    change(f, CONFIG, model_type="unheard", auto_map={"AutoConfig": "code.C"})])  # fmt: skip
add("config: absurd and quantised", change, CONFIG, hidden_size=10**7, quantization_config={"quant_method": "fp8"})
add("config: of a mixture of 10^6 experts", lambda f: write(f, CONFIG, {
    "model_type": "mixtral", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": 265,
    "num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 10**6}))  # fmt: skip
add("config: of a GPT-2 of 10^6 positions", lambda f: write(f, CONFIG, {
    "model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 10**6}))  # fmt: skip

# --- Tokenizers -----------------------------------------------------------------------------------------------

add("tokenizer: missing", lambda f: (f / TOKENIZER).unlink())
for what, content in {"empty": "", "a list": "[]", "an empty object": "{}", "null": "null", "nested": "[" * 100_000,
                      "a Git LFS pointer": LFS}.items():  # fmt: skip
    add(f"tokenizer: {what}", write, TOKENIZER, content)
add("tokenizer: cut", cut, TOKENIZER, 0.5)
add("tokenizer: a FIFO", pipe, TOKENIZER)
add("tokenizer: a link out of the folder", link, TOKENIZER)


def splits_by(pattern: str, content: dict[str, Any]) -> None:
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    content["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split, content["pre_tokenizer"]]}


def many_merges(content: dict[str, Any]) -> None:
    content["model"]["merges"] = [["a", "b"]] * 2_000_000


def grow(content: dict[str, Any]) -> None:
    vocab = content["model"]["vocab"]
    vocab |= {f"x{number}": len(vocab) + number for number in range(50)}


add("tokenizer: a regex that backtracks", change_tokenizer, partial(splits_by, r"(a+)+$|(\w+\s?)+#"))
add("tokenizer: a regex that backtracks at spaces", change_tokenizer, partial(splits_by, r"(\s*\S*)*\x00"))
add("tokenizer: a regex that is none", change_tokenizer, partial(splits_by, "(["))
add("tokenizer: a regex of 10^6 groups", change_tokenizer, partial(splits_by, "(" * 10**6 + "a" + ")" * 10**6))
add("tokenizer: merges of tokens that are not there", change_tokenizer,
    lambda c: c["model"]["merges"].append(["zz", "yy"]))  # fmt: skip
add("tokenizer: two million merges", change_tokenizer, many_merges)
add("tokenizer: a vocabulary larger than the embedding", change_tokenizer, grow)
add("tokenizer: ids of 10^9", change_tokenizer, lambda c: c["model"]["vocab"].update(a=10**9))
add("tokenizer: ids of 10^12", change_tokenizer, lambda c: c["model"]["vocab"].update(a=10**12))
add("tokenizer: negative ids", change_tokenizer, lambda c: c["model"]["vocab"].update(a=-1))
add("tokenizer: two tokens of one id", change_tokenizer, lambda c: c["model"]["vocab"].update(a=70, b=70))
add("tokenizer: added tokens beyond the embedding", change_tokenizer, lambda c: c["added_tokens"].append(
    {"id": 9999, "content": "2", "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
     "special": True}))  # fmt: skip
add("tokenizer: an added token of id 10^12", change_tokenizer, lambda c: c["added_tokens"][0].update(id=10**12))
add("tokenizer: an empty added token", change_tokenizer, lambda c: c["added_tokens"][1].update(content=""))
add("tokenizer: drops everything", change_tokenizer, lambda c: c.update(
    normalizer={"type": "Replace", "pattern": {"Regex": r"[\s\S]"}, "content": ""}))  # fmt: skip
add("tokenizer: a text grows a thousandfold", change_tokenizer, lambda c: c.update(
    normalizer={"type": "Sequence", "normalizers": [
        {"type": "Replace", "pattern": {"Regex": "."}, "content": "x" * 1000} for _ in range(3)]}))  # fmt: skip
add("tokenizer: no such model", change_tokenizer, lambda c: c["model"].update(type="Unheard"))
add("tokenizer: no such pre-tokenizer", change_tokenizer, lambda c: c.update(pre_tokenizer={"type": "Unheard"}))
add("tokenizer: a Unigram without unk", change_tokenizer, lambda c: c.update(
    model={"type": "Unigram", "vocab": [["a", -1.0]], "unk_id": None, "byte_fallback": False}))  # fmt: skip
add("tokenizer: a Unigram whose unk is out of range", change_tokenizer, lambda c: c.update(
    model={"type": "Unigram", "vocab": [["a", -1.0]], "unk_id": 99, "byte_fallback": False}))  # fmt: skip
add("tokenizer: a Unigram of NaN", change_tokenizer, lambda c: c.update(
    model={"type": "Unigram", "vocab": [["a", 1e999], ["b", -1e999]], "unk_id": 0}))  # fmt: skip
add("tokenizer: a template of tokens that are not there", change_tokenizer, lambda c: c.update(
    post_processor={"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "zz", "type_id": 0}}],
                    "pair": [], "special_tokens": {}}))  # fmt: skip
add("tokenizer: begins with a token beyond the embedding", change_tokenizer, lambda c: c.update(
    post_processor={"type": "TemplateProcessing", "pair": [{"Sequence": {"id": "A", "type_id": 0}}],
                    "single": [{"SpecialToken": {"id": "</s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
                    "special_tokens": {"</s>": {"id": "</s>", "ids": [99999], "tokens": ["</s>"]}}}))  # fmt: skip
add("tokenizer config: missing", lambda f: (f / TOKENIZER_CONFIG).unlink())
for what, content in {"empty": "", "a list": "[]", "null": "null", "nested": "[" * 100_000}.items():
    add(f"tokenizer config: {what}", write, TOKENIZER_CONFIG, content)
add("tokenizer config: auto_map", lambda f: [
    write(f, "code.py", "import os\nos.system('touch ' + os.environ['RPRM_TEST_RAN'])\n"),
    change(f, TOKENIZER_CONFIG, tokenizer_class="Unheard", auto_map={"AutoTokenizer": ["code.T", None]})])  # fmt: skip
for value in ("os.system", "pickle.Unpickler", "../x", "BertJapaneseTokenizer", 3, ["a"], "LlamaForCausalLM"):
    add(f"tokenizer config: class {value}", change, TOKENIZER_CONFIG, tokenizer_class=value)
add("tokenizer config: eos is a number", change, TOKENIZER_CONFIG, eos_token=3)
add("tokenizer config: eos is unheard of", change, TOKENIZER_CONFIG, eos_token="<unheard>")
add("tokenizer config: a pad token that is unheard of", change, TOKENIZER_CONFIG, pad_token="<unheard>")
add("tokenizer config: added tokens are a list", change, TOKENIZER_CONFIG, added_tokens_decoder=[1, 2])
add("tokenizer config: added tokens of nonsense", change, TOKENIZER_CONFIG, added_tokens_decoder={"a": {"b": 1}})
add("tokenizer config: names a file outside", change, TOKENIZER_CONFIG, tokenizer_file="../elsewhere/tokenizer.json")
add("tokenizer config: longest is nonsense", change, TOKENIZER_CONFIG, model_max_length="many")

# --- Chat templates ---------------------------------------------------------------------------------------------

LOOP = "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}{% endfor %}<|assistant|>"
RANGES = "{% for i in range(99999) %}{% for j in range(99999) %}{% set x = i %}{% endfor %}{% endfor %}"
for what, template in {
    "is empty": "",
    "is a syntax error": "{% for m in messages %}",
    "ranges over 10^9": "{% for i in range(10**9) %}x{% endfor %}" + LOOP,
    "loops in loops": RANGES + LOOP,
    "loops where a message says Step": "{% if 'Step' in messages[-1]['content'] %}" + RANGES + "{% endif %}" + LOOP,
    "calls itself for ever": "{% macro f(n) %}{{ f(n) }}{% endmacro %}{{ f(1) }}" + LOOP,
    "calls itself 2^60 times": "{% macro f(n) %}{% if n %}{{ f(n - 1) ~ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}"
    + LOOP,
    "computes a power tower": "{{ 9 ** (9 ** (9 ** 9)) }}" + LOOP,
    "computes a power tower of lengths": "{% set n = messages | length + 8 %}{{ n ** (n ** (n ** n)) }}" + LOOP,
    "repeats a letter 10^10 times": "{% set n = 10 ** 10 %}{{ ('x' * n) | length }}" + LOOP,
    "writes 10^9 letters": "{{ 'x' * 10 ** 9 }}" + LOOP,
    "doubles a text": "{% set s = namespace(x='xxxx') %}{% for i in range(40) %}{% set s.x = s.x ~ s.x %}{% endfor %}"
    + LOOP,
    "writes 10^6 letters a message": LOOP + "{% for i in range(1000) %}{{ 'x' * 1000 }}{% endfor %}",
    "pads to 10^10": "{{ 'x' | center(10 ** 10) | length }}" + LOOP,
    "formats 10^10 digits": "{{ '%010000000000d' % 3 }}" + LOOP,
    "drops all messages": "Hello<|assistant|>",
    "drops the user's": "{% for m in messages if m['role'] == 'system' %}{{ m['content'] }}{% endfor %}<|assistant|>",
    "drops the system's": "{% for m in messages if m['role'] != 'system' %}<|user|>{{ m['content'] }}{% endfor %}",
    "drops what says Step": "{% for m in messages if 'Step' not in m['content'] %}{{ m['content'] }}{% endfor %}",
    "keeps the first 9 letters": "{% for m in messages %}{{ m['content'][:9] }}{% endfor %}<|assistant|>",
    "turns the messages around": "{% for m in messages | reverse %}{{ m['content'] }}{% endfor %}<|assistant|>",
    "writes in capitals": "{% for m in messages %}{{ m['content'] | upper }}{% endfor %}<|assistant|>",
    "raises": "{{ raise_exception('no') }}",
    "raises at Step": "{% if 'Step' in messages[-1]['content'] %}{{ raise_exception('no') }}{% endif %}" + LOOP,
    "raises a text of lines": "{{ raise_exception('a\\nb\\x1b[31mred') }}",
    "reads an attribute of Python": "{{ ''.__class__.__mro__ }}" + LOOP,
    "reads an attribute by filter": "{{ ('' | attr('__class__')) }}" + LOOP,
    "formats an attribute": "{{ '{0.__class__.__init__.__globals__}'.format(messages) }}" + LOOP,
    "reads globals of a function": "{{ raise_exception.__globals__ }}" + LOOP,
    "reads what is undefined": "{{ nothing.at.all }}" + LOOP,
    "divides by zero": "{{ 1 // 0 }}" + LOOP,
    "calls a text": "{{ 'x'() }}" + LOOP,
    "includes a file": "{% include '/etc/passwd' %}" + LOOP,
    "imports a file": "{% import 'os' as os %}" + LOOP,
    "extends a file": "{% extends '../elsewhere/x' %}",
    "runs os": "{{ cycler.__init__.__globals__.os.popen('id').read() }}" + LOOP,
}.items():
    add(f"template: {what}", write, TEMPLATE, template)
add("template: random bytes", write, TEMPLATE, bytes(range(256)))
add("template: a FIFO", pipe, TEMPLATE)
add("template: a link out of the folder", link, TEMPLATE)
add("template: a folder", lambda f: [(f / TEMPLATE).unlink(), (f / TEMPLATE).mkdir()])
for value in (3, ["a"], {"default": 3}, [{"name": "default"}], [{"name": 3, "template": 4}], True):
    add(f"template: in its config {json.dumps(value)}", lambda f, v=value: [
        (f / TEMPLATE).unlink(), change(f, TOKENIZER_CONFIG, chat_template=v)])  # fmt: skip

# --- What else lies in a folder -------------------------------------------------------------------------------

for key, value in {"temperature": float("nan"), "top_p": -3, "eos_token_id": "x", "max_length": -1, "top_k": 1e99,
                   "do_sample": "maybe", "cache_implementation": "unheard", "num_beams": -4}.items():  # fmt: skip
    add(f"generation config: {key} is {value}", change, GENERATION, **{key: value})
for what, content in {"empty": "", "a list": "[]", "null": "null", "nested": "[" * 100_000}.items():
    add(f"generation config: {what}", write, GENERATION, content)
add("generation config: eos beyond the vocabulary", change, GENERATION, eos_token_id=[10**9])
add("generation config: a FIFO", pipe, GENERATION)
add("pickle: a state dict", lambda f: pickled(f, dict(__import__("safetensors.torch").torch.load_file(f / WEIGHTS))))
add("pickle: runs code", lambda f: pickled(f, {"a": Runs()}))
add("pickle: an object", lambda f: pickled(f, [1, 2]))
add("pickle: empty", lambda f: [(f / WEIGHTS).unlink(), write(f, "pytorch_model.bin", "")])
add(
    "pickle: of old",
    lambda f: [(f / WEIGHTS).unlink(), write(f, "pytorch_model.bin", __import__("pickle").dumps(Runs()))],
)
add("pickle: index to outside", lambda f: [(f / WEIGHTS).unlink(), write(f, "pytorch_model.bin.index.json",
    {"weight_map": {UP: "../elsewhere/x.bin"}})])  # fmt: skip
add("folder: empty", lambda f: [file.unlink() for file in f.iterdir()])
add("folder: a file", lambda f: [[file.unlink() for file in f.iterdir()], f.rmdir(), f.write_bytes(b"model")])
add("folder: a FIFO", lambda f: [[file.unlink() for file in f.iterdir()], f.rmdir(), os.mkfifo(f)])
add("folder: links in a ring", lambda f: [(f / "ring").symlink_to("."), (f / WEIGHTS).unlink(),
    (f / WEIGHTS).symlink_to("ring/" * 50 + WEIGHTS)])  # fmt: skip
add("folder: 20,000 files more", lambda f: [(f / f"x{number}.safetensors.txt").touch() for number in range(20_000)])
add("folder: rprm_prompt.toml of nonsense", write, "rprm_prompt.toml", "[[[")
add("folder: rprm_prompt.toml is a FIFO", pipe, "rprm_prompt.toml")
add("folder: rprm_prompt.toml is a link to /dev/zero", lambda f: (f / "rprm_prompt.toml").symlink_to("/dev/zero"))
add("folder: rprm_classifier.json of nonsense", write, "rprm_classifier.json", '{"layout": 3}')
add("folder: rprm_classifier.json is nested", write, "rprm_classifier.json", "[" * 100_000)
add("adapter: sound", adapter)
add("adapter: base missing", adapter, base_model_name_or_path="/nowhere/base")
add("adapter: base is a hub id", adapter, base_model_name_or_path="owner/unheard-of")
add("adapter: base is ../base", adapter, base_model_name_or_path="../base")
add("adapter: base is itself", lambda f: [adapter(f), change(f, ADAPTER, base_model_name_or_path=str(f))])
add("adapter: base is a number", adapter, base_model_name_or_path=3)
add("adapter: base is a URL", adapter, base_model_name_or_path="https://example.com/x")
add("adapter: base with a null byte", adapter, base_model_name_or_path="a\0b")
add("adapter: base of a name too long", adapter, base_model_name_or_path="x" * 5000)
add("adapter: rank 10^9", adapter, r=10**9)
add("adapter: rank 0", adapter, r=0)
add("adapter: rank -1", adapter, r=-1)
add("adapter: rank is a text", adapter, r="four")
add("adapter: another rank", adapter, r=3)
add("adapter: rank by pattern", adapter, rank_pattern={".*": 10**9})
add("adapter: alpha NaN", adapter, lora_alpha=float("nan"))
add("adapter: targets that are not there", adapter, target_modules=["unheard"])
add("adapter: targets are a number", adapter, target_modules=3)
add("adapter: targets are a regex that backtracks", adapter, target_modules=r"(a*)*b|(.*.*)*x")
add("adapter: of an unknown kind", adapter, peft_type="UNHEARD")
add("adapter: kind missing", adapter, peft_type=...)
add(
    "adapter: wants code",
    adapter,
    auto_mapping={"base_model_class": "os.system", "parent_library": "os"},
    task_type=None,
)
add("adapter: trains tokens out of range", adapter, trainable_token_indices=[10**9])
add("adapter: weights NaN", lambda f: [adapter(f), nan_adapter(f)])
add("adapter: weights a FIFO", lambda f: [adapter(f), pipe(f, "adapter_model.safetensors")])
add("adapter: weights a link out of the folder", lambda f: [adapter(f), link(f, "adapter_model.safetensors")])
add("adapter: weights cut", lambda f: [adapter(f), cut(f, "adapter_model.safetensors", 0.5)])
add("adapter: weights pickled code", lambda f: [adapter(f), (f / "adapter_model.safetensors").unlink(),
    write(f, "adapter_model.bin", __import__("pickle").dumps(Runs()))])  # fmt: skip
add("adapter: configuration is nested", lambda f: [adapter(f), write(f, ADAPTER, "[" * 100_000)])


def nan_adapter(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    file = folder / "adapter_model.safetensors"
    save_file({name: tensor.fill_(float("nan")) for name, tensor in load_file(file).items()}, file)


GGUF = {
    "empty": b"", "cut": b"GGUF\x03\0\0\0", "no such magic": b"GGML" + bytes(100),
    "version 99": struct.pack("<4sIQQ", b"GGUF", 99, 0, 0), "nothing in it": struct.pack("<4sIQQ", b"GGUF", 3, 0, 0),
    "10^18 tensors": struct.pack("<4sIQQ", b"GGUF", 3, 10**18, 0) + bytes(64),
    "10^18 fields": struct.pack("<4sIQQ", b"GGUF", 3, 0, 10**18) + bytes(64),
    "a key of 10^18 letters": struct.pack("<4sIQQQ", b"GGUF", 3, 0, 1, 10**18) + bytes(64),
    "a list of 10^18": struct.pack("<4sIQQQ1sIIQ", b"GGUF", 3, 0, 1, 1, b"k", 9, 0, 10**18) + bytes(64),
    "lists in lists": struct.pack("<4sIQQQ1sI", b"GGUF", 3, 0, 1, 1, b"k", 9) + struct.pack("<IQ", 9, 1) * 5000,
}  # fmt: skip
for what, content in GGUF.items():
    add(f"GGUF: {what}", gguf, content)
