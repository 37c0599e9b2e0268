"""What `check_engine` concludes from engines whose faults are known, and the command that prints it."""

from __future__ import annotations

import asyncio
import json
import math
import selectors
from contextlib import nullcontext
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
from typer.testing import CliRunner

from rprm.cli.engines import app
from rprm.engines import Completion, EngineInfo, Sampling
from rprm.engines.check import TRIALS, check_engine
from rprm.engines.scripted import ScriptedEngine
from rprm.errors import EngineError, EngineUnavailable, RequestRefused, Unsupported
from rprm.prompts.template import Prompt
from rprm.verdict import VerdictChoice, VerdictFormat

NUMBERS = " ".join(f"number-{number}" for number in range(48))


@dataclass
class Model:
    """An engine that answers at once or as slowly as asked, with one fault at a time."""

    spec: str = "model:"
    concurrency: int = 8
    logprobs: bool = True
    scaled: bool = False
    answers: bool = True
    seeds: str = "good"
    promises_seeds: bool = True
    cached_tokens: int | None = 200
    seconds_per_token: float = 0.0
    seconds_per_prompt: float = 0.0
    one_at_a_time: bool = False
    context_length: int | None = 500
    truncates: bool = False
    second_pass: float | None = 0.0
    continues: str = "well"
    refuses: bool = False

    def __post_init__(self) -> None:
        self.lock = asyncio.Lock()
        self.num_requests = 0
        self.num_active = 0
        self.beginnings: set[str] = set()

    async def start(self, *, chat: bool = True) -> EngineInfo:
        return EngineInfo(
            "model", "m", None, self.context_length, self.logprobs, self.promises_seeds, self.second_pass is not None
        )

    async def generate(self, prompt: Prompt, sampling: Sampling) -> Completion:
        if self.refuses:
            raise RequestRefused("no")
        if prompt.reply and self.continues == "not":
            raise Unsupported("it begins anew")
        num_prompt_tokens = len(prompt.text.split())
        if self.context_length is not None and num_prompt_tokens > self.context_length and not self.truncates:
            raise RequestRefused(f"{num_prompt_tokens} tokens")
        self.num_requests += 1
        self.num_active += 1
        beginning = prompt.text[:40]
        if beginning not in self.beginnings:
            self.beginnings.add(beginning)
            await asyncio.sleep(self.seconds_per_prompt)
        async with self.lock if self.one_at_a_time else nullcontext():
            await asyncio.sleep(self.seconds_per_token * sampling.max_tokens)
        num_active = self.num_active
        self.num_active -= 1
        if sampling.verdict is not None and self.answers:
            text = "The answer is Yes" if "answer is" in prompt.text else "Yes"
        else:
            text = {
                "good": f"story {sampling.seed}",
                "ignored": f"story {self.num_requests}",
                "one text": "story",
                "batch": f"story {sampling.seed} beside {num_active - 1} others",
            }[self.seeds]
        if sampling.temperature == 0.0:
            text = {"too little": "one two three", "the same": "tick " * 48}.get(self.continues, NUMBERS)
            if prompt.reply and self.continues != "anew":
                text = text.removeprefix(prompt.reply) if self.continues == "well" else "Something else, quite another."
        choices: tuple[VerdictChoice, ...] = ()
        if sampling.verdict is not None and self.answers and self.logprobs:
            # Log-odds of 2, which a server that scales them divides by the temperature.
            yes = 2.0 / sampling.temperature if self.scaled else 2.0
            choices = (
                VerdictChoice(text.index("Yes"), -math.log1p(math.exp(-yes)), -yes - math.log1p(math.exp(-yes))),
            )
        return Completion(text, sampling.max_tokens, "stop", num_prompt_tokens, self.cached_tokens, choices)

    async def choose(self, prompt: Prompt, text: str, verdict: VerdictFormat) -> VerdictChoice:
        if self.second_pass is None:
            raise Unsupported("it cannot")
        p_yes = 1 / (1 + math.exp(-2.0)) - self.second_pass
        return VerdictChoice(len(text), math.log(p_yes), math.log(1 - p_yes))

    async def aclose(self) -> None:
        return None


