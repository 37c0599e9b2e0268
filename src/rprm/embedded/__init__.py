"""The judge that ships with this package (`--model embedded`), made in the lab, and what it knows (`scope`)."""

from __future__ import annotations

from pathlib import Path

#: Folder of weights, tokenizer, template and card.
JUDGE = Path(__file__).parent / "judge"
