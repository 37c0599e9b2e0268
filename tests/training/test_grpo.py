"""GRPO: the exact tokens and advantages trained on, groups that are skipped, the checkpoint kept, and resuming."""

from __future__ import annotations

import asyncio
import json
import math
import os
import re
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rprm.engines.base import Sampling
from rprm.engines.tokens import encode_prompt
from rprm.errors import InputError, PromptError
from rprm.prompts.library import load_template
from rprm.prompts.template import CriticTemplate, PromptTemplate
from rprm.reading import Rejected
from rprm.rewarders import load_rewarder
from rprm.training.grpo import GRPORun, train_grpo
from rprm.training.questions import LabelledSolution, Question, StepAsker, read_solutions
from rprm.training.settings import GRPO_PRESETS, GRPOSettings, SFTSettings
from rprm.training.sft import train_sft
from rprm.verdict import VerdictFormat
from tests.training.conftest import write_rows
from tests.training.test_sft import die_at, figures, weights

TEMPLATE = PromptTemplate(
    name="brief",
    user="{{problem}}\n{{steps}}\n",
    step_format="{{step}}",
    step_separator="\n",
    verdict=VerdictFormat(marker="ok?"),
)

#: Two steps of four questions with four replies.
QUICK = GRPOSettings(
    learning_rate=2e-3,
    max_steps=2,
    batch_size=4,
    device_batch_size=8,
    num_samples=4,
    max_tokens=12,
    max_length=128,
    precision="fp32",
    gradient_checkpointing=False,
    eval_steps=1,
    save_steps=1,
    logging_steps=1,
    validation_share=0.3,
)


