"""Published training rows in, as `rprm train` takes them; R-PRM's set has folders `{sft,dpo}/{train,validation}`.

The verdict of the output (or chosen) analysis is the label: analyses were kept because they agree (section 3.1).
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlencode

from rprm.data.datasets import PARTS, Dataset, listed, rejected_fault, verdict_fault
from rprm.errors import InputError
from rprm.models import R_PRM_SYSTEM
from rprm.prompts import Prompt, PromptTemplate, import_template
from rprm.reading import Rejected, Row, Source, SourceInfo, hub_errors, hub_options, stem
from rprm.records import LabelledStep

#: Columns of the analyses, by kind of training. A row that has those of both is a pair.
_ANALYSES = {"dpo": ("chosen", "rejected"), "sft": ("output",)}

_WHAT = {
    "sft": "published analyses; the label of a step is the verdict of its analysis (SFT)",
    "dpo": "published pairs of analyses; the label of a step is the verdict of the chosen one (DPO)",
}

#: Rows that the template is derived from, and the share of them that must be of one kind and render exactly.
_NUM_SAMPLED, _MIN_SHARE = 2000, 0.9


class PublishedSet(NamedTuple):
    """A set opened for reading: `train`, maybe `validation`, each with its name and what reads its rows anew."""

    info: SourceInfo
    title: str
    parts: Mapping[str, tuple[str, Callable[[], Iterator[Row | Rejected]]]]


def open_published(source: str) -> PublishedSet:
    """Open a file, a folder, or a hub data set, `OWNER/NAME?data_dir=FOLDER` (also `revision=`, `config=`), pinned to a
    revision; a folder or set has parts that the library `datasets` knows by name (`train/`, ...)."""
    target, options = hub_options(source, ("data_dir", "revision", "config"))
    path, data_dir = Path(target), options.get("data_dir")
    if path.is_file() and path.suffix == ".parquet":
        return _loaded(source, path.stem, None, "parquet", data_files={"train": target})
    if path.exists() and not path.is_dir():
        reader = Source(target)
        return PublishedSet(reader.inspect(), stem(path), {"train": (target, reader.rows)})
    if path.is_dir():
        if not (folder := path / (data_dir or "")).is_dir():
            raise InputError(f"{source}: {path} has no folder {data_dir!r}")
        files = [entry.name for entry in path.iterdir()]
        load = partial(_loaded, source, path.resolve().name, None, str(folder))
    else:
        digest = Source(f"hub:{source.removeprefix('hub:')}").inspect().digest
        from huggingface_hub import HfApi

        at = {"data_dir": data_dir, "revision": digest.removeprefix("revision:")}
        files = [] if data_dir else HfApi().list_repo_files(target, repo_type="dataset", revision=at["revision"])
        name = f"hub:{target}?{urlencode(options | {'revision': at['revision']})}"
        load = partial(_loaded, name, target.partition("/")[2], digest, target, options.get("config"), **at)
    # Read as one set, R-PRM's parts of both kinds would come in one stream, which breaks where the columns change.
    if not data_dir and {"sft", "dpo"} <= {file.partition("/")[0] for file in files}:
        with_dir = f"{source}{'&' if '?' in source else '?'}data_dir="
        raise InputError(f"{source} holds rows of two kinds: name one, {with_dir}sft or {with_dir}dpo")
    return load()


def _loaded(name: str, title: str, digest: str | None, *arguments: Any, **options: Any) -> PublishedSet:
    """A set that the library `datasets` streams. Of files, the digest is a hash of their content."""
    with hub_errors(f"{name}: cannot be read as a data set"):
        from datasets import load_dataset_builder
        from datasets.table import CastError

        # What it logs of a file that it cannot read, it raises too.
        logging.getLogger("datasets.packaged_modules").setLevel(logging.CRITICAL)
        builder = load_dataset_builder(*arguments, **options)
    files: Mapping[str, list[str]] = builder.config.data_files or {}
    if "train" not in files:
        raise InputError(f"{name} has no part 'train' (it has {', '.join(map(str, files)) or 'none'})")

    def rows(part: str, file: int | None = None) -> Iterator[Row]:
        with hub_errors(f"{name}, part {part}: cannot be read"):
            values = builder.as_streaming_dataset(split=part)
            try:
                for number, value in enumerate(values if file is None else values.shard(values.num_shards, file), 1):
                    yield Row(number, value, json.dumps(value, default=str, ensure_ascii=False))
            except CastError as error:
                columns = "; ".join(map(", ".join, (error.requested_column_names, error.table_column_names)))
                hint = "give each kind a folder of its own"
                raise InputError(f"{name}, part {part}: its files have different columns ({columns}); {hint}") from None

    content = hashlib.sha256()
    for part in sorted(files) if digest is None else ():
        for number, file in enumerate(sorted(files[part])):
            with open(file, "rb") as stream:
                content.update(hashlib.file_digest(stream, "sha256").digest())
            # Other columns than the first file's end it before anything is written.
            next(rows(part, number), None)
    joint = "&" if "?" in name else "?"
    parts = {part: (f"{name}{joint}split={part}", partial(rows, part)) for part in PARTS if part in files}
    return PublishedSet(SourceInfo(name, digest or f"sha256:{content.hexdigest()}", None), title, parts)


def write_published(published: PublishedSet, output: Path, template: PromptTemplate | None = None) -> dict[str, Any]:
    """Make a data set for `rprm train sft` or `dpo` (see `Dataset`) out of published rows; texts stay as they are.

    The template must render a row's instruction byte for byte. By default it is derived from the first 2,000 rows, with
    `R_PRM_SYSTEM` where they have no system message. Returns the counts, as in `summary.json`; an InputError where the
    columns are of neither kind, or no row is left to train on, a PromptError where no template can be derived.
    """
    kind, sampled = _of_one_kind(published.info.name, list(islice(published.parts["train"][1](), _NUM_SAMPLED)))
    made_from = {"source": published.info.name, "template": "given"}
    if template is None:
        imported = import_template(sampled, name=published.title, min_share=_MIN_SHARE)
        made_from["template"] = f"renders {imported.num_exact:,} of the first {imported.num_rows:,} rows byte for byte"
        template = imported.template
        if template.chat and not template.system:
            template = replace(template, system=R_PRM_SYSTEM)
    dropped, counts = Counter[str](), Counter[str]()
    with Dataset(output, "import", published.info, template, {"kind": kind}, _WHAT[kind]) as dataset:
        for part, (name, rows) in published.parts.items():
            for row in rows():
                counts[f"rows of {part}"] += 1
                try:
                    step, prompt, analyses = _read(row, kind, template, f"{part}-{row.line}")
                except InputError as unfit:
                    dropped[unfit.args[0]] += 1
                    dataset.reject(row if isinstance(row, Rejected) else row.rejected(name, ": ".join(unfit.args)))
                else:
                    counts["kept"] += 1
                    dataset.write(step.id, step, prompt, analyses, part)
        if not counts["kept"]:
            raise InputError(f"{published.info.name}: no row is left to train on ({listed(dropped)})")
        return dataset.finish(counts, dict(sorted(dropped.items())), made_from)


def _of_one_kind(name: str, rows: list[Row | Rejected]) -> tuple[str, list[dict[str, Any]]]:
    """The kind of most rows, and those of this kind; an InputError where none is of a kind, or many are of another."""
    tables = [row.value if isinstance(row, Row) and isinstance(row.value, dict) else {} for row in rows]
    found: dict[str, list[dict[str, Any]]] = {"sft": [], "dpo": []}
    for columns in tables:
        texts = {column for column, text in columns.items() if isinstance(text, str)}
        if kinds := [kind for kind, analyses in _ANALYSES.items() if texts.issuperset(("instruction", *analyses))]:
            found[kinds[0]].append(columns)
    kind = max(found, key=lambda kind: len(found[kind]))
    if not found[kind]:
        fault = "there are no rows"
        if rows:
            row, columns = rows[0], tables[0]
            has = (column if isinstance(columns[column], str) else f"{column} (no text)" for column in sorted(columns))
            what = f": {row.reason}" if isinstance(row, Rejected) else f" has the columns {', '.join(has) or 'none'}"
            fault = f"no row can be used: row {row.line}{what}"
        wanted = "rows for sft have instruction and output, rows for dpo instruction, chosen and rejected"
        raise InputError(f"{name}: {fault}; {wanted}")
    if len(found[kind]) < _MIN_SHARE * sum(map(len, found.values())):
        counts = ", ".join(f"{len(some):,} for {kind}" for kind, some in found.items())
        raise InputError(f"{name} holds rows of two kinds ({counts} among the first {len(rows):,}): divide them")
    return kind, found[kind]


def _read(
    row: Row | Rejected, kind: str, template: PromptTemplate, identifier: str
) -> tuple[LabelledStep, Prompt, list[str]]:
    """The labelled step, its prompt, and the analyses of it; an InputError: why there are none, and details."""
    if isinstance(row, Rejected):
        raise InputError("it cannot be read")
    texts = []
    for column in ("instruction", *_ANALYSES[kind]):
        value = row.value.get(column) if isinstance(row.value, dict) else None
        if not isinstance(value, str) or not value.strip():
            raise InputError(f"{column} is no text", repr(value)[:80])
        if surrogate := re.search(r"[\ud800-\udfff]", value):
            raise InputError(f"{column} is no Unicode", f"a lone surrogate {surrogate[0]!a}")
        texts.append(value)
    instruction, *analyses = texts
    if (parts := template.take_apart(instruction)) is None:
        raise InputError("the template does not make the instruction", template.difference(instruction))
    problem, (*previous, last) = parts
    prompt = template.render(problem, parts[1], len(previous))
    if prompt.messages[-1].content != instruction:
        raise InputError("the template does not make the instruction", "it renders another text")
    if not problem.strip() or not last.strip():
        raise InputError(f"the {'step' if problem.strip() else 'problem'} is empty")
    first = template.verdict.find(analyses[0])
    label = first is not None and first.yes
    for column, analysis, find_fault in zip(_ANALYSES[kind], analyses, (verdict_fault, rejected_fault), strict=False):
        if fault := find_fault(analysis, template.verdict, label):
            raise InputError(f"{column}: {fault}")
    step = LabelledStep(id=identifier, problem=problem, previous_steps=tuple(previous), step=last, label=label)
    return step, prompt, analyses
