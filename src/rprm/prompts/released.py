"""Derive a released model's prompt template from the rows it was trained on, and prove it on the same rows.

The steps' numbers 1, 2, ... show where a row's parts lie; what most rows' parts share at their ends is fixed text.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice, pairwise, product, zip_longest
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
    reader = Source(source, split="train").pinned() if isinstance(source, str) else None
    rows: Iterable[Any] = reader.rows() if reader else source
    found = list(read_instructions(islice(rows, limit), instruction_column, output_column))
    read = [row for row in found if isinstance(row, Instruction)]
    others = [row for row in found if isinstance(row, Rejected)]
    if not read:
        raise PromptError(f"{name}: no row has an instruction: {others[0].reason if others else 'there are no rows'}")
    outputs = [row.output for row in read if row.output is not None]
    [(system, _)] = Counter(row.system for row in read).most_common(1)
    verdict = VerdictFormat(marker) if marker is not None else _derive_verdict(name, outputs)
    base = PromptTemplate(name, "{{problem}}{{steps}}", system=system, verdict=verdict)
    template = _derive(list(dict.fromkeys(row.text for row in read)), base, chat)
    kept = []
    for row in read:
        parts = template.take_apart(row.text)
        if row.system != system:
            others.append(row.rejected(f"its system message is another: {row.system!r:.60}"))
        elif parts is None or template.render(*parts, len(parts[1]) - 1).messages[-1].content != row.text:
            others.append(row.rejected(template.difference(row.text)))
        else:
            kept.append(parts)
    shown = tuple(sorted(others, key=lambda row: row.line)[:5])
    problems = {problem for problem, _ in kept}
    if len(kept) < min_share * len(found) or len(problems) < 2:
        wrong = f"less than {min_share:.0%} or not of several problems; give rows of one kind or a lower --min-share:"
        wrong += "".join(f"\n  row {row.line}: {row.reason}" for row in shown)
        raise PromptError(f"{name}: only {len(kept)} of {len(found)} rows follow the derived template, {wrong}")
    if (doubts := tuple(_doubts(kept))) and not accept_doubts:
        hint = "keep the rows of one, or, if that is no fixed text, give --accept-doubts (argument `accept_doubts`)"
        raise PromptError(f"{name}: the rows seem to follow more than one layout: {'; '.join(doubts)}; {hint}")
    counts = len(found), len(kept), len(problems), len(outputs), sum(verdict.find(text) is not None for text in outputs)
    label = (f"{reader.hub['path']}@{reader.hub['revision']}" if reader.hub else reader.name) if reader else ""
    return ImportedTemplate(template, *counts, differences=shown, doubts=doubts, source=label)


def _doubts(kept: Sequence[tuple[str, list[str]]]) -> Iterator[str]:
    """Lines that many problems or steps begin or end with."""
    values = {"problems": {problem for problem, _ in kept}, "steps to judge": {steps[-1] for _, steps in kept}}
    values["previous steps"] = {step for _, steps in kept for step in steps[:-1]}
    for (what, texts), (verb, place) in product(values.items(), (("begin", 0), ("end", -1))):
        lines = Counter(text.strip().split("\n")[place] for text in texts if "\n" in text.strip())
        for line, count in lines.most_common(1):
            if count >= 0.4 * len(texts) and len(re.findall(r"\w", line)) >= 4:
                yield f"{count / len(texts):.0%} of the {what} {verb} with the line {line[:80]!r}"


def _derive_verdict(name: str, outputs: Sequence[str]) -> VerdictFormat:
    """The marker is what the last lines of the outputs have in common before their last Yes or No."""
    lines = [output.rstrip().rpartition("\n")[2] for output in outputs]
    found = [match for line in lines if (match := re.match(r"(.*)(?<!\w)(yes|no)(?!\w)", line, re.IGNORECASE))]
    # Markup around the marker and the answer is no part of it: VerdictFormat reads over it.
    heads = [(match[1].rstrip(" \t*_:>`'\"$({[\\"), 0) for match in found]
    marker = _agreed(heads, 0.9, -1).lstrip(" \t*_#>-.,;:!?)")
    if not marker or len(heads) < 0.5 * len(outputs):
        ended = f"{len(heads)} of {len(outputs)} outputs end in a line with Yes or No"
        raise PromptError(f"{name}: {ended}, with no marker in common before it; name it with --marker (`marker`)")
    spelled = {word.casefold(): word for word, _ in reversed(Counter(match[2] for match in found).most_common())}
    return VerdictFormat(marker, spelled.get("yes", "Yes"), spelled.get("no", "No"))


_MARK = "\ue000"  #: Stands in fixed text for the number of the step to judge.
_SPECIAL_TOKEN = re.compile(r"<\|[^|>\s]+\|>|\[/?INST\]|<</?SYS>>|<(?:start|end)_of_turn>|<｜[^｜>]+｜>")
#: A number with what stands right around it: letters and at most one more character, or a line end; any one character.
_NUMBER = re.compile(r"([^\W\d_]{0,20}[^\w\n]?|\n)(?<!\d)([1-9][0-9]{0,3})(?=(\D))")


def _derive(texts: Sequence[str], base: PromptTemplate, chat: bool | None) -> PromptTemplate:
    """The candidate that leaves the fewest characters to problems and steps (of a text it does not make, all)."""
    texts = texts[:: len(texts) // 300 + 1]
    # Some rows are misled by what a problem or step quotes ("Step 3:"): a share must agree on the fixed text.
    cases = [(rows, quorum) for rows in _counted(texts) for quorum in (1.0, 0.95, 0.9, 0.8, 0.7, 0.6)]
    cases += [(_announced(rows, quorum), quorum) for rows, quorum in cases if {1, 2, 3} <= {*map(len, rows)}]
    found = {_candidate(rows, quorum, base): None for rows, quorum in cases}

    def free(template: PromptTemplate) -> int:
        taken = ((template.take_apart(text) or (text, ())) for text in texts[:: len(texts) // 120 + 1])
        return sum(len(problem) + sum(map(len, steps)) for problem, steps in taken)

    if (best := min((template for template in found if template), key=free, default=None)) is None:
        needs = "it needs 20 that differ, of several problems, with steps numbered 1, 2, ...; among them rows that "
        needs += "judge a first, second, third and later step"
        raise PromptError(f"{base.name}: no template can be derived from {len(texts)} rows: {needs}")
    return replace(best, chat=not _SPECIAL_TOKEN.search(best.user) if chat is None else chat)


def _counted(texts: Sequence[str]) -> list[list[list[str]]]:
    """The texts cut at numbers that count 1, 2, ..., m, for the likeliest texts around these."""
    opening, closing = (len(_agreed([(text, 0) for text in texts], 0.95, way)) for way in (1, -1))
    found = {text: [*_NUMBER.finditer(text, opening, max(opening, len(text) - closing))] for text in texts}
    kinds = Counter(kind for numbers in found.values() for kind in {number.group(1, 3) for number in numbers})
    counted: list[list[list[str]]] = []
    for kind in [kind for kind, count in kinds.items() if count >= 0.2 * len(texts) >= 4]:
        counted.append([])
        for text, all_numbers in found.items():
            numbers = [number for number in all_numbers if number.group(1, 3) == kind]
            del numbers[max(0, len({number[2] for number in numbers}) - 1) : -1]  # The last one's last place counts.
            if [int(number[2]) for number in numbers] == [*range(1, len(numbers) + 1)]:
                cuts = pairwise([0, *(number.start(2) for number in numbers), len(text)])
                counted[-1].append([text[start:end] for start, end in cuts])
    return sorted(counted, key=lambda rows: sum(len(pieces) > 2 for pieces in rows), reverse=True)[:3]


def _announced(rows: list[list[str]], quorum: float) -> list[list[str]]:
    """The rows cut once more, after fixed words that tell the step to judge in place of a number like the others'."""
    words = _core([(pieces[-1], len(pieces)) for pieces in rows], quorum)
    found = [(pieces, pieces[-1].find(words) + len(words)) for pieces in rows if words and pieces[-1].count(words) == 1]
    return [[*pieces[:-1], pieces[-1][:at], pieces[-1][at:]] for pieces, at in found]


