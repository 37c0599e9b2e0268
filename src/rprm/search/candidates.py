"""Candidate solutions of a problem, and what a rewarder makes of them: the rows of the search stages."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from rprm.records import Record, StepReward
from rprm.search.problems import Problem


class Candidate(Record):
    """A solution that a policy wrote. `num_tokens` and `finish_reason` are None where it was brought from elsewhere."""

    text: str
    steps: tuple[str, ...]
    num_tokens: int | None = None
    finish_reason: str | None = None


class Candidates(Record):
    """The candidates of one problem, in the order of their sample numbers. `failure` says why there are none."""

    problem: Problem
    candidates: tuple[Candidate, ...]
    failure: str | None = None

    @property
    def id(self) -> str:
        return self.problem.id


class CandidateReward(Record):
    """What is known of one candidate's reward under the run's aggregation.

    It lies from `low` to `high`, and is `low` where it was judged in full (`settled`). None stands below every number:
    a candidate that has, or may have, no reward at all. `steps` are the steps that were judged, each as far as it was.
    """

    low: float | None
    high: float | None
    settled: bool
    steps: tuple[StepReward, ...]


class JudgedCandidates(Record):
    """Candidates of one problem with their rewards, and the choice among them.

    `chosen` is the index of the candidate with the highest reward, of equal ones the first; None where there are no
    candidates. `fell_back`: none has a reward, so that the first was taken.
    """

    problem: Problem
    candidates: tuple[Candidate, ...]
    rewards: tuple[CandidateReward, ...]
    chosen: int | None
    fell_back: bool = False
    failure: str | None = None

    @property
    def id(self) -> str:
        return self.problem.id


def digest_of(texts: Iterable[str]) -> str:
    """A short hash of texts in their order: of steps, of solutions."""
    digest = hashlib.blake2b(digest_size=12)
    for text in texts:
        data = text.encode(errors="surrogatepass")
        digest.update(len(data).to_bytes(8) + data)
    return digest.hexdigest()
