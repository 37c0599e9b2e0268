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
#: Two forms, relative and absolute tolerance: what computer algebra says.
Ask = Callable[[Form, Form, float, float | None], Outcome]

#: More answers than this in a list are compared in order alone: matching them tries every pair.
_MAX_UNORDERED = 40
_BASE = re.compile(
    r"\(?([0-9A-F]+)\)?(?:_\{\(?(\d{1,2}|\\text\{ ?[a-z]+ ?\})\)?\}| ?\\text\{ ?\(?base (\d+)\)? ?\}| ?\(base (\d+)\))"
)
_BASES = {
    name: base for base, name in enumerate("two three four five six seven eight nine ten eleven twelve".split(), 2)
} | {"sixteen": 16}
_SETS = {"union", "difference", "intersection"}
_TIME = re.compile(r"(\d{1,2}):([0-5]\d)(?::[0-5]\d)?(?: ?(?:\\text\{)? ?([apAP])\.? ?[mM]\.?\}?)?")


def compare(gold: Form, answer: Form, rule: AnswerRule, ask: Ask) -> Outcome:
    """Compare an answer with the gold one; algebra is asked only where strings and numbers do not decide.

    Returns:
        Of several values: "equal" where all are, "different" as soon as one is, else the first failure.
    """
    if gold == answer:
        return "equal"
    if gold.choice and answer.choice and not gold.name + answer.name:
        return "equal" if gold.choice == answer.choice else "different"
    if "words" in (gold.kind, answer.kind):
        if gold.text.lower() == answer.text.lower():
            return "equal"
        return "unreadable" if gold.is_prose or answer.is_prose else "different"
    if gold.items or answer.items:
        return _structures(gold, answer, rule, ask)
    if "relation" in (gold.kind, answer.kind):
        # An equation, and the same one solved for a name.
        both = all(form.whole and re.search("[=<>≤≥≠]", form.whole) for form in (gold, answer))
        relations = [replace(form, kind="relation") for form in (gold, answer)]
        return ask(relations[0], relations[1], 0.0, None) if both else "different"
    if gold.name and answer.name and gold.name != answer.name and len(_descriptions(gold, answer)) != 1:
        relations = [replace(form, kind="relation") for form in (gold, answer)]
        return ask(relations[0], relations[1], 0.0, None)
    if gold.argument and answer.argument and gold.argument != answer.argument:
        renamed = re.sub(
            r"\\[a-zA-Z]+|[a-zA-Z]",
            lambda found: gold.argument if found[0] == answer.argument else found[0],
            answer.text,
        )
        answer = replace(answer, text=renamed)
    return _values(gold, answer, rule, ask)


def compare_with_itself(form: Form, ask: Ask) -> Outcome:
    """Compare each value of an answer with itself by what it means: "equal" where it can be recognised, else why not."""
    if form.items and not form.kind.startswith("d"):
        outcomes = [compare_with_itself(item, ask) for item in form.items]
        return next((outcome for outcome in outcomes if outcome != "equal"), "equal")
    if form.kind == "words":
        return "unreadable" if form.is_prose and not form.choice else "equal"
    known = form.number is not None or form.choice or _numeral(form)[1] or form.text in "…ℝℤℕ∅"
    return "equal" if known or ":" in form.text else ask(form, form, 0.0, None)


def _descriptions(*forms: Form) -> set[str]:
    """Names that describe (`area`) rather than name a variable."""
    return {form.name for form in forms if re.fullmatch(r"[a-z ]{3,}", form.name)}


