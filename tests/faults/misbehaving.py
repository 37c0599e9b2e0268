"""An OpenAI-compatible server on loopback that misbehaves: each fault has a name, and stands in `FAULTS`."""

from __future__ import annotations

import asyncio
import gzip
import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Literal

from exchange import KEY, Exchange, Json, chunked, events_of, http, share
from loopback import Reply, Request

from rprm.verdict import DEFAULT_MARKER

HANG = 30.0  # seconds: beyond every timeout of the tests

Play = Callable[[Exchange], Awaitable[Reply | None]]
#: Of requests that meet a fault once, or each time: answered right after all; without a reward; or the session ends.
Outcome = Literal["right", "unscored", "ends"]


@dataclass(frozen=True)
class Fault:
    play: Play
    once: Outcome = "right"
    stays: Outcome = "unscored"
    is_sound: bool = False  # an answer like any other, in an odd form: it is taken at once
    streams: tuple[bool, ...] = (False, True)  # for whole answers, for streamed ones
    takes_time: bool = False  # until the client's timeout


FAULTS: dict[str, Fault] = {}


def add(name: str, play: Play, once: Outcome = "right", **how: Any) -> None:
    assert name not in FAULTS, name
    stays = "right" if how.get("is_sound") else "ends" if once == "ends" else "unscored"
    FAULTS[name] = Fault(play, once, **{"stays": stays} | how)


# Connections and time


def add_raw(name: str, write: Callable[[Exchange], bytes], then: str = "close", **how: Any) -> None:
    """The bytes of `write`, after which the connection is closed, reset, left hanging or kept open."""

    async def play(exchange: Exchange) -> Reply | None:
        raw = write(exchange)
        if then == "open":
            return Reply(raw=raw)
        await exchange.write(raw)
        if then == "hang":
            await asyncio.sleep(HANG)
        if then == "reset":
            await asyncio.sleep(0.002)
            await exchange.reset()
        return None

    add(name, play, takes_time=then == "hang", **how)


def head_of(exchange: Exchange, **headers: object) -> bytes:
    return http(b"", kind=exchange.kind, **headers)


def in_chunks(exchange: Exchange, upto: int | None = None, end: bytes = b"") -> bytes:
    body = exchange.body()[:upto]
    head = head_of(exchange, content_length=None, transfer_encoding="chunked")
    return head + chunked(*(body[at : at + 200] for at in range(0, len(body), 200))) + end


for _then in ("close", "reset"):
    add_raw(f"{_then} before the headers", lambda exchange: b"", _then)
    add_raw(f"{_then} in the headers", lambda exchange: exchange.honest()[:40], _then)
    add_raw(f"{_then} after the headers", lambda exchange: head_of(exchange, content_length=500), _then)
    add_raw(f"{_then} in the body", lambda exchange: exchange.honest()[:-300], _then)
    add_raw(f"{_then} in a chunk", lambda exchange: in_chunks(exchange, 700)[:-9], _then)
    add_raw(f"{_then} between chunks", lambda exchange: in_chunks(exchange, 700), _then)
add_raw("no chunk that ends the body", in_chunks)
add_raw("silence", lambda exchange: b"", "hang")
add_raw("silence in the headers", lambda exchange: exchange.honest()[:40], "hang")
add_raw("silence after the headers", lambda exchange: head_of(exchange, content_length=500), "hang")
add_raw("silence in the body", lambda exchange: exchange.honest()[:-300], "hang")
add_raw("silence in a chunk", lambda exchange: in_chunks(exchange, 700)[:-9], "hang")


def add_dripping(name: str, head: Callable[[Exchange], bytes], drop: bytes, **how: Any) -> None:
    async def play(exchange: Exchange) -> Reply | None:
        await exchange.write(head(exchange), *[drop] * int(HANG / 0.05), every=0.05)
        return None

    add(name, play, takes_time=True, **how)


add_dripping("headers that drip", lambda exchange: exchange.honest()[:-2][:17], b"a")
add_dripping("endless informational responses", lambda exchange: b"", b"HTTP/1.1 102 Processing\r\n\r\n")
add_dripping("a body that drips", lambda exchange: head_of(exchange, content_length=5000), b" ")
add_dripping("keep-alive comments for ever", lambda exchange: head_of(exchange, content_length=None), b": ping\n\n")


