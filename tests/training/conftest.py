"""Fixtures of the training tests: small data sets in the form that `rprm data` writes, and one thread for torch."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rprm.prompts.library import MODEL_TEMPLATE
from rprm.prompts.template import PromptTemplate

#: Short, since the tiny model's context is 512 bytes.
TEMPLATE = PromptTemplate(
    name="tiny",
    user="Problem: {{problem}}\nSteps:\n{{steps}}\nIs Step {{step_number}} right?",
    step_separator="\n",
)

RAW_TEMPLATE = PromptTemplate(
    name="tiny-raw",
    user="Problem: {{problem}}\n{{steps}}\nCheck of Step {{step_number}}:",
    step_separator="\n",
    chat=False,
)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


def make_row(number: int, kind: str = "sft", template: PromptTemplate = TEMPLATE) -> dict[str, Any]:
    """A step about a sum: right where `number` is even, and analyses that say so (or, rejected, the opposite)."""
    label = number % 2 == 0
    total = 2 * number if label else 2 * number + 1
    steps = [f"Take {number}.", f"{number} + {number} = {total}."][: 1 + number % 3 % 2 * 1 + 1]
    prompt = template.render(f"What is {number} + {number}?", steps, len(steps) - 1)

    def reply(yes: bool) -> Any:
        text = f"The sum is {2 * number}.\n{template.verdict.marker} {'Yes' if yes else 'No'}"
        return [{"role": "assistant", "content": text}] if template.chat else f" {text}"

    row: dict[str, Any] = {
        "id": f"row-{number}",
        "label": label,
        "prompt": [{"role": m.role, "content": m.content} for m in prompt.messages] if template.chat else prompt.text,
    }
    if kind == "sft":
        return {**row, "completion": reply(label)}
    return {**row, "chosen": reply(label), "rejected": reply(not label)}


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def make_data(tmp_path: Path) -> Callable[..., Path]:
    """Writes a data set's folder: `make_data(kind="sft", num_train=16, num_validation=0, template=TEMPLATE)`."""

    def make(
        kind: str = "sft", num_train: int = 16, num_validation: int = 0, template: PromptTemplate = TEMPLATE
    ) -> Path:
        folder = tmp_path / f"data-{kind}-{num_train}-{num_validation}-{template.name}"
        folder.mkdir()
        write_rows(folder / "train.jsonl", [make_row(number, kind, template) for number in range(num_train)])
        if num_validation:
            rows = [make_row(1000 + number, kind, template) for number in range(num_validation)]
            write_rows(folder / "validation.jsonl", rows)
        (folder / MODEL_TEMPLATE).write_text(template.to_toml())
        return folder

    return make
