"""Training rows chosen from analysed steps: cold-start rows and preference pairs (R-PRM, sections 3.1 and 3.2)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from rprm.data.analyses import AnalysesFile
from rprm.data.datasets import Dataset, listed
from rprm.data.options import ColdStartOptions, PairOptions
from rprm.data.splits import is_held_out, order_key
from rprm.data.wellformed import DISAGREES, REASONS, REPEATED, wellformed
from rprm.errors import InputError
from rprm.prompts import PromptTemplate
from rprm.reading import Rejected
from rprm.records import StepAnalyses


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
        shorter, longer = sorted(max(1, side.num_tokens) for side in self)
        return longer / shorter


#: Rows of a step: what tells each from the others, and its analyses as a training row has them.
Chosen = list[tuple[str, tuple[str, ...]]]

#: Chooses from a row, given its agreeing and its disagreeing analyses; counts, and counts what it drops, by reason.
Choose = Callable[[StepAnalyses, list[_Side], list[_Side], Counter[str], Counter[str]], Chosen]


#: Why a step gives no pair; the first that holds is counted.
_UNPAIRED = (
    "steps without a well-formed analysis",
    "steps whose analyses all agree with the label",
    "steps whose analyses all disagree with the label",
    "steps outside the accuracy band",
    "steps whose agreeing analyses repeat too rarely",
    "steps without analyses of like length",
)


def write_cold_start(
    analyses: AnalysesFile, output: str | Path, template: PromptTemplate, options: ColdStartOptions | None = None
) -> dict[str, Any]:
    """Make a data set for `rprm train sft` (see `Dataset`) out of the first analyses of each step whose verdict agrees.

    The student's template may differ from the teacher's: verdict lines are rewritten. Memory holds an id a row.

    Returns:
        The counts, as in `summary.json`.

    Raises:
        InputError: nothing is left to train on.
        RunError: the folder cannot be used.
    """
    options = options or ColdStartOptions()

    def choose(
        row: StepAnalyses, agreeing: list[_Side], other: list[_Side], counts: Counter[str], dropped: Counter[str]
    ) -> Chosen:
        counts["steps without any analysis"] += not row.analyses
        counts["steps with an agreeing analysis"] += bool(agreeing)
        dropped[DISAGREES] += sum(side.num_samples for side in other)
        dropped[REPEATED] += sum(side.num_samples - 1 for side in agreeing)
        dropped["more than were asked for of one step"] += max(0, len(agreeing) - options.per_step)
        return [(f"#{side.sample}", (side.text,)) for side in agreeing[: options.per_step]]

    return _write(
        analyses, output, template, options, choose,
        stage="cold-start",
        rows="analyses whose verdict agrees with the label of the step (cold start, SFT)",
        noun="analysis",
        counted="kept",
        thinned="thinned out for balance",
        reasons=REASONS,
        advice="sample more analyses, or leave out the balance",
    )  # fmt: skip


def write_pairs(
    analyses: AnalysesFile, output: str | Path, template: PromptTemplate, options: PairOptions | None = None
) -> dict[str, Any]:
    """Make a data set for `rprm train dpo` out of a student's analyses, several a step; see `write_cold_start`.

    The chosen analysis ends in the step's label, the rejected one in its opposite.
    """
    options = options or PairOptions()

    def choose(
        row: StepAnalyses, agreeing: list[_Side], other: list[_Side], counts: Counter[str], dropped: Counter[str]
    ) -> Chosen:
        num_agreeing, num_other = (sum(side.num_samples for side in sides) for sides in (agreeing, other))
        accuracy = num_agreeing / max(1, num_agreeing + num_other)
        often = [side for side in agreeing if side.num_samples >= options.min_repeats]
        pairs = _pairs(row.id, often, other, options)
        outside = not options.min_accuracy <= accuracy <= options.max_accuracy
        applies = (not agreeing and not other, not other, not agreeing, outside, not often, not pairs)
        why = next((reason for reason, holds in zip(_UNPAIRED, applies, strict=True) if holds), None)
        dropped[REPEATED] += num_agreeing + num_other - len(agreeing) - len(other)
        counts["steps with a pair"] += why is None
        if why is not None:
            dropped[why] += 1
            return []
        return [(pair.name, (pair.chosen.text, pair.rejected.text)) for pair in pairs]

    return _write(
        analyses, output, template, options, choose,
        stage="pairs",
        rows="pairs of an agreeing and a disagreeing analysis of one step (preferences, DPO)",
        noun="pair",
        counted="pairs",
        thinned="pairs thinned out for balance",
        reasons=(*REASONS, *_UNPAIRED),
        advice="sample more analyses of each step (-n), widen the accuracy band, or leave out the balance",
    )  # fmt: skip


def _pairs(identifier: str, agreeing: list[_Side], other: list[_Side], options: PairOptions) -> list[_Pair]:
    """The most often sampled ones, or the closest in length; none in more pairs than it was sampled."""

    def place(pair: _Pair) -> tuple[float, ...]:
        key = order_key(identifier + pair.name, options.seed)
        return -pair.chosen.num_samples, -pair.rejected.num_samples, key

    possible = sorted((_Pair(*sides) for sides in product(agreeing, other)), key=place)
    if options.max_length_ratio is not None:
        possible = [pair for pair in possible if pair.length_ratio <= options.max_length_ratio]
        possible.sort(key=lambda pair: pair.length_ratio)
    pairs: list[_Pair] = []
    uses: Counter[int] = Counter()
    for pair in possible:
        if len(pairs) < options.per_step and all(uses[side.sample] < side.num_samples for side in pair):
            pairs.append(pair)
            uses.update(side.sample for side in pair)
    return sorted(pairs)


def _write(
    analyses: AnalysesFile,
    output: str | Path,
    template: PromptTemplate,
    options: ColdStartOptions | PairOptions,
    choose: Choose,
    *,
    stage: str,
    rows: str,
    noun: str,
    counted: str,
    thinned: str,
    reasons: tuple[str, ...],
    advice: str,
) -> dict[str, Any]:
    """The first pass keeps the ids of the chosen rows, by part and label; the second writes those that stay."""
    written = (analyses.template or template).verdict
    counts, dropped = Counter[str](), Counter[str]()

    def chosen(row: StepAnalyses) -> Chosen:
        sides: dict[bool, dict[str, _Side]] = {True: {}, False: {}}
        for sample, analysis in enumerate(row.analyses):
            text, reason = wellformed(analysis, written, template.verdict)
            if text is None:
                dropped[str(reason)] += 1
                continue
            alike = sides[analysis.verdict is row.step.label]
            first = alike.get(text, _Side(sample, text, analysis.num_tokens, 0))
            alike[text] = first._replace(num_samples=first.num_samples + 1)
        found = choose(row, [*sides[True].values()], [*sides[False].values()], counts, dropped)
        return [(row.id + name, texts) for name, texts in found]

    def part(row: StepAnalyses) -> str:
        held_out = is_held_out(row.step.problem, options.validation_share, options.seed)
        return "validation" if held_out else "train"

    with Dataset(output, stage, analyses.source.inspect(), template, asdict(options), rows=rows) as dataset:
        groups: dict[tuple[str, bool], list[str]] = {}
        for row in analyses.rows():
            if isinstance(row, Rejected):
                dataset.reject(row)
                continue
            counts.update({"steps": 1, "analyses": len(row.analyses)})
            groups.setdefault((part(row), row.step.label), []).extend(identifier for identifier, _ in chosen(row))
        num_rows = sum(map(len, groups.values()))
        if options.balance:
            groups = _balanced(groups, options.seed)
        kept = set[str]().union(*groups.values())
        summed = dict(counts)
        dropped[thinned] = num_rows - len(kept)
        ordered = {why: dropped[why] for why in (*reasons, *sorted(set(dropped) - set(reasons)))}
        if not kept:
            raise InputError(f"{analyses.source.name}: no {noun} is left to train on ({listed(ordered)}); {advice}")
        for row in analyses.rows():
            if not isinstance(row, Rejected):
                prompt = template.render(row.step.problem, row.step.steps, row.step.step_index)
                for identifier, texts in chosen(row):
                    if identifier in kept:
                        dataset.write(identifier, row.step, prompt, texts, part(row))
        return dataset.finish(counts={**summed, counted: len(kept)}, dropped=ordered, made_from=analyses.provenance)


def _balanced(groups: dict[tuple[str, bool], list[str]], seed: int) -> dict[tuple[str, bool], list[str]]:
    """As many rows with Yes as with No, in each part; of the more frequent verdict a random choice."""

    def thinned(part: str, ids: list[str]) -> list[str]:
        fewest = min(len(groups.get((part, label), ())) for label in (True, False))
        return sorted(ids, key=lambda identifier: order_key(identifier, seed))[:fewest]

    return {(part, label): thinned(part, ids) for (part, label), ids in groups.items()}
