"""The console of all commands."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from rprm.showing import escaped, shown


class Terminal(Console):
    """Rich's console, for which a text is a text: no markup, no emoji by name, and of the control characters only the
    styling's own (`showing.escaped`). A command of another distribution prints through it too."""

    def __init__(self, *, stderr: bool = False, **options: Any) -> None:
        stream: Any = sys.stderr if stderr else sys.stdout
        # The styling goes past what escapes the rest; there may be a progress line before it.
        while hasattr(stream, "rich_proxied_file"):
            stream = stream.rich_proxied_file
        super().__init__(file=stream, highlight=False, markup=False, emoji=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(shown(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=escaped(segment.text))
