"""Cold-start rows out of analyses."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from rprm.data.analyses import open_analyses
from rprm.data.datasets import write_rows
from rprm.data.stage_options import ColdStartOptions, PairOptions, is_held_out
from rprm.errors import InputError, SettingsChanged
from rprm.prompts import load_template
from rprm.records import StepAnalyses
from tests.data.conftest import MARKER, analysed

Write = Callable[[Sequence[StepAnalyses]], Path]


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def make(path: Path, output: Path, **options: Any) -> dict[str, Any]:
    template = options.pop("template", load_template("critique"))
    return write_rows(open_analyses(path), output, template, ColdStartOptions(**{"validation_share": 0.0, **options}))


def test_kept_are_the_agreeing_analyses_as_trl_takes_them(write_analyses: Write, tmp_path: Path) -> None:
    path = write_analyses(
        [
            analysed(0, True, [False, True, True]),  # keeps sample 1
            analysed(1, False, [False, None, True]),  # keeps sample 0
            analysed(2, True, [False, False, None]),  # keeps none
        ]
    )
    summary = make(path, tmp_path / "out")
    rows = rows_of(tmp_path / "out" / "train.jsonl")
    assert [(row["id"], row["label"]) for row in rows] == [("s0#1", True), ("s1#0", False)]
    template = load_template("critique")
    assert rows[0]["prompt"] == [
        {"role": "user", "content": template.render("Problem 0?", ["Then 0."], 0).messages[0].content}
    ]
    assert rows[0]["completion"] == [{"role": "assistant", "content": f"Analysis 1 of step 0.\n{MARKER} Yes"}]
    assert rows[1]["prompt"][0]["content"] == template.render("Problem 1?", ["First this.", "Then 1."], 1).text
    assert rows[1]["completion"][0]["content"].endswith(f"{MARKER} No")
    # 9 analyses: 3 agree, of which one is the second of its step; 4 disagree; 2 have no verdict.
    assert summary["counts"] == {
        "steps": 3,
        "analyses": 9,
        "steps without any analysis": 0,
        "steps with an agreeing analysis": 2,
        "kept": 2,
    }
    assert {reason: count for reason, count in summary["dropped"].items() if count} == {
        "no verdict": 2,
        "verdict disagrees with the label": 4,
        "more than were asked for of one step": 1,
    }
    assert summary["parts"]["train"] == {"rows": 2, "yes": 1, "no": 1, "problems": 2}
    assert not (tmp_path / "out" / "validation.jsonl").exists()


def test_a_raw_template_gives_plain_texts(write_analyses: Write, tmp_path: Path) -> None:
    path = write_analyses([analysed(0, True, [True]), analysed(1, False, [False])])
    make(path, tmp_path / "out", template=load_template("few-shot"))
    row = rows_of(tmp_path / "out" / "train.jsonl")[0]
    assert row["prompt"].endswith("Check of Step 1:")
    # What a continuation begins with: the space that the prompt leaves off.
    assert row["completion"] == f" Analysis 0 of step 0.\n{MARKER} Yes"


def test_yes_and_no_are_balanced_in_each_part_and_problems_are_in_one(write_analyses: Write, tmp_path: Path) -> None:
    rows = [analysed(number, number % 4 > 0, [number % 4 > 0], problem=f"P {number // 5}") for number in range(400)]
    path = write_analyses(rows)
    summary = make(path, tmp_path / "out", validation_share=0.25)
    parts = {name: rows_of(tmp_path / "out" / f"{name}.jsonl") for name in ("train", "validation")}
    # 100 steps of the 400 are wrong; the 300 right ones are thinned out to as many in each part.
    assert sum(len(part) for part in parts.values()) == 200
    problem_of = {row.id: row.step.problem for row in rows}
    for name, part in parts.items():
        assert sum(row["label"] for row in part) * 2 == len(part)
        problems = {problem_of[row["id"].partition("#")[0]] for row in part}
        assert {is_held_out(problem, 0.25) for problem in problems} == {name == "validation"}
        assert summary["parts"][name]["problems"] == len(problems)
    assert summary["dropped"]["thinned out for balance"] == 200
    # What is thinned out is no matter of position.
    kept = [int(row["id"][1:].partition("#")[0]) for row in parts["train"] if row["label"]]
    assert min(kept) < 100
    assert max(kept) > 300


def test_without_balance_all_are_kept_and_several_of_a_step_on_request(write_analyses: Write, tmp_path: Path) -> None:
    path = write_analyses([analysed(number, True, [True, True, True]) for number in range(4)])
    summary = make(path, tmp_path / "out", balance=False, per_step=2)
    assert [row["id"] for row in rows_of(tmp_path / "out" / "train.jsonl")] == [
        f"s{number}#{sample}" for number in range(4) for sample in range(2)
    ]
    assert summary["parts"]["train"] == {"rows": 8, "yes": 8, "no": 0, "problems": 4}


def test_a_repeated_analysis_is_kept_once(write_analyses: Write, tmp_path: Path) -> None:
    row = analysed(0, True, [True])
    path = write_analyses([row.model_copy(update={"analyses": row.analyses * 3})])
    summary = make(path, tmp_path / "out", balance=False, per_step=3)
    assert summary["parts"]["train"]["rows"] == 1
    assert summary["dropped"]["repeats another analysis of the step"] == 2


def test_nothing_left_is_an_error_that_says_why(write_analyses: Write, tmp_path: Path) -> None:
    path = write_analyses([analysed(0, True, [False, None]), analysed(1, True, [True])])
    with pytest.raises(
        InputError,
        match=r"no analysis is left .*no verdict: 1, verdict disagrees with the label: 1, thinned out for balance: 1",
    ):
        make(path, tmp_path / "out")
    with pytest.raises(InputError, match="per_step is 0"):
        make(path, tmp_path / "out2", per_step=0)


def test_damaged_rows_are_set_aside(write_analyses: Write, tmp_path: Path) -> None:
    path = write_analyses([analysed(0, True, [True]), analysed(1, False, [False])])
    path.write_text("{broken\n" + path.read_text() + '{"step": {"id": "x"}, "analyses": []}\n')
    summary = make(path, tmp_path / "out")
    assert summary["parts"]["train"]["rows"] == 2
    assert summary["rejected"] == 2
    rejected = rows_of(tmp_path / "out" / "rejected.jsonl")
    assert [row["line"] for row in rejected] == [1, 4]
    assert "'step.problem' is missing" in rejected[1]["reason"]


def test_begun_again_it_ends_with_the_same_bytes_and_other_settings_are_refused(
    write_analyses: Write, tmp_path: Path
) -> None:
    path = write_analyses([analysed(number, number % 2 == 0, [True, False]) for number in range(20)])
    make(path, tmp_path / "out", validation_share=0.3)
    files = {one.name: one.read_bytes() for one in (tmp_path / "out").iterdir() if one.name != "manifest.json"}
    # As a kill would leave it: some files half written.
    (tmp_path / "out" / "train.jsonl").unlink()
    (tmp_path / "out" / "train.jsonl.partial").write_text('{"id": "s0')
    make(path, tmp_path / "out", validation_share=0.3)
    assert {one.name: one.read_bytes() for one in (tmp_path / "out").iterdir() if one.name != "manifest.json"} == files
    with pytest.raises(SettingsChanged, match=r"validation_share: 0\.3 -> 0\.4"):
        make(path, tmp_path / "out", validation_share=0.4)


def test_the_card_holds_every_count_and_hostile_text_stays_in_its_fence(write_analyses: Write, tmp_path: Path) -> None:
    hostile = analysed(0, True, [True], problem="```\n# Not a heading\n````")
    path = write_analyses([hostile, analysed(1, False, [False])])
    make(path, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| train | 2 | 1 | 1 | 2 |" in card
    assert load_template("critique").digest in card
    sample = (tmp_path / "out" / "sample.md").read_text()
    # Four backticks stand in the text, so that five fence it.
    assert "`````text\n" in sample
    assert (tmp_path / "out" / "rprm_prompt.toml").read_text() == load_template("critique").to_toml()


@pytest.mark.parametrize("kind", [ColdStartOptions, PairOptions])
def test_a_share_that_makes_no_sense_is_refused_before_a_folder_is_made(kind: Any) -> None:
    with pytest.raises(InputError, match=r"validation_share is 0\.999; give a number"):
        kind(validation_share=0.999)
