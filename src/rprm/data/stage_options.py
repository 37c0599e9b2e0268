"""Settings of the stages that make training data, each an option of the stage's command; docs/data.md says what for.

The paper is R-PRM, arXiv 2503.21295; its code is NJUNLP/R-PRM.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import asdict, dataclass
from typing import Annotated, Literal

from rprm import ranges
from rprm.errors import InputError

#: Tokens in an n-gram, and the share of a problem's n-grams that makes it a benchmark's.
NGRAM, OVERLAP = 13, 0.5

#: Formats of labelled steps; `auto` tells each row's by its fields.
Format = Literal[
    "auto", "prm800k", "math-aps", "stepwise", "solutions", "math-shepherd", "er-prm", "rlhflow", "gsm8k", "steps"
]
#: What PRM800K's rating of 0 counts as: correct for OpenAI, wrong in TRL's copy of the data.
Neutral = Literal["correct", "wrong", "drop"]
#: What is made of a solution of which no more is known than whether its final answer is right.
Outcomes = Literal["whole", "steps"]


@dataclass(frozen=True)
class StepOptions:
    """What the formats leave open."""

    neutral: Annotated[Neutral, "PRM800K: what a rating of 0 counts as."] = "correct"
    keep_quality_control: Annotated[bool, "--keep-quality-control", "PRM800K: use what screened the labelers."] = False
    keep_unfinished: Annotated[bool, "--keep-unfinished", "PRM800K: use solutions that were given up."] = False
    after_error: Annotated[bool, "--after-error", "Sets with a label a step: use those after the first error."] = False
    above: Annotated[
        ranges.ShareBelow1, "Soft labels: a step is right where its own is above this. math-aps was made with 0.5."
    ] = 0.0
    outcomes: Annotated[
        Outcomes,
        "Where the final answer's label is all: whole: of the solution as one step; steps: of its steps, if right.",
    ] = "whole"
    wrong_share: Annotated[ranges.Share, "gsm8k: share of wrong steps to aim at."] = 0.5
    seed: Annotated[ranges.Seed, "gsm8k: of the edits that make steps wrong."] = 0

    def __post_init__(self) -> None:
        ranges.check(self, InputError)


@dataclass(frozen=True)
class SamplingOptions:
    """How analyses of labelled steps are sampled."""

    num_analyses: Annotated[ranges.Draws, "-n", "--num-analyses", "Analyses of each step."] = 3
    temperature: Annotated[ranges.Temperature, "Of the analyses."] = 0.4
    top_p: Annotated[ranges.TopP, "Of the analyses."] = 0.95
    max_tokens: Annotated[ranges.Tokens, "Longest analysis, in tokens."] = 2048

    def __post_init__(self) -> None:
        ranges.check(self, InputError)


#: `paper` is the paper's teacher: 4 analyses at temperature 0.4 of up to 8,192 tokens; top-p 0.95 is its script's
#: (src/utils/inference.py), and so are the 3 by default (src/scripts/examples/generate-PRM-CoT.sh). 2,048 is ours.
SAMPLING_PRESETS = {"default": SamplingOptions(), "paper": SamplingOptions(num_analyses=4, max_tokens=8192)}


@dataclass(frozen=True)
class RolloutOptions:
    """How steps are labelled by completions. 8 of each, any of them right, are Math-Shepherd's (arXiv 2312.08935)."""

    num_completions: Annotated[ranges.Draws, "-n", "--num-completions", "Completions of each beginning."] = 8
    above: Annotated[
        ranges.ShareBelow1, "A step is right where the share of right completions is above this; 0: where any is."
    ] = 0.0
    method: Annotated[
        Literal["in-order", "binary", "all"],
        "Steps to look at: in-order: up to the first wrong one; binary: as OmegaPRM searches; all: every one.",
    ] = "in-order"
    soft: Annotated[
        bool, "--soft", "Draw all completions.  [default: no more than can change whether the step is right]"
    ] = False

    def __post_init__(self) -> None:
        ranges.check(self, InputError)

    @property
    def settings(self) -> dict[str, int | float | str | bool]:
        """What labels depend on."""
        return asdict(self)


@dataclass(frozen=True)
class InjectOptions:
    """Which right steps are made wrong, and how."""

    per_solution: Annotated[ranges.Draws, "-n", "--per-solution", "Wrong versions to try of each solution."] = 1
    errors: Annotated[
        str | None, {"metavar": "LIST"}, "Kinds of errors, with commas between them.  [default: all that there are]"
    ] = None
    seed: Annotated[ranges.Seed, "Of the whole run."] = 0

    def __post_init__(self) -> None:
        ranges.check(self, InputError)


def is_held_out(problem: str, share: float, seed: int = 0) -> bool:
    """Whether a problem is among the held-out share, whatever its case and spacing; more are as it grows."""
    check_share(share)
    return _unit(f"split\0{seed}\0{' '.join(problem.casefold().split())}") < share


def check_share(share: float) -> None:
    """Refuse a share of the problems that would leave none, or next to none, to train on."""
    if not 0.0 <= share <= 0.99:
        raise InputError(f"a share of {share} of the problems cannot be held out; give a number from 0 to 0.99")


def order_key(identifier: str, seed: int) -> float:
    """A pseudo-random number in [0, 1) for a row: sorting by it shuffles, whatever other rows there are."""
    return _unit(f"order\0{seed}\0{identifier}")


def _unit(text: str) -> float:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()) / 2**64


#: Options that every command which chooses rows has. The split is by problem, and every stage of one seed splits alike.
Balance = Annotated[bool, "--balance/--no-balance", "As many Yes as No in each part, by thinning out."]
ValidationShare = Annotated[ranges.HeldOut, "--validation", "Share of the problems to hold out for validation."]
SplitSeed = Annotated[ranges.Seed, "--seed", "Of the split and of what is thinned out."]


@dataclass(frozen=True)
class ColdStartOptions:
    """Which analyses become rows."""

    per_step: Annotated[ranges.Draws, "Most analyses kept of one step."] = 1
    balance: Balance = True
    validation_share: ValidationShare = 0.05
    seed: SplitSeed = 0

    def __post_init__(self) -> None:
        ranges.check(self, InputError)


@dataclass(frozen=True)
class PairOptions:
    """Which analyses are paired. Accuracies are of well-formed analyses."""

    per_step: Annotated[ranges.Draws, "Most pairs of one step."] = 1
    min_accuracy: Annotated[ranges.Share, "Leave out steps of which fewer analyses agree with the label."] = 0.0
    max_accuracy: Annotated[ranges.Share, "Leave out steps of which more analyses agree with the label."] = 1.0
    max_length_ratio: Annotated[ranges.Ratio | None, "Largest length ratio within a pair, in tokens."] = None
    min_repeats: Annotated[ranges.Draws, "Samples that an analysis must stand for to be chosen."] = 1
    balance: Balance = True
    validation_share: ValidationShare = 0.05
    seed: SplitSeed = 0

    def __post_init__(self) -> None:
        ranges.check(self, InputError)
        low, high = self.min_accuracy, self.max_accuracy
        if low > high:
            raise InputError(f"an accuracy from {low} to {high} is no band; give 0 <= low <= high <= 1")


#: `published` is the filter of the script (`--filter` of src/utils/operate-PRM-CoT-data_paired.py): steps of which more
#: than a third of the analyses agree, two pairs of each. The script's pairs share the chosen analysis; ours share none.
PAIR_PRESETS = {"default": PairOptions(), "published": PairOptions(per_step=2, min_accuracy=math.nextafter(1 / 3, 1.0))}
