"""lm-evaluation-harness: a metric of tasks that generate text. Nothing of lm_eval is imported."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rprm.aggregation import mean
from rprm.integrations.answers import AnyRewarder, RewardForm, blocking, checked_form, judged, rewarder_of, value_of


class RewardMetric:
    """A metric `rprm`, the mean reward of the answers, in a task's `process_results` and `metric_list`.

    The harness hands over one document at a time, and all that was noted of them at the end: answers are judged there,
    all at once, as many together as the engine takes.

    Args:
        form: how step rewards become the reward of an answer.
        problem: the document's field that holds the problem, or a function of the document.
    """

    def __init__(
        self,
        prm: AnyRewarder,
        form: RewardForm = "min",
        *,
        problem: str | Callable[[Mapping[str, Any]], str] = "question",
    ) -> None:
        self.prm = rewarder_of(prm)
        self.form = checked_form(form)
        self.problem = problem

    def process_results(self, doc: Mapping[str, Any], results: Sequence[Any]) -> dict[str, Any]:
        """What is noted of a document: its problem and its answers (several, where the task repeats)."""
        problem = doc[self.problem] if isinstance(self.problem, str) else self.problem(doc)
        answers = [results[0]] if isinstance(results[0], str) else list(results[0])
        return {"rprm": (problem, answers)}

    def aggregate(self, noted: Sequence[tuple[str, Sequence[str]]]) -> float:
        """The mean reward of the answers that have one, from 0 to 1; NaN where none has. The log says how many lack
        it."""
        pairs = [(problem, answer) for problem, answers in noted for answer in answers]
        values = [value_of(reward, self.form) for reward in blocking(judged(self.prm, pairs))]
        if missing := values.count(None):
            text = "%d of %d answers have no reward and are left out"
            logging.getLogger(__name__).warning(text, missing, len(values))
        found = mean([value for value in values if value is not None])
        return float("nan") if found is None else found
