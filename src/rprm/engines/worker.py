"""Threads that own a model: `ModelWorker`, and the one that decodes one batch that rows join and leave.

There a row of n tokens stands in a slot, in the last n columns in use; the attention mask hides what is left of it. So
decoding writes in place, and a row that comes or goes moves no other.
"""

from __future__ import annotations

import asyncio
import inspect
import queue
import secrets
import threading
from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import compress, takewhile
from operator import eq
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import torch
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from rprm.engines.base import EngineInfo, Sampling
from rprm.engines.tokens import TokenTranscript, VerdictTokens
from rprm.errors import EngineUnavailable, RequestRefused

if TYPE_CHECKING:
    from rprm.engines.transformers import TransformersEngine

AnyRequest = TypeVar("AnyRequest", bound="Request")
KeyValues = tuple[torch.Tensor, torch.Tensor]  # of one layer, each [rows, heads, columns, size]
_HEADROOM = 256  # columns allocated beyond those of the longest row, so that decoding seldom copies
_PREFILL_CHUNK = 2048  # prompt tokens in one forward pass
_LISTED = 64  # tokens, of those that may follow a text
_NUCLEUS_GUESS = 256  # tokens that nucleus sampling sorts at first; it sorts all where their mass is below top_p


@dataclass(eq=False)
class Request:
    """A request that somebody awaits in an event loop, and may cancel at any time."""

    future: Future[Any] = field(init=False, default_factory=Future)

    def answer(self, result: Any) -> None:
        """An exception is raised where the answer is awaited."""
        with suppress(InvalidStateError):
            (self.future.set_exception if isinstance(result, Exception) else self.future.set_result)(result)


class ModelWorker(threading.Thread, Generic[AnyRequest]):
    """Works on jobs until it is stopped or the model fails; `hint`: what to do when memory does not suffice."""

    def __init__(self, name: str, *, hint: str) -> None:
        super().__init__(name=name, daemon=True)
        self.hint, self._stopping = hint, False
        self.waiting: list[AnyRequest] = []  # not begun, first come first
        self.unanswered: set[AnyRequest] = set()  # neither answered nor cancelled, begun or not
        self._jobs: queue.SimpleQueue[AnyRequest | None] = queue.SimpleQueue()
        self._ended: str | None = None  # why

    async def submit(self, job: AnyRequest) -> Any:
        """Await the answer to a job; `EngineUnavailable` where the worker ends first."""
        self._jobs.put(job)
        # Set before the last jobs are taken: those that come later fail here.
        if self._ended is not None:
            job.answer(EngineUnavailable(self._ended))
        return await asyncio.wrap_future(job.future)

    def stop(self) -> None:
        self._stopping = True
        self._jobs.put(None)
        self.join()

    def run(self) -> None:
        ended = "the engine was closed"
        try:
            with torch.inference_mode():
                while not self._stopping:
                    self._receive(block=not self.unanswered)
                    self.unanswered = {job for job in self.unanswered if not job.future.done()}
                    self.waiting = [job for job in self.waiting if job in self.unanswered]
                    self.work()
        except BaseException as failure:  # a panic of Rust (tokenizers) is no Exception
            ended = f"the model failed: {type(failure).__name__}: {failure}"
            if isinstance(failure, torch.OutOfMemoryError) or "out of memory" in str(failure):  # in Apple's words
                ended += f"; {self.hint}"
        self._ended = ended
        self._receive(block=False)
        for job in self.unanswered:
            job.answer(EngineUnavailable(ended))

    @abstractmethod
    def work(self) -> None:
        """One turn, if there is anything to do: begin waiting jobs, go on with those begun, answer those done."""

    def _receive(self, *, block: bool) -> None:
        with suppress(queue.Empty):
            while True:
                if (job := self._jobs.get(block=block)) is not None:
                    self.waiting.append(job)
                    self.unanswered.add(job)
                block = False


@dataclass(eq=False)
class BatchRow(Request):
    """What is asked for (`Decoder.ask`); its slot in the cache while it is decoded."""

    ids: list[int]
    sampling: Sampling
    wanted: TokenTranscript | Callable[[torch.Tensor], Any]
    generator: torch.Generator
    num_cached: int = 0
    slot: int = -1
    token: int = -1


