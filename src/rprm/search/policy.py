"""The policy: the language model that writes solutions, whole or step by step."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from rprm.engines import Engine, Sampling
from rprm.engines.base import Completion
from rprm.errors import Unsupported
from rprm.ledger import Ledger, paid_once
from rprm.prompts import PolicyTemplate
from rprm.records import Record
from rprm.rewarders.rprm import sample_seed
from rprm.splitting import split_steps
from rprm.thinking import after_thinking, without_thinking


class Candidate(Record):
    """A solution that a policy wrote. `num_tokens` and `finish_reason` are None where it was brought from elsewhere."""

    text: str
    steps: tuple[str, ...]
    num_tokens: int | None = None
    finish_reason: str | None = None


class Continuation(Record):
    """A next step, or none (`text` is empty). `ended`: the model ended its solution; None: the engine cannot tell."""

    text: str
    num_tokens: int
    ended: bool | None
    finish_reason: str


@dataclass(frozen=True)
class Policy:
    """A language model that solves problems. Sample j of a prompt depends on the prompt, the seed and j alone.

    `sampling` is that of a whole solution, `step_tokens` the longest step. `solve` and `next_step` raise
    `RequestRefused` where problem and steps are too long for the model, `EngineUnavailable` where it stopped
    answering."""

    engine: Engine
    template: PolicyTemplate
    sampling: Sampling
    step_tokens: int = 512

    @property
    def concurrency(self) -> int:
        return self.engine.concurrency

    async def start(self, *, stepwise: bool = False) -> dict[str, Any]:
        """Load the model, to write step by step or whole; returns what its solutions depend on, for the manifest.
        `EngineError` where it cannot be loaded, or (`Unsupported`) cannot continue a solution that is begun."""
        info, sampling = await self.engine.start(chat=self.template.chat), self.sampling
        if stepwise and self.template.chat and not info.continues_replies:
            raise Unsupported(
                f"{self.engine.spec}: this engine cannot continue a reply that is begun, which a search step by step "
                "needs; if the server can (vLLM, SGLang, llama.cpp), add continue_final_message=true to its options"
            )
        return {
            "engine": {"kind": info.kind, "model": info.model, "revision": info.revision, **info.details},
            "prompt": {"name": self.template.name, "digest": self.template.digest},
            **{name: getattr(sampling, name) for name in ("temperature", "top_p", "max_tokens")},
            **({"step_tokens": self.step_tokens} if stepwise else {}),
            "seed": sampling.seed,
        }

    async def solve(self, problem: str, sample: int, ledger: Ledger | None = None) -> Candidate:
        """Write a whole solution."""

        async def write() -> Candidate:
            made = await self._generate(problem, (), sample, (), self.sampling.max_tokens)
            steps = tuple(split_steps(made.text))
            return Candidate(text=made.text, steps=steps, num_tokens=made.num_tokens, finish_reason=made.finish_reason)

        return await paid_once(ledger, f"solution.{sample}", Candidate, write)

    async def next_step(
        self, problem: str, steps: tuple[str, ...], sample: int, ledger: Ledger | None = None
    ) -> Continuation:
        """Write the step that follows `steps`, without what the model thinks. The ledger is that of these steps."""

        async def write() -> Continuation:
            made = await self._generate(problem, steps, sample, (self.template.step_separator,), self.step_tokens)
            ended = made.ended
            if not made.text.strip() and self.template.stop and made.finish_reason == "stop":
                # Nothing before the text that ends a base model's solutions: that is its end.
                ended = True
            elif after_thinking(made.text) is None:
                # Cut off in its thinking, it wrote no step and ended no solution.
                ended = False
            text = without_thinking(made.text).strip()
            return Continuation(text=text, num_tokens=made.num_tokens, ended=ended, finish_reason=made.finish_reason)

        return await paid_once(ledger, f"step.{sample}", Continuation, write)

    async def _generate(
        self, problem: str, steps: tuple[str, ...], sample: int, stop: tuple[str, ...], max_tokens: int
    ) -> Completion:
        prompt = self.template.render(problem, steps)
        stop = tuple(filter(None, (*stop, self.template.stop)))
        seed = sample_seed(self.sampling.seed or 0, prompt, sample)
        return await self.engine.generate(prompt, replace(self.sampling, stop=stop, max_tokens=max_tokens, seed=seed))

    async def aclose(self) -> None:
        await self.engine.aclose()
