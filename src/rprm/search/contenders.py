"""Solutions as contenders of a race: what a rewarder says of their steps, as far as it was asked.

A solution's value is `aggregate` of its steps' rewards. A reward is a correctly rounded mean; the aggregate is the
least of the rewards, the last, their correctly rounded mean, or their product, rounded after each multiplication from
the first to the last (`math.prod` of floats). All of these are monotone in every reward, so that aggregates of bounds
are bounds of the aggregate, to the last bit.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Coroutine, Iterator, Sequence
from itertools import islice
from typing import Any, Protocol

from rprm.errors import RequestRefused
from rprm.jobs import all_or_none
from rprm.ledger import Ledger, ScopedLedger
from rprm.records import Analysis, Solution, StepReward
from rprm.rewarders.base import AnalysisSampler, StepRewarder
from rprm.search.aggregation import Aggregation, aggregate
from rprm.search.candidates import digest_of
from rprm.search.racing import Bounds, Contender
from rprm.stopping import mean_bounds


class KnownStep(Protocol):
    """A step, as far as it is judged."""

    @property
    def bounds(self) -> Bounds:
        """Of its reward."""
        ...

    @property
    def reward(self) -> StepReward | None:
        """From what is known so far; None where nothing is."""
        ...


class StepScores:
    """What is known of the steps of one problem's solutions.

    Solutions that begin alike share these steps: an R-PRM judge analyses each once. The rewarder's own early stopping
    plays no part. Two races that may meet at a step are to be run one after the other: what each draws depends on what
    it finds drawn.

    Args:
        rewarder: an `AnalysisSampler` is asked for single analyses. Any other judges a solution whole, in one draw.
        problem: the problem's text.
        ledger: of the problem.
    """

    def __init__(self, rewarder: StepRewarder, problem: str, ledger: Ledger | None = None) -> None:
        self._rewarder = rewarder
        self._problem = problem
        self._ledger = ledger
        self._analysed: dict[tuple[str, ...], _AnalysedStep] = {}
        self._judged: dict[tuple[str, ...], _WholeJudgement] = {}
        self._contenders: dict[tuple[tuple[str, ...], Aggregation], Contender] = {}

    @property
    def num_analyses(self) -> int | None:
        """K; None where the rewarder writes no analyses."""
        return self._rewarder.rule.num_analyses if isinstance(self._rewarder, AnalysisSampler) else None

    def step(self, steps: Sequence[str]) -> KnownStep:
        """The last of these steps, given the ones before it."""
        steps = tuple(steps)
        if isinstance(self._rewarder, AnalysisSampler):
            return self._analysed_step(self._rewarder, steps)
        return _LastStep(self._judgement(steps))

    def solution(self, steps: Sequence[str], aggregation: Aggregation) -> Contender:
        """A solution, whole or as far as it goes. Equal ones are the same contender."""
        key = tuple(steps), aggregation
        if key not in self._contenders:
            self._contenders[key] = self._contender(*key)
        return self._contenders[key]

    def rewards(self, steps: Sequence[str]) -> tuple[StepReward, ...]:
        """Of those steps of a solution that were judged, each as far as it was."""
        if not isinstance(self._rewarder, AnalysisSampler):
            return self._judgement(tuple(steps)).rewards or ()
        known = (self._analysed_step(self._rewarder, tuple(steps[: index + 1])) for index in range(len(steps)))
        return tuple(reward for step in known if (reward := step.reward) is not None)

    async def judge_in_full(self, steps: Sequence[str]) -> None:
        """AnalysisSampler every step of a solution as far as it goes."""
        if isinstance(judge := self._rewarder, AnalysisSampler):
            await all_or_none(
                self._analysed_step(judge, tuple(steps[: index + 1])).reach(judge.rule.num_analyses)
                for index in range(len(steps))
            )
        elif steps:
            await self._judgement(tuple(steps)).judge()

    def _contender(self, steps: tuple[str, ...], aggregation: Aggregation) -> Contender:
        if not isinstance(self._rewarder, AnalysisSampler):
            return _JudgedWhole(self._judgement(steps), aggregation)
        first = len(steps) - 1 if aggregation == "last" else 0
        needed = [self._analysed_step(self._rewarder, steps[: index + 1]) for index in range(max(first, 0), len(steps))]
        return _AnalysedSolution(needed, aggregation)

    def _analysed_step(self, judge: AnalysisSampler, steps: tuple[str, ...]) -> _AnalysedStep:
        if steps not in self._analysed:
            self._analysed[steps] = _AnalysedStep(judge, self._problem, steps, self._scoped(steps))
        return self._analysed[steps]

    def _judgement(self, steps: tuple[str, ...]) -> _WholeJudgement:
        if steps not in self._judged:
            self._judged[steps] = _WholeJudgement(self._rewarder, self._problem, steps, self._scoped(steps))
        return self._judged[steps]

    def _scoped(self, steps: tuple[str, ...]) -> Ledger | None:
        return self._ledger and ScopedLedger(self._ledger, digest_of(steps))


class _AnalysedStep:
    """The last of `steps`, with the analyses drawn so far."""

    def __init__(self, judge: AnalysisSampler, problem: str, steps: tuple[str, ...], ledger: Ledger | None) -> None:
        self._judge = judge
        self._problem = problem
        self._steps = steps
        self._ledger = ledger
        self._failure: str | None = None
        # What two contenders ask for at once is drawn once.
        self._drawing = asyncio.Lock()
        self.analyses: list[Analysis] = []
        self.bounds = mean_bounds([], judge.rule.num_analyses)

    @property
    def num_left(self) -> int:
        return 0 if self._failure else self._judge.rule.num_analyses - len(self.analyses)

    @property
    def reward(self) -> StepReward | None:
        index = len(self._steps) - 1
        if self._failure is not None:
            return self._judge.unscored(index, self._failure)
        return self._judge.reward(index, self.analyses) if self.analyses else None

    def outlook(self) -> _Outlook:
        values = [analysis.p_yes for analysis in self.analyses if analysis.p_yes is not None]
        return _Outlook(sum(values), len(values), self.num_left, self.bounds)

    async def reach(self, num_analyses: int) -> None:
        """Draw until there are so many analyses."""
        async with self._drawing:
            missing = range(len(self.analyses), num_analyses)
            if not missing or self._failure is not None:
                return
            try:
                self.analyses += await self._judge.analyse(
                    self._problem, self._steps, len(self._steps) - 1, missing, self._ledger
                )
            except RequestRefused as error:
                self.analyses.clear()
                self._failure = str(error)
                self.bounds = None, None
            else:
                p_yes = [analysis.p_yes for analysis in self.analyses]
                self.bounds = mean_bounds(p_yes, self._judge.rule.num_analyses)


class _Outlook:
    """A step, with analyses added that say what is expected of them: the mean, from a uniform prior."""

    def __init__(self, total: float, num_values: int, num_left: int, bounds: Bounds) -> None:
        self._total = total
        self._num_values = num_values
        self.num_left = num_left
        self.bounds = bounds

    @property
    def expected(self) -> float:
        return (self._total + 1.0) / (self._num_values + 2.0)

    def add(self) -> None:
        self._total += self.expected
        self._num_values += 1
        self.num_left -= 1
        most = self._num_values + self.num_left
        self.bounds = self._total / most, (self._total + self.num_left) / most


class _AnalysedSolution:
    """A solution whose steps are analysed one at a time: next always the one that promises the lowest reward.

    That rules a weak solution out soonest, and a strong one needs all its steps in any case.
    """

    def __init__(self, steps: Sequence[_AnalysedStep], aggregation: Aggregation) -> None:
        self._steps = steps
        self._aggregation = aggregation

    @property
    def bounds(self) -> Bounds:
        return _aggregated([step.bounds for step in self._steps], self._aggregation)

    def outlook(self) -> Iterator[Bounds]:
        return (bounds for _, bounds in self._next_draws())

    def draw(self, num_draws: int) -> Coroutine[Any, Any, None]:
        counts = Counter(place for place, _ in islice(self._next_draws(), num_draws))
        wanted = [(self._steps[place], len(self._steps[place].analyses) + count) for place, count in counts.items()]
        return self._reach(wanted)

    async def _reach(self, wanted: Sequence[tuple[_AnalysedStep, int]]) -> None:
        await all_or_none(step.reach(num_analyses) for step, num_analyses in wanted)

    def _next_draws(self) -> Iterator[tuple[int, Bounds]]:
        """The step of each draw to come, and the solution's bounds after it."""
        outlooks = [step.outlook() for step in self._steps]
        while left := [place for place, outlook in enumerate(outlooks) if outlook.num_left]:
            place = min(left, key=lambda place: outlooks[place].expected)
            outlooks[place].add()
            yield place, _aggregated([outlook.bounds for outlook in outlooks], self._aggregation)