# HTTP


def error_body(said: str) -> bytes:
    return json.dumps({"error": {"message": said, "type": "fault", "code": None}}).encode()


_ONCE: dict[int, Outcome] = {400: "unscored", 413: "unscored", 418: "unscored", 422: "unscored"}
_ONCE |= dict.fromkeys((401, 402, 403, 404, 501), "ends")
_BUSY = (408, 409, 425, 429, 503, 529)
for _status in (400, 401, 402, 403, 404, 408, 409, 413, 418, 422, 425, 429, 500, 501, 502, 503, 504, 529):
    _said = f"{_status} X", error_body(f"fault {_status}")
    _how = {"stays": "ends"} if _status in _BUSY else {}
    add_raw(f"status {_status}", lambda _, said=_said: http(said[1], said[0]), "open",
            once=_ONCE.get(_status, "right"), **_how)  # fmt: skip
_WAITS: dict[str, Outcome] = dict.fromkeys(("0", "-5", "nan", "inf", "soon", "", "0.001"), "right")
_WAITS |= {"Wed, 21 Oct 2015 07:28:00 GMT": "right", "Wed, 21 Oct 2099 07:28:00 GMT": "ends"}
for _after, _outcome in (_WAITS | {"1000000000": "ends", "1e400": "ends"}).items():
    add_raw(
        f"429, Retry-After: {_after}",
        lambda _, after=_after: http(error_body("slow down"), "429 X", retry_after=after), "open",
        once=_outcome, stays="ends",
    )  # fmt: skip
_PAGE = b"<html><head><title>Bad gateway</title></head><body>" + b"<p>sorry</p>" * 99 + b"</body></html>"
add_raw("502, a page of HTML", lambda _: http(_PAGE, "502 Bad Gateway", "text/html"), "open")
add_raw("200, a page of HTML", lambda _: http(_PAGE, kind="text/html"), "open")
add_raw("200, a page of HTML that says it is events", lambda _: http(_PAGE, kind="text/event-stream"), "open")
add_raw("502, nothing", lambda _: http(b"", "502 Bad Gateway"), "open")
add_raw("400, nothing", lambda _: http(b"", "400 Bad Request"), "open", once="unscored")
add_raw("200, nothing", lambda exchange: http(b"", kind=exchange.kind), "open")
add_raw("status 204", lambda _: b"HTTP/1.1 204 No Content\r\n\r\n", "open")
add_raw("status 206", lambda exchange: http(exchange.body()[:99], "206 Partial", exchange.kind), "open")
add_raw("status 304", lambda _: b"HTTP/1.1 304 Not Modified\r\n\r\n", "open", once="ends")
add_raw("status 101", lambda _: b"HTTP/1.1 101 Switching\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n")
add_raw("status 600", lambda _: http(error_body("fault 600"), "600 X"), "open")
add_raw("status 99", lambda _: http(error_body("fault 99"), "99 X"), "open")
add_raw("500, an unknown charset", lambda _: http(_PAGE, "500 X", "text/html; charset=klingon"), "open")
add_raw("500, a charset that is no text", lambda _: http(_PAGE, "500 X", "text/html; charset=zlib"), "open")
add_raw("500, a page that never ends", lambda _: http(b"x" * (1 << 17), "500 X", content_length=None))
add_raw("500, an error that is no text", lambda _: http(b'{"error": [[1], {"message": {}}]}', "500 X"), "open")
for _status in (301, 302, 307, 308):
    _head = f"{_status} Moved"
    add_raw(
        f"status {_status}, to itself",
        lambda exchange, head=_head: http(b"", head, location=exchange.request.path), "open", once="ends",
    )  # fmt: skip
    add_raw(
        f"status {_status}, to another host",
        lambda exchange, head=_head: http(b"", head, location=exchange.elsewhere), "open", once="ends",
    )  # fmt: skip
add_raw("a whole answer called text/html", lambda exchange: http(exchange.body(), kind="text/html"), "open",
        streams=(False,), is_sound=True)  # fmt: skip
