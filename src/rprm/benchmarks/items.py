"""Items of the two benchmarks, from files or from the hub.

A row that cannot be used is set aside as `Rejected`, with its file, line and reason; the rows after it are read. An
item carries the `Solution` to judge, so that judging needs to know nothing about benchmarks.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar
from urllib.parse import urlencode

from rprm.errors import InputError
from rprm.reading import MAX_REJECTED_TEXT, Rejected, Row, Source, SourceInfo
from rprm.records import Solution

#: The hub data sets of the benchmarks' authors.
PROCESSBENCH_HUB = "Qwen/ProcessBench"
PRMBENCH_HUB = "hitsmy/PRMBench_Preview"

#: The subsets of ProcessBench, in the order of its tables (arXiv 2412.06559, table 3). On the hub each is a split.
PROCESSBENCH_SUBSETS = ("gsm8k", "math", "olympiadbench", "omnimath")

#: The groups of PRMBench and their classes, spelled as in its data (arXiv 2501.03124, table 3).
PRMBENCH_GROUPS = {
    "simplicity": ("redundency", "circular"),
    "soundness": ("counterfactual", "step_contradiction", "domain_inconsistency", "confidence"),
    "sensitivity": ("missing_condition", "deception", "multi_solutions"),
}
PRMBENCH_CLASSES = tuple(name for names in PRMBENCH_GROUPS.values() for name in names)

#: The classification of the unmodified solutions; they serve PRMBench's similarity measure alone.
CORRECT = "correct"

_SUFFIXES = (".jsonl", ".json", ".jsonl.gz", ".json.gz")


@dataclass(frozen=True, slots=True)
class ProcessBenchItem:
    """A solution with its earliest wrong step (`solution.label`, 0-based; -1: every step is right)."""

    subset: str
    solution: Solution
    label: int
    generator: str | None = None
    final_answer_correct: bool | None = None

    @property
    def id(self) -> str:
        return self.solution.id


@dataclass(frozen=True, slots=True)
class PRMBenchItem:
    """A modified solution with its wrong steps.

    `error_steps` is 1-based, as in the data. About a hundred rows of the benchmark name steps past the end of the
    solution; its evaluation never meets them, so that `wrong_steps` leaves them out.
    """

    classification: str
    idx: str
    solution: Solution
    error_steps: tuple[int, ...]

    @property
    def id(self) -> str:
        """The benchmark's key, `{classification}_{idx}`."""
        return self.solution.id

    @property
    def wrong_steps(self) -> frozenset[int]:
        """0-based indices of the wrong steps."""
        return frozenset(step - 1 for step in self.error_steps if step <= len(self.solution.steps))

    @property
    def is_clean(self) -> bool:
        """Whether the problem is not one of PRM800K's training problems, on which PRMs are commonly trained."""
        return not self.idx.startswith("prm_train_")


Item = TypeVar("Item", ProcessBenchItem, PRMBenchItem)


@dataclass(frozen=True)
class BenchmarkItems(Generic[Item]):
    """The items of a benchmark, and what became of the other rows.

    Attributes:
        items: in the order of the data.
        rejected: rows that cannot be used.
        repeated: keys that stood in several rows, of which the first was taken (PRMBench; its data has five).
        sources: where the rows came from, each with a hash of the file or the revision on the hub.
    """

    items: tuple[Item, ...]
    rejected: tuple[Rejected, ...] = ()
    repeated: tuple[str, ...] = ()
    sources: tuple[SourceInfo, ...] = ()

    @property
    def solutions(self) -> list[Solution]:
        """What to judge, in order."""
        return [item.solution for item in self.items]


def read_processbench(
    data: str | Path = PROCESSBENCH_HUB, *, revision: str | None = None
) -> BenchmarkItems[ProcessBenchItem]:
    """Read ProcessBench (QwenLM/ProcessBench).

    Args:
        data: a folder with `gsm8k.jsonl`, `math.jsonl`, ... (or `.json`, `.jsonl.gz`, `.json.gz`; whichever of the four
            subsets are there); or one file, whose items belong to the subset of their id (`math-12`) or else of the
            file's name; or a hub data set whose splits are the subsets.
        revision: of the hub data set; the one that was read is recorded in `sources`.

    Raises:
        InputError: nothing can be read at all.
    """
    sources: list[tuple[str | None, Source]]
    path = Path(data)
    refuse_revision(path, revision)
    if path.is_dir():
        found = [(subset, subset_file(path, subset)) for subset in PROCESSBENCH_SUBSETS]
        sources = [(subset, Source(str(file))) for subset, file in found if file is not None]
        if not sources:
            names = ", ".join(f"{subset}.jsonl" for subset in PROCESSBENCH_SUBSETS)
            raise InputError(f"{path}: no subset of ProcessBench in this folder; its files are named {names}")
    elif path.is_file():
        sources = [(None, Source(str(path)))]
    else:
        pinned = _hub_revision(str(data), PROCESSBENCH_SUBSETS[0], revision)
        sources = [(subset, _hub_source(str(data), subset, pinned)) for subset in PROCESSBENCH_SUBSETS]
    ids: set[str] = set()
    items: list[ProcessBenchItem] = []
    rejected: list[Rejected] = []
    for subset, source in sources:

        def parse(value: Any, subset: str | None = subset, source: Source = source) -> ProcessBenchItem:
            item = _processbench_item(value, subset, source.path)
            if item.id in ids:
                raise InputError(f"id {item.id!r} stands in an earlier row already; ids must be unique")
            ids.add(item.id)
            return item

        items += parsed_rows(source.name, source.rows(), parse, rejected)
    return _collected(items, rejected, (), [source for _, source in sources])


