"""`rprm search`: better answers out of a policy, by step rewards."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from rprm.cli.judge import (
    ForceVerdict,
    MaxTokens,
    Model,
    NumAnalyses,
    PromptOption,
    Seed,
    Strict,
    Temperature,
    TopP,
    refuse_nothing_judged,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Iterable

    from rprm.jobs import Callbacks
    from rprm.rewarders.base import StepRewarder
    from rprm.search.aggregation import Aggregation
    from rprm.search.best_of_n import BestOfNTotals, ChoiceStopping
    from rprm.search.policy import Policy
    from rprm.search.problems import Problems
    from rprm.search.sampling import CandidateRows, SampleTotals
    from rprm.search.trees import SearchTotals

T = TypeVar("T")

app = typer.Typer(
    rich_markup_mode=None,
    no_args_is_help=True,
    help="Better answers out of a policy: candidates, Best-of-N, guided search.",
)


class AggregationName(StrEnum):
    min = "min"
    last = "last"
    product = "product"
    mean = "mean"


class ChoiceStoppingName(StrEnum):
    none = "none"
    exact = "exact"


PolicySpec = Annotated[
    str,
    typer.Option(
        "--policy", "-p", metavar="SPEC", help="The model that writes solutions, as for `rprm judge --model`."
    ),
]
Sets = Annotated[
    str | None,
    typer.Option(
        "--set",
        metavar="LIST",
        help="Mathematics sets, with commas between them: aime24, amc23, math500, olympiadbench, college_math, "
        "minerva_math, gsm8k.",
    ),
]
Data = Annotated[
    str | None,
    typer.Option("--data", metavar="PATH", help="Of --set: a folder with SET.jsonl, or one file, in place of the hub."),
]
Revision = Annotated[str | None, typer.Option("--revision", help="Of the one --set on the hub.")]
ProblemFile = Annotated[
    Path | None,
    typer.Option(
        "--problems", metavar="FILE", help="Problems of your own: {id?, problem | question, answer?, set?} a row."
    ),
]
Limit = Annotated[int | None, typer.Option("--limit", min=1, help="The first N problems (of each set) alone.")]
NumCandidates = Annotated[
    int | None, typer.Option("-n", "--num-candidates", min=1, help="Solutions of each problem.  [default: 8]")
]
PolicyPrompt = Annotated[
    str | None,
    typer.Option("--policy-prompt", help="The policy's template: a file, a model folder, or a built-in name."),
]
PolicyTemperature = Annotated[
    float | None, typer.Option("--policy-temperature", min=0.0, help="Of the policy.  [default: 1.0]")
]
PolicyTopP = Annotated[float | None, typer.Option("--policy-top-p", help="Of the policy.  [default: 0.95]")]
PolicyMaxTokens = Annotated[
    int | None, typer.Option("--policy-max-tokens", min=1, help="Longest solution, in tokens.  [default: 2048]")
]
Aggregate = Annotated[
    AggregationName, typer.Option("--aggregate", help="How step rewards become the reward of a solution.")
]
RunFolder = Annotated[
    Path,
    typer.Option("--output", "-o", help="Run folder: results are kept there, and a killed run goes on from there."),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")]


@app.callback()
def search() -> None:
    """Better answers out of a policy: candidates, Best-of-N, guided search."""


@app.command()
def sample(
    policy: PolicySpec,
    output: RunFolder,
    sets: Sets = None,
    problems: ProblemFile = None,
    data: Data = None,
    revision: Revision = None,
    limit: Limit = None,
    num_candidates: NumCandidates = None,
    policy_prompt: PolicyPrompt = None,
    policy_temperature: PolicyTemperature = None,
    policy_top_p: PolicyTopP = None,
    policy_max_tokens: PolicyMaxTokens = None,
    seed: Seed = 0,
    strict: Strict = False,
    json: Json = False,
) -> None:
    """Let a policy write N solutions of each problem. Killed, it goes on from where it was.

    Exit code 3 says that some rows were rejected.
    """
    found = load_problems(sets, problems, data=data, revision=revision, limit=limit)
    writer = load_policy(
        policy, prompt=policy_prompt, temperature=policy_temperature, top_p=policy_top_p,
        max_tokens=policy_max_tokens, seed=seed,
    )  # fmt: skip
    totals = sample_behind_progress(writer, found, num_candidates, output, limit, strict)
    show_run(_sampled(totals), totals.as_dict(), output, json)
    leave(totals.num_rejected)


@app.command("best-of-n")
def best_of_n(
    model: Model,
    output: RunFolder,
    candidates: Annotated[
        Path | None,
        typer.Option(
            "--candidates",
            metavar="RUN|FILE",
            help="A run of `rprm search sample`; or rows {id | problem, solutions[] | solution | steps[]} of the "
            "problems of --set or --problems.",
        ),
    ] = None,
    policy: Annotated[
        str | None,
        typer.Option(
            "--policy", "-p", metavar="SPEC", help="In place of --candidates: sample them first, to OUTPUT/candidates."
        ),
    ] = None,
    sets: Sets = None,
    problems: ProblemFile = None,
    data: Data = None,
    revision: Revision = None,
    limit: Limit = None,
    aggregate: Aggregate = AggregationName.min,
    stopping: Annotated[
        ChoiceStoppingName,
        typer.Option(
            "--stopping",
            help="exact: judge until the choice is certain, it is the same. none: every step in full, for other "
            "choices from the same run (votes, other aggregations, fewer candidates).",
        ),
    ] = ChoiceStoppingName.exact,
    wave: Annotated[
        int | None,
        typer.Option(
            "--wave",
            min=1,
            help="For --stopping exact: most analyses of a problem at once. Fewer cost less in all, more are sooner "
            "done.  [default: 4]",
        ),
    ] = None,
    num_analyses: NumAnalyses = None,
    force_verdict: ForceVerdict = None,
    prompt: PromptOption = None,
    temperature: Temperature = None,
    top_p: TopP = None,
    max_tokens: MaxTokens = None,
    num_candidates: NumCandidates = None,
    policy_prompt: PolicyPrompt = None,
    policy_temperature: PolicyTemperature = None,
    policy_top_p: PolicyTopP = None,
    policy_max_tokens: PolicyMaxTokens = None,
    seed: Seed = 0,
    strict: Strict = False,
    json: Json = False,
) -> None:
    """Choose the candidate with the highest reward. Killed, it goes on from where it was.

    Exit code 3 says that some rows were rejected.
    """
    from rprm.errors import InputError
    from rprm.rewarders import load_rewarder
    from rprm.runs import CANDIDATES
    from rprm.search.sampling import read_candidate_run

    if (candidates is None) == (policy is None):
        raise InputError("say what to choose from: --candidates RUN|FILE, or --policy SPEC to sample candidates first")
    rewarder = load_rewarder(
        model, num_analyses=num_analyses, stopping="none", first_error_exit=False, force_verdict=force_verdict,
        prompt=prompt, temperature=temperature, top_p=top_p, max_tokens=max_tokens, seed=seed,
    )  # fmt: skip
    num_rejected = 0
    if policy is not None:
        found = load_problems(sets, problems, data=data, revision=revision, limit=limit)
        writer = load_policy(
            policy, prompt=policy_prompt, temperature=policy_temperature, top_p=policy_top_p,
            max_tokens=policy_max_tokens, seed=seed,
        )  # fmt: skip
        candidates = output / CANDIDATES
        num_rejected = sample_behind_progress(writer, found, num_candidates, candidates, limit, strict).num_rejected
        rows = read_candidate_run(candidates)
        settings = {}
    else:
        assert candidates is not None
        rows = load_candidates(candidates, sets, problems, data=data, revision=revision, limit=limit)
        settings = {} if limit is None else {"limit": limit}
    totals = _choose(rewarder, rows, output, aggregate.value, stopping.value, wave, settings, strict)
    show_run(_chosen(totals, rows), totals.as_dict() | {"num_missing": len(rows.missing)}, output, json)
    refuse_nothing_judged(totals)
    leave(num_rejected + totals.num_rejected)


def load_problems(
    sets: str | None, file: Path | None, *, data: str | None, revision: str | None, limit: int | None
) -> Problems:
    """The problems that --set or --problems name."""
    from rprm.errors import InputError
    from rprm.search.problems import read_problem_file, read_problem_sets

    if (sets is None) == (file is None):
        raise InputError("say which problems: --set LIST for mathematics sets, or --problems FILE for your own")
    if sets is not None:
        names = [name.strip() for name in sets.split(",")]
        return read_problem_sets(names, data, revision=revision, limit=limit)
    if data is not None or revision is not None:
        raise InputError("--data and --revision say where --set is: leave them out with --problems")
    assert file is not None
    return read_problem_file(file, limit=limit)


def load_policy(
    spec: str,
    *,
    prompt: str | None = None,
    temperature: float | None = None,
    top_p: float | None = None,
    max_tokens: int | None = None,
    step_tokens: int | None = None,
    seed: int = 0,
) -> Policy:
    """A policy; what is None takes the paper's value."""
    from rprm.engines import Sampling, load_engine
    from rprm.errors import InputError
    from rprm.presets import PAPER_POLICY
    from rprm.prompts import carried_policy_template, load_policy_template
    from rprm.search.policy import Policy

    top_p = PAPER_POLICY.top_p if top_p is None else top_p
    if not 0.0 < top_p <= 1.0:
        raise InputError(f"--policy-top-p is {top_p}; give a number above 0, at most 1")
    return Policy(
        load_engine(spec),
        load_policy_template(prompt or carried_policy_template(spec)),
        Sampling(
            temperature=PAPER_POLICY.temperature if temperature is None else temperature,
            top_p=top_p,
            max_tokens=PAPER_POLICY.max_tokens if max_tokens is None else max_tokens,
            seed=seed,
        ),
        step_tokens=PAPER_POLICY.step_tokens if step_tokens is None else step_tokens,
    )


