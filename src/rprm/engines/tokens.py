"""From prompts to token ids, and from ids to text and its verdict: what the in-process engines share."""

from __future__ import annotations

import re
import sys
import time
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import chain
from typing import Any

from rprm.engines.base import Completion, Sampling
from rprm.errors import EngineError, RequestRefused, RprmError
from rprm.prompts.template import Filled, Message, Prompt
from rprm.thinking import DELIMITERS
from rprm.verdict import Transcript, VerdictChoice, VerdictFormat

#: Of one rendering of a chat template, which takes a millisecond; and what it may write beyond twice the messages.
_TEMPLATE_SECONDS, _TEMPLATE_LETTERS = 1, 100_000
#: Texts that show what a tokenizer or a template cannot do.
_PROBES = (
    "Problem: What is 12 + 30?\n\nStep 1: 12 + 30 = 42.\nNow step 1. Is it right? Yes or No: \\boxed{42}",
    *(f"{piece * 100}!" for piece in ("aaaa", "    ", "0", "\n", ".", "A word and 12 more, ")),
)
_TAG = re.compile(r"<.+>|\[.+\]|◁.+▷", re.DOTALL)  # how control tokens look


@dataclass(frozen=True)
class VerdictTokens:
    """The tokens that read as Yes and as No (disjoint, never empty): id -> the word that it writes."""

    yes: dict[int, str]
    no: dict[int, str]
    words: dict[int, str]  # both

    @classmethod
    @lru_cache(maxsize=4)
    def of(cls, tokenizer: Any, verdict: VerdictFormat) -> VerdictTokens:
        """The forms of both answers that are one token of the tokenizer; where it has none, their first tokens."""

        def found(answer: str, *, whole: bool) -> dict[int, str]:
            words: dict[int, str] = {}
            for form in verdict.forms(answer):
                # Some tokenizers add a bare space token of their own before a word: look past it.
                ids = tokenizer.encode(form, add_special_tokens=False)
                pieces = [(id_, word) for id_ in ids if (word := tokenizer.decode([id_]).strip())]
                if pieces and (not whole or pieces[0][1] == form.strip()):
                    words.update(pieces[:1])
            return words

        for whole in (True, False):
            yes, no = (found(answer, whole=whole) for answer in (verdict.yes, verdict.no))
            if yes and no:
                break
        sides = [{id_: one[id_] for id_ in one if id_ not in other} for one, other in ((yes, no), (no, yes))]
        if not all(sides):
            fix = "use a prompt template with other answer words"
            raise EngineError(f"the tokenizer begins {verdict.yes!r} and {verdict.no!r} with the same token; {fix}")
        return cls(sides[0], sides[1], sides[0] | sides[1])


def is_failure(error: BaseException) -> bool:
    """Whether a library failed: a panic of Rust (tokenizers) is no `Exception`."""
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


@contextmanager
def _refused(what: str) -> Iterator[None]:
    """What a model's own template or tokenizer raises costs the prompt."""
    try:
        yield
    except BaseException as error:
        if not is_failure(error) or isinstance(error, RprmError | ImportError | MemoryError):
            raise
        raise RequestRefused(f"{what}: {type(error).__name__}: {' '.join(str(error).split()):.300}") from error


