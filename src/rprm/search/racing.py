"""Racing: choosing the best of several solutions with few analyses, exactly as full evaluation would.

The reward of a solution is `aggregate` of its steps' rewards. Each solution's final value is known to lie in an
interval that an analysis narrows. Once the intervals tell the best apart from all the others, what is not drawn yet can
change nothing. A step's reward is a correctly rounded mean; the aggregate is the least of the rewards, the last, their
correctly rounded mean, or their product, rounded after each multiplication from the first to the last (`math.prod` of
floats). All of these are monotone in every reward, so that aggregates of bounds are bounds of the aggregate, to the
last bit.

Drawn from is the one of the best that is the least sure of its place; for a single best that is the contender with the
highest upper bound, which has to be confirmed or ruled out whatever the others come to. A wave of several draws is
planned as if each of them said what is expected of it, so that it spreads as one draw after the other would have.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
from collections import Counter
from collections.abc import Coroutine, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Literal, Protocol, get_args

from rprm.errors import RequestRefused
from rprm.jobs import all_or_none
from rprm.ledger import Ledger
from rprm.records import Analysis, Solution, StepReward
from rprm.rewarders.base import AnalysisSampler, StepRewarder
from rprm.stopping import mean, mean_bounds

#: How step rewards become the reward of a solution.
Aggregation = Literal["min", "last", "product", "mean"]
AGGREGATIONS: tuple[Aggregation, ...] = get_args(Aggregation)

#: The lowest and the highest that a final value can be. None stands below every number: no value.
Bounds = tuple[float | None, float | None]

#: The steps of a solution, whole or as far as it goes.
Steps = tuple[str, ...]

#: Draws at once where nothing else is said. Against one after the other, that is a third of the waves or less for 1% to
#: 21% more draws; 8 at once are a sixth of the waves for 3% to 44% more (`perf/best_of_n.py`).
WAVE = 4


def aggregate(rewards: Sequence[float | None], how: Aggregation) -> float | None:
    """The reward of a solution, or None where it has none: no steps, or one that it depends on is unscored.

    "last" depends on the last step alone, the others on all. Each is monotone in every step's reward.
    """
    if not rewards:
        return None
    if how == "last":
        return rewards[-1]
    scored = [reward for reward in rewards if reward is not None]
    if len(scored) < len(rewards):
        return None
    if how == "min":
        return min(scored)
    return math.prod(scored) if how == "product" else mean(scored)


class Contender(Protocol):
    """One of several things of which the best is wanted."""

    @property
    def bounds(self) -> Bounds:
        """Of its final value."""
        ...

    def outlook(self) -> Iterator[Bounds]:
        """The bounds after one more draw, after two, ..., where each says what is expected of it.

        It ends where nothing is left to draw; both bounds are the final value then.
        """
        ...

    def draw(self, num_draws: int) -> Coroutine[Any, Any, None]:
        """Make the next so many draws. What is drawn is decided at the call, before anything is awaited."""
        ...


async def race(contenders: Sequence[Contender], num_wanted: int = 1, *, wave: int = WAVE) -> list[int]:
    """Draw until the best are certain.

    The order is that of the final values, of equal ones that of the places. What is drawn does not depend on how long
    draws take.

    Args:
        contenders: the same one may stand at several places.
        num_wanted: how many.
        wave: most draws to make at once; more of them are fewer waves, and more draws in all.

    Returns:
        Indices of the best, ascending; all of them where there are not more than wanted.
    """
    while draws := _next_wave(contenders, num_wanted, wave):
        await all_or_none(contenders[index].draw(num_draws) for index, num_draws in sorted(draws.items()))
    return sorted(_ranked([contender.bounds for contender in contenders])[:num_wanted])


def is_settled(contender: Contender) -> bool:
    """Whether nothing is left to draw: its bounds are its final value."""
    return next(contender.outlook(), None) is None


async def settle(contender: Contender) -> None:
    """Draw all that is left of one contender."""
    await contender.draw(sum(1 for _ in contender.outlook()))


def _next_wave(contenders: Sequence[Contender], num_wanted: int, wave: int) -> Counter[int]:
    """How often to draw from which contender; nothing once the best are certain."""
    first_place = {id(contender): place for place, contender in reversed(list(enumerate(contenders)))}
    same = [first_place[id(contender)] for contender in contenders]
    known = [contender.bounds for contender in contenders]
    outlooks = [contender.outlook() for contender in contenders]
    draws: Counter[int] = Counter()
    while draws.total() < wave:
        bounds = [known[place] for place in same]
        ranked = _ranked(bounds)
        best, others = ranked[:num_wanted], ranked[num_wanted:]
        unsure = [
            (one, other)
            for one in best
            for other in others
            if not _is_above(one, other, bounds) and not (same[one] == same[other] and one < other)
        ]
        if not unsure:
            break
        leader, challenger = min(unsure, key=lambda pair: (_key(bounds[pair[0]][0]), -pair[0]))
        place = same[leader]
        expected = next(outlooks[place], None)
        if expected is None:
            # The leader's value is known: what it is not above yet has something left to draw.
            place = same[challenger]
            expected = next(outlooks[place])
        known[place] = expected
        draws[place] += 1
    return draws


def _ranked(bounds: Sequence[Bounds]) -> list[int]:
    """Places by upper bound. Those that are surely the best stand first."""
    return sorted(range(len(bounds)), key=lambda index: (-_key(bounds[index][1]), index))


def _is_above(one: int, other: int, bounds: Sequence[Bounds]) -> bool:
    """Whether `one` ends above `other` whatever is still to be drawn."""
    low, high = _key(bounds[one][0]), _key(bounds[other][1])
    return low > high or (low == high and one < other)


def _key(value: float | None) -> float:
    return -math.inf if value is None else value


class StepScores:
    """What is known of the steps of one problem's solutions.

    Solutions that begin alike share these steps: each is analysed once. The rewarder's own early stopping plays no
    part. Two races that may meet at a step are to be run one after the other: what each draws depends on what it finds
    drawn.

    Args:
        rewarder: an `AnalysisSampler` is asked for single analyses. Any other judges a solution whole, in one draw.
        problem: the problem's text.
        ledger: of the problem.
    """

    def __init__(self, rewarder: StepRewarder, problem: str, ledger: Ledger | None = None) -> None:
        self._rewarder = rewarder
        self._problem = problem
        self._ledger = ledger
        self._steps: dict[Steps, _AnalysedStep] = {}
        self._contenders: dict[tuple[Steps, Aggregation], Contender] = {}
        #: Rewards of the solutions that were judged whole.
        self.judged: dict[Steps, tuple[StepReward, ...]] = {(): ()}

    @property
    def num_analyses(self) -> int | None:
        """K; None where the rewarder writes no analyses."""
        return self._rewarder.rule.num_analyses if isinstance(self._rewarder, AnalysisSampler) else None

    def solution(self, steps: Sequence[str], aggregation: Aggregation) -> Contender:
        """A solution, whole or as far as it goes. Equal ones are the same contender."""
        steps = tuple(steps)
        if (found := self._contenders.get((steps, aggregation))) is None:
            if isinstance(self._rewarder, AnalysisSampler):
                first = max(len(steps) - 1, 0) if aggregation == "last" else 0
                needed = [self._step(self._rewarder, steps[: end + 1]) for end in range(first, len(steps))]
                found = _AnalysedSolution(needed, aggregation)
            else:
                found = _JudgedWhole(self, steps, aggregation)
            self._contenders[steps, aggregation] = found
        return found

    def reward(self, steps: Sequence[str]) -> StepReward | None:
        """Of the last of these steps, from what is known so far; None where nothing is."""
        steps = tuple(steps)
        if isinstance(self._rewarder, AnalysisSampler):
            return self._step(self._rewarder, steps).reward
        return next((step for step in self.judged.get(steps, ()) if step.step_index == len(steps) - 1), None)

    def rewards(self, steps: Sequence[str]) -> tuple[StepReward, ...]:
        """Of those steps of a solution that were judged, each as far as it was."""
        steps = tuple(steps)
        if not isinstance(self._rewarder, AnalysisSampler):
            return self.judged.get(steps, ())
        known = (self.reward(steps[: end + 1]) for end in range(len(steps)))
        return tuple(reward for reward in known if reward is not None)

    async def judge_in_full(self, steps: Sequence[str]) -> None:
        """Judge every step of a solution as far as it goes."""
        steps = tuple(steps)
        if isinstance(judge := self._rewarder, AnalysisSampler):
            ends = range(len(steps))
            await all_or_none(self._step(judge, steps[: end + 1]).reach(judge.rule.num_analyses) for end in ends)
        elif steps not in self.judged:
            solution = Solution(id=digest_of(steps), problem=self._problem, steps=steps)
            self.judged[steps] = (await judge.judge(solution, self._scoped(steps))).steps

    def _step(self, judge: AnalysisSampler, steps: Steps) -> _AnalysedStep:
        if steps not in self._steps:
            self._steps[steps] = _AnalysedStep(judge, self._problem, steps, self._scoped(steps))
        return self._steps[steps]

    def _scoped(self, steps: Steps) -> Ledger | None:
        return self._ledger and self._ledger.scoped(digest_of(steps))


@dataclass(frozen=True, eq=False)
class _JudgedWhole:
    """A solution that one draw settles."""

    scores: StepScores
    steps: Steps
    aggregation: Aggregation

    @property
    def bounds(self) -> Bounds:
        if self.steps not in self.scores.judged:
            return None, 1.0
        rewards = {step.step_index: step.reward for step in self.scores.judged[self.steps]}
        value = aggregate([rewards.get(index) for index in range(len(self.steps))], self.aggregation)
        return value, value

    def outlook(self) -> Iterator[Bounds]:
        # Whatever is expected of it: every contender that could be the best has to be judged.
        return iter([] if self.steps in self.scores.judged else [(0.5, 0.5)])

    def draw(self, num_draws: int) -> Coroutine[Any, Any, None]:
        return self.scores.judge_in_full(self.steps)


@dataclass(eq=False)
class _AnalysedStep:
    """The last of `steps`, with the analyses drawn so far."""

    judge: AnalysisSampler
    problem: str
    steps: Steps
    ledger: Ledger | None
    analyses: list[Analysis] = field(default_factory=list)
    bounds: Bounds = (None, 1.0)
    failure: str | None = None
    #: What two contenders ask for at once is drawn once.
    drawing: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def reward(self) -> StepReward | None:
        index = len(self.steps) - 1
        if self.failure is not None:
            return self.judge.unscored(index, self.failure)
        return self.judge.reward(index, self.analyses) if self.analyses else None

    def outlook(self) -> _Outlook:
        values = [analysis.p_yes for analysis in self.analyses if analysis.p_yes is not None]
        num_left = 0 if self.failure else self.judge.rule.num_analyses - len(self.analyses)
        return _Outlook(sum(values), len(values), num_left, self.bounds)

    async def reach(self, num_analyses: int) -> None:
        """Draw until there are so many analyses."""
        async with self.drawing:
            missing = range(len(self.analyses), num_analyses)
            if not missing or self.failure is not None:
                return
            try:
                index = len(self.steps) - 1
                self.analyses += await self.judge.analyse(self.problem, self.steps, index, missing, self.ledger)
            except RequestRefused as error:
                self.analyses.clear()
                self.failure = str(error)
                self.bounds = None, None
            else:
                p_yes = [analysis.p_yes for analysis in self.analyses]
                self.bounds = mean_bounds(p_yes, self.judge.rule.num_analyses)


@dataclass
class _Outlook:
    """A step, with analyses added that say what is expected of them: the mean, from a uniform prior."""

    total: float
    num_values: int
    num_left: int
    bounds: Bounds

    @property
    def expected(self) -> float:
        return (self.total + 1.0) / (self.num_values + 2.0)

    def add(self) -> None:
        self.total += self.expected
        self.num_values += 1
        self.num_left -= 1
        most = self.num_values + self.num_left
        self.bounds = self.total / most, (self.total + self.num_left) / most


@dataclass(frozen=True, eq=False)
class _AnalysedSolution:
    """A solution whose steps are analysed one at a time: next always the one that promises the lowest reward.

    That rules a weak solution out soonest, and a strong one needs all its steps in any case.
    """

    steps: Sequence[_AnalysedStep]
    aggregation: Aggregation

    @property
    def bounds(self) -> Bounds:
        return self._aggregated(self.steps)

    def outlook(self) -> Iterator[Bounds]:
        return (bounds for _, bounds in self._next_draws())

    def draw(self, num_draws: int) -> Coroutine[Any, Any, None]:
        counts = Counter(place for place, _ in islice(self._next_draws(), num_draws))
        wanted = [(self.steps[place], len(self.steps[place].analyses) + count) for place, count in counts.items()]

        async def reach() -> None:
            await all_or_none(step.reach(num_analyses) for step, num_analyses in wanted)

        return reach()

    def _next_draws(self) -> Iterator[tuple[int, Bounds]]:
        """The step of each draw to come, and the solution's bounds after it."""
        outlooks = [step.outlook() for step in self.steps]
        while left := [place for place, outlook in enumerate(outlooks) if outlook.num_left]:
            place = min(left, key=lambda place: outlooks[place].expected)
            outlooks[place].add()
            yield place, self._aggregated(outlooks)

    def _aggregated(self, steps: Sequence[_AnalysedStep] | Sequence[_Outlook]) -> Bounds:
        lows, highs = [step.bounds[0] for step in steps], [step.bounds[1] for step in steps]
        return aggregate(lows, self.aggregation), aggregate(highs, self.aggregation)


def digest_of(texts: Iterable[str]) -> str:
    """A short hash of texts in their order: of steps, of solutions."""
    digest = hashlib.blake2b(digest_size=12)
    for text in texts:
        data = text.encode(errors="surrogatepass")
        digest.update(len(data).to_bytes(8) + data)
    return digest.hexdigest()
