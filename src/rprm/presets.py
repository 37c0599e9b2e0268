"""Settings with their sources. The paper is R-PRM, arXiv 2503.21295; its code is NJUNLP/R-PRM."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from rprm import ranges
from rprm.errors import RprmError
from rprm.models import resolve
from rprm.ranges import Draws, Temperature, Threshold, Tokens, TopP
from rprm.stopping import Stopping

#: "lean" finds first errors and stops where they are certain, "full" draws all analyses, "published" as its code does.
Procedure = Literal["lean", "full", "published"]


@dataclass(frozen=True)
class JudgeSettings:
    """How a judge samples and decides, whatever the engine; see `rprm.rewarders.rprm.Judge`. Checked when made."""

    num_analyses: Draws
    temperature: Temperature
    top_p: TopP
    max_tokens: Tokens
    threshold: Threshold = 0.5
    stopping: Stopping = "exact"
    first_error_exit: bool = True
    force_verdict: bool | str = False
    second_pass: bool = False
    prompt: str | None = None

    def __post_init__(self) -> None:
        ranges.check(self, RprmError)


#: K = 10 is the paper's (section 4.1); T, top-p and length are its scripts' (NJUNLP/R-PRM, src/evaluate), the threshold
#: ProcessBench's (code/run_eval.py). Exact stopping and first-error exit are ours and change no prediction.
PAPER = JudgeSettings(num_analyses=10, temperature=0.95, top_p=0.95, max_tokens=4096)

_PACKAGED = {
    # Analyses have some 130 tokens, of long chains up to 330. They seldom call a wrong step right, but often slip: one
    # Yes of ten is enough (docs/log.md).
    "embedded": replace(PAPER, max_tokens=400, threshold=0.07),
    # SmolLM2-135M on a CPU: short analyses, and a verdict asked for where the model does not come to one.
    "smollm2": JudgeSettings(4, temperature=0.7, top_p=0.95, max_tokens=128, force_verdict=True, prompt="few-shot"),
}


def judge_settings(model: str, procedure: Procedure = "lean") -> JudgeSettings:
    """The defaults for a model spec: the paper's, with a known model's threshold; packaged models have their own."""
    settings = _PACKAGED.get(model.partition("?")[0].partition(":")[0], PAPER)
    if (known := resolve(model).known) is not None:
        settings = replace(settings, threshold=known.threshold)
    if procedure == "lean":
        return settings
    # P(Yes) by a second pass that reads ` Yes` and ` No` alone, a verdict asked for where an analysis has none
    # (NJUNLP/R-PRM, src/evaluate/GenPRM/evaluate-PRM-CoT.py).
    published: dict[str, Any] = {"force_verdict": True, "second_pass": True} if procedure == "published" else {}
    return replace(settings, stopping="none", first_error_exit=False, **published)
