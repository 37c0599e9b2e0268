"""How probable a critic finds each index where it names one, and the step rewards that come of it."""

from __future__ import annotations

import asyncio
import json
import math
import random
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import pytest
import released_tokenizers
from loopback import Reply, Request, Server, chat_answer, error, token, with_server

from rprm.critique import FORMATS
from rprm.engines.base import Sampling
from rprm.engines.openai import OpenAIEngine
from rprm.engines.scripted import ScriptedEngine, ScriptedReply
from rprm.errors import RequestRefused
from rprm.prompts.template import CriticTemplate, Prompt
from rprm.records import Solution, SolutionReward
from rprm.rewarders import load_rewarder

BOXED = FORMATS["boxed"]
TEMPLATE = CriticTemplate("t", "{{problem}}\n{{steps}}")
#: At the end of what stands before: tokens and their probabilities. Of these, 0.1 begins no plain answer.
QWEN = {
    "boxed": {"{-": 0.3, "{": 0.6, "{\\": 0.1},
    "boxed{": {"0": 0.5, "1": 0.25, "2": 0.25},
}


class Listing(ScriptedEngine):
    """A scripted engine that lists what may follow, from a table or by chance."""

    def __init__(self, table: Mapping[str, Mapping[str, float]] | None, critique: str = "So \\boxed{1}.") -> None:
        super().__init__(reply=lambda prompt, sampling: ScriptedReply(critique, None, 10))
        self.table, self.asked = table, list[str]()

    async def next_tokens(self, prompt: Prompt, text: str) -> Mapping[str, float]:
        self.asked.append(text)
        if self.table is None:
            raise RequestRefused("too long")
        return self.table[text[text.rindex("boxed") :]]


def judged(engine: Any, num_steps: int = 3, **options: Any) -> SolutionReward:
    options = {"prompt": TEMPLATE, "first_error_exit": False} | options
    rewarder = load_rewarder("critic:scripted:", engine=engine, **options)

    async def run() -> SolutionReward:
        await rewarder.start()
        steps = tuple(f"step {index}" for index in range(num_steps))
        return await rewarder.judge(Solution(id="p", problem="p", steps=steps))

    return asyncio.run(run())


def test_a_steps_reward_is_the_expected_share() -> None:
    """P(-1) = 0.3; of the 0.6 after `{`: 0.3, 0.15 and 0.15. Of their sum, 0.9: 1/3, 1/3, 1/6, 1/6. So step 0 is right
    with 1/3 + 1/6 + 1/6, step 1 with 1/3 + 1/6, step 2 with 1/3; the vote, which predicts, says step 1."""
    engine = Listing(QWEN)
    reward = judged(engine)
    (critique,) = reward.steps[-1].analyses
    assert critique.first_error_probabilities == pytest.approx([1 / 3, 1 / 3, 1 / 6, 1 / 6])
    assert reward.rewards == pytest.approx([2 / 3, 1 / 2, 1 / 3])
    assert [step.vote for step in reward.steps] == [1.0, 0.0, 0.0]
    assert (reward.first_error, critique.first_error, critique.verdict) == (1, 1, False)
    assert (critique.p_yes, critique.p_yes_source) == (pytest.approx(1 / 3), "second pass")
    assert engine.asked == ["So \\boxed", "So \\boxed{"]
    again = SolutionReward.model_validate_json(reward.model_dump_json())
    assert again == reward


def test_first_errors_alone_ask_for_nothing() -> None:
    engine = Listing(QWEN)
    reward = judged(engine, first_error_exit=True)
    assert (reward.first_error, reward.rewards, engine.asked) == (1, [1.0, 0.0, 0.0], [])
    assert "first_error_probabilities" not in reward.model_dump_json()


def test_runs_say_where_rewards_come_from() -> None:
    """Rows of votes and rows of probabilities do not stand in one run."""
    for options, expected in (({"first_error_exit": False}, "logprobs"), ({}, None)):
        rewarder = load_rewarder("critic:scripted:", engine=Listing(QWEN), **options)
        assert asyncio.run(rewarder.start()).get("rewards_from") == expected
    plain = load_rewarder("critic:scripted:", first_error_exit=False)  # its engine lists nothing
    assert "rewards_from" not in asyncio.run(plain.start())


