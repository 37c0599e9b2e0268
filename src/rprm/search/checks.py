"""What the mathematics sets hold: a check of the data before anything is sampled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rprm.grading import Grader
from rprm.reading import SourceInfo
from rprm.search.problems import Problems


@dataclass(frozen=True)
class SetCheck:
    """One set.

    Attributes:
        name: as tables print it.
        num_problems: that can be used.
        num_rejected: rows that cannot.
        unrecognised: problem id -> gold answer that nothing but the same text can equal (see `Grader.check_gold`).
        source: where it was read from.
    """

    name: str
    num_problems: int
    num_rejected: int
    unrecognised: dict[str, str]
    source: SourceInfo

    def as_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "problems": self.num_problems,
            "rejected_rows": self.num_rejected,
            "unrecognised": self.unrecognised,
            "data": {"name": self.source.name, "digest": self.source.digest},
        }


def check_sets(problems: Problems, grader: Grader) -> dict[str, SetCheck]:
    """By set: how many problems, and which gold answers the grader cannot recognise in another way of writing."""
    checks = {}
    for name, source in problems.sources.items():
        members = [problem for problem in problems.problems if problem.set == name]
        checks[name] = SetCheck(
            name=problems.names[name],
            num_problems=len(members),
            num_rejected=sum(rejected.file == source.name for rejected in problems.rejected),
            unrecognised={
                problem.id: problem.answer
                for problem in members
                if problem.answer is not None and not grader.check_gold(problem.answer, problem.rule).correct
            },
            source=source,
        )
    return checks
