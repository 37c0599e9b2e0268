"""Races: the choice is that of full evaluation, and no more is drawn than it takes."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rprm.aggregation import AGGREGATIONS, Aggregation, aggregate, mean
from rprm.engines import Sampling
from rprm.engines.scripted import ScriptedEngine
from rprm.errors import EngineUnavailable, RequestRefused
from rprm.ledger import Ledger
from rprm.prompts import load_template
from rprm.records import Analysis
from rprm.rewarders.rprm import Judge
from rprm.search.racing import Bounds, StepScores, race, settle
from rprm.stopping import StoppingRule, mean_bounds

#: What the analyses of one step say, K of them.
Stream = Sequence[float | None]


def analysis(p_yes: float | None) -> Analysis:
    return Analysis(
        text="",
        verdict=None if p_yes is None else p_yes >= 0.5,
        p_yes=p_yes,
        p_yes_source=None if p_yes is None else "logprobs",
        num_tokens=1,
        finish_reason="stop",
    )


class StreamJudge(Judge):
    """A judge whose analyses are given: of each step, known by the texts up to it, a stream. `"refused"` refuses it."""

    def __init__(self, num_analyses: int, streams: dict[tuple[str, ...], Stream | str], pace: int = 1) -> None:
        super().__init__(
            ScriptedEngine(), load_template(), StoppingRule(num_analyses, stopping="none"), Sampling(temperature=1.0)
        )
        self.streams = streams
        self.pace = pace
        self.drawn: Counter[tuple[str, ...]] = Counter()

    async def analyse(
        self, problem: str, steps: Sequence[str], step_index: int, samples: range, ledger: Ledger | None = None
    ) -> list[Analysis]:
        prefix = tuple(steps[: step_index + 1])
        stream = self.streams[prefix]
        # Some take longer than others, and others with another pace.
        for _ in range(self.pace * len(self.drawn) % 5):
            await asyncio.sleep(0)
        if isinstance(stream, str):
            raise RequestRefused("too long")
        self.drawn[prefix] += len(samples)
        return [analysis(stream[sample]) for sample in samples]


def solutions_of(values: Sequence[Sequence[Stream | str]]) -> tuple[list[tuple[str, ...]], dict[Any, Stream | str]]:
    """Solutions with steps of their own, and the streams of these."""
    solutions = [tuple(f"{number}.{index}" for index in range(len(steps))) for number, steps in enumerate(values)]
    streams = {
        solution[: index + 1]: stream
        for solution, steps in zip(solutions, values, strict=True)
        for index, stream in enumerate(steps)
    }
    return solutions, streams


def full_value(steps: Sequence[Stream | str], how: Aggregation) -> float | None:
    rewards = [None if isinstance(stream, str) else mean([p for p in stream if p is not None]) for stream in steps]
    return aggregate(rewards, how)


def full_choice(values: Sequence[Sequence[Stream | str]], how: Aggregation, num_wanted: int) -> list[int]:
    found = [full_value(steps, how) for steps in values]
    order = sorted(range(len(found)), key=lambda index: (-math.inf if found[index] is None else found[index], -index))
    return sorted(order[::-1][:num_wanted])


def run(
    values: Sequence[Sequence[Stream | str]],
    how: Aggregation,
    num_analyses: int,
    num_wanted: int = 1,
    wave: int = 8,
    pace: int = 1,
) -> tuple[list[int], StreamJudge]:
    solutions, streams = solutions_of(values)
    judge = StreamJudge(num_analyses, streams, pace)
    scores = StepScores(judge, "A problem")

    async def main() -> list[int]:
        return await race([scores.solution(steps, how) for steps in solutions], num_wanted, wave=wave)

    return asyncio.run(main()), judge


#: Values that tie often, values at the edges, and any.
P_YES = st.one_of(
    st.none(),
    st.sampled_from([0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0, 5e-324, 1.0 - 2**-53]),
    st.floats(0.0, 1.0),
)


@st.composite
def races(draw: st.DrawFn) -> tuple[list[list[Stream | str]], int]:
    num_analyses = draw(st.integers(1, 12))
    stream = st.lists(P_YES, min_size=num_analyses, max_size=num_analyses)
    steps = st.lists(st.one_of(stream, stream, stream, stream, st.just("refused")), max_size=4)
    return draw(st.lists(steps, min_size=1, max_size=6)), num_analyses


@pytest.mark.slow
@settings(max_examples=600, deadline=None)
@given(races(), st.sampled_from(AGGREGATIONS), st.integers(1, 3), st.sampled_from([1, 2, 8, 40]))
def test_the_choice_is_that_of_full_evaluation(
    drawn: tuple[list[list[Stream | str]], int], how: Aggregation, num_wanted: int, wave: int
) -> None:
    values, num_analyses = drawn
    chosen, judge = run(values, how, num_analyses, num_wanted, wave)
    assert chosen == full_choice(values, how, num_wanted)
    # No step is drawn more often than in full, and under "last" none but the last.
    needed = {
        tuple(f"{number}.{index}" for index in range(length))
        for number, steps in enumerate(values)
        for length in range(len(steps) if how == "last" else 1, len(steps) + 1)
    }
    assert set(judge.drawn) <= needed
    assert max(judge.drawn.values(), default=0) <= num_analyses
    if len(values) <= num_wanted:
        assert not judge.drawn
    # At another pace, the very same draws.
    assert run(values, how, num_analyses, num_wanted, wave, pace=3)[1].drawn == judge.drawn


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 12), st.data())
def test_bounds_hold_whatever_is_still_to_come(num_analyses: int, data: st.DataObject) -> None:
    stream = data.draw(st.lists(P_YES, min_size=num_analyses, max_size=num_analyses))
    reward = mean([p for p in stream if p is not None])
    for count in range(num_analyses + 1):
        low, high = mean_bounds(stream[:count], num_analyses)
        if reward is None:
            assert low is None
        else:
            assert low is None or low <= reward
            assert high is not None
            assert reward <= high
    assert mean_bounds(stream, num_analyses) == (reward, reward)


def test_bounds_of_a_mean() -> None:
    assert mean_bounds([], 4) == (None, 1.0)
    # 0.5 and three more: 0.5 / 4 to 3.5 / 4.
    assert mean_bounds([0.5], 4) == (0.125, 0.875)
    # The lost one counts no longer: 0.5 / 3 to 2.5 / 3.
    assert mean_bounds([0.5, None], 4) == (0.5 / 3, 2.5 / 3)
    assert mean_bounds([None, None], 4) == (None, 1.0)
    assert mean_bounds([None, None], 2) == (None, None)
    assert mean_bounds([0.25, 0.75], 2) == (0.5, 0.5)


def test_what_is_drawn() -> None:
    """One draw after the other, always of the one that could be the highest, of equal ones the first.

    The first says 0.9: at most (0.9 + 3) / 4 = 0.975. So the second is drawn: it says 0, at most 3/4. The first has to
    be shown to have that much: three analyses of a step are 2.7 / 4, four are 3.6 / 4.
    """
    weak, strong = [0.0] * 4, [0.9] * 4
    _, judge = run([[strong, strong], [weak, strong]], "min", 4, wave=1)
    assert {prefix[-1]: count for prefix, count in judge.drawn.items()} == {"0.0": 4, "0.1": 4, "1.0": 1}
    # Here the first steps play no part.
    _, judge = run([[weak, strong], [strong, weak]], "last", 4, wave=1)
    assert {prefix[-1]: count for prefix, count in judge.drawn.items()} == {"0.1": 4, "1.1": 1}


def test_ties_go_to_the_first() -> None:
    for how in AGGREGATIONS:
        assert run([[[0.3]], [[0.7], [0.7]][:1], [[0.7]]], how, 1)[0] == [1]
        assert run([[[0.7]], [[0.7]], [[0.7]]], how, 1, num_wanted=2)[0] == [0, 1]


def test_without_any_reward_the_first_is_taken() -> None:
    assert run([[[None] * 3], [[None] * 3]], "min", 3)[0] == [0]
    # A solution without steps has none; one refused step costs the solution its reward.
    assert run([[], ["refused", [1.0]], [[0.1]]], "product", 1)[0] == [2]
    assert run([[], ["refused"], []], "mean", 1)[0] == [0]


def test_what_needs_no_choice_costs_nothing() -> None:
    assert run([[[0.0] * 9]], "min", 9)[1].drawn.total() == 0
    assert run([[[0.0] * 9], [[1.0] * 9]], "min", 9, num_wanted=2)[1].drawn.total() == 0
    assert asyncio.run(race([])) == []


def test_equal_solutions_are_drawn_once_and_do_not_compete() -> None:
    streams: dict[tuple[str, ...], Stream | str] = {("same",): [0.6] * 10, ("other",): [0.2] * 10}

    def drawn(solutions: list[str]) -> tuple[list[int], int]:
        judge = StreamJudge(10, streams)
        scores = StepScores(judge, "A problem")
        chosen = asyncio.run(race([scores.solution((solution,), "min") for solution in solutions]))
        return chosen, judge.drawn.total()

    assert drawn(["same", "same", "same"]) == ([0], 0)
    assert drawn(["other", "same", "same"])[0] == [1]
    assert drawn(["other", "same", "same", "other"])[1] == drawn(["other", "same"])[1]


def test_steps_in_common_are_drawn_once() -> None:
    streams: dict[tuple[str, ...], Stream | str] = {
        ("first",): [0.9] * 4,
        ("first", "a"): [0.8] * 4,
        ("first", "b"): [0.8] * 4,
        # The same text after another step is another step.
        ("other",): [0.9] * 4,
        ("other", "a"): [0.1] * 4,
    }
    judge = StreamJudge(4, streams)
    scores = StepScores(judge, "A problem")

    async def main() -> None:
        solutions = [("first", "a"), ("first", "b"), ("other", "a")]
        await asyncio.gather(*(settle(scores.solution(steps, "min")) for steps in solutions))
        assert [scores.solution(steps, "min").bounds[0] for steps in solutions] == [0.8, 0.8, 0.1]

    asyncio.run(main())
    assert judge.drawn == dict.fromkeys(streams, 4)


def test_a_larger_wave_makes_fewer_waves() -> None:
    class Waves:
        """A contender that counts how often it is asked."""

        def __init__(self, values: list[float]) -> None:
            self.values = values
            self.num_drawn = self.num_asked = 0

        @property
        def bounds(self) -> Bounds:
            left = len(self.values) - self.num_drawn
            total = math.fsum(self.values[: self.num_drawn])
            return total / len(self.values), (total + left) / len(self.values)

        def outlook(self) -> Iterator[Bounds]:
            low, high = self.bounds
            for _ in range(len(self.values) - self.num_drawn):
                low, high = low + 0.5 / len(self.values), high - 0.5 / len(self.values)
                yield low, high

        async def draw(self, num_draws: int) -> None:
            self.num_asked += 1
            self.num_drawn += num_draws

    def cost(wave: int) -> tuple[list[int], int, int]:
        contenders = [Waves([1.0, 0.0] * 6), Waves([1.0, 1.0, 0.0] * 4), Waves([0.0] * 12)]
        chosen = asyncio.run(race(contenders, wave=wave))
        return chosen, sum(one.num_asked for one in contenders), sum(one.num_drawn for one in contenders)

    one, many = cost(1), cost(12)
    assert one[0] == many[0] == [1]
    assert one[1] == one[2] > many[1]
    assert one[2] <= many[2] <= 36


def test_a_failing_engine_ends_the_race() -> None:
    class Gone(StreamJudge):
        async def analyse(self, *arguments: Any) -> list[Analysis]:
            raise EngineUnavailable("gone")

    scores = StepScores(Gone(2, {}), "A problem")
    with pytest.raises(EngineUnavailable, match="gone"):
        asyncio.run(race([scores.solution((text,), "min") for text in "ab"]))


def test_a_product_is_rounded_in_the_order_of_its_factors() -> None:
    """`math.prod` is a chain of rounded multiplications from first to last, each monotone in both factors."""
    factors = [0.1, 0.7, 0.3, 0.9, 1 / 3, 0.99]
    chain = 1.0
    for factor in factors:
        chain = chain * factor
    assert aggregate(factors, "product") == chain


def test_known_steps() -> None:
    streams: dict[tuple[str, ...], Stream | str] = {("a",): [0.5, None], ("a", "b"): "refused"}
    scores = StepScores(StreamJudge(2, streams), "A problem")
    assert (scores.solution(("a",), "last").bounds, scores.reward(("a",))) == ((None, 1.0), None)
    asyncio.run(scores.judge_in_full(("a", "b")))
    first, second = scores.rewards(("a", "b"))
    assert (first.reward, first.step_index, first.num_without_verdict) == (0.5, 0, 1)
    assert (second.reward, second.step_index, second.failure) == (None, 1, "too long")
    assert (scores.reward(("a", "b")), scores.solution(("a", "b"), "last").bounds) == (second, (None, None))
    assert not list(scores.solution(("a", "b"), "min").outlook())
    assert scores.num_analyses == 2
