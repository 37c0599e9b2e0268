"""Right and wrong steps from GSM8K's annotated solutions: the arithmetic, the edits, the balance."""

from __future__ import annotations

import contextlib
import json
import random
import re
from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rprm.data.gsm8k import MAX_EXPRESSION, WrongStep, evaluate, without_annotations, wrong_step
from rprm.data.stage_options import StepOptions
from rprm.data.steps import Origin, gsm8k_steps
from rprm.errors import InputError
from rprm.records import LabelledStep

CLIPS = {
    "question": "Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in May. "
    "How many clips did Natalia sell altogether in April and May?",
    "answer": "Natalia sold 48/2 = <<48/2=24>>24 clips in May.\n"
    "Natalia sold 48+24 = <<48+24=72>>72 clips altogether in April and May.\n#### 72",
}


def expand(record: dict[str, Any], **options: Any) -> list[LabelledStep]:
    return list(gsm8k_steps(record, Origin("train-1", "train"), StepOptions(**options)))


class TestArithmetic:
    @pytest.mark.parametrize(
        ("expression", "value"),
        [
            ("48/2", Fraction(24)),
            ("2+3*4", Fraction(14)),
            ("(2+3)*4", Fraction(20)),
            ("100-10-5", Fraction(85)),
            ("8/4/2", Fraction(1)),
            ("1/3", Fraction(1, 3)),
            (".5*10", Fraction(5)),
            ("0.1+0.2", Fraction(3, 10)),
            ("5.*2", Fraction(10)),
            ("20%*50", Fraction(10)),
            ("(1+1)%", Fraction(1, 50)),
            ("-3+5", Fraction(2)),
            ("2*-3", Fraction(-6)),
            (" 7 ", Fraction(7)),
        ],
    )
    def test_values_are_exact(self, expression: str, value: Fraction) -> None:
        assert evaluate(expression) == value

    @pytest.mark.parametrize(
        "expression",
        [
            "", " ", "1+", "*2", "(1", "1)", "()", "2(3)", "1 2", "2**3", "2^3", "1,000", "x", "1e3",
            "__import__('os')", "1/0", "1/(2-2)", "5..2", "5%(2)", "٣", "1=1", "1\n;2",
            "(" * 150 + "1" + ")" * 150,
        ],
    )  # fmt: skip
    def test_anything_else_is_refused(self, expression: str) -> None:
        with pytest.raises(ValueError, match=r".+"):
            evaluate(expression)

    def test_nothing_can_blow_up(self) -> None:
        assert evaluate("(" * 90 + "1" + ")" * 90) == 1
        assert evaluate("-" * (MAX_EXPRESSION - 1) + "1") == -1
        assert evaluate("9" * MAX_EXPRESSION) == 10**MAX_EXPRESSION - 1

    @given(
        st.recursive(
            st.integers(0, 99).map(str),
            lambda inner: st.builds("({}{}{})".format, inner, st.sampled_from("+-*"), inner),
            max_leaves=8,
        )
    )
    def test_as_python_does_with_whole_numbers(self, expression: str) -> None:
        assert evaluate(expression) == eval(expression)

    @given(st.text(max_size=30))
    def test_any_text_is_a_value_or_a_value_error(self, text: str) -> None:
        with contextlib.suppress(ValueError):
            assert isinstance(evaluate(text), Fraction)


