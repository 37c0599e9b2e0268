"""Training problems that stand in a benchmark: found by equal text, or by the runs of words that they share.

Text is compared as tokens: words, numbers and operators, in Unicode's compatibility form and without case; LaTeX's
spacing, dollar signs, brackets and punctuation are left out. Two rules find a problem:

- *exact*: its tokens, written without space, are those of a benchmark problem;
- *overlap*: at least a share of the n-grams of the shorter of the two problems (n = 13 tokens, as is usual for language
  models since GPT-3, arXiv 2005.14165, appendix C) stand in the other one too.

A problem shorter than n tokens has no n-gram, so that only equal text finds it: short problems of one kind ("Compute
$\\sin 30^\\circ$.") share most of their words and are different problems all the same.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Literal

from rprm.benchmarks import read_prmbench
from rprm.benchmarks.prmbench import PRMBENCH_HUB
from rprm.data.options import NGRAM, OVERLAP
from rprm.errors import InputError
from rprm.reading import Rejected, Source, SourceInfo
from rprm.records import Probability, Record

#: Benchmarks known by name, and where the hub has them (one data set for each of its splits). Revisions are recorded.
KNOWN_BENCHMARKS: dict[str, tuple[str, ...]] = {
    "processbench": tuple(
        f"hub:Qwen/ProcessBench?split={split}" for split in ("gsm8k", "math", "olympiadbench", "omnimath")
    ),
    "prmbench": (f"hub:{PRMBENCH_HUB}?split=train",),
    "gsm8k": ("hub:openai/gsm8k?config=main&split=test",),
    "math500": ("hub:HuggingFaceH4/MATH-500?split=test",),
    "aime24": ("hub:HuggingFaceH4/aime_2024?split=train",),
    "amc23": ("hub:math-ai/amc23?split=test",),
    "minerva_math": ("hub:math-ai/minervamath?split=test",),
    "olympiadbench": ("hub:math-ai/olympiadbench?split=test",),
}

#: Fields that hold a problem. Every one of the first row that a record has counts; else the first of the second row.
PROBLEM_FIELDS = ("problem", "question", "original_question", "modified_question")
OTHER_PROBLEM_FIELDS = ("query", "prompt", "input")

_SUFFIXES = (".jsonl", ".json", ".jsonl.gz", ".json.gz")


@dataclass(frozen=True, slots=True)
class BenchmarkProblem:
    """A problem of a benchmark, and the item it belongs to."""

    benchmark: str
    item: str
    problem: str


@dataclass(frozen=True)
class Benchmark:
    """The problems of a benchmark (or of a part of it), and what identifies their source."""

    name: str
    problems: tuple[BenchmarkProblem, ...]
    source: SourceInfo


@dataclass(frozen=True, slots=True)
class Match:
    """A benchmark's problem that a training problem repeats; `share` is 1 where the text is equal."""

    benchmark: str
    item: str
    kind: Literal["exact", "overlap"]
    share: float


class Removed(Record):
    """A training problem that was left out, the benchmark's item it repeats, and the labelled steps that it cost."""

    problem: str
    benchmark: str
    item: str
    kind: Literal["exact", "overlap"]
    share: Probability
    num_steps: int


def tokens(text: str) -> list[str]:
    r"""The words, numbers and operators of a text, in the form in which problems are compared.

    `1,000` is one number; `2x` is two tokens; single letters that follow each other are one token (`A B C`, `$A$, $B$`
    and `ABC` differ by typesetting alone); of scripts without spaces each character is a token.
    """
    plain = unicodedata.normalize("NFKC", text).casefold()
    for pattern, plainer in _REWRITES:
        plain = pattern.sub(plainer, plain)
    found: list[str] = []
    letters = False
    for token in _TOKEN.findall(plain):
        letter = len(token) == 1 and token.isalpha() and token.isascii()
        if letter and letters:
            found[-1] += token
        else:
            found.append(token)
        letters = letter
    return found