add_raw("a stream called application/json", lambda exchange: http(exchange.body()), "open", streams=(True,))
add_raw("a stream called Text/Event-Stream", lambda exchange: http(exchange.body(), kind="Text/Event-Stream"),
        "open", streams=(True,), is_sound=True)  # fmt: skip
add_raw("a whole answer in place of a stream",
        lambda exchange: http(json.dumps(exchange.answer).encode()), "open",
        streams=(True,), is_sound=True)  # fmt: skip
add_raw("a length that is too short", lambda exchange: exchange.honest(content_length=99), "open")
add_raw("a length that is too long", lambda exchange: exchange.honest(content_length=10**7))
add_raw("a length that is no number", lambda exchange: exchange.honest(content_length="many"))
add_raw("a length below zero", lambda exchange: exchange.honest(content_length=-1))
add_raw("two lengths", lambda exchange: exchange.honest(Content_Length=7))
add_raw("a chunk whose size is no number",
        lambda exchange: in_chunks(exchange, 400) + b"zz\r\nmore\r\n0\r\n\r\n")  # fmt: skip
add_raw("a chunk longer than it says",
        lambda exchange: in_chunks(exchange, 400) + b"2\r\nmore\r\n0\r\n\r\n")  # fmt: skip
add_raw("a chunk of 2^70 bytes", lambda exchange: in_chunks(exchange, 400) + b"%x\r\nmore" % 2**70)
add_raw("a chunk extension of a megabyte",
        lambda exchange: in_chunks(exchange, 400) + b"4;" + b"x" * (1 << 20) + b"\r\nmore\r\n0\r\n\r\n")  # fmt: skip
add_raw("trailers", lambda exchange: in_chunks(exchange, end=b"0\r\nx-trailer: 1\r\n\r\n"), "open", is_sound=True)


def of_1996(exchange: Exchange) -> bytes:
    return exchange.honest(content_length=None).replace(b"HTTP/1.1", b"HTTP/1.0")


add_raw("HTTP/1.0 that closes", of_1996, is_sound=True)
add_raw("HTTP/1.0 that closes too early", lambda exchange: of_1996(exchange)[:-300])
add_raw("HTTP/0.9", lambda exchange: exchange.body())
add_raw("HTTP/2", lambda _: b"\0\0\x12\x04\0\0\0\0\0\0\x03\0\0\0\x80")
add_raw("a status line that is none", lambda exchange: exchange.honest().replace(b"HTTP/1.1 200", b"ICY two"))
add_raw("NUL in a header", lambda exchange: exchange.honest(x_odd="a\0b"))
add_raw("a header without a colon", lambda exchange: exchange.honest().replace(b"\r\n", b"\r\nodd\r\n", 1))
_MANY = {f"x-{index}": "a" for index in range(10_000)}
add_raw("10,000 headers", lambda exchange: exchange.honest(**_MANY), is_sound=True)
add_raw("a header of a megabyte", lambda exchange: exchange.honest(x_long="a" * (1 << 20)))


def with_cookies(exchange: Exchange) -> bytes:
    owner = share(exchange.request.body)
    cookies = b"".join(b"set-cookie: c%d-%f=v\r\n" % (index, owner) for index in range(1000))
    return exchange.honest().replace(b"\r\n", b"\r\n" + cookies, 1)


add_raw("1,000 cookies", with_cookies, "open", is_sound=True)
add_raw("a second response", lambda exchange: exchange.honest() * 2, "open", is_sound=True)
add_raw("junk after the response", lambda exchange: exchange.honest() + b"\x16\x03junk\r\n\r\n", "open", is_sound=True)
add_raw("an informational response first",
        lambda exchange: b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n" + exchange.honest(), "open",
        is_sound=True)  # fmt: skip


# Encodings


def encoded(exchange: Exchange, body: bytes, coding: str = "gzip") -> bytes:
    return http(body, kind=exchange.kind, content_encoding=coding)


