"""Put a trained model into its package, `rprm` or `rprm_lab`: weights in bfloat16, its card beside them.

    python recipes/ship.py runs/base/model base
    python recipes/ship.py runs/lab/seed-0/rounds/round-3/dpo/model judge

The card, README.md, is written by hand and stays as it is.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from rprm.embedded import JUDGE
from rprm.prompts.library import MODEL_POLICY_TEMPLATE, MODEL_TEMPLATE
from rprm_lab import BASE, POLICY

PLACES = {"judge": JUDGE, "base": BASE, "policy": POLICY}
#: What comes along with the weights, where the model has it.
FILES = ("tokenizer.json", "tokenizer_config.json", MODEL_TEMPLATE, MODEL_POLICY_TEMPLATE)


def ship(model: Path, place: Path) -> int:
    """Write the model's folder; returns the bytes in it."""
    place.mkdir(parents=True, exist_ok=True)
    AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16).save_pretrained(place)
    for name in FILES:
        if (model / name).is_file():
            shutil.copyfile(model / name, place / name)
    return sum(file.stat().st_size for file in place.iterdir())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="folder of the trained model")
    parser.add_argument("place", choices=PLACES)
    arguments = parser.parse_args()
    print(f"{PLACES[arguments.place]}: {ship(arguments.model, PLACES[arguments.place]):,} bytes")
