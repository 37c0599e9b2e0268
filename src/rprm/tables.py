"""Rewards as a tidy table, one row for each step that was judged; tables of pandas and `datasets` as rows."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable
from uuid import uuid4

from rprm.errors import InputError, RunError
from rprm.reading import cell
from rprm.records import Record, Solution, SolutionReward, StepReward

if TYPE_CHECKING:
    from pandas import DataFrame

#: The columns: what a row holds, and its type for pandas. Steps after an exit at the first error have no row:
#: `num_steps` says how many there are. What is not known is missing, as in `SolutionReward` and `StepReward`.
COLUMNS: dict[str, tuple[Callable[[SolutionReward, StepReward], Any], str]] = {
    "id": (lambda reward, step: reward.id, "string"),
    "step_index": (lambda reward, step: step.step_index, "int64"),
    "num_steps": (lambda reward, step: reward.num_steps, "int64"),
    "reward": (lambda reward, step: step.reward, "float64"),
    "vote": (lambda reward, step: step.vote, "float64"),
    "num_analyses": (lambda reward, step: len(step.analyses), "int64"),
    "num_without_verdict": (lambda reward, step: step.num_without_verdict, "int64"),
    "settled_early": (lambda reward, step: step.settled_early, "bool"),
    "failure": (lambda reward, step: step.failure, "string"),
    "first_error": (lambda reward, step: reward.first_error, "Int64"),
    "label": (lambda reward, step: reward.label, "Int64"),
}
_BATCH_ROWS = 4096


def step_rows(rewards: Iterable[SolutionReward]) -> Iterator[dict[str, Any]]:
    """The rows of a table of rewards, by the names of their columns."""
    for reward in rewards:
        for step in reward.steps:
            yield {name: value(reward, step) for name, (value, _) in COLUMNS.items()}


def to_pandas(rewards: Iterable[SolutionReward]) -> DataFrame:
    """Rewards as a DataFrame, one row for each step that was judged (`docs/python.md` lists the columns).

    Raises:
        InputError: pandas is not installed; one reward, no list of them.
    """
    given: Any = rewards
    if isinstance(given, Record):
        raise InputError("give a list of rewards, not one: to_pandas([reward])")
    try:
        import pandas as pd
    except ImportError:
        raise InputError("a DataFrame needs pandas: pip install pandas") from None
    frame = pd.DataFrame(list(step_rows(rewards)), columns=list(COLUMNS))
    return frame.astype({name: kind for name, (_, kind) in COLUMNS.items()})


def write_table(rewards: Iterable[SolutionReward], path: Path) -> int:
    """Write the rows to a file, whole or not at all, by its ending: .csv, .jsonl or .parquet; returns their number.

    Raises:
        InputError: another ending, or a Parquet file without pyarrow.
        RunError: the file cannot be written.
    """
    if (write := _WRITERS.get(path.suffix.lower())) is None:
        raise InputError(f"{path}: name a file that ends in {', '.join(_WRITERS)}")
    number = 0

    def counted() -> Iterator[dict[str, Any]]:
        nonlocal number
        for number, row in enumerate(step_rows(rewards), 1):  # noqa: B007
            yield row

    # A name of its own: others may write the same table at the same time.
    partial = path.with_name(f"{path.name}.{uuid4().hex[:8]}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            write(counted(), partial)
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise RunError(f"{path}: {'it is a folder' if path.is_dir() else error.strerror or error}") from error
    return number


def _write_csv(rows: Iterable[Mapping[str, Any]], path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8", errors="backslashreplace") as stream:
        writer = csv.DictWriter(stream, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)


def _write_json_lines(rows: Iterable[Mapping[str, Any]], path: Path) -> None:
    with path.open("w", encoding="utf-8", errors="backslashreplace") as stream:
        stream.writelines(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows)


def _write_parquet(rows: Iterator[dict[str, Any]], path: Path) -> None:
    try:
        import pyarrow as pa
        from pyarrow.parquet import ParquetWriter
    except ImportError:
        raise InputError("a Parquet file needs pyarrow: pip install pyarrow") from None
    kinds = {"bool": pa.bool_(), "float64": pa.float64(), "int64": pa.int64(), "string": pa.string()}
    schema = pa.schema([(name, kinds[kind.lower()]) for name, (_, kind) in COLUMNS.items()])
    with ParquetWriter(path, schema) as writer:
        while batch := list(islice(rows, _BATCH_ROWS)):
            writer.write_batch(pa.RecordBatch.from_pylist(batch, schema=schema))


_WRITERS: dict[str, Callable[[Any, Path], None]] = {
    ".csv": _write_csv, ".jsonl": _write_json_lines, ".parquet": _write_parquet,
}  # fmt: skip


@runtime_checkable
class Frame(Protocol):
    """A DataFrame of pandas."""

    columns: Any

    def to_dict(self, orient: Any) -> Any: ...


def rows_of(values: Iterable[Any] | Frame) -> Iterator[Any]:
    """The rows of a list, a data set of `datasets`, or a DataFrame, of values of Python: arrays and tuples are lists,
    and what a DataFrame misses is None."""
    if isinstance(values, str | os.PathLike):
        how = "[json.loads(line) for line in open(FILE)], or pandas.read_csv(FILE)"
        raise InputError(f"give a list of solutions, not {os.fspath(values)!r:.80}; those of a file: {how}")
    if isinstance(values, Mapping | Solution):
        raise InputError(f"give a list of solutions, not one {type(values).__name__}: [solution]")
    rows: Any = values
    is_table = isinstance(values, Frame) or hasattr(values, "column_names")  # of `datasets`
    if isinstance(values, Frame):
        rows = rows.astype(object).where(rows.notna(), None).to_dict("records")
    for value in rows:
        if isinstance(value, Solution) or not isinstance(value, Mapping):
            yield value
            continue
        row = {name: _plain(one) for name, one in value.items()}
        yield {name: cell(name, one) for name, one in row.items()} if is_table else row


def _plain(value: Any) -> Any:
    """An array, a scalar or a text of numpy as Python's."""
    if callable(convert := getattr(value, "tolist", None)):
        return convert()
    return [_plain(one) for one in value] if isinstance(value, list | tuple) else value
