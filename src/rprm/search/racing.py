"""Racing: choosing the best of several solutions with few analyses, exactly as full evaluation would.

Every aggregation is monotone in each step's reward, in floating point too (a product is a chain of rounded
multiplications in a fixed order), so that aggregates of bounds are bounds of the aggregate, to the last bit."""

from __future__ import annotations

import asyncio
import hashlib
import math
from collections import Counter
from collections.abc import Coroutine, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol

from rprm.aggregation import Aggregation, aggregate
from rprm.errors import RequestRefused
from rprm.jobs import all_or_none
from rprm.ledger import Ledger
from rprm.records import Analysis, Solution, StepReward
from rprm.rewarders.base import AnalysisSampler, StepRewarder
from rprm.stopping import mean_bounds

#: The lowest and the highest that a final value can be. None stands below every number: no value.
Bounds = tuple[float | None, float | None]

#: The steps of a solution, whole or as far as it goes.
Steps = tuple[str, ...]

#: Draws at once where nothing else is said. Against one after the other, that is a third of the waves or less for 1% to
#: 21% more draws (`perf/best_of_n.py`).
WAVE = 4


def all_rewards(steps: Steps, judged: Iterable[StepReward]) -> list[float | None]:
    """The rewards of all steps of a solution, None for those that were not judged."""
    known = {step.step_index: step.reward for step in judged}
    return [known.get(index) for index in range(len(steps))]


class Contender(Protocol):
    """One of several things of which the best is wanted, with bounds of its final value. `outlook` has those after one
    more draw, after two, ..., where each says what is expected of it; it ends where nothing is left to draw. `draw`
    makes the next so many draws, which are decided at the call, before any is awaited."""

    @property
    def bounds(self) -> Bounds: ...

    def outlook(self) -> Iterator[Bounds]: ...

    def draw(self, num_draws: int) -> Coroutine[Any, Any, Any]: ...


async def race(contenders: Sequence[Contender], num_wanted: int = 1, *, wave: int = WAVE) -> list[int]:
    """Draw until the best are certain, by final value, of equal ones the first; returns their indices, ascending.

    What is drawn does not depend on how long draws take, but on `wave`, the most draws to make at once: more of them
    are fewer waves, and more draws in all. Equal contenders may stand at several places."""
    while draws := _next_wave(contenders, num_wanted, wave):
        await all_or_none(contenders[index].draw(num_draws) for index, num_draws in sorted(draws.items()))
    return sorted(_ranked([_key(contender.bounds[1]) for contender in contenders])[:num_wanted])


async def settle(contender: Contender) -> None:
    """Draw all that is left of one contender."""
    await contender.draw(sum(1 for _ in contender.outlook()))


def _next_wave(contenders: Sequence[Contender], num_wanted: int, wave: int) -> Counter[int]:
    """How often to draw from which contender; nothing once the best are certain."""
    # Drawn from is the one of the best that is the least sure of its place, as if earlier draws said what is expected.
    places: dict[Contender, int] = {}
    same = [places.setdefault(contender, place) for place, contender in enumerate(contenders)]
    known = [contender.bounds for contender in contenders]
    outlooks = [contender.outlook() for contender in contenders]
    draws: Counter[int] = Counter()
    while draws.total() < wave:
        lows, highs = ([_key(known[place][end]) for place in same] for end in (0, 1))
        ranked = _ranked(highs)
        unsure = [
            (one, other)
            for one in ranked[:num_wanted]
            for other in ranked[num_wanted:]
            # `one` may not end above `other`: of equal values the first place wins.
            if (lows[one], -one) < (highs[other], -other) and not (same[one] == same[other] and one < other)
        ]
        if not unsure:
            break
        leader, challenger = min(unsure, key=lambda pair: (lows[pair[0]], -pair[0]))
        # Where the leader's value is known, what it is not above yet has something left to draw.
        for place in (same[leader], same[challenger]):
            if (expected := next(outlooks[place], None)) is not None:
                known[place] = expected
                draws[place] += 1
                break
    return draws


