"""Predictions: the P(Yes) of each step of each item, from a file or from the judge's rewards."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from pydantic import Field

from rprm.errors import BenchmarkError, InputError
from rprm.reading import Rejected, RowModel, Source, Text, checked
from rprm.records import SolutionReward
from rprm.rewarders.batch import Totals

#: A score per step, in order; None where a step has none.
StepScores = tuple[float | None, ...]


@dataclass(frozen=True)
class Scores:
    """Step scores by item.

    Attributes:
        p_yes: item id (PRMBench: key) -> score per step, up to an exit at the first error; of a labelled step its own.
        settled_at: the threshold at which early stopping settled each decision: at any other the scores decide
            nothing. None where every score is the mean of all its analyses.
        repeated: ids that stood in several rows, of which the first was taken.
        usage: what judging cost.
        failures: item id -> why its first step without a score has none.
        form: item id -> analyses that reached a verdict unasked, and all analyses.
    """

    p_yes: Mapping[str, StepScores]
    settled_at: float | None = None
    repeated: tuple[str, ...] = ()
    usage: Totals | None = None
    failures: Mapping[str, str] = field(default_factory=dict)
    form: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    def check_threshold(self, threshold: float) -> None:
        """Raise a `BenchmarkError` where the scores say nothing at this threshold."""
        if not 0.0 < threshold < 1.0:
            raise BenchmarkError(f"threshold is {threshold}; give a number between 0 and 1")
        if self.settled_at not in (None, threshold):
            raise BenchmarkError(
                f"early stopping settled these rewards at the threshold {self.settled_at}; they cannot be measured at "
                f"{threshold}: judge with that threshold, or without early stopping"
            )


def scores_of(rewards: Iterable[SolutionReward], *, settled_at: float | None = None, last_step: bool = False) -> Scores:
    """The scores of judged solutions; with `last_step` each reward is of its solution's last step alone.

    Raises:
        InputError: the steps of a reward are not the first ones of its solution, in order.
    """
    p_yes: dict[str, StepScores] = {}
    repeated: list[str] = []
    failures: dict[str, str] = {}
    form: dict[str, tuple[int, int]] = {}
    usage = Totals()
    for reward in rewards:
        judged = [reward.num_steps - 1] if last_step else list(range(len(reward.steps)))
        if [step.step_index for step in reward.steps] != judged:
            raise InputError(f"the reward of {reward.id} does not hold its steps in order, from the first")
        if reward.id in p_yes:
            repeated.append(reward.id)
            continue
        p_yes[reward.id] = tuple(reward.rewards)
        usage.add(reward)
        if failed := [step.failure for step in reward.steps if step.failure is not None]:
            failures[reward.id] = failed[0]
        analyses = [analysis for step in reward.steps for analysis in step.analyses]
        unasked = sum(analysis.verdict is not None and not analysis.forced for analysis in analyses)
        form[reward.id] = unasked, len(analyses)
    return Scores(p_yes, settled_at, tuple(repeated), usage, failures, form)


class _ScoresRow(RowModel):
    id: Text | None = None
    key: Text | None = None
    p_yes: list[Annotated[float, Field(ge=0, le=1)] | None]


def read_scores(path: str | Path) -> Scores:
    """Read a scores file: JSON Lines or JSON, plain or gzipped, rows `{id | key, p_yes: [number or null, ...]}`.

    Raises:
        InputError: there is no such file, or a row is malformed; the message has file and line.
    """
    if not Path(path).is_file():
        raise InputError(f"{path}: no such file")
    p_yes: dict[str, StepScores] = {}
    repeated: list[str] = []
    for row in Source(str(path)).rows():
        try:
            if isinstance(row, Rejected):
                raise InputError(row.reason)
            found = checked(_ScoresRow, row.value)
            if (found.id is None) == (found.key is None):
                raise InputError(f"a row must have an 'id' or a 'key'{'' if found.id is None else ', not both'}")
        except InputError as error:
            raise InputError(f"{path}, line {row.line}: {error}") from None
        name = str(found.id or found.key)
        if name in p_yes:
            repeated.append(name)
        else:
            p_yes[name] = tuple(found.p_yes)
    return Scores(p_yes, repeated=tuple(repeated))
