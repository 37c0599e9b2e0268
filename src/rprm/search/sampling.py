"""Sampling candidates: a policy writes N solutions of each problem; and candidates that were written elsewhere."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from rprm.benchmarks.items import json_object, parsed_rows
from rprm.errors import CorruptRun, InputError, RequestRefused
from rprm.jobs import Callbacks, Job, all_or_none, run_job
from rprm.ledger import Ledger
from rprm.reading import Rejected, Source, SourceInfo
from rprm.runs import RESULTS, finished_manifest, read_json_lines
from rprm.search.candidates import Candidate, Candidates
from rprm.search.policy import Policy
from rprm.search.problems import Problem, Problems
from rprm.splitting import split_steps

#: The stage's name in manifests.
STAGE = "search-sample"


@dataclass
class SampleTotals:
    """What a run of sampling came to.

    Attributes:
        num_refused: problems that the policy could not be asked, mostly for their length.
        num_cut: candidates that ran into the longest length.
        num_empty: candidates without a word.
    """

    num_problems: int = 0
    num_rejected: int = 0
    num_refused: int = 0
    num_candidates: int = 0
    num_cut: int = 0
    num_empty: int = 0
    num_generated_tokens: int = 0

    def add(self, row: Candidates) -> None:
        self.num_problems += 1
        self.num_refused += row.failure is not None
        self.num_candidates += len(row.candidates)
        for candidate in row.candidates:
            self.num_cut += candidate.finish_reason == "length"
            self.num_empty += not candidate.steps
            self.num_generated_tokens += candidate.num_tokens or 0

    def as_dict(self) -> dict[str, int]:
        return asdict(self)


async def sample_candidates(
    policy: Policy,
    problems: Problems,
    num_candidates: int,
    *,
    output: str | Path,
    settings: dict[str, Any] | None = None,
    strict: bool = False,
    callbacks: Callbacks | None = None,
) -> SampleTotals:
    """Write candidates of every problem into a run folder; begun again, it goes on where it was.

    Args:
        policy: writes the solutions.
        problems: what to solve.
        num_candidates: N, solutions of each problem. Equal ones stay as they are: they are samples.
        output: the run folder. `results.jsonl` holds `Candidates` in the order of the problems.
        settings: further settings that the results depend on.
        strict: stop at the first rejected row.
        callbacks: told of each result, in order.

    Returns:
        Totals over all sessions.

    Raises:
        RunError, InputError, EngineUnavailable: as for `judge_source`.
    """
    described = await policy.start()
    totals = SampleTotals()

    async def sample(problem: Problem, ledger: Ledger | None) -> Candidates:
        try:
            candidates = await all_or_none(
                policy.solve(problem.problem, number, ledger) for number in range(num_candidates)
            )
        except RequestRefused as error:
            return Candidates(problem=problem, candidates=(), failure=str(error))
        return Candidates(problem=problem, candidates=tuple(candidates))

    stage = Job(
        name=STAGE,
        work=sample,
        parse=Candidates.model_validate,
        totals=totals,
        width=policy.concurrency,
        noun="problem",
    )
    resolved = {**(settings or {}), "num_candidates": num_candidates, "policy": described}
    await run_job(
        stage, [*problems.rejected, *problems.problems], source=problems.source, output=output, settings=resolved,
        strict=strict, callbacks=callbacks,
    )  # fmt: skip
    return totals


@dataclass(frozen=True)
class CandidateRows:
    """Candidates at hand.

    Attributes:
        rows: a row a problem.
        rejected: rows of the file that cannot be used, or belong to no problem.
        missing: ids of problems without candidates.
        source: what identifies candidates and problems together.
        settings: of the run that wrote the candidates, as far as it is known.
    """

    rows: tuple[Candidates, ...]
    rejected: tuple[Rejected, ...]
    missing: tuple[str, ...]
    source: SourceInfo
    settings: dict[str, Any] = field(default_factory=dict)


def read_candidate_run(folder: str | Path, *, limit: int | None = None) -> CandidateRows:
    """Candidates of a run of `rprm search sample`, which must be complete.

    Args:
        limit: the first so many problems alone.

    Raises:
        RunError: it is no such run, or is not complete.
        CorruptRun: one of its files is damaged.
    """
    manifest = finished_manifest(folder, stage=STAGE, command="rprm search sample")
    path = Path(folder) / RESULTS
    try:
        rows = tuple(Candidates.model_validate(row) for row in read_json_lines(path))
    except ValidationError as error:
        raise CorruptRun(
            f"{path}: a row holds no candidates ({error.errors()[0]['msg']}); restore the file, or sample again"
        ) from None
    settings = {name: manifest["settings"][name] for name in ("policy", "num_candidates")}
    return CandidateRows(rows[:limit], (), (), Source(str(path)).inspect(), settings)


def read_candidate_file(path: str | Path, problems: Problems) -> CandidateRows:
    """Candidates that were written elsewhere.

    A row has solutions of one problem: `solutions`, a list of texts or of lists of steps; or `solution`, one text; or
    `steps`, one list of steps or a list of such lists. A text is cut into steps as `split_steps` does. A problem may
    have several rows. It is named by `id`, that of its set or `SET/ID`; or by its text in `problem` or `question`.
    Where a row has both, they must name the same problem.

    Raises:
        InputError: there is no such file, or no row can be used.
    """
    source = Source(str(path))
    rejected: list[Rejected] = []
    named = _Named(problems.problems)
    found: dict[str, list[Candidate]] = {problem.id: [] for problem in problems.problems}

    def parse(value: Any) -> tuple[str, list[Candidate]]:
        record = json_object(value)
        return named.find(record).id, _solutions(record)

    for identifier, candidates in parsed_rows(source.name, source.rows(), parse, rejected):
        found[identifier] += candidates
    rows = tuple(
        Candidates(problem=problem, candidates=tuple(found[problem.id]))
        for problem in problems.problems
        if found[problem.id]
    )
    if not rows:
        reason = f"the first, line {rejected[0].line}: {rejected[0].reason}" if rejected else "it has no rows"
        raise InputError(f"{path}: no candidates of these problems; {reason}")
    missing = tuple(identifier for identifier, candidates in found.items() if not candidates)
    digest = hashlib.sha256(f"{source.inspect().digest}\n{problems.source.digest}".encode()).hexdigest()
    return CandidateRows(
        rows, (*problems.rejected, *rejected), missing, SourceInfo(source.name, f"sha256:{digest}", len(rows))
    )


class _Named:
    """Problems by what a row may call them."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self._by_id: dict[str, list[Problem]] = {}
        self._by_text: dict[str, list[Problem]] = {}
        for problem in problems:
            for identifier in {problem.id, problem.id.removeprefix(f"{problem.set}/")}:
                self._by_id.setdefault(identifier, []).append(problem)
            self._by_text.setdefault(_spaced(problem.problem), []).append(problem)

    def find(self, record: dict[str, Any]) -> Problem:
        identifier = record.get("id")
        text = record.get("problem", record.get("question"))
        if isinstance(identifier, int) and not isinstance(identifier, bool):
            identifier = str(identifier)
        if isinstance(identifier, str) and identifier in self._by_id:
            candidates = self._by_id[identifier]
            if isinstance(text, str):
                same = [problem for problem in candidates if _spaced(text) in _spaced(problem.problem)]
                if not same:
                    raise InputError(f"the problem with id {identifier!r} has another text than this row")
                candidates = same
            name = f"id {identifier!r}"
        elif isinstance(text, str):
            candidates = self._by_text.get(_spaced(text), [])
            name = f"the text {text!r:.80}"
        else:
            candidates, name = [], f"id {identifier!r:.80}"
        if not candidates:
            raise InputError(f"no problem has {name}")
        if len(candidates) > 1:
            listed = ", ".join(problem.id for problem in candidates[:3])
            raise InputError(f"several problems have {name} ({listed}): write SET/ID")
        return candidates[0]


def _spaced(text: str) -> str:
    return " ".join(text.split())


def _solutions(record: dict[str, Any]) -> list[Candidate]:
    given = [name for name in ("solutions", "solution", "steps") if name in record]
    if len(given) != 1:
        raise InputError(
            f"one of 'solutions', 'solution' and 'steps' must be there, not {' and '.join(given) or 'none of them'}"
        )
    value = record[given[0]]
    if given[0] == "solutions" or (given[0] == "steps" and _is_list_of(value, list)):
        if not isinstance(value, list):
            raise InputError(f"'solutions' must be a list, not {value!r:.80}")
        return [_candidate(solution) for solution in value]
    return [_candidate(value)]


def _candidate(solution: Any) -> Candidate:
    if isinstance(solution, str):
        text, steps = solution, split_steps(solution)
    elif _is_list_of(solution, str):
        text, steps = "\n\n".join(solution), solution
    else:
        raise InputError(f"a solution must be a text or a list of steps, not {solution!r:.80}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"text that is not Unicode: a lone surrogate {error.object[error.start]!r}") from None
    return Candidate(text=text, steps=tuple(steps))


def _is_list_of(value: Any, kind: type) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, kind) for item in value)