def _ranked(highs: Sequence[float]) -> list[int]:
    """Places by upper bound. Those that are surely the best stand first."""
    return sorted(range(len(highs)), key=lambda place: -highs[place])


def _key(value: float | None) -> float:
    return -math.inf if value is None else value


class StepScores:
    """What is known of the steps of one problem's solutions; those that begin alike share these steps. An
    `AnalysisSampler` is asked for single analyses, any other rewarder judges a solution whole, in one draw (`judged`).
    Two races that may meet at a step run one after the other: what each draws depends on what it finds drawn."""

    def __init__(self, rewarder: StepRewarder, problem: str, ledger: Ledger | None = None) -> None:
        self._rewarder, self._problem, self._ledger = rewarder, problem, ledger
        self._sampler = rewarder if isinstance(rewarder, AnalysisSampler) else None
        #: K; None where the rewarder writes no analyses.
        self.num_analyses = None if self._sampler is None else self._sampler.rule.num_analyses
        self._steps: dict[Steps, _AnalysedStep] = {}
        self.judged: dict[Steps, tuple[StepReward, ...]] = {(): ()}

    def solution(self, steps: Steps, aggregation: Aggregation) -> Contender:
        """A solution, whole or as far as it goes. Equal ones are equal contenders."""
        if (analysed := self._analysed(steps)) is None:
            return _JudgedWhole(self, steps, aggregation)
        return _AnalysedSolution(tuple(analysed[-1:] if aggregation == "last" else analysed), aggregation)

    def rewards(self, steps: Steps) -> tuple[StepReward, ...]:
        """Of those steps of a solution that were judged, each as far as it was."""
        if (analysed := self._analysed(steps)) is None:
            return self.judged.get(steps, ())
        return tuple(reward for step in analysed if (reward := step.reward) is not None)

    def reward(self, steps: Steps) -> StepReward | None:
        """Of the last of these steps, from what is known so far; None where nothing is."""
        if (analysed := self._analysed(steps)) is not None:
            return analysed[-1].reward
        return next((step for step in self.judged.get(steps, ()) if step.step_index == len(steps) - 1), None)

    async def judge_in_full(self, steps: Steps) -> None:
        """Judge every step of a solution as far as it goes."""
        if (analysed := self._analysed(steps)) is not None:
            await all_or_none(step.reach(step.judge.rule.num_analyses) for step in analysed)
        elif steps not in self.judged:
            solution = Solution(id=digest_of(steps), problem=self._problem, steps=steps)
            self.judged[steps] = (await self._rewarder.judge(solution, self._scoped(steps))).steps

    def _analysed(self, steps: Steps) -> list[_AnalysedStep] | None:
        """The steps one by one; None where the rewarder judges solutions whole."""
        if self._sampler is None:
            return None
        path = [steps[: end + 1] for end in range(len(steps))]
        for known in path:
            if known not in self._steps:
                self._steps[known] = _AnalysedStep(self._sampler, self._problem, known, self._scoped(known))
        return [self._steps[known] for known in path]

    def _scoped(self, steps: Steps) -> Ledger | None:
        return self._ledger and self._ledger.scoped(digest_of(steps))


@dataclass(frozen=True)
class _JudgedWhole:
    """A solution that one draw settles: every one that could be the best has to be judged."""

    scores: StepScores
    steps: Steps
    aggregation: Aggregation

    @property
    def bounds(self) -> Bounds:
        if self.steps not in self.scores.judged:
            return None, 1.0
        value = aggregate(all_rewards(self.steps, self.scores.judged[self.steps]), self.aggregation)
        return value, value

    def outlook(self) -> Iterator[Bounds]:
        return iter([] if self.steps in self.scores.judged else [(0.5, 0.5)])

    def draw(self, num_draws: int) -> Coroutine[Any, Any, None]:
        return self.scores.judge_in_full(self.steps)


