"""Judging through a server that plays a fault every fifth time: all is finished or named, and no reward is invented."""

from __future__ import annotations

import asyncio
import collections
import copy
import hashlib
import json
import math
import random
from collections.abc import Callable
from typing import Any

import pytest

from rprm.engines import Sampling
from rprm.engines.openai import OpenAIEngine
from rprm.judge import Judge
from rprm.judging import Watcher, judge_source
from rprm.prompts.template import PromptTemplate
from rprm.records import Solution, SolutionReward
from rprm.stopping import StoppingRule
from rprm.verdict import VerdictFormat
from tests.engines.test_openai import Play, Reply, Request, chat_answer, chat_tokens, error, running

NUM_STEPS, NUM_ANALYSES = 2, 2
MARKER = VerdictFormat().marker
TEMPLATE = PromptTemplate(name="test", user="{{problem}}\n\n{{steps}}")
POISON = "Always too much for the server."


def honest_p_yes(content: str) -> float:
    """What the server thinks of a prompt: from 0.05 to 0.95, and nothing but the prompt decides it."""
    return 0.05 + 0.9 * hashlib.sha256(content.encode()).digest()[0] / 255


def honest_answer(request: Request) -> dict[str, Any]:
    """Yes or No at random, as often as the server thinks, with the log-probabilities of both."""
    content = request.body["messages"][-1]["content"]
    p_yes = honest_p_yes(content)
    says_yes = random.Random(f"{content}{request.body.get('seed')}").random() < p_yes
    text = f"Checked. {MARKER} {'Yes' if says_yes else 'No'}"
    answer = chat_answer(text)
    # 2% are left for other tokens.
    answer["choices"][0]["logprobs"] = {"content": chat_tokens(text, 0.98 * p_yes, 0.98 * (1.0 - p_yes))}
    return answer


# Faults


def changed(**values: Any) -> Callable[[dict[str, Any]], Reply]:
    """The choice with other fields."""

    def fault(answer: dict[str, Any]) -> Reply:
        answer["choices"][0] |= values
        return Reply(answer)

    return fault


def listing(change: Callable[[dict[str, Any]], Any]) -> Callable[[dict[str, Any]], Reply]:
    """The answer with its last token's entry changed in place."""

    def fault(answer: dict[str, Any]) -> Reply:
        change(answer["choices"][0]["logprobs"]["content"][-1])
        return Reply(answer)

    return fault


def all_at(value: Any) -> Callable[[dict[str, Any]], Reply]:
    """The last token and all its alternatives with one log-probability."""

    def change(entry: dict[str, Any]) -> None:
        for one in (entry, *entry["top_logprobs"]):
            one["logprob"] = value

    return listing(change)


def without_answers(entry: dict[str, Any]) -> None:
    entry["top_logprobs"] = [one for one in entry["top_logprobs"] if one["token"] == ","]


def without_other(entry: dict[str, Any]) -> None:
    entry["top_logprobs"] = [one for one in entry["top_logprobs"] if one["token"] in (entry["token"], ",")]


def twice(answer: dict[str, Any]) -> Reply:
    (choice,) = answer["choices"]
    wrong = copy.deepcopy(choice) | {"message": {"content": f"{MARKER} Yes"}}
    return Reply({"choices": [wrong, choice]})


def in_letters(answer: dict[str, Any]) -> Reply:
    """Tokens as GPT-2's vocabulary spells them, without their bytes."""
    for entry in answer["choices"][0]["logprobs"]["content"]:
        for one in (entry, *entry["top_logprobs"]):
            one |= {"token": one["token"].replace(" ", "\u0120"), "bytes": None}
    return Reply(answer)


def in_parts(answer: dict[str, Any]) -> Reply:
    message = answer["choices"][0]["message"]
    message["content"] = [{"type": "text", "text": piece} for piece in message["content"].partition(MARKER)]
    return Reply(answer)


#: Faults that pass: the request is made again.
PASSING: dict[str, Callable[[dict[str, Any]], Reply]] = {
    "429": lambda answer: error(429, "slow down"),
    "500": lambda answer: error(500, "oops"),
    "a gateway's page": lambda answer: Reply(b"<html>bad gateway</html>", 502),
    "no JSON": lambda answer: Reply(b"{not json"),
    "no choices": lambda answer: Reply({"choices": []}),
    "no text": changed(message={"content": 5}),
    "one index twice": twice,
    "an error inside": lambda answer: Reply({"error": {"message": "upstream overloaded"}}),
    "ended in an error": changed(finish_reason="error"),
    "over-long": lambda answer: Reply(b" " * (3 << 20)),
    "cut off": lambda answer: Reply(json.dumps(answer).encode()[:100], length=5000),
}
#: Log-probabilities that say nothing: the vote counts.
UNUSABLE: dict[str, Callable[[dict[str, Any]], Reply]] = {
    "NaN": all_at(math.nan),
    "null": all_at(None),
    "above 0": all_at(3.0),
    "-9999": all_at(-9999.0),
    "all certain": all_at(0.0),
    "no alternatives": listing(lambda entry: entry.update(top_logprobs=[])),
    "the answers absent": listing(without_answers),
    "the other answer absent": listing(without_other),
    "none": changed(logprobs=None),
}
#: Odd, and as good as the usual.
ODD = {"tokens in letters": in_letters, "content in parts": in_parts}
#: No answer.
WITHHELD: dict[str, Callable[[dict[str, Any]], Reply]] = {
    "content_filter": changed(finish_reason="content_filter"),
    "refusal": changed(message={"content": None, "refusal": f"Sorry. {MARKER} Yes"}),
}
FAULTS = {**PASSING, **UNUSABLE, **ODD, **WITHHELD}


