"""Cold-start rows: the analyses whose verdict agrees with the label (R-PRM, section 3.1).

An analysis is kept when its verdict agrees with its step's label and stands once, at the end. Yes and No are balanced
by downsampling; the validation part has other problems than the training part.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from rprm.data.analyses import AnalysesFile, provenance
from rprm.data.datasets import Candidate, Dataset, balanced, listed, messages_of
from rprm.data.splits import is_held_out
from rprm.data.wellformed import DISAGREES, REASONS, REPEATED, wellformed
from rprm.errors import InputError
from rprm.prompts import PromptTemplate
from rprm.reading import Rejected
from rprm.records import StepAnalyses


class _Kept(NamedTuple):
    sample: int
    text: str


def write_cold_start(
    analyses: AnalysesFile,
    output: str | Path,
    *,
    template: PromptTemplate,
    per_step: int = 1,
    balance: bool = True,
    validation_share: float = 0.05,
    seed: int = 0,
) -> dict[str, Any]:
    """Make a data set for `rprm train sft` out of analyses.

    Args:
        analyses: read twice, a row at a time: memory holds an id for each kept analysis, not its text.
        output: the data set's folder; see `Dataset`.
        template: the prompt that the student will read. It may differ from the one the teacher read; the analysis's
            verdict line is rewritten in its form.
        per_step: most analyses kept of one step, the first ones.
        balance: as many Yes as No in each part: the more frequent verdict is thinned out at random.
        validation_share: of the problems.
        seed: of the split and of the thinning.

    Returns:
        The counts, as in `summary.json`.

    Raises:
        InputError: nothing is left to train on, or an option makes no sense.
        RunError: the folder cannot be used.
    """
    if per_step < 1:
        raise InputError(f"per_step is {per_step}; keep at least 1 analysis of a step")
    settings = {
        "per_step": per_step,
        "balance": balance,
        "validation_share": validation_share,
        "seed": seed,
    }
    rows = "analyses whose verdict agrees with the label of the step (cold start, SFT)"
    with Dataset(output, "cold-start", analyses.source.inspect(), template, settings, rows=rows) as dataset:
        dropped: Counter[str] = Counter()
        candidates: list[Candidate] = []
        num_steps = Counter[str]()
        for row in analyses.rows():
            if isinstance(row, Rejected):
                dataset.reject(row)
                continue
            num_steps["steps"] += 1
            num_steps["analyses"] += len(row.analyses)
            num_steps["steps without any analysis"] += not row.analyses
            kept = list(_kept(row, analyses, template, dropped))
            num_steps["steps with an agreeing analysis"] += bool(kept)
            dropped["more than were asked for of one step"] += max(0, len(kept) - per_step)
            held_out = is_held_out(row.step.problem, validation_share, seed)
            candidates += [Candidate(f"{row.id}#{one.sample}", row.step.label, held_out) for one in kept[:per_step]]
        chosen = balanced(candidates, seed) if balance else {candidate.id for candidate in candidates}
        dropped["thinned out for balance"] = len(candidates) - len(chosen)
        if not chosen:
            raise InputError(
                f"{analyses.source.name}: no analysis is left to train on ({listed(dropped)}); sample more analyses, "
                "or leave out the balance"
            )
        for row in analyses.rows():
            if isinstance(row, Rejected):
                continue
            prompt = None
            for one in list(_kept(row, analyses, template, Counter()))[:per_step]:
                identifier = f"{row.id}#{one.sample}"
                if identifier not in chosen:
                    continue
                prompt = prompt or template.render(row.step.problem, row.step.steps, row.step.step_index)
                question, completion = messages_of(prompt, one.text)
                dataset.write(
                    {"id": identifier, "label": row.step.label, "prompt": question, "completion": completion},
                    step=row.step,
                    held_out=is_held_out(row.step.problem, validation_share, seed),
                )
        return dataset.finish(
            counts={**num_steps, "kept": len(chosen)},
            dropped={reason: dropped[reason] for reason in [*REASONS, *sorted(set(dropped) - set(REASONS))]},
            made_from=provenance(analyses),
        )


def _kept(
    row: StepAnalyses, analyses: AnalysesFile, template: PromptTemplate, dropped: Counter[str]
) -> Iterator[_Kept]:
    """The agreeing, well-formed analyses of a step; why the others are dropped is counted."""
    written = analyses.template.verdict if analyses.template is not None else template.verdict
    seen: set[str] = set()
    for sample, analysis in enumerate(row.analyses):
        text, reason = wellformed(analysis, written, template.verdict)
        if text is None:
            dropped[str(reason)] += 1
        elif analysis.verdict is not row.step.label:
            dropped[DISAGREES] += 1
        elif text in seen:
            dropped[REPEATED] += 1
        else:
            seen.add(text)
            yield _Kept(sample, text)
