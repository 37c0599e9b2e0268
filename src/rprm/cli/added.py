"""Groups of commands that other distributions add to."""

from __future__ import annotations

from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from typing import Any, ClassVar

import click
import typer
from typer.core import TyperGroup


class OpenGroup(TyperGroup):
    """A group's own commands, then those of other distributions, which are loaded when they are asked for.

    A command that cannot be loaded says so in the help and fails when it is run; a name of ours stays ours.
    """

    #: A distribution adds commands by entry points of this group: `NAME = "module:typer_app"`.
    entry_points: ClassVar[str] = "rprm.commands"

    def made(self, loaded: Any) -> typer.Typer:
        """The command that an entry point's value is or describes."""
        if not isinstance(loaded, typer.Typer):
            raise TypeError(f"expected a typer.Typer, not {type(loaded).__name__}")
        return loaded

    @cached_property
    def added(self) -> dict[str, EntryPoint]:
        return {point.name: point for point in entry_points(group=self.entry_points)}

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(dict.fromkeys([*super().list_commands(ctx), *sorted(self.added)]))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        own = super().get_command(ctx, cmd_name)
        if own is not None or cmd_name not in self.added:
            return own
        point = self.added[cmd_name]
        try:
            return typer.main.get_command(self.made(point.load()))
        except Exception as error:
            return _broken(point, f"{type(error).__name__}: {error}")


def _broken(point: EntryPoint, reason: str) -> click.Command:
    owner = point.dist.name if point.dist else point.value
    message = f"cannot be loaded from {owner} ({reason}); reinstall or remove {owner}"

    def fail(**_: Any) -> None:
        from rprm.errors import RprmError

        raise RprmError(f"the command {point.name} {message}")

    settings = {"ignore_unknown_options": True, "allow_extra_args": True}
    return click.Command(point.name, callback=fail, help=message, context_settings=settings)
