"""Runs of the search stages on the mathematics sets, measured beside each other: accuracy, its uncertainty, its cost.

Intervals are 95% percentile intervals of a bootstrap in two stages (Davison and Hinkley 1997, section 3.8). In each
resample every set's problems are drawn with replacement, and of each drawn problem one replicate of its accuracy: what
the strategy reaches on n candidates drawn with replacement from its n. A candidate that comes twice makes pass@N
smaller and votes less varied, so that replicates are shifted to have the problem's own accuracy as their mean; an
interval that this moves beyond 0 or 100% ends there. The accuracies of a set's problems already vary by what its
candidates happened to be, so that this part counts twice, and intervals are on the wide side: in a simulation of 80
problems with 8 candidates 95% to 97% of them held the true accuracy, and 92% to 94% of those from problems alone, which
are 6% to 15% narrower.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rprm.benchmarks.bootstrap import DEFAULT_RESAMPLES, MAX_CHUNK
from rprm.benchmarks.mathematics import set_title
from rprm.benchmarks.tally import Figure, Floats, named_figures
from rprm.errors import BenchmarkError
from rprm.grading import Grader
from rprm.search.attempts import SearchRun
from rprm.search.choosing import Accuracy, Pool, in_order, powers_up_to, resampled
from rprm.search.pools import GradedAnswer, GradedRun, common_problems, grade_runs

#: Replicates of each problem's accuracy, and the subsets of candidates in each that votes are counted over.
NUM_REPLICATES = 100
REPLICATE_SUBSETS = 16

ONE = "pass@1"
#: What candidates reach without rewards, in the order of `Accuracy.of`.
POOL_STRATEGIES = (ONE, "majority@N", "pass@N")

#: The name of the last column: the unweighted mean over the sets, as in the paper's table.
AVERAGE = "average"


@dataclass(frozen=True)
class MeasuredRow:
    """A way to arrive at one solution of each problem, and how often it is right.

    Attributes:
        strategy: with a capital N for the number of candidates: `pass@1`, `majority@N`, `pass@N`, `Best-of-N (min)`,
            `weighted vote of N (min)`, `guided search`.
        model: what wrote, and what chose.
        run: the name of its run.
        num_candidates: N; None for a search that has no number of whole candidates.
        figures: accuracy in percent, by set and `average`.
        differences: to other rows on the same problems, in points, by their strategy; then as `figures`.
        policy_tokens, judge_tokens: generated for a problem, in the mean; None where not counted, or not judged.
    """

    strategy: str
    model: str
    run: str
    num_candidates: int | None
    figures: Mapping[str, Figure]
    differences: Mapping[str, Mapping[str, Figure]]
    policy_tokens: float | None
    judge_tokens: float | None

    @property
    def method(self) -> str:
        """The strategy with its number of candidates: `Best-of-8 (min)`."""
        return numbered(self.strategy, self.num_candidates)

    def as_dict(self) -> dict[str, Any]:
        return {
            "method": self.method,
            "model": self.model,
            "run": self.run,
            "candidates": self.num_candidates,
            "accuracy": {name: figure.as_dict() for name, figure in self.figures.items()},
            "differences": {
                baseline: {name: figure.as_dict() for name, figure in figures.items()}
                for baseline, figures in self.differences.items()
            },
            "policy_tokens": self.policy_tokens,
            "judge_tokens": self.judge_tokens,
        }


@dataclass(frozen=True)
class SearchMeasurement:
    """Runs on the same problems.

    Attributes:
        sets: name -> number of problems.
        rows: of the table.
        curve: rows with N = 1, 2, 4, ... up to all candidates, where asked for.
        answers: of every solution measured, graded, run by run; where several runs have the same solutions, once.
        notes: what a reader of the figures must know, in sentences.
    """

    sets: Mapping[str, int]
    rows: tuple[MeasuredRow, ...]
    curve: tuple[MeasuredRow, ...]
    answers: tuple[GradedAnswer, ...]
    num_resamples: int
    seed: int
    notes: tuple[str, ...]

    @property
    def names(self) -> dict[str, str]:
        """The sets as tables print them."""
        return {name: set_title(name, number) for name, number in self.sets.items()}

    @property
    def unsettled(self) -> list[GradedAnswer]:
        """Solutions whose grading came to no conclusion."""
        return [graded for graded in self.answers if graded.grade.correct is None]

    def as_dict(self) -> dict[str, Any]:
        """One JSON object."""
        return {
            "benchmark": "mathematics",
            "sets": {name: {"name": self.names[name], "problems": number} for name, number in self.sets.items()},
            "rows": [row.as_dict() for row in self.rows],
            "curve": [row.as_dict() for row in self.curve],
            "unsettled": [graded.as_dict() for graded in self.unsettled],
            "resamples": self.num_resamples,
            "seed": self.seed,
            "notes": list(self.notes),
        }


def measure_runs(
    runs: Sequence[SearchRun],
    *,
    grader: Grader | None = None,
    baseline: str | None = None,
    curve: bool = False,
    num_resamples: int = DEFAULT_RESAMPLES,
    seed: int = 0,
) -> SearchMeasurement:
    """Measure runs on the problems that all of them have, and that have a gold answer.

    Args:
        runs: of any search stages.
        grader: None for one of its own.
        baseline: the row that others are compared with, besides the majority: `pass@1` (the default), `majority@8`,
            `Best-of-N (min)`, ... A row is compared with that of its own candidates, or the first where it has none.
        curve: also with fewer candidates.
        num_resamples: of the bootstrap.
        seed: of the resamples, and of random subsets of candidates.

    Raises:
        BenchmarkError: there are no runs, or no problem to measure; runs differ in a problem of one id; there is no
            such baseline.
    """
    if not runs:
        raise BenchmarkError("no run to measure")
    if num_resamples < 1:
        raise BenchmarkError(f"num_resamples is {num_resamples}; at least 1 is needed")
    problems, notes = common_problems(runs)
    with nullcontext(grader) if grader else Grader() as opened:
        graded = grade_runs(runs, problems, opened)
    strata = np.array([problem.set for problem in problems])
    sets = dict(Counter(problem.set for problem in problems))
    lines: list[_Line] = []
    values, resampled_values = [], []
    pools: set[str] = set()
    answers: list[GradedAnswer] = []
    for run in graded:
        is_known = run.digest in pools
        for found, accuracy, replicates in _evaluate(run, curve=curve, with_pool=not is_known, seed=seed):
            lines += found
            values.append(_with_average([accuracy[strata == name].mean(axis=0) for name in sets]))
            resampled_values.append(
                _with_average(_resampled_means(replicates, strata, tuple(sets), num_resamples, seed))
            )
        notes += run.notes()
        if not is_known:
            pools.add(run.digest)
            answers += run.answers()
            notes += run.pool_notes()
    rows = _rows(lines, (*sets, AVERAGE), np.hstack(values), np.concatenate(resampled_values, axis=2), baseline)
    return SearchMeasurement(
        sets=sets,
        rows=tuple(row for row, line in zip(rows, lines, strict=True) if line.is_whole),
        curve=tuple(row for row, line in zip(rows, lines, strict=True) if curve and line.is_on_curve),
        answers=tuple(answers),
        num_resamples=num_resamples,
        seed=seed,
        notes=tuple(notes),
    )


@dataclass(frozen=True)
class _Line:
    """A row before its figures; `size` is its number of candidates."""

    strategy: str
    graded: GradedRun
    size: int | None

    @property
    def method(self) -> str:
        return numbered(self.strategy, self.size)

    @property
    def is_whole(self) -> bool:
        """Whether it belongs in the table: it takes all the candidates there are, or their mean."""
        return self.size in (None, self.graded.num_candidates) or self.strategy == ONE

    @property
    def is_on_curve(self) -> bool:
        return self.size is not None and self.strategy != ONE

    @property
    def is_judged(self) -> bool:
        return self.strategy not in POOL_STRATEGIES

    def is_called(self, name: str) -> bool:
        return name in (self.strategy, self.method)

    def tokens(self, counts: Sequence[int | None]) -> float | None:
        """Generated for a problem, in the mean: with fewer candidates, so much less."""
        known = [count for count in counts if count is not None]
        if len(known) < len(counts):
            return None
        share = 1.0 if self.size is None else self.size / self.graded.num_candidates
        return share * sum(known) / len(known)


def _evaluate(
    graded: GradedRun, *, curve: bool, with_pool: bool, seed: int
) -> Iterator[tuple[list[_Line], Floats, Floats]]:
    """The lines of a run, C at a time, with their accuracy on each problem, (P, C), and replicates of that, (P, R, C).

    Args:
        with_pool: whether to have the lines that depend on the candidates alone.
    """
    run, num_candidates = graded.run, graded.num_candidates
    if not run.is_search:
        pools = graded.pools()
        strategies = [
            *POOL_STRATEGIES,
            *(f"Best-of-N ({how})" for how in graded.aggregations),
            *(f"weighted vote of N ({how})" for how in graded.aggregations),
        ]
        for size in powers_up_to(num_candidates) if curve else [num_candidates]:
            # pass@1 is the same for every N.
            wanted = [
                index
                for index, strategy in enumerate(strategies)
                if (with_pool or strategy not in POOL_STRATEGIES) and (strategy != ONE or size == num_candidates)
            ]
            if wanted:
                accuracy, replicates = _accuracies(pools, size, len(strategies), seed)
                lines = [_Line(strategies[index], graded, 1 if index == 0 else size) for index in wanted]
                yield lines, accuracy[:, wanted], replicates[:, :, wanted]
    if run.method is not None and not graded.aggregations:
        # Its own choice is all that is known: there is nothing to draw of it.
        chose_right = np.array(graded.chose_right, dtype=np.float64)[:, None]
        line = _Line(run.method, graded, None if run.is_search else num_candidates)
        yield [line], chose_right, np.repeat(chose_right[:, None], NUM_REPLICATES, axis=1)


def _accuracies(pools: Sequence[Pool], size: int, num_strategies: int, seed: int) -> tuple[Floats, Floats]:
    """The accuracy of S strategies on each problem, (P, S), and replicates with that mean, (P, R, S)."""
    accuracy = np.zeros((len(pools), num_strategies))
    replicates = np.zeros((len(pools), NUM_REPLICATES, num_strategies))
    for n in {len(pool.correct) for pool in pools} - {0}:
        in_full = Accuracy(in_order(n), min(size, n), seed=seed)
        draws = resampled(n, NUM_REPLICATES, seed)
        in_replicates = Accuracy(draws, min(size, n), max_subsets=REPLICATE_SUBSETS, seed=seed)
        for index, pool in enumerate(pools):
            if len(pool.correct) == n:
                accuracy[index] = in_full.of(pool)
                drawn = in_replicates.of(pool)
                replicates[index] = drawn + (accuracy[index] - drawn.mean(axis=0))
    return accuracy, replicates


def _resampled_means(
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
        means.append(
            np.concatenate(
                [
                    members[problems[start : start + chunk], drawn[start : start + chunk]].mean(axis=1)
                    for start in range(0, num_resamples, chunk)
                ]
            )
        )
    return means


def _with_average(by_set: Sequence[Floats]) -> Floats:
    """The values of the sets, and then their unweighted mean."""
    return np.stack([*by_set, np.mean(by_set, axis=0)])


def _rows(
    lines: Sequence[_Line], names: Sequence[str], values: Floats, resampled_values: Floats, baseline: str | None
) -> list[MeasuredRow]:
    """Put figures on lines.

    Args:
        names: F of them, of the sets and the average.
        values: (F, C).
        resampled_values: (F, B, C).
    """
    baselines = list(dict.fromkeys([baseline or "pass@1", "majority@N"]))
    if baseline is not None and not any(line.is_called(baseline) for line in lines):
        known = ", ".join(dict.fromkeys(line.method for line in lines))
        raise BenchmarkError(f"no row is called {baseline!r}, which was to be the baseline; there are {known}")

    def figures(index: int, against: int | None = None) -> dict[str, Figure]:
        value, resampled_value = values[:, index], resampled_values[:, :, index].clip(0.0, 1.0)
        if against is not None:
            value = value - values[:, against]
            resampled_value = resampled_values[:, :, index] - resampled_values[:, :, against]
        return named_figures(names, 100.0 * value, 100.0 * resampled_value.T)[0]

    rows = []
    for index, line in enumerate(lines):
        against = [_baseline_of(line, lines, name) for name in baselines]
        run = line.graded.run
        rows.append(
            MeasuredRow(
                strategy=line.strategy,
                model=run.judge if line.is_judged and run.judge else run.policy,
                run=run.name,
                num_candidates=line.size,
                figures=figures(index),
                differences={
                    lines[other].method: figures(index, other) for other in against if other not in (None, index)
                },
                policy_tokens=line.tokens([attempts.policy_tokens for attempts in line.graded.attempts]),
                judge_tokens=line.tokens([attempts.judge_tokens for attempts in line.graded.attempts])
                if line.is_judged
                else 0.0,
            )
        )
    return rows


def _baseline_of(line: _Line, lines: Sequence[_Line], name: str) -> int | None:
    """The line of that name: of the same candidates and as many of them, if there is one."""

    def likeness(index: int) -> tuple[bool, bool, bool, int]:
        other = lines[index]
        as_many = other.is_whole if line.is_whole else other.size == line.size
        return other.graded.digest == line.graded.digest, as_many, other.is_whole, -index

    return max((index for index, other in enumerate(lines) if other.is_called(name)), key=likeness, default=None)


def numbered(strategy: str, size: int | None) -> str:
    """The name of a strategy with its number of candidates: `majority@8`."""
    return strategy if size is None else re.sub(r"\bN\b", str(size), strategy)
