"""Grade many answers: strings and numbers at once, the rest by computer algebra in worker processes."""

from __future__ import annotations

import contextlib
import queue
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any, Self

from rprm.errors import RprmError
from rprm.grading.comparing import Comparison, Outcome
from rprm.grading.forms import MAX_CHARACTERS
from rprm.grading.normal import P
from rprm.grading.rules import EXACT, MATHEMATICS, AnswerRule
from rprm.grading.sandbox import Keeper

#: Strings and numbers are not enough.
_UNDECIDED: Any = "undecided"
#: Grades that are remembered.
_MAX_REMEMBERED = 100_000
#: Silent workers are taken for hung after so many times the limit of processor time (of which a busy machine gives
#: less than wall time, and that changes no outcome), and so many seconds.
_PATIENCE, _PATIENCE_S = 20, 60.0


@dataclass(frozen=True, slots=True)
class AnswerPair:
    """A gold answer and an answer to grade, None where the solution gives none."""

    gold: str
    answer: str | None
    rule: AnswerRule = MATHEMATICS


@dataclass(frozen=True, slots=True)
class Grade:
    """What became of a comparison.

    `outcome` is a conclusion (`equal`, `different`, `no answer`), or says why there is none: `unreadable` (words or
    notation that cannot be compared), `too long`, `timeout`, `out of memory`, `crashed`.
    """

    outcome: Outcome

    @property
    def correct(self) -> bool | None:
        """Whether the answer is right; None where the comparison came to no conclusion."""
        return {"equal": True, "different": False, "no answer": False}.get(self.outcome)


class Grader:
    """Compares answers; safe to use from any thread (in an event loop: `asyncio.to_thread(grader.grade_all, pairs)`).

    Texts, numbers and what is made of them are compared at once, the rest in at most `num_workers` processes, started
    when first needed. Nothing in an answer outlasts a comparison's limits: `limit_s` seconds of processor time
    (whatever else the machine does) and `limit_bytes` of address space.

    Raises:
        RprmError: a limit is out of range; at the first comparison that needs it, math-verify is not installed, or this
            is Windows.
    """

    def __init__(self, *, num_workers: int = 2, limit_s: float = 5.0, limit_bytes: int = 2 << 30) -> None:
        limits = {"num_workers": (num_workers, 1), "limit_s": (limit_s, 0.001), "limit_bytes": (limit_bytes, 256 << 20)}
        for name, (value, least) in limits.items():
            if not value >= least:
                raise RprmError(f"{name} is {value}; grading needs at least {least}")
        self._patience_s = _PATIENCE * limit_s
        self._graded: dict[AnswerPair, Grade] = {}
        self._workers = [Keeper(limit_s, limit_bytes) for _ in range(num_workers)]
        self._idle: queue.LifoQueue[Keeper] = queue.LifoQueue()
        for worker in self._workers:
            self._idle.put(worker)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the worker processes, which also end with the grader and with the process that holds it."""
        for worker in self._workers:
            worker.stop()

    def grade_all(self, pairs: Iterable[AnswerPair]) -> list[Grade]:
        """Grade each pair, in order; a pair that comes again costs nothing."""
        pairs = list(pairs)
        found = {pair: self._graded.get(pair) or Grade(_by_text(pair)) for pair in dict.fromkeys(pairs)}
        found |= self._by_algebra([pair for pair, grade in found.items() if grade.outcome == _UNDECIDED])
        if len(self._graded) > _MAX_REMEMBERED:
            self._graded = {}
        self._graded |= found
        return [found[pair] for pair in pairs]

    def check_gold(self, gold: str, rule: AnswerRule = MATHEMATICS) -> Grade:
        """Whether a gold answer can be recognised in another way of writing: `equal`, or why not.

        To one in sentences, or in notation that the grammar cannot read (`unreadable`), only the same text is equal.
        """
        pair = AnswerPair(gold, None, rule)
        return Grade("too long") if len(gold) > MAX_CHARACTERS else self._by_algebra([pair])[pair]

    def group_equivalent(self, answers: Sequence[str | None], rule: AnswerRule = EXACT) -> list[int]:
        """Number answers so that equal ones have the same number: for a vote among them.

        Answers that are equal, directly or through others, are one group, whatever their order; groups are numbered
        from 0 in order of their first answers, and no answer (None) is -1. No conclusion joins nothing.
        """
        #: Each answer's group: the place of its first member among the different answers.
        groups = {answer: place for place, answer in enumerate(dict.fromkeys(answers)) if answer is not None}
        for one, other in combinations(list(groups), 2):
            # In one order always, so that which came first makes no difference.
            pair = AnswerPair(min(one, other), max(one, other), rule)
            if groups[one] != groups[other] and self.grade_all([pair])[0].outcome == "equal":
                first, last = sorted((groups[one], groups[other]))
                groups = {answer: first if group == last else group for answer, group in groups.items()}
        numbers = {group: number for number, group in enumerate(sorted(set(groups.values())))}
        return [-1 if answer is None else numbers[groups[answer]] for answer in answers]

    def _by_algebra(self, waiting: list[AnswerPair]) -> dict[AnswerPair, Grade]:
        from multiprocessing.connection import wait

        found: dict[AnswerPair, Grade] = {}
        busy: dict[Any, AnswerPair] = {}
        try:
            while waiting or busy:
                with contextlib.suppress(queue.Empty):
                    while waiting:
                        # Others may have all workers: one is waited for, more are not.
                        worker = self._idle.get(block=not busy)
                        pair = busy[worker] = waiting.pop(0)
                        worker.ask(pair.gold, pair.answer, asdict(pair.rule))
                answered: list[Any] = wait(busy, self._patience_s + _PATIENCE_S)
                for worker in answered or list(busy):
                    found[busy[worker]] = Grade(worker.reply() if answered else "timeout")
                    if not answered:
                        worker.stop()
                    del busy[worker]
                    self._idle.put(worker)
        finally:
            for worker in busy:
                worker.stop()  # Its reply would be taken for that of the next question.
                self._idle.put(worker)
        return found


def _by_text(pair: AnswerPair) -> Outcome:
    """Grade by strings and numbers: an outcome, or `_UNDECIDED`."""
    if pair.answer is None or not pair.answer.strip():
        return "no answer"
    if max(len(pair.gold), len(pair.answer)) > MAX_CHARACTERS:
        return "too long"
    if P.unclean.search(pair.gold + pair.answer):
        return "unreadable"
    return Comparison(pair.rule, lambda *_: _UNDECIDED).of_texts(pair.gold, pair.answer)
