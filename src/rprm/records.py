"""The records that flow between stages, each one JSON Lines row on disk."""

from __future__ import annotations

from html import escape
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from rprm.aggregation import Aggregation, aggregate
from rprm.errors import InputError

#: What the fields of a `SolutionReward` mean, in the settings of runs that hold them; to be raised when that changes.
#: 1 (or absent): `first_error` is -1 also where a step has no reward. 2: it is None there.
REWARD_FORMAT = 2

Probability = Annotated[float, Field(ge=0.0, le=1.0)]
Count = Annotated[int, Field(ge=0)]
#: The index of a step, -1 for none.
StepOrNone = Annotated[int, Field(ge=-1)]


class Record(BaseModel):
    """An immutable row. `model_dump_json` and `model_validate_json` are its form on disk."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="null")


class ResultRow(Record):
    """A row of `results.jsonl`; the checksum that it has there (`rprm.files`) is not of it."""

    @model_validator(mode="before")
    @classmethod
    def without_checksum(cls, value: Any) -> Any:
        return {name: it for name, it in value.items() if name != "crc"} if type(value) is dict else value


class Solution(Record):
    """A problem and a solution in steps; `label` is the 0-based index of the earliest wrong one (-1: none)."""

    id: str
    problem: str
    steps: tuple[str, ...]
    label: int | None = None

    @property
    def num_steps(self) -> int:
        return len(self.steps)

    def place(self, step_index: int) -> int:
        """The index of a step that is counted from 0, or from the end (-1: the last); an InputError: there is none."""
        places = range(len(self.steps))
        if not -len(places) <= step_index < len(places):
            raise InputError(f"there is no step {step_index} of {len(places)} (counted from 0; -1 is the last)")
        return places[step_index]


class LabelledStep(ResultRow):
    """A step, and whether it is correct given the problem and the steps before it. `id` is unique within its file;
    `source` names a data set and its part, or a generator. `soft` is the share that the label was made of, where it was
    made of one: of completions from there that are right."""

    id: str
    problem: str
    previous_steps: tuple[str, ...] = ()
    step: str
    label: bool
    source: str | None = None
    soft: Annotated[Probability | None, Field(exclude_if=lambda share: share is None)] = None

    @property
    def step_index(self) -> int:
        return len(self.previous_steps)

    @property
    def steps(self) -> tuple[str, ...]:
        return (*self.previous_steps, self.step)

    @property
    def solution(self) -> Solution:
        """What is to be judged: the step as the last of its solution."""
        label = -1 if self.label else self.step_index
        return Solution(id=self.id, problem=self.problem, steps=self.steps, label=label)


class Analysis(Record):
    """One sampled analysis of one step: its `verdict` (True for Yes, the step is correct) and P(Yes), None where it has
    none. P(Yes) comes from the generation's log-probabilities, from a second pass (the published procedure) or, where
    the engine gives none, from the hard vote (0 or 1). A `forced` verdict was asked for after the end.

    A critic's analysis is of a whole solution and stands with its last step: `first_error` is the index of the earliest
    wrong step that it names (-1: none), and `verdict` whether that is -1. `first_error_probabilities` are those of -1,
    0, 1, ... where it names one, as far as they were asked for and could be read; the first is its P(Yes)."""

    text: str
    verdict: bool | None
    p_yes: Probability | None
    p_yes_source: Literal["logprobs", "second pass", "vote"] | None
    forced: bool = False
    num_tokens: Count
    num_prompt_tokens: Count | None = None
    finish_reason: str
    first_error: Annotated[StepOrNone | None, Field(exclude_if=lambda index: index is None)] = None
    first_error_probabilities: Annotated[
        tuple[Probability, ...] | None, Field(exclude_if=lambda shares: shares is None)
    ] = None

    def is_cut_by_context(self, max_tokens: int) -> bool:
        """Whether the model's context ended the analysis before `max_tokens` did."""
        return self.finish_reason == "length" and self.num_tokens < max_tokens


