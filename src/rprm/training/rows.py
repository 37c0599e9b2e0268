"""Training rows: from the JSON Lines of a data set to the very tokens that an engine reads and writes, checked. A
trainer that renders a conversation itself makes others for many chat templates, so rows reach it as token ids."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import accumulate, chain, islice, pairwise
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, create_model

from rprm.data.datasets import TRAIN, VALIDATION, rejected_fault, verdict_fault
from rprm.engines.tokens import control_tokens, encode_prompt, encode_text, render_chat
from rprm.errors import EngineError, InputError, PromptError, RequestRefused
from rprm.files import read_json
from rprm.prompts.library import MODEL_TEMPLATE, load_template
from rprm.prompts.template import Message, Prompt, PromptTemplate
from rprm.reading import AnyText, Rejected, Row, RowModel, Source, checked, read_rows
from rprm.training.handover import whole_folder

#: The largest share of rows or steps that may be too long: they are left out and counted.
MAX_SHARE_TOO_LONG = 0.05

#: Columns that hold the replies of a row, and those of its tokens as a trainer takes them, by kind of training.
REPLIES = {"sft": ("completion",), "dpo": ("chosen", "rejected")}
_TOKENS = {"sft": ("input_ids", "labels"), "dpo": ("prompt_ids", "chosen_ids", "rejected_ids")}
_COUNTS = "counts.json"
#: Rows named in a message.
_NUM_NAMED = 3


@dataclass(frozen=True)
class TrainingData:
    """The files of a data set, by part (`train`, maybe `validation`), and the template of its prompts."""

    name: str
    parts: Mapping[str, Path]
    template: PromptTemplate


def open_data(source: str | Path, prompt: str | Path | None = None) -> TrainingData:
    """Find the files of a data set: a folder as `rprm data` writes it, or one JSON Lines file and its template. An
    `InputError` or `PromptError` where there is none, or the template is missing or another than the folder's own."""
    path = Path(source)
    parts = {"train": path if path.is_file() else path / TRAIN}
    if not parts["train"].is_file():
        what = "a pipe can be read once, and training reads its rows again" if path.is_fifo() else "no such data"
        raise InputError(f"{path}: {what}; give a folder with {TRAIN} (`rprm data`), or a JSON Lines file")
    # A data set without held-out problems has an empty file there.
    if (held_out := path / VALIDATION).is_file() and held_out.stat().st_size:
        parts["validation"] = held_out
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


class _Row(RowModel):
    id: AnyText
    label: bool
    prompt: _Turns


#: A row of each kind, with its replies.
_ROWS: dict[str, type[_Row]] = {
    kind: create_model("_KindRow", __base__=_Row, **dict.fromkeys(names, (_Turns, ...)))  # type: ignore[call-overload]
    for kind, names in REPLIES.items()
}


def training_rows(path: Path, kind: str) -> Iterator[TrainingRow]:
    """The rows of a file for `sft` or `dpo`, in order; an `InputError` names the line that is no such row."""

    def read(row: Row) -> TrainingRow:
        found = checked(_ROWS[kind], row.value)
        replies = [getattr(found, name) for name in REPLIES[kind]]
        roles = [[turn.role for turn in part] for part in (found.prompt[-1:], *replies)]
        chat = roles == [["user"], *[["assistant"]] * len(replies)]
        if not chat and roles != [[""]] * len(roles):
            names = " and ".join(REPLIES[kind])
            raise InputError(f"prompt must end in the user's message, {names} be one of the assistant; or all be texts")
        messages = tuple(Message(turn.role or "user", turn.content) for turn in found.prompt)
        place, texts = f"line {row.line} (id {found.id!r})", tuple(reply.content for (reply,) in replies)
        return TrainingRow(path, place, found.id, found.label, Prompt(messages, chat=chat), texts)

    for row in read_rows(Source(str(path)), read):
        if isinstance(row, Rejected):
            raise InputError(f"{path}, line {row.line}: {row.reason}; make the data again")
        yield row


def as_rendered(template: PromptTemplate, prompt: Prompt) -> Prompt | None:
    """A prompt as its template renders it, with the places of its record's texts (of a raw prompt, a row has the text
    alone); None where the template makes no such prompt."""
    parts = template.take_apart(prompt.messages[-1].content)
    if parts is None:
        return None
    rendered = template.render(*parts, len(parts[1]) - 1)
    bare = tuple(replace(message, records=()) for message in rendered.messages)
    return rendered if replace(rendered, messages=bare) == prompt else None


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
    for part, path in data.parts.items():
        faults, ids, labels = {fault: list[str]() for fault in fixes}, set[str](), Counter[bool]()
        for row in training_rows(path, kind):
            labels[row.label] += 1
            faults["id"] += [row.place] * (row.id in ids)
            ids.add(row.id)
            faults["prompt"] += [row.place] * (as_rendered(template, row.prompt) is None)
            for column, reply in zip(REPLIES[kind], row.replies, strict=True):
                find_fault = rejected_fault if column == "rejected" else verdict_fault
                if fault := find_fault(reply, verdict, row.label):
                    faults["verdict"].append(f"{row.place}: {column}: {fault}")
                    break
        if not (total := labels.total()):
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


