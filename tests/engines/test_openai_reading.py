"""Reading what a server answers: tokens, offsets, thinking, garbage."""

from __future__ import annotations

import asyncio
import json
import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loopback import (
    ANSWER,
    SAMPLING,
    VERDICT,
    Reply,
    Request,
    Server,
    chat_answer,
    chat_tokens,
    events,
    generate,
    playing,
    token,
    tokens_of,
    with_server,
)

from rprm.engines import Completion
from rprm.engines.endpoint import Garbled, Transient
from rprm.engines.openai import OpenAIEngine
from rprm.engines.openai_answers import Stream, read_completions
from rprm.verdict import VerdictFormat, read_verdict

# Reading tokens


def completion_of(
    text: str | None, tokens: list[dict[str, Any]], verdict: VerdictFormat = VERDICT, **message: Any
) -> Completion:
    choice = {"message": {"content": text, **message}, "finish_reason": "stop", "logprobs": {"content": tokens}}
    return read_completions({"choices": [choice]}, replace(SAMPLING, verdict=verdict), 1)[0]


VOTES = {
    "not known": [token(" Yes", -0.1, {" Yes": -0.1, " No": -9999.0})],
    "the other answer not listed": [token(" Yes", -0.1, {" Yes": -0.1, ",": -4.0})],
    "the answer not listed": [token(" Yes", -0.1, {" No": -2.5, ",": -4.0})],
    "an answer of two tokens": [token(" Y", -0.1, {" Y": -0.1, ",": -4.0}), token("es", -0.1, {"es": -0.1, ",": -4.0})],
}
GARBLED = {
    "missing": None,
    "of nothing": [],
    "of the text before": [token(VERDICT.marker)],
    "of another text": [token("No such text"), token(" No", -0.1, {" Yes": -2.4, " No": -0.1})],
    "NaN": [token(VERDICT.marker), token(" Yes", -0.1, {" Yes": -0.1, " No": math.nan})],
    "no alternatives": [token(VERDICT.marker), token(" Yes", -0.1)],
    "bytes of the other answer": [
        token(VERDICT.marker), token(" Yes", -0.1, {" Yes": -0.1, " No": -2.4}) | {"bytes": list(b" No")},
    ],
}  # fmt: skip


@pytest.mark.parametrize("ends", VOTES.values(), ids=VOTES)
def test_log_probabilities_that_do_not_tell_leave_the_vote_and_garbled_ones_do_not(ends: list[dict[str, Any]]) -> None:
    text = f"{VERDICT.marker} Yes"

    def read(tokens: list[dict[str, Any]] | None) -> Completion:
        choice = {"message": {"content": text}, "finish_reason": "stop", "logprobs": {"content": tokens}}
        return read_completions({"choices": [choice]}, SAMPLING, 1, num_ids=0)[0]

    completion = read([token(VERDICT.marker), *ends])
    assert (completion.text, completion.choices) == (text, ())
    for tokens in GARBLED.values():
        with pytest.raises(Garbled, match="top_logprobs=0"):
            read(tokens)


def test_answers_are_summed_over_their_variants() -> None:
    top = {" Yes": math.log(0.4), "Yes": math.log(0.1), "YES": math.log(0.05), " no": math.log(0.2), ",": math.log(0.1)}
    (choice,) = completion_of("Yes", [token("Yes", math.log(0.1), top)]).choices
    assert choice.logprob_yes == pytest.approx(math.log(0.55))
    assert choice.logprob_no == pytest.approx(math.log(0.2))


def test_the_token_itself_counts_where_the_list_lacks_it() -> None:
    (choice,) = completion_of("No", [token("No", math.log(0.01), {"Yes": math.log(0.5)})]).choices
    assert choice.logprob_no == pytest.approx(math.log(0.01))
    # And once only where the list has it.
    (choice,) = completion_of("No", [token("No", math.log(0.01), {"No": math.log(0.01), "Yes": -1.0})]).choices
    assert choice.logprob_no == pytest.approx(math.log(0.01))


