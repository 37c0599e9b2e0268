"""Where labelled steps come from: what every format of them is told of its row."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

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
