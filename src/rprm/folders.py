"""The files of a model's folder: all of them in it, none a pipe; what identifies the model; and work under limits."""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
import warnings
from collections.abc import Callable
from contextlib import suppress
from fnmatch import translate
from pathlib import Path
from typing import Any

from rprm.errors import EngineError

#: Names of the files that make a model: weights, configuration, tokenizer, templates.
_MODEL_FILES = (
    *("*.safetensors", "*.safetensors.index.json", "*model*.bin", "*model*.bin.index.json", "*.gguf", "config.json"),
    *("generation_config.json", "adapter_config.json", "quant*_config.json", "tokenizer.json", "tokenizer_config.json"),
    *("tokenizer.model*", "*.model", "*.tiktoken", "tekken.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "vocab.txt", "merges.txt", "chat_template.json", "*.jinja", "rprm_*.toml", "rprm_*.json"),
)
_IS_MODEL_FILE = re.compile("|".join(map(translate, _MODEL_FILES)))
_WEIGHTS = (".safetensors", ".bin", ".gguf")
_MAX_BYTES = 1 << 26  #: of a file that is no weights; the largest tokenizers have half as many
_SECONDS, _MEMORY = 2, 1 << 30  #: of a trial


def own_file(folder: Path, name: str) -> Path | None:
    """A file of a model's folder, or None; `EngineError`: it is a pipe or a device, lies elsewhere, or is too large."""
    path = folder / name
    if not os.path.lexists(path) or path.is_dir():
        return None
    if not path.is_file():
        raise EngineError(f"{path} is no file; put the model's own in its place")
    own, place = folder.resolve(), path.resolve()
    # Snapshots of the hub's cache are links to its blobs.
    blobs = own.parent.parent / "blobs" if own.parent.name == "snapshots" else own
    if not (place.is_relative_to(own) or place.is_relative_to(blobs)):
        raise EngineError(f"{path} lies outside of the model's folder, at {place}; copy it into the folder")
    if path.suffix not in _WEIGHTS and path.stat().st_size > _MAX_BYTES:
        raise EngineError(f"{path} is larger than {_MAX_BYTES >> 20} MiB; it cannot be what its name says")
    return path


def model_files(folder: Path) -> list[Path]:
    """The files in a folder that make a model, each an `own_file`; none of what is no folder."""
    if not folder.is_dir():
        return []
    found = [*folder.iterdir(), *folder.glob("additional_chat_templates/*")]
    names = sorted(path.relative_to(folder) for path in found if _IS_MODEL_FILE.fullmatch(path.name))
    files = (own_file(folder, str(name)) for name in names if not name.name.startswith("."))
    return [file for file in files if file is not None]


def fingerprint(path: Path) -> str:
    """A short hash of a file, or of the files in a folder that make a model. Of one over 1 MiB it takes the size and 16
    evenly spaced pieces of 64 KiB: 15 GB of weights take no time."""
    folder, files = (path, model_files(path)) if path.is_dir() else (path.parent, [path])
    digest = hashlib.sha256()
    for file in files:
        size = file.stat().st_size
        digest.update(f"{file.relative_to(folder).as_posix()}\0{size}\0".encode())
        with file.open("rb") as stream:
            for piece in range(16 if size > 1 << 20 else 1):
                stream.seek(piece * (size - (1 << 16)) // 15)
                digest.update(stream.read(1 << 16 if size > 1 << 20 else -1))
    return f"sha256:{digest.hexdigest()[:16]}"


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object of a file; an `EngineError` where it is none."""
    with suppress(ValueError, RecursionError):
        if isinstance(value := json.loads(path.read_bytes()), dict):
            return value
    raise EngineError(f"{path} is no JSON object; restore it")


def try_out(work: Callable[[], Any], what: str) -> None:
    """Do `work`, which takes milliseconds for what is sound, in a child under limits of the kernel. `EngineError`:
    `what` broke one, or crashed; what it raises is left to who does it for good. Linux alone forks safely here."""
    if sys.platform != "linux":
        return
    from multiprocessing import get_context

    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):  # of a fork beside threads
        (child := get_context("fork").Process(target=_within_limits, args=(work,), daemon=True)).start()
    child.join(5 * _SECONDS)
    if child.exitcode is None:  # it waits, for a lock that nobody there will release: that tells nothing
        child.kill()
    elif child.exitcode:
        limits = f"{_SECONDS} seconds or {_MEMORY >> 30} GiB of memory"
        raise EngineError(f"{what} takes more than {limits} for a short text, or crashes; use another model")


def _within_limits(work: Callable[[], Any]) -> None:
    import resource  # Windows has none

    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # its threads were not forked
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    for name, most in {"CORE": 0, "AS": used + _MEMORY, "CPU": _SECONDS}.items():
        resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (most, most))
    try:
        work()
    except Exception as error:  # a panic of Rust is none; both end the child with another exit code
        if isinstance(error, MemoryError):
            raise
    os._exit(0)
