"""A deterministic engine without a model, for tests and measurements of everything around the model.

It writes an analysis whose verdict is a pseudo-random function of the prompt and the seed alone; asked for the
first wrong step, a critique that ends with its index in a box; asked for neither, as a policy is, a solution of two to
four steps that ends in `\\boxed{}`, or its next step.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import os
import random
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, field, replace

from rprm import ranges
from rprm.engines.base import Completion, EngineInfo, Sampling, clipped
from rprm.errors import EngineError
from rprm.plugins import check_options
from rprm.prompts.template import Prompt
from rprm.verdict import VerdictChoice, VerdictFormat

_BLANK_LINE = "\n\n"


@dataclass(frozen=True, slots=True)
class ScriptedReply:
    """What a script gives for one request."""

    analysis: str  # before the verdict line
    p_yes: float | None  # None leaves the verdict line out
    num_tokens: int  # of the whole
    ended: bool | None = True  # that of a completion without the verdict line


@dataclass(eq=False, repr=False)
class ScriptedEngine:
    """An engine that writes what a function says."""

    spec: str = "scripted:"
    _: KW_ONLY
    yes_rate: ranges.Share = 0.8  # share of prompts whose analyses lean to Yes
    noise: ranges.Share = 0.1  # share of analyses that lean the other way than their prompt does
    lost: ranges.Share = 0.0  # share of analyses that end without a verdict
    delay: ranges.Weight = 0.0  # seconds that each completion takes
    logprobs: bool = True  # report P(Yes); without it there is only the hard verdict
    log: str | None = None  # a file that gets a line for every request as it is made: what a paid engine would bill
    context_length: ranges.Tokens = 1_000_000  # words of the prompt, tokens of the completion; a script knows none
    concurrency: ranges.Width = 64
    reply: Callable[[Prompt, Sampling], ScriptedReply] | None = None  # in place of the pseudo-random rule
    num_requests: int = field(default=0, init=False)
    num_second_passes: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        check_options(self)
        try:
            with open(self.log or os.devnull, "ab"):
                pass
        except OSError as error:
            raise EngineError(f"{self.spec}: log={self.log} cannot be written: {error.strerror}") from None

    async def start(self, *, chat: bool = True) -> EngineInfo:
        model = "custom" if self.reply else "pseudo-random"
        shares = {"yes_rate": self.yes_rate, "noise": self.noise, "lost": self.lost}
        return EngineInfo("scripted", model, "1", self.context_length, self.logprobs, details=shares)

    async def generate(self, prompt: Prompt, sampling: Sampling) -> Completion:
        num_prompt_tokens = len(prompt.text.split())
        clipped(num_prompt_tokens, sampling.max_tokens, self.context_length)
        self.num_requests += 1
        if self.log:
            with open(self.log, "ab") as stream:  # noqa: ASYNC230  # a line
                stream.write(f"{sampling.seed}\n".encode())
        asked = self._criticise if sampling.num_steps else _solve if sampling.verdict is None else self._pseudo_random
        write = self.reply or asked
        reply = write(prompt, sampling)
        await asyncio.sleep(self.delay)
        if reply.num_tokens > (room := self.context_length - num_prompt_tokens):
            text = " ".join(reply.analysis.split(" ")[:room])
            return Completion(text, room, "length", num_prompt_tokens, ended=False)
        if reply.p_yes is None:
            return Completion(reply.analysis, reply.num_tokens, "stop", num_prompt_tokens, ended=reply.ended)
        verdict = sampling.verdict or VerdictFormat()
        before = f"{reply.analysis}\n{verdict.marker} "
        word = verdict.yes if _draw(prompt, sampling, "verdict").random() < reply.p_yes else verdict.no
        choices = (_choice(len(before), reply.p_yes),) if self.logprobs else ()
        return Completion(before + word, reply.num_tokens, "verdict", num_prompt_tokens, None, choices, ended=False)

    async def choose(self, prompt: Prompt, text: str, verdict: VerdictFormat) -> VerdictChoice:
        num_prompt_tokens = len(prompt.text.split())
        clipped(num_prompt_tokens, 1, self.context_length)
        self.num_second_passes += 1
        await asyncio.sleep(self.delay * min(1.0, num_prompt_tokens / 1000))
        return _choice(len(text), _draw(prompt, Sampling(), text).random())

    async def aclose(self) -> None:
        """It holds nothing."""

    def _criticise(self, prompt: Prompt, sampling: Sampling) -> ScriptedReply:
        """A critique: the index of the first wrong step, in a box."""
        draw = _draw(prompt, sampling, "critique")
        num_steps, num_tokens, is_lost = sampling.num_steps or 1, draw.randint(100, 800), draw.random() < self.lost
        leans = _draw(prompt, Sampling(), "first error") if draw.random() >= self.noise else draw
        index = -1 if leans.random() < self.yes_rate else leans.randrange(num_steps)
        if prompt.reply.endswith("\\boxed"):
            return ScriptedReply(f"{{{index}", None, 2)
        ending = "" if is_lost and sampling.temperature else f" \\boxed{{{index}}}"
        return ScriptedReply(f"Critique {draw.getrandbits(32):08x} of the solution.{ending}", None, num_tokens)

    def _pseudo_random(self, prompt: Prompt, sampling: Sampling) -> ScriptedReply:
        leans_yes = _draw(prompt, Sampling(), "lean").random() < self.yes_rate
        draw = _draw(prompt, sampling, "analysis")
        if draw.random() < self.noise:
            leans_yes = not leans_yes
        confidence = 0.5 + 0.5 * draw.random() ** 0.2
        num_tokens = draw.randint(50, 400)
        if draw.random() < self.lost:
            return ScriptedReply("The analysis lost its thread.", None, num_tokens)
        p_yes = confidence if leans_yes else 1.0 - confidence
        return ScriptedReply(f"Analysis {draw.getrandbits(32):08x} of the step.", p_yes, num_tokens)


def _solve(prompt: Prompt, sampling: Sampling) -> ScriptedReply:
    """The next step where a blank line ends the completion, else every step left; most solutions have one answer."""
    answer = _draw(replace(prompt, reply=""), Sampling(), "answer").randint(2, 99)
    draw = _draw(prompt, sampling, "solution")
    first = sum(bool(step.strip()) for step in prompt.reply.split(_BLANK_LINE)) + 1
    last = first if first >= 4 else draw.randint(max(first, 2), 4)
    steps = []
    for number in range(first, last + 1):
        left, right = draw.randint(2, 50), draw.randint(2, 50)
        steps.append(f"Step {number}: {left} + {right} = {left + right}.")
    steps[-1] += f" The answer is \\boxed{{{answer + draw.choice((0, 0, 0, 1, 2))}}}."
    text = steps[0] if _BLANK_LINE in sampling.stop else _BLANK_LINE.join(steps)
    return ScriptedReply(text, None, len(text.split()), ended="boxed" in text)


def _draw(prompt: Prompt, sampling: Sampling, purpose: str) -> random.Random:
    """A generator that depends on the prompt, the seed and the purpose, and on nothing else."""
    key = f"{purpose}\0{sampling.seed}\0{prompt.text}".encode()
    return random.Random(int.from_bytes(hashlib.blake2b(key, digest_size=16).digest()))


def _choice(start: int, p_yes: float) -> VerdictChoice:
    yes = math.log(p_yes) if p_yes > 0 else -math.inf
    return VerdictChoice(start, yes, math.log1p(-p_yes) if p_yes < 1 else -math.inf)
