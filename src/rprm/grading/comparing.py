"""Whether two forms are the same answer, as far as it can be told without computer algebra, and what that is asked."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from typing import Literal

from rprm.grading.normal import split
from rprm.grading.parsing import Form
from rprm.grading.rules import AnswerRule
from rprm.grading.tables import MEASURES, P

Outcome = Literal["equal", "different", "no answer", "unreadable", "too long", "timeout", "out of memory", "crashed"]
#: What computer algebra says of two forms; also given a relative and an absolute tolerance where one is allowed.
Ask = Callable[..., Outcome]
#: More answers than this in a list are compared in order alone: matching them tries every pair.
_MAX_UNORDERED = 40
#: Larger than any difference.
_ANY = Fraction(10**300)


def compare(gold: Form, answer: Form, rule: AnswerRule, ask: Ask) -> Outcome:
    """Compare an answer with the gold one; algebra is asked only where strings and numbers do not decide."""
    both = (gold, answer)
    if gold == answer:
        return "equal"
    if gold.choice and answer.choice and not gold.name + answer.name:
        return _outcome(gold.choice == answer.choice)
    if "words" in (gold.kind, answer.kind):
        is_prose = any(form.kind == "words" and not form.choice and not P.phrase.fullmatch(form.text) for form in both)
        return "equal" if gold.text.lower() == answer.text.lower() else "unreadable" if is_prose else "different"
    # Names that describe (`area`) rather than name a variable count where both are given.
    described = {form.name for form in both if re.fullmatch("[a-z ]{3,}", form.name)}
    other_name = bool(gold.name and answer.name and gold.name != answer.name and len(described) != 1)
    if gold.items or answer.items:
        return "different" if other_name else _structures(gold, answer, rule, ask)
    if other_name or "relation" in (gold.kind, answer.kind):
        # An equation, and the same one solved for a name.
        are_whole = all(re.search("[=<>≤≥≠]", form.whole) for form in both)
        return ask(*(replace(form, kind="relation") for form in both)) if are_whole else "different"
    if gold.argument and answer.argument:
        names = {answer.argument: gold.argument}
        renamed = re.sub(r"\\[a-zA-Z]+|[a-zA-Z]", lambda found: names.get(found[0], found[0]), answer.text)
        answer = replace(answer, text=renamed)
    return _values(gold, answer, rule, ask)


def compare_with_itself(form: Form, ask: Ask) -> Outcome:
    """Compare each value with itself by what it means: "equal" where it can be recognised, else why not."""
    if form.items and form.kind != "difference":
        outcomes = [compare_with_itself(item, ask) for item in form.items]
        return next((outcome for outcome in outcomes if outcome != "equal"), "equal")
    if form.kind == "words" and not form.choice:
        return "equal" if P.phrase.fullmatch(form.text) else "unreadable"
    is_known = form.number is not None or form.choice or P.known.fullmatch(form.text)
    return "equal" if is_known else ask(form, form)


def _outcome(is_same: bool) -> Outcome:
    return "equal" if is_same else "different"


def _structures(gold: Form, answer: Form, rule: AnswerRule, ask: Ask) -> Outcome:
    kinds = {gold.kind, answer.kind}
    if kinds == {"union"} and _items(gold.items, answer.items, rule, ask, in_order=False) == "equal":
        return "equal"
    if kinds & {"union", "difference", "intersection"}:
        return ask(gold, answer)
    values, other = (gold, answer) if gold.kind == "list" else (answer, gold)
    if kinds == {"tuple"}:
        # Of two values, brackets tell a closed interval from an open one; of more, and of a vector, they tell nothing.
        is_interval = len(gold.items) == 2 and "⟦⟧" not in (gold.brackets, answer.brackets)
        is_other = is_interval and gold.brackets != answer.brackets
        return "different" if is_other else _items(gold.items, answer.items, rule, ask)
    if kinds == {"list"}:
        return _items(gold.items, answer.items, rule, ask, in_order=any(item.text == "…" for item in gold.items))
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
    """Match each gold value with the next answer value, or with the first that is equal and not yet taken.

    "equal" where all are, "different" as soon as one is, else the first failure.
    """
    if len(gold) != len(answer):
        return "different"
    in_order = in_order or len(gold) > _MAX_UNORDERED
    remaining, is_whole = list(answer), True
    failure: Outcome | None = None
    for one in gold:
        # What is written alike first: it costs nothing, and most values have their like.
        for other in remaining[:1] if in_order else sorted(remaining, key=lambda item: item != one):
            # Within several values, what stands beside a number (`20 boys`) tells which one it is.
            is_other = one.unit and other.unit and one.unit != other.unit
            outcome: Outcome = "different" if is_other else compare(one, other, rule, ask)
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
    both, units = (gold, answer), {gold.unit, answer.unit}
    if len(units) == 2 and units <= MEASURES:
        return "different"
    is_plain = any(form.number is not None and form.unit in ("", "%") for form in both)
    if len(units) == 2 and not is_plain and any(map(P.letters.fullmatch, units)):
        # Letters are a unit beside a plain number alone: 2 m g is not 2 m v.
        gold, answer = (replace(form, text=form.whole or form.text, number=None, unit="") for form in both)
        both = (gold, answer)
    if gold.text == answer.text and (gold.unit == "%") == (answer.unit == "%"):
        return "equal"
    if ":" in gold.text + answer.text:
        return _ratios(gold, answer, ask)
    numerals = [match.groups() if (match := P.numeral.fullmatch(form.text)) else (form.text, "") for form in both]
    if bases := {base for _, base in numerals if base}:
        # The same digits; a base may be left out, since the problem names it, but not changed.
        return _outcome(len(bases) == 1 and numerals[0][0] == numerals[1][0])
    if gold.number is not None and answer.number is not None:
        return _outcome(_same_number(gold, answer, rule))
    for one, other in (both, both[::-1]):
        if one.unit == "degree" and r"\pi" in other.text and not other.unit:
            return ask(replace(one, text=rf"({one.text})\cdot\frac{{\pi}}{{180}}"), other)
        hundredth = replace(one, text=rf"({one.text})\cdot\frac{{1}}{{100}}")
        if one.unit == "%" != other.unit and not rule.is_vote and ask(hundredth, other) == "equal":
            return "equal"
    return ask(gold, answer, *map(float, _tolerances(gold, answer, rule)))


def _tolerances(gold: Form, answer: Form, rule: AnswerRule) -> tuple[Fraction, Fraction]:
    """The largest difference that makes no difference: relative to the larger value (0: any), and absolute."""
    both = (gold, answer)
    if rule.absolute_tolerance is not None:
        return Fraction(0), rule.absolute_tolerance
    is_whole = any(form.number is not None and form.number.denominator == 1 for form in both)
    has_decimals = any(form.place is not None or re.search(r"\d\.\d", form.text) for form in both)
    if rule.tolerance_for_integers and (has_decimals or None not in (gold.number, answer.number)):
        return rule.relative_tolerance, _ANY
    # A decimal that was rounded or cut is within one unit of its last place (`0.12501` is not 1/8, nor 3.1417 pi), and
    # what it was rounded from has more places.
    is_exact = rule.whole_numbers or rule.relative_tolerance == 0 or gold.place == answer.place is not None
    if is_exact or is_whole or not has_decimals:
        return Fraction(0), Fraction(0)
    places = [form.place for form in both if form.place is not None]
    return rule.relative_tolerance, max(places, default=_ANY) * Fraction(999_999, 1_000_000)


def _ratios(gold: Form, answer: Form, ask: Ask) -> Outcome:
    """`3:4` is 3/4 and `6:8`; a time of day is only itself."""
    times = [P.time.fullmatch(form.text) for form in (gold, answer)]
    if times[0] and times[1]:
        return _outcome(times[0][1] == times[1][1])
    left, right = (split(form.text, ":") for form in (gold, answer))
    if any(times) and {len(left), len(right)} != {2}:
        return "different"
    # A value alone is its ratio to 1.
    left, right = (parts if len(parts) > 1 else [*parts, "1"] for parts in (left, right))
    for one, other in zip(left[1:], right[1:], strict=False):
        # a : b is c : d where a d is b c.
        products = (Form("value", rf"({a})\cdot({d})") for a, d in ((left[0], other), (right[0], one)))
        if (outcome := ask(*products)) != "equal":
            return outcome
    return _outcome(len(left) == len(right))


def _same_number(gold: Form, answer: Form, rule: AnswerRule) -> bool:
    relative, absolute = _tolerances(gold, answer, rule)
    # One of them with a percent sign: the sign was left out (8 for 8%), or the value worked out (0.08 for 8%).
    is_percent = (gold.unit == "%") != (answer.unit == "%") and not rule.is_vote
    for percent in (Fraction(1), Fraction(1, 100))[: 1 + is_percent]:
        one, other = ((form.number or Fraction(0)) * (percent if form.unit == "%" else 1) for form in (gold, answer))
        allowed = min(relative * max(abs(one), abs(other)), absolute) if relative else absolute
        if abs(one - other) <= allowed:
            return True
    return False
