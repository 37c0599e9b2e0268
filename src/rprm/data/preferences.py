"""Preference pairs: agreeing against disagreeing analyses of one step (R-PRM, section 3.2).

No new labels: the student's own analyses of labelled steps are paired. Of a pair, the chosen one ends in the label,
the rejected one in its opposite; both are well-formed, so that the only thing to learn is which reasoning is right.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from rprm.data.analyses import AnalysesFile, provenance
from rprm.data.datasets import Candidate, Dataset, balanced, listed, messages_of
from rprm.data.splits import is_held_out, order_key
from rprm.data.wellformed import REASONS, REPEATED, wellformed
from rprm.errors import InputError
from rprm.prompts import PromptTemplate
from rprm.reading import Rejected
from rprm.records import StepAnalyses

#: Why a step gives no pair, or fewer than it could.
ALL_AGREE = "steps whose analyses all agree with the label"
ALL_DISAGREE = "steps whose analyses all disagree with the label"
NO_ANALYSES = "steps without a well-formed analysis"
OUTSIDE_BAND = "steps outside the accuracy band"
UNEQUAL_LENGTHS = "steps without analyses of like length"
SAMPLED_RARELY = "steps whose agreeing analyses repeat too rarely"


class _Side(NamedTuple):
    """An analysis; so many of the step's samples read like it, of which it is the first."""

    sample: int
    text: str
    num_tokens: int
    num_samples: int


class _Pair(NamedTuple):
    chosen: _Side
    rejected: _Side

    def id(self, row: StepAnalyses) -> str:
        return f"{row.id}#{self.chosen.sample}>{self.rejected.sample}"


def write_pairs(
    analyses: AnalysesFile,
    output: str | Path,
    *,
    template: PromptTemplate,
    per_step: int = 1,
    min_accuracy: float = 0.0,
    max_accuracy: float = 1.0,
    max_length_ratio: float | None = None,
    min_repeats: int = 1,
    balance: bool = True,
    validation_share: float = 0.05,
    seed: int = 0,
) -> dict[str, Any]:
    """Make a data set for `rprm train dpo` out of a student's analyses.

    Args:
        analyses: several a step; read twice, a row at a time.
        output: the data set's folder; see `Dataset`.
        template: the prompt that the student reads.
        per_step: most pairs of one step, those of the analyses sampled most often first. None stands in more pairs than
            it was sampled.
        min_accuracy: steps of which a smaller share of the well-formed analyses agrees give no pair: what
            the student hardly ever gets right may be mislabelled.
        max_accuracy: steps of which a larger share agrees give none: little is left to learn there.
        max_length_ratio: the longer analysis of a pair has at most so many times the tokens of the shorter, so that
            length tells the student nothing; pairs are then made to be as alike in length as they can. None: no limit.
        min_repeats: an analysis is chosen when so many samples of the step read like it. A wrong step is also called
            wrong by mistake, and a mistake seldom comes twice; of use for students sure enough to repeat themselves.
        balance: as many chosen Yes as chosen No in each part.
        validation_share: of the problems; the same problems as those that the cold start held out with this seed.
        seed: of the split, the pairing and the thinning.

    Returns:
        The counts, as in `summary.json`.

    Raises:
        InputError: no pair is left, or an option makes no sense.
        RunError: the folder cannot be used.
    """
    if per_step < 1:
        raise InputError(f"per_step is {per_step}; make at least 1 pair of a step")
    if not 0.0 <= min_accuracy <= max_accuracy <= 1.0:
        raise InputError(f"an accuracy from {min_accuracy} to {max_accuracy} is no band; give 0 <= low <= high <= 1")
    if max_length_ratio is not None and not max_length_ratio >= 1.0:
        raise InputError(f"max_length_ratio is {max_length_ratio}; the longer cannot be shorter: give 1 or more")
    if min_repeats < 1:
        raise InputError(f"min_repeats is {min_repeats}; an analysis is sampled at least once: give 1 or more")
    settings = {
        "per_step": per_step,
        "min_accuracy": min_accuracy,
        "max_accuracy": max_accuracy,
        "max_length_ratio": max_length_ratio,
        "min_repeats": min_repeats,
        "balance": balance,
        "validation_share": validation_share,
        "seed": seed,
    }
    pairing = _Pairing(analyses, template, per_step, (min_accuracy, max_accuracy), max_length_ratio, min_repeats, seed)
    rows = "pairs of an agreeing and a disagreeing analysis of one step (preferences, DPO)"
    with Dataset(output, "pairs", analyses.source.inspect(), template, settings, rows=rows) as dataset:
        dropped: Counter[str] = Counter()
        counts: Counter[str] = Counter()
        candidates: list[Candidate] = []
        for row in analyses.rows():
            if isinstance(row, Rejected):
                dataset.reject(row)
                continue
            counts["steps"] += 1
            counts["analyses"] += len(row.analyses)
            pairs = pairing.pairs(row, dropped)
            counts["steps with a pair"] += bool(pairs)
            held_out = is_held_out(row.step.problem, validation_share, seed)
            candidates += [Candidate(pair.id(row), row.step.label, held_out) for pair in pairs]
        chosen = balanced(candidates, seed) if balance else {candidate.id for candidate in candidates}
        dropped["pairs thinned out for balance"] = len(candidates) - len(chosen)
        if not chosen:
            raise InputError(
                f"{analyses.source.name}: no pair is left to train on ({listed(dropped)}); sample more analyses of "
                "each step (-n), widen the accuracy band, or leave out the balance"
            )
        for row in analyses.rows():
            if isinstance(row, Rejected):
                continue
            for pair in pairing.pairs(row, Counter()):
                if pair.id(row) not in chosen:
                    continue
                prompt = template.render(row.step.problem, row.step.steps, row.step.step_index)
                question, better, worse = messages_of(prompt, pair.chosen.text, pair.rejected.text)
                dataset.write(
                    {
                        "id": pair.id(row),
                        "label": row.step.label,
                        "prompt": question,
                        "chosen": better,
                        "rejected": worse,
                    },
                    step=row.step,
                    held_out=is_held_out(row.step.problem, validation_share, seed),
                )
        order = [*REASONS, NO_ANALYSES, ALL_AGREE, ALL_DISAGREE, OUTSIDE_BAND, SAMPLED_RARELY, UNEQUAL_LENGTHS]
        return dataset.finish(
            counts={**counts, "pairs": len(chosen)},
            dropped={reason: dropped[reason] for reason in [*order, *sorted(set(dropped) - set(order))]},
            made_from=provenance(analyses),
        )


