"""Worded solutions of stories, right and wrong, and what is true of every step."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

from rprm.records import Record
from rprm_lab import language as words
from rprm_lab import phrases
from rprm_lab.stories import Derivation, Operand, Quantity, Story, garble
from rprm_lab.worked import OPERATIONS, Operation, result

#: What can be wrong with a step: its arithmetic; a number of the problem; a value carried over from an earlier step;
#: the operation; the quantity that it answers with.
ErrorType = Literal["calculation", "data source", "consistency", "operation", "question"]
ERROR_TYPES: tuple[ErrorType, ...] = get_args(ErrorType)

#: What a step does. A fact restated and a plan calculate nothing.
CheckKind = Literal["calculation", "fact", "plan", "answer"]


class Source(Record):
    """Where a number comes from: a fact of the problem, or a step (0-based; itself, where a step derives two)."""

    value: int
    fact: str | None = None
    step: int | None = None


class Check(Record):
    """What is true of one claim of a step, and what the step says.

    Attributes:
        kind: of claim.
        asks: the quantity it is about, after "how many".
        fact: the sentence of the problem that decides it; None where the quantity says what it is.
        sources: of the numbers that it needs.
        needs, says: the right calculation, and the step's own; None where it calculates nothing. For a fact, the right
            sentence and the step's own.
        right, stated: the right value and the step's own; None for a fact and a plan.
    """

    kind: CheckKind
    asks: str
    fact: str | None = None
    sources: tuple[Source, ...] = ()
    needs: str | None = None
    says: str | None = None
    right: int | None = None
    stated: int | None = None

    @property
    def facts(self) -> list[str]:
        """The sentences of the problem that it rests on, each once."""
        facts = dict.fromkeys((self.fact, *(source.fact for source in self.sources)))
        return [fact for fact in facts if fact is not None]

    def carried(self, place: int) -> list[str]:
        """What it takes from earlier steps, a sentence each; `place` is its own step's."""
        return [
            f"Step {source.step + 1} gives {source.value}."
            for source in self.sources
            if source.step is not None and source.step != place
        ]


class LabStep(Record):
    """A step: its text, the truth about it, and what is wrong with it, if anything."""

    text: str
    checks: tuple[Check, ...]
    error: ErrorType | None = None


class LabSolution(Record):
    """A solution of a story. Steps after the first wrong one go on from its value; they are not judged."""

    steps: tuple[LabStep, ...]
    answer: int
    first_error: int


@dataclass(frozen=True, slots=True)
class _Move:
    """A step to be written: quantities to derive in it, a fact to restate, or a plan."""

    kind: CheckKind
    keys: tuple[int, ...]


