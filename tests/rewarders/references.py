"""The published procedure of each layout, written out by hand: what rewards are held against."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

QWEN_SYSTEM = "Please reason step by step, and put your final answer within \\boxed{}."


@dataclass
class Network:
    """A model to compute a reference with.

    Attributes:
        tokenizer: as transformers gives it.
        model: with an output layer.
        head: the tensors of the head by their published names.
    """

    tokenizer: Any
    model: Any
    head: dict[str, torch.Tensor]

    def hidden(self, ids: list[int]) -> torch.Tensor:
        """Last hidden states [tokens, hidden]."""
        with torch.inference_mode():
            states: torch.Tensor = self.model.base_model(torch.tensor([ids])).last_hidden_state[0]
        return states

    def logits(self, ids: list[int]) -> torch.Tensor:
        """Logits [tokens, vocabulary] of the output layer."""
        with torch.inference_mode():
            logits: torch.Tensor = self.model(torch.tensor([ids])).logits[0]
        return logits

    def linear(self, states: torch.Tensor, name: str) -> torch.Tensor:
        out = states @ self.head[f"{name}.weight"].T
        return out + self.head[f"{name}.bias"] if f"{name}.bias" in self.head else out


def by_qwen(network: Network, problem: str, steps: Sequence[str]) -> list[float]:
    """Model cards of Qwen2.5-Math-PRM-7B, -72B and Qwen2.5-Math-7B-PRM800K."""
    tokenizer = network.tokenizer
    text = tokenizer.apply_chat_template(
        [
            {"role": "system", "content": QWEN_SYSTEM},
            {"role": "user", "content": problem},
            {"role": "assistant", "content": "".join(f"{step}<extra_0>" for step in steps)},
        ],
        tokenize=False,
    )
    ids = tokenizer.encode(text)
    inner = network.linear(network.hidden(ids), "score.0").clamp(min=0)
    classes = network.linear(inner, "score.2").softmax(-1)
    tag = tokenizer.convert_tokens_to_ids("<extra_0>")
    return [float(classes[place, 1]) for place, id_ in enumerate(ids) if id_ == tag]


def by_skywork(network: Network, problem: str, steps: Sequence[str]) -> list[float]:
    """SkyworkAI/skywork-o1-prm-inference, model_utils/io_utils.py: every line of the answer is scored."""
    tokenizer = network.tokenizer
    ids = tokenizer.encode(f"{tokenizer.bos_token}{problem}\n")
    scored = []
    for line in "\n".join(steps).split("\n"):
        ids += [*(tokenizer.encode(line) if line else []), tokenizer.encode("\n")[-1]]
        scored.append(len(ids) - 1)
    values = network.linear(network.hidden(ids), "v_head.summary")
    of_lines = [float(values[place, 0].sigmoid()) for place in scored]
    # The last line of each step.
    ends = torch.tensor([step.count("\n") + 1 for step in steps]).cumsum(0) - 1
    return [of_lines[end] for end in ends.tolist()]


def by_math_shepherd(network: Network, problem: str, steps: Sequence[str]) -> list[float]:
    """Model card of peiyi9979/math-shepherd-mistral-7b-prm."""
    tokenizer = network.tokenizer
    text = "\n".join(f"Step {number}: {step} ки" for number, step in enumerate(steps, 1))
    ids = tokenizer.encode(f"{problem} {text}")
    tag = tokenizer.encode("ки")[-1]
    plus_minus = tokenizer.encode("+ -")[1:]
    scores = network.logits(ids)[:, plus_minus].softmax(-1)[:, 0]
    return [float(scores[place]) for place, id_ in enumerate(ids) if id_ == tag]


def by_rlhflow(network: Network, problem: str, steps: Sequence[str]) -> list[float]:
    """RLHFlow/RLHF-Reward-Modeling, math-rm/prm_evaluate.py: step by step the conversation grows, and the answer is
    predicted by the third token from its end."""
    tokenizer = network.tokenizer
    plus_minus = [tokenizer.encode(sign)[-1] for sign in "+-"]
    return [
        float(network.logits(ids)[-3, plus_minus].softmax(-1)[0])
        for ids in _rlhflow_ids(tokenizer, f"{problem} ", steps)
    ]


def top1_by_processbench(network: Network, problem: str, steps: Sequence[str]) -> list[float]:
    """QwenLM/ProcessBench, code/run_eval_prm_rlhflow.py: a blank line after the problem, and the likeliest token."""
    tokenizer = network.tokenizer
    found = []
    for ids in _rlhflow_ids(tokenizer, f"{problem}\n\n", steps):
        top = tokenizer.decode([int(network.logits(ids)[-3].argmax())])
        found.append(float(top.strip().lower().startswith("+")))
    return found


def _rlhflow_ids(tokenizer: Any, before: str, steps: Sequence[str]) -> list[list[int]]:
    conversation, found = [], []
    for index, step in enumerate(steps):
        conversation += [
            {"role": "user", "content": f"{before}{step}" if index == 0 else step},
            {"role": "assistant", "content": "+"},
        ]
        found.append(tokenizer.apply_chat_template(conversation, tokenize=True, return_dict=True)["input_ids"])
    return found


def by_trl(network: Network, problem: str, steps: Sequence[str], separator: str = "\n") -> list[float]:
    """TRL's PRMTrainer.tokenize_row; CJReinforce/PURE, experience_maker.py (P(1) - P(0) there)."""
    tokenizer = network.tokenizer
    ids = tokenizer.encode(problem, add_special_tokens=False)
    if tokenizer.bos_token_id is not None:
        ids = [tokenizer.bos_token_id, *ids]
    ends = []
    for step in steps:
        ids += tokenizer.encode(step, add_special_tokens=False)
        ids += tokenizer.encode(separator, add_special_tokens=False)
        ends.append(len(ids) - 1)
    classes = network.linear(network.hidden(ids), "score").softmax(-1)
    return [float(classes[end, 1] - classes[end, 0] + 1) / 2 for end in ends]


