"""Model folders that are damaged, absurd or hostile: one line each, in bounded time and memory, and nothing of them run
or opened elsewhere; training refuses what judging refuses. `model_folders.py` has the faults."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from commands import Done, rprm

from rprm.prompts.library import MODEL_TEMPLATE
from tests.faults.model_folders import FAULTS, sound_folder
from tests.training.conftest import TEMPLATE, make_row, write_rows

_SECONDS, _MEMORY = 15, 3 << 30  #: of a command; more is a hang
_STEPS = ["--max-steps", "1", "--batch-size", "2", "--device-batch-size", "2", "--max-length", "512"]
_BRIEFLY = [*_STEPS, "--precision", "fp32", "--no-gradient-checkpointing"]
#: What loads a model folder.
WAYS: dict[str, Callable[[Path, str], list[str]]] = {
    "judge": lambda place, model: ["judge", f"{place}/solutions.jsonl", "-m", f"transformers:{model}", *_ASKED],
    "judge by classifier": lambda place, model: ["judge", f"{place}/solutions.jsonl", "-m", f"classifier:{model}"],
    "engines check": lambda place, model: ["engines", "check", f"transformers:{model}"],
    "train sft": lambda place, model: ["train", "sft", f"{place}/sft", "-m", model, "-o", "out", *_BRIEFLY],
    "train dpo": lambda place, model: ["train", "dpo", f"{place}/dpo", "-m", model, "-o", "out", *_BRIEFLY],
    "train grpo": lambda place, model: [
        *("train", "grpo", f"{place}/steps.jsonl", "-m", model, "-o", "out", *_BRIEFLY, "--validation-share", "0"),
        *("--prompt", f"{place}/sft/{MODEL_TEMPLATE}", "-n", "2", "--max-tokens", "4"),
    ],
    "train classifier": lambda place, model: [
        *("train", "classifier", f"{place}/steps.jsonl", "-m", model, "-o", "out", *_BRIEFLY, "--validation-share", "0")
    ],
}
_ASKED = ["-k", "1", "--max-tokens", "4", "--force-verdict"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a sound model and with rows for every command; the libraries are imported."""
    import torch

    import rprm.training.group_trainer  # noqa: F401

    torch.set_num_threads(1)  # threads of its own would not be there in a fork
    place = tmp_path_factory.mktemp("models")
    sound_folder(place / "sound")
    for kind in ("sft", "dpo"):
        (place / kind).mkdir()
        write_rows(place / kind / "train.jsonl", [make_row(number, kind) for number in range(4)])
        (place / kind / MODEL_TEMPLATE).write_text(TEMPLATE.to_toml())
    solution = {"id": "a", "problem": "What is 2 + 2?", "steps": ["2 + 2 = 4.", "So it is 4."]}
    write_rows(place / "solutions.jsonl", [solution])
    rows = [
        {
            "id": f"p{number}",
            "problem": f"What is {number} + 1?",
            "previous_steps": [],
            "step": f"It is {number + 1 + number % 2}.",
            "label": number % 2 == 0,
        }
        for number in range(8)
    ]
    write_rows(place / "steps.jsonl", rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RPRM_TEST_RAN", str(place / "ran"))
        yield place


def within_limits() -> None:
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + _MEMORY, used + _MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (_SECONDS, _SECONDS))


def run(arguments: list[str], folder: Path) -> tuple[Done, list[str]]:
    """How a command ends within limits, and its lines of error without those of progress."""
    done = rprm(*arguments, folder=folder, before=within_limits, patience_s=4 * _SECONDS)
    return done, [line for line in done.err.splitlines() if line.strip() and not line.startswith(_STAGES)]


_STAGES = (
    *("loading libraries", "checking the data", "tokenising", "loading the model", "training", "step 1 "),
    "handing over the model",
)

