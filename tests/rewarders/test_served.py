"""`classifier:MODEL@URL` against a server on loopback that answers `/pooling` as vLLM does.

The server computes with the same checkpoint: rows of two probabilities for every token, or, with a step tag, for every
token that is one (vllm/model_executor/layers/pooler/tokwise/methods.py, `AllPool` and `StepPool`).
"""

from __future__ import annotations

import asyncio
import json
import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from references import FOLDERS
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from rprm.errors import EngineError, EngineUnavailable
from rprm.records import Solution, SolutionReward
from rprm.rewarders import load_rewarder
from rprm.rewarders.base import StepRewarder
from rprm.rewarders.classifier import Classifier

SOLUTIONS = [
    Solution(id="a", problem="What is 12 * 3 - 4?", steps=("12 * 3 = 36.", "36 - 4 = 33.\nOr 32.", "It is 32.")),
    # Steps that say what the layouts' tags say.
    Solution(id="b", problem="<extra_0>?", steps=("ки и ки\nки", "<extra_0> <|im_end|>", "", "-+\n\n")),
]

#: Ids -> rows, as a pooler gives them.
Pooler = Callable[[list[int]], Any]


class Server:
    """Answers with what `pool` gives; `reply` overrides all."""

    def __init__(self, pool: Pooler) -> None:
        self.pool = pool
        self.reply: Callable[[dict[str, Any]], tuple[int, Any]] | None = None
        self.bodies: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.url = ""

    def answer(self, body: dict[str, Any]) -> tuple[int, Any]:
        self.bodies.append(body)
        if self.reply is not None:
            return self.reply(body)
        return 200, pooling(self.pool(body["input"]))


def pooling(rows: Any) -> dict[str, Any]:
    return {"object": "list", "model": "m", "data": [{"index": 0, "object": "pooling", "data": rows}]}


@contextmanager
def serving(pool: Pooler) -> Iterator[Server]:
    server = Server(pool)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            found = {"object": "list", "data": [{"id": "tiny", "max_model_len": 700}]}
            self.send(*((200, found) if self.path == "/v1/models" else (404, {})))

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            server.keys.append(self.headers.get("authorization"))
            self.send(*(server.answer(body) if self.path == "/pooling" else (404, {})))

        def send(self, status: int, value: Any) -> None:
            content = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *arguments: Any) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.url = f"http://127.0.0.1:{http.server_port}"
    thread = threading.Thread(target=http.serve_forever)
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        thread.join()
        http.server_close()


def pooler_of(folder: Path, layout: str) -> Pooler:
    """What vLLM does with a model of that layout."""
    tokenizer, tensors = AutoTokenizer.from_pretrained(folder), load_file(folder / "model.safetensors")
    model = AutoModelForCausalLM.from_pretrained(folder)

    def pool(ids: list[int]) -> Any:
        with torch.inference_mode():
            hidden = model.base_model(torch.tensor([ids])).last_hidden_state[0]
            if layout == "qwen":
                inner = (hidden @ tensors["score.0.weight"].T + tensors["score.0.bias"]).clamp(min=0)
                logits = inner @ tensors["score.2.weight"].T + tensors["score.2.bias"]
                kept = torch.tensor(ids) == tokenizer.convert_tokens_to_ids("<extra_0>")
            else:
                logits = hidden @ tensors["score.weight"].T + tensors["score.bias"]
                kept = torch.ones(len(ids), dtype=torch.bool)
            rows: list[list[float]] = logits.softmax(-1)[kept].tolist()
        return rows

    return pool


def judged(classifier: StepRewarder, solutions: list[Solution] = SOLUTIONS) -> list[SolutionReward]:
    async def main() -> list[SolutionReward]:
        await classifier.start()
        try:
            return list(await asyncio.gather(*map(classifier.judge, solutions)))
        finally:
            await classifier.aclose()

    return asyncio.run(main())


@pytest.mark.parametrize("layout", ["qwen", "trl"])
def test_rewards_are_those_of_the_model_in_this_process(request: pytest.FixtureRequest, layout: str) -> None:
    folder: Path = request.getfixturevalue(FOLDERS[layout])
    expected = judged(Classifier(str(folder)))
    with serving(pooler_of(folder, layout)) as server:
        found = judged(load_rewarder(f"classifier:tiny@{server.url}?tokenizer={folder}&layout={layout}"))
    for one, other in zip(found, expected, strict=True):
        assert one.rewards == pytest.approx(other.rewards, abs=1e-5)
        assert None not in one.rewards
        assert one.first_error == other.first_error
    assert {body["model"] for body in server.bodies} == {"tiny"}
    assert all(body["task"] == "token_classify" and isinstance(body["input"][0], int) for body in server.bodies)


