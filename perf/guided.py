"""What guided search costs: the published loop against ours, on one engine and one stream of samples.

The published loop (NJUNLP/R-PRM, `src/reward-guide-search`) takes one problem at a time, and in each of at most 30
rounds

1. samples 8 next steps in one request; equal ones are one candidate,
2. has each candidate analysed, one candidate after the other, K = 10 analyses of one candidate at once,
3. reads P(Yes) of each analysis from a second forward pass, one analysis at a time,
4. and goes on with the candidate of the highest mean.

Ours makes the same choices from the same samples: many problems at once, P(Yes) from the generation itself, analyses
only as long as the choice is open. Between the two every ingredient stands alone:

    published              as above
    at once                all candidates of a round analysed at once
    no second pass         and P(Yes) from the generation
    racing                 and analyses only as needed
    many                   many problems at once, everything in full
    ours                   many problems at once, and racing

Two measurements, the procedures side by side in one run. Verdicts and lengths come from a stream (see `Stream`): a
small model's own verdicts would say nothing of a judge's.

1. A model of a GPU server in simulated time: nothing waits, and the figures are the same on every machine.

       python perf/guided.py model

2. Wall time on a real engine, which generates and computes as many tokens as the stream says.

       python perf/guided.py time --data FOLDER_WITH_MATH --model smollm2

The folder holds GSM8K's test problems (`openai/gsm8k`, public, no part of this repository) as `gsm8k.jsonl`; they give
the prompts their lengths. Nothing else is read: verdicts and lengths are drawn.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import random
import selectors
import statistics
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from typing import Any

from judge_cost import forget_prompts

from rprm.aggregation import mean
from rprm.benchmarks.mathematics import Problem, read_mathematics
from rprm.engines import Completion, Engine, EngineInfo, Sampling, load_engine
from rprm.engines.scripted import ScriptedEngine
from rprm.jobs import all_or_none, in_order
from rprm.prompts import Prompt, load_template
from rprm.prompts.library import load_policy_template
from rprm.records import Analysis
from rprm.rewarders.rprm import Judge
from rprm.search.candidates import Policy
from rprm.search.guided import GuidedSearch, search_strategy
from rprm.stopping import StoppingRule
from rprm.verdict import VerdictChoice, VerdictFormat, read_verdict


@dataclass(frozen=True)
class Stream:
    """Lengths and verdicts that depend on the request alone.

    A step leans to Yes by its text: seven in ten by Beta(6, 0.6), as steps that a good judge likes, the others by
    Beta(0.8, 1.7). An analysis is sure of itself: it gives its verdict 1 - e, with e from Beta(0.5, 20). Lengths are
    lognormal, those of analyses around `analysis_tokens`, those of steps around `step_tokens`.
    """

    seed: int
    analysis_tokens: float
    step_tokens: float

    def verdict(self, prompt: Prompt, sampling: Sampling) -> tuple[float, int]:
        """P(Yes) and the number of tokens of an analysis."""
        leaning = self.leaning(prompt)
        draw = random.Random(f"{self.seed} {sampling.seed} {prompt.text}")
        doubt = min(draw.betavariate(0.5, 20), 0.499)
        num_tokens = max(4, round(draw.lognormvariate(math.log(self.analysis_tokens), 0.4)))
        return (1 - doubt if draw.random() < leaning else doubt), num_tokens

    def leaning(self, prompt: Prompt) -> float:
        draw = random.Random(f"{self.seed} {prompt.text}")
        return draw.betavariate(6, 0.6) if draw.random() < 0.7 else draw.betavariate(0.8, 1.7)

    def step(self, prompt: Prompt, sampling: Sampling) -> tuple[str, int, bool]:
        """The text of a next step, its number of tokens, and whether it ends the solution (after six on average)."""
        draw = random.Random(f"{self.seed} {sampling.seed} {prompt.text}")
        num_tokens = max(4, round(draw.lognormvariate(math.log(self.step_tokens), 0.4)))
        return f"Step {draw.getrandbits(32):08x}.", num_tokens, draw.random() < 1 / 6


class Measured:
    """An engine whose requests are counted, and whose judge's verdicts and lengths are the stream's."""

    def __init__(self, engine: Engine, stream: Stream, *, whole_second_pass: bool = True) -> None:
        self.engine = engine
        self.stream = stream
        self.spec = engine.spec
        self.concurrency = engine.concurrency
        self.whole_second_pass = whole_second_pass
        self.num_generated = self.num_analyses = self.num_second_passes = 0

    async def start(self) -> EngineInfo:
        return await self.engine.start()

    async def generate(self, prompt: Prompt, sampling: Sampling) -> Completion:
        if sampling.verdict is None:
            completion = await self.engine.generate(prompt, sampling)
            self.num_generated += completion.num_tokens
            return completion
        p_yes, num_tokens = self.stream.verdict(prompt, sampling)
        written = await self.engine.generate(prompt, replace(sampling, max_tokens=num_tokens, verdict=None))
        self.num_generated += written.num_tokens
        self.num_analyses += 1
        before = f"{written.text} [{sampling.seed}]\n{sampling.verdict.marker}"
        choice = VerdictChoice(len(before) + 1, math.log(p_yes), math.log1p(-p_yes))
        answer = sampling.verdict.yes if p_yes >= 0.5 else sampling.verdict.no
        return replace(written, text=f"{before} {answer}", choices=(choice,))

    async def choose(self, prompt: Prompt, text: str, verdict: VerdictFormat) -> VerdictChoice:
        if self.whole_second_pass:
            # The published pass knows no cache: with another beginning nothing of it was computed before.
            first, *rest = prompt.messages
            prompt = replace(
                prompt, messages=(replace(first, content=f"{self.num_second_passes} {first.content}"), *rest)
            )
        self.num_second_passes += 1
        return await self.engine.choose(prompt, text, verdict)

    async def aclose(self) -> None:
        await self.engine.aclose()


class ModelledServer(ScriptedEngine):
    """A server in simulated time: rows decode together, the more of them the slower each.

    A token of a row takes `token_s` * (1 + rows / `half_rows`): memory-bound at first, compute-bound later. Prompts are
    free (shared, and cached); a second forward pass, alone on a device of its own, takes `pass_s`.
    """

    def __init__(self, stream: Stream, *, token_s: float, half_rows: float, max_rows: int, pass_s: float) -> None:
        super().__init__(concurrency=max_rows)
        self.stream = stream
        self.token_s = token_s
        self.half_rows = half_rows
        self.pass_s = pass_s
        self.places = asyncio.Semaphore(max_rows)
        self.num_rows = 0

    async def generate(self, prompt: Prompt, sampling: Sampling) -> Completion:
        self.num_requests += 1
        if sampling.stop:
            text, num_tokens, ended = self.stream.step(prompt, sampling)
        else:
            text, num_tokens, ended = "An analysis.", sampling.max_tokens, False
        async with self.places:
            self.num_rows += 1
            left = num_tokens
            while left > 0:
                tokens = min(left, 16)
                await asyncio.sleep(tokens * self.token_s * (1 + self.num_rows / self.half_rows))
                left -= tokens
            self.num_rows -= 1
        return Completion(text, num_tokens, "stop", len(prompt.text.split()), ended=ended)

    async def choose(self, prompt: Prompt, text: str, verdict: VerdictFormat) -> VerdictChoice:
        await asyncio.sleep(self.pass_s)
        return VerdictChoice(len(text), math.log(0.5), math.log(0.5))


class SimulatedTime(asyncio.SelectorEventLoop):
    """An event loop whose clock jumps to the next thing that is due."""

    def __init__(self) -> None:
        super().__init__(_Jumping(self))
        self.now = 0.0

    def time(self) -> float:
        return self.now


class _Jumping(selectors.DefaultSelector):
    def __init__(self, loop: SimulatedTime) -> None:
        super().__init__()
        self.loop = loop

    def select(self, timeout: float | None = None) -> Any:
        self.loop.now += timeout or 0.0
        return super().select(0)


# --- procedures --------------------------------------------------------------------------------------------------


@dataclass
class Cost:
    seconds: float
    num_generated: int
    num_analyses: int
    num_second_passes: int
    texts: list[str]


@dataclass(frozen=True)
class Loop:
    """The published loop over our engine protocol."""

    policy: Policy
    judge: Judge
    width: int
    max_rounds: int
    at_once: bool

    async def solve(self, problem: Problem) -> str:
        steps: list[str] = []
        for _ in range(self.max_rounds):
            drawn = await all_or_none(
                self.policy.next_step(problem.problem, steps, sample) for sample in range(self.width)
            )
            candidates = list(dict.fromkeys((one.text, bool(one.ended)) for one in drawn if one.text))
            if not candidates:
                break
            texts = [text for text, _ in candidates]
            if self.at_once:
                rewards = await all_or_none(self.reward(problem, [*steps, text]) for text in texts)
            else:
                rewards = [await self.reward(problem, [*steps, text]) for text in texts]
            best = max(range(len(candidates)), key=lambda index: (rewards[index], -index))
            steps.append(candidates[best][0])
            if candidates[best][1]:
                break
        return "\n\n".join(steps)

    async def reward(self, problem: Problem, steps: Sequence[str]) -> float:
        index, k = len(steps) - 1, self.judge.rule.num_analyses
        analyses = await self.judge.analyse(problem.problem, steps, index, range(k))
        prompt = self.judge.template.render(problem.problem, steps, index)
        found = []
        for analysis in analyses:
            verdict = read_verdict(analysis.text, self.judge.template.verdict, ())
            assert verdict is not None
            await self.judge.engine.choose(
                prompt, analysis.text[: verdict[0].start].rstrip(" "), self.judge.template.verdict
            )
            # The value is the stream's: it must be the same for every procedure.
            found.append(_p_yes(analysis))
        reward = mean(found)
        assert reward is not None
        return reward


def _p_yes(analysis: Analysis) -> float:
    assert analysis.p_yes is not None
    return analysis.p_yes


@dataclass(frozen=True)
class Setting:
    """What a measurement is made with, whatever the procedure."""

    problems: list[Problem]
    width: int
    k: int
    max_rounds: int
    step_tokens: int
    prompt: str | None
    seed: int
    wave: int | None

    async def run(self, name: str, engine: Measured, many: int) -> Cost:
        template = load_template(self.prompt)
        policy = Policy(
            engine, load_policy_template(None), Sampling(0.7, 0.95, 2048, seed=self.seed), step_tokens=self.step_tokens
        )
        judge = Judge(
            engine,
            template,
            StoppingRule(self.k, stopping="none"),
            Sampling(0.95, 0.95, 3072, seed=self.seed),
            first_error_exit=False,
        )
        solve: Callable[[Problem], Coroutine[Any, Any, str]]
        if name in ("published", "at once"):
            solve = Loop(policy, judge, self.width, self.max_rounds, at_once=name == "at once").solve
        else:
            strategy = search_strategy(
                "guided",
                width=self.width,
                max_rounds=self.max_rounds,
                racing=name in ("racing", "ours"),
                wave=self.wave,
            )
            search = GuidedSearch(policy, judge, strategy)

            async def solve(problem: Problem) -> str:
                return (await search.solve(problem)).text

        loop = asyncio.get_running_loop()
        started = loop.time()
        num_at_once = many if name in ("many", "ours") else 1
        texts = [text async for _, text in in_order(iter(self.problems), solve, width=num_at_once)]
        seconds = loop.time() - started
        return Cost(seconds, engine.num_generated, engine.num_analyses, engine.num_second_passes, texts)


PROCEDURES = ("published", "at once", "no second pass", "racing", "many", "ours")


def report(costs: dict[str, Cost]) -> dict[str, Any]:
    ours = costs["ours"]
    return {
        name: {
            "seconds": round(cost.seconds, 2),
            "times_ours": round(cost.seconds / ours.seconds, 3),
            "generated": cost.num_generated,
            "analyses": cost.num_analyses,
            "second_passes": cost.num_second_passes,
            "solutions_as_ours": sum(one == other for one, other in zip(cost.texts, ours.texts, strict=True)),
        }
        for name, cost in costs.items()
    }


def measure_model(arguments: argparse.Namespace) -> dict[str, Any]:
    problems = [Problem(id=str(number), problem=f"Problem {number}.") for number in range(arguments.limit)]
    setting = Setting(
        problems, arguments.width, arguments.k[0], arguments.max_rounds, 512, None, arguments.seed, arguments.wave
    )
    stream = Stream(arguments.seed, arguments.analysis_tokens, arguments.step_tokens)
    costs = {}
    for name in _chosen(arguments):
        server = ModelledServer(
            stream,
            token_s=arguments.token_ms / 1000,
            half_rows=arguments.half_rows,
            max_rows=arguments.rows,
            pass_s=arguments.pass_ms / 1000,
        )
        with asyncio.Runner(loop_factory=SimulatedTime) as runner:
            costs[name] = runner.run(setting.run(name, Measured(server, stream), arguments.many or server.concurrency))
        print(f"{name}: {costs[name].seconds:,.0f} simulated seconds", flush=True)
    return {"problems": len(problems), **report(costs)}


def measure_time(arguments: argparse.Namespace) -> dict[str, Any]:
    problems = sorted(read_mathematics("gsm8k", arguments.data).problems, key=lambda problem: len(problem.problem))
    step_tokens = round(arguments.step_tokens)
    setting = Setting(
        problems[: arguments.limit], arguments.width, arguments.k[0], arguments.max_rounds, step_tokens,
        arguments.prompt, arguments.seed, arguments.wave,
    )  # fmt: skip

    async def main() -> list[dict[str, Any]]:
        engine = load_engine(arguments.model)
        await engine.start()
        rounds = []
        for number in range(arguments.rounds):
            seed = arguments.seed + number
            stream = Stream(seed, arguments.analysis_tokens, arguments.step_tokens)
            # Who goes first changes.
            names = _chosen(arguments)
            shift = number % len(names)
            costs = {}
            for name in names[shift:] + names[:shift]:
                forget_prompts(engine)
                measured = Measured(engine, stream)
                costs[name] = await replace(setting, seed=seed).run(
                    name, measured, arguments.many or engine.concurrency
                )
                print(f"{name}: {costs[name].seconds:,.0f} seconds", flush=True)
            rounds.append(report({name: costs[name] for name in names}))
            print(json.dumps(rounds[-1]), flush=True)
        await engine.aclose()
        return rounds

    started = time.perf_counter()
    rounds = asyncio.run(main())
    return {
        "model": arguments.model,
        "problems": arguments.limit,
        "seconds_in_all": round(time.perf_counter() - started),
        "median_times_ours": {name: statistics.median(row[name]["times_ours"] for row in rounds) for name in rounds[0]},
    }


def _chosen(arguments: argparse.Namespace) -> list[str]:
    return [name for name in PROCEDURES if name in arguments.procedures or name == "ours"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["model", "time"])
    parser.add_argument("--data", help="time: folder with gsm8k.jsonl, public data (see above)")
    parser.add_argument("--model", default="smollm2", help="time: the engine of policy and judge")
    parser.add_argument("--prompt", default="critique-brief", help="time: of the judge")
    parser.add_argument("--limit", type=int, default=32, help="problems")
    parser.add_argument("--width", type=int, default=8)
    parser.add_argument("-k", type=int, nargs=1, default=[10])
    parser.add_argument("--max-rounds", type=int, default=30)
    parser.add_argument("--analysis-tokens", type=float, default=400, help="of a typical analysis")
    parser.add_argument("--step-tokens", type=float, default=60, help="of a typical step; time: of the longest")
    parser.add_argument("--many", type=int, help="problems at once; by default as many as the engine takes requests")
    parser.add_argument("--wave", type=int, help="most analyses of a problem to draw at once")
    parser.add_argument("--token-ms", type=float, default=8, help="model: of a token in a row alone")
    parser.add_argument("--half-rows", type=float, default=128, help="model: rows at which a token takes twice as long")
    parser.add_argument("--rows", type=int, default=256, help="model: decoded at once")
    parser.add_argument("--pass-ms", type=float, default=40, help="model: a second forward pass")
    parser.add_argument("--procedures", nargs="+", default=list(PROCEDURES), choices=PROCEDURES)
    parser.add_argument("--rounds", type=int, default=3, help="time: repetitions")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    found = measure_model(arguments) if arguments.what == "model" else measure_time(arguments)
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
