"""Derive a released model's prompt template from the rows it was trained on, and prove it on the same rows.

The numbers 1, 2, ... of the steps show where a row's parts lie; what the parts of a few rows have in common at their
ends is fixed text. Only rows that are rendered again byte for byte count as proof.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice, pairwise
from typing import Any, Literal

from rprm.errors import PromptError
from rprm.prompts.template import PromptTemplate, literal, shared_start
from rprm.reading import Instruction, Rejected, Row, Source, read_instructions
from rprm.verdict import VerdictFormat


@dataclass(frozen=True)
class ImportedTemplate:
    """A derived template and its proof: `num_exact` of `num_rows` rows are rendered byte for byte. `differences` has
    the first five others, `num_verdicts` counts outputs with a verdict after the marker, `doubts` are what looks like
    fixed text of a second layout, `source` is where the rows came from (a hub data set's revision too)."""

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
    source: str | Iterable[Mapping[str, Any] | Row], *, name: str, limit: int | None = 2000, marker: str | None = None,
    instruction_column: str | None = None, output_column: str | None = None, chat: bool | None = None,
    min_share: float = 0.99, accept_doubts: bool = False,
) -> ImportedTemplate:  # fmt: skip
    """Derive the template that made the instructions of training rows.

    Args:
        source: the rows, or what `rprm.reading.Source` reads (a hub data set's split `train`); see `read_instructions`.
        marker: text before the verdict; by default what the outputs' last lines share before Yes or No.
        chat: False where instructions are whole texts; by default so where their fixed text has special tokens.
        min_share: of the rows that must render exactly.
        accept_doubts: whether problems or steps may seem to hold fixed text of a second layout.

    Raises:
        InputError: the source cannot be read.
        PromptError: the rows do not show all that a template needs, or too few of them render exactly.
    """
    label, rows = "", source
    if isinstance(source, str):
        reader = Source(source, split="train").pinned()
        label, rows = f"{reader.hub['path']}@{reader.hub['revision']}" if reader.hub else source, reader.rows()
    found = list(read_instructions(islice(rows, limit), instruction_column, output_column))
    read = [row for row in found if isinstance(row, Instruction)]
    differences = [row for row in found if isinstance(row, Rejected)]
    if not read:
        reason = differences[0].reason if differences else "there are no rows"
        raise PromptError(f"{name}: no row has an instruction: {reason}")
    outputs = [row.output for row in read if row.output is not None]
    [(system, _)] = Counter(row.system for row in read).most_common(1)
    try:
        verdict = VerdictFormat(marker) if marker is not None else _derive_verdict(outputs)
        base = PromptTemplate(name, "{{problem}}{{steps}}", system=system, verdict=verdict)
        template = _derive(list(dict.fromkeys(row.text for row in read)), base, chat)
    except PromptError as error:
        raise PromptError(f"{name}: no template can be derived from {len(found)} rows: {error}") from None
    values: dict[str, set[str]] = {"problems": set(), "previous steps": set(), "steps to judge": set()}
    for row in read:
        parts = template.take_apart(row.text)
        if row.system != system:
            differences.append(row.rejected(f"its system message is another: {row.system!r:.60}"))
        elif parts is None or template.render(*parts, len(parts[1]) - 1).messages[-1].content != row.text:
            differences.append(row.rejected(template.difference(row.text)))
        else:
            for seen, new in zip(values.values(), ([parts[0]], parts[1][:-1], parts[1][-1:]), strict=True):
                seen.update(new)
    differences.sort(key=lambda row: row.line)
    num_exact, num_problems = len(found) - len(differences), len(values["problems"])
    if num_exact < min_share * len(found) or num_problems < 2:
        shown = "".join(f"\n  row {row.line}: {row.reason}" for row in differences[:5])
        raise PromptError(
            f"{name}: only {num_exact} of {len(found)} rows follow the derived template, less than {min_share:.0%} or "
            f"not of several problems; give rows of one kind, or accept a smaller share:{shown}"
        )
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


def _doubts(what: str, values: set[str]) -> Iterator[str]:
    """Lines that many values begin or end with."""
    for verb, place in (("begin", 0), ("end", -1)):
        lines = Counter(text.strip().split("\n")[place] for text in values if "\n" in text.strip())
        for line, count in lines.most_common(1):
            if count >= 0.4 * len(values) and len(re.findall(r"\w", line)) >= 4:
                yield f"{count / len(values):.0%} of the {what} {verb} with the line {line[:80]!r}"


def _derive_verdict(outputs: Sequence[str]) -> VerdictFormat:
    """The marker is what the last lines of the outputs have in common before their last Yes or No."""
    lines = [output.rstrip().rpartition("\n")[2] for output in outputs]
    found = [match for line in lines if (match := re.match(r"(.*)(?<!\w)(yes|no)(?!\w)", line, re.IGNORECASE))]
    # Markup around the marker and the answer is no part of it: VerdictFormat reads over it.
    heads = [match[1].rstrip(" \t*_:>`'\"$({[\\") for match in found]
    marker = _agreed([(head, 0) for head in heads], 0.9, -1).lstrip(" \t*_#>-.,;:!?)")
    if not marker or len(heads) < 0.5 * len(outputs):
        found_in = f"{len(heads)} of {len(outputs)} outputs end in a line with Yes or No"
        raise PromptError(f"{found_in}, with no marker in common before it; name it with --marker (argument `marker`)")
    answers = Counter(match[2] for match in found).most_common()
    spelled = {answer.casefold(): answer for answer, _ in reversed(answers)}
    return VerdictFormat(marker, spelled.get("yes", "Yes"), spelled.get("no", "No"))


