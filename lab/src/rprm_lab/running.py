"""Run a plan: tasks whose needs are met, several at a time, each a process of its own."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from json import dumps
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from rprm.errors import CorruptRun, RunError
from rprm.runs import MANIFEST, Run, read_manifest, versions
from rprm.subcommands import Subcommand
from rprm_lab.plan import LabSettings, Plan, Task

#: Seconds between looks at what runs.
_PAUSE = 0.05


@dataclass(frozen=True)
class Progress:
    """A task started or ended: how many of all are done, and which run."""

    task: Task
    seconds: float | None
    num_done: int
    num_tasks: int


def run_plan(plan: Plan, *, num_jobs: int, on_progress: Callable[[Progress], None] = lambda progress: None) -> None:
    """Run what is not done yet. Killed at any moment, the same call resumes it.

    Args:
        plan: of all tasks.
        num_jobs: tasks at a time. Each gets its share of the cores as threads: small models gain little from a second.
        on_progress: called when a task starts (`seconds` None) and when it has ended.

    Raises:
        RunError: a task failed, with its last output; those beside it are asked to stop, and resume with the next call.
        SettingsChanged: the folder was started with other settings.
    """
    plan.lab.mkdir(parents=True, exist_ok=True)
    settings = plan.settings.as_dict()
    with Run(plan.lab, stage="lab run", settings=settings, session={"versions": versions()}) as run:
        _Runner(plan, num_jobs, on_progress).run()
        run.complete({"num_tasks": len(plan.tasks)}, {})


def read_settings(lab: str | Path) -> LabSettings:
    """The settings of a lab that was started; as many seeds as there are folders.

    Raises:
        RunError: the folder holds none, or (CorruptRun) they are damaged.
    """
    folder = Path(lab)
    manifest = read_manifest(folder)
    if manifest.get("stage") != "lab run":
        raise RunError(f"{lab} holds no lab; start one with `rprm lab run --output {lab}`")
    stored = {**manifest["settings"], "num_seeds": max(1, len(list(folder.glob("seed-*"))))}
    try:
        return TypeAdapter(LabSettings).validate_json(dumps(stored), strict=True, extra="forbid")
    except ValidationError as error:
        raise CorruptRun.at(str(folder / MANIFEST), error) from None


class _Runner:
    def __init__(self, plan: Plan, num_jobs: int, on_progress: Callable[[Progress], None]) -> None:
        self.plan = plan
        self.num_jobs = num_jobs
        self.on_progress = on_progress
        self.order = _most_urgent_first(plan)
        self.done = {folder for folder, task in plan.tasks.items() if task.is_done(plan.lab)}
        self.running: dict[str, tuple[Subcommand, float]] = {}

    def run(self) -> None:
        try:
            while len(self.done) < len(self.plan.tasks):
                self._start()
                self._collect()
                time.sleep(_PAUSE)
        finally:
            for stage, _ in self.running.values():
                stage.stop()
            for stage, _ in self.running.values():
                stage.end()

    def _start(self) -> None:
        for folder in self.order:
            task = self.plan.tasks[folder]
            if len(self.running) >= self.num_jobs:
                return
            if folder in self.done or folder in self.running or not self.done.issuperset(task.needs):
                continue
            self.running[folder] = self._stage(task), time.monotonic()
            self._tell(task, None)

    def _collect(self) -> None:
        for folder, (stage, started) in list(self.running.items()):
            if stage.process.poll() is not None:
                del self.running[folder]
                stage.wait()
                self.done.add(folder)
                self._tell(self.plan.tasks[folder], time.monotonic() - started)

    def _stage(self, task: Task) -> Subcommand:
        cores = os.cpu_count() or 1
        threads = str(cores if task.wide else max(1, cores // self.num_jobs))
        return Subcommand(Path(self.plan.path(task.folder)), task.arguments, environment={"OMP_NUM_THREADS": threads})

    def _tell(self, task: Task, seconds: float | None) -> None:
        self.on_progress(Progress(task, seconds, len(self.done), len(self.plan.tasks)))


def _most_urgent_first(plan: Plan) -> list[str]:
    """The tasks, one seed's before the next one's, so that a lab that is stopped has whole seeds; and in a seed by how
    many must follow one after the other, most first: no long row is left for the end.
    """
    num_after = dict.fromkeys(plan.tasks, 0)
    for folder, task in reversed(plan.tasks.items()):
        for need in task.needs:
            num_after[need] = max(num_after[need], num_after[folder] + 1)
    return sorted(plan.tasks, key=lambda folder: (plan.tasks[folder].seed, -num_after[folder]))
