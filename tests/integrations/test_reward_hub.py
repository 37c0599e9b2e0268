"""reward_hub's calls and its results (opt-in: `make test-integrations`)."""

from __future__ import annotations

from typing import Any

import pytest
from stated_judge import Judge, rounded

from rprm.errors import InputError
from rprm.integrations.reward_hub import ProcessRewardModel

TEXTS = ["a 0.5\n\nb 0.25\n\nc 0.75", "a 0.5\n\nlost\n\nc 0.75"]


def conversation(text: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": "p"}, {"role": "assistant", "content": text}]


def test_both_forms_of_the_call(judge: Judge) -> None:
    prm = ProcessRewardModel(judge)
    assert rounded(prm.score([conversation(text) for text in TEXTS])) == [0.75, 0.75]
    assert rounded(prm.score(conversation(TEXTS[0]), aggregation_method="min", max_input_tokens=8192)) == [0.25]
    assert rounded(prm.score("p", TEXTS, aggregation_method="prod")) == [0.09375, 0.0]
    assert rounded(prm.score("p", ["a 0.5;b 0.75"], step_sep=";", aggregation_method="min")) == [0.5]
    # The whole answer as one step: its last number is what this judge reads.
    assert rounded(prm.score("p", [TEXTS[0]], aggregation_method="model")) == [0.75]
    assert judge.num_judged == 3 + 2 + 1 + 1  # "a 0.5" is remembered between the two texts, and in the third
    with pytest.raises(InputError, match="methods are last"):
        prm.score("p", TEXTS, aggregation_method="mean")


def test_its_results(judge: Judge) -> None:
    base = pytest.importorskip("reward_hub.base")
    prm = ProcessRewardModel(judge)
    results = prm.score("p", [*TEXTS, ""], aggregation_method=base.AggregationMethod.MIN, return_full_prm_result=True)
    assert rounded([one.step_scores for one in results]) == [[0.5, 0.25, 0.75], [0.5, 0.0, 0.75], [0.0]]
    assert rounded([one.score for one in results]) == [0.25, 0.0, 0.0]
    assert rounded(prm.score("p", TEXTS, aggregation_method=base.AggregationMethod.PRODUCT)) == [0.09375, 0.0]
    assert issubclass(type(results[0]), base.PRMResult)
