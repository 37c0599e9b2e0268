"""Checkpoints of a killed training: which is whole, and where to resume.

The trainer writes `checkpoint-N` in place and, on one process, `trainer_state.json` last. A kill can leave the newest
folder without some of its files, or with a file cut short. Such a folder is recognised from its files alone and renamed
to `torn-checkpoint-N` (nothing is deleted, and the trainer's own rotation no longer counts it); the one before is used.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rprm.errors import RunError

_NAME = re.compile(r"checkpoint-(\d+)")
_STATE = "trainer_state.json"


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint: its folder, and the number of optimizer steps it stands at."""

    path: Path
    step: int

    @property
    def stopped(self) -> bool:
        """Whether training had ended with this step: all steps were done, or it was stopped early."""
        state = json.loads((self.path / _STATE).read_bytes())
        if state["global_step"] >= state["max_steps"]:
            return True
        control = state.get("stateful_callbacks", {}).get("TrainerControl", {})
        return bool(control.get("args", {}).get("should_training_stop", False))


def last_checkpoint(folder: Path, *, num_processes: int = 1) -> Checkpoint | None:
    """The last complete checkpoint below `folder`; None where there is none.

    Torn ones newer than it are set aside: renamed to `torn-checkpoint-N`. In distributed training this is the main
    process's work.

    Args:
        folder: the trainer's `output_dir`.
        num_processes: each process leaves the state of its random numbers in a checkpoint; all must be there.

    Raises:
        RunError: checkpoints were written, and every one of them is torn.
    """
    found = sorted(_checkpoints(folder), key=lambda checkpoint: checkpoint.step, reverse=True)
    for checkpoint in found:
        if defect(checkpoint.path, num_processes=num_processes) is None:
            return checkpoint
        _set_aside(checkpoint.path)
    return None


def best_checkpoint(last: Checkpoint) -> Checkpoint:
    """The checkpoint with the lowest validation loss, the first of equals; `last` where no validation loss is a number.

    Raises:
        RunError: it is gone.
    """
    step = json.loads((last.path / _STATE).read_bytes()).get("best_global_step")
    if step is None:
        return last
    path = last.path.with_name(f"checkpoint-{step}")
    if not path.is_dir():
        raise RunError(f"{path}, the one with the lowest validation loss, is gone; name a new run folder")
    return Checkpoint(path, step)


def defect(path: Path, *, num_processes: int = 1) -> str | None:
    """What makes a checkpoint folder unfit to go on from, in words; None where it is complete."""
    state = _read_json(path / _STATE)
    if not isinstance(state, dict):
        return f"{_STATE} is missing or cut short"
    if state.get("global_step") != int(path.name.rpartition("-")[2]):
        return f"{_STATE} is of step {state.get('global_step')}"
    if any(path.glob("pytorch_model_fsdp*")):
        # FSDP: folders of torch.distributed.checkpoint, which get their `.metadata` last, or one file each.
        whole = any(path.glob("optimizer_[0-9]*/.metadata")) or (path / "optimizer.bin").is_file()
        sharded = [entry for entry in path.glob("*_[0-9]") if entry.is_dir()]
        if missing := [entry.name for entry in sharded if not (entry / ".metadata").is_file()]:
            return f"{missing[0]} has no .metadata"
        if not whole:
            return "it has no optimizer state"
    elif (path / "latest").is_file():
        if not (path / (path / "latest").read_text().strip()).is_dir():
            return "the folder named in latest is missing"
    else:
        for name in ("optimizer.pt", "scheduler.pt"):
            if not zipfile.is_zipfile(path / name):
                return f"{name} is missing or cut short"
        if not any(path.glob("*.safetensors")):
            return "it has no weights"
    wanted = ["rng_state.pth"] if num_processes == 1 else [f"rng_state_{rank}.pth" for rank in range(num_processes)]
    for file in (*path.glob("*.pt"), *path.glob("*.bin"), *(path / name for name in wanted)):
        # torch writes a zip file; its directory stands at its end.
        if file.name != "training_args.bin" and not zipfile.is_zipfile(file):
            return f"{file.name} is missing or cut short"
    if (index := path / "model.safetensors.index.json").exists():
        shards = _read_json(index)
        if not isinstance(shards, dict):
            return f"{index.name} is cut short"
        if missing := sorted({name for name in shards["weight_map"].values() if not (path / name).is_file()}):
            return f"{missing[0]} is missing"
    for file in path.glob("*.safetensors"):
        if not _is_whole(file):
            return f"{file.name} is cut short"
    return None


def _is_whole(file: Path) -> bool:
    """Whether a safetensors file is as long as its header says."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "np"):
            return True
    except (SafetensorError, OSError):
        return False


def _checkpoints(folder: Path) -> Iterator[Checkpoint]:
    if folder.is_dir():
        for path in folder.iterdir():
            if path.is_dir() and (match := _NAME.fullmatch(path.name)):
                yield Checkpoint(path, int(match[1]))


def _set_aside(path: Path) -> None:
    aside = path.with_name(f"torn-{path.name}")
    number = 1
    while aside.exists():
        number += 1
        aside = path.with_name(f"torn-{path.name}.{number}")
    try:
        path.rename(aside)
    except OSError as error:
        raise RunError(f"{path} is torn and cannot be set aside: {error.strerror}; move it elsewhere") from error


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