def by_universal(network: Network, problem: str, steps: Sequence[str]) -> list[float]:
    """Model card of infly/Universal-PRM-7B: a sequence for each step."""
    tokenizer = network.tokenizer
    question = f"{problem}\n\n###\n\nThe reference answer is: There is no reference answer for this question."
    messages = [
        {"role": "system", "content": "You are a helpful assistant."},
        {"role": "user", "content": question},
    ]
    found = []
    for end in range(1, len(steps) + 1):
        ids = tokenizer.apply_chat_template(messages, tokenize=True, add_generation_prompt=True, return_dict=True)
        ids = [*ids["input_ids"], *tokenizer.encode("\n\n".join(steps[:end]) + "\n\n"), tokenizer.eos_token_id]
        inner = network.linear(network.hidden(ids)[-1:], "score.0").clamp(min=0)
        found.append(float(network.linear(inner, "score.2").sigmoid()))
    return found


def by_llemma(network: Network, problem: str, steps: Sequence[str]) -> list[float]:
    """Model card of ScalableMath/llemma-7b-prm-prm800k-level-1to3-hf; steps without blank lines."""
    tokenizer = network.tokenizer
    ids = tokenizer.encode(f"# Question\n\n{problem}\n\n# Solution\n\n" + "".join(f"{step}\n\n" for step in steps))
    begin = tokenizer.encode("\n\n# Solution", add_special_tokens=False)[1:]
    scoring = tokenizer.encode("\n\n", add_special_tokens=False)[1:]
    begun, places = False, []
    for start in range(len(ids)):
        begun = begun or ids[start : start + len(begin)] == begin
        # A blank line has one such start.
        if begun and ids[start : start + len(scoring)] == scoring:
            places.append(start)
    # The first two are around "# Solution".
    del places[:2]
    values = network.logits(ids).mean(-1).sigmoid()
    return [float(values[place]) for place in places]


def by_reasoneval(network: Network, problem: str, steps: Sequence[str]) -> list[float]:
    """GAIR-NLP/ReasonEval, codes/examples.py: the pad token, which in the 7B model is the BOS token, cuts the steps."""
    tokenizer, mark = network.tokenizer, network.tokenizer.pad_token
    text = f"Question:\n{problem}\nAnswer:\nLet's think step by step.\n{mark}" + "".join(
        f"{step}{mark}" for step in steps
    )
    places, kept = [], []
    for place, id_ in enumerate(tokenizer(text)["input_ids"]):
        if id_ == tokenizer.pad_token_id:
            places.append(place - 1 - len(places))
        else:
            kept.append(id_)
    if mark == tokenizer.bos_token:
        # The places are not moved by the token that goes in front again: they are those of the tokens before the last.
        kept, places = [tokenizer.bos_token_id, *kept], places[2:]
    else:
        places = places[1:]
    classes = network.linear(network.hidden(kept), "score_head").softmax(-1)
    return [float(classes[place, 1] + classes[place, 2]) for place in places]


def by_math_psa(network: Network, problem: str, steps: Sequence[str]) -> list[float]:
    """openreasoner/openr, prm/infer_fns.py and prm/code/test_qwen.py."""
    tokenizer = network.tokenizer
    tag = tokenizer.encode(" \n\n\n\n\n")[-1]
    text = " \n\n\n\n\n ".join(f"Step {number}: {step}" for number, step in enumerate(steps, 1))
    ids = tokenizer.encode(f"{problem} {text} \n\n\n\n\n")
    scores = network.logits(ids)[:, tokenizer.encode(" + -")].softmax(-1)[:, 0]
    return [float(scores[place]) for place, id_ in enumerate(ids) if id_ == tag]


REFERENCES: dict[str, Callable[[Network, str, Sequence[str]], list[float]]] = {
    "qwen": by_qwen,
    "skywork": by_skywork,
    "math-shepherd": by_math_shepherd,
    "rlhflow": by_rlhflow,
    "trl": by_trl,
    "universal": by_universal,
    "llemma": by_llemma,
    "reasoneval": by_reasoneval,
    "math-psa": by_math_psa,
}

#: Layout -> the fixture that makes a folder of it.
FOLDERS = {
    "qwen": "qwen_folder",
    "skywork": "skywork_folder",
    "math-shepherd": "shepherd_folder",
    "rlhflow": "rlhflow_folder",
    "trl": "trl_folder",
    "universal": "universal_folder",
    "llemma": "llemma_folder",
    "reasoneval": "reasoneval_folder",
    "math-psa": "psa_folder",
}
