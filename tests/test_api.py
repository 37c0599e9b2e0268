"""The library's face."""

from __future__ import annotations

import asyncio
import subprocess
import sys

import pytest

import rprm
from rprm.engines.scripted import ScriptedEngine
from rprm.errors import InputError, RprmError
from rprm.rewarders.rprm import Judge


def test_the_public_names() -> None:
    assert sorted(rprm.__all__) == [
        "Analysis",
        "Engine",
        "PromptTemplate",
        "RPRM",
        "RprmError",
        "Solution",
        "SolutionReward",
        "StepReward",
        "__version__",
        "load_engine",
        "load_rewarder",
        "load_template",
        "split_steps",
    ]
    for name in rprm.__all__:
        assert getattr(rprm, name) is not None
    assert dir(rprm) == sorted(rprm.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        rprm.nonsense  # noqa: B018


def test_importing_costs_nothing_heavy() -> None:
    code = (
        "import sys, rprm, typer; from rprm.cli.app import app; group = typer.main.get_command(app); "
        "[group.get_command(None, name) for name in group.own]; print(*sorted(sys.modules))"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    heavy = {"torch", "transformers", "vllm", "datasets", "numpy", "pandas", "httpx2", "openai"}
    assert heavy & set(loaded) == set()
    assert "rprm.cli.search" in loaded


SOLUTIONS = [
    {"problem": "1 + 1 = ?", "steps": ["One and one.", "It is 2."]},
    {"id": "b", "problem": "2 + 2 = ?", "solution": "Add.\n\nIt is 4."},
]


def test_score_in_a_script() -> None:
    seen = []
    with rprm.RPRM("scripted:?yes_rate=1&noise=0") as prm:
        rewards = prm.score(SOLUTIONS, on_result=seen.append)
        again = prm.score([rprm.Solution(id="0", problem="1 + 1 = ?", steps=("One and one.", "It is 2."))])
    assert [reward.id for reward in rewards] == ["0", "b"]
    assert [len(reward.steps) for reward in rewards] == [2, 2]
    assert seen == rewards
    assert again == rewards[:1]
    prm.close()


def test_score_in_a_notebook() -> None:
    """A notebook's loop is running already."""

    async def cell() -> list[rprm.SolutionReward]:
        with rprm.RPRM("scripted:") as prm:
            return prm.score(SOLUTIONS)

    assert len(asyncio.run(cell())) == 2


class Closing(ScriptedEngine):
    closed = False

    async def aclose(self) -> None:
        self.closed = True


def test_async() -> None:
    engine = Closing()

    async def main() -> tuple[list[rprm.SolutionReward], list[rprm.SolutionReward]]:
        async with rprm.RPRM(engine) as prm:
            return await prm.score_async(SOLUTIONS), await prm.first_errors_async(SOLUTIONS)

    with rprm.RPRM("scripted:") as prm:
        assert asyncio.run(main()) == (prm.score(SOLUTIONS), prm.first_errors(SOLUTIONS))
    assert engine.closed


def test_two_questions_two_answers() -> None:
    """Rewards are the full procedure's; first errors are the same predictions for fewer analyses."""
    solutions = [
        {"problem": f"Problem {number}", "steps": [f"Step {number}.{index}" for index in range(6)]}
        for number in range(20)
    ]
    with rprm.RPRM("scripted:", num_analyses=6) as prm:
        rewards, errors = prm.score(solutions), prm.first_errors(solutions)
    for reward in rewards:
        assert [len(step.analyses) for step in reward.steps] == [6] * 6
        assert not any(step.settled_early for step in reward.steps)
    assert [reward.first_error for reward in errors] == [reward.first_error for reward in rewards]
    assert {reward.first_error for reward in errors} > {-1}
    drawn = [sum(len(step.analyses) for reward in found for step in reward.steps) for found in (errors, rewards)]
    # 20 solutions x 6 steps x 6 analyses.
    assert drawn[0] < drawn[1] == 720


def test_the_papers_defaults() -> None:
    judge = rprm.RPRM("scripted:").rewarder
    assert isinstance(judge, Judge)
    assert (judge.rule.num_analyses, judge.threshold, judge.rule.stopping) == (10, 0.5, "exact")
    assert (judge.sampling.temperature, judge.sampling.top_p, judge.sampling.max_tokens) == (0.95, 0.95, 4096)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_analyses": 0}, "num_analyses is 0"),
        ({"num_analyses": 1.5}, "option num_analyses=1.5"),
        ({"max_tokens": 2.5}, "option max_tokens=2.5"),
        ({"temperature": "hot"}, "option temperature='hot'"),
        ({"seed": "many"}, "option seed='many'"),
        ({"threshold": 1.5}, "threshold is 1.5"),
        ({"temperature": -1.0}, "temperature is -1"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"top_p": 0.0}, "top_p is 0"),
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"model": "classifier:folder", "num_analyses": 4}, "leave out num_analyses"),
        ({"prompt": "no-such-prompt"}, "no-such-prompt"),
        ({"prompt": 5}, "option prompt=5"),
    ],
)
def test_senseless_settings_are_refused(options: dict, message: str) -> None:
    with pytest.raises(RprmError, match=message):
        rprm.RPRM(**{"model": "scripted:", **options})


def test_a_bad_record_is_named() -> None:
    with rprm.RPRM("scripted:") as prm, pytest.raises(InputError, match=r"solution 1: 'steps' must be"):
        prm.score([SOLUTIONS[0], {"problem": "p", "steps": []}])
