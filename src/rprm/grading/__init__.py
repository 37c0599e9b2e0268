r"""Final answers of mathematical solutions: find them, compare them, group them.

    from rprm.grading import AnswerPair, Grader, final_answer

    answer = final_answer(r"... so the length is $\boxed{\frac{\sqrt{12}}{2}}$.")
    with Grader() as grader:
        (grade,) = grader.grade_all([AnswerPair(r"\sqrt{3}", answer)])
        print(grade.correct)

docs/grading.md says what counts as the same answer.
"""

from rprm.grading.comparing import Outcome
from rprm.grading.extraction import final_answer
from rprm.grading.grader import AnswerPair, Grade, Grader
from rprm.grading.rules import EXACT, GSM8K_FLEXIBLE, MATHEMATICS, RULES, AnswerRule, olympiadbench_rule

__all__ = [
    "EXACT",
    "GSM8K_FLEXIBLE",
    "MATHEMATICS",
    "RULES",
    "AnswerPair",
    "AnswerRule",
    "Grade",
    "Grader",
    "Outcome",
    "final_answer",
    "olympiadbench_rule",
]
