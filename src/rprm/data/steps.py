"""Labelled steps in: our own rows, and every format that step labels are published in; `rprm bench steps`."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from sys import intern
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import AliasChoices, BeforeValidator, Field

from rprm import reading
from rprm.benchmarks import Benchmark, StepItem, StepItems, Texts, tally_steps
from rprm.data.gsm8k import numbers, without_annotations, wrong_step
from rprm.data.solutions import LABELLING, labelled_solution_of, labels_source
from rprm.data.stage_options import Neutral, StepOptions
from rprm.errors import InputError
from rprm.files import disk
from rprm.reading import AnyText, Rejected, Row, RowModel, Rows, Source, StepLabel, Text, checked
from rprm.records import LabelledStep, Probability
from rprm.runs import MANIFEST, finished_manifest, read_manifest, verified_results

STAGE = "steps"

#: Ends a step of Math-Shepherd (arXiv 2312.08935; the model card of peiyi9979/math-shepherd-mistral-7b-prm). Of
#: MATH-APS it does, or five line ends (openreasoner/openr, `preprocess/README.org`).
STEP_TAG = "ки"
_APS_TAG = re.compile(rf"\n{{5}}|(?<!\w){STEP_TAG}(?!\w)")
_FIRST_STEP = re.compile(r"\bstep\s*1\s*:", flags=re.IGNORECASE)
_STEP_NUMBER = re.compile(r"^step\s*(\d{1,4})\s*:", flags=re.IGNORECASE)


def steps_source(name: str | Path) -> Source:
    """A source of labelled steps: a finished run of `rprm data steps` (else a RunError), a file, or a hub data set."""
    folder = Path(name)
    with disk(folder):
        if not folder.is_dir():
            return Source(str(name), split="train")
    finished_manifest(folder, stage=STAGE, command="rprm data steps")
    return Source(str(verified_results(folder)))


def gathered_source(name: str | Path) -> Source:
    """A source of what labelled steps are gathered from: as `steps_source`, or a run that labels solutions."""
    folder = Path(name)
    with disk(folder):
        is_labels = (folder / MANIFEST).is_file() and read_manifest(folder)["stage"] in LABELLING
    return labels_source(name) if is_labels else steps_source(name)


def read_labelled_steps(source: Source, limit: int | None = None) -> Rows[LabelledStep]:
    """The rows of a source, or the first `limit` of them, as `LabelledStep`s; other fields are ignored, and without an
    id it is `line-N`."""
    return Rows(source, lambda row: labelled_step_of(row.value, default_id=f"line-{row.line}"), limit)


class _StepRow(RowModel):
    id: reading.Identifier | None = None
    problem: Text
    previous_steps: list[AnyText] | None = None
    step: Text
    label: bool
    source: AnyText | None = None
    soft: Probability | None = None


def labelled_step_of(value: Any, default_id: str, default_source: str | None = None) -> LabelledStep:
    """Check one row and make a `LabelledStep` of it; an InputError says what is wrong with it."""
    row = checked(_StepRow, value).model_dump(exclude_none=True)
    return LabelledStep(**dict[str, Any](id=default_id, source=default_source) | row)


@dataclass(frozen=True)
class Origin:
    """The row that labelled steps are made of: its id begins theirs; `skipped` counts what gave none, by reason."""

    id: str
    source: str
    skipped: Counter[str] = field(default_factory=Counter)

    def skip(self, reason: str, count: int = 1) -> None:
        if count:
            self.skipped[reason] += count

    def labelled(
        self, problem: str, previous: Sequence[str], step: str, label: bool, *, choice: str = "", part: str = "",
        soft: float | None = None,
    ) -> LabelledStep:  # fmt: skip
        """A labelled step of this row; `choice` ends its id, `part` its source."""
        name, part = f"{self.id}-{len(previous)}{choice}", f"{self.source}:{part}" if part else self.source
        before = tuple(previous)
        return LabelledStep(
            id=name, problem=problem, previous_steps=before, step=step, label=label, source=part, soft=soft
        )


class StepwiseRow(RowModel):
    prompt: Annotated[Text, Field(validation_alias=AliasChoices("prompt", "problem", "question"))]
    completions: Annotated[list[Text], Field(min_length=1, validation_alias=AliasChoices("completions", "steps"))]
    labels: list[StepLabel]


def stepwise_steps(record: dict[str, Any], origin: Origin, options: StepOptions) -> Iterator[LabelledStep]:
    """Rows of a label a step, TRL's `{prompt, completions[], labels[]}` or `{problem | question, steps[], labels[]}`;
    steps that all begin with their number lose it."""
    row = checked(StepwiseRow, record)
    if (wanted := len(row.completions)) != len(row.labels):
        raise InputError(f"'labels' must be a list of {wanted} labels, one for each completion, not {len(row.labels)}")
    steps = _unnumbered([without_annotations(step).strip() or step for step in row.completions])
    yield from _labelled(origin, row.prompt, steps, row.labels, options.after_error)


def _unnumbered(steps: list[str]) -> list[str]:
    """Steps that all begin with their number, without it."""
    matches = [_STEP_NUMBER.match(step.strip()) for step in steps]
    if all(match and int(match[1]) == number for number, match in enumerate(matches, 1)):
        bare = [_STEP_NUMBER.sub("", step.strip()).strip() for step in steps]
        return bare if all(bare) else steps
    return steps


def solution_steps(record: dict[str, Any], origin: Origin, options: StepOptions) -> Iterator[LabelledStep]:
    """Rows of `LabelledSolution`, ProcessBench's `{id?, problem, steps[], label}` among them, with the 0-based first
    wrong step, -1 for none; without that label, what `options.outcomes` says of the final answer's."""
    solution = labelled_solution_of(record, default_id=origin.id)
    origin = Origin(solution.id, solution.source or origin.source, origin.skipped)
    problem, steps, is_right = solution.problem, solution.steps, solution.final_answer_correct
    if solution.label is not None:
        labels = [index != solution.label for index in range(len(steps))]
        yield from _labelled(origin, problem, steps, labels, soft=solution.soft)
    elif is_right is None:
        if "final_answer_correct" not in record:
            wanted = "the 0-based index of the earliest wrong step, -1 for none; or true or false, of the final answer"
            raise InputError(f"'label' is missing: it must be {wanted}")
        origin.skip("solutions of which nothing is known")
    elif solution.soft is not None:
        origin.skip("solutions whose first error is not known")
    elif options.outcomes == "whole":
        yield origin.labelled(problem, (), "\n\n".join(steps), is_right, choice="-whole", part="outcome")
    elif is_right:
        yield from _labelled(origin, problem, steps, [True] * len(steps), part="outcome")
    else:
        origin.skip("solutions with a wrong final answer: no step of theirs is known to be wrong")


