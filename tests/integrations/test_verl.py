"""verl's reward worker with `compute_score` from its configuration (opt-in: `make test-integrations`)."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

import rprm
from rprm.errors import InputError
from rprm.integrations.verl import compute_score

ANSWER = "2 + 2 = 4.\n\nIt is 4."


def test_a_score() -> None:
    with rprm.RPRM("scripted:", num_analyses=2) as prm:
        (reward,) = prm.score([{"problem": "2 + 2?", "steps": ANSWER.split("\n\n")}])
    given = {"model": "scripted:", "num_analyses": 2}
    found = asyncio.run(compute_score("gsm8k", f"<think>\nx\n</think>\n{ANSWER}", "4", {"question": "2 + 2?"}, **given))
    assert found == {"score": reward.aggregate("min"), "unscored": 0.0, "num_steps": 2.0}
    empty = asyncio.run(compute_score("gsm8k", "", "4", {"p": "2 + 2?"}, problem="p", unscored=-1.0, **given))
    assert empty == {"score": -1.0, "unscored": 1.0, "num_steps": 0.0}
    with pytest.raises(InputError, match=r"no text 'question' \(fields: split\)"):
        asyncio.run(compute_score("gsm8k", ANSWER, "4", {"split": "train"}, **given))


def test_the_address_of_its_own_servers() -> None:
    given = {"model": "scripted:?log={reward_router_address}", "reward_router_address": "no-such-folder/log"}
    with pytest.raises(rprm.RprmError, match="no-such-folder/log cannot be written"):
        asyncio.run(compute_score("gsm8k", ANSWER, "4", {"question": "2 + 2?"}, **given))


def test_a_batch_of_rollouts(tiny_model: Path) -> None:
    pytest.importorskip("verl")
    import numpy as np
    import torch
    from omegaconf import OmegaConf
    from transformers import AutoTokenizer
    from verl import DataProto
    from verl.experimental.reward_loop import RewardLoopWorker

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    texts = [ANSWER, "It is 5.", ""]
    width = 40
    responses = torch.zeros(len(texts), width, dtype=torch.long)
    mask = torch.zeros(len(texts), 2 + width, dtype=torch.long)
    mask[:, :2] = 1
    for row, text in enumerate(texts):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        responses[row, : len(ids)] = torch.tensor(ids)
        mask[row, 2 : 2 + len(ids)] = 1
    objects: dict[str, Any] = {
        "data_source": ["gsm8k"] * 3,
        "reward_model": [{"ground_truth": "4"}] * 3,
        "extra_info": [{"question": "2 + 2?"} for _ in texts],
    }
    data = DataProto.from_dict(
        {"prompts": torch.ones(3, 2, dtype=torch.long), "responses": responses, "attention_mask": mask},
        {name: np.array(values, dtype=object) for name, values in objects.items()},
    )
    config = OmegaConf.create({
        "actor_rollout_ref": {"model": {"path": str(tiny_model), "tokenizer_path": None}},
        "reward": {
            "reward_model": {"enable": False},
            "reward_manager": {"source": "register", "name": "naive"},
            "custom_reward_function": {
                "path": "pkg://rprm.integrations.verl",
                "name": "compute_score",
                "reward_kwargs": {"model": "scripted:", "num_analyses": 2, "form": "mean"},
            },
        },
    })  # fmt: skip

    async def scored() -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = await RewardLoopWorker(config).compute_score_batch(data)
        return found

    found = asyncio.run(scored())
    with rprm.RPRM("scripted:", num_analyses=2) as prm:
        rewards = prm.score([
            {"problem": "2 + 2?", "steps": ANSWER.split("\n\n")}, {"problem": "2 + 2?", "steps": ["It is 5."]},
        ])  # fmt: skip
    assert [row["reward_score"] for row in found] == [*(reward.aggregate("mean") for reward in rewards), 0.0]
    assert [row["reward_extra_info"]["unscored"] for row in found] == [0.0, 0.0, 1.0]
    scores = [row["reward_score"] for row in found]
    from verl.experimental.reward_loop.reward_manager import NaiveRewardManager

    assert NaiveRewardManager.assemble_rm_scores(data, scores).sum().item() == pytest.approx(sum(scores))
