"""its_hub's algorithms with a scripted policy (opt-in: `make test-integrations`)."""

from __future__ import annotations

import asyncio
import json
import math
import random
import re
from pathlib import Path
from typing import Any

import pytest
from stated_judge import Judge, rounded

import rprm
from rprm.integrations.its_hub import OutcomeReward, ProcessReward

its_hub = pytest.importorskip("its_hub")

from its_hub.api import AbstractLanguageModel  # noqa: E402
from its_hub.api.types import ChatMessage, ChatMessages  # noqa: E402
from its_hub.core.algorithms.beam_search import BeamSearch  # noqa: E402
from its_hub.core.algorithms.particle_gibbs import ParticleFiltering  # noqa: E402
from its_hub.core.lms.step_generation import StepGeneration  # noqa: E402

PROBLEM = "What is 2 + 2?"
#: A word problem, whose third step has 229 in place of 219.
EXAMPLES = Path(rprm.__file__).with_name("examples") / "word_problems.jsonl"


class Policy(AbstractLanguageModel):
    """Writes steps of random worth, the last of three with the answer; the same after the same beginning is rare."""

    def __init__(self, seed: int = 0) -> None:
        self.random = random.Random(seed)
        self.prefixes: set[tuple[str, ...]] = set()

    def step(self, number: int) -> str:
        ending = " The answer is 4." if number == 3 else ""
        return f"Line {self.random.randrange(9)}:\nworth 0.{self.random.randint(1, 9)}.{ending}"

    async def agenerate(self, messages: Any, stop: str | None = None, **kwargs: Any) -> Any:
        replies = []
        for conversation in messages:
            assert conversation[0].content == PROBLEM
            so_far = conversation[1].content.strip().split("\n\n") if len(conversation) > 1 else []
            step = self.step(len(so_far) + 1)
            self.prefixes.add((*so_far, step))
            replies.append({"role": "assistant", "content": step})
        return replies

    async def agenerate_single(self, messages: Any, stop: str | None = None, **kwargs: Any) -> dict[str, Any]:
        text = "\n\n".join(self.step(number) for number in (1, 2, 3))
        return {"role": "assistant", "content": f"<think>\nworth 0.0\n</think>\n\n{text}"}


def worths(text: str) -> list[float]:
    return [float(one) for one in re.findall(r"0\.\d", text.rpartition("</think>")[2])]


def steps() -> StepGeneration:
    return StepGeneration(max_steps=5, step_token="\n\n", stop_token="The answer", temperature=1.0)


@pytest.mark.parametrize("aggregation", ["last", "min"])
def test_beam_search(aggregation: Any, judge: Judge) -> None:
    """One number for each partial answer, and a step is judged once, when it is new."""
    policy = Policy()
    prm = ProcessReward(judge, aggregation=aggregation, step_token="\n\n")
    search = BeamSearch(steps(), prm, beam_width=3)
    result = search.infer(policy, PROBLEM, budget=12, return_response_only=False)
    value = min if aggregation == "min" else (lambda numbers: numbers[-1])
    for response, score in zip(result.responses, result.scores, strict=True):
        assert len(worths(response["content"])) == 3
        assert rounded(score) == value(worths(response["content"]))
    assert result.scores[result.selected_index] == max(result.scores)
    assert judge.num_judged == len(policy.prefixes)


def test_particle_filtering(judge: Judge) -> None:
    random.seed(0)
    policy = Policy()
    search = ParticleFiltering(steps(), ProcessReward(judge))
    result = asyncio.run(search.ainfer(policy, PROBLEM, budget=8, return_response_only=False))
    assert len(result.responses) == 8
    # A particle's weight is the log-odds of the reward of its last step.
    odds = {f"{number / 10:.1f}": number / (10 - number) for number in range(1, 10)}
    for response, weight in zip(result.responses, result.log_weights_lst, strict=True):
        last = worths(response["content"])[-1]
        assert weight == pytest.approx(math.log(odds[f"{last:.1f}"]), abs=1e-6)
    assert result.the_one["content"].endswith("The answer is 4.")


def test_best_of_n(judge: Judge) -> None:
    policy = Policy()
    search = its_hub.BestOfN(OutcomeReward(judge))
    result = search.infer(policy, PROBLEM, budget=8, return_response_only=False)
    expected = [min(worths(response["content"])) for response in result.responses]
    assert rounded(result.scores) == expected
    assert result.selected_index == expected.index(max(expected))


def test_what_has_no_reward_is_ranked_last(judge: Judge) -> None:
    prm = ProcessReward(judge)
    assert rounded(prm.score(PROBLEM, ["a 0.5", "lost", ""])) == [0.5, 0.0, 0.0]
    assert prm.score(PROBLEM, []) == []
    orm = OutcomeReward(judge, "mean", unscored=-1.0)
    chat = [ChatMessage("user", PROBLEM), ChatMessage("assistant", "a 0.5")]
    assert rounded(orm.score(chat)) == 0.5
    assert rounded(orm.score([chat, [chat[0], ChatMessage("assistant", "lost")]])) == [0.5, -1.0]


def test_messages_of_every_kind(judge: Judge) -> None:
    prm = ProcessReward(judge)
    system = ChatMessage("system", "0.1")
    for given in (PROBLEM, [system, ChatMessage("user", PROBLEM)], ChatMessages([ChatMessage("user", PROBLEM)])):
        assert rounded(prm.score(given, ["a 0.5"])) == [0.5]
    assert judge.num_judged == 1


class LabPolicy(AbstractLanguageModel):
    """Solves a word problem of the lab; its third step is right in every third sample."""

    def __init__(self, steps: list[str]) -> None:
        self.steps, self.num_samples = steps, 0

    def step(self, index: int) -> str:
        if index != 2:
            return self.steps[index]
        self.num_samples += 1
        return self.steps[2] if self.num_samples % 3 == 0 else self.steps[2].replace("219", "229")

    async def agenerate(self, messages: Any, stop: str | None = None, **kwargs: Any) -> Any:
        counts = [one[1].content.strip().count("\n\n") + 1 if len(one) > 1 else 0 for one in messages]
        return [{"role": "assistant", "content": self.step(count)} for count in counts]

    async def agenerate_single(self, messages: Any, stop: str | None = None, **kwargs: Any) -> dict[str, Any]:
        return {"role": "assistant", "content": "\n\n".join(self.step(index) for index in range(3))}


@pytest.mark.slow
def test_the_embedded_judge_finds_the_right_solution() -> None:
    row = json.loads(EXAMPLES.read_text().splitlines()[0])
    policy = LabPolicy([step.replace("229", "219") for step in row["steps"][:3]])
    steps = StepGeneration(max_steps=3, step_token="\n\n", stop_token="/ 3")
    with rprm.RPRM("embedded", num_analyses=2) as prm:
        beam = BeamSearch(steps, ProcessReward(prm, step_token="\n\n"), beam_width=3)
        filtering = ParticleFiltering(steps, ProcessReward(prm, step_token="\n\n"))
        found = [
            search.infer(policy, row["problem"], budget=budget)
            for search, budget in ((its_hub.BestOfN(OutcomeReward(prm)), 6), (beam, 9), (filtering, 6))
        ]
    assert ["219" in one["content"] and "229" not in one["content"] for one in found] == [True, True, True]