class MathShepherdRow(RowModel):
    input: Text
    label: Text
    task: Any = None


def math_shepherd_steps(record: dict[str, Any], origin: Origin, options: StepOptions) -> Iterator[LabelledStep]:
    """Rows `{input, label, task}` of Math-Shepherd: a problem, and steps that end in a tag, in `label` in + or -."""
    row = checked(MathShepherdRow, record)
    *tagged, rest = row.input.split(STEP_TAG)
    if not tagged:
        raise InputError(f"'input' has no step tag {STEP_TAG!r}")
    labels, end = list[bool](), 0
    for number, text in enumerate(tagged, 1):
        if not row.label.startswith((f"{text}+", f"{text}-"), end):
            raise InputError(f"'label' must be 'input' with + or - for each {STEP_TAG!r}; it differs at step {number}")
        end += len(text) + 1
        labels.append(row.label[end - 1] == "+")
    if row.label[end:].strip() != rest.strip():
        raise InputError(f"'label' must end as 'input' does; it ends in {row.label[end:]!r:.80}")
    problem, steps = _cut_off_problem(tagged)
    origin.skip("steps without a tag", bool(rest.strip()))
    part = row.task if isinstance(row.task, str) else ""
    yield from _labelled(origin, problem, steps, labels, options.after_error, part)


def _cut_off_problem(tagged: list[str]) -> tuple[str, list[str]]:
    """The problem, which stands before the only 'Step 1:' of the first step, and the steps without their numbers."""
    begins = [match.start() for match in _FIRST_STEP.finditer(tagged[0])]
    if len(begins) != 1:
        raise InputError(f"the problem must end at one 'Step 1:' in the first step; found {len(begins)}")
    problem, tagged[0] = tagged[0][: begins[0]].strip(), tagged[0][begins[0] :]
    steps = [_STEP_NUMBER.sub("", without_annotations(step).strip()).strip() for step in tagged]
    if "" in (problem, *steps):
        empty = f"step {steps.index('') + 1} is empty" if problem else "there is no problem before 'Step 1:'"
        raise InputError(empty)
    return problem, steps


class ERPRMRow(RowModel):
    text: Text
    value: list[Probability]