class TestWrongStep:
    @staticmethod
    def edits(line: str, taken: frozenset[Fraction] = frozenset(), tries: int = 60) -> list[WrongStep | None]:
        return [wrong_step(line, taken, random.Random(seed)) for seed in range(tries)]

    def test_by_its_result(self) -> None:
        texts = {
            edit.text for edit in self.edits("So 48/2 = <<48/2=24>>24 clips.") if edit and edit.kind == "calculation"
        }
        assert len(texts) > 3
        for text in texts:
            match = re.fullmatch(r"So 48/2 = (\d+) clips\.", text)
            assert match is not None
            assert match[1] != "24"

    def test_by_an_operand_the_arithmetic_holds(self) -> None:
        texts = {edit.text for edit in self.edits("So 48/2 = <<48/2=24>>24 clips.") if edit and edit.kind == "operand"}
        assert len(texts) > 3
        for text in texts:
            match = re.fullmatch(r"So (\d+)/(\d+) = ([\d.]+) clips\.", text)
            assert match is not None
            assert (match[1], match[2]) != ("48", "2")
            assert Fraction(match[1]) / Fraction(match[2]) == Fraction(match[3])

    def test_an_operand_changes_wherever_the_line_names_it(self) -> None:
        line = "Working 50 minutes, she earned 0.2 x 50 = $<<0.2*50=10>>10."
        for edit in self.edits(line):
            assert edit is not None
            if edit.kind == "operand":
                match = re.fullmatch(r"Working (\d+) minutes, she earned (\d+\.\d) x (\d+) = \$([\d.]+)\.", edit.text)
                assert match is not None
                assert match[1] == match[3]
                assert (match[2], match[3]) != ("0.2", "50")
                assert Fraction(match[2]) * Fraction(match[3]) == Fraction(match[4])

    @pytest.mark.parametrize(
        ("line", "form"),
        [
            ("It costs 4500*5 = $<<4500*5=22500>>22,500 in all.", r"It costs [\d]+\*[\d]+ = \$\d{1,3},\d{3} in all\."),
            ("That is 3.25*2=$<<3.25*2=6.50>>6.50.", r"That is \d+\.\d\d\*\d+=\$\d+\.\d\d\."),
            ("Take .5*30 = <<.5*30=15>>15%.", r"Take \d*\.\d\*\d+ = \d+(\.\d{1,2})?%\."),
            ("He has 5 boxes * 8 pens/box = <<5*8=40>>40 pens.", r"He has \d+ boxes \* \d+ pens/box = \d+ pens\."),
            ("It is 20% * 50 = <<20%*50=10>>10.", r"It is \d+% \* \d+ = \d+(\.\d{1,2})?\."),
        ],
    )
    def test_numbers_keep_their_form(self, line: str, form: str) -> None:
        for edit in self.edits(line):
            assert edit is not None
            assert re.fullmatch(form, edit.text), edit

    @pytest.mark.parametrize(
        "line",
        [
            "No calculation here.",
            "Two of them: 1+1=<<1+1=2>>2 and 2+2=<<2+2=4>>4.",
            # The annotation is wrong, or not one that can be worked out, or not what the line shows.
            "So 48/2 = <<48/2=25>>25 clips.",
            "So x = <<x*2=24>>24.",
            "So 2**5 = <<2**5=32>>32.",
            "So 1/0 = <<1/0=0>>0.",
            "So 48/2 = <<48/2=24>>25 clips.",
            "So 48/2 = <<48/2=24>> twenty-four clips.",
            "Empty <<>>7 and <<=7>>.",
            # The result stands in the line a second time.
            "She sold 48/2 = <<48/2=24>>24 clips, and 24 is few.",
            "Of the 24 she sold 48/2 = <<48/2=24>>24 clips.",
            "So " + "very " * 500 + "many: 48/2 = <<48/2=24>>24.",
            "<<" * 1000 + "=1>>1",
            "So " + "9" * 5000 + "/2 = <<" + "9" * 5000 + "/2=1>>1.",
        ],
    )
    def test_what_cannot_be_edited_safely_is_not(self, line: str) -> None:
        assert self.edits(line, tries=5) == [None] * 5

    def test_a_rounded_result_is_not_merely_rounded_otherwise(self) -> None:
        # 100 / 3 = 33.333...; 33.33 may be shown, and 33.34 or 33.32 would be no clear error.
        for edit in self.edits("Each gets 100/3 = $<<100/3=33.33>>33.33."):
            assert edit is not None
            if edit.kind == "calculation":
                shown = Fraction(edit.text.removeprefix("Each gets 100/3 = $").removesuffix("."))
                assert abs(shown - Fraction(100, 3)) > Fraction(2, 100)

    def test_numbers_that_are_taken_do_not_come_in(self) -> None:
        taken = frozenset(map(Fraction, range(60)))
        for edit in self.edits("So 3+4 = <<3+4=7>>7.", taken):
            if edit is not None:
                new = {Fraction(number) for number in re.findall(r"\d+", edit.text)} - {3, 4}
                assert new
                assert not new & taken

    def test_a_chain_of_equations_is_edited_at_its_end_alone(self) -> None:
        for edit in self.edits("He pays 2*1+3*3 = 2+9 = $<<2+9=11>>11."):
            assert edit is not None
            assert edit.kind == "calculation"
            assert edit.text.startswith("He pays 2*1+3*3 = 2+9 = $")


