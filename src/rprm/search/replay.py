"""Running a stored search again from what it read: the same tree must come out.

That holds a stored run against the algorithm: whoever changes the one, by an edit of a file or a change of the code, is
told where they part.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Self

from rprm.errors import RequestRefused, RprmError
from rprm.ledger import Ledger
from rprm.records import Analysis, Solution, SolutionReward, StepReward
from rprm.rewarders.base import StepRewarder, first_error
from rprm.rewarders.rprm import Judge
from rprm.search.contenders import StepScores
from rprm.search.guided import search_tree
from rprm.search.policy import Continuation
from rprm.search.trees import ROOT, SearchNode, SearchTree
from rprm.stopping import StoppingRule

Steps = tuple[str, ...]


def replay(tree: SearchTree) -> SearchTree:
    """Search again with the stored steps and analyses in place of the models.

    Returns:
        The new tree: equal to the stored one, unless one of them was changed.

    Raises:
        RprmError: the search asks for something that the tree does not hold.
    """
    rewarder: StepRewarder = _StoredRewards(tree) if tree.num_analyses is None else _StoredJudge(tree)
    return asyncio.run(
        search_tree(
            tree.problem,
            tree.strategy,
            _StoredSteps(tree),
            StepScores(rewarder, tree.problem.problem),
            step_separator=tree.step_separator,
            keep_analyses=any(node.analyses for node in tree.nodes),
        )
    )


def differences(tree: SearchTree, other: SearchTree) -> list[str]:
    """Where two trees of a problem part, in words: fields of nodes, then fields of the whole."""
    found = []
    for node, its_other in zip(tree.nodes, other.nodes, strict=False):
        found += [f"node {node.id}: {difference}" for difference in _fields(node, its_other)]
    if len(tree.nodes) != len(other.nodes):
        found.append(f"{len(tree.nodes)} nodes -> {len(other.nodes)}")
    return found + _fields(tree, other, leave_out=("nodes",))


def _fields(one: Any, other: Any, leave_out: Sequence[str] = ()) -> list[str]:
    names = [name for name in type(one).model_fields if name not in leave_out]
    return [
        f"{name}: {getattr(one, name)!r:.80} -> {getattr(other, name)!r:.80}"
        for name in names
        if getattr(one, name) != getattr(other, name)
    ]


class _StoredSteps:
    """A policy that writes what it wrote."""

    def __init__(self, tree: SearchTree) -> None:
        self._continuations: dict[tuple[Steps, int], Continuation] = {}
        self._refusals: dict[tuple[Steps, int], str] = {}
        self._num_samples = tree.strategy.num_samples
        for node in tree.nodes:
            before = _before(tree, node)
            rest = node.num_policy_tokens - node.num_tokens
            for place, sample in enumerate(node.samples):
                # Of the samples after the first only the sum of tokens is known, and only the sum is used.
                num_tokens = node.num_tokens if place == 0 else rest if place == 1 else 0
                self._continuations[before, sample] = Continuation(
                    text=node.step, num_tokens=num_tokens, ended=node.ended, finish_reason=node.finish_reason
                )
        for refusal in tree.refusals:
            steps = tree.steps(refusal.parent) if refusal.parent != ROOT else ()
            self._refusals[steps, refusal.tree] = refusal.reason

    async def next_step(
        self, problem: str, steps: Sequence[str], sample: int, ledger: Ledger | None = None
    ) -> Continuation:
        steps = tuple(steps)
        if (found := self._continuations.get((steps, sample))) is not None:
            return found
        if (reason := self._refusals.get((steps, sample // self._num_samples))) is not None:
            raise RequestRefused(reason)
        raise RprmError(f"the tree holds no sample {sample} of a step after {len(steps)} steps")


class _StoredJudge(Judge):
    """A judge that gives the analyses it gave."""

    def __init__(self, tree: SearchTree) -> None:
        assert tree.num_analyses is not None
        # What a search needs of a judge; there is no engine and no prompt.
        self.rule = StoppingRule(tree.num_analyses, stopping="none")
        self._nodes = _judged(tree)
        self._analyses = {
            steps: node.analyses or tuple(_analysis(node, sample) for sample in range(len(node.p_yes)))
            for steps, node in self._nodes.items()
        }
        self._failures = {
            id(self._analyses[steps][0]): node.failure for steps, node in self._nodes.items() if node.p_yes
        }

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

    def _why_unscored(self, analyses: Sequence[Analysis]) -> str:
        return self._failures[id(analyses[0])] or ""


class _StoredRewards:
    """A rewarder that judges solutions whole, as it judged them."""

    threshold = 0.5
    concurrency = 1

    def __init__(self, tree: SearchTree) -> None:
        self._nodes = _judged(tree)

    def in_full(self) -> Self:
        return self

    def is_wrong(self, step: StepReward) -> bool:
        return step.reward is not None and step.reward < self.threshold

    async def start(self) -> dict[str, Any]:
        return {}

    async def judge(self, solution: Solution, ledger: Ledger | None = None) -> SolutionReward:
        node = self._nodes.get(solution.steps)
        if node is None or len(node.rewards) != len(solution.steps):
            raise RprmError(f"the tree holds no rewards of a solution of {len(solution.steps)} steps that it judged")
        steps = tuple(
            StepReward(step_index=index, reward=reward, vote=None, failure=node.failure if reward is None else None)
            for index, reward in enumerate(node.rewards)
        )
        found = first_error(node.rewards, self.threshold)
        return SolutionReward(id=solution.id, num_steps=len(steps), first_error=found, steps=steps)

    async def judge_step(
        self, problem: str, steps: Sequence[str], step_index: int, ledger: Ledger | None = None
    ) -> StepReward:
        judged = await self.judge(Solution(id="", problem=problem, steps=tuple(steps[: step_index + 1])), ledger)
        return judged.steps[step_index]

    async def aclose(self) -> None:
        pass


def _before(tree: SearchTree, node: SearchNode) -> Steps:
    return tree.steps(node.parent) if node.parent != ROOT else ()


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
