"""Critics of whole solutions (`rprm.rewarders.critic`): votes, their majority, step rewards, early stopping."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from rprm.benchmarks import PROCESSBENCH, measure, scores_of
from rprm.benchmarks.processbench import read_processbench
from rprm.cli.app import app
from rprm.engines import load_engine
from rprm.engines.base import Sampling
from rprm.engines.scripted import ScriptedEngine, ScriptedReply
from rprm.errors import RprmError
from rprm.prompts.template import CriticTemplate, Prompt
from rprm.records import Solution, SolutionReward
from rprm.rewarders import load_rewarder

TEMPLATE = CriticTemplate("t", "{{problem}}\n{{steps}}")


def critic(reply: Callable[[Prompt, Sampling], str], **options: Any) -> Any:
    """A critic whose critiques are what a function says."""

    def write(prompt: Prompt, sampling: Sampling) -> ScriptedReply:
        return ScriptedReply(reply(prompt, sampling), None, 10)

    return load_rewarder("critic:scripted:", engine=ScriptedEngine(reply=write), prompt=TEMPLATE, **options)


def voting(votes: dict[str, Sequence[int | None]], **options: Any) -> Any:
    """A critic whose critiques of a problem name these indices one after the other; None names none."""
    drawn: dict[str, int] = {}

    def reply(prompt: Prompt, sampling: Sampling) -> str:
        problem = prompt.text.split("\n")[0]
        number = drawn[problem] = drawn.get(problem, -1) + 1
        vote = votes[problem][number]
        return "I cannot tell." if vote is None else rf"So \boxed{{{vote}}}"

    return critic(reply, num_analyses=max(map(len, votes.values())), **options)


def judged(rewarder: Any, *solutions: Solution) -> list[SolutionReward]:
    async def run() -> list[SolutionReward]:
        await rewarder.start()
        return [await rewarder.judge(solution) for solution in solutions]

    return asyncio.run(run())


def solution(problem: str = "p", num_steps: int = 3, label: int | None = None) -> Solution:
    steps = tuple(f"step {index}" for index in range(num_steps))
    return Solution(id=problem, problem=problem, steps=steps, label=label)


def test_a_steps_reward_is_the_share_of_critiques_whose_first_error_is_later() -> None:
    """Of 1, -1, 2, 1, none: the four votes find step 0 right; 1 stands for two, 2 for one; -1 finds all right."""
    (reward,) = judged(voting({"p": [1, -1, 2, 1, None]}, stopping="none"), solution())
    assert reward.rewards == [4 / 4, 2 / 4, 1 / 4]
    assert reward.first_error == 1
    assert [len(step.analyses) for step in reward.steps] == [0, 0, 5]
    assert [one.first_error for one in reward.steps[-1].analyses] == [1, -1, 2, 1, None]
    assert [one.verdict for one in reward.steps[-1].analyses] == [False, True, False, False, None]


def test_the_majority_predicts_and_not_the_shares() -> None:
    """Of 0, 2, 2, 1, 2 two find step 1 or one before it wrong: its share is 3/5. Step 2's is 0; the majority says 2.
    Of 0, 0, 1, 2, -1 step 1's share of 2/5 is the first below a half, and the majority says 0."""
    rewards = judged(voting({"p": [0, 2, 2, 1, 2], "q": [0, 0, 1, 2, -1]}, stopping="none"), solution(), solution("q"))
    assert [reward.first_error for reward in rewards] == [2, 0]
    assert rewards[0].rewards == [4 / 5, 3 / 5, 0.0]
    assert rewards[1].rewards == [3 / 5, 2 / 5, 1 / 5]


