"""The commands, put together."""

from __future__ import annotations

from typing import Annotated

import typer

from rprm.cli.added import OpenGroup
from rprm.cli.bench import app as bench_app
from rprm.cli.bench_mathematics import mathematics as bench_mathematics
from rprm.cli.data import app as data_app
from rprm.cli.engines import app as engines_app
from rprm.cli.judge import judge
from rprm.cli.models import models
from rprm.cli.prompts import app as prompts_app
from rprm.cli.search import app as search_app
from rprm.cli.train import app as train_app
from rprm.cli.train import evolve

app = typer.Typer(
    cls=OpenGroup,
    rich_markup_mode=None,
    name="rprm",
    help="Reasoning-driven process reward models: judge solutions step by step, measure judges, train them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        from rprm import __version__

        print(f"rprm {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


app.command()(judge)
bench_app.command("mathematics")(bench_mathematics)
app.command()(evolve)
app.command()(models)
app.add_typer(data_app, name="data")
app.add_typer(train_app, name="train")
app.add_typer(bench_app, name="bench")
app.add_typer(search_app, name="search")
app.add_typer(prompts_app, name="prompts")
app.add_typer(engines_app, name="engines")
