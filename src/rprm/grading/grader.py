"""Grade many answers: strings and numbers at once, the rest by computer algebra in worker processes."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self, cast

from rprm.errors import RprmError
from rprm.grading.comparing import Outcome, compare
from rprm.grading.parsing import MAX_CHARACTERS, read
from rprm.grading.rules import EXACT, MATHEMATICS, AnswerRule
from rprm.grading.sandbox import NOT_INSTALLED

#: Strings and numbers are not enough.
_UNDECIDED: Any = "undecided"
#: Grades that are remembered; the oldest go first.
_MAX_REMEMBERED = 100_000
#: Silent workers are taken for hung after so many times the limit of processor time (of which a busy machine gives
#: less than wall time, and that changes no outcome), and so many seconds.
_PATIENCE, _PATIENCE_S = 20, 60.0
#: Control characters and lone surrogates, with which no answer can be meant.
_UNCLEAN = frozenset([*map(chr, {*range(32), 127} - {9, 10, 11, 13}), *map(chr, range(0xD800, 0xE000))])


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
        if num_workers < 1:
            raise RprmError(f"num_workers is {num_workers}; grading needs at least 1")
        if not limit_s > 0.0:
            raise RprmError(f"limit_s is {limit_s}; give a number of seconds above 0")
        if limit_bytes < 256 << 20:
            raise RprmError(f"limit_bytes is {limit_bytes}; math-verify itself needs 256 MiB ({256 << 20})")
        self._limit_s = limit_s
        self._lock = threading.Lock()
        self._graded: dict[AnswerPair, Grade] = {}
        self._workers = [_Process(limit_s, limit_bytes) for _ in range(num_workers)]
        self._idle: queue.LifoQueue[_Process] = queue.LifoQueue()
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
        with self._lock:
            self._graded |= found
            while len(self._graded) > _MAX_REMEMBERED:
                del self._graded[next(iter(self._graded))]
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
        groups: dict[str, int] = {}
        for place, answer in enumerate(one for one in dict.fromkeys(answers) if one is not None):
            joined: set[int] = set()
            for one, group in groups.items():
                # In one order always, so that which came first makes no difference.
                pair = AnswerPair(min(one, answer), max(one, answer), rule)
                if group not in joined and self.grade_all([pair])[0].outcome == "equal":
                    joined.add(group)
            first = min(joined, default=place)
            groups = {one: first if group in joined else group for one, group in groups.items()} | {answer: first}
        numbers = {group: number for number, group in enumerate(sorted(set(groups.values())))}
        return [-1 if one is None else numbers[groups[one]] for one in answers]

    def _by_algebra(self, waiting: list[AnswerPair]) -> dict[AnswerPair, Grade]:
        found: dict[AnswerPair, Grade] = {}
        busy: dict[Any, AnswerPair] = {}
        try:
            while waiting or busy:
                with contextlib.suppress(queue.Empty):
                    while waiting:
                        # Others may have all workers: one is waited for, more are not.
                        worker = self._idle.get(block=not busy)
                        busy[worker] = waiting.pop(0)
                        worker.ask(busy[worker])
                from multiprocessing.connection import wait

                answered: list[Any] = wait(busy, _PATIENCE * self._limit_s + _PATIENCE_S)
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
    if not _UNCLEAN.isdisjoint(pair.gold + pair.answer):
        return "unreadable"
    return compare(read(pair.gold, pair.rule), read(pair.answer, pair.rule), pair.rule, lambda *_: _UNDECIDED)


def _end(process: subprocess.Popen[bytes], owner: int) -> None:
    """End a worker and its child; a fork of its owner leaves it alone."""
    if os.getpid() == owner:
        with process, contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)


class _Process:
    """A keeper process (see `rprm.grading.sandbox`), started at its first question and ended with this."""

    def __init__(self, *limits: float) -> None:
        self._limits = [str(limit) for limit in limits]
        self._process: Any = None
        #: The process that started it; a fork of that starts one of its own.
        self._owner = 0

    def fileno(self) -> int:
        """Where its reply comes."""
        return int(self._process.stdout.fileno())

    def ask(self, pair: AnswerPair) -> None:
        """Compare a pair; of a gold answer alone (no `answer`) ask whether it is recognised."""
        if self._owner != os.getpid():
            self._start()
        request = json.dumps([pair.gold, pair.answer, asdict(pair.rule)], default=str) + "\n"
        with contextlib.suppress(OSError):  # It has been killed: its reply is the end of its output.
            self._process.stdin.write(request.encode())

    def reply(self) -> Outcome:
        """The outcome; where the keeper itself was killed, this pair has none, and the next has a new keeper."""
        outcome: Any = self._process.stdout.readline().decode().strip()
        if not outcome:
            self.stop()
        return cast(Outcome, outcome or "crashed")

    def stop(self) -> None:
        """End the process, where there is one."""
        if self._owner == os.getpid():
            self._owner = 0
            self._finalizer()

    def _start(self) -> None:
        if sys.platform == "win32":
            raise RprmError("comparing mathematical answers needs Linux or macOS; on Windows, run this command in WSL")
        # It finds what this process finds. Hash seed and threads: the same outcome every time. A session of its own:
        # Control-C is not for it, and its child is stopped along with it.
        program = f"import sys; sys.path[:] = {sys.path!r}; from rprm.grading.sandbox import main; main()"
        self._process = subprocess.Popen(
            [sys.executable, "-c", program, *self._limits],
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1"},
            start_new_session=True,
        )
        self._owner = os.getpid()
        self._finalizer = weakref.finalize(self, _end, self._process, self._owner)
        if self._process.stdout.readline() == b"ready\n":
            return
        self.stop()
        if (code := self._process.returncode) == NOT_INSTALLED:
            raise RprmError('comparing mathematical answers needs the extra: pip install ".[math]"')
        raise RprmError(
            f"the process that compares answers ended at its start (code {code}); run {sys.executable} -m "
            "rprm.grading.sandbox 5 4000000000 to see why"
        )
