"""The models that ship with this package: all come out of the lab, and know its word problems alone.

judge/   what `--model embedded` judges with
base/    what the lab's experiments train judges from
policy/  what they guide
"""

from __future__ import annotations

from pathlib import Path

_FOLDER = Path(__file__).parent

#: Folders of weights, tokenizer, template and card.
JUDGE, BASE, POLICY = _FOLDER / "judge", _FOLDER / "base", _FOLDER / "policy"