def load_candidates(
    path: Path,
    sets: str | None,
    problems: Path | None,
    *,
    data: str | None,
    revision: str | None,
    limit: int | None,
) -> CandidateRows:
    """Candidates of a run, which has its problems with it, or of a file, whose problems are to be named."""
    from rprm.errors import InputError
    from rprm.search.sampling import read_candidate_file, read_candidate_run

    if path.is_dir():
        if sets is not None or problems is not None:
            raise InputError(f"{path} is a run and has its problems with it: leave out --set and --problems")
        return read_candidate_run(path, limit=limit)
    return read_candidate_file(path, load_problems(sets, problems, data=data, revision=revision, limit=limit))


def sample_behind_progress(
    policy: Policy, problems: Problems, num_candidates: int | None, output: Path, limit: int | None, strict: bool
) -> SampleTotals:
    from rprm.cli.progress import run_behind_progress
    from rprm.errors import InputError
    from rprm.presets import PAPER_POLICY
    from rprm.search.sampling import sample_candidates

    number = PAPER_POLICY.num_candidates if num_candidates is None else num_candidates
    if policy.sampling.temperature == 0.0 and number > 1:
        raise InputError(
            f"at temperature 0 all {number} candidates of a problem would be equal; ask for one (-n 1), or raise "
            "--policy-temperature"
        )

    def work(callbacks: Callbacks) -> Awaitable[SampleTotals]:
        settings = {} if limit is None else {"limit": limit}
        return sample_candidates(
            policy, problems, number, output=output, settings=settings, strict=strict, callbacks=callbacks
        )

    return run_behind_progress(work, policy.aclose, len(problems.problems), noun="problems", activity="sampling")


