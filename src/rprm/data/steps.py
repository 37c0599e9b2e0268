"""Labelled steps in: from our own rows, and from every format that step labels are published in.

Rows stream one at a time. A row that cannot be used is a `Rejected` with its place and the reason; the rows after it
go on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rprm.data.gsm8k import gsm8k_steps
from rprm.data.options import AUTO, StepOptions
from rprm.data.origins import Origin
from rprm.data.prm800k import prm800k_steps
from rprm.data.stepwise import math_shepherd_steps, solution_steps, stepwise_steps
from rprm.errors import InputError
from rprm.reading import AnyText, Identifier, Rejected, Row, RowModel, Source, Text, checked, read_rows
from rprm.records import LabelledStep
from rprm.runs import RESULTS, read_manifest

#: The stage's name in a manifest.
STAGE = "steps"


@dataclass(frozen=True)
class Expanded:
    """The labelled steps of one row of a source, and what of it gave none, by reason."""

    format: str
    steps: tuple[LabelledStep, ...]
    skipped: Counter[str]
    line: int


def steps_source(name: str | Path) -> Source:
    """What labelled steps are read from: a run folder of `rprm data steps`, a file, or a hub data set.

    A hub data set is read from its split `train` where the name has none.

    Raises:
        InputError: there is no such file, or the run has not ended.
        RunError: the folder is no run folder.
        CorruptRun: its manifest cannot be read.
    """
    folder = Path(name)
    if folder.is_dir():
        manifest = read_manifest(folder)
        if manifest["stage"] != STAGE:
            raise InputError(f"{folder} is a run of the stage {manifest['stage']!r}; name a run of `rprm data steps`")
        if manifest.get("status") != "complete":
            raise InputError(f"{folder}: the run has not ended; run the same `rprm data steps` command again")
        return Source(str(folder / RESULTS))
    return Source(str(name), split="train")


def read_labelled_steps(source: Source) -> Iterator[LabelledStep | Rejected]:
    """Every row of a source as a `LabelledStep`, or as `Rejected` with the reason.

    Fields that a labelled step does not have are ignored; without an id the row is `line-N`.
    """
    return read_rows(source, lambda row: labelled_step_of(row.value, default_id=f"line-{row.line}"))


class _StepRow(RowModel):
    id: Identifier | None = None
    problem: Text
    previous_steps: list[AnyText] | None = None
    step: Text
    label: bool
    source: AnyText | None = None


def labelled_step_of(value: Any, *, default_id: str) -> LabelledStep:
    """Check one row and make a `LabelledStep` of it.

    Raises:
        InputError: what is wrong with the row, without its place.
    """
    row = checked(_StepRow, value)
    return LabelledStep(
        id=row.id or default_id,
        problem=row.problem,
        previous_steps=tuple(row.previous_steps or ()),
        step=row.step,
        label=row.label,
        source=row.source,
    )


def read_steps(
    source: Source, *, format: str = AUTO, options: StepOptions | None = None
) -> Iterator[Expanded | Rejected]:
    """The labelled steps of every row of a source.

    Args:
        source: a file or hub data set.
        format: one of `FORMATS`, or `auto`, which tells each row's format by its fields.
        options: what the formats leave open.

    Raises:
        InputError: the source cannot be read at all.
    """
    name, options = source_name(source), options or StepOptions()
    return read_rows(source, lambda row: expand_row(row, name, format=format, options=options))


def expand_row(row: Row, name: str, *, format: str = AUTO, options: StepOptions) -> Expanded:
    """The labelled steps of one row; `name` is what its source is called in ids and in `source`.

    Raises:
        InputError: what is wrong with the row, without its place.
    """
    if not isinstance(row.value, dict):
        raise InputError(f"a record must be a JSON object, not {type(row.value).__name__}")
    chosen = format_of(row.value) if format == AUTO else format
    origin = Origin(f"{name}-{row.line}", name)
    steps = _EXPAND[chosen](row.value, origin, options)
    return Expanded(chosen, tuple(steps), origin.skipped, row.line)


def format_of(record: dict[str, Any]) -> str:
    """The format of a row, by its fields.

    Raises:
        InputError: no format has these fields.
    """
    for name, fields in _FIELDS.items():
        if all(isinstance(record.get(field), kind) for field, kind in fields.items()):
            return name
    found = ", ".join(sorted(map(str, record))[:12]) or "none"
    formats = "; ".join(f"{name} has {', '.join(fields)}" for name, fields in _FIELDS.items())
    raise InputError(f"no format of labelled steps has these fields: {found} ({formats})")


#: The fields that tell a format, and their types. The first that fits is taken.
_FIELDS: dict[str, dict[str, Any]] = {
    "prm800k": {"question": dict, "label": dict},
    "steps": {"problem": str, "step": str},
    "stepwise": {"prompt": str, "completions": list, "labels": list},
    "math-shepherd": {"input": str, "label": str},
    "solutions": {"problem": str, "steps": list},
    "gsm8k": {"question": str, "answer": str},
}

#: Names of the formats.
FORMATS = tuple(_FIELDS)

_EXPAND: dict[str, Callable[[dict[str, Any], Origin, StepOptions], list[LabelledStep]]] = {
    "prm800k": lambda record, origin, options: prm800k_steps(
        record,
        origin,
        neutral=options.neutral,
        keep_quality_control=options.keep_quality_control,
        keep_unfinished=options.keep_unfinished,
    ),
    "steps": lambda record, origin, options: [_own_step(record, origin)],
    "stepwise": lambda record, origin, options: stepwise_steps(record, origin, after_error=options.after_error),
    "math-shepherd": lambda record, origin, options: math_shepherd_steps(
        record, origin, after_error=options.after_error
    ),
    "solutions": lambda record, origin, options: solution_steps(record, origin),
    "gsm8k": lambda record, origin, options: gsm8k_steps(
        record, origin, wrong_share=options.wrong_share, seed=options.seed
    ),
}


def _own_step(record: dict[str, Any], origin: Origin) -> LabelledStep:
    step = labelled_step_of(record, default_id=origin.id)
    return step if step.source is not None else step.model_copy(update={"source": origin.source})


def source_name(source: Source) -> str:
    """What a source is called in ids and in `source`: the hub's name, or a file's name without its endings."""
    if source.hub is not None:
        return source.hub["path"]
    return source.path.name.split(".")[0] or source.path.name
