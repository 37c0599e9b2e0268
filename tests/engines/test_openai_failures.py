"""Failures of endpoints: which are tried again, which end the run, and whom they cost."""

from __future__ import annotations

import asyncio
import email.utils
import gzip
import json
import time
from dataclasses import replace

import pytest
from loopback import (
    ANSWER,
    PROMPT,
    SAMPLING,
    Play,
    Reply,
    Request,
    Server,
    answering,
    chat_answer,
    error,
    generate,
    hanging,
    playing,
    running,
    with_server,
)

from rprm.engines.endpoint import Endpoint
from rprm.engines.openai import OpenAIEngine
from rprm.errors import EngineError, EngineUnavailable, RequestRefused

pytestmark = pytest.mark.usefixtures("impatient_client")


# Failures that pass


@pytest.mark.parametrize(
    "failure",
    [
        error(429, "slow down"),
        error(500, "oops"),
        error(503, "queue full"),
        Reply(b"<html>bad gateway</html>", 502),
        Reply(b"{not json"),
        Reply(b"[" * 100_000),
        Reply(b"\xff\xfe"),
        Reply([]),
        Reply({}),
        Reply({"choices": []}),
        Reply({"choices": ["x"]}),
        Reply({"choices": [{"index": 0, "message": {"content": text}} for text in ("x", ANSWER)]}),
        Reply({"choices": [{"message": {"content": 5}}]}),
        Reply({"choices": [{"message": {"content": "x"}, "finish_reason": "error"}]}),
        Reply({"error": {"message": "upstream overloaded", "code": 502}}),
        Reply(json.dumps(chat_answer(ANSWER)).encode()[:50], length=1000),
        Reply(b"no gzip", headers={"content-encoding": "gzip"}),
    ],
    ids=lambda reply: f"{reply.status}-{str(reply.body)[:24]}",
)
def test_failures_that_pass_are_retried(failure: Reply) -> None:
    async def use(server: Server, engine: OpenAIEngine) -> None:
        assert (await generate(server, engine)).text == ANSWER
        assert len(server.requests) == 3

    with_server(playing(failure, failure, Reply(chat_answer(ANSWER))), use)


def test_connection_cut_before_and_amid_the_answer() -> None:
    attempts = []

    async def play(request: Request, writer: asyncio.StreamWriter) -> Reply | None:
        attempts.append(request)
        if len(attempts) == 2:
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-le")
        if len(attempts) == 3:
            writer.write(b'HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\n{"cho')
        if len(attempts) < 4:
            await writer.drain()
            writer.transport.abort()
            return None
        return await answering(request, writer)

    async def use(server: Server, engine: OpenAIEngine) -> None:
        assert (await generate(server, engine)).text == ANSWER
        assert len(attempts) == 4

    with_server(play, use)


def test_retries_run_out() -> None:
    async def use(server: Server, engine: OpenAIEngine) -> None:
        server.apart = False
        with pytest.raises(EngineUnavailable, match=r"m at http.*503 queue full \(4 attempts\).*same command again"):
            await generate(server, engine)
        # A busy server is not asked whether it answers at all.
        assert len(server.requests) == 4

    with_server(playing(error(503, "queue full")), use, max_retries=3)


def test_a_prompt_that_always_fails_costs_itself_while_the_server_answers_others() -> None:
    async def use(server: Server, engine: OpenAIEngine) -> None:
        with pytest.raises(RequestRefused, match=r"500 out of range \(3 attempts\).*while the server answers other"):
            await generate(server, engine)
        # The server answered the question of the start again, and then this prompt was tried once more.
        assert (len(server.requests), len(server.probes)) == (4, 2)
        assert (await generate(server, engine)).text == ANSWER

    failures = [error(500, "out of range")] * 4
    with_server(playing(*failures, Reply(chat_answer(ANSWER))), use, max_retries=2)


