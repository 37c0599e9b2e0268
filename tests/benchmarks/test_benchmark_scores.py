"""Scores from files and from rewards."""

from __future__ import annotations

import gzip
import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from rprm.benchmarks.benchmark import usage_as_dict
from rprm.benchmarks.scores import Scores, StepTable, read_scores, scores_of
from rprm.errors import BenchmarkError, InputError
from rprm.records import Analysis, SolutionReward, StepReward


def test_rows_by_id_or_key(tmp_path: Path) -> None:
    path = tmp_path / "scores.jsonl"
    path.write_text('{"id": "gsm8k-0", "p_yes": [1, 0.25, null], "extra": 1}\n\n{"key": "circular_x", "p_yes": []}\n')
    scores = read_scores(path)
    assert scores.p_yes == {"gsm8k-0": (1.0, 0.25, None), "circular_x": ()}
    assert (scores.settled_at, scores.usage, scores.repeated) == (None, None, ())


def test_many_scores_take_eight_bytes_a_step() -> None:
    table = StepTable()
    table.add("a", (0.25, None, 1.0))
    table.add("b", ())
    table.add("c", [None])
    assert table == {"a": (0.25, None, 1.0), "b": (), "c": (None,)}
    assert (list(table), len(table), table.get("d")) == (["a", "b", "c"], 3, None)
    assert Scores(table) == Scores(dict(table))
    tracemalloc.start()
    try:
        for number in range(1000):
            table.add(str(number), (number / 1000,) * 100)
        assert tracemalloc.get_traced_memory()[0] < 1000 * (100 * 8 * 1.2 + 300)
    finally:
        tracemalloc.stop()


def test_gzip_array_and_unicode(tmp_path: Path) -> None:
    rows = [{"id": "問題-1", "p_yes": [0.5]}, {"id": "問題-2", "p_yes": [0]}]
    (tmp_path / "a.json").write_text(json.dumps(rows, indent=2))
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    assert read_scores(tmp_path / "a.json") == read_scores(tmp_path / "a.jsonl.gz")


def test_repeated_rows_keep_the_first(tmp_path: Path) -> None:
    path = tmp_path / "scores.jsonl"
    path.write_text('{"key": "a", "p_yes": [0.1]}\n{"key": "a", "p_yes": [0.9]}\n')
    scores = read_scores(path)
    assert (scores.p_yes, scores.repeated) == ({"a": (0.1,)}, ("a",))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"id": "a", "p_yes": [NaN]}', r"'p_yes\[0\]' .* not nan"),
        ('{"id": "a", "p_yes": [0.5, Infinity]}', r"'p_yes\[1\]' .* not inf"),
        ('{"id": "a", "p_yes": [1.0000001]}', r"not 1\.0000001"),
        ('{"id": "a", "p_yes": [-1]}', "not -1"),
        ('{"id": "a", "p_yes": [1' + "0" * 400 + "]}", "not 1000"),
        ('{"id": "a", "p_yes": [true]}', "not True"),
        ('{"id": "a", "p_yes": ["0.5"]}', "not '0.5'"),
        ('{"id": "a", "p_yes": 0.5}', "'p_yes' must be a list"),
        ('{"id": "a"}', "'p_yes' is missing"),
        ('{"p_yes": [0.5]}', "an 'id' or a 'key'$"),
        ('{"id": "a", "key": "a", "p_yes": [0.5]}', "not both"),
        ('{"id": "", "p_yes": [0.5]}', "'id' must be a text"),
        ('{"id": {}, "p_yes": [0.5]}', "'id' must be a text"),
        ('{"id": "\\ud800", "p_yes": [0.5]}', "surrogate in 'id'"),
        ("[[0.5]]", "object"),
        ('{"id": "a", "p_yes": [0.5', "not JSON"),
    ],
)
def test_malformed_rows_are_errors_with_file_and_line(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "scores.jsonl"
    path.write_text('{"id": "good", "p_yes": [0.5]}\n' + line + "\n")
    with pytest.raises(InputError, match=rf"scores\.jsonl, line 2: .*{message}"):
        read_scores(path)


def test_a_name_that_looks_like_a_hub_data_set_is_a_missing_file() -> None:
    with pytest.raises(InputError, match="runs/scores: no such file"):
        read_scores("runs/scores")


def analysis(verdict: bool | None, num_tokens: int, **changes: Any) -> Analysis:
    p_yes = None if verdict is None else float(verdict)
    source = None if verdict is None else "vote"
    return Analysis(
        text="",
        verdict=verdict,
        p_yes=p_yes,
        p_yes_source=source,
        num_tokens=num_tokens,
        finish_reason="stop",
        **changes,
    )


def reward(identifier: str, *steps: tuple[float | None, tuple[Analysis, ...]], num_steps: int) -> SolutionReward:
    return SolutionReward(
        id=identifier,
        num_steps=num_steps,
        first_error=-1,
        steps=tuple(
            StepReward(step_index=index, reward=value, vote=value, analyses=analyses)
            for index, (value, analyses) in enumerate(steps)
        ),
    )


def test_rewards_give_scores_and_usage() -> None:
    rewards = [
        reward(
            "a",
            (1.0, (analysis(True, 10), analysis(True, 20, forced=True))),
            (0.5, (analysis(True, 5), analysis(False, 5))),
            num_steps=2,
        ),
        reward("b", (None, (analysis(None, 100), analysis(None, 60))), num_steps=4),
    ]
    scores = scores_of(iter(rewards), settled_at=0.5)
    assert scores.p_yes == {"a": (1.0, 0.5), "b": (None,)}
    assert scores.usage is not None
    # 10 + 20 + 5 + 5 + 100 + 60 = 200 tokens over 2 + 1 = 3 judged steps of 2 solutions; no prompt was counted.
    assert usage_as_dict(scores) == {
        "tokens": 200,
        "tokens_per_step": pytest.approx(200 / 3),
        "tokens_per_solution": 100,
        "prompt_tokens": None,
        "parameters": None,
        "flops": None,
        "solutions": 2,
        "steps": 3,
        "uncovered_steps": 1,
        "analyses": 6,
        "analyses_without_verdict": 2,
        "analyses_forced": 1,
    }


def test_rewards_with_a_step_left_out_are_refused() -> None:
    whole = reward("a", (1.0, ()), (0.0, ()), num_steps=2)
    with pytest.raises(InputError, match="reward of a does not hold its steps in order"):
        scores_of([whole.model_copy(update={"steps": whole.steps[1:]})])


def test_settled_rewards_decide_at_their_threshold_alone() -> None:
    scores = Scores({}, settled_at=0.5)
    scores.check_threshold(0.5)
    with pytest.raises(BenchmarkError, match=r"settled these rewards at the threshold 0\.5"):
        scores.check_threshold(0.6)


@pytest.mark.parametrize("threshold", [0.0, 1.0, -1.0, float("nan")])
def test_thresholds_lie_between_0_and_1(threshold: float) -> None:
    with pytest.raises(BenchmarkError, match="between 0 and 1"):
        Scores({}).check_threshold(threshold)
