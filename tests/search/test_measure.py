"""Runs measured beside each other: figures by hand, intervals by what they must cover, and all that must be said."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rprm.benchmarks.mathematics import Problem, read_mathematics
from rprm.errors import BenchmarkError, CorruptRun, RunError
from rprm.grading import Grader
from rprm.records import Analysis, Record, StepReward
from rprm.report.searches import search_curve_table, search_table, unsettled_table
from rprm.runs import LineWriter, Run
from rprm.search.candidates import Candidate, CandidateReward, Candidates, JudgedCandidates
from rprm.search.guided import SearchTree, search_strategy
from rprm.search.measure import SearchMeasurement, SearchRun, measure_runs, read_search_run, sampled_run

pytest.importorskip("math_verify")

POLICY = {"engine": {"kind": "scripted", "model": "policy"}, "temperature": 0.7}
JUDGE = {"engine": {"kind": "scripted", "model": "judge"}, "num_analyses": 1}


@pytest.fixture(scope="module")
def grader() -> Iterator[Grader]:
    with Grader() as grader:
        yield grader


def problem(name: str = "1", answer: str | None = "7", set: str = "amc23") -> Problem:
    return Problem(id=f"{set}/{name}", problem=f"Problem {name}?", set=set, answer=answer)


def solution(answer: str | None, num_tokens: int | None = 10) -> Candidate:
    text = "Nothing is said." if answer is None else rf"So it is $\boxed{{{answer}}}$."
    return Candidate(text=text, steps=("First.", text), num_tokens=num_tokens, finish_reason="stop")


def sampled(which: Problem, *answers: str | None) -> Candidates:
    return Candidates(problem=which, candidates=tuple(map(solution, answers)))


def reward(*steps: float | None, settled: bool = True, low: float | None = None) -> CandidateReward:
    def analyses(p_yes: float | None) -> tuple[Analysis, ...]:
        verdict = None if p_yes is None else p_yes >= 0.5
        source: Any = None if p_yes is None else "logprobs"
        return (
            Analysis(text="t", verdict=verdict, p_yes=p_yes, p_yes_source=source, num_tokens=100, finish_reason="stop"),
        )

    judged = tuple(
        StepReward(step_index=index, reward=p_yes, vote=None, analyses=analyses(p_yes))
        for index, p_yes in enumerate(steps)
    )
    return CandidateReward(low=low, high=1.0 if not settled else low, settled=settled, steps=judged)


def judged(
    which: Problem, *pairs: tuple[str | None, CandidateReward], chosen: int = 0, **more: Any
) -> JudgedCandidates:
    return JudgedCandidates(
        problem=which,
        # Different texts: equal solutions share their analyses.
        candidates=tuple(
            solution(answer).model_copy(update={"steps": (f"Way {index}.", "So.")})
            for index, (answer, _) in enumerate(pairs)
        ),
        rewards=tuple(one for _, one in pairs),
        chosen=chosen,
        **more,
    )


def searched(which: Problem, answer: str | None, *, fell_back: bool = False) -> SearchTree:
    """A tree that found one solution in one step, with 40 and 500 tokens."""
    text = "" if answer is None else rf"$\boxed{{{answer}}}$"
    node = {
        "id": 0, "parent": -1, "tree": 0, "round": 0, "step": text, "samples": (0,), "num_tokens": 40,
        "num_policy_tokens": 40, "ended": True, "finish_reason": "stop", "low": 0.5, "high": 0.5, "fate": "finished",
    }  # fmt: skip
    return SearchTree.model_validate(
        {
            "problem": which.model_dump(), "strategy": search_strategy("guided").model_dump(), "num_analyses": 1,
            "step_separator": "\n\n", "nodes": [node] if text else [], "ends": ["finished"],
            "finished": [0] if text else [], "chosen": 0 if text else None, "fell_back": fell_back, "text": text,
            "num_policy_tokens": 40, "num_judge_tokens": 500,
        }
    )  # fmt: skip


def written(folder: Path, stage: str, rows: Sequence[Record], settings: dict[str, Any] | None = None) -> SearchRun:
    """A run folder with these rows, read back."""
    told: dict[str, dict[str, Any]] = {
        "search-sample": {"policy": POLICY},
        "search-best-of-n": {"policy": POLICY, **JUDGE, "aggregation": "min", "choice_stopping": "none"},
        "search-guided": {
            "policy": POLICY,
            **JUDGE,
            "strategy": {"name": "guided", "num_trees": 1, "beam_size": 1, "width": 8, "aggregation": "last"},
        },
    }
    with Run(folder, stage=stage, settings=told.get(stage, {}) | (settings or {}), session={"input": "file"}) as run:
        with closing(LineWriter(run.results_path, checksums=run.checksums)) as writer:
            for row in rows:
                writer.write(row.model_dump_json())
        run.complete({}, {})
    return read_search_run(folder)


def values(measured: SearchMeasurement, name: str = "average") -> dict[str, float | None]:
    return {row.method: row.figures[name].value for row in measured.rows}


def shown(table: Any, width: int = 220) -> str:
    from rich.console import Console

    console = Console(width=width, file=io.StringIO(), record=True)
    console.print(table)
    return console.export_text()


def test_candidates(grader: Grader) -> None:
    rows = [
        # Two of four right, and the two wrong ones are alike, but first: 0.5, tie lost, passed.
        sampled(problem("1"), "8", "8", "7", "7.0"),
        # One of four, its rivals differ among themselves: a tie of ones, won by the first.
        sampled(problem("2"), "7", "1", None, "2"),
        # None right, none answered.
        sampled(problem("3"), None, None, None, None),
    ]
    measured = measure_runs([sampled_run("file", "a policy", rows)], grader=grader, num_resamples=20)
    # pass@1: (2/4 + 1/4 + 0) / 3 = 25%; majority: (0 + 1 + 0) / 3; pass@4: (1 + 1 + 0) / 3.
    assert values(measured) == pytest.approx({"pass@1": 25.0, "majority@4": 100 / 3, "pass@4": 200 / 3})
    tokens = {row.method: (row.policy_tokens, row.judge_tokens) for row in measured.rows}
    # Ten for each solution: 10 for one, 40 for all four.
    assert tokens == {"pass@1": (10.0, 0.0), "majority@4": (40.0, 0.0), "pass@4": (40.0, 0.0)}
    # 1 + 4 solutions give no answer.
    assert measured.notes == ("file: 5 of 12 solutions give no answer",)
    assert [(a.index, a.answer, a.grade.correct, a.group) for a in measured.answers if a.id == "amc23/1"] == [
        (0, "8", False, 0), (1, "8", False, 0), (2, "7", True, 1), (3, "7.0", True, 1),
    ]  # fmt: skip


def test_the_average_is_over_sets(grader: Grader) -> None:
    # amc23: 2 of 2 problems; aime24: 0 of 1. The mean of 100 and 0 is 50, not 2 of 3.
    rows = [sampled(problem("1"), "7"), sampled(problem("2"), "7"), sampled(problem("1", set="aime24"), "8")]
    measured = measure_runs([sampled_run("file", "p", rows)], grader=grader, num_resamples=20)
    assert measured.sets == {"amc23": 2, "aime24": 1}
    assert [values(measured, name)["pass@1"] for name in ("amc23", "aime24", "average")] == [100.0, 0.0, 50.0]


def test_judged_in_full(grader: Grader, tmp_path: Path) -> None:
    rows = [
        judged(
            problem("1"),
            # min .2, last .9, product .18, mean .55; right
            ("7", reward(0.2, 0.9)),
            # min .4, last .4, product .16, mean .4; wrong
            ("8", reward(0.4, 0.4)),
            # min .3, last .5, product .15, mean .4; wrong, and the same answer
            ("8", reward(0.3, 0.5)),
            chosen=1,
        ),
        # No reward at all: the first is taken, which is right; the votes go by majority, which is wrong.
        judged(
            problem("2"), ("7", reward(None, None)), ("8", reward(None, None)), ("8", reward(None, None)),
            fell_back=True,
        ),
    ]  # fmt: skip
    run = written(tmp_path / "run", "search-best-of-n", rows)
    measured = measure_runs([run], grader=grader, num_resamples=20)
    assert values(measured) == pytest.approx(
        {
            "pass@1": 100 / 3, "majority@3": 0.0, "pass@3": 100.0,
            # Problem 1 by min: the second, wrong; by the others the first, right. Problem 2 always right.
            "Best-of-3 (min)": 50.0, "Best-of-3 (last)": 100.0, "Best-of-3 (product)": 100.0, "Best-of-3 (mean)": 100.0,
            # Problem 1: min .2 : .7, last .9 : .9 (a tie, for the first), product .18 : .31, mean .55 : .8. 2 wrong.
            "weighted vote of 3 (min)": 0.0, "weighted vote of 3 (last)": 50.0, "weighted vote of 3 (product)": 0.0,
            "weighted vote of 3 (mean)": 0.0,
        }
    )  # fmt: skip
    assert measured.notes == (f"{run.name}: 1 choices fell back, for want of any reward",)
    rows_by_method = {row.method: row for row in measured.rows}
    # Three solutions of two steps, one analysis of 100 tokens each.
    assert rows_by_method["Best-of-3 (min)"].judge_tokens == 600.0
    assert rows_by_method["Best-of-3 (min)"].policy_tokens == 30.0
    assert rows_by_method["Best-of-3 (min)"].model == "scripted:judge"
    assert rows_by_method["majority@3"].model == "scripted:policy"


def test_equal_steps_are_paid_for_once(grader: Grader, tmp_path: Path) -> None:
    row = judged(problem("1"), ("7", reward(0.5, 0.5)), ("8", reward(0.5, 0.5)))
    first, second = row.candidates
    # Both begin alike: 100 for the first step, 100 for each second one.
    row = row.model_copy(
        update={
            "candidates": (
                first.model_copy(update={"steps": ("Alike.", "So 7.")}),
                second.model_copy(update={"steps": ("Alike.", "So 8.")}),
            )
        }
    )
    run = written(tmp_path / "run", "search-best-of-n", [row])
    assert [attempts.judge_tokens for attempts in run.attempts] == [300]


def test_judged_as_far_as_needed(grader: Grader, tmp_path: Path) -> None:
    """Rewards that are bounds give the run's own choice, and nothing else."""
    rows = [
        judged(problem("1"), ("8", reward(0.1, settled=False)), ("7", reward(0.8, 0.9, low=0.8)), chosen=1),
        judged(problem("2"), ("8", reward(0.9, 0.9, low=0.9)), ("7", reward(0.8, 0.9, low=0.8)), chosen=0),
    ]
    run = written(tmp_path / "run", "search-best-of-n", rows, {"choice_stopping": "exact"})
    measured = measure_runs([run], grader=grader, num_resamples=20, curve=True)
    assert values(measured) == {"pass@1": 50.0, "majority@2": 0.0, "pass@2": 100.0, "Best-of-2 (min)": 50.0}
    assert measured.notes == (
        f"{run.name}: judged as far as its own choice needs; other choices need every reward in full",
    )
    assert {row.method for row in measured.curve} == {
        "majority@1", "pass@1", "majority@2", "pass@2", "Best-of-2 (min)",
    }  # fmt: skip