_BOMB = gzip.compress(b" " * (1 << 27))
_DEEP_BOMB = gzip.compress(gzip.compress(gzip.compress(b" " * (1 << 27))))
add_raw("gzip", lambda exchange: encoded(exchange, gzip.compress(exchange.body())), "open", is_sound=True)
add_raw("a gzip bomb", lambda exchange: encoded(exchange, _BOMB), "open")
add_raw("a gzip bomb in a gzip bomb", lambda exchange: encoded(exchange, _DEEP_BOMB, "gzip, gzip, gzip"), "open")
add_raw("500, a gzip bomb", lambda _: http(_BOMB, "500 X", content_encoding="gzip"), "open")
add_raw("gzip that is none", lambda exchange: encoded(exchange, exchange.body()), "open")
add_raw("gzip cut short", lambda exchange: encoded(exchange, gzip.compress(exchange.body())[:-200]), "open")
add_raw("an encoding nobody knows", lambda exchange: encoded(exchange, exchange.body()[::-1], "rot26"), "open")
add_raw("twenty encodings", lambda exchange: encoded(exchange, exchange.body(), ", ".join(["gzip"] * 20)), "open")
add_raw(
    "invalid UTF-8",
    lambda exchange: http(
        exchange.body().replace(b"\\u00e9", b"\xe9").replace("é".encode(), b"\xe9"), kind=exchange.kind
    ),
    "open",
)
add_raw("NUL bytes", lambda exchange: http(exchange.body().replace(b"adds", b"a\0ds"), kind=exchange.kind), "open")
add_raw("UTF-16", lambda exchange: http(exchange.body().decode().encode("utf-16"), kind=exchange.kind), "open")
add_raw("a byte order mark", lambda exchange: http(b"\xef\xbb\xbf" + exchange.body(), kind=exchange.kind), "open",
        is_sound=True)  # fmt: skip


# JSON


def add_json(name: str, change: Callable[[bytes], bytes], **how: Any) -> None:
    """A whole answer, or each event of a stream, with its JSON changed."""

    def write(exchange: Exchange) -> bytes:
        if not exchange.is_streamed:
            return http(change(exchange.body()))
        events = [
            one if b"[DONE]" in one else b"data: " + change(one[6:-2]) + b"\n\n" for one in events_of(exchange.answer)
        ]
        return http(b"".join(events), kind=exchange.kind)

    add_raw(name, write, "open", **how)


add_json("JSON cut short", lambda body: body[:-9])
add_json("JSON with more after it", lambda body: body + b" {}")
add_json("NaN in place of the answer", lambda body: b"NaN")
add_json("null in place of the answer", lambda body: b"null")
add_json("a list in place of the answer", lambda body: b"[" + body + b"]")
add_json("a text in place of the answer", lambda body: json.dumps(body.decode()).encode())
add_json("deep nesting", lambda body: b'{"a":' + b"[" * 200_000)
add_json("deep nesting beside the answer", lambda body: body[:-1] + b', "a": ' + b"[" * 90_000 + b"]" * 90_000 + b"}")
add_json("nesting beside the answer", lambda body: body[:-1] + b', "a": ' + b"[" * 800 + b"]" * 800 + b"}")
add_json("nesting in the choice", lambda body: body.replace(b'"index": 0', b'"index": ' + b"[" * 800 + b"]" * 800))
add_json("a huge integer beside the answer", lambda body: body[:-1] + b', "created": ' + b"9" * 20_000 + b"}")
add_json("every key twice", lambda body: body[:-1] + b", " + body[1:], is_sound=True)
add_json("a long answer of nothing", lambda body: b" " * (3 << 20) + body)


# What stands in an answer


def add_change(name: str, change: Callable[[Json, Json], Any], **how: Any) -> None:
    """The answer after `change(answer, its choice)`."""

    def write(exchange: Exchange) -> bytes:
        answer = deepcopy(exchange.answer)
        change(answer, answer["choices"][0])
        return http(exchange.body(answer), kind=exchange.kind)

    add_raw(name, write, "open", **how)


def add_answer(name: str, answer: Json) -> None:
    """Another answer in its place."""
    add_raw(name, lambda exchange: http(exchange.body(answer), kind=exchange.kind), "open")


