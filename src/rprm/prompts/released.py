"""Derive a released model's prompt template from the rows it was trained on, and prove it on the same rows.

Nothing is known of the fixed text. The numbers 1, 2, ... of the steps show where a row's parts lie; what the parts of a
few rows have in common at their ends is fixed text. Of the candidates found so, the one that leaves least to problems
and steps is taken. It must take every row apart and render it again: only byte-for-byte equality counts.
"""

from __future__ import annotations

import math
import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

from rprm.errors import PromptError
from rprm.prompts.template import PromptTemplate, literal, shared_start
from rprm.verdict import VerdictFormat

if TYPE_CHECKING:
    from rprm.reading import Instruction, Rejected, Row

ONE_PROBLEM = "all rows are about one problem, which cannot be told from the fixed text; give rows of several problems"


@dataclass(frozen=True)
class ImportedTemplate:
    """A derived template and its proof.

    Attributes:
        template: what was derived.
        num_rows, num_exact: rows read, and those that the template renders byte for byte.
        num_problems: different problems among the latter.
        num_outputs, num_verdicts: outputs, and those with a verdict after the template's marker.
        differences: the first five rows that were not rendered exactly, with their lines and how they differ.
        doubts: what so many problems or steps share that it looks like fixed text of a second layout.
        source: where the rows came from; for a hub data set with its revision. Empty for rows given as such.
    """

    template: PromptTemplate
    num_rows: int
    num_exact: int
    num_problems: int
    num_outputs: int
    num_verdicts: int
    differences: tuple[Rejected, ...]
    doubts: tuple[str, ...]
    source: str

    @property
    def proof(self) -> str:
        return f"{self.num_exact:,} of {self.num_rows:,} rows ({self.num_problems:,} problems) rendered exactly"

    def to_toml(self) -> str:
        """The template as a file's content, headed by where it comes from."""
        return f"# Derived by `rprm prompts import` from {self.source!a}: {self.proof}.\n{self.template.to_toml()}"


def import_template(
    source: str | Iterable[Mapping[str, Any] | Row],
    *,
    name: str,
    limit: int | None = 2000,
    marker: str | None = None,
    instruction_column: str | None = None,
    output_column: str | None = None,
    chat: bool | None = None,
    min_share: float = 0.99,
    accept_doubts: bool = False,
) -> ImportedTemplate:
    """Derive the template that made the instructions of training rows.

    Args:
        source: the rows, or what `rprm.reading.Source` reads (a hub data set's split `train`); see `read_instructions`.
        name: of the template.
        limit: the first rows alone, this many.
        marker: text before the verdict; by default what the outputs' last lines share before Yes or No.
        instruction_column, output_column: by default the first filled one of those that are usual.
        chat: False where instructions are whole texts; by default so where their fixed text has special tokens.
        min_share: of the rows that must render exactly.
        accept_doubts: whether problems or steps may seem to hold fixed text of a second layout.

    Raises:
        InputError: the source cannot be read.
        PromptError: the rows do not show all that a template needs, seem to follow several layouts, or render exactly
            in less than `min_share` of the cases.
    """
    from rprm import reading

    label = ""
    rows: Iterable[Mapping[str, Any] | Row | Rejected]
    if isinstance(source, str):
        reader = reading.Source(source, split="train").pinned()
        label = f"{reader.hub['path']}@{reader.hub['revision']}" if reader.hub else source
        rows = reader.rows()
    else:
        rows = source
    found = list(reading.read_instructions(islice(rows, limit), instruction_column, output_column))
    read = [row for row in found if isinstance(row, reading.Instruction)]
    differences = [row for row in found if isinstance(row, reading.Rejected)]
    if not read:
        raise PromptError(
            f"{name}: no row has an instruction: {differences[0].reason if found else 'there are no rows'}"
        )
    systems = Counter(row.system for row in read)
    [(system, num_agreed)] = systems.most_common(1)
    if num_agreed < min_share * len(read):
        raise PromptError(f"{name}: the rows have {len(systems)} different system messages; a template has one")
    outputs = [row.output for row in read if row.output is not None]
    try:
        verdict = VerdictFormat(marker) if marker is not None else _derive_verdict(outputs)
        base = PromptTemplate(name, "{{problem}}{{steps}}", system=system, verdict=verdict)
        template = _derive(list(dict.fromkeys(row.text for row in read)), base, chat)
    except _Unclear as error:
        raise PromptError(f"{name}: no template can be derived from {len(found)} rows: {error}") from None
    values = _proved(template, read, differences)
    differences.sort(key=lambda row: row.line)
    num_exact = len(found) - len(differences)
    if num_exact < min_share * len(found):
        shown = "".join(f"\n  row {row.line}: {row.reason}" for row in differences[:5])
        raise PromptError(
            f"{name}: only {num_exact} of {len(found)} rows follow the derived template, less than {min_share:.0%}; "
            f"leave out rows of another kind, or accept a smaller share:{shown}"
        )
    num_problems = len(values["problems"])
    if num_problems < 2:
        raise PromptError(f"{name}: {ONE_PROBLEM}")
    doubts = tuple(doubt for what, seen in values.items() for doubt in _doubts(what, seen))
    if doubts and not accept_doubts:
        raise PromptError(
            f"{name}: the rows seem to follow more than one layout: {'; '.join(doubts)}; keep the rows of one, or, if "
            "that is no fixed text, give --accept-doubts (argument `accept_doubts`)"
        )
    num_verdicts = sum(verdict.find(output) is not None for output in outputs)
    return ImportedTemplate(
        template, len(found), num_exact, num_problems, len(outputs), num_verdicts, (*differences[:5],), doubts, label
    )


