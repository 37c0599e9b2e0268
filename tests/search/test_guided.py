"""Guided search against an independent search that judges everything in full, and at its edges."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rprm.aggregation import AGGREGATIONS, aggregate
from rprm.benchmarks.mathematics import Problem
from rprm.engines import Completion, Sampling
from rprm.engines.scripted import ScriptedEngine, ScriptedReply
from rprm.errors import RequestRefused, RprmError
from rprm.grading import final_answer
from rprm.ledger import Ledger
from rprm.prompts import PolicyTemplate, Prompt, load_template
from rprm.records import Solution, SolutionReward, StepReward
from rprm.rewarders.rprm import Judge
from rprm.search.candidates import Continuation
from rprm.search.guided import GuidedSearch, SearchTotals, SearchTree, Strategy, search_strategy
from rprm.stopping import StoppingRule
from tests.search.replay import differences, replay

PROBLEM = Problem(id="p", problem="What is one and one?", answer="2")
K = 4


def step(text: str, *, ended: bool | None = False, num_tokens: int = 1, finish_reason: str = "stop") -> Continuation:
    return Continuation(text=text, num_tokens=num_tokens, ended=ended, finish_reason=finish_reason)


@dataclass
class World:
    """A policy whose steps a function gives, by the steps so far and the sample's number."""

    propose: Callable[[tuple[str, ...], int], Continuation]
    template: PolicyTemplate = field(default_factory=lambda: PolicyTemplate(name="test", user="{{problem}}"))
    concurrency: int = 8

    async def start(self, *, stepwise: bool = False) -> dict[str, Any]:
        return {"model": "world"}

    async def next_step(
        self, problem: str, steps: Sequence[str], sample: int, ledger: Ledger | None = None
    ) -> Continuation:
        await asyncio.sleep(0)
        return self.propose(tuple(steps), sample)


@dataclass
class Table:
    """A rewarder that looks rewards up by the solution so far, as a classifier computes them: in one go."""

    rewards: Callable[[tuple[str, ...]], float | None]
    threshold: float = 0.5
    concurrency: int = 8
    judged: list[tuple[str, ...]] = field(default_factory=list)

    async def start(self) -> dict[str, Any]:
        return {"rewarder": "table"}

    async def judge(self, solution: Solution, ledger: Ledger | None = None) -> SolutionReward:
        await asyncio.sleep(0)
        self.judged.append(solution.steps)
        steps = []
        for index in range(len(solution.steps)):
            reward = self.rewards(solution.steps[: index + 1])
            failure = "refused" if reward is None else None
            steps.append(StepReward(step_index=index, reward=reward, vote=None, failure=failure))
        return SolutionReward(id=solution.id, num_steps=len(steps), first_error=-1, steps=tuple(steps))

    async def judge_step(
        self, problem: str, steps: Sequence[str], step_index: int, ledger: Ledger | None = None
    ) -> StepReward:
        raise NotImplementedError

    async def aclose(self) -> None:
        pass


def judge(reply: Callable[[Prompt, Sampling], ScriptedReply], k: int = K, **options: Any) -> Judge:
    engine = ScriptedEngine(reply=reply, logprobs=True, **options)
    rule = StoppingRule(k, stopping="none")
    return Judge(engine, load_template(None), rule, Sampling(0.95, 0.95, 100, seed=3), first_error_exit=False)


def solve(policy: Any, rewarder: Any, strategy: Strategy, problem: Problem = PROBLEM) -> SearchTree:
    return asyncio.run(GuidedSearch(policy, rewarder, strategy).solve(problem))


def kept(tree: SearchTree) -> set[tuple[int, tuple[str, ...], bool]]:
    """What the search held on to: tree, steps, and whether they are a solution."""
    return {
        (node.tree, tree.steps(node.id), node.fate == "finished")
        for node in tree.nodes
        if node.fate in ("kept", "finished")
    }


# --- an independent search ---------------------------------------------------------------------------------------


