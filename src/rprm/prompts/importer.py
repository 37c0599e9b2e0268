"""Derive a released model's prompt template from the rows it was trained on, and prove it on the same rows.

The derived template takes every row apart and renders it again; only byte-for-byte equality counts.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

from rprm.errors import PromptError
from rprm.prompts.layout import ONE_PROBLEM, Layout, Unclear, agreed, derive_layout
from rprm.prompts.template import PromptTemplate
from rprm.verdict import VerdictFormat

if TYPE_CHECKING:
    from rprm.reading import Row

#: Columns looked for, in this order, where none is named.
INSTRUCTION_COLUMNS = ("instruction", "prompt")
OUTPUT_COLUMNS = ("output", "completion", "response", "chosen")


@dataclass(frozen=True)
class RowDifference:
    """A row that the derived template does not give back: its 1-based line (or place in the source), and how."""

    line: int
    reason: str


@dataclass(frozen=True)
class ImportedTemplate:
    """A derived template and its proof.

    Attributes:
        template: what was derived.
        num_rows: rows read.
        num_exact: rows that the template renders byte for byte.
        num_problems: different problems among those.
        num_outputs: outputs seen (of preference rows, the chosen ones).
        num_verdicts: outputs in which the verdict is found after the template's marker.
        differences: the first five rows that were not rendered exactly.
        layout: takes an instruction apart into problem and steps, which the template renders again.
        doubts: what so many problems or steps share that it looks like fixed text of a second layout.
        source: where the rows came from; for a hub data set with its revision. Empty for rows given as such.
    """

    template: PromptTemplate
    num_rows: int
    num_exact: int
    num_problems: int
    num_outputs: int
    num_verdicts: int
    differences: tuple[RowDifference, ...]
    layout: Layout
    doubts: tuple[str, ...] = ()
    source: str = ""

    @property
    def proof(self) -> str:
        return f"{self.num_exact:,} of {self.num_rows:,} rows ({self.num_problems:,} problems) rendered exactly"

    def to_toml(self) -> str:
        """The template as a file's content, headed by where it comes from."""
        return f"# Derived by `rprm prompts import` from {self.source!a}: {self.proof}.\n{self.template.to_toml()}"


