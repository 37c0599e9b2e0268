"""What a judge or a critic is asked in reinforcement learning, with the label of each answer; how a reply is read, and
how the model is measured meanwhile: as `rprm bench` measures it, by one greedy reply to each question."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, TypeVar

from rprm.benchmarks import (
    BenchmarkItems,
    ProcessBenchItem,
    StepItem,
    StepItems,
    Tally,
    scores_of,
    step_scores,
    tally_processbench,
    tally_steps,
)
from rprm.critique import FORMATS
from rprm.data.datasets import verdict_fault
from rprm.data.steps import labelled_step_of, steps_source
from rprm.engines.base import Engine, Sampling
from rprm.errors import InputError, MissingPredictions, PromptError
from rprm.folders import own_file
from rprm.jobs import Callbacks
from rprm.prompts import CriticTemplate, PromptTemplate, load_critic_template, load_template
from rprm.prompts.library import CRITICS, PROMPTS
from rprm.prompts.template import Prompt
from rprm.reading import Rows, solution_of
from rprm.records import Solution, SolutionReward
from rprm.rewarders.base import StepRewarder, judge_source
from rprm.rewarders.critic import Critic
from rprm.rewarders.rprm import Judge
from rprm.stopping import StoppingRule
from rprm.training.rewards import RewardName, distance_reward, outcome_reward, verdict_reward

JudgeKind = Literal["step", "critic"]
Figures = dict[str, float]


Result = TypeVar("Result")


class Question(NamedTuple):
    """A problem and a solution's steps. `label`: of a step judge whether the last of them is right; of a critic the
    index of the earliest wrong one (-1: none), or, where it is a bool, whether the whole solution is right."""

    id: str
    problem: str
    steps: tuple[str, ...]
    label: bool | int


class LabelledSolution(NamedTuple):
    """A row of the data. `label`: the earliest wrong step (-1: none), or whether all is right, where no step is
    labelled. `is_step`: a labelled step, which says of the last step whether it is right."""

    solution: Solution
    label: bool | int
    is_step: bool

    def questions(self, judge: JudgeKind, reward: RewardName) -> list[Question]:
        """What a step judge is asked of it, or a critic; an `InputError` where its label does not tell the answer."""
        (name, problem, steps), label, is_outcome = self._named, self.label, isinstance(self.label, bool)
        if judge == "step" and self.is_step:
            if reward == "outcome":
                raise InputError("a labelled step has no outcome; give whole solutions with their labels")
            return [Question(name, problem, steps, label == -1)]
        if reward == "outcome":
            return [Question(name, problem, steps, label if is_outcome else label == -1)]
        if is_outcome:
            raise InputError("'label' says whether the whole is right, and of no step")
        if judge == "critic":
            return [Question(name, problem, steps, label)]
        known = range(len(steps) if label == -1 else label + 1)
        return [Question(f"{name}-{index}", problem, steps[: index + 1], index != label) for index in known]

    @property
    def _named(self) -> tuple[str, str, tuple[str, ...]]:
        return self.solution.id, self.solution.problem, self.solution.steps


def read_solutions(name: str | Path) -> Rows[LabelledSolution]:
    """The rows of a file, a hub data set or a run of `rprm data steps`: labelled steps, or solutions whose `label` is
    the index of the earliest wrong step (-1: none), or true or false for the whole."""
    return Rows(steps_source(name), lambda row: _labelled(row.value, default_id=f"line-{row.line}"))


def _labelled(value: Any, default_id: str) -> LabelledSolution:
    if isinstance(value, dict) and "step" in value:
        step = labelled_step_of(value, default_id)
        return LabelledSolution(step.solution, -1 if step.label else step.step_index, True)
    label = value.get("label") if isinstance(value, dict) else None
    if isinstance(label, bool):
        return LabelledSolution(solution_of(value | {"label": None}, default_id=default_id), label, False)
    solution = solution_of(value, default_id=default_id)
    if solution.label is None:
        wanted = "the 0-based index of the earliest wrong step, -1 for none, or true or false for the whole solution"
        raise InputError(f"'label' is missing: it must be {wanted}")
    return LabelledSolution(solution, solution.label, False)


class Reading(NamedTuple):
    """What a reply says (`rewards`), and whether it has the form that a reply should have."""

    told: int | None
    calls_right: bool | None
    is_wellformed: bool


@dataclass(frozen=True)
class StepAsker:
    """Asks a step judge: is the last step right?"""

    template: PromptTemplate
    carried_as: ClassVar[str] = PROMPTS.carried_as  #: The file in a model's folder that holds its template.

    def prompt(self, question: Question) -> Prompt:
        """What the model reads."""
        return self.template.render(question.problem, question.steps, len(question.steps) - 1)

    def read(self, reply: str, num_steps: int, *, ended: bool) -> Reading:
        """What a whole reply says, its given beginning included; `ended`: by the model."""
        verdict, form = self.template.verdict.find(reply), self.template.verdict
        told = None if verdict is None else verdict.yes
        is_wellformed = ended and told is not None and verdict_fault(reply, form, told) is None
        return Reading(told, told, is_wellformed)

    def measure(self, engine: Engine, questions: Sequence[Question], max_tokens: int) -> Figures:
        """Figures in percent, those of `rprm bench steps`, of one greedy reply to each question."""
        judge = Judge(engine, self.template, StoppingRule(1), Sampling(0.0, max_tokens=max_tokens))
        rewards = _judged(judge, questions, last_step=True)
        items = StepItems(tuple(StepItem(_solution(at, one), bool(one.label)) for at, one in enumerate(questions)))
        tally = partial(tally_steps, items, step_scores(rewards), allow_missing=True)
        return _figures(tally, _OF_STEPS, rewards)


@dataclass(frozen=True)
class CriticAsker:
    """Asks a critic: which step is the earliest wrong one? See `StepAsker`."""

    template: CriticTemplate
    carried_as: ClassVar[str] = CRITICS.carried_as

    def prompt(self, question: Question) -> Prompt:
        return self.template.render(question.problem, question.steps)

    def read(self, reply: str, num_steps: int, *, ended: bool) -> Reading:
        form = FORMATS[self.template.format]
        told = form.find(reply, num_steps)
        return Reading(told, form.calls_right(reply, num_steps), ended and told is not None)

    def measure(self, engine: Engine, questions: Sequence[Question], max_tokens: int) -> Figures:
        """Likewise, those of `rprm bench processbench`."""
        critic = Critic(engine, self.template, StoppingRule(1), Sampling(0.0, max_tokens=max_tokens))
        rewards = _judged(critic, questions)
        solutions = [(_solution(place, one), one.label) for place, one in enumerate(questions)]
        items = BenchmarkItems(tuple(ProcessBenchItem("validation", *one) for one in solutions))
        tally = partial(tally_processbench, items, scores_of(rewards), allow_missing=True)
        return _figures(tally, _OF_SOLUTIONS, rewards)


Asker = StepAsker | CriticAsker


def find_asker(judge: JudgeKind, prompt: str | Path | None, model: str) -> Asker:
    """How a model is asked: by the template that is named, or that its folder carries; a critic without either by the
    built-in one. A `PromptError` where there is none."""
    shelf = CRITICS if judge == "critic" else PROMPTS
    source = prompt or own_file(Path(model), shelf.carried_as)
    if judge == "critic":
        return CriticAsker(load_critic_template(source))
    if source is None:
        raise PromptError(f"{model} carries no {shelf.carried_as}: give the template it was trained with (--prompt)")
    return StepAsker(load_template(source))


def judged_reward(name: RewardName, reading: Reading, label: int, num_steps: int) -> float:
    """What the reading of a reply is worth, without form and length; see `rewards`."""
    if name == "outcome":
        return outcome_reward(reading.calls_right, bool(label))
    return (
        distance_reward(reading.told, label, num_steps) if name == "distance" else verdict_reward(reading.told, label)
    )


def _solution(place: int, question: Question) -> Solution:
    """By its place: ids need not be unique."""
    return Solution(id=str(place), problem=question.problem, steps=question.steps)


def _judged(rewarder: StepRewarder, questions: Sequence[Question], *, last_step: bool = False) -> list[SolutionReward]:
    found: list[SolutionReward] = []

    async def judge() -> None:
        callbacks = Callbacks(on_result=lambda row, result: found.append(result), replay=False)
        try:
            solutions = (_solution(place, one) for place, one in enumerate(questions))
            await judge_source(rewarder, solutions, last_step=last_step, callbacks=callbacks)
        finally:
            await rewarder.aclose()

    in_thread(judge)
    return found


def in_thread(work: Callable[[], Coroutine[Any, Any, Result]]) -> Result:
    """Run a coroutine function to its end in an event loop of a thread of its own: a notebook's runs in this one."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(lambda: asyncio.run(work())).result()


#: Figures of an evaluation, as the tally of labelled steps has them, and that of solutions.
_OF_STEPS = {"f1": "f1", "wrong_acc": "wrong_acc", "correct_acc": "correct_acc"}
_OF_SOLUTIONS = {"f1": "average.f1", "wrong_acc": "validation.error_acc", "correct_acc": "validation.correct_acc"}


def _figures(tally: Callable[[], Tally], names: Mapping[str, str], rewards: Sequence[SolutionReward]) -> Figures:
    replies = [one for reward in rewards for step in reward.steps for one in step.analyses]
    try:
        found: Mapping[str, float | None] = tally().by_name
    except MissingPredictions:
        found = {}  # no reply says anything: no question is answered
    known = {name: found.get(of_tally) or 0.0 for name, of_tally in names.items()}
    return {**known, "wellformed": 100.0 * sum(one.verdict is not None for one in replies) / max(len(replies), 1)}
