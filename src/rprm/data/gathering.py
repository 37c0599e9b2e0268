"""`rprm data steps`: labelled steps of several sources into one run folder, without repetitions and benchmark problems.

Two passes. The first streams the sources, leaves out problems that stand in a benchmark, and writes the steps to a
working file; it remembers 45 bytes a step. The second copies the working file without steps that stand in it twice or
with both labels. Files are put in place whole at the end, so that a killed run is simply begun again.
"""

from __future__ import annotations

import os
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from rprm.data.contamination import Benchmark, ContaminationIndex, Removed
from rprm.data.options import AUTO, NGRAM, OVERLAP, StepOptions
from rprm.data.steps import STAGE, read_steps, source_name
from rprm.errors import InputError
from rprm.reading import Rejected, Source
from rprm.records import LabelledStep
from rprm.runs import Run, versions

#: Problems left out because they stand in a benchmark.
REMOVED = "removed.jsonl"

#: How often `on_row` is told of the rows read.
_ROWS_BETWEEN_REPORTS = 1000


@dataclass(frozen=True)
class GatheredSteps:
    """What a run came to. Counts are of the steps kept, where nothing else is said.

    Attributes:
        num_rows: rows of the sources.
        num_rejected: rows rejected.
        formats: rows by format.
        num_steps: steps kept.
        num_correct, num_wrong: of them, by label.
        num_problems: different problems.
        num_solutions: paths of steps that no other kept step goes on from.
        positions: 0-based place of a step -> steps there, correct and wrong.
        sources: `source` of a step -> steps.
        num_duplicates: steps left out because the same one stood before.
        num_conflicting: steps left out because the same one is called correct and wrong, all of them.
        skipped: what the rows hold that gave no step, by reason.
        removed: benchmark -> problems and steps left out because they stand in it.
    """

    num_rows: int = 0
    num_rejected: int = 0
    formats: dict[str, int] = field(default_factory=dict)
    num_steps: int = 0
    num_correct: int = 0
    num_wrong: int = 0
    num_problems: int = 0
    num_solutions: int = 0
    positions: dict[int, dict[str, int]] = field(default_factory=dict)
    sources: dict[str, int] = field(default_factory=dict)
    num_duplicates: int = 0
    num_conflicting: int = 0
    skipped: dict[str, int] = field(default_factory=dict)
    removed: dict[str, dict[str, int]] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def gather_steps(
    sources: Sequence[Source],
    output: str | Path,
    *,
    format: str = AUTO,
    options: StepOptions | None = None,
    benchmarks: Sequence[Benchmark] = (),
    ngram: int = NGRAM,
    overlap: float = OVERLAP,
    limit: int | None = None,
    strict: bool = False,
    on_row: Callable[[int, int], None] = lambda num_rows, num_steps: None,
) -> GatheredSteps:
    """Write the labelled steps of the sources to a run folder, in their order.

    Args:
        sources: at least one.
        output: the run folder. One with the same settings is written anew, and ends with the same bytes.
        format: as for `read_steps`.
        options: what the formats leave open.
        benchmarks: whose problems are left out.
        ngram, overlap: as for `ContaminationIndex`.
        limit: read the first steps alone, this many, before anything is left out.
        strict: stop at the first row that cannot be used.
        on_row: told now and then of the rows read and the steps found.

    Raises:
        RunError: the folder cannot be used; see `Run`.
        InputError: a source cannot be read at all; or a row, when strict.
    """
    options = options or StepOptions()
    if not sources:
        raise ValueError("no sources: give at least one")
    inputs = [source.inspect() for source in sources]
    settings = {
        "inputs": [
            # The name stands in ids.
            {"name": source_name(source), "digest": info.digest}
            for source, info in zip(sources, inputs, strict=True)
        ],
        "format": format,
        **asdict(options),
        "exclude": [{"name": benchmark.name, "digest": benchmark.source.digest} for benchmark in benchmarks],
        **({"ngram": ngram, "overlap": overlap} if benchmarks else {}),
        **({"limit": limit} if limit is not None else {}),
    }
    session = {"inputs": [info.name for info in inputs], "versions": versions()}
    with Run(output, stage=STAGE, settings=settings, session=session) as run:
        index = ContaminationIndex(
            chain.from_iterable(benchmark.problems for benchmark in benchmarks), ngram=ngram, overlap=overlap
        )
        gathering = _Gathering(run.folder, index)
        try:
            for item in chain.from_iterable(read_steps(source, format=format, options=options) for source in sources):
                if isinstance(item, Rejected):
                    if strict:
                        raise InputError(f"{item.file}, line {item.line}: {item.reason}")
                    gathering.reject(item)
                else:
                    left = None if limit is None else limit - gathering.num_read
                    gathering.add_row(item.format, item.skipped, item.steps[:left])
                if gathering.num_rows % _ROWS_BETWEEN_REPORTS == 0:
                    on_row(gathering.num_rows, gathering.num_read)
                if limit is not None and gathering.num_read >= limit:
                    break
            result = gathering.finish([benchmark.name for benchmark in benchmarks])
        except BaseException as error:
            run.note({"stopped_by": type(error).__name__})
            raise
        finally:
            gathering.close()
        run.complete(result.as_dict(), {})
    return result


