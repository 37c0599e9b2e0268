"""`rprm data steps`: labelled steps of several sources into one run folder, without repetitions and benchmark problems.

The first pass writes the steps outside benchmarks to a working file, and remembers 33 bytes a step. The second copies
those that stand in it once and with one label. Files are put in place whole at the end.
"""

from __future__ import annotations

import os
from array import array
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from hashlib import blake2b
from itertools import chain, count
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from numpy.typing import NDArray

from rprm.data.contamination import ContaminationIndex, Excluded, Removed
from rprm.data.options import NGRAM, OVERLAP, Format, StepOptions
from rprm.data.steps import STAGE, read_steps, source_name
from rprm.errors import InputError
from rprm.reading import Rejected, Source
from rprm.records import LabelledStep
from rprm.runs import REJECTED, RESULTS, Run, versions

#: Problems left out because they stand in a benchmark.
REMOVED = "removed.jsonl"


def gather_steps(
    sources: Sequence[Source], output: str | Path, *, format: str = Format.auto, options: StepOptions | None = None,
    benchmarks: Sequence[Excluded] = (), ngram: int = NGRAM, overlap: float = OVERLAP, limit: int | None = None,
    strict: bool = False, on_row: Callable[[int, int], None] = lambda num_rows, num_steps: None,
) -> dict[str, Any]:  # fmt: skip
    """Write the labelled steps of the sources to a run folder, in their order, without problems of the benchmarks.

    `limit` reads the first steps alone, before anything is left out; `on_row` is called every 1,000 rows with the
    numbers of rows and steps. Returns the counts, as in `summary.json`; see `_Gathered.summary`.
    """
    if not sources:
        raise ValueError("no sources: give at least one")
    options = options or StepOptions()
    settings = {
        # The names stand in ids.
        "inputs": [{"name": source_name(source), "digest": source.inspect().digest} for source in sources],
        "format": format,
        **asdict(options),
        "exclude": [{"name": benchmark.name, "digest": benchmark.source.digest} for benchmark in benchmarks],
        **({"ngram": ngram, "overlap": overlap} if benchmarks else {}),
        **({"limit": limit} if limit is not None else {}),
    }
    session = {"inputs": [source.name for source in sources], "versions": versions()}
    index = ContaminationIndex(chain.from_iterable(one.problems for one in benchmarks), ngram=ngram, overlap=overlap)
    with Run(output, stage=STAGE, settings=settings, session=session) as run, ExitStack() as stack:
        files: dict[str, TextIO] = {
            name: stack.enter_context((run.folder / f"{name}.partial").open("w+", encoding="utf-8", newline="\n"))
            for name in (RESULTS, REJECTED, REMOVED, "working")
        }
        gathered = _Gathered(index, files)
        try:
            for row in chain.from_iterable(read_steps(source, format=format, options=options) for source in sources):
                if strict and isinstance(row, Rejected):
                    raise InputError(f"{row.file}, line {row.line}: {row.reason}")
                gathered.num_rows += 1
                if isinstance(row, Rejected):
                    gathered.num_rejected += 1
                    files[REJECTED].write(row.model_dump_json() + "\n")
                else:
                    gathered.formats[row.format] += 1
                    gathered.skipped.update(row.skipped)
                    for step in row.steps[: None if limit is None else limit - gathered.num_read]:
                        gathered.add(step)
                if gathered.num_rows % 1000 == 0:
                    on_row(gathered.num_rows, gathered.num_read)
                if gathered.num_read == limit:
                    break
            summary = gathered.summary([benchmark.name for benchmark in benchmarks])
        except BaseException as error:
            run.note({"stopped_by": type(error).__name__})
            raise
        os.unlink(files.pop("working").name)
        for name, file in files.items():
            file.flush()
            os.fsync(file.fileno())
            os.replace(file.name, run.folder / name)
        run.complete(summary, {})
    return summary


