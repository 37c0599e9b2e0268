"""`rprm search`: better answers out of a policy, by step rewards."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rprm.cli.judge import refuse_nothing_judged
from rprm.cli.options import (
    AnalysisOptions,
    CandidateOptions,
    ChoiceOptions,
    ChoiceStoppingName,
    Json,
    Model,
    PolicyOptions,
    ProblemOptions,
    SearchOptions,
    Seed,
    Strict,
    with_options,
)

if TYPE_CHECKING:
    from rprm.benchmarks.mathematics import SearchMeasurement
    from rprm.rewarders.base import StepRewarder
    from rprm.search.candidates import BestOfNTotals, CandidateRows, SampleTotals
    from rprm.search.guided import StrategyName
    from rprm.search.measure import Attempts
    from rprm.search.policy import Policy
    from rprm.search.trees import SearchTotals

app = typer.Typer(
    rich_markup_mode=None,
    no_args_is_help=True,
    help="Better answers out of a policy: candidates, Best-of-N, guided search.",
)


PolicySpec = Annotated[
    str,
    typer.Option(
        "--policy", "-p", metavar="SPEC", help="The model that writes solutions, as for `rprm judge --model`."
    ),
]
RunFolder = Annotated[
    Path,
    typer.Option("--output", "-o", help="Run folder: results are kept there, and a killed run goes on from there."),
]


@app.callback()
def search() -> None:
    """Better answers out of a policy: candidates, Best-of-N, guided search."""


@app.command()
@with_options
def sample(
    policy: PolicySpec,
    output: RunFolder,
    which: ProblemOptions,
    how: CandidateOptions,
    seed: Seed = 0,
    strict: Strict = False,
    json: Json = False,
) -> None:
    """Let a policy write N solutions of each problem. Killed, it goes on from where it was.

    Exit code 3 says that some rows were rejected.
    """
    outcome = Outcome(output, json)
    totals = how.sample(policy, seed, which.read(), which.settings, output, strict, outcome.add)
    outcome.show(
        totals,
        {
            "num_problems": "problems",
            "num_candidates": "candidates",
            "num_generated_tokens": "tokens",
            "num_cut": "candidates cut at the longest length: raise --policy-max-tokens",
            "num_empty": "candidates without a word",
            "num_refused": "problems refused",
            "num_rejected": "rows rejected",
        },
    )
    leave(totals.num_rejected)


@app.command("best-of-n")
@with_options
def best_of_n(
    model: Model,
    output: RunFolder,
    which: ProblemOptions,
    choice: ChoiceOptions,
    analysis: AnalysisOptions,
    how: CandidateOptions,
    candidates: Annotated[
        Path | None,
        typer.Option(
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
    strict: Strict = False,
    json: Json = False,
) -> None:
    """Choose the candidate with the highest reward. Killed, it goes on from where it was.

    Exit code 3 says that some rows were rejected.
    """
    from rprm.cli.progress import run_behind_progress
    from rprm.errors import InputError
    from rprm.runs import CANDIDATES
    from rprm.search.candidates import choose_among, read_candidate_run
    from rprm.search.racing import WAVE

    if (candidates is None) == (policy is None):
        raise InputError("say what to choose from: --candidates RUN|FILE, or --policy SPEC to sample candidates first")
    rewarder = analysis.rewarder(model, in_full=True)
    num_rejected = 0
    if policy is not None:
        sampled = output / CANDIDATES
        num_rejected = how.sample(policy, analysis.seed, which.read(), which.settings, sampled, strict).num_rejected
        rows, settings = read_candidate_run(sampled), {}
    else:
        assert candidates is not None
        rows, settings = _read_candidates(candidates, which), which.settings
    outcome = Outcome(output, json, in_full=choice.stopping is ChoiceStoppingName.none)
    totals = run_behind_progress(
        lambda callbacks: choose_among(
            rewarder, rows, output=output, aggregation=choice.aggregate.value, stopping=choice.stopping.value,
            wave=choice.wave or WAVE, settings=settings, strict=strict, callbacks=callbacks,
        ),
        rewarder.aclose, len(rows.rows), outcome.add, noun="problems",
    )  # fmt: skip
    outcome.show(
        totals,
        {
            "num_problems": "problems",
            "num_candidates": "candidates",
            "num_steps": "steps",
            "num_steps_judged": "steps judged, in full or in part",
            "num_analyses": "analyses",
            "saved": "judging every step in full",
            "num_generated_tokens": "tokens",
            "num_analyses_without_verdict": "analyses without a verdict",
            "num_steps_unscored": "steps that could not be judged",
            "num_without_reward": "candidates without a reward",
            "num_fallbacks": "problems in which no candidate has a reward: the first is taken",
            "num_without_candidates": "problems without a candidate to choose",
            "num_missing": "problems that the file has no candidates of: not counted",
            "num_rejected": "rows rejected",
        },
        num_missing=len(rows.missing),
    )
    refuse_nothing_judged(totals)
    leave(num_rejected + totals.num_rejected)


def _read_candidates(path: Path, which: ProblemOptions) -> CandidateRows:
    """Candidates of a run, which has its problems with it, or of a file, whose problems are to be named."""
    from rprm.errors import InputError
    from rprm.search.candidates import read_candidate_file, read_candidate_run

    if not path.is_dir():
        return read_candidate_file(path, which.read())
    if which.sets is not None or which.problems is not None:
        raise InputError(f"{path} is a run and has its problems with it: leave out --set and --problems")
    return read_candidate_run(path, limit=which.limit)


_ABOUT: dict[StrategyName, str] = {
    "guided": "Solve step by step, greedily: of 8 next steps the one with the highest reward, as the paper does.",
    "beam": "Solve step by step with a beam: N next steps a round, of which the best N / WIDTH go on.",
    "dvts": "Solve step by step in N / WIDTH trees that go on from their best step alone (diverse verifier tree "
    "search).",
}


def _search_command(name: StrategyName) -> Callable[..., None]:
    """The command that searches by a strategy."""

    def command(
        policy: PolicySpec,
        model: Model,
        output: RunFolder,
        which: ProblemOptions,
        shape: SearchOptions,
        analysis: AnalysisOptions,
        how: PolicyOptions,
        analyses: Annotated[
            bool, typer.Option("--analyses", help="Keep the analyses' texts: megabytes a problem.")
        ] = False,
        strict: Strict = False,
        json: Json = False,
    ) -> None:
        from rprm.cli.progress import run_behind_progress
        from rprm.errors import InputError
        from rprm.search.guided import GuidedSearch, search_problems

        strategy = shape.strategy(name)
        problems = which.read()
        writer = how.policy(policy, analysis.seed, step_tokens=shape.step_tokens)
        if writer.sampling.temperature == 0.0 and strategy.num_trees * strategy.num_samples > 1:
            raise InputError("at temperature 0 all next steps would be equal: raise --policy-temperature")
        rewarder = search_rewarder(model, analysis, writer, policy)
        guided = GuidedSearch(writer, rewarder, strategy, keep_analyses=analyses)
        outcome = Outcome(output, json)
        totals = run_behind_progress(
            lambda callbacks: search_problems(
                guided, problems, output=output, settings=which.settings, strict=strict, callbacks=callbacks
            ),
            guided.aclose, len(problems.problems), outcome.add, noun="problems", activity="searching",
        )  # fmt: skip
        outcome.show(
            totals,
            {
                "num_problems": "problems",
                "num_finished": "problems with a finished solution",
                "num_rounds": "rounds, of all trees together",
                "num_samples": "next steps sampled",
                "num_steps": "different steps to judge",
                "num_duplicates": "steps that read like another one, which was judged for both",
                "num_analyses": "analyses",
                "saved": "judging every different step in full",
                "num_policy_tokens": "tokens of the policy",
                "num_judge_tokens": "tokens of analyses",
                "num_analyses_without_verdict": "analyses without a verdict",
                "num_steps_unscored": "steps that could not be judged",
                "num_fallbacks": "steps kept without a reward to go by",
                "num_dead_ends": "trees that came to a dead end",
                "num_out_of_rounds": "trees that ran out of rounds",
                "num_out_of_tokens": "trees that ran out of tokens",
                "num_rejected": "rows rejected",
            },
        )
        refuse_nothing_judged(totals)
        leave(totals.num_rejected)

    note = "\n\nKilled, it goes on from where it was. Exit code 3 says that some rows were rejected."
    command.__doc__ = _ABOUT[name] + note
    return with_options(command)


for _name in _ABOUT:
    app.command(_name)(_search_command(_name))


def search_rewarder(model: str, analysis: AnalysisOptions, policy: Policy, policy_spec: str) -> StepRewarder:
    """What rewards steps, with the paper's longest analysis. A model that is policy and judge is loaded once."""
    from rprm.presets import judge_settings
    from rprm.rewarders import is_classifier
    from rprm.search.guided import ANALYSIS_TOKENS

    if analysis.max_tokens is None and not is_classifier(model):
        analysis = replace(analysis, max_tokens=min(ANALYSIS_TOKENS, judge_settings(model).max_tokens))
    engine = policy.engine if model == policy_spec else None
    return analysis.rewarder(model, in_full=True, engine=engine)


