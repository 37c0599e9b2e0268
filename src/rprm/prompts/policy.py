"""What a policy reads: the layout of a prompt that asks for a solution (`PolicyTemplate`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rprm.prompts.template import Filled, Prompt, Template


@dataclass(frozen=True)
class PolicyTemplate(Template):
    """The layout of a prompt that asks for a solution: everything but the problem.

    Placeholders of `user`: `{{problem}}`. `{{open_braces}}` stands for two literal opening braces.

    Attributes:
        step_separator: what ends a step in the solution. A solution that is begun ends in it, so that the next step
            follows.
        stop: a text that ends the solution wherever it begins; empty for none. Base models, which know no end, need
            one.

    Raises:
        PromptError: as for every template; an empty separator.
    """

    KIND = "policy template"
    NAMES = ("problem",)

    step_separator: str = "\n\n"
    stop: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.step_separator:
            raise self._error("step_separator is empty; give the text that ends a step")

    def render(self, problem: str, steps: Sequence[str] = ()) -> Prompt:
        """The prompt after which the model writes the step that follows `steps`, or the whole solution.

        Args:
            problem: the problem's text.
            steps: the beginning of the solution.
        """
        return self._prompt({"problem": Filled.record(problem)}, "".join(step + self.step_separator for step in steps))
