"""The judge: K sampled analyses a step, their mean P(Yes) its reward (R-PRM, arXiv 2503.21295, section 3.3).

P(Yes) is read from the generation, at the token where the verdict is written. Sample j of a step depends on the prompt,
the seed and j alone.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import KW_ONLY, dataclass, replace
from functools import partial
from typing import Any, Literal

from rprm.aggregation import mean
from rprm.engines.base import WITHHELD, Engine, Sampling
from rprm.errors import RequestRefused, RprmError, Unsupported
from rprm.jobs import in_order
from rprm.ledger import Ledger
from rprm.prompts.template import Prompt, PromptTemplate
from rprm.records import Analysis, Solution, SolutionReward, StepReward
from rprm.rewarders.base import Steps, described, draw, draw_in_waves, solution_reward, why_without_verdict
from rprm.stopping import StoppingRule
from rprm.thinking import with_thinking_closed
from rprm.verdict import TwoAnswers, VerdictChoice, read_verdict

_TURNS = 8192  # first analyses that are kept for conversations


@dataclass(eq=False)
class Judge:
    """A reasoning-driven process reward model: an engine, a prompt template and a stopping rule.

    With `force_verdict`, where an analysis ends without a verdict, the marker (or the text given) is written after it
    and P(Yes) read there; such analyses are marked `forced`. Where the template makes a conversation, its earlier turns
    have the first analysis of each earlier step, up to its verdict; after one without a verdict no step is judged.
    """

    engine: Engine
    template: PromptTemplate
    rule: StoppingRule
    sampling: Sampling  # of an analysis; its seed is the seed of the whole run
    _: KW_ONLY
    first_error_exit: bool = True  # stop at the first step called wrong
    force_verdict: bool | str = False
    second_pass: bool = False  # P(Yes) by a pass of its own right before the verdict, from ` Yes` and ` No` alone

    def __post_init__(self) -> None:
        if self.sampling.temperature == 0.0 and self.rule.num_analyses > 1:
            raise RprmError("analyses at temperature 0 are equal: ask for one (-k 1), or raise the temperature")
        stop = (self.template.stop,) if self.template.stop else ()
        self.sampling = replace(self.sampling, verdict=self.template.verdict, stop=stop)
        self.threshold, self.concurrency = self.rule.threshold, self.engine.concurrency
        #: The event loop, and its places for prompts.
        self._places: tuple[object, asyncio.Semaphore] = None, asyncio.Semaphore(self.concurrency)
        #: The first analysis of a prompt, as the turn of a conversation; None of one without a verdict.
        self._turns: dict[bytes, str | None] = {}

    def in_full(self) -> Judge:
        return replace(self, rule=replace(self.rule, stopping="none"), first_error_exit=False)

    async def start(self) -> dict[str, Any]:
        info = await self.engine.start(chat=self.template.chat)
        if (self.force_verdict or self.second_pass) and not info.has_second_pass:
            option = "--procedure published" if self.second_pass else "--force-verdict"
            raise Unsupported(f"{self.engine.spec}: this engine cannot continue a given text; leave out {option}")
        flags = {name: getattr(self, name) for name in ("first_error_exit", "force_verdict")}
        flags |= {"second_pass": True} if self.second_pass else {}
        return described("r-prm", info, self.template, self.rule, self.sampling, **flags)

    async def aclose(self) -> None:
        await self.engine.aclose()

    async def judge(self, solution: Solution, ledger: Ledger | None = None) -> SolutionReward:
        async with aclosing(self.judge_steps(solution, ledger)) as judged:
            return solution_reward(solution, [step async for step in judged], self.threshold)

    async def judge_steps(self, solution: Solution, ledger: Ledger | None = None) -> AsyncGenerator[StepReward, None]:
        """As in `StepStreamer`."""
        judge_step = partial(self.judge_step, solution.problem, solution.steps, ledger=ledger)
        indices = iter(range(len(solution.steps)))
        if not self.first_error_exit and not self.template.next_user:
            async with aclosing(in_order(indices, judge_step, width=self.concurrency)) as judged:
                async for _, step in judged:
                    yield step
        for index in indices:
            yield (step := await judge_step(index))
            if self.first_error_exit and step.reward is not None and step.reward < self.threshold:
                return

    async def judge_step(self, problem: str, steps: Steps, step_index: int, ledger: Ledger | None = None) -> StepReward:
        analyses, failure = await draw_in_waves(
            lambda drawn: self.rule.num_more([one.p_yes for one in drawn]),
            lambda samples: self.analyse(problem, steps, step_index, samples, ledger),
        )
        return self.reward(step_index, analyses, failure)

    async def analyse(
        self, problem: str, steps: Steps, step_index: int, samples: range, ledger: Ledger | None = None
    ) -> list[Analysis]:
        """As in `AnalysisSampler`; one that is refused has no verdict. Of prompts, which have all steps before theirs,
        no more are rendered at once than requests fill the engine."""
        if self._places[0] is not (loop := asyncio.get_running_loop()):
            self._places = loop, asyncio.Semaphore(self.concurrency)
        turns: list[str] = []
        for index in range(step_index if self.template.next_user else 0):
            key = _key(self.template.render(problem, steps, index, turns))
            if key not in self._turns:
                await self._draw(problem, steps, index, range(1), ledger, turns)
            if (turn := self._turns[key]) is None:
                what = f"the first analysis of step {index + 1} has no verdict, and makes no turn of the conversation"
                raise RequestRefused(f"{what}: ask for one with --force-verdict")
            turns.append(turn)
        return await self._draw(problem, steps, step_index, samples, ledger, turns)

    async def _draw(
        self, problem: str, steps: Steps, step_index: int, samples: range, ledger: Ledger | None, turns: Sequence[str]
    ) -> list[Analysis]:
        async with self._places[1]:
            prompt = self.template.render(problem, steps, step_index, turns)
            write, scope = partial(self._write, prompt), f"{step_index}."
            analyses = await draw(write, prompt, self.sampling, samples, ledger, scope)
        if self.template.next_user and 0 in samples:
            verdict = self.template.verdict.find(text := analyses[0].text)
            turn = None if verdict is None else self.template.reply_to(step_index) + text[: verdict.end]
            self._turns[_key(prompt)] = turn
            while len(self._turns) > _TURNS:
                self._turns.pop(next(iter(self._turns)))
        return analyses

    def reward(self, step_index: int, analyses: Sequence[Analysis], failure: str | None = None) -> StepReward:
        p_yes = [analysis.p_yes for analysis in analyses if analysis.p_yes is not None]
        votes = [float(analysis.verdict) for analysis in analyses if analysis.verdict is not None]
        if not p_yes and failure is None:
            failure = why_without_verdict(analyses, self.sampling.max_tokens, can_ask=not self.force_verdict)
        return StepReward(
            step_index=step_index, reward=mean(p_yes), vote=mean(votes), analyses=tuple(analyses), failure=failure,
            num_requested=self.rule.num_analyses,
        )  # fmt: skip

    async def _write(self, prompt: Prompt, sampling: Sampling) -> Analysis:
        completion = await self.engine.generate(prompt, sampling)
        form, text, forced, yes = self.template.verdict, completion.text, False, None
        source: Literal["logprobs", "second pass", "vote"] | None = None
        verdict, choice = read_verdict(text, form, completion.choices) or (None, None)
        if verdict is not None:
            yes, source = verdict.yes, "vote" if choice is None else "logprobs"
            if self.second_pass and (second := await self._choose(prompt, text[: verdict.start].rstrip())):
                choice, source = second, "second pass"
        elif self.force_verdict and completion.finish_reason not in WITHHELD:
            question = form.marker if self.force_verdict is True else self.force_verdict
            own = self.template.ask if self.force_verdict is True else ""
            asked = text + own if own else f"{with_thinking_closed(text)}\n\n{question}"
            if (choice := await self._choose(prompt, asked)) is not None:
                yes, forced, source = choice.p_yes >= 0.5, True, "logprobs"
                text = f"{asked}{'' if own else ' '}{form.yes if yes else form.no}"
        p_yes = choice.p_yes if choice is not None else None if yes is None else float(yes)
        return Analysis(
            text=text, verdict=yes, p_yes=p_yes, p_yes_source=source, forced=forced, num_tokens=completion.num_tokens,
            num_prompt_tokens=completion.num_prompt_tokens, finish_reason=completion.finish_reason,
        )  # fmt: skip

    async def _choose(self, prompt: Prompt, text: str) -> VerdictChoice | None:
        """P(Yes) after `text`; None where the engine cannot give it for this one."""
        form = self.template.verdict
        answers = TwoAnswers(form.marker, form.yes, form.no) if self.second_pass else form
        try:
            return await self.engine.choose(prompt, text, answers)
        except RequestRefused:
            return None


def _key(prompt: Prompt) -> bytes:
    return hashlib.blake2b(prompt.text.encode(), digest_size=16).digest()
