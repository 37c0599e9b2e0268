"""What the lab's experiments came to: the figures behind each of the paper's effects, averaged over seeds.

An interval covers two things: which solutions were judged (bootstrap over them, paired where models are compared) and
which labelled steps, weights and samples a seed had (the spread of its values over seeds). With one seed, the first
alone.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rprm.benchmarks import (
    PROCESSBENCH,
    BenchmarkItems,
    ProcessBenchItem,
    Scores,
    StepItems,
    Tally,
    measure,
    read_processbench,
    resampled_sums,
    scores_of,
    step_scores,
    tally_processbench,
    tally_steps,
    threshold_curve,
)
from rprm.errors import RunError
from rprm.records import LabelledStep, SolutionReward
from rprm.runs import read_json_lines, read_manifest, read_results
from rprm.subcommands import is_complete
from rprm_lab.plan import EXPERIMENTS, Experiment, LabSettings, judged_with
from rprm_lab.world import STEPS

#: The column of a benchmark that is the mean over its sets, in tables of figures.
_AVERAGE = "average"
_NUM_RESAMPLES = 2_000
#: Standard errors on either side of a value that make a 95% interval.
_NORMAL = 1.96
RPRM, CLASSIFIER, CRITIC = "R-PRM", "classifier", "critic"
_MODELS = {"rprm": RPRM, "classifier": CLASSIFIER}

#: Of one seed: runs, each with its weight in a sum of their figures.
Terms = Sequence[tuple[float, Tally]]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure in percent, or a difference in points: the mean over seeds, its 95% interval, and each seed's value."""

    value: float
    low: float
    high: float
    by_seed: tuple[float, ...]

    @classmethod
    def of(cls, by_seed: Sequence[float], item_error: float) -> Estimate:
        """The mean over seeds.

        Args:
            by_seed: their values.
            item_error: standard error of the mean for the choice of what was measured on.
        """
        value = float(np.mean(by_seed))
        seed_variance = float(np.var(by_seed, ddof=1)) / len(by_seed) if len(by_seed) > 1 else 0.0
        margin = _NORMAL * (item_error**2 + seed_variance) ** 0.5
        return cls(value, value - margin, value + margin, tuple(map(float, by_seed)))

    def clipped(self) -> Estimate:
        """As a share: no interval reaches below 0 or above 100."""
        return replace(self, low=max(0.0, self.low), high=min(100.0, self.high))


def estimate(seeds: Sequence[Terms], figure: str | None = None, *, num_resamples: int = _NUM_RESAMPLES) -> Estimate:
    """A weighted sum of figures of runs, in the mean over seeds.

    A run alone has weight 1; a difference 1 and -1; the mean of G replicates 1/G each.

    Args:
        seeds: of each seed its runs; all on the same items.
        figure: its name; the headline (F1) by default.
        num_resamples: of the bootstrap over items.

    Raises:
        RunError: the runs are not on the same items.
    """
    tallies = [tally for terms in seeds for _, tally in terms]
    if len({tally.ids for tally in tallies}) != 1:
        raise RunError("the lab's runs are not on the same solutions; were they made with other settings?")
    weights = np.array([weight / len(seeds) for terms in seeds for weight, _ in terms])
    ends = np.cumsum([tally.counts.shape[1] for tally in tallies])

    def total(sums: NDArray[np.float64]) -> NDArray[np.float64]:
        parts = np.split(sums, ends[:-1], axis=-1)
        values = [_figure(tally, tally.figures_of(part), figure) for tally, part in zip(tallies, parts, strict=True)]
        return np.asarray(np.stack(values, axis=-1) @ weights)

    counts = np.concatenate([tally.counts for tally in tallies], axis=1)
    chunks = resampled_sums(counts, tallies[0].strata, num_resamples=num_resamples, seed=0)
    item_error = float(np.nanstd(np.concatenate([total(chunk) for chunk in chunks])))
    by_seed = [sum(weight * float(_figure(tally, tally.values, figure)) for weight, tally in terms) for terms in seeds]
    found = Estimate.of(by_seed, item_error)
    return found if (weights < 0).any() else found.clipped()


def _figure(tally: Tally, values: NDArray[np.float64], figure: str | None) -> NDArray[np.float64]:
    return np.asarray(values[..., tally.figure_names.index(figure or tally.headline)])


