"""`rprm report`: a page of runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rprm import ranges
from rprm.cli.bench import BenchGroup, Resamples, settings_of_run, with_digest
from rprm.cli.options import with_options
from rprm.errors import BenchmarkError, InputError, RunError

if TYPE_CHECKING:
    from rprm.benchmarks import Benchmark, BenchmarkItems
    from rprm.report.reported import Reported


@with_options
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders of judge, bench and search.")],
    output: Annotated[Path, "--output", "-o", {"metavar": "FILE.html"}, "The page."] = Path("report.html"),
    data: Annotated[
        list[str] | None, {"metavar": "PATH"},
        "Where a run's data are now, if not where it read them; again for others'. Hashes tell whose they are.",
    ] = None,
    figures: Annotated[Path | None, {"metavar": "FOLDER"}, "Write the charts there too, as SVG files."] = None,
    solutions: Annotated[ranges.Count, "Solutions to show of each run and outcome."] = 20,
    analyses: Annotated[ranges.Count, "Analyses to show of each step."] = 4,
    resamples: Resamples = 2000,
    seed: Annotated[ranges.Seed, "Of the resamples."] = 0,
) -> None:  # fmt: skip
    """One HTML page of runs: tables beside published figures, curves, calibration, solutions with their analyses.

    The page stands alone: it runs no script and fetches nothing.
    """
    from rprm.report.page import judged_part, page, pictures, searched_part
    from rprm.report.reported import MAX_CHARACTERS, Reported, Shown, read_judged
    from rprm.report.searched import STAGES, read_searches
    from rprm.runs import write_atomically
    from rprm.showing import one_line
    from rprm.terminal import Terminal

    if output.suffix not in (".html", ".htm"):
        raise InputError(f"--output {output}: name a file that ends in .html")
    if len({run.resolve() for run in runs}) < len(runs):
        raise InputError("a run is named twice, and would look like two: name each once")
    shown, how = Shown(solutions, analyses, MAX_CHARACTERS // len(runs)), {"num_resamples": resamples, "seed": seed}
    judged: dict[str, list[Reported]] = {}
    searches = []
    names = {run.resolve().name for run in runs}
    for number, folder in enumerate(runs, 1):
        base = "/".join(folder.resolve().parts[-1 if len(names) == len(runs) else -2 :])
        run = Reported(base if len(runs) == 1 else f"{number}: {base}", folder, "Search", shown)
        if (stage := run.manifest["stage"]) in STAGES:
            searches.append(run)
        elif stage == "judge":
            benchmark, items = judged_items(folder, data or [])
            run.heading = benchmark.help.partition(":")[0].strip()
            run.benchmark = run.settings.get("benchmark") or ""
            read_judged(run, benchmark, items, **how)
            judged.setdefault(run.heading, []).append(run)
        else:
            below = ": name those of its stages, as in ROW/judge" * (stage == "reproduce")
            raise RunError(f"{folder} is a run of {stage!r}; a page is made of runs of judge, bench and search{below}")
    parts = [judged_part(few) for few in judged.values()]
    parts += [searched_part(searches, read_searches(searches, **how))] if searches else []
    made = page(parts)
    for name, picture in pictures(parts) if figures else ():
        write_atomically(figures / name, picture)  # type: ignore[operator]
    write_atomically(output, made)
    every = [run for part in parts for run in part.runs]
    what = f"{sum(len(run.examples) for run in every):,} of {sum(run.counts.total() for run in every):,} solutions"
    Terminal().print(one_line(f"{output}: {what} shown, {len(made) / 1e6:.1f} MB"))


def judged_items(folder: Path, data: Sequence[str]) -> tuple[Benchmark, BenchmarkItems[Any]]:
    """What a run of judged solutions is measured by, and its items: of the first place whose content has the hash that
    the run recorded. Labelled solutions of no benchmark are measured as ProcessBench's."""
    from rprm.benchmarks import PROCESSBENCH

    recorded, known = settings_of_run(folder), BenchGroup.added()
    if (name := recorded.get("benchmark")) is not None and name not in known:
        raise BenchmarkError(f"{folder} is a run of the benchmark {name!r}, which is not installed here")
    of_judge = replace(PROCESSBENCH, help="Solutions: judged.", hub=None, read=_read_solutions, group=None)
    benchmark: Benchmark = known[name].load() if name else of_judge
    reasons = []
    columns = str(recorded["input"]).partition("?")[2]  # What was judged under other names is read under these.
    moved = [f"{place}?{columns}" if columns and "?" not in place else place for place in data]
    for place in [*moved, *filter(None, [recorded["data"] or benchmark.hub])]:
        try:
            # A file that is gone is no data set of the hub, though its name may look like one.
            if Path(file := place.partition("?")[0]).suffix and not Path(file).exists() and not Path(place).exists():
                raise InputError(f"{place}: no such file")
            if place not in data and (Path(file).is_fifo() or Path(place).is_fifo()):
                raise InputError(f"{place}: it was read from a pipe")  # It would wait for somebody to write there.
            items = benchmark.read(place)
        except (InputError, UnicodeEncodeError) as error:  # A name of an edited manifest may be none that files have.
            reasons.append(str(error))
            continue
        if (found := with_digest(benchmark, items, recorded["input"])) is not None:
            return benchmark, found
        reasons.append(f"{place}: its hash differs")
    why = "; ".join(reasons) or "it does not say where they were"
    raise BenchmarkError(f"{folder}: the data that it judged are not at hand ({why}): name them with --data PATH")


def _read_solutions(place: str) -> BenchmarkItems[Any]:
    """The solutions of a file that `rprm judge` reads, as items; those without a label too."""
    from rprm.benchmarks import BenchmarkItems, ProcessBenchItem, Texts
    from rprm.reading import Rejected, Source, read_solutions

    if place == "-":
        raise InputError("its solutions came from standard input")
    source = Source(place)
    rows, texts = (row for row in read_solutions(source) if not isinstance(row, Rejected)), Texts()
    items: list[Any] = [ProcessBenchItem("solutions", texts.put(row), row.label) for row in rows]  # type: ignore[arg-type]
    return BenchmarkItems(tuple(items), sources=(source.inspect(),))
