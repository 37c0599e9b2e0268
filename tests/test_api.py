"""The library's face."""

from __future__ import annotations

import asyncio
import gc
import json
import multiprocessing
import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

import rprm
from rprm.engines.scripted import ScriptedEngine
from rprm.errors import InputError, RprmError
from rprm.rewarders.rprm import Judge
from tests.warm import warm_cli


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
        "to_pandas",
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


ASKED = [{"problem": f"Problem {number}", "steps": ["a"]} for number in range(40)]


def test_closing_ends_what_others_wait_for() -> None:
    engine = ScriptedEngine(delay=30.0)
    prm = rprm.RPRM(engine, num_analyses=1)

    async def ask() -> None:
        asking = asyncio.ensure_future(prm.score_async(ASKED))
        await asyncio.sleep(0.2)
        await prm.aclose()
        with pytest.raises(RprmError, match="closed while"):
            await asyncio.wait_for(asking, 10)

    asyncio.run(ask())
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(prm.score, ASKED)
        time.sleep(0.2)
        prm.close()
        with pytest.raises(RprmError, match="closed while"):
            asking.result(10)
    engine.delay = 0.0
    assert prm.score_step("p", ["a"]).reward is not None  # Used again, it is loaded again.
    prm.close()


def test_what_a_caller_cancels_is_cancelled() -> None:
    async def ask() -> None:
        with rprm.RPRM(ScriptedEngine(delay=30.0), num_analyses=1) as prm:
            asking = asyncio.ensure_future(prm.score_async(ASKED))
            await asyncio.sleep(0.1)
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking

    asyncio.run(ask())


def test_control_c_leaves_nothing_to_say() -> None:
    code = (
        "import os, rprm, signal, threading, time\n"
        "timer = threading.Timer(0.5, os.kill, [os.getpid(), signal.SIGINT])\n"
        "try:\n"
        "    with rprm.RPRM('scripted:?delay=0.5&concurrency=2', num_analyses=2) as prm:\n"
        "        timer.start()\n"
        "        begun = time.monotonic()\n"
        "        prm.score([{'problem': str(n), 'steps': ['a', 'b']} for n in range(60)])\n"
        "except KeyboardInterrupt:\n"
        "    print('stopped', time.monotonic() - begun < 20)\n"  # all of it takes 30 s
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("stopped True\n", "")


def test_what_on_result_does() -> None:
    """It runs in the caller's thread: it may ask the model, and what it raises ends the work."""
    seen = []
    with rprm.RPRM("scripted:", num_analyses=2) as prm:
        prm.score(SOLUTIONS, on_result=lambda one: seen.append(prm.score_step("p", ["a"]).reward))
        assert seen == [prm.score_step("p", ["a"]).reward] * 2
        with pytest.raises(SystemExit):
            prm.score(SOLUTIONS, on_result=lambda one: sys.exit(3))
        asking = (one for one in SOLUTIONS if prm.score_step("p", ["a"]).reward is not None)
        assert prm.score(asking) == prm.score(SOLUTIONS)

    def fail(one: object) -> None:
        raise ValueError("mine")

    engine = ScriptedEngine(delay=0.1, concurrency=2)
    with rprm.RPRM(engine, num_analyses=2) as prm:
        with pytest.raises(RprmError, match="closed while"):
            prm.score(ASKED, on_result=lambda one: prm.close())
        engine.num_requests = 0
        with pytest.raises(ValueError, match="mine"):
            prm.score(ASKED, on_result=fail)
        time.sleep(0.5)
        asked = engine.num_requests
        time.sleep(0.5)
        assert engine.num_requests == asked < 40  # of 80


def test_an_engine_that_asks_its_own_rprm_is_told() -> None:
    def reply(prompt: Any, sampling: Any) -> Any:
        return prm.score_step("p", ["a"])

    with (
        rprm.RPRM(ScriptedEngine(reply=reply), num_analyses=1) as prm,
        pytest.raises(RprmError, match="an engine cannot"),
    ):
        prm.score(SOLUTIONS)


def test_one_that_is_dropped_ends_its_thread() -> None:
    before = threading.active_count()
    for _ in range(5):
        rprm.RPRM("scripted:", num_analyses=1).score(SOLUTIONS)
    gc.collect()
    deadline = time.monotonic() + 20
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.02)
    assert threading.active_count() == before


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