add_change("no choices", lambda answer, _: answer.update(choices=[]))
add_change("choices missing", lambda answer, _: answer.pop("choices"))
add_change("choices null", lambda answer, _: answer.update(choices=None))
add_change(
    "choices that are an object",
    lambda answer, choice: answer.update(choices=choice),
)
add_change("choices that are texts", lambda answer, _: answer.update(choices=["Yes"]))
add_change("two choices", lambda answer, choice: answer.update(choices=[choice, {**choice, "index": 1}]), is_sound=True)
add_change("two choices of one index", lambda answer, choice: answer.update(choices=[choice, choice]),
           streams=(False,))  # fmt: skip
add_change("an index that is not ours", lambda _, choice: choice.update(index=7), is_sound=True)
add_change("an index that is no number", lambda _, choice: choice.update(index="zero"), is_sound=True)
add_change("no message", lambda _, choice: choice.pop("message"), once="unscored")
add_change("a message that is null", lambda _, choice: choice.update(message=None), once="unscored")
add_change("a content that is null", lambda _, choice: choice["message"].update(content=None), once="unscored")
add_change("a content that is a number", lambda _, choice: choice["message"].update(content=42))
add_change("a content that is an object", lambda _, choice: choice["message"].update(content={"text": "Yes"}))
add_change("a content filter",
           lambda _, choice: choice.update(finish_reason="content_filter", message={"content": None}),
           once="unscored")  # fmt: skip
add_change("a refusal", lambda _, choice: choice.update(message={"content": None, "refusal": "I cannot."}),
           once="unscored")  # fmt: skip
for _reason in ("banana", "length", "\x1b[31mred", "x" * 100_000):
    add_change(
        f"finish reason {_reason[:9]!r}",
        lambda _, choice, reason=_reason: choice.update(finish_reason=reason),
        is_sound=True,
    )
add_change("finish reason 'error'", lambda _, choice: choice.update(finish_reason="error"))
add_change(
    "a finish reason that is an object", lambda _, choice: choice.update(finish_reason={"a": [1]}), is_sound=True
)
add_answer("an error in place of the answer", {"error": {"message": "upstream", "code": 502}})
add_answer("an error that is a text", {"error": "upstream"})
add_change("an error beside no choices", lambda answer, _: answer.update(choices=[], error={"message": "upstream"}))
add_change("no usage", lambda answer, _: answer.pop("usage"), is_sound=True)
for _label, _count in {
    "-5": -5, "0": 0, "10^12": 10**12, "10^400": 10**400, "1.5": 1.5, "a text": "12", "null": None, "a list": [12],
}.items():  # fmt: skip
    add_change(
        f"a usage of {_label}",
        lambda answer, _, count=_count: answer.update(usage={"prompt_tokens": count, "completion_tokens": count}),
        is_sound=True,
    )
add_json("a usage of 10^5000", lambda body: re.sub(rb'(_tokens": )\d+', rb"\g<1>1" + b"0" * 5000, body))
add_change("another model's name", lambda answer, _: answer.update(model="another-model"))
add_change("the prompt before the answer", lambda _, choice: choice["message"].update(
    content=f"{DEFAULT_MARKER} Yes or No. {choice['message']['content']}"
))  # fmt: skip
add_change("a key in the answer", lambda _, choice: choice["message"].update(
    content=choice["message"]["content"].replace("adds", f"adds {KEY}")
))  # fmt: skip
add_change("a key as the finish reason", lambda _, choice: choice.update(finish_reason=KEY))
add_change("a key as the model's name", lambda answer, _: answer.update(model=f"m {KEY}"))
add_raw("400, the key in the message", lambda _: http(error_body(f"Bad key {KEY}"), "400 X"), "open", once="unscored")
add_raw("400, the key in the reason", lambda _: http(b"", f"400 Bad {KEY}"), "open", once="unscored")
add_raw("404, the key in the message", lambda _: http(error_body(f"Bad key {KEY}"), "404 X"), "open", once="ends")
add_raw(
    "307, the key in the location", lambda _: http(b"", "307 X", location=f"http://h/?k={KEY}"), "open", once="ends"
)
add_answer("an error with the key", {"error": {"message": f"bad {KEY}", "code": KEY}})


def think(_: Json, choice: Json) -> None:
    opposite = "No" if "? Yes" in choice["message"]["content"] else "Yes"
    choice["message"]["reasoning_content"] = f"{DEFAULT_MARKER} {opposite}"


