"""Tells what the embedded model knows, so that nobody takes its rewards for more than they are."""

from __future__ import annotations

from rich.console import Console

from rprm.records import Solution

_KNOWS = "the embedded model knows the lab's word problems only, with whole numbers up to 9,999"
_OUTSIDE = "outside what the embedded model knows"
_FIX = "name a model with --model, such as r-prm-7b on a GPU"


class EmbeddedScope:
    """Marks and counts the solutions outside of what the embedded model knows; silent for any other model's spec."""

    def __init__(self, model: str | None) -> None:
        self._is_embedded = model is not None and model.partition("?")[0] == "embedded"
        self.num_solutions = self.num_outside = 0
        if self._is_embedded:
            _say(f"{_KNOWS}; for other mathematics {_FIX}", "dim")

    def note(self, solution: Solution) -> str | None:
        """Count a judged solution; why its rewards mean nothing, None where it may be of the lab's world."""
        from rprm.embedded import outside_world

        self.num_solutions += 1
        if not self._is_embedded or (reason := outside_world(solution)) is None:
            return None
        self.num_outside += 1
        return f"{_OUTSIDE}: {reason}; {_FIX}"

    def tell(self) -> None:
        """Say how many solutions lay outside."""
        if self.num_outside:
            counts = f"{self.num_outside:,} of {self.num_solutions:,} solutions lie {_OUTSIDE}"
            _say(f"{counts}: their rewards mean nothing; {_FIX}", "yellow")


def _say(text: str, style: str) -> None:
    Console(stderr=True, highlight=False).print(text, style=style, markup=False, soft_wrap=True)
