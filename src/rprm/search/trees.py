"""Search trees as they are stored: every step that a policy proposed, what was known of its reward, what became of it.

A tree holds all that its search read from policy and rewarder, so that the search can be run again from it
(`tests/search/replay.py`). The texts of analyses are left out unless asked for: a thousand of them are megabytes.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from rprm.benchmarks.mathematics import ProblemRow
from rprm.errors import CorruptRun
from rprm.records import Analysis, Probability, Record
from rprm.search.racing import Aggregation, Bounds, aggregate

#: The parent of a first step.
ROOT = -1

#: What became of a step. "kept": the search went on from it, or could have. "finished": kept, and it ends its solution.
#: "pruned": other steps scored higher. "dropped": it says nothing new, and was not judged.
Fate = Literal["kept", "finished", "pruned", "dropped"]

#: Why a tree ended. "finished": it has as many solutions as its beam is wide. "rounds", "tokens": a limit. "dead end":
#: the policy could not go on from any step.
EndReason = Literal["finished", "rounds", "tokens", "dead end"]

Count = Annotated[int, Field(ge=1)]


class Strategy(Record):
    """How a search spends its samples. `rprm.search.guided` has the strategies that have names.

    Attributes:
        num_trees: independent trees a problem has.
        beam_size: steps that a tree goes on from, and solutions that it ends with.
        width: next steps sampled for each of them.
        aggregation: how the rewards of its steps become the score of a path.
        max_rounds: the most steps of a solution.
        max_solution_tokens: a solution of so many tokens that has not ended is given up; None for no limit.
        wave: most analyses to draw at once while a choice is open (see `race`). None judges everything in full, with
            the same choices.
    """

    name: str
    num_trees: Count
    beam_size: Count
    width: Count
    aggregation: Aggregation
    max_rounds: Count
    max_solution_tokens: Count | None = None
    wave: Count | None

    @property
    def num_samples(self) -> int:
        """Next steps that a tree samples in a round while none of its solutions is finished."""
        return self.beam_size * self.width

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.num_trees > 1 and self.beam_size > 1:
            raise ValueError(f"{self.num_trees} trees with a beam of {self.beam_size} each: one of the two must be 1")
        return self


class SearchNode(Record):
    """A proposed step: one for all samples that read alike after the same steps and ended alike.

    Attributes:
        id: its place among the nodes of its problem.
        parent: the node of the step before it, `ROOT` for a first step.
        round: number of steps before it.
        step: its text; empty where the policy ended the solution after the step before.
        samples: numbers of the samples that gave it, as they were drawn.
        num_tokens, num_policy_tokens: of the first of them, and of all of them.
        ended: the policy ended its solution with it; None where the engine cannot tell.
        finish_reason: of the first sample; "length" where the step was cut.
        low, high: its reward lies between them; None stands below every number (no reward). From None to 1 where it was
            not judged.
        rewards: of all steps up to it, where the rewarder judges them together.
        p_yes: of the analyses that were drawn, None for one without a verdict. A classifier writes no analyses.
        num_judge_tokens: of these analyses.
        failure: why it can have no reward.
        analyses: the analyses themselves, where the run keeps them.
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
    """The search for one problem's solution, all its trees, and the solution that was chosen.

    Attributes:
        num_analyses: K; None where the rewarder writes no analyses.
        step_separator: what stands between two steps of a solution.
        nodes: a parent before its children.
        ends: why each tree ended.
        refusals: where the policy could not go on.
        finished: nodes that end a solution, in the order in which they were found.
        chosen: the last node of the chosen solution; None where there is not one step.
        fell_back: `chosen` ends no solution, or has no reward.
        text: the chosen solution.
        num_policy_tokens, num_judge_tokens: all tokens generated for this problem.
    """

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
        rewards = judged[-1].rewards
        lows, highs = rewards or [one.low for one in judged], rewards or [one.high for one in judged]
        return aggregate(lows, self.strategy.aggregation), aggregate(highs, self.strategy.aggregation)

    @model_validator(mode="after")
    def _check(self) -> Self:
        for place, node in enumerate(self.nodes):
            if wrong := self._wrong(place, node):
                raise ValueError(f"node {place}: {wrong}")
        if len(self.ends) != self.strategy.num_trees:
            raise ValueError(f"{len(self.ends)} trees have ended, and there are {self.strategy.num_trees}")
        if sorted(self.finished) != [node.id for node in self.nodes if node.fate == "finished"]:
            raise ValueError("`finished` does not name the nodes that are finished")
        kept = {node.id for node in self.nodes if node.fate in ("kept", "finished")}
        if self.chosen is not None and self.chosen not in kept:
            raise ValueError(f"the chosen node {self.chosen} is not one that was kept")
        if self.text != self.step_separator.join(() if self.chosen is None else self.steps(self.chosen)):
            raise ValueError("the text is not that of the chosen node's steps")
        return self

    def _wrong(self, place: int, node: SearchNode) -> str | None:
        if node.id != place:
            return f"its id is {node.id}"
        if not ROOT <= node.parent < place:
            return f"its parent {node.parent} does not stand before it"
        if not 0 <= node.tree < self.strategy.num_trees:
            return f"there is no tree {node.tree}"
        if node.parent == ROOT:
            return None if node.round == 0 else f"a first step in round {node.round}"
        parent = self.nodes[node.parent]
        if parent.tree != node.tree or parent.round + 1 != node.round:
            return f"its parent {node.parent} stands in tree {parent.tree}, round {parent.round}"
        return None if parent.fate == "kept" else f"its parent {node.parent} was {parent.fate}"


