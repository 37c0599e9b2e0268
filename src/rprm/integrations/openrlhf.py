"""OpenRLHF: a `reward_func` of `--reward.remote_url FILE.py`, and what an HTTP server answers to its requests."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rprm.errors import InputError
from rprm.integrations.answers import (
    AnyRewarder,
    RewardForm,
    Scorer,
    blocking,
    checked_form,
    enclosed,
    filled,
    judged,
    rewarder_of,
    value_of,
)

#: What begins and what ends a user's turn in the templates of Qwen and other ChatML models, Llama 3, Gemma, Mistral,
#: DeepSeek, Phi and Zephyr.
_USER_TURNS = {
    "<|im_start|>user\n": "<|im_end|>",
    "<|start_header_id|>user<|end_header_id|>\n\n": "<|eot_id|>",
    "<start_of_turn>user\n": "<end_of_turn>",
    "[INST]": "[/INST]",
    "<｜User｜>": "<｜Assistant｜>",
    "<|user|>": "<|assistant|>",
}
_TAG = re.compile(r"<[|｜][^<>\s]{1,40}[|｜]>|\[/?INST\]|<(?:start|end)_of_turn>")
#: Control tokens that end a turn.
_ENDING = re.compile(r"<[|｜][^<>\s]{1,40}[|｜]>|</s>|<eos>|<pad>|<end_of_turn>")

ProblemOf = Callable[[str, Any], str]


def problem_of_prompt(prompt: str, label: Any = None) -> str:
    """The problem in a prompt, which OpenRLHF has rendered with the chat template: the text of its last user turn.

    Raises:
        InputError: the prompt has control tokens of a template that is not known.
    """
    if turns := [turn for _, turn in enclosed(prompt, _USER_TURNS)]:
        return _without_ending(turns[-1].strip())
    if tag := _TAG.search(prompt):
        raise InputError(f"the prompt is rendered with an unknown template ({tag[0]}): give a function as problem_of")
    return prompt


def _without_ending(text: str) -> str:
    """A turn without the control tokens at its end, in one pass: a response may be nothing but such tokens."""
    cut = end = 0
    for token in _ENDING.finditer(text):
        if text[end : token.start()].strip():
            cut = token.start()
        end = token.end()
    return text if text[end:].strip() else text[:cut].rstrip()


def _response(query: str, prompt: str) -> str | None:
    """What stands in a query after its prompt; None where that does not stand there. Decoded again, a prompt may differ
    in spaces, or lack its beginning (--data.max_len): its end stands, as often as in what is left of the prompt."""
    if query.startswith(prompt):
        return query[len(prompt) :]
    end = prompt[-40:]
    parts = query.split(end, prompt.count(end, max(prompt.find(query[:40]), 0)))
    return parts[-1] if len(parts) > 1 else None


async def respond(
    prm: Scorer, payload: Mapping[str, Any], *, form: RewardForm = "min", unscored: float = 0.0,
    problem_of: ProblemOf = problem_of_prompt,
) -> dict[str, Any]:  # fmt: skip
    """What a server answers to OpenRLHF's POST.

    Args:
        payload: `query` (prompts with their responses), `prompts` and `labels`, lists of one length.
        form: how step rewards become the reward of a response.
        unscored: the reward of a response that has none.
        problem_of: the problem, of a prompt and its label.

    Returns:
        `rewards` and `scores`, the same numbers from 0 to 1, and `extra_logs` with `unscored`: 1 where there is none.

    Raises:
        InputError: the payload has another form; a query does not begin with its prompt; the template is not known.
        EngineError: as `RPRM.score`.
    """
    queries, prompts = _texts(payload, "query"), _texts(payload, "prompts")
    if not isinstance(labels := payload.get("labels", []), list | None):
        raise InputError("'labels' must be a list")
    labels = labels or [None] * len(prompts)
    if not len(queries) == len(prompts) == len(labels):
        raise InputError(f"{len(queries)} queries, {len(prompts)} prompts and {len(labels)} labels: not of one length")
    answers = []
    for index, (query, prompt, label) in enumerate(zip(queries, prompts, labels, strict=True)):
        if (response := _response(query, prompt)) is None:
            raise InputError(f"query {index} does not begin with its prompt")
        answers.append((problem_of(prompt, label), _without_ending(response)))
    values = [value_of(reward, checked_form(form)) for reward in await judged(prm, answers)]
    rewards = filled(values, unscored)
    return {"rewards": rewards, "scores": rewards, "extra_logs": {"unscored": [float(one is None) for one in values]}}


def _texts(payload: Mapping[str, Any], name: str) -> list[str]:
    texts = payload.get(name)
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise InputError(f"{name!r} must be a list of texts")
    return texts


class RewardFunction:
    """A `reward_func`; the arguments are those of `respond`."""

    def __init__(
        self,
        prm: AnyRewarder,
        form: RewardForm = "min",
        *,
        unscored: float = 0.0,
        problem_of: ProblemOf = problem_of_prompt,
    ) -> None:
        self.prm = rewarder_of(prm)
        self.form = checked_form(form)
        self.unscored = unscored
        self.problem_of = problem_of

    def __call__(
        self, queries: Sequence[str], prompts: Sequence[str], labels: Sequence[Any], **kwargs: Any
    ) -> dict[str, Any]:
        """As `respond`, with tensors [B] in place of lists."""
        import torch

        payload = {"query": list(queries), "prompts": list(prompts), "labels": list(labels)}
        work = respond(self.prm, payload, form=self.form, unscored=self.unscored, problem_of=self.problem_of)
        found = blocking(work)
        rewards = torch.tensor(found["rewards"])
        extra = {name: torch.tensor(values) for name, values in found["extra_logs"].items()}
        return {"rewards": rewards, "scores": rewards.clone(), "extra_logs": extra}
