"""The words of the lab's world: names, things, and the sentences that tell, ask and state quantities.

Every relation has several wordings; the last of each list is kept for the out-of-distribution split ("unseen
templates"). `{n}`, `{k}`, `{m}` are numbers of the problem; `{a}`, `{b}` people or places.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import astuple, dataclass, is_dataclass
from functools import cache
from typing import Any

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

#: What says nothing that the question needs.
DISTRACTORS = (
    "{a} is {n} years old.",
    "{a} lives at number {n}.",
    "It is {n} minutes to the nearest shop.",
    "{a} has a dog that weighs {n} kilograms.",
    "{a} was born {n} years ago.",
    "The day before, {a} slept for {n} hours.",
    "There are {n} children in the class of {a}.",
    "The bus of {a} has the number {n}.",
)


@dataclass(frozen=True, slots=True)
class Wording:
    """How a quantity is told, stated and asked for; `{}` is its value.

    Attributes:
        tells: sentences that tell it, or the relation that defines it.
        states: the clause that states its value.
        asks: what is asked for, after "how many".
        question: the direct question.
    """

    tells: tuple[str, ...]
    states: str
    asks: str
    question: str


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
#: Ways to ask, beside the direct question. The last is unseen.
QUESTIONS = ("Find out how many {asks}.", "Work out how many {asks}.", "It is asked how many {asks}.")

#: A calculation with its result, and a clause that states it. The last is unseen.
STATED = (
    "{Clause_with}.",
    "{sum} = {value}, so {clause}.",
    "{Clause}, because {sum} = {value}.",
    "To find out how many {asks}, take {sum} = {value}.",
    "We have {sum} = {value}. So {clause}.",
    "{Spoken} is {value}, so {clause}.",
    "From {sum} = {value} it follows that {clause}.",
)
#: A fact of the problem, restated. The last is unseen.
RESTATED = ("We know that {fact}.", "The problem says that {fact}.", "It is given that {fact}.")
#: What is done next, without doing it. The last is unseen.
PLANNED = (
    "First we find out how many {asks}.",
    "Now we need to know how many {asks}.",
    "Next we look for how many {asks}.",
)
ANSWERED = "The answer is {value}."
SPOKEN = {"+": "plus", "-": "minus", "*": "times", "/": "divided by"}


@cache
def vocabulary() -> tuple[str, ...]:
    """Every word above, those of the unseen wordings too."""
    written = [text for name, value in globals().items() if name.isupper() for text in _texts(value)]
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
