"""Preference pairs: agreeing against disagreeing analyses of one step (R-PRM, section 3.2).

No new labels: the student's own analyses of labelled steps are paired. Of a pair, the chosen one ends in the label,
the rejected one in its opposite; both are well-formed, so that the only thing to learn is which reasoning is right.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from rprm.data.analyses import AnalysesFile
from rprm.data.datasets import ChosenTexts, RowStage, write_chosen
from rprm.data.options import PairOptions
from rprm.data.splits import order_key
from rprm.data.wellformed import REASONS, REPEATED, wellformed
from rprm.prompts import PromptTemplate
from rprm.records import StepAnalyses

#: Why a step gives no pair, or fewer than it could.
NO_ANALYSES = "steps without a well-formed analysis"
ALL_AGREE = "steps whose analyses all agree with the label"
ALL_DISAGREE = "steps whose analyses all disagree with the label"
OUTSIDE_BAND = "steps outside the accuracy band"
SAMPLED_RARELY = "steps whose agreeing analyses repeat too rarely"
UNEQUAL_LENGTHS = "steps without analyses of like length"


class _Side(NamedTuple):
    """An analysis; so many of the step's samples read like it, of which it is the first."""

    sample: int
    text: str
    num_tokens: int
    num_samples: int


class _Pair(NamedTuple):
    chosen: _Side
    rejected: _Side

    @property
    def name(self) -> str:
        return f"#{self.chosen.sample}>{self.rejected.sample}"

    @property
    def length_ratio(self) -> float:
        lengths = sorted(max(1, side.num_tokens) for side in self)
        return lengths[1] / lengths[0]


def write_pairs(
    analyses: AnalysesFile, output: str | Path, template: PromptTemplate, options: PairOptions | None = None
) -> dict[str, Any]:
    """Make a data set for `rprm train dpo` out of a student's analyses, several a step; see `write_chosen`."""
    options = options or PairOptions()
    written = analyses.template.verdict if analyses.template is not None else template.verdict

    def choose(row: StepAnalyses, counts: Counter[str], dropped: Counter[str]) -> list[ChosenTexts]:
        sides: dict[bool, dict[str, _Side]] = {True: {}, False: {}}
        for sample, analysis in enumerate(row.analyses):
            text, reason = wellformed(analysis, written, template.verdict)
            if text is None:
                dropped[str(reason)] += 1
                continue
            alike = sides[analysis.verdict is row.step.label]
            if text in alike:
                dropped[REPEATED] += 1
                alike[text] = alike[text]._replace(num_samples=alike[text].num_samples + 1)
            else:
                alike[text] = _Side(sample, text, analysis.num_tokens, 1)
        agreeing, disagreeing = list(sides[True].values()), list(sides[False].values())
        reason = _unpaired(agreeing, disagreeing, options)
        chosen = [side for side in agreeing if side.num_samples >= options.min_repeats]
        pairs = [] if reason else _pairs(row.id, chosen, disagreeing, options)
        if not pairs:
            dropped[reason or UNEQUAL_LENGTHS] += 1
        counts["steps with a pair"] += bool(pairs)
        return [ChosenTexts(pair.name, (pair.chosen.text, pair.rejected.text)) for pair in pairs]

    stage = RowStage(
        name="pairs",
        rows="pairs of an agreeing and a disagreeing analysis of one step (preferences, DPO)",
        noun="pair",
        count="pairs",
        columns=("chosen", "rejected"),
        reasons=(
            *REASONS, NO_ANALYSES, ALL_AGREE, ALL_DISAGREE, OUTSIDE_BAND, SAMPLED_RARELY, UNEQUAL_LENGTHS,
        ),
        advice="sample more analyses of each step (-n), widen the accuracy band, or leave out the balance",
        choose=choose,
    )  # fmt: skip
    return write_chosen(analyses, output, template, options, stage)


def _unpaired(agreeing: list[_Side], disagreeing: list[_Side], options: PairOptions) -> str | None:
    """Why a step gives no pair, whatever the lengths."""
    if not agreeing and not disagreeing:
        return NO_ANALYSES
    if not disagreeing:
        return ALL_AGREE
    if not agreeing:
        return ALL_DISAGREE
    num_agreeing, num_disagreeing = (sum(side.num_samples for side in sides) for sides in (agreeing, disagreeing))
    if not options.min_accuracy <= num_agreeing / (num_agreeing + num_disagreeing) <= options.max_accuracy:
        return OUTSIDE_BAND
    return None if max(side.num_samples for side in agreeing) >= options.min_repeats else SAMPLED_RARELY


def _pairs(identifier: str, agreeing: list[_Side], disagreeing: list[_Side], options: PairOptions) -> list[_Pair]:
    """What was sampled most often, else in random order; the closest in length first where lengths are to match. No
    analysis in more pairs than it was sampled.
    """
    combinations = [_Pair(chosen, rejected) for chosen in agreeing for rejected in disagreeing]
    combinations.sort(
        key=lambda pair: (
            -pair.chosen.num_samples,
            -pair.rejected.num_samples,
            order_key(identifier + pair.name, options.seed),
        )
    )
    if options.max_length_ratio is not None:
        combinations = [pair for pair in combinations if pair.length_ratio <= options.max_length_ratio]
        combinations.sort(key=lambda pair: pair.length_ratio)
    pairs: list[_Pair] = []
    uses: Counter[int] = Counter()
    for pair in combinations:
        if len(pairs) < options.per_step and all(uses[side.sample] < side.num_samples for side in pair):
            pairs.append(pair)
            uses.update(side.sample for side in pair)
    return sorted(pairs)
