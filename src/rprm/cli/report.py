"""`rprm report`: a page of runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rprm import ranges
from rprm.cli.bench import BenchGroup, Resamples, _recorded, _source
from rprm.cli.options import with_options
from rprm.errors import BenchmarkError, InputError, RunError

if TYPE_CHECKING:
    from rprm.benchmarks import Benchmark, BenchmarkItems
    from rprm.records import Solution, SolutionReward
    from rprm.report.judged import Judged, Shown


@with_options
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders of judge, bench or search.")],
    output: Annotated[Path, "--output", "-o", {"metavar": "FILE.html"}, "The page."] = Path("report.html"),
    data: Annotated[
        list[str] | None, {"metavar": "PATH"},
        "Where a run's data are now, if not where it read them; again for more. Hashes say whose they are.",
    ] = None,
    figures: Annotated[Path | None, {"metavar": "FOLDER"}, "Write the figures there too, as SVG files."] = None,
    solutions: Annotated[ranges.Count, "Solutions to show of each run, of each outcome as many."] = 40,
    analyses: Annotated[ranges.Count, "Analyses to show of each step."] = 4,
    resamples: Resamples = 2000,
    seed: Annotated[ranges.Seed, "Of the resamples."] = 0,
) -> None:  # fmt: skip
    """One HTML page of runs: tables beside published figures, curves, calibration, solutions with their analyses.

    The page stands alone: no script, and nothing that it fetches.
    """
    from rprm.report.judged import MAX_CHARACTERS, Shown
    from rprm.report.page import PUBLISHED, judged_part, page, pictures, searched_part
    from rprm.report.searched import STAGES, read_searches
    from rprm.runs import read_manifest, write_atomically
    from rprm.terminal import Terminal

    if output.suffix not in (".html", ".htm"):
        raise InputError(f"--output {output}: name a file that ends in .html")
    if len({run.resolve() for run in runs}) < len(runs):
        raise InputError("a run is named twice, and would look like two: name each once")
    shown = Shown(solutions, analyses, MAX_CHARACTERS // len(runs))
    judged: dict[str, list[Judged]] = {}
    searches: dict[str, Path] = {}
    names = []
    for number, folder in enumerate(runs):
        stage, names = read_manifest(folder)["stage"], [*names, _name(number, folder, len(runs))]
        if stage in STAGES:
            searches[names[-1]] = folder
        elif stage == "judge":
            run = _read(names[-1], folder, data or [], shown, resamples, seed)
            judged.setdefault(run.heading, []).append(run)
        else:
            raise RunError(f"{folder} is a run of {stage!r}; a page is made of runs of judge, bench and search")
    parts = [judged_part(few, PUBLISHED.get(few[0].benchmark.name, ())) for few in judged.values()]
    if searches:
        found = read_searches(searches, shown, num_resamples=resamples, seed=seed)
        parts.append(searched_part(*found, PUBLISHED.get("mathematics", ())))
    made = page(parts, names)
    if figures is not None:
        for name, picture in pictures(parts):
            write_atomically(figures / name, picture)
    write_atomically(output, made)
    every = [run for part in parts for run in part.runs]
    all_solutions = sum(number for run in every for _, _, number, _ in run.kinds)
    what = f"{sum(len(run.views) for run in every):,} of {all_solutions:,} solutions shown"
    Terminal().print(f"{output}: {len(runs)} runs, {what}, {len(made) / 1e6:.1f} MB")


def _read(name: str, folder: Path, data: Sequence[str], shown: Shown, resamples: int, seed: int) -> Judged:
    """Read a run of judged solutions, with the items of its benchmark."""
    from rprm.report.judged import read_judged

    recorded, known = _recorded(folder), BenchGroup.added()
    places = [*data, *filter(None, [recorded["data"]])]
    how = {"num_resamples": resamples, "seed": seed}
    if (benchmark := recorded.get("benchmark")) is None:
        record, labelled = _labelled()
        solutions = _solutions(places, recorded)
        return read_judged(name, folder, record, "Solutions", None, solutions, shown, labelled=labelled, **how)
    if benchmark not in known:
        raise BenchmarkError(f"{folder} is a run of the benchmark {benchmark!r}, which is not installed here")
    record = known[benchmark].load()
    items = _items(folder, record, places, recorded)
    return read_judged(
        name, folder, record, record.help.partition(":")[0].strip(), items, items.solutions, shown, **how
    )


def _labelled() -> tuple[Benchmark, Any]:
    """What measures labelled solutions of any kind: as ProcessBench does."""
    from rprm.benchmarks import PROCESSBENCH, ProcessBenchItem
    from rprm.records import Solution

    def item(reward: SolutionReward) -> ProcessBenchItem | None:
        if reward.label is None:
            return None
        of = Solution(id=reward.id, problem="", steps=("",) * reward.num_steps, label=reward.label)
        return ProcessBenchItem("solutions", of, reward.label)

    return replace(PROCESSBENCH, name="solutions"), item


def _items(folder: Path, benchmark: Benchmark, places: Sequence[str], recorded: dict[str, Any]) -> BenchmarkItems[Any]:
    """The items that a run judged: of the first place whose content has the hash that the run recorded."""
    reasons = []
    for place in places or [benchmark.hub or ""]:
        try:
            items = benchmark.read(place).limited(recorded.get("limit"), benchmark.group)
        except InputError as error:
            reasons.append(str(error))
            continue
        for found in (items, *(flag.items(items) for flag in benchmark.flags.values() if flag.items)):
            if _source(benchmark, found, "").digest == recorded["input"]:
                return found
        reasons.append(f"{place}: its hash differs")
    why = "; ".join(reasons) or "it does not say where they were"
    raise BenchmarkError(f"{folder}: the data that it judged are not at hand ({why}): name them with --data PATH")


def _solutions(places: Sequence[str], recorded: dict[str, Any]) -> list[Solution]:
    """The solutions that a run of `rprm judge` read, none where they are not at hand: the page then says so."""
    from rprm.reading import Rejected, Source, read_solutions

    for place in places:
        try:
            if place == "-" or (source := Source(place)).inspect().digest != recorded["input"]:
                continue
            rows = islice(read_solutions(source), recorded.get("limit"))
            return [row for row in rows if not isinstance(row, Rejected)]
        except InputError:
            continue
    return []


def _name(number: int, folder: Path, of: int) -> str:
    """What a run is called on the page: its letter where there are several, and its folder."""
    base = folder.resolve().name
    letter = chr(ord("A") + number) if of <= 26 else str(number + 1)
    return base if of == 1 else f"{letter}: {base}"
