"""A model's weights and its tokenizer, from a folder, the hub, a GGUF file or a LoRA adapter.

Weights are the checkpoint's, all of them and no others, and no code of a repository is ever run.
"""

from __future__ import annotations

import re
import warnings
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rprm.engines.files import adapter_details, find_file, named_base, read_object
from rprm.errors import EngineError, RprmError

if TYPE_CHECKING:
    import torch

#: Tensors named in a message.
_NUM_NAMED = 3

#: Where weights can lie, in the order in which transformers looks for them: one file, or an index of shards.
_WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
_ADAPTER_FILES = ("adapter_model.safetensors", "adapter_model.bin")

#: Before the names of the model's modules, in an adapter.
_ADAPTED = "base_model.model."

#: Buffers that older checkpoints hold, and that are no weights: the value under a causal mask, rotary frequencies.
_BUFFER = re.compile(r"\.masked_bias$|\.rotary\w*\.inv_freq$")

#: Text on which a tokenizer is held against the sentencepiece model that it was made from. It has no runs of spaces,
#: which transformers cuts otherwise than sentencepiece.
_PROBE = "+ - ки\nStep 1: 12 × (3 − 4) = −12. Ünï\n\nSo the answer is $\\boxed{-12}$."


class LoadedModel(NamedTuple):
    """A model on the CPU. `details` tell of the adapter that is merged into it and of its base, for manifests."""

    model: Any
    tokenizer: Any
    details: dict[str, Any]


def load_model(
    target: str, *, spec: str, dtype: torch.dtype, adapter: str | None = None, revision: str | None = None
) -> LoadedModel:
    """Load a causal language model to run; an adapter is merged into it.

    Args:
        target: a hub id, a folder, a GGUF file, or the folder or hub id of a LoRA adapter, which names its base.
        spec: the model, for messages.
        dtype: of the weights.
        adapter: a LoRA adapter (folder or hub id).
        revision: of the hub repository `target`; a tag or commit.

    Raises:
        EngineError: it cannot be loaded, its tensors are not those of its configuration, or it needs code of its
            repository.
    """
    base, base_revision, adapter_revision = target, revision, None
    with plain_errors(spec, "a causal language model, a GGUF file"):
        from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

        if target.endswith(".gguf"):
            folder, file = str(Path(target).parent), Path(target).name
            if find_file(folder, file, None) is None:
                raise OSError("no such file")
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, gguf_file=file)
            source = {"gguf_file": file, "quantization_config": GgufConfig(dequantize=True)}
            model = load_weights(AutoModelForCausalLM, folder, name=spec, dtype=dtype, **source)
        else:
            if adapter is None and (named := named_base(target, revision)) is not None:
                adapter, adapter_revision, (base, base_revision) = target, revision, named
            is_own = base == target or find_file(target, "tokenizer_config.json", revision) is not None
            tokenizer = load_tokenizer(target, revision) if is_own else load_tokenizer(base, base_revision)
            name = spec if base == target else f"{spec}: {base}"
            model = load_weights(AutoModelForCausalLM, base, name=name, revision=base_revision, dtype=dtype)
        if adapter is None:
            return LoadedModel(model, tokenizer, {})
        model = merge_adapter(model, adapter, adapter_revision)
    details = adapter_details(adapter, adapter_revision, base=base, base_revision=base_revision)
    return LoadedModel(model, tokenizer, details)


@contextmanager
def plain_errors(spec: str, wanted: str, *, what: str = "the model") -> Iterator[None]:
    """Tell in one line what goes wrong while libraries load a model.

    Args:
        spec: names the model.
        wanted: what a folder must hold.
        what: what is loaded.

    Raises:
        EngineError: instead of what transformers, torch, safetensors or peft raise.
    """
    try:
        yield
    except RprmError:
        raise
    except ImportError as error:
        raise EngineError(f'{spec}: {" ".join(str(error).split())}; pip install ".[local]" brings all of it') from None
    # The libraries meet malformed files with errors of any kind; tokenizers has none of its own.
    except Exception as error:
        if "trust_remote_code" in str(error):
            reason = "it needs code of its repository, which is never run"
        else:
            first, *rest = str(error).strip().splitlines() or [type(error).__name__]
            reason = f"{first} {rest[0].strip()}" if first.endswith(":") and rest else first
            if not isinstance(error, OSError | ValueError | RuntimeError):
                reason = f"one of its files is malformed ({type(error).__name__}: {reason})"
        raise EngineError(
            f"{spec}: cannot load {what}: {reason} (give a folder with {wanted}, or a hub id that this machine can "
            "reach)"
        ) from error


