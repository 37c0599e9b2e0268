"""`metrics.jsonl`: no step twice, whatever was killed."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from rprm.errors import RunError
from rprm.runs import read_json_lines
from rprm.training.lifecycle import TrainingCallbacks, metrics_callback


def test_rows_after_the_checkpoint_and_a_torn_line_go(tmp_path: Path) -> None:
    """Training begins, from nothing or from a checkpoint, with the rows that the trainer's state has."""
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": step, "loss": 1.0}) + "\n" for step in (1, 2, 3)) + '{"step": 4, "lo')
    callback = metrics_callback(path, TrainingCallbacks())
    for steps in ((1, 2), ()):
        history = [{"loss": 1.0, "num_tokens": 5, "step": step} for step in steps]
        callback.on_train_begin(None, SimpleNamespace(is_world_process_zero=True, log_history=history), None)
        assert list(read_json_lines(path)) == [{"step": step, "loss": 1.0} for step in steps]


def test_the_callback_writes_rows_and_tells(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    told: list[object] = []
    callback = metrics_callback(
        path,
        TrainingCallbacks(on_step=lambda *steps: told.append(steps), on_metrics=lambda row: told.append(row["step"])),
    )
    state = SimpleNamespace(is_world_process_zero=True, global_step=7, max_steps=9)
    control = SimpleNamespace(should_save=True, should_log=False)
    callback.on_step_end(None, state, control)
    assert control.should_log, "a checkpoint's step is logged, so that a resumed run begins its mean there too"
    callback.on_log(None, state, control, {"loss": 0.5, "grad_norm": float("nan"), "num_tokens": 10.0, "epoch": 1.0})
    callback.on_log(None, state, control, {"train_runtime": 3.0, "train_loss": 0.4})
    other = SimpleNamespace(is_world_process_zero=False, global_step=7, max_steps=9)
    callback.on_log(None, other, control, {"loss": 0.5})
    with pytest.raises(RunError, match="loss is nan at step 7"):
        callback.on_log(None, state, control, {"loss": float("nan")})
    assert list(read_json_lines(path)) == [{"step": 7, "loss": 0.5, "grad_norm": None, "epoch": 1.0}]
    assert told == [(7, 9), 7]
