"""What an engine can really do, found out by trying it: `rprm engines check SPEC`.

Every finding is "yes" or "no" only where the trial decides it, otherwise "unknown" with the reason. The trials cost
some hundreds of generated tokens and a few prompts of some hundreds of tokens.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import product
from typing import Any, Literal

from rprm.engines.base import Completion, Engine, EngineInfo, Sampling
from rprm.errors import RequestRefused, Unsupported
from rprm.prompts.template import Message, Prompt
from rprm.verdict import VerdictChoice, VerdictFormat

Answer = Literal["yes", "no", "unknown"]

#: Questions that most models answer with the bare word, the likeliest first.
_QUESTIONS = (
    "Is 2 + 2 equal to 4? Reply with exactly one word, Yes or No.",
    "Reply with exactly one word, either Yes or No. Is Paris in France?",
    "Do people sleep?\nAnswer (Yes/No):",
)
#: And with a few words before it, for the second pass.
_SENTENCES = (
    "Is 2 + 2 equal to 4? Reply with one sentence of exactly this form: The answer is Yes. Or: The answer is No.",
    "Is Paris in France? Complete this sentence with Yes or No, and write it whole: The answer is",
)
#: A context longer than this is not tried: the request would be megabytes, and costly where it is not refused.
_LONGEST_CONTEXT_TRIED = 150_000
_SAMPLES_AT_ONCE = 8
#: Words that a continued reply must have in common with the rest of it: too many for chance.
_COMPARED_WORDS = 4
_WORDS = ("north", "river", "seven", "paper", "green", "stone", "light", "under", "music", "table", "early", "cloud")


@dataclass(frozen=True)
class Finding:
    """What one trial found, and the measurement behind it in a few words."""

    answer: Answer
    detail: str


@dataclass(frozen=True)
class EngineReport:
    """What an engine supports.

    Attributes:
        spec: as given to `load_engine`.
        info: what the engine says of itself.
        tokens_per_second: of one request alone; None where too fast to measure.
        logprobs: P(Yes) can be read where Yes or No was generated.
        raw_logprobs: those log-probabilities are the model's own, before temperature.
        seeds: equal seeds give equal samples at temperature 1, and different seeds different ones.
        concurrency: several samples at once take less time than one after the other.
        prefix_sharing: the beginning that a prompt shares with an earlier one is not computed again.
        context_limit: a prompt that does not fit is refused, not cut.
        second_pass: a given text can be continued, and P(Yes) after it is that of the generation itself.
        continued_reply: a reply that is begun is continued as the model itself went on.
        details: the measurements in numbers.
    """

    spec: str
    info: EngineInfo
    tokens_per_second: float | None
    logprobs: Finding
    raw_logprobs: Finding
    seeds: Finding
    concurrency: Finding
    prefix_sharing: Finding
    context_limit: Finding
    second_pass: Finding
    continued_reply: Finding
    details: dict[str, Any]

    @property
    def findings(self) -> dict[str, Finding]:
        """The findings by name, in the order of the attributes."""
        return {name: value for name, value in vars(self).items() if isinstance(value, Finding)}

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


async def check_engine(engine: Engine) -> EngineReport:
    """Try what an engine can do. Starts it; closing it is left to the caller.

    Raises:
        EngineError: the engine cannot be started or reached, or refuses even a short request.
    """
    trials = _Trials(engine, await engine.start())
    speed = await trials.speed()
    findings: dict[str, Finding] = {}
    for name in (field.name for field in fields(EngineReport) if field.type == "Finding"):
        try:
            findings[name] = await getattr(trials, name)()
        except RequestRefused as refusal:
            findings[name] = Finding("unknown", f"not tried to the end: {refusal}")
    return EngineReport(engine.spec, trials.info, speed, **findings, details=trials.details)


class _Trials:
    """A method for each finding of a report, run in its order."""

    def __init__(self, engine: Engine, info: EngineInfo) -> None:
        self.engine = engine
        self.info = info
        self.verdict = VerdictFormat()
        self.details: dict[str, Any] = {}
        #: A prompt to which the engine answered Yes or No, with log-probabilities.
        self.answered: Prompt | None = None
        # Prompts that no earlier check can have left in a cache.
        self.random = random.Random()

    async def speed(self) -> float | None:
        await self.engine.generate(_prompt("Say hello."), Sampling(max_tokens=4, seed=0))
        seconds, (completion,) = await self._timed([self._story("a lighthouse")], max_tokens=32)
        self.details["one_request"] = {"num_tokens": completion.num_tokens, "seconds": seconds}
        return None if seconds < 1e-3 else completion.num_tokens / seconds

    async def logprobs(self) -> Finding:
        answers_without = 0
        for question, seed in product(_QUESTIONS, range(2)):
            prompt = _prompt(question)
            completion = await self._answer(prompt, max_tokens=12, seed=seed)
            if completion.choices:
                self.answered = prompt
                p_yes = self.details["p_yes"] = completion.choices[0].p_yes
                return Finding("yes", f"P(Yes) = {p_yes:.4f} where the model answered {question!r}")
            first = next(iter(completion.text.split()), "").strip(".,!*\"'")
            answers_without += self.verdict.answer_of(first) is not None
        if answers_without:
            return Finding("no", "the model answered, without log-probabilities; judging takes the hard vote")
        if not self.info.has_logprobs:
            return Finding("no", "the engine says that it has none; judging takes the hard vote")
        return Finding("unknown", "the model answered Yes or No to none of the questions tried")

    async def raw_logprobs(self) -> Finding:
        """Compare log(P(Yes)/P(No)) at the first token at two temperatures: its distribution is the same at both."""
        if self.answered is None:
            return Finding("unknown", "no log-probabilities at an answer to compare")
        warm, cold = 1.0, 0.25
        odds: dict[float, float] = {}
        for temperature, seed in product((warm, cold), range(8)):
            if temperature not in odds:
                completion = await self._answer(self.answered, temperature=temperature, max_tokens=4, seed=seed)
                for choice in completion.choices[:1]:
                    if not completion.text[: choice.start].strip():
                        odds[temperature] = choice.logprob_yes - choice.logprob_no
        if len(odds) < 2 or not all(math.isfinite(value) and abs(value) > 0.2 for value in odds.values()):
            return Finding("unknown", "the model's answers are too rare, or too even, to compare temperatures")
        ratio = self.details["logprob_ratio_between_temperatures"] = odds[cold] / odds[warm]
        measured = f"the log-odds at temperature {cold} are {ratio:.2f} times those at {warm:g}"
        if abs(ratio - 1.0) < 0.15:
            return Finding("yes", measured)
        if abs(ratio - warm / cold) < 0.2 * warm / cold:
            return Finding("no", f"{measured}: the engine reports them after temperature, which biases P(Yes)")
        return Finding("unknown", measured)

    async def seeds(self) -> Finding:
        prompt = self._story("a random animal in a random city")

        async def text(seed: int) -> str:
            return (await self.engine.generate(prompt, Sampling(max_tokens=16, seed=seed))).text

        first, again = await text(11), await text(11)
        one, among, other = await asyncio.gather(text(23), text(11), text(37))
        if first != again:
            return Finding("no", "the same seed twice gave two texts")
        if first == one == other:
            return Finding("unknown", "different seeds gave one text as well: the engine may not sample at all")
        if not self.info.has_seeds:
            return Finding("no", "equal seeds gave equal texts, but the engine does not promise it")
        if among != first:
            return Finding("no", "the same seed gave another text when other requests ran beside it")
        return Finding("yes", "equal seeds gave equal texts, alone and beside others; different seeds differed")

    async def concurrency(self) -> Finding:
        num_samples = max(2, min(_SAMPLES_AT_ONCE, self.engine.concurrency))
        prompt = self._story("a ship in a storm")
        # Once before, so that both measurements find the prompt in the cache, if there is one.
        await self._timed([prompt], max_tokens=1)
        alone, (one,) = await self._timed([prompt], max_tokens=24)
        together, samples = await self._timed([prompt] * num_samples, max_tokens=24)
        if alone < 1e-3 or together < 1e-3:
            return Finding("unknown", "too fast to measure")
        rate = sum(sample.num_tokens for sample in samples) / together
        gain = rate / max(one.num_tokens / alone, 1e-9)
        self.details["samples_at_once"] = {"num_samples": num_samples, "tokens_per_second": rate, "gain": gain}
        measured = f"{num_samples} samples at once: {rate:.0f} tokens/s, {gain:.1f} times one alone"
        return Finding("yes" if gain >= 1.3 else "no" if gain <= 1.1 else "unknown", measured)

    async def prefix_sharing(self) -> Finding:
        _, _, completion = await self._fresh_and_repeated(num_words=150)
        cached, total = completion.num_cached_prompt_tokens, completion.num_prompt_tokens
        if cached is not None and total:
            self.details["prefix"] = {"num_cached_prompt_tokens": cached, "num_prompt_tokens": total}
            measured = f"{cached} of {total} prompt tokens came from the cache when the prompt's end had changed"
            return Finding("yes" if cached >= total / 3 else "no", measured)
        # Only the clock can tell, and only for a long prompt.
        trials = [await self._fresh_and_repeated(num_words=600) for _ in range(2)]
        fresh, repeated = min(trial[0] for trial in trials), max(trial[1] for trial in trials)
        if fresh < 1e-3:
            return Finding("unknown", "too fast to measure, and the engine reports no cached tokens")
        ratio = fresh / max(repeated, 1e-9)
        self.details["prefix"] = {"fresh_seconds": fresh, "repeated_seconds": repeated}
        measured = f"a new prompt took {ratio:.1f} times as long as one with a known beginning"
        return Finding("yes" if ratio >= 2.0 else "unknown", f"{measured}; the engine reports no cached tokens")

    async def context_limit(self) -> Finding:
        length = self.info.context_length
        if length is None:
            return Finding("unknown", "the engine does not tell its context length; give context_length to try")
        if length > _LONGEST_CONTEXT_TRIED:
            return Finding("unknown", f"a context of {length} tokens is too long to try")
        try:
            completion = await self.engine.generate(_prompt("word " * (length + 64)), Sampling(max_tokens=1, seed=0))
        except RequestRefused as refusal:
            return Finding("yes", str(refusal))
        read = "" if completion.num_prompt_tokens is None else f" and read {completion.num_prompt_tokens} of its tokens"
        return Finding("no", f"the engine took a prompt longer than its {length} tokens{read}")

    async def second_pass(self) -> Finding:
        prompt, completion, choice = await self._answer_in_a_sentence()
        text = completion.text[: choice.start].rstrip() if choice is not None else "The answer is"
        try:
            second = await self.engine.choose(prompt, text, self.verdict)
        except (Unsupported, RequestRefused) as error:
            return Finding("no", str(error))
        if choice is None or not text:
            return Finding("unknown", "it answers, but the model wrote no sentence with a verdict to compare with")
        difference = abs(second.p_yes - choice.p_yes)
        self.details["second_pass"] = {"p_yes": second.p_yes, "p_yes_of_generation": choice.p_yes}
        measured = f"P(Yes) after {text!r} differs by {difference:.4f} from the generation's own"
        return Finding("yes" if difference <= 0.02 else "no", measured)

    async def continued_reply(self) -> Finding:
        """Give the first half of what the model wrote greedily: it must go on with the second half."""
        prompt = self._story("a clockmaker and her apprentice")
        sampling = Sampling(temperature=0.0, max_tokens=48)
        whole = (await self.engine.generate(prompt, sampling)).text
        half = whole.find(" ", len(whole) // 2)
        reply, rest = whole[:half], whole[half:]
        if half < 0 or len(rest.split()) < _COMPARED_WORDS or _words_alike(rest, whole) >= _COMPARED_WORDS:
            return Finding("unknown", "the model wrote too little, or the same again and again, to compare halves")
        try:
            text = (await self.engine.generate(replace(prompt, reply=reply), sampling)).text
        except Unsupported as error:
            return Finding("no", str(error))
        num_alike = _words_alike(text, rest)
        if num_alike >= _COMPARED_WORDS:
            return Finding("yes", f"half a reply given, the next {num_alike} words were those of the other half")
        if _words_alike(text, whole) >= _COMPARED_WORDS:
            return Finding("no", "half a reply given, the text began with that half again")
        return Finding("unknown", f"half a reply given, only the next {num_alike} words were those of the other half")

    async def _answer(self, prompt: Prompt, **sampling: Any) -> Completion:
        return await self.engine.generate(prompt, Sampling(verdict=self.verdict, **sampling))

    async def _answer_in_a_sentence(self) -> tuple[Prompt, Completion, VerdictChoice | None]:
        """A completion in which words stand before the answer, with the choice there; None where there is none."""
        for sentence, seed in product(_SENTENCES, range(3)):
            prompt = _prompt(sentence)
            completion = await self._answer(prompt, temperature=0.5, max_tokens=24, seed=seed)
            for choice in completion.choices:
                if completion.text[: choice.start].strip():
                    return prompt, completion, choice
        return prompt, completion, None

    async def _fresh_and_repeated(self, num_words: int) -> tuple[float, float, Completion]:
        """Seconds of a prompt never seen, seconds of one with the same beginning, and the latter's completion."""
        beginning = " ".join(self.random.choice(_WORDS) for _ in range(num_words))
        fresh, _ = await self._timed([_prompt(f"{beginning}\nHow many words?")], max_tokens=1)
        repeated, (completion,) = await self._timed([_prompt(f"{beginning}\nWhich word is first?")], max_tokens=1)
        return fresh, repeated, completion

    async def _timed(self, prompts: Sequence[Prompt], max_tokens: int) -> tuple[float, list[Completion]]:
        begin = time.perf_counter()
        samplings = (Sampling(max_tokens=max_tokens, seed=1000 * seed) for seed in range(len(prompts)))
        completions = await asyncio.gather(*map(self.engine.generate, prompts, samplings))
        return time.perf_counter() - begin, completions

    def _story(self, subject: str) -> Prompt:
        return _prompt(f"Write a long story number {self.random.randrange(10**6)} about {subject}.")


def _prompt(text: str) -> Prompt:
    return Prompt((Message("user", text),))


def _words_alike(first: str, second: str) -> int:
    """How many words two texts have in common at their beginning."""
    alike = [one == other for one, other in zip(first.split(), second.split(), strict=False)]
    return alike.index(False) if False in alike else len(alike)
