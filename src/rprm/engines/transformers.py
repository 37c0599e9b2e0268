"""Any causal language model that transformers loads, on a CPU or one GPU, without a server.

A worker thread decodes all requests under way as one batch that rows join and leave at any token. A prompt is computed
once for all its samples, and what it shares with an earlier prompt (the steps of one solution) is not computed again:
keys and values of recent prompts are kept. Rows draw from random streams of their own, so that a sample depends on its
seed and not on its neighbours (up to the floating-point noise of batched arithmetic).
"""

from __future__ import annotations

import asyncio
import inspect
import random
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from rprm.engines.base import Completion, EngineInfo, Sampling, check_least, clipped
from rprm.engines.files import identity
from rprm.engines.loading import load_model
from rprm.engines.tokens import VerdictTokens, encode_prompt
from rprm.engines.transcript import TokenTranscript
from rprm.engines.worker import Job, ModelWorker, placement
from rprm.errors import EngineError, RequestRefused
from rprm.prompts.template import Prompt
from rprm.verdict import VerdictChoice, VerdictFormat

if TYPE_CHECKING:
    import torch

    from rprm.engines.kv_cache import KeyValues

#: Longest run of prompt tokens in one forward pass.
_PREFILL_CHUNK = 2048

#: Tokens that nucleus sampling sorts at first; it sorts all where their mass is below top_p.
_NUCLEUS_GUESS = 256


class TransformersEngine:
    """A model in this process, through transformers.

    Args:
        target: a hub id, a folder, a folder with a LoRA adapter, or a GGUF file.
        dtype: "auto" is bfloat16 on a GPU and float32 on a CPU; or a torch name such as "float16".
        device: "auto" takes a GPU where there is one; or a torch name such as "cuda:1".
        adapter: a LoRA adapter (folder or hub id), merged into the model.
        revision: of the hub repository; a tag or commit.
        max_rows: completions decoded at once.
        prefix_tokens: prompt tokens whose keys and values are kept for reuse.
        context_length: of prompt and completion together; the model's own by default. A longer one than its own is
            possible where the model counts positions freely (rotary ones), at the price of quality.
        num_threads: of torch on a CPU; torch's own choice by default.
    """

    def __init__(
        self,
        target: str,
        *,
        spec: str = "",
        dtype: str = "auto",
        device: str = "auto",
        adapter: str | None = None,
        revision: str | None = None,
        max_rows: int = 16,
        prefix_tokens: int = 16384,
        context_length: int | None = None,
        num_threads: int | None = None,
        concurrency: int = 16,
    ) -> None:
        self.spec = spec or f"transformers:{target}"
        check_least(self.spec, max_rows=max_rows, concurrency=concurrency, context_length=context_length)
        self.target = target
        self.concurrency = concurrency
        self.max_rows = max_rows
        self.prefix_tokens = prefix_tokens
        self._context_length = context_length
        self._placement = (device, dtype, num_threads)
        self._source = {"adapter": adapter, "revision": revision}
        self._info: EngineInfo | None = None
        self._starting = asyncio.Lock()
        self._worker: _Worker | None = None

    async def start(self, *, chat: bool = True) -> EngineInfo:
        async with self._starting:
            if self._info is None:
                self._info = await asyncio.to_thread(self._load)
        return self._info

    async def generate(self, prompt: Prompt, sampling: Sampling) -> Completion:
        worker, context_length = self._ready()
        ids = encode_prompt(self.tokenizer, prompt)
        if not ids:
            raise RequestRefused("the prompt is empty")
        sampling = replace(sampling, max_tokens=clipped(len(ids), sampling.max_tokens, context_length))
        answers = VerdictTokens.of(self.tokenizer, sampling.verdict) if sampling.verdict else None
        transcript = TokenTranscript(self.tokenizer, prompt, ids, sampling, answers)
        completion: Completion = await worker.submit(_Sample(ids, answers, sampling, transcript))
        return completion

    async def choose(self, prompt: Prompt, text: str, verdict: VerdictFormat) -> VerdictChoice:
        worker, context_length = self._ready()
        ids = encode_prompt(self.tokenizer, prompt, text)
        clipped(len(ids), 1, context_length)
        logprobs = await worker.submit(_Job(ids, VerdictTokens.of(self.tokenizer, verdict)))
        return VerdictChoice(len(text), *logprobs)

    async def aclose(self) -> None:
        if self._worker is not None:
            await asyncio.to_thread(self._worker.stop)
            self._worker = None
        self._info = None

    def _ready(self) -> tuple[_Worker, int]:
        if self._worker is None or self._info is None:
            raise EngineError(f"{self.spec}: the engine is not started")
        assert self._info.context_length is not None
        return self._worker, self._info.context_length

    def _load(self) -> EngineInfo:
        device, dtype, torch_dtype = placement(self.spec, *self._placement)
        import torch

        self.model, self.tokenizer, details = load_model(self.target, spec=self.spec, dtype=torch_dtype, **self._source)
        self.model.to(device).eval()
        config = self.model.config.get_text_config()
        if "linear_attention" in (getattr(config, "layer_types", None) or ()):
            raise EngineError(
                f"{self.spec}: models with linear-attention layers cannot be batched here; use vllm:{self.target}"
            )
        context_length = self._context_length or getattr(config, "max_position_embeddings", None) or 4096
        self._worker = _Worker(self.spec, self.model, self.tokenizer, self.max_rows, self.prefix_tokens)
        return EngineInfo(
            kind="transformers",
            model=self.target,
            revision=identity(self.target, self._source["revision"]),
            context_length=context_length,
            details={"dtype": dtype, "device": torch.device(device).type, **details},
        )