class _Writer:
    """Writes one solution.

    Attributes:
        values: of the quantities as the solution has them; wrong ones after an error.
        made: in which step each derived quantity was found.
    """

    def __init__(self, rng: random.Random, story: Story) -> None:
        self.rng = rng
        self.story = story
        self.values = {quantity.key: quantity.value for quantity in story.quantities}
        self.made: dict[int, int] = {}
        self.steps: list[LabStep] = []

    def wording(self, sentences: Sequence[str], more: Sequence[str]) -> str:
        """One of the wordings, the last of which is unseen; garbled at the story's rate."""
        if self.story.unseen and self.rng.random() < 0.5:
            return sentences[-1]
        wording = self.rng.choice(words.seen(sentences, more, wide=self.story.wide))
        return garble(self.rng, wording, self.story.garbled_share)

    def operand(self, side: Operand) -> Operand:
        """The side of a calculation with the value that the solution has for it."""
        return side if side.quantity is None else replace(side, value=self.values[side.quantity])

    def derivation(self, quantity: Quantity) -> Derivation:
        assert quantity.derivation is not None
        made = quantity.derivation
        left, right = self.operand(made.left), self.operand(made.right)
        if made.operation in "+*" and self.rng.random() < 0.15:
            left, right = right, left
        return Derivation(left, made.operation, right)

    def source(self, side: Operand, fact: str | None) -> Source:
        if side.quantity is None:
            return Source(value=side.value, fact=fact)
        quantity = self.story.quantities[side.quantity]
        if quantity.derivation is None:
            return Source(value=side.value, fact=quantity.fact)
        return Source(value=side.value, step=self.made[side.quantity])

    def calculation(self, quantity: Quantity, error: ErrorType | None) -> tuple[str, Check] | None:
        """The sentence that derives a quantity, with an error of this type; None where it can have none of it."""
        right = self.derivation(quantity)
        needed = result(right.left.value, right.operation, right.right.value)
        if needed is None:
            return None
        said, stated = right, needed
        if error is not None:
            spoilt = _spoilt(self.rng, right, error, self._others(right))
            if spoilt is None:
                return None
            said, stated = spoilt
            if said == right and stated == needed:
                return None
        canonical = quantity.derivation
        assert canonical is not None
        needs = Derivation(self.operand(canonical.left), canonical.operation, self.operand(canonical.right))
        check = Check(
            kind="calculation",
            asks=quantity.asks,
            fact=quantity.fact,
            sources=tuple(self.source(side, quantity.fact) for side in (needs.left, needs.right)),
            needs=needs.text,
            says=said.text,
            right=needed,
            stated=stated,
        )
        self.values[quantity.key] = stated
        self.made[quantity.key] = len(self.steps)
        return self.sentence(quantity, said, stated), check

    def _others(self, derivation: Derivation) -> list[int]:
        """Values that could be mistaken for one of the calculation's."""
        used = {derivation.left.value, derivation.right.value}
        return sorted({*self.story.numbers, *(self.values[key] for key in self.made)} - used)

    def sentence(self, quantity: Quantity, said: Derivation, stated: int) -> str:
        clause = quantity.clause(stated)
        spoken = f"{said.left.value} {phrases.SPOKEN[said.operation]} {said.right.value}"
        return self.wording(phrases.STATED, phrases.MORE_STATED).format(
            Clause_with=_capital(quantity.clause(f"{said.text} = {stated}")),
            Clause=_capital(clause),
            clause=clause,
            sum=said.text,
            Spoken=spoken,
            value=stated,
            asks=quantity.asks,
        )

    def answer(self, key: int) -> tuple[str, Check]:
        target = self.story.quantities[self.story.target]
        value = self.values[key]
        sources = (Source(value=self.values[target.key], step=self.made[target.key]),)
        check = Check(
            kind="answer", asks=target.asks, sources=sources, right=self.values[target.key], stated=value
        )  # fmt: skip
        return phrases.ANSWERED.format(value=value), check

    def add(self, text: str, checks: Sequence[Check], error: ErrorType | None) -> None:
        self.steps.append(LabStep(text=text, checks=tuple(checks), error=error))


def solve(rng: random.Random, story: Story, *, error: ErrorType | None = None, plain: bool = False) -> LabSolution:
    """Write a solution of a story.

    Args:
        rng: the only source of chance.
        story: what to solve.
        error: the type of its first wrong step; None for a right solution. Where the story has no place for an error of
            this type, another type is taken: `LabStep.error` tells which.
        plain: calculations and the answer alone: no step restated, planned, merged or in vain.
    """
    order = list(ERROR_TYPES) if error is not None else [None]
    rng.shuffle(order)
    order.sort(key=lambda kind: kind != error)
    for kind in order:
        for _ in range(4):
            written = _write(random.Random(rng.getrandbits(64)), story, kind, plain)
            if written is not None:
                return written
    raise AssertionError(f"no solution with an error: {story.problem}")