#: Faults that a command may pass over: they change nothing that it reads, or nothing that is wrong.
HARMLESS = (
    *(
        "config: 30 MB",
        "config: max_position",
        "config: architectures",
        'config: rope_parameters is {"rope_type": "yarn',
    ),
    *(
        "config: dtype",
        "config: quantization_config",
        "config: eos_token_id is",
        "config: auto_map is",
        "config: pad_token",
    ),
    *(
        "tokenizer: a regex that backtracks",
        "tokenizer: a vocabulary larger",
        "tokenizer: two tokens",
        "tokenizer: an empty",
    ),
    *(
        "tokenizer: begins with",
        "tokenizer config: missing",
        "tokenizer config: class",
        "tokenizer config: eos is unheard",
    ),
    *("tokenizer: added tokens beyond", "tokenizer: a template of tokens", "tokenizer: ids of 10^9"),
    *("tokenizer config: a pad token", "tokenizer config: names a file", "template: ", "generation config: "),
    *("pickle: a state dict", "folder: 20,000", "folder: rprm_", "adapter: sound", "adapter: wants code"),
    *(
        "adapter: base is a hub id",
        "config: rms_norm_eps",
        "adapter: alpha NaN",
        'config: rope_parameters is {"rope_type": "def',
    ),
)
#: Of those, what a judge must refuse all the same.
REFUSED = re.compile(
    r"template: .*(loops|calls itself|drops (all|the user|what)|capitals|raises|is a syntax|power|10\^10|doubles)"
)


def fault_of(place: Path, folder: Path, name: str, way: str) -> str | None:
    """What is wrong with how a command ends on a folder with a fault; None where nothing is."""
    model = Path(shutil.copytree(place / "sound", folder / "model"))
    FAULTS[name](model)
    outside = [file for file in folder.glob("elsewhere/*") if file.is_file()]
    for file in outside:
        os.utime(file, (0, time.time()))  # read, it gets a new time of access
    target = model / "model.gguf" if (model / "model.gguf").exists() else model
    ended, errors = run(WAYS[way](place, str(target)), folder)
    said = "\n".join(errors)
    if (place / "ran").exists():
        return "code of the folder was run"
    if any(file.stat().st_atime for file in outside):
        return "a file outside the folder was read"
    may_pass = name.startswith(HARMLESS) and not (way == "judge" and REFUSED.match(name))
    if ended.code not in ((0, 1) if may_pass else (1,)) or "Traceback" in ended.out + said:
        return f"exit code {ended.code}: {said[-500:]}"
    if ended.code and (len(errors) != 1 or not said.startswith("rprm: ") or len(said) > 1200):
        return f"{len(errors)} lines of {len(said)} letters: {said[-500:]}"
    if ended.seconds > _SECONDS / 2 or ended.megabytes > 1500:
        return f"{ended.seconds:.1f} seconds, {ended.megabytes:.0f} MB: {said}"
    return None


@pytest.mark.parametrize("way", WAYS)
def test_a_sound_folder_does_its_work(place: Path, tmp_path: Path, way: str) -> None:
    ended, errors = run(WAYS[way](place, str(place / "sound")), tmp_path)
    assert (ended.code, errors) == (0, [])


SHORT = (
    *("weights cut after half", "weights: header of 10^18 bytes", "weights: all of float8_e4m3fn", "weights: a NaN"),
    *("index: ../shard", "index: a shard is a FIFO", "index: a tensor in two shards"),
    *("weights: a link out of the folder", "tokenizer config: auto_map", "pickle: runs code"),
    *("config: hidden_size is 1000000000", "config: num_hidden_layers is 1000000", "config: a list"),
    *("tokenizer: a regex that backtracks", "tokenizer: ids of 10^9"),
    *("template: calls itself 2^60 times", "template: drops the user's", "template: is a syntax error"),
    *("adapter: base missing", "adapter: targets are a regex that backtracks", "GGUF: a key of 10^18 letters"),
)


@pytest.mark.parametrize("name", SHORT)
def test_a_folder_with_a_fault_is_one_line(place: Path, tmp_path: Path, name: str) -> None:
    assert fault_of(place, tmp_path, name, "judge") is None


@pytest.mark.slow
def test_folders_with_faults_are_one_line_in_every_command(
    place: Path, tmp_path: Path, figures: Callable[..., None]
) -> None:
    """Each by one of the commands that load a folder, in turn; every third, or, with RPRM_ALL_FAULTS=1, all."""
    found, ways = {}, [way for way in WAYS if way != "engines check"]
    tried = [*FAULTS][:: 1 if os.environ.get("RPRM_ALL_FAULTS") else 3]
    for number, name in enumerate(tried):
        way, folder = ways[number % len(ways)], tmp_path / str(number)
        folder.mkdir()
        if fault := fault_of(place, folder, name, way):
            found[f"{name}, {way}"] = fault
        shutil.rmtree(folder)
    assert not found, json.dumps(found, indent=1)
    figures(model_folders=len(tried), tracebacks_hangs_or_code_run=len(found))