def test_guided(grader: Grader, tmp_path: Path) -> None:
    rows = [searched(problem("1"), "7"), searched(problem("2"), None, fell_back=True)]
    run = written(tmp_path / "run", "search-guided", rows)
    measured = measure_runs([run], grader=grader, num_resamples=20)
    (row,) = measured.rows
    assert (row.method, row.num_candidates, row.figures["average"].value) == (
        "guided search (8 steps a round, last)", None, 50.0,
    )  # fmt: skip
    assert (row.policy_tokens, row.judge_tokens) == (40.0, 500.0)
    assert row.differences == {}
    assert measured.notes == (
        f"{run.name}: 1 choices fell back, for want of a finished solution with a reward",
        f"{run.name}: 1 of 2 solutions give no answer",
    )


def test_one_table_of_several_runs(grader: Grader, tmp_path: Path) -> None:
    one, two, three = problem("1"), problem("2"), problem("3")
    pairs = (("8", reward(0.1, 0.1)), ("7", reward(0.9, 0.9)))
    rows = [judged(one, *pairs, chosen=1), judged(two, *pairs, chosen=1)]
    samples = [Candidates(problem=row.problem, candidates=row.candidates) for row in [*rows, judged(three, *pairs)]]
    runs = [
        written(tmp_path / "samples", "search-sample", samples),
        written(tmp_path / "judged", "search-best-of-n", rows),
        written(tmp_path / "guided", "search-guided", [searched(one, "7"), searched(two, "8"), searched(three, "7")]),
    ]
    measured = measure_runs(runs, grader=grader, num_resamples=50)
    # The candidates of the first two are the same: they stand there once.
    methods = [row.method for row in measured.rows]
    assert methods[:3] == ["pass@1", "majority@2", "pass@2"]
    assert len(methods) == len(set(methods)) == 3 + 8 + 1
    assert measured.sets == {"amc23": 2}
    assert measured.notes[:2] == (
        f"{runs[0].name}: 1 of its 3 problems are not in all runs, and not measured",
        f"{runs[2].name}: 1 of its 3 problems are not in all runs, and not measured",
    )
    by_method = {row.method: row for row in measured.rows}
    # Best-of-2 is right on both, pass@1 on half of each, the majority (a tie, for the first) on neither.
    best = by_method["Best-of-2 (min)"]
    assert {name: figures["average"].value for name, figures in best.differences.items()} == {
        "pass@1": 50.0, "majority@2": 100.0,
    }  # fmt: skip
    assert by_method["guided search (8 steps a round, last)"].differences["pass@1"]["amc23"].value == 0.0
    assert "pass@1" not in by_method["pass@1"].differences