class Clock(selectors.SelectSelector):
    """Where the event loop would wait, time jumps: nothing here depends on the machine's speed."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        events = super().select(0)
        if not events and timeout:
            self.now += timeout
        return events


def check(model: Model) -> dict[str, Any]:
    clock = Clock()
    loop = asyncio.SelectorEventLoop(clock)
    loop.time = lambda: clock.now  # type: ignore[method-assign]
    with (
        mock.patch("rprm.engines.check.time", SimpleNamespace(perf_counter=loop.time)),
        asyncio.Runner(loop_factory=lambda: loop) as runner,
    ):
        return runner.run(check_engine(model))


def test_a_good_engine() -> None:
    report = check(Model(seconds_per_token=0.001))
    assert {name: report[name]["answer"] for name in TRIALS} == {
        "logprobs": "yes",
        "raw_logprobs": "yes",
        "seeds": "yes",
        "concurrency": "yes",
        "prefix_sharing": "yes",
        "context_limit": "yes",
        "second_pass": "yes",
        "continued_reply": "yes",
    }
    # One token a millisecond, of 8 samples at once as of one.
    assert report["tokens_per_second"] == pytest.approx(1000.0, rel=1e-3)
    assert report["details"]["samples_at_once"]["gain"] == pytest.approx(8.0, rel=1e-3)
    # softmax of log-odds 2.
    assert report["details"]["p_yes"] == pytest.approx(0.8808, abs=1e-4)
    assert json.loads(json.dumps(report))["seeds"]["answer"] == "yes"


@pytest.mark.parametrize(
    ("model", "name", "answer", "words"),
    [
        (Model(logprobs=False), "logprobs", "no", "hard vote"),
        (Model(logprobs=False, answers=False), "logprobs", "no", "says that it has none"),
        (Model(answers=False), "logprobs", "unknown", "none of the questions"),
        (Model(scaled=True), "raw_logprobs", "no", "4.00 times"),
        (Model(answers=False), "raw_logprobs", "unknown", "no log-probabilities"),
        (Model(seeds="ignored"), "seeds", "no", "same seed twice"),
        (Model(seeds="one text"), "seeds", "unknown", "may not sample"),
        (Model(promises_seeds=False), "seeds", "no", "does not promise"),
        (Model(seconds_per_token=0.001, one_at_a_time=True), "concurrency", "no", "8 samples at once"),
        (Model(), "concurrency", "unknown", "too fast"),
        (Model(cached_tokens=0), "prefix_sharing", "no", "0 of 15"),
        (Model(cached_tokens=None, seconds_per_prompt=0.2, context_length=None), "prefix_sharing", "yes", "times as"),
        (
            Model(cached_tokens=None, seconds_per_token=0.01, context_length=None),
            "prefix_sharing",
            "unknown",
            "1.0 times as",
        ),
        (Model(cached_tokens=None, context_length=None), "prefix_sharing", "unknown", "too fast"),
        (Model(cached_tokens=None), "prefix_sharing", "unknown", "not tried to the end: 60"),
        (Model(truncates=True), "context_limit", "no", "564 of its tokens"),
        (Model(context_length=None), "context_limit", "unknown", "does not tell"),
        (Model(context_length=10**6), "context_limit", "unknown", "too long to try"),
        (Model(second_pass=0.1), "second_pass", "no", "differs by 0.1000"),
        (Model(second_pass=None), "second_pass", "no", "it cannot"),
        (Model(answers=False), "second_pass", "unknown", "no sentence"),
        (Model(continues="not"), "continued_reply", "no", "it begins anew"),
        (Model(continues="anew"), "continued_reply", "no", "began with that half again"),
        (Model(continues="otherwise"), "continued_reply", "unknown", "only the next 0 words"),
        (Model(continues="too little"), "continued_reply", "unknown", "too little"),
        (Model(continues="the same"), "continued_reply", "unknown", "the same again"),
    ],
)
def test_each_fault_is_found(model: Model, name: str, answer: str, words: str) -> None:
    finding = check(model)[name]
    assert finding["answer"] == answer
    assert words in finding["detail"]


def test_a_seed_that_holds_only_alone_is_no_seed() -> None:
    report = check(Model(seeds="batch"))
    assert report["seeds"]["answer"] == "no"
    assert "beside it" in report["seeds"]["detail"]


def test_an_engine_that_refuses_everything_is_an_error() -> None:
    with pytest.raises(RequestRefused):
        check(Model(refuses=True))


def test_every_check_asks_with_prompts_that_no_earlier_one_left_in_a_cache() -> None:
    model = Model()
    seen = [frozenset(prompts) for prompts in (_prompts(model), _prompts(model))]
    shared = seen[0] & seen[1]
    # Only the short questions and the prompt that is too long are the same each time.
    assert not [text for text in shared if "story" in text or len(text.split()) == 154]


def _prompts(model: Model) -> list[str]:
    prompts: list[str] = []
    generate = model.generate

    async def noted(prompt: Prompt, sampling: Sampling) -> Completion:
        prompts.append(prompt.text)
        return await generate(prompt, sampling)

    model.generate = noted  # type: ignore[method-assign]
    check(model)
    model.generate = generate  # type: ignore[method-assign]
    return prompts


def test_the_scripted_engine_is_checked_without_an_error() -> None:
    report = asyncio.run(check_engine(ScriptedEngine(context_length=1000)))
    assert report["logprobs"]["answer"] == report["seeds"]["answer"] == report["context_limit"]["answer"] == "yes"
    # Its second pass is a number of its own, as is what it continues a reply with, and that is found out.
    assert report["second_pass"]["answer"] == "no"
    assert report["continued_reply"]["answer"] == "unknown"


def test_command_prints_a_table_and_json() -> None:
    runner = CliRunner()
    table = runner.invoke(app, ["check", "scripted:?context_length=1000"])
    assert table.exit_code == 0
    assert "pseudo-random (scripted)" in table.stdout
    for row in ("generation", "raw logprobs", "prefix sharing", "second pass", "continued reply"):
        assert row in table.stdout
    printed = runner.invoke(app, ["check", "scripted:?context_length=1000", "--json"])
    report = json.loads(printed.stdout)
    assert report["spec"] == "scripted:?context_length=1000"
    assert report["seeds"]["answer"] == "yes"


def test_command_raises_what_the_command_line_prints() -> None:
    runner = CliRunner()
    for spec, kind, words in (
        ("nonsense:", EngineError, "unknown engine"),
        ("openai:m@http://127.0.0.1:9/v1?max_retries=0", EngineUnavailable, "127.0.0.1:9"),
    ):
        result = runner.invoke(app, ["check", spec])
        assert result.exit_code == 1
        assert isinstance(result.exception, kind)
        assert words in str(result.exception)
