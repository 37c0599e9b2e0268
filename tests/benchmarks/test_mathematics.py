"""The mathematics sets: seven forms of rows, each with its own fields."""

from __future__ import annotations

import json
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from rprm.benchmarks.mathematics import SETS, read_mathematics, set_title
from rprm.errors import InputError
from rprm.grading import RULES
from rprm.reading import Row, Source, SourceInfo


def write(path: Path, *rows: Any) -> Path:
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows) + "\n")
    return path


#: Sets that may be passed on, and what is first of each.
EXCERPTS = {
    "math500": ("test/precalculus/807.json", r"\left( 3, \frac{\pi}{2} \right)"),
    "olympiadbench": ("2910", "108"),
    "college_math": ("1", r"$\frac{2}{r+s}$"),
    "gsm8k": ("39", "18"),
}


@pytest.mark.parametrize(
    ("set_name", "name", "num_items", "first"),
    [
        ("aime24", "aime24", 30, ("60", "204")),
        ("amc23", "amc23", 40, ("0", "27")),
        ("math500", "math500", 500, ("test/precalculus/807.json", r"\left( 3, \frac{\pi}{2} \right)")),
        ("olympiadbench", "olympiadbench (200 items)", 200, ("2910", "108")),
        ("college_math", "college_math (200 items)", 200, ("0", None)),
        ("minerva_math", "minerva_math", 272, ("0", "1.6")),
        ("gsm8k", "gsm8k", 1_319, ("0", "18")),
    ],
)
def test_real_sets(real_data: Path, set_name: str, name: str, num_items: int, first: tuple[str, str | None]) -> None:
    if real_data.name == "excerpts":
        if set_name not in EXCERPTS:
            pytest.skip("its problems may not be passed on")
        name, num_items, first = set_title(set_name, 20), 20, EXCERPTS[set_name]
    read = read_mathematics(set_name, real_data / "math")
    assert (set_title(set_name, num_items), len(read.problems), read.rejected) == (name, num_items, ())
    assert read.source.digest.startswith("sha256:")
    item = read.problems[0]
    assert (item.set, item.id) == (set_name, f"{set_name}/{first[0]}")
    assert first[1] in (None, item.answer)
    assert item.rule.name == set_name
    assert all(item.problem.strip() for item in read.problems)
    # A file is the same as the folder that it is in.
    assert read_mathematics(set_name, real_data / "math" / f"{set_name}.jsonl").problems == read.problems


@pytest.mark.parametrize(
    ("set_name", "row", "answer"),
    [
        ("aime24", {"problem": "p", "answer": "025"}, "025"),
        ("amc23", {"question": "p", "answer": 27.0}, "27"),
        ("math500", {"problem": "p", "answer": r"\frac{1}{2}", "unique_id": "test/a/1.json"}, r"\frac{1}{2}"),
        ("olympiadbench", {"question": "p", "final_answer": ["$1$", "$2$"]}, "$1$, $2$"),
        ("college_math", {"question": "p", "answer": "diverges"}, "diverges"),
        ("minerva_math", {"question": "p", "answer": "4.5e33"}, "4.5e33"),
        ("minerva_math", {"problem": "p", "solution": r"so \boxed{1.6} \mathrm{~cm}"}, "1.6"),
        ("gsm8k", {"question": "p", "answer": "1 + 1 = <<1+1=2>>2\n#### 1,450"}, "1,450"),
    ],
)
def test_rows_as_the_hub_has_them(tmp_path: Path, set_name: str, row: dict[str, Any], answer: str) -> None:
    (item,) = read_mathematics(set_name, write(tmp_path / "x.jsonl", row)).problems
    assert (item.problem, item.answer) == ("p", answer)
    assert item.id == f"{set_name}/{row.get('unique_id', '0')}"


def test_an_olympiad_items_own_rule(tmp_path: Path) -> None:
    row = {
        "id": 7,
        "question": "How far?",
        "context": "A train runs.",
        "final_answer": ["1.5,2"],
        "is_multiple_answer": True,
        "unit": "km",
        "error": "1e-1",
    }
    (item,) = read_mathematics("olympiadbench", write(tmp_path / "x.jsonl", row)).problems
    assert item.problem == "A train runs.\n\nHow far?"
    assert item.rule.lists_split_numbers
    assert item.rule.letter_units
    assert item.rule.absolute_tolerance == Fraction(1, 10)
    assert RULES["olympiadbench"].absolute_tolerance is None


