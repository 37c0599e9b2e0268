"""Which checkpoint to resume from: the last whole one, whatever a kill left behind."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from rprm.training.checkpoints import is_whole, last_checkpoint, seal


def make_checkpoint(folder: Path, step: int, *, max_steps: int = 100, stop: bool = False) -> Path:
    """Files as the trainer leaves them, small, and sealed."""
    path = folder / f"checkpoint-{step}"
    (path / "optimizer_0").mkdir(parents=True)
    for name in ("model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state_0.pth", "rng_state_1.pth"):
        (path / name).write_bytes(bytes(1000))
    (path / "optimizer_0" / ".metadata").write_bytes(bytes(10))
    control = {"args": {"should_training_stop": stop}, "attributes": {}}
    state = {"global_step": step, "max_steps": max_steps, "stateful_callbacks": {"TrainerControl": control}}
    (path / "trainer_state.json").write_text(json.dumps(state))
    seal(path)
    return path


def cut(path: Path, share: float = 0.5) -> None:
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_none(tmp_path: Path) -> None:
    assert last_checkpoint(tmp_path / "missing") is None
    (tmp_path / "runs").mkdir()
    assert last_checkpoint(tmp_path) is None


def test_the_last_by_number(tmp_path: Path) -> None:
    for step in (10, 9, 100):
        make_checkpoint(tmp_path, step)
    found = last_checkpoint(tmp_path)
    assert found is not None
    assert (found.step, found.path) == (100, tmp_path / "checkpoint-100")


@pytest.mark.parametrize(
    "harm",
    [
        # Killed before everything was written.
        lambda path: (path / "rprm_files.json").unlink(),
        lambda path: cut(path / "rprm_files.json"),
        lambda path: (path / "rprm_files.json").write_text("[]"),
        lambda path: (path / "trainer_state.json").unlink(),
        lambda path: cut(path / "trainer_state.json"),
        lambda path: (path / "trainer_state.json").write_text('{"global_step": 7}'),
        lambda path: cut(path / "optimizer.pt", 0.9),
        lambda path: (path / "scheduler.pt").unlink(),
        # Of each process, and of the folders of a distributed training.
        lambda path: cut(path / "rng_state_0.pth"),
        lambda path: (path / "rng_state_1.pth").unlink(),
        lambda path: (path / "optimizer_0" / ".metadata").unlink(),
        lambda path: cut(path / "model.safetensors", 0.99),
        lambda path: cut(path / "model.safetensors", 0.0),
        lambda path: (path / "model.safetensors").unlink(),
        # As long as before: what an editor or a failing disk leaves.
        lambda path: flip(path / "optimizer.pt"),
        lambda path: flip(path / "trainer_state.json"),
    ],
)
def test_a_torn_one_is_set_aside_and_the_one_before_used(tmp_path: Path, harm: Callable[[Path], None]) -> None:
    make_checkpoint(tmp_path, 2)
    torn = make_checkpoint(tmp_path, 4)
    assert is_whole(torn)
    harm(torn)
    assert not is_whole(torn)
    found = last_checkpoint(tmp_path)
    assert found is not None
    assert found.step == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-2", "torn-checkpoint-4"]


def test_one_of_a_version_without_checksums(tmp_path: Path) -> None:
    """Its list has sizes alone."""
    checkpoint = make_checkpoint(tmp_path, 2)
    sealed = checkpoint / "rprm_files.json"
    sealed.write_text(json.dumps({name: size for name, (size, _) in json.loads(sealed.read_bytes()).items()}))
    assert is_whole(checkpoint)
    cut(checkpoint / "optimizer.pt")
    assert not is_whole(checkpoint)


def test_torn_twice(tmp_path: Path) -> None:
    """The same step may be torn again; nothing is overwritten."""
    for _ in range(2):
        (tmp_path / "checkpoint-4").mkdir()
        assert last_checkpoint(tmp_path) is None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["torn-checkpoint-4", "torn-checkpoint-4.2"]


def test_stopped(tmp_path: Path) -> None:
    """At the last step, or where early stopping ended it."""
    make_checkpoint(tmp_path, 50)
    going = last_checkpoint(tmp_path)
    make_checkpoint(tmp_path, 60, stop=True)
    early = last_checkpoint(tmp_path)
    make_checkpoint(tmp_path, 100)
    done = last_checkpoint(tmp_path)
    assert [checkpoint.stopped for checkpoint in (going, early, done) if checkpoint] == [False, True, True]