def _candidate(rows: list[list[str]], quorum: float, base: PromptTemplate) -> PromptTemplate | None:
    """The template that a share `quorum` of these rows shows, if they show all of it."""
    firsts = [(pieces[0], 1) for pieces in rows if len(pieces) == 2]
    heads, leads = ([(pieces[at], len(pieces) - 1) for pieces in rows if len(pieces) > 2] for at in (0, -2))
    joints = [(piece, 0) for pieces in rows for piece in pieces[1:-2]]
    steps = [(piece, number) for pieces in rows for number, piece in enumerate(pieces[1:-1], 1)]
    lasts = [(pieces[-1], len(pieces) - 1) for pieces in rows if len(pieces) > 1]
    before = _opening("", heads + firsts, quorum)
    first, head, joint, lead, last = (_agreed(some, quorum, -1) for some in (firsts, heads, joints, leads, lasts))
    # What stands before the number at the first and at later steps alike.
    label = shared_start(head[::-1], joint[::-1])[::-1].rpartition("\n")[2].lstrip(" \t>)].,;:|/")
    between = _closing(before, head.removesuffix(label))
    joint, lead = _closing(between, joint.removesuffix(label)), _closing(between, lead)
    # A row of a first step has: problem, between, no previous steps, lead. Its number 1 is as long as the mark.
    one = between.replace(_MARK, "1")
    rest = first[first.find(one) + len(one) :] if firsts else label  # A list needs no such row.
    size = len(shared_start(lead.replace(_MARK, "1")[::-1], rest[::-1]))
    tail, lead, none = lead[: len(lead) - size], lead[len(lead) - size :], rest[: len(rest) - size]
    is_list = (tail, lead, none) == (joint, label, "")
    # Words after the previous steps are no part of a list: a row of a first step would show them.
    is_hidden = is_list and len(core := _core(lasts, quorum)) >= 12 and not any(core in text for text, _ in joints)
    if is_hidden or not joints or not joint.startswith(tail) or (one not in first if firsts else not is_list):
        return None
    step = between if is_list else _opening(lead, lasts, quorum)
    listed = "{{steps}}" if is_list else "{{previous_steps}}" + literal(step) + "{{step}}"
    tail, none = ("", base.no_previous_steps) if is_list else (tail, none)
    after = max(_closing(lead.removesuffix(label), last), _closing(step, last), key=len)  # A quote may hold the label.
    close = re.findall(r"[ \t]*[^\w\s]*\s*", _agreed(steps, quorum).removeprefix(_MARK))[0]
    user = literal(before) + "{{problem}}" + literal(between) + listed + literal(after)
    user = user.replace(_MARK, "{{step_number}}")
    form = literal(label) + "{{number}}" + literal(close) + "{{step}}" + literal(tail)
    return replace(base, user=user, step_format=form, step_separator=joint.removeprefix(tail), no_previous_steps=none)


