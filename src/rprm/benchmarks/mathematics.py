"""Mathematical problems with gold answers: six sets of R-PRM's table of guided search (arXiv 2503.21295, section 4),
GSM8K test, or a file of one's own."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import AliasChoices, BeforeValidator, Field

from rprm.benchmarks.cost import Cost
from rprm.benchmarks.items import BenchmarkItems, open_sources, read_items
from rprm.benchmarks.tally import Figure
from rprm.errors import InputError
from rprm.grading import MATHEMATICS, RULES, AnswerRule, Grade, Grader, final_answer, olympiadbench_rule
from rprm.reading import AnyText, Identifier, Rejected, RowModel, Source, SourceInfo, Text, checked
from rprm.records import Record, ResultRow

AVERAGE = "average"  #: the last column: the unweighted mean over the sets, as in the paper's table
OWN = "problems"  #: the set of problems that come from a file and say none


class Problem(Record):
    """A problem, and what is needed to grade answers to it."""

    id: str  #: unique in its run: `SET/ID` for the mathematics sets, with the data's own id, or else the 0-based place
    problem: str
    set: str = OWN
    answer: str | None = None  #: gold answers with commas between them; None where unknown: it is not graded then
    rule: AnswerRule = MATHEMATICS  #: how an answer is found in a solution and compared with the gold one


class ProblemRow(ResultRow):
    """What a run holds of one problem."""

    problem: Problem

    @property
    def id(self) -> str:
        return self.problem.id


@dataclass(frozen=True)
class Problems:
    """Problems in order, the rows that cannot be used, and where each set came from (with its hash or revision)."""

    problems: tuple[Problem, ...]
    rejected: tuple[Rejected, ...]
    sources: dict[str, SourceInfo]

    @property
    def source(self) -> SourceInfo:
        """What identifies all sources together."""
        infos = list(dict.fromkeys(self.sources.values()))
        if len(infos) == 1:
            return infos[0]
        digest = hashlib.sha256("\n".join(f"{name} {info.digest}" for name, info in self.sources.items()).encode())
        names = ", ".join(info.name for info in infos)
        return SourceInfo(names, f"sha256:{digest.hexdigest()}", len(self.problems))


def set_title(set_name: str, num_problems: int) -> str:
    """How tables call a set: `olympiadbench (200 items)` is of the size of the subset that the paper draws."""
    is_sampled = set_name in ("olympiadbench", "college_math") and num_problems == 200
    return f"{set_name} ({num_problems} items)" if is_sampled else set_name


def as_text(value: Any) -> Any:
    """Numbers as texts, 27.0 as 27."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value) if type(value) in (int, float) else value


class _OwnRow(RowModel):
    id: Identifier | None = None
    problem: Annotated[Text, Field(validation_alias=AliasChoices("problem", "question"))]
    answer: Annotated[AnyText | None, BeforeValidator(as_text)] = None
    set: AnyText = OWN


class _SetRow(_OwnRow):
    id: Annotated[Identifier | None, Field(validation_alias=AliasChoices("unique_id", "id"))] = None
    problem: Annotated[Text, Field(validation_alias=AliasChoices("problem", "question", "query"))]
    set: Any = None


def _gold(name: str, answer: str | None, value: dict[str, Any]) -> tuple[str, AnswerRule]:
    """The gold answer to a problem of a set, and the rule to grade by."""
    known, rule, place = _SETS[name], RULES[name], "answer"
    if known.is_worked or (name == "minerva_math" and answer is None):
        place = "answer" if known.is_worked else "solution"
        answer = final_answer(str(value.get(place) or ""), rule)
    if answer is None or not re.fullmatch(known.form, answer.strip(), flags=re.ASCII | re.DOTALL):
        raise InputError(f"{place!r} must {known.wanted}, not {answer!r:.80}")
    return answer.strip(), rule


def _olympiadbench(row: dict[str, Any]) -> tuple[str, AnswerRule]:
    answers, unit, error = row.get("final_answer"), row.get("unit"), row.get("error")
    if not isinstance(answers, list) or not answers or not all(isinstance(text, str) and text for text in answers):
        raise InputError(f"'final_answer' must be a list of texts, at least one; not {answers!r:.80}")
    # How far a number may be off; of several, the smallest.
    errors = [] if error in (None, "") else [text.strip() for text in str(error).split(",")]
    if not all(re.fullmatch(r"\d*\.?\d+(?:[eE]-?\d{1,2})?", text, flags=re.ASCII) for text in errors):
        raise InputError(f"'error' must be a number such as 1e-2, not {error!r:.80}")
    multiple = row.get("is_multiple_answer") is True or len(answers) > 1
    tolerance = min(map(Fraction, errors), default=None)
    unit = unit if isinstance(unit, str) and unit else None
    return ", ".join(answers), olympiadbench_rule(multiple=multiple, unit=unit, error=tolerance)


