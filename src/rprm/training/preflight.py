"""What is checked before any long work begins, with counts and the first rows that offend.

Two passes: over the texts (is every prompt made by the template, does every reply end in its one verdict, are there
both verdicts, is no id used twice), then over the tokens (how many rows are too long), which leaves the rows in the
form that training reads. Last, a batch as the trainer makes it is compared with these rows.
"""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

from rprm.data.wellformed import rejected_fault, verdict_fault
from rprm.errors import InputError, PromptError
from rprm.prompts.library import MODEL_TEMPLATE, load_template
from rprm.prompts.template import PLACEHOLDER, Prompt, PromptTemplate
from rprm.training.rows import MAX_SHARE_TOO_LONG, REPLIES, BaseModel, TrainingData, encode_row, read_rows

#: Offending rows named in a message.
_NUM_NAMED = 3


# --- texts --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PromptCheck:
    """Whether a prompt can have been made by a template: its fixed texts, in their order and places."""

    template: PromptTemplate

    def accepts(self, prompt: Prompt) -> bool:
        messages = [(message.role, message.content) for message in prompt.messages]
        system = [("system", self.template.system)] if self.template.system else []
        return (
            prompt.chat == self.template.chat
            and messages[:-1] == system
            and messages[-1][0] == "user"
            and self._pattern.fullmatch(messages[-1][1]) is not None
        )

    def marked(self, prompt: Prompt) -> Prompt:
        """A raw prompt with the places of its record's texts, as the template renders it: a row has the text alone."""
        if prompt.chat or (match := self._pattern.fullmatch(prompt.messages[-1].content)) is None:
            return prompt
        spans = (match.span(group) for group in range(1, self._pattern.groups + 1))
        records = tuple((start, end) for start, end in spans if start < end)
        return replace(prompt, messages=(*prompt.messages[:-1], replace(prompt.messages[-1], records=records)))

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        """The user message: fixed texts literal, the step's number the same wherever it stands, anything else free."""
        listed = self._listed()
        patterns = {
            "steps": listed,
            "previous_steps": f"(?:{re.escape(self.template.no_previous_steps)}|{listed})",
            "open_braces": re.escape("{{"),
            "step_number": r"(?P<number>[1-9][0-9]*)",
        }
        first, *rest = PLACEHOLDER.split(self.template.user)
        pattern = re.escape(first)
        for name, fixed in zip(rest[::2], rest[1::2], strict=True):
            pattern += patterns.get(name, "(.*?)") + re.escape(fixed)
            if name == "step_number":
                patterns[name] = "(?P=number)"
        return re.compile(pattern, re.DOTALL)

    def _listed(self) -> str:
        """A list of steps begins with step 1 in its format, and ends as the format does."""
        opening, closing = re.split(r"\{\{\s*step\s*\}\}", self.template.step_format, maxsplit=1)

        def literal(text: str, number: str) -> str:
            first, *rest = PLACEHOLDER.split(text)
            texts = {"number": number, "open_braces": re.escape("{{"), "step": ""}
            pairs = zip(rest[::2], rest[1::2], strict=True)
            return re.escape(first) + "".join(texts[name] + re.escape(fixed) for name, fixed in pairs)

        return f"{literal(opening, '1')}(.*?){literal(closing, '.*?')}"


def check_rows(data: TrainingData, kind: str) -> None:
    """Check the texts of every row.

    Args:
        data: the data set.
        kind: `sft` or `dpo`. Of a preference pair, the chosen reply must agree with the label, the rejected one not; it
            may also have no verdict, or text after it.

    Raises:
        InputError: what is wrong, in how many rows, and which are the first of them.
    """
    template, verdict = data.template, data.template.verdict
    wanted = "agrees with the label"
    if kind == "dpo":
        wanted += " (a rejected reply may have any number, none of which agrees)"
    fixes = {
        "prompt": f"have a prompt that template {template.name!r} ({template.digest}) does not make; name the template "
        "that they were rendered with (--prompt), or render them again",
        "verdict": f"do not end in exactly one verdict ({verdict.marker!r}, then {verdict.yes} or {verdict.no}) that "
        f"{wanted}; drop these rows, or make the data again",
        "id": "have an id that an earlier row has; make ids unique",
    }
    check = PromptCheck(template)
    for path in data.parts.values():
        faults: dict[str, list[str]] = {fault: [] for fault in fixes}
        ids: set[str] = set()
        labels = Counter[bool]()
        for row in read_rows(path, kind):
            where = f"line {row.line} (id {row.id!r}"
            labels[row.label] += 1
            if row.id in ids:
                faults["id"].append(f"{where})")
            ids.add(row.id)
            if not check.accepts(row.prompt):
                faults["prompt"].append(f"{where})")
            for column, reply in zip(REPLIES[kind], row.replies, strict=True):
                find_fault = rejected_fault if column == "rejected" else verdict_fault
                if (fault := find_fault(reply, verdict, row.label)) is not None:
                    faults["verdict"].append(f"{where}: {column}: {fault})")
                    break
        num_rows = labels.total()
        if not num_rows:
            raise InputError(f"{path} has no row; make the data with more analyses")
        if any(faults.values()):
            listed = "".join(
                f"\n  {len(found):,} of {num_rows:,} rows {fixes[fault]}; the first: {', '.join(found[:_NUM_NAMED])}"
                for fault, found in faults.items()
                if found
            )
            raise InputError(f"{path} cannot be trained on:{listed}")
        if path == data.train and len(labels) == 1:
            raise InputError(
                f"{path}: all {num_rows:,} rows have the label of {verdict.yes if labels[True] else verdict.no}; a "
                "judge trained on them would always say so; add rows of the other label"
            )


