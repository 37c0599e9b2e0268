"""A model's files and what identifies them; its weights, all of the checkpoint's and no others, without code of it."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from rprm.engines.tokens import is_failure, probe
from rprm.errors import EngineError, RprmError
from rprm.folders import fingerprint, model_files, own_file, read_object, try_out

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

ADAPTER_CONFIG = "adapter_config.json"  # of PEFT
#: Where weights can lie, in the order in which transformers looks for them: one file, or an index of shards.
_WEIGHT_FILES = tuple(name + end for name in ("model.safetensors", "pytorch_model.bin") for end in ("", ".index.json"))
_ADAPTER_FILES = ("adapter_model.safetensors", "adapter_model.bin")
# Buffers of older checkpoints that are no weights: the value under a causal mask, rotary frequencies.
_BUFFER = re.compile(r"\.masked_bias$|\.rotary\w*\.inv_freq$")
_SPARE_WEIGHTS = 1 << 26  #: that a configuration may describe beyond those there are: they are named, not made
#: Tells whether a tokenizer encodes as its sentencepiece model; no runs of spaces, which transformers cuts otherwise.
_PROBE = "+ - ки\nStep 1: 12 × (3 − 4) = −12. Ünï\n\nSo the answer is $\\boxed{-12}$."


def load_model(
    target: str, spec: str, dtype: torch.dtype, adapter: str | None = None, revision: str | None = None
) -> tuple[Any, Any, dict[str, Any]]:
    """A causal language model on the CPU, its tokenizer, and what a manifest says of the adapter merged into it; see
    `TransformersEngine`. An adapter as the `target` names its base."""
    base, base_revision, adapter_revision = target, revision, None
    with plain_errors(spec, "a causal language model, a GGUF file"):
        from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

        if target.endswith(".gguf"):
            # A file that is named may be a link.
            path = Path(target).resolve() if Path(target).is_file() else Path(target)
            folder, file = str(path.parent), path.name
            if find_file(folder, file, None) is None:
                raise OSError("no such file")
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, gguf_file=file)
            try_out(partial(probe, tokenizer), f"{target}: the tokenizer or its chat template")
            config = GgufConfig(dequantize=True)
            model = load_weights(AutoModelForCausalLM, folder, dtype=dtype, gguf_file=file, quantization_config=config)
        else:
            if adapter is None and (named := named_base(target, revision)) is not None:
                adapter, adapter_revision, (base, base_revision) = target, revision, named
            is_own = base == target or find_file(target, "tokenizer_config.json", revision) is not None
            tokenizer = load_tokenizer(target, revision) if is_own else load_tokenizer(base, base_revision)
            model = load_weights(AutoModelForCausalLM, base, revision=base_revision, dtype=dtype)
        if adapter is None:
            return model, tokenizer, {}
        model = merge_adapter(model, adapter, adapter_revision)
    return model, tokenizer, adapter_details(adapter, adapter_revision, base, base_revision)


def placement(spec: str, device: str, dtype: str, num_threads: int | None) -> tuple[str, str, torch.dtype]:
    """The device, the dtype's name and the dtype of a model, which then is loaded in silence: torch's names, or "auto",
    which takes a GPU where there is one, and bfloat16 there, float32 on a CPU."""
    try:
        import torch
        import transformers
    except ImportError as error:
        raise EngineError(f'{spec} needs transformers and torch: pip install ".[local]" ({error})') from None
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        if torch.empty(0, device=device).is_meta:
            raise RuntimeError("it holds no numbers")
    except (RuntimeError, AssertionError) as error:  # torch knows no such device, or has none
        raise EngineError(f"{spec}: device={device} cannot be used: {str(error).splitlines()[0]:.300}") from None
    if dtype == "auto":
        dtype = "float32" if device == "cpu" else "bfloat16"
    if not isinstance(found := getattr(torch, dtype, None), torch.dtype):
        raise EngineError(f"{spec}: {dtype!r} is no torch dtype; try float32, bfloat16 or float16")
    if num_threads:
        torch.set_num_threads(num_threads)
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    return device, dtype, found


@contextmanager
def plain_errors(spec: str, wanted: str, *, what: str = "the model") -> Iterator[None]:
    """Turn what libraries raise while they load `what` of `spec` into one line; `wanted`: what a folder must hold."""
    try:
        with warnings.catch_warnings(action="ignore"):  # what matters of them is said in our own words
            yield
    except RprmError:
        raise
    except ImportError as error:
        reason = " ".join(str(error).split())
        raise EngineError(f'{spec}: {reason:.300}; pip install ".[local]" brings all of it') from None
    except BaseException as error:  # of any kind, of malformed files; tokenizers has none of its own
        if not is_failure(error):
            raise
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        reason = " ".join(lines[: 2 if lines[0].endswith(":") else 1])
        if "trust_remote_code" in str(error):
            reason = "it needs code of its repository, which is never run"
        elif not isinstance(error, OSError | ValueError | RuntimeError):
            reason = f"one of its files is malformed ({type(error).__name__}: {reason})"
        fix = f"give a folder with {wanted}, or a hub id that this machine can reach"
        raise EngineError(f"{spec:.300}: cannot load {what}: {reason:.500} ({fix})") from error


def load_weights(auto: Any, target: str, *, revision: str | None = None, **arguments: Any) -> Any:
    """`auto.from_pretrained(target, ...)`; an `EngineError` names tensors that are missing or do not fit. Others beside
    the model (another head, an output layer that is not asked for) do not matter."""
    from transformers.utils import logging

    logging.set_verbosity_error()  # of the library, which would tell at length what is said below
    if find_file(target, ADAPTER_CONFIG, revision) is not None:
        raise EngineError(f"{target} is a LoRA adapter, where a whole model is wanted; merge it first")
    stored = {} if "gguf_file" in arguments else stored_tensors(target, revision)
    # The library would raise misshapen tensors without their names.
    arguments |= {"trust_remote_code": False, "output_loading_info": True, "ignore_mismatched_sizes": True}
    _refuse_absurd(auto, target, revision, stored, arguments.get("gguf_file"))
    model, loading = auto.from_pretrained(target, revision=revision, **arguments)
    faults = dict.fromkeys(sorted(loading["missing_keys"]), "is missing")
    for tensor, found, wanted in sorted(loading["mismatched_keys"]):
        faults[tensor] = f"is of shape {list(found)}, not {list(wanted)}"
    is_quantized = getattr(model, "hf_quantizer", None) is not None
    # Of a quantized model: the scales of a layer, or its bias of zeros.
    allowed = dict(model.named_modules()).keys() if is_quantized else set()
    # The model's body, where a tensor without a place is a further layer or a bias. A head is outside of it.
    body = {model.base_model_prefix, *(name for of in (model, model.base_model) for name, _ in of.named_children())}
    for tensor in sorted(loading["unexpected_keys"]):
        is_allowed = _BUFFER.search(tensor) or tensor.rpartition(".")[0] in allowed
        # A causal mask is told from a bias by its shape, [1, 1, length, length].
        is_mask = tensor.endswith(".attn.bias") and tensor in stored and stored[tensor].dim() == 4
        if tensor.partition(".")[0] in body and not is_allowed and not is_mask:
            faults[tensor] = "has no place in it"
    if not is_quantized:
        prefix = f"{model.base_model_prefix}."
        floats = {name.removeprefix(prefix) for name, one in model.state_dict().items() if one.is_floating_point()}
        faults |= no_weights({name: one for name, one in stored.items() if name.removeprefix(prefix) in floats})
    _refuse(target, f"the configuration of its {type(model).__name__}", faults)
    return model


def _refuse_absurd(auto: Any, target: str, revision: str | None, stored: Mapping[str, Any], gguf: str | None) -> None:
    """Refuse a configuration of far more weights than the files hold, before memory is taken for them."""
    import torch
    from transformers import AutoConfig

    file = None if gguf is None else find_file(target, gguf, revision)
    num_bytes = sum(tensor.nbytes for tensor in stored.values()) if file is None else file.stat().st_size
    if not num_bytes:
        return  # transformers names the files that it looks for
    further = {} if gguf is None else {"gguf_file": gguf}
    config = AutoConfig.from_pretrained(target, revision=revision, trust_remote_code=False, **further)
    num_layers, described = getattr(config.get_text_config(), "num_hidden_layers", None) or 0, "absurdly many layers"
    if num_layers <= max(1000, len(stored)):
        with torch.device("meta"):
            model = auto.from_config(config, trust_remote_code=False)
        num_weights = sum(tensor.numel() for tensor in (*model.parameters(), *model.buffers()))
        # A quantized weight takes 2 bits or more, any other 2 bytes or more.
        is_packed = gguf is not None or getattr(config, "quantization_config", None) is not None
        if num_weights <= num_bytes * (4 if is_packed else 1) + _SPARE_WEIGHTS:
            return
        described = f"{num_weights:,} weights"
    fault = f"its configuration describes {described}, its files hold {num_bytes:,} bytes of weights"
    raise EngineError(f"{target}: {fault}; restore config.json, or download the model again")


def merge_adapter(model: Any, adapter: str, revision: str | None = None) -> Any:
    """The model with a LoRA adapter (folder or hub id) merged into it, and as many tokens as it was trained with."""
    with plain_errors(adapter, "a LoRA adapter of this model"):
        import torch
        from peft import PeftModel
        from peft.tuners.tuners_utils import BaseTunerLayer

        if not (stored := stored_tensors(adapter, revision, _ADAPTER_FILES)):
            raise OSError(f"it has no tensors, neither {' nor '.join(_ADAPTER_FILES)}")
        # No memory is taken for a rank that no tensor has, and no pattern of module names matches for ever.
        config = read_object(find_file(adapter, ADAPTER_CONFIG, revision) or Path(adapter, ADAPTER_CONFIG))
        ranks, alphas = (config.get(name) or {} for name in ("rank_pattern", "alpha_pattern"))
        longest = max(max(tensor.shape, default=0) for tensor in stored.values())
        if any(rank > longest for rank in (config.get("r") or 0, *ranks.values())):
            raise EngineError(f"{adapter}: no tensor has the rank that its {ADAPTER_CONFIG} tells; restore it")
        given = (*ranks, *alphas, config.get("target_modules"), config.get("exclude_modules"))
        patterns = [rf"(.*\.)?({one})$" for one in given if isinstance(one, str)]
        matches = (re.match(one, name) for one in patterns for name, _ in model.named_modules())
        try_out(partial(list, matches), f"{adapter}: a pattern of module names")
        embeddings, output = model.get_input_embeddings(), model.get_output_embeddings()
        layers = {embeddings} if output is None or output.weight is embeddings.weight else {embeddings, output}
        names = [f"base_model.model.{name}" for name, module in model.named_modules() if module in layers]
        held = [key for name in names for key in (f"{name}.weight", f"{name}.base_layer.weight") if key in stored]
        rows, num_rows = {len(stored[key]) for key in held}, len(embeddings.weight)
        # No row is made up: a layer that grows is one that the adapter holds.
        if len(rows) == 1 and (max(rows) < num_rows or (max(rows) > num_rows and len(held) == len(names))):
            model.resize_token_embeddings(max(rows), mean_resizing=False)
        adapted = PeftModel.from_pretrained(model, adapter, revision=revision, torch_device="cpu")
        found = adapted.load_adapter(adapter, "default", revision=revision, torch_device="cpu")  # peft tells it here
        faults = dict.fromkeys(sorted(found.missing_keys), "is missing")
        for tensor in sorted(found.unexpected_keys):
            # Of resized embeddings peft 0.21 writes copies.
            if re.sub(r"\.(modules_to_save|original_module)\b", "", tensor) not in stored.keys() - {tensor}:
                faults[tensor] = "has no place in it"
        _refuse(adapter, "the model that it is applied to", faults | no_weights(stored))
        # Merged into one of two layers with tied weights, an adapter would change both: each gets its own.
        embeddings, output = model.get_input_embeddings(), model.get_output_embeddings()
        is_adapted = isinstance(embeddings, BaseTunerLayer) or isinstance(output, BaseTunerLayer)
        if output is not None and is_adapted and output.weight is embeddings.weight:
            layer = output.get_base_layer() if isinstance(output, BaseTunerLayer) else output
            layer.weight = torch.nn.Parameter(layer.weight.detach().clone())
            model.config.tie_word_embeddings = False
        return adapted.merge_and_unload()


def _refuse(name: str, wanted: str, faults: Mapping[str, str]) -> None:
    if faults:
        named = ", ".join(" ".join(fault) for fault in [*faults.items()][:3])
        named += f" and {len(faults) - 3} more" if len(faults) > 3 else ""
        fix = "download it again, or name the model that these weights belong to"
        raise EngineError(f"{name}: the checkpoint does not fit {wanted}: {named}; {fix}")


def no_weights(stored: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """Tensors that, read as floats of a model, would be the wrong numbers, or none, and why."""
    import torch

    faults = {}
    for name, tensor in stored.items():
        if not tensor.is_floating_point():
            faults[name] = "has whole numbers"
        elif tensor.dtype.itemsize == 1:
            faults[name] = f"has 8-bit numbers ({str(tensor.dtype).removeprefix('torch.')}) without their scales"
        elif tensor.numel() and not torch.stack(torch.aminmax(tensor)).isfinite().all():
            faults[name] = "has values that are no numbers (NaN or infinite)"
    return faults


def stored_tensors(target: str, revision: str | None, files: Iterable[str] = _WEIGHT_FILES) -> dict[str, torch.Tensor]:
    """The tensors of a folder or hub repository by name, mapped, not read; none where it has none of the files."""
    import torch
    from transformers.modeling_utils import load_state_dict

    model_files(Path(target))  # refuses what is no file of the folder
    index = next((path for name in files if (path := find_file(target, name, revision))), None)
    if index is None:
        return {}
    weight_map = read_object(index).get("weight_map") if index.suffix == ".json" else {"": index.name}
    if not isinstance(weight_map, dict) or not weight_map:
        raise EngineError(f"{index} has no weight_map; download it again")
    stored: dict[str, torch.Tensor] = {}
    for file in sorted(set(map(str, weight_map.values()))):
        if Path(file).is_absolute() or ".." in Path(file).parts:
            raise EngineError(f"{index} names a file outside of the model: {file!r:.200}; download it again")
        path = find_file(target, file, revision)
        try:
            content = {**load_state_dict(path, weights_only=True)}
        except Exception as error:  # of many kinds; torch's advice is to run what code the file may hold
            place = f"{Path(target, file)}"[:300]
            raise OSError(f"{place} is damaged, missing, or holds more than tensors; download it again") from error
        if twice := stored.keys() & content.keys():
            raise EngineError(f"{index}: tensor {min(twice)!r:.200} is in two of its files; download the model again")
        stored |= {name: value for name, value in content.items() if isinstance(value, torch.Tensor)}
    return stored


def load_tokenizer(target: str, revision: str | None) -> Any:
    """A model's tokenizer, tried out. A sentencepiece model without tokenizer.json (Math-Shepherd) is held against
    sentencepiece: of a Mistral, transformers 5.24 would leave out the space that begins a text."""
    with plain_errors(target, "a tokenizer", what="the tokenizer"):
        from transformers import AutoTokenizer, LlamaTokenizer, PreTrainedTokenizerBase

        model_files(Path(target))  # refuses what is no file of the folder
        model_file, file = (find_file(target, f"tokenizer.{kind}", revision) for kind in ("model", "json"))
        for kind in (AutoTokenizer, LlamaTokenizer):
            tokenizer = kind.from_pretrained(target, revision=revision, trust_remote_code=False)
            if not isinstance(tokenizer, PreTrainedTokenizerBase):
                raise ValueError(f"its tokenizer_config.json names {type(tokenizer).__name__}, which is none")
            try_out(partial(probe, tokenizer), f"{target}: the tokenizer or its chat template")
            tokenizer.encode("a")  # an error is told here
            if model_file is None or file is not None:
                return tokenizer
            from sentencepiece import SentencePieceProcessor

            expected = SentencePieceProcessor(model_file=str(model_file)).encode(_PROBE)
            if tokenizer.encode(_PROBE, add_special_tokens=False) == expected:
                return tokenizer
        raise EngineError(f"{target}: transformers does not encode as its tokenizer.model; add its tokenizer.json")


def find_file(target: str, name: str, revision: str | None) -> Path | None:
    """A file of a folder or hub repository (of its cache, where the hub cannot be reached), or None."""
    if not Path(target).is_dir():
        from transformers.utils import cached_file

        _work_offline_without_hub()
        lenient = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
        found = cached_file(target, name, revision=revision, **lenient)
        return None if found is None else Path(found)
    if (path := own_file(Path(target), name)) is None:
        return None
    with path.open("rb") as stream:
        if stream.read(40).startswith(b"version https://git-lfs.github.com/spec/"):
            raise EngineError(f"{path} is a Git LFS pointer, not the file itself; run: git lfs pull")
    return path


def refuse_missing(name: str, target: str) -> None:
    """Raise an `EngineError` where `target` is written as a path and there is nothing."""
    if target.startswith((".", "/", "~")) and not Path(target).exists():
        raise EngineError(f"model {name!r}: there is no such folder or file")


@cache
def _work_offline_without_hub() -> None:
    """Work from the hub's cache where it does not answer: each file would be asked for a minute long."""
    from huggingface_hub import constants, get_session

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # its attempts are told in one error
    # A proxy may be slow, and what lies behind it is not for us to time.
    if constants.HF_HUB_OFFLINE or urlsplit(constants.ENDPOINT).scheme in getproxies():
        return
    try:
        get_session().head(constants.ENDPOINT, timeout=5.0)
    except Exception as error:  # those of the client's HTTP library
        logger.warning("%s does not answer (%s): its cache is used", constants.ENDPOINT, type(error).__name__)
        constants.HF_HUB_OFFLINE = True


