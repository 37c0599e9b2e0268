"""The layout of training instructions: the fixed text around a problem, its previous steps and the step to judge.

Nothing is known of the fixed text. The numbers 1, 2, ..., n of the steps show where each row's parts lie; what the
parts of nearly all rows have in common at their ends is the fixed text between them. Three layouts are told apart:

- the step to judge is numbered like the previous steps, with fixed text between them and it (R-PRM's own);
- the same, but it is not numbered, or in another way;
- it is simply the last step of one list.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from rprm.prompts.template import PromptTemplate, literal
from rprm.verdict import VerdictFormat

ONE_PROBLEM = "all rows are about one problem, which cannot be told from the fixed text; give rows of several problems"


class Unclear(Exception):
    """What the rows do not show."""


class _OtherLayout(Unclear):
    """Why the rows cannot have one of the layouts; another may tell more."""


#: Special tokens of chat formats: instructions with these in their fixed text are whole texts.
_SPECIAL_TOKEN = re.compile(r"<\|[^|>\s]+\|>|\[/?INST\]|<</?SYS>>|<(?:start|end)_of_turn>|<｜[^｜>]+｜>")


@dataclass(frozen=True)
class Layout:
    """Fixed texts in their order; `mark` in them stands for the number of the step to judge.

    `no_previous` and `to_step` are None where that step is simply the last listed one.
    """

    mark: str
    before: str
    between: str
    no_previous: str | None
    to_step: str | None
    after: str
    label: tuple[str, str]
    tail: str
    separator: str

    def template(self, name: str, system: str, verdict: VerdictFormat, chat: bool | None) -> PromptTemplate:
        def fixed(text: str | None) -> str:
            return literal(text or "").replace(self.mark, "{{step_number}}")

        texts = (self.before, self.between, self.to_step or "", self.after)
        if chat is None:
            chat = not any(_SPECIAL_TOKEN.search(text) for text in texts)
        listed = "{{steps}}" if self.to_step is None else "{{previous_steps}}" + fixed(self.to_step) + "{{step}}"
        user = f"{fixed(self.before)}{{{{problem}}}}{fixed(self.between)}{listed}{fixed(self.after)}"
        opening, closing = (literal(text) for text in self.label)
        kept = {} if self.no_previous is None else {"no_previous_steps": self.no_previous}
        return PromptTemplate(
            name=name,
            user=user,
            system=system,
            step_format=f"{opening}{{{{number}}}}{closing}{{{{step}}}}{literal(self.tail)}",
            step_separator=self.separator,
            verdict=verdict,
            chat=chat,
            **kept,
        )

    def parse(self, text: str) -> tuple[str, list[str]] | None:
        """The problem and the steps, the judged one last; None where the text does not follow the layout."""
        highest = 0
        while self._label(highest + 1) in text:
            highest += 1
        for number in range(highest + 1, 0, -1):
            if found := self._parse_as(text, number):
                return found
        return None

    def _parse_as(self, text: str, number: int) -> tuple[str, list[str]] | None:
        fixed = (self.before, self.between, self.after)
        before, between, after = (part.replace(self.mark, str(number)) for part in fixed)
        if not (text.startswith(before) and text.endswith(after) and len(text) >= len(before) + len(after)):
            return None
        core = text[len(before) : len(text) - len(after)]
        if self.to_step is None or self.no_previous is None:
            return self._parse_listed(core, between, number)
        to_step = self.to_step.replace(self.mark, str(number))
        for at in _occurrences(core, to_step):
            left, step = core[:at], core[at + len(to_step) :]
            if number > 1:
                if listed := self._parse_listed(left, between, number - 1):
                    return listed[0], [*listed[1], step]
            elif left.endswith(between + self.no_previous):
                return left[: len(left) - len(between + self.no_previous)], [step]
        return None

    def _parse_listed(self, text: str, between: str, count: int) -> tuple[str, list[str]] | None:
        """Take apart a problem and then `count` listed steps."""
        if not text.endswith(self.tail):
            return None
        text = text[: len(text) - len(self.tail)]
        head = between + self._label(1)
        for at in _occurrences(text, head):
            steps = []
            start = at + len(head)
            for number in range(2, count + 1):
                joint = self.tail + self.separator + self._label(number)
                end = text.find(joint, start)
                if end < 0:
                    break
                steps.append(text[start:end])
                start = end + len(joint)
            else:
                return text[:at], [*steps, text[start:]]
        return None

    def _label(self, number: int) -> str:
        return f"{self.label[0]}{number}{self.label[1]}"

    def explain(self, text: str) -> str:
        """Where a text that does not parse leaves the layout."""
        start = self.before.partition(self.mark)[0]
        if not text.startswith(start):
            at = _shared_length(text, start)
            return f"at character {at} stands {text[at : at + 40]!r} instead of {start[at : at + 40]!r}"
        end = self.after.rpartition(self.mark)[2]
        if not text.endswith(end):
            at = _shared_length(text[::-1], end[::-1])
            found, wanted = text[: len(text) - at][-40:], end[: len(end) - at][-40:]
            return f"{at} characters before its end stands {found!r} instead of {wanted!r}"
        for part in (self.between, self.to_step or ""):
            for piece in part.split(self.mark):
                if piece not in text:
                    return f"it has no {piece!r:.80}"
        return f"its steps are not numbered {self._label(1)!r}, {self._label(2)!r}, ... up to the one to judge"


def derive_layout(texts: Sequence[str]) -> Layout:
    """Find the fixed texts of different instructions.

    Several readings are tried: the likeliest kinds of numbers, both places where the step to judge can stand, strict
    and lenient agreement. The best one explains most: it leaves the fewest characters to the problems and steps, where
    a text that does not follow it counts in full.

    Raises:
        Unclear: what is missing.
    """
    if len(texts) < _MIN_TEXTS:
        raise Unclear(
            f"only {len(texts)} instructions differ, and fewer than {_MIN_TEXTS} can agree by chance; read more"
        )
    texts = texts[:: -(-len(texts) // _MAX_TEXTS)]
    characters = set("".join(texts))
    mark = next(chr(code) for code in range(0xE000, 0xF900) if chr(code) not in characters)
    best, least = None, math.inf
    unclear: Unclear | None = None
    for seed, chains in _find_numbers(texts):
        for quorum in _QUORUMS:
            reading = _Reading(mark, seed, chains, quorum)
            for layouts in (reading.separate, reading.listed):
                try:
                    layout = layouts()
                except Unclear as error:
                    if unclear is None or isinstance(unclear, _OtherLayout):
                        unclear = error
                    continue
                cost = sum(_free_length(layout, text) for text in texts)
                if cost <= least:
                    best, least = layout, cost
    if best is None:
        raise unclear or Unclear("no row lists steps numbered 1, 2, ...")
    return best


#: How many different instructions it takes, and how many are enough, to derive from (all are verified).
_MIN_TEXTS, _MAX_TEXTS = 20, 400
#: Shares of texts that must agree on each character of the fixed text.
_QUORUMS = (0.95, 0.85, 0.7)


def _free_length(layout: Layout, text: str) -> int:
    parts = layout.parse(text)
    return len(text) if parts is None else len(parts[0]) + sum(map(len, parts[1]))


@dataclass(frozen=True, slots=True)
class _Chain:
    """A text in which the numbers 1, 2, ..., m of one kind stand in order, at `spans`; m may be 0."""

    text: str
    spans: list[tuple[int, int]]


#: A number with what stands right around it: letters and at most one more character, or a line end, before it; any one
#: character after.
_NUMBER = re.compile(r"([^\W\d_]{0,20}[^\w\n]?|\n)(?<!\d)([1-9][0-9]{0,3})(?=(\D))")


def _find_numbers(texts: Sequence[str]) -> list[tuple[str, list[_Chain]]]:
    """How steps may be numbered (the text right before the number), the likeliest first, with the texts that show it.

    The steps' numbers are those that count 1, 2, ..., m in most texts, with a varying m. Texts where the same label
    stands elsewhere too (a problem that speaks of "Step 2:") are left out.
    """
    opening, closing = (agreed(texts, _QUORUMS[0], backward=backward) for backward in (False, True))
    found: list[tuple[str, dict[tuple[str, str], list[tuple[int, int, int]]]]] = []
    counts: dict[tuple[str, str], Counter[int]] = {}
    for text in texts:
        if not (text.startswith(opening) and text.endswith(closing)):
            continue
        numbers: dict[tuple[str, str], list[tuple[int, int, int]]] = {}
        for match in _NUMBER.finditer(text, len(opening), max(len(opening), len(text) - len(closing))):
            numbers.setdefault((match[1], match[3]), []).append((int(match[2]), *match.span(2)))
        for kind, places in numbers.items():
            if chain := _counting(places):
                counts.setdefault(kind, Counter())[len(chain)] += 1
        found.append((text, numbers))

    def variety(kind: tuple[str, str]) -> tuple[int, int]:
        return counts[kind].total() - max(counts[kind].values()), counts[kind].total()

    kinds = sorted(counts, key=variety, reverse=True)[:3]
    if not kinds:
        raise Unclear("no row lists steps numbered 1, 2, ...")
    if len(counts[kinds[0]]) < 2 or counts[kinds[0]].total() < 0.2 * len(texts):
        label = "1".join(kinds[0]).strip()
        raise Unclear(
            f"the steps' numbers (like {label!r}) do not run 1, 2, ... to different lengths in enough rows; rows that "
            "judge a first, a second, a third and a later step are needed"
        )
    chains = []
    for kind in kinds:
        counted = ((text, _counting(numbers.get(kind, []))) for text, numbers in found)
        chains.append(
            (kind[0].removeprefix("\n"), [_Chain(text, spans) for text, spans in counted if spans is not None])
        )
    return chains


def _counting(places: Sequence[tuple[int, int, int]]) -> list[tuple[int, int]] | None:
    """Spans of the numbers if they are 1, 2, ..., m; of the last, which may be named more than once, the last place."""
    numbers = [number for number, *_ in places]
    last = max(numbers, default=0)
    if numbers[:last] != list(range(1, last + 1)) or any(number != last for number in numbers[last:]):
        return None
    return [place[1:] for place in [*places[: last - 1], places[-1]]] if last else []


@dataclass(frozen=True, slots=True)
class _Cut:
    """A text that judges step `number`: the places of the previous steps' numbers, and from where to where the step's
    own label stands (an empty place where the fixed text before it ends in none)."""

    text: str
    number: int
    spans: list[tuple[int, int]]
    label: tuple[int, int]


@dataclass(frozen=True)
class _Reading:
    """One way to read the rows: `seed` stands right before the steps' numbers; a share `quorum` must agree."""

    mark: str
    seed: str
    chains: Sequence[_Chain]
    quorum: float

    def separate(self) -> Layout:
        """The layouts with fixed text between the previous steps and the step to judge."""
        num_unnumbered = sum(not chain.spans for chain in self.chains)
        if num_unnumbered > max(1, 0.02 * len(self.chains)):
            own_label, cut = "", self._cut_at_core()
        else:
            own_label, cut = self.seed + self.mark, self._cut_at_number()
        firsts = [row for row in cut if row.number == 1]
        laters = [row for row in cut if row.number > 1]
        if not firsts:
            raise Unclear("no row judges a first step, so that the text for 'no previous steps' is missing; read more")
        if not laters:
            raise Unclear("every row judges a first step, so that the layout of previous steps is missing; read more")
        joints = [joint for row in laters for joint in self._joints(row.text, row.spans)]
        if not joints:
            raise Unclear("no row has two previous steps, so that what separates them is missing; read more")
        texts = [row.text for row in cut]
        rests = [row.text[row.label[1] :] for row in cut]
        numbers = [row.number for row in cut]
        later_numbers = [row.number for row in laters]

        raw_before = self._agreed(texts, numbers)
        heads = [self._until(row.text, row.spans[0]) for row in laters]
        raw_between = self._agreed(heads, later_numbers, backward=True)
        raw_to_step = self._agreed(
            [row.text[row.spans[-1][1] : row.label[0]] for row in laters], later_numbers, backward=True
        )
        raw_from_label = self._agreed(rests, numbers)
        raw_after = self._agreed(rests, numbers, backward=True)

        before, between = _enclose(_to_label(raw_before, texts, self.mark), raw_before, raw_between)
        _check_room(heads, before, between)
        joint = _close(between, self._agreed(joints, backward=True))
        to_step = _close(between, raw_to_step)
        bullet = self._bullet(between, joint)
        between, joint = between.removesuffix(bullet), joint.removesuffix(bullet)

        # A row of a first step is: problem, between, no_previous, to_step. Its number 1 is as long as the mark.
        raw_first = self._agreed([row.text[: row.label[0]] for row in firsts], backward=True)
        at = raw_first.find(between.replace(self.mark, "1"))
        if at < 0:
            raise Unclear(f"rows of later steps have {between!r:.80} before previous steps, rows of first steps do not")
        rest = raw_first[at + len(between) :]
        shared = _shared_length(to_step.replace(self.mark, "1")[::-1], rest[::-1])
        tail, to_step = to_step[: len(to_step) - shared], to_step[len(to_step) - shared :]
        if rest == to_step and to_step in ("", bullet):
            raise _OtherLayout("no fixed text stands between the previous steps and the step to judge")
        if not joint.startswith(tail):
            raise Unclear(f"rows of later steps have {tail!r:.80} after previous steps, rows of first steps do not")

        # A quote around the step may open before its label, or after it.
        after = _close(to_step, raw_after)
        raw_to_step = to_step + own_label + raw_from_label
        to_step, enclosing = _enclose(_to_label(raw_to_step, rests, self.mark), raw_to_step, raw_after)
        after = max(after, enclosing, key=len)
        if not to_step:
            raise Unclear("no fixed text stands between the previous steps and the step to judge")
        starts = [row.text[end : row.label[0]] for row in laters for _, end in row.spans]
        return Layout(
            mark=self.mark,
            before=before,
            between=between,
            no_previous=rest[: len(rest) - shared],
            to_step=to_step,
            after=after,
            label=(bullet + self.seed, _punctuation(self._agreed(starts))),
            tail=tail,
            separator=joint.removeprefix(tail),
        )

    def listed(self) -> Layout:
        """The layout in which the step to judge is the last of one list."""
        rows = [chain for chain in self.chains if chain.spans]
        texts = [row.text for row in rows]
        numbers = [len(row.spans) for row in rows]
        joints = [self._joints(row.text, row.spans) for row in rows if len(row.spans) > 1]
        if not joints:
            raise Unclear("every row judges a first step, so that the layout of previous steps is missing; read more")
        raw_joint = self._agreed([own[-1] for own in joints], backward=True)
        inner = [joint for own in joints for joint in own[:-1]]
        if inner and _from_space(self._agreed(inner, backward=True)) != _from_space(raw_joint):
            raise _OtherLayout("the step to judge is not one more step of the list")
        heads = [(self._until(row.text, row.spans[0]), len(row.spans)) for row in rows]
        later_heads = [head for head, number in heads if number > 1]
        first_heads = [head for head, number in heads if number == 1]
        raw_between = self._agreed(later_heads, [number for number in numbers if number > 1], backward=True)
        if first_heads:
            raw_first = self._agreed(first_heads, backward=True)
            if _from_space(raw_first) != _from_space(raw_between).replace(self.mark, "1"):
                raise _OtherLayout("the first step is not announced as the first of longer lists is")
        rests = [row.text[row.spans[-1][1] :] for row in rows]
        raw_after = self._agreed(rests, numbers, backward=True)
        ends = self._without_end(rests, raw_after, numbers)
        core = self._core([ends], inner or [own[-1] for own in joints], least=12)
        if core is not None:
            raise Unclear(f"no row judges a first step: every one has {core!r:.60} after its previous steps; read more")

        raw_before = self._agreed(texts, numbers)
        before, between = _enclose(_to_label(raw_before, texts, self.mark), raw_before, raw_between)
        _check_room([head for head, _ in heads], before, between)
        joint = _close(between, raw_joint)
        bullet = self._bullet(between, joint)
        starts = [row.text[end:] for row in rows for _, end in row.spans]
        return Layout(
            mark=self.mark,
            before=before,
            between=between.removesuffix(bullet),
            no_previous=None,
            to_step=None,
            after=_close(between, raw_after),
            label=(bullet + self.seed, _punctuation(self._agreed(starts))),
            tail="",
            separator=joint.removesuffix(bullet),
        )

    def _cut_at_number(self) -> list[_Cut]:
        """The step to judge is numbered like the previous ones: its number is the last of the chain."""
        return [
            _Cut(row.text, len(row.spans), row.spans[:-1], (row.spans[-1][0] - len(self.seed), row.spans[-1][1]))
            for row in self.chains
            if row.spans
        ]

    def _cut_at_core(self) -> list[_Cut]:
        """The step to judge has no number of that kind: find the fixed words that announce it."""
        opening = self._agreed([row.text for row in self.chains])
        rests = [row.text[row.spans[-1][1] if row.spans else len(opening) :] for row in self.chains]
        numbers = [len(row.spans) + 1 for row in self.chains]
        raw_after = self._agreed(rests, numbers, backward=True)
        inner = [joint for row in self.chains for joint in self._joints(row.text, row.spans)]
        # Rows of first steps have it too, few as they may be.
        groups = []
        for is_first in (True, False):
            own = [(rest, number) for rest, number in zip(rests, numbers, strict=True) if (number == 1) is is_first]
            groups.append(self._without_end([rest for rest, _ in own], raw_after, [number for _, number in own]))
        core = self._core(groups, inner)
        if core is None:
            raise Unclear("no fixed text stands between the previous steps and the step to judge")
        cut = []
        for row, rest, number in zip(self.chains, rests, numbers, strict=True):
            ends = self._without_end([rest], raw_after, [number])
            if ends and ends[0].count(core) == 1:
                at = len(row.text) - len(rest) + rest.index(core) + len(core)
                cut.append(_Cut(row.text, number, row.spans, (at, at)))
        return cut

    def _agreed(self, texts: Sequence[str], numbers: Sequence[int] | None = None, *, backward: bool = False) -> str:
        return agreed(texts, self.quorum, numbers, self.mark, backward=backward)

    def _until(self, text: str, span: tuple[int, int]) -> str:
        return text[: span[0] - len(self.seed)]

    def _joints(self, text: str, spans: Sequence[tuple[int, int]]) -> list[str]:
        """What stands from each number to the next one's label."""
        return [text[end : start - len(self.seed)] for (_, end), (start, _) in pairwise(spans)]

    def _without_end(self, texts: Sequence[str], end: str, numbers: Sequence[int]) -> list[str]:
        """Those texts that end so, without that end."""
        ends = [end.replace(self.mark, str(number)) for number in numbers]
        return [text[: len(text) - len(own)] for text, own in zip(texts, ends, strict=True) if text.endswith(own)]

    def _bullet(self, between: str, joint: str) -> str:
        """What stands before the number at the first and at later steps alike: `- `, `**`, `<step id=`."""
        same = agreed([between, joint], 1.0, backward=True).rpartition(self.mark)[2]
        return same.rpartition("\n")[2].lstrip(" \t>)].,;:|/")

    def _core(self, groups: Sequence[Sequence[str]], elsewhere: Sequence[str], least: int = 4) -> str | None:
        """The longest text that most of each group hold and hardly any of `elsewhere`; None without one."""
        texts = sorted((text for group in groups for text in group), key=len)
        if not texts:
            return None
        reference = texts[int((1 - self.quorum) * len(texts))]

        def is_shared(core: str) -> bool:
            for group in groups:
                allowed = len(group) - _needed(len(group), self.quorum)
                for text in group:
                    allowed -= core not in text
                    if allowed < 0:
                        return False
            return True

        cores = []
        end = 0
        for start in range(len(reference) - least + 1):
            low, high = max(end, start + least), len(reference)
            if not is_shared(reference[start:low]):
                continue
            while low < high:
                middle = (low + high + 1) // 2
                low, high = (middle, high) if is_shared(reference[start:middle]) else (low, middle - 1)
            if low > end:
                cores.append(reference[start:low])
                end = low
        cores.sort(key=len, reverse=True)
        return next((c for c in cores if sum(c in text for text in elsewhere) <= 0.05 * len(elsewhere)), None)


