"""Mathematical problems with gold answers, for measuring what a policy and its guide solve.

Seven sets: R-PRM's table of guided search has six of them (arXiv 2503.21295, section 4), GSM8K test is the seventh. The
paper uses 200 items each of OlympiadBench and College Math; a set of that size is named after it. Or a file of one's
own.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from rprm.benchmarks.items import json_object, parsed_rows, refuse_revision, subset_file
from rprm.benchmarks.tally import Figure
from rprm.errors import InputError
from rprm.grading import MATHEMATICS, RULES, AnswerRule, Grade, Grader, final_answer, olympiadbench_rule
from rprm.reading import Rejected, Source, SourceInfo
from rprm.records import Record

#: The size of the subsets that the paper draws of OlympiadBench and College Math.
PAPER_SUBSET_SIZE = 200
PAPER_SUBSETS = frozenset(["olympiadbench", "college_math"])

#: The name of the last column: the unweighted mean over the sets, as in the paper's table.
AVERAGE = "average"

#: The set of problems that come from a file and say none.
OWN = "problems"


class Problem(Record):
    """A problem, and what is needed to grade answers to it.

    Attributes:
        id: unique in its run: `SET/ID` for the mathematics sets, with the data's own id, or else the 0-based place.
        problem: its text.
        set: the row of a table that it counts in.
        answer: the gold answer, several of them separated by commas; None where unknown: it is not graded then.
        rule: how an answer is found in a solution and compared with the gold one.
    """

    id: str
    problem: str
    set: str = OWN
    answer: str | None = None
    rule: AnswerRule = MATHEMATICS


class ProblemRow(Record):
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
    """How tables call a set: `olympiadbench (200 items)` is of the size of the paper's subset."""
    is_sampled = set_name in PAPER_SUBSETS and num_problems == PAPER_SUBSET_SIZE
    return f"{set_name} ({num_problems} items)" if is_sampled else set_name


@dataclass(frozen=True, slots=True)
class _Set:
    """Where a set is on the hub (None: nowhere), and how its rows are read.

    Attributes:
        gold: reads the gold answer and its rule.
        id_fields: of the row's own id; the first that a row has is taken.
    """

    hub: str | None
    gold: Callable[[dict[str, Any]], tuple[str, AnswerRule]]
    split: str = "test"
    config: str | None = None
    id_fields: tuple[str, ...] = ("id",)


def read_mathematics(
    sets: str | Iterable[str], data: str | Path | None = None, *, revision: str | None = None, limit: int | None = None
) -> Problems:
    """Problems of mathematics sets, set after set.

    Args:
        sets: names out of `SETS`, each once; a text has commas between them.
        data: a folder with `SET.jsonl` (or `.json`, `.jsonl.gz`, `.json.gz`) of each; of one set also a file, or a hub
            data set; None for the sets' own places on the hub.
        revision: of the hub data set, for one set; the one that was read is recorded in `sources`.
        limit: the first so many problems of each set.

    Raises:
        InputError: no set, an unknown one, one twice, or nothing can be read of one.
    """
    names = [name.strip() for name in (sets.split(",") if isinstance(sets, str) else sets)]
    if not names:
        raise InputError(f"no mathematics set named; known are {', '.join(SETS)}")
    if twice := [name for name in names if names.count(name) > 1]:
        raise InputError(f"{twice[0]} is named twice")
    if len(names) > 1 and data is not None and Path(data).is_file():
        raise InputError(f"{data} is one file, and {len(names)} sets are named; give a folder with a file for each")
    if len(names) > 1 and revision is not None:
        raise InputError("a revision belongs to one data set: name one set with it")
    problems: list[Problem] = []
    rejected: list[Rejected] = []
    sources: dict[str, SourceInfo] = {}
    for name in names:
        if name not in _SETS:
            raise InputError(f"{name!r} is no mathematics set; known are {', '.join(_SETS)}")
        known = _SETS[name]

        def problem(row: dict[str, Any], place: int, name: str = name, known: _Set = known) -> Problem:
            text = _first_text(row, ("problem", "question", "query"))
            context = row.get("context")
            if isinstance(context, str) and context.strip() and context not in text:
                text = f"{context.strip()}\n\n{text}"
            answer, rule = known.gold(row)
            identifier = f"{name}/{_identifier(row, known.id_fields, place)}"
            return Problem(id=identifier, problem=text, set=name, answer=answer, rule=rule)

        source = _source(name, known, data, revision)
        problems += _problems(source, problem, rejected)[:limit]
        sources[name] = source.inspect()
    return Problems(tuple(problems), tuple(rejected), sources)


