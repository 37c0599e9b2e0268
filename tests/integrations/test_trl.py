"""TRL's GRPOTrainer with the reward function, and its calls of it."""

from __future__ import annotations

import asyncio
import pickle
from pathlib import Path
from typing import Any

import pytest
from stated_judge import Judge, rounded

import rprm
from rprm.errors import InputError
from rprm.integrations.trl import RewardFunction


def test_texts_and_messages(judge: Judge) -> None:
    reward = RewardFunction(judge)
    texts = ["a 0.5\n\nb 0.25", "<think>\nlost\n</think>\n\na 0.75", "lost", ""]
    assert rounded(asyncio.run(reward(["p"] * 4, texts, [[1]] * 4))) == [0.25, 0.75, None, None]
    chats = [[{"role": "assistant", "content": text}] for text in texts]
    prompts = [[{"role": "system", "content": "s"}, {"role": "user", "content": "p"}]] * 4
    assert rounded(asyncio.run(reward(prompts, chats))) == [0.25, 0.75, None, None]


def test_the_problem_may_stand_in_a_column(judge: Judge) -> None:
    reward = RewardFunction(judge, "last", problem="question")
    assert rounded(asyncio.run(reward([""], ["a 0.5"], question=["p"], answer=["4"]))) == [0.5]
    with pytest.raises(InputError, match="no column 'question'"):
        asyncio.run(reward(["p"], ["a 0.5"], problem=["p"]))
    with pytest.raises(InputError, match="forms are"):
        RewardFunction(judge, "median")


def test_it_is_logged(judge: Judge) -> None:
    columns: dict[str, Any] = {}
    metrics: dict[str, float] = {}
    reward = RewardFunction(judge, "progress", name="steps")
    given = {"log_extra": columns.__setitem__, "log_metric": metrics.__setitem__}
    assert asyncio.run(reward(["p"] * 2, ["a 0.5\n\nb 0.25", ""], **given)) == [0.5, None]
    assert metrics == {"steps/unscored": 0.5}
    assert [len(text) > 0 for text in columns["steps_steps"]] == [True, False]


def test_it_is_picklable_by_spec() -> None:
    reward = RewardFunction(rprm.RPRM("scripted:", num_analyses=1), "mean", name="steps")
    again = pickle.loads(pickle.dumps(reward))
    prompts, texts = ["p"], ["a\n\nb"]
    assert asyncio.run(again(prompts, texts)) == asyncio.run(reward(prompts, texts))
    assert again.__name__ == "steps"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*embedded model knows:UserWarning")
@pytest.mark.parametrize("is_chat", [False, True])
def test_two_steps_of_grpo(is_chat: bool, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The embedded judge rewards what a tiny policy writes; where it gives no reward the trainer leaves it out."""
    import torch
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    torch.set_num_threads(1)
    given: list[list[float | None]] = []

    class Noted(RewardFunction):
        async def __call__(self, *args: Any, **kwargs: Any) -> list[float | None]:
            given.append(await super().__call__(*args, **kwargs))
            return given[-1]

    def length(completions: list[Any], **columns: Any) -> list[float]:
        return [float(len(str(one))) / 100 for one in completions]

    problem = "Ben has 3 coins. Ann gives him 4. How many coins does Ben have?"
    prompt = [{"role": "user", "content": problem}] if is_chat else problem
    config = GRPOConfig(
        output_dir=str(tmp_path), max_steps=2, per_device_train_batch_size=4, num_generations=4,
        max_completion_length=24, logging_steps=1, report_to=[], save_strategy="no", use_cpu=True, bf16=False,
        activation_checkpointing=False, disable_tqdm=True, reward_weights=[1.0, 0.5, 0.1],
    )  # fmt: skip
    with rprm.RPRM("embedded", num_analyses=1) as prm:
        rewards = [Noted(prm), Noted(prm, "progress"), length]
        trainer = GRPOTrainer(
            str(tiny_model), rewards, args=config, train_dataset=Dataset.from_dict({"prompt": [prompt] * 4})
        )
        before = [one.detach().clone() for one in trainer.model.parameters()]
        trainer.train()
    assert [len(values) for values in given] == [4, 4, 4, 4]
    assert all(value is None or 0.0 <= value <= 1.0 for values in given for value in values)
    assert any(value is not None for values in given for value in values)
    logged = [row for row in trainer.state.log_history if "reward" in row]
    assert len(logged) == 2
    scored = [value for value in given[0] if value is not None]
    if scored:
        assert logged[0]["rewards/rprm_min/mean"] == pytest.approx(sum(scored) / len(scored), abs=1e-4)
    assert logged[0]["rprm_min/unscored"] == given[0].count(None) / 4
    assert "rewards/rprm_progress/mean" in logged[0]
    after = trainer.model.parameters()
    assert any(not torch.equal(old, new) for old, new in zip(before, after, strict=True))
