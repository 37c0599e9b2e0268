"""Guided search: a policy proposes next steps, their rewards choose among them (R-PRM, arXiv 2503.21295, section 4).

In each round of a tree the policy samples next steps after every step that the beam holds; those that read alike become
one; the best of all are the next beam, and those of them that end a solution leave it. Choices are by score, of equal
ones the step drawn more often, then the one drawn first; no score stands below every number. A stored tree holds all
that its search read from policy and rewarder: `tests/search/replay.py` searches again from it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import starmap
from typing import Any, Literal, Self, Unpack

from pydantic import Field, PositiveInt, model_validator

from rprm.aggregation import Aggregation, aggregate
from rprm.benchmarks.mathematics import Problem, ProblemRow, Problems
from rprm.cluster import Cluster
from rprm.errors import RequestRefused, RprmError
from rprm.grading import final_answer
from rprm.jobs import Job, JobOptions, all_or_none, run_job, started
from rprm.ledger import Ledger
from rprm.reading import checked
from rprm.records import Analysis, Probability, Record
from rprm.rewarders.base import StepRewarder, reward_settings
from rprm.search import RunTotals, counted
from rprm.search.candidates import Continuation, Policy
from rprm.search.racing import WAVE, Bounds, Steps, StepScores, digest_of, race, settle

#: The job's name in manifests.
GUIDED = "search-guided"

#: Longest analysis in the paper's guided search, in tokens (NJUNLP/R-PRM, `src/reward-guide-search`).
ANALYSIS_TOKENS = 3072

#: Analyses to draw at once for each next step among which a choice is open. With K = 10, 2 instead of 1 are an eighth
#: more analyses, in a quarter less time where problems are few (`perf/guided.py model`).
_WAVE_PER_STEP = 2

#: The parent of a first step.
ROOT = -1

#: What became of a step. "finished": kept, and it ends its solution. "pruned": other steps scored higher. "dropped": it
#: says nothing new, and was not judged.
Fate = Literal["kept", "finished", "pruned", "dropped"]

#: Why a tree ended. "finished": it has as many solutions as its beam is wide. "rounds", "tokens": a limit. "dead end":
#: the policy could not go on from any step.
EndReason = Literal["finished", "rounds", "tokens", "dead end"]

StrategyName = Literal["guided", "beam", "dvts"]
_Proposal = Continuation | RequestRefused

#: Samples, width and rounds of each strategy: R-PRM's guided search (NJUNLP/R-PRM, `src/reward-guide-search`); beam
#: search and DVTS as in search-and-learn (n = 4, beam width 4, 40 iterations).
_DEFAULTS: dict[StrategyName, tuple[int, int, int]] = {"guided": (8, 8, 30), "beam": (4, 4, 40), "dvts": (4, 4, 40)}


class Strategy(Record):
    """How a search spends its samples."""

    name: str
    num_trees: PositiveInt
    beam_size: PositiveInt  #: steps that a tree goes on from, and solutions that it ends with
    width: PositiveInt  #: next steps sampled for each of them
    aggregation: Aggregation
    max_rounds: PositiveInt
    max_solution_tokens: PositiveInt | None = None  #: a solution that has not ended by then is given up
    wave: PositiveInt | None  #: see `race`; None judges everything in full, with the same choices

    @property
    def num_samples(self) -> int:
        """Next steps that a tree samples in a round while none of its solutions is finished."""
        return self.beam_size * self.width


def search_strategy(
    name: StrategyName, *, n: int | None = None, width: int | None = None, aggregation: Aggregation = "last",
    max_rounds: int | None = None, max_solution_tokens: int | None = None, racing: bool = True, wave: int | None = None,
) -> Strategy:  # fmt: skip
    """A strategy by name: "guided" is one tree with a beam of one, "beam" one with a beam of n / width, "dvts" (diverse
    verifier tree search) n / width trees with a beam of one each, which cannot crowd each other out. `n` next steps are
    sampled in a round; of "guided", the width. `racing` judges no further than choices need, in a `wave` of two for
    each next step by default. An `RprmError` where n is no multiple of the width, or a number is below 1."""
    default_n, default_width, default_rounds = _DEFAULTS[name]
    width = default_width if width is None else width
    n = width if name == "guided" else default_n if n is None else n
    if min(n, width) < 1 or n % width:
        raise RprmError(f"n is {n} and the width {width}; n must be a multiple of the width, and both at least 1")
    beam_size = n // width if name == "beam" else 1
    wave = _WAVE_PER_STEP * beam_size * width if wave is None else wave
    return checked(Strategy, {
        "name": name, "num_trees": n // width if name == "dvts" else 1, "beam_size": beam_size, "width": width,
        "aggregation": aggregation, "max_rounds": default_rounds if max_rounds is None else max_rounds,
        "max_solution_tokens": max_solution_tokens, "wave": wave if racing else None,
    })  # fmt: skip


class SearchNode(Record):
    """A proposed step: one for all samples that read alike after the same steps and ended alike."""

    id: int  #: its place among the nodes of its problem
    parent: int  #: the id of the step before it, `ROOT` for a first step
    tree: int
    round: int
    step: str  #: empty where the policy ended the solution after the step before
    samples: tuple[int, ...] = Field(min_length=1)
    num_tokens: int  #: of the first of its samples
    num_policy_tokens: int  #: of all of them
    ended: bool | None  #: whether the policy ended its solution with it; None where the engine cannot tell
    finish_reason: str
    low: Probability | None = None  #: its reward lies between the two; None stands below every number (no reward)
    high: Probability | None = 1.0
    rewards: tuple[Probability | None, ...] = ()  #: of all steps up to it, where the rewarder judges them together
    p_yes: tuple[Probability | None, ...] = ()  #: of the analyses that were drawn, None for one without a verdict
    num_judge_tokens: int = 0
    failure: str | None = None
    analyses: tuple[Analysis, ...] = ()
    fate: Fate
    fell_back: bool = False  #: kept although it has no reward: no step of its round that was left out has one either

    @property
    def is_settled(self) -> bool:
        """Whether its reward is known: it is `low`."""
        return self.low == self.high


class PolicyRefusal(Record):
    """The policy could not be asked for steps after `parent` (mostly: the solution fills its context)."""

    tree: int
    parent: int
    reason: str


class SearchTree(ProblemRow):
    """The search for one problem's solution."""

    strategy: Strategy
    num_analyses: int | None  #: K; None without analyses
    step_separator: str
    nodes: tuple[SearchNode, ...]  #: a parent before its children
    ends: tuple[EndReason, ...]
    refusals: tuple[PolicyRefusal, ...] = ()
    finished: tuple[int, ...]  #: nodes that end a solution, as they were found
    chosen: int | None  #: the last node of the chosen solution; None where there is not one step
    fell_back: bool  #: the chosen one ends no solution, or has no reward
    text: str  #: the chosen solution
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
        finished = [node.id for node in self.nodes if node.fate == "finished"]
        if len(self.ends) != self.strategy.num_trees or sorted(self.finished) != finished:
            raise ValueError("`ends` or `finished` does not name what has ended")
        kept = [None, *(node.id for node in self.nodes if node.fate in ("kept", "finished"))]
        if self.chosen not in kept:
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
        if not tree.nodes and tree.refusals:
            self.failure = self.failure or f"the policy writes none: {tree.refusals[0].reason}"
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


