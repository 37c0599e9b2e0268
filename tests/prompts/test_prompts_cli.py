"""`rprm prompts`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rprm.cli.prompts import EXAMPLE_PROBLEM, app
from rprm.errors import PromptError, RprmError
from rprm.prompts import (
    PromptTemplate,
    load_critic_template,
    load_injection_template,
    load_policy_template,
    load_template,
)

TRUE = PromptTemplate(
    "true",
    "Mark it.\n\nExercise:\n{{problem}}\n\nBefore:\n{{previous_steps}}\n\nNow:\nStep {{step_number}}: {{step}}\n\nGo.",
    step_separator="\n",
    no_previous_steps="Nothing.",
)


def run(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    with path.open("w") as file:
        for number in range(90):
            steps = [f"{'wxyz'[n]} = {number + n}" for n in range(number % 3 + 1)]
            prompt = TRUE.render(f"{'ABCDEFG'[number % 7]} number {number}?", steps, len(steps) - 1)
            row = {"question": prompt.text, "reply": f"Fine.\nIs it right? {'Yes' if number % 2 else 'No'}"}
            file.write(json.dumps(row) + "\n")
    return path


def test_list():
    lines = run("list").splitlines()
    judges, (critic, *policies) = lines[:4], lines[4:]
    assert [line.split()[0] for line in judges] == ["critique", "critique-brief", "few-shot", "teacher"]
    assert judges[0].split()[1:] == [load_template().digest, "(default)"]
    assert judges[1].split()[1:] == [load_template("critique-brief").digest]
    assert critic.split() == ["critic", load_critic_template().digest, "(critic,", "default)"]
    *policies, injection = policies
    assert injection.split() == ["inject", load_injection_template().digest, "(injection,", "default)"]
    assert [line.split()[0] for line in policies] == ["base", "boxed", "plain"]
    assert policies[0].split()[1:] == [load_policy_template("base").digest, "(policy)"]
    assert policies[1].split()[1:] == [load_policy_template().digest, "(policy,", "default)"]


def test_show_prints_the_file(tmp_path: Path):
    assert run("show") == run("show", "critique") == load_template().to_toml()
    file = tmp_path / "mine.toml"
    file.write_text(TRUE.to_toml())
    assert PromptTemplate.from_toml(run("show", file), "x") == TRUE


def test_show_example_prints_the_prompt(tmp_path: Path):
    output = run("show", "critique-brief", "--example")
    assert output.startswith("--- user ---\nCheck the last step")
    assert "\nStep 2: In 5 hours it goes 75 * 5 = 365 km.\n" in output
    file = tmp_path / "mine.toml"
    file.write_text('system = "Be strict."\nuser = "{{problem}} {{steps}}"')
    assert run("show", file, "--example").startswith("--- system ---\nBe strict.\n--- user ---\nA train ")


def test_show_a_template_of_a_policy(tmp_path: Path):
    assert run("show", "--policy") == run("show", "boxed", "--policy") == load_policy_template().to_toml()
    assert run("show", "base", "--policy", "--example") == (
        f"--- text ---\nProblem:\n{EXAMPLE_PROBLEM}\n\nSolution:\n\n"
        "--- reply ---\nThe speed of the train is 150 / 2 = 75 km per hour.\n\n\n"
    )
    with pytest.raises(PromptError, match="prompt template 'boxed': no such template"):
        run("show", "boxed")


def test_show_a_template_of_who_makes_steps_wrong():
    assert run("show", "--injection") == run("show", "inject", "--injection") == load_injection_template().to_toml()
    assert "Step 1, to be rewritten:\nThe speed of the train" in run("show", "--injection", "--example")
    with pytest.raises(PromptError, match="injection template"):
        run("show", "inject")
    with pytest.raises(PromptError, match="of one kind"):
        run("show", "--injection", "--critic")


def test_show_hints_at_a_template_of_another_kind(tmp_path: Path):
    for names, hint in (
        (["critic"], "it is a critic template (--critic"),
        (["boxed"], "it is a policy template (--policy"),
        (["critique", "--critic"], "it is a prompt template (of a judge)"),
        (["--critic", "--policy"], "give --critic, --policy or --injection"),
    ):
        with pytest.raises(PromptError) as error:
            run("show", *names)
        assert hint in str(error.value)
    file = tmp_path / "mine.toml"
    file.write_text('format = "labels"\nuser = "{{problem}} {{steps}}"')
    with pytest.raises(PromptError, match=r"unknown key 'format'; .*it is a critic template"):
        run("show", file)
    file.write_text("user = 3")
    with pytest.raises(PromptError) as error:
        run("show", file)
    assert "it is a" not in str(error.value)


def test_show_a_conversation(tmp_path: Path):
    file = tmp_path / "turns.toml"
    file.write_text('user = "{{problem}} {{step}}"\nnext_user = "Next: {{step}}"\nreply = "{{step_number}}:"')
    roles = [line for line in run("show", file, "--example").splitlines() if line.startswith("---")]
    assert roles == ["--- user ---", "--- assistant ---", "--- user ---", "--- reply ---"]


def test_import_writes_a_verified_template(tmp_path: Path, rows: Path):
    file = tmp_path / "their.toml"
    columns = ["--instruction-column", "question", "--output-column", "reply"]
    output = run("import", rows, "--output", file, *columns, "--limit", 60)
    assert output.splitlines() == [
        f"{file}: 60 of 60 rows (60 problems) rendered exactly",
        "verdict after 'Is it right?', found in 60 of 60 outputs",
    ]
    template = load_template(file)
    assert template.name == "their"
    assert template.user == TRUE.user
    assert template.verdict.marker == "Is it right?"
    assert file.read_text().startswith(f"# Derived by `rprm prompts import` from {str(rows)!r}: 60 of 60 rows")
    # Never over a file that is there, unless told.
    with pytest.raises(PromptError, match="exists already; give --force"):
        run("import", rows, "--output", file, *columns)
    assert "90 of 90 rows" in run("import", rows, "-o", file, *columns, "--force", "--name", "other", "--raw")
    assert load_template(file).name == "other"
    assert not load_template(file).chat


def test_import_says_what_differs(tmp_path: Path, rows: Path):
    lines = rows.read_text().splitlines()
    lines[4] = json.dumps({"question": "What?", "reply": "x"})
    rows.write_text("\n".join(lines))
    arguments = ["import", rows, "-o", tmp_path / "t.toml", "--instruction-column", "question", "--marker", "m"]
    with pytest.raises(PromptError, match=r"only 89 of 90 rows follow the derived template, less than 99%"):
        run(*arguments)
    assert not (tmp_path / "t.toml").exists()
    assert "row 5 differs: at character 0 stands 'What?'" in run(*arguments, "--min-share", "0.9")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["show", "nothing"], "prompt template 'nothing': no such template; give a file"),
        (["import", "rows.jsonl", "-o", "x.txt"], "x.txt: a template file ends in .toml"),
        (["import", "rows.jsonl", "-o", "x.toml"], "rows.jsonl: no such file"),
    ],
)
def test_mistakes_are_told_in_one_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RprmError) as caught:
        run(*arguments)
    assert message in str(caught.value)


def test_prompts_load_nothing_heavy():
    heavy = ["torch", "transformers", "datasets", "numpy"]
    code = f"import sys, rprm.prompts, rprm.cli.prompts; print([name for name in {heavy} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"
