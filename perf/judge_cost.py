"""What a judgement costs: the published procedure against ours, on one engine and one stream of samples.

The published procedure (NJUNLP/R-PRM, `src/evaluate/GenPRM`): K analyses of every step, each written to its end, then a
second forward pass for every analysis, one after the other. Ours: exact stopping, first-error exit, P(Yes) from the
generation itself. Sample j of a step is the same in both, so that predictions can be compared one by one.

Two measurements, side by side in one run:

1. Tokens, on the real ProcessBench items, with verdict streams drawn from their labels, so that all items and several K
   can be counted without a GPU. Two streams: `released`, whose shares of Yes are those that R-PRM-7B-SFT gave to right
   and to first wrong steps of PRMBench (10 votes a step, published with its code), and `accurate`, a judge better than
   the paper's.

       python perf/judge_cost.py tokens --data FOLDER_WITH_PROCESSBENCH

2. Wall time on a real engine with a real model. SmolLM2's own verdicts would say nothing of a judge's
   (nearly all of them lie about one half), so that it generates and computes as many tokens as the stream's analyses
   have, and the stream says what the verdicts are: the time is real, the decisions are realistic. The published second
   pass is measured both ways: with the whole prompt computed again, as the published code does, and with the engine's
   prompt cache, which it does not have.

       python perf/judge_cost.py time --data FOLDER_WITH_PROCESSBENCH --model smollm2

The data are public and no part of this repository. `processbench/`: files of `Qwen/ProcessBench`, one a subset, as
`rprm bench processbench --data` reads them; the figures in docs/log.md are of 200, 300, 80 and 80 items of its subsets.
`prmbench/sample.jsonl`: rows of `hitsmy/PRMBench_Preview`. `prmbench/released_scores.jsonl`: `{key, p_yes}` of the same
rows, from src/evaluate/PRMBench/data/prm_result.jsonl of NJUNLP/R-PRM (`idx`, `scores.step_level_validity_scores`).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import random
import statistics
import time
from dataclasses import dataclass, replace
from pathlib import Path

from rprm.aggregation import mean
from rprm.benchmarks import measure_processbench, read_prmbench, read_processbench, read_scores, scores_of
from rprm.data.stage_options import order_key
from rprm.engines import Completion, Engine, EngineInfo, Sampling, load_engine
from rprm.engines.scripted import ScriptedEngine, ScriptedReply
from rprm.jobs import in_order
from rprm.prompts import Prompt, PromptTemplate, load_template
from rprm.records import Solution, SolutionReward, StepReward
from rprm.rewarders.rprm import Judge
from rprm.stopping import StoppingRule
from rprm.verdict import VerdictChoice, VerdictFormat, read_verdict


class CountingEngine:
    """Passes everything on and counts what is generated and what is computed."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.spec = engine.spec
        self.concurrency = engine.concurrency
        self.num_generated = self.num_forward = self.num_second_passes = 0

    async def start(self) -> EngineInfo:
        return await self.engine.start()

    async def generate(self, prompt: Prompt, sampling: Sampling) -> Completion:
        completion = await self.engine.generate(prompt, sampling)
        self.num_generated += completion.num_tokens
        fresh = (completion.num_prompt_tokens or 0) - (completion.num_cached_prompt_tokens or 0)
        self.num_forward += completion.num_tokens + fresh
        return completion

    async def choose(self, prompt: Prompt, text: str, verdict: VerdictFormat) -> VerdictChoice:
        choice = await self.engine.choose(prompt, text, verdict)
        self.num_second_passes += 1
        # The published second pass computes prompt and analysis anew. Words stand for the scripted engine's tokens.
        self.num_forward += self._count(prompt, text)
        return choice

    def _count(self, prompt: Prompt, text: str) -> int:
        tokenizer = getattr(self.engine, "tokenizer", None)
        if tokenizer is None:
            return len(prompt.text.split()) + len(text.split())
        return len(tokenizer(prompt.text + text)["input_ids"])

    async def aclose(self) -> None:
        await self.engine.aclose()


class WholeAnalyses(CountingEngine):
    """An engine that writes every analysis to its end, as a plain generate call does."""

    async def generate(self, prompt: Prompt, sampling: Sampling) -> Completion:
        completion = await super().generate(prompt, replace(sampling, verdict=None))
        return replace(completion, choices=())


