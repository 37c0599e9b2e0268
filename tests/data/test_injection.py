"""Right steps made wrong: what a program edits, what a model is asked, what is not trusted."""

from __future__ import annotations

import asyncio
import json
import random
from pathlib import Path
from typing import Any

import pytest

from rprm.data.gsm8k import numbers, wrong_step
from rprm.data.injection import ERRORS, Injected, Injector, InjectTotals, annotated, inject_errors
from rprm.data.solutions import LabelledSolution, read_solved
from rprm.data.stage_options import InjectOptions
from rprm.engines.base import Sampling
from rprm.engines.scripted import ScriptedEngine, ScriptedReply
from rprm.errors import InputError, PromptError
from rprm.prompts import InjectionTemplate, PolicyTemplate, Prompt, load_injection_template
from rprm.runs import read_results
from rprm.search.candidates import Policy

EGGS = {
    "id": "eggs",
    "problem": "A box has 3 rows of 14 eggs. Five are broken. How many are whole?",
    "steps": ["There are 3 * 14 = 42 eggs.", "Whole are 42 - 5 = 37.", "The answer is 37."],
    "answer": "37",
}
TEMPLATE = load_injection_template()


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def run(
    path: Path, engine: ScriptedEngine | None = None, policy: ScriptedEngine | None = None, folder: str = "run",
    **options: Any,
) -> tuple[InjectTotals, list[LabelledSolution], list[Injected]]:  # fmt: skip
    rows, source = read_solved(str(path))
    sampling = Sampling(1.0, 1.0, 200)
    writer = None if policy is None else Policy(policy, PolicyTemplate("t", "{{problem}}"), sampling)
    injector = Injector(engine, TEMPLATE, sampling, writer, InjectOptions(**options))
    totals = asyncio.run(inject_errors(injector, rows, source=source, output=path.parent / folder))
    text = (path.parent / folder / "solutions.jsonl").read_text()
    solutions = [LabelledSolution.model_validate_json(line) for line in text.splitlines()]
    return totals, solutions, list(read_results(path.parent / folder, Injected.model_validate))


def says(*texts: str) -> ScriptedEngine:
    """Says these texts one after the other, the last again and again."""
    left = list(texts)

    def reply(prompt: Prompt, sampling: Sampling) -> ScriptedReply:
        return ScriptedReply(left.pop(0) if len(left) > 1 else left[0], None, 5)

    return ScriptedEngine(reply=reply, concurrency=1)


class TestCalculations:
    @pytest.mark.parametrize(
        ("step", "marked"),
        [
            ("There are 3 * 14 = 42 eggs.", "There are 3 * 14 = <<3*14=42>>42 eggs."),
            ("so 3 x 14 = 42", "so 3 x 14 = <<3*14=42>>42"),
            ("$3 \\times 14 = 42$ eggs", "$3 \\times 14 = <<3*14=42>>42$ eggs"),
            ("It costs $1,200 + $34.50 = $1,234.50.", "It costs $1,200 + $34.50 = $<<1200+34.50=1234.50>>1,234.50."),
            ("10 − 4 ÷ 2 = 8", "10 − 4 ÷ 2 = <<10-4/2=8>>8"),
            ("2 + 3 + 4 = 9.", "2 + 3 + 4 = <<2+3+4=9>>9."),
        ],
    )
    def test_a_right_one_is_found(self, step: str, marked: str) -> None:
        assert annotated(step, random.Random(0)) == marked

    @pytest.mark.parametrize(
        "step",
        [
            "There are 42 eggs.",
            "3 * 14 = 43",  # wrong already
            "2x + 3 = 7",  # an equation
            "x^2 + 3 = 7 and 2^2 + 3 = 7",
            "(1 + 2) * 3 = 9",  # no part of a longer one
            "4 - (1 + 2) = 1",
            "1 + 1 = 2 + 0",
            "5 + 5 = 10%",
            "3 * 14 = 42.5",
            "1 / 0 = 0",
            "7 - 2 = 5 x 1",
        ],
    )
    def test_nothing_else_is_taken_for_one(self, step: str) -> None:
        assert annotated(step, random.Random(0)) is None

    def test_one_of_several_is_drawn(self) -> None:
        step = "3 * 14 = 42 and 42 - 5 = 37"
        found = {annotated(step, random.Random(seed)) for seed in range(20)}
        assert found == {"3 * 14 = <<3*14=42>>42 and 42 - 5 = 37", "3 * 14 = 42 and 42 - 5 = <<42-5=37>>37"}