def reference(
    world: World, rewards: Callable[[tuple[str, ...]], float | None], strategy: Strategy
) -> tuple[set[tuple[int, tuple[str, ...], bool]], tuple[str, ...]]:
    """Tree after tree by plain loops, every reward in full. Returns what was kept, and the chosen steps."""

    def score(steps: tuple[str, ...]) -> float:
        path = [rewards(steps[: end + 1]) for end in range(len(steps))]
        value = aggregate(path, strategy.aggregation)
        return -1.0 if value is None else value

    held: set[tuple[int, tuple[str, ...], bool]] = set()
    # (round, tree, order in the round), steps
    solutions: list[tuple[tuple[int, int, int], tuple[str, ...]]] = []
    remains: list[tuple[tuple[int, int, int], tuple[str, ...]]] = []
    for number in range(strategy.num_trees):
        beam: list[tuple[tuple[int, int, int], tuple[str, ...], int]] = [((-1, number, 0), (), 0)]
        num_finished = 0
        for round_ in range(strategy.max_rounds):
            if not beam:
                break
            places = strategy.beam_size - num_finished
            count = places * strategy.width // len(beam)
            first = number * strategy.beam_size * strategy.width
            pool: list[tuple[int, int, tuple[str, ...], bool, int]] = []
            order = 0
            for when, steps, tokens in beam:
                times: dict[tuple[str, bool], int] = {}
                lengths: dict[tuple[str, bool], int] = {}
                for sample in range(first, first + count):
                    try:
                        drawn = world.propose(steps, sample)
                    except RequestRefused:
                        continue
                    ends = drawn.ended
                    if ends is None:
                        text = "\n\n".join([*steps, drawn.text])
                        ends = drawn.text == "" or final_answer(text) is not None
                    key = drawn.text, ends
                    times[key] = times.get(key, 0) + 1
                    lengths.setdefault(key, drawn.num_tokens)
                alive = [key for key in times if key[0] or (key[1] and steps)]
                new = [key for key in alive if not steps or key[0] != steps[-1]]
                for key in times:
                    if key in (new or alive):
                        grown = (*steps, key[0]) if key[0] else steps
                        pool.append((times[key], order, grown, key[1], tokens + lengths[key]))
                    order += 1
                if steps and not (new or alive):
                    remains.append((when, steps))
            pool.sort(key=lambda child: (-score(child[2]), -child[0], child[1]))
            beam = []
            for _, place, steps, ends, tokens in sorted(pool[:places], key=lambda child: child[1]):
                held.add((number, steps, ends))
                when = round_, number, place
                if ends:
                    num_finished += 1
                    solutions.append((when, steps))
                elif strategy.max_solution_tokens is not None and tokens >= strategy.max_solution_tokens:
                    remains.append((when, steps))
                else:
                    beam.append((when, steps, tokens))
        remains += [(when, steps) for when, steps, _ in beam if steps]
    endings = sorted(solutions or remains)
    return held, max(endings, key=lambda ending: score(ending[1]), default=((), ()))[1]


def random_world(seed: int, how_ended: str) -> World:
    """Few different texts, so that equal steps, repeated ones, empty ones and refusals all come."""

    def propose(steps: tuple[str, ...], sample: int) -> Continuation:
        if len(steps) >= 5 or random.Random(f"{seed} {steps}").random() < 0.05:
            raise RequestRefused("the context is full")
        draw = random.Random(f"{seed} {steps} {sample}")
        text = draw.choice(["", "a", "b", "c", "d é", "The answer is 2."])
        ended = {"told": draw.random() < 0.3, "untold": None}[how_ended]
        return step(text, ended=ended, num_tokens=draw.randint(0, 3))

    return World(propose)


