"""300 solutions through an endpoint of which one answer in five is at fault: finished or named, nothing made up."""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import re
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from loopback import Reply, Request, error, running

from rprm.engines.base import Sampling
from rprm.engines.openai import OpenAIEngine
from rprm.jobs import Callbacks
from rprm.prompts import load_template
from rprm.records import Solution, SolutionReward
from rprm.rewarders.base import judge_source
from rprm.rewarders.rprm import Judge
from rprm.stopping import StoppingRule
from rprm.verdict import VerdictFormat

pytestmark = pytest.mark.usefixtures("impatient_client")
VERDICT = VerdictFormat()
MAX_TOKENS = 64
NUM_SOLUTIONS, NUM_ANALYSES = 300, 3

#: The request is worth another try.
FAILURES = (
    "429", "500", "503", "cut connection", "half a body", "not JSON", "no choices", "error inside", "error reason",
    "same index twice", "two choices", "too long",
)  # fmt: skip
#: The text is sound, the log-probabilities are not.
BLIND = (
    "nan", "null", "positive", "floor", "empty alternatives", "answer absent", "other absent", "both absent", "none",
    "infinite", "text", "null top", "own nan and absent", "other cut out of a long list",
)  # fmt: skip
#: Sound, in another spelling: read as exactly as any other.
SPELLINGS = ("byte-level", "sentencepiece", "parts", "reasoning", "null bytes")
#: No analysis.
WITHHELD = ("content_filter", "refusal", "empty")
#: Of streams alone: no answer either.
TORN = ("done without finish", "broken off")


def share(*parts: object) -> float:
    """A number in [0, 1) that depends on the parts alone."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest) / 2**64


def p_yes(prompt: str) -> float:
    return 0.05 + 0.9 * share("p", prompt)


def is_doomed(prompt: str) -> bool:
    return share("doomed", prompt) < 0.02


def says_yes(prompt: str, seed: int | None) -> bool:
    return share("says", prompt, seed) < p_yes(prompt)


def entries(p: float, fault: str, says: bool) -> tuple[list[dict[str, Any]], Any]:
    """The alternatives at the answer, and the answer's own log-probability."""
    listed: dict[str, Any] = {" Yes": math.log(p * 0.98), " No": math.log((1 - p) * 0.98), ",": math.log(0.01)}
    answer, other = (" Yes", " No") if says else (" No", " Yes")
    own: Any = listed[answer]
    bad = {"nan": math.nan, "null": None, "positive": 3.0, "floor": -9999.0, "infinite": -math.inf, "text": "-0.5"}
    if fault in bad:
        # At one of the two, so that the other looks certain.
        listed[other if share("which", p) < 0.5 else answer] = bad[fault]
        own = listed[answer]
    if fault in ("answer absent", "both absent", "own nan and absent"):
        del listed[answer]
    if fault == "own nan and absent":
        own = math.nan
    if fault in ("other absent", "both absent"):
        del listed[other]
    if fault in ("empty alternatives", "null top"):
        listed = {}
    if fault == "other cut out of a long list":
        # The tail promises that nothing unlisted is likely, but the list leaves all of the other answer's share.
        del listed[other]
        listed |= {f" word{rank}": -12.0 - rank for rank in range(17)}
    spell = {"byte-level": "\u0120", "sentencepiece": "\u2581"}.get(fault, " ")
    top = [
        {"token": name.replace(" ", spell), "bytes": list(name.encode()), "logprob": value}
        for name, value in listed.items()
    ]
    return top, own


