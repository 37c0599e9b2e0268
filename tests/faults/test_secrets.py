"""No key in anything that is written: messages, logs, tracebacks, run folders, caches, whatever a server sends back."""

from __future__ import annotations

import html
import json
import logging
import re
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import pytest
from commands import Done, forked, rprm, warm
from echoing import Reply, completion, serving

from rprm.showing import guard, message, without_keys

KEY = "sk-Test_0123/4567+89abCDEF=gh.ij"
EXAMPLES = Path(__file__).parents[2] / "src" / "rprm" / "examples"
VERDICT = "Is the step correct (Yes/No)? Yes"

#: How a key may come back.
WAYS: dict[str, Callable[[str], str]] = {
    "as it is": lambda key: key,
    "lower case": str.lower,
    "upper case": str.upper,
    "header value": lambda key: f"Bearer {key}",
    "percent-encoded": lambda key: quote(key, safe=""),
    "percent-encoded twice": lambda key: quote(quote(key, safe=""), safe=""),
    "percent-encoded whole": lambda key: "".join(f"%{ord(one):02X}" for one in key),
    "escaped as in JSON": lambda key: "".join(f"\\u{ord(one):04x}" for one in key),
    "escaped slashes": lambda key: key.replace("/", "\\/"),
    "escaped as in HTML": lambda key: "".join(f"&#{ord(one)};" for one in key),
    "escaped as in HTML, by hex": lambda key: "".join(f"&#x{ord(one):x};" for one in key),
}

Body = dict[str, Any]
#: Where it may come back: the reply to a request, with what comes back.
PLACES: dict[str, Callable[[str, Body], Reply]] = {
    **{
        f"message of {status}": lambda echo, body, status=status: Reply({"error": {"message": f"key {echo}!"}}, status)
        for status in (400, 401, 402, 403, 404, 408, 413, 422, 429, 500, 501, 503)
    },
    "text of 400": lambda echo, body: Reply(f"no {echo} here".encode(), 400, headers={"content-type": "text/plain"}),
    "text of 502": lambda echo, body: Reply(f"<p>{echo}</p>".encode(), 502, headers={"content-type": "text/html"}),
    "long text": lambda echo, body: Reply(f"{'x ' * 190}{echo} {'y' * 99_999}".encode(), 400),
    "code": lambda echo, body: Reply({"error": {"message": "no", "code": echo, "type": echo}}, 400),
    "detail": lambda echo, body: Reply({"detail": [{"msg": echo, "input": {"api_key": echo}}]}, 422),
    "reason": lambda echo, body: Reply(b"", 418, reason=echo),
    "location": lambda echo, body: Reply({}, 307, headers={"location": f"http://localhost:1/{echo}?key={echo}"}),
    "retry-after": lambda echo, body: Reply({"error": {"message": "busy"}}, 503, headers={"x-retry-after": echo}),
    "error within 200": lambda echo, body: Reply({"error": {"message": echo, "code": echo}}),
    "no JSON": lambda echo, body: Reply(f"key={echo}".encode()),
    "text": lambda echo, body: Reply(completion(f"I see {echo}.\n{VERDICT}", body)),
    "end of a text": lambda echo, body: Reply(completion(f"{VERDICT}\n\n{echo}", body)),
    "thinking": lambda echo, body: Reply(
        completion("", body, message={"content": VERDICT, "reasoning_content": f"hm {echo}"})
    ),
    "finish reason": lambda echo, body: Reply(completion(VERDICT, body, finish_reason=echo)),
    "logprobs": lambda echo, body: Reply(
        completion(VERDICT, body, logprobs={"content": [{"token": echo, "logprob": -1.0, "top_logprobs": []}]})
    ),
    "stream": lambda echo, body: Reply(
        b"".join(
            b"data: " + json.dumps({"choices": [{"index": 0, "delta": {"content": one}}]}).encode() + b"\n\n"
            for one in [*f"I see {echo}.\n", VERDICT]
        ) + b'data: {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}\n\ndata: [DONE]\n\n',
        headers={"content-type": "text/event-stream"},
    ),
    "error in a stream": lambda echo, body: Reply(
        b"data: " + json.dumps({"error": {"message": echo}}).encode() + b"\n\n",
        headers={"content-type": "text/event-stream"},
    ),
}  # fmt: skip


