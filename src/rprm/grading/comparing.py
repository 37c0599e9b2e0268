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
from rprm.grading.values import MEASURES, is_phrase

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
    both = (gold, answer)
    if gold == answer:
        return "equal"
    if gold.choice and answer.choice and not gold.name + answer.name:
        return _outcome(gold.choice == answer.choice)
    if "words" in (gold.kind, answer.kind):
        if gold.text.lower() == answer.text.lower():
            return "equal"
        return "unreadable" if any(map(_is_prose, both)) else "different"
    # Names that describe (`area`) rather than name a variable count where both are given.
    num_described = len({form.name for form in both if re.fullmatch("[a-z ]{3,}", form.name)})
    other_name = bool(gold.name and answer.name and gold.name != answer.name and num_described != 1)
    if gold.items or answer.items:
        return "different" if other_name else _structures(gold, answer, rule, ask)
    if other_name or "relation" in (gold.kind, answer.kind):
        # An equation, and the same one solved for a name.
        are_whole = all(re.search("[=<>≤≥≠]", form.whole) for form in both)
        return ask(replace(gold, kind="relation"), replace(answer, kind="relation")) if are_whole else "different"
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
        return "unreadable" if _is_prose(form) and not form.choice else "equal"
    is_known = form.number is not None or form.choice or _numeral(form)[1] or form.text in "…ℤℕ∅" or ":" in form.text
    return "equal" if is_known else ask(form, form)


def _is_prose(form: Form) -> bool:
    """Whether it is words of which only the same ones can be known to be equal."""
    return form.kind == "words" and not is_phrase(form.text)


def _outcome(is_same: bool) -> Outcome:
    return "equal" if is_same else "different"


def _structures(gold: Form, answer: Form, rule: AnswerRule, ask: Ask) -> Outcome:
    kinds = {gold.kind, answer.kind}
    if kinds == {"union"} and _items(gold.items, answer.items, rule, ask, in_order=False) == "equal":
        return "equal"
    if kinds & _SETS:
        return ask(gold, answer)
    in_order = kinds != {"list"} or any(item.text == "…" for item in gold.items)
    if gold.kind == answer.kind:
        # Of two values, brackets tell a closed interval from an open one; of more, and of a vector, they tell nothing.
        is_interval = len(gold.items) == 2 and "⟦⟧" not in (gold.brackets, answer.brackets)
        if gold.kind == "tuple" and is_interval and gold.brackets != answer.brackets:
            return "different"
        return _items(gold.items, answer.items, rule, ask, in_order)
    values, other = (gold, answer) if gold.kind == "list" else (answer, gold)
    if kinds == {"list", "tuple"} and not values.brackets and other.brackets == "()" and not rule.is_vote:
        # A point whose brackets were left out is the same point; round brackets around a list leave it a list.
        return _items(gold.items, answer.items, rule, ask, in_order=gold is other or bool(other.name))
    if kinds == {"list", "value"} and "⋎" in values.text:
        # One value in two forms: `1/2 or 0.5`.
        return _items((other,) * len(values.items), values.items, rule, ask)
    return "different"


def _items(
    gold: tuple[Form, ...], answer: tuple[Form, ...], rule: AnswerRule, ask: Ask, in_order: bool = True
) -> Outcome:
    """Match each gold value with the next answer value, or with the first that is equal and not yet taken."""
    if len(gold) != len(answer):
        return "different"
    in_order = in_order or len(gold) > _MAX_UNORDERED
    remaining, failure, is_whole = list(answer), None, True
    for one in gold:
        # What is written alike first: it costs nothing, and most values have their like.
        for other in remaining[:1] if in_order else sorted(remaining, key=lambda item: item != one):
            # Within several values, what stands beside a number (`20 boys`) tells which one it is.
            is_other = one.unit and other.unit and one.unit != other.unit
            outcome = "different" if is_other else compare(one, other, rule, ask)
            if outcome == "equal":
                remaining.remove(other)
                break
            failure = failure or (None if outcome == "different" else outcome)
        else:
            if failure is None or (in_order and outcome == "different"):
                return "different"
            remaining, is_whole = remaining[in_order:], False
    return "equal" if is_whole else failure or "different"


