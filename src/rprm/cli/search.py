"""`rprm search`: better answers out of a policy, by step rewards."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, fields, replace
from functools import partial
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rprm import ranges
from rprm.cli.judge import leave, refuse_nothing_judged, run_behind_progress
from rprm.cli.options import (
    AnalysisOptions,
    CandidateOptions,
    ChoiceOptions,
    ClusterOptions,
    Json,
    Model,
    PolicyOptions,
    ProblemOptions,
    SearchOptions,
    Seed,
    Strict,
    with_options,
)
from rprm.errors import InputError, RunError

if TYPE_CHECKING:
    from rprm.benchmarks.mathematics import Problems
    from rprm.cluster import Cluster
    from rprm.rewarders.base import StepRewarder
    from rprm.search.candidates import Begun, Policy
    from rprm.search.guided import StrategyName

_HELP = "Choose among a policy's solutions by step rewards: Best-of-N, guided search."
app = typer.Typer(rich_markup_mode=None, no_args_is_help=True, help=_HELP)

_SPEC = {"metavar": "SPEC"}
PolicySpec = Annotated[str, "--policy", "-p", _SPEC, "The model that writes solutions, as for `rprm judge -m`."]


@dataclass
class Outcome:
    """Where a run is kept; what it comes to and, where there are gold answers, how often it is right."""

    output: Annotated[Path, "--output", "-o", "Run folder; the same command resumes a killed run."]
    strict: Strict = False
    json: Json = False
    #: Whether candidates are judged in full; how many problems have none.
    in_full: bool = False
    num_missing: int | None = None
    attempts: list[Any] = field(default_factory=list)

    def run(
        self, work: Callable[..., Awaitable[Any]], close: Callable[[], Any], num_rows: int, activity: str,
        cluster: Cluster | None = None,
    ) -> int:  # fmt: skip
        """Do work that judges steps behind a progress line, and show what it came to; returns the rejected rows."""

        totals = run_behind_progress(
            lambda callbacks: work(output=self.output, strict=self.strict, callbacks=callbacks, cluster=cluster),
            close, num_rows, self.add, noun="problems", activity=activity, cluster=cluster,
        )  # fmt: skip
        self.show(totals)
        refuse_nothing_judged(totals)
        return int(totals.num_rejected)

    def add(self, problem: Any, row: Any) -> None:
        """Take in a problem's row, so that none has to be read again."""
        from rprm.search.measure import Attempts

        self.attempts.append(Attempts.of(row, in_full=self.in_full))

    def show(self, totals: Any) -> None:
        from rich.table import Column, Table

        from rprm.report.searches import search_table
        from rprm.search.measure import measure_runs, read_search_run
        from rprm.showing import one_line
        from rprm.terminal import Terminal

        counts = totals.as_dict()
        what = {one.name: one.metadata["what"] for one in fields(totals) if one.metadata}
        if self.num_missing is not None:
            counts["num_missing"] = self.num_missing
            what["num_missing"] = "problems that the file has no candidates of: not counted"
        has_gold = any(attempts.problem.answer is not None for attempts in self.attempts)
        run = read_search_run(self.output, self.attempts)
        if self.json:
            told = {"totals": counts, "measurement": measure_runs([run]).as_dict() if has_gold else None}
            print(dumps({"output": str(self.output)} | told, ensure_ascii=False))
            return
        console = Terminal()
        table = Table(Column(justify="right", style="bold"), Column(), box=None, padding=(0, 1), show_header=False)
        for name, text in what.items():
            number = counts[name]
            if name == "num_analyses_full" and number:
                number -= counts["num_analyses"]
                text = f"analyses saved ({number / counts[name]:.0%}), against {text}"
            if number:
                table.add_row(f"{number:,}", text)
        console.print(table)
        console.print(one_line(f"results: {self.output / 'results.jsonl'}"), style="dim")
        if has_gold:
            console.print(search_table(measure_runs([run])))


@app.command()
@with_options
def sample(
    policy: PolicySpec, run: Outcome, which: ProblemOptions, how: CandidateOptions, replicated: ClusterOptions,
    seed: Seed = 0,
    after: Annotated[
        Path | None, {"metavar": "RUN"},
        "In place of --set or --problems: write on, N times, from where a search step by step has arrived.",
    ] = None,
) -> None:  # fmt: skip
    """Let a policy write N solutions of each problem. The same command resumes a killed run.

    Exit code 3 says that some rows were rejected."""
    if after is not None and which != ProblemOptions(limit=which.limit):
        raise InputError(
            f"{after} is a run and has its problems with it: leave out --set, --problems and their options"
        )
    problems, begun = (which.read(), None) if after is None else _begun(after, which.limit)
    totals = how.sample(policy, seed, problems, which.settings, run.output, run.strict, run.add, begun, replicated)
    run.show(totals)
    leave(totals.num_rejected)


def _begun(run: Path, limit: int | None) -> tuple[Problems, dict[str, Begun]]:
    """The problems of a search step by step, and how far it has come with each."""
    from rprm.benchmarks.mathematics import Problems
    from rprm.reading import Source
    from rprm.runs import RESULTS, finished_manifest, read_results
    from rprm.search.candidates import Begun
    from rprm.search.guided import GUIDED, SearchTree

    finished_manifest(run, stage=GUIDED, command="rprm search guided")
    trees = list(read_results(run, SearchTree.model_validate))[:limit]
    steps = [() if tree.chosen is None else tree.steps(tree.chosen) for tree in trees]
    begun = {tree.id: Begun(its, tree.chosen in tree.finished) for tree, its in zip(trees, steps, strict=True)}
    return Problems(tuple(tree.problem for tree in trees), (), {"": Source(str(run / RESULTS)).inspect()}), begun


