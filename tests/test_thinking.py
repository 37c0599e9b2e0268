"""Where a reply stops thinking."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rprm.thinking import after_thinking, answer_parts, without_thinking


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("", ""),
        ("No thinking.", "No thinking."),
        ("<think>\nhm\n</think>\n\nx", "\n\nx"),
        ("\n <think></think>x", "x"),
        ("<THINK>a</THINK>x", "x"),
        ("<thinking>a</thinking>x", "x"),
        ("[THINK]a[/THINK]x", "x"),
        ("<|begin_of_thought|>a<|end_of_thought|>x", "x"),
        ("◁think▷a◁/think▷x", "x"),
        # The prompt opened it.
        ("a\n</think>x", "x"),
        # Of several blocks, what follows the last; of several tags that close one, too: the others may be mentioned.
        ("<think>a</think>\n<think>b</think>x", "x"),
        ("Sure.\n<think>a</think>x", "x"),
        ("<think>a</think>x</think>y", "y"),
        ("a</think>x</think>y", "y"),
        ("<think>a <think>b</think> c</think>x", "x"),
        # In the middle of a line a tag is only mentioned.
        ("The tag <think> opens it.", "The tag <think> opens it."),
        ("The tags <think> and </think>.", "The tags <think> and </think>."),
        ("<think>a</think>x <think>b</think>y", "x <think>b</think>y"),
        ("The tag <think>\nopens.</think>x", "x"),
        # Never finished.
        ("<think>a", None),
        ("<think>", None),
        ("<think>a</think>x\n<think>b", None),
        ("Sure.\n<think>\na", None),
    ],
)
def test_the_answer_is_what_follows_the_thinking(text: str, answer: str | None) -> None:
    begin = after_thinking(text)
    assert (None if begin is None else text[begin:]) == answer
    assert without_thinking(text) == (answer or "")


def test_what_stands_before_a_later_block_of_thinking_is_a_part_too() -> None:
    text = "a\n<think>b</think>c\n<think>d"
    assert [text[start:end] for start, end in answer_parts(text)] == ["a\n", "c\n"]


def test_the_last_tag_ends_thinking() -> None:
    text = "<think>a</think>b</think>c"
    assert [text[start:end] for start, end in answer_parts(text)] == ["c"]
    assert list(answer_parts("b</think>c</think>d")) == [(18, 19)]


@given(st.lists(st.sampled_from(["<think>", "</think>", "\n", "x", " "]), max_size=12).map("".join))
def test_parts_are_in_order_and_end_with_the_answer(text: str) -> None:
    parts = list(answer_parts(text))
    bounds = [bound for part in parts for bound in part]
    assert bounds == sorted(bounds)
    begin = after_thinking(text)
    if begin is not None:
        assert parts[-1] == (begin, len(text))
