"""Labelled steps as a benchmark: the record of `rprm bench steps`."""

from __future__ import annotations

from rprm.benchmarks import Benchmark, StepItems, tally_steps
from rprm.data.steps import read_labelled_steps, steps_source
from rprm.reading import Rejected


def read_step_items(data: str, *, revision: str | None = None) -> StepItems:
    """The labelled steps of a run folder of `rprm data steps`, or of a file."""
    source = steps_source(data)
    rows = list(read_labelled_steps(source))
    return StepItems(
        items=tuple(row for row in rows if not isinstance(row, Rejected)),
        rejected=tuple(row for row in rows if isinstance(row, Rejected)),
        sources=(source.inspect(),),
    )


STEPS = Benchmark(
    name="steps",
    help="""Labelled steps: accuracy on wrong and on correct ones, their harmonic mean (F1), accuracy on each source.

    DATA is a run folder of `rprm data steps`, or a file of labelled steps. Each step is judged alone, the steps before
    it are only read. The share of analyses that reach a verdict unasked (well-formed) is measured too: --stopping none
    counts all of them.
    """,
    read=read_step_items,
    tally=tally_steps,
    judged="last step",
)