def test_the_same_solutions_twice(grader: Grader) -> None:
    first, second = (sampled_run(name, "p", [sampled(problem("1"), "7", None)]) for name in ("first", "second"))
    measured = measure_runs([first, second], grader=grader, num_resamples=20)
    assert [(row.run, row.method) for row in measured.rows] == [
        ("first", "pass@1"), ("first", "majority@2"), ("first", "pass@2"),
    ]  # fmt: skip
    assert measured.notes == ("first: 1 of 2 solutions give no answer",)
    assert len(measured.answers) == 2


def test_a_baseline_of_choice(grader: Grader, tmp_path: Path) -> None:
    rows = [judged(problem("1"), ("8", reward(0.1, 0.1)), ("7", reward(0.9, 0.9)), chosen=1)]
    run = written(tmp_path / "run", "search-best-of-n", rows)
    for name in ("Best-of-2 (min)", "Best-of-N (min)"):
        measured = measure_runs([run], grader=grader, num_resamples=20, baseline=name)
        row = next(row for row in measured.rows if row.method == "pass@1")
        assert {key: figures["average"].value for key, figures in row.differences.items()} == {
            "Best-of-2 (min)": -50.0, "majority@2": 50.0,
        }  # fmt: skip
    with pytest.raises(BenchmarkError, match=r"no row is called 'best', .* there are pass@1, majority@2, pass@2, Best"):
        measure_runs([run], grader=grader, baseline="best")