def test_an_index_of_two_digits_is_read_digit_by_digit() -> None:
    """Of 13 steps `1` may be 1, 10, 11 or 12: 0.5 * 0.4 = 0.2 is 1, 0.5 * 0.6 = 0.3 is 12. A token may hold both."""
    table = {
        "boxed": {"{": 1.0},
        "boxed{": {"1": 0.5, "3": 0.3, "11": 0.1, "-": 0.1},
        "boxed{1": {"}": 0.25, "}.": 0.15, "2": 0.6},
    }
    reward = judged(Listing(table, "\\boxed{12}"), num_steps=13)
    (critique,) = reward.steps[-1].analyses
    shares = dict(zip(range(-1, 13), critique.first_error_probabilities or (), strict=True))
    assert {index: share for index, share in shares.items() if share} == pytest.approx(
        {-1: 0.1, 1: 0.2, 3: 0.3, 11: 0.1, 12: 0.3}
    )
    assert reward.rewards[0] == pytest.approx(1.0)
    assert reward.rewards[2] == pytest.approx(0.8)
    assert reward.rewards[12] == pytest.approx(0.1)
    assert all(one >= other for one, other in pairwise(reward.rewards))  # type: ignore[operator]


@pytest.mark.parametrize(
    ("table", "critique"),
    [
        ({"boxed": {"{-": 0.3, "{": 0.6}, "boxed{": {"0": 0.5, "1": 0.2}}, "\\boxed{1}"),  # 0.28 is not listed
        (None, "\\boxed{1}"),  # refused
        (QWEN, "\\boxed{\\text{paragraph 1}}"),  # no plain answer: others would not be written there
        (QWEN, "\\boxed{<paragraph_1>}"),
        ({"boxed": {"{\\": 1.0}}, "\\boxed{1}"),  # no index is listed
        ({"boxed": {"": 1.0}}, "\\boxed{1}"),  # one that never comes to an end
    ],
)
def test_what_cannot_be_told_stays_a_vote(table: Any, critique: str) -> None:
    reward = judged(Listing(table, critique))
    (found,) = reward.steps[-1].analyses
    assert (found.p_yes, found.p_yes_source, found.first_error_probabilities) == (0.0, "vote", None)
    assert reward.rewards == [1.0, 0.0, 0.0]


def test_a_forced_verdict_has_probabilities_too() -> None:
    engine = Listing(QWEN)
    engine.reply = lambda prompt, sampling: ScriptedReply("{2" if prompt.reply else "Hm.", None, 4)
    reward = judged(engine, force_verdict=True)
    (critique,) = reward.steps[-1].analyses
    assert (critique.text, critique.forced, critique.first_error) == ("Hm.\n\n\\boxed{2}", True, 2)
    assert critique.p_yes == pytest.approx(1 / 3)
    assert engine.asked == ["Hm.\n\n\\boxed", "Hm.\n\n\\boxed{"]


def test_a_step_alone_has_the_probability_of_no_error_up_to_it() -> None:
    engine = Listing({"boxed": {"{-": 0.75, "{": 0.25}, "boxed{": {"0": 0.5, "1": 0.5}})
    rewarder = load_rewarder("critic:scripted:", engine=engine, prompt=TEMPLATE)

    async def run() -> Any:
        await rewarder.start()
        return await rewarder.judge_step("p", ["a", "b", "c"], 1)

    step = asyncio.run(run())
    assert (step.reward, step.vote) == (0.75, 0.0)


