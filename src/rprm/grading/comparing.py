"""Whether two forms are the same answer, as far as it can be told without computer algebra, and what that is asked."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from typing import Literal

from rprm.grading.normal import split
from rprm.grading.reading import Form
from rprm.grading.rules import AnswerRule
from rprm.grading.values import MEASURES

Outcome = Literal["equal", "different", "no answer", "unreadable", "too long", "timeout", "out of memory", "crashed"]
#: The comparison came to a conclusion.
SETTLED: frozenset[Outcome] = frozenset(["equal", "different", "no answer"])
#: What computer algebra says of two forms; also given a relative and an absolute tolerance where one is allowed.
Ask = Callable[..., Outcome]

#: More answers than this in a list are compared in order alone: matching them tries every pair.
_MAX_UNORDERED = 40
_BASE = re.compile(
    r"\(?([0-9A-F]+)\)?(?:_\{\(?(\d{1,2}|\\text\{ ?[a-z]+ ?\})\)?\}| ?\\text\{ ?\(?base (\d+)\)? ?\}| ?\(base (\d+)\))"
)
_BASES = {"two": "2", "three": "3", "four": "4", "five": "5", "six": "6", "seven": "7", "eight": "8", "sixteen": "16"}
_LETTERS = re.compile(r"[a-zA-Z](?:[^a-zA-Z]+[a-zA-Z])*[^a-zA-Z]*")
_SETS = {"union", "difference", "intersection"}
_TIME = re.compile(r"0?(\d{1,2}:[0-5]\d(?::[0-5]\d)?(?: [ap]m)?)")
_TO = re.compile(r" ?(?:\\text\{ ?to ?\}|\bto\b) ?")


def compare(gold: Form, answer: Form, rule: AnswerRule, ask: Ask) -> Outcome:
    """Compare an answer with the gold one; algebra is asked only where strings and numbers do not decide.

    Returns:
        Of several values: "equal" where all are, "different" as soon as one is, else the first failure.
    """
    if gold == answer:
        return "equal"
    if gold.choice and answer.choice and not gold.name + answer.name:
        return _outcome(gold.choice == answer.choice)
    if "words" in (gold.kind, answer.kind):
        if gold.text.lower() == answer.text.lower():
            return "equal"
        return "unreadable" if gold.is_prose or answer.is_prose else "different"
    #: Names that describe (`area`) rather than name a variable count where both are given.
    num_described = len({form.name for form in (gold, answer) if re.fullmatch("[a-z ]{3,}", form.name)})
    other_name = bool(gold.name and answer.name and gold.name != answer.name and num_described != 1)
    if gold.items or answer.items:
        return "different" if other_name else _structures(gold, answer, rule, ask)
    if other_name or "relation" in (gold.kind, answer.kind):
        # An equation, and the same one solved for a name.
        both = all(re.search("[=<>≤≥≠]", form.whole) for form in (gold, answer))
        return ask(replace(gold, kind="relation"), replace(answer, kind="relation")) if both else "different"
    if gold.argument and answer.argument and gold.argument != answer.argument:
        names = {answer.argument: gold.argument}
        renamed = re.sub(r"\\[a-zA-Z]+|[a-zA-Z]", lambda found: names.get(found[0], found[0]), answer.text)
        answer = replace(answer, text=renamed)
    return _values(gold, answer, rule, ask)


def compare_with_itself(form: Form, ask: Ask) -> Outcome:
    """Compare each value with itself by what it means: "equal" where it can be recognised, else why not."""
    if form.items and form.kind != "difference":
        outcomes = [compare_with_itself(item, ask) for item in form.items]
        return next((outcome for outcome in outcomes if outcome != "equal"), "equal")
    if form.kind == "words":
        return "unreadable" if form.is_prose and not form.choice else "equal"
    is_known = form.number is not None or form.choice or _numeral(form)[1] or form.text in "…ℤℕ∅" or ":" in form.text
    return "equal" if is_known else ask(form, form)


def _outcome(is_same: bool) -> Outcome:
    return "equal" if is_same else "different"


def _structures(gold: Form, answer: Form, rule: AnswerRule, ask: Ask) -> Outcome:
    kinds, both = {gold.kind, answer.kind}, (gold, answer)
    if kinds == {"union"} and _any_order(gold.items, answer.items, rule, ask) == "equal":
        return "equal"
    if kinds & _SETS:
        return ask(gold, answer)
    named = [len({item.name for item in form.items if item.name}) == len(form.items) > 1 for form in both]
    if all(named) or (any(named) and kinds == {"list", "tuple"}):
        # x=1, y=2 are named whatever their order, and (1, 2) in the order of their names.
        ordered = [tuple(sorted(form.items, key=lambda item: item.name)) for form in both]
        is_other = all(named) and [item.name for item in ordered[0]] != [item.name for item in ordered[1]]
        return "different" if is_other else _in_order(ordered[0], ordered[1], rule, ask)
    if gold.kind == answer.kind == "list":
        in_order = any(named) or any(item.text == "…" for item in gold.items)
        return (_in_order if in_order else _any_order)(gold.items, answer.items, rule, ask)
    are_vectors = all(form.kind != "matrix" or form.columns in (1, len(form.items)) for form in both)
    if gold.kind == answer.kind:
        # Of two values, brackets tell a closed interval from an open one; of more, it is a point however written.
        other_interval = len(gold.items) == 2 and gold.brackets != answer.brackets
        is_other = other_interval or (gold.columns != answer.columns and not are_vectors)
        return "different" if is_other else _in_order(gold.items, answer.items, rule, ask)
    if kinds == {"matrix", "tuple"} and are_vectors:
        return _in_order(gold.items, answer.items, rule, ask)
    values, other = (gold, answer) if gold.kind == "list" else (answer, gold)
    if kinds == {"list", "tuple"} and not values.brackets and other.brackets == "()" and not rule.is_vote:
        # A point whose brackets were left out is the same point; round brackets around a list leave it a list.
        return (_any_order if gold is values else _in_order)(gold.items, answer.items, rule, ask)
    if kinds == {"list", "value"} and "⋎" in values.text:
        # One value in two forms: `1/2 or 0.5`.
        return _in_order((other,) * len(values.items), values.items, rule, ask)
    return "different"


def _in_order(gold: tuple[Form, ...], answer: tuple[Form, ...], rule: AnswerRule, ask: Ask) -> Outcome:
    if len(gold) != len(answer):
        return "different"
    failure: Outcome | None = None
    for gold_item, answer_item in zip(gold, answer, strict=True):
        outcome = _item(gold_item, answer_item, rule, ask)
        if outcome == "different":
            return outcome
        if outcome != "equal":
            failure = failure or outcome
    return failure or "equal"


def _any_order(gold: tuple[Form, ...], answer: tuple[Form, ...], rule: AnswerRule, ask: Ask) -> Outcome:
    """Match each gold value with the first answer value that is equal to it and not yet taken."""
    if len(gold) != len(answer) or len(gold) > _MAX_UNORDERED:
        return _in_order(gold, answer, rule, ask)
    remaining = list(answer)
    failure: Outcome | None = None
    for gold_item in gold:
        # What is written alike first: it costs nothing, and most values have their like.
        remaining.sort(key=lambda item: item != gold_item)
        for place, answer_item in enumerate(remaining):
            outcome = _item(gold_item, answer_item, rule, ask)
            if outcome == "equal":
                del remaining[place]
                break
            if outcome != "different":
                failure = failure or outcome
        else:
            if failure is None:
                return "different"
    return failure or "different" if remaining else "equal"


def _item(gold: Form, answer: Form, rule: AnswerRule, ask: Ask) -> Outcome:
    """Within several values, what stands beside a number (`20 boys`) tells which one it is."""
    is_other = gold.unit and answer.unit and gold.unit != answer.unit
    return "different" if is_other else compare(gold, answer, rule, ask)


def _values(gold: Form, answer: Form, rule: AnswerRule, ask: Ask) -> Outcome:
    if gold.unit and answer.unit and gold.unit != answer.unit and {gold.unit, answer.unit} <= MEASURES:
        return "different"
    is_plain = any(form.number is not None and not form.unit for form in (gold, answer))
    if gold.unit != answer.unit and not is_plain and any(map(_LETTERS.fullmatch, (gold.unit, answer.unit))):
        # Letters are a unit beside a plain number alone: 2 m g is not 2 m v.
        gold, answer = (replace(form, text=form.whole or form.text, number=None, unit="") for form in (gold, answer))
    if gold.text == answer.text and gold.is_percent == answer.is_percent:
        return "equal"
    texts = [_TO.sub(":", form.text) for form in (gold, answer)]
    if any(":" in text for text in texts):
        return _ratios(texts[0], texts[1], ask)
    numerals = [_numeral(form) for form in (gold, answer)]
    if bases := {base for _, base in numerals if base}:
        # The same digits; a base may be left out, since the problem names it, but not changed.
        return _outcome(len(bases) == 1 and numerals[0][0] == numerals[1][0])
    if gold.number is not None and answer.number is not None:
        return _outcome(_same_number(gold, answer, rule))
    for one, other in ((gold, answer), (answer, gold)):
        if one.unit == "degree" and r"\pi" in other.text and not other.unit:
            return ask(replace(one, text=rf"({one.text})\cdot\frac{{\pi}}{{180}}"), other)
        hundredth = replace(one, text=rf"({one.text})\cdot\frac{{1}}{{100}}")
        if one.is_percent and not other.is_percent and not rule.is_vote and ask(hundredth, other) == "equal":
            return "equal"
    is_whole = any(form.number is not None and form.number.denominator == 1 for form in (gold, answer))
    is_rounded = (gold.has_decimals or answer.has_decimals) and (not is_whole or rule.tolerance_for_integers)
    relative = rule.relative_tolerance if is_rounded and not rule.whole_numbers else Fraction(0)
    for form in (gold, answer):
        if form.number and form.place and not rule.tolerance_for_integers:
            relative = min(relative, form.place / abs(form.number))  # 3.1417 does not round pi.
    return ask(
        gold, answer, float(relative), None if rule.absolute_tolerance is None else float(rule.absolute_tolerance)
    )


def _ratios(gold: str, answer: str, ask: Ask) -> Outcome:
    """`3:4` is 3/4 and `6:8`; a time of day is only itself."""
    times = [_TIME.fullmatch(text) for text in (gold, answer)]
    if times[0] and times[1]:
        return _outcome(times[0][1] == times[1][1])
    parts = [split(text, ":") for text in (gold, answer)]
    if any(times) and {len(few) for few in parts} != {2}:
        return "different"
    if sorted(map(len, parts)) == [1, 2]:
        return ask(Form("value", gold.replace(":", "/")), Form("value", answer.replace(":", "/")))
    if len(parts[0]) != len(parts[1]):
        return "different"
    for one, other in zip(parts[0][1:], parts[1][1:], strict=True):
        # a : b is c : d where a d is b c.
        products = (Form("value", rf"({a})\cdot({d})") for a, d in ((parts[0][0], other), (parts[1][0], one)))
        if (outcome := ask(*products)) != "equal":
            return outcome
    return "equal"


def _numeral(form: Form) -> tuple[str, str]:
    """Digits and base of a numeral such as `52_{8}`; no base where it names none."""
    text = re.sub(r"\\text\{ ?([A-F]) ?\}", r"\1", form.text)
    match = _BASE.fullmatch(text)
    if match is None:
        return text, ""
    base = re.sub(r"\\text|\W", "", match[2] or match[3] or match[4])
    return match[1], _BASES.get(base, base)


def _same_number(gold: Form, answer: Form, rule: AnswerRule) -> bool:
    values = [form.number or Fraction(0) for form in (gold, answer)]
    places = (gold.place, answer.place)
    if _within(values[0], values[1], places, rule):
        return True
    if gold.is_percent == answer.is_percent or rule.is_vote:
        return False
    # One of them with a percent sign: the sign was left out (8 for 8%), or the value worked out (0.08 for 8%).
    values = [value / 100 if form.is_percent else value for form, value in zip((gold, answer), values, strict=True)]
    return _within(values[0], values[1], places, rule)


def _within(
    gold: Fraction, answer: Fraction, places: tuple[Fraction | None, Fraction | None], rule: AnswerRule
) -> bool:
    difference = abs(gold - answer)
    if difference == 0 or rule.absolute_tolerance is not None:
        return difference <= (rule.absolute_tolerance or 0)
    if rule.whole_numbers or difference > rule.relative_tolerance * max(abs(gold), abs(answer)):
        return False
    if rule.tolerance_for_integers:
        return True
    # A decimal that was rounded or cut is within one unit of its last place (`0.12501` is not 1/8), and what it was
    # rounded from has more places.
    rounded = max([place for place in places if place is not None], default=Fraction(0))
    return difference < rounded and places[0] != places[1] and 1 not in (gold.denominator, answer.denominator)