def end_token(tokenizer: Any, stops: tuple[int, ...], *, chat: bool) -> int:
    """The token that ends a reply: of those at which an engine stops (`stops`, of the generation config, and the
    tokenizer's EOS) the one that the chat template writes after a reply (`<|im_end|>`), otherwise the EOS."""
    eos: int | None = tokenizer.eos_token_id
    if chat and getattr(tokenizer, "chat_template", None):
        messages = [{"role": "user", "content": "Is it?"}, {"role": "assistant", "content": "It is so."}]
        found = after = ""
        # Of a template that refuses such a conversation it cannot be told.
        with contextlib.suppress(RequestRefused):
            text = render_chat(tokenizer, messages, add_generation_prompt=False)
            _, found, after = text.rpartition("It is so.")
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
    try:
        replies = [encode_text(tokenizer, reply, control) for reply in row.replies]
        if end in chain(*replies):
            raise RequestRefused(f"the reply holds the token that ends a reply, {tokenizer.decode([end])!r}")
    except RequestRefused as error:
        raise InputError(f"{row.file}, {row.place}: {error}; remove it from the text") from None
    return encode_prompt(tokenizer, row.prompt), [[*reply, end] for reply in replies]


def encode_data(
    data: TrainingData, kind: str, folder: Path, tokenizer: Any, end: int, most: int, on_note: Callable[[str], None]
) -> dict[str, dict[str, int]]:
    """Write the tokens of every row of at most `most` tokens, one Arrow file for each part (SFT's `labels` are -100 on
    the prompt); a folder that is there already is whole, and is read. Returns counts of each part: of rows that are
    trained on, and of tokens, each reply with its prompt. An `InputError` where more than 5% of a part are too long."""
    if folder.is_dir():
        stored: dict[str, dict[str, int]] = read_json(folder / _COUNTS)
        return stored
    import pyarrow as pa
    from datasets.arrow_writer import ArrowWriter

    schema = pa.schema([(name, pa.list_(pa.int32())) for name in _TOKENS[kind]])
    counted = "num_rows", "num_too_long", "num_yes", "num_no", "num_tokens", "num_reply_tokens", "longest"
    found = {part: dict.fromkeys(counted, 0) for part in data.parts}
    with whole_folder(folder) as partial:
        for (part, path), counts in zip(data.parts.items(), found.values(), strict=True):
            too_long: list[str] = []
            with ArrowWriter(schema=schema, path=str(partial / f"{part}.arrow")) as writer:
                for row in training_rows(path, kind):
                    if not row.prompt.chat:
                        row = replace(row, prompt=as_rendered(data.template, row.prompt) or row.prompt)
                    prompt, replies = encode_row(tokenizer, row, end)
                    length = len(prompt) + max(map(len, replies))
                    if length > most:
                        too_long.append(f"{row.place}: {length:,} tokens")
                        continue
                    sft = prompt + replies[0], [-100] * len(prompt) + replies[0]
                    columns = sft if kind == "sft" else (prompt, *replies)
                    writer.write(dict(zip(_TOKENS[kind], columns, strict=True)))
                    counts["num_rows"] += 1
                    counts["num_yes" if row.label else "num_no"] += 1
                    counts["longest"] = max(counts["longest"], length)
                    counts["num_reply_tokens"] += sum(map(len, replies))
                    counts["num_tokens"] += len(prompt) * len(replies) + sum(map(len, replies))
                writer.finalize()
            counts["num_too_long"], total = len(too_long), counts["num_rows"] + len(too_long)
            which = f"{path}: {len(too_long):,} of {total:,} rows are longer than"
            if len(too_long) > MAX_SHARE_TOO_LONG * total:
                which += f" max_length {most:,}, more than {MAX_SHARE_TOO_LONG:.0%}"
                named = ", ".join(too_long[:_NUM_NAMED])
                raise InputError(f"{which}; the first: {named}; raise --max-length, or make shorter data (none is cut)")
            if too_long:
                on_note(f"{which} {most:,} tokens and left out")
        (partial / _COUNTS).write_text(json.dumps(found))
    return found


def row_lengths(rows: Any) -> list[int]:
    """Tokens of the longest sequence of each row of a data set, as the trainer has it."""
    import numpy as np
    import pyarrow.compute as pc

    table = rows.with_format("arrow")[:]
    names = _TOKENS["sft"][:1] if "input_ids" in table.column_names else _TOKENS["dpo"]
    first, *replies = (pc.list_value_length(table[name]).to_numpy() for name in names)
    found: list[int] = (np.maximum(*replies) + first if replies else first).tolist()
    return found


def check_batch(trainer: Any, rows: Any, *, num_rows: int = 4) -> None:
    """Refuse a trainer whose batch of its first rows has other tokens than the rows, or loss elsewhere."""
    given, prepared = (list(islice(part, num_rows)) for part in (rows, trainer.train_dataset))
    batch = trainer.data_collator(prepared)
    ids, mask = batch["input_ids"], batch.get("attention_mask")
    labels = batch["labels"] if "labels" in batch else ids.where(batch["completion_mask"].bool(), -100)
    # All sequences one after the other, without padding.
    found = [(part.flatten() if mask is None else part[mask.bool()]).tolist() for part in (ids, labels)]
    if "seq_lengths" in prepared[0]:
        # Packs are in an order of their own: the rows are theirs.
        ends = [(row, pairwise(accumulate(row["seq_lengths"], initial=0))) for row in prepared]
        given = [{name: row[name][a:b] for name in _TOKENS["sft"]} for row, at in ends for a, b in at]
    pairs = [(row["prompt_ids"], row[side]) for side in _TOKENS["dpo"][1:] for row in given if side in row]
    for row in given:
        if "labels" in row:
            num_prompt = row["labels"].count(-100)
            pairs.append((row["input_ids"][:num_prompt], row["input_ids"][num_prompt:]))
    wanted = zip(*((prompt + reply, [-100] * len(prompt) + reply) for prompt, reply in pairs), strict=True)
    if found != [list(chain.from_iterable(part)) for part in wanted] or not all(prompt for prompt, _ in pairs):
        raise InputError("the trainer's tokens are not those of the rows: this TRL treats them otherwise; use trl 1.16")
