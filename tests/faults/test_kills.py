"""SIGKILL at any moment of every command that writes a folder: the same command resumes, and ends with the same bytes.
So it does after a SIGINT or a SIGTERM, which leave no run that says it is going on.

A kill falls on a touch of a file (in the middle of a line, where one is being written) or on a moment. After each the
same command is given again, in the end undisturbed, and its folder is compared with that of an undisturbed run. What
the scripted engine was asked for is in its log: an answer that was kept is never asked for again.
"""

from __future__ import annotations

import json
import random
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rprm.prompts import PromptTemplate
from rprm.records import LabelledStep
from tests.faults.warm import Ended, Fault, Warm

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="kills are placed by Linux's means")

#: Rows under way at once, and analyses or solutions of one: as many answers at most are lost by a kill.
CONCURRENCY, WAVE = 2, 8
MODEL = f"scripted:?yes_rate=0.6&lost=0.05&concurrency={CONCURRENCY}&log=paid"

#: Every command that asks a model or makes rows; {name} is a file of `inputs`.
COMMANDS = {
    "judge": "judge {solutions} -m MODEL -k 4 --quiet",
    "judge in full": "judge {solutions} -m MODEL -k 2 --rewards full --json",
    "processbench": "bench processbench --data {processbench} -m MODEL -k 4 --resamples 10 --json",
    "prmbench": "bench prmbench --data {prmbench} -m MODEL -k 2 --resamples 10 --json",
    "hard2verify": "bench hard2verify --data {hard2verify} -m MODEL -k 2 --resamples 10 --json",
    "labelled steps": "bench steps {steps} -m MODEL -k 4 --allow-missing --resamples 10 --json",
    "mathematics": "bench mathematics --set gsm8k --data {gsm8k} --policy MODEL -n 2 --resamples 10 --json",
    "sample": "search sample --policy MODEL --problems {problems} -n 4 --json",
    "best-of-n": "search best-of-n --policy MODEL -m MODEL --problems {problems} -n 3 -k 4 --wave 4 --json",
    "guided": "search guided --policy MODEL -m MODEL --problems {problems} --width 2 -k 2 --max-rounds 3 --json",
    "beam": "search beam --policy MODEL -m MODEL --problems {problems} -n 4 --width 2 -k 2 --max-rounds 3 --json",
    "steps": "data steps {steps} --json",
    "rollouts": "data rollouts {solved} --policy MODEL -n 4 --method all --json",
    "agree": "data agree {solved} -m critic:MODEL -k 2 --unanimous --json",
    "inject": "data inject {solved} --policy MODEL -n 2 --json",
    "analyses": "data analyses {steps} -m MODEL -n 3 --json",
    "cold-start": "data cold-start {analyses} --json",
    "pairs": "data pairs {analyses} --json",
}
#: The cheapest, for the short form.
CHEAP = ("judge", "pairs", "sample")


@pytest.fixture(scope="module")
def warm() -> Iterator[Warm]:
    with Warm() as found:
        yield found


