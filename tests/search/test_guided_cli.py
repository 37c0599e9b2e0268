"""`rprm search guided`, `beam`, `dvts` and `show`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rprm.cli.app import app
from rprm.cli.options import AnalysisOptions, PolicyOptions
from rprm.cli.search import search_rewarder
from rprm.errors import CorruptRun, EngineError, InputError, RprmError, RunError
from rprm.grading import AnswerPair, Grade, Grader
from rprm.rewarders.rprm import Judge
from rprm.search.guided import SearchTree
from tests.faults.folder_damages import as_older
from tests.search.replay import replay


@pytest.fixture
def problems(tmp_path: Path) -> Path:
    path = tmp_path / "problems.jsonl"
    rows = [{"id": f"p{number}", "problem": f"Problem {number} [red]é[/red]", "answer": "2"} for number in range(4)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def rprm(*arguments: object) -> str:
    """Standard output of a command in this process; an error of ours is raised."""
    done = CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=False)
    assert done.exit_code in (0, 3), done.output
    return done.stdout


def trees(folder: Path) -> list[SearchTree]:
    return [SearchTree.model_validate_json(line) for line in (folder / "results.jsonl").read_text().splitlines()]


def options(problems: Path, output: Path) -> list[object]:
    return ["--policy", "scripted:", "--model", "scripted:?yes_rate=0.6", "--problems", problems, "-o", output]


@pytest.mark.parametrize(("name", "shape"), [("guided", (1, 1, 8)), ("beam", (1, 2, 4)), ("dvts", (2, 1, 4))])
def test_each_strategy_searches_shows_and_replays(
    name: str, shape: tuple[int, int, int], problems: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    size = [] if name == "guided" else ["-n", 8]
    report = json.loads(rprm("search", name, *options(problems, run), *size, "--json"))
    found = trees(run)
    strategy = found[0].strategy
    assert (strategy.num_trees, strategy.beam_size, strategy.width) == shape
    totals = report["totals"]
    assert totals["num_problems"] == totals["num_finished"] == 4
    # The paper's K, and less than that times the steps.
    assert totals["num_analyses"] < totals["num_analyses_full"] == 10 * totals["num_steps"]
    assert report["measurement"]["benchmark"] == "mathematics"
    # The paper's settings, in the manifest.
    settings = json.loads((run / "manifest.json").read_text())["settings"]
    assert (settings["policy"]["temperature"], settings["policy"]["step_tokens"]) == (1.0, 512)
    assert (settings["num_analyses"], settings["temperature"], settings["max_tokens"]) == (10, 0.95, 3072)
    assert all(replay(tree) == tree for tree in found)
    shown = rprm("search", "show", run, "--id", "p2")
    assert "Problem 2 [red]é[/red]" in shown
    assert "p1" not in shown
    # Judging everything in full chooses the same.
    full = tmp_path / "full"
    rprm("search", name, *options(problems, full), *size, "--stopping", "none", "--json")
    assert [tree.text for tree in trees(full)] == [tree.text for tree in found]
    assert all(node.is_settled for tree in trees(full) for node in tree.nodes if node.fate != "dropped")


def test_summary_for_people(problems: Path, tmp_path: Path) -> None:
    text = rprm("search", "guided", *options(problems, tmp_path / "run"), "--width", 3, "--max-rounds", 1)
    words = " ".join(text.split())
    assert "4 problems 4 rounds, of all trees together 12 next steps sampled" in words
    assert "analyses saved" in words
    assert "4 trees that ran out of rounds" in words
    assert "guided search (3 steps a round, last)" in words


def test_the_summary_reads_no_row_again_and_grades_each_answer_once(
    problems: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graded: list[AnswerPair] = []
    grade_all = Grader.grade_all

    def counted(self: Grader, pairs: Iterable[AnswerPair]) -> list[Grade]:
        found = list(pairs)
        graded.extend(found)
        return grade_all(self, found)

    monkeypatch.setattr(Grader, "grade_all", counted)
    monkeypatch.setattr("rprm.search.measure.read_results", None)
    for _ in range(2):
        # Resumed, the rows of the earlier session come in as they are counted.
        graded.clear()
        text = rprm("search", "guided", *options(problems, tmp_path / "run"), "--width", 2, "--max-rounds", 2)
        assert "guided search (2 steps a round, last)" in " ".join(text.split())
        assert len(graded) == 4


def test_analyses_are_kept_where_asked_for(problems: Path, tmp_path: Path) -> None:
    rprm("search", "guided", *options(problems, tmp_path / "run"), "--analyses", "--limit", 1, "-k", 2)
    (tree,) = trees(tmp_path / "run")
    assert {len(node.analyses) for node in tree.nodes} <= {0, 1, 2}
    assert any(node.analyses for node in tree.nodes)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (["guided", "-n", "8"], InputError, "--width says how many"),
        (["beam", "-n", "6"], RprmError, "n is 6 and the width 4"),
        (["guided", "--policy-temperature", "0"], InputError, "at temperature 0 all next steps would be equal"),
        (["guided", "--set", "math500"], InputError, "say which problems"),
        (["guided", "--model", "gpt"], EngineError, "unknown engine 'gpt'"),
        (["guided", "--model", "classifier:nowhere", "-k", "3"], RprmError, "leave out num_analyses"),
    ],
)
def test_what_a_person_did_wrong(
    arguments: list[str], error: type[Exception], message: str, problems: Path, tmp_path: Path
) -> None:
    name, *given = arguments
    with pytest.raises(error, match=message):
        rprm("search", name, *options(problems, tmp_path / "run"), *given)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("option", ["--width", "--num-samples", "--max-rounds", "--max-solution-tokens", "--wave"])
def test_a_number_out_of_its_range_is_told_by_its_option(option: str, problems: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["search", "beam", *map(str, options(problems, tmp_path / "run")), option, "0"])
    assert done.exit_code == 2
    assert re.search(rf"{option}.* from 1 to", " ".join(done.output.split()))
    assert not (tmp_path / "run").exists()


def test_show_says_what_it_cannot_show(problems: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(RunError, match="is not a run folder"):
        rprm("search", "show", tmp_path)
    rprm("search", "sample", "--policy", "scripted:", "--problems", problems, "-o", tmp_path / "sampled", "-n", 1)
    with pytest.raises(RunError, match="a run of stage 'search-sample'"):
        rprm("search", "show", tmp_path / "sampled")
    rprm("search", "guided", *options(problems, run), "--width", 2)
    with pytest.raises(InputError, match="no problem 'nobody'"):
        rprm("search", "show", run, "--id", "nobody")
    as_older(run)
    results = run / "results.jsonl"
    rows = [json.loads(line) for line in results.read_text().splitlines()]
    rows[1]["text"] += "."
    results.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(CorruptRun, match=r"results\.jsonl, line 2 .*the text is not that of the chosen node's steps"):
        rprm("search", "show", run)


def test_a_model_that_is_policy_and_judge_is_loaded_once() -> None:
    def rewarder(model: str) -> Judge:
        found = search_rewarder(model, AnalysisOptions(), policy, "scripted:?noise=0.2")
        assert isinstance(found, Judge)
        return found

    policy = PolicyOptions().policy("scripted:?noise=0.2")
    same, other = rewarder("scripted:?noise=0.2"), rewarder("scripted:")
    assert same.engine is policy.engine
    assert other.engine is not policy.engine
    assert (same.first_error_exit, same.rule.stopping) == (False, "none")


@pytest.mark.slow
def test_a_real_model_proposes_and_judges(smollm2_folder: Path, tmp_path: Path) -> None:
    problems = tmp_path / "problems.jsonl"
    problems.write_text('{"id": "shop", "problem": "A pen costs 3 dollars. What do 4 pens cost?", "answer": "12"}\n')
    # A short prompt: on a CPU nearly all the time goes into reading it.
    prompt = tmp_path / "short.txt"
    prompt.write_text("{{problem}}\n\n{{steps}}\n\nIs the last step right?")
    run = tmp_path / "run"
    report = json.loads(
        rprm(
            "search", "guided", "--policy", f"transformers:{smollm2_folder}?dtype=float32", "--problems", problems,
            "--model", f"transformers:{smollm2_folder}?dtype=float32", "-o", run,
            "--width", 2, "--max-rounds", 2, "--step-tokens", 16, "-k", 2, "--max-tokens", 12, "--force-verdict",
            "--stopping", "none", "--prompt", prompt, "--json",
        )
    )  # fmt: skip
    (tree,) = trees(run)
    assert replay(tree) == tree
    assert tree.text
    assert 1 <= tree.num_rounds <= 2
    judged = [node for node in tree.nodes if node.p_yes]
    assert len(judged) >= 2
    # A verdict is asked for where the model comes to none: every analysis has one, strictly between 0 and 1.
    assert all(p_yes is not None and 0.0 < p_yes < 1.0 for node in judged for p_yes in node.p_yes)
    assert tree.num_policy_tokens <= 2 * 2 * 16
    assert tree.num_judge_tokens <= 4 * 2 * 12
    assert report["totals"]["num_generated_tokens"] == tree.num_policy_tokens + tree.num_judge_tokens
    assert "shop" in rprm("search", "show", run)


def test_a_search_in_which_nothing_could_be_judged_fails(problems: Path, tmp_path: Path) -> None:
    arguments = ["search", "guided", *options(problems, tmp_path / "run")]
    arguments[arguments.index("--model") + 1] = "scripted:?lost=1"
    with pytest.raises(RunError, match="no step of any solution could be judged; the first: none of 10 analyses"):
        rprm(*arguments, "--max-rounds", 2)
    assert len(trees(tmp_path / "run")) == 4
