"""OpenRLHF's executor with the reward function and over HTTP (opt-in: `make test-integrations`)."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from stated_judge import Judge, rounded

import rprm
from rprm.errors import InputError
from rprm.integrations.openrlhf import RewardFunction, problem_of_prompt, respond


@pytest.mark.parametrize(
    "prompt",
    [
        "What is\n2 + 2?",
        "<|im_start|>system\nsum<|im_end|>\n<|im_start|>user\nWhat is\n2 + 2?<|im_end|>\n<|im_start|>assistant\n",
        "<|im_start|>user\nshot<|im_end|>\n<|im_start|>assistant\n1<|im_end|>\n"
        "<|im_start|>user\nWhat is\n2 + 2?<|im_end|>\n<|im_start|>assistant\n",
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nWhat is\n2 + 2?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        "<bos><start_of_turn>user\nWhat is\n2 + 2?<end_of_turn>\n<start_of_turn>model\n",
        "<s>[INST] What is\n2 + 2? [/INST]",
        "<｜begin▁of▁sentence｜><｜User｜>What is\n2 + 2?<｜Assistant｜><think>\n",
        "<|user|>\nWhat is\n2 + 2?<|end|>\n<|assistant|>\n",
    ],
)
def test_the_problem_in_a_rendered_prompt(prompt: str) -> None:
    assert problem_of_prompt(prompt) == "What is\n2 + 2?"


def test_an_unknown_template_is_refused() -> None:
    with pytest.raises(InputError, match=r"unknown template \(<\|turn\|>\)"):
        problem_of_prompt("<|turn|>human What is 2 + 2?<|turn|>")


def test_the_answer_of_a_server(judge: Judge) -> None:
    prompt = "<|im_start|>user\np<|im_end|>\n<|im_start|>assistant\n"
    texts = ["a 0.5\n\nb 0.25<|im_end|>\n<|endoftext|>", "lost</s>", "<|im_end|>"]
    payload = {"query": [prompt + text for text in texts], "prompts": [prompt] * 3, "labels": ["4"] * 3}
    found = asyncio.run(respond(judge, payload, unscored=-1.0))
    assert rounded(found) == {
        "rewards": [0.25, -1.0, -1.0],
        "scores": [0.25, -1.0, -1.0],
        "extra_logs": {"unscored": [0.0, 1.0, 1.0]},
    }
    long = prompt.replace("p<", f"{'p' * 60}<")
    cut = {"query": [long[30:] + "a 0.75"], "prompts": [long]}
    assert rounded(asyncio.run(respond(judge, cut))["rewards"]) == [0.75]
    labelled = {"query": ["<|turn|>a 0.75"], "prompts": ["<|turn|>"], "labels": [{"problem": "p"}]}
    found = asyncio.run(respond(judge, labelled, form="last", problem_of=lambda prompt, label: label["problem"]))
    assert rounded(found["rewards"]) == [0.75]


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        ({}, "'query' must be a list of texts"),
        ({"query": ["a"], "prompts": "a"}, "'prompts' must be a list of texts"),
        ({"query": ["a", "b"], "prompts": ["a"]}, "not of one length"),
        *(({"query": ["a"], "prompts": ["a"], "labels": one}, "'labels' must be a list") for one in (5, 1.5, True, 0)),
        ({"query": ["a"], "prompts": ["a"], "labels": {"a": 1}}, "'labels' must be a list"),
        ({"query": ["a"], "prompts": ["b"], "labels": [""]}, "query 0 does not begin with its prompt"),
    ],
)
def test_payloads_that_are_refused(payload: dict[str, Any], message: str, judge: Judge) -> None:
    with pytest.raises(InputError, match=message):
        asyncio.run(respond(judge, payload))


class Seen:
    """Keeps what is to be judged."""

    def __init__(self, judge: Judge) -> None:
        self.judge, self.solutions = judge, list[rprm.Solution]()

    async def score_async(self, solutions: Any) -> list[rprm.SolutionReward]:
        self.solutions = list(solutions)
        return await self.judge.score_async(self.solutions)


SHOT = "<|im_start|>user\nWhat is 2 + 3?<|im_end|>\n<|im_start|>assistant\n5<|im_end|>\n"
ASK = "<|im_start|>user\nWhat is 2 + 3?<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize(
    ("prompt", "query", "steps"),
    [
        # The response says again what the prompt ends in.
        ("What is 2+3?", " What is 2+3?\nWhat is 2+3?\n\n0.5", ("What is 2+3?", "0.5")),
        # So does the prompt, once whole with other spaces, once without its beginning.
        (SHOT + ASK, f" {SHOT}{ASK}a 0.5\n\n{ASK[17:31]}", ("a 0.5", "What is 2 + 3?")),
        (SHOT + ASK, f"{SHOT[-25:]}{ASK}a 0.5", ("a 0.5",)),
    ],
)
def test_a_response_begins_where_its_prompt_ends(prompt: str, query: str, steps: tuple[str, ...], judge: Judge) -> None:
    seen = Seen(judge)
    asyncio.run(respond(seen, {"query": [query], "prompts": [prompt]}))
    assert [one.steps for one in seen.solutions] == [steps]


@pytest.mark.parametrize(
    "text",
    [
        "<eos>" * 200_000 + "b", "<eos> " * 200_000, " " * 1_000_000 + "b", "<|" * 500_000,
        "<|im_start|>user\n" * 60_000, "<|user|>" * 60_000 + "</s>" * 60_000, "[INST]" * 90_000 + "<|user|>" * 60_000,
        "<|im_end|><|im_start|>user\n" * 40_000,
    ],
)  # fmt: skip
def test_no_text_takes_quadratic_time(text: str) -> None:
    """A server reads these on its event loop. Quadratic, a million characters took minutes."""

    class Nobody:
        async def score_async(self, solutions: Any) -> Any:
            raise InputError("it is read")

    started = time.process_time()
    for query, prompt in ((f"p {text}", "p "), (text[1:], text), (text, text[1:])):
        with suppress(InputError):
            asyncio.run(respond(Nobody(), {"query": [query], "prompts": [prompt]}))
    assert time.process_time() - started < 5


class Engine:
    """What the executor asks of vLLM: tokens after a prompt."""

    def __init__(self, tokenizer: Any, text: str) -> None:
        self.tokenizer, self.text = tokenizer, text

    async def generate(self, prompt_ids: list[int], params: Any, multi_modal_data: Any = None) -> Any:
        ids = [*self.tokenizer(self.text, add_special_tokens=False)["input_ids"], self.tokenizer.eos_token_id]
        completion = SimpleNamespace(token_ids=ids, finish_reason="stop", logprobs=None, text=self.text)
        return SimpleNamespace(outputs=[completion])


FILE = """
from rprm import RPRM
from rprm.integrations.openrlhf import RewardFunction

