"""Derive a released model's prompt template from the rows it was trained on, and prove it on the same rows.

The numbers 1, 2, ... of the steps show where a row's parts lie; what the parts of a few rows have in common at their
ends is fixed text. Only rows that are rendered again byte for byte count as proof.
"""

from __future__ import annotations

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
    verdict = VerdictFormat(marker) if marker is not None else _derive_verdict(name, outputs)
    base = PromptTemplate(name, "{{problem}}{{steps}}", system=system, verdict=verdict)
    template = _derive(list(dict.fromkeys(row.text for row in read)), base, chat)
    kept = []
    for row in read:
        parts = template.take_apart(row.text)
        if row.system != system:
            differences.append(row.rejected(f"its system message is another: {row.system!r:.60}"))
        elif parts is None or template.render(*parts, len(parts[1]) - 1).messages[-1].content != row.text:
            differences.append(row.rejected(template.difference(row.text)))
        else:
            kept.append(parts)
    differences.sort(key=lambda row: row.line)
    problems = {problem for problem, _ in kept}
    if len(kept) < min_share * len(found) or len(problems) < 2:
        shown = "".join(f"\n  row {row.line}: {row.reason}" for row in differences[:5])
        raise PromptError(
            f"{name}: only {len(kept)} of {len(found)} rows follow the derived template, less than {min_share:.0%} or "
            f"not of several problems; give rows of one kind, or accept a smaller share:{shown}"
        )
    doubts = (
        *_doubts("problems", problems),
        *_doubts("previous steps", {step for _, steps in kept for step in steps[:-1]}),
        *_doubts("steps to judge", {steps[-1] for _, steps in kept}),
    )
    if doubts and not accept_doubts:
        raise PromptError(
            f"{name}: the rows seem to follow more than one layout: {'; '.join(doubts)}; keep the rows of one, or, if "
            "that is no fixed text, give --accept-doubts (argument `accept_doubts`)"
        )
    num_verdicts = sum(verdict.find(output) is not None for output in outputs)
    return ImportedTemplate(
        template, len(found), len(kept), len(problems), len(outputs), num_verdicts, (*differences[:5],), doubts, label
    )


def _doubts(what: str, values: set[str]) -> Iterator[str]:
    """Lines that many values begin or end with."""
    for verb, place in (("begin", 0), ("end", -1)):
        lines = Counter(text.strip().split("\n")[place] for text in values if "\n" in text.strip())
        for line, count in lines.most_common(1):
            if count >= 0.4 * len(values) and len(re.findall(r"\w", line)) >= 4:
                yield f"{count / len(values):.0%} of the {what} {verb} with the line {line[:80]!r}"


def _derive_verdict(name: str, outputs: Sequence[str]) -> VerdictFormat:
    """The marker is what the last lines of the outputs have in common before their last Yes or No."""
    lines = [output.rstrip().rpartition("\n")[2] for output in outputs]
    found = [match for line in lines if (match := re.match(r"(.*)(?<!\w)(yes|no)(?!\w)", line, re.IGNORECASE))]
    # Markup around the marker and the answer is no part of it: VerdictFormat reads over it.
    heads = [(match[1].rstrip(" \t*_:>`'\"$({[\\"), 0) for match in found]
    marker = _agreed(heads, 0.9, -1).lstrip(" \t*_#>-.,;:!?)")
    if not marker or len(heads) < 0.5 * len(outputs):
        raise PromptError(
            f"{name}: {len(heads)} of {len(outputs)} outputs end in a line with Yes or No, with no marker in common "
            "before it; name it with --marker (argument `marker`)"
        )
    spelled = {word.casefold(): word for word, _ in reversed(Counter(match[2] for match in found).most_common())}
    return VerdictFormat(marker, spelled.get("yes", "Yes"), spelled.get("no", "No"))


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