def _proved(template: PromptTemplate, rows: Iterable[Instruction], differences: list[Rejected]) -> dict[str, set[str]]:
    """The problems and steps of the rows that the template renders byte for byte; the others become `differences`."""
    values: dict[str, set[str]] = {"problems": set(), "previous steps": set(), "steps to judge": set()}
    for row in rows:
        parts = template.take_apart(row.text)
        if row.system != template.system:
            differences.append(row.rejected(f"its system message is another: {row.system!r:.60}"))
        elif parts is None or template.render(*parts, len(parts[1]) - 1).messages[-1].content != row.text:
            differences.append(row.rejected(template.difference(row.text)))
        else:
            for seen, new in zip(values.values(), ([parts[0]], parts[1][:-1], parts[1][-1:]), strict=True):
                seen.update(new)
    return values


def _doubts(what: str, values: set[str]) -> Iterator[str]:
    """Lines that many values begin or end with."""
    for verb, place in (("begin", 0), ("end", -1)):
        lines = Counter(text.strip().split("\n")[place] for text in values if "\n" in text.strip())
        for line, count in lines.most_common(1):
            if count >= 0.4 * len(values) and len(re.findall(r"\w", line)) >= 4:
                yield f"{count / len(values):.0%} of the {what} {verb} with the line {line[:80]!r}"


def _derive_verdict(outputs: Sequence[str]) -> VerdictFormat:
    """The marker is what the last lines of the outputs have in common before their last Yes or No."""
    advice = "name it with --marker (argument `marker`)"
    if not outputs:
        raise _Unclear(f"the rows have no outputs, which would show the marker before the verdict; {advice}")
    lines = [output.rstrip().rpartition("\n")[2] for output in outputs]
    found = [(line, list(re.finditer(r"(?<!\w)(yes|no)(?!\w)", line, re.IGNORECASE))) for line in lines]
    # Markup around the marker and the answer is no part of it: VerdictFormat reads over it.
    heads = [line[: words[-1].start()].rstrip(" \t*_:>`'\"$({[\\") for line, words in found if words]
    if len(heads) < 0.5 * len(outputs):
        raise _Unclear(f"only {len(heads)} of {len(outputs)} outputs end in a line with Yes or No; {advice}")
    marker = _agreed(heads, 0.9, backward=True).lstrip(" \t*_#>-.,;:!?)")
    if not marker:
        raise _Unclear(
            f"the outputs' last lines have nothing in common before Yes or No, as in {heads[0]!r:.60}; {advice}"
        )
    answers = Counter(words[-1][0] for _, words in found if words)
    spelled = {answer.casefold(): answer for answer, _ in reversed(answers.most_common())}
    return VerdictFormat(marker, spelled.get("yes", "Yes"), spelled.get("no", "No"))


# --- the fixed text -----------------------------------------------------------------------------------------------

