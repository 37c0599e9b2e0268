"""Each step is judged once, and no more is remembered than asked for."""

from __future__ import annotations

import asyncio

import pytest
from stated_judge import Judge, rounded

from rprm.errors import EngineError, InputError
from rprm.integrations.its_hub import ProcessReward
from rprm.integrations.search_and_learn import PRM
from rprm.integrations.step_memory import StepMemory


def rewards(memory: StepMemory, *solutions: list[str], last_only: bool = False) -> list[list[float | None]]:
    return rounded(asyncio.run(memory.rewards([("p", steps) for steps in solutions], last_only=last_only)))


def test_only_new_steps_are_judged(judge: Judge) -> None:
    memory = StepMemory(judge)
    assert rewards(memory, ["a 0.5"], ["b 0.6"], ["a 0.5"]) == [[0.5], [0.6], [0.5]]
    assert judge.num_judged == 2
    assert rewards(memory, ["a 0.5", "c 0.7"], ["b 0.6", "c 0.7"]) == [[0.5, 0.7], [0.6, 0.7]]
    assert judge.num_judged == 4  # equal steps after other steps are other steps
    assert rewards(memory, ["a 0.5", "c 0.7", "lost"], last_only=True) == [[None]]
    assert judge.num_judged == 5
    assert rewards(memory, ["a 0.5", "c 0.7", "lost"], []) == [[0.5, 0.7, None], []]
    assert judge.num_judged == 5


def test_what_is_asked_for_at_once_is_judged_once(judge: Judge) -> None:
    memory = StepMemory(judge)

    async def ask() -> None:
        asking = [asyncio.ensure_future(memory.rewards([("p", ["a 0.5", "b 0.75"])])) for _ in range(5)]
        await asyncio.sleep(0)
        asking[0].cancel()  # Who asked first goes away; the others still get theirs.
        found = await asyncio.gather(*asking, return_exceptions=True)
        assert isinstance(found[0], asyncio.CancelledError)
        assert [rounded(one) for one in found[1:]] == [[[0.5, 0.75]]] * 4

    asyncio.run(ask())
    assert judge.num_judged <= 2 + 2
    assert len(memory._locks) == 0
    before = judge.num_judged

    async def at_once() -> None:
        await asyncio.gather(*(memory.rewards([("q", ["a 0.5", "b 0.75"])]) for _ in range(5)))

    asyncio.run(at_once())
    assert judge.num_judged == before + 2


def test_another_problem_is_another_step(judge: Judge) -> None:
    memory = StepMemory(judge)
    asyncio.run(memory.rewards([("p", ["a 0.5"]), ("p a", ["0.5"]), ("p", ["a 0.5", "0.5"])]))
    assert judge.num_judged == 3


def test_it_is_bounded(judge: Judge) -> None:
    memory = StepMemory(judge, capacity=3)
    rewards(memory, *([f"a {number / 10}"] for number in range(5)))
    assert len(memory._rewards) == 3
    rewards(memory, ["a 0.4"])
    assert judge.num_judged == 5
    rewards(memory, ["a 0.0"])
    assert judge.num_judged == 6


def test_a_failure_leaves_nothing_behind(judge: Judge, monkeypatch: pytest.MonkeyPatch) -> None:
    cancelled = []

    async def fails(problem: str, steps: list[str]) -> None:
        try:
            await asyncio.sleep(0.01 if steps == ["a"] else 30)
        except asyncio.CancelledError:
            cancelled.append(steps)
            raise
        raise EngineError("gone")

    monkeypatch.setattr(judge, "score_step_async", fails)
    memory = StepMemory(judge)
    with pytest.raises(EngineError, match="gone"):
        rewards(memory, ["a"], ["b"])
    assert cancelled == [["b"]]
    assert not memory._rewards


def test_its_hub_wants_one_number_for_a_partial_answer(judge: Judge) -> None:
    growing = ["a 0.5", "a 0.5\n\nb 0.75", "a 0.5\n\nb 0.75\n\nlost"]
    last, mean = ProcessReward(judge), ProcessReward(judge, aggregation="mean", unscored=-1.0)
    assert rounded(last.score("p", growing)) == [0.5, 0.75, 0.0]
    assert rounded(mean.score("p", growing)) == [0.5, 0.625, -1.0]
    assert judge.num_judged == 3 + 3
    with pytest.raises(InputError, match="there is no aggregation 'sum'"):
        ProcessReward(judge, aggregation="sum")


def test_the_calls_of_search_and_learn(judge: Judge) -> None:
    """The calls of its best_of_n (all outputs of all problems) and beam_search (one growing text a beam)."""
    prm = PRM(judge)
    scores = prm.score(["p", "q"], [["a 0.5\n\nb 0.25", ""], ["c\n0.75", "lost"]])
    assert rounded(scores) == [[[0.5, 0.25], [0.0]], [[0.75], [0.0]]]
    assert judge.num_judged == 4
    scores = prm.score(["p", "q"], [["a 0.5\n\nb 0.25\n\n"], ["c\n0.75\n\nd 1.0"]])
    assert rounded(scores) == [[[0.5, 0.25]], [[0.75, 1.0]]]
    assert judge.num_judged == 5