def coarse(seed: int, lost: float) -> Callable[[Prompt, Sampling], ScriptedReply]:
    """Analyses with few different P(Yes), so that rewards are equal often, and with lost verdicts."""

    def reply(prompt: Prompt, sampling: Sampling) -> ScriptedReply:
        draw = random.Random(f"{seed} {sampling.seed} {prompt.text}")
        leaning = random.Random(f"{seed} {prompt.text}").random()
        p_yes = 1.0 if draw.random() < leaning else draw.choice([0.0, 0.5])
        return ScriptedReply("Looked at.", None if draw.random() < lost else p_yes, draw.randint(1, 9))

    return reply


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(
    st.integers(0, 10**6),
    st.sampled_from(["guided", "beam", "dvts"]),
    st.integers(1, 3),
    st.integers(1, 4),
    st.sampled_from(AGGREGATIONS),
    st.sampled_from(["told", "untold"]),
    st.sampled_from([0.0, 0.2, 1.0]),
    st.sampled_from([None, 1, 4]),
    st.integers(1, 5),
)
def test_as_an_independent_search_chooses(
    seed: int,
    name: Any,
    places: int,
    width: int,
    aggregation: Any,
    how_ended: str,
    lost: float,
    max_tokens: int | None,
    max_rounds: int,
) -> None:
    world = random_world(seed, how_ended)
    whole = judge(coarse(seed, lost))
    known: dict[tuple[str, ...], float | None] = {}

    def reward(steps: tuple[str, ...]) -> float | None:
        if steps not in known:
            known[steps] = asyncio.run(whole.judge_step(PROBLEM.problem, steps, len(steps) - 1)).reward
        return known[steps]

    trees = {}
    for racing in (True, False):
        strategy = search_strategy(
            name, n=places * width, width=width, aggregation=aggregation, max_rounds=max_rounds,
            max_solution_tokens=max_tokens, racing=racing, wave=3,
        )  # fmt: skip
        tree = trees[racing] = solve(world, judge(coarse(seed, lost)), strategy)
        held, chosen = reference(world, reward, strategy)
        assert kept(tree) == held
        assert (tree.steps(tree.chosen) if tree.chosen is not None else ()) == chosen
        assert tree.text == "\n\n".join(chosen)
        # What is known of a reward holds it.
        for node in tree.nodes:
            if node.step and node.fate != "dropped":
                full = reward(tree.steps(node.id))
                assert key(node.low) <= key(full) <= key(node.high)
                assert not node.is_settled or node.low == full
                assert racing or node.is_settled
        stored = SearchTree.model_validate_json(tree.model_dump_json())
        assert stored == tree
        assert differences(replay(stored), stored) == []
        assert replay(stored) == stored
    raced, full = trees[True], trees[False]
    assert [node.fell_back for node in raced.nodes] == [node.fell_back for node in full.nodes]
    assert (raced.ends, raced.fell_back) == (full.ends, full.fell_back)
    assert raced.num_judge_tokens <= full.num_judge_tokens


def key(value: float | None) -> float:
    return -1.0 if value is None else value


# --- small cases, by hand ----------------------------------------------------------------------------------------


def test_greedy_keeps_the_best_step_each_round() -> None:
    continuations = {
        (): ["a", "b"],
        ("b",): ["c", "d"],
        ("b", "c"): ["end"],
    }
    rewards = {("a",): 0.4, ("b",): 0.9, ("b", "c"): 0.6, ("b", "d"): 0.5, ("b", "c", "end"): 0.7}
    world = World(
        lambda steps, sample: step((texts := continuations[steps])[sample % len(texts)], ended=len(steps) == 2)
    )
    tree = solve(world, Table(rewards.__getitem__), search_strategy("guided", width=2))
    assert tree.text == "b\n\nc\n\nend"
    assert [(node.step, node.parent, node.round, node.fate) for node in tree.nodes] == [
        ("a", -1, 0, "pruned"),
        ("b", -1, 0, "kept"),
        ("c", 1, 1, "kept"),
        ("d", 1, 1, "pruned"),
        ("end", 2, 2, "finished"),
    ]
    # Both samples of the last round read alike, so that there was nothing to choose, and nothing to judge.
    assert tree.nodes[4].samples == (0, 1)
    assert (tree.nodes[4].low, tree.nodes[4].high) == (None, 1.0)
    assert (tree.ends, tree.finished, tree.chosen, tree.fell_back) == (("finished",), (4,), 4, False)
    assert tree.num_policy_tokens == 6
    assert replay(tree) == tree


