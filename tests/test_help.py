"""`--help` at 80 columns: every name and every default is shown whole."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from rprm.cli.app import app
from rprm.presets import PAPER


def commands(command: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    yield name, command
    # Not by a class of click's: typer has its own copy of it from 0.20 on.
    if hasattr(command, "list_commands"):
        context = typer.Context(command)
        for child in command.list_commands(context):
            other = command.get_command(context, child)
            assert other is not None
            yield from commands(other, f"{name} {child}".strip())


COMMANDS = dict(commands(typer.main.get_command(app)))


def shown(name: str) -> str:
    """The rendered help, without its line breaks."""
    done = CliRunner().invoke(app, [*name.split(), "--help"], env={"COLUMNS": "80", "TERMINAL_WIDTH": "80"})
    assert done.exit_code == 0, done.output
    assert all(len(line) <= 80 for line in done.output.splitlines()), done.output
    return " ".join(done.output.split())


@pytest.mark.parametrize("name", COMMANDS)
def test_no_name_and_no_word_of_a_help_text_is_cut(name: str) -> None:
    text = shown(name)
    assert "…" not in text
    for parameter in COMMANDS[name].params:
        for option in parameter.opts + parameter.secondary_opts if parameter.param_type_name == "option" else ():
            assert re.search(rf"(?<![\w-]){re.escape(option)}(?![\w-])", text), option
        assert " ".join((getattr(parameter, "help", None) or "").split()) in text


def test_the_settings_of_the_paper_are_shown() -> None:
    judge, search = shown("judge"), shown("search sample")
    assert f"(the paper's K). [default: {PAPER.num_analyses}; of a critic 1]" in judge
    assert f"Longest analysis. [default: {PAPER.max_tokens} tokens; of a critic 8192]" in judge
    assert f"Of the analyses. [default: {PAPER.temperature}; of a critic 0, with -k 2 and more 1.0]" in judge
    assert "Solutions of each problem. [default: 8]" in search
    assert "Of the policy. [default: 1.0]" in search


@pytest.mark.parametrize(("typed", "meant"), [("jud", "judge"), ("bench procesbench", "processbench")])
def test_a_mistyped_command_is_told_what_it_may_mean(typed: str, meant: str) -> None:
    done = CliRunner().invoke(app, typed.split())
    assert done.exit_code == 2
    assert f"'{meant}'" in done.output
