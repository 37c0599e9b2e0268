"""Input files that are hostile, broken or strange: each bad row costs itself, nothing hangs, nothing is invented."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
import resource
import signal
import socket
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from rprm import content, reading
from rprm.cli import main
from rprm.errors import InputError
from rprm.reading import Rejected, Source, read_solutions

GOOD = {"id": "a", "problem": "1 + 1 = ?", "steps": ["1 + 1 = 2."], "label": -1}
LINE = json.dumps(GOOD).encode()
OTHER = json.dumps({**GOOD, "id": "b"}).encode()
#: Bounds are lowered, so that a test need not write gigabytes.
MIB = 1 << 20


class Case(NamedTuple):
    data: bytes
    good: int = 0  # rows that can be used
    bad: int = 0  # rows that are rejected
    word: str = ""  # of what is said
    name: str = "x.jsonl"


def zipped(*members: bytes) -> bytes:
    return b"".join(gzip.compress(member, 1) for member in members)


def archive() -> bytes:
    path = Path(os.environ.get("TMPDIR", "/tmp")) / f"rprm-test-{os.getpid()}.zip"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("x.jsonl", LINE)
    data = path.read_bytes()
    path.unlink()
    return data


def changed(**fields: Any) -> bytes:
    return json.dumps({**GOOD, **fields}).encode()


PRETTY = json.dumps(GOOD, indent=1).encode()
FILES = {
    "one row": Case(LINE, 1),
    "no line end": Case(LINE + b"\n" + OTHER, 2),
    "blank lines": Case(b"\n\n" + LINE + b"\n \t\r\n\n" + OTHER + b"\n\n", 2),
    "windows lines": Case(LINE + b"\r\n" + OTHER + b"\r\n", 2),
    "byte order mark": Case(content.BOM + LINE, 1),
    "array": Case(b"[" + LINE + b"," + OTHER + b"]", 2, name="x.json"),
    "array over lines": Case(b" [\n" + LINE + b",\n" + OTHER + b"\n]\n", 2, name="x.json"),
    "array with a byte order mark": Case(content.BOM + b"\r\n[" + LINE + b"]", 1, name="x.json"),
    "array named jsonl": Case(b"[" + LINE + b"]", 1),
    "array, a bad element": Case(b"[" + LINE + b",{bad}," + OTHER + b",3]", 2, 2, "not JSON", "x.json"),
    "array, no Unicode in an element": Case(b"[" + LINE + b',"\xff"]', 1, 1, "not UTF-8", "x.json"),
    "array, brackets in texts": Case(b"[" + changed(problem='a "]},{[ \\') + b"," + OTHER + b"]", 2, name="x.json"),
    "array, a comma at the end": Case(b"[" + LINE + b",]", 1, 1, "not JSON", "x.json"),
    "array, deep": Case(b"[" + LINE + b"," + b"[" * 5000 + b"]" * 5000 + b"]", 1, 1, "nested too deep", "x.json"),
    "array cut short": Case(b"[" + LINE + b"," + OTHER[:20], word="no end", name="x.json"),
    "array, text after it": Case(b"[" + LINE + b"]\n[" + OTHER + b"]", word="after its array", name="x.json"),
    "array, open strings": Case(b'["' + b"x" * 600_000 + b"]", word="no end", name="x.json"),
    "array, nothing in it": Case(b"[ ]", word="no solution", name="x.json"),
    "object over lines": Case(PRETTY, 1, name="x.json"),
    "object over lines, no ending": Case(PRETTY, 1, name="rows"),
    "object cut short": Case(PRETTY[:-1], word="not JSON", name="x.json"),
    "rows named json": Case(LINE + b"\n" + OTHER, 2, name="x.json"),
    "rows named json, a bad first": Case(b'{"a" 1}\n' + OTHER, 1, 1, "not JSON", "x.json"),
    "rows, the first cut short": Case(LINE[:5] + b"\n" + OTHER, 1, 1, "not JSON"),
    "rows, the last cut short": Case(LINE + b"\n" + OTHER[:30], 1, 1, "not JSON"),
    "gzip": Case(zipped(LINE), 1, name="x.jsonl.gz"),
    "gzip named jsonl": Case(zipped(LINE), 1),
    "gzip, two members": Case(zipped(LINE + b"\n", OTHER), 2, name="x.jsonl.gz"),
    "gzip, zeros after it": Case(zipped(LINE) + bytes(100), 1, name="x.jsonl.gz"),
    "gzip, rubbish after it": Case(zipped(LINE) + b"rubbish", word="damaged", name="x.jsonl.gz"),
    "gzip cut short": Case(zipped(LINE * 50)[:-9], word="damaged", name="x.jsonl.gz"),
    "gzip, a wrong sum": Case(zipped(LINE)[:-8] + bytes(8), word="damaged", name="x.jsonl.gz"),
    "gzip of the first byte": Case(b"\x1f\x8b", word="damaged", name="x.jsonl.gz"),
    "gzip in gzip": Case(zipped(zipped(LINE)), word="twice", name="x.jsonl.gz"),
    "gzip of nothing": Case(zipped(b""), word="no solution", name="x.jsonl.gz"),
    "named gz, not zipped": Case(LINE, 1, name="x.jsonl.gz"),
    "zip": Case(archive(), word="zip archive", name="x.zip"),
    "bzip2": Case(bz2.compress(LINE), word="bzip2"),
    "xz": Case(lzma.compress(LINE), word="xz"),
    "zstd": Case(b"\x28\xb5\x2f\xfd" + bytes(40), word="zstd"),
    "parquet by another name": Case(b"PAR1" + bytes(40), word="parquet"),
    "parquet that is none": Case(LINE, word="cannot be read", name="x.parquet"),
    "UTF-16": Case((LINE + b"\n").decode().encode("utf-16"), word="UTF-16"),
    "UTF-16, big-endian": Case(b"\xfe\xff" + LINE.decode().encode("utf-16-be"), word="UTF-16"),
    "UTF-16 without a mark": Case(LINE.decode().encode("utf-16-le"), bad=1, word="not JSON"),
    "UTF-32": Case(LINE.decode().encode("utf-32"), word="UTF-16"),
    "Latin-1": Case(LINE + b"\n" + changed(problem="X").replace(b"X", b"\xe9"), 1, 1, "save the file as UTF-8"),
    "surrogates in UTF-8": Case(changed(problem="X").replace(b"X", b"\xed\xa0\x80"), bad=1, word="not UTF-8"),
    "surrogates, spelled": Case(changed(problem="\ud800"), bad=1, word="surrogate"),
    "NUL bytes alone": Case(bytes(3000), word="NUL"),
    "a NUL in a row": Case(LINE + b"\n" + OTHER.replace(b"1", b"\0", 1), 1, 1, "Invalid control character"),
    "a NUL spelled": Case(changed(problem="a\0b"), 1),
    "carriage returns alone": Case(LINE + b"\r" + OTHER + b"\r", bad=1, word="carriage returns"),
    "nothing": Case(b"", word="no solution"),
    "blank": Case(b"\n \n\t\n", word="no solution"),
    "no objects": Case(b'1\n"a"\nnull\n[1]\ntrue', bad=5, word="must be a JSON object"),
    "other fields": Case(b'{"query": "q", "steps": ["s"]}\n{}', bad=2, word="'problem' is missing"),
    "numbers that are none": Case(changed(problem=float("nan")) + b"\n" + OTHER, 1, 1, "'problem' must be"),
    "a number of 5,000 digits": Case(b'{"problem": ' + b"9" * 5000 + b"}\n" + LINE, 1, 1, "digits"),
    "deep nesting": Case(b"[" * 1000 + b"\n" + LINE, word="no end"),
    "deep nesting in a row": Case(b'{"a":' * 90_000 + b"\n" + LINE, 1, 1, "nested too deep"),
    "a long line": Case(b'{"problem": "' + b"x" * (MIB + 9) + b'"}\n' + LINE, 1, 1, "longer than 1 MiB"),
    "a long element": Case(b'[["' + b"x" * (MIB + 9) + b'"],' + LINE + b"]", 1, 1, "longer than 1 MiB", "x.json"),
    "a long object": Case(b'{\n"problem": "' + b"x" * MIB + b'"}', word="longer than 1 MiB", name="x.json"),
    "a row of commas": Case(b"{}" + b"," * 9000 + b"\n" + LINE, 1, 1, "commas"),
    "a bomb of line ends": Case(zipped(LINE + b"\n" + b"\n" * (34 * MIB)), word="blank lines", name="x.jsonl.gz"),
    "a bomb of rows": Case(b"{}\n" * 3000, word="none of its first 2,000 rows"),
    "a bomb of elements": Case(zipped(b"[" + b"{}," * 3000 + b"1]"), word="none of its first 2,000", name="x.json.gz"),
    "a bomb of brackets": Case(zipped(b"[" * (2 * MIB) + b"]"), word="no end", name="x.json.gz"),
    "repeated ids": Case(LINE + b"\n" + LINE, 2),
    "control characters": Case(changed(id="\x1b[2J\u202e", problem="\x1b]0;x\x07"), 1),
    "pickle": Case(b"\x80\x04\x95\x0b\x00.", bad=1, word="not UTF-8"),
    "TOML": Case(b'problem = "p"\n', bad=1, word="not JSON"),
    "CSV": Case(b"id,problem,steps\n1,p,s\n", bad=2, word="not JSON"),
}  # fmt: skip


@pytest.fixture(autouse=True)
def low_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(content.ROW_VARIABLE, "1")
    monkeypatch.setattr(reading, "MAX_REJECTED_FIRST", 2000)
    monkeypatch.setattr(reading, "MAX_COMMAS", 8000)


@pytest.fixture(autouse=True)
def no_hang() -> Iterator[None]:
    def give_up(*_: object) -> None:
        pytest.fail("it hangs")

    signal.signal(signal.SIGALRM, give_up)
    signal.alarm(60)
    yield
    signal.alarm(0)


@pytest.fixture
def rprm(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """The command in this process: its exit code, what it prints, what it says."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["rprm", *map(str, arguments)])
        code: Any = 0
        # A command keeps its process: its streams, and its signals, which are ignored at its end.
        streams, signals = (sys.stdin, sys.stdout, sys.stderr), {one: signal.getsignal(one) for one in STOPPING}
        try:
            main()
        except SystemExit as error:
            code = error.code
        finally:
            sys.stdin, sys.stdout, sys.stderr = streams
            for one, handler in signals.items():
                signal.signal(one, handler)
        out, err = capfd.readouterr()
        # As the interpreter does with a text.
        return (1, out, f"{err}{code}") if isinstance(code, str) else (code or 0, out, err)

    return run


STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
Run = Callable[..., tuple[int, str, str]]
JUDGE = ("--model", "scripted:", "-k", "1", "--json")


def judged(rprm: Run, case: Case, source: object) -> None:
    code, out, err = rprm("judge", source, *JUDGE)
    said = " ".join(err.split())
    assert len(out.splitlines()) == case.good, said
    assert code == (1 if not case.good else 3 if case.bad else 0), said
    assert case.word in said
    assert len(said) < 4000 + 400 * case.bad


@pytest.mark.parametrize("name", FILES)
def test_a_file_through_the_judge(name: str, rprm: Run, tmp_path: Path) -> None:
    case = FILES[name]
    path = tmp_path / case.name
    path.write_bytes(case.data)
    judged(rprm, case, path)


#: Commands that read rows; FILE, OUT and GOOD (a file of one good row) are filled in.
COMMANDS = (
    "data steps FILE -o OUT", "data analyses FILE -m scripted: -n 1 -o OUT", "data import FILE -o OUT",
    "data rollouts FILE --outcomes -o OUT", "data agree FILE -m scripted: -k 1 -o OUT", "data inject FILE -o OUT",
    "data cold-start FILE --prompt critique -o OUT", "data pairs FILE --prompt critique -o OUT",
    "bench steps FILE -m scripted: -k 1 --output OUT", "bench processbench --data FILE -m scripted: -k 1 --output OUT",
    "bench prmbench --data FILE -m scripted: -k 1 --output OUT", "bench processbench --data GOOD --scores FILE",
    "bench mathematics --set math500 --data FILE", "bench mathematics --set math500 --data GOOD --candidates FILE",
    "search sample -p scripted: --problems FILE -n 1 -o OUT",
    "search best-of-n -m scripted: --problems GOOD --candidates FILE -k 1 -o OUT",
    "search guided -p scripted: -m scripted: --problems FILE -k 1 --width 1 --max-rounds 1 -o OUT",
    "prompts import FILE -o OUT.toml", "evolve FILE -m nowhere -o OUT",
)  # fmt: skip


