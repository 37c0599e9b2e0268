"""Grade many answers: strings and numbers at once, the rest by computer algebra in worker processes."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from itertools import combinations
from typing import Any

from rprm.errors import RprmError
from rprm.grading.comparing import Comparison, Outcome
from rprm.grading.rules import EXACT, MATHEMATICS, AnswerRule

#: Strings and numbers are not enough.
_UNDECIDED: Any = "undecided"
#: Grades that are remembered; seconds after which a silent worker is taken for hung, beside 20 times the limit of
#: processor time (of which a busy machine gives less than wall time, and that changes no outcome).
_MAX_REMEMBERED, _PATIENCE_S = 100_000, 60.0


@dataclass(frozen=True, slots=True)
class AnswerPair:
    """A gold answer and an answer to grade, None where the solution gives none."""

    gold: str
    answer: str | None
    rule: AnswerRule = MATHEMATICS


@dataclass(frozen=True, slots=True)
class Grade:
    """What became of a comparison."""

    outcome: Outcome  #: a conclusion (`equal`, `different`, `no answer`), or why there is none

    @property
    def correct(self) -> bool | None:
        """Whether the answer is right; None where the comparison came to no conclusion."""
        return {"equal": True, "different": False, "no answer": False}.get(self.outcome)


class Grader(contextlib.AbstractContextManager["Grader"]):
    """Compares answers; safe to use from any thread (in an event loop: `asyncio.to_thread(grader.grade_all, pairs)`).

    What strings and numbers do not decide goes to at most `num_workers` processes, started when first needed. Nothing
    in an answer outlasts a comparison's limits: `limit_s` seconds of processor time (whatever else the machine does)
    and `limit_bytes` of address space.

    Raises:
        RprmError: a limit is out of range; at the first question to a process, math-verify is missing, or on Windows.
    """

    def __init__(self, *, num_workers: int = 2, limit_s: float = 5.0, limit_bytes: int = 2 << 30) -> None:
        limits = {"num_workers": (num_workers, 1), "limit_s": (limit_s, 0.001), "limit_bytes": (limit_bytes, 256 << 20)}
        for name, (value, least) in limits.items():
            if not value >= least:
                raise RprmError(f"{name} is {value}; grading needs at least {least}")
        self._patience_s, self._graded = 20 * limit_s, dict[AnswerPair, Grade]()
        self._workers = [_Keeper(limit_s, limit_bytes) for _ in range(num_workers)]
        self._idle = queue.LifoQueue[_Keeper]()
        for worker in self._workers:
            self._idle.put(worker)

    def close(self, *_: object) -> None:
        """End the worker processes, which also end with the grader and with the process that holds it."""
        for worker in self._workers:
            worker.stop()

    __exit__ = close

    def grade_all(self, pairs: Iterable[AnswerPair]) -> list[Grade]:
        """Grade each pair, in order; a pair that comes again costs nothing."""
        pairs = list(pairs)
        found = dict[AnswerPair, Grade]()
        for pair in dict.fromkeys(pairs):
            if pair in self._graded or not (pair.answer or "").strip():
                found[pair] = self._graded.get(pair) or Grade("no answer")
            else:
                by_text = Comparison(pair.rule, lambda *_: _UNDECIDED)
                found[pair] = Grade(by_text.of_texts(pair.gold, pair.answer))
        found |= self._by_algebra([pair for pair, grade in found.items() if grade.outcome == _UNDECIDED])
        if len(self._graded) > _MAX_REMEMBERED:
            self._graded = {}
        self._graded |= found
        return [found[pair] for pair in pairs]

    def check_gold(self, gold: str, rule: AnswerRule = MATHEMATICS) -> Grade:
        """Whether a gold answer can be recognised in another way of writing: `equal`, or why not.

        To one in notation that the grammar cannot read (`unreadable`) only the same text is equal, and to sentences
        only the same words with mathematics that means the same.
        """
        return self._by_algebra([pair := AnswerPair(gold, None, rule)])[pair]

    def group_equivalent(self, answers: Sequence[str | None], rule: AnswerRule = EXACT) -> list[int]:
        """Number answers so that equal ones have the same number: for a vote among them.

        Answers that are equal, directly or through others, are one group, whatever their order; groups are numbered
        from 0 in order of their first answers, and no answer (None) is -1. No conclusion joins nothing.
        """
        groups = {answer: place for place, answer in enumerate(dict.fromkeys(answers)) if answer is not None}
        for one, other in combinations(list(groups), 2):
            # In one order always, so that which came first makes no difference.
            pair = AnswerPair(min(one, other), max(one, other), rule)
            if groups[one] != groups[other] and self.grade_all([pair])[0].correct:
                first, last = sorted((groups[one], groups[other]))
                groups = {answer: first if group == last else group for answer, group in groups.items()}
        numbers = sorted(set(groups.values()))
        return [-1 if answer is None else numbers.index(groups[answer]) for answer in answers]

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


class _Keeper:
    """A process of `rprm.grading.sandbox`, started at its first question and ended with this object."""

    def __init__(self, *limits: float) -> None:
        self._limits = [*map(str, limits)]
        self._process: Any = None

    def fileno(self) -> int:
        """Where its reply comes."""
        return int(self._process.stdout.fileno())

    def ask(self, pair: AnswerPair) -> None:
        """Compare a pair; of a gold answer alone (no `answer`) ask whether it is recognised."""
        if self._process is None or self._process.poll() is not None:  # In a fork of its owner, too.
            self.stop()
            self._start()
        with contextlib.suppress(OSError):  # It has been killed: its reply is the end of its output.
            question = json.dumps([pair.gold, pair.answer, asdict(pair.rule)], default=str)
            self._process.stdin.write(question.encode() + b"\n")

    def reply(self) -> Any:
        """The outcome; where the process itself was killed, "crashed", and the next question has a new one."""
        if not (outcome := self._process.stdout.readline().decode().strip()):
            self.stop()
        return outcome or "crashed"

    def stop(self) -> None:
        """End the process and its child, where it runs and is not that of a process of which this is a fork."""
        if self._process is not None:
            with self._process as process, contextlib.suppress(ProcessLookupError, PermissionError):
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)

    __del__ = stop

    def _start(self) -> None:
        if sys.platform == "win32":
            raise RprmError("comparing mathematical answers needs Linux or macOS; on Windows, run this command in WSL")
        if find_spec("math_verify") is None:
            raise RprmError('comparing mathematical answers needs the extra: pip install ".[math]"')
        # It finds what this process finds, with the same outcome every time. Its session is its own: Control-C is not
        # for it, and its child is stopped along with it.
        program = f"import sys; sys.path[:] = {sys.path!r}; from rprm.grading.sandbox import main; main()"
        self._process = subprocess.Popen(
            [sys.executable, "-c", program, *self._limits], bufsize=0, start_new_session=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        if self.reply() != "ready":
            command = f"{sys.executable} -m rprm.grading.sandbox 5 4000000000"
            raise RprmError(f"the process that compares answers ended at its start; run {command} to see why")
