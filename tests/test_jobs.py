"""Judging a source: order, resumption, and what a kill at any moment costs."""

from __future__ import annotations

import asyncio
import json
import random
import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from rprm.api import RPRM
from rprm.engines.scripted import ScriptedEngine
from rprm.errors import CorruptRun, EngineUnavailable, InputError, SettingsChanged
from rprm.files import Checksums
from rprm.jobs import Callbacks, in_order
from rprm.reading import Source, read_solutions
from rprm.records import SolutionReward
from rprm.rewarders.base import Totals, judge_source
from rprm.runs import checksums_of, read_manifest
from tests.faults.folder_damages import as_older


def write_solutions(path: Path, count: int, *, broken: tuple[int, ...] = ()) -> Path:
    draw = random.Random(0)
    with path.open("w") as stream:
        for number in range(count):
            steps = [f"Step text {number}.{index} é" for index in range(draw.randint(1, 8))]
            row: dict[str, Any] = {"id": f"s{number}", "problem": f"Problem {number}", "steps": steps}
            stream.write("{broken\n" if number in broken else json.dumps(row) + "\n")
    return path


def judge(
    path: Path, output: Path | None, engine: ScriptedEngine, callbacks: Callbacks | None = None, **options: Any
) -> Totals:
    prm = RPRM(engine, **options)
    source = Source(str(path))
    return asyncio.run(
        judge_source(prm.rewarder, read_solutions(source), source=source.inspect(), output=output, callbacks=callbacks)
    )


