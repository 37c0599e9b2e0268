"""An engine on vLLM, in this process. Every sample is a request of its own, given up at its verdict or when cancelled.

Texts are put together here: the offset of a verdict is then exact however many tokens arrive at once.
"""

from __future__ import annotations

import asyncio
import gc
import math
import os
import re
import uuid
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import KW_ONLY, dataclass, fields
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Literal

from rprm import ranges
from rprm.engines.base import Completion, EngineInfo, Sampling, clipped
from rprm.engines.loading import ADAPTER_CONFIG, adapter_details, find_file, identity, named_base
from rprm.engines.tokens import TokenTranscript, VerdictTokens, encode_prompt, probe, spelled
from rprm.errors import EngineError, EngineUnavailable, RequestRefused
from rprm.folders import model_files, read_object, try_out
from rprm.plugins import check_options
from rprm.prompts.template import Prompt
from rprm.verdict import VerdictChoice, VerdictFormat, logsumexp

_LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # that vLLM reserves room for
_LISTED = 20  # tokens that vLLM lists of those that may follow a text (its max_logprobs)
_AT_ONCE = 8  # tokens of a sample that arrive together: every arrival wakes its task
_OURS = ("target", "spec", "concurrency", "context_length", "adapter")  # options that are not vLLM's own
_SIZES = ("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size")
_encode_prompt = lru_cache(maxsize=1024)(encode_prompt)  # the K analyses of a step have one prompt


