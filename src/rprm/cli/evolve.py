"""`rprm evolve`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rprm.evolve import RoundResult


def evolve(
    steps: Annotated[
        str, typer.Argument(metavar="STEPS", help="A run folder of `rprm data steps`, or a file of labelled steps.")
    ],
    model: Annotated[str, typer.Option("--model", "-m", help="Folder or hub id of the model to begin with.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the rounds; a killed run goes on there.")],
    num_rounds: Annotated[int, typer.Option("--rounds", min=1, help="Rounds of sampling and training.")] = 1,
    engine: Annotated[
        str, typer.Option(help="Engine that samples and measures: transformers or vllm.")
    ] = "transformers",
    engine_options: Annotated[str, typer.Option(help="Its options: name=value&name=value.")] = "",
    num_analyses: Annotated[int, typer.Option("-n", "--num-analyses", min=2, help="Sampled of each step.")] = 8,
    judge_analyses: Annotated[int, typer.Option("-k", min=1, help="K of the measurement.")] = 4,
    num_sampled_steps: Annotated[
        int | None, typer.Option("--sampled-steps", min=1, help="Training steps a round samples.  [default: all]")
    ] = None,
    temperature: Annotated[float, typer.Option(help="Of the analyses.")] = 0.95,
    top_p: Annotated[float, typer.Option(help="Of the analyses.")] = 0.95,
    max_tokens: Annotated[int, typer.Option(help="Longest analysis, in tokens.")] = 2048,
    validation_share: Annotated[
        float, typer.Option("--validation", min=0.0, max=0.99, help="Share of the problems to measure on.")
    ] = 0.05,
    per_step: Annotated[int, typer.Option(min=1, help="Most pairs of one step.")] = 1,
    min_accuracy: Annotated[float, typer.Option(min=0.0, max=1.0, help="As for `rprm data pairs`.")] = 0.0,
    max_accuracy: Annotated[float, typer.Option(min=0.0, max=1.0, help="As for `rprm data pairs`.")] = 1.0,
    max_length_ratio: Annotated[float | None, typer.Option(min=1.0, help="As for `rprm data pairs`.")] = None,
    min_repeats: Annotated[int, typer.Option(min=1, help="As for `rprm data pairs`.")] = 1,
    balance: Annotated[bool, typer.Option(help="As for `rprm data pairs`.")] = True,
    launcher: Annotated[
        str, typer.Option(help='Starts the training processes, as in "accelerate launch --config_file FILE".')
    ] = "",
    prompt: Annotated[str | None, typer.Option(help="Template, where the model's folder carries none.")] = None,
    seed: Annotated[int, typer.Option(help="Of the split and the sampling.")] = 0,
    train_options: Annotated[
        list[str] | None, typer.Argument(metavar="[-- TRAIN OPTIONS]", help="Passed to `rprm train dpo`.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object a round on standard output.")] = False,
) -> None:
    """Preference optimisation in rounds: sample, pair, DPO, measure; the better model goes on.

    The problems to measure on are the ones that `rprm data cold-start` holds out with the same share and seed. Options
    after -- go to `rprm train dpo`, as in: rprm evolve STEPS -m MODEL -o DIR -- --preset small-lora --beta 0.1
    """
    import shlex

    from rich.console import Console

    from rprm.evolve import RoundSettings
    from rprm.evolve import evolve as run_rounds

    pair_options = [
        "--per-step",
        str(per_step),
        "--min-accuracy",
        str(min_accuracy),
        "--max-accuracy",
        str(max_accuracy),
        "--min-repeats",
        str(min_repeats),
    ]
    if not balance:
        pair_options.append("--no-balance")
    if max_length_ratio is not None:
        pair_options += ["--max-length-ratio", str(max_length_ratio)]
    console = Console(stderr=True, highlight=False)

    def tell(result: RoundResult) -> None:
        if json:
            print(result.model_dump_json(), flush=True)

    results = run_rounds(
        steps,
        model,
        output,
        RoundSettings(
            num_rounds=num_rounds,
            engine=engine,
            engine_options=engine_options,
            num_analyses=num_analyses,
            temperature=temperature,
            top_p=top_p,
            max_tokens=max_tokens,
            judge_analyses=judge_analyses,
            num_sampled_steps=num_sampled_steps,
            validation_share=validation_share,
            pair_options=tuple(pair_options),
            train_options=tuple(train_options or ()),
            seed=seed,
        ),
        launcher=shlex.split(launcher),
        prompt=prompt,
        on_stage=lambda number, stage: console.print(f"round {number}: {stage}", style="dim"),
        on_round=tell,
    )
    if not json:
        Console(highlight=False).print(_table(results))
        Console(highlight=False).print(f"best model: {results[-1].best}", markup=False)


def _table(results: list[RoundResult]) -> Any:
    from rich.table import Table

    table = Table(
        box=None,
        padding=(0, 1),
        title="Rounds, measured on the validation steps: accuracies on wrong and on correct ones, their harmonic mean "
        "(F1) and its change against the best model before, share of well-formed analyses",
        title_justify="left",
    )
    for name in ("round", "pairs", "wrong", "correct", "F1", "change", "formed", ""):
        table.add_column(name, justify="left" if not name else "right", no_wrap=True)
    for result in results:
        difference = ""
        if result.difference is not None:
            difference = f"{result.difference:+.1f}"
            if result.difference_low is not None and result.difference_high is not None:
                difference += f" [{result.difference_low:+.1f}, {result.difference_high:+.1f}]"
        table.add_row(
            str(result.round),
            "" if result.num_pairs is None else f"{result.num_pairs:,}",
            f"{result.wrong_acc:.1f}",
            f"{result.correct_acc:.1f}",
            f"{result.f1:.1f}",
            difference,
            "" if result.wellformed is None else f"{result.wellformed:.1f}",
            "start" if result.round == 0 else "goes on" if result.kept else "dropped",
            style="" if result.kept else "dim",
        )
    return table