def _write(rng: random.Random, story: Story, error: ErrorType | None, plain: bool) -> LabSolution | None:
    writer = _Writer(rng, story)
    moves = _plan(rng, story, plain)
    calculating = [index for index, move in enumerate(moves) if move.kind != "plan"]
    place = len(moves) if error == "question" else rng.choice(calculating) if error is not None else -1
    first_error = -1
    answer_apart = rng.random() < 0.5
    is_cut = False
    for index, move in enumerate(moves):
        kind = error if index == place else None
        written = _step(writer, move, kind)
        if written is None:
            if first_error < 0:
                return None
            is_cut = True  # Nothing sensible follows from the wrong value: the solution ends with what it has.
            break
        if kind is not None:
            first_error = len(writer.steps)
        writer.add(*written, kind)
    if story.target not in writer.made:
        # The wrong value led nowhere: the last one found is taken for the answer.
        value = writer.values[max(writer.made, key=lambda key: writer.made[key])]
        writer.add(phrases.ANSWERED.format(value=value), (), None)
        return LabSolution(steps=tuple(writer.steps), answer=value, first_error=first_error)
    wrong = error if place == len(moves) else None
    answered = _answer(writer, wrong)
    if answered is None:
        return None
    text, check = answered
    if answer_apart or is_cut:
        writer.add(text, (check,), wrong)
    else:
        last = writer.steps.pop()
        writer.add(f"{last.text} {text}", (*last.checks, check), wrong or last.error)
    if wrong is not None:
        first_error = len(writer.steps) - 1
    assert check.stated is not None
    return LabSolution(steps=tuple(writer.steps), answer=check.stated, first_error=first_error)


def _plan(rng: random.Random, story: Story, plain: bool) -> list[_Move]:
    """The steps in an order in which each has what it needs, with harmless ones among them."""
    needed = story.needed()
    if not plain and rng.random() < 0.3:
        needed = _reordered(rng, story, needed)
    if not plain:
        vain = [q.key for q in story.quantities if q.derivation is not None and q.key not in needed]
        if vain and rng.random() < 0.3:
            needed = sorted([*needed, rng.choice(vain)], key=lambda key: key == story.target)
            if any(not _ready(story, key, needed[:place]) for place, key in enumerate(needed)):
                needed = story.needed()
    moves: list[_Move] = []
    while needed:
        size = 2 if not plain and len(needed) >= 2 and rng.random() < 0.12 else 1
        moves.append(_Move("calculation", tuple(needed[:size])))
        needed = needed[size:]
    if plain:
        return moves
    told = [quantity.key for quantity in story.quantities if quantity.fact is not None]
    if told and rng.random() < 0.25:
        moves.insert(0, _Move("fact", (rng.choice(told),)))
    if rng.random() < 0.12:
        place = rng.randrange(len(moves))
        later = [key for move in moves[place:] if move.kind == "calculation" for key in move.keys]
        moves.insert(place, _Move("plan", (rng.choice(later),)))
    return moves


def _ready(story: Story, key: int, before: Sequence[int]) -> bool:
    derivation = story.quantities[key].derivation
    assert derivation is not None
    needs = [side.quantity for side in (derivation.left, derivation.right) if side.quantity is not None]
    return all(story.quantities[need].derivation is None or need in before for need in needs)


def _reordered(rng: random.Random, story: Story, needed: list[int]) -> list[int]:
    order: list[int] = []
    while len(order) < len(needed):
        order.append(rng.choice([key for key in needed if key not in order and _ready(story, key, order)]))
    return order


def _step(writer: _Writer, move: _Move, error: ErrorType | None) -> tuple[str, list[Check]] | None:
    rng, story = writer.rng, writer.story
    quantities = [story.quantities[key] for key in move.keys]
    if move.kind == "plan":
        (quantity,) = quantities
        text = writer.wording(phrases.PLANNED, phrases.MORE_PLANNED).format(asks=quantity.asks)
        return text, [Check(kind="plan", asks=quantity.asks)]
    if move.kind == "fact":
        (quantity,) = quantities
        fact = quantity.fact
        assert fact is not None
        said = fact
        if error is not None:
            if error != "data source":
                return None
            spoilt = _spoilt_fact(rng, fact, story.numbers)
            if spoilt is None:
                return None
            said = spoilt
        check = Check(kind="fact", asks=quantity.asks, fact=fact, needs=fact, says=said)
        return writer.wording(phrases.RESTATED, phrases.MORE_RESTATED).format(fact=_embedded(said)), [check]
    sentences: list[str] = []
    checks: list[Check] = []
    wrong = rng.randrange(len(quantities))
    for index, quantity in enumerate(quantities):
        written = writer.calculation(quantity, error if index == wrong else None)
        if written is None:
            return None
        sentences.append(written[0])
        checks.append(written[1])
    return " ".join(sentences), checks