@pytest.mark.parametrize("seed", range(60))
def test_exact_stopping_changes_no_majority_and_no_decision(seed: int) -> None:
    """Samples of every step's rewards are between 0 and 1 here, and some critiques name nothing or only vote."""
    drawn = random.Random(seed)
    tables = []
    for _ in range(9):
        none, digits = drawn.random(), [drawn.random() for _ in range(3)]
        shares = {str(index): share / sum(digits) for index, share in enumerate(digits)}
        tables.append({"boxed": {"{-": none, "{": 1 - none}, "boxed{": shares})
    critiques = [drawn.choice(["\\boxed{-1}", "\\boxed{1}", "\\boxed{2}", "\\boxed{0x}"]) for _ in range(9)]

    class Drawn(Listing):
        def __init__(self) -> None:
            super().__init__({})
            self.number = 0
            self.reply = self.write

        def write(self, prompt: Prompt, sampling: Sampling) -> ScriptedReply:
            self.number += 1
            return ScriptedReply(f"{self.number} {critiques[self.number - 1]}", None, 9)

        async def next_tokens(self, prompt: Prompt, text: str) -> Mapping[str, float]:
            if (number := int(text.split()[0])) % 4 == 0:
                raise RequestRefused("not this one")
            return tables[number - 1][text[text.rindex("boxed") :]]

    full = judged(Drawn(), num_analyses=9, stopping="none")
    lean = judged(Drawn(), num_analyses=9, stopping="exact")
    assert lean.first_error == full.first_error
    assert [one and one >= 0.5 for one in lean.rewards] == [one and one >= 0.5 for one in full.rewards]
    assert lean.steps[-1].analyses == full.steps[-1].analyses[: len(lean.steps[-1].analyses)]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["qwen", "llama3"])
def test_released_tokenizers_write_every_index_in_steps_that_are_followed(name: str) -> None:
    """At each token of `{k}` the answer so far may still name k, and at the end nothing else. Both write the brace and
    the minus as one token; Qwen each digit, Llama 3 up to three as one."""
    tokenizer = getattr(released_tokenizers, name)()

    def pieces(text: str) -> list[str]:
        return [tokenizer.decode([id_]) for id_ in tokenizer.encode(text, add_special_tokens=False)]

    assert pieces("\\boxed{-1}")[-3:] == ["{-", "1", "}"]
    assert pieces("\\boxed{12}")[-3:] == (["1", "2", "}"] if name == "qwen" else ["{", "12", "}"])
    for index in range(-1, 24):
        for form in (f"{{{index}}}", f"{{ {index} }}", f"{{{index}}}$.\n"):
            assert pieces(f"So \\boxed{form}")[: len(pieces("So \\boxed"))] == pieces("So \\boxed")
            begun = ""
            for piece in pieces(f"So \\boxed{form}")[len(pieces("So \\boxed")) :]:
                begun += piece
                assert index in BOXED.may_name(begun, 24), begun
            assert BOXED.may_name(begun, 24) == [index]
    assert BOXED.may_name("{24}", 24) == BOXED.may_name("{-2", 24) == BOXED.may_name("{01", 24) == []
    assert BOXED.may_name("{2", 3) == [2]
    assert BOXED.may_name("{2", 24) == [2, 20, 21, 22, 23]


# Over a server


def listing(request: Request) -> Reply:
    """A critique; then, asked for one token after the reply that is given, those that may follow."""
    if request.body.get("max_tokens") != 1:
        return Reply(chat_answer("Paragraph 1 is wrong: \\boxed{1}", logprobs=request.body))
    said = request.body["messages"][-1]
    assert said["role"] == "assistant"
    given = QWEN[said["content"][said["content"].rindex("boxed") :]]
    entry = token(next(iter(given)), math.log(0.3), {text: math.log(share) for text, share in given.items()})
    answer = chat_answer("x")
    answer["choices"][0]["logprobs"] = {"content": [entry]}
    return Reply(answer)


async def play(request: Request, writer: asyncio.StreamWriter) -> Reply:
    return listing(request)


async def critic_of(engine: OpenAIEngine, **options: Any) -> SolutionReward:
    rewarder = load_rewarder("critic:openai:m", engine=engine, prompt=TEMPLATE, **options)
    await rewarder.start()
    return await rewarder.judge(Solution(id="p", problem="p", steps=("a", "b", "c")))