@pytest.fixture(scope="module")
def inputs(warm: Warm, excerpts: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Small inputs; two rows of those to be judged cannot be used."""
    folder = tmp_path_factory.mktemp("inputs")
    steps = [
        LabelledStep(
            id=f"s{number}", problem=f"Problem {number // 3}?", previous_steps=("One.", "Two.")[: number % 3],
            step=f"Then {number}, é.", label=number % 2 == 0,
        ).model_dump()
        for number in range(18)
    ]  # fmt: skip
    solutions = [
        {"id": f"r{number}", "problem": f"P {number}", "steps": ["a", f"b{number}", "ç"]} for number in range(8)
    ]
    benchmarked = [
        {"id": f"gsm8k-{number}", "problem": f"P {number}", "steps": ["One.", "Two."], "label": number % 3 - 1,
         "final_answer_correct": number % 3 == 0}
        for number in range(8)
    ]  # fmt: skip
    problems = [{"id": f"p{number}", "problem": f"Problem {number}", "answer": "2"} for number in range(4)]
    files = {
        "solutions": [*solutions[:3], {"id": "broken"}, *solutions[3:], {"steps": []}],
        "solved": [
            *({"id": f"v{n}", "problem": f"P {n // 2}", "answer": "2", "label": -1,
               "steps": [f"So {n} + 4 = {n + 4}.", f"And {n + 4} * 3 = {3 * n + 12}.", "The answer is 2."]}
              for n in range(8)), {"id": "broken"},
        ],
        "processbench": benchmarked, "steps": steps, "problems": problems,
        "hard2verify": [
            {"unique_id": f"h{n}", "question": "P?", "model_response_by_step": ["One.", f"{n}."],
             "human_labels": [1, n % 2]} for n in range(8)
        ],
        "gsm8k": [{"question": row["problem"], "answer": "So 2.\n#### 2"} for row in problems],
    }  # fmt: skip
    found = {name: folder / f"{name}.jsonl" for name in files}
    for name, rows in files.items():
        found[name].write_text("".join(json.dumps(row) + "\n" for row in rows))
    found["prmbench"] = folder / "prmbench.jsonl"
    with (excerpts / "prmbench" / "sample.jsonl").open() as stream:
        found["prmbench"].write_text("".join(next(stream) for _ in range(6)))
    (folder / "tmp").mkdir()
    ended = warm(folder, *split(COMMANDS["analyses"], found), "-o", "analyses")
    assert ended.code == 0, ended.err
    return found | {"analyses": folder / "analyses"}


def split(command: str, inputs: dict[str, Path]) -> list[str]:
    return [word.format_map(inputs).replace("MODEL", MODEL) for word in command.split()]


def contents(folder: Path) -> dict[str, Any]:
    """Every file of a run folder; of manifests what holds for all sessions."""
    found: dict[str, Any] = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = str(path.relative_to(folder))
        found[name] = path.read_bytes()
        if path.name == "manifest.json":
            manifest = json.loads(found[name])
            assert "ended_at" in manifest["sessions"][-1]
            found[name] = {key: value for key, value in manifest.items() if key not in ("sessions", "crc")}
    return found


def trained(folder: Path) -> dict[str, Any]:
    """The weights of a training, its summary, and what its metrics say beside times."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    summary = json.loads((folder / "summary.json").read_bytes())
    metrics = [{key: row[key] for key in row if not key.endswith(("runtime", "per_second"))} for row in rows]
    weights = {path.name: path.read_bytes() for path in sorted((folder / "model").glob("*.safetensors"))}
    return {"metrics": metrics, "summary": summary, **weights}


def evolved(folder: Path) -> dict[str, Any]:
    """What the stages of every round have left, and the rounds' results beside times."""
    found: dict[str, Any] = {"dpo": trained(folder / "round-1" / "dpo")}
    for stage in ("analyses", "pairs", "measure"):
        found[stage] = contents(folder / "round-1" / stage)
    rows = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    return found | {"rounds": [row | {"seconds": 0.0, "crc": ""} for row in rows]}


class Killer:
    """Kills commands again and again, and counts."""

    def __init__(self, warm: Warm, folder: Path, setup: str = "") -> None:
        self.warm, self.folder, self.setup = warm, folder, setup
        self.draw = random.Random(20)
        self.kills = self.stops = self.runs = 0

    def place(self, name: str) -> Path:
        (self.folder / name / "tmp").mkdir(parents=True)
        return self.folder / name

    def run(self, folder: Path, command: list[str], **fault: Any) -> Ended:
        return self.warm(folder, *command, fault=Fault(setup=self.setup, **fault))

    def kill(self, name: str, command: list[str], num_kills: int, compare: Callable[[Path], Any] = contents) -> None:
        """Kill a command so many times, over as many folders as it takes; compare each folder when it is finished."""
        end = command.index("--") if "--" in command else len(command)
        command = [*command[:end], "-o", "run", *command[end:]]
        for number in range(1 + (compare is contents)):  # The first imports what the command needs, and is slower.
            place = self.place(f"{name} whole {number}")
            whole = self.run(place, command)
            assert whole.code in (0, 3), whole.err
        expected, paid = compare(place / "run"), requests(place)
        wanted = self.kills + num_kills
        while self.kills < wanted:
            place = self.place(f"{name} {self.runs}")
            before = self.kills + self.stops
            for _ in range(self.draw.randint(2, 12)):
                number = self.draw.choice(
                    (signal.SIGKILL, signal.SIGKILL, signal.SIGKILL, signal.SIGINT, signal.SIGTERM)
                )
                fault: dict[str, Any] = {"kill_after_s": self.draw.uniform(0.0, whole.seconds)}
                if number != signal.SIGKILL or self.draw.random() < 0.7:
                    fault = {"signal": number, "kill_at": self.draw.randint(1, max(2, whole.num_touches // 3))}
                manifests = open_manifests(place)
                ended = self.run(place, command, **fault)
                assert not ended.left, f"{name}, {fault}"
                assert "Traceback" not in ended.err, f"{name}, {fault}: {ended.err}"
                if ended.code == -signal.SIGKILL:
                    self.kills += 1
                elif ended.code == 128 + number:
                    self.stops += 1
                    # Of a session that was killed before, the manifest still says that it goes on.
                    assert open_manifests(place) <= manifests, f"{name}, {fault}"
                else:
                    assert ended.code == whole.code, f"{name}, {fault}: {ended.err}"
                    break
            num_stopped = self.kills + self.stops - before
            ended = self.run(place, command)
            assert ended.code == whole.code, f"{name}, resumed: {ended.err}"
            assert "Traceback" not in ended.err
            assert compare(place / "run") == expected, f"{name}, stopped {num_stopped} times in {place}"
            again = requests(place)
            assert set(again) == set(paid), name
            # Paid for twice is at most what was in flight at a kill.
            assert again.total() - paid.total() <= num_stopped * CONCURRENCY * WAVE, name
            self.runs += 1


def open_manifests(folder: Path) -> set[bytes]:
    """Those of the runs that say that they go on."""
    manifests = (path.read_bytes() for path in folder.glob("run/**/manifest.json"))
    return {manifest for manifest in manifests if json.loads(manifest)["status"] == "running"}


def requests(folder: Path) -> Counter[str]:
    log = folder / "paid"
    return Counter(log.read_text().split() if log.exists() else ())


def test_cheap_commands_are_killed_and_resumed(warm: Warm, inputs: dict[str, Path], tmp_path: Path) -> None:
    killer = Killer(warm, tmp_path)
    for name in CHEAP:
        killer.kill(name, split(COMMANDS[name], inputs), 7)
    assert killer.kills >= 20


@pytest.mark.slow
def test_every_command_is_killed_and_resumed(
    warm: Warm, inputs: dict[str, Path], tmp_path: Path, figures: Callable[..., None]
) -> None:
    killer = Killer(warm, tmp_path)
    for name, command in COMMANDS.items():
        killer.kill(name, split(command, inputs), 11)
    figures(
        commands=len(COMMANDS), kills=killer.kills, signals=killer.stops, runs_resumed_to_the_same_bytes=killer.runs
    )
    assert killer.kills >= 160


#: Those that train; {tiny} is a model of two layers.
_QUICK = "--max-steps 4 --batch-size 2 --device-batch-size 2 --learning-rate 1e-3 --max-length 512 --save-steps 1"
TRAININGS = {
    "sft": f"train sft {{cold-start}} --model {{tiny}} --preset cpu {_QUICK}",
    "dpo": f"train dpo {{pairs}} --model {{tiny}} --preset cpu {_QUICK}",
    "classifier": f"train classifier {{steps}} --model {{tiny}} {_QUICK}",
}
ROUNDS = (
    "evolve {steps} --model {tiny} --engine scripted --engine-options yes_rate=0.5&noise=0.3&concurrency=2&log=paid "
    f"-n 4 -k 3 --validation 0.3 -- --preset cpu --lora-rank 2 {_QUICK}"
)


@pytest.mark.slow
def test_trainings_and_rounds_are_killed_and_resumed(
    inputs: dict[str, Path], tiny_model: Path, tmp_path: Path, figures: Callable[..., None]
) -> None:
    start = tmp_path / "start"
    shutil.copytree(tiny_model, start)
    template = PromptTemplate(name="short", user="{{problem}}\n{{steps}}\nCheck step {{step_number}}.")
    (start / "rprm_prompt.toml").write_text(template.to_toml())
    found = inputs | {"tiny": start}
    (tmp_path / "tmp").mkdir()
    with Warm() as warm:
        prompt = str(start / "rprm_prompt.toml")
        for name, command in {
            "short": f"data analyses {{steps}} -m MODEL -n 4 --prompt {prompt}",
            "cold-start": "data cold-start {short}", "pairs": "data pairs {short}",
        }.items():  # fmt: skip
            ended = warm(tmp_path, *split(command, found), "-o", name)
            assert ended.code == 0, ended.err
            found[name] = tmp_path / name
        killer = Killer(warm, tmp_path)
        for name, command in TRAININGS.items():
            killer.kill(name, split(command, found), 3, trained)
        killer.setup = "warm:fork_stages"
        killer.kill("evolve", split(ROUNDS, found), 3, evolved)
    figures(
        trainings=len(TRAININGS) + 1,
        kills=killer.kills,
        signals=killer.stops,
        runs_resumed_to_the_same_weights=killer.runs,
    )
