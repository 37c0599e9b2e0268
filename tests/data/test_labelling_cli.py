"""`rprm data rollouts`, `agree` and `inject` as a person runs them, one after the other."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from rprm.cli.app import app
from rprm.data.rollouts import Roller
from rprm.data.stage_options import InjectOptions, RolloutOptions
from rprm.engines.base import Sampling
from rprm.engines.scripted import ScriptedEngine
from rprm.errors import InputError, RunError
from rprm.prompts import load_policy_template
from rprm.search.candidates import Policy


def run(*arguments: Any) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "200"})


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    return path


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def answers() -> dict[str, str]:
    """What the scripted policy mostly answers, by problem."""
    from rprm.engines.scripted import _draw
    from rprm.prompts.template import Prompt

    template, found = load_policy_template(), {}
    for number in range(6):
        prompt: Prompt = template.render(problem := f"Problem {number}?")
        found[problem] = str(_draw(prompt, Sampling(), "answer").randint(2, 99))
    return found


def test_from_problems_to_labelled_steps(tmp_path: Path) -> None:
    problems = [{"problem": problem, "answer": answer} for problem, answer in answers().items()]
    file = write(tmp_path / "problems.jsonl", *problems)
    result = run("search", "sample", "--problems", file, "-p", "scripted:", "-n", 4, "-o", tmp_path / "samples")
    assert result.exit_code == 0, result.output

    rollouts = ("data", "rollouts", tmp_path / "samples", "-p", "scripted:", "--soft", "-o", tmp_path / "rollouts")
    result = run(*rollouts, "--json", "--above", 0.4)
    assert result.exit_code == 0, result.output
    totals = json.loads(result.stdout)
    assert totals["num_solutions"] == 24 == sum(totals[f"num_{kind}"] for kind in ("right", "wrong", "unlabelled"))
    assert totals["num_completions"] == 8 * totals["num_beginnings"]
    kinds = ("completions_right", "completions_wrong", "without_answer", "cut", "ungraded")
    assert totals["num_completions"] == sum(totals[f"num_{kind}"] for kind in kinds)
    # The run's own setting: another one is refused, the same finds everything done.
    result = run(*rollouts)
    assert "above: 0.4 -> 0.0" in str(result.exception)
    assert run(*rollouts, "--json", "--above", 0.4).stdout == json.dumps(totals) + "\n"

    result = run("data", "agree", tmp_path / "rollouts", "-m", "critic:scripted:", "-o", tmp_path / "agreed", "--json")
    assert result.exit_code == 0, result.output
    summary = json.loads(result.stdout)
    assert 0 < summary["num_kept"] < 24
    # The same opinion from its own run.
    judged = tmp_path / "agreed" / "judged"
    result = run("data", "agree", tmp_path / "rollouts", "--with", judged, "-o", tmp_path / "again", "--json")
    assert json.loads(result.stdout) == summary
    assert (tmp_path / "again" / "solutions.jsonl").read_bytes() == (judged.parent / "solutions.jsonl").read_bytes()

    result = run("data", "inject", tmp_path / "rollouts", "-p", "scripted:", "-o", tmp_path / "injected", "-n", 2)
    assert result.exit_code == 0, result.output
    assert "wrong versions" in result.stdout

    result = run("data", "steps", tmp_path / "agreed", tmp_path / "injected", "-o", tmp_path / "steps", "--json")
    assert result.exit_code == 0, result.output
    steps = lines(tmp_path / "steps" / "results.jsonl")
    assert len(steps) == json.loads(result.stdout)["num_steps"]
    assert {step["source"] for step in steps} >= {"rollouts"}
    # Labels are what is above the share.
    assert all((step["soft"] > 0.4) is step["label"] for step in steps if "soft" in step and step["soft"] not in (0, 1))
    result = run("data", "analyses", tmp_path / "steps", "-m", "scripted:", "-n", 1, "-o", tmp_path / "analyses")
    assert result.exit_code == 0, result.output


def test_outcomes(tmp_path: Path) -> None:
    rows = [{"problem": "p", "solution": f"First.\n\nThe answer is {at}.", "answer": "5"} for at in (5, 6)]
    path = write(tmp_path / "s.jsonl", *rows, "{broken")
    result = run("data", "rollouts", path, "--outcomes", "-o", tmp_path / "run")
    assert result.exit_code == 3, result.output
    assert "1 solutions with the right final answer" in " ".join(result.stdout.split())
    assert [row["final_answer_correct"] for row in lines(tmp_path / "run" / "solutions.jsonl")] == [True, False]
    result = run("data", "steps", tmp_path / "run", "-o", tmp_path / "steps", "--outcomes", "steps", "--json")
    assert json.loads(result.stdout)["num_steps"] == json.loads(result.stdout)["num_correct"] == 2


@pytest.mark.parametrize(
    ("arguments", "wrong"),
    [
        (["rollouts", "FILE"], "say who completes the solutions"),
        (["rollouts", "FILE", "-p", "scripted:", "--outcomes"], "say who completes the solutions"),
        (["rollouts", "FILE", "-p", "scripted:", "--policy-temperature", 0], "all completions of a beginning"),
        (["agree", "FILE"], "say whose second opinion"),
        (["agree", "FILE", "-m", "scripted:", "--with", "RUN"], "say whose second opinion"),
        (["agree", "FILE", "-m", "critic:scripted:", "--unanimous"], "--unanimous needs several samples"),
        (["agree", "FILE", "-m", "scripted:", "--unanimous", "--stopping", "exact"], "--unanimous needs several"),
        (["inject", "FILE", "--errors", "rule"], "without --model, a program makes calculation, operand"),
        (["inject", "FILE", "-m", "scripted:", "--errors", "typo"], "kinds of errors are calculation"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_written(
    tmp_path: Path, arguments: list[Any], wrong: str
) -> None:
    path = write(tmp_path / "s.jsonl", {"problem": "p", "steps": ["a"], "answer": "5", "label": -1})
    named = [path if one == "FILE" else one for one in arguments]
    result = run("data", *named, "-o", tmp_path / "run")
    assert isinstance(result.exception, InputError)
    assert wrong in str(result.exception)
    assert not (tmp_path / "run").exists()


def test_a_policy_that_solves_nothing_is_told(tmp_path: Path) -> None:
    path = write(tmp_path / "s.jsonl", {"problem": "p", "steps": ["a", "b"], "answer": "12345"})
    result = run("data", "rollouts", path, "-p", "scripted:", "-o", tmp_path / "run")
    assert isinstance(result.exception, RunError)
    assert "the policy solves none of the problems" in str(result.exception)
    result = run("data", "steps", tmp_path / "samples", "-o", tmp_path / "steps")
    assert isinstance(result.exception, InputError)


def test_the_work_goes_to_other_processes() -> None:
    policy = Policy(ScriptedEngine(), load_policy_template(), Sampling())
    start, label = pickle.loads(pickle.dumps((policy.start, Roller(policy, RolloutOptions()).label)))
    # One model for both.
    assert start.__self__ is label.__self__.policy


def test_defaults_are_those_of_python() -> None:
    assert RolloutOptions() == RolloutOptions(num_completions=8, above=0.0, method="in-order", soft=False)
    assert InjectOptions() == InjectOptions(per_solution=1, errors=None, seed=0)
