"""Run folders, damaged or on disks that fail: the bytes of an undisturbed run, or an error in one line."""

from __future__ import annotations

import errno
import json
import logging
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import rprm as rprm_package
from rprm.cli.app import app
from rprm.errors import RprmError, RunError
from rprm.records import SolutionReward
from rprm.runs import read_manifest, read_results
from rprm.subcommands import Subcommand
from tests.faults.disks import READS, WRITES, FailingDisk
from tests.faults.folder_damages import CHANGES, PLACES, damage

#: Longer, a command hangs.
BOUND_S = 120


@dataclass(frozen=True)
class Stage:
    """A command that writes a run folder `o`, and those that read one when it is complete; all named from a base."""

    command: tuple[str, ...]
    #: What each reader writes and prints must be the same; files of a reader that writes are in `read`.
    readers: tuple[tuple[str, ...], ...] = ()
    files: tuple[str, ...] = (
        "manifest.json",
        "results.jsonl",
        "journal-000001.jsonl",
        "rejected.jsonl",
        "index.json",
        "summary.json",
    )


SCRIPTED = ("--model", "scripted:?lost=0.05&concurrency=4")
POLICY = ("--policy", "scripted:?concurrency=4", "--problems", "problems.jsonl")
STAGES = {
    "judge": Stage(("judge", "solutions.jsonl", *SCRIPTED, "--quiet")),
    "bench": Stage(
        ("bench", "processbench", "--data", "items.jsonl", *SCRIPTED, "--allow-missing"),
        (
            ("bench", "processbench", "--data", "items.jsonl", "--scores", "o", "--allow-missing", "--json"),
            ("bench", "compare", "o", "other", "--data", "items.jsonl", "--allow-missing", "--resamples", "10"),
        ),
    ),
    "sample": Stage(
        ("search", "sample", *POLICY, "-n", "3"),
        (("search", "best-of-n", "--candidates", "o", *SCRIPTED, "-k", "2", "-o", "read"),),
    ),
    "best-of-n": Stage(("search", "best-of-n", "--candidates", "sampled", *SCRIPTED, "-k", "3")),
    "guided": Stage(
        ("search", "guided", *POLICY, *SCRIPTED, "--width", "2", "-k", "2"), (("search", "show", "o"),)
    ),
    "steps": Stage(
        ("data", "steps", "items.jsonl"),
        (("data", "analyses", "o", *SCRIPTED, "-n", "2", "-o", "read"),),
        ("manifest.json", "results.jsonl", "rejected.jsonl", "removed.jsonl", "summary.json", "results.jsonl.partial"),
    ),
    "analyses": Stage(
        ("data", "analyses", "steps.jsonl", *SCRIPTED, "-n", "4"),
        (
            ("data", "cold-start", "o", "--validation", "0", "-o", "read"),
            ("data", "pairs", "o", "--validation", "0", "-o", "read"),
        ),
    ),
    "cold-start": Stage(
        ("data", "cold-start", "analysed", "--validation", "0"),
        (),
        ("manifest.json", "train.jsonl", "rejected.jsonl", "summary.json", "train.jsonl.partial", "README.md"),
    ),
}  # fmt: skip


def rows(path: Path, *records: dict[str, Any]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records) + "{broken\n")


def make_inputs(base: Path) -> None:
    solutions = [
        {"id": f"s{n}", "problem": f"p{n}", "steps": ["a", "b", f"c{n}"], "label": n % 4 - 1} for n in range(5)
    ]
    rows(base / "solutions.jsonl", *solutions)
    items = [one | {"generator": "m", "final_answer_correct": True} for one in solutions]
    (base / "items.jsonl").write_text("".join(json.dumps(record) + "\n" for record in items))
    problems = [{"id": f"p{n}", "problem": f"What is {n} + 1?", "answer": str(n + 1)} for n in range(4)]
    (base / "problems.jsonl").write_text("".join(json.dumps(record) + "\n" for record in problems))
    steps = [{"id": f"l{n}", "problem": f"q{n}", "step": f"It is {n}.", "label": n % 2 == 0} for n in range(8)]
    rows(base / "steps.jsonl", *steps)


@dataclass
class Ended:
    """How a command ended: its exit code and standard output; or the error that the command line says in one line."""

    code: int
    output: str
    error: BaseException | None
    logged: tuple[str, ...] = ()  #: what asyncio has to say of tasks that nobody waited for

    @property
    def is_one_line(self) -> bool:
        message = str(self.error)
        is_short = 0 < len(message) < 1500 and "Traceback" not in message
        return isinstance(self.error, RprmError) and is_short and not self.logged


