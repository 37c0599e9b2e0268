"""A completion while its tokens arrive: their text, the choices at the answers among them, and where it ends."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rprm.engines.base import Completion, Sampling
from rprm.engines.tokens import VerdictTokens, thinking_opening
from rprm.prompts.template import Prompt
from rprm.verdict import Transcript, VerdictChoice

__all__ = ["TokenTranscript", "Transcript", "detokenizer"]

#: Tokens of the prompt that tell how the completion's first ones read.
_NUM_BEFORE = 32


class TokenTranscript(Transcript):
    """A transcript that is given token ids.

    Args:
        tokenizer: the model's.
        prompt: what is completed.
        ids: its tokens.
        sampling: says what ends the completion.
        answers: the tokens at which a choice is noted.

    Attributes:
        ended: whether the model ended the completion itself.
    """

    def __init__(
        self, tokenizer: Any, prompt: Prompt, ids: Sequence[int], sampling: Sampling, answers: VerdictTokens | None
    ) -> None:
        opening = "" if prompt.reply else thinking_opening(tokenizer, prompt, ids)
        super().__init__(sampling.verdict, sampling.stop, opening)
        self._num_prompt_tokens = len(ids)
        self._words: Mapping[int, str] = {} if answers is None else answers.words
        self._choices: list[VerdictChoice] = []
        self._read = detokenizer(tokenizer, ids[-_NUM_BEFORE:])
        self.ended = False

    def add_token(self, token: int, logprobs: Callable[[], tuple[float, float]]) -> None:
        """Append a token.

        Args:
            token: its id.
            logprobs: gives those of Yes and No in its place; called where the token reads as one of them.
        """
        piece = self._read(token)
        word = self._words.get(token)
        if word is not None and (offset := piece.rfind(word)) >= 0:
            self._choices.append(VerdictChoice(len(self.text) + offset, *logprobs()))
        self.add(piece)

    def end(self) -> None:
        """The model ended the completion: the token that says so is counted and is no text."""
        self.num_tokens += 1
        self.finish_reason = "stop"
        self.ended = True

    def completion(self, num_cached_prompt_tokens: int | None) -> Completion:
        """What was written, once it has ended."""
        assert self.finish_reason is not None
        return Completion(
            text=self.text,
            num_tokens=self.num_tokens,
            finish_reason=self.finish_reason,
            num_prompt_tokens=self._num_prompt_tokens,
            num_cached_prompt_tokens=num_cached_prompt_tokens,
            choices=tuple(choice for choice in self._choices if choice.start < len(self.text)),
            ended=self.ended,
        )


def detokenizer(tokenizer: Any, prompt_ids: Sequence[int]) -> Callable[[int], str]:
    """A function from each generated token to the text that it completes.

    A character that several tokens share comes with the last of them; special tokens are left out. The prompt tells
    whether the first word keeps the space before it.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return _slow_detokenizer(tokenizer, prompt_ids)
    from tokenizers.decoders import DecodeStream

    stream = DecodeStream(ids=list(prompt_ids), skip_special_tokens=True)

    def step(token: int) -> str:
        nonlocal stream
        try:
            return stream.step(backend, token) or ""
        except Exception as error:
            if "Invalid prefix" not in str(error):
                raise
            # A tokenizer that rewrites what it has already decoded: go on from this token.
            stream = DecodeStream(skip_special_tokens=True)
            return stream.step(backend, token) or ""

    return step


def _slow_detokenizer(tokenizer: Any, prompt_ids: Sequence[int]) -> Callable[[int], str]:
    """The same for tokenizers that are not of the `tokenizers` library: decode the last few tokens twice."""
    ids = list(prompt_ids)
    num_read = len(ids)

    def step(token: int) -> str:
        nonlocal ids, num_read
        ids.append(token)
        before = tokenizer.decode(ids[:num_read], skip_special_tokens=True)
        after = tokenizer.decode(ids, skip_special_tokens=True)
        if len(after) <= len(before) or after.endswith("\N{REPLACEMENT CHARACTER}"):
            return ""
        ids = ids[num_read:]
        num_read = len(ids)
        return str(after[len(before) :])

    return step
