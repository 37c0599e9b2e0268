"""Labelled steps as a benchmark."""

from __future__ import annotations

import asyncio

import pytest

from rprm.api import RPRM
from rprm.benchmarks import StepItems, compare, measure_steps, step_scores, tally_steps
from rprm.benchmarks.scores import Scores
from rprm.engines.scripted import ScriptedEngine, ScriptedReply
from rprm.errors import BenchmarkError, InputError, MissingPredictions
from rprm.prompts.template import Prompt
from rprm.records import LabelledStep
from rprm.rewarders.base import Totals, judge_source


def step(number: int, label: bool, source: str | None = None) -> LabelledStep:
    return LabelledStep(
        id=f"s{number}", problem=f"P{number}", previous_steps=("One.",), step="Two.", label=label, source=source
    )


def scored(**p_yes: float | None) -> Scores:
    return Scores({name: (value,) for name, value in p_yes.items()})


ITEMS = StepItems(
    (step(0, True, "a"), step(1, True, "b"), step(2, True, "b"), step(3, False, "a"), step(4, False, "b"))
)


def test_figures_by_hand() -> None:
    measured = measure_steps(ITEMS, scored(s0=0.9, s1=0.5, s2=0.2, s3=0.1, s4=0.7))
    values = {name: figure.value for name, figure in measured.figures.items()}
    # Right: s0, s1 (0.5 is not below the threshold), s3. Correct steps 2 of 3, wrong ones 1 of 2.
    assert values["correct_acc"] == pytest.approx(200 / 3)
    assert values["wrong_acc"] == pytest.approx(50.0)
    # 2 * 2/3 * 1/2 / (2/3 + 1/2) = (2/3) / (7/6) = 4/7
    assert values["f1"] == pytest.approx(400 / 7)
    assert values["accuracy"] == pytest.approx(60.0)
    assert values["a.accuracy"] == pytest.approx(100.0)
    assert values["b.accuracy"] == pytest.approx(100 / 3)
    # A rewarder that writes no analyses has no form.
    assert values["wellformed"] is None
    assert measured.as_dict()["figures"]["b"]["accuracy"]["value"] == pytest.approx(100 / 3)


def test_missing_scores_are_named_or_counted_as_wrong() -> None:
    with pytest.raises(MissingPredictions, match="2 of 5 items have no score: s3, s4"):
        measure_steps(ITEMS, scored(s0=0.9, s1=0.9, s2=0.9, s3=None))
    measured = measure_steps(ITEMS, scored(s0=0.9, s1=0.9, s2=0.9, s3=None), allow_missing=True)
    assert measured.figures["wrong_acc"].value == 0.0
    assert measured.figures["f1"].value == 0.0
    assert measured.missing == ("s3", "s4")
    assert measured.total_coverage.percent == 60.0


def test_a_step_has_one_score() -> None:
    for p_yes in ((), (0.9, 0.1)):
        with pytest.raises(InputError, match=r"1 items .*: s1 "):
            measure_steps(ITEMS, Scores({**scored(s0=0.9, s2=0.9, s3=0.9, s4=0.9).p_yes, "s1": p_yes}))


def test_a_side_without_steps_is_undefined() -> None:
    measured = measure_steps(StepItems((step(0, True),)), scored(s0=0.9))
    assert measured.figures["wrong_acc"].value is None
    assert measured.figures["f1"].value is None
    assert measured.figures["accuracy"].value == 100.0
    with pytest.raises(BenchmarkError, match="no labelled steps"):
        measure_steps(StepItems(()), scored())


def test_two_runs_are_compared_step_by_step() -> None:
    first = tally_steps(ITEMS, scored(s0=0.9, s1=0.9, s2=0.9, s3=0.9, s4=0.9))
    second = tally_steps(ITEMS, scored(s0=0.9, s1=0.9, s2=0.9, s3=0.1, s4=0.1))
    comparison = compare(first, second)
    assert comparison.num_discordant == 2
    assert comparison.differences["wrong_acc"].value == 100.0


def test_only_the_last_step_is_judged_and_its_form_counted() -> None:
    """One analysis in three of each step reaches no verdict; those of P0 and P2 lean to Yes."""
    asked: list[str] = []

    def reply(prompt: Prompt, sampling: object) -> ScriptedReply:
        asked.append(prompt.text)
        lost = len(asked) % 3 == 0
        leans_yes = any(name in prompt.text for name in ("P0", "P2"))
        return ScriptedReply("So.", None if lost else 0.9 if leans_yes else 0.2, 10)

    engine = ScriptedEngine(reply=reply, concurrency=1)
    judge = RPRM(engine, num_analyses=3, stopping="none").rewarder
    results = []
    from rprm.jobs import Callbacks

    callbacks = Callbacks(on_result=lambda solution, result: results.append(result))
    rows = [step(0, True), step(1, True), step(2, False), step(3, False)]
    items = StepItems(tuple(rows))
    totals = asyncio.run(judge_source(judge, items.solutions, last_step=True, callbacks=callbacks))
    assert isinstance(totals, Totals)
    assert len(asked) == 12
    assert all(text.count("Step 2: Two.") == 1 for text in asked)
    measured = measure_steps(items, step_scores(results))
    # s0 called correct and is; s1 called wrong and is not; s2 called correct and is not; s3 called wrong and is.
    assert measured.figures["accuracy"].value == 50.0
    # 8 of 12 analyses reached a verdict.
    assert measured.figures["wellformed"].value == pytest.approx(100 * 8 / 12)
    assert measured.scores.usage is not None
    assert measured.scores.usage.num_generated_tokens == 120
    assert measured.scores.usage.num_analyses_without_verdict == 4