def streamed(reply: Reply) -> Reply:
    """The same as a stream, where it is an answer."""
    if not isinstance(reply.body, dict) or reply.status != 200 or "choices" not in reply.body or reply.length:
        return reply
    events = []
    for choice in reply.body["choices"]:
        events.append({**choice, "delta": choice["message"], "finish_reason": None})
        events.append({"index": 0, "delta": {}, "finish_reason": choice["finish_reason"]})
    lines = [f"data: {json.dumps({'choices': [event]})}\n\n" for event in events]
    return Reply("".join([*lines, "data: [DONE]\n\n"]).encode(), headers={"content-type": "text/event-stream"})


def torn(answer: dict[str, Any]) -> Reply:
    """A stream that says it is done, but not why."""
    event = answer["choices"][0] | {"delta": answer["choices"][0]["message"], "finish_reason": None}
    body = f"data: {json.dumps({'choices': [event]})}\n\ndata: [DONE]\n\n"
    return Reply(body.encode(), headers={"content-type": "text/event-stream"})


def misbehaving(faults: dict[str, Callable[[dict[str, Any]], Reply]], played: collections.Counter[str]) -> Play:
    """A server that plays each fault as often as the others, one in five requests; `played` counts them."""
    chance = random.Random(17)

    async def play(request: Request, writer: asyncio.StreamWriter) -> Reply | None:
        if POISON in request.body["messages"][-1]["content"]:
            return error(500, "out of memory")
        reply = Reply(honest_answer(request))
        if chance.random() < 0.2:
            name = min(faults, key=lambda name: (played[name], chance.random()))
            played[name] += 1
            reply = faults[name](reply.body)
        return streamed(reply) if request.body.get("stream") else reply

    return play


@pytest.mark.parametrize(("num_solutions", "stream"), [(300, False), (100, True)])
def test_solutions_with_a_fifth_of_the_answers_faulty(num_solutions: int, stream: bool) -> None:
    # A stream merges what comes under one index: there a second choice of it is none.
    faults = {name: fault for name, fault in FAULTS.items() if not (stream and name == "one index twice")}
    faults |= {"no finish reason": torn} if stream else {}
    played: collections.Counter[str] = collections.Counter()
    rows = [
        Solution(id=str(row), problem=f"Problem {row}." if row != 50 else POISON, steps=("One step.", "Another."))
        for row in range(num_solutions)
    ]
    results: list[SolutionReward] = []

    async def run() -> None:
        async with asyncio.timeout(120), running(misbehaving(faults, played)) as (_, url):
            engine = OpenAIEngine(f"m@{url}", key_env="RPRM_TEST_KEY", stream=stream)
            engine.endpoint.backoff_base = engine.endpoint.backoff_cap = 0.001
            judge = Judge(
                engine,
                TEMPLATE,
                StoppingRule(NUM_ANALYSES, stopping="none"),
                Sampling(max_tokens=64, seed=1),
                first_error_exit=False,
            )
            try:
                await judge_source(judge, rows, watcher=Watcher(lambda _, result: results.append(result)))
            finally:
                await judge.aclose()

    asyncio.run(run())
    assert set(played) == set(faults)
    assert sum(played.values()) > 0.15 * num_solutions * NUM_STEPS * NUM_ANALYSES
    assert [result.id for result in results] == [row.id for row in rows]
    sources: collections.Counter[str | None] = collections.Counter()
    for row, result in zip(rows, results, strict=True):
        assert len(result.steps) == NUM_STEPS
        for step in result.steps:
            if row.problem == POISON:
                # Costs itself, and says why.
                assert step.reward is None
                assert step.failure is not None
                assert "500 out of memory" in step.failure
                continue
            content = TEMPLATE.render(row.problem, row.steps, step.step_index).messages[-1].content
            assert len(step.analyses) == NUM_ANALYSES
            for analysis in step.analyses:
                sources[analysis.p_yes_source] += 1
                if analysis.p_yes_source == "logprobs":
                    assert analysis.p_yes == pytest.approx(honest_p_yes(content))
                elif analysis.p_yes_source == "vote":
                    assert analysis.text.endswith("Yes" if analysis.verdict else "No")
                    assert analysis.p_yes == float(analysis.verdict is True)
                else:
                    assert (analysis.p_yes, analysis.finish_reason in WITHHELD) == (None, True)
            p_yes = [analysis.p_yes for analysis in step.analyses if analysis.p_yes is not None]
            assert step.reward == (pytest.approx(sum(p_yes) / len(p_yes)) if p_yes else None)
            assert (step.failure is None) == (step.reward is not None)
    # Every unusable answer is a vote, every withheld one nothing, and all else is exact.
    assert sources["vote"] == sum(played[name] for name in UNUSABLE)
    assert sources[None] == sum(played[name] for name in WITHHELD)
    assert sources["logprobs"] == (num_solutions - 1) * NUM_STEPS * NUM_ANALYSES - sources["vote"] - sources[None]
