"""`rprm data steps`: labelled steps of several sources into one run folder, without repetitions and benchmark problems.

The first pass writes the steps outside benchmarks to a working file, and remembers 33 bytes a step. The second copies
those that stand in it once and with one label. A problem stands in a benchmark by equal text (*exact*: `tokens` written
without space), or by overlap: a share of the n-grams of the shorter one stand in the other (n = 13, usual since GPT-3,
arXiv 2005.14165, appendix C).
"""

from __future__ import annotations

import os
import re
import unicodedata
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict
from functools import partial
from hashlib import blake2b
from itertools import chain, count, groupby
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rprm.benchmarks import read_prmbench
from rprm.benchmarks.prmbench import PRMBENCH_HUB
from rprm.benchmarks.processbench import PROCESSBENCH_SUBSETS
from rprm.data.stage_options import NGRAM, OVERLAP, StepOptions
from rprm.data.steps import STAGE, Expanded, read_steps, source_name
from rprm.errors import InputError
from rprm.reading import Rejected, Row, Source, SourceInfo, field_names, json_object, read_rows, stem
from rprm.records import LabelledStep, Probability, Record
from rprm.runs import REJECTED, RESULTS, LineWriter, Run, read_json_lines, versions

#: Problems left out because they stand in a benchmark.
REMOVED = "removed.jsonl"

#: Benchmarks known by name: their parts, and where the hub has them. Revisions are recorded.
KNOWN_BENCHMARKS: dict[str, dict[str, str]] = {
    "processbench": {f"processbench/{part}": f"hub:Qwen/ProcessBench?split={part}" for part in PROCESSBENCH_SUBSETS},
    "prmbench": {"prmbench": f"hub:{PRMBENCH_HUB}?split=train"},
    "gsm8k": {"gsm8k": "hub:openai/gsm8k?config=main&split=test"},
    "math500": {"math500": "hub:HuggingFaceH4/MATH-500?split=test"},
    "aime24": {"aime24": "hub:HuggingFaceH4/aime_2024?split=train"},
    "amc23": {"amc23": "hub:math-ai/amc23?split=test"},
    "minerva_math": {"minerva_math": "hub:math-ai/minervamath?split=test"},
    "olympiadbench": {"olympiadbench": "hub:math-ai/olympiadbench?split=test"},
}

#: Fields that hold a problem: all of the first row count, else the first one of the second row.
PROBLEM_FIELDS = ("problem", "question", "original_question", "modified_question")
OTHER_PROBLEM_FIELDS = ("query", "prompt", "input")


class BenchmarkProblem(NamedTuple):
    benchmark: str
    item: str
    problem: str


class Excluded(NamedTuple):
    name: str
    problems: tuple[BenchmarkProblem, ...]
    source: SourceInfo


class Removed(Record):
    """A training problem that repeats a benchmark's item, by this share of n-grams, and the labelled steps it cost."""

    problem: str
    benchmark: str
    item: str
    kind: Literal["exact", "overlap"]
    share: Probability
    num_steps: int = 0


#: Typesetting that makes no difference between problems.
_REWRITES = (
    (r"\\(?:left|right|[bB]igg?[lr]?|displaystyle|textstyle|limits|quad|qquad|hspace|vspace)(?![a-z])", " "),
    (r"\\(?:text|textbf|textit|mathrm|mathbf|mathit|operatorname|mbox|overline|underline)\s*(?=\{)", " "),
    (r"\\(?:begin|end)\{(?:align|equation|gather|multline|center)\*?\}|\\[,;:!> ]|~", " "),
    (r"\\[dt]frac(?![a-z])", r"\\frac"),
    (r"\\(?:cdot|times|ast)(?![a-z])|[\N{MULTIPLICATION SIGN}\N{DOT OPERATOR}\N{MIDDLE DOT}]", "*"),
    (r"\\div(?![a-z])|\N{DIVISION SIGN}", "/"),
    (r"\\leq?(?![a-z])|\N{LESS-THAN OR EQUAL TO}", "<="),
    (r"\\geq?(?![a-z])|\N{GREATER-THAN OR EQUAL TO}", ">="),
    (r"\N{MINUS SIGN}|\N{EN DASH}", "-"),
    # Apostrophes hold a word together, whatever they look like.
    ("(?<=[a-z])['\N{RIGHT SINGLE QUOTATION MARK}](?=[a-z])", ""),
    (r"(?<=\d),(?=\d{3}(?!\d))", ""),
    (r"(?<![\d.])\.(?=\d)", "0."),
)
#: Numbers; one character of a script without spaces; words; operators. The rest is punctuation.
_TOKEN = re.compile(
    r"\d+(?:\.\d+)?|[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff]|"
    r"[^\W\d_\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff]+|[-+*/=<>^%]"
)