def read_prmbench(data: str | Path = PRMBENCH_HUB, *, revision: str | None = None) -> BenchmarkItems[PRMBenchItem]:
    """Read PRMBench (ssmisya/PRMBench, `mr_eval/tasks/prmtest_classified/task.py`).

    Where a key stands in several rows the first is taken. Each `redundency` row also gives a `correct` item, the
    solution before it was modified.

    Args:
        data: a file; or a folder, whose `.jsonl` and `.json` files are read in the order of their names; or a hub data
            set with a split `train`.
        revision: of the hub data set; the one that was read is recorded in `sources`.

    Raises:
        InputError: nothing can be read at all.
    """
    path = Path(data)
    refuse_revision(path, revision)
    rows: list[tuple[Source, Iterable[Row | Rejected]]]
    if path.is_dir():
        sources = [Source(str(file)) for file in sorted(path.iterdir()) if file.name.endswith(_SUFFIXES)]
        if not sources:
            raise InputError(f"{path}: no .jsonl or .json file in this folder")
        rows = [(source, source.rows()) for source in sources]
    elif path.is_file():
        source = Source(str(path))
        rows = [(source, source.rows())]
    else:
        pinned = _hub_revision(str(data), "train", revision)
        source = _hub_source(str(data), "train", pinned)
        rows = [(source, _prmbench_hub_rows(source, str(data), pinned))]
    items: dict[str, PRMBenchItem] = {}
    repeated: list[str] = []
    rejected: list[Rejected] = []
    for source, source_rows in rows:
        for row_items in parsed_rows(source.name, source_rows, _prmbench_items, rejected):
            modified = row_items[0]
            if modified.id in items:
                repeated.append(modified.id)
            for item in row_items:
                items.setdefault(item.id, item)
    return _collected(list(items.values()), rejected, repeated, [source for source, _ in rows])


def subset_file(folder: Path, subset: str) -> Path | None:
    files = [folder / f"{subset}{suffix}" for suffix in _SUFFIXES if (folder / f"{subset}{suffix}").is_file()]
    if len(files) > 1:
        raise InputError(f"{folder}: both {files[0].name} and {files[1].name} hold the subset {subset}; keep one")
    return files[0] if files else None


def _hub_source(name: str, split: str, revision: str | None) -> Source:
    options = {"split": split} | ({"revision": revision} if revision else {})
    return Source(f"hub:{name.removeprefix('hub:')}?{urlencode(options)}")


def _hub_revision(name: str, split: str, revision: str | None) -> str:
    """The commit that a hub name means now, so that every split is read from the same."""
    if not re.fullmatch(r"(hub:)?[\w.-]+/[\w.-]+", name):
        raise InputError(f"{name}: no such file or folder, and no name of a hub data set (OWNER/NAME)")
    return _hub_source(name, split, revision).inspect().digest.removeprefix("revision:")


def refuse_revision(path: Path, revision: str | None) -> None:
    if revision is not None and path.exists():
        raise InputError(f"{path}: a revision ({revision}) belongs to a hub data set, and this is a file or folder")


def _prmbench_hub_rows(source: Source, name: str, revision: str) -> Iterator[Row]:
    """Rows of the hub set under an explicit schema: two of its columns first appear near the end of the file."""
    try:
        from datasets import Features, Value, load_dataset
    except ImportError:
        raise InputError('reading from the hub needs the extra: pip install ".[hub]"') from None

    text, number = Value("string"), Value("int64")
    texts = ("original_question", "modified_question", "question", "reason", "idx", "classification")
    features = Features(
        {
            **dict.fromkeys((*texts, "ground_truth", "original_response"), text),
            **{name: [text] for name in ("original_process", "modified_process")},
            **{name: [number] for name in ("modified_steps", "error_steps")},
        }
    )
    try:
        dataset = load_dataset(
            name.removeprefix("hub:"), split="train", revision=revision, features=features, streaming=True
        )
        for place, value in enumerate(dataset, 1):
            yield Row(place, dict(value), json.dumps(value, ensure_ascii=False)[:MAX_REJECTED_TEXT])
    except (OSError, ValueError) as error:
        raise InputError(f"{source.name}: cannot be read from the hub: {error}") from error