def read_problem_file(path: str | Path, *, limit: int | None = None) -> Problems:
    """Problems of one's own: rows `{id?, problem | question, answer?, set?}`.

    A row whose `set` is one of `SETS` is graded by that set's rule; the others by the general one.

    Raises:
        InputError: no row can be used.
    """

    def problem(row: dict[str, Any], place: int) -> Problem:
        text, set_name = row.get("problem", row.get("question")), row.get("set", OWN)
        if not isinstance(text, str) or not text.strip():
            raise InputError(f"'problem' must be a text that is not empty, not {text!r:.80}")
        if not isinstance(set_name, str):
            raise InputError(f"'set' must be a text, not {set_name!r:.80}")
        answer = _number_as_text(row.get("answer"))
        if not isinstance(answer, str | None):
            raise InputError(f"'answer' must be a text or a number, not {answer!r:.80}")
        rule = RULES.get(set_name, MATHEMATICS)
        identifier = _identifier(row, ("id",), place)
        return Problem(id=identifier, problem=text, set=set_name, answer=answer, rule=rule)

    source = Source(str(path))
    rejected: list[Rejected] = []
    problems = tuple(_problems(source, problem, rejected)[:limit])
    return Problems(problems, tuple(rejected), dict.fromkeys((one.set for one in problems), source.inspect()))


def _problems(
    source: Source, problem: Callable[[dict[str, Any], int], Problem], rejected: list[Rejected]
) -> list[Problem]:
    """What `problem` makes of each row and its 0-based place; rows that it refuses join `rejected`."""
    ids: set[str] = set()
    place = -1

    def parse(value: Any) -> Problem:
        nonlocal place
        place += 1
        found = problem(json_object(value), place)
        try:
            f"{found.id}{found.problem}{found.set}{found.answer}".encode()
        except UnicodeEncodeError as error:
            raise InputError(f"text that is not Unicode: a lone surrogate {error.object[error.start]!r}") from None
        if found.id in ids:
            raise InputError(f"id {found.id!r} stands in an earlier row already; ids must be unique")
        ids.add(found.id)
        return found

    num_before = len(rejected)
    problems = list(parsed_rows(source.name, source.rows(), parse, rejected))
    if not problems:
        if len(rejected) == num_before:
            raise InputError(f"{source.name}: no rows")
        first = rejected[num_before]
        raise InputError(
            f"{source.name}: none of {len(rejected) - num_before} rows is a problem; the first, line {first.line}: "
            f"{first.reason}"
        )
    return problems


def _source(name: str, known: _Set, data: str | Path | None, revision: str | None) -> Source:
    hub = known.hub
    if data is not None:
        path = Path(data)
        refuse_revision(path, revision)
        if path.is_dir():
            file = subset_file(path, name)
            if file is None:
                raise InputError(f"{path}: no {name}.jsonl in this folder")
            return Source(str(file))
        if path.is_file():
            return Source(str(path))
        if not re.fullmatch(r"(hub:)?[\w.-]+/[\w.-]+", str(data)):
            raise InputError(f"{data}: no such file or folder, and no name of a hub data set (OWNER/NAME)")
        hub = str(data).removeprefix("hub:")
    if hub is None:
        raise InputError(f"{name} has no data set on the hub; give a file, or a folder with {name}.jsonl")
    options = {"split": known.split} | ({"config": known.config} if known.config else {})
    if revision is None:
        # The commit that the name means now, so that what is read is what is recorded.
        revision = Source(f"hub:{hub}?{urlencode(options)}").inspect().digest.removeprefix("revision:")
    return Source(f"hub:{hub}?{urlencode(options | {'revision': revision})}")