def test_bad_rows_cost_themselves_alone(tmp_path: Path) -> None:
    path = write(
        tmp_path / "aime24.jsonl",
        {"id": 1, "problem": "p", "answer": "5"},
        "{not json",
        {"id": 2, "problem": "p", "answer": "1000"},
        {"id": 1, "problem": "p", "answer": "5"},
        {"id": 3, "problem": " ", "answer": "5"},
        {"id": 4, "problem": "p"},
        {"id": [5], "problem": "p", "answer": "5"},
        {"id": 6, "problem": "\ud800", "answer": "5"},
        [],
        {"id": 9, "problem": "p", "answer": "6"},
    )
    read = read_mathematics("aime24", tmp_path)
    assert [item.id for item in read.problems] == ["aime24/1", "aime24/9"]
    reasons = {row.line: row.reason for row in read.rejected}
    assert list(reasons) == [2, 3, 4, 5, 6, 7, 8, 9]
    assert all(row.file == str(path) for row in read.rejected)
    assert "whole number from 0 to 999, not '1000'" in reasons[3]
    assert "'aime24/1' stands in an earlier row" in reasons[4]
    assert "'problem'" in reasons[5]
    assert "'answer' must be" in reasons[6]
    assert "'id' must be" in reasons[7]
    assert "lone surrogate" in reasons[8]
    assert "JSON object" in reasons[9]


@pytest.mark.parametrize(
    ("set_name", "row", "reason"),
    [
        ("gsm8k", {"question": "p", "answer": "no end"}, "'#### NUMBER'"),
        ("minerva_math", {"question": "p", "solution": r"\boxed{1"}, "a \\boxed"),
        ("olympiadbench", {"question": "p", "final_answer": []}, "'final_answer' must be a list"),
        ("olympiadbench", {"question": "p", "final_answer": ["1"], "error": "some"}, "'error' must be a number"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, set_name: str, row: dict[str, Any], reason: str) -> None:
    with pytest.raises(InputError) as caught:
        read_mathematics(set_name, write(tmp_path / "x.jsonl", row))
    assert reason in str(caught.value)
    assert "line 1" in str(caught.value)


def test_what_cannot_be_read_at_all(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"'aime25' is no mathematics set; known are aime24"):
        read_mathematics("aime25", tmp_path)
    with pytest.raises(InputError, match=r"no math500\.jsonl in this folder"):
        read_mathematics("math500", tmp_path)
    with pytest.raises(InputError, match="college_math has no data set on the hub"):
        read_mathematics("college_math")
    with pytest.raises(InputError, match="no such file or folder"):
        read_mathematics("gsm8k", tmp_path / "missing.jsonl")
    with pytest.raises(InputError, match="belongs to a hub data set"):
        read_mathematics("gsm8k", tmp_path, revision="main")
    (tmp_path / "gsm8k.jsonl").write_text("")
    with pytest.raises(InputError, match="no rows"):
        read_mathematics("gsm8k", tmp_path)


def test_hub_sets_are_read_at_one_revision(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def inspect(source: Source) -> SourceInfo:
        return SourceInfo(source.name, f"revision:{(source.hub or {}).get('revision', 'abc')}", None)

    def rows(source: Source, after: int = 0) -> Iterator[Row]:
        asked.append(source.name)
        yield Row(1, {"question": "p", "answer": "#### 5"}, "")

    monkeypatch.setattr(Source, "inspect", inspect)
    monkeypatch.setattr(Source, "rows", rows)
    assert read_mathematics("gsm8k").source.digest == "revision:abc"
    assert read_mathematics("gsm8k", "other/copy", revision="def").source.digest == "revision:def"
    assert asked == [
        "hub:openai/gsm8k?split=test&config=main&revision=abc",
        "hub:other/copy?split=test&config=main&revision=def",
    ]


def test_the_sets_are_the_rules() -> None:
    assert set(SETS) == set(RULES)