# --- the fixed text -----------------------------------------------------------------------------------------------

#: Stands in fixed text for the number of the step to judge.
_MARK = "\ue000"
#: Of the rows that must agree on fixed text; the others are misled by what a problem or step quotes ("Step 3:").
_QUORUMS = (1.0, 0.95, 0.9, 0.8, 0.7, 0.6)
_SPECIAL_TOKEN = re.compile(r"<\|[^|>\s]+\|>|\[/?INST\]|<</?SYS>>|<(?:start|end)_of_turn>|<｜[^｜>]+｜>")
#: A number with what stands right around it: letters and at most one more character, or a line end; any one character.
_NUMBER = re.compile(r"([^\W\d_]{0,20}[^\w\n]?|\n)(?<!\d)([1-9][0-9]{0,3})(?=(\D))")
#: Fixed text before a value ends in a line end or a label: other words are values' own that all begin with by chance.
_OPENING = re.compile(rf"(?s:.*)(?:\n\s*|(?:{_MARK}[ \t]*[^\w\s]*|[:>\]])[*_]*[ \t]*[\"'`*\[({{]*)|")
#: What sentences and formulas end in: values that all end so share it by chance.
_ENDINGS = re.compile(r"[\w.?!:$%)}\]\\'\"*`]*")
_MIRROR = str.maketrans("([{<", ")]}>")

#: Texts, each with the number of the step to judge.
_Numbered = list[tuple[str, int]]
#: An instruction, and where its steps' numbers begin.
_Counted = tuple[str, list[int]]


