"""How well and how fast answers are graded: this project beside math-verify alone and the graders of other projects.

    python perf/grading.py CASES.jsonl [--extraction CASES.jsonl] [--golds FOLDER] [--verbose]

A grading case is `{gold, answer, expected: "equal" | "different", rule}`, an extraction case `{text, gold, expected,
rule}` with `expected` true, false or null (no answer is given); `tests/grading/cases/` holds an excerpt. Two other
graders are measured where their packages are installed: `mathruler` (after OpenAI's PRM800K grader) and `lm-eval`
(Hendrycks' MATH). Easy pairs are numbers, fractions, roots, units and points, all distinct: 20,000 for ours, 500
for the others. `--golds` grades 10,000 random pairs of distinct gold answers of the sets in a folder of their files,
each by the rule of its first, and prints every one that is called equal: to be read.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rprm.benchmarks.mathematics import read_mathematics
from rprm.grading import MATHEMATICS, RULES, AnswerPair, AnswerRule, Grader, final_answer

Grade = Callable[[str, str], bool | None]


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def rule_of(case: dict[str, Any]) -> AnswerRule:
    return RULES.get(case["rule"], MATHEMATICS)


def others() -> Iterator[tuple[str, Grade]]:
    """The graders that can be imported, called as their projects call them."""
    with contextlib.suppress(ImportError):
        from math_verify import parse, verify

        yield "math-verify alone", lambda gold, answer: bool(verify(parse(f"${gold}$"), parse(f"${answer}$")))
    with contextlib.suppress(ImportError):
        from mathruler.grader import grade_answer

        yield "mathruler", lambda gold, answer: bool(grade_answer(answer, gold))
    if spec := importlib.util.find_spec("lm_eval"):
        # From its file: the package itself imports all of its metrics.
        path = Path(str(spec.origin)).parent / "tasks" / "hendrycks_math" / "utils.py"
        task = importlib.util.spec_from_file_location("hendrycks_math", path)
        assert task is not None
        assert task.loader is not None
        module = importlib.util.module_from_spec(task)
        task.loader.exec_module(module)
        yield "lm-eval, MATH", lambda gold, answer: bool(module.is_equiv(answer, gold))


def easy_pairs(number: int) -> list[tuple[str, str]]:
    rng = random.Random(0)
    pairs = []
    for _ in range(number):
        a, b, c = (rng.randint(2, 5_000) for _ in range(3))
        pairs.append(
            rng.choice(
                [
                    (f"{a}", f"${a}.0$"),
                    (rf"\frac{{{a}}}{{{b}}}", f"{c * a}/{c * b}"),
                    (f"{a}", rf"{c} \text{{ cm}}"),
                    (rf"{a}\sqrt{{{b}}}", rf"{a} \sqrt {{{b}}}"),
                    (f"({a},{b})", rf"\left({a}, {c}\right)"),
                ]
            )
        )
    return pairs


def safely(grade: Grade) -> Grade:
    def graded(gold: str, answer: str) -> bool | None:
        try:
            return grade(gold, answer)
        except Exception:
            return None

    return graded


def golds_called_equal(grader: Grader, folder: Path, number: int = 10_000) -> Iterator[str]:
    """Of random pairs of distinct golds those called equal, and how the others came out."""
    rng, sets = random.Random(0), [*RULES]
    golds = [item for name in sets for item in read_mathematics(name, folder).problems]
    pairs = dict[AnswerPair, None]()
    while len(pairs) < number:
        # Of 2,560 golds 1,319 are whole numbers of GSM8K, so that half of the pairs are of any two sets, half of one.
        first = rng.choice(golds)
        other = rng.choice([item for item in golds if item.set == first.set] if len(pairs) % 2 else golds)
        if first.answer != other.answer:
            pairs[AnswerPair(first.answer, other.answer, first.rule)] = None
    grades = grader.grade_all(pairs)
    for pair, grade in zip(pairs, grades, strict=True):
        if grade.outcome == "equal":
            yield f"{pair.rule.name}: {pair.gold!r} = {pair.answer!r}"
    yield f"{number} pairs of distinct golds: {dict(Counter(grade.outcome for grade in grades))}"


def report(name: str, cases: list[dict[str, Any]], found: list[bool | None], speed: float, verbose: bool) -> None:
    wanted = [case["expected"] == "equal" for case in cases]
    kinds = Counter((want, got) for want, got in zip(wanted, found, strict=True))
    right = kinds[True, True] + kinds[False, False] + kinds[False, None]
    print(
        f"| {name} | {kinds[False, True]} | {kinds[True, False] + kinds[True, None]} | "
        f"{right / len(cases):.1%} | {speed:,.0f} |"
    )
    if verbose:
        for case, want, got in zip(cases, wanted, found, strict=True):
            if bool(got) is not want:
                print(f"    {case.get('id', '')} {case['gold']!r} = {case['answer']!r}: {got}, expected {want}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", type=Path)
    parser.add_argument("--extraction", type=Path)
    parser.add_argument("--golds", type=Path)
    parser.add_argument("--verbose", action="store_true", help="print every case that is not as expected")
    options = parser.parse_args()
    cases, easy = rows(options.cases), easy_pairs(20_000)
    print("| grader | false equals | false differents | as expected | easy pairs a second |\n|---|---|---|---|---|")
    with Grader() as grader:
        found = [
            grade.correct
            for grade in grader.grade_all(AnswerPair(case["gold"], case["answer"], rule_of(case)) for case in cases)
        ]
        begin = time.perf_counter()
        grader.grade_all(AnswerPair(*pair) for pair in easy)
        report("ours", cases, found, len(easy) / (time.perf_counter() - begin), options.verbose)
        golds = [*golds_called_equal(grader, options.golds)] if options.golds else []
        if options.extraction:
            texts = rows(options.extraction)
            answers = [final_answer(row["text"], rule_of(row)) for row in texts]
            grades = grader.grade_all(
                AnswerPair(row["gold"], answer, rule_of(row)) for row, answer in zip(texts, answers, strict=True)
            )
            wrong = [
                (row, answer)
                for row, answer, grade in zip(texts, answers, grades, strict=True)
                if (None if answer is None else grade.correct) is not row["expected"]
            ]
            extraction = f"extraction: {len(texts) - len(wrong)} of {len(texts)} as expected"
            for row, answer in wrong if options.verbose else []:
                extraction += f"\n    {row.get('id', '')} {row['text']!r}: {answer!r}, expected {row['expected']}"
    for name, grade in others():
        graded = safely(grade)
        found = [graded(case["gold"], case["answer"]) for case in cases]
        begin = time.perf_counter()
        for pair in easy[:500]:
            graded(*pair)
        report(name, cases, found, 500 / (time.perf_counter() - begin), False)
    if options.extraction:
        print(f"\n{extraction}")
    for line in golds:
        print(line)


if __name__ == "__main__":
    main()