class _Set(NamedTuple):
    """Where a set is on the hub (None: nowhere), and the form of its gold answers."""

    hub: str | None
    split: str = "test"
    form: str = r".*\S.*"  #: a pattern, which `wanted` says in words
    wanted: str = "be a text or a number"
    is_worked: bool = False  #: the field `answer` is a whole solution


#: By name, in the order of the paper's table. Minerva's answer is the last box of `solution` where there is no other.
_SETS: dict[str, _Set] = {
    "aime24": _Set("HuggingFaceH4/aime_2024", "train", r"\d{1,3}", "be a whole number from 0 to 999"),
    "amc23": _Set("math-ai/amc23"),
    "math500": _Set("HuggingFaceH4/MATH-500"),
    "olympiadbench": _Set("math-ai/olympiadbench"),
    "college_math": _Set(None),
    "minerva_math": _Set("math-ai/minervamath", wanted="have a \\boxed{...} that is closed, or there be an 'answer'"),
    "gsm8k": _Set("openai/gsm8k", "test", r"-?[\d,]+(?:\.\d+)?", "end in a line '#### NUMBER'", is_worked=True),
}
SETS: tuple[str, ...] = tuple(_SETS)


def read_mathematics(
    sets: str | Iterable[str], data: str | Path | None = None, *, revision: str | None = None, limit: int | None = None
) -> Problems:
    """The first `limit` problems of each of some `SETS`, set after set; a text has commas between their names.

    `data` is a folder with `SET.jsonl` (or `.json`, `.jsonl.gz`, `.json.gz`) of each; for one set also a file, or a hub
    data set, maybe of a `revision`; None for the sets' own places on the hub. An `InputError` names a set that is
    unknown, named twice, or of which nothing can be read.
    """
    names = [name.strip() for name in (sets.split(",") if isinstance(sets, str) else sets)]
    if unknown := [name for name in names or [""] if name not in SETS]:
        raise InputError(f"{unknown[0]!r} is no mathematics set; known are {', '.join(SETS)}")
    if twice := [name for name in names if names.count(name) > 1]:
        raise InputError(f"{twice[0]} is named twice")
    if len(names) > 1 and (revision is not None or (data is not None and Path(data).is_file())):
        what = data if revision is None else f"revision {revision}"
        raise InputError(f"{what} belongs to one set: name one with it, or a folder with a file for each")
    read: dict[str, BenchmarkItems[Any]] = {}
    for name in names:
        if (place := data or _SETS[name].hub) is None:
            raise InputError(f"{name} has no data set on the hub; give a file, or a folder with {name}.jsonl")
        options = {"split": _SETS[name].split} | ({"config": "main"} if name == "gsm8k" else {})
        ((_, source),) = open_sources(place, {name: options}, revision)
        read[name] = read_items([(source, partial(_set_problem, name))])
    problems = tuple(problem for found in read.values() for problem in found.items[:limit])
    rejected = tuple(row for found in read.values() for row in found.rejected)
    return Problems(problems, rejected, {name: found.sources[0] for name, found in read.items()})


def _set_problem(name: str, value: Any, place: int) -> Problem:
    row = checked(_SetRow, value)
    text, context = row.problem, value.get("context")
    if isinstance(context, str) and context.strip() and context not in text:
        text = f"{context.strip()}\n\n{text}"
    answer, rule = _olympiadbench(value) if name == "olympiadbench" else _gold(name, row.answer, value)
    return Problem(id=f"{name}/{row.id or place}", problem=text, set=name, answer=answer, rule=rule)