class TestProgram:
    def test_a_wrong_calculation_ends_the_solution(self, tmp_path: Path) -> None:
        totals, solutions, (row,) = run(write(tmp_path / "s.jsonl", EGGS), per_solution=5)
        # Two steps show a calculation.
        assert sorted(one.label for one in solutions if one.label is not None) == [0, 1]
        for one in solutions:
            assert one.label is not None
            assert one.steps[:-1] == tuple(EGGS["steps"][: one.label])
            assert one.steps[-1] != EGGS["steps"][one.label]
            assert len(one.steps) == one.label + 1
            assert one.source in ("inject:calculation", "inject:operand")
            # What is new in it stands nowhere in the problem or its solution.
            new = numbers(one.steps[-1]) - numbers(EGGS["steps"][one.label])
            assert new
            assert not new & numbers(" ".join((EGGS["problem"], *EGGS["steps"])), words=True)
        assert (totals.num_attempts, totals.num_kept, row.num_right) == (2, 2, 1)

    def test_the_same_run_gives_the_same_and_another_seed_another(self, tmp_path: Path) -> None:
        path = write(tmp_path / "s.jsonl", EGGS)
        made = [run(path, folder=str(at), seed=seed, per_solution=2)[1] for at, seed in enumerate((0, 0, 1, 2, 3))]
        assert made[0] == made[1]
        assert any(other != made[0] for other in made[2:])

    def test_kinds_can_be_chosen(self, tmp_path: Path) -> None:
        path = write(tmp_path / "s.jsonl", EGGS)
        for seed in range(5):
            _, solutions, _ = run(path, folder=str(seed), seed=seed, per_solution=2, errors="operand")
            assert {one.source for one in solutions} <= {"inject:operand"}
        for named, wrong in [("rule", "'rule' is none: without --model"), ("operand,x", "'x' is none")]:
            with pytest.raises(InputError, match=wrong):
                run(path, folder=named, errors=named)

    def test_a_policy_goes_on_and_what_comes_out_right_is_dropped(self, tmp_path: Path) -> None:
        path = write(tmp_path / "s.jsonl", EGGS)
        expected = {
            "Then 30.\n\nThe answer is 30.": None,
            "Wait, the answer is 37.": "the final answer is still right",
            "And so on.": "it comes to no final answer",
            f"\\boxed{{{'5' * 5000}}}": "the final answer could not be graded",
        }
        for at, (rest, dropped) in enumerate(expected.items()):
            totals, solutions, (row,) = run(path, None, says(rest), folder=str(at))
            (attempt,) = row.attempts
            assert attempt.dropped == dropped
            assert totals.num_kept == len(solutions) == (dropped is None)
            assert totals.num_generated_tokens == 5
            if dropped is None:
                assert attempt.steps[attempt.step_index + 1 :] == ("Then 30.", "The answer is 30.")
                assert solutions[0].final_answer_correct is False


