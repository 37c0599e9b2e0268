"""Where labelled steps come from: what every format of them is told of its row, and how it reads the row's fields."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from rprm.errors import InputError
from rprm.records import LabelledStep


@dataclass(frozen=True)
class Origin:
    """The row that labelled steps are made of.

    Attributes:
        id: begins the id of each of them; unique among the rows of a source.
        source: the name of the data set or file.
        skipped: counts what of the row gave no labelled step, by reason.
    """

    id: str
    source: str
    skipped: Counter[str] = field(default_factory=Counter)

    def labelled(
        self, problem: str, previous_steps: Sequence[str], step: str, label: bool, *, choice: str = "", part: str = ""
    ) -> LabelledStep:
        """A labelled step of this row.

        Args:
            choice: tells steps at one place of one row apart; the end of the id.
            part: of the source; stands behind its name and a colon.
        """
        return LabelledStep(
            id=f"{self.id}-{len(previous_steps)}{choice}",
            problem=problem,
            previous_steps=tuple(previous_steps),
            step=step,
            label=label,
            source=f"{self.source}:{part}" if part else self.source,
        )


def text_of(record: dict[str, Any], name: str) -> str:
    """A field that must be a text and not empty.

    Raises:
        InputError: it is not.
    """
    value = record.get(name)
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"{name!r} must be a text that is not empty, not {value!r:.80}")
    return value


def texts_of(record: dict[str, Any], name: str) -> list[str]:
    """A field that must be a list of texts, at least one, none of them empty.

    Raises:
        InputError: it is not.
    """
    value = record.get(name)
    if not isinstance(value, list) or not value:
        raise InputError(f"{name!r} must be a list of texts, at least one; not {value!r:.80}")
    for index, text in enumerate(value):
        if not isinstance(text, str) or not text.strip():
            raise InputError(f"{name!r}: text {index + 1} ({name}[{index}]) must not be empty; it is {text!r:.80}")
    return value