def read_problem_file(path: str | Path, *, limit: int | None = None) -> Problems:
    """Problems of one's own: rows `{id?, problem | question, answer?, set?}`; an `InputError` where none can be used.
    A row whose `set` is one of `SETS` is graded by that set's rule; the others by the general one."""

    def problem(value: Any, place: int) -> Problem:
        row = checked(_OwnRow, value)
        return Problem(**dict(row) | {"id": row.id or str(place), "rule": RULES.get(row.set, MATHEMATICS)})

    found = read_items([(Source(str(path)), problem)])
    sources = dict.fromkeys((one.set for one in found.items[:limit]), found.sources[0])
    return Problems(found.items[:limit], found.rejected, sources)


def check_sets(problems: Problems, grader: Grader) -> dict[str, dict[str, Any]]:
    """What each set holds, as a JSON object; `unrecognised` are gold answers that only the same text can equal."""
    checks = {}
    for name, source in problems.sources.items():
        members = [problem for problem in problems.problems if problem.set == name]
        answers = {problem.id: (problem.answer, problem.rule) for problem in members if problem.answer is not None}
        checks[name] = {
            "name": set_title(name, len(members)), "problems": len(members),
            "rejected_rows": sum(rejected.file == source.name for rejected in problems.rejected),
            "unrecognised": {id: gold[0] for id, gold in answers.items() if not grader.check_gold(*gold).correct},
            "data": {"name": source.name, "digest": source.digest},
        }  # fmt: skip
    return checks


@dataclass(frozen=True)
class GradedAnswer:
    """A solution's answer, what its grading came to, and the number of its group among the problem's answers."""

    run: str
    id: str
    index: int
    answer: str | None
    grade: Grade
    group: int

    def as_dict(self) -> dict[str, Any]:
        return {
            "run": self.run, "id": self.id, "candidate": self.index, "answer": self.answer,
            "outcome": self.grade.outcome, "correct": self.grade.correct, "group": self.group,
        }  # fmt: skip


@dataclass(frozen=True)
class MeasuredRow:
    """A way to arrive at one solution of each problem, and how often it is right."""

    strategy: str  #: `pass@1`, `majority@N`, `pass@N`, `Best-of-N (min)`, `weighted vote of N (min)`, `guided search`
    model: str  #: what wrote, and what chose
    run: str
    num_candidates: int | None  #: N; None for a search that has no number of whole candidates
    figures: Mapping[str, Figure]  #: accuracy in percent, by set and `average`
    differences: Mapping[str, Mapping[str, Figure]]  #: to other rows, in points, by their strategy; then as `figures`
    policy_tokens: float | None  #: generated for a problem, in the mean; None where not counted
    judge_tokens: float | None

    @property
    def method(self) -> str:
        return numbered(self.strategy, self.num_candidates)

    def as_dict(self) -> dict[str, Any]:
        names = {"strategy": "method", "num_candidates": "candidates", "figures": "accuracy"}
        return {names.get(name, name): value for name, value in asdict(self).items()} | {"method": self.method}


@dataclass(frozen=True)
class SearchMeasurement:
    """Runs on the same problems."""

    sets: Mapping[str, int]  #: name -> number of problems
    rows: tuple[MeasuredRow, ...]
    curve: tuple[MeasuredRow, ...]  #: rows with N = 1, 2, 4, ... up to all candidates, where asked for
    answers: tuple[GradedAnswer, ...]  #: of every solution, run by run; of several runs with the same solutions once
    num_resamples: int
    seed: int
    notes: tuple[str, ...]
    costs: Mapping[str, Cost]  #: by run

    @property
    def names(self) -> dict[str, str]:
        """The sets as tables print them."""
        return {name: set_title(name, number) for name, number in self.sets.items()}

    @property
    def unsettled(self) -> list[GradedAnswer]:
        """Solutions whose grading came to no conclusion."""
        return [graded for graded in self.answers if graded.grade.correct is None]

    def as_dict(self) -> dict[str, Any]:
        """One JSON object."""
        return {
            "benchmark": "mathematics",
            "sets": {name: {"name": self.names[name], "problems": number} for name, number in self.sets.items()},
            "rows": [row.as_dict() for row in self.rows],
            "curve": [row.as_dict() for row in self.curve],
            "unsettled": [graded.as_dict() for graded in self.unsettled],
            "resamples": self.num_resamples, "seed": self.seed, "notes": list(self.notes),
            "time": {name: cost.time_as_dict() for name, cost in self.costs.items()},
        }  # fmt: skip


def numbered(strategy: str, size: int | None) -> str:
    """The name of a strategy with its number of candidates: `majority@8`."""
    return strategy if size is None else re.sub(r"\bN\b", str(size), strategy)
