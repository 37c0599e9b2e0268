"""A run of judged solutions, read once for a page: its figures, what its charts show, some of its solutions."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

from rprm.benchmarks import Benchmark, BenchmarkItems, Figure, Measurement, Scores, measure, scores_of
from rprm.benchmarks.curve import Curve, k_curve
from rprm.errors import BenchmarkError, RprmError
from rprm.files import read_json
from rprm.records import Solution, SolutionReward
from rprm.report.charts import Chart, Line
from rprm.report.solutions import analysis_title, conclusion
from rprm.rewarders.base import Totals
from rprm.runs import FORMAT, read_manifest, read_results

MAX_TEXT, MAX_STEPS = 4_000, 60  #: characters of a text that are shown, and steps of a solution
MAX_CHARACTERS = 12_000_000  #: of all solutions of a page: beyond that no more of them are shown
_LAST_STEP = 15  # later ones are counted with it
_THRESHOLDS = [percent / 100 for percent in range(5, 100, 5)]

#: What became of a solution, by its class in the page.
KINDS = {
    "missed": "missed", "alarm": "false alarm", "early": "wrong step", "open": "not judged", "right": "right",
    "unlabelled": "no label", "unsolved": "not solved", "ungraded": "not graded", "solved": "solved",
}  # fmt: skip


@dataclass(frozen=True)
class Shown:
    """How much of the solutions a page shows of each run."""

    solutions: int
    analyses: int  #: of a step
    characters: int = MAX_CHARACTERS


@dataclass
class StepView:
    """A step as the page shows it: `state` is one of right, wrong, open (no reward) and skipped (not judged)."""

    number: int
    text: str
    reward: float | None = None
    state: str = "skipped"
    notes: Sequence[str] = ()
    analyses: Sequence[tuple[str, str]] = ()
    num_hidden: int = 0  #: analyses that are not shown


@dataclass
class SolutionView:
    """A solution as the page shows it."""

    kind: str
    id: str
    conclusion: str
    problem: str | None
    steps: list[StepView]
    num_hidden: int = 0  #: steps that are not shown
    others: Sequence[tuple[str, str]] = ()  #: other candidates of its problem

    @property
    def size(self) -> int:
        steps = (text for step in self.steps for text in (step.text, *(pair[1] for pair in step.analyses)))
        return sum(map(len, chain((self.problem or "",), steps, (pair[1] for pair in self.others))))


@dataclass
class Sample:
    """Some of many solutions: of each kind the first, as evenly as there are."""

    shown: Shown
    counts: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    kept: dict[str, list[SolutionView]] = field(default_factory=lambda: defaultdict(list))

    def add(self, kind: str, view: Callable[[], SolutionView]) -> None:
        self.counts[kind] += 1
        if len(self.kept[kind]) < self.shown.solutions:
            self.kept[kind].append(view())

    def views(self) -> list[SolutionView]:
        """Those that are shown, kind by kind."""
        found, size = [], 0
        for view in filter(None, chain.from_iterable(zip_longest(*self.kept.values()))):
            if len(found) < self.shown.solutions and size + view.size <= self.shown.characters:
                found.append(view)
                size += view.size
        return sorted(found, key=lambda view: list(KINDS).index(view.kind))


@dataclass
class Judged:
    """A run of judged solutions; `why_not` says why it has no figures."""

    name: str
    folder: Path
    manifest: Mapping[str, Any]
    benchmark: Benchmark
    heading: str
    usage: Totals
    sample: Sample
    measured: Measurement | None = None
    why_not: str = ""
    thresholds: Line | str = ""  #: the headline at each threshold, or why there is none
    curve: Curve | str = ""  #: and at each K
    charts: Sequence[Chart] = ()
    notes: Sequence[str] = ()


def cut(text: str) -> str:
    """The beginning of a text that is long, and how much follows."""
    return text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]} … ({len(text) - MAX_TEXT:,} more characters)"


def read_judged(
    name: str, folder: Path, benchmark: Benchmark, heading: str, items: BenchmarkItems[Any] | None,
    solutions: Sequence[Solution], shown: Shown, *,
    labelled: Callable[[SolutionReward], Any] = lambda reward: None, num_resamples: int, seed: int,
) -> Judged:  # fmt: skip
    """Read a run of `rprm bench` or `rprm judge`. `items` are the benchmark's; of other solutions (None) `labelled`
    makes one where it can. `solutions` are in the order of the input, as far as they are at hand. `CorruptRun` where
    the run is damaged."""
    manifest = read_manifest(folder)
    settings, sample, rewards = manifest["settings"], Sample(shown), []
    made: list[Any] = []
    for place, reward in enumerate(read_results(folder, SolutionReward.read_back)):
        if settings.get(FORMAT, 1) < 2 and reward.uncovered and reward.first_error == -1:
            # -1 was written also where it was not known.
            reward = reward.model_copy(update={"first_error": None})
        solution = solutions[place] if place < len(solutions) and solutions[place].id == reward.id else None
        sample.add(_kind(reward), lambda one=reward, of=solution: _view(one, of, settings["threshold"], shown))  # type: ignore[misc]
        made += filter(None, [labelled(reward)])
        rewards.append(_without_texts(reward))
    usage = Totals(max_tokens=settings.get("max_tokens"))
    for reward in rewards:
        usage.add(reward)
    run = Judged(name, folder, manifest, benchmark, heading, usage, sample)
    run.notes = [f"not finished: {len(rewards):,} solutions so far, and all figures are of these"] * (
        manifest.get("status") != "complete"
    )
    if items is None:
        items = BenchmarkItems(tuple(made))
        if 0 < len(made) < len(rewards):
            run.notes = [*run.notes, f"{len(rewards) - len(made):,} solutions have no label, and are in no figure"]
    elif run.notes:
        judged = {reward.id for reward in rewards}
        items = replace(items, items=tuple(item for item in items.items if item.id in judged))
    if not items.items:
        run.why_not = "no solution has been judged yet" if not rewards else "no solution has a label to measure it by"
        return run
    stopping, is_critic = settings.get("stopping", "none"), settings.get("rewarder") == "critic"
    is_last = benchmark.judged == "last step"
    settled = None if stopping == "none" else float(settings["threshold"])
    how = {"threshold": settings["threshold"], "num_resamples": num_resamples, "seed": seed, "allow_missing": True}
    # What a benchmark's own flags changed in its figures stands beside the run.
    flags = [flag for flag, one in benchmark.flags.items() if not one.items and not one.further]
    path = folder / "measurement.json"
    before = read_json(path) if path.exists() else {}
    of_tally = {flag: True for flag in flags if before.get(flag) is True}
    try:
        scores = scores_of(rewards, settled_at=settled, last_step=is_last)
        run.measured = measure(benchmark.tally, items, scores, right=benchmark.right, **how, **of_tally)
    except RprmError as error:
        run.why_not = str(error)
        return run
    run.thresholds = _line(name, benchmark, items, scores, rewards, of_tally)
    try:
        run.curve = k_curve(benchmark, items, rewards, is_critic=is_critic, **how, **of_tally)
    except RprmError as error:
        run.curve = str(error)
    run.charts = list(_charts(name, _known_steps(benchmark, items, rewards), stopping))
    return run


def _line(
    name: str, benchmark: Benchmark, items: BenchmarkItems[Any], scores: Scores, rewards: Iterable[SolutionReward],
    flags: Mapping[str, bool],
) -> Line | str:  # fmt: skip
    """The headline by threshold, or why other thresholds than the run's own say nothing."""
    if scores.first_errors and benchmark.judged == "first error":
        return "a critic names first errors itself, no threshold decides them"
    if scores.settled_at is not None:
        return f"early stopping settled the rewards at {scores.settled_at:g}; judge with --stopping none --all-steps"
    if benchmark.judged != "last step" and any(len(reward.steps) < reward.num_steps for reward in rewards):
        return "the run ends solutions at their first error; judge with --stopping none --all-steps"
    points = []
    try:
        for at in _THRESHOLDS:
            tally = benchmark.tally(items, scores, threshold=at, allow_missing=True, **flags)
            points.append((at, Figure(tally.by_name[tally.headline])))
    except BenchmarkError as error:
        return str(error)
    return Line(name, points)


