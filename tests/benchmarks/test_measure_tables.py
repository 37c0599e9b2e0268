"""Results as terminal tables: what a reader sees, above all of what is missing."""

from __future__ import annotations

import io
import random
from dataclasses import replace
from typing import Any

from rprm.benchmarks import (
    BenchmarkItems,
    Hard2VerifyItem,
    PRMBenchItem,
    ProcessBenchItem,
    Scores,
    StepItems,
    compare,
    measure_hard2verify,
    measure_held_out,
    measure_prmbench,
    measure_processbench,
    measure_steps,
    tally_processbench,
    threshold_curve,
)
from rprm.benchmarks.cost import Cost
from rprm.benchmarks.prmbench import PRMBENCH_CLASSES
from rprm.benchmarks.processbench import PROCESSBENCH_SUBSETS
from rprm.reading import Rejected
from rprm.records import LabelledStep, Solution
from rprm.report.measures import comparison_table, measurement_table, result_table
from rprm.rewarders.base import Totals


def shown(table: Any, width: int = 200) -> str:
    from rich.console import Console

    console = Console(width=width, file=io.StringIO(), record=True)
    console.print(table)
    return console.export_text()


def unwrapped(text: str) -> str:
    return " ".join(text.split())


def line(text: str, start: str) -> list[str]:
    return next(row.split() for row in text.splitlines() if row.strip().startswith(start))


