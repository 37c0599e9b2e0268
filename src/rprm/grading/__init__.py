r"""Final answers of mathematical solutions: find them, compare them, group them (docs/grading.md)."""

from rprm.grading.grader import AnswerPair, Grade, Grader, Outcome
from rprm.grading.rules import EXACT, GSM8K_FLEXIBLE, MATHEMATICS, RULES, AnswerRule, final_answer, olympiadbench_rule

__all__ = [
    "EXACT", "GSM8K_FLEXIBLE", "MATHEMATICS", "RULES", "AnswerPair", "AnswerRule", "Grade", "Grader", "Outcome",
    "final_answer", "olympiadbench_rule",
]  # fmt: skip