def test_an_answer_outside_the_list_counts_with_its_bound_where_that_is_far_below() -> None:
    # Nothing outside the list is more likely than its last entry, nor than what it leaves, 1 - e^-2e-4 - e^-9 = 8e-5:
    # No has at most e^-9 against e^-2e-4, odds of 8,000.
    (choice,) = completion_of("Yes", [token("Yes", -2e-4, {"Yes": -2e-4, ",": -9.0})]).choices
    assert (choice.logprob_yes, choice.logprob_no) == (-2e-4, -9.0)
    # A list that is cut leaves 1%: No may have all of it, whatever the last entry is.
    assert completion_of("Yes", [token("Yes", -0.01, {"Yes": -0.01, ",": -9.0})]).choices == ()
    # One spelling of an answer without a usable number tells nothing of either answer.
    listed = {"Yes": -0.7, "No": -0.8, " No": math.nan}
    assert completion_of("Yes", [token("Yes", -0.7, listed)]).choices == ()
    # At odds of 150 it may be anything from 0 to 0.7%: nothing is said, and the vote counts.
    assert completion_of("Yes", [token("Yes", -0.01, {"Yes": -0.01, ",": -5.0})]).choices == ()
    # A list with an entry that is no number bounds nothing.
    assert completion_of("Yes", [token("Yes", -0.01, {"Yes": -0.01, ",": -9.0, ".": math.nan})]).choices == ()


UNUSABLE = {
    "nothing listed": token("Yes", -0.1, {}),
    "an answer without a bound": token("Yes", -0.1, {"Yes": -0.1}),
    "the answer absent": token("Yes", -0.1, {",": -0.1, ".": -3.0}),
    "the answer absent though likely": token("Yes", -0.1, {"No": -2.5, ".": -9.0}),
    "no answer listed": token("Yes", -9.5, {",": -0.1, ".": -9.0}),
    "all certain": token("Yes", 0.0, {"Yes": 0.0, "No": 0.0}),
    "more than everything": token("Yes", -0.1, {"Yes": -0.1, "No": -0.2}),
    "no list": token("Yes", -0.1) | {"top_logprobs": None},
}


@pytest.mark.parametrize("unusable", UNUSABLE.values(), ids=UNUSABLE)
def test_logprobs_that_say_nothing_of_the_choice_leave_the_vote(unusable: dict[str, Any]) -> None:
    assert completion_of("Yes", [unusable]).choices == ()


@pytest.mark.parametrize("bad", [None, "x", True, math.nan, [], -math.inf, -9999.0, math.inf, 0.5])
def test_logprobs_that_are_no_numbers_are_not_read(bad: Any) -> None:
    assert completion_of("Yes", [token("Yes", bad, {"Yes": bad})]).choices == ()
    assert completion_of("Yes", [token("Yes", -0.1, {"Yes": -0.1, "No": bad})]).choices == ()
    assert completion_of("Yes", [token("Yes", bad, {"Yes": bad, "No": -3.0})]).choices == ()
    # Rounded above 0: at most certain.
    (choice,) = completion_of("Yes", [token("Yes", bad, {"Yes": 1e-7, "No": -20.0})]).choices
    assert (choice.logprob_yes, choice.logprob_no) == (0.0, -20.0)


@pytest.mark.parametrize(
    ("spelled", "text", "answers"),
    [
        # GPT-2's kind spells each byte as a letter.
        (["Ãĩa", "Ġest", "Ġ", "dÃ©j", "Ãł", "ĊĊ", "Yes"], "Ça est déjà\n\nYes", ("Yes", "ĠNo")),
        (["It", "Ġis", "ĠYes", "<|im_end|>"], "It is Yes", ("ĠYes", "ĠNo")),
        # Sentencepiece's kind spells the space alone, and puts one before the first word.
        (["▁Ça", "▁est", "▁", "déjà", "▁Yes", "</s>"], "Ça est déjà Yes", ("▁Yes", "▁No")),
    ],
)
def test_tokens_spelled_as_in_the_vocabulary(spelled: list[str], text: str, answers: tuple[str, str]) -> None:
    top = [{"token": answers[0], "logprob": -0.1}, {"token": answers[1], "logprob": -2.5}]
    entries = [{"token": piece, "logprob": -0.1, "top_logprobs": top} for piece in spelled]
    (choice,) = completion_of(text, entries).choices
    assert text[choice.start :] == "Yes"
    assert (choice.logprob_yes, choice.logprob_no) == (-0.1, -2.5)


