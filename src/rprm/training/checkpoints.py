"""What a training leaves on its way: `metrics.jsonl`, and checkpoints, from which a killed run resumes.

The trainer writes `checkpoint-N` in place; once it is whole, a list of its files and their sizes is put in. One torn by
a kill is renamed to `torn-checkpoint-N` (the trainer's own rotation no longer counts it); the one before is used.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from rprm.errors import RunError
from rprm.runs import LineWriter, write_atomically

METRICS = "metrics.jsonl"
#: In a checkpoint: names and sizes of its files.
_SIZES = "rprm_files.json"


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint: its folder, and the number of optimizer steps it stands at."""

    path: Path
    step: int

    @property
    def state(self) -> Any:
        """The trainer's."""
        return json.loads((self.path / "trainer_state.json").read_bytes())

    @property
    def stopped(self) -> bool:
        """Whether training had ended with this step: all steps were done, or it was stopped early."""
        state = self.state
        control = state.get("stateful_callbacks", {}).get("TrainerControl", {})
        was_stopped = control.get("args", {}).get("should_training_stop")
        return bool(state["global_step"] >= state["max_steps"] or was_stopped)

    @property
    def best(self) -> Checkpoint:
        """The one with the lowest validation loss, the first of equals; itself where no validation loss is a number."""
        if (step := self.state.get("best_global_step")) is None:
            return self
        path = self.path.with_name(f"checkpoint-{step}")
        if not path.is_dir():
            raise RunError(f"{path}, the one with the lowest validation loss, is gone; name a new run folder")
        return Checkpoint(path, step)


def last_checkpoint(folder: Path) -> Checkpoint | None:
    """The last complete checkpoint below `folder`; torn ones newer than it are set aside."""
    steps = (path.name.removeprefix("checkpoint-") for path in folder.glob("checkpoint-*") if path.is_dir())
    for step in sorted((int(step) for step in steps if step.isdecimal()), reverse=True):
        path = folder / f"checkpoint-{step}"
        if is_whole(path):
            return Checkpoint(path, step)
        names = (f"torn-{path.name}" + (f".{number}" if number > 1 else "") for number in count(1))
        path.rename(next(folder / name for name in names if not (folder / name).exists()))
    return None


def seal(path: Path) -> None:
    """Mark a checkpoint as whole."""
    write_atomically(path / _SIZES, json.dumps(_sizes(path)))


def is_whole(path: Path) -> bool:
    """Whether a checkpoint was sealed, and has every file in the size that it had then."""
    try:
        return bool(json.loads((path / _SIZES).read_bytes()).items() <= _sizes(path).items())
    except (OSError, ValueError, AttributeError):
        return False


def _sizes(path: Path) -> dict[str, int]:
    return {str(file.relative_to(path)): file.stat().st_size for file in path.rglob("*") if file.is_file()}


@dataclass
class TrainingCallbacks:
    """Progress callbacks, called in the main process alone: a stage begins, such as loading or saving; a remark that
    the reader should see; optimizer steps done, and how many there will be at most; a row of `metrics.jsonl`."""

    on_stage: Callable[[str], None] = lambda text: None
    on_note: Callable[[str], None] = lambda text: None
    on_step: Callable[[int, int], None] = lambda step, num_steps: None
    on_metrics: Callable[[Mapping[str, Any]], None] = lambda row: None


def metrics_callback(path: Path, callbacks: TrainingCallbacks, *, save_evaluated: bool = False) -> Any:
    """A `TrainerCallback` that writes `metrics.jsonl` to `path`, tells `callbacks`, and seals checkpoints.

    With `save_evaluated`, each evaluation leaves a checkpoint. A step that saves is logged too: a logged loss is the
    mean since the log before, and a resumed run begins a new mean. A loss that is no number ends the training.
    """
    import torch
    from transformers import TrainerCallback

    def row_of(step: int, logs: Mapping[str, Any]) -> dict[str, Any]:
        # Counts of tokens are of this session alone, and a number that is none is None.
        kept = {name: value for name, value in logs.items() if name not in ("step", "num_tokens", "eval_num_tokens")}
        lost = {name: None for name, value in kept.items() if isinstance(value, float) and not math.isfinite(value)}
        return {"step": step, **kept, **lost}

    class MetricsCallback(TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            # Of a resumed run: the rows up to its checkpoint.
            if state.is_world_process_zero:
                rows = (json.dumps(row_of(row["step"], row), ensure_ascii=False) for row in state.log_history)
                write_atomically(path, "".join(f"{row}\n" for row in rows))

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            # The trainer's own callback has decided what is due at this step.
            control.should_save |= save_evaluated and control.should_evaluate
            control.should_log |= control.should_save
            if state.is_world_process_zero:
                callbacks.on_step(state.global_step, state.max_steps)

        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if torch.distributed.is_initialized():
                # Every process leaves the state of its random numbers.
                torch.distributed.barrier()
            if state.is_world_process_zero:
                seal(Path(args.output_dir) / f"checkpoint-{state.global_step}")

        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kw: Any) -> None:
            # What stands beside train_runtime, at the end, is of this session alone.
            if not state.is_world_process_zero or not logs or "train_runtime" in logs:
                return
            if not math.isfinite(logs.get("loss", 0.0)):
                raise RunError(
                    f"the loss is {logs['loss']} at step {state.global_step}: nothing can be learnt from here on; "
                    "lower --learning-rate or raise --warmup-ratio (in a new folder)"
                )
            row = row_of(state.global_step, logs)
            # Rows are rare; closed at once, each is on the disk, and nothing is left open when training fails.
            with closing(LineWriter(path)) as writer:
                writer.write(json.dumps(row, ensure_ascii=False))
            callbacks.on_metrics(row)

    return MetricsCallback()