def _identifier(row: dict[str, Any], fields: tuple[str, ...], place: int) -> str:
    identifier = next((row[field] for field in fields if row.get(field) is not None), place)
    if isinstance(identifier, bool) or not isinstance(identifier, str | int) or identifier == "":
        raise InputError(f"the id must be a text or a whole number, not {identifier!r:.80}")
    return str(identifier)


def _first_text(row: dict[str, Any], fields: tuple[str, ...]) -> str:
    for field in fields:
        value = row.get(field)
        if isinstance(value, str) and value.strip():
            return value
    raise InputError(f"none of {', '.join(map(repr, fields))} is a text that is not empty; fields are: {_names(row)}")


def _names(row: dict[str, Any]) -> str:
    return ", ".join(sorted(row)[:20])


def _number_as_text(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _answer(row: dict[str, Any]) -> str:
    """The field `answer`, a text or a number."""
    value = _number_as_text(row.get("answer"))
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"'answer' must be a text or a number, not {value!r:.80}; fields are: {_names(row)}")
    return value.strip()


def _aime(row: dict[str, Any]) -> tuple[str, AnswerRule]:
    answer = _answer(row)
    if not re.fullmatch(r"\d{1,3}", answer, flags=re.ASCII):
        raise InputError(f"an answer of the AIME is a whole number from 0 to 999, not {answer!r:.80}")
    return answer, RULES["aime24"]


def _minerva(row: dict[str, Any]) -> tuple[str, AnswerRule]:
    """The field `answer`, or else the last box of `solution`."""
    rule = RULES["minerva_math"]
    if row.get("answer") is not None:
        return _answer(row), rule
    answer = final_answer(_first_text(row, ("solution",)), rule)
    if answer is None:
        raise InputError("'solution' has no \\boxed{...} that is closed, and there is no 'answer'")
    return answer, rule


def _olympiadbench(row: dict[str, Any]) -> tuple[str, AnswerRule]:
    answers = row.get("final_answer")
    if not isinstance(answers, list) or not answers or not all(isinstance(text, str) and text for text in answers):
        raise InputError(f"'final_answer' must be a list of texts, at least one; not {answers!r:.80}")
    unit = row.get("unit")
    # How far a number may be off; of several, the smallest.
    errors = [] if row.get("error") in (None, "") else [text.strip() for text in str(row["error"]).split(",")]
    if not all(re.fullmatch(r"\d*\.?\d+(?:[eE]-?\d{1,2})?", text, flags=re.ASCII) for text in errors):
        raise InputError(f"'error' must be a number such as 1e-2, not {row['error']!r:.80}")
    rule = olympiadbench_rule(
        multiple=row.get("is_multiple_answer") is True or len(answers) > 1,
        unit=unit if isinstance(unit, str) and unit else None,
        error=min(map(Fraction, errors), default=None),
    )
    return ", ".join(answers), rule


def _gsm8k(row: dict[str, Any]) -> tuple[str, AnswerRule]:
    answer = final_answer(_first_text(row, ("answer",)), RULES["gsm8k"])
    if answer is None or not re.fullmatch(r"-?[\d,]+(?:\.\d+)?", answer, flags=re.ASCII):
        raise InputError(f"'answer' must end in a line '#### NUMBER'; found {answer!r:.80}")
    return answer, RULES["gsm8k"]


#: By name, in the order of the paper's table.
_SETS: dict[str, _Set] = {
    "aime24": _Set("HuggingFaceH4/aime_2024", _aime, split="train"),
    "amc23": _Set("math-ai/amc23", lambda row: (_answer(row), RULES["amc23"])),
    "math500": _Set(
        "HuggingFaceH4/MATH-500", lambda row: (_answer(row), RULES["math500"]), id_fields=("unique_id", "id")
    ),
    "olympiadbench": _Set("math-ai/olympiadbench", _olympiadbench),
    "college_math": _Set(None, lambda row: (_answer(row), RULES["college_math"])),
    "minerva_math": _Set("math-ai/minervamath", _minerva),
    "gsm8k": _Set("openai/gsm8k", _gsm8k, config="main"),
}
SETS: tuple[str, ...] = tuple(_SETS)


