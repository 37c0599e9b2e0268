"""Analysed steps for the tests of what is made of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from rprm.records import Analysis, LabelledStep, StepAnalyses

MARKER = "Is the step correct (Yes/No)?"

#: One analysis: its verdict (None: it reaches none), or its verdict and length in tokens.
Said = bool | None | tuple[bool, int]


def analysed(number: int, label: bool, said: Sequence[Said], *, problem: str | None = None) -> StepAnalyses:
    """Step `number` with analyses that say `said`."""
    analyses = []
    for sample, one in enumerate(said):
        verdict, num_tokens = one if isinstance(one, tuple) else (one, 20)
        text = f"Analysis {sample} of step {number}."
        if verdict is not None:
            text += f"\n{MARKER} {'Yes' if verdict else 'No'}"
        analyses.append(
            Analysis(
                text=text,
                verdict=verdict,
                p_yes=None if verdict is None else 0.9 if verdict else 0.2,
                p_yes_source=None if verdict is None else "logprobs",
                num_tokens=num_tokens,
                finish_reason="length" if verdict is None else "verdict",
            )
        )
    step = LabelledStep(
        id=f"s{number}",
        problem=problem or f"Problem {number}?",
        previous_steps=("First this.",) * (number % 3),
        step=f"Then {number}.",
        label=label,
    )
    return StepAnalyses(step=step, analyses=tuple(analyses))


@pytest.fixture
def write_analyses(tmp_path: Path) -> Callable[[Sequence[StepAnalyses]], Path]:
    def write(rows: Sequence[StepAnalyses]) -> Path:
        path = tmp_path / "analyses.jsonl"
        path.write_text("".join(row.model_dump_json() + "\n" for row in rows))
        return path

    return write
