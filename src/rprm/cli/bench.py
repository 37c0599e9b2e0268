"""`rprm bench`: measure judges as the benchmarks measure. A benchmark's command is made from its record."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, make_dataclass
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import typer

from rprm.cli.added import OpenGroup
from rprm.cli.judge import refuse_nothing_judged
from rprm.cli.options import FirstErrorOptions, Json, JudgeOptions, Output, with_options
from rprm.errors import BenchmarkError, CorruptRun

if TYPE_CHECKING:
    from rprm.benchmarks import Benchmark, BenchmarkItems, Scores
    from rprm.reading import SourceInfo


class BenchGroup(OpenGroup):
    """A command for each benchmark, ours and those of other distributions (`NAME = "module:RECORD"`)."""

    entry_points: ClassVar[str] = "rprm.benchmarks"
    own: ClassVar[dict[str, str]] = {
        "processbench": "rprm.benchmarks:PROCESSBENCH",
        "prmbench": "rprm.benchmarks:PRMBENCH",
        "steps": "rprm.data.steps:STEPS",
    }

    @staticmethod
    def made(loaded: Any) -> typer.Typer:
        def run(data: Any, measured: Any, judging: Any, flags: Any, figures: Any) -> None:
            _bench(loaded, data, measured, judging, [name for name in loaded.flags if getattr(flags, name)], figures)

        flags = [
            (name, Annotated[bool, f"--{name.replace('_', '-')}", flag.help], False)
            for name, flag in loaded.flags.items()
        ]
        run.__doc__ = loaded.help
        run.__annotations__ = {
            "data": DataOptions if loaded.hub else NamedData,
            "measured": MeasuredOptions,
            "judging": FirstErrorOptions if loaded.judged == "first error" else JudgeOptions,
            "flags": make_dataclass("Flags", flags, frozen=True),
            "figures": FigureOptions,
        }
        made = typer.Typer(rich_markup_mode=None, add_completion=False)
        made.command(loaded.name)(with_options(run))
        return made


app = typer.Typer(
    cls=BenchGroup,
    rich_markup_mode=None,
    help="Measure judges on ProcessBench and PRMBench, and compare two of them.",
    no_args_is_help=True,
)

Resamples = Annotated[int, typer.Option("--resamples", min=10, help="Bootstrap resamples behind each interval.")]


@dataclass(frozen=True)
class MeasuredOptions:
    """What is measured: a model, or scores."""

    model: Annotated[str | None, "--model", "-m", "Judge with this model (as for `rprm judge`), then measure."] = None
    scores: Annotated[
        Path | None,
        typer.Option(
            help="Measure scores made elsewhere: JSON Lines {id | key, p_yes: [..]}, or a run folder.",
            metavar="FILE|RUN",
        ),
    ] = None
    output: Output = None


@dataclass(frozen=True)
class DataOptions:
    """On which data; by default the benchmark's own on the hub."""

    data: Annotated[
        str | None,
        typer.Option(help="Files in place of the hub: a folder of subset files, or one file.", metavar="PATH"),
    ] = None
    revision: Annotated[str | None, "Of the data set on the hub."] = None


@dataclass(frozen=True)
class NamedData:
    """On which data, of a benchmark that has none on the hub."""

    data: Annotated[str, typer.Argument(metavar="DATA", help="A file, or a run folder that holds the items.")]
    revision: ClassVar[None] = None


@dataclass(frozen=True)
class FigureOptions:
    """How figures are made."""

    limit: Annotated[int | None, typer.Option(min=1, help="The first N items alone (of each subset or class).")] = None
    allow_missing: Annotated[bool, "--allow-missing", "Count items without a prediction as wrong (and say so)."] = False
    resamples: Resamples = 2000
    json: Json = False