@pytest.mark.slow
def test_every_file_through_commands_that_read_rows(rprm: Run, tmp_path: Path, figures: Callable[..., None]) -> None:
    good = tmp_path / "math500.jsonl"
    good.write_text(json.dumps({**GOOD, "answer": "2", "final_answer_correct": True}) + "\n")
    codes = dict.fromkeys((0, 1, 2, 3), 0)
    for number, (name, case) in enumerate(FILES.items()):
        signal.alarm(60)
        folder = tmp_path / str(number)
        folder.mkdir()
        (path := folder / case.name).write_bytes(case.data)
        for command in (COMMANDS * 2)[(place := 2 * number % len(COMMANDS)) : place + 2]:
            out = folder / command.split()[1]
            code, _, err = rprm(
                *(part.replace("OUT", str(out)).replace("FILE", str(path)).replace("GOOD", str(good))
                  for part in command.split())
            )  # fmt: skip
            assert code in codes, (name, command, err)
            assert code in (0, 3) or err.strip(), (name, command)
            codes[code] += 1
            results = out / "results.jsonl"
            rows = results.read_bytes().splitlines() if results.exists() else []
            # No row that the file has not; a solution's steps are one each.
            assert len(rows) <= case.good or "GOOD" in command, (name, command)
            if not case.good and "GOOD" not in command:
                assert code == 1, (name, command, err)
    assert codes[2] == 0
    figures(files=len(FILES), commands=1 + len(COMMANDS), runs=sum(codes.values()) + len(FILES), tracebacks=0)


