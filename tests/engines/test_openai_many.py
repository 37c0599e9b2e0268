"""Many requests at once, one request for equal prompts, and streams."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from loopback import (
    ANSWER,
    PROMPT,
    SAMPLING,
    VERDICT,
    Reply,
    Request,
    Server,
    answering,
    chat_answer,
    error,
    events,
    generate,
    hanging,
    numbered,
    playing,
    samples,
    streaming,
    with_server,
)

from rprm.engines import Completion
from rprm.engines.openai import OpenAIEngine
from rprm.engines.openai_answers import Stream, read_completions
from rprm.errors import EngineError, RequestRefused

pytestmark = pytest.mark.usefixtures("impatient_client")


# Many at once, and giving up


def test_no_more_requests_than_asked_for_are_under_way() -> None:
    four = asyncio.Event()
    arrived = []

    async def play(request: Request, writer: asyncio.StreamWriter) -> Reply | None:
        # The first ones stay until four are there, however slow the machine.
        arrived.append(request)
        if len(arrived) == 4:
            four.set()
        await four.wait()
        await asyncio.sleep(0.01)
        return await answering(request, writer)

    async def use(server: Server, engine: OpenAIEngine) -> None:
        await asyncio.gather(*(engine.generate(PROMPT, replace(SAMPLING, seed=seed)) for seed in range(25)))
        assert len(server.requests) == 25
        assert server.most_active == 4

    with_server(play, use, concurrency=4)


@pytest.mark.parametrize("options", [{}, {"stream": True}, {"share_prompts": True}], ids=str)
def test_a_cancelled_call_closes_its_connection(options: dict[str, Any]) -> None:
    async def use(server: Server, engine: OpenAIEngine) -> None:
        task = asyncio.create_task(generate(server, engine))
        while not server.active:
            await asyncio.sleep(0.001)
        task.cancel()
        await asyncio.wait_for(server.disconnected.wait(), 5)
        with pytest.raises(asyncio.CancelledError):
            await task
        # Its slot is free again.
        server.play = answering
        assert (await asyncio.wait_for(generate(server, engine), 5)).text == ANSWER

    with_server(hanging, use, concurrency=1, **options)


def test_closing_ends_what_is_under_way_and_can_be_done_twice() -> None:
    async def use(server: Server, engine: OpenAIEngine) -> None:
        task = asyncio.create_task(generate(server, engine))
        while not server.active:
            await asyncio.sleep(0.001)
        await engine.aclose()
        await engine.aclose()
        with pytest.raises((asyncio.CancelledError, EngineError)):
            await task
        with pytest.raises(EngineError, match="not started"):
            await generate(server, engine)
        # And it can be started again.
        await engine.start()
        server.play = answering
        assert (await generate(server, engine)).text == ANSWER

    with_server(hanging, use, share_prompts=True)
    with_server(hanging, use, max_retries=0)


# One request for equal prompts


def test_equal_prompts_at_once_are_one_request() -> None:
    async def use(server: Server, engine: OpenAIEngine) -> None:
        assert not (await engine.start()).has_seeds
        completions = await asyncio.gather(*samples(engine, range(5, 8)), *samples(engine, range(2), temperature=0.5))
        assert sorted(request.body["n"] for request in server.requests) == [2, 3]
        assert [completion.text.split(" more")[0] for completion in completions] == [
            "seed 5 choice 0", "seed 5 choice 1", "seed 5 choice 2", "seed 0 choice 0", "seed 0 choice 1",
        ]  # fmt: skip
        # Tokens are counted in the log-probabilities: 4 words, and one more for each "more".
        assert [completion.num_tokens for completion in completions] == [4, 5, 6, 4, 5]
        assert [completion.num_prompt_tokens for completion in completions] == [20] * 5
        # The first completion of a request pays for the prompt, the others read it for nothing.
        assert [completion.num_cached_prompt_tokens for completion in completions] == [16, 20, 20, 16, 20]

    with_server(numbered(), use, share_prompts=True)


def test_tokens_of_shared_requests_without_logprobs_add_up_to_the_usage() -> None:
    # 2 + 10 + 20 bytes and one for each text: 3, 11 and 21 of 35 parts of 70 tokens.
    answer = chat_answer("a" * 2, "b" * 10, "c" * 20, logprobs={}, completion_tokens=70)
    completions = read_completions(answer, SAMPLING, 3)
    assert [completion.num_tokens for completion in completions] == [6, 22, 42]


def test_a_call_later_than_the_window_makes_a_request_of_its_own() -> None:
    async def use(server: Server, engine: OpenAIEngine) -> None:
        first = samples(engine, range(2))
        await asyncio.sleep(0.1)
        await asyncio.gather(*first, *samples(engine, range(2, 3)))
        assert [request.body.get("n") for request in server.requests] == [2, None]
        assert server.requests[1].body["seed"] == 2

    with_server(numbered(), use, share_prompts=True)


def test_fewer_completions_than_asked_for_are_made_up_for() -> None:
    async def ignoring_n(request: Request, writer: asyncio.StreamWriter) -> Reply | None:
        return Reply(chat_answer(f"seed {request.body['seed']}"))

    async def use(server: Server, engine: OpenAIEngine) -> None:
        completions = await asyncio.gather(*samples(engine, range(4)))
        assert [completion.text for completion in completions] == [f"seed {seed}" for seed in range(4)]
        assert [request.body.get("n") for request in server.requests] == [4, None, None, None]
        # Learned once: it is not asked for several again.
        await asyncio.gather(*samples(engine, range(2)))
        assert [request.body.get("n") for request in server.requests[4:]] == [None, None]

    with_server(ignoring_n, use, share_prompts=True)


def test_a_refused_number_of_completions_is_halved() -> None:
    async def use(server: Server, engine: OpenAIEngine) -> None:
        completions = await asyncio.gather(*samples(engine, range(8)))
        # 8 are refused, 1 is served, 4 and 3 follow.
        assert sorted(request.body.get("n", 1) for request in server.requests) == [1, 3, 4, 8]
        assert len({completion.text for completion in completions}) == 8

    with_server(numbered(most=4), use, share_prompts=True)


def test_a_refused_prompt_is_refused_to_every_caller() -> None:
    async def use(server: Server, engine: OpenAIEngine) -> None:
        outcomes = await asyncio.gather(*samples(engine, range(6)), return_exceptions=True)
        assert [str(outcome) for outcome in outcomes] == ["the server refused the request (400): too long"] * 6
        assert {type(outcome).__mro__[1] for outcome in outcomes} == {RequestRefused}
        assert len({id(outcome) for outcome in outcomes}) == 6
        # Once for all and once for one: no cascade of halves.
        assert len(server.requests) == 2

    with_server(playing(error(400, "too long")), use, share_prompts=True)


def test_a_cancelled_caller_leaves_the_others_alone() -> None:
    arrived = asyncio.Event()
    go = asyncio.Event()

    async def play(request: Request, writer: asyncio.StreamWriter) -> Reply | None:
        arrived.set()
        await go.wait()
        return await numbered()(request, writer)

    async def use(server: Server, engine: OpenAIEngine) -> None:
        calls = samples(engine, range(4))
        await asyncio.sleep(0)
        calls[3].cancel()  # before it is sent
        await arrived.wait()
        assert server.requests[0].body["n"] == 3
        calls[0].cancel()  # after
        await asyncio.sleep(0.01)
        assert not server.disconnected.is_set()
        go.set()
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [
            asyncio.CancelledError, Completion, Completion, asyncio.CancelledError,
        ]  # fmt: skip
        assert outcomes[1].text.startswith("seed 0 choice 1")
        # With nobody left, the request is given up.
        go.clear()
        arrived.clear()
        calls = samples(engine, range(2))
        await arrived.wait()
        for call in calls:
            call.cancel()
        await asyncio.wait_for(server.disconnected.wait(), 5)
        assert len(server.requests) == 2

    with_server(play, use, share_prompts=True)


def test_a_call_after_others_were_cancelled_is_served() -> None:
    async def use(server: Server, engine: OpenAIEngine) -> None:
        calls = samples(engine, range(2))
        await asyncio.sleep(0)
        for call in calls:
            call.cancel()
        await asyncio.sleep(0)
        # The request of the others is being given up.
        (late,) = samples(engine, range(7, 8))
        assert (await late).text == "seed 7 choice 0"
        assert len(server.requests) == 1

    with_server(numbered(), use, share_prompts=True)


@pytest.mark.parametrize("num_turns", [0, 1, 2, 3])
def test_calls_that_share_a_request_end_with_the_engine_and_leave_nothing_behind(num_turns: int) -> None:
    async def use(server: Server, engine: OpenAIEngine) -> None:
        calls = samples(engine, range(2))
        for _ in range(num_turns):
            await asyncio.sleep(0)
        await engine.aclose()
        done, _ = await asyncio.wait(calls, timeout=5)
        assert len(done) == 2
        await engine.start()
        for call in (calls := samples(engine, range(2))):
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        await asyncio.sleep(0.05)
        assert not engine._batches
        assert not engine._tasks

    with_server(numbered(), use, share_prompts=True)


# Streams


def test_a_stream_gives_what_the_whole_answer_gives() -> None:
    whole = with_server(answering, generate)

    async def use(server: Server, engine: OpenAIEngine) -> None:
        completion = await generate(server, engine)
        assert server.requests[0].body["stream_options"] == {"include_usage": True}
        assert completion == whole

    with_server(streaming(ANSWER), use, stream=True)
    # Some servers stream only when they feel like it.
    with_server(answering, use, stream=True)


def test_a_stream_is_hung_up_on_after_the_verdict() -> None:
    endless = ANSWER + " and on" * 40

    async def play(request: Request, writer: asyncio.StreamWriter) -> Reply | None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n")
        writer.write(events(endless, logprobs=request.body, usage=False, done=False, finish=False))
        await writer.drain()
        return await hanging(request, writer)

    async def use(server: Server, engine: OpenAIEngine) -> None:
        completion = await asyncio.wait_for(generate(server, engine), 5)
        assert completion.text == ANSWER
        assert (completion.finish_reason, completion.ended) == ("verdict", False)
        # 8 tokens up to the verdict and 3 that show it final; the number of prompt tokens would have come at the end.
        assert (completion.num_tokens, completion.num_prompt_tokens) == (11, None)
        assert completion.choices[-1].p_yes == pytest.approx(0.8 / 0.95)
        await asyncio.wait_for(server.disconnected.wait(), 5)

    with_server(play, use, stream=True)


def test_a_streamed_verdict_is_settled_by_what_follows_it() -> None:
    def fed(text: str) -> tuple[str, str | None]:
        """A character an event: the text and the finish reason when the stream is hung up on, or at its end."""
        stream = Stream(VERDICT)
        for character in text:
            if stream.add({"choices": [{"index": 0, "delta": {"content": character}}]}):
                break
        else:
            stream.add({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
        (choice,) = stream.whole()["choices"]
        return choice["text"], choice["finish_reason"]

    tail = " and so on and on"
    for answer in (" Yes", "\n**no"):
        assert fed(f"{VERDICT.marker}{answer}{tail}") == (f"{VERDICT.marker}{answer}", "verdict")
    # A question that is repeated settles nothing.
    assert fed(f"{VERDICT.marker} Yes / No? And so on and on")[1] == "stop"
    # Neither is an answer; the second marker has one.
    for start in ("Yes/No, says the task.", "Nobody knows by now.", "Yes / No? "):
        before = f"{VERDICT.marker} {start} {VERDICT.marker}"
        assert fed(f"{before} No{tail}") == (f"{before} No", "verdict")
        assert fed(f"{VERDICT.marker} {start}{tail}") == (f"{VERDICT.marker} {start}{tail}", "stop")


def test_a_stream_of_several_texts_ends_when_all_have_their_verdict() -> None:
    texts = (ANSWER + " and then it goes on", "No verdict here, only many words")

    async def use(server: Server, engine: OpenAIEngine) -> None:
        completions = await asyncio.gather(*samples(engine, range(2)))
        assert [completion.text for completion in completions] == [ANSWER, texts[1]]
        # "It adds up.\nIs the step correct (Yes/No)? Yes and then it goes on": 13 words; the other: 6.
        assert [completion.num_tokens for completion in completions] == [13, 6]
        assert [len(completion.choices) for completion in completions] == [1, 1]

    with_server(streaming(*texts), use, stream=True, share_prompts=True)


@pytest.mark.parametrize(
    "broken",
    [
        events(ANSWER, logprobs={}, done=False, finish=False),
        b"data: {not json\n\n",
        b'data: {"error": {"message": "out of memory"}}\n\n',
        b"data: [DONE]\n\n",
        events(ANSWER, logprobs={}, finish=False),
        b"",
    ],
)
def test_a_broken_stream_is_retried(broken: bytes) -> None:
    attempts = []

    async def play(request: Request, writer: asyncio.StreamWriter) -> Reply | None:
        attempts.append(request)
        if len(attempts) == 1:
            return Reply(broken, headers={"content-type": "text/event-stream"})
        return await streaming(ANSWER)(request, writer)

    async def use(server: Server, engine: OpenAIEngine) -> None:
        assert (await generate(server, engine)).text == ANSWER
        assert len(attempts) == 2

    with_server(play, use, stream=True)


def test_an_endless_line_is_not_read() -> None:
    async def use(server: Server, engine: OpenAIEngine) -> None:
        with pytest.raises(RequestRefused, match="far more than was asked for"):
            await engine.generate(PROMPT, replace(SAMPLING, max_tokens=1))

    body = b"data: " + b"x" * (1 << 22)
    with_server(playing(Reply(body, headers={"content-type": "text/event-stream"})), use, stream=True, max_retries=0)