def choice_of(request: dict[str, Any], prompt: str, fault: str) -> dict[str, Any]:
    """A choice with this fault; the probe is answered in a word."""
    if prompt == "Reply with one word: Yes":
        words, p, says, end = ["Yes"], 0.9, True, []
    else:
        p, says = p_yes(prompt), says_yes(prompt, request.get("seed"))
        head = ["Ité", "adds", "up.\n\nSo,", "in", "the", "end\n"]
        words = [head[0], *(f" {word}" for word in head[1:])]
        words += [f" {word}" if index else word for index, word in enumerate(VERDICT.marker.split(" "))]
        words, end = [*words, " Yes" if says else " No"], ["."] if fault != "null bytes" else []
    top, own = entries(p, fault, says)
    spell = {"byte-level": ("\u0120", "\u010a"), "sentencepiece": ("\u2581", "<0x0A>")}.get(fault, (" ", "\n"))
    content = []
    for word in [*words, *end]:
        spelled = word.replace(" ", spell[0]).replace("\n", spell[1])
        if fault == "byte-level":
            spelled = spelled.replace("\u00e9", "\u00c3\u00a9")
        if word.strip() in ("Yes", "No") and len(word.strip()) < 4:
            alternatives, logprob = top, own
        else:
            alternatives, logprob = [{"token": spelled, "bytes": list(word.encode()), "logprob": -0.1}], -0.1
        content.append(
            {"token": spelled, "bytes": list(word.encode()), "logprob": logprob, "top_logprobs": alternatives}
        )
    if fault == "null top":
        for token in content:
            token["top_logprobs"] = None
    if fault in ("byte-level", "sentencepiece", "null bytes"):
        for token in content:
            for entry in (token, *token["top_logprobs"]):
                entry["bytes"] = None
    text: Any = "".join([*words, *end])
    said: dict[str, Any] = {"role": "assistant", "content": text}
    reason = "stop"
    logprobs: Any = {"content": content}
    if fault == "parts":
        said["content"] = [{"type": "text", "text": text[:7]}, {"type": "text", "text": text[7:]}]
    if fault == "reasoning":
        opposite = f"{VERDICT.marker} {'No' if says else 'Yes'}"
        said["reasoning_content"] = opposite
        thought = [
            {"token": word, "bytes": None, "logprob": -0.1, "top_logprobs": top if word in (" Yes", " No") else []}
            for word in [VERDICT.marker, f" {'No' if says else 'Yes'}", "</think>", "\n\n"]
        ]
        logprobs = {"content": thought + content}
    if fault == "content_filter":
        said, reason, logprobs = {"role": "assistant", "content": None}, "content_filter", None
    if fault == "refusal":
        said = {"role": "assistant", "content": None, "refusal": "I cannot help with that."}
        logprobs = None
    if fault == "empty":
        said["content"], logprobs = "", {"content": []}
    if fault == "none":
        logprobs = None
    if fault == "error reason":
        reason = "error"
    return {"index": 0, "message": said, "finish_reason": reason, "logprobs": logprobs}


def events(choice: dict[str, Any], fault: str) -> bytes:
    said = choice["message"]
    rows: list[dict[str, Any]] = []
    tokens = (choice["logprobs"] or {}).get("content") or []
    if said.get("reasoning_content"):
        rows.append({"delta": {"reasoning_content": said["reasoning_content"]}, "logprobs": {"content": tokens[:4]}})
        tokens = tokens[4:]
    content = said.get("content") or ""
    if said.get("refusal"):
        rows.append({"delta": {"refusal": said["refusal"]}})
    if isinstance(content, list):
        rows += [{"delta": {"content": [part]}} for part in content]
        rows.append({"delta": {}, "logprobs": {"content": tokens}})
    elif tokens:
        at = 0
        for token in tokens:
            word = bytes(token["bytes"]).decode() if token["bytes"] else None
            if word is None:
                word = re.sub("[\u0120\u2581]", " ", token["token"].replace("\u010a", "\n").replace("<0x0A>", "\n"))
                word = word.replace("\u00c3\u00a9", "\u00e9")
            rows.append({"delta": {"content": word}, "logprobs": {"content": [token]}})
            at += len(word)
        assert at == len(content), (content, tokens)
    else:
        rows += [{"delta": {"content": piece}} for piece in re.findall(r"\S*\s*", content) if piece]
    rows = [{"choices": [{"index": 0, "finish_reason": None, **row}]} for row in rows]
    if fault not in TORN:
        rows.append({"choices": [{"index": 0, "delta": {}, "finish_reason": choice["finish_reason"]}]})
    rows.append({"choices": [], "usage": {"prompt_tokens": 20, "completion_tokens": len(tokens)}})
    body = b"".join(b"data: " + json.dumps(row).encode() + b"\n\n" for row in rows)
    return body + (b"" if fault == "broken off" else b"data: [DONE]\n\n")


