"""The scripted engine as a policy: solutions without a model."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace

import pytest

from rprm.engines import Completion, Sampling
from rprm.engines.scripted import ScriptedEngine, ScriptedReply
from rprm.errors import RequestRefused
from rprm.prompts import load_policy_template
from rprm.prompts.template import Prompt
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
    with pytest.raises(RequestRefused, match=f"has {counts[1]} tokens"):
        generate(begun, Sampling(max_tokens=10), ScriptedEngine(context_length=(counts[0] or 0) + 10))
