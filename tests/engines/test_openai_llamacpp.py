"""The engine for endpoints against a real llama.cpp server with a real model."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import TypeVar

import httpx2
import pytest

from rprm.engines import Sampling, load_engine
from rprm.engines.check import TRIALS, check_engine
from rprm.engines.openai import OpenAIEngine
from rprm.errors import RequestRefused
from rprm.prompts.template import Message, Prompt
from rprm.verdict import VerdictFormat

T = TypeVar("T")
YES_NO = Prompt((Message("user", "Is 2 + 2 equal to 4? Reply with exactly one word, Yes or No."),))
STORY = Prompt((Message("user", "Write a story about a cat."),))


def with_engine(url: str, use: Callable[[OpenAIEngine], Awaitable[T]], **options: object) -> T:
    async def run() -> T:
        engine = OpenAIEngine(f"smollm2@{url}", continue_final_message=True, **options)
        await engine.start()
        try:
            return await use(engine)
        finally:
            await engine.aclose()

    return asyncio.run(run())


def test_start_learns_what_the_server_is(llamacpp_url: str) -> None:
    async def use(engine: OpenAIEngine) -> None:
        info = await engine.start()
        assert (info.kind, info.model, info.context_length) == ("openai", "smollm2", 4096)
        assert info.has_logprobs
        assert info.has_seeds
        assert info.details == {"url": llamacpp_url, "api": "chat/completions", "top_logprobs": 20}

    with_engine(llamacpp_url, use)


@pytest.mark.parametrize("stream", [False, True])
def test_choice_at_the_verdict_is_that_of_the_servers_own_logprobs(llamacpp_url: str, stream: bool) -> None:
    async def use(engine: OpenAIEngine) -> None:
        completion = await engine.generate(YES_NO, Sampling(temperature=0.0, max_tokens=4, verdict=VerdictFormat()))
        assert completion.text.startswith("Yes")
        (choice,) = completion.choices
        assert choice.start == 0
        body = {
            "messages": [{"role": "user", "content": YES_NO.text}],
            "max_tokens": 1,
            "temperature": 2.0,
            "top_p": 0.5,
            "logprobs": True,
            "top_logprobs": 20,
        }
        async with httpx2.AsyncClient(trust_env=False) as client:
            answer = (await client.post(f"{llamacpp_url}/chat/completions", json=body, timeout=60)).json()
        listed = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
        by_token = {entry["token"]: entry["logprob"] for entry in listed}
        # The greatest of the variants bounds the sum from below, and it is the distribution before temperature and
        # top-p: this request used others than the one above.
        assert by_token["Yes"] - 1e-3 <= choice.logprob_yes <= by_token["Yes"] + 0.2
        assert by_token["No"] - 1e-3 <= choice.logprob_no <= by_token["No"] + 0.2

    with_engine(llamacpp_url, use, stream=stream)


def test_second_pass_agrees_with_the_generation(llamacpp_url: str) -> None:
    async def use(engine: OpenAIEngine) -> None:
        verdict = VerdictFormat()
        for prompt, text in (
            (YES_NO, "The answer is"),
            (Prompt((Message("user", "Question: is 2 + 2 = 4? Answer (Yes/No):"),), chat=False), " I say"),
        ):
            choice = await engine.choose(prompt, text, verdict)
            assert choice.start == len(text)
            again = await engine.choose(prompt, text, verdict)
            assert again.p_yes == pytest.approx(choice.p_yes, abs=1e-3)
        # An empty beginning is the generation itself.
        generated = await engine.generate(YES_NO, Sampling(temperature=0.0, max_tokens=1, verdict=verdict))
        empty = await engine.choose(YES_NO, "", verdict)
        assert empty.p_yes == pytest.approx(generated.choices[0].p_yes, abs=1e-3)

    with_engine(llamacpp_url, use)


@pytest.mark.parametrize("stream", [False, True])
def test_a_begun_reply_is_continued(llamacpp_url: str, stream: bool) -> None:
    async def use(engine: OpenAIEngine) -> None:
        for prompt in (STORY, Prompt((Message("user", "Once upon a time, a cat"),), chat=False)):
            sampling = Sampling(temperature=0.0, max_tokens=24)
            whole = await engine.generate(prompt, sampling)
            half = whole.text.index(" ", len(whole.text) // 2)
            begun = replace(prompt, reply=whole.text[:half])
            rest = await engine.generate(begun, sampling)
            # It goes on for 24 tokens, past the end of the first reply.
            assert (begun.reply + rest.text).startswith(whole.text)
            assert rest.num_tokens == 24
            assert rest.num_prompt_tokens is not None
            assert whole.num_prompt_tokens is not None
            assert rest.num_prompt_tokens > whole.num_prompt_tokens

    with_engine(llamacpp_url, use, stream=stream)


@pytest.mark.parametrize("stream", [False, True])
def test_whether_the_model_ended_is_known_where_nothing_else_could_have(llamacpp_url: str, stream: bool) -> None:
    async def use(engine: OpenAIEngine) -> None:
        sampling = Sampling(temperature=0.0, max_tokens=32)
        ended = await engine.generate(YES_NO, sampling)
        assert (ended.finish_reason, ended.ended) == ("stop", True)
        # llama.cpp does not say whether it was the stop string.
        assert (await engine.generate(YES_NO, replace(sampling, stop=("zebra",)))).ended is None
        assert (await engine.generate(STORY, replace(sampling, stop=(" ",)))).ended is None
        assert (await engine.generate(STORY, sampling)).ended is False

    with_engine(llamacpp_url, use, stream=stream)


@pytest.mark.slow
def test_seeds_reproduce(llamacpp_url: str) -> None:
    async def use(engine: OpenAIEngine) -> None:
        sampling = Sampling(max_tokens=16, seed=5)
        alone = await engine.generate(STORY, sampling)
        assert (await engine.generate(STORY, sampling)).text == alone.text
        # Not with others of its own seed: in batches of another size this server's last bits differ.
        among = await asyncio.gather(*(engine.generate(STORY, replace(sampling, seed=seed)) for seed in (7, 6, 8, 9)))
        assert len({completion.text for completion in (alone, *among)}) == 5
        assert all(completion.num_tokens == 16 and completion.finish_reason == "length" for completion in among)
        # By now every slot has read the prompt: only its last token is read again.
        again = await engine.generate(STORY, sampling)
        assert again.num_prompt_tokens == alone.num_prompt_tokens
        assert again.num_cached_prompt_tokens == again.num_prompt_tokens - 1

    with_engine(llamacpp_url, use)


def test_shared_prompts_come_in_requests_of_at_most_the_servers_slots(llamacpp_url: str) -> None:
    async def use(engine: OpenAIEngine) -> None:
        sampling = Sampling(max_tokens=8, verdict=VerdictFormat())
        samples = await asyncio.gather(*(engine.generate(STORY, replace(sampling, seed=seed)) for seed in range(6)))
        # llama.cpp refuses more completions than slots (4): 6 are refused, one is served alone, 3 and 2 follow.
        assert len({sample.text for sample in samples}) == 6
        assert all(sample.num_tokens == 8 for sample in samples)

    with_engine(llamacpp_url, use, share_prompts=True)


def test_long_prompt_is_refused_with_its_length(llamacpp_url: str) -> None:
    async def use(engine: OpenAIEngine) -> None:
        with pytest.raises(RequestRefused, match=r"\d{4} tokens.*4096"):
            await engine.generate(Prompt((Message("user", "word " * 5000),)), Sampling(max_tokens=8))

    with_engine(llamacpp_url, use)


def test_stream_ends_at_the_verdict_and_a_cancel_frees_the_slot(llamacpp_url: str) -> None:
    server = llamacpp_url.removesuffix("/v1")

    async def num_busy(client: httpx2.AsyncClient) -> int:
        return sum(slot["is_processing"] for slot in (await client.get(f"{server}/slots")).json())

    async def use(engine: OpenAIEngine) -> None:
        # A pattern that any model goes on with: the verdict of the line after the next ends the stream.
        verdict = VerdictFormat(marker="Correct?")
        pattern = "".join(f"{n} + {n} = {2 * n}. Correct? Yes\n" for n in range(1, 8))
        lines = Prompt((Message("user", pattern + "8 + 8 = 16. Correct?"),), chat=False)
        completion = await engine.generate(lines, Sampling(temperature=0.0, max_tokens=200, verdict=verdict))
        assert completion.finish_reason == "verdict"
        assert completion.num_tokens < 60
        found = verdict.find(completion.text)
        assert found is not None
        assert found.start in [choice.start for choice in completion.choices]
        async with httpx2.AsyncClient(trust_env=False, timeout=30) as client:
            task = asyncio.create_task(engine.generate(STORY, Sampling(max_tokens=3000, seed=1)))
            deadline = time.monotonic() + 20
            while not await num_busy(client) and time.monotonic() < deadline:
                await asyncio.sleep(0.02)
            assert not task.done()
            task.cancel()
            while (busy := await num_busy(client)) and time.monotonic() < deadline:
                await asyncio.sleep(0.02)
            assert busy == 0

    with_engine(llamacpp_url, use, stream=True)


@pytest.mark.slow
def test_check_finds_what_the_server_can_do(llamacpp_url: str) -> None:
    async def run() -> None:
        engine = load_engine(f"openai:smollm2@{llamacpp_url}?continue_final_message=true")
        try:
            report = await check_engine(engine)
        finally:
            await engine.aclose()
        answers = {name: report[name]["answer"] for name in TRIALS}
        # Whether samples run faster side by side depends on what else the machine does.
        assert answers.pop("concurrency") in ("yes", "no", "unknown")
        assert answers == {
            "logprobs": "yes",
            "raw_logprobs": "yes",
            "seeds": "yes",
            "prefix_sharing": "yes",
            "context_limit": "yes",
            "second_pass": "yes",
            "continued_reply": "yes",
        }
        assert report["tokens_per_second"] is not None
        assert report["tokens_per_second"] > 0
        cached, total = report["details"]["prefix"].values()
        assert cached >= 0.8 * total

    asyncio.run(run())
