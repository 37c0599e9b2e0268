"""The world's files, and the teacher that reads them."""

from __future__ import annotations

import asyncio
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from rprm.benchmarks import read_problem_file, read_processbench
from rprm.data.analyses import sample_analyses
from rprm.data.steps import read_labelled_steps, steps_source
from rprm.engines import Sampling, load_engine
from rprm.errors import EngineError, RequestRefused, RunError
from rprm.prompts import load_policy_template, load_template
from rprm.records import LabelledStep
from rprm.rewarders.rprm import Judge
from rprm.stopping import StoppingRule
from rprm_lab.world import JUDGE_TEMPLATE, WorldSettings, held_out_problems, write_world

SETTINGS = WorldSettings(num_train=300, num_test=60, seed=5)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lab") / "world"
    write_world(folder, SETTINGS)
    return folder


def steps_of(world: Path, split: str) -> list[LabelledStep]:
    rows = list(read_labelled_steps(steps_source(world / split / "steps.jsonl")))
    assert all(isinstance(row, LabelledStep) for row in rows)
    return rows  # type: ignore[return-value]


def test_the_files_are_those_of_real_sets(world: Path) -> None:
    items = read_processbench(world / "test" / "solutions.jsonl")
    assert len(items.items) == 60
    assert not items.rejected
    # As many with an error as without.
    assert sum(item.label >= 0 for item in items.items) == 30
    assert len(read_problem_file(world / "ood" / "problems.jsonl").problems) == 60
    assert load_template(world / "prompt.toml").digest == JUDGE_TEMPLATE.digest
    assert load_policy_template(world / "policy.toml").render("1?").text == "Problem: 1?\nSolution:\n"


def test_labels_are_balanced_at_every_length(world: Path) -> None:
    steps = steps_of(world, "train")
    assert len(steps) == 300
    for number in (2, 50, 100, 300):
        assert sum(step.label for step in steps[:number]) == number / 2
    sources = {step.source for step in steps}
    errors = ("calculation", "data source", "consistency", "operation", "question")
    assert sources == {"lab", *(f"lab:{error}" for error in errors)}


@pytest.mark.parametrize("split", ["train", "test", "ood"])
def test_where_a_step_stands_does_not_tell_its_label(world: Path, split: str) -> None:
    # Each wrong step comes with a right one: as far into a solution, and giving the answer just if it does.
    steps = steps_of(world, split)
    pairs = list(zip(steps[::2], steps[1::2], strict=False))
    for pair in pairs:
        assert {step.label for step in pair} == {True, False}
        first, second = ((len(step.previous_steps), "answer" in step.step.lower()) for step in pair)
        assert first == second, pair
        assert pair[0].problem != pair[1].problem
    assert {pair[0].label for pair in pairs} == {True, False}
    assert {len(step.previous_steps) for pair in pairs for step in pair} >= {0, 1, 2}


def test_no_problem_stands_in_two_splits(world: Path) -> None:
    problems = {
        split: {json.loads(line)["problem"] for line in (world / split / "problems.jsonl").read_text().splitlines()}
        for split in ("train", "test", "ood")
    }
    assert not problems["train"] & (problems["test"] | problems["ood"])
    assert not problems["test"] & problems["ood"]
    assert held_out_problems(SETTINGS) == problems["test"] | problems["ood"]


def test_a_wide_world_differs_in_what_it_trains_on_alone(world: Path, tmp_path: Path) -> None:
    wide = tmp_path / "wide"
    write_world(wide, replace(SETTINGS, wide=True))
    for split in ("test", "ood"):
        for file in ("problems.jsonl", "solutions.jsonl", "steps.jsonl", "truth.jsonl"):
            assert (wide / split / file).read_bytes() == (world / split / file).read_bytes()
    steps = steps_of(wide, "train")
    assert sum(step.label for step in steps) == 150
    numbers = [int(number) for step in steps for number in re.findall(r"\d+", step.problem)]
    assert max(numbers) > 999
    assert max(len(step.previous_steps) for step in steps) > max(
        len(s.previous_steps) for s in steps_of(world, "train")
    )
    assert agreeing(wide, "reading=0&slip=0&verdict=0", tmp_path) == (600, 600)
    with pytest.raises(RunError, match="holds a world of other settings"):
        write_world(wide, SETTINGS)


def test_the_same_settings_give_the_same_bytes(world: Path, tmp_path: Path) -> None:
    write_world(tmp_path / "again", SETTINGS)
    files = sorted(path.relative_to(world) for path in world.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(tmp_path / "again") for path in (tmp_path / "again").rglob("*.*"))
    assert all((world / file).read_bytes() == (tmp_path / "again" / file).read_bytes() for file in files)
    with pytest.raises(RunError, match="holds a world of other settings"):
        write_world(tmp_path / "again", WorldSettings(num_train=10, num_test=4))


def test_a_world_that_a_kill_left_unfinished_is_written_anew(world: Path, tmp_path: Path) -> None:
    folder = tmp_path / "torn"
    write_world(folder, SETTINGS)
    (folder / "world.json").unlink()
    (folder / "train" / "steps.jsonl").write_text('{"torn')
    write_world(folder, SETTINGS)
    assert (folder / "train" / "steps.jsonl").read_bytes() == (world / "train" / "steps.jsonl").read_bytes()


def agreeing(world: Path, options: str, tmp_path: Path) -> tuple[int, int]:
    """Analyses of the training steps by the teacher that agree with the label, and all of them."""
    source = steps_source(world / "train" / "steps.jsonl")
    judge = Judge(
        load_engine(f"lab:{world}?{options}"),
        load_template(world / "prompt.toml"),
        StoppingRule(2, 0.5, "none"),
        Sampling(temperature=1.0, seed=0),
    )
    totals = asyncio.run(
        sample_analyses(judge, read_labelled_steps(source), source=source.inspect(), output=tmp_path / "teacher")
    )
    assert totals.num_without_verdict == 0
    return totals.num_agreeing, totals.num_analyses


def test_a_teacher_without_faults_agrees_with_every_label(world: Path, tmp_path: Path) -> None:
    assert agreeing(world, "reading=0&slip=0&verdict=0", tmp_path) == (600, 600)


def test_a_fallible_teacher_does_not(world: Path, tmp_path: Path) -> None:
    agreed, number = agreeing(world, "reading=0&slip=0&verdict=0.25&systematic=0", tmp_path)
    # Binomial(600, 0.75): 450 expected, standard deviation 11.
    assert number == 600
    assert 450 - 45 <= agreed <= 450 + 45


def test_the_teacher_knows_its_own_steps_alone(world: Path) -> None:
    engine = load_engine(f"lab:{world}")

    async def ask() -> None:
        await engine.start()
        await engine.generate(JUDGE_TEMPLATE.render("1 + 1 = ?", ["2"], 0), Sampling())

    with pytest.raises(RequestRefused, match="knows the labelled steps"):
        asyncio.run(ask())
    with pytest.raises(EngineError, match="no world with a split 'none'"):
        asyncio.run(load_engine(f"lab:{world}?split=none").start())
    with pytest.raises(EngineError, match="reading=2"):
        load_engine(f"lab:{world}?reading=2")