def _structures(gold: Form, answer: Form, rule: AnswerRule, ask: Ask) -> Outcome:
    kinds = {gold.kind, answer.kind}
    if gold.name and answer.name and gold.name != answer.name and not _descriptions(gold, answer):
        return "different"
    if gold.kind == answer.kind == "union" and len(gold.items) == len(answer.items):
        if _any_order(gold.items, answer.items, rule, ask) == "equal":
            return "equal"
    if kinds & _SETS and not kinds & {"matrix", "relation"}:
        return ask(gold, answer, 0.0, None)
    names = [[item.name for item in form.items if item.name] for form in (gold, answer)]
    is_named = [len(set(few)) == len(form.items) > 1 for few, form in zip(names, (gold, answer), strict=True)]
    if all(is_named):
        ordered = [tuple(sorted(form.items, key=lambda item: item.name)) for form in (gold, answer)]
        if [item.name for item in ordered[0]] != [item.name for item in ordered[1]]:
            return "different"
        return _in_order(ordered[0], ordered[1], rule, ask)
    if any(is_named) and kinds == {"list", "tuple"}:
        ordered = [tuple(sorted(form.items, key=lambda item: item.name)) for form in (gold, answer)]
        return _in_order(ordered[0], ordered[1], rule, ask)
    if gold.kind == answer.kind:
        if gold.kind == "list":
            same_order = any(item.text == "…" for item in gold.items) or any(is_named)
            return (_in_order if same_order else _any_order)(gold.items, answer.items, rule, ask)
        # Of two values, brackets tell a closed interval from an open one; of more, it is a point however written.
        if gold.kind == "tuple" and gold.brackets != answer.brackets and len(gold.items) == 2:
            return "different"
        if gold.kind == "matrix" and gold.columns != answer.columns:
            if not all(form.columns in (1, len(form.items)) for form in (gold, answer)):
                return "different"
        return _in_order(gold.items, answer.items, rule, ask)
    several, other = (gold, answer) if gold.kind in ("list", "matrix") else (answer, gold)
    if kinds == {"matrix", "tuple"} and several.columns in (1, len(several.items)):
        return _in_order(gold.items, answer.items, rule, ask)
    if kinds == {"list", "tuple"} and not several.brackets and other.brackets == "()" and not rule.is_vote:
        # A point whose brackets were left out is the same point; round brackets around a list leave it a list.
        return (_any_order if gold is several else _in_order)(gold.items, answer.items, rule, ask)
    if several.kind == "list" and other.kind == "value" and "⋎" in several.text:
        # One value in two forms: `1/2 or 0.5`.
        return _in_order((other,) * len(several.items), several.items, rule, ask)
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


def _item(gold: Form, answer: Form, rule: AnswerRule, ask: Ask) -> Outcome:
    """Within several values, what stands beside a number (`20 boys`) tells which one it is."""
    if gold.unit and answer.unit and gold.unit != answer.unit:
        return "different"
    return compare(gold, answer, rule, ask)


def _any_order(gold: tuple[Form, ...], answer: tuple[Form, ...], rule: AnswerRule, ask: Ask) -> Outcome:
    """Match each gold value with the first answer value that is equal to it and not yet taken."""
    if len(gold) != len(answer):
        return "different"
    if len(gold) > _MAX_UNORDERED:
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
    return "equal" if not remaining else failure or "different"


def _values(gold: Form, answer: Form, rule: AnswerRule, ask: Ask) -> Outcome:
    if gold.unit and answer.unit and gold.unit != answer.unit:
        if gold.unit in MEASURES and answer.unit in MEASURES:
            return "different"
        if gold.whole and answer.whole:
            gold, answer = (replace(form, text=form.whole, number=None, unit="", whole="") for form in (gold, answer))
    elif (gold.whole and gold.unit and answer.number is None) or (answer.whole and answer.unit and gold.number is None):
        gold, answer = (replace(form, text=form.whole or form.text, number=None) if form.unit else form for form in (gold, answer))  # fmt: skip
    if gold.text == answer.text and gold.is_percent == answer.is_percent:
        return "equal"
    if ":" in gold.text + answer.text or " to " in answer.text.replace(r"\text{to}", " to "):
        return _ratios(gold, answer, rule, ask)
    numerals = [_numeral(form) for form in (gold, answer)]
    if any(base for _, base in numerals):
        # The same digits; a base may be left out, since the problem names it, but not changed.
        bases = {base for _, base in numerals if base}
        return "equal" if len(bases) == 1 and numerals[0][0] == numerals[1][0] else "different"
    if gold.number is not None and answer.number is not None:
        return "equal" if _same_number(gold, answer, rule) else "different"
    for one, other in ((gold, answer), (answer, gold)):
        if one.unit == "degree" and r"\pi" in other.text and not other.unit:
            radians = replace(one, text=rf"({one.text})\cdot\frac{{\pi}}{{180}}", unit="", number=None)
            return ask(radians, other, 0.0, None)
        if one.is_percent and not other.is_percent:
            value = replace(one, text=rf"({one.text})\cdot\frac{{1}}{{100}}", is_percent=False)
            if not rule.is_vote and ask(value, other, 0.0, None) == "equal":
                return "equal"
    absolute = None if rule.absolute_tolerance is None else float(rule.absolute_tolerance)
    is_loose = (gold.has_decimals or answer.has_decimals) and not rule.whole_numbers
    if is_loose and not rule.tolerance_for_integers:
        is_loose = not any(form.number is not None and form.number.denominator == 1 for form in (gold, answer))
    return ask(gold, answer, float(rule.relative_tolerance) if is_loose else 0.0, absolute)