def _derive(texts: Sequence[str], base: PromptTemplate, chat: bool | None) -> PromptTemplate:
    """The candidate that leaves the fewest characters to problems and steps (of a text it does not make, all)."""
    texts = texts[:: len(texts) // 300 + 1] if len(texts) >= 20 else []
    cases = [(rows, quorum) for rows in _counted(texts) for quorum in _QUORUMS]
    cases += [(_announced(rows, quorum), quorum) for rows, quorum in cases]
    found = dict.fromkeys(_candidate(rows, quorum, base) for rows, quorum in cases)

    def free(template: PromptTemplate) -> int:
        taken = ((text, template.take_apart(text)) for text in texts[:: len(texts) // 120 + 1])
        return sum(len(text) if parts is None else len("".join((parts[0], *parts[1]))) for text, parts in taken)

    best = min((template for template in found if template), key=free, default=None)
    if best is None:
        raise PromptError(
            "it needs 20 that differ, of several problems, with steps numbered 1, 2, ...; among them rows that judge a "
            "first, a second, a third and a later step"
        )
    return replace(best, chat=not _SPECIAL_TOKEN.search(best.user) if chat is None else chat)


def _counted(texts: Sequence[str]) -> list[list[_Counted]]:
    """For the likeliest texts around a step's number: the instructions in which these count 1, 2, ..., or are none."""
    opening, closing = (len(_agreed([(text, 0) for text in texts], 0.95, way)) for way in (1, -1))
    found: dict[tuple[str, str], dict[str, list[re.Match[str]]]] = {}
    for text in texts:
        for match in _NUMBER.finditer(text, opening, max(opening, len(text) - closing)):
            found.setdefault((match[1], match[3]), {}).setdefault(text, []).append(match)
    counted: list[list[_Counted]] = []
    for matches_of in found.values():
        counted.append([])
        for text in texts if len(matches_of) >= 0.2 * len(texts) else ():
            numbers = [int(match[2]) for match in matches_of.get(text, ())]
            starts = [match.start(2) for match in matches_of.get(text, ())]
            last = max(numbers, default=0)
            # The last may be named more than once: the last place is the step's own.
            if numbers == [*range(1, last + 1), *[last] * (len(numbers) - last)]:
                counted[-1].append((text, starts[: last - 1] + starts[-1:] if last else []))
    return sorted(counted, key=lambda rows: sum(len(starts) > 1 for _, starts in rows), reverse=True)[:3]


def _announced(rows: list[_Counted], quorum: float) -> list[_Counted]:
    """The rows of a layout in which fixed words tell the step to judge, in place of a number like the others'."""
    ends = [(text[starts[-1] if starts else 0 :], len(starts) + 1) for text, starts in rows]
    words = _core(ends, quorum) if sum(not starts for _, starts in rows) > 0.02 * len(rows) else ""
    found = [row for row, (end, _) in zip(rows, ends, strict=True) if words and end.count(words) == 1]
    return [(text, [*starts, text.rindex(words) + len(words)]) for text, starts in found]


def _candidate(rows: list[_Counted], quorum: float, base: PromptTemplate) -> PromptTemplate | None:
    """The template that a share `quorum` of these rows shows, if they show all of it."""
    firsts, heads, joints, leads, lasts, steps = (_Numbered() for _ in range(6))
    for text, starts in rows:
        number = len(starts)
        first, *pieces = [(text[start:end], number) for start, end in pairwise([0, *starts, len(text)])]
        if number:
            (firsts if number == 1 else heads).append(first)
            joints, leads, lasts = joints + pieces[:-2], leads + pieces[:-1][-1:], lasts + pieces[-1:]
            steps += [(piece, index) for index, (piece, _) in enumerate(pieces[:-1], 1)]
    before = _OPENING.findall(_agreed(heads + firsts, quorum))[0]
    first, head, joint, lead, last = (_agreed(some, quorum, -1) for some in (firsts, heads, joints, leads, lasts))
    # What stands before the number at the first and at later steps alike.
    label = shared_start(head[::-1], joint[::-1])[::-1].rpartition("\n")[2].lstrip(" \t>)].,;:|/")
    between = _closing(before, head.removesuffix(label))
    if not joints or all(len(text) <= len(before + between + label) for text, _ in heads):
        return None
    joint, lead = _closing(between, joint.removesuffix(label)), _closing(between, lead)
    # A row of a first step has: problem, between, no previous steps, lead. Its number 1 is as long as the mark.
    at = first.find(between.replace(_MARK, "1"))
    rest = first[at + len(between) :]
    tail, no_previous = "", base.no_previous_steps
    if lead.removesuffix(label) == joint and (not firsts or rest == label):
        core = _core(lasts, quorum)
        if len(core) >= 12 and not any(core in text for text, _ in joints):
            return None  # It stands after the previous steps, not in the list: a row of a first step would show it.
        listed, after = "{{steps}}", _closing(between, last)
    else:
        size = len(shared_start(lead.replace(_MARK, "1")[::-1], rest[::-1]))
        tail, lead, no_previous = lead[: len(lead) - size], lead[len(lead) - size :], rest[: len(rest) - size]
        if not firsts or at < 0 or not joint.startswith(tail):
            return None
        step = _OPENING.findall(lead + _agreed(lasts, quorum))[0]
        listed = "{{previous_steps}}" + literal(step) + "{{step}}"
        # A quote around the step may open before its label, or after it.
        after = max(_closing(lead.removesuffix(label), last), _closing(step, last), key=len)
    close = re.findall(r"[ \t]*[^\w\s]*\s*", _agreed(steps, quorum).removeprefix(_MARK))[0]
    user = literal(before) + "{{problem}}" + literal(between) + listed + literal(after)
    return replace(
        base, user=user.replace(_MARK, "{{step_number}}"), no_previous_steps=no_previous,
        step_format=literal(label) + "{{number}}" + literal(close) + "{{step}}" + literal(tail),
        step_separator=joint.removeprefix(tail),
    )  # fmt: skip


def _agreed(texts: _Numbered, quorum: float, way: Literal[1, -1] = 1) -> str:
    """The longest beginning (`way` -1: end) of a share `quorum` of texts; `_MARK` where each has its own number."""
    found, rows = "", [[str(number)[::way], *re.findall(r"\d+|\D+", text[::way])] for text, number in texts]
    least = max(1, math.ceil(quorum * len(rows)))
    for place in range(1, max(map(len, rows), default=0)):
        column = sorted(row[place] for row in rows if len(row) > place)
        [(common, count)] = Counter(column).most_common(1)
        own = [row for row in rows if row[place : place + 1] == row[:1]]
        if len(own) >= least and len(own) > count:
            found, rows = found + _MARK, own
        elif count >= least:
            found, rows = found + common, [row for row in rows if row[place : place + 1] == [common]]
        else:
            # Pieces with a common beginning stand next to each other.
            ends = zip(column, column[least - 1 :], strict=False)
            found += max((shared_start(*pair) for pair in ends), key=len, default="")
            break
    return found[::way]


def _core(texts: _Numbered, quorum: float) -> str:
    """The longest text that a share `quorum` of the texts has before the end that they share."""
    shared = len(_agreed(texts, quorum, -1))
    rests = sorted((text[: len(text) - shared] for text, _ in texts[:: len(texts) // 30 + 1]), key=len)
    core = ""
    for rest in rests[: len(rests) // 2 + 1 : 3]:
        for end in range(len(core) + 1, len(rest) + 1):
            longer = rest[end - len(core) - 1 : end]
            if sum(longer in other for other in rests) >= quorum * len(rests):
                core = longer
    return core


def _closing(opening: str, shared: str) -> str:
    """The fixed text after a value, of the end that is shared: without the ends of sentences that all values share, but
    with the quotes and brackets that close those before the value."""
    closing = _ENDINGS.sub("", shared, count=1)
    lost = shared[: len(shared) - len(closing)]
    mirrored = re.split(r"[^\"'`*\[({]", opening)[-1][::-1].translate(_MIRROR)
    return next(part for size in range(len(mirrored), -1, -1) if lost.endswith(part := mirrored[:size])) + closing