def _values(gold: Form, answer: Form, rule: AnswerRule, ask: Ask) -> Outcome:
    units = {gold.unit, answer.unit}
    if len(units) == 2 and units <= MEASURES:
        return "different"
    is_plain = any(form.number is not None and form.unit in ("", "%") for form in (gold, answer))
    if len(units) == 2 and not is_plain and any(map(_LETTERS.fullmatch, units)):
        # Letters are a unit beside a plain number alone: 2 m g is not 2 m v.
        gold, answer = (replace(form, text=form.whole or form.text, number=None, unit="") for form in (gold, answer))
    if gold.text == answer.text and (gold.unit == "%") == (answer.unit == "%"):
        return "equal"
    texts = [_TO.sub(":", form.text) for form in (gold, answer)]
    if ":" in texts[0] + texts[1]:
        return _ratios(*texts, ask)
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
        if one.unit == "%" != other.unit and not rule.is_vote and ask(hundredth, other) == "equal":
            return "equal"
    is_whole = any(form.number is not None and form.number.denominator == 1 for form in (gold, answer))
    has_decimals = any(form.place is not None or re.search(r"\d\.\d", form.text) for form in (gold, answer))
    is_rounded = has_decimals and (not is_whole or rule.tolerance_for_integers)
    relative = rule.relative_tolerance if is_rounded and not rule.whole_numbers else Fraction(0)
    for form in (gold, answer):
        if form.number and form.place and not rule.tolerance_for_integers:
            relative = min(relative, form.place / abs(form.number))  # 3.1417 does not round pi.
    absolute = rule.absolute_tolerance
    return ask(gold, answer, float(relative), None if absolute is None else float(absolute))


def _ratios(gold: str, answer: str, ask: Ask) -> Outcome:
    """`3:4` is 3/4 and `6:8`; a time of day is only itself."""
    times = [_TIME.fullmatch(text) for text in (gold, answer)]
    if times[0] and times[1]:
        return _outcome(times[0][1] == times[1][1])
    left, right = (split(text, ":") for text in (gold, answer))
    if any(times) and {len(left), len(right)} != {2}:
        return "different"
    if sorted([len(left), len(right)]) == [1, 2]:
        return ask(Form("value", gold.replace(":", "/")), Form("value", answer.replace(":", "/")))
    if len(left) != len(right):
        return "different"
    for one, other in zip(left[1:], right[1:], strict=True):
        # a : b is c : d where a d is b c.
        products = (Form("value", rf"({a})\cdot({d})") for a, d in ((left[0], other), (right[0], one)))
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
    # One of them with a percent sign: the sign was left out (8 for 8%), or the value worked out (0.08 for 8%).
    worked_out = [
        value / 100 if form.unit == "%" else value for form, value in zip((gold, answer), values, strict=True)
    ]
    is_percent = (gold.unit == "%") != (answer.unit == "%") and not rule.is_vote
    for one, other in (values, worked_out) if is_percent else (values,):
        difference, size = abs(one - other), max(abs(one), abs(other))
        if difference == 0 or rule.absolute_tolerance is not None:
            is_same = difference <= (rule.absolute_tolerance or 0)
        elif rule.whole_numbers or difference > rule.relative_tolerance * size:
            is_same = False
        else:
            # A decimal that was rounded or cut is within one unit of its last place (`0.12501` is not 1/8), and what it
            # was rounded from has more places.
            rounded = max([form.place for form in (gold, answer) if form.place is not None], default=Fraction(0))
            is_other = gold.place == answer.place or 1 in (one.denominator, other.denominator)
            is_same = rule.tolerance_for_integers or (difference < rounded and not is_other)
        if is_same:
            return True
    return False