def test_a_row_is_compared_with_its_own_candidates(grader: Grader) -> None:
    first = sampled_run("first", "p1", [sampled(problem("1"), "8", "8")])
    second = sampled_run("second", "p2", [sampled(problem("1"), "7", "7")])
    measured = measure_runs([first, second], grader=grader, num_resamples=20)
    row = next(row for row in measured.rows if row.run == "second" and row.method == "pass@2")
    # 100 - 100, not 100 - 0.
    assert row.differences["pass@1"]["average"].value == 0.0


def test_curve(grader: Grader, tmp_path: Path) -> None:
    # Rewards .1 to .4, the answers 8, 7, 8, 7: the best of two is right in (3 pairs of the last + 1 of the second) / 6.
    pairs = [(answer, reward(0.1 * place, 0.1 * place)) for place, answer in enumerate(("8", "7", "8", "7"), 1)]
    run = written(tmp_path / "run", "search-best-of-n", [judged(problem("1"), *pairs, chosen=3)])
    measured = measure_runs([run], grader=grader, num_resamples=20, curve=True)
    found = {row.method: row.figures["average"].value for row in measured.curve}
    assert [found[f"Best-of-{n} (min)"] for n in (1, 2, 4)] == pytest.approx([50.0, 100 * 4 / 6, 100.0])
    # pass@2: all pairs but the one of two wrong: 5/6.
    assert [found[f"pass@{n}"] for n in (1, 2, 4)] == pytest.approx([50.0, 100 * 5 / 6, 100.0])
    assert measured.rows == measure_runs([run], grader=grader, num_resamples=20).rows
    tokens = {row.method: (row.policy_tokens, row.judge_tokens) for row in measured.curve}
    assert tokens["Best-of-2 (min)"] == (20.0, 400.0)
    text = shown(search_curve_table(measured))
    assert next(line.split() for line in text.splitlines() if "Best-of-N (min)" in line)[-3:] == [
        "50.0", "66.7", "100.0",
    ]  # fmt: skip