class _Gathered:
    """The first pass, row by row, and the second at the end."""

    def __init__(self, index: ContaminationIndex, files: dict[str, TextIO]) -> None:
        self.num_rows = self.num_rejected = 0
        self.num_read = 0  # steps that the sources gave, those left out later too
        self.formats, self.skipped = Counter[str](), Counter[str]()
        self._index, self._files = index, files
        self._removed: dict[bytes, Removed | None] = {}  # by the hash of a problem
        # Of each step in the working file: hashes of its path, of the path before it, of its id and its problem.
        self._hashes, self._labels = array("Q"), array("B")

    def add(self, step: LabelledStep) -> None:
        self.num_read += 1
        problem = _hashed(step.problem)
        if problem not in self._removed:
            self._removed[problem] = self._index.match(step.problem)
        if found := self._removed[problem]:
            self._removed[problem] = found.model_copy(update={"num_steps": found.num_steps + 1})
            return
        before = problem
        for previous in step.previous_steps:
            before = _hashed(previous, before)
        for hashed in (_hashed(step.step, before), before, _hashed(step.id), problem):
            self._hashes.frombytes(hashed[:8])
        self._labels.append(step.label)
        self._files["working"].write(step.model_dump_json() + "\n")

    def summary(self, benchmarks: Sequence[str]) -> dict[str, Any]:
        """The second pass. Counts are of the steps kept, but for `num_duplicates` (stood before) and
        `num_conflicting` (called correct and wrong); `num_solutions` are paths that no other goes on from."""
        paths, before, ids, problems = np.asarray(self._hashes).reshape(-1, 4).T
        labels = np.asarray(self._labels, dtype=bool)
        conflicting = np.isin(paths, np.intersect1d(paths[labels], paths[~labels]))
        repeated, id_repeated, known_ids = _repeated(paths), _repeated(ids), np.unique(ids)
        keep = ~repeated & ~conflicting
        positions: dict[int, dict[str, int]] = {}
        sources: Counter[str] = Counter()
        given: set[str] = set()

        def is_free(name: str) -> bool:
            value = np.frombuffer(_hashed(name)[:8], dtype=np.uint64)[0]
            return name not in given and bool(known_ids[np.searchsorted(known_ids[:-1], value)] != value)

        self._files["working"].seek(0)
        for line, is_kept, needs_id in zip(self._files["working"], keep, id_repeated, strict=True):
            if not is_kept:
                continue
            step = LabelledStep.model_validate_json(line)
            if needs_id:
                given.add(name := next(filter(is_free, (f"{step.id}~{number}" for number in count(2)))))
                line = step.model_copy(update={"id": name}).model_dump_json() + "\n"
            positions.setdefault(step.step_index, {"correct": 0, "wrong": 0})["correct" if step.label else "wrong"] += 1
            sources[step.source or "unknown"] += 1
            self._files[RESULTS].write(line)
        removed = {name: {"problems": 0, "steps": 0} for name in benchmarks}
        for row in filter(None, self._removed.values()):
            self._files[REMOVED].write(row.model_dump_json() + "\n")
            removed[row.benchmark]["problems"] += 1
            removed[row.benchmark]["steps"] += row.num_steps
        return {
            "num_rows": self.num_rows,
            "num_rejected": self.num_rejected,
            "formats": dict(self.formats),
            "num_steps": int(keep.sum()),
            "num_correct": int(labels[keep].sum()),
            "num_wrong": int((~labels[keep]).sum()),
            "num_problems": len(np.unique(problems[keep])),
            "num_solutions": int(np.isin(paths[keep], before[keep], invert=True).sum()),
            "positions": dict(sorted(positions.items())),
            "sources": dict(sorted(sources.items())),
            "num_duplicates": int((repeated & ~conflicting).sum()),
            "num_conflicting": int(conflicting.sum()),
            "skipped": dict(sorted(self.skipped.items())),
            "removed": removed,
        }


def _repeated(values: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Which values stand before too."""
    repeated = np.ones(len(values), dtype=bool)
    repeated[np.unique(values, return_index=True)[1]] = False
    return repeated


def _hashed(text: str, before: bytes = b"") -> bytes:
    """16 bytes for a text after what `before` stands for; runs of white space count as one space."""
    return blake2b(before + " ".join(text.split()).encode(), digest_size=16).digest()
