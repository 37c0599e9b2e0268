"""The engine for endpoints against a server on loopback: asking, what the server takes, and the key."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import httpx2
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
    generate,
    playing,
    with_server,
)

from rprm.engines import Engine, EngineInfo, Sampling, load_engine
from rprm.engines.endpoint import Endpoint
from rprm.engines.openai import OpenAIEngine
from rprm.errors import EngineError, EngineUnavailable, RequestRefused
from rprm.verdict import read_verdict

pytestmark = pytest.mark.usefixtures("impatient_client")


# Asking and reading


def test_request_says_what_was_asked_and_the_completion_what_was_answered() -> None:
    async def use(server: Server, engine: OpenAIEngine) -> None:
        completion = await generate(server, engine)
        assert server.requests[0].path == "/v1/chat/completions"
        assert server.requests[0].body == {
            "model": "m",
            "messages": [{"role": "system", "content": "Judge."}, {"role": "user", "content": "Is it right?"}],
            "temperature": 0.95,
            "top_p": 0.9,
            "max_tokens": 64,
            "seed": 7,
            "logprobs": True,
            "top_logprobs": 20,
        }
        assert completion.text == ANSWER
        assert completion.finish_reason == "stop"
        # "It adds up.\nIs the step correct (Yes/No)? Yes" cut at its spaces: 8 tokens.
        assert (completion.num_tokens, completion.num_prompt_tokens) == (8, 20)
        verdict, choice = read_verdict(completion.text, VERDICT, completion.choices) or (None, None)
        assert verdict is not None
        assert verdict.yes
        # 0.8 of Yes against 0.15 of No.
        assert choice is not None
        assert choice.p_yes == pytest.approx(0.8 / 0.95)
        plain = await engine.generate(PROMPT, Sampling(stop=("\n\n",)))
        assert plain.choices == ()
        assert server.requests[1].body["stop"] == ["\n\n"]
        assert not {"logprobs", "top_logprobs", "seed"} & set(server.requests[1].body)

    with_server(answering, use)


def test_engine_is_made_from_its_spec_and_follows_the_protocol() -> None:
    spec = 'openai:org/model@v2@http://127.0.0.1:1/v1/?concurrency=3&share_prompts=true&extra={"top_k":0,"min_p":0}'
    engine = load_engine(spec)
    assert isinstance(engine, OpenAIEngine)
    assert isinstance(engine, Engine)
    assert (engine.model, engine.url, engine.concurrency) == ("org/model@v2", "http://127.0.0.1:1/v1", 3)
    assert engine.extra == {"top_k": 0, "min_p": 0}
    assert engine.spec == spec
    assert OpenAIEngine("gpt-4o").url == "https://api.openai.com/v1"


@pytest.mark.parametrize(
    ("target", "options", "message"),
    [
        ("m@localhost:8000/v1", {}, "MODEL@http"),
        ("@http://localhost/v1", {}, "MODEL@http"),
        ("m@http://", {}, "MODEL@http"),
        ("m@http://host:port/v1", {}, "MODEL@http"),
        ("m@http://host/v1?key=1", {}, "MODEL@http"),
        ("m@https://host/v1#here", {}, "MODEL@http"),
        ("m", {"concurrency": 0}, "concurrency=0"),
        ("m", {"timeout": float("nan")}, "timeout=nan"),
    ],
)
def test_malformed_targets_and_options(target: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(EngineError, match=message):
        OpenAIEngine(target, **options)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ("[1]", r"extra='\[1\]'"),
        ("{", "extra='{'"),
        ('{"top_k": 0, "temperature": 2}', "may not set temperature"),
        ('{"echo": true}', "may not set echo"),
    ],
)
def test_malformed_extra_fields(extra: str, message: str) -> None:
    with pytest.raises(EngineError, match=message):
        load_engine("openai:m", extra=extra)


def test_a_host_that_no_url_can_have() -> None:
    with pytest.raises(EngineError, match="malformed"):
        asyncio.run(OpenAIEngine("m@http://a\x01b/v1").start())


def test_password_in_a_url_is_refused_without_repeating_it() -> None:
    with pytest.raises(EngineError, match="password") as caught:
        load_engine("openai:m@https://user:s3cret@host/v1")
    assert "s3cret" not in str(caught.value)


def test_start_tells_what_the_server_is() -> None:
    async def use(server: Server, engine: OpenAIEngine) -> EngineInfo:
        assert await engine.start() is await engine.start()
        assert len(server.probes) == 1
        assert server.probes[0].body["max_tokens"] <= 4
        return await engine.start()

    info = with_server(answering, use, extra={"top_k": 0})
    assert (info.kind, info.model, info.context_length) == ("openai", "m", 4096)
    assert (info.has_logprobs, info.has_seeds, info.has_second_pass, info.shares_prompts) == (True, True, False, False)
    assert info.details["extra"] == {"top_k": 0}
    assert info.details["top_logprobs"] == 20


@pytest.mark.parametrize(
    ("card", "length"),
    [
        ({"id": "other", "meta": {"n_ctx": 4096, "n_ctx_train": 8192}}, 4096),
        ({"id": "m", "context_window": 128000}, 128000),
        ({"id": "m", "max_model_len": "many"}, None),
        ("m", None),
    ],
)
def test_context_length_under_the_names_of_several_servers(card: Any, length: int | None) -> None:
    async def use(server: Server, engine: OpenAIEngine) -> EngineInfo:
        return await engine.start()

    def setup(server: Server) -> None:
        server.models = Reply({"data": [card]})

    assert with_server(answering, use, setup=setup).context_length == length
    assert with_server(answering, use, setup=setup, context_length=99).context_length == 99


def test_a_list_of_models_that_cannot_be_had_is_no_error() -> None:
    def setup(server: Server) -> None:
        server.models = Reply(b"<html>", 500)

    async def use(server: Server, engine: OpenAIEngine) -> EngineInfo:
        return await engine.start()

    assert with_server(answering, use, setup=setup).context_length is None


# What servers refuse


def refusing(**limits: Any) -> Callable[[Server], None]:
    """A server that refuses requests with a field, or with more than a number in it, in the words of real ones."""
    words = {
        "top_logprobs": "Invalid value for 'top_logprobs': must be less than or equal to {limit}.",
        "logprobs": "logprobs is not supported by this model",
        "seed": "Extra inputs are not permitted: seed",
        "max_tokens": "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.",
        "stream_options": "unknown field stream_options",
        "max_completion_tokens": "Extra inputs are not permitted: max_completion_tokens",
        "top_p": "Unsupported parameter: 'top_p' is not supported with this model.",
        "temperature": "Unsupported value: 'temperature' does not support 0.9 with this model. "
        "Only the default (1) value is supported.",
    }

    def setup(server: Server) -> None:
        def probe(request: Request) -> Reply:
            for name, limit in limits.items():
                value = request.body.get(name)
                if value is not None and (limit is None or value > limit):
                    return error(400, words[name].format(limit=limit), code="unsupported_parameter")
            return Reply(chat_answer("Yes", logprobs=request.body))

        server.probe = probe

    return setup


@pytest.mark.parametrize(
    ("limits", "top_logprobs", "num_probes"),
    [({"top_logprobs": 5}, 5, 2), ({"top_logprobs": 3}, 0, 3), ({"logprobs": None}, 0, 3), ({}, 20, 1)],
)
def test_top_logprobs_step_down_to_what_the_server_gives(
    limits: dict[str, Any], top_logprobs: int, num_probes: int
) -> None:
    async def use(server: Server, engine: OpenAIEngine) -> None:
        info = await engine.start()
        assert len(server.probes) == num_probes
        assert info.has_logprobs == (top_logprobs > 0)
        assert info.details["top_logprobs"] == top_logprobs
        completion = await generate(server, engine)
        assert server.requests[0].body.get("top_logprobs", 0) == top_logprobs
        # Without log-probabilities the verdict is still there: the hard vote.
        assert read_verdict(completion.text, VERDICT, completion.choices) is not None
        assert len(completion.choices) == (1 if top_logprobs else 0)

    with_server(answering, use, setup=refusing(**limits))


def test_every_other_refusal_is_learned_at_the_start_too() -> None:
    async def use(server: Server, engine: OpenAIEngine) -> None:
        info = await engine.start()
        assert len(server.probes) == 4
        assert not info.has_seeds
        await generate(server, engine)
        body = server.requests[0].body
        assert body["max_completion_tokens"] == 64
        assert body["stream"]
        assert not {"max_tokens", "seed", "stream_options"} & set(body)

    with_server(answering, use, setup=refusing(max_tokens=None, seed=None, stream_options=None), stream=True)


def test_settings_that_a_model_does_not_take_are_left_out_and_recorded(caplog: pytest.LogCaptureFixture) -> None:
    """OpenAI's o-series: another name for the length, no temperature but 1, no top_p, no log-probabilities."""

    async def use(server: Server, engine: OpenAIEngine) -> None:
        info = await engine.start()
        assert info.details["not_sent"] == ["temperature", "top_p"]
        assert info.details["length_field"] == "max_completion_tokens"
        assert "takes no ['temperature', 'top_p']: its own defaults apply" in caplog.text
        await engine.generate(PROMPT, replace(SAMPLING, temperature=0.0))
        body = server.requests[0].body
        assert body["max_completion_tokens"] == 64
        assert not {"max_tokens", "temperature", "top_p", "logprobs", "top_logprobs"} & set(body)

    with_server(answering, use, setup=refusing(max_tokens=None, temperature=None, top_p=None, logprobs=None))


