"""Preference pairs out of a student's analyses."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rprm.data.analyses import open_analyses
from rprm.data.datasets import write_rows
from rprm.data.stage_options import PAIR_PRESETS, ColdStartOptions, PairOptions
from rprm.errors import InputError
from rprm.prompts import load_template
from rprm.records import StepAnalyses
from tests.data.conftest import MARKER, Said, analysed

Write = Callable[[Sequence[StepAnalyses]], Path]


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def make(path: Path, output: Path, **options: Any) -> dict[str, Any]:
    options = {"validation_share": 0.0, "balance": False, **options}
    return write_rows(open_analyses(path), output, load_template("critique"), PairOptions(**options))


def dropped(summary: dict[str, Any]) -> dict[str, int]:
    return {reason: count for reason, count in summary["dropped"].items() if count}


def test_the_published_filter(write_analyses: Write, tmp_path: Path) -> None:
    """Steps of which more than a third agree, two pairs of each: 1 of 3 and 2 of 6 are a third, 2 of 5 is more."""
    path = write_analyses(
        [
            analysed(0, True, [True, False, False]),
            analysed(1, True, [True, True, False, False, False, False]),
            analysed(2, True, [True, True, False, False, False]),
            analysed(3, False, [False, False, False, True, True, True]),
        ]
    )
    summary = make(
        path, tmp_path / "out", **{**asdict(PAIR_PRESETS["published"]), "balance": False, "validation_share": 0.0}
    )
    assert [row["id"].partition("#")[0] for row in rows_of(tmp_path / "out" / "train.jsonl")] == [
        "s2",
        "s2",
        "s3",
        "s3",
    ]
    assert dropped(summary) == {"steps outside the accuracy band": 2}


def test_chosen_agrees_and_rejected_disagrees(write_analyses: Write, tmp_path: Path) -> None:
    path = write_analyses(
        [
            analysed(0, True, [True, False, None]),
            analysed(1, False, [True, False]),
            analysed(2, True, [True, True]),
            analysed(3, True, [False]),
            analysed(4, True, [None, None]),
        ]
    )
    summary = make(path, tmp_path / "out")
    first, second = rows_of(tmp_path / "out" / "train.jsonl")
    assert (first["id"], first["label"], second["id"], second["label"]) == ("s0#0>1", True, "s1#1>0", False)
    assert first["chosen"] == [{"role": "assistant", "content": f"Analysis 0 of step 0.\n{MARKER} Yes"}]
    assert first["rejected"] == [{"role": "assistant", "content": f"Analysis 1 of step 0.\n{MARKER} No"}]
    # The label is No: the analysis that says so is the chosen one.
    assert second["chosen"][0]["content"].endswith(f"{MARKER} No")
    assert second["rejected"][0]["content"].endswith(f"{MARKER} Yes")
    assert first["prompt"][0]["content"] == load_template("critique").render("Problem 0?", ["Then 0."], 0).text
    assert dropped(summary) == {
        "no verdict": 3,
        "steps without a well-formed analysis": 1,
        "steps whose analyses all agree with the label": 1,
        "steps whose analyses all disagree with the label": 1,
    }
    assert summary["counts"] == {"steps": 5, "analyses": 10, "steps with a pair": 2, "pairs": 2}


@settings(max_examples=60, deadline=None)
@given(
    said=st.lists(st.one_of(st.none(), st.tuples(st.booleans(), st.integers(1, 400))), max_size=8),
    label=st.booleans(),
    per_step=st.integers(1, 5),
    ratio=st.one_of(st.none(), st.sampled_from([1.0, 1.5, 4.0])),
)
def test_pairs_are_disjoint_capped_and_alike_in_length(
    tmp_path_factory: pytest.TempPathFactory, said: list[Said], label: bool, per_step: int, ratio: float | None
) -> None:
    folder = tmp_path_factory.mktemp("pairs")
    row = analysed(0, label, said)
    path = folder / "a.jsonl"
    path.write_text(row.model_dump_json() + "\n")
    agreeing = [index for index, one in enumerate(row.analyses) if one.verdict is label]
    disagreeing = [index for index, one in enumerate(row.analyses) if one.verdict is (not label)]
    lengths = [one.num_tokens for one in row.analyses]
    fitting = [
        (good, bad)
        for good, bad in itertools.product(agreeing, disagreeing)
        if ratio is None or max(lengths[good], lengths[bad]) <= ratio * min(lengths[good], lengths[bad])
    ]
    if not fitting:
        with pytest.raises(InputError, match="no pair is left"):
            make(path, folder / "out", per_step=per_step, max_length_ratio=ratio)
        return
    make(path, folder / "out", per_step=per_step, max_length_ratio=ratio)
    pairs = [
        tuple(map(int, pair["id"].partition("#")[2].split(">"))) for pair in rows_of(folder / "out" / "train.jsonl")
    ]
    assert 1 <= len(pairs) <= min(per_step, len(agreeing), len(disagreeing))
    used = [sample for pair in pairs for sample in pair]
    assert len(set(used)) == len(used)
    assert set(pairs) <= set(fitting)
    if ratio is not None:
        # The closest pair of all is among them.
        assert min(max(lengths[a], lengths[b]) / min(lengths[a], lengths[b]) for a, b in fitting) == min(
            max(lengths[a], lengths[b]) / min(lengths[a], lengths[b]) for a, b in pairs
        )
    else:
        # As many as can be made.
        assert len(pairs) == min(per_step, len(agreeing), len(disagreeing))


def repeating(label: bool, texts: str) -> StepAnalyses:
    """A step with an analysis for each letter; capitals end in Yes, and a letter twice is an analysis twice."""
    row = analysed(0, label, [letter.isupper() for letter in texts])
    analyses = tuple(
        one.model_copy(update={"text": one.text.replace(f"Analysis {sample}", f"Analysis {letter}")})
        for sample, (one, letter) in enumerate(zip(row.analyses, texts, strict=True))
    )
    return row.model_copy(update={"analyses": analyses})


@pytest.mark.parametrize(
    ("texts", "options", "pairs"),
    [
        # B three times, A once, c twice, d once: B>c and B>d; then A>c, for c may stand in two pairs and d in one.
        ("ABcBdcB", {"per_step": 9}, {"1>2", "1>4", "0>2"}),
        # The one pair of a step is of what was sampled most.
        ("ABcBdcB", {}, {"1>2"}),
        ("dABcBcB", {}, {"2>3"}),
        # A was sampled once: it is not chosen.
        ("ABcBdcB", {"per_step": 9, "min_repeats": 2}, {"1>2", "1>4"}),
        ("ABcBdcB", {"per_step": 9, "min_repeats": 3}, {"1>2", "1>4"}),
        # Repeats count for the accuracy: 4 of 7 agree.
        ("ABcBdcB", {"min_accuracy": 0.57, "max_accuracy": 0.58}, {"1>2"}),
    ],
)
def test_what_is_sampled_more_often_is_paired_first(
    write_analyses: Write, tmp_path: Path, texts: str, options: dict[str, Any], pairs: set[str]
) -> None:
    make(write_analyses([repeating(True, texts)]), tmp_path / "out", **options)
    rows = rows_of(tmp_path / "out" / "train.jsonl")
    assert {row["id"].partition("#")[2] for row in rows} == pairs


def test_right_verdicts_that_came_once_can_be_left_out(write_analyses: Write, tmp_path: Path) -> None:
    # Of the first step, every sample that agrees reads otherwise.
    path = write_analyses([repeating(True, "ABCd"), analysed(1, True, [True, False])])
    with pytest.raises(InputError, match="steps whose agreeing analyses repeat too rarely: 2"):
        make(path, tmp_path / "out", min_repeats=2)


def test_steps_outside_the_accuracy_band_are_left_out(write_analyses: Write, tmp_path: Path) -> None:
    # Accuracies 1/4, 2/4, 3/4: the ends of the band belong to it. An analysis without a verdict does not count.
    path = write_analyses(
        [
            analysed(0, True, [True, False, False, False]),
            analysed(1, True, [True, True, False, False, None]),
            analysed(2, True, [True, True, True, False]),
        ]
    )
    summary = make(path, tmp_path / "out", min_accuracy=0.5, max_accuracy=0.5)
    assert [row["id"].partition("#")[0] for row in rows_of(tmp_path / "out" / "train.jsonl")] == ["s1"]
    assert dropped(summary)["steps outside the accuracy band"] == 2
    make(path, tmp_path / "wide", min_accuracy=0.25, max_accuracy=0.75)
    assert len(rows_of(tmp_path / "wide" / "train.jsonl")) == 3


def test_chosen_verdicts_are_balanced(write_analyses: Write, tmp_path: Path) -> None:
    path = write_analyses([analysed(number, number % 5 > 0, [True, False]) for number in range(100)])
    summary = make(path, tmp_path / "out", balance=True, validation_share=0.2)
    assert sum(part["rows"] for part in summary["parts"].values()) == 40
    for part in summary["parts"].values():
        assert part["yes"] == part["no"]


def test_the_same_problems_are_held_out_as_by_the_cold_start(write_analyses: Write, tmp_path: Path) -> None:
    path = write_analyses([analysed(number, True, [True, False]) for number in range(60)])
    make(path, tmp_path / "pairs", validation_share=0.3, seed=4)
    write_rows(
        open_analyses(path),
        tmp_path / "cold",
        load_template("critique"),
        ColdStartOptions(balance=False, validation_share=0.3, seed=4),
    )
    held_out = [
        {row["id"].partition("#")[0] for row in rows_of(tmp_path / folder / "validation.jsonl")}
        for folder in ("pairs", "cold")
    ]
    assert held_out[0] == held_out[1] != set()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"per_step": 0}, "per_step is 0"),
        ({"min_accuracy": 0.7, "max_accuracy": 0.3}, r"an accuracy from 0\.7 to 0\.3 is no band"),
        ({"max_length_ratio": 0.5}, r"max_length_ratio is 0\.5"),
        ({"min_repeats": 0}, "min_repeats is 0"),
    ],
)
def test_senseless_options_are_refused(
    write_analyses: Write, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    path = write_analyses([analysed(0, True, [True, False])])
    with pytest.raises(InputError, match=message):
        make(path, tmp_path / "out", **options)
