"""ProcessBench and PRMBench: items in, figures with intervals out.

Read the items, judge their solutions (or read scores made elsewhere), measure, compare:

    items = read_processbench("data/processbench")
    scores = read_scores("scores.jsonl")
    print(measure_processbench(items, scores).figures["average.f1"])
"""

from rprm.benchmarks.comparison import Comparison, compare
from rprm.benchmarks.items import BenchmarkItems, PRMBenchItem, ProcessBenchItem, read_prmbench, read_processbench
from rprm.benchmarks.labelled_steps import LastStepRewarder, StepItems, measure_steps, step_scores, tally_steps
from rprm.benchmarks.mathematics import Problem, Problems, read_mathematics, read_problem_file
from rprm.benchmarks.prmbench import measure_prmbench, tally_prmbench
from rprm.benchmarks.processbench import (
    HeldOut,
    ThresholdCurve,
    measure_held_out,
    measure_processbench,
    tally_processbench,
    threshold_curve,
)
from rprm.benchmarks.scores import Scores, Usage, read_scores, scores_of
from rprm.benchmarks.tally import Coverage, Figure, Measurement, Tally

__all__ = [
    "BenchmarkItems",
    "Comparison",
    "Coverage",
    "Figure",
    "HeldOut",
    "LastStepRewarder",
    "Measurement",
    "PRMBenchItem",
    "Problem",
    "Problems",
    "ProcessBenchItem",
    "Scores",
    "StepItems",
    "Tally",
    "ThresholdCurve",
    "Usage",
    "compare",
    "measure_held_out",
    "measure_prmbench",
    "measure_processbench",
    "measure_steps",
    "read_mathematics",
    "read_prmbench",
    "read_problem_file",
    "read_processbench",
    "read_scores",
    "scores_of",
    "step_scores",
    "tally_prmbench",
    "tally_processbench",
    "tally_steps",
    "threshold_curve",
]
