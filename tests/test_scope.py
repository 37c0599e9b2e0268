"""What the embedded judge knows: no word problem of the lab lies outside, and nothing else lies inside."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from rprm.cli.judge import EmbeddedScope
from rprm.embedded import outside_world
from rprm.reading import Source, read_solutions
from rprm.records import Solution, SolutionReward, StepReward
from rprm.report.solutions import render_solution

EXAMPLES = Path(__file__).parents[1] / "src" / "rprm" / "examples"


def solutions(path: Path) -> list[Solution]:
    rows = [row for row in read_solutions(Source(str(path))) if isinstance(row, Solution)]
    assert rows
    return rows


def test_solutions_of_the_world_lie_inside() -> None:
    assert {outside_world(solution) for solution in solutions(Path(__file__).with_name("lab_solutions.jsonl"))} == {
        None
    }


def test_the_example_of_the_readme_lies_inside() -> None:
    assert {outside_world(solution) for solution in solutions(EXAMPLES / "word_problems.jsonl")} == {None}


def test_real_problems_lie_outside(real_data: Path) -> None:
    for name in ("gsm8k", "math", "olympiadbench", "omnimath"):
        found = [outside_world(solution) for solution in solutions(real_data / "processbench" / f"{name}.jsonl")]
        assert None not in found, name
    assert None not in [outside_world(solution) for solution in solutions(EXAMPLES / "solutions.jsonl")]


BEN = "Ben has 12 coins. Ana has 3 more coins than Ben. How many coins does Ana have?"


@pytest.mark.parametrize(
    ("problem", "step", "reason"),
    [
        (BEN, "Ana has 12 + 3 = 15 coins.", None),
        (BEN, "ANA HAS 12 + 3 = 15 COINS.", None),
        ("Solve 2x + 3 = 11 for x.", "2x = 8, so x = 4.", "the word 'Solve'"),
        ("2x + 3 = 11", "x = 4", "the word 'x'"),
        ("2 + 3 = ?", "2 + 3 = 6.", "a problem without words"),
        (BEN.replace("Ana", "Natalia"), "She has 15.", "the word 'Natalia'"),
        (BEN, "Ana has 9999 coins.", None),
        (BEN, "Ana has 10000 coins.", "the number 10000"),
        (BEN, "Ana has 1,015 coins.", "the number 1,015"),
        (BEN, "Ana has 15.5 coins.", "the number 15.5"),
        (BEN, "Ana has 1" + "0" * 10_000 + " coins.", "the number 1" + "0" * 59),
        (BEN, "Ana has ١٥ coins.", "the number ١٥"),
        (BEN, "Ana has $15.", "the sign '$'"),
        (BEN, r"\frac{30}{2}", r"the sign '\'"),
        (BEN, "Ana has 3² coins.", "the sign '²'"),
        (BEN, "Ana has 15 coins. 🎉", "the sign '🎉'"),
        (BEN, "安娜有 15", "the word '安娜有'"),
        (BEN, "x" * 10_000, "the word '" + "x" * 59),
    ],
)
def test_the_first_thing_outside_is_named(problem: str, step: str, reason: str | None) -> None:
    assert outside_world(Solution(id="a", problem=problem, steps=(step,))) == reason


SOLUTION = Solution(id="a", problem="Solve 2x + 3 = 11.", steps=("2x = 8.", "x = 5."))


def rendered(note: str | None) -> str:
    steps = (StepReward(step_index=0, reward=1.0, vote=True), StepReward(step_index=1, reward=0.0, vote=False))
    result = SolutionReward(id="a", num_steps=2, steps=steps, first_error=1)
    console = Console(file=io.StringIO(), width=80, force_terminal=True, color_system="standard")
    console.print(render_solution(SOLUTION, result, threshold=0.5, note=note))
    text = console.file.getvalue()
    assert isinstance(text, str)
    return text


#: ANSI colours: 31 is red, 32 green.
RED, GREEN = ("31m", "32m")


def test_a_marked_solution_is_neither_green_nor_red() -> None:
    plain = rendered(None)
    assert RED in plain
    assert GREEN in plain
    marked = rendered("outside what the model knows: [red]x[/red]")
    assert RED not in marked
    assert GREEN not in marked
    assert "outside what the model knows: [red]x[/red]" in marked
    # The judgement is still told.
    assert "first error: step 2" in marked


def test_the_embedded_model_says_what_it_knows(capsys: pytest.CaptureFixture[str]) -> None:
    inside = Solution(id="b", problem=BEN, steps=("Ana has 15 coins.",))
    scope = EmbeddedScope("embedded?dtype=float32")
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "word problems only" in told
    assert "--model" in told
    assert scope.note(inside) is None
    note = scope.note(SOLUTION)
    assert note is not None
    assert "'Solve'" in note
    assert "another model" in note
    scope.tell()
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "1 of 2 solutions" in told


@pytest.mark.parametrize("model", ["vllm:MODEL", "transformers:embedded", "scripted:", "smollm2", None])
def test_nothing_is_said_of_other_models(model: str | None, capsys: pytest.CaptureFixture[str]) -> None:
    scope = EmbeddedScope(model)
    assert scope.note(SOLUTION) is None
    scope.tell()
    assert capsys.readouterr() == ("", "")
