"""Groups of commands that other distributions add to."""

from __future__ import annotations

from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, ClassVar

import typer
from typer.core import TyperGroup

from rprm.errors import RprmError


class OpenGroup(TyperGroup):
    """A group's own commands, then those of other distributions, which are loaded when they are asked for.

    A command that cannot be loaded says so in the help and fails when it is run; a name of ours stays ours.
    """

    #: A distribution adds commands by entry points of this group: `NAME = "module:typer_app"`.
    entry_points: ClassVar[str] = "rprm.commands"
    #: Commands of ours that are loaded likewise, in the same form; they stand first.
    own: ClassVar[dict[str, str]] = {}

    @staticmethod
    def made(loaded: Any) -> typer.Typer:
        """The command that an entry point's value is or describes."""
        if not isinstance(loaded, typer.Typer):
            raise TypeError(f"expected a typer.Typer, not {type(loaded).__name__}")
        return loaded

    @classmethod
    @cache
    def added(cls) -> dict[str, EntryPoint]:
        own = {name: EntryPoint(name, value, cls.entry_points) for name, value in cls.own.items()}
        others = sorted(entry_points(group=cls.entry_points), key=lambda point: point.name)
        return own | {point.name: point for point in others if point.name not in own}

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
            made = _broken(point, f"{type(error).__name__}: {error}")
        return typer.main.get_command(made)


def _broken(point: EntryPoint, reason: str) -> typer.Typer:
    """A command that says why there is none."""
    owner = point.dist.name if point.dist else point.value
    message = f"cannot be loaded from {owner} ({reason}); reinstall or remove {owner}"
    made = typer.Typer(rich_markup_mode=None, add_completion=False)

    @made.command(point.name, help=message, context_settings={"ignore_unknown_options": True, "allow_extra_args": True})
    def fail() -> None:
        raise RprmError(f"the command {point.name} {message}")

    return made