def test_a_length_that_is_taken_under_no_name_is_left_out() -> None:
    async def use(server: Server, engine: OpenAIEngine) -> None:
        info = await engine.start()
        assert info.details["length_field"] is None
        assert "not_sent" not in info.details
        await generate(server, engine)
        assert not {"max_tokens", "max_completion_tokens"} & set(server.requests[0].body)

    with_server(answering, use, setup=refusing(max_tokens=None, max_completion_tokens=None))


def test_a_model_that_thinks_first_is_given_more_tokens_for_the_first_answer() -> None:
    def setup(server: Server) -> None:
        def probe(request: Request) -> Reply:
            if request.body["max_tokens"] < 100:
                said = "Could not finish the message because max_tokens or model output limit was reached. "
                return error(400, said + "Please try again with higher max_tokens.")
            return Reply(chat_answer("Yes", logprobs=request.body))

        server.probe = probe

    async def use(server: Server, engine: OpenAIEngine) -> None:
        assert [probe.body["max_tokens"] for probe in server.probes] == [4, 1024]
        assert "length_field" not in (await engine.start()).details

    with_server(answering, use, setup=setup)


@pytest.mark.parametrize(
    "bad", [Reply(chat_answer("Yes", logprobs={})), error(400, "try again")], ids=["no logprobs", "refusal"]
)
def test_one_bad_answer_at_the_start_decides_nothing(bad: Reply) -> None:
    left = [bad, bad]

    def setup(server: Server) -> None:
        server.probe = lambda request: left.pop() if left else Reply(chat_answer("Yes", logprobs=request.body))

    async def use(server: Server, engine: OpenAIEngine) -> None:
        assert (await engine.start()).details["top_logprobs"] == 20
        assert len(server.probes) == 3

    with_server(answering, use, setup=setup)