def fed(path: Path, data: bytes) -> threading.Thread:
    """Write to a pipe that someone opens."""

    def feed() -> None:
        with suppress(BrokenPipeError), path.open("wb") as stream:
            stream.write(data)

    thread = threading.Thread(target=feed, daemon=True)
    thread.start()
    return thread


TWO = Case(LINE + b"\n" + OTHER, 2)


def test_a_named_pipe(rprm: Run, tmp_path: Path) -> None:
    os.mkfifo(path := tmp_path / "pipe")
    thread = fed(path, TWO.data)
    judged(rprm, TWO, path)
    thread.join()


@pytest.mark.parametrize("case", [TWO, Case(PRETTY, 1), Case(b"", word="no solution"), FILES["gzip"]], ids=range(4))
def test_process_substitution(case: Case, rprm: Run) -> None:
    reader, writer = os.pipe()
    os.write(writer, case.data)
    os.close(writer)
    judged(rprm, case, f"/dev/fd/{reader}")
    os.close(reader)


def test_pipes_of_a_benchmark(rprm: Run, tmp_path: Path) -> None:
    """Its data and scores made elsewhere, each read once."""
    items = [{"id": n, "generator": "g", "final_answer_correct": n == "b", "label": -(n == "b")} for n in "ab"]
    data = b"".join(json.dumps(GOOD | one).encode() + b"\n" for one in items)
    scores = b'{"id": "a", "p_yes": [0.1]}\n{"id": "b", "p_yes": [0.9]}\n'
    for name, content_ in {"data": data, "scores": scores}.items():
        os.mkfifo(tmp_path / name)
        fed(tmp_path / name, content_)
    paths = "--data", tmp_path / "data", "--scores", tmp_path / "scores"
    code, out, err = rprm("bench", "processbench", *paths, "--json", "--resamples", "10")
    assert (code, err) == (0, "")
    # The error of one is found, and none in the other.
    assert json.loads(out)["figures"]["average"]["f1"]["value"] == 100.0


@pytest.mark.parametrize("num_bad", [0, 1, 5])
def test_a_benchmark_without_some_of_its_rows(num_bad: int, rprm: Run, tmp_path: Path) -> None:
    """It is measured, and the exit code says that rows were rejected."""
    path, run = tmp_path / "steps.jsonl", tmp_path / "run"
    good = [{"id": str(n), "problem": "P?", "step": "It is 1.", "label": n > 0} for n in range(2)]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in [*good, *[{"problem": 1}] * num_bad]))
    judged = rprm("bench", "steps", path, "-m", "scripted:", "-o", run, "--resamples", "10", "--allow-missing")
    assert (judged[0], (run / "measurement.json").exists()) == (3 if num_bad else 0, True)
    again = rprm("bench", "steps", path, "--scores", run, "--resamples", "10", "--allow-missing")
    compared = rprm("bench", "compare", run, run, "--resamples", "10", "--allow-missing")
    assert (again[0], compared[0]) == (judged[0], judged[0]), (again, compared)


