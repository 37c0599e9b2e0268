"""PRMBench: the golden figures, cases worked by hand, and what is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rprm.benchmarks import measure_prmbench
from rprm.benchmarks.items import BenchmarkItems
from rprm.benchmarks.prmbench import (
    PRMBENCH_CLASSES,
    PRMBENCH_GROUPS,
    PRMBenchItem,
    read_prmbench,
    without_step_numbers,
)
from rprm.benchmarks.scores import Scores, StepScores, read_scores
from rprm.errors import BenchmarkError, InputError, MissingPredictions
from rprm.reading import SourceInfo
from rprm.records import Solution


def item(classification: str, idx: str, num_steps: int, *error_steps: int) -> PRMBenchItem:
    solution = Solution(id=f"{classification}_{idx}", problem="p", steps=("s",) * num_steps)
    return PRMBenchItem(classification, idx, solution, error_steps)


def bench(*cases: tuple[PRMBenchItem, StepScores]) -> tuple[BenchmarkItems[PRMBenchItem], Scores]:
    return BenchmarkItems(tuple(one for one, _ in cases)), Scores({one.id: p_yes for one, p_yes in cases})


def values(
    items: BenchmarkItems[PRMBenchItem], scores: Scores, *, allow_missing: bool = False
) -> dict[str, float | None]:
    measured = measure_prmbench(items, scores, allow_missing=allow_missing, num_resamples=5)
    return {name: figure.value for name, figure in measured.figures.items()}


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.61])
def test_golden(real_data: Path, threshold: float) -> None:
    """The released model's scores on real items give the figures that the benchmark's own formula gives."""
    golden = json.loads((real_data / "prmbench" / "golden.json").read_text())[str(threshold)]
    items = read_prmbench(real_data / "prmbench" / "sample.jsonl")
    scores = read_scores(real_data / "prmbench" / "released_scores.jsonl")
    figures = measure_prmbench(items, scores, threshold=threshold, num_resamples=5).figures
    assert len(golden) == 13
    for name in (*PRMBENCH_CLASSES, "overall"):
        value = figures[name].value
        assert value is not None
        assert round(value, 4) == golden[name]
    for group, classes in PRMBENCH_GROUPS.items():
        # The golden groups are means of class scores that were rounded already.
        assert round(sum(golden[name] for name in classes) / len(classes), 4) == pytest.approx(golden[group], abs=1e-9)
        assert figures[group].value == pytest.approx(golden[group], abs=1e-4)


def test_worked_by_hand() -> None:
    items, scores = bench(
        # Step 2 is wrong. Called: right, right, wrong, right (0.5 is right). TP, FP, FN, TP.
        (item("redundency", "prm_test_p1_0", 4, 2), (0.9, 0.8, 0.3, 0.5)),
        # Step 1 is wrong. TN, TP.
        (item("redundency", "prm_train_p1_1", 2, 1), (0.1, 0.9)),
        # No wrong steps. TP, TP, TP, FN.
        (item("multi_solutions", "prm_test_p2_2", 4), (0.9, 0.9, 0.9, 0.0)),
    )
    figures = values(items, scores)
    # TP 3, FP 1, FN 1, TN 1: F1 = 3/4 (precision 3/4, recall 3/4), negative F1 = 1/2 (1/2 and 1/2); mean 5/8.
    assert figures["redundency"] == pytest.approx(62.5)
    # F1 alone: precision 3/3, recall 3/4, F1 = 6/7.
    assert figures["multi_solutions"] == pytest.approx(600 / 7)
    # TP 6, FP 1, FN 2, TN 1: precision 6/7, recall 6/8, F1 = 12/15; negative: 1/3, 1/2, F1 = 2/5; mean 3/5.
    assert figures["overall"] == pytest.approx(60.0)
    # Clean without the second item. Class: TP 2, FP 1, FN 1, TN 0: F1 = 2/3; negative precision 0/1 and recall 0/1 are
    # both 0, F1 is undefined, which counts as -1; mean (2/3 - 1) / 2 = -1/6.
    assert figures["clean.redundency"] == pytest.approx(-100 / 6)
    # TP 5, FP 1, FN 2, TN 0: F1 = 10/13; negative again -1; mean (10/13 - 1) / 2 = -3/26.
    assert figures["clean.overall"] == pytest.approx(-300 / 26)
    # Classes without items, and groups with such a class, are undefined.
    for name in ("circular", "deception", "simplicity", "soundness", "sensitivity", "clean.circular", "similarity"):
        assert figures[name] is None


@pytest.mark.parametrize(
    ("p_yes", "expected"),
    [
        # Steps: right, right, wrong. All called right: TP 2, FP 1. F1 = 4/5. Negative precision 0/0 counts as -1, its
        # recall is 0/1: F1 = 2 * -1 * 0 / (-1 + 0) = 0. Mean 2/5.
        ((1.0, 1.0, 1.0), 40.0),
        # All called wrong: FN 2, TN 1. Precision 0/0 is -1, recall 0/2: F1 = 0. Negative: 1/3, 1/1, F1 = 1/2. Mean 1/4.
        ((0.0, 0.0, 0.0), 25.0),
        # Each called the other way: FN 2, FP 1. Precision 0/1, recall 0/2: F1 = 0/0, -1. Negative 0/2, 0/1: -1.
        ((0.0, 0.0, 1.0), -100.0),
        ((1.0, 1.0, 0.0), 100.0),
    ],
)
def test_undefined_ratios_count_as_minus_one(p_yes: StepScores, expected: float) -> None:
    items, scores = bench((item("circular", "prm_test_p1_0", 3, 3), p_yes))
    assert values(items, scores)["circular"] == pytest.approx(expected)


def test_a_group_is_the_mean_of_its_classes() -> None:
    items, scores = bench(
        (item("redundency", "prm_test_p1_0", 3, 3), (1.0, 1.0, 1.0)),  # 40, as above
        (item("circular", "prm_test_p1_0", 3, 3), (1.0, 1.0, 0.0)),  # 100
    )
    figures = values(items, scores)
    assert figures["simplicity"] == pytest.approx(70.0)
    # TP 4, FP 1, TN 1: F1 = 8/9; negative: 1/1, 1/2, F1 = 2/3; mean 7/9.
    assert figures["overall"] == pytest.approx(700 / 9)


def test_strictly_above() -> None:
    """Steps: right, right, wrong, at the threshold, above and below it. TP 1, FN 1, TN 1: the tie is called wrong."""
    items, scores = bench((item("circular", "prm_test_p1_0", 3, 3), (0.5, 0.75, 0.25)))
    assert values(items, scores)["circular"] == pytest.approx(100.0)
    strict = measure_prmbench(items, scores, strictly_above=True, num_resamples=5)
    # F1: precision 1/1, recall 1/2, 2/3. Negative: 1/2, 1/1, 2/3. Their mean 2/3.
    assert strict.figures["circular"].value == pytest.approx(200 / 3)
    assert strict.threshold == 0.5
    # A score just above it is above it.
    barely = Scores({"circular_prm_test_p1_0": (math.nextafter(0.5, 1.0), 0.75, 0.25)})
    assert measure_prmbench(items, barely, strictly_above=True, num_resamples=5).figures["circular"].value == 100.0


def test_step_numbers_are_stripped_as_the_benchmark_does() -> None:
    steps = ("Step 1. Add 2.", "2. Take 3. away", " STEP 3.5 apples", "step4. x", "Step 5: stays", "6 stays", "1.5 kg")
    one = PRMBenchItem("circular", "i", Solution(id="circular_i", problem="1. p", steps=steps), (2,))
    before = BenchmarkItems((one,), sources=(SourceInfo("f", "sha256:1", 1),))
    after = without_step_numbers(before)
    assert after.items[0].solution.steps == (
        "Add 2.", "Take 3. away", "5 apples", "x", "Step 5: stays", "6 stays", "5 kg",
    )  # fmt: skip
    assert after.items[0].solution.problem == "1. p"
    assert after.items[0].wrong_steps == one.wrong_steps
    # A run of them is told from a run of the items as they are.
    assert after.sources[0].digest != before.sources[0].digest


def test_error_steps_past_the_end_are_never_met() -> None:
    items, scores = bench((item("deception", "prm_test_p1_0", 3, 3, 4), (1.0, 1.0, 0.0)))
    assert values(items, scores)["deception"] == pytest.approx(100.0)


class TestSimilarity:
    MODIFIED = item("circular", "prm_test_p1_0", 4, 2), (0.9, 0.1, 0.9, 0.9)  # 3/4 called right
    SECOND = item("deception", "prm_test_p1_0", 2, 2), (0.9, 0.1)  # 1/2
    OTHER = item("circular", "prm_test_p1_7", 2, 2), (0.1, 0.1)  # 0
    ORIGINAL = item("correct", "prm_test_p1_0", 5), (0.9, 0.9, 0.9, 0.9, 0.1)  # 4/5

    def test_worked_by_hand(self) -> None:
        # Differences |3/4 - 4/5| = 0.05 and |1/2 - 4/5| = 0.3, mean 0.175; item 7 has no original.
        items, scores = bench(self.MODIFIED, self.SECOND, self.OTHER, self.ORIGINAL)
        measured = measure_prmbench(items, scores, num_resamples=5)
        assert measured.figures["similarity"].value == pytest.approx(82.5)
        assert measured.notes == ("similarity is over 2 pairs of a modified and an original solution",)
        # The original stays out of everything else: 4 + 2 + 2 steps.
        assert measured.total_coverage.num_items == 3
        assert measured.total_coverage.steps_needed == 8
        without = bench(self.MODIFIED, self.SECOND, self.OTHER)
        for name, value in values(*without).items():
            assert name == "similarity" or measured.figures[name].value == value

    def test_an_original_with_no_step_called_right_is_left_out(self) -> None:
        items, scores = bench(self.MODIFIED, (item("correct", "prm_test_p1_0", 2), (0.1, 0.2)))
        assert values(items, scores)["similarity"] is None

    def test_without_scores_of_originals_it_is_not_measured_and_that_is_said(self) -> None:
        items, _ = bench(self.MODIFIED, self.ORIGINAL)
        measured = measure_prmbench(items, Scores({self.MODIFIED[0].id: self.MODIFIED[1]}), num_resamples=5)
        assert measured.figures["similarity"].value is None
        assert measured.notes == (
            "similarity is not measured: none of the 1 `correct` items (such as correct_prm_test_p1_0) has scores",
        )

    def test_a_part_of_the_originals_is_an_error_unless_allowed(self) -> None:
        items, scores = bench(self.MODIFIED, self.ORIGINAL, (item("correct", "prm_test_p1_9", 1), (0.9,)))
        partial = Scores({key: p_yes for key, p_yes in scores.p_yes.items() if key != "correct_prm_test_p1_9"})
        with pytest.raises(MissingPredictions, match=r"1 of 3 items .*: correct_prm_test_p1_9"):
            measure_prmbench(items, partial)
        assert values(items, partial, allow_missing=True)["similarity"] == pytest.approx(95.0)


class TestMissing:
    ITEMS = BenchmarkItems((item("circular", "prm_test_p1_0", 3, 2), item("circular", "prm_test_p1_1", 2, 2)))

    def test_items_and_steps_without_scores_are_errors_that_name_them(self) -> None:
        with pytest.raises(MissingPredictions, match=r"1 of 2 items .*: circular_prm_test_p1_1; .*--allow-missing"):
            measure_prmbench(self.ITEMS, Scores({"circular_prm_test_p1_0": (1.0, 0.0, 1.0)}))
        with pytest.raises(MissingPredictions, match=r"2 of 2 items .*: circular_prm_test_p1_0, circular_prm"):
            measure_prmbench(self.ITEMS, Scores({"circular_prm_test_p1_0": (1.0, None, 1.0)}))

    def test_allowed_they_count_as_wrong_calls(self) -> None:
        # First item: TP, then its wrong step without score counts as called right (FP), TP. Second: FN, FP.
        # TP 2, FP 2, FN 1, TN 0: F1 = 2 * 2 / (4 + 2 + 1 - 0) = 4/7; negative: 0/1, 0/2, undefined -1.
        measured = measure_prmbench(
            self.ITEMS, Scores({"circular_prm_test_p1_0": (1.0, None, 1.0)}), allow_missing=True, num_resamples=5
        )
        assert measured.figures["circular"].value == pytest.approx(100 * (4 / 7 - 1) / 2)
        assert measured.missing == ("circular_prm_test_p1_0", "circular_prm_test_p1_1")
        coverage = measured.coverage["circular"]
        assert (coverage.num_missing, coverage.steps_needed, coverage.steps_scored) == (2, 5, 2)

    @pytest.mark.parametrize("p_yes", [(1.0, 0.0), (1.0, 0.0, 1.0, 1.0), ()])
    def test_another_number_of_scores_than_steps_is_an_error(self, p_yes: StepScores) -> None:
        scores = Scores({"circular_prm_test_p1_0": p_yes, "circular_prm_test_p1_1": (1.0, 0.0)})
        with pytest.raises(InputError, match=rf"circular_prm_test_p1_0 \({len(p_yes)} scores, 3 steps\) .*first error"):
            measure_prmbench(self.ITEMS, scores, allow_missing=True)

    def test_no_items(self) -> None:
        only_original = BenchmarkItems((item("correct", "prm_test_p1_0", 1),))
        with pytest.raises(BenchmarkError, match="no items"):
            measure_prmbench(only_original, Scores({}))

    def test_early_stopping_binds_the_threshold(self) -> None:
        with pytest.raises(BenchmarkError, match=r"cannot be measured at 0\.7"):
            measure_prmbench(self.ITEMS, Scores({}, settled_at=0.5), threshold=0.7)


def prm_score(calls: list[tuple[bool, bool]], positive_only: bool) -> float:
    """PRMScore of (is right, is called right), from the definition."""

    def f1(of_interest: bool) -> float:
        hits = sum(truth == call == of_interest for truth, call in calls)
        called = sum(call == of_interest for _, call in calls)
        are = sum(truth == of_interest for truth, _ in calls)
        precision = hits / called if called else -1
        recall = hits / are if are else -1
        return 2 * precision * recall / (precision + recall) if precision + recall else -1

    return f1(True) if positive_only else (f1(True) + f1(False)) / 2


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(PRMBENCH_CLASSES),
            st.booleans(),
            st.lists(st.tuples(st.booleans(), st.floats(0, 1)), min_size=1, max_size=5),
        ),
        min_size=1,
        max_size=15,
    ),
    st.floats(0.01, 0.99),
)
def test_every_figure_follows_the_definition(
    rows: list[tuple[str, bool, list[tuple[bool, float]]]], threshold: float
) -> None:
    cases = []
    calls: dict[str, list[tuple[bool, bool]]] = {"overall": []}
    clean: dict[str, list[tuple[bool, bool]]] = {"overall": []}
    for number, (classification, is_clean, steps) in enumerate(rows):
        wrong = [index + 1 for index, (is_wrong, _) in enumerate(steps) if is_wrong]
        idx = f"prm_{'test' if is_clean else 'train'}_p1_{number}"
        cases.append((item(classification, idx, len(steps), *wrong), tuple(score for _, score in steps)))
        made = [(not is_wrong, score >= threshold) for is_wrong, score in steps]
        for group in (calls, clean) if is_clean else (calls,):
            group["overall"] += made
            group.setdefault(classification, []).extend(made)
    items, scores = bench(*cases)
    measured = measure_prmbench(items, scores, threshold=threshold, num_resamples=5)
    for prefix, expected in (("", calls), ("clean.", clean)):
        for name in (*PRMBENCH_CLASSES, "overall"):
            value = measured.figures[prefix + name].value
            if expected.get(name):
                assert value == pytest.approx(100 * prm_score(expected[name], name == "multi_solutions"))
            else:
                assert value is None
    json.dumps(measured.as_dict(), allow_nan=False)
    backwards = measure_prmbench(BenchmarkItems(items.items[::-1]), scores, threshold=threshold, num_resamples=5)
    assert backwards.figures == measured.figures


def test_intervals_hold_the_figures_of_real_items(whole_data: Path) -> None:
    items = read_prmbench(whole_data / "prmbench" / "sample.jsonl")
    scores = read_scores(whole_data / "prmbench" / "released_scores.jsonl")
    measured = measure_prmbench(items, scores, num_resamples=500)
    assert measured.undefined_resamples == {}
    for name, figure in measured.figures.items():
        if name == "similarity":
            continue
        assert figure.value is not None
        assert figure.low is not None
        assert figure.high is not None
        assert figure.low < figure.value < figure.high
        # A group or all classes are surer than a class of 60 items; a clean half is less sure than the whole.
        clean = measured.figures.get(f"clean.{name}")
        if clean is not None and name != "multi_solutions":
            assert clean.high is not None
            assert clean.low is not None
            assert clean.high - clean.low > figure.high - figure.low
    assert measured.seed == 0
    assert measure_prmbench(items, scores, num_resamples=500).figures == measured.figures
    assert measure_prmbench(items, scores, num_resamples=500, seed=1).figures != measured.figures
