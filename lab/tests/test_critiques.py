"""Critiques of whole solutions: what the teacher writes, and what of it a critic is trained on."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rprm.cli.app import app
from rprm.critique import FORMATS
from rprm.errors import InputError
from rprm.records import LabelledStep, StepAnalyses
from rprm.runs import read_json_lines
from rprm_lab.critiques import CRITIC_TEMPLATE, CRITIQUES, TRAINING_TEMPLATE
from rprm_lab.solutions import ERROR_TYPES, Check, LabStep, Source, solve
from rprm_lab.stories import tell
from rprm_lab.teacher import Faults, criticise
from rprm_lab.world import STEPS, WorldSettings, write_world


def step(needs: str, stated: int, *, carried_from: int | None = None) -> LabStep:
    left = int(needs.split(" ")[0])
    source = Source(value=left, step=carried_from) if carried_from is not None else Source(value=left, fact="A fact.")
    sums = {"needs": needs, "says": needs, "right": stated, "stated": stated}
    check = Check.model_validate({"kind": "calculation", "asks": "coins Mia has", "sources": (source,), **sums})
    return LabStep(text=f"{needs} = {stated}.", checks=(check,))


def test_a_critique_word_for_word() -> None:
    # 4 + 5 is 9, as step 1 says; 9 + 5 is 14, and step 2 says 15. Step 3 is never looked at. Checks count from 0.
    steps = [step("4 + 5", 9), step("9 + 5", 15, carried_from=0), step("15 + 1", 16, carried_from=1)]
    assert criticise(steps, Faults(), solution="s", seed=0) == (
        "Step 1: 4 + 5 = 9.\n"
        "Check 0: It finds how many coins Mia has. The problem says: A fact. This takes 4 + 5. The step takes 4 + 5. "
        "That is the same. 4 + 5: 4+5=9, 9. The step has 9. That is the same. Nothing is wrong.\n"
        "Step 2: 9 + 5 = 15.\n"
        "Check 1: Step 1 gives 9. It finds how many coins Mia has. This takes 9 + 5. The step takes 9 + 5. That is the "
        "same. 9 + 5: 9+5=14, 14. The step has 15. That is not the same. The calculation is wrong.",
        1,
    )


def test_without_faults_every_critique_names_the_first_error() -> None:
    rng = random.Random(2)
    for place in range(200):
        solution = solve(rng, tell(rng, num_steps=1 + place % 4), error=(None, *ERROR_TYPES)[place % 6])
        text, index = criticise(solution.steps, Faults(), solution=str(place), seed=place)
        assert index == solution.first_error
        # Two lines a step, up to the first error or the last.
        assert len(text.split("\n")) == 2 * (index + 1 if index >= 0 else len(solution.steps))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("critiques") / "world"
    write_world(folder, WorldSettings(num_train=300, num_test=20, seed=3))
    return folder


def critiques(world: Path, output: Path, options: str, *more: str, split: str = "train") -> list[StepAnalyses]:
    command = ["lab", "critiques", str(world / split / STEPS), "-m", f"lab:{world}?{options}", "-o", str(output), *more]
    done = CliRunner().invoke(app, command, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    rows = list(read_json_lines(output / CRITIQUES, StepAnalyses.model_validate))
    assert f"{sum(len(row.analyses) for row in rows):,} critiques agree" in done.output.replace("\n", " ")
    return rows


def test_a_critic_sees_the_labels_of_the_steps_and_no_other(world: Path, tmp_path: Path) -> None:
    steps = list(read_json_lines(world / "train" / STEPS, LabelledStep.model_validate))
    rows = {row.step.id: row for row in critiques(world, tmp_path, "reading=0&slip=0&verdict=0", "-n", "2")}
    assert rows.keys() == {step.id for step in steps}
    after, whole = Counter[int](), Counter[bool]()
    solutions = {row["id"]: row["steps"] for row in read_json_lines(world / "train" / "solutions.jsonl")}
    for step in steps:
        row, solution = rows[step.id], solutions[step.id.rpartition(".")[0]]
        shown = row.step.steps
        assert shown == tuple(solution[: len(shown)])
        assert shown[: step.step_index + 1] == step.steps
        assert (row.step.label, len(row.analyses)) == (step.label, 2)
        for analysis in row.analyses:
            index = FORMATS["boxed"].find(analysis.text, len(shown))
            assert index == analysis.first_error == (-1 if step.label else step.step_index)
            assert TRAINING_TEMPLATE.verdict.find(analysis.text).yes is step.label  # type: ignore[union-attr]
        after[len(shown) - len(step.steps)] += not step.label
        whole[step.label] += len(shown) == len(solution)
        # Of a right step nothing beyond it is shown, for nothing is known of that.
        assert not step.label or len(shown) == len(step.steps)
        # The critic reads the very prompt that it is trained with.
        trained_with = TRAINING_TEMPLATE.render(step.problem, shown, len(shown) - 1)
        assert CRITIC_TEMPLATE.render(step.problem, shown).text == trained_with.text
    # Errors end some rows, and are followed by further steps in others. That a solution is shown to its end tells
    # little: of 150 labels either way, between a quarter and three quarters are of such.
    assert min(after[0], after[1]) > 15
    assert all(38 <= whole[label] <= 113 for label in (True, False)), whole


def test_what_disagrees_with_a_label_is_left_out(world: Path, tmp_path: Path) -> None:
    options = "reading=0&slip=0&verdict=0.3&systematic=0"
    rows = critiques(world, tmp_path / "a", options, "-n", "4")
    # A critique of n right steps agrees if none of its n verdicts is flipped: 0.7 ** n.
    expected = sum(4 * 0.7 ** (row.step.step_index + 1) for row in rows if row.step.label)
    found = sum(len(row.analyses) for row in rows if row.step.label)
    # Each of 600 has a variance of at most a quarter: a standard deviation of at most 12.2.
    assert abs(found - expected) < 4 * 12.2


def test_another_seed_writes_others(world: Path, tmp_path: Path) -> None:
    options = "reading=0.5&slip=0.5&systematic=0"
    first, again, other = (
        critiques(world, tmp_path / name, options, "-n", "1", "--seed", seed)
        for name, seed in (("a", "1"), ("b", "1"), ("c", "2"))
    )
    assert first == again != other


def test_cold_start_takes_them(world: Path, tmp_path: Path) -> None:
    critiques(world, tmp_path, "reading=0.35&slip=0.35&verdict=0.1", "-n", "4")
    command = ["data", "cold-start", str(tmp_path / CRITIQUES), "--prompt", str(tmp_path / "prompt.toml")]
    done = CliRunner().invoke(app, [*command, "--per-step", "2", "-o", str(tmp_path / "rows")], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    rows = list(read_json_lines(tmp_path / "rows" / "train.jsonl"))
    assert len(rows) > 100
    for row in rows:
        assert row["prompt"].endswith("Check all steps.\n")
        boxes = [line for line in row["completion"].split("\n") if "\\boxed{" in line]
        assert len(boxes) == 1
        assert ("{-1}" in boxes[0]) is row["label"]


def test_steps_of_another_world_are_refused(world: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    write_world(other, WorldSettings(num_train=20, num_test=4, seed=4))
    for steps, teacher, named in (
        (other / "train" / STEPS, f"lab:{world}", "train-"),
        (world / "test" / STEPS, f"lab:{world}", "test-"),
        (world / "train" / STEPS, f"lab:{tmp_path}", "holds no world"),
        (tmp_path / "none.jsonl", f"lab:{world}", "no labelled steps"),
        (world / "train" / STEPS, "scripted:", "no teacher of a world"),
    ):
        done = CliRunner().invoke(app, ["lab", "critiques", str(steps), "-m", teacher, "-o", str(tmp_path / "out")])
        assert isinstance(done.exception, InputError)
        assert named in str(done.exception)
    assert not (tmp_path / "out").exists()