#: Typesetting that makes no difference between problems.
_REWRITES = tuple(
    (re.compile(pattern), plainer)
    for pattern, plainer in (
        (r"\\(?:left|right|[bB]igg?[lr]?|displaystyle|textstyle|limits|quad|qquad|hspace|vspace)(?![a-z])", " "),
        (r"\\(?:text|textbf|textit|mathrm|mathbf|mathit|operatorname|mbox|overline|underline)\s*(?=\{)", " "),
        (r"\\(?:begin|end)\{(?:align|equation|gather|multline|center)\*?\}", " "),
        (r"\\[dt]frac(?![a-z])", r"\\frac"),
        (r"\\(?:cdot|times|ast)(?![a-z])", "*"),
        (r"\\div(?![a-z])", "/"),
        (r"\\leq?(?![a-z])", "<="),
        (r"\\geq?(?![a-z])", ">="),
        (r"\\[,;:!> ]|~", " "),
        ("\N{MULTIPLICATION SIGN}|\N{DOT OPERATOR}|\N{MIDDLE DOT}", "*"),
        ("\N{DIVISION SIGN}", "/"),
        ("\N{MINUS SIGN}|\N{EN DASH}", "-"),
        ("\N{LESS-THAN OR EQUAL TO}", "<="),
        ("\N{GREATER-THAN OR EQUAL TO}", ">="),
        # Apostrophes hold a word together, whatever they look like.
        ("(?<=[a-z])['\N{RIGHT SINGLE QUOTATION MARK}](?=[a-z])", ""),
        (r"(?<=\d),(?=\d{3}(?!\d))", ""),
        (r"(?<![\d.])\.(?=\d)", "0."),
    )
)
_TOKEN = re.compile(
    # Numbers; one character of a script without spaces; words; operators. The rest is punctuation.
    r"\d+(?:\.\d+)?|[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff]|"
    r"[^\W\d_\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff]+|[-+*/=<>^%]"
)


class ContaminationIndex:
    """Finds the benchmark problem that a training problem repeats.

    Args:
        problems: of all benchmarks.
        ngram: tokens in an n-gram.
        overlap: the least share of shared n-grams that counts, above 0.
    """

    def __init__(self, problems: Iterable[BenchmarkProblem], *, ngram: int = NGRAM, overlap: float = OVERLAP) -> None:
        if ngram < 1 or not 0 < overlap <= 1:
            raise ValueError(f"an n-gram has at least one token, and a share is in (0, 1]; not {ngram}, {overlap}")
        self.ngram = ngram
        self.overlap = overlap
        self._problems: list[BenchmarkProblem] = []
        self._sizes: list[int] = []
        self._exact: dict[bytes, int] = {}
        self._postings: dict[bytes, list[int]] = {}
        for problem in problems:
            self._add(problem)

    def _add(self, problem: BenchmarkProblem) -> None:
        words = tokens(problem.problem)
        if not words:
            return
        number = len(self._problems)
        self._exact.setdefault(_whole(words), number)
        if self._exact[_whole(words)] != number:
            # The same text again (a problem with several solutions): its first item stands for it.
            return
        grams = self._grams(words)
        self._problems.append(problem)
        self._sizes.append(len(grams))
        for gram in grams:
            self._postings.setdefault(gram, []).append(number)

    def _grams(self, words: Sequence[str]) -> set[bytes]:
        count = len(words) - self.ngram + 1
        return {_hashed(" ".join(words[start : start + self.ngram])) for start in range(count)}

    def match(self, problem: str) -> Match | None:
        """The benchmark problem that this one repeats: equal text first, else the one that shares most; or None."""
        words = tokens(problem)
        if not words:
            return None
        exact = self._exact.get(_whole(words))
        if exact is not None:
            return Match(self._problems[exact].benchmark, self._problems[exact].item, "exact", 1.0)
        grams = self._grams(words)
        shared: Counter[int] = Counter()
        for gram in grams:
            shared.update(self._postings.get(gram, ()))
        best: tuple[float, int] | None = None
        for number, count in shared.items():
            share = count / min(len(grams), self._sizes[number])
            if share >= self.overlap and (best is None or (share, -number) > (best[0], -best[1])):
                best = share, number
        if best is None:
            return None
        found = self._problems[best[1]]
        return Match(found.benchmark, found.item, "overlap", round(best[0], 4))