def test_problems_without_candidates_or_with_fewer(grader: Grader) -> None:
    rows = [
        sampled(problem("1"), "7", "7"),
        sampled(problem("2"), "7"),
        Candidates(problem=problem("3"), candidates=(), failure="the prompt is too long"),
    ]
    measured = measure_runs([sampled_run("file", "p", rows)], grader=grader, num_resamples=20)
    assert values(measured) == pytest.approx({"pass@1": 200 / 3, "majority@2": 200 / 3, "pass@2": 200 / 3})
    assert measured.notes == (
        "file: 1 problems have no solution (the prompt is too long), and count as wrong",
        "file: 1 problems have fewer than 2 solutions, and are measured on those they have",
    )


@pytest.mark.parametrize(("n", "sizes"), [(1, [1]), (2, [1, 2]), (8, [1, 2, 4, 8]), (6, [1, 2, 4, 6])])
def test_a_curve_is_by_powers_of_two_and_all(grader: Grader, n: int, sizes: list[int]) -> None:
    rows = [sampled(problem("1"), *["7"] * n)]
    measured = measure_runs([sampled_run("file", "p", rows)], grader=grader, num_resamples=2, curve=True)
    assert [row.num_candidates for row in measured.curve if row.strategy == "pass@N"] == sizes


def test_nothing_but_failures(grader: Grader) -> None:
    rows = [Candidates(problem=problem("1"), candidates=(), failure="refused")]
    measured = measure_runs([sampled_run("file", "p", rows)], grader=grader, num_resamples=20, curve=True)
    assert [(row.method, row.figures["average"].value) for row in measured.rows] == [
        ("pass@1", 0.0), ("majority@1", 0.0), ("pass@1", 0.0),
    ]  # fmt: skip


def test_gradings_without_conclusion(grader: Grader) -> None:
    hostile = "x" * 3_000
    rows = [sampled(problem("1", r"\{(x, y) \mid x > y\}"), hostile, "the upper half [red]of[/red] the plane", "1")]
    measured = measure_runs([sampled_run("file", "p", rows)], grader=grader, num_resamples=20)
    assert [(one.index, one.grade.outcome) for one in measured.unsettled] == [
        (0, "too long"), (1, "unreadable"),
    ]  # fmt: skip
    assert measured.notes == (
        "file: 2 gradings came to no conclusion, and count as wrong: too long (1), unreadable (1)",
    )
    text = shown(unsettled_table(measured))
    assert "the upper half [red]of[/red] the plane" in text
    assert "x" * 59 + "…" in text


