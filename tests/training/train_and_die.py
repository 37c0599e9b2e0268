"""Trains as told and kills itself with SIGKILL at a step: `train_and_die.py KIND DATA MODEL OUTPUT SETTINGS STEP`."""

from __future__ import annotations

import json
import os
import signal
import sys


def main() -> None:
    import torch

    from rprm.training.dpo import train_dpo
    from rprm.training.grpo import train_grpo
    from rprm.training.lifecycle import TrainingCallbacks
    from rprm.training.settings import DPOSettings, GRPOSettings, SFTSettings
    from rprm.training.sft import train_sft

    torch.set_num_threads(1)
    kind, data, model, output, settings, last = sys.argv[1:]

    def die(step: int, num_steps: int) -> None:
        if step == int(last):
            os.kill(os.getpid(), signal.SIGKILL)

    callbacks = TrainingCallbacks(on_step=die)
    train, kinds = {
        "sft": (train_sft, SFTSettings), "dpo": (train_dpo, DPOSettings), "grpo": (train_grpo, GRPOSettings),
    }[kind]  # fmt: skip
    train(data, model=model, output=output, settings=kinds(**json.loads(settings)), callbacks=callbacks)


if __name__ == "__main__":
    main()