def _choose(
    rewarder: StepRewarder,
    candidates: CandidateRows,
    output: Path,
    aggregation: Aggregation,
    stopping: ChoiceStopping,
    wave: int | None,
    settings: dict[str, Any],
    strict: bool,
) -> BestOfNTotals:
    from rprm.cli.progress import run_behind_progress
    from rprm.search.best_of_n import choose_among
    from rprm.search.racing import WAVE

    def work(callbacks: Callbacks) -> Awaitable[BestOfNTotals]:
        return choose_among(
            rewarder, candidates, output=output, aggregation=aggregation, stopping=stopping, wave=wave or WAVE,
            settings=settings, strict=strict, callbacks=callbacks,
        )  # fmt: skip

    return run_behind_progress(work, rewarder.aclose, len(candidates.rows), noun="problems")


def show_run(lines: Iterable[tuple[int, str]], totals: dict[str, int], output: Path, json: bool) -> None:
    """What a run of a search stage came to and, where there are gold answers, how often it is right.

    Args:
        lines: numbers and what they count; those that are 0 are left out.
        totals: for --json.
    """
    from rprm.report.mathematics import search_table
    from rprm.search.attempts import read_search_run
    from rprm.search.measure import measure_runs

    run = read_search_run(output)
    has_gold = any(attempts.problem.answer is not None for attempts in run.attempts)
    if json:
        from json import dumps

        measured = measure_runs([run]).as_dict() if has_gold else None
        print(dumps({"output": str(output), "totals": totals, "measurement": measured}, ensure_ascii=False))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    table = Table(box=None, padding=(0, 1), show_header=False)
    table.add_column(justify="right", style="bold")
    table.add_column()
    for number, text in lines:
        if number:
            table.add_row(f"{number:,}", text)
    console.print(table)
    console.print(Text(f"results: {output / 'results.jsonl'}", style="dim"))
    if has_gold:
        console.print(search_table(measure_runs([run])))