@dataclass(eq=False)
class _Job(Job):
    """A request: a second pass, of the answers after `ids`."""

    ids: list[int]
    answers: VerdictTokens | None


@dataclass(eq=False)
class _Sample(_Job):
    """A request for a completion. While it is decoded, it is a row in a slot of the cache."""

    sampling: Sampling
    transcript: TokenTranscript
    num_cached: int = 0
    slot: int = -1
    token: int = -1

    def __post_init__(self) -> None:
        import torch

        seed = self.sampling.seed
        self.generator = torch.Generator()
        self.generator.manual_seed(seed if seed is not None else random.SystemRandom().getrandbits(63))


@dataclass(eq=False)
class _Prefix:
    """A computed prompt: keys and values of each layer [1, heads, tokens, size], logits [vocabulary] at its end."""

    layers: list[KeyValues]
    logits: torch.Tensor


class _Worker(ModelWorker[_Job]):
    """Owns the model: one thread, one batch."""

    def __init__(self, spec: str, model: Any, tokenizer: Any, max_rows: int, prefix_tokens: int) -> None:
        from rprm.engines.kv_cache import BatchCache

        super().__init__("rprm-transformers", hint="lower max_rows or prefix_tokens")
        self.spec = spec
        self.model = model
        self.tokenizer = tokenizer
        self.max_rows = max_rows
        self.prefix_tokens = prefix_tokens
        self.rows: list[_Sample] = []
        self.cache = BatchCache()
        #: Computed prompts by their ids, the one used last at the end.
        self.prefixes: OrderedDict[tuple[int, ...], _Prefix] = OrderedDict()
        # What a model's forward calls its cache: transformers 5.24 renames it.
        parameters = inspect.signature(model.forward).parameters
        self.cache_name = "cache" if "cache" in parameters else "past_key_values"
        ends = model.generation_config.eos_token_id
        ends = ends if isinstance(ends, list) else [ends]
        self.end_tokens = {token for token in (*ends, tokenizer.eos_token_id) if token is not None}
        self.start()

    def is_idle(self) -> bool:
        return not self.rows and not self.waiting

    def drop_cancelled(self) -> None:
        super().drop_cancelled()
        self._keep([index for index, row in enumerate(self.rows) if row in self.unanswered])

    def work(self) -> None:
        self._admit()
        if self.rows:
            self._step()

    def _keep(self, indices: list[int]) -> None:
        if len(indices) == len(self.rows):
            return
        kept = [self.rows[index] for index in indices]
        self.cache.free([row.slot for row in set(self.rows) - set(kept)])
        self.rows = kept

    def _admit(self) -> None:
        """Take waiting jobs into the batch, first come first served; samples of one prompt join together."""
        while self.waiting:
            first = self.waiting[0]
            if not isinstance(first, _Sample):
                self.waiting.pop(0)
                prefix, _ = self._prefill(first.ids)
                if self._refuse_nan([first], prefix.logits[None]):
                    first.resolve(_yes_no(prefix.logits, first.answers))
                continue
            if (room := self.max_rows - len(self.rows)) <= 0:
                return
            group = [job for job in self.waiting if isinstance(job, _Sample) and job.ids == first.ids][:room]
            self.waiting = [job for job in self.waiting if job not in group]
            prefix, first.num_cached = self._prefill(first.ids)
            # The first of the group pays for the prompt; the others share it whole.
            for job in group[1:]:
                job.num_cached = len(job.ids)
            rows = [group[index] for index in self._advance(group, prefix.logits.expand(len(group), -1))]
            if rows:
                for row, slot in zip(rows, self.cache.add_rows(prefix.layers, len(rows)), strict=True):
                    row.slot = slot
                self.rows += rows

    def _refuse_nan(self, jobs: Sequence[_Job], logits: torch.Tensor) -> list[int]:
        """Refuse jobs for which the model gives no numbers, of logits [jobs, vocabulary]; returns the others' indices.

        Of the logits of tokens that a model masks, -inf is one.
        """
        numbers = logits.amax(-1).isfinite().tolist()
        for job, is_number in zip(jobs, numbers, strict=True):
            if not is_number:
                job.fail(
                    RequestRefused(
                        f"{self.spec}: the model's logits are no numbers (NaN): its weights are damaged, or overflow "
                        "in this dtype; download it again, or load it with dtype=float32"
                    )
                )
        return [index for index, is_number in enumerate(numbers) if is_number]

    def _prefill(self, ids: list[int]) -> tuple[_Prefix, int]:
        """The computed prompt, and how many of its tokens were taken from earlier ones."""
        import torch
        from transformers import DynamicCache

        key = tuple(ids)
        if key in self.prefixes:
            self.prefixes.move_to_end(key)
            return self.prefixes[key], len(ids)
        cache = DynamicCache()
        donor = max(self.prefixes, key=partial(_common_length, key), default=())
        # The logits at the end are wanted too: leave at least one token to compute.
        if shared := min(_common_length(key, donor), len(ids) - 1):
            for place, (keys, values) in enumerate(self.prefixes[donor].layers):
                cache.update(keys[:, :, :shared], values[:, :, :shared], place)
            self.prefixes.move_to_end(donor)
        for start in range(shared, len(ids), _PREFILL_CHUNK):
            chunk = torch.tensor([ids[start : start + _PREFILL_CHUNK]], device=self.model.device)
            positions = torch.arange(start, start + chunk.shape[1], device=self.model.device)[None]
            output = self.model(
                input_ids=chunk, position_ids=positions, use_cache=True, logits_to_keep=1, **{self.cache_name: cache}
            )
        prefix = _Prefix([(layer.keys, layer.values) for layer in cache.layers], _exact(output.logits[0, -1]))
        self.prefixes[key] = prefix
        num_kept = sum(map(len, self.prefixes))
        while num_kept > self.prefix_tokens and len(self.prefixes) > 1:
            dropped, _ = self.prefixes.popitem(last=False)
            num_kept -= len(dropped)
        return prefix, shared

    def _step(self) -> None:
        """One token for every row."""
        import torch

        if (moved := self.cache.compact()) is not None:
            new_slots = {old: new for new, old in enumerate(moved)}
            for row in self.rows:
                row.slot = new_slots[row.slot]
        slots = [row.slot for row in self.rows]
        tokens, positions = [0] * len(self.cache.lengths), list(self.cache.lengths)
        for row in self.rows:
            tokens[row.slot] = row.token
        device = self.model.device
        output = self.model(
            input_ids=torch.tensor(tokens, device=device)[:, None],
            attention_mask=self.cache.open_column(),
            position_ids=torch.tensor(positions, device=device)[:, None],
            use_cache=True,
            **{self.cache_name: self.cache},
        )
        self._keep(self._advance(self.rows, _exact(output.logits[slots, -1])))

    def _advance(self, rows: Sequence[_Sample], logits: torch.Tensor) -> list[int]:
        """Draw the next token of each row from logits [rows, vocabulary]; returns the indices of those that go on."""
        numbers = self._refuse_nan(rows, logits)
        # A copy of all logits for each token only where a row has none.
        usable = logits if len(numbers) == len(rows) else logits[numbers]
        unfinished = []
        for index, token in zip(numbers, sample(usable, [rows[index] for index in numbers]), strict=True):
            row = rows[index]
            row.token = token
            if token in self.end_tokens:
                row.transcript.end()
            else:
                row.transcript.add_token(token, partial(_yes_no, logits[index], row.answers))
                if row.transcript.finish_reason is None and row.transcript.num_tokens >= row.sampling.max_tokens:
                    row.transcript.finish_reason = "length"
            if row.transcript.finish_reason is None:
                unfinished.append(index)
            else:
                row.resolve(row.transcript.completion(row.num_cached))
        return unfinished