def test_problems_without_gold_answer(grader: Grader) -> None:
    rows = [sampled(problem("1"), "7"), sampled(problem("2", answer=None), "7")]
    measured = measure_runs([sampled_run("file", "p", rows)], grader=grader, num_resamples=20)
    assert (measured.sets, measured.notes) == (
        {"amc23": 1}, ("1 problems have no gold answer, and are not measured",),
    )  # fmt: skip
    with pytest.raises(BenchmarkError, match="no problem has a gold answer"):
        measure_runs([sampled_run("file", "p", rows[1:])], grader=grader)


@pytest.mark.parametrize("change", [{"answer": "8"}, {"problem": "Another?"}, {"set": "aime24"}])
def test_runs_on_other_data_are_refused(grader: Grader, change: dict[str, str]) -> None:
    runs = [
        sampled_run("one", "p", [sampled(problem("1"), "7")]),
        sampled_run("two", "p", [sampled(problem("1").model_copy(update=change), "7")]),
    ]
    with pytest.raises(BenchmarkError, match=r"one and two differ in .* 1 problems with the same id: amc23/1"):
        measure_runs(runs, grader=grader)


def test_nothing_to_measure(grader: Grader) -> None:
    with pytest.raises(BenchmarkError, match="no run to measure"):
        measure_runs([])
    one, two = (sampled_run(name, "p", [sampled(problem(name), "7")]) for name in "12")
    with pytest.raises(BenchmarkError, match="no problem is in all of the runs"):
        measure_runs([one, two], grader=grader)
    with pytest.raises(BenchmarkError, match="no problem is in the run"):
        measure_runs([sampled_run("empty", "p", [])], grader=grader)
    with pytest.raises(BenchmarkError, match="num_resamples is 0"):
        measure_runs([one], grader=grader, num_resamples=0)


def test_folders_that_are_no_search(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="not a run folder"):
        read_search_run(tmp_path)
    with pytest.raises(RunError, match="a run of stage 'judge'; what can be measured here is search-sample, search-be"):
        written(tmp_path / "judge", "judge", [])
    with pytest.raises(CorruptRun, match=r"results.jsonl, line 1 is damaged \(problem: "):
        written(tmp_path / "bad", "search-sample", [problem("1")])


@pytest.mark.parametrize(
    ("stage", "name", "value"),
    [
        ("search-sample", "policy", 3),
        ("search-sample", "policy", {"engine": {"kind": "scripted", "model": 3}}),
        ("search-best-of-n", "engine", "m"),
        ("search-best-of-n", "aggregation", None),
        ("search-guided", "strategy", ["guided"]),
        ("search-guided", "strategy", {"name": "guided", "num_trees": 1, "beam_size": 1, "width": "8"}),
    ],
)
def test_a_setting_of_another_type_is_a_damaged_run(stage: str, name: str, value: Any, tmp_path: Path) -> None:
    with pytest.raises(CorruptRun, match=f"run/manifest.json is damaged .its setting '{name}' is "):
        written(tmp_path / "run", stage, [], {name: value})


def test_an_unfinished_run_is_measured_and_said(grader: Grader, tmp_path: Path) -> None:
    written(tmp_path / "run", "search-sample", [sampled(problem("1"), "7"), sampled(problem("2"), "7")])
    with Run(tmp_path / "run", stage="search-sample", settings={"policy": POLICY}, session={"input": "file"}) as run:
        run.note({})
    measured = measure_runs([read_search_run(tmp_path / "run")], grader=grader, num_resamples=20)
    assert measured.notes == (f"{tmp_path / 'run'} is not finished",)


# Intervals.


def many(num_problems: int, answers: Sequence[Sequence[str | None]], set_name: str = "amc23") -> list[Candidates]:
    return [sampled(problem(str(n), set=set_name), *answers[n % len(answers)]) for n in range(num_problems)]