def test_letters_of_the_byte_alphabet_in_plain_tokens_stay_letters() -> None:
    tokens = [{"token": text, "logprob": -0.1} for text in ("Ġgantija", " is")]
    (choice,) = completion_of("Ġgantija is Yes", [*tokens, YES]).choices
    assert choice.start == len("Ġgantija is ")


def test_content_as_a_list_of_parts() -> None:
    parts = [{"type": "text", "text": "It is"}, {"type": "image"}, " ", {"type": "text", "text": "Yes"}]
    choice = {"message": {"content": parts}, "finish_reason": "stop", "logprobs": {"content": [token("It is"), YES]}}
    (completion,) = read_completions({"choices": [choice]}, SAMPLING, 1)
    assert completion.text == "It is Yes"
    assert [choice.start for choice in completion.choices] == [6]
    stream = Stream(VERDICT)
    stream.add({"choices": [{"delta": {"content": parts}, "finish_reason": "stop"}]})
    assert read_completions(stream.whole(), SAMPLING, 1)[0].text == "It is Yes"


def test_an_answer_cut_in_two_tokens_is_no_choice() -> None:
    completion = completion_of(f"{VERDICT.marker} Yes", [token(VERDICT.marker), token(" Y"), token("es")])
    assert completion.choices == ()
    found = read_verdict(completion.text, VERDICT, completion.choices)
    assert found is not None
    assert found[0].yes


def test_offsets_where_characters_span_tokens() -> None:
    first, second = "🙂".encode()[:2], "🙂".encode()[2:]
    tokens = [token("é"), token(first), token(second), token(" Yes", -0.1, {" Yes": -0.1, " No": -2.4})]
    completion = completion_of("é🙂 Yes", tokens)
    # "é", "🙂" and a space are three characters.
    assert [choice.start for choice in completion.choices] == [3]


def test_offsets_where_a_character_never_ends() -> None:
    tokens = [token(b"\xf0\x9f"), token("Yes", -0.1, {"Yes": -0.1, "No": -2.4})]
    assert [choice.start for choice in completion_of("\ufffdYes", tokens).choices] == [1]


YES = token(" Yes", -0.1, {" Yes": -0.1, " No": -2.4})


@pytest.mark.parametrize(
    ("text", "written", "starts"),
    [
        ("It is Yes", ["It", " is", YES], [6]),
        ("It is Yes", ["It", " is", YES, "<|im_end|>"], [6]),
        ("It is Yes", [" ", "It", " is", YES, "\n"], [6]),
        ("It is Yes", ["<think>", YES, "</think>", "It", " is", YES, "</s>"], [6]),
        ("Yes", [YES, " stop", YES], [0]),
        ("It is Yes", ["entirely", " different", YES], []),
        ("", [YES], []),
    ],
)
def test_offsets_where_the_text_is_not_what_the_tokens_spell(
    text: str, written: list[str | dict[str, Any]], starts: list[int]
) -> None:
    tokens = [token(item) if isinstance(item, str) else item for item in written]
    if text == "Yes":
        tokens[0] = token("Yes", -0.1, {"Yes": -0.1, "No": -2.4})
    assert [choice.start for choice in completion_of(text, tokens).choices] == starts


def test_tokens_of_the_reasoning_are_not_those_of_the_text() -> None:
    thought = token("Yes", -0.1, {"Yes": -0.1, "No": -9.0})
    final = token("Yes", -0.5, {"Yes": -0.5, "No": -1.0})
    tokens = [thought, token("</think>"), final, token("<|im_end|>")]
    (choice,) = completion_of("Yes", tokens, reasoning_content="Yes").choices
    assert (choice.start, choice.logprob_no) == (len("<think>\nYes\n</think>\n\n"), -1.0)


@pytest.mark.parametrize(
    ("message", "text"),
    [({"refusal": "I cannot"}, ""), ({"reasoning_content": "hm"}, "<think>\nhm"), ({"reasoning": None}, ""), ({}, "")],
)
def test_an_answer_without_text(message: dict[str, Any], text: str) -> None:
    completion = completion_of(None, [], **message)
    assert (completion.text, completion.choices) == (text, ())


# Thinking


