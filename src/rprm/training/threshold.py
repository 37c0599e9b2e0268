"""Where to call a step wrong: accuracies of rewards on labelled steps, and the threshold that is best for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True)
class StepAccuracies:
    """How a classifier does on labelled steps at a threshold; None where there is no step of the kind.

    Attributes:
        wrong: share of the wrong steps with a reward below the threshold.
        correct: share of the correct steps with one at or above it.
    """

    threshold: float
    wrong: float | None
    correct: float | None

    @property
    def f1(self) -> float | None:
        """Harmonic mean of the two, as ProcessBench combines its accuracies."""
        if self.wrong is None or self.correct is None:
            return None
        return 2 * self.wrong * self.correct / (self.wrong + self.correct) if self.wrong + self.correct else 0.0


def accuracies(rewards: Sequence[float], labels: Sequence[bool], threshold: float) -> StepAccuracies:
    """Accuracies of rewards on labelled steps, both in the same order."""
    sides: dict[bool, list[bool]] = {False: [], True: []}
    for reward, label in zip(rewards, labels, strict=True):
        sides[label].append((reward >= threshold) is label)
    wrong, correct = (sum(side) / len(side) if side else None for side in (sides[False], sides[True]))
    return StepAccuracies(threshold, wrong, correct)


def best_threshold(rewards: Sequence[float], labels: Sequence[bool]) -> float:
    """The threshold with the best harmonic mean of both accuracies, of equals the one closest to 0.5.

    Candidates are 0.5 and the middles between neighbouring rewards. Where a class has no step, 0.5.
    """
    num_correct = sum(labels)
    num_wrong = len(labels) - num_correct
    if not num_correct or not num_wrong:
        return 0.5
    ranked = sorted(zip(rewards, labels, strict=True))
    found = [(accuracies(rewards, labels, 0.5).f1 or 0.0, 0.0, 0.5)]
    wrong_below = correct_below = 0
    for (reward, label), (above, _) in pairwise(ranked):
        wrong_below += not label
        correct_below += label
        middle = (reward + above) / 2
        # Neighbours too close for a number between them are one reward.
        if reward < middle < 1.0:
            wrong, correct = wrong_below / num_wrong, 1 - correct_below / num_correct
            f1 = 2 * wrong * correct / (wrong + correct) if wrong + correct else 0.0
            found.append((f1, -abs(middle - 0.5), middle))
    return max(found)[2]