def test_a_beam_spreads_its_samples_and_dvts_keeps_its_trees_apart() -> None:
    asked: list[tuple[tuple[str, ...], int]] = []

    def propose(steps: tuple[str, ...], sample: int) -> Continuation:
        asked.append((steps, sample))
        return step(f"{'ab'[sample % 2]}{len(steps)}", ended=len(steps) == 1)

    beam = solve(World(propose), Table(lambda steps: 0.5), search_strategy("beam", n=4, width=2))
    # Two places of width 2: four samples of the problem, then two of each step held.
    assert asked == [((), 0), ((), 1), ((), 2), ((), 3), (("a0",), 0), (("a0",), 1), (("b0",), 0), (("b0",), 1)]
    assert [beam.steps(node) for node in beam.finished] == [("a0", "a1"), ("a0", "b1")]
    asked.clear()
    trees = solve(World(propose), Table(lambda steps: 0.5), search_strategy("dvts", n=4, width=2))
    # Each tree has samples of its own, after the same steps too.
    assert asked == [((), 0), ((), 1), ((), 2), ((), 3), (("a0",), 0), (("a0",), 1), (("a0",), 2), (("a0",), 3)]
    assert trees.ends == ("finished", "finished")


def test_the_best_finished_solution_of_all_trees_is_chosen() -> None:
    # Tree 0 draws samples 0 and 1, tree 1 draws 2 and 3; rewards grow with the letter, but for "d", which is best last.
    rewards = {"a": 0.1, "b": 0.6, "c": 0.7, "d": 0.2}
    world = World(lambda steps, sample: step("abcd"[sample], ended=True))
    tree = solve(world, Table(lambda steps: rewards[steps[-1]]), search_strategy("dvts", n=4, width=2))
    assert [tree.steps(node) for node in tree.finished] == [("b",), ("c",)]
    assert tree.text == "c"
    # Of equal ones the earliest.
    tree = solve(world, Table(lambda steps: 0.5), search_strategy("dvts", n=4, width=2))
    assert [tree.steps(node) for node in tree.finished] == [("a",), ("c",)]
    assert tree.text == "a"


@pytest.mark.parametrize(
    ("aggregation", "chosen"),
    # After "a" (0.2) and "b" (0.9): min 0.2 against 0.5, last 0.8 against 0.5, product 0.16 against 0.45,
    # mean 0.5 against 0.7.
    [("min", "b\n\nb"), ("last", "a\n\na"), ("product", "b\n\nb"), ("mean", "b\n\nb")],
)
def test_aggregations(aggregation: Any, chosen: str) -> None:
    rewards = {("a",): 0.2, ("b",): 0.9, ("a", "aa"): 0.8, ("b", "bb"): 0.5}
    world = World(lambda steps, sample: step(steps[0] * 2 if steps else "ab"[sample], ended=bool(steps)))
    tree = solve(world, Table(rewards.__getitem__), search_strategy("dvts", n=2, width=1, aggregation=aggregation))
    assert tree.text.replace("aa", "a").replace("bb", "b") == chosen


def test_equal_scores_go_to_the_step_drawn_more_often_then_to_the_first() -> None:
    draws = ["x", "y", "z", "y"]
    world = World(lambda steps, sample: step(draws[sample], ended=True))
    assert solve(world, Table(lambda steps: 0.5), search_strategy("guided", width=4)).text == "y"
    assert solve(world, Table(lambda steps: 0.5), search_strategy("guided", width=3)).text == "x"