#: Thinking that has a verdict of its own, and the answer, which has another.
THOUGHTS = f"Is it? {VERDICT.marker} No"
APART = f"<think>\n{THOUGHTS}\n</think>\n\n{ANSWER}"


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("name", ["reasoning_content", "reasoning", "parts"])
def test_thinking_that_comes_apart_stands_in_front_of_the_text(name: str, streamed: bool) -> None:
    message: dict[str, Any] = {"content": ANSWER, name: THOUGHTS}
    if name == "parts":
        thoughts = [{"type": "text", "text": THOUGHTS}]
        message = {"content": [{"type": "thinking", "thinking": thoughts}, {"type": "text", "text": ANSWER}]}
    entries = [*chat_tokens(THOUGHTS, 0.1, 0.85), token("</think>"), *chat_tokens(ANSWER)]
    choice = {"message": message, "finish_reason": "stop", "logprobs": {"content": entries}}
    answer: dict[str, Any] = {"choices": [choice]}
    if streamed:
        stream = Stream()
        for part in ({key: value} for key, value in reversed(message.items())):
            stream.add({"choices": [{"delta": part}]})
        stream.add({"choices": [choice | {"message": None}]})
        answer = stream.whole()
    (completion,) = read_completions(answer, SAMPLING, 1)
    assert completion.text == APART
    # The choice of the answer counts, at its place in the whole; that of the thinking has none.
    (found,) = completion.choices
    assert found.start == len(APART) - len("Yes")
    assert found.p_yes == pytest.approx(0.8 / 0.95)


def test_a_verdict_in_streamed_thinking_does_not_end_the_stream() -> None:
    stream = Stream(VERDICT)
    assert not stream.add({"choices": [{"delta": {"reasoning_content": f"{THOUGHTS}. And so on, and on."}}]})
    assert stream.add({"choices": [{"delta": {"content": f"{ANSWER}. And so on, and on."}}]})


THINKS_FIRST = f"{THOUGHTS}. Or not.\n</think>\n\n{ANSWER}"


@pytest.mark.parametrize("streamed", [False, True])
def test_thinking_that_the_template_opened_is_known_once_its_end_was_seen(streamed: bool) -> None:
    cut = chat_answer(THINKS_FIRST[:40], finish_reason="length", completion_tokens=64)
    whole = chat_answer(THINKS_FIRST)

    def setup(server: Server) -> None:
        # The first answer is cut off amid the thinking: it is asked for more.
        texts = {4: ("Hm, one", "length"), 1024: ("Hm, one word.\n</think>\n\nYes", "stop")}

        def probe(request: Request) -> Reply:
            text, reason = texts[request.body["max_tokens"]]
            return Reply(chat_answer(text, finish_reason=reason, logprobs=request.body))

        server.probe = probe

    async def use(server: Server, engine: OpenAIEngine) -> None:
        assert [probe.body["max_tokens"] for probe in server.probes][:2] == [4, 1024]
        completion = await generate(server, engine)
        assert completion.text == f"<think>\n{THINKS_FIRST[:40]}"
        # A lone end is left as it is.
        assert (await generate(server, engine)).text == THINKS_FIRST

    async def stream(request: Request, writer: asyncio.StreamWriter) -> Reply | None:
        text, reason = (THINKS_FIRST[:40], "length") if not bodies else (THINKS_FIRST, "stop")
        bodies.append(text)
        pieces = [{"choices": [{"delta": {"content": piece}}]} for piece in tokens_of(text)]
        pieces.append({"choices": [{"delta": {}, "finish_reason": reason}]})
        body = "".join(f"data: {json.dumps(piece)}\n\n" for piece in pieces)
        return Reply(f"{body}data: [DONE]\n\n".encode(), headers={"content-type": "text/event-stream"})

    bodies: list[str] = []
    answers = stream if streamed else playing(Reply(cut), Reply(whole))
    with_server(answers, use, setup=setup, stream=streamed, top_logprobs=0)


def test_a_text_that_opens_its_thinking_itself_teaches_nothing() -> None:
    whole = chat_answer(f"<think>\n{THINKS_FIRST}")
    cut = chat_answer("It adds", finish_reason="length", completion_tokens=64)

    async def use(server: Server, engine: OpenAIEngine) -> None:
        assert (await generate(server, engine)).text == f"<think>\n{THINKS_FIRST}"
        assert (await generate(server, engine)).text == "It adds"

    with_server(playing(Reply(whole), Reply(cut)), use)