def holds_key(text: str, key: str = KEY) -> bool:
    """Whether a text has the key, or half of it, in any of the ways."""
    for _ in range(3):
        text = html.unescape(
            unquote(re.sub(r"\\+(?:u00|x)([0-9a-fA-F]{2})|\\+", lambda m: chr(int(m[1] or "7f", 16)), text))
        )
        text = text.replace("\x7f", "").lower()
        if key[3:18].lower() in text or key[-15:].lower() in text:
            return True
    return False


def found(done: Done, folder: Path, key: str = KEY) -> list[str]:
    """Where a key stands of what a command wrote: its output, and every file, by name or content."""
    texts = {"stdout": done.out, "stderr": done.err}
    for path in folder.rglob("*"):
        texts[str(path)] = f"{path}\n" + (path.read_bytes().decode(errors="replace") if path.is_file() else "")
    return [name for name, text in texts.items() if holds_key(text, key)]


def echoing(
    key: str, *, otherwise: tuple[str, str] = ("text", "as it is"), headers: dict[str, str] | None = None
) -> Callable[[str, dict[str, str], Body], Reply]:
    """A server that answers as the problem `<PLACE|WAY>` of a request says, and the probe as it should."""

    def answer(path: str, received: dict[str, str], body: Body) -> Reply:
        if received.get("authorization") != f"Bearer {key}":
            return Reply({"error": {"message": "no key came"}}, 418)
        if path.endswith("/models"):
            return Reply({"data": [{"id": "m", "owned_by": key}, {"id": key}]})
        asked = str(body.get("messages", body.get("prompt")))
        if "Reply with one word" in asked:
            return Reply(completion("Yes", body))
        match = re.search(r"<([^|>]+)\|([^>]+)>", asked)
        place, way = match.groups() if match else otherwise
        reply = PLACES[place](WAYS[way](key), body)
        return replace(reply, headers=reply.headers | (headers or {}))

    return answer


@pytest.fixture
def home(tmp_path: Path) -> Path:
    warm()
    (tmp_path / "home").mkdir()
    return tmp_path


#: Whoever sees one of these gives up: an account, an address or a key is wrong, or the server has too much to do.
FATAL = [f"message of {status}" for status in (401, 402, 403, 404, 408, 429, 501, 503)] + ["location", "retry-after"]
STREAMED = ["stream", "error in a stream"]


def some(cases: Iterable[str], *short: str) -> list[Any]:
    """Cases of which the short form has some alone."""
    return [pytest.param(one, marks=() if one in short else pytest.mark.slow) for one in cases]


def run(url: str, folder: Path, *command: str, options: str = "", before: Any = None, **environment: str) -> Done:
    """A command whose MODEL is behind the server; whatever it keeps, it keeps in the folder."""
    home = str(folder / "home")
    places = {"HOME": home, "XDG_CACHE_HOME": home, "RPRM_CACHE": home, "TMPDIR": home}
    arguments = [one.replace("MODEL", f"openai:m@{url}?max_retries=0&timeout=9{options}") for one in command]
    environment = {"OPENAI_API_KEY": KEY} | places | environment
    return rprm(*arguments, folder=folder, before=before or (lambda: None), **environment)


