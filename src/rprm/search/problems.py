"""The problems that a policy is to solve: of the mathematics sets, or of a file of one's own."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rprm.benchmarks.items import json_object, parsed_rows
from rprm.benchmarks.mathematics import SETS, read_mathematics
from rprm.errors import InputError
from rprm.grading import MATHEMATICS, RULES, AnswerRule
from rprm.reading import Rejected, Source, SourceInfo
from rprm.records import Record

#: The set of problems that come from a file and say none.
OWN = "problems"


class Problem(Record):
    """A problem, and what is needed to grade answers to it.

    Attributes:
        id: unique in its run: `SET/ID` for the mathematics sets.
        problem: its text.
        set: the row of a table that it counts in.
        answer: the gold answer; None where unknown: then it can be solved, but not graded.
        rule: how an answer is found in a solution and compared with the gold one.
    """

    id: str
    problem: str
    set: str = OWN
    answer: str | None = None
    rule: AnswerRule = MATHEMATICS


@dataclass(frozen=True)
class Problems:
    """Problems in order, and what became of the other rows.

    Attributes:
        names: of the sets, as tables print them: `olympiadbench (200 items)` is the paper's subset.
        source: name and digest of all sources together.
        sources: name and digest of each set's source.
    """

    problems: tuple[Problem, ...]
    rejected: tuple[Rejected, ...]
    names: dict[str, str]
    source: SourceInfo
    sources: dict[str, SourceInfo]


def read_problem_sets(
    sets: Sequence[str], data: str | Path | None = None, *, revision: str | None = None, limit: int | None = None
) -> Problems:
    """Problems of mathematics sets, set after set.

    Args:
        sets: names out of `SETS`, each once.
        data: as for `read_mathematics`; for several sets a folder.
        revision: of the hub data set; for one set alone.
        limit: the first so many items of each set.

    Raises:
        InputError: no set, an unknown one, one twice, or nothing can be read of one.
    """
    if not sets:
        raise InputError(f"no mathematics set named; known are {', '.join(SETS)}")
    if twice := [name for name in dict.fromkeys(sets) if list(sets).count(name) > 1]:
        raise InputError(f"{twice[0]} is named twice")
    if len(sets) > 1 and data is not None and Path(data).is_file():
        raise InputError(f"{data} is one file, and {len(sets)} sets are named; give a folder with a file for each")
    if len(sets) > 1 and revision is not None:
        raise InputError("a revision belongs to one data set: name one set with it")
    problems: list[Problem] = []
    rejected: list[Rejected] = []
    names: dict[str, str] = {}
    sources: dict[str, SourceInfo] = {}
    for name in sets:
        read = read_mathematics(name, data, revision=revision)
        names[name], sources[name] = read.name, read.source
        rejected += read.rejected
        problems += [
            Problem(id=f"{name}/{item.id}", problem=item.problem, set=name, answer=item.answer, rule=item.rule)
            for item in read.items[:limit]
        ]
    return Problems(tuple(problems), tuple(rejected), names, _together(sources, len(problems)), sources)


def read_problem_file(path: str | Path, *, limit: int | None = None) -> Problems:
    """Problems of one's own: rows `{id?, problem | question, answer?, set?}`.

    A row whose `set` is one of `SETS` is graded by that set's rule; the others by the general one.

    Raises:
        InputError: no row can be used.
    """
    source = Source(str(path))
    rejected: list[Rejected] = []
    ids: set[str] = set()
    place = -1

    def parse(value: Any) -> Problem:
        nonlocal place
        place += 1
        problem = _problem(json_object(value), place)
        if problem.id in ids:
            raise InputError(f"id {problem.id!r} stands in an earlier row already; ids must be unique")
        ids.add(problem.id)
        return problem

    problems = tuple(parsed_rows(source.name, source.rows(), parse, rejected))[:limit]
    if not problems:
        reason = f"the first, line {rejected[0].line}: {rejected[0].reason}" if rejected else "it has no rows"
        raise InputError(f"{path}: no problem can be read; {reason}")
    sets = dict.fromkeys(problem.set for problem in problems)
    info = source.inspect()
    return Problems(problems, tuple(rejected), {name: name for name in sets}, info, dict.fromkeys(sets, info))


def _problem(record: dict[str, Any], place: int) -> Problem:
    from pydantic import ValidationError

    set_name = record.get("set", OWN)
    text = record.get("problem", record.get("question"))
    if not isinstance(text, str) or not text.strip():
        raise InputError(f"'problem' must be a text that is not empty, not {text!r:.80}")
    answer: Any = record.get("answer")
    if isinstance(answer, float) and answer.is_integer():
        answer = int(answer)
    if isinstance(answer, int | float) and not isinstance(answer, bool):
        answer = str(answer)
    identifier = record.get("id", place)
    if isinstance(identifier, bool) or not isinstance(identifier, str | int) or identifier == "":
        raise InputError(f"the id must be a text or a whole number, not {identifier!r:.80}")
    try:
        rule = RULES.get(set_name, MATHEMATICS)
        problem = Problem(id=str(identifier), problem=text, set=set_name, answer=answer, rule=rule)
        problem.model_dump_json()
    except (ValidationError, UnicodeEncodeError, TypeError, ValueError) as error:
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        raise InputError(f"not a problem: {reason:.200}") from None
    return problem


def _together(sources: dict[str, SourceInfo], num_problems: int) -> SourceInfo:
    if len(sources) == 1:
        (source,) = sources.values()
        return SourceInfo(source.name, source.digest, num_problems)
    digest = hashlib.sha256("\n".join(f"{name} {info.digest}" for name, info in sources.items()).encode())
    names = ", ".join(info.name for info in sources.values())
    return SourceInfo(names, f"sha256:{digest.hexdigest()}", num_problems)
