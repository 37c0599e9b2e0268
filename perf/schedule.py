"""How long a whole run takes on a simulated server, against the shortest possible; how much of its prompts is cached.

The server has places, each of which writes a completion at one speed, and a queue: first come, first served. Prompts
are computed before that, but for the blocks of 64 characters that a cache of some size still holds, least recently used
ones leaving first. Time is simulated: the event loop jumps to the next thing that happens, so that the code that runs
is the package's own. Analyses have the lengths and verdicts of `judge_cost.py`'s stream `accurate`, on the real
solutions of ProcessBench, which are repeated with other numbers in their problems until there are enough.

The bound is the time of all tokens with every place taken, and every block of a prompt computed once. First of all it
prints what the prompts of a solution cost by its number of steps, with and without a cache of prompts.

    python perf/schedule.py --data FOLDER_WITH_PROCESSBENCH --solutions 1000 --places 256 -k 10
"""

from __future__ import annotations

import argparse
import asyncio
import json
import selectors
from collections import OrderedDict
from collections.abc import Coroutine
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from judge_cost import Streams

from rprm.benchmarks import read_processbench
from rprm.data.stage_options import order_key
from rprm.engines import Completion, EngineInfo, Sampling
from rprm.engines.scripted import ScriptedEngine
from rprm.jobs import Callbacks
from rprm.prompts import Prompt, PromptTemplate, load_template
from rprm.records import Solution
from rprm.rewarders.base import judge_source
from rprm.rewarders.rprm import Judge
from rprm.stopping import StoppingRule

T = TypeVar("T")

#: Tokens a second that a place writes, and that prompts are computed at: a 7B model on an H100 with 256 places, by
#: vLLM's published figures no more than roughly. Characters of a token and of a block.
WRITTEN, COMPUTED, PER_TOKEN, BLOCK = 50.0, 25_000.0, 4, 64


class Jumping(asyncio.SelectorEventLoop):
    """An event loop whose time passes at once."""

    def __init__(self) -> None:
        super().__init__(_Clock())
        self.clock: Any = self._selector  # type: ignore[attr-defined]

    def time(self) -> float:
        return self.clock.now if hasattr(self, "clock") else 0.0


