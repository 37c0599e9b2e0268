"""Two processes on the CPU: the recipe works, one folder is written, and an error ends both at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from rprm.runs import read_json_lines, read_manifest
from rprm.training.sft import train_sft
from tests.training.test_sft import QUICK

RECIPES = Path(__file__).parents[2] / "recipes" / "accelerate"

OPTIONS = {
    "--preset": "cpu",
    "--learning-rate": "1e-3",
    "--max-steps": "3",
    "--batch-size": "4",
    "--device-batch-size": "2",
    "--max-length": "512",
    "--eval-steps": "1",
    "--save-steps": "1",
    "--logging-steps": "1",
}


def launch(*arguments: str, port: int, stop: tuple[Path, int] | None = None) -> subprocess.CompletedProcess[str]:
    """Run the command; `stop`: when that path is there, all its processes get the signal, as of Control-C."""
    command = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--config_file",
        str(RECIPES / "cpu2.yaml"),
        "--main_process_port",
        str(port),
        str(Path(__file__).with_name("launched.py")),
        *arguments,
        *(word for option in OPTIONS.items() for word in option),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, process_group=0
    ) as process:
        deadline = time.monotonic() + 200
        while stop and process.poll() is None and not stop[0].exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        if stop:
            os.killpg(process.pid, stop[1])
        try:
            out, err = process.communicate(timeout=240)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    return subprocess.CompletedProcess(command, process.returncode, out, err)


@pytest.fixture
def port() -> int:
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.mark.slow
def test_two_processes_do_the_steps_of_one(
    tiny_model: Path, make_data: Callable[..., Path], tmp_path: Path, port: int
) -> None:
    """4 rows a step: 2 a device on 2 devices, or 2 at once and 2 accumulated on one. The losses are the same, also of
    a run that Control-C stopped after its first checkpoint; its launcher has words of its own for that, we have one."""
    data = make_data(num_train=16, num_validation=4)
    train, run = ["sft", str(data), "--model", str(tiny_model), "-o", str(tmp_path / "two")], tmp_path / "two"
    stopped = launch(*train, port=port, stop=(run / "checkpoints" / "checkpoint-1" / "rprm_files.json", signal.SIGINT))
    said = [line for line in stopped.stderr.splitlines() if line.startswith("rprm: ") or "src/rprm/" in line]
    assert said == [f"rprm: stopped by SIGINT; what is finished is kept in {run}, and the same command resumes it"], (
        stopped.stderr
    )
    assert read_manifest(run)["status"] == "stopped"
    done = launch(*train, port=port)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("3 steps") == 1, "the main process alone reports"
    manifest = read_manifest(run)
    assert (manifest["status"], len(manifest["sessions"])) == ("complete", 2)
    assert manifest["settings"]["num_processes"] == 2

    # The preset's batches are of like length: the same rows meet in a step, whoever works on them.
    settings = replace(QUICK, group_by_length=True)
    alone = train_sft(data, model=str(tiny_model), output=tmp_path / "one", settings=settings)
    losses = [
        [row["loss"] for row in read_json_lines(folder / "metrics.jsonl") if "loss" in row]
        for folder in (tmp_path / "two", alone.output)
    ]
    assert len(losses[0]) == 3
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)

    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_pretrained(tmp_path / "two" / "model")


@pytest.mark.slow
def test_an_error_ends_both(make_data: Callable[..., Path], tiny_model: Path, tmp_path: Path, port: int) -> None:
    """The main process finds the fault; the other does not wait for it, and nothing is said twice."""
    data = make_data(num_train=8)
    (data / "train.jsonl").write_text("{}\n")
    started = time.monotonic()
    done = launch("sft", str(data), "--model", str(tiny_model), "-o", str(tmp_path / "run"), port=port)
    assert done.returncode != 0
    assert done.stderr.count("train.jsonl, line 1: ") == done.stderr.count("is missing") == 1, done.stderr
    assert time.monotonic() - started < 100
    assert not (tmp_path / "run").exists()


#: What accelerate tells the processes of each recipe.
TOLD = {
    "cpu2": {"ACCELERATE_USE_DEEPSPEED": None, "ACCELERATE_USE_FSDP": None},
    "ddp": {"ACCELERATE_USE_DEEPSPEED": None, "ACCELERATE_USE_FSDP": None},
    "fsdp": {
        "FSDP_VERSION": "2",
        "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
        "FSDP_RESHARD_AFTER_FORWARD": "true",
        "FSDP_ACTIVATION_CHECKPOINTING": "false",
    },
    "zero2": {"ACCELERATE_DEEPSPEED_ZERO_STAGE": "2", "ACCELERATE_DEEPSPEED_ZERO3_INIT": "false"},
    "zero3": {"ACCELERATE_DEEPSPEED_ZERO_STAGE": "3", "ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL": "true"},
}


@pytest.mark.parametrize("recipe", TOLD)
def test_accelerate_reads_the_recipes(recipe: str) -> None:
    """A key that it does not know is an error at the top, and below is none: what it tells the processes counts."""
    from accelerate.commands import launch
    from accelerate.commands.config.config_args import load_config_from_file
    from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env

    path = str(RECIPES / f"{recipe}.yaml")
    # `--num_processes` wins over the file.
    parser = launch.launch_command_parser()
    given = parser.parse_args(["--config_file", path, "--num_processes", "4", "-m", "rprm"])
    known = vars(given).keys()
    config = load_config_from_file(path)
    assert {**config.fsdp_config, **config.deepspeed_config}.keys() <= known
    arguments, defaults, _ = launch._validate_launch_command(given)
    arguments.deepspeed_fields_from_accelerate_config = ",".join(defaults.deepspeed_config)  # as `launch_command` does
    told = prepare_deepspeed_cmd_env(arguments)[1] if arguments.use_deepspeed else prepare_multi_gpu_env(arguments)
    assert {name: told.get(name) for name in TOLD[recipe]} == TOLD[recipe]
    assert told["ACCELERATE_MIXED_PRECISION"] == ("no" if recipe == "cpu2" else "bf16")
    assert arguments.num_processes == 4


@pytest.mark.parametrize(("recipe", "stage"), [("zero2", 2), ("zero3", 3)])
def test_deepspeed_takes_what_accelerate_makes_of_the_recipes(recipe: str, stage: int) -> None:
    zero = pytest.importorskip("deepspeed.runtime.zero.config")
    from accelerate import DeepSpeedPlugin
    from accelerate.commands.config.config_args import load_config_from_file

    options = load_config_from_file(str(RECIPES / f"{recipe}.yaml")).deepspeed_config
    options.pop("deepspeed_multinode_launcher")
    made = DeepSpeedPlugin(**options).deepspeed_config["zero_optimization"]
    found = zero.DeepSpeedZeroConfig(**{name: value for name, value in made.items() if value != "auto"})
    assert found.stage == stage
    assert stage == 2 or found.gather_16bit_weights_on_model_save


def test_an_estimate_names_recipes_that_are_there() -> None:
    from rprm.training.estimate import SETUPS

    assert set(SETUPS) <= {path.stem for path in RECIPES.iterdir()}