def test_processbenchs_own_scoring_of_hand_worked_votes(tmp_path: Path) -> None:
    """Three solutions with an error: 1 1 2 is right for the label 1, 0 0 1 is wrong, 2 1 1 2 ties and says 2, which is
    right; of two without one -1 -1 0 is right, and one without any vote is wrong. 2 of 3 and 1 of 2: F1 = 2 * 2/3 * 1/2
    / (2/3 + 1/2) = 4/7."""
    votes: dict[str, list[int | None]] = {
        "a": [1, 1, 2], "b": [0, 0, 1], "c": [2, 1, 1, 2], "d": [-1, -1, 0], "e": [None, None, None, None]
    }  # fmt: skip
    labels = {"a": 1, "b": 1, "c": 2, "d": -1, "e": -1}
    rows = [
        {"id": f"math-{i}", "problem": p, "steps": ["x", "y", "z"], "label": labels[p]} for i, p in enumerate(votes)
    ]
    (tmp_path / "math.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    items = read_processbench(tmp_path)
    padded = {problem: (found + [None] * 4)[:4] for problem, found in votes.items()}
    rewards = judged(voting(padded, stopping="none"), *items.solutions)
    measured = measure(PROCESSBENCH.tally, items, scores_of(rewards), allow_missing=True)
    figures = {name: figure.value for name, figure in measured.figures.items()}
    assert figures["math.error_acc"] == pytest.approx(100 * 2 / 3)
    assert figures["math.correct_acc"] == pytest.approx(50)
    assert figures["math.f1"] == pytest.approx(100 * 4 / 7)
    assert measured.coverage["math"].num_missing == 1


@pytest.mark.parametrize("seed", range(6))
def test_exact_stopping_changes_no_prediction_and_no_decision(seed: int) -> None:
    spec = "critic:scripted:?noise=0.9&yes_rate=0.4&lost=0.2"
    solutions = [solution(f"p{number}", 4) for number in range(25)]
    full = judged(load_rewarder(spec, num_analyses=7, seed=seed, procedure="full"), *solutions)
    lean = judged(load_rewarder(spec, num_analyses=7, seed=seed), *solutions)
    steps = judged(load_rewarder(spec, num_analyses=7, seed=seed, first_error_exit=False), *solutions)
    counts = [sum(len(one.steps[-1].analyses) for one in rewards) for rewards in (lean, steps, full)]
    assert counts[0] < counts[1] < counts[2] == 7 * 25
    for whole, early, each in zip(full, lean, steps, strict=True):
        assert whole.first_error == early.first_error == each.first_error
        # What is drawn early is drawn in full.
        assert whole.steps[-1].analyses[: len(early.steps[-1].analyses)] == early.steps[-1].analyses
        if None not in whole.rewards:
            assert [r >= 0.5 for r in whole.rewards if r is not None] == [
                r >= 0.5 for r in each.rewards if r is not None
            ]
        assert early.steps[-1].settled_early == (len(early.steps[-1].analyses) < 7)


def test_a_step_is_judged_as_the_last_of_its_solution() -> None:
    rewarder = voting({"p": [0, -1, 1, -1]}, stopping="none")

    async def run() -> Any:
        await rewarder.start()
        return await rewarder.judge_step("p", ["a", "b", "c"], 1)

    step = asyncio.run(run())
    assert (step.step_index, step.reward, len(step.analyses)) == (1, 2 / 4, 4)
    assert "c" not in TEMPLATE.render("p", ["a", "b"]).text


def test_an_index_that_is_not_given_is_asked_for() -> None:
    """The reply goes on with the name of a box: the brace is the model's, since many tokens have it and the minus."""
    asked: list[str] = []

    def reply(prompt: Prompt, sampling: Sampling) -> str:
        if not prompt.reply:
            return "Paragraph 1 adds wrongly."
        asked.append(prompt.reply)
        assert (sampling.temperature, sampling.stop, sampling.max_tokens < 20) == (0.0, ("}",), True)
        return "{1"

    (reward,) = judged(critic(reply, force_verdict=True), solution())
    assert reward.first_error == 1
    (analysis,) = reward.steps[-1].analyses
    assert analysis.forced
    assert asked == ["Paragraph 1 adds wrongly.\n\n\\boxed"]
    assert analysis.text == "Paragraph 1 adds wrongly.\n\n\\boxed{1}"
    assert analysis.num_tokens == 10  # what was asked for is in no count, as a judge's forced verdict

    def rambles(prompt: Prompt, sampling: Sampling) -> str:
        return "seven" if prompt.reply else "<think>Hm"

    (reward,) = judged(critic(rambles, force_verdict=True), solution())
    assert reward.first_error is None
    assert not reward.steps[-1].analyses[0].forced
    assert all(step.reward is None and "'boxed' is the index" in str(step.failure) for step in reward.steps)


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(RprmError, match="temperature 0"):
        load_rewarder("critic:scripted:", num_analyses=4, temperature=0.0)
    with pytest.raises(RprmError, match="num_analyses"):
        load_rewarder("critic:scripted:", num_analyses=0)
    with pytest.raises(RprmError, match="unknown engine"):
        load_rewarder("critic:nothing:x")
    with pytest.raises(RprmError, match="a critic is no engine"):
        load_engine("critic:openai:m@http://127.0.0.1:9/v1")
    labels = CriticTemplate("t", "{{problem}} {{steps}}", format="json")
    with pytest.raises(RprmError, match="no verdict to ask for"):
        load_rewarder("critic:scripted:", prompt=labels, force_verdict=True)


def test_one_is_greedy_and_several_are_sampled() -> None:
    one, several = load_rewarder("critic:scripted:"), load_rewarder("critic:scripted:", num_analyses=8)
    assert [each.sampling.temperature for each in (one, several)] == [0.0, 1.0]  # type: ignore[attr-defined]
    assert several.sampling.top_p == 0.9  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "arguments",
    [
        ["bench", "processbench", "--data", "processbench"],
        ["bench", "prmbench", "--data", "prmbench/sample.jsonl"],
    ],
)
def test_a_benchmark_of_a_critic_is_resumed_and_measured_again(
    arguments: list[str], excerpts: Path, tmp_path: Path
) -> None:
    data = str(excerpts / arguments[-1])
    output = ["-o", str(tmp_path / "run"), "--json", "--limit", "5"]
    judge = [*arguments[:-1], data, "--model", "critic:scripted:?noise=0.6", "-k", "5", *output]
    first = CliRunner().invoke(app, judge)
    assert first.exit_code == 0, first.output
    results = tmp_path / "run" / "results.jsonl"
    whole = results.read_bytes()
    results.write_bytes(b"".join(whole.splitlines(keepends=True)[:2]))
    again = CliRunner().invoke(app, judge)
    assert json.loads(again.stdout)["figures"] == json.loads(first.stdout)["figures"]
    assert results.read_bytes() == whole
    scored = CliRunner().invoke(app, [*arguments[:2], "--scores", str(tmp_path / "run"), "--json"])
    assert json.loads(scored.stdout)["figures"] == json.loads(first.stdout)["figures"]
    assert json.loads(first.stdout)["usage"]["analyses"] > 0