class Decoder(ModelWorker[BatchRow]):
    """Owns the model: one thread, one batch."""

    def __init__(self, engine: TransformersEngine, info: EngineInfo) -> None:
        super().__init__("rprm-transformers", hint="lower max_rows or prefix_tokens")
        self.engine, self.model, self.info = engine, engine.model, info
        self.rows: list[BatchRow] = []
        self.cache = BatchCache()
        # Computed prompts, the one used last at the end: ids -> keys and values of each layer, logits [vocabulary].
        self.prefixes: OrderedDict[tuple[int, ...], tuple[list[KeyValues], torch.Tensor]] = OrderedDict()
        names = inspect.signature(self.model.forward).parameters  # transformers 5.24 renames the cache
        self.cache_name = "cache" if "cache" in names else "past_key_values"
        ends = self.model.generation_config.eos_token_id
        self.end_tokens = {*(ends if isinstance(ends, list) else [ends]), engine.tokenizer.eos_token_id}
        self.start()

    async def ask(
        self, ids: list[int], wanted: TokenTranscript | Callable[[torch.Tensor], Any], sampling: Sampling
    ) -> Any:
        """The completion of a transcript, or what a function makes of the logits [vocabulary] right after `ids`."""
        seed = secrets.randbits(63) if sampling.seed is None else sampling.seed
        return await self.submit(BatchRow(ids, sampling, wanted, torch.Generator().manual_seed(seed)))

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

    def _keep(self, kept: list[BatchRow]) -> None:
        self.cache.free([row.slot for row in set(self.rows) - set(kept)])
        self.rows = kept

    def _admit(self) -> None:
        """Take waiting jobs into the batch, first come first served; those of one prompt join together."""
        while self.waiting and (room := self.engine.max_rows - len(self.rows)) > 0:
            first = self.waiting[0]
            group = [job for job in self.waiting if job.ids == first.ids][:room]
            self.waiting = [job for job in self.waiting if job not in group]
            layers, logits, first.num_cached = self._prefill(first.ids)
            for job in group[1:]:  # the first pays for the prompt, the others share it whole
                job.num_cached = len(job.ids)
            if rows := self._advance(group, logits.expand(len(group), -1)):
                for row, slot in zip(rows, self.cache.add_rows(layers, len(rows)), strict=True):
                    row.slot = slot
                self.rows += rows

    def _prefill(self, ids: list[int]) -> tuple[list[KeyValues], torch.Tensor, int]:
        """The computed prompt (see `prefixes`), and how many of its tokens were taken from earlier ones."""
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
        device = self.model.device
        further |= {"input_ids": torch.tensor(ids, device=device), self.cache_name: cache, "use_cache": True}
        output = self.model(position_ids=torch.tensor(positions, device=device), **further)
        logits: torch.Tensor = output.logits[:, -1].float()
        return logits.cpu() if logits.device.type == "mps" else logits  # Apple's GPUs have no float64, as used below

    def _advance(self, rows: Sequence[BatchRow], logits: torch.Tensor) -> list[BatchRow]:
        """Draw the next token of each row from logits [rows, vocabulary]; returns the rows that go on."""
        is_finite = logits.amax(-1).isfinite()  # the logit of a token that the model masks is -inf
        if not is_finite.all():
            fix = "download it again, or load it with dtype=float32"
            for row in compress(rows, ~is_finite):
                row.answer(RequestRefused(f"{self.engine.spec}: the model's logits are no numbers (NaN); {fix}"))
            rows, logits = [*compress(rows, is_finite)], logits[is_finite]
        unfinished = []
        for row, of_row, token in zip(rows, logits, sample(logits, rows), strict=True):
            row.token, transcript = token, row.wanted
            if not isinstance(transcript, TokenTranscript):
                row.answer(transcript(of_row))
                continue
            if token in self.end_tokens:
                transcript.end(token)
            else:
                transcript.add_token(token, partial(yes_no, of_row))
                if transcript.finish_reason is None and transcript.num_tokens >= row.sampling.max_tokens:
                    transcript.finish_reason = "length"
            if transcript.finish_reason is None:
                unfinished.append(row)
            else:
                row.answer(transcript.completion(row.num_cached))
        return unfinished


def sample(logits: torch.Tensor, rows: Sequence[Any]) -> list[int]:
    """One token for each row from logits [rows, vocabulary], float32, by its own `.sampling` and `.generator` alone."""
    tokens: list[int] = logits.argmax(-1).tolist()
    drawn = [index for index, row in enumerate(rows) if row.sampling.temperature > 0.0]
    if not drawn:
        return tokens
    asked = [(rows[index].sampling.temperature, rows[index].sampling.top_p) for index in drawn]
    temperature, top_p = torch.tensor(asked, device=logits.device, dtype=torch.float64).T
    uniform = torch.cat([torch.rand(1, generator=rows[index].generator, dtype=torch.float64) for index in drawn])
    uniform = uniform.to(logits.device)
    probabilities = torch.softmax(logits[drawn] / temperature[:, None].float(), dim=-1).double()
    guess = probabilities.topk(min(_NUCLEUS_GUESS, probabilities.shape[1]))
    whole, narrow = top_p >= 1.0, (top_p < 1.0) & (guess.values.sum(-1) >= top_p)
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
    cumulative = weights.cumsum(-1)
    total = cumulative[:, -1:]
    # Below the total even when the product rounds up to it: a place past it would have no weight.
    wanted = torch.minimum(uniform[:, None] * total, total.nextafter(torch.zeros_like(total)))
    return torch.searchsorted(cumulative, wanted, right=True)[:, 0]


