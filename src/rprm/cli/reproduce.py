"""`rprm reproduce`: rows of published tables, ours beside them."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rprm import ranges
from rprm.cli.options import Json, with_options
from rprm.errors import InputError

if TYPE_CHECKING:
    from rprm.reproduce import PublishedRow

_MODEL = "In place of the row's: as for `rprm judge`; of a row that is judged once also a file of scores, or a run."
#: Options that this command gives to its stages, or that they have no use for.
_OWN = ("--output", "-o", "--data", "--limit", "--model", "-m", "--scores", "--policy", "-p", "--json", "--help", "-h")
_OPTIONS = "Of the command that judges, or samples."


@with_options
def reproduce(
    row: Annotated[str, typer.Argument(metavar="ROW|TABLE|list", help="TABLE/ROW; TABLE shows its rows, `list` all.")],
    model: Annotated[str | None, "--model", "-m", {"metavar": "SPEC|FILE|RUN"}, _MODEL] = None,
    policy: Annotated[str | None, "--policy", "-p", {"metavar": "SPEC"}, "In place of the row's."] = None,
    data: Annotated[str | None, {"metavar": "PATH"}, "In place of the hub: a folder, or one file."] = None,
    limit: Annotated[ranges.Rows | None, "The first N items alone (of each subset, class or set)."] = None,
    output: Annotated[Path, "--output", "-o", "Root of the run folders OUTPUT/TABLE/ROW."] = Path("reproduce"),
    *,
    dry_run: Annotated[bool, "--dry-run", "Print the commands, and run none."] = False,
    json: Json = False,
    options: Annotated[list[str] | None, typer.Argument(metavar="[-- OPTIONS]", help=_OPTIONS)] = None,
) -> None:
    """Run what makes a row of a published table, and set ours beside it. The same command resumes a killed run.

    `rprm reproduce list` shows every row with its figures, source, threshold and settings, `rprm reproduce TABLE` those
    of a table. Options after -- go to the command that judges, as in: rprm reproduce processbench/qwen2.5-72b --
    --prompt mine.toml
    """
    from rprm.reproduce import Reproduction, published_rows
    from rprm.runs import MANIFEST
    from rprm.showing import message
    from rprm.terminal import Terminal

    rows = published_rows()
    if listed := [one for name, one in rows.items() if row == "list" or name.startswith(f"{row}/")]:
        if model is not None or policy is not None or data is not None or limit is not None or options:
            raise InputError("the list takes no options but --json")
        print(dumps([asdict(one) for one in listed], ensure_ascii=False)) if json else _list(listed)
        return
    if row not in rows:
        raise InputError(f"no row is called {row!r:.80}: `rprm reproduce list` names all")
    if own := [word for word in options or () if word.partition("=")[0] in _OWN]:
        raise InputError(f"{own[0]} after -- : the stages get it from this command; give it before the --, if at all")
    if model == "" or policy == "":
        raise InputError("--model and --policy name a model: leave out what is empty")
    if (output / MANIFEST).exists():
        raise InputError(f"--output {output} is a run: name the folder that the rows are to be in")
    chosen = Reproduction(rows[row], output, model, policy, data, limit, tuple(options or ()))
    tables = [one.row.table.stages for one in (chosen.before, chosen) if one is not None]
    if policy is not None and not any("{policy}" in command for one in tables for command in one.values()):
        raise InputError(f"{row}: no policy writes for this row: leave out --policy")
    if dry_run:
        for command in chosen.row.table.training if chosen.row.needs_model and model is None else ():
            print(command)
        stages = (stage for one in (chosen.before, chosen) if one is not None for stage in one.commands())
        for folder, words in stages:
            print(message(shlex.join(["rprm", *words, "--output", str(folder)])))
        if any("{threshold}" in command for command in chosen.row.table.stages.values()):
            print("# THRESHOLD has the highest F1 on gsm8k in the curve of judge/measurement.json")
        if chosen.row.needs_model and model is None:
            print(*(f"# MODEL: {note}" for note in chosen.row.notes or [chosen.row.settings]), sep="\n")
        if data is None and any("{sets}" in command for one in (chosen.before, chosen) if one is not None
                                for command in one.row.table.stages.values()):  # fmt: skip
            print("# add --data FOLDER with the six sets: some are on no hub (docs/reproduce.md)")
        return
    errors = Terminal(stderr=True)
    found = chosen.run(lambda words: errors.print(f"$ rprm {message(shlex.join(words))}", style="dim", soft_wrap=True))
    if json:
        print(dumps(found | {"time": chosen.cost.time_as_dict()}, ensure_ascii=False))
    else:
        Terminal().print(_table(chosen.row, found, chosen.cost.time))


def _table(row: PublishedRow, found: dict[str, Any], time: str) -> Any:
    from rprm.benchmarks import Figure
    from rprm.report.measures import figure_text, framed

    notes = [f"source: {row.table.source}", f"settings: {row.settings}"]
    notes += [f"differs: {text}" for text in found["differs"]]
    beside = found["beside"]
    if (rate := beside["false_alarm_rate"]) is not None:
        notes.append(f"false alarms on right solutions, in percent: {figure_text(Figure(**rate)).plain}")
    if (tokens := beside["tokens"]) is not None:
        notes.append(f"{tokens:,} tokens generated; {time}")
    if any(one["ours"] is not None and one["ours"]["value"] is None for one in found["figures"].values()):
        notes.append("undefined: the items have none of a kind that the figure needs, such as right solutions")
    alone = {name: one["position_only"] for name, one in found["figures"].items()}
    columns = ["figure", "published", "ours", "difference", *["position only"] * (set(alone.values()) != {None})]
    table = framed(f"{row.name}: {row.table.about}", columns, notes)
    for name, figure in found["figures"].items():
        published, ours = figure["published"], figure["ours"]
        cells: list[Any] = ["not measured", ""]
        if ours is not None:
            difference = {end: value if value is None else value - published for end, value in ours.items()}
            cells = [figure_text(Figure(**ours)), figure_text(Figure(**difference), sign="+")]
        last = "" if alone[name] is None else f"{alone[name]:.1f}"
        table.add_row(name, f"{published:.1f}", *cells, *[last] * (len(columns) - 4))
    return table


def _list(rows: Any) -> None:
    from rich.text import Text

    from rprm.report.measures import framed
    from rprm.terminal import Terminal

    tables = {id(row.table): row.table for row in rows}
    for key, table in tables.items():
        members = [row for row in rows if id(row.table) == key]
        notes = [f"figures: {', '.join(table.figures)}", f"source: {table.source}", f"settings: {table.settings}"]
        notes += [f"policy: {table.policy}"] * any("{policy}" in one for one in table.stages.values())
        notes += [f"differs: {text}" for text in table.differs]
        notes += [f"{row.name.partition('/')[2]}: {text}" for row in members for text in row.notes]
        made = framed(table.about, ("row", "published", "model"), notes, numbers=())
        made.columns[0].no_wrap = True
        for row in members:
            words = (f"{row.published[name]:.1f}" if name in row.published else "-" for name in table.figures)
            model = row.model or ("yours" if row.needs_model else "")
            made.add_row(row.name, " ".join(words), Text(" ".join([model, *row.options])))
        Terminal().print(made, "")
