"""Seven sets of mathematical problems with gold answers, for measuring what a policy and its guide solve.

R-PRM's table of guided search has six of them (arXiv 2503.21295, section 4); GSM8K test is the seventh. The paper uses
200 items each of OlympiadBench and College Math; a set of that size is named after it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from rprm.benchmarks.items import json_object, parsed_rows, refuse_revision, subset_file
from rprm.errors import InputError
from rprm.grading import RULES, AnswerRule, final_answer, olympiadbench_rule
from rprm.reading import Rejected, Source, SourceInfo

#: The size of the subsets that the paper draws of OlympiadBench and College Math.
PAPER_SUBSET_SIZE = 200


@dataclass(frozen=True, slots=True)
class MathematicsItem:
    """A problem and its gold answer.

    Attributes:
        set: `aime24`, `math500`, ...
        id: unique within the set: the data's own, or the item's 0-based place where the data have none.
        problem: its text.
        answer: the gold answer, several of them separated by commas.
        rule: how an answer is found in a solution and compared with the gold one.
        topic: what the data say it is about, where they do.
    """

    set: str
    id: str
    problem: str
    answer: str
    rule: AnswerRule
    topic: str | None = None


@dataclass(frozen=True)
class MathematicsItems:
    """The items of one set, and what became of the other rows.

    Attributes:
        set: its name.
        items: in the order of the data.
        rejected: rows that cannot be used.
        source: where the rows came from, with a hash of the file or the revision on the hub.
    """

    set: str
    items: tuple[MathematicsItem, ...]
    rejected: tuple[Rejected, ...]
    source: SourceInfo

    @property
    def name(self) -> str:
        """The set's name in a table."""
        return set_title(self.set, len(self.items))


def set_title(set_name: str, num_items: int) -> str:
    """How tables call a set: `olympiadbench (200 items)` is of the size of the paper's subset."""
    is_sampled = set_name in PAPER_SUBSETS and num_items == PAPER_SUBSET_SIZE
    return f"{set_name} ({num_items} items)" if is_sampled else set_name


@dataclass(frozen=True, slots=True)
class _Gold:
    """What a set's own fields say: the gold answer and its rule."""

    answer: str
    rule: AnswerRule


@dataclass(frozen=True, slots=True)
class _Set:
    """Where a set is, and how its rows are read; the first field that a row has is taken.

    Attributes:
        hub: its data set on the hub, None where it has no home there.
        split: of the hub data set.
        gold: reads the gold answer.
        config: of the hub data set.
        id_fields: of the row's own id.
        topic_field: of what it is about.
    """

    hub: str | None
    split: str
    gold: Callable[[dict[str, Any]], _Gold]
    config: str | None = None
    id_fields: tuple[str, ...] = ("id",)
    topic_field: str | None = None


def read_mathematics(set_name: str, data: str | Path | None = None, *, revision: str | None = None) -> MathematicsItems:
    """Read one of the mathematics sets.

    Args:
        set_name: one of `SETS`.
        data: a folder with `SET.jsonl` (or `.json`, `.jsonl.gz`, `.json.gz`); or a file; or a hub data set; None for
            the set's own place on the hub.
        revision: of the hub data set; the one that was read is recorded in `source`.

    Raises:
        InputError: there is no such set, or nothing can be read at all.
    """
    if set_name not in _SETS:
        raise InputError(f"{set_name!r} is no mathematics set; known are {', '.join(_SETS)}")
    known = _SETS[set_name]
    source = _source(set_name, known, data, revision)
    rejected: list[Rejected] = []
    ids: set[str] = set()
    place = -1

    def parse(value: Any) -> MathematicsItem:
        nonlocal place
        place += 1
        item = _item(set_name, known, json_object(value), place)
        if item.id in ids:
            raise InputError(f"id {item.id!r} stands in an earlier row already; ids must be unique")
        ids.add(item.id)
        return item

    items = tuple(parsed_rows(source.name, source.rows(), parse, rejected))
    if not items:
        if not rejected:
            raise InputError(f"{source.name}: no rows")
        first = rejected[0]
        raise InputError(
            f"{source.name}: none of {len(rejected)} rows is an item of {set_name}; the first, line {first.line}: "
            f"{first.reason}"
        )
    return MathematicsItems(set_name, items, tuple(rejected), source.inspect())


def _source(set_name: str, known: _Set, data: str | Path | None, revision: str | None) -> Source:
    if data is None:
        if known.hub is None:
            raise InputError(f"{set_name} has no data set on the hub; give a file, or a folder with {set_name}.jsonl")
        return _on_hub(known.hub, known, revision)
    path = Path(data)
    refuse_revision(path, revision)
    if path.is_dir():
        file = subset_file(path, set_name)
        if file is None:
            raise InputError(f"{path}: no {set_name}.jsonl in this folder")
        return Source(str(file))
    if path.is_file():
        return Source(str(path))
    if not re.fullmatch(r"(hub:)?[\w.-]+/[\w.-]+", str(data)):
        raise InputError(f"{data}: no such file or folder, and no name of a hub data set (OWNER/NAME)")
    return _on_hub(str(data).removeprefix("hub:"), known, revision)


def _on_hub(name: str, known: _Set, revision: str | None) -> Source:
    """The hub data set at the commit that its name means now, so that what is read is what is recorded."""
    options = {"split": known.split} | ({"config": known.config} if known.config else {})
    if revision is None:
        revision = Source(f"hub:{name}?{urlencode(options)}").inspect().digest.removeprefix("revision:")
    return Source(f"hub:{name}?{urlencode(options | {'revision': revision})}")


