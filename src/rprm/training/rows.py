"""Training rows: from the JSON Lines of a data set to the very tokens that an engine reads and writes.

A row is a prompt and one reply (SFT) or two (DPO). Its tokens are `encode_prompt(tokenizer, prompt)`, as the engines
compute them, then the reply's, then the token that ends a reply. A trainer that renders a conversation by itself makes
others for many chat templates: no end token where the template writes none, a line end after it where the
template goes on, other tokens where prompt and reply merge. So rows reach the trainer as token ids.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rprm.data.datasets import TRAIN, VALIDATION
from rprm.engines.files import commit as commit_of
from rprm.engines.files import fingerprint, refuse_missing
from rprm.engines.loading import load_weights, plain_errors
from rprm.engines.tokens import control_tokens, encode_prompt, encode_text
from rprm.errors import EngineError, InputError, PromptError, RequestRefused
from rprm.prompts.library import MODEL_TEMPLATE, load_template
from rprm.prompts.template import Message, Prompt, PromptTemplate

#: The largest share of rows or steps that may be too long: they are left out and counted.
MAX_SHARE_TOO_LONG = 0.05

#: Columns that hold the replies of a row, by kind of training.
REPLIES = {"sft": ("completion",), "dpo": ("chosen", "rejected")}


@dataclass(frozen=True)
class TrainingData:
    """The files of a data set, and the template that its prompts were rendered with."""

    name: str
    train: Path
    validation: Path | None
    template: PromptTemplate

    @property
    def parts(self) -> dict[str, Path]:
        return {"train": self.train, **({"validation": self.validation} if self.validation is not None else {})}

    def digests(self) -> dict[str, str]:
        """A hash of each file's content."""
        found = {}
        for part, path in self.parts.items():
            with path.open("rb") as stream:
                found[part] = f"sha256:{hashlib.file_digest(stream, 'sha256').hexdigest()[:16]}"
        return found


@dataclass(frozen=True, slots=True)
class TrainingRow:
    """One row as read. `replies` has one text (SFT: the completion) or two (DPO: chosen, rejected)."""

    file: Path
    line: int
    id: str
    label: bool
    prompt: Prompt
    replies: tuple[str, ...]


def open_data(source: str | Path, prompt: str | Path | None = None) -> TrainingData:
    """Find the files of a data set.

    Args:
        source: a folder with `train.jsonl`, maybe `validation.jsonl`, and `rprm_prompt.toml`; or one JSON Lines file.
        prompt: the template of the prompts, as for `load_template`; by default the folder's own.

    Raises:
        InputError: there is no such data set.
        PromptError: the template is missing, or another than the folder's own.
    """
    path = Path(source)
    if path.is_file():
        if prompt is None:
            raise PromptError(f"{path}: a file says nothing of its prompt template; name it with --prompt")
        return TrainingData(str(source), path, None, load_template(prompt))
    if not path.is_dir():
        raise InputError(f"{path}: no such data; give a folder with {TRAIN}, or a JSON Lines file")
    if not (path / TRAIN).is_file():
        raise InputError(f"{path} has no {TRAIN}; make one with `rprm data`, or name a JSON Lines file")
    own = load_template(path) if (path / MODEL_TEMPLATE).is_file() else None
    if own is None and prompt is None:
        raise PromptError(f"{path} has no {MODEL_TEMPLATE}; name the template of its prompts with --prompt")
    template = own if prompt is None else load_template(prompt)
    assert template is not None
    if own is not None and own.digest != template.digest:
        raise PromptError(
            f"{path} was rendered with template {own.name!r} ({own.digest}), --prompt is {template.name!r} "
            f"({template.digest}); leave --prompt out, or render the data again with it"
        )
    validation = path / VALIDATION
    # A data set without held-out problems has an empty file there.
    has_validation = validation.is_file() and validation.stat().st_size > 0
    return TrainingData(str(source), path / TRAIN, validation if has_validation else None, template)


def read_rows(path: Path, kind: str) -> Iterator[TrainingRow]:
    """The rows of a file, in order; columns that training does not need are ignored.

    Args:
        path: JSON Lines.
        kind: `sft` or `dpo`.

    Raises:
        InputError: a line is no such row; the message has file and line.
    """
    columns = REPLIES[kind]
    with path.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            if not line.strip():
                continue
            where = f"{path}, line {number}"
            try:
                row = json.loads(line)
            except ValueError as error:
                raise InputError(f"{where}: not JSON: {error}; make the data again") from None
            if not isinstance(row, dict):
                raise InputError(f"{where}: not a JSON object")
            if missing := [name for name in ("id", "label", "prompt", *columns) if name not in row]:
                raise InputError(
                    f"{where}: no {missing[0]!r}; a row for {kind} has id, label, prompt and {' and '.join(columns)}"
                )
            if not isinstance(row["id"], str) or not isinstance(row["label"], bool):
                raise InputError(f"{where}: id must be a text and label true or false")
            chat = not isinstance(row["prompt"], str)
            messages = _messages(row["prompt"], f"{where}: prompt") if chat else [Message("user", row["prompt"])]
            if not messages or messages[-1].role != "user":
                raise InputError(f"{where}: prompt must end in a message of the user")
            replies = tuple(_reply(row[name], chat, f"{where}: {name}") for name in columns)
            yield TrainingRow(path, number, row["id"], row["label"], Prompt(tuple(messages), chat=chat), replies)