def _check_room(heads: Sequence[str], before: str, between: str) -> None:
    """Each head holds what stands before the problem, the problem, and what stands after it."""
    if all(len(head) <= len(before) + len(between) for head in heads):
        raise Unclear(ONE_PROBLEM)


# --- fixed text ---------------------------------------------------------------------------------------------------


def _needed(count: int, quorum: float) -> int:
    return math.ceil(quorum * count)


def agreed(
    texts: Sequence[str], quorum: float, numbers: Sequence[int] | None = None, mark: str = "", *, backward: bool = False
) -> str:
    """The longest beginning (or end) that a share `quorum` of the texts has.

    With `numbers`, texts may differ where each has its own number; there stands `mark`.
    """
    if backward:
        texts = [text[::-1] for text in texts]
    digits = [str(number)[::-1] if backward else str(number) for number in numbers or ()]
    needed = _needed(len(texts), quorum)
    alive = dict.fromkeys(range(len(texts)), 0)
    pieces = []
    while alive:
        rests = [texts[index][at:] for index, at in alive.items()]
        length = _shared_length(min(rests), max(rests))
        pieces.append(rests[0][:length])
        alive = {index: at + length for index, at in alive.items()}
        following = Counter(texts[index][at] for index, at in alive.items() if at < len(texts[index]))
        character, count = following.most_common(1)[0] if following else ("", 0)
        if count >= needed:
            alive = {index: at for index, at in alive.items() if texts[index][at : at + 1] == character}
            continue
        numbered = {
            index: at + len(digits[index])
            for index, at in alive.items()
            if digits and texts[index].startswith(digits[index], at)
        }
        if len(numbered) < max(needed, 1):
            break
        pieces.append(mark)
        alive = numbered
    agreed = "".join(pieces)
    return agreed[::-1] if backward else agreed


