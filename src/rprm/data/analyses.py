"""Sampling: a teacher or student model writes analyses of labelled steps (R-PRM, section 3.1), as the judge does."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from rprm.cluster import Cluster
from rprm.errors import InputError, PromptError
from rprm.files import disk
from rprm.jobs import Callbacks, Job, run_job, started
from rprm.ledger import Ledger
from rprm.prompts import PromptTemplate, load_template
from rprm.prompts.library import MODEL_TEMPLATE
from rprm.reading import Rejected, Source, SourceInfo, checked, read_rows
from rprm.records import LabelledStep, StepAnalyses
from rprm.rewarders.base import reward_settings
from rprm.rewarders.rprm import Judge
from rprm.runs import MANIFEST, finished_manifest, verified_results, write_atomically
from rprm.stopping import StoppingRule

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
        return self.num_steps > 0 and self.num_analyses == self.num_without_verdict

    def add(self, result: StepAnalyses) -> None:
        self.num_steps += 1
        self.num_steps_labelled_correct += result.step.label
        self.num_steps_refused += not result.analyses
        self.failure = self.failure or result.failure
        for analysis in result.analyses:
            self.num_analyses += 1
            self.num_without_verdict += analysis.verdict is None
            self.num_agreeing += analysis.verdict is result.step.label
            self.num_disagreeing += analysis.verdict is (not result.step.label)
            self.num_generated_tokens += analysis.num_tokens
            self.num_prompt_tokens += analysis.num_prompt_tokens or 0

    def as_dict(self) -> dict[str, int]:
        return {name: value for name, value in asdict(self).items() if name != "failure"}


async def sample_analyses(
    judge: Judge, rows: Iterable[LabelledStep | Rejected], *, source: SourceInfo, output: str | Path,
    settings: dict[str, Any] | None = None, strict: bool = False, callbacks: Callbacks | None = None,
    cluster: Cluster | None = None,
) -> AnalysisTotals:  # fmt: skip
    """Write all analyses of labelled steps into a run folder, as `judge_source` does with rewards; and the template."""
    if judge.template.next_user:
        raise PromptError(f"{judge.template.name}: earlier analyses are turns of its prompts, which training rows lack")
    judge.rule = StoppingRule(judge.rule.num_analyses, judge.rule.threshold, "none")
    totals = AnalysisTotals()

    async def analyse(step: LabelledStep, ledger: Ledger | None) -> StepAnalyses:
        reward = await judge.judge_step(step.problem, step.steps, step.step_index, ledger)
        return StepAnalyses(step=step, analyses=reward.analyses, failure=reward.failure)

    job = Job(STAGE, analyse, StepAnalyses.model_validate, totals, judge.concurrency, noun="step")
    job, described = await started(job, judge.start, cluster)
    settings = {**(settings or {}), **reward_settings(described)}
    del settings["rewarder"]
    await run_job(job, rows, source=source, output=output, settings=settings, strict=strict, callbacks=callbacks)
    write_atomically(Path(output) / MODEL_TEMPLATE, judge.template.to_toml())
    return totals


class AnalysesFile(NamedTuple):
    """Analyses, the template that they were written with (None for a plain file), and their making, for a card."""

    source: Source
    template: PromptTemplate | None
    provenance: dict[str, Any]

    def rows(self) -> Iterator[StepAnalyses | Rejected]:
        """Each row as `StepAnalyses`, or as `Rejected` with the reason."""
        return read_rows(self.source, lambda row: checked(StepAnalyses, row.value))


def open_analyses(path: str | Path) -> AnalysesFile:
    """Analyses from a complete run folder of `rprm data analyses` (else a RunError), or from a file of its rows."""
    folder = Path(path)
    with disk(folder):
        if not folder.is_dir():
            return AnalysesFile(Source(str(path)), None, {"file": str(path)})
    manifest = finished_manifest(folder, stage=STAGE, command="rprm data analyses")
    if not (folder / MODEL_TEMPLATE).is_file():
        raise InputError(f"{folder} has no {MODEL_TEMPLATE}: begin `rprm data analyses` again to complete it")
    provenance = {"run": str(folder), MANIFEST: manifest["settings"]}
    return AnalysesFile(Source(str(verified_results(folder))), load_template(folder / MODEL_TEMPLATE), provenance)