class StepReward(Record):
    """The reward of one step: the mean P(Yes) over its analyses that reached a verdict (R-PRM, section 3.3), and
    `vote`, the share of Yes among their hard verdicts; both are None where there is none, and `failure` says why.
    `num_requested` is K of the full procedure. A classifier's `reward` is its score, without `vote` and K; a critic's
    the (expected) share of its analyses whose first error is later."""

    step_index: Count
    reward: Probability | None
    vote: Probability | None
    analyses: tuple[Analysis, ...] = Field(default=(), repr=False)  # their texts fill a screen
    failure: str | None = None
    num_requested: Count | None = None

    def verdict(self, threshold: float) -> bool | None:
        """Whether the reward reaches the threshold; None where there is none."""
        return None if self.reward is None else self.reward >= threshold

    @property
    def settled_early(self) -> bool:
        """Whether early stopping cut the analyses short: the decision stands, the reward is not the full mean."""
        return self.num_requested is not None and 0 < len(self.analyses) < self.num_requested

    @property
    def num_without_verdict(self) -> int:
        return sum(analysis.verdict is None for analysis in self.analyses)


class StepAnalyses(ResultRow):
    """The analyses that a model wrote of one labelled step, in the order of their sample numbers; or why none."""

    step: LabelledStep
    analyses: tuple[Analysis, ...] = ()
    failure: str | None = None

    @property
    def id(self) -> str:
        return self.step.id


class SolutionReward(ResultRow):
    """Step rewards of one solution and the prediction they give: `first_error`, the index of the first step whose
    reward is below the threshold (-1: none; None: a step up to there has no reward). `steps` may end there. A critic's
    is what most of its analyses name."""

    id: str
    num_steps: Count
    first_error: StepOrNone | None
    steps: tuple[StepReward, ...]
    label: StepOrNone | None = None

    @classmethod
    def read_back(cls, value: Any) -> SolutionReward:
        """A reward from a run's row; a ValueError where a field is missing or out of range."""
        found = cls.model_validate(value)
        last = max(found.first_error or 0, found.label or 0, *(step.step_index for step in found.steps), 0)
        if last >= max(found.num_steps, 1):
            raise ValueError(f"it has {found.num_steps} steps, and names step {last + 1}")
        return found

    @property
    def rewards(self) -> list[float | None]:
        return [step.reward for step in self.steps]

    def aggregate(self, how: Aggregation) -> float | None:
        """The reward of the solution, from 0 to 1: its steps' lowest, last, product or mean. None where a step that it
        depends on has none, also because judging ended before it (`first_errors`). An `InputError`: any other name."""
        known = {step.step_index: step.reward for step in self.steps}
        return aggregate([known.get(index) for index in range(self.num_steps)], how)

    def verdicts(self, threshold: float) -> list[bool | None]:
        """Whether each judged step is called correct: its reward reaches the threshold. A critic calls correct what
        stands before the first error that it names, which it calls wrong, and says nothing of what comes after."""
        if not any(one.first_error is not None for step in self.steps for one in step.analyses):
            return [step.verdict(threshold) for step in self.steps]
        first = self.num_steps if self.first_error == -1 else self.first_error
        places = [step.step_index for step in self.steps]
        return [None if first is None or place > first else place < first for place in places]

    @property
    def uncovered(self) -> list[int]:
        """Indices of judged steps without a reward."""
        return [step.step_index for step in self.steps if step.reward is None]

    def _repr_html_(self) -> str:
        """A table for notebooks: what was found in each step, and its analyses, to be unfolded."""
        rows = []
        for step in self.steps:
            at, known = step.step_index, self.first_error
            found = "first error" if at == known else "correct" if known == -1 or at < (known or 0) else ""
            texts = [f"<p>P(Yes) {_number(one.p_yes)}</p><pre>{escape(one.text)}</pre>" for one in step.analyses]
            more = f"<details><summary>{len(texts)}</summary>{''.join(texts)}</details>" if texts else ""
            cells = [str(at + 1), _number(step.reward), _number(step.vote), escape(step.failure or found), more]
            rows.append("".join(f'<td style="text-align: left">{cell}</td>' for cell in cells))
        head = "".join(f"<th>{name}</th>" for name in ("step", "reward", "vote", "verdict", "analyses"))
        body = "".join(f"<tr>{row}</tr>" for row in rows)
        judged = f"{len(self.steps)} of {self.num_steps} steps judged"
        return f"<table><caption>{escape(self.id)}: {judged}</caption><tr>{head}</tr>{body}</table>"


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.2f}"