@dataclass
class Findings:
    """What is there to report; of an experiment that has not been run, nothing.

    Attributes:
        num_seeds: experiment -> seeds that have all of its runs.
        curves: experiment -> line -> x -> F1. By labelled steps, by round, by K.
        tables: experiment -> row -> column -> figure.
        effects: what the paper claims, by the names of `rprm_lab.page.claims`.
        label_share: labelled steps that R-PRM needs for the classifier's best F1, in percent of the classifier's; None
            where no size suffices.
    """

    num_seeds: dict[Experiment, int] = field(default_factory=dict)
    curves: dict[Experiment, dict[str, dict[int, Estimate]]] = field(default_factory=dict)
    tables: dict[Experiment, dict[str, dict[str, Estimate]]] = field(default_factory=dict)
    effects: dict[str, Estimate] = field(default_factory=dict)
    label_share: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """One JSON object."""
        return asdict(self)


def find(folder: str | Path, settings: LabSettings) -> Findings:
    """Read what there is in a lab's folder."""
    lab = _Lab(Path(folder), settings)
    for experiment in EXPERIMENTS:
        getattr(lab, experiment)()
    return lab.findings


class _Lab:
    """Reads the runs of a lab, experiment by experiment."""

    def __init__(self, folder: Path, settings: LabSettings) -> None:
        self.folder = folder
        self.settings = settings
        self.largest = settings.sizes[-1]
        self.findings = Findings()
        self._items: dict[str, BenchmarkItems[ProcessBenchItem]] = {}

    def data(self) -> None:
        sizes = self.settings.sizes
        names = {RPRM: "judged", CLASSIFIER: "classifier-judged"}
        seeds = self.seeds("data", *(f"size-{size}/{name}" for size in sizes for name in names.values()))
        if not seeds:
            return
        found = {
            line: {size: [self.tally_of(line, seed / f"size-{size}" / name) for seed in seeds] for size in sizes}
            for line, name in names.items()
        }
        curves = {line: {size: _mean(tallies) for size, tallies in by.items()} for line, by in found.items()}
        self.findings.curves["data"] = curves
        for size in sizes:
            difference = _difference(found[RPRM][size], found[CLASSIFIER][size])
            self.findings.effects[f"R-PRM over classifier, {size:,} steps"] = difference
        best = max(sizes, key=lambda size: curves[CLASSIFIER][size].value)
        enough = [size for size in sizes if curves[RPRM][size].value >= curves[CLASSIFIER][best].value]
        self.findings.label_share = 100.0 * enough[0] / best if enough else None

    def rounds(self) -> None:
        """Each round's model with the judge's K and with one analysis: DPO takes away noise, as a mean over K does.

        What the rounds come to is the model that they keep.
        """
        names = [f"size-{self.largest}/judged", *(f"judged-{place + 1}" for place in range(self.settings.num_rounds))]
        ways = {"": (RPRM, ""), "-once": (f"{RPRM}, K = 1", ", K = 1")}
        seeds = self.seeds("rounds", "rounds", *(name + ending for name in names for ending in ways))
        if not seeds:
            return
        kept = [_kept_round(seed / "rounds") for seed in seeds]
        curves = self.findings.curves.setdefault("rounds", {})
        for ending, (line, said) in ways.items():
            found = [[self.tally(seed / (name + ending)) for seed in seeds] for name in names]
            curves[line] = {place: _mean(tallies) for place, tallies in enumerate(found)}
            best = [found[place][row] for row, place in enumerate(kept)]
            self.findings.effects[f"preference rounds over cold start{said}"] = _difference(best, found[0])

    def scaling(self) -> None:
        if not (seeds := self.seeds("scaling", "scaling")):
            return
        counts = [2**power for power in range(self.settings.scaling_analyses.bit_length())]
        found = {count: [_replicated(self.replicates(seed / "scaling", count)) for seed in seeds] for count in counts}
        self.findings.curves["scaling"] = {RPRM: {count: estimate(terms) for count, terms in found.items()}}
        last = found[counts[-1]]
        for before, after in pairwise(counts):
            self.findings.effects[f"K = {after} over {before}"] = estimate(_against(found[after], found[before]))
        self.findings.effects[f"K = {counts[-1]} over 1"] = estimate(_against(last, found[1]))

    def teacher(self) -> None:
        counts = sorted({1, self.settings.num_analyses})
        student = f"size-{self.largest}/judged"
        if seeds := self.seeds("teacher", student, *(f"teacher-{count}" for count in counts)):
            students = [self.tally(seed / student) for seed in seeds]
            table = {f"{RPRM}, cold start, K = {self.settings.num_analyses}": {"F1": _mean(students)}}
            for count in counts:
                teachers = [self.tally(seed / f"teacher-{count}") for seed in seeds]
                table[f"teacher, K = {count}"] = {"F1": _mean(teachers)}
                self.findings.effects[f"student over teacher, K = {count}"] = _difference(students, teachers)
            self.findings.tables["teacher"] = table

    def types(self) -> None:
        if not (seeds := self.seeds("types", *(f"types/{name}" for name in _MODELS))):
            return
        table = self.findings.tables.setdefault("types", {})
        for name, model in _MODELS.items():
            tallies = [self.step_tally(seed / "types" / name) for seed in seeds]
            figures = {figure: figure for figure in ("f1", "wrong_acc", "correct_acc")} | {
                figure: figure.removesuffix(".accuracy").removeprefix("lab:")
                for figure in tallies[0].figure_names
                if figure.startswith("lab:")
            }
            row = {
                column: estimate([[(1.0, tally)] for tally in tallies], figure) for figure, column in figures.items()
            }
            table[model] = row

    def ood(self) -> None:
        if seeds := self.seeds("ood", *(f"ood/{name}" for name in _MODELS)):
            found = {
                model: [self.tally_of(model, seed / "ood" / name, "ood") for seed in seeds]
                for name, model in _MODELS.items()
            }
            self.findings.tables["ood"] = {model: {"F1": _mean(tallies)} for model, tallies in found.items()}
            self.findings.effects["R-PRM over classifier, out of distribution"] = _difference(
                found[RPRM], found[CLASSIFIER]
            )

    def guidance(self) -> None:
        runs = ["samples", *(f"{way}-{name}" for name in _MODELS for way in ("best-of-n", "guided"))]
        if not (seeds := self.seeds("guidance", *(f"guidance/{run}" for run in runs))):
            return
        rows: dict[str, list[dict[str, Any]]] = {}
        for seed in seeds:
            for row in _measured([seed / "guidance" / run for run in runs]):
                chosen_by = next((model for name, model in _MODELS.items() if row["run"].endswith(f"-{name}")), "")
                rows.setdefault(f"{row['method']}, {chosen_by}".strip(", "), []).append(row)
        whole = {name: found for name, found in rows.items() if len(found) == len(seeds)}
        table = self.findings.tables.setdefault("guidance", {})
        for name, found in whole.items():
            table[name] = {"solved": _from_figures([row["accuracy"][_AVERAGE] for row in found]).clipped()}
            for baseline in found[0]["differences"]:
                difference = _from_figures([row["differences"][baseline][_AVERAGE] for row in found])
                table[name][f"against {baseline}"] = difference
                self.findings.effects[f"{name} over {baseline}"] = difference

    def critic(self) -> None:
        """One pass of a critic over a solution, and K, beside K analyses of every step; from the same labels."""
        judged = {f"{RPRM}, K = {count}": judged_with(self.largest, count) for count in self.settings.votes}
        critics = {f"{CRITIC}, K = {count}": f"critic/judged-{count}" for count in self.settings.votes}
        if not (seeds := self.seeds("critic", *judged.values(), *critics.values())):
            return
        found = {name: [self.tally(seed / run) for seed in seeds] for name, run in (judged | critics).items()}
        table = self.findings.tables["critic"] = {}
        for name, run in (judged | critics).items():
            tokens = _tokens_of_a_solution([_rewards(seed / run) for seed in seeds])
            table[name] = {"F1": _mean(found[name]), "tokens of a solution": tokens}
        for critic, judge in product(critics, judged):
            difference = _difference(found[critic], found[judge])
            table[critic][f"F1 over {judge}"] = self.findings.effects[f"{critic} over {judge}"] = difference
        scores = scores_of(_rewards(seeds[0] / judged_with(self.largest, 1)))
        items, options = self.items("test", scores), {"allow_missing": True, "num_resamples": 1}
        measured = measure(PROCESSBENCH.tally, items, scores, right=PROCESSBENCH.right, **options)
        if (alone := measured.position.get(measured.headline)) is not None:
            table["the place of a step alone"] = {"F1": Estimate.of([alone], 0.0)}

    def seeds(self, experiment: Experiment, *runs: str) -> list[Path]:
        """Folders of the seeds that have all these runs, complete."""
        folders = [self.folder / f"seed-{seed}" for seed in range(self.settings.num_seeds)]
        found = [folder for folder in folders if all(is_complete(folder / run) for run in runs)]
        if found:
            self.findings.num_seeds[experiment] = len(found)
        return found

    def tally(self, run: Path, split: str = "test") -> Tally:
        """A run of `rprm bench processbench`, as it was measured."""
        rewards = _rewards(run)
        return self._tally(split, scores_of(rewards), read_manifest(run)["settings"].of("threshold", float))

    def tally_of(self, model: str, run: Path, split: str = "test") -> Tally:
        """A run of R-PRM as it was measured; of the classifier, at the threshold that is best on these very solutions.

        No threshold that the classifier could have chosen beforehand does better: of the 99 tried, it has the best.
        """
        if model != CLASSIFIER:
            return self.tally(run, split)
        scores = scores_of(_rewards(run))
        curve = threshold_curve(self.items(split, scores), scores, allow_missing=True)
        ranked = [(f1 if f1 is not None else -1.0, place) for place, f1 in enumerate(curve.f1[_AVERAGE])]
        return self._tally(split, scores, curve.thresholds[max(ranked)[1]])

    def replicates(self, run: Path, num_analyses: int) -> list[Tally]:
        """What a run with more analyses of each step would have come to with so many, over and over."""
        rewards = _rewards(run)
        whole = self.settings.scaling_analyses
        return [
            self._tally("test", Scores({reward.id: _means(reward, start, num_analyses) for reward in rewards}), 0.5)
            for start in range(0, whole, num_analyses)
        ]

    def step_tally(self, run: Path) -> Tally:
        """A run of `rprm bench steps`."""
        steps = read_json_lines(self.folder / "world" / "test" / STEPS)
        items = StepItems(tuple(LabelledStep.model_validate(step) for step in steps))
        threshold = read_manifest(run)["settings"].of("threshold", float)
        return tally_steps(items, step_scores(_rewards(run)), threshold=threshold, allow_missing=True)

    def _tally(self, split: str, scores: Scores, threshold: float) -> Tally:
        return tally_processbench(self.items(split, scores), scores, threshold=threshold, allow_missing=True)

    def items(self, split: str, scores: Scores) -> BenchmarkItems[ProcessBenchItem]:
        """The solutions of a split that have been judged."""
        if split not in self._items:
            self._items[split] = read_processbench(self.folder / "world" / split / "solutions.jsonl")
        return BenchmarkItems(tuple(item for item in self._items[split].items if item.id in scores.p_yes))


