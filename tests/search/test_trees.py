"""Stored trees: what is refused when they are read, what a terminal shows, what a replay finds."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from rprm.benchmarks.mathematics import Problem
from rprm.errors import CorruptRun, RprmError
from rprm.report.searches import render_tree
from rprm.runs import read_json_lines
from rprm.search.guided import SearchTotals, SearchTree, search_strategy
from tests.search.replay import differences, replay


def node(place: int, parent: int, round_: int, step: str, fate: str, **more: Any) -> dict[str, Any]:
    return {
        "id": place, "parent": parent, "tree": 0, "round": round_, "step": step, "samples": [place % 2],
        "num_tokens": 3, "num_policy_tokens": 3, "ended": fate == "finished", "finish_reason": "stop", "fate": fate,
    } | more  # fmt: skip


def tree() -> dict[str, Any]:
    """Two rounds of two steps, K = 2; the first of the second round ends the solution."""
    judged = {"low": 0.75, "high": 0.75, "p_yes": [0.5, 1.0], "num_judge_tokens": 20}
    worse = {"low": 0.0, "high": 0.5, "p_yes": [0.0], "num_judge_tokens": 10}
    return {
        "problem": Problem(id="q", problem="One and one?").model_dump(mode="json"),
        "strategy": search_strategy("guided", width=2, wave=1).model_dump(mode="json"),
        "num_analyses": 2,
        "step_separator": "\n\n",
        "nodes": [
            node(0, -1, 0, "We add.", "kept", **judged),
            node(1, -1, 0, "We guess.", "pruned", **worse),
            node(2, 0, 1, "It is 2.", "finished", **judged),
            node(3, 0, 1, "It is 3.", "pruned", **worse),
        ],
        "ends": ["finished"],
        "refusals": [],
        "finished": [2],
        "chosen": 2,
        "fell_back": False,
        "text": "We add.\n\nIt is 2.",
        "num_policy_tokens": 12,
        "num_judge_tokens": 60,
    }


def test_a_tree_is_read_back_and_searched_again() -> None:
    read = SearchTree.model_validate(tree())
    assert read.steps(3) == ("We add.", "It is 3.")
    assert read.score(2) == (0.75, 0.75)
    assert read.score(3) == (0.0, 0.5)
    assert replay(read) == read
    assert SearchTree.model_validate(json.loads(read.model_dump_json())) == read


def test_totals() -> None:
    totals = SearchTotals()
    totals.add(SearchTree.model_validate(tree()))
    # 2 + 1 + 2 + 1 analyses of 4 steps, where all in full are 8.
    assert (totals.num_steps, totals.num_analyses, totals.num_analyses_full) == (4, 6, 8)
    assert (totals.num_policy_tokens, totals.num_judge_tokens, totals.num_generated_tokens) == (12, 60, 72)


def change(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    """Set `nodes.1.parent` and the like."""

    def apply(row: dict[str, Any]) -> None:
        place: Any = row
        *way, last = [int(part) if part.isdigit() else part for part in path.split(".")]
        for part in way:
            place = place[part]
        place[last] = value

    return apply


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("nodes.1.id", 7, "node 1: wrong id 7"),
        ("nodes.2.parent", 3, "node 2: wrong id 2, parent 3"),
        ("nodes.2.parent", 2, "node 2: wrong id 2, parent 2"),
        ("nodes.2.parent", -2, "node 2: wrong id 2, parent -2"),
        ("nodes.2.parent", 1, "node 2: it does not follow its parent 1"),
        ("nodes.2.round", 2, "node 2: it does not follow its parent 0"),
        ("nodes.1.round", 1, "node 1: it does not follow its parent -1"),
        ("nodes.3.tree", 1, "node 3: wrong id 3, parent 0 or tree 1"),
        ("nodes.0.samples", [], "nodes.0.samples"),
        ("nodes.0.low", 1.5, "nodes.0.low"),
        ("nodes.0.fate", "eaten", "nodes.0.fate"),
        ("ends", [], "`ends` or `finished`"),
        ("finished", [], "`ends` or `finished`"),
        ("finished", [2, 2], "`ends` or `finished`"),
        ("chosen", 3, "the chosen node 3 is not one that was kept"),
        ("chosen", 9, "the chosen node 9 is not one that was kept"),
        ("chosen", None, "the text is not that of the chosen node's steps"),
        ("text", "We add.", "the text is not that of the chosen node's steps"),
        ("strategy.beam_size", 0, "strategy.beam_size"),
        ("extra", 1, "extra"),
    ],
)
def test_a_damaged_tree_is_refused_by_place(path: str, value: Any, message: str, tmp_path: Path) -> None:
    row = tree()
    change(path, value)(row)
    (tmp_path / "results.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(CorruptRun) as caught:
        list(read_json_lines(tmp_path / "results.jsonl", SearchTree.model_validate))
    assert "results.jsonl, line 1" in str(caught.value)
    assert message in str(caught.value)


def test_what_is_no_tree_at_all_is_refused(tmp_path: Path) -> None:
    for value in (None, [], 3, {}, {"problem": 3}):
        (tmp_path / "results.jsonl").write_text(json.dumps(value) + "\n")
        with pytest.raises(CorruptRun, match=r"results\.jsonl, line 1"):
            list(read_json_lines(tmp_path / "results.jsonl", SearchTree.model_validate))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        # A better score for what was pruned: the search keeps it, and goes on to steps that nobody wrote.
        ([("nodes.1.p_yes", [1.0, 1.0])], "no sample 0 of a step after 1 steps"),
        # Fewer analyses than the choice needs.
        ([("nodes.0.p_yes", [0.5])], "no analysis 1 of a step after 0 steps"),
    ],
)
def test_a_tree_that_does_not_hold_what_its_search_reads(changes: list[tuple[str, Any]], message: str) -> None:
    row = tree()
    for path, value in changes:
        change(path, value)(row)
    with pytest.raises(RprmError, match=message):
        replay(SearchTree.model_validate(row))


@pytest.mark.parametrize(
    ("path", "value", "difference"),
    [
        ("nodes.3.num_judge_tokens", 9, "num_judge_tokens: 60 -> 59"),
        ("nodes.2.high", 0.8, "node 2: high: 0.8 -> 0.75"),
        ("fell_back", True, "fell_back: True -> False"),
        ("num_policy_tokens", 1, "num_policy_tokens: 1 -> 12"),
    ],
)
def test_a_replay_finds_what_was_edited(path: str, value: Any, difference: str) -> None:
    row = tree()
    change(path, value)(row)
    edited = SearchTree.model_validate(row)
    assert difference in differences(edited, replay(edited))


def shown(row: dict[str, Any], **options: Any) -> str:
    console = Console(file=io.StringIO(), width=100, force_terminal=False)
    console.print(render_tree(SearchTree.model_validate(row), **options))
    text = console.file.getvalue()
    assert isinstance(text, str)
    return text


def test_a_terminal_shows_what_was_kept_and_what_it_was_worth() -> None:
    text = shown(tree())
    lines = text.splitlines()
    (added,) = (line for line in lines if "We add." in line)
    assert added.split()[1:5] == ["1", "●", "0.75", "×1"]
    (guessed,) = (line for line in lines if "We guess." in line)
    assert "○" in guessed
    assert "0.00–0.50" in guessed
    (end,) = (line for line in lines if "It is 2." in line)
    assert "■" in end
    assert "chosen: score (last) 0.75; 2 rounds" in text
    assert "We…" in shown(tree(), max_characters=2)


def test_a_terminal_shows_what_went_wrong() -> None:
    row = tree()
    row["nodes"] = [
        node(0, -1, 0, "Cut", "kept", low=None, high=None, failure="none of 2 analyses", p_yes=[None, None],
             finish_reason="length", fell_back=True),
        node(1, -1, 0, "", "dropped"),
    ]  # fmt: skip
    row |= {"ends": ["dead end"], "finished": [], "chosen": 0, "fell_back": True, "text": "Cut"}
    row["refusals"] = [{"tree": 0, "parent": 0, "reason": "the context is full"}]
    text = shown(row)
    for words in (
        "cut; kept without a reward; none of 2 analyses",
        "(nothing)",
        "ended: dead end",
        "the context is full",
        "unfinished, chosen: score (last) none",
    ):
        assert words in text
    empty = row | {"nodes": [], "chosen": None, "text": "", "refusals": []}
    assert "no solution: not one step could be kept" in shown(empty)


def test_hostile_text_reaches_no_terminal() -> None:
    row = tree()
    hostile = "[red]x[/red] [/] \x1b[2J\x07 ‮reversed 𝟚"
    row["problem"]["problem"] = row["problem"]["id"] = hostile
    row["nodes"][0]["step"] = row["nodes"][2]["failure"] = hostile
    row["text"] = f"{hostile}\n\nIt is 2."
    text = shown(row)
    assert "[red]x[/red] [/]" in text
    assert "𝟚" in text
    for character in "\x1b\x07‮":
        assert character not in text
