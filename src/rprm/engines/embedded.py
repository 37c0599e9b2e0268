"""The default: a judge of 2M parameters that ships with this package, so that `rprm` works out of the box.

It comes out of the lab (`rprm lab`), and knows the lab's word problems and no other mathematics: see its card,
`rprm/embedded/judge/README.md`.
"""

from __future__ import annotations

from pathlib import Path

from rprm.embedded import JUDGE
from rprm.engines.packaged import PackagedEngine


class EmbeddedEngine(PackagedEngine):
    """The judge that ships with this package."""

    kind = "embedded"
    rows = 64

    @staticmethod
    def locate() -> Path:
        return JUDGE
