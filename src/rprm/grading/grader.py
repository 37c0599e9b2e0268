"""Grade many answers: strings and numbers at once, the rest by computer algebra in worker processes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import queue
import select
import subprocess
import sys
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import NoReturn, Self, TypeVar, cast

from rprm.errors import RprmError
from rprm.grading import worker as worker_program
from rprm.grading.comparing import SETTLED, Outcome, compare
from rprm.grading.reading import MAX_CHARACTERS, read
from rprm.grading.rules import EXACT, MATHEMATICS, AnswerRule

_Result = TypeVar("_Result")

#: Grades that are remembered; the oldest go first.
_MAX_REMEMBERED = 100_000
#: How long a keeper, which computes nothing, may be silent beyond its child's limits before it is taken for dead.
_GRACE_S = 60.0
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
        return self.outcome == "equal" if self.outcome in SETTLED else None


class _Undecided(Exception):
    """Strings and numbers do not decide."""


class Grader:
    """Compares answers; safe to use from any thread and inside a running event loop.

    Texts, numbers and what is made of them are compared at once. Everything else goes to worker processes, started when
    first needed, each comparison under a limit of processor time and memory that nothing in an answer can outlast.

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
        self._num_workers, self._limits = num_workers, (limit_s, limit_bytes)
        self._lock = threading.Lock()
        self._graded: dict[AnswerPair, Grade] = {}
        self._renew()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the worker processes (the grader can be used again: new ones start).

        They also end with the grader, and with the process that holds it.
        """
        self._finalizer()
        with self._lock:
            self._renew()

    def grade_all(self, pairs: Iterable[AnswerPair]) -> list[Grade]:
        """Grade each pair, in order; a pair that comes again costs nothing."""
        return self._grade_all(list(pairs), threading.Event())

    async def agrade_all(self, pairs: Iterable[AnswerPair]) -> list[Grade]:
        """`grade_all` without blocking the event loop; cancelled, it begins no further comparison."""
        return await _in_thread(self._grade_all, list(pairs))

    def check_gold(self, gold: str, rule: AnswerRule = MATHEMATICS) -> Grade:
        """Whether a gold answer can be recognised in another way of writing: `equal`, or why not.

        An answer in sentences, or in notation that the grammar cannot read, is `unreadable`: only the same text is
        then graded as equal, and any other comes to no conclusion.
        """
        if len(gold) > MAX_CHARACTERS:
            return Grade("too long")
        with self._borrowed() as worker:
            return Grade(worker.ask(gold, None, rule))

    def group_equivalent(self, answers: Sequence[str | None], rule: AnswerRule = EXACT) -> list[int]:
        """Number answers so that equal ones have the same number: for a vote among them.

        Answers that are equal, directly or through others, are one group, whatever their order. Groups are numbered in
        order of their first answers, from 0; no answer (None) is -1. A comparison that comes to no conclusion joins
        nothing.
        """
        return self._group(list(answers), threading.Event(), rule)

    async def agroup_equivalent(self, answers: Sequence[str | None], rule: AnswerRule = EXACT) -> list[int]:
        """`group_equivalent` without blocking the event loop; cancelled, it begins no further comparison."""
        return await _in_thread(self._group, list(answers), rule)

    def _group(self, answers: list[str | None], stop: threading.Event, rule: AnswerRule) -> list[int]:
        groups: list[list[str]] = []
        for answer in dict.fromkeys(answers):
            if answer is None:
                continue
            joined = [group for group in groups if any(self._are_equal(one, answer, rule, stop) for one in group)]
            merged = [*(one for group in joined for one in group), answer]
            groups = [group for group in groups if group not in joined] + [merged]
        group_of = {one: number for number, group in enumerate(groups) for one in group}
        order = {
            number: place
            for place, number in enumerate(dict.fromkeys(group_of[one] for one in answers if one is not None))
        }
        return [-1 if one is None else order[group_of[one]] for one in answers]

    def _are_equal(self, one: str, other: str, rule: AnswerRule, stop: threading.Event) -> bool:
        """Compared in one order always, so that which came first makes no difference."""
        (grade,) = self._grade_all([AnswerPair(min(one, other), max(one, other), rule)], stop)
        return grade.outcome == "equal"

    def _grade_all(self, pairs: list[AnswerPair], stop: threading.Event) -> list[Grade]:
        found: dict[AnswerPair, Grade] = {}
        waiting: deque[AnswerPair] = deque()
        for pair in dict.fromkeys(pairs):
            with self._lock:
                known = self._graded.get(pair)
            try:
                found[pair] = known or Grade(_grade(pair))
            except _Undecided:
                waiting.append(pair)
        if waiting:
            self._grade_by_workers(waiting, found, stop)
        with self._lock:
            self._graded.update(found)
            while len(self._graded) > _MAX_REMEMBERED:
                del self._graded[next(iter(self._graded))]
        return [found[pair] for pair in pairs]

    def _grade_by_workers(
        self, waiting: deque[AnswerPair], found: dict[AnswerPair, Grade], stop: threading.Event
    ) -> None:
        errors: list[BaseException] = []

        def grade_some() -> None:
            try:
                while waiting and not stop.is_set():
                    pair = waiting.popleft()
                    with self._borrowed() as worker:
                        found[pair] = Grade(worker.ask(pair.gold, pair.answer, pair.rule))
            except IndexError:
                return  # Another thread took the last one.
            except BaseException as error:
                errors.append(error)
                stop.set()

        # Daemons, not an executor: that would keep an interrupted program alive until its last comparison.
        num_threads = min(self._num_workers, len(waiting))
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

    def _renew(self) -> None:
        self._owner = os.getpid()
        self._idle: queue.LifoQueue[_Worker] = queue.LifoQueue()
        workers = [_Worker(*self._limits) for _ in range(self._num_workers)]
        for worker in workers:
            self._idle.put(worker)
        self._finalizer = weakref.finalize(self, _stop_all, workers, os.getpid())

    @contextlib.contextmanager
    def _borrowed(self) -> Iterator[_Worker]:
        """One running worker, waited for where all are busy."""
        with self._lock:
            if os.getpid() != self._owner:
                self._renew()  # A fork of the process that began: its workers answer that one.
        idle = self._idle
        worker = idle.get()
        try:
            if not worker.is_alive:
                worker.start()
            yield worker
        finally:
            idle.put(worker)


async def _in_thread(work: Callable[..., _Result], *arguments: object) -> _Result:
    stop = threading.Event()
    try:
        return await asyncio.to_thread(work, arguments[0], stop, *arguments[1:])
    except asyncio.CancelledError:
        stop.set()
        raise


def _grade(pair: AnswerPair) -> Outcome:
    """Grade by strings and numbers; raises `_Undecided` where that is not enough."""
    if pair.answer is None or not pair.answer.strip():
        return "no answer"
    if max(len(pair.gold), len(pair.answer)) > MAX_CHARACTERS:
        return "too long"
    if not _UNCLEAN.isdisjoint(pair.gold + pair.answer):
        return "unreadable"
    return compare(read(pair.gold, pair.rule), read(pair.answer, pair.rule), pair.rule, _undecided)


def _undecided(*_: object) -> NoReturn:
    raise _Undecided


def _fraction_text(value: Fraction) -> str:
    return f"{value.numerator}/{value.denominator}"


def _stop_all(workers: list[_Worker], owner: int) -> None:
    if os.getpid() == owner:
        for worker in workers:
            worker.stop()


class _Worker:
    """One keeper process; see `rprm.grading.worker`."""

    def __init__(self, limit_s: float, limit_bytes: int) -> None:
        self._limit_s, self._limit_bytes = limit_s, limit_bytes
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def is_alive(self) -> bool:
        return self._process is not None

    def start(self) -> None:
        """Start it.

        Raises:
            RprmError: math-verify is not installed, this is Windows, or the process ends at once.
        """
        if sys.platform == "win32":
            raise RprmError("comparing mathematical answers needs Linux or macOS; on Windows, run this command in WSL")
        # It finds what this process finds. Hash seed and threads: the same outcome every time.
        program = f"import sys; sys.path[:] = {sys.path!r}; from rprm.grading.worker import main; main()"
        self._process = subprocess.Popen(
            [sys.executable, "-c", program, repr(self._limit_s), str(self._limit_bytes)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1"},
        )
        process = self._process
        if self._read_line() != b"ready\n":
            self.stop()
            if process.returncode == worker_program.NOT_INSTALLED:
                raise RprmError('comparing mathematical answers needs the extra: pip install ".[math]"')
            raise RprmError(
                f"the process that compares answers ended at its start (code {process.returncode}); run "
                f"{sys.executable} -m rprm.grading.worker 5 4000000000 to see why"
            )

    def ask(self, gold: str, answer: str | None, rule: AnswerRule) -> Outcome:
        """What it says of a pair; of a gold answer alone (no `answer`) whether it is recognised."""
        assert self._process is not None
        assert self._process.stdin is not None
        try:
            request = json.dumps([gold, answer, asdict(rule)], default=_fraction_text)
            self._process.stdin.write(request.encode() + b"\n")
            self._process.stdin.flush()
            outcome = self._read_line().decode().strip()
        except OSError:
            outcome = "crashed"
        except BaseException:
            # Interrupted: its reply would be taken for that of the next question.
            self.stop()
            raise
        if not outcome or outcome == "crashed":
            # The keeper itself is gone (killed from outside): this pair has no outcome, the next a new keeper.
            self.stop()
        return cast(Outcome, outcome or "crashed")

    def _read_line(self) -> bytes:
        assert self._process is not None
        assert self._process.stdout is not None
        silent = select.poll()  # Not select.select: that knows no descriptor above 1023.
        silent.register(self._process.stdout, select.POLLIN)
        patience_s = self._limit_s * worker_program.WALL_FACTOR + _GRACE_S
        return self._process.stdout.readline() if silent.poll(1000 * patience_s) else b""

    def stop(self) -> None:
        """End the process; its child, where it has one, ends with it."""
        process, self._process = self._process, None
        if process is None:
            return
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        try:
            process.wait(timeout=5.0)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
