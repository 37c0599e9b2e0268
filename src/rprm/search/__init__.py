"""Guiding a policy with step rewards: Best-of-N, votes, greedy guided search, beam search, DVTS."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, field
from typing import Any


def counted(what: str) -> Any:
    """A field of totals, 0 at first; `what` it counts is its line in a summary."""
    return field(default=0, metadata={"what": what})


class RunTotals:
    """What a run of this package came to: a dataclass. `failure` says why the first unscored step has no reward."""

    num_steps_judged = 0
    num_samples: int | None = None

    @property
    def nothing_judged(self: Any) -> bool:
        """Whether steps were judged, and none of them has a reward; or none were written."""
        return bool(0 < self.num_steps_judged == self.num_steps_unscored or self.num_samples == 0 < self.num_problems)

    def add_steps(
        self: Any, num_steps: int, k: int, judged: Iterable[tuple[str | None, Sequence[float | None]]]
    ) -> None:
        """Count steps that in full take `k` analyses each, those judged by failure and the P(Yes) of their analyses."""
        self.num_steps += num_steps
        self.num_analyses_full += num_steps * k
        for failure, p_yes in judged:
            self.failure = self.failure or failure
            self.num_steps_judged += 1
            self.num_steps_unscored += failure is not None
            if failure is not None and not p_yes:
                self.num_steps_refused += 1
                self.num_analyses_full -= k
            self.num_analyses += len(p_yes)
            self.num_analyses_without_verdict += list(p_yes).count(None)

    def as_dict(self: Any) -> dict[str, int]:
        return {name: value for name, value in asdict(self).items() if name != "failure"}