#: Stands in fixed text for the number of the step to judge.
_MARK = "\ue000"
_SPECIAL_TOKEN = re.compile(r"<\|[^|>\s]+\|>|\[/?INST\]|<</?SYS>>|<(?:start|end)_of_turn>|<｜[^｜>]+｜>")
#: A number with what stands right around it: letters and at most one more character, or a line end, before it; any one
#: character after.
_NUMBER = re.compile(r"([^\W\d_]{0,20}[^\w\n]?|\n)(?<!\d)([1-9][0-9]{0,3})(?=(\D))")
#: What sentences and formulas end in: values that all end so share it by chance.
_ENDINGS = re.compile(r"[\w.?!:$%)}\]\\'\"*`]*")


_NO_OPENER = r"[^\"'`*\[({]"
_MIRROR = str.maketrans("([{<", ")]}>")

#: An instruction, and where its steps' labels lie, each up to the end of its number.
_Labelled = tuple[str, list[tuple[int, int]]]


class _Unclear(Exception):
    """What the rows do not show."""


class _Parts(NamedTuple):
    """A row cut at its steps' numbers: the step that it judges (1-based), what stands before the first label, from each
    number of a previous step to the next label, and after the number (or announcement) of the step to judge."""

    number: int
    head: str
    previous: list[str]
    last: str


