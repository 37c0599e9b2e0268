"""Whether two forms are the same answer, as far as it can be told without computer algebra, and what it is to be asked.

Structure is compared here, value by value, so that computer algebra only ever sees two single expressions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from rprm.grading.forms import Form, Group, Leaf, base_numeral, is_evaluation
from rprm.grading.rules import AnswerRule

Outcome = Literal["equal", "different", "no answer", "unreadable", "too long", "timeout", "out of memory", "crashed"]
#: The comparison came to a conclusion.
SETTLED: frozenset[Outcome] = frozenset(["equal", "different", "no answer"])

#: More answers than this in a list are compared in order alone: matching them tries every pair.
_MAX_UNORDERED = 40


@dataclass(frozen=True, slots=True)
class Question:
    """Two expressions for computer algebra, in LaTeX; their order matters: gold first.

    Attributes:
        gold: the gold expression.
        answer: the other.
        tolerance: relative, for values without variables; None for exact comparison.
        absolute_tolerance: of such values, instead of the relative one.
        exact_integers: whether a whole number among the two takes the tolerance away.
    """

    gold: str
    answer: str
    tolerance: float | None = None
    absolute_tolerance: float | None = None
    exact_integers: bool = True


Ask = Callable[[Question], Outcome]


def compare_forms(gold: Form, answer: Form, rule: AnswerRule, ask: Ask) -> Outcome:
    """Compare an answer with the gold one.

    Args:
        gold: the gold answer's form.
        answer: the other's.
        rule: tolerances.
        ask: what computer algebra says; asked only where strings and numbers do not decide.

    Returns:
        Of several values: "equal" where all are, "different" as soon as one is, else the first failure.
    """
    if isinstance(gold, Leaf) and isinstance(answer, Leaf):
        return _compare_leaves(gold, answer, rule, ask)
    if isinstance(gold, Group) and isinstance(answer, Group):
        return _compare_groups(gold, answer, rule, ask)
    group, leaf = (gold, answer) if isinstance(gold, Group) else (answer, gold)
    assert isinstance(group, Group)
    assert isinstance(leaf, Leaf)
    if leaf.is_prose:
        return "unreadable"
    if leaf.words is not None or leaf.number is not None or leaf.choice is not None:
        return "different"
    # An equation, a union written as an expression: structure that only algebra may see through.
    return ask(Question(_whole(gold), _whole(answer)))


def compare_with_itself(form: Form, ask: Ask) -> Outcome:
    """Compare each value of an answer with itself by what it means rather than by its text.

    Returns:
        "equal" where it can be recognised however it is written; else why not.
    """
    if isinstance(form, Group):
        outcomes = [compare_with_itself(item, ask) for item in form.items]
        return next((outcome for outcome in outcomes if outcome != "equal"), "equal")
    if form.is_prose:
        return "unreadable"
    if form.number is not None or form.words is not None or form.choice is not None or base_numeral(form.text):
        return "equal"
    text = form.text if form.name is not None else _whole(form)
    return ask(Question(text, text))


def _whole(form: Form) -> str:
    return form.text if isinstance(form, Group) else form.relation or form.text


def _compare_groups(gold: Group, answer: Group, rule: AnswerRule, ask: Ask) -> Outcome:
    if gold.kind == answer.kind == "union":
        return _any_order(gold.items, answer.items, rule, ask)
    if gold.kind == answer.kind == "list":
        return _any_order(gold.items, answer.items, rule, ask)
    if gold.kind == answer.kind == "matrix":
        if gold.num_columns != answer.num_columns:
            return "different"
        return _in_order(gold.items, answer.items, rule, ask)
    if gold.kind == answer.kind == "tuple":
        # Of two values, brackets tell a closed interval from an open one; of more, it is a point however written.
        if gold.brackets != answer.brackets and len(gold.items) == 2:
            return "different"
        return _in_order(gold.items, answer.items, rule, ask)
    kinds = {gold.kind, answer.kind}
    if kinds == {"list", "tuple"}:
        return _list_and_tuple(gold, answer, rule, ask)
    if kinds == {"matrix", "tuple"}:
        matrix = gold if gold.kind == "matrix" else answer
        # A vector, written as a column, a row or a point.
        if matrix.num_columns in (1, len(matrix.items)):
            return _in_order(gold.items, answer.items, rule, ask)
    return "different"


def _list_and_tuple(gold: Group, answer: Group, rule: AnswerRule, ask: Ask) -> Outcome:
    """A point whose brackets were left out is the same point; round brackets around a list leave it a list."""
    values, point = (gold, answer) if gold.kind == "list" else (answer, gold)
    if values.brackets or point.brackets != "()":
        return "different"
    if gold is values:
        return _any_order(gold.items, answer.items, rule, ask)
    return _in_order(gold.items, answer.items, rule, ask)


def _in_order(gold: tuple[Form, ...], answer: tuple[Form, ...], rule: AnswerRule, ask: Ask) -> Outcome:
    if len(gold) != len(answer):
        return "different"
    failure: Outcome | None = None
    for gold_item, answer_item in zip(gold, answer, strict=True):
        outcome = compare_forms(gold_item, answer_item, rule, ask)
        if outcome == "different":
            return outcome
        if outcome != "equal":
            failure = failure or outcome
    return failure or "equal"


def _any_order(gold: tuple[Form, ...], answer: tuple[Form, ...], rule: AnswerRule, ask: Ask) -> Outcome:
    """Match each gold value with the first answer value that is equal to it and not yet taken.

    Equality is close enough to transitive that the first match is as good as any other.
    """
    if len(gold) != len(answer):
        return "different"
    if len(gold) > _MAX_UNORDERED:
        return _in_order(gold, answer, rule, ask)
    remaining = list(answer)
    failure: Outcome | None = None
    unmatched = 0
    for gold_item in gold:
        # What is written alike first: it costs nothing, and most values have their like.
        remaining.sort(key=lambda item: item != gold_item)
        for place, answer_item in enumerate(remaining):
            outcome = compare_forms(gold_item, answer_item, rule, ask)
            if outcome == "equal":
                del remaining[place]
                break
            if outcome != "different":
                failure = failure or outcome
        else:
            if failure is None:
                return "different"
            unmatched += 1
    if unmatched == 0:
        return "equal"
    return failure or "different"


def _compare_leaves(gold: Leaf, answer: Leaf, rule: AnswerRule, ask: Ask) -> Outcome:
    if gold == answer:
        return "equal"
    if gold.choice is not None and answer.choice is not None and gold.choice == answer.choice:
        return "equal"
    if gold.words is not None or answer.words is not None:
        return _compare_words(gold, answer)
    if gold.name is not None and answer.name is not None and gold.name != answer.name:
        return ask(Question(_whole(gold), _whole(answer)))
    if gold.relation is not None and gold.name is None:
        if answer.relation is not None:
            return ask(Question(_whole(gold), _whole(answer)))
        if not is_evaluation(gold.relation):
            return "different"
    # 2x - y + 3 = 0 for y = 2x + 3; or 1 + 4 = 5 for x = 5, which the values tell.
    is_other_equation = gold.name is not None and answer.relation is not None and answer.name is None
    if is_other_equation and ask(Question(_whole(gold), _whole(answer))) == "equal":
        return "equal"
    return _compare_values(gold, answer, rule, ask)


def _compare_values(gold: Leaf, answer: Leaf, rule: AnswerRule, ask: Ask) -> Outcome:
    if gold.text == answer.text:
        return "equal"
    numerals = base_numeral(gold.text), base_numeral(answer.text)
    if any(numerals):
        return _compare_numerals(numerals, gold, answer)
    if gold.number is not None and answer.number is not None:
        return "equal" if _same_number(gold, answer, rule) else "different"
    if rule.whole_numbers and gold.number is not None and gold.number.denominator == 1:
        return ask(Question(str(gold.number), answer.text))
    absolute = rule.absolute_tolerance
    is_decimal = gold.is_decimal or answer.is_decimal
    return ask(
        Question(
            gold=gold.text,
            answer=answer.text,
            tolerance=float(rule.relative_tolerance) if is_decimal and rule.relative_tolerance else None,
            absolute_tolerance=None if absolute is None else float(absolute),
            exact_integers=not rule.tolerance_for_integers,
        )
    )


def _compare_words(gold: Leaf, answer: Leaf) -> Outcome:
    if gold.words is not None and gold.words == answer.words:
        return "equal"
    if gold.is_prose or answer.is_prose:
        return "unreadable"
    return "different"


def _compare_numerals(numerals: tuple[tuple[str, int] | None, ...], gold: Leaf, answer: Leaf) -> Outcome:
    """Numerals with a base: the same digits; a base may be left out, since the problem names it, but not changed."""
    bases = {numeral[1] for numeral in numerals if numeral}
    digits = [numeral[0] if numeral else leaf.text for numeral, leaf in zip(numerals, (gold, answer), strict=True)]
    return "equal" if len(bases) == 1 and digits[0] == digits[1] else "different"


def _same_number(gold: Leaf, answer: Leaf, rule: AnswerRule) -> bool:
    assert gold.number is not None
    assert answer.number is not None
    if _within(gold.number, answer.number, gold.is_decimal or answer.is_decimal, rule):
        return True
    if gold.is_percent == answer.is_percent:
        return False
    # One of them with a percent sign: the sign was left out (8 for 8%), or the value worked out (0.08 for 8%).
    percent = Fraction(1, 100)
    gold_value = gold.number * percent if gold.is_percent else gold.number
    answer_value = answer.number * percent if answer.is_percent else answer.number
    return _within(gold_value, answer_value, True, rule)


def _within(gold: Fraction, answer: Fraction, is_decimal: bool, rule: AnswerRule) -> bool:
    if gold == answer:
        return True
    if rule.absolute_tolerance is not None:
        return abs(gold - answer) <= rule.absolute_tolerance
    if rule.whole_numbers or (not is_decimal and not rule.tolerance_for_integers):
        return False
    if not rule.tolerance_for_integers and 1 in (gold.denominator, answer.denominator):
        return False
    return abs(gold - answer) <= rule.relative_tolerance * abs(gold)
