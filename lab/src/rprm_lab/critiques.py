"""What a critic of whole solutions is trained on: critiques of the solutions that labelled steps are of.

A critic sees the labels that R-PRM's cold start sees, and no other: of a right step its solution up to there, which
has no wrong step; of a wrong one, the first of its solution, the solution up to there or to a later step, taken at
random, so that neither where a solution ends nor whether it is whole tells that something is wrong.
"""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

from rprm.errors import InputError
from rprm.prompts import CriticTemplate
from rprm.records import Analysis, LabelledStep, StepAnalyses
from rprm.runs import read_json_lines, write_atomically
from rprm.verdict import VerdictFormat
from rprm_lab.engine import TeacherEngine
from rprm_lab.solutions import LabSolution
from rprm_lab.teacher import Faults, criticise, verdict_line
from rprm_lab.world import JUDGE_TEMPLATE, held_out_problems, read_card, trained

#: Rows for `rprm data cold-start`, the template that they are trained with, and the same for a critic (`critic:`).
CRITIQUES, TRAINING_PROMPT, CRITIC_PROMPT = "critiques.jsonl", "prompt.toml", "critic.toml"

#: A row ends in a verdict on the whole, as a judge's rows do; a critic is done with its box.
_VERDICT = VerdictFormat(marker="Is the solution correct (Yes/No)?")
_USER = "Problem: {{problem}}\n{{steps}}\nCheck all steps.\n"
TRAINING_TEMPLATE = replace(JUDGE_TEMPLATE, name="lab-critic", user=_USER, verdict=_VERDICT)
CRITIC_TEMPLATE = CriticTemplate(
    name="lab", chat=False, user=_USER, step_format=TRAINING_TEMPLATE.step_format, step_separator="\n",
    stop=f"\n{_VERDICT.marker}",
)  # fmt: skip


def write_critiques(
    steps: str | Path, folder: str | Path, teacher: TeacherEngine, *, num_critiques: int, seed: int
) -> int:
    """Write, for each of some labelled steps of the teacher's world, which critiques of its solution name what its
    label says; returns their number. An `InputError` where there are none, or they are of another world or split."""
    folder, settings = Path(folder), read_card(teacher.world)
    wanted: dict[str, list[LabelledStep]] = {}
    for step in read_json_lines(Path(steps), LabelledStep.model_validate):
        wanted.setdefault(step.id.rpartition(".")[0], []).append(step)
    if not wanted:
        raise InputError(f"{steps}: no labelled steps there; `rprm lab steps` takes some of a world")
    seeds, rows = range(seed * num_critiques, (seed + 1) * num_critiques), list[StepAnalyses]()
    written = read_json_lines(teacher.world / "train" / "solutions.jsonl")
    for row, (_, solution) in zip(written, trained(settings, held_out_problems(settings)), strict=False):
        found = wanted.pop(row["id"], ())
        if any(step.steps != tuple(row["steps"][: len(step.steps)]) for step in found):
            wanted = {row["id"]: list(found)}
            break
        rows += (_criticised(step, solution, seeds, teacher.faults) for step in found)
        if not wanted:
            break
    if wanted:
        raise InputError(f"{steps}: {min(wanted)} is no solution of {teacher.world}, split train, or another there")
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / TRAINING_PROMPT, TRAINING_TEMPLATE.to_toml())
    write_atomically(folder / CRITIC_PROMPT, CRITIC_TEMPLATE.to_toml())
    write_atomically(folder / CRITIQUES, "".join(f"{row.model_dump_json()}\n" for row in rows))
    return sum(len(row.analyses) for row in rows)


def _criticised(step: LabelledStep, solution: LabSolution, seeds: range, faults: Faults) -> StepAnalyses:
    """The last step that is shown, labelled as the whole is, and the critiques that agree."""
    index, last, name = -1 if step.label else step.step_index, len(solution.steps) - 1, step.id.rpartition(".")[0]
    shown = solution.steps[: 1 + (step.step_index if step.label else random.Random(step.id).randint(index, last))]
    *previous, final = (one.text for one in shown)
    whole = step.model_copy(update={"previous_steps": tuple(previous), "step": final})
    written = (criticise(shown, faults, solution=name, seed=seed) for seed in seeds)
    agreeing = tuple(_analysis(critique, step.label, index) for critique, found in written if found == index)
    return StepAnalyses(step=whole, analyses=agreeing)


def _analysis(critique: str, is_right: bool, index: int) -> Analysis:
    text = f"{critique}\nIndex of the first wrong step: \\boxed{{{index}}}\n{verdict_line(is_right, _VERDICT)}"
    return Analysis(
        text=text, verdict=is_right, p_yes=float(is_right), p_yes_source="vote", first_error=index,
        num_tokens=len(text.split()), finish_reason="stop",
    )  # fmt: skip