def test_an_endpoint_lists_what_may_follow() -> None:
    async def use(server: Server, engine: OpenAIEngine) -> None:
        reward = await critic_of(engine, first_error_exit=False)
        assert reward.rewards == pytest.approx([2 / 3, 1 / 2, 1 / 3])
        first, *asked = (request.body for request in server.requests)
        assert not {"logprobs", "top_logprobs"} & set(first)  # thousands of tokens come without them
        assert [body["top_logprobs"] for body in asked] == [20, 20]
        assert all(body["continue_final_message"] and "logprob_token_ids" not in body for body in asked)

    with_server(play, use, continue_final_message=True)


def test_an_endpoint_that_continues_no_reply_counts_votes() -> None:
    async def use(server: Server, engine: OpenAIEngine) -> None:
        reward = await critic_of(engine, first_error_exit=False)
        assert reward.rewards == [1.0, 0.0, 0.0]
        assert len(server.requests) == 1

    with_server(play, use)


REFUSED = {
    "temperature": "Unsupported value: 'temperature' does not support 0.9 with this model. Only the default (1) value.",
    "top_p": "Unsupported parameter: 'top_p' is not supported with this model.",
    "max_tokens": "Unsupported parameter: 'max_tokens' is not supported. Use 'max_completion_tokens' instead.",
    "logprobs": "Unsupported parameter: 'logprobs' is not supported with this model.",
    "stop": "Unsupported parameter: 'stop' is not supported with this model.",
}


@pytest.mark.parametrize("k", [1, 3])
def test_an_endpoint_of_o1s_kind(k: int, caplog: pytest.LogCaptureFixture) -> None:
    """It thinks out of sight, and takes no temperature, top-p, stop strings, log-probabilities or `max_tokens`: what it
    is asked has none of them, with one critique (else greedy) and with several."""

    def refusal(request: Request) -> Reply | None:
        named = (field for field in REFUSED if field in request.body)
        return next((error(400, REFUSED[field], code="unsupported_parameter", param=field) for field in named), None)

    async def reason(request: Request, writer: asyncio.StreamWriter) -> Reply:
        answer = chat_answer("Step by step ... \\boxed{2}", logprobs={})
        answer["usage"]["completion_tokens_details"] = {"reasoning_tokens": 900}
        return refusal(request) or Reply(answer)

    def setup(server: Server) -> None:
        server.probe = lambda request: refusal(request) or Reply(chat_answer("Yes", logprobs={}))

    async def use(server: Server, engine: OpenAIEngine) -> None:
        reward = await critic_of(engine, num_analyses=k, first_error_exit=False, stopping="none")
        assert reward.rewards == [1.0, 1.0, 0.0]
        assert [one.p_yes_source for one in reward.steps[-1].analyses] == ["vote"] * k
        bodies = [request.body for request in server.requests]
        assert len(bodies) == k
        assert not any(set(REFUSED) & set(body) for body in bodies)
        assert {body["max_completion_tokens"] for body in bodies} == {8192}

    with_server(reason, use, setup=setup)
    assert "takes no ['temperature', 'top_p']" in caplog.text


def test_a_thinking_model_is_read_after_its_thinking() -> None:
    """A box in the thinking, which comes apart, is no answer; the probabilities are asked for after the thinking."""

    async def think(request: Request, writer: asyncio.StreamWriter) -> Reply:
        reply = listing(request)
        if request.body.get("max_tokens") != 1:
            reply.body["choices"][0]["message"]["reasoning_content"] = "Is it \\boxed{0}? No."
        else:
            assert json.dumps(request.body).count("</think>") == 1
        return reply

    async def unsure(request: Request, writer: asyncio.StreamWriter) -> Reply:
        answer = chat_answer("I cannot tell.")
        answer["choices"][0]["message"]["reasoning_content"] = "Is it \\boxed{0}?"
        return Reply(answer)

    async def use(server: Server, engine: OpenAIEngine) -> None:
        reward = await critic_of(engine, first_error_exit=False)
        (critique,) = reward.steps[-1].analyses
        assert (reward.first_error, critique.p_yes) == (1, pytest.approx(1 / 3))
        assert critique.text.startswith("<think>\nIs it")

    async def use_unsure(server: Server, engine: OpenAIEngine) -> None:
        assert (await critic_of(engine)).first_error is None

    with_server(think, use, continue_final_message=True)
    with_server(unsure, use_unsure)