def test_an_interval_without_doubt_within_problems_is_that_of_a_share(grader: Grader) -> None:
    # Half of 100 problems always right, half never: only the problems vary. Standard error sqrt(.25 / 100) = 5 points,
    # so that the interval is about 50 -+ 9.8.
    rows = many(100, [["7", "7"], ["8", "8"]])
    measured = measure_runs([sampled_run("file", "p", rows)], grader=grader, num_resamples=4_000)
    for row in measured.rows:
        assert row.figures["amc23"].value == 50.0
        assert row.figures["amc23"].low == pytest.approx(40.2, abs=1.01)
        assert row.figures["amc23"].high == pytest.approx(59.8, abs=1.01)


def test_candidates_vary_within_a_problem(grader: Grader) -> None:
    # Every problem has 4 of 8 right: problems do not vary at all, but what was sampled could have been otherwise. A
    # mean of 8 draws has variance .25 / 8, that of 100 problems the standard error sqrt(.25 / 8 / 100) = 1.77 points:
    # 50 -+ 3.46.
    rows = many(100, [["7", "8"] * 4])
    measured = measure_runs([sampled_run("file", "p", rows)], grader=grader, num_resamples=4_000)
    figure = measured.rows[0].figures["average"]
    assert (measured.rows[0].method, figure.value) == ("pass@1", 50.0)
    assert figure.low == pytest.approx(46.5, abs=0.4)
    assert figure.high == pytest.approx(53.5, abs=0.4)


def test_an_interval_ends_at_0_and_100(grader: Grader) -> None:
    # Shifted replicates of pass@2 reach beyond 100%, and those of a problem without any right candidate do not vary.
    rows = many(20, [["7", "8"], ["8", "8"]])[::2] + many(1, [["8", "8"]], "aime24")
    measured = measure_runs([sampled_run("file", "p", rows)], grader=grader, num_resamples=200)
    passed = next(row for row in measured.rows if row.method == "pass@2")
    assert (passed.figures["amc23"].value, passed.figures["amc23"].high) == (100.0, 100.0)
    assert passed.figures["amc23"].low is not None
    assert passed.figures["amc23"].low < 100.0
    assert (passed.figures["aime24"].low, passed.figures["aime24"].high) == (0.0, 0.0)


def test_the_average_is_surer_than_its_sets(grader: Grader) -> None:
    # Two sets as in the share above: the mean of both has 5 / sqrt(2) = 3.54 points: 50 -+ 6.93.
    rows = many(100, [["7"], ["8"]]) + many(100, [["7"], ["8"]], "aime24")
    measured = measure_runs([sampled_run("file", "p", rows)], grader=grader, num_resamples=4_000)
    figure = measured.rows[0].figures["average"]
    assert figure.low == pytest.approx(43.1, abs=0.8)
    assert figure.high == pytest.approx(56.9, abs=0.8)


def test_differences_are_paired(grader: Grader, tmp_path: Path) -> None:
    """A run that solves what another solves, and 10 of 100 problems more, is better beyond doubt."""
    first = [searched(problem(str(n)), "7" if n < 50 else "8") for n in range(100)]
    second = [searched(problem(str(n)), "7" if n < 60 else "8") for n in range(100)]
    settings = {"strategy": {"name": "dvts", "num_trees": 2, "beam_size": 1, "width": 4, "aggregation": "last"}}
    runs = [
        written(tmp_path / "first", "search-guided", first),
        written(tmp_path / "second", "search-guided", second, settings),
    ]
    measured = measure_runs(runs, grader=grader, num_resamples=4_000, baseline="guided search (8 steps a round, last)")
    figure = measured.rows[1].differences["guided search (8 steps a round, last)"]["average"]
    # Unpaired: 10 -+ 1.96 * sqrt(24 + 25) = 10 -+ 13.7. Paired: 10 -+ 1.96 * sqrt(.1 * .9 / 100) = 10 -+ 5.9.
    assert figure.value == pytest.approx(10.0)
    assert figure.low == pytest.approx(4.5, abs=1.01)
    assert figure.high == pytest.approx(16.0, abs=1.01)