class PublishedProcedure(Judge):
    """K analyses of every step, then P(Yes) of each from a second forward pass, one at a time."""

    async def judge(self, solution: Solution, ledger: object = None) -> SolutionReward:
        drawn = await super().judge(solution)
        steps = []
        for step in drawn.steps:
            prompt = self.template.render(solution.problem, solution.steps, step.step_index)
            p_yes = []
            for analysis in step.analyses:
                found = read_verdict(analysis.text, self.template.verdict, ())
                text = (
                    analysis.text[: found[0].start].rstrip(" ") if found else _with_marker(analysis.text, self.template)
                )
                async with self.one_at_a_time:
                    p_yes.append((await self.engine.choose(prompt, text, self.template.verdict)).p_yes)
            steps.append(StepReward(step_index=step.step_index, reward=mean(p_yes), vote=step.vote))
        first = next(
            (step.step_index for step in steps if step.reward is not None and step.reward < self.threshold), -1
        )
        return SolutionReward(id=solution.id, num_steps=len(steps), first_error=first, steps=tuple(steps))

    one_at_a_time = asyncio.Semaphore(1)


class StreamedEngine(CountingEngine):
    """A real engine whose completions are as long as the stream says, and end in the stream's verdicts.

    Args:
        engine: generates and computes, for real.
        streams: lengths and verdicts, scaled down by `scale` so that a CPU comes to an end.
        whole_second_pass: compute the prompt of a second pass anew, as the published code does.
    """

    def __init__(self, engine: Engine, streams: Streams, scale: float, whole_second_pass: bool) -> None:
        super().__init__(engine)
        self.streams = streams
        self.scale = scale
        self.whole_second_pass = whole_second_pass
        self.p_yes: dict[str, float] = {}

    async def generate(self, prompt: Prompt, sampling: Sampling) -> Completion:
        drawn = self.streams.reply(prompt, sampling)
        num_tokens = max(4, round(drawn.num_tokens * self.scale))
        written = await super().generate(prompt, replace(sampling, max_tokens=num_tokens, verdict=None))
        if drawn.p_yes is None:
            return written
        verdict = sampling.verdict or VerdictFormat()
        # Two analyses may happen to read alike, and have verdicts of their own.
        before = f"{written.text} [{sampling.seed}]\n{verdict.marker}"
        self.p_yes[before] = drawn.p_yes
        choice = VerdictChoice(len(before) + 1, math.log(drawn.p_yes), math.log1p(-drawn.p_yes))
        answer = verdict.yes if drawn.p_yes >= 0.5 else verdict.no
        return replace(written, text=f"{before} {answer}", choices=(choice,))

    async def choose(self, prompt: Prompt, text: str, verdict: VerdictFormat) -> VerdictChoice:
        if self.whole_second_pass:
            # Another beginning: nothing of it was computed before.
            first, *rest = prompt.messages
            opening = replace(first, content=f"{self.num_second_passes} {first.content}")
            prompt = replace(prompt, messages=(opening, *rest))
        choice = await super().choose(prompt, text, verdict)
        if text not in self.p_yes:
            return choice
        p_yes = self.p_yes[text]
        return VerdictChoice(len(text), math.log(p_yes), math.log1p(-p_yes))


def _with_marker(text: str, template: PromptTemplate) -> str:
    return f"{text.rstrip()}\n\n{template.verdict.marker}"


@dataclass
class Cost:
    generated: int
    forward: int
    second_passes: int
    seconds: float
    rewards: list[SolutionReward]


async def run(judge: Judge, engine: CountingEngine, solutions: list[Solution]) -> Cost:
    await judge.start()
    started = time.perf_counter()
    rewards = [reward async for _, reward in in_order(iter(solutions), judge.judge, width=judge.concurrency)]
    seconds = time.perf_counter() - started
    return Cost(engine.num_generated, engine.num_forward, engine.num_second_passes, seconds, rewards)


# --- verdict streams ---------------------------------------------------------------------------------------------


