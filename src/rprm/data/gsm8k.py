r"""Labelled steps out of GSM8K's human solutions (arXiv 2110.14168), whose calculations are annotated: `<<48/2=24>>24`.

Each line of a solution is a right step. A wrong one is made of it by one edit, after the right steps before it:

- *calculation*: the result is another number, and the arithmetic does not hold;
- *operand*: a number that goes into the calculation is another one, wherever the line names it, and the result is
  worked out anew: the arithmetic holds, and the data are not the problem's.

Labels are known to be true because edits are timid. The annotation must be one that this module can work out and finds
right. A new number stands nowhere in the problem or its solution, so that it cannot be another right value; a new
result is further from the true one than rounding could bring it. A line with no annotation, with several, or whose
numbers cannot be told apart, is not edited.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Any

from rprm.data.arithmetic import evaluate
from rprm.data.origins import Origin
from rprm.errors import InputError
from rprm.reading import RowModel, Text, checked
from rprm.records import LabelledStep


class GSM8KRow(RowModel):
    question: Text
    answer: Text


@dataclass(frozen=True, slots=True)
class WrongStep:
    """A step made wrong, and how: by its calculation or by an operand."""

    text: str
    kind: str


def gsm8k_steps(
    record: dict[str, Any], origin: Origin, *, wrong_share: float = 0.5, seed: int = 0
) -> list[LabelledStep]:
    """Right and wrong steps of a row `{question, answer}`.

    Every line gives its right step, and every line that can be edited one wrong step; both follow the same right steps,
    so that neither place nor context tells them apart. Of the more numerous kind as many are left out as brings wrong
    rows to `wrong_share`; rounding is by chance, so that the share holds over many rows. The line `#### N` is dropped:
    it has no calculation to edit, and a step that is always right teaches to recognise it. Everything is a function of
    the row's text and the seed.

    Args:
        record: the row.
        origin: where it comes from; `source` becomes `gsm8k`, `gsm8k:calculation` or `gsm8k:operand`.
        wrong_share: share of wrong rows to aim at, 0 (none) to 1 (no right ones).
        seed: of the edits and of what is left out.

    Raises:
        InputError: the row has not this form.
    """
    row = checked(GSM8KRow, record)
    problem, answer = row.question, row.answer
    lines = [line.strip() for line in answer.split("\n") if line.strip() and not line.strip().startswith("####")]
    if not lines:
        raise InputError("'answer' has no step before its final line")
    drawn = random.Random(f"{seed}\n{problem}\n{answer}")
    steps = [without_annotations(line) for line in lines]
    taken = _numbers(problem) | _numbers(without_annotations(answer)) | _number_words(problem)
    wrong = {index: edited for index, line in enumerate(lines) if (edited := wrong_step(line, taken, drawn))}
    right = range(len(steps))
    chosen_right, chosen_wrong = _balanced(list(right), list(wrong), wrong_share, drawn)
    if left_out := len(right) - len(chosen_right):
        origin.skipped["right steps left out for balance"] += left_out
    if left_out := len(wrong) - len(chosen_wrong):
        origin.skipped["wrong steps left out for balance"] += left_out
    if uneditable := len(steps) - len(wrong):
        origin.skipped["steps that cannot be made wrong"] += uneditable
    origin = Origin(origin.id, "gsm8k", origin.skipped)
    found: list[LabelledStep] = []
    for index in right:
        if index in chosen_right:
            found.append(origin.labelled(problem, steps[:index], steps[index], True))
        if index in chosen_wrong:
            edited = wrong[index]
            found.append(origin.labelled(problem, steps[:index], edited.text, False, choice="-wrong", part=edited.kind))
    return found


def without_annotations(text: str) -> str:
    """The text as a reader sees it: without `<<48/2=24>>` and its like."""
    return _ANNOTATION.sub(lambda match: "" if "=" in match[0] else match[0], text)


def wrong_step(line: str, taken: frozenset[Fraction], drawn: random.Random) -> WrongStep | None:
    """A wrong version of an annotated line, or None where no edit is safe.

    Args:
        line: with its annotation.
        taken: numbers that no edit may bring in.
        drawn: chooses the kind of edit and the number.
    """
    calculation = _calculation(line)
    if calculation is None:
        return None
    edits = {"calculation": _wrong_result, "operand": _wrong_operand}
    kinds = list(edits)
    drawn.shuffle(kinds)
    for kind in kinds:
        if text := edits[kind](calculation, taken, drawn):
            return WrongStep(text, kind)
    return None


@dataclass(frozen=True, slots=True)
class _Calculation:
    """A line around its one annotation: `before` `<<expression=...>>` `shown` `after`; `value` is exact."""

    before: str
    expression: str
    shown: str
    after: str
    value: Fraction


_ANNOTATION = re.compile(r"<<[^<>]*>>")
#: A number as a solution writes it, of at most 24 digits before the point; not a part of a longer one.
_NUMBER = re.compile(
    r"(?<![\d.,])(?:\d{1,3}(?:,\d{3}){1,7}|\d{1,24})?(?:\.\d{1,12})?(?<=\d)(?!\d|[.,]\d)", flags=re.ASCII
)
#: A longer line is not searched for its calculation.
_MAX_LINE = 2000


def _calculation(line: str) -> _Calculation | None:
    """The one calculation of a line, where it is right as far as the digits shown go."""
    annotations = list(_ANNOTATION.finditer(line))
    if len(annotations) != 1 or len(line) > _MAX_LINE:
        return None
    expression, _, result = annotations[0][0][2:-2].rpartition("=")
    before, after = line[: annotations[0].start()], line[annotations[0].end() :]
    shown = _NUMBER.match(after)
    if not shown or not expression or "=" in expression:
        return None
    try:
        value, annotated = evaluate(expression), evaluate(result)
    except ValueError:
        return None
    number = _value(shown[0])
    # Rounded at the last digit shown, or cut there.
    if number != annotated or abs(value - number) >= _unit(shown[0]):
        return None
    if number in _numbers(after[shown.end() :]) | (_numbers(before) - _numbers(expression)):
        # The line names its result elsewhere too; edited, it would contradict itself.
        return None
    return _Calculation(before, expression, shown[0], after[shown.end() :], value)


def _wrong_result(calculation: _Calculation, taken: frozenset[Fraction], drawn: random.Random) -> str | None:
    shown = calculation.shown
    for text in _others(shown, drawn):
        number = _value(text)
        if number not in taken and abs(number - calculation.value) > 2 * _unit(shown):
            return calculation.before + text + calculation.after
    return None


def _wrong_operand(calculation: _Calculation, taken: frozenset[Fraction], drawn: random.Random) -> str | None:
    """Another operand throughout the line, and the result that follows from it.

    The calculation must stand in the line as it is annotated, just before the result.
    """
    visible = _visible(calculation)
    if visible is None or calculation.before.count("=") > 1:
        return None
    operands = [match[0] for match in _NUMBER.finditer(calculation.expression)]
    values = [_value(operand) for operand in operands]
    places = [index for index, value in enumerate(values) if values.count(value) == 1 and value != 0]
    result = _value(calculation.shown)
    drawn.shuffle(places)
    for place in places:
        if values[place] == result or values[place] in _numbers(calculation.after):
            continue
        written = next(match[0] for match in _NUMBER.finditer(visible) if _value(match[0]) == values[place])
        for text in _others(written, drawn):
            if _value(text) in taken:
                continue
            expression = _replaced(calculation.expression, values[place], text.replace(",", ""))
            try:
                value = evaluate(expression)
            except ValueError:
                continue
            shown = _shown_like(value, calculation.shown)
            if (
                shown is None
                or _value(shown) in taken
                or abs(value - calculation.value) <= 2 * _unit(calculation.shown)
            ):
                continue
            return _replaced(calculation.before, values[place], text) + shown + calculation.after
    return None


def _visible(calculation: _Calculation) -> str | None:
    """The end of `before` that shows the annotated expression, operand by operand; None where none does."""
    parts = [match[0] for match in _PART.finditer(calculation.expression) if match[0] not in "()%"]
    # Words may follow an operand (`5 boxes * 3`), brackets may stand elsewhere.
    pattern = "".join(
        rf"\(? ?[$]? ?{_written(part)} ?%?[a-zA-Z ]{{0,24}}\)?" if part not in _OPERATORS else _OPERATORS[part]
        for part in parts
    )
    match = re.search(rf"(?<![\d.,]){pattern} ?= ?[$]? ?$", " ".join(calculation.before.split()))
    return match[0] if match else None


_PART = re.compile(r"\d+\.?\d*|\.\d+|[-+*/()%]")
_OPERATORS = {"*": " ?[*xX×·] ?", "/": " ?[/÷] ?", "+": r" ?\+ ?", "-": " ?[-−–] ?"}


def _written(number: str) -> str:
    """A pattern for a number however it is written: with commas or without, `.5` or `0.5`."""
    whole, _, decimals = number.partition(".")
    pattern = ",?".join(whole) if whole.strip("0") else "0?"
    return pattern + (rf"\.{decimals}" if decimals else "")


def _replaced(text: str, value: Fraction, new: str) -> str:
    """The text with another number in place of every one that has this value."""
    return _NUMBER.sub(lambda match: new if _value(match[0]) == value else match[0], text)


def _others(shown: str, drawn: random.Random) -> Iterator[str]:
    """Other numbers of the same form, in a drawn order: near ones, two digits swapped, ten away, ten times as much."""
    number = Decimal(shown.replace(",", ""))
    unit = Decimal(1).scaleb(-_decimals(shown))
    candidates = [number + sign * step * unit for step in (1, 2, 3, 4, 5) for sign in (1, -1)]
    candidates += [number + sign * 10 * unit for sign in (1, -1) if number >= 20 * unit]
    digits = str(int(number / unit))
    for place in range(len(digits) - 1):
        swapped = digits[:place] + digits[place + 1] + digits[place] + digits[place + 2 :]
        if swapped[0] != "0":
            candidates.append(int(swapped) * unit)
    if number >= 2 * unit:
        candidates += [number * 10, number + 100 * unit]
    kept = sorted({candidate for candidate in candidates if candidate > 0 and candidate != number})
    drawn.shuffle(kept)
    for candidate in kept:
        yield _formatted(candidate, shown)


def _formatted(number: Decimal, like: str) -> str:
    """The number with the decimals, the commas and the leading zero of another."""
    text = f"{number:,.{_decimals(like)}f}"
    if "," not in like and (len(like.partition(".")[0]) > 3 or abs(number) < 10_000):
        text = text.replace(",", "")
    return text.removeprefix("0") if like.startswith(".") else text


def _shown_like(value: Fraction, like: str) -> str | None:
    """A result as another one is written, with up to two decimals where it needs them; None where it has more."""
    if value <= 0:
        return None
    for decimals in range(_decimals(like), max(2, _decimals(like)) + 1):
        scaled = value * 10**decimals
        if scaled.denominator == 1:
            form = f"{like.partition('.')[0]}.{'0' * decimals}" if decimals else like
            return _formatted(Decimal(scaled.numerator).scaleb(-decimals), form)
    return None


def _numbers(text: str) -> frozenset[Fraction]:
    return frozenset(_value(match[0]) for match in _NUMBER.finditer(text))


#: Words of a problem that stand for a number.
_WORDS = {
    word: Fraction(number)
    for number, words in {
        "1/4": "quarter", "1/3": "third", "1/2": "half", "0": "zero", "1": "one once single",
        "2": "two twice double pair couple both", "3": "three thrice triple", "4": "four", "5": "five", "6": "six",
        "7": "seven week", "8": "eight", "9": "nine", "10": "ten decade", "11": "eleven", "12": "twelve dozen year",
        "13": "thirteen", "14": "fourteen", "15": "fifteen", "16": "sixteen", "17": "seventeen", "18": "eighteen",
        "19": "nineteen", "20": "twenty score", "24": "day", "30": "thirty month", "40": "forty", "50": "fifty",
        "60": "sixty hour minute", "70": "seventy", "80": "eighty", "90": "ninety", "100": "hundred century percent",
        "1000": "thousand",
    }.items()
    for word in words.split()
}  # fmt: skip


def _number_words(text: str) -> frozenset[Fraction]:
    words = re.findall("[a-z]+", text.casefold())
    return frozenset(_WORDS[word] for word in (*words, *(word.removesuffix("s") for word in words)) if word in _WORDS)


def _value(number: str) -> Fraction:
    return Fraction(number.replace(",", ""))


def _decimals(number: str) -> int:
    return len(number.partition(".")[2])


def _unit(number: str) -> Fraction:
    """One of the last digit shown."""
    return Fraction(1, 10 ** _decimals(number))


def _balanced(
    right: list[int], wrong: list[int], share: float, drawn: random.Random
) -> tuple[frozenset[int], frozenset[int]]:
    """As many of both as give the share, leaving out as few as possible."""
    if len(wrong) * (1 - share) > len(right) * share:
        wrong = _some(wrong, len(right) * share / (1 - share), drawn)
    else:
        right = _some(right, len(wrong) * (1 - share) / share if share else len(right), drawn)
    return frozenset(right), frozenset(wrong)


def _some(places: list[int], count: float, drawn: random.Random) -> list[int]:
    """This many on average: a fraction of one is one or none."""
    whole = int(count)
    return drawn.sample(places, min(len(places), whole + (drawn.random() < count - whole)))
