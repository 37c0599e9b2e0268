"""`rprm bench steps`: is each labelled step called as it is labelled?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rprm.cli.bench import (
    AllowMissing,
    Json,
    ModelOption,
    Resamples,
    ScoresOption,
    ThresholdOption,
    check_what,
    judged_run,
    measured_threshold,
    show_measurement,
)
from rprm.cli.judge import (
    Ask,
    Confidence,
    ForceVerdict,
    MaxTokens,
    NumAnalyses,
    Output,
    ProcedureName,
    ProcedureOption,
    PromptOption,
    Seed,
    StoppingOption,
    Temperature,
    TopP,
    asked,
)

if TYPE_CHECKING:
    from rprm.benchmarks import StepItems
    from rprm.benchmarks.labelled_steps import StepScoresWithForm


def steps(
    source: Annotated[
        str, typer.Argument(metavar="STEPS", help="A run folder of `rprm data steps`, or a file of labelled steps.")
    ],
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
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="The first N steps alone.")] = None,
    allow_missing: AllowMissing = False,
    resamples: Resamples = 2000,
    json: Json = False,
) -> None:
    """Labelled steps: the accuracies on wrong and on correct ones, their harmonic mean (F1), and that of each source.

    Each step is judged alone, the steps before it are only read. The share of analyses that reach a verdict unasked
    (well-formed) is measured too: --stopping none counts all of them.
    """
    from rprm.benchmarks import LastStepRewarder, measure_steps
    from rprm.benchmarks.labelled_steps import BENCHMARK
    from rprm.rewarders import load_rewarder

    check_what(model, scores, output)
    items = read_items(source, limit)
    if scores is not None:
        judged, threshold = stored_scores(scores, items), measured_threshold(scores, threshold)
    else:
        assert model is not None
        rewarder = load_rewarder(
            model,
            procedure=procedure.value,
            threshold=threshold,
            num_analyses=num_analyses,
            stopping=stopping.value if stopping else None,
            confidence=confidence,
            force_verdict=asked(ask, force_verdict),
            prompt=prompt,
            temperature=temperature,
            top_p=top_p,
            max_tokens=max_tokens,
            seed=seed,
        )
        threshold = rewarder.threshold
        judged_alone = LastStepRewarder(rewarder)
        with judged_run(
            judged_alone, items, items.sources[0], BENCHMARK, output, limit, model=model, noun="steps"
        ) as run:
            judged = stored_scores(run, items)
    measured = measure_steps(
        items, judged, threshold=threshold, allow_missing=allow_missing, num_resamples=resamples, seed=seed
    )
    show_measurement(measured, {}, [], output, json)


def read_items(source: str, limit: int | None = None) -> StepItems:
    """The labelled steps to measure on."""
    from rprm.benchmarks import StepItems
    from rprm.data.steps import read_labelled_steps, steps_source
    from rprm.reading import Rejected

    opened = steps_source(source)
    rows = list(read_labelled_steps(opened))
    return StepItems(
        items=tuple(row for row in rows if not isinstance(row, Rejected))[:limit],
        rejected=tuple(row for row in rows if isinstance(row, Rejected)),
        sources=(opened.inspect(),),
    )


def stored_scores(path: Path, items: StepItems) -> StepScoresWithForm:
    """Scores of a run folder of these steps, or of a scores file."""
    from rprm.benchmarks import read_scores, step_scores
    from rprm.benchmarks.labelled_steps import StepScoresWithForm
    from rprm.errors import BenchmarkError
    from rprm.records import SolutionReward
    from rprm.runs import RESULTS, read_json_lines, read_manifest

    if not path.is_dir():
        return StepScoresWithForm(read_scores(path), {})
    settings = read_manifest(path)["settings"]
    if settings["input"] != items.sources[0].digest:
        raise BenchmarkError(f"{path} was judged on other steps (their hash differs): name those of that run")
    settled = settings.get("stopping", "none") != "none"
    rewards = [SolutionReward.model_validate(row) for row in read_json_lines(path / RESULTS)]
    return step_scores(rewards, settled_at=settings["threshold"] if settled else None)