@_refused("the tokenizer fails")
def encode_prompt(tokenizer: Any, prompt: Prompt, reply: str = "") -> list[int]:
    """Token ids of a prompt, ready to be continued by the model, then of the beginning of its reply.

    A chat goes through the model's chat template; without one, a blank line follows each message. A solution cannot
    speak for its judge: a control token that is spelled in the text of a record (`Message.records`; all contents of a
    chat; `prompt.reply`) is written in ordinary tokens, or refused where there are none. So are, in `reply`, which the
    model wrote, special tokens and those that the prompt spells, but not the tags of its thinking.

    The reply is `prompt.reply` and then `reply`; a `thinking_opening` that the template writes too counts once. White
    space that `prompt.reply` begins with may share a token with the line end before it, as in one text. Line ends at
    its end have the tokens that they have before a word: a reply that steps are added to begins as before.
    """
    control, is_bare = control_tokens(tokenizer), True
    if prompt.chat and getattr(tokenizer, "chat_template", None):
        laid_out = _apply_chat_template(tokenizer, prompt.messages, control)
    else:
        plain = Filled.record("".join(f"{message.content}\n\n" for message in prompt.messages))
        # A raw prompt writes its own special tokens.
        raw = Filled("\n\n").join(Filled(message.content, message.records) for message in prompt.messages)
        laid_out, is_bare = (plain if prompt.chat else raw), False
    ids = _encode(tokenizer, laid_out, control, bare=is_bare)
    written = prompt.reply + reply
    begun = written.removeprefix(thinking_opening(tokenizer, prompt, ids))
    if not begun:
        return ids
    num_given = max(0, len(prompt.reply) - (len(written) - len(begun)))
    if (given := begun[:num_given]).lstrip() != given and not given.endswith("\n"):
        ids = _encode(tokenizer, Filled("").join([laid_out, Filled.record(given)]), control, bare=is_bare)
        begun, num_given = begun[num_given:], 0
    quotable = set(special_tokens(tokenizer).values())
    quotable |= set(_spellings(*control.values()).findall(prompt.text)) - set(chain.from_iterable(DELIMITERS))
    quoted = (match.span() for match in _spellings(*quotable).finditer(begun, num_given))
    records = ((0, num_given), *quoted)
    if begun.endswith("\n"):
        # Many tokenizers join line ends that no word follows: "\n\n" is one token at the end and two before "A".
        followed = _encode(tokenizer, Filled(f"{begun}A", records), control, bare=True)
        if tokenizer.decode(followed[-1:]) == "A":
            return ids + followed[:-1]
    return ids + _encode(tokenizer, Filled(begun, records), control, bare=True)


def thinking_opening(tokenizer: Any, prompt: Prompt, ids: Sequence[int]) -> str:
    """What a chat template writes itself, at the end of `ids`, to open the model's thinking, white space included."""
    if not prompt.chat or not getattr(tokenizer, "chat_template", None):
        return ""
    end = tokenizer.decode(ids[-16:], skip_special_tokens=False, clean_up_tokenization_spaces=False)
    found = re.search(r"<think>\s*\Z", end)
    return found[0] if found else ""


def _apply_chat_template(tokenizer: Any, messages: Sequence[Message], control: dict[int, str]) -> Filled:
    place = "RPRMTOKEN"  # stands for a token that a message spells while the template is rendered
    while any(place in message.content for message in messages):
        place += "X"
    ids = {spelling: id_ for id_, spelling in control.items()}
    hide = partial(_spellings(*ids).sub, lambda match: f"{place}{ids[match[0]]}X")
    given = [{"role": message.role, "content": hide(message.content)} for message in messages]
    try:
        rendered = render_chat(tokenizer, given, add_generation_prompt=True)
    except RequestRefused:
        # A template that knows no system message gets it at the head of the first user message.
        if [message.role for message in messages[:2]] != ["system", "user"]:
            raise
        first = Message("user", f"{messages[0].content}\n\n{messages[1].content}")
        return _apply_chat_template(tokenizer, [first, *messages[2:]], control)
    parts = re.split(rf"{place}(\d+)X", rendered)  # the spellings come back as a record's
    filled = [Filled.record(control[int(part)]) if index % 2 else Filled(part) for index, part in enumerate(parts)]
    return Filled("").join(filled)


@_refused("the chat template fails")
def render_chat(tokenizer: Any, messages: list[dict[str, str]], *, add_generation_prompt: bool) -> str:
    """A conversation in the words of the model's chat template, whoever wrote it. `RequestRefused`: it fails,
    does not end, or does not show every message in order and whole (but for white space around it)."""
    ends, before = time.thread_time() + _TEMPLATE_SECONDS, sys.gettrace()

    def watch(*_: Any) -> Any:
        if time.thread_time() > ends:
            raise TimeoutError(f"it takes more than {_TEMPLATE_SECONDS} second of processor time")
        return watch

    sys.settrace(watch)  # called at each line, in this thread alone: no loop of the template is beyond it
    try:
        how = {"add_generation_prompt": add_generation_prompt, "tokenize": False}
        rendered = str(tokenizer.apply_chat_template(messages, **how))
    finally:
        sys.settrace(before)
    place, contents = 0, [message["content"].strip() for message in messages]
    if len(rendered) > _TEMPLATE_LETTERS + 2 * sum(map(len, contents)):
        raise RequestRefused(f"the chat template writes {len(rendered):,} characters")
    for content in contents:
        if (start := rendered.find(content, place)) < 0:
            fix = "use a prompt without chat (chat = false), or another model"
            raise RequestRefused(f"the chat template does not show every message whole and in order; {fix}")
        place = start + len(content)
    return rendered


