"""Training the baseline classifier: it learns, it is handed over whole, and a kill costs nothing."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from rprm.data.stage_options import is_held_out
from rprm.errors import EngineError, InputError, SettingsChanged
from rprm.rewarders.classifier import Classifier
from rprm.training.baseline import ClassifierTraining, train_classifier
from rprm.training.settings import RunOptions

SETTINGS: dict[str, Any] = {
    "learning_rate": 3e-3,
    "batch_size": 8,
    "device_batch_size": 4,
    "max_steps": 30,
    "max_length": 256,
    # Exact, whatever the processor could compute in.
    "precision": "fp32",
    "warmup_ratio": 0.1,
    "logging_steps": 5,
    "eval_steps": 10,
    "save_steps": 10,
    "gradient_checkpointing": False,
    "validation_share": 0.2,
}


def settings(**changes: Any) -> ClassifierTraining:
    return ClassifierTraining(**{**SETTINGS, **changes})


def write_steps(path: Path, num_problems: int = 40, *, first: int = 0) -> Path:
    """Two steps a problem; a step is right where it says `good`."""
    rows = []
    for number in range(first, first + num_problems):
        words = ["good" if (number >> bit) % 2 else "bad" for bit in range(2)]
        for index in range(2):
            rows.append(
                {
                    "id": f"{number}-{index}",
                    "problem": f"Problem {number}",
                    "previous_steps": words[:index],
                    "step": words[index],
                    "label": words[index] == "good",
                    "source": "test",
                }
            )
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def rewards_of(folder: Path, problem: str, steps: list[str]) -> list[float | None]:
    async def main() -> list[float | None]:
        classifier = Classifier(str(folder))
        await classifier.start()
        rewards = [(await classifier.judge_step(problem, steps, index)).reward for index in range(len(steps))]
        await classifier.aclose()
        return rewards

    return asyncio.run(main())


@pytest.fixture(scope="module")
def trained(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("trained")
    return train_classifier(
        write_steps(folder / "steps.jsonl"),
        model=str(tiny_model),
        output=folder / "run",
        settings=settings(),
        options=RunOptions(keep_checkpoints=True),
    )


def test_it_learns_a_rule(trained: Any) -> None:
    summary = trained.summary
    assert trained.num_steps == 30
    assert summary["stopped_early"] is False
    # Steps of problems that it has not seen.
    assert summary["validation"][0]["f1"] > 0.95
    assert summary["validation"][0]["threshold"] == summary["threshold"]
    good, bad = rewards_of(trained.model, "Problem 999", ["good", "bad"])
    assert good is not None
    assert bad is not None
    assert good > summary["threshold"] > bad
    rows = summary["rows"]
    assert rows["train"]["num_rows"] + rows["validation"]["num_rows"] == 80
    held_out = [number for number in range(40) if is_held_out(f"Problem {number}", 0.2)]
    assert rows["validation"]["num_sequences"] == len(held_out)
    assert rows["train"]["num_sequences"] == 40 - len(held_out)
    # Both steps of a problem are one sequence: each labelled step once.
    assert rows["train"]["num_correct"] + rows["train"]["num_wrong"] == rows["train"]["num_rows"]


def test_what_is_handed_over(trained: Any, tiny_model: Path) -> None:
    names = {path.name for path in trained.model.iterdir()}
    assert {"config.json", "model.safetensors", "rprm_classifier.json", "README.md", "tokenizer.json"} <= names
    stored = json.loads((trained.model / "rprm_classifier.json").read_text())
    assert stored["layout"] == "qwen"
    assert stored["step_tag"] == "<extra_0>"
    assert stored["threshold"] == trained.summary["threshold"]
    modes = {path.stat().st_mode for path in trained.model.iterdir()}
    assert len(modes) == 1, "every file is readable by the same people"
    from safetensors.torch import load_file

    tensors = load_file(trained.model / "model.safetensors")
    assert {"score.0.weight", "score.0.bias", "score.2.weight", "score.2.bias"} <= set(tensors)
    assert all(name.startswith(("model.", "score.")) for name in tensors)
    # The tag has a row of its own in the embeddings; the base model had none.
    before = load_file(tiny_model / "model.safetensors")["model.embed_tokens.weight"].shape[0]
    assert tensors["model.embed_tokens.weight"].shape[0] == before + 1
    card = (trained.model / "README.md").read_text()
    assert "classifier:PATH_TO_THIS_FOLDER" in card
    assert "learning_rate" in card
    manifest = json.loads((trained.output / "manifest.json").read_text())
    assert manifest["status"] == "complete"
    assert manifest["stage"] == "train classifier"
    metrics = [json.loads(line) for line in (trained.output / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in metrics if "eval_loss" in row] == [10, 20, 30]


def test_the_handed_over_model_rewards_as_the_trained_one(trained: Any, tiny_model: Path) -> None:
    """The trainer's last checkpoint against the model folder, through the classifier, to 1e-5."""
    from safetensors.torch import load_file

    from rprm.training.baseline import ClassifierRun

    run = ClassifierRun("unread", None, settings=settings(), model=str(tiny_model), output=trained.output)
    assert run.new_tag_id is not None
    network, layout = run.network(bf16=False), run.layout
    network.load_state_dict(load_file(trained.output / "checkpoints" / "checkpoint-30" / "model.safetensors"))
    network.eval()
    for problem, steps in (("Problem 7", ["good", "bad", "good"]), ("Ünïcode?", ["<extra_0> good", ""])):
        rendered = layout.render(problem, steps)
        ids = torch.tensor([rendered.ids])
        wanted = torch.zeros_like(ids, dtype=torch.bool)
        wanted[0, rendered.positions] = True
        with torch.inference_mode():
            expected = network(ids, torch.ones_like(ids), wanted).softmax(-1)[:, 1].tolist()
        assert rewards_of(trained.model, problem, steps) == pytest.approx(expected, abs=1e-5)