@pytest.mark.parametrize(
    ("solution", "message"),
    [
        (rprm.Solution(id="a", problem="p", steps=()), "'steps'"),
        (rprm.Solution(id="a", problem="", steps=("a",)), "'problem'"),
        (rprm.Solution(id="a", problem="p", steps=(" ",)), "'steps\\[0\\]'"),
        (rprm.Solution(id="a", problem="\ud800", steps=("a",)), "surrogate"),
        (rprm.Solution(id="a", problem="p", steps=("a",), label=7), "'label'"),
        ({"problem": "p", "steps": ["a", 1]}, "'steps\\[1\\]'"),
        (None, "JSON object"),
    ],
)
def test_every_solution_is_checked(solution: Any, message: str) -> None:
    with rprm.RPRM("scripted:") as prm, pytest.raises(InputError, match=f"solution 1: .*{message}"):
        prm.score([SOLUTIONS[0], solution])


def test_no_default_id_is_another_ones_own() -> None:
    rows = [{"id": "1", **ASKED[0]}, ASKED[1], {"id": 2, **ASKED[2]}, ASKED[3], ASKED[4]]
    with rprm.RPRM("scripted:", num_analyses=1) as prm:
        assert [one.id for one in prm.score(rows)] == ["1", "1'", "2", "3", "4"]


@pytest.mark.parametrize(
    ("problem", "texts", "message"),
    [
        ("p", [""], "no solution has a step"),
        ("p", ["<think>a"], "no solution has a step"),
        ("p", [], "no solution has a step"),
        ("p", ["a", []], "solution 1: 'steps'"),
        ("p", ["a", ["b", ""]], "solution 1: 'steps"),
        ("p", ["a", [1]], "solution 1: 'steps"),
        ("p", [None], "solution 0: 'steps'"),
        ("p", ["\ud800"], "solution 0: .*surrogate"),
        ("", ["a"], "solution 0: 'problem'"),
        (None, ["a"], "solution 0: 'problem'"),
    ],
)
def test_best_of_nothing_is_refused(problem: Any, texts: Any, message: str) -> None:
    with rprm.RPRM("scripted:") as prm, pytest.raises(InputError, match=message):
        prm.best_of(problem, texts)


def test_an_empty_answer_is_chosen_last() -> None:
    with rprm.RPRM("scripted:", num_analyses=1) as prm:
        assert prm.best_of("p", ["", "a", "<think>"]).chosen == 1


def reward(*steps: float | None, num_steps: int | None = None, **fields: Any) -> rprm.SolutionReward:
    made = tuple(rprm.StepReward(step_index=at, reward=one, vote=None) for at, one in enumerate(steps))
    return rprm.SolutionReward(
        **{"id": "a", "num_steps": num_steps or len(made), "first_error": -1} | fields, steps=made
    )


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        # 0.5 * 0.25 * 0.75; (0.5 + 0.25 + 0.75) / 3
        ((0.5, 0.25, 0.75), {"min": 0.25, "last": 0.75, "product": 0.09375, "mean": 0.5}),
        ((1.0,), {"min": 1.0, "last": 1.0, "product": 1.0, "mean": 1.0}),
        ((None, 0.5), {"min": None, "last": 0.5, "product": None, "mean": None}),
        ((0.5, None), {"min": None, "last": None, "product": None, "mean": None}),
    ],
)
def test_the_reward_of_a_solution(steps: tuple[float | None, ...], expected: dict[str, float | None]) -> None:
    assert {how: reward(*steps).aggregate(how) for how in expected} == expected  # type: ignore[arg-type]


