"""Training rows: from the JSON Lines of a data set to the very tokens that an engine reads and writes, checked.

A trainer that renders a conversation by itself makes others for many chat templates, so rows reach it as token ids.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import accumulate, chain, islice, pairwise
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator

from rprm.data.datasets import TRAIN, VALIDATION, rejected_fault, verdict_fault
from rprm.engines.tokens import control_tokens, encode_prompt, encode_text
from rprm.errors import EngineError, InputError, PromptError, RequestRefused
from rprm.prompts.library import MODEL_TEMPLATE, load_template
from rprm.prompts.template import PLACEHOLDER, Message, Prompt, PromptTemplate
from rprm.reading import AnyText, Rejected, Row, RowModel, Source, checked, json_object, read_rows
from rprm.training.handover import whole_folder

#: The largest share of rows or steps that may be too long: they are left out and counted.
MAX_SHARE_TOO_LONG = 0.05

#: Columns that hold the replies of a row, and those of its tokens as a trainer takes them, by kind of training.
REPLIES = {"sft": ("completion",), "dpo": ("chosen", "rejected")}
_COUNTS = "counts.json"
_TOKENS = {"sft": ("input_ids", "labels"), "dpo": ("prompt_ids", "chosen_ids", "rejected_ids")}

#: Offending rows named in a message.
_NUM_NAMED = 3


@dataclass(frozen=True)
class TrainingData:
    """The files of a data set, by part (`train`, maybe `validation`), and the template of its prompts."""

    name: str
    parts: Mapping[str, Path]
    template: PromptTemplate

    def digests(self) -> dict[str, str]:
        """A hash of each file's content."""
        return {part: Source(str(path)).inspect().digest[:23] for part, path in self.parts.items()}


def open_data(source: str | Path, prompt: str | Path | None = None) -> TrainingData:
    """Find the files of a data set: a folder as `rprm data` writes it, or one JSON Lines file and its template.

    Raises:
        InputError, PromptError: there is no such data set; the template is missing, or another than the folder's own.
    """
    path = Path(source)
    parts = {"train": path if path.is_file() else path / TRAIN, "validation": path / VALIDATION}
    if not parts["train"].is_file():
        raise InputError(f"{path}: no such data; give a folder with {TRAIN} (`rprm data`), or a JSON Lines file")
    # A data set without held-out problems has an empty file there.
    if not parts["validation"].is_file() or not parts["validation"].stat().st_size:
        del parts["validation"]
    own = load_template(path) if (path / MODEL_TEMPLATE).is_file() else None
    template = own if prompt is None else load_template(prompt)
    if template is None:
        raise PromptError(f"{path} carries no {MODEL_TEMPLATE}; name the template of its prompts with --prompt")
    if own is not None and own.digest != template.digest:
        names = f"template {own.name!r} ({own.digest}), --prompt is {template.name!r} ({template.digest})"
        raise PromptError(f"{path} was rendered with {names}; leave --prompt out, or render the data again with it")
    return TrainingData(str(source), parts, template)


@dataclass(frozen=True, slots=True)
class TrainingRow:
    """A row as read. `replies` has one text (SFT: the completion) or two (DPO: chosen, rejected)."""

    file: Path
    place: str
    id: str
    label: bool
    prompt: Prompt
    replies: tuple[str, ...]


class _Turn(RowModel):
    role: AnyText
    content: AnyText


#: Messages of a chat; a text that is continued as it stands is one of no role.
_Turns = Annotated[
    list[_Turn], BeforeValidator(lambda value: [_Turn(role="", content=value)] if isinstance(value, str) else value)
]


class _TrainingRow(RowModel):
    id: AnyText
    label: bool
    prompt: _Turns
    completion: _Turns | None = None
    chosen: _Turns | None = None
    rejected: _Turns | None = None


