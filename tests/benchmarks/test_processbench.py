"""ProcessBench: the measure on cases worked by hand, curves, held-out thresholds, and what is refused."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rprm.benchmarks import measure_processbench
from rprm.benchmarks.items import BenchmarkItems
from rprm.benchmarks.processbench import (
    ProcessBenchItem,
    measure_held_out,
    read_processbench,
    threshold_curve,
)
from rprm.benchmarks.scores import Scores, StepScores
from rprm.errors import BenchmarkError, InputError, MissingPredictions
from rprm.reading import Rejected
from rprm.records import Solution
from rprm.rewarders.base import first_error


def item(identifier: str, label: int, num_steps: int) -> ProcessBenchItem:
    solution = Solution(id=identifier, problem="p", steps=("s",) * num_steps, label=label)
    return ProcessBenchItem(subset=identifier.split("-")[0], solution=solution, label=label)


def bench(*cases: tuple[str, int, StepScores]) -> tuple[BenchmarkItems[ProcessBenchItem], Scores]:
    """Items (id, label) with one step per score, and these scores."""
    items = BenchmarkItems(tuple(item(identifier, label, len(p_yes)) for identifier, label, p_yes in cases))
    return items, Scores({identifier: p_yes for identifier, _, p_yes in cases})


def values(items: BenchmarkItems[ProcessBenchItem], scores: Scores, threshold: float = 0.5) -> dict[str, float | None]:
    measured = measure_processbench(items, scores, threshold=threshold, num_resamples=10)
    return {name: figure.value for name, figure in measured.figures.items()}


#: Worked below at 0.5.
WORKED = bench(
    ("gsm8k-0", 1, (0.9, 0.4, 0.9)),  # predicted 1: right
    ("gsm8k-1", 0, (0.9, 0.2)),  # predicted 1: wrong
    ("gsm8k-2", 2, (0.5, 0.5, 0.49)),  # predicted 2: right, 0.5 is not below 0.5
    ("gsm8k-3", -1, (0.9, 0.5)),  # predicted -1: right
    ("gsm8k-4", -1, (0.9, 0.3)),  # predicted 1: wrong
    ("math-0", 0, (0.0,)),  # right
    ("math-1", -1, (1.0, 1.0)),  # right
)


@pytest.mark.parametrize(
    ("p_yes", "threshold", "expected"),
    [
        ((0.9, 0.4, 0.1), 0.5, 1),
        ((0.9, 0.5), 0.5, -1),
        ((0.9, 0.5), 0.51, 1),
        ((0.9, 0.1, None), 0.5, 1),
        # A step without a score before it: the first error is not known.
        ((None, 0.1), 0.5, None),
        ((0.9, None), 0.5, None),
        ((None, None), 0.5, None),
        ((), 0.5, -1),
    ],
)
def test_first_error(p_yes: StepScores, threshold: float, expected: int | None) -> None:
    assert first_error(p_yes, threshold) == expected


def test_worked_by_hand() -> None:
    # gsm8k: error accuracy 2/3, correct accuracy 1/2; F1 = 2 * 2/3 * 1/2 / (2/3 + 1/2) = (2/3) / (7/6) = 4/7.
    # math: 1/1 and 1/1, F1 = 1. Average (4/7 + 1) / 2 = 11/14. Of three right solutions an error is named in one.
    assert values(*WORKED) == {
        "gsm8k.error_acc": pytest.approx(200 / 3),
        "gsm8k.correct_acc": pytest.approx(50.0),
        "gsm8k.f1": pytest.approx(400 / 7),
        "math.error_acc": 100.0,
        "math.correct_acc": 100.0,
        "math.f1": 100.0,
        "average.f1": pytest.approx(1100 / 14),
        "false_alarm_rate": pytest.approx(100 / 3),
    }


def test_f1_of_two_zeros_is_zero() -> None:
    items, scores = bench(("math-0", 0, (0.9,)), ("math-1", -1, (0.1,)))
    assert values(items, scores) == {
        "math.error_acc": 0.0, "math.correct_acc": 0.0, "math.f1": 0.0, "average.f1": 0.0, "false_alarm_rate": 100.0
    }  # fmt: skip


def test_an_accuracy_over_no_items_is_undefined_and_so_is_what_follows_from_it() -> None:
    items, scores = bench(("math-0", 0, (0.1,)), ("gsm8k-0", 0, (0.1,)), ("gsm8k-1", -1, (0.9,)))
    figures = measure_processbench(items, scores, num_resamples=10).figures
    assert figures["math.error_acc"].value == 100.0
    for name in ("math.correct_acc", "math.f1", "average.f1"):
        assert figures[name].as_dict() == {"value": None, "low": None, "high": None}
    assert figures["gsm8k.f1"].value == 100.0


def test_resamples_without_items_of_a_kind_are_counted() -> None:
    # Two items, one of each kind: a resample misses one kind with probability 1/2, so about 1,000 of 2,000 have no F1
    # (standard deviation sqrt(2000 / 4) = 22), and error accuracy alone is undefined in a quarter.
    items, scores = bench(("math-0", 0, (0.1,)), ("math-1", -1, (0.9,)))
    measured = measure_processbench(items, scores)
    assert measured.undefined_resamples["math.f1"] == pytest.approx(1000, abs=100)
    assert measured.undefined_resamples["math.error_acc"] == pytest.approx(500, abs=100)
    assert measured.figures["math.f1"].as_dict() == {"value": 100.0, "low": 100.0, "high": 100.0}


def test_an_item_whose_first_error_is_not_known_is_predicted_wrong_and_counted() -> None:
    items, scores = bench(
        ("math-0", 1, (None, 0.1, None)),  # not known: step 0 may be wrong; needed: steps 0 and 1; scored: 1
        ("math-1", 1, (0.9, 0.1, None)),  # predicted 1, right; needed 2, scored 2
        ("math-2", -1, (None, 0.9)),  # not known; needed 2, scored 1
        ("math-3", -1, (0.9, 0.9)),  # predicted -1, right; needed 2, scored 2
    )
    measured = measure_processbench(items, scores, num_resamples=10)
    assert measured.figures["math.error_acc"].value == 50.0
    assert measured.figures["math.correct_acc"].value == 50.0
    coverage = measured.coverage["math"]
    assert (coverage.steps_needed, coverage.steps_scored, coverage.num_missing) == (8, 6, 0)
    assert coverage.num_unjudged == measured.as_dict()["unjudged"] == 2
    assert coverage.percent == 75.0
    # No threshold makes a prediction of it: the curve agrees with the figures, everywhere.
    curve = threshold_curve(items, scores)
    for threshold, f1 in zip(curve.thresholds, curve.f1["math"], strict=True):
        assert f1 == values(items, scores, threshold)["math.f1"]
    assert max(f1 for f1 in curve.f1["math"] if f1 is not None) == 50.0


class TestMissing:
    def test_an_error_that_names_ten_items(self) -> None:
        items, _ = bench(*((f"math-{number}", -1, (0.9,)) for number in range(14)))
        scores = Scores({"math-0": (0.9,), "math-1": (0.9,)})
        with pytest.raises(
            MissingPredictions, match=r"^12 of 14 items .*: math-2, .*, math-11 and 2 more; .*--allow-missing"
        ):
            measure_processbench(items, scores)

    def test_an_item_without_any_score_has_no_prediction(self) -> None:
        items, _ = bench(("math-0", -1, (0.9, 0.9)), ("math-1", 0, (0.1,)))
        with pytest.raises(MissingPredictions, match="1 of 2 items have no prediction: math-0"):
            measure_processbench(items, Scores({"math-0": (None, None), "math-1": (0.1,)}))

    def test_the_cause_is_named(self) -> None:
        items, _ = bench(("math-0", -1, (0.9, 0.9)), ("math-1", 0, (0.1,)))
        long = {"math-0": "the prompt has 9,000 tokens"}
        with pytest.raises(MissingPredictions, match=r"math-0 could not be judged: the prompt has .*--allow-missing"):
            measure_processbench(items, Scores({"math-0": (None, None), "math-1": (0.1,)}, failures=long))
        # Where nothing could be judged, there is nothing to allow.
        with pytest.raises(MissingPredictions, match=r"math-0 could not be judged: the prompt has") as raised:
            measure_processbench(items, Scores({}, failures=long | {"math-1": "the same"}))
        assert "--allow-missing" not in str(raised.value)

    def test_allowed_they_count_as_wrong_whatever_the_label(self) -> None:
        items, _ = bench(
            ("math-0", -1, (0.9, 0.9)), ("math-1", 0, (0.1,)), ("math-2", -1, (0.9,)), ("math-3", 1, (0.9, 0.1))
        )
        scores = Scores({"math-0": (None, None), "math-1": (0.1,), "math-2": (0.9,)})
        measured = measure_processbench(items, scores, allow_missing=True, num_resamples=10)
        assert measured.figures["math.error_acc"].value == 50.0
        assert measured.figures["math.correct_acc"].value == 50.0
        assert measured.missing == ("math-0", "math-3")
        coverage = measured.total_coverage
        # Needed: 2 + 1 + 1 + 2 steps; scored: one of math-1 and one of math-2.
        assert (coverage.num_items, coverage.num_missing, coverage.steps_needed, coverage.steps_scored) == (4, 2, 6, 2)

    def test_scores_of_other_items_are_counted(self) -> None:
        items, scores = bench(("math-0", -1, (0.9,)))
        extra = Scores({**scores.p_yes, "math-77": (0.1,), "gsm8k-1": (0.1,)})
        assert measure_processbench(items, extra, num_resamples=10).num_unused == 2

    def test_no_items(self) -> None:
        with pytest.raises(BenchmarkError, match="no items"):
            measure_processbench(BenchmarkItems(()), Scores({}))


class TestLengths:
    def test_scores_may_end_at_the_predicted_first_error(self) -> None:
        items = BenchmarkItems((item("math-0", 1, 5), item("math-1", -1, 2)))
        scores = Scores({"math-0": (0.9, 0.4), "math-1": (0.9, 0.8)})
        measured = measure_processbench(items, scores, num_resamples=10)
        assert measured.figures["average.f1"].value == 100.0
        assert measured.total_coverage.percent == 100.0

    @pytest.mark.parametrize(
        "p_yes",
        [(0.9, 0.9), (0.4, 0.9), (0.9, None), (), (0.9,) * 6],
        ids=["high", "exit passed", "none", "empty", "long"],
    )
    def test_any_other_length_is_an_error(self, p_yes: StepScores) -> None:
        items = BenchmarkItems((item("math-0", 1, 5), item("math-1", -1, 2)))
        message = rf"1 items .*math-0 \({len(p_yes)} scores, 5 steps\)"
        with pytest.raises(InputError, match=message):
            measure_processbench(items, Scores({"math-0": p_yes, "math-1": (0.9, 0.9)}), allow_missing=True)

    def test_an_exit_at_another_threshold_is_an_error(self) -> None:
        items = BenchmarkItems((item("math-0", 1, 5),))
        scores = Scores({"math-0": (0.9, 0.45)})
        assert values(items, scores, 0.5)["math.error_acc"] == 100.0
        with pytest.raises(InputError, match=r"below the threshold 0\.4"):
            measure_processbench(items, scores, threshold=0.4)

    def test_an_item_scored_twice_is_an_error(self) -> None:
        items, scores = bench(("math-0", -1, (0.9,)))
        with pytest.raises(InputError, match="scored twice: math-0"):
            measure_processbench(items, Scores(scores.p_yes, repeated=("math-0",)))


def test_early_stopping_binds_the_threshold() -> None:
    items, scores = bench(("math-0", -1, (0.9,)))
    settled = Scores(scores.p_yes, settled_at=0.5)
    assert values(items, settled)["math.correct_acc"] == 100.0
    with pytest.raises(BenchmarkError, match=r"cannot be measured at 0\.4"):
        measure_processbench(items, settled, threshold=0.4)
    for measure in (threshold_curve, measure_held_out):
        with pytest.raises(BenchmarkError, match="judge without early stopping"):
            measure(items, settled)


STEP_SCORE = st.one_of(st.none(), st.sampled_from([0.0, 0.3, 0.5, 0.7, 1.0]), st.floats(0, 1))


@st.composite
def benches(draw: st.DrawFn) -> tuple[BenchmarkItems[ProcessBenchItem], Scores]:
    cases = []
    for number in range(draw(st.integers(1, 12))):
        p_yes = tuple(draw(st.lists(STEP_SCORE, min_size=1, max_size=5)))
        subset = draw(st.sampled_from(["gsm8k", "omnimath"]))
        cases.append((f"{subset}-{number}", draw(st.integers(-1, len(p_yes) - 1)), p_yes))
    # Where no item has a score, nothing is measured.
    if all(score is None for _, _, p_yes in cases for score in p_yes):
        cases.append(("gsm8k-scored", -1, (0.7,)))
    return bench(*cases)


@settings(max_examples=60, deadline=None)
@given(benches(), st.floats(0.01, 0.99), st.randoms())
def test_properties(
    case: tuple[BenchmarkItems[ProcessBenchItem], Scores], threshold: float, order: random.Random
) -> None:
    items, scores = case
    measured = measure_processbench(items, scores, threshold=threshold, allow_missing=True, num_resamples=20)
    json.dumps(measured.as_dict(), allow_nan=False)
    subsets = list(measured.coverage)
    for subset in subsets:
        error_acc, correct_acc, f1 = (
            measured.figures[f"{subset}.{name}"] for name in ("error_acc", "correct_acc", "f1")
        )
        if error_acc.value is None or correct_acc.value is None:
            assert f1.value is None
            continue
        # A harmonic mean lies between the two, and at most at their mean.
        low, high = sorted((error_acc.value, correct_acc.value))
        assert f1.value is not None
        assert low - 1e-9 <= f1.value <= high + 1e-9
        assert f1.value <= (low + high) / 2 + 1e-9
        # The definition, item by item.
        for kind, figure in ((True, error_acc), (False, correct_acc)):
            hits = [
                first_error(scores.p_yes[one.id], threshold) == one.label
                and any(s is not None for s in scores.p_yes[one.id])
                for one in items.items
                if one.subset == subset and (one.label != -1) == kind
            ]
            assert figure.value == pytest.approx(100 * sum(hits) / len(hits))
    shuffled = list(items.items)
    order.shuffle(shuffled)
    again = measure_processbench(
        BenchmarkItems(tuple(shuffled)), scores, threshold=threshold, allow_missing=True, num_resamples=20
    )
    assert again.figures == measured.figures


@settings(max_examples=40, deadline=None)
@given(benches(), st.lists(st.floats(0.01, 0.99), min_size=1, max_size=4))
def test_a_curve_is_the_measure_at_each_threshold(
    case: tuple[BenchmarkItems[ProcessBenchItem], Scores], thresholds: list[float]
) -> None:
    items, scores = case
    thresholds = [*thresholds, 0.5]
    curve = threshold_curve(items, scores, thresholds=thresholds, allow_missing=True)
    assert curve.thresholds == tuple(thresholds)
    for index, threshold in enumerate(thresholds):
        measured = measure_processbench(items, scores, threshold=threshold, allow_missing=True, num_resamples=1)
        for name, f1 in curve.f1.items():
            assert f1[index] == measured.figures[f"{name}.f1"].value


def test_a_curve_has_99_thresholds_that_meet_scores_exactly() -> None:
    # 0.29 = 29/100 is not below 0.29: a threshold summed up from 0.01 would miss it.
    items, scores = bench(("math-0", 0, (0.29,)), ("math-1", -1, (0.9,)))
    curve = threshold_curve(items, scores)
    assert len(curve.thresholds) == 99
    assert [t for t, f1 in zip(curve.thresholds, curve.f1["average"], strict=True) if f1 == 100.0] == [
        percent / 100 for percent in range(30, 91)
    ]
    assert set(curve.as_dict()["f1"]) == {"math", "average"}


def test_a_curve_needs_every_step() -> None:
    items = BenchmarkItems((item("math-0", 1, 5), item("math-1", -1, 2)))
    scores = Scores({"math-0": (0.9, 0.4), "math-1": (0.9, 0.8)})
    for measure in (threshold_curve, measure_held_out):
        with pytest.raises(BenchmarkError, match=r"1 items end at the first error \(math-0\)"):
            measure(items, scores)
    with pytest.raises(BenchmarkError, match="end at the first error"):
        threshold_curve(items, scores, thresholds=np.array([0.3, 0.4]))  # type: ignore[arg-type]


class TestHeldOut:
    @staticmethod
    def case(seed: int = 0) -> tuple[BenchmarkItems[ProcessBenchItem], Scores]:
        """Wrong steps score about 0.3 and right ones about 0.6: the best threshold lies below 0.5."""
        draw = random.Random(seed)
        cases = []
        for number in range(200):
            num_steps = draw.randint(1, 6)
            label = draw.choice([-1, draw.randrange(num_steps)])
            p_yes = tuple(
                draw.uniform(0.1, 0.45) if step == label else draw.uniform(0.4, 0.9) for step in range(num_steps)
            )
            cases.append((f"math-{number}", label, p_yes))
        return bench(*cases)

    def test_it_beats_the_fixed_threshold_where_that_is_wrong(self) -> None:
        items, scores = self.case()
        held_out = measure_held_out(items, scores, num_resamples=50)
        assert sum(held_out.sizes) == 200
        assert all(0.4 <= threshold <= 0.45 for threshold in held_out.thresholds)
        fixed = values(items, scores)["average.f1"]
        figure = held_out.figures["average.f1"]
        assert figure.value is not None
        assert fixed is not None
        assert figure.value > fixed
        assert figure.low is not None
        assert figure.high is not None
        assert figure.low <= figure.value <= figure.high
        json.dumps(held_out.as_dict(), allow_nan=False)

    @staticmethod
    def halves(items: BenchmarkItems[ProcessBenchItem], scores: Scores) -> dict[str, int]:
        """Which half each item is in: it shows by the sizes without the item."""
        size = measure_held_out(items, scores, num_resamples=1).sizes[0]
        halves = {}
        for one in items.items:
            rest = BenchmarkItems(tuple(other for other in items.items if other is not one))
            halves[one.id] = 0 if measure_held_out(rest, scores, num_resamples=1).sizes[0] < size else 1
        return halves

    def test_each_half_is_predicted_with_the_threshold_of_the_other(self) -> None:
        labels = {f"math-{number}": (0, -1)[number % 2] for number in range(60)}
        halves = self.halves(*bench(*((key, label, ((0.2, 0.8)[label],)) for key, label in labels.items())))
        # One step each. In half 0 thresholds from 0.21 to 0.3 tell wrong from right, in half 1 from 0.71 to 0.8.
        low, high = (0.2, 0.3), (0.7, 0.8)
        items, scores = bench(*((key, label, ((low, high)[halves[key]][label],)) for key, label in labels.items()))
        held_out = measure_held_out(items, scores, num_resamples=1)
        assert held_out.thresholds == (0.71, 0.3)
        # At 0.71 every step of half 0 is called wrong; at 0.3 no step of half 1 is.
        for name, label, half in (("error_acc", 0, 0), ("correct_acc", -1, 1)):
            kind = [key for key in labels if labels[key] == label]
            hits = sum(halves[key] == half for key in kind)
            assert held_out.figures[f"math.{name}"].value == pytest.approx(100 * hits / len(kind))

    def test_an_item_never_helps_to_choose_its_own_threshold(self) -> None:
        """Whatever happens to the scores of one half, the threshold it is predicted with stays."""
        items, scores = self.case()
        before = measure_held_out(items, scores, num_resamples=1)
        halves = self.halves(items, scores)
        for half in (0, 1):
            spoilt = {
                identifier: tuple(1 - score for score in p_yes if score is not None)
                if halves[identifier] == half
                else p_yes
                for identifier, p_yes in scores.p_yes.items()
            }
            after = measure_held_out(items, Scores(spoilt), num_resamples=1)
            assert after.thresholds[half] == before.thresholds[half]
            assert after.thresholds[1 - half] != before.thresholds[1 - half]

    def test_of_equal_thresholds_the_nearest_to_a_half_is_chosen(self) -> None:
        # Every threshold from 0.21 to 0.80 is perfect on both halves.
        cases = [(f"math-{number}", (-1, 0)[number % 2], ((0.8, 0.2)[number % 2],)) for number in range(60)]
        held_out = measure_held_out(*bench(*cases), num_resamples=10)
        assert held_out.thresholds == (0.5, 0.5)
        assert held_out.figures["average.f1"].value == 100.0

    def test_too_few_items(self) -> None:
        with pytest.raises(BenchmarkError, match="too few items"):
            measure_held_out(*WORKED)


def test_the_result_is_one_json_object() -> None:
    items, scores = WORKED
    rejected = Rejected(file="x", line=1, reason="r", text="t")
    items = BenchmarkItems(items.items, rejected=(rejected,))
    result = json.loads(json.dumps(measure_processbench(items, scores, num_resamples=200, seed=3).as_dict()))
    assert set(result["figures"]) == {"gsm8k", "math", "average", "false_alarm_rate"}
    assert result["false_alarms"] == {"named": 1, "judged": 3, "right_solutions": 3}
    assert set(result["figures"]["gsm8k"]) == {"error_acc", "correct_acc", "f1"}
    figure = result["figures"]["average"]["f1"]
    assert set(figure) == {"value", "low", "high"}
    assert figure["low"] < figure["value"] < figure["high"]
    assert (result["items"], result["missing"], result["missing_items"], result["rejected_rows"]) == (7, 0, [], 1)
    assert (result["benchmark"], result["threshold"], result["resamples"], result["seed"]) == (
        "processbench",
        0.5,
        200,
        3,
    )
    # Steps needed at 0.5: 2 + 2 + 3 + 2 + 2 in gsm8k, 1 + 2 in math.
    assert result["by"]["gsm8k"]["steps_needed"] == 11
    assert result["steps_needed"] == 14
    assert result["coverage"] == 100.0
    assert (result["usage"], result["time"]) == (None, None)


def test_real_items_predicted_from_their_labels(real_data: Path) -> None:
    """A judge that knows the labels has 100 everywhere; one that calls nothing wrong has all correct accuracy, F1 0."""
    items = read_processbench(real_data / "processbench")
    knows = {
        one.id: tuple(0.0 if step == one.label else 1.0 for step in range(len(one.solution.steps)))
        for one in items.items
    }
    found = values(items, Scores(knows))
    assert (found.pop("false_alarm_rate"), set(found.values())) == (0.0, {100.0})
    assert {len(one.solution.steps) for one in items.items} != {1}
    trusts = {one.id: (1.0,) * len(one.solution.steps) for one in items.items}
    figures = values(items, Scores(trusts))
    for subset in ("gsm8k", "math", "olympiadbench", "omnimath"):
        assert (figures[f"{subset}.error_acc"], figures[f"{subset}.correct_acc"], figures[f"{subset}.f1"]) == (
            0,
            100,
            0,
        )