def tokens(text: str) -> list[str]:
    """The words, numbers and operators of a text as problems are compared: `1,000` is one, `2x` two; letters in a row
    are one (`A B C` is `ABC`), and so is every character of a script without spaces."""
    plain = unicodedata.normalize("NFKC", text).casefold()
    for pattern, plainer in _REWRITES:
        plain = re.sub(pattern, plainer, plain)
    found: list[str] = []
    for are_letters, run in groupby(_TOKEN.findall(plain), lambda token: len(token) == 1 and "a" <= token <= "z"):
        some = list(run)
        found += ["".join(some)] if are_letters else some
    return found


class ContaminationIndex:
    """Finds the benchmark problem that a training problem repeats, or shares at least `overlap` of its n-grams with."""

    def __init__(self, problems: Iterable[BenchmarkProblem], *, ngram: int = NGRAM, overlap: float = OVERLAP) -> None:
        if ngram < 1 or not 0 < overlap <= 1:
            raise ValueError(f"an n-gram has at least one token, and a share is in (0, 1]; not {ngram}, {overlap}")
        self.ngram, self.overlap = ngram, overlap
        # By the hash of its whole text, the number of a problem; by its number, the problem and its number of n-grams.
        self._exact: dict[bytes, int] = {}
        self._problems: list[tuple[BenchmarkProblem, int]] = []
        self._postings: dict[bytes, list[int]] = {}
        for problem in problems:
            words, number = tokens(problem.problem), len(self._problems)
            # Of the same text again (a problem with several solutions) the first item stands for it.
            if words and self._exact.setdefault(_hashed("".join(words)), number) == number:
                grams = self._grams(words)
                self._problems.append((problem, len(grams)))
                for gram in grams:
                    self._postings.setdefault(gram, []).append(number)

    def _grams(self, words: Sequence[str]) -> set[bytes]:
        count = len(words) - self.ngram + 1
        return {_hashed(" ".join(words[start : start + self.ngram]), size=8) for start in range(count)}

    def match(self, problem: str) -> Removed | None:
        """The benchmark problem that this one repeats: equal text first, else the one that shares most; or None."""
        words = tokens(problem)
        number, share, kind = self._exact.get(_hashed("".join(words))), 1.0, "exact"
        if number is None:
            grams = self._grams(words)
            shared = Counter(number for gram in grams for number in self._postings.get(gram, ()))
            shares = ((count / min(len(grams), self._problems[number][1]), -number) for number, count in shared.items())
            (share, number), kind = max(shares, default=(0.0, 0)), "overlap"
            if share < self.overlap:
                return None
        found = self._problems[abs(number)][0]
        return Removed(**found._asdict() | dict[str, Any](problem=problem, kind=kind, share=round(share, 4)))


def read_benchmarks(name: str) -> list[Excluded]:
    """The problems of a known benchmark, of a file, a folder (each .jsonl and .json file a part), a hub data set, or
    `NAME=PATH_OR_HUB`; an InputError where a row cannot be read: what is half excluded is not excluded.
    """
    if name == "prmbench" and not Path(name).exists():
        # Some of its columns appear late, which its own reader knows. Modified solutions have the modified problem,
        # the unmodified ones (`correct`) the original.
        items = read_prmbench(PRMBENCH_HUB)
        found = {item.solution.problem: item.id for item in items.items}
        problems = [BenchmarkProblem(name, item, problem) for problem, item in found.items()]
        return [_whole(name, items.sources[0], (*items.rejected, problems))]
    sources = [(part, Source(place)) for part, place in _located(name)]
    return [_whole(part, source.inspect(), read_rows(source, partial(_problems, part))) for part, source in sources]


def _located(name: str) -> list[tuple[str, str]]:
    """The parts of a benchmark, and the places that their items stand in."""
    if Path(name).exists():
        label, place = stem(Path(name)), name
    elif named := re.fullmatch(r"([\w.-]+)=(.+)", name, flags=re.DOTALL):
        label, place = named[1], named[2]
    elif name in KNOWN_BENCHMARKS:
        return list(KNOWN_BENCHMARKS[name].items())
    elif re.fullmatch(r"(hub:)?[\w.-]+/[\w.-]+(\?.*)?", name):
        label, place = name.partition("?")[0].rpartition("/")[2], name
    else:
        known = ", ".join(KNOWN_BENCHMARKS)
        raise InputError(f"{name}: no such benchmark; known are {known}; others as NAME=PATH, or as OWNER/NAME")
    if not Path(place).is_dir():
        return [(label, place)]
    suffixes = (".jsonl", ".json", ".jsonl.gz", ".json.gz")
    files = sorted(file for file in Path(place).iterdir() if file.name.endswith(suffixes))
    if not files:
        raise InputError(f"{place}: no .jsonl or .json file in this folder")
    return [(f"{label}/{stem(file)}", str(file)) for file in files]