def think_inside(_: Json, choice: Json) -> None:
    opposite = "No" if "? Yes" in choice["message"]["content"] else "Yes"
    thought = f"<think>\n{DEFAULT_MARKER} {opposite}\n</think>\n\n"
    choice["message"]["content"] = thought + choice["message"]["content"]
    entry = {"token": thought, "bytes": list(thought.encode()), "logprob": -0.1}
    choice["logprobs"]["content"].insert(0, entry | {"top_logprobs": [entry]})


add_change("a verdict in thinking apart", think, is_sound=True)
add_change("a verdict in thinking inside", think_inside, is_sound=True)


# Log-probabilities


def verdict_entry(choice: Json) -> Json:
    return next(one for one in choice["logprobs"]["content"] if one["token"].strip() in ("Yes", "No"))


def add_number(name: str, value: Any) -> None:
    """One of the two answers has this log-probability."""

    def change(_: Json, choice: Json) -> None:
        entry = verdict_entry(choice)
        other = next(
            one
            for one in entry["top_logprobs"]
            if one["token"].strip() in ("Yes", "No") and one["token"] != entry["token"]
        )
        other["logprob"] = value

    add_change(f"a log-probability of {name}", change)

    def change_own(_: Json, choice: Json) -> None:
        entry = verdict_entry(choice)
        for one in (entry, *entry["top_logprobs"]):
            if one["token"] == entry["token"]:
                one["logprob"] = value

    add_change(f"its own log-probability is {name}", change_own)


for _name, _value in {
    "NaN": math.nan, "null": None, "3": 3.0, "-inf": -math.inf, "inf": math.inf, "a text": "-0.5", "true": True,
    "a list": [-0.5], "0": 0.0,
}.items():  # fmt: skip
    add_number(_name, _value)
add_change("no log-probabilities", lambda _, choice: choice.pop("logprobs"))
add_change("log-probabilities null", lambda _, choice: choice.update(logprobs=None))
add_change("log-probabilities that are a text", lambda _, choice: choice.update(logprobs="none"))
add_change("log-probabilities of no token", lambda _, choice: choice["logprobs"].update(content=[]))
add_change("log-probabilities of null", lambda _, choice: choice["logprobs"].update(content=None))
add_change(
    "log-probabilities of the first tokens alone",
    lambda _, choice: choice["logprobs"].update(content=choice["logprobs"]["content"][:4]),
)
add_change(
    "log-probabilities of the last token alone",
    lambda _, choice: choice["logprobs"].update(content=choice["logprobs"]["content"][-1:]),
)
add_change("log-probabilities of more tokens", lambda _, choice: choice["logprobs"]["content"].append(
    {"token": "<|im_end|>", "bytes": None, "logprob": -0.1, "top_logprobs": []}
), is_sound=True)  # fmt: skip
add_change("no alternatives", lambda _, choice: verdict_entry(choice).update(top_logprobs=[]))
add_change("alternatives that are null", lambda _, choice: verdict_entry(choice).update(top_logprobs=None))
add_change("itself as the only alternative", lambda _, choice: verdict_entry(choice).update(
    top_logprobs=[{**verdict_entry(choice), "top_logprobs": None}]
))  # fmt: skip
add_change("probabilities that add up to two", lambda _, choice: [
    one.update(logprob=-0.01) for one in (verdict_entry(choice), *verdict_entry(choice)["top_logprobs"])
])  # fmt: skip


def add_tokens(name: str, change: Callable[[Json], Any], **how: Any) -> None:
    """Every entry, and every alternative, changed."""
    add_change(name, lambda _, choice: [
        change(one) for entry in choice["logprobs"]["content"] for one in (entry, *entry["top_logprobs"])
    ], **how)  # fmt: skip


def swap(text: str) -> str:
    return text.replace("Yes", "\0").replace("No", "Yes").replace("\0", "No")


