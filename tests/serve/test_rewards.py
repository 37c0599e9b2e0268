"""Rewards over HTTP: what `RPRM` gives, in the forms of the routes, and nothing for who may not have it."""

from __future__ import annotations

import json
import socket
import threading
import time
from typing import Any

import httpx2
import pytest
from serving import Serve

import rprm
from rprm.engines.base import Completion, Sampling
from rprm.engines.scripted import ScriptedEngine
from rprm.errors import EngineError, EngineUnavailable
from rprm.prompts.template import Prompt
from rprm.serve.app import Failure

SOLUTIONS = [
    {"id": "a", "problem": "What is 1 + 1?", "steps": ["One and one.", "It is 2.", "So 2."]},
    {"problem": "What is 2 + 2?", "solution": "Add.\n\nIt is 5."},
]


def events(text: str) -> list[dict[str, Any]]:
    blocks = text.strip().split("\n\n")
    assert blocks[-1] == "data: [DONE]"
    return [json.loads(block.removeprefix("data: ")) for block in blocks[:-1] if not block.startswith(":")]


def test_rewards_are_those_of_python(serve: Serve) -> None:
    client = serve(num_analyses=4, seed=3)
    found = client.post("/v1/rewards", json={"solutions": SOLUTIONS}).json()
    with rprm.RPRM("scripted:?noise=0.3", num_analyses=4, seed=3) as prm:
        wanted, first = prm.score(SOLUTIONS), prm.first_errors(SOLUTIONS)
        step = prm.score_step("What is 1 + 1?", SOLUTIONS[0]["steps"], 1)
    assert [one["rewards"] for one in found["data"]] == [one.rewards for one in wanted]
    assert [one["first_error"] for one in found["data"]] == [one.first_error for one in wanted]
    assert [one["id"] for one in found["data"]] == ["a", "1"]
    assert [one["verdict"] for one in found["data"][0]["steps"]] == [one >= 0.5 for one in wanted[0].rewards]
    assert (found["threshold"], found["model"], found["object"]) == (0.5, "judge", "list")
    # 3 + 2 steps of 4 analyses.
    tokens = sum(analysis.num_tokens for one in wanted for step in one.steps for analysis in step.analyses)
    assert found["usage"] == {"analyses": 20, "generated_tokens": tokens}
    assert found["data"][0]["steps"][0]["analyses"] is None

    lean = client.post("/v1/rewards", json={"solutions": SOLUTIONS, "rewards": "first-errors", "analyses": True}).json()
    assert [one["first_error"] for one in lean["data"]] == [one.first_error for one in first]
    texts = [[one["text"] for one in step["analyses"]] for step in lean["data"][0]["steps"]]
    assert texts == [[one.text for one in step.analyses] for step in first[0].steps]

    body = {"problem": "What is 1 + 1?", "steps": SOLUTIONS[0]["steps"], "step_index": 1}
    alone = client.post("/v1/score_step", json=body).json()
    assert (alone["reward"], alone["step_index"], alone["num_analyses"]) == (step.reward, 1, 4)


def test_each_step_is_sent_as_it_is_judged(serve: Serve) -> None:
    slow = ScriptedEngine(delay=0.2, concurrency=2)
    client = serve(judge=slow, num_analyses=2)
    started, times, blocks = time.monotonic(), [], []
    with client.stream("POST", "/v1/rewards", json={"solutions": SOLUTIONS[:1], "stream": True}) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        for line in answer.iter_lines():
            if line.startswith("data: {"):
                times.append(time.monotonic() - started)
                blocks.append(json.loads(line[6:]))
    started_with, *blocks = blocks
    told = {"index": 0, "id": "a", "steps": SOLUTIONS[0]["steps"], "notes": []}
    assert started_with == {"object": "solution.started", **told}
    assert [one["object"] for one in blocks] == ["step.reward"] * 3 + ["solution.rewards", "done"]
    # Two prompts at once, 0.2 s each: the third step stands 0.2 s after the first.
    assert times[3] - times[1] > 0.1
    whole = client.post("/v1/rewards", json={"solutions": SOLUTIONS[:1]}).json()
    assert [one["reward"] for one in blocks[:3]] == whole["data"][0]["rewards"]
    assert blocks[3] == whole["data"][0]