def training_rows(path: Path, kind: str) -> Iterator[TrainingRow]:
    """The rows of a file for `sft` or `dpo`, in order; an `InputError` names the line that is no such row."""

    def read(row: Row) -> TrainingRow:
        names, value = ("id", "label", "prompt", *REPLIES[kind]), json_object(row.value)
        if lacking := [name for name in REPLIES[kind] if value.get(name) is None]:
            raise InputError(f"no {lacking[0]!r}: a row for {kind} has {', '.join(names)}")
        found = checked(_TrainingRow, {name: value[name] for name in names if name in value})
        turns = [found.prompt[-1:], *(getattr(found, name) or [] for name in REPLIES[kind])]
        chat = not isinstance(row.value["prompt"], str)
        wanted = ["user", "assistant", "assistant"] if chat else ["", "", ""]
        if [[turn.role for turn in part] for part in turns] != [[role] for role in wanted[: len(turns)]]:
            replies = " and ".join(REPLIES[kind])
            wrong = f"prompt must end in the user's message, {replies} be one of the assistant; or all be texts"
            raise InputError(wrong)
        messages = tuple(Message(turn.role or "user", turn.content) for turn in found.prompt)
        texts = tuple(reply.content for (reply,) in turns[1:])
        place = f"line {row.line} (id {found.id!r})"
        return TrainingRow(path, place, found.id, found.label, Prompt(messages, chat=chat), texts)

    for row in read_rows(Source(str(path)), read):
        if isinstance(row, Rejected):
            raise InputError(f"{path}, line {row.line}: {row.reason}; make the data again")
        yield row


# --- texts --------------------------------------------------------------------------------------------------------

_NUMBER = "(?P<number>[1-9][0-9]*)"


class PromptCheck:
    """Whether a prompt can have been made by a template: its fixed texts, in their order and places."""

    def __init__(self, template: PromptTemplate) -> None:
        self.template = template
        # A list of steps begins with step 1 in its format, and ends as the format does.
        opening, step, closing = _filled(template.step_format, {"number": "(n)"}).partition("(.*?)")
        listed = opening.replace("(n)", "1") + step + closing.replace("(n)", ".*?")
        previous = f"(?:{re.escape(template.no_previous_steps)}|{listed})"
        names = {"steps": listed, "previous_steps": previous, "step_number": _NUMBER}
        first, *others = _filled(template.user, names).split(_NUMBER)
        # The step's number is the same wherever it stands.
        numbered = _NUMBER + "(?P=number)".join(others) if others else ""
        self._pattern = re.compile(first + numbered, re.DOTALL)

    def accepts(self, prompt: Prompt) -> bool:
        *before, asked = prompt.messages
        system = [Message("system", self.template.system)] if self.template.system else []
        laid_out = prompt.chat == self.template.chat and before == system and asked.role == "user"
        return laid_out and self._pattern.fullmatch(asked.content) is not None

    def marked(self, prompt: Prompt) -> Prompt:
        """A raw prompt with the places of its record's texts, as the template renders it: a row has the text alone."""
        if prompt.chat or (match := self._pattern.fullmatch(prompt.messages[-1].content)) is None:
            return prompt
        spans = (match.span(group) for group in range(1, self._pattern.groups + 1))
        records = tuple((start, end) for start, end in spans if start < end)
        return replace(prompt, messages=(*prompt.messages[:-1], replace(prompt.messages[-1], records=records)))


def _filled(text: str, patterns: Mapping[str, str]) -> str:
    """A template's text as a pattern: fixed texts literal, placeholders by their patterns, others free."""
    first, *rest = PLACEHOLDER.split(text)
    patterns = {"open_braces": re.escape("{{"), **patterns}
    pairs = zip(rest[::2], rest[1::2], strict=True)
    return re.escape(first) + "".join(patterns.get(name, "(.*?)") + re.escape(fixed) for name, fixed in pairs)


def check_rows(data: TrainingData, kind: str) -> None:
    """Check the texts of every row; an `InputError` says what is wrong, in how many, and names the first of them."""
    template, verdict = data.template, data.template.verdict
    fixes = {
        "prompt": f"have a prompt that template {template.name!r} ({template.digest}) does not make; name the template "
        "that they were rendered with (--prompt), or render them again",
        "verdict": f"do not end in exactly one verdict ({verdict.marker!r}, then {verdict.yes} or {verdict.no}) that "
        "agrees with the label (a rejected reply: have one that agrees); drop these rows, or make the data again",
        "id": "have an id that an earlier row has; make ids unique",
    }
    check = PromptCheck(template)
    for part, path in data.parts.items():
        faults: dict[str, list[str]] = {fault: [] for fault in fixes}
        ids, labels = set[str](), Counter[bool]()
        for row in training_rows(path, kind):
            labels[row.label] += 1
            faults["id"] += [row.place] * (row.id in ids)
            ids.add(row.id)
            faults["prompt"] += [row.place] * (not check.accepts(row.prompt))
            for column, reply in zip(REPLIES[kind], row.replies, strict=True):
                find_fault = rejected_fault if column == "rejected" else verdict_fault
                if (fault := find_fault(reply, verdict, row.label)) is not None:
                    faults["verdict"].append(f"{row.place}: {column}: {fault}")
                    break
        total = labels.total()
        if not total:
            raise InputError(f"{path} has no row; make the data with more analyses")
        listed = "".join(
            f"\n  {len(found):,} of {total:,} rows {fixes[fault]}; the first: {', '.join(found[:_NUM_NAMED])}"
            for fault, found in faults.items()
            if found
        )
        if listed:
            raise InputError(f"{path} cannot be trained on:{listed}")
        if part == "train" and len(labels) == 1:
            only = verdict.yes if labels[True] else verdict.no
            raise InputError(f"{path}: all {total:,} rows have the label of {only}; add rows of the other label")


