"""Run folders: locks, settings, torn tails, journals."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Any
from zlib import crc32

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rprm.api import RPRM
from rprm.engines.scripted import ScriptedEngine
from rprm.errors import CorruptRun, RunError, RunLocked, SettingsChanged
from rprm.files import Checksums, LineWriter, read_json_lines, repair_tail, write_atomically
from rprm.reading import SourceInfo
from rprm.records import Solution
from rprm.rewarders.base import judge_source
from rprm.runs import Journal, Run, read_manifest, read_results, read_summary


def open_run(folder: Path, **settings: Any) -> Run:
    return Run(folder, stage="judge", settings={"k": 10, "engine": {"model": "m"}, **settings})


def test_a_run_is_made_and_reopened(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "run"
    with open_run(folder) as run:
        run.complete({"n": 1}, {"seconds": 2})
    with open_run(folder):
        pass
    manifest = read_manifest(folder)
    assert manifest["stage"] == "judge"
    assert manifest["settings"] == {"k": 10, "engine": {"model": "m"}}
    assert len(manifest["sessions"]) == 2
    assert manifest["sessions"][0]["seconds"] == 2
    assert json.loads((folder / "summary.json").read_text()) == {"n": 1}


def test_changed_settings_are_refused_and_named(tmp_path: Path) -> None:
    with open_run(tmp_path / "run"):
        pass
    with pytest.raises(SettingsChanged) as caught, open_run(tmp_path / "run", k=5, engine={"model": "n"}, extra=True):
        pass
    message = str(caught.value)
    assert "k: 10 -> 5" in message
    assert 'engine.model: "m" -> "n"' in message
    assert "extra: null -> true" in message
    # A refusal leaves nothing behind: the right settings still open it.
    with open_run(tmp_path / "run"):
        pass


def test_a_second_writer_is_refused(tmp_path: Path) -> None:
    code = (
        "import sys; from rprm.runs import Run\n"
        "with Run(sys.argv[1], stage='judge', settings={}): print('open', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "run")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "open\n"
        with pytest.raises(RunLocked, match="another process"), Run(tmp_path / "run", stage="judge", settings={}):
            pass
        holder.kill()
        holder.wait()
    # A killed writer leaves no lock.
    with Run(tmp_path / "run", stage="judge", settings={}):
        pass


def test_what_is_no_run_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(RunError, match="not empty"), open_run(tmp_path):
        pass
    with pytest.raises(RunError, match="is a file"), open_run(tmp_path / "thesis.tex"):
        pass
    with pytest.raises(RunError, match="no manifest"):
        read_manifest(tmp_path)


def test_an_address_is_no_run_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RunError, match="address"), Run("s3://bucket/run", stage="judge", settings={}):
        pass
    assert not list(tmp_path.iterdir())  # No folder of that name is made beside one's files.


@pytest.mark.parametrize("content", ["", "{", "[]", '{"stage": "judge"}'])
def test_damaged_manifest(tmp_path: Path, content: str) -> None:
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(CorruptRun, match=r"manifest\.json is damaged"), open_run(tmp_path):
        pass


@given(rows=st.lists(st.text(max_size=30), max_size=5), cut=st.integers(0, 400))
def test_a_torn_tail_is_cut_to_whole_lines(tmp_path_factory: pytest.TempPathFactory, rows: list[str], cut: int) -> None:
    path = tmp_path_factory.mktemp("torn") / "x.jsonl"
    writer = LineWriter(path)
    for row in rows:
        writer.write(json.dumps(row))
    writer.close()
    whole = path.read_bytes()
    torn = whole[: min(cut, len(whole))]
    path.write_bytes(torn)
    expected = torn[: torn.rfind(b"\n") + 1]
    assert repair_tail(path) == len(torn) - len(expected)
    assert path.read_bytes() == expected
    assert list(read_json_lines(path)) == rows[: expected.count(b"\n")]


def test_a_torn_line_longer_than_a_block(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'"a"\n' + b"x" * 2_500_000)
    assert repair_tail(path) == 2_500_000
    assert path.read_bytes() == b'"a"\n'
    path.write_bytes(b"x" * 2_500_000)
    assert repair_tail(path) == 2_500_000
    assert path.read_bytes() == b""
    assert repair_tail(tmp_path / "missing") == 0


def test_damage_in_the_middle_is_no_torn_tail(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'"a"\n"b\n"c"\n')
    with pytest.raises(CorruptRun, match=r"x\.jsonl, line 2 is damaged"):
        list(read_json_lines(path))


def test_journal_gives_back_what_is_unfinished(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.append(0, "0.0", {"p": 1})
    journal.append(2, "0.0", {"p": 2})
    journal.append(2, "0.1", {"p": 3})
    journal.close()
    assert Journal(tmp_path).load(1) == {2: {"0.0": {"p": 2}, "0.1": {"p": 3}}}
    # Everything finished: the files go.
    assert Journal(tmp_path).load(3) == {}
    assert Journal.paths(tmp_path) == []


def test_journal_drops_finished_segments_and_keeps_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Journal, "SEGMENT_ROWS", 10)
    journal = Journal(tmp_path)
    for index in range(35):
        journal.append(index, "0.0", index)
    assert len(Journal.paths(tmp_path)) == 4
    # Rows 0 to 19 fill the first two segments.
    journal.finish(20)
    assert len(Journal.paths(tmp_path)) == 2
    journal.finish(25)
    assert len(Journal.paths(tmp_path)) == 2
    journal.close()
    assert sorted(Journal(tmp_path).load(25)) == list(range(25, 35))


def test_atomic_writes_leave_the_old_file_or_the_new(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    write_atomically(path, "old")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError(5, "Input/output error")))
        with pytest.raises(RunError, match="Input/output error"):
            write_atomically(path, "torn")
    assert path.read_text() == "old"
    write_atomically(path, "new é")
    assert path.read_text(encoding="utf-8") == "new é"


def sealed(path: Path, rows: list[str], checksum: int | None = 7) -> list[str]:
    """Write rows with checksums; the lines of the file."""
    with closing(LineWriter(path, fresh=True, checksums=Checksums(checksum))) as writer:
        for row in rows:
            writer.write(row)
    return path.read_text().splitlines(keepends=True)


ROWS = [f'{{"n":{number}}}' for number in range(4)]


def test_a_row_ends_in_its_checksum_and_is_read_without_it(tmp_path: Path) -> None:
    lines = sealed(tmp_path / "x.jsonl", ROWS)
    # Of the first row by hand: CRC-32 of its bytes, started from 7.
    first = crc32(b'{"n":0}', 7)
    assert lines[0] == f'{{"n":0,"crc":"{first:08x}"}}\n'
    assert [json.loads(line).keys() for line in lines] == [{"n", "crc"}] * 4
    assert list(read_json_lines(tmp_path / "x.jsonl", checksums=Checksums(7))) == [{"n": n} for n in range(4)]
    # A writer goes on where the reader ended.
    for _ in read_json_lines(tmp_path / "x.jsonl", checksums=(running := Checksums(7))):
        pass
    with closing(LineWriter(tmp_path / "x.jsonl", checksums=running)) as writer:
        writer.write('{"n":4}')
    sealed(tmp_path / "y.jsonl", [*ROWS, '{"n":4}'])
    assert (tmp_path / "x.jsonl").read_text() == (tmp_path / "y.jsonl").read_text()


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda lines: [lines[0], lines[1].replace('"n":1', '"n":9'), *lines[2:]], 2),
        (lambda lines: lines[1:], 1),
        (lambda lines: [*lines[:2], lines[3]], 3),
        (lambda lines: [*lines[:2], lines[1], *lines[2:]], 3),
        (lambda lines: [lines[1], lines[0], *lines[2:]], 1),
        (lambda lines: [*lines[:3], '{"n":3}\n'], 4),
        (lambda lines: ["\n", *lines], 1),
    ],
    ids=["edited", "first removed", "removed", "repeated", "swapped", "no checksum", "a blank line"],
)
def test_a_changed_file_is_noticed_at_its_line(change: Any, line: int, tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text("".join(change(sealed(path, ROWS))))
    with pytest.raises(CorruptRun, match=rf"line {line} is damaged \(its checksum .* cut it off before this line"):
        list(read_json_lines(path, checksums=Checksums(7)))


def test_rows_of_other_settings_are_noticed(tmp_path: Path) -> None:
    sealed(tmp_path / "x.jsonl", ROWS)
    with pytest.raises(CorruptRun, match="line 1 is damaged"):
        list(read_json_lines(tmp_path / "x.jsonl", checksums=Checksums(8)))
    with pytest.raises(CorruptRun, match=r"line 1 is damaged .*the manifest says that it has none"):
        list(read_json_lines(tmp_path / "x.jsonl", checksums=Checksums(None)))


def test_what_is_missing_at_the_end_of_a_complete_run(tmp_path: Path) -> None:
    with open_run(tmp_path) as run:
        with closing(LineWriter(run.results_path, checksums=run.checksums)) as writer:
            for row in ROWS:
                writer.write(row)
        run.complete({"n": 4}, {})
    assert list(read_results(tmp_path, dict)) == [{"n": n} for n in range(4)]
    assert read_summary(tmp_path) == {"n": 4}
    (tmp_path / "summary.json").write_text('{"n": 5}')
    with pytest.raises(CorruptRun, match=r"summary.json is damaged \(its checksum"):
        read_summary(tmp_path)
    lines = (tmp_path / "results.jsonl").read_text().splitlines(keepends=True)
    for kept in (lines[:3], [], [*lines[:3], lines[3][:-5]]):
        (tmp_path / "results.jsonl").write_text("".join(kept))
        with pytest.raises(CorruptRun, match=r"rows are missing at its end|line 4 is damaged"):
            list(read_results(tmp_path, dict))
    # Opened again it is not complete, and has the rows that it has.
    with open_run(tmp_path):
        assert list(read_results(tmp_path, dict)) == [{"n": n} for n in range(3)]


def test_a_changed_manifest_is_noticed_and_another_layout_is_not(tmp_path: Path) -> None:
    with open_run(tmp_path):
        pass
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with open_run(tmp_path):
        pass
    manifest["sessions"][0]["started_at"] = "yesterday"
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CorruptRun, match=r"manifest.json is damaged \(its checksum"), open_run(tmp_path):
        pass


def test_a_name_that_is_no_unicode_is_kept_in_the_manifest(tmp_path: Path) -> None:
    with Run(tmp_path, stage="judge", settings={}, session={"input": "caf\udce9.jsonl"}):
        pass
    assert read_manifest(tmp_path)["sessions"][0]["input"] == "caf\udce9.jsonl"


def test_a_file_is_synced_once_a_second_and_less_often_on_a_slow_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, cost, synced = 0.0, 0.001, list[float]()

    def fsync(descriptor: int) -> None:
        nonlocal now
        if not os.path.isdir(f"/proc/self/fd/{descriptor}"):
            synced.append(now)
            now += cost

    monkeypatch.setattr("rprm.files.time.monotonic", lambda: now)
    monkeypatch.setattr("rprm.files.os.fsync", fsync)
    writer = LineWriter(tmp_path / "x.jsonl")
    for _ in range(405):
        now += 0.01
        writer.write("{}")
        assert writer.synced == (bool(synced) and synced[-1] + cost == now)
    # In 4.05 seconds, every second.
    assert synced == pytest.approx([1.0, 2.0, 3.0, 4.0], abs=0.05)
    # A sync of 50 ms: the next in 5 seconds.
    cost, start = 0.05, len(synced)
    for _ in range(1100):
        now += 0.01
        writer.write("{}")
    assert [late - early for early, late in pairwise(synced[start:])] == pytest.approx([5.05, 5.05], abs=0.05)
    writer.close()


def test_pieces_are_dropped_when_the_rows_that_they_serve_are_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two solutions judged in full, the journal is there until the results are synced: here at the end alone."""
    seen: list[int] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        if os.readlink(f"/proc/self/fd/{descriptor}").endswith("results.jsonl"):
            seen.append(len(Journal.paths(tmp_path / "run")))
        real(descriptor)

    monkeypatch.setattr(Journal, "SEGMENT_ROWS", 5)
    monkeypatch.setattr("rprm.files.os.fsync", fsync)
    prm = RPRM(ScriptedEngine(), num_analyses=4, stopping="none")
    rows = [Solution(id=str(n), problem="p", steps=("a", f"b{n}")) for n in range(3)]
    source = SourceInfo("rows", "sha256:0", 3)
    asyncio.run(judge_source(prm.rewarder, rows, source=source, output=tmp_path / "run"))
    # 2 different first steps are one prompt, but a piece each: 3 * 2 * 4 pieces in segments of 5 are 5.
    assert seen == [0, 5]
    assert Journal.paths(tmp_path / "run") == []
