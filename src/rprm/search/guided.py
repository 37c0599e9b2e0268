"""Guided search: a policy proposes next steps, their rewards choose among them (R-PRM, arXiv 2503.21295, section 4).

In each round of a tree the policy samples next steps after every step that the beam holds; those that read alike become
one; the best of all are the next beam, and those of them that end a solution leave it. Choices are by score, of equal
ones the step drawn more often, then the one drawn first; no score stands below every number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Unpack

from pydantic import ValidationError

from rprm.benchmarks.mathematics import Problem, Problems
from rprm.errors import RequestRefused, RprmError
from rprm.grading import final_answer
from rprm.jobs import Job, JobOptions, all_or_none, run_job
from rprm.ledger import Ledger
from rprm.reading import Rejected, explained
from rprm.rewarders.base import StepRewarder, reward_settings
from rprm.search.policy import Continuation, Policy
from rprm.search.racing import WAVE, Aggregation, Bounds, Steps, StepScores, digest_of, race, settle
from rprm.search.trees import ROOT, EndReason, Fate, PolicyRefusal, SearchNode, SearchTotals, SearchTree, Strategy

#: The job's name in manifests.
GUIDED = "search-guided"

#: Longest analysis in the paper's guided search, in tokens (NJUNLP/R-PRM, `src/reward-guide-search`).
ANALYSIS_TOKENS = 3072

#: Analyses to draw at once for each next step among which a choice is open. With K = 10, 2 instead of 1 are an eighth
#: more analyses, in a quarter less time where problems are few (`perf/guided.py model`).
_WAVE_PER_STEP = 2

StrategyName = Literal["guided", "beam", "dvts"]
_Proposal = Continuation | RequestRefused

#: Samples, width and rounds of each strategy: R-PRM's guided search (NJUNLP/R-PRM, `src/reward-guide-search`); beam
#: search and DVTS as in search-and-learn (n = 4, beam width 4, 40 iterations).
_DEFAULTS: dict[StrategyName, tuple[int, int, int]] = {"guided": (8, 8, 30), "beam": (4, 4, 40), "dvts": (4, 4, 40)}


def search_strategy(
    name: StrategyName, *, n: int | None = None, width: int | None = None, aggregation: Aggregation = "last",
    max_rounds: int | None = None, max_solution_tokens: int | None = None, racing: bool = True, wave: int | None = None,
) -> Strategy:  # fmt: skip
    """One of the strategies that have names; for what is not said here see `Strategy`.

    Args:
        name: "guided": one tree with a beam of one. "beam": one tree with a beam of n / width. "dvts" (diverse verifier
            tree search): n / width trees with a beam of one each, which cannot crowd each other out.
        n: next steps sampled in a round; of "guided", the width.
        racing: judge no further than choices need; else everything in full, with the same choices.
        wave: for racing; by default two for each next step of a round.

    Raises:
        RprmError: n is no multiple of the width, or a number is below 1.
    """
    default_n, default_width, default_rounds = _DEFAULTS[name]
    width = default_width if width is None else width
    n = width if name == "guided" else default_n if n is None else n
    if min(n, width) < 1 or n % width:
        raise RprmError(f"n is {n} and the width {width}; n must be a multiple of the width, and both at least 1")
    beam_size = n // width if name == "beam" else 1
    wave = _WAVE_PER_STEP * beam_size * width if wave is None else wave
    try:
        return Strategy(
            name=name, num_trees=n // width if name == "dvts" else 1, beam_size=beam_size, width=width,
            aggregation=aggregation, max_rounds=default_rounds if max_rounds is None else max_rounds,
            max_solution_tokens=max_solution_tokens, wave=wave if racing else None,
        )  # fmt: skip
    except ValidationError as error:
        raise RprmError(explained(error)) from None


@dataclass(frozen=True)
class GuidedSearch:
    """A policy proposes steps, a rewarder rewards them: its own early stopping plays no part, racing takes its place.
    `keep_analyses` keeps the analyses' texts in the trees."""

    policy: Policy
    rewarder: StepRewarder
    strategy: Strategy
    keep_analyses: bool = False

    @property
    def concurrency(self) -> int:
        # Problems under way: each has at least one request out at any time.
        return max(self.policy.concurrency, self.rewarder.concurrency)

    async def start(self) -> dict[str, Any]:
        """Load the models; returns what the trees depend on, for the manifest. Errors are those of `Policy.start`."""
        return {
            "policy": await self.policy.start(stepwise=True),
            **reward_settings(await self.rewarder.start()),
            "strategy": self.strategy.model_dump(mode="json"),
            "keep_analyses": self.keep_analyses,
        }

    async def solve(self, problem: Problem, ledger: Ledger | None = None) -> SearchTree:
        """Search for one problem's solution; `EngineUnavailable` where an engine stopped answering."""
        return await _Search(self, problem, ledger).run()

    async def aclose(self) -> None:
        try:
            await self.policy.aclose()
        finally:
            await self.rewarder.aclose()