class TestModel:
    def test_the_model_is_asked_for_one_error_and_its_step_taken(self, tmp_path: Path) -> None:
        asked = []

        def reply(prompt: Prompt, sampling: Sampling) -> ScriptedReply:
            asked.append(prompt.text)
            return ScriptedReply("<think>Hm <step>no</step></think>Here: <step>\nSo it is 40.\n</step>", None, 5)

        engine = ScriptedEngine(reply=reply)
        totals, (solution,), (row,) = run(write(tmp_path / "s.jsonl", EGGS), engine, errors="operation")
        (attempt,) = row.attempts
        assert asked == [TEMPLATE.render(EGGS["problem"], EGGS["steps"], attempt.step_index, ERRORS["operation"]).text]
        assert solution.steps == (*EGGS["steps"][: attempt.step_index], "So it is 40.")
        assert (solution.label, solution.source) == (attempt.step_index, "inject:operation")
        assert totals.num_generated_tokens == 5
        card = (tmp_path / "run" / "README.md").read_text()
        assert "|  | operation |" in card
        assert "| kept | 1 |" in card

    def test_what_is_no_step_or_the_same_step_is_dropped(self, tmp_path: Path) -> None:
        row = {**EGGS, "steps": ["There are 37 whole eggs. The answer is 37."]}
        path = write(tmp_path / "s.jsonl", row)
        for text, dropped in {
            "I cannot.": "the reply has no step",
            "<step> </step>": "the reply has no step",
            "</step><step>": "the reply has no step",
            "<step>There are 37 whole\neggs. The answer is 37.</step>": "the step is as it was",
        }.items():
            totals, solutions, (found,) = run(path, says(text), folder=str(abs(hash(text))))
            assert [one.dropped for one in found.attempts] == [dropped]
            assert (solutions, totals.num_kept) == ([], 0)

    def test_no_step_is_asked_for_twice_with_the_same_error(self, tmp_path: Path) -> None:
        _, _, (row,) = run(write(tmp_path / "s.jsonl", EGGS), says("<step>x</step>"), per_solution=100)
        pairs = [(one.step_index, one.error) for one in row.attempts]
        # Three steps, seven kinds; nothing before the first step can be contradicted.
        assert len(pairs) == len(set(pairs)) == 20
        assert (0, "consistency") not in pairs

    def test_a_prompt_that_is_too_long_costs_itself(self, tmp_path: Path) -> None:
        totals, _, _ = run(write(tmp_path / "s.jsonl", EGGS), ScriptedEngine(context_length=80))
        assert (totals.num_refused, totals.num_kept) == (1, 0)


def test_only_what_is_known_to_be_right_is_made_wrong(tmp_path: Path) -> None:
    step = "So 3 * 14 = 42. We are done."
    rows = [
        {"id": "label", "problem": "p", "steps": [step], "label": -1},
        {"id": "wrong label", "problem": "p", "steps": [step], "label": 0},
        {"id": "outcome", "problem": "p", "steps": [step], "final_answer_correct": True},
        {"id": "graded", "problem": "q", "steps": ["So 3 * 14 = 42.", "The answer is 5."], "answer": "5"},
        {"id": "graded wrong", "problem": "r", "steps": ["So 3 * 14 = 42.", "The answer is 5."], "answer": "6"},
        {"id": "unknown", "problem": "s", "steps": [step]},
    ]
    totals, solutions, _ = run(write(tmp_path / "s.jsonl", *rows))
    assert (totals.num_solutions, totals.num_not_right) == (6, 3)
    assert [one.problem for one in solutions] == ["p", "p", "q"]


def test_annotations_of_gsm8k_go(tmp_path: Path) -> None:
    row = {"id": "g", "problem": "p", "steps": ["3*14 = <<3*14=42>>42 eggs."], "label": -1}
    _, (solution,), _ = run(write(tmp_path / "s.jsonl", row))
    assert "<<" not in solution.steps[0]


def test_the_program_is_that_of_gsm8k() -> None:
    line = annotated("There are 3 * 14 = 42 eggs.", random.Random(1))
    assert line is not None
    assert wrong_step(line, frozenset(), random.Random(1)) is not None


class TestTemplate:
    def test_it_says_all_that_the_writer_needs(self) -> None:
        text = TEMPLATE.render("P?", ["one", "two"], 1, "Do it wrong.").text
        for part in ("P?", "Step 1: one", "Step 2, to be rewritten:\ntwo", "The mistake to make: Do it wrong."):
            assert part in text
        assert "None: this is the first step." in TEMPLATE.render("P?", ["one"], 0, "x").text
        assert InjectionTemplate.from_toml(TEMPLATE.to_toml(), "x.toml") == TEMPLATE

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"user": "{{problem}} {{step}} {{error}}"}, "user has no {{previous_steps}}"),
            ({"user": "{{problem}} {{previous_steps}} {{step}}"}, "user has no {{error}}"),
            ({"step_format": "x"}, "step_format has no {{step}}"),
            ({"closing": ""}, "opening and closing"),
        ],
    )
    def test_what_is_wrong_is_said(self, changes: dict[str, str], message: str) -> None:
        user = "{{problem}} {{previous_steps}} {{step}} {{error}}"
        with pytest.raises(PromptError, match=message.replace("{", r"\{")):
            InjectionTemplate("t", **{"user": user, **changes})