def test_a_request_of_another_kind_that_always_fails_costs_itself_too() -> None:
    """The answers of `/pooling` have no choices."""

    async def play(request: Request, writer: asyncio.StreamWriter) -> Reply | None:
        return error(500, "out of range") if request.body["input"] == "bad" else Reply({"data": [1]})

    async def run() -> None:
        async with running(play) as (_, url):
            endpoint = Endpoint(url, "m", max_retries=1, key_env="RPRM_TEST_KEY")
            endpoint.open()
            assert await endpoint.post("/pooling", {"input": "good"}, dict, 1 << 16) == {"data": [1]}
            with pytest.raises(RequestRefused, match=r"500 out of range \(2 attempts\).*while the server answers"):
                await endpoint.post("/pooling", {"input": "bad"}, dict, 1 << 16)
            await endpoint.aclose()

    asyncio.run(run())


def test_a_server_that_comes_up_again_at_the_last_moment_costs_nothing() -> None:
    async def use(server: Server, engine: OpenAIEngine) -> None:
        assert (await generate(server, engine)).text == ANSWER
        assert len(server.requests) == 2

    with_server(playing(error(502, "restarting"), Reply(chat_answer(ANSWER))), use, max_retries=0)


@pytest.mark.parametrize("status", [425, 429])
def test_a_busy_server_ends_the_session_whatever_else_it_answers(status: int) -> None:
    async def use(server: Server, engine: OpenAIEngine) -> None:
        with pytest.raises(EngineUnavailable, match=f"{status} slow down"):
            await generate(server, engine)

    with_server(playing(error(status, "slow down")), use, max_retries=1)


@pytest.mark.parametrize("streamed", [False, True])
def test_what_was_withheld_keeps_its_reason_and_is_no_verdict(streamed: bool) -> None:
    withheld = [
        {"index": 0, "message": {"content": ANSWER}, "finish_reason": "content_filter"},
        {"index": 0, "message": {"content": None, "refusal": f"Sorry. {ANSWER}"}, "finish_reason": "stop"},
    ]
    if streamed:
        bodies = [{"choices": [choice | {"delta": choice["message"]}]} for choice in withheld]
        replies = [
            Reply(f"data: {json.dumps(body)}\n\ndata: [DONE]\n\n".encode(), 200, {"content-type": "text/event-stream"})
            for body in bodies
        ]
    else:
        replies = [Reply({"choices": [choice]}) for choice in withheld]

    async def use(server: Server, engine: OpenAIEngine) -> None:
        completions = [await generate(server, engine), await generate(server, engine)]
        assert [completion.finish_reason for completion in completions] == ["content_filter", "refusal"]
        assert [completion.text for completion in completions] == ["", ""]
        assert len(server.requests) == 2

    with_server(playing(*replies), use, stream=streamed)


def test_an_error_inside_an_answer_is_named() -> None:
    async def use(server: Server, engine: OpenAIEngine) -> None:
        server.apart = False
        with pytest.raises(EngineUnavailable, match=r"upstream overloaded \(502\)"):
            await generate(server, engine)

    with_server(playing(Reply({"error": {"message": "upstream overloaded", "code": 502}})), use, max_retries=0)


def test_a_hanging_and_a_dripping_server_run_into_the_timeout() -> None:
    async def dripping(request: Request, writer: asyncio.StreamWriter) -> Reply | None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 5000\r\n\r\n")
        while True:
            writer.write(b" ")
            await writer.drain()
            await asyncio.sleep(0.02)

    async def use(server: Server, engine: OpenAIEngine) -> None:
        begin = time.monotonic()
        server.apart = False
        with pytest.raises(EngineUnavailable, match="no full answer within timeout="):
            await generate(server, engine)
        assert 0.4 <= time.monotonic() - begin < 5.0

    for play in (hanging, dripping):
        with_server(play, use, timeout=0.2, max_retries=1)


def test_nobody_listens_where_the_url_points() -> None:
    async def run() -> None:
        async with running(answering) as (_, url):
            pass
        engine = OpenAIEngine(f"m@{url}", key_env="RPRM_TEST_KEY")
        # The full number of attempts would keep a mistyped URL waiting for half a minute.
        with pytest.raises(EngineUnavailable, match="Connect"):
            await engine.start()

    asyncio.run(run())


def waits_of(failure: Reply) -> list[float]:
    """How long the client waits before its one retry when this is all that it hears."""
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    async def use(server: Server, engine: OpenAIEngine) -> None:
        server.apart = False
        with pytest.raises(EngineUnavailable):
            await generate(server, engine)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.5)
        patch.setattr("anyio.sleep", sleep)
        with_server(playing(failure), use, max_retries=1)
    return waits