def _item(set_name: str, known: _Set, record: dict[str, Any], place: int) -> MathematicsItem:
    problem = _first_text(record, ("problem", "question", "query"))
    context = record.get("context")
    if isinstance(context, str) and context.strip() and context not in problem:
        problem = f"{context.strip()}\n\n{problem}"
    identifier = next((record[field] for field in known.id_fields if record.get(field) is not None), place)
    if isinstance(identifier, bool) or not isinstance(identifier, str | int) or identifier == "":
        raise InputError(f"the id must be a text or a whole number, not {identifier!r:.80}")
    gold = known.gold(record)
    topic = record.get(known.topic_field) if known.topic_field else None
    try:
        f"{identifier}{problem}{gold.answer}".encode()
    except UnicodeEncodeError as error:
        raise InputError(f"text that is not Unicode: a lone surrogate {error.object[error.start]!r}") from None
    return MathematicsItem(
        set=set_name,
        id=str(identifier),
        problem=problem,
        answer=gold.answer,
        rule=gold.rule,
        topic=topic if isinstance(topic, str) and topic else None,
    )


def _first_text(record: dict[str, Any], fields: tuple[str, ...]) -> str:
    for field in fields:
        value = record.get(field)
        if isinstance(value, str) and value.strip():
            return value
    raise InputError(
        f"none of {', '.join(map(repr, fields))} is a text that is not empty; fields are: {_names(record)}"
    )


def _names(record: dict[str, Any]) -> str:
    return ", ".join(sorted(record)[:20])


def _plain_answer(rule: AnswerRule) -> Callable[[dict[str, Any]], _Gold]:
    """The field `answer`, a text or a number."""

    def gold(record: dict[str, Any]) -> _Gold:
        value = record.get("answer")
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, int | float) and not isinstance(value, bool):
            value = str(value)
        if not isinstance(value, str) or not value.strip():
            raise InputError(f"'answer' must be a text or a number, not {value!r:.80}; fields are: {_names(record)}")
        return _Gold(value.strip(), rule)

    return gold


def _aime(record: dict[str, Any]) -> _Gold:
    gold = _plain_answer(RULES["aime24"])(record)
    if not re.fullmatch(r"\d{1,3}", gold.answer, flags=re.ASCII):
        raise InputError(f"an answer of the AIME is a whole number from 0 to 999, not {gold.answer!r:.80}")
    return gold


def _minerva(record: dict[str, Any]) -> _Gold:
    """The field `answer`, or else the last box of `solution`."""
    if record.get("answer") is not None:
        return _plain_answer(RULES["minerva_math"])(record)
    answer = final_answer(_first_text(record, ("solution",)), RULES["minerva_math"])
    if answer is None:
        raise InputError("'solution' has no \\boxed{...} that is closed, and there is no 'answer'")
    return _Gold(answer, RULES["minerva_math"])


def _olympiadbench(record: dict[str, Any]) -> _Gold:
    answers = record.get("final_answer")
    if not isinstance(answers, list) or not answers or not all(isinstance(text, str) and text for text in answers):
        raise InputError(f"'final_answer' must be a list of texts, at least one; not {answers!r:.80}")
    unit = record.get("unit")
    rule = olympiadbench_rule(
        multiple=record.get("is_multiple_answer") is True or len(answers) > 1,
        unit=unit if isinstance(unit, str) and unit else None,
        error=_tolerance(record.get("error")),
    )
    return _Gold(", ".join(answers), rule)


def _tolerance(value: Any) -> Fraction | None:
    """OlympiadBench's `error`: how far a number may be off; of several, the smallest."""
    if value is None or value == "":
        return None
    texts = [text.strip() for text in str(value).split(",")]
    if not all(re.fullmatch(r"\d*\.?\d+(?:[eE]-?\d{1,2})?", text, flags=re.ASCII) for text in texts):
        raise InputError(f"'error' must be a number such as 1e-2, not {value!r:.80}")
    return min(Fraction(text) for text in texts)


def _gsm8k(record: dict[str, Any]) -> _Gold:
    answer = final_answer(_first_text(record, ("answer",)), RULES["gsm8k"])
    if answer is None or not re.fullmatch(r"-?[\d,]+(?:\.\d+)?", answer, flags=re.ASCII):
        raise InputError(f"'answer' must end in a line '#### NUMBER'; found {answer!r:.80}")
    return _Gold(answer, RULES["gsm8k"])


_SETS: dict[str, _Set] = {
    "aime24": _Set("HuggingFaceH4/aime_2024", "train", _aime),
    "amc23": _Set("math-ai/amc23", "test", _plain_answer(RULES["amc23"])),
    "math500": _Set(
        "HuggingFaceH4/MATH-500",
        "test",
        _plain_answer(RULES["math500"]),
        id_fields=("unique_id", "id"),
        topic_field="subject",
    ),
    "olympiadbench": _Set("math-ai/olympiadbench", "test", _olympiadbench, topic_field="subfield"),
    "college_math": _Set(None, "test", _plain_answer(RULES["college_math"]), topic_field="data_topic"),
    "minerva_math": _Set("math-ai/minervamath", "test", _minerva, topic_field="type"),
    "gsm8k": _Set("openai/gsm8k", "test", _gsm8k, config="main"),
}

#: Names of the sets, in the order of the paper's table.
SETS: tuple[str, ...] = tuple(_SETS)

#: Sets of which the paper uses 200 items.
PAPER_SUBSETS = frozenset(["olympiadbench", "college_math"])
