"""search-and-learn's searches, where its checkout is on the path (opt-in: `make test-integrations`).

It is on no registry and asks for vLLM, which only its policy needs: a scripted one stands in for it.
"""

from __future__ import annotations

import random
import re
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from stated_judge import Judge, rounded

from rprm.integrations.search_and_learn import PRM


class Tokenizer:
    chat_template = ""

    def apply_chat_template(self, conversations: list[Any], **options: Any) -> list[str]:
        return ["|".join(message["content"] for message in one[1:]) for one in conversations]


class Policy:
    """Steps of random worth; the third is the last."""

    def __init__(self) -> None:
        self.random = random.Random(0)

    def get_tokenizer(self) -> Tokenizer:
        return Tokenizer()

    def step(self, number: int) -> str:
        return f"Line {number} of {self.random.random()}:\nworth 0.{self.random.randint(1, 9)}."

    def generate(self, prompts: list[str], sampling_params: Any, use_tqdm: bool = False) -> list[Any]:
        outputs = []
        for prompt in prompts:
            number = prompt.count("worth") + 1
            ends = number == 3 or sampling_params.stop is None
            steps = (
                [self.step(one) for one in range(number, 4)] if sampling_params.stop is None else [self.step(number)]
            )
            text = "\n\n".join(steps) + ("" if ends else "\n\n")
            completion = SimpleNamespace(text=text, token_ids=[0], stop_reason=None if ends else "\n\n")
            outputs.append(SimpleNamespace(outputs=[completion]))
        return outputs


@pytest.fixture
def sal(monkeypatch: pytest.MonkeyPatch) -> Any:
    vllm: Any = ModuleType("vllm")
    vllm.LLM = Policy
    vllm.SamplingParams = lambda **options: SimpleNamespace(**{"stop": None, **options})
    monkeypatch.setitem(sys.modules, "vllm", vllm)
    if "latex2sympy2" not in sys.modules:  # of its graders
        grader: Any = ModuleType("latex2sympy2")
        grader.latex2sympy = None
        monkeypatch.setitem(sys.modules, "latex2sympy2", grader)
    pytest.importorskip("sal")
    from sal import search
    from sal.config import Config

    return SimpleNamespace(search=search, Config=Config)


def worths(text: str) -> list[float]:
    return [float(one) for one in re.findall(r"worth (0\.\d)", text)]


def test_best_of_n(sal: Any, judge: Judge) -> None:
    examples = {"problem": ["p", "q"]}
    found = sal.search.best_of_n(examples, sal.Config(n=4, agg_strategy="min"), Policy(), PRM(judge))
    assert rounded(found["scores"]) == [[worths(text) for text in group] for group in found["completions"]]
    for group, chosen in zip(found["completions"], found["pred"], strict=True):
        assert min(worths(chosen)) == max(min(worths(text)) for text in group)


@pytest.mark.parametrize("approach", ["beam_search", "dvts"])
def test_searches(approach: str, sal: Any, judge: Judge) -> None:
    config = sal.Config(approach=approach, n=4, beam_width=2, num_iterations=5, search_batch_size=1)
    found = getattr(sal.search, approach)({"problem": ["p"]}, config, Policy(), PRM(judge))
    assert rounded(found["scores"]) == [[worths(text) for text in group] for group in found["completions"]]
    assert [len(one) for one in found["scores"][0]] == [3, 3, 3, 3]
    # Four new steps in each of three rounds, and none is judged again.
    assert judge.num_judged == 12