def load_weights(
    auto: Any, target: str, *, name: str | None = None, revision: str | None = None, **arguments: Any
) -> Any:
    """A model all of whose tensors are the checkpoint's, and which has a place for all of the checkpoint's.

    What a checkpoint has beside the model (another head, an output layer that is not asked for) does not matter.

    Args:
        auto: transformers' `AutoModel...` class.
        target: a folder or a hub id.
        name: of the model, for messages; the target by default.
        arguments: further ones of `from_pretrained`.

    Raises:
        EngineError: a tensor is missing, of another shape, of whole numbers, or has no place in the model.
        ImportError, OSError, ValueError, ...: see `plain_errors`.
    """
    from transformers.utils import logging

    stored = {} if "gguf_file" in arguments else stored_tensors(target, revision)
    # The library's own report of what is said below.
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        model, loading = auto.from_pretrained(
            target,
            revision=revision,
            trust_remote_code=False,
            output_loading_info=True,
            # Otherwise an exception without their names.
            ignore_mismatched_sizes=True,
            **arguments,
        )
    finally:
        logging.set_verbosity(verbosity)
    faults = [(tensor, "is missing") for tensor in sorted(loading["missing_keys"])]
    faults += [
        (tensor, f"is of shape {list(found)}, not {list(wanted)}")
        for tensor, found, wanted in sorted(loading["mismatched_keys"])
    ]
    is_quantized = getattr(model.config, "quantization_config", None) is not None
    faults += [
        (tensor, "has no place in it")
        for tensor in sorted(loading["unexpected_keys"])
        # Of a quantized model: the scales of a layer, or its bias of zeros.
        if _is_inside(model, tensor)
        and not (is_quantized and tensor.rpartition(".")[0] in dict(model.named_modules()))
        and not _is_buffer(tensor, stored.get(tensor))
    ]
    if not is_quantized:
        floats = {name for name, tensor in model.state_dict().items() if tensor.is_floating_point()}
        prefix = f"{model.base_model_prefix}."
        floats |= {name.removeprefix(prefix) for name in floats} | {prefix + name for name in floats}
        faults += [(tensor, "has whole numbers") for tensor in _whole_numbers(stored) if tensor in floats]
    _refuse(name or target, f"the configuration of its {type(model).__name__}", faults)
    return model


def _is_inside(model: Any, tensor: str) -> bool:
    """Whether a tensor that has no place in the model belongs to its body: a further layer, a bias. A head does not."""
    parts = {model.base_model_prefix, *(name for of in (model, model.base_model) for name, _ in of.named_children())}
    return tensor.partition(".")[0] in parts


def _is_buffer(tensor: str, stored: StoredTensor | None) -> bool:
    """Whether it is a buffer of old; a causal mask is told from a bias by its shape, [1, 1, length, length]."""
    is_mask = tensor.endswith(".attn.bias") and stored is not None and len(stored.shape) == 4
    return is_mask or _BUFFER.search(tensor) is not None