add_tokens("log-probabilities of other tokens", lambda one: one.update(token="no such", bytes=list(b"no such")))
add_tokens("tokens without text", lambda one: one.update(token=None, bytes=None))
add_tokens("bytes that swap the answers", lambda one: one.update(bytes=list(swap(one["token"]).encode())))
add_tokens("tokens that swap the answers", lambda one: one.update(token=swap(one["token"])))
add_tokens("both swapped", lambda one: one.update(token=swap(one["token"]), bytes=list(swap(one["token"]).encode())))
add_change("alternatives that swap the answers in their bytes", lambda _, choice: [
    one.update(bytes=list(swap(one["token"]).encode())) for one in verdict_entry(choice)["top_logprobs"]
])  # fmt: skip
add_tokens("bytes of null", lambda one: one.update(bytes=None), is_sound=True)
add_tokens("bytes beyond a byte", lambda one: one.update(bytes=[999]), is_sound=True)


# Streams


def add_stream(name: str, write: Callable[[list[bytes]], bytes], then: str = "open", **how: Any) -> None:
    def raw(exchange: Exchange) -> bytes:
        body = write(events_of(exchange.answer))
        return http(body, kind=exchange.kind, **({} if then == "open" else {"content_length": None}))

    add_raw(name, raw, then, streams=(True,), **how)


def joined(*parts: Any) -> bytes:
    return b"".join(part if isinstance(part, bytes) else b"".join(part) for part in parts)


_ERROR = {"error": {"message": "out of memory", "code": 500}}
_NOTE = b'{"choices": []}'
add_stream("a stream without [DONE]", lambda events: joined(events[:-1]), "close", is_sound=True)
add_stream("a stream without a finish reason", lambda events: joined(events[:-3], events[-1:]))
add_stream("a stream that ends amid the text", lambda events: joined(events[:9]), "close")
add_stream("a stream of [DONE] alone", lambda events: events[-1])
add_stream("a stream of comments alone", lambda events: b": nothing\n\n" * 50)
add_stream(
    "comments and keep-alives", lambda events: joined([b": ping\n\n:\n\n\n" + one for one in events]), is_sound=True
)
add_stream("lines that end in CR LF", lambda events: joined(events).replace(b"\n", b"\r\n"), is_sound=True)
add_stream("lines that end in CR", lambda events: joined(events).replace(b"\n", b"\r"))
add_stream("data in several lines", lambda events: joined([one.replace(b", ", b",\ndata: ") for one in events]))
add_stream("data without a space", lambda events: joined(events).replace(b"data: ", b"data:"), is_sound=True)
add_stream(
    "events with ids and names",
    lambda events: joined([b"id: 7\nretry: 10\nevent: message\n" + one for one in events]),
    is_sound=True,
)
add_stream("an event that is named error", lambda events: joined(
    events[:6], b'event: error\ndata: {"message": "out of memory"}\n\n', events[6:]
))  # fmt: skip
add_stream("an error object amid the stream", lambda events: joined(
    events[:6], b"data: " + json.dumps(_ERROR).encode() + b"\n\n", events[6:]
))  # fmt: skip
add_stream("an error object that ends the stream", lambda events: joined(
    events[:6], b"data: " + json.dumps(_ERROR).encode() + b"\n\n"
))  # fmt: skip
add_stream("an error text amid the stream", lambda events: joined(events[:6], b"data: out of memory\n\n", events[6:]))
add_stream("an error object without data", lambda events: joined(events[:6], json.dumps(_ERROR).encode() + b"\n\n"))
add_stream("every chunk twice", lambda events: joined([one + one for one in events]), is_sound=True)
add_stream("pairs of chunks swapped", lambda events: joined(
    events[:1], [events[at ^ 1] for at in range(2, len(events) - 4 & ~1)], events[len(events) - 4 & ~1 :]
), once="unscored")  # fmt: skip
add_stream(
    "the chunk of the verdict missing",
    lambda events: joined(
        [one for one in events if b'"content": " Yes"' not in one and b'"content": " No"' not in one]
    ),
    once="unscored",
)
add_stream("an index that changes amid the stream", lambda events: joined([
    one.replace(b'"index": 0', b'"index": 1') if 5 < at < 9 else one for at, one in enumerate(events)
]))  # fmt: skip
add_stream("a huge line", lambda events: joined(events[:6], b"data: " + b"x" * (3 << 20)))
add_stream("a huge comment", lambda events: joined(events[:6], b": " + b"x" * (3 << 20) + b"\n\n", events[6:]))
add_stream("an event of a megabyte of nothing", lambda events: joined(
    events[:6], b'data: {"choices": [], "pad": "' + b"x" * (1 << 20) + b'"}\n\n', events[6:]
), is_sound=True)  # fmt: skip
add_stream("events after [DONE]", lambda events: joined(events, events), is_sound=True)
add_stream("choices that are null", lambda events: joined(b'data: {"choices": null}\n\n', events), is_sound=True)
add_stream(
    "deltas that are null",
    lambda events: joined(b'data: {"choices": [{"index": 0, "delta": null}]}\n\n', events),
    is_sound=True,
)


