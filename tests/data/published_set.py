"""A stand-in for R-PRM's published training set: its layout of folders and columns, in a wording of our own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rprm.prompts import PromptTemplate

MARKER = "Verification: Is the step correct (Yes/No)?"

#: What the instructions are made with. Short, since the tiny model's context is 512 bytes.
WORDING = PromptTemplate(
    name="stand-in",
    user="You check sums.\n\nSum: {{problem}}\n\nLines so far:\n{{previous_steps}}\n\nLine to check:\n"
    "Step {{step_number}}: {{step}}\n\nExplain, then decide.",
    step_separator="\n",
    no_previous_steps="There are none yet.",
)


def instruction(number: int) -> str:
    """Of the step of row `number`: the first, second or third of its solution, wrong where the number is odd."""
    steps = [f"Write {number} down.", f"Write {number + 1} beside it."][: number % 3]
    total = 2 * number + 1 + number % 2
    steps.append(f"{number} + {number + 1} = {total}.")
    return WORDING.render(f"What is {number} + {number + 1}?", steps, len(steps) - 1).messages[-1].content


def analysis(number: int, yes: bool, *, end: str = "") -> str:
    return f"It should be {2 * number + 1}.\n{MARKER} {'Yes' if yes else 'No'}{end}"


def sft_row(number: int) -> dict[str, Any]:
    return {
        "instruction": instruction(number),
        "output": analysis(number, number % 2 == 0, end=("", ".", "\n")[number % 3]),
    }


def dpo_row(number: int) -> dict[str, Any]:
    right = number % 2 == 0
    return {
        "instruction": instruction(number),
        "chosen": analysis(number, right),
        "rejected": analysis(number, not right),
    }


#: Rows that do not fit, by the reason that they are counted under.
BAD_SFT = {
    "output: 2 verdicts": {**sft_row(300), "output": f"{MARKER} No\nWait.\n{MARKER} Yes"},
    "output: no verdict": {**sft_row(301), "output": "It should be 603, and so"},
    "output: text after the verdict": {**sft_row(302), "output": analysis(302, True, end=", all is well")},
    "output is no text": {**sft_row(303), "output": None},
    "the template does not make the instruction": {**sft_row(304), "instruction": "Sum: 1 + 1. Right or wrong?"},
}
BAD_DPO = {
    "chosen: no verdict": {**dpo_row(300), "chosen": "Yes"},
    "rejected: verdict No, which agrees with the label": {**dpo_row(301), "rejected": analysis(301, False)},
}
#: Pairs whose rejected analysis has no verdict, or goes on after it: fit all the same.
ODD_DPO = [
    {**dpo_row(302), "rejected": "It should be 604, and so on and on"},
    {**dpo_row(303), "rejected": analysis(303, True, end=", since 604 is even")},
]


def write_set(folder: Path, parts: dict[str, list[dict[str, Any]]]) -> Path:
    """Parquet files as the published ones lie: `FOLDER/sft/train/part-0.parquet`, two to a part."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    for part, rows in parts.items():
        (folder / part).mkdir(parents=True)
        half = len(rows) // 2
        for number, some in enumerate((rows[:half], rows[half:])):
            schema = pa.schema([(name, pa.string()) for name in rows[0]])
            pq.write_table(pa.Table.from_pylist(some, schema=schema), folder / part / f"part-{number}.parquet")
    return folder


def stand_in(folder: Path) -> Path:
    """80 training and 12 validation rows of each kind, the ones that do not fit among the former."""
    sft = [sft_row(number) for number in range(80)]
    sft[40:40] = BAD_SFT.values()
    dpo = [dpo_row(number) for number in range(80)]
    dpo[40:40] = [*BAD_DPO.values(), *ODD_DPO]
    return write_set(
        folder,
        {
            "sft/train": sft,
            "sft/validation": [sft_row(number) for number in range(100, 112)],
            "dpo/train": dpo,
            "dpo/validation": [dpo_row(number) for number in range(100, 112)],
        },
    )
