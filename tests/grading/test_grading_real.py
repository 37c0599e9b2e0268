r"""Real solutions, and the published graders' verdicts on them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rprm.benchmarks.mathematics import Problem, read_mathematics
from rprm.grading import RULES, AnswerPair, Grade, Grader, final_answer

pytest.importorskip("math_verify")

#: Gold, answer, and how often: right answers that the published grader called wrong (docs/grading.md).
RIGHT_BUT_REJECTED = Counter(
    {
        ("1,-1,7,-7", r"\pm 1, \pm 7"): 4,
        ("1,-1,7,-7", r"\{-7, -1, 1, 7\}"): 1,
        ("$(3,0),(-3,1)$", r"(3, 0) \text{ and } (-3, 1)"): 7,
        (r"$f(x)=\frac{1}{x}$", r"\frac{1}{x}"): 3,
        ("-5,7", r"7 \text{ and } -5"): 3,
    }
)


@pytest.fixture(scope="module")
def grader() -> Iterator[Grader]:
    with Grader() as grader:
        yield grader


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def olympiad(real_data: Path) -> tuple[list[Problem], list[list[str | None]], list[list[bool]]]:
    """Items, the answers of their eight solutions, and the published grader's verdicts."""
    items = {item.id: item for item in read_mathematics("olympiadbench", real_data / "math").problems}
    found = rows(real_data / "policy_samples" / "olympiadbench_qwen2.5-7b_n8.jsonl")
    sampled = [items[f"olympiadbench/{row['id']}"] for row in found]
    answers = [
        [final_answer("\n\n".join(steps), item.rule) for steps in row["steps"]]
        for row, item in zip(found, sampled, strict=True)
    ]
    return sampled, answers, [row["labels"] for row in found]


def graded(
    grader: Grader, olympiad: tuple[list[Problem], list[list[str | None]], list[list[bool]]]
) -> list[list[Grade]]:
    items, answers, _ = olympiad
    pairs = [
        AnswerPair(item.answer, answer, item.rule) for item, few in zip(items, answers, strict=True) for answer in few
    ]
    grades = grader.grade_all(pairs)
    return [grades[place : place + 8] for place in range(0, len(grades), 8)]


def test_olympiadbench_against_published_verdicts(grader: Grader, olympiad: Any) -> None:
    items, answers, labels = olympiad
    disagreements: Counter[tuple[str, str]] = Counter()
    unsettled: Counter[str] = Counter()
    num_answers = 0
    for item, few, grades, verdicts in zip(items, answers, graded(grader, olympiad), labels, strict=True):
        for answer, grade, verdict in zip(few, grades, verdicts, strict=True):
            if answer is None:
                assert grade.outcome == "no answer"
                assert not verdict
                continue
            num_answers += 1
            if grade.correct is None:
                unsettled[item.answer] += 1
            if bool(grade.correct) is not verdict:
                disagreements[item.answer, answer] += 1
                assert grade.correct, "every disagreement is an answer that we accept"
    # 632 of 640 solutions give an answer; 18 verdicts differ (97.2% agree), all of them ours to defend.
    assert (len(items), num_answers) in ((80, 632), (8, 64))
    assert disagreements == Counter(
        {pair: count for pair, count in RIGHT_BUT_REJECTED.items() if pair[0] in {item.answer for item in items}}
    )
    assert not unsettled


def test_olympiadbench_pass_and_majority(grader: Grader, olympiad: Any) -> None:
    items, answers, labels = olympiad
    grades = graded(grader, olympiad)
    num_correct = sum(bool(grade.correct) for few in grades for grade in few)
    num_passed = sum(any(grade.correct for grade in few) for few in grades)
    num_majority = 0
    for few_answers, few in zip(answers, grades, strict=True):
        groups = grader.group_equivalent(few_answers)
        sizes = Counter(group for group in groups if group >= 0)
        # The largest group, the earliest of those that are equally large.
        if sizes:
            largest = max(sizes, key=lambda group: (sizes[group], -group))
            num_majority += bool(few[groups.index(largest)].correct)
    # pass@1 39.2%, majority@8 47.5%, pass@8 57.5%; the published verdicts give 36.4% and 55.0%. In the excerpt seven
    # right answers more than those of the published grader are of one problem, which has another that it accepts.
    ours, published = {80: ((251, 38, 46), (233, 44)), 8: ((38, 5, 6), (31, 6))}[len(items)]
    assert (num_correct, num_majority, num_passed) == ours
    assert (sum(map(sum, labels)), sum(map(any, labels))) == published


def test_gsm8k_against_published_verdicts(grader: Grader, real_data: Path) -> None:
    rule = RULES["gsm8k"]
    pairs: list[AnswerPair] = []
    verdicts: list[bool] = []
    for row in rows(real_data / "policy_samples" / "gsm8k_gpt3_n4.jsonl"):
        gold = final_answer(row["ground_truth"], rule)
        assert gold is not None
        for sample in (value for value in row.values() if isinstance(value, dict)):
            pairs.append(AnswerPair(gold, final_answer(sample["solution"], rule), rule))
            verdicts.append(sample["is_correct"])
    grades = grader.grade_all(pairs)
    assert [bool(grade.correct) for grade in grades] == verdicts
    if real_data.name == "excerpts":
        assert len(grades) == 80
    else:
        assert Counter(grade.outcome for grade in grades) == {"different": 1_497, "equal": 900, "no answer": 3}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("set_name", "num_items"),
    [
        ("aime24", 30),
        ("amc23", 40),
        ("math500", 500),
        ("olympiadbench", 200),
        ("college_math", 200),
        ("minerva_math", 272),
        ("gsm8k", 1_319),
    ],
)
def test_every_gold_answer_is_itself(grader: Grader, whole_data: Path, set_name: str, num_items: int) -> None:
    """As a text, and by what it means, so that other ways of writing it are recognised."""
    items = read_mathematics(set_name, whole_data / "math").problems
    assert len(items) == num_items
    grades = grader.grade_all(AnswerPair(item.answer, f"$ {item.answer} $", item.rule) for item in items)
    assert [item.answer for item, grade in zip(items, grades, strict=True) if not grade.correct] == []
    assert {grader.check_gold(item.answer, item.rule).outcome for item in items} == {"equal"}
