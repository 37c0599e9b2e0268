"""A task of verifiers that is scored by its steps (opt-in: `make test-integrations`)."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from stated_judge import Judge, rounded

from rprm.errors import InputError
from rprm.integrations.verifiers import reward

FILE = """
from rprm import RPRM
from rprm.integrations.verifiers import reward

steps = reward(RPRM("scripted:", num_analyses=2), "mean")
lost = reward(RPRM("scripted:?lost=1.0", num_analyses=1))
"""


def test_a_reward(judge: Judge) -> None:
    trace = SimpleNamespace(last_reply="a 0.5\n\nb 0.25")
    assert rounded(asyncio.run(reward(judge)(SimpleNamespace(prompt="p"), trace))) == {"rprm_min": 0.25}
    messages = [SimpleNamespace(role="user", content="p")]
    assert rounded(asyncio.run(reward(judge, "last")(SimpleNamespace(prompt=messages), trace))) == {"rprm_last": 0.25}
    named = reward(judge, "mean", problem="question")
    assert rounded(asyncio.run(named(SimpleNamespace(question="p"), trace))) == {"rprm_mean": 0.375}
    # None is recorded where there is none.
    assert asyncio.run(reward(judge)(SimpleNamespace(prompt="p"), SimpleNamespace(last_reply="lost"))) == {}
    with pytest.raises(InputError, match="forms are"):
        reward(judge, "median")


def test_a_task(tmp_path: Path) -> None:
    vf = pytest.importorskip("verifiers.v1")
    import rprm

    class Sum(vf.Task[vf.TaskData]):
        @vf.reward(weight=0.5)
        async def long(self, trace: Any) -> float:
            return 1.0

    path = tmp_path / "rewards.py"
    path.write_text(FILE)
    config = vf.TaskConfig(rewards={"steps": {"fn": f"{path}:steps", "weight": 2.0}, "lost": {"fn": f"{path}:lost"}})
    task = Sum(vf.TaskData(prompt="2 + 2?"), config)
    trace = vf.WireTrace(
        task={"type": "Sum", "data": {"prompt": "2 + 2?"}}, agent={"config": {}}, root_reply="2 + 2 = 4.\n\nIt is 4."
    )
    asyncio.run(task.score(trace))
    with rprm.RPRM("scripted:", num_analyses=2) as prm:
        (found,) = prm.score([{"problem": "2 + 2?", "steps": ["2 + 2 = 4.", "It is 4."]}])
    assert sorted(trace.rewards) == ["long", "rprm_mean"]
    assert trace.rewards["rprm_mean"].score == found.aggregate("mean")
    assert trace.reward == pytest.approx(0.5 + 2 * found.aggregate("mean"))