class _Gathering:
    """The first pass, row by row, and the second at the end."""

    def __init__(self, folder: Path, index: ContaminationIndex) -> None:
        self.folder = folder
        self.num_rows = 0
        self.num_rejected = 0
        #: Steps that the sources gave, those left out later too.
        self.num_read = 0
        self._index = index
        self._formats: Counter[str] = Counter()
        self._skipped: Counter[str] = Counter()
        # Of each step in the working file: the hash of its path, of the path before it, and of its id (16, 16 and 8
        # bytes), its label, its place, and the number of its problem.
        self._paths = array("Q")
        self._before = array("Q")
        self._ids = array("Q")
        self._labels = array("B")
        self._problems = array("I")
        # Hash of a problem -> its number, or what it repeats.
        self._known: dict[bytes, int | Removed] = {}
        self._removed_steps: Counter[bytes] = Counter()
        self._working = self._open("working")
        self._rejected = self._open("rejected.jsonl")

    def _open(self, name: str) -> BinaryIO:
        return (self.folder / f"{name}.partial").open("wb")

    def reject(self, rejected: Rejected) -> None:
        self.num_rows += 1
        self.num_rejected += 1
        self._rejected.write(rejected.model_dump_json().encode() + b"\n")

    def add_row(self, format: str, skipped: Counter[str], steps: Iterable[LabelledStep]) -> None:
        self.num_rows += 1
        self._formats[format] += 1
        self._skipped.update(skipped)
        for step in steps:
            self.num_read += 1
            self._add(step)

    def _add(self, step: LabelledStep) -> None:
        problem = _hashed(b"", step.problem)
        known = self._known.get(problem)
        if known is None:
            match = self._index.match(step.problem)
            known = len(self._known) if match is None else Removed(problem=step.problem, num_steps=0, **asdict(match))
            self._known[problem] = known
        if isinstance(known, Removed):
            self._removed_steps[problem] += 1
            return
        before = problem
        for previous in step.previous_steps:
            before = _hashed(before, previous)
        self._before.frombytes(before)
        self._paths.frombytes(_hashed(before, step.step))
        self._ids.frombytes(_hashed(b"", step.id)[:8])
        self._labels.append(step.label)
        self._problems.append(known)
        self._working.write(step.model_dump_json().encode() + b"\n")

    def finish(self, benchmarks: Sequence[str]) -> GatheredSteps:
        """The second pass: put the files in place, and say what they hold."""
        self._working.flush()
        paths = np.frombuffer(self._paths, dtype=np.uint64).reshape(-1, 2)
        before = np.frombuffer(self._before, dtype=np.uint64).reshape(-1, 2)
        labels = np.frombuffer(self._labels, dtype=np.uint8)
        problems = np.frombuffer(self._problems, dtype=f"u{self._problems.itemsize}")
        first, conflicting = _distinct(paths, labels)
        keep = first & ~conflicting
        positions: dict[int, Counter[str]] = {}
        sources: Counter[str] = Counter()
        with (self.folder / "working.partial").open("rb") as working, self._open("results.jsonl") as results:
            for step, line in self._kept(working, keep):
                positions.setdefault(step.step_index, Counter())["correct" if step.label else "wrong"] += 1
                sources[step.source or "unknown"] += 1
                results.write(line)
        removed = [
            known.model_copy(update={"num_steps": self._removed_steps[problem]})
            for problem, known in self._known.items()
            if isinstance(known, Removed)
        ]
        with self._open(REMOVED) as stream:
            stream.writelines(row.model_dump_json().encode() + b"\n" for row in removed)
        self.close()
        for name in ("results.jsonl", "rejected.jsonl", REMOVED):
            with (partial := self.folder / f"{name}.partial").open("rb+") as stream:
                os.fsync(stream.fileno())
            os.replace(partial, self.folder / name)
        (self.folder / "working.partial").unlink()
        return GatheredSteps(
            num_rows=self.num_rows,
            num_rejected=self.num_rejected,
            formats=dict(self._formats),
            num_steps=int(keep.sum()),
            num_correct=int(labels[keep].sum()),
            num_wrong=int(keep.sum()) - int(labels[keep].sum()),
            num_problems=len(np.unique(problems[keep])),
            num_solutions=_num_leaves(paths[keep], before[keep]),
            positions={
                place: {"correct": positions[place]["correct"], "wrong": positions[place]["wrong"]}
                for place in sorted(positions)
            },
            sources=dict(sorted(sources.items())),
            num_duplicates=int((~first & ~conflicting).sum()),
            num_conflicting=int(conflicting.sum()),
            skipped=dict(sorted(self._skipped.items())),
            removed={
                name: {
                    "problems": sum(row.benchmark == name for row in removed),
                    "steps": sum(row.num_steps for row in removed if row.benchmark == name),
                }
                for name in benchmarks
            },
        )

    def _kept(self, working: BinaryIO, keep: NDArray[np.bool_]) -> Iterable[tuple[LabelledStep, bytes]]:
        """The steps that are kept, each with its line; an id that stood before gets `~2`, `~3`, ... at its end."""
        ids = np.frombuffer(self._ids, dtype=np.uint64)
        order = np.argsort(ids, kind="stable")
        repeated = np.zeros(len(ids), dtype=bool)
        repeated[order[1:]] = ids[order[1:]] == ids[order[:-1]]
        ordered = ids[order]
        given: set[bytes] = set()
        for number, line in enumerate(working):
            if not keep[number]:
                continue
            step = LabelledStep.model_validate_json(line)
            if repeated[number]:
                count, name = 2, f"{step.id}~2"
                while _stands(ordered, name) or _hashed(b"", name) in given:
                    count, name = count + 1, f"{step.id}~{count + 1}"
                given.add(_hashed(b"", name))
                step = step.model_copy(update={"id": name})
                line = step.model_dump_json().encode() + b"\n"
            yield step, line

    def close(self) -> None:
        self._working.close()
        self._rejected.close()


