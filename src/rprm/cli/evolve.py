"""`rprm evolve`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rprm.cli.options import Json, with_options
from rprm.training.settings import RoundSettings

if TYPE_CHECKING:
    from rprm.evolve import RoundResult


@with_options
def evolve(
    steps: Annotated[
        str, typer.Argument(metavar="STEPS", help="A run folder of `rprm data steps`, or a file of labelled steps.")
    ],
    model: Annotated[str, typer.Option("--model", "-m", help="Folder or hub id of the model to begin with.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the rounds; a killed run resumes there.")],
    *,
    settings: RoundSettings,
    launcher: Annotated[
        str, typer.Option(help='Starts the training processes, as in "accelerate launch --config_file FILE".')
    ] = "",
    prompt: Annotated[str | None, typer.Option(help="Template, where the model's folder carries none.")] = None,
    train_options: Annotated[
        list[str] | None, typer.Argument(metavar="[-- TRAIN OPTIONS]", help="Passed to `rprm train dpo`.")
    ] = None,
    json: Json = False,
) -> None:
    """Preference optimisation in rounds: sample, pair, DPO, measure; the better model goes on.

    The problems to measure on are the ones that `rprm data cold-start` holds out with the same share and seed. Options
    after -- go to `rprm train dpo`, as in: rprm evolve STEPS -m MODEL -o DIR -- --preset small-lora --beta 0.1
    """
    import shlex

    from rich.console import Console

    from rprm.evolve import evolve as run_rounds

    console, errors = Console(highlight=False), Console(stderr=True, highlight=False)
    settings, started_by = replace(settings, train_options=tuple(train_options or ())), shlex.split(launcher)
    results = run_rounds(
        steps, model, output, settings, launcher=started_by, prompt=prompt,
        on_stage=lambda number, stage: errors.print(f"round {number}: {stage}", style="dim"),
        on_round=lambda result: print(result.model_dump_json(), flush=True) if json else None,
    )  # fmt: skip
    if not json:
        console.print(_table(results))
        console.print(f"best model: {results[-1].best}", markup=False)


def _table(results: list[RoundResult]) -> Any:
    from rich.table import Table

    title = (
        "Rounds, measured on the validation steps: accuracies on wrong and on correct ones, their harmonic mean (F1) "
        "and its change against the best model before, share of well-formed analyses"
    )
    table = Table(box=None, padding=(0, 1), title=title, title_justify="left")
    for name in ("round", "pairs", "wrong", "correct", "F1", "change", "formed", ""):
        table.add_column(name, justify="left" if not name else "right", no_wrap=True)
    for result in results:
        numbers = (result.wrong_acc, result.correct_acc, result.f1)
        change = "" if result.difference is None else f"{result.difference:+.1f}"
        if result.difference_low is not None and result.difference_high is not None:
            change += f" [{result.difference_low:+.1f}, {result.difference_high:+.1f}]"
        pairs = "" if result.num_pairs is None else f"{result.num_pairs:,}"
        formed = "" if result.wellformed is None else f"{result.wellformed:.1f}"
        fate = "start" if result.round == 0 else "goes on" if result.kept else "dropped"
        cells = (str(result.round), pairs, *(f"{number:.1f}" for number in numbers), change, formed, fate)
        table.add_row(*cells, style="" if result.kept else "dim")
    return table
