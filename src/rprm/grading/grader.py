"""Whether answers are the same: strings and numbers tell at once, the rest computer algebra in worker processes."""

from __future__ import annotations

import contextlib
import json
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
from typing import Any, Literal

from rprm.errors import RprmError
from rprm.grading.forms import MAX_CHARACTERS, SYNONYMS, Form, P, read
from rprm.grading.rules import EXACT, MATHEMATICS, AnswerRule

Outcome = Literal["equal", "different", "no answer", "unreadable", "too long", "timeout", "out of memory", "crashed"]
#: More answers than this in a list are compared in order alone: matching them tries every pair.
_MAX_UNORDERED = 40
#: Larger than any difference.
_ANY = Fraction(10**300)
#: Units of which one is never another.
_MEASURES = frozenset(SYNONYMS.values())
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
            by_text, answer = AnswerComparison(pair.rule, lambda *_: _UNDECIDED), pair.answer or ""
            if not (known := self._graded.get(pair)):
                known = Grade(by_text.of_texts(pair.gold, answer) if answer.strip() else "no answer")
            found[pair] = known
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

    def of(self, gold: Form, answer: Form) -> Outcome:
        """Compare two forms."""
        both = (gold, answer)
        if gold == answer:
            return "equal"
        if gold.choice and answer.choice and not gold.name + answer.name:
            # What is said beside a choice may be left out; beside yes and no it is not to be something else.
            if gold.choice != answer.choice or len(gold.choice) == 1 or "words" in (gold.kind, answer.kind):
                return "equal" if gold.choice == answer.choice else "different"
            outcome = self.of(*(replace(form, choice="") for form in both))
            return "unreadable" if outcome == "different" else outcome
        if "prose" in (gold.kind, answer.kind):
            if gold.kind == answer.kind and gold.text == answer.text:
                return self._items(gold.items, answer.items)
            is_denied = P.negation.sub("", gold.text) == P.negation.sub("", answer.text)
            return "different" if gold.kind == answer.kind and is_denied else "unreadable"
        if "words" in (gold.kind, answer.kind):
            return "equal" if gold.text.lower() == answer.text.lower() else "different"
        # Names that describe (`area`) rather than name a variable count where both are given.
        described = {form.name for form in both if re.fullmatch("[a-z ]{3,}", form.name)}
        other_name = bool(gold.name and answer.name and gold.name != answer.name and len(described) != 1)
        if gold.items or answer.items:
            return "different" if other_name else self._structures(gold, answer)
        if other_name or "relation" in (gold.kind, answer.kind):
            # An equation, and the same one solved for a name.
            are_whole = all(re.search("[=<>≤≥≠]", form.whole) for form in both)
            return self.ask(*(replace(form, kind="relation") for form in both)) if are_whole else "different"
        if gold.argument and answer.argument:
            names = {answer.argument: gold.argument}
            renamed = re.sub(r"\\[a-zA-Z]+|[a-zA-Z]", lambda found: names.get(found[0], found[0]), answer.text)
            answer = replace(answer, text=renamed)
        return self._values(gold, answer)

    def _itself(self, form: Form) -> Outcome:
        if form.kind in ("words", "prose"):
            return "equal"
        if form.items and form.kind != "difference":
            return next((outcome for item in form.items if (outcome := self._itself(item)) != "equal"), "equal")
        is_known = form.number is not None or form.choice or P.known.fullmatch(form.text)
        return "equal" if is_known else self.ask(form, form)

    def _structures(self, gold: Form, answer: Form) -> Outcome:
        kinds = {gold.kind, answer.kind}
        if kinds & {"union", "difference", "intersection"}:
            return self.ask(gold, answer)
        if kinds == {"tuple"} and len(gold.items) == 2 and "⟦⟧" not in (gold.brackets, answer.brackets):
            # Of two values, brackets tell a closed interval from an open one; of more, and of a vector, nothing.
            return self._items(gold.items, answer.items) if gold.brackets == answer.brackets else "different"
        if len(kinds) == 1:
            in_order = gold.kind != "list" or any(item.text == "…" for item in gold.items)
            return self._items(gold.items, answer.items, in_order)
        values, other = (gold, answer) if gold.kind == "list" else (answer, gold)
        if kinds == {"list", "tuple"} and not values.brackets and other.brackets == "()" and not self.rule.is_vote:
            # A point whose brackets were left out is the same point; round brackets around a list leave it a list.
            is_point = (gold is other or other.name) and all(item.kind != "relation" for item in values.items)
            return self._items(gold.items, answer.items, in_order=bool(is_point))
        if kinds == {"list", "value"} and "⋎" in values.text:
            # One value in two forms: `1/2 or 0.5`.
            return self._items((other,) * len(values.items), values.items)
        return "different"

    def _items(self, gold: tuple[Form, ...], answer: tuple[Form, ...], in_order: bool = True) -> Outcome:
        """Match each gold value with the next answer value, or with the first that is equal and not yet taken."""
        if len(gold) != len(answer):
            return "different"
        in_order = in_order or len(gold) > _MAX_UNORDERED
        remaining, failures = list(answer), list[Outcome]()
        for one in gold:
            outcomes = list[Outcome]()
            # What is written alike first: it costs nothing, and most values have their like.
            for other in remaining[:1] if in_order else sorted(remaining, key=lambda item: item != one):
                # Within several values, what stands beside a number (`20 boys`) tells which one it is.
                is_other = one.unit and other.unit and one.unit != other.unit
                outcomes.append("different" if is_other else self.of(one, other))
                if outcomes[-1] == "equal":
                    remaining.remove(other)
                    break
            else:
                remaining = remaining[in_order:]
                failures += [outcome for outcome in outcomes if outcome != "different"] or ["different"]
            if "different" in failures:
                return "different"
        return next(iter(failures), "equal")

    def _values(self, gold: Form, answer: Form) -> Outcome:
        both, units = (gold, answer), {gold.unit, answer.unit}
        bases = [unit for unit in units if unit[:1] == "_"]
        # 055 is no angle, unless a whole number is asked for.
        is_padded = any(form.whole.isdigit() for form in both) and not self.rule.whole_numbers
        if len(bases) == 2 or (len(units) == 2 and (units <= _MEASURES or (is_padded and "degree" in units))):
            return "different"
        is_plain = any(form.number is not None and form.unit in ("", "%") for form in both)
        if len(units) == 2 and not is_plain and any(map(P.letters.fullmatch, units)):
            # Letters are a unit beside a plain number alone: 2 m g is not 2 m v.
            gold, answer = (replace(form, text=form.whole or form.text, number=None, unit="") for form in both)
            both = (gold, answer)
        if gold.text == answer.text and (bases or (gold.unit == "%") == (answer.unit == "%")):
            return "equal"
        if bases:
            return "different"  # The problem names the base, so that it may be left out. Nothing is converted.
        for one, other in (both, both[::-1]):
            if one.unit == "degree" and r"\pi" in other.text and not other.unit:
                return self.ask(_times(one, 1, r"\frac{\pi}{180}"), other)
            # The sign was left out (8 for 8%), or the value worked out (0.08 for 8%).
            is_percent = one.unit == "%" != other.unit and not self.rule.is_vote
            if is_percent and self._numbers(_times(one, Fraction(1, 100), r"\frac{1}{100}"), other) == "equal":
                return "equal"
        return self._numbers(gold, answer)

    def _numbers(self, gold: Form, answer: Form) -> Outcome:
        # The largest difference that makes none: relative to the larger value (0: any), and absolute.
        relative, absolute, both = self.rule.relative_tolerance, self.rule.absolute_tolerance, (gold, answer)
        numbers = [form.number for form in both if form.number is not None]
        places = [form.place for form in both if form.place is not None]
        has_decimals = bool(places) or any(re.search(r"\d\.\d", form.text) for form in both)
        if absolute is not None:
            relative = Fraction(0)
        elif self.rule.tolerance_for_integers and (has_decimals or len(numbers) == 2):
            absolute = _ANY
        elif (
            not (relative and has_decimals)
            or gold.place == answer.place is not None
            or 1 in [number.denominator for number in numbers]
        ):
            relative = absolute = Fraction(0)
        else:
            # A decimal that was rounded or cut is within one unit of its last place (`0.12501` is not 1/8, nor 3.1417
            # pi), and what it was rounded from has more places.
            absolute = max(places, default=_ANY) * Fraction(999_999, 1_000_000)
        if len(numbers) < 2:
            return self.ask(gold, answer, float(relative), float(absolute))
        allowed = min(relative * max(map(abs, numbers)), absolute) if relative else absolute
        return "equal" if abs(numbers[0] - numbers[1]) <= allowed else "different"


def _times(form: Form, factor: Fraction | int, text: str) -> Form:
    number, place = (value if value is None else value * factor for value in (form.number, form.place))
    return replace(form, text=rf"({form.text})\cdot{text}", unit="", number=number, place=place)


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