def files(folder: Path) -> dict[str, bytes]:
    """What a run leaves, but for the manifest (it has times in it) and the lock."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name not in ("manifest.json", "lock")}


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines()


def test_results_stand_in_input_order(tmp_path: Path) -> None:
    path = write_solutions(tmp_path / "in.jsonl", 40, broken=(3, 17))
    seen: list[str] = []
    callbacks = Callbacks(on_result=lambda solution, result: seen.append(result.id))
    totals = judge(path, tmp_path / "run", ScriptedEngine(concurrency=5), callbacks)
    rows = [SolutionReward.model_validate_json(line) for line in lines(tmp_path / "run" / "results.jsonl")]
    assert [row.id for row in rows] == seen == [f"s{number}" for number in range(40) if number not in (3, 17)]
    assert totals.num_solutions == 38
    assert totals.num_rejected == 2
    assert totals.num_generated_tokens == sum(a.num_tokens for row in rows for step in row.steps for a in step.analyses)
    rejected = [json.loads(line) for line in lines(tmp_path / "run" / "rejected.jsonl")]
    assert [(row["file"], row["line"]) for row in rejected] == [(str(path), 4), (str(path), 18)]
    assert json.loads((tmp_path / "run" / "summary.json").read_text()) == totals.as_dict()


def test_nothing_depends_on_concurrency(tmp_path: Path) -> None:
    path = write_solutions(tmp_path / "in.jsonl", 30)
    for width in (1, 3, 200):
        judge(path, tmp_path / str(width), ScriptedEngine(concurrency=width, delay=0.001))
    assert files(tmp_path / "1") == files(tmp_path / "3") == files(tmp_path / "200")


def test_a_finished_run_is_read_not_judged_again(tmp_path: Path) -> None:
    path = write_solutions(tmp_path / "in.jsonl", 10)
    first = judge(path, tmp_path / "run", ScriptedEngine())
    engine = ScriptedEngine()
    resumed: list[tuple[int, int]] = []
    before = files(tmp_path / "run")
    assert judge(path, tmp_path / "run", engine, Callbacks(on_resumed=lambda *counts: resumed.append(counts))) == first
    assert engine.num_requests == 0
    assert resumed == [(10, 0)]
    assert files(tmp_path / "run") == before


def stopped_at(path: Path, folder: Path, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run whose engine was gone at the request of that number, and whose index is of its last finished row."""

    class Dying(ScriptedEngine):
        async def generate(self, *arguments: Any) -> Any:
            if self.num_requests >= number:
                raise EngineUnavailable("the server is gone")
            return await super().generate(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr("rprm.jobs._next_index", lambda began: began)
        with pytest.raises(EngineUnavailable):
            judge(path, folder, Dying(concurrency=2))


def parsed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The ids of rows of results that are parsed from now on."""
    found: list[str] = []
    read_back = SolutionReward.read_back

    def noted(value: Any) -> SolutionReward:
        found.append(value["id"])
        return read_back(value)

    monkeypatch.setattr(SolutionReward, "read_back", noted)
    return found


def test_a_resumed_run_parses_no_row_that_its_index_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rejected rows before, between and after the ones that the index counts are neither lost nor listed twice."""
    path = write_solutions(tmp_path / "in.jsonl", 30, broken=(0, 4, 20, 29))
    whole = judge(path, tmp_path / "whole", ScriptedEngine())
    stopped_at(path, tmp_path / "run", 300, monkeypatch)
    index = json.loads((tmp_path / "run" / "index.json").read_text())
    finished = [json.loads(line)["id"] for line in lines(tmp_path / "run" / "results.jsonl")]
    assert index["num_rows"] == len(finished) > 5
    assert index["num_read"] == index["num_rows"] + 2  # rows 0 and 4
    ids, resumed = parsed(monkeypatch), []
    callbacks = Callbacks(on_resumed=lambda *counts: resumed.append(counts[0]), replay=False)
    assert judge(path, tmp_path / "run", ScriptedEngine(), callbacks) == whole
    assert files(tmp_path / "run") == files(tmp_path / "whole")
    assert (ids, resumed) == (finished[-1:], [len(finished)])
    # So is a complete one, whose totals are known; who wants to see its rows gets them all.
    ids.clear()
    assert judge(path, tmp_path / "run", ScriptedEngine()) == whole
    assert ids == ["s28"]
    seen: list[str] = []
    judge(path, tmp_path / "run", ScriptedEngine(), Callbacks(on_result=lambda row, result: seen.append(result.id)))
    assert seen == [f"s{number}" for number in range(30) if number not in (0, 4, 20, 29)]
    assert files(tmp_path / "run") == files(tmp_path / "whole")


def test_an_index_that_does_not_fit_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever befalls it, or the files that it counts: every row is read, and the bytes are the same in the end."""
    path = write_solutions(tmp_path / "in.jsonl", 30, broken=(0, 4, 20, 29))
    whole = judge(path, tmp_path / "whole", ScriptedEngine())
    judge(path, tmp_path / "other", ScriptedEngine(), num_analyses=3)

    def cut(path: Path) -> None:
        path.write_text("".join(path.read_text().splitlines(keepends=True)[:3]))

    def edited(path: Path) -> None:
        path.write_text(path.read_text().replace('"num_rows": 2', '"num_rows": 1'))

    def forged(path: Path, **changes: object) -> None:
        value = json.loads(path.read_text()) | changes
        del value["crc"]
        seed = checksums_of(read_manifest(path.parent)).value
        path.write_bytes(Checksums(seed).seal(json.dumps(value).encode()) + b"\n")

    damages: list[tuple[str, Callable[[Path], object]]] = [
        ("index.json", lambda path: path.unlink()),
        ("index.json", lambda path: path.write_text("")),
        ("index.json", lambda path: path.write_text("[" * 99_999 + "\n")),
        ("index.json", edited),
        ("index.json", partial(forged, version="0.0.9")),
        ("index.json", partial(forged, num_rows="26")),
        ("index.json", partial(forged, num_rejected_bytes=None)),
        ("index.json", lambda path: path.write_bytes((tmp_path / "other" / "index.json").read_bytes())),
        ("results.jsonl", cut),  # as the message about a damaged line says
        ("results.jsonl", lambda path: path.unlink()),
        ("rejected.jsonl", lambda path: path.unlink()),
        ("rejected.jsonl", lambda path: path.write_text(path.read_text().replace("JSON", "YAML"))),
        ("rejected.jsonl", lambda path: path.write_text("")),
    ]
    for number, (name, damage) in enumerate(damages):
        shutil.copytree(tmp_path / "whole", run := tmp_path / str(number))
        damage(run / name)
        kept = len(lines(run / "results.jsonl")) if (run / "results.jsonl").exists() else 0
        with monkeypatch.context() as patched:
            ids = parsed(patched)
            assert judge(path, run, ScriptedEngine()) == whole
        assert len(ids) - ids.count("s28") * (name == "rejected.jsonl") in (kept, kept - 1), (number, name)
        assert files(run) == files(tmp_path / "whole"), (number, name)


def test_an_edited_row_that_the_index_counts_is_noticed(tmp_path: Path) -> None:
    path = write_solutions(tmp_path / "in.jsonl", 5)
    judge(path, tmp_path / "run", ScriptedEngine())
    results = tmp_path / "run" / "results.jsonl"
    results.write_text(results.read_text().replace('"s1"', '"s7"'))
    with pytest.raises(CorruptRun, match=r"line 2 is damaged \(its checksum"):
        judge(path, tmp_path / "run", ScriptedEngine())


def test_a_run_of_an_older_meaning_is_not_gone_on_with(tmp_path: Path) -> None:
    """Before format 2 `first_error` was -1 where a step has no reward."""
    path = write_solutions(tmp_path / "in.jsonl", 10)
    judge(path, tmp_path / "run", ScriptedEngine())
    as_older(tmp_path / "run")
    manifest = read_manifest(tmp_path / "run")
    assert manifest["settings"].pop("row_format") == 2
    (tmp_path / "run" / "manifest.json").write_text(json.dumps(manifest))
    before = files(tmp_path / "run")
    with pytest.raises(SettingsChanged, match=r"another version of rprm: .* format 1, .* format 2 .* another --output"):
        judge(path, tmp_path / "run", ScriptedEngine())
    assert files(tmp_path / "run") == before


def test_an_engine_that_dies_costs_only_what_was_in_flight(tmp_path: Path) -> None:
    path = write_solutions(tmp_path / "in.jsonl", 30)
    judge(path, tmp_path / "undisturbed", ScriptedEngine())

    class Dying(ScriptedEngine):
        async def generate(self, *arguments: Any) -> Any:
            if self.num_requests >= 100:
                raise EngineUnavailable("the server is gone")
            return await super().generate(*arguments)

    dying = Dying(concurrency=4)
    with pytest.raises(EngineUnavailable, match="the server is gone"):
        judge(path, tmp_path / "run", dying)
    assert read_manifest(tmp_path / "run")["sessions"][0]["stopped_by"] == "EngineUnavailable"
    after = ScriptedEngine(concurrency=4)
    judge(path, tmp_path / "run", after)
    whole = ScriptedEngine()
    judge(path, None, whole)
    assert files(tmp_path / "run") == files(tmp_path / "undisturbed")
    # In flight were at most 4 solutions with a wave of at most 6 analyses.
    assert dying.num_requests + after.num_requests <= whole.num_requests + 4 * 6


def test_changed_settings_and_input_are_refused(tmp_path: Path) -> None:
    path = write_solutions(tmp_path / "in.jsonl", 5)
    judge(path, tmp_path / "run", ScriptedEngine())
    with pytest.raises(SettingsChanged, match="num_analyses: 10 -> 3"):
        judge(path, tmp_path / "run", ScriptedEngine(), num_analyses=3)
    moved = tmp_path / "moved.jsonl"
    moved.write_bytes(path.read_bytes())
    judge(moved, tmp_path / "run", ScriptedEngine())
    moved.write_bytes(path.read_bytes() * 2)
    with pytest.raises(SettingsChanged, match="input: "):
        judge(moved, tmp_path / "run", ScriptedEngine())


def test_results_of_another_input_are_noticed(tmp_path: Path) -> None:
    path = write_solutions(tmp_path / "in.jsonl", 5)
    judge(path, tmp_path / "run", ScriptedEngine())
    results = tmp_path / "run" / "results.jsonl"
    results.write_text(results.read_text().replace('"s3"', '"other"'))
    with pytest.raises(CorruptRun, match=r"line 4 is damaged \(its checksum"):
        judge(path, tmp_path / "run", ScriptedEngine())
    as_older(tmp_path / "run")
    with pytest.raises(CorruptRun, match=r"line 4 holds solution 'other', but the input has 's3' there"):
        judge(path, tmp_path / "run", ScriptedEngine())


def test_strict_stops_at_the_first_bad_record(tmp_path: Path) -> None:
    path = write_solutions(tmp_path / "in.jsonl", 5, broken=(2,))
    prm = RPRM(ScriptedEngine())
    with pytest.raises(InputError, match=r"in\.jsonl, line 3: not JSON"):
        asyncio.run(judge_source(prm.rewarder, read_solutions(Source(str(path))), strict=True))


def test_strict_stops_at_a_bad_record_that_the_index_counts(tmp_path: Path) -> None:
    path = write_solutions(tmp_path / "in.jsonl", 6, broken=(2,))
    judge(path, tmp_path / "run", ScriptedEngine())
    prm, source, quiet = RPRM(ScriptedEngine()), Source(str(path)), Callbacks(replay=False)
    how: dict[str, Any] = {"source": source.inspect(), "output": tmp_path / "run", "callbacks": quiet}
    with pytest.raises(InputError, match=r"in\.jsonl, line 3: not JSON"):
        asyncio.run(judge_source(prm.rewarder, read_solutions(source), strict=True, **how))


def test_in_order_bounds_what_is_begun() -> None:
    """With the first item stuck, no more than the window is begun; then everything comes in order."""

    async def main() -> None:
        begun: list[int] = []
        gate = asyncio.Event()

        async def work(item: int) -> int:
            begun.append(item)
            if item == 0:
                await gate.wait()
            return item * item

        async def collect() -> list[tuple[int, int]]:
            return [pair async for pair in in_order(iter(range(100)), work, width=4, window=10)]

        task = asyncio.create_task(collect())
        for _ in range(50):
            await asyncio.sleep(0)
        assert begun == list(range(10))
        gate.set()
        assert await task == [(item, item * item) for item in range(100)]

    asyncio.run(main())


def test_the_longest_of_the_last_items_are_begun_first() -> None:
    """Ten items, of sizes 0 to 9, one at a time: of the last four the largest is first. With a window of four the
    end is known when 6 is done: 7 is begun then, 8 and 9 wait."""

    async def main(window: int) -> list[int]:
        begun: list[int] = []

        async def work(item: int) -> int:
            begun.append(item)
            await asyncio.sleep(0)
            return item

        found = [pair async for pair in in_order(iter(range(10)), work, width=1, window=window, size=lambda item: item)]
        assert found == [(item, item) for item in range(10)]
        return begun

    assert asyncio.run(main(window=100)) == [0, 1, 2, 3, 4, 5, 9, 8, 7, 6]
    assert asyncio.run(main(window=4)) == [0, 1, 2, 3, 4, 5, 6, 7, 9, 8]


def test_work_that_is_cancelled_from_within_ends_all() -> None:
    async def main() -> None:
        async def work(item: int) -> int:
            if item == 1:
                raise asyncio.CancelledError
            return item

        found = in_order(iter(range(5)), work, width=2)
        assert await anext(found) == (0, 0)
        with pytest.raises(asyncio.CancelledError):
            await anext(found)

    asyncio.run(main())


def test_in_order_raises_the_first_failure_at_once_and_cancels_the_rest() -> None:
    async def main() -> None:
        cancelled = 0

        async def work(item: int) -> None:
            nonlocal cancelled
            if item == 3:
                raise EngineUnavailable("gone")
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                cancelled += 1
                raise

        started = time.monotonic()
        with pytest.raises(EngineUnavailable):
            async for _ in in_order(iter(range(100)), work, width=8):
                pass
        assert time.monotonic() - started < 30
        # Items 0 to 2 were under way when item 3 failed; nothing was begun after it.
        assert cancelled == 3

    asyncio.run(main())