def _problems(benchmark: str, row: Row) -> list[BenchmarkProblem]:
    record = json_object(row.value)
    filled = {name: value for name, value in record.items() if isinstance(value, str) and value.strip()}
    texts = [filled[field] for field in PROBLEM_FIELDS if field in filled]
    texts = texts or [filled[field] for field in OTHER_PROBLEM_FIELDS if field in filled][:1]
    if not texts:
        fields = ", ".join((*PROBLEM_FIELDS, *OTHER_PROBLEM_FIELDS))
        raise InputError(f"no problem found in one of {fields}; its fields are: {field_names(record)}")
    ids = (record[key] for key in ("id", "idx", "unique_id", "key") if record.get(key) not in (None, ""))
    item = str(next(ids, f"line-{row.line}"))
    return [BenchmarkProblem(benchmark, item, text) for text in dict.fromkeys(texts)]


def _whole(name: str, source: SourceInfo, rows: Iterable[list[BenchmarkProblem] | Rejected]) -> Excluded:
    problems: list[BenchmarkProblem] = []
    for row in rows:
        if isinstance(row, Rejected):
            raise InputError(f"{row.file}, line {row.line}: {row.reason}; a benchmark to exclude must be read whole")
        problems += row
    if not problems:
        raise InputError(f"{source.name}: no rows; a benchmark to exclude must have items")
    return Excluded(name, tuple(problems), source)


def gather_steps(
    sources: Sequence[Source], output: str | Path, *, format: str = "auto", options: StepOptions | None = None,
    benchmarks: Sequence[Excluded] = (), ngram: int = NGRAM, overlap: float = OVERLAP, limit: int | None = None,
    strict: bool = False, on_row: Callable[[int, int], None] = lambda num_rows, num_steps: None,
) -> dict[str, Any]:  # fmt: skip
    """Write the labelled steps of the sources to a run folder, in their order, without problems of the benchmarks.

    `limit` reads the first steps alone; `on_row` gets the numbers of rows and steps, every 1,000 rows. Returns the
    counts, as in `summary.json`.
    """
    if not sources:
        raise ValueError("no sources: give at least one")
    options = options or StepOptions()
    settings = {
        # The names stand in ids.
        "inputs": [{"name": source_name(source), "digest": source.inspect().digest} for source in sources],
        "format": format,
        **asdict(options),
        "exclude": [{"name": benchmark.name, "digest": benchmark.source.digest} for benchmark in benchmarks],
        **({"ngram": ngram, "overlap": overlap} if benchmarks else {}),
        **({"limit": limit} if limit is not None else {}),
    }
    session = {"inputs": [source.name for source in sources], "versions": versions()}
    index = ContaminationIndex(chain.from_iterable(one.problems for one in benchmarks), ngram=ngram, overlap=overlap)
    with Run(output, stage=STAGE, settings=settings, session=session) as run, ExitStack() as stack:
        files: dict[str, LineWriter] = {}
        for name in (RESULTS, REJECTED, REMOVED, "working"):
            writer = LineWriter(
                run.folder / f"{name}.partial", fresh=True, checksums=run.checksums if name == RESULTS else None
            )
            files[name] = stack.enter_context(closing(writer))
        gathered = _Gathered(index, files)
        for row in chain.from_iterable(read_steps(source, format=format, options=options) for source in sources):
            gathered.num_rows += 1
            if not isinstance(row, Rejected):
                gathered.add(row, limit)
            elif strict:
                raise InputError(f"{row.file}, line {row.line}: {row.reason}")
            else:
                for line in row.listed(gathered.num_rejected):
                    files[REJECTED].write(line)
                gathered.num_rejected += 1
            if gathered.num_rows % 1000 == 0:
                on_row(gathered.num_rows, gathered.num_read)
            if gathered.num_read == limit:
                break
        summary = gathered.summary([benchmark.name for benchmark in benchmarks])
        stack.close()
        files.pop("working").path.unlink()
        for name, writer in files.items():
            os.replace(writer.path, run.folder / name)
        run.complete(summary, {})
    return summary