@pytest.mark.parametrize("how", ["max", "avg", "progress", "", None])
def test_an_aggregation_that_is_none_is_refused(how: Any) -> None:
    with pytest.raises(InputError, match=r"no aggregation .* min, last, product, mean"):
        reward(0.5, 0.25).aggregate(how)
    engine = ScriptedEngine()
    with rprm.RPRM(engine) as prm:
        with pytest.raises(InputError, match="no aggregation"):
            prm.best_of("1 + 1 = ?", ["It is 2.", "It is 3."], aggregation=how)
        with pytest.raises(InputError, match="no stopping"):
            prm.best_of("1 + 1 = ?", ["It is 2.", "It is 3."], stopping="sometimes")  # type: ignore[arg-type]
    assert engine.num_requests == 0


def test_solutions_come_in_a_list() -> None:
    solution = rprm.Solution(id="0", problem="1 + 1 = ?", steps=("It is 2.",))
    with rprm.RPRM("scripted:") as prm:
        given: Any
        for given in ("solutions.csv", Path("solutions.csv")):
            with pytest.raises(InputError, match=r"list of solutions, not 'solutions.csv'; .*read_csv"):
                prm.score(given)
        for given in (SOLUTIONS[0], solution):
            with pytest.raises(InputError, match=r"not one \w+: \[solution\]"):
                prm.first_errors(given)


def test_the_embedded_judge_says_what_lies_outside_of_what_it_knows() -> None:
    """Before it is asked, and to whoever asks, however many; nothing of its own problems, nothing of other judges."""
    inside = {"problem": "Ben has 12 coins. How many coins does Ben have?", "steps": ["Ben has 12 coins."]}
    with rprm.RPRM(ScriptedEngine("embedded?dtype=float32")) as prm:
        with pytest.warns(UserWarning, match=r"2 of 3 solutions lie outside .* mean nothing"):
            prm.score([*SOLUTIONS, inside])
        with pytest.warns(UserWarning, match=r"1 of 1 solutions lie outside"):
            prm.score_step("1 + 1 = ?", ["It is 2."])
        with pytest.warns(UserWarning, match=r"2 of 2 solutions lie outside"):
            prm.best_of("1 + 1 = ?", ["It is 2.", "It is 3."])
        prm.first_errors([inside])


def test_made_from_a_rewarder() -> None:
    rewarder = rprm.load_rewarder("scripted:?yes_rate=0.6", num_analyses=3)
    with rprm.RPRM(rewarder) as prm, rprm.RPRM("scripted:?yes_rate=0.6", num_analyses=3) as same:
        assert prm.score(SOLUTIONS) == same.score(SOLUTIONS)
        with pytest.raises(TypeError, match="from a rewarder"):
            pickle.dumps(prm)
    with pytest.raises(RprmError, match="leave out num_analyses, seed"):
        rprm.RPRM(rewarder, num_analyses=4, seed=1)


def test_a_result_is_short_in_a_console() -> None:
    with rprm.RPRM("scripted:", num_analyses=8) as prm:
        step = prm.score_step("1 + 1 = ?", ["It is 2."])
    assert (
        repr(step) == f"StepReward(step_index=0, reward={step.reward}, vote={step.vote}, failure=None, num_requested=8)"
    )


def test_a_solution_that_was_not_judged_to_its_end_has_no_reward() -> None:
    """Judging ended at the first error, of three steps the second."""
    ended = reward(0.75, 0.25, num_steps=3, first_error=1)
    assert [ended.aggregate(how) for how in ("min", "last", "product", "mean")] == [None] * 4


