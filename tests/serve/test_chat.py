"""`/v1/chat/completions` with the official client: the answers of the search commands."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import openai
import pytest
from serving import Serve, scripted_policy

from rprm.benchmarks.mathematics import Problem
from rprm.engines.scripted import ScriptedEngine
from rprm.grading import final_answer
from rprm.rewarders import load_rewarder
from rprm.search.candidates import Candidates, choose_one
from rprm.search.guided import GuidedSearch, search_strategy
from rprm.serve.chat import Told

PROBLEM = "What is 3 + 4?"
ASKED: Any = {"messages": [{"role": "user", "content": PROBLEM}]}
PICTURE = {"type": "image_url", "image_url": {"url": "x"}}
JUDGE = "scripted:?noise=0.4&yes_rate=0.6"


def client_of(client: Any) -> openai.OpenAI:
    return openai.OpenAI(base_url=str(client.base_url.join("/v1")), api_key="none", max_retries=0, timeout=30)


async def best_of(n: int) -> Any:
    policy, rewarder = scripted_policy(), load_rewarder(JUDGE, num_analyses=4).in_full()
    await policy.start()
    await rewarder.start()
    candidates = tuple([await policy.solve(PROBLEM, number) for number in range(n)])
    row = Candidates(problem=Problem(id="0", problem=PROBLEM), candidates=candidates)
    return await choose_one(rewarder, row)


async def guided() -> Any:
    policy, rewarder = scripted_policy(), load_rewarder(JUDGE, num_analyses=4).in_full()
    await policy.start(stepwise=True)
    await rewarder.start()
    search = GuidedSearch(policy, rewarder, search_strategy("guided", width=3, max_solution_tokens=512))
    return await search.solve(Problem(id="0", problem=PROBLEM))


@pytest.fixture
def chat(serve: Serve) -> openai.OpenAI:
    return client_of(serve(judge=JUDGE, policy=scripted_policy(), num_analyses=4))


def test_models(chat: openai.OpenAI) -> None:
    names = [one.id for one in chat.models.list()]
    assert names == ["judge", "policy", "best-of-8", "majority-8", "weighted-8", "guided", "beam", "dvts"]


def test_best_of_n(chat: openai.OpenAI) -> None:
    answer: Any = chat.chat.completions.create(model="best-of-8", **ASKED)
    wanted = asyncio.run(best_of(8))
    chosen = wanted.candidates[wanted.chosen]
    assert answer.choices[0].message.content == chosen.text
    assert answer.choices[0].finish_reason == "stop"
    assert answer.rprm["chosen"] == wanted.chosen
    assert [one["text"] for one in answer.rprm["steps"]] == list(chosen.steps)
    judged = wanted.rewards[wanted.chosen].steps
    assert [one["reward"] for one in answer.rprm["steps"]] == [step.reward for step in judged]
    # Of each candidate its reward, as far as it is known: where its bounds meet, or there is none.
    bounds = [(one.low, one.high) for one in wanted.rewards]
    assert [tuple(one) for one in answer.rprm["bounds"]] == bounds
    assert answer.rprm["rewards"] == [low if low == high else None for low, high in bounds]
    assert answer.rprm["notes"] == []
    # The policy's tokens are those of all eight; the judge's stand apart.
    assert answer.usage.completion_tokens == sum(one.num_tokens for one in wanted.candidates)
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    drawn = wanted.judged_steps().values()
    assert answer.rprm["judge"]["analyses"] == sum(len(step.analyses) for step in drawn)
    tokens = sum(one.num_tokens for step in drawn for one in step.analyses)
    assert answer.rprm["judge"]["generated_tokens"] == tokens > 0


def test_a_guided_answer_streamed_and_not(chat: openai.OpenAI) -> None:
    body = {"rprm": {"width": 3, "analyses": True}}
    wanted = asyncio.run(guided())
    answer: Any = chat.chat.completions.create(model="guided", extra_body=body, **ASKED)
    assert answer.choices[0].message.content == wanted.text
    told = answer.rprm["steps"]
    assert "\n\n".join(step["text"] for step in told) == wanted.text
    assert all(0 <= step["low"] <= step["high"] <= 1 for step in told)
    assert all(step["analyses"][0]["text"] for step in told)
    assert answer.usage.completion_tokens == wanted.num_policy_tokens

    chunks: list[Any] = list(
        chat.chat.completions.create(
            model="guided", stream=True, stream_options={"include_usage": True}, extra_body=body, **ASKED
        )
    )
    pieces = [one.choices[0].delta.content for one in chunks if one.choices and one.choices[0].delta.content]
    assert "".join(pieces) == wanted.text
    assert len(pieces) == len(told)  # each step as it is kept
    assert [one.choices[0].finish_reason for one in chunks if one.choices][-1] == "stop"
    assert chunks[-1].usage.completion_tokens == wanted.num_policy_tokens
    assert [one for one in chunks if one.choices][-1].rprm == answer.rprm


@pytest.mark.parametrize("name", ["best-of-3", "majority-3", "weighted-3", "beam", "dvts", "policy"])
def test_every_strategy_streamed_and_not(chat: openai.OpenAI, name: str) -> None:
    answer: Any = chat.chat.completions.create(model=name, **ASKED)
    text = answer.choices[0].message.content
    assert final_answer(text) is not None
    Told.model_validate(answer.rprm)
    chunks: Any = chat.chat.completions.create(model=name, stream=True, **ASKED)
    assert "".join(one.choices[0].delta.content or "" for one in chunks) == text
    assert answer.usage.completion_tokens > 0


def test_votes(chat: openai.OpenAI) -> None:
    found: Any = chat.chat.completions.create(model="majority-8", **ASKED)
    answers, votes, chosen = found.rprm["answers"], found.rprm["votes"], found.rprm["chosen"]
    # The script's answers are whole numbers: equal ones have equal texts.
    assert votes == [answers.count(one) for one in answers]
    assert chosen == votes.index(max(votes))
    assert final_answer(found.choices[0].message.content) == answers[chosen]
    assert found.rprm["judge"]["analyses"] == 0
    weighted: Any = chat.chat.completions.create(model="weighted-8", **ASKED)
    rewards, answers = weighted.rprm["rewards"], weighted.rprm["answers"]
    sums = {
        one: sum(reward or 0.0 for reward, its in zip(rewards, answers, strict=True) if its == one) for one in answers
    }
    assert sums[answers[weighted.rprm["chosen"]]] == pytest.approx(max(sums.values()))


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"model": "gpt-4o"}, "no model 'gpt-4o' answers here"),
        ({"model": "best-of-0"}, "1 to 64 are drawn"),
        ({"model": "best-of-65"}, "1 to 64 are drawn"),
        ({"model": "best-of-8", "extra_body": {"rprm": {"n": 4}}}, "says 8 samples"),
        ({"model": "guided", "extra_body": {"rprm": {"width": 65}}}, "1 to 64 are drawn"),
        ({"model": "beam", "extra_body": {"rprm": {"n": 6, "width": 4}}}, "multiple of the width"),
        ({"model": "guided", "extra_body": {"rprm": {"breadth": 3}}}, "breadth"),
        ({"model": "best-of-4", "temperature": 0}, "temperature 0"),
        ({"model": "policy", "n": 2}, "n must be 1"),
        ({"model": "policy", "stop": "x"}, "'stop' is not supported here: leave it out"),
        ({"model": "policy", "frequency_penalty": 0.5}, "'frequency_penalty' is not supported"),
        ({"model": "policy", "presence_penalty": -0.5}, "'presence_penalty' is not supported"),
        ({"model": "policy", "logit_bias": {"5": 1}}, "'logit_bias' is not supported"),
        ({"model": "policy", "logprobs": True}, "'logprobs' is not supported"),
        ({"model": "policy", "response_format": {"type": "json_object"}}, "'response_format' is not supported"),
        ({"model": "policy", "extra_body": {"top_k": 5}}, "'top_k' is not supported"),
        ({"model": "policy", "extra_body": {"min_p": 0.1}}, "'min_p' is not supported"),
        ({"model": "best-of-2", "extra_body": {"aggregate": "last"}}, "'aggregate' .* put it into `rprm`"),
        ({"model": "best-of-2", "extra_body": {"rprm": {"width": 2}}}, "best-of takes no width"),
        ({"model": "guided", "extra_body": {"rprm": {"n": 8}}}, "guided takes no n"),
        ({"model": "majority-2", "extra_body": {"rprm": {"aggregate": "min"}}}, "majority takes no aggregate"),
        ({"model": "policy", "extra_body": {"rprm": {"n": 2}}}, "policy takes no n"),
        ({"model": "policy", "max_tokens": 513}, "max_tokens is 513: at most 512"),
        ({"model": "policy", "messages": [{"role": "user", "content": " "}]}, "empty"),
        ({"model": "policy", "messages": [{"role": "system", "content": "x"}]}, "one message"),
        ({"model": "policy", "messages": [{"role": "user", "content": [PICTURE]}]}, "type 'text' alone"),
    ],
)  # fmt: skip
def test_what_is_not_done_is_refused(chat: openai.OpenAI, more: dict[str, Any], said: str) -> None:
    with pytest.raises(openai.UnprocessableEntityError, match=said):
        chat.chat.completions.create(**(ASKED | more))


def test_what_asks_for_nothing_is_left_unread(chat: openai.OpenAI) -> None:
    nothing: Any = {
        "frequency_penalty": 0,
        "logprobs": False,
        "stop": None,
        "tools": [],
        "user": "me",
        "max_tokens": 512,
    }
    plain: Any = chat.chat.completions.create(model="best-of-2", **ASKED)
    assert chat.chat.completions.create(model="best-of-2", **nothing, **ASKED).choices == plain.choices


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("content", ["\ud800", [{"type": "text", "text": "\ud800"}]])
def test_text_that_is_no_unicode_is_refused(serve: Serve, content: Any, stream: bool) -> None:
    body = {"model": "policy", "messages": [{"role": "user", "content": content}], "stream": stream}
    headers = {"content-type": "application/json"}
    client = serve(policy=scripted_policy())
    answer = client.post("/v1/chat/completions", content=json.dumps(body).encode(), headers=headers)
    assert (answer.status_code, "surrogate" in answer.text) == (422, True)
    # A pair of them is one character.
    whole = json.dumps(body).replace("ud800", "ud83d\\ude00").encode()
    assert client.post("/v1/chat/completions", content=whole, headers=headers).status_code == 200


@pytest.mark.parametrize("name", ["best-of-4", "guided"])
def test_the_work_of_a_search_that_took_too_long_is_counted(serve: Serve, name: str) -> None:
    judge = ScriptedEngine(delay=0.1, concurrency=1)
    client = serve(judge=judge, policy=scripted_policy(), num_analyses=8, limits={"seconds": 0.6})
    answer = client.post("/v1/chat/completions", json={"model": name, **ASKED})
    assert answer.status_code == 503
    lines = client.get("/metrics").text.splitlines()
    counts = {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if not line.startswith("#")}
    assert counts["rprm_analyses_total"] >= 1
    assert counts['rprm_generated_tokens_total{model="policy"}'] > 0


def test_without_a_policy(serve: Serve) -> None:
    with pytest.raises(openai.UnprocessableEntityError, match="--policy SPEC"):
        client_of(serve()).chat.completions.create(model="best-of-8", **ASKED)


def test_the_seed_and_the_temperature_are_the_clients(chat: openai.OpenAI) -> None:
    def ask(**more: Any) -> str:
        return str(chat.chat.completions.create(model="policy", **ASKED, **more).choices[0].message.content)

    assert ask(seed=5) == ask(seed=5)
    assert len({ask(seed=seed) for seed in range(8)}) > 1


def test_a_failure_in_a_stream_is_told(serve: Serve) -> None:
    policy = scripted_policy(context_length=70)
    chat = client_of(serve(policy=policy))
    long: Any = {"messages": [{"role": "user", "content": "word " * 100}]}
    with pytest.raises(openai.UnprocessableEntityError, match="context length"):
        chat.chat.completions.create(model="policy", **long)
    with pytest.raises(openai.APIError, match="context length"):
        list(chat.chat.completions.create(model="policy", stream=True, **long))


def test_a_slow_answer_shows_signs_of_life(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rprm.serve.chat._ALIVE_S", 0.05)
    client = serve(policy=scripted_policy(delay=0.3), judge=ScriptedEngine())
    text = client.post("/v1/chat/completions", json={"model": "policy", "stream": True, **ASKED}).text
    assert text.count(": still at work") >= 3