def _hashed(before: bytes, text: str) -> bytes:
    """16 bytes for a text after what `before` stands for; runs of white space count as one space."""
    return blake2b(before + " ".join(text.split()).encode(), digest_size=16).digest()


def _stands(ordered: NDArray[np.uint64], name: str) -> bool:
    value = np.frombuffer(_hashed(b"", name)[:8], dtype=np.uint64)[0]
    place = int(np.searchsorted(ordered, value))
    return place < len(ordered) and bool(ordered[place] == value)


def _distinct(keys: NDArray[np.uint64], labels: NDArray[np.uint8]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """For each row of keys (rows x 2): is it the first with its key; has its key both labels."""
    first = np.zeros(len(keys), dtype=bool)
    conflicting = np.zeros(len(keys), dtype=bool)
    if len(keys):
        # Stable: rows with one key stay in the order of the file.
        order = np.lexsort((keys[:, 1], keys[:, 0]))
        begins = _begins(keys[order])
        first[order[begins]] = True
        mixed = np.minimum.reduceat(labels[order], begins) != np.maximum.reduceat(labels[order], begins)
        conflicting[order] = np.repeat(mixed, np.diff([*begins, len(keys)]))
    return first, conflicting


def _num_leaves(paths: NDArray[np.uint64], before: NDArray[np.uint64]) -> int:
    """Paths that are no other's beginning."""
    if not len(paths):
        return 0
    both = np.concatenate([paths, before])
    is_before = np.concatenate([np.zeros(len(paths), dtype=bool), np.ones(len(before), dtype=bool)])
    order = np.lexsort((both[:, 1], both[:, 0]))
    gone_on = np.logical_or.reduceat(is_before[order], _begins(both[order]))
    return int((~gone_on).sum())


def _begins(ordered: NDArray[np.uint64]) -> NDArray[np.intp]:
    """Where each run of equal rows begins."""
    return np.flatnonzero(np.r_[True, (ordered[1:] != ordered[:-1]).any(axis=1)])
