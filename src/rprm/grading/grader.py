"""Whether answers are the same: strings and numbers tell at once, the rest computer algebra in worker processes."""

from __future__ import annotations

import contextlib
import json
import math
import os
import queue
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from importlib.util import find_spec
from itertools import combinations
from typing import Any, Literal, cast

from rprm.errors import RprmError
from rprm.grading.forms import MAX_CHARACTERS, SYNONYMS, Form, P, read
from rprm.grading.rules import EXACT, MATHEMATICS, AnswerRule

Outcome = Literal["equal", "different", "no answer", "unreadable", "too long", "timeout", "out of memory", "crashed"]
#: More answers than this in a list are compared in order alone: matching them tries every pair.
_MAX_UNORDERED = 40
#: Outcomes of the parts of an answer, the one that decides last.
_ORDER: list[Any] = ["equal", "unreadable", "undecided", "different"]
#: Units of which one is never another.
_MEASURES = frozenset(SYNONYMS.values())
#: Strings and numbers are not enough.
_UNDECIDED: Any = "undecided"
#: Grades that are remembered; seconds after which a silent worker is taken for hung, beside 20 times the limit of
#: processor time (of which a busy machine gives less than wall time, and that changes no outcome).
_MAX_REMEMBERED, _PATIENCE_S = 100_000, 60.0
#: What a whole group may take, and in it the reading of one answer: in limits of one comparison.
_GROUP, _READING = 8.0, 0.1


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
        self._limit_s, self._graded = limit_s, dict[AnswerPair, Grade]()
        self._workers = [_Keeper(limit_bytes) for _ in range(num_workers)]
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
        found = {pair: self._by_text(pair) for pair in dict.fromkeys(pairs)}
        waiting = [pair for pair, grade in found.items() if grade.outcome == _UNDECIDED]
        found |= self._by_algebra(waiting, self._limit_s)
        if len(self._graded) > _MAX_REMEMBERED:
            self._graded = {}
        self._graded |= found
        return [found[pair] for pair in pairs]

    def check_gold(self, gold: str, rule: AnswerRule = MATHEMATICS) -> Grade:
        """Whether a gold answer can be recognised in another way of writing: `equal`, or why not.

        To one in notation that the grammar cannot read (`unreadable`) only the same text is equal, and to sentences
        only the same words.
        """
        return self._by_algebra([pair := AnswerPair(gold, None, rule)], self._limit_s)[pair]

    def group_equivalent(self, answers: Sequence[str | None], rule: AnswerRule = EXACT) -> list[int]:
        """Number answers so that equal ones have the same number: for a vote among them.

        Answers that are equal, directly or through others, are one group, whatever their order; groups are numbered
        from 0 in order of their first answers, and no answer (None) is -1. No conclusion joins nothing. The whole
        group has eight times the limit of one comparison, and what cannot be read alone in a tenth of that limit
        is compared as a text only.
        """
        # In one order always, so that which came first makes no difference.
        texts = sorted({answer for answer in answers if answer is not None}, key=lambda text: (len(text), text))
        group_of = {text: text for text in texts}
        pairs = {two: AnswerPair(*two, rule) for two in combinations(texts, 2)}
        grades = {pair: self._by_text(pair) for pair in pairs.values()}
        waiting = [two for two, pair in pairs.items() if grades[pair].outcome == _UNDECIDED]
        pool = [_GROUP * self._limit_s]
        alone = [AnswerPair(text, None, rule) for text in dict.fromkeys(text for two in waiting for text in two)]
        is_read = {pair.gold: grade for pair, grade in self._by_algebra(alone, _READING * self._limit_s, pool).items()}
        waiting = [two for two in waiting if all(is_read[text].correct for text in two)]
        while grades:
            for one, other in (two for two, pair in pairs.items() if pair in grades and grades[pair].correct):
                if (group := group_of[one]) != (joined := group_of[other]):
                    group_of = {text: group if old == joined else old for text, old in group_of.items()}
            # Of any two groups one pair at a time: answers that others join are not compared again.
            waiting = [two for two in waiting if group_of[two[0]] != group_of[two[1]]]
            batch = {(group_of[one], group_of[other]): (one, other) for one, other in waiting}
            waiting = [two for two in waiting if batch[group_of[two[0]], group_of[two[1]]] != two]
            grades = self._by_algebra([pairs[two] for two in batch.values()], self._limit_s, pool)
            self._graded |= {pair: grade for pair, grade in grades.items() if grade.correct is not None}
        numbers: dict[str, int] = {}
        return [-1 if text is None else numbers.setdefault(group_of[text], len(numbers)) for text in answers]

    def _by_text(self, pair: AnswerPair) -> Grade:
        by_text = AnswerComparison(pair.rule, lambda *_: _UNDECIDED)
        if not (known := self._graded.get(pair)):
            known = Grade(by_text.of_texts(pair.gold, pair.answer) if (pair.answer or "").strip() else "no answer")
        return known

    def _by_algebra(
        self, pairs: list[AnswerPair], limit_s: float, pool: list[float] | None = None
    ) -> dict[AnswerPair, Grade]:
        """Ask the workers: `limit_s` for each pair, while the pool has seconds left; what is left then is a timeout."""
        found = dict.fromkeys(pairs, Grade("timeout"))
        pool = pool or [math.inf]
        waiting, busy = pairs[::-1], dict[Any, tuple[AnswerPair, float]]()
        try:
            while busy or (waiting and pool[0] > 0):
                with contextlib.suppress(queue.Empty):
                    while waiting and pool[0] > 0:
                        # Others may have all workers: one is waited for, more are not.
                        worker = self._idle.get(block=not busy)
                        busy[worker] = waiting.pop(), min(limit_s, pool[0])
                        pool[0] -= busy[worker][1]
                        worker.ask(*busy[worker])
                from multiprocessing.connection import wait

                answered: list[Any] = wait(busy, 20 * limit_s + _PATIENCE_S)
                for worker in answered or list(busy):
                    pair, allowed_s = busy[worker]
                    outcome, seconds = cast("tuple[Any, str]", worker.reply() if answered else ("timeout", ""))
                    found[pair] = Grade(outcome)
                    pool[0] += allowed_s - float(seconds or allowed_s)
                    if not answered:
                        worker.stop()
                    del busy[worker]
                    self._idle.put(worker)
        finally:
            for worker in busy:
                worker.stop()  # Its reply would be taken for that of the next question.
                self._idle.put(worker)
        return found


