"""Choosing one answer among candidates, and how often that is right. Pure functions.

Answers are known by their groups: equal answers have the same number, -1 is none. docs/search.md has the rules of ties,
of missing answers and rewards, and of sums (whole multiples of 2^-30, so that their order does not matter)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from rprm.benchmarks.tally import MAX_CHUNK, Floats
from rprm.errors import InputError

Ints = NDArray[np.int64]

#: Up to so many subsets all are looked at; of more, so many random ones.
MAX_SUBSETS = 4_096

#: More candidates of one problem are refused: votes are counted in whole numbers that a float holds exactly.
MAX_CANDIDATES = 2_000

#: Replicates of each problem's accuracy, and the subsets of candidates in each that votes are counted over.
NUM_REPLICATES = 100
REPLICATE_SUBSETS = 16

_UNITS = 2.0**30


def majority(groups: Sequence[int]) -> int | None:
    """The group that most candidates belong to; None where none has an answer."""
    return weighted_vote(groups, [None] * len(groups))


def best_of(rewards: Sequence[float | None]) -> int | None:
    """The index of the candidate with the highest reward; None without candidates."""
    known = [-math.inf if reward is None else reward for reward in rewards]
    return known.index(max(known)) if known else None


def weighted_vote(groups: Sequence[int], rewards: Sequence[float | None]) -> int | None:
    """The group with the highest sum of rewards; None where no candidate has an answer."""
    voters = [(group, reward) for group, reward in zip(groups, rewards, strict=True) if group >= 0]
    unrewarded = all(reward is None for _, reward in voters)
    weights: dict[int, int] = {}
    for group, reward in voters:
        weights[group] = weights.get(group, 0) + (1 if unrewarded else round((reward or 0.0) * _UNITS))
    # Groups stand in the order of their first candidates, and `max` takes the first of equals.
    return max(weights, key=weights.__getitem__) if weights else None


class Pool:
    """The candidates of one problem, at most `MAX_CANDIDATES` (else `InputError`): `correct` (n,); `groups` (n,) of
    equal answers, -1 for none; `rewards` (A, n) from 0 to 1 under each of A aggregations, None (kept as NaN): none."""

    def __init__(
        self, correct: Sequence[bool], groups: Sequence[int], rewards: Sequence[Sequence[float | None]] = ()
    ) -> None:
        if len(correct) > MAX_CANDIDATES:
            raise InputError(f"a problem has {len(correct):,} candidates; at most {MAX_CANDIDATES:,} can be measured")
        self.correct: NDArray[np.bool_] = np.array(correct, dtype=bool)
        self.groups: Ints = np.array(groups, dtype=np.int64)
        self.rewards: Floats = np.array(rewards, dtype=np.float64).reshape(len(rewards), len(correct))


class Accuracy:
    """How often each strategy is right with N = `size` of n candidates, for pools given by the rows of `draws` (R, n).

    Pass@N (Chen et al. 2021, arXiv 2107.03374) and Best-of-N are exact: of n candidates ranked by reward, the one at
    rank r (from 0) is the best of C(n-1-r, N-1) subsets. Votes are counted over all C(n, N) subsets up to
    `max_subsets`, else over so many random ones, the same for every pool; the standard error of a problem's accuracy is
    then at most 0.5 / sqrt(max_subsets), 0.8 points at 4,096."""

    def __init__(self, draws: Ints, size: int, *, max_subsets: int = MAX_SUBSETS, seed: int = 0) -> None:
        self._draws, n = draws, draws.shape[1]
        total = math.comb(n, size)
        self._best_at_rank = np.array([math.comb(n - 1 - rank, size - 1) / total for rank in range(n)])
        self._passed = np.array([1.0 - math.comb(n - right, size) / total for right in range(n + 1)])
        # (T, N) subsets, each in ascending order: all of them, or some random ones.
        if total <= max_subsets:
            subsets = np.array(list(combinations(range(n), size)), dtype=np.int64)
        else:
            random = np.random.default_rng([seed, n, size]).random((max_subsets, n))
            subsets = np.sort(np.argsort(random, axis=1)[:, :size], axis=1)
        # (N, R * T): row after row, each of its subsets.
        self._voters = draws[:, subsets].reshape(-1, size).T
        every = np.arange(self._voters.shape[1])
        # (n, R * T): how often each candidate votes, and its first place among the voters; n where it has none.
        self._counts = np.zeros((n, len(every)))
        self._first = np.full((n, len(every)), float(n))
        for place in reversed(range(size)):
            self._counts[self._voters[place], every] += 1.0
            self._first[self._voters[place], every] = place

    def of(self, pool: Pool) -> Floats:
        """(R, 3 + 2A): pass@1, majority, pass@N, then Best-of-N and then weighted vote under each aggregation."""
        right = pool.correct[self._draws]
        best = []
        for rewards in pool.rewards:
            _, ranks = np.unique(np.where(np.isnan(rewards), np.inf, -rewards), return_inverse=True)
            # Of 16 bits: numpy sorts these by radix, several times faster than floats.
            ranked = np.argsort(ranks.astype(np.int16)[self._draws], axis=1, kind="stable")
            best.append(np.take_along_axis(right, ranked, axis=1) @ self._best_at_rank)
        majority, *weighted = self._votes(pool)
        return np.column_stack([right.mean(axis=1), majority, self._passed[right.sum(axis=1)], *best, *weighted])

    def _votes(self, pool: Pool) -> Floats:
        """(1 + A, R) the accuracy of the majority, and of the weighted vote under each aggregation."""
        num_rows, n = self._draws.shape
        num_votes = 1 + len(pool.rewards)
        voters = pool.groups >= 0
        if not pool.correct[voters].any():
            return np.zeros((num_votes, num_rows))
        if pool.correct.all() and voters.all():
            return np.ones((num_votes, num_rows))
        members = [np.flatnonzero(pool.groups == group) for group in np.unique(pool.groups[voters])]
        weights = np.vstack([np.ones(n), np.rint(np.nan_to_num(pool.rewards) * _UNITS)])
        member_weights = np.zeros((num_votes, len(members), n))
        for group, indices in enumerate(members):
            member_weights[:, group, indices] = (n + 1) * weights[:, indices]
        # A group's score is (n + 1) times its weight less the place of its first voter, which settles ties. Both can be
        # read off the highest score; a group without voters has -n, less than any that has one.
        scores = (member_weights.reshape(-1, n) @ self._counts).reshape(num_votes, len(members), -1)
        scores -= np.stack([self._first[indices].min(axis=0) for indices in members])
        highest = scores.max(axis=1)
        rewarded = (voters & ~np.isnan(pool.rewards)).astype(np.float64) @ self._counts > 0.0
        highest[1:] = np.where(rewarded, highest[1:], highest[0])
        place = (-highest % (n + 1)).astype(np.int64)
        # Where nobody votes, the place is n: beyond the last voter, wrong.
        right = np.zeros((n + 1, place.shape[1]), dtype=bool)
        right[: len(self._voters)] = pool.correct[self._voters]
        chose_right = np.take_along_axis(right, place, axis=0).reshape(num_votes, num_rows, -1)
        return np.asarray(chose_right.mean(axis=2))


def accuracies(pools: Sequence[Pool], size: int, num_strategies: int, seed: int) -> tuple[Floats, Floats]:
    """The accuracy of S strategies on each problem, (P, S), and replicates with that mean, (P, R, S)."""
    accuracy = np.zeros((len(pools), num_strategies))
    replicates = np.zeros((len(pools), NUM_REPLICATES, num_strategies))
    for n in {len(pool.correct) for pool in pools} - {0}:
        in_full = Accuracy(np.arange(n)[None], min(size, n), seed=seed)
        draws = np.random.default_rng([seed, n]).integers(n, size=(NUM_REPLICATES, n))
        in_replicates = Accuracy(draws, min(size, n), max_subsets=REPLICATE_SUBSETS, seed=seed)
        for index, pool in enumerate(pools):
            if len(pool.correct) == n:
                accuracy[index] = in_full.of(pool)
                drawn = in_replicates.of(pool)
                replicates[index] = drawn + (accuracy[index] - drawn.mean(axis=0))
    return accuracy, replicates


def resampled_means(
    replicates: Floats, strata: NDArray[np.str_], sets: Sequence[str], num_resamples: int, seed: int
) -> list[Floats]:
    """By set, the mean accuracy in each resample, (B, C). The draws are the same for every run on these problems."""
    means = []
    for name, stream in zip(sets, np.random.SeedSequence(seed).spawn(len(sets)), strict=True):
        members = replicates[strata == name]
        number, num_replicates, num_lines = members.shape
        random = np.random.default_rng(stream)
        problems = random.integers(number, size=(num_resamples, number))
        drawn = random.integers(num_replicates, size=(num_resamples, number))
        chunk = max(1, MAX_CHUNK // (number * num_lines))
        places = [slice(start, start + chunk) for start in range(0, num_resamples, chunk)]
        means.append(np.concatenate([members[problems[rows], drawn[rows]].mean(axis=1) for rows in places]))
    return means
