"""`rprm data`: labelled steps in, training rows out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from json import dumps
from pathlib import Path
from typing import Annotated, Any

import typer

from rprm import ranges
from rprm.cli import EXIT_REJECTED
from rprm.cli.judge import refuse_nothing_judged, refuse_nothing_read, run_behind_progress
from rprm.cli.options import (
    ClusterOptions,
    CompletionOptions,
    FirstErrorOptions,
    Json,
    Map,
    Seed,
    Strict,
    given,
    with_options,
)
from rprm.data import stage_options as settings
from rprm.errors import InputError, PromptError, RunError

app = typer.Typer(rich_markup_mode=None, no_args_is_help=True, help="Training data: labelled steps, analyses, rows.")

Analyses = Annotated[Path, typer.Argument(metavar="ANALYSES", help="A run of `rprm data analyses`, or its rows.")]
Output = Annotated[Path, typer.Option("--output", "-o", help="Output folder; the same command rewrites it.")]
RunFolder = Annotated[Path, typer.Option("--output", "-o", help="Run folder; the same command resumes a killed run.")]
TrainedPrompt = Annotated[str | None, typer.Option(help="The student's template.  [default: that of the analyses]")]


@app.command()
@with_options
def steps(
    sources: Annotated[list[str], typer.Argument(metavar="SOURCE...", help="Files, runs of this command, hub sets.")],
    output: Output,
    *,
    format: Annotated[
        settings.Format, {"metavar": "NAME"}, "auto: by each row's fields. An unknown name lists those that there are."
    ] = "auto",
    options: settings.StepOptions,
    map: Map = None,
    exclude_benchmark: Annotated[
        list[str] | None, "-x", "--exclude-benchmark", "Leave out its problems: NAME, PATH or NAME=PATH."
    ] = None,
    ngram: Annotated[ranges.Draws, "Tokens in the n-grams that problems share."] = settings.NGRAM,
    overlap: Annotated[ranges.Overlap, "Share of common n-grams that makes two problems one."] = settings.OVERLAP,
    limit: Annotated[ranges.Rows | None, "Read N steps alone, before any is left out."] = None,
    strict: Strict = False,
    json: Json = False,
) -> None:
    """Gather labelled steps: one row for each step, without repetitions and without problems of benchmarks.

    The folder gets results.jsonl (the steps), removed.jsonl (problems of benchmarks), rejected.jsonl and summary.json.
    """
    from rprm.data.gathering import gather_steps, read_benchmarks
    from rprm.data.steps import gathered_source
    from rprm.reading import with_columns
    from rprm.terminal import Terminal

    with Terminal(stderr=True).status("reading the benchmarks") as status:
        found = [gathered_source(with_columns(source, map)) for source in sources]
        benchmarks = [part for name in exclude_benchmark or [] for part in read_benchmarks(name)]
        status.update("reading labelled steps")
        summary = gather_steps(
            found, output, format=format, options=options, benchmarks=benchmarks, ngram=ngram, overlap=overlap,
            limit=limit, strict=strict,
            on_row=lambda num_rows, num_steps: status.update(f"{num_rows:,} rows, {num_steps:,} labelled steps"),
        )  # fmt: skip
    counts = {f"rows read as {name}": count for name, count in summary["formats"].items()}
    counts[f"labelled steps ({summary['num_wrong']:,} wrong)"] = summary["num_steps"]
    for place, labels in summary["positions"].items():
        counts[f"at step {place + 1} ({labels['wrong']:,} wrong)"] = sum(labels.values())
    counts |= {"problems": summary["num_problems"], "paths of steps": summary["num_solutions"]}
    counts["left out: repeated steps"] = summary["num_duplicates"]
    counts["left out: the same step is called correct and wrong"] = summary["num_conflicting"]
    for name, removed in summary["removed"].items():
        counts[f"left out: of {removed['problems']:,} problems that stand in {name}"] = removed["steps"]
    counts |= {f"not used: {reason}": count for reason, count in summary["skipped"].items()}
    counts["rows rejected (rejected.jsonl)"] = summary["num_rejected"]
    shown = _show(summary, counts, summary["num_rejected"], output, json)
    refuse_nothing_read(", ".join(sources), "labelled step to keep", summary["num_steps"], summary["num_rejected"])
    raise shown


@app.command()
@with_options
def rollouts(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOLUTIONS",
            help="A run of `rprm search sample`; or rows {id?, problem, steps[] | solution, answer, set?}, those "
            "of one problem side by side.",
        ),
    ],
    output: RunFolder,
    policy: Annotated[
        str | None, "--policy", "-p", {"metavar": "SPEC"}, "The model that completes them, as for `rprm judge -m`."
    ] = None,
    *,
    options: settings.RolloutOptions,
    outcomes: Annotated[bool, "--outcomes", "Ask no policy: whether final answers are right is all."] = False,
    how: CompletionOptions,
    seed: Seed = 0,
    map: Map = None,
    limit: Annotated[ranges.Rows | None, "The first N problems alone."] = None,
    replicated: ClusterOptions,
    strict: Strict = False,
    json: Json = False,
) -> None:
    """Label steps without annotators: a policy completes each beginning of a solution, and the answers are graded.

    The folder gets results.jsonl (every completion's answer) and solutions.jsonl (the labels; `rprm data steps` takes
    the folder). The same command resumes a killed run. Exit code 3: some rows were rejected.
    """
    from rprm.data.rollouts import roll_out
    from rprm.data.solutions import read_solved
    from rprm.reading import with_columns

    if (policy is None) is not outcomes:
        raise InputError("say who completes the solutions, --policy SPEC; or --outcomes, for final answers alone")
    rows, info = read_solved(with_columns(source, map), limit=limit)
    model = how.policy(policy, seed) if policy is not None else None
    if model is not None and model.sampling.temperature == 0.0 and options.num_completions > 1:
        raise InputError(
            "at temperature 0 all completions of a beginning would be equal; ask for one (-n 1), or raise "
            "--policy-temperature"
        )
    limited, cluster = {} if limit is None else {"limit": limit}, replicated.cluster(model) if model else None
    totals = run_behind_progress(
        lambda callbacks: roll_out(
            model, rows, options, source=info, output=output, settings=limited, strict=strict, callbacks=callbacks,
            cluster=cluster,
        ),
        model.engine.aclose if model is not None else _nothing, limit, noun="problems", activity="completing",
        replay=False, cluster=cluster,
    )  # fmt: skip
    shown = _show(totals.as_dict(), _told(totals), totals.num_rejected, output, json)
    refuse_nothing_read(source, "solution", totals.num_solutions, totals.num_rejected)
    if totals.nothing_judged:
        unsolved = "the policy solves none of the problems" if totals.num_unsolved else ""
        reason = totals.failure or unsolved or "no completion came to an answer that could be graded"
        raise RunError(f"nothing was found out of any solution; {reason}")
    raise shown


async def _nothing() -> None:
    """There is no model to close."""


def _told(totals: Any) -> dict[str, int]:
    """The counts of totals that are not 0, in words."""
    counts = {one.metadata["what"]: getattr(totals, one.name) for one in fields(totals) if one.metadata}
    if (full := getattr(totals, "num_completions_full", 0)) and totals.num_completions:
        saved = full - totals.num_completions
        counts.pop("completing every step of every solution")
        counts[f"completions saved ({saved / full:.0%}), against completing every step of every solution"] = saved
    return {what: count for what, count in counts.items() if count}


@app.command()
@with_options
def agree(
    source: Annotated[
        str,
        typer.Argument(
            metavar="LABELS",
            help="Solutions or steps with labels: a run of `rprm data rollouts`, `steps` or `inject`, or a file.",
        ),
    ],
    output: RunFolder,
    model: Annotated[str | None, "--model", "-m", "Who gives a second opinion, as for `rprm judge`."] = None,
    *,
    with_: Annotated[
        Path | None, "--with", {"metavar": "RUN"}, "In place of --model: a run of `rprm judge` over the same rows."
    ] = None,
    unanimous: Annotated[
        bool, "--unanimous", "Every sample (-k) must say the same; rows without a label get that one."
    ] = False,
    options: FirstErrorOptions,
    map: Map = None,
    limit: Annotated[ranges.Rows | None, "The first N rows alone."] = None,
    replicated: ClusterOptions,
    strict: Strict = False,
    json: Json = False,
) -> None:
    """Keep the labels that a second opinion shares: a critic's or a judge's about the first error, or about the step.

    The folder gets solutions.jsonl (or steps.jsonl; `rprm data steps` takes the folder), dropped.jsonl and a card.
    """
    from rprm.data.agreement import keep_agreeing, open_labels, told
    from rprm.reading import with_columns
    from rprm.rewarders.base import judge_source
    from rprm.runs import JUDGED

    if (model is None) is (with_ is None):
        raise InputError("say whose second opinion: --model SPEC, or --with RUN of one that has been given")
    labels = open_labels(with_columns(source, map), limit)
    if model is not None:
        drawn = replace(options, stopping=options.stopping or "none") if unanimous else options
        rewarder = drawn.rewarder(model)
        rule = getattr(rewarder, "rule", None)
        if unanimous and (rule is None or rule.num_analyses < 2 or rule.stopping != "none"):
            raise InputError(
                "--unanimous needs several samples, all of them drawn: a judge or critic with -k 2 or more, without "
                "--stopping"
            )
        info, cluster = labels.source.inspect(), replicated.cluster(rewarder)
        totals = run_behind_progress(
            lambda callbacks: judge_source(
                rewarder, labels.solutions(), source=info, output=output / JUDGED,
                settings={} if limit is None else {"limit": limit}, strict=strict, callbacks=callbacks,
                cluster=cluster, last_step=labels.are_steps,
            ),
            rewarder.aclose, limit or info.num_rows, noun="rows", replay=False, cluster=cluster,
        )  # fmt: skip
        refuse_nothing_judged(totals)
        refuse_nothing_read(source, "label", totals.num_solutions, totals.num_rejected)
    summary = keep_agreeing(labels, with_ or output / JUDGED, output, unanimous=unanimous, strict=strict)
    raise _show(summary, told(summary), summary["num_rejected"], output, json)


@app.command()
@with_options
def inject(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOLUTIONS",
            help="As for `rprm data rollouts`; those that are right by their label (-1), or else their answer.",
        ),
    ],
    output: RunFolder,
    model: Annotated[
        str | None,
        "--model",
        "-m",
        {"metavar": "SPEC"},
        "Who rewrites steps; without one a program edits calculations.",
    ] = None,
    policy: Annotated[
        str | None,
        "--policy",
        "-p",
        {"metavar": "SPEC"},
        "Who goes on after the wrong step.  [default: --model; without both it is the last]",
    ] = None,
    *,
    prompt: Annotated[str | None, "Of --model: a template (`rprm prompts show --injection`)."] = None,
    options: settings.InjectOptions,
    how: CompletionOptions,
    map: Map = None,
    limit: Annotated[ranges.Rows | None, "The first N problems alone."] = None,
    replicated: ClusterOptions,
    strict: Strict = False,
    json: Json = False,
) -> None:
    """Make right solutions wrong at one step, by a kind of error; what then comes to the right answer is dropped.

    The folder gets solutions.jsonl (`rprm data steps` takes the folder) and a card. Kinds of errors: calculation,
    operand; with --model also operation, condition, consistency, assumption, rule.
    """
    from rprm.data.injection import Injector, inject_errors
    from rprm.data.solutions import read_solved
    from rprm.engines import Sampling, load_engine
    from rprm.prompts import load_injection_template
    from rprm.reading import with_columns

    rows, info = read_solved(with_columns(source, map), limit=limit)
    after = policy or model
    writer = how.policy(after, options.seed) if after is not None else None
    engines = [writer.engine] if writer is not None else []
    engine = None if model is None else engines[0] if model == after else load_engine(model)
    sampling = Sampling(how.policy_temperature, how.policy_top_p, how.policy_max_tokens)
    injector = Injector(engine, load_injection_template(prompt), sampling, writer, options)
    engines += [engine] if engine is not None and engine not in engines else []
    limited, cluster = {} if limit is None else {"limit": limit}, replicated.cluster(*engines) if engines else None
    injector.errors  # noqa: B018  # an unknown one is refused before a model is loaded

    async def close() -> None:
        for one in engines:
            await one.aclose()

    totals = run_behind_progress(
        lambda callbacks: inject_errors(
            injector, rows, source=info, output=output, settings=limited, strict=strict, callbacks=callbacks,
            cluster=cluster,
        ),
        close, limit, noun="problems", activity="writing", replay=False, cluster=cluster,
    )  # fmt: skip
    shown = _show(totals.as_dict(), _told(totals), totals.num_rejected, output, json)
    refuse_nothing_read(source, "solution", totals.num_solutions, totals.num_rejected)
    raise shown


@app.command()
@with_options
def analyses(
    context: typer.Context,
    source: Annotated[str, typer.Argument(metavar="STEPS", help="A run of `rprm data steps`, or a file of its rows.")],
    output: Output,
    model: Annotated[str, "--model", "-m", "Teacher or student, as for `rprm judge`."],
    *,
    preset: Annotated[str | None, "paper: 4 analyses of up to 8,192 tokens."] = None,
    options: settings.SamplingOptions,
    prompt: Annotated[str | None, "Template.  [default: the model's own, else teacher]"] = None,
    seed: Seed = 0,
    map: Map = None,
    limit: Annotated[ranges.Rows | None, "The first N steps alone."] = None,
    replicated: ClusterOptions,
    strict: Strict = False,
    json: Json = False,
) -> None:
    """Let a model write analyses of labelled steps. The same command resumes a killed run.

    For preference pairs, let the student write more of them at the temperature of judging: -n 8 --temperature 0.95.
    """
    from rprm.data.analyses import sample_analyses
    from rprm.data.steps import read_labelled_steps, steps_source
    from rprm.models import template_for
    from rprm.prompts import load_template
    from rprm.reading import with_columns
    from rprm.rewarders import load_judge

    template = load_template(prompt) if prompt else template_for(model, "teacher")
    sampling = asdict(_preset(settings.SAMPLING_PRESETS, preset, given(context, options)))
    judge = load_judge(model, **sampling, stopping="none", prompt=template, seed=seed, force_verdict=False)
    info = (opened := steps_source(with_columns(source, map))).inspect()
    rows = read_labelled_steps(opened, limit)
    limited, cluster = {} if limit is None else {"limit": limit}, replicated.cluster(judge)
    totals = run_behind_progress(
        lambda callbacks: sample_analyses(
            judge, rows, source=info, output=output, settings=limited, strict=strict, callbacks=callbacks,
            cluster=cluster,
        ),
        judge.aclose, info.num_rows if limit is None else limit, noun="steps", replay=False, cluster=cluster,
    )  # fmt: skip
    shown = _show(totals.as_dict(), totals.as_dict(), totals.num_rejected, output, json)
    refuse_nothing_judged(totals)
    refuse_nothing_read(source, "labelled step", totals.num_steps, totals.num_rejected)
    raise shown


@app.command()
@with_options
def cold_start(
    source: Analyses, output: Output, *, prompt: TrainedPrompt = None, options: settings.ColdStartOptions,
    json: Json = False,
) -> None:  # fmt: skip
    """Rows for `rprm train sft`: the analyses whose verdict agrees with the label and stands once, at the end."""
    _choose(source, output, prompt, options, json)


@app.command()
@with_options
def pairs(
    context: typer.Context, source: Analyses, output: Output, *, prompt: TrainedPrompt = None,
    preset: Annotated[str | None, "published: --per-step 2, more than a third agree."] = None,
    options: settings.PairOptions, json: Json = False,
) -> None:  # fmt: skip
    """Rows for `rprm train dpo`: of one step, an analysis that agrees with the label against one that does not."""
    _choose(source, output, prompt, _preset(settings.PAIR_PRESETS, preset, given(context, options)), json)


@app.command("import")
@with_options
def import_(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="kevinpro/R-PRM?data_dir=sft, such a folder, file.")],
    output: Output,
    prompt: Annotated[str | None, typer.Option(help="Template of every row.  [default: derived from the rows]")] = None,
    json: Json = False,
) -> None:
    """Rows for `rprm train` out of published ones: labels from their verdicts, the template from the rows themselves.

    Rows that do not fit are rejected, each with its reason.
    """
    from rprm.data.published import open_published, write_published
    from rprm.prompts import load_template

    template = load_template(prompt) if prompt is not None else None
    raise _show_rows(write_published(open_published(source), output, template=template), output, json)


def _preset(presets: Mapping[str, Any], name: str | None, named: Mapping[str, Any]) -> Any:
    if name is not None and name not in presets:
        raise InputError(f"no preset {name!r}; there are {', '.join(presets)}")
    return replace(presets[name or "default"], **named)


def _choose(source: Path, output: Path, prompt: str | None, options: Any, json: bool) -> None:
    from rprm.data.analyses import open_analyses
    from rprm.data.datasets import write_rows
    from rprm.prompts import load_template

    opened = open_analyses(source)
    template = load_template(prompt) if prompt is not None else opened.template
    if template is None:
        raise PromptError("a plain file of analyses does not tell its template: give --prompt")
    raise _show_rows(write_rows(opened, output, template, options), output, json)


def _show_rows(summary: Mapping[str, Any], output: Path, json: bool) -> typer.Exit:
    counts = {
        f"{part} rows ({one['yes']:,} Yes, {one['no']:,} No; {one['problems']:,} problems)": one["rows"]
        for part, one in summary["parts"].items()
    }
    counts |= summary["counts"]
    left_out = {f"dropped: {reason}": count for reason, count in summary["dropped"].items()}
    left_out["input rows rejected"] = summary["rejected"]
    counts |= {what: count for what, count in left_out.items() if count}
    return _show(summary, counts, summary["rejected"], output, json)


def _show(
    summary: Mapping[str, Any], counts: Mapping[str, int], num_rejected: int, output: Path, json: bool
) -> typer.Exit:
    """Show the summary as JSON, or its counts as a table; returns how the command ends."""
    from rich.table import Table

    from rprm.showing import one_line
    from rprm.terminal import Terminal

    if json:
        print(dumps(summary, ensure_ascii=False))
    else:
        table = Table(box=None, padding=(0, 1), show_header=False)
        table.add_column(justify="right", style="bold")
        for name, count in counts.items():
            table.add_row(f"{count:,}", name.removeprefix("num_").replace("_", " "))
        console = Terminal()
        console.print(table)
        console.print(one_line(f"written to {output}"), style="dim")
    return typer.Exit(EXIT_REJECTED if num_rejected else 0)