class TestRows:
    def test_right_and_wrong_steps_follow_right_steps(self) -> None:
        steps = expand(CLIPS)
        first, second = (
            "Natalia sold 48/2 = 24 clips in May.",
            "Natalia sold 48+24 = 72 clips altogether in April and May.",
        )
        right = [(step.previous_steps, step.step) for step in steps if step.label]
        assert right == [((), first), ((first,), second)]
        wrong = [step for step in steps if not step.label]
        assert [(step.id, step.previous_steps) for step in wrong] == [
            ("train-1-0-wrong", ()), ("train-1-1-wrong", (first,))
        ]  # fmt: skip
        assert not {step.step for step in wrong} & {first, second}
        assert {step.source for step in steps if step.label} == {"gsm8k"}
        assert {step.source for step in wrong} <= {"gsm8k:calculation", "gsm8k:operand"}

    def test_the_final_line_and_the_annotations_are_gone(self) -> None:
        assert not any("<<" in step.step or "####" in step.step for step in expand(CLIPS))
        assert without_annotations("a <<1+1=2>>2, <<b>> << c") == "a 2, <<b>> << c"
        assert without_annotations("<<" + "=" * 100_000) == "<<" + "=" * 100_000

    def test_deterministic_by_row_and_seed(self) -> None:
        assert expand(CLIPS) == expand(CLIPS)
        assert len({tuple(expand(CLIPS, seed=seed)) for seed in range(20)}) > 10

    def test_number_words_are_taken(self) -> None:
        record = {
            "question": "There are two, three, four, five, seven, eight and nine of them, a dozen and twenty. Six?",
            "answer": "5+1 = <<5+1=6>>6 are there.\n#### 6",
        }
        named = {str(number) for number in (2, 3, 4, 7, 8, 9, 12, 20)}
        for seed in range(100):
            for step in expand(record, seed=seed):
                assert not named & set(re.findall(r"\d+", step.step))

    @pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.8, 1.0])
    def test_the_share_of_wrong_rows(self, share: float) -> None:
        # Three steps, of which two can be edited: 3 right against 2 wrong, before balancing.
        answer = "2+5 = <<2+5=7>>7 hens.\nThey are brown.\n7*3 = <<7*3=21>>21 eggs.\n#### 21"
        counts: Counter[bool] = Counter()
        for number in range(600):
            for step in expand({"question": f"Problem {number}x", "answer": answer}, wrong_share=share):
                counts[step.label] += 1
        assert counts[False] / counts.total() == pytest.approx(share, abs=0.03)
        # Nothing is left out that need not be: one of the two kinds is whole.
        assert counts[True] == 1800 or counts[False] == 1200

    def test_balance_is_counted(self) -> None:
        origin = Origin("x", "x")
        answer = "They are brown.\nThey are old.\n7*3 = <<7*3=21>>21 eggs.\n#### 21"
        steps = list(gsm8k_steps({"question": "p", "answer": answer}, origin, StepOptions()))
        assert Counter(step.label for step in steps) == {True: 1, False: 1}
        assert origin.skipped == {"right steps left out for balance": 2, "steps that cannot be made wrong": 2}

    @pytest.mark.parametrize(
        ("record", "reason"),
        [
            ({"question": "", "answer": "a"}, "'question' must be"),
            ({"question": "q", "answer": None}, "'answer' must be"),
            ({"question": "q", "answer": "#### 5"}, "no step before its final line"),
        ],
    )
    def test_what_is_wrong_is_said(self, record: dict[str, Any], reason: str) -> None:
        with pytest.raises(InputError, match=reason):
            expand(record)

    @given(st.text(alphabet="<>=#0123456789+-*/.,$ \n%x", max_size=80))
    def test_any_answer_gives_rows_or_an_input_error(self, answer: str) -> None:
        try:
            steps = expand({"question": "q", "answer": answer})
        except InputError:
            return
        texts = [step.step for step in steps if step.label]
        assert all(step.step not in texts for step in steps if not step.label)


def test_real_solutions(real_data: Path) -> None:
    path = real_data / "gsm8k_train" / "train.jsonl"
    lines = path.read_text().splitlines()[:1000]
    slack, fewest_held = {"excerpts": (0.1, 5), "data": (0.02, 500)}[real_data.name]
    counts: Counter[str] = Counter()
    for record in map(json.loads, lines):
        steps = expand(record)
        right = [line.strip() for line in without_annotations(record["answer"]).split("\n") if line.strip()][:-1]
        for step in steps:
            assert list(step.previous_steps) == right[: step.step_index]
            assert (step.step == right[step.step_index]) is step.label
            counts[step.source or ""] += 1
            if step.source == "gsm8k:operand" and (
                found := re.search(
                    r"(?:^|[a-z]{2} )(\d+) ?([*+/-]) ?(\d+) ?= ?\$?(\d+(?:\.\d+)?)(?![\d,]|\.\d)", step.step
                )
            ):
                # Where a line shows one plain calculation, it holds: the error is in the data.
                assert evaluate(f"{found[1]}{found[2]}{found[3]}") == Fraction(found[4]), step.step
                counts["held"] += 1
    wrong = counts["gsm8k:calculation"] + counts["gsm8k:operand"]
    assert wrong / (wrong + counts["gsm8k"]) == pytest.approx(0.5, abs=slack)
    assert min(counts["gsm8k:calculation"], counts["gsm8k:operand"]) > 0.3 * wrong
    assert counts["held"] > fewest_held
