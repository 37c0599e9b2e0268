"""The lab: a small world with true labels, its teacher, and the paper's experiments in it, as commands of `rprm`."""

from __future__ import annotations

from pathlib import Path

_MODELS = Path(__file__).parent / "models"

#: Folders of weights, tokenizer, template and card: what judges are trained from, and what they guide.
BASE, POLICY = _MODELS / "base", _MODELS / "policy"
