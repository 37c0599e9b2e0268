"""Judging through an endpoint that misbehaves: nothing is lost, invented, paid for twice, told to others, or hung."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from commands import rprm
from exchange import KEY, share
from loopback import Reply, Request, Server, answering, serving
from misbehaving import FAULTS, Misbehaving

from rprm.verdict import softmax_yes

NUM_SOLUTIONS, RATE = 300, 0.2  # of the long run
CONCURRENCY = 8
QUICK = {name: fault for name, fault in FAULTS.items() if not fault.takes_time}
ENDING = [name for name, fault in FAULTS.items() if "ends" in (fault.once, fault.stays)]


@pytest.fixture(autouse=True)
def impatient_client(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.001)
    monkeypatch.setenv("RPRM_TEST_KEY", KEY)


@dataclass
class Session:
    """What `rprm judge` left behind."""

    code: int
    printed: str
    rows: list[dict[str, Any]]
    seconds: float

    @property
    def analyses(self) -> list[dict[str, Any]]:
        return [one for row in self.rows for step in row["steps"] for one in step["analyses"]]


def judge(folder: Path, url: str, num_solutions: int, *, k: int = 1, **options: object) -> Session:
    """`rprm judge` in a fork of this process: `num_solutions` of one step each, into the run folder `folder`."""
    source = folder.with_name("solutions.jsonl")
    rows = [
        {"id": f"s{number}", "problem": f"What is {number} + 1?", "steps": [f"It is {number + 1}."]}
        for number in range(num_solutions)
    ]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = {"key_env": "RPRM_TEST_KEY", "concurrency": CONCURRENCY, "max_retries": 3, "timeout": 20, **options}
    spec = f"openai:m@{url}?" + "&".join(f"{name}={value}" for name, value in given.items())
    command = ["judge", source, "--model", spec, "--output", folder, "--rewards", "full", "--quiet"]
    begin = time.monotonic()
    command += ["-k", str(k), "--max-tokens", "64", "--seed", "3"]
    done = rprm(*command, folder=folder.parent, COLUMNS="9999")
    results = folder / "results.jsonl"
    lines = results.read_text().splitlines() if results.exists() else []
    for text in (done.out, done.err, *(path.read_text(errors="replace") for path in folder.iterdir())):
        assert KEY not in text
        assert "Traceback" not in text, text
    return Session(done.code, done.out + done.err, [json.loads(line) for line in lines], time.monotonic() - begin)


@contextlib.contextmanager
def misbehaving(fault_of: Callable[[int, Any, int], str], elsewhere: str = "") -> Iterator[tuple[Misbehaving, str]]:
    server = Misbehaving(fault_of, elsewhere)
    with serving(server.play) as (loopback, url):
        loopback.apart = False
        yield server, url
    assert not server.mistakes


def outcomes(rows: Sequence[dict[str, Any]], server: Misbehaving) -> list[str]:
    """What each row came to: "right" or "unscored"; anything else, in words, is a fault of ours."""
    found = []
    for number, row in enumerate(rows):
        assert row["id"] == f"s{number}"
        (step,), texts = row["steps"], {said_in(answer) for answer in server.honest[number]}
        expected = reward_in(server.honest[number][0])
        kind = "right" if step["reward"] == expected else f"a reward of {step['reward']}, not {expected}"
        if step["reward"] is None:
            kind = "unscored" if step["failure"] and row["first_error"] is None else "no reward, and no reason"
        for one in step["analyses"]:
            # An analysis is one that belongs there, or none.
            if one["verdict"] is not None and one["p_yes"] != expected:
                kind = f"P(Yes) of {one['p_yes']}, not {expected}"
            elif one["verdict"] is not None and not any(text.partition(":")[0] in one["text"] for text in texts):
                kind = f"the analysis of another step: {one['text']!r}"
        found.append(kind)
    return found


def said_in(answer: dict[str, Any]) -> str:
    text: str = answer["choices"][0]["message"]["content"]
    return text


def reward_in(answer: dict[str, Any]) -> float:
    """P(Yes) in an honest answer: all those of a step have the same."""
    top = answer["choices"][0]["logprobs"]["content"][-2]["top_logprobs"]
    return softmax_yes(top[0]["logprob"], top[1]["logprob"])


def named(names: Sequence[str], found: Sequence[str], expected: Callable[[str], str]) -> dict[str, str]:
    """The faults that came to something else than expected."""
    return {name: kind for name, kind in zip(names, found, strict=True) if kind != expected(name)}


# Alone


@pytest.mark.parametrize(
    ("stream", "kinds"),
    [
        pytest.param(False, {(False,), (False, True)}, id="whole"),
        pytest.param(True, {(True,)}, id="of streams"),
        pytest.param(True, {(False, True)}, id="streamed", marks=pytest.mark.slow),
    ],
)
def test_a_fault_that_passes_costs_a_retry_at_most(
    stream: bool, kinds: set[tuple[bool, ...]], tmp_path: Path, figures: Callable[..., None]
) -> None:
    """A fault a solution, at the first try of its request."""
    names = [name for name, fault in QUICK.items() if fault.once != "ends" and fault.streams in kinds]
    how = {"stream": str(stream).lower()}
    with misbehaving(lambda number, _, tried: names[number] if tried == 1 else "") as (server, url):
        session = judge(tmp_path / "run", url, len(names), **how)
    assert session.code == 0, session.printed
    assert named(names, outcomes(session.rows, server), lambda name: FAULTS[name].once) == {}
    assert set(names) | {""} == set(server.played)
    # Nothing that could be used is asked for again, and cookies do not come back.
    wasted = {names[number]: count for (number, _), count in server.tries.items() if count > 1}
    assert {name for name in wasted if FAULTS[name].is_sound} == set()
    assert max(server.answered.values()) == 1
    assert server.largest_head < 2000
    figures(faults_alone=len(names), requests=server.num_requests, retries=server.num_requests - len(names))


@pytest.mark.slow
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_a_fault_that_stays_costs_its_step(stream: bool, tmp_path: Path, figures: Callable[..., None]) -> None:
    """A fault a solution, each time, while others are answered."""
    names = [name for name, fault in QUICK.items() if fault.stays != "ends" and stream in fault.streams]
    how = {"stream": str(stream).lower(), "max_retries": 1}
    with misbehaving(lambda number, *_: names[number]) as (server, url):
        session = judge(tmp_path / "run", url, len(names), **how)
    assert session.code == 0, session.printed
    found = outcomes(session.rows, server)
    # Some leave enough to read: what is wrong with them comes after the verdict.
    assert {
        name: kind for name, kind in zip(names, found, strict=True) if kind not in ("right", FAULTS[name].stays)
    } == {}
    # The attempt, a retry, and one more once another request was answered.
    assert max(server.tries.values()) <= 3
    counts = {kind: found.count(kind) for kind in ("right", "unscored")}
    figures(
        faults_alone=len(names),
        requests=server.num_requests,
        equal_rewards=counts["right"],
        unscored=counts["unscored"],
    )


@pytest.mark.parametrize(
    "stream", [pytest.param(False, id="whole"), pytest.param(True, id="streamed", marks=pytest.mark.slow)]
)
def test_an_answer_that_takes_for_ever_costs_the_timeout(
    stream: bool, tmp_path: Path, figures: Callable[..., None]
) -> None:
    """Each such fault for a solution once, and for another one each time, while others are answered."""
    names = [name for name in FAULTS if name not in QUICK]

    def fault_of(number: int, _: Any, tried: int) -> str:
        at, is_always = divmod(number, 2)
        return "" if at >= len(names) or (tried > 1 and not is_always) else names[at]

    how = {"stream": str(stream).lower(), "timeout": 1, "max_retries": 1, "concurrency": 32}
    with misbehaving(fault_of) as (server, url):
        session = judge(tmp_path / "run", url, 2 * len(names) + 20, **how)
    assert session.code == 0, session.printed
    assert outcomes(session.rows, server) == ["right", "unscored"] * len(names) + ["right"] * 20
    # Two attempts and one more, all at once.
    assert session.seconds < 20
    figures(faults_alone=len(names), requests=server.num_requests, equal_rewards=len(names) + 20, unscored=len(names))


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("every", [pytest.param(9, id="some"), pytest.param(1, id="all", marks=pytest.mark.slow)])
def test_a_fault_that_ends_the_session_costs_nothing_else(
    every: int, stream: bool, tmp_path: Path, figures: Callable[..., None]
) -> None:
    """A fault a solution, each time, until the server is mended and the run resumed, which comes to the next one."""
    # Most come in place of an answer, which is then neither whole nor a stream: a third of them is enough there.
    names = ENDING[:: 3 * every] if stream else ENDING[::every]
    how = {"stream": str(stream).lower(), "max_retries": 1, "concurrency": 1}
    faults = dict(enumerate(names))
    with (
        serving(answering) as (other_host, elsewhere),
        misbehaving(lambda number, *_: faults.get(number, ""), elsewhere) as (server, url),
    ):
        for number, name in enumerate(names):
            session = judge(tmp_path / "run", url, len(names), **how)
            # What was judged before is in the results or, a moment earlier, in the journal.
            assert session.code == 1, (name, session.printed)
            assert number - 1 <= len(session.rows) <= number, name
            # In one line.
            assert re.fullmatch(
                r"openai:m@[ -~]* is not a known model [ -~]*\n(resumed: .*\n)?"
                r"rprm: m at http[ -~]*run the same command again\n",
                session.printed,
            ), name
            del faults[number]
        session = judge(tmp_path / "run", url, len(names), **how)
    assert session.code == 0, session.printed
    assert named(names, outcomes(session.rows, server), lambda _: "right") == {}
    assert set(server.answered.values()) == {1}
    # No redirect is followed: the key stays with the host that it is for.
    assert not other_host.requests
    assert not other_host.probes
    figures(faults_alone=len(names), requests=server.num_requests, equal_rewards=len(names))


def test_a_server_that_goes_away_ends_the_session(tmp_path: Path) -> None:
    behaving = Misbehaving(lambda *_: "")
    servers: list[Server] = []

    async def play(request: Request, writer: asyncio.StreamWriter) -> Reply | None:
        if "What is 3 +" in request.body["messages"][-1]["content"]:
            servers[0].listener.close()
            for one in servers[0].connections.values():
                one.transport.abort()
        return await behaving.play(request, writer)

    with serving(play) as (server, url):
        server.apart = False
        servers.append(server)
        ended = judge(tmp_path / "run", url, 5, concurrency=1)
    assert (ended.code, len(ended.rows)) == (1, 3)
    assert "run the same command again" in ended.printed
    with serving(behaving.play, port=int(url.rpartition(":")[2].partition("/")[0])) as (server, _):
        server.apart = False
        resumed = judge(tmp_path / "run", url, 5, concurrency=1)
    assert resumed.code == 0, resumed.printed
    assert outcomes(resumed.rows, behaving) == ["right"] * 5
    assert len(server.requests) == 3  # the probe, and the two that were left


#: The bombs hold 128 MiB, some streams never end.
BIG = ("a gzip bomb", "a gzip bomb in a gzip bomb", "500, a gzip bomb", "a huge line", "a stream of zeros without end")


def test_memory_is_bounded_whatever_comes(tmp_path: Path) -> None:
    with misbehaving(lambda number, *_: BIG[number]) as (server, url):
        judge(tmp_path / "warm", url, 1, stream="true", max_retries=0)
        tracemalloc.start()
        judge(tmp_path / "run", url, len(BIG), stream="true", concurrency=1, max_retries=0)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert set(server.played) == set(BIG)
    # An answer may take 1.4 MB here.
    assert peak < 30e6


# Mixed


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Session:
    with pytest.MonkeyPatch.context() as patch, misbehaving(lambda *_: "") as (_, url):
        patch.setenv("RPRM_TEST_KEY", KEY)
        return judge(tmp_path_factory.mktemp("undisturbed") / "run", url, NUM_SOLUTIONS, k=2)


@pytest.mark.slow
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_300_solutions_with_every_fifth_answer_at_fault(
    stream: bool, undisturbed: Session, tmp_path: Path, figures: Callable[..., None]
) -> None:
    names = [name for name, fault in FAULTS.items() if stream in fault.streams]

    def fault_of(*request: Any) -> str:
        return names[int(share("kind", *request) * len(names))] if share("fault", *request) < RATE else ""

    how = {"stream": str(stream).lower(), "timeout": 2, "max_retries": 6}
    with misbehaving(fault_of) as (server, url):
        session, num_sessions = judge(tmp_path / "run", url, NUM_SOLUTIONS, k=2, **how), 1
        while session.code and num_sessions < 100:
            assert "run the same command again" in session.printed
            session, num_sessions = judge(tmp_path / "run", url, NUM_SOLUTIONS, k=2, **how), num_sessions + 1
    assert session.code == 0, session.printed
    found = outcomes(session.rows, server)
    assert set(found) <= {"right", "unscored"}
    pairs = zip(undisturbed.rows, session.rows, strict=True)
    assert all(two["steps"][0]["reward"] in (None, one["steps"][0]["reward"]) for one, two in pairs)
    # Both analyses of a step are seldom refused.
    assert found.count("unscored") < 0.05 * NUM_SOLUTIONS
    # What was answered is in the results. Of each session that ended, what was under way is asked for again.
    verdicts = sum(one["verdict"] is not None for one in session.analyses)
    assert verdicts <= len(server.answered)
    num_twice = sum(server.answered.values()) - len(server.answered)
    assert num_twice <= (num_sessions - 1) * CONCURRENCY
    figures(
        solutions=NUM_SOLUTIONS, faults=server.num_requests - server.played[""], requests=server.num_requests,
        equal_rewards=found.count("right"), unscored=found.count("unscored"),
        retries=server.num_requests - len(server.tries), sessions=num_sessions,
    )  # fmt: skip
