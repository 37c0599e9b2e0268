"""Stories: word problems as graphs of quantities, each given by a fact or derived by one calculation."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import TypeVar

from rprm_lab import language as words
from rprm_lab import phrases
from rprm_lab.language import Wording
from rprm_lab.worked import OPERATIONS, Operation, result

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Operand:
    """One side of a calculation: a quantity by its key, or (None) a number of the fact that tells the relation."""

    value: int
    quantity: int | None = None


@dataclass(frozen=True, slots=True)
class Derivation:
    left: Operand
    operation: Operation
    right: Operand

    @property
    def value(self) -> int:
        value = result(self.left.value, self.operation, self.right.value)
        assert value is not None
        return value

    @property
    def text(self) -> str:
        return f"{self.left.value} {self.operation} {self.right.value}"


@dataclass(frozen=True, slots=True)
class Quantity:
    """A quantity of a story.

    Attributes:
        key: its place among the story's quantities; what it is derived from comes before it.
        value: a natural number.
        states: the clause that states its value, which stands for `{}`.
        asks: what is asked for, after "how many".
        question: the direct question.
        fact: the fact that gives it or tells its relation; None where it is defined by what it is ("together").
        derivation: the calculation that gives it; None where the fact does.
    """

    key: int
    value: int
    states: str
    asks: str
    question: str
    fact: str | None
    derivation: Derivation | None

    def clause(self, value: int | str | None = None) -> str:
        return self.states.format(self.value if value is None else value)


@dataclass(frozen=True, slots=True)
class Story:
    """A word problem.

    Attributes:
        family: what it is about.
        problem: its text.
        quantities: by key; those that the answer needs, and perhaps others.
        target: key of the quantity asked for.
        numbers: every number of the problem's text, those of distractors too.
        unseen: told in wordings kept for the out-of-distribution split.
        wide: told in wordings that a wide world alone has, too.
        garbled_share: of its sentences, and of those of its solutions, that are told in words at random.
    """

    family: str
    problem: str
    quantities: tuple[Quantity, ...]
    target: int
    numbers: tuple[int, ...]
    unseen: bool
    wide: bool = False
    garbled_share: float = 0.0

    @property
    def answer(self) -> int:
        return self.quantities[self.target].value

    def needed(self) -> list[int]:
        """Keys of the derived quantities that the target depends on, in the order of their making."""
        needed, waiting = set[int](), [self.target]
        while waiting:
            quantity = self.quantities[waiting.pop()]
            if quantity.derivation is None or quantity.key in needed:
                continue
            needed.add(quantity.key)
            sides = (quantity.derivation.left, quantity.derivation.right)
            waiting += [side.quantity for side in sides if side.quantity is not None]
        return sorted(needed)


@dataclass
class _Teller:
    """Makes one story.

    Attributes:
        limit: no value is above it.
        unseen: told in unseen wordings, in part.
        wide: told in the wordings of a wide world too.
        garbled_share: of the sentences that are told in other words, whatever these mean.
        facts: told in this order, but that the first `num_free` of them may change places.
    """

    rng: random.Random
    limit: int
    unseen: bool
    wide: bool = False
    garbled_share: float = 0.0
    facts: list[str] = field(default_factory=list)
    quantities: list[Quantity] = field(default_factory=list)
    num_free: int = 0

    def pick(self, seen: Sequence[T], unseen: Sequence[T] = ()) -> T:
        """One of the words; the unseen ones too, half the time, where the story is told in unseen wordings."""
        return self.rng.choice(unseen if self.unseen and unseen and self.rng.random() < 0.5 else seen)

    def wording(self, sentences: Sequence[str], more: Sequence[str]) -> str:
        """One of the wordings, the last of which is unseen; garbled, and then perhaps in another order, at its rate."""
        wording = self.pick(words.seen(sentences, more, wide=self.wide), sentences[-1:])
        told = garble(self.rng, wording, self.garbled_share)
        if told != wording and self.rng.random() < 0.25:
            pieces = told.removesuffix(".").split(" ")
            self.rng.shuffle(pieces)
            told = f"{' '.join(pieces)}."
        return told

    def number(self, most: int) -> int:
        """A number from 2 to `most`, of one, two or three digits about equally often."""
        most = max(2, min(most, self.limit))
        highest = self.rng.choice([bound for bound in (9, 99, 999, 9999) if bound < most] + [most])
        return self.rng.randint(2, highest)

    def add(self, wording: Wording, value: int, derivation: Derivation | None = None, **fields: object) -> Quantity:
        fact = None
        if wording.tells:
            fact = self.wording(wording.tells, wording.more).format(**fields)
            self.facts.append(fact)
        quantity = Quantity(
            key=len(self.quantities),
            value=value,
            states=wording.states.format(**fields),
            asks=wording.asks.format(**fields),
            question=wording.question.format(**fields),
            fact=fact,
            derivation=derivation,
        )
        self.quantities.append(quantity)
        return quantity

    def derive(
        self, wording: Wording, left: Quantity | int, operation: Operation, right: Quantity | int, **fields: object
    ) -> Quantity:
        derivation = Derivation(_operand(left), operation, _operand(right))
        return self.add(wording, derivation.value, derivation, **fields)

    def fits(self, left: Quantity | int, operation: Operation, right: Quantity | int) -> bool:
        """Whether the calculation has a value that the world allows, and can be worked digit by digit."""
        first, second = _operand(left).value, _operand(right).value
        value = result(first, operation, second)
        if value is None or not 2 <= value <= self.limit:
            return False
        return operation in "+-" or second <= 9 or (operation == "*" and first <= 9)

    def finish(self, family: str, target: Quantity) -> Story:
        facts = list(self.facts)
        if self.num_free > 1 and self.rng.random() < 0.4:
            free = facts[: self.num_free]
            self.rng.shuffle(free)
            facts[: self.num_free] = free
        name = self.pick(words.NAMES, words.UNSEEN_NAMES)
        numbers = []
        for _ in range(self.rng.choice((0, 0, 1, 1, 2))):
            number = self.number(99)
            numbers.append(number)
            distractor = self.wording(phrases.DISTRACTORS, phrases.MORE_DISTRACTORS).format(a=name, n=number)
            facts.insert(self.rng.randint(0, len(facts)), distractor)
        question = target.question
        if self.rng.random() < 0.4:
            question = self.wording(phrases.QUESTIONS, phrases.MORE_QUESTIONS).format(asks=target.asks)
        for quantity in self.quantities:
            if quantity.derivation is None:
                numbers.append(quantity.value)
            else:
                sides = (quantity.derivation.left, quantity.derivation.right)
                numbers += [side.value for side in sides if side.quantity is None]
        return Story(
            family=family,
            problem=" ".join([*facts, question]),
            quantities=tuple(self.quantities),
            target=target.key,
            numbers=tuple(numbers),
            unseen=self.unseen,
            wide=self.wide,
            garbled_share=self.garbled_share,
        )


def _operand(side: Quantity | int) -> Operand:
    return Operand(side) if isinstance(side, int) else Operand(side.value, side.key)


def tell(rng: random.Random, *, num_steps: int, limit: int = 999, unseen: bool = False, wide: bool = False) -> Story:
    """Make a story whose answer takes `num_steps` calculations.

    Args:
        rng: the only source of chance.
        num_steps: at least 1.
        limit: the largest value.
        unseen: tell it in wordings, with names and things, of which half are kept for the out-of-distribution split.
        wide: tell it in more wordings; and one time in two, tell some of it and of its solutions in words of the world
            taken at random, in sentences and for names and things: what is needed can be found by the numbers, the
            names and the order.
    """
    share = rng.choice((0.0, 0.0, 0.3, 0.5)) if wide else 0.0
    while True:
        family = rng.choice(tuple(_FAMILIES))
        teller = _Teller(rng, limit, unseen, wide, share)
        target = _FAMILIES[family](teller, num_steps)
        if target is not None:
            story = teller.finish(family, target)
            if len(story.needed()) == num_steps:
                return _renamed(rng, story) if share else story


def garble(rng: random.Random, wording: str, share: float) -> str:
    """A wording, or, at this rate, one in which other words stand for some; its fields stay, in their order."""
    if not share or rng.random() >= share:
        return wording
    share_of_words = rng.choice((0.3, 0.6, 1.0))

    def other(word: re.Match[str]) -> str:
        return _like(word[0], rng.choice(words.vocabulary())) if rng.random() < share_of_words else word[0]

    return re.sub(words.WORD, other, wording)


def _like(word: str, other: str) -> str:
    """Another word, capital where the word is."""
    return other.capitalize() if word[0].isupper() else other.lower()


#: Names and things: what stands for them may be any word.
_NOUNS = frozenset(
    chain(
        words.NAMES, words.UNSEEN_NAMES, words.COLLECTED, words.UNSEEN_COLLECTED, *words.PACKED, *words.UNSEEN_PACKED,
        words.REPACKED, words.GOODS, words.UNSEEN_GOODS, *(work[:2] for work in (*words.WORK, *words.UNSEEN_WORK)),
    )
)  # fmt: skip


def _renamed(rng: random.Random, story: Story) -> Story:
    """The story with other words for some of its names and things, the same everywhere."""
    present = set(re.findall("[A-Za-z]+", story.problem))
    nouns = [noun for noun in sorted(present & _NOUNS) if rng.random() < story.garbled_share]
    others = rng.sample([word for word in words.vocabulary() if word not in present], len(nouns))
    names = {noun: _like(noun, other) for noun, other in zip(nouns, others, strict=True)}

    def rename(text: str) -> str:
        return re.sub("[A-Za-z]+", lambda word: names.get(word[0], word[0]), text)

    quantities = tuple(
        replace(
            quantity,
            states=rename(quantity.states),
            asks=rename(quantity.asks),
            question=rename(quantity.question),
            fact=None if quantity.fact is None else rename(quantity.fact),
        )
        for quantity in story.quantities
    )
    return replace(story, problem=rename(story.problem), quantities=quantities)


def _people(teller: _Teller, num_steps: int) -> Quantity | None:
    """Who has how many: comparisons, then changes, then perhaps a total, a difference or a share."""
    rng = teller.rng
    things = teller.pick(words.COLLECTED, words.UNSEEN_COLLECTED)
    names = rng.sample(words.NAMES + (words.UNSEEN_NAMES if teller.unseen else ()), 8)
    name = names.pop()
    number = teller.number(400)
    owned = {name: teller.add(words.HAS, number, a=name, n=number, things=things)}
    last = name
    ending = rng.choice(("none", "none", "total", "difference", "share")) if num_steps > 1 else "none"
    num_left = num_steps - (ending != "none")
    num_compared = rng.randint(0 if ending in ("none", "share") else 1, num_left) if num_left else 0
    for _ in range(num_compared):
        made = _compare(teller, last, owned[last], names[-1], things)
        if made is None:
            return None
        last = names.pop()
        owned[last] = made
    teller.num_free = len(teller.facts)
    for _ in range(num_left - num_compared):
        changed = _adjust(teller, owned[last], words.GAINS, words.LOSES, a=last, things=things)
        if changed is None:
            return None
        owned[last] = changed
    if ending == "share":
        return _divide(teller, owned[last], words.SHARES, a=last, things=things)
    if ending == "none":
        return owned[last]
    other = list(owned)[-2]
    first, second = owned[last], owned[other]
    if ending == "total":
        if not teller.fits(first, "+", second):
            return None
        return teller.derive(words.TOTAL, first, "+", second, a=last, b=other, things=things)
    if first.value < second.value:
        last, other, first, second = other, last, second, first
    if not teller.fits(first, "-", second):
        return None
    return teller.derive(words.DIFFERENCE, first, "-", second, a=last, b=other, things=things)


def _compare(teller: _Teller, a: str, of: Quantity, b: str, things: str) -> Quantity | None:
    rng = teller.rng
    operation = rng.choice(OPERATIONS)
    choices: Sequence[int] = range(2, 10) if operation == "*" else range(2, 6) if operation == "/" else ()
    if operation in "+-":
        most = teller.limit - of.value if operation == "+" else of.value - 2
        choices = (teller.number(most),) if most >= 2 else ()
    fitting = [k for k in choices if teller.fits(of, operation, k)]
    if not fitting:
        return None
    k = rng.choice(fitting)
    wording = {"+": words.MORE, "-": words.FEWER, "*": words.TIMES_AS_MANY, "/": words.PART_OF}[operation]
    times = rng.choice(words.TIMES.get(k, (f"{k} times",)))
    return teller.derive(
        wording, of, operation, k, a=a, b=b, k=k, things=things, times=times, part=words.PARTS.get(k, "")
    )


def _factors(teller: _Teller) -> tuple[int, int]:
    """Two numbers to multiply, one of a single digit."""
    small = teller.rng.randint(2, 9)
    large = teller.number(min(999, teller.limit // small))
    return (small, large) if teller.rng.random() < 0.5 else (large, small)


def _containers(teller: _Teller, num_steps: int) -> Quantity | None:
    """Things in containers: so many in each, more and fewer, packed anew."""
    rng = teller.rng
    boxes, things = teller.pick(words.PACKED, words.UNSEEN_PACKED)
    name = teller.pick(words.NAMES, words.UNSEEN_NAMES)
    n, m = _factors(teller)
    now = teller.derive(words.GROUPS, n, "*", m, a=name, n=n, m=m, boxes=boxes, things=things)
    num_left = num_steps - 1
    if num_left >= 2 and rng.random() < 0.4:
        other = rng.choice([pair[0] for pair in words.PACKED if pair[0] != boxes])
        n, m = _factors(teller)
        second = teller.derive(words.GROUPS, n, "*", m, a=name, n=n, m=m, boxes=other, things=things)
        if not teller.fits(now, "+", second):
            return None
        teller.num_free = 2
        now = teller.derive(words.TOTAL_GROUPS, now, "+", second, things=things)
        num_left -= 2
    repacks = num_left > 0 and rng.random() < 0.4
    for _ in range(num_left - repacks):
        changed = _adjust(teller, now, words.LOOSE, words.SPOILT, a=name, things=things)
        if changed is None:
            return None
        now = changed
    if not repacks:
        return now
    packs = rng.choice([pack for pack in words.REPACKED if pack != boxes])
    return _divide(teller, now, words.REPACKS, a=name, things=things, packs=packs)


def _adjust(teller: _Teller, of: Quantity, more: Wording, less: Wording, **fields: object) -> Quantity | None:
    operation = teller.rng.choice(OPERATIONS[:2])
    most = teller.limit - of.value if operation == "+" else of.value - 2
    if most < 2:
        return None
    k = teller.number(most)
    return teller.derive(more if operation == "+" else less, of, operation, k, k=k, **fields)


def _divide(teller: _Teller, of: Quantity, wording: Wording, **fields: object) -> Quantity | None:
    """Equal parts of a quantity, as many as leave no rest."""
    parts = [k for k in range(2, 10) if teller.fits(of, "/", k)]
    if not parts:
        return None
    k = teller.rng.choice(parts)
    return teller.derive(wording, of, "/", k, k=k, **fields)


def _shopping(teller: _Teller, num_steps: int) -> Quantity | None:
    """Bills: so many at so much, a coupon, a fee, the change, a share."""
    rng = teller.rng
    name = teller.pick(words.NAMES, words.UNSEEN_NAMES)
    goods = rng.sample(words.GOODS + (words.UNSEEN_GOODS if teller.unseen else ()), 2)

    def bought(things: str) -> Quantity:
        n, m = _factors(teller)
        return teller.derive(words.COSTS, n, "*", m, a=name, n=n, m=m, things=things)

    bill = bought(goods[0])
    num_left = num_steps - 1
    if num_left >= 2 and rng.random() < 0.5:
        second = bought(goods[1])
        if not teller.fits(bill, "+", second):
            return None
        teller.num_free = 2
        bill = teller.derive(words.TOTAL_COST, bill, "+", second)
        num_left -= 2
    ending = rng.choice(("none", "change", "split")) if num_left else "none"
    for _ in range(num_left - (ending != "none")):
        adjusted = _adjust(teller, bill, words.FEE, words.COUPON, a=name)
        if adjusted is None:
            return None
        bill = adjusted
    if ending == "change":
        paid = bill.value + teller.number(max(2, min(200, teller.limit - bill.value)))
        return teller.derive(words.CHANGE, paid, "-", bill, a=name, k=paid) if paid <= teller.limit else None
    if ending == "split":
        return _divide(teller, bill, words.SPLITS, a=name)
    return bill


def _work(teller: _Teller, num_steps: int) -> Quantity | None:
    """Work at a rate: so many an hour, by one or two people, a rest to the goal."""
    rng = teller.rng
    does, things, time = teller.pick(words.WORK, words.UNSEEN_WORK)
    names = rng.sample(words.NAMES + (words.UNSEEN_NAMES if teller.unseen else ()), 2)

    def done(name: str) -> Quantity:
        n, m = _factors(teller)
        return teller.derive(words.RATE, m, "*", n, a=name, does=does, things=things, time=time, n=n, m=m)

    now = done(names[0])
    num_left = num_steps - 1
    if num_left >= 2 and rng.random() < 0.5:
        second = done(names[1])
        if not teller.fits(now, "+", second):
            return None
        teller.num_free = 2
        now = teller.derive(words.TOTAL_DONE, now, "+", second, things=things)
        num_left -= 2
    goal = num_left > 0 and rng.random() < 0.5
    for _ in range(num_left - goal):
        k = teller.number(teller.limit - now.value)
        if not teller.fits(now, "+", k):
            return None
        now = teller.derive(words.BONUS, now, "+", k, a=names[0], does=does, things=things, k=k)
    if not goal:
        return now
    wanted = now.value + teller.number(max(2, min(300, teller.limit - now.value)))
    if not teller.fits(wanted, "-", now):
        return None
    return teller.derive(words.GOAL, wanted, "-", now, things=things, k=wanted)


_FAMILIES: dict[str, Callable[[_Teller, int], Quantity | None]] = {
    "people": _people,
    "containers": _containers,
    "shopping": _shopping,
    "work": _work,
}
