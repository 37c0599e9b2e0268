"""Sampling: a teacher or student model writes analyses of labelled steps (R-PRM, section 3.1).

The judge's own path does it, with every analysis drawn: the same prompts, seeds, journal and engines, so that a kill
costs only the requests in flight.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rprm.errors import InputError
from rprm.jobs import Callbacks, Job, run_job
from rprm.ledger import Ledger
from rprm.prompts import PromptTemplate, load_template
from rprm.prompts.library import MODEL_TEMPLATE
from rprm.reading import Rejected, Row, Source, SourceInfo, explained, read_rows
from rprm.records import LabelledStep, StepAnalyses
from rprm.rewarders.base import reward_settings
from rprm.rewarders.rprm import Judge
from rprm.runs import MANIFEST, RESULTS, finished_manifest, write_atomically
from rprm.stopping import StoppingRule

#: The stage's name in manifests.
STAGE = "analyses"


@dataclass
class AnalysisTotals:
    """What a run of analyses came to. An analysis agrees when its verdict is its step's label."""

    num_steps: int = 0
    num_rejected: int = 0
    num_steps_labelled_correct: int = 0
    num_steps_refused: int = 0
    num_analyses: int = 0
    num_agreeing: int = 0
    num_disagreeing: int = 0
    num_without_verdict: int = 0
    num_generated_tokens: int = 0
    num_prompt_tokens: int = 0
    failure: str | None = None

    @property
    def nothing_judged(self) -> bool:
        """Whether there were steps, and no analysis of any reached a verdict."""
        return self.num_steps > 0 and self.num_analyses == self.num_without_verdict

    def add(self, result: StepAnalyses) -> None:
        self.num_steps += 1
        self.num_steps_labelled_correct += result.step.label
        self.num_steps_refused += not result.analyses
        self.failure = self.failure or result.failure
        self.num_analyses += len(result.analyses)
        for analysis in result.analyses:
            if analysis.verdict is None:
                self.num_without_verdict += 1
            elif analysis.verdict is result.step.label:
                self.num_agreeing += 1
            else:
                self.num_disagreeing += 1
            self.num_generated_tokens += analysis.num_tokens
            self.num_prompt_tokens += analysis.num_prompt_tokens or 0

    def as_dict(self) -> dict[str, int]:
        return {name: value for name, value in asdict(self).items() if name != "failure"}


async def sample_analyses(
    judge: Judge,
    rows: Iterable[LabelledStep | Rejected],
    *,
    source: SourceInfo,
    output: str | Path,
    settings: dict[str, Any] | None = None,
    strict: bool = False,
    callbacks: Callbacks | None = None,
) -> AnalysisTotals:
    """Write analyses of labelled steps into a run folder; begun again, it goes on where it was.

    Args:
        judge: its template and sampling are taken, and its number of analyses; all of them are drawn.
        rows: labelled steps, with rejected rows among them.
        source: what identifies them in the manifest.
        output: the run folder. `results.jsonl` holds `StepAnalyses` in input order, `rprm_prompt.toml` the template.
        settings: further settings that the results depend on.
        strict: stop at the first rejected row.
        callbacks: told of each result, in order.

    Returns:
        Totals over all sessions.

    Raises:
        RunError, InputError, EngineUnavailable: as for `judge_source`.
    """
    judge.rule = StoppingRule(judge.rule.num_analyses, judge.rule.threshold, "none")
    described = reward_settings(await judge.start())
    del described["rewarder"]
    totals = AnalysisTotals()

    async def analyse(step: LabelledStep, ledger: Ledger | None) -> StepAnalyses:
        reward = await judge.judge_step(step.problem, step.steps, step.step_index, ledger)
        return StepAnalyses(step=step, analyses=reward.analyses, failure=reward.failure)

    stage = Job(
        name=STAGE,
        work=analyse,
        parse=StepAnalyses.model_validate,
        totals=totals,
        width=judge.concurrency,
        noun="step",
    )
    await run_job(
        stage, rows, source=source, output=output, settings={**(settings or {}), **described}, strict=strict,
        callbacks=callbacks,
    )  # fmt: skip
    write_atomically(Path(output) / MODEL_TEMPLATE, judge.template.to_toml())
    return totals


@dataclass(frozen=True)
class AnalysesFile:
    """Analyses at hand: where they are, the template they were written with, and what is known of their making.

    Attributes:
        source: their rows.
        template: of the run folder; None for a plain file.
        manifest: of the run folder; empty for a plain file.
    """

    source: Source
    template: PromptTemplate | None
    manifest: dict[str, Any]

    def rows(self) -> Iterator[StepAnalyses | Rejected]:
        """Each row as `StepAnalyses`, or as `Rejected` with the reason."""
        return read_rows(self.source, _step_analyses)


def _step_analyses(row: Row) -> StepAnalyses:
    from pydantic import ValidationError

    try:
        return StepAnalyses.model_validate(row.value)
    except ValidationError as error:
        raise InputError(f"not an analysed step: {explained(error)}") from None


def open_analyses(path: str | Path) -> AnalysesFile:
    """Analyses from a run folder of `rprm data analyses`, which must be complete, or from a file of its rows.

    Raises:
        InputError: there is no such file.
        RunError: the folder is no such run, or is not complete.
    """
    folder = Path(path)
    if not folder.is_dir():
        return AnalysesFile(Source(str(path)), None, {})
    manifest = finished_manifest(folder, stage=STAGE, command="rprm data analyses")
    if not (folder / MODEL_TEMPLATE).is_file():
        raise InputError(f"{folder} has no {MODEL_TEMPLATE}: begin `rprm data analyses` again to complete it")
    return AnalysesFile(Source(str(folder / RESULTS)), load_template(folder / MODEL_TEMPLATE), manifest)


def provenance(analyses: AnalysesFile) -> dict[str, Any]:
    """What a data card says of the analyses' making: settings of their run, or the file's name."""
    settings = json.loads(json.dumps(analyses.manifest.get("settings", {})))
    if not settings:
        return {"file": analyses.source.name}
    return {"run": str(analyses.source.path.parent), MANIFEST: settings}
