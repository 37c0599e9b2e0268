"""search-and-learn: the `PRM` that its `best_of_n`, `beam_search` and `dvts` take. Nothing of it is imported."""

from __future__ import annotations

from collections.abc import Sequence

from rprm.integrations.answers import AnyRewarder, blocking, filled, steps_of
from rprm.integrations.step_memory import CAPACITY, StepMemory


class PRM:
    """Rewards of all steps of all outputs. Steps end at a blank line, as its searches stop there, and each is judged
    once: beam search and DVTS hand over the same growing outputs in every round.

    Args:
        unscored: stands for a missing reward, also of an empty output; 0 is the lowest.
        capacity: rewards of steps that are remembered.
    """

    def __init__(self, prm: AnyRewarder, *, unscored: float = 0.0, capacity: int = CAPACITY) -> None:
        self.memory = StepMemory(prm, capacity)
        self.unscored = unscored

    def score(self, questions: Sequence[str], outputs: Sequence[Sequence[str]]) -> list[list[list[float]]]:
        """The step rewards of `outputs[i][j]`, an answer to `questions[i]`, from 0 to 1."""
        pairs = zip(questions, outputs, strict=True)
        solutions = [(question, steps_of(output, "\n\n")) for question, group in pairs for output in group]
        rewards = iter(blocking(self.memory.rewards(solutions)))
        return [[filled(next(rewards) or [None], self.unscored) for _ in group] for group in outputs]
