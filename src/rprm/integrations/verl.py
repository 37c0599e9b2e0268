"""verl: a `compute_score` that is named in the configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rprm.errors import InputError
from rprm.integrations.answers import RewardForm, checked_form, filled, judged, loaded, value_of


async def compute_score(
    data_source: str, solution_str: str, ground_truth: Any, extra_info: Mapping[str, Any] | None = None, *, model: str,
    form: RewardForm = "min", problem: str = "question", unscored: float = 0.0,
    reward_router_address: str | None = None, reward_model_tokenizer: Any = None, **options: Any,
) -> dict[str, float]:  # fmt: skip
    """The reward of a response, in verl's `score`, from 0 to 1; `num_steps`, and `unscored`, 1 where there is none.

    Args:
        model: the rewarder's spec. `{reward_router_address}` in it becomes the address of the servers that verl started
            for its own reward model.
        form: how step rewards become the reward of a response.
        problem: where in `extra_info` the problem stands; verl's own GSM8K script writes "question".
        unscored: the score of a response without a reward.
        options: those of `RPRM`.

    Raises:
        InputError: `extra_info` has no problem, or the form is unknown.
        EngineError: as `RPRM.score`.
    """
    text = (extra_info or {}).get(problem)
    if not isinstance(text, str):
        fields = ", ".join(map(str, extra_info or {})) or "none"
        raise InputError(f"extra_info has no text {problem!r} (fields: {fields}); set problem to that of the problem")
    prm = loaded(model.replace("{reward_router_address}", reward_router_address or ""), **options)
    (reward,) = await judged(prm, [(text, solution_str)])
    value = value_of(reward, checked_form(form))
    (score,) = filled([value], unscored)
    return {"score": score, "unscored": float(value is None), "num_steps": float(reward.num_steps if reward else 0)}
