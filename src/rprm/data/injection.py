"""Wrong steps out of right ones: a program edits a calculation, or a model rewrites a step with an error of a named
kind; a policy goes on from there. A wrong version that still comes to the right answer is not trusted."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Unpack

from rprm.benchmarks.mathematics import Problem, ProblemRow
from rprm.cluster import Cluster
from rprm.data.cards import table
from rprm.data.gsm8k import evaluate, numbers, without_annotations, wrong_step
from rprm.data.rollouts import graded
from rprm.data.solutions import INJECT, SOLUTIONS, LabelledSolution, SolvedProblem, write_labels
from rprm.data.stage_options import InjectOptions
from rprm.engines import Engine, Sampling
from rprm.errors import InputError, RequestRefused
from rprm.grading import final_answer
from rprm.jobs import Job, JobOptions, all_or_none, run_job, started
from rprm.ledger import Ledger, paid_once
from rprm.prompts import InjectionTemplate
from rprm.reading import Rejected, SourceInfo
from rprm.records import Count, Record
from rprm.rewarders.base import sample_seed
from rprm.runs import read_manifest, read_results, write_atomically
from rprm.search import RunTotals, counted
from rprm.search.candidates import Policy
from rprm.splitting import split_steps

#: What a model is asked to do, by the name of the error.
ERRORS = {
    "calculation": "State another result of a calculation than the right one; the calculation itself stays as it is.",
    "operand": "Calculate with another number than the one that the problem, or an earlier step, gives for it.",
    "operation": "Calculate with another operation than the right one (add for subtract, multiply for divide, ...).",
    "condition": "Leave out or misread a condition that the problem states, and go on as if it were not there.",
    "consistency": "Contradict what an earlier step has found: carry another value or expression over from it.",
    "assumption": "Take something for granted that neither the problem nor an earlier step says or implies.",
    "rule": "Apply a rule, formula or theorem wrongly, or where it does not hold.",
}
#: Those that a program can make.
EDITS = ("calculation", "operand")

#: Why a wrong version is not kept.
Dropped = Literal[
    "the reply has no step", "the step is as it was", "the final answer is still right", "it comes to no final answer",
    "the final answer could not be graded", "the prompt is refused",
]  # fmt: skip

_OPERATOR = r"(?: ?[-+*/×·÷−–] ?| x | ?\\(?:times|cdot|div) ?)"
_NUMBER = r"\d[\d,]*(?:\.\d+)?"
#: A calculation as plain text shows it; its beginning and its end stand in no other.
_CALCULATION = re.compile(
    rf"(?<![\w.,^_={{(*/×·÷+−–-])(?<![*/×·÷+−–=-] )\$?(?P<expression>{_NUMBER}(?:{_OPERATOR}\$?{_NUMBER})+)"
    rf" ?= ?\$?(?P<result>{_NUMBER})(?![\d%^]|[.,]\d| ?[-+*/×·÷−–=^]|\\[a-z]| x \d)",
    flags=re.ASCII,
)
_PLAIN = (
    (r"\$|,", ""), (r"\\times|\\cdot|[×·]| x ", "*"), (r"\\div|÷", "/"), ("[−–]", "-"),
)  # fmt: skip


def annotated(step: str, drawn: random.Random) -> str | None:
    """A step with one of its right calculations annotated as GSM8K has them (`3 * 2 = <<3*2=6>>6`); None where it shows
    none."""
    found = []
    for match in _CALCULATION.finditer(step):
        expression = match["expression"]
        for pattern, plain in _PLAIN:
            expression = re.sub(pattern, plain, expression)
        expression, result = expression.replace(" ", ""), match["result"].replace(",", "")
        try:
            if evaluate(expression) == evaluate(result):
                at = match.start("result")
                found.append(f"{step[:at]}<<{expression}={result}>>{step[at:]}")
        except ValueError:
            continue
    return drawn.choice(found) if found else None


class Attempt(Record):
    """A wrong version of a solution (by its place in its row): the step at `step_index` was made wrong, and what
    follows was written after it. `dropped` says why it is not kept."""

    solution: Count
    step_index: Count
    error: str
    steps: tuple[str, ...]
    num_tokens: Count = 0
    dropped: Dropped | None = None


class Injected(ProblemRow):
    """A problem, how many solutions of it there are and are known to be right, and their wrong versions."""

    num_solutions: Count
    num_right: Count
    attempts: tuple[Attempt, ...] = ()


class _Rewritten(Record):
    """A reply that holds a step made wrong."""

    text: str
    num_tokens: int


@dataclass
class InjectTotals(RunTotals):
    """What a run of injections came to."""

    num_problems: int = counted("problems")
    num_rejected: int = counted("rows rejected")
    num_solutions: int = counted("solutions")
    num_not_right: int = counted("of these, not known to be right: left out")
    num_attempts: int = counted("wrong versions")
    num_kept: int = counted("kept")
    num_without_step: int = counted("dropped: the reply has no step")
    num_unchanged: int = counted("dropped: the step is as it was")
    num_still_right: int = counted("dropped: the final answer is still right")
    num_without_answer: int = counted("dropped: it comes to no final answer")
    num_ungraded: int = counted("dropped: the final answer could not be graded")
    num_refused: int = counted("dropped: the prompt is refused, mostly for its length")
    num_generated_tokens: int = counted("tokens")

    _FIELDS: ClassVar[dict[str | None, str]] = {
        None: "num_kept", "the reply has no step": "num_without_step", "the step is as it was": "num_unchanged",
        "the final answer is still right": "num_still_right", "it comes to no final answer": "num_without_answer",
        "the final answer could not be graded": "num_ungraded", "the prompt is refused": "num_refused",
    }  # fmt: skip

    def add(self, row: Injected) -> None:
        self.num_problems += 1
        self.num_solutions += row.num_solutions
        self.num_not_right += row.num_solutions - row.num_right
        self.num_attempts += len(row.attempts)
        for attempt in row.attempts:
            self.num_generated_tokens += attempt.num_tokens
            name = self._FIELDS[attempt.dropped]
            setattr(self, name, getattr(self, name) + 1)


@dataclass(frozen=True)
class Injector:
    """Makes right solutions wrong. Without an engine a program edits calculations; without a policy the wrong step is
    the last."""

    engine: Engine | None
    template: InjectionTemplate
    sampling: Sampling  #: of the rewritten step
    policy: Policy | None
    options: InjectOptions

    @property
    def errors(self) -> tuple[str, ...]:
        """The kinds to make; an `InputError` where one is not known, or no program can make it."""
        known = tuple(ERRORS) if self.engine is not None else EDITS
        named = [name.strip() for name in (self.options.errors or ",".join(known)).split(",")]
        if unknown := [name for name in named if name not in known]:
            who = "kinds of errors are" if self.engine is not None else "without --model, a program makes"
            raise InputError(f"--errors: {unknown[0]!r} is none: {who} {', '.join(known)}")
        return tuple(dict.fromkeys(named))

    async def start(self) -> dict[str, Any]:
        """Load the models; returns what the results depend on."""
        found: dict[str, Any] = {"errors": list(self.errors), "per_solution": self.options.per_solution}
        if self.engine is not None:
            info = await self.engine.start(chat=self.template.chat)
            found["writer"] = {
                "engine": {"kind": info.kind, "model": info.model, "revision": info.revision, **info.details},
                "prompt": {"name": self.template.name, "digest": self.template.digest},
                **{name: getattr(self.sampling, name) for name in ("temperature", "top_p", "max_tokens")},
            }
        if self.policy is not None:
            found["policy"] = await self.policy.start(stepwise=True)
        return found | {"seed": self.options.seed}

    @property
    def concurrency(self) -> int:
        engines = [self.engine, None if self.policy is None else self.policy.engine]
        return min((engine.concurrency for engine in engines if engine is not None), default=64)

    async def inject(self, row: SolvedProblem, ledger: Ledger | None = None) -> Injected:
        right = [(at, one) for at, one in enumerate(row.solutions) if await _is_right(row.problem, one)]
        number, writing = 0, []
        for at, solution in right:
            steps = tuple(without_annotations(step).strip() or step for step in solution.steps)
            drawn = random.Random(f"{self.options.seed}\n{row.problem.problem}\n{steps}")
            for step_index, error, text in self._chosen(row.problem, steps, drawn):
                scoped = None if ledger is None else ledger.scoped(str(number))
                blank = Attempt(solution=at, step_index=step_index, error=error, steps=steps)
                writing.append(self._attempt(row.problem, blank, text, scoped))
                number += 1
        return Injected(
            problem=row.problem, num_solutions=len(row.solutions), num_right=len(right),
            attempts=tuple(await all_or_none(writing)),
        )  # fmt: skip

    def _chosen(
        self, problem: Problem, steps: tuple[str, ...], drawn: random.Random
    ) -> Iterator[tuple[int, str, str | None]]:
        """Steps to make wrong, each with the error, and, of a program, the wrong step."""
        if self.engine is not None:
            pairs = [(at, error) for at in range(len(steps)) for error in self.errors if at or error != "consistency"]
            for at, error in drawn.sample(pairs, min(self.options.per_solution, len(pairs))):
                yield at, error, None
            return
        taken = numbers(problem.problem, words=True).union(*map(numbers, steps))
        left = self.options.per_solution
        for at in drawn.sample(range(len(steps)), len(steps)):
            line = annotated(steps[at], drawn)
            edited = wrong_step(line, taken, drawn) if line is not None else None
            if edited is not None and edited.kind in self.errors and left:
                left -= 1
                yield at, edited.kind, edited.text

    async def _attempt(self, problem: Problem, blank: Attempt, text: str | None, ledger: Ledger | None) -> Attempt:
        steps, at, num_tokens = blank.steps, blank.step_index, 0
        begun = steps[:at]

        def ended(dropped: Dropped | None) -> Attempt:
            return blank.model_copy(update={"steps": begun, "num_tokens": num_tokens, "dropped": dropped})

        try:
            if text is None:
                reply = await self._rewritten(problem, blank, ledger)
                num_tokens += reply.num_tokens
                text = self.template.find(reply.text)
            if text is None:
                return ended("the reply has no step")
            begun = (*begun, text)
            if "".join(text.split()) == "".join(steps[at].split()):
                return ended("the step is as it was")
            if self.policy is None:
                return ended(None)
            rest = await self.policy.solve(problem.problem, 0, ledger, begun=begun)
        except RequestRefused:
            return ended("the prompt is refused")
        num_tokens += rest.num_tokens or 0
        after = rest.text[len(self.policy.template.step_separator.join((*begun, ""))) :]
        begun = (*begun, *split_steps(after))
        gold = problem.answer
        if gold is None:
            gold = final_answer("\n\n".join(steps), problem.rule)
        answer, is_right = await graded(problem.model_copy(update={"answer": gold}), rest.text)
        if answer is None or gold is None:
            return ended("it comes to no final answer")
        if is_right is None:
            return ended("the final answer could not be graded")
        return ended("the final answer is still right" if is_right else None)

    async def _rewritten(self, problem: Problem, blank: Attempt, ledger: Ledger | None) -> _Rewritten:
        assert self.engine is not None
        engine = self.engine
        prompt = self.template.render(problem.problem, blank.steps, blank.step_index, ERRORS[blank.error])
        seeded = replace(self.sampling, seed=sample_seed(self.options.seed, prompt, 0))

        async def write() -> _Rewritten:
            made = await engine.generate(prompt, seeded)
            return _Rewritten(text=made.text, num_tokens=made.num_tokens)

        return await paid_once(ledger, "step", _Rewritten, write)


async def _is_right(problem: Problem, solution: LabelledSolution) -> bool:
    """Whether a solution is known to be right: by its label, else by its final answer."""
    if solution.label is not None:
        return solution.label == -1
    if solution.final_answer_correct is not None:
        return solution.final_answer_correct
    return (await graded(problem, "\n\n".join(solution.steps)))[1] is True


async def inject_errors(
    injector: Injector, rows: Iterable[SolvedProblem | Rejected], *, source: SourceInfo,
    settings: dict[str, Any] | None = None, cluster: Cluster | None = None, **run: Unpack[JobOptions],
) -> InjectTotals:  # fmt: skip
    """Make right solutions wrong in a run folder: rows of `Injected`, `solutions.jsonl` with what is kept, and a card.
    Started again it resumes. `settings`, `run` and errors are as for `run_job`."""
    totals = InjectTotals()
    job = Job(
        INJECT, injector.inject, Injected.model_validate, totals, injector.concurrency, noun="problem",
        size=lambda row: len(row.solutions),
    )  # fmt: skip
    job, described = await started(job, injector.start, cluster)
    await run_job(job, rows, source=source, settings={**(settings or {}), **described}, **run)
    folder, by_error = Path(run["output"]), Counter[tuple[str, str | None]]()

    def kept() -> Iterator[LabelledSolution]:
        for row in read_results(folder, Injected.model_validate):
            for number, one in enumerate(row.attempts):
                by_error[one.error, one.dropped] += 1
                if one.dropped is None:
                    is_known = False if injector.policy is not None else None
                    yield LabelledSolution(
                        id=f"{row.id}!{number}", problem=row.problem.problem, steps=one.steps, label=one.step_index,
                        final_answer_correct=is_known, source=f"{INJECT}:{one.error}",
                    )  # fmt: skip

    write_labels(folder / SOLUTIONS, kept())
    write_atomically(folder / "README.md", _card(folder, totals, by_error))
    return totals


def _card(folder: Path, totals: InjectTotals, by_error: Counter[tuple[str, str | None]]) -> str:
    names = sorted({error for error, _ in by_error})
    fates = [None, *sorted({dropped for _, dropped in by_error if dropped is not None})]
    rows = ((fate or "kept", *(by_error[name, fate] for name in names)) for fate in fates)
    settings = json.dumps(read_manifest(folder)["settings"], indent=2, ensure_ascii=False)
    return f"""# {folder.resolve().name}

Right solutions made wrong at one step (`{SOLUTIONS}`; `label` is its index), made by `rprm data inject`. \
{totals.num_not_right:,} of {totals.num_solutions:,} solutions are not known to be right, and were left out.

{table("", *names, rows=rows)}
## Settings

```json
{settings}
```
"""