def _known_steps(
    benchmark: Benchmark, items: BenchmarkItems[Any], rewards: Iterable[SolutionReward]
) -> Iterator[tuple[int, float, bool]]:
    """The index and the reward of each step that is known to be right or wrong, and whether it is right."""
    by_id = {item.id: item for item in items.items}
    for reward in rewards:
        if (item := by_id.get(reward.id)) is None:
            continue
        truth = dict(enumerate(benchmark.right(item))) if benchmark.right else {}
        if benchmark.judged == "last step":
            truth = {reward.num_steps - 1: item.solution.label == -1}
        for step in reward.steps:
            if step.reward is not None and step.step_index in truth:
                yield step.step_index, step.reward, truth[step.step_index]


def _charts(name: str, steps: Iterable[tuple[int, float, bool]], stopping: str) -> Iterator[Chart]:
    """Are rewards true as probabilities, and how do they go with a step's place?"""
    found = list(steps)
    if not found:
        return
    bins: defaultdict[int, list[tuple[float, bool]]] = defaultdict(list)
    places: defaultdict[int, list[tuple[float, bool]]] = defaultdict(list)
    for index, reward, is_right in found:
        bins[min(9, int(reward * 10))].append((reward, is_right))
        places[min(index + 1, _LAST_STEP)].append((reward, is_right))
    points, error = [], 0.0
    for _, few in sorted(bins.items()):
        mean = sum(reward for reward, _ in few) / len(few)
        share = _wilson([is_right for _, is_right in few])
        points.append((100 * mean, share))
        error += len(few) / len(found) * abs(100 * mean - (share.value or 0.0))
    settled = "" if stopping == "none" else "; early stopping cut rewards short, so that they are not full means"
    yield Chart(
        "reliability", f"Reliability of {name}", "mean reward, in percent", [Line("share of right steps", points)],
        range(0, 101, 20), f"Of the steps in each tenth of rewards, the share that is right, with its 95% Wilson "
        f"interval; on the dotted line rewards are probabilities. Bars: where the {len(found):,} steps with a known "
        f"label lie. Expected calibration error: {error:.1f} points{settled}.",
        is_whole=True, has_diagonal=True,
        shares=[(10.0 * at, 10.0 * at + 10, len(few) / len(found)) for at, few in sorted(bins.items())],
    )  # fmt: skip
    lines = [
        Line(label, [(place, _mean([100 * reward for reward, right in few if right is is_right]))
                     for place, few in sorted(places.items())])
        for label, is_right in (("mean reward of right steps", True), ("mean reward of wrong steps", False))
    ]  # fmt: skip
    shares = [(place, _wilson([right for _, right in few])) for place, few in sorted(places.items())]
    last = max(places)
    yield Chart(
        "positions", f"Rewards of {name} by position", "step", [*lines, Line("share of right steps", shares)],
        sorted({1, *range(5, last + 1, 5), last}), "The third line is what position alone tells. Intervals are 95%"
        + (f"; {_LAST_STEP} stands for all later steps too." if last == _LAST_STEP else "."), is_whole=True,
    )  # fmt: skip