class _Clock(selectors.SelectSelector):
    """Waits for nothing."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[Any]:
        self.now += timeout or 0.0
        return []


def simulated(work: Coroutine[Any, Any, T]) -> tuple[float, T]:
    """Seconds that some work takes, by the simulated clock, and what it returns."""
    with asyncio.Runner(loop_factory=Jumping) as runner:
        found = runner.run(work)
        return runner.get_loop().time(), found


class SimulatedServer(ScriptedEngine):
    """An engine of some places in front of a queue; completions are those of a stream."""

    def __init__(self, streams: Streams, num_places: int, cache_tokens: int) -> None:
        super().__init__(reply=streams.reply, concurrency=num_places)
        self.places = asyncio.Semaphore(num_places)
        self.blocks: OrderedDict[int, None] = OrderedDict()
        self.size = cache_tokens * PER_TOKEN // BLOCK
        self.seen: set[int] = set()
        self.num_tokens = self.num_prompt_blocks = self.num_computed = 0
        self.busy = 0.0

    async def start(self, *, chat: bool = True) -> EngineInfo:
        return await super().start()

    async def generate(self, prompt: Prompt, sampling: Sampling) -> Completion:
        async with self.places:
            blocks = blocks_of(prompt.text)
            computed = sum(block not in self.blocks for block in blocks)
            for block in blocks:
                self.blocks[block] = None
                self.blocks.move_to_end(block)
            while len(self.blocks) > self.size:
                self.blocks.popitem(last=False)
            self.seen.update(blocks)
            found = await super().generate(prompt, sampling)
            seconds = computed * BLOCK / PER_TOKEN / COMPUTED + found.num_tokens / WRITTEN
            self.num_tokens += found.num_tokens
            self.num_prompt_blocks += len(blocks)
            self.num_computed += computed
            self.busy += seconds
            await asyncio.sleep(seconds)
        return found

    @property
    def shortest(self) -> float:
        """Seconds with every place taken and every block computed once."""
        once = len(self.seen) * BLOCK / PER_TOKEN / COMPUTED
        return float(self.num_tokens / WRITTEN + once) / self.concurrency


@lru_cache(maxsize=4096)
def blocks_of(text: str) -> tuple[int, ...]:
    """A hash for each whole block of a text, of it and all before it."""
    found, before = [], 0
    for begin in range(0, len(text) - BLOCK + 1, BLOCK):
        before = hash((before, text[begin : begin + BLOCK]))
        found.append(before)
    return tuple(found)


def repeated(solutions: list[Solution], number: int, seed: int) -> list[Solution]:
    """So many solutions in a random order; the problems of repetitions begin with other words."""
    found = sorted(solutions, key=lambda solution: order_key(solution.id, seed))
    rounds = -(-number // len(found))
    copies = [
        one.model_copy(update={"id": f"{one.id}-{copy}", "problem": f"({copy}) {one.problem}"})
        for copy in range(rounds)
        for one in found
    ]
    return copies[:number]


def by_length(solutions: list[Solution], template: PromptTemplate, k: int) -> None:
    """Prompt tokens of a solution, every step with K analyses: each computed anew, once a step, and no block twice."""
    for least, most in ((1, 4), (5, 8), (9, 16), (17, 32)):
        chosen = [one for one in solutions if least <= len(one.steps) <= most]
        anew, once, shared = 0, 0, set[int]()
        for one in chosen:
            for index in range(len(one.steps)):
                blocks = blocks_of(template.render(one.problem, one.steps, index).text)
                anew, once = anew + k * len(blocks), once + len(blocks)
                shared.update(blocks)
        counts = {"anew": anew, "once_a_step": once, "no_block_twice": len(shared)}
        mean = {name: round(count * BLOCK / PER_TOKEN / len(chosen)) for name, count in counts.items()}
        print(json.dumps({"steps": f"{least} to {most}", "solutions": len(chosen), "k": k, **mean}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder with processbench/")
    parser.add_argument("--solutions", type=int, nargs="+", default=[1000])
    parser.add_argument("--places", type=int, default=256)
    parser.add_argument("--cache", type=int, nargs="+", default=[100_000, 1_000_000], help="tokens")
    parser.add_argument("-k", type=int, nargs="+", default=[4, 10])
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    items = read_processbench(Path(arguments.data) / "processbench")
    template = load_template(None)
    by_length(items.solutions, template, max(arguments.k))
    for number in arguments.solutions:
        solutions = repeated(items.solutions, number, arguments.seed)
        for k in arguments.k:
            for cache in arguments.cache:
                streams = Streams(solutions, template, "accurate", Path(arguments.data), arguments.seed)
                server = SimulatedServer(streams, arguments.places, cache)
                judge = Judge(server, template, StoppingRule(k), Sampling(0.95, 0.95, 4096, seed=arguments.seed))
                seconds, totals = simulated(judge_source(judge, solutions, callbacks=Callbacks()))
                row = {
                    "solutions": number, "k": k, "cache_tokens": cache, "steps_judged": totals.num_steps_judged,
                    "analyses": totals.num_analyses, "tokens": server.num_tokens,
                    "prompt_tokens": server.num_prompt_blocks * BLOCK // PER_TOKEN,
                    "computed": server.num_computed * BLOCK // PER_TOKEN,
                    "hours": round(seconds / 3600, 3), "of_the_bound": round(server.shortest / seconds, 3),
                    "places_taken": round(server.busy / seconds / arguments.places, 3),
                    "prompts_cached": round(1 - server.num_computed / server.num_prompt_blocks, 4),
                    "at_best": round(1 - len(server.seen) / server.num_prompt_blocks, 4),
                }  # fmt: skip
                print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