def _rewards(run: Path) -> list[SolutionReward]:
    return list(read_results(run, SolutionReward.model_validate))


def _measured(runs: Sequence[Path]) -> list[dict[str, Any]]:
    """The rows of `rprm bench mathematics` on runs of `rprm search`.

    Raises:
        RunError: it failed; the message has its own.
    """
    command = [sys.executable, "-m", "rprm", "bench", "mathematics", *map(str, runs), "--json"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, encoding="utf-8")
    if done.returncode:
        raise RunError(done.stderr.strip().removeprefix("rprm: ") or f"rprm bench mathematics: exit {done.returncode}")
    rows: list[dict[str, Any]] = json.loads(done.stdout)["rows"]
    return rows


def _tokens_of_a_solution(seeds: Sequence[Sequence[SolutionReward]]) -> Estimate:
    numbers = np.array(
        [[sum(one.num_tokens for step in row.steps for one in step.analyses) for row in rows] for rows in seeds]
    )
    return Estimate.of(numbers.mean(axis=1).tolist(), float(numbers.mean(axis=0).std() / numbers.shape[1] ** 0.5))


def _kept_round(rounds: Path) -> int:
    """The round whose model `rprm evolve` ended with; 0 is what it began with."""
    results = list(read_results(rounds, dict))
    return next(place for place, result in enumerate(results) if result["model"] == results[-1]["best"])


