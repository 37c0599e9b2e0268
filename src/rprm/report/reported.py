"""Runs as a page shows them, each read once: its figures, what its charts show, some of its solutions."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from rprm.benchmarks import Benchmark, BenchmarkItems, Figure, Measurement, measure, scores_of
from rprm.benchmarks.cost import cost_of
from rprm.benchmarks.curve import Curve, k_curve
from rprm.errors import RprmError, RunError
from rprm.records import SolutionReward, StepReward
from rprm.report.charts import Chart, Line
from rprm.report.solutions import conclusion
from rprm.rewarders.base import Totals, read_rewards
from rprm.runs import read_manifest

MAX_TEXT, MAX_STEPS = 4_000, 60  #: characters of a text that are shown, and steps of a solution
MAX_CHARACTERS = 12_000_000  #: of all solutions of a page: beyond that no more of them are shown
_LAST_STEP = 15  # later ones are counted with it
_UNTIL = "judge with --stopping none --all-steps"

#: What became of a solution, by its class in the page.
KINDS = {
    "missed": "missed", "alarm": "false alarm", "early": "wrong step", "open": "not judged", "right": "right",
    "unlabelled": "no label", "unsolved": "not solved", "ungraded": "not graded", "solved": "solved",
}  # fmt: skip


def cut(text: str) -> str:
    """The beginning of a text that is long, and how much follows."""
    return text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]} … ({len(text) - MAX_TEXT:,} more characters)"


@dataclass(frozen=True)
class Shown:
    """How much of the solutions a page shows of each run."""

    solutions: int  #: of each kind
    analyses: int  #: of a step
    characters: int = MAX_CHARACTERS


@dataclass(frozen=True)
class Example:
    """A solution to show: `judged` and `marks` (what is to be said) are of steps, by their indices."""

    kind: str
    id: str
    said: str
    problem: str
    steps: Sequence[str]
    judged: Mapping[int, StepReward]
    marks: Mapping[int, str] = field(default_factory=dict)

    @property
    def indices(self) -> list[int]:
        """The steps to show: of a long solution the first and those that matter; a critic's analyses are the last's."""
        return [at for at in range(len(self.steps)) if at < MAX_STEPS or at in self.marks or at == len(self.steps) - 1]

    def size(self, shown: Shown) -> int:
        """How many characters it takes on the page."""
        judged = (self.judged[at].analyses[: shown.analyses] for at in self.indices if at in self.judged)
        texts = [self.problem, *(self.steps[at] for at in self.indices), *(one.text for few in judged for one in few)]
        return sum(min(len(text), MAX_TEXT) for text in texts)


@dataclass
class Reported:
    """A run. `why_not` says why it has no figures, and a text in place of a curve why there is none."""

    name: str
    folder: Path
    heading: str
    shown: Shown
    notes: list[str] = field(default_factory=list)
    benchmark: str = ""
    usage: Totals = field(default_factory=Totals)
    measured: Measurement | None = None
    why_not: str = ""
    thresholds: Line | str = ""  #: the headline at each threshold
    curve: Curve | str = ""  #: and at each K
    charts: Sequence[Chart] = ()

    def __post_init__(self) -> None:
        self.manifest = read_manifest(self.folder)
        self.settings = self.manifest["settings"]
        self.counts: Counter[str] = Counter()
        self.examples: list[Example] = []
        self._kept: Counter[str] = Counter()
        self._size = 0
        if self.manifest.get("status") != "complete":
            self.notes.append("not finished: all figures are of the rows that it has so far")

    @property
    def kinds(self) -> list[tuple[str, str, int, int]]:
        """Class and name of each kind, how many solutions there are of it, and how many are shown."""
        return [(kind, name, self.counts[kind], self._kept[kind]) for kind, name in KINDS.items() if self.counts[kind]]

    def add(self, example: Example) -> None:
        """Count a solution, and keep it where fewer of its kind are kept than are to be shown."""
        kind, size = example.kind, example.size(self.shown)
        self.counts[kind] += 1
        if self._kept[kind] < self.shown.solutions and self._size + size <= self.shown.characters:
            self._kept[kind] += 1
            self._size += size
            self.examples.append(example)


def read_judged(
    run: Reported, benchmark: Benchmark, items: BenchmarkItems[Any], *, num_resamples: int, seed: int
) -> None:
    """Read a run of `rprm bench` or `rprm judge`, whose solutions are `items`. `CorruptRun` where it is damaged."""
    settings, by_id, rewards = run.settings, {item.id: item for item in items.items}, []
    run.usage.max_tokens, threshold = settings.of("max_tokens", int | None), settings.of("threshold", float)
    for reward in read_rewards(run.folder):
        run.usage.add(reward)
        if (item := by_id.get(reward.id)) is None:
            raise RunError(f"{run.folder} holds {reward.id!r}, which is not in the data that it says it judged")
        run.add(_example(reward, item))
        rewards.append(_without_texts(reward))
    # Those that are judged so far, and have a label to measure them by.
    judged = {reward.id for reward in rewards}
    known = tuple(item for item in items.items if item.id in judged and (run.benchmark or item.label is not None))
    if len(known) < len(judged):
        run.notes.append(f"{len(judged) - len(known):,} solutions have no label, and are in no figure")
    if not known:
        run.why_not = "no solution that is judged has a label" if judged else "no solution is judged yet"
        return
    items = replace(items, items=known)
    how = {"allow_missing": True, **benchmark.own_flags(run.folder)}
    resampled: dict[str, Any] = {"threshold": threshold, "num_resamples": num_resamples, "seed": seed, **how}
    settled = None if settings.get("stopping", "none") == "none" else threshold
    try:
        scores = scores_of(rewards, settled_at=settled, last_step=benchmark.judged == "last step")
        scores = replace(scores, cost=cost_of(run.folder))
        run.measured = measure(benchmark.tally, items, scores, right=benchmark.right, **resampled)
    except RprmError as error:
        run.why_not = str(error)
        return
    cut_short = "; early stopping cut rewards short of full means" * (settled is not None)
    run.charts = list(_charts(run.name, benchmark, items, rewards, cut_short))
    if run.measured.figures[run.measured.headline].value is None:
        run.curve = run.thresholds = "its figure is undefined, for want of right or of wrong solutions"
        return
    is_critic = settings.get("rewarder") == "critic"
    try:
        if run.usage.num_analyses:
            run.curve = k_curve(benchmark, items, rewards, is_critic=is_critic, **resampled)
    except RprmError as error:
        run.curve = str(error)
    if is_critic and benchmark.judged == "first error":
        run.thresholds = "a critic names first errors itself, no threshold decides them"
    elif settled is not None:
        run.thresholds = f"early stopping settled the rewards at {threshold:g}: {_UNTIL}"
    elif benchmark.judged != "last step" and any(len(reward.steps) < reward.num_steps for reward in rewards):
        run.thresholds = f"solutions end at their first error: {_UNTIL}"
    else:
        tallies = [(at / 20, benchmark.tally(items, scores, threshold=at / 20, **how)) for at in range(1, 20)]
        run.thresholds = Line(run.name, [(at, Figure(one.by_name[one.headline])) for at, one in tallies])


def _example(reward: SolutionReward, item: Any) -> Example:
    found, label = reward.first_error, reward.label
    kind = "right" if found == label else "alarm" if label == -1 else "missed" if found == -1 else "early"
    kind = "open" if found is None else "unlabelled" if label is None else kind
    marks = {} if label is None else {label: "labelled as the first error"}
    if found is not None:
        marks[found] = f"first error found here{', as labelled' * (found == label)}"
    judged = {step.step_index: step for step in reward.steps}
    return Example(kind, reward.id, conclusion(reward)[0], item.solution.problem, item.solution.steps, judged, marks)


def _without_texts(reward: SolutionReward) -> SolutionReward:
    steps = [
        step.model_copy(update={"analyses": tuple(one.model_copy(update={"text": ""}) for one in step.analyses)})
        for step in reward.steps
    ]
    return reward.model_copy(update={"steps": tuple(steps)})


def _charts(
    name: str, benchmark: Benchmark, items: BenchmarkItems[Any], rewards: Iterable[SolutionReward], note: str
) -> Iterator[Chart]:
    """Are rewards true as probabilities, and how do they go with a step's place? Of steps known right or wrong."""
    by_id = {item.id: item for item in items.items}
    bins: defaultdict[int, list[tuple[float, bool]]] = defaultdict(list)
    places: defaultdict[int, list[tuple[float, bool]]] = defaultdict(list)
    for reward in (reward for reward in rewards if reward.id in by_id):
        item = by_id[reward.id]
        truth = dict(enumerate(benchmark.right(item) if benchmark.right else ()))
        if benchmark.judged == "last step":
            truth = {reward.num_steps - 1: item.solution.label == -1}
        for step in reward.steps:
            if step.reward is not None and (right := truth.get(step.step_index)) is not None:
                bins[min(9, int(step.reward * 10))].append((100 * step.reward, right))
                places[min(step.step_index + 1, _LAST_STEP)].append((100 * step.reward, right))
    if not bins:
        return
    total, points, error = sum(map(len, bins.values())), [], 0.0
    for _, few in sorted(bins.items()):
        mean, rights = fmean(value for value, _ in few), [right for _, right in few]
        points.append((mean, _share(rights)))
        error += abs(len(few) * mean - 100 * sum(rights)) / total
    text = (
        "Of the steps in each tenth of rewards, the share that is right, with its 95% Wilson interval; on the dotted "
        f"line rewards are probabilities. Bars: where the {total:,} steps with a label and a reward lie. Expected "
        f"calibration error: {error:.1f} points{note}."
    )
    bars = [(10.0 * at, 10.0 * at + 10, len(few) / total) for at, few in bins.items()]
    shares, ticks, axis = [Line("share of right steps", points)], range(0, 101, 20), "mean reward, in percent"
    yield Chart("reliability", f"Reliability of {name}", axis, shares, ticks, text, is_whole=True, shares=bars)
    by_place, lines = sorted(places.items()), []
    for word, kind in (("right", True), ("wrong", False)):
        means = [(at, _mean([value for value, right in few if right is kind])) for at, few in by_place]
        lines.append(Line(f"mean reward of {word} steps", means))
    lines.append(Line("share of right steps", [(at, _share([right for _, right in few])) for at, few in by_place]))
    last = by_place[-1][0]
    text = "The last line is what position alone tells. Intervals are 95%."
    text += f" {last} stands for all later steps too." * (last == _LAST_STEP)
    ticks_at = sorted({1, *range(5, last + 1, 5), last})
    yield Chart("positions", f"Rewards of {name} by position", "step", lines, ticks_at, text, is_whole=True)


def _share(found: Sequence[bool]) -> Figure:
    """A share in percent, with Wilson's 95% interval."""
    n, share, z = len(found), sum(found) / len(found), 1.96
    middle, half = share + z * z / (2 * n), z * math.sqrt(share * (1 - share) / n + (z / (2 * n)) ** 2)
    low, high = (100 * end / (1 + z * z / n) for end in (middle - half, middle + half))
    return Figure(100 * share, max(0.0, low), min(100.0, high))


def _mean(values: Sequence[float]) -> Figure:
    """A mean of percents, with its 95% interval by the normal approximation; undefined of none."""
    if len(values) < 2:
        return Figure(values[0] if values else None)
    mean, half = fmean(values), 1.96 * stdev(values) / math.sqrt(len(values))
    return Figure(mean, max(0.0, mean - half), min(100.0, mean + half))
