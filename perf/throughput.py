"""How near a judge comes to the speed of its engine.

A judge reads some solutions of ProcessBench: every step, K analyses, none stopped early. Then the engine's own call,
with nothing of ours around it, writes the same number of tokens for the same prompts with the same sampling. They take
turns, nothing in a prompt cache at the start of each (of a server: all prompts); the figure is the ratio of their
tokens a second.

    python perf/throughput.py vllm --model FOLDER --data processbench/gsm8k.jsonl -k 4
    python perf/throughput.py transformers --model FOLDER --data processbench/gsm8k.jsonl -k 4
    python perf/throughput.py openai --model NAME@http://127.0.0.1:8080/v1 --data processbench/gsm8k.jsonl -k 4

The engine's own call is, of vLLM, `LLM.generate` over all prompts at once; of transformers, `generate` with K returned
sequences a prompt, prompts of like length batched and padded; of a server, its chat endpoint asked by the official
client, as many requests at once. Beside the ratio: prompt tokens that were computed before (of those that could have
been), the microseconds that this process itself computes for a token (the engine of vLLM and a server are processes of
their own), and where it does (`--profile FILE`, for pstats).
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import json
import statistics
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from rprm.benchmarks import read_processbench
from rprm.engines import Completion, Engine, EngineInfo, Sampling, load_engine
from rprm.engines.base import num_alike
from rprm.engines.tokens import encode_prompt
from rprm.jobs import in_order
from rprm.prompts import Prompt, load_template
from rprm.records import Solution
from rprm.rewarders.rprm import Judge
from rprm.stopping import StoppingRule
from rprm.verdict import VerdictChoice, VerdictFormat


@dataclass
class Call:
    """One completion: what was asked for, and what came."""

    prompt: Prompt
    sampling: Sampling
    completion: Completion


class RecordingEngine:
    """Passes everything on and keeps it."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.calls = engine, list[Call]()
        self.spec, self.concurrency = engine.spec, engine.concurrency

    async def start(self, *, chat: bool = True) -> EngineInfo:
        return await self.engine.start(chat=chat)

    async def generate(self, prompt: Prompt, sampling: Sampling) -> Completion:
        completion = await self.engine.generate(prompt, sampling)
        self.calls.append(Call(prompt, sampling, completion))
        return completion

    async def choose(self, prompt: Prompt, text: str, verdict: VerdictFormat) -> VerdictChoice:
        return await self.engine.choose(prompt, text, verdict)

    async def aclose(self) -> None:
        await self.engine.aclose()


async def judged(judge: Judge, solutions: list[Solution]) -> None:
    async for _ in in_order(iter(solutions), judge.judge, width=judge.concurrency):
        pass


# --- the engines' own calls --------------------------------------------------------------------------------------
# Each gets the calls that the judge made, and returns the number of tokens written.


class VLLM:
    """`LLM.generate`."""

    def __init__(self, engine: Any) -> None:
        from vllm import LLM

        self.engine = engine
        arguments = {name: value for name, value in engine.arguments.items() if name != "data_parallel_size"}
        details = engine._llm.vllm_config.cache_config
        self.llm = LLM(
            **arguments, enable_chunked_prefill=False, kv_cache_memory_bytes=details.kv_cache_memory_bytes,
            disable_log_stats=True,
        )  # fmt: skip

    async def forget(self) -> None:
        self.llm.reset_prefix_cache()
        await self.engine._llm.reset_prefix_cache()

    async def write(self, calls: list[Call]) -> int:
        from vllm import SamplingParams

        prompts: list[Any] = [{"prompt_token_ids": self.ids(call)} for call in calls]
        samplings = [
            SamplingParams(
                temperature=call.sampling.temperature, top_p=call.sampling.top_p, seed=call.sampling.seed,
                max_tokens=call.completion.num_tokens, ignore_eos=True,
            )
            for call in calls
        ]  # fmt: skip
        found = self.llm.generate(prompts, samplings, use_tqdm=False)
        return sum(len(one.outputs[0].token_ids) for one in found)

    def ids(self, call: Call) -> list[int]:
        return encode_prompt(self.engine._tokenizer, call.prompt)