def yes_no(logits: torch.Tensor, tokens: VerdictTokens) -> tuple[float, float]:
    """Log-probabilities of Yes and of No from logits [vocabulary], before temperature and top-p."""
    logprobs = logits.double().log_softmax(-1)
    return float(logprobs[list(tokens.yes)].logsumexp(0)), float(logprobs[list(tokens.no)].logsumexp(0))


def likeliest(logits: torch.Tensor) -> list[tuple[int, float]]:
    """The likeliest tokens from logits [vocabulary], with their probabilities before temperature and top-p."""
    top = logits.double().softmax(-1).topk(min(_LISTED, len(logits)))
    return list(zip(top.indices.tolist(), top.values.tolist(), strict=True))


class BatchCache(Cache):  # type: ignore[misc]  # transformers is untyped
    """A transformers cache for decoding one token a row at a time; rows join and leave it."""

    layers: list[_Layer]

    def __init__(self) -> None:
        super().__init__(layers=[])
        self.lengths: list[int] = []  # tokens of the row in each slot, 0 where it is free

    def add_rows(self, layers: Sequence[KeyValues], repeats: int) -> list[int]:
        """Add `repeats` equal rows, given as keys and values [1, heads, tokens, size] of each layer; their slots."""
        if not self.layers:
            self.layers = [_Layer(keys, values) for keys, values in layers]
        length, end = layers[0][0].shape[-2], self.layers[0].end
        num_slots = len(self.lengths)
        slots = [slot for slot, taken in enumerate(self.lengths) if not taken][:repeats]
        slots += range(num_slots, num_slots + repeats - len(slots))
        if slots[-1] >= num_slots or length > end:
            self._move(range(num_slots), max(num_slots, slots[-1] + 1), max(length, end))
        self.lengths += [0] * (slots[-1] + 1 - num_slots)
        for slot in slots:
            self.lengths[slot] = length
        for layer, states in zip(self.layers, layers, strict=True):
            layer.write(states, slots, layer.end - length)
        return slots

    def free(self, slots: Sequence[int]) -> None:
        for slot in slots:
            self.lengths[slot] = 0

    def compact(self) -> list[int] | None:
        """Close up the free slots where they are a quarter or more; the old slot of each new one, None: all stayed."""
        taken = [slot for slot, length in enumerate(self.lengths) if length]
        if 4 * len(taken) > 3 * len(self.lengths):
            return None
        self.lengths = [self.lengths[slot] for slot in taken]
        self._move(taken, len(taken), max(self.lengths, default=0))
        return taken

    def open_column(self) -> torch.Tensor:
        """Count one more token in every slot; the attention mask [slots, columns] for it (in a free slot, itself)."""
        longest = max(self.lengths)
        if self.layers[0].end == self.layers[0].buffers[0].shape[-2]:
            self._move(range(len(self.lengths)), len(self.lengths), longest)
        for layer in self.layers:
            layer.show(longest)
        starts = torch.tensor([[longest - length] for length in self.lengths])
        self.lengths = [length + 1 if length else 0 for length in self.lengths]
        return (torch.arange(longest + 1) >= starts).long().to(self.layers[0].device)

    def _move(self, kept: Sequence[int], num_slots: int, end: int) -> None:
        for layer in self.layers:
            layer.move(kept, num_slots, max(self.lengths, default=0), end)


class _Layer(DynamicLayer):  # type: ignore[misc]
    """`keys` and `values` are the columns shown to the model, views of buffers [slots, heads, capacity, size]."""

    keys: torch.Tensor
    values: torch.Tensor

    def __init__(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        super().__init__()  # No row yet; a row's keys and values give the shapes.
        self.lazy_initialization(keys, values)
        self.buffers = keys[:0, :, :0], values[:0, :, :0]
        self.end = 0  # columns used

    def update(self, key_states: Any, value_states: Any, *args: Any, **kwargs: Any) -> KeyValues:
        """Write a token of every slot, [slots, heads, 1, size], at the next column."""
        self.end += 1
        self.write((key_states, value_states), slice(None), self.end - 1)
        self.show(self.keys.shape[-2] + 1)
        return self.keys, self.values

    def show(self, num_columns: int) -> None:
        """Let the model see the last columns."""
        self.keys, self.values = (buffer[:, :, self.end - num_columns : self.end] for buffer in self.buffers)

    def write(self, states: KeyValues, slots: Any, start: int) -> None:
        """Write keys and values to the slots, from column `start` to the end."""
        for buffer, new in zip(self.buffers, states, strict=True):
            buffer[slots, :, start : self.end] = new

    def move(self, kept: Sequence[int], num_slots: int, num_columns: int, end: int) -> None:
        """New buffers: the kept slots first, their last `num_columns` columns ending at `end`, and room after it."""
        shown = slice(self.end - num_columns, self.end)
        moved = []
        for buffer in self.buffers:
            moved.append(buffer.new_zeros(num_slots, buffer.shape[1], end + _HEADROOM, buffer.shape[3]))
            moved[-1][: len(kept), :, end - num_columns : end] = buffer[list(kept), :, shown]
        self.buffers, self.end = (moved[0], moved[1]), end
        self.show(num_columns)
