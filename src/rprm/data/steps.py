"""Labelled steps in: rows of `LabelledStep`, from a file or from a run of `rprm data steps`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from rprm.artifacts import RESULTS, read_manifest
from rprm.errors import InputError
from rprm.reading import MAX_REJECTED_TEXT, Rejected, Source
from rprm.records import LabelledStep

#: The stage's name in a manifest.
STAGE = "steps"


def steps_source(name: str | Path) -> Source:
    """What labelled steps are read from: a run folder of `rprm data steps`, a file, or a hub data set.

    Raises:
        InputError: there is no such file, or the run has not ended.
        RunError: the folder is no run folder, or one of another stage.
        CorruptRun: its manifest cannot be read.
    """
    folder = Path(name)
    if not folder.is_dir():
        return Source(str(name))
    manifest = read_manifest(folder)
    if manifest["stage"] != STAGE:
        raise InputError(f"{folder} is a run of the stage {manifest['stage']!r}; name a run of `rprm data steps`")
    if manifest.get("status") != "complete":
        raise InputError(f"{folder}: the run has not ended; run the same `rprm data steps` command again")
    return Source(str(folder / RESULTS))


def read_labelled_steps(source: Source) -> Iterator[LabelledStep | Rejected]:
    """Every row of a source as a `LabelledStep`, or as `Rejected` with the reason.

    Fields that a labelled step does not have are ignored; without an id the row is `line-N`.
    """
    for row in source.rows():
        if isinstance(row, Rejected):
            yield row
            continue
        try:
            yield labelled_step_of(row.value, default_id=f"line-{row.line}")
        except InputError as error:
            yield Rejected(file=source.name, line=row.line, reason=str(error), text=row.text[:MAX_REJECTED_TEXT])


def labelled_step_of(value: Any, *, default_id: str) -> LabelledStep:
    """Check one row and make a `LabelledStep` of it.

    Raises:
        InputError: what is wrong with the row, without its place.
    """
    if not isinstance(value, dict):
        raise InputError(f"a record must be a JSON object, not {type(value).__name__}")
    fields = {name: value[name] for name in LabelledStep.model_fields if name in value}
    try:
        step = LabelledStep.model_validate({"id": default_id, **fields}, strict=False)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise InputError(f"{where!r}: {first['msg']}") from None
    return step