def judge(url: str, folder: Path, cases: list[tuple[str, str]], *more: str, **how: Any) -> Done:
    """Judge solutions of one step, one for each place and way, which its problem tells the server."""
    rows = [{"problem": f"<{place}|{way}>", "steps": ["1 + 1 = 2"]} for place, way in cases]
    (folder / "in.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return run(url, folder, "judge", "in.jsonl", "-m", "MODEL", "-k", "1", "--analyses", "-o", "run", *more, **how)


def check(done: Done, folder: Path, key: str = KEY) -> None:
    assert found(done, folder, key) == []
    assert "no key came" not in done.err
    assert "Traceback" not in done.err, done.err


@pytest.mark.parametrize("streams", [False, True], ids=["whole", "streamed"])
def test_a_key_that_comes_back_is_nowhere(streams: bool, home: Path, figures: Callable[..., None]) -> None:
    places = STREAMED if streams else [place for place in PLACES if place not in (*FATAL, *STREAMED)]
    cases = [(place, way) for place in places for way in WAYS]
    with serving(echoing(KEY)) as url:
        done = judge(url, home, cases, options="&stream=true" * streams)
    check(done, home)
    rows = [json.loads(line) for line in (home / "run" / "results.jsonl").read_text().splitlines()]
    assert len(rows) == len(cases)
    # An answer stays one: with stars, and a verdict where it was.
    texts = {case: row["steps"][0]["analyses"] for case, row in zip(cases, rows, strict=True)}
    for (place, way), analyses in texts.items():
        if place in ("text", "stream"):
            (one,) = analyses
            assert one["verdict"] is True, (place, way)
            assert one["text"].startswith("I see ***" if "header" not in way else "I see Bearer ***")
    figures(echoes=len(cases), keys_found=0)


@pytest.mark.parametrize("place", some(FATAL, "message of 401", "message of 503", "location"))
def test_a_key_that_comes_back_as_the_run_ends(place: str, home: Path) -> None:
    way = list(WAYS)[FATAL.index(place)]
    with serving(echoing(KEY)) as url:
        done = judge(url, home, [(place, way)])
    check(done, home)
    assert done.code == 1
    assert "***" in done.err


COMMANDS = {
    "bench": ("bench", "steps", "steps.jsonl", "-m", "MODEL", "-k", "1", "-o", "out"),
    "analyses": ("data", "analyses", "steps.jsonl", "-m", "MODEL", "-o", "out"),
    "sample": ("search", "sample", "--problems", "problems.jsonl", "-p", "MODEL", "-n", "2", "-o", "out"),
    "guided": ("search", "guided", "--problems", "problems.jsonl", "-p", "MODEL", "-m", "MODEL", "-k", "1",
               "--width", "2", "--max-rounds", "2", "-o", "out"),
    "check": ("engines", "check", "MODEL"),
}  # fmt: skip


@pytest.mark.parametrize("command", some(COMMANDS, "bench", "guided"))
@pytest.mark.parametrize("place", some(["text", "message of 400"], "text"))
def test_every_way_to_ask(command: str, place: str, home: Path) -> None:
    step = {"id": "a", "problem": f"<{place}|percent-encoded>", "step": "1 + 1 = 2", "label": True}
    (home / "steps.jsonl").write_text(f"{json.dumps(step)}\n")
    (home / "problems.jsonl").write_text(f"{json.dumps({'problem': f'<{place}|lower case>', 'answer': '2'})}\n")
    with serving(echoing("other-Key/0123456789+x=", otherwise=(place, "as it is"))) as url:
        done = run(url, home, *COMMANDS[command], options="&key_env=OTHER", OTHER="other-Key/0123456789+x=")
    check(done, home, "other-Key/0123456789+x=")


def test_logs_and_tracebacks(home: Path) -> None:
    """The client's own log, which has the headers of answers, and an exception of ours that has the key."""

    def fail() -> None:
        import rprm.engines.openai as engine

        def read(data: Any, *_: Any, **__: Any) -> Any:
            if "I see" not in str(data):
                return read_completions(data, *_, **__)
            raise KeyError(f"{data} {WAYS['percent-encoded'](KEY)}")

        read_completions, engine.read_completions = engine.read_completions, read
        guard()  # As when the client is imported by the command.
        logging.basicConfig(level=logging.DEBUG)

    custom = "customsecret0123456789"
    with serving(echoing(KEY, headers={"x-echo": f"{KEY} {custom}"})) as url:
        headers = {"OPENAI_CUSTOM_HEADERS": f"x-account: {custom}"}
        done = judge(url, home, [("text", "as it is")], before=fail, **headers)
    assert found(done, home, custom) == []
    assert "Traceback" in done.err
    assert "x-echo" in done.err
    assert found(done, home) == []


def test_from_python(home: Path) -> None:
    """An exception that nobody catches, printed by Python itself."""

    def ask() -> None:
        from rprm import RPRM

        with serving(echoing(KEY)) as url:
            RPRM(f"openai:m@{url}?max_retries=0").score(
                [{"problem": "<message of 401|upper case>", "steps": ["1 + 1 = 2"]}]
            )

    home_folder = str(home / "home")
    done = forked(ask, folder=home, OPENAI_API_KEY=KEY, HOME=home_folder, TMPDIR=home_folder)
    assert done.code == 1
    assert "rprm.errors.EngineError" in done.err
    assert "***" in done.err
    assert found(done, home) == []


def test_the_hubs_token(home: Path) -> None:
    token = "hf_abcdefGHIJKLmnop0123456789"

    def answer(path: str, headers: dict[str, str], body: Body) -> Reply:
        echo = headers.get("authorization", "none")
        return Reply({"error": echo}, 403, headers={"x-error-message": f"no: {echo} {quote(echo)}"})

    with serving(answer) as url:

        def online() -> None:
            from huggingface_hub import constants

            constants.ENDPOINT, constants.HF_HUB_OFFLINE = url.removesuffix("/v1"), False

        done = run(url, home, "judge", "hub:a/b", "-m", "scripted:", "-o", "run", before=online, HF_TOKEN=token)
    assert done.code == 1
    assert "***" in done.err
    check(done, home, token)


@pytest.mark.parametrize(
    "spec",
    [
        "openai:m@https://me:PASSWORD@127.0.0.1:1/v1",
        "opena:m@https://PASSWORD@127.0.0.1:1/v1",
        "openai:m@https://127.0.0.1:1/v1?api_key=PASSWORD",
        "openai:m@https://127.0.0.1:1/v1?token=PASSWORD&timeout=x",
        'openai:m@http://127.0.0.1:1/v1?extra={"api_key": "PASSWORD"}',
        'openai:m@http://127.0.0.1:1/v1?extra={"proxy": {"url": "https://me:PASSWORD@host/"}}',
        'openai:m@http://127.0.0.1:1/v1?extra={"headers": {"Authorization": "Bearer PASSWORD"}}',
    ],
)
def test_credentials_in_a_spec_are_refused_and_not_repeated(spec: str, home: Path) -> None:
    password = "hunter2-hunter2-hunter2"
    source = str(EXAMPLES / "solutions.jsonl")
    done = run("", home, "judge", source, "-m", spec.replace("PASSWORD", password), "-o", "run")
    assert done.code == 1
    assert not (home / "run").exists()
    assert len(done.err.splitlines()) == 1
    check(done, home, password)


@pytest.mark.parametrize("proxy", ["socks9://me:PASSWORD@127.0.0.1:1", "http://me:PASSWORD@[::x", "ftp://PASSWORD@h"])
def test_a_proxy_that_is_none(proxy: str, home: Path) -> None:
    password = "hunter2-hunter2-hunter2"
    source = str(EXAMPLES / "solutions.jsonl")
    proxies = {"HTTPS_PROXY": proxy.replace("PASSWORD", password), "NO_PROXY": "", "no_proxy": ""}
    done = run("", home, "judge", source, "-m", "openai:m@https://host.invalid/v1", "-o", "run", **proxies)
    assert done.code == 1
    assert "HTTPS_PROXY" in done.err
    check(done, home, password)


def test_no_core_file_and_no_key_in_a_childs_arguments(home: Path) -> None:
    def limits() -> None:
        import resource

        from rprm.subcommands import Subcommand

        guard()
        assert resource.getrlimit(resource.RLIMIT_CORE)[0] == 0
        stage = Subcommand(home / "stage", ["judge", "no-file", "--model", "openai:m@https://me:hunter2hunter2@h/v1"])
        print(Path(f"/proc/{stage.process.pid}/cmdline").read_bytes() if sys.platform == "linux" else b"")
        stage.wait()

    done = forked(limits, folder=home, OPENAI_API_KEY=KEY)
    assert found(done, home) == []
    assert "hunter2" not in (home / "stage.log").read_text() + done.err
    assert "no-file" in done.err


def test_what_is_no_key_stays() -> None:
    text = "A step of 50%25 with \\u0041, &#65; and EMPTY: the token=5 of https://host/a@b is key=value."
    assert without_keys(text) == text
    assert message("the environment variable OPENAI_API_KEY does not hold a key") == (
        "the environment variable OPENAI_API_KEY does not hold a key"
    )
    assert message("name another: key_env=NAME, num_tokens=5 at https://host/v1") == (
        "name another: key_env=NAME, num_tokens=5 at https://host/v1"
    )


@pytest.mark.parametrize(
    "unit", ["\\", "a-", "%25", "&#0", "&#x0", "sk-Test_", "\\u00", "://", "://a", "key=", "Bearer ", "\n "]
)
def test_no_text_takes_long(unit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    start = time.process_time()
    message(unit * (300_000 // len(unit)))
    assert time.process_time() - start < 2.0