def import_template(
    rows: Iterable[Mapping[str, Any] | Row],
    *,
    name: str,
    marker: str | None = None,
    instruction_column: str | None = None,
    output_column: str | None = None,
    chat: bool | None = None,
    min_share: float = 0.99,
    accept_doubts: bool = False,
) -> ImportedTemplate:
    """Derive the template that made the instructions of `rows`.

    Args:
        rows: training rows; those of a source keep the lines that they stand in. The instruction is a text or a list
            of chat messages (one of the user, an optional one of the system); a `system` column is the system message
            too. Outputs are texts or lists of messages.
        name: name of the template.
        marker: text before the verdict; by default what the outputs' last lines have in common before Yes or No.
        instruction_column: default: `instruction`, else `prompt`.
        output_column: default: `output`, `completion`, `response`, else `chosen`.
        chat: whether instructions are user messages, or whole texts with the model's own special tokens; by default
            whatever their fixed text shows.
        min_share: share of rows that must render exactly.
        accept_doubts: return a template whose problems or steps seem to hold fixed text of a second layout.

    Raises:
        PromptError: the rows do not show all that a template needs, seem to follow several layouts, or render exactly
            in less than `min_share` of the cases.
    """
    from rprm.reading import Row

    instruction_columns = (instruction_column,) if instruction_column else INSTRUCTION_COLUMNS
    output_columns = (output_column,) if output_column else OUTPUT_COLUMNS
    numbered = ((row.line, row.value) if isinstance(row, Row) else (line, row) for line, row in enumerate(rows, 1))
    read = [_read_row(line, row, instruction_columns, output_columns) for line, row in numbered]
    usable = [row for row in read if row.text]
    if not usable:
        reason = read[0].reason if read else "there are no rows"
        raise PromptError(f"{name}: no row has an instruction: {reason}")
    systems = Counter(row.system for row in usable)
    system, num_agreed = systems.most_common(1)[0]
    if num_agreed < min_share * len(usable):
        raise PromptError(f"{name}: the rows have {len(systems)} different system messages; a template has one")
    outputs = [row.output for row in usable if row.output is not None]
    verdict = VerdictFormat(marker) if marker is not None else _derive_verdict(name, outputs)

    texts = list(dict.fromkeys(row.text for row in usable))
    try:
        layout = derive_layout(texts)
    except Unclear as error:
        raise PromptError(f"{name}: no template can be derived from {len(read)} rows: {error}") from None
    template = layout.template(name, system, verdict, chat)

    num_exact = 0
    problems: set[str] = set()
    steps_listed: set[str] = set()
    steps_judged: set[str] = set()
    differences = []
    for row in read:
        reason = row.reason or ("" if row.system == system else f"its system message is another: {row.system!r:.60}")
        if not reason:
            parts = layout.parse(row.text)
            if parts is not None:
                problem, steps = parts
                if template.render(problem, steps, len(steps) - 1).messages[-1].content == row.text:
                    num_exact += 1
                    problems.add(problem)
                    steps_listed.update(steps[:-1])
                    steps_judged.add(steps[-1])
                    continue
            reason = layout.explain(row.text)
        differences.append(RowDifference(row.line, reason))
    if num_exact < min_share * len(read):
        shown = "".join(f"\n  row {difference.line}: {difference.reason}" for difference in differences[:5])
        raise PromptError(
            f"{name}: only {num_exact} of {len(read)} rows follow the derived template, less than {min_share:.0%}; "
            f"leave out rows of another kind, or accept a smaller share:{shown}"
        )
    if len(problems) < 2:
        raise PromptError(f"{name}: {ONE_PROBLEM}")
    doubts = (
        *_doubts("problems", problems),
        *_doubts("previous steps", steps_listed),
        *_doubts("steps to judge", steps_judged),
    )
    if doubts and not accept_doubts:
        raise PromptError(
            f"{name}: the rows seem to follow more than one layout: {'; '.join(doubts)}; keep the rows of one, or, if "
            "that is no fixed text, give --accept-doubts (argument `accept_doubts`)"
        )
    return ImportedTemplate(
        template=template,
        num_rows=len(read),
        num_exact=num_exact,
        num_problems=len(problems),
        num_outputs=len(outputs),
        num_verdicts=sum(verdict.find(output) is not None for output in outputs),
        differences=tuple(differences[:5]),
        layout=layout,
        doubts=doubts,
    )


def import_source(
    source: str,
    *,
    limit: int | None = 2000,
    revision: str | None = None,
    config: str | None = None,
    split: str = "train",
    **options: Any,
) -> ImportedTemplate:
    """`import_template` from the first `limit` rows of a file or of a hub data set, streamed.

    Args:
        source: a path, or `OWNER/NAME` of a data set, as for `rprm.reading.Source`; `revision`, `config` and `split`
            concern the latter alone.
        limit: number of rows to read; None for all.
        options: as for `import_template`; `name` is required.

    Raises:
        InputError: the source cannot be read.
        PromptError: as for `import_template`.
    """
    from rprm.reading import Rejected, Row, Source

    reader = Source(source)
    if reader.hub is not None:
        query = dict(parse_qsl(source.partition("?")[2]))
        chosen = {"config": config, "revision": revision}
        reader.hub |= {"split": split} | query | {key: value for key, value in chosen.items() if value}
        # Pin what the name stands for now, so that the result can say what it was derived from.
        reader.hub["revision"] = reader.inspect().digest.removeprefix("revision:")
        source = f"{reader.hub['path']}@{reader.hub['revision']}"
    rows = (Row(row.line, None, row.text) if isinstance(row, Rejected) else row for row in islice(reader.rows(), limit))
    return replace(import_template(rows, **options), source=source)