reward_func = RewardFunction(RPRM("scripted:", num_analyses=2), "mean")
"""


@pytest.mark.parametrize("way", ["function", "http"])
def test_a_rollout(way: str, tiny_model: Path, tmp_path: Path) -> None:
    agent = pytest.importorskip("openrlhf.utils.agent")
    from aiohttp import web
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "2 + 2?"}], tokenize=False, add_generation_prompt=True
    )
    params = SimpleNamespace(max_tokens=64, logprobs=None)
    (tmp_path / "reward.py").write_text(FILE)

    async def rollout(url: str) -> dict[str, Any]:
        executor = agent.SingleTurnAgentExecutor(url)
        engine = Engine(tokenizer, "2 + 2 = 4.\n\nIt is 4.")
        found: dict[str, Any] = await executor.execute(prompt, "4", params, 512, tokenizer, engine)
        return found

    async def over_http() -> dict[str, Any]:
        with rprm.RPRM("scripted:", num_analyses=2) as prm:

            async def handle(request: web.Request) -> web.Response:
                return web.json_response(await respond(prm, await request.json(), form="mean"))

            app = web.Application()
            app.router.add_post("/reward", handle)
            runner = web.AppRunner(app)
            await runner.setup()
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            port = runner.addresses[0][1]
            try:
                return await rollout(f"http://127.0.0.1:{port}/reward")
            finally:
                await runner.cleanup()

    found = asyncio.run(rollout(str(tmp_path / "reward.py")) if way == "function" else over_http())
    with rprm.RPRM("scripted:", num_analyses=2) as prm:
        (reward,) = prm.score([{"problem": "2 + 2?", "steps": ["2 + 2 = 4.", "It is 4."]}])
    assert float(found["reward"][0]) == pytest.approx(reward.aggregate("mean"))
    assert float(found["extra_logs"]["unscored"][0]) == 0.0


def test_tensors(judge: Judge) -> None:
    reward = RewardFunction(judge, "progress")
    found = reward(["pa 0.5\n\nb 0.25", "plost"], ["p", "p"], ["", ""], extra=1)
    assert found["rewards"].tolist() == [0.5, 0.0]
    assert found["extra_logs"]["unscored"].tolist() == [0.0, 1.0]