class _Gathered:
    """The first pass, row by row, and the second at the end."""

    def __init__(self, index: ContaminationIndex, files: dict[str, LineWriter]) -> None:
        self.num_rows = self.num_rejected = 0
        self.num_read = 0  # steps that the sources gave, those left out later too
        self.formats, self.skipped = Counter[str](), Counter[str]()
        self._index, self._files = index, files
        self._removed: dict[bytes, Removed | None] = {}  # by the hash of a problem
        # Of each step in the working file: hashes of its path, of the path before it, of its id and its problem.
        self._hashes, self._labels = array("Q"), array("B")

    def add(self, row: Expanded, limit: int | None) -> None:
        """The steps of a row, up to the limit of those read."""
        self.formats[row.format] += 1
        self.skipped.update(row.skipped)
        for step in row.steps[: None if limit is None else limit - self.num_read]:
            self.num_read += 1
            problem = _hashed(step.problem)
            if problem not in self._removed:
                self._removed[problem] = self._index.match(step.problem)
            if found := self._removed[problem]:
                self._removed[problem] = found.model_copy(update={"num_steps": found.num_steps + 1})
                continue
            before = problem
            for previous in step.previous_steps:
                before = _hashed(previous, before)
            for hashed in (_hashed(step.step, before), before, _hashed(step.id), problem):
                self._hashes.frombytes(hashed[:8])
            self._labels.append(step.label)
            self._files["working"].write(step.model_dump_json())

    def summary(self, benchmarks: Sequence[str]) -> dict[str, Any]:
        """The second pass. Counts are of the steps kept, where their names say nothing else."""
        paths, before, ids, problems = np.asarray(self._hashes).reshape(-1, 4).T
        labels = np.asarray(self._labels, dtype=bool)
        conflicting = np.isin(paths, np.intersect1d(paths[labels], paths[~labels]))
        repeated, id_repeated, known_ids = _repeated(paths), _repeated(ids), np.unique(ids)
        keep = ~repeated & ~conflicting
        positions: dict[int, dict[str, int]] = {}
        sources: Counter[str] = Counter()
        given: set[str] = set()

        def is_free(name: str) -> bool:
            value = np.frombuffer(_hashed(name)[:8], dtype=np.uint64)[0]
            return name not in given and bool(known_ids[np.searchsorted(known_ids[:-1], value)] != value)

        steps = read_json_lines(self._files["working"].path, LabelledStep.model_validate)
        for step, is_kept, needs_id in zip(steps, keep, id_repeated, strict=True):
            if not is_kept:
                continue
            if needs_id:
                given.add(name := next(filter(is_free, (f"{step.id}~{number}" for number in count(2)))))
                step = step.model_copy(update={"id": name})
            positions.setdefault(step.step_index, {"correct": 0, "wrong": 0})["correct" if step.label else "wrong"] += 1
            sources[step.source or "unknown"] += 1
            self._files[RESULTS].write(step.model_dump_json())
        removed = {name: {"problems": 0, "steps": 0} for name in benchmarks}
        for row in filter(None, self._removed.values()):
            self._files[REMOVED].write(row.model_dump_json())
            removed[row.benchmark]["problems"] += 1
            removed[row.benchmark]["steps"] += row.num_steps
        return {
            "num_rows": self.num_rows,
            "num_rejected": self.num_rejected,
            "formats": dict(self.formats),
            "num_steps": int(keep.sum()),
            "num_correct": int(labels[keep].sum()),
            "num_wrong": int((~labels[keep]).sum()),
            "num_problems": len(np.unique(problems[keep])),
            "num_solutions": int(np.isin(paths[keep], before[keep], invert=True).sum()),
            "positions": dict(sorted(positions.items())),
            "sources": dict(sorted(sources.items())),
            "num_duplicates": int((repeated & ~conflicting).sum()),
            "num_conflicting": int(conflicting.sum()),
            "skipped": dict(sorted(self.skipped.items())),
            "removed": removed,
        }


def _repeated(values: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Which values stand before too."""
    repeated = np.ones(len(values), dtype=bool)
    repeated[np.unique(values, return_index=True)[1]] = False
    return repeated


def _hashed(text: str, before: bytes = b"", size: int = 16) -> bytes:
    """A hash of a text after what `before` stands for; runs of white space count as one space."""
    return blake2b(before + " ".join(text.split()).encode(errors="replace"), digest_size=size).digest()