def parse_tree(value: Any) -> SearchTree:
    """Read a tree back from its JSON value.

    Raises:
        CorruptRun: it is none; the message says what is wrong.
    """
    try:
        return SearchTree.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        problem = value.get("problem") if isinstance(value, dict) else None
        name = problem.get("id") if isinstance(problem, dict) else None
        raise CorruptRun(
            f"search tree {name!r}: {place + ': ' if place else ''}{first['msg'].removeprefix('Value error, ')}; "
            "restore the file, or begin a new run folder"
        ) from None


@dataclass
class SearchTotals:
    """What a run of searches came to.

    Attributes:
        num_finished: problems whose chosen solution is finished.
        num_rounds: of all trees together.
        num_samples: next steps that the policy wrote.
        num_steps: different ones among them, as far as they were worth judging; `num_duplicates` more read like these.
        num_analyses_full: analyses that judging all these steps in full takes.
        num_fallbacks: steps kept although they have no reward.
        num_steps_unscored: steps that were judged and have no reward.
        failure: why the first unscored step has none.
    """

    num_problems: int = 0
    num_rejected: int = 0
    num_finished: int = 0
    num_rounds: int = 0
    num_samples: int = 0
    num_steps: int = 0
    num_duplicates: int = 0
    num_steps_unscored: int = 0
    num_steps_refused: int = 0
    num_analyses: int = 0
    num_analyses_full: int = 0
    num_analyses_without_verdict: int = 0
    num_fallbacks: int = 0
    num_dead_ends: int = 0
    num_out_of_rounds: int = 0
    num_out_of_tokens: int = 0
    num_policy_tokens: int = 0
    num_judge_tokens: int = 0
    num_generated_tokens: int = 0
    failure: str | None = None

    @property
    def nothing_judged(self) -> bool:
        """Whether there were steps to judge, and none of them has a reward."""
        return 0 < self.num_steps == self.num_steps_unscored

    def add(self, tree: SearchTree) -> None:
        self.num_problems += 1
        self.num_finished += bool(tree.finished)
        self.num_rounds += sum({node.tree: node.round + 1 for node in tree.nodes}.values())
        self.num_samples += sum(len(node.samples) for node in tree.nodes)
        self.num_fallbacks += sum(node.fell_back for node in tree.nodes)
        judgeable = [node for node in tree.nodes if node.step and node.fate != "dropped"]
        # Equal steps after equal steps are one, whichever tree they stand in.
        steps = {tree.steps(node.id): node for node in judgeable}
        self.num_steps += len(steps)
        self.num_duplicates += sum(len(node.samples) for node in judgeable) - len(steps)
        for node in steps.values():
            self.num_steps_unscored += node.failure is not None
            self.failure = self.failure or node.failure
            self.num_steps_refused += node.failure is not None and not node.p_yes
            self.num_analyses += len(node.p_yes)
            self.num_analyses_without_verdict += node.p_yes.count(None)
            if node.p_yes or node.failure is None:
                self.num_analyses_full += tree.num_analyses or 0
        self.num_dead_ends += tree.ends.count("dead end")
        self.num_out_of_rounds += tree.ends.count("rounds")
        self.num_out_of_tokens += tree.ends.count("tokens")
        self.num_policy_tokens += tree.num_policy_tokens
        self.num_judge_tokens += tree.num_judge_tokens
        self.num_generated_tokens += tree.num_policy_tokens + tree.num_judge_tokens

    def as_dict(self) -> dict[str, int]:
        return {name: value for name, value in asdict(self).items() if name != "failure"}
