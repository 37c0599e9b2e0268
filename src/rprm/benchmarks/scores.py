"""Predictions: the P(Yes) of each step of each item, from a file or from the judge's rewards."""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Self

import numpy as np
from pydantic import Field, model_validator

from rprm.benchmarks.cost import OPERATIONS_PER_WEIGHT, Cost
from rprm.benchmarks.items import BenchmarkItems
from rprm.benchmarks.tally import Floats, Tally
from rprm.errors import BenchmarkError, InputError, MissingPredictions
from rprm.reading import Rejected, RowModel, Source, Text, checked, read_rows
from rprm.records import SolutionReward
from rprm.rewarders.base import Totals, first_error

FALSE_ALARM_RATE = "false_alarm_rate"  #: the figure that every benchmark has where it has right solutions
MAX_NAMED = 10  #: how many items an error message names
StepScores = tuple[float | None, ...]  #: a score per step, in order; None where a step has none


class StepTable(Mapping[str, StepScores]):
    """Scores of the steps of many items, in 8 bytes each; filled by `add`."""

    def __init__(self) -> None:
        self._places: dict[str, int] = {}
        self._ends, self._values = array("Q", [0]), array("d")

    def add(self, identifier: str, scores: Iterable[float | None]) -> None:
        """The scores of an item that has none yet."""
        self._values.extend(math.nan if score is None else score for score in scores)
        self._places[identifier] = len(self._places)
        self._ends.append(len(self._values))

    def __getitem__(self, identifier: str) -> StepScores:
        place = self._places[identifier]
        found = self._values[self._ends[place] : self._ends[place + 1]]
        return tuple(None if math.isnan(score) else score for score in found)

    def __contains__(self, identifier: object) -> bool:
        return identifier in self._places

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


class _ItemScores(Mapping[str, StepScores]):
    """The scores of items, each with so many steps; None for each step of an item without any."""

    def __init__(self, p_yes: Mapping[str, StepScores], num_steps: Mapping[str, int]) -> None:
        self._p_yes, self._num_steps = p_yes, num_steps

    def __getitem__(self, identifier: str) -> StepScores:
        found = self._p_yes.get(identifier)
        return (None,) * self._num_steps[identifier] if found is None else found

    def __iter__(self) -> Iterator[str]:
        return iter(self._num_steps)

    def __len__(self) -> int:
        return len(self._num_steps)


@dataclass(frozen=True)
class Scores:
    """Step scores by item."""

    #: Item id (PRMBench: key) -> score per step, up to an exit at the first error; of a labelled step its own.
    p_yes: Mapping[str, StepScores]
    #: The threshold at which early stopping settled decisions: they say nothing at others. None: full means.
    settled_at: float | None = None
    repeated: tuple[str, ...] = ()  #: ids of several rows, of which the first was taken
    usage: Totals | None = None  #: what judging cost
    failures: Mapping[str, str] = field(default_factory=dict)  #: id -> why its first step without a score has none
    #: Id of a step judged alone -> verdicts reached unasked, and analyses.
    form: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    #: id -> the first error that a critic names; empty where step scores tell it.
    first_errors: Mapping[str, int | None] = field(default_factory=dict)
    #: Tokens of the prompts, of the analyses of one step once (engines compute it once); None: not counted.
    num_prompt_tokens: int | None = None
    cost: Cost = field(default_factory=Cost)  #: of the run, where they are of one

    @property
    def flops(self) -> float | None:
        """Floating-point operations of judging, about; None: not known."""
        read, weights = self.num_prompt_tokens, self.cost.parameters
        if self.usage is None or read is None or weights is None:
            return None
        return OPERATIONS_PER_WEIGHT * weights * (read + self.usage.num_generated_tokens)

    def named(self, identifier: str, threshold: float) -> int | None:
        """The first error that is named in an item: its index, -1 for none, None where that is not known."""
        if self.first_errors:
            return self.first_errors.get(identifier)
        return first_error(self.p_yes.get(identifier) or (None,), threshold)

    def check_threshold(self, threshold: float) -> None:
        """Raise a `BenchmarkError` where the scores say nothing at this threshold."""
        if not 0.0 < threshold < 1.0:
            raise BenchmarkError(f"threshold is {threshold}; give a number between 0 and 1")
        if self.settled_at not in (None, threshold):
            settled = f"early stopping settled these rewards at the threshold {self.settled_at}"
            how = "judge with that threshold, or without early stopping"
            raise BenchmarkError(f"{settled}; they cannot be measured at {threshold}: {how}")

    def of_items(
        self, num_steps: Mapping[str, int], why: str, may_end: Callable[[StepScores], bool] = lambda p_yes: False
    ) -> Mapping[str, StepScores]:
        """The scores of items, each with so many steps; None for each step of an item without any.

        An `InputError` names those with another number, and says `why` not: fewer must be scores that `may_end` so.
        """
        found = _ItemScores(self.p_yes, num_steps)
        wrong = [
            f"{name} ({len(p_yes)} scores, {num_steps[name]} steps)"
            for name, p_yes in found.items()
            if len(p_yes) > num_steps[name] or (len(p_yes) < num_steps[name] and not may_end(p_yes))
        ]
        if wrong:
            what = f"{len(wrong)} items do not have one score for each step: {named(wrong)} ({why})"
            raise InputError(f"{what}; are the scores from the same data?")
        return found

    def refuse_missing(self, missing: Collection[str], ids: Collection[str], what: str, *, allow_missing: bool) -> None:
        """Raise `MissingPredictions` where items lack a prediction (`missing` of `ids`, which have `what` in its
        place); with `allow_missing`, only where no item has a score."""
        nothing = all(score is None for identifier in ids for score in self.p_yes.get(identifier, ()))
        if not missing or (allow_missing and not nothing):
            return
        parts = [f"{len(missing)} of {len(ids)} items have {what}: {named(missing)}"]
        failed = next((identifier for identifier in missing if identifier in self.failures), None)
        if failed:
            parts.append(f"{failed} could not be judged: {self.failures[failed]}")
        if not nothing:
            parts.append(f"{'mend that' if failed else 'judge them'}, or count them as wrong with --allow-missing")
        elif not failed:
            parts.append("there is no score of any item: nothing to measure")
            if self.p_yes and not self.p_yes.keys() & set(ids):
                parts.append(f"the scores are of others ({named(self.p_yes)}): are they from the same data?")
        raise MissingPredictions("; ".join(parts))


