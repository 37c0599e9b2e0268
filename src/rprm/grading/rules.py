"""What counts as the same answer, set by set (docs/grading.md)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction


@dataclass(frozen=True, slots=True)
class AnswerRule:
    """How an answer is found in a solution and compared with the gold answer."""

    name: str
    #: Further words that announce an answer at the start of a line, before a colon (`A` for `A: 18`).
    markers: tuple[str, ...] = ()
    #: The last number of a text without any announced answer is taken: that invents an answer where none is given.
    last_number: bool = False
    #: `1,100` is the list of 1 and 100, not eleven hundred (for answers known to be several).
    lists_split_numbers: bool = False
    #: The gold answer is a whole number, and only the same whole number is equal.
    whole_numbers: bool = False
    #: Of numbers of which at least one is a rounded decimal; 0 for none.
    relative_tolerance: Fraction = Fraction(1, 10_000)
    #: The relative tolerance holds where one of the numbers is whole, too.
    tolerance_for_integers: bool = False
    #: Of any two numbers, instead of the relative one.
    absolute_tolerance: Fraction | None = None
    #: A single letter after a number and a space (`5 m`) is a unit rather than a variable.
    letter_units: bool = False

    @property
    def is_vote(self) -> bool:
        """There is no gold answer: equality has to be transitive, so that `50%` is 50 but not 0.5 as well."""
        return self.name == "exact"


#: For answers of no known set.
MATHEMATICS = AnswerRule("mathematics")
#: Equal exactly: for groups of answers, where no gold answer says how precise one must be.
EXACT = AnswerRule("exact", relative_tolerance=Fraction(0))
#: GSM8K as lm-evaluation-harness's "flexible-extract" reads it: where nothing is announced, the last number.
GSM8K_FLEXIBLE = AnswerRule("gsm8k-flexible", ("A",), True, whole_numbers=True, relative_tolerance=Fraction(0))

_SETS = [
    AnswerRule("aime24", whole_numbers=True, relative_tolerance=Fraction(0)),
    AnswerRule("amc23"),
    AnswerRule("math500"),
    AnswerRule("olympiadbench"),  # An item's own unit, list or tolerance: `olympiadbench_rule`.
    AnswerRule("college_math"),
    # Its answers are measured quantities: 41585.3 is 41585, and the unit stands beside the number.
    AnswerRule("minerva_math", tolerance_for_integers=True, letter_units=True),
    replace(GSM8K_FLEXIBLE, name="gsm8k", last_number=False),
]
RULES: dict[str, AnswerRule] = {rule.name: rule for rule in _SETS}


def olympiadbench_rule(*, multiple: bool, unit: str | None, error: Fraction | None) -> AnswerRule:
    """The rule of one OlympiadBench item, of its fields `is_multiple_answer`, `unit` and `error`."""
    return AnswerRule(
        "olympiadbench", lists_split_numbers=multiple, letter_units=unit is not None, absolute_tolerance=error
    )
