"""`rprm bench`: measure judges as the benchmarks measure. A benchmark's command is made from its record."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, make_dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import typer

from rprm.cli.added import OpenGroup
from rprm.cli.judge import refuse_nothing_judged, run_judge
from rprm.cli.options import FirstErrorOptions, Json, JudgeOptions, Output, with_options

if TYPE_CHECKING:
    from rprm.benchmarks import Benchmark, BenchmarkItems, Scores
    from rprm.reading import SourceInfo
    from rprm.rewarders.base import StepRewarder


@cache
def _own_benchmarks() -> dict[str, Benchmark]:
    """The benchmarks of this package. Not at the top: they need numpy, which takes its time to import."""
    from rprm.benchmarks import PRMBENCH, PROCESSBENCH
    from rprm.data.steps import STEPS

    return {benchmark.name: benchmark for benchmark in (PROCESSBENCH, PRMBENCH, STEPS)}


class BenchGroup(OpenGroup):
    """A command for each benchmark, ours and those of other distributions (`NAME = "module:RECORD"`)."""

    entry_points: ClassVar[str] = "rprm.benchmarks"

    def made(self, loaded: Any) -> typer.Typer:
        return _command_of(loaded)

    def list_commands(self, ctx: Any) -> list[str]:
        return list(dict.fromkeys([*_own_benchmarks(), *super().list_commands(ctx)]))

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        own = _own_benchmarks().get(cmd_name)
        return super().get_command(ctx, cmd_name) if own is None else typer.main.get_command(_command_of(own))


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

    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Judge with this model (as for `rprm judge`), then measure.")
    ] = None
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
    revision: Annotated[str | None, typer.Option(help="Of the data set on the hub.")] = None


@dataclass(frozen=True)
class NamedData:
    """On which data, of a benchmark that has none on the hub."""

    data: Annotated[str, typer.Argument(metavar="DATA", help="A file, or a run folder that holds the items.")]
    revision: ClassVar[None] = None


@dataclass(frozen=True)
class FigureOptions:
    """How figures are made."""

    limit: Annotated[int | None, typer.Option(min=1, help="The first N items alone (of each subset or class).")] = None
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="Count items without a prediction as wrong (and say so).")
    ] = False
    resamples: Resamples = 2000
    json: Json = False


def _command_of(benchmark: Benchmark) -> typer.Typer:
    """The command of a benchmark."""

    def run(data: Any, measured: Any, judging: Any, flags: Any, figures: Any) -> None:
        chosen = [name for name in benchmark.flags if getattr(flags, name)]
        _bench(benchmark, data, measured, judging, chosen, figures)

    options = [
        (name, Annotated[bool, typer.Option(f"--{name.replace('_', '-')}", help=flag.help)], False)
        for name, flag in benchmark.flags.items()
    ]
    run.__doc__ = benchmark.help
    run.__annotations__ = {
        "data": DataOptions if benchmark.hub else NamedData,
        "measured": MeasuredOptions,
        "judging": FirstErrorOptions if benchmark.judged == "first error" else JudgeOptions,
        "flags": make_dataclass("Flags", options, frozen=True),
        "figures": FigureOptions,
    }
    made = typer.Typer(rich_markup_mode=None, add_completion=False)
    made.command(benchmark.name)(with_options(run))
    return made


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
    from rprm.report.measures import measurement_table, result_table
    from rprm.runs import write_atomically

    _check_what(measured)
    name, limit = data.data, figures.limit
    stored = StoredScores(measured.scores) if measured.scores else None
    if name is None and stored:
        name, limit = _agreed("data", name, [stored]), _agreed("limit", limit, [stored])
    items = _read(benchmark, name, data.revision, limit)
    chosen = {flag: benchmark.flags[flag] for flag in flags}
    for flag in chosen.values():
        items = flag.items(items) if flag.items else items
    further = {flag: chosen[flag].further for flag in flags if chosen[flag].further}
    if stored:
        scores, threshold = stored.scores(benchmark, items), stored.threshold(judging.threshold)
    else:
        fixed = {"first_error_exit": False} if benchmark.judged == "every step" else {}
        rewarder = judging.rewarder(str(measured.model), in_full=bool(further), **fixed)
        threshold = rewarder.threshold
        with _judged_run(rewarder, benchmark, items, name, limit, measured) as run:
            scores = StoredScores(run).scores(benchmark, items)
    of_tally = {flag: True for flag, one in chosen.items() if not one.items and not one.further}
    how: dict[str, Any] = {
        "allow_missing": figures.allow_missing,
        "num_resamples": figures.resamples,
        "seed": judging.seed,
    }
    measurement = measure(benchmark.tally, items, scores, threshold=threshold, **how, **of_tally)
    results = {flag: make(items, scores, **how) for flag, make in further.items() if make}
    found = measurement.as_dict() | of_tally | {flag: result.as_dict() for flag, result in results.items()}
    if measured.output is not None:
        from json import dumps

        text = dumps(found, indent=2, ensure_ascii=False)
        write_atomically(measured.output / "measurement.json", f"{text}\n")
    if figures.json:
        print_json(found)
        return
    console = plain_console()
    for table in (measurement_table(measurement), *(result_table(result.table()) for result in results.values())):
        console.print(table)


@app.command()
@with_options
def compare(
    first: Annotated[Path, typer.Argument(metavar="RUN_A", help="A run folder of `rprm bench`, or a scores file.")],
    second: Annotated[Path, typer.Argument(metavar="RUN_B", help="Another, on the same items.")],
    benchmark: Annotated[
        str | None, typer.Option("--benchmark", help="processbench, prmbench or steps; a run folder knows its own.")
    ] = None,
    *,
    data: DataOptions,
    threshold: Annotated[
        float | None,
        typer.Option(help="A step whose reward is below it is called wrong.  [default: each judge's, or 0.5]"),
    ] = None,
    figures: FigureOptions,
    seed: Annotated[int, typer.Option(help="Of the resamples and permutations.")] = 0,
) -> None:
    """A paired comparison of two runs: the difference of each figure with its interval, and tests of it."""
    from rprm.benchmarks import compare as compare_tallies
    from rprm.errors import BenchmarkError
    from rprm.report.measures import comparison_table

    for path in (first, second):
        if not path.exists():
            raise BenchmarkError(f"{path}: no such run folder or scores file")
    runs = StoredScores(first), StoredScores(second)
    record = _find(_agreed("benchmark", benchmark, runs))
    limit = _agreed("limit", figures.limit, runs)
    items = _read(record, _agreed("data", data.data, runs), data.revision, limit)
    one, other = (
        record.tally(
            items,
            run.scores(record, items),
            threshold=run.threshold(threshold),
            allow_missing=figures.allow_missing,
        )
        for run in runs
    )
    comparison = compare_tallies(one, other, num_resamples=figures.resamples, seed=seed)
    if figures.json:
        print_json(comparison.as_dict())
    else:
        plain_console().print(comparison_table(comparison, names=(str(first), str(second))))


def _find(name: str | None) -> Benchmark:
    """The record of a benchmark, ours or another distribution's.

    Raises:
        BenchmarkError: there is none of this name.
    """
    from importlib.metadata import entry_points

    from rprm.errors import BenchmarkError

    own = _own_benchmarks()
    others = {point.name: point for point in entry_points(group=BenchGroup.entry_points)}
    if name in own:
        return own[name]
    if name in others:
        found: Benchmark = others[name].load()
        return found
    known = ", ".join([*own, *sorted(others)])
    if name is None:
        raise BenchmarkError(f"scores files do not tell their benchmark: give --benchmark, one of {known}")
    raise BenchmarkError(f"{name}: no such benchmark; give --benchmark, one of {known}")


def _read(benchmark: Benchmark, data: str | None, revision: str | None, limit: int | None) -> BenchmarkItems[Any]:
    from rprm.errors import BenchmarkError

    data = data or benchmark.hub
    if data is None:
        raise BenchmarkError(f"say which {benchmark.name} the scores are of: --data PATH")
    return benchmark.read(data, revision=revision).limited(limit, benchmark.group)


@contextmanager
def _judged_run(
    rewarder: StepRewarder,
    benchmark: Benchmark,
    items: BenchmarkItems[Any],
    data: str | None,
    limit: int | None,
    measured: MeasuredOptions,
) -> Iterator[Path]:
    """The run folder in which the items are judged now: the output, or one that is gone afterwards."""
    import tempfile

    from rprm.cli.embedded import EmbeddedScope

    scope = EmbeddedScope(measured.model)
    with tempfile.TemporaryDirectory(prefix="rprm-") as folder:
        run = measured.output or Path(folder) / "run"
        last_step = benchmark.judged == "last step"
        totals = run_judge(
            rewarder,
            [*items.rejected, *items.solutions],
            len(items.items),
            lambda solution, result: scope.note(solution),
            source=_source(benchmark, items, data or str(benchmark.hub)),
            output=run,
            settings={"benchmark": benchmark.name, **({} if limit is None else {"limit": limit})},
            last_step=last_step,
            noun="steps" if last_step else "solutions",
        )
        scope.tell()
        refuse_nothing_judged(totals)
        yield run


def _source(benchmark: Benchmark, items: BenchmarkItems[Any], name: str) -> SourceInfo:
    """One identity for all the files or splits of a benchmark; one file of a benchmark without a hub has its own."""
    import hashlib

    from rprm.reading import SourceInfo

    if benchmark.hub is None and len(items.sources) == 1:
        return items.sources[0]
    digests = "\n".join(source.digest for source in items.sources)
    return SourceInfo(name, f"sha256:{hashlib.sha256(digests.encode()).hexdigest()}", len(items.items))


class StoredScores:
    """Scores of a run folder, which records what they are of, or of a scores file, which does not."""

    def __init__(self, path: Path) -> None:
        from rprm.errors import CorruptRun
        from rprm.runs import MANIFEST, read_manifest

        self.path = path
        self.settings: dict[str, Any] | None = None
        self.recorded: dict[str, Any] = {}
        if path.is_dir():
            manifest = read_manifest(path)
            self.settings = settings = manifest["settings"]
            self.recorded = {name: settings.get(name) for name in ("benchmark", "limit")}
            self.recorded["data"] = manifest["sessions"][-1].get("input")
            for name, kind in (("benchmark", str), ("limit", int), ("data", str)):
                if not isinstance(self.recorded[name], kind | None):
                    raise CorruptRun.at(str(path / MANIFEST), f"{name!r} is {self.recorded[name]!r:.80}")

    def threshold(self, given: float | None) -> float:
        """What was given, else what the run was judged with, else 0.5."""
        from rprm.errors import CorruptRun
        from rprm.runs import MANIFEST

        if given is not None or self.settings is None:
            return 0.5 if given is None else given
        found = self.settings.get("threshold")
        if isinstance(found, bool) or not isinstance(found, int | float):
            raise CorruptRun.at(str(self.path / MANIFEST), f"'threshold' is {found!r:.80}")
        return float(found)

    def scores(self, benchmark: Benchmark, items: BenchmarkItems[Any]) -> Scores:
        """The scores; those of a run must be of these items."""
        from rprm.benchmarks import read_scores, scores_of
        from rprm.errors import BenchmarkError
        from rprm.records import SolutionReward
        from rprm.runs import RESULTS, read_json_lines

        if self.settings is None:
            return read_scores(self.path)
        if self.recorded["benchmark"] and self.settings.get("input") != _source(benchmark, items, "").digest:
            raise BenchmarkError(
                f"{self.path} was judged on other data (its hash differs): name the data of that run with --data"
            )
        settled_at = None if self.settings.get("stopping", "none") == "none" else self.threshold(None)
        rewards = read_json_lines(self.path / RESULTS, SolutionReward.read_back)
        return scores_of(rewards, settled_at=settled_at, last_step=benchmark.judged == "last step")


def _agreed(name: str, given: Any, stored: Iterable[StoredScores]) -> Any:
    """What was given, else what the runs record, if they agree."""
    from rprm.errors import BenchmarkError

    known = {run.recorded[name] for run in stored if run.recorded}
    if given is not None or not known:
        return given
    if len(known) > 1:
        raise BenchmarkError(f"the runs differ in their {name} ({', '.join(map(str, known))}): name one with --{name}")
    return known.pop()


def _check_what(measured: MeasuredOptions) -> None:
    from rprm.errors import BenchmarkError
    from rprm.runs import MANIFEST

    stored, output = measured.scores, measured.output
    if measured.model is None and stored is None:
        raise BenchmarkError(
            "say what to measure: --model SPEC to judge now, or --scores FILE for scores made elsewhere"
        )
    if measured.model is not None and stored is not None:
        raise BenchmarkError("--model judges now and --scores measures what was judged before: give one of the two")
    if stored is not None and output is not None and (output / MANIFEST).exists() and not output.samefile(stored):
        raise BenchmarkError(f"{output} holds another run than {stored}: name another --output")


def print_json(value: Any) -> None:
    from json import dumps

    print(dumps(value, ensure_ascii=False))


def plain_console() -> Any:
    from rich.console import Console

    return Console(highlight=False)
