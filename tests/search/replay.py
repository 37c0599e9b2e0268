"""Searching a stored tree again: the same algorithm, fed with what the tree holds; the same tree must come out."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from rprm.aggregation import mean
from rprm.errors import RequestRefused, RprmError
from rprm.ledger import Ledger
from rprm.records import Analysis, Solution, SolutionReward, StepReward
from rprm.rewarders.rprm import Judge
from rprm.search.candidates import Continuation
from rprm.search.guided import ROOT, GuidedSearch, SearchNode, SearchTree
from rprm.search.racing import Steps
from rprm.stopping import StoppingRule


def replay(tree: SearchTree) -> SearchTree:
    """Search again with the stored steps and analyses in place of the models.

    Raises:
        RprmError: the search asks for something that the tree does not hold.
    """
    policy: Any = StoredPolicy(tree)
    rewarder: Any = StoredRewards(tree) if tree.num_analyses is None else StoredJudge(tree)
    kept = any(node.analyses for node in tree.nodes)
    return asyncio.run(GuidedSearch(policy, rewarder, tree.strategy, keep_analyses=kept).solve(tree.problem))


def differences(tree: SearchTree, other: SearchTree) -> list[str]:
    """Where two trees of a problem part, in words: fields of nodes, then fields of the whole."""
    found = []
    for node, its_other in zip(tree.nodes, other.nodes, strict=False):
        found += [f"node {node.id}: {difference}" for difference in _fields(node, its_other)]
    if len(tree.nodes) != len(other.nodes):
        found.append(f"{len(tree.nodes)} nodes -> {len(other.nodes)}")
    return found + _fields(tree.model_copy(update={"nodes": ()}), other.model_copy(update={"nodes": ()}))


def _fields(one: Any, other: Any) -> list[str]:
    pairs = {name: (getattr(one, name), getattr(other, name)) for name in type(one).model_fields}
    return [f"{name}: {old!r:.80} -> {new!r:.80}" for name, (old, new) in pairs.items() if old != new]


class StoredPolicy:
    """A policy that writes what it wrote."""

    def __init__(self, tree: SearchTree) -> None:
        self.template = SimpleNamespace(step_separator=tree.step_separator)
        self._continuations: dict[tuple[Steps, int], Continuation] = {}
        self._num_samples = tree.strategy.num_samples
        for node in tree.nodes:
            rest = node.num_policy_tokens - node.num_tokens
            for place, sample in enumerate(node.samples):
                # Of the samples after the first only the sum of tokens is known, and only the sum is used.
                num_tokens = node.num_tokens if place == 0 else rest if place == 1 else 0
                self._continuations[_before(tree, node.parent), sample] = Continuation(
                    text=node.step, num_tokens=num_tokens, ended=node.ended, finish_reason=node.finish_reason
                )
        self._refusals = {(_before(tree, one.parent), one.tree): one.reason for one in tree.refusals}

    async def next_step(
        self, problem: str, steps: Sequence[str], sample: int, ledger: Ledger | None = None
    ) -> Continuation:
        steps = tuple(steps)
        if (found := self._continuations.get((steps, sample))) is not None:
            return found
        if (reason := self._refusals.get((steps, sample // self._num_samples))) is not None:
            raise RequestRefused(reason)
        raise RprmError(f"the tree holds no sample {sample} of a step after {len(steps)} steps")


class StoredJudge(Judge):
    """A judge that gives the analyses it gave."""

    def __init__(self, tree: SearchTree) -> None:
        assert tree.num_analyses is not None
        # What a search needs of a judge; there is no engine and no prompt.
        self.threshold = 0.5
        self.rule = StoppingRule(tree.num_analyses, stopping="none")
        self._nodes = _judged(tree)
        self._analyses = {
            steps: node.analyses or tuple(_analysis(node, sample) for sample in range(len(node.p_yes)))
            for steps, node in self._nodes.items()
        }
        self._failures = {
            id(self._analyses[steps][0]): node.failure for steps, node in self._nodes.items() if node.p_yes
        }

    @property
    def concurrency(self) -> int:
        return 1

    async def analyse(
        self, problem: str, steps: Sequence[str], step_index: int, samples: range, ledger: Ledger | None = None
    ) -> list[Analysis]:
        steps = tuple(steps[: step_index + 1])
        node = self._nodes.get(steps)
        if node is not None and node.failure is not None and not node.p_yes:
            raise RequestRefused(node.failure)
        if node is None or samples.stop > len(node.p_yes):
            raise RprmError(f"the tree holds no analysis {samples.stop - 1} of a step after {step_index} steps")
        return list(self._analyses[steps][samples.start : samples.stop])

    def reward(self, step_index: int, analyses: Sequence[Analysis]) -> StepReward:
        reward = mean([analysis.p_yes for analysis in analyses if analysis.p_yes is not None])
        failure = None if reward is not None else self._failures[id(analyses[0])]
        return StepReward(
            step_index=step_index, reward=reward, vote=None, analyses=tuple(analyses), failure=failure or ""
        )


class StoredRewards:
    """A rewarder that judges solutions whole, as it judged them."""

    threshold = 0.5
    concurrency = 1

    def __init__(self, tree: SearchTree) -> None:
        self._nodes = _judged(tree)

    async def judge(self, solution: Solution, ledger: Ledger | None = None) -> SolutionReward:
        node = self._nodes.get(solution.steps)
        if node is None or len(node.rewards) != len(solution.steps):
            raise RprmError(f"the tree holds no rewards of a solution of {len(solution.steps)} steps that it judged")
        steps = tuple(
            StepReward(step_index=index, reward=reward, vote=None, failure=node.failure if reward is None else None)
            for index, reward in enumerate(node.rewards)
        )
        return SolutionReward(id=solution.id, num_steps=len(steps), first_error=None, steps=steps)


def _before(tree: SearchTree, parent: int) -> Steps:
    return tree.steps(parent) if parent != ROOT else ()


def _judged(tree: SearchTree) -> dict[Steps, SearchNode]:
    """Nodes by their steps. Where several trees have the same ones, each has all that is known of them."""
    return {tree.steps(node.id): node for node in tree.nodes if node.step and node.fate != "dropped"}


def _analysis(node: SearchNode, sample: int) -> Analysis:
    p_yes = node.p_yes[sample]
    return Analysis(
        text="",
        verdict=None if p_yes is None else p_yes >= 0.5,
        p_yes=p_yes,
        p_yes_source=None if p_yes is None else "logprobs",
        # Of single analyses the tokens are not known, and only their sum is used.
        num_tokens=node.num_judge_tokens if sample == 0 else 0,
        finish_reason="",
    )