def test_without_rewards_the_policys_preference_decides_and_is_counted() -> None:
    draws = ["x", "y", "z", "y"]
    world = World(lambda steps, sample: step(f"{draws[sample]}{len(steps)}", ended=len(steps) == 1))
    tree = solve(world, Table(lambda steps: None), search_strategy("guided", width=4))
    assert tree.text == "y0\n\ny1"
    assert [node.step for node in tree.nodes if node.fell_back] == ["y0", "y1"]
    assert {node.failure for node in tree.nodes} == {"refused"}
    # A finished solution, and no other to choose it from: the choice itself fell back on nothing.
    assert not tree.fell_back
    assert replay(tree) == tree
    totals = SearchTotals()
    totals.add(tree)
    assert (totals.num_fallbacks, totals.num_steps_refused, totals.num_finished) == (2, 6, 1)


def test_equal_texts_are_one_step_under_one_parent_and_two_under_different_ones() -> None:
    world = World(lambda steps, sample: step("ab"[sample % 2] if not steps else "same", ended=bool(steps)))
    table = Table(lambda steps: 0.5)
    tree = solve(world, table, search_strategy("beam", n=4, width=2))
    assert [(node.step, node.parent, len(node.samples)) for node in tree.nodes] == [
        ("a", -1, 2), ("b", -1, 2), ("same", 0, 2), ("same", 1, 2),
    ]  # fmt: skip
    totals = SearchTotals()
    totals.add(tree)
    assert (totals.num_samples, totals.num_steps, totals.num_duplicates) == (8, 4, 4)


def test_an_ended_and_an_unended_step_of_the_same_text_are_two() -> None:
    world = World(lambda steps, sample: step("same" if not steps else "end", ended=sample == 1 or bool(steps)))
    table = Table(lambda steps: 0.5)
    tree = solve(world, table, search_strategy("beam", n=2, width=1))
    assert [(node.step, node.fate, node.samples) for node in tree.nodes] == [
        ("same", "kept", (0,)), ("same", "finished", (1,)), ("end", "finished", (0,)),
    ]  # fmt: skip


def test_equal_prefixes_of_different_trees_are_judged_once() -> None:
    world = World(lambda steps, sample: step("ab"[sample % 2] + str(len(steps)), ended=len(steps) == 2))
    rewarder = judge(coarse(1, 0.0))
    tree = solve(world, rewarder, search_strategy("dvts", n=6, width=2, racing=False))
    different = {tree.steps(node.id) for node in tree.nodes}
    assert len(tree.nodes) == 18
    assert len(different) == 6
    assert rewarder.engine.num_requests == 6 * K  # type: ignore[attr-defined]
    once = {tree.steps(node.id): node.num_judge_tokens for node in tree.nodes}
    assert tree.num_judge_tokens == sum(once.values())


class Slow(ScriptedEngine):
    """Takes random times."""

    def __init__(self, reply: Callable[[Prompt, Sampling], ScriptedReply], seed: int) -> None:
        super().__init__(reply=reply)
        self.times = random.Random(seed)

    async def generate(self, prompt: Prompt, sampling: Sampling) -> Completion:
        for _ in range(self.times.randrange(20)):
            await asyncio.sleep(0)
        return await super().generate(prompt, sampling)


@pytest.mark.parametrize("aggregation", ["last", "min"])
def test_trees_that_meet_at_a_step_draw_the_same_whichever_is_quicker(aggregation: Any) -> None:
    strategy = search_strategy("dvts", n=12, width=3, aggregation=aggregation, wave=2)
    num_shared = 0
    for seed in range(10):

        def propose(steps: tuple[str, ...], sample: int, seed: int = seed) -> Continuation:
            # Each tree proposes some of four steps: most steps are proposed by several trees.
            text = random.Random(f"{seed} {len(steps)} {sample}").choice("abcd")
            return step(text * (len(steps) + 1), ended=len(steps) == 2)

        found = []
        for times in range(4):
            rewarder = judge(coarse(seed, 0.0))
            rewarder.engine = Slow(coarse(seed, 0.0), times)
            found.append(solve(World(propose), rewarder, strategy))
        assert found == [found[0]] * 4
        assert replay(found[0]) == found[0]
        num_shared += len(found[0].nodes) - len({found[0].steps(node.id) for node in found[0].nodes})
    assert num_shared > 50


# --- where solutions and searches end ----------------------------------------------------------------------------


