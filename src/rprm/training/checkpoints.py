"""The checkpoints of a training: which of them is whole, and where to go on."""

from __future__ import annotations

import json
import os
from itertools import count
from pathlib import Path
from zlib import crc32

from rprm.errors import RunError
from rprm.files import read_json, write_atomically

#: In a checkpoint: names, sizes and checksums of its files.
_FILES = "rprm_files.json"


class Checkpoint:
    """A complete checkpoint: its folder, the number of optimizer steps it stands at, and the trainer's state."""

    def __init__(self, path: Path) -> None:
        self.path, self.step = path, int(path.name.removeprefix("checkpoint-"))
        self.state = read_json(path / "trainer_state.json")

    @property
    def stopped(self) -> bool:
        """Whether training had ended with this step: all steps were done, or it was stopped early."""
        control = self.state.get("stateful_callbacks", {}).get("TrainerControl", {})
        return bool(self.step >= self.state["max_steps"] or control.get("args", {}).get("should_training_stop"))

    @property
    def best(self) -> Checkpoint:
        """The best one by its evaluation, the first of equals; itself where no evaluation gave a number."""
        if (step := self.state.get("best_global_step")) is None:
            return self
        path = self.path.with_name(f"checkpoint-{step}")
        if not path.is_dir():
            raise RunError(f"{path}, the best one by its evaluation, is gone; name a new run folder")
        return Checkpoint(path)


def last_checkpoint(folder: Path) -> Checkpoint | None:
    """The last whole checkpoint below `folder`. Newer ones, torn by a kill, are renamed to `torn-checkpoint-N`, which
    the trainer's own rotation does not count."""
    from transformers.trainer_utils import get_last_checkpoint

    while folder.is_dir() and (found := get_last_checkpoint(str(folder))) is not None:
        path = Path(found)
        if is_whole(path):
            return Checkpoint(path)
        names = (f"torn-{path.name}" + (f".{number}" if number > 1 else "") for number in count(1))
        path.rename(next(folder / name for name in names if not (folder / name).exists()))
    return None


def seal(path: Path) -> None:
    """Mark a checkpoint as whole: the trainer writes it in place, and a list of its files comes last, when they are on
    the disk."""
    files = (file for file in path.rglob("*") if file.is_file() and file.name != _FILES)
    found = {str(file.relative_to(path)): _size_and_crc(file, sync=True) for file in files}
    write_atomically(path / _FILES, json.dumps(found))


def is_whole(path: Path) -> bool:
    """Whether a checkpoint was sealed, and has every file as it was then (before checksums: in its size)."""
    try:
        sealed = read_json(path / _FILES).items()
        sizes = [(path / name).stat().st_size == (of if isinstance(of, int) else of[0]) for name, of in sealed]
        is_same = (isinstance(of, int) or _size_and_crc(path / name) == of for name, of in sealed)
        return bool(sizes) and all(sizes) and all(is_same)
    except (RunError, OSError, TypeError, IndexError):
        return False


def _size_and_crc(file: Path, *, sync: bool = False) -> list[int]:
    """Half a second a gigabyte."""
    size = crc = 0
    with file.open("r+b" if sync else "rb") as stream:
        while block := stream.read(1 << 20):
            size, crc = size + len(block), crc32(block, crc)
        if sync:
            os.fsync(stream.fileno())
    return [size, crc]