@dataclass(eq=False, repr=False)
class VLLMEngine:
    """A model (a folder, a LoRA adapter's folder, a hub id) run by vLLM; docs/vllm.md says what the options do."""

    target: str
    _: KW_ONLY
    spec: str = ""
    concurrency: ranges.Width = 256
    context_length: ranges.Tokens | None = None
    max_model_len: ranges.Tokens | None = None
    adapter: str | None = None
    revision: str | None = None
    tokenizer: str | None = None
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    tensor_parallel_size: ranges.Devices = 1
    pipeline_parallel_size: ranges.Devices = 1
    data_parallel_size: ranges.Devices = 1
    gpu_memory_utilization: ranges.TopP | None = None
    enforce_eager: bool = False
    enable_prefix_caching: bool = True  # every analysis of a step shares its prompt; vLLM has it off for some models
    block_size: ranges.Width | None = None
    max_num_seqs: ranges.Width | None = None
    max_num_batched_tokens: ranges.Tokens | None = None
    quantization: str | None = None
    seed: ranges.Seed = 0

    def __post_init__(self) -> None:
        self.spec = self.spec or f"vllm:{self.target}"
        check_options(self)
        if len({self.context_length, self.max_model_len, None}) > 2:
            raise EngineError(f"{self.spec}: context_length and max_model_len are one thing; give one of them")
        self.base = self.target
        if self.adapter is None and Path(self.target).is_dir() and (named := named_base(self.target)) is not None:
            self.adapter, (self.base, self.revision) = self.target, named
            if self.tokenizer is None and find_file(self.target, "tokenizer_config.json", None) is not None:
                self.tokenizer = self.target
        self._starting = asyncio.Lock()
        self._llm: Any = None
        self._under_way: set[str] = set()

    @property
    def arguments(self) -> dict[str, Any]:
        """Of `AsyncEngineArgs`."""
        own = {option.name: getattr(self, option.name) for option in fields(self) if option.name not in _OURS}
        own |= {"max_model_len": self.context_length or self.max_model_len, "model": self.base}
        own |= {"max_num_seqs": self.max_num_seqs or self.concurrency, "trust_remote_code": False}
        return {name: value for name, value in own.items() if value is not None}

    @property
    def num_gpus(self) -> int:
        return self.tensor_parallel_size * self.pipeline_parallel_size * self.data_parallel_size

    def identity(self) -> tuple[str | None, dict[str, Any]]:
        """The revision for manifests (of an adapter, its base's and its own), and what they say of an adapter."""
        if self.adapter is None:
            return identity(self.base, self.revision) or self.revision, {"adapter": None}
        details = adapter_details(self.adapter, None, self.base, self.revision)
        return f"{details['base_revision']}+{details['adapter_revision']}", details

    async def start(self, *, chat: bool = True) -> EngineInfo:
        """Load the model: half a minute to several, during which the event loop stands still."""
        async with self._starting:
            if self._llm is None:
                # A wrong path is told before the long import, whose frames must not hold the engine: vLLM keeps errors.
                rank = None if self.adapter is None else lora_rank(Path(self.adapter))
                for folder in filter(None, (self.base, self.adapter, self.tokenizer)):
                    model_files(Path(folder))  # refuses what is no file of its folder
                await self._load(_import_vllm(), rank)
        return self._info

    async def generate(self, prompt: Prompt, sampling: Sampling) -> Completion:
        tokenizer, num_cached = self._running(), None
        ids = _encode_prompt(tokenizer, prompt)
        transcript = TokenTranscript(tokenizer, prompt, ids, sampling)
        async with aclosing(self._outputs(ids, sampling, transcript.answers)) as outputs:
            async for output in outputs:
                num_cached, new = output.num_cached_tokens, output.outputs[0]
                # vLLM is given no stop strings: what it stops at is an end token.
                texts = new.token_ids[:-1] if new.finish_reason == "stop" else new.token_ids
                for index, token in enumerate(texts):
                    if transcript.finish_reason is None:
                        transcript.add_token(token, partial(_yes_no, new.logprobs, index))
                if transcript.finish_reason is None and new.finish_reason == "stop":
                    transcript.end(*new.token_ids[-1:])
                transcript.finish_reason = transcript.finish_reason or new.finish_reason
                if transcript.finish_reason is not None:
                    break
        if transcript.finish_reason not in ("stop", "length", "verdict"):
            raise EngineUnavailable(f"vLLM gave up a sample (reason: {transcript.finish_reason}); its log says why")
        return transcript.completion(num_cached)

    async def choose(self, prompt: Prompt, text: str, verdict: VerdictFormat) -> VerdictChoice:
        tokenizer = self._running()
        answers = VerdictTokens.of(tokenizer, verdict)
        ids, greedy = encode_prompt(tokenizer, prompt, text), Sampling(temperature=0.0, max_tokens=1)
        async with aclosing(self._outputs(ids, greedy, answers)) as outputs:
            async for output in outputs:
                if logprobs := output.outputs[0].logprobs:
                    return VerdictChoice(len(text), *_yes_no(logprobs, 0, answers))
        raise EngineUnavailable("vLLM gave up a second forward pass; its log says why")

    async def next_tokens(self, prompt: Prompt, text: str) -> dict[str, float]:
        tokenizer = self._running()
        ids, greedy = encode_prompt(tokenizer, prompt, text), Sampling(temperature=0.0, max_tokens=1)
        async with aclosing(self._outputs(ids, greedy, None, num_listed=_LISTED)) as outputs:
            async for output in outputs:
                if logprobs := output.outputs[0].logprobs:
                    return spelled(tokenizer, ((id_, math.exp(one.logprob)) for id_, one in logprobs[0].items()))
        raise EngineUnavailable("vLLM gave up a second forward pass; its log says why")

    async def aclose(self) -> None:
        llm, self._llm = self._llm, None
        if llm is None:
            return
        await llm.abort(list(self._under_way))  # else whoever awaits a sample would wait for ever
        output_handler = llm.output_handler
        llm.shutdown()
        # Its objects hold each other, its task all of them; freed when the interpreter ends they print a traceback.
        del llm
        if output_handler is not None:
            await asyncio.wait([output_handler], timeout=1.0)
            del output_handler
        gc.collect()

    def _running(self) -> Any:
        """The tokenizer of the model, which runs in this event loop."""
        if self._llm is None or self._loop is not asyncio.get_running_loop():
            reason = "not running" if self._llm is None else "started in another event loop"
            raise EngineError(f"{self.spec}: {reason}; await start() in the loop that uses the engine")
        return self._tokenizer

    async def _outputs(
        self, ids: Sequence[int], sampling: Sampling, answers: VerdictTokens | None, num_listed: int = 0
    ) -> AsyncGenerator[Any, None]:
        """vLLM's outputs for one sample, the new tokens in each, with log-probabilities of the answers, or of so many
        of the likeliest tokens; to close or cancel this gives up the sample."""
        from vllm import SamplingParams
        from vllm.exceptions import VLLMClientError
        from vllm.sampling_params import RequestOutputKind
        from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

        max_tokens = clipped(len(ids), sampling.max_tokens, self._info.context_length or 0)
        llm, request_id, finished = self._llm, uuid.uuid4().hex, False
        self._under_way.add(request_id)
        try:
            options: dict[str, Any] = {name: getattr(sampling, name) for name in ("temperature", "top_p", "seed")}
            options |= {"max_tokens": max_tokens, "detokenize": False, "output_kind": RequestOutputKind.DELTA}
            options |= {"stream_interval": _AT_ONCE, "skip_clone": True}
            if answers is not None:
                options |= {"logprob_token_ids": list(answers.words), "flat_logprobs": True}
            elif num_listed:
                options |= {"logprobs": num_listed}
            prompt = {"type": "token", "prompt_token_ids": list(ids)}
            further = {"lora_request": self._lora_request}
            async with aclosing(llm.generate(prompt, SamplingParams(**options), request_id, **further)) as stream:
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
            self._under_way.discard(request_id)
            # Closing the stream gives up the request, unless it was cancelled while it was being handed over.
            if not finished:
                await llm.abort(request_id)

    async def _load(self, version: str, rank: int | None) -> None:
        from vllm import AsyncEngineArgs
        from vllm.lora.request import LoRARequest
        from vllm.platforms import current_platform
        from vllm.v1.engine.async_llm import AsyncLLM

        arguments = self.arguments
        arguments |= {"disable_log_stats": True, "enable_log_requests": False, "use_tqdm_on_load": False}
        if current_platform.is_cpu():
            # Each piece of a prompt makes a random draw in vain, which the generators of a CPU cannot take back.
            arguments["enable_chunked_prefill"] = False
            if self.gpu_memory_utilization is None:  # else nearly all memory of the machine
                arguments["kv_cache_memory_bytes"] = 4 << 30
        llm, self._lora_request = None, None
        if self.adapter is not None:
            arguments |= {"enable_lora": True, "max_lora_rank": rank}
            self._lora_request = LoRARequest("adapter", 1, self.adapter)
        try:
            llm = AsyncLLM.from_engine_args(AsyncEngineArgs(**arguments))
            if self._lora_request is not None:
                await llm.add_lora(self._lora_request)
            self._tokenizer = llm.get_tokenizer()
            try_out(partial(probe, self._tokenizer), "the tokenizer or its chat template")
        except Exception as error:
            if llm is not None:
                llm.shutdown()
            raise EngineError(f"{self.spec}: vLLM cannot load the model: {_one_line(error)}") from error
        config, parallel = llm.vllm_config.model_config, llm.vllm_config.parallel_config
        revision, adapter = self.identity()
        dtype, sizes = str(config.dtype).removeprefix("torch."), {name: getattr(parallel, name) for name in _SIZES}
        details = {"vllm": version, "dtype": dtype, "quantization": config.quantization, **sizes, **adapter}
        can = {"shares_prompts": bool(llm.vllm_config.cache_config.enable_prefix_caching)}
        self._info = EngineInfo("vllm", self.target, revision, config.max_model_len, details=details, **can)
        self._llm, self._loop = llm, asyncio.get_running_loop()


