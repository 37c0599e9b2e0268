"""What the cards of data sets are made of."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


def table(*head: str, rows: Iterable[tuple[Any, ...]]) -> str:
    """A table in Markdown, its first column a name and the others numbers."""
    lines = [f"| {' | '.join(head)} |", f"|---{'|---:' * (len(head) - 1)}|"]
    for row in rows:
        lines.append(f"| {' | '.join(f'{cell:,}' if isinstance(cell, int) else cell for cell in row)} |")
    return "\n".join(lines) + "\n"
