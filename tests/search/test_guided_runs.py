"""Guided search over many problems: run folders, kills at any moment, and everything that may run beside."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rprm.benchmarks.mathematics import Problems, read_problem_file
from rprm.engines import Completion, Sampling
from rprm.engines.scripted import ScriptedEngine
from rprm.errors import CorruptRun, EngineUnavailable, RequestRefused, SettingsChanged
from rprm.prompts import Prompt, load_template
from rprm.prompts.library import load_policy_template
from rprm.rewarders.rprm import Judge
from rprm.search.candidates import Policy
from rprm.search.guided import GuidedSearch, SearchTotals, SearchTree, StrategyName, search_problems, search_strategy
from rprm.stopping import StoppingRule
from tests.faults.folder_damages import as_older
from tests.search.replay import replay

K = 4


@pytest.fixture
def problems(tmp_path: Path) -> Problems:
    path = tmp_path / "problems.jsonl"
    rows = [{"id": f"p{number}", "problem": f"Problem {number} é𝟚", "answer": "2"} for number in range(6)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_problem_file(path)


class Engine(ScriptedEngine):
    """Writes the scripted policy's steps and the scripted analyses; takes its time, and dies when told.

    Args:
        dies_after: requests.
        jitter: the seed of delays; None for none.
        refuses: problems with this text.
    """

    def __init__(self, *, dies_after: int | None = None, jitter: int | None = None, refuses: str = "\0") -> None:
        super().__init__(concurrency=4)
        self.dies_after = dies_after
        self.jitter = None if jitter is None else random.Random(jitter)
        self.refuses = refuses
        self.seeds: list[int] = []

    async def generate(self, prompt: Prompt, sampling: Sampling) -> Completion:
        if self.dies_after is not None and self.num_requests >= self.dies_after:
            raise EngineUnavailable("the server is gone")
        if self.refuses in prompt.text:
            raise RequestRefused("the prompt exceeds the context length")
        assert sampling.seed is not None
        self.seeds.append(sampling.seed)
        if self.jitter is not None:
            await asyncio.sleep(self.jitter.random() * 0.002)
        return await super().generate(prompt, sampling)


def run(problems: Problems, output: Path, engine: Engine, name: StrategyName = "dvts", **options: Any) -> SearchTotals:
    """Two trees, or a beam of two, of width 3."""
    policy = Policy(engine, load_policy_template(None), Sampling(0.7, 0.95, 2048, seed=1), step_tokens=50)
    rule = StoppingRule(K, stopping="none")
    judge = Judge(engine, load_template(None), rule, Sampling(0.95, 0.95, 500, seed=1), first_error_exit=False)
    width = {"width": 3} if name == "guided" else {"width": 3, "n": 6}
    search = GuidedSearch(policy, judge, search_strategy(name, **width, **options))
    return asyncio.run(search_problems(search, problems, output=output))


def files(folder: Path) -> dict[str, bytes]:
    """What a run leaves, but for the manifest (it has times in it) and the lock."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name not in ("manifest.json", "lock")}


