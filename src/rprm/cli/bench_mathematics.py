"""`rprm bench mathematics`: how many problems do a policy and what chooses among its solutions solve?"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rprm.cli.bench import Resamples, app, show
from rprm.cli.judge import leave
from rprm.cli.options import CandidateOptions, Json, Output, Seed, SetOptions, with_options
from rprm.errors import InputError

if TYPE_CHECKING:
    from rprm.benchmarks.mathematics import Problems
    from rprm.search.measure import SearchRun


@app.command()
@with_options
def mathematics(
    which: SetOptions,
    how: CandidateOptions,
    runs: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[RUN]...", help="Run folders of `rprm search`, each one or more rows of the one table."
        ),
    ] = None,
    candidates: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Measure solutions written elsewhere, to the problems of --set: JSON Lines {id | problem, solutions[] "
            "| solution | steps[]}.",
        ),
    ] = None,
    policy: Annotated[
        str | None,
        typer.Option(
            "--policy", "-p", metavar="SPEC", help="Sample solutions to the problems of --set first, then measure."
        ),
    ] = None,
    output: Output = None,
    baseline: Annotated[
        str | None,
        typer.Option(
            metavar="METHOD",
            help="The row that others are compared with, as the table calls it, besides the majority.  "
            "[default: pass@1]",
        ),
    ] = None,
    curve: Annotated[bool, "--curve", "Also for N = 1, 2, 4, ... of the candidates."] = False,
    resamples: Resamples = 2000,
    grades: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write each solution's answer and grading: JSON Lines.")
    ] = None,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Six sets of mathematical problems, and GSM8K: pass@1, pass@N, majority, Best-of-N, weighted votes, guided search.

    Runs are compared on the problems that all of them have. --set alone says what the sets hold.
    """
    from rprm.benchmarks.mathematics import check_sets
    from rprm.grading import Grader
    from rprm.report.searches import search_tables, sets_table
    from rprm.runs import write_atomically
    from rprm.search.measure import measure_runs, read_search_run

    _refuse(runs, candidates, policy, output, which)
    problems = which.read() if which.sets else None
    num_rejected = len(problems.rejected) if problems else 0
    if problems and not (candidates or policy):
        with Grader() as grader:
            checks = check_sets(problems, grader)
        show({"sets": checks}, [sets_table(checks)], as_json=json)
        leave(num_rejected)
        return
    measured_runs = [read_search_run(run) for run in runs or ()]
    if problems and candidates:
        run, num_unused = _brought(candidates, problems)
        measured_runs.append(run)
        num_rejected += num_unused
    elif problems and policy:
        with tempfile.TemporaryDirectory(prefix="rprm-") as folder:
            how.sample(policy, seed, problems, which.settings, output or Path(folder) / "run", False)
            run = read_search_run(output or Path(folder) / "run")
        measured_runs.append(run if output else replace(run, name=run.policy))
    measured = measure_runs(measured_runs, baseline=baseline, curve=curve, num_resamples=resamples, seed=seed)
    if grades is not None:
        lines = (dumps(answer.as_dict(), ensure_ascii=False) for answer in measured.answers)
        write_atomically(grades, "".join(f"{line}\n" for line in lines))
    show(measured.as_dict(), search_tables(measured), as_json=json, output=output)
    leave(num_rejected)


def _refuse(
    runs: list[Path] | None, candidates: Path | None, policy: str | None, output: Path | None, which: SetOptions
) -> None:
    """Raise an `InputError` where options contradict each other, or leave open what to measure."""
    brought = candidates or policy
    if candidates and policy:
        raise InputError("--candidates and --policy are two sources of solutions: give one of them")
    if brought and not which.sets:
        raise InputError("say which problems the solutions are of: --set LIST")
    if output and not policy:
        raise InputError("--output keeps the solutions that --policy samples: leave it out, or see --grades and --json")
    if runs and not brought and which != SetOptions():
        raise InputError("runs have their problems with them: leave out --set, --data, --revision and --limit")
    if not (runs or brought or which.sets):
        raise InputError("say what to measure: run folders, or --set LIST with --policy SPEC or --candidates FILE")


def _brought(path: Path, problems: Problems) -> tuple[SearchRun, int]:
    """Solutions of a file as a run, and how many of its rows could not be used."""
    from rprm.search.candidates import read_candidate_file
    from rprm.search.measure import sampled_run

    read = read_candidate_file(path, problems)
    number, notes = len(read.rejected), []
    if read.missing:
        notes.append(f"{path}: {len(read.missing):,} problems have no solutions in it, and are not measured")
    for first in read.rejected[:1]:
        notes.append(f"{path}: {number:,} rows could not be used; the first, line {first.line}: {first.reason}")
    return sampled_run(str(path), path.name, read.rows, notes), number