Parsed = TypeVar("Parsed")


def parsed_rows(
    name: str, rows: Iterable[Row | Rejected], parse: Callable[[Any], Parsed], rejected: list[Rejected]
) -> Iterator[Parsed]:
    """What `parse` makes of each row; the rows it refuses go to `rejected`."""
    for row in rows:
        if isinstance(row, Rejected):
            rejected.append(row)
            continue
        try:
            yield parse(row.value)
        except InputError as error:
            rejected.append(Rejected(file=name, line=row.line, reason=str(error), text=row.text[:MAX_REJECTED_TEXT]))


def _collected(
    items: list[Item], rejected: list[Rejected], repeated: Iterable[str], sources: list[Source]
) -> BenchmarkItems[Item]:
    if not items:
        names = ", ".join(source.name for source in sources)
        if rejected:
            first = rejected[0]
            raise InputError(
                f"{names}: none of {len(rejected)} rows is an item; the first, {first.file} line {first.line}: "
                f"{first.reason}"
            )
        raise InputError(f"{names}: no rows")
    return BenchmarkItems(
        items=tuple(items),
        rejected=tuple(rejected),
        repeated=tuple(repeated),
        sources=tuple(source.inspect() for source in sources),
    )


def _processbench_item(value: Any, subset: str | None, path: Path) -> ProcessBenchItem:
    record = json_object(value)
    identifier = _text(record, "id")
    steps = _texts(record, "steps")
    label = record.get("label")
    if type(label) is not int or not -1 <= label < len(steps):
        raise InputError(
            f"'label' must be the 0-based index of the earliest wrong step (0 to {len(steps) - 1}), or -1 for none; "
            f"not {label!r:.80}"
        )
    if subset is None:
        prefix = re.match(r"(\w+?)[-_]\d+$", identifier)
        named = prefix[1] if prefix and prefix[1] in PROCESSBENCH_SUBSETS else None
        subset = named or path.name.split(".")[0]
    generator, final_answer_correct = record.get("generator"), record.get("final_answer_correct")
    return ProcessBenchItem(
        subset=subset,
        solution=_solution(identifier, _text(record, "problem"), steps, label),
        label=label,
        generator=generator if isinstance(generator, str) else None,
        final_answer_correct=final_answer_correct if isinstance(final_answer_correct, bool) else None,
    )


def _prmbench_items(value: Any) -> list[PRMBenchItem]:
    """The modified item of a row and, from a `redundency` row, the `correct` one."""
    record = json_object(value)
    classification = _text(record, "classification")
    if classification not in PRMBENCH_CLASSES:
        raise InputError(f"'classification' is {classification!r}; known are {', '.join(PRMBENCH_CLASSES)}")
    # The benchmark's description of its format (docs/data_format.md) shows the class in front of idx; its data do not.
    idx = _text(record, "idx").removeprefix(f"{classification}_")
    steps = _texts(record, "modified_process")
    errors = record.get("error_steps")
    if not isinstance(errors, list) or not all(type(step) is int and step >= 1 for step in errors):
        raise InputError(f"'error_steps' must be a list of step numbers counted from 1, not {errors!r:.80}")
    wrong = [step - 1 for step in errors if step <= len(steps)]
    # A row whose errors all lie past its end has no earliest wrong step to name.
    label = min(wrong) if wrong else None if errors else -1
    key = f"{classification}_{idx}"
    solution = _solution(key, _text(record, "modified_question"), steps, label)
    items = [PRMBenchItem(classification, idx, solution, tuple(errors))]
    if classification == "redundency":
        original = _solution(
            f"{CORRECT}_{idx}", _text(record, "original_question"), _texts(record, "original_process"), -1
        )
        items.append(PRMBenchItem(CORRECT, idx, original, ()))
    return items


def json_object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InputError(f"a record must be a JSON object, not {type(value).__name__}")
    return value


def _text(record: dict[str, Any], field: str) -> str:
    value = record.get(field)
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"{field!r} must be a text that is not empty, not {value!r:.80}")
    return value


def _texts(record: dict[str, Any], field: str) -> tuple[str, ...]:
    """A list of texts. A text may be empty: three steps of PRMBench are, and they count."""
    value = record.get(field)
    if not isinstance(value, list) or not value or not all(isinstance(text, str) for text in value):
        raise InputError(f"{field!r} must be a list of texts, at least one; not {value!r:.80}")
    return tuple(value)


def _solution(identifier: str, problem: str, steps: tuple[str, ...], label: int | None) -> Solution:
    try:
        "".join((identifier, problem, *steps)).encode()
    except UnicodeEncodeError as error:
        raise InputError(f"text that is not Unicode: a lone surrogate {error.object[error.start]!r}") from None
    return Solution(id=identifier, problem=problem, steps=steps, label=label)