# --- tokens -------------------------------------------------------------------------------------------------------


def end_token(tokenizer: Any, stops: tuple[int, ...], *, chat: bool) -> int:
    """The token that ends a reply: of those at which an engine stops (`stops`, of the generation config, and the
    tokenizer's EOS) the one that the chat template writes after a reply (`<|im_end|>`), otherwise the EOS."""
    import jinja2

    eos: int | None = tokenizer.eos_token_id
    if chat and getattr(tokenizer, "chat_template", None):
        probe = "It is so."
        messages = [{"role": "user", "content": "Is it?"}, {"role": "assistant", "content": probe}]
        found = after = ""
        # Of a template that refuses such a conversation it cannot be told.
        with contextlib.suppress(jinja2.TemplateError):
            _, found, after = tokenizer.apply_chat_template(messages, tokenize=False).rpartition(probe)
        for token in tokenizer.encode(after, add_special_tokens=False) if found else ():
            if token == eos or token in stops:
                return int(token)
    if eos is None:
        raise EngineError("the tokenizer has no EOS token, so that a reply could never end; set eos_token")
    return eos


def encode_row(tokenizer: Any, row: TrainingRow, end: int) -> tuple[list[int], list[list[int]]]:
    """Token ids of the prompt, and of each reply with its end token. Control tokens that a text spells are none; an
    `InputError` where the tokenizer spells the end token in no other way."""
    control = control_tokens(tokenizer)
    replies = []
    for reply in row.replies:
        try:
            ids = encode_text(tokenizer, reply, control)
            if end in ids:
                raise RequestRefused(f"the reply holds the token that ends a reply, {tokenizer.decode([end])!r}")
        except RequestRefused as error:
            raise InputError(f"{row.file}, {row.place}: {error}; remove it from the text") from None
        replies.append([*ids, end])
    return encode_prompt(tokenizer, row.prompt), replies


#: Counts of a part: rows that are trained on, and tokens (each reply with its prompt).
_COUNTED = ("num_rows", "num_too_long", "num_yes", "num_no", "num_tokens", "num_reply_tokens", "longest")


def encode_data(
    data: TrainingData, kind: str, folder: Path, tokenizer: Any, end: int, most: int, on_note: Callable[[str], None]
) -> dict[str, dict[str, int]]:
    """Write the tokens of every row of at most `most` tokens, one Arrow file for each part; returns the counts.

    Columns of SFT: `input_ids` and `labels` (-100 on the prompt); of DPO: `prompt_ids`, `chosen_ids`, `rejected_ids`. A
    folder that is there already is whole, and is read. An `InputError` where more than 5% of a part are too long.
    """
    if folder.is_dir():
        stored: dict[str, dict[str, int]] = json.loads((folder / _COUNTS).read_text())
        return stored
    import pyarrow as pa

    schema = pa.schema([(name, pa.list_(pa.int32())) for name in _TOKENS[kind]])
    check, found = PromptCheck(data.template), {part: dict.fromkeys(_COUNTED, 0) for part in data.parts}

    def encode(row: TrainingRow) -> tuple[list[int], list[list[int]]]:
        return encode_row(tokenizer, replace(row, prompt=check.marked(row.prompt)), end)

    with whole_folder(folder) as partial:
        for (part, path), counts in zip(data.parts.items(), found.values(), strict=True):
            too_long: list[str] = []
            rows = _short_rows(path, kind, counts, too_long, encode, most)
            with (partial / f"{part}.arrow").open("wb") as stream, pa.ipc.new_stream(stream, schema) as writer:
                while pending := [dict(zip(_TOKENS[kind], row, strict=True)) for row in islice(rows, 1000)]:
                    writer.write_batch(pa.RecordBatch.from_pylist(pending, schema=schema))
            total = counts["num_rows"] + len(too_long)
            which = f"{path}: {len(too_long):,} of {total:,} rows are longer than"
            if len(too_long) > MAX_SHARE_TOO_LONG * total:
                which += f" max_length {most:,}, more than {MAX_SHARE_TOO_LONG:.0%}"
                named = ", ".join(too_long[:_NUM_NAMED])
                raise InputError(f"{which}; the first: {named}; raise --max-length, or make shorter data (none is cut)")
            if too_long:
                on_note(f"{which} {most:,} tokens and left out")
        (partial / _COUNTS).write_text(json.dumps(found))
    return found


