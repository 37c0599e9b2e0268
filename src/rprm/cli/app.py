"""The commands, each loaded when it is asked for."""

from __future__ import annotations

from difflib import get_close_matches
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from inspect import isfunction
from typing import Annotated, Any, ClassVar

import typer
from typer.core import TyperGroup

from rprm.errors import RprmError


class OpenGroup(TyperGroup):
    """A group's own commands, then those of other distributions. One that cannot be loaded says so in the help and
    fails when it is run; a name of ours stays ours."""

    #: A distribution adds commands by entry points of this group: `NAME = "module:typer_app"`.
    entry_points: ClassVar[str] = "rprm.commands"
    #: Commands of ours in the same form; they stand first.
    own: ClassVar[dict[str, str]] = {}

    @staticmethod
    def made(loaded: Any) -> typer.Typer:
        """The command that an entry point's value is or describes: a typer app, or a function."""
        if isinstance(loaded, typer.Typer):
            return loaded
        if not isfunction(loaded):
            raise TypeError(f"expected a typer.Typer, not {type(loaded).__name__}")
        made = typer.Typer(rich_markup_mode=None, add_completion=False)
        made.command()(loaded)
        return made

    @classmethod
    @cache
    def added(cls) -> dict[str, EntryPoint]:
        own = {name: EntryPoint(name, value, cls.entry_points) for name, value in cls.own.items()}
        others = sorted(entry_points(group=cls.entry_points), key=lambda point: point.name)
        return own | {point.name: point for point in others if point.name not in own}

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and args[0] not in (names := self.list_commands(ctx)) and not args[0].startswith("-"):
            near = "".join(f" Did you mean {name!r}?" for name in get_close_matches(args[0], names, 1))
            ctx.fail(f"No such command {args[0]!r}.{near}")
        return super().resolve_command(ctx, args)

    # Typer brings its own click from 0.20 on: its types have no name that fits every version.
    def list_commands(self, ctx: Any) -> list[str]:
        return list(dict.fromkeys([*self.own, *super().list_commands(ctx), *self.added()]))

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        point = self.added().get(cmd_name)
        if (own := super().get_command(ctx, cmd_name)) is not None or point is None:
            return own
        try:
            made = self.made(point.load())
        except Exception as error:
            if cmd_name in self.own:
                raise
            made = _broken(point, f"{type(error).__name__}: {error}")
        command: Any = typer.main.get_command(made)
        # Typer adds them to a whole program, which this is not.
        command.params = [one for one in command.params if one.name not in ("install_completion", "show_completion")]
        return command


def _broken(point: EntryPoint, reason: str) -> typer.Typer:
    """A command that says why there is none."""
    owner = point.dist.name if point.dist else point.value
    message = f"cannot be loaded from {owner} ({reason}); reinstall or remove {owner}"
    made = typer.Typer(rich_markup_mode=None, add_completion=False)

    @made.command(point.name, help=message, context_settings={"ignore_unknown_options": True, "allow_extra_args": True})
    def fail() -> None:
        raise RprmError(f"the command {point.name} {message}")

    return made


#: Where our commands are, and what is said of them in a list, for which none is loaded.
_COMMANDS = {
    "judge": ("judge:judge", "Judge solutions step by step, and find the first wrong step."),
    "evolve": ("train:evolve", "Preference optimisation in rounds: sample, pair, DPO, measure."),
    "models": ("models:models", "Released models that are known by name, and what each needs."),
    "data": ("data:app", "Training data: labelled steps, analyses, rows."),
    "train": ("train:app", "Train a judge (sft, dpo) or a discriminative PRM (classifier)."),
    "bench": ("bench_mathematics:app", "Measure judges on benchmarks, and compare two of them."),
    "reproduce": ("reproduce:reproduce", "Rows of published tables, each beside ours in one command."),
    "search": ("search:app", "Choose among a policy's solutions: Best-of-N, guided search."),
    "serve": ("serve:serve", "Rewards, and answers that they guide, over HTTP."),
    "runs": ("runs:app", "The runs in a folder, and how far each is."),
    "show": ("runs:show", "Show a run without its model, or one of its solutions."),
    "export": ("runs:export", "Write a run's rewards as CSV, Parquet or JSON Lines."),
    "report": ("report:report", "One HTML page of runs: tables, curves, calibration, solutions."),
    "prompts": ("prompts:app", "Look at prompt templates, and import a released model's."),
    "engines": ("engines:app", "Try what a model's engine supports."),
}


class _Root(OpenGroup):
    own: ClassVar[dict[str, str]] = {name: f"rprm.cli.{place}" for name, (place, _) in _COMMANDS.items()}

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        # Typer knows no option whose value may be left out.
        pairs = zip(args, [*args[1:], "-"], strict=False)
        args = ["--ray=local" if one == "--ray" and after.startswith("-") else one for one, after in pairs]
        return super().parse_args(ctx, args)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        others = {name: self.get_command(ctx, name) for name in self.list_commands(ctx) if name not in _COMMANDS}
        limit = formatter.width - 6 - max(map(len, [*_COMMANDS, *others]))
        rows = [(name, text) for name, (_, text) in _COMMANDS.items()]
        rows += [(name, one.get_short_help_str(limit)) for name, one in others.items() if not one.hidden]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


app = typer.Typer(
    cls=_Root,
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
