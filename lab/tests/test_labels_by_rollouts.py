"""Labels by completions (`rprm data rollouts`) against the truth, where every completion that a policy could write is
known, with its probability."""

from __future__ import annotations

import asyncio
import json
import math
import random
import re
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import partial
from itertools import count, islice
from pathlib import Path
from typing import Any

import pytest

from rprm.data.rollouts import RolledOut, roll_out
from rprm.data.solutions import read_solved
from rprm.data.stage_options import RolloutOptions
from rprm.engines import Sampling
from rprm.engines.scripted import ScriptedEngine, ScriptedReply
from rprm.prompts import Prompt
from rprm.runs import read_results
from rprm.search.candidates import Policy
from rprm_lab.stories import Story, result, tell
from rprm_lab.world import POLICY_TEMPLATE

#: How far off a calculation of the policy is, and how often.
SLIPS = {0: Fraction(5, 8), 1: Fraction(1, 4), -1: Fraction(1, 8)}
STUCK = "I am stuck."  # Nothing sensible follows from a wrong value.
STORIES = {story.problem: story for story in (tell(random.Random(at), num_steps=2 + at % 3) for at in range(15))}


def values_of(story: Story, steps: Sequence[str]) -> dict[int, int]:
    """The values that the story's quantities have after these steps, each of which states one."""
    values = {one.key: one.value for one in story.quantities if one.derivation is None}
    return values | {
        key: int(re.findall(r"= (-?\d+)", step)[-1]) for key, step in zip(story.needed(), steps, strict=False)
    }


def step_of(story: Story, key: int, values: dict[int, int], slip: int) -> tuple[str, int] | None:
    made = story.quantities[key].derivation
    assert made is not None
    left, right = (side.value if side.quantity is None else values[side.quantity] for side in (made.left, made.right))
    if (value := result(left, made.operation, right)) is None:
        return None
    return f"{left} {made.operation} {right} = {value + slip}.", value + slip


def completed(story: Story, steps: Sequence[str], slip: Callable[[], int]) -> list[str]:
    """The steps that the policy writes after these."""
    values, written = values_of(story, steps), list[str]()
    for key in story.needed()[len(steps) :]:
        if (made := step_of(story, key, values, slip())) is None:
            return [*written, STUCK]
        text, values[key] = made
        written.append(text)
    return [*written, f"The answer is {values[story.target]}."]


def chance(story: Story, steps: Sequence[str]) -> Fraction:
    """How probable it is that the policy comes to the right answer from there: over all that it could write."""
    left = story.needed()[len(steps) :]
    values = values_of(story, steps)
    if not left:
        return Fraction(values[story.target] == story.answer)
    found = Fraction(0)
    for slip, share in SLIPS.items():
        if (made := step_of(story, left[0], values, slip)) is not None:
            found += share * chance(story, (*steps, made[0]))
    return found


def write(prompt: Prompt, sampling: Sampling) -> ScriptedReply:
    """The policy: what it writes depends on the seed."""
    story = next(one for problem, one in STORIES.items() if problem in prompt.messages[0].content)
    rng = random.Random(sampling.seed)
    slip = partial(rng.choices, list(SLIPS), [float(share) for share in SLIPS.values()])
    steps = [step for step in prompt.reply.split("\n") if step]
    return ScriptedReply("\n".join(completed(story, steps, lambda: slip()[0])), None, 5)


