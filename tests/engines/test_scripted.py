"""The scripted engine as a policy: solutions without a model."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace

import pytest

from rprm.engines import Completion, Sampling
from rprm.engines.base import clipped
from rprm.engines.scripted import ScriptedEngine, ScriptedReply
from rprm.errors import RequestRefused
from rprm.prompts import load_policy_template
from rprm.prompts.template import Message, Prompt
from rprm.verdict import VerdictFormat

TEMPLATE = load_policy_template()
STEP = Sampling(stop=("\n\n",))


def generate(prompt: Prompt, sampling: Sampling, engine: ScriptedEngine | None = None) -> Completion:
    return asyncio.run((engine or ScriptedEngine()).generate(prompt, sampling))


def answer_of(text: str) -> str:
    assert text.count("\\boxed{") == 1
    return text.partition("\\boxed{")[2].partition("}")[0]


def test_whole_solutions_end_in_an_answer_that_most_of_them_share() -> None:
    votes: Counter[str] = Counter()
    for seed in range(100):
        completion = generate(TEMPLATE.render("How many?"), Sampling(seed=seed))
        steps = completion.text.split("\n\n")
        assert 2 <= len(steps) <= 4
        assert "\\boxed{" in steps[-1]
        assert (completion.finish_reason, completion.ended) == ("stop", True)
        votes[answer_of(completion.text)] += 1
    # Three of five have the first answer, one of five each of the others: 60 of 100, give or take 5.
    assert len(votes) == 3
    assert votes.most_common()[0][1] > 40
    texts = {generate(TEMPLATE.render("How many?"), Sampling(seed=1)).text for _ in range(2)}
    texts.add(generate(TEMPLATE.render("How many?"), Sampling(seed=2)).text)
    texts.add(generate(TEMPLATE.render("How few?"), Sampling(seed=1)).text)
    assert len(texts) == 3


def test_steps_follow_those_that_are_there_until_one_ends_the_solution() -> None:
    votes: Counter[str] = Counter()
    lengths: Counter[int] = Counter()
    for seed in range(100):
        steps: list[str] = []
        ended: bool | None = False
        while not ended:
            completion = generate(TEMPLATE.render("How many?", steps), replace(STEP, seed=seed))
            assert completion.text.startswith(f"Step {len(steps) + 1}: ")
            assert "\n" not in completion.text
            steps.append(completion.text)
            ended = completion.ended
            assert ended == ("\\boxed{" in completion.text)
        votes[answer_of("".join(steps))] += 1
        lengths[len(steps)] += 1
    assert set(lengths) == {2, 3, 4}
    # The answers are those of whole solutions.
    whole = {answer_of(generate(TEMPLATE.render("How many?"), Sampling(seed=seed)).text) for seed in range(100)}
    assert set(votes) == whole


def test_a_script_says_whether_the_model_ended() -> None:
    def reply(prompt: Prompt, sampling: Sampling) -> ScriptedReply:
        return ScriptedReply(f"After {prompt.reply!r}.", None, 3, ended=None if prompt.reply else False)

    engine = ScriptedEngine(reply=reply)
    first = generate(TEMPLATE.render("p"), STEP, engine)
    assert (first.text, first.finish_reason, first.ended) == ("After ''.", "stop", False)
    assert generate(TEMPLATE.render("p", ["One."]), STEP, engine).ended is None
    assert ScriptedReply("x", None, 1).ended is True
    # An analysis that is ended at its verdict is not ended by the model.
    judged = generate(TEMPLATE.render("p"), Sampling(verdict=VerdictFormat(), seed=1))
    assert (judged.finish_reason, judged.ended) == ("verdict", False)


def test_the_reply_counts_as_part_of_the_prompt() -> None:
    prompt = TEMPLATE.render("p")
    begun = replace(prompt, reply="One two three.\n\n")
    counts = [generate(each, STEP).num_prompt_tokens for each in (prompt, begun)]
    assert counts[1] == (counts[0] or 0) + 3
    # Three words more leave seven tokens, of ten that were asked for.
    with pytest.raises(RequestRefused, match=f"has {counts[1]} tokens, which leaves 7 "):
        generate(begun, Sampling(max_tokens=10), ScriptedEngine(context_length=(counts[0] or 0) + 10))


def test_the_end_of_the_context_ends_the_completion() -> None:
    prompt = Prompt((Message("user", "one two three"),))

    def reply(prompt: Prompt, sampling: Sampling) -> ScriptedReply:
        return ScriptedReply("word " * 99 + "word", 0.9, 100)

    sampling = Sampling(max_tokens=4096, verdict=VerdictFormat(), seed=1)
    # 3 and 100 fit into 103; into 102 they do not, and the verdict at the end is lost.
    whole = generate(prompt, sampling, ScriptedEngine(reply=reply, context_length=103))
    assert (whole.finish_reason, whole.num_tokens, len(whole.choices)) == ("verdict", 100, 1)
    cut = generate(prompt, sampling, ScriptedEngine(reply=reply, context_length=102))
    assert (cut.finish_reason, cut.num_tokens, cut.choices, cut.ended) == ("length", 99, (), False)
    assert cut.text.split() == ["word"] * 99


@pytest.mark.parametrize(
    ("num_prompt_tokens", "max_tokens", "room"),
    [(1000, 4096, 3096), (0, 4096, 4096), (1000, 4097, 3096), (1000, 10, 10), (4032, 4096, 64), (4086, 10, 10)],
)
def test_what_the_context_leaves(num_prompt_tokens: int, max_tokens: int, room: int) -> None:
    assert clipped(num_prompt_tokens, max_tokens, 4096) == room


@pytest.mark.parametrize(
    ("num_prompt_tokens", "max_tokens", "left"), [(4033, 4096, 63), (4033, 64, 63), (4087, 10, 9), (5000, 1, 0)]
)
def test_what_leaves_too_little_is_refused(num_prompt_tokens: int, max_tokens: int, left: int) -> None:
    with pytest.raises(RequestRefused, match=f"has {num_prompt_tokens} tokens, which leaves {left} .* 4096") as caught:
        clipped(num_prompt_tokens, max_tokens, 4096)
    assert "context_length=" in str(caught.value)
