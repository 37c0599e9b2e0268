"""Grade many answers: strings and numbers at once, the rest by computer algebra in worker processes."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self

from rprm.errors import RprmError
from rprm.grading.comparing import SETTLED, Ask, Outcome, Question, compare_forms, compare_with_itself
from rprm.grading.forms import MAX_CHARACTERS, Form, form_of, is_clean, normal_text
from rprm.grading.pool import Workers
from rprm.grading.rules import EXACT, MATHEMATICS, AnswerRule

#: Grades and comparisons that are remembered; the oldest go first.
_MAX_REMEMBERED = 100_000


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
        return self.outcome == "equal" if self.outcome in SETTLED else None


class _Undecided(Exception):
    """Strings and numbers do not decide."""


class Grader:
    """Compares answers; safe to use from any thread and inside a running event loop.

    Equal texts and plain numbers are compared at once. Everything else goes to worker processes, started when first
    needed, each comparison under a limit of processor time and memory that nothing in an answer can outlast.

    Args:
        num_workers: the most processes that compare at once.
        limit_s: processor time of one comparison, in seconds. It does not depend on what else the machine does.
        limit_bytes: address space of one process.

    Raises:
        RprmError: a limit is out of range; at the first comparison that needs it, math-verify is not installed, or this
            is Windows.
    """

    def __init__(self, *, num_workers: int = 2, limit_s: float = 5.0, limit_bytes: int = 2 << 30) -> None:
        if num_workers < 1:
            raise RprmError(f"num_workers is {num_workers}; grading needs at least 1")
        if not limit_s > 0.0:
            raise RprmError(f"limit_s is {limit_s}; give a number of seconds above 0")
        if limit_bytes < 256 << 20:
            raise RprmError(f"limit_bytes is {limit_bytes}; math-verify itself needs 256 MiB ({256 << 20})")
        self._workers = Workers(num_workers, limit_s, limit_bytes)
        self._lock = threading.Lock()
        self._answered: dict[Question, Outcome] = {}
        self._graded: dict[AnswerPair, Grade] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the worker processes. They also end with the grader, and with the process that holds it."""
        self._workers.close()

    def grade_all(self, pairs: Iterable[AnswerPair]) -> list[Grade]:
        """Grade each pair, in order; a pair that comes again costs nothing."""
        return self._grade_all(list(pairs), threading.Event())

    async def agrade_all(self, pairs: Iterable[AnswerPair]) -> list[Grade]:
        """`grade_all` without blocking the event loop; cancelled, it begins no further comparison."""
        stop = threading.Event()
        try:
            return await asyncio.to_thread(self._grade_all, list(pairs), stop)
        except asyncio.CancelledError:
            stop.set()
            raise

    def check_gold(self, gold: str, rule: AnswerRule = MATHEMATICS) -> Grade:
        """Whether a gold answer can be recognised in another way of writing: `equal`, or why not.

        An answer in sentences, or in notation that the grammar cannot read, is `unreadable`: only the same text is
        then graded as equal, and any other comes to no conclusion.
        """
        if len(gold) > MAX_CHARACTERS:
            return Grade("too long")
        with self._workers.borrowed() as worker:
            return Grade(compare_with_itself(form_of(gold, rule), worker.ask))

    def group_equivalent(self, answers: Sequence[str | None], rule: AnswerRule = EXACT) -> list[int]:
        """Number answers so that equal ones have the same number: for a vote among them.

        An answer joins the first group whose first answer it is equal to (that one in the place of the gold answer),
        and begins a new group where there is none. Groups are numbered in order of their first answers, from 0; no
        answer (None) is -1. A comparison that comes to no conclusion does not join. Equality is not made transitive:
        an answer is compared with the first of each group alone.
        """
        return self._group(answers, rule, threading.Event())

    async def agroup_equivalent(self, answers: Sequence[str | None], rule: AnswerRule = EXACT) -> list[int]:
        """`group_equivalent` without blocking the event loop; cancelled, it begins no further comparison."""
        stop = threading.Event()
        try:
            return await asyncio.to_thread(self._group, list(answers), rule, stop)
        except asyncio.CancelledError:
            stop.set()
            raise

    def _group(self, answers: Sequence[str | None], rule: AnswerRule, stop: threading.Event) -> list[int]:
        #: Texts that look the same are the same answer.
        group_of_text: dict[str, int] = {}
        first: list[str] = []
        groups: list[int] = []
        for answer in answers:
            if answer is None:
                groups.append(-1)
                continue
            key = normal_text(answer) if len(answer) <= MAX_CHARACTERS else answer
            group = group_of_text.get(key)
            if group is None:
                group = self._first_equal(first, answer, rule, stop)
                if group == len(first):
                    first.append(answer)
                group_of_text[key] = group
            groups.append(group)
        return groups

    def _first_equal(self, first: list[str], answer: str, rule: AnswerRule, stop: threading.Event) -> int:
        """The group whose first answer equals this one, or a new one."""
        for group, representative in enumerate(first):
            (grade,) = self._grade_all([AnswerPair(representative, answer, rule)], stop)
            if grade.correct:
                return group
        return len(first)

    def _grade_all(self, pairs: list[AnswerPair], stop: threading.Event) -> list[Grade]:
        found: dict[AnswerPair, Grade] = {}
        undecided: dict[AnswerPair, None] = {}
        for pair in pairs:
            if pair in found or pair in undecided:
                continue
            with self._lock:
                known = self._graded.get(pair)
            try:
                found[pair] = known or self._grade(pair)
            except _Undecided:
                undecided[pair] = None
        if undecided:
            found.update(self._grade_by_workers(list(undecided), stop))
        with self._lock:
            self._graded.update(found)
            _trim(self._graded)
        return [found[pair] for pair in pairs]

    def _grade(self, pair: AnswerPair) -> Grade:
        """Grade by strings, numbers and what is remembered; raises `_Undecided` where that is not enough."""
        return self._compare(pair, self._remembered)

    def _remembered(self, question: Question) -> Outcome:
        with self._lock:
            outcome = self._answered.get(question)
        if outcome is None:
            raise _Undecided
        return outcome

    def _grade_by_workers(self, pairs: list[AnswerPair], stop: threading.Event) -> dict[AnswerPair, Grade]:
        found: dict[AnswerPair, Grade] = {}
        errors: list[BaseException] = []
        waiting = deque(pairs)

        def grade_some() -> None:
            try:
                while waiting and not stop.is_set():
                    pair = waiting.popleft()
                    found[pair] = self._grade_by_worker(pair)
            except IndexError:
                return  # Another thread took the last one.
            except BaseException as error:
                errors.append(error)
                stop.set()

        # Daemons, not an executor: that would keep an interrupted program alive until its last comparison.
        num_threads = min(self._workers.num_workers, len(pairs))
        threads = [threading.Thread(target=grade_some, name="rprm-answers", daemon=True) for _ in range(num_threads)]
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        except BaseException:
            stop.set()
            raise
        if errors:
            raise errors[0]
        if stop.is_set():
            raise RprmError("grading was cancelled")
        return found

    def _grade_by_worker(self, pair: AnswerPair) -> Grade:
        with self._workers.borrowed() as worker:

            def ask(question: Question) -> Outcome:
                with self._lock:
                    outcome = self._answered.get(question)
                if outcome is None:
                    outcome = worker.ask(question)
                    with self._lock:
                        self._answered[question] = outcome
                        _trim(self._answered)
                return outcome

            return self._compare(pair, ask)

    def _compare(self, pair: AnswerPair, ask: Ask) -> Grade:
        if pair.answer is None or not pair.answer.strip():
            return Grade("no answer")
        if max(len(pair.gold), len(pair.answer)) > MAX_CHARACTERS:
            return Grade("too long")
        if not (is_clean(pair.gold) and is_clean(pair.answer)):
            return Grade("unreadable")
        if normal_text(pair.gold) == normal_text(pair.answer):
            return Grade("equal")
        forms: list[Form] = [form_of(text, pair.rule) for text in (pair.gold, pair.answer)]
        return Grade(compare_forms(forms[0], forms[1], pair.rule, ask))


def _trim(remembered: dict[Question, Outcome] | dict[AnswerPair, Grade]) -> None:
    while len(remembered) > _MAX_REMEMBERED:
        del remembered[next(iter(remembered))]  # type: ignore[arg-type]
