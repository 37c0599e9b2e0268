"""Published training rows in: what others released, as the rows that `rprm train` takes.

R-PRM's own set (`kevinpro/R-PRM`) holds parquet files under `sft/{train,validation}`, with the columns instruction and
output, and under `dpo/{train,validation}`, with instruction, chosen and rejected. It has no column of labels: the
verdict of the output (or chosen) analysis is the label, since analyses were kept because they agree with it (section
3.1).
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple
from urllib.parse import parse_qsl, urlencode

from rprm.data.datasets import Dataset, listed, messages_of
from rprm.data.wellformed import rejected_fault, verdict_fault
from rprm.errors import InputError
from rprm.models import R_PRM_SYSTEM
from rprm.prompts import Prompt, PromptTemplate, import_template
from rprm.reading import Rejected, Row, Source, SourceInfo
from rprm.records import LabelledStep

Kind = Literal["sft", "dpo"]

#: Columns of the analyses, by kind of training. A row that has those of both is a pair.
_ANALYSES: Mapping[Kind, tuple[str, ...]] = {"dpo": ("chosen", "rejected"), "sft": ("output",)}

#: Rows that the template is derived from, and the share of them that it must render exactly. The others are checked as
#: they are read.
_NUM_SAMPLED, _MIN_SHARE = 2000, 0.9


class PublishedPart(NamedTuple):
    """A part of a set: the name under which its rows are rejected, and its rows, from the first at each call."""

    name: str
    rows: Callable[[], Iterator[Row | Rejected]]


@dataclass(frozen=True)
class PublishedSet:
    """A set opened for reading.

    Attributes:
        info: its name (of a hub data set, with its revision) and what identifies its content.
        title: what it is called in short.
        parts: `train`, and `validation` where it has one.
    """

    info: SourceInfo
    title: str
    parts: Mapping[str, PublishedPart]


def open_published(source: str) -> PublishedSet:
    """Open a hub data set, a folder, or a file of rows.

    Args:
        source: `OWNER/NAME?data_dir=FOLDER` (also `revision=`, `config=`), pinned to its revision; a folder with parts
            that the library `datasets` knows by name (`train/`, `validation/`, `train.jsonl`, ...), or, with
            `?data_dir=`, a folder in it; or a file (parquet, JSON, JSON Lines), all of whose rows are training rows.

    Raises:
        InputError: there is no such set, it has no training part, or it holds rows of two kinds and no `data_dir`.
    """
    target, _, query = source.removeprefix("hub:").partition("?")
    options = dict(parse_qsl(query))
    if unknown := set(options) - {"data_dir", "revision", "config"}:
        raise InputError(f"{source}: unknown option {min(unknown)!r}; options are data_dir, revision, config")
    path, data_dir = Path(target), options.get("data_dir")
    if path.is_file():
        if path.suffix == ".parquet":
            return _loaded(source, path.stem, None, "parquet", data_files={"train": target})
        reader = Source(target)
        return PublishedSet(
            reader.inspect(), path.name.partition(".")[0], {"train": PublishedPart(target, reader.rows)}
        )
    if path.is_dir():
        if not data_dir:
            _check_one_kind(source, [entry.name for entry in path.iterdir()])
        elif not (path / data_dir).is_dir():
            raise InputError(f"{source}: {path} has no folder {data_dir!r}")
        return _loaded(source, path.resolve().name, None, str(path / (data_dir or "")))
    asked = {name: value for name, value in options.items() if name != "data_dir"}
    digest = Source(f"hub:{target}?{urlencode(asked)}").inspect().digest
    revision = digest.removeprefix("revision:")
    if not data_dir:
        from huggingface_hub import HfApi

        _check_one_kind(source, HfApi().list_repo_files(target, repo_type="dataset", revision=revision))
    name = f"hub:{target}?{urlencode(options | {'revision': revision})}"
    return _loaded(
        name, target.partition("/")[2], digest, target, options.get("config"), data_dir=data_dir, revision=revision
    )


def _check_one_kind(source: str, files: Collection[str]) -> None:
    """Read as one set, R-PRM's parts of both kinds would come in one stream, which breaks where the columns change."""
    if {"sft", "dpo"} <= {file.partition("/")[0] for file in files}:
        joint = "&" if "?" in source else "?"
        raise InputError(
            f"{source} holds rows of two kinds: name one, {source}{joint}data_dir=sft or {source}{joint}data_dir=dpo"
        )


