"""Rows a second and peak memory of everything around a model: read, judge, resume, measure, show, export.

    python perf/rows.py [--rows 10000 100000 1000000] [--folder FOLDER]

Solutions are made up, 4 to 8 steps and about 1 KB each. They are judged by a rewarder that costs nothing and writes one
analysis of 300 characters for each step, so that what is measured is the reading, the journal and the results. `resume`
is the time until a run that was stopped right before its last row begins to judge again, read by its index and, for
comparison, row by row. Each figure is of a process of its own, with its imports.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from rprm.ledger import Ledger, paid_once
from rprm.reading import Source, read_solutions
from rprm.records import Analysis, Solution, SolutionReward, StepReward
from rprm.rewarders.base import judge_source, solution_reward

TEXT = "The step follows from the one before it. " * 7 + "\nIs the step correct (Yes/No)? "


def make(path: Path, number: int) -> None:
    """Solutions, a third of them with a label that names a step."""
    draw = random.Random(0)
    words = "sum apples costs each half three total equals price number remaining add subtract multiply divide".split()
    lines = [" ".join(draw.choices(words, k=draw.randint(18, 30))) for _ in range(4000)]
    with path.open("w") as stream:
        for index in range(number):
            steps = [f"{draw.choice(lines)} = {draw.randint(2, 999)}." for _ in range(draw.randint(4, 8))]
            label = draw.choice([-1, -1, draw.randrange(len(steps))])
            row = {"id": f"math-{index}", "problem": f"{index}: {draw.choice(lines)}?", "steps": steps, "label": label}
            stream.write(f"{json.dumps(row)}\n")


class Free:
    """A rewarder that costs nothing: an analysis a step, P(Yes) a function of the step's text."""

    threshold, concurrency = 0.5, 64

    def in_full(self) -> Free:
        return self

    async def start(self) -> dict[str, Any]:
        return {"rewarder": "free", "engine": {"kind": "free", "model": "free"}, "threshold": 0.5, "max_tokens": 100}

    async def judge(self, solution: Solution, ledger: Ledger | None = None) -> SolutionReward:
        steps = [
            await self.judge_step(solution.problem, solution.steps, index, ledger)
            for index in range(len(solution.steps))
        ]
        return solution_reward(solution, steps, self.threshold)

    async def judge_step(
        self, problem: str, steps: Iterable[str], step_index: int, ledger: Ledger | None = None
    ) -> StepReward:
        p_yes = 0.05 + 0.9 * (len(list(steps)[step_index]) % 7 != 0)

        async def write() -> Analysis:
            return Analysis(
                text=TEXT + ("Yes" if p_yes > 0.5 else "No"), verdict=p_yes > 0.5, p_yes=p_yes, num_tokens=90,
                p_yes_source="logprobs", num_prompt_tokens=400, finish_reason="verdict",
            )  # fmt: skip

        analysis = await paid_once(ledger, f"{step_index}.0", Analysis, write)
        return StepReward(step_index=step_index, reward=p_yes, vote=p_yes > 0.5, analyses=(analysis,), num_requested=1)

    async def aclose(self) -> None: ...


class Stopped(Exception):
    """The run is at the row where it was stopped."""


def read(data: str) -> None:
    source = Source(data)
    source.inspect()
    for _ in read_solutions(source):
        pass


def judge(data: str, folder: str, stop: str = "") -> None:
    """`stop`: at the row of that number, before it is judged."""

    def rows() -> Iterator[Any]:
        for number, row in enumerate(read_solutions(source)):
            if stop and number == int(stop):
                raise Stopped
            yield row

    source = Source(data)
    info = source.inspect()
    judged = judge_source(Free(), rows() if stop else read_solutions(source), source=info, output=folder)
    try:
        asyncio.run(judged)
    except Stopped:
        if not stop:
            raise


def child(*arguments: str) -> tuple[float, float]:
    """Seconds and peak MiB of a command in a process of its own."""
    before = time.monotonic()
    code = (
        "import resource, subprocess, sys; code = subprocess.call(sys.argv[1:], stdout=subprocess.DEVNULL); "
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss); sys.exit(code)"
    )
    ended = subprocess.run([sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, text=True, check=True)
    return time.monotonic() - before, int(ended.stdout) / 1024


if __name__ == "__main__":
    if sys.argv[1:2] in (["read"], ["judge"]):
        globals()[sys.argv[1]](*sys.argv[2:])
        sys.exit()
    print("later")
