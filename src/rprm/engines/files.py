"""Files of a model, in a folder or in the hub's cache, and what identifies them."""

from __future__ import annotations

import hashlib
import json
import logging
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import Any

from rprm.errors import EngineError

logger = logging.getLogger(__name__)

#: Names of the files that make a model: weights, configuration, tokenizer, templates.
_MODEL_FILES = (
    *("*.safetensors", "*.safetensors.index.json", "*model*.bin", "*model*.bin.index.json", "*.gguf", "config.json"),
    *("generation_config.json", "adapter_config.json", "quant*_config.json", "tokenizer.json", "tokenizer_config.json"),
    *("tokenizer.model*", "*.model", "*.tiktoken", "tekken.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "vocab.txt", "merges.txt", "chat_template.json", "*.jinja", "rprm_*.toml", "rprm_*.json"),
)
ADAPTER_CONFIG = "adapter_config.json"  # of PEFT


def find_file(target: str, name: str, revision: str | None) -> Path | None:
    """A file of a folder or hub repository (of its cache, where the hub cannot be reached), or None."""
    if not Path(target).is_dir():
        from transformers.utils import cached_file

        _work_offline_without_hub()
        lenient = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
        found = cached_file(target, name, revision=revision, **lenient)
        return None if found is None else Path(found)
    path = Path(target, name)
    if not path.is_file():
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
    from urllib.parse import urlsplit
    from urllib.request import getproxies

    from huggingface_hub import constants, get_session

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


def fingerprint(path: Path) -> str:
    """A short hash of a file, or of the files in a folder that make a model.

    Of a file over 1 MiB it takes the size and 16 evenly spaced pieces of 64 KiB: 15 GB of weights take no time.
    """
    files = {path.name: path}
    if path.is_dir():
        found = [*path.iterdir(), *path.glob("additional_chat_templates/*")]
        parts = [file for file in found if any(fnmatch(file.name, pattern) for pattern in _MODEL_FILES)]
        visible = sorted(file for file in parts if file.is_file() and not file.name.startswith("."))
        files = {file.relative_to(path).as_posix(): file for file in visible}
    digest = hashlib.sha256()
    for name, file in files.items():
        size = file.stat().st_size
        digest.update(f"{name}\0{size}\0".encode())
        with file.open("rb") as stream:
            for piece in range(16 if size > 1 << 20 else 1):
                stream.seek(piece * (size - (1 << 16)) // 15)
                digest.update(stream.read(1 << 16 if size > 1 << 20 else -1))
    return f"sha256:{digest.hexdigest()[:16]}"


def commit(target: str, revision: str | None) -> str | None:
    """The commit that a hub repository was loaded from; None where the hub's cache does not tell it."""
    paths = (find_file(target, name, revision) for name in ("config.json", ADAPTER_CONFIG))
    # The cache keeps a file as `snapshots/COMMIT/NAME`.
    commits = (path.parent.name for path in paths if path is not None and path.parent.parent.name == "snapshots")
    return next(commits, None)


def named_base(adapter: str, revision: str | None = None) -> tuple[str, str | None] | None:
    """The base model that a LoRA adapter names, and its revision; None of what is no adapter."""
    path = find_file(adapter, ADAPTER_CONFIG, revision)
    if path is None:
        return None
    config = read_object(path)
    if not isinstance(base := config.get("base_model_name_or_path"), str) or not base:
        raise EngineError(f"{path} names no base model; name it, and give the adapter as adapter=")
    return base, config.get("revision")


def adapter_details(adapter: str, revision: str | None, base: str, base_revision: str | None) -> dict[str, Any]:
    """What a manifest says of an adapter and of the model that it is applied to."""
    details = {"adapter": adapter, "adapter_revision": identity(adapter, revision), "base": base}
    return details | {"base_revision": identity(base, base_revision) or base_revision}


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object of a file; an `EngineError` where it is none."""
    try:
        value = json.loads(path.read_bytes())
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise EngineError(f"{path} is no JSON object; restore it")
    return value
