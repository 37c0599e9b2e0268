r"""What a critique of a whole solution says: the index of its earliest wrong step. Pure functions.

Indices count from 0; -1 says that no step is wrong. What a critique's format does not find (no answer, an index beyond
the solution, labels that contradict each other) is None: no vote.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any, ClassVar, Literal, Protocol, get_args

from rprm.stopping import StoppingRule, beta_binomial
from rprm.thinking import after_thinking, without_thinking

Index = int  # of a step, -1 for none
_MAX_BOX = 64  # characters of a box that may hold an index
_MAX_TRIES = 5_000  # braces at which an object is looked for


class CritiqueFormat(Protocol):
    """How a critique names the earliest wrong step."""

    wanted: str  #: what it looks for, in words
    question: str = ""  #: stands after a critique that names none, before its answer; empty where none can be asked for
    stop: str = ""  #: ends the answer to the question

    def find(self, critique: str, num_steps: int) -> Index | None:
        """The index that the critique of a solution of so many steps names."""

    def calls_right(self, critique: str, num_steps: int) -> bool | None:
        """Whether the critique calls the whole solution right, in the words that its format has for that."""
        index = self.find(critique, num_steps)
        return None if index is None else index == -1

    def place(self, critique: str) -> int | None:
        """The end of what stands before the named index: what the model might have written there tells how probable
        each index is. None where the tokens there tell no such thing."""
        return None

    def may_name(self, begun: str, num_steps: int) -> list[Index]:
        """The indices that an answer may name which begins so at its `place`; none where it is no plain answer."""
        return []


class BoxedIndex(CritiqueFormat):
    r"""The last `\boxed{...}` holds the index, as in ProcessBench's prompt (QwenLM/ProcessBench, code/run_eval.py).

    The brace is part of the answer: tokenizers (Qwen's, Llama 3's) write the brace and the minus of `{-1}` as one
    token, so that after a brace which is given -1 would hardly come."""

    wanted, question, stop = r"the index of a step, or -1, in the last \boxed{}", "\n\n\\boxed", "}"
    _BOX = re.compile(r"\\boxed\s*\{((?:[^{}]|\{[^{}]*\})*)\}")
    _INDEX = re.compile(
        r'["$*<]{0,4}(?:\\(?:text|math)\w{0,6}\{)?<?(?:paragraph|step|index)?[ _\\]{0,3}'
        r'(?P<index>- ?\d{1,6}|\d{1,6})[">}.$*]{0,6}',
        re.IGNORECASE,
    )
    _PLAIN = re.compile(r"\s*[-−–]?\s*\d+\s*")
    _BEGUN = re.compile(
        r"\s*(?:\{\s*(?:(?P<minus>[-−–]\s*(?:1\s*(?:\}.*)?)?)|(?P<digits>\d*)\s*(?P<end>\}.*)?))?", re.S
    )

    def find(self, critique: str, num_steps: int) -> Index | None:
        boxes = self._BOX.findall(without_thinking(critique))
        content = " ".join(re.sub("[−–]", "-", boxes[-1]).split()) if boxes else ""
        index = self._INDEX.fullmatch(content) if len(content) <= _MAX_BOX else None
        return within(int(index["index"].replace(" ", "")), num_steps) if index else None

    def place(self, critique: str) -> int | None:
        *_, box = [None, *self._BOX.finditer(critique, after_thinking(critique) or 0)]
        return critique.index("{", box.start()) if box is not None and self._PLAIN.fullmatch(box[1]) else None

    def may_name(self, begun: str, num_steps: int) -> list[Index]:
        answer = self._BEGUN.fullmatch(begun)
        if answer is None or answer["minus"]:
            return [-1] if answer else []
        digits = answer["digits"] or ""
        if answer["end"]:
            return [index for index in range(num_steps) if str(index) == digits]
        return [-1] * (not digits) + [index for index in range(num_steps) if str(index).startswith(digits)]


class JsonLabels(CritiqueFormat):
    """The last JSON object with `step_labels` and `final_label`, as TIPS writes it (RUCBM/TIPS, the reward
    `math_process_judge`): a label for every step by its index, 1 for a right one, 0 (or -1) for a wrong one; the first
    wrong one counts. `final_label`, likewise 1 or 0, is of the final answer and says nothing of the steps."""

    wanted = "a JSON object with `step_labels`, one of every step, and `final_label`"
    _LABELS: ClassVar = dict.fromkeys((0, -1, "0", "-1", "false"), False) | {1: True, "1": True, "true": True}

    def find(self, critique: str, num_steps: int) -> Index | None:
        found = _last_object(without_thinking(critique))
        steps = found.get("step_labels")
        named = steps if isinstance(steps, dict) else dict(enumerate(steps)) if isinstance(steps, list) else {}
        given = {str(index): label for index, label in named.items()}
        labels = [self._label(given.get(str(index))) for index in range(num_steps)]
        if None in labels or self._label(found.get("final_label")) is None:
            return None
        return first_wrong([label is True for label in labels], num_steps)

    def calls_right(self, critique: str, num_steps: int) -> bool | None:
        """What `final_label` says, in an object that labels the steps too: TIPS rewards it alone."""
        if self.find(critique, num_steps) is None:
            return None
        return self._label(_last_object(without_thinking(critique)).get("final_label"))

    def _label(self, value: Any) -> bool | None:
        """What 1, 1.0, true, "1" and "true" say, and their counterparts; None of anything else."""
        key = value.strip().lower() if isinstance(value, str) else value
        return self._LABELS.get(key) if isinstance(key, str | int | float) else None


class StepLabels(CritiqueFormat):
    r"""A `\boxed{correct}` or `\boxed{incorrect}` for each step in order, up to the first wrong one or the last (as
    ThinkPRM writes them, arXiv 2504.16828): those after the thinking, or, where there are none, those in it. One label
    more, after those of all steps or of the thinking, is of the whole solution, and must agree. A critique whose labels
    end before that is no vote, nor is one with a box up to there that is no label and no result (a digit, no word)."""

    wanted = r"a \boxed{correct} or \boxed{incorrect} of each step, in order"
    _LABELS: ClassVar = {"correct": True, "right": True, "incorrect": False, "wrong": False}
    _BOX = r"\\boxed\s*\{(?:[^{}]|\{[^{}]*\})*\}"
    _CHOICE = re.compile(rf"{_BOX}[\s\"'`*$]*(?:or|[/|])[\s\"'`*$]*{_BOX}")  # of an announcement
    _DRESS = re.compile(r"\\(?:text)?color(?:box)?\s*\{[^{}]*\}|\\[a-zA-Z]+|[\W_]")

    def find(self, critique: str, num_steps: int) -> Index | None:
        said = without_thinking(critique)
        labels, thought, of_all = self._labels(said), self._labels(critique.removesuffix(said)), list[bool | None]()
        if not labels or (len(labels) == 1 < num_steps and thought):
            labels, of_all = thought, labels
        if len(labels) == num_steps + 1:
            of_all = [*of_all, labels.pop()]
        index = first_wrong(labels, num_steps) if len(labels) <= num_steps else None
        return index if all(label == (index == -1) for label in of_all) else None

    def _labels(self, text: str) -> list[bool | None]:
        """What the boxes of a text say, None of one that cannot be read."""
        labels = []
        for piece in re.split(r"\\boxed\s*(?=\{)", self._CHOICE.sub("", text))[1:]:
            depths = accumulate((character == "{") - (character == "}") for character in piece)
            end = next((at for at, depth in enumerate(depths) if not depth), 0)
            words = " ".join(self._DRESS.sub(" ", piece[:end]).lower().split())
            is_result = re.search(r"\d", words) and not re.search(r"[^\W\d]{2}", words)
            labels += [] if is_result else [self._LABELS.get(words)]
        return labels


FormatName = Literal["boxed", "json", "labels"]
FORMATS: Mapping[FormatName, CritiqueFormat] = {"boxed": BoxedIndex(), "json": JsonLabels(), "labels": StepLabels()}
assert set(FORMATS) == set(get_args(FormatName))


def first_wrong(labels: Sequence[bool | None], num_steps: int) -> Index | None:
    """The index of the first label that is False, -1 where each of the steps has a label and none is; None otherwise,
    and where a label up to there is not known."""
    index = next((at for at, label in enumerate(labels) if not label), -1)
    if index >= 0:
        return within(index, num_steps) if labels[index] is False else None
    return -1 if len(labels) == num_steps else None


def within(index: Index, num_steps: int) -> Index | None:
    return index if -1 <= index < num_steps else None


def _last_object(text: str) -> dict[str, Any]:
    """The last JSON object of a text with both keys, not one within another; an empty one where there is none."""
    decoder, place, last, num_tries = json.JSONDecoder(), 0, dict[str, Any](), 0
    while (place := text.find("{", place)) >= 0 and (num_tries := num_tries + 1) <= _MAX_TRIES:
        try:
            value, place = decoder.raw_decode(text, place)
        except (ValueError, RecursionError):
            place += 1
            continue
        last = value if {"step_labels", "final_label"} <= value.keys() else last
    return last


def majority(votes: Sequence[Index | None]) -> Index | None:
    """The index with the most votes; of several the one that was voted for first (as Python's `Counter` has it, and so
    ProcessBench's script); None of no votes."""
    counts = Counter(vote for vote in votes if vote is not None)
    return counts.most_common(1)[0][0] if counts else None


def num_more_votes(votes: Sequence[Index | None], rule: StoppingRule) -> int:
    """The fewest further critiques that can settle the majority (0: it is settled): drawn at once, none is needless. No
    votes settle it sooner than those for the index that leads."""
    leads = majority(votes)
    further = [-1 if leads is None else leads]
    remaining = max(rule.num_analyses - len(votes), 0)
    return next((more for more in range(remaining) if is_settled([*votes, *further * more], rule)), remaining)


def is_settled(votes: Sequence[Index | None], rule: StoppingRule) -> bool:
    """Whether the majority of all critiques stands after these votes (None: a critique that names no index).

    "exact": whatever the rest name. "confident": with a probability of `rule.confidence`, by the Beta-binomial
    posterior of a uniform prior for the share of the majority, all other votes taken for the nearest rival's.
    """
    remaining = rule.num_analyses - len(votes)
    if remaining <= 0:
        return True
    if rule.stopping == "none" or (leads := majority(votes)) is None:
        return False
    counts = Counter(vote for vote in votes if vote is not None)
    order, count = list(counts), counts.pop(leads)
    # What a rival needs to win: more votes, or as many where it was voted for first; a new one needs more.
    needed = [count + (order.index(leads) < order.index(other)) - number for other, number in counts.items()]
    nearest = min([*needed, count + 1])
    if nearest > remaining:
        return True
    if rule.stopping == "exact":
        return False
    # Of those that remain some are for the majority, the others must not reach what the nearest rival then needs.
    enough = [more for more in range(remaining + 1) if remaining - more < nearest + more]
    shares = (beta_binomial(more, remaining, 1.0 + count, 1.0 + counts.total()) for more in enough)
    return math.fsum(shares) >= rule.confidence