class _Pairing:
    """Makes the pairs of a step: the same ones each time it is asked."""

    def __init__(
        self,
        analyses: AnalysesFile,
        template: PromptTemplate,
        per_step: int,
        band: tuple[float, float],
        max_length_ratio: float | None,
        min_repeats: int,
        seed: int,
    ) -> None:
        self.written = analyses.template.verdict if analyses.template is not None else template.verdict
        self.trained = template.verdict
        self.per_step = per_step
        self.band = band
        self.max_length_ratio = max_length_ratio
        self.min_repeats = min_repeats
        self.seed = seed

    def pairs(self, row: StepAnalyses, dropped: Counter[str]) -> list[_Pair]:
        sides: dict[bool, dict[str, _Side]] = {True: {}, False: {}}
        for sample, analysis in enumerate(row.analyses):
            text, reason = wellformed(analysis, self.written, self.trained)
            if text is None:
                dropped[str(reason)] += 1
                continue
            alike = sides[analysis.verdict is row.step.label]
            if text in alike:
                dropped[REPEATED] += 1
                alike[text] = alike[text]._replace(num_samples=alike[text].num_samples + 1)
            else:
                alike[text] = _Side(sample, text, analysis.num_tokens, 1)
        agreeing, disagreeing = (list(sides[agrees].values()) for agrees in (True, False))
        num_agreeing, num_disagreeing = (sum(side.num_samples for side in alike) for alike in (agreeing, disagreeing))
        chosen = [side for side in agreeing if side.num_samples >= self.min_repeats]
        if not agreeing and not disagreeing:
            dropped[NO_ANALYSES] += 1
        elif not disagreeing:
            dropped[ALL_AGREE] += 1
        elif not agreeing:
            dropped[ALL_DISAGREE] += 1
        elif not self.band[0] <= num_agreeing / (num_agreeing + num_disagreeing) <= self.band[1]:
            dropped[OUTSIDE_BAND] += 1
        elif not chosen:
            dropped[SAMPLED_RARELY] += 1
        else:
            pairs = self._matched(row, chosen, disagreeing)
            dropped[UNEQUAL_LENGTHS] += not pairs
            return pairs
        return []

    def _matched(self, row: StepAnalyses, agreeing: list[_Side], disagreeing: list[_Side]) -> list[_Pair]:
        """Pairs of what was sampled most often, else in random order; the closest in length first where lengths are to
        match. No analysis in more pairs than it was sampled.
        """
        combinations = [_Pair(chosen, rejected) for chosen in agreeing for rejected in disagreeing]
        combinations.sort(
            key=lambda pair: (
                -pair.chosen.num_samples,
                -pair.rejected.num_samples,
                order_key(pair.id(row), self.seed),
            )
        )
        if self.max_length_ratio is not None:
            combinations = [pair for pair in combinations if _length_ratio(pair) <= self.max_length_ratio]
            combinations.sort(key=_length_ratio)
        pairs: list[_Pair] = []
        uses: Counter[int] = Counter()
        for pair in combinations:
            if len(pairs) < self.per_step and all(uses[side.sample] < side.num_samples for side in pair):
                pairs.append(pair)
                uses.update(side.sample for side in pair)
        return sorted(pairs)


def _length_ratio(pair: _Pair) -> float:
    lengths = sorted(max(1, side.num_tokens) for side in pair)
    return lengths[1] / lengths[0]
