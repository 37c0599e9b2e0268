"""docs/integrations.md names what there is."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
from pathlib import Path

GUIDE = Path(__file__).parents[2] / "docs" / "integrations.md"


def test_its_python_is_python_and_its_names_are_ours() -> None:
    blocks = re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    assert len(blocks) == 8
    named = []
    for block in blocks:
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("rprm.integrations."):
                named += [(str(node.module), alias.name) for alias in node.names]
    assert len(named) == 9
    for module, name in named:
        # The scorer of inspect_ai is made by its decorator.
        if module != "rprm.integrations.inspect_ai" or importlib.util.find_spec("inspect_ai"):
            assert callable(getattr(importlib.import_module(module), name))


def test_it_has_a_row_for_every_module() -> None:
    folder = Path(importlib.import_module("rprm.integrations").__path__[0])
    modules = {path.stem for path in folder.glob("*.py")} - {"__init__", "answers", "step_memory"}
    assert modules == set(re.findall(r"^\| \[.*?\]\(#.*?\) \| .*? \| `(\w+)\.", GUIDE.read_text(), re.MULTILINE))
