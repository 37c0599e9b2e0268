"""`rprm bench`: measure judges as the benchmarks measure. A benchmark's command is made from its record."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, make_dataclass, replace
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import typer

from rprm import ranges
from rprm.cli.app import OpenGroup
from rprm.cli.judge import EmbeddedScope, leave, refuse_nothing_judged, run_behind_progress
from rprm.cli.options import ClusterOptions, FirstErrorOptions, Json, JudgeOptions, Map, Output, with_options
from rprm.cli.process import temporary_folder
from rprm.errors import BenchmarkError, CorruptRun

if TYPE_CHECKING:
    from rprm.benchmarks import Benchmark, BenchmarkItems, Flag, Scores
    from rprm.reading import SourceInfo


class BenchGroup(OpenGroup):
    """A command for each benchmark, ours and those of other distributions (`NAME = "module:RECORD"`)."""

    entry_points: ClassVar[str] = "rprm.benchmarks"
    own: ClassVar[dict[str, str]] = {
        "processbench": "rprm.benchmarks:PROCESSBENCH",
        "prmbench": "rprm.benchmarks:PRMBENCH",
        "hard2verify": "rprm.benchmarks:HARD2VERIFY",
        "steps": "rprm.data.steps:STEPS",
    }

    @staticmethod
    def made(loaded: Any) -> typer.Typer:
        def run(data: Any, measured: Any, judging: Any, flags: Any, replicated: Any, figures: Any) -> None:
            chosen = {name: flag for name, flag in loaded.flags.items() if getattr(flags, name)}
            _bench(loaded, data, measured, judging, chosen, replicated, figures)

        options = [
            (name, Annotated[bool, f"--{name.replace('_', '-')}", flag.help], False)
            for name, flag in loaded.flags.items()
        ]
        run.__doc__ = loaded.help
        run.__annotations__ = {
            "data": DataOptions if loaded.hub else NamedData, "measured": MeasuredOptions,
            "judging": FirstErrorOptions if loaded.judged == "first error" else JudgeOptions,
            "flags": make_dataclass("Flags", options, frozen=True), "replicated": ClusterOptions,
            "figures": FigureOptions,
        }  # fmt: skip
        made = typer.Typer(rich_markup_mode=None, add_completion=False)
        made.command(loaded.name)(with_options(run))
        return made


_HELP = "Measure judges on ProcessBench, PRMBench and others, and compare two of them."
app = typer.Typer(cls=BenchGroup, rich_markup_mode=None, help=_HELP, no_args_is_help=True)

Kept = Annotated[Path | None, "--output", "-o", "Folder to keep the figures in, as measurement.json."]
Resamples = Annotated[ranges.Resamples, "--resamples", "Bootstrap resamples behind each interval."]


@dataclass(frozen=True)
class MeasuredOptions:
    """What is measured: a model, or scores."""

    model: Annotated[str | None, "--model", "-m", "Judge with this model (as for `rprm judge`), then measure."] = None
    scores: Annotated[
        Path | None,
        typer.Option(metavar="FILE|RUN", help="Scores made elsewhere: JSON Lines {id | key, p_yes: [..]}; or a run."),
    ] = None
    output: Output = None


@dataclass(frozen=True)
class DataOptions:
    """On which data; by default the benchmark's own on the hub."""

    data: Annotated[str | None, typer.Option(metavar="PATH", help="Instead of the hub: a folder, or one file.")] = None
    revision: Annotated[str | None, "Of the data set on the hub."] = None


@dataclass(frozen=True)
class NamedData:
    """On which data, of a benchmark that has none on the hub."""

    data: Annotated[str, typer.Argument(metavar="DATA", help="A file, or a run folder that holds the items.")]
    map: Map = None
    revision: ClassVar[None] = None

    def __post_init__(self) -> None:
        from rprm.reading import with_columns

        object.__setattr__(self, "data", with_columns(self.data, self.map))


@dataclass(frozen=True)
class FigureOptions:
    """How figures are made."""

    limit: Annotated[ranges.Rows | None, "The first N items alone (of each subset or class)."] = None
    allow_missing: Annotated[bool, "--allow-missing", "Count items without a prediction as wrong (and say so)."] = False
    resamples: Resamples = 2000
    json: Json = False


