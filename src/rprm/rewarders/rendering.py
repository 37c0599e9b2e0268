"""Putting a solution's token ids together, with the positions at which its steps are scored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rprm.engines.tokens import TokenWriter, encode_text
from rprm.errors import EngineError

#: Stand for the contents of messages while the chat template is rendered.
_PLACE = "RPRMCONTENT{}X"


@dataclass(frozen=True, slots=True)
class Rendered:
    """A solution as token ids. `positions[i]` is the index in `ids` at which step i is scored; the last ends `ids`."""

    ids: list[int]
    positions: list[int]


class StepWriter(TokenWriter):
    """A writer that notes where the steps are scored."""

    def __init__(self, tokenizer: Any, guarded: dict[int, str]) -> None:
        super().__init__(tokenizer, guarded)
        self._positions: list[int] = []

    @property
    def rendered(self) -> Rendered:
        return Rendered(self.ids[: self._positions[-1] + 1], self._positions)

    def score(self, *, back: int = 0) -> None:
        """The step is scored at the last token so far, or that many before it."""
        self.flush()
        self._positions.append(len(self.ids) - 1 - back)

    def answer(self, text: str, id_: int) -> None:
        """The step is scored at the token before this answer, which is one token whatever stands before it."""
        # As in the whole text, where the answer can part what stands before it otherwise than its end would.
        ids = encode_text(self.tokenizer, self.run + text, self.guarded)
        if ids[-1] == id_:
            self.ids += ids[:-1]
            self.run = ""
        self.score()
        self.ids.append(id_)


def single_token(tokenizer: Any, text: str) -> int:
    """The one token that a text is, a bare space token before it not counted."""
    ids = tokenizer.encode(text, add_special_tokens=False)
    kept = [id_ for id_ in ids if tokenizer.decode([id_]).strip()]
    if len(kept) != 1:
        raise EngineError(
            f"{text!r} is {len(kept)} tokens in this tokenizer, and the layout needs one; is it the layout that the "
            "model was trained with?"
        )
    return int(kept[0])


def chat_of_problem(tokenizer: Any, system: str) -> tuple[str, str]:
    """Fixed text before the problem and between problem and steps."""
    import jinja2

    try:
        start, after_system, between, _ = around_contents(tokenizer, ["system", "user", "assistant"])
        return f"{start}{system}{after_system}", between
    except jinja2.TemplateError:
        start, between, _ = around_contents(tokenizer, ["user", "assistant"])
        return f"{start}{system}\n\n", between


def around_contents(tokenizer: Any, roles: Sequence[str]) -> list[str]:
    """What the chat template writes before, between and after the contents of messages: one text more than messages."""
    places = [_PLACE.format(number) for number in range(len(roles))]
    rest = tokenizer.apply_chat_template(
        [{"role": role, "content": place} for role, place in zip(roles, places, strict=True)],
        tokenize=False,
        add_generation_prompt=False,
    )
    fixed = []
    for place in places:
        before, found, rest = rest.partition(place)
        if not found:
            raise EngineError("the tokenizer's chat template does not show every message once and in order")
        fixed.append(before)
    return [*fixed, rest]
