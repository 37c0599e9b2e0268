"""From prompts to token ids, and which ids read as Yes or No: what the in-process engines share."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from typing import Any

from rprm.errors import EngineError, RequestRefused
from rprm.prompts.template import Filled, Prompt
from rprm.thinking import DELIMITERS
from rprm.verdict import VerdictFormat

#: Stands for a special token that a message spells while the chat template is rendered.
_PLACE = "RPRMTOKEN"

#: How control tokens look.
_TAG = re.compile(r"<.+>|\[.+\]|◁.+▷", re.DOTALL)

#: Tokens at the end of a prompt among which the opening of a model's thinking is looked for.
_OPENING_TOKENS = 16


@dataclass(frozen=True)
class VerdictTokens:
    """Ids of the tokens that read as Yes and as No (disjoint, never empty), and the word that each of them writes."""

    yes: tuple[int, ...]
    no: tuple[int, ...]
    words: Mapping[int, str]

    @classmethod
    @lru_cache(maxsize=4)
    def of(cls, tokenizer: Any, verdict: VerdictFormat) -> VerdictTokens:
        """Find the variants of both answers in a tokenizer's vocabulary.

        A variant is the answer as written, in lower or in upper case, with or without a space before it, where that is
        one token. A tokenizer that has none as one token (by character or by digit) is served by the first token of the
        answers, as long as it tells them apart.

        Raises:
            EngineError: the first tokens of both answers are equal, so that one position cannot tell them apart.
        """

        def found(answer: str, *, whole: bool) -> dict[int, str]:
            words: dict[int, str] = {}
            for form in verdict.forms(answer):
                # Some tokenizers add a bare space token of their own before a word: look past it.
                pieces = [
                    (id_, tokenizer.decode([id_]).strip()) for id_ in tokenizer.encode(form, add_special_tokens=False)
                ]
                pieces = [piece for piece in pieces if piece[1]]
                if pieces and (not whole or (len(pieces) == 1 and pieces[0][1] == form.strip())):
                    words.update(pieces[:1])
            return words

        yes, no = (found(answer, whole=True) for answer in (verdict.yes, verdict.no))
        if not yes or not no:
            yes, no = (found(answer, whole=False) for answer in (verdict.yes, verdict.no))
        sides = tuple(id_ for id_ in yes if id_ not in no), tuple(id_ for id_ in no if id_ not in yes)
        if not all(sides):
            raise EngineError(
                f"the tokenizer does not tell {verdict.yes!r} from {verdict.no!r} at their first token; "
                "use a prompt template with other answer words"
            )
        return cls(*sides, {id_: (yes | no)[id_] for side in sides for id_ in side})


def encode_prompt(tokenizer: Any, prompt: Prompt, reply: str = "") -> list[int]:
    """Token ids of a prompt, ready to be continued by the model, then of the beginning of its reply.

    Chat prompts go through the model's chat template; a model without one gets the contents, a blank line after each. A
    template that knows no system message gets it at the head of the first user message.

    A solution cannot speak for its judge: a control token that is spelled in the text of a record (`Message.records`;
    all contents of a chat; `prompt.reply`) is written in ordinary tokens. So are, in `reply`, which the model wrote,
    special tokens and those that it may quote, because the prompt spells them; others, and the tags of its thinking,
    are its own.

    The reply is `prompt.reply` and then `reply`. Its tokens follow those of the prompt alone, and are those of its text
    alone; line ends at its end have the tokens that they have before a word, so that a reply to which steps are added
    begins with the same tokens as before. (Where the next step begins with white space, the last tokens may differ.)
    Where the chat template opens the thinking, a reply that begins with this opening, as completions do
    (`thinking_opening`), has it once.

    Raises:
        RequestRefused: the text of a record spells a special token that the tokenizer can write in no other way.
    """
    control = control_tokens(tokenizer)
    if prompt.chat and getattr(tokenizer, "chat_template", None):
        ids = _apply_chat_template(tokenizer, [(m.role, m.content) for m in prompt.messages], control)
    elif prompt.chat:
        contents = "".join(f"{message.content}\n\n" for message in prompt.messages)
        ids = _encode(tokenizer, Filled.record(contents), control)
    else:
        # A raw prompt writes its own special tokens.
        raw = Filled("\n\n").join(Filled(message.content, message.records) for message in prompt.messages)
        ids = _encode(tokenizer, raw, control)
    written = prompt.reply + reply
    begun = written.removeprefix(thinking_opening(tokenizer, prompt, ids))
    if not begun:
        return ids
    num_given = max(0, len(prompt.reply) - (len(written) - len(begun)))
    quotable = set(special_tokens(tokenizer).values())
    quotable |= set(_spellings(control.values()).findall(prompt.text)) - set(chain.from_iterable(DELIMITERS))
    quoted = (match.span() for match in _spellings(quotable).finditer(begun, num_given))
    records = ((0, num_given), *quoted)
    if begun.endswith("\n"):
        # Many tokenizers join line ends that no word follows: "\n\n" is one token at the end and two before "A".
        followed = _encode(tokenizer, Filled(f"{begun}A", records), control, bare=True)
        if tokenizer.decode(followed[-1:]) == "A":
            return ids + followed[:-1]
    return ids + _encode(tokenizer, Filled(begun, records), control, bare=True)


def thinking_opening(tokenizer: Any, prompt: Prompt, ids: Sequence[int]) -> str:
    """What a chat template itself writes to open the model's thinking: `<think>` and white space; else "".

    Args:
        prompt: the prompt.
        ids: its token ids, up to the beginning of the reply.
    """
    if not prompt.chat or not getattr(tokenizer, "chat_template", None):
        return ""
    end = tokenizer.decode(ids[-_OPENING_TOKENS:], skip_special_tokens=False, clean_up_tokenization_spaces=False)
    found = re.search(r"<think>\s*\Z", end)
    return found[0] if found else ""


def _apply_chat_template(tokenizer: Any, messages: Sequence[tuple[str, str]], control: dict[int, str]) -> list[int]:
    import jinja2

    def encode(messages: Sequence[tuple[str, str]]) -> list[int]:
        given = [{"role": role, "content": content} for role, content in messages]
        place = _PLACE
        while any(place in content for _, content in messages):
            place += "X"
        spellings: list[str] = []

        def hide(match: re.Match[str]) -> str:
            spellings.append(match[0])
            return f"{place}{len(spellings) - 1}X"

        for message in given:
            message["content"] = _spellings(control.values()).sub(hide, message["content"])
        rendered = tokenizer.apply_chat_template(
            given, add_generation_prompt=True, tokenize=not spellings, return_dict=not spellings
        )
        if not spellings:
            return list(rendered["input_ids"])
        # Put the spellings back, and remember where they stand.
        parts = re.split(rf"{place}(\d+)X", rendered)
        filled = [Filled(part) for part in parts]
        filled[1::2] = (Filled.record(spellings[int(number)]) for number in parts[1::2])
        return _encode(tokenizer, Filled("").join(filled), control, bare=True)

    try:
        return encode(messages)
    except jinja2.TemplateError:
        roles = [role for role, _ in messages]
        if roles[:2] != ["system", "user"]:
            raise
        return encode([("user", f"{messages[0][1]}\n\n{messages[1][1]}"), *messages[2:]])


def _encode(tokenizer: Any, filled: Filled, control: dict[int, str], *, bare: bool = False) -> list[int]:
    """Ids of a text; control tokens that records in it spell are written in ordinary ones, others are meant.

    Args:
        control: the control tokens: id -> spelling.
        bare: leave out what the tokenizer begins a text with.
    """
    matches = list(_spellings(control.values()).finditer(filled.text))
    meant = [match for match in matches if not any(a < match.end() and match.start() < b for a, b in filled.records)]
    if len(meant) == len(matches):
        return list(tokenizer.encode(filled.text, add_special_tokens=not bare))
    ids = {spelling: id_ for id_, spelling in control.items()}
    writer = TokenWriter(tokenizer, control)
    writer.ids += [] if bare else text_prefix(tokenizer)
    position = 0
    for match in meant:
        token = tokenizer.added_tokens_decoder.get(ids[match[0]])
        before = filled.text[position : match.start()]
        # Some tokens take in the white space beside them.
        writer.text(before.rstrip() if token is not None and token.lstrip else before)
        writer.token(ids[match[0]])
        position = match.end()
        if token is not None and token.rstrip:
            rest = filled.text[position:]
            position += len(rest) - len(rest.lstrip())
    writer.text(filled.text[position:])
    writer.flush()
    return writer.ids


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
    """Ids of a text, none of them of a guarded token that it spells."""

    def made(ids: Sequence[int]) -> list[str]:
        # The id of unknown characters may be a special token's: that is nobody's spelling.
        plain = unicodedata.normalize("NFKC", text).casefold()
        return [guarded[id_] for id_ in guarded.keys() & set(ids) if guarded[id_].casefold() in plain]

    def plain(text: str) -> list[int]:
        return list(tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)) if text else []

    ids = plain(text)
    if not made(ids):
        return ids
    # A tokenizer that knows no `split_special_tokens`, or a token that it does not count as special: cut the spelling
    # after its first character, and encode the two sides apart.
    ids, piece, contents = [], "", set(guarded.values())
    for part in split_at(text, contents):
        if part in contents:
            ids += plain(piece + part[:1])
            piece = part[1:]
        else:
            piece += part
    ids += plain(piece)
    if left := made(ids):
        raise RequestRefused(
            f"a text holds the model's own token {left[0]!r}, which the tokenizer spells in no other way"
        )
    return ids


def split_at(text: str, contents: Iterable[str]) -> list[str]:
    """The text in parts: each of `contents` is a part of its own, the longest first where several begin alike."""
    return [part for part in _spellings(contents).split(text) if part]


def _spellings(contents: Iterable[str]) -> re.Pattern[str]:
    return _pattern(frozenset(contents))


@lru_cache(maxsize=16)
def _pattern(contents: frozenset[str]) -> re.Pattern[str]:
    """Any of these texts as a group, the longest first where several begin alike."""
    longest_first = sorted(filter(None, contents), key=len, reverse=True)
    # What nothing matches where there are none.
    return re.compile(f"({'|'.join(map(re.escape, longest_first)) or '(?!)'})")


def text_prefix(tokenizer: Any) -> list[int]:
    """The special tokens that the tokenizer begins a text with."""
    bare, whole = tokenizer.encode("a", add_special_tokens=False), tokenizer.encode("a")
    for start in range(len(whole) - len(bare) + 1):
        if whole[start : start + len(bare)] == bare:
            return list(whole[:start])
    return []


def control_tokens(tokenizer: Any) -> dict[int, str]:
    """Tokens that lay out a conversation: id -> content.

    The special ones, and added tokens that the chat template writes or that look like a tag (`<think>`, `[INST]`): not
    every tokenizer marks those as special.
    """
    return _control_tokens(tokenizer, len(tokenizer), str(getattr(tokenizer, "chat_template", None) or ""))


# Some tokenizers have a thousand: looked up once, unless tokens are added or the template changes.
@lru_cache(maxsize=4)
def _control_tokens(tokenizer: Any, _size: int, template: str) -> dict[int, str]:
    added = {id_: str(token.content) for id_, token in tokenizer.added_tokens_decoder.items()}
    meant = {id_ for id_, content in added.items() if content.strip() and content in template}
    meant |= {id_ for id_, content in added.items() if _TAG.fullmatch(content)}
    return special_tokens(tokenizer) | {id_: added[id_] for id_ in sorted(meant)}


def special_tokens(tokenizer: Any) -> dict[int, str]:
    """Special tokens: id -> content."""
    found = {id_: str(token.content) for id_, token in tokenizer.added_tokens_decoder.items() if token.special}
    return found | dict(zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True))