def processbench(number: int = 40) -> tuple[BenchmarkItems[ProcessBenchItem], Scores]:
    items = [
        ProcessBenchItem("math", Solution(id=f"math-{n}", problem="p", steps=("a", "b"), label=label), label)
        for n, label in enumerate((-1, 1) * (number // 2))
    ]
    return BenchmarkItems(tuple(items)), Scores({item.id: (0.9, (0.8, 0.3)[item.label == 1]) for item in items})


def test_processbench() -> None:
    text = shown(measurement_table(measure_processbench(*processbench(), num_resamples=50)))
    assert line(text, "math") == ["math", "40", *["100.0", "[100.0,", "100.0]"] * 3]
    assert line(text, "average")[:3] == ["average", "40", "100.0"]
    assert "40 items, 0 missing; [95% intervals] from 50 bootstrap resamples" in text
    assert "harmonic mean of the two accuracies" in text
    assert "counts as wrong" not in text


def test_80_columns_hold_every_table_with_nothing_cut() -> None:
    """Each figure stands on a line with its interval, each name is whole."""
    draw = random.Random(0)

    def scores(items: Any) -> Scores:
        return Scores({one.id: tuple(draw.choice([0.9, 0.9, 0.2]) for _ in one.solution.steps) for one in items.items})

    bench = BenchmarkItems(
        tuple(
            ProcessBenchItem(subset, Solution(id=f"{subset}-{n}", problem="p", steps=("a", "b")), n % 3 - 1)
            for subset in PROCESSBENCH_SUBSETS
            for n in range(200)
        )
    )
    prm = BenchmarkItems(
        tuple(
            PRMBenchItem(name, f"prm_test_p{n}_0", Solution(id=f"{name}_{n}", problem="p", steps=("a", "b")), (2,))
            for name in PRMBENCH_CLASSES
            for n in range(50)
        )
    )
    steps = StepItems(
        tuple(
            LabelledStep(id=f"s{n}", problem="p", step="s", label=n % 2 == 0, source=f"trl-lib/math_shepherd-{n % 2}")
            for n in range(100)
        )
    )
    judged = Scores({one.id: (draw.random(),) for one in steps.items})
    hard = BenchmarkItems(
        tuple(
            Hard2VerifyItem(Solution(id=f"h{n}", problem="p", steps=("a",) * 9, label=n % 2 - 1), labels, n % 2 - 1)
            for n in range(200)
            for labels in [(n % 2 == 0,) * 9]
        )
    )
    full = Scores({one.id: tuple(draw.random() for _ in range(9)) for one in hard.items})
    runs = ("runs/processbench-r-prm-7b", "runs/processbench-qwen-prm-7b")
    tallies = [tally_processbench(bench, scores(bench)) for _ in runs]
    for table in (
        measurement_table(measure_processbench(bench, scores(bench), num_resamples=20)),
        measurement_table(measure_prmbench(prm, scores(prm), num_resamples=20)),
        measurement_table(measure_steps(steps, judged, num_resamples=20)),
        measurement_table(measure_hard2verify(hard, full, num_resamples=20)),
        comparison_table(compare(*tallies, num_resamples=20), names=runs),
    ):
        text, wide = shown(table, 80), shown(table)
        assert "…" not in text
        rows = [row.split() for row in text.splitlines() if "[" in row and "intervals]" not in row]
        assert rows == [row.split() for row in wide.splitlines() if "[" in row and "intervals]" not in row]
        assert rows


def test_what_is_missing_is_said() -> None:
    items, scores = processbench()
    p_yes = {**scores.p_yes, "math-1": (None, 0.3), "elsewhere-1": (0.5,)}
    del p_yes["math-0"]
    items = BenchmarkItems(items.items, rejected=(Rejected(file="f", line=1, reason="r", text="t"),) * 2)
    usage = Totals(
        num_generated_tokens=12_345,
        num_steps_judged=79,
        num_steps_uncovered=1,
        num_analyses=790,
        num_analyses_without_verdict=13,
    )
    measured = measure_processbench(items, Scores(p_yes, usage=usage), allow_missing=True, num_resamples=50)
    text = shown(measurement_table(measured))
    assert "40 items, 1 missing" in text
    assert "1 items without a full prediction: what is missing counts as wrong" in unwrapped(text)
    # Needed: two steps of each item; without score: two of the missing item, one of math-1.
    # 77 of 80 are 96.25 %.
    assert "3 of 80 steps needed have no score; coverage: math 96.2%" in unwrapped(text)
    assert "1 items could not be judged" in text
    assert "2 rows of the data could not be used" in text
    assert "1 scored items are not in the data" in text
    assert (
        "12,345 tokens generated (156 a step); 13 of 790 analyses without verdict; 1 of 79 judged steps unscored"
        in unwrapped(text)
    )
    assert "seconds not known; FLOPs not known: the model's size is not known" in unwrapped(text)
    # Of 20 right solutions one is missing; in no other is an error named.
    assert "false alarms: an error named in 0 of 19 right solutions, 0.0% (0.0 to 0.0); 1 more are not judged" in (
        unwrapped(text)
    )


def test_what_a_run_cost_is_said() -> None:
    """2 x 1.5e9 weights x (1,000 + 234) tokens are 3.702e12."""
    items, scores = processbench()
    usage = Totals(num_generated_tokens=234, num_steps_judged=78, num_solutions=40)
    cost = Cost(seconds=61.25, sessions=3, untimed_sessions=1, parameters=1.5e9)
    found = replace(scores, usage=usage, num_prompt_tokens=1_000, cost=cost)
    text = unwrapped(shown(measurement_table(measure_processbench(items, found, num_resamples=5)), 80))
    assert "234 tokens generated (3 a step, 6 a solution);" in text
    assert "61.2 seconds at least, 1 of 3 sessions were killed untimed; about 3.7e+12 FLOPs, 2 x" in text
    assert "2 x 1,500,000,000 weights for each token read (1,000) or generated" in text
    uncounted = replace(found, num_prompt_tokens=None)
    text = unwrapped(shown(measurement_table(measure_processbench(items, uncounted, num_resamples=5))))
    assert "FLOPs not known: its prompt tokens are not counted" in text


def test_an_undefined_figure_is_called_so() -> None:
    items, scores = processbench()
    only_errors = BenchmarkItems(tuple(item for item in items.items if item.label == 1))
    text = shown(measurement_table(measure_processbench(only_errors, scores, num_resamples=50)))
    assert line(text, "math")[5:7] == ["undefined", "undefined"]
    assert line(text, "average")[2] == "undefined"


def test_coverage_of_100_means_all() -> None:
    items, scores = processbench(4_000)
    nearly = Scores({**scores.p_yes, "math-1": (None, 0.3)})
    # 7,999 of 8,000 steps are 99.99 %.
    text = shown(measurement_table(measure_processbench(items, nearly, num_resamples=5)))
    assert "coverage: math 99.9%" in unwrapped(text)


def test_prmbench() -> None:
    def item(classification: str, idx: str) -> PRMBenchItem:
        solution = Solution(id=f"{classification}_{idx}", problem="p", steps=("a", "b"))
        return PRMBenchItem(classification, idx, solution, (2,))

    items = BenchmarkItems((item("redundency", "prm_test_p1_0"), item("circular", "prm_train_p1_0")))
    scores = Scores({one.id: (0.9, 0.1) for one in items.items})
    text = shown(measurement_table(measure_prmbench(items, scores, num_resamples=5)))
    assert line(text, "simplicity")[:3] == ["simplicity", "2", "100.0"]
    assert line(text, "redundency") == ["redundency", "1", *["100.0", "[100.0,", "100.0]"] * 2]
    # No circular item is clean, and no item is of class deception.
    assert line(text, "circular") == ["circular", "1", "100.0", "[100.0,", "100.0]", "undefined"]
    assert line(text, "deception") == ["deception", "0", "undefined", "undefined"]
    assert line(text, "overall")[:3] == ["overall", "2", "100.0"]
    assert "2 items, 0 missing" in text
    assert "similarity is not measured: there are no `correct` items" in text


def test_curve_marks_the_best_and_warns() -> None:
    items, scores = processbench()
    curve = threshold_curve(items, Scores({key: (0.9, min(p_yes[1], 0.42)) for key, p_yes in scores.p_yes.items()}))
    text = shown(result_table(curve.table()))
    # All right from 0.31 to 0.42; of these the nearest to 0.5 is marked, and shown though it is no multiple of 0.05.
    assert line(text, "0.42") == ["0.42", "100.0", "100.0"]
    assert line(text, "0.3 ") == ["0.3", "0.0", "0.0"]
    assert not any(row.strip().startswith(("0.31", "0.41", "0.43")) for row in text.splitlines())
    assert "flatters" in text


def test_held_out() -> None:
    text = shown(result_table(measure_held_out(*processbench(), num_resamples=5).table()))
    assert line(text, "average")[:2] == ["average", "100.0"]
    assert "items predicted at 0.5 and" in text


def test_comparison_names_are_no_markup() -> None:
    items, scores = processbench()
    worse = Scores({**scores.p_yes, "math-0": (0.1, 0.1), "math-2": (0.1, 0.1), "math-4": (0.1, 0.1)})
    first, second = tally_processbench(items, worse), tally_processbench(items, scores)
    text = shown(comparison_table(compare(first, second, num_resamples=50), names=("runs/[bold]a", "b")))
    assert "B, b, against A, runs/[bold]a" in unwrapped(text)
    # 17 of 20 against all 20: +15.
    assert line(text, "math.correct_acc")[:4] == ["math.correct_acc", "85.0", "100.0", "+15.0"]
    assert "40 items, the runs differ on 3" in unwrapped(text)
    # All three discordant items favour b: 2 of 8 arrangements, and 2 * 1/8.
    assert "average.f1: p = 0.250, paired permutation test over all 8 swaps" in unwrapped(text)
    assert "0 items only A predicts right, 3 only B: p = 0.250, exact McNemar test" in unwrapped(text)
    missing = tally_processbench(items, Scores({"math-0": (0.9, 0.9)}), allow_missing=True)
    text = shown(comparison_table(compare(first, missing, num_resamples=5)))
    assert "B: 39 items without a full prediction: what is missing counts as wrong" in unwrapped(text)


def test_a_comparison_says_what_could_not_be_judged_and_at_which_thresholds() -> None:
    items, scores = processbench()
    partly = Scores({**scores.p_yes, "math-1": (None, 0.3), "math-3": (None, 0.3)})
    compared = compare(
        tally_processbench(items, partly), tally_processbench(items, scores, threshold=0.4), num_resamples=5
    )
    text = unwrapped(shown(comparison_table(compared)))
    assert "A: 2 items could not be judged: a step has no score; they count as predicted wrong" in text
    assert "thresholds: A 0.5, B 0.4" in text
    assert compared.as_dict()["unjudged"] == {"first": 2, "second": 0}