def test_what_the_manifest_says_and_the_key(qwen_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRM_KEY", "secret-1")

    async def main(url: str) -> dict[str, Any]:
        # With or without /v1, as the same server is written for an engine.
        spec = f"classifier:tiny@{url}/v1?layout=qwen&key_env=PRM_KEY"
        classifier = load_rewarder(spec, tokenizer=str(qwen_folder), threshold=0.3)
        described = await classifier.start()
        await classifier.judge(SOLUTIONS[0])
        await classifier.aclose()
        return described

    with serving(pooler_of(qwen_folder, "qwen")) as server:
        described = asyncio.run(main(server.url))
    assert server.keys == ["Bearer secret-1"]
    assert "secret-1" not in json.dumps(described)
    assert described["layout"] == "qwen"
    assert described["threshold"] == 0.3
    assert described["context_length"] == 700
    assert described["engine"]["model"] == "tiny"
    assert described["engine"]["url"] == server.url
    assert described["engine"]["tokenizer_revision"].startswith("sha256:")


def test_a_solution_that_is_too_long_is_unscored(qwen_folder: Path) -> None:
    long = Solution(id="long", problem="p", steps=("a" * 800,))
    with serving(pooler_of(qwen_folder, "qwen")) as server:
        spec = f"classifier:tiny@{server.url}?tokenizer={qwen_folder}&layout=qwen"
        (too_long,) = judged(load_rewarder(spec), [long])
        assert server.bodies == []
        # A server that refuses it by itself costs the solution, not the run.
        server.reply = lambda body: (400, {"error": {"message": "maximum context length is 700"}})
        (refused,) = judged(load_rewarder(f"{spec}&context_length=5000"), [long])
    assert too_long.rewards == refused.rewards == [None]
    assert too_long.first_error is None
    assert "context length is 700" in (too_long.steps[0].failure or "")
    assert "maximum context length" in (refused.steps[0].failure or "")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (lambda ids: [[0.5, 0.5]] * (len(ids) - 1), "rows for"),
        (lambda ids: [[0.5, 0.5]], "rows for"),
        (lambda ids: [], "rows for"),
        # Logits; three labels; values; rows of unequal length.
        (lambda ids: [[-1.5, 2.5]] * len(ids), "not the probabilities"),
        (lambda ids: [[0.2, 0.3, 0.5]] * len(ids), "not the probabilities"),
        (lambda ids: [[0.7]] * len(ids), "not the probabilities"),
    ],
)
def test_rows_that_fit_no_pooler_end_the_run(qwen_folder: Path, rows: Callable[[list[int]], Any], message: str) -> None:
    with serving(rows) as server:
        classifier = load_rewarder(f"classifier:tiny@{server.url}?tokenizer={qwen_folder}&layout=qwen")
        with pytest.raises(EngineError, match=message):
            judged(classifier, SOLUTIONS[:1])


@pytest.mark.parametrize("row", [[math.nan, 0.5], [0.5, math.inf], [-math.inf, math.inf]])
def test_scores_that_are_no_numbers_are_unscored(qwen_folder: Path, row: list[float]) -> None:
    with serving(lambda ids: [row] * len(ids)) as server:
        classifier = load_rewarder(f"classifier:tiny@{server.url}?tokenizer={qwen_folder}&layout=qwen")
        (reward,) = judged(classifier, SOLUTIONS[:1])
    assert reward.rewards == [None] * 3
    assert "no numbers" in (reward.steps[0].failure or "")


@pytest.mark.parametrize(
    "answer",
    [
        {},
        {"data": "x"},
        {"data": []},
        *(
            {"data": [{"data": rows}]}
            for rows in ([[0, 10**400]], [0.1, 0.9], ["01", "10"], [["0", "1"]], [[False, True]])
        ),
    ],
)
def test_an_answer_of_another_kind_is_asked_for_again(qwen_folder: Path, answer: Any) -> None:
    pool = pooler_of(qwen_folder, "qwen")
    with serving(pool) as server:
        spec = f"classifier:tiny@{server.url}?tokenizer={qwen_folder}&layout=qwen"
        server.reply = lambda body: (200, answer if len(server.bodies) == 1 else pooling(pool(body["input"])))
        classifier: Any = load_rewarder(spec)
        classifier.endpoint.backoff_base = 0.0
        (reward,) = judged(classifier, SOLUTIONS[:1])
        assert None not in reward.rewards
        assert len(server.bodies) == 2
        server.reply = lambda body: (200, answer)
        with pytest.raises(EngineUnavailable, match="no answer of /pooling"):
            judged(load_rewarder(f"{spec}&max_retries=0"), SOLUTIONS[:1])


def test_specs(tmp_path: Path) -> None:
    for spec, message in (
        ("classifier:m@http://localhost:1", "layout is not recognised"),
        ("classifier:Skywork-o1-Open-PRM@http://localhost:1", "no server of skywork models"),
        ("classifier:math-shepherd-mistral-7b-prm@http://localhost:1", "no server of math-shepherd models"),
        ("classifier:@http://localhost:1?layout=qwen", "write MODEL@URL"),
        ("classifier:m@http://user:word@localhost:1?layout=qwen", "no password or key"),
        ("classifier:m@http://localhost:1?layout=qwen&device=cpu", "unknown option 'device'"),
    ):
        with pytest.raises(EngineError, match=message):
            load_rewarder(spec)
    classifier = load_rewarder(f"classifier:Qwen2.5-Math-PRM-7B@http://localhost:1?tokenizer={tmp_path}")
    with pytest.raises(EngineError, match=r"cannot load the tokenizer.* name it with tokenizer="):
        asyncio.run(classifier.start())