def merge_adapter(model: Any, adapter: str, revision: str | None = None) -> Any:
    """The model with a LoRA adapter (folder or hub id) merged into it.

    Of an adapter that holds its embeddings whole, in another number than the model's (tokens were added to train it),
    the model takes the number.

    Raises:
        EngineError: the adapter is not whole, or not one of this model.
    """
    with plain_errors(adapter, "a LoRA adapter of this model"), warnings.catch_warnings():
        from peft import PeftModel

        stored = stored_tensors(adapter, revision, _ADAPTER_FILES)
        if not stored:
            raise OSError(f"it has no tensors, neither {' nor '.join(_ADAPTER_FILES)}")
        _resize_embeddings(model, stored)
        # Of an adapter that lacks tensors peft only warns, and takes random ones: they are named below. Of tied
        # embeddings it warns that merging changes both.
        warnings.filterwarnings("ignore", message=".*(missing adapter keys|tie_word_embeddings)", category=UserWarning)
        adapted = PeftModel.from_pretrained(model, adapter, revision=revision, torch_device="cpu")
        # Once more: here peft says what it found.
        found = adapted.load_adapter(adapter, "default", revision=revision, torch_device="cpu")
        faults = [(tensor, "is missing") for tensor in sorted(found.missing_keys)]
        faults += [
            (tensor, "has no place in it")
            for tensor in sorted(found.unexpected_keys)
            # Of resized embeddings peft 0.21 writes copies.
            if re.sub(r"\.(modules_to_save|original_module)\b", "", tensor) not in stored.keys() - {tensor}
        ]
        faults += [(tensor, "has whole numbers") for tensor in _whole_numbers(stored)]
        _refuse(adapter, "the model that it is applied to", faults)
        _untie_adapted(model)
        return adapted.merge_and_unload()


def _resize_embeddings(model: Any, stored: Mapping[str, StoredTensor]) -> None:
    """Resize to the rows of an adapter. No row is made up: a layer that grows is one that the adapter holds."""
    embeddings, output = model.get_input_embeddings(), model.get_output_embeddings()
    layers = {embeddings} if output is None or output.weight is embeddings.weight else {embeddings, output}
    names = [f"{_ADAPTED}{name}" for name, module in model.named_modules() if module in layers]
    held = [stored.get(f"{name}.weight") or stored.get(f"{name}.base_layer.weight") for name in names]
    rows, num_rows = {tensor.shape[0] for tensor in held if tensor is not None}, embeddings.weight.shape[0]
    if len(rows) == 1 and (max(rows) < num_rows or (max(rows) > num_rows and None not in held)):
        model.resize_token_embeddings(max(rows), mean_resizing=False)


def _untie_adapted(model: Any) -> None:
    """Where an adapter changes one of two layers with tied weights, give each its own: merged, it would change both."""
    import torch
    from peft.tuners.tuners_utils import BaseTunerLayer

    embeddings, output = model.get_input_embeddings(), model.get_output_embeddings()
    is_adapted = isinstance(embeddings, BaseTunerLayer) or isinstance(output, BaseTunerLayer)
    if output is not None and is_adapted and output.weight is embeddings.weight:
        layer = output.get_base_layer() if isinstance(output, BaseTunerLayer) else output
        layer.weight = torch.nn.Parameter(layer.weight.detach().clone())
        model.config.tie_word_embeddings = False


def _refuse(name: str, wanted: str, faults: list[tuple[str, str]]) -> None:
    if faults:
        named = ", ".join(f"{tensor} {fault}" for tensor, fault in faults[:_NUM_NAMED])
        more = f" and {len(faults) - _NUM_NAMED} more" if len(faults) > _NUM_NAMED else ""
        raise EngineError(
            f"{name}: the checkpoint does not fit {wanted}: {named}{more}; download it again, or name the model that "
            "these weights belong to"
        )


# --- the tensors of a checkpoint ----------------------------------------------------------------------------------


class StoredTensor(NamedTuple):
    """A tensor as it is stored; its type as the format of its file calls it. `file` is None where that is missing."""

    file: Path | None
    dtype: str
    shape: tuple[int, ...]