def test_a_complete_run_is_not_repeated(trained: Any, tiny_model: Path) -> None:
    again = train_classifier(
        trained.output.parent / "steps.jsonl",
        model=str(tiny_model),
        output=trained.output,
        settings=settings(),
        options=RunOptions(keep_checkpoints=True),
    )
    assert again.was_complete
    assert again.summary == trained.summary
    with pytest.raises(SettingsChanged, match="learning_rate"):
        train_classifier(
            trained.output.parent / "steps.jsonl",
            model=str(tiny_model),
            output=trained.output,
            settings=settings(learning_rate=1e-4),
        )


def test_a_classifier_is_trained_on(trained: Any, tmp_path: Path) -> None:
    """Its head, tag and layout are kept: at a learning rate of almost nothing it is the same classifier."""
    result = train_classifier(
        write_steps(tmp_path / "steps.jsonl", 12),
        model=str(trained.model),
        output=tmp_path / "run",
        settings=settings(learning_rate=1e-12, max_steps=1),
    )
    steps = ["good", "bad"]
    expected = rewards_of(trained.model, "Problem 3", steps)
    assert rewards_of(result.model, "Problem 3", steps) == pytest.approx(expected, abs=1e-4)
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_lora_is_merged(tiny_model: Path, tmp_path: Path) -> None:
    result = train_classifier(
        write_steps(tmp_path / "steps.jsonl"),
        model=str(tiny_model),
        output=tmp_path / "run",
        settings=settings(lora_rank=4, learning_rate=1e-2, gradient_checkpointing=True),
        validation=write_steps(tmp_path / "validation.jsonl", 10, first=35),
        options=RunOptions(keep_checkpoints=True),
    )
    # Problems 35 to 39 are in both: 10 steps.
    assert result.summary["num_left_out_as_validation"] == 10
    assert result.summary["rows"]["train"]["num_rows"] == 70
    assert result.summary["rows"]["validation"]["num_rows"] == 20
    assert result.summary["validation"][0]["f1"] > 0.9
    checkpoint = result.output / "checkpoints" / "checkpoint-30"
    assert (checkpoint / "adapter_model.safetensors").is_file()
    # Only the adapter, the head and the tag's embedding: less than the model.
    assert (checkpoint / "adapter_model.safetensors").stat().st_size < (
        result.model / "model.safetensors"
    ).stat().st_size
    from safetensors.torch import load_file

    tensors = load_file(result.model / "model.safetensors")
    assert not [name for name in tensors if "lora" in name or "modules_to_save" in name]
    # The tag's embedding was trained, those of other tokens were not.
    before = load_file(tiny_model / "model.safetensors")["model.embed_tokens.weight"]
    torch.testing.assert_close(tensors["model.embed_tokens.weight"][:-1], before)
    assert not torch.allclose(tensors["model.embed_tokens.weight"][-1], before.mean(0), atol=1e-4)
    good, bad = rewards_of(result.model, "Problem 999", ["good", "bad"])
    assert (good or 0.0) > (bad or 0.0)