def test_openai_forbids_logprobs_with_a_403() -> None:
    def setup(server: Server) -> None:
        def probe(request: Request) -> Reply:
            if "logprobs" in request.body:
                return error(403, "You are not allowed to request logprobs from this model")
            return Reply(chat_answer("Yes"))

        server.probe = probe

    async def use(server: Server, engine: OpenAIEngine) -> EngineInfo:
        return await engine.start()

    assert not with_server(answering, use, setup=setup).has_logprobs


@pytest.mark.parametrize("own_only", [False, True])
def test_logprobs_that_are_ignored_or_without_alternatives_count_as_none(own_only: bool) -> None:
    def setup(server: Server) -> None:
        answer = chat_answer("Yes", logprobs={"logprobs": own_only})
        if own_only:
            answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"] = []
        server.probe = lambda request: Reply(answer)

    async def use(server: Server, engine: OpenAIEngine) -> EngineInfo:
        await generate(server, engine)
        assert "logprobs" not in server.requests[0].body
        return await engine.start()

    assert not with_server(answering, use, setup=setup).has_logprobs


def test_words_of_a_users_prompt_never_teach_the_engine_anything() -> None:
    refusal = error(400, "bad input: 'the seed of logprobs, max_completion_tokens'")

    async def use(server: Server, engine: OpenAIEngine) -> None:
        with pytest.raises(RequestRefused, match="bad input"):
            await generate(server, engine)
        await generate(server, engine)
        assert server.requests[0].body == server.requests[1].body

    with_server(playing(refusal, Reply(chat_answer(ANSWER))), use)