@pytest.fixture(scope="module")
def solutions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three solutions of each story, with the slips of the policy."""
    path = tmp_path_factory.mktemp("lab") / "solutions.jsonl"
    rng = random.Random(0)
    rows = []
    for problem, story in STORIES.items():
        tries = (completed(story, (), lambda: rng.choices((0, 1, -1), (4, 1, 1))[0]) for _ in count())
        for steps in islice((steps for steps in tries if STUCK not in steps), 3):
            rows.append({"problem": problem, "steps": steps, "answer": str(story.answer)})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def run(solutions: Path, output: Path, **options: Any) -> list[RolledOut]:
    rows, source = read_solved(str(solutions))
    policy = Policy(ScriptedEngine(reply=write), POLICY_TEMPLATE, Sampling(1.0, 1.0, 200, 0))
    asyncio.run(roll_out(policy, rows, RolloutOptions(**options), source=source, output=output))
    return list(read_results(output, RolledOut.model_validate))


def test_the_truth_is_right() -> None:
    """By hand: two calculations are right with probability 25/64, and slips of one and minus one cancel in a sum."""
    story = next(one for one in STORIES.values() if len(one.needed()) == 2)
    first = step_of(story, story.needed()[0], values_of(story, ()), 0)
    assert first is not None
    assert chance(story, [first[0]]) == Fraction(5, 8)
    assert chance(story, ()) >= Fraction(25, 64)
    last = story.quantities[story.target].derivation
    assert last is not None
    if last.operation == "+":
        assert chance(story, ()) == Fraction(25, 64) + 2 * Fraction(1, 4) * Fraction(1, 8)


def test_soft_labels_are_the_chances_within_their_error(solutions: Path, tmp_path: Path) -> None:
    number, errors = 64, []
    for row in run(solutions, tmp_path / "run", num_completions=number, soft=True, method="all"):
        story = STORIES[row.problem.problem]
        for one in row.beginnings:
            true = float(chance(story, row.solutions[one.solution].steps[: one.num_steps]))
            assert one.share is not None
            deviation = math.sqrt(true * (1 - true) / number)
            assert abs(one.share - true) <= 4 * deviation, (true, one.share)
            if deviation:
                errors.append((one.share - true) / deviation)
    # As far off as the error says: in the mean by one deviation, and to no side.
    assert len(errors) > 40
    assert 0.6 < sum(error**2 for error in errors) / len(errors) < 1.5
    assert abs(sum(errors)) / math.sqrt(len(errors)) < 3


@pytest.mark.parametrize("number", [2, 8])
def test_hard_labels_miss_as_often_as_is_stated(solutions: Path, tmp_path: Path, number: int) -> None:
    """A step after which the policy comes to the right answer with probability p is called wrong with probability
    (1 - p)^n, and a step after which it cannot is never called right (docs/data.md)."""
    missed, expected, variance = 0, 0.0, 0.0
    for row in run(solutions, tmp_path / "run", num_completions=number, method="all"):
        story = STORIES[row.problem.problem]
        for one in row.beginnings:
            true = float(chance(story, row.solutions[one.solution].steps[: one.num_steps]))
            is_right = one.num_right > 0
            assert is_right <= (true > 0)
            miss = (1 - true) ** number
            if true > 0:
                missed += not is_right
                expected += miss
                variance += miss * (1 - miss)
    assert abs(missed - expected) <= 3 * math.sqrt(variance) + 0.5, (missed, expected)


@pytest.mark.parametrize(("above", "method"), [(0.0, "in-order"), (0.0, "all"), (0.2, "in-order"), (0.2, "binary")])
def test_stopping_early_changes_no_label(solutions: Path, tmp_path: Path, above: float, method: Any) -> None:
    kept = []
    for soft in (True, False):
        rows = run(solutions, tmp_path / str(soft), above=above, method=method, soft=soft, num_completions=12)
        drawn = sum(len(one.rollouts) for row in rows for one in row.beginnings)
        kept.append(([one.label for row in rows for one in row.solutions], drawn))
    assert kept[0][0] == kept[1][0]
    assert kept[1][1] < 0.8 * kept[0][1]


def test_first_errors_are_the_true_ones(solutions: Path, tmp_path: Path) -> None:
    """With enough completions, and a share between the chances before and after an error."""
    rows = run(solutions, tmp_path / "run", num_completions=100, above=0.2, method="in-order")
    checked = 0
    for row in rows:
        story = STORIES[row.problem.problem]
        for solution in row.solutions:
            chances = [float(chance(story, solution.steps[:end])) for end in range(1, len(solution.steps))]
            chances.append(float(solution.final_answer_correct or 0))
            if all(abs(one - 0.2) > 0.1 for one in chances) and solution.label is not None:
                checked += 1
                true = next((at for at, one in enumerate(chances) if one <= 0.2), -1)
                assert solution.label == true, (solution, chances)
                # That is where the arithmetic is wrong first.
                right = completed(story, (), lambda: 0)
                pairs = enumerate(zip(solution.steps, right, strict=False))
                slipped = next((at for at, (one, other) in pairs if one != other), -1)
                assert solution.label == slipped or chances[slipped] > 0.2
    assert checked > 20