@app.command()
def show(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder of guided, beam or dvts.")],
    id: Annotated[str | None, typer.Option("--id", help="Of one problem; all of them by default.")] = None,
    max_characters: Annotated[
        int | None, typer.Option("--max-characters", min=1, help="Cut each step to so many characters.")
    ] = None,
) -> None:
    """Show search trees: what was proposed, what it was worth, what was kept.

    ● kept  ■ kept, and the solution ends  ○ others scored higher  · dropped: empty, or said before
    """
    from rich.console import Console

    from rprm.errors import InputError, RunError
    from rprm.report.trees import render_tree
    from rprm.runs import RESULTS, read_json_lines, read_manifest
    from rprm.search.guided import GUIDED
    from rprm.search.trees import parse_tree

    job = read_manifest(run)["stage"]
    if job != GUIDED:
        raise RunError(f"{run} is a run of stage {job!r}; trees are in runs of {GUIDED!r}")
    console = Console(highlight=False)
    is_found = False
    for tree in map(parse_tree, read_json_lines(run / RESULTS)):
        if id is None or tree.id == id:
            is_found = True
            console.print(render_tree(tree, max_characters=max_characters))
    if not is_found:
        raise InputError(f"{run} has no problem {id!r}" if id is not None else f"{run} has no finished problem yet")