def _doubts(what: str, values: Collection[str]) -> Iterator[str]:
    """Lines that many values begin or end with."""
    texts = sorted(values)
    for verb, backward in (("begin", False), ("end", True)):
        shared = agreed(texts, 0.4, backward=backward) if len(texts) > 1 else ""
        if "\n" in shared and len(re.findall(r"\w", shared)) >= 4:
            share = sum(text.endswith(shared) if backward else text.startswith(shared) for text in texts) / len(texts)
            yield f"{share:.0%} of the {what} {verb} with {shared[-80:] if backward else shared[:80]!r}"


# --- rows ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Row:
    """`reason` says why a row cannot be used; then `text` is empty."""

    line: int
    text: str = ""
    system: str = ""
    output: str | None = None
    reason: str = ""


def _read_row(line: int, row: Any, instruction_columns: Sequence[str], output_columns: Sequence[str]) -> _Row:
    if not isinstance(row, Mapping):
        return _Row(line, reason="it is no JSON object")
    instruction = next((row[column] for column in instruction_columns if row.get(column)), None)
    if instruction is None:
        wanted = " or ".join(repr(column) for column in instruction_columns)
        present = ", ".join(map(str, row)) or "none"
        return _Row(line, reason=f"nothing stands in column {wanted}; its columns are {present}")
    if row.get("input"):
        return _Row(line, reason="it has an 'input' beside its instruction; join the two into one column")
    system = row.get("system") or ""
    if isinstance(instruction, str):
        messages = [("user", instruction)]
    else:
        try:
            messages = [(message["role"], message["content"]) for message in instruction]
        except (KeyError, TypeError):
            return _Row(line, reason="its instruction is neither a text nor a list of messages")
    asked = [message for message in messages if message[0] != "assistant"]
    if [role for role, _ in asked] == ["system", "user"]:
        system = asked[0][1]
    elif [role for role, _ in asked] != ["user"]:
        return _Row(line, reason="its instruction is not one user message, with a system message before it or none")
    text = asked[-1][1]
    if not isinstance(text, str) or not isinstance(system, str):
        return _Row(line, reason="its instruction or system message is no text")
    output = next((row[column] for column in output_columns if row.get(column)), None)
    if isinstance(output, list) and output and isinstance(output[-1], Mapping):
        output = output[-1].get("content")
    elif isinstance(output, Mapping):
        output = output.get("content")
    return _Row(line, text, system, output if isinstance(output, str) else None)


# --- the verdict --------------------------------------------------------------------------------------------------

_ANSWER = re.compile(r"(?<!\w)(yes|no)(?!\w)", re.IGNORECASE)


def _derive_verdict(name: str, outputs: Sequence[str]) -> VerdictFormat:
    """The marker is what the last lines of the outputs have in common before their last Yes or No."""
    advice = "name it with --marker (argument `marker`)"
    if not outputs:
        raise PromptError(f"{name}: the rows have no outputs, which would show the marker before the verdict; {advice}")
    heads, answers = [], []
    for output in outputs:
        last_line = output.rstrip().rpartition("\n")[2]
        if found := list(_ANSWER.finditer(last_line)):
            # Markup around the marker and the answer is no part of it: VerdictFormat reads over it.
            heads.append(last_line[: found[-1].start()].rstrip(" \t*_:>`'\"$({[\\"))
            answers.append(found[-1][0])
    if len(heads) < 0.5 * len(outputs):
        raise PromptError(f"{name}: only {len(heads)} of {len(outputs)} outputs end in a line with Yes or No; {advice}")
    marker = agreed(heads, 0.9, backward=True).lstrip(" \t*_#>-.,;:!?)")
    if not marker:
        raise PromptError(
            f"{name}: the outputs' last lines have nothing in common before Yes or No, as in {heads[0]!r:.60}; {advice}"
        )
    spelled = {answer.casefold(): answer for answer, _ in reversed(Counter(answers).most_common())}
    return VerdictFormat(marker, spelled.get("yes", "Yes"), spelled.get("no", "No"))