class Streams:
    """Verdicts drawn from the labels of the solutions.

    Each step has a leaning, the chance that an analysis of it says Yes, drawn by its kind: right (before the first
    error), first error, or after it. An analysis is sure of itself: it gives its verdict 1 - e, with e from
    Beta(0.5, 20) (mean 0.024). Lengths are lognormal around 400 tokens, and one analysis in a hundred is lost.
    """

    def __init__(self, solutions: list[Solution], template: PromptTemplate, kind: str, data: Path, seed: int) -> None:
        draw = random.Random(seed)
        leanings = released_leanings(data) if kind == "released" else None
        self.seed = seed
        self.leaning: dict[str, float] = {}
        for solution in solutions:
            label = solution.label if solution.label is not None else -1
            for index in range(len(solution.steps)):
                place = "right" if label < 0 or index < label else "first error" if index == label else "after"
                if leanings is not None:
                    leaning = draw.choice(leanings[place])
                else:
                    right = place == "right" or (place == "after" and draw.random() < 0.5)
                    leaning = draw.betavariate(6, 0.6) if right else draw.betavariate(0.8, 1.7)
                self.leaning[template.render(solution.problem, solution.steps, index).text] = leaning

    def reply(self, prompt: Prompt, sampling: Sampling) -> ScriptedReply:
        draw = random.Random(f"{self.seed} {sampling.seed}")
        num_tokens = max(40, round(draw.lognormvariate(6.0, 0.4)))
        if draw.random() < 0.01:
            return ScriptedReply("The thread is lost.", None, num_tokens)
        doubt = min(draw.betavariate(0.5, 20), 0.499)
        p_yes = 1 - doubt if draw.random() < self.leaning[prompt.text] else doubt
        return ScriptedReply(f"Analysis {sampling.seed}.", p_yes, num_tokens)


def released_leanings(data: Path) -> dict[str, list[float]]:
    """Shares of Yes that R-PRM-7B-SFT gave, by the kind of step.

    From PRMBench's soundness and sensitivity classes: what its simplicity classes call wrong is true, but redundant.
    """
    scores = read_scores(data / "prmbench" / "released_scores.jsonl").p_yes
    found: dict[str, list[float]] = {"right": [], "first error": [], "after": []}
    for item in read_prmbench(data / "prmbench" / "sample.jsonl").items:
        if item.id not in scores or item.classification in ("redundency", "circular", "correct"):
            continue
        first = min(item.wrong_steps, default=len(item.solution.steps))
        for index, share in enumerate(scores[item.id]):
            if share is not None:
                found["right" if index < first else "first error" if index == first else "after"].append(share)
    return found


def count_tokens(arguments: argparse.Namespace) -> dict[str, object]:
    items = read_processbench(Path(arguments.data) / "processbench")
    template = load_template(None)
    rows = []
    for kind, k in ((kind, k) for kind in ("released", "accurate") for k in arguments.k):
        streams = Streams(items.solutions, template, kind, Path(arguments.data), arguments.seed)
        sampling = Sampling(0.95, 0.95, 4096, seed=arguments.seed)
        full_engine = CountingEngine(ScriptedEngine(reply=streams.reply))
        full = Judge(full_engine, template, StoppingRule(k, stopping="none"), sampling, first_error_exit=False)
        lean_engine = CountingEngine(ScriptedEngine(reply=streams.reply))
        lean = Judge(lean_engine, template, StoppingRule(k), sampling)
        confident_engine = CountingEngine(ScriptedEngine(reply=streams.reply))
        confident = Judge(confident_engine, template, StoppingRule(k, stopping="confident"), sampling)
        whole = asyncio.run(run(full, full_engine, items.solutions))
        ours = asyncio.run(run(lean, lean_engine, items.solutions))
        less = asyncio.run(run(confident, confident_engine, items.solutions))
        # What the second pass of the published procedure computes: the prompt and the analysis, for every analysis.
        second = sum(
            len(template.render(solution.problem, solution.steps, step.step_index).text.split()) + analysis.num_tokens
            for solution, reward in zip(items.solutions, whole.rewards, strict=True)
            for step in reward.steps
            for analysis in step.analyses
        )
        f1 = measure_processbench(items, scores_of(whole.rewards), num_resamples=10).figures["average.f1"].value
        same = sum(one.first_error == other.first_error for one, other in zip(whole.rewards, ours.rewards, strict=True))
        near = sum(one.first_error == other.first_error for one, other in zip(whole.rewards, less.rewards, strict=True))
        rows.append(
            {
                "stream": kind,
                "k": k,
                "average_f1": f1,
                "published_generated": whole.generated,
                "published_forward": whole.forward + second,
                "ours_generated": ours.generated,
                "ours_forward": ours.forward,
                "generated_ratio": ours.generated / whole.generated,
                "forward_ratio": ours.forward / (whole.forward + second),
                "predictions_identical": f"{same}/{len(items.items)}",
                "confident_ratio": less.generated / whole.generated,
                "confident_identical": f"{near}/{len(items.items)}",
            }
        )
        print(json.dumps(rows[-1]), flush=True)
    return {"items": len(items.items), "steps": sum(len(s.steps) for s in items.solutions), "rows": rows}


