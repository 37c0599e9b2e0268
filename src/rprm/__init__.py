"""Reasoning-driven process reward models: judge solutions step by step, measure, train and search.

>>> from rprm import RPRM
>>> rewards = RPRM("r-prm-7b").score(solutions)  # doctest: +SKIP
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rprm.api import RPRM
    from rprm.engines import Engine, load_engine
    from rprm.errors import RprmError
    from rprm.prompts import PromptTemplate, load_template
    from rprm.records import Analysis, Solution, SolutionReward, StepReward
    from rprm.rewarders import load_rewarder
    from rprm.splitting import split_steps

__version__ = "0.1.0"

#: Name -> module. Imported when first used, so that `import rprm` costs nothing.
_HOMES = {
    "RPRM": "rprm.api",
    "load_rewarder": "rprm.rewarders",
    "Engine": "rprm.engines",
    "load_engine": "rprm.engines",
    "RprmError": "rprm.errors",
    "PromptTemplate": "rprm.prompts",
    "load_template": "rprm.prompts",
    "split_steps": "rprm.splitting",
    "Analysis": "rprm.records",
    "Solution": "rprm.records",
    "SolutionReward": "rprm.records",
    "StepReward": "rprm.records",
}

__all__ = [
    "RPRM",
    "Analysis",
    "Engine",
    "PromptTemplate",
    "RprmError",
    "Solution",
    "SolutionReward",
    "StepReward",
    "__version__",
    "load_engine",
    "load_rewarder",
    "load_template",
    "split_steps",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'rprm' has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