def add_pieces(name: str, cut: Callable[[bytes], Iterator[bytes]], **how: Any) -> None:
    """A stream that comes in pieces of its own, each at another time."""

    async def play(exchange: Exchange) -> Reply | None:
        body = "".join(
            json.dumps(json.loads(one[6:]), ensure_ascii=False).join(("data: ", "\n\n"))
            if b"[DONE]" not in one
            else one.decode()
            for one in events_of(exchange.answer)
        ).encode()
        await exchange.write(http(b"", kind=exchange.kind, content_length=len(body)))
        for piece in cut(body):
            await exchange.write(piece)
            await asyncio.sleep(0)
        return Reply(raw=b"")

    add(name, play, streams=(True,), **how)


add_pieces("characters cut amid their bytes", lambda body: iter(re.split(rb"(?<=\xc3)", body)), is_sound=True)
add_pieces("lines cut amid", lambda body: (body[at : at + 97] for at in range(0, len(body), 97)), is_sound=True)


def add_endless(name: str, more: bytes, **how: Any) -> None:
    async def play(exchange: Exchange) -> Reply | None:
        await exchange.write(http(joined(events_of(exchange.answer)[:5]), kind=exchange.kind, content_length=None))
        while True:
            await exchange.write(more)

    add(name, play, streams=(True,), **how)


_WORDS = (
    b'data: {"choices": [{"index": 0, "delta": {"content": " and"}, "logprobs": {"content": [{"token": " and"}]}}]}\n\n'
)
add_endless("a stream of words without end", _WORDS * 200)
add_endless("a stream of empty events without end", b'data: {"choices": []}\n\n' * 500)
add_endless("a stream of blank lines without end", b"\n" * (1 << 14))
add_endless("a stream of zeros without end", b"\0" * (1 << 14))


# The server


async def play_honest(exchange: Exchange) -> Reply | None:
    return Reply(raw=exchange.honest())


HONEST = Fault(play_honest, is_sound=True)


class Misbehaving:
    """Plays the fault that `fault_of(the problem's number, seed, try)` names; "" is none, as for every probe.

    The problem with the number n is "What is n + 1?".
    """

    def __init__(self, fault_of: Callable[[int, Any, int], str], elsewhere: str = "http://127.0.0.1:9/v1") -> None:
        self.fault_of, self.elsewhere = fault_of, f"{elsewhere}/chat/completions"
        self.tries: Counter[tuple[int, Any]] = Counter()
        self.answered: Counter[tuple[int, Any]] = Counter()  # soundly
        self.played: Counter[str] = Counter()  # "": honestly
        self.honest: defaultdict[int, list[Json]] = defaultdict(list)  # answers, by the problem's number
        self.mistakes: list[str] = []  # of ours
        self.num_requests = self.largest_head = 0

    async def play(self, request: Request, writer: asyncio.StreamWriter) -> Reply | None:
        exchange = Exchange(request, writer, self.elsewhere)
        self.largest_head = max(self.largest_head, sum(map(len, request.headers.values())))
        if (number := re.search(r"What is (\d+) \+ 1\?", request.body["messages"][-1]["content"])) is None:
            return Reply(raw=exchange.honest())
        key = int(number[1]), request.body.get("seed")
        self.num_requests += 1
        self.tries[key] += 1
        name = self.fault_of(*key, self.tries[key])
        fault = FAULTS[name] if name else HONEST
        self.played[name] += 1
        self.answered[key] += fault.is_sound
        self.honest[key[0]].append(exchange.answer)
        try:
            return await fault.play(exchange)
        except ConnectionError:
            return None
        except Exception as error:
            self.mistakes.append(f"{name}: {error!r}")
            raise
