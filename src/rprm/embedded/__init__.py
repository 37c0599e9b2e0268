"""The judge that ships with this package: what `--model embedded` judges with, and what it knows (`scope`).

It comes out of the lab (the distribution `rprm-lab`), and knows the lab's word problems alone.
"""

from __future__ import annotations

from pathlib import Path

#: Folder of weights, tokenizer, template and card.
JUDGE = Path(__file__).parent / "judge"