def leave(num_rejected: int) -> None:
    """Exit code 3 where rows were rejected."""
    from rprm.cli import EXIT_REJECTED

    if num_rejected:
        raise typer.Exit(EXIT_REJECTED)


def _sampled(totals: SampleTotals) -> list[tuple[int, str]]:
    return [
        (totals.num_problems, "problems"),
        (totals.num_candidates, "candidates"),
        (totals.num_generated_tokens, "tokens"),
        (totals.num_cut, "candidates cut at the longest length: raise --policy-max-tokens"),
        (totals.num_empty, "candidates without a word"),
        (totals.num_refused, "problems refused"),
        (totals.num_rejected, "rows rejected"),
    ]


def saved_analyses(totals: BestOfNTotals | SearchTotals, against: str) -> tuple[int, str]:
    """The line of a summary that says how many analyses were not needed."""
    saved = totals.num_analyses_full - totals.num_analyses
    share = f" ({saved / totals.num_analyses_full:.0%})" if totals.num_analyses_full else ""
    return saved, f"analyses saved{share}, against {against}"


def _chosen(totals: BestOfNTotals, candidates: CandidateRows) -> list[tuple[int, str]]:
    return [
        (totals.num_problems, "problems"),
        (totals.num_candidates, "candidates"),
        (totals.num_steps, "steps"),
        (totals.num_steps_judged, "steps judged, in full or in part"),
        (totals.num_analyses, "analyses"),
        saved_analyses(totals, "judging every step in full"),
        (totals.num_generated_tokens, "tokens"),
        (totals.num_analyses_without_verdict, "analyses without a verdict"),
        (totals.num_steps_unscored, "steps that could not be judged"),
        (totals.num_without_reward, "candidates without a reward"),
        (totals.num_fallbacks, "problems in which no candidate has a reward: the first is taken"),
        (totals.num_without_candidates, "problems without a candidate to choose"),
        (len(candidates.missing), "problems that the file has no candidates of: not counted"),
        (totals.num_rejected, "rows rejected"),
    ]
