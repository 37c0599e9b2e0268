"""What is checked before any long work begins, with counts and the first rows that offend.

Two passes: over the texts (is every prompt made by the template, does every reply end in its one verdict, are there
both verdicts, is no id used twice), then over the tokens (how many rows are too long), which leaves the rows in the
form that training reads. Last, a batch as the trainer makes it is compared with these rows.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

from rprm.data.wellformed import rejected_fault, verdict_fault
from rprm.errors import InputError, PromptError
from rprm.prompts.library import MODEL_TEMPLATE, load_template
from rprm.prompts.template import PLACEHOLDER, Prompt, PromptTemplate
from rprm.training.rows import REPLIES, BaseModel, TrainingData, TrainingRow, encode_row, read_rows

#: The largest share of rows that may be too long: they are left out and counted.
MAX_SHARE_TOO_LONG = 0.05

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
        first, *rest = PLACEHOLDER.split(self.template.user)
        parts = [re.escape(first)]
        numbered = False
        listed = self._listed()
        for name, fixed in zip(rest[::2], rest[1::2], strict=True):
            if name == "step_number":
                parts.append("(?P=number)" if numbered else r"(?P<number>[1-9][0-9]*)")
                numbered = True
            elif name == "steps":
                parts.append(listed)
            elif name == "previous_steps":
                parts.append(f"(?:{re.escape(self.template.no_previous_steps)}|{listed})")
            elif name == "open_braces":
                parts.append(re.escape("{{"))
            else:
                parts.append("(.*?)")
            parts.append(re.escape(fixed))
        return re.compile("".join(parts), re.DOTALL)

    def _listed(self) -> str:
        """A list of steps begins with step 1 in its format, and ends as the format does."""
        first, *rest = PLACEHOLDER.split(self.template.step_format)
        opening, closing = re.escape(first), ""
        at_step = False
        for name, fixed in zip(rest[::2], rest[1::2], strict=True):
            at_step = at_step or name == "step"
            text = {"number": ".*?" if at_step else "1", "step": "", "open_braces": re.escape("{{")}[name]
            if at_step:
                closing += text + re.escape(fixed)
            else:
                opening += text + re.escape(fixed)
        return f"{opening}(.*?){closing}"


@dataclass
class _Fault:
    """A kind of fault: how many rows have it, and the first of them."""

    fix: str
    count: int = 0
    named: list[str] = field(default_factory=list)

    def add(self, row: TrainingRow, detail: str = "") -> None:
        self.count += 1
        if len(self.named) < _NUM_NAMED:
            self.named.append(f"line {row.line} (id {row.id!r}{': ' if detail else ''}{detail})")


def check_rows(data: TrainingData, kind: str) -> None:
    """Check the texts of every row.

    Args:
        data: the data set.
        kind: `sft` or `dpo`. Of a preference pair, the chosen reply must agree with the label, the rejected one not; it
            may also have no verdict, or text after it.

    Raises:
        InputError: what is wrong, in how many rows, and which are the first of them.
    """
    for path in data.parts.values():
        _check_part(path, data.template, kind, is_train=path == data.train)


def _check_part(path: Path, template: PromptTemplate, kind: str, *, is_train: bool) -> None:
    check = PromptCheck(template)
    faults = {
        "prompt": _Fault(
            f"have a prompt that template {template.name!r} ({template.digest}) does not make; name the template that "
            "they were rendered with (--prompt), or render them again"
        ),
        "verdict": _Fault(
            f"do not end in exactly one verdict ({template.verdict.marker!r}, then {template.verdict.yes} or "
            f"{template.verdict.no}) that {_WANTED[kind]}; drop these rows, or make the data again"
        ),
        "id": _Fault("have an id that an earlier row has; make ids unique"),
    }
    labels: dict[bool, int] = {True: 0, False: 0}
    ids: set[str] = set()
    for row in read_rows(path, kind):
        labels[row.label] += 1
        if row.id in ids:
            faults["id"].add(row)
        ids.add(row.id)
        if not check.accepts(row.prompt):
            faults["prompt"].add(row)
        for column, reply in zip(REPLIES[kind], row.replies, strict=True):
            find_fault = rejected_fault if column == "rejected" else verdict_fault
            if (fault := find_fault(reply, template.verdict, row.label)) is not None:
                faults["verdict"].add(row, f"{column}: {fault}")
                break
    num_rows = sum(labels.values())
    if not num_rows:
        raise InputError(f"{path} has no row; make the data with more analyses")
    if found := [fault for fault in faults.values() if fault.count]:
        listed = "\n".join(
            f"  {fault.count:,} of {num_rows:,} rows {fault.fix}; the first: {', '.join(fault.named)}"
            for fault in found
        )
        raise InputError(f"{path} cannot be trained on:\n{listed}")
    if is_train and not all(labels.values()):
        only = template.verdict.yes if labels[True] else template.verdict.no
        raise InputError(
            f"{path}: all {num_rows:,} rows have the label of {only}; a judge trained on them would always say so; "
            "add rows of the other label"
        )


_WANTED = {
    "sft": "agrees with the label",
    "dpo": "agrees with the label (a rejected reply may have any number, none of which agrees)",
}


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


@dataclass(frozen=True)
class PartCounts:
    """Rows of a part that are trained on, those left out as too long, and tokens (each reply with its prompt)."""

    num_rows: int
    num_too_long: int
    num_yes: int
    num_no: int
    num_tokens: int
    num_reply_tokens: int
    longest: int


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
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    found = {}
    for part, path in data.parts.items():
        counts = found[part] = _encode_part(
            path,
            kind,
            partial / f"{part}.arrow",
            PromptCheck(data.template),
            tokenizer=tokenizer,
            end=end,
            max_length=max_length,
        )
        if counts.num_too_long:
            on_note(
                f"{path}: {counts.num_too_long:,} of {counts.num_rows + counts.num_too_long:,} rows are longer than "
                f"{max_length:,} tokens and left out"
            )
    (partial / _COUNTS).write_text(json.dumps({part: asdict(counts) for part, counts in found.items()}))
    partial.rename(folder)
    return found


def _encode_part(
    path: Path, kind: str, target: Path, check: PromptCheck, *, tokenizer: Any, end: int, max_length: int
) -> PartCounts:
    import pyarrow as pa

    names = ("input_ids", "labels") if kind == "sft" else ("prompt_ids", "chosen_ids", "rejected_ids")
    schema = pa.schema([(name, pa.list_(pa.int32())) for name in names])
    labels = {True: 0, False: 0}
    num_tokens = num_reply_tokens = longest = 0
    too_long: list[tuple[TrainingRow, int]] = []
    num_too_long = 0
    pending: list[dict[str, list[int]]] = []
    with target.open("wb") as stream, pa.ipc.new_stream(stream, schema) as writer:
        for row in read_rows(path, kind):
            prompt, replies = encode_row(tokenizer, replace(row, prompt=check.marked(row.prompt)), end)
            length = len(prompt) + max(map(len, replies))
            if length > max_length:
                num_too_long += 1
                if len(too_long) < _NUM_NAMED:
                    too_long.append((row, length))
                continue
            labels[row.label] += 1
            longest = max(longest, length)
            num_reply_tokens += sum(map(len, replies))
            num_tokens += sum(len(prompt) + len(reply) for reply in replies)
            pending.append(columns_of(kind, prompt, replies))
            if len(pending) == 1000:
                writer.write_batch(pa.RecordBatch.from_pylist(pending, schema=schema))
                pending = []
        if pending:
            writer.write_batch(pa.RecordBatch.from_pylist(pending, schema=schema))
    num_rows = sum(labels.values())
    if num_too_long > MAX_SHARE_TOO_LONG * (num_rows + num_too_long):
        named = ", ".join(f"line {row.line} (id {row.id!r}, {length:,} tokens)" for row, length in too_long)
        raise InputError(
            f"{path}: {num_too_long:,} of {num_rows + num_too_long:,} rows are longer than max_length {max_length:,}, "
            f"more than {MAX_SHARE_TOO_LONG:.0%}; the first: {named}; raise --max-length, or make shorter data (rows "
            "are never cut: the verdict stands at their end)"
        )
    return PartCounts(num_rows, num_too_long, labels[True], labels[False], num_tokens, num_reply_tokens, longest)


def columns_of(kind: str, prompt: Sequence[int], replies: Sequence[Sequence[int]]) -> dict[str, list[int]]:
    """A row as the trainer takes it, from token ids."""
    if kind == "sft":
        return {"input_ids": [*prompt, *replies[0]], "labels": [-100] * len(prompt) + list(replies[0])}
    return {"prompt_ids": list(prompt), "chosen_ids": list(replies[0]), "rejected_ids": list(replies[1])}


def open_rows(folder: Path, part: str) -> Any:
    """The rows of a part as a `datasets.Dataset` that stays on disk; None where the data has no such part."""
    from datasets import Dataset

    path = folder / f"{part}.arrow"
    return Dataset.from_file(str(path)) if path.is_file() else None


# --- the trainer's own batches ------------------------------------------------------------------------------------

_CHANGED = "; the installed TRL treats pre-tokenised rows in another way than this package knows: use trl 1.16"


def check_sft_batch(trainer: Any, rows: Any, *, num_rows: int = 4) -> None:
    """Compare a batch that `SFTTrainer` makes of its first rows with the rows: tokens, and where the loss is.

    Args:
        trainer: with its data set prepared.
        rows: the rows it was given, as `open_rows` has them.
        num_rows: to compare.

    Raises:
        InputError: they differ.
    """
    wanted = [(row["input_ids"], row["labels"]) for row in _first(rows, num_rows)]
    prepared = list(_first(trainer.train_dataset, num_rows))
    batch = trainer.data_collator(prepared)
    found = _split_batch(batch)
    if "seq_lengths" in prepared[0]:
        # Packed in an order of its own: each sequence must be some row's, prompt without loss, the rest with.
        for ids, labels in found:
            start = next((index for index, label in enumerate(labels) if label != -100), len(labels))
            if not 0 < start < len(labels) or labels[start:] != ids[start:]:
                raise InputError(f"a packed sequence of the trainer is no row of the data{_CHANGED}")
        return
    if found != wanted:
        raise InputError(f"the trainer's tokens are not those of the rows: {_difference(wanted, found)}{_CHANGED}")


def check_dpo_batch(trainer: Any, rows: Any, *, num_rows: int = 4) -> None:
    """Compare a batch that `DPOTrainer` makes of its first rows with the rows; see `check_sft_batch`."""
    prepared = list(_first(trainer.train_dataset, num_rows))
    batch = trainer.data_collator(prepared)
    wanted = []
    for name in ("chosen_ids", "rejected_ids"):
        for row in _first(rows, num_rows):
            ids = [*row["prompt_ids"], *row[name]]
            wanted.append((ids, [-100] * len(row["prompt_ids"]) + row[name]))
    found = []
    for ids, mask, loss in zip(
        batch["input_ids"].tolist(), batch["attention_mask"].tolist(), batch["completion_mask"].tolist(), strict=True
    ):
        length = sum(mask)
        found.append((ids[:length], [token if on else -100 for token, on in zip(ids, loss, strict=True)][:length]))
    if found != wanted:
        raise InputError(f"the trainer's tokens are not those of the rows: {_difference(wanted, found)}{_CHANGED}")


def _first(rows: Any, number: int) -> Iterable[dict[str, Any]]:
    return (rows[index] for index in range(min(number, len(rows))))


def _split_batch(batch: Any) -> list[tuple[list[int], list[int]]]:
    """Sequences of a batch, unpadded: (ids, labels)."""
    if "attention_mask" in batch:
        return [
            (ids[: sum(mask)], labels[: sum(mask)])
            for ids, labels, mask in zip(
                batch["input_ids"].tolist(), batch["labels"].tolist(), batch["attention_mask"].tolist(), strict=True
            )
        ]
    ids, labels = batch["input_ids"][0].tolist(), batch["labels"][0].tolist()
    places = batch["position_ids"][0].tolist()
    starts = [index for index, place in enumerate(places) if place == 0] + [len(ids)]
    return [(ids[a:b], labels[a:b]) for a, b in pairwise(starts)]


def _difference(wanted: Sequence[Any], found: Sequence[Any]) -> str:
    for number, (one, other) in enumerate(zip(wanted, found, strict=False)):
        if one != other:
            return (
                f"row {number} should be {len(one[0])} tokens ending in {one[0][-4:]}, and is {len(other[0])} tokens "
                f"ending in {other[0][-4:]}"
            )
    return f"{len(wanted)} rows were given, {len(found)} came"
