"""Finding the verdict of an analysis, and P(Yes) at it. Pure functions.

The verdict is the first Yes or No that follows the marker (`Is the step correct (Yes/No)?` in R-PRM). P(Yes) is the
softmax over the two answers' log-probabilities at the very token that was generated there, each answer summed over its
token variants (`Yes`, ` Yes`, `yes`, ...).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

#: The fixed marker of the paper's verdict line.
DEFAULT_MARKER = "Is the step correct (Yes/No)?"


@dataclass(frozen=True)
class Verdict:
    """A verdict in a text: `yes`, and the characters [start, end) of its word."""

    yes: bool
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class VerdictChoice:
    """The choice between Yes and No at one generated token.

    `start` is the character offset in the completion at which the word begins; `logprob_yes` and `logprob_no` are the
    model's own log-probabilities (before temperature and top-p), each summed over the answer's token variants.
    """

    start: int
    logprob_yes: float
    logprob_no: float

    @property
    def p_yes(self) -> float:
        """softmax over (yes, no), index 0."""
        return softmax_yes(self.logprob_yes, self.logprob_no)


@dataclass(frozen=True)
class VerdictFormat:
    """How an analysis ends: a marker, then one of two answers."""

    marker: str = DEFAULT_MARKER
    yes: str = "Yes"
    no: str = "No"

    @cached_property
    def marker_pattern(self) -> re.Pattern[str]:
        """The marker, answered or not. Its words may be spaced or wrapped differently."""
        return re.compile(r"\s+".join(re.escape(word) for word in self.marker.split()), re.IGNORECASE)

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        # Between the marker and the answer stand only spaces, Markdown, brackets, a colon or LaTeX's \boxed{ and
        # \text{. "Yes/No" is the question again, not an answer.
        marker = self.marker_pattern.pattern
        filler = r"(?:[\s*_:>`'\"$({\[]|\\boxed|\\text(?:bf)?|\\mathrm)*"
        answer = rf"(?P<answer>{re.escape(self.yes)}|{re.escape(self.no)})"
        return re.compile(rf"{marker}{filler}{answer}(?!\w|\s*/\s*\w)", re.IGNORECASE)

    def find_all(self, text: str) -> list[Verdict]:
        """Every verdict in `text`, in order."""
        yes = self.yes.casefold()
        return [
            Verdict(match["answer"].casefold() == yes, match.start("answer"), match.end("answer"))
            for match in self.pattern.finditer(text)
        ]

    def find(self, text: str, start: int = 0) -> Verdict | None:
        """The first verdict in `text`, or None."""
        match = self.pattern.search(text, start)
        if match is None:
            return None
        return Verdict(match["answer"].casefold() == self.yes.casefold(), match.start("answer"), match.end("answer"))

    def is_final(self, text: str, verdict: Verdict) -> bool:
        """Whether `verdict`, the first one of `text`, stands however the text goes on.

        It does not yet where the word may turn out longer ("No" of "Nothing") or the question repeated ("Yes/No").
        """
        rest = text[verdict.end :].lstrip()
        return rest[:1] not in ("", "/", "\ufffd") and self.find(text) == verdict

    def forms(self, answer: str) -> tuple[str, ...]:
        """The texts that say `answer` where they are one token: any case, with or without a space before it."""
        words = dict.fromkeys((answer, answer.lower(), answer.upper()))
        return tuple(form for word in words for form in (word, f" {word}"))

    def answer_of(self, token_text: str) -> bool | None:
        """True if the token reads as Yes, False as No (any case, spaces around it ignored), None otherwise."""
        word = token_text.strip().casefold()
        if word == self.yes.casefold():
            return True
        if word == self.no.casefold():
            return False
        return None


class TwoAnswers(VerdictFormat):
    """The two answers as they are written after a space, and in no other form.

    The published second pass reads these two token ids alone (NJUNLP/R-PRM, src/evaluate/GenPRM).
    """

    def forms(self, answer: str) -> tuple[str, ...]:
        return (f" {answer}",)

    def answer_of(self, token_text: str) -> bool | None:
        return {f" {self.yes}": True, f" {self.no}": False}.get(token_text)


def softmax_yes(logprob_yes: float, logprob_no: float) -> float:
    """P(Yes) = softmax((yes, no))[0], safe for -inf on one side; 0.5 where both are -inf is refused.

    Raises:
        ValueError: neither answer has any probability, so there is nothing to normalise.
    """
    if logprob_yes == -math.inf and logprob_no == -math.inf:
        raise ValueError("neither Yes nor No has any probability")
    difference = logprob_yes - logprob_no
    if difference >= 0:
        return 1.0 / (1.0 + math.exp(-difference))
    odds = math.exp(difference)
    return odds / (1.0 + odds)


def logsumexp(values: Iterable[float]) -> float:
    """log(sum(exp(v))) of any number of values; -inf of none."""
    values = [value for value in values if value != -math.inf]
    if not values:
        return -math.inf
    peak = max(values)
    return peak + math.log(math.fsum(math.exp(value - peak) for value in values))


def read_verdict(
    text: str, verdict_format: VerdictFormat, choices: Sequence[VerdictChoice]
) -> tuple[Verdict, VerdictChoice | None] | None:
    """The verdict of `text` with the choice made at its token.

    Returns:
        None where the text has no verdict; the verdict with None where the engine reported no choice there.
    """
    verdict = verdict_format.find(text)
    if verdict is None:
        return None
    for choice in choices:
        if verdict.start <= choice.start < verdict.end:
            return verdict, choice
    return verdict, None