def stored_tensors(target: str, revision: str | None, files: Iterable[str] = _WEIGHT_FILES) -> dict[str, StoredTensor]:
    """The tensors of a folder or hub repository by name; nothing where it has none of the files.

    Raises:
        EngineError: the index of its files is damaged.
        OSError: one of them is.
    """
    path = next((path for name in files if (path := find_file(target, name, revision)) is not None), None)
    if path is None or path.suffix != ".json":
        return {} if path is None else _described(path)
    weight_map = read_object(path).get("weight_map")
    if not isinstance(weight_map, dict):
        raise EngineError(f"{path} has no weight_map; download it again")
    found = dict.fromkeys(weight_map, StoredTensor(None, "", ()))
    for name in sorted(set(weight_map.values())):
        if (shard := find_file(target, name, revision)) is not None:
            found |= _described(shard)
    return found


def read_tensors(target: str, names: Iterable[str], revision: str | None) -> dict[str, torch.Tensor]:
    """Tensors of a checkpoint by name, in float32.

    Raises:
        EngineError: one of them is not in the checkpoint.
    """
    stored, found = stored_tensors(target, revision), {}
    for name in names:
        if name not in stored:
            raise EngineError(f"{target}: the checkpoint has no tensor {name!r}; is it of another layout?")
        if (path := stored[name].file) is None:
            raise EngineError(f"{target}: the file of the tensor {name!r} is missing; download it again")
        if path.suffix != ".safetensors":
            found[name] = _unpickled(path)[name].float()
            continue
        from safetensors import safe_open

        with safe_open(path, "pt") as stream:
            found[name] = stream.get_tensor(name).float()
    return found


def _whole_numbers(stored: Mapping[str, StoredTensor]) -> list[str]:
    """Tensors that are stored as integers: read as the floats of a model, they would be made of the wrong numbers."""
    return [name for name, tensor in stored.items() if re.match(r"u?int|[ui]\d", tensor.dtype, re.IGNORECASE)]


def _described(path: Path) -> dict[str, StoredTensor]:
    """The tensors of a file, by name.

    Raises:
        OSError: it is no file of tensors.
    """
    try:
        if path.suffix != ".safetensors":
            return {
                name: StoredTensor(path, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))
                for name, tensor in _unpickled(path).items()
            }
        from safetensors import safe_open

        with safe_open(path, "pt") as stream:
            slices = {name: stream.get_slice(name) for name in stream.keys()}  # noqa: SIM118  # no mapping
            return {name: StoredTensor(path, one.get_dtype(), tuple(one.get_shape())) for name, one in slices.items()}
    # Of a malformed file torch raises errors of many kinds, and its advice is to run what code the file may hold.
    except Exception as error:
        raise OSError(f"{path} is damaged, or holds more than tensors; download it again") from error


def _unpickled(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a file in torch's own format, without any code that it may hold; not yet in memory."""
    import torch

    content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    return {name: value for name, value in content.items() if isinstance(value, torch.Tensor)}


# --- the tokenizer ------------------------------------------------------------------------------------------------


def load_tokenizer(target: str, revision: str | None) -> Any:
    """The tokenizer of a model, without code of its repository.

    A sentencepiece model without a tokenizer.json (Math-Shepherd) is held against sentencepiece itself: of a Mistral,
    transformers 5.24 would leave out the space that begins a text, and `+` would be another token.

    Raises:
        EngineError: transformers does not encode as the sentencepiece model does.
        ImportError, OSError, ValueError, ...: from transformers, where it cannot load the tokenizer (`plain_errors`).
    """
    from transformers import AutoTokenizer, LlamaTokenizer

    model_file = find_file(target, "tokenizer.model", revision)
    is_alone = find_file(target, "tokenizer.json", revision) is None and model_file is not None
    for kind in (AutoTokenizer, LlamaTokenizer):
        tokenizer = kind.from_pretrained(target, revision=revision, trust_remote_code=False)
        if not is_alone:
            return tokenizer
        from sentencepiece import SentencePieceProcessor

        expected = SentencePieceProcessor(model_file=str(model_file)).encode(_PROBE)
        if tokenizer.encode(_PROBE, add_special_tokens=False) == expected:
            return tokenizer
    raise EngineError(f"{target}: transformers does not encode as its tokenizer.model; add its tokenizer.json")
