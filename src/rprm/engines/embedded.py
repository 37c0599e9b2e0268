"""The default: a judge of 2M parameters that ships with this package, so that `rprm` works out of the box.

It comes out of the lab (`rprm lab`), and knows the lab's word problems and no other mathematics: see its card,
`rprm/embedded/judge/README.md`.
"""

from __future__ import annotations

from rprm.embedded import JUDGE
from rprm.engines.transformers import TransformersEngine


class EmbeddedEngine(TransformersEngine):
    """The judge that ships with this package. Options as for `transformers:`."""

    def __init__(
        self,
        spec: str = "embedded",
        *,
        dtype: str = "auto",
        device: str = "auto",
        max_rows: int = 64,
        num_threads: int | None = None,
        concurrency: int = 64,
    ) -> None:
        super().__init__(
            str(JUDGE),
            spec=spec,
            dtype=dtype,
            device=device,
            max_rows=max_rows,
            num_threads=num_threads,
            concurrency=concurrency,
        )