def _exact(logits: torch.Tensor) -> torch.Tensor:
    """Logits in float32, where they can be made float64: Apple's GPUs cannot, so that the processor takes them."""
    return logits.float().cpu() if logits.device.type == "mps" else logits.float()


def sample(logits: torch.Tensor, rows: Sequence[Any]) -> list[int]:
    """Draw one token for each row: temperature, then top-p, from the row's own random stream.

    Every row is drawn in a way that depends on itself alone; rows drawn the same way are drawn together.

    Args:
        logits: [rows, vocabulary], float32.
        rows: each with `.sampling` and `.generator`.
    """
    import torch

    tokens = logits.argmax(-1).tolist()
    drawn = [index for index, row in enumerate(rows) if row.sampling.temperature > 0.0]
    if not drawn:
        return tokens
    device = logits.device
    temperature = torch.tensor([rows[index].sampling.temperature for index in drawn], device=device)
    top_p = torch.tensor([rows[index].sampling.top_p for index in drawn], device=device, dtype=torch.float64)
    uniform = torch.cat([torch.rand(1, generator=rows[index].generator, dtype=torch.float64) for index in drawn])
    uniform = uniform.to(device)
    probabilities = torch.softmax(logits[drawn] / temperature[:, None], dim=-1).double()
    guess, guess_ids = probabilities.topk(min(_NUCLEUS_GUESS, probabilities.shape[1]))
    whole = top_p >= 1.0
    narrow = ~whole & (guess.sum(-1) >= top_p)
    wide = ~whole & ~narrow
    chosen = torch.empty(len(drawn), dtype=torch.long, device=device)
    if bool(whole.any()):
        chosen[whole] = _invert(probabilities[whole], uniform[whole])
    if bool(narrow.any()):
        places = _invert(_nucleus(guess[narrow], top_p[narrow]), uniform[narrow])
        chosen[narrow] = guess_ids[narrow].gather(1, places[:, None])[:, 0]
    if bool(wide.any()):
        ordered, ids = probabilities[wide].sort(dim=-1, descending=True)
        places = _invert(_nucleus(ordered, top_p[wide]), uniform[wide])
        chosen[wide] = ids.gather(1, places[:, None])[:, 0]
    for index, token in zip(drawn, chosen.tolist(), strict=True):
        tokens[index] = token
    return tokens


