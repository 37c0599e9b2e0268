"""Labelled steps in: from our own rows, and from every format that step labels are published in; `rprm bench steps`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from rprm import reading
from rprm.benchmarks import Benchmark, StepItems, tally_steps
from rprm.data.formats import Origin, math_shepherd_steps, prm800k_steps, solution_steps, stepwise_steps
from rprm.data.gsm8k import gsm8k_steps
from rprm.data.options import AUTO, StepOptions
from rprm.errors import InputError
from rprm.reading import Rejected, Row, Source
from rprm.records import LabelledStep
from rprm.runs import RESULTS, finished_manifest

#: The stage's name in a manifest.
STAGE = "steps"


def steps_source(name: str | Path) -> Source:
    """What labelled steps are read from: a run folder of `rprm data steps` (a RunError where it is none, or is not
    complete), a file, or a hub data set (split `train`).
    """
    folder = Path(name)
    if not folder.is_dir():
        return Source(str(name), split="train")
    finished_manifest(folder, stage=STAGE, command="rprm data steps")
    return Source(str(folder / RESULTS))


def read_labelled_steps(source: Source) -> Iterator[LabelledStep | Rejected]:
    """Every row of a source as a `LabelledStep`; other fields are ignored, and without an id it is `line-N`."""
    return reading.read_rows(source, lambda row: labelled_step_of(row.value, default_id=f"line-{row.line}"))


class _StepRow(reading.RowModel):
    id: reading.Identifier | None = None
    problem: reading.Text
    previous_steps: list[reading.AnyText] | None = None
    step: reading.Text
    label: bool
    source: reading.AnyText | None = None


def labelled_step_of(value: Any, *, default_id: str, default_source: str | None = None) -> LabelledStep:
    """Check one row and make a `LabelledStep` of it; an InputError says what is wrong with it."""
    row = reading.checked(_StepRow, value)
    return LabelledStep(
        id=row.id or default_id,
        problem=row.problem,
        previous_steps=tuple(row.previous_steps or ()),
        step=row.step,
        label=row.label,
        source=default_source if row.source is None else row.source,
    )


def _own_step(record: dict[str, Any], origin: Origin, options: StepOptions) -> list[LabelledStep]:
    return [labelled_step_of(record, default_id=origin.id, default_source=origin.source)]


#: For each format the fields that tell it, with their types (the first format that fits is taken), and its reader.
FORMATS: dict[str, tuple[dict[str, type], Callable[[dict[str, Any], Origin, StepOptions], list[LabelledStep]]]] = {
    "prm800k": ({"question": dict, "label": dict}, prm800k_steps),
    "steps": ({"problem": str, "step": str}, _own_step),
    "stepwise": ({"prompt": str, "completions": list, "labels": list}, stepwise_steps),
    "math-shepherd": ({"input": str, "label": str}, math_shepherd_steps),
    "solutions": ({"problem": str, "steps": list}, solution_steps),
    "gsm8k": ({"question": str, "answer": str}, gsm8k_steps),
}


class Expanded(NamedTuple):
    """The labelled steps of one row of a source, and what of it gave none, by reason."""

    format: str
    steps: list[LabelledStep]
    skipped: Counter[str]


def read_steps(
    source: Source, *, format: str = AUTO, options: StepOptions | None = None
) -> Iterator[Expanded | Rejected]:
    """The labelled steps of every row of a source; `format` is one of `FORMATS`, or `auto`, by each row's fields."""
    name = source_name(source)
    return reading.read_rows(source, lambda row: expand_row(row, name, format, options or StepOptions()))


def expand_row(row: Row, name: str, format: str, options: StepOptions) -> Expanded:
    """The labelled steps of one row of a source of this name; an InputError says what is wrong with it."""
    record, origin = reading.json_object(row.value), Origin(f"{name}-{row.line}", name)
    chosen = format_of(record) if format == AUTO else format
    return Expanded(chosen, FORMATS[chosen][1](record, origin, options), origin.skipped)


def format_of(record: dict[str, Any]) -> str:
    """The format of a row, by its fields; an InputError where no format has these."""
    for name, (fields, _) in FORMATS.items():
        if all(isinstance(record.get(field), kind) for field, kind in fields.items()):
            return name
    found = reading.field_names(record)
    formats = "; ".join(f"{name} has {', '.join(fields)}" for name, (fields, _) in FORMATS.items())
    raise InputError(f"no format of labelled steps has these fields: {found} ({formats})")


def source_name(source: Source) -> str:
    """What a source is called in ids and in `source`: the hub's name, or a file's name without its endings."""
    return source.hub["path"] if source.hub is not None else reading.stem(source.path)


def _read_items(data: str, *, revision: str | None = None) -> StepItems:
    source = steps_source(data)
    rows = list(read_labelled_steps(source))
    items = tuple(row for row in rows if not isinstance(row, Rejected))
    return StepItems(items, tuple(row for row in rows if isinstance(row, Rejected)), sources=(source.inspect(),))


STEPS = Benchmark(
    name="steps",
    help="""Labelled steps: accuracy on wrong and on correct ones, their harmonic mean (F1), accuracy on each source.

    DATA is a run folder of `rprm data steps`, or a file of labelled steps. Each step is judged alone, the steps before
    it are only read. The share of analyses that reach a verdict unasked (well-formed) is measured too: --stopping none
    counts all of them.
    """,
    read=_read_items,
    tally=tally_steps,
    judged="last step",
)
