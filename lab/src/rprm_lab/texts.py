"""What the base model is pretrained on: worked arithmetic, solutions, solutions explained, steps described, and copies.

No step is judged. A description says what a step needs and what the step says, as a model of instructions could; it
compares nothing, and does not say whether the step is right. Numbers, calculations and sentences are compared by
themselves, outside of any problem. What is copied are words and numbers in no order, all words of the world among
them: the base model can repeat a sentence that is told in no wording it knows.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Set
from dataclasses import dataclass, replace

from rprm_lab.language import vocabulary
from rprm_lab.solutions import ERROR_TYPES, Check, LabSolution, solve, with_other_number
from rprm_lab.stories import Story, tell
from rprm_lab.teacher import NOT_SAME, SAME, describe
from rprm_lab.worked import OPERATIONS, Operation, parsed, result, worked
from rprm_lab.world import IN_DISTRIBUTION, JUDGE_TEMPLATE, POLICY_TEMPLATE, Difficulty

#: Shares of the documents.
_SHARES = {"arithmetic": 0.22, "solution": 0.25, "explained": 0.13, "described": 0.28, "copied": 0.12}
#: A prompt like the judge's, but for what it asks.
_DESCRIBE = replace(JUDGE_TEMPLATE, name="describe", user=JUDGE_TEMPLATE.user.replace("Check", "Describe"))
#: Of the lines of arithmetic.
_COMPARISON_SHARE = 0.5
#: Lines of one document of arithmetic.
_NUM_LINES = 8
#: Largest value of arithmetic: beyond the stories', so that four digits are known as well.
_LIMIT = 9_999


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a document. What is not `learnt` is given: nothing before it says what it will be."""

    text: str
    learnt: bool


def document(rng: random.Random, held_out: Set[str], difficulty: Difficulty = IN_DISTRIBUTION) -> list[Piece]:
    """A document of the corpus, with stories of this difficulty; none tells a problem of `held_out`."""
    (kind,) = rng.choices(list(_SHARES), list(_SHARES.values()))
    if kind == "arithmetic":
        return [piece for _ in range(_NUM_LINES) for piece in _line(rng)]
    if kind == "copied":
        return _copied(rng)
    while True:
        story = difficulty.tell(rng)
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


def _line(rng: random.Random) -> list[Piece]:
    """A line of arithmetic: a calculation, or a comparison."""
    return _comparison(rng) if rng.random() < _COMPARISON_SHARE else _calculation(rng)


def _calculation(rng: random.Random) -> list[Piece]:
    """A calculation worked digit by digit, or its result alone."""
    left, operation, right, value = _numbers(rng)
    calculation = f"{left} {operation} {right}"
    if rng.random() < 0.7:
        return [Piece(f"{calculation}:", False), Piece(f" {worked(left, operation, right)[0]}.\n", True)]
    return [Piece(f"{calculation} =", False), Piece(f" {value}.\n", True)]


def _numbers(rng: random.Random) -> tuple[int, Operation, int, int]:
    """Two numbers, what to do with them, and the result."""
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
            return left, operation, right, value


def _comparison(rng: random.Random) -> list[Piece]:
    """Two numbers, calculations or sentences, and whether they are the same, in the words of an analysis."""
    left, operation, right, value = _numbers(rng)
    calculation = f"{left} {operation} {right}"
    match rng.randrange(4):
        case 0:
            text, _ = worked(left, operation, right)
            first, other, before = str(value), _near(rng, value), f"{calculation}: {text}. The step has "
        case 1:
            first, other, before = str(value), _near(rng, value), f"That is {value}. The answer is "
        case 2:
            first, other = _sentences(rng)
            before = f"The problem says: {first}. The step says: "
        case _:
            first, other = calculation, _other_calculation(rng, left, operation, right)
            before = f"This takes {calculation}. The step takes "
            if operation in "+*" and rng.random() < 0.3:
                first = f"{right} {operation} {left}"
    is_same = rng.random() < 0.5
    said = first if is_same else other
    return [Piece(f"{before}{said}.", False), Piece(f" {SAME if is_same else NOT_SAME}\n", True)]


def _copied(rng: random.Random) -> list[Piece]:
    """Sentences of words in no order; then those that have a certain word, repeated."""
    sentences = [_babble(rng) for _ in range(rng.randint(3, 7))]
    counts = Counter(word for sentence in sentences for word in set(sentence.split(" ")))
    pieces: list[Piece] = []
    before = f"Text: {'. '.join(sentences)}.\n"
    for sentence in rng.sample(sentences, 2):
        cue = rng.choice([word for word in sentence.split(" ") if counts[word] == 1] or [sentence])
        pieces += [Piece(f"{before}About {cue}:", False), Piece(f" The text says: {sentence}.\n", True)]
        before = ""
    return pieces


def _babble(rng: random.Random) -> str:
    """Words and numbers in no order."""
    pieces = rng.sample(vocabulary(), rng.randint(3, 11))
    for _ in range(rng.choice((1, 1, 2))):
        pieces.insert(rng.randint(1, len(pieces)), str(rng.randrange(10 ** rng.randint(1, 4))))
    return " ".join(pieces)


def _sentences(rng: random.Random) -> tuple[str, str]:
    """A sentence of a story or of words in no order, and the same with another number."""
    while True:
        if rng.random() < 0.5:
            sentence = _babble(rng)
        else:
            sentence = rng.choice(tell(rng, num_steps=1, limit=IN_DISTRIBUTION.limit).problem.rstrip(".?").split(". "))
        if other := with_other_number(rng, sentence, lambda number: int(_near(rng, number))):
            return sentence, other


def _near(rng: random.Random, value: int) -> str:
    """Another number, most often one that looks like it."""
    if rng.random() < 0.3:
        return str(value + rng.choice((1, 2, 10, 100)))
    digits = str(value)
    place = rng.randrange(len(digits))
    others = [digit for digit in "123456789" if digit != digits[place]]
    return f"{digits[:place]}{rng.choice(others)}{digits[place + 1 :]}"


def _other_calculation(rng: random.Random, left: int, operation: str, right: int) -> str:
    """Another calculation: one number or the operation differs."""
    match rng.randrange(3):
        case 0:
            return f"{_near(rng, left)} {operation} {right}"
        case 1:
            return f"{left} {operation} {_near(rng, right)}"
        case _:
            return f"{left} {rng.choice([other for other in OPERATIONS if other != operation])} {right}"


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
