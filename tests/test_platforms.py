"""Windows and macOS, as far as Linux can stand in for them: what they lack is taken away, in a process of its own."""

from __future__ import annotations

import ctypes
import json
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rprm.subcommands import Subcommand

EXAMPLES = Path(__file__).parents[1] / "src" / "rprm" / "examples"

#: Third parties are imported first: what they do on Windows is theirs.
WINDOWS = """
import asyncio, gzip, os, select, signal, socket, subprocess, sys, sysconfig, tempfile, zoneinfo
import filelock, httpx2, jinja2, numpy, openai, pydantic, rich.console, rich.progress, typer
sysconfig.get_config_vars()
for module in ("fcntl", "grp", "pty", "pwd", "resource", "termios", "tty", "vllm"):
    sys.modules[module] = None
for owner, names in (
    (os, "fork forkpty killpg getpgid getuid geteuid setsid wait3 register_at_fork sched_getaffinity uname"),
    (signal, "SIGALRM SIGHUP SIGKILL SIGPROF SIGUSR1 SIGUSR2 alarm setitimer pthread_kill"),
    (select, "poll epoll"),
):
    for name in names.split():
        delattr(owner, name)
sys.platform = "win32"
"""


def on_windows(program: str, *arguments: object, first: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", first + WINDOWS + program, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


#: The command line, without anything heavy at hand.
RPRM = """
for module in ("torch", "transformers", "datasets", "trl", "peft", "accelerate", "math_verify", "matplotlib"):
    sys.modules[module] = None
from rprm.cli import main
main()
"""


@pytest.mark.slow
def test_every_module_is_imported_on_windows() -> None:
    done = on_windows(
        "import importlib, pkgutil, rprm\n"
        "for module in pkgutil.walk_packages(rprm.__path__, 'rprm.'):\n"
        "    if not module.name.endswith('__main__'):\n"
        "        try:\n"
        "            importlib.import_module(module.name)\n"
        "        except ModuleNotFoundError as error:\n"
        # Adapters are for users of the library that they adapt to.
        "            if not module.name.startswith('rprm.integrations.') or error.name.startswith('rprm'):\n"
        "                raise\n"
        "        print(module.name)\n",
        first="import torch, transformers, trl\nfrom transformers import Trainer",
    )
    assert done.returncode == 0, done.stderr
    assert {"rprm.grading.sandbox", "rprm.subcommands", "rprm.evolve", "rprm.cli.app"} <= set(done.stdout.split())


@pytest.mark.parametrize("command", ["--help", "judge --help", "bench --help", "bench mathematics --help"])
def test_commands_start_on_windows(command: str) -> None:
    done = on_windows(RPRM, *command.split())
    assert done.returncode == 0, done.stderr
    assert "Usage: " in done.stdout


def test_judge_and_bench_run_on_windows(tmp_path: Path) -> None:
    run = tmp_path / "run"
    common = ["--model", "scripted:?yes_rate=0&noise=0", "--output", run]
    done = on_windows(RPRM, "judge", EXAMPLES / "solutions.jsonl", "--limit", "1", *common)
    assert done.returncode == 0, done.stderr
    assert "░" in done.stdout
    assert len((run / "results.jsonl").read_text().splitlines()) == 1
    items = [
        {"id": f"gsm8k-{number}", "problem": "1 + 1?", "steps": ["2."], "label": label, "final_answer_correct": True}
        for number, label in enumerate([-1, 0])
    ]
    (tmp_path / "gsm8k.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    common[-1] = tmp_path / "bench"
    done = on_windows(RPRM, "bench", "processbench", "--data", tmp_path / "gsm8k.jsonl", *common, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["items"] == 2


def test_the_grader_says_in_one_line_that_windows_is_not_supported() -> None:
    program = (
        "from rprm.grading import AnswerPair, Grader\n"
        "from rprm.errors import RprmError\n"
        "grader = Grader()\n"
        # Strings and numbers decide without a process.
        "print([grade.correct for grade in grader.grade_all([AnswerPair('1/2', '0.5'), AnswerPair('3', '4')])])\n"
        "try:\n"
        "    grader.grade_all([AnswerPair('x+1', '1+x')])\n"
        "except RprmError as error:\n"
        "    print(error)\n"
    )
    done = on_windows(program)
    assert done.returncode == 0, done.stderr
    decided, message = done.stdout.splitlines()
    assert decided == "[True, False]"
    assert "Linux or macOS" in message
    assert "WSL" in message


@pytest.mark.parametrize("platform", ["linux", "darwin", "win32"])
def test_a_stage_starts_on_every_platform(platform: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[dict[str, Any]] = []

    class Process:
        def __init__(self, command: list[str], **options: Any) -> None:
            started.append(options)

    monkeypatch.setattr(subprocess, "Popen", Process)
    monkeypatch.setattr(sys, "platform", platform)
    Subcommand(tmp_path / "stage", ["judge", "x.jsonl"])
    # Windows refuses any `preexec_fn`, and `prctl` is of Linux alone.
    begin, called = started[0]["preexec_fn"], []
    assert (begin is None) == (platform == "win32")
    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace(prctl=lambda *numbers: called.append(numbers)))
    monkeypatch.setattr(signal, "signal", lambda number, handler: None)
    if begin is not None:
        begin()
    assert len(called) == (platform == "linux")


@pytest.mark.slow
def test_memory_is_watched_where_the_kernel_does_not_limit_it() -> None:
    """As on macOS: without RLIMIT_AS. 2^(9 * 10^9) is a number of a gigabyte, and the limit is 200 MiB."""
    pytest.importorskip("math_verify")
    program = (
        "import resource, sys\n"
        "from rprm.grading import sandbox\n"
        "set_limit = resource.setrlimit\n"
        "def setrlimit(which, limits):\n"
        "    if which == resource.RLIMIT_AS:\n"
        "        raise ValueError('current limit exceeds maximum limit')\n"
        "    set_limit(which, limits)\n"
        "resource.setrlimit = setrlimit\n"
        "sandbox._WATCHES_MEMORY, sandbox._LOOK_S = True, 0.05\n"
        "sandbox.main()\n"
    )
    rule = {"name": "mathematics"}
    questions = [[60, "5", "2^{9000000000}", rule], [60, "x+1", "1+x", rule]]
    done = subprocess.Popen(
        [sys.executable, "-c", program, str(200 << 20)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert done.stdin is not None
    assert done.stdout is not None
    with done:
        assert done.stdout.readline() == "ready\n"
        outcomes = []
        for question in questions:
            done.stdin.write(json.dumps(question) + "\n")
            done.stdin.flush()
            outcomes.append(done.stdout.readline().strip().partition("\t")[0])
        done.stdin.close()
    assert outcomes == ["out of memory", "equal"]