def test_several_solutions_are_streamed_side_by_side(serve: Serve) -> None:
    client = serve(num_analyses=2)
    text = client.post("/v1/rewards", json={"solutions": SOLUTIONS * 10, "stream": True}).text
    whole = [one for one in events(text) if one["object"] == "solution.rewards"]
    assert sorted(one["index"] for one in whole) == list(range(20))
    steps = [one for one in events(text) if one["object"] == "step.reward"]
    assert len(steps) == 50
    for index in range(20):
        places = [one["step_index"] for one in steps if one["index"] == index]
        assert places == list(range(3 if index % 2 == 0 else 2))


class Waiting(ScriptedEngine):
    """Counts what it is asked for and what is broken off."""

    num_cancelled = 0

    async def generate(self, prompt: Prompt, sampling: Sampling) -> Completion:
        try:
            return await super().generate(prompt, sampling)
        except BaseException:
            self.num_cancelled += 1
            raise


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_away_costs_nothing_more(serve: Serve, stream: bool) -> None:
    engine = Waiting(delay=60.0)
    client = serve(judge=engine, num_analyses=3)
    body = {"solutions": SOLUTIONS[:1], "stream": stream}
    with pytest.raises(httpx2.ReadTimeout):
        client.post("/v1/rewards", json=body, timeout=0.5)
    deadline = time.monotonic() + 10
    while engine.num_cancelled < engine.num_requests and time.monotonic() < deadline:
        time.sleep(0.05)
    # 3 steps of 3 analyses.
    assert engine.num_cancelled == engine.num_requests == 9
    assert "rprm_requests_under_way 0.0" in client.get("/metrics").text


def test_what_the_embedded_judge_does_not_know_is_noted_in_every_answer(serve: Serve) -> None:
    client = serve(judge=ScriptedEngine("embedded"), num_analyses=2)
    known = {"problem": "Ben has 12 coins. How many coins does Ben have?", "steps": ["Ben has 12 coins."]}
    unknown = {"problem": "Solve 1 + 1.", "steps": ["It is 2."]}
    rows = [unknown, known]
    found = client.post("/v1/rewards", json={"solutions": rows}).json()["data"]
    (note,) = found[0]["notes"]
    assert "outside what the embedded model knows" in note
    assert found[1]["notes"] == []
    streamed = events(client.post("/v1/rewards", json={"solutions": rows, "stream": True}).text)
    assert [one["notes"] for one in streamed if one["object"] == "solution.started"] == [[note], []]
    assert [one["notes"] for one in streamed if one.get("index") == 0 and "rewards" in one] == [[note]]
    lone = client.post("/v1/score_step", json=unknown).json()
    assert lone["notes"] == [note]


def test_a_reward_that_early_stopping_cut_short_says_so(serve: Serve) -> None:
    client = serve(judge="scripted:?yes_rate=1&noise=0", num_analyses=8)
    for rewards, early in (("full", False), ("first-errors", True)):
        found = client.post("/v1/rewards", json={"solutions": SOLUTIONS, "rewards": rewards}).json()["data"]
        assert {step["settled_early"] for one in found for step in one["steps"]} == {early}


def test_the_api_describes_its_errors(serve: Serve) -> None:
    client = serve()
    found = client.get("/openapi.json").json()
    answers = found["paths"]["/v1/rewards"]["post"]["responses"]
    assert answers.keys() == {"200", "4XX", "5XX"}
    assert answers["4XX"]["content"]["application/json"]["schema"]["$ref"].endswith("/Failure")
    Failure.model_validate(client.post("/v1/rewards", json={}).json())
    assert "bounds" in found["components"]["schemas"]["Told"]["properties"]


