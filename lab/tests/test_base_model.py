"""The base model: its tokenizer, what it reads, and a training that is killed and resumed."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rprm.errors import InputError
from rprm.prompts import carried_policy_template, load_policy_template
from rprm_lab.base_model import BaseCallbacks, BaseSettings, make_tokenizer, train_base
from rprm_lab.stories import tell
from rprm_lab.teacher import NOT_SAME, SAME
from rprm_lab.texts import document
from rprm_lab.world import WIDE, WorldSettings, held_out_problems

pytest.importorskip("transformers")
pytestmark = pytest.mark.slow

WORLD = WorldSettings(num_train=20, num_test=10)
TINY = BaseSettings(
    hidden_size=32, num_layers=1, num_heads=1, intermediate_size=64, num_steps=8, batch_size=2, row_tokens=128,
    precision="fp32", save_steps=3,
)  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return make_tokenizer()


def test_every_digit_is_a_token_and_every_text_comes_back(tokenizer: Any) -> None:
    assert tokenizer.convert_ids_to_tokens(tokenizer.encode("386*7=2702")) == list("386*7=2702")
    for text in ("Mia has 15 more marbles.\n", "  twice  \n\n blanks ", "Ünïcode ✗ 日本", "", "<|end|> is the end"):
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_words_of_the_world_are_tokens(tokenizer: Any) -> None:
    rng = random.Random(3)
    for unseen in (False, True):
        problem = tell(rng, num_steps=3, unseen=unseen).problem
        # A word, a digit or a sign each, and a space before each number.
        num_pieces = sum(len(word) if word.strip(".,").isdigit() else 1 for word in problem.split(" "))
        assert len(tokenizer.encode(problem)) <= 1.6 * num_pieces + problem.count(".")


def test_documents_of_a_wide_world_tell_its_stories() -> None:
    def solutions(*difficulty: Any) -> list[str]:
        rng = random.Random(0)
        documents = ["".join(piece.text for piece in document(rng, frozenset(), *difficulty)) for _ in range(200)]
        return [text for text in documents if text.startswith("Problem: ") and "\nSolution:\n" in text]

    narrow, wide = solutions(), solutions(WIDE)
    assert not any(re.search(r"\d{4}", text) for text in narrow)
    assert any(re.search(r"\d{4}", text) for text in wide)
    # 3.25 calculations on average in place of 2.5.
    longer, usual = (sum(text.count("\n") for text in texts) / len(texts) for texts in (wide, narrow))
    assert longer > usual


def test_documents_tell_no_problem_that_is_measured() -> None:
    held_out = held_out_problems(WORLD)
    rng = random.Random(0)
    # Found out by holding all of them back: the same stream then tells others.
    documents = ["".join(piece.text for piece in document(rng, frozenset())) for _ in range(50)]
    told = {text.split("\n")[0].removeprefix("Problem: ") for text in documents if text.startswith("Problem: ")}
    again = random.Random(0)
    others = ["".join(piece.text for piece in document(again, held_out | told)) for _ in range(50)]
    assert told
    assert not told & {text.split("\n")[0].removeprefix("Problem: ") for text in others}


def test_what_cannot_be_known_is_not_learnt() -> None:
    rng = random.Random(1)
    kinds = set()
    for _ in range(50):
        pieces = document(rng, frozenset())
        given, learnt = pieces[::2], pieces[1::2]
        assert [piece.learnt for piece in given] == [False] * len(learnt)
        assert all(piece.learnt for piece in learnt)
        kinds.add("problem" if pieces[0].text.startswith("Problem: ") else "arithmetic")
        for before, after in zip(given, learnt, strict=True):
            # A problem with what is asked, the numbers of a calculation, what is compared; then what follows.
            assert re.search(r"(Solution:\n|Explained:\n|Describe step \d\.\n|:| =|\.)$", before.text)
            assert after.text.endswith("\n")
    assert kinds == {"problem", "arithmetic"}


def test_nothing_is_judged() -> None:
    rng = random.Random(2)
    texts = ["".join(piece.text for piece in document(rng, frozenset())) for _ in range(300)]
    described = [text for text in texts if "Describe step" in text]
    assert len(described) > 50
    for text in described:
        assert SAME not in text
        assert NOT_SAME not in text
        assert "Conclusion" not in text
    assert not [text for text in texts if "correct" in text or "wrong" in text]


def test_comparisons_are_right() -> None:
    rng = random.Random(3)
    lines = [line for _ in range(200) for line in "".join(p.text for p in document(rng, frozenset())).split("\n")]
    seen = {True: 0, False: 0}
    for line in lines:
        compared = re.search(
            r"(?:^This takes|^That is|: (?:.*, )?|^The problem says:) ?(.+?)\. The \w+ \w+:? (.+)\. That", line
        )
        if line.endswith((SAME, NOT_SAME)):
            assert compared is not None, line
            first, second = (text.rpartition(", ")[2] if "=" in text else text for text in compared.groups())
            # Sums and products are the same with their sides exchanged.
            equal = first == second or (
                first.split(" ")[::-1] == second.split(" ") and first.split(" ")[1] in "+*" if " " in first else False
            )
            assert line.endswith(SAME) == equal, line
            seen[equal] += 1
    assert min(seen.values()) > 50


def test_copies_are_what_the_text_says_of_the_cue() -> None:
    rng = random.Random(4)
    num_copies, words = 0, set[str]()
    for _ in range(2000):
        text = "".join(piece.text for piece in document(rng, frozenset()))
        if not text.startswith("Text: "):
            continue
        first, *copies = text.rstrip("\n").split("\n")
        sentences = first.removeprefix("Text: ").removesuffix(".").split(". ")
        for line in copies:
            cue, copy = line.removeprefix("About ").removesuffix(".").split(": The text says: ")
            assert [sentence for sentence in sentences if cue in (sentence, *sentence.split(" "))] == [copy]
            num_copies += 1
        words.update(first.split(" "))
    assert num_copies > 40
    # Words are known that no wording of the training problems has.
    assert words >= {"postcards", "Priya", "puzzles"}


@pytest.mark.slow
def test_a_training_starts_from_another(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    first = train_base(tmp_path / "first", world=WORLD, settings=TINY, callbacks=BaseCallbacks())
    still = replace(TINY, learning_rate=0.0, adam_learning_rate=0.0, num_steps=2)
    second = train_base(tmp_path / "second", world=WORLD, settings=still, start=first, callbacks=BaseCallbacks())
    weights, again = (load_file(model / "model.safetensors") for model in (first, second))
    assert weights.keys() == again.keys()
    assert all(weights[name].equal(again[name]) for name in weights)


def test_nothing_to_start_from(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere holds no model to start from"):
        train_base(tmp_path / "run", world=WORLD, settings=TINY, start=tmp_path / "nowhere", callbacks=BaseCallbacks())
    assert not (tmp_path / "run").exists()


class Killed(Exception):
    pass


@pytest.mark.slow
def test_a_killed_training_ends_as_an_undisturbed_one(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    def kill(row: Mapping[str, Any]) -> None:
        if row["step"] == 6:
            raise Killed

    whole = train_base(tmp_path / "whole", world=WORLD, settings=TINY, callbacks=BaseCallbacks())
    with pytest.raises(Killed):
        train_base(tmp_path / "killed", world=WORLD, settings=TINY, callbacks=BaseCallbacks(on_metrics=kill))
    notes: list[str] = []
    resumed = train_base(tmp_path / "killed", world=WORLD, settings=TINY, callbacks=BaseCallbacks(on_note=notes.append))
    assert notes == ["resumed from step 3"]
    first, second = load_file(whole / "model.safetensors"), load_file(resumed / "model.safetensors")
    assert first.keys() == second.keys()
    assert all((first[name] - second[name]).abs().max() < 1e-6 for name in first)
    summary = json.loads((tmp_path / "killed" / "summary.json").read_text())
    assert summary["num_tokens"] == 8 * 2 * 128
    # A policy as it stands.
    carried = carried_policy_template(f"transformers:{resumed}")
    assert carried is not None
    assert load_policy_template(carried).render("1?").text == "Problem: 1?\nSolution:\n"
    # What is complete is not trained again.
    assert train_base(tmp_path / "whole", world=WORLD, settings=TINY, callbacks=BaseCallbacks(on_metrics=kill)) == whole
