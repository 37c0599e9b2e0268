"""The model that is being trained as an engine, its weights as they are now and no copy of them: what samples replies
in reinforcement learning (all processes), and is measured meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from rprm.engines.base import EngineInfo, Sampling
from rprm.engines.tokens import TokenTranscript
from rprm.engines.transformers import TransformersEngine
from rprm.prompts.template import Prompt

if TYPE_CHECKING:
    from rprm.engines.worker import Decoder


class LiveEngine(TransformersEngine):
    """An engine over a model in memory. Nothing that it computed is kept when it is closed: weights change."""

    def __init__(self, model: Any, tokenizer: Any, max_rows: int) -> None:
        super().__init__("the model in training", max_rows=max_rows, concurrency=max_rows)
        self.model, self.tokenizer = model, tokenizer

    def _load(self) -> Decoder:
        from rprm.engines.worker import Decoder

        self.model.eval()
        context_length = getattr(self.model.config.get_text_config(), "max_position_embeddings", None) or 4096
        return Decoder(self, EngineInfo("transformers", self.target, context_length=context_length))

    async def sample(self, prompts: Sequence[list[int]], sampling: Sampling, seeds: Sequence[int]) -> list[list[int]]:
        """The tokens of one reply to each prompt, its end token too, by its seed; equal prompts are computed once."""
        await self.start()
        try:
            seeded = (replace(sampling, seed=seed) for seed in seeds)
            return await asyncio.gather(*map(self._reply, prompts, seeded))
        finally:
            await self.aclose()

    async def _reply(self, ids: list[int], sampling: Sampling) -> list[int]:
        assert self._worker is not None
        transcript = TokenTranscript(self.tokenizer, Prompt((), chat=False), ids, sampling)
        await self._worker.ask(ids, transcript, sampling)
        return transcript.tokens