def test_a_server_that_refuses_all_cannot_be_started() -> None:
    def setup(server: Server) -> None:
        server.probe = lambda request: error(400, "no chat today")

    async def use(server: Server, engine: OpenAIEngine) -> None:
        with pytest.raises(EngineError, match="refuses even a short request: no chat today") as caught:
            await engine.start()
        assert not isinstance(caught.value, RequestRefused)

    with_server(answering, use, setup=setup, start=False)


# The key


KEY = "sk-test-0123456789abcdef"


@pytest.mark.parametrize("status", [400, 401, 404, 503])
def test_the_key_is_sent_and_shown_nowhere(
    status: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("RPRM_TEST_KEY", f" {KEY}\n")
    caplog.set_level(logging.DEBUG)

    async def echo(request: Request, writer: asyncio.StreamWriter) -> Reply | None:
        return error(status, f"refused: {request.headers['authorization']}", got=request.headers)

    async def use(server: Server, engine: OpenAIEngine) -> None:
        info = await engine.start()
        with pytest.raises(EngineError) as caught:
            await generate(server, engine)
        assert server.requests[0].headers["authorization"] == f"Bearer {KEY}"
        assert "refused: Bearer ***" in str(caught.value)
        shown = [repr(caught.value), repr(engine), repr(vars(engine)), repr(vars(engine.endpoint)), repr(info)]
        shown += [json.dumps(info.as_dict()), caplog.text]
        cause: BaseException | None = caught.value
        while cause is not None:
            shown.append(repr(cause))
            cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
        assert not [text for text in shown if KEY in text]

    with_server(echo, use, max_retries=1)


def test_the_key_in_a_stream_that_breaks_off_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RPRM_TEST_KEY", KEY)
    event = b"data: " + json.dumps({"error": {"message": f"key {KEY} expired"}}).encode() + b"\n\n"

    async def use(server: Server, engine: OpenAIEngine) -> None:
        server.apart = False
        with pytest.raises(EngineUnavailable, match=r"key \*\*\* expired"):
            await generate(server, engine)

    with_server(playing(Reply(event, headers={"content-type": "text/event-stream"})), use, stream=True, max_retries=0)


def test_a_variable_that_holds_no_key_is_refused_without_showing_it(monkeypatch: pytest.MonkeyPatch) -> None:
    async def use(server: Server, engine: OpenAIEngine) -> None:
        for value in ("two words", "tüv-123", "a\x01b"):
            monkeypatch.setenv("RPRM_TEST_KEY", value)
            with pytest.raises(EngineError, match="RPRM_TEST_KEY does not hold a key") as caught:
                await engine.start()
            assert value not in str(caught.value)

    with_server(answering, use, start=False)


@pytest.mark.parametrize(
    ("url", "allowed", "sent"),
    [
        ("http://127.0.0.1:1/v1", False, True),
        ("http://localhost:1/v1", False, True),
        ("http://[::1]:1/v1", False, True),
        ("https://example.org/v1", False, True),
        ("http://example.org/v1", False, False),
        ("http://10.0.0.5:8000/v1", False, False),
        ("http://127.0.0.1.example.org/v1", False, False),
        ("http://10.0.0.5:8000/v1", True, True),
    ],
)
def test_the_key_does_not_travel_unencrypted(
    url: str, allowed: bool, sent: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("RPRM_TEST_KEY", KEY)
    headers: list[str | None] = []

    async def send(client: Any, request: Any, **options: Any) -> Any:
        headers.append(request.headers.get("authorization"))
        raise httpx2.ConnectError("nobody")

    async def run() -> Endpoint:
        options = {"key_env": "RPRM_TEST_KEY", "send_key_over_http": allowed, "max_retries": 0}
        endpoint = OpenAIEngine(f"m@{url}", **options).endpoint
        endpoint.open()
        with pytest.raises(EngineUnavailable, match="ConnectError: nobody"):
            await endpoint.ask("/models", 99)
        await endpoint.aclose()
        return endpoint

    monkeypatch.setattr("httpx2.AsyncClient.send", send)
    endpoint = asyncio.run(run())
    assert headers == [f"Bearer {KEY}" if sent else None]
    assert ("RPRM_TEST_KEY is not sent" in caplog.text) == (not sent)
    assert ("send_key_over_http=true" in endpoint.key_advice) == (not sent)