def check_model_template(model: BaseModel, template: PromptTemplate, *, deliberate: bool) -> None:
    """A model that carries a template goes on being trained with it.

    Args:
        model: to be trained.
        template: of the data.
        deliberate: the template was named with --prompt: the change is meant.

    Raises:
        PromptError: the model carries another template.
    """
    if deliberate or model.folder is None or not (model.folder / MODEL_TEMPLATE).is_file():
        return
    carried = load_template(model.folder)
    if carried.digest != template.digest:
        raise PromptError(
            f"{model.target} was trained with template {carried.name!r} ({carried.digest}), the data has "
            f"{template.name!r} ({template.digest}); render the data with the model's own (--prompt {model.target}), "
            "or, to teach it another one on purpose, name the data's template with --prompt"
        )


# --- tokens -------------------------------------------------------------------------------------------------------


@dataclass
class PartCounts:
    """Rows of a part that are trained on, those left out as too long, and tokens (each reply with its prompt)."""

    num_rows: int = 0
    num_too_long: int = 0
    num_yes: int = 0
    num_no: int = 0
    num_tokens: int = 0
    num_reply_tokens: int = 0
    longest: int = 0


#: Columns of the rows as a trainer takes them.
_COLUMNS = {"sft": ("input_ids", "labels"), "dpo": ("prompt_ids", "chosen_ids", "rejected_ids")}
_COUNTS = "counts.json"


def encode_data(
    data: TrainingData,
    kind: str,
    folder: Path,
    *,
    tokenizer: Any,
    end: int,
    max_length: int,
    on_note: Callable[[str], None] = lambda text: None,
) -> dict[str, PartCounts]:
    """Write the tokens of every row that is short enough, one Arrow file for each part. Made whole or not at all.

    Columns of SFT: `input_ids` and `labels` (-100 on the prompt); of DPO: `prompt_ids`, `chosen_ids`, `rejected_ids`.

    Args:
        data: checked rows.
        kind: `sft` or `dpo`.
        folder: where the files go; made if missing. If it is there already, it is complete and read.
        tokenizer: the model's.
        end: the token that ends a reply.
        max_length: most tokens of a prompt with one of its replies.
        on_note: told how many rows were left out.

    Returns:
        The counts of each part.

    Raises:
        InputError: more than 5% of a part's rows are too long; nothing is left; a reply holds the end token.
    """
    if folder.is_dir():
        return {part: PartCounts(**counts) for part, counts in json.loads((folder / _COUNTS).read_text()).items()}
    import pyarrow as pa

    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    schema = pa.schema([(name, pa.list_(pa.int32())) for name in _COLUMNS[kind]])
    found: dict[str, PartCounts] = {}
    for part, path in data.parts.items():
        counts = found[part] = PartCounts()
        rows = _encoded_rows(data, path, kind, counts, tokenizer=tokenizer, end=end, max_length=max_length)
        with (partial / f"{part}.arrow").open("wb") as stream, pa.ipc.new_stream(stream, schema) as writer:
            while pending := list(islice(rows, 1000)):
                writer.write_batch(pa.RecordBatch.from_pylist(pending, schema=schema))
        if counts.num_too_long:
            on_note(
                f"{path}: {counts.num_too_long:,} of {counts.num_rows + counts.num_too_long:,} rows are longer than "
                f"{max_length:,} tokens and left out"
            )
    (partial / _COUNTS).write_text(json.dumps({part: asdict(counts) for part, counts in found.items()}))
    partial.rename(folder)
    return found


