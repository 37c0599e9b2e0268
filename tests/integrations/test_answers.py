"""Answers of other libraries and their rewards."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
from stated_judge import Judge, rounded

from rprm.api import RPRM
from rprm.errors import InputError, RprmError
from rprm.integrations.answers import (
    answer_of,
    blocking,
    checked_form,
    filled,
    judged,
    loaded,
    problem_of,
    rewarder_of,
    steps_of,
    text_of,
    value_of,
)
from rprm.integrations.its_hub import ProcessReward
from rprm.integrations.trl import RewardFunction
from rprm.rewarders import load_rewarder

ANSWER = "First 0.75\n\nSecond 0.5\n\nThird 0.25\n\nFourth 1.0"


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def assistant(content: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content}


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("a", "a"),
        (None, ""),
        ([{"type": "text", "text": "a"}, {"type": "image_url"}, {"type": "text", "text": "b"}], "a\nb"),
        ([SimpleNamespace(type="reasoning", text="x"), SimpleNamespace(type="text", text="a")], "a"),
    ],
)
def test_the_text_of_a_message(content: Any, text: str) -> None:
    assert text_of(content) == text


def test_the_problem_is_the_last_user_message() -> None:
    assert problem_of("2 + 2?") == "2 + 2?"
    shots = [{"role": "system", "content": "Think."}, user("1 + 1?"), assistant("2"), user("2 + 2?")]
    assert problem_of(shots) == "2 + 2?"
    assert problem_of([SimpleNamespace(role="user", content="2 + 2?")]) == "2 + 2?"
    with pytest.raises(InputError, match="no user message"):
        problem_of([assistant("4")])


def test_the_answer_is_what_the_assistant_says() -> None:
    assert answer_of("4") == "4"
    assert answer_of([assistant("a"), {"role": "tool", "content": "5"}, assistant("b")]) == "a\n\nb"
    # Reasoning that is a field of its own is no part of it.
    assert answer_of([{**assistant("a"), "reasoning_content": "hm"}]) == "a"


def test_steps() -> None:
    assert steps_of("<think>\nlost\n\n</think>\n\na\nb\n\nc") == ["a\nb", "c"]
    assert steps_of("a\n\n\nb;;c ;; ", ";;") == ["a\n\n\nb", "c"]
    assert steps_of("<think>\nnever done\n\nlost", "\n\n") == []


def test_every_form(judge: Judge) -> None:
    (reward,) = asyncio.run(judged(judge, [("p", ANSWER)]))
    values = {form: rounded(value_of(reward, form)) for form in ("min", "last", "product", "mean", "progress")}
    # 0.75 * 0.5 * 0.25 * 1; 2.5 / 4; the third of four steps is the first below 0.5.
    assert values == {"min": 0.25, "last": 1.0, "product": 0.09375, "mean": 0.625, "progress": 0.5}
    (right,) = asyncio.run(judged(judge, [("p", "a 0.5")]))
    assert value_of(right, "progress") == 1.0
    with pytest.raises(InputError, match="forms are min, last"):
        checked_form("sum")


def test_what_has_no_reward_is_none(judge: Judge) -> None:
    """A step that the judge lost takes the reward of what depends on it, and an answer without steps has none."""
    texts = ["a 0.9\n\nlost\n\nb 0.9", " ", "<think>\na"]
    lost, empty, thought = asyncio.run(judged(judge, [("p", text) for text in texts]))
    assert empty is None
    assert thought is None
    values = [value_of(lost, form) for form in ("min", "product", "mean", "progress", "last")]
    assert rounded(values) == [None, None, None, None, 0.9]
    assert value_of(empty, "min") is None


def test_missing_rewards_are_counted_where_a_number_is_needed(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert filled([0.5, None], 0.0) == [0.5, 0.0]
    assert "1 of 2 rewards are missing" in caplog.text
    caplog.clear()
    assert filled([0.5], 0.0) == [0.5]
    assert not caplog.text


def test_equal_answers_are_judged_once(judge: Judge) -> None:
    rewards = asyncio.run(judged(judge, [("p", ANSWER), ("q", ANSWER), ("p", ANSWER)]))
    assert judge.num_judged == 8
    assert rewards[0] is rewards[2]
    assert asyncio.run(judged(judge, [])) == []


def test_an_empty_problem_is_named(judge: Judge) -> None:
    with pytest.raises(InputError, match="answer 1: 'problem'"):
        asyncio.run(judged(judge, [("p", "a 0.5"), ("", "a 0.5")]))


def test_blocking_where_a_loop_runs() -> None:
    async def main() -> int:
        return blocking(asyncio.sleep(0, 2))

    assert asyncio.run(main()) == blocking(asyncio.sleep(0, 2)) == 2


def test_control_c_ends_the_work_where_a_loop_runs() -> None:
    """The work goes on in a thread of its own; it is cancelled, and not waited for to its end."""
    ended = []

    async def work() -> None:
        try:
            await asyncio.sleep(0.2)
            os.kill(os.getpid(), signal.SIGINT)
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            ended.append(True)
            raise

    async def cell() -> None:
        with pytest.raises(KeyboardInterrupt):
            blocking(work())

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        loop = asyncio.new_event_loop()  # `asyncio.run` has a handler of its own; a notebook's loop has none.
        loop.run_until_complete(cell())
        loop.close()
    finally:
        signal.signal(signal.SIGINT, before)
    assert ended == [True]


def test_a_spec_is_loaded_once() -> None:
    barrier = threading.Barrier(8)

    def load(_: int) -> RPRM:
        barrier.wait()
        return loaded("scripted:", num_analyses=5)

    with ThreadPoolExecutor(8) as pool:
        assert len({id(one) for one in pool.map(load, range(8))}) == 1
    with pytest.raises(RprmError, match="prompt"):
        loaded("scripted:", prompt=["x"])
    assert loaded("scripted:", num_analyses=2) is loaded("scripted:", num_analyses=2)
    assert loaded("scripted:", num_analyses=2) is not loaded("scripted:", num_analyses=3)


def test_an_adapter_takes_a_spec_or_a_rewarder(judge: Judge) -> None:
    """And two of one spec share its model."""
    assert rewarder_of(judge) is judge
    assert rewarder_of("scripted:") is RewardFunction("scripted:").prm is ProcessReward("scripted:").memory.prm
    made = rewarder_of(load_rewarder("scripted:", num_analyses=2))
    (reward,) = blocking(judged(made, [("p", "One step.")]))
    assert reward is not None
    assert len(reward.steps[0].analyses) == 2
