"""The policy: whole solutions, and step by step."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

import pytest

from rprm.engines import Sampling
from rprm.engines.scripted import ScriptedEngine, ScriptedReply
from rprm.errors import Unsupported
from rprm.ledger import Ledger
from rprm.prompts import PolicyTemplate, Prompt
from rprm.search.candidates import Continuation, Policy

BASE = PolicyTemplate(name="base", user="Q: {{problem}}\nA:\n", chat=False, stop="Q:")


def policy(
    reply: Callable[[Prompt, Sampling], ScriptedReply], template: PolicyTemplate = BASE
) -> tuple[Policy, ScriptedEngine]:
    engine = ScriptedEngine(reply=reply)
    return Policy(engine, template, Sampling(0.7, 0.95, 2048, seed=1), step_tokens=32), engine


def test_a_step_is_asked_for_after_the_steps_before_it() -> None:
    asked: list[tuple[str, Sampling]] = []

    def reply(prompt: Prompt, sampling: Sampling) -> ScriptedReply:
        asked.append((prompt.text, sampling))
        return ScriptedReply(" b \n", None, 3, ended=False)

    writer, engine = policy(reply)
    pieces: dict[str, object] = {}
    ledger = Ledger(pieces.__setitem__, pieces)
    step = asyncio.run(writer.next_step("1?", ("a",), 0, ledger))
    assert step == Continuation(text="b", num_tokens=3, ended=False, finish_reason="stop")
    ((text, sampling),) = asked
    assert text == "Q: 1?\nA:\na\n\n"
    assert (sampling.stop, sampling.max_tokens, sampling.temperature) == (("\n\n", "Q:"), 32, 0.7)
    # What is paid for is not asked for again; another sample is, with another seed.
    assert asyncio.run(writer.next_step("1?", ("a",), 0, ledger)) == step
    assert engine.num_requests == 1
    asyncio.run(writer.next_step("1?", ("a",), 1, ledger))
    assert asked[0][1].seed != asked[1][1].seed


def test_a_base_model_ends_where_it_begins_the_next_problem() -> None:
    def nothing(prompt: Prompt, sampling: Sampling) -> ScriptedReply:
        return ScriptedReply("", None, 1, ended=False)

    writer, _ = policy(nothing)
    assert asyncio.run(writer.next_step("1?", ("a",), 0)).ended is True
    # A model that knows an end has only left a blank line more.
    chat, _ = policy(nothing, PolicyTemplate(name="chat", user="{{problem}}"))
    assert asyncio.run(chat.next_step("1?", ("a",), 0)).ended is False


def test_a_solution_is_cut_into_steps_as_the_judge_cuts_it() -> None:
    writer, _ = policy(lambda prompt, sampling: ScriptedReply("a\nb\n\nc", None, 5))
    candidate = asyncio.run(writer.solve("1?", 0))
    assert candidate.text == "a\nb\n\nc"
    assert candidate.steps == ("a\nb", "c")
    assert (candidate.num_tokens, candidate.finish_reason) == (5, "stop")


def test_an_engine_that_cannot_continue_a_reply_is_refused_before_any_work() -> None:
    class Chat(ScriptedEngine):
        async def start(self, *, chat: bool = True) -> object:  # type: ignore[override]
            from dataclasses import replace

            return replace(await super().start(), continues_replies=False)

    chat = PolicyTemplate(name="chat", user="{{problem}}")
    writer = Policy(Chat("openai:m"), chat, Sampling())
    with pytest.raises(Unsupported, match="continue_final_message=true"):
        asyncio.run(writer.start(stepwise=True))
    # Whole solutions need no such thing, nor does a prompt that is continued as it stands.
    asyncio.run(writer.start())
    asyncio.run(Policy(Chat("openai:m"), BASE, Sampling()).start(stepwise=True))


def test_what_a_policy_thinks_is_no_step_and_no_part_of_the_solution_it_is_given_back() -> None:
    writer, _ = policy(lambda prompt, sampling: ScriptedReply("<think>\na?\n</think>\n\nSo b.", None, 9, ended=False))
    step = asyncio.run(writer.next_step("1?", ("a",), 0))
    assert (step.text, step.num_tokens, step.ended) == ("So b.", 9, False)
    candidate = asyncio.run(writer.solve("1?", 0))
    assert candidate.steps == ("So b.",)
    # The text is kept as it was written: its answer is looked for after the thinking.
    assert candidate.text.startswith("<think>")


def test_steps_of_its_thinking_are_steps_where_they_are_asked_for() -> None:
    """The prompt continues what was thought, tag and all; nothing ends before the thinking does."""
    asked: list[str] = []

    def reply(prompt: Prompt, sampling: Sampling) -> ScriptedReply:
        asked.append(prompt.reply)
        text = "So 3.\n</think>\n\nThe answer is 3." if prompt.reply else "<think>\nWhat is 1 + 2?"
        return ScriptedReply(text, None, 9, ended=True)

    writer = replace(policy(reply)[0], thinking_steps=True)
    first = asyncio.run(writer.next_step("1?", (), 0))
    assert (first.text, first.ended) == ("<think>\nWhat is 1 + 2?", False)
    second = asyncio.run(writer.next_step("1?", (first.text,), 0))
    assert (second.text, second.ended) == ("So 3.\n</think>\n\nThe answer is 3.", True)
    assert asked == ["", "<think>\nWhat is 1 + 2?\n\n"]
    # The rest of a solution that is begun: all of it is the candidate, and the rest alone is paid for.
    candidate = asyncio.run(writer.solve("1?", 0, begun=(first.text,)))
    assert candidate.text == f"{first.text}\n\n{second.text}"
    assert candidate.num_tokens == 9
    assert asyncio.run(writer.start(stepwise=True))["thinking_steps"] is True


@pytest.mark.parametrize("ended", [True, False, None])
def test_a_policy_that_is_cut_off_in_its_thinking_wrote_nothing_and_ended_nothing(ended: bool | None) -> None:
    reply = ScriptedReply("<think>\nSo \\boxed{3}", None, 9, ended=ended)
    writer, _ = policy(lambda prompt, sampling: reply)
    step = asyncio.run(writer.next_step("1?", ("a",), 0))
    assert (step.text, step.ended) == ("", False)
    assert asyncio.run(writer.solve("1?", 0)).steps == ()
