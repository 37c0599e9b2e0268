"""The critic: a language model reads a whole solution at once and names its earliest wrong step (arXiv 2412.06559).

The prediction is the index that most of N sampled critiques name, the reward of a step the share of them whose first
error is later; where rewards are asked for, the expected share, by how probable each critique finds each index at its
end. Critique j of a solution depends on the prompt, the seed and j alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from functools import partial
from typing import Any, Literal

from rprm.aggregation import mean
from rprm.critique import FORMATS, majority, num_more_votes
from rprm.engines.base import WITHHELD, Completion, Engine, Sampling, TokenLister
from rprm.errors import RequestRefused, RprmError, Unsupported
from rprm.ledger import Ledger
from rprm.prompts.template import CriticTemplate, Prompt
from rprm.records import Analysis, Solution, SolutionReward, StepReward
from rprm.rewarders.base import Steps, described, draw, draw_in_waves, solution_reward, why_without_verdict
from rprm.stopping import StoppingRule
from rprm.thinking import with_thinking_closed

#: Tokens of an index in a box.
_INDEX_TOKENS = 8
#: How probable a beginning of an answer must be for the engine to be asked how it goes on, and how often it is asked.
_LEAST, _MOST_ASKED = 1e-3, 8
#: The most that the probabilities of indices leave out, of their sum: what the engine does not list, or was not asked.
_LEFT_OUT = 0.01


@dataclass(eq=False)
class Critic:
    """A language model as a critic of whole solutions: an engine, a prompt template and a stopping rule.

    Exact stopping changes no prediction, and with `first_error_exit=False` no decision about a step either (its share
    against the threshold). With `force_verdict`, where a critique names no index, the beginning of the answer is
    written after it, and the index read there; such critiques are marked `forced`.
    """

    engine: Engine
    template: CriticTemplate
    rule: StoppingRule
    sampling: Sampling  # of a critique; its seed is the seed of the whole run
    _: KW_ONLY
    first_error_exit: bool = True  # only the prediction is asked for
    force_verdict: bool = False

    def __post_init__(self) -> None:
        if self.sampling.temperature == 0.0 and self.rule.num_analyses > 1:
            raise RprmError("critiques at temperature 0 are equal: ask for one (-k 1), or raise the temperature")
        self.format = FORMATS[self.template.format]
        self._lister: TokenLister | None = None
        self.threshold, self.concurrency = self.rule.threshold, self.engine.concurrency
        if self.force_verdict and not self.format.question:
            raise RprmError(f"the format {self.template.format!r} has no verdict to ask for: leave out --force-verdict")
        self.sampling = replace(self.sampling, stop=(self.template.stop,) if self.template.stop else ())

    def in_full(self) -> Critic:
        return replace(self, rule=replace(self.rule, stopping="none"), first_error_exit=False)

    async def start(self) -> dict[str, Any]:
        info = await self.engine.start(chat=self.template.chat)
        if self.force_verdict and not info.continues_replies:
            raise Unsupported(f"{self.engine.spec}: it cannot continue a reply: leave out --force-verdict")
        self._lister = self.engine if info.has_second_pass and isinstance(self.engine, TokenLister) else None
        flags: dict[str, Any] = {"first_error_exit": self.first_error_exit, "force_verdict": self.force_verdict}
        flags |= {"rewards_from": "logprobs"} if self._lister and not self.first_error_exit else {}
        return described("critic", info, self.template, self.rule, self.sampling, **flags)

    async def aclose(self) -> None:
        await self.engine.aclose()

    async def judge(self, solution: Solution, ledger: Ledger | None = None) -> SolutionReward:
        if not solution.steps:
            return solution_reward(solution, (), self.threshold)
        last = len(solution.steps) - 1

        def num_more(critiques: Sequence[Analysis]) -> int:
            places = () if self.first_error_exit else range(last + 1)
            of_steps = (self.rule.num_more([_is_right(one, at) for one in critiques]) for at in places)
            return max(num_more_votes([one.first_error for one in critiques], self.rule), *of_steps, 0)

        soft = not self.first_error_exit
        critiques, failure = await self._critiques(solution.problem, solution.steps, num_more, ledger, soft=soft)
        number = self.rule.num_analyses
        return reward_of(critiques, last + 1, number, id=solution.id, label=solution.label, failure=failure)

    async def judge_step(self, problem: str, steps: Steps, step_index: int, ledger: Ledger | None = None) -> StepReward:
        """The reward of a step as the last one of a solution: the share of critiques that find no error up to it."""
        critiques, failure = await self._critiques(
            problem, steps[: step_index + 1], lambda drawn: self.rule.num_more([one.p_yes for one in drawn]), ledger,
            soft=True,
        )  # fmt: skip
        reward = _step_reward(step_index, critiques, failure, self.rule.num_analyses)
        return reward.model_copy(update={"analyses": critiques})

    async def _critiques(
        self, problem: str, steps: Steps, num_more: Callable[[Sequence[Analysis]], int], ledger: Ledger | None, *,
        soft: bool,
    ) -> tuple[tuple[Analysis, ...], str | None]:  # fmt: skip
        """Critiques of a solution until no more are needed, `soft` with the probability of each index; where none names
        an index, why."""
        prompt, scope = self.template.render(problem, steps), f"{len(steps) - 1}."
        sampling = replace(self.sampling, num_steps=len(steps))
        critiques, failure = await draw_in_waves(
            num_more,
            lambda samples: draw(partial(self._write, prompt, soft=soft), prompt, sampling, samples, ledger, scope),
        )
        if failure is None and all(one.first_error is None for one in critiques):
            can_ask = bool(self.format.question) and not self.force_verdict
            failure = why_without_verdict(critiques, self.sampling.max_tokens, can_ask=can_ask)
            failure += f"; the prompt's format {self.template.format!r} is {self.format.wanted}"
        return critiques, failure

    async def _write(self, prompt: Prompt, sampling: Sampling, *, soft: bool) -> Analysis:
        completion, num_steps = await self.engine.generate(prompt, sampling), sampling.num_steps or 0
        said = prompt.reply + completion.text  # The reply may begin in the prompt, with thinking too.
        text, index = completion.text, self.format.find(said, num_steps)
        is_asked = index is None and self.force_verdict and completion.finish_reason not in WITHHELD
        asked = with_thinking_closed(said) + self.format.question
        if is_asked and (answer := await self._answer(prompt, asked, sampling)) is not None:
            asked += answer.text + self.format.stop
            if (index := self.format.find(asked, num_steps)) is not None:
                text = asked[len(prompt.reply) :]
        shares = await self._probabilities(prompt, text, num_steps) if soft and index is not None else None
        source: Literal["second pass", "vote"] | None = None
        verdict = p_yes = None
        if index is not None:
            verdict, source = index == -1, "vote" if shares is None else "second pass"
            p_yes = float(verdict) if shares is None else shares[0]
        return Analysis(
            text=text, verdict=verdict, p_yes=p_yes, p_yes_source=source, first_error=index,
            first_error_probabilities=shares, forced=text != completion.text, num_tokens=completion.num_tokens,
            num_prompt_tokens=completion.num_prompt_tokens, finish_reason=completion.finish_reason,
        )  # fmt: skip

    async def _probabilities(self, prompt: Prompt, text: str, num_steps: int) -> tuple[float, ...] | None:
        """How probable each index, -1 first, is where the critique names one, by the likeliest tokens there and after
        every beginning of an answer that leaves several open ("1" of 1 and 12). None where that cannot be told."""
        place = self.format.place(prompt.reply + text)
        if self._lister is None or place is None or place < len(prompt.reply):
            return None
        shares, left_out, num_asked = dict.fromkeys(range(-1, num_steps), 0.0), 0.0, 0
        begun = [("", 1.0)]
        while begun:
            answer, probability = begun.pop()
            if (num_asked := num_asked + 1) > _MOST_ASKED:
                return None
            try:
                found = await self._lister.next_tokens(prompt, text[: place - len(prompt.reply)] + answer)
            except RequestRefused:
                return None
            left_out += probability * max(0.0, 1.0 - math.fsum(found.values()))
            for token, following in found.items():
                share, indices = probability * following, self.format.may_name(answer + token, num_steps)
                if len(indices) == 1:
                    shares[indices[0]] += share
                elif indices and share >= _LEAST:
                    begun.append((answer + token, share))
                else:
                    left_out += share * bool(indices)
        total = math.fsum(shares.values())
        if not total or left_out > _LEFT_OUT * total:
            return None
        return tuple(min(share / total, 1.0) for share in shares.values())

    async def _answer(self, prompt: Prompt, asked: str, sampling: Sampling) -> Completion | None:
        """The likeliest answer after a reply; None where the engine refuses to continue it."""
        greedy = replace(sampling, temperature=0.0, max_tokens=_INDEX_TOKENS, stop=(self.format.stop,))
        try:
            return await self.engine.generate(replace(prompt, reply=asked), greedy)
        except RequestRefused:
            return None


def reward_of(
    critiques: tuple[Analysis, ...], num_steps: int, num_requested: int | None, *, id: str, label: int | None,
    failure: str | None = None,
) -> SolutionReward:  # fmt: skip
    """What some critiques of a solution come to; `failure`: why none of them names an index."""
    votes = [one.first_error for one in critiques]
    if (index := majority(votes)) is None:
        failure = failure or "none of these critiques names an index"
    steps = [_step_reward(at, critiques, failure, num_requested) for at in range(num_steps)]
    steps[-1] = steps[-1].model_copy(update={"analyses": critiques})
    return SolutionReward(id=id, num_steps=num_steps, first_error=index, steps=tuple(steps), label=label)


def _step_reward(
    step_index: int, critiques: Sequence[Analysis], failure: str | None, num_requested: int | None
) -> StepReward:
    told = ([_is_right(one, step_index, is_vote=is_vote) for one in critiques] for is_vote in (False, True))
    reward, vote = (mean([share for share in shares if share is not None]) for shares in told)
    return StepReward(step_index=step_index, reward=reward, vote=vote, failure=failure, num_requested=num_requested)


def _is_right(critique: Analysis, step_index: int, *, is_vote: bool = False) -> float | None:
    """How probable it is by a critique that the first error is later than a step, or none is; of a vote 1 or 0."""
    index, shares = critique.first_error, critique.first_error_probabilities
    if index is None or shares is None or is_vote:
        return None if index is None else float(index == -1 or index > step_index)
    return min(math.fsum((shares[0], *shares[step_index + 2 :])), 1.0)