class Misbehaving:
    def __init__(self, rate: float, faults: tuple[str, ...]) -> None:
        self.rate, self.faults = rate, faults
        self.tries: Counter[tuple[str, Any]] = Counter()
        self.played: Counter[str] = Counter()

    def fault(self, prompt: str, seed: Any) -> str:
        self.tries[prompt, seed] += 1
        # By this word every fault is drawn among the first two analyses.
        draw = ("at fault", prompt, seed, self.tries[prompt, seed])
        if share(*draw) >= self.rate:
            return ""
        return self.faults[int(share(*draw, "kind") * len(self.faults))]

    async def play(self, request: Request, writer: asyncio.StreamWriter) -> Reply | None:
        body = request.body
        prompt = body["messages"][-1]["content"]
        fault = self.fault(prompt, body.get("seed"))
        self.played[fault] += 1
        if is_doomed(prompt):
            return error(500, "this one kills me")
        if fault in ("429", "500", "503"):
            return replace(
                error(int(fault), f"fault {fault}"), headers={"retry-after-ms": "1"} if fault == "429" else {}
            )
        if fault == "cut connection":
            writer.transport.abort()
            return None
        choice = choice_of(body, prompt, fault)
        if not body.get("logprobs"):
            choice["logprobs"] = None
        if body.get("stream") and fault not in FAILURES:
            return Reply(events(choice, fault), headers={"content-type": "text/event-stream"})
        choices = {
            "two choices": [choice, {**choice, "index": 1}],
            "same index twice": [choice, choice],
            "no choices": [],
        }.get(fault, [choice])
        answer: dict[str, Any] = {"choices": choices, "usage": {"prompt_tokens": 20, "completion_tokens": 12}}
        if fault == "error inside":
            answer = {"error": {"message": "upstream"}}
        raw = json.dumps(answer).encode()
        if fault == "not JSON":
            raw = raw[:-9]
        if fault == "too long":
            raw = b" " * (2_000_000 + 8192 * body["max_tokens"]) + raw
        return Reply(raw[:40], length=len(raw)) if fault == "half a body" else Reply(raw)


@pytest.mark.slow
@pytest.mark.parametrize("stream", [False, True])
def test_every_solution_is_finished_or_named_and_no_reward_is_made_up(stream: bool) -> None:
    template = load_template("critique")
    rows = [
        Solution(id=f"s{n}", problem=f"What is {n} + 1?", steps=(f"{n} + 1 = {n + 1}",)) for n in range(NUM_SOLUTIONS)
    ]
    results: dict[str, SolutionReward] = {}
    faults = FAILURES + BLIND + SPELLINGS + WITHHELD + (TORN if stream else ())
    misbehaving = Misbehaving(0.2, faults)

    async def run() -> None:
        async with asyncio.timeout(300), running(misbehaving.play) as (server, url):
            server.apart = False
            engine = OpenAIEngine(f"m@{url}", key_env="RPRM_NO_KEY", stream=stream)
            rule = StoppingRule(num_analyses=NUM_ANALYSES, threshold=0.5)
            judge = Judge(engine, template, rule, Sampling(max_tokens=MAX_TOKENS, seed=3), first_error_exit=False)
            try:
                callbacks = Callbacks(on_result=lambda row, result: results.__setitem__(row.id, result))
                await judge_source(judge, rows, callbacks=callbacks)
            finally:
                await judge.aclose()

    asyncio.run(run())
    assert list(results) == [row.id for row in rows]
    assert set(faults) <= set(misbehaving.played)
    sources: Counter[str | None] = Counter()
    for row in rows:
        (step,) = results[row.id].steps
        prompt = template.render(row.problem, row.steps, 0).messages[-1].content
        if is_doomed(prompt):
            assert step.reward is None
            assert "this one kills me" in (step.failure or "")
            continue
        read = []
        for analysis in step.analyses:
            sources[analysis.p_yes_source] += 1
            if analysis.p_yes is None:
                # What was withheld or is empty; its reason is kept.
                assert analysis.finish_reason in ("content_filter", "refusal", "stop")
                continue
            read.append(analysis.p_yes)
            if analysis.p_yes_source == "logprobs":
                assert analysis.p_yes == pytest.approx(p_yes(prompt), abs=1e-6)
            else:
                assert analysis.p_yes == float(analysis.verdict or False)
        assert step.reward == (pytest.approx(sum(read) / len(read)) if read else None)
        assert (step.failure is None) == bool(read)
    # Of 900 analyses one in five is at fault at the first try, by any of about 33 faults, 14 of which leave the vote.
    assert sources["logprobs"] > 20 * sources[None]
    assert 0 < sources["vote"] < 0.2 * sources["logprobs"]
