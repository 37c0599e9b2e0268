"""`rprm bench mathematics`: how many problems do a policy and what chooses among its solutions solve?"""

from __future__ import annotations

from dataclasses import replace
from json import dumps
from pathlib import Path
from typing import Annotated

import typer

from rprm.cli.bench import Resamples, app, show
from rprm.cli.judge import leave
from rprm.cli.options import CandidateOptions, Json, Seed, SetOptions, with_options
from rprm.cli.process import temporary_folder
from rprm.errors import InputError


@app.command()
@with_options
def mathematics(
    which: SetOptions,
    how: CandidateOptions,
    runs: Annotated[list[Path] | None, typer.Argument(metavar="[RUN]...", help="Runs of `rprm search`.")] = None,
    candidates: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Solutions from elsewhere: {id | problem, solutions[] | solution | steps[]}"),
    ] = None,
    policy: Annotated[
        str | None,
        typer.Option("--policy", "-p", metavar="SPEC", help="Sample solutions to the problems of --set, then measure."),
    ] = None,
    output: Annotated[
        Path | None, "--output", "-o", "Folder to keep the figures in, and the run in which --policy samples solutions."
    ] = None,
    baseline: Annotated[
        str | None,
        typer.Option(metavar="METHOD", help="The row to compare others with, besides the majority.  [default: pass@1]"),
    ] = None,
    curve: Annotated[bool, "--curve", "Also for N = 1, 2, 4, ... of the candidates."] = False,
    resamples: Resamples = 2000,
    grades: Annotated[Path | None, typer.Option(metavar="FILE", help="Write each answer's grade: JSON Lines.")] = None,
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
    from rprm.search.candidates import read_candidate_file
    from rprm.search.measure import measure_runs, read_search_run, sampled_run

    brought = candidates or policy
    for is_wrong, message in (
        (candidates and policy, "--candidates and --policy are two sources of solutions: give one of them"),
        (brought and not which.sets, "say which problems the solutions are of: --set LIST"),
        (runs and not brought and which != SetOptions(),
         "runs have their problems with them: leave out --set, --data, --revision and --limit"),
        (not (runs or brought or which.sets),
         "say what to measure: run folders, or --set LIST with --policy SPEC or --candidates FILE"),
    ):  # fmt: skip
        if is_wrong:
            raise InputError(message)
    problems = which.read() if which.sets else None
    num_rejected = len(problems.rejected) if problems else 0
    if problems and not (candidates or policy):
        with Grader() as grader:
            checks = check_sets(problems, grader)
        show({"sets": checks}, [sets_table(checks)], as_json=json)
        return leave(num_rejected)
    measured_runs = [read_search_run(run) for run in runs or ()]
    if problems and candidates:
        read = read_candidate_file(candidates, problems)
        number, notes = len(read.rejected), []
        if read.missing:
            notes.append(f"{candidates}: {len(read.missing):,} problems have no solutions in it, and are not measured")
        for first in read.rejected[:1]:
            what = f"{number:,} rows could not be used; the first, line {first.line}: {first.reason}"
            notes.append(f"{candidates}: {what}")
        num_rejected += number
        measured_runs.append(sampled_run(str(candidates), candidates.name, read.rows, notes))
    elif problems and policy:
        with temporary_folder() as folder:
            kept = output or Path(folder) / "run"
            how.sample(policy, seed, problems, which.settings, kept, False)
            run = read_search_run(kept)
        measured_runs.append(run if output else replace(run, name=run.policy))
    measured = measure_runs(measured_runs, baseline=baseline, curve=curve, num_resamples=resamples, seed=seed)
    if grades is not None:
        lines = (dumps(answer.as_dict(), ensure_ascii=False) for answer in measured.answers)
        write_atomically(grades, "".join(f"{line}\n" for line in lines))
    show(measured.as_dict(), search_tables(measured), as_json=json, output=output)
    return leave(num_rejected)