def _yes_no(logprobs: Sequence[Mapping[int, Any]], index: int, answers: VerdictTokens) -> tuple[float, float]:
    """Log-probabilities of Yes and of No, from vLLM's at a position."""
    here = logprobs[index]
    yes, no = (logsumexp(here[id_].logprob for id_ in side if id_ in here) for side in (answers.yes, answers.no))
    return yes, no


def lora_rank(adapter: Path) -> int:
    """The room that vLLM must reserve for an adapter: the next rank it knows."""
    try:
        config = read_object(adapter / ADAPTER_CONFIG)
        rank = max(map(int, [config["r"], *(config.get("rank_pattern") or {}).values()]))
    except Exception as error:
        raise EngineError(f"{adapter}: not a LoRA adapter's folder ({ADAPTER_CONFIG}: {_one_line(error)})") from error
    for room in _LORA_RANKS:
        if rank <= room:
            return room
    raise EngineError(f"{adapter}: rank {rank} is more than vLLM serves ({room}); merge it into the model")


def _import_vllm() -> str:
    """Import vLLM, with errors alone in its log unless VLLM_LOGGING_LEVEL says otherwise; its version."""
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    try:
        import vllm
        import vllm.exceptions
        import vllm.v1.engine.async_llm
    except Exception as error:
        if isinstance(error, ImportError) and error.name == "vllm":
            raise EngineError('vLLM is not installed: pip install ".[vllm]"; without a GPU see docs/vllm.md') from None
        # The CPU build of vLLM comes with CUDA builds of these, which break beside a CPU build of torch; it needs none.
        is_cuda = re.search(r"torchvision|torchaudio|torchcodec|libcudart|libcuda\.", str(error))
        fix = "; on a machine without a GPU: pip uninstall torchvision torchaudio torchcodec" if is_cuda else ""
        raise EngineError(f"vLLM is installed but does not import: {_one_line(error)}{fix}") from error
    is_new = hasattr(vllm.exceptions, "VLLMClientError")
    if not is_new or "logprob_token_ids" not in vllm.SamplingParams.__struct_fields__:
        raise EngineError(f"vLLM {vllm.__version__} is too old; 0.32 or newer is needed: pip install --upgrade vllm")
    return str(vllm.__version__)


def _one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