def test_equal_requests_are_answered_once(serve: Serve) -> None:
    engine = ScriptedEngine()
    client = serve(judge=engine, num_analyses=2)
    first = client.post("/v1/rewards", json={"solutions": SOLUTIONS}).json()
    asked = engine.num_requests
    renamed = [{**SOLUTIONS[0], "id": "other"}, SOLUTIONS[1]]
    again = client.post("/v1/rewards", json={"solutions": renamed}).json()
    assert engine.num_requests == asked == 10
    assert [one["rewards"] for one in again["data"]] == [one["rewards"] for one in first["data"]]
    assert again["data"][0]["id"] == "other"
    # Another question, another text: asked for.
    client.post("/v1/rewards", json={"solutions": [{**SOLUTIONS[0], "problem": "What is 1 + 2?"}]})
    assert engine.num_requests == asked + 6
    assert "rprm_cached_answers_total 2.0" in client.get("/metrics").text

    without = ScriptedEngine()
    client = serve(judge=without, num_analyses=2, limits={"cache_mb": 0})
    for _ in range(2):
        client.post("/v1/rewards", json={"solutions": SOLUTIONS})
    assert without.num_requests == 20


def test_the_cache_is_bounded(serve: Serve) -> None:
    client = serve(num_analyses=1, limits={"cache_mb": 1})
    # A kept solution of one step with an analysis is some 1,500 to 3,500 bytes by the count of the cache: 300 to 700
    # of them fill the megabyte, and the first of 1,000 is gone.
    for start in range(0, 1000, 200):
        many = [{"problem": f"Problem {index}", "steps": ["A step."]} for index in range(start, start + 200)]
        assert client.post("/v1/rewards", json={"solutions": many}).status_code == 200
    for number, num_kept in (
        (0, 0),
        (999, 1),
        (0, 2),
    ):  # The first is gone, the last is there, and so is the first anew.
        client.post("/v1/rewards", json={"solutions": [{"problem": f"Problem {number}", "steps": ["A step."]}]})
        assert f"rprm_cached_answers_total {num_kept}.0" in client.get("/metrics").text


def test_what_failed_is_tried_again(serve: Serve) -> None:
    """A step without a verdict has no reward, says why, and is not kept."""
    engine = ScriptedEngine(lost=1.0)
    client = serve(judge=engine, num_analyses=2)
    for count in (1, 2):
        found = client.post("/v1/rewards", json={"solutions": SOLUTIONS[:1]}).json()["data"][0]
        assert found["rewards"] == [None] * 3
        assert found["first_error"] is None
        assert "verdict" in found["steps"][0]["failure"]
        assert engine.num_requests == 6 * count


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"{", "JSON"),
        (rb'{"problem": "\[1\]"}', r"Invalid \escape (write a backslash twice: \\frac) at character 13"),
        (b"[]", "dictionary"),
        (b'{"solutions": []}', "at least 1"),
        (b'{"solutions": [{"problem": "p"}]}', "solutions[0]: 'steps' is missing"),
        (b'{"solutions": [{"problem": "p", "steps": ["a"]}, {"problem": 1}]}', "solutions[1]: 'problem'"),
        (b'{"solutions": [{"problem": "p", "steps": ["a"], "label": 7}]}', "'label'"),
        (b'{"solutions": [{"problem": "\\ud800", "steps": ["a"]}]}', "surrogate"),
        (b'{"solutions": [{"id": "\\uDFFF", "problem": "p", "steps": ["a"]}]}', "surrogate"),
        (b'{"solutions": [{"problem": "p", "steps": ["a"]}], "streem": true}', "'streem' is not supported"),
        (b'{"solutions": [{"problem": "p", "steps": ["a"]}], "model": "gpt-4o"}', "'gpt-4o'"),
        (b'{"solutions": ' + b"[" * 100_000, "parsing the body"),
        (b'{"solutions": [{"problem": "p", "steps": ' + json.dumps(["a"] * 1001).encode() + b"}]}", "1,001 steps"),
        (b'{"solutions": ' + json.dumps([{"problem": "p", "steps": ["a"]}] * 257).encode() + b"}", "257 solutions"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_refused_in_words(serve: Serve, body: bytes, said: str) -> None:
    engine = ScriptedEngine()
    client = serve(judge=engine)
    answer = client.post("/v1/rewards", content=body, headers={"content-type": "application/json"})
    assert answer.status_code in (400, 422)
    assert said in answer.json()["error"]["message"]
    assert engine.num_requests == 0


def test_a_body_has_a_limit(serve: Serve) -> None:
    client = serve(limits={"body_mb": 1})
    large = json.dumps({"solutions": [{"problem": "p" * (1 << 20), "steps": ["a"]}]}).encode()
    headers = {"content-type": "application/json"}
    declared = client.post("/v1/rewards", content=large, headers=headers)
    # In pieces, without saying how long it is.
    chunked = client.post("/v1/rewards", content=iter([large[:700_000], large[700_000:]]), headers=headers)
    for answer in (declared, chunked):
        assert answer.status_code == 413
        assert "over 1 MB" in answer.json()["error"]["message"]
    # A body that says it is JSON by no word of its head may be a form of another site's page.
    assert client.post("/v1/rewards", content=b"{}", headers={"content-type": "text/plain"}).status_code == 415


def test_more_requests_than_places_are_asked_to_come_back(serve: Serve) -> None:
    engine = ScriptedEngine(delay=1.0)
    client = serve(judge=engine, num_analyses=1, limits={"requests": 2})
    codes: list[int] = []

    def ask(number: int) -> None:
        body = {"solutions": [{"problem": f"{number}", "steps": ["a"]}]}
        answer = client.post("/v1/rewards", json=body)
        codes.append(answer.status_code)
        if answer.status_code == 429:
            assert int(answer.headers["retry-after"]) > 0

    threads = [threading.Thread(target=ask, args=[number]) for number in range(6)]
    for thread in threads:
        thread.start()
    # What asks nothing of the models is answered meanwhile.
    assert client.get("/health").json()["status"] == "ok"
    for thread in threads:
        thread.join()
    assert sorted(codes) == [200] * 2 + [429] * 4


def test_a_request_has_a_time(serve: Serve) -> None:
    client = serve(judge=ScriptedEngine(delay=30.0), limits={"seconds": 0.3})
    answer = client.post("/v1/rewards", json={"solutions": SOLUTIONS})
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "2")
    assert "longer than 0.3 s" in answer.json()["error"]["message"]
    streamed = events(client.post("/v1/rewards", json={"solutions": SOLUTIONS, "stream": True}).text)
    assert "longer than 0.3 s" in streamed[-1]["error"]["message"]


