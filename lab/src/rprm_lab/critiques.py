r"""What a critic of whole solutions is trained on: critiques of the solutions that labelled steps are of.

    Step 1: It finds how many coins Mia has now. The problem says: Mia counts 25 coins. [...] Nothing is wrong.
    Step 2: Step 1 gives 18. [...] That is not the same. The calculation is wrong.
    Index of the first wrong step: \boxed{1}

A critic sees the labels that R-PRM's cold start sees, and no other: of a right step its solution up to there, which
has no wrong step; of a wrong one, the first of its solution, the solution up to there or to a later step, taken at
random, so that neither where a solution ends nor whether it is whole tells that something is wrong.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from rprm.errors import InputError
from rprm.prompts import CriticTemplate
from rprm.records import Analysis, LabelledStep, StepAnalyses
from rprm.runs import read_json_lines, write_atomically
from rprm.verdict import VerdictFormat
from rprm_lab.solutions import LabSolution
from rprm_lab.teacher import Faults, criticise, verdict_line
from rprm_lab.world import JUDGE_TEMPLATE, read_card, training_solutions

#: Rows for `rprm data cold-start`, the template that they are trained with, and the same for a critic (`critic:`).
CRITIQUES, TRAINING_PROMPT, CRITIC_PROMPT = "critiques.jsonl", "prompt.toml", "critic.toml"

#: A row ends in a verdict on the whole, as rows of a judge do. A critic is done with its box.
TRAINING_TEMPLATE = replace(
    JUDGE_TEMPLATE, name="lab-critic", user="Problem: {{problem}}\n{{steps}}\nCheck all steps.\n",
    verdict=VerdictFormat(marker="Is the solution correct (Yes/No)?"),
)  # fmt: skip
CRITIC_TEMPLATE = CriticTemplate(
    name="lab", chat=False, user=TRAINING_TEMPLATE.user, step_format=TRAINING_TEMPLATE.step_format,
    step_separator=TRAINING_TEMPLATE.step_separator, stop=f"\n{TRAINING_TEMPLATE.verdict.marker}",
)  # fmt: skip


def write_critiques(
    world: str | Path, steps: str | Path, folder: str | Path, *, num_critiques: int, faults: Faults, seed: int
) -> tuple[int, int]:
    """Write the critiques that name what a step's label says, for each of some labelled steps of a world.

    Returns:
        How many agree with the label, of how many.

    Raises:
        InputError: the steps are not of this world.
    """
    settings = read_card(world)
    wanted: dict[str, list[LabelledStep]] = {}
    for step in read_json_lines(Path(steps), LabelledStep.model_validate):
        wanted.setdefault(step.id.rpartition(".")[0], []).append(step)
    lines: list[str] = []
    num_agreeing = num_written = 0
    for identifier, _, solution in training_solutions(settings):
        for step in wanted.pop(identifier, ()):
            if step.steps != tuple(one.text for one in solution.steps[: step.step_index + 1]):
                raise InputError(f"{steps}: {step.id} is no step of {world}: make the world and its steps again")
            row = _criticised(step, solution, range(seed * num_critiques, (seed + 1) * num_critiques), faults)
            num_written += num_critiques
            num_agreeing += len(row.analyses)
            lines.append(f"{row.model_dump_json()}\n")
        if not wanted:
            break
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / TRAINING_PROMPT, TRAINING_TEMPLATE.to_toml())
    write_atomically(folder / CRITIC_PROMPT, CRITIC_TEMPLATE.to_toml())
    write_atomically(folder / CRITIQUES, "".join(lines))
    return num_agreeing, num_written


def _criticised(step: LabelledStep, solution: LabSolution, seeds: range, faults: Faults) -> StepAnalyses:
    """The solution as far as it is shown, as a step that is labelled as the whole is, and what critiques agree."""
    index = -1 if step.label else step.step_index
    last = len(solution.steps) - 1
    shown = solution.steps[: 1 + (step.step_index if step.label else random.Random(step.id).randint(index, last))]
    name = step.id.rpartition(".")[0]
    written = (criticise([one.checks for one in shown], faults, solution=name, seed=seed) for seed in seeds)
    texts = [f"{text}\nIndex of the first wrong step: \\boxed{{{found}}}" for text, found in written if found == index]
    *previous, final = (one.text for one in shown)
    return StepAnalyses(
        step=step.model_copy(update={"previous_steps": tuple(previous), "step": final}),
        analyses=tuple(_analyses(texts, step.label, index)),
    )


def _analyses(texts: list[str], is_right: bool, index: int) -> Iterator[Analysis]:
    for text in texts:
        yield Analysis(
            text=f"{text}\n{verdict_line(is_right, TRAINING_TEMPLATE.verdict)}", verdict=is_right, p_yes=float(is_right),
            p_yes_source="vote", num_tokens=len(text.split()), finish_reason="stop", first_error=index,
        )  # fmt: skip
