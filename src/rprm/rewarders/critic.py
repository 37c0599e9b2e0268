"""The critic: a language model reads a whole solution at once and names its earliest wrong step (arXiv 2412.06559).

The prediction is the index that most of N sampled critiques name, the reward of a step the share of them whose first
error is later. Critique j of a solution depends on the prompt, the seed and j alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from functools import partial
from typing import Any

from rprm.critique import FORMATS, majority, num_more_votes
from rprm.engines.base import WITHHELD, Completion, Engine, Sampling
from rprm.errors import RequestRefused, RprmError, Unsupported
from rprm.ledger import Ledger
from rprm.prompts.template import CriticTemplate, Prompt
from rprm.records import Analysis, Solution, SolutionReward, StepReward
from rprm.rewarders.base import Steps, described, draw, draw_in_waves, solution_reward, why_without_verdict
from rprm.stopping import StoppingRule, mean
from rprm.thinking import with_thinking_closed

#: Tokens of an index in a box.
_INDEX_TOKENS = 8


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
        flags = {"first_error_exit": self.first_error_exit, "force_verdict": self.force_verdict}
        return described("critic", info, self.template, self.rule, self.sampling, **flags)

    async def aclose(self) -> None:
        await self.engine.aclose()

    async def judge(self, solution: Solution, ledger: Ledger | None = None) -> SolutionReward:
        if not solution.steps:
            return solution_reward(solution, (), self.threshold)
        last = len(solution.steps) - 1

        def num_more(critiques: Sequence[Analysis]) -> int:
            votes = [one.first_error for one in critiques]
            of_steps = [] if self.first_error_exit else [self.rule.num_more(_told(votes, at)) for at in range(last + 1)]
            return max(num_more_votes(votes, self.rule), *of_steps, 0)

        critiques, failure = await self._critiques(solution.problem, solution.steps, num_more, ledger)
        number = self.rule.num_analyses
        return reward_of(critiques, last + 1, number, id=solution.id, label=solution.label, failure=failure)

    async def judge_step(self, problem: str, steps: Steps, step_index: int, ledger: Ledger | None = None) -> StepReward:
        """The reward of a step as the last one of a solution: the share of critiques that find no error up to it."""
        critiques, failure = await self._critiques(
            problem, steps[: step_index + 1], lambda drawn: self.rule.num_more([one.p_yes for one in drawn]), ledger
        )
        reward = _step_reward(step_index, critiques, failure, self.rule.num_analyses)
        return reward.model_copy(update={"analyses": critiques})

    async def _critiques(
        self, problem: str, steps: Steps, num_more: Callable[[Sequence[Analysis]], int], ledger: Ledger | None
    ) -> tuple[tuple[Analysis, ...], str | None]:
        """Critiques of a solution until no more are needed; where none names an index, why."""
        prompt, scope = self.template.render(problem, steps), f"{len(steps) - 1}."
        sampling = replace(self.sampling, num_steps=len(steps))
        critiques, failure = await draw_in_waves(
            num_more, lambda samples: draw(partial(self._write, prompt), prompt, sampling, samples, ledger, scope)
        )
        if failure is None and all(one.first_error is None for one in critiques):
            can_ask = bool(self.format.question) and not self.force_verdict
            failure = why_without_verdict(critiques, self.sampling.max_tokens, can_ask=can_ask)
        return critiques, failure

    async def _write(self, prompt: Prompt, sampling: Sampling) -> Analysis:
        completion, num_steps = await self.engine.generate(prompt, sampling), sampling.num_steps or 0
        # The reply may begin in the prompt, with thinking too.
        said, num_tokens = prompt.reply + completion.text, completion.num_tokens
        text, index = completion.text, self.format.find(said, num_steps)
        is_asked = index is None and self.force_verdict and completion.finish_reason not in WITHHELD
        asked = with_thinking_closed(said) + self.format.question
        if is_asked and (answer := await self._answer(prompt, asked, sampling)) is not None:
            num_tokens += answer.num_tokens
            asked += answer.text + self.format.stop
            if (index := self.format.find(asked, num_steps)) is not None:
                text = asked[len(prompt.reply) :]
        verdict = None if index is None else index == -1
        return Analysis(
            text=text, verdict=verdict, p_yes=None if verdict is None else float(verdict), first_error=index,
            p_yes_source=None if verdict is None else "vote", forced=text != completion.text, num_tokens=num_tokens,
            num_prompt_tokens=completion.num_prompt_tokens, finish_reason=completion.finish_reason,
        )  # fmt: skip

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
    told = _told([one.first_error for one in critiques], step_index)
    share = mean([p_yes for p_yes in told if p_yes is not None])
    return StepReward(step_index=step_index, reward=share, vote=share, failure=failure, num_requested=num_requested)


def _told(votes: Sequence[int | None], step_index: int) -> list[float | None]:
    """What each vote says of a step: 1 where the first error is later or there is none, 0 where it is not."""
    return [None if vote is None else float(vote == -1 or vote > step_index) for vote in votes]
