"""Labels by completions: which steps are looked at, when drawing stops, what counts; scripts whose truth is known."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rprm.data.rollouts import RolledOut, RolloutTotals, num_more, roll_out, settled
from rprm.data.solutions import LabelledSolution, labels_source, read_solved
from rprm.data.stage_options import RolloutOptions
from rprm.data.steps import gathered_source, read_steps
from rprm.engines.base import Sampling
from rprm.engines.scripted import ScriptedEngine, ScriptedReply
from rprm.errors import EngineUnavailable, InputError, RunError, SettingsChanged
from rprm.prompts import PolicyTemplate, Prompt
from rprm.runs import read_results
from rprm.search.candidates import Policy

TEMPLATE = PolicyTemplate(name="test", user="{{problem}}", step_separator="\n")
RIGHT, WRONG = "The answer is 5.", "The answer is 6."

#: What a completion says, by the steps that it follows and its sample number.
Says = Callable[[list[str], int], str]


class Script(ScriptedEngine):
    """A policy that says what a function of the steps before and the sample number says; `asked` lists the two."""

    def __init__(self, says: Says, **options: Any) -> None:
        self.asked: list[tuple[str, int]] = []
        self._says, self._seen = says, dict[tuple[str, int | None], int]()
        super().__init__(reply=self._write, **options)

    def _write(self, prompt: Prompt, sampling: Sampling) -> ScriptedReply:
        steps = [step for step in prompt.reply.split("\n") if step]
        # Samples of a beginning come in the order of their numbers.
        place = self._seen.setdefault((prompt.text, sampling.seed), sum(text == prompt.text for text, _ in self._seen))
        self.asked.append(("/".join(steps), place))
        return ScriptedReply(self._says(steps, place), None, 7)


def policy(engine: ScriptedEngine, **options: Any) -> Policy:
    return Policy(engine, TEMPLATE, Sampling(1.0, 1.0, 100, 0), **options)


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps({"problem": "p", "answer": "5", **row}) + "\n" for row in rows))
    return path


def run(
    path: Path, engine: ScriptedEngine | None, *, folder: str = "run", **options: Any
) -> tuple[RolloutTotals, list[LabelledSolution], list[RolledOut]]:
    rows, source = read_solved(str(path))
    asked = None if engine is None else policy(engine)
    output = path.parent / folder
    totals = asyncio.run(roll_out(asked, rows, RolloutOptions(**options), source=source, output=output))
    found = list(read_results(output, RolledOut.model_validate))
    solutions = [
        LabelledSolution.model_validate_json(line) for line in (output / "solutions.jsonl").read_text().splitlines()
    ]
    assert solutions == [one for row in found for one in row.solutions]
    return totals, solutions, found


class TestSettled:
    def test_any_right_one_settles_it_and_nothing_else_before_the_end(self) -> None:
        assert settled(1, 7, 0, 0.0) is True
        assert settled(1, 0, 7, 0.0) is True
        assert settled(0, 7, 1, 0.0) is None
        assert settled(0, 8, 0, 0.0) is False
        # None of those drawn came to anything.
        assert settled(0, 0, 0, 0.0) is None

    def test_more_than_half_of_eight(self) -> None:
        # Five are more than half whatever the others are; with four wrong, four more give a half at best.
        assert [settled(right, 0, 8 - right, 0.5) for right in (4, 5)] == [None, True]
        assert [settled(0, wrong, 8 - wrong, 0.5) for wrong in (3, 4)] == [None, False]
        # 3 of 5 so far: all of 3 left wrong is 3/8, all right 6/8.
        assert settled(3, 2, 3, 0.5) is None

    @given(
        st.lists(st.sampled_from(["right", "wrong", "cut"]), min_size=1, max_size=12),
        st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.7, 0.9]),
    )
    def test_stopping_is_right_about_the_whole_and_draws_none_too_many(self, drawn: list[str], above: float) -> None:
        right, graded = drawn.count("right"), len(drawn) - drawn.count("cut")
        whole = None if not graded else right / graded > above
        # A share is what it is written as: 7 of 10 are not above 0.7.
        assert whole is None or whole is (Fraction(right, graded) > Fraction(str(above)))
        done = 0
        while more := num_more(*counts(drawn[:done]), len(drawn) - done, above):
            # Fewer could not have settled it.
            at = counts(drawn[:done])
            for fewer in range(1, more):
                for sure in ((fewer, 0), (0, fewer)):
                    left = len(drawn) - done - fewer
                    assert settled(at[0] + sure[0], at[1] + sure[1], left, above) is None
            done += more
        right, wrong = counts(drawn[:done])
        found = None if not right + wrong else right / (right + wrong) > above
        assert found is whole


def counts(drawn: list[str]) -> tuple[int, int]:
    return drawn.count("right"), drawn.count("wrong")


def after(*right: str) -> Says:
    """Right after these beginnings, wrong after others."""
    return lambda steps, sample: RIGHT if "/".join(steps) in right else WRONG


#: The policy solves it from the start, after a and after a/b; c is the first error.
SAYS = after("", "a", "a/b")


class TestMethods:
    ROW: ClassVar[dict[str, Any]] = {"steps": ["a", "b", "c", "d", WRONG]}

    @pytest.mark.parametrize(
        ("method", "asked", "soft"),
        [
            ("in-order", ["a", "a/b", *["a/b/c"] * 3], (None, None, 0.0, None, None)),
            # The wrong answer is at hand; of 0..4 the middle is 2 (wrong), of 0..2 it is 1 (right).
            ("binary", [*["a/b/c"] * 3, "a/b"], (None, None, 0.0, None, 0.0)),
            ("all", ["a", "a/b", *["a/b/c"] * 3, *["a/b/c/d"] * 3], (None, None, 0.0, 0.0, 0.0)),
        ],
    )
    def test_the_first_wrong_step(self, tmp_path: Path, method: Any, asked: list[str], soft: Any) -> None:
        engine = Script(SAYS)
        path = write(tmp_path / "s.jsonl", self.ROW)
        totals, (solution,), _ = run(path, engine, method=method, num_completions=3)
        assert (solution.label, solution.final_answer_correct, solution.soft) == (2, False, soft)
        assert sorted(text for text, _ in engine.asked) == sorted(asked)
        assert totals.num_completions == len(asked)
        # Three of each of four beginnings; the whole has its answer.
        assert totals.num_completions_full == 12
        assert totals.num_generated_tokens == 7 * len(asked)

    @pytest.mark.parametrize("method", ["in-order", "binary", "all"])
    def test_a_right_solution(self, tmp_path: Path, method: Any) -> None:
        engine = Script(after("", "a", "a/b"))
        _, (solution,), _ = run(write(tmp_path / "s.jsonl", {"steps": ["a", "b", RIGHT]}), engine, method=method)
        assert (solution.label, solution.final_answer_correct) == (-1, True)
        # By a right answer, each step before it can be completed: a search in the middle has nothing to ask.
        assert len(engine.asked) == (0 if method == "binary" else 2)

    def test_where_the_policy_never_solves_it_the_first_step_is_not_blamed(self, tmp_path: Path) -> None:
        engine = Script(after())
        totals, (solution,), (row,) = run(write(tmp_path / "s.jsonl", {"steps": ["a", WRONG]}), engine)
        assert (solution.label, solution.soft) == (None, (0.0, None))
        assert [(one.num_steps, one.share) for one in row.beginnings] == [(0, 0.0), (1, 0.0)]
        assert (totals.num_unlabelled, totals.num_unsolved) == (1, 1)
        # A wrong answer alone needs no policy.
        engine = Script(after())
        _, (solution,), _ = run(write(tmp_path / "t.jsonl", {"steps": [WRONG]}), engine, folder="t")
        assert (solution.label, engine.asked) == (0, [])

    def test_a_solution_without_an_answer_is_completed_too(self, tmp_path: Path) -> None:
        engine = Script(after("", "a", "a/b"))
        _, (solution,), _ = run(write(tmp_path / "s.jsonl", {"steps": ["a", "b"]}), engine)
        assert (solution.label, solution.final_answer_correct, solution.soft) == (-1, None, (None, None))

    def test_a_search_in_the_middle_believes_that_errors_stay(self, tmp_path: Path) -> None:
        # b is wrong, and after c the policy finds back.
        says = after("", "a", "a/b/c", "a/b/c/d")
        path = write(tmp_path / "s.jsonl", {"steps": ["a", "b", "c", "d", WRONG]})
        labels = {}
        for method in ("in-order", "binary", "all"):
            _, (solution,), _ = run(path, Script(says), folder=method, method=method)
            labels[method] = solution.label
        assert labels == {"in-order": 1, "binary": 4, "all": 1}


def test_equal_beginnings_are_completed_once(tmp_path: Path) -> None:
    engine = Script(after("", "a", "a/b"))
    rows = [{"id": name, "steps": ["a", last, WRONG]} for name, last in (("x", "b"), ("y", "c"), ("z", "b"))]
    totals, solutions, (row,) = run(write(tmp_path / "s.jsonl", *rows), engine, num_completions=2)
    assert [(one.id, one.label) for one in solutions] == [("x", 2), ("y", 1), ("z", 2)]
    assert sorted(text for text, _ in engine.asked) == ["a", "a/b", "a/c", "a/c"]
    assert [(one.solution, one.num_steps) for one in row.beginnings] == [(0, 1), (0, 2), (1, 2)]
    assert (totals.num_problems, totals.num_beginnings, totals.num_completions) == (1, 3, 4)
    # Two solutions with the same text of the problem, and another answer, are of two problems.
    other = write(tmp_path / "o.jsonl", {"steps": ["a"]}, {"steps": ["a"], "answer": "6"})
    assert run(other, Script(after("", "a")), folder="o")[0].num_problems == 2


def test_early_stopping_changes_no_label_and_no_completion(tmp_path: Path) -> None:
    # Sample j after k steps is right where a number of both says so.
    def says(steps: list[str], sample: int) -> str:
        return RIGHT if (7 * len(steps) + 5 * sample) % 11 < 11 - 2 * len(steps) else WRONG

    rows = [{"id": str(n), "problem": f"p{n}", "steps": [f"{n}{at}" for at in range(5)]} for n in range(4)]
    path = write(tmp_path / "s.jsonl", *rows)
    for above in (0.0, 0.4, 0.5, 0.8):
        kept: dict[bool, Any] = {}
        for soft in (True, False):
            name = f"{above}-{soft}"
            totals, solutions, found = run(
                path, Script(says), folder=name, above=above, soft=soft, method="all", num_completions=8
            )
            kept[soft] = totals, [one.label for one in solutions], found
        assert kept[True][1] == kept[False][1]
        assert kept[False][0].num_completions < kept[True][0].num_completions == 8 * kept[True][0].num_beginnings
        for whole, part in zip(kept[True][2], kept[False][2], strict=True):
            by_place = {(one.solution, one.num_steps): one.rollouts for one in whole.beginnings}
            for one in part.beginnings:
                assert one.rollouts == by_place[one.solution, one.num_steps][: len(one.rollouts)]


def test_what_comes_to_nothing_counts_as_neither(tmp_path: Path) -> None:
    class Cutting(Script):
        async def generate(self, prompt: Prompt, sampling: Sampling) -> Any:
            made = await super().generate(prompt, sampling)
            return replace(made, finish_reason="length") if made.text == "well" else made

    too_long = f"\\boxed{{{'5' * 5000}}}"
    said = ["well", "I give up.", RIGHT, too_long, WRONG]
    engine = Cutting(lambda steps, sample: said[sample])
    path = write(tmp_path / "s.jsonl", {"steps": ["a"]})
    totals, (solution,), (row,) = run(path, engine, soft=True, num_completions=5)
    outcomes = ["cut", "no answer", "right", "ungraded", "wrong"]
    assert [one.outcome for one in row.beginnings[0].rollouts] == outcomes
    assert (totals.num_cut, totals.num_without_answer, totals.num_ungraded) == (1, 1, 1)
    # One right of the right one, the wrong one and the one that gave up.
    assert solution.soft == (1 / 3,)

    engine = Cutting(lambda steps, sample: "well")
    totals, (solution,), _ = run(write(tmp_path / "t.jsonl", {"steps": ["a", WRONG]}), engine, folder="t")
    assert (solution.label, solution.soft, totals.num_cut) == (None, (None, None), 8)
    assert not totals.nothing_judged  # its final answer is known to be wrong


def test_a_beginning_that_is_too_long_costs_itself(tmp_path: Path) -> None:
    engine = Script(after("", "a"), context_length=100)
    rows = [{"id": "long", "steps": ["a", "b " * 90, WRONG]}, {"id": "short", "steps": ["a", "c", WRONG]}]
    totals, (long, short), _ = run(write(tmp_path / "s.jsonl", *rows), engine)
    assert (long.label, short.label, totals.num_refused) == (None, 1, 1)
    assert totals.failure is not None
    assert "context" in totals.failure


def test_outcomes_alone(tmp_path: Path) -> None:
    rows = [{"id": "r", "steps": ["a", RIGHT]}, {"id": "w", "steps": ["b", WRONG]}, {"id": "n", "steps": ["c"]}]
    totals, solutions, _ = run(write(tmp_path / "s.jsonl", *rows), None)
    assert [(one.label, one.final_answer_correct) for one in solutions] == [(None, True), (None, False), (None, None)]
    assert (totals.num_completions, totals.num_final_right, totals.num_final_wrong) == (0, 1, 1)
    # Each whole solution is right or wrong.
    (found,) = [list(read_steps(gathered_source(tmp_path / "run")))]
    steps = [step for row in found for step in row.steps]  # type: ignore[union-attr]
    assert [(step.id, step.step, step.label) for step in steps] == [
        ("r-0-whole", f"a\n\n{RIGHT}", True), ("w-0-whole", f"b\n\n{WRONG}", False)
    ]  # fmt: skip


def test_labels_go_on_to_labelled_steps_with_their_shares(tmp_path: Path) -> None:
    engine = Script(after("", "a"))
    run(write(tmp_path / "s.jsonl", {"id": "x", "steps": ["a", "b", WRONG]}), engine, soft=True, num_completions=2)
    (row,) = read_steps(gathered_source(tmp_path / "run"))
    steps = row.steps  # type: ignore[union-attr]
    assert [(one.id, one.step, one.label, one.soft, one.source) for one in steps] == [
        ("x-0", "a", True, 1.0, "rollouts"), ("x-1", "b", False, 0.0, "rollouts")
    ]  # fmt: skip


def test_a_run_can_be_labelled_again_by_another_policy(tmp_path: Path) -> None:
    path = write(tmp_path / "s.jsonl", {"id": "x", "steps": ["a", "b", WRONG]})
    assert run(path, Script(after("", "a")))[1][0].label == 1
    # The answer is not in solutions.jsonl.
    rows, source = read_solved(str(tmp_path / "run"))
    options = RolloutOptions()
    again = roll_out(policy(Script(after("", "a", "a/b"))), rows, options, source=source, output=tmp_path / "again")
    asyncio.run(again)
    (row,) = read_results(tmp_path / "again", RolledOut.model_validate)
    assert (row.solutions[0].label, row.solutions[0].source) == (2, "rollouts")


class Dying(Script):
    """A server that answers so many requests, and then none."""

    def __init__(self, says: Says, lives: int) -> None:
        super().__init__(says)
        self.lives = lives

    async def generate(self, prompt: Prompt, sampling: Sampling) -> Any:
        if self.num_requests >= self.lives:
            raise EngineUnavailable("gone")
        return await super().generate(prompt, sampling)


def test_a_run_that_is_stopped_pays_for_nothing_twice_and_ends_alike(tmp_path: Path) -> None:
    def by_seed(prompt: Prompt, sampling: Sampling) -> ScriptedReply:
        return ScriptedReply(RIGHT if (sampling.seed or 0) % 3 == 0 else WRONG, None, 7)

    rows = [{"id": str(n), "problem": f"p{n}", "steps": ["a", "b", "c", WRONG]} for n in range(6)]
    path = write(tmp_path / "s.jsonl", *rows)
    whole = ScriptedEngine(reply=by_seed)
    run(path, whole, folder="whole")
    num_requests = 0
    for lives in (1, 3, 5, 9, 10_000):
        engine = Dying(lambda steps, sample: "", lives)
        engine.reply = by_seed
        try:
            run(path, engine, folder="part")
        except EngineUnavailable:
            assert lives < 10_000
            with pytest.raises(RunError, match="not complete"):
                labels_source(tmp_path / "part")
        num_requests += engine.num_requests
    assert num_requests == whole.num_requests
    for name in ("results.jsonl", "solutions.jsonl", "summary.json"):
        assert (tmp_path / "part" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    with pytest.raises(SettingsChanged, match="above"):
        run(path, ScriptedEngine(reply=by_seed), folder="part", above=0.5)


def test_a_problem_without_an_answer_tells_nothing(tmp_path: Path) -> None:
    engine = Script(after("", "a"))
    totals, (solution,), _ = run(write(tmp_path / "s.jsonl", {"steps": ["a"], "answer": None, "label": 0}), engine)
    assert (solution.label, totals.num_without_gold, engine.asked) == (None, 1, [])
    assert totals.nothing_judged
    assert "reference answer" in str(totals.failure)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"steps": []}, "'steps' must be a list of texts, at least one"),
        ({"steps": ["a"], "answer": ["5"]}, "'answer' must be a text"),
        ({"steps": ["a"], "soft": [0.5, 1.0]}, "'soft' must have one share for each of 1 steps"),
        ({"steps": ["a"], "soft": [2.0]}, "soft"),
        ({"steps": ["a"], "problem": None}, "'problem'"),
    ],
)
def test_what_is_wrong_with_a_row_is_said(tmp_path: Path, row: dict[str, Any], reason: str) -> None:
    rows, _ = read_solved(str(write(tmp_path / "s.jsonl", row)))
    (rejected,) = rows
    assert reason in rejected.reason  # type: ignore[union-attr]


def test_numbers_out_of_range_are_refused() -> None:
    with pytest.raises(InputError, match="above"):
        RolloutOptions(above=1.0)
    with pytest.raises(InputError, match="num_completions"):
        RolloutOptions(num_completions=0)