def _reply(value: Any, chat: bool, where: str) -> str:
    if isinstance(value, str) and not chat:
        return value
    if chat:
        messages = _messages(value, where)
        if len(messages) == 1 and messages[0].role == "assistant":
            return messages[0].content
    raise InputError(f"{where} must be one message of the assistant, or, where the prompt is a text, a text")


def _messages(value: Any, where: str) -> list[Message]:
    if not isinstance(value, list):
        raise InputError(f"{where} must be a list of messages, or a text throughout")
    for entry in value:
        if not isinstance(entry, dict) or not all(isinstance(entry.get(name), str) for name in ("role", "content")):
            raise InputError(f"{where}: a message has a role and a content, both texts, not {entry!r:.80}")
    return [Message(entry["role"], entry["content"]) for entry in value]


# --- tokens -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class BaseModel:
    """The model that training starts from: where it is, and what identifies its content.

    `revision` is the commit of a hub repository, `identity` that or the fingerprint of a folder.
    """

    target: str
    revision: str | None
    identity: str
    context_length: int | None
    #: Ids at which its generation stops, as its own configuration has them.
    stops: tuple[int, ...]

    @property
    def source(self) -> dict[str, Any]:
        """Keywords of every `from_pretrained` that loads a part of it."""
        return {} if self.revision is None else {"revision": self.revision}

    @property
    def folder(self) -> Path | None:
        path = Path(self.target)
        return path if path.is_dir() else None


def find_model(target: str, revision: str | None = None) -> BaseModel:
    """Look up a model without loading its weights.

    Raises:
        EngineError: it cannot be loaded, or not be trained.
    """
    refuse_missing(target, target)
    path = Path(target)
    if target.endswith(".gguf"):
        raise EngineError(f"{target}: a GGUF file cannot be trained; give the model's safetensors folder or its hub id")
    if (path / "adapter_config.json").is_file() and not (path / "config.json").is_file():
        raise EngineError(f"{target} is a LoRA adapter; merge it first, or train on from a merged model folder")
    with plain_errors(target, "a causal language model"):
        from transformers import AutoConfig, GenerationConfig

        config = AutoConfig.from_pretrained(target, revision=revision, trust_remote_code=False)
    commit = None if path.is_dir() else commit_of(target, revision) or revision
    text_config = config.get_text_config()
    ends = None
    with contextlib.suppress(OSError):
        ends = GenerationConfig.from_pretrained(target, **({} if commit is None else {"revision": commit})).eos_token_id
    if ends is None:
        ends = getattr(text_config, "eos_token_id", None)
    return BaseModel(
        target=target,
        revision=commit,
        identity=fingerprint(path) if path.is_dir() else f"{target}@{commit}",
        context_length=getattr(text_config, "max_position_embeddings", None),
        stops=tuple(ends) if isinstance(ends, list | tuple) else () if ends is None else (ends,),
    )


def check_weights(base: BaseModel) -> None:
    """Refuse a model whose checkpoint does not fit its configuration: it would begin at random values.

    No weight is read for it.

    Raises:
        EngineError: the tensors concerned.
    """
    with plain_errors(base.target, "a causal language model"):
        from transformers import AutoModelForCausalLM

        load_weights(AutoModelForCausalLM, base.target, device_map="meta", **base.source)


def end_token(tokenizer: Any, stops: tuple[int, ...], *, chat: bool) -> int:
    """The token that ends a reply: an engine stops at it, and, where it can be, it is the chat template's own.

    Engines stop at the ids of the generation config and at the tokenizer's EOS. Of those the template may write one
    after a reply (`<|im_end|>`); otherwise the EOS is it.

    Raises:
        EngineError: there is no token at which an engine would stop.
    """
    import jinja2

    eos: int | None = tokenizer.eos_token_id
    if chat and getattr(tokenizer, "chat_template", None):
        probe = "It is so."
        messages = [{"role": "user", "content": "Is it?"}, {"role": "assistant", "content": probe}]
        text = ""
        # Of a template that refuses such a conversation it cannot be told.
        with contextlib.suppress(jinja2.TemplateError):
            text = tokenizer.apply_chat_template(messages, tokenize=False)
        _, found, after = text.rpartition(probe)
        for token in tokenizer.encode(after, add_special_tokens=False) if found else ():
            if token == eos or token in stops:
                return int(token)
    if eos is None:
        raise EngineError("the tokenizer has no EOS token, so that a reply could never end; set eos_token")
    return eos


def encode_row(tokenizer: Any, row: TrainingRow, end: int) -> tuple[list[int], list[list[int]]]:
    """Token ids of the prompt, and of each reply with its end token. Control tokens that a text spells are none.

    Raises:
        InputError: a reply holds the end token in its text, and the tokenizer spells it in no other way.
    """
    where = f"{row.file}, line {row.line} (id {row.id!r})"
    control = control_tokens(tokenizer)
    replies = []
    for reply in row.replies:
        try:
            ids = encode_text(tokenizer, reply, control)
        except RequestRefused as error:
            raise InputError(f"{where}: {error}; remove it from the text") from None
        if end in ids:
            raise InputError(
                f"{where}: the reply holds the token that ends a reply, {tokenizer.decode([end])!r}; remove it from "
                "the text"
            )
        replies.append([*ids, end])
    return encode_prompt(tokenizer, row.prompt), replies
