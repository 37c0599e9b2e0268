"""A benchmark is one record: `rprm bench NAME`, comparisons and tables are made from it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from rprm.benchmarks.items import BenchmarkItems
from rprm.benchmarks.position import position_only
from rprm.benchmarks.scores import Scores, with_false_alarms
from rprm.benchmarks.tally import DEFAULT_RESAMPLES, Figure, Tally
from rprm.files import read_json
from rprm.rewarders.base import Totals


@dataclass(frozen=True, eq=False, kw_only=True)
class Measurement(Tally):
    """A tally with its figures: one run on one benchmark."""

    items: BenchmarkItems[Any]
    scores: Scores
    figures: Mapping[str, Figure]
    undefined_resamples: Mapping[str, int]  #: by figure, how many left it undefined, and are not in its interval
    num_resamples: int
    seed: int
    position: Mapping[str, float | None] = field(default_factory=dict)  #: the figures of the steps' indices alone

    @property
    def num_unused(self) -> int:
        """Scored items that are not among the benchmark's."""
        return len(self.scores.p_yes.keys() - {item.id for item in self.items.items})

    def as_dict(self) -> dict[str, Any]:
        """One JSON object."""
        return {
            "benchmark": self.benchmark, "threshold": self.threshold, "figures": nested(self.figures),
            **self.total_coverage.as_dict(),
            "by": {name: coverage.as_dict() for name, coverage in self.coverage.items()},
            "missing_items": list(self.missing), "rejected_rows": len(self.items.rejected),
            "unused_scores": self.num_unused, "repeated_scores": list(self.scores.repeated),
            "position_only": nested(self.position),
            "resamples": self.num_resamples, "undefined_resamples": dict(self.undefined_resamples), "seed": self.seed,
            "false_alarms": dict(self.false_alarms),
            "usage": self.scores.usage and usage_as_dict(self.scores),
            "time": self.scores.cost.time_as_dict() if self.scores.usage else None,
            "data": [{"name": source.name, "digest": source.digest} for source in self.items.sources],
            "notes": list(self.notes),
        }  # fmt: skip


def usage_as_dict(scores: Scores) -> dict[str, Any]:
    """What judging cost, and what it failed to reach; steps after an exit at the first error are not counted."""
    usage, cost = scores.usage or Totals(), scores.cost
    tokens, steps, solutions = usage.num_generated_tokens, usage.num_steps_judged, usage.num_solutions
    return {
        "tokens": tokens, "tokens_per_step": tokens / steps if steps else None,
        "tokens_per_solution": tokens / solutions if solutions else None, "prompt_tokens": scores.num_prompt_tokens,
        "parameters": cost.parameters, "flops": scores.flops,
        "solutions": solutions, "steps": steps, "uncovered_steps": usage.num_steps_uncovered,
        "analyses": usage.num_analyses, "analyses_without_verdict": usage.num_analyses_without_verdict,
        "analyses_forced": usage.num_analyses_forced,
    }  # fmt: skip


def measure(
    tally: Callable[..., Tally], items: BenchmarkItems[Any], scores: Scores, *, num_resamples: int = DEFAULT_RESAMPLES,
    seed: int = 0, right: Callable[[Any], Sequence[bool]] | None = None, **options: Any,
) -> Measurement:  # fmt: skip
    """Measure a run: the figures of a benchmark's `tally` of `items`, `scores` and `options`, with intervals; with
    `right` (see `Benchmark`) also what the steps' indices alone would give."""
    counted = with_false_alarms(tally(items, scores, **options), items, scores)
    figures, undefined = counted.with_intervals(num_resamples, seed)
    return Measurement(
        **vars(counted), items=items, scores=scores, figures=figures, undefined_resamples=undefined,
        num_resamples=num_resamples, seed=seed, position=position_only(tally, items, right) if right else {},
    )  # fmt: skip


def nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """{"math.f1": x, "overall": y} -> {"math": {"f1": x}, "overall": y}; figures as dicts."""
    tree: dict[str, Any] = {}
    for name, value in flat.items():
        group, dot, leaf = name.rpartition(".")
        (tree.setdefault(group, {}) if dot else tree)[leaf] = value.as_dict() if isinstance(value, Figure) else value
    return tree


@dataclass(frozen=True)
class Flag:
    """An option of a benchmark's command, off by default. With `help` alone it is passed to the tally by its name.

    `further(items, scores, allow_missing=, num_resamples=, seed=)` gives a result with `as_dict()` and `table()`, for
    which every step is judged in full.
    """

    help: str
    items: Callable[[BenchmarkItems[Any]], BenchmarkItems[Any]] | None = None  #: changes them before they are judged
    further: Callable[..., Any] | None = None


@dataclass(frozen=True)
class Benchmark:
    """A benchmark."""

    name: str  #: of its command, and in manifests
    help: str
    read: Callable[..., BenchmarkItems[Any]]  #: `(data, revision=)`
    tally: Callable[..., Tally]  #: `(items, scores, threshold=, allow_missing=, **flags)`
    hub: str | None = None  #: its data set on the hub; None where the data must be named
    group: str | None = None  #: the attribute of an item within whose values `--limit` counts
    judged: Literal["every step", "first error", "last step"] = "every step"  #: of each solution
    #: Which steps of an item are right, from the first on, as far as it is known: for the row of `position_only`.
    right: Callable[[Any], Sequence[bool]] | None = None
    flags: Mapping[str, Flag] = field(default_factory=dict)  #: further options of its command

    def own_flags(self, run: Path) -> dict[str, bool]:
        """The flags of the tally that a run folder was measured with, by its `measurement.json`."""
        path = run / "measurement.json"
        before = read_json(path) if path.exists() else {}
        names = [name for name, flag in self.flags.items() if not flag.items and not flag.further]
        return {name: True for name in names if before.get(name) is True}