def read_benchmarks(name: str) -> list[Benchmark]:
    """The problems of a benchmark that is named on the command line.

    Args:
        name: `NAME` of a known benchmark (`KNOWN_BENCHMARKS`), `PATH`, a hub data set, or `NAME=PATH_OR_HUB`. A folder
            stands for every `.jsonl` and `.json` file in it, each a part `NAME/STEM`.

    Raises:
        InputError: nothing is there, a row cannot be read, or a row has no problem. One unreadable row costs the run:
            a benchmark that is half excluded is not excluded.
    """
    label, places = _located(name)
    if places == KNOWN_BENCHMARKS["prmbench"]:
        return [_prmbench(label)]
    parts: list[tuple[str, str]] = []
    for place in places:
        folder = Path(place)
        # ProcessBench's hub splits are named as the files of its folder would be.
        split = re.search(r"[?&]split=(\w+)", place) if place in KNOWN_BENCHMARKS["processbench"] else None
        if folder.is_dir():
            files = sorted(file for file in folder.iterdir() if file.name.endswith(_SUFFIXES))
            if not files:
                raise InputError(f"{place}: no .jsonl or .json file in this folder")
            parts += [(f"{label}/{_stem(file)}", str(file)) for file in files]
        else:
            parts.append((f"{label}/{split[1]}" if split else label, place))
    found: list[Benchmark] = []
    for part, place in parts:
        source = Source(place)
        problems = tuple(_problems(part, source))
        if not problems:
            raise InputError(f"{source.name}: no rows; a benchmark to exclude must have items")
        found.append(Benchmark(part, problems, source.inspect()))
    return found


def _located(name: str) -> tuple[str, tuple[str, ...]]:
    """What a benchmark is called, and the places that its items stand in."""
    if Path(name).exists():
        return _stem(Path(name)), (name,)
    if match := re.fullmatch(r"([\w.-]+)=(.+)", name, flags=re.DOTALL):
        return match[1], (match[2],)
    if name in KNOWN_BENCHMARKS:
        return name, KNOWN_BENCHMARKS[name]
    if re.fullmatch(r"(hub:)?[\w.-]+/[\w.-]+(\?.*)?", name):
        return name.removeprefix("hub:").partition("?")[0].rpartition("/")[2], (name,)
    known = ", ".join(KNOWN_BENCHMARKS)
    hint = "its items have no hub data set: give NAME=FILE; " if name == "college_math" else ""
    raise InputError(f"{name}: no such benchmark; {hint}known are {known}; others as NAME=PATH, or as OWNER/NAME")


def _prmbench(label: str) -> Benchmark:
    """PRMBench from the hub, where some of its columns appear late: its own reader knows them."""
    items = read_prmbench(PRMBENCH_HUB)
    if items.rejected:
        first = items.rejected[0]
        raise InputError(f"{first.file}, line {first.line}: {first.reason}; a benchmark to exclude must be read whole")
    # Modified solutions have the modified problem, the unmodified ones (`correct`) the original.
    problems = {item.solution.problem: BenchmarkProblem(label, item.id, item.solution.problem) for item in items.items}
    return Benchmark(label, tuple(problems.values()), items.sources[0])


def _stem(path: Path) -> str:
    return path.name.split(".")[0] or path.name


def _problems(benchmark: str, source: Source) -> Iterator[BenchmarkProblem]:
    for row in source.rows():
        if isinstance(row, Rejected):
            raise InputError(f"{row.file}, line {row.line}: {row.reason}; a benchmark to exclude must be read whole")
        place, record = f"{source.name}, line {row.line}", row.value
        if not isinstance(record, dict):
            raise InputError(f"{place}: a record must be a JSON object, not {type(record).__name__}")
        filled = {name: value for name, value in record.items() if isinstance(value, str) and value.strip()}
        texts = [filled[field] for field in PROBLEM_FIELDS if field in filled]
        texts = texts or [filled[field] for field in OTHER_PROBLEM_FIELDS if field in filled][:1]
        if not texts:
            looked = ", ".join((*PROBLEM_FIELDS, *OTHER_PROBLEM_FIELDS))
            fields = ", ".join(sorted(map(str, record))[:12]) or "none"
            raise InputError(
                f"{place}: no problem found: its field must be one of {looked}; the record's fields are: {fields}"
            )
        ids = (record[key] for key in ("id", "idx", "unique_id", "key") if record.get(key) not in (None, ""))
        item = str(next(ids, f"line-{row.line}"))
        yield from (BenchmarkProblem(benchmark, item, text) for text in dict.fromkeys(texts))


def _hashed(text: str) -> bytes:
    return blake2b(text.encode(errors="replace"), digest_size=8).digest()


def _whole(words: Sequence[str]) -> bytes:
    return blake2b("".join(words).encode(errors="replace"), digest_size=16).digest()
