"""`rprm search guided`, `beam`, `dvts` and `show`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
from rprm.cli.search import (
    Aggregate,
    AggregationName,
    ChoiceStoppingName,
    Data,
    Json,
    Limit,
    PolicyPrompt,
    PolicySpec,
    PolicyTemperature,
    PolicyTopP,
    ProblemFile,
    Revision,
    RunFolder,
    Sets,
    leave,
    load_policy,
    load_problems,
    saved_analyses,
    show_run,
)

if TYPE_CHECKING:
    from rprm.jobs import Callbacks
    from rprm.rewarders.base import StepRewarder
    from rprm.search.guided import GuidedSearch, StrategyName
    from rprm.search.policy import Policy
    from rprm.search.problems import Problems
    from rprm.search.trees import SearchTotals

NumSamples = Annotated[
    int | None,
    typer.Option("-n", "--num-samples", help="Of beam and dvts: next steps in a round.  [default: 4]"),
]
Width = Annotated[
    int | None,
    typer.Option("--width", help="Next steps after each step held.  [default: 8; of beam and dvts 4]"),
]
SearchStopping = Annotated[
    ChoiceStoppingName,
    typer.Option("--stopping", help="exact: judge until each choice is certain, it is the same. none: all in full."),
]
Wave = Annotated[
    int | None,
    typer.Option(
        "--wave",
        min=1,
        help="For --stopping exact: most analyses of a problem at once. Fewer cost less in all, more are sooner done.  "
        "[default: two for each next step]",
    ),
]
MaxRounds = Annotated[
    int | None, typer.Option("--max-rounds", help="Most steps of a solution.  [default: 30; of beam and dvts 40]")
]
StepTokens = Annotated[
    int | None, typer.Option("--step-tokens", min=1, help="Longest step, in tokens.  [default: 512]")
]
MaxSolutionTokens = Annotated[
    int | None,
    typer.Option(
        "--max-solution-tokens", help="A solution that has not ended by then is given up.  [default: no limit]"
    ),
]
KeepAnalyses = Annotated[bool, typer.Option("--analyses", help="Keep the analyses' texts: megabytes a problem.")]

_ABOUT: dict[StrategyName, str] = {
    "guided": "Solve step by step, greedily: of 8 next steps the one with the highest reward, as the paper does.",
    "beam": "Solve step by step with a beam: N next steps a round, of which the best N / WIDTH go on.",
    "dvts": "Solve step by step in N / WIDTH trees that go on from their best step alone (diverse verifier tree "
    "search).",
}
_NOTE = "\n\nKilled, it goes on from where it was. Exit code 3 says that some rows were rejected."


def search_command(name: StrategyName) -> Callable[..., None]:
    """The command that searches by a strategy."""

    def command(
        policy: PolicySpec,
        model: Model,
        output: RunFolder,
        sets: Sets = None,
        problems: ProblemFile = None,
        data: Data = None,
        revision: Revision = None,
        limit: Limit = None,
        n: NumSamples = None,
        width: Width = None,
        aggregate: Aggregate = AggregationName.last,
        stopping: SearchStopping = ChoiceStoppingName.exact,
        wave: Wave = None,
        max_rounds: MaxRounds = None,
        step_tokens: StepTokens = None,
        max_solution_tokens: MaxSolutionTokens = None,
        num_analyses: NumAnalyses = None,
        force_verdict: ForceVerdict = None,
        prompt: PromptOption = None,
        temperature: Temperature = None,
        top_p: TopP = None,
        max_tokens: MaxTokens = None,
        policy_prompt: PolicyPrompt = None,
        policy_temperature: PolicyTemperature = None,
        policy_top_p: PolicyTopP = None,
        seed: Seed = 0,
        analyses: KeepAnalyses = False,
        strict: Strict = False,
        json: Json = False,
    ) -> None:
        from rprm.errors import InputError
        from rprm.search.guided import GuidedSearch, search_strategy

        if name == "guided" and n is not None:
            raise InputError("guided search has one beam: --width says how many next steps it samples")
        strategy = search_strategy(
            name, n=n, width=width, aggregation=aggregate.value, max_rounds=max_rounds,
            max_solution_tokens=max_solution_tokens,
            racing=stopping is ChoiceStoppingName.exact, wave=wave,
        )  # fmt: skip
        found = load_problems(sets, problems, data=data, revision=revision, limit=limit)
        writer = load_policy(
            policy, prompt=policy_prompt, temperature=policy_temperature, top_p=policy_top_p,
            step_tokens=step_tokens, seed=seed,
        )  # fmt: skip
        if writer.sampling.temperature == 0.0 and strategy.num_trees * strategy.num_samples > 1:
            raise InputError("at temperature 0 all next steps would be equal: raise --policy-temperature")
        rewarder = load_search_rewarder(
            model, writer, policy, num_analyses=num_analyses, force_verdict=force_verdict, prompt=prompt,
            temperature=temperature, top_p=top_p, max_tokens=max_tokens, seed=seed,
        )  # fmt: skip
        search = GuidedSearch(writer, rewarder, strategy, keep_analyses=analyses)
        totals = _search(search, found, output, {} if limit is None else {"limit": limit}, strict)
        show_run(_searched(totals), totals.as_dict(), output, json)
        refuse_nothing_judged(totals)
        leave(totals.num_rejected)

    command.__doc__ = _ABOUT[name] + _NOTE
    return command


def show(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder of guided, beam or dvts.")],
    id: Annotated[str | None, typer.Option("--id", help="Of one problem; all of them by default.")] = None,
    replay: Annotated[
        bool, typer.Option("--replay", help="Search again from what is stored: the same trees must come out.")
    ] = False,
    max_characters: Annotated[
        int | None, typer.Option("--max-characters", min=1, help="Cut each step to so many characters.")
    ] = None,
) -> None:
    """Show search trees: what was proposed, what it was worth, what was kept.

    ● kept  ■ kept, and the solution ends  ○ others scored higher  · dropped: empty, or said before
    """
    from rich.console import Console
    from rich.text import Text

    from rprm.errors import CorruptRun, InputError
    from rprm.report.trees import render_tree
    from rprm.search.replay import differences
    from rprm.search.replay import replay as search_again

    console = Console(highlight=False)
    num_found = 0
    for tree in _read_trees(run):
        if id is not None and tree.id != id:
            continue
        num_found += 1
        if not replay:
            console.print(render_tree(tree, max_characters=max_characters))
        elif parted := differences(tree, search_again(tree)):
            raise CorruptRun(f"{run}, problem {tree.id!r}: searched again, it comes out otherwise: {parted[0]}")
    if not num_found:
        raise InputError(f"{run} has no problem {id!r}" if id is not None else f"{run} has no finished problem yet")
    if replay:
        console.print(Text(f"{num_found:,} problems searched again: the same trees"))


def _read_trees(run: Path) -> Any:
    from rprm.errors import RunError
    from rprm.runs import RESULTS, read_json_lines, read_manifest
    from rprm.search.guided import STAGE
    from rprm.search.trees import parse_tree

    stage = read_manifest(run)["stage"]
    if stage != STAGE:
        raise RunError(f"{run} is a run of stage {stage!r}; trees are in runs of {STAGE!r}")
    return map(parse_tree, read_json_lines(run / RESULTS))


def load_search_rewarder(model: str, policy: Policy, policy_spec: str, **options: Any) -> StepRewarder:
    """What rewards steps. A model that is policy and judge is loaded once."""
    from rprm.presets import judge_settings
    from rprm.rewarders import is_classifier, load_judge, load_rewarder
    from rprm.search.guided import ANALYSIS_TOKENS

    if is_classifier(model):
        return load_rewarder(model, **options)
    if options["max_tokens"] is None:
        options["max_tokens"] = min(ANALYSIS_TOKENS, judge_settings(model).max_tokens)
    engine = policy.engine if model == policy_spec else None
    return load_judge(model, engine=engine, procedure="full", **options)


def _search(
    search: GuidedSearch, problems: Problems, output: Path, settings: dict[str, Any], strict: bool
) -> SearchTotals:
    from rprm.cli.progress import run_behind_progress
    from rprm.search.guided import search_problems

    def work(callbacks: Callbacks) -> Awaitable[SearchTotals]:
        return search_problems(search, problems, output=output, settings=settings, strict=strict, callbacks=callbacks)

    return run_behind_progress(work, search.aclose, len(problems.problems), noun="problems", activity="searching")


def _searched(totals: SearchTotals) -> list[tuple[int, str]]:
    return [
        (totals.num_problems, "problems"),
        (totals.num_finished, "problems with a finished solution"),
        (totals.num_rounds, "rounds, of all trees together"),
        (totals.num_samples, "next steps sampled"),
        (totals.num_steps, "different steps to judge"),
        (totals.num_duplicates, "steps that read like another one, which was judged for both"),
        (totals.num_analyses, "analyses"),
        saved_analyses(totals, "judging every different step in full"),
        (totals.num_policy_tokens, "tokens of the policy"),
        (totals.num_judge_tokens, "tokens of analyses"),
        (totals.num_analyses_without_verdict, "analyses without a verdict"),
        (totals.num_steps_unscored, "steps that could not be judged"),
        (totals.num_fallbacks, "steps kept without a reward to go by"),
        (totals.num_dead_ends, "trees that came to a dead end"),
        (totals.num_out_of_rounds, "trees that ran out of rounds"),
        (totals.num_out_of_tokens, "trees that ran out of tokens"),
        (totals.num_rejected, "rows rejected"),
    ]