@dataclass(frozen=True, slots=True)
class AnswerComparison:
    """Compares gold answers with answers."""

    rule: AnswerRule
    #: Computer algebra, where strings and numbers do not decide: two forms, a relative and an absolute tolerance in.
    ask: Callable[..., Outcome]

    def of_texts(self, gold: str, answer: str | None) -> Outcome:
        """Compare two answers as they were found; of a gold answer alone say whether it is recognised, or why not."""
        texts = [gold, answer or ""]
        if max(map(len, texts)) > MAX_CHARACTERS or P.unclean.search("".join(texts)):
            return "too long" if max(map(len, texts)) > MAX_CHARACTERS else "unreadable"
        form = read(gold, self.rule)
        return self._itself(form) if answer is None else self.of(form, read(answer, self.rule))

    def _itself(self, form: Form) -> Outcome:
        if form.items:
            return next((outcome for item in form.items if (outcome := self._itself(item)) != "equal"), "equal")
        is_known = form.number is not None or form.choice or form.kind in ("words", "prose")
        return "equal" if is_known or P.known.fullmatch(form.text) else self.ask(form, form)

    def of(self, gold: Form, answer: Form) -> Outcome:
        """Compare two forms."""
        both, kinds = (gold, answer), {gold.kind, answer.kind}
        if gold == answer:
            return "equal"
        if gold.choice and answer.choice and not gold.name + answer.name:
            # What is said beside a choice may be left out; two explanations of one "yes" may say the same.
            is_open = gold.choice == answer.choice and kinds == {"prose"}
            return "unreadable" if is_open else "equal" if gold.choice == answer.choice else "different"
        if "prose" in kinds:
            return "unreadable"
        if "words" in kinds:
            return "equal" if gold.text.lower() == answer.text.lower() else "different"
        other_name = bool(gold.name and answer.name and gold.name != answer.name)
        if gold.items or answer.items or "set" in kinds:
            return "different" if other_name else self._structures(gold, answer)
        if other_name or "relation" in kinds:
            # An equation, and the same one solved for a name.
            are_whole = all(re.search("[=<>≤≥≠]", form.whole) for form in both)
            return self.ask(*(replace(form, kind="relation") for form in both)) if are_whole else "different"
        return self._values(gold, answer)

    def _structures(self, gold: Form, answer: Form) -> Outcome:
        both, kinds, brackets = (gold, answer), {gold.kind, answer.kind}, {gold.brackets, answer.brackets}
        if "set" in kinds:
            return self.ask(gold, answer)
        if any(form.kind == "value" and "⟦" in form.text for form in both):  # A sum of matrices, or one with a factor.
            columns = ["⟦" + r"\\".join(item.text for item in form.items) + "⟧" for form in both]
            texts = [form.text if "⟦" in form.text else column for form, column in zip(both, columns, strict=True)]
            return self.ask(replace(gold, text=texts[0]), replace(answer, text=texts[1]))
        if kinds == {"tuple"}:
            # Of two values, brackets tell a closed interval from an open one; of more, and of a vector, nothing.
            is_free = "⟦⟧" in brackets or (len(gold.items) > 2 and "::" not in brackets)
            return self._items(gold.items, answer.items) if is_free or len(brackets) == 1 else "different"
        if kinds == {"list"}:
            return self._items(gold.items, answer.items, any(item.text == "…" for item in gold.items))
        values, other = both if gold.kind == "list" else both[::-1]
        if kinds == {"list", "value"} and "⋎" in values.text:  # One value in two forms: `1/2 or 0.5`.
            return self._items((other,) * len(values.items), values.items)
        if kinds != {"list", "tuple"} or values.brackets or other.brackets != "()" or self.rule.is_vote:
            return "different"
        # A point whose brackets were left out is the same point; round brackets around a list leave it a list.
        is_point = (gold is other or other.name) and all(item.kind != "relation" for item in values.items)
        return self._items(gold.items, answer.items, in_order=bool(is_point))

    def _items(self, gold: tuple[Form, ...], answer: tuple[Form, ...], in_order: bool = True) -> Outcome:
        """Match each gold value with the next answer value, or with the first that is equal and not yet taken."""
        in_order, left = in_order or len(gold) > _MAX_UNORDERED, list(answer)
        outcomes: list[Outcome] = ["different"]
        for one in gold if len(gold) == len(answer) else ():
            found = dict[Outcome, Form]()
            # What is written alike first: it costs nothing, and most values have their like.
            for other in left[:1] if in_order else sorted(left, key=lambda item: item != one):
                # Within several values, what stands beside a number (`20 boys`) tells which one it is.
                is_other = one.unit and other.unit and one.unit != other.unit
                found["different" if is_other else self.of(one, other)] = other
                if "equal" in found:
                    break
            outcomes.append(min(found, key=_ORDER.index))
            if outcomes[-1] == "different":
                break
            if in_order or outcomes[-1] == "equal":
                left.remove(found[outcomes[-1]])
        return max(outcomes[1:] or outcomes, key=_ORDER.index)

    def _values(self, gold: Form, answer: Form) -> Outcome:
        both, units = (gold, answer), {gold.unit, answer.unit}
        if bases := [unit for unit in units if unit[:1] == "_"]:
            # The problem names the base, so that it may be left out. Nothing is converted.
            return "equal" if len(bases) == 1 and gold.text == answer.text else "different"
        if len(units) == 2 and units <= _MEASURES:
            return "different"
        is_plain = any(form.number is not None and form.unit in ("", "%") for form in both)
        if len(units) == 2 and not is_plain and any(map(P.letters.fullmatch, units)):
            # Letters are a unit beside a plain number alone: 2 m g is not 2 m v.
            gold, answer = (replace(form, text=form.whole or form.text, number=None, unit="") for form in both)
        for one, other in ((gold, answer), (answer, gold)):
            if one.unit == "degree" and r"\pi" in other.text and not other.unit:
                return self.ask(replace(one, text=rf"({one.text})\cdot\frac{{\pi}}{{180}}"), other)
            # The sign was left out (8 for 8%), or the value worked out (0.08 for 8%).
            if one.unit == "%" != other.unit and not self.rule.is_vote:
                number, place = (value if value is None else value / 100 for value in (one.number, one.place))
                part = replace(one, text=rf"\frac{{{one.text}}}{{100}}", number=number, place=place)
                if self._numbers(part, other) == "equal":
                    return "equal"
        return "equal" if gold.text == answer.text else self._numbers(gold, answer)

    def _numbers(self, gold: Form, answer: Form) -> Outcome:
        # The largest difference that makes none: relative to the larger value (0: any), and absolute.
        relative, absolute = self.rule.relative_tolerance, cast(Any, self.rule.absolute_tolerance)
        numbers = [form.number for form in (gold, answer) if form.number is not None]
        places = [form.place for form in (gold, answer) if form.place is not None]
        has_decimals = bool(places) or any(re.search(r"\d\.\d", form.text) for form in (gold, answer))
        is_whole = any(number.denominator == 1 for number in numbers)
        if absolute is not None:
            relative = Fraction(0)
        elif self.rule.tolerance_for_integers and (has_decimals or len(numbers) == 2):
            absolute = math.inf
        elif not (relative and has_decimals) or is_whole or len(places) > len({*places}):
            relative = absolute = Fraction(0)
        else:
            # A decimal that was rounded or cut is within one unit of its last place (`0.12501` is not 1/8, nor 3.1417
            # pi), and what it was rounded from has more places.
            absolute = max(places, default=math.inf) * Fraction(999_999, 1_000_000)
        if len(numbers) < 2:
            return self.ask(gold, answer, float(relative), float(absolute))
        allowed = min(relative * max(map(abs, numbers)), absolute) if relative else absolute
        return "equal" if abs(numbers[0] - numbers[1]) <= allowed else "different"


