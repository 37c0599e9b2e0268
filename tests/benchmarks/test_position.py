"""The row of position alone (`rprm.benchmarks.position`)."""

from __future__ import annotations

import pytest

from rprm.benchmarks import PROCESSBENCH, BenchmarkItems, measure
from rprm.benchmarks.position import half_of, position_only
from rprm.benchmarks.processbench import ProcessBenchItem
from rprm.benchmarks.scores import Scores
from rprm.records import Solution


def items_of(labels: list[tuple[int, int]], num_each: int) -> BenchmarkItems[ProcessBenchItem]:
    """So many items in each half of each (number of steps, label)."""
    found: list[ProcessBenchItem] = []
    for num_steps, label in labels:
        for half in (0, 1):
            names = (f"math-{num_steps}{label}{number}" for number in range(1000))
            for name in [name for name in names if half_of(name) == half][:num_each]:
                solution = Solution(id=name, problem="p", steps=("s",) * num_steps, label=label)
                found.append(ProcessBenchItem("math", solution, label))
    return BenchmarkItems(tuple(found))


def test_where_errors_stand_at_one_index_their_index_tells_them() -> None:
    """Each half alike: 3 items err at step 2 of 4, 1 at step 0 of 2, and 2 of 2 steps are right. Right at index 0: 5 of
    6, at 1: 5 of 5, at 2: 0 of 3. Called wrong at 0% or less, index 2 predicts the first three (3 of 4 errors) and no
    right one of two steps (2 of 2): F1 = 2 * 0.75 / 1.75; to call index 0 wrong too loses all of that."""
    items = items_of([(4, 2)], 3)
    items = BenchmarkItems((*items.items, *items_of([(2, 0)], 1).items, *items_of([(2, -1)], 2).items))
    assert PROCESSBENCH.right is not None
    figures = position_only(PROCESSBENCH.tally, items, PROCESSBENCH.right)
    assert figures["math.error_acc"] == pytest.approx(75)
    assert figures["math.correct_acc"] == pytest.approx(100)
    assert figures["average.f1"] == pytest.approx(100 * 2 * 0.75 / 1.75)


def test_it_stands_beside_the_figures_of_a_run() -> None:
    items = items_of([(4, 2), (2, -1)], 2)
    scores = Scores({item.id: (0.9,) * len(item.solution.steps) for item in items.items})
    measured = measure(PROCESSBENCH.tally, items, scores, right=PROCESSBENCH.right, num_resamples=10)
    assert measured.figures["average.f1"].value == 0.0
    assert measured.as_dict()["position_only"]["average"]["f1"] == pytest.approx(100)


def test_of_one_half_alone_nothing_is_told() -> None:
    (item, *_) = items_of([(4, 2)], 1).items
    assert PROCESSBENCH.right is not None
    assert position_only(PROCESSBENCH.tally, BenchmarkItems((item,)), PROCESSBENCH.right) == {}