def _shared_length(left: str, right: str) -> int:
    pairs = enumerate(zip(left, right, strict=False))
    return next((index for index, (a, b) in pairs if a != b), min(len(left), len(right)))


#: What sentences and formulas end in. Texts that all end so share it by chance: it belongs to them.
_ENDINGS = re.compile(r"[\w.?!:$%)}\]\\'\"*`]*")
#: The end of a label such as "Problem:", "<problem>", "[Problem]".
_LABEL_END = r"[:>\]]"
_PAIRS = str.maketrans("([{<", ")]}>")
_OPENERS = re.compile(r"[\"'`*\[({]*")


def _from_space(text: str) -> str:
    """The end that texts have in common, without what ends their sentences."""
    match = _ENDINGS.match(text)
    return text[match.end() :] if match else text


def _to_label(text: str, texts: Sequence[str], mark: str) -> str:
    """The beginning that texts have in common, without words that the values after it all begin with by chance.

    Fixed text ends in a line end, or in a label (`Problem: `), or, where very many values begin in many ways, anywhere.
    """
    line = text[text.rfind("\n") + 1 :]
    if not line.strip():
        return text
    labels = list(re.finditer(rf"(?:{mark}[ \t]*[^\w\s]*|{_LABEL_END})[*_]*[ \t]*", line))
    if labels:
        return text[: len(text) - len(line) + labels[-1].end()]
    following = {other[len(text) : len(text) + 30] for other in texts}
    if line[-1].isspace() and len(following) >= 30 and len({value[:1] for value in following}) >= 12:
        return text
    return text[: len(text) - len(line)]


