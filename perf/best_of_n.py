"""What Best-of-N costs: analyses until the choice is certain, against every step of every candidate in full.

Both draw the same samples, so that their choices can be compared one by one: they are to be equal. Three sources of
problems with 8 candidates each:

- `steps`: solutions of PRMBench with the shares of Yes that R-PRM-7B-SFT gave to each of their steps, eight to a
  problem, in an order drawn from their ids. In truth they solve different problems; their rewards do not know that.
- `candidates`: eight real solutions of each of 80 OlympiadBench problems (Qwen2.5-7B-Instruct). Where the answer is
  wrong, one of the steps is taken for the first error; shares of Yes are those that R-PRM-7B-SFT gave to steps of
  that kind (`judge_cost.Streams`).
- `scripted`: the same solutions under the pseudo-random judge of the scripted engine.

    python perf/best_of_n.py --data FOLDER_WITH_PRMBENCH_AND_POLICY_SAMPLES

The data are public and no part of this repository: `prmbench/` as for `judge_cost.py`, and
`policy_samples/olympiadbench_qwen2.5-7b_n8.jsonl`, 80 of the problems of OlympiadBench with 8 solutions each and the
published grader's verdicts (NJUNLP/R-PRM, src/datasets/OlympiadBench, cut into steps).

`share` is the part of all analyses that is drawn, `waves` how many follow one another on a problem, in the mean.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any

from judge_cost import Streams

from rprm.aggregation import AGGREGATIONS, Aggregation
from rprm.benchmarks import read_prmbench, read_problem_file, read_scores
from rprm.data.stage_options import order_key
from rprm.engines import Sampling
from rprm.engines.scripted import ScriptedEngine
from rprm.prompts import PromptTemplate, load_template
from rprm.records import Solution
from rprm.rewarders.rprm import Judge
from rprm.search.candidates import read_candidate_file
from rprm.search.choosing import best_of
from rprm.search.racing import Bounds, Contender, StepScores, race
from rprm.stopping import StoppingRule

NUM_CANDIDATES = 8

#: A problem's text and its candidates, each a solution in steps.
Problems = list[tuple[str, list[tuple[str, ...]]]]


class ReleasedSteps(Streams):
    """Streams in which every step has the share of Yes that R-PRM-7B-SFT gave to it."""

    def __init__(self, leaning: dict[str, float], seed: int) -> None:
        self.leaning = leaning
        self.seed = seed


class Watched:
    """A contender that tells a clock of its draws: those asked for before any is made are one wave."""

    def __init__(self, contender: Contender, clock: Clock) -> None:
        self.contender = contender
        self.clock = clock

    @property
    def bounds(self) -> Bounds:
        return self.contender.bounds

    def outlook(self) -> Iterator[Bounds]:
        return self.contender.outlook()

    def draw(self, num_draws: int) -> Coroutine[Any, Any, None]:
        self.clock.asked()
        return self._draw(self.contender.draw(num_draws))

    async def _draw(self, drawing: Coroutine[Any, Any, None]) -> None:
        self.clock.made()
        await drawing


class Clock:
    def __init__(self) -> None:
        self.num_waves = 0
        self._is_asking = False

    def asked(self) -> None:
        self.num_waves += not self._is_asking
        self._is_asking = True

    def made(self) -> None:
        self._is_asking = False


def released_steps(data: Path, template: PromptTemplate, seed: int) -> tuple[Problems, ScriptedEngine]:
    scores = read_scores(data / "prmbench" / "released_scores.jsonl").p_yes
    items = {item.id: item for item in read_prmbench(data / "prmbench" / "sample.jsonl").items}
    known = [
        (items[name].solution.steps, shares)
        for name, shares in sorted(scores.items(), key=lambda pair: order_key(pair[0], seed))
        if name in items and len(shares) == len(items[name].solution.steps)
    ]
    problems: Problems = []
    leaning: dict[str, float] = {}
    for start in range(0, len(known) - NUM_CANDIDATES + 1, NUM_CANDIDATES):
        text = f"Problem {start // NUM_CANDIDATES}"
        problems.append((text, [steps for steps, _ in known[start : start + NUM_CANDIDATES]]))
        for steps, shares in known[start : start + NUM_CANDIDATES]:
            for index, share in enumerate(shares):
                leaning[template.render(text, steps, index).text] = 0.5 if share is None else share
    return problems, ScriptedEngine(reply=ReleasedSteps(leaning, seed).reply)


def real_candidates(data: Path, template: PromptTemplate, seed: int) -> tuple[Problems, ScriptedEngine]:
    path = data / "policy_samples" / "olympiadbench_qwen2.5-7b_n8.jsonl"
    labels = [json.loads(line)["labels"] for line in path.read_text().splitlines()]
    rows = read_candidate_file(path, read_problem_file(path)).rows
    draw = random.Random(seed)
    problems: Problems = []
    solutions = []
    for row, correct in zip(rows, labels, strict=True):
        problems.append((row.problem.problem, [candidate.steps for candidate in row.candidates]))
        for candidate, right in zip(row.candidates, correct, strict=True):
            label = -1 if right else draw.randrange(len(candidate.steps))
            solutions.append(
                Solution(id=str(len(solutions)), problem=row.problem.problem, steps=candidate.steps, label=label)
            )
    streams = Streams(solutions, template, "released", data, seed)
    return problems, ScriptedEngine(reply=streams.reply)


async def in_full(judge: Judge, problems: Problems) -> tuple[dict[Aggregation, list[int | None]], int]:
    """The choice in every problem under each aggregation, and the analyses that all steps take."""
    choices: dict[Aggregation, list[int | None]] = {how: [] for how in AGGREGATIONS}
    num_analyses = 0
    for text, candidates in problems:
        scores = StepScores(judge, text)
        for steps in candidates:
            await scores.judge_in_full(steps)
        prefixes = {steps[: index + 1] for steps in candidates for index in range(len(steps))}
        num_analyses += len(prefixes) * judge.rule.num_analyses
        for how in AGGREGATIONS:
            choices[how].append(best_of([scores.solution(steps, how).bounds[0] for steps in candidates]))
    return choices, num_analyses


async def raced(
    judge: Judge, engine: ScriptedEngine, problems: Problems, how: Aggregation, wave: int
) -> tuple[list[int | None], int, float]:
    """The choice in every problem, the analyses it took, and the waves of a problem in the mean."""
    choices: list[int | None] = []
    clock = Clock()
    before = engine.num_requests
    for text, candidates in problems:
        scores = StepScores(judge, text)
        watched: dict[tuple[str, ...], Watched] = {}
        for steps in candidates:
            watched.setdefault(steps, Watched(scores.solution(steps, how), clock))
        choices += await race([watched[steps] for steps in candidates], wave=wave)
    return choices, engine.num_requests - before, clock.num_waves / len(problems)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", required=True, help="folder that holds prmbench/ and policy_samples/, public data (see above)"
    )
    parser.add_argument("-k", type=int, default=10)
    parser.add_argument("--waves", type=int, nargs="+", default=[1, 4, 8, 16, 32])
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    template = load_template()
    data = Path(arguments.data)
    candidates, engine = real_candidates(data, template, arguments.seed)
    sources = {
        "steps": released_steps(data, template, arguments.seed),
        "candidates": (candidates, engine),
        "scripted": (candidates, ScriptedEngine()),
    }
    print(f"{'source':<12}{'aggregation':<13}{'wave':>5}{'analyses':>10}{'in full':>9}{'share':>8}{'waves':>8}  equal")
    for name, (problems, engine) in sources.items():
        judge = Judge(
            engine, template, StoppingRule(arguments.k, stopping="none"), Sampling(0.95, 0.95, 4096, arguments.seed)
        )
        choices, num_full = asyncio.run(in_full(judge, problems))
        for how in AGGREGATIONS:
            # "last" asks for the last steps alone.
            num_needed = num_full
            if how == "last":
                num_needed = arguments.k * sum(len(set(candidates)) for _, candidates in problems)
            for wave in arguments.waves:
                chosen, num_drawn, num_waves = asyncio.run(raced(judge, engine, problems, how, wave))
                equal = sum(one == other for one, other in zip(chosen, choices[how], strict=True))
                print(
                    f"{name:<12}{how:<13}{wave:>5}{num_drawn:>10,}{num_needed:>9,}{num_drawn / num_needed:>8.1%}"
                    f"{num_waves:>8.1f}  {equal}/{len(problems)}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
