"""Labelled steps from solutions whose steps have labels: TRL's stepwise rows, earliest errors, Math-Shepherd."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from rprm.data.gsm8k import without_annotations
from rprm.data.origins import Origin
from rprm.errors import InputError
from rprm.reading import RowModel, Text, checked, solution_of
from rprm.records import LabelledStep

#: What ends a step of Math-Shepherd (arXiv 2312.08935; the model card of peiyi9979/math-shepherd-mistral-7b-prm).
STEP_TAG = "ки"


class StepwiseRow(RowModel):
    prompt: Text
    completions: Annotated[list[Text], Field(min_length=1)]
    labels: list[Annotated[bool, BeforeValidator(lambda label: bool(label) if label in (0, 1) else label)]]


class MathShepherdRow(RowModel):
    input: Text
    label: Text
    task: Any = None


def stepwise_steps(record: dict[str, Any], origin: Origin, *, after_error: bool = False) -> list[LabelledStep]:
    """TRL's stepwise rows `{prompt, completions[], labels[]}` (TRL, "Dataset formats": stepwise supervision).

    Steps that all begin with their own number (`Step 1:`, `Step 2:`, ...) lose it, and all lose GSM8K's annotations, as
    in Math-Shepherd.

    Args:
        record: the row; its labels are true and false, or 1 and 0.
        origin: where it comes from.
        after_error: go on after the first wrong step. Most sets do not say what a label means there.

    Raises:
        InputError: the row has not this form.
    """
    row = checked(StepwiseRow, record)
    if len(row.labels) != len(row.completions):
        raise InputError(
            f"'labels' must be a list of {len(row.completions)} labels, one for each completion, not {len(row.labels)}"
        )
    bare = [without_annotations(step).strip() or step for step in row.completions]
    return _labelled(row.prompt, _without_numbers(bare), row.labels, origin, after_error)


def solution_steps(record: dict[str, Any], origin: Origin) -> list[LabelledStep]:
    """Rows `{id?, problem, steps[], label}`; the label is the 0-based earliest wrong step, -1 for none (ProcessBench).

    Steps after the wrong one have no label and give no row.

    Raises:
        InputError: the row has not this form, or no label.
    """
    solution = solution_of(record, default_id=origin.id)
    if solution.label is None:
        raise InputError("'label' is missing: it must be the 0-based index of the earliest wrong step, or -1 for none")
    last = len(solution.steps) - 1 if solution.label == -1 else solution.label
    labels = [index != solution.label for index in range(last + 1)]
    origin = replace(origin, id=solution.id)
    if last + 1 < len(solution.steps):
        origin.skipped[AFTER_ERROR] += len(solution.steps) - last - 1
    return _labelled(solution.problem, solution.steps[: last + 1], labels, origin, False)


def math_shepherd_steps(record: dict[str, Any], origin: Origin, *, after_error: bool = False) -> list[LabelledStep]:
    """Rows `{input, label, task}` of peiyi9979/Math-Shepherd.

    `input` is the problem, then `Step 1: ... ки`, `Step 2: ... ки` and so on; `label` is the same text with `+` or `-`
    in place of each tag. The steps lose their number, and the annotations of their calculations (`<<40*3=120>>`), which
    its generator had learnt from GSM8K. A row whose first tag does not follow a `Step 1:`, or whose two texts differ
    elsewhere, is no such row: a few published ones have a tag inside the problem.

    Args:
        record: the row.
        origin: where it comes from.
        after_error: go on after the first wrong step. The labels say there whether any of the sampled continuations
            came to the right answer.

    Raises:
        InputError: the row has not this form.
    """
    row = checked(MathShepherdRow, record)
    *tagged, rest = row.input.split(STEP_TAG)
    if not tagged:
        raise InputError(f"'input' has no step tag {STEP_TAG!r}")
    labels = _marks(tagged, rest, row.label)
    begins = list(_FIRST_STEP.finditer(tagged[0]))
    if len(begins) != 1:
        raise InputError(f"the problem must end at one 'Step 1:' before the first {STEP_TAG!r}; found {len(begins)}")
    problem = tagged[0][: begins[0].start()].strip()
    if not problem:
        raise InputError("there is no problem before 'Step 1:'")
    steps = [
        _STEP_NUMBER.sub("", without_annotations(step).strip()).strip()
        for step in (tagged[0][begins[0].start() :], *tagged[1:])
    ]
    for index, step in enumerate(steps):
        if not step:
            raise InputError(f"step {index + 1} is empty")
    if rest.strip():
        origin.skipped["steps without a tag"] += 1
    part = row.task if isinstance(row.task, str) else ""
    return _labelled(problem, steps, labels, origin, after_error, part)


#: Why the steps after a wrong one give no rows, in the counts.
AFTER_ERROR = "steps after the first wrong one"

_FIRST_STEP = re.compile(r"\bstep\s*1\s*:", flags=re.IGNORECASE)
_STEP_NUMBER = re.compile(r"^step\s*(\d{1,4})\s*:", flags=re.IGNORECASE)


def _without_numbers(steps: Sequence[str]) -> Sequence[str]:
    numbers = [_STEP_NUMBER.match(step.strip()) for step in steps]
    if not all(match and int(match[1]) == index for index, match in enumerate(numbers, 1)):
        return steps
    bare = [_STEP_NUMBER.sub("", step.strip(), count=1).strip() for step in steps]
    return bare if all(bare) else steps


def _marks(tagged: Sequence[str], rest: str, marked: str) -> list[bool]:
    """The label of each step: what `label` has where `input` has its tags."""
    labels: list[bool] = []
    place = 0
    for index, text in enumerate(tagged):
        place += len(text)
        mark = marked[place : place + 1]
        if not marked.startswith(text, place - len(text)) or mark not in ("+", "-"):
            raise InputError(
                f"'label' must be 'input' with + or - in place of each {STEP_TAG!r}; it differs at step {index + 1}"
            )
        labels.append(mark == "+")
        place += 1
    if marked[place:].strip() != rest.strip():
        raise InputError(f"'label' must end as 'input' does; it ends in {marked[place:]!r:.80}")
    return labels


def _labelled(
    problem: str, steps: Sequence[str], labels: Sequence[bool], origin: Origin, after_error: bool, part: str = ""
) -> list[LabelledStep]:
    wrong = next((index for index, label in enumerate(labels) if not label), len(steps) - 1)
    last = len(steps) - 1 if after_error else wrong
    if last + 1 < len(steps):
        origin.skipped[AFTER_ERROR] += len(steps) - last - 1
    return [
        origin.labelled(problem, steps[:index], steps[index], labels[index], part=part) for index in range(last + 1)
    ]