@pytest.mark.parametrize(
    ("said", "means"),
    [("eos", "stop"), ("max_tokens", "length"), ("content_filter", "content_filter"), (None, "unknown"), (5, "5")],
)
def test_finish_reasons(said: Any, means: str) -> None:
    answer = {"choices": [{"message": {"content": "x"}, "finish_reason": said}], "usage": {"completion_tokens": 64}}
    assert read_completions(answer, SAMPLING, 1)[0].finish_reason == means


def test_tokens_are_counted_without_usage() -> None:
    answer = chat_answer("one two three", logprobs={"logprobs": True})
    del answer["usage"]
    assert read_completions(answer, SAMPLING, 1)[0].num_tokens == 3
    # With nothing to count, four bytes are taken for a token: 13 bytes, 4 tokens.
    del answer["choices"][0]["logprobs"]
    assert read_completions(answer, SAMPLING, 1)[0].num_tokens == 4


def test_half_a_surrogate_pair_does_not_reach_any_file() -> None:
    text = completion_of(json.loads('"a\\ud83d b"'), []).text
    assert text == "a? b"
    text.encode()


@settings(deadline=None)
@given(
    st.lists(st.text(st.characters(codec="utf-8"), min_size=1), min_size=0, max_size=8),
    st.booleans(),
    st.integers(1, 5),
    st.sampled_from(["", "<|im_end|>", "\n"]),
)
def test_offsets_point_at_the_answer_whatever_stands_around_it(
    words: list[str], space: bool, cut: int, end: str
) -> None:
    """Any text before the answer, cut into pieces of any number of bytes: the choice stands where the answer does."""
    before = " ".join(words)
    answer = " Yes" if space else "Yes"
    text = before + answer
    raw = before.encode()
    pieces = [token(raw[start : start + cut]) for start in range(0, len(raw), cut)]
    last = token(answer, -0.2, {answer: -0.2, answer.replace("Yes", "No"): -1.7})
    completion = completion_of(text, [*pieces, last, *([token(end)] if end else [])])
    assert completion.choices
    assert completion.choices[-1].start == len(before) + space
    assert text[completion.choices[-1].start :] == "Yes"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None)
@given(st.data())
def test_garbage_in_any_place_is_transient_or_a_completion(data: st.DataObject) -> None:
    """One value anywhere in a good answer is replaced by anything: never another exception than the retried one."""
    answer = chat_answer(ANSWER, "Yes", logprobs={"logprobs": True})
    place: Any = answer
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        key = data.draw(st.sampled_from(keys))
        if not isinstance(place[key], dict | list) or not place[key] or data.draw(st.booleans()):
            place[key] = data.draw(JSON)
            break
        place = place[key]
    try:
        completions = read_completions(answer, SAMPLING, 2)
    except Transient:
        return
    for completion in completions:
        assert isinstance(completion.text, str)
        assert completion.num_tokens >= 0
        for choice in completion.choices:
            assert 0.0 <= choice.p_yes <= 1.0


@settings(deadline=None)
@given(st.lists(st.dictionaries(st.sampled_from(["choices", "usage", "error"]), JSON), max_size=3), st.data())
def test_garbage_in_a_stream_is_transient_or_a_completion(garbage: list[dict[str, Any]], data: st.DataObject) -> None:
    lines = [json.loads(line[6:]) for line in events(ANSWER, logprobs={"logprobs": True}).splitlines() if b"{" in line]
    for event in garbage:
        lines.insert(data.draw(st.integers(0, len(lines))), event)
    choice = {"index": 0, "delta": {"content": "x"}, "finish_reason": None}
    lines.insert(data.draw(st.integers(0, len(lines))), {"choices": [choice]})
    choice[data.draw(st.sampled_from(["index", "delta", "finish_reason", "logprobs", "text"]))] = data.draw(JSON)
    stream = Stream(VERDICT)
    try:
        for event in lines:
            stream.add(event)
        (completion,) = read_completions(stream.whole(), SAMPLING, 1)
    except Transient:
        return
    assert completion.num_tokens >= 0
