"""`--help`: what is written there is shown there. Rich takes words in square brackets for markup and drops them."""

from __future__ import annotations

import re
from collections.abc import Iterator

import click
import pytest
import typer
from rich.text import Text
from typer.testing import CliRunner

from rprm.cli.app import app
from rprm.presets import PAPER, PAPER_POLICY


def commands(command: click.Command, name: str = "") -> Iterator[tuple[str, click.Command]]:
    yield name, command
    for child, other in getattr(command, "commands", {}).items():
        yield from commands(other, f"{name} {child}".strip())


COMMANDS = dict(commands(typer.main.get_command(app)))  # type: ignore[arg-type]


def shown(name: str, width: int) -> str:
    """The rendered help, without its frame and line breaks."""
    done = CliRunner().invoke(app, [*name.split(), "--help"], env={"COLUMNS": str(width), "TERMINAL_WIDTH": str(width)})
    assert done.exit_code == 0, done.output
    return " ".join(re.sub("[│╭╮╰╯─]", " ", done.output).split())


@pytest.mark.parametrize("name", COMMANDS)
def test_no_word_of_a_help_text_is_taken_for_markup(name: str) -> None:
    command = COMMANDS[name]
    texts = [command.help or "", *(getattr(parameter, "help", None) or "" for parameter in command.params)]
    for text in texts:
        assert not re.search(r"(?<!\\)\[default", text), text
        # An escaped bracket is a bracket; everything else stays as it is.
        assert Text.from_markup(text).plain == text.replace("\\[", "["), text


@pytest.mark.parametrize("name", COMMANDS)
def test_every_default_that_a_help_text_names_is_shown(name: str) -> None:
    told = [
        match[1]
        for parameter in COMMANDS[name].params
        for match in re.finditer(r"\\\[(default: [^\]]+)\]", getattr(parameter, "help", None) or "")
    ]
    text = shown(name, 200)
    assert [default for default in told if f"[{default}]" not in text] == []


def test_the_settings_of_the_paper_are_shown_at_80_columns() -> None:
    judge, search = shown("judge", 80), shown("search sample", 80)
    assert f"(the paper's K). [default: {PAPER.num_analyses}]" in judge
    assert f"Longest analysis, in tokens. [default: {PAPER.max_tokens}]" in judge
    assert f"Of the analyses. [default: {PAPER.temperature}]" in judge
    assert f"Solutions of each problem. [default: {PAPER_POLICY.num_candidates}]" in search
    # Its range stands between the two.
    assert "Of the policy." in search
    assert f"[default: {PAPER_POLICY.temperature}]" in search
