"""Files of a model, in a folder or in the hub's cache, and what identifies them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rprm.engines.tokens import fingerprint
from rprm.errors import EngineError


def find_file(target: str, name: str, revision: str | None) -> Path | None:
    """A file of a folder or hub repository; None where it has none of this name.

    A hub that cannot be reached counts as one without the file: what is in the local cache is used without it.
    """
    folder = Path(target)
    if folder.is_dir():
        return folder / name if (folder / name).is_file() else None
    from transformers.utils import cached_file

    found = cached_file(
        target,
        name,
        revision=revision,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return None if found is None else Path(found)


def identity(target: str, revision: str | None) -> str | None:
    """A fingerprint of a folder or file, the commit of a hub repository; None where the cache does not tell it."""
    path = Path(target)
    return fingerprint(path) if path.exists() else commit(target, revision)


def commit(target: str, revision: str | None) -> str | None:
    """The commit that a hub repository was loaded from; None where the hub's cache does not tell it.

    transformers 5.23 no longer leaves it in the model's configuration.
    """
    path = find_file(target, "config.json", revision)
    # The cache keeps a file as `snapshots/COMMIT/NAME`.
    return path.parent.name if path is not None and path.parent.parent.name == "snapshots" else None


def read_object(path: Path) -> dict[str, Any]:
    """A file of one JSON object.

    Raises:
        EngineError: it is none.
    """
    try:
        value = json.loads(path.read_bytes())
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise EngineError(f"{path} is no JSON object; restore it")
    return value