def test_the_reward_of_one_step() -> None:
    problem, steps = "1 + 1 = ?", ["One and one.", "It is 2.", "So 3."]
    with rprm.RPRM("scripted:", num_analyses=4) as prm:
        whole = prm.score([{"problem": problem, "steps": steps}])[0].steps
        assert (prm.score_step(problem, steps, 1), prm.score_step(problem, steps)) == whole[1:]
        assert prm.score_step(problem, steps, -3) == prm.score_step(problem, steps[:1]) == whole[0]
        assert asyncio.run(prm.score_step_async(problem, steps, 1)) == whole[1]
        for index in (3, -4):
            with pytest.raises(InputError, match=rf"no step {index} of 3"):
                prm.score_step(problem, steps, index)
        with pytest.raises(InputError, match="'steps' must be a list"):
            prm.score_step(problem, "It is 2.")


@pytest.mark.parametrize("aggregation", ["min", pytest.param("mean", marks=pytest.mark.slow)])
def test_best_of_is_what_best_of_n_chooses(aggregation: Any, tmp_path: Path) -> None:
    texts = [f"Take {number}.\n\nAdd {number}.\n\nIt is {2 * number}." for number in range(6)]
    problem = "How many?"
    (tmp_path / "problems.jsonl").write_text(json.dumps({"id": "a", "problem": problem}))
    (tmp_path / "candidates.jsonl").write_text(json.dumps({"id": "a", "solutions": texts}))
    with rprm.RPRM("scripted:", num_analyses=4) as prm:
        chosen = prm.best_of(problem, texts, aggregation=aggregation)
        in_full = prm.best_of(problem, texts, aggregation=aggregation, stopping="none")
        rewards = [one.aggregate(aggregation) for one in prm.score({"problem": problem, "solution": t} for t in texts)]
        assert asyncio.run(prm.best_of_async(problem, texts, aggregation=aggregation)) == chosen
        with pytest.raises(InputError, match="list of texts"):
            prm.best_of(problem, texts[0])
    assert chosen.chosen == in_full.chosen == max(range(6), key=lambda index: rewards[index] or 0.0)
    assert [one.low for one in in_full.rewards] == rewards
    given = ("--problems", tmp_path / "problems.jsonl", "--candidates", tmp_path / "candidates.jsonl")
    options = ("-m", "scripted:", "-k", 4, "--aggregate", aggregation, "-o", tmp_path / "run")
    done = warm_cli().run([sys.executable, "-m", "rprm", "search", "best-of-n", *map(str, (*given, *options))])
    assert done.returncode == 0, done.stderr
    row = json.loads((tmp_path / "run" / "results.jsonl").read_text())
    assert row["chosen"] == chosen.chosen
    assert row["rewards"] == [one.model_dump(mode="json") for one in chosen.rewards]


def test_two_event_loops_one_after_the_other() -> None:
    with rprm.RPRM("scripted:") as prm:
        first = asyncio.run(prm.score_async(SOLUTIONS))
        assert asyncio.run(prm.score_async(SOLUTIONS)) == first == prm.score(SOLUTIONS)


def score(prm: rprm.RPRM) -> list[rprm.SolutionReward]:
    return prm.score(SOLUTIONS)


@pytest.mark.slow
def test_pickled_into_a_process_that_is_spawned() -> None:
    with rprm.RPRM("scripted:?yes_rate=0.6", num_analyses=3, threshold=0.7) as prm:
        here = score(prm)
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            assert pool.apply(score, (prm,)) == here
        again = pickle.loads(pickle.dumps(prm))
        assert (again.rewarder.threshold, score(again)) == (0.7, here)
        again.close()


def test_made_from_an_engine_it_is_not_pickled() -> None:
    with rprm.RPRM(ScriptedEngine()) as prm, pytest.raises(TypeError, match=r"made from an engine .* from a spec"):
        pickle.dumps(prm)


