"""Log-probabilities of exactly the answers' tokens, asked for by their ids (vLLM)."""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Callable
from dataclasses import replace

import pytest
import released_tokenizers
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
    with_server,
)

from rprm.engines import EngineInfo, Sampling
from rprm.engines.openai import OpenAIEngine, Route
from rprm.errors import RequestRefused
from rprm.verdict import VerdictFormat

pytestmark = pytest.mark.usefixtures("impatient_client")


#: Forms of the answers in a vocabulary; "YES" and " YES" are two tokens there.
FORM_IDS = {"Yes": 10, " Yes": 11, "yes": 12, " yes": 13}
FORM_IDS |= {"No": 20, " No": 21, "no": 22, " no": 23, "NO": 24, " NO": 25}
IDS = sorted(FORM_IDS.values())
#: The model's probabilities where it writes an answer, in any form. They leave 0.1 for all else.
YES, NO = {" Yes": 0.25, "Yes": 0.2, "yes": 0.05}, {" No": 0.15, "No": 0.2, "NO": 0.05}
ANSWERS = YES | NO


def byte_level(text: str) -> list[str]:
    return re.findall(r"\n| ?Y(?=ES)| ?\w+| ?\*", text)


def sentencepiece(text: str) -> list[str]:
    """A space before each text, and none before a word that follows a line end or a sign."""
    return [piece.replace(" ", "\u2581") for piece in byte_level(f" {text}")]


class VLLM:
    """The parts of vLLM's server that matter: its model card, `/tokenize`, and `logprob_token_ids` as it answers it.

    vllm/entrypoints/openai/chat_completion/serving.py: every position lists the sampled token and then all ids that
    were asked for but it, whatever `top_logprobs` says. Before 0.30 the field is ignored.
    """

    def __init__(
        self, tokenize: Callable[[str], list[str]] = byte_level, *, honours: bool = True, tokenizes: bool = True
    ) -> None:
        self.tokenize = tokenize
        self.honours = honours
        self.tokenizes = tokenizes
        self.text = ANSWER

    def setup(self, server: Server) -> None:
        server.models = Reply({"data": [{"id": "m", "owned_by": "vllm", "max_model_len": 4096}]})
        server.probe = lambda request: self.reply(request, "Yes")
        server.play = self.play

    async def play(self, request: Request, writer: asyncio.StreamWriter) -> Reply:
        return self.reply(request, self.text)

    def reply(self, request: Request, text: str) -> Reply:
        if request.path == "/tokenize":
            assert request.body["add_special_tokens"] is False
            spelled = self.tokenize(request.body["prompt"])
            tokens = [FORM_IDS.get(piece.replace("\u2581", " "), 30) for piece in spelled]
            pieces = [piece.replace(" ", "\u0120").replace("\n", "\u010a") for piece in spelled]
            answer = {"count": len(tokens), "max_model_len": 4096, "tokens": tokens, "token_strs": pieces}
            return Reply(answer) if self.tokenizes else error(404, "Not Found")
        answer = chat_answer(text, logprobs=request.body)
        asked = {form for form, id_ in FORM_IDS.items() if id_ in request.body.get("logprob_token_ids", ())}
        for entry in answer["choices"][0].get("logprobs", {}).get("content", ()):
            own = entry["token"]
            p = ANSWERS if own.strip() in ("Yes", "No") else {own: 0.9}
            listed = [own, *(asked - {own})] if asked and self.honours else p
            entry["top_logprobs"] = [
                {"token": token, "bytes": list(token.encode()), "logprob": math.log(p.get(token, 1e-7))}
                for token in listed
            ]
            entry["logprob"] = math.log(p[own])
        return Reply(answer)


#: No token but those of `ANSWERS` counts for more than 1e-6 of either.
P_YES = sum(YES.values()) / sum(ANSWERS.values())


@pytest.mark.parametrize("tokenize", [byte_level, sentencepiece])
def test_vllm_is_asked_for_the_answers_tokens_by_their_ids(tokenize: Callable[[str], list[str]]) -> None:
    vllm = VLLM(tokenize)

    async def use(server: Server, engine: OpenAIEngine) -> None:
        assert (await engine.start()).details == {"url": engine.url, "api": "chat/completions", "top_logprobs": 20}
        assert [request.path for request in server.requests] == ["/tokenize"]
        completion = await generate(server, engine)
        assert server.requests[-1].body["logprob_token_ids"] == IDS
        assert server.requests[-1].body["logprobs"] is True
        (choice,) = [choice for choice in completion.choices if choice.start == len(ANSWER) - 3]
        # 0.25 + 0.2 + 0.05 and 0.15 + 0.2 + 0.05; the forms that the model does not write are 1e-7 each.
        assert choice.logprob_yes == pytest.approx(math.log(0.5), abs=1e-6)
        assert choice.logprob_no == pytest.approx(math.log(0.4), abs=1e-6)
        # Every request for log-probabilities has the field, the second pass too; one without a verdict has none.
        assert (await engine.choose(PROMPT, "So: ", VERDICT)).start == 4
        assert server.requests[-1].body["logprob_token_ids"] == IDS
        # An answer without a space before it is a token of its own, which every tokenizer has to tell.
        vllm.text = "No"
        (choice,) = (await generate(server, engine)).choices
        assert choice.p_yes == pytest.approx(P_YES, abs=1e-6)
        await engine.generate(PROMPT, Sampling())
        assert "logprob_token_ids" not in server.requests[-1].body
        # Other answers have ids of their own; of these the tokenizer makes no single tokens.
        await engine.generate(PROMPT, replace(SAMPLING, verdict=VerdictFormat("So:", "Y-e-s", "N-o")))
        assert "logprob_token_ids" not in server.requests[-1].body

    with_server(answering, use, setup=vllm.setup, continue_final_message=True)


