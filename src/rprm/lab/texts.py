"""What the base model is pretrained on: worked arithmetic, solutions, and solutions explained. No step is judged."""

from __future__ import annotations

import random
from collections.abc import Set
from dataclasses import dataclass

from rprm.lab.solutions import Check, LabSolution, solve
from rprm.lab.stories import Story, tell
from rprm.lab.worked import OPERATIONS, parsed, result, worked
from rprm.lab.world import IN_DISTRIBUTION, POLICY_TEMPLATE

#: Shares of the documents; the rest are solutions, explained.
ARITHMETIC_SHARE, SOLUTION_SHARE = 0.25, 0.4
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
    kind = rng.random()
    if kind < ARITHMETIC_SHARE:
        return [piece for _ in range(_NUM_LINES) for piece in _calculation(rng)]
    while True:
        story = tell(rng, num_steps=rng.choice(IN_DISTRIBUTION.num_steps), limit=IN_DISTRIBUTION.limit)
        if story.problem not in held_out:
            break
    solution = solve(rng, story, plain=rng.random() < 0.5)
    if kind < ARITHMETIC_SHARE + SOLUTION_SHARE:
        return _solution(story, solution)
    return _explained(story, solution)


def _solution(story: Story, solution: LabSolution) -> list[Piece]:
    """A solution as the policy writes it."""
    prompt = POLICY_TEMPLATE.render(story.problem, [step.text for step in solution.steps])
    return [Piece(prompt.text.removesuffix(prompt.reply), False), Piece(prompt.reply, True)]


def _calculation(rng: random.Random) -> list[Piece]:
    """A line of arithmetic: worked digit by digit, or its result alone."""
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
