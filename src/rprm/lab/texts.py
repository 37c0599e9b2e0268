"""What the base model is pretrained on: worked arithmetic, solutions, solutions explained, and steps described.

No step is judged. A description says what a step needs and what the step says, as a model of instructions could; it
compares nothing, and does not say whether the step is right.
"""

from __future__ import annotations

import random
from collections.abc import Set
from dataclasses import dataclass, replace

from rprm.lab.solutions import ERROR_TYPES, Check, LabSolution, solve
from rprm.lab.stories import Story, tell
from rprm.lab.teacher import NOT_SAME, SAME, describe
from rprm.lab.worked import OPERATIONS, parsed, result, worked
from rprm.lab.world import IN_DISTRIBUTION, JUDGE_TEMPLATE, POLICY_TEMPLATE

#: Shares of the documents.
_SHARES = {"arithmetic": 0.2, "solution": 0.35, "explained": 0.15, "described": 0.3}
#: A prompt like the judge's, but for what it asks.
_DESCRIBE = replace(JUDGE_TEMPLATE, name="describe", user=JUDGE_TEMPLATE.user.replace("Check", "Describe"))
#: Calculations of one document.
_NUM_LINES = 8
#: Largest value of arithmetic: beyond the stories', so that four digits are known as well.
_LIMIT = 9_999


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a document. What is not `learnt` is given: nothing before it says what it will be."""

    text: str
    learnt: bool


def document(rng: random.Random, held_out: Set[str]) -> list[Piece]:
    """A document of the corpus; none tells a problem of `held_out`."""
    (kind,) = rng.choices(list(_SHARES), list(_SHARES.values()))
    if kind == "arithmetic":
        return [piece for _ in range(_NUM_LINES) for piece in _calculation(rng)]
    while True:
        story = tell(rng, num_steps=rng.choice(IN_DISTRIBUTION.num_steps), limit=IN_DISTRIBUTION.limit)
        if story.problem not in held_out:
            break
    if kind == "described":
        return _described(rng, story, solve(rng, story, error=rng.choice((None, *ERROR_TYPES))))
    solution = solve(rng, story, plain=rng.random() < 0.5)
    return _solution(story, solution) if kind == "solution" else _explained(story, solution)


def _solution(story: Story, solution: LabSolution) -> list[Piece]:
    """A solution as the policy writes it."""
    prompt = POLICY_TEMPLATE.render(story.problem, [step.text for step in solution.steps])
    return [Piece(prompt.text.removesuffix(prompt.reply), False), Piece(prompt.reply, True)]


def _described(rng: random.Random, story: Story, solution: LabSolution) -> list[Piece]:
    """A solution, right or with an error, and one of its steps described."""
    last = len(solution.steps) - 1 if solution.first_error < 0 else solution.first_error
    place = rng.choice((last, rng.randint(0, last)))
    prompt = _DESCRIBE.render(story.problem, [step.text for step in solution.steps], place)
    return [Piece(prompt.text, False), Piece(f"{describe(solution.steps[place].checks, place)}\n", True)]


def _calculation(rng: random.Random) -> list[Piece]:
    """A line of arithmetic: worked digit by digit, or its result alone; or two numbers compared."""
    if rng.random() < 0.15:
        return _comparison(rng)
    while True:
        operation = rng.choice(OPERATIONS)
        highest = rng.choice((9, 99, 999, 999, _LIMIT))
        left = rng.randint(1, highest)
        right = rng.randint(1, 9 if operation in "*/" else highest)
        if operation == "/":
            left *= right
        if operation == "*" and rng.random() < 0.3:
            left, right = right, left
        value = result(left, operation, right)
        if value is not None and max(left, right, value) <= _LIMIT:
            break
    calculation = f"{left} {operation} {right}"
    if rng.random() < 0.7:
        return [Piece(f"{calculation}:", False), Piece(f" {worked(left, operation, right)[0]}.\n", True)]
    return [Piece(f"{calculation} =", False), Piece(f" {value}.\n", True)]


def _comparison(rng: random.Random) -> list[Piece]:
    """Two numbers that are the same, or nearly so."""
    first = str(rng.randint(1, rng.choice((9, 99, 999, _LIMIT))))
    second = first
    if rng.random() < 0.5:
        place = rng.randrange(len(first))
        second = f"{first[:place]}{rng.randint(0, 9)}{first[place + 1 :]}"
    return [Piece(f"{first}, {second}:", False), Piece(f" {SAME if first == second else NOT_SAME}\n", True)]


def _explained(story: Story, solution: LabSolution) -> list[Piece]:
    """A solution with the source of every number, and every calculation worked, before each step."""
    lines = [
        " ".join([*(_reason(check, place) for check in step.checks if check.kind == "calculation"), step.text])
        for place, step in enumerate(solution.steps)
    ]
    text = "".join(f"{line}\n" for line in lines)
    return [Piece(f"Problem: {story.problem}\nExplained:\n", False), Piece(text, True)]


def _reason(check: Check, place: int) -> str:
    assert check.needs is not None
    text, _ = worked(*parsed(check.needs))
    return " ".join([*check.carried(place), *check.facts, f"This takes {check.needs}: {text}."])
