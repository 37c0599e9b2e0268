"""Guided search: a policy proposes next steps, their rewards choose among them (R-PRM, arXiv 2503.21295, section 4).

One algorithm, three strategies. A problem has independent trees. In each round of a tree the policy samples next steps
after every step that the beam holds; those that read alike become one; the best of all are the next beam, and those of
them that end a solution are set aside. At the end the finished solution with the highest score is chosen.

Choices are by score; of equal scores the step that was drawn more often, then the one drawn first. No score (a step
that it depends on has no reward) stands below every number, so that where rewards say nothing the policy's own
preference decides. With racing, analyses are drawn only until a choice is certain.

What is drawn never depends on how long it takes: the trees of a problem go round by round together, and trees that may
meet at the same step, those with the same first step, judge one after the other.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from rprm.errors import RequestRefused, RprmError
from rprm.grading import final_answer
from rprm.jobs import Callbacks, Job, all_or_none, run_job
from rprm.ledger import Ledger, ScopedLedger
from rprm.rewarders.base import StepRewarder, reward_settings
from rprm.search.aggregation import Aggregation
from rprm.search.candidates import digest_of
from rprm.search.contenders import StepScores
from rprm.search.policy import Continuation, Policy
from rprm.search.problems import Problem, Problems
from rprm.search.racing import race, settle
from rprm.search.trees import (
    ROOT,
    EndReason,
    Fate,
    Refusal,
    SearchNode,
    SearchTotals,
    SearchTree,
    Strategy,
    parse_tree,
)

#: The stage's name in manifests.
STAGE = "search-guided"

#: Longest analysis in the paper's guided search, in tokens (NJUNLP/R-PRM, `src/reward-guide-search`).
ANALYSIS_TOKENS = 3072

#: Analyses to draw at once for each next step among which a choice is open. With K = 10, 2 instead of 1 are an eighth
#: more analyses; with many problems that takes a little less time all the same, with few a quarter less
#: (`perf/guided.py model`).
_WAVE_PER_STEP = 2

StrategyName = Literal["guided", "beam", "dvts"]

#: Samples, width and rounds of each strategy: R-PRM's guided search (NJUNLP/R-PRM, `src/reward-guide-search`); beam
#: search and DVTS as in search-and-learn (n = 4, beam width 4, 40 iterations).
_DEFAULTS: dict[StrategyName, tuple[int, int, int]] = {"guided": (8, 8, 30), "beam": (4, 4, 40), "dvts": (4, 4, 40)}


def search_strategy(
    name: StrategyName,
    *,
    n: int | None = None,
    width: int | None = None,
    aggregation: Aggregation = "last",
    max_rounds: int | None = None,
    max_solution_tokens: int | None = None,
    racing: bool = True,
    wave: int | None = None,
) -> Strategy:
    """One of the strategies that have names.

    Args:
        name: "guided": one tree with a beam of one. "beam": one tree with a beam of n / width. "dvts" (diverse verifier
            tree search): n / width trees with a beam of one each, which cannot crowd each other out.
        n: next steps sampled in a round; of "guided", the width.
        width: next steps sampled after each step of a beam.
        aggregation, max_rounds, max_solution_tokens: see `Strategy`.
        racing: judge no further than choices need; else everything in full, with the same choices.
        wave: most analyses to draw at once, for racing; by default two for each next step of a round.

    Raises:
        RprmError: n is no multiple of the width, or a number is below 1.
    """
    default_n, default_width, default_rounds = _DEFAULTS[name]
    width = default_width if width is None else width
    n = width if name == "guided" else default_n if n is None else n
    max_rounds = default_rounds if max_rounds is None else max_rounds
    limits = {"width": width, "max_rounds": max_rounds, "max_solution_tokens": max_solution_tokens, "wave": wave}
    for what, number in limits.items():
        if number is not None and number < 1:
            raise RprmError(f"{what} is {number}; give at least 1")
    if n < 1 or n % width:
        raise RprmError(f"n is {n} and the width {width}; n must be a multiple of the width")
    places = n // width
    beam_size = places if name == "beam" else 1
    if wave is None:
        wave = _WAVE_PER_STEP * beam_size * width
    return Strategy(
        name=name,
        num_trees=places if name == "dvts" else 1,
        beam_size=beam_size,
        width=width,
        aggregation=aggregation,
        max_rounds=max_rounds,
        max_solution_tokens=max_solution_tokens,
        wave=wave if racing else None,
    )


class GuidedSearch:
    """A policy, what rewards its steps, and how the two are brought together.

    Args:
        policy: proposes steps.
        rewarder: rewards them. Its own early stopping plays no part: racing takes its place.
        strategy: see `search_strategy`.
        keep_analyses: keep the analyses' texts in the trees.
    """

    def __init__(
        self, policy: Policy, rewarder: StepRewarder, strategy: Strategy, *, keep_analyses: bool = False
    ) -> None:
        self.policy = policy
        self.rewarder = rewarder
        self.strategy = strategy
        self.keep_analyses = keep_analyses

    @property
    def concurrency(self) -> int:
        """How many problems to keep under way: each has at least one request out at any time."""
        return max(self.policy.concurrency, self.rewarder.concurrency)

    async def start(self) -> dict[str, Any]:
        """Load the models; returns what the trees depend on, for the manifest.

        Raises:
            EngineError: a model cannot be loaded, or the policy's cannot continue a solution that is begun.
        """
        policy = await self.policy.start(stepwise=True)
        rewarder = await self.rewarder.start()
        return {
            "policy": policy,
            **reward_settings(rewarder),
            "strategy": self.strategy.model_dump(mode="json"),
            "keep_analyses": self.keep_analyses,
        }

    async def solve(self, problem: Problem, ledger: Ledger | None = None) -> SearchTree:
        """Search for one problem's solution.

        Raises:
            EngineUnavailable: an engine stopped answering.
        """
        return await search_tree(
            problem,
            self.strategy,
            self.policy,
            StepScores(self.rewarder, problem.problem, ledger),
            step_separator=self.policy.template.step_separator,
            ledger=ledger,
            keep_analyses=self.keep_analyses,
        )

    async def aclose(self) -> None:
        try:
            await self.policy.aclose()
        finally:
            await self.rewarder.aclose()


async def search_problems(
    search: GuidedSearch,
    problems: Problems,
    *,
    output: str | Path,
    settings: dict[str, Any] | None = None,
    strict: bool = False,
    callbacks: Callbacks | None = None,
) -> SearchTotals:
    """Search for the solutions of many problems, in a run folder; begun again, it goes on where it was.

    Args:
        search: how.
        problems: what to solve.
        output: the run folder. `results.jsonl` holds `SearchTree` in the order of the problems.
        settings: further settings that the results depend on.
        strict: stop at the first rejected row.
        callbacks: told of each result, in order.

    Returns:
        Totals over all sessions.

    Raises:
        RunError, InputError, EngineUnavailable: as for `judge_source`.
    """
    described = await search.start()
    totals = SearchTotals()
    stage = Job(
        name=STAGE, work=search.solve, parse=parse_tree, totals=totals, width=search.concurrency, noun="problem"
    )
    await run_job(
        stage, [*problems.rejected, *problems.problems], source=problems.source, output=output,
        settings={**(settings or {}), **described}, strict=strict, callbacks=callbacks,
    )  # fmt: skip
    return totals


class StepSource(Protocol):
    """What proposes steps: a policy, or a stored tree."""

    async def next_step(
        self, problem: str, steps: Sequence[str], sample: int, ledger: Ledger | None = None
    ) -> Continuation: ...


async def search_tree(
    problem: Problem,
    strategy: Strategy,
    policy: StepSource,
    scores: StepScores,
    *,
    step_separator: str,
    ledger: Ledger | None = None,
    keep_analyses: bool = False,
) -> SearchTree:
    """The search itself, whatever its steps and scores come from; see `GuidedSearch.solve`."""
    return await _Search(problem, strategy, policy, scores, step_separator, ledger).run(keep_analyses)


@dataclass(eq=False)
class _Node:
    """A node in the making; see `SearchNode`."""

    parent: _Node | None
    tree: int
    round: int
    id: int
    first: Continuation
    steps: tuple[str, ...]
    is_end: bool
    #: Of the whole path.
    num_path_tokens: int
    samples: list[int] = field(default_factory=list)
    num_policy_tokens: int = 0
    fate: Fate = "pruned"
    fell_back: bool = False


@dataclass(eq=False)
class _Tree:
    number: int
    #: What the beam holds; None is the problem itself.
    active: list[_Node | None] = field(default_factory=lambda: [None])
    num_finished: int = 0
    end: EndReason | None = None

    @property
    def first_step(self) -> str | None:
        node = next((node for node in self.active if node is not None), None)
        return node.steps[0] if node else None


class _Search:
    """The search for one problem's solution."""

    def __init__(
        self,
        problem: Problem,
        strategy: Strategy,
        policy: StepSource,
        scores: StepScores,
        separator: str,
        ledger: Ledger | None,
    ) -> None:
        self.problem = problem
        self.strategy = strategy
        self.policy = policy
        self.scores = scores
        self.separator = separator
        self.ledger = ledger
        self.nodes: list[_Node] = []
        self.refusals: list[Refusal] = []
        self.finished: list[_Node] = []
        #: Kept steps from which a tree could or would not go on.
        self.stopped: list[_Node] = []

    async def run(self, keep_analyses: bool) -> SearchTree:
        trees = [_Tree(number) for number in range(self.strategy.num_trees)]
        for round_ in range(self.strategy.max_rounds):
            growing = [tree for tree in trees if tree.end is None]
            if not growing:
                break
            drawn = await all_or_none(self._propose(tree) for tree in growing)
            together: dict[str | None, list[tuple[_Tree, list[_Node]]]] = {}
            for tree, proposals in zip(growing, drawn, strict=True):
                children = [
                    child
                    for parent, proposed in zip(tree.active, proposals, strict=True)
                    for child in self._children(tree, round_, parent, proposed)
                ]
                together.setdefault(tree.first_step, []).append((tree, children))
            await all_or_none(map(self._select_in_turn, together.values()))
        for tree in trees:
            if tree.end is None:
                tree.end = "rounds"
                self.stopped += [node for node in tree.active if node is not None]
        return await self._finish([tree.end for tree in trees if tree.end is not None], keep_analyses)

    async def _propose(self, tree: _Tree) -> list[list[Continuation | RequestRefused]]:
        """Sample next steps after each active one: the width for each open place of the beam, shared evenly."""
        num_places = self.strategy.beam_size - tree.num_finished
        count = num_places * self.strategy.width // len(tree.active)
        first = tree.number * self.strategy.num_samples
        samples = range(first, first + count)
        return await all_or_none(self._next_steps(node.steps if node else (), samples) for node in tree.active)

    async def _next_steps(self, steps: tuple[str, ...], samples: range) -> list[Continuation | RequestRefused]:
        return await all_or_none(self._next_step(steps, sample) for sample in samples)

    async def _next_step(self, steps: tuple[str, ...], sample: int) -> Continuation | RequestRefused:
        ledger = self.ledger and ScopedLedger(self.ledger, digest_of(steps))
        try:
            return await self.policy.next_step(self.problem.problem, steps, sample, ledger)
        except RequestRefused as error:
            return error

    def _children(
        self, tree: _Tree, round_: int, parent: _Node | None, proposed: Sequence[Continuation | RequestRefused]
    ) -> list[_Node]:
        """One node for all proposals that read and end alike; returns those that are worth judging."""
        before = parent.steps if parent else ()
        first_sample = tree.number * self.strategy.num_samples
        found: dict[tuple[str, bool], _Node] = {}
        refused: RequestRefused | None = None
        for sample, proposal in enumerate(proposed, first_sample):
            if isinstance(proposal, RequestRefused):
                refused = proposal
                continue
            steps = (*before, proposal.text) if proposal.text else before
            key = proposal.text, self._is_end(proposal, steps)
            node = found.get(key)
            if node is None:
                num_path_tokens = proposal.num_tokens + (parent.num_path_tokens if parent else 0)
                node = _Node(parent, tree.number, round_, len(self.nodes), proposal, steps, key[1], num_path_tokens)
                found[key] = node
                self.nodes.append(node)
            node.samples.append(sample)
            node.num_policy_tokens += proposal.num_tokens
        if refused is not None:
            self.refusals.append(Refusal(tree=tree.number, parent=parent.id if parent else ROOT, reason=str(refused)))
        # An empty step says nothing, unless it ends a solution; a step said again leads nowhere.
        alive = [node for node in found.values() if node.steps and (node.first.text or node.is_end)]
        fresh = [node for node in alive if not before or node.first.text != before[-1]]
        chosen = fresh or alive
        for node in found.values():
            if node not in chosen:
                node.fate = "dropped"
        if not chosen and parent is not None:
            self.stopped.append(parent)
        return chosen

    def _is_end(self, proposal: Continuation, steps: tuple[str, ...]) -> bool:
        """Whether a solution ends with this: as the engine says, else where it announces its answer or adds nothing."""
        if proposal.ended is not None:
            return proposal.ended
        return not proposal.text or final_answer(self.separator.join(steps), self.problem.rule) is not None

    async def _select_in_turn(self, growing: Iterable[tuple[_Tree, list[_Node]]]) -> None:
        for tree, children in growing:
            await self._select(tree, children)

    async def _select(self, tree: _Tree, children: list[_Node]) -> None:
        """Keep the best children, and set those aside that end a solution."""
        num_places = self.strategy.beam_size - tree.num_finished
        ranked = sorted(children, key=lambda node: -len(node.samples))
        kept = await self._best(ranked, num_places)
        for node in kept:
            node.fell_back = len(kept) < len(children) and self._has_no_score(node)
        limit = self.strategy.max_solution_tokens
        tree.active = []
        out_of_tokens = False
        for node in sorted(kept, key=lambda node: node.id):
            if node.is_end:
                node.fate = "finished"
                tree.num_finished += 1
                self.finished.append(node)
                continue
            node.fate = "kept"
            if limit is not None and node.num_path_tokens >= limit:
                out_of_tokens = True
                self.stopped.append(node)
            else:
                tree.active.append(node)
        if tree.num_finished == self.strategy.beam_size:
            tree.end = "finished"
        elif not tree.active:
            tree.end = "tokens" if out_of_tokens else "dead end"

    async def _best(self, nodes: Sequence[_Node], num_wanted: int) -> list[_Node]:
        """The best of several nodes, of equal ones the first."""
        contenders = [self.scores.solution(node.steps, self.strategy.aggregation) for node in nodes]
        if self.strategy.wave is None:
            await all_or_none(self.scores.judge_in_full(steps) for steps in {node.steps for node in nodes})
            best = await race(contenders, num_wanted)
        else:
            best = await race(contenders, num_wanted, wave=self.strategy.wave)
        if len(best) < len(nodes):
            # Where nothing else has a score, whether these have decides nothing, but is to be told.
            await all_or_none(settle(contenders[index]) for index in best if contenders[index].bounds[0] is None)
        return [nodes[index] for index in best]

    def _has_no_score(self, node: _Node) -> bool:
        return self.scores.solution(node.steps, self.strategy.aggregation).bounds == (None, None)

    async def _finish(self, ends: list[EndReason], keep_analyses: bool) -> SearchTree:
        endings = self.finished or self.stopped
        # In the order in which they were found, whichever tree was quicker.
        endings.sort(key=lambda node: node.id)
        chosen = (await self._best(endings, 1))[0] if endings else None
        steps = chosen.steps if chosen else ()
        nodes = tuple(self._record(node, keep_analyses) for node in self.nodes)
        tokens = {node.steps: record.num_judge_tokens for node, record in zip(self.nodes, nodes, strict=True)}
        return SearchTree(
            problem=self.problem,
            strategy=self.strategy,
            num_analyses=self.scores.num_analyses,
            step_separator=self.separator,
            nodes=nodes,
            ends=tuple(ends),
            refusals=tuple(self.refusals),
            finished=tuple(node.id for node in endings if self.finished),
            chosen=chosen.id if chosen else None,
            fell_back=not self.finished or (len(endings) > 1 and chosen is not None and self._has_no_score(chosen)),
            text=self.separator.join(steps),
            num_policy_tokens=sum(node.num_policy_tokens for node in self.nodes),
            # Equal steps after equal steps share their analyses.
            num_judge_tokens=sum(tokens.values()),
        )

    def _record(self, node: _Node, keep_analyses: bool) -> SearchNode:
        record = SearchNode(
            id=node.id,
            parent=node.parent.id if node.parent else ROOT,
            tree=node.tree,
            round=node.round,
            step=node.first.text,
            samples=tuple(node.samples),
            num_tokens=node.first.num_tokens,
            num_policy_tokens=node.num_policy_tokens,
            ended=node.first.ended,
            finish_reason=node.first.finish_reason,
            fate=node.fate,
            fell_back=node.fell_back,
        )
        if not node.first.text or node.fate == "dropped":
            return record
        step = self.scores.step(node.steps)
        low, high = step.bounds
        reward = step.reward
        if reward is None:
            return record
        together = () if self.scores.num_analyses else self.scores.rewards(node.steps)
        return record.model_copy(
            update={
                "low": low,
                "high": high,
                "rewards": tuple(one.reward for one in together),
                "p_yes": tuple(analysis.p_yes for analysis in reward.analyses),
                "num_judge_tokens": sum(analysis.num_tokens for analysis in reward.analyses),
                "failure": reward.failure if high is None else None,
                "analyses": reward.analyses if keep_analyses else (),
            }
        )