def _bench(
    benchmark: Benchmark, data: DataOptions | NamedData, measured: MeasuredOptions, judging: JudgeOptions,
    flags: Mapping[str, Flag], replicated: ClusterOptions, figures: FigureOptions,
) -> None:  # fmt: skip
    """Judge now or read scores, then measure and show."""
    from rprm.benchmarks import measure
    from rprm.report.measures import measurement_table, result_table
    from rprm.rewarders.base import judge_source
    from rprm.runs import MANIFEST

    path, output = measured.scores, measured.output
    if path and measured.model:
        raise BenchmarkError(f"two things to measure: leave out --model to measure {path}, or --scores to judge now")
    if not (path or measured.model):
        raise BenchmarkError("say what to measure: --model SPEC to judge now, or --scores FILE to measure those")
    if path and replicated != ClusterOptions():
        raise BenchmarkError("scores are measured in this process: leave out --ray, --replicas and --replica-gpus")
    recorded = settings_of_run(path) if path else {}
    if path and output and (output / MANIFEST).exists() and not output.samefile(path):
        raise BenchmarkError(f"{output} holds another run than {path}: name another --output")
    # The run's limit is of the run's own data, not of data that are named.
    name, limit, items = _read(benchmark, data, figures.limit, recorded if data.data is None else {})
    for flag in flags.values():
        items = flag.items(items) if flag.items else items
    further = {name: flag.further for name, flag in flags.items() if flag.further}
    if path:
        items = judged_items(path, recorded, benchmark, items)
        scores, threshold = _scores(path, recorded, benchmark, judging.threshold)
    else:
        no_exit = {"first_error_exit": False} if benchmark.judged == "every step" else {}
        if further and str(measured.model).startswith("critic:") and benchmark.judged == "first error":
            listed = ", ".join(f"--{name.replace('_', '-')}" for name in further)
            raise BenchmarkError(f"a critic names first errors itself, no threshold decides them: leave out {listed}")
        rewarder = judging.rewarder(str(measured.model), in_full=bool(further), **no_exit)
        scope, last_step = EmbeddedScope(measured.model), benchmark.judged == "last step"
        cluster = replicated.cluster(rewarder)
        settings = {"benchmark": benchmark.name} | ({} if limit is None else {"limit": limit})
        with temporary_folder() as folder:
            run = output or Path(folder) / "run"
            totals = run_behind_progress(
                lambda callbacks: judge_source(
                    rewarder, items,
                    source=source_of(benchmark, items, name or str(benchmark.hub)),
                    output=run, settings=settings, last_step=last_step, callbacks=callbacks, cluster=cluster,
                ),
                rewarder.aclose, len(items.items), lambda solution, result: scope.note(solution),
                noun="steps" if last_step else "solutions", replay=scope.is_embedded, cluster=cluster,
            )  # fmt: skip
            scope.tell()
            refuse_nothing_judged(totals)
            scores, threshold = _scores(run, settings_of_run(run), benchmark, rewarder.threshold)
    of_tally = {name: True for name, flag in flags.items() if not flag.items and not flag.further}
    how = {"allow_missing": figures.allow_missing, "num_resamples": figures.resamples, "seed": judging.seed}
    measurement = measure(benchmark.tally, items, scores, threshold=threshold, right=benchmark.right, **how, **of_tally)
    results = {name: make(items, scores, **how) for name, make in further.items()}
    found = measurement.as_dict() | of_tally | {name: result.as_dict() for name, result in results.items()}
    tables = (measurement_table(measurement), *(result_table(result.table()) for result in results.values()))
    show(found, tables, as_json=figures.json, output=output)
    leave(len(items.rejected))