def test_where_the_engine_cannot_tell_an_announced_answer_ends_the_solution() -> None:
    texts = ["We add.", r"So it is \boxed{2}.", "More."]
    world = World(lambda steps, sample: step(texts[len(steps)], ended=None))
    tree = solve(world, Table(lambda steps: 0.5), search_strategy("guided", width=1))
    assert tree.text == "We add.\n\nSo it is \\boxed{2}."
    # Where it can tell, what it says holds.
    world = World(lambda steps, sample: step(texts[len(steps)], ended=len(steps) == 2))
    assert solve(world, Table(lambda steps: 0.5), search_strategy("guided", width=1)).text == "\n\n".join(texts)


@pytest.mark.parametrize("ended", [True, None])
def test_a_policy_with_nothing_to_add_ends_its_solution(ended: bool | None) -> None:
    world = World(lambda steps, sample: step("" if steps else "All of it.", ended=ended if steps else False))
    tree = solve(world, Table(lambda steps: 0.5), search_strategy("guided", width=2))
    assert tree.text == "All of it."
    assert tree.ends == ("finished",)
    (last,) = (node for node in tree.nodes if node.fate == "finished")
    assert (last.step, tree.steps(last.id), tree.score(last.id)) == ("", ("All of it.",), tree.score(0))
    assert replay(tree) == tree


def test_ending_competes_with_going_on_by_the_score_of_what_is_there() -> None:
    rewards = {("a",): 0.6, ("a", "good"): 0.9, ("a", "bad"): 0.1}
    table = Table(lambda steps: rewards[steps])
    for other, text in (("good", "a\n\ngood"), ("bad", "a")):
        world = World(
            lambda steps, sample, other=other: step("a")
            if not steps
            else step("", ended=True) if sample == 0 else step(other, ended=True)
        )  # fmt: skip
        assert solve(world, table, search_strategy("guided", width=2)).text == text


def test_an_empty_step_that_did_not_end_and_an_empty_solution_are_dropped() -> None:
    world = World(lambda steps, sample: step("" if sample == 0 else "a", ended=sample == 1 and bool(steps)))
    tree = solve(world, Table(lambda steps: 0.5), search_strategy("guided", width=2))
    assert [node.fate for node in tree.nodes] == ["dropped", "kept", "dropped", "finished"]
    # The repetition of "a" was all there was.
    assert tree.text == "a\n\na"
    nothing = solve(
        World(lambda steps, sample: step("", ended=True)), Table(lambda steps: 0.5), search_strategy("beam")
    )
    assert (nothing.text, nothing.chosen, nothing.ends, nothing.fell_back) == ("", None, ("dead end",), True)
    assert replay(nothing) == nothing


def test_a_step_said_again_stands_back_for_its_siblings() -> None:
    table = Table(lambda steps: 0.9 if steps[-1] == "a" else 0.1)
    world = World(lambda steps, sample: step("ab"[sample] if steps else "a", ended=len(steps) == 1))
    tree = solve(world, table, search_strategy("guided", width=2))
    assert tree.text == "a\n\nb"
    assert [(node.step, node.fate) for node in tree.nodes][1:] == [("a", "dropped"), ("b", "finished")]


def test_a_cut_step_is_a_step_and_says_so() -> None:
    world = World(
        lambda steps, sample: step("It goes on and", finish_reason="length" if not steps else "stop", ended=bool(steps))
    )
    tree = solve(world, Table(lambda steps: 0.5), search_strategy("guided", width=1))
    assert [node.finish_reason == "length" for node in tree.nodes] == [True, False]


def refuse(after: int) -> Callable[[tuple[str, ...], int], Continuation]:
    def propose(steps: tuple[str, ...], sample: int) -> Continuation:
        if len(steps) == after:
            raise RequestRefused("the context is full")
        return step(f"{len(steps)}.{sample}")

    return propose


