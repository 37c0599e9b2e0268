"""Solutions in: every format, every way that a record can be broken."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rprm.errors import InputError
from rprm.reading import Rejected, Source, read_solutions, solution_of, with_columns
from rprm.records import Solution

GOOD = {"id": "a", "problem": "1 + 1 = ?", "steps": ["1 + 1 = 2."], "label": -1}


def write(path: Path, *rows: Any) -> str:
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows) + "\n")
    return str(path)


def read(name: str) -> list[Solution | Rejected]:
    return list(read_solutions(Source(name)))


def reasons(name: str) -> list[tuple[int, str]]:
    return [(row.line, row.reason) for row in read(name) if isinstance(row, Rejected)]


def test_processbench_records_as_they_are(real_data: Path) -> None:
    rows = read(str(real_data / "processbench" / "gsm8k.jsonl"))
    assert rows
    assert all(isinstance(row, Solution) for row in rows)
    first = rows[0]
    assert isinstance(first, Solution)
    assert first.id.startswith("gsm8k-")
    assert first.label is not None


def test_json_lines_plain_gzipped_and_array_read_alike(tmp_path: Path) -> None:
    rows = [{**GOOD, "id": str(number)} for number in range(5)]
    plain = write(tmp_path / "a.jsonl", *rows)
    zipped = tmp_path / "a.jsonl.gz"
    zipped.write_bytes(gzip.compress(Path(plain).read_bytes()))
    array = tmp_path / "a.json"
    array.write_text(json.dumps(rows, indent=2))
    assert read(plain) == read(str(zipped)) == read(str(array))
    # The digest is of the content, so that zipping a file changes no run.
    assert Source(plain).inspect().digest == Source(str(zipped)).inspect().digest
    assert Source(plain).inspect().num_rows == 5
    assert Source(str(array)).inspect().num_rows is None


@pytest.mark.parametrize("form", ["jsonl", "jsonl.gz", "json", "csv", "parquet"])
def test_rows_after_the_first_ones(form: str, tmp_path: Path) -> None:
    """In every form they are the rows that come there, with their lines; the first ones are not parsed."""
    rows = [{**GOOD, "id": str(number), "problem": "" if number == 3 else "p"} for number in range(6)]
    path = tmp_path / f"a.{form}"
    if form == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif form == "csv":
        cells = (f'{row["id"]},{row["problem"]},"[""1.""]"\n' for row in rows)
        path.write_text("".join(("id,problem,steps\n", *cells)))
    elif form == "json":
        path.write_text(json.dumps(rows, indent=1))
    else:
        text = "\n\n".join(json.dumps(row) for row in rows).encode()
        path.write_bytes(gzip.compress(text) if form.endswith("gz") else text)
    found = read(str(path))
    assert [isinstance(row, Rejected) for row in found] == [number == 3 for number in range(6)]
    for number in range(8):
        assert list(read_solutions(Source(str(path))).after(number)) == found[number:]
        # The limit counts rejected rows too, and those that are left out.
        assert list(read_solutions(Source(str(path)), limit=4).after(number)) == found[number:4]


def test_rows_that_are_left_out_belong_to_the_hash(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", *({**GOOD, "id": str(number)} for number in range(4)))
    source = Source(path)
    source.inspect()
    Path(path).write_text(Path(path).read_text().replace('"0"', '"9"'))
    with pytest.raises(InputError, match="changed while it was read"):
        list(read_solutions(source).after(2))


def test_one_object_over_many_lines(tmp_path: Path) -> None:
    path = tmp_path / "one.json"
    path.write_text(json.dumps(GOOD, indent=4))
    assert [row.id for row in read(str(path)) if isinstance(row, Solution)] == ["a"]


def test_json_lines_in_a_file_named_json(tmp_path: Path) -> None:
    assert len(read(write(tmp_path / "x.json", GOOD, GOOD))) == 2


def test_bad_rows_cost_themselves_alone(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    lines: list[bytes] = [
        json.dumps(GOOD).encode(),
        b"{not json",
        b"",
        b'{"problem": "p", "steps": ["\xff"]}',
        b"[" * 100_000,
        b'{"problem": "p", "steps": [' + b"9" * 10_000 + b"]}",
        b'"text"',
        json.dumps({**GOOD, "id": "b"}).encode(),
    ]
    path.write_bytes(b"\n".join(lines))
    rows = read(str(path))
    assert [row.id for row in rows if isinstance(row, Solution)] == ["a", "b"]
    assert [row.line for row in rows if isinstance(row, Rejected)] == [2, 4, 5, 6, 7]
    found = {row.line: row.reason for row in rows if isinstance(row, Rejected)}
    assert "not JSON" in found[2]
    assert "not UTF-8" in found[4]
    assert "nested too deep" in found[5]
    assert "JSON object, not str" in found[7]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"problem": None}, "'problem' must be a text"),
        ({"problem": "  "}, "'problem' must be a text"),
        ({"steps": []}, "'steps' must be a list"),
        ({"steps": "1 + 1 = 2"}, "'steps' must be a list"),
        ({"steps": ["ok", " "]}, "'steps[1]' (number 2) must be a text"),
        ({"steps": ["ok", 3]}, "'steps[1]' (number 2) must be a text"),
        ({"steps": None, "solution": 5}, "'solution' must be a text"),
        ({"steps": None, "solution": None}, "'solution' is empty"),
        ({"problem": None, "conversations": []}, 'a chat must be {"messages": '),
        ({"problem": None, "role": "user", "content": "1 + 1 = ?"}, 'a chat must be {"messages": '),
        ({"steps": None}, "'steps' is missing: it must be a list of texts, at least one (or give 'solution'); the rec"),
        ({"id": 1.5}, "'id' must be a text or a whole number"),
        ({"label": 0.0}, "'label' must be the 0-based index of the earliest wrong step (0 to 0)"),
        ({"label": 1}, "'label' must be the 0-based index"),
        ({"label": -2}, "'label' must be"),
        ({"label": True}, "'label' must be"),
        ({"label": "0"}, "'label' must be"),
        ({"id": ""}, "'id' must be"),
        ({"id": ["a"]}, "'id' must be"),
        ({"problem": "\ud800"}, "lone surrogate"),
    ],
)
def test_what_is_wrong_is_said(change: dict[str, Any], reason: str) -> None:
    with pytest.raises(InputError) as caught:
        solution_of({**GOOD, **change}, default_id="x")
    assert reason in str(caught.value)


@pytest.mark.parametrize("solution", [5, {"text": "x"}, ["x"], "\ud800"])
def test_a_solution_beside_steps_is_not_read(solution: Any) -> None:
    assert solution_of({**GOOD, "solution": solution}, default_id="x").steps == tuple(GOOD["steps"])


def test_a_missing_field_names_those_found() -> None:
    with pytest.raises(InputError, match=r"'problem' is missing.*fields are: question, steps"):
        solution_of({"question": "q", "steps": ["s"]}, default_id="x")


def test_ids(tmp_path: Path) -> None:
    name = write(
        tmp_path / "x.jsonl",
        {"problem": "p", "steps": ["s"]},
        "",
        {**GOOD, "id": 7},
        {**GOOD, "id": " "},
        {**GOOD, "id": None},
    )
    # A table (parquet, hub) has every column in every row: a null stands for nothing, as in the other optional fields.
    assert [row.id for row in read(name) if isinstance(row, Solution)] == ["line-1", "7", " ", "line-5"]


def test_a_text_that_python_counts_as_blank_is_empty() -> None:
    blank = [chr(code) for code in range(sys.maxunicode + 1) if chr(code).isspace()]
    for text in ("".join(blank), *blank):
        with pytest.raises(InputError, match="'problem' must be a text that is not empty"):
            solution_of({**GOOD, "problem": text}, default_id="x")


def test_byte_order_mark_and_windows_lines(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(GOOD).encode() + b"\r\n" + json.dumps(GOOD).encode() + b"\r\n")
    assert [type(row) for row in read(str(path))] == [Solution, Solution]


def test_a_line_without_end_is_set_aside_unread(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    with path.open("wb") as stream:
        stream.write(b'{"problem": "')
        stream.write(b"x" * ((32 << 20) + 10))
        stream.write(b'"}\n' + json.dumps(GOOD).encode())
    rows = read(str(path))
    assert isinstance(rows[0], Rejected)
    assert rows[0].reason.startswith("the row is longer than 32 MiB")
    assert len(rows[0].text) == 10_000
    assert isinstance(rows[1], Solution)


def test_damaged_gzip_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl.gz"
    path.write_bytes(gzip.compress(b"\n".join([json.dumps(GOOD).encode()] * 1000))[:-20])
    with pytest.raises(InputError, match=r"x\.jsonl\.gz: the file is damaged"):
        read(str(path))


def test_malformed_array_and_missing_files(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text('[{"problem": "p"},')
    with pytest.raises(InputError, match="not JSON"):
        read(str(path))
    with pytest.raises(InputError, match="no such file"):
        Source(str(tmp_path / "missing.jsonl"))
    with pytest.raises(InputError, match="folder"):
        Source(str(tmp_path))


def test_empty_file(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(b"")
    assert read(str(path)) == []
    assert Source(str(path)).inspect().num_rows == 0


def test_hub_data_sets_are_asked_for_their_revision(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets
    import huggingface_hub

    asked: dict[str, Any] = {}

    class Api:
        def dataset_info(self, name: str, revision: str | None = None) -> Any:
            asked["info"] = (name, revision)
            return type("Info", (), {"sha": "abc123"})

    def load(path: str, config: str | None, **options: Any) -> Any:
        asked["load"] = (path, config, options)
        return iter([GOOD, {"problem": 3}])

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(datasets, "load_dataset", load)
    source = Source("Qwen/ProcessBench?split=gsm8k")
    assert source.inspect().digest == "revision:abc123"
    rows = list(read_solutions(source))
    assert [type(row) for row in rows] == [Solution, Rejected]
    assert asked["info"] == ("Qwen/ProcessBench", None)
    assert asked["load"] == (
        "Qwen/ProcessBench", None, {"split": "gsm8k", "revision": "abc123", "streaming": True}
    )  # fmt: skip
    with pytest.raises(InputError, match="unknown option 'spilt'"):
        Source("hub:Qwen/ProcessBench?spilt=gsm8k")


def test_a_solution_is_cut_into_steps_and_one_that_is_all_thinking_is_none() -> None:
    assert solution_of({"problem": "p", "solution": "<think>a\n\nb</think>\nc\n\nd"}, default_id="x").steps == (
        "c",
        "d",
    )
    with pytest.raises(InputError, match="'solution' is empty, or nothing but thinking"):
        solution_of({"problem": "p", "solution": "<think>a\n\nb"}, default_id="x")


_MEMORY = """
import resource, sys
from rprm.reading import Source, read_solutions
count = 0
for row in read_solutions(Source(sys.argv[1])):
    count += 1
    if count == 10_000:
        early = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(count, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - early)
