"""A causal language model and its tokenizer, from a folder, the hub, a GGUF file or a LoRA adapter.

Weights are the checkpoint's, all of them, and no code of a repository is ever run.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rprm.engines.files import adapter_details, find_file, named_base
from rprm.errors import EngineError

if TYPE_CHECKING:
    import torch

#: Tensors named in a message.
_NUM_NAMED = 3


@dataclass(frozen=True)
class LoadedModel:
    """A model on the CPU. `details` tell of the adapter that is merged into it and of its base, for manifests."""

    model: Any
    tokenizer: Any
    details: dict[str, Any] = field(default_factory=dict)


def load_model(
    target: str, *, spec: str, dtype: torch.dtype, adapter: str | None = None, revision: str | None = None
) -> LoadedModel:
    """Load a model to run; an adapter is merged into it.

    Args:
        target: a hub id, a folder, a GGUF file, or the folder or hub id of a LoRA adapter, which names its base.
        spec: the model, for messages.
        dtype: of the weights.
        adapter: a LoRA adapter (folder or hub id).
        revision: of the hub repository `target`; a tag or commit.

    Raises:
        EngineError: it cannot be loaded, a tensor is missing or of another shape, or it needs code of its repository.
    """
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    arguments: dict[str, Any] = {"trust_remote_code": False}
    base, base_revision, adapter_revision = target, revision, None
    try:
        if target.endswith(".gguf"):
            path = Path(target)
            if not path.is_file():
                raise OSError("no such file")
            arguments["gguf_file"] = path.name
            tokenizer = AutoTokenizer.from_pretrained(str(path.parent), **arguments)
            arguments["quantization_config"] = GgufConfig(dequantize=True)
            source = str(path.parent)
        else:
            tokenizer_source = target
            if adapter is None and (named := named_base(target, revision)) is not None:
                adapter, adapter_revision, (base, base_revision) = target, revision, named
                tokenizer_source = target if find_file(target, "tokenizer_config.json", revision) else base
            arguments["revision"] = base_revision
            tokenizer = AutoTokenizer.from_pretrained(
                tokenizer_source,
                trust_remote_code=False,
                revision=revision if tokenizer_source == target else base_revision,
            )
            source = base
        # Tensors of another shape are told apart from missing ones below, rather than by an exception of many lines.
        model, loading = AutoModelForCausalLM.from_pretrained(
            source, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True, **arguments
        )
        refuse_gaps(f"{spec}: {base}" if base != target else spec, model, loading)
        if adapter is None:
            return LoadedModel(model, tokenizer)
        model = _merge(model, adapter, adapter_revision)
    except ImportError as error:
        raise EngineError(f'{spec}: {error}; pip install "rprm[local]" brings all of it') from None
    except (OSError, ValueError, KeyError, RuntimeError, UserWarning, SafetensorError) as error:
        raise EngineError(f"{spec}: {_reason(error)}") from error
    return LoadedModel(
        model, tokenizer, adapter_details(adapter, adapter_revision, base=base, base_revision=base_revision)
    )


def _merge(model: Any, adapter: str, revision: str | None) -> Any:
    from peft import PeftModel

    with warnings.catch_warnings():
        # Of an adapter that lacks tensors peft only warns, and takes random ones.
        warnings.filterwarnings("error", message=".*missing adapter keys", category=UserWarning)
        return PeftModel.from_pretrained(model, adapter, revision=revision).merge_and_unload()


def refuse_gaps(name: str, model: Any, loading: dict[str, Any]) -> None:
    """Refuse a model of which a tensor is not the checkpoint's; tied weights are not missing.

    Args:
        name: of the model, for the message.
        model: as it was loaded.
        loading: what `from_pretrained(..., output_loading_info=True)` says of it.

    Raises:
        EngineError: a tensor is missing or of another shape.
    """
    gaps = [(tensor, "missing") for tensor in sorted(loading["missing_keys"])]
    gaps += [
        (tensor, f"of shape {list(found)}, not {list(wanted)}")
        for tensor, found, wanted in sorted(loading["mismatched_keys"])
    ]
    if gaps:
        named = ", ".join(f"{tensor} is {fault}" for tensor, fault in gaps[:_NUM_NAMED])
        more = f" and {len(gaps) - _NUM_NAMED} more" if len(gaps) > _NUM_NAMED else ""
        raise EngineError(
            f"{name}: the checkpoint is not a whole {type(model).__name__}: {named}{more}; download it again, or name "
            "the model that these weights belong to"
        )


def _reason(error: Exception) -> str:
    if "trust_remote_code" in str(error):
        return "the model needs code of its repository, which is never run; use a model that transformers knows itself"
    first, *rest = str(error).strip().splitlines() or [type(error).__name__]
    reason = f"{first} {rest[0].strip()}" if first.endswith(":") and rest else first
    return (
        f"cannot load the model: {reason} (give a folder with a causal language model, a GGUF file, or a hub id that "
        "this machine can reach)"
    )