@dataclass(frozen=True)
class GuidedSearch:
    """A policy proposes steps, a rewarder rewards them: its own early stopping plays no part, racing takes its place.
    `keep_analyses` keeps the analyses' texts in the trees."""

    policy: Policy
    rewarder: StepRewarder
    strategy: Strategy
    keep_analyses: bool = False

    async def start(self) -> dict[str, Any]:
        """Load the models; returns what the trees depend on, for the manifest. Errors are those of `Policy.start`."""
        return {
            "policy": await self.policy.start(stepwise=True),
            **reward_settings(await self.rewarder.start()),
            "strategy": self.strategy.model_dump(mode="json"),
            "keep_analyses": self.keep_analyses,
        }

    async def solve(
        self, problem: Problem, ledger: Ledger | None = None, *, on_step: Callable[[str], None] | None = None
    ) -> SearchTree:
        """Search for one problem's solution; `EngineUnavailable` where an engine stopped answering. `on_step` is called
        with each step that is kept for good, as soon as it is: where there is one tree with a beam of one."""
        is_greedy = self.strategy.num_trees == self.strategy.beam_size == 1
        return await _Search(self, problem, ledger, on_step if is_greedy else None).run()

    async def aclose(self) -> None:
        try:
            await self.policy.engine.aclose()
        finally:
            await self.rewarder.aclose()