@app.command()
@with_options
def compare(
    first: Annotated[Path, typer.Argument(metavar="RUN_A", help="A run folder of `rprm bench`, or a scores file.")],
    second: Annotated[Path, typer.Argument(metavar="RUN_B", help="Another, on the same items.")],
    benchmark: Annotated[str | None, "Of the scores, as in `rprm bench --help`; a run folder knows its own."] = None,
    *,
    data: DataOptions,
    threshold: Annotated[
        ranges.Threshold | None, "A reward below it is called wrong.  [default: each judge's, or 0.5]"
    ] = None,
    figures: FigureOptions,
    seed: Annotated[ranges.Seed, "Of the resamples and permutations."] = 0,
) -> None:
    """A paired comparison of two runs: the difference of each figure with its interval, and tests of it."""
    from rprm.benchmarks import compare as compare_tallies
    from rprm.benchmarks.scores import with_false_alarms
    from rprm.report.measures import comparison_table

    runs = {path: settings_of_run(path) for path in (first, second)}
    known = BenchGroup.added()
    if (name := _agreed("benchmark", benchmark, *runs.values())) not in known:
        unnamed = "neither input names its benchmark (a run of `rprm bench` does)"
        what = unnamed if name is None else f"{name}: no such benchmark"
        raise BenchmarkError(f"{what}: give --benchmark, one of {', '.join(known)}")
    record: Benchmark = known[name].load()
    *_, read = _read(record, data, figures.limit, *runs.values())
    tallies = []
    for path in (first, second):
        items = judged_items(path, runs[path], record, read)
        scores, at = _scores(path, runs[path], record, threshold)
        how = {"allow_missing": figures.allow_missing, **record.own_flags(path)}
        tallies.append(with_false_alarms(record.tally(items, scores, threshold=at, **how), items, scores))
    found = compare_tallies(*tallies, num_resamples=figures.resamples, seed=seed)
    show(found.as_dict(), [comparison_table(found, names=(str(first), str(second)))], as_json=figures.json)
    leave(len(items.rejected))


@app.command()
@with_options
def curve(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder of `rprm bench` that drew all analyses.")],
    *,
    data: DataOptions,
    threshold: Annotated[ranges.Threshold | None, "A reward below it is called wrong.  [default: the run's]"] = None,
    figures: FigureOptions,
    seed: Annotated[ranges.Seed, "Of the resamples."] = 0,
    output: Kept = None,
) -> None:
    """A benchmark's figure by K, from subsets of the analyses of one run."""
    from rprm.benchmarks.curve import k_curve
    from rprm.records import SolutionReward
    from rprm.report.measures import result_table
    from rprm.runs import MANIFEST, finished_manifest, read_results

    recorded, known = settings_of_run(run), BenchGroup.added()
    if (name := recorded.get("benchmark")) not in known:
        raise BenchmarkError(f"{run}: not a run folder of `rprm bench`")
    finished_manifest(run, stage="judge", command=f"rprm bench {name}")
    if output is not None and (output / MANIFEST).exists():
        raise BenchmarkError(f"--output {output} holds a run, whose own figures are there: name another folder")
    record: Benchmark = known[name].load()
    *_, read = _read(record, data, figures.limit, recorded)
    items, rewards = judged_items(run, recorded, record, read), list(read_results(run, SolutionReward.read_back))
    found = k_curve(
        record, items, rewards, is_critic=recorded.get("rewarder") == "critic",
        threshold=threshold or recorded["threshold"], seed=seed, num_resamples=figures.resamples,
        allow_missing=figures.allow_missing, **record.own_flags(run),
    )  # fmt: skip
    show(found.as_dict(), [result_table(found.table())], as_json=figures.json, output=output)
    leave(len(items.rejected))


def _read(
    benchmark: Benchmark, data: DataOptions | NamedData, limit: int | None, *recorded: dict[str, Any]
) -> tuple[str | None, int | None, BenchmarkItems[Any]]:
    """The name of the data and the limit, as given or as runs record them, and the items."""
    name, limit = _agreed("data", data.data, *recorded), _agreed("limit", limit, *recorded)
    if not (name or benchmark.hub):
        raise BenchmarkError(f"say which {benchmark.name} the scores are of: --data PATH")
    items = benchmark.read(name or benchmark.hub, revision=data.revision)
    return name, limit, items.limited(limit, benchmark.group)


