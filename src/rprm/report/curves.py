"""How a training by rewards went, as a picture: what it is paid for, and what it is wanted for."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rprm.benchmarks import Figure
from rprm.report.charts import Chart, Line

_NUM_TICKS = 5


def training_chart(rows: Sequence[Mapping[str, Any]]) -> Chart:
    """The rows of a GRPO training's `metrics.jsonl`: the process F1 of its evaluations beside the mean reward of what
    it sampled meanwhile. A reward of outcomes alone goes on rising, or stands, where F1 falls."""
    sampled = [row for row in rows if row.get("reward") is not None]
    lines = [
        Line("validation F1", [(row["step"], Figure(row["eval_f1"])) for row in rows if "eval_f1" in row]),
        Line("mean reward, times 100", [(row["step"], Figure(100.0 * row["reward"])) for row in sampled]),
        Line("groups skipped", [(row["step"], Figure(_share_skipped(row))) for row in sampled]),
    ]
    last = max((int(step) for one in lines for step, _ in one.points), default=1)
    width = math.ceil(max(last, 1) / _NUM_TICKS)
    return Chart("curve", "Validation F1 and training", "optimizer step", lines, range(0, last + width, width))


def _share_skipped(row: Mapping[str, Any]) -> float | None:
    """In percent."""
    num_skipped = row["num_all_right"] + row["num_all_wrong"] + row["num_all_equal"]
    return 100.0 * num_skipped / row["num_groups"] if row["num_groups"] else None
