"""Labels without annotators: a policy completes each beginning of a solution, and answers tell what became of it.

A step is right where more than a share of the completions after it are right (Math-Shepherd, arXiv 2312.08935: where
any is). Completion j of a beginning depends on the problem, its steps, the seed and j alone, so that neither early
stopping nor resuming changes one, and solutions that begin alike share them.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal, Unpack

from pydantic import Field

from rprm.benchmarks.mathematics import Problem, ProblemRow
from rprm.cluster import Cluster
from rprm.data.solutions import ROLLOUTS, SOLUTIONS, LabelledSolution, SolvedProblem, write_labels
from rprm.data.stage_options import RolloutOptions
from rprm.errors import RequestRefused
from rprm.grading import AnswerPair, Grader, final_answer
from rprm.jobs import Job, JobOptions, all_or_none, run_job, started
from rprm.ledger import Ledger
from rprm.reading import Rejected, SourceInfo
from rprm.records import Count, Record
from rprm.runs import read_results
from rprm.search import RunTotals, counted
from rprm.search.candidates import Policy

Steps = tuple[str, ...]

#: What a completion came to. "cut": it was ended (by its longest length, or withheld) before it gave an answer.
#: "ungraded": whether its answer is right could not be told. Neither counts as wrong.
RolloutOutcome = Literal["right", "wrong", "no answer", "cut", "ungraded"]


class Rollout(Record):
    """A completion: the answer that the solution announces with it, and what that came to."""

    answer: str | None
    outcome: RolloutOutcome
    num_tokens: Count


class Beginning(Record):
    """The first `num_steps` steps of a solution (by its place in its row), and their completions in the order of their
    sample numbers. `failure` says why there are none."""

    solution: Count
    num_steps: Count
    rollouts: tuple[Rollout, ...] = Field(default=(), repr=False)
    failure: str | None = None

    @property
    def num_right(self) -> int:
        return sum(one.outcome == "right" for one in self.rollouts)

    @property
    def num_wrong(self) -> int:
        """Those without an answer too, which the policy ended itself."""
        return sum(one.outcome in ("wrong", "no answer") for one in self.rollouts)

    @property
    def share(self) -> float | None:
        """The share of right ones among those that came to something; None where none did."""
        num_graded = self.num_right + self.num_wrong
        return self.num_right / num_graded if num_graded else None


class RolledOut(ProblemRow):
    """A problem, its solutions with the labels that the completions give them, and the beginnings looked at."""

    solutions: tuple[LabelledSolution, ...]
    beginnings: tuple[Beginning, ...] = ()


def settled(num_right: int, num_wrong: int, num_left: int, above: float) -> bool | None:
    """Whether the share of right ones is above a share, whatever the completions left are: right, wrong or neither.
    None while that is open, or where nothing is left and none was right or wrong."""
    num_graded = num_right + num_wrong
    # Rounded once each: what is certain of the bounds is certain of the share.
    if num_right and num_right / (num_graded + num_left) > above:
        return True
    if num_graded and (num_right + num_left) / (num_graded + num_left) <= above:
        return False
    return None


def num_more(num_right: int, num_wrong: int, num_left: int, above: float) -> int:
    """The fewest completions that could settle it, if they are all right or all wrong; 0 where it is settled."""
    if settled(num_right, num_wrong, num_left, above) is not None:
        return 0
    for number in range(1, num_left):
        after = num_left - number
        could_be = (num_right + number, num_wrong, after), (num_right, num_wrong + number, after)
        if any(settled(*counts, above) is not None for counts in could_be):
            return number
    return num_left


@dataclass
class RolloutTotals(RunTotals):
    """What a run of rollouts came to."""

    num_problems: int = counted("problems")
    num_rejected: int = counted("rows rejected")
    num_without_gold: int = counted("problems without a reference answer: nothing can be told")
    num_solutions: int = counted("solutions")
    num_final_right: int = counted("solutions with the right final answer")
    num_final_wrong: int = counted("solutions with a wrong one")
    num_right: int = counted("solutions labelled right")
    num_wrong: int = counted("solutions labelled with their first error")
    num_unlabelled: int = counted("solutions whose first error is not known")
    num_unsolved: int = counted("of these, solutions of problems that the policy does not solve from the start")
    num_beginnings: int = counted("beginnings completed; the same steps of several solutions are one")
    num_refused: int = counted("beginnings refused, mostly for their length")
    num_completions: int = counted("completions")
    num_completions_full: int = counted("completing every step of every solution")
    num_completions_right: int = counted("right completions")
    num_completions_wrong: int = counted("wrong completions")
    num_without_answer: int = counted("completions that end without an answer: they count as wrong")
    num_cut: int = counted("completions cut off before an answer, which count as neither: raise --policy-max-tokens")
    num_ungraded: int = counted("completions whose grading came to no conclusion, which count as neither")
    num_generated_tokens: int = counted("tokens")
    failure: str | None = None
    per_beginning: int = 0  #: completions, if all are drawn; 0: no policy is asked
    above: float = 0.0

    @property
    def nothing_judged(self) -> bool:
        """Whether nothing is known of any solution."""
        return 0 < self.num_solutions == self.num_unlabelled and not self.num_final_right + self.num_final_wrong

    def add(self, row: RolledOut) -> None:
        self.num_problems += 1
        self.num_without_gold += row.problem.answer is None
        self.num_solutions += len(row.solutions)
        if row.problem.answer is None:
            self.failure = self.failure or f"problem {row.id!r} has no reference answer ('answer')"
        begun = {row.solutions[one.solution].steps[: one.num_steps]: one.share for one in row.beginnings}
        for solution in row.solutions:
            self.num_final_right += solution.final_answer_correct is True
            self.num_final_wrong += solution.final_answer_correct is False
            self.num_right += solution.label == -1
            self.num_wrong += solution.label is not None and solution.label >= 0
            self.num_unlabelled += solution.label is None
            if self.per_beginning and row.problem.answer is not None:
                first = begun.get(solution.steps[:1])
                is_first_wrong = solution.label is None and first is not None and first <= self.above
                self.num_unsolved += is_first_wrong and begun.get(()) is not None
                num_open = len(solution.steps) - (solution.final_answer_correct is not None)
                self.num_completions_full += num_open * self.per_beginning
        self.num_beginnings += len(row.beginnings)
        for beginning in row.beginnings:
            self.failure = self.failure or beginning.failure
            self.num_refused += beginning.failure is not None
            self.num_completions += len(beginning.rollouts)
            for one in beginning.rollouts:
                self.num_completions_right += one.outcome == "right"
                self.num_completions_wrong += one.outcome == "wrong"
                self.num_without_answer += one.outcome == "no answer"
                self.num_cut += one.outcome == "cut"
                self.num_ungraded += one.outcome == "ungraded"
                self.num_generated_tokens += one.num_tokens

    def as_dict(self) -> dict[str, int]:
        return {name: value for name, value in super().as_dict().items() if name.startswith("num_")}


@cache
def _grader() -> Grader:
    """That of this process."""
    return Grader()


async def graded(problem: Problem, text: str) -> tuple[str | None, bool | None]:
    """The answer that a solution announces, and whether it is the problem's: None where that could not be told, there
    is no answer, or none is known."""
    answer = await asyncio.to_thread(final_answer, text, problem.rule)
    if answer is None or problem.answer is None:
        return answer, None
    pair = AnswerPair(problem.answer, answer, problem.rule)
    (grade,) = await asyncio.to_thread(_grader().grade_all, [pair])
    return answer, grade.correct


@dataclass(eq=False)
class _Beginnings:
    """The beginnings of a problem's solutions, each completed when it is looked at first."""

    policy: Policy
    problem: Problem
    solutions: Sequence[Steps]
    options: RolloutOptions
    ledger: Ledger | None
    known: dict[Steps, Beginning] = field(default_factory=dict)

    def __post_init__(self) -> None:
        every = ((at, steps, end) for at, steps in enumerate(self.solutions) for end in range(len(steps) + 1))
        self._places: dict[Steps, tuple[int, int]] = {}
        for at, steps, end in every:
            self._places.setdefault(steps[:end], (len(self._places), at))
        self._locks: defaultdict[Steps, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def look(self, steps: Steps) -> tuple[bool | None, float | None]:
        """Whether the last of these steps is right (of none: the policy solves the problem), and, where all were drawn,
        the share of right completions after it: one of those drawn until it was settled would be biased."""
        async with self._locks[steps]:
            if steps not in self.known:
                self.known[steps] = await self._completed(steps)
        found = self.known[steps]
        if (share := found.share) is None:
            return None, None
        return share > self.options.above, share if len(found.rollouts) == self.options.num_completions else None

    async def _completed(self, steps: Steps) -> Beginning:
        place, solution = self._places[steps]
        found, total = Beginning(solution=solution, num_steps=len(steps)), self.options.num_completions
        while (num_left := total - len(found.rollouts)) > 0:
            wanted = num_left
            if not self.options.soft:
                wanted = num_more(found.num_right, found.num_wrong, num_left, self.options.above)
            first = len(found.rollouts)
            try:
                more = await all_or_none(self._one(steps, place, first + number) for number in range(wanted))
            except RequestRefused as error:
                return found.model_copy(update={"rollouts": (), "failure": str(error)})
            if not more:
                break
            found = found.model_copy(update={"rollouts": (*found.rollouts, *more)})
        return found

    async def _one(self, steps: Steps, place: int, sample: int) -> Rollout:
        ledger = None if self.ledger is None else self.ledger.scoped(str(place))
        made = await self.policy.solve(self.problem.problem, sample, ledger, begun=steps)
        answer, is_right = await graded(self.problem, made.text)
        outcome: RolloutOutcome = "ungraded"
        if answer is None:
            outcome = "no answer" if made.finish_reason == "stop" else "cut"
        elif is_right is not None:
            outcome = "right" if is_right else "wrong"
        return Rollout(answer=answer, outcome=outcome, num_tokens=made.num_tokens or 0)


@dataclass(frozen=True)
class Roller:
    """Labels the solutions of a problem. Without a policy, only their final answers are graded."""

    policy: Policy | None
    options: RolloutOptions

    async def label(self, row: SolvedProblem, ledger: Ledger | None = None) -> RolledOut:
        nothing = {"label": None, "soft": None, "final_answer_correct": None}
        solutions, beginnings = [one.model_copy(update=nothing) for one in row.solutions], list[Beginning]()
        if row.problem.answer is not None:
            separator = self.policy.template.step_separator if self.policy is not None else "\n\n"
            graded_all = await all_or_none(graded(row.problem, separator.join(one.steps)) for one in solutions)
            solutions = [
                one.model_copy(update={"final_answer_correct": is_right})
                for one, (_, is_right) in zip(solutions, graded_all, strict=True)
            ]
            if self.policy is not None:
                made = _Beginnings(self.policy, row.problem, [one.steps for one in solutions], self.options, ledger)
                has_answer = [answer is not None for answer, _ in graded_all]
                labelling = map(partial(self._labelled, made), solutions, has_answer)
                solutions = await all_or_none(labelling)
                beginnings = sorted(made.known.values(), key=lambda one: (one.solution, one.num_steps))
        return RolledOut(problem=row.problem, solutions=tuple(solutions), beginnings=tuple(beginnings))

    async def _labelled(self, made: _Beginnings, solution: LabelledSolution, has_answer: bool) -> LabelledSolution:
        """A solution with its label, as far as it has to be looked at for that."""
        last, soft = len(solution.steps) - 1, list[float | None]([None] * len(solution.steps))

        async def look(index: int) -> bool | None:
            if index == last and has_answer:
                is_right = solution.final_answer_correct
                soft[index] = None if is_right is None else float(is_right)
                return is_right
            is_right, soft[index] = await made.look(solution.steps[: index + 1])
            return is_right

        label = await {"in-order": _in_order, "binary": _binary, "all": _all}[self.options.method](look, last)
        # Where the policy cannot solve the problem at all, the first step need not be to blame.
        if label == 0 and not (last == 0 and has_answer) and not (await made.look(()))[0]:
            label = None
        source = solution.source or ROLLOUTS
        return solution.model_copy(update={"label": label, "soft": tuple(soft), "source": source})


async def _in_order(look: Any, last: int) -> int | None:
    """Each step up to the first wrong one."""
    for index in range(last + 1):
        if (is_right := await look(index)) is not True:
            return None if is_right is None else index
    return -1


async def _binary(look: Any, last: int) -> int | None:
    """The solution itself, then the step in the middle of those that can be the first wrong one (OmegaPRM, arXiv
    2406.06592, section 3): this takes for granted that no step after a wrong one is right."""
    if (is_right := await look(last)) is not False:
        return None if is_right is None else -1
    low, high = 0, last  # The first wrong step is from low to high.
    while low < high:
        middle = (low + high) // 2
        if (is_right := await look(middle)) is None:
            return None
        low, high = (middle + 1, high) if is_right else (low, middle)
    return low


async def _all(look: Any, last: int) -> int | None:
    """Every step."""
    are_right = await all_or_none(look(index) for index in range(last + 1))
    first = next((index for index, is_right in enumerate(are_right) if is_right is not True), -1)
    return None if first >= 0 and are_right[first] is None else first


async def roll_out(
    policy: Policy | None, rows: Iterable[SolvedProblem | Rejected], options: RolloutOptions, *, source: SourceInfo,
    settings: dict[str, Any] | None = None, cluster: Cluster | None = None, **run: Unpack[JobOptions],
) -> RolloutTotals:  # fmt: skip
    """Label solutions in a run folder: rows of `RolledOut`, and `solutions.jsonl` with a `LabelledSolution` a line.
    Started again it resumes. Without a policy, `final_answer_correct` is all that is found out. `settings`, `run` and
    errors are as for `run_job`."""
    totals = RolloutTotals(per_beginning=0 if policy is None else options.num_completions, above=options.above)
    width = 64 if policy is None else policy.engine.concurrency
    job = Job(
        ROLLOUTS, Roller(policy, options).label, RolledOut.model_validate, totals, width, noun="problem",
        size=lambda row: sum(len(one.steps) for one in row.solutions),
    )  # fmt: skip
    settings = dict(settings or {})
    if policy is not None:
        job, described = await started(job, partial(policy.start, stepwise=True), cluster)
        settings |= {"policy": described, **options.settings}
    await run_job(job, rows, source=source, settings=settings, **run)
    folder = Path(run["output"])
    labelled = (one for row in read_results(folder, RolledOut.model_validate) for one in row.solutions)
    write_labels(folder / SOLUTIONS, labelled)
    return totals
