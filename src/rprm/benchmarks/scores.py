"""Predictions: the P(Yes) of each step of each item, from a file or from the judge's rewards."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rprm.errors import BenchmarkError, InputError
from rprm.reading import Rejected, Source
from rprm.records import SolutionReward

#: A score per step, in order; None where a step has none.
StepScores = tuple[float | None, ...]


@dataclass(frozen=True)
class Usage:
    """What judging cost, and what it failed to reach.

    Attributes:
        num_tokens: generated, over all analyses.
        num_steps: judged (steps after an exit at the first error are not).
        num_uncovered: judged steps that have no reward.
        num_analyses: drawn.
        num_without_verdict: of those, how many reached no verdict; they are left out of the rewards.
        num_forced: of those, how many were asked for their verdict after they had ended without one.
    """

    num_tokens: int = 0
    num_steps: int = 0
    num_uncovered: int = 0
    num_analyses: int = 0
    num_without_verdict: int = 0
    num_forced: int = 0

    @property
    def tokens_per_step(self) -> float | None:
        return self.num_tokens / self.num_steps if self.num_steps else None

    def as_dict(self) -> dict[str, Any]:
        return {
            "tokens": self.num_tokens,
            "tokens_per_step": self.tokens_per_step,
            "steps": self.num_steps,
            "uncovered_steps": self.num_uncovered,
            "analyses": self.num_analyses,
            "analyses_without_verdict": self.num_without_verdict,
            "analyses_forced": self.num_forced,
        }


@dataclass(frozen=True)
class Scores:
    """Step scores by item.

    Attributes:
        p_yes: item id (PRMBench: key) -> score per step. It may end before the solution does where the judge stopped at
            the first error.
        settled_at: the threshold at which early stopping (exact or confident) settled each decision: at any other the
            scores decide nothing. None where every score is the mean of all its analyses.
        repeated: ids that stood in several rows, of which the first was taken.
        usage: what judging cost, where that is known.
        failures: item id -> why the first step of it without a score has none, where that is known.
    """

    p_yes: Mapping[str, StepScores]
    settled_at: float | None = None
    repeated: tuple[str, ...] = ()
    usage: Usage | None = None
    failures: Mapping[str, str] = field(default_factory=dict)

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


def scores_of(rewards: Iterable[SolutionReward], *, settled_at: float | None = None) -> Scores:
    """The scores of judged solutions.

    Args:
        rewards: read once; only scores and totals are kept.
        settled_at: the judge's threshold if it stopped analyses early, else None.

    Raises:
        InputError: the steps of a reward are not the first ones of its solution, in order.
    """
    p_yes: dict[str, StepScores] = {}
    repeated: list[str] = []
    failures: dict[str, str] = {}
    tokens = steps = uncovered = analyses = without_verdict = forced = 0
    for reward in rewards:
        if [step.step_index for step in reward.steps] != list(range(len(reward.steps))):
            raise InputError(f"the reward of {reward.id} does not hold its steps in order, from the first")
        if reward.id in p_yes:
            repeated.append(reward.id)
            continue
        p_yes[reward.id] = tuple(reward.rewards)
        steps += len(reward.steps)
        uncovered += len(reward.uncovered)
        if failed := [step.failure for step in reward.steps if step.failure is not None]:
            failures[reward.id] = failed[0]
        for step in reward.steps:
            tokens += sum(analysis.num_tokens for analysis in step.analyses)
            analyses += len(step.analyses)
            without_verdict += step.num_without_verdict
            forced += sum(analysis.forced for analysis in step.analyses)
    usage = Usage(tokens, steps, uncovered, analyses, without_verdict, forced)
    return Scores(p_yes, settled_at=settled_at, repeated=tuple(repeated), usage=usage, failures=failures)


def _is_unicode(text: str) -> bool:
    """Whether a text can be written: JSON's escapes can spell lone surrogates, which cannot."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _scores_row(value: Any) -> tuple[str, StepScores]:
    if not isinstance(value, dict):
        raise InputError(f"a row must be a JSON object, not {type(value).__name__}")
    names = [name for name in ("id", "key") if name in value]
    if len(names) != 1:
        raise InputError(f"a row must have an 'id' or a 'key'{', not both' if names else ''}")
    identifier = value[names[0]]
    if not isinstance(identifier, str) or not identifier or not _is_unicode(identifier):
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