def test_a_row_of_many_errors_ends_at_the_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A million empty lists in place of steps: each as an error would take a kilobyte."""
    monkeypatch.delenv(content.ROW_VARIABLE)
    monkeypatch.setattr(reading, "MAX_COMMAS", 2_000_000)
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"problem": "p", "steps": [' + b"[]," * 1_000_000 + b"[]]}\n" + LINE)
    assert _peak_mib(lambda: list(read_solutions(Source(str(path))))) < 250
    bad, good = read_solutions(Source(str(path)))
    assert isinstance(bad, Rejected)
    assert bad.reason == "'steps[0]' (number 1) must be a text, not []"
    assert good == reading.solution_of(GOOD, default_id="")


@pytest.mark.parametrize("name", ["-", "/dev/stdin"])
def test_standard_input(name: str, rprm: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.write(writer, TWO.data)
    os.close(writer)
    kept = os.dup(0)
    os.dup2(reader, 0)
    with open(0, closefd=False) as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
        judged(rprm, TWO, name)
    os.dup2(kept, 0)
    assert not list(tmp_path.iterdir())  # of the copy


def test_a_closed_standard_input(rprm: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    judged(rprm, Case(b"", word="holds no solution"), "-")


def test_a_pipe_that_does_not_end(rprm: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(content, "_MAX_PIPE_BYTES", MIB)
    os.mkfifo(path := tmp_path / "pipe")
    fed(path, b"x" * (3 * MIB))
    judged(rprm, Case(b"", word="more than"), path)


def test_what_is_no_file(rprm: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    monkeypatch.chdir(tmp_path)  # the address of a socket has at most 100 bytes or so
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
    for source, word in {
        tmp_path: "it is a folder", tmp_path / "loop": "symbolic links", tmp_path / "dangling": "no such file",
        tmp_path / "socket": "it is a socket", "/dev/zero": "it is a device", "/dev/null": "it is a device",
        tmp_path / ("x" * 300): "name too long", "a\0b": "null", "": "no such file", "x/" * 4000: "name too long",
        tmp_path / "x.jsonl" / "y": "no such file", os.fsdecode(b"\xff\xfe"): r"\xff\xfe: no such file",
    }.items():  # fmt: skip
        code, out, err = rprm("judge", source, *JUDGE)
        assert (code, out) == (1, ""), source
        assert word in err, (source, err)


@pytest.mark.skipif(os.geteuid() == 0, reason="an administrator may read everything")
def test_a_file_that_may_not_be_read(rprm: Run, tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(LINE)
    path.chmod(0)
    judged(rprm, Case(b"", word="Permission denied"), path)


def test_a_name_that_is_no_unicode(rprm: Run, tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.jsonl"))
    path.write_bytes(LINE)
    code, _, err = rprm("judge", path, *JUDGE, "--output", tmp_path / "run")
    assert code == 0, err


@pytest.mark.parametrize("form", ["lines", "array"])
def test_a_file_that_changes_while_it_is_read(form: str, tmp_path: Path) -> None:
    rows = [json.dumps({**GOOD, "id": str(number)}) for number in range(5000)]
    texts = {"lines": "\n".join(rows) + "\n", "array": f"[{','.join(rows)}]"}
    path = tmp_path / "x.json"
    for change, is_error in {"grows": False, "shrinks": True, "edited": True, "replaced": True}.items():
        path.write_text(texts[form])
        source = Source(str(path))
        source.inspect()
        if change == "grows":
            path.write_text(texts[form] + "\n" + rows[0] + "\n")
        elif change == "shrinks":
            path.write_text(texts[form][:-2000])
        elif change == "edited":
            path.write_text(texts[form].replace('"id": "4999"', '"id": "4998"'))
        else:
            path.write_text(texts["array" if form == "lines" else "lines"])
        if is_error:
            with pytest.raises(InputError, match=r"changed while it was read|no end"):
                list(read_solutions(source))
        else:
            found = list(read_solutions(source))
            assert len(found) == 5000
            assert not any(isinstance(row, Rejected) for row in found)


@pytest.mark.parametrize("value", ["0", "-1", "x", "１", "1e3", "99999999999"])
def test_the_bound_of_a_row_is_checked(value: str, rprm: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(content.ROW_VARIABLE, value)
    (tmp_path / "x.jsonl").write_bytes(LINE)
    judged(rprm, Case(b"", word=f"{content.ROW_VARIABLE} is '{value}'"), tmp_path / "x.jsonl")


def test_the_bound_of_a_row_can_be_raised(rprm: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(content.ROW_VARIABLE, "2")
    (tmp_path / "x.jsonl").write_bytes(changed(problem="x " * (MIB // 2)))
    judged(rprm, Case(b"", 1), tmp_path / "x.jsonl")


def test_arrays_are_cut_alike_wherever_blocks_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every size of a block against what the json module reads."""
    values = [{"a": 'x"]},{[\\', "b": [[], {}, [[["deep"]]]]}, "\\\\", [], "é\n", -1.5, {"c": {"d": {"e": {"f": [1]}}}}]
    data = json.dumps(values, ensure_ascii=False, indent=1).encode()
    for size in range(1, len(data) + 1):
        blocks = [data[at : at + size] for at in range(0, len(data), size)]
        assert [json.loads(part) for _, part in content.elements(blocks, "x")] == values, size