def test_patience_hands_over_the_best(tiny_model: Path, tmp_path: Path) -> None:
    result = train_classifier(
        write_steps(tmp_path / "steps.jsonl", 24),
        model=str(tiny_model),
        output=tmp_path / "run",
        # So high a rate that the loss soon rises.
        settings=settings(
            learning_rate=3.0, patience=2, eval_steps=1, save_steps=1, max_steps=40, max_grad_norm=1e9, balance=True
        ),
    )
    summary = result.summary
    metrics = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = {row["step"]: row["eval_loss"] for row in metrics if row.get("eval_loss") is not None}
    assert summary["stopped_early"] is True
    assert summary["num_steps"] < 40
    assert losses[summary["handed_over_step"]] == min(losses.values()) == summary["eval_loss"]


def test_gradient_accumulation_counts_every_step_alike(tiny_model: Path, tmp_path: Path) -> None:
    """Batches of unequal numbers of labelled steps: as one batch or as four, the same gradient."""
    rows = []
    for number in range(8):
        words = [f"word {number} {index}" for index in range(1 + number % 4)]
        rows += [
            {"id": f"{number}-{index}", "problem": f"P{number}", "previous_steps": words[:index], "step": words[index],
             "label": (number + index) % 3 > 0}
            for index in range(len(words))
        ]  # fmt: skip
    path = tmp_path / "steps.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = []
    for device_batch_size in (8, 2):
        output = tmp_path / f"run-{device_batch_size}"
        train_classifier(
            path,
            model=str(tiny_model),
            output=output,
            settings=settings(
                device_batch_size=device_batch_size,
                max_steps=3,
                logging_steps=1,
                validation_share=0.0,
                max_grad_norm=1e9,
            ),
        )
        metrics = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
        found.append([(row["loss"], row["grad_norm"]) for row in metrics])
    assert len(found[0]) == 3
    for whole, parts in zip(*found, strict=True):
        assert parts == pytest.approx(whole, rel=1e-3)


@pytest.mark.parametrize(
    ("rows", "changes", "message"),
    [
        ([], {}, "has no labelled step"),
        ([{"problem": "p", "step": "s", "label": True}] * 3, {}, "labelled correct"),
        ([{"problem": "p", "step": "s", "label": False}], {}, "labelled wrong"),
        (
            [{"problem": "p", "step": "s" * 300, "label": True}, {"problem": "q", "step": "s", "label": False}],
            {},
            "1 of 2 labelled steps stand beyond max_length 256, more than 5%",
        ),
        ([{"problem": "p", "step": "s", "label": True}], {"validation_share": 0.99}, "all of held-out problems"),
        ([{"problem": "p", "step": "s", "label": True}], {"max_length": 100000}, "lower --max-length"),
        (
            [{"problem": "p", "step": "s", "label": True}, {"problem": "p", "step": "t", "label": False}],
            {"patience": 1, "validation_share": 0.0},
            "patience needs validation",
        ),
    ],
)
def test_what_cannot_be_trained_on_is_refused_first(
    tiny_model: Path, tmp_path: Path, rows: list[dict[str, Any]], changes: dict[str, Any], message: str
) -> None:
    path = tmp_path / "steps.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(InputError, match=message):
        train_classifier(
            path,
            model=str(tiny_model),
            output=tmp_path / "run",
            settings=settings(**{"validation_share": 0.0, **changes}),
        )
    # Nothing was begun: the folder can be used with other settings.
    assert not (tmp_path / "run" / "manifest.json").exists()


def test_other_refusals(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="always merged"):
        ClassifierTraining(merge=False)
    with pytest.raises(InputError, match=r"validation_share is 1\.0; give a number"):
        ClassifierTraining(validation_share=1.0)
    steps = write_steps(tmp_path / "steps.jsonl", 4)
    with pytest.raises(EngineError, match="nowhere"):
        train_classifier(steps, model=str(tmp_path / "nowhere"), output=tmp_path / "run")


def test_bad_rows_are_set_aside(tiny_model: Path, tmp_path: Path) -> None:
    path = write_steps(tmp_path / "steps.jsonl", 12)
    with path.open("a") as stream:
        stream.write('{"problem": "p", "step": "s"}\n{torn\n')
    notes: list[str] = []
    from rprm.training.lifecycle import TrainingCallbacks

    result = train_classifier(
        path,
        model=str(tiny_model),
        output=tmp_path / "run",
        settings=settings(max_steps=1),
        callbacks=TrainingCallbacks(on_note=notes.append),
    )
    assert result.summary["num_rejected"] == 2
    rejected = [json.loads(line) for line in (tmp_path / "run" / "rejected.jsonl").read_text().splitlines()]
    assert [row["line"] for row in rejected] == [25, 26]
    assert any("2 rows cannot be used" in note for note in notes)