KEY = "k-0123456789abcdef"
PATHS = ["/", "/health", "/metrics", "/v1/models", "/openapi.json", "/docs", "/nowhere", "/v1/rewards", "/pooling"]


def test_a_key_guards_every_path(serve: Serve) -> None:
    client = serve(key=KEY)
    for path in PATHS:
        for method in ("GET", "POST", "OPTIONS", "HEAD", "DELETE"):
            for wrong in ("", "Bearer nope", f"Bearer {KEY}x", "Basic !"):
                assert client.request(method, path, headers={"authorization": wrong}).status_code == 401
    assert client.get("/health", headers={"authorization": f"Bearer {KEY}"}).status_code == 200
    assert client.get("/health", auth=("anyone", KEY)).status_code == 200
    # Whoever has the key may use any name of the host.
    assert client.get("/health", headers={"authorization": f"Bearer {KEY}", "host": "judge.example"}).status_code == 200


def test_without_a_key_other_names_and_other_pages_are_refused(serve: Serve) -> None:
    """A page of another site, in a browser on this machine, reaches the port by a name of its own that leads here."""
    client = serve()
    for path in PATHS:
        assert client.get(path, headers={"host": "evil.example:80"}).status_code == 421
        assert client.post(path, headers={"origin": "http://evil.example"}).status_code == 403
    assert client.get("/health", headers={"host": "localhost:1"}).status_code == 200
    assert client.get("/health", headers={"host": "[::1]:1"}).status_code == 200