class _AnalysedStep:
    """The last of `steps`, with the analyses drawn so far."""

    def __init__(self, judge: AnalysisSampler, problem: str, steps: Steps, ledger: Ledger | None) -> None:
        self.judge, self.problem, self.steps, self.ledger = judge, problem, steps, ledger
        self.analyses: list[Analysis] = []
        self.bounds: Bounds = (None, 1.0)
        self.failure: str | None = None
        #: What two contenders ask for at once is drawn once.
        self.drawing = asyncio.Lock()

    @property
    def reward(self) -> StepReward | None:
        if self.failure is not None:
            return self.judge.reward(len(self.steps) - 1, (), self.failure)
        return self.judge.reward(len(self.steps) - 1, self.analyses) if self.analyses else None

    async def reach(self, num_analyses: int) -> None:
        """Draw until there are so many analyses."""
        async with self.drawing:
            place, missing = len(self.steps) - 1, range(len(self.analyses), num_analyses)
            if not missing or self.failure is not None:
                return
            try:
                self.analyses += await self.judge.analyse(self.problem, self.steps, place, missing, self.ledger)
                p_yes = [analysis.p_yes for analysis in self.analyses]
                self.bounds = mean_bounds(p_yes, self.judge.rule.num_analyses)
            except RequestRefused as error:
                self.analyses.clear()
                self.failure, self.bounds = str(error), (None, None)


class _Outlook:
    """A step, with analyses added that say what is expected of them: the mean, from a uniform prior."""

    def __init__(self, step: _AnalysedStep) -> None:
        values = [analysis.p_yes for analysis in step.analyses if analysis.p_yes is not None]
        self.total, self.num_values = sum(values), len(values)
        self.num_left = 0 if step.failure else step.judge.rule.num_analyses - len(step.analyses)
        self.bounds = step.bounds

    @property
    def expected(self) -> float:
        return (self.total + 1.0) / (self.num_values + 2.0)

    def add(self) -> None:
        self.total += self.expected
        self.num_values += 1
        self.num_left -= 1
        most = self.num_values + self.num_left
        self.bounds = self.total / most, (self.total + self.num_left) / most


@dataclass(frozen=True)
class _AnalysedSolution:
    """A solution whose steps are analysed one at a time, next always the one that promises the lowest reward:
    that rules a weak solution out soonest, and a strong one needs all its steps in any case."""

    steps: tuple[_AnalysedStep, ...]
    aggregation: Aggregation

    @property
    def bounds(self) -> Bounds:
        return self._aggregated(self.steps)

    def outlook(self) -> Iterator[Bounds]:
        return (bounds for _, bounds in self._next_draws())

    def draw(self, num_draws: int) -> Coroutine[Any, Any, Any]:
        counts = Counter(step for step, _ in islice(self._next_draws(), num_draws))
        wanted = [(step, len(step.analyses) + count) for step, count in counts.items()]
        return all_or_none(step.reach(num_analyses) for step, num_analyses in wanted)

    def _next_draws(self) -> Iterator[tuple[_AnalysedStep, Bounds]]:
        """The step of each draw to come, and the solution's bounds after it."""
        outlooks = [_Outlook(step) for step in self.steps]
        while left := [place for place, outlook in enumerate(outlooks) if outlook.num_left]:
            place = min(left, key=lambda place: outlooks[place].expected)
            outlooks[place].add()
            yield self.steps[place], self._aggregated(outlooks)

    def _aggregated(self, steps: Sequence[_AnalysedStep] | Sequence[_Outlook]) -> Bounds:
        low, high = (aggregate([step.bounds[end] for step in steps], self.aggregation) for end in (0, 1))
        return low, high


def digest_of(texts: Iterable[str]) -> str:
    """A short hash of texts in their order: of steps, of solutions."""
    digest = hashlib.blake2b(digest_size=12)
    for text in texts:
        data = text.encode(errors="surrogatepass")
        digest.update(len(data).to_bytes(8) + data)
    return digest.hexdigest()