def _derive(texts: Sequence[str], base: PromptTemplate, chat: bool | None) -> PromptTemplate:
    """The candidate that leaves the fewest characters to problems and steps (of a text it does not make, all)."""
    texts = texts[:: len(texts) // 300 + 1]
    cases = [(rows, quorum) for rows in _counted(texts if len(texts) >= 20 else []) for quorum in _QUORUMS]
    cases += [(_announced(rows, quorum), quorum) for rows, quorum in cases]
    found = dict.fromkeys(_candidate(rows, quorum, base) for rows, quorum in cases)

    def free(template: PromptTemplate) -> int:
        taken = ((text, template.take_apart(text)) for text in texts[:: len(texts) // 120 + 1])
        return sum(len(text) if parts is None else len("".join((parts[0], *parts[1]))) for text, parts in taken)

    best = min((template for template in found if template), key=free, default=None)
    if best is None:
        raise PromptError(
            f"{base.name}: no template can be derived from {len(texts)} rows: it needs 20 that differ, of several "
            "problems, with steps numbered 1, 2, ...; among them rows that judge a first, a second, a third and a later step"
        )
    return replace(best, chat=not _SPECIAL_TOKEN.search(best.user) if chat is None else chat)


def _counted(texts: Sequence[str]) -> list[list[list[str]]]:
    """The texts cut at the steps' numbers, by each of the likeliest texts around these."""
    opening, closing = (len(_agreed([(text, 0) for text in texts], 0.95, way)) for way in (1, -1))
    found: dict[tuple[str, str], dict[str, list[re.Match[str]]]] = {}
    for text in texts:
        for match in _NUMBER.finditer(text, opening, max(opening, len(text) - closing)):
            found.setdefault((match[1], match[3]), {}).setdefault(text, []).append(match)
    usual = [matches for matches in found.values() if len(matches) >= 0.2 * len(texts)]
    cut = [[pieces for text in texts if (pieces := _cut(text, matches.get(text, [])))] for matches in usual]
    return sorted(cut, key=lambda rows: sum(len(pieces) > 2 for pieces in rows), reverse=True)[:3]


def _cut(text: str, matches: list[re.Match[str]]) -> list[str]:
    """The text cut where numbers count 1, 2, ..., m; nothing where they count otherwise."""
    numbers = [int(match[2]) for match in matches]
    last = max(numbers, default=0)
    if numbers != [*range(1, last + 1), *[last] * (len(numbers) - last)]:
        return []
    # The last may be named more than once: the last place is the step's own.
    starts = [match.start(2) for match in matches[: max(0, last - 1)] + matches[-1:]]
    return [text[start:end] for start, end in pairwise([0, *starts, len(text)])]


def _announced(rows: list[list[str]], quorum: float) -> list[list[str]]:
    """The rows cut once more, after fixed words that tell the step to judge in place of a number like the others'."""
    is_one = sum(len(pieces) == 1 for pieces in rows) > 0.02 * len(rows)
    words = _core([(pieces[-1], len(pieces)) for pieces in rows], quorum) if is_one else ""
    found = [(pieces, pieces[-1].find(words) + len(words)) for pieces in rows if words and pieces[-1].count(words) == 1]
    return [[*pieces[:-1], pieces[-1][:at], pieces[-1][at:]] for pieces, at in found]


def _candidate(rows: list[list[str]], quorum: float, base: PromptTemplate) -> PromptTemplate | None:
    """The template that a share `quorum` of these rows shows, if they show all of it."""
    rows = [pieces for pieces in rows if len(pieces) > 1]
    firsts = [(pieces[0], 1) for pieces in rows if len(pieces) == 2]
    heads, leads = ([(pieces[at], len(pieces) - 1) for pieces in rows if len(pieces) > 2] for at in (0, -2))
    joints = [(piece, 0) for pieces in rows for piece in pieces[1:-2]]
    steps = [(piece, number) for pieces in rows for number, piece in enumerate(pieces[1:-1], 1)]
    lasts = [(pieces[-1], len(pieces) - 1) for pieces in rows]
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
    least = max(1, round(quorum * len(rows)))
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