@pytest.fixture(scope="module")
def rprm() -> Iterator[Callable[..., Ended]]:
    """Runs a command in this process, in a folder; one that hangs ends in a `TimeoutError`, which is no `RprmError`."""

    def hangs(*_: object) -> None:
        raise TimeoutError

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            logged.append(record.getMessage())

    def run(base: Path, *arguments: str) -> Ended:
        here = Path.cwd()
        os.chdir(base)
        logged.clear()
        signal.alarm(BOUND_S)
        try:
            done = CliRunner().invoke(app, list(arguments))
        finally:
            signal.alarm(0)
            os.chdir(here)
        error = None if isinstance(done.exception, SystemExit) else done.exception
        return Ended(done.exit_code, done.stdout, error, tuple(logged))

    logged: list[str] = []
    logging.getLogger("asyncio").addHandler(handler := Handler())
    before = signal.signal(signal.SIGALRM, hangs)
    yield run
    signal.signal(signal.SIGALRM, before)
    logging.getLogger("asyncio").removeHandler(handler)


@dataclass
class Prepared:
    """A stage's inputs, its whole run, one that a full disk stopped half-way, and another run: `whole`, `half`."""

    base: Path
    whole: dict[str, bytes]
    read: dict[tuple[str, ...], tuple[str, dict[str, bytes]]]