def trees(folder: Path) -> list[SearchTree]:
    return [SearchTree.model_validate_json(line) for line in (folder / "results.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", ["guided", "beam", "dvts"])
def test_trees_stand_in_the_order_of_the_problems_and_add_up(
    name: StrategyName, problems: Problems, tmp_path: Path
) -> None:
    engine = Engine()
    totals = run(problems, tmp_path / "run", engine, name)
    found = trees(tmp_path / "run")
    assert [tree.id for tree in found] == [f"p{number}" for number in range(6)]
    assert all(replay(tree) == tree for tree in found)
    assert all(r"\boxed" in tree.text for tree in found)
    # Every request is in the trees, and nothing was asked twice.
    assert totals.num_samples + totals.num_analyses == engine.num_requests == len(set(engine.seeds))
    assert totals.num_analyses < totals.num_analyses_full == K * totals.num_steps
    assert json.loads((tmp_path / "run" / "summary.json").read_text()) == totals.as_dict()


@pytest.mark.parametrize("aggregation", ["last", "product"])
def test_what_is_drawn_does_not_depend_on_how_long_it_takes(
    aggregation: str, problems: Problems, tmp_path: Path
) -> None:
    for seed in (None, 1, 2):
        run(problems, tmp_path / str(seed), Engine(jitter=seed), aggregation=aggregation)
    assert files(tmp_path / "None") == files(tmp_path / "1") == files(tmp_path / "2")


def test_killed_after_any_request_nothing_is_lost_or_paid_twice(problems: Problems, tmp_path: Path) -> None:
    problems = replace(problems, problems=problems.problems[:3])
    whole = Engine()
    run(problems, tmp_path / "whole", whole)
    expected = files(tmp_path / "whole")
    for dies_after in range(0, whole.num_requests, 19):
        killed = tmp_path / f"killed{dies_after}"
        engines = []
        for session in range(10**6):
            # The first session ends after so many requests, each later one after 90 more.
            engines.append(Engine(dies_after=90 if session else dies_after, jitter=dies_after + session))
            try:
                run(problems, killed, engines[-1])
                break
            except EngineUnavailable:
                continue
        assert files(killed) == expected
        paid = Counter(seed for engine in engines for seed in engine.seeds)
        assert set(paid) == set(whole.seeds)
        # Twice is paid only what a kill caught in flight: of each of 3 problems 6 steps, or 2 waves of 6 analyses.
        assert paid.total() - whole.num_requests <= (len(engines) - 1) * 3 * 12


def test_one_problem_that_is_refused_leaves_the_others_alone(problems: Problems, tmp_path: Path) -> None:
    run(problems, tmp_path / "whole", Engine())
    totals = run(problems, tmp_path / "run", Engine(refuses="Problem 3"))
    whole, found = trees(tmp_path / "whole"), trees(tmp_path / "run")
    assert [number for number in range(6) if whole[number] != found[number]] == [3]
    assert (found[3].text, found[3].ends) == ("", ("dead end", "dead end"))
    assert "context length" in found[3].refusals[0].reason
    assert (totals.num_finished, totals.num_dead_ends) == (5, 2)


def test_a_run_is_gone_on_with_under_the_same_settings_alone(problems: Problems, tmp_path: Path) -> None:
    run(problems, tmp_path / "run", Engine())
    again = Engine()
    run(problems, tmp_path / "run", again)
    assert again.num_requests == 0
    with pytest.raises(SettingsChanged, match=r"strategy.max_rounds: 40 -> 3"):
        run(problems, tmp_path / "run", Engine(), max_rounds=3)
    as_older(tmp_path / "run")
    results = tmp_path / "run" / "results.jsonl"
    results.write_text(results.read_text().replace('"fate":"finished"', '"fate":"pruned"', 1))
    with pytest.raises(CorruptRun, match=r"results\.jsonl, line 1 .*`finished` does not name"):
        run(problems, tmp_path / "run", Engine())


def test_analyses_are_kept_where_asked_for(problems: Problems, tmp_path: Path) -> None:
    engine = Engine()
    policy = Policy(engine, load_policy_template(None), Sampling(0.7, 0.95, 2048, seed=1))
    judge = Judge(engine, load_template(None), StoppingRule(K, stopping="none"), Sampling(0.95, 0.95, 500, seed=1))
    strategy = search_strategy("guided", width=3)
    kept, plain = (
        asyncio.run(GuidedSearch(policy, judge, strategy, keep_analyses=keep).solve(problems.problems[0]))
        for keep in (True, False)
    )
    assert any(node.analyses for node in kept.nodes)
    for node in kept.nodes:
        assert tuple(analysis.p_yes for analysis in node.analyses) == node.p_yes
        assert sum(analysis.num_tokens for analysis in node.analyses) == node.num_judge_tokens
    assert replay(kept) == kept
    stripped = kept.model_copy(update={"nodes": tuple(n.model_copy(update={"analyses": ()}) for n in kept.nodes)})
    assert stripped == plain