def _bench(
    benchmark: Benchmark,
    data: DataOptions | NamedData,
    measured: MeasuredOptions,
    judging: JudgeOptions,
    flags: list[str],
    figures: FigureOptions,
) -> None:
    """Judge now or read scores, then measure and show."""
    from rprm.benchmarks import measure
    from rprm.cli.embedded import EmbeddedScope
    from rprm.cli.progress import run_behind_progress
    from rprm.report.measures import measurement_table, result_table
    from rprm.rewarders.base import judge_source
    from rprm.runs import MANIFEST

    path, output = measured.scores, measured.output
    if (measured.model is None) == (path is None):
        raise BenchmarkError(
            "say what to measure: --model SPEC to judge now, or --scores FILE for scores made elsewhere (one of them)"
        )
    if path and output and (output / MANIFEST).exists() and not output.samefile(path):
        raise BenchmarkError(f"{output} holds another run than {path}: name another --output")
    name, limit = data.data, figures.limit
    recorded = _recorded(path) if path else {}
    if name is None:
        name, limit = _agreed("data", name, recorded), _agreed("limit", limit, recorded)
    items = _read(benchmark, name, data.revision, limit)
    chosen = {flag: benchmark.flags[flag] for flag in flags}
    for flag in chosen.values():
        items = flag.items(items) if flag.items else items
    further = {name: flag.further for name, flag in chosen.items() if flag.further}
    if path:
        scores = _scores(path, recorded, benchmark, items)
        threshold = _agreed("threshold", judging.threshold, {"threshold": 0.5} | recorded)
    else:
        rewarder = judging.rewarder(
            str(measured.model),
            in_full=bool(further),
            **{"first_error_exit": False} if benchmark.judged == "every step" else {},
        )
        scope = EmbeddedScope(measured.model)
        last_step = benchmark.judged == "last step"
        settings = {"benchmark": benchmark.name, **({} if limit is None else {"limit": limit})}
        with tempfile.TemporaryDirectory(prefix="rprm-") as folder:
            run = output or Path(folder) / "run"
            totals = run_behind_progress(
                lambda callbacks: judge_source(
                    rewarder, [*items.rejected, *items.solutions],
                    source=_source(benchmark, items, name or str(benchmark.hub)),
                    output=run, settings=settings, last_step=last_step, callbacks=callbacks,
                ),
                rewarder.aclose, len(items.items), lambda solution, result: scope.note(solution),
                noun="steps" if last_step else "solutions",
            )  # fmt: skip
            scope.tell()
            refuse_nothing_judged(totals)
            scores = _scores(run, _recorded(run), benchmark, items)
            threshold = rewarder.threshold  # A classifier's own is known once it is started.
    of_tally = {name: True for name, flag in chosen.items() if not flag.items and not flag.further}
    how: dict[str, Any] = {
        "allow_missing": figures.allow_missing, "num_resamples": figures.resamples, "seed": judging.seed,
    }  # fmt: skip
    measurement = measure(benchmark.tally, items, scores, threshold=threshold, **how, **of_tally)
    results = {flag: make(items, scores, **how) for flag, make in further.items()}
    found = measurement.as_dict() | of_tally | {flag: result.as_dict() for flag, result in results.items()}
    tables = (measurement_table(measurement), *(result_table(result.table()) for result in results.values()))
    show(found, tables, as_json=figures.json, output=output)


@app.command()
@with_options
def compare(
    first: Annotated[Path, typer.Argument(metavar="RUN_A", help="A run folder of `rprm bench`, or a scores file.")],
    second: Annotated[Path, typer.Argument(metavar="RUN_B", help="Another, on the same items.")],
    benchmark: Annotated[str | None, "processbench, prmbench or steps; a run folder knows its own."] = None,
    *,
    data: DataOptions,
    threshold: Annotated[
        float | None, "A step whose reward is below it is called wrong.  [default: each judge's, or 0.5]"
    ] = None,
    figures: FigureOptions,
    seed: Annotated[int, "Of the resamples and permutations."] = 0,
) -> None:
    """A paired comparison of two runs: the difference of each figure with its interval, and tests of it."""
    from rprm.benchmarks import compare as compare_tallies
    from rprm.report.measures import comparison_table

    runs = {path: _recorded(path) for path in (first, second)}
    known = BenchGroup.added()
    name = _agreed("benchmark", benchmark, *runs.values())
    if name not in known:
        what = "scores files do not tell their benchmark" if name is None else f"{name}: no such benchmark"
        raise BenchmarkError(f"{what}: give --benchmark, one of {', '.join(known)}")
    record: Benchmark = known[name].load()
    name, limit = (_agreed(*one, *runs.values()) for one in (("data", data.data), ("limit", figures.limit)))
    items = _read(record, name, data.revision, limit)
    one, other = (
        record.tally(
            items,
            _scores(path, runs[path], record, items),
            threshold=_agreed("threshold", threshold, {"threshold": 0.5} | runs[path]),
            allow_missing=figures.allow_missing,
        )
        for path in (first, second)
    )
    comparison = compare_tallies(one, other, num_resamples=figures.resamples, seed=seed)
    table = comparison_table(comparison, names=(str(first), str(second)))
    show(comparison.as_dict(), [table], as_json=figures.json)


