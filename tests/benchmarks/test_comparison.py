"""Two runs compared: tests worked by hand, symmetry, and what is refused."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rprm.benchmarks import comparison
from rprm.benchmarks.comparison import Comparison, compare, exact_mcnemar
from rprm.benchmarks.items import BenchmarkItems
from rprm.benchmarks.prmbench import PRMBenchItem, read_prmbench, tally_prmbench
from rprm.benchmarks.processbench import ProcessBenchItem, tally_processbench
from rprm.benchmarks.scores import Scores, read_scores
from rprm.errors import BenchmarkError, MissingPredictions
from rprm.records import Solution


def items_of(num_error: int, num_correct: int, subset: str = "math") -> BenchmarkItems[ProcessBenchItem]:
    """Items of two steps: `num_error` with label 0, then `num_correct` with label -1."""
    return BenchmarkItems(
        tuple(
            ProcessBenchItem(subset, Solution(id=f"{subset}-{number}", problem="p", steps=("a", "b")), label)
            for number, label in enumerate([0] * num_error + [-1] * num_correct)
        )
    )


def scores_that_are(items: BenchmarkItems[ProcessBenchItem], right: list[bool]) -> Scores:
    """Scores that predict exactly the items in `right` right."""
    return Scores(
        {
            item.id: ((0.0, 1.0) if item.label == 0 else (1.0, 1.0)) if hit else (1.0, 0.0)
            for item, hit in zip(items.items, right, strict=True)
        }
    )


def compared(right: tuple[list[bool], list[bool]], num_error: int, **options: int) -> Comparison:
    items = items_of(num_error, len(right[0]) - num_error)
    first, second = (tally_processbench(items, scores_that_are(items, one)) for one in right)
    return compare(first, second, num_resamples=options.pop("num_resamples", 100), **options)


def test_worked_by_hand() -> None:
    # Two items with a wrong step, three without. The first run has error accuracy 0/2; the second 2/2. Correct accuracy
    # is 2/3 in both, on the same items. F1: 0 against 2 * 1 * 2/3 / (5/3) = 4/5.
    result = compared(([False, False, True, True, False], [True, True, True, True, False]), num_error=2)
    assert result.tallies[0].by_name["average.f1"] == 0.0
    assert result.tallies[1].by_name["average.f1"] == pytest.approx(80.0)
    assert result.differences["average.f1"].value == pytest.approx(80.0)
    assert result.differences["math.correct_acc"].as_dict() == {"value": 0.0, "low": 0.0, "high": 0.0}
    assert (result.num_discordant, result.only_first_right, result.only_second_right) == (2, 0, 2)
    # Four arrangements of the two discordant items; none swapped: difference 80, both swapped: -80; one swapped: both
    # runs have error accuracy 1/2, difference 0. So p = 2/4.
    assert result.p_value == pytest.approx(0.5)
    assert (result.exact, result.num_permutations) == (True, 4)
    # Binomial(2, 1/2): 2 * P(0) = 2 * 1/4.
    assert result.mcnemar_p == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("only_first", "only_second", "expected"),
    [
        (0, 0, 1.0),
        (0, 3, 0.25),  # 2 * 1/8
        (3, 3, 1.0),  # 2 * (1 + 6 + 15 + 20)/64 > 1
        (1, 7, 2 * 9 / 256),  # 2 * (1 + 8)/256
        (2000, 2200, pytest.approx(0.00212, abs=5e-5)),  # normal: z = 199 / sqrt(4200) = 3.071, p = 0.00213
    ],
)
def test_mcnemar(only_first: int, only_second: int, expected: float) -> None:
    assert exact_mcnemar(only_first, only_second) == expected
    assert exact_mcnemar(only_second, only_first) == expected


def test_random_swaps_agree_with_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = random.Random(1)
    right = [draw.random() < 0.6 for _ in range(40)]
    other = [hit != (number % 4 == 0) for number, hit in enumerate(right)]  # 10 discordant
    exact = compared((right, other), num_error=20)
    assert (exact.exact, exact.num_permutations, exact.num_discordant) == (True, 1024, 10)
    monkeypatch.setattr(comparison, "MAX_ENUMERATED", 0)
    drawn = compared((right, other), num_error=20, num_permutations=20_000)
    assert (drawn.exact, drawn.num_permutations) == (False, 20_000)
    assert exact.p_value is not None
    # Standard deviation at most sqrt(1/4 / 20000) = 0.0035.
    assert drawn.p_value == pytest.approx(exact.p_value, abs=0.015)


def test_a_clear_difference_has_a_small_p_and_an_interval_without_zero() -> None:
    # 60 items each way; the first run has 30 of each kind right, the second these and 25 more of each.
    first = ([True] * 30 + [False] * 30) * 2
    second = ([True] * 55 + [False] * 5) * 2
    result = compared((first, second), num_error=60, num_permutations=5_000, num_resamples=500)
    # 50/100 in both accuracies against 55/60: F1 50 and 91.67.
    assert result.differences["average.f1"].value == pytest.approx(100 * 55 / 60 - 50)
    low = result.differences["average.f1"].low
    assert low is not None
    assert low > 20
    # No swap reaches it: (1 + 0) / (1 + 5000).
    assert result.p_value == pytest.approx(1 / 5001)
    assert result.mcnemar_p == pytest.approx(2 / 2**50)


def test_pairing_makes_the_interval_narrow() -> None:
    """Two runs that differ on one item of 200 differ surely by little, though each alone is known to -+ 7 points."""
    draw = random.Random(0)
    right = [draw.random() < 0.6 for _ in range(200)]
    other = list(right)
    other[right.index(False)] = True
    items = items_of(100, 100)
    first, second = (tally_processbench(items, scores_that_are(items, one)) for one in (right, other))
    alone = first.with_intervals(500, 0)[0]["average.f1"]
    paired = compare(first, second, num_resamples=500).differences["average.f1"]
    assert alone.low is not None
    assert alone.high is not None
    assert alone.high - alone.low > 10
    assert paired.low is not None
    assert paired.high is not None
    assert paired.low >= 0
    assert paired.high - paired.low < 3


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=4, max_size=40), st.data())
def test_symmetry(pairs: list[tuple[bool, bool]], data: st.DataObject) -> None:
    num_error = data.draw(st.integers(1, len(pairs) - 1))
    right = [one for one, _ in pairs], [other for _, other in pairs]
    forth = compared(right, num_error, num_permutations=300)
    back = compared((right[1], right[0]), num_error, num_permutations=300)
    assert forth.p_value is not None
    assert back.p_value is not None
    if forth.exact:
        assert forth.p_value == pytest.approx(back.p_value)
    assert 0 < forth.p_value <= 1
    assert forth.mcnemar_p == back.mcnemar_p
    for name, difference in forth.differences.items():
        assert difference.value is not None
        assert back.differences[name].value == pytest.approx(-difference.value)
    json.dumps(forth.as_dict(), allow_nan=False)
    same = compared((right[0], right[0]), num_error)
    assert (same.p_value, same.mcnemar_p, same.num_discordant) == (1.0, 1.0, 0)
    assert all((figure.value, figure.low, figure.high) == (0.0, 0.0, 0.0) for figure in same.differences.values())


def test_under_no_difference_p_values_are_not_small_too_often() -> None:
    """Both runs right with probability 0.6, independently: p <= 0.1 in about a tenth of 200 trials (sd 4.2)."""
    draw = random.Random(7)
    small = 0
    for _ in range(200):
        right = tuple([draw.random() < 0.6 for _ in range(60)] for _ in range(2))
        p_value = compared((right[0], right[1]), num_error=30, num_permutations=200, num_resamples=1).p_value
        small += p_value is not None and p_value <= 0.1
    assert 5 <= small <= 35


def test_an_undefined_headline_has_no_p_value() -> None:
    result = compared(([True, False], [False, True]), num_error=2)
    assert (result.p_value, result.num_permutations) == (None, 0)
    assert result.differences["average.f1"].value is None
    assert result.differences["math.error_acc"].value == 0.0
    assert result.mcnemar_p == 1.0


def test_missing_predictions_are_refused_or_named() -> None:
    items = items_of(1, 2)
    whole = scores_that_are(items, [True] * 3)
    part = Scores({identifier: p_yes for identifier, p_yes in whole.p_yes.items() if identifier != "math-1"})
    with pytest.raises(MissingPredictions, match="1 of 3 items have no prediction: math-1"):
        tally_processbench(items, part)
    result = compare(
        tally_processbench(items, whole), tally_processbench(items, part, allow_missing=True), num_resamples=5
    )
    assert [tally.missing for tally in result.tallies] == [(), ("math-1",)]
    assert (result.only_first_right, result.only_second_right) == (1, 0)
    assert result.as_dict()["missing_items"] == {"first": [], "second": ["math-1"]}


def test_runs_on_other_items_are_refused() -> None:
    items, others = items_of(1, 2), items_of(1, 1)
    first = tally_processbench(items, scores_that_are(items, [True] * 3))
    second = tally_processbench(others, scores_that_are(others, [True] * 2))
    with pytest.raises(BenchmarkError, match="not on the same items"):
        compare(first, second)
    solution = Solution(id="circular_x", problem="p", steps=("a",))
    prm = tally_prmbench(BenchmarkItems((PRMBenchItem("circular", "x", solution, ()),)), Scores({"circular_x": (1.0,)}))
    with pytest.raises(BenchmarkError, match="processbench cannot be compared with one on prmbench"):
        compare(first, prm)
    with pytest.raises(BenchmarkError, match="num_permutations is 0"):
        compare(first, first, num_permutations=0)


def test_real_prmbench_runs(whole_data: Path) -> None:
    """The released model against itself with every tenth item's scores turned round: clearly worse."""
    items = read_prmbench(whole_data / "prmbench" / "sample.jsonl")
    scores = read_scores(whole_data / "prmbench" / "released_scores.jsonl")
    turned = {
        key: tuple(None if score is None else 1 - score for score in p_yes) if number % 10 == 0 else p_yes
        for number, (key, p_yes) in enumerate(scores.p_yes.items())
    }
    first, second = tally_prmbench(items, scores), tally_prmbench(items, Scores(turned))
    result = compare(first, second, num_resamples=200, num_permutations=2_000)
    difference = result.differences["overall"]
    assert result.tallies[0].headline == "overall"
    assert difference.high is not None
    assert difference.high < 0
    assert result.p_value is not None
    assert result.p_value < 0.01
    assert (result.mcnemar_p, result.only_first_right) == (None, None)
    # Of 494 items the numbers 0, 10, ..., 490 were turned: 50.
    assert 0 < result.num_discordant <= 50
    same = compare(first, first, num_resamples=10)
    assert same.p_value == 1.0
