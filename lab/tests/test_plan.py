"""The lab's experiments as commands: what they need stands before them, and the commands exist."""

from __future__ import annotations

import json
import shlex
import sys
import tarfile
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rprm.cli.app import app
from rprm.errors import InputError, RunError
from rprm_lab import BASE
from rprm_lab.findings import find
from rprm_lab.packing import pack
from rprm_lab.page import claims
from rprm_lab.plan import EXPERIMENTS, SIZES, TINY, LabSettings, Plan, make_plan
from rprm_lab.running import Progress, run_plan
from rprm_lab.world import STEPS, WorldSettings, write_world
from tests.warm import warm_torch

LAPTOP = SIZES["laptop"]


def folders(*experiments: str, settings: LabSettings = LAPTOP) -> list[str]:
    return list(make_plan(Path("lab"), settings, experiments or EXPERIMENTS).tasks)  # type: ignore[arg-type]


@pytest.mark.parametrize("settings", [LAPTOP, SIZES["small"], replace(LAPTOP, from_scratch=True)])
@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_what_a_task_needs_stands_before_it(experiment: str, settings: LabSettings) -> None:
    seen: set[str] = set()
    for task in make_plan(Path("lab"), settings, [experiment]).tasks.values():  # type: ignore[list-item]
        assert set(task.needs) <= seen, task
        seen.add(task.folder)


def test_no_experiment_runs_what_another_alone_needs() -> None:
    assert not [name for name in folders("data") if "rounds" in name or "guidance" in name or "ood" in name]
    assert not [name for name in folders("scaling") if "classifier" in name or "size-250/" in name]
    assert len(folders("data")) == 2 + 3 * 5 * 7


def test_from_scratch_trains_what_the_package_has() -> None:
    scratch = replace(LAPTOP, from_scratch=True)
    assert set(folders(settings=scratch)) - set(folders()) == {"base", "policy"}
    for settings in (LAPTOP, scratch):
        tasks = make_plan(Path("lab"), settings).tasks
        start = tasks["seed-0/size-250/sft"].arguments
        base = Path(start[start.index("--model") + 1])
        assert base == (Path("lab/base/model") if settings.from_scratch else BASE)
        assert ("base" in tasks["seed-0/size-250/sft"].needs) is settings.from_scratch
        samples = tasks["seed-0/guidance/samples"].arguments
        assert ("lab/policy/model" in " ".join(samples)) is settings.from_scratch


@pytest.mark.parametrize("settings", [LAPTOP, SIZES["small"], replace(LAPTOP, from_scratch=True)])
def test_every_path_a_command_reads_is_made_by_a_task_it_needs(settings: LabSettings) -> None:
    plan = make_plan(Path("lab"), settings)
    for task in plan.tasks.values():
        words = [word for argument in task.arguments for word in argument.replace("?", ":").split(":")]
        for word in words:
            if word.startswith("lab/"):
                maker = next((name for name in plan.tasks if f"{word}/".startswith(f"lab/{name}/")), None)
                ancestors, waiting = set[str](), list(task.needs)
                while waiting:
                    ancestors.add(name := waiting.pop())
                    waiting += plan.tasks[name].needs
                assert maker in ancestors, (task, word)


def test_seeds_share_no_step_and_sizes_are_beginnings() -> None:
    plan = make_plan(Path("lab"), replace(LAPTOP, num_seeds=2), ["data"])
    ranges = {}
    for name, task in plan.tasks.items():
        if name.endswith("/steps"):
            skip, count = (int(task.arguments[task.arguments.index(flag) + 1]) for flag in ("--skip", "--count"))
            ranges.setdefault(name.split("/")[0], set()).add((skip, skip + count))
    assert ranges["seed-0"] == {(0, size) for size in LAPTOP.sizes}
    assert ranges["seed-1"] == {(4000, 4000 + size) for size in LAPTOP.sizes}


