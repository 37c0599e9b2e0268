"""What a sampled reply is worth in reinforcement learning (`rprm train grpo`). Pure functions.

`told` is what a reply says: of a step, whether it is right; of a whole solution, the index of its earliest wrong step
(-1: none). None: it says nothing that its format finds.
"""

from __future__ import annotations

from typing import Literal, get_args

RewardName = Literal["verdict", "distance", "outcome"]
REWARDS: tuple[RewardName, ...] = get_args(RewardName)


def verdict_reward(told: int | None, label: int) -> float:
    """1 for what the label says (of a critic: exactly that step), -1 for anything else, and for nothing."""
    return 1.0 if told is not None and told == label else -1.0


def distance_reward(told: int | None, label: int, num_steps: int) -> float:
    """FAPO's reward of a critic (arXiv 2510.22543; verl, recipe/fapo/reward_fn_genrm.py): 1 where it is right about
    whether a step is wrong, less the distance between the step it names and the earliest wrong one, as a share of all
    steps; -1 where it is not, or says nothing."""
    if told is None or (told == -1) != (label == -1):
        return -1.0
    return 1.0 - abs(told - label) / num_steps


def outcome_reward(calls_right: bool | None, is_right: bool) -> float:
    """The final verdict alone, which no step needs to be labelled for (TIPS, RUCBM/TIPS,
    verl/utils/reward_score/math_process_judge.py, there 1 and 0): 1 where the reply calls the whole solution what it
    is, -1 otherwise."""
    return 1.0 if calls_right is is_right else -1.0


def form_reward(is_wellformed: bool) -> float:
    """0 for a reply that ends in its only verdict, as a judge's replies should, -1 for any other."""
    return 0.0 if is_wellformed else -1.0


def overlong_reward(num_tokens: int, most: int, buffer: int) -> float:
    """DAPO's soft punishment (arXiv 2503.14476, equation 13): 0 up to `most - buffer` tokens, from there down to -1 at
    `most`; without a buffer 0."""
    return -min(max(num_tokens - (most - buffer), 0) / buffer, 1.0) if buffer else 0.0