def _derive(texts: Sequence[str], base: PromptTemplate, chat: bool | None) -> PromptTemplate:
    """The candidate that leaves the fewest characters to problems and steps (of a text it does not make, all).

    Candidates are read from a few rows each. A row that misleads (a step that quotes "Step 3:") is in some draws only.
    """
    if len(texts) < 20:
        raise _Unclear(f"only {len(texts)} instructions differ, and fewer than 20 can agree by chance; read more")
    texts = texts[:: -(-len(texts) // 300)]
    candidates: dict[PromptTemplate, None] = {}
    unclear: _Unclear | None = None
    draw = random.Random(0)
    for seed, rows in _numbered(texts):
        kinds = [[row for row in rows if min(len(row[1]), 3) == kind] for kind in range(4)]
        if len(kinds[0]) <= max(1, 0.02 * len(rows)):
            kinds[0] = []
        for size in (16,) * 4 + (8,) * 4 + (4,) * 12:
            some = [row for kind in kinds for row in draw.sample(kind, min(size, (len(kind) + 1) // 2))]
            try:
                candidates[_candidate(seed, some, base, chat, announced=bool(kinds[0]))] = None
            except _Unclear as error:
                unclear = unclear or error

    def free(template: PromptTemplate) -> int:
        taken = ((text, template.take_apart(text)) for text in texts[:: -(-len(texts) // 120)])
        return sum(len(text) if parts is None else len("".join((parts[0], *parts[1]))) for text, parts in taken)

    if not candidates:
        raise unclear or _Unclear("no row lists steps numbered 1, 2, ...")
    return min(candidates, key=free)


def _numbered(texts: Sequence[str]) -> Iterator[tuple[str, list[_Labelled]]]:
    """The likeliest texts right before the steps' numbers; with each, the instructions and where their labels lie.

    Steps' numbers count 1, 2, ..., m in most texts, with a varying m.
    """
    opening, closing = _agreed(texts, 0.95), _agreed(texts, 0.95, backward=True)
    counted: dict[tuple[str, str], dict[str, list[tuple[int, int]]]] = {}
    without: dict[str, set[tuple[str, str]]] = {}
    for text in texts:
        if not (text.startswith(opening) and text.endswith(closing)):
            continue
        places: dict[tuple[str, str], list[re.Match[str]]] = {}
        for match in _NUMBER.finditer(text, len(opening), max(len(opening), len(text) - len(closing))):
            places.setdefault((match[1], match[3]), []).append(match)
        without[text] = set(places)
        for kind, matches in places.items():
            numbers = [int(match[2]) for match in matches]
            last = max(numbers)
            # The last may be named more than once: the last place is the step's own.
            if numbers[:last] == [*range(1, last + 1)] and {*numbers[last:]} <= {last}:
                seed = len(kind[0].removeprefix("\n"))
                labels = [(match.start(2) - seed, match.end(2)) for match in (*matches[: last - 1], matches[-1])]
                counted.setdefault(kind, {})[text] = labels

    def variety(kind: tuple[str, str]) -> int:
        return len(counted[kind]) - Counter(map(len, counted[kind].values())).most_common(1)[0][1]

    likely = sorted(counted, key=variety, reverse=True)[:3]
    if likely and (not variety(likely[0]) or len(counted[likely[0]]) < 0.2 * len(texts)):
        raise _Unclear(
            f"the steps' numbers (like {'1'.join(likely[0]).strip()!r}) do not run 1, 2, ... to different lengths in "
            "enough rows; rows that judge a first, a second, a third and a later step are needed"
        )
    for kind in likely:
        unnumbered = [(text, list[tuple[int, int]]()) for text, kinds in without.items() if kind not in kinds]
        yield kind[0].removeprefix("\n"), [*counted[kind].items(), *unnumbered]


def _cut(rows: Iterable[_Labelled], announced: bool) -> Iterator[_Parts]:
    """Rows in parts. `announced`: fixed words tell the step to judge, in place of a number like the previous steps'."""
    cuts = []
    for text, labels in rows:
        ends = [*(start for start, _ in labels[1:]), len(text)]
        *previous, last = [text[start:end] for (_, start), end in zip(labels, ends, strict=False)] or [text]
        cuts.append(_Parts(len(labels) + announced, text[: labels[0][0]] if labels else "", previous, last))
    words = _core([(cut.last, cut.number) for cut in cuts]) if announced else ""
    if announced and len(words) < 4:
        raise _Unclear("no fixed text stands between the previous steps and the step to judge")
    for cut in cuts:
        if not announced:
            yield cut
        elif cut.last.count(words) == 1:
            lead, _, last = cut.last.partition(words)
            head, previous = (cut.head, [*cut.previous, lead + words]) if cut.head else (lead + words, [])
            yield _Parts(cut.number, head, previous, last)


def _candidate(
    seed: str, rows: list[_Labelled], base: PromptTemplate, chat: bool | None, announced: bool
) -> PromptTemplate:
    """The template that these rows show."""
    parts = list(_cut(rows, announced))
    firsts, later = ([row for row in parts if (row.number == 1) is first] for first in (True, False))
    joints = [(joint, 0) for row in later for joint in row.previous[:-1]]
    if not joints:
        raise _Unclear("no row has two previous steps, so that what separates them is missing; read more")
    heads, lasts = [(row.head, row.number) for row in parts], [(row.last, row.number) for row in parts]
    raw_before, raw_step, raw_after = _shared(heads), _shared(lasts), _shared(lasts, backward=True)
    before, between = _enclosed(
        _to_label(raw_before, {head[len(raw_before) :][:30] for head, _ in heads}),
        raw_before,
        _shared([(row.head, row.number) for row in later], backward=True),
    )
    if all(len(row.head) <= len(before) + len(between) for row in later):
        raise _Unclear(ONE_PROBLEM)
    leads = [(row.previous[-1], row.number) for row in later]
    joint, lead = (_enclosed(between, between, _shared(some, backward=True))[1] for some in (joints, leads))
    # What stands before the number at the first and at later steps alike: `- `, `**`, `<step id=`.
    bullet = shared_start(between[::-1], joint[::-1])[::-1].rpartition("\n")[2].lstrip(" \t>)].,;:|/")
    between, joint = between.removesuffix(bullet), joint.removesuffix(bullet)
    # A row of a first step has: problem, between, no previous steps, lead. Its number 1 is as long as the mark.
    first = _shared([(row.head, 1) for row in firsts], backward=True)
    at = first.find(between.replace(_MARK, "1"))
    rest = first[at + len(between) :]
    tail, no_previous = "", base.no_previous_steps
    if lead.removesuffix(bullet) == joint and (not firsts or rest == bullet):
        core = _core(lasts)
        if len(core) >= 12 and not any(core in text for text, _ in joints):
            raise _Unclear(
                f"no row judges a first step: every one has {core!r:.60} after its previous steps; read more"
            )
        listed, after = "{{steps}}", _enclosed(between, between, raw_after)[1]
    elif not firsts:
        raise _Unclear("no row judges a first step, so that the text for 'no previous steps' is missing; read more")
    else:
        size = len(shared_start(lead.replace(_MARK, "1")[::-1], rest[::-1]))
        tail, lead = lead[: len(lead) - size], lead[len(lead) - size :]
        no_previous = rest[: len(rest) - size]
        if at < 0 or not joint.startswith(tail):
            raise _Unclear(
                f"rows of later steps have {between!r:.80} before previous steps, rows of first steps do not"
            )
        # A quote around the step may open before its label, or after it.
        values = {last[len(raw_step) :][:30] for last, _ in lasts}
        raw_step = lead + ("" if announced else seed + _MARK) + raw_step
        step, enclosing = _enclosed(_to_label(raw_step, values), raw_step, raw_after)
        after = max(_enclosed(lead, lead, raw_after)[1], enclosing, key=len)
        listed = "{{previous_steps}}" + literal(step) + "{{step}}"
    close = re.match(r"[ \t]*[^\w\s]*\s*", _shared([(text, 0) for row in parts for text in row.previous]))
    user = literal(before) + "{{problem}}" + literal(between) + listed + literal(after)
    label = literal(bullet + seed) + "{{number}}" + literal(close[0] if close else "")
    return replace(
        base,
        user=user.replace(_MARK, "{{step_number}}"),
        chat=not _SPECIAL_TOKEN.search(user) if chat is None else chat,
        step_format=label + "{{step}}" + literal(tail),
        step_separator=joint.removeprefix(tail),
        no_previous_steps=no_previous,
    )


def _agreed(texts: Iterable[str], quorum: float, *, backward: bool = False) -> str:
    """The longest beginning (or end) that a share `quorum` of the texts has."""
    ordered = sorted(text[::-1] if backward else text for text in texts)
    size = math.ceil(quorum * len(ordered))
    # Texts with a common beginning stand next to each other.
    agreed = max((shared_start(*ends) for ends in zip(ordered, ordered[size - 1 :], strict=False)), key=len, default="")
    return agreed[::-1] if backward else agreed


def _shared(texts: Iterable[tuple[str, int]], *, backward: bool = False) -> str:
    """The beginning (or end) that all texts have; `_MARK` where each has its own number."""
    way = -1 if backward else 1
    columns = zip(*(re.findall(r"\d+|\D+", text[::way]) for text, _ in texts), strict=False)
    numbers = tuple(str(number)[::way] for _, number in texts)
    pieces = []
    for column in columns:
        same = shared_start(*column)
        pieces.append(_MARK if column == numbers and len(set(column)) > 1 else same)
        if pieces[-1] != _MARK and len(set(column)) > 1:
            break
    return "".join(pieces)[::way]


def _core(texts: Sequence[tuple[str, int]]) -> str:
    """The longest text that all hold before the end that they share."""
    end = _shared(texts, backward=True)
    rests = [text[: len(text) - len(end.replace(_MARK, str(number)))] for text, number in texts]
    least, core = min(rests, key=len), ""
    for start in range(len(least)):
        while start + len(core) < len(least) and all(least[start : start + len(core) + 1] in rest for rest in rests):
            core = least[start : start + len(core) + 1]
    return core


def _to_label(shared: str, values: set[str]) -> str:
    """The beginning that texts share, without words that the values after it all begin with by chance: fixed text ends
    in a line end, or in a label (`Problem: `), or, where very many values begin in many ways, anywhere."""
    line = shared[shared.rfind("\n") + 1 :]
    if not line.strip():
        return shared
    if labels := list(re.finditer(rf"(?:{_MARK}[ \t]*[^\w\s]*|[:>\]])[*_]*[ \t]*", line)):
        return shared[: len(shared) - len(line) + labels[-1].end()]
    if line[-1].isspace() and len(values) >= 30 and len({value[:1] for value in values}) >= 12:
        return shared
    return shared[: len(shared) - len(line)]


def _enclosed(opening: str, raw_opening: str, raw_closing: str) -> tuple[str, str]:
    """The fixed text before and after a value, with the quotes and brackets around it; without the ends of sentences
    that all values share."""
    closing = _ENDINGS.sub("", raw_closing, count=1)
    lost = raw_closing[: len(raw_closing) - len(closing)]
    opened = re.split(_NO_OPENER, opening)[-1]
    more = re.split(_NO_OPENER, raw_opening[len(opening) :])[0]
    for taken in range(len(more), -1, -1):
        for start in range(len(opened) + 1):
            mirrored = (opened[start:] + more[:taken])[::-1].translate(_MIRROR)
            if lost.endswith(mirrored):
                return opening + more[:taken], mirrored + closing
    raise AssertionError("an empty run ends every text")
