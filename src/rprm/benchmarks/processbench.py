"""ProcessBench (arXiv 2412.06559; QwenLM/ProcessBench): solutions with their earliest wrong step.

How it is measured is in `first_errors`.
"""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any

from rprm.benchmarks.benchmark import Benchmark, Flag
from rprm.benchmarks.first_errors import (
    PROCESSBENCH_SUBSETS,
    ProcessBenchItem,
    measure_held_out,
    tally_processbench,
    threshold_curve,
)
from rprm.benchmarks.items import (
    BenchmarkItems,
    checked_solution,
    collected,
    json_object,
    open_sources,
    parsed_rows,
    subset_file,
    text_of,
    texts_of,
)
from rprm.benchmarks.tally import measure
from rprm.errors import InputError
from rprm.reading import Rejected

#: The hub data set of the benchmark's authors.
PROCESSBENCH_HUB = "Qwen/ProcessBench"


def read_processbench(
    data: str | Path = PROCESSBENCH_HUB, *, revision: str | None = None
) -> BenchmarkItems[ProcessBenchItem]:
    """Read ProcessBench.

    Args:
        data: a folder with `gsm8k.jsonl`, `math.jsonl`, ... (or `.json`, `.jsonl.gz`, `.json.gz`; whichever of the four
            subsets are there); or one file, whose items belong to the subset of their id (`math-12`) or else of the
            file's name; or a hub data set whose splits are the subsets.
        revision: of the hub data set; the one that was read is recorded in `sources`.

    Raises:
        InputError: nothing can be read at all.
    """

    def in_folder(folder: Path) -> dict[str, Path]:
        files = {subset: file for subset in PROCESSBENCH_SUBSETS if (file := subset_file(folder, subset)) is not None}
        if not files:
            names = ", ".join(f"{subset}.jsonl" for subset in PROCESSBENCH_SUBSETS)
            raise InputError(f"{folder}: no subset of ProcessBench in this folder; its files are named {names}")
        return files

    sources = open_sources(data, PROCESSBENCH_SUBSETS, revision, in_folder)
    items: dict[str, ProcessBenchItem] = {}
    rejected: list[Rejected] = []
    for subset, source in sources:

        def parse(value: Any, subset: str | None = subset, path: Path = source.path) -> ProcessBenchItem:
            item = _item(value, subset, path)
            if item.id in items:
                raise InputError(f"id {item.id!r} stands in an earlier row already; ids must be unique")
            return item

        for item in parsed_rows(source.name, source.rows(), parse, rejected):
            items[item.id] = item
    return collected(list(items.values()), rejected, [source for _, source in sources])


def _item(value: Any, subset: str | None, path: Path) -> ProcessBenchItem:
    record = json_object(value)
    identifier = text_of(record, "id")
    steps = texts_of(record, "steps")
    label = record.get("label")
    if type(label) is not int or not -1 <= label < len(steps):
        raise InputError(
            f"'label' must be the 0-based index of the earliest wrong step (0 to {len(steps) - 1}), or -1 for none; "
            f"not {label!r:.80}"
        )
    if subset is None:
        prefix = re.match(r"(\w+?)[-_]\d+$", identifier)
        named = prefix[1] if prefix and prefix[1] in PROCESSBENCH_SUBSETS else None
        subset = named or path.name.split(".")[0]
    generator, final_answer_correct = record.get("generator"), record.get("final_answer_correct")
    return ProcessBenchItem(
        subset=subset,
        solution=checked_solution(identifier, text_of(record, "problem"), steps, label),
        label=label,
        generator=generator if isinstance(generator, str) else None,
        final_answer_correct=final_answer_correct if isinstance(final_answer_correct, bool) else None,
    )


measure_processbench = partial(measure, tally_processbench)

PROCESSBENCH = Benchmark(
    name="processbench",
    help="""ProcessBench: error accuracy, correct accuracy and their harmonic mean (F1) for each subset; the average F1.

    --curve and --held-out judge every step in full, as --stopping none --all-steps does.
    """,
    read=read_processbench,
    tally=tally_processbench,
    hub=PROCESSBENCH_HUB,
    group="subset",
    judged="first error",
    flags={
        "held_out": Flag("Also with the threshold chosen on the other half of the items.", further=measure_held_out),
        "curve": Flag("F1 at every threshold too.", further=threshold_curve),
    },
)