class Transformers:
    """`generate(num_return_sequences=K)`, as many prompts at once as rows fit."""

    def __init__(self, engine: Any) -> None:
        self.engine = engine

    async def forget(self) -> None:
        self.engine._worker.prefixes.clear()

    async def write(self, calls: list[Call]) -> int:
        return await asyncio.to_thread(self._write, calls)

    def _write(self, calls: list[Call]) -> int:
        import torch

        by_prompt: dict[tuple[int, ...], list[Call]] = {}
        for call in calls:
            by_prompt.setdefault(tuple(self.ids(call)), []).append(call)
        prompts = sorted(by_prompt, key=len)
        num_samples = max(map(len, by_prompt.values()))
        at_once = max(1, self.engine.max_rows // num_samples)
        first, num_tokens = calls[0].sampling, 0
        for begin in range(0, len(prompts), at_once):
            batch = prompts[begin : begin + at_once]
            width = max(map(len, batch))
            ids = torch.zeros((len(batch), width), dtype=torch.long)
            mask = torch.zeros_like(ids)
            for row, prompt in enumerate(batch):
                ids[row, width - len(prompt) :] = torch.tensor(prompt)
                mask[row, width - len(prompt) :] = 1
            # Rows of one batch are as long as the longest: only what the judge wrote, too, is counted.
            wanted = [call.completion.num_tokens for prompt in batch for call in by_prompt[prompt]]
            with torch.inference_mode():
                self.engine.model.generate(
                    input_ids=ids, attention_mask=mask, do_sample=True, temperature=first.temperature, top_k=0,
                    top_p=first.top_p, num_return_sequences=num_samples, max_new_tokens=max(wanted),
                    min_new_tokens=max(wanted), pad_token_id=0,
                )  # fmt: skip
            num_tokens += sum(wanted)
        return num_tokens

    def ids(self, call: Call) -> list[int]:
        return encode_prompt(self.engine.tokenizer, call.prompt)


class OpenAI:
    """The official client."""

    def __init__(self, engine: Any) -> None:
        from openai import AsyncOpenAI

        self.engine = engine
        self.model, _, url = engine.target.partition("@")
        self.client = AsyncOpenAI(base_url=url, api_key="none", timeout=3600)

    async def forget(self) -> None:
        """A server keeps its cache: after the first round both find all prompts in it."""

    async def write(self, calls: list[Call]) -> int:
        places = asyncio.Semaphore(self.engine.concurrency)

        async def ask(call: Call) -> int:
            async with places:
                answer = await self.client.chat.completions.create(
                    model=self.model, temperature=call.sampling.temperature, top_p=call.sampling.top_p,
                    seed=call.sampling.seed, max_tokens=call.completion.num_tokens,
                    messages=[{"role": one.role, "content": one.content} for one in call.prompt.messages],
                )  # fmt: skip
            return answer.usage.completion_tokens

        return sum(await asyncio.gather(*map(ask, calls)))

    def ids(self, call: Call) -> list[int]:
        return []


RAW: dict[str, Callable[[Any], Any]] = {"vllm": VLLM, "transformers": Transformers, "openai": OpenAI}


# --- the measurement ---------------------------------------------------------------------------------------------


def shareable(prompts: list[list[int]]) -> int:
    """Prompt tokens that stand in some earlier prompt of the list from its beginning on: nobody need compute them."""
    ordered = sorted(map(tuple, prompts))
    alike = (num_alike(one, other) for one, other in pairwise(ordered))  # type: ignore[arg-type]
    return sum(alike)


async def seconds_of(work: Awaitable[Any]) -> tuple[float, float, Any]:
    """Seconds that some work takes, those of this process's own computing, and what it returns."""
    begin, computing = time.perf_counter(), time.process_time()
    found = await work
    return time.perf_counter() - begin, time.process_time() - computing, found


async def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    solutions = read_processbench(arguments.data).solutions[: arguments.limit]
    engine = load_engine(f"{arguments.kind}:{arguments.model}")
    template = load_template(arguments.prompt)
    sampling = Sampling(0.95, 0.95, arguments.max_tokens)
    await engine.start()
    raw = RAW[arguments.kind](engine)
    ratios, rounds = [], []
    profile = cProfile.Profile()
    for number in range(arguments.rounds + 1):  # The first one warms up.
        recording = RecordingEngine(engine)
        rule = StoppingRule(arguments.k, stopping="none")
        judge = Judge(recording, template, rule, replace(sampling, seed=number), first_error_exit=False)
        await judge.start()
        await raw.forget()
        if arguments.profile and number == arguments.rounds:
            profile.enable()
        ours, own, _ = await seconds_of(judged(judge, solutions))
        profile.disable()
        calls = sorted(recording.calls, key=lambda call: call.prompt.text)
        num_tokens = sum(call.completion.num_tokens for call in calls)
        await raw.forget()
        theirs, raw_own, num_raw = await seconds_of(raw.write(calls))
        row = {"ours_tokens_s": num_tokens / ours, "raw_tokens_s": num_raw / theirs}
        row["ratio"] = row["ours_tokens_s"] / row["raw_tokens_s"]
        row |= {"ours_own_us_a_token": 1e6 * own / num_tokens, "raw_own_us_a_token": 1e6 * raw_own / num_raw}
        ids = [raw.ids(call) for call in calls]
        cached = [call.completion.num_cached_prompt_tokens for call in calls]
        if None not in cached and ids[0]:
            row["cached_prompt_tokens"] = sum(cached) / sum(map(len, ids))
            row["cached_of_possible"] = sum(cached) / shareable(ids)
        print(json.dumps(row), flush=True)
        if number:
            ratios.append(row["ratio"])
            rounds.append(row)
    await engine.aclose()
    if arguments.profile:
        profile.dump_stats(arguments.profile)
    return {
        "engine": engine.spec, "solutions": len(solutions), "steps": sum(len(one.steps) for one in solutions),
        "analyses": len(calls), "k": arguments.k, "tokens": num_tokens, "rounds": rounds,
        "median_ratio": statistics.median(ratios),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=RAW)
    parser.add_argument("--model", required=True, help="what stands after `vllm:` and the others, options too")
    parser.add_argument("--data", required=True, help="a file of ProcessBench")
    parser.add_argument("--prompt", default=None)
    parser.add_argument("-k", type=int, default=4)
    parser.add_argument("--limit", type=int, default=12, help="solutions")
    parser.add_argument("--max-tokens", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--profile", default=None, metavar="FILE")
    print(json.dumps(asyncio.run(measure(parser.parse_args())), indent=2))


if __name__ == "__main__":
    main()
