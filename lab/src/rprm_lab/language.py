"""The words of the lab's world: names, things, and the sentences that tell, ask and state quantities.

Every relation has several wordings; the last of each list is kept for the out-of-distribution split ("unseen
templates"). `{n}`, `{k}`, `{m}` are numbers of the problem; `{a}`, `{b}` people or places.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass, is_dataclass
from functools import cache
from typing import Any

from rprm_lab import phrases

#: A word of a wording that is no field of it.
WORD = re.compile(r"(?<![{\w])[A-Za-z]+(?![}\w])")

NAMES = (
    "Ana", "Ben", "Carla", "David", "Emma", "Farid", "Grace", "Hugo", "Ines", "Jonas", "Kira", "Leo", "Mia", "Noah",
    "Olga", "Pablo", "Rosa", "Sam", "Tara", "Victor", "Wendy", "Yusuf", "Zoe", "Amir", "Bella", "Chen", "Dora", "Erik",
)  # fmt: skip
#: Of the out-of-distribution split, beside the others.
UNSEEN_NAMES = ("Ivan", "Lena", "Marco", "Nadia", "Priya", "Tom")

COLLECTED = ("marbles", "stickers", "shells", "coins", "stamps", "cards", "beads", "books", "pencils", "buttons")
UNSEEN_COLLECTED = ("badges", "postcards")

#: Containers and what is in them.
PACKED = (
    ("boxes", "pencils"), ("bags", "apples"), ("crates", "oranges"), ("shelves", "books"), ("trays", "eggs"),
    ("jars", "cookies"), ("rows", "chairs"), ("baskets", "pears"), ("packs", "cards"), ("cartons", "bottles"),
)  # fmt: skip
UNSEEN_PACKED = (("drawers", "spoons"), ("tins", "candles"))
#: What things are packed into afterwards.
REPACKED = ("bags", "boxes", "packs", "bundles", "sets")

GOODS = ("shirts", "notebooks", "tickets", "cups", "plants", "lamps", "toys", "hats", "pens", "cakes")
UNSEEN_GOODS = ("scarves", "kites")

#: How something is made or done: who does it, what it counts, per which time.
WORK = (
    ("bakes", "loaves", "hour"), ("paints", "fences", "day"), ("types", "pages", "hour"), ("picks", "flowers", "hour"),
    ("reads", "pages", "day"), ("makes", "candles", "day"), ("washes", "windows", "hour"), ("folds", "towels", "hour"),
    ("walks", "miles", "day"), ("drives", "miles", "hour"), ("saves", "dollars", "week"), ("earns", "dollars", "day"),
)  # fmt: skip
UNSEEN_WORK = (("plants", "trees", "day"), ("solves", "puzzles", "week"))

TIMES = {2: ("twice", "2 times"), 3: ("3 times", "three times"), 4: ("4 times", "four times")}
PARTS = {2: "half", 3: "a third", 4: "a quarter", 5: "a fifth"}


@dataclass(frozen=True, slots=True)
class Wording:
    """How a quantity is told, stated and asked for; `{}` is its value.

    Attributes:
        tells: sentences that tell it, or the relation that defines it.
        states: the clause that states its value.
        asks: what is asked for, after "how many".
        question: the direct question.
        more: sentences that tell it in a wide world, beside the others.
    """

    tells: tuple[str, ...]
    states: str
    asks: str
    question: str
    more: tuple[str, ...] = ()


HAS = Wording(
    (
        "{a} has {n} {things}.",
        "{a} owns {n} {things}.",
        "There are {n} {things} in the collection of {a}.",
        "{a} starts with {n} {things}.",
        "{a} counts {n} {things}.",
        "{n} {things} belong to {a}.",
    ),
    "{a} has {{}} {things}",
    "{things} {a} has",
    "How many {things} does {a} have?",
    more=(
        "{a} keeps {n} {things} at home.",
        "The number of {things} that {a} has is {n}.",
        "{a} has collected {n} {things} so far.",
        "With {a} there are {n} {things}.",
        "Let {a} have {n} {things}.",
        "{n} {things} are what {a} has.",
        "So far {n} {things} are in the hands of {a}.",
    ),
)
MORE = Wording(
    (
        "{b} has {k} more {things} than {a}.",
        "{b} has as many {things} as {a} and {k} more.",
        "{a} has {k} fewer {things} than {b}.",
        "If {b} gave away {k} {things}, {b} would have as many as {a}.",
        "Compared with {a}, {b} has {k} more {things}.",
        "{b} owns {k} {things} more than {a} does.",
    ),
    "{b} has {{}} {things}",
    "{things} {b} has",
    "How many {things} does {b} have?",
    more=(
        "{b} has {k} {things} beyond the number of {a}.",
        "Add {k} to the {things} of {a}, and you have those of {b}.",
        "The {things} of {b} outnumber those of {a} by {k}.",
        "{a} is behind {b} by {k} {things}.",
        "There are {k} more {things} with {b} than with {a}.",
        "{a} has as many {things} as {b}, less {k}.",
        "Had {a} found {k} {things}, {a} would have as many as {b}.",
    ),
)
FEWER = Wording(
    (
        "{b} has {k} fewer {things} than {a}.",
        "{a} has {k} more {things} than {b}.",
        "{b} would need {k} more {things} to have as many as {a}.",
        "Compared with {a}, {b} has {k} fewer {things}.",
        "{b} is {k} {things} short of what {a} has.",
    ),
    "{b} has {{}} {things}",
    "{things} {b} has",
    "How many {things} does {b} have?",
    more=(
        "{b} has as many {things} as {a}, less {k}.",
        "Take {k} from the {things} of {a}, and you have those of {b}.",
        "The {things} of {a} outnumber those of {b} by {k}.",
        "{b} is behind {a} by {k} {things}.",
        "There are {k} fewer {things} with {b} than with {a}.",
        "{a} is ahead of {b} by {k} {things}.",
    ),
)
TIMES_AS_MANY = Wording(
    (
        "{b} has {times} as many {things} as {a}.",
        "{b} has {k} times the number of {things} that {a} has.",
        "For each of the {things} of {a}, {b} has {k}.",
        "The collection of {b} is {k} times as large as that of {a}.",
    ),
    "{b} has {{}} {things}",
    "{things} {b} has",
    "How many {things} does {b} have?",
    more=(
        "Multiply the {things} of {a} by {k}, and you have those of {b}.",
        "{b} has {times} the {things} of {a}.",
        "{b} could give {k} people as many {things} as {a} has.",
        "Whenever {a} has one of the {things}, {b} has {k} of them.",
        "{k} times the {things} of {a} are in the hands of {b}.",
    ),
)
PART_OF = Wording(
    (
        "{b} has {part} as many {things} as {a}.",
        "{a} has {times} as many {things} as {b}.",
        "{b} has only {part} of the number of {things} that {a} has.",
        "The {things} of {a} are {k} times those of {b}.",
    ),
    "{b} has {{}} {things}",
    "{things} {b} has",
    "How many {things} does {b} have?",
    more=(
        "Divide the {things} of {a} by {k}, and you have those of {b}.",
        "What {b} has is {part} of the {things} of {a}.",
        "{a} could give {k} people as many {things} as {b} has.",
        "Whenever {b} has one of the {things}, {a} has {k} of them.",
        "Of {things} {b} has {part} of what {a} has.",
    ),
)
GAINS = Wording(
    (
        "Then {a} buys {k} more {things}.",
        "Later {a} finds {k} {things}.",
        "After that {a} gets {k} {things} from a friend.",
        "On Sunday {a} wins {k} {things}.",
        "An aunt sends {a} another {k} {things}.",
    ),
    "{a} now has {{}} {things}",
    "{things} {a} has now",
    "How many {things} does {a} have now?",
    more=(
        "{k} more {things} come to {a}.",
        "{a} receives {k} {things} as a present.",
        "The next day {a} adds {k} {things}.",
        "In the evening {a} has got {k} {things} on top.",
        "A teacher hands {k} {things} to {a}.",
        "For a birthday {a} gets {k} further {things}.",
    ),
)
LOSES = Wording(
    (
        "Then {a} gives away {k} {things}.",
        "Later {a} loses {k} {things}.",
        "After that {a} sells {k} of the {things}.",
        "On Monday {a} leaves {k} {things} at school for good.",
        "A neighbour takes {k} {things} from {a}.",
    ),
    "{a} now has {{}} {things}",
    "{things} {a} has now",
    "How many {things} does {a} have now?",
    more=(
        "{k} {things} of {a} get lost.",
        "{a} hands {k} {things} to a teacher.",
        "The next day {a} parts with {k} {things}.",
        "In the evening {a} misses {k} {things}.",
        "{a} throws {k} of the {things} away.",
        "For a birthday {a} passes {k} {things} on.",
    ),
)
SHARES = Wording(
    (
        "{a} shares the {things} equally among {k} friends.",
        "{k} friends of {a} divide all these {things} equally.",
        "{a} puts the {things} into {k} equal piles, one for each cousin.",
        "All {things} of {a} go to {k} children, the same number to each.",
    ),
    "each gets {{}} {things}",
    "{things} each of them gets",
    "How many {things} does each of them get?",
    more=(
        "{a} deals the {things} out to {k} players, as many to each.",
        "The {things} of {a} are split into {k} equal parts, one a person.",
        "{k} neighbours share what {a} has in equal parts.",
        "{a} divides it all by {k} and gives everyone one part.",
        "Each of {k} pupils gets the same share of the {things} of {a}.",
    ),
)
GROUPS = Wording(
    (
        "There are {n} {boxes} with {m} {things} in each.",
        "{a} fills {n} {boxes} with {m} {things} each.",
        "A shop has {n} {boxes}, and each of them holds {m} {things}.",
        "{a} has {m} {things} in each of {n} {boxes}.",
        "Every one of {n} {boxes} contains {m} {things}.",
    ),
    "there are {{}} {things} in the {boxes}",
    "{things} there are in the {boxes}",
    "How many {things} are there in the {boxes}?",
    more=(
        "{n} {boxes} stand there, with {m} {things} in every one.",
        "{m} {things} fit into one of the {boxes}, and {a} has {n} full ones.",
        "{a} puts {m} {things} into each of {n} {boxes}.",
        "In each of the {n} {boxes} of {a} lie {m} {things}.",
        "{n} {boxes} are full; each has {m} {things} in it.",
        "With {m} {things} to each, {a} fills {n} {boxes}.",
    ),
)
LOOSE = Wording(
    (
        "Another {k} {things} lie on the table.",
        "Besides, there are {k} loose {things}.",
        "{k} more {things} are brought in.",
        "A further {k} {things} stand outside.",
    ),
    "there are {{}} {things} in all",
    "{things} there are in all",
    "How many {things} are there in all?",
    more=(
        "{k} {things} come on top of that.",
        "In a corner there are {k} {things} more.",
        "{a} brings {k} {things} besides.",
        "Add to this {k} single {things}.",
        "Someone puts {k} {things} with them.",
    ),
)
SPOILT = Wording(
    (
        "{k} of the {things} are damaged and thrown away.",
        "Then {k} {things} are sold.",
        "{k} of these {things} are used up.",
        "Of all these {things}, {k} go missing.",
    ),
    "{{}} {things} are left",
    "{things} are left",
    "How many {things} are left?",
    more=(
        "{k} {things} break.",
        "{a} gives {k} of the {things} to others.",
        "Of these, {k} {things} are taken away.",
        "Someone carries off {k} {things}.",
        "Then {k} of the {things} are gone.",
    ),
)
REPACKS = Wording(
    (
        "The {things} are then packed into {packs} of {k}.",
        "All the {things} are put into {packs}, {k} in each.",
        "{a} makes {packs} of {k} {things} out of them.",
        "{k} {things} at a time go into {packs} until none remains.",
    ),
    "this makes {{}} {packs}",
    "{packs} this makes",
    "How many {packs} does this make?",
    more=(
        "Each of the {packs} is to hold {k} {things}, and all are used.",
        "Then {a} sorts the {things} into {packs}, {k} to each.",
        "All of it is divided into {packs} with {k} {things} each.",
        "For every {k} {things} {a} takes one of the {packs}.",
        "With {k} {things} to each, {packs} are made of them all.",
    ),
)
COSTS = Wording(
    (
        "{a} buys {n} {things} for {m} dollars each.",
        "{a} buys {n} {things} at {m} dollars apiece.",
        "One of the {things} costs {m} dollars, and {a} takes {n} of them.",
        "{a} pays for {n} {things}; each costs {m} dollars.",
        "At {m} dollars for each, {a} orders {n} {things}.",
    ),
    "the {things} cost {{}} dollars",
    "dollars the {things} cost",
    "How many dollars do the {things} cost?",
    more=(
        "{n} {things} at a price of {m} dollars each are bought by {a}.",
        "The price of one of the {things} is {m} dollars; {a} needs {n}.",
        "{a} takes {n} {things}, {m} dollars each.",
        "For every one of {n} {things} {a} pays {m} dollars.",
        "{a} spends {m} dollars on each of {n} {things}.",
        "On the list of {a} are {n} {things} for {m} dollars each.",
    ),
)
COUPON = Wording(
    (
        "A coupon takes {k} dollars off.",
        "The shop lowers the bill by {k} dollars.",
        "{a} gets a discount of {k} dollars on all of it.",
        "{k} dollars of the sum are waived.",
    ),
    "the bill comes to {{}} dollars",
    "dollars the bill comes to",
    "How many dollars does the bill come to?",
    more=(
        "{a} has to pay {k} dollars less.",
        "A card saves {k} dollars.",
        "{k} dollars are taken off at the till.",
        "The seller lets {a} off {k} dollars.",
        "From the sum {k} dollars are subtracted.",
    ),
)
FEE = Wording(
    (
        "The delivery costs {k} dollars more.",
        "A fee of {k} dollars is added.",
        "Wrapping adds {k} dollars.",
        "On top of that come {k} dollars for the delivery.",
    ),
    "the bill comes to {{}} dollars",
    "dollars the bill comes to",
    "How many dollars does the bill come to?",
    more=(
        "{a} has to pay {k} dollars on top.",
        "A bag adds {k} dollars to the bill.",
        "{k} dollars are added for service.",
        "Besides, {a} gives a tip of {k} dollars.",
        "To the sum {k} dollars of tax are added.",
    ),
)
CHANGE = Wording(
    (
        "{a} pays with {k} dollars.",
        "{a} hands over {k} dollars.",
        "{a} came with {k} dollars.",
        "{k} dollars are in the purse of {a} at first.",
    ),
    "{a} has {{}} dollars left",
    "dollars {a} has left",
    "How many dollars does {a} have left?",
    more=(
        "{a} gives the seller {k} dollars.",
        "In the pocket of {a} there are {k} dollars to pay with.",
        "{a} has {k} dollars to spend.",
        "For this {a} has saved {k} dollars.",
        "{k} dollars is what {a} had before paying.",
    ),
)
SPLITS = Wording(
    (
        "{k} friends split the bill equally.",
        "The bill is divided equally among {k} people.",
        "{a} and others, {k} people in all, pay the same share each.",
        "Each of {k} people pays an equal part of it.",
    ),
    "each pays {{}} dollars",
    "dollars each of them pays",
    "How many dollars does each of them pay?",
    more=(
        "{a} shares the bill with others, so that {k} people pay the same.",
        "All is paid by {k} people in equal parts.",
        "{k} of them share the sum equally.",
        "A group of {k} divides the bill evenly.",
    ),
)
RATE = Wording(
    (
        "{a} {does} {m} {things} per {time} for {n} {time}s.",
        "{a} {does} {m} {things} every {time}, and goes on for {n} {time}s.",
        "For {n} {time}s {a} {does} {m} {things} each {time}.",
        "{a} {does} {m} {things} in one {time} and keeps this up for {n} {time}s.",
        "Over {n} {time}s, {a} {does} {m} {things} in each {time}.",
    ),
    "{a} {does} {{}} {things}",
    "{things} {a} {does} in that time",
    "How many {things} is that in all that time?",
    more=(
        "Each {time} {a} {does} {m} {things}, and this for {n} {time}s.",
        "In all of {n} {time}s, {a} {does} {m} {things} per {time}.",
        "{m} {things} are what {a} {does} in one {time}, and there are {n} {time}s.",
        "{a} {does} {m} {things} a {time}, {n} {time}s long.",
        "There are {n} {time}s, and in every {time} {a} {does} {m} {things}.",
    ),
)
BONUS = Wording(
    (
        "Then {a} {does} {k} more {things}.",
        "On the last evening {a} {does} another {k} {things}.",
        "{a} had already got {k} {things} before.",
        "{a} {does} an extra {k} {things} as well.",
    ),
    "in all that is {{}} {things}",
    "{things} that is in all",
    "How many {things} is that in all?",
    more=(
        "{k} {things} had been there from before.",
        "In addition {a} {does} {k} {things}.",
        "{k} further {things} come from a helper.",
        "After a break {a} {does} {k} {things} on top.",
    ),
)
GOAL = Wording(
    (
        "The goal is {k} {things}.",
        "It has to be {k} {things} in the end.",
        "{k} {things} are wanted.",
        "The plan was to reach {k} {things}.",
    ),
    "{{}} {things} are still missing",
    "{things} are still missing",
    "How many {things} are still missing?",
    more=(
        "In the end there should be {k} {things}.",
        "All is done at {k} {things}.",
        "{k} {things} must be reached.",
        "Someone has ordered {k} {things}.",
    ),
)
TOTAL = Wording(
    (),
    "together they have {{}} {things}",
    "{things} {a} and {b} have together",
    "How many {things} do {a} and {b} have together?",
)
TOTAL_COST = Wording(
    (), "together they cost {{}} dollars", "dollars all of it costs", "How many dollars does all of it cost?"
)
TOTAL_GROUPS = Wording(
    (), "together there are {{}} {things}", "{things} there are together", "How many {things} are there together?"
)
TOTAL_DONE = Wording(
    (), "together that is {{}} {things}", "{things} that is together", "How many {things} is that together?"
)
DIFFERENCE = Wording(
    (),
    "{a} has {{}} more {things} than {b}",
    "more {things} {a} has than {b}",
    "How many more {things} does {a} have than {b}?",
)


def seen(sentences: Sequence[str], more: Sequence[str], *, wide: bool) -> Sequence[str]:
    """The wordings of a table to train on: all but its last, and in a wide world its further ones."""
    return (*sentences[:-1], *(more if wide else ()))


@cache
def vocabulary() -> tuple[str, ...]:
    """Every word of the tables here and in `phrases`, those of the unseen wordings too."""
    tables = {**globals(), **vars(phrases)}
    written = [text for name, value in tables.items() if name.isupper() for text in _texts(value)]
    return tuple(sorted({word for text in written for word in WORD.findall(text)}))


def _texts(value: Any) -> Iterator[str]:
    """All texts in a text, a table, a wording."""
    if isinstance(value, str):
        yield value
    elif is_dataclass(value) and not isinstance(value, type):
        yield from _texts(astuple(value))
    elif isinstance(value, (tuple, dict)):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _texts(part)
