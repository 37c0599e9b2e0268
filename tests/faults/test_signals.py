"""SIGINT, SIGTERM and SIGHUP at any moment, and standard streams that are closed, full, or have nobody to read them."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults.warm import Ended, Fault, Warm

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="signals are placed by Linux's means")

EXAMPLES = Path(__file__).parents[2] / "src" / "rprm" / "examples" / "solutions.jsonl"
MODEL = "scripted:?concurrency=2&log=paid"
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

#: {model} is `MODEL`, {problems} and {steps} are files; RUN is where a run folder is asked for.
COMMANDS = {
    "judge": "judge {examples} -m {model} -k 2 --limit 2 --output RUN",
    "judge, nothing kept": "judge {examples} -m {model} -k 2 --limit 2",
    "bench, nothing kept": "bench steps {steps} -m {model} -k 2 --allow-missing --resamples 10",
    "best-of-n": "search best-of-n --policy {model} -m {model} --problems {problems} -n 2 -k 2 --output RUN",
    "guided": "search guided --policy {model} -m {model} --problems {problems} --width 2 -k 2 --output RUN",
    "steps": "data steps {steps} --output RUN",
    "analyses": "data analyses {steps} -m {model} -n 2 --output RUN",
    "models": "models",
    "engines": "engines check {model}",
}
#: Lines before these are of the harness, and of `main` before it has begun.
FIRST_LINE = 40


@pytest.fixture(scope="module")
def warm() -> Iterator[Warm]:
    with Warm() as found:
        yield found


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("inputs")
    problems = [{"id": f"p{number}", "problem": f"Problem {number}", "answer": "2"} for number in range(2)]
    steps = [{"id": f"s{n}", "problem": f"P {n // 2}?", "step": f"It is {n}.", "label": n % 2 == 0} for n in range(6)]
    for name, rows in (("problems", problems), ("steps", steps)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "examples": EXAMPLES, "model": MODEL, "problems": folder / "problems.jsonl", "steps": folder / "steps.jsonl",
    }  # fmt: skip


class Stopper:
    """Runs commands that signals stop, and looks at what each leaves."""

    def __init__(self, warm: Warm, words: dict[str, Any], folder: Path) -> None:
        self.warm, self.words, self.folder = warm, words, folder
        self.draw = random.Random(20)
        self.signals = self.stopped = self.places = 0

    def run(self, name: str, **fault: Any) -> tuple[Path, Ended]:
        self.places += 1
        place = self.folder / str(self.places)
        (place / "tmp").mkdir(parents=True)
        command = [word.format_map(self.words).replace("RUN", "run") for word in COMMANDS[name].split()]
        return place, self.warm(place, *command, fault=Fault(**{"signal": signal.SIGINT} | fault))

    def num_lines(self, name: str) -> int:
        """Of an undisturbed run, once what it needs is imported."""
        for fault in ({}, {"signal_at": (10**9,)}):
            _, ended = self.run(name, **fault)
            assert ended.code == 0, ended.err
        return ended.num_lines

    def stop(self, name: str, number: int, at: tuple[int, ...]) -> None:
        place, ended = self.run(name, signal=number, signal_at=at)
        where = f"{name}, {signal.Signals(number).name} at {at} of {ended.num_lines}, in {place}:\n{ended.err}"
        self.signals += len(at)
        assert not ended.left, where
        # No folder that was to be for a while is there still.
        assert [*(place / "tmp").iterdir()] == [], where
        assert "Traceback" not in ended.err, where
        assert "ignored" not in ended.err, where
        if ended.code in (0, 3):  # It was through, as far as a line can tell.
            assert "stopped" not in ended.err, where
            return
        self.stopped += 1
        assert ended.code == 128 + number, where
        (line,) = [line for line in ended.err.splitlines() if line.startswith("rprm: ")]
        run = place / "run"
        is_kept = any(run.glob("**/manifest.json"))
        assert ("and the same command resumes it" if is_kept else "nothing was kept") in line, where
        assert signal.Signals(number).name in line, where
        for manifest in run.glob("**/manifest.json"):
            assert json.loads(manifest.read_bytes())["status"] in ("stopped", "complete"), where


def test_commands_stop_at_any_line(warm: Warm, words: dict[str, Any], tmp_path: Path) -> None:
    stopper = Stopper(warm, words, tmp_path)
    for name in ("judge", "judge, nothing kept"):
        stopper.run(name)  # What it needs is imported.
        for number in STOPPING:
            stopper.stop(name, number, (stopper.draw.randint(FIRST_LINE, 6_000),))
    assert stopper.stopped == 6


@pytest.mark.slow
def test_every_command_stops_at_any_line(
    warm: Warm, words: dict[str, Any], tmp_path: Path, figures: Callable[..., None]
) -> None:
    """Also at its first lines and its last ones, and where a second signal comes a few lines after the first."""
    stopper = Stopper(warm, words, tmp_path)
    draw = stopper.draw
    for name in COMMANDS:
        last = stopper.num_lines(name)
        places = [draw.randint(FIRST_LINE, 400), *(last - draw.randint(0, 400) for _ in range(3))]
        places += [draw.randint(FIRST_LINE, last) for _ in range(3)]
        for place in places:
            again = tuple(place + draw.randint(1, 500) for _ in range(draw.choice((0, 0, 1, 2))))
            stopper.stop(name, draw.choice(STOPPING), (place, *again))
    figures(commands=len(COMMANDS), signals=stopper.signals, commands_stopped=stopper.stopped)


@pytest.mark.parametrize("how", ["loads_in_a_thread", "loads_in_the_loop"])
def test_a_model_that_is_being_loaded_is_not_waited_for(
    how: str, warm: Warm, words: dict[str, Any], tmp_path: Path
) -> None:
    _, ended = Stopper(warm, words, tmp_path).run("judge", setup=f"warm:{how}")
    assert (ended.code, ended.err, ended.left) == (143, "rprm: stopped by SIGTERM; nothing was kept\n", False)
    assert ended.seconds < 20


def test_a_signal_that_python_drops_is_heeded_a_moment_later(warm: Warm, words: dict[str, Any], tmp_path: Path) -> None:
    _, ended = Stopper(warm, words, tmp_path).run("judge", setup="warm:swallowed")
    assert (ended.code, ended.err) == (143, "rprm: stopped by SIGTERM; nothing was kept\n")
    assert ended.seconds < 10


@pytest.mark.parametrize("number", [signal.SIGHUP, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_signal_that_is_ignored_stays_ignored(
    number: signal.Signals, warm: Warm, words: dict[str, Any], tmp_path: Path
) -> None:
    """As `nohup` and `&` of a shell have it; the other signals still stop the command."""
    stopper = Stopper(warm, words, tmp_path)
    place, ended = stopper.run("judge", ignored=(number,), signal=number, signal_at=(1000, 2000))
    assert (ended.code, ended.err) == (0, "")
    place, ended = stopper.run("judge", ignored=(number,), signal=signal.SIGTERM, signal_at=(6000,))
    assert ended.code == 143
    manifest = json.loads((place / "run" / "manifest.json").read_bytes())
    assert (manifest["status"], manifest["sessions"][-1]["stopped_by"]) == ("stopped", "interruption")


def test_a_command_that_is_refused_leaves_the_run_as_it_is(warm: Warm, words: dict[str, Any], tmp_path: Path) -> None:
    place, whole = Stopper(warm, words, tmp_path).run("judge")
    before = (place / "run" / "manifest.json").read_bytes()
    refused = warm(place, "judge", EXAMPLES, "-m", MODEL, "-k", 3, "--output", "run")
    assert (whole.code, refused.code) == (0, 1)
    assert (place / "run" / "manifest.json").read_bytes() == before


# --- in an interpreter of its own -----------------------------------------------------------------------------------


def start(*arguments: object, **options: Any) -> subprocess.Popen[str]:
    environment = os.environ | {"COLUMNS": "100"}
    command = [sys.executable, "-m", "rprm", *map(str, arguments)]
    # A job in a shell's background ignores some of them, and so would what it starts.
    return subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env=environment, preexec_fn=heeding_signals, **options
    )


def heeding_signals() -> None:
    for number in STOPPING:
        signal.signal(number, signal.SIG_DFL)


def stop_while_it_starts(number: int, delay: float, *arguments: object) -> None:
    with start(*arguments, stdout=subprocess.PIPE) as process:
        time.sleep(delay)
        process.send_signal(number)
        _, err = process.communicate(timeout=30)
    # Before the first line of ours the interpreter stops as it does.
    is_early = process.returncode == -number or ("Traceback" in err and "run_command" not in err)
    if not is_early and process.returncode != 0:
        assert process.returncode == 128 + number, err
        assert err.splitlines()[-1] == f"rprm: stopped by {signal.Signals(number).name}; nothing was kept"
        assert "Traceback" not in err
        assert "ignored" not in err


#: Runs `rprm --version` in which SIGINT comes as {first} is imported.
INTERRUPTED = """
import importlib.abc, signal, sys
class Interrupt(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == {first!r}:
            signal.raise_signal(signal.SIGINT)
signal.signal(signal.SIGINT, getattr(signal, {how!r}))
sys.meta_path.insert(0, Interrupt())
sys.argv = ["rprm", "--version"]
from rprm.cli import main
main()
"""


@pytest.mark.parametrize("first", ["rprm.cli.process", "rprm.errors", "rprm.showing"])
def test_stopped_before_it_has_handlers(first: str) -> None:
    for how, code in {"default_int_handler": 130, "SIG_IGN": 0}.items():
        program = INTERRUPTED.format(first=first, how=how)
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
        assert done.returncode == code, done.stderr
        assert done.stderr == ("rprm: stopped by SIGINT; nothing was kept\n" if code else "")


def test_nothing_is_imported_before_a_command_heeds_signals() -> None:
    program = "import sys; before = {*sys.modules}; import rprm.cli; print(*sorted({*sys.modules} - before))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.split() == ["rprm", "rprm.cli"]


def test_stopped_while_it_starts() -> None:
    for number, delay in zip(STOPPING, (0.15, 0.4, 0.7), strict=True):
        stop_while_it_starts(number, delay, "judge", EXAMPLES, "-m", "scripted:?delay=9")


@pytest.mark.slow
def test_stopped_at_any_moment_of_imports_and_of_loading(figures: Callable[..., None]) -> None:
    draw = random.Random(4)
    for place in range(8):
        model = ("scripted:?delay=9", "embedded")[place % 2]
        number = draw.choice(STOPPING)
        stop_while_it_starts(number, draw.uniform(0.1, (1.0, 3.0)[place % 2]), "judge", EXAMPLES, "-m", model)
    figures(signals_while_starting=8)


def shell(command: str) -> subprocess.CompletedProcess[str]:
    words = {"rprm": f"{sys.executable} -m rprm", "judge": f"{sys.executable} -m rprm judge {EXAMPLES} -m scripted:"}
    environment = os.environ | {"COLUMNS": "100"}
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command.format_map(words)], capture_output=True, text=True, env=environment,
        timeout=60,
    )  # fmt: skip
    assert "Traceback" not in done.stderr
    assert "ignored" not in done.stderr
    return done


#: Commands, exit code, and how what is said begins.
STREAMS = {
    "a reader that goes": ("{judge} -k 10 --analyses | :", 141, ""),
    "a reader that goes, JSON": ("{judge} --json | :", 141, ""),
    "a reader that goes before help": ("{rprm} judge --help | :", 141, ""),
    "a full disk": ("{judge} --json > /dev/full", 1, "rprm: standard output: No space left on device\n"),
    "a full disk, panels": ("{judge} > /dev/full", 1, "rprm: standard output: No space left on device\n"),
    "a full disk, help": ("{rprm} --help > /dev/full", 1, "rprm: standard output: No space left on device\n"),
    "closed output": ("{judge} >&-", 0, ""),
    "closed errors": ("{judge} 2>&- | tail -1", 0, ""),
    "errors to a full disk": ("{judge} --json 2> /dev/full | tail -1", 0, ""),
    "errors nobody reads": ("{{ {judge} --quiet 2>&1 >&3 | :; }} 3>&1", 0, ""),
    "an error, and errors are closed": ("{rprm} judge nothing -m scripted: 2>&-", 1, ""),
    "closed input": ("{rprm} judge - -m scripted: <&-", 1, "rprm: -: holds no solution\n"),
    "all closed": ("{judge} <&- >&- 2>&-", 0, ""),
}
SHORT = ("a reader that goes", "a full disk", "closed output")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name not in SHORT)) for name in STREAMS]
)
def test_standard_streams(name: str) -> None:
    command, code, said = STREAMS[name]
    done = shell(command)
    assert (done.returncode, done.stderr) == (code, said)


def test_a_run_that_lost_its_reader_is_resumed(tmp_path: Path) -> None:
    run = tmp_path / "run"
    done = shell(f"{{judge}} --json --output {run} | :")
    assert (done.returncode, done.stderr) == (141, "")
    assert json.loads((run / "manifest.json").read_bytes())["status"] == "stopped"
    done = shell(f"{{judge}} --json --output {run}")
    rows = [json.loads(line) for line in (run / "results.jsonl").read_text().splitlines()]
    assert done.returncode == 0
    assert [json.loads(line) for line in done.stdout.splitlines()] == [
        {name: value for name, value in row.items() if name != "crc"} for row in rows
    ]


def test_a_stage_is_asked_to_stop_and_so_is_what_its_launcher_started(tmp_path: Path) -> None:
    """A launcher that dies at once, and a stage that takes a moment to close what it has open; in a job that was
    started to ignore the signal."""
    from rprm.subcommands import Subcommand

    launcher = tmp_path / "launcher.py"
    launcher.write_text("import subprocess, sys; subprocess.run([sys.executable, *sys.argv[1:]])\n")
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        stage = Subcommand(
            tmp_path / "run", ["judge", str(EXAMPLES), "--model", "scripted:?delay=9"],
            launcher=[sys.executable, str(launcher)],
        )  # fmt: skip
    finally:
        signal.signal(signal.SIGTERM, before)
    deadline = time.monotonic() + 30
    while not (tmp_path / "run" / "manifest.json").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    stage.stop()
    stage.end()
    assert json.loads((tmp_path / "run" / "manifest.json").read_bytes())["status"] == "stopped"
    with pytest.raises(ProcessLookupError):
        os.killpg(stage.process.pid, 0)
    assert "stopped by SIGTERM" in stage.log.read_text()
