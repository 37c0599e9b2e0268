"""Resampling: what it draws, and what its intervals cover."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rprm.benchmarks import tally
from rprm.benchmarks.tally import named_figures, resampled_sums
from rprm.errors import BenchmarkError


def sums(counts: list[list[float]], strata: list[str], num_resamples: int = 500, seed: int = 0) -> np.ndarray:
    chunks = resampled_sums(np.array(counts, float), np.array(strata), num_resamples=num_resamples, seed=seed)
    return np.concatenate(list(chunks))


def test_each_stratum_keeps_its_size() -> None:
    # A column that is 1 for every item of a stratum counts the items drawn from it: 3 of a and 2 of b, always.
    counts = [[1, 0, 5], [1, 0, 6], [1, 0, 7], [0, 1, 8], [0, 1, 9]]
    drawn = sums(counts, ["a", "a", "a", "b", "b"])
    assert drawn.shape == (500, 3)
    assert (drawn[:, 0] == 3).all()
    assert (drawn[:, 1] == 2).all()
    # Five draws of at least 5 + 5 + 5 + 8 + 8 and at most 7 + 7 + 7 + 9 + 9.
    assert drawn[:, 2].min() >= 31
    assert drawn[:, 2].max() <= 39
    assert len(np.unique(drawn[:, 2])) == 9


def test_the_share_of_each_item_is_right_where_rows_are_equal() -> None:
    # Three equal rows and one other: the other is drawn Binomial(4, 1/4) times, mean 1, variance 3/4. With 20,000
    # resamples the mean is within 4 * sqrt(.75 / 20000) = 0.0245.
    drawn = sums([[0.0], [0.0], [0.0], [1.0]], ["a"] * 4, num_resamples=20_000)[:, 0]
    assert drawn.mean() == pytest.approx(1.0, abs=0.0245)
    assert drawn.var() == pytest.approx(0.75, abs=0.04)


def test_the_interval_of_a_share_is_the_normal_one() -> None:
    # 60 of 100 items: standard error sqrt(.6 * .4 / 100) = 0.049, so that the interval is about 0.6 -+ 1.96 * 0.049,
    # 0.504 to 0.696; a share moves in steps of 0.01.
    drawn = sums([[1.0]] * 60 + [[0.0]] * 40, ["a"] * 100, num_resamples=10_000) / 100
    figures, undefined = named_figures(["share"], np.array([0.6]), drawn)
    assert figures["share"].low == pytest.approx(0.504, abs=0.0101)
    assert figures["share"].high == pytest.approx(0.696, abs=0.0101)
    assert undefined == {}


@settings(max_examples=30)
@given(
    rows=st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 3), st.floats(0, 1)), min_size=1, max_size=30),
    seed=st.integers(0, 2**32),
    data=st.data(),
)
def test_the_order_of_items_and_the_size_of_chunks_change_nothing(
    rows: list[tuple[str, int, float]], seed: int, data: st.DataObject
) -> None:
    def draw(some: list[tuple[str, int, float]]) -> np.ndarray:
        return sums([[count, value] for _, count, value in some], [name for name, _, _ in some], 50, seed)

    expected = draw(rows)
    assert np.array_equal(expected, draw(data.draw(st.permutations(rows))))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tally, "MAX_CHUNK", data.draw(st.integers(1, 200)))
        # The same draws; a matrix product may round its last bit differently in another shape.
        assert np.allclose(expected, draw(rows), rtol=1e-12, atol=0)


def test_another_seed_draws_otherwise() -> None:
    counts = [[float(number)] for number in range(50)]
    first, again, other = (sums(counts, ["a"] * 50, seed=seed) for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_undefined_resamples_are_left_out_and_counted() -> None:
    resampled = np.array([[1.0, math.nan, math.nan], [3.0, 5.0, math.nan]])
    figures, undefined = named_figures("abc", np.array([2.0, 5.0, 4.0]), resampled)
    # Between 1 and 3, linearly: 1 + 2 * 0.025 and 1 + 2 * 0.975.
    assert figures["a"].as_dict() == {"value": 2.0, "low": pytest.approx(1.05), "high": pytest.approx(2.95)}
    assert figures["b"].as_dict() == {"value": 5.0, "low": 5.0, "high": 5.0}
    assert figures["c"].as_dict() == {"value": 4.0, "low": None, "high": None}
    assert undefined == {"b": 1, "c": 2}
    # What is undefined itself is so in every resample, and is not counted.
    assert named_figures("c", np.array([math.nan]), resampled[:, 2:])[1] == {}


def test_at_least_one_resample() -> None:
    with pytest.raises(BenchmarkError, match="num_resamples is 0"):
        sums([[1.0]], ["a"], num_resamples=0)
