"""A fallible teacher: it writes the analysis of a step from the truth about it, and at set rates gets it wrong.

Its analyses cover the five aspects of R-PRM (arXiv 2503.21295, section 3.1) in their order. What should be found is
written before what the step says is looked at, so that a student learns to compute rather than to copy.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass

from rprm.verdict import VerdictFormat
from rprm_lab.solutions import Check, LabStep, Source, with_other_number
from rprm_lab.worked import Pen, parsed, worked

HEADINGS = ("Previous steps", "This step", "Data source", "Consistency", "Calculation", "Conclusion")
SAME, NOT_SAME = "That is the same.", "That is not the same."
#: Under a heading that a step has nothing for.
NOTHING = "Nothing."


@dataclass(frozen=True, slots=True)
class Faults:
    """How often an analysis goes wrong, and how.

    Attributes:
        reading: the calculation that the problem asks for is misread, or taken from the step unseen.
        slip: a move of a worked calculation is wrong, or the step's result is taken unseen.
        verdict: the verdict contradicts the analysis.
        systematic: share of the steps with a fault that have it in every analysis.
    """

    reading: float = 0.0
    slip: float = 0.0
    verdict: float = 0.0
    systematic: float = 0.0


@dataclass(frozen=True, slots=True)
class Written:
    """An analysis: its text up to the verdict line, and the verdict."""

    text: str
    verdict: bool


def analyse(checks: Sequence[Check], step_index: int, faults: Faults, *, step: str, seed: int) -> Written:
    """Write the analysis of a step.

    Args:
        checks: the truth about it.
        step_index: its 0-based place in the solution.
        faults: how fallible the analysis is.
        step: what identifies the step: its systematic faults depend on it alone.
        seed: of this analysis.
    """
    own = _stream(f"{seed}\0{step}")
    always = _stream(f"always\0{step}")

    def has(rate: float) -> random.Random | None:
        """The stream that makes the fault where the analysis has one at this rate."""
        systematic = always.random() < rate * faults.systematic
        if systematic:
            return always
        return own if own.random() < rate * (1.0 - faults.systematic) else None

    readings = [_Reading(check, step_index, has(faults.reading), has(faults.slip)) for check in checks]
    verdict = all(reading.holds for reading in readings)
    if has(faults.verdict):
        verdict = not verdict
    wrong = next((reading.wrong for reading in readings if not reading.holds), "Nothing is wrong.")
    return Written("\n".join([*_lines(readings), f"{HEADINGS[-1]}: {wrong}"]), verdict)


def criticise(steps: Sequence[LabStep], faults: Faults, *, solution: str, seed: int) -> tuple[str, int]:
    """Write the critique of a solution: each step, and its analysis on a line without headings, up to the first that is
    called wrong; and name its index, -1 for none. The steps are identified as `solution.0`, `solution.1`, ..."""
    lines = []
    for index, step in enumerate(steps):
        written = analyse(step.checks, index, faults, step=f"{solution}.{index}", seed=seed)
        bodies = (line.partition(": ")[2] for line in written.text.split("\n"))
        # The box repeats the index of the last check: no number is to be worked out for it.
        lines += [f"Step {index + 1}: {step.text}", f"Check {index}: {' '.join(b for b in bodies if b != NOTHING)}"]
        if not written.verdict:
            return "\n".join(lines), index
    return "\n".join(lines), -1


def describe(checks: Sequence[Check], step_index: int) -> str:
    """What an analysis looks at, from the truth: all that is needed and all that the step says, and no judgement."""
    readings = [_Reading(check, step_index, None, None, judging=False) for check in checks]
    return "\n".join(_lines(readings))


def _lines(readings: Sequence[_Reading]) -> list[str]:
    """Heading by heading, without the conclusion."""
    parts = [[getattr(reading, part) for reading in readings] for part in _PARTS]
    bodies = [" ".join(text for text in texts if text) or NOTHING for texts in parts]
    return [f"{heading}: {body}" for heading, body in zip(HEADINGS, bodies, strict=False)]


def verdict_line(verdict: bool, format_: VerdictFormat) -> str:
    return f"{format_.marker} {format_.yes if verdict else format_.no}"


_PARTS = ("previous", "this", "source", "consistency", "calculation")


class _Reading:
    """What an analysis says of one claim, heading by heading; `holds` is what it concludes.

    Without `judging` nothing is compared, and so nothing left out for what a comparison came to.
    """

    def __init__(
        self,
        check: Check,
        step_index: int,
        misread: random.Random | None,
        slip: random.Random | None,
        *,
        judging: bool = True,
    ) -> None:
        self.judging = judging
        self.previous = " ".join(check.carried(step_index))
        self.source = self.consistency = self.calculation = ""
        self.holds, self.wrong = True, ""
        match check.kind:
            case "plan":
                self.this = "It says what to find next."
            case "fact":
                self._fact(check, misread)
            case "answer":
                self._answer(check, misread)
            case "calculation":
                self._calculation(check, misread, slip)

    def _fact(self, check: Check, misread: random.Random | None) -> None:
        self.this = "It restates the problem."
        fact, said = str(check.needs), str(check.says)
        if misread is not None:
            fact = said if misread.random() < 0.5 else _changed(misread, fact)
        self.source = f"The problem says: {fact} The step says: {said}{self._compared(fact == said)}"
        if fact != said:
            self._fails("The step misreads the problem.")

    def _answer(self, check: Check, misread: random.Random | None) -> None:
        assert check.right is not None
        assert check.stated is not None
        right = check.right
        if misread is not None:
            right = check.stated if misread.random() < 0.5 else right + misread.choice((-1, 1, 10))
        self.this = "It gives the answer."
        self.consistency = (
            f"The problem asks how many {check.asks}. That is {right}. The answer is {check.stated}."
            f"{self._compared(right == check.stated)}"
        )
        if right != check.stated:
            self._fails("This is not what is asked for.")

    def _calculation(self, check: Check, misread: random.Random | None, slip: random.Random | None) -> None:
        assert check.needs is not None
        assert check.says is not None
        self.this = f"It finds how many {check.asks}."
        self.source = " ".join(f"The problem says: {fact}" for fact in check.facts)
        needs = check.needs
        if misread is not None:
            needs = check.says if misread.random() < 0.5 else _changed(misread, needs)
        same = _equal(needs, check.says)
        self.consistency = f"This takes {needs}. The step takes {check.says}.{self._compared(same)}"
        if not same and self.judging:
            self._fails(_why_not(needs, check.says, check.sources))
            return
        text, value = worked(*parsed(needs), pen=_pen(slip))
        if slip is not None and slip.random() < 0.5:
            # The step's result, taken unseen.
            assert check.stated is not None
            text, value = f"{text.rpartition(', ')[0]}, {check.stated}", check.stated
        self.calculation = f"{needs}: {text}. The step has {check.stated}.{self._compared(value == check.stated)}"
        if value != check.stated:
            self._fails("The calculation is wrong.")

    def _compared(self, same: bool) -> str:
        return f" {SAME if same else NOT_SAME}" if self.judging else ""

    def _fails(self, why: str) -> None:
        self.holds, self.wrong = False, why


def _stream(key: str) -> random.Random:
    return random.Random(int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest()))


def _pen(slip: random.Random | None) -> Pen:
    """A pen that slips once, at the first move."""
    if slip is None:
        return lambda move, value: value
    waiting = [slip]

    def write(move: str, value: int) -> int:
        return abs(value + waiting.pop().choice((-1, 1))) if waiting else value

    return write


def _changed(rng: random.Random, text: str) -> str:
    """A sentence or a calculation with one of its numbers made larger; as it was where that cannot be worked."""
    changed = with_other_number(rng, text, lambda number: number + rng.choice((1, 2, 10)))
    return changed if changed is not None and _solvable(changed) else text


def _solvable(text: str) -> bool:
    """Whether a text is no calculation, or one that can be worked digit by digit."""
    pieces = text.split(" ")
    if len(pieces) != 3 or pieces[1] not in "+-*/":
        return True
    try:
        worked(*parsed(text))
    except ValueError:
        return False
    return True


def _equal(needs: str, says: str) -> bool:
    """Whether two calculations are the same, but for the order of what is added or multiplied."""
    first, second = needs.split(" "), says.split(" ")
    return first == second or (first[1] in "+*" and first == second[::-1])


def _why_not(needs: str, says: str, sources: Sequence[Source]) -> str:
    first, second = needs.split(" "), says.split(" ")
    if first[1] != second[1]:
        return "The operation is wrong."
    carried = {str(source.value) for source in sources if source.step is not None}
    missing = {first[0], first[2]} - {second[0], second[2]}
    return "A value is carried over wrongly." if missing & carried else "A number is not from the problem."