@pytest.mark.parametrize(
    ("header", "low", "high"),
    [
        ("7", 7.0, 7.0),
        ("0.9", 0.9, 0.9),
        ("soon", 0.25, 0.5),
        ("-5", 0.25, 0.5),
        ("nan", 0.25, 0.5),
        ("inf", 0.25, 0.5),
    ],
)
def test_retry_after_is_honoured_within_reason(header: str, low: float, high: float) -> None:
    (wait,) = waits_of(replace(error(429, "slow down"), headers={"retry-after": header}))
    assert low <= wait <= high


def test_a_server_that_asks_for_a_day_ends_the_session() -> None:
    assert waits_of(replace(error(429, "slow down"), headers={"retry-after": "86400"})) == []


@pytest.mark.parametrize(("header", "num_attempts"), [("retry-after", 1), ("retry-after-ms", 2)])
def test_how_often_it_was_tried_and_what_the_server_asked_for_is_told(header: str, num_attempts: int) -> None:
    async def use(server: Server, engine: OpenAIEngine) -> None:
        server.apart = False
        with pytest.raises(EngineUnavailable, match=rf"slow down, {header}: 300 \({num_attempts} attempts?\)"):
            await generate(server, engine)
        # 300 s are more than it waits, 300 ms are not.
        assert len(server.requests) == num_attempts

    with_server(playing(replace(error(429, "slow down"), headers={header: "300"})), use, max_retries=1)


@pytest.mark.parametrize(
    ("milliseconds", "seconds", "low", "high"),
    [("1500", "7", 1.5, 1.5), ("soon", "7", 7.0, 7.0), ("", "", 0.25, 0.5)],
)
def test_milliseconds_to_wait_come_before_seconds(milliseconds: str, seconds: str, low: float, high: float) -> None:
    headers = {"retry-after-ms": milliseconds, "retry-after": seconds}
    (wait,) = waits_of(replace(error(429, "slow down"), headers=headers))
    assert low <= wait <= high


@pytest.mark.parametrize(("seconds_ahead", "low", "high"), [(100, 40.0, 100.0), (-60, 0.25, 0.5)])
def test_retry_after_as_a_date(seconds_ahead: int, low: float, high: float) -> None:
    # The date is made here, not when the tests are collected: that may be many minutes ago.
    header = email.utils.formatdate(time.time() + seconds_ahead, usegmt=True)
    (wait,) = waits_of(replace(error(429, "slow down"), headers={"retry-after": header}))
    assert low <= wait <= high


# Failures that stay


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_refused_request_costs_its_record_alone(status: int) -> None:
    message = "The prompt holds 9000 pictures, which this model cannot see."

    async def use(server: Server, engine: OpenAIEngine) -> None:
        with pytest.raises(RequestRefused, match=message):
            await generate(server, engine)
        assert len(server.requests) == 1
        assert (await generate(server, engine)).text == ANSWER

    with_server(playing(error(status, message), Reply(chat_answer(ANSWER))), use)


#: How servers refuse `most` tokens beside a prompt of `prompt` where the context has `context`.
CONTEXT_REFUSALS = {
    "OpenAI, vLLM of old": "This model's maximum context length is {context} tokens. However, you requested {total} "
    "tokens ({prompt} in the messages, {most} in the completion). Please reduce the length of the messages.",
    "vLLM": "'max_tokens' or 'max_completion_tokens' is too large: {most}. This model's maximum context length is "
    "{context} tokens and your request has {prompt} input tokens ({most} > {context} - {prompt}).",
    "vLLM that stops counting": "This model's maximum context length is {context} tokens. However, you requested "
    "{most} output tokens and your prompt contains at least {least} input tokens, for a total of at least {over}.",
    "SGLang": "Requested token count exceeds the model's maximum context length of {context} tokens. You requested a "
    "total of {total} tokens: {prompt} tokens from the input messages and {most} tokens for the completion.",
    "TGI": "Input validation error: `inputs` tokens + `max_new_tokens` must be <= {context}. Given: {prompt} `inputs` "
    "tokens and {most} `max_new_tokens`",
    "short": "maximum context length is {context} tokens",
}


