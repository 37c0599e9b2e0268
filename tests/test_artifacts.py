"""Run folders: locks, settings, torn tails, journals."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rprm.errors import CorruptRun, RunError, RunLocked, SettingsChanged
from rprm.runs import (
    Journal,
    LineWriter,
    Run,
    read_json_lines,
    read_manifest,
    repair_tail,
    write_atomically,
)


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
    path.write_bytes(b'"a"\n' + b"x" * 300_000)
    assert repair_tail(path) == 300_000
    assert path.read_bytes() == b'"a"\n'
    path.write_bytes(b"x" * 300_000)
    assert repair_tail(path) == 300_000
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
    with pytest.raises(UnicodeEncodeError):
        write_atomically(path, "\ud800")
    assert path.read_text() == "old"
    write_atomically(path, "new é")
    assert path.read_text(encoding="utf-8") == "new é"
