"""`rprm runs`, `rprm show`, `rprm export`: run folders read without their models."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import asdict
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rprm.cli.options import Json, with_options
from rprm.errors import CorruptRun, InputError, RprmError, RunError

if TYPE_CHECKING:
    from rprm.records import Solution, SolutionReward

app = typer.Typer(rich_markup_mode=None, no_args_is_help=True, help="Run folders, read without their models.")

Run = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")]


@app.callback()
def _runs() -> None:
    pass


@app.command("list")
def list_runs(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="It is looked through with all that is in it.")],
) -> None:
    """The runs in a folder and below: what each is, its model, and how far it is."""
    from rich.table import Column, Table
    from rich.text import Text

    from rprm.runs import MANIFEST
    from rprm.showing import one_line
    from rprm.terminal import Terminal

    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    names = (Column(name, overflow="fold") for name in ("run", "stage", "model", "rows", "status"))
    table = Table(*names, Column("started", no_wrap=True), box=None, padding=(0, 1))
    for place, folders, files in os.walk(folder):
        folders.sort()
        if MANIFEST not in files:
            continue
        name = os.path.relpath(place, folder)
        try:
            found = _facts(Path(place))
            rows, started = _rows(found), str(found["sessions"][0].get("started_at"))[:16].replace("T", " ")
            told = (found["stage"], found["model"], rows, found["status"], started)
        except RprmError as error:
            told = ("", "", "", str(error), "")
        table.add_row(*(Text(one_line(str(text))) for text in (name, *told)))
    if not table.rows:
        raise InputError(f"{folder} holds no run")
    Terminal().print(table)


@with_options
def show(
    run: Run,
    id: Annotated[str | None, typer.Argument(metavar="[ID]", help="Of one judged solution, which is shown.")] = None,
    *,
    analyses: Annotated[bool, "--analyses", "With the solution's analyses."] = False,
    data: Annotated[
        list[str] | None, {"metavar": "PATH"}, "Where the run's data are now, if not where it read them."
    ] = None,
    json: Json = False,
) -> None:
    """Show a run without its model: what it is, its settings, how far it is, its totals; or one of its solutions.

    The texts of a solution's steps come from the file that was judged, where it still is what it was. Solutions that
    share an id are all shown.
    """
    from rich.table import Table
    from rich.text import Text

    from rprm.embedded import note
    from rprm.report.solutions import render_solution, render_totals
    from rprm.rewarders.base import Totals, read_rewards
    from rprm.runs import checked_totals, read_results, read_summary
    from rprm.showing import one_line
    from rprm.terminal import Terminal

    found, console = _facts(run), Terminal()
    if id is not None:
        rewards = _rewards(read_rewards(run), str(run), id)
        if json:
            for reward in rewards:
                print(reward.model_dump_json())
            return
        how: dict[str, Any] = {"threshold": found["settings"].of("threshold", float), "analyses": analyses}
        for solution, reward in zip(_solutions(run, rewards, data or []), rewards, strict=True):
            console.print(render_solution(solution, reward, note=note(found["model"], solution), **how))
        return
    totals = Totals(max_tokens=found["settings"].of("max_tokens", int | None))
    if found["manifest"]["stage"] == "judge":
        if (known := checked_totals(run)) is not None and known.keys() == asdict(totals).keys():
            totals = Totals(**known)
        else:
            for reward in read_rewards(run):
                totals.add(reward)
        counts = totals.as_dict() | {"num_rejected": found["num_rejected"]}
    else:
        for _ in read_results(run, bool):
            pass
        counts = read_summary(run) if found["status"] == "complete" else {}
    told = {name: value for name, value in found.items() if name not in ("manifest", "settings", "sessions")}
    if json:
        whole = {name: found[name] for name in ("settings", "sessions")}
        print(dumps(told | whole | {"totals": counts}, ensure_ascii=False))
        return
    table = Table(box=None, padding=(0, 1), show_header=False)
    names = ("run", "stage", "status", "model", "input")
    facts = {name: found[name] for name in names} | {"rows finished": _rows(found)}
    facts |= {"pieces of unfinished rows": found["num_pieces"], "sessions": len(found["sessions"])}
    settings = {{"input": "hash of the input"}.get(name, name): value for name, value in _flat(found["settings"])}
    for name, value in [*facts.items(), *settings.items()]:
        table.add_row(Text(one_line(name.replace("_", " ")), style="dim"), Text(one_line(str(value))))
    console.print(table)
    if found["manifest"]["stage"] == "judge":
        totals.num_rejected = found["num_rejected"]
        console.print(Text(""), render_totals(totals, run))
    else:
        for name, value in counts.items():
            console.print(one_line(f"{name}: {value}"))


@with_options
def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder of judge or bench.")],
    *,
    to: Annotated[Path, "--to", {"metavar": "FILE"}, "The table: .csv, .jsonl or .parquet."],
) -> None:
    """Write the rewards of a run as a table, one row for each step that was judged.

    Its columns are those of `rprm.to_pandas` (docs/python.md). Ids are written as they are: a spreadsheet takes one
    that begins with = + - @ for a formula, unless its column is imported as text.
    """
    from rprm.rewarders.base import read_rewards
    from rprm.showing import one_line
    from rprm.tables import write_table
    from rprm.terminal import Terminal

    status = _facts(run)["status"]
    number = write_table(read_rewards(run), to)
    note = "" if status == "complete" else f"; the run is not complete ({status})"
    Terminal().print(one_line(f"{to}: {number:,} steps{note}"))


def _facts(run: Path) -> dict[str, Any]:
    """What a run folder says of itself, and what lies in it."""
    from rprm.embedded import is_embedded
    from rprm.files import disk
    from rprm.runs import MANIFEST, REJECTED, RESULTS, Journal, checksums_of, read_index, read_manifest

    manifest = read_manifest(run)
    settings, session = manifest["settings"], manifest["sessions"][-1]
    status = str(manifest.get("status"))
    if status == "stopped":
        status += f" by {session.get('stopped_by')}"
    elif status == "running":
        status = "running, or killed"
    limit, num_rows = settings.of("limit", int | None), session.get("num_rows")
    if not isinstance(num_rows, int | None):
        raise CorruptRun.at(str(run / MANIFEST), f"its num_rows is {num_rows!r:.80}")
    engines = (found.get("engine") for found in (settings, *settings.values()) if isinstance(found, dict))
    engine: dict[str, Any] = next((one for one in engines if isinstance(one, dict)), {})
    model = ":".join(str(engine[name]) for name in ("kind", "model") if engine.get(name))
    with disk(run):
        rows, index = _num_lines(run / RESULTS), read_index(run, checksums_of(manifest).value)
        if status == "complete" and index is not None and rows < index.num_rows:
            status = "damaged (rows are missing at its end)"
        expected = min(filter(None, (limit, num_rows)), default=None) if status != "complete" else None
        return {
            "run": str(run),
            "stage": " ".join(filter(None, (manifest["stage"], str(settings.get("benchmark") or "")))),
            "status": status,
            "model": "embedded" if is_embedded(model) else model,
            "input": session.get("input"),
            "num_rows": rows,
            "num_expected": expected,
            "num_pieces": sum(map(_num_lines, Journal.paths(run))),
            "num_rejected": _num_lines(run / REJECTED),
            "settings": settings,
            "sessions": manifest["sessions"],
            "manifest": manifest,
        }


class ShownRuns:
    """The runs of judged solutions in a folder and below, by their paths in it; see `rprm.serve.browsing`."""

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise InputError(f"--runs {folder}: no such folder")
        self.folder = folder

    def listed(self) -> list[dict[str, Any]]:
        found = []
        for name, place in self._places().items():
            try:
                facts = _facts(place)
            except RprmError as error:
                found.append({"name": name, "model": "", "input": "", "status": str(error), "num_rows": 0})
                continue
            if facts["manifest"]["stage"] == "judge":
                found.append({"name": name} | {key: facts[key] for key in ("model", "input", "status", "num_rows")})
        return found

    def rewards(self, name: str) -> Iterator[SolutionReward]:
        from rprm.rewarders.base import read_rewards

        return read_rewards(self._place(name))

    def solution(self, name: str, id: str) -> tuple[Solution, SolutionReward, float, list[str]]:
        from rprm.embedded import note

        rewards, place = _rewards(self.rewards(name), name, id), self._place(name)
        facts, solution = _facts(place), _solutions(place, rewards, [])[0]
        notes = [] if (found := note(facts["model"], solution)) is None else [found]
        if len(rewards) > 1:
            notes.append(f"the first of {len(rewards):,} solutions with this id: make ids unique")
        return solution, rewards[0], facts["settings"].of("threshold", float), notes

    def _place(self, name: str) -> Path:
        if (place := self._places().get(name)) is None:
            raise InputError(f"no run {name!r:.80} here")
        return place

    def _places(self) -> dict[str, Path]:
        """Found anew each time: runs come while the server is up. Links to folders elsewhere are not followed."""
        from rprm.runs import MANIFEST

        found = (Path(place) for place, _, files in os.walk(self.folder) if MANIFEST in files)
        # Names that are no UTF-8 have their bytes spelled out.
        return {
            os.fsencode(place.relative_to(self.folder)).decode(errors="backslashreplace"): place
            for place in sorted(found)
        }


def _rows(facts: dict[str, Any]) -> str:
    rows, expected, rejected = (facts[name] for name in ("num_rows", "num_expected", "num_rejected"))
    told = f"{rows:,}" if expected is None else f"{rows:,} of {expected:,}"
    return f"{told}, {rejected:,} rejected" if rejected else told


def _num_lines(path: Path) -> int:
    if not path.is_file():
        return 0
    with path.open("rb") as stream:
        return sum(block.count(b"\n") for block in iter(lambda: stream.read(1 << 20), b""))


def _flat(settings: dict[str, Any], name: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{name}{key}.")
        else:
            yield f"{name}{key}", value


def _rewards(rewards: Iterator[SolutionReward], run: str, id: str) -> list[SolutionReward]:
    """Those with an id, which rows of a file may share."""
    found: list[SolutionReward] = []
    others: list[str] = []
    for one in rewards:
        if one.id == id:
            found.append(one)
        elif len(others) < 4:
            others.append(one.id)
    if not found:
        known = f"; its first ids: {', '.join(others)}" if others else ""
        raise InputError(f"{run} has no finished solution {id!r:.80}{known}")
    return found


def _solutions(run: Path, rewards: list[SolutionReward], data: list[str]) -> list[Solution]:
    """What was judged, from the run's data; where they are not at hand, that is said in the place of the texts."""
    from rprm.benchmarks.items import loaded
    from rprm.cli.report import judged_items
    from rprm.records import Solution

    id = rewards[0].id
    try:
        _, items = judged_items(run, data)
        found = [loaded(item) for item in items.items if item.id == id][: len(rewards)]
    except RprmError as error:
        text = "(its text is not at hand)"
        return [Solution(id=one.id, problem=str(error), steps=(text,) * one.num_steps) for one in rewards]
    if len(found) < len(rewards):
        raise RunError(f"{run} holds {id!r}, which is not in the data that it says it judged")
    return found
