"""`rprm bench mathematics`: how many problems do a policy and what chooses among its solutions solve?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rprm.cli.bench import Resamples, plain_console, print_json
from rprm.cli.judge import Seed
from rprm.cli.options import Output
from rprm.cli.search import (
    Data,
    Json,
    Limit,
    NumCandidates,
    PolicyMaxTokens,
    PolicyPrompt,
    PolicyTemperature,
    PolicyTopP,
    Revision,
    Sets,
)

if TYPE_CHECKING:
    from rich.console import RenderableType

    from rprm.search.attempts import SearchRun
    from rprm.search.measure import SearchMeasurement
    from rprm.search.policy import Policy
    from rprm.search.problems import Problems


def mathematics(
    runs: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[RUN]...", help="Run folders of `rprm search`, each one or more rows of the one table."
        ),
    ] = None,
    sets: Sets = None,
    data: Data = None,
    revision: Revision = None,
    limit: Limit = None,
    candidates: Annotated[
        Path | None,
        typer.Option(
            "--candidates",
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
    num_candidates: NumCandidates = None,
    policy_prompt: PolicyPrompt = None,
    policy_temperature: PolicyTemperature = None,
    policy_top_p: PolicyTopP = None,
    policy_max_tokens: PolicyMaxTokens = None,
    output: Output = None,
    baseline: Annotated[
        str | None,
        typer.Option(
            "--baseline",
            metavar="METHOD",
            help="The row that others are compared with, as the table calls it, besides the majority.  "
            "[default: pass@1]",
        ),
    ] = None,
    curve: Annotated[bool, typer.Option("--curve", help="Also for N = 1, 2, 4, ... of the candidates.")] = False,
    resamples: Resamples = 2000,
    grades: Annotated[
        Path | None,
        typer.Option("--grades", metavar="FILE", help="Write each solution's answer and grading: JSON Lines."),
    ] = None,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Six sets of mathematical problems, and GSM8K: pass@1, pass@N, majority, Best-of-N, weighted votes, guided search.

    Runs are compared on the problems that all of them have. --set alone says what the sets hold.
    """
    from rprm.cli.search import leave, load_policy, load_problems
    from rprm.errors import InputError
    from rprm.search.attempts import read_search_run
    from rprm.search.measure import measure_runs

    named = [str(run) for run in runs or ()]
    if candidates is not None and policy is not None:
        raise InputError("--candidates and --policy are two sources of solutions: give one of them")
    if (candidates or policy) and sets is None:
        raise InputError("say which problems the solutions are of: --set LIST")
    if output is not None and policy is None:
        raise InputError("--output keeps the solutions that --policy samples: leave it out, or see --grades and --json")
    if not (candidates or policy):
        if named and (sets, data, revision, limit) != (None, None, None, None):
            raise InputError("runs have their problems with them: leave out --set, --data, --revision and --limit")
        if not named and sets is None:
            raise InputError("say what to measure: run folders, or --set LIST with --policy SPEC or --candidates FILE")
    found = load_problems(sets, None, data=data, revision=revision, limit=limit) if sets is not None else None
    if found is not None and not (candidates or policy):
        _show_sets(found, json)
        leave(len(found.rejected))
        return
    measured_runs = [read_search_run(run) for run in named]
    num_rejected = 0
    if found is not None:
        num_rejected = len(found.rejected)
        if candidates is not None:
            brought, num_unused = _brought(candidates, found)
            measured_runs.append(brought)
            num_rejected += num_unused
        else:
            assert policy is not None
            writer = load_policy(
                policy, prompt=policy_prompt, temperature=policy_temperature, top_p=policy_top_p,
                max_tokens=policy_max_tokens, seed=seed,
            )  # fmt: skip
            measured_runs.append(_sampled(writer, found, num_candidates, output, limit))
    measured = measure_runs(measured_runs, baseline=baseline, curve=curve, num_resamples=resamples, seed=seed)
    _show(measured, grades, output, json)
    leave(num_rejected)


def _brought(path: Path, problems: Problems) -> tuple[SearchRun, int]:
    """Solutions of a file as a run, and how many of its rows could not be used."""
    from rprm.search.attempts import sampled_run
    from rprm.search.sampling import read_candidate_file

    read = read_candidate_file(path, problems)
    notes = []
    if read.missing:
        notes.append(f"{path}: {len(read.missing):,} problems have no solutions in it, and are not measured")
    if read.rejected:
        first = read.rejected[0]
        notes.append(
            f"{path}: {len(read.rejected):,} rows could not be used; the first, line {first.line}: {first.reason}"
        )
    return sampled_run(str(path), path.name, read.rows, notes), len(read.rejected)


def _sampled(
    policy: Policy, problems: Problems, num_candidates: int | None, output: Path | None, limit: int | None
) -> SearchRun:
    import tempfile
    from dataclasses import replace

    from rprm.cli.search import sample_behind_progress
    from rprm.search.attempts import read_search_run

    with tempfile.TemporaryDirectory(prefix="rprm-") as folder:
        run = output or Path(folder) / "run"
        sample_behind_progress(policy, problems, num_candidates, run, limit, False)
        found = read_search_run(run)
        return found if output is not None else replace(found, name=found.policy)


def _show_sets(problems: Problems, json: bool) -> None:
    from rprm.grading import Grader
    from rprm.report.mathematics import sets_table
    from rprm.search.checks import check_sets

    with Grader() as grader:
        checks = check_sets(problems, grader)
    if json:
        print_json({"sets": {name: check.as_dict() for name, check in checks.items()}})
        return
    _print([sets_table(list(checks.values()))])


def _show(measured: SearchMeasurement, grades: Path | None, output: Path | None, json: bool) -> None:
    import json as json_module

    from rprm.report.mathematics import search_curve_table, search_table, unsettled_table
    from rprm.runs import write_atomically

    if grades is not None:
        lines = (json_module.dumps(answer.as_dict(), ensure_ascii=False) for answer in measured.answers)
        write_atomically(grades, "".join(f"{line}\n" for line in lines))
    if output is not None:
        text = json_module.dumps(measured.as_dict(), indent=2, ensure_ascii=False)
        write_atomically(output / "measurement.json", f"{text}\n")
    if json:
        print_json(measured.as_dict())
        return
    tables = [search_table(measured)]
    if measured.curve:
        tables.append(search_curve_table(measured))
    if measured.unsettled:
        tables.append(unsettled_table(measured))
    _print(tables)


def _print(tables: list[RenderableType]) -> None:
    for table in tables:
        plain_console().print(table)