def _loaded(name: str, title: str, digest: str | None, *arguments: Any, **options: Any) -> PublishedSet:
    """A set that the library `datasets` streams. Of files, the digest is a hash of their content."""
    try:
        from datasets import load_dataset_builder
        from datasets.table import CastError
    except ImportError:
        raise InputError('reading data sets needs the extra: pip install ".[hub]"') from None

    # What it logs of a file that it cannot read, it raises too.
    logging.getLogger("datasets.packaged_modules").setLevel(logging.CRITICAL)
    try:
        builder = load_dataset_builder(*arguments, **options)
    except (OSError, ValueError) as error:
        raise InputError(f"{name}: cannot be read as a data set: {error}") from error
    files: Mapping[str, list[str]] = builder.config.data_files or {}
    if "train" not in files:
        raise InputError(f"{name} has no part 'train' (it has {', '.join(map(str, files)) or 'none'})")

    def rows(part: str, file: int | None = None) -> Iterator[Row]:
        try:
            values = builder.as_streaming_dataset(split=part)
            if file is not None:
                values = values.shard(values.num_shards, file)
            for number, value in enumerate(values, 1):
                yield Row(number, value, json.dumps(value, default=str, ensure_ascii=False))
        except CastError as error:
            columns = "; ".join(map(", ".join, (error.requested_column_names, error.table_column_names)))
            raise InputError(
                f"{name}, part {part}: its files have different columns ({columns}); give each kind a folder of its own"
            ) from error
        except (OSError, ValueError, StopIteration) as error:
            # The library stops so at a file without rows.
            reason = " ".join(str(error).split()) or "there are no rows"
            raise InputError(f"{name}, part {part}: cannot be read: {reason}") from error

    if digest is None:
        content = hashlib.sha256()
        for part in sorted(files):
            for number, file in enumerate(sorted(files[part])):
                with open(file, "rb") as stream:
                    content.update(hashlib.file_digest(stream, "sha256").digest())
                # Other columns than the first file's end it before anything is written.
                next(rows(part, number), None)
        digest = f"sha256:{content.hexdigest()}"

    def opened(part: str) -> PublishedPart:
        return PublishedPart(f"{name}{'&' if '?' in name else '?'}split={part}", lambda: rows(part))

    return PublishedSet(
        SourceInfo(name, digest, None), title, {part: opened(part) for part in ("train", "validation") if part in files}
    )


def write_published(
    published: PublishedSet, output: str | Path, *, template: PromptTemplate | None = None
) -> dict[str, Any]:
    """Make a data set for `rprm train sft` or `dpo` out of published rows.

    A row is kept when the template renders its instruction byte for byte from the problem and steps in it, and its
    analyses end as a training row's must (of dpo, the rejected one may have no verdict, or text after it). Other rows
    are rejected, with place and reason. Texts stay as they are.

    Args:
        published: read a row at a time; memory holds 8 bytes for each problem.
        output: the data set's folder; see `Dataset`.
        template: that every instruction must follow; by default derived from the first 2,000 rows, with `R_PRM_SYSTEM`
            as the system message where the rows have none.

    Returns:
        The counts, as in `summary.json`.

    Raises:
        InputError: the columns are of neither kind, or no row is left to train on.
        PromptError: no template can be derived.
        RunError: the folder cannot be used.
    """
    kind, sampled = _of_one_kind(published.info.name, list(islice(published.parts["train"].rows(), _NUM_SAMPLED)))
    made_from = {"source": published.info.name, "template": "given"}
    if template is None:
        imported = import_template(sampled, name=published.title, min_share=_MIN_SHARE)
        made_from["template"] = f"renders {imported.num_exact:,} of the first {imported.num_rows:,} rows byte for byte"
        template = imported.template
        if template.chat and not template.system:
            template = replace(template, system=R_PRM_SYSTEM)
    dropped: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    what = {
        "sft": "published analyses; the label of a step is the verdict of its analysis (SFT)",
        "dpo": "published pairs of analyses; the label of a step is the verdict of the chosen one (DPO)",
    }[kind]
    names = ("completion",) if kind == "sft" else _ANALYSES[kind]
    with Dataset(output, "import", published.info, template, {"kind": kind}, rows=what) as dataset:
        for part, (name, rows) in published.parts.items():
            for row in rows():
                counts[f"rows of {part}"] += 1
                if isinstance(row, Rejected):
                    dropped["it cannot be read"] += 1
                    dataset.reject(row)
                    continue
                try:
                    step, prompt, analyses = _read(row.value, kind, template, f"{part}-{row.line}")
                except _Unfit as unfit:
                    dropped[unfit.kind] += 1
                    dataset.reject(row.rejected(name, str(unfit)))
                    continue
                counts["kept"] += 1
                question, *replies = messages_of(prompt, *analyses)
                texts = {"prompt": question, **dict(zip(names, replies, strict=True))}
                dataset.write({"id": step.id, "label": step.label, **texts}, step=step, held_out=part == "validation")
        if not counts["kept"]:
            raise InputError(f"{published.info.name}: no row is left to train on ({listed(dropped)})")
        return dataset.finish(counts=counts, dropped=dict(sorted(dropped.items())), made_from=made_from)