def _read(benchmark: Benchmark, data: str | None, revision: str | None, limit: int | None) -> BenchmarkItems[Any]:
    if not (data or benchmark.hub):
        raise BenchmarkError(f"say which {benchmark.name} the scores are of: --data PATH")
    return benchmark.read(data or benchmark.hub, revision=revision).limited(limit, benchmark.group)


def _source(benchmark: Benchmark, items: BenchmarkItems[Any], name: str) -> SourceInfo:
    """One identity for all the files or splits of a benchmark; one file of a benchmark without a hub has its own."""
    from rprm.reading import SourceInfo

    if benchmark.hub is None and len(items.sources) == 1:
        return items.sources[0]
    digests = "\n".join(source.digest for source in items.sources)
    return SourceInfo(name, f"sha256:{hashlib.sha256(digests.encode()).hexdigest()}", len(items.items))


def _recorded(path: Path) -> dict[str, Any]:
    """What a run folder says of its scores (its settings, and where the data were); of a scores file nothing.

    Raises:
        BenchmarkError: there is neither.
        CorruptRun: of the manifest.
    """
    from rprm.runs import MANIFEST, read_manifest

    if path.is_dir():
        manifest = read_manifest(path)
        found: dict[str, Any] = manifest["settings"] | {"data": manifest["sessions"][-1].get("input")}
        kinds = {"benchmark": str | None, "limit": int | None, "data": str | None, "threshold": int | float}
        for name, kind in kinds.items():
            if not isinstance(found.get(name), kind):
                raise CorruptRun.at(str(path / MANIFEST), f"{name!r} is {found.get(name)!r:.80}")
        return found
    if not path.exists():
        raise BenchmarkError(f"{path}: no such run folder or scores file")
    return {}


def _scores(path: Path, recorded: dict[str, Any], benchmark: Benchmark, items: BenchmarkItems[Any]) -> Scores:
    """The scores of a run folder, which must be of these items, or of a scores file."""
    from rprm.benchmarks import read_scores, scores_of
    from rprm.records import SolutionReward
    from rprm.runs import RESULTS, read_json_lines

    if not recorded:
        return read_scores(path)
    if recorded.get("benchmark") and recorded.get("input") != _source(benchmark, items, "").digest:
        raise BenchmarkError(
            f"{path} was judged on other data (its hash differs): name the data of that run with --data"
        )
    settled_at = None if recorded.get("stopping", "none") == "none" else float(recorded["threshold"])
    rewards = read_json_lines(path / RESULTS, SolutionReward.read_back)
    return scores_of(rewards, settled_at=settled_at, last_step=benchmark.judged == "last step")


def _agreed(name: str, given: Any, *recorded: dict[str, Any]) -> Any:
    """What was given, else what the runs record, if they agree."""
    known = {run.get(name) for run in recorded if run}
    if given is not None or not known:
        return given
    if len(known) > 1:
        raise BenchmarkError(f"the runs differ in their {name} ({', '.join(map(str, known))}): name one with --{name}")
    return known.pop()


def show(found: dict[str, Any], tables: Iterable[Any], *, as_json: bool, output: Path | None = None) -> None:
    """Print what was found, as JSON or in tables, and keep it in `output`."""
    from rich.console import Console

    from rprm.runs import write_atomically

    if output is not None:
        write_atomically(output / "measurement.json", f"{dumps(found, indent=2, ensure_ascii=False)}\n")
    if as_json:
        print(dumps(found, ensure_ascii=False))
        return
    console = Console(highlight=False)
    for table in tables:
        console.print(table)
