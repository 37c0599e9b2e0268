"""Cold-start rows: the analyses whose verdict agrees with the label (R-PRM, section 3.1).

An analysis is kept when its verdict agrees with its step's label and stands once, at the end. Yes and No are balanced
by downsampling; the validation part has other problems than the training part.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from rprm.data.analyses import AnalysesFile
from rprm.data.datasets import ChosenTexts, RowStage, write_chosen
from rprm.data.options import ColdStartOptions
from rprm.data.wellformed import DISAGREES, REASONS, REPEATED, wellformed
from rprm.prompts import PromptTemplate
from rprm.records import StepAnalyses


def write_cold_start(
    analyses: AnalysesFile, output: str | Path, template: PromptTemplate, options: ColdStartOptions | None = None
) -> dict[str, Any]:
    """Make a data set for `rprm train sft` out of analyses; see `write_chosen`.

    The template may differ from the one the teacher read: the verdict lines are rewritten in its form.
    """
    options = options or ColdStartOptions()
    written = analyses.template.verdict if analyses.template is not None else template.verdict

    def choose(row: StepAnalyses, counts: Counter[str], dropped: Counter[str]) -> list[ChosenTexts]:
        kept: dict[str, int] = {}
        for sample, analysis in enumerate(row.analyses):
            text, reason = wellformed(analysis, written, template.verdict)
            if text is None:
                dropped[str(reason)] += 1
            elif analysis.verdict is not row.step.label:
                dropped[DISAGREES] += 1
            elif text in kept:
                dropped[REPEATED] += 1
            else:
                kept[text] = sample
        counts["steps without any analysis"] += not row.analyses
        counts["steps with an agreeing analysis"] += bool(kept)
        dropped["more than were asked for of one step"] += max(0, len(kept) - options.per_step)
        return [ChosenTexts(f"#{sample}", (text,)) for text, sample in kept.items()][: options.per_step]

    stage = RowStage(
        name="cold-start",
        rows="analyses whose verdict agrees with the label of the step (cold start, SFT)",
        noun="analysis",
        count="kept",
        columns=("completion",),
        reasons=REASONS,
        advice="sample more analyses, or leave out the balance",
        choose=choose,
    )
    return write_chosen(analyses, output, template, options, stage)
