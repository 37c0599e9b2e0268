"""What every engine promises (`rprm.engines.base.Engine`), asked of each that is at hand."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import math
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import pytest

from rprm import embedded
from rprm.engines import Completion, Engine, EngineInfo, Sampling, load_engine
from rprm.engines.base import TokenLister
from rprm.errors import RequestRefused, Unsupported
from rprm.prompts.template import Message, Prompt
from rprm.verdict import VerdictFormat

T = TypeVar("T")
VERDICT = VerdictFormat()
PROMPT = Prompt(
    (Message("user", f"Step 1: 2 + 2 = 4. Is it right? Write '{VERDICT.marker}' and then Yes or No, nothing else."),)
)
SAMPLING = Sampling(temperature=1.0, max_tokens=40, seed=3, verdict=VERDICT)


@dataclass
class Started:
    engine: Engine
    info: EngineInfo
    runner: asyncio.Runner

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(work)

    def generate(self, *requests: tuple[Prompt, Sampling]) -> list[Completion]:
        async def all_at_once() -> list[Completion]:
            return await asyncio.gather(*(self.engine.generate(*request) for request in requests))

        return self.run(all_at_once())


@pytest.fixture(
    scope="module",
    params=["scripted", "embedded", "transformers", "openai", pytest.param("vllm", marks=pytest.mark.vllm)],
)
def started(request: pytest.FixtureRequest) -> Iterator[Started]:
    """An engine of each kind, in one event loop for all tests."""
    if request.param == "vllm" and importlib.util.find_spec("vllm") is None:
        pytest.skip("vllm is not installed; see docs/vllm.md")
    specs = {
        "scripted": lambda: "scripted:?context_length=2048",
        "embedded": lambda: "embedded",
        "transformers": lambda: f"transformers:{request.getfixturevalue('tiny_model')}",
        "openai": lambda: f"openai:smollm2@{request.getfixturevalue('llamacpp_url')}?concurrency=4",
        "vllm": lambda: f"vllm:{request.getfixturevalue('smollm2_folder')}?enforce_eager=true&concurrency=8",
    }
    engine = load_engine(specs[request.param]())
    with asyncio.Runner() as runner:
        try:
            yield Started(engine, runner.run(engine.start()), runner)
        finally:
            runner.run(engine.aclose())
            runner.run(engine.aclose())


def test_it_says_what_it_is_and_starts_once(started: Started) -> None:
    engine, info = started.engine, started.info
    assert isinstance(engine, Engine)
    assert engine.concurrency >= 1
    assert engine.spec.startswith(engine.spec.partition(":")[0])
    assert started.run(engine.start()) == info
    assert json.loads(json.dumps(info.as_dict())) == info.as_dict()
    assert info.context_length is not None


def test_a_completion_is_whole(started: Started) -> None:
    for completion in started.generate(*((PROMPT, replace(SAMPLING, seed=seed)) for seed in range(8))):
        assert 0 < completion.num_tokens <= SAMPLING.max_tokens or started.info.kind == "scripted"
        assert completion.finish_reason in ("stop", "length", "verdict")
        assert completion.num_prompt_tokens is None or completion.num_prompt_tokens > 0
        assert completion.ended is not True or completion.finish_reason == "stop"
        for choice in completion.choices:
            assert 0.0 <= choice.p_yes <= 1.0
            word = completion.text[choice.start : choice.start + 3]
            assert VERDICT.answer_of(word) is not None or VERDICT.answer_of(word[:2]) is not None
        assert [choice.start for choice in completion.choices] == sorted(choice.start for choice in completion.choices)
        if completion.finish_reason == "verdict":
            found = VERDICT.find(completion.text)
            assert found is not None
            assert found.end == len(completion.text)


def test_a_sample_depends_on_its_seed_alone(started: Started) -> None:
    if not started.info.has_seeds:
        pytest.skip("it has no seeds")
    requests = [(PROMPT, replace(SAMPLING, seed=seed)) for seed in range(3)]
    (alone,) = started.generate(requests[1])
    together = started.generate(*requests, *requests)
    if started.info.kind != "openai":
        # A server may batch as it likes.
        assert alone.text == together[1].text == together[4].text
        assert len({completion.text for completion in together}) > 1
    assert len(together) == 6


def test_more_requests_than_it_takes_at_once(started: Started) -> None:
    sampling = Sampling(temperature=1.0, max_tokens=2)
    requests = [(PROMPT, replace(sampling, seed=seed)) for seed in range(started.engine.concurrency + 3)]
    assert len(started.generate(*requests)) == started.engine.concurrency + 3


def test_max_tokens_and_stop_strings(started: Started) -> None:
    if started.info.kind == "scripted":
        pytest.skip("a script knows no max_tokens")
    (cut,) = started.generate((PROMPT, Sampling(temperature=1.0, max_tokens=3, seed=1)))
    assert cut.num_tokens <= 3
    assert cut.choices == ()
    (whole,) = started.generate((PROMPT, Sampling(temperature=0.0, max_tokens=24)))
    stop = whole.text.strip()[2:4]
    (stopped,) = started.generate((PROMPT, Sampling(temperature=0.0, max_tokens=24, stop=(stop,))))
    assert stopped.finish_reason == "stop"
    assert stopped.ended is not True
    assert stopped.text == whole.text[: whole.text.index(stop)]


def test_a_prompt_that_leaves_no_room_is_refused_and_costs_itself_alone(started: Started) -> None:
    assert started.info.context_length is not None
    long = Prompt((Message("user", "word " * (2 * started.info.context_length)),))
    with pytest.raises(RequestRefused):
        started.generate((long, SAMPLING))
    assert len(started.generate((PROMPT, replace(SAMPLING, max_tokens=2)))) == 1


def test_a_cancelled_request_leaves_the_others_alone(started: Started) -> None:
    async def cancel_one() -> list[Any]:
        tasks = [
            asyncio.create_task(started.engine.generate(PROMPT, replace(SAMPLING, seed=seed))) for seed in range(3)
        ]
        await asyncio.sleep(0)
        tasks[1].cancel()
        return await asyncio.gather(*tasks, return_exceptions=True)

    first, cancelled, last = started.run(cancel_one())
    assert isinstance(cancelled, asyncio.CancelledError)
    assert isinstance(first, Completion)
    assert isinstance(last, Completion)


def test_a_second_pass_chooses_after_the_text(started: Started) -> None:
    text = f"It adds up.\n{VERDICT.marker}"
    if not started.info.has_second_pass:
        with pytest.raises(Unsupported):
            started.run(started.engine.choose(PROMPT, text, VERDICT))
        return
    choice = started.run(started.engine.choose(PROMPT, text, VERDICT))
    assert choice.start == len(text)
    assert 0.0 <= choice.p_yes <= 1.0
    assert started.run(started.engine.choose(PROMPT, text, VERDICT)).p_yes == pytest.approx(choice.p_yes, abs=1e-3)


def test_what_may_follow_a_text_is_listed(started: Started) -> None:
    engine, text = started.engine, f"It adds up.\n{VERDICT.marker}"
    if not isinstance(engine, TokenLister):
        return
    if not started.info.has_second_pass:
        with pytest.raises(Unsupported):
            started.run(engine.next_tokens(PROMPT, text))
        return
    listed = started.run(engine.next_tokens(PROMPT, text))
    assert len(listed) > 5
    assert all(0.0 < share <= 1.0 for share in listed.values())
    assert math.fsum(listed.values()) <= 1.0 + 1e-6
    greedy = Sampling(temperature=0.0, max_tokens=1)
    (completion,) = started.generate((replace(PROMPT, reply=text), greedy))
    assert completion.text in ("", max(listed, key=lambda token: listed[token]))  # "": the end, or half a letter


def test_a_reply_is_continued_or_that_is_unsupported(started: Started) -> None:
    begun = replace(PROMPT, reply="Let me see. ")
    if not started.info.continues_replies:
        with pytest.raises(Unsupported):
            started.generate((begun, SAMPLING))
        return
    (completion,) = started.generate((begun, SAMPLING))
    assert not completion.text.startswith(begun.reply)


def test_the_embedded_judge_is_a_transformers_engine(tmp_path: Path) -> None:
    async def texts(spec: str) -> tuple[list[str], EngineInfo]:
        engine = load_engine(spec)
        info = await engine.start()
        done = await asyncio.gather(
            *(engine.generate(PROMPT, replace(SAMPLING, max_tokens=12, seed=seed)) for seed in range(4))
        )
        await engine.aclose()
        return [completion.text for completion in done], info

    named, by_path = (asyncio.run(texts(spec)) for spec in ("embedded", f"transformers:{embedded.JUDGE}"))
    assert named[0] == by_path[0]
    assert named[1] == by_path[1]