@app.command("best-of-n")
@with_options
def best_of_n(
    model: Model, run: Outcome, which: ProblemOptions, choice: ChoiceOptions, analysis: AnalysisOptions,
    how: CandidateOptions, replicated: ClusterOptions,
    candidates: Annotated[
        Path | None, {"metavar": "RUN|FILE"},
        "A run of `rprm search sample`; or rows {id | problem, solutions[] | solution | steps[]} of the problems of "
        "--set or --problems.",
    ] = None,
    policy: Annotated[
        str | None, "--policy", "-p", _SPEC, "In place of --candidates: sample them first, to OUTPUT/candidates."
    ] = None,
) -> None:  # fmt: skip
    """Choose the candidate with the highest reward. The same command resumes a killed run.

    Exit code 3 says that some rows were rejected."""
    from rprm.runs import CANDIDATES
    from rprm.search.candidates import choose_among, read_candidate_file, read_candidate_run
    from rprm.search.racing import WAVE

    rewarder = analysis.rewarder(model, in_full=True)
    num_rejected, settings = 0, which.settings
    if policy is not None and candidates is None:
        sampled, seed = run.output / CANDIDATES, analysis.seed
        sample = partial(how.sample, policy, seed, which.read(), settings, sampled, run.strict)
        num_rejected = sample(replicated=replicated).num_rejected
        rows, settings = read_candidate_run(sampled), {}
    elif candidates is None or policy is not None:
        raise InputError("say what to choose from: --candidates RUN|FILE, or --policy SPEC to sample candidates first")
    elif not candidates.is_dir():
        rows = read_candidate_file(candidates, which.read())
    elif which.sets is None and which.problems is None:
        rows = read_candidate_run(candidates, limit=which.limit)
    else:
        raise InputError(f"{candidates} is a run and has its problems with it: leave out --set and --problems")
    run.in_full, run.num_missing = choice.stopping == "none", len(rows.missing)
    work = partial(
        choose_among, rewarder, rows, aggregation=choice.aggregate, stopping=choice.stopping,
        wave=choice.wave or WAVE, settings=settings,
    )  # fmt: skip
    cluster = replicated.cluster(rewarder)
    leave(num_rejected + run.run(work, rewarder.aclose, len(rows.rows), "judging", cluster))


def _search_command(name: StrategyName, about: str) -> None:
    """Add the command that searches by a strategy."""

    def command(
        policy: PolicySpec, model: Model, run: Outcome, which: ProblemOptions, shape: SearchOptions,
        analysis: AnalysisOptions, how: PolicyOptions, replicated: ClusterOptions,
        analyses: Annotated[bool, "--analyses", "Keep the analyses' texts: megabytes a problem."] = False,
    ) -> None:  # fmt: skip
        from rprm.search.guided import GuidedSearch, search_problems

        strategy = shape.strategy(name)
        problems = which.read()
        stepwise = {"step_tokens": shape.step_tokens, "thinking_steps": shape.thinking_steps}
        writer = how.policy(policy, analysis.seed, **stepwise)
        if writer.sampling.temperature == 0.0 and strategy.num_trees * strategy.num_samples > 1:
            raise InputError("at temperature 0 all next steps would be equal: raise --policy-temperature")
        guided = GuidedSearch(writer, search_rewarder(model, analysis, writer, policy), strategy, analyses)
        work = partial(search_problems, guided, problems, settings=which.settings)
        cluster = replicated.cluster(writer, guided.rewarder)
        leave(run.run(work, guided.aclose, len(problems.problems), "searching", cluster))

    note = "The same command resumes a killed run. Exit code 3 says that some rows were rejected."
    command.__doc__ = f"Solve step by step{about}.\n\n{note}"
    app.command(name)(with_options(command))


_search_command("guided", ", greedily: of 8 next steps the one with the highest reward, as the paper does")
_search_command("beam", " with a beam: N next steps a round, and the best N / WIDTH are kept")
_search_command("dvts", " in N / WIDTH trees that each keep their best step alone (diverse verifier tree search)")


def search_rewarder(model: str, analysis: AnalysisOptions, policy: Policy, policy_spec: str) -> StepRewarder:
    """What rewards steps, with the paper's longest analysis. A model that is policy and judge is loaded once."""
    from rprm.presets import judge_settings
    from rprm.rewarders import is_classifier
    from rprm.search.guided import ANALYSIS_TOKENS

    if analysis.max_tokens is None and not is_classifier(model):
        analysis = replace(analysis, max_tokens=min(ANALYSIS_TOKENS, judge_settings(model).max_tokens))
    return analysis.rewarder(model, in_full=True, engine=policy.engine if model == policy_spec else None)


@app.command()
@with_options
def show(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder of guided, beam or dvts.")],
    id: Annotated[str | None, "Of one problem; all of them by default."] = None,
    max_characters: Annotated[ranges.Rows | None, "Cut each step to so many characters."] = None,
) -> None:
    """Show search trees: what was proposed, what it was worth, what was kept.

    ● kept  ■ kept, and the solution ends  ○ others scored higher  · dropped: empty or repeated"""
    from rprm.report.searches import render_tree
    from rprm.runs import read_manifest, read_results
    from rprm.search.guided import GUIDED, SearchTree
    from rprm.terminal import Terminal

    if (job := read_manifest(run)["stage"]) != GUIDED:
        raise RunError(f"{run} is a run of stage {job!r}; trees are in runs of {GUIDED!r}")
    is_found = False
    for tree in read_results(run, SearchTree.model_validate):
        if id is None or tree.id == id:
            is_found = True
            Terminal().print(render_tree(tree, max_characters=max_characters))
    if not is_found:
        raise InputError(f"{run} has no problem {id!r}" if id is not None else f"{run} has no finished problem yet")
