"""Predictions: the P(Yes) of each step of each item, from a file or from the judge's rewards."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rprm.errors import BenchmarkError, InputError
from rprm.reading import Rejected, Source
from rprm.records import SolutionReward
from rprm.rewarders.batch import Totals

#: A score per step, in order; None where a step has none.
StepScores = tuple[float | None, ...]


@dataclass(frozen=True)
class Scores:
    """Step scores by item.

    Attributes:
        p_yes: item id (PRMBench: key) -> score per step. It may end before the solution does where the judge stopped at
            the first error. Of labelled steps: that of the step itself.
        settled_at: the threshold at which early stopping (exact or confident) settled each decision: at any other the
            scores decide nothing. None where every score is the mean of all its analyses.
        repeated: ids that stood in several rows, of which the first was taken.
        usage: what judging cost, where that is known.
        failures: item id -> why the first step of it without a score has none, where that is known.
        form: item id -> analyses that reached a verdict unasked, and all analyses, where that is known.
    """

    p_yes: Mapping[str, StepScores]
    settled_at: float | None = None
    repeated: tuple[str, ...] = ()
    usage: Totals | None = None
    failures: Mapping[str, str] = field(default_factory=dict)
    form: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    def check_threshold(self, threshold: float) -> None:
        """
        Raises:
            BenchmarkError: the scores say nothing at this threshold.
        """
        if not 0.0 < threshold < 1.0:
            raise BenchmarkError(f"threshold is {threshold}; give a number between 0 and 1")
        if self.settled_at is not None and threshold != self.settled_at:
            raise BenchmarkError(
                f"early stopping settled these rewards at the threshold {self.settled_at}; they cannot be measured at "
                f"{threshold}: judge with that threshold, or without early stopping"
            )


def scores_of(rewards: Iterable[SolutionReward], *, settled_at: float | None = None, last_step: bool = False) -> Scores:
    """The scores of judged solutions.

    Args:
        rewards: read once; only scores and totals are kept.
        settled_at: the judge's threshold if it stopped analyses early, else None.
        last_step: each reward is of its solution's last step alone; see `judge_source`.

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
            identifier, scores = _scores_row(row.value)
        except InputError as error:
            raise InputError(f"{path}, line {row.line}: {error}") from None
        if identifier in p_yes:
            repeated.append(identifier)
        else:
            p_yes[identifier] = scores
    return Scores(p_yes, repeated=tuple(repeated))


def _scores_row(value: Any) -> tuple[str, StepScores]:
    if not isinstance(value, dict):
        raise InputError(f"a row must be a JSON object, not {type(value).__name__}")
    names = [name for name in ("id", "key") if name in value]
    if len(names) != 1:
        raise InputError(f"a row must have an 'id' or a 'key'{', not both' if names else ''}")
    identifier = value[names[0]]
    # JSON's escapes can spell lone surrogates, which cannot be written.
    if not isinstance(identifier, str) or not identifier or any("\ud800" <= sign <= "\udfff" for sign in identifier):
        raise InputError(f"{names[0]!r} must be a text that is not empty, not {identifier!r:.80}")
    scores = value.get("p_yes")
    if not isinstance(scores, list):
        raise InputError(f"'p_yes' must be a list, one number or null for each step; not {scores!r:.80}")
    for index, score in enumerate(scores):
        # NaN compares false with everything.
        if score is not None and (type(score) not in (int, float) or not 0 <= score <= 1):
            raise InputError(
                f"'p_yes' of {identifier!r}, step {index + 1} (p_yes[{index}]), must be a number from 0 to 1, or null; "
                f"not {score!r:.80}"
            )
    return identifier, tuple(None if score is None else float(score) for score in scores)