def _ratios(gold: Form, answer: Form, rule: AnswerRule, ask: Ask) -> Outcome:
    """`3:4` is 3/4 and `6:8`; a time of day is only itself."""
    texts = [re.sub(r" ?(?:\\text\{ ?to ?\}|\bto\b) ?", ":", form.text) for form in (gold, answer)]
    times = [_TIME.fullmatch(text) for text in texts]
    if all(times):
        return (
            "equal"
            if len({(one[1].lstrip("0"), one[2], one[3] and one[3].lower()) for one in times if one}) == 1
            else "different"
        )
    parts = [split(text, ":") for text in texts]
    if len({len(few) for few in parts}) > 1:
        if max(map(len, parts)) > 2 or any(times) or "to" in answer.text:
            return "different"
        return ask(
            *(replace(form, text=text.replace(":", "/")) for form, text in zip((gold, answer), texts, strict=True)),
            0.0,
            None,
        )  # type: ignore[arg-type]
    firsts = [few[0] for few in parts]
    for one, other in zip(parts[0][1:], parts[1][1:], strict=True):
        # a : b is c : d where a d is b c.
        sides = rf"({firsts[0]})\cdot({other})", rf"({firsts[1]})\cdot({one})"
        if (outcome := ask(*(Form("value", side) for side in sides), 0.0, None)) != "equal":  # type: ignore[arg-type]
            return outcome
    return "equal"


def _numeral(form: Form) -> tuple[str, str]:
    """Digits and base of a numeral such as `52_{8}`; no base where it names none."""
    text = re.sub(r"\\text\{ ?([A-F]) ?\}", r"\1", form.text)
    match = _BASE.fullmatch(text)
    if match is None:
        return text, ""
    base = match[2] or match[3] or match[4]
    return match[1], base if base.isdigit() else str(_BASES.get(re.sub(r"\\text|\W", "", base), base))


def _same_number(gold: Form, answer: Form, rule: AnswerRule) -> bool:
    assert gold.number is not None
    assert answer.number is not None
    if _within(gold.number, answer.number, (gold.place, answer.place), rule):
        return True
    if gold.is_percent == answer.is_percent or rule.is_vote:
        return False
    # One of them with a percent sign: the sign was left out (8 for 8%), or the value worked out (0.08 for 8%).
    values = [form.number / 100 if form.is_percent else form.number for form in (gold, answer)]  # type: ignore[operator]
    return _within(values[0], values[1], (gold.place, answer.place), rule)


def _within(
    gold: Fraction, answer: Fraction, places: tuple[Fraction | None, Fraction | None], rule: AnswerRule
) -> bool:
    difference = abs(gold - answer)
    if difference == 0:
        return True
    if rule.absolute_tolerance is not None:
        return difference <= rule.absolute_tolerance
    if rule.whole_numbers or difference > rule.relative_tolerance * max(abs(gold), abs(answer)):
        return False
    if rule.tolerance_for_integers:
        return True
    # A decimal that was rounded or cut is within one unit of its last place (`0.12501` is not 1/8), and what it was
    # rounded from has more places.
    rounded = max([place for place in places if place is not None], default=None)
    return (
        rounded is not None
        and places[0] != places[1]
        and 1 not in (gold.denominator, answer.denominator)
        and difference < rounded
    )