def _agreed(texts: Sequence[tuple[str, int]], quorum: float, way: Literal[1, -1] = 1) -> str:
    """The longest beginning (`way` -1: end) of a share `quorum` of texts; `_MARK` where each has its own number."""
    found, least, left = "", max(1, round(quorum * len(texts))), [*range(len(texts))]
    numbers = [str(number)[::way] for _, number in texts]
    for column in zip_longest(*(re.findall(r"\d+|\D+", text[::way]) for text, _ in texts), fillvalue=""):
        own = [at for at in left if column[at] == numbers[at]]
        [(common, count)] = Counter(column[at] for at in left).most_common(1)
        if max(count, len(own)) < least:
            pieces = sorted(column[at] for at in left)  # Those with a common beginning stand next to each other.
            found += max((shared_start(*ends) for ends in zip(pieces, pieces[least - 1 :], strict=False)), key=len)
            break
        left = own if len(own) > count else [at for at in left if column[at] == common]
        found += _MARK if left is own else common
    return found[::way]


def _core(texts: Sequence[tuple[str, int]], quorum: float) -> str:
    """The longest text that a share `quorum` of the texts has before the end that they share."""
    shared, core = len(_agreed(texts, quorum, -1)), ""
    rests = sorted((text[: len(text) - shared] for text, _ in texts[:: len(texts) // 30 + 1]), key=len)
    for rest in rests[: len(rests) // 2 + 1 : 3]:
        for end in range(len(core) + 1, len(rest) + 1):
            longer = rest[end - len(core) - 1 : end]
            core = longer if sum(longer in other for other in rests) >= quorum * len(rests) else core
    return core


def _opening(lead: str, texts: Sequence[tuple[str, int]], quorum: float) -> str:
    """Fixed text before values: to a line end, a label, or (under no heading) a space before very varied values."""
    text = lead + (shared := _agreed(texts, quorum))
    starts = {value[len(shared) :][:30] for value, _ in texts}
    *_, heading, line = ["", *re.split(r"\s*\n", text)]
    is_label = re.search(rf"{_MARK}|[#<:：>\]]|\*\n", f"{heading[:1]}{heading[-1:]}\n{line}")
    is_varied = len(starts) >= 30 and len({start[:1] for start in starts}) >= 12
    found: str = re.findall(rf"(?s:.*)(?:\n\s*|(?:{_MARK}[ \t]*[^\w\s]*|[:：>\]])[*_]*[ \t]*)[\"'`*\[({{]*|", text)[0]
    return text if is_varied and line[-1:].isspace() and not is_label else found


def _closing(opening: str, shared: str) -> str:
    """Fixed text after a value: of a shared end, without ends of sentences, with quotes to match those before it."""
    lost, closing = re.findall(r"(?s)\A([\w.?!:$%)}\]\\'\"*`]*)(.*)", shared)[0]
    mirrored = re.split(r"[^\"'`*\[({]", opening)[-1][::-1].translate(str.maketrans("([{", ")]}"))
    ends = [mirrored[:size] for size in range(len(mirrored), -1, -1) if lost.endswith(mirrored[:size])]
    return f"{ends[0]}{closing}"