def in_a_fork(work: Callable[[], object], patience_s: float = 60.0) -> object:
    """What `work` gives in a fork of this process; it fails where that hangs."""
    reader, writer = os.pipe()
    if (pid := os.fork()) == 0:
        try:
            os.write(writer, pickle.dumps(work()))
        except BaseException as error:
            os.write(writer, pickle.dumps(error))
        finally:
            os._exit(0)
    os.close(writer)
    import select

    try:
        assert select.select([reader], [], [], patience_s)[0], "the fork hangs"
        with open(reader, "rb", closefd=False) as stream:
            return pickle.load(stream)
    finally:
        os.kill(pid, 9)
        os.waitpid(pid, 0)
        os.close(reader)


# Python says that a process with threads is forked: that is what is tried.
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning", "ignore:.*embedded model knows:UserWarning")
@pytest.mark.parametrize("spec", ["scripted:", pytest.param("embedded", marks=pytest.mark.slow)])
def test_used_before_and_after_a_fork(spec: str) -> None:
    with rprm.RPRM(spec, num_analyses=2, max_tokens=40) as prm:
        here = score(prm)
        assert in_a_fork(lambda: score(prm)) == here
        # This process has its model still.
        assert score(prm) == here


def threads_of_a_fork(prm: rprm.RPRM) -> int:
    """How many threads of models there are after eight have asked at once."""
    with ThreadPoolExecutor(8) as pool:
        assert len({one.reward for one in pool.map(lambda _: prm.score_step("p", ["a"]), range(8))}) == 1
    return sum(thread.name == "rprm-loop" for thread in threading.enumerate())


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_fork_has_one_model_and_no_lock_of_another_thread() -> None:
    with rprm.RPRM("scripted:", num_analyses=2) as prm:
        score(prm)
        assert in_a_fork(lambda: threads_of_a_fork(prm)) == 1
        with prm._home._lock:  # as another thread holds it that opens or closes
            assert in_a_fork(lambda: (prm.close(), len(score(prm)), prm.close()), 20.0) == (None, 2, None)


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_made_from_an_engine_it_is_not_used_after_a_fork() -> None:
    with rprm.RPRM(ScriptedEngine()) as prm:
        assert isinstance(error := in_a_fork(lambda: score(prm)), RprmError)
        assert "before a fork" in str(error)


def test_progress_is_shown_in_a_terminal_alone(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with rprm.RPRM("scripted:", num_analyses=2) as prm:
        quiet = prm.score(SOLUTIONS, progress=True)
        assert capsys.readouterr() == ("", "")
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setenv("TTY_COMPATIBLE", "1")
        monkeypatch.setenv("COLUMNS", "120")
        assert prm.score(SOLUTIONS, progress=True) == quiet
    out, err = capsys.readouterr()
    assert out == ""
    # Two solutions of two steps, two analyses each.
    assert "2/2" in err
    assert "4 steps  8 analyses" in err


class Texts(HTMLParser):
    """The tags of a page, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.add(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


def test_a_table_in_a_notebook_shows_text_as_text() -> None:
    hostile = '</pre><script>alert("x")</script>&amp;<img src=x onerror=alert(1)>'
    analysis = rprm.Analysis(
        text=hostile, verdict=False, p_yes=0.25, p_yes_source="logprobs", num_tokens=1, finish_reason="stop"
    )
    steps = (
        rprm.StepReward(step_index=0, reward=0.75, vote=1.0),
        rprm.StepReward(step_index=1, reward=0.25, vote=0.0, analyses=(analysis,)),
        rprm.StepReward(step_index=2, reward=None, vote=None, failure=hostile),
    )
    page = rprm.SolutionReward(id=hostile, num_steps=4, first_error=1, steps=steps)._repr_html_()
    found = Texts(page)
    assert found.tags == {"table", "caption", "tr", "th", "td", "details", "summary", "p", "pre"}
    assert found.text == (
        f"{hostile}: 3 of 4 steps judgedsteprewardvoteverdictanalyses"
        f"10.751.00correct20.250.00first error1P(Yes) 0.25{hostile}3nonenone{hostile}"
    )