def test_runs_on_the_same_candidates_share_their_draws(grader: Grader, tmp_path: Path) -> None:
    """A choice that is right wherever the majority is differs from it by nothing, in every resample."""
    rows = [
        judged(problem(str(n)), *((("8", "7", "7")[(n + k) % 3], reward(0.5, 0.5)) for k in range(3)))
        for n in range(20)
    ]
    runs = [
        written(tmp_path / "samples", "search-sample", [
            Candidates(problem=row.problem, candidates=row.candidates) for row in rows
        ]),
        written(tmp_path / "judged", "search-best-of-n", rows),
    ]  # fmt: skip
    measured = measure_runs(runs, grader=grader, num_resamples=500)
    vote = next(row for row in measured.rows if row.method == "weighted vote of 3 (mean)")
    assert vote.run != measured.rows[0].run
    difference = vote.differences["majority@3"]["average"]
    assert (difference.value, difference.low, difference.high) == (0.0, 0.0, 0.0)
    assert vote.figures["average"].low != vote.figures["average"].high


def test_the_seed_decides(grader: Grader) -> None:
    run = sampled_run("file", "p", many(30, [["7", "8", "8"], ["7", "7", None], ["8", "8", "7"]]))
    first, again, other = (
        measure_runs([run], grader=grader, num_resamples=100, seed=seed).as_dict() for seed in (0, 0, 1)
    )
    assert first == again
    assert first["rows"] != other["rows"]


# Tables, and real data.


def test_table(grader: Grader) -> None:
    rows = many(200, [["7", "7"], ["8", "7"]], "olympiadbench") + many(10, [["7", "8"]])
    measured = measure_runs([sampled_run("[file]", "[policy]", rows)], grader=grader, num_resamples=50)
    text = shown(search_table(measured))
    # The set that has the size of the paper's subset is called so.
    assert "(200 items)" in text
    assert "10 problems" in text
    assert "[policy]" in text
    line = next(line.split() for line in text.splitlines() if line.strip().startswith("pass@1"))
    # 75 and 50: 62.5. Against the majority: 50 and 100 (ties go to the first), 75; then 10 tokens. No judge, no column.
    assert line == ["pass@1", "75.0", "50.0", "62.5", "-12.5", "10"]
    assert "210 problems; below each figure its 95% interval, from 50 bootstrap resamples" in text
    assert json.loads(json.dumps(measured.as_dict()))["sets"]["olympiadbench"] == {
        "name": "olympiadbench (200 items)", "problems": 200,
    }  # fmt: skip


def test_real_solutions(grader: Grader, whole_data: Path) -> None:
    """80 OlympiadBench problems, 8 solutions by Qwen2.5-7B-Instruct each; docs/grading.md has the same figures."""
    problems = {one.id: one for one in read_mathematics(["olympiadbench"], whole_data / "math").problems}
    lines = (whole_data / "policy_samples" / "olympiadbench_qwen2.5-7b_n8.jsonl").read_text().splitlines()
    rows = [
        Candidates(
            problem=problems[f"olympiadbench/{row['id']}"],
            candidates=tuple(Candidate(text="\n\n".join(steps), steps=tuple(steps)) for steps in row["steps"]),
        )
        for row in map(json.loads, lines)
    ]
    measured = measure_runs([sampled_run("file", "qwen", rows)], grader=grader, num_resamples=500, curve=True)
    # 251 of 640, 38 of 80, 46 of 80.
    found = values(measured, "olympiadbench")
    assert found == pytest.approx({"pass@1": 39.21875, "majority@8": 47.5, "pass@8": 57.5})
    assert not measured.unsettled
    assert measured.rows[0].policy_tokens is None
    by_size = {row.method: row.figures["average"].value for row in measured.curve}
    passed = [by_size[f"pass@{n}"] for n in (1, 2, 4, 8)]
    assert passed[0] == pytest.approx(39.21875)
    assert np.all(np.diff(np.array(passed, float)) > 0)