def er_prm_steps(record: dict[str, Any], origin: Origin, options: StepOptions) -> Iterator[LabelledStep]:
    """Rows `{text, value[]}` of ER-PRM (hanningzhang/ER-PRM, README): a problem, steps that end in a tag, and a soft
    label for each."""
    row = checked(ERPRMRow, record)
    *tagged, rest = row.text.split(STEP_TAG)
    # The script that writes them leaves off the last tag (`MCTS/convert_autoregressive.py`).
    tagged += [rest] if rest.strip() else []
    if len(tagged) != len(row.value):
        raise InputError(f"'value' must be a list of {len(tagged)} soft labels, one a step, not {len(row.value)}")
    problem, steps = _cut_off_problem(tagged)
    labels = [value > options.above for value in row.value]
    yield from _labelled(origin, problem, steps, labels, options.after_error, soft=row.value)


class Turn(RowModel):
    role: Text
    content: AnyText


class RLHFlowRow(RowModel):
    conversations: Annotated[list[Turn], Field(min_length=2)]


def rlhflow_steps(record: dict[str, Any], origin: Origin, options: StepOptions) -> Iterator[LabelledStep]:
    """Rows `{conversations[]}` of RLHFlow (RLHFlow/RLHF-Reward-Modeling, `math/README.md`): each step is a turn of the
    user, which the assistant answers with + or -; the problem stands before the first step, in its turn.

    Where no 'Step 1:' divides the two, they stay together as the problem, and the first label is of no step."""
    turns = checked(RLHFlowRow, record).conversations
    if [turn.role for turn in turns] != ["user", "assistant"] * (len(turns) // 2):
        raise InputError("'conversations' must be turns of 'user' and 'assistant' that alternate, the user's first")
    signs, steps = [turn.content.strip() for turn in turns[1::2]], [turn.content.strip() for turn in turns[::2]]
    if unknown := next((number for number, sign in enumerate(signs, 1) if sign not in ("+", "-")), None):
        raise InputError(f"the answer to step {unknown} must be + or -, not {signs[unknown - 1]!r:.80}")
    labels = [sign == "+" for sign in signs]
    if _FIRST_STEP.search(steps[0]):
        problem, steps = _cut_off_problem(steps)
    else:
        origin.skip("first steps that nothing divides from the problem")
        problem, *steps = steps
        if not labels.pop(0):
            return origin.skip("steps after the first wrong one", len(steps))
    if "" in (problem, *steps):
        raise InputError("a turn is empty")
    yield from _labelled(origin, problem, steps, labels, options.after_error)


class MathAPSRow(RowModel):
    question: Text
    process: Text
    label: Annotated[
        list[Literal["+", "-"] | Probability], Field(min_length=1, validation_alias=AliasChoices("label", "labels"))
    ]


def math_aps_steps(record: dict[str, Any], origin: Origin, options: StepOptions) -> Iterator[LabelledStep]:
    """Rows `{question, process, label[]}` of MATH-APS (openreasoner/openr, `preprocess/`): a beginning of a solution,
    and whether it is right so far: of each of its steps where tags end them; else of it all, which is then one step."""
    row = checked(MathAPSRow, record)
    steps = [step.strip() for step in _APS_TAG.split(row.process.strip()) if step.strip()]
    labels, soft = list(row.label), [None if isinstance(one, str) else float(one) for one in row.label]
    if len(steps) != len(labels):
        raise InputError(f"'label' must be a list of {len(steps)} labels, one for each step, not {len(labels)}")
    if len(steps) > 1 and steps[0] == row.question.strip():
        # The root of its tree: the problem itself, and how often it is solved.
        del steps[0], labels[0], soft[0]
    are_right = [one == "+" if isinstance(one, str) else one > options.above for one in labels]
    yield from _labelled(origin, row.question, _unnumbered(steps), are_right, options.after_error, soft=soft)


def _labelled(
    origin: Origin, problem: str, steps: Sequence[str], labels: list[bool], after_error: bool = False, part: str = "",
    soft: Sequence[float | None] | None = None,
) -> Iterator[LabelledStep]:  # fmt: skip
    """The steps up to the first wrong one; or all. Most sets do not say what a label means after it."""
    end = len(steps) if after_error or all(labels) else labels.index(False) + 1
    origin.skip("steps after the first wrong one", len(steps) - end)
    for index in range(end):
        share = None if soft is None else soft[index]
        yield origin.labelled(problem, steps[:index], steps[index], labels[index], part=part, soft=share)


#: A hub copy with nulls among the ratings has them as floats.
_WHOLE = BeforeValidator(lambda value: int(value) if isinstance(value, float) and value.is_integer() else value)


class RatedCompletion(RowModel):
    text: AnyText | None = None
    rating: Annotated[int, Field(ge=-1, le=1), _WHOLE] | None = None
    flagged: Any = None


class RatedPlace(RowModel):
    completions: list[RatedCompletion] | None = None  # null where the labeler left before anything was shown
    chosen_completion: int | None = None
    human_completion: RatedCompletion | None = None


class RatedSteps(RowModel):
    steps: list[RatedPlace]
    finish_reason: Any = None


class RatedProblem(RowModel):
    problem: Text


class PRM800KRow(RowModel):
    question: RatedProblem
    label: RatedSteps
    is_quality_control_question: Any = None
    is_initial_screening_question: Any = None


def prm800k_steps(record: dict[str, Any], origin: Origin, options: StepOptions) -> Iterator[LabelledStep]:
    """PRM800K as OpenAI publishes it (repository openai/prm800k, `prm800k/data/phase*_*.jsonl`, and its README).

    A solution goes on with the completion that was chosen, else written by the labeler; it ends where that is wrong,
    flagged or unrated. OpenAI left out quality control and unfinished solutions (arXiv 2305.20050, appendix B).
    """
    row = checked(PRM800KRow, record)
    for index, place in enumerate(row.label.steps):
        size, named = len(place.completions or ()), place.chosen_completion
        if named is not None and not 0 <= named < size:
            wanted = f"'chosen_completion' must name one of {size} completions or be null, not {named}"
            raise InputError(f"'label.steps[{index}]': {wanted}")
    screened = row.is_quality_control_question or row.is_initial_screening_question
    if screened and not options.keep_quality_control:
        return origin.skip("solutions for quality control or screening")
    if row.label.finish_reason in ("bad_problem", "give_up") and not options.keep_unfinished:
        return origin.skip("solutions given up, or of a broken problem")
    previous: list[str] = []
    for number, place in enumerate(row.label.steps, 1):
        rated: dict[int | str, RatedCompletion] = dict(enumerate(place.completions or ()))
        chosen: int | str | None = place.chosen_completion
        if chosen is None and (human := place.human_completion):
            # Its rating is always null in the published files.
            rating = 1 if human.rating is None else human.rating
            rated[chosen := "human"] = human.model_copy(update={"rating": rating})
        labels = {choice: _label(one, options.neutral) for choice, one in rated.items()}
        for choice, label in labels.items():
            if isinstance(label, str):
                origin.skip(f"steps {label}")
                continue
            part, text = "human" if choice == "human" else "", rated[choice].text or ""
            yield origin.labelled(row.question.problem, previous, text, label, choice=f"-{choice}", part=part)
        if chosen is None:
            return
        if labels[chosen] not in (True, "rated neutral"):
            later = sum(len(one.completions or ()) for one in row.label.steps[number:])
            return origin.skip("steps after a wrong, flagged or unrated one", later)
        previous.append(rated[chosen].text or "")


def _label(completion: RatedCompletion, neutral: Neutral) -> bool | str:
    """The label of a completion; or, where it has none, what it is."""
    if not (completion.text or "").strip():
        return "without text"
    if completion.flagged:
        return "flagged"
    if completion.rating is None:
        return "not rated"
    if completion.rating == 0:
        return "rated neutral" if neutral == "drop" else neutral == "correct"
    return completion.rating == 1


class GSM8KRow(RowModel):
    question: Text
    answer: Text


def gsm8k_steps(record: dict[str, Any], origin: Origin, options: StepOptions) -> Iterator[LabelledStep]:
    """Right and wrong steps, both after right ones, of a row `{question, answer}`; a function of its text and the seed.

    Of one kind as many are left out as brings wrong rows to `wrong_share`, on average. The line `#### N` is dropped.
    """
    row, share = checked(GSM8KRow, record), options.wrong_share
    problem, answer = row.question, row.answer
    lines = [line.strip() for line in answer.split("\n") if line.strip() and not line.strip().startswith("####")]
    if not lines:
        raise InputError("'answer' has no step before its final line")
    drawn = random.Random(f"{options.seed}\n{problem}\n{answer}")
    steps = [without_annotations(line) for line in lines]
    taken = numbers(problem, words=True) | numbers(without_annotations(answer))
    wrong = {index: edited for index, line in enumerate(lines) if (edited := wrong_step(line, taken, drawn))}
    kept = {True: list(range(len(steps))), False: list(wrong)}
    # Of the more frequent kind this many on average: a fraction of one is one or none.
    more = len(wrong) * (1 - share) <= len(steps) * share
    odds = (1 - share, share) if more else (share, 1 - share)
    count = len(kept[not more]) * odds[0] / odds[1] if odds[1] else len(steps)
    number = int(count) + (drawn.random() < count - int(count))
    kept[more] = drawn.sample(kept[more], min(len(kept[more]), number))
    origin.skip("right steps left out for balance", len(steps) - len(kept[True]))
    origin.skip("wrong steps left out for balance", len(wrong) - len(kept[False]))
    origin.skip("steps that cannot be made wrong", len(steps) - len(wrong))
    origin = Origin(origin.id, "gsm8k", origin.skipped)
    for index, step in enumerate(steps):
        if index in kept[True]:
            yield origin.labelled(problem, steps[:index], step, True)
        if index in kept[False]:
            text, kind = wrong[index]
            yield origin.labelled(problem, steps[:index], text, False, choice="-wrong", part=kind)


#: For each format the fields that tell it, with their types (the first format that fits is taken), and its reader.
FORMATS: dict[str, tuple[dict[str, type], Callable[[dict[str, Any], Origin, StepOptions], Iterator[LabelledStep]]]] = {
    "prm800k": ({"question": dict, "label": dict}, prm800k_steps),
    "steps": ({"problem": str, "step": str}, lambda row, at, _: iter([labelled_step_of(row, at.id, at.source)])),
    "math-aps": ({"question": str, "process": str}, math_aps_steps),
    "stepwise": ({"labels": list}, stepwise_steps),
    "math-shepherd": ({"input": str, "label": str}, math_shepherd_steps),
    "er-prm": ({"text": str, "value": list}, er_prm_steps),
    "rlhflow": ({"conversations": list}, rlhflow_steps),
    "solutions": ({"problem": str, "steps": list}, solution_steps),
    "gsm8k": ({"question": str, "answer": str}, gsm8k_steps),
}


class Expanded(NamedTuple):
    """The labelled steps of one row of a source, and what of it gave none, by reason."""

    format: str
    steps: list[LabelledStep]
    skipped: Counter[str]


def read_steps(
    source: Source, *, format: str = "auto", options: StepOptions | None = None
) -> Iterator[Expanded | Rejected]:
    """The labelled steps of every row of a source; `format` is one of `FORMATS`, or `auto`, by each row's fields."""
    return reading.read_rows(source, lambda row: expand_row(row, source_name(source), format, options or StepOptions()))


def expand_row(row: Row, name: str, format: str, options: StepOptions) -> Expanded:
    """The labelled steps of one row of a source of this name; an InputError says what is wrong with it."""
    record, origin = reading.json_object(row.value), Origin(f"{name}-{row.line}", name)
    chosen = format_of(record) if format == "auto" else format
    return Expanded(chosen, list(FORMATS[chosen][1](record, origin, options)), origin.skipped)


def format_of(record: dict[str, Any]) -> str:
    """The format of a row, by its fields; an InputError where no format has these."""
    for name, (fields, _) in FORMATS.items():
        if all(isinstance(record.get(field), kind) for field, kind in fields.items()):
            return name
    formats = "; ".join(f"{name} has {', '.join(fields)}" for name, (fields, _) in FORMATS.items())
    raise InputError(f"no format of labelled steps has these fields: {reading.field_names(record)} ({formats})")


def source_name(source: Source) -> str:
    """What a source is called in ids and in `source`: the hub's name, or a file's name without its endings."""
    return source.hub["path"] if source.hub is not None else reading.stem(source.path)


def _read_items(data: str, *, revision: str | None = None) -> StepItems:
    texts, items, rejected = Texts(), list[StepItem](), list[Rejected]()
    for row in read_labelled_steps(source := steps_source(data)):
        if isinstance(row, Rejected):
            rejected.append(row)
        else:
            items.append(StepItem(texts.put(row.solution), row.label, row.source and intern(row.source)))
    return StepItems(tuple(items), tuple(rejected), sources=(source.inspect(),))


STEPS = Benchmark(
    name="steps",
    help="""Labelled steps: accuracy on wrong and on correct ones, their harmonic mean (F1), accuracy on each source.

    DATA is a run folder of `rprm data steps`, or a file of labelled steps. Each is judged alone, after the steps before
    it. The share of analyses that reach a verdict unasked (well-formed) is measured too: --stopping none counts all.
    """,
    read=_read_items,
    tally=tally_steps,
    judged="last step",
)