def test_pooling_as_a_client_of_a_classifier_asks(serve: Serve) -> None:
    client = serve(num_analyses=4)
    steps = SOLUTIONS[0]["steps"]
    wanted = client.post("/v1/rewards", json={"solutions": SOLUTIONS[:1]}).json()["data"][0]["rewards"]
    messages = [
        {"role": "system", "content": "Please reason step by step."},
        {"role": "user", "content": SOLUTIONS[0]["problem"]},
        {"role": "assistant", "content": "<extra_0>".join(steps) + "<extra_0>"},
    ]
    found = client.post("/pooling", json={"model": "judge", "messages": messages}).json()
    assert [row[1] for row in found["data"][0]["data"]] == wanted
    assert [sum(row) for row in found["data"][0]["data"]] == pytest.approx([1.0] * 3)
    text = "".join(f"<|im_start|>{one['role']}\n{one['content']}<|im_end|>\n" for one in messages)
    again = client.post("/pooling", json={"input": [text + "<|endoftext|>", text]}).json()
    assert [item["data"] for item in again["data"]] == [found["data"][0]["data"]] * 2
    for body, said in [
        ({"messages": messages[:2]}, "<extra_0>"),
        ({"messages": [*messages, messages[1]]}, "no others"),
        ({"input": "1 + 1 = 2"}, "Qwen"),
        ({}, "either"),
    ]:
        answer = client.post("/pooling", json=body)
        assert answer.status_code == 422
        assert said in answer.json()["error"]["message"]


def test_metrics_have_numbers_and_no_texts(serve: Serve) -> None:
    client = serve(num_analyses=2)
    secret = {"id": "who", "problem": "A secret problem", "steps": ["A secret step"]}
    client.post("/v1/rewards", json={"solutions": [secret]})
    client.get("/a-secret-path")
    text = client.get("/metrics").text
    assert "secret" not in text
    assert "who" not in text
    assert 'rprm_requests_total{route="/v1/rewards",status="200"} 1.0' in text
    assert 'rprm_requests_total{route="none",status="404"} 1.0' in text
    assert 'rprm_steps_total{scored="yes"} 1.0' in text
    assert "rprm_analyses_total 2.0" in text


def test_a_critic_and_a_classifier_like_kind_answer_too(serve: Serve) -> None:
    """Those that judge a solution whole have nothing to tell before its end."""
    client = serve(judge="critic:scripted:?noise=0.5", num_analyses=3)
    whole = client.post("/v1/rewards", json={"solutions": SOLUTIONS}).json()
    streamed = events(client.post("/v1/rewards", json={"solutions": SOLUTIONS, "stream": True}).text)
    assert [one for one in streamed if one["object"] == "solution.rewards"] == whole["data"]
    assert len(streamed) == 2 + 3 + 2 + 2 + 1


def test_openrlhf_asks_for_responses(serve: Serve) -> None:
    client = serve(num_analyses=4)
    prompt = "<|im_start|>user\nWhat is 1 + 1?<|im_end|>\n<|im_start|>assistant\n"
    body = {
        "query": [f"{prompt}One and one.\n\nIt is 2.\n\nSo 2.<|im_end|>", prompt],
        "prompts": [prompt] * 2,
        "labels": [0, 0],
    }
    found = client.post("/openrlhf", json=body).json()
    wanted = client.post("/v1/rewards", json={"solutions": SOLUTIONS[:1]}).json()["data"][0]["rewards"]
    assert found["rewards"] == found["scores"] == [min(wanted), 0.0]
    assert found["extra_logs"] == {"unscored": [0.0, 1.0]}
    last = client.post("/openrlhf?form=last", json=body).json()
    assert last["rewards"][0] == wanted[-1]
    assert client.post("/openrlhf", json=body | {"query": ["other", prompt]}).status_code == 422
    assert client.post("/openrlhf", json={"query": [prompt] * 257}).status_code == 422
    for labels in (5, "x", {"a": 1}):
        answer = client.post("/openrlhf", json=body | {"labels": labels})
        assert (answer.status_code, "'labels' must be a list" in answer.text) == (422, True)


def test_a_conversation_that_does_not_end_holds_nobody_up(serve: Serve) -> None:
    """Quadratic, it took ten seconds, in which the server answered nobody."""
    client = serve()
    for text in ("<|im_start|>u\n" * 100_000, "<|im_start|>user\n" * 80_000 + "<|im_end|>" * 80_000):
        started = time.process_time()
        assert client.post("/pooling", json={"input": text}).status_code == 422
        assert time.process_time() - started < 3