def test_a_dead_end_keeps_what_there_is() -> None:
    tree = solve(World(refuse(2)), Table(lambda steps: 0.5), search_strategy("guided", width=2))
    assert tree.ends == ("dead end",)
    assert tree.text == "0.0\n\n1.0"
    assert (tree.finished, tree.fell_back) == ((), True)
    assert [(refusal.parent, refusal.reason) for refusal in tree.refusals] == [(2, "the context is full")]
    assert replay(tree) == tree
    at_once = solve(World(refuse(0)), Table(lambda steps: 0.5), search_strategy("dvts", n=4, width=2))
    assert (at_once.nodes, at_once.text, at_once.ends) == ((), "", ("dead end", "dead end"))
    totals = SearchTotals()
    totals.add(at_once)
    assert (totals.num_dead_ends, totals.num_finished, totals.num_rounds) == (2, 0, 0)


def test_a_beam_goes_on_without_a_step_that_leads_nowhere() -> None:
    def propose(steps: tuple[str, ...], sample: int) -> Continuation:
        if steps == ("a",):
            raise RequestRefused("no more of this")
        return step("ab"[sample % 2] if not steps else f"{len(steps)}.{sample}", ended=len(steps) == 2)

    tree = solve(World(propose), Table(lambda steps: 0.5), search_strategy("beam", n=4, width=2))
    # The place of "a" is free from the second round on: "b" and what follows share four samples.
    assert [tree.steps(node) for node in tree.finished] == [("b", "1.0", "2.0"), ("b", "1.0", "2.1")]
    assert tree.ends == ("finished",)
    assert replay(tree) == tree


def test_limits() -> None:
    world = World(lambda steps, sample: step(f"{len(steps)}", num_tokens=3))
    by_rounds = solve(world, Table(lambda steps: 0.5), search_strategy("guided", width=2, max_rounds=2))
    assert (by_rounds.ends, by_rounds.text, by_rounds.num_rounds) == (("rounds",), "0\n\n1", 2)
    # 3 tokens a step: the third reaches 9, the first sum that is not below 7.
    by_tokens = solve(world, Table(lambda steps: 0.5), search_strategy("guided", width=2, max_solution_tokens=7))
    assert (by_tokens.ends, by_tokens.text) == (("tokens",), "0\n\n1\n\n2")
    assert by_tokens.fell_back
    for tree in (by_rounds, by_tokens):
        assert replay(tree) == tree
    totals = SearchTotals()
    totals.add(by_rounds)
    totals.add(by_tokens)
    assert (totals.num_out_of_rounds, totals.num_out_of_tokens, totals.num_problems) == (1, 1, 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "beam", "n": 6, "width": 4}, "n is 6 and the width 4; n must be a multiple of the width"),
        ({"name": "dvts", "n": 0}, "n is 0 and the width 4"),
        ({"name": "guided", "width": 0}, "the width 0"),
        ({"name": "guided", "max_rounds": 0}, "'max_rounds' must be greater"),
        ({"name": "guided", "max_solution_tokens": 0}, "'max_solution_tokens' must be greater"),
    ],
)
def test_strategies_that_make_no_sense(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(RprmError, match=message):
        search_strategy(**arguments)


def test_the_strategies_are_those_of_the_paper_and_of_search_and_learn() -> None:
    shapes = {
        name: (strategy.num_trees, strategy.beam_size, strategy.width, strategy.max_rounds, strategy.aggregation)
        for name in ("guided", "beam", "dvts")
        for strategy in [search_strategy(name)]  # type: ignore[arg-type]
    }
    assert shapes == {"guided": (1, 1, 8, 30, "last"), "beam": (1, 1, 4, 40, "last"), "dvts": (1, 1, 4, 40, "last")}
    assert search_strategy("beam", n=16).beam_size == 4
    assert search_strategy("dvts", n=16).num_trees == 4
    # Two analyses at once for each next step of a round of a tree.
    waves = [search_strategy("guided").wave, search_strategy("beam", n=16).wave, search_strategy("dvts", n=16).wave]
    assert waves == [16, 32, 8]
    assert search_strategy("guided", wave=3).wave == 3
    assert search_strategy("guided", racing=False).wave is None
