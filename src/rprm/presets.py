"""Settings with their sources. The paper is R-PRM, arXiv 2503.21295; its code is NJUNLP/R-PRM."""

from __future__ import annotations

from dataclasses import dataclass

from rprm.stopping import Stopping


@dataclass(frozen=True)
class JudgeSettings:
    """How a judge samples and decides. None of it depends on the engine."""

    num_analyses: int
    temperature: float
    top_p: float
    max_tokens: int
    threshold: float = 0.5
    stopping: Stopping = "exact"
    first_error_exit: bool = True
    force_verdict: bool = False
    prompt: str | None = None


#: The paper's inference settings: K = 10, T = 0.95, top-p 0.95, up to 4,096 new tokens (section 4.1), threshold 0.5
#: (ProcessBench, code/run_eval.py). Exact stopping and first-error exit are ours and change no prediction.
PAPER = JudgeSettings(num_analyses=10, temperature=0.95, top_p=0.95, max_tokens=4096)

#: The paper's procedure to the letter: every analysis of every step, and a verdict forced where an analysis has none
#: (src/evaluate/GenPRM/evaluate-PRM-CoT.py).
PUBLISHED = JudgeSettings(
    num_analyses=10,
    temperature=0.95,
    top_p=0.95,
    max_tokens=4096,
    stopping="none",
    first_error_exit=False,
    force_verdict=True,
)

#: For the embedded model: the paper's, but for the length (its analyses have some 130 tokens, of long chains up to 330)
#: and the threshold. They seldom call a wrong step right, but often slip: one Yes of ten is enough (docs/log.md).
EMBEDDED = JudgeSettings(num_analyses=10, temperature=0.95, top_p=0.95, max_tokens=400, threshold=0.07)

#: For SmolLM2-135M on a CPU: short analyses, and a verdict asked for where the model does not come to one.
SMOLLM2 = JudgeSettings(
    num_analyses=4, temperature=0.7, top_p=0.95, max_tokens=128, force_verdict=True, prompt="few-shot"
)


def judge_settings(model: str) -> JudgeSettings:
    """The defaults for a model spec: the paper's, but for the models that come along their own."""
    return {"embedded": EMBEDDED, "smollm2": SMOLLM2}.get(model.partition("?")[0].partition(":")[0], PAPER)


@dataclass(frozen=True)
class PolicySettings:
    """How a policy writes solutions, whole or step by step."""

    num_candidates: int
    temperature: float
    top_p: float
    max_tokens: int
    step_tokens: int


#: The policy of the paper's guided search: 8 candidates at T = 1.0 (0.7 is only the default of its script). Of the
#: script (NJUNLP/R-PRM, src/reward-guide-search): top-p 0.95, steps of up to 512 tokens. Whole solutions are sampled
#: alike; their longest length is ours.
PAPER_POLICY = PolicySettings(num_candidates=8, temperature=1.0, top_p=0.95, max_tokens=2048, step_tokens=512)