def test_a_verdict_of_a_critic_is_what_its_first_error_says(serve: Serve) -> None:
    """A majority of critiques may name a step whose share is above the threshold, and the other way round."""
    client = serve(judge="critic:scripted:?noise=0.5", num_analyses=3)
    many = [{"problem": f"p{number}", "steps": ["a", "b", "c"]} for number in range(60)]
    found = client.post("/v1/rewards", json={"solutions": many}).json()["data"]
    below = 0
    for one in found:
        first = 3 if one["first_error"] == -1 else one["first_error"]
        wanted = [True if place < first else False if place == first else None for place in range(3)]
        assert [step["verdict"] for step in one["steps"]] == wanted
        below += [step["reward"] >= 0.5 for step in one["steps"]] != [place < first for place in range(3)]
    assert below  # By the threshold, some of them would be told otherwise.
    streamed = events(client.post("/v1/rewards", json={"solutions": many[:1], "stream": True}).text)
    verdicts = [one["verdict"] for one in streamed if one["object"] == "step.reward"]
    assert verdicts == [step["verdict"] for step in found[0]["steps"]]


def counted(client: Any, name: str) -> float:
    lines = client.get("/metrics").text.splitlines()
    return float(next(line.rpartition(" ")[2] for line in lines if line.startswith(f"{name} ")))


@pytest.mark.parametrize("stream", [False, True])
def test_work_that_nobody_waits_for_any_more_is_counted(serve: Serve, stream: bool) -> None:
    """Of 30 steps two are judged at a time, for 0.1 s, and the time is over before the last."""
    engine = ScriptedEngine(delay=0.1, concurrency=2)
    client = serve(judge=engine, num_analyses=2, limits={"seconds": 0.5})
    client.post("/v1/rewards", json={"solutions": [{"problem": "p", "steps": ["a"] * 30}], "stream": stream})
    assert 2 <= counted(client, "rprm_analyses_total") < 60
    assert counted(client, 'rprm_generated_tokens_total{model="judge"}') > 0


class Failing(ScriptedEngine):
    """Fails at every request."""

    failure: Exception = EngineUnavailable("http://judge.internal:8000 answers 401; run the same command again")

    async def generate(self, prompt: Prompt, sampling: Sampling) -> Completion:
        raise self.failure


@pytest.mark.parametrize(
    ("failure", "status"),
    [
        (Failing.failure, 503),
        (EngineError("http://judge.internal answers 401"), 503),
        (KeyError("judge.internal"), 500),
    ],
)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_what_the_model_is_at_fault_for_is_no_fault_of_the_client(
    serve: Serve, failure: Exception, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    """It is told what it can use; the server's log has the address and the reason."""
    engine = Failing()
    engine.failure = failure
    client = serve(judge=engine, num_analyses=1)
    answer = client.post("/v1/rewards", json={"solutions": SOLUTIONS[:1]})
    assert answer.status_code == answer.json()["error"]["code"] == status
    assert ("retry-after" in answer.headers) == (status == 503)
    streamed = events(client.post("/v1/rewards", json={"solutions": SOLUTIONS[:1], "stream": True}).text)
    assert streamed[-1]["error"]["code"] == status
    for text in (answer.text, json.dumps(streamed)):
        assert "judge.internal" not in text
        assert "same command" not in text
    assert "judge.internal" in caplog.text


@pytest.mark.parametrize(
    ("host", "status"),
    [
        *((host, 200) for host in ("localhost", "LOCALHOST:1", "localhost.", "127.0.0.1:8765", "[::1]:8", "127.1.2.3")),
        *((host, 421) for host in ("[127.0.0.1", "127.0.0.1/evil", "evil@localhost", "localhost:1:2", "a b", "")),
        *((host, 421) for host in ("localhost.evil", "[::1]x", "0.0.0.0", "localhost\\@evil")),
    ],
)  # fmt: skip
def test_whose_host_is_this_machine(serve: Serve, host: str, status: int) -> None:
    assert serve().get("/health", headers={"host": host}).status_code == status


def test_a_request_without_a_host(serve: Serve) -> None:
    """HTTP/1.0 needs none; an origin is then of another site."""
    client = serve(key=KEY)
    for more, status in ((b"", b"200"), (b"Origin: http://evil.example\r\n", b"403")):
        with socket.create_connection(("127.0.0.1", client.base_url.port or 0), timeout=10) as connection:
            connection.sendall(
                b"GET /health HTTP/1.0\r\nAuthorization: Bearer " + KEY.encode() + b"\r\n" + more + b"\r\n"
            )
            assert connection.recv(100).split()[1] == status