def _of_one_kind(name: str, rows: list[Row | Rejected]) -> tuple[Kind, list[dict[str, Any]]]:
    """The kind of most rows, and those of this kind.

    Raises:
        InputError: no row is of a kind, or many are of another.
    """
    found: dict[Kind, list[dict[str, Any]]] = {"sft": [], "dpo": []}
    unusable = []
    for row in rows:
        columns = row.value if isinstance(row, Row) and isinstance(row.value, dict) else {}
        texts = {column for column, text in columns.items() if isinstance(text, str)}
        for kind, analyses in _ANALYSES.items():
            if texts.issuperset(("instruction", *analyses)):
                found[kind].append(columns)
                break
        else:
            has = ", ".join(column if column in texts else f"{column} (no text)" for column in sorted(columns))
            what = row.reason if isinstance(row, Rejected) else f"has the columns {has or 'none'}"
            unusable.append(f"no row can be used: row {row.line}{': ' if isinstance(row, Rejected) else ' '}{what}")
    kind = max(found, key=lambda kind: len(found[kind]))
    if not found[kind]:
        raise InputError(
            f"{name}: {unusable[0] if unusable else 'there are no rows'}; rows for sft have instruction and output, "
            "rows for dpo instruction, chosen and rejected"
        )
    if len(found[kind]) < _MIN_SHARE * sum(map(len, found.values())):
        counts = ", ".join(f"{len(some):,} for {kind}" for kind, some in found.items())
        raise InputError(
            f"{name} holds rows of two kinds ({counts} among the first {len(rows):,}): give each a file of its own"
        )
    return kind, found[kind]


class _Unfit(Exception):
    """Why a row is rejected; `kind` is what it is counted under."""

    def __init__(self, kind: str, detail: str = "") -> None:
        super().__init__(f"{kind}: {detail}" if detail else kind)
        self.kind = kind


def _read(row: Any, kind: Kind, template: PromptTemplate, identifier: str) -> tuple[LabelledStep, Prompt, list[str]]:
    """The labelled step, its prompt, and the analyses of it.

    Raises:
        _Unfit: the row cannot be trained on.
    """
    texts = []
    for column in ("instruction", *_ANALYSES[kind]):
        value = row.get(column) if isinstance(row, dict) else None
        if not isinstance(value, str) or not value.strip():
            raise _Unfit(f"{column} is no text", repr(value)[:80])
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise _Unfit(f"{column} is no Unicode", f"a lone surrogate {value[error.start]!a}") from None
        texts.append(value)
    instruction, *analyses = texts
    parts = template.take_apart(instruction)
    if parts is None:
        raise _Unfit("the template does not make the instruction", template.difference(instruction))
    problem, steps = parts
    prompt = template.render(problem, steps, len(steps) - 1)
    if prompt.messages[-1].content != instruction:
        raise _Unfit("the template does not make the instruction", "it renders another text")
    for text, what in ((problem, "problem"), (steps[-1], "step")):
        if not text.strip():
            raise _Unfit(f"the {what} is empty")
    first = template.verdict.find(analyses[0])
    label = first is not None and first.yes
    checks = (verdict_fault, rejected_fault)
    for column, analysis, find_fault in zip(_ANALYSES[kind], analyses, checks, strict=False):
        if fault := find_fault(analysis, template.verdict, label):
            raise _Unfit(f"{column}: {fault}")
    step = LabelledStep(id=identifier, problem=problem, previous_steps=tuple(steps[:-1]), step=steps[-1], label=label)
    return step, prompt, analyses