async def search_problems(
    search: GuidedSearch, problems: Problems, *, settings: dict[str, Any] | None = None,
    cluster: Cluster | None = None, **run: Unpack[JobOptions],
) -> SearchTotals:  # fmt: skip
    """Search for the solutions of many problems, in a run folder: rows of `SearchTree`. Started again it resumes.
    `settings`, `run`, totals and errors are as for `run_job`."""
    totals = SearchTotals()
    # Problems under way: each has at least one request out at any time.
    width = max(search.policy.engine.concurrency, search.rewarder.concurrency)
    job = Job(GUIDED, search.solve, SearchTree.model_validate, totals, width, noun="problem")
    job, described = await started(job, search.start, cluster)
    settings = (settings or {}) | described
    await run_job(job, [*problems.rejected, *problems.problems], source=problems.source, settings=settings, **run)
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
    children: list[_Branch] = field(default_factory=list)
    num_finished: int = 0
    end: EndReason | None = None


class _Search:
    # What is drawn never depends on how long it takes: trees go round by round together, and those that may meet at the
    # same step, having the same first one, judge one after the other.
    def __init__(
        self, search: GuidedSearch, problem: Problem, ledger: Ledger | None, on_step: Callable[[str], None] | None
    ) -> None:
        self.on_step = on_step
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
        roots = [_Branch(ROOT, ROOT, number, -1, nothing, (), False, 0) for number in range(self.strategy.num_trees)]
        trees = [_Tree(root.tree, [root]) for root in roots]
        for _ in range(self.strategy.max_rounds):
            growing = [tree for tree in trees if tree.end is None]
            active = [(tree, node) for tree in growing for node in tree.active]
            drawn = await all_or_none(starmap(self._propose, active))
            for tree in growing:
                tree.children = []
            for (tree, node), proposed in zip(active, drawn, strict=True):
                tree.children += self._children(tree, node, proposed)
            together: defaultdict[Steps, list[_Tree]] = defaultdict(list)
            for tree in growing:
                together[tree.active[0].steps[:1]].append(tree)
            await all_or_none(map(self._select, together.values()))
        self.stopped += [node for tree in trees if tree.end is None for node in tree.active if node.id != ROOT]
        return await self._finish([tree.end or "rounds" for tree in trees])

    async def _propose(self, tree: _Tree, node: _Branch) -> list[_Proposal]:
        """Sample next steps after an active one: the width for each open place of the beam, shared evenly."""
        ledger = self.ledger and self.ledger.scoped(digest_of(node.steps))

        async def next_step(sample: int) -> _Proposal:
            try:
                return await self.search.policy.next_step(self.problem.problem, node.steps, sample, ledger)
            except RequestRefused as error:
                return error

        first, num_places = tree.number * self.strategy.num_samples, self.strategy.beam_size - tree.num_finished
        count = num_places * self.strategy.width // len(tree.active)
        return await all_or_none(map(next_step, range(first, first + count)))

    def _children(self, tree: _Tree, parent: _Branch, proposed: Sequence[_Proposal]) -> list[_Branch]:
        """One node for all proposals that read and end alike; returns those that are worth judging."""
        found: dict[tuple[str, bool], _Branch] = {}
        for sample, proposal in enumerate(proposed, tree.number * self.strategy.num_samples):
            if isinstance(proposal, RequestRefused):
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
        if refused := [str(one) for one in proposed if isinstance(one, RequestRefused)]:
            self.refusals.append(PolicyRefusal(tree=tree.number, parent=parent.id, reason=refused[-1]))
        # An empty step says nothing, unless it ends a solution; a step said again leads nowhere.
        alive = [node for node in found.values() if node.steps and (node.first.text or node.is_end)]
        chosen = [node for node in alive if parent.steps[-1:] != (node.first.text,)] or alive
        for node in found.values():
            if node not in chosen:
                node.fate = "dropped"
        if not chosen and parent.id != ROOT:
            self.stopped.append(parent)
        return chosen

    async def _select(self, growing: Sequence[_Tree]) -> None:
        """Keep the best children of each tree in turn; those that end a solution leave the beam."""
        limit = self.strategy.max_solution_tokens
        for tree in growing:
            ranked = sorted(tree.children, key=lambda node: -len(node.samples))
            kept = await self._best(ranked, self.strategy.beam_size - tree.num_finished)
            tree.active = []
            for node in sorted(kept, key=lambda node: node.id):
                node.fell_back = len(kept) < len(tree.children) and self._score(node) == (None, None)
                node.fate = "finished" if node.is_end else "kept"
                if self.on_step is not None and node.first.text:
                    self.on_step(node.first.text)
                if node.is_end:
                    tree.num_finished += 1
                    self.finished.append(node)
                elif limit is not None and node.num_path_tokens >= limit:
                    self.stopped.append(node)
                else:
                    tree.active.append(node)
            if tree.num_finished == self.strategy.beam_size:
                tree.end = "finished"
            elif not tree.active:
                tree.end = "tokens" if set(kept) & set(self.stopped) else "dead end"

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