def scores_of(rewards: Iterable[SolutionReward], *, settled_at: float | None = None, last_step: bool = False) -> Scores:
    """The scores of judged solutions; with `last_step` each reward is of its solution's last step alone. `InputError`
    where the steps of a reward are not the first ones of its solution, in order."""
    p_yes = StepTable()
    repeated: list[str] = []
    failures: dict[str, str] = {}
    form: dict[str, tuple[int, int]] = {}
    usage = Totals()
    num_prompt_tokens: int | None = 0
    first_errors: dict[str, int | None] = {}
    for reward in rewards:
        judged = [reward.num_steps - 1] if last_step else list(range(len(reward.steps)))
        if [step.step_index for step in reward.steps] != judged:
            raise InputError(f"the reward of {reward.id} does not hold its steps in order, from the first")
        if reward.id in p_yes:
            repeated.append(reward.id)
            continue
        p_yes.add(reward.id, reward.rewards)
        usage.add(reward)
        read = _prompt_tokens(reward)
        num_prompt_tokens = None if read is None or num_prompt_tokens is None else num_prompt_tokens + read
        reasons = [step.failure for step in reward.steps if step.failure is not None]
        failures |= {reward.id: reasons[0]} if reasons else {}
        if last_step:
            unasked = [one.verdict is not None and not one.forced for step in reward.steps for one in step.analyses]
            form[reward.id] = sum(unasked), len(unasked)
        if any(one.first_error is not None for one in reward.steps[-1].analyses):
            first_errors[reward.id] = reward.first_error
    return Scores(p_yes, settled_at, tuple(repeated), usage, failures, form, first_errors, num_prompt_tokens)


def _prompt_tokens(reward: SolutionReward) -> int | None:
    """Of a solution's prompts, each once; None where one was not counted, or where a classifier read the solution."""
    drawn = [[one.num_prompt_tokens or 0 for one in step.analyses] for step in reward.steps if step.analyses]
    if not drawn:
        return 0 if len(reward.uncovered) == len(reward.steps) else None
    return None if 0 in map(max, drawn) else sum(map(max, drawn))


class _ScoresRow(RowModel):
    id: Text | None = None
    key: Text | None = None
    p_yes: list[Annotated[float, Field(ge=0, le=1)] | None]

    @model_validator(mode="after")
    def has_one_name(self) -> Self:
        if (self.id is None) == (self.key is None):
            raise ValueError(f"a row must have an 'id' or a 'key'{'' if self.id is None else ', not both'}")
        return self


def read_scores(path: str | Path) -> Scores:
    """Read a scores file: JSON Lines or JSON, plain or gzipped, rows `{id | key, p_yes: [number or null, ...]}`; an
    `InputError` where there is none, or (with file and line) a row is malformed."""
    if not Path(path).exists():
        raise InputError(f"{path}: no such file")
    p_yes = StepTable()
    repeated: list[str] = []
    for row in read_rows(Source(str(path)), lambda row: checked(_ScoresRow, row.value)):
        if isinstance(row, Rejected):
            raise InputError(f"{path}, line {row.line}: {row.reason}")
        name = str(row.id or row.key)
        if name in p_yes:
            repeated.append(name)
        else:
            p_yes.add(name, row.p_yes)
    return Scores(p_yes, repeated=tuple(repeated))


def with_false_alarms(tally: Tally, items: BenchmarkItems[Any], scores: Scores) -> Tally:
    """A tally with one figure more where there are right solutions: in how many of them an error is named, in percent
    of those of which it is known whether one is."""
    rows = {identifier: row for row, identifier in enumerate(tally.ids)}
    threshold = tally.threshold if tally.least is None else tally.least
    counts, num_right = np.zeros((len(rows), 2)), 0  # (named, known)
    for item in items.items:
        row = rows.get(tally.counted_with.get(item.id, item.id))
        if row is None or item.solution.label != -1:
            continue
        num_right += 1
        if (index := scores.named(item.id, threshold)) is not None:
            counts[row] += index >= 0, 1
    if not num_right:
        return tally

    def figures_of(sums: Floats) -> Floats:
        with np.errstate(invalid="ignore"):
            rate = 100.0 * sums[..., -2] / sums[..., -1]
        return np.concatenate([tally.figures_of(sums[..., :-2]), rate[..., None]], axis=-1)

    num_named, num_known = counts.sum(axis=0).astype(int).tolist()
    return replace(
        tally, counts=np.concatenate([tally.counts, counts], axis=1), figures_of=figures_of,
        figure_names=(*tally.figure_names, FALSE_ALARM_RATE),
        false_alarms={"named": num_named, "judged": num_known, "right_solutions": num_right},
    )  # fmt: skip


def named(ids: Collection[str]) -> str:
    """Up to ten of them, and how many more there are."""
    rest = len(ids) - MAX_NAMED
    return ", ".join(list(ids)[:MAX_NAMED]) + (f" and {rest} more" if rest > 0 else "")