def test_rejected_rows_are_capped_on_screen_and_on_disk(
    rprm: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(reading, "MAX_REJECTED_ROWS", 100)
    path, run = tmp_path / "x.jsonl", tmp_path / "run"
    path.write_bytes(LINE + b"\n{}" * 500)
    code, _, err = rprm("judge", path, *JUDGE, "-o", run)
    assert code == 3
    assert err.count("rejected: ") == 21
    assert "480 more rows" in err
    listed = [json.loads(line) for line in (run / "rejected.jsonl").read_text().splitlines()]
    assert [row["line"] for row in listed] == list(range(2, 103))
    assert "more rows are rejected, which are counted alone" in listed[-1]["reason"]
    assert json.loads((run / "summary.json").read_text())["num_rejected"] == 500
    code, *_ = rprm("data", "steps", path, "-o", tmp_path / "steps")
    assert code == 3
    assert len((tmp_path / "steps" / "rejected.jsonl").read_text().splitlines()) == 101


def _peak_mib(work: Callable[[], object]) -> int:
    """What work in a child adds to the memory of this process, of which it may take two gigabytes more."""

    def held(place: int) -> int:
        return int(Path("/proc/self/statm").read_text().split()[place]) * resource.getpagesize()

    before = held(1) >> 10
    if not (child := os.fork()):
        code = 1
        try:
            resource.setrlimit(resource.RLIMIT_AS, (held(0) + 2048 * MIB,) * 2)
            work()
            code = 0
        finally:
            os._exit(code)
    _, status, usage = os.wait4(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    return max(0, usage.ru_maxrss - before) >> 10


@pytest.mark.slow
def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, figures: Callable[..., None]) -> None:
    """A little gzip that holds an array of 30 MB, an endless line, 30 MB of brackets; a record of 400 long steps."""
    monkeypatch.delenv(content.ROW_VARIABLE)
    monkeypatch.setattr(reading, "MAX_COMMAS", 2_000_000)
    element = json.dumps({"problem": "p", "steps": ["s" * 400] * 4}).encode() + b","
    files = {
        "array": b"[" + element * (30 * MIB // len(element)) + element[:-1] + b"]",
        "line": b"x" * (200 * MIB),
        "brackets": b"[[" + b"[]," * (10 * MIB) + b"1]]",
    }
    peaks = {}
    for name, data in files.items():
        signal.alarm(60)
        path = tmp_path / f"{name}.json.gz"
        path.write_bytes(gzip.compress(data, 1))
        del data
        peaks[f"MiB_for_an_{name}"] = _peak_mib(lambda path=path: sum(1 for _ in read_solutions(Source(str(path)))))
    files.clear()
    signal.alarm(120)
    # Their prompts have 130 MB in all.
    steps = [f"{number} + 1 = {number + 1}, and so on. " * 50 for number in range(400)]

    def judge() -> None:
        from rprm import RPRM

        (reward,) = RPRM("scripted:", num_analyses=1).score([{"problem": "p", "steps": steps}])
        assert len(reward.steps) == 400

    peaks["MiB_for_400_steps"] = _peak_mib(judge)
    figures(**peaks)
    assert peaks["MiB_for_400_steps"] < 100, peaks
    assert max(peaks.values()) < 400, peaks