async def search_problems(
    search: GuidedSearch, problems: Problems, *, settings: dict[str, Any] | None = None, **run: Unpack[JobOptions]
) -> SearchTotals:
    """Search for the solutions of many problems, in a run folder: rows of `SearchTree`. Started again it resumes.
    `settings`, `run`, totals and errors are as for `judge_source`."""
    settings = (settings or {}) | await search.start()
    totals = SearchTotals()
    job = Job(GUIDED, search.solve, SearchTree.model_validate, totals, search.concurrency, noun="problem")
    rows: list[Problem | Rejected] = [*problems.rejected, *problems.problems]
    await run_job(job, rows, source=problems.source, settings=settings, **run)
    return totals


@dataclass(eq=False)
class _Branch:
    """A node in the making; see `SearchNode`."""

    id: int
    parent: int
    tree: int
    round: int
    first: Continuation
    steps: Steps
    is_end: bool
    num_path_tokens: int
    samples: list[int] = field(default_factory=list)
    num_policy_tokens: int = 0
    fate: Fate = "pruned"
    fell_back: bool = False


@dataclass
class _Tree:
    """A tree and what its beam holds: at first the problem itself."""

    number: int
    active: list[_Branch]
    num_finished: int = 0
    end: EndReason | None = None


class _Search:
    """The search for one problem's solution. What is drawn never depends on how long it takes: trees go round by round
    together, and those that may meet at the same step, having the same first one, judge one after the other."""

    def __init__(self, search: GuidedSearch, problem: Problem, ledger: Ledger | None) -> None:
        self.search, self.strategy, self.problem, self.ledger = search, search.strategy, problem, ledger
        self.scores = StepScores(search.rewarder, problem.problem, ledger)
        self.separator = search.policy.template.step_separator
        self.nodes: list[_Branch] = []
        self.refusals: list[PolicyRefusal] = []
        self.finished: list[_Branch] = []
        #: Kept steps from which a tree could or would not go on.
        self.stopped: list[_Branch] = []

    async def run(self) -> SearchTree:
        nothing = Continuation(text="", num_tokens=0, ended=None, finish_reason="")
        numbers = range(self.strategy.num_trees)
        trees = [_Tree(number, [_Branch(ROOT, ROOT, number, -1, nothing, (), False, 0)]) for number in numbers]
        for _ in range(self.strategy.max_rounds):
            growing = [tree for tree in trees if tree.end is None]
            drawn = await all_or_none(map(self._propose, growing))
            together: dict[Steps, list[tuple[_Tree, list[_Branch]]]] = {}
            for tree, proposals in zip(growing, drawn, strict=True):
                pairs = zip(tree.active, proposals, strict=True)
                children = [child for parent, proposed in pairs for child in self._children(tree, parent, proposed)]
                together.setdefault(tree.active[0].steps[:1], []).append((tree, children))
            await all_or_none(map(self._select, together.values()))
        for tree in trees:
            if tree.end is None:
                tree.end = "rounds"
                self.stopped += [node for node in tree.active if node.id != ROOT]
        return await self._finish([tree.end for tree in trees if tree.end is not None])

    async def _propose(self, tree: _Tree) -> list[list[_Proposal]]:
        """Sample next steps after each active one: the width for each open place of the beam, shared evenly."""
        num_places = self.strategy.beam_size - tree.num_finished
        count = num_places * self.strategy.width // len(tree.active)
        samples = [tree.number * self.strategy.num_samples + place for place in range(count)]
        drawn = await all_or_none(self._next_step(node.steps, sample) for node in tree.active for sample in samples)
        return [drawn[start : start + count] for start in range(0, len(drawn), count)]

    async def _next_step(self, steps: Steps, sample: int) -> _Proposal:
        ledger = self.ledger and self.ledger.scoped(digest_of(steps))
        try:
            return await self.search.policy.next_step(self.problem.problem, steps, sample, ledger)
        except RequestRefused as error:
            return error

    def _children(self, tree: _Tree, parent: _Branch, proposed: Sequence[_Proposal]) -> list[_Branch]:
        """One node for all proposals that read and end alike; returns those that are worth judging."""
        found: dict[tuple[str, bool], _Branch] = {}
        refused: RequestRefused | None = None
        for sample, proposal in enumerate(proposed, tree.number * self.strategy.num_samples):
            if isinstance(proposal, RequestRefused):
                refused = proposal
                continue
            text, is_end = proposal.text, proposal.ended
            steps = (*parent.steps, text) if text else parent.steps
            if is_end is None:
                # The engine cannot tell: a solution ends where it announces its answer, or adds nothing.
                is_end = not text or final_answer(self.separator.join(steps), self.problem.rule) is not None
            if (node := found.get((text, is_end))) is None:
                length = parent.num_path_tokens + proposal.num_tokens
                place = (len(self.nodes), parent.id, tree.number, parent.round + 1)
                node = found[text, is_end] = _Branch(*place, proposal, steps, is_end, length)
                self.nodes.append(node)
            node.samples.append(sample)
            node.num_policy_tokens += proposal.num_tokens
        if refused:
            self.refusals.append(PolicyRefusal(tree=tree.number, parent=parent.id, reason=str(refused)))
        # An empty step says nothing, unless it ends a solution; a step said again leads nowhere.
        alive = [node for node in found.values() if node.steps and (node.first.text or node.is_end)]
        chosen = [node for node in alive if parent.steps[-1:] != (node.first.text,)] or alive
        for node in found.values():
            if node not in chosen:
                node.fate = "dropped"
        if not chosen and parent.id != ROOT:
            self.stopped.append(parent)
        return chosen

    async def _select(self, growing: Sequence[tuple[_Tree, list[_Branch]]]) -> None:
        """Keep the best children of each tree in turn; those that end a solution leave the beam."""
        limit = self.strategy.max_solution_tokens
        for tree, children in growing:
            ranked = sorted(children, key=lambda node: -len(node.samples))
            kept = await self._best(ranked, self.strategy.beam_size - tree.num_finished)
            tree.active = []
            out_of_tokens = False
            for node in sorted(kept, key=lambda node: node.id):
                node.fell_back = len(kept) < len(children) and self._score(node) == (None, None)
                node.fate = "finished" if node.is_end else "kept"
                if node.is_end:
                    tree.num_finished += 1
                    self.finished.append(node)
                elif limit is not None and node.num_path_tokens >= limit:
                    out_of_tokens = True
                    self.stopped.append(node)
                else:
                    tree.active.append(node)
            if tree.num_finished == self.strategy.beam_size:
                tree.end = "finished"
            elif not tree.active:
                tree.end = "tokens" if out_of_tokens else "dead end"

    async def _best(self, nodes: Sequence[_Branch], num_wanted: int) -> list[_Branch]:
        """The best of several nodes, of equal ones the first."""
        contenders = [self.scores.solution(node.steps, self.strategy.aggregation) for node in nodes]
        if self.strategy.wave is None:
            await all_or_none(map(self.scores.judge_in_full, dict.fromkeys(node.steps for node in nodes)))
        best = await race(contenders, num_wanted, wave=self.strategy.wave or WAVE)
        if len(best) < len(nodes):
            # Where nothing else has a score, whether these have decides nothing, but is to be told.
            unsure = dict.fromkeys(contenders[index] for index in best if contenders[index].bounds[0] is None)
            await all_or_none(map(settle, unsure))
        return [nodes[index] for index in best]

    def _score(self, node: _Branch) -> Bounds:
        return self.scores.solution(node.steps, self.strategy.aggregation).bounds

    async def _finish(self, ends: list[EndReason]) -> SearchTree:
        # In the order in which they were found, whichever tree was quicker.
        endings = sorted(self.finished or self.stopped, key=lambda node: node.id)
        chosen = (await self._best(endings, 1))[0] if endings else None
        nodes = tuple(map(self._record, self.nodes))
        # Equal steps after equal steps share their analyses.
        tokens = {node.steps: record.num_judge_tokens for node, record in zip(self.nodes, nodes, strict=True)}
        chose_blindly = len(endings) > 1 and chosen is not None and self._score(chosen) == (None, None)
        return SearchTree(
            problem=self.problem, strategy=self.strategy, num_analyses=self.scores.num_analyses,
            step_separator=self.separator, nodes=nodes, ends=tuple(ends), refusals=tuple(self.refusals),
            finished=tuple(node.id for node in endings if self.finished), chosen=chosen.id if chosen else None,
            fell_back=not self.finished or chose_blindly, text=self.separator.join(chosen.steps if chosen else ()),
            num_policy_tokens=sum(node.num_policy_tokens for node in self.nodes),
            num_judge_tokens=sum(tokens.values()),
        )  # fmt: skip

    def _record(self, node: _Branch) -> SearchNode:
        known = {name: value for name, value in vars(node).items() if name in SearchNode.model_fields}
        known |= node.first.model_dump(include={"num_tokens", "ended", "finish_reason"})
        if node.first.text and node.fate != "dropped" and (reward := self.scores.reward(node.steps)) is not None:
            low, high = self.scores.solution(node.steps, "last").bounds
            together = () if self.scores.num_analyses else self.scores.rewards(node.steps)
            known |= {
                "low": low, "high": high, "failure": reward.failure if high is None else None,
                "rewards": tuple(one.reward for one in together),
                "p_yes": tuple(analysis.p_yes for analysis in reward.analyses),
                "num_judge_tokens": sum(analysis.num_tokens for analysis in reward.analyses),
                "analyses": reward.analyses if self.search.keep_analyses else (),
            }  # fmt: skip
        return SearchNode(step=node.first.text, **known)