def _short_rows(
    path: Path, kind: str, counts: dict[str, int], too_long: list[str], encode: Callable[[TrainingRow], Any], most: int
) -> Iterator[tuple[list[int], ...]]:
    """Rows of a file that are short enough, and in `too_long` those that are not."""
    for row in training_rows(path, kind):
        prompt, replies = encode(row)
        length = len(prompt) + max(map(len, replies))
        if length > most:
            counts["num_too_long"] += 1
            too_long.append(f"{row.place}: {length:,} tokens")
            continue
        counts["num_rows"] += 1
        counts["num_yes" if row.label else "num_no"] += 1
        counts["longest"] = max(counts["longest"], length)
        counts["num_reply_tokens"] += sum(map(len, replies))
        counts["num_tokens"] += sum(len(prompt) + len(reply) for reply in replies)
        yield (prompt, *replies) if kind == "dpo" else (prompt + replies[0], [-100] * len(prompt) + replies[0])


def row_lengths(rows: Any) -> list[int]:
    """Tokens of the longest sequence of each row of a data set, as the trainer has it."""
    import numpy as np
    import pyarrow.compute as pc

    table = rows.with_format("arrow")[:]
    names = [name for name in table.column_names if name in ("input_ids", *_TOKENS["dpo"])]
    lengths = {name: pc.list_value_length(table[name]).to_numpy() for name in names}
    prompt = lengths.pop("prompt_ids", 0)
    found: list[int] = (prompt + np.max(list(lengths.values()), axis=0)).tolist()
    return found


_OTHER_TRL = "this TRL treats them otherwise; use trl 1.16"


def check_batch(trainer: Any, rows: Any, *, num_rows: int = 4) -> None:
    """Refuse a trainer whose batch of its first rows has other tokens than the rows, or loss elsewhere."""
    given, prepared = ([part[i] for i in range(min(num_rows, len(part)))] for part in (rows, trainer.train_dataset))
    batch = trainer.data_collator(prepared)
    ids, mask = batch["input_ids"], batch.get("attention_mask")
    labels = batch["labels"] if "labels" in batch else ids.where(batch["completion_mask"].bool(), -100)
    # All sequences one after the other, without padding. Packs are in an order of their own.
    found = [(part.flatten() if mask is None else part[mask.bool()]).tolist() for part in (ids, labels)]
    if "seq_lengths" in prepared[0]:
        given = prepared
        ends = [(row, list(accumulate(row["seq_lengths"], initial=0))) for row in prepared]
        sequences = [[row[name][a:b] for name in ("input_ids", "labels")] for row, at in ends for a, b in pairwise(at)]
        masked = [next((place for place, one in enumerate(labels) if one != -100), 0) for _, labels in sequences]
        if any(not n or labels[n:] != ids[n:] for n, (ids, labels) in zip(masked, sequences, strict=True)):
            raise InputError(f"a packed row has loss elsewhere than on its reply: {_OTHER_TRL}")
    pairs = [(row["prompt_ids"], row[side]) for side in _TOKENS["dpo"][1:] for row in given if side in row]
    wanted = [(prompt + reply, [-100] * len(prompt) + reply) for prompt, reply in pairs]
    wanted = wanted or [(row["input_ids"], row["labels"]) for row in given]
    if found != [list(chain.from_iterable(part)) for part in zip(*wanted, strict=True)]:
        raise InputError(f"the trainer's tokens are not those of the rows: {_OTHER_TRL}")