def measure_time(arguments: argparse.Namespace) -> dict[str, object]:
    data = Path(arguments.data)
    items = read_processbench(data / "processbench")
    # A mixture of all subsets, the shorter solutions of each.
    short = [solution for solution in items.solutions if len(solution.steps) <= arguments.max_steps]
    solutions = sorted(short, key=lambda solution: order_key(solution.id, arguments.seed))[: arguments.limit]
    template = load_template(arguments.prompt)
    k = arguments.k[0]

    async def main() -> list[dict[str, object]]:
        engine = load_engine(arguments.model)
        await engine.start()
        rounds = []
        for number in range(arguments.rounds):
            # Another seed each round, and nothing in a cache at the start. Who goes first changes.
            seed = arguments.seed + number
            sampling = Sampling(0.95, 0.95, 4096, seed=seed)
            streams = Streams(solutions, template, "released", data, seed)
            procedures: dict[str, tuple[Judge, CountingEngine]] = {}
            for name, whole in (("published", True), ("published, cached prompts", False)):
                streamed = StreamedEngine(engine, streams, arguments.scale, whole)
                rule = StoppingRule(k, stopping="none")
                procedures[name] = (
                    PublishedProcedure(streamed, template, rule, sampling, first_error_exit=False),
                    streamed,
                )
            ours = StreamedEngine(engine, streams, arguments.scale, False)
            # An analysis without a verdict is asked for it, as the published procedure does.
            procedures["ours"] = Judge(ours, template, StoppingRule(k), sampling, force_verdict=True), ours
            order = list(procedures)
            order = order[number % 3 :] + order[: number % 3]
            costs = {}
            for name in order:
                forget_prompts(engine)
                costs[name] = await run(*procedures[name], solutions)
            mine = costs["ours"]
            row: dict[str, object] = {"order": order}
            for name, cost in costs.items():
                row[name] = {
                    "seconds": round(cost.seconds, 1),
                    "generated": cost.generated,
                    "second_passes": cost.second_passes,
                    "times_ours": cost.seconds / mine.seconds,
                    "predictions_as_ours": sum(
                        one.first_error == other.first_error
                        for one, other in zip(cost.rewards, mine.rewards, strict=True)
                    ),
                }
            rounds.append(row)
            print(json.dumps(row), flush=True)
        await engine.aclose()
        return rounds

    rounds = asyncio.run(main())
    return {
        "model": arguments.model,
        "solutions": len(solutions),
        "steps": sum(len(solution.steps) for solution in solutions),
        "k": k,
        "median_times_ours": {
            name: statistics.median(float(row[name]["times_ours"]) for row in rounds)  # type: ignore[index]
            for name in ("published", "published, cached prompts")
        },
        "rounds": rounds,
    }


def forget_prompts(engine: Engine) -> None:
    """Empty the prompt cache between two procedures, where the engine has one in this process."""
    worker = getattr(engine, "_worker", None)
    if worker is not None:
        worker.prefixes.clear()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["tokens", "time"])
    parser.add_argument(
        "--data", required=True, help="folder with processbench/ and prmbench/, public data (see above)"
    )
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--prompt", default="critique-brief")
    parser.add_argument("-k", type=int, nargs="+", default=[10, 16, 32])
    parser.add_argument("--limit", type=int, default=12, help="time: solutions")
    parser.add_argument("--max-steps", type=int, default=6, help="time: of solutions with at most so many steps")
    parser.add_argument("--scale", type=float, default=0.06, help="time: length of analyses against the stream's")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    found = count_tokens(arguments) if arguments.what == "tokens" else measure_time(arguments)
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