def _wilson(found: Sequence[bool]) -> Figure:
    """A share in percent, with Wilson's 95% interval."""
    n, z2 = len(found), 1.96**2
    share = sum(found) / n
    middle, half = share + z2 / (2 * n), 1.96 * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    return Figure(
        100 * share, *(max(0.0, min(100.0, 100 * end / (1 + z2 / n))) for end in (middle - half, middle + half))
    )


def _mean(values: Sequence[float]) -> Figure:
    """A mean, with its 95% interval by the normal approximation; undefined of none."""
    if len(values) < 2:
        return Figure(*values) if values else Figure(None)
    mean = math.fsum(values) / len(values)
    half = 1.96 * math.sqrt(math.fsum((one - mean) ** 2 for one in values) / (len(values) - 1) / len(values))
    return Figure(mean, max(0.0, mean - half), min(100.0, mean + half))


def _without_texts(reward: SolutionReward) -> SolutionReward:
    steps = [
        step.model_copy(update={"analyses": tuple(one.model_copy(update={"text": ""}) for one in step.analyses)})
        for step in reward.steps
    ]
    return reward.model_copy(update={"steps": tuple(steps)})


def _kind(reward: SolutionReward) -> str:
    found, label = reward.first_error, reward.label
    if found is None or label is None:
        return "open" if found is None else "unlabelled"
    return "right" if found == label else "alarm" if label == -1 else "missed" if found == -1 else "early"


def _view(reward: SolutionReward, solution: Solution | None, threshold: float, shown: Shown) -> SolutionView:
    texts: Sequence[str] = solution.steps if solution else ()
    judged = {step.step_index: step for step in reward.steps}
    steps = []
    # Of a long solution also the steps that matter; the last has a critic's analyses.
    named = {reward.first_error, reward.label, reward.num_steps - 1}
    for index in (one for one in range(reward.num_steps) if one < MAX_STEPS or one in named):
        view = StepView(index + 1, cut(texts[index]) if index < len(texts) else "(its text is not at hand)")
        if (step := judged.get(index)) is not None:
            view.reward = step.reward
            view.state = "open" if step.reward is None else "wrong" if step.reward < threshold else "right"
            lost = f"{step.num_without_verdict:,} of {len(step.analyses):,} analyses without verdict"
            view.notes = [cut(step.failure)] if step.failure else [lost] * bool(step.num_without_verdict)
            view.analyses = [
                (analysis_title(number, one), cut(one.text))
                for number, one in enumerate(step.analyses[: shown.analyses], 1)
            ]
            view.num_hidden = len(step.analyses) - len(view.analyses)
        called, labelled = index == reward.first_error, index == reward.label
        view.notes = [*["first error found here"] * called, *["labelled as the first error"] * labelled, *view.notes]
        steps.append(view)
    problem = cut(solution.problem) if solution else None
    return SolutionView(_kind(reward), reward.id, conclusion(reward)[0], problem, steps, reward.num_steps - len(steps))