def identity(target: str, revision: str | None) -> str | None:
    """A fingerprint of a folder or file, the commit of a hub repository; None where the cache does not tell it."""
    return fingerprint(Path(target)) if Path(target).exists() else commit(target, revision)


def commit(target: str, revision: str | None) -> str | None:
    """The commit that a hub repository was loaded from; None where the hub's cache does not tell it."""
    paths = (find_file(target, name, revision) for name in ("config.json", ADAPTER_CONFIG))
    # The cache keeps a file as `snapshots/COMMIT/NAME`.
    return next((path.parent.name for path in paths if path and path.parent.parent.name == "snapshots"), None)


def named_base(adapter: str, revision: str | None = None) -> tuple[str, str | None] | None:
    """The base model that a LoRA adapter names, and its revision; None of what is no adapter."""
    if (path := find_file(adapter, ADAPTER_CONFIG, revision)) is None:
        return None
    config = read_object(path)
    if not isinstance(base := config.get("base_model_name_or_path"), str) or not base:
        raise EngineError(f"{path} names no base model; name it, and give the adapter as adapter=")
    return base, config.get("revision")


def adapter_details(adapter: str, revision: str | None, base: str, base_revision: str | None) -> dict[str, Any]:
    """What a manifest says of an adapter and of the model that it is applied to."""
    details = {"adapter": adapter, "adapter_revision": identity(adapter, revision), "base": base}
    return details | {"base_revision": identity(base, base_revision) or base_revision}