class _Keeper:
    """A process of `rprm.grading.sandbox`, started at its first question and ended with this object."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._process: Any = None

    def fileno(self) -> int:
        """Where its reply comes."""
        return int(self._process.stdout.fileno())

    def ask(self, pair: AnswerPair, limit_s: float) -> None:
        """Compare a pair; of a gold answer alone (no `answer`) ask whether it is recognised."""
        if self._process is None or self._process.poll() is not None:  # In a fork of its owner, too.
            self.stop()
            self._start()
        with contextlib.suppress(OSError):  # It has been killed: its reply is the end of its output.
            question = json.dumps([limit_s, pair.gold, pair.answer, asdict(pair.rule)], default=str)
            self._process.stdin.write(question.encode() + b"\n")

    def reply(self) -> Any:
        """The outcome, and seconds; where the process was killed, "crashed", and the next question has a new one."""
        outcome, _, seconds = self._process.stdout.readline().decode().strip().partition("\t")
        if not outcome:
            self.stop()
        return outcome or "crashed", seconds

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
            [sys.executable, "-c", program, str(self._limit_bytes)], bufsize=0, start_new_session=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        if self.reply()[0] != "ready":
            command = f"{sys.executable} -m rprm.grading.sandbox 4000000000"
            raise RprmError(f"the process that compares answers ended at its start; run {command} to see why")