def test_no_threshold_decides_a_critics_first_error(excerpts: Path) -> None:
    command = [
        "bench",
        "processbench",
        "--data",
        str(excerpts / "processbench"),
        "--model",
        "critic:scripted:",
        "--curve",
    ]
    result = CliRunner().invoke(app, [*command, "--limit", "2"])
    assert result.exit_code == 1
    assert "no threshold" in str(result.exception)


def test_best_of_n_and_guided_search_take_a_critic(tmp_path: Path) -> None:
    problems = tmp_path / "problems.jsonl"
    problems.write_text("".join(json.dumps({"problem": f"p{n}", "answer": "4"}) + "\n" for n in range(2)))
    for command in (["best-of-n", "-n", "3"], ["guided", "--width", "2", "--max-rounds", "3"]):
        output = tmp_path / command[0]
        arguments = ["search", *command, "--policy", "scripted:", "--problems", str(problems), "-o", str(output)]
        result = CliRunner().invoke(app, [*arguments, "--model", "critic:scripted:?noise=0.5", "-k", "3", "--json"])
        assert result.exit_code == 0, result.output
        assert json.loads((output / "summary.json").read_text())


def test_thinking_that_the_prompt_opens_is_no_answer() -> None:
    """The reply begins in the prompt, with a tag of thinking: a box in thinking that was cut off is no vote."""
    opened = CriticTemplate("t", "{{problem}}\n{{steps}}", reply="<think>\n")

    def reply(prompt: Prompt, sampling: Sampling) -> str:
        return "{1" if prompt.reply.endswith("boxed") else r"Perhaps \boxed{0}, but let me see"

    def judge(**options: Any) -> SolutionReward:
        def write(prompt: Prompt, sampling: Sampling) -> ScriptedReply:
            return ScriptedReply(reply(prompt, sampling), None, 10)

        engine = ScriptedEngine(reply=write)
        return judged(load_rewarder("critic:scripted:", engine=engine, prompt=opened, **options), solution())[0]

    assert judge().first_error is None
    asked = judge(force_verdict=True)
    assert asked.first_error == 1
    assert asked.steps[-1].analyses[0].text == "Perhaps \\boxed{0}, but let me see\n</think>\n\n\\boxed{1}"


@pytest.mark.parametrize("spec", ["critic:", "critic:?noise=0.5", "critic:critic:scripted:", "critic:classifier:x"])
def test_a_critic_needs_an_engine(spec: str) -> None:
    with pytest.raises(RprmError, match="write critic:ENGINE_SPEC"):
        load_rewarder(spec)


def test_a_critic_that_stopped_early_is_compared_at_any_threshold(excerpts: Path, tmp_path: Path) -> None:
    data, output = ["--data", str(excerpts / "processbench"), "--limit", "3"], str(tmp_path / "run")
    judge = ["bench", "processbench", *data, "--model", "critic:scripted:?noise=0.6", "-k", "5", "-o", output, "--json"]
    figures = json.loads(CliRunner().invoke(app, judge).stdout)["figures"]
    again = CliRunner().invoke(app, ["bench", "processbench", "--scores", output, "--threshold", "0.7", "--json"])
    assert json.loads(again.stdout)["figures"] == figures
