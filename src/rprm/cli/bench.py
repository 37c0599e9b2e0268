"""`rprm bench`: measure judges as the benchmarks measure."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rprm.cli.judge import (
    Ask,
    Confidence,
    FirstErrorExit,
    ForceVerdict,
    MaxTokens,
    NumAnalyses,
    Output,
    ProcedureName,
    ProcedureOption,
    PromptOption,
    Seed,
    StoppingName,
    StoppingOption,
    Temperature,
    TopP,
    asked,
    refuse_nothing_judged,
    run_judge,
)

if TYPE_CHECKING:
    from rich.console import RenderableType

    from rprm.benchmarks import BenchmarkItems, Measurement, PRMBenchItem, ProcessBenchItem, Scores, StepItems, Tally
    from rprm.reading import SourceInfo
    from rprm.rewarders.base import StepRewarder

    Items = BenchmarkItems[ProcessBenchItem] | BenchmarkItems[PRMBenchItem]

app = typer.Typer(
    rich_markup_mode=None,
    help="Measure judges on ProcessBench and PRMBench, and compare two of them.",
    no_args_is_help=True,
)

DataOption = Annotated[
    str | None,
    typer.Option("--data", help="Files in place of the hub: a folder of subset files, or one file.", metavar="PATH"),
]
RevisionOption = Annotated[str | None, typer.Option("--revision", help="Of the data set on the hub.")]
ModelOption = Annotated[
    str | None, typer.Option("--model", "-m", help="Judge with this model (as for `rprm judge`), then measure.")
]
ScoresOption = Annotated[
    Path | None,
    typer.Option(
        "--scores",
        help="Measure scores made elsewhere: JSON Lines {id | key, p_yes: [..]}, or a run folder.",
        metavar="FILE|RUN",
    ),
]
ThresholdOption = Annotated[
    float | None,
    typer.Option(
        "--threshold", help="A step whose reward is below it is called wrong.  [default: the judge's, or 0.5]"
    ),
]
LimitOption = Annotated[int | None, typer.Option("--limit", min=1, help="The first N items of each subset alone.")]
AllowMissing = Annotated[
    bool, typer.Option("--allow-missing", help="Count items without a prediction as wrong (and say so).")
]
Resamples = Annotated[int, typer.Option("--resamples", min=10, help="Bootstrap resamples behind each interval.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")]


@app.command()
def processbench(
    data: DataOption = None,
    model: ModelOption = None,
    scores: ScoresOption = None,
    output: Output = None,
    threshold: ThresholdOption = None,
    curve: Annotated[bool, typer.Option("--curve", help="F1 at every threshold too.")] = False,
    held_out: Annotated[
        bool, typer.Option("--held-out", help="Also with the threshold chosen on the other half of the items.")
    ] = False,
    num_analyses: NumAnalyses = None,
    procedure: ProcedureOption = ProcedureName.lean,
    stopping: StoppingOption = None,
    confidence: Confidence = 0.99,
    first_error_exit: FirstErrorExit = None,
    force_verdict: ForceVerdict = None,
    ask: Ask = None,
    prompt: PromptOption = None,
    temperature: Temperature = None,
    top_p: TopP = None,
    max_tokens: MaxTokens = None,
    seed: Seed = 0,
    limit: LimitOption = None,
    revision: RevisionOption = None,
    allow_missing: AllowMissing = False,
    resamples: Resamples = 2000,
    json: Json = False,
) -> None:
    """ProcessBench: error accuracy, correct accuracy and their harmonic mean (F1) for each subset, and the average.

    --curve and --held-out judge every step in full, as --stopping none --all-steps does.
    """
    from rprm.benchmarks import measure_held_out, measure_processbench, read_processbench, threshold_curve
    from rprm.benchmarks.items import PROCESSBENCH_HUB
    from rprm.report.measures import curve_table, held_out_table

    check_what(model, scores, output)
    data, limit = _as_judged(scores, data, limit)
    if curve or held_out:
        stopping = _in_full(model, stopping, first_error_exit)
        first_error_exit = False
    items = _limited(read_processbench(data or PROCESSBENCH_HUB, revision=revision), limit, "subset")
    found, threshold = _scores(
        items, "processbench", data or PROCESSBENCH_HUB, model, scores, output, limit,
        procedure=procedure.value, num_analyses=num_analyses, threshold=threshold,
        stopping=stopping.value if stopping else None,
        confidence=confidence, first_error_exit=first_error_exit, force_verdict=asked(ask, force_verdict),
        prompt=prompt,
        temperature=temperature, top_p=top_p, max_tokens=max_tokens, seed=seed,
    )  # fmt: skip
    measured = measure_processbench(
        items, found, threshold=threshold, allow_missing=allow_missing, num_resamples=resamples, seed=seed
    )
    further: dict[str, Any] = {}
    tables: list[RenderableType] = []
    if held_out:
        halves = measure_held_out(items, found, allow_missing=allow_missing, num_resamples=resamples, seed=seed)
        further["held_out"] = halves.as_dict()
        tables.append(held_out_table(halves))
    if curve:
        line = threshold_curve(items, found, allow_missing=allow_missing)
        further["curve"] = line.as_dict()
        tables.append(curve_table(line))
    show_measurement(measured, further, tables, output, json)


@app.command()
def prmbench(
    data: DataOption = None,
    model: ModelOption = None,
    scores: ScoresOption = None,
    output: Output = None,
    threshold: ThresholdOption = None,
    num_analyses: NumAnalyses = None,
    procedure: ProcedureOption = ProcedureName.lean,
    stopping: StoppingOption = None,
    confidence: Confidence = 0.99,
    force_verdict: ForceVerdict = None,
    ask: Ask = None,
    prompt: PromptOption = None,
    temperature: Temperature = None,
    top_p: TopP = None,
    max_tokens: MaxTokens = None,
    seed: Seed = 0,
    limit: LimitOption = None,
    revision: RevisionOption = None,
    strip_step_numbers: Annotated[
        bool,
        typer.Option(
            "--strip-step-numbers",
            help="Judge the steps without `Step 1. ` or `1. ` at their heads, as most published baselines do.",
        ),
    ] = False,
    strictly_above: Annotated[
        bool,
        typer.Option(
            "--strictly-above",
            help="Call a step correct above the threshold, not at it, as the published baselines do.",
        ),
    ] = False,
    allow_missing: AllowMissing = False,
    resamples: Resamples = 2000,
    json: Json = False,
) -> None:
    """PRMBench: the PRMScore of nine classes, three groups and overall, and of the items clean of PRM800K.

    Every step is judged, also after the first error.
    """
    from rprm.benchmarks import measure_prmbench, read_prmbench
    from rprm.benchmarks.items import PRMBENCH_HUB
    from rprm.benchmarks.prmbench import without_step_numbers

    check_what(model, scores, output)
    data, limit = _as_judged(scores, data, limit)
    items = _limited(read_prmbench(data or PRMBENCH_HUB, revision=revision), limit, "classification")
    if strip_step_numbers:
        items = without_step_numbers(items)
    found, threshold = _scores(
        items, "prmbench", data or PRMBENCH_HUB, model, scores, output, limit,
        procedure=procedure.value, num_analyses=num_analyses, threshold=threshold,
        stopping=stopping.value if stopping else None,
        confidence=confidence, first_error_exit=False, force_verdict=asked(ask, force_verdict), prompt=prompt,
        temperature=temperature, top_p=top_p, max_tokens=max_tokens, seed=seed,
    )  # fmt: skip
    measured = measure_prmbench(
        items,
        found,
        threshold=threshold,
        strictly_above=strictly_above,
        allow_missing=allow_missing,
        num_resamples=resamples,
        seed=seed,
    )
    show_measurement(measured, {"strictly_above": True} if strictly_above else {}, [], output, json)


@app.command()
def compare(
    first: Annotated[Path, typer.Argument(metavar="RUN_A", help="A run folder of `rprm bench`, or a scores file.")],
    second: Annotated[Path, typer.Argument(metavar="RUN_B", help="Another, on the same items.")],
    benchmark: Annotated[
        str | None, typer.Option("--benchmark", help="processbench, prmbench or steps; a run folder knows its own.")
    ] = None,
    data: DataOption = None,
    revision: RevisionOption = None,
    threshold: ThresholdOption = None,
    limit: LimitOption = None,
    allow_missing: AllowMissing = False,
    resamples: Resamples = 2000,
    seed: Annotated[int, typer.Option(help="Of the resamples and permutations.")] = 0,
    json: Json = False,
) -> None:
    """A paired comparison of two runs: the difference of each figure with its interval, and tests of it."""
    from rprm.benchmarks import compare as compare_tallies
    from rprm.errors import BenchmarkError
    from rprm.report.measures import comparison_table

    for path in (first, second):
        if not path.exists():
            raise BenchmarkError(f"{path}: no such run folder or scores file")
    told = [_told(path) for path in (first, second) if path.is_dir()]
    benchmark = _agreed("benchmark", benchmark, told)
    data = _agreed("data", data, told)
    limit = _agreed("limit", limit, told)
    if benchmark not in ("processbench", "prmbench", "steps"):
        raise BenchmarkError(
            "scores files do not tell their benchmark: give --benchmark processbench, prmbench or steps"
        )
    tallies = _tallies(
        benchmark, data, revision, limit, (first, second), threshold=threshold, allow_missing=allow_missing
    )
    comparison = compare_tallies(*tallies, num_resamples=resamples, seed=seed)
    if json:
        print_json(comparison.as_dict())
    else:
        plain_console().print(comparison_table(comparison, names=(str(first), str(second))))


def _tallies(
    benchmark: str,
    data: str | None,
    revision: str | None,
    limit: int | None,
    runs: tuple[Path, Path],
    *,
    threshold: float | None,
    allow_missing: bool,
) -> tuple[Tally, Tally]:
    from rprm.benchmarks import read_prmbench, read_processbench, tally_prmbench, tally_processbench
    from rprm.benchmarks.items import PRMBENCH_HUB, PROCESSBENCH_HUB

    first, second = runs
    at_first, at_second = (measured_threshold(path, threshold) for path in runs)
    if benchmark == "steps":
        from rprm.benchmarks import tally_steps
        from rprm.cli.bench_steps import read_items, stored_scores
        from rprm.errors import BenchmarkError

        if data is None:
            raise BenchmarkError("say which labelled steps the scores are of: --data STEPS")
        steps = read_items(data, limit)
        return (
            tally_steps(steps, stored_scores(first, steps), threshold=at_first, allow_missing=allow_missing),
            tally_steps(steps, stored_scores(second, steps), threshold=at_second, allow_missing=allow_missing),
        )
    if benchmark == "processbench":
        items = _limited(read_processbench(data or PROCESSBENCH_HUB, revision=revision), limit, "subset")
        one, other = (_stored_scores(path, items) for path in runs)
        return (
            tally_processbench(items, one, threshold=at_first, allow_missing=allow_missing),
            tally_processbench(items, other, threshold=at_second, allow_missing=allow_missing),
        )
    questions = _limited(read_prmbench(data or PRMBENCH_HUB, revision=revision), limit, "classification")
    one, other = _stored_scores(first, questions), _stored_scores(second, questions)
    return (
        tally_prmbench(questions, one, threshold=at_first, allow_missing=allow_missing),
        tally_prmbench(questions, other, threshold=at_second, allow_missing=allow_missing),
    )


def _scores(
    items: Items,
    benchmark: str,
    data: str,
    model: str | None,
    stored: Path | None,
    output: Path | None,
    limit: int | None,
    *,
    threshold: float | None,
    **judge: Any,
) -> tuple[Scores, float]:
    """Scores from a file or run, or from judging the items now, and the threshold to measure them at."""
    from rprm.rewarders import load_rewarder

    if stored is not None:
        return _stored_scores(stored, items), measured_threshold(stored, threshold)
    assert model is not None
    rewarder = load_rewarder(model, threshold=threshold, **judge)
    with judged_run(rewarder, items, _source(items, data), benchmark, output, limit, model=model) as run:
        return _stored_scores(run, items), rewarder.threshold


@contextmanager
def judged_run(
    rewarder: StepRewarder,
    items: Items | StepItems,
    source: SourceInfo,
    benchmark: str,
    output: Path | None,
    limit: int | None,
    *,
    model: str,
    noun: str = "solutions",
) -> Iterator[Path]:
    """The run folder in which the items are judged now: the output, or one that is gone afterwards."""
    import tempfile

    from rprm.cli.embedded import EmbeddedScope

    scope = EmbeddedScope(model)
    with tempfile.TemporaryDirectory(prefix="rprm-") as folder:
        run = output or Path(folder) / "run"
        totals = run_judge(
            rewarder,
            [*items.rejected, *items.solutions],
            source,
            num_solutions=len(items.items),
            output=run,
            settings={"benchmark": benchmark, **({} if limit is None else {"limit": limit})},
            strict=False,
            on_result=lambda solution, result: scope.note(solution),
            noun=noun,
        )
        scope.tell()
        refuse_nothing_judged(totals)
        yield run


def measured_threshold(scores: Path, given: float | None) -> float:
    """What was given, else what a run was judged with, else 0.5."""
    from rprm.runs import read_manifest

    if given is None and scores.is_dir():
        return float(read_manifest(scores)["settings"]["threshold"])
    return 0.5 if given is None else given


def _stored_scores(path: Path, items: Items) -> Scores:
    """Scores of a run folder (which must be of these items), or of a scores file."""
    from rprm.benchmarks import read_scores, scores_of
    from rprm.errors import BenchmarkError
    from rprm.records import SolutionReward
    from rprm.runs import RESULTS, read_json_lines, read_manifest

    if not path.is_dir():
        return read_scores(path)
    manifest = read_manifest(path)
    settings = manifest["settings"]
    if settings.get("benchmark") and settings["input"] != _source(items, "").digest:
        raise BenchmarkError(
            f"{path} was judged on other data (its hash differs): name the data of that run with --data"
        )
    rewards = (SolutionReward.model_validate(row) for row in read_json_lines(path / RESULTS))
    settled = settings.get("stopping", "none") != "none"
    return scores_of(rewards, settled_at=settings["threshold"] if settled else None)


def _told(run: Path) -> dict[str, Any]:
    """What a run folder says of its benchmark."""
    from rprm.runs import read_manifest

    manifest = read_manifest(run)
    settings = manifest["settings"]
    return {
        "benchmark": settings.get("benchmark"),
        "data": manifest["sessions"][-1].get("input"),
        "limit": settings.get("limit"),
    }


def _as_judged(scores: Path | None, data: str | None, limit: int | None) -> tuple[str | None, int | None]:
    """Data and limit as given, else those of the run that the scores are."""
    told = [_told(scores)] if scores is not None and scores.is_dir() else []
    if data is None:
        return _agreed("data", None, told), _agreed("limit", limit, told)
    return data, limit


def _agreed(name: str, given: Any, told: list[dict[str, Any]]) -> Any:
    """What was given, else what the runs say, if they say the same."""
    from rprm.errors import BenchmarkError

    if given is not None:
        return given
    known = {run[name] for run in told}
    if len(known) > 1:
        raise BenchmarkError(f"the runs differ in their {name} ({', '.join(map(str, known))}): name one with --{name}")
    return known.pop() if known else None


def _source(items: Items, name: str) -> SourceInfo:
    """One identity for all the files or splits of a benchmark."""
    import hashlib

    from rprm.reading import SourceInfo

    digests = "\n".join(source.digest for source in items.sources)
    return SourceInfo(name, f"sha256:{hashlib.sha256(digests.encode()).hexdigest()}", len(items.items))


def _limited(items: Any, limit: int | None, group: str) -> Any:
    if limit is None:
        return items
    kept, counts = [], dict[str, int]()
    for item in items.items:
        name = getattr(item, group)
        counts[name] = counts.get(name, 0) + 1
        if counts[name] <= limit:
            kept.append(item)
    return replace(items, items=tuple(kept))


def check_what(model: str | None, stored: Path | None, output: Path | None) -> None:
    from rprm.errors import BenchmarkError
    from rprm.runs import MANIFEST

    if model is None and stored is None:
        raise BenchmarkError(
            "say what to measure: --model SPEC to judge now, or --scores FILE for scores made elsewhere"
        )
    if model is not None and stored is not None:
        raise BenchmarkError("--model judges now and --scores measures what was judged before: give one of the two")
    if stored is not None and output is not None and (output / MANIFEST).exists() and not output.samefile(stored):
        raise BenchmarkError(f"{output} holds another run than {stored}: name another --output")


def _in_full(model: str | None, stopping: StoppingName | None, first_error_exit: bool | None) -> StoppingName:
    from rprm.errors import BenchmarkError

    if model is not None and (stopping not in (None, StoppingName.none) or first_error_exit):
        raise BenchmarkError("--curve and --held-out judge in full: leave out --stopping and --first-error-exit")
    return StoppingName.none


def show_measurement(
    measured: Measurement, further: dict[str, Any], tables: list[RenderableType], output: Path | None, json: bool
) -> None:
    from rprm.report.measures import measurement_table
    from rprm.runs import write_atomically

    found = measured.as_dict() | further
    if output is not None:
        import json as json_module

        write_atomically(output / "measurement.json", json_module.dumps(found, indent=2, ensure_ascii=False) + "\n")
    if json:
        print_json(found)
        return
    console = plain_console()
    for table in (measurement_table(measured), *tables):
        console.print(table)


def print_json(value: Any) -> None:
    import json as json_module

    print(json_module.dumps(value, ensure_ascii=False))


def plain_console() -> Any:
    from rich.console import Console

    return Console(highlight=False)