def with_context(words: str, prompt: int, context: int) -> Play:
    """A server that refuses what does not fit its context, and otherwise writes all that it may."""

    async def play(request: Request, writer: asyncio.StreamWriter) -> Reply | None:
        most = request.body["max_tokens"]
        if prompt + most > context:
            numbers = {"prompt": prompt, "most": most, "total": prompt + most}
            over = {"context": context, "least": context + 1 - most, "over": context + 1}
            return error(400, words.format(**numbers, **over), code="context_length_exceeded")
        usage = {"prompt_tokens": prompt, "completion_tokens": most}
        return Reply(chat_answer("It adds", finish_reason="length", logprobs=request.body, **usage))

    return play


@pytest.mark.parametrize("words", CONTEXT_REFUSALS.values(), ids=CONTEXT_REFUSALS)
def test_max_tokens_is_clipped_to_what_the_context_leaves(words: str) -> None:
    sampling = replace(SAMPLING, max_tokens=990)

    async def use(server: Server, engine: OpenAIEngine) -> None:
        completion = await engine.generate(PROMPT, sampling)
        # 1,000 of the context, 300 of the prompt: 700 tokens are left.
        assert (completion.finish_reason, completion.num_tokens, completion.num_prompt_tokens) == ("length", 700, 300)
        num_requests = len(server.requests)
        # Where the refusal does not tell the prompt's length, a request of one token does.
        assert [request.body["max_tokens"] for request in server.requests] in ([990, 700], [990, 1, 700])
        # It is remembered for the other analyses of the prompt.
        await engine.generate(PROMPT, replace(sampling, seed=8))
        assert len(server.requests) == num_requests + 1

    with_server(with_context(words, 300, 1000), use)


@pytest.mark.parametrize("words", CONTEXT_REFUSALS.values(), ids=CONTEXT_REFUSALS)
def test_a_prompt_is_refused_where_fewer_than_64_tokens_are_left(words: str) -> None:
    async def use(server: Server, engine: OpenAIEngine) -> None:
        with pytest.raises(
            RequestRefused, match=r"prompt has 937 tokens, which leaves 63 of the context length of 1000"
        ):
            await engine.generate(PROMPT, replace(SAMPLING, max_tokens=990))

    async def fits(server: Server, engine: OpenAIEngine) -> None:
        assert (await engine.generate(PROMPT, replace(SAMPLING, max_tokens=990))).num_tokens == 64

    with_server(with_context(words, 937, 1000), use)
    with_server(with_context(words, 936, 1000), fits)


@pytest.mark.parametrize("status", [400, 500])
def test_llama_cpp_tells_the_lengths_in_fields(status: int) -> None:
    more = {"type": "exceed_context_size_error", "n_prompt_tokens": 1407, "n_ctx": 256, "code": status}

    async def use(server: Server, engine: OpenAIEngine) -> None:
        with pytest.raises(
            RequestRefused, match=r"prompt has 1407 tokens, which leaves 0 of the context length of 256"
        ):
            await generate(server, engine)
        assert len(server.requests) == 1

    with_server(playing(error(status, "the request exceeds the available context size", **more)), use)


def test_a_model_that_writes_no_more_than_so_many_tokens_is_asked_for_these() -> None:
    refusal = error(
        400, "max_tokens is too large: 64. This model supports at most 40 completion tokens, whereas you ..."
    )

    async def use(server: Server, engine: OpenAIEngine) -> None:
        assert (await generate(server, engine)).text == ANSWER
        assert [request.body["max_tokens"] for request in server.requests] == [64, 40]

    with_server(playing(refusal, Reply(chat_answer(ANSWER))), use)


def test_a_completion_that_the_context_cuts_short_is_one() -> None:
    cut = chat_answer("It adds", finish_reason="length", completion_tokens=64)

    async def use(server: Server, engine: OpenAIEngine) -> None:
        completion = await engine.generate(PROMPT, replace(SAMPLING, max_tokens=4096))
        assert (completion.finish_reason, completion.num_tokens) == ("length", 64)

    with_server(playing(Reply(cut)), use)


