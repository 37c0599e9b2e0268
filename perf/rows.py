"""Rows a second and peak memory of all that is around a model: read, judge, resume, measure, show, list, export.

    python perf/rows.py [--rows 10000 100000 1000000] [--folder FOLDER]

Solutions are made up: 4 to 8 steps, 1.2 KB each. Their judge costs nothing, and writes one analysis of 1.7 KB of each,
as a critic does: what is measured is reading, journal and results. `resume` gives the same command to the complete run,
which then checks every row and parses none; `resume without index` parses them all. Each figure is of a process of its
own, with its start; CPU seconds are the ones to compare on a machine that does other work.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rprm.ledger import Ledger, paid_once
from rprm.reading import Source, read_solutions
from rprm.records import Analysis, Solution, SolutionReward, StepReward
from rprm.rewarders.base import judge_source, solution_reward

WORDS = (
    "sum",
    "apples",
    "costs",
    "each",
    "half",
    "three",
    "total",
    "equals",
    "price",
    "number",
    "left",
    "add",
    "divide",
)
TEXT = "The step follows from the one before it. " * 40 + "\nIs the step correct (Yes/No)? "
#: Runs a command, and prints its CPU seconds and peak KiB.
MEASURED = (
    "import resource, subprocess, sys; code = subprocess.call(sys.argv[1:], stdout=subprocess.DEVNULL); "
    "used = resource.getrusage(resource.RUSAGE_CHILDREN); "
    "print(used.ru_utime + used.ru_stime, used.ru_maxrss); sys.exit(code)"
)


def make(data: str, num_rows: int) -> None:
    """Solutions as a file that `rprm bench processbench` reads too; a third has a label that names a step."""
    draw = random.Random(0)
    lines = [" ".join(draw.choices(WORDS, k=draw.randint(20, 34))) for _ in range(4000)]
    with open(data, "w") as stream:
        for index in range(num_rows):
            steps = [f"{draw.choice(lines)} = {draw.randint(2, 999)}." for _ in range(draw.randint(4, 8))]
            label = draw.choice((-1, -1, draw.randrange(len(steps))))
            row = {"id": f"math-{index}", "problem": f"{index}: {draw.choice(lines)}?", "steps": steps, "label": label}
            stream.write(f"{json.dumps(row)}\n")


class Free:
    """A rewarder that costs nothing: a step's reward is a function of its length."""

    threshold, concurrency = 0.5, 64

    def in_full(self) -> Free:
        return self

    async def start(self) -> dict[str, Any]:
        return {"rewarder": "free", "engine": {"kind": "free", "model": "free"}, "threshold": 0.5, "max_tokens": 1000}

    async def judge(self, solution: Solution, ledger: Ledger | None = None) -> SolutionReward:
        rewards = [0.05 + 0.9 * (len(step) % 7 != 0) for step in solution.steps]

        async def write() -> Analysis:
            verdict = min(rewards) > 0.5
            return Analysis(
                text=f"{TEXT}{'Yes' if verdict else 'No'}", verdict=verdict, p_yes=min(rewards), num_tokens=400,
                p_yes_source="logprobs", num_prompt_tokens=500, finish_reason="verdict",
            )  # fmt: skip

        analyses = (await paid_once(ledger, "0.0", Analysis, write),)
        steps = [
            StepReward(step_index=index, reward=reward, vote=reward, analyses=analyses[: index == len(rewards) - 1])
            for index, reward in enumerate(rewards)
        ]
        return solution_reward(solution, steps, self.threshold)

    async def judge_step(
        self, problem: str, steps: Sequence[str], step_index: int, ledger: Ledger | None = None
    ) -> StepReward:
        raise NotImplementedError

    async def aclose(self) -> None: ...


def read(data: str) -> None:
    source = Source(data)
    source.inspect()
    for _ in read_solutions(source):
        pass


def judge(data: str, folder: str) -> None:
    source = Source(data)
    asyncio.run(judge_source(Free(), read_solutions(source), source=source.inspect(), output=folder))


def measured(*arguments: str) -> tuple[float, float, float]:
    """Seconds, CPU seconds and peak MiB of Python with these arguments."""
    before = time.monotonic()
    command = [sys.executable, "-c", MEASURED, sys.executable, *arguments]
    cpu, peak = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.split()
    return time.monotonic() - before, float(cpu), int(peak) / 1024


def compare(num_rows: int, folder: Path) -> None:
    """All of it on so many rows, a line each."""
    data, run = str(folder / "in.jsonl"), str(folder / "run")
    make(data, num_rows)
    stages = {
        "read": (__file__, "read", data),
        "judge": (__file__, "judge", data, run),
        "resume": (__file__, "judge", data, run),
        "resume without index": (__file__, "judge", data, run),
        "bench": ("-m", "rprm", "bench", "processbench", "--data", data, "--scores", run),
        "show": ("-m", "rprm", "show", run),
        "runs list": ("-m", "rprm", "runs", "list", str(folder)),
        "export": ("-m", "rprm", "export", run, "--to", str(folder / "rewards.csv")),
    }
    for name, arguments in stages.items():
        if "without" in name:
            (Path(run) / "index.json").unlink()
        seconds, cpu, peak = measured(*arguments)
        pace = f"{num_rows / cpu:9,.0f} rows/s CPU"
        print(f"{num_rows:>9,}  {name:20} {seconds:8.1f} s {cpu:8.1f} s CPU {pace} {peak:6,.0f} MiB", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] in (["read"], ["judge"]):
        globals()[sys.argv[1]](*sys.argv[2:])
        sys.exit()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--folder", type=Path, help="Where the files go; it is kept.  [default: a temporary one]")
    asked = parser.parse_args()
    for number in asked.rows:
        place = asked.folder / str(number) if asked.folder else Path(tempfile.mkdtemp(prefix="rprm-rows-"))
        place.mkdir(parents=True, exist_ok=True)
        compare(number, place)
        if not asked.folder:
            shutil.rmtree(place)