def probe(tokenizer: Any) -> None:
    """Encode and decode texts such as prompts are made of, bare and as a chat: what `try_out` tries of a folder."""
    for text in _PROBES:
        tokenizer.decode(tokenizer.encode(text))
        with suppress(RequestRefused):
            encode_prompt(tokenizer, Prompt((Message("system", text), Message("user", text))))


def _encode(tokenizer: Any, filled: Filled, control: dict[int, str], *, bare: bool = False) -> list[int]:
    """Ids of a text, `bare` without what the tokenizer begins a text with; control tokens outside of records count."""
    text, records = filled
    matches = list(_spellings(*control.values()).finditer(text))
    meant = [match for match in matches if not any(a < match.end() and match.start() < b for a, b in records)]
    if len(meant) == len(matches):
        return list(tokenizer.encode(text, add_special_tokens=not bare))
    ids, added = {spelling: id_ for id_, spelling in control.items()}, tokenizer.added_tokens_decoder
    writer, position = TokenWriter(tokenizer, control, [] if bare else text_prefix(tokenizer)), 0
    for match in meant:
        # Some tokens take in the white space beside them.
        token, before = added.get(ids[match[0]]), text[position : match.start()]
        writer.text(before.rstrip() if getattr(token, "lstrip", False) else before)
        writer.token(ids[match[0]])
        position = match.end()
        if getattr(token, "rstrip", False):
            position = len(text) - len(text[position:].lstrip())
    writer.text(text[position:])
    return writer.flush()


@dataclass
class TokenWriter:
    """Puts ids together. Text between two tokens is encoded as one run, as it is in the whole text."""

    tokenizer: Any
    guarded: dict[int, str]  # the tokens that no text of a record may make: id -> spelling
    ids: list[int]  # so far
    run: str = ""  # text that waits to be encoded

    def text(self, text: str) -> None:
        """Text of a record: special tokens in it are spelled out."""
        self.run += text

    def fixed(self, text: str) -> None:
        """Text of the layout: special tokens in it are meant."""
        specials = {token: id_ for id_, token in self.guarded.items()}
        for part in _spellings(*specials).split(text):
            if part in specials:
                self.token(specials[part])
            else:
                self.text(part)

    def token(self, id_: int) -> None:
        self.flush().append(id_)

    def flush(self) -> list[int]:
        """End the run of text; all ids so far."""
        self.ids += encode_text(self.tokenizer, self.run, self.guarded)
        self.run = ""
        return self.ids


@_refused("the tokenizer fails")
def encode_text(tokenizer: Any, text: str, guarded: dict[int, str]) -> list[int]:
    """Ids of a text, none of them of a guarded token that it spells."""
    # Where it is not enough, of a tokenizer that knows no `split_special_tokens` or a token that it does not count as
    # special: cut the spelling after its first character, and encode the two sides apart.
    for is_cut in (False, True):
        spelled = _spellings(*guarded.values()).finditer(text) if is_cut else ()
        cuts = [match.start() + 1 for match in spelled]
        parts = [text[start:end] for start, end in zip([0, *cuts], [*cuts, None], strict=True)]
        encode = partial(tokenizer.encode, add_special_tokens=False, split_special_tokens=True)
        ids = list(chain.from_iterable(encode(part) for part in parts if part))
        # The id of unknown characters may be a special token's: that is nobody's spelling.
        folded = unicodedata.normalize("NFKC", text).casefold()
        made = [guarded[id_] for id_ in guarded.keys() & set(ids) if guarded[id_].casefold() in folded]
        if not made:
            return ids
    raise RequestRefused(f"a text holds the token {made[0]!r}, which the tokenizer spells in no other way")


@lru_cache(maxsize=16)
def _spellings(*contents: str) -> re.Pattern[str]:
    """Any of these texts as a group, the longest first where several begin alike."""
    longest_first = sorted(filter(None, contents), key=len, reverse=True)
    return re.compile(f"({'|'.join(map(re.escape, longest_first)) or '(?!)'})")  # where there are none, none match


