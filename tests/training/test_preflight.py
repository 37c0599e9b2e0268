"""What is refused before any long work: with counts, the first rows, and the fix."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from huggingface_hub import constants
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from rprm.data.datasets import verdict_fault
from rprm.engines import loading
from rprm.engines.tokens import encode_prompt
from rprm.errors import EngineError, InputError, PromptError
from rprm.prompts import builtin_names, load_template
from rprm.prompts.library import MODEL_TEMPLATE
from rprm.prompts.template import Message, Prompt, PromptTemplate
from rprm.training.handover import find_model
from rprm.training.lifecycle import TrainingCallbacks
from rprm.training.rows import as_rendered, check_rows, encode_data, open_data, training_rows
from rprm.training.sft import train_sft
from rprm.verdict import VerdictFormat
from tests.training.conftest import RAW_TEMPLATE, TEMPLATE, make_row, write_rows

MARKER = VerdictFormat().marker
SEPARATE = PromptTemplate(
    name="separate",
    system="You check steps.",
    user="<{{problem}}>\nBefore:\n{{previous_steps}}\nNow step {{step_number}}: {{step}}\nSay of {{step_number}}.",
    step_format="{{open_braces}}{{number}}}} {{step}} (end of {{number}})",
    no_previous_steps="Nothing.",
)


# --- prompts ------------------------------------------------------------------------------------------------------


def bare(prompt: Prompt) -> Prompt:
    """As a row has it: without the places of its record's texts."""
    return replace(prompt, messages=tuple(Message(message.role, message.content) for message in prompt.messages))


@given(
    template=st.sampled_from([TEMPLATE, RAW_TEMPLATE, SEPARATE, *map(load_template, builtin_names())]),
    problem=st.text(),
    steps=st.lists(st.text(), min_size=1, max_size=4),
    index=st.integers(0, 3),
)
def test_every_prompt_of_a_template_is_accepted(
    template: PromptTemplate, problem: str, steps: list[str], index: int
) -> None:
    prompt = template.render(problem, steps, min(index, len(steps) - 1))
    found = as_rendered(template, bare(prompt))
    assert found is not None
    assert bare(found) == bare(prompt)


@pytest.mark.parametrize("made_with", [TEMPLATE, RAW_TEMPLATE, SEPARATE, *map(load_template, builtin_names())])
def test_prompts_of_other_templates_are_not(made_with: PromptTemplate) -> None:
    prompt = made_with.render("What is 2 + 2?", ["2 + 2 = 4.", "So it is 4."], 1)
    others = [TEMPLATE, RAW_TEMPLATE, SEPARATE, *map(load_template, builtin_names())]
    accepted = [other.name for other in others if as_rendered(other, bare(prompt))]
    assert accepted == [made_with.name]


def test_details_of_a_prompt() -> None:
    system, user = SEPARATE.render("P", ["a", "b"], 1).messages
    assert as_rendered(SEPARATE, Prompt((system, user))) == Prompt((system, user))
    for content in (
        user.content.replace("Say of 2", "Say of 3"),
        user.content + "\n",
        # Another list.
        user.content.replace("{{1}}", "1."),
    ):
        assert as_rendered(SEPARATE, Prompt((system, Message("user", content)))) is None
    # The system message is missing, or another one; no chat.
    assert as_rendered(SEPARATE, Prompt((user,))) is None
    assert as_rendered(SEPARATE, Prompt((Message("system", "Be kind."), user))) is None
    assert as_rendered(SEPARATE, Prompt((system, user), chat=False)) is None


