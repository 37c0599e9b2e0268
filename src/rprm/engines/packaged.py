"""Models that a Python package carries: named by their kind alone, run as `transformers:` runs any."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import ClassVar

from rprm.engines.transformers import TransformersEngine


class PackagedEngine(TransformersEngine):
    """A model that is at hand without a path. Options as for `transformers:`, but for those that name other weights.

    Attributes:
        kind: its spec, before any options.
        rows: completions decoded at once and requests taken, where the options say nothing.
    """

    kind: ClassVar[str]
    rows: ClassVar[int]

    def __init__(
        self,
        spec: str = "",
        *,
        dtype: str = "auto",
        device: str = "auto",
        max_rows: int | None = None,
        num_threads: int | None = None,
        concurrency: int | None = None,
    ) -> None:
        super().__init__(
            str(self.locate()),
            spec=spec or self.kind,
            dtype=dtype,
            device=device,
            max_rows=self.rows if max_rows is None else max_rows,
            num_threads=num_threads,
            concurrency=self.rows if concurrency is None else concurrency,
        )

    @staticmethod
    @abstractmethod
    def locate() -> Path:
        """Where the model lies.

        Raises:
            EngineError: it is not installed.
        """