def _enclose(opening: str, raw_opening: str, raw_closing: str) -> tuple[str, str]:
    """Give quotes and brackets around a value back to the fixed text on both its sides."""
    closing = _from_space(raw_closing)
    lost = raw_closing[: len(raw_closing) - len(closing)]
    match = _OPENERS.match(raw_opening, len(opening))
    run = match[0] if match else ""
    for length in range(len(run), 0, -1):
        if lost.endswith(_mirrored(run[:length])):
            return opening + run[:length], _mirrored(run[:length]) + closing
    return opening, _close(opening, raw_closing)


def _close(opening: str, raw_closing: str) -> str:
    """The fixed text after a value, with the quotes and brackets that `opening` opened right before it."""
    closing = _from_space(raw_closing)
    lost = raw_closing[: len(raw_closing) - len(closing)]
    openers = re.search(r"[\"'`*\[({]*\Z", opening)
    run = openers[0] if openers else ""
    for length in range(len(run), 0, -1):
        if lost.endswith(_mirrored(run[-length:])):
            return _mirrored(run[-length:]) + closing
    return closing


def _mirrored(run: str) -> str:
    return run[::-1].translate(_PAIRS)


def _punctuation(text: str) -> str:
    match = re.match(r"[ \t]*[^\w\s]*\s*", text)
    return match[0] if match else ""


def _occurrences(text: str, part: str) -> Iterator[int]:
    at = text.find(part)
    while at >= 0:
        yield at
        at = text.find(part, at + 1)