def _answer(writer: _Writer, error: ErrorType | None) -> tuple[str, Check] | None:
    target = writer.story.target
    if error is None:
        return writer.answer(target)
    right = writer.values[target]
    others = [q.key for q in writer.story.quantities if writer.values[q.key] != right]
    others = [key for key in others if key in writer.made or writer.story.quantities[key].derivation is None]
    return writer.answer(writer.rng.choice(others)) if others else None


def _spoilt(
    rng: random.Random, right: Derivation, error: ErrorType, others: Sequence[int]
) -> tuple[Derivation, int] | None:
    """A wrong version of a calculation and the value it states."""
    if error == "calculation":
        return right, _misread(rng, right.value) if rng.random() < 0.3 else _miscounted(rng, right)
    if error == "operation":
        operations = [
            operation
            for operation in OPERATIONS
            if operation != right.operation and _workable(right.left.value, operation, right.right.value)
        ]
        if not operations:
            return None
        said = Derivation(right.left, rng.choice(operations), right.right)
        return (said, said.value) if said.value != right.value else None
    # A number of the problem, or a value carried over, is mistaken for another.
    carried = error == "consistency"
    if error == "question":
        return None
    sides = [side for side in (right.left, right.right) if (side.quantity is not None) == carried]
    if not sides:
        return None
    side = rng.choice(sides)
    value = rng.choice(others) if others and rng.random() < 0.6 else _misread(rng, side.value)
    mistaken = replace(side, value=value)
    said = replace(right, left=mistaken) if side is right.left else replace(right, right=mistaken)
    if not _workable(said.left.value, said.operation, said.right.value) or said.value == right.value:
        return None
    return said, said.value


def _workable(left: int, operation: Operation, right: int) -> bool:
    value = result(left, operation, right)
    return value is not None and value >= 1 and (operation in "+-" or right <= 9 or (operation == "*" and left <= 9))


def _miscounted(rng: random.Random, right: Derivation) -> int:
    """A result as slips make it: one off somewhere, a carry forgotten or added, a neighbour in the tables."""
    value = right.value
    steps = [1, 10] + ([100] if value > 99 else []) + ([right.right.value] if right.operation == "*" else [])
    wrong = value + rng.choice((-1, 1)) * rng.choice(steps)
    return wrong if wrong > 0 and wrong != value else value + 1


def _misread(rng: random.Random, value: int) -> int:
    """A number with two digits exchanged or one digit changed."""
    digits = list(str(value))
    if len(digits) > 1 and rng.random() < 0.4:
        place = rng.randrange(len(digits) - 1)
        digits[place], digits[place + 1] = digits[place + 1], digits[place]
    else:
        place = rng.randrange(len(digits))
        digits[place] = rng.choice([digit for digit in "123456789" if digit != digits[place]])
    wrong = int("".join(digits))
    return wrong if wrong > 0 and wrong != value else value + 1


def _spoilt_fact(rng: random.Random, fact: str, numbers: Sequence[int]) -> str | None:
    """The fact with one of its numbers changed; None where it has none in digits."""

    def wrong(number: int) -> int:
        others = sorted(set(numbers) - {number})
        return rng.choice(others) if others and rng.random() < 0.5 else _misread(rng, number)

    return with_other_number(rng, fact, wrong)


def with_other_number(rng: random.Random, text: str, other: Callable[[int], int]) -> str | None:
    """A text with one of its numbers exchanged for another; None where it has none in digits."""
    pieces = text.split(" ")
    places = [index for index, piece in enumerate(pieces) if piece.strip(".,").isdigit()]
    if not places:
        return None
    place = rng.choice(places)
    number = pieces[place].strip(".,")
    pieces[place] = pieces[place].replace(number, str(other(int(number))))
    return " ".join(pieces)


def _embedded(sentence: str) -> str:
    """A sentence as a clause after "that": no full stop, and a small first letter unless it is a name's."""
    first = sentence.split(" ", 1)[0].strip(",")
    names = words.NAMES + words.UNSEEN_NAMES
    body = sentence.removesuffix(".")
    return body if first in names else body[0].lower() + body[1:]


def _capital(clause: str) -> str:
    return clause[0].upper() + clause[1:]
