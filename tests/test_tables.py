"""Tables: data frames and data sets in, CSV and Parquet in, rewards out."""

from __future__ import annotations

import csv
import gzip
import json
import re
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import rprm
from rprm import content, reading
from rprm.errors import InputError, RunError
from rprm.reading import Rejected, Row, Source, read_solutions, solution_of, with_columns
from rprm.records import Analysis, Solution, SolutionReward, StepReward
from rprm.tables import COLUMNS, rows_of, step_rows, write_table

SOLUTIONS = [
    Solution(id="7", problem="1, 2,\n\n\"3\"?", steps=("One, two.", "So\n4."), label=1),
    Solution(id="b", problem="2 + 2 = ?", steps=("It is 4.",)),
]  # fmt: skip


def analysis(p_yes: float | None) -> Analysis:
    verdict = None if p_yes is None else p_yes >= 0.5
    return Analysis(text="t", verdict=verdict, p_yes=p_yes, p_yes_source=None, num_tokens=1, finish_reason="stop")


REWARDS = [
    SolutionReward(
        id="a", num_steps=3, first_error=1, label=2,
        steps=(
            StepReward(step_index=0, reward=0.75, vote=1.0, analyses=(analysis(0.5), analysis(1.0)), num_requested=2),
            StepReward(step_index=1, reward=0.25, vote=0.0, analyses=(analysis(0.25), analysis(None)), num_requested=4),
        ),
    ),
    SolutionReward(
        id='é, "x"\n', num_steps=1, first_error=None,
        steps=(StepReward(step_index=0, reward=None, vote=None, failure="too long"),),
    ),
]  # fmt: skip
ROWS = [
    ("a", 0, 3, 0.75, 1.0, 2, 0, False, None, 1, 2),
    ("a", 1, 3, 0.25, 0.0, 2, 1, True, None, 1, 2),
    ('é, "x"\n', 0, 1, None, None, 0, 0, False, "too long", None, None),
]


def found(path: Path | str) -> list[Solution]:
    rows = list(read_solutions(Source(str(path))))
    assert not [row for row in rows if isinstance(row, Rejected)]
    return rows  # type: ignore[return-value]


# Rewards out.


def test_one_reward_is_no_list() -> None:
    reward: Any = SolutionReward(id="a", num_steps=0, first_error=-1, steps=())
    with pytest.raises(InputError, match=r"to_pandas\(\[reward\]\)"):
        rprm.to_pandas(reward)


def test_a_row_for_each_judged_step() -> None:
    assert [tuple(row.values()) for row in step_rows(REWARDS)] == ROWS
    frame = rprm.to_pandas(REWARDS)
    assert list(frame.columns) == list(COLUMNS)
    assert [tuple(None if pd.isna(one) else one for one in row) for row in frame.itertuples(index=False)] == ROWS
    # Types stay when there are no rows, and where a column has gaps.
    assert rprm.to_pandas([]).dtypes.equals(frame.dtypes)
    assert frame["first_error"].dtype == "Int64"
    assert frame.groupby("id")["reward"].min().to_dict() == pytest.approx({"a": 0.25, 'é, "x"\n': np.nan}, nan_ok=True)


def test_written_and_read_again(tmp_path: Path) -> None:
    for ending in ("csv", "jsonl", "parquet"):
        assert write_table(iter(REWARDS), tmp_path / "new" / f"t.{ending}") == 3
    assert [tuple(row.values()) for row in pq.read_table(tmp_path / "new" / "t.parquet").to_pylist()] == ROWS
    lines = (tmp_path / "new" / "t.jsonl").read_text("utf-8").splitlines()
    assert [tuple(json.loads(line).values()) for line in lines] == ROWS
    again = pd.read_csv(tmp_path / "new" / "t.csv").astype(rprm.to_pandas([]).dtypes)
    pd.testing.assert_frame_equal(again, rprm.to_pandas(REWARDS))
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["t.csv", "t.jsonl", "t.parquet"]


def test_a_table_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    def torn() -> Any:
        yield REWARDS[0]
        raise InputError("the run is damaged")

    for ending in ("csv", "jsonl", "parquet"):
        (tmp_path / f"t.{ending}").write_text("as it was")
        with pytest.raises(InputError, match="damaged"):
            write_table(torn(), tmp_path / f"t.{ending}")
        assert (tmp_path / f"t.{ending}").read_text() == "as it was"
    assert len(list(tmp_path.iterdir())) == 3
    with pytest.raises(InputError, match=r"t\.xls: name a file that ends in \.csv, \.jsonl, \.parquet"):
        write_table([], tmp_path / "t.xls")