def test_an_answer_that_is_none_of_the_tokens_asked_for_is_a_vote() -> None:
    """The tokenizer tells of no form without a space: their 0.45 of 0.9 would count as nothing."""

    def spaced(text: str) -> list[str]:
        return [piece for piece in byte_level(text) if piece.startswith(" ")]

    vllm = VLLM(spaced)

    async def use(server: Server, engine: OpenAIEngine) -> None:
        vllm.text = f"No\n{VERDICT.marker} Yes"
        completion = await generate(server, engine)
        assert server.requests[-1].body["logprob_token_ids"] == [11, 13, 21, 23, 25]
        (choice,) = completion.choices
        # At " Yes", which was asked for: 0.25 to 0.15.
        assert (choice.start, choice.p_yes) == (len(vllm.text) - 3, pytest.approx(0.625, abs=1e-6))
        vllm.text = "No"
        assert (await generate(server, engine)).choices == ()
        with pytest.raises(RequestRefused):
            await engine.choose(PROMPT, "So: ", VERDICT)

    with_server(answering, use, setup=vllm.setup, continue_final_message=True)


@pytest.mark.parametrize(("path", "num"), [("/tokenize", 1), ("/tokenize", 99), ("/v1/models", 1)])
def test_a_server_that_is_busy_at_the_start_changes_no_reward_and_no_setting(path: str, num: int) -> None:
    async def use(server: Server, engine: OpenAIEngine) -> tuple[EngineInfo, float, bool]:
        info = await engine.start()
        assert server.busy[path] == (0 if num == 1 else 99 - 1 - engine.endpoint.max_retries)
        p_yes = (await generate(server, engine)).choices[-1].p_yes
        return replace(info, details=info.details | {"url": ""}), p_yes, "logprob_token_ids" in server.requests[-1].body

    def setup(server: Server) -> None:
        VLLM().setup(server)
        server.busy[path] = num

    info, p_yes, by_ids = with_server(answering, use, setup=setup)
    assert info.context_length == 4096
    assert info.details == {"url": "", "api": "chat/completions", "top_logprobs": 20}
    # The likeliest tokens tell the same, as long as all of them are listed.
    assert by_ids == (num == 1)
    assert p_yes == pytest.approx(P_YES, abs=1e-6)


def test_all_forms_are_learned_of_a_released_sentencepiece_tokenizer() -> None:
    from sentencepiece import SentencePieceProcessor

    pieces = SentencePieceProcessor(model_file=str(released_tokenizers.mistral_model() / "tokenizer.model"))
    forms = [space + form for form in ("Yes", "yes", "YES", "No", "no", "NO") for space in ("", "\u2581")]

    async def play(request: Request, writer: asyncio.StreamWriter) -> Reply:
        ids = pieces.encode(request.body["prompt"])
        return Reply({"tokens": ids, "token_strs": [pieces.id_to_piece(id_) for id_ in ids]})

    async def use(server: Server, engine: OpenAIEngine) -> list[int]:
        return await Route(engine, "/completions", 20, takes_ids=True).learn_ids(VERDICT)

    # Both of "Yes", "yes", "No", "no" and "NO"; neither "YES" is one token.
    expected = sorted({pieces.piece_to_id(form) for form in forms} - {pieces.unk_id()})
    assert len(expected) == 10
    assert with_server(play, use) == expected


@pytest.mark.parametrize("vllm", [VLLM(honours=False), VLLM(tokenizes=False)])
def test_an_older_vllm_is_asked_for_the_likeliest_tokens(vllm: VLLM, caplog: pytest.LogCaptureFixture) -> None:
    async def use(server: Server, engine: OpenAIEngine) -> None:
        info = await engine.start()
        assert info.has_logprobs
        completion = await generate(server, engine)
        assert "logprob_token_ids" not in server.requests[-1].body
        assert completion.choices[-1].p_yes == pytest.approx(P_YES)

    with_server(answering, use, setup=vllm.setup)
    assert not caplog.records


def test_a_refusal_of_the_field_gives_up_the_field_alone() -> None:
    def setup(server: Server) -> None:
        vllm = VLLM()
        vllm.setup(server)

        def probe(request: Request) -> Reply:
            if "logprob_token_ids" in request.body:
                return error(400, "Number of logprob_token_ids requested (9) exceeds max logprobs of 5")
            return vllm.reply(request, "Yes")

        server.probe = probe

    async def use(server: Server, engine: OpenAIEngine) -> None:
        info = await engine.start()
        assert info.details["top_logprobs"] == 20
        await generate(server, engine)
        assert "logprob_token_ids" not in server.requests[-1].body

    with_server(answering, use, setup=setup)
