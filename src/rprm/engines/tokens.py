"""From prompts to token ids, and which ids read as Yes or No: what the in-process engines share."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rprm.errors import EngineError, RequestRefused
from rprm.prompts.template import Prompt
from rprm.verdict import VerdictFormat

#: Surface forms of an answer that can stand at the verdict; each that is one token counts towards the answer.
_VARIANTS = ("{}", " {}")


@dataclass(frozen=True)
class VerdictTokens:
    """Ids of the tokens that read as Yes and as No. Disjoint, never empty."""

    yes: tuple[int, ...]
    no: tuple[int, ...]

    @classmethod
    def of(cls, tokenizer: Any, verdict: VerdictFormat) -> VerdictTokens:
        """Find the variants of both answers in a tokenizer's vocabulary.

        A variant is the answer as written, in lower or in upper case, with or without a space before it, where that is
        one token. A tokenizer that has none as one token (by character or by digit) is served by the first token of the
        answers, as long as it tells them apart.

        Raises:
            EngineError: the first tokens of both answers are equal, so that one position cannot tell them apart.
        """
        yes, no = (_single_tokens(tokenizer, answer) for answer in (verdict.yes, verdict.no))
        if not yes or not no:
            yes, no = (_first_tokens(tokenizer, answer) for answer in (verdict.yes, verdict.no))
        both = set(yes) & set(no)
        yes, no = (tuple(token for token in side if token not in both) for side in (yes, no))
        if not yes or not no:
            raise EngineError(
                f"the tokenizer does not tell {verdict.yes!r} from {verdict.no!r} at their first token; "
                "use a prompt template with other answer words"
            )
        return cls(yes, no)


def _single_tokens(tokenizer: Any, answer: str) -> tuple[int, ...]:
    ids: dict[int, None] = {}
    for word in dict.fromkeys((answer, answer.lower(), answer.upper())):
        for variant in _VARIANTS:
            encoded = tokenizer.encode(variant.format(word), add_special_tokens=False)
            # Some tokenizers add a bare space token of their own before a word: look past it.
            kept = [token for token in encoded if tokenizer.decode([token]).strip()]
            if len(kept) == 1 and tokenizer.decode(kept).strip() == word:
                ids[kept[0]] = None
    return tuple(ids)


def _first_tokens(tokenizer: Any, answer: str) -> tuple[int, ...]:
    ids: dict[int, None] = {}
    for variant in _VARIANTS:
        encoded = tokenizer.encode(variant.format(answer), add_special_tokens=False)
        kept = [token for token in encoded if tokenizer.decode([token]).strip()]
        if kept:
            ids[kept[0]] = None
    return tuple(ids)


def encode_prompt(tokenizer: Any, prompt: Prompt, reply: str = "") -> list[int]:
    """Token ids of a prompt, ready to be continued by the model, then of the beginning of its reply.

    Chat prompts go through the model's chat template; a model without one gets the contents, a blank line after each. A
    template that knows no system message gets it at the head of the first user message.

    The reply is `prompt.reply` and then `reply`. Its tokens follow those of the prompt without it, which is what the
    model read when it wrote the reply; they are the tokens of the reply's text alone. Line ends at the end of the reply
    have the tokens that they have before a word, so that a reply to which steps are added begins with the same tokens
    as before, and the model reads what it would have read had it written the next step itself. (Where the next step
    begins with a space or a line end, the last tokens may differ.)
    """
    begun = prompt.reply + reply
    prompt = replace(prompt, reply="")
    if not prompt.chat:
        # A raw prompt writes its own special tokens; encode() parses them and adds what the tokenizer adds by itself.
        ids: list[int] = tokenizer.encode(prompt.text)
    elif getattr(tokenizer, "chat_template", None):
        ids = _apply_chat_template(tokenizer, [(m.role, m.content) for m in prompt.messages])
    else:
        ids = tokenizer.encode(prompt.text + "\n\n")
    return ids + _encode_reply(tokenizer, begun) if begun else ids


def _encode_reply(tokenizer: Any, reply: str) -> list[int]:
    if reply.endswith("\n"):
        # Many tokenizers join line ends that no word follows: "\n\n" is one token at the end and two before "A".
        followed: list[int] = tokenizer.encode(f"{reply}A", add_special_tokens=False)
        if tokenizer.decode(followed[-1:]) == "A":
            return followed[:-1]
    ids: list[int] = tokenizer.encode(reply, add_special_tokens=False)
    return ids


def _apply_chat_template(tokenizer: Any, messages: Sequence[tuple[str, str]]) -> list[int]:
    import jinja2

    def encode(messages: Sequence[tuple[str, str]]) -> list[int]:
        encoded = tokenizer.apply_chat_template(
            [{"role": role, "content": content} for role, content in messages],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
        )
        return list(encoded["input_ids"])

    try:
        return encode(messages)
    except jinja2.TemplateError:
        roles = [role for role, _ in messages]
        if roles[:2] != ["system", "user"]:
            raise
        return encode([("user", f"{messages[0][1]}\n\n{messages[1][1]}"), *messages[2:]])


class TokenWriter:
    """Puts ids together. Text between two tokens is encoded as one run, as it is in the whole text.

    Attributes:
        ids: what is written.
        run: text that waits to be encoded.
        guarded: the tokens that no text of a record may make: id -> spelling.
    """

    def __init__(self, tokenizer: Any, guarded: dict[int, str]) -> None:
        self.tokenizer = tokenizer
        self.guarded = guarded
        self.ids: list[int] = []
        self.run = ""

    def text(self, text: str) -> None:
        """Text of a record: special tokens in it are spelled out."""
        self.run += text

    def fixed(self, text: str) -> None:
        """Text of the layout: special tokens in it are meant."""
        specials = {token: id_ for id_, token in self.guarded.items()}
        for part in split_at(text, list(specials)):
            if part in specials:
                self.token(specials[part])
            else:
                self.text(part)

    def token(self, id_: int) -> None:
        self.flush()
        self.ids.append(id_)

    def flush(self) -> None:
        """End the run of text."""
        if self.run:
            self.ids += encode_text(self.tokenizer, self.run, self.guarded)
            self.run = ""


def encode_text(tokenizer: Any, text: str, guarded: dict[int, str]) -> list[int]:
    """Ids of a text, none of them of a guarded token."""
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
    if guarded.keys().isdisjoint(ids):
        return ids
    # A tokenizer that knows no `split_special_tokens`, or a token that it does not count as special: cut the spelling
    # after its first character, and encode the two sides apart.
    ids = []
    contents = set(guarded.values())
    piece = ""
    for part in split_at(text, list(contents)):
        if part in contents:
            ids += tokenizer.encode(piece + part[:1], add_special_tokens=False, split_special_tokens=True)
            piece = part[1:]
        else:
            piece += part
    if piece:
        ids += tokenizer.encode(piece, add_special_tokens=False, split_special_tokens=True)
    if left := [guarded[id_] for id_ in ids if id_ in guarded]:
        raise RequestRefused(
            f"a text holds the model's own token {left[0]!r}, which the tokenizer spells in no other way"
        )
    return ids


def split_at(text: str, contents: Sequence[str]) -> list[str]:
    """The text in parts: each of `contents` is a part of its own, the longest first where several begin alike."""
    longest_first = sorted((content for content in contents if content), key=len, reverse=True)
    if not longest_first:
        return [text]
    return [part for part in re.split("(" + "|".join(map(re.escape, longest_first)) + ")", text) if part]


def special_tokens(tokenizer: Any) -> dict[int, str]:
    """Special tokens: id -> content."""
    found = {id_: str(token.content) for id_, token in tokenizer.added_tokens_decoder.items() if token.special}
    return found | dict(zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True))


def fingerprint(path: Path) -> str:
    """A short hash that changes when a local model does: of every small file, and of samples of each large one.

    Reads at most 1 MiB of a file (16 evenly spaced pieces) with its size, so that 15 GB of weights take no time.
    """
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    digest = hashlib.sha256()
    for file in files:
        size = file.stat().st_size
        name = file.relative_to(path).as_posix() if path.is_dir() else file.name
        digest.update(f"{name}\0{size}\0".encode())
        with file.open("rb") as stream:
            if size <= 1 << 20:
                digest.update(stream.read())
                continue
            for piece in range(16):
                stream.seek(piece * (size - (1 << 16)) // 15)
                digest.update(stream.read(1 << 16))
    return f"sha256:{digest.hexdigest()[:16]}"
