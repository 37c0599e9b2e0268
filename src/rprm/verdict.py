"""The verdict of an analysis, the first Yes or No after a marker, and P(Yes) at it. Pure functions."""

from __future__ import annotations

import math
import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, NamedTuple

from rprm.quoting import unquoted
from rprm.thinking import after_thinking, answer_parts

DEFAULT_MARKER = "Is the step correct (Yes/No)?"  # of the paper's verdict line


class Verdict(NamedTuple):
    """A verdict in a text: `yes`, and the characters [start, end) of its word."""

    yes: bool
    start: int
    end: int


class VerdictChoice(NamedTuple):
    """Yes or No at the generated token whose word begins at character `start` of the completion."""

    start: int
    logprob_yes: float  # the model's own, before temperature and top-p, of all the answer's forms (`Yes`, ` yes`, ...)
    logprob_no: float

    @property
    def p_yes(self) -> float:
        return softmax_yes(self.logprob_yes, self.logprob_no)


@dataclass(frozen=True)
class VerdictFormat:
    """How an analysis ends: a marker, in any spacing or brackets, then one of two answers; markup or a label between.

    None of these is a verdict: a marker in quotes (`rprm.quoting`); a choice left open ("Yes or No"); an answer under a
    condition ("Yes if"); a "No" of the next word ("No errors"); anything in the model's thinking (`rprm.thinking`).
    Every search is linear in the length of the text.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}  # read by the templates that hold one

    marker: str = DEFAULT_MARKER
    yes: str = "Yes"
    no: str = "No"

    @property
    def marker_pattern(self) -> re.Pattern[str]:
        return self._patterns["any marker"]

    def disarmed(self, text: str) -> str:
        """The text with each answered marker of three words or more hyphenated: repeated, it is no verdict."""

        def hyphenated(marker: re.Match[str]) -> str:
            is_answered = self._patterns["answer"].match(text, marker.end())
            return re.sub(rf"(?<=\w){_SPACE}+(?=\w)", "-", marker[0]) if is_answered else marker[0]

        return text if len(self.marker.split()) < 3 else self._patterns["any marker"].sub(hyphenated, text)

    def find_all(self, text: str) -> list[Verdict]:
        """Every verdict in `text`, in order."""
        return list(self._verdicts(text)) or list(self._verdicts(text, is_weak=True))

    def find(self, text: str, start: int = 0) -> Verdict | None:
        """The first verdict in `text` whose marker stands at or after `start`; else one of a weaker form, on lines of
        its own: a marker without its choice ("Is the step correct? No"), or in quotes with its answer after them."""
        return next(self._verdicts(text, start), None) or next(self._verdicts(text, start, is_weak=True), None)

    def is_final(self, text: str, verdict: Verdict) -> bool:
        """Whether `verdict`, the first one of `text`, stands however the text goes on.

        Its word may turn out longer ("No" of "Nothing") or a choice ("Yes or No"). A weaker form (see `find`) never is
        final: the full form may follow; nor is a verdict after thinking: of several closing tags the last counts.
        """
        if after_thinking(text):
            return False
        known = len(text.rstrip("\ufffd"))  # A character that is not yet whole may turn out to be a letter.
        stays = self._read_on(text, verdict.end, known, verdict.yes)
        return bool(stays) and next(self._verdicts(text), None) == verdict

    def forms(self, answer: str) -> tuple[str, ...]:
        """The texts that say `answer` as one token: any case, with or without a space before it."""
        words = dict.fromkeys((answer, answer.lower(), answer.upper()))
        return tuple(form for word in words for form in (word, f" {word}"))

    def answer_of(self, token_text: str) -> bool | None:
        """Whether the token reads as Yes (any case, spaces around it ignored), None where as neither."""
        return {self.yes.casefold(): True, self.no.casefold(): False}.get(token_text.strip().casefold())

    def _verdicts(self, text: str, start: int = 0, *, is_weak: bool = False) -> Iterator[Verdict]:
        pattern = self._patterns["weak" if is_weak else "marker"]
        if pattern.search(text, start) is None:
            return
        for begin, end in answer_parts(text):
            for marker in unquoted(text, begin, end, pattern.finditer(text, max(begin, start), end)):
                match = self._patterns["answer"].match(text, marker.end(), end)
                if match is None or (is_weak and not _NO_MORE_WORDS.match(text, match.end(), end)):
                    continue
                yes = match["answer"].casefold() == self.yes.casefold()
                if self._read_on(text, match.end(), end, yes) is not None:
                    yield Verdict(yes, match.start("answer"), match.end("answer"))

    def _read_on(self, text: str, start: int, end: int, yes: bool) -> bool | None:
        """Whether what ends at `start` is an answer however the text goes on; None where it is none already."""
        tail = self._patterns["tail"].match(text, start, end)
        assert tail is not None  # It matches nothing, too.
        joint, word, place = tail["joint"].casefold(), tail["word"].casefold(), tail.end()
        other = (self.no if yes else self.yes).casefold()
        is_open = place == end
        if _SLASH.search(joint):
            return None if word else not is_open
        # Also "Yes or Is the step correct (Yes/No)? No".
        is_choice = _OR.search(joint) is not None and word in (other, *self.marker.casefold().split()[:1])
        if is_choice or (word in _CONDITIONS and "," not in joint):
            return None
        if word == other and _AND.search(joint):
            # "Yes and No" is a choice; "Yes, no errors found" is none.
            return (tail["word"].islower() and _WORD_FOLLOWS.match(text, place, end) is not None) or None
        if not yes and not joint.strip():
            if _NO_WHAT.match(text, start, end):
                return None
            is_open = is_open or _OPEN_WORDS.fullmatch(text, start, end) is not None
        return not is_open

    @cached_property
    def _patterns(self) -> dict[str, re.Pattern[str]]:
        yes, no = re.escape(self.yes), re.escape(self.no)
        answers, marker, bare = rf"{yes}|{no}", self.marker.strip(), ""
        if with_choice := re.fullmatch(rf"(.*?\w)[\W_]*{yes}\W+{no}\W*", marker, re.IGNORECASE | re.DOTALL):
            stem = _words(with_choice[1])
            # "(Y/N)" is the same choice.
            first, second = (rf"(?:{word}|{word[0]})" if word.isalpha() else word for word in (yes, no))
            either = rf"{_SPACE}{{0,4}}[\"'“”]?(?:[/／∕|]|or)[\"'“”]?{_SPACE}{{0,4}}"
            choice = rf"(?:{first}{either}{second}|{second}{either}{first})(?![^\W_])"
            whole = rf"{stem}[\W_]{{0,12}}{choice}[\"'“”*_]{{0,4}}[^\S\n]?[)\]}}）】〕]?[^\S\n]?[?？:：]?"
            # "... or Is the step correct (Yes/No)? No" is the rest of a choice.
            whole = rf"(?<!\bor\s){whole}"
            bare = rf"|{stem}[*_]{{0,3}}[^\S\n]?[?？:：]"
        else:
            sign = next((f"[{pair}]" for pair in ("?？", ":：") if len(marker) > 1 and marker[-1] in pair), "")
            whole = rf"{_words(marker[:-1])}[*_]{{0,3}}[^\S\n]?{sign}" if sign else _words(marker)
        weak = rf"^[^\w\n{_QUOTES}]{{0,12}}(?:[{_QUOTES}]{{1,2}}{whole}[{_QUOTES}]{{1,2}}{bare})"
        # The answer as soon as it comes: "-" may be markup or an answer.
        skipped = rf"(?:(?!(?:{answers})(?!_*[^\W_]))(?:[(\[]{yes}/{no}[)\]]|{_MARKUP})){{0,200}}+"
        patterns = {
            "marker": whole,  # in all its spellings
            "weak": weak,  # from the beginning of a line, without its choice, or in quotes that end with it
            "any marker": rf"{whole}|{weak}",
            "answer": rf"{skipped}(?P<answer>{answers})(?!_*[^\W_]|[-‐‑'’][^\W_])",
            # What may join an answer to another on its line, and the word after that.
            "tail": rf"(?P<joint>(?:(?!{answers})(?:{_INLINE}|(?:or|and|vs|versus)\b))*+)"
            rf"(?P<word>(?:{answers})(?![^\W_])|[^\W_]*)",
            "word": rf"(?<![A-Za-z])(?:{answers})(?![A-Za-z])",  # an answer: "no" stands in "know" and "not"
        }
        return {name: re.compile(pattern, re.IGNORECASE | re.MULTILINE) for name, pattern in patterns.items()}


class TwoAnswers(VerdictFormat):
    """The two answers after a space, in no other form: those of the published second pass (NJUNLP/R-PRM, GenPRM)."""

    def forms(self, answer: str) -> tuple[str, ...]:
        return (f" {answer}",)

    def answer_of(self, token_text: str) -> bool | None:
        return {f" {self.yes}": True, f" {self.no}": False}.get(token_text)


class Transcript:
    """The text of one completion while it arrives, and where it ends: how every engine notices a final verdict.

    It ends at a stop string (cut off, and not looked for in `opening`, with which the text begins), or with the word of
    its first verdict once nothing can undo it, however the text is split into tokens.
    """

    def __init__(self, verdict: VerdictFormat | None = None, stop: Sequence[str] = (), opening: str = "") -> None:
        self.text = opening
        self.num_tokens = 0  # so far; once it has ended with a verdict, those that reach into the text
        self.finish_reason: str | None = None  # then "stop" or "verdict", or what the owner sets
        self._verdict, self._stop, self._begin = verdict, stop, len(opening)
        self._lengths: list[int] = []  # of the text after each token
        self._is_open = self._has_marker = False  # open: a verdict stands, but more text may undo it
        self._num_searched = 0  # characters, for a marker

    def add(self, piece: str) -> None:
        """Append the text of one token, which may be empty."""
        before, form = len(self.text), self._verdict
        self.text += piece
        self.num_tokens += 1
        self._lengths.append(len(self.text))
        stop_end, stop_start = len(self.text) + 1, -1
        for string in self._stop:
            start = self.text.find(string, max(self._begin, before - len(string) + 1))
            if start >= 0:
                stop_end, stop_start = min((start + len(string), start), (stop_end, stop_start))
        if form is not None and (self._is_open or self._is_worth_reading(form, before)):
            # What ends first in the text counts, even where one token brings both.
            read = self.text[: stop_end - 1]
            verdict = form.find(read)
            self._is_open = verdict is not None
            if verdict is not None and form.is_final(read, verdict):
                self.text = read[: verdict.end]
                self.num_tokens = 1 + bisect_left(self._lengths, verdict.end)
                self.finish_reason = "verdict"
                return
        if stop_start >= 0:
            self.text = self.text[:stop_start]
            self.finish_reason = "stop"

    def _is_worth_reading(self, form: VerdictFormat, before: int) -> bool:
        """Whether there is a marker and a new answer word: reading all for every token would take quadratic time."""
        if not form._patterns["word"].search(self.text, max(0, before - max(len(form.yes), len(form.no)) + 1)):
            return False
        if not self._has_marker:
            # No marker is longer, however it is spaced.
            found = form.marker_pattern.search(self.text, max(0, self._num_searched - 1000))
            self._has_marker, self._num_searched = found is not None, len(self.text)
        return self._has_marker


def softmax_yes(logprob_yes: float, logprob_no: float) -> float:
    """softmax((yes, no))[0]; a ValueError where both are -inf."""
    if logprob_yes == logprob_no == -math.inf:
        raise ValueError("neither Yes nor No has any probability")
    difference = logprob_yes - logprob_no
    odds = math.exp(-abs(difference))
    return (1.0 if difference >= 0 else odds) / (1.0 + odds)


def logsumexp(values: Iterable[float]) -> float:
    """log(sum(exp(v))); -inf of no values."""
    values = list(values)
    peak = max(values, default=-math.inf)
    return peak if peak == -math.inf else peak + math.log(math.fsum(math.exp(value - peak) for value in values))


def read_verdict(
    text: str, verdict_format: VerdictFormat, choices: Sequence[VerdictChoice]
) -> tuple[Verdict, VerdictChoice | None] | None:
    """The verdict of `text`, and the choice at its token (None: the engine reported none); None without verdict."""
    if (verdict := verdict_format.find(text)) is None:
        return None
    return verdict, next((choice for choice in choices if verdict.start <= choice.start < verdict.end), None)


_SPACE = r"[\s*_\u200b-\u200d\u2060\ufeff]"
_LATEX = (
    r"\\(?:boxed|fbox|framebox|mbox|text(?:bf|it|rm|sf|tt|normal)?|math(?:bf|it|rm|sf|tt)|bf|it|rm|underline|emph"
    r"|left|right|q?quad|large)"
)
_HTML = r"</?(?:b|i|u|p|br|em|strong|span|h[1-6]|answer|verdict)[^\S\n]?/?>"
#: What announces the answer: "The final answer is".
_LABEL = (
    r"(?:(?:the|my|final)\s{1,4}){0,3}(?:answer|ans|verdict|conclusion|judge?ment|decision|result|response)"
    r"(?![^\W_])(?:\s{1,4}is(?!\w))?|(?:so|thus|hence|therefore)(?=[,:])|(?:答案|回答|结论)是?"
)
_NUMBER = r"(?:\d{1,2}|[a-e])[.):\]]|\d\ufe0f?\u20e3"  # of a list; an emoji made of a digit
#: Struck-out text, empty boxes to tick and special tokens are no markup around an answer.
_PLAIN = r"(?!\[ ?\])[^\w~☐⬜<&]|_|<(?![|/])"
_MARKUP = (
    rf"{_LATEX}|\\(?-i:[nrt])|{_HTML}|&(?:[a-z]{{2,6}}|\#\d{{1,5}});|```[a-z]{{0,10}}\n|{_NUMBER}|{_LABEL}|{_PLAIN}"
)
_INLINE = rf"{_LATEX}|[^\w\n\r\x0b\x0c\x85\u2028\u2029.!?;:…。！？；：<]|_"

_QUOTES = "\"“”„'‘’«»`「」『』"
_SLASH = re.compile(r"(?<![\[<])[/／∕]")
_OR = re.compile(r"\b(?:or|vs|versus)\b")
_AND = re.compile(r"\band\b|[,，、|¦&]")
_CONDITIONS = ("if", "unless", "otherwise")
_WORD_FOLLOWS = re.compile(r"[^\S\n]+\w")
_NO_MORE_WORDS = re.compile(r"[^\w\n<]*(?:<[^<>\n]{1,40}>[^\w\n<]*)*(?:\n|\Z)")
_OPEN_WORDS = re.compile(r"[^\S\n]+[^\W_]*(?:[^\S\n]+[^\W_]*)?")
#: Before these, with at most a word between, "No" is no answer: "No arithmetic errors were found".
_NO_WHAT = re.compile(
    r"[^\S\n]+(?:(?!(?:as|because|due|for|i|in|it|its|since|the|there|this|that|these|we)\b)[^\W\d_]+[^\S\n]+)?"
    r"(?:errors?|mistakes?|issues?|problems?|flaws?|faults?|inconsistenc(?:y|ies)|contradictions?|discrepanc(?:y|ies)"
    r"|one|doubt|need|longer|further|additional|other|such)\b",
    re.IGNORECASE,
)


def _words(text: str) -> str:
    """A pattern for words however they are spaced, wrapped or emphasised."""
    pattern = rf"{_SPACE}{{1,40}}".join(map(re.escape, text.split()))
    return rf"(?<![A-Za-z0-9]){pattern}" if text[:1].isascii() and text[:1].isalnum() else pattern