"""


@pytest.mark.slow
def test_a_million_records_in_flat_memory(tmp_path: Path) -> None:
    path = tmp_path / "million.jsonl"
    block = (json.dumps({"problem": "p" * 50, "steps": ["s" * 40] * 2}) + "\n") * 1000
    with path.open("w") as stream:
        for _ in range(1000):
            stream.write(block)
    output = subprocess.run(
        [sys.executable, "-c", _MEMORY, str(path)], check=True, capture_output=True, text=True
    ).stdout
    count, growth_kib = map(int, output.split())
    assert count == 1_000_000
    assert growth_kib < 4096


def test_what_an_address_asks_for_is_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`?id=5` of a server chooses a resource there; `--map` goes behind a `#`."""
    path, asked = Path(write(tmp_path / "rows.jsonl", {**GOOD, "name": "n"})), []

    @contextmanager
    def fetch(address: str, mode: str) -> Iterator[Any]:
        asked.append(address)
        with path.open(mode) as stream:
            yield stream

    monkeypatch.setattr("fsspec.open", fetch)
    address = "http://127.0.0.1/d.jsonl?v=1&step=2&flag"
    assert [row.id for row in read_solutions(Source(address)) if isinstance(row, Solution)] == ["a"]
    source = Source(with_columns(address, ["id=name"]))
    assert [row.id for row in read_solutions(source) if isinstance(row, Solution)] == ["n"]
    assert asked == [address, address]


def test_rows_at_an_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = Path(write(tmp_path / "rows.jsonl", GOOD, {**GOOD, "id": "b"}))
    source = Source(with_columns(path.as_uri(), ["problem=problem"]))
    # Known by its content, as a file is, and read from a copy.
    assert source.inspect().digest == Source(f"{path}?problem=problem").inspect().digest
    assert source.inspect().name.startswith("file://")
    path.unlink()
    assert [row.id for row in read_solutions(source) if isinstance(row, Solution)] == ["a", "b"]
    for address, reason in {
        path.as_uri(): "cannot be read",
        "nothing://there": "cannot be read",
        "s3://user:secret@host/rows.jsonl": "no password or key",
        "https://b.s3.amazonaws.com/k.jsonl?X-Amz-Credential=AK%2F1&X-Amz-Signature=ab": "no password or key",
        "https://x.blob.core.windows.net/c/k.jsonl?sv=1&sig=abc%3D": "no password or key",
        "https://host/k.jsonl?AWSAccessKeyId=AK&Signature=abc": "no password or key",
    }.items():
        with pytest.raises(InputError, match=reason):
            Source(address)
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(InputError, match="needs fsspec"):
        Source("s3://bucket/rows.jsonl")