def check_sets(problems: Problems, grader: Grader) -> dict[str, dict[str, Any]]:
    """What each set holds, as a JSON object.

    Returns:
        By set: `name` as tables print it; the numbers of `problems` and of `rejected_rows`; `unrecognised`, by problem
        id the gold answers that nothing but the same text can equal (see `Grader.check_gold`); `data`, its source.
    """
    checks: dict[str, dict[str, Any]] = {}
    for name, source in problems.sources.items():
        members = [problem for problem in problems.problems if problem.set == name]
        checks[name] = {
            "name": set_title(name, len(members)),
            "problems": len(members),
            "rejected_rows": sum(rejected.file == source.name for rejected in problems.rejected),
            "unrecognised": {
                problem.id: problem.answer
                for problem in members
                if problem.answer is not None and not grader.check_gold(problem.answer, problem.rule).correct
            },
            "data": {"name": source.name, "digest": source.digest},
        }
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
            "run": self.run,
            "id": self.id,
            "candidate": self.index,
            "answer": self.answer,
            "outcome": self.grade.outcome,
            "correct": self.grade.correct,
            "group": self.group,
        }


@dataclass(frozen=True)
class MeasuredRow:
    """A way to arrive at one solution of each problem, and how often it is right.

    Attributes:
        strategy: with a capital N for the number of candidates: `pass@1`, `majority@N`, `pass@N`, `Best-of-N (min)`,
            `weighted vote of N (min)`, `guided search`.
        model: what wrote, and what chose.
        run: the name of its run.
        num_candidates: N; None for a search that has no number of whole candidates.
        figures: accuracy in percent, by set and `average`.
        differences: to other rows on the same problems, in points, by their strategy; then as `figures`.
        policy_tokens, judge_tokens: generated for a problem, in the mean; None where not counted, or not judged.
    """

    strategy: str
    model: str
    run: str
    num_candidates: int | None
    figures: Mapping[str, Figure]
    differences: Mapping[str, Mapping[str, Figure]]
    policy_tokens: float | None
    judge_tokens: float | None

    @property
    def method(self) -> str:
        """The strategy with its number of candidates: `Best-of-8 (min)`."""
        return numbered(self.strategy, self.num_candidates)

    def as_dict(self) -> dict[str, Any]:
        return {
            "method": self.method,
            "model": self.model,
            "run": self.run,
            "candidates": self.num_candidates,
            "accuracy": {name: figure.as_dict() for name, figure in self.figures.items()},
            "differences": {
                baseline: {name: figure.as_dict() for name, figure in figures.items()}
                for baseline, figures in self.differences.items()
            },
            "policy_tokens": self.policy_tokens,
            "judge_tokens": self.judge_tokens,
        }


@dataclass(frozen=True)
class SearchMeasurement:
    """Runs on the same problems.

    Attributes:
        sets: name -> number of problems.
        rows: of the table.
        curve: rows with N = 1, 2, 4, ... up to all candidates, where asked for.
        answers: of every solution measured, graded, run by run; where several runs have the same solutions, once.
        notes: what a reader of the figures must know, in sentences.
    """

    sets: Mapping[str, int]
    rows: tuple[MeasuredRow, ...]
    curve: tuple[MeasuredRow, ...]
    answers: tuple[GradedAnswer, ...]
    num_resamples: int
    seed: int
    notes: tuple[str, ...]

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
            "resamples": self.num_resamples,
            "seed": self.seed,
            "notes": list(self.notes),
        }


def numbered(strategy: str, size: int | None) -> str:
    """The name of a strategy with its number of candidates: `majority@8`."""
    return strategy if size is None else re.sub(r"\bN\b", str(size), strategy)
