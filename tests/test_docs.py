"""The examples of the guides run."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BLOCKS = [
    pytest.param(block, id=f"{name} {number}")
    for name in ("README.md", "docs/python.md")
    for number, block in enumerate(re.findall(r"```python\n(.*?)```", (ROOT / name).read_text("utf-8"), re.DOTALL), 1)
]


@pytest.mark.parametrize("block", BLOCKS)
def test_python_runs_as_it_stands(block: str, tmp_path: Path) -> None:
    command = [sys.executable, "-W", "error", "-c", block]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout
    assert "nan" not in done.stdout.lower()
    # What the guide says that its first example prints.
    told = re.findall(r"```text\n(.*?)```", (ROOT / "docs" / "python.md").read_text("utf-8"), re.DOTALL)
    assert "progress=True" not in block or done.stdout == told[0]


def test_the_columns_are_those_of_the_table() -> None:
    from rprm.tables import COLUMNS

    rows = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \| (\w+) \|", (ROOT / "docs" / "python.md").read_text("utf-8"), re.M)
    told = {name: kind for names, kind in rows for name in re.findall(r"\w+", names)}
    assert told == {name: kind for name, (_, kind) in COLUMNS.items()}