def _encoded_rows(
    data: TrainingData, path: Path, kind: str, counts: PartCounts, *, tokenizer: Any, end: int, max_length: int
) -> Iterator[dict[str, list[int]]]:
    """Rows of a file that are short enough; `counts` is complete when they are through."""
    check = PromptCheck(data.template)
    too_long: list[str] = []
    for row in read_rows(path, kind):
        prompt, replies = encode_row(tokenizer, replace(row, prompt=check.marked(row.prompt)), end)
        length = len(prompt) + max(map(len, replies))
        if length > max_length:
            counts.num_too_long += 1
            if len(too_long) < _NUM_NAMED:
                too_long.append(f"line {row.line} (id {row.id!r}, {length:,} tokens)")
            continue
        counts.num_rows += 1
        counts.num_yes += row.label
        counts.num_no += not row.label
        counts.longest = max(counts.longest, length)
        counts.num_reply_tokens += sum(map(len, replies))
        counts.num_tokens += sum(len(prompt) + len(reply) for reply in replies)
        if kind == "sft":
            yield {"input_ids": prompt + replies[0], "labels": [-100] * len(prompt) + replies[0]}
        else:
            yield {"prompt_ids": prompt, "chosen_ids": replies[0], "rejected_ids": replies[1]}
    total = counts.num_rows + counts.num_too_long
    if counts.num_too_long > MAX_SHARE_TOO_LONG * total:
        raise InputError(
            f"{path}: {counts.num_too_long:,} of {total:,} rows are longer than max_length {max_length:,}, more than "
            f"{MAX_SHARE_TOO_LONG:.0%}; the first: {', '.join(too_long)}; raise --max-length, or make shorter data "
            "(rows are never cut: the verdict stands at their end)"
        )


def open_rows(folder: Path, part: str) -> Any:
    """The rows of a part as a `datasets.Dataset` that stays on disk; None where the data has no such part."""
    from datasets import Dataset

    path = folder / f"{part}.arrow"
    return Dataset.from_file(str(path)) if path.is_file() else None


def row_lengths(rows: Any) -> list[int]:
    """Tokens of the longest sequence of each row of a data set, as the trainer has it."""
    import numpy as np
    import pyarrow.compute as pc

    sums: list[tuple[str, ...]] = [("input_ids",)]
    if "input_ids" not in rows.column_names:
        sums = [("prompt_ids", side) for side in ("chosen_ids", "rejected_ids")]
    found: list[int] = []
    for part in rows.with_format("arrow").iter(batch_size=10_000):
        lengths = [sum(pc.list_value_length(part[name]).to_numpy() for name in names) for names in sums]
        found += np.max(lengths, axis=0).tolist()
    return found


# --- the trainer's own batches ------------------------------------------------------------------------------------

_CHANGED = "; the installed TRL treats pre-tokenised rows in another way than this package knows: use trl 1.16"


def check_batch(trainer: Any, rows: Any, *, num_rows: int = 4) -> None:
    """Compare a batch that TRL's trainer makes of its first rows with the rows: tokens, and where the loss is.

    Args:
        trainer: with its data set prepared.
        rows: the rows it was given, as `open_rows` has them.
        num_rows: to compare.

    Raises:
        InputError: they differ.
    """
    given, prepared = (
        [part[index] for index in range(min(num_rows, len(part)))] for part in (rows, trainer.train_dataset)
    )
    found = _split_batch(trainer.data_collator(prepared))
    if "seq_lengths" in prepared[0]:
        # Packed in an order of its own: each sequence must be some row's, prompt without loss, the rest with.
        for ids, labels in found:
            start = next((index for index, label in enumerate(labels) if label != -100), len(labels))
            if not 0 < start < len(labels) or labels[start:] != ids[start:]:
                raise InputError(f"a packed sequence of the trainer is no row of the data{_CHANGED}")
        return
    if "input_ids" in given[0]:
        wanted = [(row["input_ids"], row["labels"]) for row in given]
    else:
        wanted = [
            (row["prompt_ids"] + row[side], [-100] * len(row["prompt_ids"]) + row[side])
            for side in ("chosen_ids", "rejected_ids")
            for row in given
        ]
    if found != wanted:
        number = next((n for n, pair in enumerate(zip(wanted, found, strict=False)) if pair[0] != pair[1]), None)
        difference = (
            f"{len(wanted)} rows were given, {len(found)} came"
            if number is None
            else f"row {number} should be {len(wanted[number][0])} tokens ending in {wanted[number][0][-4:]}, and is "
            f"{len(found[number][0])} tokens ending in {found[number][0][-4:]}"
        )
        raise InputError(f"the trainer's tokens are not those of the rows: {difference}{_CHANGED}")


def _split_batch(batch: Any) -> list[tuple[list[int], list[int]]]:
    """Sequences of a batch, unpadded: (ids, labels), the latter -100 where there is no loss."""
    ids = batch["input_ids"]
    labels = batch["labels"] if "labels" in batch else ids.where(batch["completion_mask"].bool(), -100)
    if "attention_mask" in batch:
        lengths = batch["attention_mask"].sum(-1).tolist()
        rows = zip(ids.tolist(), labels.tolist(), lengths, strict=True)
        return [(row[:length], loss[:length]) for row, loss, length in rows]
    starts = [*(batch["position_ids"][0] == 0).nonzero().flatten().tolist(), ids.shape[1]]
    return [(ids[0, a:b].tolist(), labels[0, a:b].tolist()) for a, b in pairwise(starts)]
