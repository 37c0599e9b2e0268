"""Choosing among candidates: against brute force over all subsets, and by hand."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import combinations, product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rprm.errors import InputError
from rprm.search.choosing import (
    MAX_CANDIDATES,
    Accuracy,
    Pool,
    accuracies,
    best_of,
    majority,
    weighted_vote,
)


def in_order(n: int) -> Any:
    """The candidates as they are, one draw."""
    return np.arange(n)[None]


# Naive choosers, each written from the rules alone. They return the index of the chosen candidate, None for none.


def naive_majority(groups: list[int]) -> int | None:
    ballots = [group for group in groups if group != -1]
    if not ballots:
        return None
    most = max(ballots.count(group) for group in ballots)
    return next(i for i, group in enumerate(groups) if group != -1 and ballots.count(group) == most)


def naive_weighted(groups: list[int], rewards: list[float | None]) -> int | None:
    if all(reward is None for group, reward in zip(groups, rewards, strict=True) if group != -1):
        return naive_majority(groups)
    totals: dict[int, Fraction] = {}
    for group, reward in zip(groups, rewards, strict=True):
        if group != -1:
            totals[group] = totals.get(group, Fraction(0)) + Fraction(reward or 0)
    most = max(totals.values())
    return next(i for i, group in enumerate(groups) if group != -1 and totals[group] == most)


def naive_best(rewards: list[float | None]) -> int:
    known = [reward for reward in rewards if reward is not None]
    return rewards.index(max(known)) if known else 0


def brute_force(
    correct: list[bool], groups: list[int], rewards: list[list[float | None]], size: int, order: list[int]
) -> list[Fraction]:
    """The expectation of each strategy over all subsets of `size` places of `order`."""
    wins = [Fraction(0)] * (3 + 2 * len(rewards))
    subsets = list(combinations(order, size))
    for subset in subsets:

        def right(place: int | None, subset: tuple[int, ...] = subset) -> bool:
            return place is not None and correct[subset[place]]

        own_groups = [groups[i] for i in subset]
        own_rewards = [[line[i] for i in subset] for line in rewards]
        wins[0] += Fraction(sum(correct[i] for i in subset), size)
        wins[1] += right(naive_majority(own_groups))
        wins[2] += any(correct[i] for i in subset)
        for how, line in enumerate(own_rewards):
            wins[3 + how] += right(naive_best(line))
            wins[3 + len(rewards) + how] += right(naive_weighted(own_groups, line))
    return [win / len(subsets) for win in wins]


#: Eighths: their sums are exact, and ties are common.
reward = st.none() | st.integers(0, 8).map(lambda eighths: eighths / 8)


@st.composite
def candidates(draw: st.DrawFn) -> tuple[list[bool], list[int], list[list[float | None]]]:
    n = draw(st.integers(1, 7))
    return (
        draw(st.lists(st.booleans(), min_size=n, max_size=n)),
        draw(st.lists(st.integers(-1, 3), min_size=n, max_size=n)),
        draw(st.lists(st.lists(reward, min_size=n, max_size=n), max_size=2)),
    )


@given(candidates())
@settings(max_examples=150, deadline=None)
def test_every_size_is_the_expectation_over_all_subsets(drawn: Any) -> None:
    correct, groups, rewards = drawn
    n = len(correct)
    pool = Pool(correct, groups, rewards)
    for size in range(1, n + 1):
        (found,) = Accuracy(in_order(n), size).of(pool)
        assert found == pytest.approx([float(x) for x in brute_force(correct, groups, rewards, size, list(range(n)))])


@given(candidates(), st.data())
@settings(max_examples=60, deadline=None)
def test_a_draw_with_repeats_is_a_pool_of_its_own(drawn: Any, data: st.DataObject) -> None:
    correct, groups, rewards = drawn
    n = len(correct)
    orders = data.draw(st.lists(st.lists(st.integers(0, n - 1), min_size=n, max_size=n), min_size=1, max_size=3))
    size = data.draw(st.integers(1, n))
    found = Accuracy(np.array(orders), size).of(Pool(correct, groups, rewards))
    for row, order in zip(found, orders, strict=True):
        assert row == pytest.approx([float(x) for x in brute_force(correct, groups, rewards, size, order)])


@given(st.lists(st.integers(-1, 3), max_size=7), st.data())
@settings(deadline=None)
def test_single_choices_agree_with_the_naive_ones(groups: list[int], data: st.DataObject) -> None:
    rewards = data.draw(st.lists(reward, min_size=len(groups), max_size=len(groups)))
    place = naive_majority(groups)
    assert majority(groups) == (None if place is None else groups[place])
    place = naive_weighted(groups, rewards)
    assert weighted_vote(groups, rewards) == (None if place is None else groups[place])
    assert best_of(rewards) == (naive_best(rewards) if rewards else None)


def test_the_rules() -> None:
    # A candidate without an answer does not vote, however many there are.
    assert majority([-1, -1, -1, 5]) == 5
    assert majority([-1, -1]) is None
    assert majority([]) is None
    # Two of each: the group of the first voter, whatever its number.
    assert majority([7, 2, 2, 7]) == 7
    # The highest reward, of equal ones the first; None below 0; without any, the first.
    assert best_of([None, 0.0, 0.4, 0.4]) == 2
    assert best_of([None, 0.0]) == 1
    assert best_of([None, None]) == 0
    assert best_of([]) is None
    # 0.9 against 0.5 + 0.5; None adds nothing; a voteless reward adds nothing.
    assert weighted_vote([0, 1, 1], [0.9, 0.5, 0.5]) == 1
    assert weighted_vote([0, 1, 1], [0.9, 0.5, None]) == 0
    assert weighted_vote([0, 1, -1], [0.5, 0.4, 0.9]) == 0
    # All weigh 0: a tie, which the first voter's group wins; nobody has a reward: the majority wins.
    assert weighted_vote([0, 1, 1], [0.0, 0.0, 0.0]) == 0
    assert weighted_vote([0, 1, 1], [None, None, None]) == 1
    # The one with a reward has no vote: again the majority.
    assert weighted_vote([0, 1, 1, -1], [None, None, None, 0.9]) == 1
    with pytest.raises(ValueError, match="zip"):
        weighted_vote([0, 1], [0.5])


def test_sums_of_rewards_do_not_depend_on_their_order() -> None:
    # As floats 0.1 + 0.2 + 0.3 is 0.6000000000000001 and 0.3 + 0.2 + 0.1 is 0.6: no tie, by the last bit alone.
    for first, second in ([0.1, 0.2, 0.3], [0.3, 0.2, 0.1]), ([0.3, 0.2, 0.1], [0.1, 0.2, 0.3]):
        assert weighted_vote([0, 0, 0, 1, 1, 1], [*first, *second]) == 0
        pool = Pool([True] * 3 + [False] * 3, [0, 0, 0, 1, 1, 1], [[*first, *second]])
        assert Accuracy(in_order(6), 6).of(pool)[0, -1] == 1.0


def test_a_vote_is_right_when_its_first_voter_is() -> None:
    # Grading against the gold answer and grouping are two comparisons: one group may hold a right and a wrong answer.
    assert Accuracy(in_order(3), 3).of(Pool([True, False, False], [0, 0, 1]))[0, 1] == 1.0
    assert Accuracy(in_order(3), 3).of(Pool([False, True, False], [0, 0, 1]))[0, 1] == 0.0


def test_pass_at_n_is_the_unbiased_estimator() -> None:
    # 3 of 10 right: pass@4 = 1 - C(7, 4) / C(10, 4) = 1 - 35 / 210 = 5/6.
    pool = Pool([True] * 3 + [False] * 7, [0] * 3 + [1] * 7)
    assert Accuracy(in_order(10), 4).of(pool)[0, 2] == pytest.approx(5 / 6)
    assert Accuracy(in_order(10), 8).of(pool)[0, 2] == 1.0


def test_best_of_n_by_ranks() -> None:
    # Ranked by reward: 3, 0, 2, 1; 0 and 1 are right. The best of two of four is 3 in 3 pairs, 0 in 2, 2 in 1.
    pool = Pool([True, True, False, False], [0, 0, 1, 1], [[0.8, None, 0.1, 0.9]])
    assert Accuracy(in_order(4), 2).of(pool)[0, 3] == pytest.approx(2 / 6)


def test_of_too_many_subsets_random_ones_are_taken() -> None:
    # Majority of 5 of 20, of which 12 are right and 8 wrong alike: right where at least 3 of the 5 are,
    # sum over k = 3, 4, 5 of C(12, k) C(8, 5 - k) / C(20, 5) = (220 * 28 + 495 * 8 + 792) / 15504 = 0.7038.
    pool = Pool([True] * 12 + [False] * 8, [0] * 12 + [1] * 8)
    exact = (220 * 28 + 495 * 8 + 792) / math.comb(20, 5)
    assert math.comb(20, 5) > 4_096
    (every,) = Accuracy(in_order(20), 5, max_subsets=20_000).of(pool)
    assert every[1] == pytest.approx(exact)
    (some,) = Accuracy(in_order(20), 5).of(pool)
    # Four standard errors of 4,096 subsets: 4 * sqrt(0.7038 * 0.2962 / 4096) = 0.0285.
    assert some[1] == pytest.approx(exact, abs=0.0285)
    assert some[1] != every[1]
    (again,) = Accuracy(in_order(20), 5).of(pool)
    assert again[1] == some[1]
    (other,) = Accuracy(in_order(20), 5, seed=1).of(pool)
    assert other[1] != some[1]
    # What needs no subsets stays exact.
    assert some[2] == pytest.approx(1 - math.comb(8, 5) / math.comb(20, 5))


def test_certain_pools_need_no_counting() -> None:
    """All right, or none, whatever the groups: as the brute force has it too."""
    for right, expected in (True, 1.0), (False, 0.0):
        pool = Pool([right] * 4, [0, 1, 2, 3], [[0.5, None, 0.1, 0.9]])
        assert Accuracy(in_order(4), 2).of(pool)[0] == pytest.approx(np.full(5, expected))
    # Right answers that are not answers do not exist, but all right with one silent candidate is not certain.
    assert Accuracy(in_order(2), 1).of(Pool([True, True], [0, -1]))[0, 1] == 0.5


def test_replicates_are_draws_with_replacement() -> None:
    pool = Pool([True] + [False] * 7, [0] + [1] * 7)
    accuracy, replicates = accuracies([pool] * 50, 8, 3, seed=3)
    assert replicates.shape == (50, 100, 3)
    assert (replicates == accuracies([pool] * 50, 8, 3, seed=3)[1]).all()
    assert accuracy[0].tolist() == [0.125, 0.0, 1.0]
    assert replicates.mean(axis=1) == pytest.approx(accuracy)
    # pass@1 of 8 draws of a candidate that is one in eight: standard deviation sqrt(1/8 * 7/8 / 8) = 0.117; that of the
    # 100 draws, which all pools of 8 share, is 0.117 * (1 +- 0.07).
    assert replicates[0, :, 0].std() == pytest.approx(0.117, abs=0.03)


def test_too_many_candidates_are_refused() -> None:
    number = MAX_CANDIDATES + 1
    with pytest.raises(InputError, match="2,001 candidates; at most 2,000"):
        Pool([True] * number, [0] * number)


def test_the_largest_pool_is_counted_exactly() -> None:
    # 1,001 votes of reward 1 against 999: scores of 2001 * 1001 * 2**30 = 2.2e15 are below 2**53 = 9.0e15.
    n = MAX_CANDIDATES
    groups = [index % 2 for index in range(n - 1)] + [0]
    pool = Pool([group == 0 for group in groups], groups, [[1.0] * n])
    assert groups.count(0) == 1_001
    assert Accuracy(in_order(n), n).of(pool)[0].tolist() == [0.5005, 1.0, 1.0, 1.0, 1.0]


def test_every_small_vote() -> None:
    """Every assignment of four candidates to no answer or two groups, the right one being group 1."""
    for groups in product([-1, 0, 1], repeat=4):
        place = naive_majority(list(groups))
        expected = place is not None and groups[place] == 1
        pool = Pool([group == 1 for group in groups], groups)
        assert Accuracy(in_order(4), 4).of(pool)[0, 1] == expected