def _means(reward: SolutionReward, start: int, count: int) -> tuple[float | None, ...]:
    """Step rewards from `count` analyses, from `start` on."""
    rewards = []
    for step in reward.steps:
        found = [analysis.p_yes for analysis in step.analyses[start : start + count] if analysis.p_yes is not None]
        rewards.append(sum(found) / len(found) if found else None)
    return tuple(rewards)


def _mean(tallies: Sequence[Tally]) -> Estimate:
    return estimate([[(1.0, tally)] for tally in tallies])


def _difference(first: Sequence[Tally], second: Sequence[Tally]) -> Estimate:
    """First minus second, seed by seed."""
    return estimate([[(1.0, one), (-1.0, other)] for one, other in zip(first, second, strict=True)])


def _replicated(tallies: Sequence[Tally]) -> Terms:
    return [(1.0 / len(tallies), tally) for tally in tallies]


def _against(first: Sequence[Terms], second: Sequence[Terms]) -> list[Terms]:
    return [[*one, *((-weight, tally) for weight, tally in other)] for one, other in zip(first, second, strict=True)]


def _from_figures(figures: Sequence[dict[str, float]]) -> Estimate:
    """From each seed's own figure and interval. All seeds have the same problems: their errors count as one."""
    errors = [(figure["high"] - figure["low"]) / (2 * _NORMAL) for figure in figures]
    return Estimate.of([figure["value"] for figure in figures], float(np.mean(errors)))
