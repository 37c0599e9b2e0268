"""A judge whose rewards stand in the steps: "so 0.9" is worth 0.9, and a step that says "lost" gets no reward."""

from __future__ import annotations

import re
from typing import Any

import rprm
from rprm.engines.base import Sampling
from rprm.engines.scripted import ScriptedEngine, ScriptedReply
from rprm.prompts import PromptTemplate
from rprm.prompts.template import Prompt

TEMPLATE = PromptTemplate(name="plain", user="{{problem}}\n{{steps}}\nIs Step {{step_number}} right?")


def read_from_step(prompt: Prompt, sampling: Sampling) -> ScriptedReply:
    said = re.findall(r"lost|\d\.\d+", prompt.text)
    return ScriptedReply("An analysis.", None if not said or said[-1] == "lost" else float(said[-1]), 10)


def rounded(value: Any) -> Any:
    """P(Yes) goes through logarithms: its last digits are no one's."""
    if isinstance(value, dict):
        return {key: rounded(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(one) for one in value]
    return round(value, 9) if isinstance(value, float) else value


class Judge(rprm.RPRM):
    def __init__(self) -> None:
        self.engine = ScriptedEngine("stated:", reply=read_from_step)
        super().__init__(self.engine, num_analyses=1, prompt=TEMPLATE)

    @property
    def num_judged(self) -> int:
        """Steps judged so far: each takes one analysis."""
        return self.engine.num_requests