def kept(folder: Path) -> dict[str, bytes]:
    """What a run leaves, but for what has times in it."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in ("manifest.json", "lock") and not path.name.endswith(".partial")
    }


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, rprm: Callable[..., Ended]) -> Callable[[str], Prepared]:
    made: dict[str, Prepared] = {}

    def prepare(name: str) -> Prepared:
        if name in made:
            return made[name]
        stage, base = STAGES[name], tmp_path_factory.mktemp(name)
        make_inputs(base)
        if name == "best-of-n":
            assert rprm(base, *STAGES["sample"].command, "-o", "sampled").code == 0
        if name == "cold-start":
            assert rprm(base, *STAGES["analyses"].command, "-o", "analysed").code == 3
        done = rprm(base, *stage.command, "-o", "o")
        assert done.code in (0, 3), done
        seed = () if name in ("steps", "cold-start") else ("--seed", "7")
        assert rprm(base, *stage.command, "-o", "other", *seed).code in (0, 3)
        read = {}
        for reader in stage.readers:
            shown = rprm(base, *reader)
            assert shown.code in (0, 3), shown
            read[reader] = shown.output, kept(base / "read") if (base / "read").exists() else {}
            shutil.rmtree(base / "read", ignore_errors=True)
        whole = kept(base / "o")
        (base / "o").rename(base / "whole")
        # Stopped by a full disk after half of its calls.
        with FailingDisk(base / "o", WRITES).mounted() as disk:
            rprm(base, *stage.command, "-o", "o")
        shutil.rmtree(base / "o")
        with FailingDisk(base / "o", WRITES, first=disk.num_calls // 2).mounted():
            stopped = rprm(base, *stage.command, "-o", "o")
        assert stopped.is_one_line, stopped
        (base / "o").rename(base / "half")
        made[name] = Prepared(base, whole, read)
        return made[name]

    return prepare


def outcome(rprm: Callable[..., Ended], name: str, prepared: Prepared, seen: Callable[[str], str]) -> str:
    """What comes of a damaged folder `o`: by its command, and by those that read it; fails where that is no good."""
    stage, base = STAGES[name], prepared.base
    found = "the same bytes"
    for reader in stage.readers:
        shown = rprm(base, *reader)
        read = kept(base / "read") if (base / "read").exists() else {}
        shutil.rmtree(base / "read", ignore_errors=True)
        if shown.error is None and shown.code in (0, 3):
            assert (shown.output, read) == prepared.read[reader], seen("was read as if nothing were wrong")
        else:
            assert shown.is_one_line, seen(f"made {reader[:2]} fail: {shown}")
            found = "an error in one line"
    done = rprm(base, *stage.command, "-o", "o")
    if done.error is None and done.code in (0, 3):
        assert kept(base / "o") == prepared.whole, seen("was resumed to other bytes")
    else:
        assert done.is_one_line, seen(f"made it fail: {done}")
        found = "an error in one line"
    return found


def try_damages(
    cases: list[tuple[str, str, str, str]], rprm: Callable[..., Ended], prepared: Callable[[str], Prepared]
) -> Counter[str]:
    """Damage a file of a folder of each stage and state, and see what its commands make of it."""
    counts: Counter[str] = Counter()
    for number, (name, state, file, change) in enumerate(cases):
        ready = prepared(name)
        folder = ready.base / "o"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(ready.base / state, folder)
        if not damage(folder, file, change, random.Random(number), ready.base / "other"):
            continue
        keep = ready.base / "case"
        shutil.rmtree(keep, ignore_errors=True)

        def seen(what: str, case: tuple[str, ...] = (name, state, file, change), number: int = number) -> str:
            return f"{', '.join(case)} (random {number}): {what}"

        counts[outcome(rprm, name, ready, seen)] += 1
    return counts


def every_case(*names: str) -> list[tuple[str, str, str, str]]:
    return [
        (name, state, file, change)
        for name in names
        for state in ("half", "whole")
        for file in STAGES[name].files
        if state == "half" or not file.startswith("journal")
        for change in (*CHANGES, *PLACES)
        # The rows that are trained on are the user's to edit; of the others, the command makes them again.
    ]


@pytest.mark.parametrize("name", ["judge", "steps"])
def test_a_damaged_folder_is_resumed_to_the_same_bytes_or_refused(
    name: str, rprm: Callable[..., Ended], prepared: Callable[[str], Prepared]
) -> None:
    counts = try_damages(random.Random(0).sample(every_case(name), 30), rprm, prepared)
    assert min(counts["the same bytes"], counts["an error in one line"]) > 5, counts


@pytest.mark.slow
def test_damages_to_the_folders_of_every_stage(
    rprm: Callable[..., Ended], prepared: Callable[[str], Prepared], figures: Callable[..., None]
) -> None:
    cases = random.Random(1).sample(every_case(*STAGES), 200)
    counts = try_damages(cases, rprm, prepared)
    figures(damages=sum(counts.values()), **{name.replace(" ", "_"): count for name, count in counts.items()})


def fail_everywhere(
    name: str, kinds: set[str], codes: tuple[int, ...], num_cases: int, rprm: Callable[..., Ended],
    prepared: Callable[[str], Prepared],
) -> Counter[str]:  # fmt: skip
    """Let calls of a stage fail, one in each of so many runs, once or all after it too; then begin it again, on a disk
    that works."""
    stage, ready, counts = STAGES[name], prepared(name), Counter[str]()
    folder = ready.base / "o"

    def run() -> Ended:
        return rprm(ready.base, *stage.command, "-o", "o")

    shutil.rmtree(folder, ignore_errors=True)
    with FailingDisk(folder, kinds).mounted() as disk:
        run()
    firsts = random.Random(0).sample(range(1, disk.num_calls + 1), min(num_cases, disk.num_calls))
    for number, first in enumerate(sorted(firsts)):
        code, once = codes[number % len(codes)], number // len(codes) % 2 == 1
        shutil.rmtree(folder, ignore_errors=True)
        if kinds == READS:  # There is something to read.
            shutil.copytree(ready.base / "half", folder)
        with FailingDisk(folder, kinds, first=first, code=code, once=once).mounted():
            stopped = run()
        case = (
            f"{name}: call {first} fails with {os.strerror(code)}, {'once' if once else 'and all after it'}: {stopped}"
        )
        if stopped.error is None:
            # What failed was worth nothing: the sync of a folder, or the last line of a log.
            assert stopped.code in (0, 3), case
        else:
            assert stopped.is_one_line, case
            assert os.strerror(code) in str(stopped.error), case
            counts["stopped in one line"] += 1
        resumed = run()
        assert resumed.code in (0, 3), f"{case}; then {resumed}"
        assert kept(folder) == ready.whole, case
        assert read_manifest(folder)["status"] == "complete", case
        counts["the same bytes"] += 1
    return counts


FULL = (errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EROFS)


@pytest.mark.parametrize("name", ["judge", "steps"])
def test_a_disk_that_fails_stops_a_run_in_one_line_and_it_is_resumed(
    name: str, rprm: Callable[..., Ended], prepared: Callable[[str], Prepared]
) -> None:
    for kinds, codes in ((WRITES, FULL), (READS, (errno.EIO, errno.EACCES))):
        assert fail_everywhere(name, kinds, codes, 8, rprm, prepared)["stopped in one line"] > 3


@pytest.mark.slow
@pytest.mark.parametrize("name", STAGES)
def test_a_disk_that_fails_at_any_call(
    name: str, rprm: Callable[..., Ended], prepared: Callable[[str], Prepared], figures: Callable[..., None]
) -> None:
    counts = fail_everywhere(name, WRITES, FULL, 60 if name == "judge" else 10, rprm, prepared)
    counts += fail_everywhere(name, READS, (errno.EIO, errno.EACCES), 8, rprm, prepared)
    figures(**{what.replace(" ", "_"): count for what, count in counts.items()})


def test_a_real_short_write(tmp_path: Path) -> None:
    """No file may grow beyond 6,000 bytes: the system itself cuts a write short, then refuses the next."""
    make_inputs(tmp_path)
    command = [sys.executable, "-m", "rprm", *STAGES["judge"].command, "-o"]

    def limited() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (6000, 6000))

    def run(folder: str, **more: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*command, folder], cwd=tmp_path, capture_output=True, text=True, timeout=BOUND_S, **more)

    assert run("whole").returncode == 3
    stopped = run("o", preexec_fn=limited)
    assert stopped.returncode == 1
    *before, said = stopped.stderr.splitlines()
    assert said.startswith("rprm: o/")
    assert os.strerror(errno.EFBIG) in said
    assert " ".join(before).startswith("rejected: solutions.jsonl, line 6: ")
    assert len(before) <= 2
    assert run("o").returncode == 3
    assert kept(tmp_path / "o") == kept(tmp_path / "whole")


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        ("solutions.jsonl", "is a file"),
        ("solutions.jsonl/run", "Not a directory"),
        ("x" * 300, "File name too long"),
        ("loop", "links|exists"),
        ("/proc/run", "No such file|not permitted"),
        ("/dev/null", "is a file"),
    ],
)
def test_a_place_where_no_folder_can_be(place: str, reason: str, tmp_path: Path, rprm: Callable[..., Ended]) -> None:
    make_inputs(tmp_path)
    (tmp_path / "loop").symlink_to("loop")
    done = rprm(tmp_path, *STAGES["judge"].command, "-o", place)
    assert done.is_one_line, done
    with pytest.raises(RunError, match=reason):
        raise done.error or AssertionError(done)


@pytest.mark.slow
def test_what_the_embedded_judge_says_does_not_depend_on_who_stands_beside(
    tmp_path: Path, rprm: Callable[..., Ended]
) -> None:
    """What docs/architecture.md promises of models in this process: texts, verdicts, first errors; P(Yes) nearly."""
    examples = str(Path(rprm_package.__file__).with_name("examples") / "word_problems.jsonl")

    def judged(width: int, limit: int) -> list[SolutionReward]:
        model = ("--model", f"embedded?concurrency={width}", "-k", "2", "--limit", str(limit), "--seed", "3")
        assert rprm(tmp_path, "judge", examples, *model, "-o", f"run{width}", "--quiet").code == 0
        return list(read_results(tmp_path / f"run{width}", SolutionReward.read_back))

    alone, together = judged(1, 1), judged(16, 1)
    assert [one.first_error for one in alone] == [one.first_error for one in together]
    for first, second in zip(alone, together, strict=True):
        for one, other in zip(first.steps, second.steps, strict=True):
            assert [analysis.text for analysis in one.analyses] == [analysis.text for analysis in other.analyses]
            assert [analysis.verdict for analysis in one.analyses] == [analysis.verdict for analysis in other.analyses]
            assert one.reward == pytest.approx(other.reward, abs=1e-6)


@pytest.mark.parametrize("name", ["judge", "steps"])
def test_a_file_whose_name_is_no_unicode(name: str, tmp_path: Path, rprm: Callable[..., Ended]) -> None:
    make_inputs(tmp_path)
    given = "solutions.jsonl" if name == "judge" else "items.jsonl"
    (tmp_path / given).write_text((tmp_path / given).read_text() + '{"\\ud800": 1}\n')
    (tmp_path / given).rename(tmp_path / "caf\udce9.jsonl")
    command = ["caf\udce9.jsonl" if argument == given else argument for argument in STAGES[name].command]
    done = rprm(tmp_path, *command, "-o", "o")
    assert (done.code, done.error) == (3, None)
    rejected = json.loads((tmp_path / "o" / "rejected.jsonl").read_text("utf-8").splitlines()[-1])
    assert rejected["file"] == "caf\\xe9.jsonl"
    assert "\\ud800" in rejected["reason"]


def test_the_log_of_a_stage_that_cannot_be_written(tmp_path: Path) -> None:
    """A pipe that nobody reads, a link to a full device, a disk that is full."""
    os.mkfifo(tmp_path / "pipe.log")
    (tmp_path / "device.log").symlink_to("/dev/full")
    for name in ("pipe", "device"):
        with pytest.raises(RunError, match=f"{name}.log is damaged .*a pipe, a device"):
            Subcommand(tmp_path / name, ["models"])
    disk = FailingDisk(tmp_path, {"write"}, first=1)
    with (
        disk.mounted(),
        pytest.raises(RunError, match=r"full.log: No space left on device; mend that and give the same"),
    ):
        Subcommand(tmp_path / "full", ["models"])
