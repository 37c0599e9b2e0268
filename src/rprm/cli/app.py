"""The commands, put together."""

from __future__ import annotations

from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from typing import Annotated, Any

import click
import typer
from typer.core import TyperGroup

from rprm.cli.bench import app as bench_app
from rprm.cli.bench_mathematics import mathematics as bench_mathematics
from rprm.cli.bench_steps import steps as bench_steps
from rprm.cli.classifier import classifier
from rprm.cli.data import app as data_app
from rprm.cli.engines import app as engines_app
from rprm.cli.evolve import evolve
from rprm.cli.guided import search_command
from rprm.cli.guided import show as search_show
from rprm.cli.judge import judge
from rprm.cli.lab import app as lab_app
from rprm.cli.models import models
from rprm.cli.prompts import app as prompts_app
from rprm.cli.search import app as search_app
from rprm.cli.train import app as train_app

#: A distribution adds commands by entry points of this group: `NAME = "module:typer_app"`.
ENTRY_POINTS = "rprm.commands"


class OpenGroup(TyperGroup):
    """The commands of this package, then those of other distributions, which are loaded when they are asked for.

    A command that cannot be loaded says so in the help and fails when it is run; a name of ours stays ours.
    """

    @cached_property
    def added(self) -> dict[str, EntryPoint]:
        found = {point.name: point for point in entry_points(group=ENTRY_POINTS)}
        return {name: found[name] for name in sorted(found) if name not in self.commands}

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*super().list_commands(ctx), *self.added]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        own = super().get_command(ctx, cmd_name)
        if own is not None or cmd_name not in self.added:
            return own
        try:
            return typer.main.get_command(self.added[cmd_name].load())
        except Exception as error:
            return _broken(self.added[cmd_name], f"{type(error).__name__}: {error}")


def _broken(point: EntryPoint, reason: str) -> click.Command:
    owner = point.dist.name if point.dist else point.value
    message = f"cannot be loaded from {owner} ({reason}); reinstall or remove {owner}"

    def fail(**_: Any) -> None:
        from rprm.errors import RprmError

        raise RprmError(f"the command {point.name} {message}")

    settings = {"ignore_unknown_options": True, "allow_extra_args": True}
    return click.Command(point.name, callback=fail, help=message, context_settings=settings)


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
bench_app.command("steps")(bench_steps)
bench_app.command("mathematics")(bench_mathematics)
train_app.command()(classifier)
app.command()(evolve)
app.command()(models)
app.add_typer(data_app, name="data")
app.add_typer(train_app, name="train")
app.add_typer(bench_app, name="bench")
for strategy in ("guided", "beam", "dvts"):
    search_app.command(strategy)(search_command(strategy))
search_app.command("show")(search_show)
app.add_typer(search_app, name="search")
app.add_typer(lab_app, name="lab")
app.add_typer(prompts_app, name="prompts")
app.add_typer(engines_app, name="engines")