class _WholeJudgement:
    """All steps of a solution, judged in one call or not yet."""

    def __init__(self, rewarder: StepRewarder, problem: str, steps: tuple[str, ...], ledger: Ledger | None) -> None:
        self._rewarder = rewarder
        self._solution = Solution(id=digest_of(steps), problem=problem, steps=steps)
        self._ledger = ledger
        self._judging = asyncio.Lock()
        self.num_steps = len(steps)
        self.rewards: tuple[StepReward, ...] | None = None if steps else ()

    async def judge(self) -> None:
        async with self._judging:
            if self.rewards is None:
                self.rewards = (await self._rewarder.judge(self._solution, self._ledger)).steps


class _JudgedWhole:
    """A solution that one draw settles."""

    def __init__(self, judgement: _WholeJudgement, aggregation: Aggregation) -> None:
        self._judgement = judgement
        self._aggregation = aggregation

    @property
    def bounds(self) -> Bounds:
        if self._judgement.rewards is None:
            return None, 1.0
        rewards = {step.step_index: step.reward for step in self._judgement.rewards}
        value = aggregate([rewards.get(index) for index in range(self._judgement.num_steps)], self._aggregation)
        return value, value

    def outlook(self) -> Iterator[Bounds]:
        # Whatever is expected of it: every contender that could be the best has to be judged.
        return iter([(0.5, 0.5)] if self._judgement.rewards is None else [])

    def draw(self, num_draws: int) -> Coroutine[Any, Any, None]:
        return self._judgement.judge()


class _LastStep:
    """The last step of a solution that is judged whole."""

    def __init__(self, judgement: _WholeJudgement) -> None:
        self._judgement = judgement

    @property
    def bounds(self) -> Bounds:
        if self._judgement.rewards is None:
            return None, 1.0
        value = self.reward.reward if self.reward else None
        return value, value

    @property
    def reward(self) -> StepReward | None:
        index = self._judgement.num_steps - 1
        return next((step for step in self._judgement.rewards or () if step.step_index == index), None)


def _aggregated(bounds: Sequence[Bounds], how: Aggregation) -> Bounds:
    return aggregate([low for low, _ in bounds], how), aggregate([high for _, high in bounds], how)
