"""The lab as a distribution of its own: its entry points, its models, and what of `rprm` it uses."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from typer.testing import CliRunner

import rprm_lab
from rprm.cli.app import app
from rprm.engines import load_engine
from rprm.prompts import carried_policy_template
from rprm_lab.engine import TeacherEngine

#: The public face of `rprm`: what the lab may import from, besides the package itself. The rest it does by commands.
FACE = {
    "benchmarks",
    "engines",
    "errors",
    "prompts",
    "records",
    "runs",
    "showing",
    "subcommands",
    "terminal",
    "verdict",
}


def imported(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
    return {name for name in found if name.startswith("rprm.")}


def test_the_lab_uses_the_public_face_alone() -> None:
    used = {name for path in Path(rprm_lab.__file__).parent.rglob("*.py") for name in imported(path)}
    assert used <= {f"rprm.{name}" for name in FACE}


@pytest.mark.parametrize("command", ["", "world", "base", "steps", "critiques", "run", "report", "pack"])
def test_rprm_finds_its_commands(command: str) -> None:
    done = CliRunner().invoke(app, ["lab", *command.split(), "--help"], env={"COLUMNS": "80", "TERMINAL_WIDTH": "80"})
    assert done.exit_code == 0, done.output
    assert f"rprm lab {command}".strip() in done.output.replace("root", "rprm")
    assert all(len(line) <= 80 and "…" not in line for line in done.output.splitlines())


def test_rprm_finds_its_engine() -> None:
    assert isinstance(load_engine("lab:world?reading=0.2"), TeacherEngine)


@pytest.mark.parametrize("folder", [rprm_lab.BASE, rprm_lab.POLICY])
def test_its_models_are_whole(folder: Path) -> None:
    files = list(folder.iterdir())
    assert sum(file.stat().st_size for file in files) < 5e6
    assert {file.suffix for file in files} == {".json", ".md", ".safetensors", ".toml"}
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "no other" in card or "nothing else" in card, f"{folder.name}'s card does not say what it is not for"
    assert carried_policy_template(f"transformers:{folder}") == folder / "rprm_policy.toml"