@pytest.fixture(scope="session")
def taught(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model after a cold start in which it learnt to say "ok? Yes" or "ok? No", and not when."""
    import torch

    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("taught")
    rows = []
    for number in range(64):
        said = number % 4 < 2
        (message,) = TEMPLATE.render(f"p{number}", ["good" if number % 2 else "bad"], 0).messages
        prompt, reply = message.content, f"ok? {'Yes' if said else 'No'}"
        row = {"id": str(number), "label": said, "prompt": [{"role": "user", "content": prompt}]}
        rows.append({**row, "completion": [{"role": "assistant", "content": reply}]})
    write_rows(folder / "train.jsonl", rows)
    (folder / "rprm_prompt.toml").write_text(TEMPLATE.to_toml())
    settings = SFTSettings(
        learning_rate=3e-3, max_steps=60, batch_size=16, device_batch_size=16, max_length=128, precision="fp32",
        gradient_checkpointing=False, warmup_ratio=0.1,
    )  # fmt: skip
    return train_sft(folder, model=str(tiny_model), output=folder / "sft", settings=settings).model


def step_rows(number: int = 40) -> list[dict[str, Any]]:
    """A step is right where it says good."""
    return [
        {"problem": f"q{place}", "step": "good" if place % 2 else "bad", "label": bool(place % 2)}
        for place in range(number)
    ]


@pytest.fixture
def steps(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "steps.jsonl", step_rows())


# --- questions ----------------------------------------------------------------------------------------------------


def solutions_of(path: Path, *rows: dict[str, Any]) -> list[LabelledSolution]:
    write_rows(path, list(rows))
    found = list(read_solutions(path))
    assert not [row for row in found if isinstance(row, Rejected)], found
    return found  # type: ignore[return-value]


def test_what_a_row_asks(tmp_path: Path) -> None:
    step, wrong, right, outcome = solutions_of(
        tmp_path / "rows.jsonl",
        {"id": "a", "problem": "P", "previous_steps": ["x"], "step": "y", "label": False},
        {"id": "b", "problem": "P", "steps": ["x", "y", "z"], "label": 1},
        {"id": "c", "problem": "P", "steps": ["x", "y"], "label": -1},
        {"id": "d", "problem": "P", "steps": ["x", "y"], "label": False},
    )
    assert step.questions("step", "verdict") == [Question("a", "P", ("x", "y"), False)]
    assert step.questions("critic", "distance") == [Question("a", "P", ("x", "y"), 1)]
    # Every step up to the first wrong one.
    assert wrong.questions("step", "verdict") == [
        Question("b-0", "P", ("x",), True),
        Question("b-1", "P", ("x", "y"), False),
    ]
    assert [one.label for one in right.questions("step", "verdict")] == [True, True]
    assert wrong.questions("critic", "distance") == [Question("b", "P", ("x", "y", "z"), 1)]
    # Of the outcome alone: the whole solution, by its last step.
    for judge in ("step", "critic"):
        assert wrong.questions(judge, "outcome") == [Question("b", "P", ("x", "y", "z"), False)]
        assert right.questions(judge, "outcome") == [Question("c", "P", ("x", "y"), True)]
        assert outcome.questions(judge, "outcome") == [Question("d", "P", ("x", "y"), False)]
        with pytest.raises(InputError, match="of no step"):
            outcome.questions(judge, "verdict")
    with pytest.raises(InputError, match="has no outcome"):
        step.questions("step", "outcome")


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"problem": "P", "steps": ["x"]}, "'label' is missing"),
        ({"problem": "P", "steps": ["x"], "label": 1}, "'label' must be the 0-based index"),
        ({"problem": "P", "steps": ["x"], "label": "yes"}, "'label'"),
        ({"problem": "P", "step": "x", "label": 1}, "'label' must be true or false"),
        ([1], "JSON object"),
    ],
)
def test_rows_that_cannot_be_used(row: Any, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row) + "\n")
    (rejected,) = read_solutions(path)
    assert isinstance(rejected, Rejected)
    assert reason in rejected.reason


# --- groups -------------------------------------------------------------------------------------------------------


def test_groups_that_are_skipped() -> None:
    """Four replies each; rewards of the verdict, the form, the length."""
    import torch

    from rprm.training.group_trainer import skipped

    right, wrong = (1.0, 0.0, 0.0), (-1.0, 0.0, 0.0)
    groups = [
        [right, right, right, right],
        [wrong, wrong, wrong, wrong],
        [right, right, wrong, right],
        [right, right, right, (1.0, 0.0, -0.5)],  # of another length: they teach nothing about judging
        [right, right, right, (1.0, -1.0, 0.0)],  # one has not the form that it should have
        [(0.6, 0.0, 0.0)] * 4,  # all as far from the first error
        [(0.6, 0.0, 0.0)] * 3 + [right],
    ]
    rewards = torch.tensor([reply for group in groups for reply in group])
    is_skipped, counts = skipped(rewards, 4)
    assert is_skipped.view(-1, 4).tolist() == [[known] * 4 for known in (True, True, False, True, False, True, False)]
    assert counts == {"num_groups": 7, "num_all_right": 2, "num_all_wrong": 1, "num_all_equal": 1}


def test_what_is_kept_is_spread_over_steps_without_needless_padding() -> None:
    """Eight replies, of which two are skipped, in two steps of two batches."""
    import torch

    from rprm.training.group_trainer import GroupTrainer

    lengths = [1, 2, 3, 4, 5, 6, 7, 8]
    number, width = len(lengths), 8
    completion = torch.tensor([[1] * length + [0] * (width - length) for length in lengths])
    batch = {
        "prompt_ids": torch.arange(number)[:, None].expand(number, 3),
        "prompt_mask": torch.tensor([[0, 0, 1]] * (number - 1) + [[1, 1, 1]]),
        "completion_ids": completion * torch.arange(number)[:, None],
        "completion_mask": completion,
        "advantages": torch.arange(number).float(),
        "num_items_in_batch": torch.tensor(36),
        "is_kept": torch.tensor([True, False, True, True, False, True, True, True]),
    }
    args = SimpleNamespace(gradient_accumulation_steps=2, steps_per_generation=4, seed=0)
    accelerator = SimpleNamespace(reduce=lambda tensor, how: tensor)
    trainer: Any = SimpleNamespace(args=args, accelerator=accelerator, state=SimpleNamespace(global_step=0))
    parts = GroupTrainer.parts(trainer, batch)
    assert len(parts) == 4
    rows = [part["advantages"].long().tolist() for part in parts]
    assert sorted(row for some in rows for row in some) == [0, 2, 3, 5, 6, 7]
    for part, some in zip(parts, rows, strict=True):
        assert part["completion_ids"].shape[1] == max(lengths[row] for row in some)
        assert part["prompt_ids"].shape[1] == (3 if 7 in some else 1)
        assert part["completion_mask"].sum(1).tolist() == [lengths[row] for row in some]
    for first, second in ((0, 1), (2, 3)):
        # Within a step the shorter ones come first; TRL divides the tokens by the two steps.
        assert max(rows[first]) < min(rows[second])
        tokens = sum(lengths[row] for row in rows[first] + rows[second])
        assert [int(parts[place]["num_items_in_batch"]) for place in (first, second)] == [2 * tokens] * 2


def test_a_batch_of_skipped_groups_alone_has_one_row_that_does_not_count() -> None:
    import torch

    from rprm.training.group_trainer import GroupTrainer

    ones = torch.ones(4, 2, dtype=torch.long)
    batch = dict.fromkeys(("prompt_ids", "prompt_mask", "completion_ids", "completion_mask"), ones)
    batch |= {"advantages": torch.zeros(4), "is_kept": torch.zeros(4, dtype=torch.bool)}
    args = SimpleNamespace(gradient_accumulation_steps=2, steps_per_generation=2, seed=0)
    accelerator = SimpleNamespace(reduce=lambda tensor, how: tensor)
    trainer: Any = SimpleNamespace(args=args, accelerator=accelerator, state=SimpleNamespace(global_step=3))
    for part in GroupTrainer.parts(trainer, batch):
        assert part["completion_mask"].tolist() == [[0]]
        assert int(part["num_items_in_batch"]) == 0


# --- what is trained on -------------------------------------------------------------------------------------------


def recorded(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The batches that the loss is computed of."""
    from rprm.training.group_trainer import GroupTrainer

    batches: list[dict[str, Any]] = []
    compute = GroupTrainer._compute_loss

    def note(self: Any, model: Any, inputs: dict[str, Any]) -> Any:
        batches.append({name: value.clone() for name, value in inputs.items()})
        return compute(self, model, inputs)

    monkeypatch.setattr(GroupTrainer, "_compute_loss", note)
    return batches


def test_the_exact_tokens_and_advantages(
    taught: Path, steps: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of one step: the engine's prompts, the replies that the engine gives by their seeds, and advantages by hand."""
    from transformers import AutoTokenizer

    batches = recorded(monkeypatch)
    settings = replace(QUICK, max_steps=1, batch_size=8, seed=5)
    result = train_grpo(steps, model=str(taught), output=tmp_path / "run", settings=settings)
    tokenizer = AutoTokenizer.from_pretrained(taught)
    label = {
        tuple(encode_prompt(tokenizer, TEMPLATE.render(row["problem"], [row["step"]], 0))): row["label"]
        for row in step_rows()
    }
    groups: dict[tuple[int, ...], list[tuple[str, float]]] = {}
    for batch in batches:
        for place, advantage in enumerate(batch["advantages"].tolist()):
            prompt, reply = (
                batch[f"{of}_ids"][place][batch[f"{of}_mask"][place].bool()].tolist() for of in ("prompt", "completion")
            )
            groups.setdefault(tuple(prompt), []).append((tokenizer.decode(reply), advantage))
    assert groups.keys() <= label.keys(), "the tokens are those that the engine reads"
    for prompt, replies in groups.items():
        verdicts = [TEMPLATE.verdict.find(text.removesuffix("</s>")) for text, _ in replies]
        judged = [1.0 if verdict and verdict.yes is label[prompt] else -1.0 for verdict in verdicts]
        # Half a point for a reply that does not end in its only verdict, but for signs.
        formed = [re.fullmatch(r"\W*ok\? (Yes|No)\W{0,16}</s>", text) for text, _ in replies]
        rewards = [worth - 0.5 * (not form) for worth, form in zip(judged, formed, strict=True)]
        assert len(rewards) == 4
        assert len(set(rewards)) > 1, "groups that teach nothing are left out"
        mean, deviation = statistics.mean(rewards), statistics.stdev(rewards)
        wanted = [(reward - mean) / (deviation + 1e-4) for reward in rewards]
        assert [advantage for _, advantage in replies] == pytest.approx(wanted, abs=1e-5)
    summary = result.summary
    num_skipped = summary["num_all_right"] + summary["num_all_wrong"] + summary["num_all_equal"]
    assert (summary["num_groups"], len(groups)) == (8, 8 - num_skipped)
    # Each token counts alike: the normaliser is the number of tokens that are trained on.
    total = sum(int(batch["completion_mask"].sum()) for batch in batches)
    assert {int(batch["num_items_in_batch"]) for batch in batches} == {total}


def test_replies_are_those_that_an_engine_gives_by_the_seed(taught: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from rprm.engines import load_engine
    from rprm.training.live import LiveEngine

    tokenizer, model = AutoTokenizer.from_pretrained(taught), AutoModelForCausalLM.from_pretrained(taught)
    prompt, sampling = TEMPLATE.render("q3", ["good"], 0), Sampling(1.0, max_tokens=12)
    ids = encode_prompt(tokenizer, prompt)
    replies = asyncio.run(LiveEngine(model, tokenizer, 4).sample([ids] * 6, sampling, range(6)))

    async def by_engine() -> list[str]:
        engine = load_engine(f"transformers:{taught}?dtype=float32")
        await engine.start()
        found = await asyncio.gather(*(engine.generate(prompt, replace(sampling, seed=seed)) for seed in range(6)))
        await engine.aclose()
        return [completion.text for completion in found]

    texts = asyncio.run(by_engine())
    # The engine leaves out what is no whole character at the end.
    decoded = [
        tokenizer.decode(reply, skip_special_tokens=True).rstrip("\N{REPLACEMENT CHARACTER}") for reply in replies
    ]
    assert decoded == texts
    assert all(reply[-1] == tokenizer.eos_token_id or len(reply) == 12 for reply in replies)


def test_a_reply_ends_at_the_stop_of_the_template(taught: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from rprm.training.live import LiveEngine

    tokenizer, model = AutoTokenizer.from_pretrained(taught), AutoModelForCausalLM.from_pretrained(taught)
    ids = encode_prompt(tokenizer, TEMPLATE.render("q3", ["good"], 0))
    engine = LiveEngine(model, tokenizer, 4)
    (reply,) = asyncio.run(engine.sample([ids], Sampling(0.0, max_tokens=12, stop=("k?",)), [0]))
    assert tokenizer.decode(reply) == "ok?", "with the tokens of the stop, which the model wrote"


def test_a_step_without_a_group_changes_no_weight(taught: Path, steps: Path, tmp_path: Path) -> None:
    """Replies of two tokens have no verdict: all are wrong. Nor does weight decay move anything."""
    settings = replace(QUICK, max_tokens=2, weight_decay=0.5, learning_rate=0.1)
    result = train_grpo(steps, model=str(taught), output=tmp_path / "run", settings=settings)
    assert {name: result.summary[name] for name in ("num_groups", "num_all_wrong", "eval_f1", "num_steps")} == {
        "num_groups": 8,
        "num_all_wrong": 8,
        "eval_f1": 0.0,
        "num_steps": 2,
    }
    assert weights(result.model) == weights(taught)


def test_the_best_checkpoint_is_that_of_the_highest_f1(
    taught: Path, steps: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Measured before the first step and after each: 20, then 50, 80, 80, 60. The first of equals is kept."""
    told = iter([20.0, 50.0, 80.0, 80.0, 60.0])
    asked: list[Sequence[Question]] = []

    def measure(self: Any, engine: Any, questions: Sequence[Question], max_tokens: int) -> dict[str, float]:
        asked.append(questions)
        return {"f1": next(told)}

    monkeypatch.setattr(StepAsker, "measure", measure)
    result = train_grpo(steps, model=str(taught), output=tmp_path / "run", settings=replace(QUICK, max_steps=4))
    assert (result.summary["handed_over_step"], result.summary["eval_f1"]) == (2, 80.0)
    evaluated = [(row["step"], row["eval_f1"]) for row in figures(tmp_path / "run") if "eval_f1" in row]
    assert evaluated == [(0, 20.0), (1, 50.0), (2, 80.0), (3, 80.0), (4, 60.0)]
    problems = {question.problem for question in asked[0]}
    assert len(problems) == len(asked[0]) == result.summary["rows"]["validation"]["num_rows"]
    assert result.summary["rows"]["train"]["num_rows"] == 40 - len(problems)


@pytest.mark.slow
def test_it_learns(taught: Path, steps: Path, tmp_path: Path) -> None:
    """From chance to every held-out step, by rewards alone; the template goes along."""
    settings = replace(
        QUICK, max_steps=30, batch_size=8, num_samples=8, device_batch_size=32, eval_steps=5, save_steps=5
    )
    result = train_grpo(steps, model=str(taught), output=tmp_path / "run", settings=settings)
    rows = figures(tmp_path / "run")
    (before,) = [row["eval_f1"] for row in rows if row["step"] == 0]
    assert before < 90 < result.summary["eval_f1"]
    rewards = [row["reward"] for row in rows if "reward" in row]
    assert rewards[0] < 0.5 < rewards[-1]
    assert load_template(result.model).digest == TEMPLATE.digest


@pytest.mark.slow
@pytest.mark.parametrize("more", [{}, {"updates_per_sampling": 2}, {"lora_rank": 4, "lora_dropout": 0.1}])
def test_killed_and_resumed(more: dict[str, Any], taught: Path, steps: Path, tmp_path: Path) -> None:
    """Checkpoints after steps 2, 4, 6, killed at 5, resumed from 4: an epoch has three steps."""
    batch = {"batch_size": 8, "save_steps": 2, "eval_steps": 2, "logging_steps": 3, "max_steps": 7}
    settings = replace(QUICK, **batch, **more)
    whole = train_grpo(steps, model=str(taught), output=tmp_path / "whole", settings=settings)
    killed = tmp_path / "killed"
    die_at(5, "grpo", steps, taught, killed, asdict(settings))
    resumed = train_grpo(steps, model=str(taught), output=killed, settings=settings)
    assert (resumed.resumed_from, resumed.num_steps) == (4, 7)
    assert resumed.summary == whole.summary

    def without_clock(folder: Path) -> list[dict[str, Any]]:
        return [{name: value for name, value in row.items() if name != "step_time"} for row in figures(folder)]

    assert without_clock(killed) == without_clock(tmp_path / "whole")
    assert weights(killed / "model") == weights(tmp_path / "whole" / "model")


# --- critics ------------------------------------------------------------------------------------------------------

CRITIC = CriticTemplate(
    name="brief-critic", user="{{problem}}\n{{steps}}\n", step_format="{{step}}", step_separator="\n", stop="\n"
)


def solution_rows(number: int = 20, *, is_outcome: bool = False) -> list[dict[str, Any]]:
    labels = [place % 3 - 1 for place in range(number)]
    return [
        {"problem": f"q{place}", "steps": ["one", "two", "three"], "label": label == -1 if is_outcome else label}
        for place, label in enumerate(labels)
    ]


def test_a_critic_is_handed_over_with_its_template(taught: Path, tmp_path: Path) -> None:
    """Of a model that has never seen a box all is wrong: what is tested is the way there."""
    data = write_rows(tmp_path / "solutions.jsonl", solution_rows())
    (tmp_path / "critic.toml").write_text(CRITIC.to_toml())
    result = train_grpo(
        data, prompt=tmp_path / "critic.toml", model=str(taught), output=tmp_path / "run", settings=QUICK
    )
    assert result.summary["num_all_wrong"] == result.summary["num_groups"] == 8
    assert result.summary["eval_f1"] == 0.0
    assert not (result.model / "rprm_prompt.toml").exists()
    assert "critic:transformers:" in (result.model / "README.md").read_text()
    critic: Any = load_rewarder(f"critic:transformers:{result.model}")
    assert critic.template.digest == CRITIC.digest


def run_of(data: Path, model: Path, output: Path, **arguments: Any) -> GRPORun:
    settings = arguments.pop("settings", QUICK)
    given = {"validation": None, "judge": None, "prompt": None} | arguments
    return GRPORun(data, **given, model=str(model), output=output, settings=settings)


def test_rewards_of_a_critics_replies(taught: Path, tmp_path: Path) -> None:
    """Three steps, the second is wrong: an index away costs a third. A reply ends at the stop or at its end token."""
    data = write_rows(tmp_path / "solutions.jsonl", solution_rows())
    run = run_of(data, taught, tmp_path / "run")
    assert (run.judge, run.reward, run.template.name) == ("critic", "distance", "critic")
    stopping = replace(run.asker, template=replace(run.template, stop="\n"))  # type: ignore[type-var]
    run.asker, run.template = stopping, stopping.template

    def ids(text: str) -> list[int]:
        return run.tokenizer.encode(text, add_special_tokens=False)

    replies = [
        [*ids(r"\boxed{1}"), run.end],
        ids("\\boxed{2}\n"),
        [*ids(r"\boxed{-1}"), run.end],
        ids(r"\boxed{0}"),
        [*ids("none"), run.end],
    ]
    columns: dict[str, Any] = {
        "prompts": [ids("q")] * 5,
        "completion_ids": replies,
        "begun": [""] * 5,
        "num_steps": [3] * 5,
        "label": [1] * 5,
    }
    logged: dict[str, float] = {}
    judged = run.judged(**columns, log_metric=lambda name, value: logged.update({name: value}), trainer_state=None)
    assert judged == pytest.approx([1.0, 2 / 3, -1.0, 2 / 3, -1.0])
    assert logged == {"right": 1 / 5}
    assert run.form(**columns) == [0.0, 0.0, 0.0, -1.0, -1.0], "the fourth was cut, the fifth names nothing"
    run.reward = "outcome"
    columns["label"] = [0] * 5
    assert run.judged(**columns) == [1.0, 1.0, -1.0, 1.0, -1.0]


def test_labels_say_what_is_rewarded(taught: Path, tmp_path: Path) -> None:
    outcomes = write_rows(tmp_path / "outcomes.jsonl", solution_rows(is_outcome=True))
    run = run_of(outcomes, taught, tmp_path / "run")
    assert (run.judge, run.reward, run.settings.reward) == ("critic", "outcome", "outcome")
    step = run_of(outcomes, taught, tmp_path / "run", judge="step")
    assert (step.judge, step.reward, step.template.name) == ("step", "outcome", "brief")


@pytest.mark.slow
def test_outcomes_alone_with_validation_steps(taught: Path, steps: Path, tmp_path: Path) -> None:
    """A step judge that is told only whether whole solutions are right, measured on labelled steps."""
    rows = [
        {"problem": f"r{place}", "steps": ["so", "good" if place % 2 else "bad"], "label": bool(place % 2)}
        for place in range(16)
    ]
    data = write_rows(tmp_path / "outcomes.jsonl", rows)
    result = train_grpo(
        data, validation=steps, judge="step", model=str(taught), output=tmp_path / "run", settings=QUICK
    )
    assert result.summary["rows"]["train"] | {"num_tokens": 0, "longest": 0} == {
        "num_rows": 16, "num_too_long": 0, "num_right": 8, "num_wrong": 8, "num_tokens": 0, "longest": 0,
    }  # fmt: skip
    assert result.summary["rows"]["validation"] == {"num_rows": 40}


# --- what is refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"updates_per_sampling": 2, "eval_steps": 3}, "eval_steps 3 is no multiple of updates_per_sampling 2"),
        ({"updates_per_sampling": 2, "eval_steps": 2, "save_steps": 3}, "save_steps 3 is no multiple"),
        ({"max_tokens": 128}, "max_tokens 128 leaves no token of max_length 128"),
        ({"overlong_tokens": 13}, "overlong_tokens 13 are more than max_tokens 12"),
        ({"reward": "luck"}, "reward is 'luck'"),
        ({"scale_rewards": "all"}, "scale_rewards is 'all'"),
        ({"num_samples": 1}, "num_samples"),
        ({"temperature": 0.0}, "temperature"),
    ],
)
def test_settings_that_make_no_sense(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        replace(QUICK, **change)


def test_replies_must_fill_batches() -> None:
    assert replace(QUICK, batch_size=4, num_samples=4, device_batch_size=8).accumulation(2) == 1
    with pytest.raises(InputError, match=r"is 16, no multiple of 5"):
        replace(QUICK, device_batch_size=5).accumulation(1)


def refused(data: Path, model: Path, output: Path, message: str, **arguments: Any) -> None:
    arguments = {"settings": QUICK} | arguments
    with pytest.raises((InputError, PromptError), match=message):
        train_grpo(data, model=str(model), output=output, **arguments)
    assert not (output / "manifest.json").exists(), "what failed does not hold the folder"


def test_data_that_cannot_be_trained_on(taught: Path, tiny_model: Path, tmp_path: Path) -> None:
    output, path = tmp_path / "run", tmp_path / "rows.jsonl"
    refused(
        write_rows(path, [{"problem": "P"}]), taught, output, r"no row that can be used; line 1: .*'steps' is missing"
    )
    one_sided = [{**row, "label": True} for row in step_rows()]
    refused(write_rows(path, one_sided), taught, output, r"all \d+ questions are labelled right; add others")
    few = replace(QUICK, batch_size=40)
    refused(write_rows(path, step_rows()), taught, output, r"\d+ questions, and 40 are asked at once", settings=few)
    refused(path, tiny_model, output, "carries no rprm_prompt.toml")
    distance = replace(QUICK, reward="distance")
    refused(path, taught, output, "the reward distance is of critics", settings=distance)
    short = replace(QUICK, max_length=20)
    refused(
        path, taught, output, r"questions are longer than 8 tokens, more than 5%; raise --max-length", settings=short
    )
    os.mkfifo(tmp_path / "pipe")
    refused(tmp_path / "pipe", taught, output, "a pipe can be read once")
    outcomes = write_rows(tmp_path / "outcomes.jsonl", solution_rows(is_outcome=True))
    refused(outcomes, taught, output, "give --validation with labels of steps, or --validation-share 0", judge="step")


# --- TRL and presets ----------------------------------------------------------------------------------------------


def test_what_trl_is_told(taught: Path, steps: Path, tmp_path: Path) -> None:
    settings = replace(QUICK, updates_per_sampling=3, eval_steps=3, save_steps=3, beta=0.01, scale_rewards="none")
    config = run_of(steps, taught, tmp_path / "run", settings=settings).make_config()
    told = {
        "num_generations": 4,
        "generation_batch_size": 48,  # three steps of four questions with four replies
        "steps_per_generation": 6,
        "gradient_accumulation_steps": 2,
        "max_completion_length": 12,
        "loss_type": "dapo",
        "beta": 0.01,
        "epsilon": 0.2,
        "epsilon_high": 0.28,
        "scale_rewards": "none",
        "top_p": 1.0,
        "temperature": 1.0,
        "use_vllm": False,
        "reward_weights": [1.0, 0.5, 1.0],
        "metric_for_best_model": "eval_f1",
        "greater_is_better": True,
    }
    assert {name: getattr(config, name) for name in told} == told


def test_vllm_is_trls(taught: Path, tmp_path: Path) -> None:
    """Not run here: what TRL is told."""
    data = write_rows(tmp_path / "solutions.jsonl", solution_rows())
    (tmp_path / "critic.toml").write_text(CRITIC.to_toml())
    told: dict[str, Any] = {"prompt": tmp_path / "critic.toml"}
    server = replace(QUICK, vllm="server", vllm_url="http://host:8000")
    config = run_of(data, taught, tmp_path / "run", settings=server, **told).make_config()
    assert (config.use_vllm, config.vllm_mode, config.vllm_server_base_url) == (True, "server", "http://host:8000")
    assert config.generation_kwargs == {"stop": ["\n"]}
    beside = replace(QUICK, vllm="colocate")
    config = run_of(data, taught, tmp_path / "run", settings=beside, **told).make_config()
    assert (config.vllm_mode, config.vllm_max_model_length) == ("colocate", 128)


def test_presets() -> None:
    fapo, tips = GRPO_PRESETS["fapo-4b"], GRPO_PRESETS["tips-4b"]
    # 512 questions at once, 32 a step, 16 replies; 500 samplings of 16 steps.
    assert (fapo.batch_size * fapo.updates_per_sampling, fapo.batch_size, fapo.num_samples) == (512, 32, 16)
    assert (fapo.max_steps, fapo.warmup_ratio * (fapo.max_steps or 0)) == (500 * 16, 10 * 16)
    assert (fapo.max_length - fapo.max_tokens, tips.max_length - tips.max_tokens) == (5120, 6000)
    assert (fapo.reward, tips.reward) == ("distance", "outcome")


def test_the_curves_of_a_training() -> None:
    """F1 in percent, rewards a hundredfold, two of eight groups skipped; a row without groups has no share."""
    from rprm.report.curves import training_chart

    none = {"num_all_right": 0, "num_all_wrong": 0, "num_all_equal": 0}
    rows = [
        {"step": 0, "eval_f1": 40.0},
        {"step": 10, "reward": -0.25, "num_groups": 8, **none, "num_all_right": 2},
        {"step": 10, "eval_f1": 62.5},
        {"step": 12, "reward": None, "num_groups": 0, **none},
        {"step": 12, "reward": 0.5, "num_groups": 0, **none},
    ]
    chart = training_chart(rows)
    found = {line.name: [(step, figure.value) for step, figure in line.points] for line in chart.lines}
    assert found == {
        "validation F1": [(0, 40.0), (10, 62.5)],
        "mean reward, times 100": [(10, -25.0), (12, 50.0)],
        "groups skipped": [(10, 25.0), (12, None)],
    }
    assert list(chart.ticks) == [0, 3, 6, 9, 12]
    assert "validation F1" in chart.svg()
    assert training_chart([]).svg()


@pytest.mark.slow
def test_on_the_command_line(taught: Path, tmp_path: Path) -> None:
    from tests.warm import warm_torch

    rows = [*step_rows(), {"problem": "P"}]
    data = write_rows(tmp_path / "steps.jsonl", rows)
    words = ["train", "grpo", str(data), "-m", str(taught), "-o", str(tmp_path / "run"), "--preset", "cpu"]
    words += ["--max-steps", "2", "--batch-size", "4", "-n", "4", "--device-batch-size", "8", "--max-tokens", "12"]
    words += ["--max-length", "128", "--eval-steps", "1", "--validation-share", "0.3", "--learning-rate", "2e-3"]
    done = warm_torch().run([sys.executable, "-m", "rprm", *words])
    assert done.returncode == 3, done.stderr
    assert "1 rows cannot be used" in done.stderr
    assert "validation F1" in done.stdout
    assert "groups skipped, for all their replies were worth the same:" in done.stdout
    assert "of 8" in done.stdout
    curve = (tmp_path / "run" / "curve.svg").read_text()
    assert "validation F1" in curve
    assert "mean reward" in curve
    assert math.isfinite(json.loads((tmp_path / "run" / "summary.json").read_text())["reward"])
