"""PRM800K as OpenAI publishes it (repository openai/prm800k, `prm800k/data/phase*_*.jsonl`, and its README).

A row is one solution as a labeler went through it. At each place stand one or several completions, each with a rating
(-1 wrong, 0 neutral, 1 correct, null: not rated). The solution goes on with the completion that was chosen or, where
none was, with the one that the labeler wrote (phase 1 alone); where there is neither it ends.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, model_validator

from rprm.data.options import Neutral
from rprm.data.origins import Origin
from rprm.reading import AnyText, RowModel, Text, checked
from rprm.records import LabelledStep

#: How a solution ends that its labeler could not finish: a problem reported as broken, or given up.
UNFINISHED = ("bad_problem", "give_up")


#: A hub copy with nulls among the ratings has them as floats.
Rating = Annotated[
    Annotated[int, Field(ge=-1, le=1)],
    BeforeValidator(lambda rating: int(rating) if isinstance(rating, float) and rating.is_integer() else rating),
]


class RatedCompletion(RowModel):
    text: AnyText | None = None
    rating: Rating | None = None
    flagged: Any = None

    def label(self, neutral: Neutral, rating: int | None) -> bool | str:
        """Its label with this rating; or, where it has none, what it is."""
        if not self.text or not self.text.strip():
            return "without text"
        if self.flagged:
            return "flagged"
        if rating is None:
            return "not rated"
        if rating == 0:
            return _NEUTRAL if neutral == "drop" else neutral == "correct"
        return rating == 1


class RatedPlace(RowModel):
    #: Null where the labeler left before anything was shown.
    completions: list[RatedCompletion] | None = None
    chosen_completion: int | None = None
    human_completion: RatedCompletion | None = None

    @model_validator(mode="after")
    def _chosen_is_one(self) -> RatedPlace:
        size = len(self.completions or ())
        if self.chosen_completion is not None and not 0 <= self.chosen_completion < size:
            raise ValueError(
                f"'chosen_completion' must name one of {size} completions or be null, not {self.chosen_completion}"
            )
        return self


class RatedSteps(RowModel):
    steps: list[RatedPlace]
    finish_reason: Any = None


class RatedProblem(RowModel):
    problem: Text


class PRM800KRow(RowModel):
    question: RatedProblem
    label: RatedSteps
    is_quality_control_question: Any = None
    is_initial_screening_question: Any = None


def prm800k_steps(
    record: dict[str, Any],
    origin: Origin,
    *,
    neutral: Neutral = Neutral.correct,
    keep_quality_control: bool = False,
    keep_unfinished: bool = False,
) -> list[LabelledStep]:
    """Every rated completion of a row, after the steps that were chosen before its place.

    The completions at the place of the first wrong step are the last: what a labeler chose to go on from is correct up
    to there. A completion that is flagged (the labeler did not know) or not rated gives no row, and a solution that
    goes on with one ends there. A step written by the labeler counts as correct, as the README has it; `source` says
    `:human`.

    Args:
        record: the row.
        origin: where it comes from.
        neutral: what a rating of 0 counts as.
        keep_quality_control: use solutions that served to check or to screen labelers. OpenAI trained without them
            (arXiv 2305.20050, appendix B).
        keep_unfinished: use solutions that the labeler gave up, or whose problem was reported as broken. OpenAI trained
            without them (same place).

    Raises:
        InputError: the row has not this form.
    """
    row = checked(PRM800KRow, record)
    problem, places = row.question.problem, row.label.steps
    if not keep_quality_control and (row.is_quality_control_question or row.is_initial_screening_question):
        origin.skipped["solutions for quality control or screening"] += 1
        return []
    if not keep_unfinished and row.label.finish_reason in UNFINISHED:
        origin.skipped["solutions given up, or of a broken problem"] += 1
        return []
    found: list[LabelledStep] = []
    previous: list[str] = []

    def add(completion: RatedCompletion, label: bool | str, choice: str, part: str = "") -> None:
        if isinstance(label, bool):
            text = completion.text or ""
            found.append(origin.labelled(problem, previous, text, label, choice=f"-{choice}", part=part))
        else:
            origin.skipped[f"steps {label}"] += 1

    for number, place in enumerate(places, 1):
        completions, human = place.completions or [], place.human_completion
        labels = [completion.label(neutral, completion.rating) for completion in completions]
        for choice, (completion, label) in enumerate(zip(completions, labels, strict=True)):
            add(completion, label, str(choice))
        if place.chosen_completion is not None:
            following, verdict = completions[place.chosen_completion], labels[place.chosen_completion]
        elif human is not None:
            # Its rating is always null in the published files.
            following, verdict = human, human.label(neutral, 1 if human.rating is None else human.rating)
            add(human, verdict, "human", "human")
        else:
            break
        if verdict is not True and verdict != _NEUTRAL:
            if rest := sum(len(later.completions or ()) for later in places[number:]):
                origin.skipped["steps after a wrong, flagged or unrated one"] += rest
            break
        previous.append(following.text or "")
    return found


_NEUTRAL = "rated neutral"