def test_what_is_missing_is_named_with_what_installs_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pq.write_table(pa.table({"problem": ["p"], "solution": ["s"]}), tmp_path / "a.parquet")
    for name in ("pandas", "pyarrow", "pyarrow.parquet"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(InputError, match="pip install pandas"):
        rprm.to_pandas(REWARDS)
    with pytest.raises(InputError, match="pip install pyarrow"):
        write_table(REWARDS, tmp_path / "t.parquet")
    with pytest.raises(InputError, match="pip install"):
        list(Source(str(tmp_path / "a.parquet")).rows())
    # And CSV needs neither.
    assert write_table(REWARDS, tmp_path / "t.csv") == 3


# Frames and data sets in.


def as_dicts() -> list[dict[str, Any]]:
    return [dict(one) | {"steps": list(one.steps)} for one in SOLUTIONS]


@pytest.mark.parametrize(
    "given",
    [
        lambda: SOLUTIONS,
        as_dicts,
        lambda: [one | {"steps": np.array(one["steps"])} for one in as_dicts()],
        lambda: [one | {"steps": tuple(one["steps"])} for one in as_dicts()],
        lambda: pd.DataFrame(as_dicts()),
        lambda: pd.DataFrame([one | {"steps": np.array(one["steps"], dtype=object)} for one in as_dicts()]),
        lambda: datasets.Dataset.from_list(as_dicts()),
        lambda: datasets.Dataset.from_list(as_dicts()).with_format("numpy"),
        lambda: datasets.Dataset.from_pandas(pd.DataFrame(as_dicts())),
        lambda: datasets.Dataset.from_list(as_dicts()).to_iterable_dataset(),
    ],
    ids=[
        "records",
        "dicts",
        "arrays",
        "tuples",
        "frame",
        "arrays in a frame",
        "set",
        "numpy",
        "from a frame",
        "stream",
    ],
)
def test_solutions_of_every_kind_are_the_same(given: Any) -> None:
    with rprm.RPRM("scripted:", num_analyses=2) as prm:
        assert prm.score(given()) == prm.score(SOLUTIONS)


def test_numbers_of_a_frame() -> None:
    """A column with a gap is of floats: 1.0 is the label 1. Numbers and texts that are no such stay refused."""
    frame = pd.DataFrame({"id": [1, 2], "problem": ["p", "q"], "solution": ["a\n\nb", "c"], "label": [1, None]})
    rows = [solution_of(row, default_id="x") for row in rows_of(frame)]
    assert [(row.id, row.label) for row in rows] == [("1", 1), ("2", None)]
    for label in (0.5, "1.5", "one"):
        with (
            rprm.RPRM("scripted:") as prm,
            pytest.raises(InputError, match="solution 0: 'label' must be the 0-based index"),
        ):
            prm.score(frame.assign(label=[label, None]))
    with rprm.RPRM("scripted:") as prm:
        assert prm.score(frame.iloc[:0]) == []
        with pytest.raises(InputError, match="solution 0: 'problem' must be a text"):
            prm.score(frame.assign(problem=[None, "q"]))


def test_neither_is_imported_unless_given() -> None:
    import subprocess

    code = (
        "import sys, rprm\nwith rprm.RPRM('scripted:') as prm: prm.score([{'problem': 'p', 'solution': 's'}])\n"
        "print({'pandas', 'datasets', 'pyarrow'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


# CSV and Parquet in.


def write_csv(path: Path, rows: list[dict[str, Any]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_steps_as_a_json_list_or_a_text(tmp_path: Path) -> None:
    rows = [dict(one) | {"steps": json.dumps(one.steps)} for one in SOLUTIONS]
    path = write_csv(tmp_path / "a.csv", rows)
    assert found(path) == SOLUTIONS
    zipped = tmp_path / "a.csv.gz"
    zipped.write_bytes(gzip.compress(path.read_bytes()))
    assert found(zipped) == SOLUTIONS
    assert Source(str(path)).inspect().digest == Source(str(zipped)).inspect().digest
    text = write_csv(tmp_path / "b.csv", [{"id": "", "problem": "[1]", "solution": "[2]\n\nSo 3."}])
    # A text is no JSON, whatever it looks like; without an id it is that of its line.
    assert found(text) == [Solution(id="line-2", problem="[1]", steps=("[2]", "So 3."))]


def test_what_pandas_writes_is_read(tmp_path: Path) -> None:
    frame = pd.DataFrame({
        "id": ["1", "2"], "problem": ["p", "q"], "solution": ["a\n\nb", "c"], "label": [1, None], "ok": [True, False],
    })  # fmt: skip
    frame.to_csv(tmp_path / "a.csv", index=False)
    frame.to_parquet(tmp_path / "a.parquet")
    expected = [Solution(id="1", problem="p", steps=("a", "b"), label=1), Solution(id="2", problem="q", steps=("c",))]
    assert found(tmp_path / "a.csv") == found(tmp_path / "a.parquet") == expected
    frame.assign(solution=None, steps=[["a", "b"], ["c"]]).to_parquet(tmp_path / "b.parquet")
    assert found(tmp_path / "b.parquet") == expected


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("problem;solution\np;s\n", "save it with commas"),
        ("problem\tsolution\np\ts\n", "save it with commas"),
        ("problem,steps\np,\"['a', 'b']\"\n", "json.dumps"),
    ],
)
def test_a_table_as_other_tools_write_it_is_told_how(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "a.csv").write_text(text)
    source = Source(str(tmp_path / "a.csv"))
    try:
        (row,) = read_solutions(source)
        assert isinstance(row, Rejected)
        reason = row.reason
    except InputError as error:
        reason = str(error)
    assert said in reason


def test_lines_of_csv_are_numbered_as_an_editor_does(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(
        b"\xef\xbb\xbfproblem,solution,label\r\n"
        b'"two\n\nlines",s,0\r\n'  # 2 to 4
        b"\r\n"
        b"p,s\r\n"  # 6
        b"p,s,0,more\r\n"
        b"\xff,s,\r\n"  # 8
        b"p,s,zero\r\n"
        b"p,,-1\r\n"
        b"p,s,-1"
    )
    rows = list(read_solutions(Source(str(path))))
    reasons = {row.line: row.reason for row in rows if isinstance(row, Rejected)}
    assert [row.id for row in rows if isinstance(row, Solution)] == ["line-2", "line-11"]
    assert list(reasons) == [6, 7, 8, 9, 10]
    assert "2 cells, and the first line names 3 columns" in reasons[6]
    assert "4 cells" in reasons[7]
    assert "not UTF-8" in reasons[8]
    assert "'label' must be" in reasons[9]
    assert reasons[10] == "'solution' is empty"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("problem,problem\np,q\n", "'problem' stands there twice"),
        ('problem,solution\np,"s\n' + "x\n" * 600_000, "row at line 2 is longer than 1 MiB .* not closed"),
        ("problem,solution\np," + "x" * (1 << 21), "row at line 2 is longer than 1 MiB"),
        ("problem,solution\np" + "," * 9000, "more than 8,000 commas"),
        ('problem,solution\n"p"q,s\n', "line 2 is no CSV"),
        ('problem,solution\np,"s', "line 2 is no CSV"),
    ],
    ids=["twice", "open quote", "long", "commas", "after a quote", "no end"],
)
def test_csv_that_is_none(text: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(content.ROW_VARIABLE, "1")
    monkeypatch.setattr(reading, "MAX_COMMAS", 8000)
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(InputError, match=reason):
        found(tmp_path / "a.csv")


def test_a_csv_of_no_row(tmp_path: Path) -> None:
    for text in ("", "\n\n", "problem,solution\n"):
        (tmp_path / "a.csv").write_text(text)
        assert found(tmp_path / "a.csv") == []


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_a_file_that_changed_is_noticed(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{ending}"
    for number in (1, 2):
        frame = pd.DataFrame({"problem": [f"p{number}"], "solution": ["s"]})
        frame.to_csv(path, index=False) if ending == "csv" else frame.to_parquet(path)
        if number == 1:
            source = Source(str(path))
            source.inspect()
            assert len(list(source.rows())) == 1
    with pytest.raises(InputError, match="it changed while it was read"):
        list(source.rows())


def test_a_long_row_of_parquet_costs_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(content.ROW_VARIABLE, "1")
    pq.write_table(pa.table({"problem": ["p", "x" * (2 << 20), "q"], "solution": ["s"] * 3}), tmp_path / "a.parquet")
    rows = list(read_solutions(Source(str(tmp_path / "a.parquet"))))
    assert [type(row) for row in rows] == [Solution, Rejected, Solution]
    assert isinstance(rows[1], Rejected)
    assert "longer than 1 MiB" in rows[1].reason


def test_memory_holds_few_rows_at_a_time(tmp_path: Path) -> None:
    import tracemalloc

    path = tmp_path / "a.csv"
    path.write_text("problem,solution\n" + f"{'p' * 400},s\n" * 20_000)  # 8 MB
    source = Source(str(path))
    tracemalloc.start()
    try:
        assert sum(isinstance(row, Row) for row in source.rows()) == 20_000
        assert tracemalloc.get_traced_memory()[1] < 3 << 20
    finally:
        tracemalloc.stop()


# Chats, and columns of other names.


def test_a_chat_is_a_problem_and_its_solution() -> None:
    chat = [
        {"role": "system", "content": "Solve."},
        {"role": "user", "content": "1 + 1 = ?"},
        {"role": "assistant", "content": "Let me look."},
        {"role": "tool", "content": "2"},
        {"role": "assistant", "content": "Add.\n\nIt is 2."},
    ]
    expected = Solution(id="a", problem="1 + 1 = ?", steps=("Add.", "It is 2."), label=-1)
    assert solution_of({"id": "a", "messages": chat, "label": -1}, default_id="x") == expected
    # A problem of its own comes first.
    assert solution_of({"problem": "p", "solution": "s", "messages": chat}, default_id="x").problem == "p"
    for wrong in (chat[:2], [*chat, chat[1]], [], chat[2:], [{"role": "user"}], "text", [1]):
        with pytest.raises(InputError, match="messages"):
            solution_of({"messages": wrong}, default_id="x")


def test_a_column_stands_for_a_field(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "a.csv", [{"question": "p", "response": "s\n\nt", "error_at": "1", "problem": "other"}])
    name = with_columns(str(path), ["problem=question", "solution=response", "label=error_at"])
    assert found(name) == [Solution(id="line-2", problem="p", steps=("s", "t"), label=1)]
    # What the rows are is of the run's settings.
    assert Source(name).inspect().digest != Source(str(path)).inspect().digest
    assert with_columns(str(path), None) == str(path)
    assert Source("OWNER/NAME?split=train&problem=q").hub == {"path": "OWNER/NAME", "split": "train"}
    assert Source(with_columns("OWNER/NAME?split=train", ["problem=q"])).columns == {"problem": "q"}
    for wrong in ("question", "problem=", "probelm=question", "=x"):
        with pytest.raises(InputError, match="give FIELD=COLUMN; fields are id, problem"):
            with_columns(str(path), [wrong])
    # A column that is not there leaves the field missing.
    for mapped, reason in (("solution=text", "'steps' is missing"), ("problem=text", "'problem' is missing")):
        (row,) = read_solutions(Source(with_columns(str(path), [mapped])))
        assert isinstance(row, Rejected)
        assert reason in row.reason


def test_a_name_with_a_question_mark_is_a_name(tmp_path: Path) -> None:
    path = tmp_path / "a?problem=q.jsonl"
    path.write_text(json.dumps({"q": "other", "problem": "p", "solution": "s"}))
    assert found(path)[0].problem == "p"
    assert found(with_columns(str(path), ["problem=q"]))[0].problem == "other"


def test_two_that_write_one_table_do_not_mix(tmp_path: Path) -> None:
    path, both = tmp_path / "t.csv", threading.Barrier(2)

    def rows(name: str) -> Iterator[SolutionReward]:
        for number in range(20):
            both.wait(10)
            step = StepReward(step_index=0, reward=1.0, vote=1.0)
            yield SolutionReward(id=f"{name}{number}" * 1000, num_steps=1, first_error=-1, steps=(step,))

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(lambda name: write_table(rows(name), path), "AB")) == [20, 20]
    lines = path.read_text().splitlines()[1:]
    assert len(lines) == 20
    assert len({line[0] for line in lines}) == 1
    assert [one.name for one in tmp_path.iterdir()] == ["t.csv"]


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.csv").mkdir()
    (tmp_path / "file").touch()
    for place in (tmp_path / "x.csv", tmp_path / "file" / "x.csv"):
        with pytest.raises(RunError, match=f"^{re.escape(str(place))}: ") as caught:
            write_table([], place)
        assert "partial" not in str(caught.value)