def text_prefix(tokenizer: Any) -> list[int]:
    """The special tokens that the tokenizer begins a text with."""
    bare, whole = tokenizer.encode("a", add_special_tokens=False), tokenizer.encode("a")
    starts = (start for start in range(len(whole)) if whole[start : start + len(bare)] == bare)
    return list(whole[: next(starts, 0)])


def control_tokens(tokenizer: Any) -> dict[int, str]:
    """Tokens that lay out a conversation, id -> content: special ones, those of the chat template, tags (`<think>`)."""
    return _control_tokens(tokenizer, len(tokenizer), str(getattr(tokenizer, "chat_template", None) or ""))


# Some tokenizers have a thousand: looked up once, unless tokens are added or the template changes.
@lru_cache(maxsize=4)
def _control_tokens(tokenizer: Any, _size: int, template: str) -> dict[int, str]:
    added = sorted((id_, str(token.content)) for id_, token in tokenizer.added_tokens_decoder.items())
    laid_out = {id_: text for id_, text in added if _TAG.fullmatch(text) or (text.strip() and text in template)}
    return special_tokens(tokenizer) | laid_out


def special_tokens(tokenizer: Any) -> dict[int, str]:
    """Special tokens: id -> content."""
    found = {id_: str(token.content) for id_, token in tokenizer.added_tokens_decoder.items() if token.special}
    return found | dict(zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True))


class TokenTranscript(Transcript):
    """A completion of a prompt (its tokens are `ids`) while its token ids arrive, with the choices at the answers."""

    def __init__(self, tokenizer: Any, prompt: Prompt, ids: Sequence[int], sampling: Sampling) -> None:
        opening = "" if prompt.reply else thinking_opening(tokenizer, prompt, ids)
        super().__init__(sampling.verdict, sampling.stop, opening)
        self.answers = None if sampling.verdict is None else VerdictTokens.of(tokenizer, sampling.verdict)
        self.ended = False  # by the model itself
        self.tokens: list[int] = []  # all that were generated, the end token too
        self._num_prompt_tokens = len(ids)
        self._choices: list[VerdictChoice] = []
        self._read = detokenizer(tokenizer, ids[-32:])

    def add_token(self, token: int, logprobs: Callable[[VerdictTokens], tuple[float, float]]) -> None:
        """Append a token; where it reads as Yes or No, `logprobs` gives those of Yes and No in its place."""
        self.tokens.append(token)
        piece, answers = self._read(token), self.answers
        if answers is not None and token in answers.words and (offset := piece.rfind(answers.words[token])) >= 0:
            self._choices.append(VerdictChoice(len(self.text) + offset, *logprobs(answers)))
        self.add(piece)

    def end(self, token: int | None = None) -> None:
        """The model ended the completion: the token that says so is counted and is no text."""
        self.tokens += [] if token is None else [token]
        self.num_tokens += 1
        self.finish_reason, self.ended = "stop", True

    def completion(self, num_cached: int | None) -> Completion:
        """What was written, once it has ended; `num_cached` prompt tokens were computed before."""
        choices = tuple(choice for choice in self._choices if choice.start < len(self.text))
        counts = (self._num_prompt_tokens, num_cached)
        return Completion(self.text, self.num_tokens, self.finish_reason or "", *counts, choices, self.ended)


def spelled(tokenizer: Any, tokens: Iterable[tuple[int, float]]) -> dict[str, float]:
    """Probabilities of tokens by their texts; what several of them write has their sum."""
    found: dict[str, float] = {}
    for id_, probability in tokens:
        text = tokenizer.decode([id_])
        found[text] = found.get(text, 0.0) + probability
    return found


def detokenizer(tokenizer: Any, prompt_ids: Sequence[int]) -> Callable[[int], str]:
    """A function from each generated token to the text that it completes after the prompt; special tokens have none. A
    character that several tokens share comes with the last of them."""
    decode = partial(getattr(tokenizer, "backend_tokenizer", tokenizer).decode, skip_special_tokens=True)
    ids = list(prompt_ids)
    num_read, before = len(ids), decode(ids)

    def step(token: int) -> str:
        nonlocal ids, num_read, before
        ids.append(token)
        after = decode(ids)
        if len(after) <= len(before) or after.endswith("\N{REPLACEMENT CHARACTER}"):
            return ""
        piece = str(after[len(before) :])
        ids = ids[num_read:]
        num_read, before = len(ids), decode(ids)
        return piece

    return step