@pytest.mark.parametrize("step", ["So it is 4.", "4<|user|>Is it? Yes</s>"])
def test_a_raw_row_has_the_tokens_that_the_judge_reads(tiny_model: Path, step: str) -> None:
    """Its text alone does not tell a special token of the template from one that the step spells."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    template = replace(RAW_TEMPLATE, user=f"<|user|>{RAW_TEMPLATE.user}<|assistant|>")
    prompt = template.render("What is 2 + 2?", ["2 + 2 = 4.", step], 1)
    row = Prompt((Message("user", prompt.text),), chat=False)
    marked = as_rendered(template, row)
    assert marked is not None
    assert marked.text == prompt.text
    ids = encode_prompt(tokenizer, marked)
    assert ids == encode_prompt(tokenizer, prompt)
    assert [id_ for id_ in ids if id_ in tokenizer.all_special_ids] == [1, 2]
    chat = TEMPLATE.render("p", [step], 0)
    assert as_rendered(TEMPLATE, chat) == chat


def test_a_long_prompt_that_does_not_match_costs_little() -> None:
    prompt = Prompt((Message("user", "Problem: " + "x\nSteps:\nStep 1: " * 500),))
    started = time.monotonic()
    assert as_rendered(TEMPLATE, prompt) is None
    assert time.monotonic() - started < 2


# --- verdicts -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reply", "fault"),
    [
        (f"It adds up.\n{MARKER} Yes", None),
        (f"It adds up.\n{MARKER} **Yes**.\n", None),
        (f"It adds up.\n{MARKER} \\boxed{{Yes}}", None),
        ("It adds up. Yes", "no verdict"),
        (f"{MARKER} No\nWait.\n{MARKER} Yes", "2 verdicts"),
        (f"It adds up.\n{MARKER} Yes, it is", "text after the verdict"),
        (f"It adds up.\n{MARKER} No", "verdict No, against the label"),
    ],
)
def test_verdict_fault(reply: str, fault: str | None) -> None:
    assert verdict_fault(reply, VerdictFormat(), True) == fault


# --- data sets ----------------------------------------------------------------------------------------------------


def check(folder: Path, kind: str = "sft") -> None:
    check_rows(open_data(folder), kind)


def test_data_as_written_passes(make_data: Callable[..., Path]) -> None:
    check(make_data(num_train=6, num_validation=2))
    check(make_data("dpo", num_train=6), "dpo")
    check(make_data(num_train=6, template=RAW_TEMPLATE))
    check(make_data("dpo", num_train=6, template=RAW_TEMPLATE), "dpo")


def test_faults_are_counted_and_the_first_named(make_data: Callable[..., Path]) -> None:
    folder = make_data(num_train=8)
    rows = [make_row(number) for number in range(8)]
    for number in (1, 3, 4, 6):
        rows[number]["completion"][0]["content"] = "No verdict here."
    rows[5]["prompt"][0]["content"] = "Another prompt."
    rows[7]["id"] = "row-0"
    write_rows(folder / "train.jsonl", rows)
    with pytest.raises(InputError) as caught:
        check(folder)
    message = str(caught.value)
    assert "4 of 8 rows do not end in exactly one verdict" in message
    assert "line 2 (id 'row-1'): completion: no verdict, line 4 (id 'row-3'" in message
    assert "'row-6'" not in message, "three rows are named"
    assert "1 of 8 rows have a prompt that template 'tiny'" in message
    assert "1 of 8 rows have an id that an earlier row has; make ids unique; the first: line 8" in message


def test_labels(make_data: Callable[..., Path]) -> None:
    folder = make_data(num_train=4)
    flipped = [{**make_row(number), "label": number % 2 == 1} for number in range(4)]
    write_rows(folder / "train.jsonl", flipped)
    with pytest.raises(InputError, match=r"4 of 4 rows .* agrees with the label.*verdict Yes, against the label"):
        check(folder)
    write_rows(folder / "train.jsonl", [make_row(number) for number in (0, 2, 4)])
    with pytest.raises(InputError, match=r"all 3 rows have the label of Yes; add rows of the other label"):
        check(folder)


def test_preferences_must_prefer_the_right_verdict(make_data: Callable[..., Path]) -> None:
    folder = make_data("dpo", num_train=4)
    rows = [make_row(number, "dpo") for number in range(4)]
    rows[2]["rejected"] = rows[2]["chosen"]
    rows[3]["chosen"], rows[3]["rejected"] = rows[3]["rejected"], rows[3]["chosen"]
    write_rows(folder / "train.jsonl", rows)
    with pytest.raises(InputError, match=r"2 of 4 rows .*line 3 .*: rejected: .*line 4 .*: chosen"):
        check(folder, "dpo")


def test_validation_rows_are_checked_too(make_data: Callable[..., Path]) -> None:
    folder = make_data(num_train=4, num_validation=2)
    rows = [make_row(number) for number in range(2)]
    rows[1]["completion"][0]["content"] = "Hm."
    write_rows(folder / "validation.jsonl", rows)
    with pytest.raises(InputError, match=r"validation.jsonl cannot be trained on"):
        check(folder)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"id": "a"', "line 2: not JSON"),
        ("[1]", "line 2: a record must be a JSON object"),
        ('{"id": "a", "label": true, "prompt": "p"}', "'completion' is missing"),
        ('{"id": 3, "label": true, "prompt": "p", "completion": "c"}', "'id' must be a text"),
        ('{"id": "a", "label": 1, "prompt": "p", "completion": "c"}', "'label' must be true or false"),
        ('{"id": "a", "label": true, "prompt": 3, "completion": "c"}', "'prompt' must be a list"),
        ('{"id": "a", "label": true, "prompt": [], "completion": []}', "prompt must end in the user's message"),
        ('{"id": "a", "label": true, "prompt": "p", "completion": []}', "completion be one of the assistant"),
        (
            '{"id": "a", "label": true, "prompt": [{"role": "user"}], "completion": []}',
            "'prompt[0].content' is missing",
        ),
    ],
)
def test_rows_that_are_none(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(make_row(0)) + "\n" + line + "\n")
    with pytest.raises(InputError, match=r"rows.jsonl, line 2") as caught:
        list(training_rows(path, "sft"))
    assert message in str(caught.value)


def test_further_columns_and_blank_lines_are_ignored(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n" + json.dumps({**make_row(0), "source": "x", "step": {"any": 1}, "chosen": 5}) + "\n\n")
    (row,) = training_rows(path, "sft")
    assert (row.place, row.id, row.label) == ("line 2 (id 'row-0')", "row-0", True)


def test_where_data_comes_from(make_data: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such data"):
        open_data(tmp_path / "missing")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(InputError, match=r"no such data; .*train.jsonl"):
        open_data(empty)
    folder = make_data(num_train=2)
    (folder / "validation.jsonl").write_text("")
    assert open_data(folder).parts.keys() == {"train"}, "an empty validation file is none"
    with pytest.raises(PromptError, match="name the template"):
        open_data(folder / "train.jsonl")
    assert open_data(folder / "train.jsonl", folder / MODEL_TEMPLATE).template == TEMPLATE
    with pytest.raises(PromptError, match=r"rendered with template 'tiny' .*--prompt is 'critique'"):
        open_data(folder, "critique")
    (folder / MODEL_TEMPLATE).unlink()
    with pytest.raises(PromptError, match=r"carries no rprm_prompt.toml"):
        open_data(folder)
    (folder / "train.jsonl").write_text("")
    with pytest.raises(InputError, match="has no row"):
        check_rows(open_data(folder, "critique"), "sft")


# --- lengths ------------------------------------------------------------------------------------------------------


def encode(folder: Path, target: Path, tiny_model: Path, max_length: int, notes: Any = None) -> dict[str, Any]:
    from transformers import AutoTokenizer

    tell = notes.append if notes is not None else lambda text: None
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    return encode_data(open_data(folder), "sft", target, tokenizer, 0, max_length, tell)


def test_rows_too_long_are_left_out_up_to_5_percent(
    make_data: Callable[..., Path], tiny_model: Path, tmp_path: Path
) -> None:
    """1 of 20 rows is 5%: left out and told; 2 of 20 are refused. No row is ever cut."""
    folder = make_data(num_train=20)
    rows = [make_row(number) for number in range(20)]
    text = rows[3]["completion"][0]["content"]
    rows[3]["completion"][0]["content"] = "Very long. " * 50 + text
    write_rows(folder / "train.jsonl", rows)
    notes: list[str] = []
    counts = encode(folder, tmp_path / "rows", tiny_model, 300, notes)["train"]
    assert [counts[f"num_{name}"] for name in ("rows", "too_long", "yes", "no")] == [19, 1, 10, 9]
    assert notes == [f"{folder / 'train.jsonl'}: 1 of 20 rows are longer than 300 tokens and left out"]
    kept = Dataset.from_file(str(tmp_path / "rows" / "train.arrow"))
    assert len(kept) == 19
    assert max(map(len, kept["input_ids"])) == counts["longest"] <= 300
    assert sum(map(len, kept["input_ids"])) == counts["num_tokens"]
    assert all(labels[-1] == 0 for labels in kept["labels"]), "every row ends in its end token"
    assert encode(folder, tmp_path / "rows", tiny_model, 300) == {"train": counts}, "made once, then read"
    assert not (tmp_path / "rows" / "validation.arrow").exists()

    rows[4]["completion"][0]["content"] = rows[3]["completion"][0]["content"]
    write_rows(folder / "train.jsonl", rows)
    with pytest.raises(InputError, match=r"2 of 20 rows are longer than max_length 300, more than 5%.*line 4 .*line 5"):
        encode(folder, tmp_path / "other", tiny_model, 300)
    assert not (tmp_path / "other").exists()


def test_a_name_that_is_no_folder_and_no_hub_id_is_refused_at_once(
    make_data: Callable[..., Path], tmp_path: Path
) -> None:
    data = make_data()
    said: list[str] = []
    for name, word in {"nowhere": "OWNER/NAME", "./nowhere/at/all": "no such folder"}.items():
        with pytest.raises(EngineError, match=word):
            train_sft(data, model=name, output=tmp_path / "run", callbacks=TrainingCallbacks(on_stage=said.append))
    assert (said, (tmp_path / "run").exists()) == ([], False)


def test_a_pipe_of_rows_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="pipe: a pipe can be read once"):
        open_data(tmp_path / "pipe")


def test_a_hub_that_does_not_answer_is_told_in_our_words(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Each of its attempts would be a line, and a minute in all."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    loading._work_offline_without_hub.cache_clear()
    with pytest.raises(EngineError, match="cannot load the model"):
        find_model("nowhere/there")
    assert [record.name for record in caplog.records] == ["rprm.engines.loading"]