def source_of(benchmark: Benchmark, items: BenchmarkItems[Any], name: str) -> SourceInfo:
    """One identity for all the files or splits of a benchmark; one file of a benchmark without a hub has its own."""
    if benchmark.hub is None and len(items.sources) == 1:
        return items.sources[0]
    digests = "\n".join(source.digest for source in items.sources)
    digest = f"sha256:{hashlib.sha256(digests.encode()).hexdigest()}"
    return replace(items.sources[0], name=name, digest=digest, num_rows=len(items.items))


def settings_of_run(path: Path) -> dict[str, Any]:
    """What a run folder says of its scores: its settings, and where the data were. A scores file says nothing."""
    from rprm.files import disk
    from rprm.runs import MANIFEST, read_manifest

    with disk(path):
        if not path.exists():
            raise BenchmarkError(f"{path}: no such run folder or scores file")
        if not path.is_dir():
            return {}
    manifest = read_manifest(path)
    settings, data = manifest["settings"], manifest["sessions"][-1].get("input")
    if not isinstance(data, str | None):
        raise CorruptRun.at(str(path / MANIFEST), f"its 'input' is {data!r:.80}")
    kinds = {"benchmark": str | None, "limit": int | None, "threshold": float}
    return {**settings, **{name: settings.of(name, kind) for name, kind in kinds.items()}, "data": data}


def _scores(
    path: Path, recorded: dict[str, Any], benchmark: Benchmark, threshold: float | None
) -> tuple[Scores, float]:
    """The scores of a run folder, or of a file; the threshold given, or the judge's."""
    from rprm.benchmarks import read_scores, scores_of
    from rprm.benchmarks.cost import cost_of
    from rprm.records import SolutionReward
    from rprm.runs import read_results

    threshold = _agreed("threshold", threshold, {"threshold": 0.5} | recorded)
    if not recorded:
        return read_scores(path), threshold
    rewards = read_results(path, SolutionReward.read_back)
    settled_at = None if recorded.get("stopping", "none") == "none" else float(recorded["threshold"])
    scores = scores_of(rewards, settled_at=settled_at, last_step=benchmark.judged == "last step")
    return replace(scores, cost=cost_of(path)), threshold


def judged_items(
    path: Path, recorded: dict[str, Any], benchmark: Benchmark, items: BenchmarkItems[Any]
) -> BenchmarkItems[Any]:
    """The items as the run of a benchmark judged them, which a flag may have changed; a `BenchmarkError` where it
    judged others. The items themselves for scores of no benchmark."""
    found = with_digest(benchmark, items, recorded.get("input")) if recorded.get("benchmark") else items
    if found is None:
        raise BenchmarkError(f"{path} was judged on other data (its hash differs): name its own with --data")
    return found


def with_digest(benchmark: Benchmark, items: BenchmarkItems[Any], digest: str | None) -> BenchmarkItems[Any] | None:
    """The items, or as a flag changes them, whichever have this hash; None where none have."""
    changed = (flag.items(items) for flag in benchmark.flags.values() if flag.items)
    return next((one for one in (items, *changed) if source_of(benchmark, one, "").digest == digest), None)


def _agreed(name: str, given: Any, *recorded: dict[str, Any]) -> Any:
    """What was given, else what the runs record, if they agree."""
    known = list(dict.fromkeys(run.get(name) for run in recorded if run))
    if given is None and len(known) > 1:
        raise BenchmarkError(f"the runs differ in their {name} ({', '.join(map(str, known))}): name one with --{name}")
    return known[0] if given is None and known else given


def show(found: dict[str, Any], tables: Iterable[Any], *, as_json: bool, output: Path | None = None) -> None:
    """Print what was found, as JSON or in tables, and keep it in `output`, whose manifest has the time."""
    from rprm.runs import write_measurement
    from rprm.terminal import Terminal

    if output is not None:
        write_measurement(output, {name: value for name, value in found.items() if name != "time"})
    if as_json:
        print(dumps(found, ensure_ascii=False))
    else:
        Terminal().print(*tables)
