"""ProcessBench, PRMBench, Hard2Verify and labelled steps: items in, figures with intervals out.

Read the items, judge their solutions (or read scores made elsewhere), measure, compare:

    items = read_processbench("data/processbench")
    scores = read_scores("scores.jsonl")
    print(measure_processbench(items, scores).figures["average.f1"])
"""

from functools import partial

from rprm.benchmarks.benchmark import Benchmark, Flag, Measurement, measure
from rprm.benchmarks.comparison import compare
from rprm.benchmarks.hard2verify import HARD2VERIFY, Hard2VerifyItem, read_hard2verify, tally_hard2verify
from rprm.benchmarks.items import BenchmarkItem, BenchmarkItems, Texts
from rprm.benchmarks.labelled_steps import StepItem, StepItems, step_scores, tally_steps
from rprm.benchmarks.mathematics import read_mathematics, read_problem_file
from rprm.benchmarks.prmbench import PRMBENCH, PRMBenchItem, read_prmbench, tally_prmbench
from rprm.benchmarks.processbench import (
    PROCESSBENCH,
    ProcessBenchItem,
    measure_held_out,
    read_processbench,
    tally_processbench,
    threshold_curve,
)
from rprm.benchmarks.scores import Scores, read_scores, scores_of
from rprm.benchmarks.tally import Coverage, Figure, ResultTable, TableLine, Tally, resampled_sums

measure_processbench = partial(measure, tally_processbench)
measure_prmbench = partial(measure, tally_prmbench)
measure_hard2verify = partial(measure, tally_hard2verify)
measure_steps = partial(measure, tally_steps)

__all__ = [
    "HARD2VERIFY", "PRMBENCH", "PROCESSBENCH", "Benchmark", "BenchmarkItem", "BenchmarkItems", "Coverage", "Figure",
    "Flag", "Hard2VerifyItem", "Measurement", "PRMBenchItem", "ProcessBenchItem", "ResultTable", "Scores", "StepItem",
    "StepItems", "TableLine", "Tally", "Texts", "compare", "measure", "measure_hard2verify", "measure_held_out",
    "measure_prmbench", "measure_processbench", "measure_steps", "read_hard2verify", "read_mathematics",
    "read_prmbench", "read_problem_file", "read_processbench", "read_scores", "resampled_sums", "scores_of",
    "step_scores", "tally_hard2verify", "tally_prmbench", "tally_processbench", "tally_steps", "threshold_curve",
]  # fmt: skip
