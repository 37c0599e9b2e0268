"""The console of all commands."""

from __future__ import annotations

from collections.abc import Iterable
from typing import IO, Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from rprm.showing import escaped, one_line, shown

__all__ = ["Terminal", "one_line"]


class Terminal(Console):
    """Rich's console, for which a text is a text: no markup, no emoji by name, and of the control characters only the
    styling's own (`showing.escaped`). A command of another distribution prints through it too."""

    def __init__(self, *, stderr: bool = False, **options: Any) -> None:
        super().__init__(stderr=stderr, highlight=False, markup=False, emoji=False, **options)

    @property  # type: ignore[override]
    def file(self) -> IO[str]:
        # Behind a progress line there are two streams in front of the real one.
        stream = super().file
        return getattr(stream, "rich_proxied_file", stream)

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(shown(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=escaped(segment.text))
