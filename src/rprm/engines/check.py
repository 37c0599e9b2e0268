"""What an engine can really do, found out by trying it: `rprm engines check SPEC`.

A trial says "yes" or "no" only where it decides it, otherwise "unknown" with the reason. All of them cost some hundreds
of generated tokens and a few prompts of some hundreds of tokens.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from itertools import product
from typing import Any

from rprm.engines import load_engine
from rprm.engines.base import Completion, Engine, EngineInfo, Sampling, num_alike
from rprm.errors import RequestRefused, Unsupported
from rprm.prompts.template import Message, Prompt
from rprm.verdict import VerdictFormat

_VERDICT = VerdictFormat()
#: Questions that most models answer with the bare word, the likeliest first, and with a few words before it.
_QUESTIONS = (
    "Is 2 + 2 equal to 4? Reply with exactly one word, Yes or No.",
    "Reply with exactly one word, either Yes or No. Is Paris in France?",
    "Do people sleep?\nAnswer (Yes/No):",
)
_SENTENCES = (
    "Is 2 + 2 equal to 4? Reply with one sentence of exactly this form: The answer is Yes. Or: The answer is No.",
    "Is Paris in France? Complete this sentence with Yes or No, and write it whole: The answer is",
)
_LONGEST_CONTEXT_TRIED = 150_000  # longer ones take megabytes, and are costly where they are not refused
_SAMPLES_AT_ONCE = 8
_COMPARED_WORDS = 4  # of a continued reply and the rest of it: too many for chance
_WORDS = ("north", "river", "seven", "paper", "green", "stone", "light", "under", "music", "table", "early", "cloud")
_Finding = tuple[str, str]


async def check_spec(spec: str) -> dict[str, Any]:
    """`check_engine` of the engine that `spec` names."""
    engine = load_engine(spec)
    try:
        return await check_engine(engine)
    finally:
        await engine.aclose()


async def check_engine(engine: Engine) -> dict[str, Any]:
    """Try what an engine can do. Starts it; closing it is left to the caller.

    Returns:
        What `--json` prints: the `spec`, the `info` that the engine gives of itself, `tokens_per_second` of one request
        alone (None: too fast to measure), `answer` and `detail` of each of `TRIALS`, their measurements in `details`.

    Raises:
        EngineError: the engine cannot be started or reached, or refuses even a short request.
    """
    trials = _Trials(engine, await engine.start())
    report = {"spec": engine.spec, "info": trials.info.as_dict(), "tokens_per_second": await trials._speed()}
    for name in TRIALS:
        try:
            answer, detail = await getattr(trials, name)()
        except RequestRefused as refusal:
            answer, detail = "unknown", f"not tried to the end: {refusal}"
        report[name] = {"answer": answer, "detail": detail}
    return report | {"details": trials.details}


class _Trials:
    """Each public method is a trial: "yes", "no" or "unknown", and the measurement behind it in a few words."""

    def __init__(self, engine: Engine, info: EngineInfo) -> None:
        self.engine, self.info = engine, info
        self.details: dict[str, Any] = {}
        self.answered: str | None = None  # a question that was answered, with log-probabilities
        self.random = random.Random()  # no earlier check can have left its prompts in a cache

    async def _speed(self) -> float | None:
        await self._timed("Say hello.", max_tokens=4)
        seconds, (completion,) = await self._timed(self._story("a lighthouse"), max_tokens=32)
        self.details["one_request"] = {"num_tokens": completion.num_tokens, "seconds": seconds}
        return None if seconds < 1e-3 else completion.num_tokens / seconds

    async def logprobs(self) -> _Finding:
        """P(Yes) can be read where Yes or No was generated."""
        said = None if self.info.has_logprobs else "the engine says that it has none"
        for question, seed in product(_QUESTIONS, range(2)):
            completion = await self._generate(question, verdict=_VERDICT, max_tokens=12, seed=seed)
            if completion.choices:
                self.answered = question
                p_yes = self.details["p_yes"] = completion.choices[0].p_yes
                return "yes", f"P(Yes) = {p_yes:.4f} where the model answered {question!r}"
            if _VERDICT.answer_of("".join(completion.text.split()[:1]).strip(".,!*\"'")) is not None:
                said = "the model answered, without log-probabilities"
        if said:
            return "no", f"{said}; judging takes the hard vote"
        return "unknown", "the model answered Yes or No to none of the questions tried"

    async def raw_logprobs(self) -> _Finding:
        """Those log-probabilities are the model's own: the log-odds at the first token have no temperature."""
        if self.answered is None:
            return "unknown", "no log-probabilities at an answer to compare"
        warm, cold = 1.0, 0.25
        odds: dict[float, float] = {}
        for temperature, seed in product((warm, cold), range(8)):
            if temperature not in odds:
                sampling: dict[str, Any] = {"temperature": temperature, "max_tokens": 4, "seed": seed}
                completion = await self._generate(self.answered, verdict=_VERDICT, **sampling)
                for choice in completion.choices[:1]:
                    if not completion.text[: choice.start].strip():
                        odds[temperature] = choice.logprob_yes - choice.logprob_no
        if len(odds) < 2 or not all(math.isfinite(value) and abs(value) > 0.2 for value in odds.values()):
            return "unknown", "the model's answers are too rare, or too even, to compare temperatures"
        ratio = self.details["logprob_ratio_between_temperatures"] = odds[cold] / odds[warm]
        measured = f"the log-odds at temperature {cold} are {ratio:.2f} times those at {warm:g}"
        if abs(ratio - warm / cold) < 0.2 * warm / cold:
            return "no", f"{measured}: the engine reports them after temperature, which biases P(Yes)"
        return "yes" if abs(ratio - 1.0) < 0.15 else "unknown", measured

    async def seeds(self) -> _Finding:
        """Equal seeds give equal samples at temperature 1, and different seeds different ones."""
        prompt = self._story("a random animal in a random city")

        async def text(seed: int) -> str:
            return (await self._generate(prompt, max_tokens=16, seed=seed)).text

        first, again = await text(11), await text(11)
        one, among, other = await asyncio.gather(text(23), text(11), text(37))
        findings = (
            (first != again, "no", "the same seed twice gave two texts"),
            (first == one == other, "unknown", "different seeds gave one text as well: it may not sample at all"),
            (not self.info.has_seeds, "no", "equal seeds gave equal texts, but the engine does not promise it"),
            (among != first, "no", "the same seed gave another text when other requests ran beside it"),
            (True, "yes", "equal seeds gave equal texts, alone and beside others; different seeds differed"),
        )
        return next((answer, detail) for is_so, answer, detail in findings if is_so)

    async def concurrency(self) -> _Finding:
        """Several samples at once take less time than one after the other."""
        num_samples = max(2, min(_SAMPLES_AT_ONCE, self.engine.concurrency))
        prompt = self._story("a ship in a storm")
        # Once before, so that both measurements find the prompt in the cache, if there is one.
        await self._timed(prompt, max_tokens=1)
        alone, (one,) = await self._timed(prompt, max_tokens=24)
        together, samples = await self._timed(prompt, max_tokens=24, num_samples=num_samples)
        if min(alone, together) < 1e-3:
            return "unknown", "too fast to measure"
        rate = sum(sample.num_tokens for sample in samples) / together
        gain = rate / max(one.num_tokens / alone, 1e-9)
        self.details["samples_at_once"] = {"num_samples": num_samples, "tokens_per_second": rate, "gain": gain}
        measured = f"{num_samples} samples at once: {rate:.0f} tokens/s, {gain:.1f} times one alone"
        return "yes" if gain >= 1.3 else "no" if gain <= 1.1 else "unknown", measured

    async def prefix_sharing(self) -> _Finding:
        """The beginning that a prompt shares with an earlier one is not computed again."""
        _, _, completion = await self._fresh_and_repeated(num_words=150)
        cached, total = completion.num_cached_prompt_tokens, completion.num_prompt_tokens
        if cached is not None and total:
            self.details["prefix"] = {"num_cached_prompt_tokens": cached, "num_prompt_tokens": total}
            measured = f"{cached} of {total} prompt tokens came from the cache when the prompt's end had changed"
            return "yes" if cached >= total / 3 else "no", measured
        # Only the clock can tell, and only for a long prompt.
        trials = [await self._fresh_and_repeated(num_words=600) for _ in range(2)]
        fresh, repeated = min(trial[0] for trial in trials), max(trial[1] for trial in trials)
        if fresh < 1e-3:
            return "unknown", "too fast to measure, and the engine reports no cached tokens"
        ratio = fresh / max(repeated, 1e-9)
        self.details["prefix"] = {"fresh_seconds": fresh, "repeated_seconds": repeated}
        measured = f"a new prompt took {ratio:.1f} times as long as one with a known beginning"
        return "yes" if ratio >= 2.0 else "unknown", f"{measured}; the engine reports no cached tokens"

    async def context_limit(self) -> _Finding:
        """A prompt that does not fit is refused, not cut."""
        if (length := self.info.context_length) is None:
            return "unknown", "the engine does not tell its context length; give context_length to try"
        if length > _LONGEST_CONTEXT_TRIED:
            return "unknown", f"a context of {length} tokens is too long to try"
        try:
            read = (await self._generate("word " * (length + 64), max_tokens=1, seed=0)).num_prompt_tokens
        except RequestRefused as refusal:
            return "yes", str(refusal)
        told = "" if read is None else f" and read {read} of its tokens"
        return "no", f"the engine took a prompt longer than its {length} tokens{told}"

    async def second_pass(self) -> _Finding:
        """A given text can be continued, and P(Yes) after it is that of the generation itself."""
        text, choice = "The answer is", None
        for sentence, seed in product(_SENTENCES, range(3)):
            completion = await self._generate(sentence, verdict=_VERDICT, temperature=0.5, max_tokens=24, seed=seed)
            found = (one for one in completion.choices if completion.text[: one.start].strip())
            if (choice := next(found, None)) is not None:
                text = completion.text[: choice.start].rstrip()
                break
        try:
            second = await self.engine.choose(Prompt((Message("user", sentence),)), text, _VERDICT)
        except (Unsupported, RequestRefused) as error:
            return "no", str(error)
        if choice is None:
            return "unknown", "it answers, but the model wrote no sentence with a verdict to compare with"
        difference = abs(second.p_yes - choice.p_yes)
        self.details["second_pass"] = {"p_yes": second.p_yes, "p_yes_of_generation": choice.p_yes}
        measured = f"P(Yes) after {text!r} differs by {difference:.4f} from the generation's own"
        return "yes" if difference <= 0.02 else "no", measured

    async def continued_reply(self) -> _Finding:
        """Given the first half of what it wrote greedily, the model goes on with the second half."""
        prompt = self._story("a clockmaker and her apprentice")
        greedily: dict[str, Any] = {"temperature": 0.0, "max_tokens": 48}
        whole = (await self._generate(prompt, **greedily)).text
        half = whole.find(" ", len(whole) // 2)
        reply, rest = whole[:half], whole[half:].split()
        if half < 0 or len(rest) < _COMPARED_WORDS or num_alike(rest, whole.split()) >= _COMPARED_WORDS:
            return "unknown", "the model wrote too little, or the same again and again, to compare halves"
        try:
            words = (await self._generate(prompt, reply, **greedily)).text.split()
        except Unsupported as error:
            return "no", str(error)
        same = num_alike(words, rest)
        if same >= _COMPARED_WORDS:
            return "yes", f"half a reply given, the next {same} words were those of the other half"
        if num_alike(words, whole.split()) >= _COMPARED_WORDS:
            return "no", "half a reply given, the text began with that half again"
        return "unknown", f"half a reply given, only the next {same} words were those of the other half"

    async def _generate(self, text: str, reply: str = "", **sampling: Any) -> Completion:
        return await self.engine.generate(Prompt((Message("user", text),), reply=reply), Sampling(**sampling))

    async def _fresh_and_repeated(self, num_words: int) -> tuple[float, float, Completion]:
        """Seconds of a prompt never seen, seconds of one with the same beginning, and the latter's completion."""
        beginning = " ".join(self.random.choice(_WORDS) for _ in range(num_words))
        fresh, _ = await self._timed(f"{beginning}\nHow many words?", max_tokens=1)
        repeated, (completion,) = await self._timed(f"{beginning}\nWhich word is first?", max_tokens=1)
        return fresh, repeated, completion

    async def _timed(self, text: str, max_tokens: int, num_samples: int = 1) -> tuple[float, list[Completion]]:
        begin = time.perf_counter()
        samples = (self._generate(text, max_tokens=max_tokens, seed=1000 * at) for at in range(num_samples))
        completions = await asyncio.gather(*samples)
        return time.perf_counter() - begin, completions

    def _story(self, subject: str) -> str:
        return f"Write a long story number {self.random.randrange(10**6)} about {subject}."


#: The trials by name, in their order.
TRIALS = [name for name in vars(_Trials) if not name.startswith("_")]
