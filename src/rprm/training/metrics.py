"""What a training run measures on its way: `metrics.jsonl` in the run folder, one row for each log and evaluation.

A row is `{"step": int, "epoch": float, ...}` with what the trainer logs under its own names: `loss`, `grad_norm`,
`learning_rate`, and for an evaluation `eval_loss` and its like. A killed run that is resumed from step N drops the rows
after N, so that no step stands in the file twice.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rprm.errors import RunError
from rprm.runs import LineWriter, read_json_lines, repair_tail, write_atomically

METRICS = "metrics.jsonl"

#: What the trainer says once at its end: figures of this session alone, which a resumed run would repeat.
_OF_SESSION = "train_runtime"
#: Counted from the beginning of the session, not of the training.
_LEFT_OUT = ("num_tokens", "eval_num_tokens")


@dataclass
class TrainingCallbacks:
    """Progress callbacks, called in the main process alone."""

    #: Something began: loading, checking, training, saving.
    on_stage: Callable[[str], None] = lambda text: None
    #: A remark that the reader should see, such as rows left out.
    on_note: Callable[[str], None] = lambda text: None
    #: Optimizer steps done, and how many there will be at most.
    on_step: Callable[[int, int], None] = lambda step, num_steps: None
    #: A row of `metrics.jsonl`.
    on_metrics: Callable[[Mapping[str, Any]], None] = lambda row: None


def truncate_metrics(path: Path, step: int) -> None:
    """Drop the rows after `step`, and a last line torn by a kill: training resumes from a checkpoint at `step`.

    Raises:
        CorruptRun: a line other than the last is damaged.
    """
    if not path.exists():
        return
    repair_tail(path)
    kept = [row for row in read_json_lines(path) if row["step"] <= step]
    write_atomically(path, "".join(_line(row) + "\n" for row in kept))


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a `metrics.jsonl`, in order.

    Raises:
        CorruptRun: a line is damaged.
    """
    return list(read_json_lines(path))


def last_value(rows: list[dict[str, Any]], name: str) -> float | None:
    """The last value logged under a name; None where there is none."""
    return next((row[name] for row in reversed(rows) if row.get(name) is not None), None)


def metrics_callback(path: Path, callbacks: TrainingCallbacks, *, save_evaluated: bool = False) -> Any:
    """A `TrainerCallback` that appends to `path` and tells `callbacks`; on other than the main process it does nothing.

    With `save_evaluated`, each evaluation leaves a checkpoint, so that the best model is among them.

    It also has the trainer log at each step at which it saves. A logged loss is the mean since the log before, and a
    resumed run begins a new mean: so both runs, the killed one and an undisturbed one, log the same figures.

    A loss that is no number ends the training with a `RunError`.
    """
    from transformers import TrainerCallback

    class MetricsCallback(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            # The trainer's own callback has decided what is due at this step.
            control.should_save |= save_evaluated and control.should_evaluate
            control.should_log |= control.should_save
            if state.is_world_process_zero:
                callbacks.on_step(state.global_step, state.max_steps)

        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kw: Any) -> None:
            if not state.is_world_process_zero or not logs or _OF_SESSION in logs:
                return
            if not math.isfinite(logs.get("loss", 0.0)):
                raise RunError(
                    f"the loss is {logs['loss']} at step {state.global_step}: nothing can be learnt from here on; "
                    "lower --learning-rate or raise --warmup-ratio (in a new folder)"
                )
            kept = {name: _number(value) for name, value in logs.items() if name not in _LEFT_OUT}
            row = {"step": state.global_step, **kept}
            # Rows are rare; closed at once, each is on the disk, and nothing is left open when training fails.
            writer = LineWriter(path)
            writer.write(_line(row))
            writer.close()
            callbacks.on_metrics(row)

    return MetricsCallback()


def _number(value: Any) -> Any:
    """As JSON has it: no NaN and no infinity, which stand as None."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False, allow_nan=False)