def test_a_full_context_is_a_refusal_with_the_lengths() -> None:
    # 12 of 64 tokens, and the server says "length": its context of 20 + 12 is full.
    cut = chat_answer("It adds", finish_reason="length", completion_tokens=12)
    whole = chat_answer(ANSWER + " and so on", finish_reason="length", completion_tokens=12)

    async def use(server: Server, engine: OpenAIEngine) -> None:
        with pytest.raises(RequestRefused, match=r"prompt of 20 tokens.* stopped at 12 of max_tokens=64"):
            await generate(server, engine)
        # Where the verdict was reached before, nothing is lost.
        completion = await generate(server, engine)
        assert completion.finish_reason == "length"

    with_server(playing(Reply(cut), Reply(whole)), use)


def test_a_setting_that_the_model_does_not_take_ends_the_run() -> None:
    refusal = error(400, "'temperature' does not support 0.95", code="unsupported_value", param="temperature")

    async def use(server: Server, engine: OpenAIEngine) -> None:
        with pytest.raises(EngineError, match=r"takes no such setting.*temperature") as caught:
            await generate(server, engine)
        assert not isinstance(caught.value, RequestRefused)

    with_server(playing(refusal), use)


@pytest.mark.parametrize(
    ("reply", "kind", "message"),
    [
        (error(401, "who are you"), EngineError, "into the environment variable RPRM_TEST_KEY"),
        (error(403, "not for you"), EngineError, "RPRM_TEST_KEY"),
        (error(404, "The model `m` does not exist."), EngineError, "check the model's name"),
        (error(402, "pay"), EngineUnavailable, "mend the account"),
        (error(429, "You exceeded your quota", code="insufficient_quota"), EngineUnavailable, "mend the account"),
        (error(501, "not implemented"), EngineError, "not implemented"),
        (Reply(b"", 307, {"location": "https://elsewhere/v1"}), EngineError, "redirects to https://elsewhere/v1"),
        (Reply(b"", 304), EngineError, "redirects to elsewhere; "),
    ],
    ids=lambda value: str(value.status) if isinstance(value, Reply) else None,
)
def test_failures_of_every_request_end_the_run_with_the_fix(
    reply: Reply, kind: type[EngineError], message: str
) -> None:
    async def use(server: Server, engine: OpenAIEngine) -> None:
        with pytest.raises(kind, match=message) as caught:
            await generate(server, engine)
        assert not isinstance(caught.value, RequestRefused)
        assert len(server.requests) == 1

    with_server(playing(reply), use)


def test_a_model_that_is_not_served_is_answered_with_those_that_are() -> None:
    def setup(server: Server) -> None:
        server.probe = lambda request: error(404, "The model `m` does not exist.")
        server.models = Reply({"data": [{"id": "qwen"}, {"id": "llama"}]})

    async def use(server: Server, engine: OpenAIEngine) -> None:
        with pytest.raises(EngineError, match=r"does not exist.*offers: llama, qwen"):
            await engine.start()

    with_server(answering, use, setup=setup, start=False)


def test_a_huge_answer_is_not_read() -> None:
    async def flooding(request: Request, writer: asyncio.StreamWriter) -> Reply | None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n")
        try:
            while True:
                writer.write(b" " * (1 << 16))
                await writer.drain()
        except ConnectionError:
            return None

    async def bomb(request: Request, writer: asyncio.StreamWriter) -> Reply | None:
        return Reply(gzip.compress(b" " * (1 << 26)), headers={"content-encoding": "gzip"})

    async def use(server: Server, engine: OpenAIEngine) -> None:
        with pytest.raises(RequestRefused, match=r"far more than was asked for.*while the server answers"):
            await engine.generate(PROMPT, replace(SAMPLING, max_tokens=1))
        # It costs its step: the attempt, a retry, and one more once the server has answered another request.
        assert len(server.requests) == 3

    with_server(flooding, use, max_retries=1)
    with_server(bomb, use, max_retries=1)


def test_a_long_error_page_is_shown_in_part_and_without_control_characters() -> None:
    page = ("\x1b[31mred\x07 " + "x" * 200_000).encode()

    async def use(server: Server, engine: OpenAIEngine) -> None:
        with pytest.raises(RequestRefused) as caught:
            await generate(server, engine)
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) < 600

    with_server(playing(Reply(page, 400, {"content-type": "text/html"})), use)