class Outcome:
    """What a run comes to and, where there are gold answers, how often it is right.

    Args:
        output: its folder.
        json: one JSON object in place of tables.
        in_full: its candidates are judged in full.
    """

    def __init__(self, output: Path, json: bool, *, in_full: bool = False) -> None:
        self._output = output
        self._json = json
        self._in_full = in_full
        self._attempts: list[Attempts] = []

    def add(self, problem: Any, row: Any) -> None:
        """Take in a problem's row, so that none has to be read again."""
        from rprm.search.measure import Attempts

        self._attempts.append(Attempts.of(row, in_full=self._in_full))

    def show(self, totals: SampleTotals | BestOfNTotals | SearchTotals, words: Mapping[str, str], **more: int) -> None:
        """Print it.

        Args:
            words: what each of the totals counts; of "saved", against what they were saved; 0 is left out.
            more: further totals.
        """
        from rprm.report.mathematics import search_table
        from rprm.search.measure import measure_runs, read_search_run

        counts = totals.as_dict() | more
        has_gold = any(attempts.problem.answer is not None for attempts in self._attempts)

        def measured() -> SearchMeasurement:
            return measure_runs([read_search_run(self._output, self._attempts)])

        if self._json:
            from json import dumps

            told = {"totals": counts, "measurement": measured().as_dict() if has_gold else None}
            print(dumps({"output": str(self._output)} | told, ensure_ascii=False))
            return
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        console = Console(highlight=False)
        table = Table(box=None, padding=(0, 1), show_header=False)
        table.add_column(justify="right", style="bold")
        table.add_column()
        for name, text in words.items():
            if name == "saved":
                number = counts["num_analyses_full"] - counts["num_analyses"]
                share = f" ({number / counts['num_analyses_full']:.0%})" if number else ""
                text = f"analyses saved{share}, against {text}"
            else:
                number = counts[name]
            if number:
                table.add_row(f"{number:,}", text)
        console.print(table)
        console.print(Text(f"results: {self._output / 'results.jsonl'}", style="dim"))
        if has_gold:
            console.print(search_table(measured()))


def leave(num_rejected: int) -> None:
    """Exit code 3 where rows were rejected."""
    from rprm.cli import EXIT_REJECTED

    if num_rejected:
        raise typer.Exit(EXIT_REJECTED)