def _nucleus(ordered: torch.Tensor, top_p: torch.Tensor) -> torch.Tensor:
    """Keep the fewest of descending probabilities [rows, n] that reach top_p: those before which it is not reached."""
    before = ordered.cumsum(-1) - ordered
    return ordered.where(before < top_p[:, None], 0.0)


def _invert(weights: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """Places [rows] at which the cumulated weights [rows, n] pass the uniform numbers [rows]."""
    import torch

    cumulative = weights.cumsum(-1)
    total = cumulative[:, -1:]
    # Below the total even when the product rounds up to it: a place past it would have no weight.
    wanted = torch.minimum(uniform[:, None] * total, total.nextafter(torch.zeros_like(total)))
    return torch.searchsorted(cumulative, wanted, right=True)[:, 0]


def _yes_no(logits: torch.Tensor, tokens: VerdictTokens | None) -> tuple[float, float]:
    """Log-probabilities of Yes and of No from logits [vocabulary], before temperature and top-p."""
    assert tokens is not None
    logprobs = logits.double().log_softmax(-1)
    return float(logprobs[list(tokens.yes)].logsumexp(0)), float(logprobs[list(tokens.no)].logsumexp(0))


def _common_length(first: Sequence[int], second: Sequence[int]) -> int:
    for index, (one, other) in enumerate(zip(first, second, strict=False)):
        if one != other:
            return index
    return min(len(first), len(second))