def test_dry_run_prints_commands_that_parse(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["lab", "run", "-o", str(tmp_path / "lab"), "--size", "tiny", "--dry-run"])
    assert done.exit_code == 0, done.output
    lines = [shlex.split(line) for line in done.stdout.splitlines()]
    assert not (tmp_path / "lab").exists()
    assert all(words[0] == "rprm" for words in lines)
    for command in {tuple(words[1:3]) for words in lines if words[1] != "evolve"}:
        assert CliRunner().invoke(app, [*command, "--help"]).exit_code == 0, command


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"sizes": (20, 10)}, "must ascend"),
        ({"sft_steps": (20, 10)}, "as many as sizes, 5"),
        ({"scaling_analyses": 12}, "power of two"),
        ({"num_seeds": 11}, "11 seeds of 4000"),
    ],
)
def test_settings_that_cannot_be(changed: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        replace(LAPTOP, **changed)  # type: ignore[arg-type]


def test_steps_are_taken_in_order(tmp_path: Path) -> None:
    write_world(tmp_path / "world", WorldSettings(num_train=12, num_test=2))
    whole = (tmp_path / "world" / "train" / STEPS).read_text().splitlines()
    command = ["lab", "steps", str(tmp_path / "world"), "--skip", "4", "--count", "6", "-o", str(tmp_path / "taken")]
    assert CliRunner().invoke(app, command).exit_code == 0
    taken = (tmp_path / "taken" / STEPS).read_text().splitlines()
    assert taken == whole[4:10]
    assert sum(json.loads(line)["label"] for line in taken) == 3
    failed = CliRunner().invoke(app, [*command[:6], "9", *command[7:]])
    assert failed.exit_code != 0
    assert "no 9 steps after the first 4" in str(failed.exception)


def test_tasks_run_after_what_they_need_and_never_twice(tmp_path: Path) -> None:
    plan = Plan(tmp_path / "lab", TINY)
    world = plan.add("world", "lab", "world", "--steps", "8", "--test", "2", product="world.json")
    for skip in range(3):
        plan.add(
            f"part-{skip}", "lab", "steps", plan.path(world), "--skip", str(skip), "--count", "2",
            needs=[world], product=STEPS,
        )  # fmt: skip
    told: list[Progress] = []
    run_plan(plan, num_jobs=2, on_progress=told.append)
    ended = [progress.task.folder for progress in told if progress.seconds is not None]
    assert ended[0] == "world"
    assert sorted(ended) == ["part-0", "part-1", "part-2", "world"]
    assert [progress.num_done for progress in told if progress.seconds is not None] == [1, 2, 3, 4]
    again: list[Progress] = []
    run_plan(plan, num_jobs=2, on_progress=again.append)
    assert not again


def test_the_longest_row_goes_first(tmp_path: Path) -> None:
    plan = Plan(tmp_path / "lab", TINY)
    world = plan.add("world", "lab", "world", "--steps", "8", "--test", "2", product="world.json")
    for name, needs in (("alone", [world]), ("first", [world]), ("second", ["first"])):
        plan.add(name, "lab", "steps", plan.path(world), "--count", "2", needs=needs, product=STEPS)
    told: list[Progress] = []
    run_plan(plan, num_jobs=1, on_progress=told.append)
    begun = [progress.task.folder for progress in told if progress.seconds is None]
    assert begun == ["world", "first", "alone", "second"]


def test_one_seed_goes_before_the_next(tmp_path: Path) -> None:
    plan = Plan(tmp_path / "lab", TINY)
    world = plan.add("world", "lab", "world", "--steps", "8", "--test", "2", product="world.json")
    rows = {"seed-0/alone": [world], "seed-1/first": [world], "seed-1/second": ["seed-1/first"]}
    for name, needs in rows.items():
        plan.add(name, "lab", "steps", plan.path(world), "--count", "2", needs=needs, product=STEPS)
    told: list[Progress] = []
    run_plan(plan, num_jobs=1, on_progress=told.append)
    # The row of the second seed is longer; it waits for the first seed all the same.
    assert [progress.task.folder for progress in told if progress.seconds is None] == ["world", *rows]


def test_a_task_that_fails_is_told_with_its_last_words(tmp_path: Path) -> None:
    plan = Plan(tmp_path / "lab", TINY)
    plan.add("steps", "lab", "steps", str(tmp_path / "nowhere"), "--count", "2", product=STEPS)
    with pytest.raises(RunError, match=r"(?s)`rprm lab steps` failed with exit code \d.*holds no world"):
        run_plan(plan, num_jobs=1)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="processes are looked up in /proc")
def test_a_failure_stops_what_runs_beside_it(tmp_path: Path) -> None:
    plan = Plan(tmp_path / "lab", TINY)
    # A world of a million steps takes minutes: longer than a stage is given to stop before it is killed. The failing
    # one is done in a second.
    plan.add("large", "lab", "world", "--steps", "1000000", product="world.json")
    plan.add("steps", "lab", "steps", str(tmp_path / "nowhere"), "--count", "2", product=STEPS)
    with pytest.raises(RunError, match="holds no world"):
        run_plan(plan, num_jobs=2)
    assert not (tmp_path / "lab" / "large" / "world.json").exists()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            assert str(tmp_path / "lab" / "large").encode() not in path.read_bytes()


@pytest.mark.long
@pytest.mark.slow
def test_every_experiment_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The smallest lab, whole: each stage ends, and the report has something of every experiment."""
    pytest.importorskip("trl")
    warm_torch().take_stages(monkeypatch)
    lab = tmp_path / "lab"
    run_plan(make_plan(lab, TINY), num_jobs=2)
    found = find(lab, TINY)
    assert found.num_seeds == dict.fromkeys(EXPERIMENTS, 1)
    assert {claim.effect for claim in claims(TINY)} <= found.effects.keys()

    archive = tmp_path / "lab.tar.xz"
    size = pack(lab, archive)
    assert size == archive.stat().st_size < 200_000
    with tarfile.open(archive) as tar:
        tar.extractall(tmp_path / "unpacked", filter="data")
    files = [file for file in (tmp_path / "unpacked").rglob("*") if file.is_file()]
    assert not any(file.suffix == ".safetensors" for file in files)
    assert find(tmp_path / "unpacked", TINY).as_dict() == found.as_dict()
    # What is there is not run again.
    again: list[Progress] = []
    run_plan(make_plan(tmp_path / "unpacked", TINY, ["data"]), num_jobs=2, on_progress=again.append)
    assert {progress.task.folder.rpartition("/")[2] for progress in again} <= {"world", "steps", "validation"}


def test_only_a_lab_is_packed(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="is not a run folder"):
        pack(tmp_path, tmp_path / "lab.tar.xz")
    assert not list(tmp_path.iterdir())
