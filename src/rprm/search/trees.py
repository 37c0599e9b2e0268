"""Search trees as they are stored: every step that a policy proposed, what was known of its reward, what became of it.

A tree holds all that its search read from policy and rewarder: `tests/search/replay.py` searches again from it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Self

from pydantic import Field, PositiveInt, model_validator

from rprm.benchmarks.mathematics import ProblemRow
from rprm.records import Analysis, Probability, Record
from rprm.search import RunTotals, counted
from rprm.search.racing import Aggregation, Bounds, aggregate

#: The parent of a first step.
ROOT = -1

#: What became of a step. "finished": kept, and it ends its solution. "pruned": other steps scored higher. "dropped": it
#: says nothing new, and was not judged.
Fate = Literal["kept", "finished", "pruned", "dropped"]

#: Why a tree ended. "finished": it has as many solutions as its beam is wide. "rounds", "tokens": a limit. "dead end":
#: the policy could not go on from any step.
EndReason = Literal["finished", "rounds", "tokens", "dead end"]


class Strategy(Record):
    """How a search spends its samples: `num_trees` with `beam_size` steps that each goes on from (and solutions that it
    ends with), `width` next steps sampled for each of them, a score by `aggregation`. A solution of
    `max_solution_tokens` that has not ended is given up. `wave`: see `race`; None judges everything in full, with the
    same choices."""

    name: str
    num_trees: PositiveInt
    beam_size: PositiveInt
    width: PositiveInt
    aggregation: Aggregation
    max_rounds: PositiveInt
    max_solution_tokens: PositiveInt | None = None
    wave: PositiveInt | None

    @property
    def num_samples(self) -> int:
        """Next steps that a tree samples in a round while none of its solutions is finished."""
        return self.beam_size * self.width


class SearchNode(Record):
    """A proposed step: one for all samples that read alike after the same steps and ended alike.

    Attributes:
        id: its place among the nodes of its problem; `parent` is that of the step before it, `ROOT` for a first step.
        step: its text; empty where the policy ended the solution after the step before.
        num_tokens, num_policy_tokens: of the first of its samples, and of all.
        ended: the policy ended its solution with it; None where the engine cannot tell.
        low, high: its reward lies between them; None stands below every number (no reward).
        rewards: of all steps up to it, where the rewarder judges them together.
        p_yes: of the analyses that were drawn, None for one without a verdict.
        fell_back: it was kept although it has no reward: no step of its round that was left out has one either.
    """

    id: int
    parent: int
    tree: int
    round: int
    step: str
    samples: tuple[int, ...] = Field(min_length=1)
    num_tokens: int
    num_policy_tokens: int
    ended: bool | None
    finish_reason: str
    low: Probability | None = None
    high: Probability | None = 1.0
    rewards: tuple[Probability | None, ...] = ()
    p_yes: tuple[Probability | None, ...] = ()
    num_judge_tokens: int = 0
    failure: str | None = None
    analyses: tuple[Analysis, ...] = ()
    fate: Fate
    fell_back: bool = False

    @property
    def is_settled(self) -> bool:
        """Whether its reward is known: it is `low`."""
        return self.low == self.high

    @property
    def is_cut(self) -> bool:
        return self.finish_reason == "length"


class PolicyRefusal(Record):
    """The policy could not be asked for steps after `parent` (mostly: the solution fills its context)."""

    tree: int
    parent: int
    reason: str


class SearchTree(ProblemRow):
    """The search for one problem's solution: `nodes`, a parent before its children; `finished`, those that end a
    solution, as they were found; `chosen`, the last node of the chosen solution, which is `text` (None where there
    is not one step); `fell_back`: that one ends no solution, or has no reward. `num_analyses` is K, None without
    analyses."""

    strategy: Strategy
    num_analyses: int | None
    step_separator: str
    nodes: tuple[SearchNode, ...]
    ends: tuple[EndReason, ...]
    refusals: tuple[PolicyRefusal, ...] = ()
    finished: tuple[int, ...]
    chosen: int | None
    fell_back: bool
    text: str
    num_policy_tokens: int
    num_judge_tokens: int

    @property
    def num_rounds(self) -> int:
        """Rounds of the longest tree."""
        return max((node.round + 1 for node in self.nodes), default=0)

    def path(self, node: int) -> list[SearchNode]:
        """The nodes from a first step to this one."""
        found = []
        while node != ROOT:
            found.append(self.nodes[node])
            node = found[-1].parent
        return found[::-1]

    def steps(self, node: int) -> tuple[str, ...]:
        """The solution up to this node."""
        return tuple(one.step for one in self.path(node) if one.step)

    def score(self, node: int) -> Bounds:
        """Bounds of the score of the path to this node."""
        judged = [one for one in self.path(node) if one.step]
        lows, highs = (judged[-1].rewards or [getattr(one, end) for one in judged] for end in ("low", "high"))
        return aggregate(lows, self.strategy.aggregation), aggregate(highs, self.strategy.aggregation)

    @model_validator(mode="after")
    def _check(self) -> Self:
        for place, node in enumerate(self.nodes):
            if node.id != place or not ROOT <= node.parent < place or not 0 <= node.tree < self.strategy.num_trees:
                raise ValueError(f"node {place}: wrong id {node.id}, parent {node.parent} or tree {node.tree}")
            parent = self.nodes[node.parent]
            before = (node.tree, -1, "kept") if node.parent == ROOT else (parent.tree, parent.round, parent.fate)
            if before != (node.tree, node.round - 1, "kept"):
                raise ValueError(f"node {place}: it does not follow its parent {node.parent}")
        kept = [node.id for node in self.nodes if node.fate in ("kept", "finished")]
        finished = [node.id for node in self.nodes if node.fate == "finished"]
        if len(self.ends) != self.strategy.num_trees or sorted(self.finished) != finished:
            raise ValueError("`ends` or `finished` does not name what has ended")
        if self.chosen is not None and self.chosen not in kept:
            raise ValueError(f"the chosen node {self.chosen} is not one that was kept")
        if self.text != self.step_separator.join(() if self.chosen is None else self.steps(self.chosen)):
            raise ValueError("the text is not that of the chosen node's steps")
        return self


@dataclass
class SearchTotals(RunTotals):
    """What a run of searches came to. Equal steps after equal steps of a problem are one."""

    num_problems: int = counted("problems")
    num_rejected: int = counted("rows rejected")
    num_finished: int = counted("problems with a finished solution")
    num_rounds: int = counted("rounds, of all trees together")
    num_samples: int = counted("next steps sampled")
    num_steps: int = counted("different steps to judge")
    num_duplicates: int = counted("steps that read like another one, which was judged for both")
    num_steps_unscored: int = counted("steps that could not be judged")
    num_steps_refused: int = 0
    num_analyses: int = counted("analyses")
    num_analyses_full: int = counted("judging every different step in full")
    num_analyses_without_verdict: int = counted("analyses without a verdict")
    num_fallbacks: int = counted("steps kept without a reward to go by")
    num_dead_ends: int = counted("trees that came to a dead end")
    num_out_of_rounds: int = counted("trees that ran out of rounds")
    num_out_of_tokens: int = counted("trees that ran out of tokens")
    num_policy_tokens: int = counted("tokens of the policy")
    num_judge_tokens: int = counted("tokens of analyses")
    num_generated_tokens: int = 0
    failure: str | None = None

    def add(self, tree: SearchTree) -> None:
        self.num_problems += 1
        self.num_finished += bool(tree.finished)
        self.num_rounds += sum({node.tree: node.round + 1 for node in tree.nodes}.values())
        self.num_samples += sum(len(node.samples) for node in tree.nodes)
        self.num_fallbacks += sum(node.fell_back for node in tree.nodes)
        judgeable = [node for node in tree.nodes if node.step and node.fate != "dropped"]
        steps = {tree.steps(node.id): node for node in judgeable}
        self.num_duplicates += sum(len(node.samples) for node in judgeable) - len(steps)
        self.add_steps(len(steps), tree.num_analyses or 0, ((node.failure, node.p_yes) for node in steps.values()))
        self.num_dead_ends += tree.ends.count("dead end")
        self.num_out_of_rounds += tree.ends.count("rounds")
        self.num_out_of_tokens += tree.ends.count("tokens")
        self.num_policy_tokens += tree.num_policy_tokens
        self.num_judge_tokens += tree.num_judge_tokens
        self.num_generated_tokens += tree.num_policy_tokens + tree.num_judge_tokens
